//! Cuts marked drafts out of a stream on its way, without holding the stream.

use std::mem;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::answer::{Answer, PartSpan};
use super::framing::Framing;
use super::scanner::Scanner;
use super::strip::strip_drafts;

/// Cuts drafts that are marked as thoughts out of a streamed answer while it passes.
///
/// Each event passes as soon as it is complete, byte for byte but for its drafts; an event that
/// held nothing but drafts stays, with an empty text in their place: the chats of Google's SDKs
/// (google-genai 3.4, `@google/genai` 3.1) forget a whole turn in which one event has no part. The
/// last draft is held until an unmarked image comes and makes it one. Where none does, it *is* the
/// image (a lone image is marked in the wild), and goes out in an event of its own before the one
/// that says that the answer has ended. Unmarked drafts cannot be told from the final image before
/// the stream is over, and pass.
///
/// Memory: one event and one draft. What is not understood passes untouched.
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
    /// What passes as it is.
    Passing(Bytes),
    /// An event, where the JSON in it begins.
    Event(Bytes, usize),
}

impl StreamStripper {
    /// For a stream framed so. An answer in one piece passes as it is: see [`strip_drafts`].
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

    /// Takes the next chunk, and gives what may pass.
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

    /// The stream has ended: gives what was held.
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

/// What is marked goes, everything else stays.
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

/// Where the JSON of a line of data begins.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An event with these parts: `d` a draft, `i` an image, `t` a text, and `.` the end.
    fn event(parts: &str, snake: bool) -> String {
        let mut end = "";
        let mut list = Vec::new();
        for (n, part) in parts.char_indices() {
            let image = |mark: &str| {
                let data = format!(
                    "{{\"mimeType\":\"image/png\",\"data\":\"{}{n}AA\"}}",
                    mark.to_uppercase()
                );
                let data = if snake { data.replace("mimeType", "mime_type") } else { data };
                format!("\"{}\":{data}", if snake { "inline_data" } else { "inlineData" })
            };
            match part {
                'd' if n % 2 == 0 => list.push(format!("{{{},\"thought\":true}}", image("d"))),
                'd' => list.push(format!("{{\"thought\":true,{}}}", image("d"))),
                'i' => list.push(format!("{{{},\"thoughtSignature\":\"c2ln\"}}", image("i"))),
                't' => list.push("{\"text\":\"a } { \\\" \\\\ b\"}".to_owned()),
                _ => end = ",\"finishReason\":\"STOP\"",
            }
        }
        format!(
            "{{\"candidates\": [{{\"content\": {{\"parts\": [{}],\"role\":\"model\"}}{end}}}]}}",
            list.join(" , ")
        )
    }

    fn stream(framing: Framing, events: &[String]) -> String {
        match framing {
            Framing::Sse => {
                events.iter().map(|event| format!("data: {event}\r\n\r\n")).collect::<String>()
                    + ": bye\n"
            }
            _ => format!("[{}\n]\n", events.join("\n,\r\n")),
        }
    }

    fn through(framing: Framing, text: &str, cuts: &[usize]) -> String {
        let (mut stripper, mut out, mut at) = (StreamStripper::new(framing), Vec::new(), 0);
        let mut cuts: Vec<usize> =
            cuts.iter().map(|cut| cut % (text.len() + 1)).chain([text.len()]).collect();
        cuts.sort_unstable();
        for cut in cuts {
            out.extend(stripper.push(Bytes::copy_from_slice(&text.as_bytes()[at..cut])));
            at = cut;
        }
        out.extend(stripper.finish());
        String::from_utf8(out.concat()).unwrap()
    }

