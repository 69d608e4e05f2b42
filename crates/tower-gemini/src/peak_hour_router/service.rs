use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use crate::body::CallBody;
use crate::body::JudgedBody;
use crate::call_state::{CallState, Place};
use crate::error::Error;
use crate::stage::CallService;
use crate::trail::{PreferReason, Step, Trail, WaitReason};
use http::{Request, Response};
use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_gemini_core::call::ModelId;
use tower_service::Service;

use super::layer::Settings;
use super::learned::{Observation, WeekHour};
use super::route::{known_as, worth_waiting};

/// Lets another model lead in peak hours, and calls that can wait do so. See the [module](super).
#[derive(Debug, Clone)]
pub struct PeakHourRouter<S> {
    inner: S,
    settings: Option<Arc<Settings>>,
}

impl<S> PeakHourRouter<S> {
    pub(super) fn new(inner: S, settings: Option<Arc<Settings>>) -> Self {
        Self { inner, settings }
    }
}

impl<S: CallService> Service<Request<CallBody>> for PeakHourRouter<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = ResponseFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        let Some(settings) = self.settings.clone() else {
            let future = self.inner.call(request);
            return ResponseFuture {
                state: State::Called { future, observed: None },
                settings: None,
            };
        };
        request.body().state().pass(Place::PeakHourRouter);
        let now = settings.clock.now();
        let patience = patience(request.body().state(), settings.reserve);
        let state = match worth_waiting(&settings.schedule, now, patience) {
            None => {
                let observed = settings.lead(&request, now);
                State::Called { future: self.inner.call(request), observed }
            }
            // The wait may be hours: it is spent with a clone that was not made ready and so holds
            // nothing, and that is asked anew afterwards. The instance that is ready serves the
            // next call.
            Some(wait) => {
                let began = Instant::now();
                State::Waiting {
                    inner: self.inner.clone(),
                    request: Some(request),
                    timer: Box::pin(sleep_until(began + wait.min(LONGEST_NAP))),
                    began,
                    patience,
                }
            }
        };
        ResponseFuture { state, settings: Some(settings) }
    }
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

/// A call of which the hours will learn.
struct Observed {
    trail: Trail,
    /// Steps that were in the trail before: somebody else's.
    before: usize,
}

impl Settings {
    fn hour(&self, at: SystemTime) -> WeekHour {
        let unix = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let unix = i64::try_from(unix).unwrap_or(i64::MAX);
        let of_utc_day = usize::try_from(unix.rem_euclid(86_400) / 3600).unwrap_or(0);
        WeekHour { of_week: self.schedule.hour_of_week(at), of_utc_day, unix }
    }

    /// Says in the request which model should lead it.
    fn lead(&self, request: &Request<CallBody>, now: SystemTime) -> Option<Observed> {
        let (call, state) = (request.body().call(), request.body().state());
        let asked = call.model.as_ref()?;
        let name = known_as(asked.as_str());
        let other = self.routes.other(name);
        // Models that only ever lead are learned from too.
        let is_routed = other.is_some() || self.routes.models().any(|model| model == name);
        let observed = self.learned.as_ref().filter(|_| is_routed).map(|_| {
            let trail = state.trail().clone();
            let before = trail.steps().len();
            Observed { trail, before }
        });
        // A continuation belongs to the model that began it; a caller who prefers one knows why.
        if call.is_continuation || state.preferred().is_some() {
            return observed;
        }
        let scheduled = self
            .routes
            .scheduled(name, self.schedule.is_peak(now))
            .map(|route| route.lead.as_str());
        let choice = match (&self.learned, other) {
            (Some(learned), Some(other)) => {
                let unit = self.random.lock().unwrap_or_else(PoisonError::into_inner).f64();
                let hour = self.hour(now);
                let mut learned = learned.lock().unwrap_or_else(PoisonError::into_inner);
                let choice = learned.choose(name, other, hour, unit).map(|why| (other, why));
                if learned.is_shadow() {
                    learned.compare(
                        scheduled.unwrap_or(name),
                        choice.map_or(name, |(lead, _)| lead),
                        hour,
                    );
                    if choice.map(|(lead, _)| lead) != scheduled {
                        tracing::debug!(
                            model = name,
                            learned = choice.map(|(lead, _)| lead),
                            scheduled,
                            "learning would differ"
                        );
                    }
                    scheduled.map(|lead| (lead, PreferReason::PeakHours))
                } else {
                    choice
                }
            }
            _ => scheduled.map(|lead| (lead, PreferReason::PeakHours)),
        };
        if let Some((lead, why)) = choice.filter(|(lead, _)| *lead != name) {
            let lead = ModelId::new(lead);
            state.record(Step::Preferred { asked: asked.clone(), model: lead.clone(), why });
            state.prefer(lead);
        }
        observed
    }

