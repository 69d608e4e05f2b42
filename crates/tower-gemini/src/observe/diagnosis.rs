//! What the figures mean, and what to do about it: pure.
//!
//! The rules are those of the articles (`000` to `004`), where official sources do not know better:
//! more than 80 % of failures are 429s, you are too aggressive; mostly 503s, the service has no
//! capacity, and nothing that you change on your side gives it some (001, 002); less than 5 %
//! failures off peak and less than 20 % at peak are healthy (001).

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use tower_gemini_core::verdict::Outcome;

use super::outcome::{CallOutcome, FailureKind, place};
use super::report::{Hour, Window, as_display, kinds_of, percent};
use crate::peak_hour_router::Schedule;

/// The failure rates that are aimed for.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct HealthTargets {
    /// Off peak, 0 to 1. Default 0.05.
    pub off_peak: f64,
    /// At peak, 0 to 1. Default 0.20.
    pub peak: f64,
    /// Which hours are peak. Without it both targets are shown side by side.
    #[serde(serialize_with = "whether_known", rename = "peak_hours_are_known")]
    pub peak_hours: Option<Schedule>,
}

fn whether_known<S: Serializer>(
    schedule: &Option<Schedule>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(schedule.is_some())
}

impl PartialEq for HealthTargets {
    fn eq(&self, other: &Self) -> bool {
        let hours = |it: &Self| it.peak_hours.as_ref().map(|hours| format!("{hours:?}"));
        self.off_peak == other.off_peak && self.peak == other.peak && hours(self) == hours(other)
    }
}

impl HealthTargets {
    /// Less than 5 % failures off peak and 20 % at peak (article 001).
    #[must_use]
    pub fn recommended() -> Self {
        Self { off_peak: 0.05, peak: 0.20, peak_hours: None }
    }

    /// The hours that are peak, by the same [`Schedule`] that a `PeakHourRouter` goes by.
    #[must_use]
    pub fn peak_hours(mut self, schedule: Schedule) -> Self {
        self.peak_hours = Some(schedule);
        self
    }

    /// How a failure rate stands to the targets; `is_peak` where it is known.
    #[must_use]
    pub fn judge(&self, failure_rate: Option<f64>, is_peak: Option<bool>) -> Health {
        match (failure_rate, is_peak) {
            (None, _) => Health::Unknown,
            (Some(rate), Some(true)) if rate < self.peak => Health::Good,
            (Some(rate), Some(true) | None) if rate >= self.peak => Health::Failing,
            (Some(rate), _) if rate < self.off_peak => Health::Good,
            (Some(rate), _) if rate < self.peak => Health::Strained,
            _ => Health::Failing,
        }
    }
}

impl Default for HealthTargets {
    fn default() -> Self {
        Self::recommended()
    }
}

/// How calls fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Health {
    /// Too few calls to tell.
    Unknown,
    /// Within the target: off peak's, or at peak the peak's.
    Good,
    /// Above the off-peak target and within the peak one.
    Strained,
    /// Above the peak target.
    Failing,
}

impl Health {
    /// One word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Good => "good",
            Self::Strained => "strained",
            Self::Failing => "failing",
        }
    }
}

/// Which limit most 429s were about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LimitKind {
    /// Requests, tokens or images of a minute.
    Minute,
    /// Requests of a day.
    Day,
    /// No quota at all, or no means to pay.
    Zero,
    /// Money of ten minutes.
    Spend,
    /// The 429s do not say.
    Unnamed,
}

/// What most failures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// Too few calls to tell.
    NotEnoughData,
    /// Hardly anything fails.
    Nothing,
    /// 429s: more is sent than the limits allow.
    TooAggressive(LimitKind),
    /// 503s: the models have no capacity.
    Capacity,
    /// Every model fails by the service's own fault.
    SystemicOutage,
    /// 500s, 502s and 504s of some models.
    ServerFaults,
    /// Prompts or pictures are refused.
    Prompts,
    /// Answers come without images.
    NoImages,
    /// Conversations lack their thought signatures.
    Signatures,
    /// Requests are malformed.
    BadRequests,
    /// Keys, permissions or regions.
    KeyOrRegion,
    /// Models that are gone.
    GoneModels,
    /// Connections, and time limits of your own.
    Connections,
    /// Limits that you set yourself: quota, spending.
    OwnLimits,
    /// No one thing.
    Mixed,
}

