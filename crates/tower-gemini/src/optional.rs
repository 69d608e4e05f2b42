//! The future of a layer that can be off: a disabled layer is zero-cost.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::Error;
use pin_project::pin_project;

/// The future of a layer that may be off: then it is the inner service's own, with nothing around
/// it.
#[pin_project]
pub struct OptionalFuture<F, R> {
    #[pin]
    state: State<F, R>,
}

/// The future of a layer that is on.
pub(crate) type Boxed<R> = Pin<Box<dyn Future<Output = Result<R, Error>> + Send>>;

#[pin_project(project = Projection)]
enum State<F, R> {
    Off(#[pin] F),
    On(Boxed<R>),
}

impl<F, R> OptionalFuture<F, R> {
    pub(crate) fn off(future: F) -> Self {
        Self { state: State::Off(future) }
    }

    pub(crate) fn on(future: Boxed<R>) -> Self {
        Self { state: State::On(future) }
    }
}

impl<F, R> Future for OptionalFuture<F, R>
where
    F: Future<Output = Result<R, Error>>,
{
    type Output = Result<R, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projection::Off(future) => future.poll(cx),
            Projection::On(future) => future.as_mut().poll(cx),
        }
    }
}

impl<F, R> fmt::Debug for OptionalFuture<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Off(_) => "off",
            State::On(_) => "on",
        };
        f.debug_tuple("OptionalFuture").field(&state).finish()
    }
}
