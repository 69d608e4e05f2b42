use std::sync::Arc;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, StatusCode};

use super::chunks::Chunks;
use crate::headers::is_encoded;
use tower_gemini_core::call::{Call, Dialect, Framing};
use tower_gemini_core::classify::{classify, classify_answer, limit_charge};
use tower_gemini_core::cost::ServedBy;
use tower_gemini_core::scan::{Answer, Scanner, Usage};
use tower_gemini_core::verdict::Verdict;

/// How much of an answer is read before its head is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeekLimits {
    /// Of a 2xx. Refusals, empty answers and errors in a 200 are all far smaller; what is longer is
    /// on its way to be an image. Default 64 KiB.
    pub answer_bytes: usize,
    /// Of anything else. Error bodies are small; reading them to the end lets the client use the
    /// connection again. Default 256 KiB, four times the largest error page known to us.
    pub error_bytes: usize,
}

impl Default for PeekLimits {
    fn default() -> Self {
        Self { answer_bytes: 64 * 1024, error_bytes: 256 * 1024 }
    }
}

/// Reads the beginning of an answer until its verdict is known.
///
/// The layer pushes chunks for as long as [`wants_more`](Self::wants_more) and then calls
/// [`decide`](Self::decide). Nothing here waits or reads a clock.
#[derive(Debug)]
pub(crate) struct Peek {
    call: Arc<Call>,
    status: StatusCode,
    held: Chunks,
    held_bytes: usize,
    bound: usize,
    /// Only for streams: tells when the first event with content has come. Boxed, here and below: a
    /// scanner is large, and what travels up through the layers is moved at each of them.
    stream: Option<Box<Scanner>>,
    opaque: bool,
}

/// What is known of an answer when its head is released.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) verdict: Verdict,
    pub(crate) held: Chunks,
    pub(crate) usage: Option<Usage>,
    pub(crate) images: Option<u32>,
    pub(crate) served: ServedBy,
    /// Judges what is still to come; `None` where nothing is, or nothing can be read from it.
    pub(crate) scanner: Option<Box<Scanner>>,
    /// All that a good response says, where none is still to come.
    pub(crate) answer: Option<Box<Answer>>,
}

impl Decided {
    pub(super) fn new(verdict: Verdict, held: Chunks) -> Self {
        let (usage, images, scanner, answer) = (None, None, None, None);
        Self { verdict, held, usage, images, served: ServedBy::new(), scanner, answer }
    }

    /// What the answer means, as far as it is known.
    pub(crate) fn verdict(&self) -> &Verdict {
        &self.verdict
    }
}

impl Peek {
    /// A peek at the answer to `call` whose head has just come.
    pub(crate) fn new(call: Arc<Call>, head: &Parts, limits: PeekLimits) -> Self {
        let success = head.status.is_success();
        // A compressed body cannot be judged by its bytes, and an unknown path's answer is none of
        // ours: the status must do.
        let opaque =
            is_encoded(&head.headers) || (success && call.dialect == Dialect::Unrecognised);
        let bound = match (success, opaque) {
            (true, true) => 0,
            (true, false) => limits.answer_bytes,
            (false, _) => limits.error_bytes,
        };
        let stream = (success && !opaque && call.is_streaming())
            .then(|| Box::new(Scanner::judging(call.framing)));
        Self {
            call,
            status: head.status,
            held: Chunks::default(),
            held_bytes: 0,
            bound,
            stream,
            opaque,
        }
    }

    /// Whether the verdict still depends on bytes to come.
    pub(crate) fn wants_more(&self) -> bool {
        self.held_bytes < self.bound
            && !self.stream.as_ref().is_some_and(|scanner| scanner.has_content())
    }

