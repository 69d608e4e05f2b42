//! Which model is meant, and which image of it.

use std::borrow::Cow;

use tower_gemini::call::{
    ImageSize, parse_aspect, parse_size, split_model_suffix, strip_model_prefix,
};
use tower_gemini::catalog::{Catalog, Family, Model, Thinking};

use super::error::OpenAiError;
use super::json::{Json, Members};

/// The model that a name means, and what the name says besides.
#[derive(Debug)]
pub(super) struct Target {
    /// As the caller spelled it.
    pub(super) asked: String,
    pub(super) id: String,
    known: Option<&'static Model>,
    size: Option<ImageSize>,
    ratio: Option<&'static str>,
}

impl Target {
    pub(super) fn of(model: Option<&Json<'_>>) -> Result<Self, OpenAiError> {
        let example = "an example is `gemini-3-pro-image`";
        let asked = match model.map(Json::text) {
            Some(Some(name)) if !name.trim().is_empty() => name.trim(),
            Some(_) => {
                return Err(OpenAiError::of(
                    "model",
                    format!("`model` is no name of a model; {example}"),
                ));
            }
            None => return Err(OpenAiError::of("model", format!("`model` is missing; {example}"))),
        };
        let bare = strip_model_prefix(asked);
        let catalog = Catalog::builtin();
        let known = catalog.lookup(bare);
        let is_named = |model: &Model, name: &str| {
            model.id.eq_ignore_ascii_case(name)
                || model.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
        };
        let (base, size, ratio) = split_model_suffix(bare);
        // A model may be called so itself; and of a model that nobody knows, only an image model's
        // name is taken apart.
        let is_whole = known.is_some_and(|model| is_named(model, bare));
        let is_split = !is_whole && (known.is_some() || names_an_image_model(base));
        let (base, size, ratio) = if is_split { (base, size, ratio) } else { (bare, None, None) };
        let id = known.map_or(base, |model| &model.id);
        let tuned = id.strip_prefix("tunedModels/").unwrap_or(id);
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if tuned.is_empty()
            || tuned.len() > 128
            || tuned.contains("..")
            || !tuned.bytes().all(is_plain)
        {
            return Err(OpenAiError::of(
                "model",
                format!("`model` cannot be the name of one of Gemini's models; {example}"),
            ));
        }
        if let Some(model) = known.filter(|model| model.family == Family::Imagen) {
            let successor = model.successor.as_deref().unwrap_or("gemini-3-pro-image");
            let message = format!(
                "`{}` is an Imagen model, which has no chat and was shut down; use `{successor}`",
                model.id
            );
            return Err(OpenAiError::unsupported("model", message));
        }
        Ok(Self { asked: asked.to_owned(), id: id.to_owned(), known, size, ratio })
    }

    /// Where the request goes.
    pub(super) fn path(&self, stream: bool) -> String {
        let collection = if self.id.starts_with("tunedModels/") { "" } else { "models/" };
        let verb = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
        format!("/v1beta/{collection}{}:{verb}", self.id)
    }

