//! What the layer's builder sets.

use std::sync::Arc;
use std::time::Duration;

use super::alerts::QuotaAlert;
use super::limits::{Limits, ProjectId, QuotaKey};
use super::usage::QuotaWait;
use crate::clock::Clock;
use crate::store::QuotaStore;

/// What happens to a call when the quota is exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnExhausted {
    /// Waits in a FIFO queue, up to the call's deadline and at most this long. A call whose turn
    /// would come later is refused at once.
    Wait {
        /// The longest wait. Our own retry does not wait longer for the quota either.
        at_most: Duration,
    },
    /// Refuses at once.
    Refuse,
    /// Lets everything through, and only counts what would have been refused.
    Shadow,
}

/// What happens while a shared store does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreFailure {
    /// Lets nothing through until it answers.
    Closed,
    /// Goes on at the pace that this process had in the last minute, which all processes together
    /// were granted. A process that never had a lease lets nothing through.
    OpenOnLastLease,
}

pub(crate) type Callback<T> = Arc<dyn Fn(&T) + Send + Sync>;

/// Which limits hold for which project and model; the most specific rule wins, project before
/// model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) default: Limits,
    pub(crate) rules: Vec<(Option<ProjectId>, Option<String>, Limits)>,
}

impl Rules {
    pub(crate) fn limits_for(&self, key: &QuotaKey) -> Limits {
        let fits = |(project, model, _): &&(Option<ProjectId>, Option<String>, Limits)| {
            project.as_ref().is_none_or(|project| *project == key.project)
                && model.as_ref().is_none_or(|model| *model == key.model.as_str())
        };
        // `max_by_key` keeps the last of equals: a later rule replaces an earlier one.
        let rule = self.rules.iter().filter(fits).max_by_key(|(project, model, _)| {
            u8::from(project.is_some()) * 2 + u8::from(model.is_some())
        });
        rule.map_or(self.default, |(.., limits)| *limits)
    }
}

#[derive(Clone)]
pub(crate) struct Settings {
    /// Nothing is limited, and nothing remembered.
    pub(crate) is_off: bool,
    pub(crate) rules: Rules,
    pub(crate) on_exhausted: OnExhausted,
    pub(crate) margin: Duration,
    pub(crate) first_attempt_percent: u8,
    pub(crate) thresholds: Vec<u8>,
    pub(crate) on_alert: Option<Callback<QuotaAlert>>,
    pub(crate) on_wait: Option<Callback<QuotaWait>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Option<Arc<dyn QuotaStore>>,
    pub(crate) store_timeout: Duration,
    pub(crate) store_failure: StoreFailure,
    pub(crate) lease: Duration,
    pub(crate) learns: bool,
}
