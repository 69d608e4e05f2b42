use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::Response;
use http_body::{Body, Frame, SizeHint};

use super::chunks::Chunks;
use super::peek::Decided;
use super::request::and_held;
use crate::call_state::CallState;
use crate::error::{BoxError, Error};
use crate::trail::{ResponseFacts, Trail};
use tower_gemini_core::call::{Call, Framing};
use tower_gemini_core::classify::{classify, classify_answer, limit_charge};
use tower_gemini_core::cost::ServedBy;
use tower_gemini_core::scan::{Answer, Scanner, Usage};
use tower_gemini_core::verdict::Verdict;

/// What must live to the end of a body, and may end it.
///
/// A layer attaches one with [`JudgedBody::guard`]: a permit, a reservation, a timer, the ledger's
/// last entry. It is dropped with the body.
pub trait BodyGuard: Send + Sync {
    /// Asked whenever upstream has nothing to give. `Ready` ends the body with that error, whose
    /// verdict the body corrects by what it has seen. The default never does.
    fn poll_stop(&mut self, _cx: &mut Context<'_>) -> Poll<Error> {
        Poll::Pending
    }

    /// A chunk of this many bytes came from upstream.
    fn on_chunk(&mut self, _bytes: usize) {}

    /// These bytes are on their way to the reader: all of the answer from its first byte on, peeked
    /// or not, in order. For those who read along.
    fn on_data(&mut self, _data: &Bytes) {}

    /// The body ended. Called once: when it was read to its end, when it failed, or when it was
    /// dropped before either.
    fn on_end(&mut self, _end: &BodyEnd<'_>) {}
}

/// How a body ended, and what its answer means now that all of it (or all that will be) is known.
#[derive(Debug)]
#[non_exhaustive]
pub struct BodyEnd<'a> {
    /// How it ended.
    pub how: Ended,
    /// The final verdict.
    pub verdict: &'a Verdict,
    /// What the answer says it used.
    pub usage: Option<&'a Usage>,
    /// How many images it held, drafts included; `None` where it was not read to a good end.
    pub images: Option<u32>,
    /// What the answer says of itself; `None` where it was not read to a good end.
    pub facts: Option<&'a ResponseFacts>,
    /// Which model and tier the answer says it was served by.
    pub served: &'a ServedBy,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Read to its end.
    Complete,
    /// With an error.
    Failed,
    /// Dropped before its end.
    Dropped,
}

/// An answer's body with its verdict beside it.
///
/// It yields the upstream's bytes unchanged. Where the answer turns out to be broken (an error in
/// mid-stream, an end without a finish reason, JSON that stops short) it ends with a typed
/// [`Error`], never cleanly. Only `ClassifyGeminiError` makes one.
pub struct JudgedBody<B> {
    held: Chunks,
    /// `None` once it ended.
    rest: Option<B>,
    /// An error met while an error body was peeked: it comes after what was held.
    failed: Option<Error>,
    call: Arc<Call>,
    call_state: CallState,
    state: State,
}

/// Apart from the body, so that dropping it tells the guards without a `Drop` on the body itself.
struct State {
    verdict: Verdict,
    usage: Option<Usage>,
    images: Option<u32>,
    facts: Option<Box<ResponseFacts>>,
    served: ServedBy,
    /// Reads along, for facts only or for the image too. It keeps the first fault that it meets.
    scanner: Option<Box<Scanner>>,
    /// What it says, where the peek read all of it.
    answer: Option<Box<Answer>>,
    guards: Vec<Box<dyn BodyGuard>>,
    ended: bool,
}

impl<B> JudgedBody<B>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    /// A body whose beginning was peeked. `rest` is `None` where it ended within the peek.
    pub(crate) fn new(
        decided: Decided,
        rest: Option<B>,
        call: Arc<Call>,
        call_state: CallState,
    ) -> Self {
        let Decided { verdict, held, usage, images, served, scanner, answer } = decided;
        let scanner = scanner.filter(|_| rest.is_some());
        let facts = answer.as_deref().map(|answer| Box::new(ResponseFacts::from_answer(answer)));
        let guards = Vec::new();
        let ended = false;
        let state = State { verdict, usage, images, facts, served, scanner, answer, guards, ended };
        Self { held, rest, failed: None, call, call_state, state }
    }

    /// An answer made here and not upstream, such as an admission's refusal: its bytes, and what it
    /// means.
    pub(crate) fn local(
        bytes: Bytes,
        verdict: Verdict,
        call: Arc<Call>,
        call_state: CallState,
    ) -> Self {
        Self::new(Decided::new(verdict, [bytes].into()), None, call, call_state)
    }

    /// A body whose upstream failed while it was peeked: what came, and then the error.
    pub(crate) fn failed(
        decided: Decided,
        error: Error,
        call: Arc<Call>,
        call_state: CallState,
    ) -> Self {
        let mut body = Self::new(decided, None, call, call_state);
        body.failed = Some(error);
        body
    }
}