/// What figures mean, in words.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// How calls fare.
    pub health: Health,
    /// What most failures come from.
    #[serde(serialize_with = "as_display")]
    pub cause: Cause,
    /// Which limit, where limits are the cause.
    pub limit: Option<LimitKind>,
    /// One or two sentences.
    pub summary: String,
    /// What to do, the most useful first.
    pub advice: Vec<String>,
    /// What people do in such a case that does not help.
    pub useless: Vec<&'static str>,
    #[serde(skip)]
    short: String,
}

impl Diagnosis {
    /// The same in a few words: `too aggressive`, `no capacity`.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.short
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary)?;
        if let Some(first) = self.advice.first() {
            write!(f, " {first}")?;
        }
        Ok(())
    }
}

/// Fewer calls than this say nothing of a rate.
pub const FEWEST_CALLS: u64 = 5;

/// What figures are about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figures<'a> {
    /// `in the last hour`.
    pub(super) when: &'static str,
    pub(super) window: &'a Window,
    /// Its last quarter of an hour, where it is an hour: an outage is one before the hour is full
    /// of it.
    pub(super) latest: Option<&'a Window>,
    /// The hours of a day: when in it things failed.
    pub(super) hours: &'a [Hour],
    /// Whether it is peak now, where that is known and the stretch is short enough to say so.
    pub(super) is_peak: Option<bool>,
    pub(super) until_midnight_pacific: Duration,
}

/// Article 002's list of what people try against a 503 that changes nothing: it is the service's
/// capacity, not yours.
pub const USELESS_AGAINST_503: [&str; 5] = [
    "upgrading the billing tier",
    "changing the key",
    "shortening the prompt",
    "switching the region",
    "retrying without a delay (it may end in 429s as well)",
];

/// What to look at when everything fails (articles 000 to 004).
const STATUS_PAGES: &str = "Look at status.cloud.google.com (Vertex AI) and at Google AI Studio's status page, and wait 15 to 60 minutes.";
const CANARY: &str = "Send the canary \"a red apple on a white background\" at 1K: if it comes, the original prompt is at fault; if not, the key, the tier or the quota.";

/// The diagnosis.
pub(super) fn diagnose(figures: &Figures<'_>, targets: &HealthTargets) -> Diagnosis {
    let window = figures.window;
    let counted = window.successes + window.failures;
    let blame = Blame::of(window, targets);
    let cause = cause(figures, targets, &blame);
    let limit = match cause {
        Cause::TooAggressive(limit) => Some(limit),
        _ => None,
    };
    let health = if cause == Cause::NotEnoughData || counted < FEWEST_CALLS {
        Health::Unknown
    } else {
        targets.judge(window.failure_rate, figures.is_peak)
    };
    let (short, meaning, advice, useless) = words(cause, figures, &blame);
    let mut summary = match (cause, counted) {
        (Cause::NotEnoughData, 0) => format!("No calls {}.", figures.when),
        (Cause::NotEnoughData, _) => format!(
            "{} {}, {} failed: too few to tell ({FEWEST_CALLS} are needed).",
            plural(counted, "call"),
            figures.when,
            window.failures
        ),
        _ => standing(figures, targets, health),
    };
    if !meaning.is_empty() {
        summary.push(' ');
        summary.push_str(&meaning);
    }
    Diagnosis { health, cause, limit, summary, advice, useless, short: short.to_owned() }
}

/// `2 of 120 calls failed in the last hour (1.7 %, target: less than 5 %).`
fn standing(figures: &Figures<'_>, targets: &HealthTargets, health: Health) -> String {
    let window = figures.window;
    let counted = window.successes + window.failures;
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
    let mut text = format!(
        "{} of {} failed {} ({rate}; {target}{missed}).",
        window.failures,
        plural(counted, "call"),
        figures.when
    );
    let failed = window.failed_attempts;
    if health == Health::Good && window.attempts > 0 && failed * 20 >= window.attempts {
        text.push_str(&format!(
            " Callers see little of it, but {failed} of {} failed underneath.",
            plural(window.attempts, "attempt")
        ));
    }
    text
}

/// The failed attempts that a diagnosis is about.
///
/// Where calls fail, those of the failed calls: what a fallback cured is not what callers suffer
/// from. Where calls fare well, all of them: what is cured today costs time, and may not be
/// tomorrow.
struct Blame {
    outcomes: [u64; Outcome::ALL.len()],
    kinds: Vec<(FailureKind, u64)>,
    failed: u64,
}

impl Blame {
    fn of(window: &Window, targets: &HealthTargets) -> Self {
        let of_failed_calls: u64 = window.blamed.iter().sum();
        let outcomes = if calls_are_well(window, targets) || of_failed_calls == 0 {
            window.of_attempt
        } else {
            window.blamed
        };
        let kinds = kinds_of(&outcomes);
        let failed = kinds.iter().map(|(_, count)| count).sum();
        Self { outcomes, kinds, failed }
    }

