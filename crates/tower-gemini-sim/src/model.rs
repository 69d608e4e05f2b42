//! The models that the simulator knows, as of October 2026, and what they charge.
//!
//! Ids and dates: ai.google.dev "Deprecations" and Firebase "Imagen models migration" (read October
//! 2026). Token counts and sizes: ai.google.dev "Image generation" (2026-07). Prices: ai.google.dev
//! "Pricing" (2026-09), per million tokens; the flash-lite row from a third-party catalogue of the
//! same month.

use serde::Serialize;

/// A size of image, smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[non_exhaustive]
pub enum Size {
    /// `"512"`, without a K: `gemini-3.1-flash-image` only.
    #[serde(rename = "512")]
    Px512,
    /// `"1K"`, what every model answers when nothing is asked.
    #[serde(rename = "1K")]
    K1,
    /// `"2K"`.
    #[serde(rename = "2K")]
    K2,
    /// `"4K"`.
    #[serde(rename = "4K")]
    K4,
}

impl Size {
    /// Every size, smallest first.
    pub const ALL: [Self; 4] = [Self::Px512, Self::K1, Self::K2, Self::K4];

    /// As `imageSize` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Px512 => "512",
            Self::K1 => "1K",
            Self::K2 => "2K",
            Self::K4 => "4K",
        }
    }

    /// Reads `imageSize`: the K is upper case, or it is not a size (ai.google.dev "Image
    /// generation", 2026-07).
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.as_str() == text)
    }
}

/// What a model costs, in micro-dollars per million tokens (so `$0.30` a million is `300_000`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Price {
    /// Input of any kind.
    pub input: u64,
    /// Output text and thinking.
    pub text: u64,
    /// Output images.
    pub image: u64,
}

impl Price {
    const fn cents(input: u64, text: u64, image: u64) -> Self {
        Self { input: input * 10_000, text: text * 10_000, image: image * 10_000 }
    }

    /// The price of some tokens in micro-dollars, rounded to the nearest.
    pub(crate) fn of(&self, input: u64, text: u64, image: u64) -> u64 {
        let picos = input * self.input + text * self.text + image * self.image;
        (picos + 500_000) / 1_000_000
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    Flash25,
    Pro3,
    Flash31,
    Imagen,
    Text,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) id: &'static str,
    pub(crate) family: Family,
    pub(crate) sizes: &'static [Size],
    /// 1:4, 4:1, 1:8 and 8:1.
    pub(crate) extreme_ratios: bool,
    pub(crate) jpeg: bool,
    pub(crate) price: Price,
    pub(crate) retired: Option<Retired>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Retired {
    pub(crate) successor: &'static str,
}

const fn gone(successor: &'static str) -> Option<Retired> {
    Some(Retired { successor })
}

impl Model {
    /// Whether `imageSize` may be sent at all.
    pub(crate) fn takes_size(&self) -> bool {
        !matches!(self.family, Family::Flash25 | Family::Text)
    }

    pub(crate) fn thinks(&self) -> bool {
        matches!(self.family, Family::Pro3 | Family::Flash31)
    }

    pub(crate) fn makes_images(&self) -> bool {
        self.family != Family::Text
    }

    /// Tokens of one image: 1290 for 2.5 Flash; Pro 1120, 2000 at 4K; 3.1 Flash 747 at 512, 1120,
    /// 1680 at 2K and 2520 at 4K, which are the listed $0.045, $0.067, $0.101 and $0.151 at $60 a
    /// million.
    pub(crate) fn image_tokens(&self, size: Size) -> u64 {
        match (self.family, size) {
            (Family::Flash25, _) => 1290,
            (Family::Pro3, Size::K4) => 2000,
            (Family::Flash31, Size::Px512) => 747,
            (Family::Flash31, Size::K2) => 1680,
            (Family::Flash31, Size::K4) => 2520,
            (Family::Text, _) => 0,
            // Imagen is priced by the image: its row's price makes a thousand tokens of one image.
            (Family::Imagen, _) => 1000,
            _ => 1120,
        }
    }

    /// Tokens of one reference image: 560 for Pro, 258 for the others (ai.google.dev "Pricing" and
    /// "Token counting", 2026-09).
    pub(crate) fn input_image_tokens(&self) -> u64 {
        if self.family == Family::Pro3 { 560 } else { 258 }
    }
}

pub(crate) fn known(id: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.id == id)
}

const ONE: &[Size] = &[Size::K1];
const THREE: &[Size] = &[Size::K1, Size::K2, Size::K4];
const FOUR: &[Size] = &Size::ALL;

const FLASH25: Price = Price::cents(30, 250, 3_000);
const PRO3: Price = Price::cents(200, 1_200, 12_000);
const FLASH31: Price = Price::cents(50, 300, 6_000);
const LITE31: Price = Price::cents(25, 150, 3_000);

