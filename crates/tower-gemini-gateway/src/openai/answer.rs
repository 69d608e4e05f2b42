//! What an answer of Gemini's says, whole or event by event.

use std::borrow::Cow;

use tower_gemini::classify::classify_answer;
use tower_gemini::redact::redact;
use tower_gemini::scan::Answer;
use tower_gemini::verdict::Outcome;

use super::blob::{mime_of, sniffed, standard};
use super::error::image_call;
use super::json::{Json, object};

/// A part of an answer that a caller is told of.
#[derive(Debug)]
pub(super) enum Part<'a> {
    /// Words that are no thoughts, and the signature that came with them.
    Text {
        text: &'a str,
        signature: Option<&'a str>,
    },
    Image(Drawn<'a>),
}

/// An image.
#[derive(Debug)]
pub(super) struct Drawn<'a> {
    pub(super) mime: Cow<'a, str>,
    /// Base64 of the standard alphabet: Python's decoder passes over the symbols of the other in
    /// silence.
    pub(super) data: Cow<'a, str>,
    /// An address in place of data.
    pub(super) address: Option<&'a str>,
    pub(super) signature: Option<&'a str>,
    /// Marked as a draft. Alone, it is the image all the same.
    pub(super) is_thought: bool,
}

impl<'a> Drawn<'a> {
    pub(super) fn uri(&self) -> Json<'_> {
        match self.address {
            Some(address) => address.into(),
            None => Json::DataUri(Cow::Borrowed(&*self.mime), Cow::Borrowed(&*self.data)),
        }
    }

    /// An entry of `message.images` or `delta.images`. Its signature is sent back with it, and
    /// makes the next edit possible.
    pub(super) fn entry(&self) -> Json<'_> {
        let mut entry = vec![
            (Cow::Borrowed("type"), "image_url".into()),
            (Cow::Borrowed("image_url"), object([("url", self.uri())])),
            (Cow::Borrowed("index"), 0.into()),
        ];
        if let Some(signature) = self.signature {
            entry.push((Cow::Borrowed("thought_signature"), signature.into()));
        }
        Json::Object(entry)
    }

    /// Whether this one is the image rather than `before`: the last that is not marked, else the
    /// last.
    pub(super) fn replaces(&self, before: Option<&Self>) -> bool {
        before.is_none_or(|before| before.is_thought || !self.is_thought)
    }

    fn of(part: &'a Json<'_>, is_thought: bool) -> Option<Self> {
        let signature = part
            .text_of(&["thoughtSignature", "thought_signature"])
            .filter(|signature| !signature.is_empty());
        if let Some(inline) = part.any(&["inlineData", "inline_data"]) {
            let data = inline.text_of(&["data"]).filter(|data| !data.is_empty())?;
            // What is no base64 is the client's to fail on: it was paid for as it is.
            let data = standard(data).unwrap_or(Cow::Borrowed(data));
            let mime = inline.text_of(&["mimeType", "mime_type"]).and_then(mime_of);
            let mime = mime.unwrap_or_else(|| Cow::Borrowed(sniffed(&data).unwrap_or("image/png")));
            return mime.starts_with("image/").then_some(Self {
                mime,
                data,
                address: None,
                signature,
                is_thought,
            });
        }
        let file = part.any(&["fileData", "file_data"])?;
        let address =
            file.text_of(&["fileUri", "file_uri"]).filter(|address| !address.is_empty())?;
        let mime = file.text_of(&["mimeType", "mime_type"]).and_then(mime_of)?;
        let data = Cow::Borrowed("");
        mime.starts_with("image/").then_some(Self {
            mime,
            data,
            address: Some(address),
            signature,
            is_thought,
        })
    }
}

