//! A body cannot be cloned, made or sent by hand: a second send needs a permit of the crate's.

use tower_gemini::{AttemptBody, CallBody};

fn clone(body: &CallBody) -> CallBody {
    body.clone()
}

fn make() -> AttemptBody {
    AttemptBody {}
}

/// What a client takes as a request's body.
trait CanBeSent {}

#[diagnostic::do_not_recommend]
impl<B: http_body::Body> CanBeSent for B {}

fn send<B: CanBeSent>(_: B) {}

fn main() {
    let _ = (clone, make);
    let _: fn(CallBody) = send::<CallBody>;
}