impl<B> JudgedBody<B> {
    /// What the answer means, as far as is known: of a long answer the beginning, until its end has
    /// been read.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.state.verdict
    }

    /// Whether upstream may still send something: `false` for an answer that ended within its peek.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.rest.is_some()
    }

    /// What the answer is to.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// What has been decided for the call so far, for people.
    #[must_use]
    pub fn trail(&self) -> &Trail {
        self.call_state.trail()
    }

    /// Lets `guard` live as long as the body.
    pub fn guard(&mut self, guard: Box<dyn BodyGuard>) {
        self.state.guards.push(guard);
    }

    /// What the answer says it used, once that is known.
    #[must_use]
    pub fn usage(&self) -> Option<&Usage> {
        self.state.usage.as_ref()
    }

    /// How many images the answer held, drafts included, once that is known.
    #[must_use]
    pub fn images(&self) -> Option<u32> {
        self.state.images
    }

    /// What the answer says of itself, once that is known.
    pub(crate) fn facts(&self) -> Option<&ResponseFacts> {
        self.state.facts.as_deref()
    }

    /// Which model and tier the answer says it was served by, as far as is known: an event of a
    /// stream names the model, a whole answer does so at its end.
    #[must_use]
    pub fn served_by(&self) -> &ServedBy {
        &self.state.served
    }

    /// Reads the answer with `scanner` from its first byte on, in place of the one that only
    /// judges. The result comes with the end of [`poll_answer`](Self::poll_answer).
    ///
    /// To be called before the first read: what has been read already is not seen by the new
    /// scanner.
    pub fn scan_with(&mut self, mut scanner: Scanner) {
        let _ = self.held.as_slice().iter().try_for_each(|chunk| scanner.feed(chunk));
        self.state.scanner = Some(Box::new(scanner));
    }

    /// Has drafts told from images in the result of [`poll_answer`](Self::poll_answer). A response
    /// that ended within its peek is not read again.
    pub(crate) fn find_drafts(&mut self) {
        let drafts = self.call.makes_drafts();
        let is_whole = |answer: &Answer| answer.said_end || self.call.framing == Framing::Whole;
        // The peek takes images without a mark for drafts.
        if !drafts || !self.state.answer.as_deref().is_some_and(is_whole) {
            self.scan_with(Scanner::judging(self.call.framing).unmarked_drafts(drafts));
        }
    }

    /// The scanner set with [`scan_with`](Self::scan_with), while the body is being read.
    pub fn scanner_mut(&mut self) -> Option<&mut Scanner> {
        self.state.scanner.as_deref_mut()
    }
}

impl State {
    /// Everything has come. Judges what passed; an answer that is not whole gives the error that
    /// must end the body.
    fn finish(&mut self, call: &Call) -> Result<Option<Answer>, Error> {
        let Some(scanner) = self.scanner.take() else {
            return Ok(self.answer.take().map(|answer| *answer));
        };
        let finished = scanner.finish();
        let found = finished.as_ref().unwrap_or_else(|failure| &failure.found);
        self.served = std::mem::take(&mut self.served).and_answer(found);
        match finished.map_err(|failure| failure.error) {
            Ok(answer) => {
                self.usage.clone_from(&answer.usage);
                if let Some(error) = &answer.error {
                    // After content was released a stream's charge is unknown, whatever the error
                    // itself would have cost.
                    let inner =
                        classify(call, http::StatusCode::OK, &http::HeaderMap::new(), error);
                    self.verdict = limit_charge(call, Verdict::broken_stream(&inner));
                    return Err(Error::mid_stream(self.verdict.clone()));
                }
                if !answer.said_end && call.framing != Framing::Whole {
                    self.verdict = limit_charge(call, Verdict::interrupted());
                    return Err(Error::truncated(self.verdict.clone()));
                }
                self.verdict = classify_answer(call, &answer);
                self.images = Some(answer.images);
                self.facts = Some(Box::new(ResponseFacts::from_answer(&answer)));
                Ok(Some(answer))
            }
            Err(error) => {
                self.verdict = self.cut_off(call);
                Err(match error.is_truncated() {
                    true => Error::truncated(self.verdict.clone()),
                    false => Error::corrupt(error.to_string(), self.verdict.clone()),
                })
            }
        }
    }

