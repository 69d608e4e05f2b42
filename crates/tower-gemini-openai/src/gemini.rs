//! Reads a response of Gemini's, whole or event by event.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use tower_gemini_core::classify::classify_answer;
use tower_gemini_core::redact::redact;
use tower_gemini_core::scan::{Answer, Image, dimensions_of};
use tower_gemini_core::verdict::Outcome;

use super::error::image_call;
use super::inline_image::{mime_of, sniffed, standard};
use super::json::{Json, object};

/// A part of a response that the client receives: anything but thoughts.
#[derive(Debug)]
pub(super) enum Part<'a> {
    Text {
        text: &'a str,
        signature: Option<&'a str>,
    },
    Image(ImagePart<'a>),
    /// Another candidate begins, or says something: of those, only the images count.
    Other,
}

/// An image of a response.
#[derive(Debug)]
pub(super) struct ImagePart<'a> {
    pub(super) mime: Cow<'a, str>,
    /// Base64 of the standard alphabet: Python's decoder silently skips symbols of the other one.
    pub(super) data: Cow<'a, str>,
    /// An address instead of data.
    pub(super) address: Option<Cow<'a, str>>,
    pub(super) signature: Option<&'a str>,
    /// Whether it is marked as a draft. Of a response with drafts only, the last one counts.
    pub(super) is_thought: bool,
}

impl<'a> ImagePart<'a> {
    pub(super) fn uri(&self) -> Json<'_> {
        match &self.address {
            Some(address) => (**address).into(),
            None => Json::DataUri(Cow::Borrowed(&*self.mime), Cow::Borrowed(&*self.data)),
        }
    }

    /// The size that was drawn, as OpenAI writes it (`1024x1024`): from the image's own header.
    pub(super) fn size(&self) -> Option<String> {
        let (width, height) = dimensions_of(&self.data)?;
        Some(format!("{width}x{height}"))
    }

    /// Makes an entry of `message.images` or `delta.images`. The client sends the signature back
    /// with it, which makes the next edit possible.
    pub(super) fn entry(&self, index: usize) -> Json<'_> {
        let signature = self.signature.map(|signature| ("thought_signature", signature.into()));
        let entry = [
            ("type", "image_url".into()),
            ("image_url", object([("url", self.uri())])),
            ("index", (index as u64).into()),
        ];
        let size = self.size().map(|size| ("size", size.into()));
        object(entry.into_iter().chain(size).chain(signature))
    }

    /// An image that core found.
    pub(super) fn from_scanned(image: &Image) -> Self {
        let data = STANDARD.encode(&image.bytes);
        let mime = mime_of(&image.mime).map_or_else(
            || Cow::Borrowed(sniffed(&data).unwrap_or("image/png")),
            |mime| Cow::Owned(mime.into_owned()),
        );
        let data = Cow::Owned(data);
        Self { mime, data, address: None, signature: None, is_thought: image.is_thought }
    }

    pub(super) fn from_address(address: Cow<'a, str>) -> Self {
        let (mime, data) = (Cow::Borrowed(""), Cow::Borrowed(""));
        Self { mime, data, address: Some(address), signature: None, is_thought: false }
    }

    fn from_part(part: &'a Json<'_>, is_thought: bool) -> Option<Self> {
        let signature = signature_of(part);
        let (mime, data, address);
        if let Some(inline) = part.any(&["inlineData", "inline_data"]) {
            let base64 = inline.text_of(&["data"]).filter(|data| !data.is_empty())?;
            // Some relays' data are a data URI.
            let base64 = match base64.split_once(',') {
                Some((head, data)) if head.starts_with("data:") => data,
                _ => base64,
            };
            // Invalid base64 is left to the client to reject: it was charged as it is.
            data = standard(base64).unwrap_or(Cow::Borrowed(base64));
            address = None;
            let stated = inline.text_of(&["mimeType", "mime_type"]).and_then(mime_of);
            mime = stated.unwrap_or_else(|| Cow::Borrowed(sniffed(&data).unwrap_or("image/png")));
        } else {
            let file = part.any(&["fileData", "file_data"])?;
            let uri = file.text_of(&["fileUri", "file_uri"]).filter(|uri| !uri.is_empty())?;
            (data, address) = (Cow::Borrowed(""), Some(Cow::Borrowed(uri)));
            mime = file.text_of(&["mimeType", "mime_type"]).and_then(mime_of)?;
        }
        let is_image = mime.starts_with("image/");
        is_image.then_some(Self { mime, data, address, signature, is_thought })
    }
}

