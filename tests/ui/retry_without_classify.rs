//! Nobody judges the answers that this retry should decide by.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, service_fn};
use tower_gemini::body::ReplayBody;
use tower_gemini::Error;
use tower_gemini::JitteredRetryLayer;

fn wrong(request: Request<ReplayBody>) {
    let client = service_fn(|_: Request<ReplayBody>| async { Ok::<_, Error>(Response::new(Full::<Bytes>::default())) });
    let mut service = JitteredRetryLayer::recommended().layer(client);
    let _ = Service::<Request<ReplayBody>>::call(&mut service, request);
}

fn main() {}