    /// The verdict of an answer that broke off after its head was released. A whole answer is sent
    /// when the model has run to its end, so it was paid for; how Google bills a stream that broke
    /// off is not known; an error stays what it was.
    fn cut_off(&self, call: &Call) -> Verdict {
        match (self.verdict.outcome().is_success(), call.framing) {
            (true, Framing::Whole) => limit_charge(call, Verdict::interrupted_delivery()),
            (true, _) => limit_charge(call, Verdict::interrupted()),
            (false, _) => self.verdict.clone(),
        }
    }

    fn end(&mut self, how: Ended) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // Of an answer that broke off, or that nobody read on.
        if let Some(model) = self.scanner.as_deref().and_then(Scanner::model_version) {
            self.served = std::mem::take(&mut self.served).named(model);
        }
        let end = BodyEnd {
            how,
            verdict: &self.verdict,
            usage: self.usage.as_ref(),
            images: self.images,
            facts: self.facts.as_deref(),
            served: &self.served,
        };
        for guard in &mut self.guards {
            guard.on_end(&end);
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.end(Ended::Dropped);
    }
}

impl<B> JudgedBody<B>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    fn fail(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let error = error.with_trail(self.call_state.trail().clone());
        self.rest = None;
        self.held = Chunks::default();
        self.state.verdict = error.verdict().clone();
        self.state.end(Ended::Failed);
        self.state.scanner = None;
        Poll::Ready(Some(Err(error)))
    }

    /// Reads the next chunk. `Ok(None)` at the end, where `answer` receives what the scanner found.
    ///
    /// The body's own `poll_frame` is this without the answer.
    pub fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        answer: &mut Option<Answer>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.state.ended {
            return Poll::Ready(None);
        }
        if let Some(chunk) = self.held.pop_front() {
            for guard in &mut self.state.guards {
                guard.on_data(&chunk);
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Some(error) = self.failed.take() {
            return self.fail(error);
        }
        let Some(rest) = &mut self.rest else {
            return self.finished(answer);
        };
        let Poll::Ready(frame) = Pin::new(rest).poll_frame(cx) else {
            // What is there comes before anybody's impatience.
            for guard in &mut self.state.guards {
                if let Poll::Ready(error) = guard.poll_stop(cx) {
                    let verdict = self.state.cut_off(&self.call);
                    return self.fail(error.with_verdict(verdict));
                }
            }
            return Poll::Pending;
        };
        match frame {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(mut data) => {
                    let data = data.copy_to_bytes(data.remaining());
                    for guard in &mut self.state.guards {
                        guard.on_chunk(data.len());
                        guard.on_data(&data);
                    }
                    if let Some(scanner) = &mut self.state.scanner {
                        let _ = scanner.feed(&data);
                    }
                    Frame::data(data)
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => Frame::trailers(trailers),
                    // Data and trailers are all the frames there are.
                    Err(_) => return self.finished(answer),
                },
            }))),
            Some(Err(error)) => {
                let verdict = self.state.cut_off(&self.call);
                self.fail(Error::transport(error.into(), verdict))
            }
            None => {
                self.rest = None;
                self.finished(answer)
            }
        }
    }

    fn finished(
        &mut self,
        answer: &mut Option<Answer>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.state.finish(&self.call) {
            Ok(found) => {
                *answer = found;
                self.state.end(Ended::Complete);
                Poll::Ready(None)
            }
            Err(error) => self.fail(error),
        }
    }
}

impl<B> Body for JudgedBody<B>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.get_mut().poll_answer(cx, &mut None)
    }

    fn is_end_stream(&self) -> bool {
        // Guards and the scanner want to see the end, so a body says that it has ended only after
        // it has.
        self.state.ended
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.bytes() as u64;
        if self.failed.is_some() {
            return SizeHint::default();
        }
        let Some(rest) = &self.rest else {
            return SizeHint::with_exact(held);
        };
        and_held(rest.size_hint(), held)
    }
}

impl<B> fmt::Debug for JudgedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JudgedBody")
            .field("verdict", &self.state.verdict)
            .field("held_bytes", &self.held.bytes())
            .field("open", &self.rest.is_some())
            .finish_non_exhaustive()
    }
}

/// The one question that retry and fallback ask of responses and errors alike.
pub(crate) fn verdict_of<B>(result: &Result<Response<JudgedBody<B>>, Error>) -> &Verdict {
    match result {
        Ok(response) => response.body().verdict(),
        Err(error) => error.verdict(),
    }
}
