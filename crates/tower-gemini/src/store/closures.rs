//! Stores that share what refusals closed, so that a restart or another process does not try it
//! anew.

use std::fmt;
use std::time::SystemTime;

use tower_gemini_core::verdict::Outcome;

use super::SpendingFuture;

/// An open circuit that only time or people close: a spent quota, an account without credit, a
/// model that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closure {
    /// The name of the [`Circuit`](crate::model_fallback::Circuit). It contains no secret.
    pub name: String,
    /// Until when it is left alone.
    pub until: SystemTime,
    /// How many times in a row it opened.
    pub trips: u32,
    /// What it failed with.
    pub cause: Outcome,
}

impl Closure {
    /// A closure. For implementations of [`ClosureStore`].
    #[must_use]
    pub fn new(name: String, until: SystemTime, trips: u32, cause: Outcome) -> Self {
        Self { name, until, trips, cause }
    }

    /// Reads the name of an outcome, as [`Outcome::as_str`] writes it.
    #[must_use]
    pub fn cause(name: &str) -> Option<Outcome> {
        Outcome::ALL.iter().copied().find(|outcome| outcome.as_str() == name)
    }
}

/// Keeps closures for several processes, or over a restart.
///
/// Changes are on their way as soon as the method returns, whether or not somebody polls the
/// future. A closure that is lost costs an attempt that is refused: nobody waits for it.
pub trait ClosureStore: fmt::Debug + Send + Sync {
    /// Remembers a closure until its time is over.
    fn close(&self, closure: Closure) -> SpendingFuture<()>;

    /// Forgets closures: their circuits work again.
    fn reopen(&self, names: Vec<String>) -> SpendingFuture<()>;

    /// Returns every closure whose time is not over.
    fn closures(&self) -> SpendingFuture<Vec<Closure>>;
}
