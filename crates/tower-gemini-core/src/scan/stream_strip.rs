//! Removes drafts from a stream as it passes, without buffering the stream.

use std::collections::VecDeque;
use std::iter::once;
use std::mem;
use std::ops::Range;

use bytes::Bytes;

use super::answer::PartSpan;
use super::finals::Finals;
use super::framing::Framing;
use super::scanner::Scanner;
use super::strip::{cuts, without};

/// Removes drafts from a streamed response as it passes, by the [rule](super#which-image-is-final)
/// that every reader of a response shares.
///
/// Each event passes as soon as it is complete, byte for byte but for its drafts; an event that
/// held nothing but drafts stays, with an empty text in their place: the chats of Google's SDKs
/// (google-genai 3.4, `@google/genai` 3.1) forget a whole turn in which one event has no part. The
/// last marked draft is held until an unmarked image comes and makes it one. Where none does, it
/// *is* the image (a lone image is marked in the wild), and goes out in an event of its own before
/// the one that says that the response has ended.
///
/// An image that is not marked may still be a draft, if [the model thinks](Self::unmarked_drafts):
/// its event waits, and those behind it, until a text, the word that the response has ended or the
/// end of the stream makes it final, or the next image a draft. A draft that is an event of its own
/// passes, since nothing can stand in its place.
///
/// Memory: one event of up to 64 MiB, one draft, and up to 64 MiB of events that wait. What is not
/// understood, and an event that is longer, passes unchanged.
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
    /// An event that has not ended yet, and what it takes.
    event: Vec<Bytes>,
    event_bytes: u64,
    /// An event was longer than what is held: everything passes as it is from there on.
    passes: bool,
    /// Complete events, of which the first has an image that the next may replace.
    waiting: VecDeque<Event>,
    /// The images so far, each by where it begins.
    finals: Finals<u64>,
    /// The last marked draft, as an event that holds nothing else.
    draft: Option<Bytes>,
}

/// What may wait for the next image: one of 4K with its thought signature has 27 MB of JSON. Beyond it
/// the image passes.
const MAX_WAITING: u64 = 64 << 20;

/// A complete event, and what stands before the next.
#[derive(Debug)]
struct Event {
    chunks: Vec<Bytes>,
    /// Where its first byte stands in the stream.
    start: u64,
    images: Vec<PartSpan>,
}

