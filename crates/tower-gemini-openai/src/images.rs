//! Translates requests to the images API: one prompt, images to edit, and images back.

use std::borrow::Cow;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyDataStream, Full};
use multer::Multipart;

use super::error::OpenAiError;
use super::inline_image::{self, InlineImage};
use super::json::{Json, Members, object};
use super::model::RequestedModel;
use super::response::ResponseTranslator;
use super::settings::Settings;
use super::{Endpoint, GeminiRequest};

/// The most fields of a form: no client sends more than a mask, 16 images and two dozen settings.
const MAX_FIELDS: usize = 128;

/// Reads a form as the JSON that means the same: its fields are texts, its images data URIs.
pub(super) fn read_form(body: &Bytes, boundary: String) -> Result<Json<'static>, OpenAiError> {
    let body = BodyDataStream::new(Full::new(body.clone()));
    let read = pin!(read_fields(Multipart::new(body, boundary)));
    // All bytes are there, so one poll reads the whole form.
    match read.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(form) => form,
        Poll::Pending => Err(OpenAiError::new("the form is incomplete")),
    }
}

async fn read_fields(mut form: Multipart<'_>) -> Result<Json<'static>, OpenAiError> {
    let (mut members, mut images, mut count): (Members<'_>, _, _) = (Vec::new(), Vec::new(), 0);
    while let Some(field) = form.next_field().await.map_err(malformed)? {
        count += 1;
        if count > MAX_FIELDS {
            let message = format!("the form has more than {MAX_FIELDS} fields");
            return Err(OpenAiError::new(message));
        }
        // `image`, `image[]`, `image[0]`.
        let name = field.name().and_then(|name| name.split('[').next()).unwrap_or_default();
        let name = name.to_owned();
        let mime = field.content_type().map(ToString::to_string).unwrap_or_default();
        let is_file = field.file_name().is_some();
        let bytes = field.bytes().await.map_err(malformed)?;
        match (&*name, is_file) {
            ("image" | "images", true) => images.push(image_file(&mime, &bytes)?),
            ("mask" | "markup", _) if bytes.is_empty() => {}
            ("mask" | "markup", _) => members.push(("mask".into(), Json::Bool(true))),
            // Unknown files are ignored like unknown fields.
            (_, true) => {}
            (_, false) => match (String::from_utf8(bytes.into()), &*name) {
                (Ok(text), "image" | "images") => images.push(text.into()),
                (Ok(text), _) => members.push((name.into(), text.into())),
                (Err(_), _) => {
                    let message = format!("`{name}` is not UTF-8");
                    return Err(OpenAiError::invalid(name, message));
                }
            },
        }
    }
    if !images.is_empty() {
        members.push(("image".into(), Json::List(images)));
    }
    Ok(Json::Object(members))
}

fn image_file(mime: &str, bytes: &[u8]) -> Result<Json<'static>, OpenAiError> {
    if bytes.is_empty() {
        return Err(OpenAiError::invalid("image", "`image` is an empty file"));
    }
    let data = STANDARD.encode(bytes);
    let mime = inline_image::mime_of(mime).map(Cow::into_owned);
    match mime.or_else(|| inline_image::sniffed(&data).map(str::to_owned)) {
        Some(mime) => Ok(Json::DataUri(mime.into(), data.into())),
        None => {
            let message = "`image` is a file whose type is neither stated nor recognised";
            Err(OpenAiError::invalid("image", message))
        }
    }
}

fn malformed(error: multer::Error) -> OpenAiError {
    OpenAiError::new(format!("the form cannot be read: {error}"))
}

pub(super) fn translate(
    endpoint: Endpoint,
    request: &Json<'_>,
    capacity: usize,
) -> Result<GeminiRequest, OpenAiError> {
    let model = RequestedModel::parse(request.get("model"))?;
    let prompt = request.text_of(&["prompt"]).filter(|prompt| !prompt.trim().is_empty());
    let prompt =
        prompt.ok_or_else(|| OpenAiError::invalid("prompt", "`prompt` is missing or empty"))?;
    let unsupported = |param: &str, what: &str| {
        Err(OpenAiError::unsupported(param, format!("`{param}` is not supported: {what}")))
    };
    if let Some(mask) = ["mask", "markup"].into_iter().find(|name| request.get(name).is_some()) {
        return unsupported(
            mask,
            "Gemini takes none; say in the prompt what to change and what not",
        );
    }
    if request.get("stream").is_some_and(Json::is_true) {
        return unsupported("stream", "send it to chat/completions, or leave it out");
    }
    if request.text_of(&["background"]) == Some("transparent") {
        let what =
            "Gemini's images have no transparency; describe a plain background in the prompt";
        return unsupported("background", what);
    }
    let as_url = match request.text_of(&["response_format"]) {
        None | Some("" | "b64_json") => false,
        Some("url") => true,
        Some(_) => {
            let message = "`response_format` is b64_json or url";
            return Err(OpenAiError::invalid("response_format", message));
        }
    };
    let mut parts = vec![object([("text", prompt.into())])];
    if endpoint == Endpoint::ImageEdits {
        for name in ["image", "images"] {
            for image in images_of(request.get(name)) {
                parts.push(edited_image(name, image)?);
            }
        }
        if parts.len() == 1 {
            let message = "`image` is missing: there is nothing to edit";
            return Err(OpenAiError::invalid("image", message));
        }
    }
    let settings = Settings::parse(request, &model, true)?;
    let (count, has_drafts) = (settings.count, model.has_drafts());
    let content = object([("role", "user".into()), ("parts", Json::List(parts))]);
    let body = settings.into_body(vec![("contents".into(), Json::List(vec![content]))]);
    Ok(GeminiRequest {
        path_and_query: model.path(false),
        body: body.to_bytes(capacity + 1024).into(),
        count,
        translator: ResponseTranslator::images(model.name, as_url, has_drafts),
    })
}

fn images_of<'a, 'j>(images: Option<&'a Json<'j>>) -> &'a [Json<'j>] {
    match images {
        Some(Json::List(list)) => list,
        Some(one) => std::slice::from_ref(one),
        None => &[],
    }
}

fn edited_image<'a>(name: &str, image: &'a Json<'_>) -> Result<Json<'a>, OpenAiError> {
    if let Json::DataUri(mime, data) = image {
        let image = InlineImage { mime: Cow::Borrowed(mime), data: Cow::Borrowed(data) };
        return Ok(image.into_part(None));
    }
    let text = image.text().or_else(|| {
        let url = image.any(&["image_url", "url", "b64_json", "file_id"])?;
        url.text().or_else(|| url.get("url")?.text())
    });
    let Some(text) = text else {
        let message = format!("`{name}` is not an image; send a file, a data URI or base64");
        return Err(OpenAiError::unsupported(name, message));
    };
    inline_image::part_of(text, None, None, inline_image::from_text)
        .map_err(|error| OpenAiError::invalid(name, format!("`{name}` {}", error.message())))
}
