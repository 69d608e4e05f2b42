//! Resolves the requested model and image size.

use std::borrow::Cow;

use tower_gemini_core::call::{
    ImageSize, parse_aspect, parse_size, split_model_suffix, strip_model_prefix,
};
use tower_gemini_core::catalog::{Catalog, Family, Model, Thinking};

use super::error::OpenAiError;
use super::json::{Json, Members};

/// The model that a name stands for, and what its suffix requests.
#[derive(Debug)]
pub(super) struct RequestedModel {
    /// The name as the client spelled it.
    pub(super) name: String,
    pub(super) id: String,
    known: Option<&'static Model>,
    size: Option<ImageSize>,
    ratio: Option<&'static str>,
}

impl RequestedModel {
    pub(super) fn parse(model: Option<&Json<'_>>) -> Result<Self, OpenAiError> {
        let invalid = |what: &str| {
            let message = format!("`model` {what}; an example is `gemini-3-pro-image`");
            Err(OpenAiError::invalid("model", message))
        };
        let name = match model.map(Json::text) {
            Some(Some(name)) if !name.trim().is_empty() => name.trim(),
            Some(_) => return invalid("is not a model name"),
            None => return invalid("is missing"),
        };
        let bare = strip_model_prefix(name);
        let known = Catalog::builtin().lookup(bare);
        let is_full_name = known.is_some_and(|model| {
            model.id.eq_ignore_ascii_case(bare)
                || model.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(bare))
        });
        let (base, size, ratio) = split_model_suffix(bare);
        // A model's own name may end like a suffix, and of an unknown model only an image model's
        // name has a suffix.
        let has_suffix = !is_full_name && (known.is_some() || names_an_image_model(base));
        let (base, size, ratio) = if has_suffix { (base, size, ratio) } else { (bare, None, None) };
        let id = known.map_or(base, |model| &model.id);
        let tuned = id.strip_prefix("tunedModels/").unwrap_or(id);
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if tuned.is_empty()
            || tuned.len() > 128
            || tuned.contains("..")
            || !tuned.bytes().all(is_plain)
        {
            return invalid("cannot be the name of a Gemini model");
        }
        if let Some(model) = known.filter(|model| model.family == Family::Imagen) {
            let successor = model.successor.as_deref().unwrap_or("gemini-3-pro-image");
            let message = format!(
                "`{}` is an Imagen model, which has no chat and was shut down; use `{successor}`",
                model.id
            );
            return Err(OpenAiError::unsupported("model", message));
        }
        Ok(Self { name: name.to_owned(), id: id.to_owned(), known, size, ratio })
    }

    /// Returns the path of the Gemini request.
    pub(super) fn path(&self, stream: bool) -> String {
        let collection = if self.id.starts_with("tunedModels/") { "" } else { "models/" };
        let verb = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
        format!("/v1beta/{collection}{}:{verb}", self.id)
    }

    /// Whether its responses may hold drafts that are not marked: it thinks.
    pub(super) fn has_drafts(&self) -> bool {
        self.known.is_some_and(|model| model.thinking != Thinking::None)
    }

    /// Returns `thinkingLevel` for OpenAI's `reasoning_effort`; `None` where the model has no
    /// choice.
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

    /// Returns `imageConfig`.
    pub(super) fn image_config(
        &self,
        requested: &RequestedImage<'_>,
    ) -> Result<Members<'static>, OpenAiError> {
        let (size, ratio_of_size) = self.size(requested)?;
        let ratio = match requested.ratio {
            Some(text) => parse_aspect(text),
            // Sizes in pixels miss a ratio by some per cent: the model's nearest one is meant.
            None => ratio_of_size.or(self.ratio).map(|ratio| {
                let nearest = self.known.and_then(|model| model.nearest_ratio(ratio));
                Cow::Owned(nearest.unwrap_or(ratio).to_owned())
            }),
        };
        // Some models make one size only, and respond with a 400 where it is requested.
        let size = size.filter(|_| self.known.is_none_or(|model| model.accepts_image_size));
        let ratio = ratio.map(|ratio| ("aspectRatio", Json::Text(ratio)));
        let size = size.map(|size| ("imageSize", size.as_str().into()));
        let members = ratio.into_iter().chain(size);
        Ok(members.map(|(name, value)| (Cow::Borrowed(name), value)).collect())
    }

    /// Returns the size, and the ratio that was stated with it.
    fn size(
        &self,
        requested: &RequestedImage<'_>,
    ) -> Result<(Option<ImageSize>, Option<&'static str>), OpenAiError> {
        let stated = requested.size.as_ref().map(|(param, text)| (*param, text.trim()));
        let stated =
            stated.filter(|(_, text)| !text.is_empty() && !text.eq_ignore_ascii_case("auto"));
        let of_quality = match requested.quality.filter(|_| stated.is_none()) {
            Some(quality) => self.size_of_quality(quality)?,
            None => None,
        };
        let (param, size, ratio) = match (stated, of_quality) {
            (Some((param, text)), _) => {
                let Some((size, ratio)) = parse_size(text) else {
                    let message = format!(
                        "`{param}` is not a known size; use 1024x1024, 512, 1K, 2K, 4K or auto"
                    );
                    return Err(OpenAiError::invalid(param, message));
                };
                (param, Some(size), ratio)
            }
            (None, Some(size)) => ("quality", Some(size), None),
            (None, None) => ("model", self.size, None),
        };
        if let (Some(size), Some(model)) = (size, self.known) {
            // A larger image costs more and a smaller one was not requested: neither is made
            // silently.
            if model.images && !model.sizes.is_empty() && !model.sizes.contains(&size) {
                let sizes: Vec<&str> = model.sizes.iter().map(|size| size.as_str()).collect();
                let message = format!(
                    "`{param}` requests {size}, and `{}` makes {}",
                    model.id,
                    sizes.join(", ")
                );
                return Err(OpenAiError::invalid(param, message));
            }
        }
        Ok((size, ratio))
    }

    /// Maps OpenAI's quality to a size: `low` is 512 and `high` is 2K where the model makes them,
    /// everything else is left to the model (1K).
    fn size_of_quality(&self, quality: &str) -> Result<Option<ImageSize>, OpenAiError> {
        let size = match quality.to_ascii_lowercase().as_str() {
            "low" => ImageSize::Px512,
            "high" | "hd" | "xhigh" | "max" => ImageSize::K2,
            "" | "auto" | "medium" | "standard" => return Ok(None),
            _ => {
                let message = "`quality` is low, medium, high, standard, hd or auto";
                return Err(OpenAiError::invalid("quality", message));
            }
        };
        Ok(Some(size).filter(|size| self.known.is_some_and(|model| model.makes(*size))))
    }
}

