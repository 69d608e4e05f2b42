//! Translates chat completions.

use std::borrow::Cow;

use super::GeminiRequest;
use super::error::OpenAiError;
use super::inline_image::{self, ImageError, Segment};
use super::json::{Json, Members, object};
use super::model::RequestedModel;
use super::response::ResponseTranslator;
use super::settings::Settings;

/// The most images of one message: more than a model makes in a turn, and few enough to compare
/// each with all others.
const MAX_IMAGES: usize = 64;

pub(super) fn translate(request: &Json<'_>, capacity: usize) -> Result<GeminiRequest, OpenAiError> {
    let model = RequestedModel::parse(request.get("model"))?;
    let settings = Settings::parse(request, &model, false)?;
    let messages = request.get("messages").and_then(Json::list).unwrap_or_default();
    let (mut contents, mut system) = (Vec::new(), Vec::new());
    for (i, message) in messages.iter().enumerate() {
        let path = ParamPath(format!("messages[{i}]"));
        match message.text_of(&["role"]) {
            Some("system" | "developer") => {
                let parts = user_parts(message, &path)?;
                if parts.iter().any(|part| part.get("text").is_none()) {
                    return path.invalid(
                        "is an instruction with an image; send the image in a user message",
                    );
                }
                system.extend(parts);
            }
            Some("user") => contents.push(turn("user", user_parts(message, &path)?)),
            Some("assistant") => {
                let parts = model_parts(message, &path)?;
                // Gemini rejects a turn without parts.
                if !parts.is_empty() {
                    contents.push(turn("model", parts));
                }
            }
            Some("tool" | "function") => {
                return path.unsupported("is the result of a tool; tools are not translated");
            }
            _ => {
                return path
                    .invalid("has no known role; roles are system, developer, user and assistant");
            }
        }
    }
    if contents.is_empty() {
        let message = "`messages` has nothing to respond to: it needs a user message";
        return Err(OpenAiError::invalid("messages", message));
    }
    let mut members: Members<'_> = vec![("contents".into(), Json::List(contents))];
    if !system.is_empty() {
        members.push(("systemInstruction".into(), object([("parts", Json::List(system))])));
    }
    let stream = request.get("stream").is_some_and(Json::is_true);
    let count = settings.count;
    let include_usage = request.at(&["stream_options", "include_usage"]).is_some_and(Json::is_true);
    let has_drafts = model.has_drafts();
    Ok(GeminiRequest {
        path_and_query: model.path(stream),
        body: settings.into_body(members).to_bytes(capacity + 1024).into(),
        count,
        translator: ResponseTranslator::chat(model.name, include_usage, has_drafts),
    })
}

fn turn<'a>(role: &'a str, parts: Vec<Json<'a>>) -> Json<'a> {
    object([("role", role.into()), ("parts", Json::List(parts))])
}

/// The path of a value in the request, for error messages.
struct ParamPath(String);

impl ParamPath {
    fn nested(&self, name: &str, i: usize) -> Self {
        Self(format!("{}.{name}[{i}]", self.0))
    }

    fn invalid<T>(&self, what: &str) -> Result<T, OpenAiError> {
        Err(OpenAiError::invalid(self.0.clone(), format!("`{}` {what}", self.0)))
    }

    fn unsupported<T>(&self, what: &str) -> Result<T, OpenAiError> {
        Err(OpenAiError::unsupported(self.0.clone(), format!("`{}` {what}", self.0)))
    }
}

/// Returns the parts of a message that the model reads.
fn user_parts<'a>(message: &'a Json<'_>, path: &ParamPath) -> Result<Vec<Json<'a>>, OpenAiError> {
    let parts = content_parts(message, path)?;
    if parts.is_empty() { path.invalid("is empty") } else { Ok(parts) }
}

/// Returns what the model wrote and drew earlier, with the signatures that came with it.
///
/// Gemini signs the first part that is not a thought, and every image. OpenAI's format does not
/// keep the order of text and image; but an unsigned text next to a signed image was not first.
fn model_parts<'a>(message: &'a Json<'_>, path: &ParamPath) -> Result<Vec<Json<'a>>, OpenAiError> {
    let calls = message.any(&["tool_calls", "function_call"]);
    if calls.is_some_and(|calls| *calls != Json::List(Vec::new())) {
        return path.unsupported("calls a tool; tools are not translated");
    }
    let mut parts = content_parts(message, path)?;
    // An empty text is kept for its signature only.
    parts.retain(|part| part.text_of(&["text"]) != Some("") || is_signed(part));
    let drawn = message.get("images").and_then(Json::list).unwrap_or_default();
    if drawn.len() > MAX_IMAGES {
        return path.invalid(&format!("has more than {MAX_IMAGES} images"));
    }
    let mut images = Vec::new();
    for (i, image) in drawn.iter().enumerate() {
        let part = image_part(image, &path.nested("images", i))?;
        // Some relays send the image twice, in `images` and as Markdown. It is sent, and charged,
        // once.
        let data = data_of(&part);
        match parts.iter().position(|known| data.is_some() && data_of(known) == data) {
            Some(known) => parts[known] = part,
            None => images.push(part),
        }
    }
    if let Some(signature) = signature_of(message) {
        if parts.is_empty() && images.is_empty() {
            parts.push(object([("text", "".into())]));
        }
        // It came with the text, if there is one.
        let is_unsigned = |part: &&mut Json<'_>| !is_signed(part);
        let text = parts.iter_mut().filter(|part| part.get("text").is_some()).find(is_unsigned);
        if let Some(part) = text.or_else(|| images.iter_mut().find(is_unsigned)) {
            sign(part, Some(signature));
        }
    }
    let images_first = images.first().is_some_and(is_signed) && !parts.iter().any(is_signed);
    let (mut first, second) = if images_first { (images, parts) } else { (parts, images) };
    first.extend(second);
    Ok(first)
}

