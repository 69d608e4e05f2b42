use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::body::{BodyEnd, BodyGuard, CallBody, Ended, JudgedBody};
use crate::error::Error;
use crate::trail::{Step, StopReason};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use serde_json::json;
use tower_gemini_core::call::{Call, Conversation, ModelPart};
use tower_gemini_core::scan::Scanner;
use tower_gemini_core::verdict::Outcome;
use tower_layer::Layer;
use tower_service::Service;

use super::ThoughtSignaturesLayer;
use super::policy::{Plan, backend_of, is_enforced, message, plan};
use super::store::Backend;
use crate::call_state::CallState;
use crate::headers::is_encoded;
use crate::optional::OptionalFuture;
use crate::refusal::Refusal;
use crate::stage::{CallService, UpstreamBody};

/// Gives the API back the thought signatures that it asks for. See the [module](super).
#[derive(Debug, Clone)]
pub struct ThoughtSignatures<S> {
    inner: S,
    settings: ThoughtSignaturesLayer,
}

impl<S: CallService> Layer<S> for ThoughtSignaturesLayer {
    type Service = ThoughtSignatures<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ThoughtSignatures { inner, settings: self.clone() }
    }
}

impl<S: CallService> Service<Request<CallBody>> for ThoughtSignatures<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        if self.settings.is_off {
            return OptionalFuture::off(self.inner.call(request));
        }
        let attempt = match sign(&self.settings, request) {
            Ok(request) => self.inner.call(request),
            Err(refusal) => return OptionalFuture::on(Box::pin(ready(Ok(*refusal)))),
        };
        let settings = self.settings.clone();
        OptionalFuture::on(Box::pin(async move {
            let mut response = attempt.await?;
            read_along(&mut response, settings);
            Ok(response)
        }))
    }
}

/// Has the signatures of a response remembered when all of it has come.
fn read_along<B: UpstreamBody>(
    response: &mut Response<JudgedBody<B>>,
    settings: ThoughtSignaturesLayer,
) {
    // By the call that was answered: a fallback further in may have sent it elsewhere.
    let call = response.body().call().clone();
    let is_read = settings.store.is_some()
        && response.status().is_success()
        && !is_encoded(response.headers());
    if let Some(backend) = backend_of(&call).filter(|_| is_read) {
        let scanner = Some(Scanner::judging(call.framing).keep_signatures(settings.keyer));
        response.body_mut().guard(Box::new(ReadAlong { scanner, backend, settings }));
    }
}

/// The request with the signatures that it lacks; the refusal where there are none for it.
fn sign<B: UpstreamBody>(
    settings: &ThoughtSignaturesLayer,
    request: Request<CallBody>,
) -> Result<Request<CallBody>, Box<Response<JudgedBody<B>>>> {
    let call = request.body().call().clone();
    let applies = call.multi_turn && !is_encoded(request.headers());
    // Read from one piece. Only the pieces that follow on a signature are then sent from the copy.
    let (Some(backend), Some(body)) =
        (backend_of(&call).filter(|_| applies), request.body().joined())
    else {
        return Ok(request);
    };
    let state = request.body().state();
    let conversation = Conversation::read(&body, &settings.keyer);
    let seen = |key| settings.with_store(|store| store.get(backend, key)).flatten();
    match plan(&conversation, settings.missing, is_enforced(&call, settings.strict_on_vertex), seen)
    {
        Plan::Send => Ok(request),
        Plan::Refuse { missing } => {
            state.record(Step::Stopped { why: StopReason::MissingSignature });
            Err(Box::new(refuse(&missing, call, state)))
        }
        Plan::Sign { signatures, restored, placeholders } => {
            state.record(Step::Signed { restored, placeholders });
            Ok(signed(request, &body, &signatures))
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

fn refuse<B: UpstreamBody>(
    missing: &[&ModelPart],
    call: Arc<Call>,
    state: &CallState,
) -> Response<JudgedBody<B>> {
    let (content, part) = missing.first().map_or((0, 0), |first| (first.content, first.part));
    tracing::debug!(content, part, "not sent: a thought signature is missing");
    let refusal = Refusal {
        status: StatusCode::BAD_REQUEST,
        word: "INVALID_ARGUMENT",
        message: message(missing),
        reason: "MISSING_THOUGHT_SIGNATURE",
        metadata: json!({ "contentPosition": content.to_string(), "partPosition": part.to_string() }),
        details: Vec::new(),
    };
    let verdict = refusal.verdict(Outcome::MissingThoughtSignature, None, false);
    refusal.into_response(verdict, call, state)
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
        // The turn of a broken response is not sent back.
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
