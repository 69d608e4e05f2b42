//! Lines of server-sent events, cut into the JSON they carry.
//!
//! A line of data may be 50 MB and is passed on as it comes. What is not a field of the format is
//! ignored, as the standard says, with one exception: a line that begins a JSON object or array.
//! Google ends a failing stream with such a bare, pretty-printed error, and strict readers lose it.

/// What a run of bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// Nothing that matters.
    Nothing,
    /// Part of a `data` field.
    Data,
    /// The end of a line of data: a line feed to the reader that joins the lines.
    DataEnd,
    /// A JSON value that begins here without being in a field. It lasts until it is complete.
    Bare,
    /// A blank line: the event is complete.
    Dispatch,
    /// A line that is neither a field nor blank.
    Foreign,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum LineState {
    #[default]
    LineStart,
    /// Behind so many bytes of a field's name.
    Name(usize),
    /// Behind `data:`, where one blank is dropped.
    Space,
    Data,
    Ignored,
}

/// Field names of the format.
const KNOWN: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];

/// The reader's state between two pieces.
#[derive(Debug, Default)]
pub(super) struct Lines {
    state: LineState,
    /// The bytes of a field's name.
    name: [u8; 6],
    /// A carriage return has ended a line: a line feed behind it is part of that end.
    after_cr: bool,
    /// Whether a field of the format, or a comment, has been met.
    has_fields: bool,
}

impl Lines {
    /// Returns whether this has been a stream of events so far, and not just values.
    pub(super) fn has_fields(&self) -> bool {
        self.has_fields
    }

    /// Returns whether a line is cut off in the middle.
    pub(super) fn is_in_data(&self) -> bool {
        matches!(self.state, LineState::Data | LineState::Space)
    }

    /// The next run in `bytes`, which are not empty, and its length. A bare value's bytes are not
    /// taken: its owner says how many there are.
    pub(super) fn next(&mut self, bytes: &[u8]) -> (Run, usize) {
        let b = bytes[0];
        if std::mem::take(&mut self.after_cr) && b == b'\n' {
            return (Run::Nothing, 1);
        }
        let ends = matches!(b, b'\n' | b'\r');
        match self.state {
            LineState::Data => {
                let end = memchr::memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len());
                if end > 0 {
                    return (Run::Data, end);
                }
                self.end_line(b);
                (Run::DataEnd, 1)
            }
            LineState::Space => {
                self.state = LineState::Data;
                (Run::Nothing, usize::from(b == b' '))
            }
            LineState::Ignored => {
                let end = memchr::memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len());
                if end > 0 {
                    return (Run::Nothing, end);
                }
                self.end_line(b);
                (Run::Nothing, 1)
            }
            LineState::LineStart => match b {
                _ if ends => {
                    self.end_line(b);
                    (Run::Dispatch, 1)
                }
                b'{' | b'[' => (Run::Bare, 0),
                // Servers that keep a connection alive send blanks; a blank line of them ends
                // nothing.
                b' ' | b'\t' => (Run::Nothing, 1),
                b':' => {
                    self.has_fields = true;
                    self.state = LineState::Ignored;
                    (Run::Nothing, 1)
                }
                _ => {
                    self.state = LineState::Name(0);
                    (Run::Nothing, 0)
                }
            },
            LineState::Name(len) => {
                if b == b':' || ends {
                    let name = &self.name[..len];
                    let is_known = KNOWN.contains(&name);
                    let is_data = name == b"data";
                    self.has_fields |= is_known && b == b':';
                    self.state = if is_data { LineState::Space } else { LineState::Ignored };
                    if ends {
                        self.end_line(b);
                    }
                    return (if is_known { Run::Nothing } else { Run::Foreign }, 1);
                }
                // No known name fills the room, so that there is always room for one byte more.
                self.name[len] = b;
                if !KNOWN.iter().any(|known| known.starts_with(&self.name[..=len])) {
                    self.state = LineState::Ignored;
                    return (Run::Foreign, 1);
                }
                self.state = LineState::Name(len + 1);
                (Run::Nothing, 1)
            }
        }
    }

    /// A bare value has ended: the rest of its line is like the rest of any.
    pub(super) fn after_bare(&mut self) {
        self.state = LineState::LineStart;
        self.after_cr = false;
    }

    fn end_line(&mut self, b: u8) {
        self.state = LineState::LineStart;
        self.after_cr = b == b'\r';
    }
}
