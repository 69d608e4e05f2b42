use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::body::{AttemptBody, BodyEnd, BodyGuard, JudgedBody};
use crate::call_state::{Attempt, Place};
use crate::error::Error;
use crate::trail::{Step as TrailStep, StopReason, WaitReason};
use http::{Request, Response};
use pin_project::pin_project;
use tokio::time::Instant;
use tower_gemini_core::call::{Call, Verb};
use tower_gemini_core::verdict::{QuotaCharge, Verdict};
use tower_service::Service;

use super::admission::Denied;
use super::gate::Try;
use super::layer::ProjectSource;
use super::limits::QuotaKey;
use super::refusal::refuse;
use super::state::{Cell, Reservation, Saturation, State};
use crate::ready::take_ready;
use crate::stage::{AttemptService, UpstreamBody};

/// Sends only what the quota allows. See the [module](super).
#[derive(Clone)]
pub struct QuotaGuard<S> {
    inner: S,
    state: Arc<State>,
    project: Arc<ProjectSource>,
    saturation: Saturation,
}

impl<S> QuotaGuard<S> {
    pub(super) fn new(
        inner: S,
        state: Arc<State>,
        project: Arc<ProjectSource>,
        saturation: Saturation,
    ) -> Self {
        Self { inner, state, project, saturation }
    }

    /// The count that this request is held against; `None` where nothing limits it. Counting tokens
    /// and batches have quotas of their own at Google, which are none of ours.
    fn cell<B>(&self, request: &Request<B>, call: &Call) -> Option<Arc<Cell>> {
        let model = call.model.clone()?;
        if !matches!(call.verb, Verb::Generate | Verb::StreamGenerate | Verb::Predict) {
            return None;
        }
        self.state.cell(&QuotaKey { project: self.project.of(request), model })
    }
}

impl<S: fmt::Debug> fmt::Debug for QuotaGuard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuotaGuard")
            .field("inner", &self.inner)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<S: AttemptService> Service<Request<AttemptBody>> for QuotaGuard<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = ResponseFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<AttemptBody>) -> Self::Future {
        if self.state.passes_all() {
            return ResponseFuture {
                step: Step::Sent { future: self.inner.call(request), reservation: None },
                refused: None,
            };
        }
        request.body().state().pass(Place::QuotaGuard);
        let call = request.body().call().clone();
        let Some(cell) = self.cell(&request, &call) else {
            return ResponseFuture {
                step: Step::Sent { future: self.inner.call(request), reservation: None },
                refused: None,
            };
        };
        let attempt = request.body().attempt().clone();
        let is_retry = attempt.number() > 1;
        let ask =
            self.state.ask(&cell, call.input_tokens_estimate, u64::from(call.images), is_retry);
        let asker = Asker { cell: cell.clone(), call, attempt, state: self.state.clone() };
        if self.saturation == Saturation::Shadow {
            let reservation = self.state.force(&cell, ask);
            return asker.send(self.inner.call(request), reservation);
        }
        match self.state.try_take(&cell, ask) {
            Try::Taken(taken) => {
                let reservation = Reservation::new(self.state.clone(), cell, taken);
                asker.send(self.inner.call(request), reservation)
            }
            Try::Denied(denied) if self.saturation == Saturation::Refuse => asker.refuse(denied),
            _ => {
                // Refusing at once, the store must still be asked: that is no wait for allowance,
                // and has its own limit.
                let longest = match self.saturation {
                    Saturation::Wait { at_most } => at_most,
                    _ => self.state.settings.store_timeout,
                };
                let latest = Instant::now() + longest;
                let deadline = asker.attempt.state().deadline();
                let latest = Some(deadline.map_or(latest, |deadline| latest.min(deadline)));
                match self.state.join(&cell, ask, latest) {
                    Err(denied) => asker.refuse(denied),
                    Ok((place, expected)) => {
                        if !expected.is_zero() {
                            let step =
                                TrailStep::Waited { delay: expected, why: WaitReason::OwnQuota };
                            asker.attempt.state().record(step);
                        }
                        // The instance that was made ready waits with its request: calling a clone
                        // would pass limits below us.
                        let inner = take_ready(&mut self.inner);
                        let waiting = Box::pin(place.served());
                        ResponseFuture {
                            step: Step::Waiting { waiting, then: Some((inner, request)) },
                            refused: Some(asker),
                        }
                    }
                }
            }
        }
    }
}

/// Who asked, for a refusal.
struct Asker {
    state: Arc<State>,
    cell: Arc<Cell>,
    call: Arc<Call>,
    attempt: Attempt,
}

