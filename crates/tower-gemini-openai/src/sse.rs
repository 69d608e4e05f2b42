//! Splits a stream into its events, as JSON texts.

use bytes::Bytes;

/// The longest event that is collected: twice one of 4K with its thought signature (27 MB of JSON,
/// measured 2026-11).
const MAX_EVENT: usize = 64 << 20;

/// Collects events from chunks, wherever they are cut. Reads every byte once and copies an event at
/// most twice.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    /// The unfinished line.
    line: Vec<u8>,
    /// Data of the unfinished event.
    data: Vec<u8>,
    brackets: BracketDepth,
    /// Whether `data` is a value outside any event field: Google ends a failing stream with a bare
    /// error.
    is_bare: bool,
    /// Complete events, until they are returned.
    events: Vec<Bytes>,
}

/// An event is longer than any response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventTooLong;

impl EventReader {
    /// Takes a chunk and returns every complete event.
    pub(super) fn push(&mut self, mut chunk: &[u8]) -> Result<Vec<Bytes>, EventTooLong> {
        while !chunk.is_empty() {
            if self.line.len().max(self.data.len()) > MAX_EVENT {
                return Err(EventTooLong);
            }
            if self.is_bare {
                let end = self.brackets.feed(chunk);
                let (value, rest) = chunk.split_at(end.unwrap_or(chunk.len()));
                self.data.extend_from_slice(value);
                if end.is_some() {
                    self.dispatch();
                }
                chunk = rest;
                continue;
            }
            // Leading blanks, which servers send to keep a connection alive, belong to no value.
            let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
            if self.line.iter().all(is_blank) {
                let start = chunk.iter().position(|b| !is_blank(b)).unwrap_or(chunk.len());
                if matches!(chunk.get(start), Some(b'{' | b'[')) {
                    self.line.clear();
                    // It ends an event that is not complete.
                    self.dispatch();
                    self.is_bare = true;
                    chunk = &chunk[start..];
                    continue;
                }
                // One stands for all of them: they are looked at again with each chunk.
                if start > 0 {
                    self.line = vec![b' '];
                    chunk = &chunk[start..];
                }
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) else {
                self.line.extend_from_slice(chunk);
                break;
            };
            if self.line.is_empty() {
                self.end_line(&chunk[..end]);
            } else {
                self.line.extend_from_slice(&chunk[..end]);
                let mut line = std::mem::take(&mut self.line);
                if self.data.is_empty() && line.starts_with(b"data:") {
                    // The usual event has one line: it is moved, not copied.
                    line.drain(..5);
                    self.data = line;
                    self.settle(0);
                } else {
                    self.end_line(&line);
                }
            }
            chunk = &chunk[end + 1..];
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// The stream has ended: returns what is left.
    pub(super) fn finish(&mut self) -> Vec<Bytes> {
        let line = std::mem::take(&mut self.line);
        if !self.is_bare {
            self.end_line(&line);
        }
        self.dispatch();
        std::mem::take(&mut self.events)
    }

    /// Reads a line without its terminator. CRLF counts as two terminators; the blank line between
    /// them does no harm, because a complete value has been emitted already.
    fn end_line(&mut self, line: &[u8]) {
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            let from = self.data.len();
            self.data.extend_from_slice(data);
            self.settle(from);
        } else if line.is_empty() && !self.brackets.is_open() {
            self.dispatch();
        }
    }

    /// Ends the event if its data, new from `from` on, is complete: some servers omit the blank
    /// line.
    fn settle(&mut self, from: usize) {
        if self.brackets.feed(&self.data[from..]).is_some() {
            self.dispatch();
        }
    }

    fn dispatch(&mut self) {
        self.brackets = BracketDepth::default();
        self.is_bare = false;
        let data = Bytes::from(std::mem::take(&mut self.data));
        let event = data.trim_ascii();
        if !event.is_empty() {
            self.events.push(data.slice_ref(event));
        }
    }
}

/// Finds the end of an object or array by its brackets.
#[derive(Debug, Default)]
pub(super) struct BracketDepth {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl BracketDepth {
    /// Begins within so many brackets.
    pub(super) fn within(depth: usize) -> Self {
        Self { depth, ..Self::default() }
    }

    fn is_open(&self) -> bool {
        self.depth > 0
    }

    /// Returns where the value ends, if it does.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&b) = bytes.get(at) {
            if std::mem::take(&mut self.is_escaped) {
                at += 1;
            } else if self.in_string {
                let end = memchr::memchr2(b'"', b'\\', &bytes[at..])?;
                self.is_escaped = bytes[at + end] == b'\\';
                self.in_string = self.is_escaped;
                at += end + 1;
            } else {
                at += 1;
                match b {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        if self.depth == 0 {
                            return Some(at);
                        }
                    }
                    _ => {}
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(stream: &str) -> Vec<String> {
        let cut = |cuts: &[usize]| {
            let (mut events, mut found, mut from) = (EventReader::default(), Vec::new(), 0);
            for &cut in cuts.iter().chain([&stream.len()]) {
                found.extend(events.push(&stream.as_bytes()[from..cut]).unwrap());
                from = cut;
            }
            found.extend(events.finish());
            found.iter().map(|event| String::from_utf8_lossy(event).into_owned()).collect()
        };
        let whole = cut(&[]);
        for at in 0..=stream.len() {
            assert_eq!(cut(&[at]), whole, "cut at {at} of {stream}");
        }
        assert_eq!(cut(&(0..stream.len()).collect::<Vec<_>>()), whole);
        whole
    }

    #[test]
    fn events_are_found_in_every_framing() {
        let (a, b) = (r#"{"a":"} \" ]"}"#, r#"{"b":[1,{}]}"#);
        for stream in [
            format!("data: {a}\n\ndata: {b}\n\n"),
            format!("data:{a}\r\n\r\ndata:{b}\r\n\r\n"),
            format!("data: {a}\r\rdata: {b}\r\r"),
            format!("data: {a}\ndata: {b}\n"),
            format!("data: {a}\n\ndata: {b}"),
            format!("{a}\n{b}\n"),
            format!("  \t {a}{b}"),
            format!(": ping\n\nevent: x\nid: 1\ndata: {a}\n\n: ping\n \n{b}\nretry: 1\n"),
        ] {
            assert_eq!(events(&stream), [a, b], "{stream}");
        }
        assert_eq!(
            events("data: {\"a\":\ndata: 1}\n\ndata: [DONE]\n\n"),
            ["{\"a\":\n 1}", "[DONE]"]
        );
        assert_eq!(events("{\n  \"error\": {\n\n  }\n}\n"), ["{\n  \"error\": {\n\n  }\n}"]);
        assert_eq!(
            events("data: ping\n\ndata: {\"a\":\n{\"b\":1}"),
            ["ping", "{\"a\":", "{\"b\":1}"]
        );
        assert!(events("").is_empty() && events("\n\r\n: x\n").is_empty());
    }
}
