//! The calls that ended last, with what was decided for them: pure, and of bounded size.

use std::collections::VecDeque;
use std::time::Duration;

use crate::trail::{Step, Trail};
use serde::{Serialize, Serializer};
use tower_gemini_core::cost::Cost;

use super::clip;
use super::outcome::CallOutcome;
use super::sentence::is_under_way;

/// The most steps that are kept of one call: a chain of five targets with ten attempts each has
/// about as many.
pub(super) const MOST_STEPS: usize = 100;

/// A call that has ended, and what was decided for it.
///
/// Where an attempt goes on without its caller, what becomes of it is added later.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FinishedCall {
    /// Its short name: the `call` of its log lines.
    pub call: String,
    /// When it ended, in seconds since 1970.
    pub ended_unix: u64,
    /// What it came to.
    #[serde(serialize_with = "as_word")]
    pub outcome: CallOutcome,
    /// The sentence that was logged.
    pub sentence: String,
    /// From first to last, in the runtime's time.
    #[serde(rename = "took_ms", serialize_with = "as_millis")]
    pub took: Duration,
    /// What all its attempts cost.
    pub cost: Cost,
    /// What was decided, in order; the first hundred steps.
    pub steps: Vec<Step>,
    /// How many steps there were beyond those.
    pub more_steps: usize,
    /// The same for people, a line a step.
    pub trail: Vec<String>,
}

impl FinishedCall {
    /// Of steps that are clean of secrets already.
    pub(super) fn new(
        call: String,
        ended_unix: u64,
        outcome: CallOutcome,
        sentence: String,
        took: Duration,
        steps: Vec<Step>,
    ) -> Self {
        let mut finished = Self {
            call,
            ended_unix,
            outcome,
            sentence,
            took,
            cost: Cost::ZERO,
            steps,
            more_steps: 0,
            trail: Vec::new(),
        };
        finished.more_steps = finished.steps.len().saturating_sub(MOST_STEPS);
        finished.cost = cost_of(&finished.steps);
        finished.steps.truncate(MOST_STEPS);
        finished.in_words();
        finished
    }

    /// What became known after the call had ended. An attempt is written over the one that was
    /// under way.
    fn add(&mut self, step: &Step, attempt: usize) {
        let is_attempt = |step: &Step| matches!(step, Step::Attempt(_));
        let mut attempts = self.steps.iter_mut().filter(|step| is_attempt(step));
        if let (true, Some(before)) = (is_attempt(step), attempts.nth(attempt.saturating_sub(1))) {
            *before = step.clone();
        } else if self.steps.len() < MOST_STEPS {
            self.steps.push(step.clone());
        } else {
            self.more_steps += 1;
        }
        // Of the steps that are kept: a call of a hundred steps whose caller left is not one to
        // settle accounts by.
        self.cost = cost_of(&self.steps);
        self.in_words();
    }

    fn in_words(&mut self) {
        let trail = Trail::new();
        for step in &self.steps {
            trail.push(step.clone());
        }
        self.trail = trail.to_string().lines().map(str::to_owned).collect();
        if self.more_steps > 0 {
            self.trail.push(format!("and {} steps more", self.more_steps));
        }
    }

    /// Whether an attempt of it is still going on without its caller.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.steps.iter().any(is_under_way)
    }
}

fn cost_of(steps: &[Step]) -> Cost {
    let cost = |step: &Step| match step {
        Step::Attempt(attempt) => attempt.cost,
        _ => Cost::ZERO,
    };
    steps.iter().map(cost).sum()
}

fn as_word<S: Serializer>(outcome: &CallOutcome, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(outcome.as_str())
}

fn as_millis<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The latest calls, newest last.
#[derive(Debug, Clone)]
pub(super) struct Recent {
    keep: usize,
    calls: VecDeque<(u64, FinishedCall)>,
}

impl Recent {
    pub(super) fn new(keep: usize) -> Self {
        Self { keep, calls: VecDeque::new() }
    }

    pub(super) fn push(&mut self, number: u64, call: FinishedCall) {
        self.calls.push_back((number, call));
        while self.calls.len() > self.keep {
            self.calls.pop_front();
        }
    }

    /// Adds to a call that has ended, where it is still kept. `attempt` counts from 1.
    pub(super) fn add(&mut self, number: u64, step: &Step, attempt: usize) {
        if let Some((_, call)) = self.calls.iter_mut().rev().find(|(one, _)| *one == number) {
            call.add(&clip::step(step), attempt);
        }
    }

    /// Newest first.
    pub(super) fn newest_first(&self) -> Vec<FinishedCall> {
        self.calls.iter().rev().map(|(_, call)| call.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::trail::StopReason;
    use proptest::prelude::*;
    use tower_gemini_core::verdict::Verdict;

    use super::*;

    fn call(steps: Vec<Step>) -> FinishedCall {
        FinishedCall::new(
            "a-1".into(),
            0,
            CallOutcome::CallerLeft,
            "it left".into(),
            Duration::ZERO,
            steps,
        )
    }

    #[test]
    fn an_attempt_that_goes_on_without_its_caller_is_written_over_when_it_ends() {
        let trail = Trail::new();
        let id = trail.begin_attempt(None, None);
        trail.push(Step::CallerLeft);
        let mut recent = Recent::new(5);
        recent.push(7, call(trail.steps()));
        assert!(recent.newest_first()[0].is_under_way());
        assert_eq!(recent.newest_first()[0].cost, Cost::UNKNOWN);
        id.end(Some(200), &Verdict::delivering(), Cost::exactly(134_000), Duration::from_secs(3));
        recent.add(7, &trail.steps()[0], 1);
        recent.add(7, &Step::Kept { bytes: 5 }, 1);
        recent.add(8, &Step::Kept { bytes: 5 }, 1);
        let call = &recent.newest_first()[0];
        assert!(!call.is_under_way());
        assert_eq!((call.steps.len(), call.cost), (3, Cost::exactly(134_000)));
        assert_eq!(call.trail.len(), 3, "{:?}", call.trail);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn what_is_kept_is_bounded(calls in prop::collection::vec(0_usize..250, 0..80), keep in 0_usize..60) {
            let mut recent = Recent::new(keep);
            for (number, steps) in calls.iter().enumerate() {
                recent.push(number as u64, call(vec![Step::Stopped { why: StopReason::Charged }; *steps]));
                recent.add(number as u64, &Step::CallerLeft, 0);
            }
            let kept = recent.newest_first();
            prop_assert_eq!(kept.len(), keep.min(calls.len()));
            for (call, steps) in kept.iter().zip(calls.iter().rev()) {
                prop_assert!(call.steps.len() <= MOST_STEPS && call.trail.len() <= MOST_STEPS + 1);
                prop_assert_eq!(call.steps.len() + call.more_steps, steps + 1);
            }
        }
    }
}
