use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Extensions, Request, Response};
use tokio::sync::{mpsc, oneshot};
use tower_gemini::body::WireBody;
use tower_gemini::classify_gemini_error::evidence::NotSent;
use tower_gemini::error::BoxError;
use tower_service::Service;

/// The innermost service of a stack in a [`StackMiddleware`](crate::StackMiddleware): it stands for
/// the middleware below and the client.
///
/// A stack lives as long as its program, and a chain of middleware is only lent to each call. So
/// this service sends nothing itself: it hands each attempt to the call that it belongs to, which
/// is waiting for it. Outside a `StackMiddleware` every call fails, unsent.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChannelLeaf {
    _private: (),
}

impl ChannelLeaf {
    /// The place of the client.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// One attempt, and where its answer is waited for. That closes when the attempt is given up.
pub(crate) struct Attempt {
    pub(crate) request: Request<WireBody>,
    pub(crate) reply: oneshot::Sender<Result<Response<reqwest::Body>, BoxError>>,
}

/// The way from a stack back to the call, in the extensions of the call's requests. It is copied
/// with them for each attempt.
#[derive(Clone)]
pub(crate) struct Line(pub(crate) mpsc::UnboundedSender<Attempt>);

/// What the middleware below left in an attempt's extensions, in the extensions of that attempt's
/// answer.
#[derive(Clone)]
pub(crate) struct Left(pub(crate) Extensions);

impl Service<Request<WireBody>> for ChannelLeaf {
    type Response = Response<reqwest::Body>;
    type Error = BoxError;
    type Future = LeafFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<WireBody>) -> LeafFuture {
        // Taken out: a request that lives on somewhere must not keep the call's line open.
        let Some(Line(line)) = request.extensions_mut().remove() else {
            return LeafFuture(Err(Some(
                "this stack only works inside a StackMiddleware, or a layer dropped the request's extensions",
            )));
        };
        let (reply, answer) = oneshot::channel();
        LeafFuture(match line.send(Attempt { request, reply }) {
            Ok(()) => Ok(answer),
            Err(_) => Err(Some("the call that this attempt belongs to is over")),
        })
    }
}

/// The future of [`ChannelLeaf`]. Dropping it cancels the attempt.
pub struct LeafFuture(
    Result<oneshot::Receiver<Result<Response<reqwest::Body>, BoxError>>, Option<&'static str>>,
);

impl fmt::Debug for LeafFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafFuture").finish_non_exhaustive()
    }
}

impl Future for LeafFuture {
    type Output = Result<Response<reqwest::Body>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(answer) => Poll::Ready(match ready!(Pin::new(answer).poll(cx)) {
                Ok(answer) => answer,
                // It had been handed over, so nobody knows how far it came.
                Err(_) => Err("the call was dropped while its attempt was under way".into()),
            }),
            Err(why) => match why.take() {
                Some(why) => Poll::Ready(Err(NotSent::new(why).into())),
                // Polled after it was ready: a fault of the caller that must not bring the process
                // down.
                None => Poll::Pending,
            },
        }
    }
}
