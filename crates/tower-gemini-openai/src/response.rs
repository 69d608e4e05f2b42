//! Translates whole responses.

use bytes::Bytes;
use http::StatusCode;
use tower_gemini_core::scan::{Finals, Framing, Image, Scanner};
use tower_gemini_core::verdict::Outcome;

use super::error::{OpenAiError, embedded_error, excerpt, translate_error, unreadable_response};
use super::gemini::{Facts, ImagePart, Part, extra_content, parts_of};
use super::json::{Json, object};
use super::merge::ResponseMerger;
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
    Chat { model: String, include_usage: bool, has_drafts: bool },
    Images { as_url: bool, has_drafts: bool },
}

/// Bytes of a response next to its image.
const FRAME_BYTES: usize = 4096;

impl ResponseTranslator {
    /// `has_drafts`: whether the model draws drafts that are not marked.
    pub(super) fn chat(model: String, include_usage: bool, has_drafts: bool) -> Self {
        Self(Format::Chat { model, include_usage, has_drafts })
    }

    pub(super) fn images(as_url: bool, has_drafts: bool) -> Self {
        Self(Format::Images { as_url, has_drafts })
    }

    /// Translates a whole response. `created` is the time in seconds since 1970.
    ///
    /// All final images are delivered. A refusal is a chat completion (`content_filter`) and a 400 of the images API, as OpenAI
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
        let (Format::Chat { has_drafts, .. } | Format::Images { has_drafts, .. }) = self.0;
        let (mut finals, mut images) = (Finals::new(has_drafts), Vec::new());
        for event in events {
            facts.add(event);
            for part in parts_of(event) {
                match part {
                    Part::Text { text: more, signature: signed } => {
                        text.push_str(more);
                        signature = signature.or(signed);
                        if !more.trim_ascii().is_empty() {
                            images.extend(finals.text());
                        }
                    }
                    Part::Candidate => images.extend(finals.text()),
                    Part::Image(part) => {
                        let is_thought = part.is_thought;
                        images.extend(finals.image(part, is_thought));
                    }
                }
            }
        }
        images.extend(finals.end());
        let translated = match (&self.0, &images[..]) {
            (Format::Chat { model, .. }, images) => {
                completion(&facts, &text, signature, images, model, created)
            }
            (Format::Images { .. }, []) => {
                // Relays put images into text, or respond in another shape.
                let scanned = scanned(body, has_drafts);
                if scanned.is_empty() {
                    return no_image(&facts, &text).into_parts();
                }
                let found: Vec<_> = scanned.iter().map(ImagePart::from_scanned).collect();
                let listed = self.list(&facts, &found, created);
                return (StatusCode::OK, listed.to_bytes(body.len() + FRAME_BYTES).into());
            }
            (Format::Images { .. }, images) => self.list(&facts, images, created),
        };
        (StatusCode::OK, Bytes::from(translated.to_bytes(body.len() + FRAME_BYTES)))
    }

    /// Returns a translator of a streamed response.
    #[must_use]
    pub fn stream(&self, created: u64) -> StreamTranslator {
        match &self.0 {
            Format::Chat { model, include_usage, has_drafts } => {
                StreamTranslator::new(model.clone(), created, *include_usage, *has_drafts)
            }
            // The images API rejects `stream`.
            Format::Images { .. } => StreamTranslator::new(String::new(), created, false, true),
        }
    }

    /// Returns a merger of the responses to [`count`](crate::GeminiRequest::count) calls, each
    /// translated by this translator and with a success status.
    #[must_use]
    pub fn merger(&self) -> ResponseMerger {
        ResponseMerger::new(matches!(self.0, Format::Chat { .. }))
    }

    fn list<'a>(&self, facts: &Facts, images: &'a [ImagePart<'_>], created: u64) -> Json<'a> {
        let wants_url = matches!(self.0, Format::Images { as_url: true, .. });
        let entries = images.iter().map(|image| {
            object([match wants_url || image.address.is_some() {
                true => ("url", image.uri()),
                false => ("b64_json", (*image.data).into()),
            }])
        });
        let list = [("created", created.into()), ("data", Json::List(entries.collect()))];
        // The format that came, not the requested one: the model chooses it.
        let format = images.first().and_then(|image| image.mime.strip_prefix("image/"));
        let format = format.filter(|format| matches!(*format, "png" | "jpeg" | "webp" | "gif"));
        let format = format.map(|format| ("output_format", format.into()));
        let usage = facts.images_usage().map(|usage| ("usage", usage));
        object(list.into_iter().chain(format).chain(usage))
    }
}

/// The final images of a response in any shape.
fn scanned(body: &[u8], has_drafts: bool) -> Vec<Image> {
    let mut scanner = Scanner::decoding(Framing::Whole).unmarked_drafts(has_drafts);
    let answer = match scanner.feed(body) {
        Ok(()) => scanner.finish().unwrap_or_else(|failure| *failure.found),
        Err(_) => return Vec::new(),
    };
    answer.earlier_images.into_iter().chain(answer.image).collect()
}

impl std::fmt::Display for ResponseTranslator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Format::Chat { model, include_usage, has_drafts } => {
                write!(f, "openai-chat/2 usage={include_usage} drafts={has_drafts} model={model}")
            }
            Format::Images { as_url, has_drafts } => {
                write!(f, "openai-images/2 url={as_url} drafts={has_drafts}")
            }
        }
    }
}

fn completion<'a>(
    facts: &'a Facts,
    text: &'a str,
    signature: Option<&'a str>,
    images: &'a [ImagePart<'_>],
    model: &'a str,
    created: u64,
) -> Json<'a> {
    let refusal = if images.is_empty() { facts.refusal() } else { None };
    let message = [
        ("role", "assistant".into()),
        ("content", Some(text).filter(|text| !text.is_empty()).into()),
        ("refusal", refusal.into()),
    ];
    let entries = images.iter().enumerate().map(|(n, image)| image.entry(n)).collect();
    let images = (!images.is_empty()).then_some(("images", Json::List(entries)));
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