/// Whether core found an image, or the address of one.
pub(super) fn has_images(answer: &Answer) -> bool {
    answer.image.is_some() || !answer.image_urls.is_empty()
}

/// The final images that core found.
pub(super) fn images_of(answer: &Answer) -> Vec<ImagePart<'_>> {
    let images = answer.earlier_images.iter().chain(&answer.image).map(ImagePart::from_scanned);
    let addresses = answer.image_urls.iter().map(|url| Cow::Borrowed(&**url));
    images.chain(addresses.map(ImagePart::from_address)).collect()
}

fn signature_of<'a>(part: &'a Json<'_>) -> Option<&'a str> {
    let signature = part.text_of(&["thoughtSignature", "thought_signature"]);
    signature.filter(|signature| !signature.is_empty())
}

/// Puts a signature where Google's own OpenAI-style endpoint does.
pub(super) fn extra_content(signature: &str) -> Json<'_> {
    object([("google", object([("thought_signature", signature.into())]))])
}

fn first_candidate<'a, 'j>(response: &'a Json<'j>) -> Option<&'a Json<'j>> {
    response.get("candidates")?.list()?.first()
}

/// Unwraps a response from what Cloud Code, batch results and gateways put around it.
pub(super) fn unwrapped<'a, 'j>(response: &'a Json<'j>) -> &'a Json<'j> {
    let inner = response.any(&["response", "result"]);
    match inner.filter(|inner| matches!(inner, Json::Object(_)) && !is_geminis(response)) {
        Some(inner) => unwrapped(inner),
        None => response,
    }
}

/// Whether a response, or an event of one, is in the shape of Gemini's.
pub(super) fn is_geminis(response: &Json<'_>) -> bool {
    response.any(&["candidates", "promptFeedback", "prompt_feedback"]).is_some()
}

/// Returns the parts of a response, or of one event of it: those of the first candidate, and the
/// images of the others.
pub(super) fn parts_of<'a>(response: &'a Json<'_>) -> impl Iterator<Item = Part<'a>> {
    let candidates = response.get("candidates").and_then(Json::list).unwrap_or_default();
    candidates.iter().enumerate().flat_map(|(n, candidate)| {
        let parts = candidate.at(&["content", "parts"]).and_then(Json::list).unwrap_or_default();
        let parts = parts.iter().filter_map(move |part| {
            let is_thought = part.get("thought").is_some_and(Json::is_true);
            if let Some(image) = ImagePart::from_part(part, is_thought) {
                // The address of a draft is not listed.
                return (image.address.is_none() || !is_thought).then_some(Part::Image(image));
            }
            let text = part.text_of(&["text"]).filter(|_| !is_thought)?;
            Some(match n {
                0 => Part::Text { text, signature: signature_of(part) },
                _ if text.trim_ascii().is_empty() => return None,
                _ => Part::Other,
            })
        });
        (n > 0).then_some(Part::Other).into_iter().chain(parts)
    })
}

