use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::body::{CallBody, WireBody};
use crate::error::{BoxError, Error};
use bytes::{Buf, Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tower_gemini_core::call::{Call, Dialect};
use tower_service::Service;

use crate::call_options::{CallHandle, CallOptions};
use crate::call_state::CallState;
use crate::jittered_retry::RetryOverride;
use crate::ready::take_ready;
use crate::stage::CallHandler;

/// Turns any request into one that can be sent again. See the [module](super).
#[derive(Debug, Clone)]
pub struct CollectRequest<S> {
    inner: S,
    max_held_bytes: usize,
}

impl<S> CollectRequest<S> {
    pub(super) fn new(inner: S, max_held_bytes: usize) -> Self {
        Self { inner, max_held_bytes }
    }
}

impl<S, B> Service<Request<B>> for CollectRequest<S>
where
    S: CallHandler,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = S::Response;
    type Error = Error;
    type Future = ResponseFuture<S, B, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let collect = Collect::new(request, self.max_held_bytes);
        ResponseFuture { step: Step::Collecting { collect, inner: take_ready(&mut self.inner) } }
    }
}

/// The future of [`CollectRequest`].
#[pin_project]
pub struct ResponseFuture<S, B, F> {
    #[pin]
    step: Step<S, B, F>,
}

#[pin_project(project = StepProjection)]
#[allow(
    clippy::large_enum_variant,
    reason = "the larger one is the usual one: a box is what it is there to save"
)]
enum Step<S, B, F> {
    Collecting {
        #[pin]
        collect: Collect<B>,
        inner: S,
    },
    Sent {
        #[pin]
        future: F,
    },
}

impl<S, B, F> fmt::Debug for ResponseFuture<S, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, B> Future for ResponseFuture<S, B, S::Future>
where
    S: Service<Request<CallBody>, Error = Error>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<S::Response, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut step = self.project().step;
        loop {
            match step.as_mut().project() {
                StepProjection::Collecting { collect, inner } => {
                    let request = ready!(collect.poll(cx))?;
                    let future = inner.call(request);
                    step.set(Step::Sent { future });
                }
                StepProjection::Sent { future } => return future.poll(cx),
            }
        }
    }
}

/// Reads a body into memory up to the bound.
#[pin_project]
struct Collect<B> {
    #[pin]
    body: Reading<B>,
    /// Taken when the body is held.
    head: Option<(Parts, Opening)>,
    held: Held,
    trailers: Option<HeaderMap>,
    max_held_bytes: usize,
}

/// What the caller's options make of the call.
struct Opening {
    retry: RetryOverride,
    is_idempotent: bool,
    handle: Option<CallHandle>,
    /// The request is an attempt of another stack.
    is_nested: bool,
    state: CallState,
}

const NESTED: &str = "a whole stack stands below ClassifyGeminiError: each attempt of the outer stack \
                      would be retried by the inner one; put one stack over the client";

impl Opening {
    fn apply(self, mut body: CallBody) -> Result<CallBody, Error> {
        if self.is_nested {
            return Err(Error::misplaced(NESTED).with_trail(self.state.trail().clone()));
        }
        if let Some(handle) = &self.handle {
            handle.enter(&self.state)?;
        }
        if self.is_idempotent && body.call().dialect == Dialect::Unrecognised {
            self.state.allow_repeats();
        }
        body.set_retry(self.retry);
        Ok(body)
    }
}

/// A body that says that it fits is read where it stands. Any other is boxed, so that its rest can
/// be sent on if it does not.
#[pin_project(project = ReadingProjection)]
enum Reading<B> {
    InPlace(#[pin] B),
    Boxed(Option<Pin<Box<B>>>),
}

/// Chunks in order. One chunk, the usual case, needs no allocation.
#[derive(Default)]
struct Held {
    first: Option<Bytes>,
    more: Vec<Bytes>,
    bytes: usize,
}

impl<B> Collect<B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    fn new(mut request: Request<B>, max_held_bytes: usize) -> Self {
        // The call's clock starts here: reading a slow upload counts against its deadline.
        let mut options = request.extensions_mut().remove::<CallOptions>().unwrap_or_default();
        let opening = Opening {
            retry: std::mem::take(&mut options.retry),
            is_idempotent: options.is_idempotent,
            handle: options.handle.take(),
            is_nested: (request.body() as &dyn Any).is::<WireBody>(),
            state: CallState::new(options),
        };
        let (parts, body) = request.into_parts();
        let fits = body
            .size_hint()
            .upper()
            .is_some_and(|most| usize::try_from(most).is_ok_and(|most| most <= max_held_bytes));
        let body = if fits { Reading::InPlace(body) } else { Reading::Boxed(Some(Box::pin(body))) };
        Self {
            body,
            head: Some((parts, opening)),
            held: Held::default(),
            trailers: None,
            max_held_bytes,
        }
    }
}

