use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use http::Request;
use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_gemini_core::body::ReplayBody;
use tower_gemini_core::call::ModelId;
use tower_gemini_core::context::{CallOptions, Deferrable, PreferModel};
use tower_gemini_core::trail::{PreferReason, Step, Trail, WaitReason};
use tower_service::Service;

use super::layer::Settings;
use super::learned::{Observation, WeekHour};
use super::route::{known_as, worth_waiting};

/// Lets another model lead in peak hours, and calls that can wait do so. See the [module](super).
#[derive(Debug, Clone)]
pub struct PeakHourRouter<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> PeakHourRouter<S> {
    pub(super) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }
}

impl<S, B> Service<Request<B>> for PeakHourRouter<S>
where
    S: Service<Request<B>> + Clone,
    B: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let now = self.settings.clock.now();
        let patience = patience(&mut request, self.settings.reserve);
        let state = match worth_waiting(&self.settings.schedule, now, patience) {
            None => {
                let observed = self.settings.lead(&mut request, now);
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
        ResponseFuture { state, settings: self.settings.clone() }
    }
}

/// A deferred call looks at the clock this often: it may have been set, and the machine may have
/// slept.
const LONGEST_NAP: Duration = Duration::from_secs(600);

/// How long a call may wait; zero where it was not marked.
fn patience<B: 'static>(request: &mut Request<B>, reserve: Duration) -> Duration {
    let Some(deferrable) = request.extensions_mut().remove::<Deferrable>() else {
        return Duration::ZERO;
    };
    let options = request.extensions().get::<CallOptions>().and_then(CallOptions::deadline_within);
    let context = ReplayBody::context_of(request).deadline();
    let left = [
        options,
        context.map(|at| Instant::from_std(at).saturating_duration_since(Instant::now())),
    ];
    left.into_iter()
        .flatten()
        .fold(deferrable.patience(), |patience, left| patience.min(left.saturating_sub(reserve)))
}

/// The trail of a call, which may begin only further in.
fn trail_of<B: 'static>(request: &mut Request<B>) -> Trail {
    if (request.body() as &dyn std::any::Any).is::<ReplayBody>() {
        return ReplayBody::context_of(request).trail().clone();
    }
    request.extensions_mut().get_or_insert_default::<CallOptions>().trail_mut().clone()
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
    fn lead<B: 'static>(&self, request: &mut Request<B>, now: SystemTime) -> Option<Observed> {
        let call = ReplayBody::call_of(request);
        let asked = call.model.as_ref()?;
        let name = known_as(asked.as_str());
        let other = self.routes.other(name);
        // Models that only ever lead are learned from too.
        let is_routed = other.is_some() || self.routes.models().any(|model| model == name);
        let observed = self.learned.as_ref().filter(|_| is_routed).map(|_| {
            let trail = trail_of(request);
            let before = trail.steps().len();
            Observed { trail, before }
        });
        // A continuation belongs to the model that began it; a caller who prefers one knows why.
        if call.is_continuation || request.extensions().get::<PreferModel>().is_some() {
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
            trail_of(request).push(Step::Preferred {
                asked: asked.clone(),
                model: lead.clone(),
                why,
            });
            request.extensions_mut().insert(PreferModel(lead));
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
pub struct ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    #[pin]
    state: State<S, S::Future, B>,
    settings: Arc<Settings>,
}

#[pin_project(project = StateProjection)]
enum State<S, F, B> {
    Waiting {
        inner: S,
        request: Option<Request<B>>,
        timer: Pin<Box<Sleep>>,
        began: Instant,
        patience: Duration,
    },
    Readying {
        inner: S,
        request: Option<Request<B>>,
    },
    Called {
        #[pin]
        future: F,
        observed: Option<Observed>,
    },
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Waiting { .. } => "waiting",
            State::Readying { .. } => "readying",
            State::Called { .. } => "called",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}

impl<S, B> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>> + Clone,
    B: 'static,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Waiting { inner, request, timer, began, patience } => {
                    ready!(timer.as_mut().poll(cx));
                    let waited = began.elapsed();
                    let now = this.settings.clock.now();
                    let left = patience.saturating_sub(waited);
                    if let Some(wait) = worth_waiting(&this.settings.schedule, now, left) {
                        timer.as_mut().reset(Instant::now() + wait.min(LONGEST_NAP));
                        continue;
                    }
                    let mut request = request.take();
                    if let Some(request) = &mut request {
                        waited_for(request, waited);
                    }
                    let inner = inner.clone();
                    this.state.set(State::Readying { inner, request });
                }
                StateProjection::Readying { inner, request } => {
                    ready!(inner.poll_ready(cx))?;
                    let Some(mut request) = request.take() else {
                        // Polled after it was ready: a fault of the caller that must not bring the
                        // process down.
                        return Poll::Pending;
                    };
                    let observed = this.settings.lead(&mut request, this.settings.clock.now());
                    let future = inner.call(request);
                    this.state.set(State::Called { future, observed });
                }
                StateProjection::Called { future, observed } => {
                    let result = ready!(future.poll(cx));
                    if let Some(observed) = observed.take() {
                        this.settings.learn(&observed);
                    }
                    return Poll::Ready(result);
                }
            }
        }
    }
}

/// Writes the wait down, and takes it off the time that the caller gave the whole call.
fn waited_for<B: 'static>(request: &mut Request<B>, waited: Duration) {
    if let Some(options) = request.extensions_mut().get_mut::<CallOptions>() {
        if let Some(deadline) = options.deadline_within() {
            *options = options.clone().deadline(deadline.saturating_sub(waited));
        }
    }
    trail_of(request).push(Step::Waited { delay: waited, why: WaitReason::QuietHours });
}
