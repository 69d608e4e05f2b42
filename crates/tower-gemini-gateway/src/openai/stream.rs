//! A stream of Gemini's as one of OpenAI's.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;

use super::answer::{Facts, Part, parts_of};
use super::error::error_from_google;
use super::events::Events;
use super::json::{Json, Members, object};
use super::reply::{signed, status_of, unreadable};

/// Translates a stream of Gemini's into `chat.completion.chunk` events as it comes, however it is
/// cut.
///
/// Words pass at once. The image comes at the end, since only then is it known which one is final;
/// drafts never come. A stream that ends without saying how, or with an error, ends in an event
/// `{"error": …}` and without `[DONE]`: OpenAI's clients raise it, and do not send again. An image
/// that was complete by then is given first, as it was paid for.
///
/// Memory: one event, and one image.
#[derive(Debug)]
pub struct StreamTranslator {
    events: Events,
    told: Told,
}

/// What has been told so far.
#[derive(Debug)]
struct Told {
    model: String,
    created: u64,
    include_usage: bool,
    facts: Facts,
    /// The image as the event that it will be, and whether it is marked as a draft.
    image: Option<(Bytes, bool)>,
    has_begun: bool,
    has_signature: bool,
    has_ended: bool,
    out: Vec<Bytes>,
}

impl StreamTranslator {
    pub(super) fn new(model: String, created: u64, include_usage: bool) -> Self {
        let told = Told {
            model,
            created,
            include_usage,
            facts: Facts::default(),
            image: None,
            has_begun: false,
            has_signature: false,
            has_ended: false,
            out: Vec::new(),
        };
        Self { events: Events::default(), told }
    }

    /// Takes a chunk of Gemini's stream, and gives the events that are complete.
    #[must_use]
    pub fn push(&mut self, chunk: &Bytes) -> Vec<Bytes> {
        if !self.told.has_ended {
            let told = &mut self.told;
            if self.events.push(chunk, &mut |event| told.event(event)).is_err() {
                self.told.fail(
                    unreadable("an event of the upstream's stream is longer than any answer").1,
                );
            }
        }
        std::mem::take(&mut self.told.out)
    }

    /// Gemini's stream has ended without a fault of the connection.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Bytes> {
        if !self.told.has_ended {
            let told = &mut self.told;
            self.events.finish(&mut |event| told.event(event));
            self.told.finish();
        }
        std::mem::take(&mut self.told.out)
    }

    /// Gemini's stream broke off.
    #[must_use]
    pub fn fail(&mut self, status: StatusCode, message: &str) -> Vec<Bytes> {
        let error = object([(
            "error",
            object([("message", message.into()), ("status", "ABORTED".into())]),
        )]);
        let (_, body) = error_from_google(status, &error.to_bytes(message.len() + 64));
        self.told.fail(body);
        std::mem::take(&mut self.told.out)
    }
}

