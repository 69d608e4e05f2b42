use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project::pin_project;
use tokio::time::Instant;
use tower_gemini_core::body::{BodyEnd, BodyGuard, JudgedBody, ReplayBody};
use tower_gemini_core::call::{Call, Verb};
use tower_gemini_core::context::CallContext;
use tower_gemini_core::error::Error;
use tower_gemini_core::trail::{Step as TrailStep, StopReason, WaitReason};
use tower_gemini_core::verdict::{QuotaCharge, Verdict};
use tower_service::Service;

use super::admission::Denied;
use super::handle::{QuotaHandle, QuotaReservation};
use super::layer::ProjectSource;
use super::limits::QuotaKey;
use super::refusal::refuse;
use super::settings::OnExhausted;
use super::state::QuotaState;
use super::usage::count;
use crate::judged::JudgedResponse;
use crate::ready::take_ready;

/// Sends only what the quota allows. See the [module](super).
#[derive(Clone)]
pub struct QuotaGuard<S> {
    inner: S,
    state: Arc<QuotaState>,
    project: Arc<ProjectSource>,
}

impl<S> QuotaGuard<S> {
    pub(super) fn new(inner: S, state: Arc<QuotaState>, project: Arc<ProjectSource>) -> Self {
        Self { inner, state, project }
    }

