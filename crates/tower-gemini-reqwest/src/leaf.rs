use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Extensions, Request, Response};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, oneshot};
use tower_gemini::body::WireBody;
use tower_gemini::classify_gemini_error::evidence::NotSent;
use tower_gemini::error::BoxError;
use tower_service::Service;

use crate::service::ReqwestService;

/// The innermost service of a stack in a [`StackMiddleware`](crate::StackMiddleware): it stands for
/// the middleware below and the client.
///
/// A stack lives as long as its program, and a chain of middleware is only lent to each call. So
/// this service sends nothing itself: it hands each attempt to the call that it belongs to, which
/// is waiting for it. Outside a `StackMiddleware` every call fails, unsent.
#[derive(Debug, Clone, Default)]
pub struct ChannelLeaf {
    resuming: Option<ReqwestService>,
}

impl ChannelLeaf {
    /// The place of the client.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Fetches an interaction whose stream breaks off through this client, without the middleware
    /// below: by then the chain has gone back to its owner. Nothing but fetches goes this way.
    /// Default: no client, so that such a stream ends with an error that has the interaction's id.
    #[must_use]
    pub fn resuming_with(client: reqwest::Client) -> Self {
        Self { resuming: Some(ReqwestService::new(client)) }
    }
}

/// One attempt, and where its response is waited for. That closes when the attempt is given up.
pub(crate) struct Attempt {
    pub(crate) request: Request<WireBody>,
    pub(crate) reply: oneshot::Sender<Result<Response<reqwest::Body>, BoxError>>,
}

/// The way from a stack back to the call, in the extensions of the call's requests. It is copied
/// with them for each attempt.
#[derive(Clone)]
pub(crate) struct Line(pub(crate) mpsc::UnboundedSender<Attempt>);

/// What the middleware below left in an attempt's extensions, in the extensions of that attempt's
/// response.
#[derive(Clone)]
pub(crate) struct Left(pub(crate) Extensions);

/// The future of [`ChannelLeaf`]. Dropping it cancels the attempt.
pub type LeafFuture =
    Pin<Box<dyn Future<Output = Result<Response<reqwest::Body>, BoxError>> + Send>>;

impl Service<Request<WireBody>> for ChannelLeaf {
    type Response = Response<reqwest::Body>;
    type Error = BoxError;
    type Future = LeafFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<WireBody>) -> LeafFuture {
        // Taken out: a request that is kept somewhere must not keep the call's line open.
        let line = request.extensions_mut().remove::<Line>();
        let resuming = self.resuming.clone().filter(|_| request.method().is_safe());
        Box::pin(async move {
            let Some(Line(line)) = line else {
                let why = "this stack only works inside a StackMiddleware, or a layer dropped the \
                           request's extensions";
                return Err(NotSent::new(why).into());
            };
            let (reply, response) = oneshot::channel();
            if let Err(SendError(attempt)) = line.send(Attempt { request, reply }) {
                if let Some(mut client) = resuming {
                    return client.call(attempt.request).await;
                }
                return Err(NotSent::new("the call that this attempt belongs to is over").into());
            }
            // It has been handed over, so nobody knows how far it came.
            let dropped = |_| Err("the call was dropped while its attempt was under way".into());
            response.await.unwrap_or_else(dropped)
        })
    }
}
