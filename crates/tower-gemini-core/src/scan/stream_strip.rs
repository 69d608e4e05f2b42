//! Removes marked drafts from a stream as it passes, without buffering the stream.

use std::iter::once;
use std::mem;
use std::ops::Range;

use bytes::Bytes;

use super::answer::PartSpan;
use super::framing::Framing;
use super::scanner::Scanner;
use super::strip::{cuts, without};

/// Removes drafts that are marked as thoughts from a streamed response as it passes.
///
/// Each event passes as soon as it is complete, byte for byte but for its drafts; an event that
/// held nothing but drafts stays, with an empty text in their place: the chats of Google's SDKs
/// (google-genai 3.4, `@google/genai` 3.1) forget a whole turn in which one event has no part. The
/// last draft is held until an unmarked image comes and makes it one. Where none does, it *is* the
/// image (a lone image is marked in the wild), and goes out in an event of its own before the one
/// that says that the response has ended. Unmarked drafts cannot be distinguished from the final
/// image before the stream is over, and pass.
///
/// Memory: one event and one draft. What is not understood passes unchanged.
///
/// ```
/// use bytes::Bytes;
/// use tower_gemini_core::call::Framing;
/// use tower_gemini_core::scan::StreamStripper;
///
/// let mut stripper = StreamStripper::new(Framing::Sse);
/// let mut out = Vec::new();
/// for chunk in [
///     r#"data: {"candidates":[{"content":{"parts":[{"thought":true,"inlineData":{"mimeType":"image/png","data":"ZHJhZnQ="}}]}}]}"#,
///     "\n\n",
///     r#"data: {"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"ZmluYWw="}}]},"finishReason":"STOP"}]}"#,
///     "\n\n",
/// ] {
///     out.extend(stripper.push(Bytes::from(chunk)));
/// }
/// out.extend(stripper.finish());
/// let text = String::from_utf8(out.concat())?;
/// assert!(text.starts_with("data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\"}]}}]}\n\n"));
/// assert!(!text.contains("ZHJhZnQ=") && text.contains("ZmluYWw="));
/// # Ok::<(), std::string::FromUtf8Error>(())
/// ```
#[derive(Debug)]
pub struct StreamStripper {
    framing: Framing,
    scanner: Scanner,
    /// An event that has not ended yet.
    event: Vec<Bytes>,
    /// The last draft, as an event that holds nothing else.
    draft: Option<Bytes>,
    /// An image that is no draft has passed.
    has_image: bool,
}

impl StreamStripper {
    /// Creates a stripper for a stream of that framing. A whole response passes unchanged: see
    /// [`strip_drafts`](super::strip_drafts).
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let (scanner, event) = (Scanner::judging(framing), Vec::new());
        Self { framing, scanner, event, draft: None, has_image: false }
    }

    /// Takes the next chunk, and returns what may pass.
    #[must_use]
    pub fn push(&mut self, mut chunk: Bytes) -> Vec<Bytes> {
        if self.framing == Framing::Whole {
            return vec![chunk];
        }
        let mut out = Vec::new();
        while !chunk.is_empty() {
            // Every event ends at a brace, and base64 holds none. One begins at a brace, and in a
            // stream of lines its line with it.
            let end = if self.scanner.is_in_event() {
                memchr::memchr(b'}', &chunk).map(|brace| brace + 1)
            } else {
                let stop = memchr::memchr3(b'{', b'\n', b'\r', &chunk);
                stop.map(|at| if chunk[at] == b'{' { at.max(1) } else { at + 1 })
            };
            let piece = chunk.split_to(end.unwrap_or(chunk.len()));
            let is_apart =
                self.framing != Framing::Sse || piece.ends_with(b"\n") || piece.ends_with(b"\r");
            let events = self.scanner.events_seen();
            let fed = self.scanner.feed(&piece);
            self.event.push(piece);
            if self.scanner.events_seen() > events {
                self.end_event(&mut out);
            } else if fed.is_err() || (is_apart && !self.scanner.is_in_event()) {
                out.append(&mut self.event);
            }
        }
        out
    }

    /// Ends the stream, and returns what was held.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Bytes> {
        let mut out = mem::take(&mut self.event);
        // Without a word that it has ended, an array's bracket is behind us: only events of their
        // own can be added.
        if self.framing == Framing::Sse && !self.has_image {
            if let Some(draft) = self.draft.take() {
                // Whatever the last event ended with, it is over: an empty line more means nothing.
                out.push(Bytes::from_static(b"\r\n\r\n"));
                out.push(draft);
            }
        }
        out
    }

    fn end_event(&mut self, out: &mut Vec<Bytes>) {
        let event = mem::take(&mut self.event);
        let len: usize = event.iter().map(Bytes::len).sum();
        let start = self.scanner.position() - len as u64;
        let (mut parts, is_last) = self.scanner.take_event();
        if self.scanner.found_framing() != Some(self.framing) {
            out.extend(event);
            return;
        }
        self.has_image |= parts.iter().any(|part| !part.is_thought);
        if self.has_image {
            self.draft = None;
        } else if let Some(PartSpan { span, .. }) = parts.iter().rfind(|part| part.in_array) {
            let around = [0..span.start, span.end..u64::MAX];
            self.draft = Some(self.lone(&without(event.clone(), start, around).concat()));
        }
        if is_last {
            // Nothing follows that could make it a draft.
            out.extend(self.draft.take());
        }
        if let Some(list) = whole_list(&parts) {
            out.extend(without(event.clone(), start, once(list.start..u64::MAX)));
            out.push(Bytes::from_static(b"{\"text\":\"\"}"));
            out.extend(without(event, start, once(0..list.end)));
            return;
        }
        // Drafts that are events of their own pass, since nothing can stand in their place.
        parts.iter_mut().for_each(|part| part.is_final = !part.is_thought || !part.in_array);
        out.extend(without(event, start, cuts(&parts)));
    }

    /// An event that holds this part alone.
    fn lone(&self, part: &[u8]) -> Bytes {
        let (before, after): (&[u8], &[u8]) = match self.framing {
            Framing::Sse => (b"data: ", b"\r\n\r\n"),
            _ => (b"", b"\n,\r\n"),
        };
        [
            before,
            b"{\"candidates\":[{\"content\":{\"parts\":[",
            part,
            b"],\"role\":\"model\"},\"index\":0}]}",
            after,
        ]
        .concat()
        .into()
    }
}

/// From the first to the last part of an event that holds nothing but drafts.
fn whole_list(parts: &[PartSpan]) -> Option<Range<u64>> {
    let (first, last) = (parts.first()?, parts.last()?);
    let joined = parts
        .windows(2)
        .all(|pair| pair[0].comma_after.is_some() && pair[0].comma_after == pair[1].comma_before);
    let drafts = parts.iter().all(|part| part.is_thought && part.in_array);
    (drafts && joined && first.comma_before.is_none() && last.comma_after.is_none())
        .then_some(first.span.start..last.span.end)
}
