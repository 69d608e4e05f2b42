//! Reading a whole small 2xx body into an [`Answer`], tolerantly.
//!
//! It parses everything and decodes nothing: bodies with an image in them belong to the scanner,
//! which reads them as they pass.

use bytes::Bytes;
use serde_json::Value;

use super::lenient;
use crate::scan::{Answer, TokenCount, Usage};

/// How much of the answer's own text is kept, and of an error in it (the bounds that [`Answer`]
/// documents).
const MAX_TEXT: usize = 8 * 1024;
const MAX_ERROR: usize = 64 * 1024;

/// How often text that is no JSON is searched for the start of some.
const MAX_PROSE: usize = 64;

/// Reads an answer: JSON, an array of chunks, server-sent events, JSON lines, and each of them with
/// an error at its end.
pub(super) fn read(body: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(body);
    let mut reader = Reader { answer: Answer::default(), ended: false };
    reader.read(&text);
    let mut answer = reader.answer;
    answer.said_end =
        reader.ended || answer.finish_reason.is_some() || answer.block_reason.is_some();
    answer
}

struct Reader {
    answer: Answer,
    ended: bool,
}

impl Reader {
    fn read(&mut self, text: &str) {
        let whole = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        if let Ok(value) = serde_json::from_str::<Value>(whole) {
            self.ended = true;
            self.root(&value);
            return;
        }
        let mut rest = whole;
        let mut prose = 0;
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ',' | ']'));
            if rest.is_empty() {
                break;
            }
            if let Some(data) = rest.strip_prefix("data:") {
                rest = data.trim_start_matches(' ');
                if let Some(after) = rest.strip_prefix("[DONE]") {
                    self.ended = true;
                    rest = after;
                }
                continue;
            }
            let is_field =
                ["event:", "id:", "retry:", ":"].iter().any(|field| rest.starts_with(field));
            if is_field {
                rest = next_line(rest);
                continue;
            }
            if rest.starts_with(['{', '[']) {
                let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
                if let Some(Ok(value)) = values.next() {
                    let end = values.byte_offset().max(1);
                    self.root(&value);
                    rest = rest.get(end..).unwrap_or_default();
                    continue;
                }
                // The array of a stream that was cut or ended by something else: its elements one
                // by one.
                if let Some(inside) =
                    rest.strip_prefix('[').filter(|inside| inside.trim_start().starts_with('{'))
                {
                    rest = inside;
                    continue;
                }
                rest = self.broken(rest);
                continue;
            }
            // Prose: a prefix, or a page. The JSON in it counts.
            prose += 1;
            match rest.find('{') {
                Some(at) if prose <= MAX_PROSE && !rest.starts_with('<') => {
                    rest = rest.get(at..).unwrap_or_default()
                }
                _ => break,
            }
        }
    }

    /// JSON that does not parse: cut off, of another language, or with something else in it.
    fn broken<'t>(&mut self, text: &'t str) -> &'t str {
        let (repaired, taken) = lenient::repair(text);
        let Ok(value) = serde_json::from_str::<Value>(&repaired) else { return next_line(text) };
        // What the repair closed at the very end was not closed by the server: the body was cut.
        let is_cut = taken >= text.trim_end().len() && !text.trim_end().ends_with(['}', ']']);
        let before = (self.answer.finish_reason.clone(), self.ended);
        self.root(&value);
        if is_cut
            && before.0.is_none()
            && !self.answer.finish_reason.as_deref().is_some_and(|reason| text.contains(reason))
        {
            self.ended = before.1;
        }
        if taken == 0 { next_line(text) } else { text.get(taken..).unwrap_or_default() }
    }

    fn root(&mut self, value: &Value) {
        match value {
            Value::Array(chunks) => chunks.iter().for_each(|chunk| self.root(chunk)),
            Value::Object(_) => self.chunk(value, 0),
            // A JSON string that holds an answer.
            Value::String(text) if text.trim_start().starts_with(['{', '[']) => {
                if let Ok(inner) = serde_json::from_str::<Value>(text) {
                    self.chunk(&inner, 1);
                }
            }
            _ => {}
        }
    }

    fn chunk(&mut self, chunk: &Value, depth: u8) {
        if depth > 3 {
            return;
        }
        if let Some(error) =
            chunk.get("error").filter(|error| !error.is_null() && *error != &Value::Bool(false))
        {
            let is_empty = matches!(error, Value::String(text) if text.is_empty())
                || matches!(error, Value::Object(map) if map.is_empty());
            if !is_empty {
                self.error(chunk);
            }
        }
        let answer = &mut self.answer;
        set(&mut answer.model_version, text_in(chunk, &["modelVersion", "model_version", "model"]));
        set(&mut answer.response_id, text_in(chunk, &["responseId", "response_id", "id"]));
        if let Some(usage) = member(chunk, &["usageMetadata", "usage_metadata", "usage"])
            .filter(|usage| usage.is_object())
        {
            answer.usage = Some(read_usage(usage));
        }
        if let Some(feedback) = member(chunk, &["promptFeedback", "prompt_feedback"]) {
            set(&mut answer.block_reason, word_in(feedback, &["blockReason", "block_reason"]));
            set(
                &mut answer.block_reason_message,
                text_in(feedback, &["blockReasonMessage", "block_reason_message"]),
            );
        }
        for (names, read) in [
            (&["candidates", "choices"][..], Self::candidate as fn(&mut Self, &Value)),
            (&["data", "predictions", "generatedImages", "generated_images"][..], Self::prediction),
            (&["outputs", "output", "steps"][..], Self::output),
        ] {
            for name in names {
                if let Some(Value::Array(items)) = chunk.get(name) {
                    self.answer.has_candidates = true;
                    items.iter().for_each(|item| read(self, item));
                }
            }
        }
        // Events of Interactions: one output, or the next piece of it.
        for name in ["delta", "step"] {
            if let Some(output) = chunk.get(name).filter(|output| output.is_object()) {
                self.answer.has_candidates = true;
                self.output(output);
            }
        }
        if chunk.get("finishReason").is_some() && chunk.get("candidates").is_none() {
            self.answer.has_candidates = true;
            self.candidate(chunk);
        }
        // Streams of the images API and of Interactions.
        if let Some(kind) = text_in(chunk, &["type", "event_type"]) {
            if chunk.get("b64_json").is_some() {
                self.answer.has_candidates = true;
                self.prediction(chunk);
            }
            if kind.ends_with("completed") || kind == "interaction.complete" {
                self.ended = true;
            }
        }
        // Interactions: `status: "failed"` with `errors[].code`.
        let codes = chunk.get("errors").and_then(Value::as_array);
        if let Some(code) =
            codes.and_then(|errors| errors.iter().find_map(|error| word_in(error, &["code"])))
        {
            self.answer.has_candidates = true;
            self.answer.finish_reason = Some(code);
            set(
                &mut self.answer.finish_message,
                codes.and_then(|errors| {
                    errors.iter().find_map(|error| text_in(error, &["message"]))
                }),
            );
        } else if self.answer.has_candidates && self.answer.finish_reason.is_none() {
            self.answer.finish_reason =
                text_in(chunk, &["status"]).filter(|status| status != "in_progress");
        }
        // Cloud Code and gateways wrap the whole answer.
        for name in ["response", "data", "result", "interaction"] {
            if let Some(inner) = chunk.get(name).filter(|inner| inner.is_object()) {
                self.chunk(inner, depth + 1);
            }
        }
    }

    fn error(&mut self, chunk: &Value) {
        let mut raw = chunk.to_string().into_bytes();
        raw.truncate(MAX_ERROR);
        self.answer.error = Some(Bytes::from(raw));
    }

    fn candidate(&mut self, candidate: &Value) {
        let answer = &mut self.answer;
        // Gateways that translate the reason keep Google's own beside it (OpenRouter; LiteLLM
        // within its own member).
        let own = candidate
            .get("provider_specific_fields")
            .and_then(|fields| word_in(fields, &["native_finish_reason"]));
        let native = own.or_else(|| word_in(candidate, &["native_finish_reason"]));
        if let Some(reason) =
            native.or_else(|| word_in(candidate, &["finishReason", "finish_reason"]))
        {
            answer.finish_reason = Some(reason);
        }
        set(&mut answer.finish_message, text_in(candidate, &["finishMessage", "finish_message"]));
        if candidate.get("error").is_some_and(Value::is_object) {
            self.error(candidate);
        }
        if let Some(content) = candidate.get("content") {
            if let Some(Value::Array(parts)) = content.get("parts") {
                parts.iter().for_each(|part| self.part(part));
            }
            self.content(content);
        }
        for name in ["message", "delta"] {
            if let Some(message) = candidate.get(name) {
                self.message(message);
            }
        }
    }

    fn part(&mut self, part: &Value) {
        let is_thought = part.get("thought").and_then(Value::as_bool).unwrap_or(false);
        if let Some(text) = part.get("text").and_then(Value::as_str).filter(|_| !is_thought) {
            self.say(text);
        }
        if let Some(data) = member(part, &["inlineData", "inline_data"]) {
            let mime = text_in(data, &["mimeType", "mime_type"]).unwrap_or_default();
            let has_data =
                data.get("data").and_then(Value::as_str).is_some_and(|data| !data.is_empty());
            if has_data && (mime.is_empty() || mime.starts_with("image/")) {
                self.image(is_thought);
            }
        }
        if let Some(file) = member(part, &["fileData", "file_data"]) {
            let mime = text_in(file, &["mimeType", "mime_type"]).unwrap_or_default();
            let is_image = mime.is_empty() || mime.starts_with("image/");
            if let Some(uri) = text_in(file, &["fileUri", "file_uri"]).filter(|_| is_image) {
                self.answer.image_urls.push(uri);
            }
        }
    }

    fn message(&mut self, message: &Value) {
        if let Some(content) = message.get("content") {
            self.content(content);
        }
        if let Some(refusal) = text_in(message, &["refusal"]) {
            self.say(&refusal);
        }
        if let Some(Value::Array(images)) = message.get("images") {
            images.iter().for_each(|image| self.url_of(image));
        }
    }

    /// OpenAI-style content: a string (with a picture in Markdown, from some proxies), or a list of
    /// typed parts.
    fn content(&mut self, content: &Value) {
        match content {
            Value::String(text) => {
                if let Some((_, after)) = text.split_once("](data:image/") {
                    let has_data = after
                        .split_once("base64,")
                        .is_some_and(|(_, data)| !data.trim_start().starts_with(')'));
                    if has_data {
                        self.image(false);
                    }
                } else if let Some((_, url)) =
                    text.split_once("![").and_then(|(_, after)| after.split_once("](http"))
                {
                    let url = url.split_once(')').map_or(url, |(url, _)| url);
                    self.answer.image_urls.push(format!("http{url}"));
                }
                self.say(text);
            }
            Value::Array(parts) => {
                for part in parts {
                    if let Some(text) = part.get("text").and_then(Value::as_str) {
                        self.say(text);
                    }
                    self.url_of(part);
                    self.output(part);
                }
            }
            _ => {}
        }
    }

    fn url_of(&mut self, image: &Value) {
        let url = image.get("image_url");
        let url =
            url.and_then(|url| url.as_str().or_else(|| url.get("url").and_then(Value::as_str)));
        match url {
            Some(url) if url.starts_with("data:") => self.image(false),
            Some(url) if !url.is_empty() => self.answer.image_urls.push(url.to_owned()),
            _ => {}
        }
    }

    /// An entry of the images API or of Imagen.
    fn prediction(&mut self, entry: &Value) {
        let image = entry.get("image").unwrap_or(entry);
        if text_in(image, &["b64_json", "bytesBase64Encoded", "imageBytes"]).is_some() {
            self.image(false);
        } else if let Some(url) = text_in(image, &["url", "gcsUri", "gcs_uri"]) {
            self.answer.image_urls.push(url);
        }
        set(
            &mut self.answer.rai_filtered_reason,
            text_in(entry, &["raiFilteredReason", "rai_filtered_reason"]),
        );
    }

    /// An output of Interactions or of the responses API.
    fn output(&mut self, output: &Value) {
        match output.get("type").and_then(Value::as_str) {
            Some("image") => {
                if text_in(output, &["data"]).is_some() {
                    self.image(false);
                } else if let Some(uri) = text_in(output, &["uri", "url"]) {
                    self.answer.image_urls.push(uri);
                }
            }
            Some("image_generation_call") if text_in(output, &["result"]).is_some() => {
                self.image(false)
            }
            Some("text" | "output_text") => {
                if let Some(text) = text_in(output, &["text"]) {
                    self.say(&text);
                }
            }
            _ => {
                if let Some(content @ Value::Array(_)) = output.get("content") {
                    self.content(content);
                }
            }
        }
    }

    fn image(&mut self, is_thought: bool) {
        self.answer.images += 1;
        self.answer.thought_images += u32::from(is_thought);
    }

    fn say(&mut self, text: &str) {
        let room = MAX_TEXT.saturating_sub(self.answer.text.len());
        let mut end = text.len().min(room);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.answer.text.push_str(text.get(..end).unwrap_or_default());
    }
}

