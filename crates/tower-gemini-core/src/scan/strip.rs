//! Removes drafts from a response that stays unchanged otherwise.

use std::ops::Range;

use bytes::{Buf, Bytes};

use super::answer::{Answer, PartSpan};

/// The response's own chunks without its drafts: every image part but the final one is gone,
/// together with one comma.
///
/// Nothing is written anew: what is left are slices of the same memory, so that text, field order
/// and thought signatures arrive as the server spelled them. In a stream, an event whose only part
/// was a draft stays, with an empty list of parts; a draft that is an event of its own
/// (`image_generation.partial_image`) becomes `{}`. Images within Markdown stay.
///
/// `chunks` must be the bytes that `answer` was scanned from, from the first on, however cut.
///
/// ```
/// use bytes::Bytes;
/// use tower_gemini_core::call::Framing;
/// use tower_gemini_core::scan::{Scanner, strip_drafts};
///
/// let body = Bytes::from_static(
///     br#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"ZHJhZnQ="},"thought":true},{"text":"A cat"},{"inlineData":{"mimeType":"image/png","data":"ZmluYWw="}}]}}]}"#,
/// );
/// let mut scanner = Scanner::judging(Framing::Whole);
/// scanner.feed(&body)?;
/// let answer = scanner.finish()?;
/// let stripped = strip_drafts([body], &answer).concat();
/// assert_eq!(
///     stripped,
///     br#"{"candidates":[{"content":{"parts":[{"text":"A cat"},{"inlineData":{"mimeType":"image/png","data":"ZmluYWw="}}]}}]}"#,
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn strip_drafts(chunks: impl IntoIterator<Item = Bytes>, answer: &Answer) -> Vec<Bytes> {
    without(chunks, 0, cuts(&answer.parts))
}

/// The chunks without these ranges, which are in order and apart. The first chunk begins at `at`.
pub(super) fn without(
    chunks: impl IntoIterator<Item = Bytes>,
    mut at: u64,
    cuts: impl IntoIterator<Item = Range<u64>>,
) -> Vec<Bytes> {
    let mut cuts = cuts.into_iter().peekable();
    let mut kept = Vec::new();
    for mut chunk in chunks {
        while !chunk.is_empty() {
            let end = at + chunk.len() as u64;
            while cuts.next_if(|cut| cut.end <= at).is_some() {}
            let next = cuts.peek().cloned().unwrap_or(u64::MAX..u64::MAX);
            // Both are within the chunk, so they fit a `usize`.
            if next.start <= at {
                let gone = (next.end.min(end) - at) as usize;
                chunk.advance(gone);
                at += gone as u64;
            } else {
                let piece = chunk.split_to((next.start.min(end) - at) as usize);
                at += piece.len() as u64;
                kept.push(piece);
            }
        }
    }
    kept
}

/// The ranges to leave out, in order and apart.
pub(super) fn cuts(parts: &[PartSpan]) -> Vec<Range<u64>> {
    let mut cuts = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        if part.is_final {
            continue;
        }
        if !part.in_array {
            cuts.push(part.span.start + 1..part.span.end - 1);
            continue;
        }
        match part.comma_after {
            Some(comma) => cuts.push(part.span.start..comma + 1),
            None => {
                // The last of its list: the comma before the whole run of drafts that ends here
                // goes too. The others of the run have taken their own.
                let mut first = part;
                for before in parts[..i].iter().rev() {
                    if before.is_final
                        || first.comma_before.is_none()
                        || before.comma_after != first.comma_before
                    {
                        break;
                    }
                    first = before;
                }
                cuts.extend(first.comma_before.map(|comma| comma..comma + 1));
                cuts.push(part.span.clone());
            }
        }
    }
    cuts.sort_by_key(|cut| cut.start);
    cuts
}
