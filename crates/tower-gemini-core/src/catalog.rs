//! Holds models as data: ids, sizes, prices and dates, in a TOML that callers can extend.
//!
//! Ids are never an enum: every id that was current in early 2026 is retired or deprecated by the
//! end of that year, and a fallback chain that ends in a retired model ends in a 404.
//! [`Catalog::builtin`] holds what is publicly known of Gemini's image models; each price and date
//! names its source and its day. Text models are not in it: nothing here depends on them.
//!
//! ```
//! use tower_gemini_core::catalog::{Catalog, date};
//!
//! let catalog = Catalog::builtin();
//! let model = catalog.lookup("models/gemini-3-pro-image-4k").unwrap();
//! assert_eq!(model.id, "gemini-3-pro-image");
//!
//! let preview = catalog.lookup("gemini-3-pro-image-preview").unwrap();
//! let today = date(2026, 11, 22);
//! assert!(preview.is_retired_on(today));
//! assert_eq!(catalog.successor_on(preview, today).unwrap().id, "gemini-3-pro-image");
//! ```
//!
//! A relay's own models and prices go on top:
//!
//! ```
//! use tower_gemini_core::catalog::{Catalog, Platform};
//!
//! let mut catalog = Catalog::builtin().clone();
//! catalog.extend(Catalog::from_toml(r#"
//!     [[model]]
//!     id = "house-banana"
//!     family = "flash"
//!     images = true
//!     sizes = ["1K"]
//!     [[model.price]]
//!     platform = "relay"
//!     source = "the relay's price list"
//!     as_of = "2026-11-01"
//!     per_image_microusd = { "1K" = 35_000 }
//! "#)?);
//! let price = catalog.lookup("house-banana").unwrap().price(&Platform::other("relay")).unwrap();
//! assert_eq!(price.source, "the relay's price list");
//! # Ok::<(), tower_gemini_core::catalog::CatalogError>(())
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, LazyLock};

pub use jiff::civil::{Date, date};
use serde::Deserialize;
use serde::de::{self, Deserializer};

use crate::size::{ImageSize, ratio_distance, split_model_suffix, strip_model_prefix};

/// The ratios that every Gemini image model takes (Gemini API documentation, image generation,
/// 2026-07).
pub const COMMON_RATIOS: [&str; 10] =
    ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"];

/// Which line of models an id belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Family {
    /// The quick line: Nano Banana, Nano Banana 2 and 2.1.
    Flash,
    /// The line for text rendering and composition: Nano Banana Pro.
    Pro,
    /// The cheapest line, 1K only.
    Lite,
    /// Imagen: `predict`, no editing, shut down in 2026.
    Imagen,
    /// Another vendor's.
    Other,
}

/// Whether a model thinks before it draws. Thoughts are billed whether shown or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Thinking {
    /// It does not.
    #[default]
    None,
    /// It does, and it cannot be turned off.
    Always,
    /// The request chooses with `thinkingLevel`.
    Levels,
}

/// Whose price list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(from = "String")]
#[non_exhaustive]
pub enum Platform {
    /// The Gemini Developer API (`gemini-api`).
    GeminiApi,
    /// Vertex AI, also called the Gemini Enterprise Agent Platform (`vertex-ai`).
    VertexAi,
    /// A relay, by the name given to it in the catalogue.
    Other(String),
}

impl Platform {
    /// A relay by its name in the catalogue.
    #[must_use]
    pub fn other(name: impl Into<String>) -> Self {
        Self::Other(name.into())
    }

    /// The name used in the catalogue.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::GeminiApi => "gemini-api",
            Self::VertexAi => "vertex-ai",
            Self::Other(name) => name,
        }
    }
}

impl From<String> for Platform {
    fn from(name: String) -> Self {
        match name.as_str() {
            "gemini-api" => Self::GeminiApi,
            "vertex-ai" => Self::VertexAi,
            _ => Self::Other(name),
        }
    }
}

fn day<'de, T: From<Date>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse::<Date>().map(T::from).map_err(|_| {
        de::Error::custom(format_args!("`{text}` is not a date; write it as 2026-06-25"))
    })
}

/// Sizes are spelled exactly as the API spells them.
impl<'de> Deserialize<'de> for ImageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::ALL.into_iter().find(|size| size.as_str() == text).ok_or_else(|| {
            de::Error::custom(format_args!(
                "`{text}` is not a size; the sizes are 512, 1K, 2K and 4K"
            ))
        })
    }
}