impl<B> Future for Collect<B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<Request<CallBody>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        while let Some(frame) = ready!(this.body.as_mut().poll_frame(cx)) {
            match frame.map_err(|error| Error::request_body(error.into()))?.into_data() {
                Ok(mut data) => this.held.push(data.copy_to_bytes(data.remaining())),
                Err(frame) => *this.trailers = frame.into_trailers().ok(),
            }
            if this.held.bytes > *this.max_held_bytes {
                let Some(body) = this.body.as_mut().take_rest() else {
                    return Poll::Ready(Err(Error::request_body(
                        "the request's body is longer than it said".into(),
                    )));
                };
                let Some((parts, opening)) = this.head.take() else { return Poll::Pending };
                let call = Arc::new(Call::parse(&parts.method, &parts.uri, &parts.headers, None));
                let held = std::mem::take(this.held);
                let rest = Box::pin(Rest { body });
                let body = CallBody::once(held, rest, call, opening.state.clone());
                return Poll::Ready(
                    opening.apply(body).map(|body| Request::from_parts(parts, body)),
                );
            }
        }
        // Polled after it was ready: a fault of the caller that must not bring the process down.
        let Some((parts, opening)) = this.head.take() else { return Poll::Pending };
        let held = std::mem::take(this.held);
        let call =
            Arc::new(Call::parse(&parts.method, &parts.uri, &parts.headers, Some(&held.joined())));
        let body = CallBody::whole(held, this.trailers.take(), call, opening.state.clone());
        Poll::Ready(opening.apply(body).map(|body| Request::from_parts(parts, body)))
    }
}

type FramePoll<B> = Poll<Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>>;

impl<B: Body> Reading<B> {
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> FramePoll<B> {
        match self.project() {
            ReadingProjection::InPlace(body) => body.poll_frame(cx),
            ReadingProjection::Boxed(Some(body)) => body.as_mut().poll_frame(cx),
            ReadingProjection::Boxed(None) => Poll::Ready(None),
        }
    }

    fn take_rest(self: Pin<&mut Self>) -> Option<Pin<Box<B>>> {
        match self.project() {
            ReadingProjection::InPlace(_) => None,
            ReadingProjection::Boxed(body) => body.take(),
        }
    }
}

impl Held {
    fn push(&mut self, chunk: Bytes) {
        self.bytes = self.bytes.saturating_add(chunk.len());
        match self.first {
            None => self.first = Some(chunk),
            Some(_) => self.more.push(chunk),
        }
    }

    /// A body in many chunks is read for its call from one piece; the chunks are still what is
    /// sent.
    fn joined(&self) -> Bytes {
        match &self.first {
            Some(one) if self.more.is_empty() => one.clone(),
            _ => {
                let mut all = BytesMut::with_capacity(self.bytes);
                self.first.iter().chain(&self.more).for_each(|chunk| all.extend_from_slice(chunk));
                all.freeze()
            }
        }
    }
}

impl IntoIterator for Held {
    type Item = Bytes;
    type IntoIter = std::iter::Chain<std::option::IntoIter<Bytes>, std::vec::IntoIter<Bytes>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

/// What was not read of a body that is too large to hold.
struct Rest<B> {
    body: Pin<Box<B>>,
}

impl<B: Body<Error: Into<BoxError>>> Body for Rest<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.body.as_mut().poll_frame(cx).map(|frame| {
            frame.map(|frame| {
                frame
                    .map(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
                    .map_err(Into::into)
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use tower::{ServiceExt, service_fn};

    /// A body that says of its size what it is told to say.
    struct Says {
        upper: Option<u64>,
        chunks: VecDeque<Bytes>,
    }

    impl Body for Says {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Ready(self.chunks.pop_front().map(|chunk| Ok(Frame::data(chunk))))
        }

        fn size_hint(&self) -> SizeHint {
            let mut hint = SizeHint::new();
            if let Some(upper) = self.upper {
                hint.set_upper(upper);
            }
            hint
        }
    }

    /// Sends three chunks of four bytes through a layer that holds `max`; gives what came out, and
    /// whether it was held.
    async fn sent(upper: Option<u64>, max: usize) -> Result<(Bytes, bool), Error> {
        let inner = service_fn(|request: Request<CallBody>| async move {
            let held = request.body().is_replayable();
            let body = request.into_body().into_attempt().into_wire();
            let body = http_body_util::BodyExt::collect(body).await?;
            Ok::<_, Error>((body.to_bytes(), held))
        });
        let chunks = ["one,", "two,", "tri."].map(Bytes::from).into();
        CollectRequest::new(inner, max).oneshot(Request::new(Says { upper, chunks })).await
    }

    #[tokio::test]
    async fn a_body_comes_through_whole_whether_it_is_held_or_not_and_whatever_it_says() {
        for (upper, max, held) in [
            (Some(12), 12, true),
            (None, 12, true),
            (None, 11, false),
            (Some(99), 5, false),
            (Some(99), 12, true),
        ] {
            assert_eq!(
                sent(upper, max).await.unwrap(),
                ("one,two,tri.".into(), held),
                "{upper:?} {max}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_that_is_longer_than_it_said_is_an_error_and_is_not_sent() {
        let error = sent(Some(5), 6).await.unwrap_err();
        assert!(error.charge().is_surely_free() && !error.is_transport(), "{error}");
    }
}
