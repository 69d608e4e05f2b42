use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::call_options::CallOptions;
use crate::error::{BoxError, Error};
use http::{Request, Response};
use http_body::Body;
use pin_project::pin_project;
use tower_gemini_core::call::Call;
use tower_gemini_core::verdict::Outcome;
use tower_service::Service;

use super::body::ObservedBody;
use super::observatory::{CallWatch, Observatory};
use super::outcome::{How, is_generating};

/// Sees each call from its request to the end of its answer's body. See the [module](super).
#[derive(Debug, Clone)]
pub struct Observe<S> {
    inner: S,
    observatory: Observatory,
}

impl<S> Observe<S> {
    pub(super) fn new(inner: S, observatory: Observatory) -> Self {
        Self { inner, observatory }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Observe<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>, Error: 'static>,
    ResBody: Body<Error: 'static>,
{
    type Response = Response<ObservedBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let watch = watch(&self.observatory, &mut request);
        ResponseFuture { inner: self.inner.call(request), watch }
    }
}

/// Sees each call from its request to its answer, which is whole when it comes. See
/// [`ObserveLayer::whole_answers`](super::ObserveLayer::whole_answers).
#[derive(Debug, Clone)]
pub struct ObserveWhole<S> {
    inner: S,
    observatory: Observatory,
}

impl<S> ObserveWhole<S> {
    pub(super) fn new(inner: S, observatory: Observatory) -> Self {
        Self { inner, observatory }
    }
}

impl<S, ReqBody, T> Service<Request<ReqBody>> for ObserveWhole<S>
where
    S: Service<Request<ReqBody>, Response = Response<T>, Error: 'static>,
{
    type Response = Response<T>;
    type Error = S::Error;
    type Future = WholeFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let watch = watch(&self.observatory, &mut request);
        WholeFuture { inner: self.inner.call(request), watch }
    }
}

/// A call that is watched already: the outermost of two observing layers tells.
#[derive(Debug, Clone, Copy)]
struct Observed;

fn watch<B>(observatory: &Observatory, request: &mut Request<B>) -> Option<CallWatch> {
    if request.extensions_mut().insert(Observed).is_some() {
        return None;
    }
    let is_generating =
        is_generating(&Call::parse(request.method(), request.uri(), request.headers(), None));
    let options = request.extensions_mut().get_or_insert_default::<CallOptions>();
    Some(observatory.begin(options.trail_mut().clone(), is_generating))
}

/// The future of [`Observe`].
// The inner future stands before the watch, and is dropped before it: what a dropped call was doing
// is written into its trail first.
#[pin_project]
pub struct ResponseFuture<F> {
    #[pin]
    inner: F,
    watch: Option<CallWatch>,
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("ResponseFuture", self.watch.as_ref(), f)
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: 'static,
{
    type Output = Result<Response<ObservedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = answered(ready!(this.inner.poll(cx)), this.watch.as_mut());
        let watch = this.watch.take();
        Poll::Ready(answer.map(|response| response.map(|body| ObservedBody::new(body, watch))))
    }
}

/// The future of [`ObserveWhole`].
#[pin_project]
pub struct WholeFuture<F> {
    #[pin]
    inner: F,
    watch: Option<CallWatch>,
}

impl<F> fmt::Debug for WholeFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("WholeFuture", self.watch.as_ref(), f)
    }
}

impl<F, T, E> Future for WholeFuture<F>
where
    F: Future<Output = Result<Response<T>, E>>,
    E: 'static,
{
    type Output = Result<Response<T>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = answered(ready!(this.inner.poll(cx)), this.watch.as_mut());
        if let Some(mut watch) = this.watch.take() {
            watch.over(How::Complete);
        }
        Poll::Ready(answer)
    }
}

/// The head of an answer is there, or its error: names the call in the answer, and ends it where
/// there is none.
fn answered<T, E: 'static>(
    mut answer: Result<Response<T>, E>,
    watch: Option<&mut CallWatch>,
) -> Result<Response<T>, E> {
    let Some(watch) = watch else { return answer };
    match &mut answer {
        Ok(response) => {
            watch.status = Some(response.status().as_u16());
            response.extensions_mut().insert(watch.id());
            response.extensions_mut().insert(watch.trail().clone());
        }
        Err(error) => watch.over(How::Failed(outcome_in(error))),
    }
    answer
}

/// The outcome that an error of ours holds, whatever holds the error.
pub(super) fn outcome_in<E: 'static>(error: &E) -> Option<Outcome> {
    let error: &dyn Any = error;
    let ours = match error.downcast_ref::<BoxError>() {
        Some(boxed) => boxed.downcast_ref::<Error>(),
        None => error.downcast_ref::<Error>(),
    };
    ours.map(|error| error.verdict().outcome())
}

fn debug(name: &str, watch: Option<&CallWatch>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.debug_struct(name).field("call", &watch.map(CallWatch::id)).finish_non_exhaustive()
}
