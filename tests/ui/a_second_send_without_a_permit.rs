//! There is no second body without a permit, and no permit after a charge or out of thin air.

use tower_gemini::body::{KeptRequest, ReplayBody};
use tower_gemini::verdict::ResendPermit;

fn steal(body: &ReplayBody) -> ReplayBody {
    body.clone()
}

fn again(kept: &KeptRequest) {
    let _ = kept.again(ResendPermit { risk: () });
}

fn twice(kept: &KeptRequest, permit: ResendPermit) {
    let _ = kept.again(permit);
    let _ = kept.again(permit);
}

fn main() {}