    fn with(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(place(outcome)).copied().unwrap_or(0)
    }

    /// The limit that most 429s were about.
    fn limit(&self) -> LimitKind {
        let counted = [
            (LimitKind::Unnamed, Outcome::RateLimited),
            (LimitKind::Spend, Outcome::SpendRateLimited),
            (LimitKind::Zero, Outcome::QuotaZeroOrBilling),
            (LimitKind::Day, Outcome::RateLimitedDay),
            (LimitKind::Minute, Outcome::RateLimitedMinute),
        ];
        counted
            .into_iter()
            .max_by_key(|(_, outcome)| self.with(*outcome))
            .map_or(LimitKind::Unnamed, |(kind, _)| kind)
    }

    /// Whether failures of this kind say all there is to say the first time.
    fn is_conclusive(&self, kind: FailureKind) -> bool {
        match kind {
            FailureKind::Key | FailureKind::Signatures | FailureKind::Gone => true,
            FailureKind::RateLimited => matches!(self.limit(), LimitKind::Day | LimitKind::Zero),
            _ => false,
        }
    }

    fn cause_of(&self, kind: FailureKind) -> Cause {
        match kind {
            FailureKind::RateLimited => Cause::TooAggressive(self.limit()),
            FailureKind::Overloaded => Cause::Capacity,
            FailureKind::ServerFault => Cause::ServerFaults,
            FailureKind::Refused => Cause::Prompts,
            FailureKind::NoImage => Cause::NoImages,
            FailureKind::BadRequest => Cause::BadRequests,
            FailureKind::Signatures => Cause::Signatures,
            FailureKind::Key => Cause::KeyOrRegion,
            FailureKind::Gone => Cause::GoneModels,
            FailureKind::Transport => Cause::Connections,
            FailureKind::Other => Cause::Mixed,
        }
    }

