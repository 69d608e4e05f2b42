use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use pin_project::pin_project;
use serde_json::json;
use tower_gemini_core::body::{BodyEnd, BodyGuard, Ended, JudgedBody, ReplayBody};
use tower_gemini_core::call::{Call, Conversation, ModelPart};
use tower_gemini_core::context::CallContext;
use tower_gemini_core::error::{BoxError, Error};
use tower_gemini_core::scan::Scanner;
use tower_gemini_core::trail::Step;
use tower_gemini_core::verdict::{Detail, Outcome, Verdict};
use tower_service::Service;

use super::ThoughtSignaturesLayer;
use super::policy::{Plan, backend_of, is_enforced, message, plan};
use super::store::Backend;
use crate::judged::{JudgedResponse, JudgedService, ReplayRequest};
use crate::refusal::Refusal;

/// Gives the API back the thought signatures that it asks for. See the [module](super).
#[derive(Debug, Clone)]
pub struct ThoughtSignatures<S> {
    inner: S,
    settings: ThoughtSignaturesLayer,
}

impl<S> ThoughtSignatures<S> {
    pub(super) fn new(inner: S, settings: ThoughtSignaturesLayer) -> Self {
        Self { inner, settings }
    }
}

impl<S, R> Service<R> for ThoughtSignatures<S>
where
    R: ReplayRequest,
    S: JudgedService,
{
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = ResponseFuture<S::Future, S::Upstream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let state = match check(&self.settings, request.into_request()) {
            Checked::Send(request) => State::Sent { inner: self.inner.call(*request) },
            Checked::Refuse { message, first, call, context } => {
                tracing::debug!(
                    content = first.0,
                    part = first.1,
                    "not sent: a thought signature is missing"
                );
                State::Refused { response: Some(Box::new(refuse(message, first, call, context))) }
            }
        };
        ResponseFuture { state, settings: self.settings.clone() }
    }
}

enum Checked {
    /// Boxed, as requests are large.
    Send(Box<Request<ReplayBody>>),
    Refuse {
        message: String,
        first: (usize, usize),
        call: Arc<Call>,
        context: CallContext,
    },
}

fn check(settings: &ThoughtSignaturesLayer, request: Request<ReplayBody>) -> Checked {
    let call = request.body().call().clone();
    let is_encoded =
        request.headers().get(CONTENT_ENCODING).is_some_and(|value| value != "identity");
    let (Some(backend), true, false) = (backend_of(&call), call.multi_turn, is_encoded) else {
        return Checked::Send(Box::new(request));
    };
    // Taken only where they are needed: who has them may send them.
    let Some(chunks) = request.body().chunks() else {
        return Checked::Send(Box::new(request));
    };
    let body = match chunks {
        [one] => one.clone(),
        // Read from one piece. Only the pieces that follow on a signature are then sent from the
        // copy.
        many => many.concat().into(),
    };
    let conversation = Conversation::read(&body, &settings.keyer);
    let seen = |key| settings.with_store(|store| store.get(backend, key)).flatten();
    match plan(&conversation, settings.missing, is_enforced(&call, settings.strict_on_vertex), seen)
    {
        Plan::Send => Checked::Send(Box::new(request)),
        Plan::Refuse { missing } => {
            let first = missing.first().map_or((0, 0), |part| (part.content, part.part));
            Checked::Refuse {
                message: message(&missing),
                first,
                call,
                context: request.body().context().clone(),
            }
        }
        Plan::Sign { signatures, restored, placeholders } => {
            request.body().context().trail().push(Step::Signed { restored, placeholders });
            Checked::Send(Box::new(signed(request, &body, &signatures)))
        }
    }
}

