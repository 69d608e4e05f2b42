//! Translates streamed responses.

use bytes::Bytes;
use http::StatusCode;
use tower_gemini_core::scan::{Finals, Framing, Scanner, TextPiece};

use super::error::{aborted, embedded_error, unreadable_response};
use super::gemini::{
    Facts, Part, extra_content, has_images, images_of, is_geminis, parts_of, unwrapped,
};
use super::json::{self, Json, object};
use super::sse::{EventReader, EventTooLong};

/// Translates Gemini's stream into `chat.completion.chunk` events as it arrives, wherever the
/// chunks are cut.
///
/// Text passes through at once. An image is sent as soon as it is known to be final: when text
/// follows it, another image does and the model draws no drafts, or at the end. Drafts are never
/// sent. A response in another shape than Gemini's is read to its end and sent then. A stream that
/// ends with an error, or without saying how it ended, ends in an event `{"error": …}` and without
/// `[DONE]`: OpenAI's clients raise it and do not retry. An image that was complete by then is sent
/// first, because it was charged.
///
/// Memory: one event and one image; of a response in another shape, its final images.
///
/// ```
/// use bytes::Bytes;
/// use http::HeaderMap;
/// use tower_gemini_openai::{Endpoint, to_gemini};
///
/// let body = br#"{"model": "gemini-3-pro-image", "stream": true, "messages": [{"role": "user", "content": "hi"}]}"#;
/// let gemini = to_gemini(Endpoint::ChatCompletions, &HeaderMap::new(), &Bytes::from_static(body))?;
/// let mut stream = gemini.translator.stream(1_700_000_000);
/// let event = br#"data: {"candidates": [{"content": {"parts": [{"text": "Hello"}]}, "finishReason": "STOP"}]}"#;
/// let mut events = stream.push(&Bytes::from_static(event));
/// events.extend(stream.finish());
/// let text = String::from_utf8(events.concat())?;
/// assert!(text.contains(r#""delta":{"content":"Hello"}"#) && text.ends_with("data: [DONE]\n\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StreamTranslator {
    model: String,
    created: u64,
    include_usage: bool,
    events: EventReader,
    facts: Facts,
    /// The images as finished events.
    images: Finals<Bytes>,
    /// How many images have been sent.
    sent: usize,
    /// Reads a response in another shape, which relays respond in. `None` once it is Gemini's.
    foreign: Option<Box<Scanner>>,
    has_begun: bool,
    has_signature: bool,
    has_ended: bool,
    out: Vec<Bytes>,
}

impl StreamTranslator {
    pub(super) fn new(model: String, created: u64, include_usage: bool, has_drafts: bool) -> Self {
        Self {
            model,
            created,
            include_usage,
            events: EventReader::default(),
            facts: Facts::default(),
            images: Finals::new(has_drafts),
            sent: 0,
            foreign: Some(Box::new(Scanner::decoding(Framing::Sse).unmarked_drafts(has_drafts))),
            has_begun: false,
            has_signature: false,
            has_ended: false,
            out: Vec::new(),
        }
    }

    /// Takes a chunk of Gemini's stream and returns the events that are complete.
    #[must_use]
    pub fn push(&mut self, chunk: &Bytes) -> Vec<Bytes> {
        if !self.has_ended {
            if let Some(scanner) = &mut self.foreign {
                // What it cannot read is read here.
                let _ = scanner.feed(chunk);
            }
            match self.events.push(chunk) {
                Ok(events) => events.iter().for_each(|event| self.event(event)),
                Err(EventTooLong) => {
                    self.unreadable("an event of the upstream's stream is longer than any response")
                }
            }
        }
        std::mem::take(&mut self.out)
    }

