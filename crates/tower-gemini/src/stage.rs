//! The stages of a request as traits, with the error message for an invalid order.
//!
//! The order of the stack is written down once, in [`GeminiStack`](crate::GeminiStack).
//!
//! # Every pair of layers
//!
#![doc = include_str!("orders.md")]

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::body::{AttemptBody, CallBody, JudgedBody, WireBody};
use crate::error::{BoxError, Error};

/// A body that a response can be judged by: any body whose chunks are bytes in some form.
pub trait UpstreamBody: Body<Error: Into<BoxError>> + Unpin + Send + 'static {}

impl<B: Body<Error: Into<BoxError>> + Unpin + Send + 'static> UpstreamBody for B {}

/// A service that takes calls and returns judged responses: what a layer of the call stage stands
/// on.
///
/// Implemented for every such service; there is nothing to implement by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand below a layer that works on calls",
    label = "this layer works on whole calls: put JitteredRetry (or SingleAttempt) below it, and CollectRequest, KeepPaid and FinalImageExtract above it",
    note = "the order is AnswerErrors > Observe > CollectRequest > KeepPaid > FinalImageExtract > ThoughtSignatures > PeakHourRouter > ModelFallback > ResolutionFallback > JitteredRetry > Spending > QuotaGuard > AttemptTimeout > ClassifyGeminiError > ResumeInteractions > client; `GeminiStack` is that order ready made"
)]
pub trait CallService:
    Service<
        Request<CallBody>,
        Response = Response<JudgedBody<<Self as CallService>::Upstream>>,
        Error = Error,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
    /// The body of the upstream's responses.
    type Upstream: UpstreamBody;
}

#[diagnostic::do_not_recommend]
impl<S, B> CallService for S
where
    S: Service<Request<CallBody>, Response = Response<JudgedBody<B>>, Error = Error, Future: Send>
        + Clone
        + Send
        + 'static,
    B: UpstreamBody,
{
    type Upstream = B;
}

/// A service that takes single attempts and returns judged responses: what a layer of the attempt
/// stage, and the retry above it, stand on.
///
/// Implemented for every such service; there is nothing to implement by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand below a layer that works on attempts",
    label = "this layer works on single attempts: below it belong only Spending, QuotaGuard, AttemptTimeout and ClassifyGeminiError, in that order; layers that make further attempts stand above JitteredRetry",
    note = "the order is AnswerErrors > Observe > CollectRequest > KeepPaid > FinalImageExtract > ThoughtSignatures > PeakHourRouter > ModelFallback > ResolutionFallback > JitteredRetry > Spending > QuotaGuard > AttemptTimeout > ClassifyGeminiError > ResumeInteractions > client; `GeminiStack` is that order ready made"
)]
pub trait AttemptService:
    Service<
        Request<AttemptBody>,
        Response = Response<JudgedBody<<Self as AttemptService>::Upstream>>,
        Error = Error,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
    /// The body of the upstream's responses.
    type Upstream: UpstreamBody;
}

#[diagnostic::do_not_recommend]
impl<S, B> AttemptService for S
where
    S: Service<
            Request<AttemptBody>,
            Response = Response<JudgedBody<B>>,
            Error = Error,
            Future: Send,
        > + Clone
        + Send
        + 'static,
    B: UpstreamBody,
{
    type Upstream = B;
}

/// A client: sends one request and returns the response as it comes.
///
/// Implemented for every service that takes `Request<WireBody>`; there is nothing to implement by
/// hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a client that ClassifyGeminiError can send by",
    label = "a client is a `Service<http::Request<WireBody>>`, `Clone`, and returns `http::Response<B>`",
    note = "hyper-util: name the body, `Client<_, tower_gemini::WireBody>`; reqwest: wrap the client, `tower_gemini_reqwest::ReqwestService::new(client)`",
    note = "only ResumeInteractions stands below ClassifyGeminiError, directly over the client"
)]
pub trait WireClient:
    Service<
        Request<WireBody>,
        Response = Response<<Self as WireClient>::ResponseBody>,
        Error = <Self as WireClient>::ClientError,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
    /// The body of its responses.
    type ResponseBody: UpstreamBody;
    /// What it fails with.
    type ClientError: Into<BoxError>;
}

#[diagnostic::do_not_recommend]
impl<S, B, E> WireClient for S
where
    S: Service<Request<WireBody>, Response = Response<B>, Error = E, Future: Send>
        + Clone
        + Send
        + 'static,
    B: UpstreamBody,
    E: Into<BoxError>,
{
    type ResponseBody = B;
    type ClientError = E;
}

/// A service that takes calls, whatever it returns: what
/// [`CollectRequest`](crate::CollectRequest) stands on.
///
/// Implemented for every such service; there is nothing to implement by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand below CollectRequest",
    label = "CollectRequest makes calls of requests: the layers that work on calls belong below it, down to JitteredRetry; attempts and the client belong further down",
    note = "the order is AnswerErrors > Observe > CollectRequest > KeepPaid > FinalImageExtract > ThoughtSignatures > PeakHourRouter > ModelFallback > ResolutionFallback > JitteredRetry > Spending > QuotaGuard > AttemptTimeout > ClassifyGeminiError > ResumeInteractions > client; `GeminiStack` is that order ready made"
)]
pub trait CallHandler:
    Service<Request<CallBody>, Error = Error, Future: Send> + Clone + Send + 'static
{
}

#[diagnostic::do_not_recommend]
impl<S> CallHandler for S where
    S: Service<Request<CallBody>, Error = Error, Future: Send> + Clone + Send + 'static
{
}

/// A body by which it is asked whether a service takes any request. It is never sent.
#[doc(hidden)]
#[derive(Debug)]
pub enum ProbeBody {}

impl Body for ProbeBody {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        match *self {}
    }
}

/// A service that takes the caller's own requests, with any body, and returns a response that has a
/// body: what [`Observe`](crate::Observe) and [`AnswerErrors`](crate::AnswerErrors) stand on.
///
/// Implemented for every such service; there is nothing to implement by hand. A layer of your own
/// that takes one type of body only stands above these two.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand below a layer that works on the caller's own requests",
    label = "Observe and AnswerErrors take any request and need a response with a body: below them belongs CollectRequest, over KeepPaid, `json` or `raw`; observe `images` with `ObserveLayer::whole_responses`",
    note = "instead of `images` with AnswerErrors use `json`, and read the image with `FinalImage::from_json`",
    note = "the order is AnswerErrors > Observe > CollectRequest > KeepPaid > FinalImageExtract > ThoughtSignatures > PeakHourRouter > ModelFallback > ResolutionFallback > JitteredRetry > Spending > QuotaGuard > AttemptTimeout > ClassifyGeminiError > ResumeInteractions > client; `GeminiStack` is that order ready made"
)]
pub trait CallerService:
    Service<
        Request<ProbeBody>,
        Response = Response<<Self as CallerService>::Body>,
        Error = <Self as CallerService>::Failure,
    >
{
    /// The body of its responses.
    type Body: Body<Error: 'static>;
    /// What it fails with.
    type Failure: 'static;
}

#[diagnostic::do_not_recommend]
impl<S, B, E> CallerService for S
where
    S: Service<Request<ProbeBody>, Response = Response<B>, Error = E>,
    B: Body<Error: 'static>,
    E: 'static,
{
    type Body = B;
    type Failure = E;
}
