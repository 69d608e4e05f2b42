//! A cursor over JSON text that reads what it is asked for and skips the rest.
//!
//! A request may hold a hundred megabytes of base64 around a dozen words that matter. The cursor
//! jumps from quote to quote with `memchr`, so that skipping runs at memory speed, allocates
//! nothing, and does not care what stands beyond the first fault: a deserialiser would check every
//! byte and give nothing back for a body cut short. It does not judge JSON; the server does.

use std::borrow::Cow;

#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A string as it stands between its quotes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a> {
    /// With both quotes, so that a real decoder can take it.
    quoted: &'a [u8],
    escaped: bool,
}

impl<'a> Text<'a> {
    fn raw(&self) -> &'a [u8] {
        self.quoted.get(1..self.quoted.len().saturating_sub(1)).unwrap_or_default()
    }

    /// Bytes between the quotes, escapes counted as written.
    pub(super) fn len(&self) -> usize {
        self.raw().len()
    }

    /// The text, unless it is longer than any name is.
    pub(super) fn name(&self) -> Option<Cow<'a, str>> {
        const LONGEST: usize = 1024;
        if self.len() > LONGEST {
            None
        } else if self.escaped {
            serde_json::from_slice::<String>(self.quoted).ok().map(Cow::Owned)
        } else {
            std::str::from_utf8(self.raw()).ok().map(Cow::Borrowed)
        }
    }

    pub(super) fn is(&self, word: &str) -> bool {
        if self.escaped {
            self.name().is_some_and(|name| name.eq_ignore_ascii_case(word))
        } else {
            self.raw().eq_ignore_ascii_case(word.as_bytes())
        }
    }

    /// What the string says, however long it is. `None` where it is not UTF-8 or an escape is
    /// broken.
    pub(super) fn decoded(&self) -> Option<Cow<'a, str>> {
        if self.escaped {
            serde_json::from_slice::<String>(self.quoted).ok().map(Cow::Owned)
        } else {
            std::str::from_utf8(self.raw()).ok().map(Cow::Borrowed)
        }
    }

    /// The bytes of a string that ought to be ASCII, escapes undone. Without escapes, as in all
    /// base64 seen, nothing is copied.
    pub(super) fn unescaped(&self) -> Option<Cow<'a, [u8]>> {
        if self.escaped {
            serde_json::from_slice::<String>(self.quoted)
                .ok()
                .map(|text| Cow::Owned(text.into_bytes()))
        } else {
            Some(Cow::Borrowed(self.raw()))
        }
    }

    pub(super) fn starts_with(&self, word: &str) -> bool {
        self.name()
            .and_then(|name| name.get(..word.len()).map(|start| start.eq_ignore_ascii_case(word)))
            .unwrap_or(false)
    }
}

/// What stands at the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    Array,
    Text,
    Other,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes), at: 0 }
    }

    #[inline]
    /// How many bytes it reads in all.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Where the next value begins.
    pub(super) fn position(&mut self) -> usize {
        self.peek();
        self.at
    }

    /// Where the value just taken ended.
    pub(super) fn position_after(&self) -> usize {
        self.at
    }

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
    fn give_up(&mut self) {
        self.at = self.bytes.len();
    }

    #[inline]
    pub(super) fn kind(&mut self) -> Kind {
        match self.peek() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::Text,
            _ => Kind::Other,
        }
    }

    /// Takes a string; anything else is skipped.
    pub(super) fn text(&mut self) -> Option<Text<'a>> {
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
    /// anything else is skipped.
    pub(super) fn count(&mut self) -> Option<u32> {
        let name;
        let word = match self.kind() {
            Kind::Text => {
                name = self.string()?.name()?;
                name.trim()
            }
            Kind::Other => std::str::from_utf8(self.scalar()).ok()?,
            Kind::Object | Kind::Array => {
                self.skip();
                return None;
            }
        };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast of a float saturates"
        )]
        word.parse::<f64>().ok().filter(|number| number.is_finite()).map(|number| number as u32)
    }

    /// Takes a `true`; anything else is skipped.
    pub(super) fn is_true(&mut self) -> bool {
        match self.kind() {
            Kind::Other => self.scalar() == b"true",
            _ => {
                self.skip();
                false
            }
        }
    }

    fn scalar(&mut self) -> &'a [u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest
            .iter()
            .position(|byte| {
                matches!(
                    byte,
                    b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t' | b'"' | b'{' | b'[' | b':'
                )
            })
            .unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// Passes over one value of any kind, however deep, without recursion.
    pub(super) fn skip(&mut self) {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                None => return,
                Some(b'"') => {
                    self.string();
                }
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b'}' | b']') => {
                    // A bracket where a value should be: whoever reads the container sees it next.
                    if depth == 0 {
                        return;
                    }
                    depth -= 1;
                    self.at += 1;
                }
                Some(b',' | b':') => {
                    if depth == 0 {
                        return;
                    }
                    self.at += 1;
                    continue;
                }
                Some(_) => {
                    self.scalar();
                }
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// Walks the members of an object, names in camel case however they are spelled; anything else
    /// is skipped. The callback takes exactly one value.
    pub(super) fn object(&mut self, mut member: impl FnMut(&mut Self, &[u8])) {
        if self.kind() != Kind::Object {
            return self.skip();
        }
        self.at += 1;
        let mut camel = [0; LONGEST_KEY];
        while !self.take(b'}') {
            if self.peek() != Some(b'"') {
                return self.give_up();
            }
            let Some(key) = self.string() else { return };
            if !self.take(b':') {
                return self.give_up();
            }
            member(self, in_camel_case(key, &mut camel));
            if !self.take(b',') && self.peek() != Some(b'}') {
                return self.give_up();
            }
        }
    }

    /// Walks the elements of an array. A value that is no array is taken as the only element:
    /// Google's JSON parser does so too, and its own samples write `"contents": {…}`.
    pub(super) fn each(&mut self, mut element: impl FnMut(&mut Self)) {
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

/// The longest name asked for anywhere is `previousInteractionId`.
const LONGEST_KEY: usize = 32;

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
