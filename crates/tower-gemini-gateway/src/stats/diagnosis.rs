//! Says what counts mean and what to do about it.
//!
//! The rules follow LaoZhang's and APIYI's articles on Nano Banana errors (2026-01 to 2026-03),
//! unless official documentation knows better: with more than 80 % of the failures being 429s the
//! client sends too much; mostly 503s mean that the service has no capacity, which nothing on the
//! client's side changes; below 5 % failures off peak and 20 % at peak calls are healthy.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_gemini::observe::CallOutcome;
use tower_gemini::observe::reason_name;
use tower_gemini::peak_hour_router::Schedule;
use tower_gemini::verdict::Outcome;

use super::cause::Cause;
use super::counts::ratio;
use super::window::{ModelWindow, Window};

/// The failure rates that are aimed for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HealthTargets {
    /// Off peak, 0 to 1. Default 0.05.
    pub off_peak: f64,
    /// At peak, 0 to 1. Default 0.20.
    pub peak: f64,
    /// Which hours are peak. Without it both targets are shown.
    pub peak_hours: Option<Schedule>,
}

impl HealthTargets {
    /// Aims for less than 5 % failures off peak and 20 % at peak (LaoZhang, 2026-01).
    #[must_use]
    pub fn recommended() -> Self {
        Self { off_peak: 0.05, peak: 0.20, peak_hours: None }
    }

    /// Sets the peak hours, by the same [`Schedule`] that a `PeakHourRouter` uses.
    #[must_use]
    pub fn peak_hours(mut self, schedule: Schedule) -> Self {
        self.peak_hours = Some(schedule);
        self
    }

    /// Compares a failure rate with the targets; `is_peak` where it is known.
    #[must_use]
    pub fn judge(&self, failure_rate: Option<f64>, is_peak: Option<bool>) -> Health {
        match (failure_rate, is_peak) {
            (None, _) => Health::Unknown,
            (Some(rate), _) if rate < self.off_peak => Health::Good,
            (Some(rate), Some(true)) if rate < self.peak => Health::Good,
            (Some(rate), _) if rate < self.peak => Health::Strained,
            _ => Health::Failing,
        }
    }
}

/// How calls fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Too few calls to tell.
    Unknown,
    /// Within the target: the off-peak one, or at peak the peak one.
    Good,
    /// Above the off-peak target and within the peak one.
    Strained,
    /// Above the peak target.
    Failing,
}

/// Which limit most 429s were about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// Requests, tokens or images per minute.
    Minute,
    /// Requests per day.
    Day,
    /// No quota at all, or no billing.
    Zero,
    /// Money per ten minutes.
    Spend,
    /// The 429s do not say.
    Unnamed,
}

/// What counts mean.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// How calls fare.
    pub health: Health,
    /// What most failures come from.
    pub cause: Cause,
    /// Which limit, if limits are the cause.
    pub limit: Option<LimitKind>,
    /// The cause in a few words: `too aggressive`, `no capacity`.
    pub title: &'static str,
    /// One or two sentences.
    pub summary: String,
    /// What to do, the most useful first.
    pub advice: Vec<String>,
    /// Common reactions that do not help.
    pub unhelpful: Vec<&'static str>,
}

/// The fewest calls that a rate is computed from: one failure in four is no rate.
pub(super) const MIN_CALLS: u64 = 5;

/// What a diagnosis is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figures<'a> {
    /// `in the last hour`.
    pub(super) when: &'static str,
    pub(super) window: &'a Window,
    /// The last quarter of an hour: an outage is one before it fills the hour.
    pub(super) latest: Option<&'a Window>,
    /// The hours of a day.
    pub(super) hours: &'a [Window],
    /// Whether it is peak now, if that is known and the window is short enough.
    pub(super) is_peak: Option<bool>,
    pub(super) until_midnight_pacific: Duration,
}

/// What is said about a cause: an entry of `causes.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CauseText {
    title: String,
    what: String,
    meaning: String,
    advice: Vec<String>,
    at_deadline: Option<String>,
    few_hours: Option<String>,
    all_day: Option<String>,
    otherwise: Option<String>,
    unhelpful: Vec<String>,
}

