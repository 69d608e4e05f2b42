use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use pin_project::pin_project;
use tokio::time::{Instant, sleep_until};
use tower_gemini_core::body::{JudgedBody, KeptRequest, ReplayBody};
use tower_gemini_core::context::Allowance;
use tower_gemini_core::error::{Error, TimeLimit};
use tower_gemini_core::trail::Step;
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use super::{Decision, RetryOverride, RetryPolicy, RetryState, Situation};
use crate::judged::{JudgedService, ReplayRequest, judged};
use crate::ready::take_ready;
use crate::timer::Timer;

/// Retries what was surely not paid for. See the [module](super).
#[derive(Debug, Clone)]
pub struct JitteredRetry<S> {
    inner: S,
    policy: Arc<RetryPolicy>,
    random: Arc<Mutex<fastrand::Rng>>,
}

impl<S> JitteredRetry<S> {
    pub(super) fn new(inner: S, policy: Arc<RetryPolicy>, random: Arc<Mutex<fastrand::Rng>>) -> Self {
        Self { inner, policy, random }
    }
}

impl<S, R> Service<R> for JitteredRetry<S>
where
    R: ReplayRequest,
    S: JudgedService<Future: Send, Upstream: Send> + Clone + Send + 'static,
{
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let inner = take_ready(&mut self.inner);
        let request = request.into_request();
        let policy = match request.extensions().get::<RetryOverride>() {
            Some(other) => other.over(&self.policy),
            None => self.policy.clone(),
        };
        Box::pin(retry(inner, policy, self.random.clone(), request))
    }
}

async fn retry<S>(
    mut inner: S,
    policy: Arc<RetryPolicy>,
    random: Arc<Mutex<fastrand::Rng>>,
    mut request: Request<ReplayBody>,
) -> Result<Response<JudgedBody<S::Upstream>>, Error>
where
    S: JudgedService,
{
    let started = Instant::now();
    let context = request.body_mut().context_mut();
    if let (Some(within), None) = (policy.call_deadline(), context.deadline()) {
        context.limit_deadline((started + within).into_std());
    }
    context.set_allowance_if_unset(Allowance::of(policy.default_allowance()));
    let context = context.clone();
    let call = request.body().call().clone();
    let allowance = context.allowance().cloned().unwrap_or_default();
    let kept = KeptRequest::of(&request);
    let mut state = RetryState::new();
    if context.deadline().is_some_and(|deadline| Instant::from_std(deadline) <= started) {
        let error = Error::timeout(TimeLimit::Deadline, Duration::ZERO, Verdict::not_sent());
        return Err(error.with_trail(context.trail().clone()));
    }
    loop {
        let attempt = judged(inner.call(request));
        let result = Within { attempt, timer: context.deadline().map(|at| Timer::at(Instant::from_std(at))) }.await;
        let result = result.unwrap_or_else(|_| {
            let limit = context.deadline().map_or(Duration::ZERO, |at| Instant::from_std(at) - started);
            Err(Error::timeout(TimeLimit::Deadline, limit, Verdict::interrupted()).with_trail(context.trail().clone()))
        });
        if Verdict::of_result(&result).outcome().is_success() {
            // Nothing to decide: no clock and no dice are asked.
            policy.succeeded();
            return result;
        }
        let now = Situation {
            call: &call,
            verdict: Verdict::of_result(&result),
            allowance: &allowance,
            now: Instant::now().into_std(),
            started: started.into_std(),
            deadline: context.deadline(),
            replayable: kept.is_ok(),
            unit: unit(&random),
        };
        let (wait, why, permit) = match policy.next(&mut state, &now) {
            Decision::Stop(why) => {
                if let Some(why) = why {
                    tracing::debug!(outcome = %now.verdict.outcome(), charge = %now.verdict.charge(), why = why.as_str(), "not sent again");
                    context.trail().push(Step::Stopped { why });
                }
                return result;
            }
            Decision::Resend { wait, why, permit } => (wait, why, permit),
        };
        let Ok(kept) = &kept else {
            // The policy stops a call that was not kept before it gives leave to send it again.
            return result;
        };
        tracing::debug!(
            model = call.model.as_ref().map(tower_gemini_core::call::ModelId::as_str),
            attempt = state.attempts() + 1,
            outcome = %now.verdict.outcome(),
            charge = %now.verdict.charge(),
            delay_ms = wait.as_millis(),
            "waiting to send again"
        );
        // The answer is dropped before the wait: it holds a connection, and what it holds for its caller nobody will read.
        drop(result);
        context.trail().push(Step::Waited { delay: wait, why });
        sleep_until(Instant::now() + wait).await;
        std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
        request = kept.again(permit);
    }
}

/// An attempt that is given up at the call's deadline, for stacks without an `AttemptTimeout`. An answer that is there at that
/// moment wins.
#[pin_project]
struct Within<F> {
    #[pin]
    attempt: F,
    timer: Option<Timer>,
}

struct TooLate;

impl<F: Future> Future for Within<F> {
    type Output = Result<F::Output, TooLate>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(answer) = this.attempt.poll(cx) {
            return Poll::Ready(Ok(answer));
        }
        match this.timer.as_mut().map(|timer| timer.poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(TooLate)),
            _ => Poll::Pending,
        }
    }
}

fn unit(random: &Mutex<fastrand::Rng>) -> f64 {
    // A generator is never left half-way through a draw.
    random.lock().unwrap_or_else(PoisonError::into_inner).f64()
}
