//! Failure rates by model and hour of the week, learned from attempts, and the choice that follows.
//! Pure.

use std::time::Duration;

use tower_gemini_core::verdict::{Charge, Outcome};

use super::presets::{FLASH_503_RATES, PRO_503_RATE};
use crate::trail::PreferReason;

/// Hours of a week.
pub const HOURS: usize = 7 * 24;

/// What one attempt says about a model's hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// The model answered: with an image, or with a refusal.
    Answered,
    /// The service failed, and nothing was charged.
    FailedFree,
    /// It failed, and it was or may have been charged.
    FailedAtACost,
}

impl Observation {
    /// What the end of an attempt says about the service's hour; `None` where it says nothing: a
    /// bad request, a quota of the caller's own, a connection that was never made.
    #[must_use]
    pub fn from_outcome(outcome: Outcome, charge: Charge) -> Option<Self> {
        match outcome {
            Outcome::Image
            | Outcome::Answered
            | Outcome::ContentBlocked
            | Outcome::PromptBlocked
            | Outcome::OutOfTokens => Some(Self::Answered),
            Outcome::Overloaded
            | Outcome::Deadline
            | Outcome::Internal
            | Outcome::Cancelled
            | Outcome::BadGateway
            | Outcome::Interrupted
            | Outcome::StreamError => Some(match charge {
                Charge::None | Charge::Waived => Self::FailedFree,
                Charge::Maybe | Charge::Charged => Self::FailedAtACost,
            }),
            _ => None,
        }
    }
}

/// How hours are learned.
///
/// The estimate of a model's failure rate at an hour of the week is the mean of a Beta
/// distribution: the prior, weighted as [`prior_calls`](Self::prior_calls) says, and the
/// observations, each of which counts half as much after each half-life.
#[derive(Debug, Clone, PartialEq)]
pub struct Learning {
    prior_calls: f64,
    half_life: Duration,
    margin: f64,
    explore: f64,
    priors: Vec<(String, [f64; 24])>,
    is_shadow: bool,
}

/// The prior of a model that has none of its own.
const USUAL_PRIOR: [f64; 24] = [PRO_503_RATE; 24];

const DEFAULT_MARGIN: f64 = 0.10;

fn share(share: f64, otherwise: f64) -> f64 {
    if share.is_finite() { share.clamp(0.0, 1.0) } else { otherwise }
}

impl Learning {
    /// Learns, and routes by what was learned, with the defaults of the [module](super).
    #[must_use]
    pub fn on() -> Self {
        let flash = ["gemini-3.1-flash-image", "gemini-3.1-flash-image-preview"];
        Self {
            prior_calls: 20.0,
            half_life: Duration::from_secs(14 * 86_400),
            margin: DEFAULT_MARGIN,
            explore: 0.0,
            priors: flash.map(|model| (model.to_owned(), FLASH_503_RATES)).into(),
            is_shadow: false,
        }
    }

    /// Learns, routes by the schedule, and counts what it would have done:
    /// [`LearnedHours::shadow`].
    #[must_use]
    pub fn shadow() -> Self {
        Self { is_shadow: true, ..Self::on() }
    }

    /// How many calls of evidence the prior counts as. At least one: no single call should decide.
    #[must_use]
    pub fn prior_calls(mut self, calls: u32) -> Self {
        self.prior_calls = f64::from(calls.max(1));
        self
    }

    /// After how long an observation counts half as much. At least an hour.
    #[must_use]
    pub fn half_life(mut self, half_life: Duration) -> Self {
        self.half_life = half_life.max(Duration::from_secs(3600));
        self
    }

    /// By how much the other model's failure rate must be lower before it leads: 0.10 is ten calls
    /// in a hundred.
    #[must_use]
    pub fn margin(mut self, margin: f64) -> Self {
        self.margin = share(margin, DEFAULT_MARGIN);
        self
    }

    /// The share of calls that try the model that is less well known, where every remembered
    /// failure of it was free. Default 0.
    #[must_use]
    pub fn explore(mut self, calls: f64) -> Self {
        self.explore = share(calls, 0.0);
        self
    }

    /// The failure rate that is assumed of a model before anything was observed, by hour of the UTC
    /// day.
    #[must_use]
    pub fn prior(mut self, model: &str, by_utc_hour: [f64; 24]) -> Self {
        self.priors.retain(|(known, _)| known != model);
        self.priors.push((model.to_owned(), by_utc_hour.map(|rate| share(rate, 0.5))));
        self
    }

