//! Circuits that outlive a process, and are shared.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::circuit_states::Cooldowns;
use super::circuit_tests::{at, bad_key, overloaded, spent_day};
use super::circuits::Circuits;
use crate::clock::RuntimeClock;
use crate::store::MemoryStore;
use crate::trail::SkipReason;
use tokio::time::Instant;
use tower_gemini_core::call::ImageSize;
use tower_gemini_core::verdict::Verdict;

const HOUR: Duration = Duration::from_secs(3600);

struct World {
    store: Arc<MemoryStore>,
    clock: RuntimeClock,
}

impl World {
    fn new() -> Self {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_773_000_000);
        let clock = RuntimeClock::starting_at(start);
        Self { store: Arc::new(MemoryStore::new().clock(clock)), clock }
    }

    /// A process that has just started.
    async fn process(&self) -> Circuits {
        let circuits = Circuits::default();
        circuits.share(self.store.clone(), self.clock);
        circuits.refresh().await.unwrap();
        circuits
    }
}

async fn fail(circuits: &Circuits, verdict: &Verdict, times: usize) {
    for _ in 0..times {
        let guard = circuits.admit(at(ImageSize::K1, "payer"), Instant::now(), false).unwrap();
        guard.settle(Instant::now(), verdict, 5 * HOUR, &Cooldowns::recommended());
    }
    tokio::task::yield_now().await;
}

fn is_open(circuits: &Circuits) -> Option<Duration> {
    match circuits.check(&at(ImageSize::K1, "payer"), Instant::now(), false) {
        Err(SkipReason::CircuitOpen { left }) => Some(left),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_day_is_not_tried_anew_after_a_restart_until_midnight() {
    let world = World::new();
    fail(&world.process().await, &spent_day(), 1).await;
    tokio::time::advance(2 * HOUR).await;
    let restarted = world.process().await;
    assert_eq!(is_open(&restarted), Some(3 * HOUR));
    tokio::time::advance(3 * HOUR).await;
    assert_eq!(is_open(&restarted), None, "one call may probe it");
    assert_eq!(world.process().await.snapshot(), [], "it is over");
}

#[tokio::test(start_paused = true)]
async fn an_account_that_is_refused_rests_in_every_process_until_it_works() {
    let world = World::new();
    let (ours, theirs) = (world.process().await, world.process().await);
    fail(&ours, &bad_key(), 2).await;
    assert_eq!(theirs.refresh().await.unwrap(), 1);
    assert!(is_open(&theirs).is_some());
    tokio::time::advance(HOUR).await;
    let probe = ours.admit(at(ImageSize::K1, "payer"), Instant::now(), false).unwrap();
    probe.settle(Instant::now(), &Verdict::delivering(), HOUR, &Cooldowns::recommended());
    tokio::task::yield_now().await;
    assert_eq!(world.process().await.snapshot(), []);
    // An operator opens all of them.
    fail(&ours, &bad_key(), 2).await;
    assert!(is_open(&world.process().await).is_some());
    ours.reset();
    tokio::task::yield_now().await;
    assert_eq!(world.process().await.snapshot(), []);
}

#[tokio::test(start_paused = true)]
async fn an_overload_is_nobody_elses_business() {
    let world = World::new();
    let ours = world.process().await;
    fail(&ours, &overloaded(), 3).await;
    assert!(is_open(&ours).is_some());
    assert_eq!(world.process().await.snapshot(), []);
}
