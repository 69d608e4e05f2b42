use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tower_gemini_core::body::ReplayBody;
use tower_gemini_core::call::Call;
use tower_gemini_core::context::{CallContext, CallOptions};
use tower_gemini_core::error::{BoxError, Error};
use tower_service::Service;

use crate::ready::take_ready;

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
    S: Service<Request<ReplayBody>, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = S::Response;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut inner = take_ready(&mut self.inner);
        let max_held_bytes = self.max_held_bytes;
        Box::pin(async move {
            let request = collect(request, max_held_bytes).await?;
            inner.call(request).await
        })
    }
}

/// Reads a body into memory up to the bound. The call's clock starts here: reading a slow upload counts against its deadline.
async fn collect<B>(mut request: Request<B>, max_held_bytes: usize) -> Result<Request<ReplayBody>, Error>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let context = match request.extensions_mut().remove::<CallOptions>() {
        Some(options) => options.into_context(Instant::now().into_std()),
        None => CallContext::new(),
    };
    let (parts, body) = request.into_parts();
    let whole = |held: Vec<Bytes>, trailers: Option<HeaderMap>, context: CallContext| {
        let body = match held.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            // A body in many chunks is read for its call from one piece; the chunks are still what is sent.
            many => many.concat().into(),
        };
        let call = Arc::new(Call::parse(&parts.method, &parts.uri, &parts.headers, Some(&body)));
        ReplayBody::whole(held, trailers, call, context)
    };
    let mut body = Box::pin(body);
    let (mut held, mut held_bytes, mut trailers) = (Vec::new(), 0usize, None);
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|error| Error::request_body(error.into()))?;
        match frame.into_data() {
            Ok(mut data) => {
                let data = data.copy_to_bytes(data.remaining());
                held_bytes = held_bytes.saturating_add(data.len());
                held.push(data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if held_bytes > max_held_bytes {
            let call = Arc::new(Call::parse(&parts.method, &parts.uri, &parts.headers, None));
            let rest = Box::pin(Rest { body });
            return Ok(Request::from_parts(parts, ReplayBody::once(held, rest, call, context)));
        }
    }
    let body = whole(held, trailers, context);
    Ok(Request::from_parts(parts, body))
}

/// What was not read of a body that is too large to hold.
struct Rest<B> {
    body: Pin<Box<B>>,
}

impl<B: Body<Error: Into<BoxError>>> Body for Rest<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.body.as_mut().poll_frame(cx).map(|frame| {
            frame.map(|frame| {
                frame.map(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))).map_err(Into::into)
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
