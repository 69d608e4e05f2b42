//! The quota guard as a whole: against a Google that counts exactly, over every store, under every
//! interleaving.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail as tests do"
)]

mod google;
mod quota_redb;
mod quota_redis;
mod quota_service;
mod quota_shuttle;
mod quota_simulator;
mod quota_stores;
