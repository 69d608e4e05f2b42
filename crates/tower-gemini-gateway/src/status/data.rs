//! The data of `/status.json`.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower_gemini::cost::Cost;
use tower_gemini::model_fallback::{self, CircuitState};
use tower_gemini::quota_guard::QuotaUsage;
use tower_gemini::redact::redact;
use tower_gemini::spending::{CapDimension, Spent};

use crate::stats::Report;

/// The version of the schema; it rises when a field is removed or changes its meaning.
const SCHEMA_VERSION: u32 = 1;

/// The state of a gateway: the data of `/status.json`. The [module](super) documents each field.
///
/// ```
/// use tower_gemini_gateway::stats::Stats;
/// use tower_gemini_gateway::status::Status;
///
/// let status = Status::new(Stats::new().report());
/// assert!(status.to_json().starts_with(r#"{"schema_version":1,"#));
/// ```
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct Status {
    pub schema_version: u32,
    pub version: String,
    pub uptime_seconds: u64,
    pub upstream: String,
    #[serde(flatten)]
    pub report: Report,
    pub load: Load,
    pub quotas: Vec<Quota>,
    pub circuits: Vec<Circuit>,
    pub spending: Vec<Spending>,
    pub budgets: Vec<Budget>,
    pub callers: Vec<Caller>,
    pub stored: Option<Stored>,
    pub alerts: Option<Alerts>,
}

impl Status {
    /// Creates a status of this version with nothing but a report.
    #[must_use]
    pub fn new(report: Report) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: report.at_unix_seconds.saturating_sub(report.since_unix_seconds),
            upstream: String::new(),
            report,
            load: Load::default(),
            quotas: Vec::new(),
            circuits: Vec::new(),
            spending: Vec::new(),
            budgets: Vec::new(),
            callers: Vec::new(),
            stored: None,
            alerts: None,
        }
    }

    /// Serializes to JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Every key is a string and every value plain data.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What requests in flight take, and who waits for it.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct Load {
    pub requests: usize,
    pub requests_limit: usize,
    pub calls: usize,
    pub callers: usize,
    pub memory_bytes: usize,
    pub memory_limit_bytes: usize,
    pub waiting_for_place: usize,
    pub waiting_for_memory: usize,
    pub waiting_limit: usize,
    pub responses_waiting_for_memory: usize,
}

/// The quota of one project for one model.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct Quota {
    pub project: String,
    pub model: String,
    pub upstream: Option<String>,
    pub waiting_calls: usize,
    pub limits: Vec<QuotaLimit>,
}

/// What a caller with a token has used of what it may.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct Caller {
    pub name: String,
    pub requests_in_flight: usize,
    pub limits: Vec<QuotaLimit>,
    pub spending: Vec<Spending>,
}

/// What an upstream was paid of its budget.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct Budget {
    pub upstream: String,
    pub spending: Vec<Spending>,
}

/// One limit of a quota.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct QuotaLimit {
    pub dimension: &'static str,
    pub limit: u64,
    pub used: u64,
    pub reserved: u64,
    pub resets_in_seconds: u64,
}

impl From<&QuotaUsage> for Quota {
    fn from(usage: &QuotaUsage) -> Self {
        Self {
            project: redact(usage.key.project.as_str()).into_owned(),
            model: redact(usage.key.model.as_str()).into_owned(),
            upstream: usage.key.upstream.as_ref().map(|at| at.name.clone()),
            waiting_calls: usage.waiting,
            limits: QuotaLimit::all(usage),
        }
    }
}

impl QuotaLimit {
    /// Every limit that there is.
    pub(crate) fn all(usage: &QuotaUsage) -> Vec<Self> {
        let limits = usage.entries.iter().filter_map(|entry| {
            Some(Self {
                dimension: entry.dimension.as_str(),
                limit: entry.limit?,
                used: entry.used,
                reserved: entry.reserved,
                resets_in_seconds: entry.resets_in.as_secs(),
            })
        });
        limits.collect()
    }
}

/// The circuit of a target, a model's quota or an account that has failed.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct Circuit {
    pub name: String,
    pub state: &'static str,
    pub cause: Option<&'static str>,
    pub cooldown_seconds: Option<u64>,
    pub consecutive: u32,
}

impl Circuit {
    /// Describes a circuit at `now`, in the runtime's time.
    #[must_use]
    pub fn new(circuit: &model_fallback::Circuit, now: Instant) -> Self {
        let (state, cause, until, consecutive) = match circuit.state {
            CircuitState::Failing { failures } => ("failing", None, None, failures),
            CircuitState::Open { until, trips, cause } => ("open", Some(cause), Some(until), trips),
            CircuitState::HalfOpen { trips, cause, .. } => ("half_open", Some(cause), None, trips),
            _ => ("unknown", None, None, 0),
        };
        Self {
            name: redact(&circuit.name).into_owned(),
            state,
            cause: cause.map(|cause| cause.as_str()),
            cooldown_seconds: until.map(|until| until.saturating_duration_since(now).as_secs()),
            consecutive,
        }
    }
}

/// What was spent in one period.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct Spending {
    pub period: String,
    pub began_unix_seconds: i64,
    pub spent: Cost,
    pub reserved_at_most_microusd: Option<u64>,
    pub cap_microusd: Option<u64>,
    pub images: u64,
    pub rejected_attempts: u64,
}

impl From<&Spent> for Spending {
    fn from(spent: &Spent) -> Self {
        let certain = spent.caps.get(CapDimension::MoneyCertain);
        Self {
            period: spent.period.clone(),
            began_unix_seconds: spent.began_unix,
            spent: spent.settled.cost(),
            reserved_at_most_microusd: spent.reserved.cost().at_most_microusd,
            cap_microusd: spent.caps.get(CapDimension::MoneyAtMost).or(certain),
            images: spent.images,
            rejected_attempts: spent.refused,
        }
    }
}

/// A period, and the largest share of a cap that is spent or reserved in it.
pub(crate) fn nearest_cap(spent: &Spent) -> Option<(String, f64)> {
    let taken = spent.settled.plus(spent.reserved);
    #[allow(clippy::cast_precision_loss, reason = "a share for people")]
    let share = |dimension| match spent.caps.get(dimension)? {
        0 => Some(1.0),
        cap => Some(taken.get(dimension) as f64 / cap as f64),
    };
    let nearest = CapDimension::ALL.into_iter().filter_map(share).max_by(f64::total_cmp);
    nearest.map(|share| (spent.period.clone(), share))
}

/// The responses of disconnected clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct Stored {
    pub in_progress: u64,
    pub stored: u64,
    pub stored_bytes: u64,
    pub replayed: u64,
    pub free: u64,
    pub lost: u64,
}

/// What became of alerts to the webhook.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs, reason = "the module documents each field")]
pub struct Alerts {
    pub sent: u64,
    pub failed: u64,
    pub problem: Option<String>,
}
