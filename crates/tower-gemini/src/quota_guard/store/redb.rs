use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::error::BoxError;
use redb::{Database, DatabaseError, ReadableTable, TableDefinition};
use tokio::time::Instant;

use super::{Exchange, Exchanging, QuotaStore, Reply, StoreError, exchange_with, wall_ms};
use crate::clock::SystemClock;
use crate::quota_guard::admission::{Admission, Image, Moment, SLOT_MS};
use crate::quota_guard::limits::{ProjectId, QuotaKey};
use tower_gemini_core::call::ModelId;

/// What is kept of each key: see [`encode`].
const COUNTS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("quota_counts_v1");

/// A count in a file, which outlives the process: after a kill -9 the day goes on where it was.
///
/// What is granted is on the disk before it is used. One process at a time: a second is refused
/// when it opens the file, with an error that says so; processes that are to share a quota need
/// Redis.
///
/// ```
/// use std::sync::Arc;
/// use tower_gemini::quota_guard::{Limits, QuotaGuardLayer, store::RedbStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let path = std::env::temp_dir().join(format!("tower-gemini-doc-{}.redb", std::process::id()));
/// let store = RedbStore::open(&path)?;
/// assert!(RedbStore::open(&path).unwrap_err().to_string().contains("another process"));
/// let layer = QuotaGuardLayer::new(Limits::unlimited().rpd(1_000)).store(Arc::new(store));
/// # drop(layer);
/// # std::fs::remove_file(path)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedbStore {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    clock: Arc<dyn Clock>,
    epoch: Instant,
    /// The wall clock when the file was opened: the beginning of the steady clock that slots are
    /// dated by.
    opened_ms: u64,
    counts: Mutex<HashMap<QuotaKey, Admission>>,
}

impl RedbStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    ///
    /// Where it cannot be opened, is no such file, or another process has it open.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with_clock(path, Arc::new(SystemClock))
    }

    /// Opens the file, or makes it, and reads the day from this clock.
    ///
    /// # Errors
    ///
    /// Where it cannot be opened, is no such file, or another process has it open.
    pub fn open_with_clock(
        path: impl AsRef<Path>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let database = Database::create(path.as_ref()).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => {
                StoreError::new("the file is open in another process or store; processes that share a quota need a redis store")
            }
            other => StoreError::new(other.to_string()),
        })?;
        let opened_ms = u64::try_from(wall_ms(&*clock)).unwrap_or(0);
        let counts = load(&database, opened_ms, wall_ms(&*clock))
            .map_err(|error| StoreError::new(error.to_string()))?;
        let inner =
            Inner { database, clock, epoch: Instant::now(), opened_ms, counts: Mutex::new(counts) };
        Ok(Self { inner: Arc::new(inner) })
    }
}

/// Reads every count. Where the clock is before the file (it was set back), slots are moved to end
/// now: they look younger than they are, and no window is granted twice.
fn load(
    database: &Database,
    opened_ms: u64,
    wall_ms: i64,
) -> Result<HashMap<QuotaKey, Admission>, BoxError> {
    let mut counts = HashMap::new();
    let write = database.begin_write()?;
    {
        let table = write.open_table(COUNTS)?;
        for row in table.iter()? {
            let (key, value) = row?;
            let (project, model) = key.value();
            let Some((margin_ms, mut image)) = decode(value.value()) else { continue };
            let now_slot = opened_ms / SLOT_MS;
            let newest = image.slots.last().map_or(0, |(slot, _)| *slot);
            // A lease is dated a little ahead, which is no clock that went back.
            let back = newest.saturating_sub(now_slot + 8);
            for (slot, _) in &mut image.slots {
                *slot = slot.saturating_sub(back);
            }
            let mut admission = Admission::new(crate::quota_guard::Limits::unlimited(), margin_ms);
            admission.begin_at(Moment { steady_ms: opened_ms, wall_ms });
            admission.restore(&image, 0);
            counts.insert(
                QuotaKey { project: ProjectId::new(project), model: ModelId::new(model) },
                admission,
            );
        }
    }
    write.commit()?;
    Ok(counts)
}

