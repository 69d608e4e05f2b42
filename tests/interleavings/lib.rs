//! What calls share, under every interleaving of threads that shuttle finds.
//!
//! The files that hold the shared state are compiled here once more, from where they are. They take
//! their locks and atomics from `crate::sync`, which is shuttle's here. What else they import is the
//! library's own, or stands in for what is private there and shares nothing.

#![allow(missing_docs, unreachable_pub, dead_code, reason = "the files belong to other crates")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod sync {
    pub(crate) use shuttle::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;
}

pub(crate) use tower_gemini::{clock, store};

#[path = "../../crates/tower-gemini/src/call_memory.rs"]
mod call_memory;
#[path = "../../crates/tower-gemini/src/call_state.rs"]
mod call_state;
pub mod call_states;
mod error;
pub mod fair_queue;
pub mod jittered_retry;
#[path = "../../crates/tower-gemini-gateway/src/queue.rs"]
mod queue;
mod reservation;
pub mod spending;
mod trail;
pub mod walk;

use std::future::Future;
use std::time::Duration;

/// Tries interleavings: at random, and with few switches at the worst moments.
fn check(run: impl Fn() + Send + Sync + Copy + 'static) {
    // Nobody drives its timers, so none fires: who is not woken waits for ever, which shuttle
    // reports.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let _entered = runtime.enter();
    shuttle::check_random(run, 2_000);
    shuttle::check_pct(run, 1_000, 3);
}

/// Runs these threads to their ends.
fn join(threads: impl IntoIterator<Item = impl FnOnce() + Send + 'static>) {
    let threads: Vec<_> = threads.into_iter().map(shuttle::thread::spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Looks at a future once, and drops it.
fn look_once<F: Future>(future: F) -> Option<F::Output> {
    futures::FutureExt::now_or_never(future)
}

const LONG: Duration = Duration::from_secs(3600);
