//! Opens what outlives the process: the state directory, and the store in it or on a server.
//!
//! The directory belongs to one gateway at a time and is probed as long as that runs: what cannot
//! be written is a [`problem`](State::problem), and new paid work is refused meanwhile.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tower_gemini::store::{Journal, QuotaStore, RecordStore, SpendingStore, StoreError};
#[cfg(feature = "postgres")]
use tower_gemini_store::PostgresStore;
#[cfg(feature = "redb")]
use tower_gemini_store::RedbStore;
#[cfg(feature = "redis")]
use tower_gemini_store::RedisStore;

use crate::config::{self, ConfigError, StoreUrl};
use crate::figures::FiguresFile;
#[cfg(any(feature = "redis", feature = "postgres"))]
use crate::log;

/// How often the directory and the store are probed while all is well. Each probe flushes the disk
/// twice.
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// The same while something cannot be written.
const PROBE_AGAIN: Duration = Duration::from_secs(2);
/// A probe that takes longer has failed: what is written at the end of it is of no use to a call.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// What outlives the process; clones share it. The default keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct State(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    dir: Option<Directory>,
    figures: Option<FiguresFile>,
    store: Store,
    secret: [u8; 16],
    problem: Mutex<Option<String>>,
    is_closed: AtomicBool,
}

/// The store that a gateway uses. It has at least one of the features `redb`, `redis` and
/// `postgres`.
#[derive(Clone)]
pub(crate) enum Store {
    /// A file in the state directory.
    #[cfg(feature = "redb")]
    Redb(RedbStore),
    /// A server that replicas share.
    #[cfg(feature = "redis")]
    Redis(Arc<RedisStore>),
    /// The same.
    #[cfg(feature = "postgres")]
    Postgres(Arc<PostgresStore>),
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl State {
    /// Opens what the configuration names, and probes it. Has to be called in a runtime.
    ///
    /// # Errors
    ///
    /// A directory that cannot be made or written or that another gateway uses, a file in it that
    /// is no database, or a server that cannot be reached or written.
    pub(crate) async fn open(config: &config::Server) -> Result<Self, ConfigError> {
        let dir = config.state_dir.clone().map(Directory::open).transpose()?;
        let Some(store) = Store::open(config, dir.as_ref().map(|dir| dir.path.as_path()))? else {
            tracing::warn!(
                "a crash of this process forgets what was paid for, what counts against caps and \
                 the day's requests: set server.state_dir, or server.store to a redis or postgres"
            );
            return Ok(Self::default());
        };
        let unusable = |what: String| ConfigError::at("server.store", what, "");
        let secret = tokio::time::timeout(PROBE_LIMIT, store.secret());
        let secret = secret.await.map_err(|_| unusable(too_slow(&store)))?;
        let secret = secret.map_err(|error| unusable(failed(&store, &error)))?;
        let inner = Inner {
            figures: dir.as_ref().map(|dir| FiguresFile::open(&dir.path)),
            dir,
            store,
            secret,
            problem: Mutex::default(),
            is_closed: AtomicBool::new(false),
        };
        if let Some(problem) = inner.probe().await {
            return Err(unusable(problem));
        }
        let inner = Arc::new(inner);
        tokio::spawn(watch(Arc::downgrade(&inner)));
        Ok(Self(Some(inner)))
    }

    /// Why nothing can be kept at present. Probed every 15 s, and every 2 s while there is one.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let inner = self.0.as_deref()?;
        let probed = inner.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        probed.or_else(|| inner.store.problem())
    }

