//! The one place where a service is taken out of `&mut self` into a future, and waited for there.

use std::future::poll_fn;

use tokio::time::{Instant, timeout_at};
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use crate::call_state::CallState;
use crate::error::Error;

/// Takes the instance that `poll_ready` was asked of, and leaves a clone, not yet ready, in its
/// place.
///
/// Calling the clone instead is the best-known fault of tower layers: a clone was never asked
/// whether it is ready, so limits are passed and some services panic.
pub(crate) fn take_ready<S: Clone>(service: &mut S) -> S {
    let clone = service.clone();
    std::mem::replace(service, clone)
}

/// Waits until a service takes a request, as long as the call's deadline lets it. What is ready only
/// then is not called: nobody would wait for the response, and it might be charged.
pub(crate) async fn until_ready<S, R>(service: &mut S, state: &CallState) -> Result<(), Error>
where
    S: Service<R, Error = Error>,
{
    let ready = poll_fn(|cx| service.poll_ready(cx));
    let Some(deadline) = state.deadline() else { return ready.await };
    match timeout_at(deadline, ready).await {
        Ok(ready) if Instant::now() < deadline => ready,
        _ => Err(state.timed_out(Verdict::not_sent())),
    }
}
