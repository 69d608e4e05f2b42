use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use tower_gemini_core::verdict::Verdict;

use super::in_flight::{Collected, CompletableBody, InFlight, Writing, read_body, read_response};
use super::registry::Registry;
use super::stored::{CallId, StoredResponse};
use crate::body::{HasVerdict, and_held};
use crate::error::{Error, TimeLimit};
use crate::timer::Timer;
use tokio::time::Instant;

/// The body of [`KeepPaid`](super::KeepPaid)'s responses. Dropped before its end, it is read to its
/// end and stored if it was or may have been charged.
pub struct ResponseBody<B: CompletableBody> {
    /// Comes before the rest of `body`.
    ready: VecDeque<Bytes>,
    /// `None` where all of the response is here.
    body: Option<B>,
    verdict: Option<Arc<Verdict>>,
    /// `None` where nothing depends on what becomes of the body, or that is known already.
    delivery: Option<Delivery>,
    /// All of the response is here, and is written into the journal before the last of it goes on.
    writing: Option<Writing>,
    is_written: bool,
    has_ended: bool,
    trailers: Option<Frame<Bytes>>,
    /// What the body ended with, after what is ready.
    error: Option<Error>,
    /// Until the call's deadline.
    timer: Option<Timer>,
}

/// What depends on the client's getting all of a body.
enum Delivery {
    /// The call, and what was seen of its response.
    Foreground(Box<(InFlight, Collected)>),
    /// A stored response.
    Replay {
        registry: Arc<Registry>,
        id: CallId,
        response: Arc<StoredResponse>,
        /// The client may ask once more.
        marks_resends: bool,
    },
}

impl Delivery {
    /// Whether the response is written into a journal once it is whole.
    fn is_recorded(&self) -> bool {
        match self {
            Self::Foreground(call) => call.0.has_journal() && call.1.holds_all(),
            Self::Replay { .. } => false,
        }
    }
}

/// Long chunks are handed on in slices of this size. A server takes a chunk whole into its own
/// buffer, however long it is, and then asks for the next: what it has not asked for has surely not
/// reached the client.
const SLICE: usize = 64 * 1024;

fn slices(mut chunk: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || match chunk.len() {
        0 => None,
        length if length > SLICE + SLICE / 2 => Some(chunk.split_to(SLICE)),
        _ => Some(std::mem::take(&mut chunk)),
    })
}

impl<B: CompletableBody> ResponseBody<B> {
    fn of(ready: VecDeque<Bytes>, body: Option<B>, verdict: Option<Arc<Verdict>>) -> Self {
        Self {
            ready,
            body,
            verdict,
            delivery: None,
            writing: None,
            is_written: false,
            has_ended: false,
            trailers: None,
            error: None,
            timer: None,
        }
    }

    /// A body of which nothing is stored.
    pub(super) fn passing(body: B) -> Self {
        Self::of(VecDeque::new(), Some(body), None)
    }

    /// A response of this layer's own.
    pub(super) fn local(bytes: Bytes) -> Self {
        Self::of(VecDeque::from([bytes]), None, None)
    }

    /// A stored response that every request with its key gets.
    pub(super) fn whole(response: &StoredResponse) -> Self {
        let ready = response.chunks.iter().cloned().flat_map(slices).collect();
        Self::of(ready, None, response.verdict.clone())
    }

    /// A stored response that is given once.
    pub(super) fn replay(
        registry: Arc<Registry>,
        id: CallId,
        response: Arc<StoredResponse>,
        marks_resends: bool,
    ) -> Self {
        let mut whole = Self::whole(&response);
        whole.delivery = Some(Delivery::Replay { registry, id, response, marks_resends });
        whole
    }

    fn is_all_out(&self) -> bool {
        self.ready.is_empty()
            && self.trailers.is_none()
            && self.error.is_none()
            && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Writes the response down once all of it is here.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let (false, Some(Delivery::Foreground(call))) = (self.is_written, &self.delivery) {
            let (call, seen) = &**call;
            let response = seen.response(&call.state, self.verdict().cloned());
            self.writing = call.write_down(response, true);
            self.is_written = true;
        }
        if let Some(writing) = &mut self.writing {
            ready!(writing.as_mut().poll(cx));
            self.writing = None;
        }
        Poll::Ready(())
    }

