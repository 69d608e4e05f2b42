//! The bounds that the layers share, and the sentences a wrong stack is answered with.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project::pin_project;
use tower_gemini_core::body::{JudgedBody, ReplayBody};
use tower_gemini_core::error::{BoxError, Error};
use tower_service::Service;

/// An answer with a verdict: `Response<JudgedBody<_>>`, which only
/// [`ClassifyGeminiError`](crate::ClassifyGeminiError) makes.
#[diagnostic::on_unimplemented(
    message = "this layer needs judged answers, and the service inside it gives `{Self}`",
    label = "`ClassifyGeminiError` is missing inside this layer, or `FinalImageExtract` is inside it and has used up the verdict",
    note = "the order is CollectRequest > FinalImageExtract > ModelFallback > ResolutionFallback > JitteredRetry > QuotaGuard > AttemptTimeout > ClassifyGeminiError > client; `GeminiStack` is that order ready made"
)]
pub trait JudgedResponse {
    /// The upstream's body.
    type Upstream: Body<Error: Into<BoxError>> + Unpin;

    /// The answer itself.
    fn into_response(self) -> Response<JudgedBody<Self::Upstream>>;
}

impl<B> JudgedResponse for Response<JudgedBody<B>>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    type Upstream = B;

    fn into_response(self) -> Self {
        self
    }
}

/// A request that is held so that it can be sent again: `Request<ReplayBody>`, which
/// [`CollectRequest`](crate::CollectRequest) makes of any other.
#[diagnostic::on_unimplemented(
    message = "this layer needs requests that can be sent again, and is given `{Self}`",
    label = "`CollectRequest` is missing outside this layer",
    note = "put `CollectRequestLayer` on top of the stack: it turns any request body into a `ReplayBody`"
)]
pub trait ReplayRequest {
    /// The request itself.
    fn into_request(self) -> Request<ReplayBody>;
}

impl ReplayRequest for Request<ReplayBody> {
    fn into_request(self) -> Self {
        self
    }
}

/// A service whose answers are judged: what every layer above
/// [`ClassifyGeminiError`](crate::ClassifyGeminiError) is built on.
///
/// Implemented for every such service; there is nothing to implement by hand.
pub trait JudgedService:
    Service<Request<ReplayBody>, Response: JudgedResponse<Upstream = Self::Upstream>, Error = Error>
{
    /// The upstream's body.
    type Upstream: Body<Error: Into<BoxError>> + Unpin;
}

impl<S, B> JudgedService for S
where
    S: Service<Request<ReplayBody>, Error = Error>,
    S::Response: JudgedResponse<Upstream = B>,
    B: Body<Error: Into<BoxError>> + Unpin,
{
    type Upstream = B;
}

/// The answer of a judged service as what it is: an `async` loop cannot see it behind the alias.
///
/// A named future and not an `async fn`, which would hold the answer's future twice: as its
/// argument and where it is awaited.
pub(crate) fn judged<F, R>(answer: F) -> JudgedFuture<F>
where
    F: Future<Output = Result<R, Error>>,
    R: JudgedResponse,
{
    JudgedFuture { answer }
}

/// The future of [`judged`].
#[pin_project]
pub(crate) struct JudgedFuture<F> {
    #[pin]
    answer: F,
}

impl<F, R> Future for JudgedFuture<F>
where
    F: Future<Output = Result<R, Error>>,
    R: JudgedResponse,
{
    type Output = Result<Response<JudgedBody<R::Upstream>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().answer.poll(cx)).map(JudgedResponse::into_response))
    }
}
