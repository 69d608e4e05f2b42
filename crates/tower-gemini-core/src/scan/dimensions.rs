//! Width and height out of an image's first bytes, as they pass.
//!
//! | format | where |
//! | --- | --- |
//! | PNG | the `IHDR` chunk, always first: bytes 16 to 24 |
//! | GIF | the logical screen: bytes 6 to 10 |
//! | WebP | the first chunk, `VP8X`, `VP8L` or `VP8 `: within 30 bytes |
//! | JPEG | the first start-of-frame segment, behind any number of others of up to 64 KiB each |

use std::convert::Infallible;

use super::base64::Decoder;

/// Returns the width and height of an image in base64, read from its own first bytes. `None` where
/// it is none of the formats above, or is cut before they are known.
///
/// ```
/// use tower_gemini_core::scan::dimensions_of;
///
/// let png = "iVBORw0KGgoAAAANSUhEUgAABAAAAAIACAIAAAA=";
/// assert_eq!(dimensions_of(png), Some((1024, 512)));
/// assert_eq!(dimensions_of("QUJD"), None);
/// ```
#[must_use]
pub fn dimensions_of(base64: &str) -> Option<(u32, u32)> {
    // Most headers are within the first piece.
    const PIECE: usize = 4096;
    let (mut decoder, mut sniffer) = (Decoder::default(), Sniffer::default());
    for piece in base64.as_bytes().chunks(PIECE) {
        let Ok(()) = decoder.push::<Infallible>(piece, &mut |bytes| {
            sniffer.push(bytes);
            Ok(())
        });
        if sniffer.state == SnifferState::Over {
            break;
        }
    }
    sniffer.size()
}

/// Enough for the longest header that is read at once (WebP's).
const HEAD: usize = 30;

/// Reads dimensions from bytes that are pushed in any pieces.
#[derive(Debug, Default)]
pub(super) struct Sniffer {
    state: SnifferState,
    head: [u8; HEAD],
    len: usize,
    /// Bytes of a JPEG segment still to be skipped.
    skip: usize,
    found: Option<(u32, u32)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum SnifferState {
    #[default]
    Head,
    JpegMarker,
    Over,
}

impl Sniffer {
    /// Width and height, once they have passed.
    pub(super) fn size(&self) -> Option<(u32, u32)> {
        self.found
    }

    /// Looks at the next bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while self.state != SnifferState::Over && !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                continue;
            }
            self.head[self.len] = bytes[0];
            self.len += 1;
            bytes = &bytes[1..];
            match self.state {
                SnifferState::Head => self.head(),
                SnifferState::JpegMarker => self.marker(),
                SnifferState::Over => {}
            }
        }
    }

    fn head(&mut self) {
        let head = &self.head[..self.len];
        if head.len() == 2 && head == [0xFF, 0xD8] {
            self.state = SnifferState::JpegMarker;
            self.len = 0;
        } else if head.len() == 10 && head.starts_with(b"GIF8") {
            self.found = Some((le(&head[6..8]), le(&head[8..10])));
            self.state = SnifferState::Over;
        } else if head.len() == 24 && head.starts_with(b"\x89PNG\r\n\x1a\n") {
            self.found = Some((be(&head[16..20]), be(&head[20..24])));
            self.state = SnifferState::Over;
        } else if head.len() == HEAD {
            self.found = webp(head);
            self.state = SnifferState::Over;
        }
    }

    fn marker(&mut self) {
        let head = &self.head[..self.len];
        match *head {
            [0xFF] => {}
            // Fill bytes may stand before a marker; markers without a segment have no length.
            [0xFF, 0xFF] => self.len = 1,
            [0xFF, 0x01 | 0xD0..=0xD8] => self.len = 0,
            // The image's data or its end, with no frame before it.
            [0xFF, 0xD9 | 0xDA] => self.state = SnifferState::Over,
            [0xFF, _] | [0xFF, _, _] => {}
            [0xFF, 0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF, ..] => {
                if head.len() == 9 {
                    self.found = Some((be(&head[7..]), be(&head[5..7])));
                    self.state = SnifferState::Over;
                }
            }
            [0xFF, _, _, _] => {
                match be(&head[2..]).checked_sub(2) {
                    Some(skip) => self.skip = skip as usize,
                    None => self.state = SnifferState::Over,
                }
                self.len = 0;
            }
            _ => self.state = SnifferState::Over,
        }
    }
}

fn webp(head: &[u8]) -> Option<(u32, u32)> {
    if !head.starts_with(b"RIFF") || &head[8..12] != b"WEBP" {
        return None;
    }
    match &head[12..16] {
        b"VP8X" => Some((1 + le(&head[24..27]), 1 + le(&head[27..30]))),
        b"VP8L" if head[20] == 0x2F => {
            let bits = le(&head[21..25]);
            Some((1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)))
        }
        b"VP8 " if head[23..26] == [0x9D, 0x01, 0x2A] => {
            Some((le(&head[26..28]) & 0x3FFF, le(&head[28..30]) & 0x3FFF))
        }
        _ => None,
    }
}

fn be(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn le(bytes: &[u8]) -> u32 {
    bytes.iter().rfold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of(bytes: &[u8], step: usize) -> Option<(u32, u32)> {
        let mut sniffer = Sniffer::default();
        bytes.chunks(step).for_each(|piece| sniffer.push(piece));
        sniffer.size()
    }

    #[test]
    fn every_format_is_measured_whatever_the_pieces() {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        png.extend([0, 0, 0x10, 0, 0, 0, 0x08, 0, 8, 2]);
        let mut gif = b"GIF89a".to_vec();
        gif.extend([0x40, 0x01, 0xF0, 0x00]);
        let mut vp8x = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
        vp8x.extend([0xFF, 0x03, 0x00, 0xFF, 0x01, 0x00]);
        let mut vp8 = b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a".to_vec();
        vp8.extend([0x00, 0x04, 0x00, 0x02]);
        let mut vp8l = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f".to_vec();
        vp8l.extend((1023_u32 | 511 << 14).to_le_bytes());
        vp8l.extend([0; 8]);
        // Two application segments of 64 KiB, a fill byte, then a progressive frame.
        let mut jpeg = vec![0xFF, 0xD8];
        for _ in 0..2 {
            jpeg.extend([0xFF, 0xE1, 0xFF, 0xFF]);
            jpeg.extend(vec![0xC0; 0xFFFF - 2]);
        }
        jpeg.extend([0xFF, 0xFF, 0xC2, 0, 17, 8, 0x02, 0x00, 0x04, 0x00, 3]);
        for step in [1, 3, 7, 1000, 1 << 20] {
            assert_eq!(size_of(&png, step), Some((4096, 2048)));
            assert_eq!(size_of(&gif, step), Some((320, 240)));
            assert_eq!(size_of(&vp8x, step), Some((1024, 512)));
            assert_eq!(size_of(&vp8, step), Some((1024, 512)));
            assert_eq!(size_of(&vp8l, step), Some((1024, 512)));
            assert_eq!(size_of(&jpeg, step), Some((1024, 512)));
            assert_eq!(size_of(b"\xFF\xD8\xFF\xDA\xFF\xC0", step), None);
            assert_eq!(size_of(&[0; 64], step), None);
        }
    }
}
