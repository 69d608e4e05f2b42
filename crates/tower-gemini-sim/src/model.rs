//! Reads the models that the simulator knows, and what they charge, from `models.toml`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// A size of image, smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

    /// Reads `imageSize`, or the enum of the Agent Platform reference. The K is upper case, or it
    /// is not a size (ai.google.dev "Image generation", 2026-07).
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "512" | "IMAGE_SIZE_FIVE_TWELVE" => Some(Self::Px512),
            "1K" | "IMAGE_SIZE_ONE_K" => Some(Self::K1),
            "2K" | "IMAGE_SIZE_TWO_K" => Some(Self::K2),
            "4K" | "IMAGE_SIZE_FOUR_K" => Some(Self::K4),
            _ => None,
        }
    }
}

/// A service tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// That of the list prices.
    #[default]
    Standard,
    /// Half the price; queues, and is shed first.
    Flex,
    /// Between 175 and 200 % of the price (ai.google.dev "Priority inference", 2026-08); here 180.
    Priority,
}

impl Tier {
    /// As `serviceTier` spells it; anything else is standard.
    pub(crate) fn parse(name: &str) -> Self {
        let is = |tier: &Self| name.eq_ignore_ascii_case(tier.as_str());
        [Self::Flex, Self::Priority].into_iter().find(is).unwrap_or_default()
    }

    /// As `serviceTier` and the header of the response spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Flex => "flex",
            Self::Priority => "priority",
        }
    }

    /// As Vertex AI's `trafficType` spells it.
    pub(crate) fn traffic_type(self) -> &'static str {
        match self {
            Self::Standard => "ON_DEMAND",
            Self::Flex => "ON_DEMAND_FLEX",
            Self::Priority => "ON_DEMAND_PRIORITY",
        }
    }

    /// What it makes of a price.
    pub(crate) fn of(self, microusd: u64) -> u64 {
        match self {
            Self::Standard => microusd,
            Self::Flex => microusd / 2,
            Self::Priority => microusd * 180 / 100,
        }
    }
}

/// What a model costs, in micro-dollars per million tokens (so `$0.30` a million is `300_000`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Price {
    /// Input of any kind.
    pub input: u64,
    /// Output text and thinking.
    pub text: u64,
    /// Output images.
    pub image: u64,
}

impl Price {
    /// The price of some tokens in micro-dollars, rounded to the nearest.
    pub(crate) fn of(&self, input: u64, text: u64, image: u64) -> u64 {
        let picos = input * self.input + text * self.text + image * self.image;
        (picos + 500_000) / 1_000_000
    }
}

/// What `models.toml` says about one model; its head explains the fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Model {
    pub(crate) id: String,
    pub(crate) image_tokens: BTreeMap<Size, u64>,
    pub(crate) input_image_tokens: u64,
    pub(crate) takes_size: bool,
    pub(crate) extreme_ratios: bool,
    pub(crate) old_dimensions: bool,
    pub(crate) jpeg: bool,
    /// Answers `predict`, and nothing else.
    pub(crate) predicts: bool,
    pub(crate) signature_bytes: Vec<usize>,
    pub(crate) thinking_levels: Vec<String>,
    pub(crate) price: Price,
    pub(crate) retired: Option<String>,
    pub(crate) successor: Option<String>,
}

impl Model {
    pub(crate) fn thinks(&self) -> bool {
        !self.signature_bytes.is_empty()
    }

    pub(crate) fn makes_images(&self) -> bool {
        !self.image_tokens.is_empty()
    }

    /// The model that serves its calls where it does not: its successor, or itself without one.
    pub(crate) fn rerouted(&'static self) -> &'static Self {
        let next = self.retired.as_ref().or(self.successor.as_ref());
        next.and_then(|next| known(next)).unwrap_or(self)
    }

    /// The ratios that it makes, in the order in which the server lists them in its 400.
    pub(crate) fn ratios(&self) -> impl Iterator<Item = &'static Ratio> {
        let extremes = self.extreme_ratios;
        RATIOS.iter().filter(move |ratio| extremes || ratio.of_25_flash.is_some())
    }

