//! Jobs: their settings, how far they are, and how items stand.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_gemini::cost::Cost;

use crate::lane::Lane;

/// The settings of a job.
///
/// | setting | default | source |
/// | --- | --- | --- |
/// | `max_concurrent` | 2 | article 000's retry queue (requirements 52) |
/// | `backoff` | 60 s, doubled after each failure | the same: 60, 120, 240, 480, 960 s |
/// | `max_failures` | 5 | the same |
/// | `lanes` | `standard` | half-price lanes take longer: that is the caller's choice |
/// | `attempts_per_call` | 3 | as the gateway's own retries |
/// | `unknown_resends` | 0 | nothing that may have been paid is paid again unasked |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct JobOptions {
    /// What people call it. It need not be unique.
    pub name: Option<String>,
    /// The model of the items that name none. Default: that of the program that runs it.
    pub model: Option<String>,
    /// A hard cap on money, in US dollars: the worst case of everything in flight counts.
    pub max_usd: Option<f64>,
    /// A hard cap on requests sent to Google that may count against quota.
    pub max_requests: Option<u32>,
    /// How many of its items may be in flight.
    pub max_concurrent: u32,
    /// The wait after the first free failure of an item, in seconds.
    pub backoff_seconds: u32,
    /// How many free failures of an item are the last.
    pub max_failures: u32,
    /// How many attempts one call may make within the stack.
    pub attempts_per_call: u32,
    /// How often an item that may have been paid for may be sent again all the same.
    pub unknown_resends: u32,
    /// The lanes from which one is chosen for items that name none.
    pub lanes: Vec<Lane>,
    /// A URL that is told when the job has ended.
    pub webhook: Option<String>,
}

impl Default for JobOptions {
    fn default() -> Self {
        Self {
            name: None,
            model: None,
            max_usd: None,
            max_requests: None,
            max_concurrent: 2,
            backoff_seconds: 60,
            max_failures: 5,
            attempts_per_call: 3,
            unknown_resends: 0,
            lanes: vec![Lane::Standard],
            webhook: None,
        }
    }
}

impl JobOptions {
    /// What is wrong with it.
    ///
    /// # Errors
    ///
    /// An amount that is no money, a number that allows nothing, a webhook that is no URL.
    pub fn check(&self) -> Result<(), String> {
        if self.max_usd.is_some_and(|usd| !usd.is_finite() || usd <= 0.0) {
            return Err("`max_usd` is not an amount of money above 0; write 5.0".to_owned());
        }
        let numbers = [
            ("max_concurrent", self.max_concurrent),
            ("max_failures", self.max_failures),
            ("attempts_per_call", self.attempts_per_call),
            ("max_requests", self.max_requests.unwrap_or(1)),
        ];
        if let Some((name, _)) = numbers.into_iter().find(|(_, number)| *number == 0) {
            return Err(format!("`{name}` is 0, which allows nothing; write 1 or more"));
        }
        if let Some(url) = &self.webhook
            && !(url.starts_with("https://") || url.starts_with("http://"))
        {
            // Its path may be a secret, and this text ends up in logs.
            return Err("`webhook` is no URL; write https://…".to_owned());
        }
        Ok(())
    }

    pub(crate) fn backoff(&self) -> Duration {
        Duration::from_secs(u64::from(self.backoff_seconds))
    }
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobState {
    /// Its items are worked on.
    Active,
    /// Somebody paused it: nothing more is started.
    Paused,
    /// Its cap is reached: nothing more is started. What is there stays.
    Capped,
    /// Somebody ended it: nothing more is sent.
    Cancelled,
    /// Every item has ended.
    Finished,
}

/// How an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ItemState {
    /// Nothing is under way for it.
    Waiting,
    /// A worker has it.
    Running,
    /// It is part of a batch.
    InBatch,
    /// Its images are there.
    Done,
    /// It has ended without an image.
    Failed,
    /// It was or may have been paid for, and nobody can say what became of it.
    Unknown,
    /// Its job was cancelled before it was sent.
    Cancelled,
}

macro_rules! words {
    ($name:ident: $($variant:ident = $word:literal),*) => {
        impl $name {
            /// Every state.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word for it in tables and files.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            pub(crate) fn named(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words!(JobState: Active = "active", Paused = "paused", Capped = "capped",
    Cancelled = "cancelled", Finished = "finished");
words!(ItemState: Waiting = "waiting", Running = "running", InBatch = "in_batch", Done = "done",
    Failed = "failed", Unknown = "unknown", Cancelled = "cancelled");

impl ItemState {
    /// Whether nothing more happens to it.
    #[must_use]
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running | Self::InBatch)
    }
}

/// What a job has come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Job {
    /// Names it.
    pub id: String,
    /// Who submitted it; empty for the command line.
    pub owner: String,
    /// Its settings.
    pub options: JobOptions,
    /// How it stands.
    pub state: JobState,
    /// Why it stopped, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// When it was submitted, in milliseconds since 1970.
    pub created_ms: i64,
    /// When its last item ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<i64>,
    /// How many items it has.
    pub items: u64,
    /// What was spent for certain, and at most, in millionths of a US dollar.
    pub spent: Spent,
    /// The worst case of what is in flight.
    pub reserved_microusd: u64,
    /// Requests sent.
    pub requests: u64,
}

/// Money that was spent: at least, and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Spent {
    /// At least, in millionths of a US dollar.
    pub at_least_microusd: u64,
    /// At most.
    pub at_most_microusd: u64,
}

impl Spent {
    /// What a call came to. What nothing bounds counts as its reservation.
    pub(crate) fn of(cost: Cost, reserved_microusd: u64) -> Self {
        let most = cost.at_most_microusd.unwrap_or(reserved_microusd);
        let at_least_microusd = cost.at_least_microusd;
        Self { at_least_microusd, at_most_microusd: most.max(at_least_microusd) }
    }
}

impl std::fmt::Display for Spent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cost = Cost {
            at_least_microusd: self.at_least_microusd,
            at_most_microusd: Some(self.at_most_microusd),
        };
        write!(f, "{cost}")
    }
}

/// How many items of a job stand how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Nothing is under way.
    pub waiting: u64,
    /// A worker has them.
    pub running: u64,
    /// They are in a batch.
    pub in_batch: u64,
    /// Their images are there.
    pub done: u64,
    /// They ended without an image.
    pub failed: u64,
    /// They may have been paid for.
    pub unknown: u64,
    /// They were never sent.
    pub cancelled: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, state: ItemState, count: u64) {
        let field = match state {
            ItemState::Waiting => &mut self.waiting,
            ItemState::Running => &mut self.running,
            ItemState::InBatch => &mut self.in_batch,
            ItemState::Done => &mut self.done,
            ItemState::Failed => &mut self.failed,
            ItemState::Unknown => &mut self.unknown,
            ItemState::Cancelled => &mut self.cancelled,
        };
        *field += count;
    }

    /// Those for which something is still to happen.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.waiting + self.running + self.in_batch
    }
}
