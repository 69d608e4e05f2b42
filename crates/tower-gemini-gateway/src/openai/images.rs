//! The images API: one prompt, images to edit, and one image back.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyDataStream, Full};

use super::blob::{self, Blob};
use super::config::Asked;
use super::error::OpenAiError;
use super::json::{Json, object};
use super::reply::Reply;
use super::target::Target;
use super::{Kind, Translated, translated};

/// No client sends more than a mask, 16 images and two dozen fields.
const MOST_FIELDS: usize = 128;

/// A form: its fields as the JSON they stand for, and its files.
#[derive(Debug, Default)]
pub(super) struct Form {
    pub(super) fields: Vec<(String, String)>,
    pub(super) images: Vec<(String, String)>,
    has_mask: bool,
}

impl Form {
    /// Reads `multipart/form-data`.
    pub(super) async fn read(body: &Bytes, boundary: String) -> Result<Self, OpenAiError> {
        let broken =
            |error: multer::Error| OpenAiError::new(format!("the form cannot be read: {error}"));
        let mut multipart =
            multer::Multipart::new(BodyDataStream::new(Full::new(body.clone())), boundary);
        let mut form = Self::default();
        let mut count = 0;
        while let Some(field) = multipart.next_field().await.map_err(broken)? {
            count += 1;
            if count > MOST_FIELDS {
                return Err(OpenAiError::new(format!(
                    "the form has more than {MOST_FIELDS} fields"
                )));
            }
            let name = field.name().unwrap_or_default().to_owned();
            // `image`, `image[]`, `image[0]`.
            let name = name.split('[').next().unwrap_or_default().to_owned();
            let mime = field.content_type().map(ToString::to_string);
            let is_file = field.file_name().is_some();
            let bytes = field.bytes().await.map_err(broken)?;
            match (&*name, is_file) {
                ("image" | "images", true) => form.file(&mime.unwrap_or_default(), &bytes)?,
                ("mask" | "markup", _) => form.has_mask |= !bytes.is_empty(),
                // Files that mean nothing here are passed over like fields that do not.
                (_, true) => {}
                (_, false) => {
                    let text = String::from_utf8(bytes.into()).map_err(|_| {
                        OpenAiError::of(name.clone(), format!("`{name}` is not UTF-8"))
                    })?;
                    form.fields.push((name, text));
                }
            }
        }
        Ok(form)
    }

    fn file(&mut self, mime: &str, bytes: &[u8]) -> Result<(), OpenAiError> {
        if bytes.is_empty() {
            return Err(OpenAiError::of("image", "`image` is an empty file"));
        }
        let data = STANDARD.encode(bytes);
        let mime = blob::mime_of(mime)
            .map(Cow::into_owned)
            .or_else(|| blob::sniffed(&data).map(str::to_owned));
        let mime = mime.ok_or_else(|| {
            OpenAiError::of("image", "`image` is a file whose type is neither stated nor known")
        })?;
        self.images.push((mime, data));
        Ok(())
    }

    /// The fields as an object. Images that came as texts stay in a list.
    pub(super) fn as_json(&self) -> Json<'_> {
        let mut members = Vec::new();
        let mut images = Vec::new();
        for (name, text) in &self.fields {
            match &**name {
                "image" | "images" => images.push(Json::from(&**text)),
                _ => members.push((Cow::Borrowed(&**name), Json::from(&**text))),
            }
        }
        if !images.is_empty() {
            members.push((Cow::Borrowed("image"), Json::List(images)));
        }
        if self.has_mask {
            members.push((Cow::Borrowed("mask"), Json::Bool(true)));
        }
        Json::Object(members)
    }
}

pub(super) fn translate(
    kind: Kind,
    asked: &Json<'_>,
    form: &Form,
    room: usize,
) -> Result<Translated, OpenAiError> {
    let target = Target::of(asked.get("model"))?;
    let prompt =
        asked.get("prompt").and_then(Json::text).filter(|prompt| !prompt.trim().is_empty());
    let prompt = prompt.ok_or_else(|| OpenAiError::of("prompt", "`prompt` is missing or empty"))?;
    for mask in ["mask", "markup"] {
        if asked.get(mask).is_some() {
            let message = format!(
                "`{mask}` is not supported: Gemini takes none; say in the prompt what is to change and what is to stay"
            );
            return Err(OpenAiError::unsupported(mask, message));
        }
    }
    if asked.get("stream").is_some_and(Json::is_true) {
        let message = "`stream` is not supported here; ask chat/completions with \"stream\": true, or leave it out";
        return Err(OpenAiError::unsupported("stream", message));
    }
    if asked.text_of(&["background"]) == Some("transparent") {
        let message = "`background`: Gemini's images have no transparency; ask for a plain background in the prompt";
        return Err(OpenAiError::unsupported("background", message));
    }
    let as_url = match asked.text_of(&["response_format"]) {
        None | Some("" | "b64_json") => false,
        Some("url") => true,
        Some(_) => {
            return Err(OpenAiError::of("response_format", "`response_format` is b64_json or url"));
        }
    };
    let mut parts = vec![object([("text", prompt.into())])];
    if kind == Kind::Edits {
        for (mime, data) in &form.images {
            parts.push(
                Blob { mime: Cow::Borrowed(mime), data: Cow::Borrowed(data) }.into_part(None),
            );
        }
        for (name, image) in images_of(asked) {
            let text = image.text().or_else(|| {
                let url = image.any(&["image_url", "url", "b64_json"])?;
                url.text().or_else(|| url.get("url")?.text())
            });
            let Some(text) = text else {
                return Err(OpenAiError::unsupported(
                    name,
                    format!("`{name}` is no image; send a file, a data URI or base64"),
                ));
            };
            let blob = blob::of_text(text)
                .map_err(|fault| OpenAiError::of(name, format!("`{name}` {}", fault.words())))?;
            parts.push(blob.into_part(None));
        }
        if parts.len() == 1 {
            return Err(OpenAiError::of("image", "`image` is missing: there is nothing to edit"));
        }
    }
    let config = Asked::of(asked, &target, true)?;
    let content = object([("role", "user".into()), ("parts", Json::List(parts))]);
    let members = vec![(Cow::Borrowed("contents"), Json::List(vec![content]))];
    Ok(translated(&target, false, &config.into_body(members), room, Reply::images(as_url)))
}

fn images_of<'a, 'j>(asked: &'a Json<'j>) -> impl Iterator<Item = (&'static str, &'a Json<'j>)> {
    ["image", "images"].into_iter().flat_map(move |name| {
        let images = match asked.get(name) {
            Some(Json::List(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        images.iter().map(move |image| (name, image))
    })
}
