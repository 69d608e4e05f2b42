use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use tower_gemini::store::{
    CallFingerprint, Claim, Journal, JournalChange, JournalFuture, JournalRecord, JournalResponse,
    JournalTable, StoreError, TableChange,
};

use super::RedbStore;
use super::commit::{Failure, boxed};

/// The record of each call, as JSON.
const JOURNAL: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("journal_v1");

/// Whom records belong to: the processes before this one, which are gone, or this one.
const FORMER: u64 = 0;
const SELF: u64 = 1;

/// The records as they are in the file, and the directory of the responses.
pub(super) struct Records {
    table: Mutex<JournalTable>,
    responses: PathBuf,
}

impl Records {
    /// Reads what earlier processes left, and removes what is of no use any more.
    pub(super) fn open(file: &Path, database: &Database, now_ms: u64) -> Result<Self, StoreError> {
        let responses = file.with_extension("responses");
        let mut table = JournalTable::default();
        let mut read = || {
            let write = database.begin_write().map_err(boxed)?;
            {
                let mut rows = write.open_table(JOURNAL).map_err(boxed)?;
                for row in rows.iter().map_err(boxed)? {
                    let (_, value) = row.map_err(boxed)?;
                    if let Ok(record) = serde_json::from_slice::<JournalRecord>(value.value()) {
                        table.insert(FORMER, record);
                    }
                }
                for call in table.expire(SELF, now_ms) {
                    rows.remove(call).map_err(boxed)?;
                }
            }
            write.commit().map_err(boxed)
        };
        read().map_err(|error: Failure| StoreError::new(error))?;
        let records = Self { table: Mutex::new(table), responses };
        records.remove_orphans();
        Ok(records)
    }

    /// Removes the files of responses that no record names.
    fn remove_orphans(&self) {
        let Ok(files) = fs::read_dir(&self.responses) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            let call = name.to_str().and_then(|name| u128::from_str_radix(name, 16).ok());
            let is_stored = |call: u128| {
                let table = self.table();
                table.get(call).is_some_and(|record| record.state.head().is_some())
            };
            if call.is_some_and(|call| !is_stored(call)) {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, JournalTable> {
        // Every change is whole: none of them panics half-way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, call: u128) -> PathBuf {
        self.responses.join(format!("{call:032x}"))
    }

    /// Writes the record as it is now, whatever it was when this was queued.
    fn write_row(&self, write: &WriteTransaction, call: u128) -> Result<(), Failure> {
        let mut rows = write.open_table(JOURNAL).map_err(boxed)?;
        let record = self.table().get(call).map(serde_json::to_vec);
        match record {
            Some(Ok(record)) => drop(rows.insert(call, record.as_slice()).map_err(boxed)?),
            // Of no record there is nothing in JSON that cannot be written.
            Some(Err(_)) => {}
            None => {
                rows.remove(call).map_err(boxed)?;
                let _ = fs::remove_file(self.file(call));
            }
        }
        Ok(())
    }

    fn write_response(
        &self,
        call: u128,
        response: &JournalResponse,
        flushes: bool,
    ) -> io::Result<()> {
        let mut dir = fs::DirBuilder::new();
        let mut file = OpenOptions::new();
        file.write(true).create(true).truncate(true);
        #[cfg(unix)]
        {
            std::os::unix::fs::DirBuilderExt::mode(&mut dir, 0o700);
            std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
        }
        dir.recursive(true).create(&self.responses)?;
        let path = self.file(call);
        let write = |mut file: File| {
            response.chunks.iter().try_for_each(|chunk| file.write_all(chunk))?;
            if flushes { file.sync_all() } else { Ok(()) }
        };
        let written = file.open(&path).and_then(write);
        if written.is_err() {
            // Half a response of a full disk only takes room.
            let _ = fs::remove_file(path);
        }
        written
    }

    fn read_response(&self, call: u128, head: String) -> Option<JournalResponse> {
        let body = fs::read(self.file(call));
        let warn = |error: &io::Error| {
            tracing::warn!(%error, call = format!("{call:032x}"), "a stored response cannot be read");
        };
        body.inspect_err(warn).ok().map(|body| JournalResponse::new(head, vec![body.into()]))
    }
}

/// Runs what waits for the disk outside of the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await.map_err(StoreError::new),
        Err(_) => Ok(work()),
    }
}

/// Records in the file, the bodies of responses in files of their own beside it.
impl Journal for RedbStore {
    fn write(&self, call: u128, change: JournalChange) -> JournalFuture<bool> {
        let (inner, records) = (self.inner.clone(), self.inner.journal.clone());
        let now_ms = inner.now().steady_ms;
        let changed = records.table().change(SELF, call, &change, now_ms);
        match (changed, change) {
            (TableChange::NotOurs, _) => Box::pin(std::future::ready(Ok(false))),
            (TableChange::Unchanged, _) => Box::pin(std::future::ready(Ok(true))),
            (TableChange::Changed, JournalChange::Stored { response, .. }) => {
                let flushes = inner.writer.flushes();
                let task = move || {
                    records.write_response(call, &response, flushes).map(|()| (inner, records))
                };
                // Not tied to whoever waits for it.
                let task = match tokio::runtime::Handle::try_current() {
                    Ok(runtime) => runtime.spawn_blocking(task),
                    Err(_) => {
                        let error = StoreError::new("a response is written from outside a runtime");
                        return Box::pin(std::future::ready(Err(error)));
                    }
                };
                Box::pin(async move {
                    let written = task.await.map_err(StoreError::new)?;
                    let (inner, records) = written.map_err(StoreError::new)?;
                    let row = move |write: &WriteTransaction| records.write_row(write, call);
                    inner.writer.change(row).await.map(|()| true)
                })
            }
            (TableChange::Changed | TableChange::Removed, _) => {
                let row = move |write: &WriteTransaction| records.write_row(write, call);
                let written = self.inner.writer.change(row);
                Box::pin(async move { written.await.map(|()| true) })
            }
        }
    }

    fn claim(&self, fingerprint: CallFingerprint, is_resend: bool) -> JournalFuture<Claim> {
        let records = self.inner.journal.clone();
        let now_ms = self.inner.now().steady_ms;
        let (expired, claim) = {
            let mut table = records.table();
            let expired = table.expire(SELF, now_ms);
            let heard = |owner| (owner == SELF).then_some(Duration::ZERO);
            (expired, table.claim(SELF, fingerprint, is_resend, heard))
        };
        let rewrite = |call: u128| {
            let records = records.clone();
            drop(self.inner.writer.change(move |write| records.write_row(write, call)));
        };
        expired.into_iter().for_each(rewrite);
        let Claim::Call(record, _) = claim else {
            return Box::pin(std::future::ready(Ok(claim)));
        };
        rewrite(record.call);
        Box::pin(async move {
            let response = match record.state.head().map(str::to_owned) {
                Some(head) => {
                    let call = record.call;
                    blocking(move || records.read_response(call, head)).await?
                }
                None => None,
            };
            Ok(Claim::Call(record, response))
        })
    }

    fn read(&self, call: u128) -> JournalFuture<Option<JournalResponse>> {
        let records = self.inner.journal.clone();
        let head =
            records.table().get(call).and_then(|record| record.state.head().map(str::to_owned));
        Box::pin(async move {
            match head {
                Some(head) => blocking(move || records.read_response(call, head)).await,
                None => Ok(None),
            }
        })
    }
}
