use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tower_gemini_core::scan::strip_drafts;
use tower_gemini_core::verdict::{Outcome, Verdict};
use tower_layer::Layer;
use tower_service::Service;

use crate::body::{CallBody, HasVerdict, JudgedBody, and_held};
use crate::call_memory::CallMemory;
use crate::error::{BoxError, Error};
use crate::headers::{for_changed_body, for_rebuilt_body};
use crate::stage::CallService;

/// Makes [`FinalImageJson`] services.
#[derive(Debug, Clone, Copy)]
pub struct FinalImageJsonLayer {
    max_held_bytes: usize,
}

impl FinalImageJsonLayer {
    /// Leaves drafts out of responses of up to 128 MiB: more than twice the 54 MB of a 4K image with
    /// two drafts (measured 2026-11).
    #[must_use]
    pub fn new() -> Self {
        Self { max_held_bytes: 128 * 1024 * 1024 }
    }

    /// How much of a response is held. A longer one, and one for which the call's
    /// [`CallMemory`] has no room, passes as it is, with its drafts: it was charged.
    #[must_use]
    pub fn max_held_bytes(mut self, bytes: usize) -> Self {
        self.max_held_bytes = bytes;
        self
    }
}

impl Default for FinalImageJsonLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: CallService> Layer<S> for FinalImageJsonLayer {
    type Service = FinalImageJson<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FinalImageJson { inner, max_held_bytes: self.max_held_bytes }
    }
}

/// Gives the API's own JSON without the drafts: every image part but the final one is cut out, and
/// nothing else is touched. Signatures, text and part order stay as the server spelled them.
///
/// Which image is final is known only at the end, so a response with images is held whole, a stream
/// too. Responses with an error status, refusals and responses without an image pass unchanged. A
/// response that is not complete is an error, with its charge.
#[derive(Debug, Clone)]
pub struct FinalImageJson<S> {
    inner: S,
    max_held_bytes: usize,
}

crate::access::inner_access!(FinalImageJson);

impl<S: CallService> Service<Request<CallBody>> for FinalImageJson<S> {
    type Response = Response<StrippedBody<S::Upstream>>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        let memory = request.body().state().memory().cloned();
        let future = self.inner.call(request);
        let max_held_bytes = self.max_held_bytes;
        Box::pin(async move { strip(future.await?, max_held_bytes, memory).await })
    }
}

async fn strip<B>(
    response: Response<JudgedBody<B>>,
    max_held_bytes: usize,
    memory: Option<Arc<dyn CallMemory>>,
) -> Result<Response<StrippedBody<B>>, Error>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    let (mut parts, mut body) = response.into_parts();
    let trail = body.trail().clone();
    parts.extensions.insert(trail.clone());
    if !parts.status.is_success() || body.verdict().outcome() != Outcome::Image {
        return Ok(Response::from_parts(parts, StrippedBody::passing(Vec::new(), body)));
    }
    body.find_drafts();
    let (mut chunks, mut trailers, mut answer, mut held) = (Vec::new(), None, None, 0_usize);
    while let Some(frame) = poll_fn(|cx| body.poll_answer(cx, &mut answer)).await {
        match frame.map_err(|error| error.with_trail(trail.clone()))?.into_data() {
            Ok(chunk) => {
                held = held.saturating_add(chunk.len());
                chunks.push(chunk);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        let has_room = match &memory {
            Some(memory) => memory.try_hold(held) || memory.clone().hold(held).await,
            None => true,
        };
        if held > max_held_bytes || !has_room {
            return Ok(Response::from_parts(parts, StrippedBody::passing(chunks, body)));
        }
    }
    let length = |chunks: &[Bytes]| Some(chunks.iter().map(|chunk| chunk.len() as u64).sum());
    let chunks = match &answer {
        Some(answer) => {
            let chunks = strip_drafts(chunks, answer);
            for_changed_body(&mut parts.headers, length(&chunks));
            chunks
        }
        None => {
            for_rebuilt_body(&mut parts.headers, length(&chunks));
            chunks
        }
    };
    let verdict = Box::new(body.verdict().clone());
    let rest = Rest::Held { trailers, verdict };
    Ok(Response::from_parts(parts, StrippedBody { chunks: chunks.into(), rest }))
}

/// The body of [`FinalImageJson`]'s responses.
pub struct StrippedBody<B> {
    chunks: VecDeque<Bytes>,
    rest: Rest<B>,
}

/// What follows the chunks.
enum Rest<B> {
    Held {
        trailers: Option<http::HeaderMap>,
        verdict: Box<Verdict>,
    },
    /// The rest of a response that is passed on: there is nothing to strip, or it is too long to
    /// be held.
    Passing(Box<JudgedBody<B>>),
}

impl<B> StrippedBody<B> {
    fn passing(chunks: Vec<Bytes>, body: JudgedBody<B>) -> Self {
        Self { chunks: chunks.into(), rest: Rest::Passing(Box::new(body)) }
    }

    /// What the response means, as far as is known.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        match &self.rest {
            Rest::Held { verdict, .. } => verdict,
            Rest::Passing(body) => body.verdict(),
        }
    }
}

impl<B> HasVerdict for StrippedBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        Some(self.verdict())
    }
}

impl<B> Body for StrippedBody<B>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if let Some(chunk) = this.chunks.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match &mut this.rest {
            Rest::Held { trailers, .. } => {
                Poll::Ready(trailers.take().map(Frame::trailers).map(Ok))
            }
            Rest::Passing(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        let rest_ended = match &self.rest {
            Rest::Held { trailers, .. } => trailers.is_none(),
            Rest::Passing(body) => body.is_end_stream(),
        };
        self.chunks.is_empty() && rest_ended
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Rest::Held { .. } => SizeHint::with_exact(0),
            Rest::Passing(body) => body.size_hint(),
        };
        and_held(rest, self.chunks.iter().map(|chunk| chunk.len() as u64).sum())
    }
}

impl<B> fmt::Debug for StrippedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StrippedBody").field("chunks", &self.chunks.len()).finish_non_exhaustive()
    }
}
