//! A JSON reader that is fed pieces and remembers only where it stands.
//!
//! It checks the whole grammar, UTF-8 included, and passes strings on in the pieces they arrive in,
//! so that neither an image of 20 MB nor a signature of 3 MB is ever collected. What it accepts is
//! what serde_json accepts, with one difference: numbers too large for an `f64` pass, since nobody
//! reads them.

use super::error::{ErrorKind, ScanError};

/// Containers within containers: serde_json refuses the 128th too.
const MAX_DEPTH: u32 = 127;
/// The longest key that means anything has 25 bytes; escapes are undone before counting.
const MAX_KEY: usize = 32;
/// Digits of a number that are kept: enough for any count.
const MAX_NUMBER: usize = 32;

/// A value that is neither a container nor a string.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    /// As spelled; cut after 32 bytes.
    Number(&'a [u8]),
}

/// Where the tokens go. Offsets count from the response's first byte.
pub(super) trait Sink {
    fn begin(&mut self, object: bool, at: u64) -> Result<(), ScanError>;
    /// `end` is one past the closing bracket.
    fn end(&mut self, end: u64) -> Result<(), ScanError>;
    fn comma(&mut self, at: u64);
    /// `None` for a key longer than any that means something.
    fn key(&mut self, key: Option<&[u8]>, end: u64) -> Result<(), ScanError>;
    fn string_begin(&mut self, at: u64) -> Result<(), ScanError>;
    /// Takes as many bytes of base64 as `input` begins with, in whole or in part, where base64 is
    /// wanted; else none. Looking for the string's end first would mean reading an image twice.
    fn string_base64(&mut self, input: &[u8]) -> Result<usize, ScanError>;
    /// Returns whether the sink checks the current string itself, as far as it can.
    fn checks_string(&self) -> bool;
    /// A run without escapes. `Ok(true)` when the sink itself found it to be printable ASCII, which
    /// saves checking it twice.
    fn string_piece(&mut self, piece: &[u8]) -> Result<bool, ScanError>;
    fn string_escape(&mut self, c: char) -> Result<(), ScanError>;
    fn string_end(&mut self, end: u64) -> Result<(), ScanError>;
    fn scalar(&mut self, scalar: Scalar<'_>) -> Result<(), ScanError>;
}

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
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus, b'1'..=b'9') | (Self::Int, b'0'..=b'9') => Self::Int,
            (Self::Zero | Self::Int, b'.') => Self::Dot,
            (Self::Zero | Self::Int | Self::Frac, b'e' | b'E') => Self::Exp,
            (Self::Dot | Self::Frac, b'0'..=b'9') => Self::Frac,
            (Self::Exp, b'+' | b'-') => Self::ExpSign,
            (Self::Exp | Self::ExpSign | Self::ExpDigits, b'0'..=b'9') => Self::ExpDigits,
            _ => return None,
        })
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Slash,
    Hex {
        digits: u8,
        value: u16,
        high: Option<u16>,
    },
    /// A high surrogate stands alone until `\u` and the low one have come.
    LowSlash(u16),
    LowU(u16),
}

/// The reader's state between two pieces.
#[derive(Debug, Default)]
pub(super) struct Lexer {
    state: LexerState,
    /// One bit a level: whether it is an object.
    objects: u128,
    depth: u32,
    escape: Escape,
    /// The start of a character that the last piece cut in two.
    cut: [u8; 4],
    cut_len: usize,
    key: [u8; MAX_KEY],
    key_len: usize,
    number: [u8; MAX_NUMBER],
    number_len: usize,
    started: bool,
}

impl Lexer {
    /// Returns whether the top-level value is complete.
    pub(super) fn is_done(&self) -> bool {
        self.state == LexerState::Done
    }

    /// Returns whether anything but blanks has come.
    pub(super) fn is_started(&self) -> bool {
        self.started
    }

