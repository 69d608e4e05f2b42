use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::time::{Instant, sleep, timeout_at};
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use super::come_back::{Before, ComeBack, lasts};
use super::outages::{Gate, Outages, Pass, Refused};
use super::resend::Resends;
use super::{Decision, RetryPolicy, RetryState, Situation};
use crate::body::{CallBody, JudgedBody, RequestTemplate, verdict_of};
use crate::error::Error;
use crate::optional::Boxed;
use crate::ready::{take_ready, until_ready};
use crate::stage::AttemptService;
use crate::trail::{Step, StopReason};

/// Retries what was surely not paid for. See the [module](super).
#[derive(Debug, Clone)]
pub struct JitteredRetry<S> {
    pub(super) inner: S,
    pub(super) shared: Arc<Shared>,
}

/// What all services of one layer share, beside the policy's own budget.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) policy: RetryPolicy,
    pub(super) random: Mutex<fastrand::Rng>,
    pub(super) resends: Option<Resends>,
    pub(super) outages: Outages,
}

impl<S: AttemptService> Service<Request<CallBody>> for JitteredRetry<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = Boxed<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        Box::pin(send_and_retry(take_ready(&mut self.inner), self.shared.clone(), request))
    }
}

type Answer<S> = Result<Response<JudgedBody<<S as AttemptService>::Upstream>>, Error>;

