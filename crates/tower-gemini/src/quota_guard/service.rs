use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::time::Instant;
use tower_gemini_core::call::Call;
use tower_gemini_core::target::UpstreamId;
use tower_gemini_core::verdict::{Outcome, QuotaCharge, Verdict};
use tower_layer::Layer;
use tower_service::Service;

use super::admission::Denied;
use super::handle::{QuotaHandle, QuotaReservation};
use super::layer::{ProjectSource, QuotaGuardLayer};
use super::limits::QuotaKey;
use super::refusal::{outcome_of, refuse};
use super::settings::OnExhausted;
use super::state::QuotaState;
use crate::body::{AttemptBody, JudgedBody};
use crate::call_state::{CallState, Place};
use crate::error::Error;
use crate::optional::{Boxed, OptionalFuture};
use crate::ready::take_ready;
use crate::reservation::{AttemptOutcome, Reservation, send};
use crate::stage::{AttemptService, UpstreamBody};
use crate::trail::{Step, StopReason, WaitReason};

/// Sends only what the quota allows. See the [module](super).
#[derive(Clone)]
pub struct QuotaGuard<S> {
    inner: S,
    state: Arc<QuotaState>,
    project: Arc<ProjectSource>,
    own: Option<Arc<UpstreamId>>,
}

impl<S> QuotaGuard<S> {
    /// What this request is counted for; `None` where the layer is off. Counting tokens and batches
    /// have quotas of their own at Google, which are none of ours.
    fn key(&self, request: &Request<AttemptBody>) -> Option<QuotaKey> {
        if self.state.settings.is_off {
            return None;
        }
        request.body().state().pass(Place::QuotaGuard);
        let call = request.body().call();
        let model = call.model.clone().filter(|_| call.generates())?;
        let project = self.project.project_of(request);
        Some(QuotaKey { upstream: self.upstream(request), project, model })
    }

    /// Where the request goes: the configured upstream, unless it was sent elsewhere.
    fn upstream(&self, request: &Request<AttemptBody>) -> Option<Arc<UpstreamId>> {
        if let Some(target) = request.body().upstream() {
            return Some(target.clone());
        }
        let own = &self.own;
        if request.uri().authority().is_none() {
            return own.clone();
        }
        let id = UpstreamId::from_request(request.uri(), request.body().call());
        let is_own = |own: &&Arc<UpstreamId>| own.base_url.starts_with(&id.base_url);
        own.as_ref().filter(is_own).cloned().or_else(|| Some(Arc::new(id)))
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

impl<S: AttemptService> Layer<S> for QuotaGuardLayer {
    type Service = QuotaGuard<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let (project, own) = (self.project.clone(), self.upstream.clone());
        QuotaGuard { inner, state: self.state().clone(), project, own }
    }
}

impl<S: AttemptService> Service<Request<AttemptBody>> for QuotaGuard<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<AttemptBody>) -> Self::Future {
        let Some(key) = self.key(&request) else {
            return OptionalFuture::off(self.inner.call(request));
        };
        let state = self.state.clone();
        OptionalFuture::on(match state.key_state(&key) {
            Some(key) => self.reserve(QuotaHandle { state, key }, request),
            None => Box::pin(watch_for_closed_day(self.inner.call(request), state, key)),
        })
    }
}

