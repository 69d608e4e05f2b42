//! Faults by chance, and the time that answers take: both a function of the seed and the number of
//! the request, so that a seed is a trace.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;

use crate::fault::{Fault, Limit};
use crate::hash::{hash64, mix};
use crate::model::Size;

/// Which faults happen, and how often.
///
/// ```
/// use tower_gemini_sim::{Fault, Weather};
/// let weather = Weather::calm().with(0.2, Fault::HighDemand).with(0.1, Fault::CutBody { at: 1_000 });
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weather {
    mix: Vec<(f64, Fault)>,
    hourly: Option<([f64; 24], Fault)>,
    outages: Vec<Outages>,
}

impl Weather {
    /// Nothing ever happens.
    pub fn calm() -> Self {
        Self::default()
    }

    /// Every fault of [`Fault::all`] with the same probability, `share` of the requests in sum.
    pub fn everything(share: f64) -> Self {
        let all = Fault::all();
        let each = share / all.len() as f64;
        Self { mix: all.into_iter().map(|fault| (each, fault)).collect(), ..Self::default() }
    }

    /// The mix of failures that published troubleshooting guides of February and March 2026 claim:
    /// 70 % 429, 15 % 503 and 502, 8 % 403, 5 % 500, the rest timeouts; `share` of the requests in
    /// sum.
    pub fn claimed_mix(share: f64) -> Self {
        let minute = Fault::RateLimitMinute {
            retry_after: Duration::from_millis(34_074),
            limit: Limit::Requests,
        };
        Self::calm()
            .with(share * 0.50, minute)
            .with(share * 0.10, Fault::RateLimitDay { retry_after: Duration::from_millis(21_250) })
            .with(share * 0.10, Fault::ExhaustedBare)
            .with(share * 0.12, Fault::HighDemand)
            .with(share * 0.03, Fault::BadGatewayHtml)
            .with(share * 0.08, Fault::Forbidden(crate::fault::Forbidden::Generic))
            .with(share * 0.05, Fault::Internal)
            .with(share * 0.02, Fault::DeadlineExpired504)
    }

    /// The share of 503s by hour of the UTC day that a guide of March 2026 claims for 3.1 Flash: 8
    /// % from 00, 15 % from 06, 45 % from 10, 25 % from 14 and 10 % from 18. Other guides place the
    /// peak elsewhere; none was measured by Google.
    pub fn claimed_hours() -> Self {
        let rate = |hour: usize| match hour {
            0..6 => 0.08,
            6..10 => 0.15,
            10..14 => 0.45,
            14..18 => 0.25,
            _ => 0.10,
        };
        Self { hourly: Some((std::array::from_fn(rate), Fault::HighDemand)), ..Self::default() }
    }

    /// Adds a fault that happens to this share of the requests, each by itself.
    #[must_use]
    pub fn with(mut self, probability: f64, fault: Fault) -> Self {
        self.mix.push((probability, fault));
        self
    }

    /// Adds a fault whose share depends on the hour of the simulator's UTC clock.
    #[must_use]
    pub fn by_hour(mut self, probabilities: [f64; 24], fault: Fault) -> Self {
        self.hourly = Some((probabilities, fault));
        self
    }

    /// Adds outages: stretches of time in which a model answers nothing else.
    #[must_use]
    pub fn outages(mut self, outages: Outages) -> Self {
        self.outages.push(outages);
        self
    }
}

/// Stretches of good and bad time that follow each other, of exponential length, each model (and
/// size) on its own.
///
/// Independent faults make retrying look better than it is: users report that 503s of one model
/// last for tens of minutes (70 % are over within 60 minutes, a guide of March 2026 claims, which
/// fits a mean of 50).
#[derive(Debug, Clone, PartialEq)]
pub struct Outages {
    /// The model that fails, or every one on its own.
    pub model: Option<String>,
    /// Whether each size fails on its own.
    pub by_size: bool,
    /// Mean length of the good stretches.
    pub mean_good: Duration,
    /// Mean length of the bad stretches.
    pub mean_bad: Duration,
    /// Share of the requests that fail within a bad stretch.
    pub share: f64,
    /// What they meet.
    pub fault: Fault,
}

#[derive(Debug)]
struct Stretch {
    rng: Rng,
    bad: bool,
    until: Duration,
}

