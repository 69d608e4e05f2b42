//! What the response of a call may take of the process's memory.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// Accounts for what is held of a call's response, for servers that bound the memory of all calls
/// together. Set with [`CallOptions::memory`](crate::CallOptions::memory).
///
/// It is dropped when the call has ended, which can be long after its client disconnected
/// ([`KeepPaid`](crate::keep_paid)): what it accounts for is free again then.
pub trait CallMemory: fmt::Debug + Send + Sync {
    /// Accounts for so many bytes, all that are held of the response. `false` where there is no
    /// room for them now: they are passed on, and a copy of them is not kept.
    fn try_hold(&self, bytes: usize) -> bool;

    /// Waits for that room. `false` where there will never be any.
    fn hold(self: Arc<Self>, bytes: usize) -> Pin<Box<dyn Future<Output = bool> + Send>>;
}