    /// Reads on and says how many bytes it took: all of them, unless the top-level value ended
    /// before.
    pub(super) fn feed<S: Sink>(
        &mut self,
        input: &[u8],
        at: u64,
        sink: &mut S,
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
                        self.end_number(sink)?;
                        continue;
                    }
                    None => return Err(syntax()),
                },
                LexerState::Literal { word, matched } => {
                    if word.get(matched) != Some(&b) {
                        return Err(syntax());
                    }
                    if matched + 1 == word.len() {
                        sink.scalar(match word[0] {
                            b't' => Scalar::Bool(true),
                            b'f' => Scalar::Bool(false),
                            _ => Scalar::Null,
                        })?;
                        self.value_done();
                    } else {
                        self.state = LexerState::Literal { word, matched: matched + 1 };
                    }
                }
                _ if matches!(b, b' ' | b'\n' | b'\r' | b'\t') => {}
                LexerState::Value | LexerState::ValueOrEnd => {
                    self.started = true;
                    match b {
                        b'{' | b'[' => self.open(b == b'{', here, sink)?,
                        b']' if self.state == LexerState::ValueOrEnd => self.close(here, sink)?,
                        b'"' => {
                            sink.string_begin(here)?;
                            self.state = LexerState::Str { is_key: false };
                        }
                        b'-' => self.begin_number(b, Num::Minus),
                        b'0' => self.begin_number(b, Num::Zero),
                        b'1'..=b'9' => self.begin_number(b, Num::Int),
                        b't' => self.state = LexerState::Literal { word: b"true", matched: 1 },
                        b'f' => self.state = LexerState::Literal { word: b"false", matched: 1 },
                        b'n' => self.state = LexerState::Literal { word: b"null", matched: 1 },
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
    pub(super) fn finish<S: Sink>(&mut self, at: u64, sink: &mut S) -> Result<(), ScanError> {
        if let LexerState::Number(num) = self.state {
            if self.depth == 0 && num.may_end() {
                self.end_number(sink)?;
            }
        }
        if self.is_done() { Ok(()) } else { Err(ScanError::new(ErrorKind::Truncated, at)) }
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    fn open<S: Sink>(&mut self, object: bool, at: u64, sink: &mut S) -> Result<(), ScanError> {
        if self.depth == MAX_DEPTH {
            return Err(ScanError::new(ErrorKind::TooDeep, at));
        }
        sink.begin(object, at)?;
        self.depth += 1;
        self.objects = (self.objects << 1) | u128::from(object);
        self.state = if object { LexerState::KeyOrEnd } else { LexerState::ValueOrEnd };
        Ok(())
    }

    fn close<S: Sink>(&mut self, at: u64, sink: &mut S) -> Result<(), ScanError> {
        sink.end(at + 1)?;
        self.depth -= 1;
        self.objects >>= 1;
        self.value_done();
        Ok(())
    }

    fn value_done(&mut self) {
        self.state = if self.depth == 0 { LexerState::Done } else { LexerState::CommaOrEnd };
    }

    fn begin_number(&mut self, b: u8, num: Num) {
        self.number_len = 0;
        self.push_digit(b);
        self.state = LexerState::Number(num);
    }

    fn push_digit(&mut self, b: u8) {
        if let Some(slot) = self.number.get_mut(self.number_len) {
            *slot = b;
            self.number_len += 1;
        }
    }

    fn end_number<S: Sink>(&mut self, sink: &mut S) -> Result<(), ScanError> {
        sink.scalar(Scalar::Number(&self.number[..self.number_len]))?;
        self.value_done();
        Ok(())
    }

    /// Reads within a string and says how many bytes it took.
    fn string<S: Sink>(
        &mut self,
        input: &[u8],
        at: u64,
        is_key: bool,
        sink: &mut S,
    ) -> Result<usize, ScanError> {
        if self.escape != Escape::None {
            self.escaped(input[0], at, is_key, sink)?;
            return Ok(1);
        }
        if !is_key && self.cut_len == 0 {
            let taken = sink.string_base64(input)?;
            if taken > 0 {
                return Ok(taken);
            }
        }
        let stop = memchr::memchr2(b'"', b'\\', input);
        let piece = &input[..stop.unwrap_or(input.len())];
        if !piece.is_empty() {
            if is_key {
                self.push_key(piece);
                self.check(piece, at)?;
            } else if sink.checks_string() && self.cut_len == 0 {
                if !sink.string_piece(piece)? {
                    self.check(piece, at)?;
                }
            } else {
                let checked = self.check(piece, at);
                // What stands before a fault is passed on, as it would be had it come in a piece of
                // its own.
                let good = checked
                    .as_ref()
                    .err()
                    .map_or(piece.len() as u64, |error| error.offset().saturating_sub(at));
                sink.string_piece(&piece[..good as usize])?;
                checked?;
            }
        }
        let Some(stop) = stop else { return Ok(input.len()) };
        if self.cut_len > 0 {
            return Err(ScanError::new(ErrorKind::Utf8, at + stop as u64 - self.cut_len as u64));
        }
        if input[stop] == b'\\' {
            self.escape = Escape::Slash;
        } else if is_key {
            self.state = LexerState::Colon;
            sink.key(self.key.get(..self.key_len), at + stop as u64 + 1)?;
        } else {
            sink.string_end(at + stop as u64 + 1)?;
            self.value_done();
        }
        Ok(stop + 1)
    }

    fn push_key(&mut self, piece: &[u8]) {
        let end = self.key_len + piece.len();
        if let Some(room) = self.key.get_mut(self.key_len..end) {
            room.copy_from_slice(piece);
            self.key_len = end;
        } else {
            // Longer than the buffer: `get(..key_len)` then gives `None`, for good.
            self.key_len = MAX_KEY + 1;
        }
    }

    fn escaped<S: Sink>(
        &mut self,
        b: u8,
        at: u64,
        is_key: bool,
        sink: &mut S,
    ) -> Result<(), ScanError> {
        let syntax = || ScanError::new(ErrorKind::Syntax, at);
        let c = match self.escape {
            Escape::None => return Ok(()),
            Escape::Slash => match b {
                b'"' | b'\\' | b'/' => char::from(b),
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'u' => {
                    self.escape = Escape::Hex { digits: 0, value: 0, high: None };
                    return Ok(());
                }
                _ => return Err(syntax()),
            },
            Escape::LowSlash(high) => {
                self.escape = Escape::LowU(high);
                return if b == b'\\' { Ok(()) } else { Err(syntax()) };
            }
            Escape::LowU(high) => {
                self.escape = Escape::Hex { digits: 0, value: 0, high: Some(high) };
                return if b == b'u' { Ok(()) } else { Err(syntax()) };
            }
            Escape::Hex { digits, value, high } => {
                let digit = char::from(b).to_digit(16).ok_or_else(syntax)?;
                let value = (value << 4) | digit as u16;
                if digits < 3 {
                    self.escape = Escape::Hex { digits: digits + 1, value, high };
                    return Ok(());
                }
                let code = match (high, value) {
                    (None, 0xD800..=0xDBFF) => {
                        self.escape = Escape::LowSlash(value);
                        return Ok(());
                    }
                    (Some(high), 0xDC00..=0xDFFF) => {
                        0x1_0000 + ((u32::from(high) & 0x3FF) << 10) + (u32::from(value) & 0x3FF)
                    }
                    (None, _) => u32::from(value),
                    (Some(_), _) => return Err(syntax()),
                };
                char::from_u32(code).ok_or_else(syntax)?
            }
        };
        self.escape = Escape::None;
        if is_key {
            self.push_key(c.encode_utf8(&mut [0; 4]).as_bytes());
            Ok(())
        } else {
            sink.string_escape(c)
        }
    }

    /// Checks a run of a string for control characters and UTF-8, across pieces.
    fn check(&mut self, piece: &[u8], at: u64) -> Result<(), ScanError> {
        // One pass that compilers turn into vector code: base64 and plain English end here.
        let (low, high) =
            piece.iter().fold((0xFF, 0), |(low, high): (u8, u8), &b| (low.min(b), high | b));
        if high < 0x80 && low >= 0x20 && self.cut_len == 0 {
            return Ok(());
        }
        let control = || {
            piece
                .iter()
                .position(|&b| b < 0x20)
                .map(|i| ScanError::new(ErrorKind::Syntax, at + i as u64))
        };
        let bad = self.check_utf8(piece, at).err();
        match (bad, if low < 0x20 { control() } else { None }) {
            (None, None) => Ok(()),
            (Some(error), None) | (None, Some(error)) => Err(error),
            // Whichever stands first, so that the response is the same however the bytes were cut.
            (Some(utf8), Some(control)) => {
                Err(if utf8.offset() <= control.offset() { utf8 } else { control })
            }
        }
    }

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
