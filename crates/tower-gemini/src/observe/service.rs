use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::call_options::CallOptions;
use http::{Request, Response};
use http_body::Body;
use pin_project::pin_project;
use tower_gemini_core::call::Call;
use tower_service::Service;

use super::body::ObservedBody;
use super::outcome::HowEnded;
use super::watch::{CallWatch, Shared};

/// Observes each call, by default to the end of its response's body. See the [module](super).
pub struct Observe<S, M = AtBodyEnd> {
    inner: S,
    shared: Arc<Shared>,
    mode: PhantomData<fn() -> M>,
}

/// Observes each call to its response, which is complete with its head. See
/// [`ObserveLayer::whole_responses`](super::ObserveLayer::whole_responses).
pub type ObserveWhole<S> = Observe<S, AtHead>;

impl<S, M> Observe<S, M> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared, mode: PhantomData }
    }

    /// Returns the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Clone, M> Clone for Observe<S, M> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.shared.clone())
    }
}

impl<S: fmt::Debug, M> fmt::Debug for Observe<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observe").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// When a call ends: [`AtBodyEnd`] or [`AtHead`].
pub trait EndsCall<T>: sealed::Sealed {
    /// The body of observed responses.
    type Body;

    #[doc(hidden)]
    fn observe(body: T, watch: Option<Watch>) -> Self::Body;
}

/// A call ends with its response's body.
#[derive(Debug, Clone, Copy)]
pub enum AtBodyEnd {}

/// A call ends with its response's head: the response is complete by then.
#[derive(Debug, Clone, Copy)]
pub enum AtHead {}

/// The watch over a call.
#[doc(hidden)]
#[derive(Debug)]
pub struct Watch(pub(super) CallWatch);

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::AtBodyEnd {}
    impl Sealed for super::AtHead {}
}

impl<B: Body> EndsCall<B> for AtBodyEnd {
    type Body = ObservedBody<B>;

    fn observe(body: B, watch: Option<Watch>) -> ObservedBody<B> {
        ObservedBody::new(body, watch.map(|watch| watch.0))
    }
}

impl<T> EndsCall<T> for AtHead {
    type Body = T;

    fn observe(body: T, watch: Option<Watch>) -> T {
        if let Some(Watch(mut watch)) = watch {
            watch.end(HowEnded::Complete);
        }
        body
    }
}

impl<S, M, ReqBody, T> Service<Request<ReqBody>> for Observe<S, M>
where
    S: Service<Request<ReqBody>, Response = Response<T>, Error: 'static>,
    M: EndsCall<T>,
{
    type Response = Response<M::Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, M>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let watch = start(&self.shared, &mut request);
        ResponseFuture { inner: self.inner.call(request), watch, mode: PhantomData }
    }
}

/// Marks a request that is observed already: the outermost of two observing layers reports it.
#[derive(Debug, Clone, Copy)]
struct Observed;

fn start<B>(shared: &Arc<Shared>, request: &mut Request<B>) -> Option<CallWatch> {
    if request.extensions_mut().insert(Observed).is_some() {
        return None;
    }
    let call = Call::parse(request.method(), request.uri(), request.headers(), None);
    let options = request.extensions_mut().get_or_insert_default::<CallOptions>();
    Some(shared.start(options.trail_mut().clone(), call.generates()))
}

/// The future of [`Observe`].
// The inner future comes before the watch and is dropped first, so that it records what a dropped
// call was doing before the call is reported.
#[pin_project]
pub struct ResponseFuture<F, M = AtBodyEnd> {
    #[pin]
    inner: F,
    watch: Option<CallWatch>,
    mode: PhantomData<fn() -> M>,
}

impl<F, M> fmt::Debug for ResponseFuture<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("watch", &self.watch).finish_non_exhaustive()
    }
}

impl<F, M, T, E> Future for ResponseFuture<F, M>
where
    F: Future<Output = Result<Response<T>, E>>,
    M: EndsCall<T>,
    E: 'static,
{
    type Output = Result<Response<M::Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let mut watch = this.watch.take();
        Poll::Ready(match result {
            Ok(mut response) => {
                if let Some(watch) = &mut watch {
                    watch.status = Some(response.status().as_u16());
                    response.extensions_mut().insert(watch.id().clone());
                    response.extensions_mut().insert(watch.trail().clone());
                }
                Ok(response.map(|body| M::observe(body, watch.map(Watch))))
            }
            Err(error) => {
                if let Some(watch) = &mut watch {
                    watch.end(HowEnded::failed(&error));
                }
                Err(error)
            }
        })
    }
}