/// What a response says next to its parts. In a stream the last event that says it wins.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// As the layers read it.
    answer: Answer,
    usage: Option<Usage>,
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
    /// Of a response in another shape, as core read it.
    pub(super) fn from_answer(answer: Answer) -> Self {
        let usage = answer.usage.as_ref().map(|usage| Usage {
            prompt: usage.prompt,
            candidates: usage.candidates.saturating_sub(usage.thoughts),
            thoughts: usage.thoughts,
            total: usage.total,
            output_image: usage.image_tokens(),
            ..Usage::default()
        });
        Self { answer, usage }
    }

    pub(super) fn add(&mut self, response: &Json<'_>) {
        let candidate = first_candidate(response);
        let feedback = response.any(&["promptFeedback", "prompt_feedback"]);
        let answer = &mut self.answer;
        (answer.has_candidates, answer.said_end) = (true, true);
        for (fact, source, names) in [
            (&mut answer.finish_reason, candidate, ["finishReason", "finish_reason"]),
            (&mut answer.finish_message, candidate, ["finishMessage", "finish_message"]),
            (&mut answer.block_reason, feedback, ["blockReason", "block_reason"]),
            (
                &mut answer.block_reason_message,
                feedback,
                ["blockReasonMessage", "block_reason_message"],
            ),
            (&mut answer.response_id, Some(response), ["responseId", "response_id"]),
            (&mut answer.model_version, Some(response), ["modelVersion", "model_version"]),
        ] {
            // Old SDKs request enums as numbers.
            let said = source.and_then(|source| source.text_or_number_of(&names));
            if let Some(said) = said.filter(|said| !said.is_empty()) {
                *fact = Some(said.into_owned());
            }
        }
        if let Some(usage) = response.any(&["usageMetadata", "usage_metadata"]) {
            self.usage = Some(Usage::from_metadata(usage));
        }
    }

    /// Whether the response said that it is complete.
    pub(super) fn has_ended(&self) -> bool {
        self.native_reason().is_some()
    }

    /// The model that drew it: the one that the response names, else the one that it was sent to.
    pub(super) fn model<'a>(&'a self, sent_to: &'a str) -> &'a str {
        self.answer.model_version.as_deref().unwrap_or(sent_to)
    }

    /// Makes a chat completion, or a chunk of one: `kind` is its `object`.
    pub(super) fn completion<'a>(
        &'a self,
        kind: &'a str,
        requested_model: &'a str,
        created: u64,
        choices: Json<'a>,
        usage: Option<Json<'a>>,
    ) -> Json<'a> {
        let id = self.answer.response_id.clone();
        let model = self.model(requested_model);
        let completion = [
            ("id", id.unwrap_or_else(|| format!("chatcmpl-{created}")).into()),
            ("object", kind.into()),
            ("created", created.into()),
            ("model", model.into()),
            ("choices", choices),
        ];
        object(completion.into_iter().chain(usage.map(|usage| ("usage", usage))))
    }

    /// Classifies a response without an image, by the rules of the layers.
    pub(super) fn outcome(&self) -> Outcome {
        classify_answer(&image_call(), &self.answer).outcome()
    }

    /// Returns OpenAI's `finish_reason`.
    pub(super) fn finish_reason(&self) -> &'static str {
        match self.outcome() {
            Outcome::OutOfTokens => "length",
            Outcome::ContentBlocked | Outcome::PromptBlocked => "content_filter",
            _ => "stop",
        }
    }

    /// Returns Gemini's own reason.
    pub(super) fn native_reason(&self) -> Option<&str> {
        self.answer.block_reason.as_deref().or(self.answer.finish_reason.as_deref())
    }

    /// Says why there is no image: the service's message, or its reason. `None` where the model's
    /// own text is all there is.
    pub(super) fn refusal(&self) -> Option<String> {
        let answer = &self.answer;
        if let Some(message) =
            answer.block_reason_message.as_ref().or(answer.finish_message.as_ref())
        {
            return Some(redact(message).into_owned());
        }
        let reason = self.native_reason()?;
        let what = match self.outcome() {
            Outcome::PromptBlocked => "the prompt was blocked",
            Outcome::ContentBlocked => "the response was blocked",
            Outcome::OutOfTokens => "the output tokens ran out",
            Outcome::NoImage if reason == "STOP" => return None,
            _ => "no image was made",
        };
        Some(format!("{what} ({reason})"))
    }

    /// Returns `usage` of a chat completion.
    pub(super) fn chat_usage(&self) -> Option<Json<'static>> {
        let usage = self.usage?;
        let completion = usage.completion();
        let prompt_details = counts([
            ("cached_tokens", usage.cached),
            ("text_tokens", usage.prompt_text),
            ("image_tokens", usage.prompt_image),
        ]);
        let details = [("reasoning_tokens", usage.thoughts), ("image_tokens", usage.output_image)];
        Some(object([
            ("prompt_tokens", usage.prompt.into()),
            ("completion_tokens", completion.into()),
            ("total_tokens", usage.total(completion).into()),
            ("prompt_tokens_details", prompt_details),
            ("completion_tokens_details", counts(details)),
        ]))
    }

    /// Returns `usage` of the images API.
    pub(super) fn images_usage(&self) -> Option<Json<'static>> {
        let usage = self.usage?;
        let output = usage.completion();
        let details =
            |text: u64, image: u64| counts([("text_tokens", text), ("image_tokens", image)]);
        let output_text = usage.output_text.saturating_add(usage.thoughts);
        Some(object([
            ("input_tokens", usage.prompt.into()),
            ("input_tokens_details", details(usage.prompt_text, usage.prompt_image)),
            ("output_tokens", output.into()),
            ("output_tokens_details", details(output_text, usage.output_image)),
            ("total_tokens", usage.total(output).into()),
        ]))
    }
}

