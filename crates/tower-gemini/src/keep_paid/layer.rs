use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tower_layer::Layer;

use super::shared::Shared;
use super::{KeepCounts, KeepPaid, files};
use crate::clock::{Clock, SystemClock};
use crate::stage::CallHandler;

/// Makes [`KeepPaid`] services that share what is kept. A setting that is changed begins anew, with
/// nothing kept.
#[derive(Debug, Clone)]
pub struct KeepPaidLayer {
    shared: Arc<Shared>,
}

/// The settings, with the defaults of the [module](super).
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) max_detached: usize,
    pub(super) max_bytes: usize,
    pub(super) max_time: Duration,
    pub(super) retention: Duration,
    pub(super) grace: Duration,
    pub(super) resend_grace: Duration,
    pub(super) resend_window: Duration,
    pub(super) clock: Arc<dyn Clock>,
}

impl KeepPaidLayer {
    /// The defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        Self::of(Settings {
            max_detached: 64,
            max_bytes: 256 * 1024 * 1024,
            max_time: Duration::from_secs(660),
            retention: Duration::from_secs(600),
            grace: Duration::from_millis(100),
            resend_grace: Duration::from_secs(2),
            resend_window: Duration::from_secs(30),
            clock: Arc::new(SystemClock),
        })
    }

    fn of(settings: Settings) -> Self {
        Self { shared: Arc::new(Shared::new(settings)) }
    }

    fn with(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.shared.settings.clone();
        change(&mut settings);
        Self::of(settings)
    }

    /// How many attempts are finished without their callers at once. What comes beyond is dropped,
    /// and told as lost.
    #[must_use]
    pub fn max_detached(self, calls: usize) -> Self {
        self.with(|settings| settings.max_detached = calls)
    }

    /// How many bytes of answers are kept. The oldest go first.
    #[must_use]
    pub fn max_kept_bytes(self, bytes: usize) -> Self {
        self.with(|settings| settings.max_bytes = bytes)
    }

    /// How long an attempt may take without its caller.
    #[must_use]
    pub fn max_detached_time(self, time: Duration) -> Self {
        self.with(|settings| settings.max_time = time)
    }

    /// How long an answer waits for its caller.
    #[must_use]
    pub fn retention(self, time: Duration) -> Self {
        self.with(|settings| settings.retention = time)
    }

    /// How long a request waits for an identical one of the same caller to be left by its client:
    /// that a client has hung up may be noticed after its next request has come.
    #[must_use]
    pub fn grace(self, time: Duration) -> Self {
        self.with(|settings| settings.grace = time)
    }

    /// The same for a request that says that it is a resend (`x-stainless-retry-count` above 0).
    #[must_use]
    pub fn resend_grace(self, time: Duration) -> Self {
        self.with(|settings| settings.resend_grace = time)
    }

    /// How long an answer that seemed delivered is kept for a request that says that it is a
    /// resend: the end of an answer can be lost in the buffers of a socket. Only for clients that
    /// mark their resends.
    #[must_use]
    pub fn resend_window(self, time: Duration) -> Self {
        self.with(|settings| settings.resend_window = time)
    }

    /// The wall clock that answers are dated by when they are written down.
    #[must_use]
    pub fn clock(self, clock: impl Clock + 'static) -> Self {
        self.with(|settings| settings.clock = Arc::new(clock))
    }

    /// What is kept and what became of the rest.
    #[must_use]
    pub fn counts(&self) -> KeepCounts {
        self.shared.counts()
    }

    /// Waits until nothing is being finished without its caller, at most this long. `false` where
    /// something still was.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting and nothing else.
    pub async fn drain(&self, within: Duration) -> bool {
        self.shared.drain(within).await
    }

    /// Writes down every answer that nobody has come for, every loss that nobody was told of, and
    /// what became of each call with an `Idempotency-Key`, each in a file of its own; gives their
    /// number. What is not finished yet is written down as lost. What is written down already stays
    /// as it is.
    ///
    /// A file is written under another name and renamed when it is whole, is readable by its owner
    /// alone, and holds no credential.
    ///
    /// # Errors
    ///
    /// The first error of the file system. What was written before stays.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future lets the writing go on.
    pub async fn save_to(&self, dir: impl Into<PathBuf>) -> io::Result<usize> {
        let (dir, shared) = (dir.into(), self.shared.clone());
        files::blocking(move || {
            let _alone = shared.saving.lock().unwrap_or_else(PoisonError::into_inner);
            files::save(&dir, &shared.waiting(), shared.settings.clock.now())
        })
        .await
    }

    /// Takes in what [`save_to`](Self::save_to) wrote down, and gives the number of what it took:
    /// answers, losses and calls with a key. A file goes when its answer has been given, its loss
    /// told, or when it has become too old, so that a process that is killed in between loses
    /// nothing. A damaged file is renamed to `*.damaged`; one that cannot be read, or is of another
    /// version, stays.
    ///
    /// # Errors
    ///
    /// The directory cannot be read. One that is not there is empty.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the files where they are.
    pub async fn load_from(&self, dir: impl Into<PathBuf>) -> io::Result<usize> {
        let (dir, settings) = (dir.into(), self.shared.settings.clone());
        let now = tokio::time::Instant::now();
        let found = files::blocking(move || {
            files::load(&dir, settings.retention, settings.clock.now(), now)
        })
        .await?;
        Ok(self.shared.take_in(found))
    }
}

impl Default for KeepPaidLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: CallHandler> Layer<S> for KeepPaidLayer {
    type Service = KeepPaid<S>;

    fn layer(&self, inner: S) -> Self::Service {
        KeepPaid::new(inner, self.shared.clone())
    }
}
