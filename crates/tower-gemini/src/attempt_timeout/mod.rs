//! Ends an attempt in time, and lets the server give up first, which is free.
//!
//! ```
//! use std::time::Duration;
//! use tower_gemini::{AttemptTimeoutLayer, call::ImageSize};
//!
//! let layer = AttemptTimeoutLayer::new()
//!     .limit_for(ImageSize::K4, Duration::from_secs(480))
//!     .idle_limit(Duration::from_secs(60));
//! # let _ = layer;
//! ```
//!
//! # Why
//!
//! A timeout of ours leaves an attempt that may have been charged. So each attempt also carries
//! `X-Server-Timeout`, a margin below our own limit: the server gives up first and responds 504,
//! which is not charged. Our own limit is the last resort, and its verdict says so: *maybe
//! charged*.
//!
//! It covers the head and the body. After the head has come, a gap of the idle limit between two
//! chunks ends the attempt too. The call's deadline, where there is one, shortens the limit.
//!
//! # Order in the stack
//!
//! Inside [`JitteredRetry`](crate::JitteredRetry), so that each attempt has its own; outside
//! [`ClassifyGeminiError`](crate::ClassifyGeminiError).
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | limit of 512, 1K and 2K, and of calls without an image | 300 s | operators' error guide for Nano Banana Pro, 2026-02: 2.5 to 10 times the usual generation |
//! | limit of 4K | 600 s | operators' error guide for Nano Banana Pro, 2026-02; Google's gRPC configuration for generateContent says 600 s too |
//! | margin of `X-Server-Timeout` | 5 s | ours: a few round trips and the 504 on its way |
//! | idle limit | 120 s | operators' error guide for Nano Banana Pro, 2026-02: the shortest read timeout it trusts; 2.8 MB in 300 s has been reported for a whole response |
//! | more for the flex tier | 15 min | it queues so long ([`ServiceTier::queue_time`]) |
//! | longest limit that a caller can ask for | 20 min | ours: flex's queue and the usual limit |
//!
//! A caller's own `X-Server-Timeout` is kept where it is shorter. A longer one raises our limit, and
//! the server is told a margin less.
//!
//! [`ServiceTier::queue_time`]: crate::call::ServiceTier::queue_time
//!
//! # Errors
//!
//! An [`Error`](crate::error::Error) with
//! [`is_timeout`](crate::error::Error::is_timeout), maybe charged: from the future, or
//! from the body.
//!
//! # Cancel safety
//!
//! Dropping the future or the body drops the timer; nothing runs on.

mod layer;
mod limits;
mod service;

pub use layer::AttemptTimeoutLayer;
pub use service::AttemptTimeout;
