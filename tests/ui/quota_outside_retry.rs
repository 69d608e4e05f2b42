//! Quota outside retry counted 1 where 5 were sent.

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
            QuotaGuardLayer::off(),
            JitteredRetryLayer::recommended(),
            ClassifyGeminiErrorLayer::new(),
        ),
        client,
    );
}
