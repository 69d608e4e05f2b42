//! A drop-in base URL for Gemini SDKs that never pays twice.
//!
//! Install the program with `cargo install --path crates/tower-gemini-gateway` and run
//! `gemini-gateway --simulate`, or mount a [`Gateway`] in an axum app.
//!
//! | module | does |
//! | --- | --- |
//! | [`config`], `cli`, `reload`, `guard`, `program` | read the arguments and settings |
//! | `gateway`, `snapshot`, `stacks`, `upstream`, `outbound` | build layers, stacks and upstreams |
//! | `running`, `server`, `socket`, `tls`, `limits` | serve connections within limits |
//! | `auth`, `door` | admit callers, and what they ask for |
//! | `state`, `state_guard` | open what outlives the process, and refuse paid work while it cannot be written |
//! | `handler`, `wire`, `transform`, `heartbeat`, `mask`, `responses`, `report` | handle one request |
//! | [`stats`] | counts calls and says what the counts mean |
//! | [`explain`], `doctor`, `cost` | say what a response means, what is wrong with a setup, what a volume costs |
//! | `pages`, [`status`], `log`, `alerts`, `otel` | report the state of the gateway |
//!
//! [`start`] runs one on a socket of its own inside another program; [`app`] is the whole program.

mod alerts;
#[cfg(test)]
mod article_tests;
mod auth;
mod body_fault;
mod budgets;
mod cli;
pub mod config;
mod cost;
mod doctor;
mod door;
pub mod explain;
mod figures;
#[cfg(test)]
mod figures_tests;
mod files;
mod gateway;
mod guard;
mod handler;
mod heartbeat;
#[cfg(test)]
mod in_process_tests;
#[cfg(feature = "jobs")]
mod jobs;
mod limits;
#[cfg(test)]
mod linear_tests;
mod log;
mod mask;
mod memory;
mod observations;
#[cfg(test)]
mod ops_tests;
#[cfg(feature = "otel")]
mod otel;
#[cfg(not(feature = "otel"))]
#[path = "otel/off.rs"]
mod otel;
mod outbound;
mod pages;
mod presets;
mod program;
mod queue;
mod reload;
mod report;
mod responses;
mod running;
mod server;
mod several;
#[cfg(test)]
mod several_tests;
mod simulate;
mod snapshot;
mod socket;
mod stacks;
mod state;
mod state_guard;
pub mod stats;
pub mod status;
mod sync;
mod tls;
mod today;
mod transform;
mod upstream;
mod vendor;
mod wire;

pub use self::config::{Config, ConfigError};
pub use self::gateway::Gateway;
pub use self::program::{app, ends_in_order};
pub use self::running::{Running, Signal, start};
pub use self::state::State;

/// The README's example runs as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
