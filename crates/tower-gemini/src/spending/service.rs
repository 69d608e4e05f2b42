use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use serde_json::json;
use tokio::time::Instant;
use tower_gemini_core::call::Call;
use tower_gemini_core::cost::{Cost, cost_served};
use tower_gemini_core::redact::redact;
use tower_gemini_core::verdict::{Outcome, QuotaCharge, Verdict, WaitHint, WaitSource};
use tower_layer::Layer;
use tower_service::Service;

use super::account::{BlockedBy, CapReached, SpendReservation};
use super::gate::Asked;
use super::layer::{Shared, SpendingLayer};
use super::shared::{Claim, NotReserved};
use super::{CapDimension, Caps, SpendAmounts};
use crate::body::{AttemptBody, JudgedBody};
use crate::call_state::{CallState, Place, SentAttempt};
use crate::clock::millis;
use crate::error::Error;
use crate::optional::{Boxed, OptionalFuture};
use crate::ready::take_ready;
use crate::refusal::{Refusal, retry_info};
use crate::reservation::{AttemptOutcome, Reservation, send};
use crate::stage::{AttemptService, UpstreamBody};
use crate::store::StoreError;
use crate::trail::{Step, StopReason, WaitReason};

/// Keeps what is spent within caps. See the [module](super).
#[derive(Clone)]
pub struct Spending<S> {
    inner: S,
    shared: Option<Shared>,
}

impl<S: fmt::Debug> fmt::Debug for Spending<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spending")
            .field("inner", &self.inner)
            .field("per_call", &self.shared.as_ref().map(|shared| &shared.per_call))
            .finish_non_exhaustive()
    }
}

impl<S: AttemptService> Layer<S> for SpendingLayer {
    type Service = Spending<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Spending { inner, shared: (!self.is_off).then(|| self.shared.clone()) }
    }
}

impl<S: AttemptService> Service<Request<AttemptBody>> for Spending<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<AttemptBody>) -> Self::Future {
        // What costs nothing needs no money: it neither waits for others' nor is refused for it.
        let is_free = request.body().call().can_be_charged() == Some(false);
        match self.shared.clone().filter(|_| !is_free) {
            Some(shared) => OptionalFuture::on(self.reserve(shared, request)),
            None => OptionalFuture::off(self.inner.call(request)),
        }
    }
}

/// The longest attempt that `AttemptTimeout` allows by default (4K): reserved where the call has no
/// nearer deadline, and the longest wait for a reservation then.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(600);

/// Shorter waits for a store are not recorded: one that answers takes some milliseconds.
const LEAST_WAIT: Duration = Duration::from_millis(100);

impl<S: AttemptService> Spending<S> {
    fn reserve(
        &mut self,
        shared: Shared,
        mut request: Request<AttemptBody>,
    ) -> Boxed<Response<JudgedBody<S::Upstream>>> {
        request.body().state().pass(Place::Spending);
        let asker = Asker::new(shared, request.body());
        let amounts = match asker.amounts() {
            Ok(amounts) => amounts,
            Err(reached) => return Box::pin(ready(Ok(asker.refuse(&reached)))),
        };
        // A budget of one account keeps no call from another that can take it now.
        let patience = match asker.shared.of_account {
            Some(_) if request.body().retry().has_other_account() => Duration::ZERO,
            _ => Duration::from_millis(amounts.wall_ms),
        };
        let deadline = asker.asked_at + patience;
        if let Some(account) = asker.shared.account.clone() {
            let mut inner = take_ready(&mut self.inner);
            return Box::pin(async move {
                match account.reserve(amounts, deadline).await {
                    Ok(claim) => {
                        asker.waited(LEAST_WAIT);
                        let hold = asker.hold(Reserved::Shared(claim), &mut request);
                        send(&mut inner, request, hold).await
                    }
                    Err(NotReserved::Cap(reached)) => Ok(asker.refuse(&reached)),
                    Err(NotReserved::Store(error)) => Ok(asker.refuse_unrecorded(&error)),
                }
            });
        }
        let queued = match asker.shared.gate.ask(amounts) {
            Asked::Refused(reached) => return Box::pin(ready(Ok(asker.refuse(&reached)))),
            Asked::Granted(reservation) => {
                let hold = asker.hold(Reserved::Here(reservation), &mut request);
                return Box::pin(send(&mut self.inner, request, hold));
            }
            Asked::Wait(queued) => queued,
        };
        // The instance that was made ready waits with its request: calling a clone would exceed
        // limits below this layer.
        let mut inner = take_ready(&mut self.inner);
        Box::pin(async move {
            match queued.served(deadline).await {
                Ok(reservation) => {
                    asker.waited(Duration::ZERO);
                    let hold = asker.hold(Reserved::Here(reservation), &mut request);
                    send(&mut inner, request, hold).await
                }
                Err(reached) => Ok(asker.refuse(&reached)),
            }
        })
    }
}

