//! Removes marked drafts from a stream as it passes, without buffering the stream.

use std::mem;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::answer::{Answer, PartSpan};
use super::framing::Framing;
use super::scanner::Scanner;
use super::strip::strip_drafts;

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
    cutter: Cutter,
    /// The last draft, as an event that holds nothing else.
    draft: Option<Bytes>,
    /// An image that is no draft has passed.
    has_image: bool,
}

#[derive(Debug)]
enum Cutter {
    /// A line that has not ended yet, and whether it could still be one of data.
    Lines(Vec<Bytes>),
    /// An element of an array that has not ended yet.
    Elements { element: Vec<Bytes>, depth: u32, in_string: bool, escaped: bool },
    /// One value: nothing to do.
    Whole,
}

/// A piece of the stream.
enum Piece {
    /// What passes unchanged.
    Passing(Bytes),
    /// An event, where the JSON in it begins.
    Event(Bytes, usize),
}

impl StreamStripper {
    /// Creates a stripper for a stream of that framing. A whole response passes unchanged: see
    /// [`strip_drafts`].
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let cutter = match framing {
            Framing::Sse => Cutter::Lines(Vec::new()),
            Framing::JsonArray => {
                Cutter::Elements { element: Vec::new(), depth: 0, in_string: false, escaped: false }
            }
            Framing::Whole => Cutter::Whole,
        };
        Self { cutter, draft: None, has_image: false }
    }

    /// Takes the next chunk, and returns what may pass.
    #[must_use]
    pub fn push(&mut self, chunk: Bytes) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        match &mut self.cutter {
            Cutter::Whole => return vec![chunk],
            Cutter::Lines(held) => cut_lines(held, chunk, &mut pieces),
            Cutter::Elements { element, depth, in_string, escaped } => {
                cut_elements(element, depth, in_string, escaped, chunk, &mut pieces);
            }
        }
        let mut out = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Passing(bytes) => out.push(bytes),
                Piece::Event(bytes, json) => self.event(bytes, json, &mut out),
            }
        }
        out
    }

    /// Ends the stream, and returns what was held.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Bytes> {
        let mut out = Vec::new();
        match &mut self.cutter {
            Cutter::Whole => {}
            // Without a word that it has ended, the array's bracket is behind us: only events can
            // be added.
            Cutter::Elements { element, .. } => out = mem::take(element),
            Cutter::Lines(held) => {
                // Some servers in between leave out what ends the last line.
                let line = joined(mem::take(held));
                match json_of(&line) {
                    Some(json) => self.event(line, json, &mut out),
                    None => out.push(line),
                }
                if let Some(draft) = self.draft.take().filter(|_| !self.has_image) {
                    // Whatever the last event ended with, it is over: an empty line more means
                    // nothing.
                    out.push(Bytes::from_static(b"\r\n\r\n"));
                    out.push(draft);
                }
            }
        }
        out
    }

    fn event(&mut self, bytes: Bytes, json: usize, out: &mut Vec<Bytes>) {
        let mut scanner = Scanner::judging(Framing::Whole);
        let scanned = scanner.feed(&bytes[json..]).ok().and_then(|()| scanner.finish().ok());
        let Some(mut answer) = scanned else {
            out.push(bytes);
            return;
        };
        if answer.parts.is_empty() && answer.finish_reason.is_none() {
            out.push(bytes);
            return;
        }
        self.has_image |= answer.parts.iter().any(|part| !part.is_thought);
        if self.has_image {
            self.draft = None;
        } else if let Some(part) = answer.parts.iter().rev().find(|part| part.in_array) {
            let span = part.span.start as usize + json..part.span.end as usize + json;
            self.draft = bytes.get(span).map(|part| self.lone(part));
        }
        if answer.finish_reason.is_some() {
            // Nothing follows that could make it a draft.
            out.extend(self.draft.take());
        }
        let drafts = answer.parts.iter().any(|part| part.is_thought && part.in_array);
        if !drafts {
            out.push(bytes);
            return;
        }
        if let Some(list) = whole_list(&answer.parts) {
            out.push(bytes.slice(..json + list.start as usize));
            out.push(Bytes::from_static(b"{\"text\":\"\"}"));
            out.push(bytes.slice(json + list.end as usize..));
            return;
        }
        keep_unmarked(&mut answer);
        out.push(bytes.slice(..json));
        out.extend(strip_drafts([bytes.slice(json..)], &answer));
    }

    /// An event that holds this part alone.
    fn lone(&self, part: &[u8]) -> Bytes {
        let (before, after): (&[u8], &[u8]) = match self.cutter {
            Cutter::Lines(_) => (b"data: ", b"\r\n\r\n"),
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

/// Keeps everything that is not marked.
fn keep_unmarked(answer: &mut Answer) {
    for part in &mut answer.parts {
        part.is_final = !part.is_thought;
    }
}

/// Cuts a stream of events into lines. Those of data come when they are whole; all others pass as
/// they come.
fn cut_lines(held: &mut Vec<Bytes>, mut chunk: Bytes, pieces: &mut Vec<Piece>) {
    while !chunk.is_empty() {
        // A carriage return ends a line too, alone or in front of a line feed, which then is a line
        // without anything in it.
        match memchr::memchr2(b'\n', b'\r', &chunk) {
            Some(end) => {
                held.push(chunk.split_to(end + 1));
                let line = joined(mem::take(held));
                pieces.push(match json_of(&line) {
                    Some(json) => Piece::Event(line, json),
                    None => Piece::Passing(line),
                });
            }
            None => held.push(mem::take(&mut chunk)),
        }
    }
}

/// Returns where the JSON of a line of data begins.
fn json_of(line: &[u8]) -> Option<usize> {
    let rest = line.strip_prefix(b"data:")?;
    let blanks = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    (rest.get(blanks) == Some(&b'{')).then_some(5 + blanks)
}

/// Cuts an array into its elements; what stands between them passes.
fn cut_elements(
    element: &mut Vec<Bytes>,
    depth: &mut u32,
    in_string: &mut bool,
    escaped: &mut bool,
    chunk: Bytes,
    pieces: &mut Vec<Piece>,
) {
    // From where on nothing has been given out.
    let (mut from, mut at) = (0, 0);
    while at < chunk.len() {
        if *in_string {
            if mem::take(escaped) {
                at += 1;
                continue;
            }
            match memchr::memchr2(b'"', b'\\', &chunk[at..]) {
                Some(end) => {
                    *escaped = chunk[at + end] == b'\\';
                    *in_string = *escaped;
                    at += end + 1;
                }
                None => at = chunk.len(),
            }
            continue;
        }
        match chunk[at] {
            b'"' if *depth > 0 => *in_string = true,
            b'{' => {
                if *depth == 0 {
                    if at > from {
                        pieces.push(Piece::Passing(chunk.slice(from..at)));
                    }
                    from = at;
                }
                *depth += 1;
            }
            b'}' if *depth > 0 => {
                *depth -= 1;
                if *depth == 0 {
                    element.push(chunk.slice(from..=at));
                    pieces.push(Piece::Event(joined(mem::take(element)), 0));
                    from = at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if from < chunk.len() {
        let rest = chunk.slice(from..);
        if *depth > 0 {
            element.push(rest);
        } else {
            pieces.push(Piece::Passing(rest));
        }
    }
}

/// In one piece, which costs a copy only where there are several.
fn joined(mut chunks: Vec<Bytes>) -> Bytes {
    if chunks.len() == 1 {
        return chunks.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    chunks.iter().for_each(|chunk| all.extend_from_slice(chunk));
    all.freeze()
}
