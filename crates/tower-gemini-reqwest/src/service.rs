use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body as _;
use reqwest::ResponseBuilderExt;
use tower_gemini::body::WireBody;
use tower_gemini::classify_gemini_error::evidence::NotSent;
use tower_gemini::error::BoxError;
use tower_gemini::redact::redact;
use tower_service::Service;

use crate::sync_body::SyncBody;

/// A [`reqwest::Client`] as the innermost service of a stack.
///
/// The request's body is handed out piece by piece as the client asks for it, so that the stack
/// knows of a request that broke off whether the server can have all of it. Errors lose their URL,
/// which may hold a key; those that came before anything was sent are marked as [`NotSent`]. The
/// response keeps its URL, but for the value of a `?key=`: `reqwest::Response::from(response)` has it.
///
/// Make the client with [`client_builder`](crate::client_builder): one that follows redirects, or
/// sends again by itself, does so behind the stack's back.
///
/// ```
/// use tower::ServiceExt;
/// use tower_gemini::GeminiStack;
/// use tower_gemini_reqwest::{ReqwestService, client_builder};
/// # use tower_gemini_sim::{Fault, Sim, serve};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = serve(Sim::quick([Fault::None]), ([127, 0, 0, 1], 0).into()).await?;
/// # let url = server.url();
/// let gemini = GeminiStack::new().images(ReqwestService::new(client_builder().build()?));
/// let request = http::Request::post(format!("{url}/v1beta/models/gemini-3-pro-image:generateContent"))
///     .header("x-goog-api-key", "a-key")
///     .body(reqwest::Body::from(r#"{"contents":[{"parts":[{"text":"a cat"}]}]}"#))?;
/// let image = gemini.oneshot(request).await?.into_body();
/// assert!(!image.bytes.is_empty());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct ReqwestService {
    client: reqwest::Client,
}

impl ReqwestService {
    /// Sends through this client.
    #[must_use]
    pub fn new(client: reqwest::Client) -> Self {
        Self { client }
    }
}

impl From<reqwest::Client> for ReqwestService {
    fn from(client: reqwest::Client) -> Self {
        Self::new(client)
    }
}

impl Service<Request<WireBody>> for ReqwestService {
    type Response = Response<reqwest::Body>;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // A client of reqwest is always ready: it holds no place for anybody.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<WireBody>) -> ResponseFuture {
        let sent = to_reqwest(request).map(|request| self.client.execute(request));
        Box::pin(async move {
            match sent {
                Ok(response) => response.await.map(from_reqwest).map_err(without_url),
                Err(error) => Err(without_url(error)),
            }
        })
    }
}

/// The future of [`ReqwestService`].
pub type ResponseFuture =
    Pin<Box<dyn Future<Output = Result<Response<reqwest::Body>, BoxError>> + Send>>;

/// A request of the stack as one of reqwest. The timeout and the version that reqwest was asked for
/// are in its extensions and its head.
pub(crate) fn to_reqwest(
    mut request: Request<WireBody>,
) -> Result<reqwest::Request, reqwest::Error> {
    if request.body().size_hint().exact().is_some() {
        // The length is known, and hyper states it. What a caller or another layer stated before
        // the body was changed would cut the request short, or let the server wait for bytes that
        // never come.
        request.headers_mut().remove(http::header::CONTENT_LENGTH);
        request.headers_mut().remove(http::header::TRANSFER_ENCODING);
    }
    request.map(SyncBody::wrap).try_into()
}

/// A response of reqwest as one for the stack.
pub(crate) fn from_reqwest(response: reqwest::Response) -> Response<reqwest::Body> {
    let url = response.url().clone();
    // The conversion loses the URL.
    with_url(Response::<reqwest::Body>::from(response), url)
}

/// A response that has this URL, unless it has one: a stack's own responses have none, and
/// reqwest would make one up.
pub(crate) fn with_url<B>(mut response: Response<B>, url: reqwest::Url) -> Response<B> {
    // Its place in the extensions can only be filled through a builder.
    if let Ok(holder) = Response::builder().url(without_key_in_query(url)).body(()) {
        let mut extensions = holder.into_parts().0.extensions;
        extensions.extend(std::mem::take(response.extensions_mut()));
        *response.extensions_mut() = extensions;
    }
    response
}

/// The URL without the value of a key in its query. reqwest puts a response's URL into the errors of
/// reading its body and of `error_for_status`, which are logged more often than any other.
fn without_key_in_query(mut url: reqwest::Url) -> reqwest::Url {
    let query = format!("?{}", url.query().unwrap_or_default());
    if let Cow::Owned(clean) = redact(&query) {
        url.set_query(clean.strip_prefix('?'));
    }
    url
}

/// Whether an error came before anything was sent: no connection could be made, or no request. In
/// doubt it did not.
pub(crate) fn was_not_sent(error: &reqwest::Error) -> bool {
    error.is_connect() || error.is_builder()
}

fn without_url(error: reqwest::Error) -> BoxError {
    let not_sent = was_not_sent(&error);
    let error = error.without_url();
    if not_sent { NotSent::new(error).into() } else { error.into() }
}
