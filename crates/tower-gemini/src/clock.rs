//! Wall time, for what a calendar decides: the quota's day, peak hours, retirement dates.
//!
//! How long something takes is the runtime's time ([`tokio::time`]).

use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A source of wall time.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_gemini::clock::Clock;
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
    /// The wall-clock time. It may be set, forward and back.
    fn now(&self) -> SystemTime;
}

/// A duration in milliseconds; the most that there are for a longer one.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The machine's own clock.
///
/// ```
/// use tower_gemini::clock::{Clock, SystemClock};
///
/// assert!(SystemClock.now() > std::time::SystemTime::UNIX_EPOCH);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place where wall time is read; everything else is handed a Clock"
    )]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that starts where it is told and runs with the runtime, so that a paused runtime
/// simulates days.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_gemini::clock::{Clock, RuntimeClock};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let clock = RuntimeClock::starting_at(SystemTime::UNIX_EPOCH);
/// tokio::time::advance(Duration::from_secs(86_400)).await;
/// assert_eq!(clock.now(), SystemTime::UNIX_EPOCH + Duration::from_secs(86_400));
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RuntimeClock {
    wall: SystemTime,
    steady: Instant,
}

impl RuntimeClock {
    /// A clock that says `wall` now.
    #[must_use]
    pub fn starting_at(wall: SystemTime) -> Self {
        Self { wall, steady: Instant::now() }
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> SystemTime {
        self.wall + self.steady.elapsed()
    }
}
