//! How a queued call waits for its turn.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Poll, Waker, ready};

use tokio::time::{Instant, sleep_until};

/// Looks whether a queued call's turn has come: at once, whenever it is woken, and at the moments
/// that `look` names.
pub(crate) async fn wait_for_turn<R>(mut look: impl FnMut(&Waker) -> ControlFlow<R, Instant>) -> R {
    let mut timer = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        loop {
            match look(cx.waker()) {
                ControlFlow::Break(result) => return Poll::Ready(result),
                ControlFlow::Continue(until) => timer.as_mut().reset(until),
            }
            ready!(timer.as_mut().poll(cx));
        }
    })
    .await
}