impl Inner {
    fn answer(&self, exchange: &Exchange) -> Result<Reply, StoreError> {
        let steady_ms = self.opened_ms
            + u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
        let now = Moment { steady_ms, wall_ms: wall_ms(&*self.clock) };
        let margin_ms = u64::try_from(exchange.margin.as_millis()).unwrap_or(0);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let admission = counts.entry(exchange.key.clone()).or_insert_with(|| {
            let mut admission = Admission::new(exchange.limits, margin_ms);
            admission.begin_at(now);
            admission
        });
        // Changed on a copy: what is not on the disk was not granted.
        let mut changed = admission.clone();
        let reply = exchange_with(&mut changed, now, exchange);
        let value = encode(margin_ms, &changed.image());
        self.write(&exchange.key, &value).map_err(|error| StoreError::new(error.to_string()))?;
        *admission = changed;
        Ok(reply)
    }

    fn write(&self, key: &QuotaKey, value: &[u8]) -> Result<(), BoxError> {
        let write = self.database.begin_write()?;
        write.open_table(COUNTS)?.insert((key.project.as_str(), key.model.as_str()), value)?;
        // Durable at once: a grant that a crash forgets would be granted twice.
        write.commit()?;
        Ok(())
    }
}

impl QuotaStore for RedbStore {
    fn exchange(&self, exchange: Exchange) -> Exchanging {
        let inner = self.inner.clone();
        // A commit waits for the disk, so it leaves the runtime's threads.
        let task = tokio::task::spawn_blocking(move || inner.answer(&exchange));
        Box::pin(async move {
            match task.await {
                Ok(reply) => reply,
                Err(_) => Err(StoreError::new("the task that writes the file was ended")),
            }
        })
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").finish_non_exhaustive()
    }
}

/// Little-endian words: margin, closed day and whether there is one, how many slots and days, then
/// (slot, three amounts) and (day, amount).
fn encode(margin_ms: u64, image: &Image) -> Vec<u8> {
    let mut words = vec![
        margin_ms,
        image.closed_day.map_or(0, word_of),
        u64::from(image.closed_day.is_some()),
        image.slots.len() as u64,
        image.days.len() as u64,
    ];
    for (slot, taken) in &image.slots {
        words.push(*slot);
        words.extend(taken);
    }
    for (day, taken) in &image.days {
        words.extend([word_of(*day), *taken]);
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn word_of(day: i32) -> u64 {
    u64::from_le_bytes(i64::from(day).to_le_bytes())
}

fn decode(bytes: &[u8]) -> Option<(u64, Image)> {
    let mut words =
        bytes.chunks_exact(8).map(|word| word.try_into().map(u64::from_le_bytes).unwrap_or(0));
    let day = |word: u64| i32::try_from(i64::from_le_bytes(word.to_le_bytes())).ok();
    let margin_ms = words.next()?;
    let (closed, is_closed) = (day(words.next()?)?, words.next()? == 1);
    let (slots, days) = (words.next()?, words.next()?);
    let mut image = Image { closed_day: is_closed.then_some(closed), ..Image::default() };
    for _ in 0..slots {
        image.slots.push((words.next()?, [words.next()?, words.next()?, words.next()?]));
    }
    for _ in 0..days {
        image.days.push((day(words.next()?)?, words.next()?));
    }
    Some((margin_ms, image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decoded_is_what_was_encoded() {
        let image = Image {
            slots: vec![(7, [1, 2, 3]), (9, [0, 5, 0])],
            days: vec![(20_000, 4), (-3, 9)],
            closed_day: Some(20_000),
        };
        assert_eq!(decode(&encode(500, &image)), Some((500, image)));
        assert_eq!(decode(b"short"), None);
    }
}
