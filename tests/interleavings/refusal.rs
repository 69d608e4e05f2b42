//! Stands in for requests that are sent again, and for responses of the library's own.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::Value;
use tower_gemini_core::call::Call;
use tower_gemini_core::verdict::{Outcome, Verdict, WaitHint};

use crate::call_state::CallState;

pub(crate) struct JudgedBody<B>(PhantomData<B>);

pub(crate) trait UpstreamBody {}

#[derive(Debug)]
pub(crate) struct RequestTemplate {
    pub(crate) parts: Parts,
    pub(crate) call: Arc<Call>,
    pub(crate) state: CallState,
}

impl RequestTemplate {
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) fn call(&self) -> &Arc<Call> {
        &self.call
    }

    pub(crate) fn state(&self) -> &CallState {
        &self.state
    }
}

pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) word: &'static str,
    pub(crate) message: String,
    pub(crate) reason: &'static str,
    pub(crate) metadata: Value,
    pub(crate) details: Vec<Value>,
}

impl Refusal {
    pub(crate) fn verdict(&self, _: Outcome, _: Option<WaitHint>, _: bool) -> Verdict {
        Verdict::not_sent()
    }

    pub(crate) fn into_response<B>(
        self,
        _: Verdict,
        _: Arc<Call>,
        _: &CallState,
    ) -> Response<JudgedBody<B>> {
        Response::new(JudgedBody(PhantomData))
    }
}

pub(crate) fn retry_info(_: Duration) -> Value {
    Value::Null
}

pub(crate) fn whole_seconds(wait: Duration) -> Duration {
    wait
}