/// What tells a part's image from others.
fn data_of<'p>(part: &'p Json<'_>) -> Option<&'p str> {
    part.at(&["inlineData", "data"]).or_else(|| part.at(&["fileData", "fileUri"]))?.text()
}

fn is_signed(part: &Json<'_>) -> bool {
    part.get("thoughtSignature").is_some()
}

fn sign<'a>(part: &mut Json<'a>, signature: Option<&'a str>) {
    if let (Json::Object(members), Some(signature)) = (part, signature) {
        members.push((Cow::Borrowed("thoughtSignature"), signature.into()));
    }
}

/// Returns a signature from where this crate, or Google's own OpenAI-style endpoint, puts it.
fn signature_of<'a>(value: &'a Json<'_>) -> Option<&'a str> {
    value
        .text_of(&["thought_signature", "thoughtSignature"])
        .or_else(|| value.at(&["extra_content", "google", "thought_signature"])?.text())
        .filter(|signature| !signature.is_empty())
}

/// Translates `content` of a message.
fn content_parts<'a>(
    message: &'a Json<'_>,
    path: &ParamPath,
) -> Result<Vec<Json<'a>>, OpenAiError> {
    let mut parts = Vec::new();
    let list = match message.get("content") {
        None => return Ok(parts),
        Some(text @ Json::Text(_)) => std::slice::from_ref(text),
        Some(Json::List(list)) => list,
        Some(_) => {
            return path.invalid("has a `content` that is neither a text nor a list of parts");
        }
    };
    for (i, part) in list.iter().enumerate() {
        let path = path.nested("content", i);
        match (part, part.text_of(&["type"])) {
            (Json::Text(text), _) => add_text(&mut parts, text, None),
            (_, Some("text" | "input_text" | "output_text")) => match part.text_of(&["text"]) {
                Some(text) => add_text(&mut parts, text, signature_of(part)),
                None => return path.invalid("has no `text`"),
            },
            // Why it made no image the last time.
            (_, Some("refusal")) => {
                add_text(&mut parts, part.text_of(&["refusal"]).unwrap_or_default(), None);
            }
            (_, Some("image_url" | "input_image" | "file" | "input_file")) => {
                parts.push(image_part(part, &path)?);
            }
            (_, Some(kind)) => {
                let kind: String = kind.chars().take(40).collect();
                return path.unsupported(&format!(
                    "is of type `{kind}`, which is not translated; text, image_url and file are"
                ));
            }
            (_, None) => return path.invalid("has no `type`; it is text or image_url"),
        }
    }
    Ok(parts)
}

fn add_text<'a>(parts: &mut Vec<Json<'a>>, text: &'a str, mut signature: Option<&'a str>) {
    for segment in inline_image::segments(text) {
        let mut part = match segment {
            Segment::Text(text) => object([("text", text.into())]),
            Segment::Image(image) => image.into_part(None),
        };
        sign(&mut part, signature.take());
        parts.push(part);
    }
}

/// Translates `{"image_url": {"url": "data:…"}}`, or the address without the object around it, or
/// `{"file": {"file_id": "files/…"}}`.
fn image_part<'a>(part: &'a Json<'_>, path: &ParamPath) -> Result<Json<'a>, OpenAiError> {
    const NAMES: [&str; 5] = ["url", "file_data", "file_id", "file_uri", "file_url"];
    const TYPES: [&str; 3] = ["format", "mime_type", "mimeType"];
    let source = part.any(&["image_url", "file"]).unwrap_or(part);
    let Some(url) = source.text().or_else(|| source.text_of(&NAMES)) else {
        return path.invalid("has no `image_url.url` or `file.file_id`");
    };
    let mime = source.text_of(&TYPES).or_else(|| part.text_of(&TYPES));
    match inline_image::part_of(url, mime, signature_of(part), inline_image::from_uri) {
        Ok(part) => Ok(part),
        Err(error @ ImageError::Remote) => path.unsupported(error.message()),
        Err(error) => path.invalid(error.message()),
    }
}
