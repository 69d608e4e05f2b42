//! What is answered, in OpenAI's words.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use tower_gemini::verdict::Outcome;

use super::answer::{Drawn, Facts, Part, parts_of};
use super::error::{OpenAiError, error_from_google, shown};
use super::json::{Json, Members, object};
use super::stream::StreamTranslator;

/// How the answer to a translated request is told.
#[derive(Debug, Clone)]
pub struct Reply(Shape);

#[derive(Debug, Clone)]
enum Shape {
    Chat { model: String, include_usage: bool },
    Images { as_url: bool },
}

/// Members of an answer beside the image.
const ROOM: usize = 4096;

impl Reply {
    pub(super) fn chat(model: String, include_usage: bool) -> Self {
        Self(Shape::Chat { model, include_usage })
    }

    pub(super) fn images(as_url: bool) -> Self {
        Self(Shape::Images { as_url })
    }

    /// A name of the response format that is the same in later processes and versions: stored
    /// responses are found by it.
    pub(crate) fn format_name(&self) -> String {
        match &self.0 {
            Shape::Chat { model, include_usage } => {
                format!("openai.chat;usage={};model={model}", u8::from(*include_usage))
            }
            Shape::Images { as_url } => format!("openai.images;url={}", u8::from(*as_url)),
        }
    }

    /// A whole answer of Gemini's. `created` is the time in seconds since 1970.
    ///
    /// A refusal is an answer to a chat (`content_filter`), and a 400 to the images API, as OpenAI
    /// has it: nobody sends again for a 400, and it was paid for. An answer that cannot be read was
    /// paid for too, so it is a 424.
    #[must_use]
    pub fn whole(&self, status: StatusCode, body: &[u8], created: u64) -> (StatusCode, Bytes) {
        if !status.is_success() {
            return error_from_google(status, body);
        }
        let parsed = serde_json::from_slice::<Json<'_>>(body);
        let answers = match &parsed {
            Ok(answer @ Json::Object(_)) => std::slice::from_ref(answer),
            // A stream's chunks, where a server answers so.
            Ok(Json::List(answers)) if !answers.is_empty() => answers.as_slice(),
            _ => return unreadable("the upstream's answer is not JSON of an answer"),
        };
        if let Some(error) = answers.iter().find_map(|answer| answer.get("error")) {
            return error_from_google(
                status_of(error),
                &object([("error", error.borrowed())]).to_bytes(ROOM),
            );
        }
        let (mut facts, mut text, mut signature) = (Facts::default(), Vec::new(), None);
        let mut image: Option<Drawn<'_>> = None;
        for answer in answers {
            facts.add(answer);
            for part in parts_of(answer) {
                match part {
                    Part::Text { text: words, signature: signed } => {
                        text.push(words);
                        signature = signature.or(signed);
                    }
                    Part::Image(drawn) if drawn.replaces(image.as_ref()) => image = Some(drawn),
                    Part::Image(_) => {}
                }
            }
        }
        let text = text.concat();
        let room = body.len() + ROOM;
        match &self.0 {
            Shape::Chat { model, .. } => {
                let answer = completion(&facts, &text, signature, image.as_ref(), model, created);
                (StatusCode::OK, Bytes::from(answer.to_bytes(room)))
            }
            Shape::Images { as_url } => match image {
                Some(image) => (
                    StatusCode::OK,
                    Bytes::from(listed(&facts, &image, *as_url, created).to_bytes(room)),
                ),
                None => no_image(&facts, &text).into_parts(),
            },
        }
    }

    /// A streamed answer of Gemini's, event by event.
    #[must_use]
    pub fn streaming(&self, created: u64) -> StreamTranslator {
        match &self.0 {
            Shape::Chat { model, include_usage } => {
                StreamTranslator::new(model.clone(), created, *include_usage)
            }
            // Never asked for as a stream.
            Shape::Images { .. } => StreamTranslator::new(String::new(), created, false),
        }
    }
}

/// The status of an error within a 200.
pub(super) fn status_of(error: &Json<'_>) -> StatusCode {
    let code =
        error.get("code").and_then(Json::number).filter(|code| (400.0..600.0).contains(code));
    code.and_then(|code| StatusCode::from_u16(code as u16).ok()).unwrap_or(StatusCode::BAD_GATEWAY)
}