/// One platform's list price of one model, in micro-dollars (millionths of a US dollar).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Price {
    /// Whose price.
    pub platform: Platform,
    /// One image, by size, as listed (so: rounded).
    #[serde(default)]
    pub per_image_microusd: BTreeMap<ImageSize, u64>,
    /// A million input tokens.
    pub input_microusd_per_mtok: Option<u64>,
    /// A million output tokens of text and thoughts.
    pub text_output_microusd_per_mtok: Option<u64>,
    /// A million output tokens of images.
    pub image_output_microusd_per_mtok: Option<u64>,
    /// Where the price was read.
    pub source: String,
    /// When it was read.
    #[serde(deserialize_with = "day")]
    pub as_of: Date,
}

/// One model. A field of the TOML has the name it has here; only `id`, `family` and `images` must
/// be there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Model {
    /// Its id, without a prefix.
    pub id: String,
    /// Other names for it: those of proxies, and those that the service itself uses in errors.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Its line.
    pub family: Family,
    /// Whether it makes images.
    pub images: bool,
    /// The sizes it makes, smallest first.
    #[serde(default)]
    pub sizes: Vec<ImageSize>,
    /// Whether `imageSize` may be sent (default: yes). Some models have one size and answer 400 to
    /// the field.
    #[serde(default = "yes")]
    pub accepts_image_size: bool,
    /// Whether `responseFormat.image` may be sent (default: yes). Some models know `imageConfig`
    /// only and answer 400 to the newer spelling.
    #[serde(default = "yes")]
    pub accepts_response_format: bool,
    /// Whether it takes images to edit. Default: no for Imagen, yes for all others.
    #[serde(skip)]
    pub edits: bool,
    #[serde(rename = "edits")]
    edits_as_written: Option<bool>,
    /// Who makes it (default: `google`).
    #[serde(default = "google")]
    pub vendor: String,
    /// The aspect ratios it takes, spelled `16:9`. Default: [`COMMON_RATIOS`]. A TOML may add to
    /// them with `extra_ratios`.
    #[serde(default = "common_ratios")]
    pub ratios: Vec<String>,
    #[serde(default)]
    extra_ratios: Vec<String>,
    /// Whether it thinks (default: it does not).
    #[serde(default)]
    pub thinking: Thinking,
    /// The levels of `thinkingLevel` that it takes, where the request chooses. Default: `minimal`
    /// and `high`.
    #[serde(default = "thinking_levels")]
    pub thinking_levels: Vec<String>,
    /// How many drafts it may draw, and be paid for, beside each final image. Default: none for a
    /// model that does not think, else [`DRAFTS_AT_MOST`].
    #[serde(skip)]
    pub drafts_at_most: u32,
    #[serde(rename = "drafts_at_most")]
    drafts_as_written: Option<u32>,
    /// Output tokens that one image counts, by size.
    #[serde(default)]
    pub tokens_per_image: BTreeMap<ImageSize, u64>,
    /// How many tokens a request may hold.
    pub input_token_limit: Option<u64>,
    /// How many tokens an answer may hold.
    pub output_token_limit: Option<u64>,
    /// How long one image usually takes, in seconds, from and to, by size.
    #[serde(default)]
    pub typical_seconds: BTreeMap<ImageSize, (u32, u32)>,
    /// When it came out.
    #[serde(default, deserialize_with = "day")]
    pub released: Option<Date>,
    /// The first day on which it no longer answers. A model that is deprecated without a date has a
    /// successor and no such day.
    #[serde(default, deserialize_with = "day")]
    pub retired: Option<Date>,
    /// What its maker names as its successor.
    pub successor: Option<String>,
    /// Where the facts above were read.
    #[serde(default)]
    pub source: String,
    /// When they were read.
    #[serde(default, deserialize_with = "day")]
    pub as_of: Option<Date>,
    /// Its list prices (`[[model.price]]`).
    #[serde(default, rename = "price")]
    pub prices: Vec<Price>,
}

/// The most drafts that operators counted beside one final image, each billed as an image (apiyi
/// documentation, 2026; the highest number reported anywhere). Google's documentation says two, and
/// that they are free (Gemini API documentation, image generation, 2026-07).
pub const DRAFTS_AT_MOST: u32 = 10;

