//! What the page shows, as values: what the layers' handles say, in words and numbers.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use tower_gemini::cost::Cost;
use tower_gemini::model_fallback::{Circuit, CircuitState};
use tower_gemini::observe::Report;
use tower_gemini::quota_guard::QuotaUsage;
use tower_gemini::redact::redact;
use tower_gemini::spending::{CapDimension, Spent};

/// What the page shows.
///
/// ```
/// use tower_gemini_gateway::status::{StatusView, page};
/// use tower_gemini::observe::ObserveLayer;
///
/// let layer = ObserveLayer::new();
/// let view = StatusView::new(layer.observatory().report());
/// assert!(page(&view).contains("No calls in the last hour."));
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct StatusView {
    /// The gateway's version.
    pub version: String,
    /// How long it has been up.
    pub uptime_seconds: u64,
    /// Where calls go: a host, nothing secret.
    pub upstream: String,
    /// What was seen of calls.
    pub report: Report,
    /// How quotas stand; empty where none is set.
    pub quotas: Vec<QuotaView>,
    /// Targets that are not well; empty where all are.
    pub targets: Vec<TargetView>,
    /// What was spent by period.
    pub spending: Vec<SpendingView>,
    /// What is kept of answers whose callers left; `None` where that is off.
    pub kept: Option<KeptView>,
}

impl StatusView {
    /// Of what was seen; the rest is to be filled in.
    #[must_use]
    pub fn new(report: Report) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: report.at_unix.saturating_sub(report.since_unix),
            upstream: String::new(),
            report,
            quotas: Vec::new(),
            targets: Vec::new(),
            spending: Vec::new(),
            kept: None,
        }
    }
}

/// How one project's quota for one model stands.
#[derive(Debug, Clone, Serialize)]
pub struct QuotaView {
    /// Whose: a name, or the beginning of a fingerprint.
    pub project: String,
    /// Which model.
    pub model: String,
    /// Calls that wait in line.
    pub waiting: usize,
    /// Its limits, those that there are.
    pub entries: Vec<QuotaEntryView>,
}

/// How one limit stands.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QuotaEntryView {
    /// `rpm`, `tpm`, `ipm` or `rpd`.
    pub dimension: &'static str,
    /// The limit as it is known now.
    pub limit: u64,
    /// Counted.
    pub used: u64,
    /// Held by calls that are running.
    pub reserved: u64,
    /// When all of it is back.
    pub resets_in_seconds: u64,
}

impl From<&QuotaUsage> for QuotaView {
    fn from(ledger: &QuotaUsage) -> Self {
        let entry = |entry: &tower_gemini::quota_guard::DimensionUsage| {
            Some(QuotaEntryView {
                dimension: entry.dimension.as_str(),
                limit: entry.limit?,
                used: entry.used,
                reserved: entry.reserved,
                resets_in_seconds: entry.resets_in.as_secs(),
            })
        };
        Self {
            project: redact(ledger.key.project.as_str()).into_owned(),
            model: redact(ledger.key.model.as_str()).into_owned(),
            waiting: ledger.waiting,
            entries: ledger.entries.iter().filter_map(entry).collect(),
        }
    }
}

/// A target that is not well.
#[derive(Debug, Clone, Serialize)]
pub struct TargetView {
    /// A model, perhaps at a size, in a place; a model's quota; or an account.
    pub what: String,
    /// `open`, `half_open` or `failing`.
    pub condition: &'static str,
    /// What it failed with, where that is kept.
    pub cause: Option<&'static str>,
    /// For how much longer it rests.
    pub left_seconds: Option<u64>,
    /// Failures, or rests, in a row.
    pub in_a_row: u32,
}

impl TargetView {
    /// How a target is at `now`, in the runtime's time.
    #[must_use]
    pub fn new(circuit: &Circuit, now: Instant) -> Self {
        let (condition, cause, left, in_a_row) = match circuit.state {
            CircuitState::Failing { failures } => ("failing", None, None, failures),
            CircuitState::Open { until, trips, cause } => {
                ("open", Some(cause.as_str()), Some(until.saturating_duration_since(now)), trips)
            }
            CircuitState::HalfOpen { trips, cause, .. } => {
                ("half_open", Some(cause.as_str()), None, trips)
            }
            _ => ("unknown", None, None, 0),
        };
        let left_seconds = left.map(|left: Duration| left.as_secs());
        Self { what: redact(&circuit.name).into_owned(), condition, cause, left_seconds, in_a_row }
    }
}

/// What one period came to.
#[derive(Debug, Clone, Serialize)]
pub struct SpendingView {
    /// Which period: `day`, `hour` …
    pub period: String,
    /// What is spent.
    pub spent: Cost,
    /// What calls under way may add.
    pub reserved_at_most_microusd: Option<u64>,
    /// The cap on what is spent at most, where there is one.
    pub cap_microusd: Option<u64>,
    /// Images delivered.
    pub images: u64,
    /// Attempts that were not sent because of its caps.
    pub refused: u64,
}

impl From<&Spent> for SpendingView {
    fn from(spent: &Spent) -> Self {
        let certain = spent.caps.get(CapDimension::MoneyCertain);
        Self {
            period: spent.period.clone(),
            spent: spent.settled.cost(),
            reserved_at_most_microusd: spent.reserved.cost().at_most_microusd,
            cap_microusd: spent.caps.get(CapDimension::MoneyAtMost).or(certain),
            images: spent.images,
            refused: spent.refused,
        }
    }
}

/// What is kept of answers whose callers left.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct KeptView {
    /// Calls that are being finished without their callers.
    pub detached: u64,
    /// Answers that wait for their callers.
    pub kept: u64,
    /// Bytes that they take.
    pub kept_bytes: u64,
    /// Answers given to a later request.
    pub redeemed: u64,
    /// Calls left by their callers that came to cost nothing.
    pub free: u64,
    /// Answers that were, or may have been, paid for and that nobody got.
    pub lost: u64,
}
