//! The locks and atomics of what calls share. `tests/interleavings` compiles the files that take
//! them from here against shuttle's, and tries their interleavings.

pub(crate) use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use tokio::sync::Notify;
