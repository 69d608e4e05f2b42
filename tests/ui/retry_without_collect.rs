//! A body that nobody holds cannot be sent again.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Service, ServiceBuilder, service_fn};
use tower_gemini::body::ReplayBody;
use tower_gemini::{ClassifyGeminiErrorLayer, JitteredRetryLayer};

fn wrong(request: Request<Full<Bytes>>) {
    let client = service_fn(|_: Request<ReplayBody>| async { Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::default())) });
    let mut service =
        ServiceBuilder::new().layer(JitteredRetryLayer::recommended()).layer(ClassifyGeminiErrorLayer::new()).service(client);
    let _ = Service::<Request<Full<Bytes>>>::call(&mut service, request);
}

fn main() {}
