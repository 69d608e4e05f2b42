//! The one place where a service is taken out of `&mut self` into a future.

/// Takes the instance that `poll_ready` was asked of, and leaves a clone, not yet ready, in its
/// place.
///
/// Calling the clone instead is the best-known fault of tower layers: a clone was never asked
/// whether it is ready, so limits are passed and some services panic.
pub(crate) fn take_ready<S: Clone>(service: &mut S) -> S {
    let clone = service.clone();
    std::mem::replace(service, clone)
}