async fn send_and_retry<S: AttemptService>(
    mut inner: S,
    shared: Arc<Shared>,
    request: Request<CallBody>,
) -> Answer<S> {
    let started = Instant::now();
    let body = request.body();
    let (call, state) = (body.call().clone(), body.state().clone());
    let override_policy = body.retry().over(&shared.policy);
    let has_elsewhere = body.retry().has_elsewhere();
    let before = body.retry().before().cloned();
    let comes_back = before.is_some();
    let Before { mut retries, started: began } = before.unwrap_or_default();
    let began = began.unwrap_or(started);
    let policy = override_policy.as_ref().unwrap_or(&shared.policy);
    if let Some(within) = policy.call_deadline() {
        state.default_deadline(within.saturating_add(call.tier.queue_time()));
    }
    state.default_allowance(policy.default_allowance());
    if state.deadline().is_some_and(|deadline| deadline <= started) {
        return Err(state.timed_out(Verdict::not_sent()));
    }
    let template = RequestTemplate::new(&request);
    let resends = shared.resends.as_ref().zip(template.as_ref());
    let is_first = retries.attempts() == 0;
    let resent = resends.filter(|_| is_first);
    if let Some(failed) = resent.and_then(|(resends, template)| resends.find(template)) {
        state.record(Step::Continued { attempts: failed.retries.attempts() });
        let (not_before, why) = failed.not_before;
        let left = not_before.saturating_duration_since(started);
        let time = state.deadline().map(|deadline| deadline - started);
        match policy.wait_for_resend((left, why), &call, time) {
            Some(Duration::ZERO) => {}
            Some(delay) => {
                state.record(Step::Waited { delay, why });
                // A place in the service below is not held while others could use it.
                inner = inner.clone();
                sleep(delay).await;
                until_ready(&mut inner, &state).await?;
            }
            None => {
                state.record(Step::Stopped { why: StopReason::WaitTooLong });
                if let Some(template) = &template {
                    return Ok(failed.refuse(template, left));
                }
            }
        }
        retries = policy.continued(failed.retries);
    }
    // Whoever waits, what is known is known by the layer's policy.
    let waits = policy.outage_policy().is_some() && !state.has_model_fallback() && !has_elsewhere;
    let outage_policy = shared.policy.outage_policy().or(policy.outage_policy());
    let gate = outage_policy.filter(|_| call.generates()).zip(template.as_ref());
    let gate =
        gate.map(|(policy, request)| Gate { outages: &shared.outages, policy, request, waits });
    let mut pass = None;
    if let Some(gate) = gate {
        if gate.is_open() {
            pass = Some(gate.unchecked());
        } else {
            inner = inner.clone();
            let first = RetryState::new();
            match Box::pin(enter(gate, &shared, policy, &first, started)).await {
                Ok(leave) => pass = Some(leave),
                Err(refused) => return Ok(gate.refuse(refused, false)),
            }
            until_ready(&mut inner, &state).await?;
        }
    }
    let mut request = request.map(CallBody::into_attempt);
    loop {
        let answer = {
            let mut attempt = pin!(inner.call(request));
            match state.attempt_deadline() {
                None => attempt.await,
                Some(deadline) => match timeout_at(deadline, attempt.as_mut()).await {
                    Ok(answer) => answer,
                    // By how far the attempt got, which is still there.
                    Err(_) => Err(state.timed_out(state.cut_off())),
                },
            }
        };
        let verdict = verdict_of(&answer);
        if let Some(pass) = pass.take() {
            pass.settle(verdict);
        }
        if verdict.outcome().is_success() {
            // Nothing to decide: neither clock nor dice are asked.
            policy.succeeded();
            if let Some((resends, template)) = resends {
                resends.forget(template);
            }
            return answer;
        }
        let now = Situation {
            call: &call,
            verdict,
            allowance: state.allowance_left(),
            now: Instant::now().into_std(),
            started: began.into_std(),
            deadline: state.deadline().map(Instant::into_std),
            replayable: template.is_some(),
            random: random(&shared.random),
        };
        let stop = match policy.next(&mut retries, &now) {
            Decision::Stop(why) => why,
            Decision::Resend { wait, why } if comes_back && (has_elsewhere || lasts(verdict)) => {
                let (due, paid) = (Instant::now() + wait, policy.pays_for(verdict).cloned());
                let latest = policy.latest_send(&call, state.deadline(), began);
                let probes_from = due + share_kept(policy, &retries, due, latest);
                let before = Before { retries, started: Some(began) };
                state.come_back(ComeBack { before, due, why, probes_from, latest, paid });
                return answer;
            }
            Decision::Resend { wait, why } => match (&template, state.permit_after(verdict)) {
                (Some(template), Some(permit)) => {
                    // What the caller allowed to be sent again is its own risk, and waits for nobody.
                    let gate = gate.filter(|_| verdict.charge().is_surely_free());
                    let (verdict, random) = (verdict.clone(), now.random);
                    // Dropped before the wait: it holds a connection, and nobody will read it.
                    drop(answer);
                    state.record(Step::Waited { delay: wait, why });
                    sleep(wait).await;
                    if let Some(gate) = gate {
                        match Box::pin(enter(gate, &shared, policy, &retries, started)).await {
                            Ok(leave) => pass = Some(leave),
                            Err(refused) => {
                                if let Some((resends, template)) = resends {
                                    let wait = policy.wait_after(&retries, &verdict, random);
                                    resends.remember(template, retries, &verdict, wait);
                                }
                                return Ok(gate.refuse(refused, true));
                            }
                        }
                    }
                    until_ready(&mut inner, &state).await?;
                    request = template.again(permit).map(CallBody::into_attempt);
                    continue;
                }
                // The policy asks for both before it lets a call be sent again.
                _ => Some(StopReason::MaybeCharged),
            },
        };
        if let Some(why) = stop {
            state.record(Step::Stopped { why });
        }
        // What a layer below refuses, such as a cap, it refuses again by itself, and says why.
        if let Some((resends, template)) = resends.filter(|_| state.was_last_sent()) {
            if verdict.is_retryable() && verdict.charge().is_surely_free() {
                let wait = policy.wait_after(&retries, verdict, now.random);
                resends.remember(template, retries, verdict, wait);
            }
        }
        return answer;
    }
}

/// Waits for the end of an outage, or for this call's turn to find out whether it is over. Its
/// future is boxed: every call would have room for it otherwise, and few wait.
async fn enter<'a>(
    gate: Gate<'a>,
    shared: &Shared,
    policy: &RetryPolicy,
    retries: &RetryState,
    started: Instant,
) -> Result<Pass<'a>, Refused> {
    if gate.is_open() {
        return Ok(gate.unchecked());
    }
    let now = Instant::now();
    let latest = policy.latest_send(gate.request.call(), gate.request.state().deadline(), started);
    let share = share_kept(policy, retries, now, latest);
    gate.pass(now + share, latest, random(&shared.random)).await
}

/// The last attempt is kept for the middle of the time that is left.
fn share_kept(
    policy: &RetryPolicy,
    retries: &RetryState,
    now: Instant,
    latest: Instant,
) -> Duration {
    let is_last = retries.attempts() > 0 && policy.attempts_left(retries) <= 1;
    if is_last { latest.saturating_duration_since(now) / 2 } else { Duration::ZERO }
}

fn random(random: &Mutex<fastrand::Rng>) -> f64 {
    // A generator is never left half-way through a draw.
    random.lock().unwrap_or_else(PoisonError::into_inner).f64()
}
