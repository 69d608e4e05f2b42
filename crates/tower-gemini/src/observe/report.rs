//! What was seen, for people and for programs: pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::Outcome;

use super::diagnosis::{Diagnosis, HealthTargets};
use super::latency::Latencies;
use super::names::ModelNames;
use super::outcome::{CallOutcome, FailureKind};
use super::recent::FinishedCall;
use super::tally::{Counts, WAITS, wait_word};

/// What an [`Observatory`](super::Observatory) has seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// When this was written, in seconds since 1970.
    pub at_unix: u64,
    /// Since when it has been counted, in seconds since 1970.
    pub since_unix: u64,
    /// Calls that have begun and not ended.
    pub in_flight: u64,
    /// What the last hour's figures mean.
    pub hour: Diagnosis,
    /// What the last day's figures mean.
    pub day: Diagnosis,
    /// The last hour: sixty minutes, and what of the next five has passed.
    pub last_hour: Window,
    /// The last 24 hours, the one that has begun included.
    pub last_day: Window,
    /// Everything since the start.
    pub total: Window,
    /// The last 48 hours on the clock in UTC, oldest first, the one that has begun last.
    pub hours: Vec<Hour>,
    /// The last 30 days in UTC, oldest first, today last.
    pub days: Vec<Window>,
    /// The failure rates that are aimed for.
    pub targets: HealthTargets,
    /// The calls that ended last, newest first.
    pub recent: Vec<FinishedCall>,
}

/// One hour, and how it stands to what is aimed for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Hour {
    /// What it came to.
    #[serde(flatten)]
    pub window: Window,
    /// Whether it is one of the peak hours; `None` where none are known.
    pub is_peak: Option<bool>,
}

/// What a stretch of time came to. Only calls that ask a model to make something count, but for
/// [`other_calls`](Self::other_calls) and the money.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Window {
    /// When it began, in seconds since 1970.
    pub start_unix: u64,
    /// Calls that ended.
    pub calls: u64,
    /// Of them, those whose callers got what they asked for.
    pub successes: u64,
    /// Of them, those whose callers did not, and were there to notice.
    pub failures: u64,
    /// Of them, those whose callers left.
    pub callers_left: u64,
    /// Failures of successes and failures, 0 to 1; `None` where there are neither.
    pub failure_rate: Option<f64>,
    /// Calls by what they came to, those that came about.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Calls of another kind: token counts, lists of models.
    pub other_calls: u64,
    /// Successes for which something was given up: another model, a smaller image.
    pub degraded: u64,
    /// Attempts that ended.
    pub attempts: u64,
    /// Of them, those that failed.
    pub failed_attempts: u64,
    /// Attempts by what they ended in, those that came about.
    pub attempt_outcomes: BTreeMap<&'static str, u64>,
    /// Attempts that were refused for a limit of your own: 429.
    pub rate_limited: u64,
    /// Attempts that met no capacity: 503, and the 429s that mean the same.
    pub overloaded: u64,
    /// Attempts that failed otherwise.
    pub failed_otherwise: u64,
    /// 429s for each 503; `None` where there was no 503.
    pub ratio_429_to_503: Option<f64>,
    /// How long calls took.
    pub call_seconds: Seconds,
    /// How long attempts took.
    pub attempt_seconds: Seconds,
    /// Waits by why.
    pub waits: BTreeMap<&'static str, Wait>,
    /// Sent again to the same target.
    pub resends: u64,
    /// Sent to another target.
    pub fallbacks: u64,
    /// Targets passed over.
    pub skipped_targets: u64,
    /// Calls that went on without their callers.
    pub finished_without_caller: u64,
    /// Answers kept for the caller's next identical request.
    pub kept: u64,
    /// Answers that were not kept.
    pub not_kept: u64,
    /// Kept answers that were given.
    pub redeemed: u64,
    /// Images delivered, one a call, those given again included.
    pub images: u64,
    /// Drafts that came with them.
    pub drafts: u64,
    /// What all attempts cost. At most is `None` where the price of one is not known.
    pub cost: Cost,
    /// Attempts of unknown price.
    pub unpriced_attempts: u64,
    /// What the attempts whose price is known cost at most.
    pub priced_at_most_microusd: u64,
    /// What each delivered image cost, failed attempts included; `None` where there was none.
    pub cost_per_image: Option<Cost>,
    /// Attempts that were certainly paid for.
    pub charged_attempts: u64,
    /// Attempts that may have been paid for.
    pub maybe_charged_attempts: u64,
    /// Requests that the service counted, at least.
    pub quota_at_least: u64,
    /// Requests that the service counted, at most.
    pub quota_at_most: u64,
    /// Models by name, those of the catalogue; all others are `other`.
    pub models: BTreeMap<String, ModelWindow>,
    #[serde(skip)]
    pub(super) of_attempt: [u64; Outcome::ALL.len()],
    /// The failed attempts of failed calls.
    #[serde(skip)]
    pub(super) blamed: [u64; Outcome::ALL.len()],
    #[serde(skip)]
    pub(super) of_call: [u64; CallOutcome::COUNT],
}

