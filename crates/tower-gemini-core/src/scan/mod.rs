//! The incremental scanner of answers with images in them.

mod answer;
mod stub;

pub use answer::{Answer, Image, PartSpan, TokenCount, Usage};
pub use stub::{ScanError, Scanner};
