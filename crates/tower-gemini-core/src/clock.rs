//! Wall time, handed in: nothing here reads a clock.
//!
//! Only what a calendar decides needs it (the quota's day). How long something takes is the
//! runtime's time, in the layers.

use std::fmt;
use std::time::SystemTime;

/// A source of wall time.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_gemini_core::clock::Clock;
///
/// #[derive(Debug)]
/// struct Noon;
/// impl Clock for Noon {
///     fn now(&self) -> SystemTime {
///         SystemTime::UNIX_EPOCH + Duration::from_secs(12 * 3600)
///     }
/// }
/// assert_eq!(Noon.now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 43_200);
/// ```
pub trait Clock: fmt::Debug + Send + Sync {
    /// What the clock on the wall says. It may be set, forward and back.
    fn now(&self) -> SystemTime;
}
