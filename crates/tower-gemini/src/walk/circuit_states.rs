//! Keeps a circuit breaker for everything about a target that can fail: its model at one size, the
//! model, the model's quota, and the account.
//!
//! A pure state machine: the time is handed in.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use tower_gemini_core::call::ImageSize;
use tower_gemini_core::verdict::{Outcome, Scope, Verdict};

use crate::trail::SkipReason;

/// After how many failures, and for how long, a target is left alone. See
/// [`model_fallback`](crate::model_fallback) for the defaults.
#[derive(Debug, Clone)]
pub struct Cooldowns {
    failures: u32,
    overload: (Duration, Duration),
}

const MINUTE: Duration = Duration::from_secs(60);

impl Cooldowns {
    /// The defaults listed in [`model_fallback`](crate::model_fallback).
    #[must_use]
    pub fn recommended() -> Self {
        Self { failures: 3, overload: (MINUTE, 5 * MINUTE) }
    }

    /// How many free failures in a row open a circuit, each counted after the retries inside.
    ///
    /// An account that refuses its credentials closes after two at most, and what only time or
    /// money cures (a spent day, an account without credit) at once.
    #[must_use]
    pub fn after_failures(mut self, failures: u32) -> Self {
        self.failures = failures.max(1);
        self
    }

    /// The first and the longest cooldown of an overloaded model.
    #[must_use]
    pub fn overload(mut self, first: Duration, longest: Duration) -> Self {
        self.overload = (first, longest.max(first));
        self
    }

    /// What a failure says about its target; `None` where it says nothing bad.
    pub(super) fn failure(&self, verdict: &Verdict, midnight: Duration) -> Option<Failure> {
        let hint = |usual: Duration| verdict.wait().map_or(usual, |hint| hint.not_before());
        let (free, refused, at_once) = (self.failures, self.failures.min(2), 1);
        let (part, after, (first, longest)) = match verdict.outcome() {
            // Our own timeout counts like an upstream that says it is overloaded.
            Outcome::Overloaded
            | Outcome::Deadline
            | Outcome::Interrupted
            | Outcome::StreamError => (Part::Size, free, self.overload),
            // A file of the request that is not ready says nothing about its model.
            _ if verdict.scope() == Scope::Request => return None,
            // A 500 lasts 15 to 60 minutes (operators' error guide for Nano Banana Pro, 2026-02).
            Outcome::Internal | Outcome::Cancelled | Outcome::BadGateway | Outcome::Other => {
                (Part::Model, free, (MINUTE, 15 * MINUTE))
            }
            // A minute's limit opens after 60 s (the two operators' guides of 2026-02 and 2026-03).
            Outcome::RateLimitedMinute => (Part::Quota, free, (hint(MINUTE), hint(MINUTE))),
            Outcome::RateLimited => (Part::Quota, free, (hint(MINUTE), hint(15 * MINUTE))),
            Outcome::RateLimitedDay => (Part::Quota, at_once, (midnight, midnight)),
            // The window of the spend limit is ten rolling minutes (Gemini API documentation, rate
            // limits, 2026-08).
            Outcome::SpendRateLimited => {
                (Part::Account, refused, (hint(10 * MINUTE), hint(10 * MINUTE)))
            }
            // Only people cure the rest; a key that was just made works after "a few minutes"
            // (operators' error guide for Nano Banana Pro, 2026-02).
            Outcome::QuotaZeroOrBilling
                if verdict.scope() != Scope::Account || verdict.another_model_helps() =>
            {
                (Part::Quota, at_once, (15 * MINUTE, 60 * MINUTE))
            }
            Outcome::QuotaZeroOrBilling => (Part::Account, at_once, (5 * MINUTE, 60 * MINUTE)),
            Outcome::Auth | Outcome::Permission | Outcome::Region
                if verdict.scope() == Scope::Account =>
            {
                (Part::Account, refused, (5 * MINUTE, 60 * MINUTE))
            }
            Outcome::NotFound if verdict.another_model_helps() => {
                (Part::Model, free, (60 * MINUTE, 24 * 60 * MINUTE))
            }
            _ => return None,
        };
        Some(Failure { part, cause: verdict.outcome(), after, first, longest: longest.max(first) })
    }
}