/// The parts of an answer, or of one event of it. Only the first candidate counts.
pub(super) fn parts_of<'a>(answer: &'a Json<'_>) -> impl Iterator<Item = Part<'a>> {
    let candidate = answer.get("candidates").and_then(Json::list).and_then(<[_]>::first);
    let parts = candidate
        .and_then(|candidate| candidate.at(&["content", "parts"])?.list())
        .unwrap_or_default();
    parts.iter().filter_map(|part| {
        let is_thought = part.get("thought").is_some_and(Json::is_true);
        if let Some(drawn) = Drawn::of(part, is_thought) {
            return Some(Part::Image(drawn));
        }
        let text = part.text_of(&["text"]).filter(|_| !is_thought)?;
        let signature = part
            .text_of(&["thoughtSignature", "thought_signature"])
            .filter(|signature| !signature.is_empty());
        Some(Part::Text { text, signature })
    })
}

/// What is said beside the parts. Of a stream the last word counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    finish: Option<String>,
    finish_message: Option<String>,
    block: Option<String>,
    block_message: Option<String>,
    usage: Option<Usage>,
    id: Option<String>,
    model: Option<String>,
}

/// Token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    prompt: u64,
    candidates: u64,
    thoughts: u64,
    total: u64,
    cached: u64,
    prompt_text: u64,
    prompt_image: u64,
    output_text: u64,
    output_image: u64,
}

impl Facts {
    pub(super) fn add(&mut self, answer: &Json<'_>) {
        let word = |value: &Json<'_>, names: &[&str]| match value.any(names) {
            Some(Json::Text(text)) if !text.is_empty() => Some(text.to_string()),
            // Old SDKs ask for enums as numbers.
            Some(Json::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let candidate = answer.get("candidates").and_then(Json::list).and_then(<[_]>::first);
        let feedback = answer.any(&["promptFeedback", "prompt_feedback"]);
        for (fact, said) in [
            (
                &mut self.finish,
                candidate.and_then(|candidate| word(candidate, &["finishReason", "finish_reason"])),
            ),
            (
                &mut self.finish_message,
                candidate
                    .and_then(|candidate| word(candidate, &["finishMessage", "finish_message"])),
            ),
            (
                &mut self.block,
                feedback.and_then(|feedback| word(feedback, &["blockReason", "block_reason"])),
            ),
            (
                &mut self.block_message,
                feedback.and_then(|feedback| {
                    word(feedback, &["blockReasonMessage", "block_reason_message"])
                }),
            ),
            (&mut self.id, word(answer, &["responseId", "response_id"])),
            (&mut self.model, word(answer, &["modelVersion", "model_version"])),
        ] {
            if said.is_some() {
                *fact = said;
            }
        }
        if let Some(usage) = answer.any(&["usageMetadata", "usage_metadata"]) {
            self.usage = Some(Usage::of(usage));
        }
    }

    /// Whether the answer has said that it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.finish.is_some() || self.block.is_some()
    }

    pub(super) fn id(&self, created: u64) -> String {
        self.id.clone().unwrap_or_else(|| format!("chatcmpl-{created}"))
    }

    pub(super) fn model<'a>(&'a self, asked: &'a str) -> &'a str {
        self.model.as_deref().unwrap_or(asked)
    }

    /// What it means that there is no image, by the same rules that every layer judges by.
    pub(super) fn outcome(&self) -> Outcome {
        let mut answer = Answer::default();
        answer.has_candidates = true;
        answer.said_end = true;
        answer.finish_reason.clone_from(&self.finish);
        answer.finish_message.clone_from(&self.finish_message);
        answer.block_reason.clone_from(&self.block);
        answer.block_reason_message.clone_from(&self.block_message);
        classify_answer(&image_call(), &answer).outcome()
    }

