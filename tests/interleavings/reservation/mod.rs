#[path = "../../../crates/tower-gemini/src/reservation/queue.rs"]
pub(crate) mod queue;
#[path = "../../../crates/tower-gemini/src/reservation/turn.rs"]
pub(crate) mod turn;