fn counts<const N: usize>(counts: [(&'static str, u64); N]) -> Json<'static> {
    object(counts.map(|(name, count)| (name, count.into())))
}

impl Usage {
    fn from_metadata(usage: &Json<'_>) -> Self {
        let count = |names: [&str; 2]| usage.any(&names).and_then(Json::count).unwrap_or(0);
        let of_modality = |names: [&str; 2], modality: &str| {
            let details = usage.any(&names).and_then(Json::list).unwrap_or_default();
            let has_modality = |detail: &&Json<'_>| {
                detail.text_of(&["modality"]).is_some_and(|m| m.eq_ignore_ascii_case(modality))
            };
            let tokens = |detail: &Json<'_>| {
                detail.any(&["tokenCount", "token_count"]).and_then(Json::count).unwrap_or(0)
            };
            details.iter().filter(has_modality).map(tokens).fold(0, u64::saturating_add)
        };
        let input = ["promptTokensDetails", "prompt_tokens_details"];
        let output = ["candidatesTokensDetails", "candidates_tokens_details"];
        Self {
            prompt: count(["promptTokenCount", "prompt_token_count"]),
            candidates: count(["candidatesTokenCount", "candidates_token_count"]),
            thoughts: count(["thoughtsTokenCount", "thoughts_token_count"]),
            total: count(["totalTokenCount", "total_token_count"]),
            cached: count(["cachedContentTokenCount", "cached_content_token_count"]),
            prompt_text: of_modality(input, "TEXT"),
            prompt_image: of_modality(input, "IMAGE"),
            output_text: of_modality(output, "TEXT"),
            output_image: of_modality(output, "IMAGE"),
        }
    }

    /// Counts the generated tokens, thoughts included. A refusal repeats its thoughts as
    /// candidates and counts them once in the total.
    fn completion(&self) -> u64 {
        let is_repeated = self.candidates == self.thoughts
            && self.prompt.saturating_add(self.thoughts) == self.total;
        if is_repeated { self.thoughts } else { self.candidates.saturating_add(self.thoughts) }
    }

    fn total(&self, completion: u64) -> u64 {
        if self.total > 0 { self.total } else { self.prompt.saturating_add(completion) }
    }
}
