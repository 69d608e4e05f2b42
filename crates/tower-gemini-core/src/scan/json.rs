//! A JSON lexer that is fed pieces and remembers only where it stands.
//!
//! It checks the whole grammar, UTF-8 included, and passes strings on in the pieces they arrive in,
//! so that neither an image of 20 MB nor a signature of 3 MB is ever collected. What it accepts is
//! what serde_json accepts, with one difference: numbers too large for an `f64` pass, since nobody
//! reads them.

use super::error::{ErrorKind, ScanError};
use super::read::Reader;

/// Containers within containers: serde_json refuses the 128th too.
const MAX_DEPTH: u32 = 127;
/// The longest key that means anything has 25 bytes; escapes are undone before counting.
const MAX_KEY: usize = 32;
/// Digits of a number that are kept: enough for any count.
const MAX_NUMBER: usize = 32;

/// What ends the streams of OpenAI's dialects, which is no JSON.
const DONE: &[u8] = b"[DONE]";

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum LexerState {
    #[default]
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
    Str {
        is_key: bool,
    },
    Number(Num),
    Literal {
        word: &'static [u8],
        matched: usize,
    },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Num {
    Start,
    Minus,
    Zero,
    Int,
    Dot,
    Frac,
    Exp,
    ExpSign,
    ExpDigits,
}

impl Num {
    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Int | Self::Frac | Self::ExpDigits)
    }

    fn step(self, b: u8) -> Option<Self> {
        Some(match (self, b) {
            (Self::Start, b'-') => Self::Minus,
            (Self::Start | Self::Minus, b'0') => Self::Zero,
            (Self::Start | Self::Minus, b'1'..=b'9') | (Self::Int, b'0'..=b'9') => Self::Int,
            (Self::Zero | Self::Int, b'.') => Self::Dot,
            (Self::Zero | Self::Int | Self::Frac, b'e' | b'E') => Self::Exp,
            (Self::Dot | Self::Frac, b'0'..=b'9') => Self::Frac,
            (Self::Exp, b'+' | b'-') => Self::ExpSign,
            (Self::Exp | Self::ExpSign | Self::ExpDigits, b'0'..=b'9') => Self::ExpDigits,
            _ => return None,
        })
    }
}

fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\n' | b'\r' | b'\t')
}

/// The longest escape, without its first backslash: two surrogates (`uD83D\uDE00`).
const MAX_ESCAPE: usize = 11;

/// The reader's state between two pieces.
#[derive(Debug, Default)]
pub(super) struct Lexer {
    state: LexerState,
    /// One bit a level: whether it is an object.
    objects: u128,
    depth: u32,
    /// An escape that is not complete, without its first backslash.
    escape: [u8; MAX_ESCAPE],
    escape_len: usize,
    in_escape: bool,
    /// The start of a character that the last piece cut in two.
    cut: [u8; 4],
    cut_len: usize,
    key: [u8; MAX_KEY],
    key_len: usize,
    number: [u8; MAX_NUMBER],
    number_len: usize,
    started: bool,
    /// Whether the value is no value, but `[DONE]`.
    said_done: bool,
}

impl Lexer {
    /// Returns whether the top-level value is complete.
    pub(super) fn is_done(&self) -> bool {
        self.state == LexerState::Done
    }

    /// Returns whether `[DONE]` stood in place of a value.
    pub(super) fn said_done(&self) -> bool {
        self.said_done
    }

    /// Returns whether anything but blanks has come.
    pub(super) fn is_started(&self) -> bool {
        self.started
    }

