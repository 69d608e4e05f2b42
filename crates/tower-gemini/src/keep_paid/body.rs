use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tower_gemini_core::error::Error;
use tower_gemini_core::verdict::Verdict;

use super::detached::{Collected, Task};
use super::identity::Identity;
use super::shared::Shared;
use super::store::Answer;
use crate::answer_errors::HasVerdict;

/// Bodies that can be finished without their caller: implemented for all of the house's, there is nothing to implement by hand.
pub trait Keepable: Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static {}

impl<B: Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static> Keepable for B {}

/// The body of [`KeepPaid`](super::KeepPaid)'s answers. Dropped before its end, it is finished and kept where it was paid for.
pub struct KeptBody<B: Keepable>(Inner<B>);

enum Inner<B: Keepable> {
    /// Nothing is kept of it.
    Passing(B),
    /// On its way to its caller. `None` once it has ended.
    Attended(Option<Box<OnItsWay<B>>>),
    /// An answer that is here whole.
    Whole { chunks: VecDeque<Bytes>, redeemed: Option<Redeemed> },
}

/// An answer on its way, and what has gone by of it.
pub(super) struct OnItsWay<B> {
    pub(super) body: B,
    pub(super) seen: Collected,
    pub(super) task: Task,
}

/// A kept answer that is being given.
struct Redeemed {
    shared: Arc<Shared>,
    identity: Identity,
    answer: Arc<Answer>,
    /// The client marks its resends, so it may have it once more for a while.
    again: bool,
}

impl<B: Keepable> KeptBody<B> {
    pub(super) fn passing(body: B) -> Self {
        Self(Inner::Passing(body))
    }

    pub(super) fn attended(body: B, status: StatusCode, headers: HeaderMap, task: Task) -> Self {
        let seen = Collected::new(status, headers, task.shared.settings.max_bytes);
        Self(Inner::Attended(Some(Box::new(OnItsWay { body, seen, task }))))
    }

    pub(super) fn redeemed(shared: Arc<Shared>, identity: Identity, answer: Arc<Answer>, again: bool) -> Self {
        let chunks = answer.chunks.iter().filter(|chunk| !chunk.is_empty()).cloned().collect();
        Self(Inner::Whole { chunks, redeemed: Some(Redeemed { shared, identity, answer, again }) })
    }

    pub(super) fn whole(answer: &Answer) -> Self {
        Self(Inner::Whole { chunks: answer.chunks.iter().filter(|chunk| !chunk.is_empty()).cloned().collect(), redeemed: None })
    }

    pub(super) fn ours(body: Bytes) -> Self {
        Self(Inner::Whole { chunks: VecDeque::from([body]), redeemed: None })
    }
}

impl Redeemed {
    fn given(self) {
        self.shared.redeemed(&self.answer);
        if self.again {
            self.shared.delivered(self.identity, Answer { file: None, ..(*self.answer).clone() });
        }
    }
}

impl<B: Keepable> HasVerdict for KeptBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        match &self.0 {
            Inner::Passing(body) => body.verdict(),
            Inner::Attended(on_its_way) => on_its_way.as_ref()?.body.verdict(),
            Inner::Whole { .. } => None,
        }
    }
}

impl<B: Keepable> Body for KeptBody<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.0 {
            Inner::Passing(body) => Pin::new(body).poll_frame(cx),
            Inner::Attended(place) => {
                let Some(on_its_way) = place else { return Poll::Ready(None) };
                let frame = Pin::new(&mut on_its_way.body).poll_frame(cx);
                match &frame {
                    Poll::Pending => {}
                    Poll::Ready(Some(Ok(frame))) => {
                        if let Some(data) = frame.data_ref() {
                            on_its_way.seen.push(data);
                        }
                        // Servers do not ask on after this.
                        if on_its_way.body.is_end_stream() {
                            if let Some(on_its_way) = place.take() {
                                on_its_way.delivered();
                            }
                        }
                    }
                    Poll::Ready(Some(Err(_))) => {
                        if let Some(on_its_way) = place.take() {
                            on_its_way.task.leave();
                        }
                    }
                    Poll::Ready(None) => {
                        if let Some(on_its_way) = place.take() {
                            on_its_way.delivered();
                        }
                    }
                }
                frame
            }
            Inner::Whole { chunks, redeemed } => {
                let chunk = chunks.pop_front();
                if chunks.is_empty() {
                    if let Some(redeemed) = redeemed.take() {
                        redeemed.given();
                    }
                }
                Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Passing(body) => body.is_end_stream(),
            Inner::Attended(on_its_way) => on_its_way.as_ref().is_none_or(|on_its_way| on_its_way.body.is_end_stream()),
            Inner::Whole { chunks, .. } => chunks.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Passing(body) => body.size_hint(),
            Inner::Attended(on_its_way) => {
                on_its_way.as_ref().map_or_else(|| SizeHint::with_exact(0), |on_its_way| on_its_way.body.size_hint())
            }
            Inner::Whole { chunks, .. } => SizeHint::with_exact(chunks.iter().map(|chunk| chunk.len() as u64).sum()),
        }
    }
}

impl<B: Keepable> Drop for Inner<B> {
    fn drop(&mut self) {
        match self {
            Inner::Passing(_) => {}
            Inner::Attended(place) => {
                if let Some(on_its_way) = place.take() {
                    // A server lets go of a body once it has as much as was announced, and does not ask for its end.
                    if on_its_way.body.is_end_stream() || on_its_way.body.size_hint().exact() == Some(0) {
                        on_its_way.delivered();
                    } else {
                        on_its_way.left();
                    }
                }
            }
            Inner::Whole { redeemed, .. } => {
                if let Some(Redeemed { shared, identity, answer, .. }) = redeemed.take() {
                    shared.put_back(identity, answer);
                }
            }
        }
    }
}

impl<B: Keepable> fmt::Debug for KeptBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.0 {
            Inner::Passing(_) => "passing",
            Inner::Attended(_) => "attended",
            Inner::Whole { .. } => "whole",
        };
        f.debug_tuple("KeptBody").field(&state).finish()
    }
}
