//! What an answer of Gemini's image API means, and what it cost.
//!
//! Pure types and functions: no tower, no tokio, no socket, no clock and no randomness. The layers
//! of `tower-gemini` carry out what this crate decides.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`call`] | [`Call`](call::Call): what a request asks for |
//! | [`classify`] | [`classify`](classify::classify): what an answer means |
//! | [`verdict`] | [`Verdict`](verdict::Verdict), [`Charge`](verdict::Charge), [`ResendPermit`](verdict::ResendPermit) |
//! | [`scan`] | the incremental scanner of answers with images in them |
//! | [`body`] | [`ReplayBody`](body::ReplayBody) going down, [`JudgedBody`](body::JudgedBody) coming up |
//! | [`clock`] | [`Clock`](clock::Clock): wall time, handed in |
//! | [`target`] | [`Target`](target::Target): what a call may be sent to instead, and the request rewritten for it |
//! | [`context`] | what one call carries through all its attempts: deadline, allowance, trail |
//! | [`trail`] | [`Trail`](trail::Trail): what was decided, in order, and why |
//! | [`catalog`] | models as data: sizes, prices, dates |
//! | [`cost`] | money as intervals |
//! | [`json`] | the JSON text of a request: reading, skipping, splicing |
//! | [`redact`] | keeping keys out of everything that is printed |
//! | [`error`] | [`Error`](error::Error): one cause, one verdict, no secrets |

pub mod body;
pub mod call;
pub mod catalog;
pub mod classify;
pub mod clock;
pub mod context;
pub mod cost;
pub mod error;
pub mod json;
pub mod redact;
pub mod scan;
mod size;
pub mod target;
pub mod trail;
pub mod verdict;