    /// `92 %`.
    fn share(&self, kind: FailureKind) -> String {
        let count = self.kinds.iter().find(|(one, _)| *one == kind).map_or(0, |(_, count)| *count);
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        percent(if self.failed == 0 { 0.0 } else { count as f64 / self.failed as f64 })
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
    let first = blame.kinds.first().copied();
    let is_four_fifths = |count: u64| count * 5 > blame.failed * 4;
    if window.successes + window.failures < FEWEST_CALLS {
        return match first {
            Some((kind, count))
                if is_four_fifths(count) && window.failures > 0 && blame.is_conclusive(kind) =>
            {
                blame.cause_of(kind)
            }
            _ => Cause::NotEnoughData,
        };
    }
    let own =
        window.calls_with(CallOutcome::OwnQuota) + window.calls_with(CallOutcome::SpendingCap);
    if own * 2 > window.failures {
        return Cause::OwnLimits;
    }
    #[allow(clippy::cast_precision_loss, reason = "counts of an hour or a day")]
    let attempts_are_well =
        (window.failed_attempts as f64) < targets.off_peak * window.attempts.max(1) as f64;
    match first {
        _ if calls_are_well(window, targets) && attempts_are_well => Cause::Nothing,
        // Article 001 draws the line at 80 %: below it, slowing down would not cure most of it.
        Some((kind @ FailureKind::RateLimited, count)) if is_four_fifths(count) => {
            blame.cause_of(kind)
        }
        Some((FailureKind::RateLimited, _)) => Cause::Mixed,
        Some((kind, count)) if count * 2 > blame.failed => blame.cause_of(kind),
        _ => Cause::Mixed,
    }
}

/// Every model that was asked failed by the service's own fault, and two or more were asked.
fn is_outage(window: &Window) -> bool {
    let asked = window.models.values().filter(|model| model.attempts > 0);
    window.failures >= FEWEST_CALLS
        && window.successes == 0
        && asked.clone().count() >= 2
        && asked
            .clone()
            .all(|model| model.successes == 0 && model.service_failures * 5 >= model.attempts * 4)
}

type Words = (&'static str, String, Vec<String>, Vec<&'static str>);

/// A few words, what it means, what to do, and what does not help.
fn words(cause: Cause, figures: &Figures<'_>, blame: &Blame) -> Words {
    let window = figures.window;
    let say = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let of_failures = |kind: FailureKind, what: &str| match blame.failed {
        // A share of one or two is no share.
        1 => format!("The one failed attempt was of this kind: {what}."),
        2 => format!("The two failed attempts were {what}."),
        _ => format!("{} of the failed attempts were {what}.", blame.share(kind)),
    };
    match cause {
        Cause::NotEnoughData => ("not enough data", String::new(), Vec::new(), Vec::new()),
        Cause::Nothing => ("healthy", String::new(), Vec::new(), Vec::new()),
        Cause::TooAggressive(limit) => {
            too_aggressive(limit, figures, &blame.share(FailureKind::RateLimited))
        }
        Cause::Capacity => {
            let mut advice = say(&[
                "Let another model answer (ModelFallback); it pays nothing for what failed.",
                "Before asking the same model again wait: Pro models take 30 to 120 minutes, Flash models 5 to 15.",
            ]);
            match concentration(figures.hours, Outcome::Overloaded) {
                Some(Concentration::FewHours(hours)) => advice
                    .push(format!("{hours} of the day hold most of it: move what can wait to other hours (PeakHourRouter).")),
                Some(Concentration::AllDay) => {
                    advice
                        .push("It lasts through the day: a chain of several models, and an eye on the status page.".to_owned());
                }
                None => {}
            }
            (
                "no capacity",
                format!(
                    "No capacity: {} It is the service's, for everybody, and not your quota.",
                    of_failures(FailureKind::Overloaded, "503s (or 429s that mean the same)")
                ),
                advice,
                USELESS_AGAINST_503.to_vec(),
            )
        }
        Cause::SystemicOutage => {
            let models: Vec<_> = window.models.keys().map(String::as_str).collect();
            (
                "systemic outage",
                format!("Systemic outage: every model that was asked fails ({}).", models.join(", ")),
                vec![
                    STATUS_PAGES.to_owned(),
                    "Put by what can wait; failed attempts cost no money, but each counts against the day's requests."
                        .to_owned(),
                    "A target in another place (another platform or vendor) is the only fallback that is not part of it."
                        .to_owned(),
                ],
                USELESS_AGAINST_503.to_vec(),
            )
        }
        Cause::ServerFaults => {
            let mut advice = Vec::new();
            if blame.with(Outcome::Deadline) * 2
                > blame.kinds.first().map_or(0, |(_, count)| *count)
            {
                advice.push(
                    "Most gave up at the service's deadline: ask for a smaller image (ResolutionFallback) or a simpler one."
                        .to_owned(),
                );
            }
            advice.push("Let another model answer; such faults last 15 to 60 minutes, some have lasted days.".to_owned());
            advice.push(STATUS_PAGES.to_owned());
            (
                "faults of the service",
                of_failures(
                    FailureKind::ServerFault,
                    "faults of the service itself (500, 502, 504)",
                ),
                advice,
                Vec::new(),
            )
        }
        Cause::Prompts => (
            "refused content",
            format!(
                "{} It is the prompts, not the service.",
                of_failures(FailureKind::Refused, "refusals of the content")
            ),
            say(&[
                "Change the prompts: neutral and concrete, nouns rather than adjectives, the setting first, the kind of picture named (studio portrait, architectural rendering).",
                CANARY,
                "Do not send a refused prompt again: its tokens are paid for each time.",
            ]),
            vec!["retrying", "another model of the same family", "waiting"],
        ),
        Cause::NoImages => (
            "answers without images",
            of_failures(FailureKind::NoImage, "answers without an image"),
            say(&[
                "Say in the prompt that an image is wanted, and ask for the IMAGE modality.",
                "Where the model ran out of output tokens, allow more.",
                CANARY,
            ]),
            Vec::new(),
        ),
        Cause::Signatures => (
            "thought signatures",
            of_failures(FailureKind::Signatures, "400s for missing thought signatures"),
            say(&[
                "In further turns send the model's parts back with their thoughtSignature; the ThoughtSignatures layer does so.",
                "Official SDKs do it in their chat mode; raw requests and some adapters lose them.",
            ]),
            vec!["retrying", "waiting"],
        ),
        Cause::BadRequests => (
            "bad requests",
            of_failures(FailureKind::BadRequest, "400s: the request itself is at fault"),
            say(&[
                "Read the message of one: wrong model id, a size with a small k (\"2k\"), an aspect ratio that the model has not, an empty prompt.",
                "A 400 in the second turn of a conversation is most often a missing thought signature.",
            ]),
            vec!["retrying: the same request will always fail"],
        ),
        Cause::KeyOrRegion => (
            "key or region",
            of_failures(FailureKind::Key, "401s and 403s: the key, what it may do, or the place"),
            say(&[
                "See whether the key is valid, unexpired and allowed this API; a new one needs a few minutes.",
                "See whether the place is served, and whether a Workspace administrator forbids it.",
                CANARY,
            ]),
            vec!["retrying", "another model"],
        ),
        Cause::GoneModels => (
            "models that are gone",
            of_failures(FailureKind::Gone, "404s: no such model, or no longer"),
            say(&[
                "See which models still answer; ModelFallback follows retired ones to their successors.",
            ]),
            vec!["retrying", "waiting"],
        ),
        Cause::Connections => (
            "connections",
            of_failures(FailureKind::Transport, "requests that were not sent, or broke off"),
            say(&[
                "See to the way there: DNS, TLS, proxies, a pool of long HTTP/2 connections (HTTP/1.1 is the better one for images).",
                "See whether time limits are shorter than images take: 300 s for 1K and 2K, 600 s for 4K.",
                "What broke off after it was sent may have been paid for.",
            ]),
            Vec::new(),
        ),
        Cause::OwnLimits => (
            "limits of your own",
            format!(
                "Most failed calls were not sent at all: {} by our own count of the quota, {} by spending caps.",
                window.calls_with(CallOutcome::OwnQuota),
                window.calls_with(CallOutcome::SpendingCap)
            ),
            say(&[
                "Send slower, or raise the limits set here if the account's are higher.",
                "Let callers wait instead of refusing them, or let another model answer.",
            ]),
            Vec::new(),
        ),
        Cause::Mixed => {
            let all: Vec<_> = blame
                .kinds
                .iter()
                .take(3)
                .map(|(kind, count)| format!("{} ({count})", kind.as_str()))
                .collect();
            (
                "mixed causes",
                if all.is_empty() {
                    "They were refused here, before anything was sent; their answers say why."
                        .to_owned()
                } else {
                    format!("No one cause stands out: {}.", all.join("; "))
                },
                say(&[
                    "All of it together: admission within the quota (QuotaGuard), retries with jitter, and a chain of models (ModelFallback).",
                    CANARY,
                ]),
                Vec::new(),
            )
        }
    }
}

fn too_aggressive(limit: LimitKind, figures: &Figures<'_>, share: &str) -> Words {
    let reset = midnight(figures.until_midnight_pacific);
    let opening = format!("{share} of the failed attempts were 429s");
    let say = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let rotating = "changing the key: all keys of a project share one quota";
    match limit {
        LimitKind::Minute => (
            "too aggressive",
            format!("Too aggressive: {opening}, for limits of a minute."),
            say(&[
                "Send only what the tier allows: QuotaGuard with its requests, tokens and images a minute keeps within them.",
                "A pause of a second between calls cures bursts; a minute's limit opens again after 60 s.",
                "A higher tier, or another project, raises the limit.",
            ]),
            vec![rotating, "retrying at once"],
        ),
        LimitKind::Day => (
            "day's quota used up",
            format!(
                "Too aggressive: {opening}, for the requests of the day. It opens at midnight Pacific, {reset}."
            ),
            say(&[
                "Stop asking this model until then, whatever its hint says; another model has a quota of its own.",
                "Fewer than ten images a day and already closed: the free tier's day. Link a billing account.",
                "The Batch API has its own quota and costs half; a higher tier has a larger day.",
            ]),
            vec![rotating, "retrying before midnight Pacific"],
        ),
        LimitKind::Zero => (
            "no quota, or no means to pay",
            format!(
                "{opening} that say there is no quota at all, or no means to pay. No waiting helps."
            ),
            say(&[
                "Link a billing account to the project, or fill up its prepaid credit; the free tier has no images of these models.",
                "See whether a spending cap of the project is reached.",
            ]),
            vec!["waiting", "retrying", rotating],
        ),
        LimitKind::Spend => (
            "spending too fast",
            format!(
                "Too aggressive: {opening}, for the money that the tier may spend in ten minutes."
            ),
            say(&[
                "Spread the calls out, or ask for smaller images; the window is ten rolling minutes.",
                "A higher tier may spend more.",
            ]),
            vec![rotating],
        ),
        LimitKind::Unnamed => {
            let mut advice = Vec::new();
            match concentration(figures.hours, Outcome::RateLimited) {
                Some(Concentration::FewHours(hours)) => advice.push(format!(
                    "They come in bursts ({hours}): most likely the limit of a minute. Send slower (QuotaGuard), at least a second apart."
                )),
                Some(Concentration::AllDay) => advice.push(format!(
                    "They come all day long: most likely the day's quota, which opens at midnight Pacific, {reset}."
                )),
                None => advice.push("Send slower (QuotaGuard), at least a second apart.".to_owned()),
            }
            advice.push("Capture one whole body: its quotaId says which limit it is.".to_owned());
            (
                "too aggressive",
                format!("Too aggressive: {opening} that do not say for which limit."),
                advice,
                vec![rotating],
            )
        }
    }
}

/// When in a day failures came.
enum Concentration {
    /// `3 hours`: most of them in at most a quarter of the hours in which there were calls.
    FewHours(String),
    /// In most of the hours in which there were calls.
    AllDay,
}

/// `None` where fewer than eight hours of the day had calls: then nothing can be said of the day.
fn concentration(hours: &[Hour], outcome: Outcome) -> Option<Concentration> {
    let mut with: Vec<u64> = hours
        .iter()
        .filter(|hour| hour.window.calls > 0)
        .map(|hour| hour.window.attempts_with(outcome))
        .collect();
    if with.len() < 8 {
        return None;
    }
    with.sort_unstable_by(|a, b| b.cmp(a));
    let all: u64 = with.iter().sum();
    let few = with.len() / 4;
    let top: u64 = with.iter().take(few).sum();
    if top * 5 >= all * 4 {
        let needed = with
            .iter()
            .scan(0, |sum, count| Some(std::mem::replace(sum, *sum + count)))
            .filter(|sum| sum * 5 < all * 4);
        return Some(Concentration::FewHours(plural(needed.count() as u64, "hour")));
    }
    (with.iter().filter(|count| **count > 0).count() * 4 >= with.len() * 3)
        .then_some(Concentration::AllDay)
}

fn midnight(until: Duration) -> String {
    let minutes = until.as_secs().div_ceil(60);
    format!("in {} h {} min", minutes / 60, minutes % 60)
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Words for a cause, for where it is shown without its diagnosis.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotEnoughData => "not_enough_data",
            Self::Nothing => "nothing",
            Self::TooAggressive(_) => "too_aggressive",
            Self::Capacity => "capacity",
            Self::SystemicOutage => "systemic_outage",
            Self::ServerFaults => "server_faults",
            Self::Prompts => "prompts",
            Self::NoImages => "no_images",
            Self::Signatures => "signatures",
            Self::BadRequests => "bad_requests",
            Self::KeyOrRegion => "key_or_region",
            Self::GoneModels => "gone_models",
            Self::Connections => "connections",
            Self::OwnLimits => "own_limits",
            Self::Mixed => "mixed",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tower_gemini_core::call::ModelId;
    use tower_gemini_core::catalog::Catalog;
    use tower_gemini_core::cost::Cost;
    use tower_gemini_core::verdict::{Charge, QuotaCharge};

    use super::super::names::ModelNames;
    use super::super::tally::{Counts, Entry, Sent};
    use super::*;
    use crate::peak_hour_router::{Window as PeakWindow, Zone};

    const PRO: &str = "gemini-3-pro-image";
    const FLASH: &str = "gemini-2.5-flash-image";

    fn names() -> ModelNames {
        ModelNames::new(Arc::new(Catalog::builtin().clone()))
    }

    /// Calls that are told one by one.
    #[derive(Default)]
    struct Calls(Counts);

    impl Calls {
        /// So many calls, each of these attempts, the last of which decides.
        fn of(mut self, count: u64, attempts: &[(&str, Outcome)]) -> Self {
            for _ in 0..count {
                let mut blamed = Vec::new();
                for (model, outcome) in attempts {
                    let model = names().place(Some(&ModelId::new(model)));
                    let (charge, quota, took) =
                        (Charge::None, QuotaCharge::Counted, Duration::from_secs(1));
                    let sent = Sent::First;
                    self.0.add(&Entry::Attempt {
                        model,
                        outcome: *outcome,
                        quota,
                        charge,
                        cost: Cost::ZERO,
                        took,
                        sent,
                    });
                    blamed.push(*outcome);
                }
                let outcome = attempts
                    .last()
                    .map_or(CallOutcome::OwnQuota, |(_, outcome)| CallOutcome::Ended(*outcome));
                if !outcome.is_failure() {
                    blamed.clear();
                }
                self.0.add(&Entry::Call {
                    outcome,
                    took: Duration::from_secs(1),
                    images: 1,
                    degraded: false,
                    blamed,
                });
            }
            self
        }

        fn ends(self, outcome: CallOutcome) -> Self {
            let mut calls = self;
            calls.0.add(&Entry::Call {
                outcome,
                took: Duration::ZERO,
                images: 0,
                degraded: false,
                blamed: Vec::new(),
            });
            calls
        }

        fn images(self, count: u64) -> Self {
            self.of(count, &[(PRO, Outcome::Image)])
        }

        fn window(&self) -> Window {
            Window::new(0, &self.0, &names())
        }

        fn diagnosed(&self) -> Diagnosis {
            self.diagnosed_at(None, &HealthTargets::recommended())
        }

        fn diagnosed_at(&self, is_peak: Option<bool>, targets: &HealthTargets) -> Diagnosis {
            let window = self.window();
            let figures = Figures {
                when: "in the last hour",
                window: &window,
                latest: None,
                hours: &[],
                is_peak,
                until_midnight_pacific: Duration::from_secs(5 * 3600 + 90),
            };
            diagnose(&figures, targets)
        }
    }

    fn failed(outcome: Outcome) -> Calls {
        Calls::default().images(10).of(10, &[(PRO, outcome)])
    }

    #[test]
    fn each_rule_of_the_articles_is_told_from_its_figures() {
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
                "429s of the minute (R216)",
                Calls::default()
                    .images(10)
                    .of(9, &[(PRO, O::RateLimitedMinute)])
                    .of(1, &[(PRO, O::Internal)]),
                Health::Failing,
                Cause::TooAggressive(LimitKind::Minute),
                "Too aggressive: 90 % of the failed attempts were 429s, for limits of a minute.",
            ),
            (
                "429s of the day (S222, S223)",
                failed(O::RateLimitedDay),
                Health::Failing,
                Cause::TooAggressive(LimitKind::Day),
                "It opens at midnight Pacific, in 5 h 2 min.",
            ),
            (
                "zero quota (C-20)",
                failed(O::QuotaZeroOrBilling),
                Health::Failing,
                Cause::TooAggressive(LimitKind::Zero),
                "No waiting helps.",
            ),
            (
                "money of ten minutes",
                failed(O::SpendRateLimited),
                Health::Failing,
                Cause::TooAggressive(LimitKind::Spend),
                "in ten minutes",
            ),
            (
                "429s that do not say",
                failed(O::RateLimited),
                Health::Failing,
                Cause::TooAggressive(LimitKind::Unnamed),
                "do not say for which limit",
            ),
            (
                "exactly 80 % is not more than 80 %",
                Calls::default()
                    .images(10)
                    .of(8, &[(PRO, O::RateLimitedMinute)])
                    .of(2, &[(PRO, O::Internal)]),
                Health::Failing,
                Cause::Mixed,
                "No one cause stands out: 429, limits of your own (8); 500, 502 or 504 (2).",
            ),
            (
                "503s (B17, R216)",
                Calls::default()
                    .images(10)
                    .of(6, &[(PRO, O::Overloaded)])
                    .of(4, &[(PRO, O::Internal)]),
                Health::Failing,
                Cause::Capacity,
                "No capacity: 60 % of the failed attempts were 503s",
            ),
            (
                "500s of one model (B24)",
                failed(O::Internal),
                Health::Failing,
                Cause::ServerFaults,
                "faults of the service itself",
            ),
            (
                "every model fails (R212)",
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
                Cause::Capacity,
                "Callers see little of it, but 10 of 20 attempts failed underneath.",
            ),
            (
                "refusals (S220)",
                failed(O::ContentBlocked),
                Health::Failing,
                Cause::Prompts,
                "It is the prompts, not the service.",
            ),
            (
                "blocked prompts",
                failed(O::PromptBlocked),
                Health::Failing,
                Cause::Prompts,
                "refusals of the content",
            ),
            (
                "no images",
                failed(O::NoImage),
                Health::Failing,
                Cause::NoImages,
                "answers without an image",
            ),
            (
                "400 signatures (B26, S220)",
                failed(O::MissingThoughtSignature),
                Health::Failing,
                Cause::Signatures,
                "missing thought signatures",
            ),
            (
                "400 (B25)",
                failed(O::BadRequest),
                Health::Failing,
                Cause::BadRequests,
                "the request itself is at fault",
            ),
            (
                "403 (B29, S220)",
                failed(O::Permission),
                Health::Failing,
                Cause::KeyOrRegion,
                "401s and 403s",
            ),
            ("region", failed(O::Region), Health::Failing, Cause::KeyOrRegion, "the place"),
            ("404", failed(O::NotFound), Health::Failing, Cause::GoneModels, "no such model"),
            (
                "connections",
                failed(O::Interrupted),
                Health::Failing,
                Cause::Connections,
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
                "refused here",
                Calls::default()
                    .images(4)
                    .ends(CallOutcome::RefusedHere)
                    .ends(CallOutcome::RefusedHere),
                Health::Failing,
                Cause::Mixed,
                "They were refused here",
            ),
            (
                // 503s were cured by the fallback; what callers suffer from is the refusals.
                "what callers suffer from",
                Calls::default()
                    .of(70, &[(PRO, O::Overloaded), (FLASH, O::Image)])
                    .of(30, &[(PRO, O::ContentBlocked)]),
                Health::Failing,
                Cause::Prompts,
                "100 % of the failed attempts were refusals",
            ),
            (
                "strained",
                Calls::default().images(90).of(10, &[(PRO, O::Overloaded)]),
                Health::Strained,
                Cause::Capacity,
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
            assert!(!diagnosis.short().is_empty());
        }
    }

