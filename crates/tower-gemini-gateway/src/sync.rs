//! The lock and the counter of the queue. `tests/interleavings` compiles it against shuttle's, and
//! tries its interleavings.

pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};