    /// `thinkingLevel` for OpenAI's `reasoning_effort`; `None` where the model leaves no choice.
    pub(super) fn thinking_level(&self, effort: &str) -> Option<&'static str> {
        match (self.known.map(|model| model.thinking), effort) {
            (Some(Thinking::Levels), "none" | "minimal" | "low") => Some("minimal"),
            (Some(Thinking::Levels), "medium" | "high" | "xhigh" | "max") => Some("high"),
            (None, "none" | "minimal") => Some("minimal"),
            (None, "low") => Some("low"),
            (None, "medium") => Some("medium"),
            (None, "high" | "xhigh" | "max") => Some("high"),
            _ => None,
        }
    }

    /// `imageConfig`, from whatever says something of the image.
    pub(super) fn image_config(
        &self,
        wishes: &Wishes<'_>,
    ) -> Result<Members<'static>, OpenAiError> {
        let (size, ratio_of_size) = self.size(wishes)?;
        let ratio = match wishes.ratio {
            Some(text) => parse_aspect(text),
            // Pixels miss the ratio by some per cent: the nearest one that the model takes is
            // meant.
            None => ratio_of_size.or(self.ratio).map(|ratio| {
                let nearest =
                    self.known.and_then(|model| model.nearest_ratio(ratio)).unwrap_or(ratio);
                Cow::Owned(nearest.to_owned())
            }),
        };
        let mut config = Vec::new();
        if let Some(ratio) = ratio {
            config.push((Cow::Borrowed("aspectRatio"), Json::from(ratio)));
        }
        // Some models have one size, and answer 400 to being asked for it.
        if let Some(size) = size.filter(|_| self.known.is_none_or(|model| model.accepts_image_size))
        {
            config.push((Cow::Borrowed("imageSize"), size.as_str().into()));
        }
        Ok(config)
    }

    /// The size, and the ratio that stood with it. What is said in `imageConfig`'s own words comes
    /// first, the name last.
    fn size(
        &self,
        wishes: &Wishes<'_>,
    ) -> Result<(Option<ImageSize>, Option<&'static str>), OpenAiError> {
        let said = wishes.size.as_ref().filter(|(_, text)| {
            !text.trim().is_empty() && !text.trim().eq_ignore_ascii_case("auto")
        });
        let (param, size, ratio) = match (said, wishes.quality) {
            (Some((param, text)), _) => {
                let Some((size, ratio)) = parse_size(text) else {
                    let message = format!(
                        "`{param}` is none that is known; it is like 1024x1024, or 512, 1K, 2K, 4K, or auto"
                    );
                    return Err(OpenAiError::of(*param, message));
                };
                (*param, Some(size), ratio)
            }
            (None, Some(quality)) => match self.size_of_quality(quality)? {
                Some(size) => ("quality", Some(size), None),
                None => ("model", self.size, None),
            },
            (None, None) => ("model", self.size, None),
        };
        if let (Some(size), Some(model)) = (size, self.known) {
            // The larger image costs more, and the smaller one is not what was asked for: neither
            // is served in silence.
            if model.images && !model.sizes.is_empty() && !model.sizes.contains(&size) {
                let sizes: Vec<&str> = model.sizes.iter().map(|size| size.as_str()).collect();
                let message = format!(
                    "`{param}` asks for {size}, and `{}` makes {}",
                    model.id,
                    sizes.join(", ")
                );
                return Err(OpenAiError::of(param, message));
            }
        }
        Ok((size, ratio))
    }

    /// OpenAI's quality as a size: `low` is 512 and `high` is 2K where the model makes them, all
    /// else is left to the model (1K).
    fn size_of_quality(&self, quality: &str) -> Result<Option<ImageSize>, OpenAiError> {
        let made = |size: ImageSize| {
            Some(size).filter(|size| self.known.is_some_and(|model| model.makes(*size)))
        };
        match quality.to_ascii_lowercase().as_str() {
            "low" => Ok(made(ImageSize::Px512)),
            "high" | "hd" | "xhigh" | "max" => Ok(made(ImageSize::K2)),
            "" | "auto" | "medium" | "standard" => Ok(None),
            _ => Err(OpenAiError::of(
                "quality",
                "`quality` is none that is known; it is low, medium, high, standard, hd or auto",
            )),
        }
    }
}

/// A name with one of the family's words in it is taken at its word, as core does.
fn names_an_image_model(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["image", "banana"].iter().any(|word| name.contains(word))
}

/// What a request says of the image.
#[derive(Debug, Default)]
pub(super) struct Wishes<'a> {
    /// With the member that says it.
    pub(super) size: Option<(&'static str, Cow<'a, str>)>,
    pub(super) ratio: Option<&'a str>,
    pub(super) quality: Option<&'a str>,
}

impl<'a> Wishes<'a> {
    /// Of a request, its `extra_body`, and whatever holds Gemini's own words.
    pub(super) fn of(sources: &[&'a Json<'_>], quality: bool) -> Self {
        let mut wishes = Self::default();
        let configs =
            || sources.iter().filter_map(|source| source.any(&["image_config", "imageConfig"]));
        let first = |names: &[&str]| sources.iter().find_map(|source| source.text_of(names));
        let word = |names: &[&str]| sources.iter().find_map(|source| source.word_of(names));
        let sizes: [(&'static str, Option<Cow<'a, str>>); 3] = [
            (
                "image_config",
                configs().find_map(|config| config.word_of(&["image_size", "imageSize"])),
            ),
            ("image_size", word(&["image_size", "imageSize", "resolution"])),
            ("size", word(&["size"])),
        ];
        wishes.size = sizes.into_iter().find_map(|(param, text)| Some((param, text?)));
        wishes.ratio = configs()
            .find_map(|config| config.text_of(&["aspect_ratio", "aspectRatio"]))
            .or_else(|| first(&["aspect_ratio", "aspectRatio"]));
        if quality {
            wishes.quality = first(&["quality"]);
        }
        wishes
    }
}