/// Returns the text about a cause; a test checks that there is one for each.
fn text_of(name: &str) -> &'static CauseText {
    static NONE: LazyLock<CauseText> = LazyLock::new(CauseText::default);
    static TEXTS: LazyLock<BTreeMap<String, CauseText>> =
        LazyLock::new(|| toml::from_str(include_str!("causes.toml")).unwrap_or_default());
    TEXTS.get(name).unwrap_or(&NONE)
}

/// Returns the cause of a single failure in a few words, as a diagnosis calls many of them.
pub(crate) fn title(outcome: Outcome) -> &'static str {
    let Some(cause) = Cause::from_outcome(outcome) else { return "success" };
    let name = reason_name(&cause);
    match LIMITS.iter().find(|(_, limited)| *limited == outcome) {
        Some((limit, _)) => &text_of(&format!("{name}_{}", reason_name(limit))).title,
        None => &text_of(&name).title,
    }
}

/// The limits that 429s name, the most telling last.
const LIMITS: [(LimitKind, Outcome); 5] = [
    (LimitKind::Unnamed, Outcome::RateLimited),
    (LimitKind::Spend, Outcome::SpendRateLimited),
    (LimitKind::Zero, Outcome::QuotaZeroOrBilling),
    (LimitKind::Day, Outcome::RateLimitedDay),
    (LimitKind::Minute, Outcome::RateLimitedMinute),
];

/// Diagnoses a window.
pub(super) fn diagnose(figures: &Figures<'_>, targets: &HealthTargets) -> Diagnosis {
    let window = figures.window;
    let blame = Blame::new(window, targets);
    let cause = cause(figures, targets, &blame);
    let ended = window.successes + window.failures;
    let health = match cause {
        Cause::NotEnoughData => Health::Unknown,
        _ if ended < MIN_CALLS => Health::Unknown,
        _ => targets.judge(window.failure_rate, figures.is_peak),
    };
    let limit = (cause == Cause::RateLimited).then(|| blame.limit());
    let name = match (cause, limit) {
        (Cause::Mixed, _) if blame.kinds.is_empty() => "rejected".into(),
        (cause, Some(limit)) => format!("{}_{}", reason_name(&cause), reason_name(&limit)).into(),
        (cause, None) => reason_name(&cause),
    };
    let text = text_of(&name);
    let concentration = concentration(figures, cause);
    let hours = match concentration {
        Some(Concentration::FewHours(hours)) => plural(hours as u64, "hour"),
        _ => String::new(),
    };
    let reset = figures.until_midnight_pacific.as_secs().div_ceil(60);
    let models: Vec<&str> = window.models.keys().map(String::as_str).collect();
    let placeholders = [
        ("{share}", blame.share(&text.what)),
        ("{reset}", format!("in {} h {} min", reset / 60, reset % 60)),
        ("{hours}", hours),
        ("{models}", models.join(", ")),
        ("{kinds}", blame.most_frequent()),
        ("{own_quota}", window.calls_with(CallOutcome::OwnQuota).to_string()),
        ("{spending_cap}", window.calls_with(CallOutcome::SpendingCap).to_string()),
        ("{not_recorded}", window.calls_with(CallOutcome::NotRecorded).to_string()),
    ];
    let fill = |text: &str| {
        let fill = |text: String, (name, value): &(&str, String)| text.replace(name, value);
        placeholders.iter().fold(text.to_owned(), fill)
    };
    let mut summary = match (cause, ended) {
        (Cause::NotEnoughData, 0) => format!("No calls {}.", figures.when),
        (Cause::NotEnoughData, calls) => format!(
            "{} {}, {} failed: too few to tell ({MIN_CALLS} are needed).",
            plural(calls, "call"),
            figures.when,
            window.failures,
        ),
        _ => standing(figures, targets, health),
    };
    if !text.meaning.is_empty() {
        summary = format!("{summary} {}", fill(&text.meaning));
    }
    let conditional = match concentration {
        Some(Concentration::FewHours(_)) => &text.few_hours,
        Some(Concentration::AllDay) => &text.all_day,
        None if blame.are_mostly(Outcome::Deadline) => &text.at_deadline,
        None => &text.otherwise,
    };
    Diagnosis {
        health,
        cause,
        limit,
        title: &text.title,
        summary,
        advice: conditional.iter().chain(&text.advice).map(|advice| fill(advice)).collect(),
        unhelpful: text.unhelpful.iter().map(String::as_str).collect(),
    }
}