    /// Takes the next chunk of the body.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.held_bytes = self.held_bytes.saturating_add(chunk.len());
        if let Some(scanner) = &mut self.stream {
            // A fault in it will be met again, and reported, when the body is read to its end.
            let _ = scanner.feed(&chunk);
        }
        self.held.push(chunk);
    }

    /// The verdict. `ended` says that the body ended within what was pushed.
    pub(crate) fn decide(self, headers: &HeaderMap, ended: bool) -> Decided {
        let Self { call, status, held, stream, opaque, .. } = self;
        let served = ServedBy::from_headers(headers);
        if opaque {
            // Without a body `classify` falls back to the status.
            let verdict = classify(&call, status, headers, b"");
            return Decided { served, ..Decided::new(verdict, held) };
        }
        if !status.is_success() {
            return Decided::new(classify(&call, status, headers, &held.joined()), held);
        }
        if !ended {
            let scanner = stream.unwrap_or_else(|| {
                let mut scanner = Box::new(Scanner::judging(call.framing));
                let _ = held.as_slice().iter().try_for_each(|chunk| scanner.feed(chunk));
                scanner
            });
            // An image on its way, paid for; or a call that asks for none, whose answer is as
            // final.
            let verdict = match (call.wants_image, call.framing) {
                (true, Framing::Whole) => Verdict::delivering(),
                (true, _) => Verdict::delivering_stream(),
                (false, _) => Verdict::answering(),
            };
            let verdict = limit_charge(&call, verdict);
            // An event of a stream names it; a whole response does so at its end.
            let served = served.named(scanner.model_version().unwrap_or_default());
            return Decided { served, scanner: Some(scanner), ..Decided::new(verdict, held) };
        }
        let mut scanner = Scanner::judging(call.framing);
        // A fault met while feeding is met again by `finish`, which also says what had been found
        // before it.
        let _ = held.as_slice().iter().try_for_each(|chunk| scanner.feed(chunk));
        match scanner.finish() {
            Ok(answer) if answer.error.is_none() => {
                let (verdict, images) = (classify_answer(&call, &answer), Some(answer.images));
                let usage = answer.usage.clone();
                let served = served.and_answer(&answer);
                let answer = Some(Box::new(answer));
                Decided { usage, images, served, answer, ..Decided::new(verdict, held) }
            }
            // Its JSON stops short, and nothing in it says why: whatever it was going to be, it
            // broke off.
            Err(failure) if failure.error.is_truncated() && says_nothing(&failure.found) => {
                let verdict = if failure.found.images > 0 {
                    Verdict::interrupted_delivery()
                } else {
                    Verdict::interrupted()
                };
                let decided = Decided::new(limit_charge(&call, verdict), held);
                let served = served.and_answer(&failure.found);
                Decided { usage: failure.found.usage, served, ..decided }
            }
            // Errors inside a 200, broken answers, texts that are no JSON: the classifier reads
            // them whole.
            result => {
                let found = result.unwrap_or_else(|failure| *failure.found);
                let served = served.and_answer(&found);
                let verdict = classify(&call, status, headers, &held.joined());
                Decided { served, ..Decided::new(verdict, held) }
            }
        }
    }
}

/// Whether a broken answer holds nothing that decides what it means.
fn says_nothing(found: &Answer) -> bool {
    found.error.is_none() && found.finish_reason.is_none() && found.block_reason.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Response, Uri};
    use tower_gemini_core::verdict::Charge;

    fn charge_of(path: &'static str, method: &Method, ended: bool) -> Charge {
        let call = Call::parse(method, &Uri::from_static(path), &HeaderMap::new(), None);
        let (head, ()) = Response::new(()).into_parts();
        let mut peek = Peek::new(Arc::new(call), &head, PeekLimits::default());
        peek.push(Bytes::from_static(b"{\"files\": [{\"name\": \"a"));
        peek.decide(&HeaderMap::new(), ended).verdict().charge()
    }

    // A listing of files that was longer than what is peeked, or broke off, was called "charged".
    #[test]
    fn a_response_that_is_longer_than_the_peek_is_charged_only_where_its_call_generates() {
        for ended in [false, true] {
            assert_eq!(charge_of("/v1beta/files", &Method::GET, ended), Charge::None);
            let count = "/v1beta/models/gemini-3-pro-image:countTokens";
            assert_eq!(charge_of(count, &Method::POST, ended), Charge::None);
        }
        let generate = "/v1beta/models/gemini-3-pro-image:generateContent";
        assert_eq!(charge_of(generate, &Method::POST, false), Charge::Charged);
    }
    // It was called interrupted, which is sent again for a caller who buys resends.
    #[test]
    fn a_success_in_an_encoding_passes_as_one_that_may_be_charged() {
        for (verb, charge) in [("generateContent", Charge::Maybe), ("countTokens", Charge::None)] {
            let path = format!("/v1beta/models/gemini-3-pro-image:{verb}").parse().unwrap();
            let call = Arc::new(Call::parse(&Method::POST, &path, &HeaderMap::new(), None));
            let head = Response::builder().header("content-encoding", "br").body(()).unwrap();
            let (head, ()) = head.into_parts();
            let peek = Peek::new(call, &head, PeekLimits::default());
            assert!(!peek.wants_more());
            let verdict = peek.decide(&head.headers, false).verdict;
            assert_eq!((verdict.outcome().is_success(), verdict.charge()), (true, charge));
            assert_eq!(verdict.reason(), Some("not read: in the encoding br"));
        }
    }
}
