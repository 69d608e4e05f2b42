use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::body::{CallBody, JudgedBody, RequestTemplate, instead_of, verdict_of};
use crate::error::Error;
use crate::trail::{Step, StopReason};
use http::{Request, Response};
use tokio::time::Instant;
use tower_gemini_core::call::{Call, Dialect, Verb};
use tower_gemini_core::target::{Degradation, Served};
use tower_gemini_core::verdict::Outcome;
use tower_service::Service;

use super::chain::Link;
use super::health::Health;
use super::layer::Settings;
use super::policy::Decision;
use super::refusal::refuse;
use super::walk::{Walk, payer};
use crate::jittered_retry::RetryOverride;
use crate::optional::OptionalFuture;
use crate::stage::CallService;

/// Sends a call to another model when its own cannot answer. See the [module](super).
#[derive(Debug, Clone)]
pub struct ModelFallback<S> {
    inner: S,
    settings: Option<Arc<Settings>>,
    health: Health,
}

impl<S> ModelFallback<S> {
    pub(super) fn new(inner: S, settings: Option<Arc<Settings>>, health: Health) -> Self {
        Self { inner, settings, health }
    }
}

impl<S: CallService> Service<Request<CallBody>> for ModelFallback<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self.settings {
            // Which target it will be is not known yet, and one that rests is passed over before
            // its readiness is asked.
            Some(_) => Poll::Ready(Ok(())),
            None => self.inner.poll_ready(cx),
        }
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        match &self.settings {
            Some(settings) => {
                let fallback =
                    fall_back(self.inner.clone(), settings.clone(), self.health.clone(), request);
                OptionalFuture::on(Box::pin(fallback))
            }
            None => OptionalFuture::off(self.inner.call(request)),
        }
    }
}

type Answer<S> = Result<Response<JudgedBody<<S as CallService>::Upstream>>, Error>;

async fn fall_back<S>(
    mut inner: S,
    settings: Arc<Settings>,
    health: Health,
    request: Request<CallBody>,
) -> Answer<S>
where
    S: CallService,
{
    let policy = &settings.policy;
    let state = request.body().state().clone();
    if let Some(within) = policy.call_deadline() {
        state.default_deadline(within);
    }
    if let Some(allowance) = policy.allowance() {
        state.default_allowance(allowance);
    }
    let template = match RequestTemplate::new(&request) {
        Some(template) if concerns(template.call()) => template,
        // Too large to hold, or nothing that another model could answer.
        _ => return send(&mut inner, request).await,
    };
    let outer = request.body().retry().clone();
    let payer = payer(request.headers(), request.uri());
    let mut walk = Walk::new(&settings, &health, &template, payer);
    let mut unsent = Some(request);
    let mut last: Option<(Answer<S>, String)> = None;
    let mut empty_answers = 0;
    loop {
        let now = Instant::now().into_std();
        let next = walk.next(now).or_else(|| if last.is_none() { walk.early(now) } else { None });
        let Some(next) = next else {
            state.record(Step::Stopped { why: StopReason::NoTargetLeft });
            return match last {
                Some((answer, _)) => answer,
                None => Ok(refuse(&template, walk.shortest_rest)),
            };
        };
        let (link, given_up) = (next.link, next.rewrite.given_up().to_vec());
        let mut request = match (unsent.take(), last.take()) {
            (Some(request), _) => instead_of(request, next.rewrite),
            (None, Some((answer, from))) => {
                let verdict = verdict_of(&answer);
                // Out of the caller's allowance where the last attempt may have been charged; never
                // where it was.
                let Some(permit) = state.permit_after(verdict) else {
                    state.record(Step::Stopped { why: StopReason::MaybeCharged });
                    return answer;
                };
                state.record(Step::MovedOn {
                    from,
                    to: link.target.to_string(),
                    why: verdict.outcome(),
                });
                // The answer is dropped before the next send: it holds a connection, and nobody
                // will read it.
                drop(answer);
                template.again_as(permit, next.rewrite)
            }
            // Either the request is unsent or there is an answer to it.
            (None, None) => return Ok(refuse(&template, walk.shortest_rest)),
        };
        if !given_up.is_empty() {
            state.record(Step::Degraded { given_up: given_up.clone() });
        }
        request.body_mut().set_retry(retries(outer.clone(), &link, next.is_last));
        let answer = send(&mut inner, request).await;
        let verdict = verdict_of(&answer).clone();
        let model = settings.catalog().lookup(link.target.model().as_str());
        let now = Instant::now().into_std();
        let midnight =
            if verdict.outcome() == Outcome::RateLimitedDay { settings.midnight() } else { None };
        next.ticket.settle(now, &verdict, model, midnight, &settings.cool_downs);
        let allowance = state.allowance_left();
        let deadline = state.deadline().map(Instant::into_std);
        match policy.next(&mut empty_answers, &verdict, allowance, now, deadline) {
            Decision::Stop(why) => {
                if let Some(why) = why {
                    state.record(Step::Stopped { why });
                }
                return served(answer, given_up);
            }
            Decision::MoveOn { account_closed } => {
                if account_closed {
                    walk.close_account(link.target.account());
                }
                if verdict.outcome() == Outcome::NotFound {
                    let named = verdict.detail().and_then(|detail| detail.successor.clone());
                    let known = || model.and_then(|model| model.successor.clone());
                    if let Some(successor) = named.or_else(known) {
                        walk.follow(&link, &successor);
                    }
                }
                last = Some((served(answer, given_up), link.target.to_string()));
            }
        }
    }
}

async fn send<S: CallService>(inner: &mut S, request: Request<CallBody>) -> Answer<S> {
    poll_fn(|cx| inner.poll_ready(cx)).await?;
    inner.call(request).await
}

/// Whether another model could answer such a call.
fn concerns(call: &Call) -> bool {
    let makes = matches!(call.verb, Verb::Generate | Verb::StreamGenerate | Verb::Predict);
    makes && call.model.is_some() && call.dialect != Dialect::Unrecognised
}

/// How the target is retried: as it says itself; once where others can still be tried at once; by
/// the retry's own policy at last.
fn retries(outer: RetryOverride, link: &Link, is_last: bool) -> RetryOverride {
    let mut retries = outer;
    if let Some(policy) = &link.retry {
        retries = retries.policy(policy.clone());
    }
    match link.target.max_attempts() {
        Some(attempts) => retries.attempts(attempts),
        None if !is_last && link.retry.is_none() => retries.attempts(1),
        None => retries,
    }
}

/// Says in the answer which model it is of, and what was given up for it, by this layer and those
/// inside.
pub(crate) fn served<B>(
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
