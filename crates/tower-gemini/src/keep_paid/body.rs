use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use crate::error::Error;
use tower_gemini_core::verdict::Verdict;

use super::in_flight::{Collected, CompletableBody, InFlight, read_body, read_response};
use super::registry::Registry;
use super::store::{CallId, StoredResponse};
use crate::body::HasVerdict;

/// The body of [`KeepPaid`](super::KeepPaid)'s responses. Dropped before its end, it is read to its
/// end and stored if it was or may have been charged.
pub struct ResponseBody<B: CompletableBody>(Inner<B>);

enum Inner<B: CompletableBody> {
    /// Nothing of it is stored.
    Passing(B),
    /// On its way to its client. `None` once it has ended.
    Foreground(Option<Box<Foreground<B>>>),
    /// A response that is here whole.
    Whole { chunks: VecDeque<Bytes>, verdict: Option<Arc<Verdict>>, delivery: Option<Delivery> },
}

/// Long chunks are handed on in slices of this size. A server takes a chunk whole into its own
/// buffer, however long it is, and then asks for the next: what it has not asked for has surely not
/// reached the client.
const SLICE: usize = 64 * 1024;

/// The next slice of a chunk, which keeps the rest.
fn slice(rest: &mut Bytes) -> Bytes {
    if rest.len() > SLICE + SLICE / 2 { rest.split_to(SLICE) } else { std::mem::take(rest) }
}

/// A body on its way, and what has passed of it.
struct Foreground<B> {
    body: B,
    /// What is left of a long chunk.
    rest: Bytes,
    seen: Collected,
    call: InFlight,
}

impl<B: CompletableBody> Foreground<B> {
    fn is_all_out(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower().saturating_add(rest));
        if let Some(upper) = body.upper().and_then(|upper| upper.checked_add(rest)) {
            hint.set_upper(upper);
        }
        hint
    }

    fn deliver(self) {
        self.call.deliver(self.seen, self.body.verdict().cloned());
    }

    /// The client disconnected before the end.
    fn disconnect(self) {
        if self.body.verdict().is_some_and(|verdict| verdict.charge().is_surely_free()) {
            self.call.end_free();
        } else {
            self.call.complete_detached(read_body(self.body, self.seen));
        }
    }
}

/// A stored response on its way to a client.
struct Delivery {
    registry: Arc<Registry>,
    id: CallId,
    response: Arc<StoredResponse>,
    /// The client marks its resends, so it may ask once more.
    marks_resends: bool,
}

impl Delivery {
    fn deliver(self) {
        let for_resend = self.marks_resends.then_some(self.response);
        self.registry.with(|calls, now| {
            calls.totals.replayed += 1;
            calls.delivered(self.id, for_resend, now);
        });
    }
}

impl<B: CompletableBody> ResponseBody<B> {
    pub(super) fn passing(body: B) -> Self {
        Self(Inner::Passing(body))
    }

    /// A stored response that every request with its key gets.
    pub(super) fn whole(response: &StoredResponse) -> Self {
        Self::of(response, None)
    }

    /// A stored response that is given once.
    pub(super) fn delivering(
        registry: Arc<Registry>,
        id: CallId,
        response: Arc<StoredResponse>,
        marks_resends: bool,
    ) -> Self {
        let delivery = Delivery { registry, id, response: response.clone(), marks_resends };
        Self::of(&response, Some(delivery))
    }

    fn of(response: &StoredResponse, delivery: Option<Delivery>) -> Self {
        let mut chunks = VecDeque::new();
        for mut rest in response.chunks.iter().cloned() {
            while !rest.is_empty() {
                chunks.push_back(slice(&mut rest));
            }
        }
        Self(Inner::Whole { chunks, verdict: response.verdict.clone(), delivery })
    }

    /// A response of this layer's own.
    pub(super) fn local(body: Bytes) -> Self {
        Self(Inner::Whole { chunks: VecDeque::from([body]), verdict: None, delivery: None })
    }
}

impl<B: CompletableBody> HasVerdict for ResponseBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        match &self.0 {
            Inner::Passing(body) => body.verdict(),
            Inner::Foreground(foreground) => foreground.as_ref()?.body.verdict(),
            Inner::Whole { verdict, .. } => verdict.as_deref(),
        }
    }
}

