//! What failed calls leave to their clients' own resends: a resend goes on where the call stopped.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tower_gemini_core::verdict::{Outcome, Verdict, WaitHint, WaitSource};

use super::RetryState;
use crate::body::{JudgedBody, RequestTemplate};
use crate::identity::{self, ResponseFormat};
use crate::refusal::{Refusal, retry_info, whole_seconds};
use crate::stage::UpstreamBody;
use crate::trail::WaitReason;
use http::{Response, StatusCode};

/// As many failed calls as any plausible fleet resends within the window; some hundred bytes each.
const MAX_KNOWN: usize = 4096;
/// Ours: who is told to wait longer than an hour is no client that resends by itself.
const LONGEST: Duration = Duration::from_secs(3600);

/// Calls that failed a moment ago, by a keyed hash of request and caller.
#[derive(Debug)]
pub(super) struct Resends {
    window: Duration,
    random: RandomState,
    known: Mutex<HashMap<u64, Failed>>,
}

/// A call that failed, was surely not charged, and may be sent again.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) retries: RetryState,
    /// No attempt before this, and why.
    pub(super) not_before: (Instant, WaitReason),
    pub(super) outcome: Outcome,
    pub(super) another_model_helps: bool,
    forgotten_at: Instant,
}

impl Resends {
    /// `None` where resends are calls of their own.
    pub(super) fn within(window: Duration) -> Option<Self> {
        let (random, known) = (RandomState::new(), Mutex::default());
        (!window.is_zero()).then_some(Self { window, random, known })
    }

