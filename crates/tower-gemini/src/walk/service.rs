use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::time::{Instant, timeout_at};
use tower_gemini_core::call::Dialect;
use tower_gemini_core::target::{Degradation, Served};
use tower_gemini_core::verdict::Outcome;
use tower_service::Service;

use super::plan::{Next, Walk};
use super::policy::{Decision, Situation};
use super::refusal::refuse;
use super::{Circuits, Settings};
use crate::body::{CallBody, JudgedBody, RequestTemplate, instead_of, verdict_of};
use crate::call_state::Place;
use crate::error::Error;
use crate::optional::OptionalFuture;
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
    if settings.chain.is_some() {
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
    let mut last: Option<(Answer<S>, String)> = None;
    let mut empty_answers = 0;
    let mut is_rewritten = false;
    loop {
        let next = match walk.next(Instant::now()) {
            None if last.is_none() => wait_for_target(&mut walk, &circuits, &template).await,
            next => next,
        };
        let Some(Next { rewrite, mut visit }) = next else {
            if settings.chain.is_some() {
                state.record(Step::Stopped { why: StopReason::NoTargetLeft });
            }
            let refusal = || Ok(refuse(&template, walk.shortest_cooldown(Instant::now())));
            return last.map_or_else(refusal, |(answer, _)| answer);
        };
        let retries = walk.retries(&visit, own_retries.clone());
        let given_up = rewrite.given_up().to_vec();
        let mut request = match (unsent.take(), last.take()) {
            (Some(request), _) => instead_of(request, rewrite),
            (None, Some((answer, from))) => {
                let verdict = verdict_of(&answer);
                // Out of the caller's allowance where the last attempt may have been charged; never
                // where it was.
                let Some(permit) = state.permit_after(verdict) else {
                    state.record(Step::Stopped { why: StopReason::MaybeCharged });
                    return answer;
                };
                let (to, why) = (visit.label.clone(), verdict.outcome());
                state.record(Step::FellBack { from, to, why });
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
        let now = Instant::now();
        walk.settle(&mut visit, now, &verdict);
        let decision = policy.next(&Situation {
            verdict: &verdict,
            has_chain: settings.chain.is_some(),
            ladder: settings.ladder.as_ref().filter(|_| settings.may_shrink(&template)),
            allowance_left: state.allowance_left(),
            empty_answers,
            now,
            deadline: state.deadline(),
        });
        let answer = served(answer, given_up);
        match decision {
            Decision::Stop(why) => {
                if let Some(why) = why {
                    state.record(Step::Stopped { why });
                }
                return answer;
            }
            Decision::Continue(ways) => {
                empty_answers += u32::from(verdict.outcome() == Outcome::NoImage);
                walk.go_on(&visit, &verdict, ways);
                last = Some((answer, visit.label));
            }
        }
    }
}

/// Waits for a target where all circuits are open: one call probes early, the others wait for the
/// first circuit that closes or is due. `None` where that does not fit the call's deadline.
async fn wait_for_target(
    walk: &mut Walk<'_>,
    circuits: &Circuits,
    template: &RequestTemplate,
) -> Option<Next> {
    let (state, began) = (template.state(), Instant::now());
    if let Some(next) = walk.probe_early(began) {
        return Some(next);
    }
    let next = loop {
        // Made before the circuits are looked at, it misses no change.
        let changed = circuits.changed();
        let now = Instant::now();
        walk.look_again();
        if let Some(next) = walk.next(now) {
            break Some(next);
        }
        let Some(wake_at) = state.deadline().and_then(|deadline| walk.wake_at(now, deadline))
        else {
            break None;
        };
        let _ = timeout_at(wake_at, changed).await;
    };
    let delay = began.elapsed();
    if !delay.is_zero() {
        state.record(Step::Waited { delay, why: WaitReason::Cooldown });
    }
    next
}

async fn send<S: CallService>(inner: &mut S, request: Request<CallBody>) -> Answer<S> {
    poll_fn(|cx| inner.poll_ready(cx)).await?;
    inner.call(request).await
}

impl Settings {
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
