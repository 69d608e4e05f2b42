//! Which targets rest after failures, and when they are tried again.
//!
//! A pure state machine for each of the things that can fail ([`Conditions`]), and around it what
//! all clones share ([`Health`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::trail::SkipReason;
use tower_gemini_core::call::ImageSize;
use tower_gemini_core::catalog::{Family, Model};
use tower_gemini_core::verdict::{Outcome, Scope, Verdict};

/// How long targets rest. See the [module](super) for the defaults.
#[derive(Debug, Clone)]
pub struct CoolDowns {
    failures: u32,
    flash: (Duration, Duration),
    pro: (Duration, Duration),
    day: Duration,
    from_catalog: bool,
}

const MINUTE: Duration = Duration::from_secs(60);

impl CoolDowns {
    /// The defaults listed in the [module](super).
    #[must_use]
    pub fn recommended() -> Self {
        Self {
            failures: 1,
            flash: (5 * MINUTE, 15 * MINUTE),
            pro: (30 * MINUTE, 120 * MINUTE),
            day: 60 * MINUTE,
            from_catalog: true,
        }
    }

    /// Rests a target after so many failures in a row, each of them after the retries inside.
    #[must_use]
    pub fn after_failures(mut self, failures: u32) -> Self {
        self.failures = failures.max(1);
        self
    }

    /// The first and the longest rest of an overloaded model of the Flash line, whatever the
    /// catalogue says.
    #[must_use]
    pub fn flash(mut self, first: Duration, longest: Duration) -> Self {
        self.flash = (first, longest.max(first));
        self.from_catalog = false;
        self
    }

    /// The first and the longest rest of an overloaded model of the Pro line, whatever the
    /// catalogue says.
    #[must_use]
    pub fn pro(mut self, first: Duration, longest: Duration) -> Self {
        self.pro = (first, longest.max(first));
        self.from_catalog = false;
        self
    }

    /// How long a model rests whose quota of the day is spent, where nothing tells the time until
    /// midnight Pacific.
    #[must_use]
    pub fn spent_day(mut self, rest: Duration) -> Self {
        self.day = rest;
        self
    }

    /// The first and the longest rest of an overloaded model.
    fn overload(&self, model: Option<&Model>) -> (Duration, Duration) {
        let (first, longest) = match model.map(|model| model.family) {
            Some(Family::Pro) => self.pro,
            _ => self.flash,
        };
        match model.and_then(|model| model.recovery_minutes) {
            Some((from, to)) if self.from_catalog => (MINUTE * from, MINUTE * to.max(from)),
            _ => (first, longest),
        }
    }

    /// What an answer says of its target's health: what rests, at first and at longest; `None`
    /// where it says nothing bad.
    fn rest(
        &self,
        verdict: &Verdict,
        model: Option<&Model>,
        midnight: Option<Duration>,
    ) -> Option<(Part, Duration, Duration)> {
        let hint = verdict.wait().map(|hint| hint.not_before());
        let hinted = |usual: Duration| hint.unwrap_or(usual);
        Some(match verdict.outcome() {
            // Our own patience ended: as overloaded as one that says so.
            Outcome::Overloaded
            | Outcome::Deadline
            | Outcome::Interrupted
            | Outcome::StreamError => {
                let (first, longest) = self.overload(model);
                (Part::Size, first, longest)
            }
            // Article 001: a 500 lasts 15 to 60 minutes; a first one is often alone.
            Outcome::Internal | Outcome::BadGateway | Outcome::Other => {
                (Part::Model, MINUTE, 15 * MINUTE)
            }
            // Articles 003 and 004: a minute's limit opens after 60 s.
            Outcome::RateLimitedMinute => (Part::Quota, hinted(MINUTE), hinted(MINUTE)),
            Outcome::RateLimited => {
                (Part::Quota, hinted(MINUTE), hinted(15 * MINUTE).max(hinted(MINUTE)))
            }
            Outcome::RateLimitedDay => {
                let rest = midnight.unwrap_or(self.day);
                (Part::Quota, rest, rest)
            }
            // The window of the spend limit is ten rolling minutes (Gemini API documentation, rate
            // limits, 2026-08).
            Outcome::SpendRateLimited => (Part::Payer, hinted(10 * MINUTE), hinted(10 * MINUTE)),
            // Only people cure these; a key that was just made works after "a few minutes" (article
            // 001).
            Outcome::QuotaZeroOrBilling
                if verdict.scope() != Scope::Account || verdict.another_model_helps() =>
            {
                (Part::Quota, 15 * MINUTE, 60 * MINUTE)
            }
            Outcome::QuotaZeroOrBilling | Outcome::Auth | Outcome::Permission | Outcome::Region => {
                (Part::Payer, 5 * MINUTE, 60 * MINUTE)
            }
            Outcome::NotFound if verdict.another_model_helps() => {
                (Part::Model, 60 * MINUTE, 24 * 60 * MINUTE)
            }
            _ => return None,
        })
    }
}

