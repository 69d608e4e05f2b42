use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use pin_project::pin_project;
use tokio::time::{Instant, sleep_until};
use tower_gemini_core::call::Call;
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use super::{Decision, RetryPolicy, RetryState, Situation};
use crate::body::{CallBody, JudgedBody, RequestTemplate, verdict_of};
use crate::call_state::CallState;
use crate::error::{Error, TimeLimit};
use crate::stage::AttemptService;
use crate::timer::Timer;
use crate::trail::{Step as TrailStep, StopReason};

/// Retries what was surely not paid for. See the [module](super).
#[derive(Debug, Clone)]
pub struct JitteredRetry<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// What all services of one layer share, beside the policy's own budget.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) policy: RetryPolicy,
    pub(super) random: Mutex<fastrand::Rng>,
}

impl<S> JitteredRetry<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }
}

impl<S: AttemptService> Service<Request<CallBody>> for JitteredRetry<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = ResponseFuture<S, S::Future, S::Upstream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        let started = Instant::now();
        let body = request.body();
        let (call, state) = (body.call().clone(), body.state().clone());
        let override_policy = body.retry().over(&self.shared.policy).map(Arc::new);
        let policy = override_policy.as_deref().unwrap_or(&self.shared.policy);
        if let Some(within) = policy.call_deadline() {
            state.default_deadline(within);
        }
        state.default_allowance(policy.default_allowance());
        if state.deadline().is_some_and(|deadline| deadline <= started) {
            let error = Error::timeout(TimeLimit::Deadline, Duration::ZERO, Verdict::not_sent());
            return ResponseFuture {
                step: Step::TooLate(Some(error.with_trail(state.trail().clone()))),
            };
        }
        let sent = Sent {
            template: RequestTemplate::new(&request),
            call,
            state,
            started,
            shared: self.shared.clone(),
            override_policy,
            // Not ready yet: it is asked before it is sent anything.
            inner: self.inner.clone(),
        };
        let attempt = self.inner.call(request.map(CallBody::into_attempt));
        let attempt = sent.within_deadline(attempt);
        ResponseFuture { step: Step::First { attempt, sent: Some(sent) } }
    }
}

/// The future of [`JitteredRetry`].
#[pin_project]
pub struct ResponseFuture<S, F, B> {
    #[pin]
    step: Step<S, F, B>,
}

#[pin_project(project = StepProjection)]
#[allow(
    clippy::large_enum_variant,
    reason = "the larger one is the usual one: a box is what it is there to save"
)]
enum Step<S, F, B> {
    /// The deadline had passed before anything was sent.
    TooLate(Option<Error>),
    /// Most calls end here, and allocate nothing for what might have followed.
    First {
        #[pin]
        attempt: Within<F>,
        sent: Option<Sent<S>>,
    },
    Retrying(BoxFuture<B>),
}

type Answer<B> = Result<Response<JudgedBody<B>>, Error>;
type BoxFuture<B> = Pin<Box<dyn Future<Output = Answer<B>> + Send>>;

impl<S, F, B> fmt::Debug for ResponseFuture<S, F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S: AttemptService> Future for ResponseFuture<S, S::Future, S::Upstream> {
    type Output = Answer<S::Upstream>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut step = self.project().step;
        loop {
            match step.as_mut().project() {
                StepProjection::TooLate(error) => {
                    return error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)));
                }
                StepProjection::First { attempt, sent } => {
                    let answer = ready!(attempt.poll(cx));
                    // Polled after it was ready: a fault of the caller that must not bring the
                    // process down.
                    let Some(sent) = sent.take() else { return Poll::Pending };
                    let answer = sent.answer(answer);
                    if verdict_of(&answer).outcome().is_success() {
                        // Nothing to decide: neither clock nor dice are asked.
                        sent.policy().succeeded();
                        return Poll::Ready(answer);
                    }
                    step.set(Step::Retrying(Box::pin(retry(sent, answer))));
                }
                StepProjection::Retrying(future) => return future.as_mut().poll(cx),
            }
        }
    }
}

/// A call that has been sent once.
struct Sent<S> {
    /// `None` where the request was too large to hold, and can be sent once.
    template: Option<RequestTemplate>,
    call: Arc<Call>,
    state: CallState,
    started: Instant,
    shared: Arc<Shared>,
    /// In place of the layer's policy, where a layer outside brought one.
    override_policy: Option<Arc<RetryPolicy>>,
    inner: S,
}

/// Makes further attempts for as long as the policy says so.
async fn retry<S>(mut sent: Sent<S>, mut result: Answer<S::Upstream>) -> Answer<S::Upstream>
where
    S: AttemptService,
{
    let mut retries = RetryState::new();
    let state = sent.state.clone();
    loop {
        let verdict = verdict_of(&result);
        let now = Situation {
            call: &sent.call,
            verdict,
            allowance: state.allowance_left(),
            now: Instant::now().into_std(),
            started: sent.started.into_std(),
            deadline: state.deadline().map(Instant::into_std),
            replayable: sent.template.is_some(),
            random: random(&sent.shared.random),
        };
        let stop = match sent.policy().next(&mut retries, &now) {
            Decision::Stop(why) => why,
            Decision::Resend { wait, why } => match (&sent.template, state.permit_after(verdict)) {
                (Some(template), Some(permit)) => {
                    // Dropped before the wait: it holds a connection, and nobody will read it.
                    drop(result);
                    state.record(TrailStep::Waited { delay: wait, why });
                    sleep_until(Instant::now() + wait).await;
                    std::future::poll_fn(|cx| sent.inner.poll_ready(cx)).await?;
                    let request = template.again(permit).map(CallBody::into_attempt);
                    let attempt = sent.inner.call(request);
                    let answer = sent.within_deadline(attempt).await;
                    result = sent.answer(answer);
                    continue;
                }
                // The policy asks for both before it lets a call be sent again.
                _ => Some(StopReason::MaybeCharged),
            },
        };
        if let Some(why) = stop {
            state.record(TrailStep::Stopped { why });
        }
        return result;
    }
}

impl<S> Sent<S> {
    fn policy(&self) -> &RetryPolicy {
        self.override_policy.as_deref().unwrap_or(&self.shared.policy)
    }

    fn within_deadline<F: Future>(&self, attempt: F) -> Within<F> {
        Within { attempt, timer: self.state.deadline().map(Timer::at) }
    }

    fn answer<B>(&self, answer: Result<Answer<B>, TooLate>) -> Answer<B> {
        answer.unwrap_or_else(|TooLate| {
            let deadline = self.state.deadline().unwrap_or(self.started);
            let limit = deadline - self.started;
            let error = Error::timeout(TimeLimit::Deadline, limit, self.state.cut_off());
            Err(error.with_trail(self.state.trail().clone()))
        })
    }
}

/// An attempt that is given up at the call's deadline, for stacks without an `AttemptTimeout`. An
/// answer that is there at that moment wins.
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

fn random(random: &Mutex<fastrand::Rng>) -> f64 {
    // A generator is never left half-way through a draw.
    random.lock().unwrap_or_else(PoisonError::into_inner).f64()
}
