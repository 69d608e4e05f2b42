//! Asks servers that a job names: for input images, and as webhooks.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tower_gemini::error::BoxError;

use super::address::{self, PRIVATE, is_public};
use crate::config::Upstream;
use crate::outbound::{self, innermost};

/// The longest image that is fetched: the largest request that Gemini takes (100 MB with base64).
const LONGEST: usize = 70_000_000;
/// For one whole exchange. Ours.
const EXCHANGE: Duration = Duration::from_secs(60);

/// Which servers may be asked, and how. Redirects are not followed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    /// For a connection.
    pub(super) connect: Duration,
    /// Also those at loopback, link-local and private addresses.
    pub(super) private: bool,
}

impl Reach {
    /// One request, and the whole body of a response of 2xx.
    pub(super) async fn ask(
        self,
        request: Request<Full<Bytes>>,
        within: Duration,
        longest: usize,
    ) -> Result<Bytes, String> {
        let target = Upstream::other("jobs", request.uri().clone(), None);
        let tls = outbound::tls(&target).map_err(|error| error.to_string())?;
        let dial = tower::service_fn(move |uri| self.dial(uri));
        let https: HttpsConnector<_> = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(dial);
        let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(https);
        let exchange = async {
            let response = client.request(request).await.map_err(|error| innermost(&error))?;
            if !response.status().is_success() {
                return Err(format!("it answered {}", response.status()));
            }
            let body = Limited::new(response.into_body(), longest).collect().await;
            body.map(|body| body.to_bytes()).map_err(|error| innermost(&*error))
        };
        let exchange = tokio::time::timeout(within, exchange).await;
        exchange.map_err(|_| format!("no whole answer within {} s", within.as_secs()))?
    }

    /// Connects to one of the addresses that were checked: a name that is resolved twice may lead
    /// elsewhere the second time.
    async fn dial(self, uri: Uri) -> Result<TokioIo<TcpStream>, BoxError> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(match uri.scheme_str() {
            Some("https") => 443,
            _ => 80,
        });
        let connect = async {
            let resolved = tokio::net::lookup_host((host, port)).await?;
            let allowed: Vec<_> =
                resolved.filter(|one| self.private || is_public(one.ip())).collect();
            if allowed.is_empty() {
                return Err(BoxError::from(format!("it {PRIVATE}")));
            }
            let stream = TcpStream::connect(&*allowed).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        };
        let connected = tokio::time::timeout(self.connect, connect).await;
        connected.map_err(|_| "no connection in time (timeouts.connect)")?
    }
}

/// The file at a URL.
pub(super) async fn image(url: String, reach: Reach) -> Result<Bytes, String> {
    let uri = address::url(&url, reach.private)?;
    let request = Request::get(uri).body(Full::default()).map_err(|error| error.to_string())?;
    reach.ask(request, EXCHANGE, LONGEST).await
}
