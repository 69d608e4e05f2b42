//! Decides which model leads a call, and how long a deferrable call waits. Pure.

use std::time::{Duration, SystemTime};

use tower_gemini_core::catalog::Catalog;

use super::Schedule;

/// Who leads instead of the model asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) asked: String,
    pub(super) lead: String,
    pub(super) in_peak: bool,
}

/// A model under the one name that the catalogue gives it; one that it does not know, as it is
/// spelled.
pub(super) fn known_as(name: &str) -> &str {
    Catalog::builtin().lookup(name).map_or(name, |model| model.id.as_str())
}

/// The routes of a layer.
#[derive(Debug, Clone, Default)]
pub(super) struct Routes(Vec<Route>);

impl Routes {
    /// The later of two routes for the same model and time holds.
    pub(super) fn set(&mut self, asked: &str, lead: &str, in_peak: bool) {
        let (asked, lead) = (known_as(asked).to_owned(), known_as(lead).to_owned());
        self.0.retain(|route| route.asked != asked || route.in_peak != in_peak);
        self.0.push(Route { asked, lead, in_peak });
    }

    /// The route of calls for this model, in or out of peak hours.
    pub(super) fn scheduled(&self, asked: &str, in_peak: bool) -> Option<&Route> {
        self.0.iter().find(|route| route.asked == asked && route.in_peak == in_peak)
    }
}

/// How long a call that may wait should: until the next quiet moment, where it comes within
/// `patience`. `None` where waiting brings nothing: it is quiet now, or it does not get quiet in
/// time.
pub(super) fn worth_waiting(
    schedule: &Schedule,
    now: SystemTime,
    patience: Duration,
) -> Option<Duration> {
    let quiet = schedule.quiet_from(now)?;
    let wait = quiet.duration_since(now).ok()?;
    (!wait.is_zero() && wait <= patience).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::super::presets;
    use super::*;

    #[test]
    fn every_spelling_of_a_model_takes_its_route() {
        let mut routes = Routes::default();
        routes.set("models/gemini-3.1-flash-image", "nano-banana-pro", true);
        assert_eq!(
            routes.scheduled(known_as("nano-banana-2"), true).map(|route| &*route.lead),
            Some("gemini-3-pro-image")
        );
        assert!(routes.scheduled(known_as("nano-banana-2"), false).is_none());
        assert!(routes.scheduled("gemini-3-pro-image", true).is_none());
        routes.set("nano-banana-2", "mine", true);
        assert_eq!(
            routes.scheduled("gemini-3.1-flash-image", true).map(|route| &*route.lead),
            Some("mine")
        );
    }

    #[test]
    fn no_call_waits_for_a_quiet_hour_that_comes_too_late() {
        let schedule = presets::TEN_TO_FOURTEEN_UTC.schedule();
        // 2026-01-06 12:30 UTC.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_702_600);
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        assert_eq!(worth_waiting(&schedule, now, minutes(90)), Some(minutes(90)));
        assert_eq!(worth_waiting(&schedule, now, minutes(89)), None);
        assert_eq!(
            worth_waiting(&schedule, now + minutes(90), minutes(90)),
            None,
            "it is quiet already"
        );
    }
}
