//! What an answer of Gemini's image API means, and what it cost.
//!
//! Pure types and functions: no tower, no tokio, no socket, no clock and no randomness. The layers
//! of `tower-gemini` carry out what this crate decides.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`call`] | [`Call`](call::Call): what a request asks for |
//! | [`classify`] | [`classify`](classify::classify): what an answer means |
//! | [`verdict`] | [`Verdict`](verdict::Verdict), [`Charge`](verdict::Charge) |
//! | [`scan`] | the incremental scanner of answers with images in them |
//! | [`target`] | [`Target`](target::Target): what a call may be sent to instead, and the request rewritten for it |
//! | [`catalog`] | models as data: sizes, prices, dates |
//! | [`cost`] | money as intervals |
//! | [`redact`] | keeping keys out of everything that is printed |

pub mod call;
pub mod catalog;
pub mod charge_rules;
pub mod classify;
pub mod cost;
mod json;
pub mod redact;
pub mod scan;
mod served;
mod size;
pub mod target;
pub mod verdict;

/// The README's example runs as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
