use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::body::{AttemptBody, BodyGuard, JudgedBody};
use crate::call_state::{Attempt, Place};
use crate::error::{Error, TimeLimit};
use http::header::{HeaderName, HeaderValue};
use http::{Request, Response};
use tokio::time::Instant;
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use super::limits::{Limits, slot};
use crate::stage::{AttemptService, UpstreamBody};
use crate::timer::Timer;

static X_SERVER_TIMEOUT: HeaderName = HeaderName::from_static("x-server-timeout");

/// Ends attempts in time. See the [module](super).
#[derive(Debug, Clone)]
pub struct AttemptTimeout<S> {
    inner: S,
    limits: Limits,
    /// What nearly every attempt tells the server, written once.
    told: Arc<[HeaderValue; 5]>,
}

crate::access::inner_access!(AttemptTimeout);

impl<S> AttemptTimeout<S> {
    pub(super) fn new(inner: S, limits: Limits) -> Self {
        Self { inner, limits, told: Arc::new(limits.told()) }
    }
}

type ResponseFuture<B> =
    Pin<Box<dyn Future<Output = Result<Response<JudgedBody<B>>, Error>> + Send>>;

impl<S: AttemptService> Service<Request<AttemptBody>> for AttemptTimeout<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = ResponseFuture<S::Upstream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<AttemptBody>) -> Self::Future {
        let attempt = request.body().attempt().clone();
        request.body().state().pass(Place::AttemptTimeout);
        let slot = slot(request.body().call());
        let stated: Option<u64> = request
            .headers()
            .get(&X_SERVER_TIMEOUT)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let usual = self.limits.attempt(slot);
        // A client that leaves early gets the response of its attempt when it asks again.
        let finishes = request.body().state().finishes_attempts();
        let stated = stated.filter(|&stated| !finishes || Duration::from_secs(stated) > usual);
        let mut limit = self.limits.of(request.body().call(), stated.map(Duration::from_secs));
        let mut what = TimeLimit::Attempt;
        let now = Instant::now();
        if let Some(deadline) = request.body().attempt_deadline() {
            let left = deadline.saturating_duration_since(now);
            if left < limit {
                (limit, what) = (left, TimeLimit::Deadline);
            }
        }
        let told = match self.told.get(slot) {
            Some(told) if stated.is_none() && limit == usual => told.clone(),
            _ => HeaderValue::from(self.limits.server_seconds(limit, stated)),
        };
        request.headers_mut().insert(X_SERVER_TIMEOUT.clone(), told);
        let limit = Limit { timer: Timer::after(now, limit), limit, what, idle: self.limits.idle };
        Box::pin(limit.end_in_time(self.inner.call(request), attempt))
    }
}

/// How long one attempt may take.
struct Limit {
    timer: Timer,
    limit: Duration,
    what: TimeLimit,
    idle: Option<Duration>,
}

impl Limit {
    async fn end_in_time<B: UpstreamBody>(
        mut self,
        response: impl Future<Output = Result<Response<JudgedBody<B>>, Error>>,
        attempt: Attempt,
    ) -> Result<Response<JudgedBody<B>>, Error> {
        let response = pin!(response);
        tokio::select! {
            // The response first: one that is there at the last moment is worth more than the limit.
            biased;
            response = response => {
                let mut response = response?;
                if response.body().is_open() {
                    let Self { timer, limit, what, idle } = self;
                    let idle = idle.map(Idle::new);
                    response.body_mut().guard(Box::new(TimeGuard { timer, limit, what, idle }));
                }
                Ok(response)
            }
            () = poll_fn(|cx| self.timer.poll(cx)) => {
                let verdict = attempt.cut_off();
                tracing::debug!(
                    limit_ms = self.limit.as_millis(),
                    outcome = verdict.outcome().as_str(),
                    charge = verdict.charge().as_str(),
                    "attempt timed out"
                );
                let error = Error::timeout(self.what, self.limit, verdict);
                Err(error.with_trail(attempt.state().trail().clone()))
            }
        }
    }
}

/// Ends a body that takes too long, as a whole or between two chunks.
struct TimeGuard {
    timer: Timer,
    limit: Duration,
    what: TimeLimit,
    idle: Option<Idle>,
}

struct Idle {
    limit: Duration,
    timer: Option<Timer>,
    /// Since when upstream has had nothing to give. A reader who is slow himself is not timed.
    waiting_since: Option<Instant>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: None, waiting_since: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let timer = self.timer.get_or_insert_with(|| Timer::after(since, self.limit));
        timer.restart(since, self.limit);
        timer.poll(cx)
    }
}

impl BodyGuard for TimeGuard {
    fn poll_stop(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if self.timer.poll(cx).is_ready() {
            return Poll::Ready(Error::timeout(self.what, self.limit, Verdict::interrupted()));
        }
        if let Some(idle) = &mut self.idle {
            if idle.poll(cx).is_ready() {
                let verdict = Verdict::interrupted();
                return Poll::Ready(Error::timeout(TimeLimit::Idle, idle.limit, verdict));
            }
        }
        Poll::Pending
    }

    fn on_chunk(&mut self, _bytes: usize) {
        if let Some(idle) = &mut self.idle {
            idle.waiting_since = None;
        }
    }
}
