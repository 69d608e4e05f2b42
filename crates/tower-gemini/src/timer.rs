//! A timer that costs nothing until it is waited for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Ends at a moment, and is known to the runtime only from the first poll on: an answer that is
/// there at once needs no timer.
#[derive(Debug)]
pub(crate) struct Timer {
    /// `None` is beyond what a clock can show.
    at: Option<Instant>,
    /// Boxed because timers move: from an attempt into its body.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    pub(crate) fn after(start: Instant, time: Duration) -> Self {
        Self { at: start.checked_add(time), sleep: None }
    }

    /// Moves the end to `time` after `start`.
    pub(crate) fn restart(&mut self, start: Instant, time: Duration) {
        let at = start.checked_add(time);
        if at == self.at {
            return;
        }
        self.at = at;
        match (at, &mut self.sleep) {
            (Some(at), Some(sleep)) => sleep.as_mut().reset(at),
            _ => self.sleep = None,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at))).as_mut().poll(cx)
    }
}
