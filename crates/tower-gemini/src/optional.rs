//! A layer that is in every stack and does nothing in most: its calls must cost nothing then.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Response;
use pin_project::pin_project;
use tower_gemini_core::body::JudgedBody;
use tower_gemini_core::error::Error;

use crate::judged::JudgedResponse;

/// The future of a layer that may be off: then it is the inner service's own, with nothing around
/// it.
#[pin_project]
pub struct OptionalFuture<F, R> {
    #[pin]
    state: State<F, R>,
}

type Boxed<R> = Pin<Box<dyn Future<Output = Result<R, Error>> + Send>>;

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

impl<F, R, A> Future for OptionalFuture<F, Response<JudgedBody<R>>>
where
    F: Future<Output = Result<A, Error>>,
    A: JudgedResponse<Upstream = R>,
{
    type Output = Result<Response<JudgedBody<R>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projection::Off(future) => {
                future.poll(cx).map(|answer| answer.map(JudgedResponse::into_response))
            }
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
