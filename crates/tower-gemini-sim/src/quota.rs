//! Enforces limits by project and model: a sliding window of 60 seconds, and a day.
//!
//! Limits belong to a project, not to a key, and to one model (ai.google.dev "Rate limits",
//! 2026-09). A request is judged when it arrives and takes its place in every window at once or in
//! none. The day is 24 hours long and begins at 08:00 of the simulator's UTC clock, which is
//! midnight Pacific in winter; daylight saving is left out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::api_error::Violation;
use crate::fault::Limit;
use crate::lock;

/// The limits of one model for one project; `None` is no limit.
///
/// ```
/// use tower_gemini_sim::Quota;
/// let tier_1 = Quota { rpm: Some(10), ipm: Some(10), rpd: Some(1_000), ..Quota::UNLIMITED };
/// assert_ne!(tier_1, Quota::UNLIMITED);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests in any 60 seconds.
    pub rpm: Option<u64>,
    /// Images in any 60 seconds, counted when the request arrives.
    pub ipm: Option<u64>,
    /// Input tokens in any 60 seconds.
    pub tpm: Option<u64>,
    /// Requests from one Pacific midnight to the next.
    pub rpd: Option<u64>,
    /// Whether a request that was answered 429 counts too. Google does not document it.
    pub counts_rejected: bool,
}

impl Quota {
    /// No limits.
    pub const UNLIMITED: Self =
        Self { rpm: None, ipm: None, tpm: None, rpd: None, counts_rejected: false };
}

impl Default for Quota {
    fn default() -> Self {
        Self::UNLIMITED
    }
}

const WINDOW: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Midnight Pacific standard time, on the UTC clock.
const MIDNIGHT: Duration = Duration::from_secs(8 * 60 * 60);

/// What one request counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weight {
    pub(crate) images: u64,
    pub(crate) tokens: u64,
}

/// A request that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) violations: Vec<Violation>,
    pub(crate) retry_after: Duration,
    pub(crate) counted: bool,
}

#[derive(Debug, Default)]
struct Usage {
    recent: VecDeque<(Duration, Weight)>,
    day: u64,
    today: u64,
}

type ProjectAndModel = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
pub(crate) struct Limits {
    general: Quota,
    by_model: Vec<(String, Quota)>,
    by_project: Vec<(String, Quota)>,
    usage: Mutex<HashMap<ProjectAndModel, Usage>>,
}

impl Limits {
    pub(crate) fn new(general: Quota, by_model: Vec<(String, Quota)>) -> Self {
        Self { general, by_model, ..Self::default() }
    }

    /// With limits of each model for these projects, in place of the others.
    pub(crate) fn of_projects(self, by_project: Vec<(String, Quota)>) -> Self {
        Self { by_project, ..self }
    }

    fn of(&self, project: &str, model: &str) -> Quota {
        let find = |known: &[(String, Quota)], name: &str| {
            known.iter().rev().find(|(id, _)| id == name).map(|(_, quota)| *quota)
        };
        let own = find(&self.by_project, project).or_else(|| find(&self.by_model, model));
        own.unwrap_or(self.general)
    }

    /// Counts one request, or returns the limits that refuse it and when the last window opens.
    pub(crate) fn admit(
        &self,
        project: &Arc<str>,
        model: &Arc<str>,
        now: Duration,
        time_of_day: Duration,
        weight: Weight,
    ) -> Result<(), Over> {
        let quota = self.of(project, model);
        if quota == Quota::UNLIMITED {
            return Ok(());
        }
        let mut usage = lock(&self.usage);
        let usage = usage.entry((project.clone(), model.clone())).or_default();
        while usage.recent.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            usage.recent.pop_front();
        }
        let day = (now + time_of_day + DAY - MIDNIGHT).as_secs() / DAY.as_secs();
        if usage.day != day {
            usage.day = day;
            usage.today = 0;
        }

