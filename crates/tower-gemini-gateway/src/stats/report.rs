//! What was counted, as data.

use serde::{Serialize, Serializer};
use tower_gemini::cost::Cost;
use tower_gemini::observe::{CallOutcome, cost_of, is_under_way};
use tower_gemini::trail::{Step, Trail};

use super::diagnosis::{Diagnosis, Health};
use super::window::Window;

/// What [`Stats`](super::Stats) has counted. The fields are documented with
/// [`/status.json`](crate::status), which holds them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Report {
    pub at_unix_seconds: u64,
    pub since_unix_seconds: u64,
    pub calls_in_flight: u64,
    pub diagnosis: Diagnoses,
    pub last_hour: Window,
    pub last_day: Window,
    pub total: Window,
    pub hours: Vec<Hour>,
    pub days: Vec<Window>,
    pub failure_rate_targets: Targets,
    pub recent_calls: Vec<Call>,
}

/// The diagnoses of the last hour and day.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named by their windows")]
pub struct Diagnoses {
    pub hour: Diagnosis,
    pub day: Diagnosis,
}

/// The failure rates that are aimed for, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Targets {
    pub off_peak: f64,
    pub peak: f64,
    pub peak_hours_known: bool,
}

/// One hour on the clock.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Hour {
    #[serde(flatten)]
    pub window: Window,
    pub is_peak: Option<bool>,
    pub health: Health,
}

/// The most steps that are kept of one call: a chain of five targets with ten attempts each has
/// about as many.
const MAX_STEPS: usize = 100;

/// A call that has ended. What becomes of an attempt that continues without its client is added
/// later.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Call {
    pub id: String,
    pub ended_unix_seconds: u64,
    #[serde(serialize_with = "name")]
    pub outcome: CallOutcome,
    pub sentence: String,
    pub took_ms: u64,
    pub cost: Cost,
    pub under_way: bool,
    pub steps: Vec<Step>,
    pub omitted_steps: usize,
    pub trail: Vec<String>,
}

fn name<S: Serializer>(outcome: &CallOutcome, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(outcome.as_str())
}

impl Call {
    /// Sets the steps, which are redacted already, and what follows from them.
    pub(super) fn set_steps(&mut self, steps: Vec<Step>) {
        self.omitted_steps = steps.len().saturating_sub(MAX_STEPS);
        self.cost = cost_of(&steps);
        self.steps = steps;
        self.steps.truncate(MAX_STEPS);
        self.describe();
    }

    /// Adds a step that came after the call's end. An attempt replaces the one that was under way:
    /// the call's `attempt`th.
    pub(super) fn add_step(&mut self, step: &Step, attempt: u32) {
        let is_attempt = |step: &Step| matches!(step, Step::Attempt(_));
        let nth = usize::try_from(attempt.saturating_sub(1)).unwrap_or(0);
        let mut attempts = self.steps.iter_mut().filter(|step| is_attempt(step));
        if let Some(earlier) = attempts.nth(nth).filter(|_| is_attempt(step)) {
            *earlier = step.clone();
        } else if self.steps.len() < MAX_STEPS {
            self.steps.push(step.clone());
        } else {
            self.omitted_steps += 1;
        }
        self.cost = cost_of(&self.steps);
        self.describe();
    }

    fn describe(&mut self) {
        self.under_way = self.steps.iter().any(is_under_way);
        let trail = Trail::new();
        self.steps.iter().for_each(|step| trail.push(step.clone()));
        self.trail = trail.to_string().lines().map(str::to_owned).collect();
        if self.omitted_steps > 0 {
            self.trail.push(format!("and {} more steps", self.omitted_steps));
        }
    }
}
