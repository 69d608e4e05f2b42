//! The JSON text of a request: a cursor that reads what is asked for and skips the rest, and edits
//! that replace a few bytes and share all others.
//!
//! A request may hold a hundred megabytes of base64 around a dozen words that matter. The cursor
//! jumps from quote to quote with `memchr`, so skipping runs at memory speed, allocates nothing and
//! needs no recursion. It reads a body that was cut short up to the cut, where a deserialiser would
//! return nothing, and leaves it to the server to reject what is not JSON: a caller that must not
//! accept a fault asks [`Cursor::is_broken`].

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

/// A position in a JSON text. Its methods take one value each and move behind it.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    broken: bool,
}

/// A string of the text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    /// With both quotes, so that a real decoder can take it.
    quoted: &'a [u8],
    escaped: bool,
}

impl<'a> Text<'a> {
    fn raw(&self) -> &'a [u8] {
        self.quoted.get(1..self.quoted.len().saturating_sub(1)).unwrap_or_default()
    }

    /// Returns the number of bytes between the quotes, escapes counted as written.
    pub(crate) fn len(&self) -> usize {
        self.raw().len()
    }

    /// Whether nothing stands between the quotes.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the text. `None` where it is not UTF-8 or an escape is broken.
    pub(crate) fn decoded(&self) -> Option<Cow<'a, str>> {
        if self.escaped {
            serde_json::from_slice::<String>(self.quoted).ok().map(Cow::Owned)
        } else {
            std::str::from_utf8(self.raw()).ok().map(Cow::Borrowed)
        }
    }

    /// Returns the text, unless it is longer than any name or option is (1 KiB).
    pub(crate) fn name(&self) -> Option<Cow<'a, str>> {
        const LONGEST: usize = 1024;
        if self.len() > LONGEST { None } else { self.decoded() }
    }

    /// Whether it is this word, in any case.
    pub(crate) fn is(&self, word: &str) -> bool {
        if self.escaped {
            self.name().is_some_and(|name| name.eq_ignore_ascii_case(word))
        } else {
            self.raw().eq_ignore_ascii_case(word.as_bytes())
        }
    }

    /// Whether it starts with this word, in any case.
    pub(crate) fn starts_with(&self, word: &str) -> bool {
        self.name()
            .and_then(|name| name.get(..word.len()).map(|start| start.eq_ignore_ascii_case(word)))
            .unwrap_or(false)
    }
}

/// What kind of value stands at a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    Text,
    /// A number, `true`, `false`, `null`, or no value at all.
    Other,
}

/// One member of an object.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Its name in camel case, however it is spelled.
    pub(crate) name: String,
    /// Whether the name is spelled with an underscore.
    pub(crate) is_snake: bool,
    /// Where it stands, from the quote of its name to the end of its value.
    pub(crate) span: Range<usize>,
    /// Where its value stands.
    pub(crate) value: Range<usize>,
}

