//! Statistics of calls: counts by hour and day, what they mean, and the latest calls.
//!
//! [`Stats`] observes any [`ObserveLayer`](tower_gemini::ObserveLayer):
//!
//! ```
//! use tower_gemini::ObserveLayer;
//! use tower_gemini_gateway::stats::Stats;
//!
//! let stats = Stats::new();
//! let layer = ObserveLayer::new().observer(stats.observer());
//! # let _ = layer;
//! assert_eq!(stats.report().diagnosis.hour.summary, "No calls in the last hour.");
//! ```
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | failure targets | < 5 % off peak, < 20 % at peak | LaoZhang, 2026-01 |
//! | peak hours | none known: both targets are shown | |
//! | too aggressive | more than 80 % of the failures are 429s | LaoZhang, 2026-01 |
//! | fewest calls for a rate | 5 | ours: one failure in four is no rate |
//! | counts | 13 times five minutes, 48 hours, 30 days, in UTC | ours |
//! | calls kept with their trails | 50 of at most 100 steps | ours: about 1 MB at worst |

mod cause;
mod counts;
mod diagnosis;
mod outages;
mod report;
mod window;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tower_gemini::calendar::PacificDay;
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::cost::Cost;
use tower_gemini::observe::{
    CallEnd, CallInfo, CallObserver, ObservedStep, SendKind, attempts, images_of, is_service_fault,
};
use tower_gemini::trail::{Attempt, Step};
use tower_gemini::verdict::{Charge, Outcome, QuotaCharge};

use counts::{Counts, DAYS, FIVES, HOURS, History, Key, bucket};
use diagnosis::{Figures, diagnose};
use outages::Outages;

pub use cause::Cause;
pub(crate) use diagnosis::title;
pub use diagnosis::{Diagnosis, Health, HealthTargets, LimitKind};
pub(crate) use outages::Outage;
pub use report::{Call, Diagnoses, Hour, Report, Targets};
pub use window::{ModelWindow, Wait, Window};

/// Counts calls and diagnoses their failures. Cheap to clone; clones share the counts.
#[derive(Clone)]
pub struct Stats {
    clock: Arc<dyn Clock>,
    targets: HealthTargets,
    keep_calls: usize,
    in_flight: Arc<AtomicU64>,
    state: Arc<Mutex<State>>,
}

struct State {
    /// When counting began.
    since: SystemTime,
    history: History,
    /// The latest calls, newest last.
    recent: VecDeque<Call>,
    outages: Outages,
}

