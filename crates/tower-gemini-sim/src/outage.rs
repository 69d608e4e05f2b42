//! Outages: periods of good and bad time, for a model, a size of it, or a project.
//!
//! A process in two states. Its bad periods have a length of their own, and its good ones are as
//! long as makes the share of bad time of each hour what it should be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;

use crate::fault::Fault;
use crate::hash::{hash64, mix};
use crate::lock;
use crate::model::Size;

const HOUR: f64 = 3600.0;
/// No model fails all the time for ever.
const MOST: f64 = 0.98;

/// What has outages of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Each {
    /// Each model.
    #[default]
    Model,
    /// Each size of each model.
    Size,
    /// Each project, which is each key unless [`Builder::project`](crate::Builder::project) says
    /// otherwise: all its models fail together.
    Project,
}

/// Periods of good and bad time that follow each other.
///
/// Independent faults make retrying look better than it is: users report that 503s of one model
/// last for tens of minutes (70 % are over within an hour and 90 % within two: APIYI, 503s on Nano
/// Banana 2, 2026-03, which fits a mean of 50 minutes).
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | [`model`](Self::model), [`size`](Self::size) | every model, every size |
/// | [`each`](Self::each) | each model has outages of its own |
/// | [`mean_up`](Self::mean_up) | 1 hour, in place of shares by hour |
/// | [`mean_down`](Self::mean_down) | 50 minutes |
/// | [`shape`](Self::shape) | 1: exponential |
/// | [`share`](Self::share) | 1: every request of the period fails |
/// | [`correlation`](Self::correlation) | 0: each subject by itself |
/// | [`independent`](Self::independent) | no: a failure tells of the next |
#[derive(Debug, Clone, PartialEq)]
pub struct Outages {
    pub(crate) fault: Fault,
    model: Option<String>,
    size: Option<Size>,
    each: Each,
    mean_up: Duration,
    mean_down: Duration,
    shape: f64,
    by_hour: Option<[f64; 24]>,
    steps: Vec<(Duration, f64)>,
    release_age: Option<Duration>,
    correlation: f64,
    independent: bool,
    share: f64,
    share_by_size: Vec<(Size, f64)>,
}

impl Outages {
    setters! {
        /// Sets what has outages of its own.
        each: Each,
        /// Sets the mean time between two outages. Zero begins with an outage.
        mean_up: Duration,
        /// Sets the mean length of an outage.
        mean_down: Duration,
        /// Sets the shape of the lengths' Weibull distribution: below 1, many are short and some
        /// very long. The recovery times of users' reports fit 0.94.
        shape: f64,
        /// Sets how much of the bad time all subjects have together, from 0 (none) to 1 (all).
        correlation: f64,
        /// Sets whether each request fails by itself, with the share of the hour, as most articles
        /// assume without saying so.
        independent: bool,
        /// Sets the share of the requests that fail during an outage.
        share: f64,
    }

