//! What one line of a job asks for.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_gemini::call::ImageSize;
use tower_gemini::catalog::Catalog;

use crate::lane::Lane;

/// One image to draw: a line of a JSONL or CSV file, or an element of `POST /jobs`.
///
/// ```
/// use tower_gemini_jobs::Item;
///
/// let item: Item = serde_json::from_str(
///     r#"{"prompt": "a red apple", "size": "2K", "output": "apple.png", "deadline": "24h"}"#,
/// )?;
/// assert_eq!(item.output.as_deref(), Some("apple.png"));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Item {
    /// What to draw.
    pub prompt: String,
    /// The model. Default: that of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `512`, `1K`, `2K` or `4K`. Default: that of the model, which is 1K for most.
    #[serde(default, with = "as_text", skip_serializing_if = "Option::is_none")]
    pub size: Option<ImageSize>,
    /// The aspect ratio, as `16:9`. Default: the model's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aspect: Option<String>,
    /// Images to edit, in order: paths, URLs, and `item:NAME` for what another item of the job
    /// draws, by its output name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// The name of the image file, without or with a directory. Default: the number of the item.
    /// The extension becomes that of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// When the image must be there: a time (`2026-12-01T06:00:00Z`) or a duration from submission
    /// (`24h`). After it nothing more is sent. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Deadline>,
    /// Which lane it takes. Default: chosen by deadline and price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<Lane>,
    /// The most that this item may cost, in US dollars. Default: no cap of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_usd: Option<f64>,
    /// The most requests that may be sent for this item. Default: no cap of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
}

/// When an image must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Deadline {
    /// At this time.
    At(jiff::Timestamp),
    /// This long after submission.
    Within(Duration),
}

impl Deadline {
    /// In milliseconds since 1970, for what is submitted at `now_ms`.
    #[must_use]
    pub fn unix_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::At(time) => time.as_millisecond(),
            Self::Within(time) => now_ms.saturating_add(crate::millis(time)),
        }
    }
}

impl TryFrom<String> for Deadline {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(Self::At(time));
        }
        let span = text.parse::<jiff::SignedDuration>().ok();
        span.and_then(|span| Duration::try_from(span).ok()).map(Self::Within).ok_or_else(|| {
            format!(
                "`{text}` is no deadline; write a time such as 2026-12-01T06:00:00Z or a duration \
                 such as 24h"
            )
        })
    }
}

impl From<Deadline> for String {
    fn from(deadline: Deadline) -> Self {
        match deadline {
            Deadline::At(time) => time.to_string(),
            Deadline::Within(time) => format!("{}s", time.as_secs()),
        }
    }
}

/// The prefix of an input that another item of the job draws.
pub(crate) const OF_ITEM: &str = "item:";

/// The longest prompt, in bytes: above the input limit of every model in the catalogue (65,536
/// tokens of about four bytes).
const LONGEST_PROMPT: usize = 512 * 1024;

impl Item {
    /// An item that asks for this.
    #[must_use]
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }

    /// What is wrong with it, in words that say what to write instead.
    ///
    /// # Errors
    ///
    /// An empty prompt, a model that draws no images or is not in the catalogue, a size or a ratio
    /// that the model does not make, an output outside the directory, an amount that is no money.
    pub fn check(&self, catalog: &Catalog, default_model: &str) -> Result<(), String> {
        if self.prompt.trim().is_empty() {
            return Err("`prompt` is empty; say what to draw".to_owned());
        }
        if self.prompt.len() > LONGEST_PROMPT {
            return Err(format!("`prompt` is longer than {LONGEST_PROMPT} bytes"));
        }
        let name = self.model.as_deref().unwrap_or(default_model);
        let model = catalog.lookup(name).ok_or_else(|| {
            format!("`{name}` is no known model; add it to catalog.file, or name another")
        })?;
        if !model.images || model.vendor != "google" || !model.edits {
            return Err(format!("`{name}` cannot be used in jobs: Gemini image models can"));
        }
        if let Some(size) = self.size.filter(|size| !model.makes(*size)) {
            let sizes: Vec<_> = model.sizes.iter().map(|size| size.as_str()).collect();
            return Err(format!("{name} makes no {size}; its sizes are {}", sizes.join(", ")));
        }
        if let Some(ratio) = self.aspect.as_ref().filter(|ratio| !model.takes_ratio(ratio)) {
            let ratios = model.ratios.join(", ");
            return Err(format!("{name} takes no aspect ratio `{ratio}`; it takes {ratios}"));
        }
        if let Some(output) = &self.output {
            check_name(output)?;
        }
        if self.max_usd.is_some_and(|usd| !usd.is_finite() || usd < 0.0) {
            return Err("`max_usd` is not an amount of money; write 0.25".to_owned());
        }
        if self.max_requests == Some(0) {
            return Err("`max_requests` is 0, which allows nothing; write 1 or more".to_owned());
        }
        Ok(())
    }

    /// The items that it waits for, by their output names.
    pub(crate) fn waits_for(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().filter_map(|input| input.strip_prefix(OF_ITEM))
    }
}