/// `2 of 120 calls failed in the last hour (1.7 %, target: less than 5 %).`
fn standing(figures: &Figures<'_>, targets: &HealthTargets, health: Health) -> String {
    let window = figures.window;
    let rate = window.failure_rate.map_or_else(|| "-".to_owned(), percent);
    let (off_peak, peak) = (percent(targets.off_peak), percent(targets.peak));
    let target = match figures.is_peak {
        Some(true) => format!("target at peak: less than {peak}"),
        Some(false) => format!("target off peak: less than {off_peak}"),
        None => format!("targets: less than {off_peak} off peak, {peak} at peak"),
    };
    let missed = match (health, figures.is_peak) {
        (Health::Failing, _) | (Health::Strained, Some(_)) => ", missed",
        (Health::Strained, None) => ", missed off peak",
        _ => "",
    };
    let calls = plural(window.successes + window.failures, "call");
    let (failures, when) = (window.failures, figures.when);
    let text = format!("{failures} of {calls} failed {when} ({rate}; {target}{missed}).");
    let (all, failed) = (window.attempts, window.failed_attempts);
    if health != Health::Good || all == 0 || failed * 20 < all {
        return text;
    }
    let all = plural(all, "attempt");
    format!("{text} Clients see little of it, but {failed} of {all} failed underneath.")
}

/// The failed attempts that a diagnosis is about: those of failed calls, because clients do not
/// suffer from what a fallback cured. Where calls fare well, all of them: what is cured today takes
/// time, and may not be cured tomorrow.
struct Blame {
    outcomes: Vec<(Outcome, u64)>,
    /// The most frequent first.
    kinds: Vec<(Cause, u64)>,
    failed: u64,
}

impl Blame {
    fn new(window: &Window, targets: &HealthTargets) -> Self {
        let by_name = match calls_are_well(window, targets) || window.blamed_outcomes.is_empty() {
            true => &window.attempt_outcomes,
            false => &window.blamed_outcomes,
        };
        let count = |outcome: &Outcome| Some((*outcome, *by_name.get(outcome.as_str())?));
        let outcomes: Vec<_> = Outcome::ALL.iter().filter_map(count).collect();
        let mut kinds: BTreeMap<Cause, u64> = BTreeMap::new();
        for (outcome, count) in &outcomes {
            if let Some(kind) = Cause::from_outcome(*outcome) {
                *kinds.entry(kind).or_default() += count;
            }
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(kind, count)| (std::cmp::Reverse(*count), *kind));
        let failed = kinds.iter().map(|(_, count)| count).sum();
        Self { outcomes, kinds, failed }
    }

    fn with(&self, outcome: Outcome) -> u64 {
        self.outcomes.iter().find(|(one, _)| *one == outcome).map_or(0, |(_, count)| *count)
    }

    /// Returns the limit that most 429s were about.
    fn limit(&self) -> LimitKind {
        LIMITS
            .into_iter()
            .max_by_key(|(_, outcome)| self.with(*outcome))
            .map_or(LimitKind::Unnamed, |(kind, _)| kind)
    }

    /// Whether one failure of this kind is enough for a diagnosis.
    fn is_conclusive(&self, kind: Cause) -> bool {
        use Cause as K;
        match kind {
            K::KeyOrRegion | K::ThoughtSignatures | K::ModelGone => true,
            K::RateLimited => matches!(self.limit(), LimitKind::Day | LimitKind::Zero),
            _ => false,
        }
    }

    /// `rate limited (8); server fault (2)`.
    fn most_frequent(&self) -> String {
        let kind = |(kind, count): &(Cause, u64)| {
            format!("{} ({count})", reason_name(kind).replace('_', " "))
        };
        self.kinds.iter().take(3).map(kind).collect::<Vec<_>>().join("; ")
    }

    /// Whether more than half of the most frequent kind ended so.
    fn are_mostly(&self, outcome: Outcome) -> bool {
        self.with(outcome) * 2 > self.kinds.first().map_or(0, |(_, count)| *count)
    }

    /// `92 % of the failed attempts were 429s`.
    fn share(&self, what: &str) -> String {
        let count = self.kinds.first().map_or(0, |(_, count)| *count);
        match self.failed {
            // A share of one or two is no share.
            1 => format!("The one failed attempt was of this kind: {what}"),
            2 => format!("The two failed attempts were {what}"),
            failed => {
                let share = percent(ratio(count, failed).unwrap_or(0.0));
                format!("{share} of the failed attempts were {what}")
            }
        }
    }
}

