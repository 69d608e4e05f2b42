//! Base64 in pieces, at the speed of the SIMD engine.
//!
//! Both alphabets, even mixed; padding optional; blanks and line breaks skipped; unused bits of the
//! last symbol ignored, as Python and protobuf's JSON do. Anything else is corrupt.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use base64::{DecodeError, DecodeSliceError};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Fast = base64::engine::Simd;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Fast = base64::engine::GeneralPurpose;

fn config() -> GeneralPurposeConfig {
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static ENGINES: LazyLock<[Fast; 2]> =
    LazyLock::new(|| [Fast::standard(config()), Fast::url_safe(config())]);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static ENGINES: LazyLock<[Fast; 2]> = LazyLock::new(|| {
    [
        Fast::new(&base64::alphabet::STANDARD, config()),
        Fast::new(&base64::alphabet::URL_SAFE, config()),
    ]
});

/// Symbols decoded at a time: the output room is cleared just before it is written, and at this
/// size it is still in the first-level cache.
const BLOCK: usize = 16 * 1024;

/// Where decoded bytes go.
pub(super) trait Output {
    /// What stops the output.
    type Error;
    /// Room for `n` more bytes.
    fn room(&mut self, n: usize) -> Result<&mut [u8], Self::Error>;
    /// The first `n` bytes of that room are written.
    fn written(&mut self, n: usize) -> Result<(), Self::Error>;
}

/// The decoder's state between two pieces.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    carry: [u8; 4],
    carry_len: usize,
    pads: usize,
    /// Index of the engine that was right last.
    engine: usize,
    corrupt: bool,
}

impl Decoder {
    /// Decodes a piece. `Ok(true)` when all of it was printable ASCII that base64 may hold.
    pub(super) fn push<O: Output>(&mut self, piece: &[u8], out: &mut O) -> Result<bool, O::Error> {
        let mut rest = piece;
        let mut plain = true;
        while !rest.is_empty() {
            if self.corrupt {
                return Ok(false);
            }
            let mut taken = 0;
            if self.carry_len == 0 && self.pads == 0 && rest.len() >= 4 {
                taken = self.bulk(&rest[..rest.len().min(BLOCK) & !3], out)?;
            }
            if taken == 0 {
                plain &= rest[0] >= b' ';
                self.symbol(rest[0], out)?;
                taken = 1;
            }
            rest = &rest[taken..];
        }
        Ok(plain && !self.corrupt)
    }

    /// Decodes as many symbols as `input` begins with, and says how many. It stops at anything
    /// else, and may stop before.
    pub(super) fn run<O: Output>(&mut self, input: &[u8], out: &mut O) -> Result<usize, O::Error> {
        if self.corrupt || self.pads > 0 {
            return Ok(0);
        }
        let mut taken = 0;
        while self.carry_len > 0 {
            match input.get(taken) {
                Some(&b) if b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_') => {
                    self.symbol(b, out)?
                }
                _ => return Ok(taken),
            }
            taken += 1;
        }
        while input.len() - taken >= 4 {
            let block = &input[taken..];
            let block = &block[..block.len().min(BLOCK) & !3];
            let good = self.bulk(block, out)?;
            taken += good;
            if good < block.len() {
                break;
            }
        }
        Ok(taken)
    }

    /// Decodes one byte that was spelled as an escape.
    pub(super) fn push_char<O: Output>(&mut self, c: char, out: &mut O) -> Result<(), O::Error> {
        match u8::try_from(c) {
            Ok(b) => self.symbol(b, out),
            Err(_) => {
                self.corrupt = true;
                Ok(())
            }
        }
    }

    /// The end of the text: whether all of it was base64.
    pub(super) fn finish<O: Output>(&mut self, out: &mut O) -> Result<bool, O::Error> {
        let fits = match (self.carry_len, self.pads) {
            (0, 0) => true,
            (2, pads) => pads == 0 || pads == 2,
            (3, pads) => pads < 2,
            _ => false,
        };
        if !fits || self.corrupt {
            return Ok(false);
        }
        self.flush(out)?;
        Ok(!self.corrupt)
    }

    /// Decodes as much of a block of whole quads as either engine takes, and says how many symbols
    /// that was.
    fn bulk<O: Output>(&mut self, block: &[u8], out: &mut O) -> Result<usize, O::Error> {
        let mut best = 0;
        for engine in [self.engine, 1 - self.engine] {
            let good = match attempt(engine, block, out)? {
                None => {
                    self.engine = engine;
                    return Ok(block.len());
                }
                Some(good) => good,
            };
            if good > best {
                best = good;
                self.engine = engine;
            }
        }
        // The engines stop at the first foreign byte; the quads before it are decoded again, now
        // for good.
        if best > 0 && attempt(self.engine, &block[..best], out)?.is_some() {
            return Ok(0);
        }
        Ok(best)
    }

    fn symbol<O: Output>(&mut self, b: u8, out: &mut O) -> Result<(), O::Error> {
        let standard = match b {
            b' ' | b'\n' | b'\r' | b'\t' => return Ok(()),
            b'=' => {
                self.pads += 1;
                self.corrupt |= self.pads > 2;
                return Ok(());
            }
            b'-' => b'+',
            b'_' => b'/',
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => b,
            _ => {
                self.corrupt = true;
                return Ok(());
            }
        };
        if self.pads > 0 {
            self.corrupt = true;
            return Ok(());
        }
        self.carry[self.carry_len] = standard;
        self.carry_len += 1;
        if self.carry_len == 4 { self.flush(out) } else { Ok(()) }
    }

    fn flush<O: Output>(&mut self, out: &mut O) -> Result<(), O::Error> {
        let len = std::mem::take(&mut self.carry_len);
        if len > 0 {
            let bytes = len * 3 / 4;
            // The engine wants room for whole quads, whatever it writes.
            let mut quad = [0; 3];
            match ENGINES[0].decode_slice(&self.carry[..len], &mut quad) {
                Ok(n) if n == bytes => {
                    out.room(bytes)?.copy_from_slice(&quad[..bytes]);
                    out.written(bytes)?;
                }
                _ => self.corrupt = true,
            }
        }
        Ok(())
    }
}

/// Decodes a block of whole quads; else says how many whole quads' symbols stand before the first
/// foreign byte.
fn attempt<O: Output>(engine: usize, block: &[u8], out: &mut O) -> Result<Option<usize>, O::Error> {
    let decoded = ENGINES[engine].decode_slice(block, out.room(block.len() / 4 * 3)?);
    Ok(match decoded {
        Ok(n) => {
            out.written(n)?;
            None
        }
        Err(DecodeSliceError::DecodeError(DecodeError::InvalidByte(at, _))) => {
            Some(at.min(block.len() - 1) & !3)
        }
        // Only the last quad can be at fault otherwise: padding.
        Err(_) => Some(block.len() - 4),
    })
}
