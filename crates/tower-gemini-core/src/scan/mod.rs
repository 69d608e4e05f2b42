//! Scans responses with images in them incrementally.
//!
//! [`Scanner`] is fed a response's bytes as they arrive, in any pieces, and says at the end what
//! the response holds: its reasons, token counts and text, and which of its images is the final
//! one. Base64 is decoded on the way, block by block, so that the image is ready microseconds
//! after the last byte, and neither the JSON nor the drafts are ever collected.
//!
//! ```
//! use tower_gemini_core::call::Framing;
//! use tower_gemini_core::scan::Scanner;
//!
//! let body = br#"{"candidates": [{
//!     "content": {"parts": [
//!         {"inlineData": {"mimeType": "image/png", "data": "ZHJhZnQ="}, "thought": true},
//!         {"inlineData": {"mimeType": "image/png", "data": "ZmluYWw="}}
//!     ]},
//!     "finishReason": "STOP"
//! }]}"#;
//! let mut scanner = Scanner::decoding(Framing::Whole);
//! for chunk in body.chunks(16) {
//!     scanner.feed(chunk)?;
//! }
//! let answer = scanner.finish()?;
//! assert_eq!(answer.finish_reason.as_deref(), Some("STOP"));
//! assert_eq!((answer.images, answer.thought_images), (2, 1));
//! let image = answer.image.unwrap();
//! assert_eq!(&image.bytes[..], b"final");
//! assert!(!image.is_thought);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which image is final
//!
//! Every one that is not marked `thought`, in order, with one exception: of the unmarked images of
//! a model that thinks ([`unmarked_drafts`](Scanner::unmarked_drafts)), the last wins of those
//! without text between them. A response with nothing but thoughts gives the last, flagged
//! [`is_thought`](Image::is_thought). The last final image is [`Answer::image`], those before it
//! are [`Answer::earlier_images`]. [`Finals`] is this rule alone, for readers that need more of
//! each part than [`Scanner`] keeps. Images of every candidate count, words of the first only.
//! Shapes are distinguished by structure, whatever was asked for: Gemini and Vertex `candidates`,
//! Imagen `predictions`, OpenAI-style `choices` and `data`, image events, Interactions `outputs`
//! and `steps`, and data URIs in texts.
//!
//! # Which framing
//!
//! The body's first bytes decide, since servers send errors in another framing than the one asked
//! for: `[` begins an array of chunks, `{` one JSON value (or JSON lines, unless [`Framing::Whole`]
//! was asked for), anything else server-sent events. Between and behind events, a bare JSON value
//! is read as one more event: Google ends failing streams so.
//!
//! # What is an error
//!
//! JSON grammar and UTF-8 are checked as serde_json checks them. Three deliberate differences:
//! numbers beyond `f64` pass, and so does a byte order mark; a repeated member wins over the first
//! as usual, but where the first has cost an image its place in the buffer (`"thought": true`
//! before the data, `"thought": false` behind them), the scan fails instead of choosing wrong.
//! Corrupt base64 of an image is an error too. A response that is an error
//! object is none: see [`Answer::error`].
//!
//! # Memory
//!
//! The final images, plus a thirty-second of the last, for any number of drafts before it. The buffer grows by
//! that much at a time, which is free where large blocks are reallocated by moving pages (the
//! system allocator of Linux) and costs copies where they are not: there, set the length with
//! [`Scanner::expect_len`]. Where an image follows one that may be final and is not known
//! beforehand to replace it (`thought` stands behind the data), both are held until it is known. A
//! judging scanner holds 16 KiB, a draining one half a megabyte and what one chunk decodes to.

mod answer;
mod base64;
mod dimensions;
mod error;
mod finals;
mod framing;
mod json;
mod paths;
mod read;
mod scanner;
mod signatures;
mod sse;
mod store;
mod stream_strip;
mod strip;
#[cfg(test)]
mod tests;
mod uri;
mod values;

pub use answer::{Answer, Image, PartSpan, TokenCount, Usage};
pub use dimensions::dimensions_of;
pub use error::{ScanError, ScanFailure};
pub use finals::Finals;
pub use framing::Framing;
pub use scanner::{Decoded, Scanner};
pub(crate) use signatures::MAX_TEXT as MAX_KEYED_TEXT;
pub use signatures::{PartKey, PartKeyer, PartSignature};
pub use stream_strip::StreamStripper;
pub use strip::strip_drafts;
pub use uri::TextPiece;
pub(crate) use values::ValueReader;