    /// Outages in which requests meet this fault.
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            model: None,
            size: None,
            each: Each::Model,
            mean_up: Duration::from_secs(3_600),
            mean_down: Duration::from_secs(3_000),
            shape: 1.0,
            by_hour: None,
            steps: Vec::new(),
            release_age: None,
            correlation: 0.0,
            independent: false,
            share: 1.0,
            share_by_size: Vec::new(),
        }
    }

    /// Restricts the outages to one model.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Restricts the outages to one size.
    #[must_use]
    pub fn size(mut self, size: Size) -> Self {
        self.size = Some(size);
        self
    }

    /// Sets the share of bad time in each hour of the UTC day, in place of
    /// [`mean_up`](Self::mean_up). A share falls no faster than outages end.
    #[must_use]
    pub fn by_hour(mut self, shares: [f64; 24]) -> Self {
        self.by_hour = Some(shares);
        self
    }

    /// Sets the share of the requests that fail from each moment after the start on: a trace of what
    /// was seen. Each request fails by itself.
    #[must_use]
    pub fn steps(mut self, steps: impl IntoIterator<Item = (Duration, f64)>) -> Self {
        self.steps = steps.into_iter().collect();
        self.steps.sort_by_key(|(at, _)| *at);
        self
    }

    /// Makes the shares by hour those of a model that was released so long before the start, in
    /// the mean of a day: 60 % in the first three days, 35 % to the end of the first week, 20 % in
    /// the next two, then 7.5 % (APIYI, 503s on Nano Banana 2, 2026-03: 50 to 70, 30 to 40, 15 to
    /// 25, 5 to 10 %).
    #[must_use]
    pub fn released_before(mut self, age: Duration) -> Self {
        self.release_age = Some(age);
        self
    }

    /// Sets that share for requests of one size.
    #[must_use]
    pub fn share_at(mut self, size: Size, share: f64) -> Self {
        self.share_by_size.push((size, share));
        self
    }

    fn share_of(&self, size: Size) -> f64 {
        let own = self.share_by_size.iter().rev().find(|(of, _)| *of == size);
        own.map_or(self.share, |(_, share)| *share)
    }

    /// The share of bad time that an hour should have, where that is given by the hour.
    fn target(&self, hour: u64) -> Option<f64> {
        let by_hour = self.by_hour?;
        let share = by_hour[(hour % 24) as usize];
        let Some(age) = self.release_age else { return Some(share.min(MOST)) };
        let mean = by_hour.iter().sum::<f64>() / 24.0;
        let days = age.as_secs_f64() / (24.0 * HOUR) + hour as f64 / 24.0;
        let of_age = match days {
            _ if days < 3.0 => 0.60,
            _ if days < 7.0 => 0.35,
            _ if days < 21.0 => 0.20,
            _ => 0.075,
        };
        Some((share / mean.max(f64::MIN_POSITIVE) * of_age).min(MOST))
    }

    /// The scale of the lengths' distribution.
    fn scale(&self) -> f64 {
        self.mean_down.as_secs_f64() / mean_of_weibull(self.shape)
    }
}

/// The shares of [`Weather::claimed_hours`](crate::Weather::claimed_hours), with their source there.
pub(crate) fn claimed_hours() -> [f64; 24] {
    std::array::from_fn(|hour| match hour {
        0..6 => 0.08,
        6..10 => 0.15,
        10..14 => 0.45,
        14..18 => 0.25,
        _ => 0.10,
    })
}

/// The mean of a Weibull distribution of scale 1, which is Γ(1 + 1/shape): the area below its
/// survival function.
fn mean_of_weibull(shape: f64) -> f64 {
    const STEP: f64 = 1e-3;
    let survival = |n: u32| (-(f64::from(n) * STEP).powf(shape)).exp();
    let area = (0..).map(survival).take_while(|left| *left > 1e-9).sum::<f64>();
    (area - 0.5) * STEP
}

/// What a request asks for, and when.
pub(crate) struct Asked<'a> {
    pub(crate) project: &'a Arc<str>,
    pub(crate) model: &'a Arc<str>,
    pub(crate) size: Size,
    /// Since the simulator's start.
    pub(crate) now: Duration,
    /// On the simulator's UTC clock.
    pub(crate) starts_at: Duration,
}

/// Whose good and bad periods, for one entry of [`Outages`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    /// What all subjects have together.
    All,
    One(Arc<str>, Option<Size>),
}

/// One entry of [`Outages`] with its memory.
#[derive(Debug)]
pub(crate) struct OutageState {
    seed: u64,
    scale: f64,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    periods: HashMap<Subject, Period>,
    /// How likely a good period ends, a second, hour by hour: of what is common, and of one subject.
    hazards: [Hazards; 2],
}

impl OutageState {
    pub(crate) fn of(seed: u64, all: &[Outages]) -> Vec<Self> {
        let state = |(index, outages): (usize, &Outages)| Self {
            seed: seed ^ index as u64,
            scale: outages.scale(),
            memory: Mutex::default(),
        };
        all.iter().enumerate().map(state).collect()
    }

