use std::any::Any;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::body::{CallBody, Chunks, WireBody};
use crate::error::{BoxError, Error};
use bytes::{Buf, Bytes};
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};
use tokio::time::timeout_at;
use tower_gemini_core::call::{Call, Dialect};
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use crate::call_options::{CallHandle, CallOptions};
use crate::call_state::CallState;
use crate::jittered_retry::RetryOverride;
use crate::optional::Boxed;
use crate::ready::take_ready;
use crate::stage::CallHandler;

/// Turns any request into one that can be sent again. See the [module](super).
#[derive(Debug, Clone)]
pub struct CollectRequest<S> {
    pub(super) inner: S,
    pub(super) max_held_bytes: usize,
}

impl<S, B> Service<Request<B>> for CollectRequest<S>
where
    S: CallHandler,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = S::Response;
    type Error = Error;
    type Future = Boxed<S::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The call's clock starts here: reading a slow upload counts against its deadline.
        let opening = Opening::new(&mut request);
        let mut inner = take_ready(&mut self.inner);
        let max_held_bytes = self.max_held_bytes;
        Box::pin(async move {
            let state = opening.state.clone();
            let collected = collect(request, opening, max_held_bytes);
            let request = match state.deadline() {
                None => collected.await,
                Some(deadline) => timeout_at(deadline, collected)
                    .await
                    .unwrap_or_else(|_| Err(state.timed_out(Verdict::not_sent()))),
            };
            inner.call(request?).await
        })
    }
}

/// Reads a body into memory up to the bound. The rest of a longer one is sent on as it comes.
async fn collect<B>(
    request: Request<B>,
    opening: Opening,
    max_held_bytes: usize,
) -> Result<Request<CallBody>, Error>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let said_to_fit = body
        .size_hint()
        .upper()
        .is_some_and(|most| usize::try_from(most).is_ok_and(|most| most <= max_held_bytes));
    // Of a body that fits there is no rest that would move on.
    let (rest, read) = if said_to_fit {
        (None, read(pin!(body), max_held_bytes).await?)
    } else {
        let mut body = Box::pin(body);
        let read = read(body.as_mut(), max_held_bytes).await?;
        (Some(body), read)
    };
    let Read { held, bytes, trailers } = read;
    let is_held = bytes <= max_held_bytes;
    let rest = rest.filter(|_| !is_held);
    if !is_held && rest.is_none() {
        return Err(Error::request_body("the request's body is longer than it said".into()));
    }
    // A body in many chunks is read for its call from one piece; the chunks are still what is sent.
    let bytes = is_held.then(|| held.joined());
    let call = Call::parse(&parts.method, &parts.uri, &parts.headers, bytes.as_deref());
    let (call, state) = (Arc::new(call), opening.state.clone());
    let body = match rest {
        None => CallBody::whole(held, trailers, call, state),
        Some(body) => CallBody::once(held, Box::pin(Rest { body }), call, state),
    };
    Ok(Request::from_parts(parts, opening.apply(body)?))
}

/// What was read of a body.
#[derive(Default)]
struct Read {
    held: Chunks,
    bytes: usize,
    trailers: Option<HeaderMap>,
}

/// Reads a body to its end, or until it has more than so many bytes.
async fn read<B>(mut body: Pin<&mut B>, max_bytes: usize) -> Result<Read, Error>
where
    B: Body<Data: Send, Error: Into<BoxError>>,
{
    let mut read = Read::default();
    while read.bytes <= max_bytes {
        let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await else { break };
        match frame.map_err(|error| Error::request_body(error.into()))?.into_data() {
            Ok(mut data) => {
                read.bytes = read.bytes.saturating_add(data.remaining());
                read.held.push(data.copy_to_bytes(data.remaining()));
            }
            Err(frame) => read.trailers = frame.into_trailers().ok(),
        }
    }
    Ok(read)
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
    fn new<B: 'static>(request: &mut Request<B>) -> Self {
        let mut options = request.extensions_mut().remove::<CallOptions>().unwrap_or_default();
        Self {
            retry: std::mem::take(&mut options.retry),
            is_idempotent: options.is_idempotent,
            handle: options.handle.take(),
            is_nested: (request.body() as &dyn Any).is::<WireBody>(),
            state: CallState::new(options),
        }
    }

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

    /// A body whose size hint is set by the test.
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
        CollectRequest { inner, max_held_bytes: max }
            .oneshot(Request::new(Says { upper, chunks }))
            .await
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