    /// The client's time is over: the rest is read without it.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let Some(Delivery::Foreground(call)) = &self.delivery else { return Poll::Pending };
        let state = call.0.state.clone();
        let Some(deadline) = state.deadline() else { return Poll::Pending };
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        ready!(self.timer.get_or_insert_with(|| Timer::after(now, left)).poll(cx));
        self.leave();
        let limit = deadline.saturating_duration_since(state.started());
        let error = Error::timeout(TimeLimit::Deadline, limit, Verdict::interrupted());
        Poll::Ready(error.with_trail(state.trail().clone()))
    }

    /// The client takes no more of it.
    fn leave(&mut self) {
        let is_free = self.verdict().is_some_and(|verdict| verdict.charge().is_surely_free());
        match (self.delivery.take(), self.body.take()) {
            (Some(Delivery::Foreground(call)), Some(body)) => {
                let (call, seen) = *call;
                if is_free {
                    call.end_free();
                } else {
                    call.complete_detached(read_body(body, seen));
                }
            }
            (Some(Delivery::Replay { registry, id, response, .. }), _) => {
                registry.with(|calls, now| calls.put_back(id, response, now));
            }
            _ => {}
        }
    }

    /// The client has all of it, as far as can be seen from here.
    fn deliver(&mut self) {
        match self.delivery.take() {
            Some(Delivery::Foreground(call)) => {
                let (call, seen) = *call;
                call.deliver(seen, self.verdict().cloned());
            }
            Some(Delivery::Replay { registry, id, response, marks_resends }) => {
                registry.with(|calls, now| {
                    calls.totals.replayed += 1;
                    calls.delivered(id, marks_resends.then_some(response), now);
                });
            }
            None => {}
        }
    }
}

impl<B: CompletableBody> HasVerdict for ResponseBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        self.body.as_ref().map_or(self.verdict.as_deref(), HasVerdict::verdict)
    }
}

impl<B: CompletableBody> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        while let Some(body) = this.body.as_mut().filter(|_| !this.has_ended) {
            // An empty chunk is not the end. What is here already is written down before any of it
            // goes on.
            let looks_ahead = this.delivery.as_ref().is_some_and(Delivery::is_recorded);
            if !this.ready.is_empty() && !looks_ahead {
                break;
            }
            let frame = match Pin::new(body).poll_frame(cx) {
                Poll::Pending if !this.ready.is_empty() => break,
                Poll::Pending => {
                    let error = ready!(this.poll_deadline(cx));
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(frame) => frame,
            };
            match (frame.map(|frame| frame.map(Frame::into_data)), &mut this.delivery) {
                (Some(Ok(Ok(data))), Some(Delivery::Foreground(call))) => {
                    call.1.push(&data);
                    this.ready.extend(slices(data));
                }
                (Some(Ok(Ok(data))), _) => this.ready.push_back(data),
                (Some(Ok(Err(trailers))), _) => this.trailers = Some(trailers),
                (Some(Err(error)), _) => (this.body, this.error) = (None, Some(error)),
                (None, _) => this.has_ended = true,
            }
        }
        let has_all = this.has_ended || this.body.as_ref().is_none_or(Body::is_end_stream);
        if has_all && this.error.is_none() {
            ready!(this.poll_written(cx));
        }
        let data = this.ready.pop_front().map(Frame::data).or_else(|| this.trailers.take());
        if data.is_none()
            && let Some(error) = this.error.take()
        {
            if let Some(Delivery::Foreground(call)) = this.delivery.take() {
                call.0.fail(&error);
            }
            return Poll::Ready(Some(Err(error)));
        }
        // Servers do not poll again after this.
        if data.is_none() || this.is_all_out() {
            this.deliver();
        }
        Poll::Ready(data.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.is_all_out()
    }

