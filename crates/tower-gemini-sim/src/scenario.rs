//! Weather in a file: a provider model, and the calls that meet it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::builder::Builder;
use crate::error::ScenarioError;
use crate::fault::Fault;
use crate::model::{MODELS, Size, known};
use crate::observed::Observations;
use crate::outage::{Each, Outages};
use crate::quota::Quota;
use crate::weather::{Flex, Latency, Weather};

/// What a scenario's file says: the provider in its weather, and the calls that are sent.
///
/// ```
/// use tower_gemini_sim::Scenario;
///
/// let scenario = Scenario::parse(
///     r#"
///     about = "One model that is down half of the time"
///     hours = 6
///
///     [arrivals]
///     per_hour = 20
///
///     [[outages]]
///     share = 0.5            # of the time; or by_hour = [24 shares]
///     mean_minutes = 50
///     "#,
/// )?;
/// let sim = scenario.builder().seed(1).tiny_images(true).build();
/// # let _ = sim;
/// # Ok::<(), tower_gemini_sim::ScenarioError>(())
/// ```
///
/// # The file
///
#[doc = include_str!("../SCENARIOS.md")]
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Scenario {
    /// What it is, in a sentence.
    pub about: String,
    /// How long it lasts.
    pub hours: u32,
    /// The hour of the UTC day at which it starts.
    pub starts_at_utc: u32,
    /// The calls that are sent. A simulator takes any others too.
    pub arrivals: Arrivals,
    server_deadline_minutes: u64,
    latency_by_hour: Option<[f64; 24]>,
    usual_faults: bool,
    outages: Vec<OutageSpec>,
    faults: Vec<FaultSpec>,
    flex: Flex,
    latency: Vec<LatencySpec>,
    quota: QuotaSpec,
    deadlines: Vec<DeadlineSpec>,
    retirements: Vec<RetirementSpec>,
    #[serde(skip)]
    observed: Observations,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            about: String::new(),
            hours: 24,
            starts_at_utc: 0,
            arrivals: Arrivals::default(),
            server_deadline_minutes: 10,
            latency_by_hour: None,
            usual_faults: false,
            outages: Vec::new(),
            faults: Vec::new(),
            flex: Flex::default(),
            latency: Vec::new(),
            quota: QuotaSpec::default(),
            deadlines: Vec::new(),
            retirements: Vec::new(),
            observed: Observations::default(),
        }
    }
}

/// Which calls are sent, and when. `[arrivals]` of a [`Scenario`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Arrivals {
    /// `open`: by chance, whatever became of the others. `closed`: so many `workers`, each of which
    /// sends its next call a `pause_seconds` after its last. `bursts`: `burst` calls at once, every
    /// `every_minutes`. `batch`: all of them at the start, `workers` at a time.
    pub kind: ArrivalKind,
    /// Calls an hour in the mean, in an open loop.
    pub per_hour: f64,
    /// Calls of a batch.
    pub calls: u32,
    /// How busy the hours of the UTC day are, beside each other.
    pub by_hour: Option<[f64; 24]>,
    /// Workers of a closed loop or a batch.
    pub workers: u32,
    /// The pause of a worker.
    pub pause_seconds: u64,
    /// Calls in a burst.
    pub burst: u32,
    /// The time between two bursts.
    pub every_minutes: u64,
    /// How long a caller waits for its image.
    pub deadline_minutes: u64,
    /// What is asked for, by share.
    pub mix: Vec<Wanted>,
}

impl Default for Arrivals {
    fn default() -> Self {
        let wanted = Wanted {
            model: "gemini-3.1-flash-image".to_owned(),
            size: Size::K1,
            share: 1.0,
            flex: false,
        };
        Self {
            kind: ArrivalKind::Open,
            per_hour: 60.0,
            calls: 1_000,
            by_hour: None,
            workers: 4,
            pause_seconds: 10,
            burst: 30,
            every_minutes: 30,
            deadline_minutes: 15,
            mix: vec![wanted],
        }
    }
}

/// How calls arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ArrivalKind {
    /// By chance, whatever became of the others.
    Open,
    /// From workers that wait for their last call.
    Closed,
    /// Many at once, now and then.
    Bursts,
    /// All of them at the start.
    Batch,
}