    fn prior_of(&self, model: &str) -> [f64; 24] {
        let prior = self.priors.iter().find(|(known, _)| known == model);
        prior.map_or(USUAL_PRIOR, |(_, rates)| *rates)
    }
}

/// Aged observations of one model at one hour of the week, as of a moment.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    failed: f64,
    answered: f64,
    at: i64,
}

impl Cell {
    fn aged(self, now: i64, half_life: Duration) -> Self {
        // A clock that was set back makes nothing younger.
        #[allow(clippy::cast_precision_loss, reason = "a half-life is far longer than a second")]
        let age = now.saturating_sub(self.at).max(0) as f64;
        let left = (-age / half_life.as_secs_f64()).exp2();
        Self { failed: self.failed * left, answered: self.answered * left, at: now.max(self.at) }
    }

    fn weight(self) -> f64 {
        self.failed + self.answered
    }
}

#[derive(Debug, Clone)]
struct Known {
    model: String,
    prior: [f64; 24],
    hours: Box<[Cell; HOURS]>,
    /// Failures at any hour that were or may have been charged.
    at_a_cost: Cell,
}

/// A moment as learning sees it: its hour of the week on the schedule's clock, and of the day in
/// UTC for the prior.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeekHour {
    /// 0 to 167.
    pub of_week: usize,
    /// 0 to 23.
    pub of_utc_day: usize,
    /// Seconds since 1970.
    pub unix: i64,
}

/// Compares the schedule's choices with those that learning would have made.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Shadow {
    /// Calls that were compared.
    pub calls: u64,
    /// Calls that learning would have sent to another model first.
    pub differ: u64,
    /// Failed first attempts to be expected by the schedule's choices, by what was known at each
    /// call.
    pub expected_failures_scheduled: f64,
    /// The same by the choices learning would have made.
    pub expected_failures_learned: f64,
}

/// Failure rates by model and hour of the week.
///
/// ```
/// use tower_gemini::peak_hour_router::{LearnedHours, Learning, Observation, WeekHour};
///
/// let mut learned = LearnedHours::new(Learning::on().prior("a", [0.45; 24]).prior("b", [0.125; 24]), ["a", "b"]);
/// let hour = WeekHour { of_week: 10, of_utc_day: 10, unix: 1_767_614_400 };
/// assert_eq!(learned.rate("a", hour), 0.45);
/// for _ in 0..80 {
///     learned.observe("a", hour, Observation::Answered);
/// }
/// assert!(learned.rate("a", hour) < 0.1);
/// // Ten half-lives later the prior is back.
/// let later = WeekHour { unix: hour.unix + 140 * 86_400, ..hour };
/// assert!(learned.rate("a", later) > 0.44);
/// ```
#[derive(Debug, Clone)]
pub struct LearnedHours {
    learning: Learning,
    known: Vec<Known>,
    shadow: Shadow,
}

