//! Transforms responses for their callers: removes the drafts of a stream, or translates to
//! OpenAI's format.
//!
//! Stands below `KeepPaid`, so that what counts as delivered, and what is stored, are the bytes
//! that the caller gets.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tower::Layer;
use tower_gemini::body::CallBody;
use tower_gemini::body::HasVerdict;
use tower_gemini::call::Framing;
use tower_gemini::error::Error;
use tower_gemini::scan::StreamStripper;
use tower_gemini::verdict::Verdict;
use tower_gemini_openai::{ResponseTranslator, StreamTranslator};
use tower_service::Service;

use crate::buffer::{BufferedBody, buffer};
use crate::handler::now_unix;
use crate::responses::CHARGED;
use crate::wire;

/// What to do with a response, in the extensions of its request. Without it, nothing.
#[derive(Debug, Clone)]
pub(crate) enum Transform {
    /// Remove the drafts of a stream.
    StripDrafts,
    /// Translate to OpenAI's format.
    OpenAi(ResponseTranslator),
}

/// Buffers whole responses of the inner service where that is asked for, and transforms them.
#[derive(Debug, Clone)]
pub(crate) struct TransformResponses<S> {
    inner: S,
    buffer_up_to: Option<usize>,
}

/// Makes [`TransformResponses`] services.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransformLayer {
    pub(crate) buffer_up_to: Option<usize>,
}

impl<S> Layer<S> for TransformLayer {
    type Service = TransformResponses<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TransformResponses { inner, buffer_up_to: self.buffer_up_to }
    }
}

type ResponseFuture<B> =
    Pin<Box<dyn Future<Output = Result<Response<TransformedBody<B>>, Error>> + Send>>;

impl<S, B> Service<Request<CallBody>> for TransformResponses<S>
where
    S: Service<Request<CallBody>, Response = Response<B>, Error = Error, Future: Send + 'static>,
    B: Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static,
{
    type Response = Response<TransformedBody<BufferedBody<B>>>;
    type Error = Error;
    type Future = ResponseFuture<BufferedBody<B>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<CallBody>) -> Self::Future {
        let transform = request.extensions_mut().remove::<Transform>();
        let framing = request.body().call().framing;
        let (response, limit) = (self.inner.call(request), self.buffer_up_to);
        Box::pin(async move {
            let response = buffer(response.await?, limit).await?;
            match transform {
                None => Ok(response.map(|body| TransformedBody(Inner::Unchanged(body)))),
                Some(transform) => transformed(response, transform, framing).await,
            }
        })
    }
}

async fn transformed<B>(
    response: Response<B>,
    transform: Transform,
    framing: Framing,
) -> Result<Response<TransformedBody<B>>, Error>
where
    B: Body<Data = Bytes, Error = Error> + HasVerdict + Unpin,
{
    let (mut parts, mut body) = response.into_parts();
    let streams = parts.status.is_success() && framing != Framing::Whole;
    let change = match transform {
        Transform::StripDrafts if !streams => {
            return Ok(Response::from_parts(parts, TransformedBody(Inner::Unchanged(body))));
        }
        Transform::StripDrafts => Change::Stripping(StreamStripper::new(framing)),
        Transform::OpenAi(reply) if streams => {
            parts
                .headers
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            Change::Translating(Box::new(reply.stream(now_unix())))
        }
        Transform::OpenAi(reply) => {
            // No head is out: a body that breaks can still become an error.
            let mut chunks = Vec::new();
            while let Some(frame) = body.frame().await {
                chunks.extend(frame?.into_data());
            }
            let whole = if let [chunk] = &*chunks { chunk.clone() } else { chunks.concat().into() };
            let (status, translated) = reply.response(parts.status, &whole, now_unix());
            parts.status = status;
            wire::remove_body_headers(&mut parts.headers);
            parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(translated.len()));
            let verdict = body.verdict().cloned().map(Box::new);
            return Ok(Response::from_parts(
                parts,
                TransformedBody(Inner::Whole { chunk: Some(translated), verdict }),
            ));
        }
    };
    wire::remove_body_headers(&mut parts.headers);
    let changed = Changed { body, change, ready: VecDeque::new(), ended: false };
    Ok(Response::from_parts(parts, TransformedBody(Inner::Changed(changed))))
}

/// The body of a transformed response.
pub(crate) struct TransformedBody<B>(Inner<B>);

enum Inner<B> {
    Unchanged(B),
    Whole { chunk: Option<Bytes>, verdict: Option<Box<Verdict>> },
    Changed(Changed<B>),
}

/// A stream that is transformed on its way.
struct Changed<B> {
    body: B,
    change: Change,
    ready: VecDeque<Bytes>,
    ended: bool,
}

enum Change {
    Stripping(StreamStripper),
    Translating(Box<StreamTranslator>),
}

impl Change {
    fn push(&mut self, chunk: Bytes) -> Vec<Bytes> {
        match self {
            Self::Stripping(stripper) => stripper.push(chunk),
            Self::Translating(translator) => translator.push(&chunk),
        }
    }

    fn finish(&mut self) -> Vec<Bytes> {
        match self {
            Self::Stripping(stripper) => stripper.finish(),
            Self::Translating(translator) => translator.finish(),
        }
    }

    /// The stream broke off. `Err` cuts the connection.
    fn fail(&mut self, error: Error) -> Result<Vec<Bytes>, Error> {
        match self {
            Self::Stripping(_) => Err(error),
            // openai's clients raise the text of an error event; a cut would be a connection error,
            // after which they retry.
            Self::Translating(translator) => Ok(translator.fail(CHARGED, &error.to_string())),
        }
    }
}

impl<B: HasVerdict> HasVerdict for TransformedBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        match &self.0 {
            Inner::Unchanged(body) => body.verdict(),
            Inner::Whole { verdict, .. } => verdict.as_deref(),
            Inner::Changed(changed) => changed.body.verdict(),
        }
    }
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for TransformedBody<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let changed = match &mut self.0 {
            Inner::Unchanged(body) => return Pin::new(body).poll_frame(cx),
            Inner::Whole { chunk, .. } => {
                return Poll::Ready(chunk.take().map(|chunk| Ok(Frame::data(chunk))));
            }
            Inner::Changed(changed) => changed,
        };
        loop {
            while let Some(chunk) = changed.ready.pop_front() {
                if !chunk.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(chunk))));
                }
            }
            if changed.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut changed.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(chunk) = frame.into_data() {
                        changed.ready.extend(changed.change.push(chunk));
                    }
                }
                Some(Err(error)) => {
                    changed.ended = true;
                    changed.ready.extend(changed.change.fail(error)?);
                }
                None => {
                    changed.ended = true;
                    changed.ready.extend(changed.change.finish());
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Unchanged(body) => body.is_end_stream(),
            Inner::Whole { chunk, .. } => chunk.is_none(),
            Inner::Changed(changed) => changed.ended && changed.ready.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Unchanged(body) => body.size_hint(),
            Inner::Whole { chunk, .. } => {
                SizeHint::with_exact(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64))
            }
            Inner::Changed(_) => SizeHint::new(),
        }
    }
}