    /// Returns the last events after Gemini's stream ended without a connection error.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Bytes> {
        if !self.has_ended {
            self.events.finish().iter().for_each(|event| self.event(event));
            self.end();
        }
        std::mem::take(&mut self.out)
    }

    /// Returns the last events after Gemini's stream broke off.
    #[must_use]
    pub fn fail(&mut self, status: StatusCode, message: &str) -> Vec<Bytes> {
        if !self.has_ended {
            self.end_foreign();
        }
        self.end_with(&aborted(status, message).1);
        std::mem::take(&mut self.out)
    }

    fn event(&mut self, event: &[u8]) {
        if self.has_ended || event == b"[DONE]" {
            return;
        }
        match json::parse(event, json::MAX_RESPONSE_VALUES) {
            Ok(Json::List(responses)) => {
                responses.iter().for_each(|response| self.response(response, event.len()));
            }
            Ok(response @ Json::Object(_)) => self.response(&response, event.len()),
            _ => self.unreadable("an event of the upstream's stream cannot be read"),
        }
    }

    fn response(&mut self, response: &Json<'_>, len: usize) {
        if self.has_ended {
            return;
        }
        let response = unwrapped(response);
        if let Some(error) = response.get("error") {
            return self.end_with(&embedded_error(error).1);
        }
        if is_geminis(response) {
            self.foreign = None;
        }
        self.facts.add(response);
        if !std::mem::replace(&mut self.has_begun, true) {
            let delta = object([("role", "assistant".into()), ("content", "".into())]);
            let chunk = self.chunk(delta, false, 0);
            self.out.push(chunk);
        }
        for part in parts_of(response) {
            match part {
                Part::Text { text, signature } => {
                    for piece in TextPiece::all(text) {
                        let image = match piece {
                            TextPiece::Words => self.images.text(),
                            // It is sent with the text.
                            TextPiece::Image(_) => self.images.image(Bytes::new(), false),
                            TextPiece::Address(_) => None,
                        };
                        self.send_image(image);
                    }
                    let signature = signature.filter(|_| !self.has_signature);
                    self.has_signature |= signature.is_some();
                    let content = (!text.is_empty()).then(|| ("content", text.into()));
                    let extra = signature.map(|signed| ("extra_content", extra_content(signed)));
                    if content.is_some() || extra.is_some() {
                        let delta = object(content.into_iter().chain(extra));
                        let chunk = self.chunk(delta, false, len);
                        self.out.push(chunk);
                    }
                }
                Part::Other => {
                    let image = self.images.text();
                    self.send_image(image);
                }
                Part::Image(part) => {
                    let delta = object([("images", Json::List(vec![part.entry(self.sent)]))]);
                    let image = self.chunk(delta, false, len);
                    let image = match part.address {
                        Some(_) => Some(image),
                        None => self.images.image(image, part.is_thought),
                    };
                    self.send_image(image);
                }
            }
        }
    }

    fn send_image(&mut self, image: Option<Bytes>) {
        let image = image.filter(|image| !image.is_empty());
        self.sent += usize::from(image.is_some());
        self.out.extend(image);
    }

    fn end(&mut self) {
        if self.has_ended {
            return;
        }
        if !self.end_foreign() && !self.facts.has_ended() {
            return self.unreadable("the upstream's stream ended before the response was complete");
        }
        self.has_ended = true;
        let has_none = self.images.is_empty() && self.sent == 0;
        let refusal = if has_none { self.facts.refusal() } else { None };
        let image = self.images.end();
        self.send_image(image);
        let delta = object(refusal.map(|refusal| ("refusal", refusal.into())));
        let last = self.chunk(delta, true, 0);
        self.out.push(last);
        if self.include_usage {
            let usage = self.line(Json::List(Vec::new()), Some(self.facts.chat_usage().into()), 0);
            self.out.push(usage);
        }
        self.out.push(Bytes::from_static(b"data: [DONE]\n\n"));
    }

    /// Sends the text and the images of a response in another shape. Returns whether there was one
    /// that was complete; of one that was not, drafts are not sent.
    fn end_foreign(&mut self) -> bool {
        let Some(scanner) = self.foreign.take() else { return false };
        let answer = scanner.finish().unwrap_or_else(|failure| *failure.found);
        if !has_images(&answer) {
            return false;
        }
        let mut images = images_of(&answer);
        images.retain(|image| answer.said_end || !image.is_thought);
        let content = (!answer.text.is_empty()).then(|| ("content", (*answer.text).into()));
        let entries = images.iter().enumerate().map(|(n, image)| image.entry(n)).collect();
        let images = [("images", Json::List(entries))];
        self.facts = Facts::from_answer(answer.clone());
        let delta = self.chunk(object(content.into_iter().chain(images)), false, 0);
        self.send_image(Some(delta));
        answer.said_end
    }

    fn unreadable(&mut self, message: &str) {
        self.end_with(&unreadable_response(message).1);
    }

    fn end_with(&mut self, error: &[u8]) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        if !self.images.is_draft() {
            let image = self.images.end();
            self.send_image(image);
        }
        self.out.push([b"data: ", error, b"\n\n"].concat().into());
    }

    fn chunk(&self, delta: Json<'_>, is_last: bool, capacity: usize) -> Bytes {
        let choice = [
            ("index", 0.into()),
            ("delta", delta),
            ("logprobs", Json::Null),
            ("finish_reason", is_last.then(|| self.facts.finish_reason()).into()),
        ];
        let native = is_last.then(|| ("native_finish_reason", self.facts.native_reason().into()));
        let choices = Json::List(vec![object(choice.into_iter().chain(native))]);
        self.line(choices, self.include_usage.then_some(Json::Null), capacity)
    }

    fn line(&self, choices: Json<'_>, usage: Option<Json<'_>>, capacity: usize) -> Bytes {
        let (kind, facts) = ("chat.completion.chunk", &self.facts);
        let chunk = facts.completion(kind, &self.model, self.created, choices, usage);
        let mut line = Vec::with_capacity(capacity + 512);
        line.extend_from_slice(b"data: ");
        // Writing to memory does not fail, and every key is a text.
        let _ = serde_json::to_writer(&mut line, &chunk);
        line.extend_from_slice(b"\n\n");
        Bytes::from(line)
    }
}