    /// Writes what waits and frees the directory for the next gateway. What is asked of it later
    /// fails.
    pub(crate) fn close(&self) {
        let Some(inner) = self.0.as_deref() else { return };
        inner.is_closed.store(true, Ordering::Relaxed);
        inner.store.close();
        if let Some(figures) = &inner.figures {
            figures.close();
        }
        if let Some(dir) = &inner.dir {
            drop(dir.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// The state directory.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.0.as_deref()?.dir.as_ref().map(|dir| dir.path.as_path())
    }

    /// Whether other processes have the same store.
    #[cfg(feature = "jobs")]
    pub(crate) fn is_shared(&self) -> bool {
        match self.store() {
            #[cfg(feature = "redis")]
            Some(Store::Redis(_)) => true,
            #[cfg(feature = "postgres")]
            Some(Store::Postgres(_)) => true,
            _ => false,
        }
    }

    /// The figures of the status page, where there is a state directory.
    pub(crate) fn figures(&self) -> Option<&FiguresFile> {
        self.0.as_deref()?.figures.as_ref()
    }

    /// The store, where there is one.
    pub(crate) fn store(&self) -> Option<&Store> {
        self.0.as_deref().map(|inner| &inner.store)
    }

    /// Random bytes that every process that shares this state has: fingerprints that are made with
    /// them are the same in all of them.
    pub(crate) fn secret(&self) -> Option<[u8; 16]> {
        self.0.as_deref().map(|inner| inner.secret)
    }
}

/// Probes as long as the state is in use.
async fn watch(state: Weak<Inner>) {
    let mut pause = PROBE_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let Some(state) = state.upgrade() else { return };
        let found = state.probe().await;
        if state.is_closed.load(Ordering::Relaxed) {
            return;
        }
        pause = if found.is_some() { PROBE_AGAIN } else { PROBE_EVERY };
        let mut problem = state.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*problem, &found) {
            (None, Some(found)) => {
                tracing::error!(problem = found, "state cannot be written: paid work is refused");
            }
            (Some(_), None) => tracing::warn!("state is written again: paid work is taken again"),
            _ => {}
        }
        *problem = found;
        // A store that failed between two probes is probed sooner.
        if state.store.problem().is_some() {
            pause = PROBE_AGAIN;
        }
    }
}

impl Inner {
    async fn probe(&self) -> Option<String> {
        if let Some(dir) = &self.dir {
            let path = dir.path.clone();
            let written = tokio::task::spawn_blocking(move || Directory::probe(&path));
            let problem = match tokio::time::timeout(PROBE_LIMIT, written).await {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(error))) => Some(error.to_string()),
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no write ended within {} s", PROBE_LIMIT.as_secs())),
            };
            if let Some(problem) = problem {
                let path = dir.path.display();
                return Some(format!(
                    "the state directory {path} cannot be written: {problem}; {FREE_THE_DISK}"
                ));
            }
        }
        match tokio::time::timeout(PROBE_LIMIT, self.store.probe()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(failed(&self.store, &error)),
            Err(_) => Some(too_slow(&self.store)),
        }
    }
}

const FREE_THE_DISK: &str = "free or repair its disk";

fn failed(store: &Store, error: &StoreError) -> String {
    format!("the {} cannot be used: {error}; {}", store.name(), store.remedy())
}

fn too_slow(store: &Store) -> String {
    let limit = PROBE_LIMIT.as_secs();
    format!("the {} did not answer within {limit} s; {}", store.name(), store.remedy())
}

impl Store {
    fn open(config: &config::Server, dir: Option<&Path>) -> Result<Option<Self>, ConfigError> {
        match &config.store {
            StoreUrl::Redb => dir.map(|dir| Self::open_redb(dir, config)).transpose(),
            StoreUrl::Redis(url) => Self::open_redis(url, config).map(Some),
            StoreUrl::Postgres(url) => Self::open_postgres(url, config).map(Some),
        }
    }

    #[cfg(feature = "redb")]
    fn open_redb(dir: &Path, config: &config::Server) -> Result<Self, ConfigError> {
        let path = dir.join("state.redb");
        let opened = RedbStore::open(&path).map(|store| store.flush_within(config.flush_within.0));
        opened.map(Self::Redb).map_err(|error| {
            let what = format!("{} cannot be opened: {error}", path.display());
            let remedy =
                "restore it from a backup, or move it away: the state that it held is lost";
            ConfigError::at("server.state_dir", what, remedy)
        })
    }

