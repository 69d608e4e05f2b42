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

/// Symbols decoded at a time: what they decode to is passed on while it is still in the first-level
/// cache.
const BLOCK: usize = 16 * 1024;

/// Where decoded bytes go, block by block.
pub(super) type Out<'a, E> = dyn FnMut(&[u8]) -> Result<(), E> + 'a;

/// The decoder's state between two pieces.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    carry: [u8; 4],
    carry_len: usize,
    pads: usize,
    /// Index of the engine that was right last.
    engine: usize,
    corrupt: bool,
    /// Room for one decoded block.
    room: Vec<u8>,
}

impl Decoder {
    /// Decodes a piece.
    pub(super) fn push<E>(&mut self, piece: &[u8], out: &mut Out<'_, E>) -> Result<(), E> {
        let mut rest = piece;
        while let (Some(&b), false) = (rest.first(), self.corrupt) {
            let taken = self.run(rest, out)?;
            if taken == 0 {
                self.symbol(b, out)?;
            }
            rest = &rest[taken.max(1)..];
        }
        Ok(())
    }

    /// Decodes as many symbols as `input` begins with, and says how many. It stops at anything
    /// else, and may stop before.
    pub(super) fn run<E>(&mut self, input: &[u8], out: &mut Out<'_, E>) -> Result<usize, E> {
        if self.corrupt || self.pads > 0 {
            return Ok(0);
        }
        let mut taken = 0;
        while self.carry_len > 0 {
            match input.get(taken) {
                Some(&b) if b.is_ascii_alphanumeric() || b"+/-_".contains(&b) => {
                    self.symbol(b, out)?;
                }
                _ => return Ok(taken),
            }
            taken += 1;
        }
        loop {
            let block = &input[taken..];
            let block = &block[..block.len().min(BLOCK) & !3];
            let good = self.bulk(block, out)?;
            taken += good;
            if good < BLOCK {
                return Ok(taken);
            }
        }
    }

    /// The end of the text: whether all of it was base64.
    pub(super) fn finish<E>(&mut self, out: &mut Out<'_, E>) -> Result<bool, E> {
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
    fn bulk<E>(&mut self, block: &[u8], out: &mut Out<'_, E>) -> Result<usize, E> {
        if block.is_empty() {
            return Ok(0);
        }
        // No more than it needs: zeroing a whole block would cost more than decoding a small image.
        let decoded = block.len() / 4 * 3;
        if self.room.len() < decoded {
            self.room.resize(decoded, 0);
        }
        let mut best = 0;
        for engine in [self.engine, 1 - self.engine] {
            let good = attempt(engine, block, &mut self.room);
            if good > best {
                (best, self.engine) = (good, engine);
            }
            if good == block.len() {
                break;
            }
        }
        // The engines stop at the first foreign byte; the quads before it are decoded again, now
        // for good.
        if best < block.len() && attempt(self.engine, &block[..best], &mut self.room) < best {
            best = 0;
        }
        out(&self.room[..best / 4 * 3])?;
        Ok(best)
    }

    fn symbol<E>(&mut self, b: u8, out: &mut Out<'_, E>) -> Result<(), E> {
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
        self.corrupt |= self.pads > 0;
        if self.corrupt {
            return Ok(());
        }
        self.carry[self.carry_len] = standard;
        self.carry_len += 1;
        if self.carry_len == 4 { self.flush(out) } else { Ok(()) }
    }

    fn flush<E>(&mut self, out: &mut Out<'_, E>) -> Result<(), E> {
        let len = std::mem::take(&mut self.carry_len);
        // The engine wants room for whole quads, whatever it writes.
        let mut quad = [0; 3];
        match ENGINES[0].decode_slice(&self.carry[..len], &mut quad) {
            Ok(0) => Ok(()),
            Ok(n) => out(&quad[..n]),
            Err(_) => {
                self.corrupt = true;
                Ok(())
            }
        }
    }
}

/// Decodes a block of whole quads, and says how many whole quads' symbols stand before the first
/// foreign byte: all of them where the block is decoded.
fn attempt(engine: usize, block: &[u8], room: &mut [u8]) -> usize {
    match ENGINES[engine].decode_slice(block, &mut room[..block.len() / 4 * 3]) {
        Ok(_) => block.len(),
        Err(DecodeSliceError::DecodeError(DecodeError::InvalidByte(at, _))) => {
            at.min(block.len() - 1) & !3
        }
        // Only the last quad can be at fault otherwise: padding.
        Err(_) => block.len().saturating_sub(4),
    }
}