    /// OpenAI's word for how it ended.
    pub(super) fn finish_reason(&self) -> &'static str {
        match self.outcome() {
            Outcome::OutOfTokens => "length",
            Outcome::ContentBlocked | Outcome::PromptBlocked => "content_filter",
            _ => "stop",
        }
    }

    /// Gemini's word for it, as spelled.
    pub(super) fn native_reason(&self) -> Option<&str> {
        self.block.as_deref().or(self.finish.as_deref())
    }

    /// Why there is no image, in the service's words or by its reason. `None` where the model's own
    /// text says all there is.
    pub(super) fn refusal(&self) -> Option<String> {
        let said = self.block_message.as_deref().or(self.finish_message.as_deref());
        if let Some(said) = said {
            return Some(redact(said).into_owned());
        }
        let reason = self.native_reason()?;
        match self.outcome() {
            Outcome::PromptBlocked => Some(format!("the prompt was blocked ({reason})")),
            Outcome::ContentBlocked => Some(format!("the answer was blocked ({reason})")),
            Outcome::OutOfTokens => Some(format!("the output tokens ran out ({reason})")),
            Outcome::NoImage if reason == "STOP" => None,
            _ => Some(format!("no image was made ({reason})")),
        }
    }

    /// `usage` of a chat.
    pub(super) fn chat_usage(&self) -> Option<Json<'static>> {
        let usage = self.usage?;
        let completion = usage.completion();
        Some(object([
            ("prompt_tokens", usage.prompt.into()),
            ("completion_tokens", completion.into()),
            ("total_tokens", usage.total(completion).into()),
            (
                "prompt_tokens_details",
                object([
                    ("cached_tokens", usage.cached.into()),
                    ("text_tokens", usage.prompt_text.into()),
                    ("image_tokens", usage.prompt_image.into()),
                ]),
            ),
            (
                "completion_tokens_details",
                object([
                    ("reasoning_tokens", usage.thoughts.into()),
                    ("image_tokens", usage.output_image.into()),
                ]),
            ),
        ]))
    }

    /// `usage` of the images API.
    pub(super) fn images_usage(&self) -> Option<Json<'static>> {
        let usage = self.usage?;
        let output = usage.completion();
        Some(object([
            ("input_tokens", usage.prompt.into()),
            (
                "input_tokens_details",
                object([
                    ("text_tokens", usage.prompt_text.into()),
                    ("image_tokens", usage.prompt_image.into()),
                ]),
            ),
            ("output_tokens", output.into()),
            (
                "output_tokens_details",
                object([
                    ("text_tokens", usage.output_text.saturating_add(usage.thoughts).into()),
                    ("image_tokens", usage.output_image.into()),
                ]),
            ),
            ("total_tokens", usage.total(output).into()),
        ]))
    }
}

impl Usage {
    fn of(usage: &Json<'_>) -> Self {
        let count = |names: &[&str]| usage.any(names).and_then(Json::count).unwrap_or(0);
        let of_modality = |names: &[&str], modality: &str| {
            let details = usage.any(names).and_then(Json::list).unwrap_or_default();
            let is_it = |detail: &&Json<'_>| {
                detail
                    .text_of(&["modality"])
                    .is_some_and(|name| name.eq_ignore_ascii_case(modality))
            };
            let tokens = |detail: &Json<'_>| {
                detail.any(&["tokenCount", "token_count"]).and_then(Json::count).unwrap_or(0)
            };
            details.iter().filter(is_it).map(tokens).fold(0, u64::saturating_add)
        };
        let input = ["promptTokensDetails", "prompt_tokens_details"];
        let output = ["candidatesTokensDetails", "candidates_tokens_details"];
        Self {
            prompt: count(&["promptTokenCount", "prompt_token_count"]),
            candidates: count(&["candidatesTokenCount", "candidates_token_count"]),
            thoughts: count(&["thoughtsTokenCount", "thoughts_token_count"]),
            total: count(&["totalTokenCount", "total_token_count"]),
            cached: count(&["cachedContentTokenCount", "cached_content_token_count"]),
            prompt_text: of_modality(&input, "TEXT"),
            prompt_image: of_modality(&input, "IMAGE"),
            output_text: of_modality(&output, "TEXT"),
            output_image: of_modality(&output, "IMAGE"),
        }
    }

    /// What was made, thoughts included. Refusals repeat the thoughts as candidates, and count them
    /// once in the total.
    fn completion(&self) -> u64 {
        let is_repeated = self.candidates == self.thoughts
            && self.prompt.saturating_add(self.thoughts) == self.total;
        if is_repeated { self.thoughts } else { self.candidates.saturating_add(self.thoughts) }
    }

    fn total(&self, completion: u64) -> u64 {
        if self.total > 0 { self.total } else { self.prompt.saturating_add(completion) }
    }
}