impl Default for Cooldowns {
    fn default() -> Self {
        Self::recommended()
    }
}

/// What a failure is about, and what it leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub(super) part: Part,
    cause: Outcome,
    /// How many in a row open the circuit.
    after: u32,
    first: Duration,
    longest: Duration,
}

impl Failure {
    /// Open until the cooldown of the so-many-th time in a row has passed.
    fn open(&self, trips: u32, now: Instant) -> CircuitState {
        let factor = 1_u32.checked_shl(trips.saturating_sub(1).min(16)).unwrap_or(u32::MAX);
        let cooldown = self.first.saturating_mul(factor).min(self.longest);
        let until = now.checked_add(cooldown).unwrap_or(now);
        CircuitState::Open { until, trips, cause: self.cause }
    }
}

/// A part of a target that fails by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The model at this size.
    Size,
    /// The model.
    Model,
    /// The model's quota for whoever pays.
    Quota,
    /// Whoever pays.
    Account,
}

/// The names of a target's circuits, one per [`Part`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys(pub(super) [String; 4]);

impl Keys {
    /// `upstream` identifies where the request goes; `payer` is the account, or a fingerprint of
    /// the caller's credentials: in a gateway each caller has quotas of its own, and one bad key
    /// closes nothing for the others.
    pub(super) fn new(model: &str, size: Option<ImageSize>, upstream: &str, payer: &str) -> Self {
        let at = if upstream.is_empty() { String::new() } else { format!(" on {upstream}") };
        let size = size.unwrap_or(ImageSize::K1);
        Self([
            format!("{model} at {size}{at}"),
            format!("{model}{at}"),
            format!("quota of {model} of {payer}{at}"),
            format!("account of {payer}{at}"),
        ])
    }

    pub(super) fn part(&self, part: Part) -> &str {
        let [size, model, quota, account] = &self.0;
        match part {
            Part::Size => size,
            Part::Model => model,
            Part::Quota => quota,
            Part::Account => account,
        }
    }
}

/// The state of one circuit. A closed circuit that has seen no failure is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CircuitState {
    /// Closed: calls go through, and so many failed in a row.
    Failing {
        /// How many.
        failures: u32,
    },
    /// Open: left alone until then; after that one call may probe it.
    Open {
        /// Until when, in the runtime's time.
        until: Instant,
        /// How many times in a row it opened, this time included.
        trips: u32,
        /// What it failed with.
        cause: Outcome,
    },
    /// Half-open: one call is probing it.
    HalfOpen {
        /// Until when it was to be left alone; later than now where the probe came early.
        until: Instant,
        /// How many times in a row it opened before.
        trips: u32,
        /// What it failed with.
        cause: Outcome,
    },
}

/// A circuit that is not well.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) state: CircuitState,
    /// When a call that has nowhere else to go may probe it, before its cooldown ends: at once, and
    /// a cooldown of the first kind after each probe that failed.
    pub(super) early_at: Option<Instant>,
}

/// The states of all circuits that are not well. Pure: the time is handed in.
#[derive(Debug, Default)]
pub(super) struct States(pub(super) HashMap<String, Known>);

/// No catalogue holds more models; callers may ask for anything.
pub(super) const MAX_MODELS: usize = 256;

/// A bound on what is remembered: callers' credentials come and go.
pub(super) const MAX_CIRCUITS: usize = 4096;

impl States {
    pub(super) fn get(&self, key: &str) -> Option<CircuitState> {
        self.0.get(key).map(|known| known.state)
    }

    /// Admits a call to a target, or says why not. Returns the circuits that this call probes.
    pub(super) fn admit(
        &mut self,
        keys: &Keys,
        now: Instant,
        early: bool,
    ) -> Result<Vec<String>, SkipReason> {
        self.check(keys, now, early)?;
        let mut probed = Vec::new();
        for key in &keys.0 {
            if let Some(Known { state, .. }) = self.0.get_mut(key) {
                if let CircuitState::Open { until, trips, cause } = *state {
                    *state = CircuitState::HalfOpen { until, trips, cause };
                    probed.push(key.clone());
                }
            }
        }
        Ok(probed)
    }