/// The call that asks.
struct Asker {
    shared: Shared,
    call: Arc<Call>,
    state: CallState,
    asked_at: Instant,
    /// How long the attempt may run, by what is left of the call's time.
    wall: Duration,
}

impl Asker {
    fn new(shared: Shared, body: &AttemptBody) -> Self {
        let asked_at = Instant::now();
        let left =
            body.attempt_deadline().map(|deadline| deadline.saturating_duration_since(asked_at));
        let wall = left.unwrap_or(LONGEST_ATTEMPT).min(LONGEST_ATTEMPT);
        Self { shared, call: body.call().clone(), state: body.state().clone(), asked_at, wall }
    }

    /// What it asks for, or which cap of the call it might exceed.
    fn amounts(&self) -> Result<SpendAmounts, CapReached> {
        let Shared { per_call, plan, .. } = &self.shared;
        let price = self.shared.price(&self.call);
        let mut asked = SpendAmounts {
            certain_microusd: price,
            at_most_microusd: price,
            attempts: 1,
            quota_units: 1,
            wall_ms: millis(self.wall),
        };
        let used = used(&self.state.sent_attempts(), price);
        if let Some(cap) = per_call.get(CapDimension::WallTime) {
            // Time is limited to what is left, and not refused as long as there is some.
            asked.wall_ms = asked.wall_ms.min(cap.saturating_sub(used.wall_ms)).max(1);
        }
        within_call(*per_call, used, asked)?;
        if let (Some(plan), true) = (plan, used.attempts == 0) {
            let worst = plan(&self.call).worst_case(self.shared.catalog());
            within_call(*per_call, SpendAmounts::NONE, SpendAmounts { wall_ms: 0, ..worst })?;
        }
        Ok(asked)
    }

    /// Records how long the reservation took, where that is worth a line.
    fn waited(&self, least: Duration) {
        let delay = self.asked_at.elapsed();
        if delay >= least {
            self.state.record(Step::Waited { delay, why: WaitReason::SpendingCap });
        }
    }

    /// Holds the reservation, and ends the attempt when the time that was granted is over.
    fn hold(&self, reservation: Reserved, request: &mut Request<AttemptBody>) -> SpendHold {
        let (shared, call, started) = (self.shared.clone(), self.call.clone(), Instant::now());
        let granted = Duration::from_millis(reservation.amounts().wall_ms);
        if granted < self.wall {
            request.body_mut().limit_deadline(started + granted);
        }
        SpendHold { shared, call, reservation, started }
    }

    /// The refusal of an attempt that the store could not be asked for: a cap that is not counted
    /// would be no cap.
    fn refuse_unrecorded<B: UpstreamBody>(self, error: &StoreError) -> Response<JudgedBody<B>> {
        self.state.record(Step::Stopped { why: StopReason::SpendingCap });
        let refusal = Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            word: "UNAVAILABLE",
            message: format!("Not sent: what is spent cannot be recorded: {error}."),
            reason: "SPENDING_STORE",
            metadata: json!({ "charge": "none" }),
            details: Vec::new(),
        };
        let verdict = refusal.verdict(Outcome::NotSent, None, false);
        refusal.into_response(verdict, self.call, &self.state)
    }

    /// The refusal of an attempt that might exceed a cap. 402 where no waiting helps, since clients
    /// resend a 429 on their own.
    fn refuse<B: UpstreamBody>(self, reached: &CapReached) -> Response<JudgedBody<B>> {
        let model = self.call.model.as_ref();
        tracing::debug!(
            model = model.map(|model| tracing::field::display(redact(model.as_str()).into_owned())),
            dimension = reached.dimension.as_str(),
            period = reached.period.as_deref(),
            "not sent: a spending cap might be exceeded"
        );
        self.state.record(Step::Stopped { why: StopReason::SpendingCap });
        // As an attempt that was not sent, and not as a refusal of the account: no target is at
        // fault, and none should rest for it. A cheaper model may stay within a cap on money, if the
        // caller wants another one; caps on attempts and time hold for every model.
        let elsewhere = self.shared.falls_back && reached.dimension.is_money();
        let mut metadata = json!({
            "dimension": reached.dimension.as_str(),
            "period": reached.period.as_deref().unwrap_or("call"),
            "cap": reached.cap.to_string(),
        });
        if let Some(name) = self.shared.of_account.as_deref() {
            metadata["account"] = json!(name);
        }
        let refusal = Refusal {
            status: match reached.wait {
                Some(_) => StatusCode::TOO_MANY_REQUESTS,
                None => StatusCode::PAYMENT_REQUIRED,
            },
            word: "RESOURCE_EXHAUSTED",
            message: match &self.shared.of_account {
                Some(name) => format!("Not sent: of the budget of {name}, {reached}."),
                None => format!("Not sent: {reached}."),
            },
            reason: "SPENDING_CAP",
            metadata,
            details: reached.wait.map(retry_info).into_iter().collect(),
        };
        let hint = reached.wait.map(|wait| WaitHint::new(wait, WaitSource::QuotaResetDelay));
        let verdict = refusal.verdict(Outcome::NotSent, hint, elsewhere);
        let verdict = match self.shared.of_account {
            Some(_) => verdict.of_account(),
            None => verdict,
        };
        refusal.into_response(verdict, self.call, &self.state)
    }
}

