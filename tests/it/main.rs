//! Whole stacks against the simulator, judged by the simulator's ledger and not by our own
//! verdicts.
//!
//! `PROPTEST_CASES` raises the number of cases of every property; none runs fewer than 1,000.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on says where"
)]

mod axum_doors;
mod cancel;
mod compile_fail;
mod cuts;
mod extract;
mod fallback_invariants;
mod fallback_stack;
mod fallback_waits;
mod harness;
mod interactions;
mod invariants;
mod keep_paid;
mod model;
mod observe;
mod orders;
mod outages;
mod peak_router;
mod ready;
mod resends;
mod secrets;
mod served_by;
mod shapes;
mod signatures_history;
mod spending_caps;
mod timeouts;
