//! Draws pictures that decoders accept, once for each kind; they are shared from then on.
//!
//! A picture is a gradient, a disc and some noise. The noise gives files of realistic weight: about
//! 1.3 MB at 1K, 5 MB at 2K and 20 MB at 4K. A large JPEG is drawn and encoded as eight strips
//! only; the strips are independent of each other (a restart marker between every two rows of
//! blocks), so the file repeats their encoded bytes all the way down. 4K takes milliseconds instead
//! of seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::hash::{hash64, little_endian, mix};
use crate::lock;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PictureKey {
    /// Width and height.
    pub(crate) dimensions: (u32, u32),
    pub(crate) jpeg: bool,
    pub(crate) tiny: bool,
    pub(crate) variant: u64,
}

/// One encoded picture and its base64.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) bytes: Bytes,
    pub(crate) base64: Bytes,
    pub(crate) hash: u64,
    pub(crate) jpeg: bool,
}

impl Picture {
    pub(crate) fn mime(&self) -> &'static str {
        if self.jpeg { "image/jpeg" } else { "image/png" }
    }
}

/// Every picture drawn so far.
#[derive(Debug, Default)]
pub(crate) struct PictureCache {
    pictures: Mutex<HashMap<PictureKey, Arc<Picture>>>,
    signatures: Mutex<HashMap<(usize, u64), Bytes>>,
}

impl PictureCache {
    pub(crate) fn picture(&self, key: PictureKey) -> Arc<Picture> {
        let draw = || {
            let (width, height) = key.dimensions;
            let encode = if key.jpeg { jpeg } else { png };
            let file = encode(width, height, key.variant, key.tiny);
            Arc::new(Picture {
                base64: STANDARD.encode(&file).into(),
                hash: hash64(&file),
                bytes: file.into(),
                jpeg: key.jpeg,
            })
        };
        // The lock is held while drawing, so that two requests for one picture draw it once.
        lock(&self.pictures).entry(key).or_insert_with(draw).clone()
    }

    /// A thought signature: base64 of `bytes` meaningless bytes, which begin with `prefix`.
    pub(crate) fn signature(&self, prefix: [u8; 6], bytes: usize, variant: u64) -> Bytes {
        let seed = mix(variant ^ little_endian(&prefix));
        lock(&self.signatures)
            .entry((bytes, seed))
            .or_insert_with(|| {
                let mut raw = prefix.to_vec();
                let mut state = seed;
                while raw.len() < bytes {
                    state = mix(state);
                    raw.extend_from_slice(&state.to_le_bytes());
                }
                STANDARD.encode(&raw).into()
            })
            .clone()
    }
}

/// RGB rows of the picture. `noise` is the span of the random part of each channel.
fn draw(width: u32, height: u32, variant: u64, noise: u32) -> Vec<u8> {
    let colours = mix(variant);
    let tint = [colours & 0x7f, (colours >> 8) & 0x7f, (colours >> 16) & 0x7f]
        .map(|value| u32::try_from(value).unwrap_or(0));
    let (centre_x, centre_y) = (width / 2, height / 2);
    let radius = width.min(height) / 3;
    let mut state = colours | 1;
    let mut pixels = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        let down = 100 * y / height;
        for x in 0..width {
            // One draw a pixel: an xorshift is enough, nobody has to guess them.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let across = 100 * x / width;
            let (dx, dy) = (x.abs_diff(centre_x), y.abs_diff(centre_y));
            let inside = if dx * dx + dy * dy < radius * radius { 60 } else { 0 };
            let grain = u32::try_from(state >> 40 & 0xff_ffff).unwrap_or(0);
            let pick =
                |shift: u32| if noise == 0 { 0 } else { (grain >> shift & 0xff) * noise / 256 };
            for (channel, light) in
                [across + inside, down + inside, across / 2 + down / 2].into_iter().enumerate()
            {
                let value = tint[channel] / 2 + light * 5 / 8 + pick(8 * channel as u32);
                pixels.push(u8::try_from(value.min(255)).unwrap_or(255));
            }
        }
    }
    pixels
}

