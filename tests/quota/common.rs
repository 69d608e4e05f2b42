//! What the tests share.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tower_gemini::store::{Journal, QuotaStore, RecordStore, SpendingStore};
use tower_gemini_store::{PostgresStore, RedbStore, RedisStore};

pub(crate) const MODEL: &str = "gemini-3.1-flash-image";

/// 2026-03-08 20:00 UTC: the day of a daylight change, at noon Pacific.
pub(crate) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_773_000_000_000)
}

/// A store of every kind.
pub(crate) struct AnyStore {
    pub(crate) quota: Arc<dyn QuotaStore>,
    pub(crate) spending: Arc<dyn SpendingStore>,
    pub(crate) records: Arc<dyn RecordStore>,
    pub(crate) journal: Arc<dyn Journal>,
}

impl AnyStore {
    fn new(store: impl QuotaStore + SpendingStore + RecordStore + Journal + 'static) -> Self {
        let store = Arc::new(store);
        let (quota, spending) = (store.clone(), store.clone());
        Self { quota, spending, records: store.clone(), journal: store }
    }
}

/// Opens the store at a URL, or in a file. A reservation is given up after half a second, and a
/// server that has just started is trusted.
pub(crate) fn open(at: &str) -> AnyStore {
    open_with(at, "test", 256 * 1024 * 1024)
}

/// The same with this prefix and so many bytes of responses, where there are servers.
pub(crate) fn open_with(at: &str, prefix: &str, response_bytes: usize) -> AnyStore {
    let soon = Duration::from_millis(500);
    match at.split_once("://").map_or("", |(scheme, _)| scheme) {
        "redis" => AnyStore::new(
            RedisStore::open(at)
                .unwrap()
                .prefix(prefix)
                .restart_hold(Duration::ZERO)
                .give_up_after(soon)
                .max_response_bytes(response_bytes),
        ),
        "postgres" => AnyStore::new(
            PostgresStore::open(at)
                .unwrap()
                .prefix(prefix)
                .give_up_after(soon)
                .max_response_bytes(response_bytes),
        ),
        _ => AnyStore::new(RedbStore::open(at).unwrap()),
    }
}