    /// Reads on and says how many bytes it took: all of them, unless the top-level value ended
    /// before.
    pub(super) fn feed(
        &mut self,
        input: &[u8],
        at: u64,
        sink: &mut Reader,
    ) -> Result<usize, ScanError> {
        let mut i = 0;
        while i < input.len() {
            if let LexerState::Str { is_key } = self.state {
                i += self.string(&input[i..], at + i as u64, is_key, sink)?;
                continue;
            }
            let b = input[i];
            let here = at + i as u64;
            let syntax = || ScanError::new(ErrorKind::Syntax, here);
            match self.state {
                LexerState::Done => return Ok(i),
                LexerState::Number(num) => match num.step(b) {
                    Some(next) => {
                        self.push_digit(b);
                        self.state = LexerState::Number(next);
                    }
                    None if num.may_end() => {
                        self.end_number(sink);
                        continue;
                    }
                    None => return Err(syntax()),
                },
                LexerState::Literal { word, matched } => {
                    if word.get(matched) != Some(&b) {
                        return Err(syntax());
                    }
                    if matched + 1 == word.len() {
                        if word == DONE {
                            self.said_done = true;
                            self.close(here, sink)?;
                        } else {
                            sink.scalar(word);
                            self.value_done();
                        }
                    } else {
                        self.state = LexerState::Literal { word, matched: matched + 1 };
                    }
                }
                _ if is_blank(b) => {
                    // A third of a pretty-printed document is blanks, in runs.
                    i += input[i..].iter().take_while(|b| is_blank(**b)).count();
                    continue;
                }
                LexerState::Value | LexerState::ValueOrEnd => {
                    self.started = true;
                    match b {
                        b'{' | b'[' => self.open(b == b'{', here, sink)?,
                        b']' if self.state == LexerState::ValueOrEnd => self.close(here, sink)?,
                        b'"' => {
                            sink.string_begin(here);
                            self.state = LexerState::Str { is_key: false };
                        }
                        b'-' | b'0'..=b'9' => {
                            self.number_len = 0;
                            self.state = LexerState::Number(Num::Start);
                            continue;
                        }
                        b't' => self.state = LexerState::Literal { word: b"true", matched: 1 },
                        b'f' => self.state = LexerState::Literal { word: b"false", matched: 1 },
                        b'n' => self.state = LexerState::Literal { word: b"null", matched: 1 },
                        b'D' if sink.takes_done && self.opened_array() => {
                            self.state = LexerState::Literal { word: DONE, matched: 2 };
                        }
                        _ => return Err(syntax()),
                    }
                }
                LexerState::Key | LexerState::KeyOrEnd => match b {
                    b'"' => {
                        self.key_len = 0;
                        self.state = LexerState::Str { is_key: true };
                    }
                    b'}' if self.state == LexerState::KeyOrEnd => self.close(here, sink)?,
                    _ => return Err(syntax()),
                },
                LexerState::Colon => {
                    if b != b':' {
                        return Err(syntax());
                    }
                    self.state = LexerState::Value;
                }
                LexerState::CommaOrEnd => match (b, self.in_object()) {
                    (b',', object) => {
                        sink.comma(here);
                        self.state = if object { LexerState::Key } else { LexerState::Value };
                    }
                    (b'}', true) | (b']', false) => self.close(here, sink)?,
                    _ => return Err(syntax()),
                },
                LexerState::Str { .. } => {}
            }
            i += 1;
        }
        Ok(input.len())
    }

    /// The end of the input: an error unless the value is complete.
    pub(super) fn finish(&mut self, at: u64, sink: &mut Reader) -> Result<(), ScanError> {
        if let LexerState::Number(num) = self.state {
            if self.depth == 0 && num.may_end() {
                self.end_number(sink);
            }
        }
        if self.is_done() { Ok(()) } else { Err(ScanError::new(ErrorKind::Truncated, at)) }
    }

