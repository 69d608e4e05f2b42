//! Sizes and aspect ratios of images, and how the APIs and proxies spell them: as words, as pixels,
//! and behind a model's name.

use std::borrow::Cow;
use std::fmt;

/// A size that Gemini's image models know, smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ImageSize {
    /// `"512"` (written without a K): 512 px class.
    Px512 = 512,
    /// `"1K"`: 1024 px class.
    K1 = 1024,
    /// `"2K"`: 2048 px class.
    K2 = 2048,
    /// `"4K"`: 4096 px class.
    K4 = 4096,
}

impl ImageSize {
    /// Every size, smallest first.
    pub const ALL: [Self; 4] = [Self::Px512, Self::K1, Self::K2, Self::K4];

    /// Returns the spelling of `imageConfig.imageSize`: upper-case K, and 512 without one.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Px512 => "512",
            Self::K1 => "1K",
            Self::K2 => "2K",
            Self::K4 => "4K",
        }
    }

    /// Returns the nominal edge length in pixels of a square image.
    #[must_use]
    pub fn edge_px(self) -> u32 {
        self as u32
    }

    /// The spelling of the enum in Agent Platform's `responseFormat`, without `IMAGE_SIZE_`.
    fn enum_word(self) -> &'static str {
        match self {
            Self::Px512 => "FIVE_TWELVE",
            Self::K1 => "ONE_K",
            Self::K2 => "TWO_K",
            Self::K4 => "FOUR_K",
        }
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Aspect ratios with a name in any of the APIs (Gemini API and Agent Platform documentation,
/// 2026-07; the SDKs have the same 14, google-genai 2.19): as spelled, as proxies write them into a
/// model's name, as words of the enum, and as numbers.
const RATIOS: [(&str, &str, &str, f64); 14] = [
    ("1:1", "1x1", "ONE_BY_ONE", 1.0),
    ("2:3", "2x3", "TWO_BY_THREE", 2.0 / 3.0),
    ("3:2", "3x2", "THREE_BY_TWO", 3.0 / 2.0),
    ("3:4", "3x4", "THREE_BY_FOUR", 3.0 / 4.0),
    ("4:3", "4x3", "FOUR_BY_THREE", 4.0 / 3.0),
    ("4:5", "4x5", "FOUR_BY_FIVE", 4.0 / 5.0),
    ("5:4", "5x4", "FIVE_BY_FOUR", 5.0 / 4.0),
    ("9:16", "9x16", "NINE_BY_SIXTEEN", 9.0 / 16.0),
    ("16:9", "16x9", "SIXTEEN_BY_NINE", 16.0 / 9.0),
    ("21:9", "21x9", "TWENTY_ONE_BY_NINE", 21.0 / 9.0),
    ("1:4", "1x4", "ONE_BY_FOUR", 1.0 / 4.0),
    ("4:1", "4x1", "FOUR_BY_ONE", 4.0),
    ("1:8", "1x8", "ONE_BY_EIGHT", 1.0 / 8.0),
    ("8:1", "8x1", "EIGHT_BY_ONE", 8.0),
];

/// Returns an aspect ratio as `16:9`, whichever of the APIs' spellings it has (`16:9`, `16x9`,
/// `ASPECT_RATIO_SIXTEEN_BY_NINE`, `ASPECT_RATIO_16_9`, `IMAGE_ASPECT_RATIO_LANDSCAPE`). A ratio
/// without a name is kept as it is, because only the
/// server can judge it. `None` for a value that leaves the choice to the model (`auto`).
#[must_use]
pub fn parse_aspect(text: &str) -> Option<Cow<'static, str>> {
    let text = text.trim();
    let words = enum_words(text);
    let known = RATIOS.iter().find(|known| match words {
        None => known.0 == text || known.1 == text,
        Some(words) => {
            let (orientation, numbers) = match words.split_once('_') {
                Some((first @ ("LANDSCAPE" | "PORTRAIT"), numbers)) => (first, numbers),
                _ => (words, words),
            };
            match orientation {
                "SQUARE" => known.0 == "1:1",
                "LANDSCAPE" if numbers == words => known.0 == "16:9",
                "PORTRAIT" if numbers == words => known.0 == "9:16",
                _ => {
                    known.2 == numbers
                        || known.2.replace("_BY_", "_") == numbers
                        || known.0.replace(':', "_") == numbers
                }
            }
        }
    });
    if known.is_some() || words.is_some() {
        return known.map(|known| Cow::Borrowed(known.0));
    }
    // Nothing longer than this is a ratio.
    let is_ratio = (1..=16).contains(&text.len()) && !text.eq_ignore_ascii_case("auto");
    is_ratio.then(|| Cow::Owned(text.to_owned()))
}