/// A name that stays in the output directory, on every system.
fn check_name(name: &str) -> Result<(), String> {
    let is_bad = |part: &str| {
        part.is_empty()
            || part.starts_with('.')
            || part.chars().any(|c| c.is_control() || r#"\:*?"<>|"#.contains(c))
    };
    match name.len() <= 200 && !name.split('/').any(is_bad) {
        true => Ok(()),
        false => Err(format!(
            "`output` {name:?} is no file name below the output directory; write apples/red.png"
        )),
    }
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use tower_gemini::call::ImageSize;

    #[allow(clippy::ref_option, reason = "the form that serde asks for")]
    pub(super) fn serialize<S: Serializer>(
        size: &Option<ImageSize>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(size.map_or("", ImageSize::as_str))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ImageSize>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let size = ImageSize::ALL.into_iter().find(|size| size.as_str() == text);
        size.map(Some).ok_or_else(|| {
            de::Error::custom(format_args!("`{text}` is no size; the sizes are 512, 1K, 2K and 4K"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_an_item_says_what_to_write() {
        let of = |json: &str| serde_json::from_str::<Item>(json).map_err(|error| error.to_string());
        let rows = [
            (r#"{"prompt":" "}"#, "say what to draw"),
            (r#"{"prompt":"a","model":"dall-e-9"}"#, "add it to catalog.file"),
            (r#"{"prompt":"a","size":"3K"}"#, "the sizes are 512, 1K, 2K and 4K"),
            (r#"{"prompt":"a","model":"gemini-2.5-flash-image","size":"4K"}"#, "its sizes are"),
            (r#"{"prompt":"a","aspect":"7:1"}"#, "it takes"),
            (r#"{"prompt":"a","output":"../a.png"}"#, "write apples/red.png"),
            (r#"{"prompt":"a","output":"/etc/a.png"}"#, "write apples/red.png"),
            (r#"{"prompt":"a","deadline":"soon"}"#, "such as 24h"),
            (r#"{"prompt":"a","max_usd":-1}"#, "write 0.25"),
            (r#"{"prompt":"a","max_requests":0}"#, "write 1 or more"),
            (r#"{"prompt":"a","modle":"x"}"#, "unknown field `modle`"),
        ];
        for (json, says) in rows {
            let checked =
                of(json).and_then(|item| item.check(Catalog::builtin(), "gemini-3-pro-image"));
            let error = checked.expect_err(json);
            assert!(error.contains(says), "{json}: {error}");
        }
        let good = of(r#"{"prompt":"a","output":"apples/red","size":"4K","aspect":"16:9"}"#);
        good.unwrap().check(Catalog::builtin(), "gemini-3-pro-image").unwrap();
    }

    #[test]
    fn a_deadline_is_a_time_or_a_duration_from_submission() {
        let of = |text: &str| Deadline::try_from(text.to_owned()).unwrap();
        assert_eq!(of("1970-01-01T00:00:05Z").unix_ms(99), 5_000);
        assert_eq!(of("24h").unix_ms(1_000), 86_401_000);
        assert_eq!(Deadline::try_from(String::from(of("2h 30m"))), Ok(of("150m")));
    }
}