    #[test]
    fn a_503_names_all_that_does_not_help() {
        let diagnosis = failed(Outcome::Overloaded).diagnosed();
        let useless = diagnosis.useless.join("; ");
        for action in [
            "upgrading the billing",
            "changing the key",
            "shortening the prompt",
            "switching the region",
            "without a delay",
        ] {
            assert!(useless.contains(action), "{useless}");
        }
        assert!(
            !diagnosis.advice.iter().any(|advice| advice.contains("tier")),
            "a tier gives no capacity"
        );
    }

    #[test]
    fn a_429_says_what_to_do_by_its_limit() {
        let advice = |outcome| failed(outcome).diagnosed().advice.join(" ");
        assert!(advice(Outcome::RateLimitedMinute).contains("QuotaGuard"));
        assert!(advice(Outcome::RateLimitedMinute).contains("60 s"));
        assert!(advice(Outcome::RateLimitedDay).contains("Batch"));
        assert!(advice(Outcome::QuotaZeroOrBilling).contains("billing account"));
        for outcome in [
            Outcome::RateLimitedMinute,
            Outcome::RateLimitedDay,
            Outcome::QuotaZeroOrBilling,
            Outcome::SpendRateLimited,
        ] {
            let useless = failed(outcome).diagnosed().useless.join(" ");
            assert!(
                useless.contains("changing the key"),
                "keys share a project's quota: {useless}"
            );
        }
    }

