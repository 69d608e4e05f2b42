//! The image has been taken out, and the verdict is used up, before retry could ask for it.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower_gemini::*;

fn main() {
    let client = tower::service_fn(|_: Request<WireBody>| async {
        Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::default()))
    });
    let _ = compose(
        (
            CollectRequestLayer::new(),
            JitteredRetryLayer::recommended(),
            FinalImageExtractLayer::new(),
            ClassifyGeminiErrorLayer::new(),
        ),
        client,
    );
}