impl Asker {
    fn send<S: AttemptService>(
        self,
        future: S::Future,
        reservation: Reservation,
    ) -> ResponseFuture<S> {
        ResponseFuture {
            step: Step::Sent { future, reservation: Some(reservation) },
            refused: None,
        }
    }

    fn refuse<S: AttemptService>(self, denied: Denied) -> ResponseFuture<S> {
        ResponseFuture { step: Step::Refused { denied: Some(denied) }, refused: Some(self) }
    }

    fn answer<B: UpstreamBody>(self, denied: &Denied) -> Response<JudgedBody<B>> {
        self.state.count_refusal(&self.cell, denied);
        self.attempt.state().record(TrailStep::Stopped { why: StopReason::QuotaUsedUp });
        let wait = self.state.wait_of(denied);
        refuse(denied, wait, &self.cell.key, self.call, self.attempt.state())
    }
}

type Waiting = Pin<Box<dyn Future<Output = Result<Reservation, Denied>> + Send>>;

/// The future of [`QuotaGuard`].
#[pin_project]
pub struct ResponseFuture<S: AttemptService> {
    #[pin]
    step: Step<S, S::Future>,
    refused: Option<Asker>,
}

#[pin_project(project = StepProjection)]
enum Step<S, F> {
    Sent {
        #[pin]
        future: F,
        reservation: Option<Reservation>,
    },
    Waiting {
        /// Boxed: the usual call does not wait.
        waiting: Waiting,
        then: Option<(S, Request<AttemptBody>)>,
    },
    Refused {
        denied: Option<Denied>,
    },
}

impl<S: AttemptService> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match &self.step {
            Step::Sent { .. } => "sent",
            Step::Waiting { .. } => "waiting",
            Step::Refused { .. } => "refused",
        };
        f.debug_struct("ResponseFuture").field("step", &step).finish_non_exhaustive()
    }
}

impl<S: AttemptService> Future for ResponseFuture<S> {
    type Output = Result<Response<JudgedBody<S::Upstream>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.step.as_mut().project() {
                StepProjection::Sent { future, reservation } => {
                    // From the first poll on it may be on its way, and a drop no longer gives back.
                    if let Some(reservation) = reservation {
                        reservation.sent();
                    }
                    let result = ready!(future.poll(cx));
                    return Poll::Ready(match reservation.take() {
                        None => result,
                        Some(reservation) => settle(reservation, result),
                    });
                }
                StepProjection::Waiting { waiting, then } => {
                    match ready!(waiting.as_mut().poll(cx)) {
                        Ok(reservation) => {
                            let Some((mut inner, request)) = then.take() else {
                                // Polled after it was ready: a fault of the caller that must not
                                // bring the process down.
                                return Poll::Pending;
                            };
                            let future = inner.call(request);
                            this.step.set(Step::Sent { future, reservation: Some(reservation) });
                        }
                        Err(denied) => this.step.set(Step::Refused { denied: Some(denied) }),
                    }
                }
                StepProjection::Refused { denied } => {
                    let (Some(denied), Some(asker)) = (denied.take(), this.refused.take()) else {
                        return Poll::Pending;
                    };
                    return Poll::Ready(Ok(asker.answer(&denied)));
                }
            }
        }
    }
}

/// What is known when the head is there (or the error); the body's end says the rest.
fn settle<B: UpstreamBody>(
    mut reservation: Reservation,
    result: Result<Response<JudgedBody<B>>, Error>,
) -> Result<Response<JudgedBody<B>>, Error> {
    match result {
        Ok(mut response) => {
            let status = response.status().as_u16();
            reservation.learn(response.body().verdict(), Some(status));
            response.body_mut().guard(Box::new(Ending(Some(reservation))));
            Ok(response)
        }
        Err(error) => {
            reservation.learn(error.verdict(), None);
            end(&mut reservation, error.verdict(), None);
            Err(error)
        }
    }
}

fn end(reservation: &mut Reservation, verdict: &Verdict, tokens: Option<u64>) {
    match verdict.quota() {
        QuotaCharge::None => reservation.give_back_in_place(),
        // Google does not say whether a 429 counts, and a 503 does: what is not surely free is
        // counted.
        QuotaCharge::Maybe | QuotaCharge::Counted => reservation.settle_in_place(tokens),
    }
}

/// Holds the reservation to the end of the body.
struct Ending(Option<Reservation>);

impl BodyGuard for Ending {
    fn on_end(&mut self, body: &BodyEnd<'_>) {
        if let Some(mut reservation) = self.0.take() {
            // 0 is what a field says that is missing.
            let tokens = body.usage.map(|usage| usage.prompt).filter(|&tokens| tokens > 0);
            end(&mut reservation, body.verdict, tokens);
        }
    }
}
