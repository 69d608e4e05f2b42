//! What calls share, under every interleaving of threads that shuttle finds.
//!
//! The files that hold the shared state are compiled here once more, from where they are. They
//! take their locks and atomics from `crate::sync`, which is shuttle's here. What else they import
//! is the library's own, or stands in for what is private there and shares nothing.
//!
//! Not here: the calls that `KeepPaid` knows, the memory of one request, and an account in a
//! store. Their files import too much of their crates.

// As a test of its own it would run the tests of those files, outside of shuttle.
#![cfg(not(test))]
#![allow(missing_docs, unreachable_pub, dead_code, reason = "the files belong to other crates")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod sync {
    pub(crate) use shuttle::sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering,
    };
    pub(crate) use shuttle::sync::{Mutex, MutexGuard, mpsc};
    pub(crate) use shuttle::thread;
    pub(crate) use std::sync::PoisonError;

    use tokio::sync::futures::Notified;

    /// Tokio's, before each of whose steps another thread may come.
    #[derive(Debug, Default)]
    pub(crate) struct Notify {
        inner: tokio::sync::Notify,
        switch: AtomicUsize,
    }

    impl Notify {
        pub(crate) fn notified(&self) -> Notified<'_> {
            self.switch.load(Ordering::SeqCst);
            self.inner.notified()
        }

        pub(crate) fn notify_waiters(&self) {
            self.switch.load(Ordering::SeqCst);
            self.inner.notify_waiters();
        }
    }
}

pub(crate) use tower_gemini::{clock, store};
mod body {
    pub(crate) use crate::refusal::{JudgedBody, RequestTemplate};
}
mod stage {
    pub(crate) use crate::refusal::UpstreamBody;
}

#[path = "../../crates/tower-gemini/src/call_memory.rs"]
mod call_memory;
#[path = "../../crates/tower-gemini/src/call_state.rs"]
mod call_state;
pub mod call_states;
#[path = "../../crates/tower-gemini-store/src/redb/commit.rs"]
mod commit;
mod error;
pub mod fair_queue;
pub mod jittered_retry;
#[path = "../../crates/tower-gemini-gateway/src/queue.rs"]
mod queue;
mod refusal;
mod reservation;
pub mod spending;
mod trail;
pub mod walk;
pub mod writer;

use std::future::Future;
use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};
use tokio::runtime::Runtime;

/// Nobody drives its timers, so none fires: who is not woken waits for ever, which shuttle reports.
fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap()
}

/// Tries interleavings: at random, and with few switches at the worst moments.
fn check(run: impl Fn() + Send + Sync + Clone + 'static) {
    check_on(&runtime(), 1_000, run);
}

fn check_on(runtime: &Runtime, times: usize, run: impl Fn() + Send + Sync + Clone + 'static) {
    let _entered = runtime.enter();
    let mut config = Config::new();
    // The futures of a debug build are large.
    config.stack_size = 1 << 20;
    Runner::new(RandomScheduler::new(2 * times), config.clone()).run(run.clone());
    Runner::new(PctScheduler::new(3, times), config).run(run);
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