    #[test]
    fn an_outage_is_seen_before_the_hour_is_full_of_it() {
        let hour = Calls::default()
            .images(50)
            .of(5, &[(PRO, Outcome::Internal), (FLASH, Outcome::Overloaded)])
            .window();
        let latest = Calls::default()
            .of(5, &[(PRO, Outcome::Internal), (FLASH, Outcome::Overloaded)])
            .window();
        let figures = Figures {
            when: "in the last hour",
            window: &hour,
            latest: Some(&latest),
            hours: &[],
            is_peak: None,
            until_midnight_pacific: Duration::ZERO,
        };
        assert_eq!(diagnose(&figures, &HealthTargets::recommended()).cause, Cause::SystemicOutage);
    }

    #[test]
    fn the_target_is_that_of_the_hour_where_it_is_known() {
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
        let day = |failing: &dyn Fn(usize) -> bool, outcome| -> Vec<Hour> {
            (0..24)
                .map(|hour| {
                    let calls = Calls::default().images(5);
                    let calls = if failing(hour) { calls.of(5, &[(PRO, outcome)]) } else { calls };
                    Hour { window: calls.window(), is_peak: None }
                })
                .collect()
        };
        let advice = |hours: &[Hour], outcome| {
            let window = failed(outcome).window();
            let figures = Figures {
                when: "in the last 24 hours",
                window: &window,
                latest: None,
                hours,
                is_peak: None,
                until_midnight_pacific: Duration::ZERO,
            };
            diagnose(&figures, &HealthTargets::recommended()).advice.join(" ")
        };
        let (peak, all_day) = (|hour: usize| (10..14).contains(&hour), |_: usize| true);
        assert!(
            advice(&day(&peak, Outcome::Overloaded), Outcome::Overloaded)
                .contains("4 hours of the day hold most of it")
        );
        assert!(
            advice(&day(&all_day, Outcome::Overloaded), Outcome::Overloaded)
                .contains("lasts through the day")
        );
        assert!(
            advice(&day(&peak, Outcome::RateLimited), Outcome::RateLimited)
                .contains("limit of a minute")
        );
        assert!(
            advice(&day(&all_day, Outcome::RateLimited), Outcome::RateLimited)
                .contains("the day's quota")
        );
        // A few hours are not a day.
        assert!(
            advice(&day(&peak, Outcome::Overloaded)[..6], Outcome::Overloaded)
                .starts_with("Let another model")
        );
    }
}
