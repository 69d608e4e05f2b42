//! Every store by the same rules, and stores that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, advance, sleep, timeout};
use tower_gemini::clock::RuntimeClock;
use tower_gemini::quota_guard::{
    Limits, QuotaDimension, QuotaGuardLayer, QuotaKey, RestReason, StoreFailure,
};
use tower_gemini::store::{Exchange, ExchangeFuture, MemoryStore, QuotaStore, StoreError};

use crate::common::{MODEL, start};

fn key() -> QuotaKey {
    QuotaKey::new("default", MODEL)
}

fn process(store: Arc<dyn QuotaStore>, limits: Limits) -> QuotaGuardLayer {
    QuotaGuardLayer::new(limits).clock(RuntimeClock::starting_at(start())).store(store)
}

/// Several layers over one store, at full demand: what each took, and when.
async fn share(
    store: Arc<dyn QuotaStore>,
    limits: Limits,
    processes: usize,
    seconds: u64,
) -> (Vec<(Duration, usize)>, u64) {
    let began = Instant::now();
    let layers: Vec<_> = (0..processes).map(|_| process(store.clone(), limits)).collect();
    let mut workers: FuturesUnordered<_> = layers
        .iter()
        .enumerate()
        .flat_map(|(i, layer)| {
            let handle = layer.handle(&key()).unwrap();
            (0..4).map(move |_| {
                let handle = handle.clone();
                async move {
                    let mut taken = Vec::new();
                    let end = began + Duration::from_secs(seconds);
                    while let Ok(mut reservation) = handle.reserve(10, 1, Some(end)).await {
                        reservation.sent();
                        taken.push((began.elapsed(), i));
                        reservation.settle(None);
                        // A full lease must not be drained in no time at all, or time never moves.
                        sleep(Duration::from_millis(3)).await;
                    }
                    taken
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    while let Some(taken) = workers.next().await {
        all.extend(taken);
    }
    all.sort_unstable();
    let exchanges = layers.iter().map(|layer| layer.counts().store_exchanges).sum();
    (all, exchanges)
}

fn most_in_a_window(taken: &[(Duration, usize)]) -> usize {
    let mut from = 0;
    taken
        .iter()
        .enumerate()
        .map(|(i, (at, _))| {
            while taken[from].0 + Duration::from_secs(60) <= *at {
                from += 1;
            }
            i + 1 - from
        })
        .max()
        .unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn layers_that_share_a_store_keep_one_limit_and_use_it() {
    let store = Arc::new(MemoryStore::new().clock(RuntimeClock::starting_at(start())));
    let (taken, exchanges) = share(store, Limits::unlimited().rpm(3_000), 3, 600).await;
    assert!(most_in_a_window(&taken) <= 3_000, "{}", most_in_a_window(&taken));
    assert!(taken.len() * 100 >= 3_000 * 10 * 95, "{} of {}", taken.len(), 30_000);
    assert!(
        exchanges * 10 <= taken.len() as u64,
        "{exchanges} exchanges for {} requests",
        taken.len()
    );
    // None of them was starved.
    for process in 0..3 {
        assert!(taken.iter().filter(|(_, i)| *i == process).count() > taken.len() / 10);
    }
}

#[tokio::test(start_paused = true)]
async fn small_limits_are_shared_exactly_too() {
    let store = Arc::new(MemoryStore::new().clock(RuntimeClock::starting_at(start())));
    let (taken, _) = share(store, Limits::unlimited().rpm(10).ipm(10), 4, 600).await;
    assert!(most_in_a_window(&taken) <= 10);
    assert!(taken.len() >= 95, "{}", taken.len());
}

#[tokio::test(start_paused = true)]
async fn what_a_quiet_process_had_left_goes_back_to_the_others() {
    let store = Arc::new(MemoryStore::new().clock(RuntimeClock::starting_at(start())));
    let layer = process(store.clone(), Limits::unlimited().rpd(1_000));
    let handle = layer.handle(&key()).unwrap();
    // A burst makes its leases grow; then it goes quiet in the middle of one.
    for _ in 0..50 {
        handle.reserve(1, 1, None).await.unwrap().settle(None);
    }
    assert!(store.taken(&key()).get(QuotaDimension::RequestsPerDay) > 50);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(store.taken(&key()).get(QuotaDimension::RequestsPerDay), 50);
}

/// A store that can be made to fail or to hang.
#[derive(Debug)]
struct Moody {
    inner: MemoryStore,
    hangs: AtomicBool,
    fails: AtomicBool,
    asked: AtomicU32,
}

impl Moody {
    fn new() -> Arc<Self> {
        let inner = MemoryStore::new().clock(RuntimeClock::starting_at(start()));
        Arc::new(Self {
            inner,
            hangs: AtomicBool::new(false),
            fails: AtomicBool::new(false),
            asked: AtomicU32::new(0),
        })
    }
}

impl QuotaStore for Moody {
    fn exchange(&self, exchange: Exchange) -> ExchangeFuture {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.hangs.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        if self.fails.load(Ordering::Relaxed) {
            return Box::pin(std::future::ready(Err(StoreError::new("down"))));
        }
        let reply = self.inner.exchange(exchange);
        Box::pin(async move {
            sleep(Duration::from_millis(5)).await;
            reply.await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_never_hangs_a_call() {
    let store = Moody::new();
    store.hangs.store(true, Ordering::Relaxed);
    let layer = process(store.clone(), Limits::unlimited().rpm(100));
    let handle = layer.handle(&key()).unwrap();
    let began = Instant::now();
    let denied = handle.reserve(1, 1, Some(began + Duration::from_secs(3))).await.unwrap_err();
    assert!(began.elapsed() <= Duration::from_secs(4));
    assert_eq!(denied.rest, Some(RestReason::Store));
    assert!(layer.counts().store_failures >= 1);
    // It answers again: so do we.
    store.hangs.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(2)).await;
    handle.reserve(1, 1, Some(Instant::now() + Duration::from_secs(3))).await.unwrap().give_back();
}

#[tokio::test(start_paused = true)]
async fn open_on_the_last_lease_keeps_the_pace_that_was_granted() {
    let store = Moody::new();
    let layer = process(store.clone(), Limits::unlimited().rpm(100).rpd(500))
        .on_store_failure(StoreFailure::OpenOnLastLease);
    let handle = layer.handle(&key()).unwrap();
    for _ in 0..30 {
        handle.reserve(1, 1, None).await.unwrap().settle(None);
    }
    store.fails.store(true, Ordering::Relaxed);
    advance(Duration::from_secs(30)).await;
    // In the same minute nothing more than it had; in the next as much again, and reported when the
    // store is back.
    assert!(handle.reserve(1, 1, Some(Instant::now() + Duration::from_secs(5))).await.is_err());
    sleep(Duration::from_secs(40)).await;
    let mut taken = 0;
    while let Ok(reservation) =
        handle.reserve(1, 1, Some(Instant::now() + Duration::from_secs(5))).await
    {
        reservation.settle(None);
        taken += 1;
    }
    assert_eq!(taken, 30);
    store.fails.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(90)).await;
    handle.reserve(1, 1, Some(Instant::now() + Duration::from_secs(5))).await.unwrap().settle(None);
    layer.flush().await;
    let counted = store.inner.taken(&key()).get(QuotaDimension::RequestsPerDay);
    // What was left of the last lease could not be given back: at most a sixteenth of the limit.
    assert!((61..=67).contains(&counted), "{counted}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_never_had_a_lease_stays_closed() {
    let store = Moody::new();
    store.fails.store(true, Ordering::Relaxed);
    let layer = process(store, Limits::unlimited().rpm(100))
        .on_store_failure(StoreFailure::OpenOnLastLease);
    let handle = layer.handle(&key()).unwrap();
    assert!(handle.reserve(1, 1, Some(Instant::now() + Duration::from_secs(2))).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_not_lost_when_its_asker_goes_away() {
    let store = Moody::new();
    let layer = process(store.clone(), Limits::unlimited().rpm(100));
    let handle = layer.handle(&key()).unwrap();
    for wait_ms in [0, 1, 2, 1] {
        // Dropped while the store is being asked.
        let asked = timeout(Duration::from_millis(wait_ms), handle.reserve(1, 1, None)).await;
        assert!(asked.is_err());
    }
    handle.reserve(1, 1, None).await.unwrap().settle(None);
    assert_eq!(
        store.asked.load(Ordering::Relaxed),
        1,
        "the exchange that was left behind was finished"
    );
    assert_eq!(handle.usage().waiting, 0);
    assert_eq!(store.inner.taken(&key()).get(QuotaDimension::RequestsPerMinute), 1);
}