/// What outlives the process: counts, and not the latest calls, whose trails are long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    since_unix_seconds: u64,
    history: History,
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Stats {
    /// Creates empty statistics with the defaults of the [module](self).
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            since: SystemClock.now(),
            history: History::new(),
            recent: VecDeque::new(),
            outages: Outages::default(),
        };
        Self {
            clock: Arc::new(SystemClock),
            targets: HealthTargets::recommended(),
            keep_calls: 50,
            in_flight: Arc::default(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Sets the failure targets and the peak hours.
    #[must_use]
    pub fn targets(mut self, targets: HealthTargets) -> Self {
        self.targets = targets;
        self
    }

    /// Sets the clock that says which hour and day it is. Set it before anything is counted.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.state().since = clock.now();
        self.clock = Arc::new(clock);
        self
    }

    /// Sets how many of the latest calls are kept with their trails.
    #[must_use]
    pub fn keep_calls(mut self, calls: usize) -> Self {
        self.keep_calls = calls;
        self
    }

    /// Returns the observer to add to an [`ObserveLayer`](tower_gemini::ObserveLayer).
    #[must_use]
    pub fn observer(&self) -> Arc<dyn CallObserver> {
        Arc::new(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is an addition that no panic leaves half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports what has been counted so far and what it means.
    #[must_use]
    pub fn report(&self) -> Report {
        let (at, targets) = (self.clock.now(), &self.targets);
        let now = unix_seconds(at);
        let is_peak = |at: SystemTime| targets.peak_hours.as_ref().map(|hours| hours.is_peak(at));
        let State { since, history, recent, .. } = &*self.state();
        let last_hour = Window::new(now.saturating_sub(3600), &history.fives.sum(now, FIVES));
        let latest = Window::new(now.saturating_sub(900), &history.fives.sum(now, 4));
        let first_hour = (now / 3600).saturating_sub(23) * 3600;
        let last_day = Window::new(first_hour, &history.hours.sum(now, 24));
        let window = |(start, counts): (u64, &Counts)| Window::new(start, counts);
        let hours_of_day: Vec<_> = history.hours.latest(now, 24).map(window).collect();
        let wall_ms = i64::try_from(now.saturating_mul(1000)).unwrap_or(i64::MAX);
        let left_ms = PacificDay::holding(wall_ms).end_ms().saturating_sub(wall_ms);
        let of_hour = Figures {
            when: "in the last hour",
            window: &last_hour,
            latest: Some(&latest),
            hours: &[],
            is_peak: is_peak(at),
            until_midnight_pacific: Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)),
        };
        let of_day = Figures {
            when: "in the last 24 hours",
            window: &last_day,
            latest: None,
            hours: &hours_of_day,
            is_peak: None,
            ..of_hour
        };
        let diagnosis =
            Diagnoses { hour: diagnose(&of_hour, targets), day: diagnose(&of_day, targets) };
        let hours = history.hours.latest(now, HOURS).map(|(start, counts)| {
            let window = Window::new(start, counts);
            let is_peak = is_peak(UNIX_EPOCH + Duration::from_secs(start));
            Hour { health: targets.judge(window.failure_rate, is_peak), window, is_peak }
        });
        Report {
            at_unix_seconds: now,
            since_unix_seconds: unix_seconds(*since),
            calls_in_flight: self.in_flight.load(Ordering::Relaxed),
            diagnosis,
            last_hour,
            last_day,
            total: Window::new(unix_seconds(*since), &history.total),
            hours: hours.collect(),
            days: history.days.latest(now, DAYS).map(window).collect(),
            failure_rate_targets: Targets {
                off_peak: targets.off_peak,
                peak: targets.peak,
                peak_hours_known: targets.peak_hours.is_some(),
            },
            recent_calls: recent.iter().rev().cloned().collect(),
        }
    }

    /// What is to outlive the process.
    pub(crate) fn kept(&self) -> Kept {
        let State { since, history, .. } = &*self.state();
        Kept { since_unix_seconds: unix_seconds(*since), history: history.clone() }
    }

    /// Goes on with what an earlier process counted.
    pub(crate) fn restore(&self, kept: &Kept) {
        let mut state = self.state();
        // The clock may have been set back since.
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(kept.since_unix_seconds));
        state.since = since.map_or(state.since, |since| since.min(state.since));
        state.history.restore(&kept.history);
    }

    /// The models that fail again and again at present, by name.
    pub(crate) fn outages(&self) -> Vec<Outage> {
        let now = unix_seconds(self.clock.now());
        self.state().outages.at(now)
    }

    /// The models of the catalogue that were asked in the last 24 hours on the clock.
    pub(crate) fn asked_models(&self) -> BTreeSet<Arc<str>> {
        let now = unix_seconds(self.clock.now());
        let State { history, .. } = &*self.state();
        let model = |(key, _): (&Key, u64)| match key {
            Key::ModelAttempts(model) => Some(model.clone()),
            _ => None,
        };
        history
            .hours
            .latest(now, 24)
            .flat_map(|(_, counts)| counts.iter().filter_map(model))
            .collect()
    }

    /// `model` is the name that its model is counted under.
    fn count_attempt(counts: &mut Counts, generates: bool, attempt: &Attempt, model: &str) {
        let Cost { at_least_microusd, at_most_microusd } = attempt.cost;
        counts.add(Key::CostAtLeastMicrousd, at_least_microusd);
        counts.add(Key::CostAtMostMicrousd, at_most_microusd.unwrap_or(at_least_microusd));
        counts.add(Key::UnpricedAttempts, u64::from(at_most_microusd.is_none()));
        let is_counted = attempt.quota == QuotaCharge::Counted;
        counts.add(Key::QuotaRequestsAtLeast, u64::from(is_counted));
        counts.add(Key::QuotaRequestsAtMost, u64::from(attempt.quota != QuotaCharge::None));
        if !generates {
            return;
        }
        let outcome = attempt.outcome.unwrap_or(Outcome::Interrupted);
        let model: Arc<str> = model.into();
        counts.add(Key::Attempt(outcome), 1);
        counts.add(Key::AttemptTook(bucket(attempt.took)), 1);
        counts.add(Key::ModelAttempts(model.clone()), 1);
        counts.add(Key::ModelSuccesses(model.clone()), u64::from(outcome.is_success()));
        counts.add(Key::ModelServiceFaults(model), u64::from(is_service_fault(outcome)));
        counts.add(Key::ChargedAttempts, u64::from(attempt.charge == Charge::Charged));
        counts.add(Key::MaybeChargedAttempts, u64::from(attempt.charge == Charge::Maybe));
    }
}