    /// Learns from the attempts of a call that has come back. One that was dropped says nothing of
    /// the hour.
    fn learn(&self, observed: &Observed) {
        let Some(learned) = &self.learned else { return };
        let hour = self.hour(self.clock.now());
        let steps = observed.trail.steps();
        let mut learned = learned.lock().unwrap_or_else(PoisonError::into_inner);
        for step in steps.iter().skip(observed.before) {
            let Step::Attempt(attempt) = step else { continue };
            let observation =
                attempt.outcome.and_then(|it| Observation::from_outcome(it, attempt.charge));
            if let (Some(model), Some(observation)) = (&attempt.model, observation) {
                learned.observe(known_as(model.as_str()), hour, observation);
            }
        }
    }
}

/// The future of [`PeakHourRouter`].
#[pin_project]
pub struct ResponseFuture<S: CallService> {
    #[pin]
    state: State<S, S::Future>,
    /// `None` where the layer is off, and nothing waits.
    settings: Option<Arc<Settings>>,
}

#[pin_project(project = StateProjection)]
enum State<S, F> {
    Waiting {
        inner: S,
        request: Option<Request<CallBody>>,
        timer: Pin<Box<Sleep>>,
        began: Instant,
        patience: Duration,
    },
    Readying {
        inner: S,
        request: Option<Request<CallBody>>,
    },
    Called {
        #[pin]
        future: F,
        observed: Option<Observed>,
    },
}

impl<S: CallService> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Waiting { .. } => "waiting",
            State::Readying { .. } => "readying",
            State::Called { .. } => "called",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}

impl<S: CallService> Future for ResponseFuture<S> {
    type Output = Result<Response<JudgedBody<S::Upstream>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Waiting { inner, request, timer, began, patience } => {
                    ready!(timer.as_mut().poll(cx));
                    let waited = began.elapsed();
                    let left = patience.saturating_sub(waited);
                    let wait = this.settings.as_ref().and_then(|settings| {
                        worth_waiting(&settings.schedule, settings.clock.now(), left)
                    });
                    if let Some(wait) = wait {
                        timer.as_mut().reset(Instant::now() + wait.min(LONGEST_NAP));
                        continue;
                    }
                    let request = request.take();
                    if let Some(request) = &request {
                        let step = Step::Waited { delay: waited, why: WaitReason::QuietHours };
                        request.body().state().record(step);
                    }
                    let inner = inner.clone();
                    this.state.set(State::Readying { inner, request });
                }
                StateProjection::Readying { inner, request } => {
                    ready!(inner.poll_ready(cx))?;
                    let Some(request) = request.take() else {
                        // Polled after it was ready: a fault of the caller that must not bring the
                        // process down.
                        return Poll::Pending;
                    };
                    let observed = this
                        .settings
                        .as_ref()
                        .and_then(|settings| settings.lead(&request, settings.clock.now()));
                    let future = inner.call(request);
                    this.state.set(State::Called { future, observed });
                }
                StateProjection::Called { future, observed } => {
                    let result = ready!(future.poll(cx));
                    if let (Some(settings), Some(observed)) =
                        (this.settings.as_ref(), observed.take())
                    {
                        settings.learn(&observed);
                    }
                    return Poll::Ready(result);
                }
            }
        }
    }
}