fn yes() -> bool {
    true
}

fn google() -> String {
    "google".to_owned()
}

fn common_ratios() -> Vec<String> {
    COMMON_RATIOS.map(str::to_owned).to_vec()
}

fn thinking_levels() -> Vec<String> {
    ["minimal", "high"].map(str::to_owned).to_vec()
}

impl Model {
    /// Fills in what follows from other fields.
    fn finish(mut self) -> Self {
        self.sizes.sort_unstable();
        self.sizes.dedup();
        self.ratios.append(&mut self.extra_ratios);
        self.edits = self.edits_as_written.unwrap_or(self.family != Family::Imagen);
        let drafts = if self.thinking == Thinking::None { 0 } else { DRAFTS_AT_MOST };
        self.drafts_at_most = self.drafts_as_written.unwrap_or(drafts);
        self
    }

    /// Whether it no longer answers on that day, by its own date. The API's response decides first,
    /// since Google's dates are "earliest possible" (changelog, 2026-10-08).
    #[must_use]
    pub fn is_retired_on(&self, day: Date) -> bool {
        self.retired.is_some_and(|retired| retired <= day)
    }

    /// Whether it makes images of that size.
    #[must_use]
    pub fn makes(&self, size: ImageSize) -> bool {
        self.images && self.sizes.contains(&size)
    }

    /// Whether it takes that ratio, spelled `16:9`.
    #[must_use]
    pub fn takes_ratio(&self, ratio: &str) -> bool {
        self.ratios.iter().any(|known| known == ratio)
    }

    /// Returns the ratio it takes that is nearest to `ratio`, by factor; `None` where `ratio` has
    /// no name in the API.
    #[must_use]
    pub fn nearest_ratio(&self, ratio: &str) -> Option<&str> {
        if let Some(same) = self.ratios.iter().find(|known| *known == ratio) {
            return Some(same);
        }
        self.ratios
            .iter()
            .filter_map(|known| Some((ratio_distance(known, ratio)?, known)))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, known)| known.as_str())
    }

    /// Returns the size at which it draws when `asked` is asked for: 1K where no size is, or the
    /// size nearest to it that the model makes.
    ///
    /// `None` for a size that the model does not make: the API answers 400, and a proxy that
    /// replaces the size may choose any.
    #[must_use]
    pub fn drawn_size(&self, asked: Option<ImageSize>) -> Option<ImageSize> {
        match (asked, self.sizes.as_slice()) {
            (None, _) => self.nearest_size(ImageSize::K1),
            (_, [only]) => Some(*only),
            (Some(asked), _) => Some(asked).filter(|size| self.makes(*size)),
        }
    }

    /// Returns the size it makes when `size` is asked for at most: the largest up to it, or its
    /// smallest.
    #[must_use]
    pub fn nearest_size(&self, size: ImageSize) -> Option<ImageSize> {
        self.sizes
            .iter()
            .rev()
            .find(|known| **known <= size)
            .or_else(|| self.sizes.first())
            .copied()
    }

    /// Returns the price on that platform. Google's platforms have no models of other vendors:
    /// those have one price list, whatever it is called.
    #[must_use]
    pub fn price(&self, platform: &Platform) -> Option<&Price> {
        let own = self.prices.iter().find(|price| price.platform == *platform);
        own.or_else(|| self.prices.first().filter(|_| self.vendor != "google"))
    }
}

/// Models by id, alias and the spellings proxies use. See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    models: Vec<Model>,
    // Keys are lower case: aliases are written in any case, ids never differ by case alone.
    index: HashMap<Arc<str>, usize>,
}

// A test parses the file, so the empty catalogue is never released; it avoids a panic.
static BUILTIN: LazyLock<Catalog> =
    LazyLock::new(|| Catalog::from_toml(MODELS).unwrap_or_default());
const MODELS: &str = include_str!("../catalog/models.toml");

impl Catalog {
    /// Returns what is publicly known of Gemini's image models.
    #[must_use]
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// Reads a catalogue.
    ///
    /// # Errors
    /// Text that is no TOML, an unknown field, size or date, and an id or alias that is there
    /// twice. The error names the line, and the nearest known name.
    pub fn from_toml(text: &str) -> Result<Self, CatalogError> {
        let file: File =
            toml::from_str(text).map_err(|error| CatalogError::from_toml(text, &error))?;
        let mut catalog = Self::default();
        for model in file.model.into_iter().map(Model::finish) {
            for name in std::iter::once(&model.id).chain(&model.aliases) {
                if let Some(Model { id: other, .. }) = catalog.by_name(name) {
                    return Err(CatalogError::new(format!(
                        "`{name}` of model `{}` already names model `{other}`",
                        model.id
                    )));
                }
            }
            catalog.insert(model);
        }
        Ok(catalog)
    }