impl Told {
    fn event(&mut self, event: &[u8]) {
        if self.has_ended || event == b"[DONE]" {
            return;
        }
        match serde_json::from_slice::<Json<'_>>(event) {
            Ok(Json::List(answers)) => {
                answers.iter().for_each(|answer| self.answer(answer, event.len()))
            }
            Ok(answer @ Json::Object(_)) => self.answer(&answer, event.len()),
            _ => self.fail(unreadable("an event of the upstream's stream cannot be read").1),
        }
    }

    fn answer(&mut self, answer: &Json<'_>, len: usize) {
        if self.has_ended {
            return;
        }
        if let Some(error) = answer.get("error") {
            let (_, body) = error_from_google(
                status_of(error),
                &object([("error", error.borrowed())]).to_bytes(1024),
            );
            return self.fail(body);
        }
        self.facts.add(answer);
        self.begin();
        for part in parts_of(answer) {
            match part {
                Part::Text { text, signature } => {
                    let signature = signature.filter(|_| !self.has_signature);
                    self.has_signature |= signature.is_some();
                    let mut delta = Vec::new();
                    if !text.is_empty() {
                        delta.push((Cow::Borrowed("content"), text.into()));
                    }
                    if let Some(signature) = signature {
                        delta.push((Cow::Borrowed("extra_content"), signed(signature)));
                    }
                    if !delta.is_empty() {
                        let chunk = self.chunk(delta, false, len);
                        self.out.push(chunk);
                    }
                }
                Part::Image(drawn) => {
                    // The last that is not marked, else the last.
                    if self
                        .image
                        .as_ref()
                        .is_none_or(|(_, is_marked)| *is_marked || !drawn.is_thought)
                    {
                        let delta =
                            vec![(Cow::Borrowed("images"), Json::List(vec![drawn.entry()]))];
                        self.image = Some((self.chunk(delta, false, len), drawn.is_thought));
                    }
                }
            }
        }
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.has_begun, true) {
            let chunk = self.chunk(
                vec![
                    (Cow::Borrowed("role"), "assistant".into()),
                    (Cow::Borrowed("content"), "".into()),
                ],
                false,
                0,
            );
            self.out.push(chunk);
        }
    }

    fn finish(&mut self) {
        if self.has_ended {
            return;
        }
        if !self.facts.has_ended() {
            return self
                .fail(unreadable("the upstream's stream ended before the answer was complete").1);
        }
        self.has_ended = true;
        let image = self.image.take();
        let refusal = if image.is_some() { None } else { self.facts.refusal() };
        self.out.extend(image.map(|(image, _)| image));
        let delta =
            refusal.map(|refusal| (Cow::Borrowed("refusal"), refusal.into())).into_iter().collect();
        let last = self.chunk(delta, true, 0);
        self.out.push(last);
        if self.include_usage {
            let mut usage = self.frame();
            usage.push((Cow::Borrowed("choices"), Json::List(Vec::new())));
            usage.push((Cow::Borrowed("usage"), self.facts.chat_usage().into()));
            let usage = line(&Json::Object(usage), 0);
            self.out.push(usage);
        }
        self.out.push(Bytes::from_static(b"data: [DONE]\n\n"));
    }

    fn fail(&mut self, error: Bytes) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        self.out
            .extend(self.image.take().filter(|(_, is_marked)| !is_marked).map(|(image, _)| image));
        self.out.push([b"data: ", &error[..], b"\n\n"].concat().into());
    }

    fn frame(&self) -> Members<'_> {
        vec![
            (Cow::Borrowed("id"), self.facts.id(self.created).into()),
            (Cow::Borrowed("object"), "chat.completion.chunk".into()),
            (Cow::Borrowed("created"), self.created.into()),
            (Cow::Borrowed("model"), self.facts.model(&self.model).into()),
        ]
    }

    fn chunk(&self, delta: Members<'_>, is_last: bool, room: usize) -> Bytes {
        let mut choice = vec![
            (Cow::Borrowed("index"), Json::from(0)),
            (Cow::Borrowed("delta"), Json::Object(delta)),
            (Cow::Borrowed("logprobs"), Json::Null),
            (Cow::Borrowed("finish_reason"), is_last.then(|| self.facts.finish_reason()).into()),
        ];
        if is_last {
            choice.push((Cow::Borrowed("native_finish_reason"), self.facts.native_reason().into()));
        }
        let mut chunk = self.frame();
        chunk.push((Cow::Borrowed("choices"), Json::List(vec![Json::Object(choice)])));
        if self.include_usage {
            chunk.push((Cow::Borrowed("usage"), Json::Null));
        }
        line(&Json::Object(chunk), room)
    }
}

fn line(value: &Json<'_>, room: usize) -> Bytes {
    let mut line = Vec::with_capacity(room + 512);
    line.extend_from_slice(b"data: ");
    // Writing to memory does not fail, and every key is a text.
    let _ = serde_json::to_writer(&mut line, value);
    line.extend_from_slice(b"\n\n");
    Bytes::from(line)
}
