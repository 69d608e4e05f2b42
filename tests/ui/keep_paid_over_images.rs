//! KeepPaid stores response bodies, and a stack of decoded images has none.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower_gemini::*;

fn main() {
    let client = tower::service_fn(|_: Request<WireBody>| async {
        Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::default()))
    });
    let _ = GeminiStack::new().keep_paid(KeepPaidLayer::new()).images(client);
}