impl<S: AttemptService> QuotaGuard<S> {
    fn reserve(
        &mut self,
        handle: QuotaHandle,
        request: Request<AttemptBody>,
    ) -> Boxed<Response<JudgedBody<S::Upstream>>> {
        let body = request.body();
        let (call, is_retry) = (body.call().clone(), body.number() > 1);
        let ask = handle.ask(call.input_tokens_estimate, u64::from(call.images), is_retry);
        let settings = &self.state.settings;
        // When refusing at once, the store must still be asked: that is no wait for quota, and has
        // its own limit.
        let (may_wait, in_queue) = match settings.on_exhausted {
            OnExhausted::Shadow => {
                return Box::pin(send(&mut self.inner, request, handle.force(ask)));
            }
            OnExhausted::Refuse => (Duration::ZERO, settings.store_timeout),
            OnExhausted::Wait { at_most } => (at_most, at_most),
        };
        let now = Instant::now();
        let latest = now.checked_add(in_queue).into_iter().chain(body.deadline()).min();
        let state = body.state().clone();
        let asker = Asker { state, wait_until: now.checked_add(may_wait), handle, call };
        let joined = match asker.handle.try_take(ask) {
            Ok(reservation) => return Box::pin(send(&mut self.inner, request, reservation)),
            Err(Some(denied)) if settings.on_exhausted == OnExhausted::Refuse => Err(denied),
            Err(_) => asker.handle.join(ask, latest),
        };
        let (queued, expected) = match joined {
            Ok(joined) => joined,
            Err(denied) => return Box::pin(ready(Ok(asker.refuse(&denied)))),
        };
        if !expected.is_zero() {
            asker.state.record(Step::Waited { delay: expected, why: WaitReason::OwnQuota });
        }
        // The instance that was made ready waits with its request: calling a clone would exceed
        // limits below this layer.
        let mut inner = take_ready(&mut self.inner);
        Box::pin(async move {
            match queued.served().await {
                Ok(reservation) => send(&mut inner, request, reservation).await,
                Err(denied) => Ok(asker.refuse(&denied)),
            }
        })
    }
}

/// Sends an attempt that nothing limits. If it learns that the day is over, the next is not sent.
async fn watch_for_closed_day<B: UpstreamBody>(
    response: impl Future<Output = Result<Response<JudgedBody<B>>, Error>>,
    state: Arc<QuotaState>,
    key: QuotaKey,
) -> Result<Response<JudgedBody<B>>, Error> {
    let response = response.await?;
    let verdict = response.body().verdict();
    if verdict.outcome() == Outcome::RateLimitedDay {
        let handle = QuotaHandle { key: state.add_key(&key), state };
        // Where there is no room for the key it shares another.
        if handle.key.key == key {
            handle.learn(verdict, Some(response.status().as_u16()));
        }
    }
    Ok(response)
}

/// The call that asks.
struct Asker {
    handle: QuotaHandle,
    call: Arc<Call>,
    state: CallState,
    /// How long the caller lets it wait for quota.
    wait_until: Option<Instant>,
}

impl Asker {
    fn refuse<B: UpstreamBody>(self, denied: &Denied) -> Response<JudgedBody<B>> {
        self.handle.state.count(|counts| counts.refused += 1);
        let wait = self.handle.wait(denied);
        tracing::debug!(
            model = %self.handle.key.model(),
            dimension = denied.violations.first().map(|violation| violation.dimension.as_str()),
            rest = denied.rest.map(|rest| rest.as_str()),
            delay_ms = wait.map(|wait| wait.as_millis()),
            outcome = outcome_of(denied).0.as_str(),
            charge = "none",
            "not sent, to stay within the quota"
        );
        self.state.record(Step::Stopped { why: StopReason::QuotaUsedUp });
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        let may_wait = self.wait_until.map_or(Duration::MAX, left);
        refuse(denied, wait, may_wait, &self.handle.key.key, self.call, &self.state)
    }
}

impl Reservation for QuotaReservation {
    fn responded(&mut self, verdict: &Verdict, status: Option<u16>) {
        self.handle().learn(verdict, status);
    }

    fn end(mut self, outcome: &AttemptOutcome<'_>) {
        // Google does not say whether a 429 counts, and a 503 does: what is not surely free is
        // counted. A missing token count reads as 0.
        let was_counted = outcome.verdict.quota() != QuotaCharge::None;
        let tokens = outcome.usage.map(|usage| usage.prompt).filter(|&tokens| tokens > 0);
        self.close(was_counted, tokens);
    }
}