/// Returns what stands behind the prefix of an enum: that of Agent Platform, or that of Google's
/// image tools.
fn enum_words(text: &str) -> Option<&str> {
    text.strip_prefix("IMAGE_").unwrap_or(text).strip_prefix("ASPECT_RATIO_")
}

/// Returns the size that a text means in any of the APIs, and the aspect ratio where it is given in
/// pixels.
///
/// `imageSize` refuses lower-case `2k` with a 400, but `sampleImageSize` and proxies take it; it is
/// a 2K either way.
#[must_use]
pub fn parse_size(text: &str) -> Option<(ImageSize, Option<&'static str>)> {
    let text = text.trim();
    let word = text.strip_prefix("IMAGE_SIZE_").unwrap_or(text);
    let is = |spelling: &str| word.eq_ignore_ascii_case(spelling);
    let edge: Option<u32> = word.parse().ok();
    let named = ImageSize::ALL
        .into_iter()
        .find(|size| is(size.as_str()) || edge == Some(size.edge_px()) || is(size.enum_word()));
    if let Some(size) = named.or((is("512px") || is("0.5K")).then_some(ImageSize::Px512)) {
        return Some((size, None));
    }
    let (width, height) = word.split_once(PIXEL_SEPARATORS)?;
    let pixels =
        |side: &str| side.trim().parse::<u16>().ok().filter(|&side| side >= 64).map(f64::from);
    let (width, height) = (pixels(width)?, pixels(height)?);
    if (width, height) == OWN_21_9_AT_512 {
        return Some((ImageSize::Px512, Some("21:9")));
    }
    Some((size_of_area(width * height), Some(nearest_ratio(width / height))))
}

/// What the documentation gives for 21:9 at 512 (Gemini API, image generation, 2026-07), although
/// the ratio of these numbers is nearer to 4:1.
const OWN_21_9_AT_512: (f64, f64) = (792.0, 168.0);

const PIXEL_SEPARATORS: [char; 4] = ['x', 'X', '*', '×'];

/// Returns the class of an area in pixels. The limits lie half-way between the classes (0.26, 1.05,
/// 4.19 and 16.8 million, by factor), lowered to round numbers so that Full HD (2.07 million)
/// counts as 2K and UHD (8.29 million) as 4K: the names people know them by.
fn size_of_area(pixels: f64) -> ImageSize {
    match pixels {
        area if area < 0.5e6 => ImageSize::Px512,
        area if area < 2.0e6 => ImageSize::K1,
        area if area < 8.0e6 => ImageSize::K2,
        _ => ImageSize::K4,
    }
}

/// Returns the named ratio nearest to a number. The models' own pixel sizes miss their ratio by up
/// to 2 % (16:9 at 4K is 5504×3072), so the nearest one is meant.
fn nearest_ratio(ratio: f64) -> &'static str {
    let distance = |known: f64| (known / ratio).ln().abs();
    RATIOS
        .iter()
        .min_by(|a, b| distance(a.3).total_cmp(&distance(b.3)))
        .map_or("1:1", |nearest| nearest.0)
}

/// Spells an aspect ratio as `like` spells another one.
pub(crate) fn ratio_as(ratio: &str, like: &str) -> String {
    let Some(known) = RATIOS.iter().find(|known| known.0 == ratio) else {
        return ratio.to_owned();
    };
    let like = like.trim();
    if let Some(words) = enum_words(like) {
        let prefix = like.strip_suffix(words).unwrap_or("ASPECT_RATIO_");
        let is_in_digits = words.ends_with(|last: char| last.is_ascii_digit());
        let digits = is_in_digits.then(|| known.0.replace(':', "_"));
        format!("{prefix}{}", digits.as_deref().unwrap_or(known.2))
    } else if like.contains(':') {
        known.0.to_owned()
    } else {
        known.1.to_owned()
    }
}

/// Returns how far a ratio is from another, by factor; `None` where one of them has no name in any
/// of the APIs.
pub(crate) fn ratio_distance(a: &str, b: &str) -> Option<f64> {
    let value = |name: &str| RATIOS.iter().find(|known| known.0 == name).map(|known| known.3);
    Some((value(a)? / value(b)?).ln().abs())
}