    /// Which share of such requests fails now.
    pub(crate) fn share_failing(&self, outages: &Outages, asked: &Asked<'_>) -> f64 {
        let is_other = outages.model.as_ref().is_some_and(|only| **only != **asked.model)
            || outages.size.is_some_and(|only| only != asked.size);
        if is_other {
            return 0.0;
        }
        let share = outages.share_of(asked.size);
        if !outages.steps.is_empty() {
            let step = outages.steps.iter().rev().find(|(at, _)| *at <= asked.now);
            return share * step.map_or(0.0, |(_, share)| *share);
        }
        if outages.independent {
            let hour = ((asked.starts_at + asked.now).as_secs_f64() / HOUR) as u64;
            return share * outages.target(hour).unwrap_or_else(|| outages.stationary());
        }
        let (name, size) = match outages.each {
            Each::Project => (asked.project, None),
            Each::Model => (asked.model, None),
            Each::Size => (asked.model, Some(asked.size)),
        };
        let own = Subject::One(name.clone(), size);
        let is_common = outages.correlation > 0.0;
        let mut subjects = is_common.then_some(Subject::All).into_iter().chain([own]);
        // What depends on the hour began at midnight, and the rest with the simulator.
        let began = if outages.by_hour.is_some() { asked.starts_at } else { Duration::ZERO };
        let now = (began + asked.now).as_secs_f64();
        let memory = &mut *lock(&self.memory);
        // Both are moved on, so that one does not depend on when the other is looked at.
        let is_down = subjects
            .by_ref()
            .fold(false, |down, subject| down | memory.is_down(self, outages, subject, now));
        if is_down { share } else { 0.0 }
    }
}

impl Memory {
    fn is_down(
        &mut self,
        state: &OutageState,
        outages: &Outages,
        subject: Subject,
        now: f64,
    ) -> bool {
        let length = |rng: &mut Rng| {
            let drawn = (-(1.0 - rng.f64()).ln()).powf(1.0 / outages.shape);
            (state.scale * drawn).max(0.001)
        };
        let hazards = &mut self.hazards[usize::from(subject != Subject::All)];
        let part = match subject {
            Subject::All => Part::Common,
            Subject::One(..) => Part::Own,
        };
        let period = self.periods.entry(subject).or_insert_with_key(|subject| {
            let name = match subject {
                Subject::All => 0,
                Subject::One(name, size) => {
                    hash64(name.as_bytes())
                        ^ size.map_or(0, |size| hash64(size.as_str().as_bytes()))
                }
            };
            let mut rng = Rng::with_seed(mix(state.seed ^ name));
            // It has gone on for ever when the day begins, unless it is told to begin well or not.
            let down = match outages.target(0) {
                Some(target) => rng.f64() < part.of(target, outages.correlation),
                None => false,
            };
            let until = match down {
                true => length(&mut rng),
                false => hazards.end_of_good(outages, part, 0.0, &mut rng),
            };
            Period { rng, down, until }
        });
        while period.until <= now {
            period.down = !period.down;
            period.until = match period.down {
                true => period.until + length(&mut period.rng),
                false => hazards.end_of_good(outages, part, period.until, &mut period.rng),
            };
        }
        period.down
    }
}

/// The present period of one subject.
#[derive(Debug)]
struct Period {
    rng: Rng,
    down: bool,
    /// In seconds.
    until: f64,
}

/// Which part of the bad time.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// What all subjects have together.
    Common,
    /// The rest.
    Own,
}

impl Part {
    /// This part of a share of bad time: both together make it.
    fn of(self, share: f64, correlation: f64) -> f64 {
        let common = share * correlation;
        match self {
            Self::Common => common,
            Self::Own => (share - common) / (1.0 - common),
        }
    }
}

