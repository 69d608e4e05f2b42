//! What is answered, in OpenAI's words.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::stream::StreamTranslator;
use super::{OpenAiError, error_from_google};

/// How an answer is told.
#[derive(Debug, Clone)]
pub struct Reply(Shape);

#[derive(Debug, Clone)]
enum Shape {
    Chat { model: String, include_usage: bool },
    Images { by_url: bool },
}

impl Reply {
    pub(super) fn chat(model: String, include_usage: bool) -> Self {
        Self(Shape::Chat { model, include_usage })
    }

    pub(super) fn images(by_url: bool) -> Self {
        Self(Shape::Images { by_url })
    }

    /// A whole answer of Gemini's. `created` is in seconds since 1970.
    #[must_use]
    pub fn whole(&self, status: StatusCode, body: &[u8], created: u64) -> (StatusCode, Bytes) {
        if !status.is_success() {
            return error_from_google(status, body);
        }
        let Ok(answer) = serde_json::from_slice::<Value>(body) else {
            // It was paid for, so it is no error that a client sends again for.
            return error_from_google(
                StatusCode::FAILED_DEPENDENCY,
                b"{\"error\":{\"message\":\"The upstream's answer is not JSON.\",\"status\":\"ABORTED\"}}",
            );
        };
        if answer.get("error").or_else(|| answer.get(0)?.get("error")).is_some() {
            let code = answer.get(0).unwrap_or(&answer)["error"]["code"].as_u64().and_then(|code| u16::try_from(code).ok());
            let status = code.and_then(|code| StatusCode::from_u16(code).ok()).filter(|status| !status.is_success());
            return error_from_google(status.unwrap_or(StatusCode::BAD_GATEWAY), body);
        }
        let seen = Seen::of(&answer);
        match &self.0 {
            Shape::Chat { model, .. } => (StatusCode::OK, Bytes::from(seen.completion(model, created).to_string())),
            Shape::Images { by_url } => seen.images(*by_url, created),
        }
    }

    /// A streamed answer of Gemini's.
    #[must_use]
    pub fn streaming(&self, created: u64) -> StreamTranslator {
        match &self.0 {
            Shape::Chat { model, include_usage } => StreamTranslator::new(model.clone(), created, *include_usage),
            // Images are asked for in one piece.
            Shape::Images { .. } => StreamTranslator::new(String::new(), created, false),
        }
    }
}

/// What matters of an answer, or of all events of a stream so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) text: String,
    /// The last image that is no draft.
    image: Option<Drawn>,
    /// The last that is marked as one: alone, it is the image.
    draft: Option<Drawn>,
    pub(super) finish: Option<String>,
    message: Option<String>,
    usage: Option<Value>,
    pub(super) id: Option<String>,
    model: Option<String>,
}

#[derive(Debug, Clone)]
struct Drawn {
    mime: String,
    data: String,
    signature: Option<String>,
}

impl Seen {
    pub(super) fn of(answer: &Value) -> Self {
        let mut seen = Self::default();
        seen.add(answer);
        seen
    }