fn signed(
    request: Request<ReplayBody>,
    bytes: &Bytes,
    signatures: &[(&ModelPart, Bytes)],
) -> Request<ReplayBody> {
    let (mut parts, body) = request.into_parts();
    let body = match body.with_chunks(Conversation::sign(bytes, signatures)) {
        Ok(body) => {
            // The caller's length is of the body that was: under it hyper and reqwest alike
            // truncate or hang.
            parts.headers.remove(CONTENT_LENGTH);
            parts.headers.remove(TRANSFER_ENCODING);
            body
        }
        Err(body) => *body,
    };
    Request::from_parts(parts, body)
}

fn refuse<B>(
    message: String,
    first: (usize, usize),
    call: Arc<Call>,
    context: CallContext,
) -> Response<JudgedBody<B>>
where
    B: http_body::Body<Error: Into<BoxError>> + Unpin,
{
    let mut detail = Detail::default();
    detail.reason = Some("MISSING_THOUGHT_SIGNATURE".to_owned());
    detail.message = Some(message.clone());
    let verdict = Verdict::refused_locally(Outcome::MissingThoughtSignature, None, false, detail);
    Refusal {
        status: StatusCode::BAD_REQUEST,
        word: "INVALID_ARGUMENT",
        message,
        reason: "MISSING_THOUGHT_SIGNATURE",
        metadata: json!({ "contentPosition": first.0.to_string(), "partPosition": first.1.to_string() }),
        details: Vec::new(),
    }
    .into_response(verdict, call, context)
}

/// Reads along with an answer and remembers its signatures when all of it has come.
struct ReadAlong {
    scanner: Option<Scanner>,
    backend: Backend,
    settings: ThoughtSignaturesLayer,
}

impl BodyGuard for ReadAlong {
    fn on_data(&mut self, data: &Bytes) {
        if let Some(scanner) = &mut self.scanner {
            if scanner.feed(data).is_err() {
                self.scanner = None;
            }
        }
    }

    fn on_end(&mut self, end: &BodyEnd<'_>) {
        // Of a broken answer nobody sends a turn back.
        let Some(scanner) = self.scanner.take().filter(|_| end.how == Ended::Complete) else {
            return;
        };
        if let Ok(answer) = scanner.finish() {
            self.settings.with_store(|store| {
                for part in answer.signatures {
                    store.put(self.backend, part.part, part.signature);
                }
            });
        }
    }
}

/// The future of [`ThoughtSignatures`].
#[pin_project]
pub struct ResponseFuture<F, B> {
    #[pin]
    state: State<F, B>,
    settings: ThoughtSignaturesLayer,
}

#[pin_project(project = StateProjection)]
enum State<F, B> {
    Sent {
        #[pin]
        inner: F,
    },
    Refused {
        // Boxed: it is rare, and large.
        response: Option<Box<Response<JudgedBody<B>>>>,
    },
}

impl<F, B> fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Sent { .. } => "sent",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}

impl<F, R> Future for ResponseFuture<F, R::Upstream>
where
    F: Future<Output = Result<R, Error>>,
    R: JudgedResponse,
{
    type Output = Result<Response<JudgedBody<R::Upstream>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProjection::Sent { inner } => {
                let mut response = ready!(inner.poll(cx))?.into_response();
                // By the call that was answered: a fallback further in may have sent it elsewhere.
                let call = response.body().call().clone();
                let is_encoded = response
                    .headers()
                    .get(CONTENT_ENCODING)
                    .is_some_and(|value| value != "identity");
                if let (Some(backend), true, true, false) = (
                    backend_of(&call),
                    response.status().is_success(),
                    this.settings.store.is_some(),
                    is_encoded,
                ) {
                    let scanner =
                        Scanner::judging(call.framing).keep_signatures(this.settings.keyer);
                    response.body_mut().guard(Box::new(ReadAlong {
                        scanner: Some(scanner),
                        backend,
                        settings: this.settings.clone(),
                    }));
                }
                Poll::Ready(Ok(response))
            }
            StateProjection::Refused { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(*response)),
                // Polled after it was ready: a fault of the caller that must not bring the process
                // down.
                None => Poll::Pending,
            },
        }
    }
}
