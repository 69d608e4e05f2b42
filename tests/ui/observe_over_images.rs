//! Observe over a stack without response bodies watched each call to its head only.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower_gemini::*;

fn main() {
    let client = tower::service_fn(|_: Request<WireBody>| async {
        Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::default()))
    });
    let _ = GeminiStack::new().observe(ObserveLayer::new()).images(client);
}