    /// Returns whether the value is an array that has just begun.
    fn opened_array(&self) -> bool {
        self.depth == 1 && self.state == LexerState::ValueOrEnd
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    fn open(&mut self, object: bool, at: u64, sink: &mut Reader) -> Result<(), ScanError> {
        if self.depth == MAX_DEPTH {
            return Err(ScanError::new(ErrorKind::TooDeep, at));
        }
        sink.begin(object, at);
        self.depth += 1;
        self.objects = (self.objects << 1) | u128::from(object);
        self.state = if object { LexerState::KeyOrEnd } else { LexerState::ValueOrEnd };
        Ok(())
    }

    fn close(&mut self, at: u64, sink: &mut Reader) -> Result<(), ScanError> {
        sink.end(at + 1)?;
        self.depth -= 1;
        self.objects >>= 1;
        self.value_done();
        Ok(())
    }

    fn value_done(&mut self) {
        self.state = if self.depth == 0 { LexerState::Done } else { LexerState::CommaOrEnd };
    }

    fn push_digit(&mut self, b: u8) {
        if let Some(slot) = self.number.get_mut(self.number_len) {
            *slot = b;
            self.number_len += 1;
        }
    }

    fn end_number(&mut self, sink: &mut Reader) {
        sink.scalar(&self.number[..self.number_len]);
        self.value_done();
    }

    /// Reads within a string and says how many bytes it took.
    fn string(
        &mut self,
        input: &[u8],
        at: u64,
        is_key: bool,
        sink: &mut Reader,
    ) -> Result<usize, ScanError> {
        if self.in_escape {
            let c = self.escaped(input[0]).ok_or(ScanError::new(ErrorKind::Syntax, at))?;
            if let Some(c) = c {
                (self.in_escape, self.escape_len) = (false, 0);
                self.pass(c.encode_utf8(&mut [0; 4]).as_bytes(), is_key, sink)?;
            }
            return Ok(1);
        }
        if !is_key && self.cut_len == 0 {
            let taken = sink.string_base64(input)?;
            if taken > 0 {
                return Ok(taken);
            }
        }
        let quote = memchr::memchr2(b'"', b'\\', input);
        let mut piece = &input[..quote.unwrap_or(input.len())];
        // One pass that compilers turn into vector code: plain English ends here.
        let (low, high) =
            piece.iter().fold((0xFF, 0), |(low, high): (u8, u8), &b| (low.min(b), high | b));
        let control = if low < 0x20 { piece.iter().position(|b| *b < 0x20) } else { None };
        let stop = control.or(quote);
        piece = &piece[..stop.unwrap_or(piece.len())];
        let checked =
            if high < 0x80 && self.cut_len == 0 { Ok(()) } else { self.check_utf8(piece, at) };
        // What stands before a fault is passed on, as it would be had it come in a piece of its
        // own.
        let good = checked
            .as_ref()
            .err()
            .map_or(piece.len() as u64, |error| error.offset().saturating_sub(at));
        self.pass(&piece[..good as usize], is_key, sink)?;
        checked?;
        let Some(stop) = stop else { return Ok(input.len()) };
        let end = at + stop as u64;
        if self.cut_len > 0 {
            return Err(ScanError::new(ErrorKind::Utf8, end - self.cut_len as u64));
        }
        match input[stop] {
            b'\\' => self.in_escape = true,
            b'"' if is_key => {
                self.state = LexerState::Colon;
                sink.key(self.key.get(..self.key_len), end + 1)?;
            }
            b'"' => {
                sink.string_end(end + 1)?;
                self.value_done();
            }
            _ => return Err(ScanError::new(ErrorKind::Syntax, end)),
        }
        Ok(stop + 1)
    }

    /// Passes on what a key or a string says.
    fn pass(&mut self, piece: &[u8], is_key: bool, sink: &mut Reader) -> Result<(), ScanError> {
        if !is_key {
            return sink.string_piece(piece);
        }
        let end = self.key_len + piece.len();
        if let Some(room) = self.key.get_mut(self.key_len..end) {
            room.copy_from_slice(piece);
            self.key_len = end;
        } else {
            // Longer than the buffer: `get(..key_len)` then gives `None`, for good.
            self.key_len = MAX_KEY + 1;
        }
        Ok(())
    }

    /// Takes the next byte of an escape: `Some(None)` until it is complete, `None` where it is
    /// none.
    fn escaped(&mut self, b: u8) -> Option<Option<char>> {
        *self.escape.get_mut(self.escape_len)? = b;
        self.escape_len += 1;
        let unit = |digits: &[u8]| {
            digits.iter().fold(0, |unit, b| unit << 4 | char::from(*b).to_digit(16).unwrap_or(0))
        };
        match (self.escape_len, b) {
            (1, b'u') | (6, b'\\') | (7, b'u') => Some(None),
            (1, b'"' | b'\\' | b'/') => Some(Some(char::from(b))),
            (1, b'b') => Some(Some('\u{8}')),
            (1, b'f') => Some(Some('\u{c}')),
            (1, b'n') => Some(Some('\n')),
            (1, b'r') => Some(Some('\r')),
            (1, b't') => Some(Some('\t')),
            (2..=4 | 8..=10, _) if b.is_ascii_hexdigit() => Some(None),
            (5, _) if b.is_ascii_hexdigit() => match unit(&self.escape[1..5]) {
                // A high surrogate means something only together with a low one.
                0xD800..=0xDBFF => Some(None),
                unit => char::from_u32(unit).map(Some),
            },
            (11, _) if b.is_ascii_hexdigit() => {
                let units = [unit(&self.escape[1..5]) as u16, unit(&self.escape[7..]) as u16];
                char::decode_utf16(units).next()?.ok().map(Some)
            }
            _ => None,
        }
    }

    /// Checks a run of a string for UTF-8, across pieces.
    fn check_utf8(&mut self, mut piece: &[u8], mut at: u64) -> Result<(), ScanError> {
        while self.cut_len > 0 && !piece.is_empty() {
            let start = at - self.cut_len as u64;
            self.cut[self.cut_len] = piece[0];
            self.cut_len += 1;
            piece = &piece[1..];
            at += 1;
            match std::str::from_utf8(&self.cut[..self.cut_len]) {
                Ok(_) => self.cut_len = 0,
                Err(error) if error.error_len().is_none() && self.cut_len < 4 => {}
                Err(_) => return Err(ScanError::new(ErrorKind::Utf8, start)),
            }
        }
        if simdutf8::basic::from_utf8(piece).is_ok() {
            return Ok(());
        }
        match std::str::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(error) => {
                let valid = error.valid_up_to();
                let rest = &piece[valid..];
                if error.error_len().is_some() || rest.len() > 3 {
                    return Err(ScanError::new(ErrorKind::Utf8, at + valid as u64));
                }
                self.cut[..rest.len()].copy_from_slice(rest);
                self.cut_len = rest.len();
                Ok(())
            }
        }
    }
}