fn calls_are_well(window: &Window, targets: &HealthTargets) -> bool {
    window.failure_rate.is_none_or(|rate| rate < targets.off_peak)
}

fn cause(figures: &Figures<'_>, targets: &HealthTargets, blame: &Blame) -> Cause {
    let window = figures.window;
    if figures.latest.is_some_and(is_outage) || is_outage(window) {
        return Cause::SystemicOutage;
    }
    let failures = window.failures;
    // One is enough: the store is ours, and says so itself.
    let not_recorded = window.calls_with(CallOutcome::NotRecorded);
    if not_recorded * 2 > failures && !calls_are_well(window, targets) {
        return Cause::NotRecorded;
    }
    let most = blame.kinds.first().copied();
    let is_four_fifths = |count: u64| count * 5 > blame.failed * 4;
    if window.successes + failures < MIN_CALLS {
        let is_enough = |(kind, count): &(Cause, u64)| {
            failures > 0 && is_four_fifths(*count) && blame.is_conclusive(*kind)
        };
        return most.filter(is_enough).map_or(Cause::NotEnoughData, |(kind, _)| kind);
    }
    let own = [CallOutcome::OwnQuota, CallOutcome::SpendingCap];
    if own.map(|outcome| window.calls_with(outcome)).iter().sum::<u64>() * 2 > failures {
        return Cause::OwnLimits;
    }
    let failed = ratio(window.failed_attempts, window.attempts);
    let attempts_are_well = failed.is_none_or(|rate| rate < targets.off_peak);
    match most {
        _ if calls_are_well(window, targets) && attempts_are_well => Cause::Nothing,
        // Below 80 %, sending slower would not cure most of it (LaoZhang, 2026-01).
        Some((Cause::RateLimited, count)) if !is_four_fifths(count) => Cause::Mixed,
        Some((kind, count)) if count * 2 > blame.failed => kind,
        _ => Cause::Mixed,
    }
}

/// Whether every model that was asked failed by the service's own fault, and two or more were
/// asked.
fn is_outage(window: &Window) -> bool {
    let fails = |of: &ModelWindow| of.successes == 0 && of.service_faults * 5 >= of.attempts * 4;
    window.failures >= MIN_CALLS
        && window.successes == 0
        && window.models.len() >= 2
        && window.models.values().all(fails)
}

/// When in a day failures came.
enum Concentration {
    /// Most of them in this many hours, at most a quarter of those with calls.
    FewHours(usize),
    /// In most of the hours with calls.
    AllDay,
}

/// `None` for other causes than capacity and rate limits, and with fewer than eight hours with
/// calls: too few to tell.
fn concentration(figures: &Figures<'_>, cause: Cause) -> Option<Concentration> {
    let outcome = match cause {
        Cause::Overloaded => Outcome::Overloaded,
        Cause::RateLimited => Outcome::RateLimited,
        _ => return None,
    };
    let with_calls = figures.hours.iter().filter(|hour| hour.calls > 0);
    let mut failures: Vec<u64> = with_calls.map(|hour| hour.attempts_with(outcome)).collect();
    if failures.len() < 8 {
        return None;
    }
    failures.sort_unstable_by(|a, b| b.cmp(a));
    let all: u64 = failures.iter().sum();
    let mut sum = 0;
    let is_needed = |count: &&u64| {
        let is_needed = sum * 5 < all * 4;
        sum += *count;
        is_needed
    };
    let needed = failures.iter().take_while(is_needed).count();
    let failing = failures.iter().filter(|count| **count > 0).count();
    match failing {
        _ if needed <= failures.len() / 4 => Some(Concentration::FewHours(needed)),
        failing if failing * 4 >= failures.len() * 3 => Some(Concentration::AllDay),
        _ => None,
    }
}

