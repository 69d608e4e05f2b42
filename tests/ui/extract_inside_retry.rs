//! The image has been taken out, and the verdict is used up, before retry could ask for it.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Service, ServiceBuilder, service_fn};
use tower_gemini::body::ReplayBody;
use tower_gemini::{ClassifyGeminiErrorLayer, FinalImageExtractLayer, JitteredRetryLayer};

fn wrong(request: Request<ReplayBody>) {
    let client = service_fn(|_: Request<ReplayBody>| async { Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::default())) });
    let mut service = ServiceBuilder::new()
        .layer(JitteredRetryLayer::recommended())
        .layer(FinalImageExtractLayer::new())
        .layer(ClassifyGeminiErrorLayer::new())
        .service(client);
    let _ = Service::<Request<ReplayBody>>::call(&mut service, request);
}

fn main() {}
