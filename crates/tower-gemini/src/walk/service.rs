use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::time::{Instant, sleep, timeout_at};
use tower_gemini_core::call::Dialect;
use tower_gemini_core::target::{Degradation, Served};
use tower_gemini_core::verdict::{Outcome, Verdict};
use tower_service::Service;

use super::plan::{Next, Walk};
use super::policy::{Decision, Situation, Ways};
use super::refusal::refuse;
use super::{Circuits, Settings};
use crate::body::{CallBody, JudgedBody, RequestTemplate, instead_of, verdict_of};
use crate::call_state::Place;
use crate::error::Error;
use crate::jittered_retry::{RetryOverride, SPREAD};
use crate::optional::OptionalFuture;
use crate::ready::until_ready;
use crate::stage::CallService;
use crate::trail::{Step, StopReason, WaitReason};

/// Walks calls along their targets: the service inside both fallbacks.
#[derive(Debug, Clone)]
pub(crate) struct Fallback<S> {
    inner: S,
    settings: Option<Arc<Settings>>,
    circuits: Circuits,
}

type Answer<S> = Result<Response<JudgedBody<<S as CallService>::Upstream>>, Error>;

impl<S> Fallback<S> {
    pub(crate) fn new(inner: S, settings: Option<Arc<Settings>>, circuits: Circuits) -> Self {
        Self { inner, settings, circuits }
    }
}

impl<S: CallService> Service<Request<CallBody>> for Fallback<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self.settings {
            // The target is not known yet, and one whose circuit is open is passed over before its
            // readiness is asked.
            Some(_) => Poll::Ready(Ok(())),
            None => self.inner.poll_ready(cx),
        }
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        match &self.settings {
            Some(settings) => {
                request.body().state().pass(match settings.chain {
                    Some(_) => Place::ModelFallback,
                    None => Place::ResolutionFallback,
                });
                let (inner, circuits) = (self.inner.clone(), self.circuits.clone());
                OptionalFuture::on(Box::pin(fall_back(inner, settings.clone(), circuits, request)))
            }
            None => OptionalFuture::off(self.inner.call(request)),
        }
    }
}

async fn fall_back<S: CallService>(
    mut inner: S,
    settings: Arc<Settings>,
    circuits: Circuits,
    request: Request<CallBody>,
) -> Answer<S> {
    let policy = &settings.policy;
    let state = request.body().state().clone();
    state.check_order()?;
    if settings.chain.is_some() && !settings.successors_only {
        state.default_deadline(policy.deadline);
        if let Some(resends) = policy.maybe_charged {
            state.default_allowance(resends);
        }
    }
    let template = match RequestTemplate::new(&request) {
        Some(template) if settings.applies_to(&template) => template,
        // Too large to hold, or nothing that another target could answer.
        _ => return send(&mut inner, request).await,
    };
    let own_retries = request.body().retry().clone();
    let mut walk = Walk::new(&settings, &circuits, &template, request.headers(), request.uri());
    let mut unsent = Some(request);
    let mut last: Option<Last<S>> = None;
    let may_wait = settings.waits_after(&own_retries);
    let mut empty_answers = 0;
    let mut is_rewritten = false;
    loop {
        let next = match walk.next(Instant::now(), false) {
            Some(next) => Ok(next),
            None if policy.waits && (last.is_none() || may_wait) => {
                wait_for_target(&mut walk, &circuits, &template, &mut last).await
            }
            None => Err(StopReason::NoTargetLeft),
        };
        let Next { rewrite, mut visit } = match next {
            Ok(next) => next,
            Err(why) => {
                if settings.chain.is_some() {
                    state.record(Step::Stopped { why });
                }
                let refusal = || Ok(refuse(&template, walk.shortest_wait(Instant::now())));
                return last.and_then(|last| last.answer).unwrap_or_else(refusal);
            }
        };
        let retries = walk.retries(&mut visit, own_retries.clone());
        let given_up = rewrite.given_up().to_vec();
        let mut request = match (unsent.take(), last.take()) {
            (Some(request), _) => instead_of(request, rewrite),
            (None, Some(Last { answer, verdict, from })) => {
                // Out of the caller's allowance where the last attempt may have been charged; never
                // where it was.
                let Some(permit) = state.permit_after(&verdict) else {
                    state.record(Step::Stopped { why: StopReason::MaybeCharged });
                    return answer.unwrap_or_else(|| Ok(refuse(&template, None)));
                };
                if from != visit.label {
                    let (to, why) = (visit.label.clone(), verdict.outcome());
                    state.record(Step::FellBack { from, to, why });
                }
                // The response is dropped before the next send: it holds a connection, and nobody
                // will read it.
                drop(answer);
                template.again_as(permit, rewrite)
            }
            // Either the request is unsent or there is a response to it.
            (None, None) => return Ok(refuse(&template, None)),
        };
        // Also where the call comes back to what it asks for: the last of these steps is what holds.
        if is_rewritten || !given_up.is_empty() {
            state.record(Step::Degraded { given_up: given_up.clone() });
        }
        is_rewritten = !given_up.is_empty();
        request.body_mut().set_retry(retries);
        let answer = send(&mut inner, request).await;
        let verdict = verdict_of(&answer).clone();
        let resend = state.take_come_back();
        let now = Instant::now();
        walk.settle(&mut visit, now, &verdict);
        let decision = policy.next(&Situation {
            verdict: &verdict,
            has_chain: settings.follows(&verdict),
            ladder: settings.ladder.as_ref().filter(|_| settings.may_shrink(&template)),
            allowance_left: state.allowance_left(),
            empty_answers,
            now,
            deadline: state.deadline(),
        });
        let answer = served(answer, given_up);
        let ways = match decision {
            Decision::Continue(ways) => ways,
            // No other target helps, and the retry inside would send again.
            Decision::Stop(Some(StopReason::NotRetryable)) if resend.is_some() => Ways::NONE,
            Decision::Stop(why) => {
                if let Some(why) = why {
                    state.record(Step::Stopped { why });
                }
                return answer;
            }
        };
        empty_answers += u32::from(verdict.outcome() == Outcome::NoImage);
        walk.go_on(&visit, &verdict, ways);
        if let Some(resend) = resend {
            walk.come_back(&visit, resend);
        }
        last = Some(Last { answer: Some(answer), verdict, from: visit.label });
    }
}

