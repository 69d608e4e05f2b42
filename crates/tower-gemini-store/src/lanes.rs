//! Writes a journal to a server: the changes of a call one after another, and that the process
//! lives.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tower_gemini::store::{JournalChange, JournalFuture, StoreError};

/// How often a process says that it is alive, and how long it counts as alive after that. Another
/// process that finds a call of it waits for at most the one to know that it is alive, and for the
/// other to know that it is not.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
pub(crate) const LEASE: Duration = Duration::from_secs(8);

/// Changes of different calls do not wait for each other, unless they share a lane: a response of
/// many megabytes takes its time.
const LANES: usize = 16;

/// Talks to the server on behalf of the lanes, and holds nothing that keeps them alive.
pub(crate) trait JournalWriter: Clone + Send + Sync + 'static {
    /// Makes one change.
    fn make(
        &self,
        call: u128,
        change: JournalChange,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Says that this process is alive.
    fn beat(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What a process needs to write a journal: shared by the clones of a store.
#[derive(Debug, Default)]
pub(crate) struct Lanes(OnceLock<Vec<mpsc::UnboundedSender<Job>>>);

#[derive(Debug)]
struct Job {
    call: u128,
    change: JournalChange,
    reply: oneshot::Sender<Result<bool, StoreError>>,
}

impl Lanes {
    /// Queues a change behind the earlier ones of its call. The lanes are started by the first one.
    pub(crate) fn write<W: JournalWriter>(
        &self,
        writer: impl FnOnce() -> W,
        call: u128,
        change: JournalChange,
    ) -> JournalFuture<bool> {
        let (reply, made) = oneshot::channel();
        let job = Job { call, change, reply };
        // A lane for each call: its changes stay in their order.
        let lane = usize::try_from(call % LANES as u128).unwrap_or(0);
        if let Some(lane) = self.started(writer).and_then(|lanes| lanes.get(lane)) {
            // Without the task the reply is dropped, which is the error below.
            let _ = lane.send(job);
        }
        Box::pin(async move {
            made.await.unwrap_or_else(|_| {
                Err(StoreError::new("the tasks that write the journal have ended"))
            })
        })
    }

    /// The lanes. `None` outside of a runtime, where none was started before.
    fn started<W: JournalWriter>(
        &self,
        writer: impl FnOnce() -> W,
    ) -> Option<&[mpsc::UnboundedSender<Job>]> {
        if self.0.get().is_none() {
            let runtime = tokio::runtime::Handle::try_current().ok()?;
            self.0.get_or_init(|| {
                let (writer, alive) = (writer(), Arc::new(()));
                runtime.spawn(keep_beating(writer.clone(), Arc::downgrade(&alive)));
                let start = |_| {
                    let (lane, jobs) = mpsc::unbounded_channel();
                    runtime.spawn(work(writer.clone(), jobs, alive.clone()));
                    lane
                };
                (0..LANES).map(start).collect()
            });
        }
        self.0.get().map(Vec::as_slice)
    }
}

/// Makes the changes of one lane, one after another.
async fn work<W: JournalWriter>(
    writer: W,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    _alive: Arc<()>,
) {
    while let Some(Job { call, change, reply }) = jobs.recv().await {
        let made = writer.make(call, change).await;
        if let Err(error) = &made {
            tracing::warn!(%error, "the journal's server did not take a change");
        }
        // Nobody may be waiting any more.
        let _ = reply.send(made);
    }
}

/// Says that this process is alive, as long as its lanes are.
async fn keep_beating<W: JournalWriter>(writer: W, alive: Weak<()>) {
    while alive.strong_count() > 0 {
        if let Err(error) = writer.beat().await {
            tracing::debug!(%error, "the journal's server was not told that we are alive");
        }
        tokio::time::sleep(BEAT).await;
    }
}
