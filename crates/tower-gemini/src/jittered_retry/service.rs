use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Response;
use pin_project::pin_project;
use tokio::time::{Instant, sleep_until};
use tower_gemini_core::body::{JudgedBody, KeptRequest, NotReplayable};
use tower_gemini_core::call::Call;
use tower_gemini_core::context::{Allowance, CallContext};
use tower_gemini_core::error::{Error, TimeLimit};
use tower_gemini_core::trail;
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use super::{Decision, RetryOverride, RetryPolicy, RetryState, Situation};
use crate::judged::{JudgedFuture, JudgedResponse, JudgedService, ReplayRequest, judged};
use crate::timer::Timer;

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

impl<S, R> Service<R> for JitteredRetry<S>
where
    R: ReplayRequest,
    S: JudgedService<Future: Send, Upstream: Send> + Clone + Send + 'static,
{
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = ResponseFuture<S, S::Future, S::Upstream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let mut request = request.into_request();
        let started = Instant::now();
        let other = request
            .extensions()
            .get::<RetryOverride>()
            .map(|other| Arc::new(other.over(&self.shared.policy)));
        let policy = other.as_deref().unwrap_or(&self.shared.policy);
        let context = request.body_mut().context_mut();
        if let (Some(within), None) = (policy.call_deadline(), context.deadline()) {
            context.limit_deadline((started + within).into_std());
        }
        context.set_allowance_if_unset(Allowance::of(policy.default_allowance()));
        if context.deadline().is_some_and(|deadline| Instant::from_std(deadline) <= started) {
            let error = Error::timeout(TimeLimit::Deadline, Duration::ZERO, Verdict::not_sent());
            return ResponseFuture {
                step: Step::TooLate(Some(error.with_trail(context.trail().clone()))),
            };
        }
        let call = Sent {
            kept: KeptRequest::of(&request).map_err(|NotReplayable| {
                let body = request.body();
                (body.call().clone(), body.context().clone())
            }),
            started,
            shared: self.shared.clone(),
            other,
            // Not ready yet: it is asked before it is sent anything.
            inner: self.inner.clone(),
        };
        let attempt = call.within_deadline(self.inner.call(request));
        ResponseFuture { step: Step::First { attempt, call: Some(call) } }
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
        attempt: Within<JudgedFuture<F>>,
        call: Option<Sent<S>>,
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

impl<S> Future for ResponseFuture<S, S::Future, S::Upstream>
where
    S: JudgedService<Future: Send, Upstream: Send> + Send + 'static,
{
    type Output = Answer<S::Upstream>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut step = self.project().step;
        loop {
            match step.as_mut().project() {
                StepProjection::TooLate(error) => {
                    return error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)));
                }
                StepProjection::First { attempt, call } => {
                    let answer = ready!(attempt.poll(cx));
                    // Polled after it was ready: a fault of the caller that must not bring the
                    // process down.
                    let Some(call) = call.take() else { return Poll::Pending };
                    let answer = call.answer(answer);
                    if Verdict::of_result(&answer).outcome().is_success() {
                        // Nothing to decide: neither clock nor dice are asked.
                        call.policy().succeeded();
                        return Poll::Ready(answer);
                    }
                    step.set(Step::Retrying(Box::pin(retry(call, answer))));
                }
                StepProjection::Retrying(future) => return future.as_mut().poll(cx),
            }
        }
    }
}

/// A call that has been sent once.
struct Sent<S> {
    /// The request, or what it was for where it is not replayable.
    kept: Result<KeptRequest, (Arc<Call>, CallContext)>,
    started: Instant,
    shared: Arc<Shared>,
    /// In place of the layer's policy, where a layer outside brought one.
    other: Option<Arc<RetryPolicy>>,
    inner: S,
}

/// Sends again for as long as the policy says so.
async fn retry<S>(mut sent: Sent<S>, mut result: Answer<S::Upstream>) -> Answer<S::Upstream>
where
    S: JudgedService,
{
    let mut state = RetryState::new();
    let context = sent.context().clone();
    let allowance = context.allowance().cloned().unwrap_or_default();
    loop {
        let now = Situation {
            call: sent.call(),
            verdict: Verdict::of_result(&result),
            allowance: &allowance,
            now: Instant::now().into_std(),
            started: sent.started.into_std(),
            deadline: context.deadline(),
            replayable: sent.kept.is_ok(),
            unit: unit(&sent.shared.random),
        };
        let (wait, why, permit) = match sent.policy().next(&mut state, &now) {
            Decision::Stop(why) => {
                if let Some(why) = why {
                    context.trail().push(trail::Step::Stopped { why });
                }
                return result;
            }
            Decision::Resend { wait, why, permit } => (wait, why, permit),
        };
        let Ok(kept) = &sent.kept else {
            // The policy stops a call that was not kept before it gives leave to send it again.
            return result;
        };
        // The answer is dropped before the wait: it holds a connection, and what it holds for its
        // caller nobody will read.
        drop(result);
        context.trail().push(trail::Step::Waited { delay: wait, why });
        sleep_until(Instant::now() + wait).await;
        std::future::poll_fn(|cx| sent.inner.poll_ready(cx)).await?;
        let request = kept.again(permit);
        let attempt = sent.inner.call(request);
        let answer = sent.within_deadline(attempt).await;
        result = sent.answer(answer);
    }
}

impl<S> Sent<S> {
    fn policy(&self) -> &RetryPolicy {
        self.other.as_deref().unwrap_or(&self.shared.policy)
    }

    fn call(&self) -> &Call {
        match &self.kept {
            Ok(kept) => kept.call(),
            Err((call, _)) => call,
        }
    }

    fn context(&self) -> &CallContext {
        match &self.kept {
            Ok(kept) => kept.context(),
            Err((_, context)) => context,
        }
    }

    fn within_deadline<F, R>(&self, attempt: F) -> Within<JudgedFuture<F>>
    where
        F: Future<Output = Result<R, Error>>,
        R: JudgedResponse,
    {
        let timer =
            self.context().deadline().map(|deadline| Timer::at(Instant::from_std(deadline)));
        Within { attempt: judged(attempt), timer }
    }

    fn answer<B>(&self, answer: Result<Answer<B>, TooLate>) -> Answer<B> {
        answer.unwrap_or_else(|TooLate| {
            let deadline = self.context().deadline().map_or(self.started, Instant::from_std);
            let error = Error::timeout(
                TimeLimit::Deadline,
                deadline - self.started,
                self.context().trail().cut_off(),
            );
            Err(error.with_trail(self.context().trail().clone()))
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

fn unit(random: &Mutex<fastrand::Rng>) -> f64 {
    // A generator is never left half-way through a draw.
    random.lock().unwrap_or_else(PoisonError::into_inner).f64()
}