/// What became of the last visit.
struct Last<S: CallService> {
    /// `None` once the call has waited after it.
    answer: Option<Answer<S>>,
    verdict: Verdict,
    from: String,
}

/// Waits for a target where none can be tried now: one call probes early, the others wait for the
/// first circuit that closes, and are sent within [`SPREAD`] after it, or for what is due again.
/// `Err` where that does not fit the call's deadline, or too many wait.
async fn wait_for_target<S: CallService>(
    walk: &mut Walk<'_>,
    circuits: &Circuits,
    template: &RequestTemplate,
    last: &mut Option<Last<S>>,
) -> Result<Next, StopReason> {
    let (state, began) = (template.state(), Instant::now());
    let mut place = None;
    let next = loop {
        // Made before the circuits are looked at, it misses no change.
        let changed = circuits.changed();
        let now = Instant::now();
        walk.look_again(now);
        if let Some(next) = walk.next(now, true) {
            break Ok(next);
        }
        if !walk.has_more() {
            break Err(StopReason::NoTargetLeft);
        }
        let wake_at = state.deadline().and_then(|deadline| walk.wake_at(now, deadline));
        let Some(wake_at) = wake_at else { break Err(StopReason::DeadlineTooNear) };
        if place.is_none() {
            place = circuits.wait(walk.most_waiting());
            if place.is_none() {
                break Err(StopReason::TooManyWait);
            }
        }
        // Its response holds a connection and a place in the layers below, and nobody will read it.
        if let Some(last) = last {
            last.answer = None;
        }
        let is_woken = timeout_at(wake_at, changed).await.is_ok();
        // All who wait are woken in the same instant: sent at once, they would overload what has
        // just recovered. Looked at again after that, it may be overloaded already.
        let now = Instant::now();
        if is_woken && walk.has_recovered(now) {
            let left = state.deadline().map_or(SPREAD, |at| at.saturating_duration_since(now) / 4);
            sleep(SPREAD.min(left).mul_f64(circuits.next_share())).await;
        }
    };
    let delay = began.elapsed();
    if !delay.is_zero() {
        let why = next.as_ref().map_or(WaitReason::Cooldown, |next| next.visit.why);
        state.record(Step::Waited { delay, why });
    }
    next
}

async fn send<S: CallService>(inner: &mut S, request: Request<CallBody>) -> Answer<S> {
    let state = request.body().state().clone();
    until_ready(inner, &state).await?;
    inner.call(request).await
}

impl Settings {
    /// Whether a call waits, and comes back, when every target has failed. A fallback outside that
    /// has something else to try goes first.
    pub(super) fn waits_after(&self, own: &RetryOverride) -> bool {
        self.policy.waits && self.chain.is_some() && !own.has_elsewhere()
    }

    /// Whether a response may lead to another target of the chain.
    fn follows(&self, verdict: &Verdict) -> bool {
        let is_gone = verdict.outcome() == Outcome::NotFound;
        self.chain.is_some() && (is_gone || !self.successors_only)
    }

    /// Whether another target could answer such a call.
    fn applies_to(&self, template: &RequestTemplate) -> bool {
        let call = template.call();
        call.model.is_some()
            && match self.chain {
                Some(_) => call.generates() && call.dialect != Dialect::Unrecognised,
                None => self.may_shrink(template),
            }
    }

    /// Whether a call may be sent for a smaller size.
    pub(super) fn may_shrink(&self, template: &RequestTemplate) -> bool {
        let keeps_size = template.state().must_keep().keeps_size();
        self.ladder.is_some() && template.call().wants_image && !keeps_size
    }
}

/// Says in the response which model it is of, and what was given up for it, by this layer and those
/// inside.
fn served<B>(
    answer: Result<Response<JudgedBody<B>>, Error>,
    mut given_up: Vec<Degradation>,
) -> Result<Response<JudgedBody<B>>, Error> {
    answer.map(|mut response| {
        if let Some(inner) = response.extensions_mut().remove::<Served>() {
            given_up.extend(inner.given_up);
        }
        let call = response.body().call();
        let served = Served::new(call.model.clone(), call.size, given_up);
        response.extensions_mut().insert(served);
        response
    })
}
