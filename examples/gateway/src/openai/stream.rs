//! A stream of Gemini's as one of OpenAI's.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use serde_json::{Value, json};

use super::error_from_google;
use super::reply::Seen;

/// Translates events as they come, however they are cut. Texts pass at once; the image comes at the end, since which one is final is known
/// only then.
#[derive(Debug)]
pub struct StreamTranslator {
    model: String,
    created: u64,
    include_usage: bool,
    /// The line that has not ended yet, in the pieces it came in: joined once, when it is whole.
    line: Vec<Bytes>,
    /// Lines that are no event: Google ends a failing stream with a bare error.
    bare: String,
    seen: Seen,
    begun: bool,
    failed: bool,
}

/// Of a bare error, more than any that was seen.
const LONGEST_BARE: usize = 64 * 1024;

impl StreamTranslator {
    pub(super) fn new(model: String, created: u64, include_usage: bool) -> Self {
        Self {
            model,
            created,
            include_usage,
            line: Vec::new(),
            bare: String::new(),
            seen: Seen::default(),
            begun: false,
            failed: false,
        }
    }

    /// Takes a chunk of Gemini's stream.
    pub fn push(&mut self, chunk: &Bytes) -> Vec<Bytes> {
        let (mut out, mut rest) = (Vec::new(), chunk.clone());
        while let Some(end) = memchr::memchr(b'\n', &rest) {
            self.line.push(rest.split_to(end + 1));
            let line = std::mem::take(&mut self.line);
            self.whole_line(&joined(line), &mut out);
        }
        if !rest.is_empty() {
            self.line.push(rest);
        }
        out
    }

    /// Gemini's stream has ended.
    pub fn finish(&mut self) -> Vec<Bytes> {
        let mut out = Vec::new();
        let line = std::mem::take(&mut self.line);
        self.whole_line(&joined(line), &mut out);
        if !self.bare.trim().is_empty()
            && let Ok(error) = serde_json::from_str::<Value>(&self.bare)
        {
            self.event(&error, &mut out);
        }
        if self.failed {
            return out;
        }
        self.begin(&mut out);
        if let Some(images) = self.seen.images_member() {
            out.push(self.chunk(&json!({ "images": images }), None));
        }
        let mut delta = json!({});
        if let Some(refusal) = self.seen.refusal() {
            delta["refusal"] = refusal.into();
        }
        out.push(self.chunk(&delta, Some(self.seen.finish_reason())));
        if self.include_usage {
            let mut usage = self.frame();
            usage["choices"] = json!([]);
            usage["usage"] = self.seen.usage();
            out.push(event(&usage));
        }
        out.push(Bytes::from_static(b"data: [DONE]\n\n"));
        out
    }

    /// Gemini's stream broke off. openai's clients raise what an event with an error says.
    pub fn fail(&mut self, status: StatusCode, message: &str) -> Vec<Bytes> {
        if std::mem::replace(&mut self.failed, true) {
            return Vec::new();
        }
        let google = json!({ "error": { "code": status.as_u16(), "message": message, "status": "ABORTED" } });
        let (_, body) = error_from_google(status, google.to_string().as_bytes());
        vec![[b"data: ", &body[..], b"\n\n"].concat().into()]
    }

    fn whole_line(&mut self, line: &[u8], out: &mut Vec<Bytes>) {
        if let Some(data) = line.strip_prefix(b"data:") {
            if let Ok(value) = serde_json::from_slice::<Value>(data) {
                self.event(&value, out);
            }
        } else if self.bare.len() + line.len() <= LONGEST_BARE {
            self.bare.push_str(&String::from_utf8_lossy(line));
        }
    }

    fn event(&mut self, value: &Value, out: &mut Vec<Bytes>) {
        if self.failed {
            return;
        }
        if let Some(error) = value.get(0).unwrap_or(value).get("error") {
            let status =
                error.get("code").and_then(Value::as_u64).and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
            let message =
                error.get("message").and_then(Value::as_str).unwrap_or("the stream broke off with an error").to_owned();
            out.extend(self.fail(status.unwrap_or(StatusCode::BAD_GATEWAY), &message));
            return;
        }
        let text = self.seen.add(value);
        self.begin(out);
        if !text.is_empty() {
            out.push(self.chunk(&json!({ "content": text }), None));
        }
    }

    /// The first chunk says who speaks.
    fn begin(&mut self, out: &mut Vec<Bytes>) {
        if !std::mem::replace(&mut self.begun, true) {
            out.push(self.chunk(&json!({ "role": "assistant", "content": "" }), None));
        }
    }

    fn frame(&self) -> Value {
        json!({
            "id": self.seen.chat_id(),
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.seen.model(&self.model),
        })
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>) -> Bytes {
        let mut chunk = self.frame();
        let mut choice = json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish });
        if finish.is_some() {
            choice["native_finish_reason"] = self.seen.finish.clone().into();
        }
        chunk["choices"] = json!([choice]);
        event(&chunk)
    }
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn joined(mut line: Vec<Bytes>) -> Bytes {
    if line.len() == 1 {
        return line.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(line.iter().map(Bytes::len).sum());
    line.iter().for_each(|piece| all.extend_from_slice(piece));
    all.freeze()
}
