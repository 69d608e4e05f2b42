//! Room for responses on their way, held in case that a client disconnects.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::call_memory::CallMemory;
use crate::call_state::CallState;

/// What bounds the bytes that are held of one response.
pub(super) enum Room {
    Unbounded,
    /// The layer's own bound of all responses on their way, taken byte by byte.
    Shared(OwnedSemaphorePermit),
    /// The memory of all calls, which the caller's server accounts for.
    Accounted(Arc<dyn CallMemory>),
}

impl Room {
    pub(super) fn unbounded() -> Self {
        Self::Unbounded
    }

    /// Of the call's own account, or else of what all calls share.
    pub(super) fn of(state: &CallState, shared: Option<&Arc<Semaphore>>) -> Self {
        match (state.memory(), shared) {
            (Some(memory), _) => Self::Accounted(memory.clone()),
            (None, Some(shared)) => match shared.clone().try_acquire_many_owned(0) {
                Ok(permit) => Self::Shared(permit),
                // It is never closed.
                Err(_) => Self::Unbounded,
            },
            (None, None) => Self::Unbounded,
        }
    }

    /// Whether there is room for `bytes` in all, `more` of which are new.
    pub(super) fn holds(&mut self, bytes: usize, more: usize) -> bool {
        match self {
            Self::Unbounded => true,
            Self::Accounted(memory) => memory.try_hold(bytes),
            Self::Shared(room) => {
                let shared = room.semaphore().clone();
                let more = u32::try_from(more).ok();
                let more = more.and_then(|more| shared.try_acquire_many_owned(more).ok());
                more.map(|more| room.merge(more)).is_some()
            }
        }
    }

    /// Waits for room for `bytes` in all, where that is accounted for and can be waited for.
    pub(super) async fn wait_for(&self, bytes: usize) {
        if let Self::Accounted(memory) = self
            && !memory.try_hold(bytes)
        {
            memory.clone().hold(bytes).await;
        }
    }
}
