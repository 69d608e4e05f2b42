use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tower_gemini_core::verdict::Verdict;

use super::observatory::CallWatch;
use super::outcome::How;
use super::service::outcome_in;
use crate::body::HasVerdict;

/// An answer's body that is watched to its end. Its bytes are the inner body's.
// The inner body stands before the watch, and is dropped before it: what was left of it is written
// into the trail first.
#[pin_project]
pub struct ObservedBody<B: Body> {
    #[pin]
    inner: B,
    watch: Option<CallWatch>,
    /// Bytes still to come, where the body says so exactly.
    left: Option<u64>,
    /// What came behind the last byte: it is read at once, because servers that send a length do
    /// not ask again, and then neither the answer's usage nor its end would be known.
    behind: Option<Result<Frame<B::Data>, B::Error>>,
    has_ended: bool,
}

impl<B: Body> ObservedBody<B> {
    pub(super) fn new(inner: B, mut watch: Option<CallWatch>) -> Self {
        let left = inner.size_hint().exact();
        let has_ended = inner.is_end_stream();
        if let Some(watch) = &mut watch {
            if has_ended {
                watch.over(How::Complete);
            } else if left == Some(0) {
                watch.when_dropped = How::Complete;
            }
        }
        Self { inner, watch, left, behind: None, has_ended }
    }

    /// The body itself, to be looked at.
    pub fn get_ref(&self) -> &B {
        &self.inner
    }
}

impl<B: Body + HasVerdict> HasVerdict for ObservedBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        self.inner.verdict()
    }
}

impl<B> Body for ObservedBody<B>
where
    B: Body<Error: 'static>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        if let Some(frame) = this.behind.take() {
            return Poll::Ready(Some(frame));
        }
        if *this.has_ended {
            return Poll::Ready(None);
        }
        let mut over = |how| {
            *this.has_ended = true;
            if let Some(watch) = this.watch.as_mut() {
                watch.over(how);
            }
        };
        let frame = match ready!(this.inner.as_mut().poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                over(How::Failed(outcome_in(&error)));
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                over(How::Complete);
                return Poll::Ready(None);
            }
        };
        if let (Some(left), Some(data)) = (this.left.as_mut(), frame.data_ref()) {
            *left = left.saturating_sub(data.remaining() as u64);
        }
        if this.inner.is_end_stream() {
            over(How::Complete);
        } else if *this.left == Some(0) {
            match this.inner.as_mut().poll_frame(cx) {
                Poll::Ready(None) => over(How::Complete),
                Poll::Ready(Some(Ok(behind))) => *this.behind = Some(Ok(behind)),
                Poll::Ready(Some(Err(error))) => {
                    over(How::Failed(outcome_in(&error)));
                    *this.behind = Some(Err(error));
                }
                Poll::Pending => {}
            }
            // All that was announced is handed on: who stops reading here has it.
            if let Some(watch) = this.watch.as_mut() {
                watch.when_dropped = How::Complete;
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.behind.is_none() && (self.has_ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Body> fmt::Debug for ObservedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedBody")
            .field("call", &self.watch.as_ref().map(CallWatch::id))
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}