    #[cfg(not(feature = "redb"))]
    fn open_redb(_dir: &Path, _config: &config::Server) -> Result<Self, ConfigError> {
        let what = "this gateway was built without the feature `redb`";
        Err(ConfigError::at("server.store", what, "write server.store = \"redis://…\""))
    }

    #[cfg(feature = "redis")]
    fn open_redis(url: &str, config: &config::Server) -> Result<Self, ConfigError> {
        if url.starts_with("rediss:") {
            // TLS needs a provider by name where a program has more than one. An earlier one stays.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        log::hide_password(url);
        let wrong = |error: StoreError| ConfigError::at("server.store", error.to_string(), "");
        let mut store = RedisStore::open(url)
            .map_err(wrong)?
            .prefix(&config.store_prefix)
            .replicas(config.store_replicas)
            .max_response_bytes(config.store_bytes.0)
            .restart_hold(config.store_restart_hold.0);
        if let Some(password) = password(config)? {
            store = store.password(&password).map_err(wrong)?;
        }
        Ok(Self::Redis(Arc::new(store)))
    }

    #[cfg(not(feature = "redis"))]
    fn open_redis(_url: &str, _config: &config::Server) -> Result<Self, ConfigError> {
        let what = "this gateway was built without the feature `redis`";
        Err(ConfigError::at("server.store", what, "write server.store = \"redb\""))
    }

    #[cfg(feature = "postgres")]
    fn open_postgres(url: &str, config: &config::Server) -> Result<Self, ConfigError> {
        log::hide_password(url);
        let mut store = PostgresStore::open(url)
            .map_err(|error| ConfigError::at("server.store", error.to_string(), ""))?
            .prefix(&config.store_prefix)
            .max_response_bytes(config.store_bytes.0);
        if let Some(password) = password(config)? {
            store = store.password(&password);
        }
        Ok(Self::Postgres(Arc::new(store)))
    }

    #[cfg(not(feature = "postgres"))]
    fn open_postgres(_url: &str, _config: &config::Server) -> Result<Self, ConfigError> {
        let what = "this gateway was built without the feature `postgres`";
        Err(ConfigError::at("server.store", what, "write server.store = \"redb\""))
    }

    fn name(&self) -> &'static str {
        match *self {
            #[cfg(feature = "redb")]
            Self::Redb(_) => "store in the state directory",
            #[cfg(feature = "redis")]
            Self::Redis(_) => "redis of server.store",
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => "postgres of server.store",
        }
    }

    fn remedy(&self) -> &'static str {
        match *self {
            #[cfg(feature = "redb")]
            Self::Redb(_) => FREE_THE_DISK,
            #[cfg(feature = "redis")]
            Self::Redis(_) => "check that server, its memory and disk, and the connection to it",
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => "check that server, its disk, and the connection to it",
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        match self {
            #[cfg(feature = "redb")]
            Self::Redb(store) => store.probe().await,
            #[cfg(feature = "redis")]
            Self::Redis(store) => store.probe().await,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.probe().await,
        }
    }

    fn close(&self) {
        match self {
            #[cfg(feature = "redb")]
            Self::Redb(store) => store.close(),
            #[cfg(feature = "redis")]
            Self::Redis(_) => {}
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => {}
        }
    }

    /// What the last write found, where that is known without asking.
    fn problem(&self) -> Option<String> {
        match self {
            #[cfg(feature = "redb")]
            Self::Redb(store) => store.problem().map(|error| failed(self, &error)),
            #[cfg(feature = "redis")]
            Self::Redis(_) => None,
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => None,
        }
    }