/// Which outages, of which model, at which size if sizes fail on their own.
type Place = (usize, Arc<str>, Option<Size>);

/// Weather with its memory.
#[derive(Debug)]
pub(crate) struct Sky {
    seed: u64,
    weather: Weather,
    stretches: Mutex<HashMap<Place, Stretch>>,
}

impl Sky {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        Self { seed, weather, stretches: Mutex::default() }
    }

    /// A generator for one request and one purpose, whatever else happens at the same time.
    fn rng(&self, number: usize, purpose: u64) -> Rng {
        Rng::with_seed(mix(mix(self.seed ^ purpose) ^ number as u64))
    }

    /// The fault that one request meets before anybody looks at it.
    pub(crate) fn fault(&self, number: usize, time_of_day: Duration) -> Fault {
        if self.weather.mix.is_empty() && self.weather.hourly.is_none() {
            return Fault::None;
        }
        let mut rng = self.rng(number, 1);
        let mut point = rng.f64();
        for (probability, fault) in &self.weather.mix {
            point -= probability;
            if point < 0.0 {
                return fault.clone();
            }
        }
        if let Some((by_hour, fault)) = &self.weather.hourly {
            let hour = (time_of_day.as_secs() / 3600 % 24) as usize;
            if rng.f64() < by_hour[hour] {
                return fault.clone();
            }
        }
        Fault::None
    }

    /// The fault of an outage of this model and size, if there is one now.
    pub(crate) fn outage(
        &self,
        number: usize,
        model: &Arc<str>,
        size: Size,
        now: Duration,
    ) -> Option<Fault> {
        for (index, outages) in self.weather.outages.iter().enumerate() {
            if outages.model.as_ref().is_some_and(|only| **only != **model) {
                continue;
            }
            let size = outages.by_size.then_some(size);
            let mut stretches = self.stretches.lock().unwrap_or_else(PoisonError::into_inner);
            let stretch = stretches.entry((index, model.clone(), size)).or_insert_with(|| {
                let place = hash64(model.as_bytes())
                    ^ size.map_or(0, |size| hash64(size.as_str().as_bytes()));
                let mut rng = Rng::with_seed(mix(self.seed ^ place ^ index as u64));
                let until = exponential(&mut rng, outages.mean_good);
                Stretch { rng, bad: false, until }
            });
            while stretch.until <= now {
                stretch.bad = !stretch.bad;
                let mean = if stretch.bad { outages.mean_bad } else { outages.mean_good };
                stretch.until += exponential(&mut stretch.rng, mean).max(Duration::from_millis(1));
            }
            if stretch.bad && self.rng(number, 2 + index as u64).f64() < outages.share {
                return Some(outages.fault.clone());
            }
        }
        None
    }

    /// How long the model works for one request.
    pub(crate) fn latency(&self, number: usize, range: &RangeInclusive<Duration>) -> Duration {
        let span = range.end().saturating_sub(*range.start());
        if span.is_zero() {
            *range.start()
        } else {
            *range.start() + span.mul_f64(self.rng(number, 0x1a7e).f64())
        }
    }
}

fn exponential(rng: &mut Rng, mean: Duration) -> Duration {
    mean.mul_f64(-(1.0 - rng.f64()).ln())
}

/// How long answers take.
///
/// The default is what a published guide of February 2026 gives for images: Pro 30 to 90 s at 1K,
/// 50 to 120 s at 2K and 100 to 170 s at 4K; Flash 10 to 30 s, and 20 to 60 s at 4K. Errors take 48
/// to 144 ms, the `server-timing` of recorded 404s.
///
/// ```
/// use std::time::Duration;
/// use tower_gemini_sim::{Latency, Size};
/// let slow_4k = Latency::default().with(None, Some(Size::K4), Duration::from_secs(580)..=Duration::from_secs(620));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latency {
    rules: Vec<(Option<String>, Option<Size>, RangeInclusive<Duration>)>,
    errors: RangeInclusive<Duration>,
}

impl Latency {
    /// Everything is answered at once.
    pub fn none() -> Self {
        Self::fixed(Duration::ZERO)
    }

    /// Images and errors take exactly this long.
    pub fn fixed(latency: Duration) -> Self {
        Self { rules: vec![(None, None, latency..=latency)], errors: latency..=latency }
    }