/// Spells a size as `like`, which means the size `from`, is spelled.
pub(crate) fn size_as(size: ImageSize, like: &str, from: ImageSize) -> String {
    let like = like.trim();
    if like.starts_with("IMAGE_SIZE_") {
        return format!("IMAGE_SIZE_{}", size.enum_word());
    }
    if like.ends_with("_K") || like == "FIVE_TWELVE" {
        return size.enum_word().to_owned();
    }
    if let Some((width, height)) = like.split_once(PIXEL_SEPARATORS) {
        let scaled = |side: &str| {
            side.trim().parse::<u32>().ok().map(|side| side * size.edge_px() / from.edge_px())
        };
        if let (Some(width), Some(height)) = (scaled(width), scaled(height)) {
            return format!("{width}x{height}");
        }
    }
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if like.strip_suffix("px").is_some_and(is_number) {
        return format!("{}px", size.edge_px());
    }
    // "512" is spelled alike with and without a K: the K is used, because Google's own fields have
    // it.
    if like != "512" && is_number(like) {
        return size.edge_px().to_string();
    }
    if like.ends_with('k') { size.as_str().to_ascii_lowercase() } else { size.as_str().to_owned() }
}

/// Strips the collection in front of a model's name: `models/x`, `publishers/google/models/x`, a
/// whole resource name, and `google/x` as the OpenAI-style endpoints of Vertex AI and OpenRouter
/// spell it.
#[must_use]
pub fn strip_model_prefix(name: &str) -> &str {
    if !name.as_bytes().contains(&b'/') {
        return name;
    }
    let name = match name.rsplit_once("models/") {
        // `tunedModels/` has an upper-case M and is not cut.
        Some((front, id)) if front.is_empty() || front.ends_with('/') => id,
        _ => name,
    };
    name.strip_prefix("google/").unwrap_or(name)
}