impl StreamStripper {
    /// Creates a stripper for a stream of that framing. A whole response passes unchanged: see
    /// [`strip_drafts`](super::strip_drafts).
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let (scanner, finals) = (Scanner::judging(framing), Finals::default());
        let (event, waiting) = (Vec::new(), VecDeque::new());
        let (event_bytes, passes) = (0, false);
        Self { framing, scanner, event, event_bytes, passes, waiting, finals, draft: None }
    }

    /// Sets whether images that are not marked as thoughts may be drafts, as those of a model that
    /// thinks ([`ModelId::makes_drafts`](crate::call::ModelId::makes_drafts)). If not, none of them
    /// waits, and all pass. Default: they may be.
    #[must_use]
    pub fn unmarked_drafts(mut self, may_be: bool) -> Self {
        self.finals = Finals::new(may_be);
        self
    }

    /// Takes the next chunk, and returns what may pass.
    #[must_use]
    pub fn push(&mut self, mut chunk: Bytes) -> Vec<Bytes> {
        if self.framing == Framing::Whole || self.passes {
            return vec![chunk];
        }
        let mut out = Vec::new();
        while !chunk.is_empty() && !self.passes {
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
            self.event_bytes += (piece.len() + size_of::<Bytes>()) as u64;
            self.event.push(piece);
            if self.event_bytes > MAX_WAITING {
                out.extend(self.pass_all());
            } else if self.scanner.events_seen() > events {
                self.end_event(&mut out);
            } else if fed.is_err() {
                self.release_all(&mut out);
                self.take_event_into(&mut out);
            } else if is_apart && !self.scanner.is_in_event() {
                let waiting = self.waiting.back_mut().map(|event| &mut event.chunks);
                waiting.unwrap_or(&mut out).append(&mut self.event);
                self.event_bytes = 0;
            }
        }
        out.extend(Some(chunk).filter(|rest| !rest.is_empty()));
        out
    }

    /// How much is held back, with what it takes to hold it.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let waits_since = self.waiting.front().map_or(self.scanner.position(), |event| event.start);
        let draft = self.draft.as_ref().map_or(0, |draft| draft.len() as u64);
        (self.scanner.position() - waits_since).max(self.event_bytes) + draft
    }

    /// Gives up: returns what is held, and lets everything pass as it is from now on, drafts
    /// included. For a stream that is too long to be held, and was charged.
    #[must_use]
    pub fn pass_all(&mut self) -> Vec<Bytes> {
        let mut out = self.fail();
        // Nothing tells any more whether another image follows it.
        out.extend(self.draft.take());
        self.take_event_into(&mut out);
        self.passes = true;
        out
    }

    fn take_event_into(&mut self, out: &mut Vec<Bytes>) {
        out.append(&mut self.event);
        self.event_bytes = 0;
    }

    /// Ends the stream, and returns what was held.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Bytes> {
        let mut out = self.fail();
        self.take_event_into(&mut out);
        // Without a word that it has ended, an array's bracket is behind us: only events of their
        // own can be added.
        if let Some(draft) = self.draft.take_if(|_| self.framing == Framing::Sse) {
            // Whatever the last event ended with, it is over: an empty line more means nothing.
            out.push(Bytes::from_static(b"\r\n\r\n"));
            out.push(draft);
        }
        out
    }

    /// Ends a stream that broke off, and returns the events that waited: an image that nothing has
    /// replaced has been paid for. A marked one is a draft as long as the response has not ended.
    #[must_use]
    pub fn fail(&mut self) -> Vec<Bytes> {
        let mut out = Vec::new();
        self.release_all(&mut out);
        out
    }

    fn end_event(&mut self, out: &mut Vec<Bytes>) {
        let chunks = mem::take(&mut self.event);
        self.event_bytes = 0;
        let len: usize = chunks.iter().map(Bytes::len).sum();
        let start = self.scanner.position() - len as u64;
        let (images, ends_in_text, is_last) = self.scanner.take_event();
        if self.scanner.found_framing() != Some(self.framing) {
            self.release_all(out);
            out.extend(chunks);
            return;
        }
        let marks: Vec<_> = images
            .iter()
            .map(|image| (image.span.clone(), image.is_thought, image.in_array, image.after_text))
            .collect();
        self.waiting.push_back(Event { chunks, start, images });
        for (span, is_thought, in_array, after_text) in marks {
            if after_text {
                self.settle();
            }
            let is_taken = (in_array || !is_thought) && self.finals.takes(is_thought);
            if is_taken {
                let settled = self.finals.image(span.start, is_thought);
                self.mark_final(settled);
                self.draft = is_thought.then(|| self.lone(&span));
            }
            if !in_array {
                self.settle();
                self.mark_final(Some(span.start));
            }
        }
        let waits_since = self.waiting.front().map_or(start, |event| event.start);
        let held = self.scanner.position() - waits_since;
        if ends_in_text || is_last || held > MAX_WAITING {
            self.settle();
        }
        if is_last {
            // Nothing follows that could make it a draft.
            out.extend(self.draft.take());
        }
        self.release(out);
    }

    /// The image before what comes is final, unless it is marked as a draft.
    fn settle(&mut self) {
        let settled = self.finals.text();
        self.mark_final(settled);
    }

    fn mark_final(&mut self, at: Option<u64>) {
        let Some(at) = at else { return };
        let images = self.waiting.iter_mut().flat_map(|event| &mut event.images);
        for image in images.filter(|image| image.span.start == at) {
            image.is_final = true;
        }
    }

    /// Passes the events in which nothing can change any more.
    fn release(&mut self, out: &mut Vec<Bytes>) {
        let open = self.finals.open().filter(|_| !self.finals.is_draft()).copied();
        let is_open = |event: &Event| event.images.iter().any(|it| Some(it.span.start) == open);
        let passing = self.waiting.iter().position(is_open).unwrap_or(self.waiting.len());
        self.waiting.drain(..passing).for_each(|event| event.pass(out));
    }

    fn release_all(&mut self, out: &mut Vec<Bytes>) {
        self.settle();
        self.release(out);
    }

    /// An event that holds this part of the last event alone.
    fn lone(&self, part: &Range<u64>) -> Bytes {
        let event = self.waiting.back().map(|event| (event.chunks.clone(), event.start));
        let (chunks, start) = event.unwrap_or_default();
        let part = without(chunks, start, [0..part.start, part.end..u64::MAX]).concat();
        let (before, after): (&[u8], &[u8]) = match self.framing {
            Framing::Sse => (b"data: ", b"\r\n\r\n"),
            _ => (b"", b"\n,\r\n"),
        };
        [
            before,
            b"{\"candidates\":[{\"content\":{\"parts\":[",
            &part,
            b"],\"role\":\"model\"},\"index\":0}]}",
            after,
        ]
        .concat()
        .into()
    }
}

impl Event {
    /// Its bytes without its drafts.
    fn pass(self, out: &mut Vec<Bytes>) {
        let Self { chunks, start, images } = self;
        let Some(list) = whole_list(&images) else {
            out.extend(without(chunks, start, cuts(&images)));
            return;
        };
        out.extend(without(chunks.clone(), start, once(list.start..u64::MAX)));
        out.push(Bytes::from_static(b"{\"text\":\"\"}"));
        out.extend(without(chunks, start, once(0..list.end)));
    }
}

/// From the first to the last part of an event that holds nothing but drafts.
fn whole_list(parts: &[PartSpan]) -> Option<Range<u64>> {
    let (first, last) = (parts.first()?, parts.last()?);
    let joined = parts
        .windows(2)
        .all(|pair| pair[0].comma_after.is_some() && pair[0].comma_after == pair[1].comma_before);
    let are_drafts = parts.iter().all(|part| !part.is_final && part.in_array);
    (are_drafts && joined && first.comma_before.is_none() && last.comma_after.is_none())
        .then_some(first.span.start..last.span.end)
}