    async fn secret(&self) -> Result<[u8; 16], StoreError> {
        match self {
            #[cfg(feature = "redb")]
            Self::Redb(store) => store.shared_secret().await,
            #[cfg(feature = "redis")]
            Self::Redis(store) => store.shared_secret().await,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.shared_secret().await,
        }
    }

    /// Records paid calls.
    pub(crate) fn journal(&self) -> Arc<dyn Journal> {
        match self.clone() {
            #[cfg(feature = "redb")]
            Self::Redb(store) => Arc::new(store),
            #[cfg(feature = "redis")]
            Self::Redis(store) => store,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store,
        }
    }

    /// Counts of quotas.
    pub(crate) fn quota(&self) -> Arc<dyn QuotaStore> {
        match self.clone() {
            #[cfg(feature = "redb")]
            Self::Redb(store) => Arc::new(store),
            #[cfg(feature = "redis")]
            Self::Redis(store) => store,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store,
        }
    }

    /// What refusals closed, and what was created through which token.
    pub(crate) fn records(&self) -> Arc<dyn RecordStore> {
        match self.clone() {
            #[cfg(feature = "redb")]
            Self::Redb(store) => Arc::new(store),
            #[cfg(feature = "redis")]
            Self::Redis(store) => store,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store,
        }
    }

    /// What is spent.
    pub(crate) fn spending(&self) -> Arc<dyn SpendingStore> {
        match self.clone() {
            #[cfg(feature = "redb")]
            Self::Redb(store) => Arc::new(store),
            #[cfg(feature = "redis")]
            Self::Redis(store) => store,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store,
        }
    }
}

/// The password of the store, where it is not in its URL.
#[cfg(any(feature = "redis", feature = "postgres"))]
fn password(config: &config::Server) -> Result<Option<String>, ConfigError> {
    let Some(name) = &config.store_password_env else { return Ok(None) };
    let unset = || {
        let what = format!("the environment variable {name} is not set");
        ConfigError::at("server.store_password_env", what, "export it before the start")
    };
    let password = std::env::var(name).map_err(|_| unset())?;
    log::hide(&password);
    Ok(Some(password))
}

/// The state directory, locked for this process until it is dropped or the process ends.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    lock: Mutex<Option<File>>,
}

impl Directory {
    fn open(path: PathBuf) -> Result<Self, ConfigError> {
        let shown = path.display().to_string();
        let unusable = |what: String, remedy: &str| {
            ConfigError::at("server.state_dir", format!("{shown} {what}"), remedy)
        };
        let refused = |error: io::Error| {
            let remedy = "make it writable for this user, or name another directory";
            unusable(format!("cannot be used: {error}"), remedy)
        };
        private_dir(&path).map_err(refused)?;
        let mut lock = File::options();
        lock.create(true).write(true).truncate(false);
        let lock = lock.open(path.join("lock")).map_err(refused)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = "is in use by another gateway".to_owned();
                let remedy = "give each gateway a directory of its own; replicas share a redis or \
                              postgres (server.store)";
                return Err(unusable(what, remedy));
            }
            Err(TryLockError::Error(error)) => return Err(refused(error)),
        }
        Self::probe(&path).map_err(refused)?;
        Ok(Self { path, lock: Mutex::new(Some(lock)) })
    }

    /// Writes a new file to the disk and removes it.
    fn probe(dir: &Path) -> io::Result<()> {
        let path = dir.join("probe");
        let written = File::create(&path).and_then(|mut file| {
            // A block of the disk, so that a full one is noticed.
            file.write_all(&[b'.'; 4096])?;
            file.sync_all()
        });
        let removed = std::fs::remove_file(&path);
        written.and(removed)
    }
}