    /// Width and height of an image, or of its thumbnail for quick tests (a 64th of each side, so
    /// 1K is 16 px and 4K is 64 px).
    pub(crate) fn dimensions(&self, size: Size, ratio: &Ratio, tiny: bool) -> (u32, u32) {
        let old = ratio.of_25_flash.filter(|_| self.old_dimensions);
        let (width, height) = old.unwrap_or(ratio.dimensions);
        let side = |pixels: u32| {
            let pixels = match size {
                Size::Px512 => pixels / 2,
                Size::K1 => pixels,
                Size::K2 => pixels * 2,
                Size::K4 => pixels * 4,
            };
            if tiny { (pixels / 64).max(1) } else { pixels }
        };
        (side(width), side(height))
    }
}

pub(crate) fn known(id: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.id == id)
}

pub(crate) static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    let read: Result<BTreeMap<String, Vec<Model>>, _> =
        toml::from_str(include_str!("../models.toml"));
    debug_assert!(read.is_ok(), "{read:?}");
    read.unwrap_or_default().remove("model").unwrap_or_default()
});

/// A ratio of width to height.
#[derive(Debug)]
pub(crate) struct Ratio {
    pub(crate) name: &'static str,
    /// As the Agent Platform reference spells it, after `ASPECT_RATIO_`.
    pub(crate) word: &'static str,
    /// Width and height in pixels of 2.5 Flash's image; none where only some models make it.
    of_25_flash: Option<(u32, u32)>,
    /// Width and height in pixels of an image at 1K.
    dimensions: (u32, u32),
}

const fn ratio(
    name: &'static str,
    word: &'static str,
    of_25_flash: Option<(u32, u32)>,
    dimensions: (u32, u32),
) -> Ratio {
    Ratio { name, word, of_25_flash, dimensions }
}

/// The square, which a model makes when nothing is asked, is the first. Pixels: ai.google.dev
/// "Image generation", aspect ratio tables, 2026-07; 1:4 and 1:8 as measured by users. Order:
/// the server's text quoted in astrbot_plugin_gitee_aiimg issue 37, 2026-08-22.
pub(crate) static RATIOS: [Ratio; 14] = [
    ratio("1:1", "ONE_BY_ONE", Some((1024, 1024)), (1024, 1024)),
    ratio("1:4", "ONE_BY_FOUR", None, (512, 2064)),
    ratio("1:8", "ONE_BY_EIGHT", None, (352, 2928)),
    ratio("2:3", "TWO_BY_THREE", Some((832, 1248)), (848, 1264)),
    ratio("3:2", "THREE_BY_TWO", Some((1248, 832)), (1264, 848)),
    ratio("3:4", "THREE_BY_FOUR", Some((864, 1184)), (896, 1200)),
    ratio("4:1", "FOUR_BY_ONE", None, (2064, 512)),
    ratio("4:3", "FOUR_BY_THREE", Some((1184, 864)), (1200, 896)),
    ratio("4:5", "FOUR_BY_FIVE", Some((896, 1152)), (928, 1152)),
    ratio("5:4", "FIVE_BY_FOUR", Some((1152, 896)), (1152, 928)),
    ratio("8:1", "EIGHT_BY_ONE", None, (2928, 352)),
    ratio("9:16", "NINE_BY_SIXTEEN", Some((768, 1344)), (768, 1376)),
    ratio("16:9", "SIXTEEN_BY_NINE", Some((1344, 768)), (1376, 768)),
    ratio("21:9", "TWENTY_ONE_BY_NINE", Some((1536, 672)), (1584, 672)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_costs_its_list_price() {
        let cost = |id: &str, size| {
            let model = known(id).unwrap();
            model.price.of(0, 0, model.image_tokens[&size])
        };
        assert_eq!(cost("gemini-2.5-flash-image", Size::K1), 38_700);
        assert_eq!(cost("gemini-3-pro-image", Size::K1), 134_400);
        assert_eq!(cost("gemini-3-pro-image", Size::K4), 240_000);
        assert_eq!(cost("gemini-3.1-flash-image", Size::Px512), 44_820);
        assert_eq!(cost("gemini-3.1-flash-image", Size::K2), 100_800);
        assert_eq!(cost("gemini-3.1-flash-image", Size::K4), 151_200);
        assert_eq!(cost("gemini-nano-banana-2.1", Size::K4), 113_400);
        assert_eq!(cost("imagen-4.0-generate-001", Size::K1), 40_000);
    }

    #[test]
    fn every_successor_is_a_living_model() {
        for model in MODELS.iter() {
            for successor in model.retired.iter().chain(&model.successor) {
                assert!(
                    known(successor).is_some_and(|next| next.retired.is_none()),
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
