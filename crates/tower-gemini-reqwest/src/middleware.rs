use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::Body;
use reqwest_middleware::{Error, Middleware, Next, Result};
use tokio::sync::mpsc;
use tower_gemini::error::BoxError;
use tower_gemini::{CallHandle, CallOptions};
use tower_service::Service;

use crate::error::{Below, out_of_stack, without_key};
use crate::leaf::{Attempt, Left, Line};
use crate::service::{from_reqwest, to_reqwest, with_url};
use crate::sync_body::SyncBody;

/// Runs a tower stack as one middleware of `reqwest-middleware`. The stack is built once, over a
/// [`ChannelLeaf`](crate::ChannelLeaf), and all calls go through it: what it counts, it counts over
/// all of them.
///
/// ```
/// use reqwest_middleware::ClientBuilder;
/// use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer};
/// use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer, JitteredRetryLayer};
/// use tower_gemini_reqwest::{ChannelLeaf, StackMiddleware, client_builder};
/// # use tower_gemini_sim::{Fault, Sim, serve};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = serve(Sim::quick([Fault::None]), ([127, 0, 0, 1], 0).into()).await?;
/// # let url = server.url();
/// let stack = ServiceBuilder::new()
///     .layer(CollectRequestLayer::new())
///     .layer(ConcurrencyLimitLayer::new(4)) // four calls at a time, whoever makes them
///     .layer(JitteredRetryLayer::recommended())
///     .layer(ClassifyGeminiErrorLayer::new())
///     .service(ChannelLeaf::new());
/// let client = ClientBuilder::new(client_builder().build()?).with(StackMiddleware::new(stack)).build();
/// let response = client
///     .post(format!("{url}/v1beta/models/gemini-3-pro-image:generateContent"))
///     .header("x-goog-api-key", "a-key")
///     .body(r#"{"contents":[{"parts":[{"text":"a cat"}]}]}"#)
///     .send()
///     .await?;
/// assert_eq!(response.status(), 200);
/// # Ok(()) }
/// ```
///
/// # Below a retrying middleware
///
/// The extensions of a request stand for one call. When a middleware above passes the same
/// extensions a second time, the request is sent if the first pass surely cost nothing. If it was or
/// may have been charged, the second pass fails before anything is sent, unless the caller allows
/// it with [`CallOptions::maybe_charged_resends`].
///
/// # Interactions
///
/// The middleware below is lent until the response's head has come. So an interaction whose whole
/// response breaks off is fetched through it; a stream that breaks off needs a client of its own for
/// that ([`ChannelLeaf::resuming_with`](crate::ChannelLeaf::resuming_with)), or it ends with an error
/// that has the interaction's id, about 15 s later.
pub struct StackMiddleware<S> {
    /// Only cloned under the lock, which lets stacks in that are not `Sync`.
    stack: Mutex<S>,
}

impl<S> StackMiddleware<S> {
    /// All calls go through clones of this stack.
    pub fn new(stack: S) -> Self {
        Self { stack: Mutex::new(stack) }
    }
}

impl<S> fmt::Debug for StackMiddleware<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StackMiddleware").finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl<S, B> Middleware for StackMiddleware<S>
where
    S: Service<Request<reqwest::Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<reqwest::Response> {
        let stack = self.stack.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (line, attempts) = mpsc::unbounded_channel();
        let url = request.url().clone();
        let mut request = Request::<reqwest::Body>::try_from(request)
            .map_err(|error| without_key(Error::Reqwest(error)))?;
        // The call's options are in the middleware's extensions: each layer finds its own in the
        // request's.
        request.extensions_mut().extend(extensions.clone());
        // A retrying middleware above passes the same extensions again: it is the same call.
        let handle = extensions.get_or_insert_default::<CallHandle>().clone();
        let options = request.extensions_mut().get_or_insert_default::<CallOptions>();
        *options = std::mem::take(options).handle(handle);
        let trail = options.trail_mut().clone();
        request.extensions_mut().insert(Line(line));
        let outcome = drive(call(stack, request), attempts, extensions, &next).await;
        let response = match outcome {
            Ok(response) => {
                let mut response = with_url(response, url);
                if let Some(Left(left)) = response.extensions_mut().remove() {
                    *extensions = left;
                }
                response.extensions_mut().insert(trail.clone());
                Ok(response.map(|body| SyncBody::wrap(Box::pin(body))).into())
            }
            Err(error) => Err(out_of_stack(error)),
        };
        // An error has no extensions, so the trail of a call that failed is here.
        extensions.insert(trail);
        response
    }
}

async fn call<S, B>(
    mut stack: S,
    request: Request<reqwest::Body>,
) -> std::result::Result<Response<B>, BoxError>
where
    S: Service<Request<reqwest::Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    poll_fn(|cx| stack.poll_ready(cx)).await.map_err(Into::into)?;
    stack.call(request).await.map_err(Into::into)
}

/// Runs the stack and, beside it, each attempt that it makes, until the stack has its response.
/// Attempts that are still running then have lost, and are dropped.
async fn drive<T>(
    response: impl Future<Output = T>,
    mut attempts: mpsc::UnboundedReceiver<Attempt>,
    extensions: &Extensions,
    next: &Next<'_>,
) -> T {
    let mut response = pin!(response);
    // Seldom more than one: a list is searched faster than a set of wakers is kept.
    let mut running: Vec<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = Vec::new();
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(response) = response.as_mut().poll(cx) {
                return Poll::Ready(response);
            }
            while let Poll::Ready(Some(attempt)) = attempts.poll_recv(cx) {
                running.push(Box::pin(run(attempt, extensions.clone(), next.clone())));
            }
            let before = running.len();
            running.retain_mut(|attempt| attempt.as_mut().poll(cx).is_pending());
            if running.len() == before {
                return Poll::Pending;
            }
            // An attempt has ended, and the stack may have been waiting for it.
        }
    })
    .await
}

/// One attempt: the rest of the chain, until it has a response or the stack drops it.
async fn run(attempt: Attempt, mut extensions: Extensions, next: Next<'_>) {
    let Attempt { request, mut reply } = attempt;
    let request = match to_reqwest(request) {
        Ok(request) => request,
        Err(error) => {
            // Nobody waits for it any more where this fails.
            let _ = reply.send(Err(Below::new(Error::Reqwest(error)).into()));
            return;
        }
    };
    let mut exchange = next.run(request, &mut extensions);
    let outcome = poll_fn(|cx| {
        if reply.poll_closed(cx).is_ready() {
            return Poll::Ready(None);
        }
        exchange.as_mut().poll(cx).map(Some)
    })
    .await;
    drop(exchange);
    let Some(outcome) = outcome else { return };
    let outcome = match outcome {
        Ok(response) => {
            let mut response = from_reqwest(response);
            response.extensions_mut().insert(Left(extensions));
            Ok(response)
        }
        Err(error) => Err(Below::new(error).into()),
    };
    let _ = reply.send(outcome);
}