impl Default for CoolDowns {
    fn default() -> Self {
        Self::recommended()
    }
}

/// Which part of a target an outcome is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The model at this size.
    Size,
    /// The model.
    Model,
    /// The model's quota of whoever pays.
    Quota,
    /// Whoever pays.
    Payer,
}

/// The names under which the parts of a target are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys([String; 4]);

impl Keys {
    /// `place` is the upstream, `payer` the account or a fingerprint of the caller's credentials:
    /// in a gateway the callers' quotas are their own, and one bad key closes nothing for the
    /// others.
    pub(super) fn new(model: &str, size: Option<ImageSize>, place: &str, payer: &str) -> Self {
        let at =
            |place: &str| if place.is_empty() { String::new() } else { format!(" on {place}") };
        let size = size.unwrap_or(ImageSize::K1);
        Self([
            format!("{model} at {size}{}", at(place)),
            format!("{model}{}", at(place)),
            format!("quota of {model} of {payer}"),
            format!("account {payer}"),
        ])
    }

    fn of(&self, part: Part) -> &str {
        let [size, model, quota, payer] = &self.0;
        match part {
            Part::Size => size,
            Part::Model => model,
            Part::Quota => quota,
            Part::Payer => payer,
        }
    }
}

/// How one part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It failed so many times in a row, and is used.
    Failing {
        /// How many times.
        failures: u32,
    },
    /// It is left alone until then; after that one call may try it.
    Resting {
        /// Until when, in the runtime's time.
        until: Instant,
        /// How many rests in a row, this one included.
        rests: u32,
        /// What it failed with.
        cause: Outcome,
    },
    /// One call is trying it.
    Probed {
        /// How many rests went before.
        rests: u32,
        /// What it failed with.
        cause: Outcome,
    },
}

/// The conditions of everything that is not well: pure, told the time.
#[derive(Debug, Default)]
struct Conditions(HashMap<String, Condition>);

/// No catalogue holds more models; callers may ask for anything.
const MOST_MODELS: usize = 256;

/// A bound on what is remembered: callers' credentials come and go.
const MOST_CONDITIONS: usize = 4096;

impl Conditions {
    /// Whether a target may be used now. Gives the parts that this call probes, or why not.
    fn admit(&mut self, keys: &Keys, now: Instant, early: bool) -> Result<Vec<String>, SkipReason> {
        self.left(keys, now, early)?;
        let mut due = Vec::new();
        for key in &keys.0 {
            if let Some(condition) = self.0.get_mut(key) {
                if let Condition::Resting { rests, cause, .. } = *condition {
                    *condition = Condition::Probed { rests, cause };
                    due.push(key.clone());
                }
            }
        }
        Ok(due)
    }

    /// Whether [`admit`](Self::admit) would let a call in, and when it will.
    fn left(&self, keys: &Keys, now: Instant, early: bool) -> Result<(), SkipReason> {
        let mut left = Duration::ZERO;
        for key in &keys.0 {
            match self.0.get(key) {
                Some(Condition::Probed { .. }) => return Err(SkipReason::Probed),
                Some(Condition::Resting { until, cause, .. })
                    if !(early && can_be_tried_early(*cause)) =>
                {
                    left = left.max(until.saturating_duration_since(now));
                }
                _ => {}
            }
        }
        if left.is_zero() { Ok(()) } else { Err(SkipReason::Resting { left }) }
    }

    /// A probe ended without saying anything of its target: another call may try at once.
    fn release(&mut self, probed: &[String], now: Instant) {
        for key in probed {
            if let Some(condition) = self.0.get_mut(key) {
                if let Condition::Probed { rests, cause } = *condition {
                    *condition = Condition::Resting { until: now, rests, cause };
                }
            }
        }
    }