        let mut violations = Vec::new();
        let mut retry_after = Duration::ZERO;
        let windows = [
            (Limit::Requests, quota.rpm, 1, (|_| 1) as fn(&Weight) -> u64),
            (Limit::Images, quota.ipm, weight.images, |weight| weight.images),
            (Limit::InputTokens, quota.tpm, weight.tokens, |weight| weight.tokens),
        ];
        for (limit, most, wanted, of) in windows {
            let Some(most) = most else { continue };
            let used: u64 = usage.recent.iter().map(|(_, weight)| of(weight)).sum();
            if wanted == 0 || used + wanted <= most {
                continue;
            }
            violations.push(Violation { limit, value: most, free_tier: false });
            // The request fits when enough of the oldest have left.
            let mut left = used;
            let opens = usage.recent.iter().find_map(|(at, weight)| {
                left -= of(weight);
                (left + wanted <= most).then(|| (*at + WINDOW).saturating_sub(now))
            });
            retry_after = retry_after.max(opens.unwrap_or(WINDOW));
        }
        if quota.rpd.is_some_and(|most| usage.today >= most) {
            violations.push(Violation {
                limit: Limit::RequestsPerDay,
                value: quota.rpd.unwrap_or(0),
                free_tier: false,
            });
            // A day's 429 carries a hint of seconds all the same (2.5 s, 21 s and 57 s were
            // recorded).
            retry_after = retry_after.max(Duration::from_millis(21_250));
        }
        let fits = violations.is_empty();
        if fits || quota.counts_rejected {
            usage.recent.push_back((now, weight));
            usage.today += 1;
        }
        if fits {
            Ok(())
        } else {
            Err(Over { violations, retry_after, counted: quota.counts_rejected })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Weight = Weight { images: 1, tokens: 100 };

    fn limits(quota: Quota) -> Limits {
        Limits::new(quota, Vec::new())
    }

    fn admit(limits: &Limits, project: &str, model: &str, seconds: u64) -> Result<(), Over> {
        limits.admit(&project.into(), &model.into(), Duration::from_secs(seconds), MIDNIGHT, ONE)
    }

    #[test]
    fn a_place_is_free_again_exactly_a_minute_later() {
        let limits = limits(Quota { rpm: Some(2), ..Quota::UNLIMITED });
        assert!(admit(&limits, "p", "m", 0).is_ok());
        assert!(admit(&limits, "p", "m", 10).is_ok());
        let over = admit(&limits, "p", "m", 59).unwrap_err();
        assert_eq!(over.retry_after, Duration::from_secs(1));
        assert!(admit(&limits, "p", "m", 60).is_ok());
        assert_eq!(admit(&limits, "p", "m", 60).unwrap_err().retry_after, Duration::from_secs(10));
    }

    #[test]
    fn projects_and_models_do_not_share() {
        let limits = limits(Quota { rpm: Some(1), ..Quota::UNLIMITED });
        for (project, model) in [("p", "m"), ("q", "m"), ("p", "n")] {
            assert!(admit(&limits, project, model, 0).is_ok());
        }
        assert!(admit(&limits, "p", "m", 0).is_err());
    }

    #[test]
    fn a_refused_request_takes_no_place_in_any_window() {
        let limits = limits(Quota { rpm: Some(100), tpm: Some(250), ..Quota::UNLIMITED });
        assert!(admit(&limits, "p", "m", 0).is_ok());
        assert!(admit(&limits, "p", "m", 1).is_ok());
        for _ in 0..10 {
            assert_eq!(
                admit(&limits, "p", "m", 2).unwrap_err().violations[0].limit,
                Limit::InputTokens
            );
        }
        assert!(admit(&limits, "p", "m", 60).is_ok());
    }

    #[test]
    fn the_day_begins_at_midnight_pacific() {
        let limits = limits(Quota { rpd: Some(1), ..Quota::UNLIMITED });
        let at = |hour: u64| {
            // The simulation starts at 07:00 UTC, an hour before the day ends.
            limits.admit(
                &"p".into(),
                &"m".into(),
                Duration::from_secs(hour * 1800),
                MIDNIGHT - Duration::from_secs(3600),
                ONE,
            )
        };
        assert!(at(0).is_ok());
        let over = at(1).unwrap_err();
        assert_eq!(over.violations[0].limit, Limit::RequestsPerDay);
        assert!(over.retry_after < Duration::from_secs(60), "the hint misleads");
        assert!(at(2).is_ok());
        assert!(at(49).is_err());
        assert!(at(50).is_ok());
    }
}