    /// Adds every model of `other`. A model with the same id is replaced, and a name that both use
    /// means the new one.
    pub fn extend(&mut self, other: Self) {
        for model in other.models {
            self.insert(model);
        }
    }

    fn insert(&mut self, model: Model) {
        let position = self
            .models
            .iter()
            .position(|known| known.id.eq_ignore_ascii_case(&model.id))
            .unwrap_or(self.models.len());
        // Otherwise names of the replaced entry that the new one lacks would still be found.
        self.index.retain(|_, at| *at != position);
        for name in std::iter::once(&model.id).chain(&model.aliases) {
            self.index.insert(name.to_ascii_lowercase().into(), position);
        }
        match self.models.get_mut(position) {
            Some(known) => *known = model,
            None => self.models.push(model),
        }
    }

    /// Iterates over every model, in the order of the file.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.iter()
    }

    /// Returns the model that a name means: an id, an alias, either with `models/`,
    /// `publishers/google/models/` or `google/` in front, or with a size and a ratio behind as
    /// proxies write them (`-4k`, `-2k-9x16`).
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<&Model> {
        self.by_name(name).or_else(|| {
            let bare = strip_model_prefix(name);
            self.by_name(bare).or_else(|| {
                let (base, size, aspect) = split_model_suffix(bare);
                if size.is_some() || aspect.is_some() { self.by_name(base) } else { None }
            })
        })
    }

    /// Returns the model that a response names: as [`lookup`](Self::lookup), also with a version or
    /// a date behind the name (`-001`, `@002`, `-06-2026`). A single digit may be another
    /// generation, and a word another model: those are not taken for a version.
    ///
    /// ```
    /// use tower_gemini_core::catalog::Catalog;
    ///
    /// let id = |name| Catalog::builtin().lookup_version(name).map(|model| model.id.as_str());
    /// assert_eq!(id("gemini-3-pro-image-001"), Some("gemini-3-pro-image"));
    /// assert_eq!(id("gemini-3-pro-image-preview-11-2025"), Some("gemini-3-pro-image-preview"));
    /// assert_eq!(id("gemini-3-pro-image-2"), None);
    /// assert_eq!(id("gemini-3-pro-image-ultra"), None);
    /// ```
    #[must_use]
    pub fn lookup_version(&self, name: &str) -> Option<&Model> {
        let is_number = |text: &str| {
            (2..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        let mut name = name;
        loop {
            if let Some(model) = self.lookup(name) {
                return Some(model);
            }
            name = name.rsplit_once(['-', '@']).filter(|(_, end)| is_number(end))?.0;
        }
    }

    /// Returns a model and, where its date of retirement is known, those that may serve its calls
    /// in its place: its successor, and so on to the first without such a date. Google sends calls
    /// to a retired id on without a word (Gemini API changelog, 2026-10-08); its dates are
    /// "earliest possible", so which of them serves a call is known from the response alone.
    pub(crate) fn may_serve<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = &'a Model> {
        let next = |model: &&'a Model| {
            model.retired?;
            self.lookup(model.successor.as_deref()?)
        };
        // A user's catalogue may name a circle; no chain is longer than the catalogue.
        std::iter::successors(Some(model), next).take(self.models.len().max(1))
    }

    fn by_name(&self, name: &str) -> Option<&Model> {
        // Ids are lower case as a rule: the copy is only for those that are not.
        let is_upper = || name.bytes().any(|b| b.is_ascii_uppercase());
        let lower = || is_upper().then(|| name.to_ascii_lowercase());
        let at = self.index.get(name).or_else(|| self.index.get(lower()?.as_str()))?;
        self.models.get(*at)
    }

    /// Returns the name as the catalogue itself keeps it, with what it means.
    pub(crate) fn interned(&self, name: &str) -> Option<(&Arc<str>, &Model)> {
        let (key, at) = self.index.get_key_value(name)?;
        Some((key, self.models.get(*at)?))
    }

    /// Returns the first model in the chain of successors that still answers on that day: the model
    /// itself where it does.
    #[must_use]
    pub fn successor_on<'a>(&'a self, model: &'a Model, day: Date) -> Option<&'a Model> {
        let mut model = model;
        // A user's catalogue may name a circle; no chain is longer than the catalogue.
        for _ in 0..=self.models.len() {
            if !model.is_retired_on(day) {
                return Some(model);
            }
            model = self.lookup(model.successor.as_deref()?)?;
        }
        None
    }

    /// Returns the model to ask where nobody names one: the newest of Google's quick line that
    /// answers on that day.
    ///
    /// ```
    /// use tower_gemini_core::catalog::{Catalog, date};
    ///
    /// let on = |day| Catalog::builtin().default_on(day).unwrap().id.as_str();
    /// assert_eq!(on(date(2026, 9, 1)), "gemini-3.1-flash-image");
    /// assert_eq!(on(date(2026, 11, 30)), "gemini-nano-banana-2.1");
    /// ```
    #[must_use]
    pub fn default_on(&self, day: Date) -> Option<&Model> {
        let answers = |model: &&Model| {
            model.images
                && model.vendor == "google"
                && model.family == Family::Flash
                && !model.is_retired_on(day)
                && model.released.is_some_and(|released| released <= day)
        };
        self.models.iter().filter(answers).max_by_key(|model| model.released)
    }

    /// Returns the models that no longer answer on that day and have no successor that does: a
    /// fallback to one is a 404.
    #[must_use]
    pub fn dead_ends_on(&self, day: Date) -> Vec<&Model> {
        self.models.iter().filter(|model| self.successor_on(model, day).is_none()).collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<Model>,
}

