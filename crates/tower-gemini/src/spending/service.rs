use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::body::{AttemptBody, BodyEnd, BodyGuard, Ended, JudgedBody};
use crate::error::Error;
use crate::trail::{Attempt, Step, StopReason};
use http::{Request, Response, StatusCode};
use pin_project::pin_project;
use serde_json::json;
use tokio::time::Instant;
use tower_gemini_core::call::Call;
use tower_gemini_core::cost::cost_of;
use tower_gemini_core::redact::redact;
use tower_gemini_core::scan::Usage;
use tower_gemini_core::verdict::{Detail, Outcome, QuotaCharge, Verdict, WaitHint, WaitSource};
use tower_service::Service;

use super::account::{CapReached, Reservation};
use super::layer::Shared;
use super::plan::attempt_at_most;
use super::{Amounts, Caps, Dimension, worst_case};
use crate::call_state::{Attempt as AttemptHandle, CallState, Place};
use crate::refusal::Refusal;
use crate::stage::{AttemptService, UpstreamBody};

/// Keeps what is spent within caps. See the [module](super).
#[derive(Clone)]
pub struct Spending<S> {
    inner: S,
    shared: Option<Shared>,
}

impl<S> Spending<S> {
    pub(super) fn new(inner: S, shared: Option<Shared>) -> Self {
        Self { inner, shared }
    }
}

impl<S: fmt::Debug> fmt::Debug for Spending<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spending")
            .field("inner", &self.inner)
            .field("per_call", &self.shared.as_ref().map(|shared| &shared.per_call))
            .finish_non_exhaustive()
    }
}

impl<S: AttemptService> Service<Request<AttemptBody>> for Spending<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = ResponseFuture<S::Future, S::Upstream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<AttemptBody>) -> Self::Future {
        let Some(shared) = &self.shared else {
            let inner = self.inner.call(request);
            return ResponseFuture { state: State::Sent { inner, pending: None } };
        };
        request.body().state().pass(Place::Spending);
        let call = request.body().call().clone();
        match shared.admit(&request) {
            Ok(pending) => ResponseFuture {
                state: State::Sent {
                    inner: self.inner.call(request),
                    pending: Some(Box::new(pending)),
                },
            },
            Err(reached) => {
                let state = request.body().state().clone();
                tracing::debug!(
                    model = call
                        .model
                        .as_ref()
                        .map(|model| tracing::field::display(redact(model.as_str()).into_owned())),
                    dimension = reached.dimension.as_str(),
                    period = reached.period.as_deref(),
                    "not sent: a spending cap might be passed"
                );
                state.record(Step::Stopped { why: StopReason::SpendingCap });
                let response = Some(Box::new(refuse(&reached, call, &state)));
                ResponseFuture { state: State::Refused { response } }
            }
        }
    }
}

/// The longest attempt that `AttemptTimeout` allows by default (4K), set aside where the call has
/// no nearer deadline.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(600);

