use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::header::{ACCEPT_ENCODING, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body;
use pin_project::pin_project;
use tokio::time::Instant;
use tower_gemini_core::body::{
    BodyEnd, BodyGuard, Ended, JudgedBody, Peek, PeekLimits, ReplayBody,
};
use tower_gemini_core::call::Call;
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::context::CallContext;
use tower_gemini_core::cost;
use tower_gemini_core::error::{BoxError, Error};
use tower_gemini_core::scan::Usage;
use tower_gemini_core::trail::AttemptId;
use tower_gemini_core::verdict::{Outcome, Verdict};
use tower_service::Service;

use super::ClassifyGeminiErrorLayer;
use super::evidence::Evidence;

/// Judges the answers of a client. See the [module](super).
#[derive(Debug, Clone)]
pub struct ClassifyGeminiError<S> {
    inner: S,
    settings: ClassifyGeminiErrorLayer,
}

impl<S> ClassifyGeminiError<S> {
    pub(super) fn new(inner: S, settings: ClassifyGeminiErrorLayer) -> Self {
        Self { inner, settings }
    }
}

impl<S, ReqBody, B> Service<Request<ReqBody>> for ClassifyGeminiError<S>
where
    S: Service<Request<ReqBody>, Response = Response<B>, Error: Into<BoxError>>,
    ReqBody: 'static,
    B: Body<Error: Into<BoxError>> + Unpin,
{
    type Response = Response<JudgedBody<B>>;
    type Error = Error;
    type Future = ResponseFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // Nothing has been sent while a client only says that it is not ready.
        self.inner
            .poll_ready(cx)
            .map_err(|error| Error::transport(error.into(), Verdict::not_sent()))
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let call = ReplayBody::call_of(&request);
        let context = ReplayBody::context_of(&request);
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let id = context.trail().begin_attempt(call.model.clone(), call.size);
        match ReplayBody::of_mut(&mut request).filter(|body| body.tells_whether_it_is_out()) {
            Some(body) => body.sent_by(id.clone()),
            None => id.count_as_sent(),
        }
        let attempt = AttemptLog {
            id,
            started: Instant::now(),
            status: None,
            call,
            context,
            catalog: self.settings.catalog.clone(),
            ended: false,
            closed: false,
        };
        ResponseFuture {
            step: Step::Sent { future: self.inner.call(request) },
            attempt: Some(attempt),
            limits: self.settings.limits,
            evidence: self.settings.evidence,
        }
    }
}

/// The future of [`ClassifyGeminiError`].
#[pin_project]
pub struct ResponseFuture<F, B> {
    #[pin]
    step: Step<F, B>,
    /// Taken when the verdict is known. Dropped before that, the trail keeps the attempt as cut off
    /// and maybe charged.
    attempt: Option<AttemptLog>,
    limits: PeekLimits,
    evidence: Evidence,
}

#[pin_project(project = StepProjection)]
#[allow(
    clippy::large_enum_variant,
    reason = "it lives in a future that is moved once; a box would be one more allocation for each attempt"
)]
enum Step<F, B> {
    Sent {
        #[pin]
        future: F,
    },
    Peeking {
        head: Option<http::response::Parts>,
        peek: Option<Peek>,
        body: Option<B>,
    },
}

impl<F, B> fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("call", &self.attempt.as_ref().map(|attempt| &attempt.call))
            .finish_non_exhaustive()
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Error: Into<BoxError>> + Unpin,
{
    type Output = Result<Response<JudgedBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.step.as_mut().project() {
                StepProjection::Sent { future } => match ready!(future.poll(cx)) {
                    Ok(response) => {
                        let (head, body) = response.into_parts();
                        let peek = this.attempt.as_mut().map(|attempt| {
                            attempt.status = Some(head.status);
                            Peek::new(attempt.call.clone(), &head, *this.limits)
                        });
                        this.step.set(Step::Peeking { head: Some(head), peek, body: Some(body) });
                    }
                    Err(error) => {
                        let error = error.into();
                        let verdict = match this.attempt {
                            _ if (this.evidence)(&*error) => Verdict::not_sent(),
                            // A server that was never given the whole request cannot have worked on
                            // it.
                            Some(attempt) => attempt.id.cut_off(),
                            None => Verdict::interrupted(),
                        };
                        let mut error = Error::transport(error, verdict);
                        if let Some(mut attempt) = this.attempt.take() {
                            attempt.end(error.verdict(), None);
                            error = error.with_trail(attempt.context.trail().clone());
                        }
                        return Poll::Ready(Err(error));
                    }
                },
                StepProjection::Peeking { head, peek, body } => {
                    let mut failed = None;
                    let mut ended = false;
                    if let (Some(peek), Some(body)) = (peek.as_mut(), body.as_mut()) {
                        while peek.wants_more() {
                            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                                Some(Ok(frame)) => {
                                    // Trailers of an answer this short carry nothing that a verdict
                                    // needs.
                                    if let Ok(mut data) = frame.into_data() {
                                        peek.push(data.copy_to_bytes(data.remaining()));
                                    }
                                }
                                Some(Err(error)) => {
                                    failed = Some(error.into());
                                    break;
                                }
                                None => {
                                    ended = true;
                                    break;
                                }
                            }
                        }
                        ended = ended || (failed.is_none() && body.is_end_stream());
                    }
                    let (Some(head), Some(peek), Some(body), Some(attempt)) =
                        (head.take(), peek.take(), body.take(), this.attempt.take())
                    else {
                        // Polled after it was ready: a fault of the caller that must not bring the
                        // process down.
                        return Poll::Pending;
                    };
                    return Poll::Ready(judge(head, peek, body, failed, ended, attempt));
                }
            }
        }
    }
}

