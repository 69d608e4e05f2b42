//! Translates whole responses.

use bytes::Bytes;
use http::StatusCode;
use tower_gemini_core::verdict::Outcome;

use super::error::{OpenAiError, embedded_error, excerpt, translate_error, unreadable_response};
use super::gemini::{Facts, ImagePart, Part, extra_content, parts_of};
use super::json::{Json, object};
use super::stream::StreamTranslator;

/// Translates the response to a translated request.
///
/// `Display` writes a stable name of the format it translates to: two translators with the same
/// name translate a response to the same bytes, in this version and in later ones, so a store of
/// responses may use it in its keys.
#[derive(Debug, Clone)]
pub struct ResponseTranslator(Format);

#[derive(Debug, Clone)]
enum Format {
    Chat { model: String, include_usage: bool },
    Images { as_url: bool },
}

/// Bytes of a response next to its image.
const FRAME_BYTES: usize = 4096;

impl ResponseTranslator {
    pub(super) fn chat(model: String, include_usage: bool) -> Self {
        Self(Format::Chat { model, include_usage })
    }

    pub(super) fn images(as_url: bool) -> Self {
        Self(Format::Images { as_url })
    }

    /// Translates a whole response. `created` is the time in seconds since 1970.
    ///
    /// A refusal is a chat completion (`content_filter`) and a 400 of the images API, as OpenAI
    /// does it: it was charged, and no client retries a 400. A response that cannot be read was
    /// charged too; it becomes a 424.
    #[must_use]
    pub fn response(&self, status: StatusCode, body: &[u8], created: u64) -> (StatusCode, Bytes) {
        if !status.is_success() {
            return translate_error(status, body);
        }
        let parsed = serde_json::from_slice::<Json<'_>>(body);
        let events = match &parsed {
            Ok(response @ Json::Object(_)) => std::slice::from_ref(response),
            // Some servers respond with the events of a stream.
            Ok(Json::List(events)) if !events.is_empty() => events.as_slice(),
            _ => return unreadable_response("the upstream's response is not Gemini's JSON"),
        };
        if let Some(error) = events.iter().find_map(|event| event.get("error")) {
            return embedded_error(error);
        }
        let (mut facts, mut text, mut signature) = (Facts::default(), String::new(), None);
        let mut image: Option<ImagePart<'_>> = None;
        for event in events {
            facts.add(event);
            for part in parts_of(event) {
                match part {
                    Part::Text { text: more, signature: signed } => {
                        text.push_str(more);
                        signature = signature.or(signed);
                    }
                    Part::Image(part) if part.replaces(image.as_ref().map(|i| i.is_thought)) => {
                        image = Some(part);
                    }
                    Part::Image(_) => {}
                }
            }
        }
        let translated = match (&self.0, &image) {
            (Format::Chat { model, .. }, image) => {
                completion(&facts, &text, signature, image.as_ref(), model, created)
            }
            (Format::Images { as_url }, Some(image)) => list(&facts, image, *as_url, created),
            (Format::Images { .. }, None) => return no_image(&facts, &text).into_parts(),
        };
        (StatusCode::OK, Bytes::from(translated.to_bytes(body.len() + FRAME_BYTES)))
    }

    /// Returns a translator of a streamed response.
    #[must_use]
    pub fn stream(&self, created: u64) -> StreamTranslator {
        match &self.0 {
            Format::Chat { model, include_usage } => {
                StreamTranslator::new(model.clone(), created, *include_usage)
            }
            // The images API rejects `stream`.
            Format::Images { .. } => StreamTranslator::new(String::new(), created, false),
        }
    }
}

impl std::fmt::Display for ResponseTranslator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Format::Chat { model, include_usage } => {
                write!(f, "openai-chat/1 usage={include_usage} model={model}")
            }
            Format::Images { as_url } => write!(f, "openai-images/1 url={as_url}"),
        }
    }
}

fn completion<'a>(
    facts: &'a Facts,
    text: &'a str,
    signature: Option<&'a str>,
    image: Option<&'a ImagePart<'_>>,
    model: &'a str,
    created: u64,
) -> Json<'a> {
    let refusal = if image.is_some() { None } else { facts.refusal() };
    let message = [
        ("role", "assistant".into()),
        ("content", Some(text).filter(|text| !text.is_empty()).into()),
        ("refusal", refusal.into()),
    ];
    let images = image.map(|image| ("images", Json::List(vec![image.entry()])));
    let extra = signature.map(|signature| ("extra_content", extra_content(signature)));
    let choice = object([
        ("index", 0.into()),
        ("message", object(message.into_iter().chain(images).chain(extra))),
        ("logprobs", Json::Null),
        ("finish_reason", facts.finish_reason().into()),
        ("native_finish_reason", facts.native_reason().into()),
    ]);
    let choices = Json::List(vec![choice]);
    facts.completion("chat.completion", model, created, choices, facts.chat_usage())
}

fn list<'a>(facts: &Facts, image: &'a ImagePart<'_>, as_url: bool, created: u64) -> Json<'a> {
    let entry = if as_url || image.address.is_some() {
        ("url", image.uri())
    } else {
        ("b64_json", (*image.data).into())
    };
    let list = [("created", created.into()), ("data", Json::List(vec![object([entry])]))];
    // The format that came, not the requested one: the model chooses it.
    let format = image.mime.strip_prefix("image/");
    let format = format.filter(|format| matches!(*format, "png" | "jpeg" | "webp" | "gif"));
    let format = format.map(|format| ("output_format", format.into()));
    let usage = facts.images_usage().map(|usage| ("usage", usage));
    object(list.into_iter().chain(format).chain(usage))
}

fn no_image(facts: &Facts, text: &str) -> OpenAiError {
    let (what, code) = match facts.outcome() {
        Outcome::PromptBlocked => ("the prompt was refused", "content_policy_violation"),
        Outcome::ContentBlocked => ("the image was refused", "moderation_blocked"),
        Outcome::OutOfTokens => ("the output tokens ran out before an image", "out_of_tokens"),
        Outcome::MissingThoughtSignature => {
            ("the conversation lacks a thought signature", "missing_thought_signature")
        }
        _ => ("the model made no image", "no_image"),
    };
    let why = facts.refusal().or_else(|| (!text.trim().is_empty()).then(|| excerpt(text)));
    let reason = facts.native_reason().unwrap_or("no reason given");
    let message = match why {
        Some(why) if why.contains(reason) => format!("{what}: {why}"),
        Some(why) => format!("{what} ({reason}): {why}"),
        None => format!("{what} ({reason})"),
    };
    OpenAiError::no_image(format!("{message}. An unchanged retry is charged again."), code)
}