    fn size_hint(&self) -> SizeHint {
        let ready = self.ready.iter().map(|chunk| chunk.len() as u64).sum();
        let rest = self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        and_held(rest, ready)
    }
}

impl<B: CompletableBody> Drop for ResponseBody<B> {
    fn drop(&mut self) {
        // A server drops a body once it has as much as was announced, and does not ask for its end.
        let is_all_out = self.is_all_out() || self.size_hint().exact() == Some(0);
        // Not while it is written down, nor where it ended with an error: the client has seen
        // neither.
        if is_all_out && self.writing.is_none() && self.error.is_none() {
            return self.deliver();
        }
        self.leave();
    }
}

impl<B: CompletableBody> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("is_replay", &self.body.is_none())
            .finish_non_exhaustive()
    }
}

type InnerFuture<B> = Pin<Box<dyn Future<Output = Result<Response<B>, Error>> + Send>>;

/// A call whose client waits for its response. Dropped before the response has come, it is
/// completed without the client where it may be charged.
pub(super) struct ForegroundCall<B: CompletableBody> {
    /// `None` once it has come to something.
    running: Option<(InnerFuture<B>, InFlight)>,
    /// Until the call's deadline.
    timer: Option<Timer>,
}

impl<B: CompletableBody> ForegroundCall<B> {
    pub(super) fn new(
        response: impl Future<Output = Result<Response<B>, Error>> + Send + 'static,
        call: InFlight,
    ) -> Self {
        let running = Some((Box::pin(response) as InnerFuture<B>, call));
        Self { running, timer: None }
    }

    /// The client's time is over while an attempt is under way: one that may be charged is
    /// completed without the client, and the client is told.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let Some((_, call)) = &self.running else { return Poll::Pending };
        let Some(deadline) = call.state.deadline() else { return Poll::Pending };
        let started = call.state.started();
        let limit = deadline.saturating_duration_since(started);
        let timer = self.timer.get_or_insert_with(|| Timer::after(started, limit));
        ready!(timer.poll(cx));
        let state = call.state.clone();
        let may_be_charged = state.last_may_be_charged();
        // Between two attempts that are free the layers below say why the call ends.
        if !may_be_charged && !state.is_sending() {
            return Poll::Pending;
        }
        self.leave();
        let verdict = match may_be_charged {
            true => Verdict::interrupted(),
            false => state.cut_off(),
        };
        let error = Error::timeout(TimeLimit::Deadline, limit, verdict);
        Poll::Ready(error.with_trail(state.trail().clone()))
    }

    /// Nobody waits for the response any more.
    fn leave(&mut self) {
        let Some((response, call)) = self.running.take() else { return };
        if call.state.is_worth_completing() {
            let room = call.registry.room(&call.state);
            call.complete_detached(read_response(response, room));
        } else {
            // Dropped first: the request can go out until then.
            drop(response);
            call.abandon();
        }
    }
}

impl<B: CompletableBody> Future for ForegroundCall<B> {
    type Output = Result<Response<ResponseBody<B>>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Only `KeepPaid`'s own future polls this, and not after completion.
        let Some((response, _)) = &mut self.running else { return Poll::Pending };
        let Poll::Ready(response) = response.as_mut().poll(cx) else {
            return self.poll_deadline(cx).map(Err);
        };
        let Some((_, call)) = self.running.take() else { return Poll::Pending };
        Poll::Ready(match response {
            Ok(response) => {
                let (mut parts, body) = response.into_parts();
                parts.extensions.insert(call.state.trail().clone());
                let room = call.registry.room(&call.state);
                let seen = Collected::new(parts.status, parts.headers.clone(), room);
                let mut body = ResponseBody::passing(body);
                body.delivery = Some(Delivery::Foreground(Box::new((call, seen))));
                Ok(Response::from_parts(parts, body))
            }
            Err(error) => {
                call.fail(&error);
                Err(error)
            }
        })
    }
}

impl<B: CompletableBody> Drop for ForegroundCall<B> {
    fn drop(&mut self) {
        self.leave();
    }
}
