//! How an answer is told to its caller: as it is, without drafts, or in OpenAI's words.
//!
//! It stands below `KeepPaid`, so that what is counted as delivered, and what is kept, are the
//! bytes that the caller gets.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tower_gemini::Error;
use tower_gemini::body::CallBody;
use tower_gemini::body::HasVerdict;
use tower_gemini::call::Framing;
use tower_gemini::scan::StreamStripper;
use tower_gemini::verdict::Verdict;
use tower_service::Service;

use crate::answers::CHARGED;
use crate::openai::{Reply, StreamTranslator};
use crate::proxy::now_unix;

/// How an answer is told, in the extensions of its request. Without it, it is told as it is.
#[derive(Debug, Clone)]
pub(crate) enum Manner {
    /// A stream without its drafts.
    WithoutDrafts,
    /// In OpenAI's words.
    OpenAi(Reply),
}

/// Tells the answers of the service inside.
#[derive(Debug, Clone)]
pub(crate) struct Tell<S>(pub(crate) S);

type Telling<B> = Pin<Box<dyn Future<Output = Result<Response<Told<B>>, Error>> + Send>>;

impl<S, B> Service<Request<CallBody>> for Tell<S>
where
    S: Service<Request<CallBody>, Response = Response<B>, Error = Error, Future: Send + 'static>,
    B: Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static,
{
    type Response = Response<Told<B>>;
    type Error = Error;
    type Future = Telling<B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<CallBody>) -> Self::Future {
        let manner = request.extensions_mut().remove::<Manner>();
        let framing = request.body().call().framing;
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            match manner {
                None => Ok(answer.map(|body| Told(Inner::AsItIs(body)))),
                Some(manner) => tell(answer, manner, framing).await,
            }
        })
    }
}

async fn tell<B>(
    answer: Response<B>,
    manner: Manner,
    framing: Framing,
) -> Result<Response<Told<B>>, Error>
where
    B: Body<Data = Bytes, Error = Error> + HasVerdict + Unpin,
{
    let (mut parts, mut body) = answer.into_parts();
    let streams = parts.status.is_success() && framing != Framing::Whole;
    let change = match manner {
        Manner::WithoutDrafts if !streams => {
            return Ok(Response::from_parts(parts, Told(Inner::AsItIs(body))));
        }
        Manner::WithoutDrafts => Change::Stripping(StreamStripper::new(framing)),
        Manner::OpenAi(reply) if streams => {
            parts
                .headers
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            Change::Translating(Box::new(reply.streaming(now_unix())))
        }
        Manner::OpenAi(reply) => {
            // A body that breaks now has not been told of: this can still be an error.
            let mut chunks = Vec::new();
            while let Some(frame) = body.frame().await {
                chunks.extend(frame?.into_data());
            }
            let whole = if let [chunk] = &*chunks { chunk.clone() } else { chunks.concat().into() };
            let (status, told) = reply.whole(parts.status, &whole, now_unix());
            parts.status = status;
            parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(told.len()));
            let verdict = body.verdict().cloned().map(Box::new);
            return Ok(Response::from_parts(
                parts,
                Told(Inner::Whole { chunk: Some(told), verdict }),
            ));
        }
    };
    // A stale length would cut it short, or make the client wait for ever.
    parts.headers.remove(CONTENT_LENGTH);
    let changed = Changed { body, change, ready: VecDeque::new(), ended: false };
    Ok(Response::from_parts(parts, Told(Inner::Changed(changed))))
}

/// The body of a told answer.
pub(crate) struct Told<B>(Inner<B>);

enum Inner<B> {
    AsItIs(B),
    Whole { chunk: Option<Bytes>, verdict: Option<Box<Verdict>> },
    Changed(Changed<B>),
}

/// A stream that is changed on its way.
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
            // openai's clients raise what an event with an error says; a cut would be a connection
            // error, after which they send again.
            Self::Translating(translator) => Ok(translator.fail(CHARGED, &error.to_string())),
        }
    }
}

impl<B: HasVerdict> HasVerdict for Told<B> {
    fn verdict(&self) -> Option<&Verdict> {
        match &self.0 {
            Inner::AsItIs(body) => body.verdict(),
            Inner::Whole { verdict, .. } => verdict.as_deref(),
            Inner::Changed(changed) => changed.body.verdict(),
        }
    }
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for Told<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let changed = match &mut self.0 {
            Inner::AsItIs(body) => return Pin::new(body).poll_frame(cx),
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
            Inner::AsItIs(body) => body.is_end_stream(),
            Inner::Whole { chunk, .. } => chunk.is_none(),
            Inner::Changed(changed) => changed.ended && changed.ready.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::AsItIs(body) => body.size_hint(),
            Inner::Whole { chunk, .. } => {
                SizeHint::with_exact(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64))
            }
            Inner::Changed(_) => SizeHint::new(),
        }
    }
}