impl<'a> Cursor<'a> {
    /// Starts at the beginning of a text, behind a byte order mark.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self::at(bytes, if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 })
    }

    /// Starts within a text: at the start of a span that another cursor gave.
    pub(crate) fn at(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, at: position, broken: false }
    }

    /// Returns where the next value begins.
    pub(crate) fn position(&mut self) -> usize {
        self.peek();
        self.at
    }

    /// Returns where the value just taken ended.
    pub(crate) fn position_after(&self) -> usize {
        self.at
    }

    /// Whether what has been read so far is not JSON. A text can be broken without being found so:
    /// what is skipped is not checked beyond its brackets and quotes.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether nothing is left but white space.
    pub(crate) fn is_at_end(&mut self) -> bool {
        self.peek().is_none()
    }

    #[inline]
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Nothing beyond this point can be trusted.
    #[cold]
    fn give_up(&mut self) {
        self.at = self.bytes.len();
        self.broken = true;
    }

    /// Returns what stands at the cursor, and moves nowhere.
    #[inline]
    pub(crate) fn kind(&mut self) -> Kind {
        match self.peek() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::Text,
            _ => Kind::Other,
        }
    }

    /// Takes a string; any other value is skipped.
    pub(crate) fn text(&mut self) -> Option<Text<'a>> {
        if self.kind() != Kind::Text {
            self.skip();
            return None;
        }
        self.string()
    }

    #[inline]
    fn string(&mut self) -> Option<Text<'a>> {
        let start = self.at;
        let mut end = start + 1;
        let mut escaped = false;
        loop {
            let Some(found) = self.bytes.get(end..).and_then(quote_or_backslash) else {
                self.give_up();
                return None;
            };
            end += found;
            if self.bytes.get(end) == Some(&b'"') {
                self.at = end + 1;
                return self.bytes.get(start..=end).map(|quoted| Text { quoted, escaped });
            }
            escaped = true;
            end += 2;
        }
    }

    /// Takes a whole number, written as a number or as a string (protobuf writes 64-bit ones so);
    /// any other value is skipped.
    pub(crate) fn count(&mut self) -> Option<u32> {
        let is_scalar = matches!(self.kind(), Kind::Text | Kind::Other);
        let span = self.span();
        let word = std::str::from_utf8(self.bytes.get(span)?).ok().filter(|_| is_scalar)?;
        let number = word.trim_matches('"').trim().parse::<f64>().ok();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast of a float saturates"
        )]
        number.filter(|number| number.is_finite()).map(|number| number as u32)
    }

    /// Takes a `true`; any other value is skipped.
    pub(crate) fn is_true(&mut self) -> bool {
        let is_scalar = self.kind() == Kind::Other;
        let span = self.span();
        is_scalar && self.bytes.get(span) == Some(b"true")
    }

    fn scalar(&mut self) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|byte| b",}] \n\r\t\"{[:".contains(byte));
        self.at += end.unwrap_or(rest.len());
    }

    /// Skips one value of any kind, however deep, without recursion.
    pub(crate) fn skip(&mut self) {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                None => {
                    self.broken = true;
                    return;
                }
                Some(b'"') => {
                    self.string();
                }
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.at += 1;
                }
                // No value stands here: whoever reads the container sees the sign next.
                Some(b'}' | b']' | b',' | b':') if depth == 0 => {
                    self.broken = true;
                    return;
                }
                Some(b'}' | b']') => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(b',' | b':') => {
                    self.at += 1;
                    continue;
                }
                Some(_) => self.scalar(),
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// Skips one value and returns where it stands.
    pub(crate) fn span(&mut self) -> Range<usize> {
        let start = self.position();
        self.skip();
        start..self.at
    }

    /// Walks the members of an object, with names in camel case however they are spelled; any other
    /// value is skipped. The callback takes exactly one value.
    pub(crate) fn object(&mut self, mut member: impl FnMut(&mut Self, &[u8])) {
        let mut camel = [0; LONGEST_KEY];
        self.walk(|c, key, _| member(c, in_camel_case(key, &mut camel)));
    }

    fn walk(&mut self, mut member: impl FnMut(&mut Self, Text<'a>, usize)) {
        if self.kind() != Kind::Object {
            return self.skip();
        }
        self.at += 1;
        while !self.take(b'}') {
            if self.peek() != Some(b'"') {
                return self.give_up();
            }
            let start = self.at;
            let Some(key) = self.string() else { return };
            if !self.take(b':') {
                return self.give_up();
            }
            member(self, key, start);
            if !self.take(b',') && self.peek() != Some(b'}') {
                return self.give_up();
            }
        }
    }

    /// Walks the elements of an array. A value that is no array is taken as the only element:
    /// Google's JSON parser does so too, and its own samples write `"contents": {…}`.
    pub(crate) fn each(&mut self, mut element: impl FnMut(&mut Self)) {
        if self.kind() != Kind::Array {
            return element(self);
        }
        self.at += 1;
        while !self.take(b']') {
            let before = self.at;
            element(self);
            if !self.take(b',') && self.peek() != Some(b']') {
                return self.give_up();
            }
            // Stray commas are passed over one by one; nothing may stand still.
            if self.at == before {
                return self.give_up();
            }
        }
    }

    /// Returns the members of the object at the cursor, none where another value stands there;
    /// `None` where it is broken.
    pub(crate) fn members(mut self) -> Option<Vec<Member>> {
        let mut members = Vec::new();
        let mut camel = [0; LONGEST_KEY];
        self.walk(|c, key, start| {
            let name = in_camel_case(key, &mut camel);
            let value = c.span();
            members.push(Member {
                name: String::from_utf8_lossy(name).into_owned(),
                is_snake: key.raw().contains(&b'_'),
                span: start..value.end,
                value,
            });
        });
        (!self.broken).then_some(members)
    }

    /// Returns where the elements of the array at the cursor stand (as [`each`](Self::each) walks
    /// them); `None` where it is broken.
    pub(crate) fn elements(mut self) -> Option<Vec<Range<usize>>> {
        let mut elements = Vec::new();
        self.each(|c| elements.push(c.span()));
        (!self.broken).then_some(elements)
    }
}

/// Replacements in a text, in any order, of which no two overlap.
#[derive(Debug, Default)]
pub(crate) struct Edits(Vec<(Range<usize>, Bytes)>);