impl CallObserver for Stats {
    fn on_start(&self, _: &CallInfo) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    fn on_send(&self, call: &CallInfo, kind: SendKind) {
        let key = match kind {
            SendKind::Retry => Key::Retries,
            SendKind::Fallback => Key::FallbackAttempts,
            SendKind::First => return,
        };
        let mut counts = Counts::default();
        counts.add(key, u64::from(call.generates));
        self.state().history.add(unix_seconds(self.clock.now()), &counts);
    }

    fn on_step(&self, call: &CallInfo, observed: &ObservedStep<'_>) {
        let mut counts = Counts::default();
        match observed.step {
            Step::Attempt(attempt) => {
                Self::count_attempt(&mut counts, call.generates, attempt, observed.model);
            }
            Step::Waited { delay, why } => {
                let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                counts.add(Key::Waits(*why), 1);
                counts.add(Key::WaitMs(*why), ms);
            }
            Step::Skipped { .. } => counts.add(Key::SkippedTargets, 1),
            Step::ClientDisconnected => counts.add(Key::ClientDisconnects, 1),
            Step::Stored { .. } => counts.add(Key::Kept, 1),
            Step::NotStored { .. } => counts.add(Key::NotKept, 1),
            _ => {}
        }
        let now = unix_seconds(self.clock.now());
        let mut state = self.state();
        state.history.add(now, &counts);
        if let (true, Step::Attempt(attempt)) = (call.generates, observed.step)
            && let Some(outcome) = attempt.outcome
        {
            state.outages.record(observed.model, outcome, now);
        }
        // Of a call that has ended already: what an attempt without its client came to.
        let ended = state.recent.iter_mut().rev().find(|one| one.id == call.id.as_str());
        if let Some(ended) = ended {
            ended.add_step(observed.step, observed.attempt);
        }
    }

    fn on_end(&self, call: &CallInfo, end: &CallEnd<'_>) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let ended_unix_seconds = unix_seconds(self.clock.now());
        // Steps are read under the lock that later ones are added under: none is lost between.
        let mut state = self.state();
        let steps = end.steps();
        let mut counts = Counts::default();
        if call.generates {
            let is_loss = |step: &Step| matches!(step, Step::Degraded { given_up } if given_up.iter().any(|one| one.is_loss()));
            let last = attempts(&steps).next_back();
            let is_rerouted = last.is_some_and(|last| last.served_by.is_some());
            let is_degraded = is_rerouted || steps.iter().any(is_loss);
            let is_degraded = end.outcome.is_success() && is_degraded;
            counts.add(Key::Call(end.outcome), 1);
            counts.add(Key::CallTook(bucket(end.took)), 1);
            counts.add(Key::Degraded, u64::from(is_degraded));
            if end.outcome.is_image() {
                counts.add(Key::Images, 1);
                counts.add(Key::Drafts, u64::from(images_of(&steps).saturating_sub(1)));
            }
            let outcomes = attempts(&steps).filter_map(|attempt| attempt.outcome);
            for outcome in outcomes.filter(|outcome| !outcome.is_success()) {
                counts.add(Key::BlamedAttempt(outcome), u64::from(end.outcome.is_failure()));
            }
        } else {
            counts.add(Key::OtherCalls, 1);
        }
        state.history.add(ended_unix_seconds, &counts);
        let mut ended = Call {
            id: call.id.to_string(),
            ended_unix_seconds,
            outcome: end.outcome,
            sentence: end.sentence.to_owned(),
            took_ms: u64::try_from(end.took.as_millis()).unwrap_or(u64::MAX),
            cost: Cost::ZERO,
            under_way: false,
            steps: Vec::new(),
            omitted_steps: 0,
            trail: Vec::new(),
        };
        ended.set_steps(steps);
        state.recent.push_back(ended);
        let excess = state.recent.len().saturating_sub(self.keep_calls);
        state.recent.drain(..excess);
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        f.debug_struct("Stats").field("in_flight", &in_flight).finish_non_exhaustive()
    }
}