    /// Adds an event. Gives the text in it.
    pub(super) fn add(&mut self, answer: &Value) -> String {
        let mut new = String::new();
        let member = |value: &Value, names: [&str; 2]| names.iter().find_map(|name| value.get(name)).cloned();
        let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned));
        let candidate = answer.get("candidates").and_then(|candidates| candidates.get(0));
        let parts = candidate.and_then(|candidate| candidate.get("content")?.get("parts")?.as_array());
        for part in parts.into_iter().flatten() {
            let thought = part.get("thought") == Some(&Value::Bool(true));
            if let Some(text) = part.get("text").and_then(Value::as_str).filter(|_| !thought) {
                new.push_str(text);
            }
            let Some(inline) = member(part, ["inlineData", "inline_data"]) else { continue };
            let mime = text(member(&inline, ["mimeType", "mime_type"])).unwrap_or_else(|| "image/png".to_owned());
            let Some(data) = text(inline.get("data").cloned()).filter(|_| mime.starts_with("image/")) else { continue };
            let signature = text(member(part, ["thoughtSignature", "thought_signature"]));
            let drawn = Drawn { mime, data, signature };
            if thought { self.draft = Some(drawn) } else { self.image = Some(drawn) }
        }
        self.text.push_str(&new);
        if let Some(candidate) = candidate {
            self.finish = text(member(candidate, ["finishReason", "finish_reason"])).or(self.finish.take());
            self.message = text(member(candidate, ["finishMessage", "finish_message"])).or(self.message.take());
        }
        if let Some(feedback) = member(answer, ["promptFeedback", "prompt_feedback"])
            && let Some(reason) = text(member(&feedback, ["blockReason", "block_reason"]))
        {
            self.message = text(member(&feedback, ["blockReasonMessage", "block_reason_message"])).or(self.message.take());
            self.finish = Some(reason);
        }
        self.usage = member(answer, ["usageMetadata", "usage_metadata"]).or(self.usage.take());
        self.id = text(member(answer, ["responseId", "response_id"])).or(self.id.take());
        self.model = text(member(answer, ["modelVersion", "model_version"])).or(self.model.take());
        new
    }

    fn final_image(&self) -> Option<&Drawn> {
        self.image.as_ref().or(self.draft.as_ref())
    }

    pub(super) fn model<'a>(&'a self, asked: &'a str) -> &'a str {
        self.model.as_deref().unwrap_or(asked)
    }

    pub(super) fn chat_id(&self) -> String {
        format!("chatcmpl-{}", self.id.as_deref().unwrap_or("unknown"))
    }

    /// `message.images` or `delta.images`: the final image, or nothing.
    pub(super) fn images_member(&self) -> Option<Value> {
        let drawn = self.final_image()?;
        let mut image = json!({ "type": "image_url", "index": 0, "image_url": { "url": drawn.uri() } });
        if let Some(signature) = &drawn.signature {
            image["thought_signature"] = signature.clone().into();
        }
        Some(json!([image]))
    }

    /// OpenAI's word for how it ended.
    pub(super) fn finish_reason(&self) -> &'static str {
        match self.finish.as_deref() {
            Some("MAX_TOKENS") => "length",
            Some(
                "SAFETY"
                | "RECITATION"
                | "BLOCKLIST"
                | "PROHIBITED_CONTENT"
                | "SPII"
                | "LANGUAGE"
                | "MODEL_ARMOR"
                | "JAILBREAK"
                | "IMAGE_SAFETY"
                | "IMAGE_PROHIBITED_CONTENT"
                | "IMAGE_RECITATION"
                | "IMAGE_OTHER",
            ) => "content_filter",
            // A blocked prompt whose reason is `OTHER` has no candidate, and so no image either.
            Some("OTHER") if self.final_image().is_none() => "content_filter",
            _ => "stop",
        }
    }

    /// Why there is no image, in words. `None` where there is one.
    pub(super) fn refusal(&self) -> Option<String> {
        if self.final_image().is_some() {
            return None;
        }
        match (self.finish.as_deref(), &self.message) {
            (Some(reason), Some(message)) => Some(format!("{reason}: {message}")),
            (Some("STOP") | None, None) => None,
            (Some(reason), None) => Some(reason.to_owned()),
            (None, Some(message)) => Some(message.clone()),
        }
    }

    pub(super) fn usage(&self) -> Value {
        let count = |camel: &str| self.usage.as_ref().and_then(|usage| usage.get(camel)).and_then(Value::as_u64).unwrap_or(0);
        let (prompt, thoughts) = (count("promptTokenCount"), count("thoughtsTokenCount"));
        let completion = count("candidatesTokenCount").saturating_add(thoughts);
        let total = count("totalTokenCount").max(prompt.saturating_add(completion));
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": total,
            "completion_tokens_details": { "reasoning_tokens": thoughts },
        })
    }

    fn completion(&self, asked: &str, created: u64) -> Value {
        let mut message = Map::new();
        message.insert("role".to_owned(), "assistant".into());
        message.insert("content".to_owned(), if self.text.is_empty() { Value::Null } else { self.text.clone().into() });
        message.insert("refusal".to_owned(), self.refusal().into());
        if let Some(images) = self.images_member() {
            message.insert("images".to_owned(), images);
        }
        json!({
            "id": self.chat_id(),
            "object": "chat.completion",
            "created": created,
            "model": self.model(asked),
            "choices": [{
                "index": 0,
                "message": message,
                "logprobs": null,
                "finish_reason": self.finish_reason(),
                "native_finish_reason": self.finish,
            }],
            "usage": self.usage(),
        })
    }

    fn images(&self, by_url: bool, created: u64) -> (StatusCode, Bytes) {
        let Some(drawn) = self.final_image() else {
            // It was paid for, all or part: a 400 is what no client sends again after.
            let blocked = self.finish_reason() == "content_filter";
            let why = self
                .refusal()
                .or_else(|| (!self.text.is_empty()).then(|| self.text.clone()))
                .unwrap_or_else(|| "the model gave no reason".to_owned());
            let message = if blocked { format!("The image was refused: {why}") } else { format!("No image was made: {why}") };
            let error = json!({ "error": {
                "message": message,
                "type": "image_generation_user_error",
                "param": null,
                "code": if blocked { "moderation_blocked" } else { "no_image" },
            }});
            return (StatusCode::BAD_REQUEST, Bytes::from(error.to_string()));
        };
        let usage = self.usage();
        let image = if by_url { json!({ "url": drawn.uri() }) } else { json!({ "b64_json": drawn.data }) };
        let answer = json!({
            "created": created,
            "data": [image],
            "output_format": drawn.mime.strip_prefix("image/").unwrap_or("png"),
            "usage": { "input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"], "total_tokens": usage["total_tokens"] },
        });
        (StatusCode::OK, Bytes::from(answer.to_string()))
    }
}

impl Drawn {
    fn uri(&self) -> String {
        format!("data:{};base64,{}", self.mime, self.data)
    }
}

impl From<OpenAiError> for (StatusCode, Bytes) {
    fn from(error: OpenAiError) -> Self {
        error.into_parts()
    }
}
