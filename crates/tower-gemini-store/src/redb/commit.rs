//! Commits the changes of many callers together, from one thread.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use redb::{Database, Durability, ReadTransaction, WriteTransaction};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tower_gemini::store::StoreError;

use crate::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError};

/// The errors of redb are large.
pub(crate) type Failure = Box<redb::Error>;

pub(crate) fn boxed(error: impl Into<redb::Error>) -> Failure {
    Box::new(error.into())
}

/// What a change came to, once it is on the disk.
pub(crate) type Committed<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Changes of one transaction at most. Each waits for the whole transaction.
const MOST_TOGETHER: usize = 1024;

/// Writes a database from one thread: all changes that wait go to the disk in one transaction, so
/// a flush of the disk is shared by all callers of that moment.
///
/// A failed transaction fails for all its callers. The next one opens the file anew, since redb
/// refuses everything after an error of the disk. Dropping the writer commits what waits.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    queue: Mutex<Option<Sender<Box<dyn Queued>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    path: PathBuf,
    database: Mutex<Option<Arc<Database>>>,
    failures: Arc<AtomicU64>,
    problem: Mutex<Option<StoreError>>,
    /// Milliseconds; 0 flushes every transaction.
    flush_within_ms: AtomicU64,
    is_closed: AtomicBool,
}

impl Writer {
    pub(crate) fn start(path: PathBuf, database: Database) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            path,
            database: Mutex::new(Some(Arc::new(database))),
            failures: Arc::default(),
            problem: Mutex::default(),
            flush_within_ms: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        });
        let (queue, queued) = channel();
        let of_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("redb-writer".to_owned())
            .spawn(move || of_thread.run(&queued))
            .map_err(StoreError::new)?;
        let (queue, thread) = (Mutex::new(Some(queue)), Mutex::new(Some(thread)));
        Ok(Self { shared, queue, thread })
    }

    /// Queues a change now. The future is ready when it is on the disk, or is not; without anybody
    /// to wait for it, it is made all the same.
    pub(crate) fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, Failure> + Send + 'static,
    ) -> Committed<T> {
        let (reply, committed) = oneshot::channel();
        let queued = Pending { change: Some(change), made: None, reply };
        if let Some(queue) = &*lock(&self.queue) {
            // Without the thread the reply is dropped, which is the error below.
            let _ = queue.send(Box::new(queued));
        }
        Box::pin(async move {
            committed.await.unwrap_or_else(|_| Err(StoreError::new("the file is closed")))
        })
    }

    /// Reads what was committed last. It blocks on the disk.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let database = self.shared.database()?;
        let transaction = database.begin_read().map_err(StoreError::new)?;
        read(&transaction).map_err(StoreError::new)
    }

    /// Counts failed transactions. What is cached of the file is wrong after one; the count is
    /// raised before the next change is made.
    pub(crate) fn failures(&self) -> Arc<AtomicU64> {
        self.shared.failures.clone()
    }

    /// Why the last transaction failed, until one succeeds.
    pub(crate) fn problem(&self) -> Option<StoreError> {
        lock(&self.shared.problem).clone()
    }

    /// Whether a change that is ready is on the disk.
    pub(crate) fn flushes(&self) -> bool {
        self.shared.flush_within_ms.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn flush_within(&self, delay: Duration) {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.shared.flush_within_ms.store(ms, Ordering::Relaxed);
    }
}

