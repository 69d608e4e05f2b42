use std::sync::Arc;
use std::time::Duration;

use super::Schedule;
use super::route::{Routes, worth_waiting};
use crate::clock::{Clock, SystemClock};

/// Makes [`PeakHourRouter`](super::PeakHourRouter) services.
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
        change(Arc::make_mut(&mut self.settings));
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

    /// The time that a deferred call must still have before its deadline when its wait is over.
    #[must_use]
    pub fn reserve(self, reserve: Duration) -> Self {
        self.with(|settings| settings.reserve = reserve)
    }

    /// How long a call that may wait this long would, if it came now; `None` where it would not.
    #[must_use]
    pub fn delay(&self, patience: Duration) -> Option<Duration> {
        let Settings { schedule, clock, .. } = &*self.settings;
        worth_waiting(schedule, clock.now(), patience).filter(|_| !self.is_off)
    }

    /// Reads the time from this clock. Default: the machine's.
    #[must_use]
    pub fn clock(self, clock: impl Clock + 'static) -> Self {
        self.with(|settings| settings.clock = Arc::new(clock))
    }
}
