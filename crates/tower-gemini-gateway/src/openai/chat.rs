//! A conversation, in Gemini's words.

use std::borrow::Cow;

use super::blob::{self, Fault, Piece};
use super::config::Asked;
use super::error::OpenAiError;
use super::json::{Json, Members, object};
use super::reply::Reply;
use super::target::Target;
use super::{Translated, translated};

pub(super) fn translate(asked: &Json<'_>, room: usize) -> Result<Translated, OpenAiError> {
    let target = Target::of(asked.get("model"))?;
    let config = Asked::of(asked, &target, false)?;
    let messages = asked.get("messages").and_then(Json::list).unwrap_or_default();
    let (mut contents, mut system) = (Vec::new(), Vec::new());
    for (i, message) in messages.iter().enumerate() {
        let place = Place(format!("messages[{i}]"));
        match message.text_of(&["role"]) {
            Some("system" | "developer") => {
                let parts = user_parts(message, &place)?;
                if parts.iter().any(|part| part.get("text").is_none()) {
                    return Err(place.wrong("is an instruction with an image in it; send the image in a message of the user"));
                }
                system.extend(parts);
            }
            Some("user") => contents.push(turn("user", user_parts(message, &place)?)),
            Some("assistant") => {
                let parts = model_parts(message, &place)?;
                // A turn without words and images says nothing, and Gemini refuses it.
                if !parts.is_empty() {
                    contents.push(turn("model", parts));
                }
            }
            Some("tool" | "function") => {
                return Err(place.unsupported("is the answer of a tool; tools are not translated"));
            }
            _ => {
                return Err(place.wrong(
                    "has no role that is known; it is system, developer, user or assistant",
                ));
            }
        }
    }
    if contents.is_empty() {
        return Err(OpenAiError::of(
            "messages",
            "`messages` holds nothing to answer: it needs a message of the user",
        ));
    }
    let mut members: Members<'_> = vec![(Cow::Borrowed("contents"), Json::List(contents))];
    if !system.is_empty() {
        members.push((Cow::Borrowed("systemInstruction"), object([("parts", Json::List(system))])));
    }
    let stream = asked.get("stream").is_some_and(Json::is_true);
    let include_usage = asked.at(&["stream_options", "include_usage"]).is_some_and(Json::is_true);
    let reply = Reply::chat(target.asked.clone(), include_usage);
    Ok(translated(&target, stream, &config.into_body(members), room, reply))
}

fn turn<'a>(role: &'a str, parts: Vec<Json<'a>>) -> Json<'a> {
    object([("role", role.into()), ("parts", Json::List(parts))])
}

/// Where in the request something stands, for whoever has to find it.
struct Place(String);

impl Place {
    fn under(&self, name: &str, i: usize) -> Self {
        Self(format!("{}.{name}[{i}]", self.0))
    }

    fn wrong(&self, what: &str) -> OpenAiError {
        OpenAiError::of(self.0.clone(), format!("`{}` {what}", self.0))
    }

    fn unsupported(&self, what: &str) -> OpenAiError {
        OpenAiError::unsupported(self.0.clone(), format!("`{}` {what}", self.0))
    }

    fn fault(&self, fault: Fault) -> OpenAiError {
        match fault {
            Fault::Remote => self.unsupported(fault.words()),
            _ => self.wrong(fault.words()),
        }
    }
}

/// Words and images of a message that the model reads.
fn user_parts<'a>(message: &'a Json<'_>, place: &Place) -> Result<Vec<Json<'a>>, OpenAiError> {
    let mut parts = Vec::new();
    each_content(message, place, &mut |part| parts.push(part))?;
    if parts.is_empty() {
        return Err(place.wrong("is empty"));
    }
    Ok(parts)
}