impl Writer {
    /// Commits what waits, and closes the file: it can be opened again at once. What comes later is
    /// an error.
    pub(crate) fn close(&self) {
        drop(lock(&self.queue).take());
        let thread = lock(&self.thread).take();
        let here = thread::current().id();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != here) {
            let _ = thread.join();
        }
        self.shared.is_closed.store(true, Ordering::Release);
        *lock(&self.shared.database) = None;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Ends when the writer is dropped and everything that was queued is committed.
    fn run(&self, queued: &Receiver<Box<dyn Queued>>) {
        // When the commits that are not flushed yet have to be.
        let mut due: Option<Instant> = None;
        loop {
            let first = match due {
                None => queued.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => queued.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            let mut batch = Vec::new();
            match first {
                Ok(first) => batch.push(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    if due.is_some() {
                        let _ = self.commit(&mut [], Durability::Immediate);
                    }
                    return;
                }
            }
            batch.extend(queued.try_iter().take(MOST_TOGETHER - batch.len()));
            let delay = Duration::from_millis(self.flush_within_ms.load(Ordering::Relaxed));
            let flushes = delay.is_zero() || due.is_some_and(|due| due <= Instant::now());
            let durability = if flushes { Durability::Immediate } else { Durability::None };
            let ended = self.commit(&mut batch, durability);
            due = match &ended {
                Ok(()) if !flushes => due.or_else(|| Some(Instant::now() + delay)),
                // What was not flushed is gone with the file that is opened anew.
                _ => None,
            };
            for change in batch {
                change.reply(ended.clone());
            }
        }
    }

    fn commit(
        &self,
        batch: &mut [Box<dyn Queued>],
        durability: Durability,
    ) -> Result<(), StoreError> {
        let ended = self.database().and_then(|database| {
            let commit = || {
                let mut transaction = database.begin_write().map_err(boxed)?;
                transaction.set_durability(durability);
                for change in batch {
                    change.make(&transaction)?;
                }
                transaction.commit().map_err(boxed)
            };
            commit().map_err(|error: Failure| StoreError::new(error))
        });
        if ended.is_err() {
            self.failures.fetch_add(1, Ordering::Release);
            *lock(&self.database) = None;
        }
        *lock(&self.problem) = ended.clone().err();
        ended
    }

    /// The database, opened anew after a failure. An earlier reader may hold the old one open for a
    /// moment, which is an error like others.
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut database = lock(&self.database);
        if let Some(database) = &*database {
            return Ok(database.clone());
        }
        if self.is_closed.load(Ordering::Acquire) {
            return Err(StoreError::new("the file is closed"));
        }
        let opened = Arc::new(Database::open(&self.path).map_err(StoreError::new)?);
        *database = Some(opened.clone());
        Ok(opened)
    }
}

/// A change whose caller may wait.
trait Queued: Send {
    fn make(&mut self, transaction: &WriteTransaction) -> Result<(), Failure>;