fn judge<B>(
    head: http::response::Parts,
    peek: Peek,
    body: B,
    failed: Option<BoxError>,
    ended: bool,
    mut attempt: AttemptLog,
) -> Result<Response<JudgedBody<B>>, Error>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    let success = head.status.is_success();
    if let (Some(error), true) = (&failed, success) {
        tracing::debug!(error = %tower_gemini_core::redact::redact(&error.to_string()), "the answer broke off while it was peeked");
    }
    let body = match failed {
        // A 2xx that broke off: nobody can say whether the image was made.
        Some(error) if success => {
            let error = Error::transport(error, Verdict::interrupted());
            attempt.end(error.verdict(), None);
            return Err(error.with_trail(attempt.context.trail().clone()));
        }
        // The status of an error says enough; its body ends as the upstream's did.
        Some(error) => {
            let decided = peek.decide(&head.headers, true);
            let verdict = decided.verdict().clone();
            JudgedBody::failed(
                decided,
                Error::transport(error, verdict),
                attempt.call.clone(),
                attempt.context.clone(),
            )
        }
        None => {
            let decided = peek.decide(&head.headers, ended);
            JudgedBody::new(
                decided,
                (!ended).then_some(body),
                attempt.call.clone(),
                attempt.context.clone(),
            )
        }
    };
    let mut body = body;
    let verdict = body.verdict();
    // Written now as it is known now; the body's end says more where there is more to come.
    attempt.end(verdict, body.usage());
    attempt.count(body.images());
    // Of an answer that is all here the end has nothing to add.
    if body.is_open() {
        body.guard(Box::new(attempt));
    }
    Ok(Response::from_parts(head, body))
}

/// Writes an attempt's end into the trail: at the head, and once more when the body has ended.
/// Dropped before either, it was cut off: maybe charged.
#[derive(Debug)]
struct AttemptLog {
    ended: bool,
    /// Those who read along have been told.
    closed: bool,
    id: AttemptId,
    started: Instant,
    status: Option<StatusCode>,
    call: Arc<Call>,
    context: CallContext,
    catalog: Option<Arc<Catalog>>,
}

impl AttemptLog {
    fn end(&mut self, verdict: &Verdict, usage: Option<&Usage>) {
        self.ended = true;
        let catalog = self.catalog.as_deref().unwrap_or_else(|| Catalog::builtin());
        let cost = cost::cost_of(catalog, &self.call, verdict, usage);
        self.id.end(
            self.status.map(|status| status.as_u16()),
            verdict,
            cost,
            self.started.elapsed(),
        );
    }
}

impl AttemptLog {
    fn count(&self, images: Option<u32>) {
        // An answer to a call that asks for no image has nothing to count.
        if let Some(images) = images.filter(|&images| images > 0) {
            self.id.count_images(images);
        }
    }

    fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.id.close();
        }
    }
}

impl Drop for AttemptLog {
    fn drop(&mut self) {
        if !self.ended {
            let verdict = self.id.cut_off();
            self.end(&verdict, None);
        }
        self.close();
    }
}

impl BodyGuard for AttemptLog {
    fn on_end(&mut self, end: &BodyEnd<'_>) {
        // An image that nobody read to its end is as paid for as before; only what was read says
        // more.
        if end.how != Ended::Dropped || end.verdict.outcome() != Outcome::Image {
            self.end(end.verdict, end.usage);
        }
        self.count(end.images);
        self.close();
    }
}