/// Makes a directory that only its owner can read. One that others can read is warned about.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    let mut dir = std::fs::DirBuilder::new();
    dir.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        dir.mode(0o700).create(path)?;
        let mode = std::fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            let (path, mode) = (path.display(), format!("{:o}", mode & 0o777));
            tracing::warn!(%path, mode, "other users can read the state directory: chmod 0700 it");
        }
        Ok(())
    }
    #[cfg(not(unix))]
    dir.create(path)
}

#[cfg(test)]
impl State {
    /// As a probe would say it.
    pub(crate) fn set_problem(&self, problem: Option<&str>) {
        let inner = self.0.as_deref().unwrap();
        *inner.problem.lock().unwrap() = problem.map(str::to_owned);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Config;

    /// A directory of this test's own, removed at the end.
    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            let name = format!("gemini-gateway-state-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        pub(crate) fn config(&self) -> config::Server {
            let toml = format!("[server]\nstate_dir = {:?}\n", self.0.join("deep/state"));
            Config::parse(&toml, "gateway.toml").unwrap().server
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn the_directory_is_made_for_its_owner_and_serves_one_gateway_at_a_time() {
        let scratch = Scratch::new("one");
        let state = State::open(&scratch.config()).await.unwrap();
        assert_eq!((state.problem(), state.dir().is_some()), (None, true));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(state.dir().unwrap()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
        let error = State::open(&scratch.config()).await.unwrap_err().to_string();
        assert!(error.contains("in use by another gateway"), "{error}");
        assert!(error.contains("server.store"), "says what to do: {error}");
        let secret = state.secret();
        drop(state);
        let state = State::open(&scratch.config()).await.unwrap();
        assert_eq!(state.secret(), secret, "the same after a restart");
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused_and_stays_as_it_was() {
        let scratch = Scratch::new("foreign");
        let dir = scratch.config().state_dir.unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("state.redb"), b"something else").unwrap();
        let error = State::open(&scratch.config()).await.unwrap_err().to_string();
        assert!(error.contains("state.redb cannot be opened"), "{error}");
        assert_eq!(std::fs::read(dir.join("state.redb")).unwrap(), b"something else");
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_made_is_refused_at_start() {
        let scratch = Scratch::new("blocked");
        std::fs::create_dir_all(&scratch.0).unwrap();
        std::fs::write(scratch.0.join("deep"), b"a file in its place").unwrap();
        let error = State::open(&scratch.config()).await.unwrap_err().to_string();
        assert!(error.contains("cannot be used"), "{error}");
    }

    #[tokio::test]
    async fn a_redis_that_cannot_be_reached_is_refused_at_start_without_its_password() {
        let config = "[server]\nstore = \"redis://:very-secret@127.0.0.1:1/0\"\n";
        let config = Config::parse(config, "gateway.toml").unwrap().server;
        let error = State::open(&config).await.unwrap_err().to_string();
        assert!(error.contains("the redis of server.store cannot be used"), "{error}");
        assert!(error.contains("check that server"), "{error}");
        assert!(!format!("{error} {config:?}").contains("very-secret"));
    }

    #[tokio::test]
    async fn nothing_is_kept_and_nothing_fails_without_a_state_dir() {
        let state = State::open(&config::Server::default()).await.unwrap();
        assert!(state.store().is_none() && state.problem().is_none());
    }

    // A directory that is moved away under a running gateway stands for a disk that fails.
    #[tokio::test]
    async fn a_directory_that_goes_away_is_a_problem_until_it_is_back() {
        let scratch = Scratch::new("away");
        let state = State::open(&scratch.config()).await.unwrap();
        let (dir, away) = (state.dir().unwrap().to_owned(), scratch.0.join("away"));
        let inner = state.0.clone().unwrap();
        std::fs::rename(&dir, &away).unwrap();
        let problem = inner.probe().await.unwrap();
        assert!(problem.contains("cannot be written"), "{problem}");
        assert!(problem.contains("free or repair its disk"), "{problem}");
        std::fs::rename(&away, &dir).unwrap();
        assert_eq!(inner.probe().await, None);
    }
}
