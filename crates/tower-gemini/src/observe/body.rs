use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tower_gemini_core::verdict::Verdict;

use super::outcome::HowEnded;
use super::watch::CallWatch;
use crate::body::HasVerdict;

/// Observes a response's body to its end and passes its frames through.
// The inner body comes before the watch and is dropped first, so that what it knows is in the trail
// before the call is reported.
#[pin_project]
pub struct ObservedBody<B: Body> {
    #[pin]
    inner: B,
    watch: Option<CallWatch>,
    /// Bytes still to come, if the body states its exact length.
    left: Option<u64>,
    /// What followed the last byte. It is read with that byte, because servers that send a length
    /// do not poll again, and then neither the response's usage nor its end would be known.
    behind: Option<Result<Frame<B::Data>, B::Error>>,
    has_ended: bool,
}

impl<B: Body> ObservedBody<B> {
    pub(super) fn new(inner: B, mut watch: Option<CallWatch>) -> Self {
        let left = inner.size_hint().exact();
        let has_ended = inner.is_end_stream();
        if let Some(watch) = &mut watch {
            if has_ended {
                watch.end(HowEnded::Complete);
            } else if left == Some(0) {
                watch.when_dropped = HowEnded::Complete;
            }
        }
        Self { inner, watch, left, behind: None, has_ended }
    }

    /// Returns the inner body.
    pub fn get_ref(&self) -> &B {
        &self.inner
    }

    /// Returns the inner body; the call counts as ended as far as its body was read.
    pub fn into_inner(self) -> B {
        self.inner
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
        let mut end = |how| {
            *this.has_ended = true;
            if let Some(watch) = this.watch.as_mut() {
                watch.end(how);
            }
        };
        let frame = match ready!(this.inner.as_mut().poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                end(HowEnded::failed(&error));
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                end(HowEnded::Complete);
                return Poll::Ready(None);
            }
        };
        if let (Some(left), Some(data)) = (this.left.as_mut(), frame.data_ref()) {
            *left = left.saturating_sub(data.remaining() as u64);
        }
        if this.inner.is_end_stream() {
            end(HowEnded::Complete);
        } else if *this.left == Some(0) {
            match this.inner.as_mut().poll_frame(cx) {
                Poll::Ready(None) => end(HowEnded::Complete),
                Poll::Ready(Some(Ok(behind))) => *this.behind = Some(Ok(behind)),
                Poll::Ready(Some(Err(error))) => {
                    end(HowEnded::failed(&error));
                    *this.behind = Some(Err(error));
                }
                Poll::Pending => {}
            }
            // Everything announced has been passed on: a client that stops reading here has it all.
            if let Some(watch) = this.watch.as_mut() {
                watch.when_dropped = HowEnded::Complete;
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
            .field("watch", &self.watch)
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}
