//! The bodies that travel between the layers.
//!
//! Down goes a [`CallBody`], then an [`AttemptBody`], then a [`WireBody`]: the type of a request's
//! body says how far down the stack it is. Up comes a [`JudgedBody`]: the response's own bytes,
//! unchanged, with a [`Verdict`] beside them.

mod chunks;
mod judged;
mod peek;
mod request;

pub(crate) use chunks::Chunks;
pub(crate) use judged::verdict_of;
pub use judged::{BodyEnd, BodyGuard, Ended, JudgedBody};
pub(crate) use peek::Peek;
pub use peek::PeekLimits;
pub use request::{AttemptBody, CallBody, WireBody};
pub(crate) use request::{RequestTemplate, and_held, instead_of};
use tower_gemini_core::verdict::Verdict;

/// A body whose response was judged.
pub trait HasVerdict {
    /// What the response means, where it is known.
    fn verdict(&self) -> Option<&Verdict>;
}

impl<B> HasVerdict for JudgedBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        Some(self.verdict())
    }
}
