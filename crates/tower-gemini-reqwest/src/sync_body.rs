use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// A body that may be shared between threads, as `reqwest::Body::wrap` demands of bodies.
///
/// A body that was too large to hold, and the bodies of other people's layers, are only `Send`. The
/// lock is never waited for: reading has the body to itself, and the two questions below are asked
/// by who reads it.
pub(crate) struct SyncBody<B>(Mutex<B>);

impl<B> SyncBody<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<tower_gemini::error::BoxError>,
{
    /// The body as one of reqwest's, polled through: each chunk is asked for when reqwest asks for
    /// it, and not before.
    pub(crate) fn wrap(body: B) -> reqwest::Body {
        reqwest::Body::wrap(Self(Mutex::new(body)))
    }
}

impl<B: Body + Unpin> Body for SyncBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(self.get_mut().0.get_mut().unwrap_or_else(PoisonError::into_inner)).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

// The content of a `Mutex` is moved freely, so the body behind it is never pinned where it lies.
impl<B> Unpin for SyncBody<B> {}