/// What the model said and drew before, with the signatures that it came with.
///
/// Gemini signs the first part that is no thought, and every image. The order of the two is not
/// kept by OpenAI's form; but a text without a signature beside an image with one was not the
/// first.
fn model_parts<'a>(message: &'a Json<'_>, place: &Place) -> Result<Vec<Json<'a>>, OpenAiError> {
    if message
        .get("tool_calls")
        .or_else(|| message.get("function_call"))
        .is_some_and(|calls| *calls != Json::List(Vec::new()))
    {
        return Err(place.unsupported("calls a tool; tools are not translated"));
    }
    let mut parts = Vec::new();
    each_content(message, place, &mut |part| {
        // An empty text holds a signature, or nothing.
        if part.get("text").is_none_or(|text| text.text() != Some(""))
            || part.get("thoughtSignature").is_some()
        {
            parts.push(part);
        }
    })?;
    let mut images = Vec::new();
    let drawn = message.get("images").and_then(Json::list).unwrap_or_default();
    if drawn.len() > MOST_IMAGES {
        return Err(place.wrong(&format!("holds more than {MOST_IMAGES} images")));
    }
    for (i, image) in drawn.iter().enumerate() {
        let part = image_part(image, &place.under("images", i))?;
        // Some relays give the image twice, in `images` and as Markdown: it is sent, and paid for,
        // once.
        match parts.iter().position(|known| {
            inline_data(known).is_some_and(|data| Some(data) == inline_data(&part))
        }) {
            Some(known) => parts[known] = part,
            None => images.push(part),
        }
    }
    if let Some(signature) = signature_of(message) {
        if parts.is_empty() && images.is_empty() {
            parts.push(object([("text", "".into())]));
        }
        // It came with the text, where there is one.
        let is_unsigned = |part: &&mut Json<'_>| part.get("thoughtSignature").is_none();
        let text = parts.iter_mut().filter(|part| part.get("text").is_some()).find(is_unsigned);
        if let Some(part) = text.or_else(|| images.iter_mut().find(is_unsigned)) {
            sign(part, signature);
        }
    }
    let is_signed = |part: &Json<'_>| part.get("thoughtSignature").is_some();
    let images_first = images.first().is_some_and(is_signed) && !parts.iter().any(is_signed);
    if images_first {
        images.append(&mut parts);
        return Ok(images);
    }
    parts.append(&mut images);
    Ok(parts)
}

/// More than a model draws in a turn, and few enough to compare each with all that is there.
const MOST_IMAGES: usize = 64;

fn inline_data<'p>(part: &'p Json<'_>) -> Option<&'p str> {
    part.at(&["inlineData", "data"])?.text()
}

fn sign<'a>(part: &mut Json<'a>, signature: &'a str) {
    if let Json::Object(members) = part {
        members.push((Cow::Borrowed("thoughtSignature"), signature.into()));
    }
}

/// A signature, where we put it or where Google's own OpenAI-style path puts it.
fn signature_of<'a>(value: &'a Json<'_>) -> Option<&'a str> {
    value
        .text_of(&["thought_signature", "thoughtSignature"])
        .or_else(|| value.at(&["extra_content", "google", "thought_signature"])?.text())
        .filter(|signature| !signature.is_empty())
}

/// Hands on each part of a message's content.
fn each_content<'a>(
    message: &'a Json<'_>,
    place: &Place,
    hand: &mut dyn FnMut(Json<'a>),
) -> Result<(), OpenAiError> {
    match message.get("content") {
        None => {}
        Some(Json::Text(text)) => text_parts(text, None, hand),
        Some(Json::List(list)) => {
            for (i, part) in list.iter().enumerate() {
                let place = place.under("content", i);
                match (part, part.text_of(&["type"])) {
                    (Json::Text(text), _) => text_parts(text, None, hand),
                    (_, Some("text" | "input_text" | "output_text")) => {
                        match part.text_of(&["text"]) {
                            Some(text) => text_parts(text, signature_of(part), hand),
                            None => return Err(place.wrong("has no `text`")),
                        }
                    }
                    // Why it drew nothing the last time.
                    (_, Some("refusal")) => {
                        text_parts(part.text_of(&["refusal"]).unwrap_or_default(), None, hand)
                    }
                    (_, Some("image_url" | "input_image")) => hand(image_part(part, &place)?),
                    (_, Some(kind)) => {
                        let kind: String = kind.chars().take(40).collect();
                        return Err(place.unsupported(&format!(
                            "is of type `{kind}`, which is not translated; text and image_url are"
                        )));
                    }
                    (_, None) => return Err(place.wrong("has no `type`; it is text or image_url")),
                }
            }
        }
        Some(_) => {
            return Err(place.wrong("has a `content` that is neither a text nor a list of parts"));
        }
    }
    Ok(())
}

fn text_parts<'a>(text: &'a str, signature: Option<&'a str>, hand: &mut dyn FnMut(Json<'a>)) {
    let mut signature = signature;
    for piece in blob::pieces(text) {
        match piece {
            Piece::Text(text) => {
                let mut part = object([("text", text.into())]);
                if let Some(signature) = signature.take() {
                    sign(&mut part, signature);
                }
                hand(part);
            }
            Piece::Image(blob) => hand(blob.into_part(signature.take())),
        }
    }
}

/// `{"image_url": {"url": "data:…"}}`, or the address without the object around it.
fn image_part<'a>(part: &'a Json<'_>, place: &Place) -> Result<Json<'a>, OpenAiError> {
    let address =
        part.get("image_url").map(|url| url.get("url").unwrap_or(url)).or_else(|| part.get("url"));
    let Some(address) = address.and_then(Json::text) else {
        return Err(place.wrong("has no `image_url.url`"));
    };
    let blob = blob::of_uri(address).map_err(|fault| place.fault(fault))?;
    Ok(blob.into_part(signature_of(part)))
}