/// Recognises unknown image models by the words of the family's names, as core does.
fn names_an_image_model(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["image", "banana"].iter().any(|word| name.contains(word))
}

/// What a request says about the image.
#[derive(Debug, Default)]
pub(super) struct RequestedImage<'a> {
    /// The size, and the member that states it.
    size: Option<(&'static str, Cow<'a, str>)>,
    ratio: Option<&'a str>,
    quality: Option<&'a str>,
}

impl<'a> RequestedImage<'a> {
    /// Reads a request, its `extra_body` and its `google` objects. `imageConfig` wins.
    pub(super) fn parse(sources: &[&'a Json<'_>], with_quality: bool) -> Self {
        const RATIO: [&str; 2] = ["aspect_ratio", "aspectRatio"];
        let configs: Vec<&'a Json<'_>> = sources
            .iter()
            .filter_map(|source| source.any(&["image_config", "imageConfig"]))
            .collect();
        let size = |param, sources: &[&'a Json<'_>], names: &[&str]| {
            let size = sources.iter().find_map(|source| source.text_or_number_of(names))?;
            Some((param, size))
        };
        let text = |sources: &[&'a Json<'_>], names: &[&str]| {
            sources.iter().find_map(|source| source.text_of(names))
        };
        // Also a list of one.
        let ratio = |sources: &[&'a Json<'_>]| {
            let stated = sources.iter().find_map(|source| source.any(&RATIO))?;
            stated.list().map_or(Some(stated), <[_]>::first)?.text()
        };
        Self {
            size: size("image_config", &configs, &["image_size", "imageSize"])
                .or_else(|| {
                    size(
                        "image_size",
                        sources,
                        &[
                            "image_size",
                            "imageSize",
                            "image_resolution",
                            "imageResolution",
                            "resolution",
                        ],
                    )
                })
                .or_else(|| size("size", sources, &["size"])),
            ratio: ratio(&configs).or_else(|| ratio(sources)),
            quality: text(sources, &["quality"]).filter(|_| with_quality),
        }
    }
}
