//! The incremental scanner of answers with images in them.

mod answer;

pub use answer::{Answer, Image, PartSpan, TokenCount, Usage};
