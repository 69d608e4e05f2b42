//! The bodies that travel between the layers.
//!
//! Down goes a [`ReplayBody`]: the request's bytes, kept so that they can be sent again, but only
//! for a
//! [`ResendPermit`](crate::verdict::ResendPermit). Up comes a [`JudgedBody`]: the answer's own bytes, unchanged, with a
//! [`Verdict`](crate::verdict::Verdict) beside them.

mod held;
mod judged;
mod peek;
mod replay;

pub use judged::{BodyEnd, BodyGuard, Ended, JudgedBody};
pub use peek::{Decided, Peek, PeekLimits};
pub use replay::{KeptRequest, NotReplayable, ReplayBody};
