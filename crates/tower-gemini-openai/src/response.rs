//! Translates whole responses.

use bytes::Bytes;
use http::StatusCode;
use tower_gemini_core::call::ModelId;
use tower_gemini_core::scan::{Answer, Finals, Framing, Image, Scanner, TextPiece};
use tower_gemini_core::verdict::Outcome;

use super::error::{OpenAiError, embedded_error, excerpt, translate_error, unreadable_response};
use super::gemini::{
    Facts, ImagePart, Part, extra_content, has_images, images_of, is_geminis, parts_of, unwrapped,
};
use super::json::{self, Json, object};
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
    Images { model: String, as_url: bool, has_drafts: bool },
}

/// Bytes of a response next to its image.
const FRAME_BYTES: usize = 4096;

impl ResponseTranslator {
    /// `has_drafts`: whether the model draws drafts that are not marked.
    pub(super) fn chat(model: String, include_usage: bool, has_drafts: bool) -> Self {
        Self(Format::Chat { model, include_usage, has_drafts })
    }

    pub(super) fn images(model: String, as_url: bool, has_drafts: bool) -> Self {
        Self(Format::Images { model, as_url, has_drafts })
    }

    /// Sets the model that drew the response, where it is not the one that was asked for: whether
    /// its images may be drafts depends on it, and it is named where the response names none.
    #[must_use]
    pub fn drawn_by(mut self, model: &ModelId) -> Self {
        let (Format::Chat { model: name, has_drafts, .. }
        | Format::Images { model: name, has_drafts, .. }) = &mut self.0;
        *has_drafts = model.makes_drafts();
        model.as_str().clone_into(name);
        self
    }

    /// Translates a whole response. `created` is the time in seconds since 1970.
    ///
    /// All final images are delivered, whatever shape the response has: those that a text shows
    /// stay in the text of a chat completion. A refusal is a chat completion (`content_filter`) and
    /// a 400 of the images API, as OpenAI does it: it was charged, and no client retries a 400. A
    /// response that cannot be read was charged too; it becomes a 424.
    #[must_use]
    pub fn response(&self, status: StatusCode, body: &[u8], created: u64) -> (StatusCode, Bytes) {
        if !status.is_success() {
            return translate_error(status, body);
        }
        let parsed = json::parse(body, json::MAX_RESPONSE_VALUES);
        let events = match &parsed {
            Ok(response @ Json::Object(_)) => std::slice::from_ref(response),
            // Some servers respond with the events of a stream.
            Ok(Json::List(events)) if !events.is_empty() => events.as_slice(),
            _ => return unreadable_response("the upstream's response is not Gemini's JSON"),
        };
        let events: Vec<_> = events.iter().map(unwrapped).collect();
        if let Some(error) = events.iter().find_map(|event| event.get("error")) {
            return embedded_error(error);
        }
        let (Format::Chat { has_drafts, .. } | Format::Images { has_drafts, .. }) = self.0;
        // Relays respond in other shapes, which core knows.
        let scanned = match events.iter().any(|event| is_geminis(event)) {
            true => None,
            false => scanned(body, has_drafts).filter(has_images),
        };
        let (mut facts, mut text, mut signature) = (Facts::default(), String::new(), None);
        let (mut finals, mut images) = (Finals::new(has_drafts), Vec::new());
        let is_chat = matches!(self.0, Format::Chat { .. });
        let mut addresses = Vec::new();
        for event in events {
            facts.add(event);
            for part in parts_of(event) {
                match part {
                    Part::Text { text: more, signature: signed } => {
                        text.push_str(more);
                        signature = signature.or(signed);
                        for piece in TextPiece::all(more) {
                            match piece {
                                TextPiece::Words => images.extend(finals.text()),
                                TextPiece::Image(image) => {
                                    images.extend(finals.image(Found::InText(image), false));
                                }
                                TextPiece::Address(_) if is_chat => {}
                                TextPiece::Address(address) => {
                                    addresses.push(ImagePart::from_address(address.into()));
                                }
                            }
                        }
                    }
                    Part::Other => images.extend(finals.text()),
                    Part::Image(part) if part.address.is_some() => addresses.push(part),
                    Part::Image(part) => {
                        let is_thought = part.is_thought;
                        images.extend(finals.image(Found::Part(part), is_thought));
                    }
                }
            }
        }
        images.extend(finals.end());
        let images = images.into_iter().filter_map(|found| match found {
            Found::Part(part) => Some(part),
            Found::InText(image) => (!is_chat).then(|| ImagePart::from_scanned(&image)),
        });
        let mut images: Vec<_> = images.chain(addresses).collect();
        if let Some(answer) = &scanned {
            images = images_of(answer);
            text.clone_from(&answer.text);
            facts = Facts::from_answer(answer.clone());
        }
        let translated = match (&self.0, &images[..]) {
            (Format::Chat { model, .. }, images) => {
                completion(&facts, &text, signature, images, model, created)
            }
            (Format::Images { .. }, []) => return no_image(&facts, &text).into_parts(),
            (Format::Images { model, as_url, .. }, images) => {
                list(&facts, images, facts.model(model), *as_url, created)
            }
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
}

/// An image of a response.
enum Found<'a> {
    Part(ImagePart<'a>),
    /// A text shows it: a chat's client finds it there.
    InText(Image),
}

/// What core reads in a response of any shape.
fn scanned(body: &[u8], has_drafts: bool) -> Option<Answer> {
    let mut scanner = Scanner::decoding(Framing::Whole).unmarked_drafts(has_drafts);
    scanner.feed(body).ok()?;
    Some(scanner.finish().unwrap_or_else(|failure| *failure.found))
}

impl std::fmt::Display for ResponseTranslator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Format::Chat { model, include_usage, has_drafts } => {
                write!(f, "openai-chat/4 usage={include_usage} drafts={has_drafts} model={model}")
            }
            Format::Images { model, as_url, has_drafts } => {
                write!(f, "openai-images/4 url={as_url} drafts={has_drafts} model={model}")
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

fn list<'a>(
    facts: &'a Facts,
    images: &'a [ImagePart<'_>],
    model: &'a str,
    as_url: bool,
    created: u64,
) -> Json<'a> {
    let sizes: Vec<_> = images.iter().map(ImagePart::size).collect();
    let size = |size: &Option<String>| size.clone().map(|size| ("size", size.into()));
    let entries = images.iter().zip(&sizes).map(|(image, drawn)| {
        let file = match as_url || image.address.is_some() {
            true => ("url", image.uri()),
            false => ("b64_json", (*image.data).into()),
        };
        object([file].into_iter().chain(size(drawn)))
    });
    let list = [("created", created.into()), ("data", Json::List(entries.collect()))];
    // What came, not what was asked for: the format, which the model chooses, the size, where it is
    // that of every image, and the model.
    let format = images.first().and_then(|image| image.mime.strip_prefix("image/"));
    let format = format.filter(|format| matches!(*format, "png" | "jpeg" | "webp" | "gif"));
    let format = format.map(|format| ("output_format", format.into()));
    let is_shared = sizes.windows(2).all(|pair| pair[0] == pair[1]);
    let size = sizes.first().filter(|_| is_shared).and_then(size);
    let usage = facts.images_usage().map(|usage| ("usage", usage));
    let said = format.into_iter().chain(size).chain([("model", model.into())]);
    object(list.into_iter().chain(said).chain(usage))
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
