//! Fetches input images by URL, and tells webhooks.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};

use crate::config::Upstream;
use crate::outbound::{self, HttpClient, innermost};

/// The longest image that is fetched: the largest request that Gemini takes (100 MB with base64).
const LONGEST: usize = 70_000_000;
/// For one whole exchange. Ours.
const EXCHANGE: Duration = Duration::from_secs(60);

/// One request to somebody else's server, and its whole body.
async fn exchange(
    key: &str,
    request: Request<Full<Bytes>>,
    connect: Duration,
    longest: usize,
) -> Result<Bytes, String> {
    let target = Upstream::other(key, request.uri().clone(), None);
    let client: HttpClient<Full<Bytes>> =
        outbound::client(&target, connect).map_err(|error| error.to_string())?;
    let exchange = async {
        let response = client.request(request).await.map_err(|error| innermost(&error))?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), longest).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| innermost(&*error))
    };
    let exchange = tokio::time::timeout(EXCHANGE, exchange).await;
    exchange.map_err(|_| "no whole answer within 60 s".to_owned())?
}

/// The file at a URL.
pub(super) async fn image(url: String, connect: Duration) -> Result<Bytes, String> {
    let uri: Uri = url.parse().map_err(|_| "no valid URL".to_owned())?;
    let request = Request::get(uri).body(Full::default()).map_err(|error| error.to_string())?;
    exchange("input", request, connect, LONGEST).await
}