/// Why a catalogue could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogError {
    line: Option<usize>,
    message: String,
}

impl CatalogError {
    fn new(message: String) -> Self {
        Self { line: None, message }
    }

    fn from_toml(text: &str, error: &toml::de::Error) -> Self {
        let line = error
            .span()
            .map(|span| 1 + text.bytes().take(span.start).filter(|&b| b == b'\n').count());
        let mut message = error.message().to_owned();
        if let Some(nearest) = nearest_name(&message) {
            message.push_str(&format!("; did you mean `{nearest}`?"));
        }
        Self { line, message }
    }

    /// The line of the text, counted from 1, where there is one to name.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.line
    }
}

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line} of the model catalogue: {}", self.message),
            None => write!(f, "model catalogue: {}", self.message),
        }
    }
}

impl std::error::Error for CatalogError {}

/// The expected name closest to the one that was found, both taken from serde's own sentence
/// ("unknown field `x`, expected one of `a`, `b`"): so a field that is added to the structs is
/// known here without a second list.
fn nearest_name(message: &str) -> Option<&str> {
    let (found, expected) = message.split_once("expected")?;
    let found = found.split('`').nth(1)?;
    expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|name| (strsim::levenshtein(found, name), name))
        // Further apart than half of the word, a suggestion is a guess.
        .filter(|(distance, name)| *distance * 2 <= found.len().max(name.len()))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: Date = date(2026, 11, 22);

    #[test]
    fn the_builtin_catalogue_parses() {
        let catalog = Catalog::from_toml(MODELS).unwrap();
        assert!(catalog.models().count() >= 11);
    }

    #[test]
    fn every_successor_exists() {
        let catalog = Catalog::builtin();
        for model in catalog.models() {
            if let Some(successor) = &model.successor {
                let found = catalog
                    .lookup(successor)
                    .unwrap_or_else(|| panic!("{} names {successor}", model.id));
                assert_eq!(&found.id, successor, "{} must name an id, not an alias", model.id);
            }
        }
    }

    #[test]
    fn no_chain_of_successors_ends_in_a_retired_model() {
        let dead: Vec<_> =
            Catalog::builtin().dead_ends_on(WRITTEN).iter().map(|model| &model.id).collect();
        assert!(dead.is_empty(), "past their date without a living successor: {dead:?}");
    }

    #[test]
    fn every_image_model_has_a_dated_price_for_each_of_its_sizes() {
        for model in Catalog::builtin().models() {
            assert!(
                !model.source.is_empty() && model.as_of.is_some(),
                "{} has no source",
                model.id
            );
            assert!(!model.prices.is_empty(), "{} has no price", model.id);
            for price in &model.prices {
                assert!(!price.source.is_empty(), "{}", model.id);
                for size in &model.sizes {
                    assert!(
                        price.per_image_microusd.contains_key(size),
                        "{} has no price of {size}",
                        model.id
                    );
                }
            }
        }
    }

    #[test]
    fn a_listed_image_price_is_its_tokens_price_within_a_hundredth() {
        for model in Catalog::builtin().models() {
            for price in &model.prices {
                let Some(rate) = price.image_output_microusd_per_mtok else { continue };
                for (size, tokens) in &model.tokens_per_image {
                    let exact = tokens * rate / 1_000_000;
                    let listed = price.per_image_microusd[size];
                    assert!(
                        listed.abs_diff(exact) * 100 <= exact,
                        "{} {size}: {listed} and {exact}",
                        model.id
                    );
                }
            }
        }
    }

    #[test]
    fn every_spelling_finds_its_model() {
        let catalog = Catalog::builtin();
        for (name, id) in [
            ("gemini-3-pro-image", "gemini-3-pro-image"),
            ("models/gemini-3-pro-image", "gemini-3-pro-image"),
            ("publishers/google/models/gemini-3-pro-image", "gemini-3-pro-image"),
            (
                "projects/p/locations/global/publishers/google/models/gemini-3-pro-image",
                "gemini-3-pro-image",
            ),
            ("google/gemini-3.1-flash-image", "gemini-3.1-flash-image"),
            ("gemini-3-pro-image-4k", "gemini-3-pro-image"),
            ("gemini-3-pro-image-2k-9x16", "gemini-3-pro-image"),
            ("google/gemini-3.1-flash-image-16x9", "gemini-3.1-flash-image"),
            ("gemini-3-pro-image-preview-4K", "gemini-3-pro-image-preview"),
            ("nano-banana-pro", "gemini-3-pro-image"),
            ("Nano-Banana-Pro", "gemini-3-pro-image"),
            ("nano-banana-2", "gemini-3.1-flash-image"),
            ("gemini-2.5-flash-preview-image", "gemini-2.5-flash-image"),
            ("imagen-4-fast", "imagen-4.0-fast-generate-001"),
        ] {
            assert_eq!(catalog.lookup(name).map(|model| model.id.as_str()), Some(id), "{name}");
        }
        for name in ["", "models/", "gemini-3-pro-imag", "-4k", "gpt-image-2"] {
            assert!(catalog.lookup(name).is_none(), "{name}");
        }
    }

    #[test]
    fn a_misspelt_field_is_named_with_its_line_and_the_nearest_name() {
        let error = Catalog::from_toml(
            "[[model]]\nid = \"x\"\nfamily = \"flash\"\nimages = true\nsuccesor = \"y\"\n",
        )
        .unwrap_err();
        assert_eq!(error.line(), Some(5));
        let text = error.to_string();
        assert!(
            text.starts_with("line 5 of the model catalogue: unknown field `succesor`"),
            "{text}"
        );
        assert!(text.ends_with("did you mean `successor`?"), "{text}");
        let error =
            Catalog::from_toml("[[model]]\nid = \"x\"\nfamily = \"flesh\"\nimages = true\n")
                .unwrap_err()
                .to_string();
        assert!(error.contains("did you mean `flash`?"), "{error}");
    }

    #[test]
    fn a_lower_case_size_and_a_day_that_never_was_are_errors() {
        let size = Catalog::from_toml(
            "[[model]]\nid = \"x\"\nfamily = \"pro\"\nimages = true\nsizes = [\"2k\"]\n",
        )
        .unwrap_err();
        assert!(size.to_string().contains("`2k` is not a size"), "{size}");
        let date = Catalog::from_toml(
            "[[model]]\nid = \"x\"\nfamily = \"pro\"\nimages = true\nretired = \"2026-02-30\"\n",
        )
        .unwrap_err();
        assert!(date.to_string().contains("`2026-02-30` is not a date"), "{date}");
        assert_eq!(date.line(), Some(5));
    }

    #[test]
    fn a_name_used_twice_is_an_error() {
        let twice = "[[model]]\nid = \"x\"\nfamily = \"pro\"\nimages = true\n[[model]]\nid = \"y\"\naliases = [\"X\"]\nfamily = \"pro\"\nimages = true\n";
        assert!(
            Catalog::from_toml(twice).unwrap_err().to_string().contains("already names model `x`")
        );
    }

    /// The catalogue retired gemini-3.1-flash-image on 2026-10-29, a date that Google had withdrawn
    /// on 2026-10-08: calls that the API would have served were sent elsewhere.
    #[test]
    fn a_deprecated_model_without_a_date_is_not_retired() {
        let catalog = Catalog::builtin();
        let flash = catalog.lookup("gemini-3.1-flash-image").unwrap();
        assert!(!flash.is_retired_on(date(2027, 11, 22)));
        assert_eq!(flash.successor.as_deref(), Some("gemini-nano-banana-2.1"));
        for imagen in ["imagen-4-fast", "imagen-4-standard"] {
            let successor = catalog.successor_on(catalog.lookup(imagen).unwrap(), WRITTEN).unwrap();
            assert_eq!(successor.id, "gemini-nano-banana-2.1");
        }
    }

    #[test]
    fn fields_that_are_not_written_follow_from_the_others() {
        let model = |text: &str| {
            let text = format!("[[model]]\nid = \"x\"\nimages = true\n{text}");
            Catalog::from_toml(&text).unwrap().lookup("x").unwrap().clone()
        };
        let plain =
            model("family = \"pro\"\nsizes = [\"4K\", \"1K\", \"4K\"]\nthinking = \"always\"");
        assert_eq!(plain.sizes, [ImageSize::K1, ImageSize::K4]);
        assert!(plain.edits && plain.accepts_image_size && plain.accepts_response_format);
        assert_eq!(
            (plain.drafts_at_most, plain.ratios.len()),
            (DRAFTS_AT_MOST, COMMON_RATIOS.len())
        );
        assert_eq!((plain.vendor.as_str(), plain.thinking_levels.len()), ("google", 2));
        let imagen = model("family = \"imagen\"\nextra_ratios = [\"1:8\"]");
        assert!(!imagen.edits && imagen.takes_ratio("1:8") && imagen.takes_ratio("1:1"));
        assert_eq!(imagen.drafts_at_most, 0);
        let written =
            model("family = \"imagen\"\nedits = true\ndrafts_at_most = 3\nratios = [\"1:1\"]");
        assert!(written.edits && !written.takes_ratio("16:9"));
        assert_eq!(written.drafts_at_most, 3);
    }

    #[test]
    fn the_drawn_size_is_1k_unless_another_is_named() {
        use ImageSize::{K1, K2, K4, Px512};
        let drawn = |id: &str, asked| Catalog::builtin().lookup(id).unwrap().drawn_size(asked);
        for (asked, size) in [(None, Some(K1)), (Some(K4), Some(K4)), (Some(Px512), None)] {
            assert_eq!(drawn("gemini-3-pro-image", asked), size, "{asked:?}");
        }
        assert_eq!(drawn("gemini-3.1-flash-image", Some(Px512)), Some(Px512));
        assert_eq!(drawn("gemini-2.5-flash-image", Some(K2)), Some(K1), "it has one size");
    }

    #[test]
    fn a_replaced_model_loses_its_old_names() {
        let mut catalog = Catalog::builtin().clone();
        let before = catalog.models().count();
        catalog.extend(
            Catalog::from_toml(
                "[[model]]\nid = \"gemini-3-pro-image\"\naliases = [\"mine\"]\nfamily = \"pro\"\nimages = true\n",
            )
            .unwrap(),
        );
        assert_eq!(catalog.models().count(), before);
        assert_eq!(catalog.lookup("mine").unwrap().id, "gemini-3-pro-image");
        assert!(catalog.lookup("nano-banana-pro").is_none());
    }

    #[test]
    fn a_circle_of_successors_ends() {
        let circle = "[[model]]\nid = \"a\"\nfamily = \"pro\"\nimages = true\nretired = \"2026-01-01\"\nsuccessor = \"b\"\n\
                      [[model]]\nid = \"b\"\nfamily = \"pro\"\nimages = true\nretired = \"2026-01-01\"\nsuccessor = \"a\"\n";
        let catalog = Catalog::from_toml(circle).unwrap();
        assert!(catalog.successor_on(catalog.lookup("a").unwrap(), WRITTEN).is_none());
        assert_eq!(catalog.dead_ends_on(WRITTEN).len(), 2);
    }
}
