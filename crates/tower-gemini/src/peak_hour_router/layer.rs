use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::route::Routes;
use super::{LearnedHours, Learning, Schedule};
use crate::clock::{Clock, SystemClock};

/// Makes [`PeakHourRouter`](super::PeakHourRouter) services that share what they learn.
#[derive(Debug, Clone)]
pub struct PeakHourRouterLayer {
    pub(super) settings: Arc<Settings>,
    pub(super) is_off: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) schedule: Schedule,
    pub(super) routes: Routes,
    pub(super) reserve: Duration,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) learning: Option<Learning>,
    /// Made when the routes are known; shared by every service of the layer.
    pub(super) learned: Option<Arc<Mutex<LearnedHours>>>,
    pub(super) random: Arc<Mutex<fastrand::Rng>>,
}

impl PeakHourRouterLayer {
    /// Follows this schedule. Without a route it only lets deferrable calls wait.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self {
            settings: Arc::new(Settings {
                schedule,
                routes: Routes::default(),
                reserve: Duration::from_secs(15 * 60),
                clock: Arc::new(SystemClock),
                learning: None,
                learned: None,
                random: Arc::new(Mutex::new(fastrand::Rng::new())),
            }),
            is_off: false,
        }
    }

    /// Passes every call on unchanged.
    #[must_use]
    pub fn off() -> Self {
        Self { is_off: true, ..Self::new(Schedule::never()) }
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        let settings = Arc::make_mut(&mut self.settings);
        change(settings);
        // What was learned belongs to the models that are routed.
        settings.learned = settings.learning.clone().map(|learning| {
            Arc::new(Mutex::new(LearnedHours::new(learning, settings.routes.models())))
        });
        self
    }

    /// In peak hours, calls for the one model are led by the other.
    #[must_use]
    pub fn in_peak(self, asked: &str, lead: &str) -> Self {
        self.with(|settings| settings.routes.set(asked, lead, true))
    }

    /// Outside peak hours, calls for the one model are led by the other.
    #[must_use]
    pub fn off_peak(self, asked: &str, lead: &str) -> Self {
        self.with(|settings| settings.routes.set(asked, lead, false))
    }

    /// Learns which hours are bad. Off by default.
    #[must_use]
    pub fn learn(self, learning: Learning) -> Self {
        self.with(|settings| settings.learning = Some(learning))
    }

    /// The time that a deferred call must still have before its deadline when its wait is over.
    #[must_use]
    pub fn reserve(self, reserve: Duration) -> Self {
        self.with(|settings| settings.reserve = reserve)
    }

    /// Reads the time from this clock. Default: the machine's.
    #[must_use]
    pub fn clock(self, clock: impl Clock + 'static) -> Self {
        self.with(|settings| settings.clock = Arc::new(clock))
    }

    /// Seeds the choice of the calls that explore, so that a run can be repeated.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.with(|settings| settings.random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    /// What has been learned so far by all services of this layer; `None` where learning is off.
    #[must_use]
    pub fn learned(&self) -> Option<LearnedHours> {
        // Every change to it is one whole observation.
        self.settings
            .learned
            .as_ref()
            .map(|learned| learned.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
