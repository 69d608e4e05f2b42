//! What a [`Journal`] knows of calls: written before each attempt, read before a request is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use tower_gemini_core::call::Call;
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::cost;

use super::fingerprint::Fingerprint;
use super::registry::Registry;
use super::stored::CallId;
use crate::body::CallBody;
use crate::calendar::unix_ms;
use crate::call_state::{AttemptEnd, Passing, SendGate};
use crate::clock::millis;
use crate::error::Error;
use crate::store::{
    Journal, JournalChange, JournalFuture, JournalRecord, JournalState, StoreError,
};

/// How long to wait between two looks at a call of another process.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Records each attempt of one call before its first byte.
#[derive(Debug)]
pub(super) struct JournalGate {
    registry: Arc<Registry>,
    journal: Arc<dyn Journal>,
    id: CallId,
    /// The record of the call without an attempt.
    record: JournalRecord,
    /// An attempt of the call was or may have been charged.
    is_charged: AtomicBool,
}

impl JournalGate {
    /// `None` where there is no journal.
    pub(super) fn new(
        registry: &Arc<Registry>,
        id: CallId,
        keyed_request: Option<Fingerprint>,
        request: &Request<CallBody>,
    ) -> Option<Self> {
        let settings = &registry.settings;
        let journal = settings.journal.clone()?;
        let max_time = settings.max_time.saturating_add(request.body().call().tier.queue_time());
        let record = JournalRecord {
            call: id.number,
            fingerprint: id.fingerprint.0,
            keyed_request: keyed_request.map(|request| request.0),
            caller: Fingerprint::of_caller(request).0,
            target: String::new(),
            at_most_microusd: None,
            outcome: None,
            state: JournalState::Waiting,
            since_ms: 0,
            keep_for_ms: millis(max_time.saturating_add(settings.retention)),
        };
        let registry = registry.clone();
        Some(Self { registry, journal, id, record, is_charged: AtomicBool::new(false) })
    }

    /// Takes the key of the call for this process. `false` where another one has it.
    pub(super) async fn take_key(&self) -> Result<bool, StoreError> {
        self.registry.with(|calls, _| calls.journaled(self.id));
        self.write(JournalChange::Begin(Box::new(self.now(JournalState::Waiting)))).await
    }

    /// The record as it is now.
    fn now(&self, state: JournalState) -> JournalRecord {
        let since_ms = u64::try_from(unix_ms(self.registry.settings.clock.now())).unwrap_or(0);
        JournalRecord { state, since_ms, ..self.record.clone() }
    }

    fn write(&self, change: JournalChange) -> JournalFuture<bool> {
        self.journal.write(self.id.number, change)
    }
}

impl SendGate for JournalGate {
    fn pass<'a>(&'a self, call: &'a Call) -> Passing<'a> {
        let model = call.model.as_ref().map_or("unknown model", |model| model.as_str());
        let record = JournalRecord {
            target: call.size.map_or_else(|| model.to_owned(), |size| format!("{model} {size}")),
            at_most_microusd: cost::worst_case(Catalog::builtin(), call, None).at_most_microusd,
            ..self.now(JournalState::InFlight { detached: false })
        };
        // From here on what becomes of the call is written down.
        self.registry.with(|calls, _| calls.journaled(self.id));
        let written = self.write(JournalChange::Begin(Box::new(record)));
        Box::pin(async move {
            match written.await {
                Ok(true) => Ok(()),
                Ok(false) => Err(Error::not_recorded(StoreError::new(
                    "another process has the Idempotency-Key",
                ))),
                Err(error) => Err(Error::not_recorded(error)),
            }
        })
    }

    fn settle(&self, end: &AttemptEnd<'_>) {
        let is_free = end.verdict.charge().is_surely_free();
        let was_charged = self.is_charged.fetch_or(!is_free, Ordering::Relaxed);
        let change = match (is_free, was_charged) {
            // Others must not take the key between two attempts.
            (true, false) if self.record.keyed_request.is_some() => {
                JournalChange::Begin(Box::new(self.now(JournalState::Waiting)))
            }
            (true, false) => JournalChange::Forget,
            (true, true) => return,
            (false, _) => JournalChange::Charged(end.cost),
        };
        drop(self.write(change));
    }
}
