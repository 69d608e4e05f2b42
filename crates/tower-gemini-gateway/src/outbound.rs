//! Connections to the upstreams: directly or through an HTTP proxy, with public or private CAs.

use std::error::Error as StdError;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::TryFutureExt as _;
use futures::future::{self, BoxFuture, MapOk};
use http::uri::Authority;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Either;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower::ServiceExt;
use tower_gemini::body::WireBody;
use tower_gemini::error::BoxError;
use tower_gemini::stage::WireClient;
use tower_gemini::target::UpstreamId;
use tower_service::Service;

use crate::config::{ConfigError, Upstream};
use crate::log;
use crate::tls::certificates;
use crate::vendor::{self, VendorBody};

/// The client of one upstream, or of something else that is called.
pub(crate) type HttpClient<B = WireBody> = Client<HttpsConnector<Dial>, B>;

/// Opens connections.
#[derive(Debug, Clone)]
pub(crate) enum Dial {
    Direct(HttpConnector),
    /// With CONNECT, so that the proxy sees the upstream's name and no key or image.
    Proxy(Tunnel<HttpConnector>),
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Direct(direct) => direct.poll_ready(cx).map_err(Into::into),
            Self::Proxy(tunnel) => tunnel.poll_ready(cx).map_err(Into::into),
        }
    }

    fn call(&mut self, upstream: Uri) -> Self::Future {
        match self {
            Self::Direct(direct) => {
                let connecting = direct.call(upstream);
                Box::pin(async move { Ok(connecting.await?) })
            }
            Self::Proxy(tunnel) => {
                let connecting = tunnel.call(upstream);
                Box::pin(async move { Ok(connecting.await?) })
            }
        }
    }
}

/// One upstream's client.
#[derive(Debug, Clone)]
pub(crate) struct Route<C> {
    pub(crate) id: UpstreamId,
    pub(crate) address: Authority,
    pub(crate) client: C,
    /// Where another vendor's images API is.
    pub(crate) images_api: Option<Uri>,
}

impl<C> Route<C> {
    /// Whether a request is for this upstream. Another vendor may share its address with a server
    /// that speaks Gemini's API: only what a fallback sends to it is its own.
    fn is_for(&self, request: &Request<WireBody>) -> bool {
        match &self.images_api {
            Some(_) => request.body().upstream() == Some(&self.id),
            None => request.uri().authority() == Some(&self.address),
        }
    }
}

/// Sends each request by the client of the upstream that it is addressed to.
#[derive(Debug, Clone)]
pub(crate) struct ByAddress<C> {
    /// For what is addressed to no other.
    own: C,
    /// Vendors first.
    others: Arc<[Route<C>]>,
}

impl<C: Clone> ByAddress<C> {
    /// For calls that are addressed to `own`, which may be sent to any of `all`.
    pub(crate) fn new(own: &Route<C>, all: &[Route<C>]) -> Self {
        let is_vendor = |route: &&Route<C>| route.images_api.is_some();
        let is_other = |route: &&Route<C>| !is_vendor(route) && route.address != own.address;
        let vendors = all.iter().filter(is_vendor);
        let others = vendors.chain(all.iter().filter(is_other)).cloned().collect();
        Self { own: own.client.clone(), others }
    }
}

/// The body of a client's response, or one that was made here.
type AnyBody<B> = Either<B, VendorBody>;
type Answer<C> = Response<AnyBody<<C as WireClient>::ResponseBody>>;

fn passed<B>(response: Response<B>) -> Response<AnyBody<B>> {
    response.map(Either::Left)
}

impl<C> Service<Request<WireBody>> for ByAddress<C>
where
    C: WireClient<ResponseBody: http_body::Body<Data = Bytes>, Future: 'static>,
{
    type Response = Answer<C>;
    type Error = C::Error;
    type Future = future::Either<
        MapOk<C::Future, fn(Response<C::ResponseBody>) -> Answer<C>>,
        BoxFuture<'static, Result<Answer<C>, C::Error>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.own.poll_ready(cx)
    }

    fn call(&mut self, request: Request<WireBody>) -> Self::Future {
        let other = self.others.iter().find(|other| other.is_for(&request));
        let Some(Route { client, images_api, .. }) = other.cloned() else {
            return future::Either::Left(self.own.call(request).map_ok(passed));
        };
        future::Either::Right(Box::pin(async move {
            match images_api {
                Some(images_api) => {
                    let response = vendor::ask(client, images_api, request).await?;
                    Ok(response.map(Either::Right))
                }
                None => client.oneshot(request).await.map(passed),
            }
        }))
    }
}

/// HTTP/1.1 only: over HTTP/2 long calls share one connection, and stall together when it does.
pub(crate) fn client<B>(
    upstream: &Upstream,
    connect_timeout: Duration,
) -> Result<HttpClient<B>, ConfigError>
where
    B: http_body::Body<Data: Send> + Send,
{
    let https = HttpsConnectorBuilder::new().with_tls_config(tls(upstream)?);
    let dial = dial(upstream, connect_timeout);
    let https = https.https_or_http().enable_http1().wrap_connector(dial);
    Ok(Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(https))
}

/// How an upstream is reached, without TLS.
pub(crate) fn dial(upstream: &Upstream, connect_timeout: Duration) -> Dial {
    let mut http = HttpConnector::new();
    http.set_connect_timeout(Some(connect_timeout));
    http.set_nodelay(true);
    http.enforce_http(false);
    let Some(proxy) = &upstream.proxy else { return Dial::Direct(http) };
    log::hide_password(&proxy.0.to_string());
    let tunnel = Tunnel::new(proxy.0.clone(), http);
    Dial::Proxy(match credentials(&proxy.0) {
        Some(credentials) => tunnel.with_auth(credentials),
        None => tunnel,
    })
}

/// Which certificates an upstream may have.
pub(crate) fn tls(upstream: &Upstream) -> Result<ClientConfig, ConfigError> {
    let failed = |key: &str, error: String| {
        let what = format!("upstream \"{}\": {error}", upstream.name);
        ConfigError::at(key, what, "")
    };
    let tls = ClientConfig::builder_with_provider(default_provider().into());
    let tls = tls
        .with_safe_default_protocol_versions()
        .map_err(|error| failed("upstream", format!("the TLS client cannot be built: {error}")))?;
    let Some(file) = &upstream.ca_file else {
        return Ok(tls.with_webpki_roots().with_no_client_auth());
    };
    let key = "upstream.ca_file";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file).map_err(|error| failed(key, error))? {
        roots.add(certificate).map_err(|error| failed(key, error.to_string()))?;
    }
    Ok(tls.with_root_certificates(roots).with_no_client_auth())
}

/// `user:password@` of a proxy's address.
fn credentials(proxy: &Uri) -> Option<HeaderValue> {
    let (user, _) = proxy.authority()?.as_str().rsplit_once('@')?;
    let user = percent_encoding::percent_decode_str(user).decode_utf8().ok()?;
    let mut value =
        HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(&*user))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// An error and its causes, each the cause of the one before.
pub(crate) fn chain<'e>(
    error: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (**error).source())
}

/// The text of the cause that no other has. It names no URL: only the client's own errors do.
pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_proxy_is_sent_as_it_is_meant() {
        let of = |proxy: &'static str| credentials(&Uri::from_static(proxy));
        assert_eq!(of("http://proxy:3128"), None);
        // `ann:p@ss`
        assert_eq!(of("http://ann:p%40ss@proxy:3128").unwrap(), "Basic YW5uOnBAc3M=");
    }
}
