//! Keeps a distance between attempts.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tower_gemini_core::verdict::{Outcome, WaitHint, WaitSource};
use tower_layer::Layer;
use tower_service::Service;

use crate::body::{AttemptBody, JudgedBody};
use crate::error::Error;
use crate::optional::OptionalFuture;
use crate::ready::take_ready;
use crate::refusal::{Refusal, retry_info, whole_seconds};
use crate::stage::AttemptService;
use crate::trail::{Step, WaitReason};

/// Makes [`Pacing`] services that keep one distance together.
///
/// ```
/// use std::time::Duration;
/// use tower_gemini::{GeminiStack, PacingLayer};
///
/// // 1 s and up to half a second more.
/// let stack = GeminiStack::new().attempt_layer(PacingLayer::new(Duration::from_secs(1)));
/// # let _ = stack;
/// ```
#[derive(Debug, Clone)]
pub struct PacingLayer {
    interval: Duration,
    jitter: Duration,
    next: Arc<Mutex<Option<Instant>>>,
}

impl PacingLayer {
    /// Lets this time pass between the starts of two attempts, and up to half as much more at
    /// random: what an operators' guide to 429s (2026-02) advises, with 1 s, to avoid most of them.
    /// Zero passes every attempt on at once.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval, jitter: interval / 2, next: Arc::default() }
    }

    /// Sets the longest random addition.
    #[must_use]
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// When an attempt may start; `Err` where that is not before the deadline: it takes no turn.
    fn turn(&self, now: Instant, deadline: Option<Instant>) -> Result<Instant, Duration> {
        // A panic in another holder leaves a time.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = next.map_or(now, |next| next.max(now));
        if deadline.is_some_and(|deadline| at >= deadline) {
            return Err(at.saturating_duration_since(now));
        }
        *next = at.checked_add(self.interval.saturating_add(self.jitter.mul_f64(fastrand::f64())));
        Ok(at)
    }
}

impl<S: AttemptService> Layer<S> for PacingLayer {
    type Service = Pacing<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Pacing { inner, layer: self.clone() }
    }
}

/// Starts attempts one after the other, in the order in which they come, with a distance between
/// them. Made by [`PacingLayer`].
///
/// # Order
///
/// Above Spending and QuotaGuard, so that an attempt that waits for its turn holds neither: it is
/// the layer for [`GeminiStack::attempt_layer`](crate::GeminiStack::attempt_layer).
///
/// # Errors
///
/// An attempt whose turn would come after the call's deadline is not sent: it gets a 429 with
/// `MIN_INTERVAL` and the wait. Otherwise the inner service's own.
///
/// # Cancel safety
///
/// A call that is dropped while it waits leaves its turn unused.
#[derive(Debug, Clone)]
pub struct Pacing<S> {
    inner: S,
    layer: PacingLayer,
}

crate::access::inner_access!(Pacing);

impl<S: AttemptService> Service<Request<AttemptBody>> for Pacing<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<AttemptBody>) -> Self::Future {
        let body = request.body();
        if self.layer.interval.is_zero() || !body.call().generates() {
            return OptionalFuture::off(self.inner.call(request));
        }
        let now = Instant::now();
        let state = body.state().clone();
        let at = match self.layer.turn(now, body.deadline()) {
            Ok(at) if at <= now => return OptionalFuture::off(self.inner.call(request)),
            Ok(at) => at,
            Err(wait) => {
                let call = body.call().clone();
                let refusal = refusal(wait);
                let hint = WaitHint::new(wait, WaitSource::QuotaResetDelay);
                let verdict = refusal.verdict(Outcome::RateLimited, Some(hint), true);
                let response = refusal.into_response(verdict.not_retried(), call, &state);
                return OptionalFuture::on(Box::pin(std::future::ready(Ok(response))));
            }
        };
        state.record(Step::Waited { delay: at - now, why: WaitReason::Pacing });
        let mut inner = take_ready(&mut self.inner);
        OptionalFuture::on(Box::pin(async move {
            sleep_until(at).await;
            inner.call(request).await
        }))
    }
}

fn refusal(wait: Duration) -> Refusal<'static> {
    let wait = whole_seconds(wait);
    Refusal {
        status: StatusCode::TOO_MANY_REQUESTS,
        word: "RESOURCE_EXHAUSTED",
        message: format!(
            "Not sent: other calls are before this one, which keep a distance, and its turn comes \
             after its deadline. Please retry in {}s.",
            wait.as_secs()
        ),
        reason: "MIN_INTERVAL",
        metadata: Value::Null,
        details: vec![retry_info(wait)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::future::join_all;
    use http_body_util::Full;
    use tower::ServiceExt;

    use crate::{CallOptions, GeminiStack, JitteredRetryLayer, WireBody};

    fn request(deadline: Duration) -> Request<String> {
        let uri = "/v1beta/models/gemini-3-pro-image:generateContent";
        let mut request = Request::post(uri)
            .body(r#"{"contents":[{"parts":[{"text":"x"}]}]}"#.to_owned())
            .unwrap();
        request.extensions_mut().insert(CallOptions::new().deadline(deadline));
        request
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_keep_their_distance_and_one_whose_turn_comes_too_late_takes_none() {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let times = sent.clone();
        let client = tower::service_fn(move |_: Request<WireBody>| {
            times.lock().unwrap().push(Instant::now());
            let body = Full::new(Bytes::from_static(b"{}"));
            std::future::ready(Ok::<_, std::io::Error>(
                Response::builder().status(400).body(body).unwrap(),
            ))
        });
        let second = Duration::from_secs(1);
        let stack = GeminiStack::new()
            .retry(JitteredRetryLayer::off())
            .attempt_layer(PacingLayer::new(second))
            .raw(client);
        // The last one has no time for its turn.
        let deadlines = [60, 60, 60, 2, 60].map(|seconds| seconds * second);
        let calls = deadlines.map(|deadline| stack.clone().oneshot(request(deadline)));
        let statuses: Vec<_> = join_all(calls)
            .await
            .into_iter()
            .map(|answer| answer.unwrap().status().as_u16())
            .collect();
        assert_eq!(statuses, [400, 400, 400, 429, 400]);
        let sent = sent.lock().unwrap();
        let gaps: Vec<_> = sent.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps.len(), 3);
        for gap in gaps {
            assert!(gap >= second && gap <= second * 3 / 2 + Duration::from_millis(2), "{gap:?}");
        }
    }
}
