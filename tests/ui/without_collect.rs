//! Nothing makes calls of requests.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower_gemini::*;

fn main() {
    let client = tower::service_fn(|_: Request<WireBody>| async {
        Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::default()))
    });
    let stack = (JitteredRetryLayer::recommended(), ClassifyGeminiErrorLayer::new());
    let _ = compose((AnswerErrorsLayer::new(), stack), client);
}