fn next_line(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, rest)| rest)
}

fn set(slot: &mut Option<String>, found: Option<String>) {
    if found.is_some() {
        *slot = found;
    }
}

fn member<'v>(value: &'v Value, names: &[&str]) -> Option<&'v Value> {
    names.iter().find_map(|name| value.get(name))
}

fn text_in(value: &Value, names: &[&str]) -> Option<String> {
    member(value, names)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// An enum: its name, or its number as digits.
fn word_in(value: &Value, names: &[&str]) -> Option<String> {
    match member(value, names)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn read_usage(usage: &Value) -> Usage {
    let count = |names: &[&str]| member(usage, names).and_then(Value::as_u64).unwrap_or(0);
    let details = member(usage, &["candidatesTokensDetails", "candidates_tokens_details"])
        .and_then(Value::as_array);
    let mut read = Usage {
        prompt: count(&[
            "promptTokenCount",
            "prompt_token_count",
            "prompt_tokens",
            "input_tokens",
            "total_input_tokens",
        ]),
        candidates: count(&[
            "candidatesTokenCount",
            "candidates_token_count",
            "completion_tokens",
            "output_tokens",
            "total_output_tokens",
        ]),
        thoughts: count(&["thoughtsTokenCount", "thoughts_token_count", "total_thought_tokens"]),
        total: count(&["totalTokenCount", "total_token_count", "total_tokens"]),
        candidates_details: Vec::new(),
    };
    for detail in details.into_iter().flatten() {
        read.candidates_details.push(TokenCount {
            modality: word_in(detail, &["modality"]).unwrap_or_default(),
            tokens: member(detail, &["tokenCount", "token_count"])
                .and_then(Value::as_u64)
                .unwrap_or(0),
        });
    }
    // OpenAI-style: `completion_tokens_details.image_tokens`.
    let image = member(usage, &["completion_tokens_details", "output_tokens_details"])
        .and_then(|details| details.get("image_tokens"))
        .and_then(Value::as_u64);
    if let Some(tokens) = image {
        read.candidates_details.push(TokenCount { modality: "IMAGE".to_owned(), tokens });
    }
    read
}