    pub(super) fn window(&self) -> Duration {
        self.window
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, Failed>> {
        // Every change is one insertion or removal.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The call that this request resends. While nothing fails, nothing is hashed.
    pub(super) fn find(&self, request: &RequestTemplate) -> Option<Failed> {
        if self.known().is_empty() || !request.call().generates() {
            return None;
        }
        let key = self.key(request);
        let failed = self.known().get(&key).cloned();
        failed.filter(|failed| failed.forgotten_at > Instant::now())
    }

    /// Its resends go on from here, after `wait`.
    pub(super) fn remember(
        &self,
        request: &RequestTemplate,
        retries: RetryState,
        verdict: &Verdict,
        (wait, why): (Duration, WaitReason),
    ) {
        if !request.call().generates() {
            return;
        }
        let now = Instant::now();
        let not_before = now + wait.min(LONGEST);
        let failed = Failed {
            retries,
            not_before: (not_before, why),
            outcome: verdict.outcome(),
            another_model_helps: verdict.another_model_helps(),
            forgotten_at: not_before + self.window,
        };
        let key = self.key(request);
        let mut known = self.known();
        if known.len() >= MAX_KNOWN {
            known.retain(|_, failed| failed.forgotten_at > now);
        }
        if known.len() < MAX_KNOWN || known.contains_key(&key) {
            known.insert(key, failed);
        }
    }

    /// It succeeded, or may have been charged: others decide what a resend gets.
    pub(super) fn forget(&self, request: &RequestTemplate) {
        if !self.known().is_empty() {
            let key = self.key(request);
            self.known().remove(&key);
        }
    }

    fn key(&self, request: &RequestTemplate) -> u64 {
        let (mut hash, parts) = (self.random.build_hasher(), request.parts());
        let head = (&parts.uri, &parts.headers, &parts.extensions);
        identity::caller(head, |bytes| bytes.hash(&mut hash));
        identity::head(&parts.method, &parts.uri, |bytes| bytes.hash(&mut hash));
        ResponseFormat::of(&parts.extensions).hash(&mut hash);
        request.chunks().iter().for_each(|chunk| hash.write(chunk));
        hash.finish()
    }
}

impl Failed {
    /// The response to a resend that comes too early and cannot wait that long.
    pub(super) fn refuse<B: UpstreamBody>(
        &self,
        request: &RequestTemplate,
        wait: Duration,
    ) -> Response<JudgedBody<B>> {
        let wait = whole_seconds(wait);
        let seconds = wait.as_secs();
        let (status, word) = match self.outcome {
            Outcome::RateLimited | Outcome::RateLimitedMinute | Outcome::SpendRateLimited => {
                (StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED")
            }
            _ => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        };
        let refusal = Refusal {
            status,
            word,
            message: format!(
                "Not sent: the same request has just failed ({}) and is due again in {seconds} s. \
                 Please retry in {seconds}s.",
                self.outcome.as_str()
            ),
            reason: "RETRIED_TOO_EARLY",
            metadata: Value::Null,
            details: vec![retry_info(wait)],
        };
        let hint = WaitHint::new(wait, WaitSource::RetryAfter);
        let verdict = refusal.verdict(self.outcome, Some(hint), self.another_model_helps);
        refusal.into_response(verdict.not_retried(), request.call().clone(), request.state())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use http::Request;
    use http_body_util::{BodyExt, Full};
    use tower_gemini_core::call::{Call, Verb};
    use tower_gemini_core::verdict::Detail;

    use super::*;
    use crate::CallOptions;
    use crate::body::CallBody;
    use crate::call_state::CallState;

    fn request(key: &str, prompt: &str) -> RequestTemplate {
        let mut call = Call::unrecognised();
        call.verb = Verb::Generate;
        let state = CallState::new(CallOptions::new());
        let chunks = [Bytes::copy_from_slice(prompt.as_bytes())];
        let request = Request::post("/v1beta/models/m:generateContent")
            .header("x-goog-api-key", key)
            .body(CallBody::whole(chunks, None, Arc::new(call), state));
        RequestTemplate::new(&request.unwrap()).unwrap()
    }

    fn overloaded() -> Verdict {
        Verdict::refused_locally(Outcome::Overloaded, None, true, Detail::default())
    }

    fn remember(resends: &Resends, request: &RequestTemplate) {
        let wait = (Duration::from_secs(10), WaitReason::Backoff);
        resends.remember(request, RetryState::new(), &overloaded(), wait);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_same_request_of_the_same_caller_within_the_window_is_a_resend() {
        let resends = Resends::within(Duration::from_secs(60)).unwrap();
        remember(&resends, &request("ann", "a cat"));
        assert!(resends.find(&request("ann", "a cat")).is_some());
        assert!(resends.find(&request("ben", "a cat")).is_none());
        assert!(resends.find(&request("ann", "a dog")).is_none());
        tokio::time::advance(Duration::from_secs(70)).await;
        assert!(resends.find(&request("ann", "a cat")).is_none(), "it is a call of its own");
        remember(&resends, &request("ann", "a cat"));
        resends.forget(&request("ann", "a cat"));
        assert!(resends.find(&request("ann", "a cat")).is_none(), "it succeeded");
        assert!(Resends::within(Duration::ZERO).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_are_remembered_than_there_is_room_for() {
        let resends = Resends::within(Duration::from_secs(60)).unwrap();
        for n in 0..MAX_KNOWN + 10 {
            remember(&resends, &request("ann", &n.to_string()));
        }
        assert_eq!(resends.known().len(), MAX_KNOWN);
        tokio::time::advance(Duration::from_secs(70)).await;
        remember(&resends, &request("ann", "one more"));
        assert_eq!(resends.known().len(), 1, "those that are over make room");
    }

    #[tokio::test]
    async fn a_resend_that_comes_too_early_is_told_when_it_is_due() {
        let resends = Resends::within(Duration::from_secs(60)).unwrap();
        let request = request("ann", "a cat");
        remember(&resends, &request);
        let failed = resends.find(&request).unwrap();
        let wait = Duration::from_millis(8_200);
        let response: Response<JudgedBody<Full<Bytes>>> = failed.refuse(&request, wait);
        let verdict = response.body().verdict().clone();
        assert_eq!((response.status().as_u16(), verdict.is_retryable()), (503, false));
        assert!(verdict.charge().is_surely_free() && verdict.another_model_helps());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("due again in 9 s. Please retry in 9s."), "{text}");
    }
}
