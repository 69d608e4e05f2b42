use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use super::registry::Registry;
use super::service::StorableService;
use super::{KeepCounts, KeepPaid, Settings};
use crate::clock::Clock;
use crate::store::Journal;

/// Makes [`KeepPaid`] services that share their stored responses. Changing a setting starts anew,
/// with nothing stored.
#[derive(Debug, Clone)]
pub struct KeepPaidLayer {
    registry: Arc<Registry>,
    is_off: bool,
}

impl KeepPaidLayer {
    /// Creates a layer with the defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        Self::from_settings(Settings::default())
    }

    /// Stores nothing: a call ends with its client.
    #[must_use]
    pub fn off() -> Self {
        Self { is_off: true, ..Self::new() }
    }

    fn from_settings(settings: Settings) -> Self {
        Self { registry: Arc::new(Registry::new(settings)), is_off: false }
    }

    fn with(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.registry.settings.clone();
        change(&mut settings);
        Self { is_off: self.is_off, ..Self::from_settings(settings) }
    }

    /// Sets how many calls are completed without their clients at once. Further ones are dropped and
    /// reported as lost.
    #[must_use]
    pub fn max_detached(self, calls: usize) -> Self {
        self.with(|settings| settings.max_detached = calls)
    }

    /// Sets how many bytes of responses are stored. The oldest make room first.
    #[must_use]
    pub fn max_stored_bytes(self, bytes: usize) -> Self {
        self.with(|settings| settings.max_bytes = bytes)
    }

    /// Sets how long a call may take without its client.
    #[must_use]
    pub fn max_detached_time(self, time: Duration) -> Self {
        self.with(|settings| settings.max_time = time)
    }

    /// Sets how long a stored response waits for its client.
    #[must_use]
    pub fn retention(self, time: Duration) -> Self {
        self.with(|settings| settings.retention = time)
    }

    /// Sets how long a request waits for the client of an identical one to disconnect: a disconnect
    /// may be noticed after the client's next request has come.
    #[must_use]
    pub fn grace(self, time: Duration) -> Self {
        self.with(|settings| settings.grace = time)
    }

    /// Sets the same for a request that is marked as a resend (`x-stainless-retry-count` above 0).
    #[must_use]
    pub fn resend_grace(self, time: Duration) -> Self {
        self.with(|settings| settings.resend_grace = time)
    }

    /// Sets how long a delivered response is kept for a request that is marked as a resend: the end
    /// of a response can be lost in the buffers of a socket. Only for clients that mark their
    /// resends. A journal keeps it as long, for the resends that land on other processes.
    #[must_use]
    pub fn resend_window(self, time: Duration) -> Self {
        self.with(|settings| settings.resend_window = time)
    }

    /// Sets how long identical requests are told of a loss, counted from the last of them: some
    /// SDKs resend by themselves whatever they hear. It ends at the latest a retention and this
    /// long after the first.
    #[must_use]
    pub fn loss_window(self, time: Duration) -> Self {
        self.with(|settings| settings.loss_window = time)
    }

    /// Sets the wall clock that dates stored responses in their files.
    #[must_use]
    pub fn clock(self, clock: impl Clock + 'static) -> Self {
        self.with(|settings| settings.clock = Arc::new(clock))
    }

    /// Records each attempt of a call here before its first byte, and what becomes of the call, so
    /// that nothing is paid twice across crashes and processes. An attempt that cannot be recorded
    /// is not sent. Default: none, what is stored ends with the process.
    #[must_use]
    pub fn journal(self, journal: Arc<dyn Journal>) -> Self {
        self.with(|settings| settings.journal = Some(journal))
    }

    /// Returns what is stored now, and what became of the rest.
    #[must_use]
    pub fn counts(&self) -> KeepCounts {
        self.registry.counts()
    }

    /// Waits until no call is being completed without its client, for at most `within`. Returns
    /// `false` where one still is.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting and nothing else.
    pub async fn drain(&self, within: Duration) -> bool {
        self.registry.drain(within).await
    }

    /// Saves each stored response, each loss that was not reported, and the result of each
    /// `Idempotency-Key` to a file in `dir`. Returns their number.
    ///
    /// A call in flight is saved as lost. A file that is up to date stays as it is. Each file is
    /// written under another name and then renamed, is readable by its owner alone, and holds no
    /// credential.
    ///
    /// # Errors
    ///
    /// The first error of the file system. The other files are written all the same.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop the writing.
    pub async fn save_to(&self, dir: impl Into<PathBuf>) -> io::Result<usize> {
        self.registry.clone().save_to(dir.into()).await
    }

    /// Takes in what [`save_to`](Self::save_to) saved. Returns the number of calls taken in:
    /// responses, losses and results of keys.
    ///
    /// A file is deleted when its response was delivered, its loss reported, or when it has become
    /// too old, so that a process that is killed in between loses nothing. A damaged file is renamed
    /// to `*.damaged`. One that cannot be read, or has another format version, stays and is warned
    /// about.
    ///
    /// # Errors
    ///
    /// The directory cannot be read. A missing one counts as empty.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the files where they are; what was read until then is taken in.
    pub async fn load_from(&self, dir: impl Into<PathBuf>) -> io::Result<usize> {
        self.registry.clone().load_from(dir.into()).await
    }
}

impl Default for KeepPaidLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: StorableService> Layer<S> for KeepPaidLayer {
    type Service = KeepPaid<S>;

    fn layer(&self, inner: S) -> Self::Service {
        KeepPaid::new(inner, (!self.is_off).then(|| self.registry.clone()))
    }
}
