use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tower_gemini_core::scan::{Scanner, strip_drafts};
use tower_gemini_core::verdict::{Outcome, Verdict};
use tower_layer::Layer;
use tower_service::Service;

use crate::body::{CallBody, HasVerdict, JudgedBody};
use crate::error::{BoxError, Error};
use crate::headers::{for_changed_body, for_rebuilt_body};
use crate::stage::CallService;

/// Makes [`FinalImageJson`] services.
#[derive(Debug, Clone, Copy)]
pub struct FinalImageJsonLayer {
    max_held_bytes: usize,
}

impl FinalImageJsonLayer {
    /// Leaves drafts out of answers of up to 128 MiB: more than twice the 54 MB of a 4K image with
    /// two drafts (measured 2026-11).
    #[must_use]
    pub fn new() -> Self {
        Self { max_held_bytes: 128 * 1024 * 1024 }
    }

    /// How much of an answer is held. A longer one passes as it is, with its drafts: it was paid
    /// for.
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
/// Which image is final is known only at the end, so an answer with images is held whole, a stream
/// too. Answers with an error status, refusals and answers without an image pass unchanged. An
/// answer that is not whole is an error, with its charge.
#[derive(Debug, Clone)]
pub struct FinalImageJson<S> {
    inner: S,
    max_held_bytes: usize,
}

impl<S: CallService> Service<Request<CallBody>> for FinalImageJson<S> {
    type Response = Response<StrippedBody<S::Upstream>>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        let future = self.inner.call(request);
        let max_held_bytes = self.max_held_bytes;
        Box::pin(async move { strip(future.await?, max_held_bytes).await })
    }
}

async fn strip<B>(
    response: Response<JudgedBody<B>>,
    max_held_bytes: usize,
) -> Result<Response<StrippedBody<B>>, Error>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    let (mut parts, mut body) = response.into_parts();
    let trail = body.trail().clone();
    parts.extensions.insert(trail.clone());
    if !parts.status.is_success() || body.verdict().outcome() != Outcome::Image {
        return Ok(Response::from_parts(parts, StrippedBody(Inner::Passing(Box::new(body)))));
    }
    let call = body.call();
    let scanner = Scanner::judging(call.framing).unmarked_drafts(call.makes_drafts());
    body.scan_with(scanner);
    let (mut chunks, mut trailers, mut answer, mut held) = (Vec::new(), None, None, 0_usize);
    while let Some(frame) = poll_fn(|cx| body.poll_answer(cx, &mut answer)).await {
        match frame.map_err(|error| error.with_trail(trail.clone()))?.into_data() {
            Ok(chunk) => {
                held = held.saturating_add(chunk.len());
                chunks.push(chunk);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if held > max_held_bytes {
            let body = StrippedBody(Inner::TooLong { chunks: chunks.into(), body: Box::new(body) });
            return Ok(Response::from_parts(parts, body));
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
    Ok(Response::from_parts(
        parts,
        StrippedBody(Inner::Held { chunks: chunks.into(), trailers, verdict }),
    ))
}

/// The body of [`FinalImageJson`]'s answers.
pub struct StrippedBody<B>(Inner<B>);

enum Inner<B> {
    Held {
        chunks: VecDeque<Bytes>,
        trailers: Option<http::HeaderMap>,
        verdict: Box<Verdict>,
    },
    Passing(Box<JudgedBody<B>>),
    /// What was held of an answer that is too long to be held, and its rest.
    TooLong {
        chunks: VecDeque<Bytes>,
        body: Box<JudgedBody<B>>,
    },
}

impl<B> StrippedBody<B> {
    /// What the answer means, as far as is known.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        match &self.0 {
            Inner::Held { verdict, .. } => verdict,
            Inner::Passing(body) | Inner::TooLong { body, .. } => body.verdict(),
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
        match &mut self.get_mut().0 {
            Inner::Held { chunks, trailers, .. } => Poll::Ready(match chunks.pop_front() {
                Some(chunk) => Some(Ok(Frame::data(chunk))),
                None => trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
            }),
            Inner::Passing(body) => Pin::new(body).poll_frame(cx),
            Inner::TooLong { chunks, body } => match chunks.pop_front() {
                Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
                None => Pin::new(body).poll_frame(cx),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Held { chunks, trailers, .. } => chunks.is_empty() && trailers.is_none(),
            Inner::Passing(body) => body.is_end_stream(),
            Inner::TooLong { chunks, body } => chunks.is_empty() && body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Held { chunks, .. } => {
                SizeHint::with_exact(chunks.iter().map(|chunk| chunk.len() as u64).sum())
            }
            Inner::Passing(body) => body.size_hint(),
            Inner::TooLong { .. } => SizeHint::new(),
        }
    }
}

impl<B> fmt::Debug for StrippedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Held { chunks, .. } => {
                f.debug_struct("StrippedBody").field("chunks", &chunks.len()).finish()
            }
            Inner::Passing(body) | Inner::TooLong { body, .. } => {
                f.debug_tuple("StrippedBody").field(body).finish()
            }
        }
    }
}