/// One kind of call in a [mix](Arrivals::mix).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Wanted {
    /// The model that the call names.
    pub model: String,
    /// The size that it asks for.
    pub size: Size,
    /// Its share of the calls.
    pub share: f64,
    /// Whether it asks for the flex tier.
    #[serde(default)]
    pub flex: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutageSpec {
    #[serde(default = "high_demand", deserialize_with = "fault")]
    fault: Fault,
    /// Of the fault `late`: how long the model works.
    late_seconds: Option<f64>,
    model: Option<String>,
    size: Option<Size>,
    #[serde(default)]
    each: Each,
    share: Option<f64>,
    by_hour: Option<[f64; 24]>,
    #[serde(default = "fifty")]
    mean_minutes: f64,
    #[serde(default = "one")]
    shape: f64,
    #[serde(default)]
    correlation: f64,
    #[serde(default)]
    independent: bool,
    released_days_ago: Option<f64>,
    /// Minutes after the start, and the share of the requests that fail from then on.
    #[serde(default)]
    steps: Vec<(f64, f64)>,
    #[serde(default)]
    share_by_size: Vec<(Size, f64)>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultSpec {
    #[serde(deserialize_with = "fault")]
    fault: Fault,
    share: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct LatencySpec {
    model: Option<String>,
    size: Option<Size>,
    seconds: (f64, f64),
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct QuotaSpec {
    rpm: Option<u64>,
    ipm: Option<u64>,
    tpm: Option<u64>,
    rpd: Option<u64>,
    counts_rejected: bool,
    /// Those of one model, in place of the others.
    model: BTreeMap<String, Self>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadlineSpec {
    minute: f64,
    minutes: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetirementSpec {
    minute: f64,
    model: String,
    successor: String,
}

fn high_demand() -> Fault {
    Fault::HighDemand
}

fn fifty() -> f64 {
    50.0
}

fn one() -> f64 {
    1.0
}

fn fault<'de, D: Deserializer<'de>>(input: D) -> Result<Fault, D::Error> {
    let named = String::deserialize(input)?;
    let (name, number) = named.split_once('#').unwrap_or((&named, "1"));
    let mut all = Fault::all().into_iter().filter(|fault| fault.name() == name);
    let found = number.parse::<usize>().ok().and_then(|number| all.nth(number.checked_sub(1)?));
    found.ok_or_else(|| {
        let mut names: Vec<_> = Fault::all().iter().map(Fault::name).collect();
        names.dedup();
        let names = names.join(", ");
        de::Error::custom(format!("no fault is called \"{named}\"; there are {names}"))
    })
}

/// Those of this crate, by name.
const BUILT_IN: &[(&str, &str)] = &[
    ("calm", include_str!("../scenarios/calm.toml")),
    ("independent", include_str!("../scenarios/independent.toml")),
    ("day", include_str!("../scenarios/day.toml")),
    ("day-correlated", include_str!("../scenarios/day-correlated.toml")),
    ("peak", include_str!("../scenarios/peak.toml")),
    ("release", include_str!("../scenarios/release.toml")),
    ("january", include_str!("../scenarios/january.toml")),
    ("bursts", include_str!("../scenarios/bursts.toml")),
    ("lossy", include_str!("../scenarios/lossy.toml")),
    ("relay", include_str!("../scenarios/relay.toml")),
    ("batch", include_str!("../scenarios/batch.toml")),
    ("flex", include_str!("../scenarios/flex.toml")),
];

impl Scenario {
    /// The scenarios of this crate, each with its name and the text of its file.
    pub fn built_in() -> &'static [(&'static str, &'static str)] {
        BUILT_IN
    }

    /// One of [`built_in`](Self::built_in).
    pub fn named(name: &str) -> Option<Self> {
        let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Self::parse(text).ok()
    }

    /// Parses a file's text.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong: a key or a value that is not known, or a number that cannot
    /// be.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self =
            toml::from_str(text).map_err(|error| ScenarioError::new(error.to_string()))?;
        match scenario.problem() {
            Some(what) => Err(ScenarioError::new(what)),
            None => Ok(scenario),
        }
    }

    /// Whether there are outages that begin and end, so that it would help to know of them.
    #[must_use]
    pub fn has_lasting_outages(&self) -> bool {
        self.outages.iter().any(|one| !one.independent && one.steps.is_empty())
    }

    /// What was seen, again: a request meets what the last such request until its moment met. The
    /// scenario lasts as long as the observations, and begins at midnight UTC.
    #[must_use]
    pub fn replaying(observed: Observations) -> Self {
        let last = observed.all().last().map_or(0, |one| one.at.as_secs());
        let about = format!("{} requests that were seen, replayed", observed.all().len());
        let hours = u32::try_from(last.div_ceil(3600)).unwrap_or(u32::MAX).max(1);
        Self { about, hours, observed, ..Self::default() }
    }

    /// What cannot be.
    fn problem(&self) -> Option<String> {
        let is_share = |share: &f64| (0.0..=1.0).contains(share);
        let shares = |name: &'static str, shares: &[f64]| {
            let wrong = shares.iter().find(|share| !is_share(share))?;
            Some(format!("{name} = {wrong} is no share; write 0 to 1"))
        };
        let unknown = |model: &String| {
            let models = || MODELS.iter().map(|model| &*model.id).collect::<Vec<_>>().join(", ");
            known(model)
                .is_none()
                .then(|| format!("the model \"{model}\" is not simulated; there are {}", models()))
        };
        let of_outage = |one: &OutageSpec| {
            if one.mean_minutes <= 0.0 || one.shape <= 0.0 {
                return Some("mean_minutes and shape of [[outages]] are above 0".to_owned());
            }
            let given = [one.share.is_some(), one.by_hour.is_some(), !one.steps.is_empty()];
            if given.into_iter().filter(|is_given| *is_given).count() != 1 {
                return Some(
                    "[[outages]] have a share, by_hour or steps, and one of them".to_owned(),
                );
            }
            let of_steps: Vec<f64> = one.steps.iter().map(|(_, share)| *share).collect();
            shares("share", one.share.as_slice())
                .or_else(|| shares("by_hour", one.by_hour.as_ref().map_or(&[], |all| all)))
                .or_else(|| shares("correlation", &[one.correlation]))
                .or_else(|| shares("steps", &of_steps))
                .or_else(|| one.model.as_ref().and_then(unknown))
        };
        let arrivals = &self.arrivals;
        let share: f64 = arrivals.mix.iter().map(|one| one.share).sum();
        let mut wrong = [
            (self.hours == 0, "hours = 0 leaves no time"),
            (self.starts_at_utc > 23, "starts_at_utc is an hour, 0 to 23"),
            (arrivals.per_hour < 0.0, "per_hour of [arrivals] is 0 or more"),
            (arrivals.workers == 0, "workers of [arrivals] is 1 or more"),
            (arrivals.every_minutes == 0, "every_minutes of [arrivals] is 1 or more"),
            (
                !(0.0..=self.flex.queue_seconds.1.min(86_400.0))
                    .contains(&self.flex.queue_seconds.0),
                "queue_seconds go up from 0, to a day at the most",
            ),
            (
                arrivals.mix.iter().any(|one| one.flex) && self.flex == Flex::default(),
                "flex = true in [[arrivals.mix]] needs [flex] with queue_seconds or shed_by_hour",
            ),
        ]
        .into_iter();
        let wrong = wrong.find_map(|(is_wrong, what)| is_wrong.then(|| what.to_owned()));
        let is_whole = (share - 1.0).abs() < 0.015;
        let sum =
            format!("the shares of [[arrivals.mix]] sum to {:.2}; write shares of 1", share.abs());
        wrong
            .or_else(|| (!is_whole).then_some(sum))
            .or_else(|| self.outages.iter().find_map(of_outage))
            .or_else(|| self.faults.iter().find_map(|one| shares("share", &[one.share])))
            .or_else(|| shares("shed_by_hour", &self.flex.shed_by_hour))
            .or_else(|| shares("shed_in_stream", &[self.flex.shed_in_stream]))
            .or_else(|| arrivals.mix.iter().find_map(|one| unknown(&one.model)))
            .or_else(|| self.quota.model.keys().find_map(unknown))
    }

    /// The simulator of this scenario, without a seed.
    pub fn builder(&self) -> Builder {
        let mut weather = if self.usual_faults { Weather::usual() } else { Weather::calm() };
        for one in &self.outages {
            weather = weather.outages(one.outages());
        }
        for one in &self.faults {
            weather = weather.with(one.share, one.fault.clone());
        }
        weather = weather.observed(self.observed.clone()).flex(self.flex);
        let mut latency = Latency::default();
        for one in &self.latency {
            latency = latency.with(one.model.as_deref(), one.size, range(one.seconds));
        }
        if let Some(factors) = self.latency_by_hour {
            latency = latency.by_hour(factors);
        }
        let mut builder = Builder::default()
            .weather(weather)
            .latency(latency)
            .quota(self.quota.quota())
            .server_deadline(Duration::from_secs(60 * self.server_deadline_minutes))
            .starts_at_utc(Duration::from_secs(3600 * u64::from(self.starts_at_utc)));
        for (model, limits) in &self.quota.model {
            builder = builder.quota_of(model.clone(), limits.quota());
        }
        for one in &self.deadlines {
            builder = builder.server_deadline_from(minutes(one.minute), minutes(one.minutes));
        }
        for one in &self.retirements {
            builder = builder.retire_from(minutes(one.minute), &one.model, &one.successor);
        }
        builder
    }
}

impl OutageSpec {
    fn outages(&self) -> Outages {
        let steps = self.steps.iter().map(|&(minute, share)| (minutes(minute), share));
        let fault = match (&self.fault, self.late_seconds) {
            (Fault::Late { .. }, Some(seconds)) => Fault::Late { latency: minutes(seconds / 60.0) },
            (fault, _) => fault.clone(),
        };
        let mut outages = Outages::new(fault)
            .each(self.each)
            .mean_down(minutes(self.mean_minutes))
            .shape(self.shape)
            .correlation(self.correlation)
            .independent(self.independent)
            .steps(steps);
        if let Some(model) = &self.model {
            outages = outages.model(model.clone());
        }
        if let Some(size) = self.size {
            outages = outages.size(size);
        }
        if let Some(shares) = self.by_hour.or(self.share.map(|share| [share; 24])) {
            outages = outages.by_hour(shares);
        }
        if let Some(days) = self.released_days_ago {
            outages = outages.released_before(minutes(days * 24.0 * 60.0));
        }
        let by_size = self.share_by_size.iter();
        by_size.fold(outages, |outages, &(size, share)| outages.share_at(size, share))
    }
}

impl QuotaSpec {
    fn quota(&self) -> Quota {
        let Self { rpm, ipm, tpm, rpd, counts_rejected, .. } = *self;
        Quota { rpm, ipm, tpm, rpd, counts_rejected }
    }
}

fn minutes(minutes: f64) -> Duration {
    Duration::try_from_secs_f64(minutes * 60.0).unwrap_or_default()
}

fn range((from, to): (f64, f64)) -> RangeInclusive<Duration> {
    let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    seconds(from)..=seconds(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_this_crate_can_be_built() {
        for (name, text) in Scenario::built_in() {
            let scenario = Scenario::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!scenario.about.is_empty(), "{name}");
            let _ = scenario.builder().seed(1).build();
        }
    }

    #[test]
    fn the_scenario_of_the_reference_can_be_built() {
        let (_, text) = include_str!("../SCENARIOS.md").split_once("```toml").unwrap();
        let scenario = Scenario::parse(text.split_once("```").unwrap().0).unwrap();
        assert_eq!((scenario.hours, scenario.arrivals.mix.len()), (8, 2));
    }

    #[test]
    fn what_is_set_of_flex_comes_back_from_toml() {
        let mut flex =
            Flex { shed_in_stream: 0.2, queue_seconds: (60.0, 900.0), ..Flex::default() };
        flex.shed_by_hour[10] = 0.45;
        let Flex { shed_by_hour, shed_in_stream, queue_seconds: (from, to) } = flex;
        let text = format!(
            "[flex]\nshed_by_hour = {shed_by_hour:?}\nshed_in_stream = {shed_in_stream}\n\
             queue_seconds = [{from}, {to}]"
        );
        assert_eq!(Scenario::parse(&text).unwrap().flex, flex);
        assert_eq!(Scenario::parse("").unwrap().flex, Flex::default());
    }

    #[test]
    fn what_cannot_be_is_an_error_that_says_so() {
        for (text, told) in [
            ("hour = 3", "unknown field `hour`"),
            ("hours = 0", "leaves no time"),
            ("[[outages]]\nmean_minutes = 5", "have a share, by_hour or steps, and one"),
            ("[[outages]]\nshare = 0.5\nsteps = [[0, 1]]", "and one of them"),
            ("[[outages]]\nshare = 1.5", "share = 1.5 is no share"),
            (
                "[[outages]]\nshare = 0.5\nfault = \"rain\"",
                "no fault is called \"rain\"; there are none, shaped, late, rerouted",
            ),
            (
                "[[outages]]\nshare = 0.5\nmodel = \"gpt\"",
                "\"gpt\" is not simulated; there are gemini-",
            ),
            ("[quota.model.gpt]\nrpm = 1", "\"gpt\" is not simulated"),
            ("[[outages]]\nshare = 0.5\nmean_minutes = 0", "above 0"),
            ("[arrivals]\nmix = []", "sum to 0.00; write shares of 1"),
            (
                "[[arrivals.mix]]\nmodel = \"gemini-3-pro-image\"\nsize = \"1K\"\nshare = 1\nflex = true",
                "needs [flex]",
            ),
            ("[flex]\nshed_in_stream = 2.0", "shed_in_stream = 2 is no share"),
            ("[flex]\nqueue_seconds = [9, 1]", "queue_seconds go up from 0"),
            ("[flex]\nqueue_seconds = [-5, 10]", "queue_seconds go up from 0"),
        ] {
            let error = Scenario::parse(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