    /// Sets the time of images of one model, or of all, at one size, or at all; the last rule that
    /// fits counts.
    #[must_use]
    pub fn with(
        mut self,
        model: Option<&str>,
        size: Option<Size>,
        range: RangeInclusive<Duration>,
    ) -> Self {
        self.rules.push((model.map(str::to_owned), size, range));
        self
    }

    /// Sets the time of errors.
    #[must_use]
    pub fn errors(mut self, range: RangeInclusive<Duration>) -> Self {
        self.errors = range;
        self
    }

    pub(crate) fn of_image(&self, model: &str, size: Size) -> RangeInclusive<Duration> {
        self.rules
            .iter()
            .rev()
            .find(|(only_model, only_size, _)| {
                only_model.as_ref().is_none_or(|only| only == model)
                    && only_size.is_none_or(|only| only == size)
            })
            .map_or(Duration::ZERO..=Duration::ZERO, |(_, _, range)| range.clone())
    }

    pub(crate) fn of_error(&self) -> &RangeInclusive<Duration> {
        &self.errors
    }
}

impl Default for Latency {
    fn default() -> Self {
        let seconds = |from, to| Duration::from_secs(from)..=Duration::from_secs(to);
        let pro = Some("gemini-3-pro-image");
        Self { rules: Vec::new(), errors: Duration::from_millis(48)..=Duration::from_millis(144) }
            .with(None, None, seconds(10, 30))
            .with(None, Some(Size::K4), seconds(20, 60))
            .with(pro, Some(Size::K1), seconds(30, 90))
            .with(pro, Some(Size::K2), seconds(50, 120))
            .with(pro, Some(Size::K4), seconds(100, 170))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_requests_meets_each_fault() {
        let sky =
            Sky::new(7, Weather::calm().with(0.25, Fault::HighDemand).with(0.05, Fault::Internal));
        let faults: Vec<_> = (0..10_000).map(|number| sky.fault(number, Duration::ZERO)).collect();
        let share = |wanted: &Fault| faults.iter().filter(|fault| *fault == wanted).count();
        assert!(
            (2_300..2_700).contains(&share(&Fault::HighDemand)),
            "{}",
            share(&Fault::HighDemand)
        );
        assert!((400..600).contains(&share(&Fault::Internal)));
    }

    #[test]
    fn the_hour_decides_the_share() {
        let sky = Sky::new(7, Weather::claimed_hours());
        let failures = |hour: u64| {
            (0..4_000)
                .filter(|n| sky.fault(*n, Duration::from_secs(hour * 3600)) != Fault::None)
                .count()
        };
        assert!((240..400).contains(&failures(3)));
        assert!((1_700..1_900).contains(&failures(12)));
    }

    #[test]
    fn an_outage_lasts_and_ends() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let outages = Outages {
            model: None,
            by_size: true,
            mean_good: minutes(200),
            mean_bad: minutes(50),
            share: 1.0,
            fault: Fault::HighDemand,
        };
        let sky = Sky::new(3, Weather::calm().outages(outages));
        let model: Arc<str> = "m".into();
        let bad: Vec<bool> = (0..200_000)
            .map(|minute| sky.outage(0, &model, Size::K1, minutes(minute)).is_some())
            .collect();
        let share = bad.iter().filter(|bad| **bad).count() as f64 / bad.len() as f64;
        assert!((0.17..0.23).contains(&share), "{share}");
        let beginnings = bad.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        let mean = bad.iter().filter(|bad| **bad).count() as f64 / beginnings as f64;
        assert!((45.0..56.0).contains(&mean), "{mean}");
    }

    #[test]
    fn the_last_rule_that_fits_counts() {
        let latency = Latency::default();
        assert_eq!(
            latency.of_image("gemini-3-pro-image", Size::K4),
            Duration::from_secs(100)..=Duration::from_secs(170)
        );
        assert_eq!(
            latency.of_image("gemini-3.1-flash-image", Size::K4),
            Duration::from_secs(20)..=Duration::from_secs(60)
        );
        assert_eq!(
            latency.of_image("gemini-2.5-flash-image", Size::K1),
            Duration::from_secs(10)..=Duration::from_secs(30)
        );
    }
}
