use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::body::{BodyEnd, BodyGuard, CallBody, Ended, JudgedBody};
use crate::error::Error;
use crate::trail::{Step, StopReason};
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use pin_project::pin_project;
use serde_json::json;
use tower_gemini_core::call::{Call, Conversation, ModelPart};
use tower_gemini_core::scan::Scanner;
use tower_gemini_core::verdict::{Detail, Outcome, Verdict};
use tower_service::Service;

use super::ThoughtSignaturesLayer;
use super::policy::{Plan, backend_of, is_enforced, message, plan};
use super::store::Backend;
use crate::call_state::CallState;
use crate::refusal::Refusal;
use crate::stage::{CallService, UpstreamBody};

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

impl<S: CallService> Service<Request<CallBody>> for ThoughtSignatures<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = ResponseFuture<S::Future, S::Upstream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        let state = match check(&self.settings, request) {
            Checked::Send(request) => State::Sent { inner: self.inner.call(*request) },
            Checked::Refuse { message, first, call, state } => {
                tracing::debug!(
                    content = first.0,
                    part = first.1,
                    "not sent: a thought signature is missing"
                );
                State::Refused { response: Some(Box::new(refuse(message, first, call, &state))) }
            }
        };
        ResponseFuture { state, settings: self.settings.clone() }
    }
}

enum Checked {
    /// Boxed, as requests are large.
    Send(Box<Request<CallBody>>),
    Refuse {
        message: String,
        first: (usize, usize),
        call: Arc<Call>,
        state: CallState,
    },
}

fn check(settings: &ThoughtSignaturesLayer, request: Request<CallBody>) -> Checked {
    if settings.is_off {
        return Checked::Send(Box::new(request));
    }
    let call = request.body().call().clone();
    let is_encoded =
        request.headers().get(CONTENT_ENCODING).is_some_and(|value| value != "identity");
    let (Some(backend), true, false) = (backend_of(&call), call.multi_turn, is_encoded) else {
        return Checked::Send(Box::new(request));
    };
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
            request.body().state().record(Step::Stopped { why: StopReason::MissingSignature });
            let first = missing.first().map_or((0, 0), |part| (part.content, part.part));
            Checked::Refuse {
                message: message(&missing),
                first,
                call,
                state: request.body().state().clone(),
            }
        }
        Plan::Sign { signatures, restored, placeholders } => {
            request.body().state().record(Step::Signed { restored, placeholders });
            Checked::Send(Box::new(signed(request, &body, &signatures)))
        }
    }
}

fn signed(
    request: Request<CallBody>,
    bytes: &Bytes,
    signatures: &[(&ModelPart, Bytes)],
) -> Request<CallBody> {
    let (mut parts, mut body) = request.into_parts();
    // The caller's length is of the body that was: under it hyper and reqwest alike truncate or
    // hang.
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(TRANSFER_ENCODING);
    body.replace_chunks(Conversation::sign(bytes, signatures));
    Request::from_parts(parts, body)
}

fn refuse<B>(
    message: String,
    first: (usize, usize),
    call: Arc<Call>,
    state: &CallState,
) -> Response<JudgedBody<B>>
where
    B: UpstreamBody,
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
    .into_response(verdict, call, state)
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

impl<F, B> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<JudgedBody<B>>, Error>>,
    B: UpstreamBody,
{
    type Output = Result<Response<JudgedBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProjection::Sent { inner } => {
                let mut response = ready!(inner.poll(cx))?;
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
