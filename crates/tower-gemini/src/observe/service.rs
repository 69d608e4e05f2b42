use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::call_options::CallOptions;
use http::{Request, Response};
use http_body::Body;
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
}

crate::access::inner_access!(Observe, M);

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

/// When a call ends: [`AtBodyEnd`] or [`AtHead`]. There are no others: only this crate can name
/// what is passed to `observe`.
pub trait EndsCall<T> {
    /// The body of observed responses.
    type Body;

    #[doc(hidden)]
    fn observe(body: T, watch: Option<CallWatch>) -> Self::Body;
}

/// A call ends with its response's body.
#[derive(Debug, Clone, Copy)]
pub enum AtBodyEnd {}

/// A call ends with its response's head: the response is complete by then.
#[derive(Debug, Clone, Copy)]
pub enum AtHead {}

impl<B: Body> EndsCall<B> for AtBodyEnd {
    type Body = ObservedBody<B>;

    fn observe(body: B, watch: Option<CallWatch>) -> ObservedBody<B> {
        ObservedBody::new(body, watch)
    }
}

impl<T> EndsCall<T> for AtHead {
    type Body = T;

    fn observe(body: T, watch: Option<CallWatch>) -> T {
        watch.into_iter().for_each(|mut watch| watch.end(HowEnded::Complete));
        body
    }
}

type ResponseFuture<B, E> = Pin<Box<dyn Future<Output = Result<Response<B>, E>> + Send>>;

impl<S, M, ReqBody, T> Service<Request<ReqBody>> for Observe<S, M>
where
    S: Service<Request<ReqBody>, Response = Response<T>, Error: 'static, Future: Send> + 'static,
    M: EndsCall<T> + 'static,
    ReqBody: 'static,
    T: 'static,
{
    type Response = Response<M::Body>;
    type Error = S::Error;
    type Future = ResponseFuture<M::Body, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let watch = start(&self.shared, &mut request);
        Box::pin(Watched { response: self.inner.call(request), watch }.observe::<M, _, _>())
    }
}

/// A call whose response has not come.
struct Watched<F> {
    /// Dropped before the watch, so that it records what a dropped call was doing before the call is
    /// reported.
    response: F,
    watch: Option<CallWatch>,
}

impl<F> Watched<F> {
    async fn observe<M, T, E>(self) -> Result<Response<M::Body>, E>
    where
        F: Future<Output = Result<Response<T>, E>>,
        M: EndsCall<T>,
        E: 'static,
    {
        // Moved out first, to be dropped last.
        let mut watch = self.watch;
        match self.response.await {
            Ok(mut response) => {
                if let Some(watch) = &mut watch {
                    watch.status = Some(response.status().as_u16());
                    response.extensions_mut().insert(watch.id().clone());
                    response.extensions_mut().insert(watch.trail().clone());
                }
                Ok(response.map(|body| M::observe(body, watch)))
            }
            Err(error) => {
                watch.into_iter().for_each(|mut watch| watch.end(HowEnded::failed(&error)));
                Err(error)
            }
        }
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
    let own = options.observer.take();
    Some(shared.start(options.trail_mut().clone(), call.generates(), own))
}