    fn events(framing: Framing, text: &str) -> Vec<serde_json::Value> {
        match framing {
            Framing::Sse => text
                .lines()
                .filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok())
                .collect(),
            _ => serde_json::from_str(text).unwrap(),
        }
    }

    /// What every reader of the stream reads: its parts in order.
    fn parts(framing: Framing, text: &str) -> Vec<serde_json::Value> {
        let events: Vec<serde_json::Value> = match framing {
            Framing::Sse => text
                .lines()
                .filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok())
                .collect(),
            _ => serde_json::from_str(text).unwrap(),
        };
        events
            .iter()
            .flat_map(|event| {
                event["candidates"][0]["content"]["parts"].as_array().cloned().unwrap_or_default()
            })
            .collect()
    }

    /// Whether an event has a list of parts without a part.
    fn empties(framing: Framing, text: &str) -> bool {
        events(framing, text).iter().any(|event| {
            event["candidates"][0]["content"]["parts"].as_array().is_some_and(Vec::is_empty)
        })
    }

    fn is_draft(part: &serde_json::Value) -> bool {
        part["thought"] == true
    }

    fn is_image(part: &serde_json::Value) -> bool {
        part.get("inlineData").or(part.get("inline_data")).is_some()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn drafts_go_and_everything_else_stays_in_order_however_it_is_cut(
            events in proptest::collection::vec("[dit]{0,4}", 1..5),
            sse in any::<bool>(),
            snake in any::<bool>(),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let framing = if sse { Framing::Sse } else { Framing::JsonArray };
            let mut events: Vec<String> = events.iter().map(|parts| event(parts, snake)).collect();
            events.push(event("t.", snake));
            let text = stream(framing, &events);
            let stripped = through(framing, &text, &cuts);
            prop_assert_eq!(&stripped, &through(framing, &text, &[]));
            let (before, after) = (parts(framing, &text), parts(framing, &stripped));
            prop_assert!(!empties(framing, &stripped) || empties(framing, &text), "SDKs forget a turn with an event without parts");
            // What stands in for drafts says nothing.
            let after: Vec<_> = after.into_iter().filter(|part| part["text"] != "").collect();
            let kept: Vec<_> = before.iter().filter(|part| !is_draft(part)).cloned().collect();
            prop_assert_eq!(&after.iter().filter(|part| !is_draft(part)).cloned().collect::<Vec<_>>(), &kept);
            let drafts: Vec<_> = after.iter().filter(|part| is_draft(part)).collect();
            if kept.iter().any(is_image) {
                prop_assert!(drafts.is_empty());
            } else {
                // A lone marked image is the final one.
                let last = before.iter().rfind(|part| is_draft(part));
                prop_assert_eq!(drafts, last.into_iter().collect::<Vec<_>>());
            }
            if before.iter().all(|part| !is_draft(part)) {
                prop_assert_eq!(stripped, text, "without drafts nothing changes");
            }
        }

        #[test]
        fn what_is_not_understood_passes_untouched(text in "[\\[\\]{}\",: \\\\a-z\\n]{0,200}", sse in any::<bool>(), cuts in proptest::collection::vec(any::<usize>(), 0..6)) {
            let framing = if sse { Framing::Sse } else { Framing::JsonArray };
            prop_assert_eq!(through(framing, &text, &cuts), text);
        }
    }

    #[test]
    fn an_event_passes_before_the_next_one_comes() {
        let mut stripper = StreamStripper::new(Framing::Sse);
        let text = format!("data: {}\r\n\r\n", event("td", false));
        let out = stripper.push(Bytes::from(text)).concat();
        assert!(String::from_utf8(out).unwrap().ends_with("}\r\n\r\n"));
    }

    // google-genai's streamed chats dropped the turn: a later edit lost the image.
    #[test]
    fn an_event_that_loses_all_its_parts_is_still_one_that_chats_remember() {
        for drafts in ["d", "ddd", "d."] {
            let text = stream(
                Framing::Sse,
                &[event("i", false), event(drafts, false), event("t.", false)],
            );
            let stripped = through(Framing::Sse, &text, &[]);
            assert!(
                !stripped.contains("[]") && stripped.contains("[{\"text\":\"\"}]"),
                "{stripped}"
            );
        }
    }

    #[test]
    fn a_last_line_without_its_end_is_an_event_like_any_other() {
        let (draft, image) = (event("d", false), event("i.", false));
        let text = format!("data: {draft}\r\n\r\ndata: {image}");
        for cuts in [&[][..], &[5, 40, 200]] {
            let stripped = through(Framing::Sse, &text, cuts);
            assert!(
                stripped.ends_with(&image) && !parts(Framing::Sse, &stripped).iter().any(is_draft),
                "{stripped}"
            );
        }
        // And a draft that turns out to be the only image is an event of its own.
        let stripped = through(
            Framing::Sse,
            &format!("data: {}\n\ndata: {}", event("d", false), event("t", false)),
            &[],
        );
        let parts = parts(Framing::Sse, &stripped);
        assert!(
            parts.last().is_some_and(is_draft)
                && parts.iter().filter(|part| is_image(part)).count() == 1,
            "{stripped}"
        );
    }

    // Two lines of data with no empty line between them are one event, and no JSON.
    #[test]
    fn a_draft_that_was_held_is_an_event_of_its_own_however_the_last_one_ended() {
        for end in ["", "\n", "\n\n", "\r", "\r\r", "\r\n", "\r\n\r\n"] {
            let text = format!("data: {}\n\ndata: {}{end}", event("d", false), event("t", false));
            let stripped =
                through(Framing::Sse, &text, &[]).replace("\r\n", "\n").replace('\r', "\n");
            let events: Vec<_> =
                stripped.split("\n\n").filter(|event| !event.trim().is_empty()).collect();
            assert_eq!(events.len(), 3, "{end:?}: {stripped:?}");
            assert!(
                events.iter().all(|event| event.trim().lines().count() == 1),
                "{end:?}: {stripped:?}"
            );
        }
    }

    #[test]
    fn lines_may_end_in_carriage_returns_alone() {
        let mut stripper = StreamStripper::new(Framing::Sse);
        for parts in ["t", "d", "ti."] {
            let text = format!("data: {}\r\r", event(parts, false));
            let out = String::from_utf8(stripper.push(Bytes::from(text)).concat()).unwrap();
            assert!(out.ends_with("}\r\r") && !out.contains("\"thought\":true"), "{out}");
        }
    }

    #[test]
    fn a_bare_error_behind_the_events_passes() {
        let error =
            "{\n  \"error\": {\n    \"code\": 503,\n    \"message\": \"overloaded\"\n  }\n}\n";
        let text = format!("data: {}\n\n{error}", event("d", false));
        assert!(through(Framing::Sse, &text, &[10, 50]).contains(error));
    }
}