/// What one model came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ModelWindow {
    /// Attempts that ended.
    pub attempts: u64,
    /// Of them, those that succeeded.
    pub successes: u64,
    /// Of them, those that the service failed: 500, 502, 503, 504.
    pub service_failures: u64,
}

/// How long things took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Seconds {
    /// How many there were.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The mean; `None` where there were none.
    pub mean: Option<f64>,
    /// Half took no longer. Up to 19 % too high, never too low.
    pub p50: Option<f64>,
    /// Of twenty, nineteen took no longer. Up to 19 % too high, never too low.
    pub p95: Option<f64>,
}

/// How often and how long was waited.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Wait {
    /// How often.
    pub count: u64,
    /// How long in all.
    pub seconds: f64,
}

#[allow(
    clippy::cast_precision_loss,
    reason = "for people: a count beyond 2^53 is none that they read"
)]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Seconds {
    fn of(latencies: &Latencies) -> Self {
        let sum = latencies.sum().as_secs_f64();
        let percentile = |percent| latencies.percentile(percent).map(|time| time.as_secs_f64());
        #[allow(clippy::cast_precision_loss, reason = "a mean for people")]
        let mean = (latencies.count() > 0).then(|| sum / latencies.count() as f64);
        Self { count: latencies.count(), sum, mean, p50: percentile(50), p95: percentile(95) }
    }
}

impl Window {
    /// What counts came to. Models are named by `names`.
    pub(super) fn new(start_unix: u64, counts: &Counts, names: &ModelNames) -> Self {
        let calls = |which: fn(CallOutcome) -> bool| {
            CallOutcome::all()
                .zip(counts.calls)
                .filter(|(outcome, _)| which(*outcome))
                .map(|(_, count)| count)
                .sum()
        };
        let (successes, failures): (u64, u64) =
            (calls(CallOutcome::is_success), calls(CallOutcome::is_failure));
        let kinds = kinds_of(&counts.attempts);
        let kind = |kind| kinds.iter().find(|(one, _)| *one == kind).map_or(0, |(_, count)| *count);
        let (rate_limited, overloaded) =
            (kind(FailureKind::RateLimited), kind(FailureKind::Overloaded));
        let failed_attempts: u64 = kinds.iter().map(|(_, count)| count).sum();
        let at_most = counts.cost_at_most;
        let cost = Cost {
            at_least_microusd: counts.cost_at_least,
            at_most_microusd: (counts.unpriced == 0).then_some(at_most),
        };
        let mut models: BTreeMap<String, ModelWindow> = BTreeMap::new();
        for (place, model) in &counts.models {
            let (attempts, successes, service_failures) =
                (model.attempts, model.successes, model.service_failures);
            models.insert(
                names.name(*place).to_string(),
                ModelWindow { attempts, successes, service_failures },
            );
        }
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let wait = |(count, ms): (u64, u64)| Wait { count, seconds: ms as f64 / 1000.0 };
        Self {
            start_unix,
            calls: counts.calls.iter().sum(),
            successes,
            failures,
            callers_left: counts.calls.get(CallOutcome::CallerLeft.index()).copied().unwrap_or(0),
            failure_rate: ratio(failures, successes + failures),
            outcomes: CallOutcome::all()
                .zip(counts.calls)
                .filter(|(_, count)| *count > 0)
                .map(|(outcome, count)| (outcome.as_str(), count))
                .collect(),
            other_calls: counts.other_calls,
            degraded: counts.degraded,
            attempts: counts.attempts.iter().sum(),
            failed_attempts,
            attempt_outcomes: Outcome::ALL
                .iter()
                .zip(counts.attempts)
                .filter(|(_, count)| *count > 0)
                .map(|(outcome, count)| (outcome.as_str(), count))
                .collect(),
            rate_limited,
            overloaded,
            failed_otherwise: failed_attempts - rate_limited - overloaded,
            ratio_429_to_503: ratio(rate_limited, overloaded),
            call_seconds: Seconds::of(&counts.call_took),
            attempt_seconds: Seconds::of(&counts.attempt_took),
            waits: WAITS
                .iter()
                .zip(counts.waits)
                .filter(|(_, (count, _))| *count > 0)
                .map(|(why, waited)| (wait_word(*why), wait(waited)))
                .collect(),
            resends: counts.sent_again,
            fallbacks: counts.sent_elsewhere,
            skipped_targets: counts.skipped,
            finished_without_caller: counts.callers_left,
            kept: counts.kept,
            not_kept: counts.not_kept,
            redeemed: counts.calls.get(CallOutcome::Redeemed.index()).copied().unwrap_or(0),
            images: counts.images,
            drafts: counts.drafts,
            cost,
            unpriced_attempts: counts.unpriced,
            priced_at_most_microusd: at_most,
            cost_per_image: cost.per_image(counts.images),
            charged_attempts: counts.charged,
            maybe_charged_attempts: counts.maybe_charged,
            quota_at_least: counts.quota_at_least,
            quota_at_most: counts.quota_at_most,
            models,
            of_attempt: counts.attempts,
            blamed: counts.blamed,
            of_call: counts.calls,
        }
    }

