//! The quota guard and the spending account over every store, under every interleaving, and against
//! the simulator.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail as tests do"
)]

mod common;
mod journal;
mod quota_postgres;
mod quota_redb;
mod quota_redis;
mod quota_shuttle;
mod quota_simulator;
mod quota_stores;
mod spending_stores;