/// An answer that was paid for and cannot be told: nothing that a client sends again for.
pub(super) fn unreadable(what: &str) -> (StatusCode, Bytes) {
    let error =
        object([("error", object([("message", what.into()), ("status", "ABORTED".into())]))]);
    error_from_google(StatusCode::FAILED_DEPENDENCY, &error.to_bytes(ROOM))
}

fn completion<'a>(
    facts: &'a Facts,
    text: &'a str,
    signature: Option<&'a str>,
    image: Option<&'a Drawn<'_>>,
    model: &'a str,
    created: u64,
) -> Json<'a> {
    let refusal = if image.is_some() { None } else { facts.refusal() };
    let mut message: Members<'a> = vec![
        (Cow::Borrowed("role"), "assistant".into()),
        (Cow::Borrowed("content"), Some(text).filter(|text| !text.is_empty()).into()),
        (Cow::Borrowed("refusal"), refusal.into()),
    ];
    if let Some(image) = image {
        message.push((Cow::Borrowed("images"), Json::List(vec![image.entry()])));
    }
    if let Some(signature) = signature {
        message.push((Cow::Borrowed("extra_content"), signed(signature)));
    }
    let choice = object([
        ("index", 0.into()),
        ("message", Json::Object(message)),
        ("logprobs", Json::Null),
        ("finish_reason", facts.finish_reason().into()),
        ("native_finish_reason", facts.native_reason().into()),
    ]);
    let mut answer: Members<'a> = vec![
        (Cow::Borrowed("id"), facts.id(created).into()),
        (Cow::Borrowed("object"), "chat.completion".into()),
        (Cow::Borrowed("created"), created.into()),
        (Cow::Borrowed("model"), facts.model(model).into()),
        (Cow::Borrowed("choices"), Json::List(vec![choice])),
    ];
    if let Some(usage) = facts.chat_usage() {
        answer.push((Cow::Borrowed("usage"), usage));
    }
    Json::Object(answer)
}

/// Where Google's own OpenAI-style path puts a signature.
pub(super) fn signed(signature: &str) -> Json<'_> {
    object([("google", object([("thought_signature", signature.into())]))])
}

fn listed<'a>(facts: &Facts, image: &'a Drawn<'_>, as_url: bool, created: u64) -> Json<'a> {
    let is_address = image.address.is_some();
    let entry = if as_url || is_address {
        object([("url", image.uri())])
    } else {
        object([("b64_json", (*image.data).into())])
    };
    let mut answer: Members<'a> = vec![
        (Cow::Borrowed("created"), created.into()),
        (Cow::Borrowed("data"), Json::List(vec![entry])),
    ];
    // What it is, not what was asked for: the model chooses.
    if let Some(format @ ("png" | "jpeg" | "webp" | "gif")) = image.mime.strip_prefix("image/") {
        answer.push((Cow::Borrowed("output_format"), format.to_owned().into()));
    }
    if let Some(usage) = facts.images_usage() {
        answer.push((Cow::Borrowed("usage"), usage));
    }
    Json::Object(answer)
}

fn no_image(facts: &Facts, text: &str) -> OpenAiError {
    let (what, code) = match facts.outcome() {
        Outcome::PromptBlocked => ("the prompt was refused", "content_policy_violation"),
        Outcome::ContentBlocked => ("the image was refused", "moderation_blocked"),
        Outcome::OutOfTokens => {
            ("the output tokens ran out before an image was made", "out_of_tokens")
        }
        Outcome::MissingThoughtSignature => {
            ("the conversation lacks a thought signature", "missing_thought_signature")
        }
        _ => ("the model made no image", "no_image"),
    };
    let why = facts.refusal().or_else(|| (!text.trim().is_empty()).then(|| shown(text)));
    let reason = facts.native_reason().unwrap_or("no reason given");
    let message = match why {
        Some(why) if why.contains(reason) => format!("{what}: {why}"),
        Some(why) => format!("{what} ({reason}): {why}"),
        None => format!("{what} ({reason})"),
    };
    OpenAiError::no_image(
        format!("{message}. Sending it again unchanged would be paid for again."),
        code,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // The name was the type's `Debug` text: a renamed field made every stored response a stranger,
    // and paid for its resend again.
    #[test]
    fn a_response_format_has_a_name_that_never_changes() {
        let chat = Reply::chat("gemini-3-pro-image".to_owned(), true);
        assert_eq!(chat.format_name(), "openai.chat;usage=1;model=gemini-3-pro-image");
        assert_eq!(Reply::images(false).format_name(), "openai.images;url=0");
    }
}
