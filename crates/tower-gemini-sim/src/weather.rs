//! Draws faults and latencies. Both are functions of the seed, the number of the request and, for
//! outages, the time, so the same seed and the same requests give the same run.

use std::ops::RangeInclusive;
use std::time::Duration;

use fastrand::Rng;
use serde::Deserialize;

use crate::fault::{Fault, Forbidden, Refusal, Shape};
use crate::hash::mix;
use crate::model::Size;
use crate::observed::Observations;
use crate::outage::{Asked, Each, OutageState, Outages, claimed_hours};

/// Describes which faults happen, and how often.
///
/// [`with`](Self::with) draws a fault for a single request and forgets it: right for a 500 or a
/// reset. What lasts in reality needs memory: an overload or a refused account is an
/// [outage](Self::outages), a spent minute or day is a [`Quota`](crate::Quota).
///
/// ```
/// use std::time::Duration;
/// use tower_gemini_sim::{Fault, Outages, Weather};
///
/// let overload = Outages::new(Fault::HighDemand)
///     .mean_up(Duration::from_secs(3_600))
///     .mean_down(Duration::from_secs(600));
/// let weather = Weather::calm().with(0.02, Fault::Internal).outages(overload);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weather {
    /// Faults with their share in each hour of the UTC day.
    mix: Vec<([f64; 24], Fault)>,
    outages: Vec<Outages>,
    observed: Observations,
    flex: Flex,
}

/// What happens to requests in the flex tier, beside what happens to all. They cost half.
///
/// By default nothing: what Google says is that flex queues for 1 to 15 minutes and is shed first
/// (Gemini API documentation, flex inference, 2026-08), not how often. A request whose caller
/// disconnects while it queues is taken to cost nothing, which nobody documents.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Flex {
    /// The share that is shed, with a 503, in each hour of the UTC day. Each request by itself.
    pub shed_by_hour: [f64; 24],
    /// The share of the streams among those that get the error in the middle (llmgateway issue
    /// 3616, 2026-08).
    pub shed_in_stream: f64,
    /// How long the others queue before the model begins, from and to.
    pub queue_seconds: (f64, f64),
}

impl Weather {
    /// No faults.
    pub fn calm() -> Self {
        Self::default()
    }

    /// Every fault of [`Fault::all`] with the same probability, `share` of the requests in sum.
    pub fn everything(share: f64) -> Self {
        let all = Fault::all();
        let each = share / all.len() as f64;
        all.into_iter().fold(Self::calm(), |weather, fault| weather.with(each, fault))
    }

    /// The faults of [`Builder::storm`](crate::Builder::storm), which documents them.
    pub(crate) fn storm() -> Self {
        let overload = Outages::new(Fault::HighDemand)
            .mean_up(Duration::from_secs(60))
            .mean_down(Duration::from_secs(30))
            .share(0.05)
            .share_at(Size::K2, 0.30)
            .share_at(Size::K4, 0.80);
        let refused_account = Outages::new(Fault::Forbidden(Forbidden::Generic))
            .each(Each::Project)
            .mean_up(Duration::from_secs(2 * 3600))
            .mean_down(Duration::from_secs(600));
        Self::calm()
            .outages(refused_account)
            .outages(overload)
            .with(0.03, Fault::CapacityExhausted { unavailable: true })
            .with(0.04, Fault::Internal)
            .with(0.02, Fault::BadGatewayHtml)
            .with(0.01, Fault::Refused(Refusal::ImageSafety))
            .with(0.005, Fault::ResetAfterReceipt)
            .with(0.005, Fault::ResetAfterGeneration)
            .with(0.15, Fault::Shaped(Shape::with_drafts(2)))
    }

    /// The share of 503s by hour of the UTC day that a guide of March 2026 claims for 3.1 Flash: 8
    /// % from 00, 15 % from 06, 45 % from 10, 25 % from 14 and 10 % from 18. Other guides place the
    /// peak elsewhere; none was measured by Google.
    pub fn claimed_hours() -> Self {
        Self::calm().by_hour(claimed_hours(), Fault::HighDemand)
    }

    /// What goes wrong on a good day too: `usual_faults` of a [`Scenario`](crate::Scenario).
    pub(crate) fn usual() -> Self {
        Self::calm()
            .with(0.01, Fault::Internal)
            .with(0.003, Fault::BadGatewayHtml)
            .with(0.002, Fault::ResetAfterReceipt)
            .with(0.002, Fault::ResetAfterGeneration)
            .with(0.005, Fault::Refused(Refusal::ImageSafety))
    }

    /// Adds a fault that happens to this share of the requests, each by itself.
    #[must_use]
    pub fn with(self, probability: f64, fault: Fault) -> Self {
        self.by_hour([probability; 24], fault)
    }

    /// Adds a fault whose share depends on the hour of the simulator's UTC clock.
    #[must_use]
    pub fn by_hour(mut self, probabilities: [f64; 24], fault: Fault) -> Self {
        self.mix.push((probabilities, fault));
        self
    }

    /// Adds what was seen: a request meets what the last one of its model and size met.
    pub(crate) fn observed(mut self, observed: Observations) -> Self {
        self.observed = observed;
        self
    }

    /// Sets what happens to requests in the flex tier.
    #[must_use]
    pub fn flex(mut self, flex: Flex) -> Self {
        self.flex = flex;
        self
    }

    /// Adds outages: periods in which requests meet this fault.
    #[must_use]
    pub fn outages(mut self, outages: Outages) -> Self {
        self.outages.push(outages);
        self
    }
}