impl LearnedHours {
    /// Nothing learned yet about these models. No other model is ever remembered, so that no caller
    /// can fill the memory with names.
    #[must_use]
    pub fn new<'a>(learning: Learning, models: impl IntoIterator<Item = &'a str>) -> Self {
        let mut known: Vec<Known> = Vec::new();
        for model in models {
            if known.iter().all(|known| known.model != model) {
                known.push(Known {
                    model: model.to_owned(),
                    prior: learning.prior_of(model),
                    hours: Box::new([Cell::default(); HOURS]),
                    at_a_cost: Cell::default(),
                });
            }
        }
        Self { learning, known, shadow: Shadow::default() }
    }

    /// Whether it only watches.
    #[must_use]
    pub fn is_shadow(&self) -> bool {
        self.learning.is_shadow
    }

    /// What a shadow counted so far.
    #[must_use]
    pub fn shadow(&self) -> Shadow {
        self.shadow
    }

    fn known(&self, model: &str) -> Option<&Known> {
        self.known.iter().find(|known| known.model == model)
    }

    fn cell(&self, model: &str, hour: WeekHour) -> Cell {
        let cell = self.known(model).and_then(|known| known.hours.get(hour.of_week));
        cell.copied().unwrap_or_default().aged(hour.unix, self.learning.half_life)
    }

    /// The share of attempts at this model and hour that is expected to fail, in 0 to 1.
    #[must_use]
    pub fn rate(&self, model: &str, hour: WeekHour) -> f64 {
        let priors = self.known(model).map_or(&USUAL_PRIOR, |known| &known.prior);
        let prior = priors.get(hour.of_utc_day).copied().unwrap_or(0.5);
        let (worth, cell) = (self.learning.prior_calls, self.cell(model, hour));
        ((prior * worth + cell.failed) / (worth + cell.weight())).clamp(0.0, 1.0)
    }

    /// How many observations the estimate rests on, each counted as much as time has left of it.
    #[must_use]
    pub fn weight(&self, model: &str, hour: WeekHour) -> f64 {
        self.cell(model, hour).weight()
    }

    /// Whether every remembered failure of this model was free: a share of one in a hundred is
    /// forgotten.
    #[must_use]
    pub fn failure_is_free(&self, model: &str, unix: i64) -> bool {
        let aged = |known: &Known| known.at_a_cost.aged(unix, self.learning.half_life);
        self.known(model).is_some_and(|known| aged(known).failed < 0.01)
    }

    /// Remembers what an attempt said.
    pub fn observe(&mut self, model: &str, hour: WeekHour, observation: Observation) {
        let half_life = self.learning.half_life;
        let Some(known) = self.known.iter_mut().find(|known| known.model == model) else { return };
        let Some(cell) = known.hours.get_mut(hour.of_week) else { return };
        *cell = cell.aged(hour.unix, half_life);
        match observation {
            Observation::Answered => cell.answered += 1.0,
            Observation::FailedFree => cell.failed += 1.0,
            Observation::FailedAtACost => {
                cell.failed += 1.0;
                known.at_a_cost = known.at_a_cost.aged(hour.unix, half_life);
                known.at_a_cost.failed += 1.0;
            }
        }
    }

    /// Which of two models should lead: `None` for the one asked for. `random` is in `0.0..1.0`.
    #[must_use]
    pub fn choose(
        &self,
        asked: &str,
        other: &str,
        hour: WeekHour,
        random: f64,
    ) -> Option<PreferReason> {
        let better = self.rate(asked, hour) - self.rate(other, hour) > self.learning.margin;
        if random < self.learning.explore {
            let (chosen, tried) = if better { (other, asked) } else { (asked, other) };
            let less_known = self.weight(tried, hour) < self.weight(chosen, hour);
            if less_known && self.failure_is_free(tried, hour.unix) {
                return (tried == other).then_some(PreferReason::Exploring);
            }
        }
        better.then_some(PreferReason::LearnedHours)
    }

    /// Counts a call that the schedule sent to `scheduled` first where learning would have chosen
    /// `learned`.
    pub fn compare(&mut self, scheduled: &str, learned: &str, hour: WeekHour) {
        let (by_schedule, by_learning) = (self.rate(scheduled, hour), self.rate(learned, hour));
        self.shadow.calls += 1;
        self.shadow.differ += u64::from(scheduled != learned);
        self.shadow.expected_failures_scheduled += by_schedule;
        self.shadow.expected_failures_learned += by_learning;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_767_614_400;
    const DAY: i64 = 86_400;

    fn hour(of_week: usize, unix: i64) -> WeekHour {
        WeekHour { of_week, of_utc_day: of_week % 24, unix }
    }

    fn observation() -> impl Strategy<Value = Observation> {
        prop_oneof![
            Just(Observation::Answered),
            Just(Observation::FailedFree),
            Just(Observation::FailedAtACost)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn a_rate_is_a_share_whatever_was_seen(
            seen in proptest::collection::vec((0_usize..HOURS, -90 * DAY..90 * DAY, observation()), 0..60),
            prior in 0.0_f64..=1.0, calls in 0_u32..100, asked in 0_usize..HOURS, later in -DAY..400 * DAY,
        ) {
            let mut learned = LearnedHours::new(Learning::on().prior("m", [prior; 24]).prior_calls(calls), ["m"]);
            for (at, unix, observation) in seen {
                learned.observe("m", hour(at, NOW + unix), observation);
                let rate = learned.rate("m", hour(asked, NOW + later));
                prop_assert!((0.0..=1.0).contains(&rate), "{rate}");
                prop_assert!(learned.weight("m", hour(asked, NOW + later)) >= 0.0);
            }
        }

        #[test]
        fn without_evidence_the_prior_decides_and_with_much_of_it_the_evidence(
            prior in 0.0_f64..=1.0, truth in 0_u32..=10, calls in 1_u32..50,
        ) {
            let mut learned = LearnedHours::new(Learning::on().prior("m", [prior; 24]).prior_calls(calls), ["m"]);
            let at = hour(30, NOW);
            prop_assert!((learned.rate("m", at) - prior).abs() < 1e-12);
            prop_assert!((learned.rate("m", hour(31, NOW)) - prior).abs() < 1e-12, "other hours are not touched");
            for _ in 0..20 * calls {
                for n in 0..10 {
                    learned.observe("m", at, if n < truth { Observation::FailedFree } else { Observation::Answered });
                }
            }
            prop_assert!((learned.rate("m", at) - f64::from(truth) / 10.0).abs() < 0.006);
            prop_assert!((learned.rate("m", hour(31, NOW)) - prior).abs() < 1e-12);
        }

        #[test]
        fn an_observation_counts_half_after_each_half_life(
            seen in proptest::collection::vec(observation(), 1..50), days in 1_u32..60, lives in 0_i32..20,
        ) {
            let half_life = Duration::from_secs(u64::from(days) * 86_400);
            let mut learned = LearnedHours::new(Learning::on().prior("m", [0.3; 24]).half_life(half_life), ["m"]);
            for &observation in &seen {
                learned.observe("m", hour(5, NOW), observation);
            }
            let at = |lives: i32| hour(5, NOW + i64::from(lives) * i64::from(days) * DAY);
            let expected = seen.len() as f64 * 0.5_f64.powi(lives);
            prop_assert!((learned.weight("m", at(lives)) - expected).abs() < 1e-6);
            // And so the estimate moves to the prior and never past it.
            let (now, then) = (learned.rate("m", at(lives)) - 0.3, learned.rate("m", at(lives + 1)) - 0.3);
            prop_assert!(then.abs() <= now.abs() + 1e-12 && now * then >= -1e-12);
        }

        #[test]
        fn a_model_that_may_cost_when_it_fails_is_never_explored(
            seen in proptest::collection::vec((any::<bool>(), 0_usize..HOURS, observation()), 0..60), unit in 0.0_f64..1.0, at in 0_usize..HOURS,
        ) {
            let mut learned = LearnedHours::new(Learning::on().prior("a", [0.2; 24]).prior("b", [0.2; 24]).explore(1.0), ["a", "b"]);
            let mut cost = false;
            for (of_a, at, observation) in seen {
                learned.observe(if of_a { "a" } else { "b" }, hour(at, NOW), observation);
                cost |= !of_a && observation == Observation::FailedAtACost;
            }
            if learned.choose("a", "b", hour(at, NOW), unit) == Some(PreferReason::Exploring) {
                prop_assert!(!cost);
                prop_assert!(learned.weight("b", hour(at, NOW)) < learned.weight("a", hour(at, NOW)));
            }
        }

        #[test]
        fn without_exploring_the_model_that_leads_never_fails_more_by_what_is_known(
            seen in proptest::collection::vec((any::<bool>(), observation()), 0..80), unit in 0.0_f64..1.0,
        ) {
            let mut learned = LearnedHours::new(Learning::on(), ["a", "b"]);
            for (of_a, observation) in seen {
                learned.observe(if of_a { "a" } else { "b" }, hour(3, NOW), observation);
            }
            let (a, b) = (learned.rate("a", hour(3, NOW)), learned.rate("b", hour(3, NOW)));
            match learned.choose("a", "b", hour(3, NOW), unit) {
                Some(why) => prop_assert!(why == PreferReason::LearnedHours && b < a),
                None => prop_assert!(a - b <= 0.10),
            }
        }
    }

    #[test]
    fn models_that_are_no_target_are_not_remembered() {
        let mut learned = LearnedHours::new(Learning::on(), ["a"]);
        learned.observe("made-up-by-a-caller", hour(0, NOW), Observation::Answered);
        assert_eq!(learned.known.len(), 1);
        assert!(!learned.failure_is_free("made-up-by-a-caller", NOW));
    }

    #[test]
    fn a_shadow_counts_what_learning_would_have_saved() {
        let mut learned = LearnedHours::new(
            Learning::shadow().prior("a", [0.45; 24]).prior("b", [0.125; 24]),
            ["a", "b"],
        );
        learned.compare("a", "b", hour(1, NOW));
        learned.compare("a", "a", hour(1, NOW));
        let shadow = learned.shadow();
        assert_eq!((shadow.calls, shadow.differ), (2, 1));
        assert!((shadow.expected_failures_scheduled - 0.9).abs() < 1e-9);
        assert!((shadow.expected_failures_learned - 0.575).abs() < 1e-9);
    }

    #[test]
    fn garbage_settings_are_brought_into_range() {
        let learning = Learning::on()
            .margin(f64::NAN)
            .explore(7.0)
            .prior("m", [f64::INFINITY; 24])
            .half_life(Duration::ZERO);
        assert_eq!((learning.margin, learning.explore), (0.10, 1.0));
        let learned = LearnedHours::new(learning, ["m"]);
        assert_eq!(learned.rate("m", hour(0, NOW)), 0.5);
    }
}