    /// Whether [`admit`](Self::admit) would admit a call.
    pub(super) fn check(&self, keys: &Keys, now: Instant, early: bool) -> Result<(), SkipReason> {
        let mut left = Duration::ZERO;
        for key in &keys.0 {
            let Some(Known { state, early_at }) = self.0.get(key) else { continue };
            match *state {
                CircuitState::HalfOpen { .. } => return Err(SkipReason::Probed),
                CircuitState::Open { until, cause, .. } => {
                    let is_early = early && can_recover_early(cause);
                    let due =
                        if is_early { early_at.map_or(now, |at| at.min(until)) } else { until };
                    left = left.max(due.saturating_duration_since(now));
                }
                CircuitState::Failing { .. } => {}
            }
        }
        if left.is_zero() { Ok(()) } else { Err(SkipReason::CircuitOpen { left }) }
    }

    /// Probes that ended without saying anything about their target: the next call may probe at
    /// once, an early one as early.
    pub(super) fn release(&mut self, probed: &[String]) {
        for key in probed {
            if let Some(Known { state, .. }) = self.0.get_mut(key) {
                if let CircuitState::HalfOpen { until, trips, cause } = *state {
                    *state = CircuitState::Open { until, trips, cause };
                }
            }
        }
    }

    pub(super) fn succeed(&mut self, keys: &Keys, probed: &[String], now: Instant) {
        for key in &keys.0 {
            match self.0.get(key).map(|known| &known.state) {
                // A success of a call that went out before the circuit opened is older news.
                Some(CircuitState::Open { until, .. }) if *until > now => {}
                Some(CircuitState::HalfOpen { .. }) if !probed.contains(key) => {}
                _ => {
                    self.0.remove(key);
                }
            }
        }
    }

    pub(super) fn fail(&mut self, key: &str, probed: bool, now: Instant, failure: &Failure) {
        let mut early_at = None;
        let state = match self.0.get(key).map(|known| &known.state) {
            Some(&CircuitState::HalfOpen { until, trips, cause }) if probed => {
                early_at = now.checked_add(failure.first);
                // An early probe that failed leaves the circuit as it was: it cost nothing, and
                // those who wait for it must not wait longer.
                if until > now {
                    CircuitState::Open { until, trips, cause }
                } else {
                    failure.open(trips.saturating_add(1), now)
                }
            }
            // Others that went out before: they say no more than the first one did.
            Some(CircuitState::HalfOpen { .. } | CircuitState::Open { .. }) => return,
            Some(&CircuitState::Failing { failures }) => self.count(failures, now, failure),
            None => self.count(0, now, failure),
        };
        if self.0.len() >= MAX_CIRCUITS {
            self.0.retain(
                |_, known| !matches!(known.state, CircuitState::Open { until, .. } if until <= now),
            );
        }
        if self.0.len() < MAX_CIRCUITS || self.0.contains_key(key) {
            self.0.insert(key.to_owned(), Known { state, early_at });
        }
    }

    /// Whether a call to this target would be a probe.
    pub(super) fn is_open(&self, keys: &Keys) -> bool {
        let open = |known: &Known| !matches!(known.state, CircuitState::Failing { .. });
        keys.0.iter().any(|key| self.0.get(key).is_some_and(open))
    }

    fn count(&self, before: u32, now: Instant, failure: &Failure) -> CircuitState {
        let failures = before.saturating_add(1);
        if failures >= failure.after {
            failure.open(1, now)
        } else {
            CircuitState::Failing { failures }
        }
    }
}

/// Capacity can come back at any time; a quota, an account without credit and a model that is gone
/// do not.
pub(super) fn can_recover_early(cause: Outcome) -> bool {
    matches!(
        cause,
        Outcome::Overloaded
            | Outcome::Deadline
            | Outcome::Interrupted
            | Outcome::StreamError
            | Outcome::Internal
            | Outcome::Cancelled
            | Outcome::BadGateway
            | Outcome::Other
    )
}

/// Whether a circuit is worth telling others: open, for a cause that time or people cure.
pub(super) fn is_shared(state: &CircuitState) -> bool {
    match state {
        CircuitState::Open { cause, .. } | CircuitState::HalfOpen { cause, .. } => {
            !can_recover_early(*cause)
        }
        CircuitState::Failing { .. } => false,
    }
}