#[rustfmt::skip]
pub(crate) static MODELS: &[Model] = &[
    Model { id: "gemini-2.5-flash-image", family: Family::Flash25, sizes: ONE, extreme_ratios: false, jpeg: false, price: FLASH25, retired: None },
    Model { id: "gemini-3-pro-image", family: Family::Pro3, sizes: THREE, extreme_ratios: false, jpeg: true, price: PRO3, retired: None },
    Model { id: "gemini-3.1-flash-image", family: Family::Flash31, sizes: FOUR, extreme_ratios: true, jpeg: true, price: FLASH31, retired: None },
    Model { id: "gemini-3.1-flash-lite-image", family: Family::Flash31, sizes: ONE, extreme_ratios: true, jpeg: true, price: LITE31, retired: None },
    Model { id: "gemini-2.5-flash", family: Family::Text, sizes: &[], extreme_ratios: false, jpeg: false, price: FLASH25, retired: None },
    Model { id: "gemini-2.5-flash-image-preview", family: Family::Flash25, sizes: ONE, extreme_ratios: false, jpeg: false, price: FLASH25, retired: gone("gemini-2.5-flash-image") },
    Model { id: "gemini-3-pro-image-preview", family: Family::Pro3, sizes: THREE, extreme_ratios: false, jpeg: true, price: PRO3, retired: gone("gemini-3-pro-image") },
    Model { id: "gemini-3.1-flash-image-preview", family: Family::Flash31, sizes: FOUR, extreme_ratios: true, jpeg: true, price: FLASH31, retired: gone("gemini-3.1-flash-image") },
    Model { id: "imagen-4.0-fast-generate-001", family: Family::Imagen, sizes: THREE, extreme_ratios: false, jpeg: false, price: Price::cents(0, 0, 2_000), retired: gone("gemini-3.1-flash-image") },
    Model { id: "imagen-4.0-generate-001", family: Family::Imagen, sizes: THREE, extreme_ratios: false, jpeg: false, price: Price::cents(0, 0, 4_000), retired: gone("gemini-3.1-flash-image") },
    Model { id: "imagen-4.0-ultra-generate-001", family: Family::Imagen, sizes: THREE, extreme_ratios: false, jpeg: false, price: Price::cents(0, 0, 6_000), retired: gone("gemini-3-pro-image") },
];

/// The ratios every model makes, in the order in which the server lists them in its 400.
pub(crate) const RATIOS: [&str; 10] =
    ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"];
/// The same with the extremes of 3.1 Flash (server text quoted in astrbot_plugin_gitee_aiimg issue
/// 37, 2026-08-22).
pub(crate) const ALL_RATIOS: [&str; 14] = [
    "1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1", "9:16", "16:9",
    "21:9",
];

#[rustfmt::skip]
/// Width and height in pixels of a 1K image; 2K and 4K are twice and four times that, 512 is half.
fn base_dimensions(family: Family, ratio: &str) -> (u32, u32) {
    // ai.google.dev "Image generation", aspect ratio tables, 2026-07; 1:4 and 1:8 as measured by
    // users.
    let flash25 = family == Family::Flash25;
    match ratio {
        "2:3" => if flash25 { (832, 1248) } else { (848, 1264) },
        "3:2" => if flash25 { (1248, 832) } else { (1264, 848) },
        "3:4" => if flash25 { (864, 1184) } else { (896, 1200) },
        "4:3" => if flash25 { (1184, 864) } else { (1200, 896) },
        "4:5" => if flash25 { (896, 1152) } else { (928, 1152) },
        "5:4" => if flash25 { (1152, 896) } else { (1152, 928) },
        "9:16" => if flash25 { (768, 1344) } else { (768, 1376) },
        "16:9" => if flash25 { (1344, 768) } else { (1376, 768) },
        "21:9" => if flash25 { (1536, 672) } else { (1584, 672) },
        "1:4" => (512, 2064),
        "4:1" => (2064, 512),
        "1:8" => (352, 2928),
        "8:1" => (2928, 352),
        _ => (1024, 1024),
    }
}

/// Width and height of an image, or of its thumbnail for quick tests (a 64th of each side, so 1K is
/// 16 px and 4K is 64 px).
pub(crate) fn dimensions(family: Family, size: Size, ratio: &str, tiny: bool) -> (u32, u32) {
    let (width, height) = base_dimensions(family, ratio);
    let (width, height) = match size {
        Size::Px512 => (width / 2, height / 2),
        Size::K1 => (width, height),
        Size::K2 => (width * 2, height * 2),
        Size::K4 => (width * 4, height * 4),
    };
    if tiny { ((width / 64).max(1), (height / 64).max(1)) } else { (width, height) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_costs_its_list_price() {
        let cost = |id: &str, size| {
            let model = known(id).unwrap();
            model.price.of(0, 0, model.image_tokens(size))
        };
        assert_eq!(cost("gemini-2.5-flash-image", Size::K1), 38_700);
        assert_eq!(cost("gemini-3-pro-image", Size::K1), 134_400);
        assert_eq!(cost("gemini-3-pro-image", Size::K4), 240_000);
        assert_eq!(cost("gemini-3.1-flash-image", Size::Px512), 44_820);
        assert_eq!(cost("gemini-3.1-flash-image", Size::K2), 100_800);
        assert_eq!(cost("gemini-3.1-flash-image", Size::K4), 151_200);
        assert_eq!(cost("imagen-4.0-generate-001", Size::K1), 40_000);
    }

    #[test]
    fn every_successor_is_a_living_model() {
        for model in MODELS {
            if let Some(retired) = model.retired {
                assert!(
                    known(retired.successor).is_some_and(|next| next.retired.is_none()),
                    "{}",
                    model.id
                );
            }
        }
    }

    #[test]
    fn sizes_are_spelled_with_an_upper_case_k() {
        assert_eq!(Size::parse("2K"), Some(Size::K2));
        assert_eq!(Size::parse("2k"), None);
        assert_eq!(Size::parse("512"), Some(Size::Px512));
        assert_eq!(Size::parse("512px"), None);
    }
}