    /// Failed attempts by kind, the most frequent first.
    #[must_use]
    pub fn failure_kinds(&self) -> Vec<(FailureKind, u64)> {
        kinds_of(&self.of_attempt)
    }

    /// How many attempts ended so.
    #[must_use]
    pub fn attempts_with(&self, outcome: Outcome) -> u64 {
        self.of_attempt.get(super::outcome::place(outcome)).copied().unwrap_or(0)
    }

    /// How many calls came to that.
    #[must_use]
    pub fn calls_with(&self, outcome: CallOutcome) -> u64 {
        self.of_call.get(outcome.index()).copied().unwrap_or(0)
    }

    fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls", self.calls)?;
        if let Some(rate) = self.failure_rate {
            write!(f, ", {} failed", percent(rate))?;
        }
        write!(
            f,
            "; {} attempts (429: {}, 503: {}, failed otherwise: {})",
            self.attempts, self.rate_limited, self.overloaded, self.failed_otherwise
        )?;
        if let (Some(p50), Some(p95)) = (self.call_seconds.p50, self.call_seconds.p95) {
            write!(f, "; half within {p50:.1} s, 95 % within {p95:.1} s")?;
        }
        write!(f, "; {} images, {}", self.images, self.cost)?;
        if let Some(each) = self.cost_per_image {
            write!(f, ", {each} each")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    /// A few lines: the two diagnoses and the figures that they rest on.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, window, diagnosis) in
            [("last hour", &self.last_hour, &self.hour), ("last day", &self.last_day, &self.day)]
        {
            write!(f, "{name}: ")?;
            window.line(f)?;
            writeln!(f, "\n  {diagnosis}")?;
        }
        write!(f, "since the start: ")?;
        self.total.line(f)?;
        write!(f, "\n{} in flight", self.in_flight)
    }
}

/// Failures by kind, the most frequent first.
pub(super) fn kinds_of(outcomes: &[u64; Outcome::ALL.len()]) -> Vec<(FailureKind, u64)> {
    let mut kinds: BTreeMap<FailureKind, u64> = BTreeMap::new();
    for (outcome, count) in Outcome::ALL.iter().zip(outcomes) {
        if let (Some(kind), true) = (FailureKind::of(*outcome), *count > 0) {
            *kinds.entry(kind).or_insert(0) += count;
        }
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(kind, count)| (std::cmp::Reverse(*count), *kind));
    kinds
}

/// `4.2 %`, `0 %`.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let is_whole = percent >= 10.0 || (percent - percent.round()).abs() < 0.05;
    if is_whole { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

/// Words in place of a variant's name, for [`Diagnosis`].
pub(super) fn as_display<S: Serializer, T: fmt::Display>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