/// Of the UTC day.
fn hour(time_of_day: Duration) -> usize {
    (time_of_day.as_secs() / 3600 % 24) as usize
}

/// The weather with its memory.
#[derive(Debug)]
pub(crate) struct WeatherState {
    seed: u64,
    weather: Weather,
    outages: Vec<OutageState>,
}

impl WeatherState {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        let outages = OutageState::of(seed, &weather.outages);
        Self { seed, weather, outages }
    }

    /// A generator for one request and one purpose, whatever else happens at the same time.
    fn rng(&self, number: usize, purpose: u64) -> Rng {
        Rng::with_seed(mix(mix(self.seed ^ purpose) ^ number as u64))
    }

    /// The fault that one request meets before anybody looks at it.
    pub(crate) fn fault(&self, number: usize, time_of_day: Duration) -> Fault {
        let hour = hour(time_of_day);
        let mut point = self.rng(number, 1).f64();
        let drawn = self.weather.mix.iter().find(|(by_hour, _)| {
            point -= by_hour[hour];
            point < 0.0
        });
        drawn.map_or(Fault::None, |(_, fault)| fault.clone())
    }

    /// The largest share of such requests that any outage makes fail now.
    pub(crate) fn share_failing(&self, asked: &Asked<'_>) -> f64 {
        let all = self.outages.iter().zip(&self.weather.outages);
        all.map(|(state, outages)| state.share_failing(outages, asked)).fold(0.0, f64::max)
    }

    /// The fault of an outage that this request falls into, if there is one.
    pub(crate) fn outage(&self, number: usize, asked: &Asked<'_>) -> Option<Fault> {
        let seen = self.weather.observed.until(asked.model, asked.size, asked.now);
        if let Some(seen) = seen {
            return match seen.fault()? {
                Fault::None => Some(Fault::Late { latency: seen.latency }),
                fault => Some(fault),
            };
        }
        let mut outages = self.outages.iter().zip(&self.weather.outages).enumerate();
        outages.find_map(|(index, (state, outages))| {
            let share = state.share_failing(outages, asked);
            let is_hit = share > 0.0 && self.rng(number, 2 + index as u64).f64() < share;
            is_hit.then(|| outages.fault.clone())
        })
    }

    /// What a request in the flex tier meets when it is shed.
    pub(crate) fn shed(
        &self,
        number: usize,
        time_of_day: Duration,
        streams: bool,
    ) -> Option<Fault> {
        let Flex { shed_by_hour, shed_in_stream, .. } = self.weather.flex;
        let mut rng = self.rng(number, 0xf1e5);
        let is_shed = rng.f64() < shed_by_hour[hour(time_of_day)];
        let in_stream = streams && rng.f64() < shed_in_stream;
        is_shed.then_some(match in_stream {
            true => Fault::StreamErrorTail { charged: false },
            false => Fault::HighDemand,
        })
    }

    /// How long a request in the flex tier queues.
    pub(crate) fn queue(&self, number: usize) -> Duration {
        let (from, to) = self.weather.flex.queue_seconds;
        let seconds = from + (to - from) * self.rng(number, 0x90e0e).f64();
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
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

/// How long responses take.
///
/// The default is what a published guide of February 2026 gives for images: Pro 30 to 90 s at 1K,
/// 50 to 120 s at 2K and 100 to 170 s at 4K; Flash 10 to 30 s, and 20 to 60 s at 4K. Errors take 48
/// to 144 ms, the `server-timing` of recorded 404s.
///
/// ```
/// use std::time::Duration;
/// use tower_gemini_sim::{Latency, Size};
/// let seconds = Duration::from_secs;
/// let slow_4k = Latency::default().with(None, Some(Size::K4), seconds(580)..=seconds(620));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Latency {
    rules: Vec<(Option<String>, Option<Size>, RangeInclusive<Duration>)>,
    errors: RangeInclusive<Duration>,
    by_hour: Option<[f64; 24]>,
}

impl Latency {
    /// Responds at once.
    pub fn none() -> Self {
        Self::fixed(Duration::ZERO)
    }

    /// Images and errors take exactly this long.
    pub fn fixed(latency: Duration) -> Self {
        Self {
            rules: vec![(None, None, latency..=latency)],
            errors: latency..=latency,
            by_hour: None,
        }
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

    /// Makes images and errors so many times slower in each hour of the simulator's UTC clock.
    #[must_use]
    pub fn by_hour(mut self, factors: [f64; 24]) -> Self {
        self.by_hour = Some(factors);
        self
    }

    pub(crate) fn load(&self, time_of_day: Duration) -> f64 {
        self.by_hour.map_or(1.0, |factors| factors[hour(time_of_day)].max(0.0))
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
        let errors = Duration::from_millis(48)..=Duration::from_millis(144);
        Self { rules: Vec::new(), errors, by_hour: None }
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
        let weather = WeatherState::new(
            7,
            Weather::calm().with(0.25, Fault::HighDemand).with(0.05, Fault::Internal),
        );
        let faults: Vec<_> =
            (0..10_000).map(|number| weather.fault(number, Duration::ZERO)).collect();
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
        let weather = WeatherState::new(7, Weather::claimed_hours());
        let failures = |hour: u64| {
            (0..4_000)
                .filter(|n| weather.fault(*n, Duration::from_secs(hour * 3600)) != Fault::None)
                .count()
        };
        assert!((240..400).contains(&failures(3)));
        assert!((1_700..1_900).contains(&failures(12)));
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