    /// The count that this request is held against; `None` where nothing limits it. Counting tokens
    /// and batches have quotas of their own at Google, which are none of ours.
    fn handle<B>(&self, request: &Request<B>, call: &Call) -> Option<QuotaHandle> {
        let model = call.model.clone()?;
        if !matches!(call.verb, Verb::Generate | Verb::StreamGenerate | Verb::Predict) {
            return None;
        }
        let project = self.project.project_of(request);
        let upstream = self.state.settings.upstream.clone();
        let key = self.state.key_state(&QuotaKey { upstream, project, model })?;
        Some(QuotaHandle { state: self.state.clone(), key })
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

impl<S, ReqBody> Service<Request<ReqBody>> for QuotaGuard<S>
where
    S: Service<Request<ReqBody>, Response: JudgedResponse, Error = Error> + Clone,
    ReqBody: 'static,
{
    type Response = Response<JudgedBody<<S::Response as JudgedResponse>::Upstream>>;
    type Error = Error;
    type Future = ResponseFuture<S, Request<ReqBody>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        if self.state.passes_all {
            return ResponseFuture {
                step: Step::Sent { future: self.inner.call(request), reservation: None },
                refused: None,
            };
        }
        let call = ReplayBody::call_of(&request);
        let Some(handle) = self.handle(&request, &call) else {
            return ResponseFuture {
                step: Step::Sent { future: self.inner.call(request), reservation: None },
                refused: None,
            };
        };
        let context = ReplayBody::context_of(&request);
        let is_retry = context.trail().attempt_count() > 0;
        let ask = handle.ask(call.input_tokens_estimate, u64::from(call.images), is_retry);
        let on_exhausted = self.state.settings.on_exhausted;
        let asker = Asker { handle: handle.clone(), call, context };
        if on_exhausted == OnExhausted::Shadow {
            let reservation = handle.force(ask);
            return asker.send(self.inner.call(request), reservation);
        }
        match handle.try_take(ask) {
            Ok(reservation) => asker.send(self.inner.call(request), reservation),
            Err(Some(denied)) if on_exhausted == OnExhausted::Refuse => asker.refuse(denied),
            _ => {
                // Refusing at once, the store must still be asked: that is no wait for allowance,
                // and has its own limit.
                let longest = match on_exhausted {
                    OnExhausted::Wait { at_most } => at_most,
                    _ => self.state.settings.store_timeout,
                };
                let latest = Instant::now() + longest;
                let deadline = asker.context.deadline().map(Instant::from_std);
                let latest = Some(deadline.map_or(latest, |deadline| latest.min(deadline)));
                match handle.join(ask, latest) {
                    Err(denied) => asker.refuse(denied),
                    Ok((queued, expected)) => {
                        if !expected.is_zero() {
                            let step =
                                TrailStep::Waited { delay: expected, why: WaitReason::OwnQuota };
                            asker.context.trail().push(step);
                        }
                        // The instance that was made ready waits with its request: calling a clone
                        // would pass limits below us.
                        let inner = take_ready(&mut self.inner);
                        let waiting = Box::pin(queued.served());
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
    handle: QuotaHandle,
    call: Arc<Call>,
    context: CallContext,
}

impl Asker {
    fn send<S, R>(self, future: S::Future, reservation: QuotaReservation) -> ResponseFuture<S, R>
    where
        S: Service<R>,
    {
        ResponseFuture {
            step: Step::Sent { future, reservation: Some(reservation) },
            refused: None,
        }
    }

    fn refuse<S, R>(self, denied: Denied) -> ResponseFuture<S, R>
    where
        S: Service<R>,
    {
        ResponseFuture { step: Step::Refused { denied: Some(denied) }, refused: Some(self) }
    }

    fn answer<B>(self, denied: &Denied) -> Response<JudgedBody<B>>
    where
        B: http_body::Body<Error: Into<tower_gemini_core::error::BoxError>> + Unpin,
    {
        count_refusal(&self.handle, denied);
        self.context.trail().push(TrailStep::Stopped { why: StopReason::QuotaUsedUp });
        let wait = self.handle.wait(denied);
        refuse(denied, wait, &self.handle.key.key, self.call, self.context)
    }
}

fn count_refusal(handle: &QuotaHandle, denied: &Denied) {
    count(&handle.state.counters.refused);
    tracing::debug!(
        model = %handle.key.model(),
        dimension = denied.violations.first().map(|violation| violation.dimension.as_str()),
        rest = denied.rest.map(|rest| rest.as_str()),
        delay_ms = handle.wait(denied).map(|wait| wait.as_millis()),
        outcome = super::refusal::outcome_of(denied).0.as_str(),
        charge = "none",
        "not sent, to stay within the quota"
    );
}

type Waiting = Pin<Box<dyn Future<Output = Result<QuotaReservation, Denied>> + Send>>;

/// The future of [`QuotaGuard`].
#[pin_project]
pub struct ResponseFuture<S, R>
where
    S: Service<R>,
{
    #[pin]
    step: Step<S, R>,
    refused: Option<Asker>,
}

#[pin_project(project = StepProjection)]
enum Step<S, R>
where
    S: Service<R>,
{
    Sent {
        #[pin]
        future: S::Future,
        reservation: Option<QuotaReservation>,
    },
    Waiting {
        /// Boxed: the usual call does not wait.
        waiting: Waiting,
        then: Option<(S, R)>,
    },
    Refused {
        denied: Option<Denied>,
    },
}

impl<S, R> fmt::Debug for ResponseFuture<S, R>
where
    S: Service<R>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match &self.step {
            Step::Sent { .. } => "sent",
            Step::Waiting { .. } => "waiting",
            Step::Refused { .. } => "refused",
        };
        f.debug_struct("ResponseFuture").field("step", &step).finish_non_exhaustive()
    }
}

impl<S, R> Future for ResponseFuture<S, R>
where
    S: Service<R, Response: JudgedResponse, Error = Error>,
{
    type Output = Result<Response<JudgedBody<<S::Response as JudgedResponse>::Upstream>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.step.as_mut().project() {
                StepProjection::Sent { future, reservation } => {
                    // From the first poll on it may be on its way, and a drop no longer gives back.
                    if let Some(reservation) = reservation {
                        reservation.sent();
                    }
                    let result = ready!(future.poll(cx)).map(JudgedResponse::into_response);
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
fn settle<B>(
    mut reservation: QuotaReservation,
    result: Result<Response<JudgedBody<B>>, Error>,
) -> Result<Response<JudgedBody<B>>, Error> {
    match result {
        Ok(mut response) => {
            let status = response.status().as_u16();
            reservation.handle().learn(response.body().verdict(), Some(status));
            response.body_mut().guard(Box::new(Ending(Some(reservation))));
            Ok(response)
        }
        Err(error) => {
            reservation.handle().learn(error.verdict(), None);
            end(&mut reservation, error.verdict(), None);
            Err(error)
        }
    }
}

fn end(reservation: &mut QuotaReservation, verdict: &Verdict, tokens: Option<u64>) {
    match verdict.quota() {
        QuotaCharge::None => reservation.end(false, None),
        // Google does not say whether a 429 counts, and a 503 does: what is not surely free is
        // counted.
        QuotaCharge::Maybe | QuotaCharge::Counted => reservation.end(true, tokens),
    }
}

/// Holds the reservation to the end of the body.
struct Ending(Option<QuotaReservation>);

impl BodyGuard for Ending {
    fn on_end(&mut self, body: &BodyEnd<'_>) {
        if let Some(mut reservation) = self.0.take() {
            // 0 is what a field says that is missing.
            let tokens = body.usage.map(|usage| usage.prompt).filter(|&tokens| tokens > 0);
            end(&mut reservation, body.verdict, tokens);
        }
    }
}