/// `4.2 %`, `0 %`.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let is_whole = percent >= 10.0 || (percent - percent.round()).abs() < 0.05;
    if is_whole { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tower_gemini::observe::is_service_fault;
    use tower_gemini::peak_hour_router::{Window as PeakWindow, Zone};

    use super::super::counts::{Counts, Key};
    use super::*;

    const PRO: &str = "gemini-3-pro-image";
    const FLASH: &str = "gemini-2.5-flash-image";

    /// Counted calls.
    #[derive(Default)]
    struct Calls(Counts);

    impl Calls {
        /// Adds calls with these attempts, the last of which decides.
        fn of(mut self, count: u64, attempts: &[(&str, Outcome)]) -> Self {
            let last = attempts.last().map(|(_, outcome)| CallOutcome::Ended(*outcome));
            let call = last.unwrap_or(CallOutcome::OwnQuota);
            self.0.add(Key::Call(call), count);
            for &(model, outcome) in attempts {
                let model: Arc<str> = model.into();
                self.0.add(Key::Attempt(outcome), count);
                self.0.add(Key::ModelAttempts(model.clone()), count);
                if outcome.is_success() {
                    self.0.add(Key::ModelSuccesses(model), count);
                } else if is_service_fault(outcome) {
                    self.0.add(Key::ModelServiceFaults(model), count);
                }
                if call.is_failure() && !outcome.is_success() {
                    self.0.add(Key::BlamedAttempt(outcome), count);
                }
            }
            self
        }

        fn ends(mut self, outcome: CallOutcome) -> Self {
            self.0.add(Key::Call(outcome), 1);
            self
        }

        fn images(self, count: u64) -> Self {
            self.of(count, &[(PRO, Outcome::Image)])
        }

        fn window(&self) -> Window {
            Window::new(0, &self.0)
        }

        fn diagnosed(&self) -> Diagnosis {
            diagnose(&figures(&self.window()), &HealthTargets::recommended())
        }

        fn diagnosed_at(&self, is_peak: Option<bool>, targets: &HealthTargets) -> Diagnosis {
            diagnose(&Figures { is_peak, ..figures(&self.window()) }, targets)
        }
    }

    fn figures(window: &Window) -> Figures<'_> {
        Figures {
            when: "in the last hour",
            window,
            latest: None,
            hours: &[],
            is_peak: None,
            until_midnight_pacific: Duration::from_secs(5 * 3600 + 90),
        }
    }

    fn failed(outcome: Outcome) -> Calls {
        Calls::default().images(10).of(10, &[(PRO, outcome)])
    }

    #[test]
    fn every_cause_has_a_text_without_unfilled_placeholders() {
        let texts: BTreeMap<String, CauseText> =
            toml::from_str(include_str!("causes.toml")).unwrap();
        assert_eq!(texts.len(), 15 + 1 + 5, "causes but rate_limited, rejected, five limits");
        for outcome in Outcome::ALL.iter().filter(|outcome| !outcome.is_success()) {
            let diagnosis = failed(*outcome).diagnosed();
            assert!(!diagnosis.title.is_empty(), "{outcome}");
            assert!(!title(*outcome).is_empty(), "{outcome}");
            let text = format!("{}{}", diagnosis.summary, diagnosis.advice.concat());
            assert!(!text.contains(['{', '}']), "{text}");
        }
    }

    // It named layers of the library, which nobody finds in a file of the gateway.
    #[test]
    fn advice_names_the_keys_that_cure_and_every_one_of_them_is_a_key() {
        // Their cure is in the request.
        let without =
            ["bad_request", "no_image", "not_enough_data", "nothing", "refused", "rejected"];
        let texts: BTreeMap<String, CauseText> =
            toml::from_str(include_str!("causes.toml")).unwrap();
        for (cause, text) in texts {
            let conditional = [text.at_deadline, text.few_hours, text.all_day, text.otherwise];
            let advice: Vec<_> = conditional.into_iter().flatten().chain(text.advice).collect();
            let advice = advice.join(" ");
            let named = crate::config::named_keys(&advice).len();
            let names_none = named == 0 && !advice.contains("[[upstream]]");
            assert_eq!(without.contains(&&*cause), names_none, "{cause}: {advice}");
        }
    }

    #[test]
    fn every_failed_outcome_has_a_kind_and_no_success_has_one() {
        for &outcome in Outcome::ALL {
            assert_eq!(Cause::from_outcome(outcome).is_none(), outcome.is_success());
        }
    }

    #[test]
    fn each_cause_is_recognised_by_its_counts() {
        use Outcome as O;
        for (name, calls, health, cause, says) in [
            (
                "no calls",
                Calls::default(),
                Health::Unknown,
                Cause::NotEnoughData,
                "No calls in the last hour.",
            ),
            (
                "too few calls",
                Calls::default().images(2).of(1, &[(PRO, O::Overloaded)]),
                Health::Unknown,
                Cause::NotEnoughData,
                "3 calls in the last hour, 1 failed: too few to tell (5 are needed).",
            ),
            (
                "all is well",
                Calls::default().images(100),
                Health::Good,
                Cause::Nothing,
                "0 of 100 calls failed in the last hour (0 %;",
            ),
            (
                "429s of the minute",
                Calls::default()
                    .images(10)
                    .of(9, &[(PRO, O::RateLimitedMinute)])
                    .of(1, &[(PRO, O::Internal)]),
                Health::Failing,
                Cause::RateLimited,
                "Too aggressive: 90 % of the failed attempts were 429s, for per-minute limits.",
            ),
            (
                "429s of the day",
                failed(O::RateLimitedDay),
                Health::Failing,
                Cause::RateLimited,
                "The quota resets at midnight Pacific, in 5 h 2 min.",
            ),
            (
                "zero quota",
                failed(O::QuotaZeroOrBilling),
                Health::Failing,
                Cause::RateLimited,
                "Waiting does not help.",
            ),
            (
                "money of ten minutes",
                failed(O::SpendRateLimited),
                Health::Failing,
                Cause::RateLimited,
                "in ten minutes",
            ),
            (
                "429s that do not say",
                failed(O::RateLimited),
                Health::Failing,
                Cause::RateLimited,
                "do not name their limit",
            ),
            (
                "exactly 80 % is not more than 80 %",
                Calls::default()
                    .images(10)
                    .of(8, &[(PRO, O::RateLimitedMinute)])
                    .of(2, &[(PRO, O::Internal)]),
                Health::Failing,
                Cause::Mixed,
                "No single cause stands out: rate limited (8); server fault (2).",
            ),
            (
                "503s",
                Calls::default()
                    .images(10)
                    .of(6, &[(PRO, O::Overloaded)])
                    .of(4, &[(PRO, O::Internal)]),
                Health::Failing,
                Cause::Overloaded,
                "No capacity: 60 % of the failed attempts were 503s",
            ),
            (
                "500s of one model",
                failed(O::Internal),
                Health::Failing,
                Cause::ServerFault,
                "faults of the service itself",
            ),
            (
                "every model fails",
                Calls::default()
                    .of(5, &[(PRO, O::Internal), (PRO, O::Internal), (FLASH, O::Overloaded)]),
                Health::Failing,
                Cause::SystemicOutage,
                "Systemic outage: every model that was asked fails (gemini-2.5-flash-image, gemini-3-pro-image).",
            ),
            (
                "every model fails, in too few calls",
                Calls::default().of(4, &[(PRO, O::Internal), (FLASH, O::Overloaded)]),
                Health::Unknown,
                Cause::NotEnoughData,
                "4 calls in the last hour, 4 failed: too few to tell",
            ),
            (
                "one model fails and the other answers",
                Calls::default().of(10, &[(PRO, O::Overloaded), (FLASH, O::Image)]),
                Health::Good,
                Cause::Overloaded,
                "Clients see little of it, but 10 of 20 attempts failed underneath.",
            ),
            (
                "refusals",
                failed(O::ContentBlocked),
                Health::Failing,
                Cause::Refused,
                "The prompts are the cause, not the service.",
            ),
            (
                "blocked prompts",
                failed(O::PromptBlocked),
                Health::Failing,
                Cause::Refused,
                "refusals of the content",
            ),
            (
                "no images",
                failed(O::NoImage),
                Health::Failing,
                Cause::NoImage,
                "responses without an image",
            ),
            (
                "400 signatures",
                failed(O::MissingThoughtSignature),
                Health::Failing,
                Cause::ThoughtSignatures,
                "missing thought signatures",
            ),
            (
                "400",
                failed(O::BadRequest),
                Health::Failing,
                Cause::BadRequest,
                "the request itself is at fault",
            ),
            ("403", failed(O::Permission), Health::Failing, Cause::KeyOrRegion, "401s and 403s"),
            ("region", failed(O::Region), Health::Failing, Cause::KeyOrRegion, "the region"),
            (
                "404",
                failed(O::NotFound),
                Health::Failing,
                Cause::ModelGone,
                "the model does not exist",
            ),
            (
                "connections",
                failed(O::Interrupted),
                Health::Failing,
                Cause::Connection,
                "broke off",
            ),
            (
                "a bad key is told the first time",
                Calls::default().of(1, &[(PRO, O::Auth)]),
                Health::Unknown,
                Cause::KeyOrRegion,
                "1 of 1 call failed in the last hour",
            ),
            (
                "our own quota",
                Calls::default().images(2).of(8, &[]),
                Health::Failing,
                Cause::OwnLimits,
                "not sent at all: 8 by our own count of the quota, 0 by spending caps",
            ),
            (
                "the journal's store",
                Calls::default().ends(CallOutcome::NotRecorded),
                Health::Unknown,
                Cause::NotRecorded,
                "could not be recorded first: 1. Neither the connection",
            ),
            (
                "the journal's store, beside 503s that came before",
                Calls::default()
                    .of(2, &[(PRO, O::Overloaded)])
                    .ends(CallOutcome::NotRecorded)
                    .ends(CallOutcome::NotRecorded)
                    .ends(CallOutcome::NotRecorded),
                Health::Failing,
                Cause::NotRecorded,
                "could not be recorded first: 3.",
            ),
            (
                "a store that failed for a moment",
                Calls::default().images(100).ends(CallOutcome::NotRecorded),
                Health::Good,
                Cause::Nothing,
                "1 of 101 calls failed",
            ),
            (
                "refused here",
                Calls::default().images(4).ends(CallOutcome::Rejected).ends(CallOutcome::Rejected),
                Health::Failing,
                Cause::Mixed,
                "They were rejected",
            ),
            (
                // 503s were cured by the fallback; what callers suffer from is the refusals.
                "what callers suffer from",
                Calls::default()
                    .of(70, &[(PRO, O::Overloaded), (FLASH, O::Image)])
                    .of(30, &[(PRO, O::ContentBlocked)]),
                Health::Failing,
                Cause::Refused,
                "100 % of the failed attempts were refusals",
            ),
            (
                "strained",
                Calls::default().images(90).of(10, &[(PRO, O::Overloaded)]),
                Health::Strained,
                Cause::Overloaded,
                "10 of 100 calls failed in the last hour (10 %; targets: less than 5 % off peak, 20 % at peak, missed off peak).",
            ),
        ] {
            let diagnosis = calls.diagnosed();
            assert_eq!(
                (diagnosis.health, diagnosis.cause),
                (health, cause),
                "{name}: {}",
                diagnosis.summary
            );
            assert!(diagnosis.summary.contains(says), "{name}: {}", diagnosis.summary);
            let is_advised = !matches!(cause, Cause::NotEnoughData | Cause::Nothing);
            assert_eq!(!diagnosis.advice.is_empty(), is_advised, "{name}");
            assert!(!diagnosis.title.is_empty());
        }
    }

    #[test]
    fn the_limit_of_most_429s_is_named() {
        for (outcome, limit) in [
            (Outcome::RateLimitedMinute, LimitKind::Minute),
            (Outcome::RateLimitedDay, LimitKind::Day),
            (Outcome::QuotaZeroOrBilling, LimitKind::Zero),
            (Outcome::SpendRateLimited, LimitKind::Spend),
            (Outcome::RateLimited, LimitKind::Unnamed),
        ] {
            assert_eq!(failed(outcome).diagnosed().limit, Some(limit));
        }
        assert_eq!(failed(Outcome::Overloaded).diagnosed().limit, None);
    }

    #[test]
    fn a_503_lists_all_that_does_not_help() {
        let diagnosis = failed(Outcome::Overloaded).diagnosed();
        let unhelpful = diagnosis.unhelpful.join("; ");
        for action in [
            "upgrading the billing",
            "changing the key",
            "shortening the prompt",
            "switching the region",
            "without a delay",
        ] {
            assert!(unhelpful.contains(action), "{unhelpful}");
        }
        assert!(
            !diagnosis.advice.iter().any(|advice| advice.contains("tier")),
            "a tier gives no capacity"
        );
    }

    #[test]
    fn a_429_says_what_to_do_by_its_limit() {
        let advice = |outcome| failed(outcome).diagnosed().advice.join(" ");
        assert!(advice(Outcome::RateLimitedMinute).contains("quota.rpm"));
        assert!(advice(Outcome::RateLimitedMinute).contains("60 s"));
        assert!(advice(Outcome::RateLimitedDay).contains("Batch"));
        assert!(advice(Outcome::QuotaZeroOrBilling).contains("billing account"));
        for outcome in [
            Outcome::RateLimitedMinute,
            Outcome::RateLimitedDay,
            Outcome::QuotaZeroOrBilling,
            Outcome::SpendRateLimited,
        ] {
            let unhelpful = failed(outcome).diagnosed().unhelpful.join(" ");
            assert!(
                unhelpful.contains("changing the key"),
                "keys share a project's quota: {unhelpful}"
            );
        }
    }

    #[test]
    fn an_outage_is_seen_before_it_fills_the_hour() {
        let outage = [(PRO, Outcome::Internal), (FLASH, Outcome::Overloaded)];
        let hour = Calls::default().images(50).of(5, &outage).window();
        let latest = Calls::default().of(5, &outage).window();
        let figures = Figures { latest: Some(&latest), ..figures(&hour) };
        assert_eq!(diagnose(&figures, &HealthTargets::recommended()).cause, Cause::SystemicOutage);
    }

    #[test]
    fn the_target_is_that_of_the_hour_if_it_is_known() {
        let calls = Calls::default().images(90).of(10, &[(PRO, Outcome::Overloaded)]);
        let peak = Schedule::new(Zone::utc(), [PeakWindow::daily("10:00", "14:00")]).unwrap();
        let targets = HealthTargets::recommended().peak_hours(peak);
        let at_peak = calls.diagnosed_at(Some(true), &targets);
        assert_eq!(at_peak.health, Health::Good);
        assert!(
            at_peak.summary.contains("(10 %; target at peak: less than 20 %)"),
            "{}",
            at_peak.summary
        );
        let off_peak = calls.diagnosed_at(Some(false), &targets);
        assert_eq!(off_peak.health, Health::Strained);
        assert!(
            off_peak.summary.contains("target off peak: less than 5 %, missed)."),
            "{}",
            off_peak.summary
        );
        let targets = HealthTargets::recommended();
        for (rate, peak, health) in [
            (0.0, None, Health::Good),
            (0.049, None, Health::Good),
            (0.05, None, Health::Strained),
            (0.199, None, Health::Strained),
            (0.2, None, Health::Failing),
            (0.05, Some(false), Health::Strained),
            (0.2, Some(false), Health::Failing),
            (0.199, Some(true), Health::Good),
            (0.2, Some(true), Health::Failing),
        ] {
            assert_eq!(targets.judge(Some(rate), peak), health, "{rate} {peak:?}");
        }
        assert_eq!(targets.judge(None, None), Health::Unknown);
    }

    #[test]
    fn a_day_says_when_its_failures_came() {
        let day = |failing: &dyn Fn(usize) -> bool, outcome| -> Vec<Calls> {
            let hour = |hour| {
                let calls = Calls::default().images(5);
                if failing(hour) { calls.of(5, &[(PRO, outcome)]) } else { calls }
            };
            (0..24).map(hour).collect()
        };
        let advice = |hours: &[Calls], outcome| {
            let hours: Vec<_> = hours.iter().map(Calls::window).collect();
            let window = failed(outcome).window();
            let figures = Figures { hours: &hours, ..figures(&window) };
            diagnose(&figures, &HealthTargets::recommended()).advice.join(" ")
        };
        let (peak, all_day) = (|hour: usize| (10..14).contains(&hour), |_: usize| true);
        assert!(
            advice(&day(&peak, Outcome::Overloaded), Outcome::Overloaded)
                .contains("4 hours of the day have most of it")
        );
        assert!(
            advice(&day(&all_day, Outcome::Overloaded), Outcome::Overloaded)
                .contains("lasts all day")
        );
        assert!(
            advice(&day(&peak, Outcome::RateLimited), Outcome::RateLimited)
                .contains("per-minute limit")
        );
        assert!(
            advice(&day(&all_day, Outcome::RateLimited), Outcome::RateLimited)
                .contains("the daily quota")
        );
        // A few hours are not a day.
        assert!(
            advice(&day(&peak, Outcome::Overloaded)[..6], Outcome::Overloaded)
                .starts_with("Fall back to another model")
        );
    }
}
