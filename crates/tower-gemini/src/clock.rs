//! Clocks for what a calendar decides: the machine's own, and one that runs with the runtime.

use std::time::SystemTime;

use tokio::time::Instant;
pub use tower_gemini_core::clock::Clock;

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