fn png(width: u32, height: u32, variant: u64, tiny: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let drawn = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(&draw(width, height, variant, if tiny { 0 } else { PNG_NOISE }))
    });
    debug_assert!(drawn.is_ok(), "{drawn:?}");
    file
}

/// Chosen so that a 1K PNG weighs 1.3 to 1.9 MB, as recorded responses of gemini-2.5-flash-image
/// do.
const PNG_NOISE: u32 = 8;
/// Chosen so that a 1K JPEG weighs 0.9 to 1.5 MB and a 4K one about 20 MB, as recorded responses of
/// gemini-3-pro-image do.
const JPEG_NOISE: u32 = 80;
const JPEG_QUALITY: u8 = 92;
/// Rows of pixels in one row of blocks when the colours are not subsampled.
const STRIP: u32 = 8;
/// Restart markers count from 0 to 7 and begin again.
const STRIPS: u32 = 8;

fn jpeg(width: u32, height: u32, variant: u64, tiny: bool) -> Vec<u8> {
    let drawn_height = (STRIP * STRIPS).min(height.next_multiple_of(STRIP));
    let noise = if tiny { 0 } else { JPEG_NOISE };
    let pixels = draw(width, drawn_height, variant, noise);
    let mut file = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut file, JPEG_QUALITY);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
    encoder.set_restart_interval(u16::try_from(width.div_ceil(STRIP)).unwrap_or(u16::MAX));
    let (w, h) =
        (u16::try_from(width).unwrap_or(u16::MAX), u16::try_from(drawn_height).unwrap_or(u16::MAX));
    let drawn = encoder.encode(&pixels, w, h, jpeg_encoder::ColorType::Rgb);
    debug_assert!(drawn.is_ok(), "{drawn:?}");
    stretch(&file, height).unwrap_or(file)
}

/// Repeats the strips of a JPEG until it has `height` rows.
fn stretch(file: &[u8], height: u32) -> Option<Vec<u8>> {
    let frame = segment(file, 0xc0)?;
    let scan = segment(file, 0xda)?;
    let scan_length = usize::from(u16::from_be_bytes([*file.get(scan + 2)?, *file.get(scan + 3)?]));
    let data_start = scan + 2 + scan_length;
    let data_end = file.len().checked_sub(2)?;
    let strips = split_at_restarts(file.get(data_start..data_end)?);
    let rows = height.div_ceil(STRIP) as usize;

    let mut out = Vec::with_capacity(data_start + rows * (strips.first()?.len() + 2) + 2);
    out.extend_from_slice(&file[..data_start]);
    // The frame header holds the height two bytes after its length and precision.
    out.get_mut(frame + 5..frame + 7)?.copy_from_slice(&u16::try_from(height).ok()?.to_be_bytes());
    for (row, strip) in strips.iter().cycle().take(rows).enumerate() {
        if row > 0 {
            out.extend_from_slice(&[0xff, 0xd0 + ((row - 1) % 8) as u8]);
        }
        out.extend_from_slice(strip);
    }
    out.extend_from_slice(&[0xff, 0xd9]);
    Some(out)
}

/// Where the marker `0xff kind` of a segment begins.
fn segment(file: &[u8], kind: u8) -> Option<usize> {
    let mut at = 2;
    loop {
        let (marker, found) = (*file.get(at)?, *file.get(at + 1)?);
        if marker != 0xff {
            return None;
        }
        if found == kind {
            return Some(at);
        }
        at += 2 + usize::from(u16::from_be_bytes([*file.get(at + 2)?, *file.get(at + 3)?]));
    }
}

