//! A body cannot be cloned, made or sent by hand: a second send needs a permit of the crate's.

use tower_gemini::{AttemptBody, CallBody};

fn clone(body: &CallBody) -> CallBody {
    body.clone()
}

fn make() -> AttemptBody {
    AttemptBody {}
}

fn send<B: http_body::Body>(_: B) {}

fn main() {
    let _ = (clone, make);
    let _: fn(CallBody) = send::<CallBody>;
}
