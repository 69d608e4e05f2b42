//! What the thread that writes a file shares with its callers. `tests/interleavings` compiles it
//! against shuttle's, and tries its interleavings.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
pub(crate) use std::thread;
