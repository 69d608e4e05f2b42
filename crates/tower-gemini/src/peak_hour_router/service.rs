use std::future::poll_fn;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use tokio::time::{Instant, sleep};
use tower_gemini_core::call::{Call, ModelId};
use tower_layer::Layer;
use tower_service::Service;

use super::layer::{PeakHourRouterLayer, Settings};
use super::learned::{Observation, WeekHour};
use super::route::{known_as, worth_waiting};
use crate::body::{CallBody, JudgedBody};
use crate::call_state::{CallState, Place};
use crate::error::Error;
use crate::optional::OptionalFuture;
use crate::ready::take_ready;
use crate::stage::CallService;
use crate::trail::{PreferReason, Step, WaitReason};

/// Lets another model lead in peak hours, and deferrable calls wait. See the [module](super).
#[derive(Debug, Clone)]
pub struct PeakHourRouter<S> {
    inner: S,
    settings: Option<Arc<Settings>>,
}

impl<S: CallService> Layer<S> for PeakHourRouterLayer {
    type Service = PeakHourRouter<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let settings = (!self.is_off).then(|| self.settings.clone());
        PeakHourRouter { inner, settings }
    }
}

impl<S: CallService> Service<Request<CallBody>> for PeakHourRouter<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        let Some(settings) = &self.settings else {
            return OptionalFuture::off(self.inner.call(request));
        };
        let state = request.body().state();
        state.pass(Place::PeakHourRouter);
        let waits = settings.wait(patience(state, settings.reserve)).is_some();
        // The wait may be hours: it is spent with a clone that was not made ready and so holds
        // nothing, and that is asked anew afterwards. The instance that is ready serves the next
        // call.
        let inner = if waits { self.inner.clone() } else { take_ready(&mut self.inner) };
        OptionalFuture::on(Box::pin(route(inner, settings.clone(), request, waits)))
    }
}

async fn route<S: CallService>(
    mut inner: S,
    settings: Arc<Settings>,
    request: Request<CallBody>,
    waits: bool,
) -> Result<Response<JudgedBody<S::Upstream>>, Error> {
    let state = request.body().state().clone();
    if waits {
        settings.wait_for_quiet(&state).await;
        poll_fn(|cx| inner.poll_ready(cx)).await?;
    }
    let is_observed = settings.lead(request.body().call(), &state);
    let before = state.attempts_made();
    let answer = inner.call(request).await;
    if is_observed {
        settings.learn(&state, before);
    }
    answer
}

/// A deferred call looks at the clock this often: it may have been set, and the machine may have
/// slept.
const LONGEST_NAP: Duration = Duration::from_secs(600);

/// How long a call may wait; zero where its caller does not let it.
fn patience(state: &CallState, reserve: Duration) -> Duration {
    let Some(patience) = state.patience() else { return Duration::ZERO };
    let left = state.deadline().map(|at| at.saturating_duration_since(Instant::now()));
    left.map_or(patience, |left| patience.min(left.saturating_sub(reserve)))
}

impl Settings {
    fn hour(&self, at: SystemTime) -> WeekHour {
        let unix = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let of_utc_day = usize::try_from(unix % 86_400 / 3600).unwrap_or(0);
        let unix = i64::try_from(unix).unwrap_or(i64::MAX);
        WeekHour { of_week: self.schedule.hour_of_week(at), of_utc_day, unix }
    }

    fn wait(&self, patience: Duration) -> Option<Duration> {
        worth_waiting(&self.schedule, self.clock.now(), patience)
    }

    async fn wait_for_quiet(&self, state: &CallState) {
        let (began, patience) = (Instant::now(), patience(state, self.reserve));
        while let Some(wait) = self.wait(patience.saturating_sub(began.elapsed())) {
            sleep(wait.min(LONGEST_NAP)).await;
        }
        let delay = began.elapsed();
        state.defer(delay);
        state.record(Step::Waited { delay, why: WaitReason::QuietHours });
    }

    /// Prefers the model that should lead this call. Returns whether its attempts are learned from.
    fn lead(&self, call: &Call, state: &CallState) -> bool {
        let Some(asked) = call.model.as_ref() else { return false };
        let name = known_as(asked.as_str());
        // A continuation belongs to the model that began it; a caller's own preference wins.
        if !(call.is_continuation || state.preferred().is_some()) {
            if let Some((lead, why)) = self.choose(name).filter(|(lead, _)| *lead != name) {
                let model = ModelId::new(lead);
                state.record(Step::Preferred { asked: asked.clone(), model: model.clone(), why });
                state.prefer(model);
            }
        }
        // Models that only ever lead are learned from too.
        self.learned.is_some() && self.routes.models().any(|model| model == name)
    }

    /// Which model leads calls for this one, and why.
    fn choose(&self, asked: &str) -> Option<(&str, PreferReason)> {
        let now = self.clock.now();
        let route = self.routes.scheduled(asked, self.schedule.is_peak(now));
        let scheduled = route.map(|route| (route.lead.as_str(), PreferReason::PeakHours));
        let (Some(learned), Some(other)) = (&self.learned, self.routes.other(asked)) else {
            return scheduled;
        };
        let random = self.random.lock().unwrap_or_else(PoisonError::into_inner).f64();
        let hour = self.hour(now);
        let mut learned = learned.lock().unwrap_or_else(PoisonError::into_inner);
        let choice = learned.choose(asked, other, hour, random).map(|why| (other, why));
        if !learned.is_shadow() {
            return choice;
        }
        let by_schedule = scheduled.map_or(asked, |(lead, _)| lead);
        let by_learning = choice.map_or(asked, |(lead, _)| lead);
        learned.compare(by_schedule, by_learning, hour);
        if by_schedule != by_learning {
            tracing::debug!(model = asked, by_learning, by_schedule, "learning would differ");
        }
        scheduled
    }

    /// Learns from the attempts of a call that has come back. One that was dropped says nothing
    /// about the hour.
    fn learn(&self, state: &CallState, before: usize) {
        let Some(learned) = &self.learned else { return };
        let hour = self.hour(self.clock.now());
        let mut learned = learned.lock().unwrap_or_else(PoisonError::into_inner);
        for (model, outcome, charge) in state.ended(before) {
            if let Some(observation) = Observation::from_outcome(outcome, charge) {
                learned.observe(known_as(model.as_str()), hour, observation);
            }
        }
    }
}
