use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::Error;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tower_gemini_core::verdict::Verdict;

use super::detached::{Collected, Task};
use super::identity::Identity;
use super::shared::Shared;
use super::store::Answer;
use crate::answer_errors::HasVerdict;

/// Bodies that can be finished without their caller: implemented for all of the house's, there is
/// nothing to implement by hand.
pub trait Keepable:
    Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static
{
}

impl<B: Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static> Keepable for B {}

/// The body of [`KeepPaid`](super::KeepPaid)'s answers. Dropped before its end, it is finished and
/// kept where it was paid for.
pub struct KeptBody<B: Keepable>(Inner<B>);

enum Inner<B: Keepable> {
    /// Nothing is kept of it.
    Passing(B),
    /// On its way to its caller. `None` once it has ended.
    Attended(Option<Box<OnItsWay<B>>>),
    /// An answer that is here whole.
    Whole { chunks: VecDeque<Bytes>, verdict: Option<Arc<Verdict>>, redeemed: Option<Redeemed> },
}

/// Long pieces are handed on in slices of this size. A server takes a piece whole into its own
/// buffer, however long it is, and then asks for the next: what it has not asked for is what the
/// caller surely has not got.
const SLICE: usize = 64 * 1024;

/// An answer on its way, and what has gone by of it.
pub(super) struct OnItsWay<B> {
    pub(super) body: B,
    /// What is left of a long piece.
    rest: Bytes,
    pub(super) seen: Collected,
    pub(super) task: Task,
}

impl<B: Keepable> OnItsWay<B> {
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
        let seen = Collected::bounded(status, headers, task.shared.clone());
        Self(Inner::Attended(Some(Box::new(OnItsWay { body, rest: Bytes::new(), seen, task }))))
    }

    pub(super) fn redeemed(
        shared: Arc<Shared>,
        identity: Identity,
        answer: Arc<Answer>,
        again: bool,
    ) -> Self {
        let (chunks, verdict) = (slices(&answer), answer.verdict.clone());
        Self(Inner::Whole {
            chunks,
            verdict,
            redeemed: Some(Redeemed { shared, identity, answer, again }),
        })
    }

    pub(super) fn whole(answer: &Answer) -> Self {
        Self(Inner::Whole {
            chunks: slices(answer),
            verdict: answer.verdict.clone(),
            redeemed: None,
        })
    }

    pub(super) fn ours(body: Bytes) -> Self {
        Self(Inner::Whole { chunks: VecDeque::from([body]), verdict: None, redeemed: None })
    }
}

/// An answer in slices.
fn slices(answer: &Answer) -> VecDeque<Bytes> {
    let mut slices = VecDeque::new();
    for mut rest in answer.chunks.iter().cloned() {
        while !rest.is_empty() {
            slices.push_back(slice(&mut rest));
        }
    }
    slices
}

/// The next slice of a piece, which keeps the rest.
fn slice(rest: &mut Bytes) -> Bytes {
    if rest.len() > SLICE + SLICE / 2 { rest.split_to(SLICE) } else { std::mem::take(rest) }
}

impl Redeemed {
    fn given(self) {
        if self.again {
            // Delivered now, whenever it was made.
            let answer =
                Answer { record: Arc::default(), at: Instant::now(), ..(*self.answer).clone() };
            self.shared.delivered(self.identity, answer);
        }
        self.shared.redeemed(self.identity, &self.answer);
    }
}

impl<B: Keepable> HasVerdict for KeptBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        match &self.0 {
            Inner::Passing(body) => body.verdict(),
            Inner::Attended(on_its_way) => on_its_way.as_ref()?.body.verdict(),
            Inner::Whole { verdict, .. } => verdict.as_deref(),
        }
    }
}

impl<B: Keepable> Body for KeptBody<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.0 {
            Inner::Passing(body) => Pin::new(body).poll_frame(cx),
            Inner::Attended(place) => {
                let Some(on_its_way) = place else { return Poll::Ready(None) };
                if on_its_way.rest.is_empty() {
                    match Pin::new(&mut on_its_way.body).poll_frame(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                            Ok(data) => {
                                on_its_way.seen.push(&data);
                                on_its_way.rest = data;
                            }
                            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                        },
                        Poll::Ready(Some(Err(error))) => {
                            if let Some(on_its_way) = place.take() {
                                on_its_way.task.failed(&error);
                            }
                            return Poll::Ready(Some(Err(error)));
                        }
                        Poll::Ready(None) => {
                            if let Some(on_its_way) = place.take() {
                                on_its_way.delivered();
                            }
                            return Poll::Ready(None);
                        }
                    }
                }
                let data = slice(&mut on_its_way.rest);
                // Servers do not ask on after this.
                if on_its_way.is_all_out() {
                    if let Some(on_its_way) = place.take() {
                        on_its_way.delivered();
                    }
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Inner::Whole { chunks, redeemed, .. } => {
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
            Inner::Attended(on_its_way) => {
                on_its_way.as_ref().is_none_or(|on_its_way| on_its_way.is_all_out())
            }
            Inner::Whole { chunks, .. } => chunks.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Passing(body) => body.size_hint(),
            Inner::Attended(on_its_way) => on_its_way
                .as_ref()
                .map_or_else(|| SizeHint::with_exact(0), |on_its_way| on_its_way.size_hint()),
            Inner::Whole { chunks, .. } => {
                SizeHint::with_exact(chunks.iter().map(|chunk| chunk.len() as u64).sum())
            }
        }
    }
}

impl<B: Keepable> Drop for Inner<B> {
    fn drop(&mut self) {
        match self {
            Inner::Passing(_) => {}
            Inner::Attended(place) => {
                if let Some(on_its_way) = place.take() {
                    // A server lets go of a body once it has as much as was announced, and does not
                    // ask for its end.
                    if on_its_way.is_all_out() || on_its_way.size_hint().exact() == Some(0) {
                        on_its_way.delivered();
                    } else {
                        on_its_way.left();
                    }
                }
            }
            Inner::Whole { redeemed, .. } => {
                if let Some(Redeemed { shared, identity, answer, .. }) = redeemed.take() {
                    shared.put_back(identity, &answer);
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
