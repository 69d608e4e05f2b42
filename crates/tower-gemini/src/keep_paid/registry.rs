//! What all services of one layer share.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::calls::{Calls, Copy};
use super::fingerprint::Fingerprint;
use super::room::Room;
use super::stored::{StoredResponse, decode};
use super::{KeepCounts, Settings, files};
use crate::calendar::unix_ms;
use crate::call_state::CallState;
use crate::store::{Claim, JournalState, StoreError};

#[derive(Debug)]
pub(super) struct Registry {
    pub(super) settings: Settings,
    calls: Mutex<Calls>,
    /// How many tasks complete a call.
    tasks: watch::Sender<usize>,
    /// Bytes of responses on their way to a client, held in case that it disconnects.
    in_transit: Arc<Semaphore>,
    /// One writer of files at a time.
    saving: Mutex<()>,
}

/// A task that completes a call: counted while this lives.
pub(super) struct TaskCount(Arc<Registry>);

impl Drop for TaskCount {
    fn drop(&mut self) {
        self.0.tasks.send_modify(|tasks| *tasks = tasks.saturating_sub(1));
    }
}

impl Registry {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            calls: Mutex::new(Calls::new(&settings)),
            tasks: watch::Sender::new(0),
            in_transit: Arc::new(Semaphore::new(settings.max_bytes.min(Semaphore::MAX_PERMITS))),
            settings,
            saving: Mutex::new(()),
        }
    }

    /// Changes the calls, and does what is left to do afterwards.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Calls, Instant) -> T) -> T {
        // A panic in another holder leaves a complete map: each step of a change is one insertion
        // or removal.
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut calls, Instant::now());
        let to_do = std::mem::take(&mut calls.to_do);
        drop(calls);
        files::delete_all(to_do.delete);
        for response in to_do.dropped {
            tracing::warn!(
                bytes = response.bytes,
                cost_at_least_microusd = response.cost.at_least_microusd,
                "a stored response was dropped: no client asked for it in time, or newer ones needed its room"
            );
        }
        if to_do.forgotten_losses > 0 {
            tracing::warn!(
                count = to_do.forgotten_losses,
                "more losses than are remembered: an identical request is sent again"
            );
        }
        changed
    }

    pub(super) fn counts(&self) -> KeepCounts {
        let counts = self.with(|calls, now| {
            calls.expire(now);
            calls.counts()
        });
        KeepCounts { detached: *self.tasks.borrow(), ..counts }
    }

    pub(super) fn count_task(self: &Arc<Self>) -> TaskCount {
        self.tasks.send_modify(|tasks| *tasks += 1);
        TaskCount(self.clone())
    }

    pub(super) async fn drain(&self, within: Duration) -> bool {
        let mut tasks = self.tasks.subscribe();
        let drained = timeout(within, tasks.wait_for(|tasks| *tasks == 0)).await;
        matches!(drained, Ok(Ok(_)))
    }

    /// Room for the response of a call on its way.
    pub(super) fn room(&self, state: &CallState) -> Room {
        Room::of(state, Some(&self.in_transit))
    }

    /// Writes every call that must outlive the process to a file; one that cannot be written keeps
    /// none of the others from it.
    pub(super) async fn save_to(self: Arc<Self>, dir: PathBuf) -> io::Result<usize> {
        files::blocking(move || {
            let _alone = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut saved, mut failed) = (0, None);
            let all = self.with(|calls, now| {
                calls.expire(now);
                calls.snapshot()
            });
            for call in all {
                match files::save(&dir, &call, self.settings.clock.now()) {
                    Ok(file) => {
                        saved += usize::from(self.with(|calls, _| calls.saved(call.id, file)));
                    }
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            failed.map_or(Ok(saved), Err)
        })
        .await
    }

    /// Takes over what another process knows of this fingerprint. Returns whether another process
    /// works on it: whether without a client, and how long ago that process was heard of.
    pub(super) async fn claim(
        &self,
        fingerprint: Fingerprint,
        is_resend: bool,
    ) -> Result<Option<(bool, Duration)>, StoreError> {
        let Some(journal) = &self.settings.journal else { return Ok(None) };
        match journal.claim(fingerprint.0, is_resend).await? {
            Claim::Nothing => Ok(None),
            Claim::InFlight { detached, heard } => Ok(Some((detached, heard))),
            Claim::Call(record, response) => {
                let now_ms = unix_ms(self.settings.clock.now());
                let is_delivered = matches!(record.state, JournalState::Delivered { .. });
                self.with(|calls, now| {
                    let saved = files::SavedCall::taken_over(&record, response, now_ms, now);
                    calls.take_over(saved, is_delivered, now);
                });
                Ok(None)
            }
        }
    }

    /// Reads a response that is not in memory.
    pub(super) async fn read(&self, copy: Copy) -> io::Result<Arc<StoredResponse>> {
        match (copy, &self.settings.journal) {
            (Copy::File(file), _) => files::read_response(file).await,
            (Copy::Journal(call, since), Some(journal)) => {
                let stored = journal.read(call).await.map_err(io::Error::other)?;
                let response = stored.and_then(|stored| decode(stored, since));
                response.ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            (Copy::Journal(..), None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) async fn load_from(self: Arc<Self>, dir: PathBuf) -> io::Result<usize> {
        let steady = Instant::now();
        files::blocking(move || {
            let Settings { retention, clock, .. } = &self.settings;
            let found = files::load(&dir, *retention, clock.now(), steady)?;
            let take_in = |call| self.with(|calls, now| calls.take_in(call, now));
            Ok(found.into_iter().filter_map(|call| take_in(call).then_some(())).count())
        })
        .await
    }
}