    /// It works.
    fn recover(&mut self, keys: &Keys, probed: &[String], now: Instant) {
        for key in &keys.0 {
            match self.0.get(key) {
                // A success of a call that went out before the rest began is older news than the
                // rest.
                Some(Condition::Resting { until, .. }) if *until > now && !probed.contains(key) => {
                }
                Some(Condition::Probed { .. }) if !probed.contains(key) => {}
                _ => {
                    self.0.remove(key);
                }
            }
        }
    }

    /// It failed.
    #[allow(
        clippy::too_many_arguments,
        reason = "one place, and every one of them is a fact of the failure"
    )]
    fn fail(
        &mut self,
        key: &str,
        probed: bool,
        now: Instant,
        cause: Outcome,
        first: Duration,
        longest: Duration,
        after: u32,
    ) {
        let rest = |rests: u32| {
            let factor = 1_u32.checked_shl(rests.saturating_sub(1).min(16)).unwrap_or(u32::MAX);
            let until = now
                .checked_add(first.saturating_mul(factor).min(longest.max(first)))
                .unwrap_or(now);
            Condition::Resting { until, rests, cause }
        };
        let next = match self.0.get(key) {
            Some(Condition::Probed { rests, .. }) if probed => rest(rests.saturating_add(1)),
            // Others that went out before: they say no more than the first one did.
            Some(Condition::Probed { .. } | Condition::Resting { .. }) => return,
            Some(Condition::Failing { failures }) if failures.saturating_add(1) < after => {
                Condition::Failing { failures: failures.saturating_add(1) }
            }
            None if after > 1 => Condition::Failing { failures: 1 },
            Some(Condition::Failing { .. }) | None => rest(1),
        };
        if self.0.len() >= MOST_CONDITIONS {
            self.0.retain(|_, condition| !matches!(condition, Condition::Resting { until, .. } if *until <= now));
        }
        if self.0.len() < MOST_CONDITIONS || self.0.contains_key(key) {
            self.0.insert(key.to_owned(), next);
        }
    }
}

/// Capacity comes back at any time; a spent day, an account without credit and a model that is gone
/// do not.
fn can_be_tried_early(cause: Outcome) -> bool {
    matches!(
        cause,
        Outcome::Overloaded
            | Outcome::Deadline
            | Outcome::Interrupted
            | Outcome::StreamError
            | Outcome::Internal
            | Outcome::BadGateway
            | Outcome::Other
    )
}

/// The health of every target, shared by all clones of a layer's services, and for you to look at.
///
/// ```
/// use tower_gemini::ModelFallbackLayer;
/// use tower_gemini::model_fallback::Chain;
///
/// let layer = ModelFallbackLayer::new(Chain::of(["gemini-3-pro-image", "gemini-3.1-flash-image"]));
/// let health = layer.health().clone();
/// assert!(health.snapshot().is_empty(), "everything is well");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    conditions: Conditions,
    /// What 404s taught: a model and the one that takes its place.
    successors: HashMap<String, String>,
    announced: Vec<String>,
}

/// One thing that is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetHealth {
    /// A model, perhaps at a size, in a place; a model's quota; or an account. Nothing secret is in
    /// it.
    pub what: String,
    /// How it is.
    pub condition: Condition,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in another holder leaves a complete map: every write is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is not well, by name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<TargetHealth> {
        let mut all: Vec<_> = self
            .state()
            .conditions
            .0
            .iter()
            .map(|(what, condition)| TargetHealth { what: what.clone(), condition: *condition })
            .collect();
        all.sort_by(|a, b| a.what.cmp(&b.what));
        all
    }

    /// Lets a call in, and holds the probe until the call ends.
    pub(super) fn admit(
        &self,
        keys: &Keys,
        now: Instant,
        early: bool,
    ) -> Result<Ticket, SkipReason> {
        let probed = self.state().conditions.admit(keys, now, early)?;
        Ok(Ticket { health: self.clone(), keys: keys.clone(), probed, since: now })
    }

    pub(super) fn left(&self, keys: &Keys, now: Instant, early: bool) -> Result<(), SkipReason> {
        self.state().conditions.left(keys, now, early)
    }

    /// The model that is known to take another's place.
    pub(super) fn successor(&self, model: &str, place: &str) -> Option<String> {
        self.state().successors.get(&format!("{model} on {place}")).cloned()
    }

    /// Remembers the successor that a 404 of that place taught.
    pub(super) fn learn(&self, model: &str, place: &str, successor: &str) {
        let mut state = self.state();
        if state.successors.len() < MOST_MODELS {
            state.successors.insert(format!("{model} on {place}"), successor.to_owned());
        }
    }

    /// `true` the first time that this model's successor is announced.
    pub(super) fn announce(&self, model: &str) -> bool {
        let mut state = self.state();
        let news = state.announced.len() < MOST_MODELS
            && !state.announced.iter().any(|known| known == model);
        if news {
            state.announced.push(model.to_owned());
        }
        news
    }
}