/// In entropy-coded data `0xff` is followed by zero, unless it begins a restart marker.
fn split_at_restarts(data: &[u8]) -> Vec<&[u8]> {
    let mut strips = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while let Some(offset) =
        data.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xff))
    {
        at += offset;
        if data.get(at + 1).is_some_and(|next| (0xd0..=0xd7).contains(next)) {
            strips.push(&data[start..at]);
            start = at + 2;
        }
        at += 2;
    }
    strips.push(&data[start..]);
    strips
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RATIOS, Ratio, Size, known};

    const FLASH: &str = "gemini-2.5-flash-image";
    const PRO: &str = "gemini-3-pro-image";
    const FLASH31: &str = "gemini-3.1-flash-image";
    const SQUARE: &Ratio = &RATIOS[0];

    fn key(model: &str, size: Size, ratio: &Ratio, tiny: bool) -> PictureKey {
        let model = known(model).unwrap();
        let dimensions = model.dimensions(size, ratio, tiny);
        PictureKey { dimensions, jpeg: model.jpeg, tiny, variant: 7 }
    }

    fn png_dimensions(file: &[u8]) -> (u32, u32) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width, info.height)
    }

    /// Width and height of the frame header, after walking the whole scan: each row of blocks is
    /// one strip.
    fn jpeg_dimensions(file: &[u8]) -> (u32, u32) {
        assert_eq!(file[..2], [0xff, 0xd8]);
        assert_eq!(file[file.len() - 2..], [0xff, 0xd9]);
        let frame = segment(file, 0xc0).unwrap();
        let number = |at: usize| u32::from(u16::from_be_bytes([file[at], file[at + 1]]));
        let (height, width) = (number(frame + 5), number(frame + 7));
        let scan = segment(file, 0xda).unwrap();
        let data = &file[scan + 2 + number(scan + 2) as usize..file.len() - 2];
        assert_eq!(split_at_restarts(data).len(), height.div_ceil(STRIP) as usize);
        (width, height)
    }

    #[test]
    fn png_pictures_decode_at_every_ratio() {
        let pictures = PictureCache::default();
        for ratio in known(FLASH).unwrap().ratios() {
            let key = key(FLASH, Size::K1, ratio, true);
            let picture = pictures.picture(key);
            assert_eq!(png_dimensions(&picture.bytes), key.dimensions, "{}", ratio.name);
        }
        let full = pictures.picture(key(FLASH, Size::K1, SQUARE, false));
        assert_eq!(png_dimensions(&full.bytes), (1024, 1024));
        assert!((1_200_000..2_000_000).contains(&full.bytes.len()), "{}", full.bytes.len());
    }

    #[test]
    fn jpeg_pictures_have_the_asked_size_at_every_ratio() {
        let pictures = PictureCache::default();
        for size in Size::ALL {
            for ratio in &RATIOS {
                let key = key(FLASH31, size, ratio, true);
                let picture = pictures.picture(key);
                assert_eq!(jpeg_dimensions(&picture.bytes), key.dimensions, "{size:?} {ratio:?}");
            }
        }
    }

    #[test]
    fn large_jpegs_weigh_what_recorded_ones_do() {
        let pictures = PictureCache::default();
        for (size, side, weight) in [
            (Size::K1, 1024, 900_000..1_600_000),
            (Size::K2, 2048, 4_000_000..6_500_000),
            (Size::K4, 4096, 15_000_000..25_000_000),
        ] {
            let picture = pictures.picture(key(PRO, size, SQUARE, false));
            assert_eq!(jpeg_dimensions(&picture.bytes), (side, side));
            assert!(
                weight.contains(&picture.bytes.len()),
                "{size:?} weighs {}",
                picture.bytes.len()
            );
        }
    }

    #[test]
    fn two_variants_differ_and_one_variant_repeats() {
        let picture = |key| PictureCache::default().picture(key);
        let one = key(PRO, Size::K1, SQUARE, true);
        assert_eq!(picture(one).hash, picture(one).hash);
        assert_ne!(picture(one).hash, picture(PictureKey { variant: 8, ..one }).hash);
    }
}