/// Splits off the size and the ratio that proxies write behind a model's name (`-4k`, `-2k-9x16`,
/// `-16x9`).
///
/// A name of which nothing would be left, or a part that is not exactly of this form, stays whole.
#[must_use]
pub fn split_model_suffix(name: &str) -> (&str, Option<ImageSize>, Option<&'static str>) {
    let (mut base, mut size, mut ratio) = (name, None, None);
    while let Some((front, part)) = base.rsplit_once('-') {
        if front.is_empty() {
            break;
        }
        // No proxy writes 512 behind a name.
        let part_size = [ImageSize::K1, ImageSize::K2, ImageSize::K4]
            .into_iter()
            .find(|size| part.eq_ignore_ascii_case(size.as_str()));
        let part_ratio = RATIOS.iter().find(|known| known.1 == part).map(|known| known.0);
        match (part_size, part_ratio) {
            (Some(_), _) if size.is_none() => size = part_size,
            (_, Some(_)) if ratio.is_none() => ratio = part_ratio,
            _ => break,
        }
        base = front;
    }
    (base, size, ratio)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_every_spelling() {
        use ImageSize::{K1, K2, K4, Px512};
        for (text, size, ratio) in [
            ("512", Px512, None),
            ("512px", Px512, None),
            ("1K", K1, None),
            ("1k", K1, None),
            ("2k", K2, None),
            ("4K", K4, None),
            ("IMAGE_SIZE_FIVE_TWELVE", Px512, None),
            ("IMAGE_SIZE_ONE_K", K1, None),
            ("IMAGE_SIZE_TWO_K", K2, None),
            ("IMAGE_SIZE_FOUR_K", K4, None),
            ("2048", K2, None),
            ("4096x4096", K4, Some("1:1")),
            ("2048x2048", K2, Some("1:1")),
            ("1024x1024", K1, Some("1:1")),
            ("512x512", Px512, Some("1:1")),
            ("1024x1792", K1, Some("9:16")),
            ("1536x1024", K1, Some("3:2")),
            ("1376x768", K1, Some("16:9")),
            ("5504x3072", K4, Some("16:9")),
            ("3840x2160", K4, Some("16:9")),
            ("1584x672", K1, Some("21:9")),
            ("384x3072", K1, Some("1:8")),
        ] {
            assert_eq!(parse_size(text), Some((size, ratio)), "{text}");
        }
        for text in
            ["", "auto", "8K", "x", "1x", "1x1", "99999x99999", "IMAGE_SIZE_UNSPECIFIED", "hd"]
        {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    /// Google's table of pixels (Gemini API documentation, image generation, 2026-07): the row of 1K,
    /// and for each class its factor.
    #[test]
    fn every_size_of_googles_table_is_its_row() {
        let rows = [
            ("1:1", 1024, 1024),
            ("1:4", 512, 2048),
            ("1:8", 384, 3072),
            ("2:3", 848, 1264),
            ("3:2", 1264, 848),
            ("3:4", 896, 1200),
            ("4:1", 2048, 512),
            ("4:3", 1200, 896),
            ("4:5", 928, 1152),
            ("5:4", 1152, 928),
            ("8:1", 3072, 384),
            ("9:16", 768, 1376),
            ("16:9", 1376, 768),
            ("21:9", 1584, 672),
            // The older model's own.
            ("2:3", 832, 1248),
            ("3:4", 864, 1184),
            ("4:3", 1184, 864),
            ("4:5", 896, 1152),
            ("9:16", 768, 1344),
            ("16:9", 1344, 768),
            ("21:9", 1536, 672),
        ];
        for (ratio, width, height) in rows {
            for (half_factors, size) in [1, 2, 4, 8].into_iter().zip(ImageSize::ALL) {
                let text = format!("{}x{}", width * half_factors / 2, height * half_factors / 2);
                assert_eq!(parse_size(&text), Some((size, Some(ratio))), "{text}");
            }
        }
        assert_eq!(parse_size("792x168"), Some((ImageSize::Px512, Some("21:9"))));
    }

    #[test]
    fn ratios_in_every_spelling() {
        for (text, ratio) in [
            ("16:9", "16:9"),
            ("16x9", "16:9"),
            ("ASPECT_RATIO_SIXTEEN_BY_NINE", "16:9"),
            ("ASPECT_RATIO_TWENTY_ONE_BY_NINE", "21:9"),
            ("ASPECT_RATIO_16_9", "16:9"),
            ("ASPECT_RATIO_LANDSCAPE", "16:9"),
            ("ASPECT_RATIO_LANDSCAPE_4_3", "4:3"),
            ("IMAGE_ASPECT_RATIO_PORTRAIT", "9:16"),
            ("IMAGE_ASPECT_RATIO_PORTRAIT_THREE_FOUR", "3:4"),
            ("IMAGE_ASPECT_RATIO_SQUARE", "1:1"),
            ("7:3", "7:3"),
            ("9:21", "9:21"),
            (" 1:1 ", "1:1"),
        ] {
            assert_eq!(parse_aspect(text).as_deref(), Some(ratio), "{text}");
        }
        for (like, spelled) in [
            ("16:9", "4:3"),
            ("16x9", "4x3"),
            ("ASPECT_RATIO_SIXTEEN_BY_NINE", "ASPECT_RATIO_FOUR_BY_THREE"),
            ("ASPECT_RATIO_16_9", "ASPECT_RATIO_4_3"),
            ("IMAGE_ASPECT_RATIO_LANDSCAPE", "IMAGE_ASPECT_RATIO_FOUR_BY_THREE"),
        ] {
            assert_eq!(ratio_as("4:3", like), spelled, "{like}");
            assert_eq!(parse_aspect(spelled).as_deref(), Some("4:3"), "{spelled}");
        }
        for text in [
            "",
            "auto",
            "ASPECT_RATIO_UNSPECIFIED",
            "ASPECT_RATIO_PORTRAIT_16",
            "a very long thing that is no ratio",
        ] {
            assert_eq!(parse_aspect(text), None, "{text}");
        }
    }

    #[test]
    fn suffixes_of_proxies() {
        let cases = [
            ("gemini-3-pro-image-4k", ("gemini-3-pro-image", Some(ImageSize::K4), None)),
            (
                "gemini-3-pro-image-2k-9x16",
                ("gemini-3-pro-image", Some(ImageSize::K2), Some("9:16")),
            ),
            (
                "gemini-3-pro-image-9x16-2K",
                ("gemini-3-pro-image", Some(ImageSize::K2), Some("9:16")),
            ),
            ("gemini-3-pro-image-16x9", ("gemini-3-pro-image", None, Some("16:9"))),
            ("gemini-3-pro-image", ("gemini-3-pro-image", None, None)),
            ("gemini-2.5-flash-image", ("gemini-2.5-flash-image", None, None)),
            ("-4k", ("-4k", None, None)),
            ("a-4k-4k", ("a-4k", Some(ImageSize::K4), None)),
        ];
        for (name, expected) in cases {
            assert_eq!(split_model_suffix(name), expected, "{name}");
        }
    }
}