impl Edits {
    /// Replaces a span; an empty one is a place at which the text is inserted, after what was
    /// inserted there before.
    pub(crate) fn replace(&mut self, span: Range<usize>, text: impl Into<Bytes>) {
        self.0.push((span, text.into()));
    }

    /// Whether nothing is replaced.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes entries out of a container, commas included, and puts new ones in front of the rest.
    /// `spans` are all its entries in order; `gone` says which of them go.
    pub(crate) fn reshape(
        &mut self,
        container: &Range<usize>,
        spans: &[Range<usize>],
        gone: &[bool],
        new: &[String],
    ) {
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else {
            let inside = container.start + 1;
            return self.replace(inside..inside, new.join(","));
        };
        let is_gone = |at: usize| gone.get(at).copied().unwrap_or(false);
        let Some(last_staying) = (0..spans.len()).rfind(|at| !is_gone(*at)) else {
            return self.replace(first.start..last.end, new.join(","));
        };
        for text in new {
            self.replace(first.start..first.start, format!("{text},"));
        }
        for (at, pair) in spans.windows(2).enumerate() {
            if let [this, next] = pair {
                // What goes takes the comma behind it along, and at the end those in front of it.
                if at < last_staying && is_gone(at) {
                    self.replace(this.start..next.start, "");
                } else if at == last_staying {
                    self.replace(this.end..last.end, "");
                }
            }
        }
    }

    /// Returns the text with the edits made, as slices of the original and the new pieces between
    /// them: nothing is copied. A replacement that overlaps an earlier one, or reaches beyond the
    /// text, is left out.
    pub(crate) fn apply(mut self, text: &Bytes) -> Vec<Bytes> {
        self.0.sort_by_key(|(span, _)| (span.start, span.end));
        let mut chunks = Vec::with_capacity(2 * self.0.len() + 1);
        let mut at = 0;
        for (span, new) in self.0 {
            if span.start < at || span.end < span.start || text.len() < span.end {
                continue;
            }
            chunks.extend([text.slice(at..span.start), new]);
            at = span.end;
        }
        chunks.push(text.slice(at..));
        chunks.retain(|chunk| !chunk.is_empty());
        chunks
    }
}

/// Where the next quote or backslash stands. Nearly all strings are names and words, for which
/// setting up a vector search costs more than looking at a few words of eight bytes; a string that
/// goes on is base64 and worth it.
#[inline]
fn quote_or_backslash(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Marks the high bit of the lowest byte that equals the needle; bytes above it may be marked
    // falsely, which nobody looks at.
    let marks = |word: u64, needle: u8| {
        let zeroed = word ^ (ONES * u64::from(needle));
        zeroed.wrapping_sub(ONES) & !zeroed & (ONES << 7)
    };
    for at in [0, 8, 16] {
        let Some(word) =
            bytes.get(at..at + 8).and_then(|chunk| chunk.try_into().ok()).map(u64::from_le_bytes)
        else {
            return bytes.iter().position(|byte| matches!(byte, b'"' | b'\\'));
        };
        let found = marks(word, b'"') | marks(word, b'\\');
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
    }
    memchr::memchr2(b'"', b'\\', bytes)
}

/// Longer than any name asked for.
const LONGEST_KEY: usize = 64;

/// A name in camel case. Protobuf's JSON takes both spellings, and clients mix them within one
/// object (google-genai 3.4 re-sends `inlineData` with `mime_type`, measured 2026-11). Names longer
/// than any asked for give nothing.
#[inline]
fn in_camel_case<'k>(key: Text<'k>, camel: &'k mut [u8; LONGEST_KEY]) -> &'k [u8] {
    let raw = key.raw();
    if key.escaped || raw.contains(&b'_') { respelled(key, camel) } else { raw }
}

#[cold]
fn respelled<'k>(key: Text<'k>, camel: &'k mut [u8; LONGEST_KEY]) -> &'k [u8] {
    // Six bytes are the longest way to write one, as an escape.
    if key.len() > 6 * LONGEST_KEY {
        return b"";
    }
    let decoded = key.name().unwrap_or_default();
    let mut len = 0;
    let mut upper = false;
    for byte in decoded.bytes() {
        if byte == b'_' {
            upper = len > 0;
            continue;
        }
        let Some(slot) = camel.get_mut(len) else { return b"" };
        *slot = if upper { byte.to_ascii_uppercase() } else { byte };
        upper = false;
        len += 1;
    }
    camel.get(..len).unwrap_or_default()
}

#[cfg(test)]
mod tests;