/// A call's leave to use a target. Dropped before [`settle`](Self::settle), a probe is free for the
/// next call.
#[derive(Debug)]
pub(super) struct Ticket {
    health: Health,
    keys: Keys,
    probed: Vec<String>,
    since: Instant,
}

impl Ticket {
    /// Writes down what the answer says of the target.
    pub(super) fn settle(
        mut self,
        now: Instant,
        verdict: &Verdict,
        model: Option<&Model>,
        midnight: Option<Duration>,
        cool_downs: &CoolDowns,
    ) {
        self.since = now;
        let health = self.health.clone();
        let mut state = health.state();
        if verdict.outcome().is_success() {
            state.conditions.recover(&self.keys, &self.probed, now);
        } else if let Some((part, first, longest)) = cool_downs.rest(verdict, model, midnight) {
            let key = self.keys.of(part);
            let probed = self.probed.iter().any(|probed| probed == key);
            state.conditions.fail(
                key,
                probed,
                now,
                verdict.outcome(),
                first,
                longest,
                cool_downs.failures,
            );
        }
        // What it probed and says nothing of (a refused prompt, a bad request) is tried by the next
        // call.
        let probed = std::mem::take(&mut self.probed);
        state.conditions.release(&probed, now);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.probed.is_empty() {
            // The time of the drop is not known here; a rest that was over when the probe began is
            // over now.
            let (probed, since) = (std::mem::take(&mut self.probed), self.since);
            self.health.state().conditions.release(&probed, since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;
    use tower_gemini_core::call::Call;
    use tower_gemini_core::catalog::Catalog;
    use tower_gemini_core::classify::classify;

    fn verdict(kind: u8) -> Verdict {
        let (status, body) = match kind {
            0 => return Verdict::delivering(),
            1 => (
                503,
                r#"{"error":{"code":503,"message":"The model is overloaded. Please try again later.","status":"UNAVAILABLE"}}"#,
            ),
            2 => (500, r#"{"error":{"code":500,"message":"Internal error","status":"INTERNAL"}}"#),
            3 => (
                400,
                r#"{"error":{"code":400,"message":"Request contains an invalid argument.","status":"INVALID_ARGUMENT"}}"#,
            ),
            4 => return Verdict::not_sent(),
            _ => return Verdict::interrupted(),
        };
        classify(
            &Call::unrecognised(),
            StatusCode::from_u16(status).unwrap(),
            &HeaderMap::new(),
            body.as_bytes(),
        )
    }

    fn keys() -> Keys {
        Keys::new("gemini-3-pro-image", Some(ImageSize::K4), "", "caller")
    }

    fn pro() -> Option<&'static Model> {
        Catalog::builtin().lookup("gemini-3-pro-image")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Each step: wait a while, then let a call in, or end one that is in, or drop it.
        #[test]
        #[allow(clippy::disallowed_methods, reason = "any instant will do: only differences are looked at")]
        fn rest_probe_and_return_hold_for_every_schedule(
            steps in prop::collection::vec((0u64..4000, 0u8..3, 0u8..6, any::<prop::sample::Index>()), 1..80), after in 1u32..4,
        ) {
            let health = Health::default();
            let cool_downs = CoolDowns::recommended().after_failures(after);
            let mut now = Instant::now();
            let mut tickets: Vec<Ticket> = Vec::new();
            for (wait, what, kind, which) in steps {
                now += Duration::from_secs(wait);
                match what {
                    0 => {
                        let resting = health.snapshot().iter().any(|part| {
                            matches!(part.condition, Condition::Resting { until, .. } if until > now)
                        });
                        match health.admit(&keys(), now, false) {
                            Ok(ticket) => {
                                prop_assert!(!resting, "a resting target let a call in");
                                tickets.push(ticket);
                            }
                            Err(SkipReason::Resting { left }) => prop_assert!(resting && left <= Duration::from_secs(24 * 3600)),
                            Err(_) => prop_assert!(tickets.iter().any(|ticket| !ticket.probed.is_empty())),
                        }
                    }
                    _ if tickets.is_empty() => {}
                    1 => {
                        let ticket = tickets.swap_remove(which.index(tickets.len()));
                        let probed = ticket.probed.clone();
                        ticket.settle(now, &verdict(kind), pro(), None, &cool_downs);
                        if kind == 0 {
                            let back = health.snapshot().iter().all(|part| !probed.contains(&part.what));
                            prop_assert!(back, "a good probe brings it back");
                        }
                    }
                    _ => drop(tickets.swap_remove(which.index(tickets.len()))),
                }
                let probing = tickets.iter().flat_map(|ticket| &ticket.probed).collect::<Vec<_>>();
                let mut once = probing.clone();
                once.sort();
                once.dedup();
                prop_assert_eq!(once.len(), probing.len(), "one probe at a time");
            }
            tickets.clear();
            let stuck = health.snapshot().iter().any(|part| matches!(part.condition, Condition::Probed { .. }));
            prop_assert!(!stuck, "a probe outlived its call");
        }
    }

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "any instant will do: only differences are looked at"
    )]
    fn pro_rests_for_tens_of_minutes_and_flash_for_minutes_and_longer_each_time() {
        let now = Instant::now();
        let overloaded = verdict(1);
        for (id, first, longest) in
            [("gemini-3-pro-image", 30, 120), ("gemini-2.5-flash-image", 5, 15)]
        {
            let (model, health) = (Catalog::builtin().lookup(id), Health::default());
            let keys = Keys::new(id, None, "", "caller");
            let mut at = now;
            for expected in
                [first, 2 * first, 4 * first, 8 * first].map(|minutes: u64| minutes.min(longest))
            {
                health.admit(&keys, at, false).unwrap().settle(
                    at,
                    &overloaded,
                    model,
                    None,
                    &CoolDowns::recommended(),
                );
                let left = match health.admit(&keys, at, false) {
                    Err(SkipReason::Resting { left }) => left,
                    other => panic!("{other:?}"),
                };
                assert_eq!(left, MINUTE * u32::try_from(expected).unwrap(), "{id}");
                at += left;
            }
        }
    }

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "any instant will do: only differences are looked at"
    )]
    fn one_size_rests_and_the_others_do_not() {
        let (now, health) = (Instant::now(), Health::default());
        health.admit(&keys(), now, false).unwrap().settle(
            now,
            &verdict(1),
            pro(),
            None,
            &CoolDowns::recommended(),
        );
        assert!(health.admit(&keys(), now, false).is_err());
        assert!(
            health
                .admit(
                    &Keys::new("gemini-3-pro-image", Some(ImageSize::K1), "", "caller"),
                    now,
                    false
                )
                .is_ok()
        );
    }

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "any instant will do: only differences are looked at"
    )]
    fn a_spent_day_rests_until_midnight_for_that_payer_only() {
        let (now, health) = (Instant::now(), Health::default());
        let day = classify(
            &Call::unrecognised(),
            StatusCode::TOO_MANY_REQUESTS,
            &HeaderMap::new(),
            br#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Quota exceeded.","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel","quotaValue":"100"}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"2s"}]}}"#,
        );
        let midnight = Some(Duration::from_secs(5 * 3600));
        health.admit(&keys(), now, false).unwrap().settle(
            now,
            &day,
            pro(),
            midnight,
            &CoolDowns::recommended(),
        );
        assert_eq!(
            health.left(&keys(), now, true),
            Err(SkipReason::Resting { left: Duration::from_secs(5 * 3600) })
        );
        assert!(
            health
                .left(
                    &Keys::new("gemini-3-pro-image", Some(ImageSize::K4), "", "another"),
                    now,
                    false
                )
                .is_ok()
        );
    }
}