/// How likely a good period ends, a second, in each hour.
#[derive(Debug, Default)]
struct Hazards {
    by_hour: Vec<f64>,
    /// The share of bad time at the end of the last hour.
    share: f64,
}

impl Outages {
    /// The share of bad time where no hours are given.
    fn stationary(&self) -> f64 {
        let (up, down) = (self.mean_up.as_secs_f64(), self.mean_down.as_secs_f64());
        down / (up + down)
    }
}

impl Hazards {
    /// When a good period that begins at `from` ends.
    fn end_of_good(&mut self, outages: &Outages, part: Part, from: f64, rng: &mut Rng) -> f64 {
        /// After so many hours without an outage there is none any more.
        const LONGEST: u64 = 10_000;
        let mut left = -(1.0 - rng.f64()).ln();
        let first = (from / HOUR) as u64;
        for hour in first..first + LONGEST {
            let begins = from.max(hour as f64 * HOUR);
            let hazard = self.of(outages, part, hour);
            let of_hour = hazard * ((hour + 1) as f64 * HOUR - begins);
            if of_hour > left {
                return begins + left / hazard;
            }
            left -= of_hour;
        }
        f64::INFINITY
    }

    /// The hazard of an hour: with it, the mean share of bad time within the hour is what it should
    /// be, given the share at the hour's beginning. As for exponential lengths; those of another
    /// shape differ by less than the weather does.
    fn of(&mut self, outages: &Outages, part: Part, hour: u64) -> f64 {
        let down = outages.mean_down.as_secs_f64();
        if outages.by_hour.is_none() {
            let share = part.of(outages.stationary(), outages.correlation);
            return share / (1.0 - share) / down.max(0.001);
        }
        while self.by_hour.len() as u64 <= hour {
            let next = self.by_hour.len() as u64;
            let target = part.of(outages.target(next).unwrap_or(0.0), outages.correlation);
            if next == 0 {
                self.share = target;
            }
            // The share goes to its limit λm/(1+λm) at the rate λ + 1/m.
            let after = |hazard: f64| {
                let (rate, limit) = (hazard + 1.0 / down, hazard * down / (1.0 + hazard * down));
                let gone = (-rate * HOUR).exp();
                let mean = limit + (self.share - limit) * (1.0 - gone) / (rate * HOUR);
                (mean, limit + (self.share - limit) * gone)
            };
            let (mut low, mut high) = (0.0, 1.0);
            for _ in 0..60 {
                let middle = (low + high) / 2.0;
                *(if after(middle).0 < target { &mut low } else { &mut high }) = middle;
            }
            self.share = after(low).1;
            self.by_hour.push(low);
        }
        self.by_hour[hour as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(MINUTE * count)
    }

    /// Whether it is bad in each minute, for so many subjects beside each other.
    fn minutes_of(outages: &Outages, seed: u64, subjects: usize, days: u64) -> Vec<Vec<bool>> {
        let [state] = &OutageState::of(seed, std::slice::from_ref(outages))[..] else { panic!() };
        let project: Arc<str> = "p".into();
        let models: Vec<Arc<str>> = (0..subjects).map(|n| format!("model-{n}").into()).collect();
        let mut bad = vec![Vec::new(); subjects];
        for minute in 0..days * 24 * 60 {
            let (now, starts_at) = (minutes(minute), Duration::ZERO);
            for (model, bad) in models.iter().zip(&mut bad) {
                let asked = Asked { project: &project, model, size: Size::K1, now, starts_at };
                bad.push(state.share_failing(outages, &asked) > 0.0);
            }
        }
        bad
    }

    fn share(bad: &[bool]) -> f64 {
        bad.iter().filter(|bad| **bad).count() as f64 / bad.len() as f64
    }

    /// Lengths of outages, in minutes.
    fn lengths(bad: &[bool]) -> Vec<usize> {
        bad.split(|bad| !bad).map(<[bool]>::len).filter(|&length| length > 0).collect()
    }

    #[test]
    fn an_outage_lasts_and_ends() {
        let outages = Outages::new(Fault::HighDemand).each(Each::Size).mean_up(minutes(200));
        let bad = &minutes_of(&outages, 3, 1, 140)[0];
        assert!((0.17..0.23).contains(&share(bad)), "{}", share(bad));
        let lengths = lengths(bad);
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        assert!((45.0..56.0).contains(&mean), "{mean}");
    }

    fn claimed() -> Outages {
        Outages::new(Fault::HighDemand).by_hour(claimed_hours()).shape(0.94)
    }

    #[test]
    fn one_process_fits_the_table_of_hours_and_the_times_of_recovery() {
        let outages = claimed();
        let bad = &minutes_of(&outages, 7, 1, 800)[0];
        for (hour, told) in outages.by_hour.unwrap().iter().enumerate() {
            let of_hour = |day: &[bool]| share(&day[hour * 60..(hour + 1) * 60]);
            let seen = bad.chunks(24 * 60).map(of_hour).sum::<f64>() / 800.0;
            // The first hour after a peak still has its outages.
            let room = if [14, 18].contains(&hour) { 0.09 } else { 0.04 };
            assert!((seen - told).abs() < room, "hour {hour}: {seen:.3}, not {told}");
        }
        let lengths = lengths(bad);
        let within = |minutes| {
            let short = lengths.iter().filter(|&&length| length <= minutes).count();
            short as f64 / lengths.len() as f64
        };
        assert!((within(60) - 0.70).abs() < 0.03, "{}", within(60));
        assert!((within(120) - 0.90).abs() < 0.03, "{}", within(120));
    }

    #[test]
    fn correlation_is_the_share_of_bad_time_that_subjects_have_together() {
        for (correlation, together) in [(0.0, 0.2), (0.5, 0.56), (1.0, 1.0)] {
            let outages = Outages::new(Fault::HighDemand).by_hour([0.2; 24]);
            let both = minutes_of(&outages.correlation(correlation), 5, 2, 300);
            let [first, second] = &both[..] else { panic!() };
            assert!((share(first) - 0.2).abs() < 0.02, "{correlation}: {}", share(first));
            let pairs: Vec<bool> = first.iter().zip(second).map(|(a, b)| *a && *b).collect();
            let seen = share(&pairs) / share(first);
            // Those that are not common meet by chance.
            assert!((seen - together).abs() < 0.09, "{correlation}: {seen}, not {together}");
        }
    }

    #[test]
    fn a_new_release_fails_less_with_its_age() {
        let outages = claimed().released_before(Duration::ZERO);
        let bad = &minutes_of(&outages, 9, 1, 28)[0];
        let of_days = |from: usize, to: usize| share(&bad[from * 1_440..to * 1_440]);
        let shares = [of_days(0, 3), of_days(3, 7), of_days(7, 21), of_days(21, 28)];
        assert!(shares.is_sorted_by(|a, b| a > b), "{shares:?}");
    }

    #[test]
    fn a_trace_fails_as_it_says() {
        let trace = Outages::new(Fault::HighDemand).size(Size::K4).steps([
            (minutes(0), 0.0),
            (minutes(30), 1.0),
            (minutes(90), 0.0),
        ]);
        let [state] = &OutageState::of(1, std::slice::from_ref(&trace))[..] else { panic!() };
        let (project, model): (Arc<str>, Arc<str>) = ("p".into(), "m".into());
        let failing = |size, minute| {
            let (now, starts_at) = (minutes(minute), minutes(600));
            let asked = Asked { project: &project, model: &model, size, now, starts_at };
            state.share_failing(&trace, &asked)
        };
        let seen = [0, 29, 30, 89, 90].map(|minute| failing(Size::K4, minute));
        assert_eq!(seen, [0.0, 0.0, 1.0, 1.0, 0.0]);
        assert!(failing(Size::K1, 60) == 0.0);
    }
}