impl Shared {
    /// Sets aside what this attempt may come to, or says which cap it might pass.
    fn admit(&self, request: &Request<AttemptBody>) -> Result<Pending, CapReached> {
        let call = request.body().call().clone();
        let state = request.body().state().clone();
        let attempts = state.trail().attempts();
        let at_most = attempt_at_most(self.catalog(), &call);
        let now = Instant::now();
        let mut wall = LONGEST_ATTEMPT;
        if let Some(deadline) = state.deadline() {
            wall = wall.min(deadline.saturating_duration_since(now));
        }
        let mut asked = Amounts {
            certain_microusd: at_most,
            at_most_microusd: at_most,
            attempts: 1,
            quota_units: 1,
            wall_ms: millis(wall),
        };

        let used = used(&attempts, at_most);
        if let Some(cap) = self.per_call.of(Dimension::WallTime) {
            // Time is held to what is left, not refused as long as there is some.
            asked.wall_ms = asked.wall_ms.min(cap.saturating_sub(used.wall_ms)).max(1);
        }
        within_call(self.per_call, used, asked)?;
        if let (Some(plan), true) = (&self.plan, attempts.is_empty()) {
            let worst = Amounts { wall_ms: 0, ..worst_case(self.catalog(), &plan(&call)) };
            within_call(self.per_call, Amounts::NONE, worst)?;
        }

        let wall_time = self.clock.now();
        let reservation = self.with_account(|account| account.reserve(wall_time, asked))?;
        let granted = Duration::from_millis(reservation.amounts().wall_ms);
        if granted < wall {
            state.limit_deadline(now + granted);
        }
        Ok(Pending {
            shared: self.clone(),
            reservation: Some(reservation),
            call,
            attempt: request.body().attempt().clone(),
            started: now,
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn within_call(caps: Caps, used: Amounts, asked: Amounts) -> Result<(), CapReached> {
    match caps.passed_by(used.plus(asked)) {
        None => Ok(()),
        Some((dimension, cap)) => Err(CapReached {
            period: None,
            dimension,
            cap,
            taken: used.of(dimension),
            asked: asked.of(dimension),
            wait: None,
        }),
    }
}

/// What the attempts of a call came to so far. One that still runs may come to the most there is.
fn used(attempts: &[Attempt], at_most: u64) -> Amounts {
    attempts.iter().fold(Amounts::NONE, |sum, attempt| {
        let mut one = match attempt.outcome {
            Some(_) => Amounts::of_cost(attempt.cost),
            None => {
                Amounts { certain_microusd: at_most, at_most_microusd: at_most, ..Amounts::NONE }
            }
        };
        one.attempts = 1;
        one.quota_units = u64::from(attempt.quota != QuotaCharge::None);
        one.wall_ms = millis(attempt.took);
        sum.plus(one)
    })
}

/// The refusal of an attempt that might pass a cap. 402 where no waiting helps, since clients
/// resend a 429 on their own.
fn refuse<B: UpstreamBody>(
    reached: &CapReached,
    call: Arc<Call>,
    state: &CallState,
) -> Response<JudgedBody<B>> {
    let message = format!("Not sent: {reached}.");
    let mut detail = Detail::default();
    detail.reason = Some("SPENDING_CAP".to_owned());
    detail.message = Some(message.clone());
    let is_money = matches!(reached.dimension, Dimension::MoneyCertain | Dimension::MoneyAtMost);
    let hint = reached.wait.map(|wait| WaitHint::new(wait, WaitSource::QuotaResetDelay));
    // As an attempt that was not sent, and not as a refusal of the account: no target is at fault,
    // and none should rest for it. A cheaper model may pass a cap of money; caps of attempts and
    // time hold for every one.
    let verdict = Verdict::refused_locally(Outcome::NotSent, hint, is_money, detail);
    let retry = reached.wait.map(|wait| {
        json!({
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retryDelay": format!("{}.{:03}s", wait.as_secs(), wait.subsec_millis()),
        })
    });
    Refusal {
        status: if reached.wait.is_some() {
            StatusCode::TOO_MANY_REQUESTS
        } else {
            StatusCode::PAYMENT_REQUIRED
        },
        word: "RESOURCE_EXHAUSTED",
        message,
        reason: "SPENDING_CAP",
        metadata: json!({
            "dimension": reached.dimension.as_str(),
            "period": reached.period.as_deref().unwrap_or("call"),
            "cap": reached.cap.to_string(),
        }),
        details: retry.into_iter().collect(),
    }
    .into_response(verdict, call, state)
}

/// What is set aside for an attempt under way. It is settled once, whatever becomes of the attempt.
struct Pending {
    shared: Shared,
    reservation: Option<Reservation>,
    call: Arc<Call>,
    attempt: AttemptHandle,
    started: Instant,
}

impl Pending {
    fn settle(&mut self, verdict: &Verdict, usage: Option<&Usage>, images: u64) {
        let Some(reservation) = self.reservation.take() else { return };
        // What never got as far as the client is in no trail: an admission further in said no, or
        // was still thinking.
        let was_sent = self.attempt.was_sent();
        let came_to = if was_sent {
            Amounts {
                attempts: 1,
                quota_units: u64::from(verdict.quota() != QuotaCharge::None),
                wall_ms: millis(self.started.elapsed()),
                ..Amounts::of_cost(cost_of(self.shared.catalog(), &self.call, verdict, usage))
            }
        } else {
            Amounts::NONE
        };
        self.shared.with_account(|account| account.settle(reservation, came_to, images));
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.settle(&Verdict::interrupted(), None, 0);
    }
}

impl BodyGuard for Pending {
    fn on_end(&mut self, end: &BodyEnd<'_>) {
        let delivered = end.how == Ended::Complete && end.verdict.outcome() == Outcome::Image;
        let images = if delivered { u64::from(self.call.images.max(1)) } else { 0 };
        self.settle(end.verdict, end.usage, images);
    }
}

/// The future of [`Spending`].
#[pin_project]
pub struct ResponseFuture<F, B> {
    #[pin]
    state: State<F, B>,
}

#[pin_project(project = StateProjection)]
enum State<F, B> {
    Sent {
        #[pin]
        inner: F,
        /// Boxed as it moves on into the body.
        pending: Option<Box<Pending>>,
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
        match self.project().state.project() {
            StateProjection::Sent { inner, pending } => {
                let result = ready!(inner.poll(cx));
                let pending = pending.take();
                Poll::Ready(match result {
                    Ok(mut response) => {
                        if let Some(pending) = pending {
                            response.body_mut().guard(pending);
                        }
                        Ok(response)
                    }
                    Err(error) => {
                        if let Some(mut pending) = pending {
                            pending.settle(error.verdict(), None, 0);
                        }
                        Err(error)
                    }
                })
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