    fn reply(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Pending<F, T> {
    change: Option<F>,
    made: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Queued for Pending<F, T>
where
    F: FnOnce(&WriteTransaction) -> Result<T, Failure> + Send,
    T: Send,
{
    fn make(&mut self, transaction: &WriteTransaction) -> Result<(), Failure> {
        if let Some(change) = self.change.take() {
            self.made = Some(change(transaction)?);
        }
        Ok(())
    }

    fn reply(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { made, reply, .. } = *self;
        let made = made.ok_or_else(|| StoreError::new("an earlier change of the batch failed"));
        // Nobody may be waiting any more.
        let _ = reply.send(committed.and(made));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::{ReadableTable, StorageBackend, TableDefinition};
    use std::io;

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("table");

    fn put(key: u64) -> impl FnOnce(&WriteTransaction) -> Result<u64, Failure> + Send + 'static {
        move |transaction| {
            transaction.open_table(TABLE).map_err(boxed)?.insert(key, key).map_err(boxed)?;
            Ok(key)
        }
    }

    fn rows(writer: &Writer) -> u64 {
        let count = |transaction: &ReadTransaction| {
            let table = transaction.open_table(TABLE).map_err(boxed)?;
            Ok(table.iter().map_err(boxed)?.count() as u64)
        };
        writer.read(count).unwrap()
    }

    /// Keeps the thread busy with a change of its own until the sender sends: what is queued then
    /// waits together.
    fn hold(writer: &Writer) -> (Committed<bool>, Sender<()>) {
        let ((begin, begun), (release, held)) = (channel(), channel());
        let holds = writer.change(move |_| Ok(begin.send(()).is_ok() && held.recv().is_ok()));
        begun.recv().unwrap();
        (holds, release)
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tower-gemini-commit-{name}-{}", std::process::id()))
    }

    /// A disk in memory that counts flushes and can be made to fail.
    #[derive(Debug, Default, Clone)]
    struct Disk(Arc<(Mutex<Vec<u8>>, AtomicU64, AtomicBool)>);

    impl Disk {
        fn fail(&self) -> io::Result<()> {
            match self.0.2.load(Ordering::Relaxed) {
                true => Err(io::Error::other("no space left on device")),
                false => Ok(()),
            }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(lock(&self.0.0).len() as u64)
        }

        fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
            let from = offset as usize;
            Ok(lock(&self.0.0)[from..from + len].to_vec())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.fail()?;
            lock(&self.0.0).resize(len as usize, 0);
            Ok(())
        }

        fn sync_data(&self, _eventual: bool) -> io::Result<()> {
            self.fail()?;
            self.0.1.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.fail()?;
            let from = offset as usize;
            lock(&self.0.0)[from..from + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    fn over(disk: &Disk, path: PathBuf) -> Writer {
        Writer::start(path, Database::builder().create_with_backend(disk.clone()).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn changes_that_wait_together_share_one_flush() {
        let disk = Disk::default();
        let writer = over(&disk, PathBuf::new());
        let (holds, release) = hold(&writer);
        let waiting: Vec<_> = (0..100).map(|key| writer.change(put(key))).collect();
        let before = disk.0.1.load(Ordering::Relaxed);
        release.send(()).unwrap();
        assert!(holds.await.unwrap());
        for (key, committed) in waiting.into_iter().enumerate() {
            assert_eq!(committed.await.unwrap(), key as u64);
        }
        assert_eq!(rows(&writer), 100);
        // The one that held the thread, and all others together.
        let flushes = disk.0.1.load(Ordering::Relaxed) - before;
        assert!(flushes <= 4, "{flushes} flushes of 101 changes");
    }

    #[tokio::test]
    async fn a_failing_disk_fails_the_changes_and_the_next_one_is_tried_again() {
        let (disk, path) = (Disk::default(), path("fails"));
        // What is opened anew after the failure.
        drop(Database::create(&path).unwrap());
        let writer = over(&disk, path.clone());
        writer.change(put(1)).await.unwrap();
        assert!(writer.problem().is_none());
        disk.0.2.store(true, Ordering::Relaxed);
        let (first, second) = (writer.change(put(2)), writer.change(put(3)));
        let error = first.await.unwrap_err().to_string();
        assert!(error.contains("no space left"), "{error}");
        drop(second.await);
        assert!(writer.failures().load(Ordering::Relaxed) >= 1);
        writer.change(put(4)).await.unwrap();
        assert!(writer.problem().is_none(), "it is written again");
        drop(writer);
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn one_change_that_fails_changes_nothing_of_its_batch() {
        let path = path("batch");
        let writer = Writer::start(path.clone(), Database::create(&path).unwrap()).unwrap();
        writer.change(put(0)).await.unwrap();
        let (holds, release) = hold(&writer);
        let good = writer.change(put(1));
        let bad = writer.change(|_| Err::<(), _>(boxed(redb::StorageError::ValueTooLarge(1))));
        release.send(()).unwrap();
        assert!(holds.await.unwrap());
        assert!(good.await.is_err() && bad.await.is_err());
        assert_eq!(rows(&writer), 1);
        drop(writer);
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn closing_the_writer_commits_what_waits_and_frees_the_file() {
        let path = path("drop");
        let writer = Writer::start(path.clone(), Database::create(&path).unwrap()).unwrap();
        writer.flush_within(Duration::from_secs(3600));
        let all: Vec<_> = (0..50).map(|key| writer.change(put(key))).collect();
        writer.close();
        for committed in all {
            committed.await.unwrap();
        }
        assert!(writer.change(put(1)).await.unwrap_err().to_string().contains("closed"));
        assert!(writer.read(|_| Ok(())).is_err());
        let writer = Writer::start(path.clone(), Database::open(&path).unwrap()).unwrap();
        assert_eq!(rows(&writer), 50);
        drop(writer);
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn relaxed_commits_are_flushed_within_their_time() {
        let disk = Disk::default();
        let writer = over(&disk, PathBuf::new());
        writer.change(put(0)).await.unwrap();
        writer.flush_within(Duration::from_millis(20));
        let before = disk.0.1.load(Ordering::Relaxed);
        for key in 1..100 {
            writer.change(put(key)).await.unwrap();
        }
        assert_eq!(rows(&writer), 100);
        while disk.0.1.load(Ordering::Relaxed) == before {
            thread::yield_now();
        }
    }
}
