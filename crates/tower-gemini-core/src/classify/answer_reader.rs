//! Reads a whole small 2xx body into an [`Answer`], whatever its framing and however broken.
//!
//! The values in it are read as the scanner reads them; this finds them. Bodies with an image in
//! them are scanned as they pass and do not come here.

use serde::de::IgnoredAny;

use super::lenient;
use crate::scan::{Answer, ValueReader};

/// How often text that is no JSON is searched for the start of some.
const MAX_PROSE: usize = 64;

/// Reads a response: JSON, an array of chunks, server-sent events, JSON lines, and each of them
/// with an error at its end.
pub(super) fn read(body: &[u8]) -> Answer {
    read_text(&String::from_utf8_lossy(body))
}

fn read_text(text: &str) -> Answer {
    let whole = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let mut values = ValueReader::new();
    if values.read(whole, false) {
        // A JSON string may hold the body.
        return match serde_json::from_str::<String>(whole) {
            Ok(inner) if inner.trim_start().starts_with(['{', '[']) => read_text(&inner),
            _ => values.finish(true),
        };
    }
    let left = whole.len().saturating_mul(MAX_FAILED);
    let mut reader = TextReader { values: ValueReader::new(), ended: false, left };
    reader.read(whole);
    reader.values.finish(reader.ended)
}

/// How often a text is read to its end in vain: `[{"":0},[{"":0},…` begins anew at each bracket. A
/// body that was cut off has one or two such beginnings.
const MAX_FAILED: usize = 8;

/// Finds the values in a text that is not one.
struct TextReader {
    values: ValueReader,
    ended: bool,
    /// Bytes that may still be read in vain.
    left: usize,
}

impl TextReader {
    fn read(&mut self, mut rest: &str) {
        let mut prose = 0;
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ',' | ']'));
            if rest.is_empty() {
                break;
            }
            if let Some(data) = rest.strip_prefix("data:") {
                rest = data.trim_start_matches(' ');
                if let Some(after) = rest.strip_prefix("[DONE]") {
                    self.ended = true;
                    rest = after;
                }
            } else if ["event:", "id:", "retry:", ":"].iter().any(|field| rest.starts_with(field)) {
                rest = next_line(rest);
            } else if rest.starts_with(['{', '[']) {
                rest = self.value(rest);
            } else {
                // Prose: a prefix, or a page. The JSON in it counts.
                prose += 1;
                match rest.find('{') {
                    Some(at) if prose <= MAX_PROSE && !rest.starts_with('<') => {
                        rest = rest.get(at..).unwrap_or_default();
                    }
                    _ => break,
                }
            }
        }
    }

    /// Reads the value that the text begins with, and returns what follows it.
    fn value<'t>(&mut self, text: &'t str) -> &'t str {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {
                let (value, rest) =
                    text.split_at_checked(values.byte_offset()).unwrap_or((text, ""));
                self.values.read(value, false);
                return rest;
            }
            Some(Err(error)) => {
                let Some(left) = self.left.checked_sub(read_by(text, &error)) else { return "" };
                self.left = left;
            }
            None => {}
        }
        // The array of a stream that was cut or ended by something else: its elements one by one.
        if let Some(inside) = text.strip_prefix('[').filter(|it| it.trim_start().starts_with('{')) {
            return inside;
        }
        // Cut off, of another language, or with something else in it.
        let (repaired, taken) = lenient::repair(text);
        // What the repair closed at the very end was not closed by the server: the body was cut.
        let end = text.trim_end();
        let is_cut = taken >= end.len() && !end.ends_with(['}', ']']);
        self.values.read(&repaired, is_cut);
        if taken == 0 { next_line(text) } else { text.get(taken..).unwrap_or_default() }
    }
}

/// How many bytes of a text were read before this error.
fn read_by(text: &str, error: &serde_json::Error) -> usize {
    let line_end = |line| memchr::memchr_iter(b'\n', text.as_bytes()).nth(line);
    let before = error.line().checked_sub(2).and_then(line_end);
    before.map_or(0, |end| end + 1) + error.column()
}

fn next_line(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, rest)| rest)
}