fn within_call(caps: Caps, used: SpendAmounts, asked: SpendAmounts) -> Result<(), CapReached> {
    let Some((dimension, cap)) = caps.exceeded_by(used.plus(asked)) else { return Ok(()) };
    let (taken, asked) = (used.get(dimension), asked.get(dimension));
    let blocked_by = if asked > cap { BlockedBy::Price } else { BlockedBy::Spent };
    Err(CapReached { period: None, dimension, cap, taken, asked, blocked_by, wait: None })
}

/// What the attempts of a call came to so far. One that still runs may come to its price.
fn used(attempts: &[SentAttempt], price: u64) -> SpendAmounts {
    attempts.iter().fold(SpendAmounts::NONE, |sum, attempt| {
        let running = Cost { at_least_microusd: price, at_most_microusd: Some(price) };
        sum.plus(SpendAmounts {
            attempts: 1,
            quota_units: u64::from(attempt.quota != QuotaCharge::None),
            wall_ms: millis(attempt.took),
            ..SpendAmounts::from_cost(attempt.cost.unwrap_or(running))
        })
    })
}

/// What is reserved for a running attempt.
struct SpendHold {
    shared: Shared,
    call: Arc<Call>,
    reservation: Reserved,
    started: Instant,
}

/// Where it is reserved.
enum Reserved {
    Here(SpendReservation),
    Shared(Claim),
}

impl Reserved {
    fn amounts(&self) -> SpendAmounts {
        match self {
            Self::Here(reservation) => reservation.amounts(),
            Self::Shared(claim) => claim.amounts(),
        }
    }
}

impl Reservation for SpendHold {
    fn end(self, outcome: &AttemptOutcome<'_>) {
        let AttemptOutcome { was_sent, verdict, usage, served, is_delivered } = *outcome;
        let Self { shared, call, reservation, started } = self;
        let mut came_to = SpendAmounts::NONE;
        if was_sent {
            let catalog = shared.catalog();
            let price = |verdict: &Verdict| cost_served(catalog, &call, served, verdict, usage);
            // What was not counted is at most what was assumed before it was sent; a count may say
            // more, and so may another model. One that nobody has a price of is taken for what was
            // reserved: a name that is not in the catalogue closes no account.
            let mut most = shared.worst_case(&call);
            let is_counted =
                usage.is_some_and(|usage| usage.total.max(usage.candidates).max(usage.prompt) > 0);
            if is_counted || served.in_place_of(catalog, &call).is_some() {
                let counted = price(&Verdict::delivering()).at_most_microusd;
                most = most.max(counted.unwrap_or(most));
            }
            let bound =
                Cost { at_least_microusd: 0, at_most_microusd: (most < u64::MAX).then_some(most) };
            came_to = SpendAmounts {
                attempts: 1,
                quota_units: u64::from(verdict.quota() != QuotaCharge::None),
                wall_ms: millis(started.elapsed()),
                ..SpendAmounts::from_cost(price(verdict).bounded_by(bound))
            };
        }
        let images = if is_delivered { u64::from(call.images.max(1)) } else { 0 };
        match reservation {
            Reserved::Here(reservation) => shared.gate.settle(reservation, came_to, images),
            Reserved::Shared(claim) => claim.settle(came_to, images),
        }
    }
}
