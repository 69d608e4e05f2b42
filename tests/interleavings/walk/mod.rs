//! The circuit breakers.

use std::time::Duration;

use shuttle::future::block_on;
use shuttle::sync::Arc;
use tokio::time::Instant;
use tower_gemini_core::verdict::Verdict;

use crate::sync::{AtomicUsize, Ordering};
use crate::{check, join};
use circuit_states::{Cooldowns, Keys};
use circuits::Circuits;

#[path = "../../../crates/tower-gemini/src/walk/circuit_states.rs"]
mod circuit_states;
#[path = "../../../crates/tower-gemini/src/walk/circuits.rs"]
mod circuits;
#[path = "../../../crates/tower-gemini/src/walk/shared_circuits.rs"]
mod shared_circuits;

fn keys() -> Keys {
    Keys::new("m", None, "", "p")
}

/// The circuits of a model that failed three times, and a moment at which it may be probed.
fn after_an_outage() -> (Circuits, Instant) {
    let (circuits, now) = (Circuits::default(), Instant::now());
    for _ in 0..3 {
        let guard = circuits.admit(keys(), now, false).unwrap();
        guard.settle(now, &Verdict::interrupted(), Duration::ZERO, &Cooldowns::recommended());
    }
    assert!(circuits.is_open(&keys()));
    (circuits, now + Duration::from_secs(3600))
}

/// Probes that come to nothing are left to the next of those who wait, one at a time.
pub fn one_call_probes_at_a_time_and_no_wake_is_lost() {
    check(|| {
        let (circuits, now) = after_an_outage();
        let probes = Arc::new(AtomicUsize::new(0));
        join((0..3).map(|_| {
            let (circuits, probes) = (circuits.clone(), probes.clone());
            move || {
                let guard = block_on(async {
                    loop {
                        let changed = circuits.changed();
                        match circuits.admit(keys(), now, false) {
                            Ok(guard) => break guard,
                            Err(_) => changed.await,
                        }
                    }
                });
                assert!(guard.is_probe());
                assert_eq!(probes.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                shuttle::thread::yield_now();
                probes.fetch_sub(1, Ordering::SeqCst);
            }
        }));
    });
}

pub fn no_more_calls_wait_than_may() {
    check(|| {
        let circuits = Circuits::default();
        let waiting = Arc::new(AtomicUsize::new(0));
        join((0..4).map(|_| {
            let (circuits, waiting) = (circuits.clone(), waiting.clone());
            move || {
                let Some(_place) = circuits.wait(2) else { return };
                assert!(waiting.fetch_add(1, Ordering::SeqCst) < 2);
                shuttle::thread::yield_now();
                waiting.fetch_sub(1, Ordering::SeqCst);
            }
        }));
        assert!(circuits.wait(1).is_some(), "all have left");
    });
}
