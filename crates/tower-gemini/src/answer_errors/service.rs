use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use super::AnswerErrorsLayer;
use super::response::{error_response, set_retry_headers};
use crate::body::HasVerdict;
use crate::error::Error;
use crate::ready::take_ready;

/// Responds where the inner service fails. See the [module](super).
#[derive(Debug, Clone)]
pub struct AnswerErrors<S> {
    inner: S,
    settings: AnswerErrorsLayer,
}

crate::access::inner_access!(AnswerErrors);

impl<S> AnswerErrors<S> {
    pub(super) fn new(inner: S, settings: AnswerErrorsLayer) -> Self {
        Self { inner, settings }
    }
}

impl<S, R, B> Service<R> for AnswerErrors<S>
where
    S: Service<R, Response = Response<B>, Error = Error, Future: Send> + Clone + Send + 'static,
    R: Send + 'static,
    B: HasVerdict + 'static,
{
    type Response = Response<ResponseBody<B>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A service that never fails cannot report that it failed to become ready: the future polls
        // it, and responds with the error.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let mut inner = take_ready(&mut self.inner);
        let settings = self.settings.clone();
        Box::pin(async move {
            let response = match poll_fn(|cx| inner.poll_ready(cx)).await {
                Ok(()) => inner.call(request).await,
                Err(error) => Err(error),
            };
            Ok(settings.respond(response))
        })
    }
}

impl AnswerErrorsLayer {
    fn respond<B: HasVerdict>(
        &self,
        response: Result<Response<B>, Error>,
    ) -> Response<ResponseBody<B>> {
        let (mut parts, body) = match response {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                (parts, ResponseBody(Inner::Upstream(body)))
            }
            Err(error) => {
                let (mut parts, bytes) = error_response(&error, self.told.charged).into_parts();
                if let Some(trail) = error.trail() {
                    parts.extensions.insert(trail.clone());
                }
                let verdict = Box::new(error.verdict().clone());
                (parts, ResponseBody(Inner::Error { bytes: Some(bytes), verdict }))
            }
        };
        let (status, headers) = (&mut parts.status, &mut parts.headers);
        set_retry_headers(status, headers, body.verdict(), &self.told, self.clock.now());
        Response::from_parts(parts, body)
    }
}

/// The upstream's body, or the text of an error.
#[pin_project]
pub struct ResponseBody<B>(#[pin] Inner<B>);

#[pin_project(project = InnerProjection)]
enum Inner<B> {
    Upstream(#[pin] B),
    Error { bytes: Option<Bytes>, verdict: Box<Verdict> },
}

impl<B: HasVerdict> HasVerdict for ResponseBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        match &self.0 {
            Inner::Upstream(body) => body.verdict(),
            Inner::Error { verdict, .. } => Some(verdict),
        }
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().0.project() {
            InnerProjection::Upstream(body) => body.poll_frame(cx),
            InnerProjection::Error { bytes, .. } => {
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Upstream(body) => body.is_end_stream(),
            Inner::Error { bytes, .. } => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Upstream(body) => body.size_hint(),
            Inner::Error { bytes, .. } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Upstream(body) => f.debug_tuple("ResponseBody").field(body).finish(),
            Inner::Error { verdict, .. } => f.debug_tuple("ResponseBody").field(verdict).finish(),
        }
    }
}
