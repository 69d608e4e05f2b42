//! Refuses what may cost money while the state cannot be written: a crash would forget it.
//!
//! Stands below `KeepPaid`, so that what is stored is delivered all the same.

use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{Either, Ready, ready};
use http::{Request, StatusCode};
use serde_json::json;
use tower::Layer;
use tower_gemini::body::CallBody;
use tower_gemini::error::Error;
use tower_gemini::quota_guard::REFUSAL_DOMAIN;
use tower_gemini::verdict::{Detail, Outcome, Verdict};
use tower_service::Service;

use crate::state::State;

/// Makes [`StateGuard`] services.
#[derive(Debug, Clone)]
pub(crate) struct StateGuardLayer {
    pub(crate) state: State,
}

/// Passes calls on while the state can be written.
#[derive(Debug, Clone)]
pub(crate) struct StateGuard<S> {
    inner: S,
    state: State,
}

impl<S> Layer<S> for StateGuardLayer {
    type Service = StateGuard<S>;

    fn layer(&self, inner: S) -> Self::Service {
        StateGuard { inner, state: self.state.clone() }
    }
}

impl<S: Service<Request<CallBody>, Error = Error>> Service<Request<CallBody>> for StateGuard<S> {
    type Response = S::Response;
    type Error = Error;
    type Future = Either<S::Future, Ready<Result<S::Response, Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        match self.state.problem().filter(|_| request.body().call().generates()) {
            None => Either::Left(self.inner.call(request)),
            Some(problem) => Either::Right(ready(Err(refusal(&problem)))),
        }
    }
}

/// The `ErrorInfo.reason` of the refusal.
const REASON: &str = "STATE_NOT_WRITABLE";

fn refusal(problem: &str) -> Error {
    let message = format!(
        "This gateway cannot record what is paid for, so nothing was sent and nothing is charged: \
         {problem}."
    );
    let body = json!({ "error": {
        "code": 503,
        "message": message,
        "status": "UNAVAILABLE",
        "details": [{
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": REASON,
            "domain": REFUSAL_DOMAIN,
            "metadata": { "charge": "none" },
        }],
    }});
    let mut detail = Detail::default();
    detail.reason = Some(REASON.to_owned());
    detail.message = Some(message);
    let verdict = Verdict::refused_locally(Outcome::NotSent, None, false, detail);
    Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Bytes::from(body.to_string()), verdict)
}