impl<B: CompletableBody> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let place = match &mut self.0 {
            Inner::Passing(body) => return Pin::new(body).poll_frame(cx),
            Inner::Whole { chunks, delivery, .. } => {
                let chunk = chunks.pop_front();
                if chunks.is_empty() {
                    if let Some(delivery) = delivery.take() {
                        delivery.deliver();
                    }
                }
                return Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))));
            }
            Inner::Foreground(place) => place,
        };
        let Some(foreground) = place else { return Poll::Ready(None) };
        if foreground.rest.is_empty() {
            let frame = ready!(Pin::new(&mut foreground.body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    foreground.seen.push(&data);
                    foreground.rest = data;
                }
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => {
                    if let Some(foreground) = place.take() {
                        foreground.call.fail(&error);
                    }
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    if let Some(foreground) = place.take() {
                        foreground.deliver();
                    }
                    return Poll::Ready(None);
                }
            }
        }
        let data = slice(&mut foreground.rest);
        // Servers do not poll again after this.
        if foreground.is_all_out() {
            if let Some(foreground) = place.take() {
                foreground.deliver();
            }
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Passing(body) => body.is_end_stream(),
            Inner::Foreground(place) => place.as_ref().is_none_or(|body| body.is_all_out()),
            Inner::Whole { chunks, .. } => chunks.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Passing(body) => body.size_hint(),
            Inner::Foreground(place) => {
                place.as_ref().map_or(SizeHint::with_exact(0), |body| body.size_hint())
            }
            Inner::Whole { chunks, .. } => {
                SizeHint::with_exact(chunks.iter().map(|chunk| chunk.len() as u64).sum())
            }
        }
    }
}

impl<B: CompletableBody> Drop for Inner<B> {
    fn drop(&mut self) {
        match self {
            Inner::Passing(_) => {}
            Inner::Foreground(place) => {
                let Some(foreground) = place.take() else { return };
                // A server drops a body once it has as much as was announced, and does not ask for
                // its end.
                if foreground.is_all_out() || foreground.size_hint().exact() == Some(0) {
                    foreground.deliver();
                } else {
                    foreground.disconnect();
                }
            }
            Inner::Whole { delivery, .. } => {
                if let Some(Delivery { registry, id, response, .. }) = delivery.take() {
                    registry.with(|calls, now| calls.put_back(id, response, now));
                }
            }
        }
    }
}

impl<B: CompletableBody> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.0 {
            Inner::Passing(_) => "passing",
            Inner::Foreground(_) => "foreground",
            Inner::Whole { .. } => "whole",
        };
        f.debug_tuple("ResponseBody").field(&state).finish()
    }
}

type InnerFuture<B> = Pin<Box<dyn Future<Output = Result<Response<B>, Error>> + Send>>;

/// A call whose client waits for its response. Dropped before the response has come, it is
/// completed without the client where it may be charged.
pub(super) struct ForegroundCall<B: CompletableBody>(Option<(InnerFuture<B>, InFlight)>);

impl<B: CompletableBody> ForegroundCall<B> {
    pub(super) fn new(
        response: impl Future<Output = Result<Response<B>, Error>> + Send + 'static,
        call: InFlight,
    ) -> Self {
        Self(Some((Box::pin(response), call)))
    }
}

impl<B: CompletableBody> Future for ForegroundCall<B> {
    type Output = Result<Response<ResponseBody<B>>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Only `KeepPaid`'s own future polls this, and not after completion.
        let Some((response, _)) = &mut self.0 else { return Poll::Pending };
        let response = ready!(response.as_mut().poll(cx));
        let Some((_, call)) = self.0.take() else { return Poll::Pending };
        Poll::Ready(match response {
            Ok(response) => {
                let (mut parts, body) = response.into_parts();
                parts.extensions.insert(call.state.trail().clone());
                let room = Some(call.registry.clone());
                let seen = Collected::new(parts.status, parts.headers.clone(), room);
                let foreground = Foreground { body, rest: Bytes::new(), seen, call };
                let body = ResponseBody(Inner::Foreground(Some(Box::new(foreground))));
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
        let Some((response, call)) = self.0.take() else { return };
        if call.state.last_may_be_charged() {
            let room = Some(call.registry.clone());
            call.complete_detached(read_response(response, room));
        } else {
            // Dropped first: the request can go out until then.
            drop(response);
            call.abandon();
        }
    }
}
