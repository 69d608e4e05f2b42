//! A mix of models, and what an image of it costs.

use http::{HeaderMap, Method, StatusCode, Uri};
use serde::Serialize;
use tower_gemini::call::{Call, ImageSize, ServiceTier};
use tower_gemini::catalog::{Catalog, Platform};
use tower_gemini::classify::classify;
use tower_gemini::cost;

use super::prices::{self, Prices};
use crate::today::today;

/// A response that refuses an image after it was drawn, without a count of its tokens.
const REFUSAL: &[u8] = br#"{"candidates":[{"finishReason":"IMAGE_SAFETY"}]}"#;

/// Which price of a tier is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Tier {
    Standard,
    Batch,
    Flex,
    Priority,
}

/// What is counted beside the final images.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extras {
    /// Drafts an image that are paid for at most; the catalogue's number where it is `None`.
    pub(super) drafts: Option<u32>,
    /// The share of calls that is refused, 0 to below 1.
    pub(super) refusals: f64,
}

/// What one image costs, in millionths of a dollar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PerImage {
    pub(super) list: f64,
    pub(super) expected: f64,
    /// `None` where nothing bounds it.
    pub(super) at_most: Option<f64>,
}

/// A model of a mix, with its share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Part {
    platform: String,
    model: String,
    size: &'static str,
    tier: Tier,
    share: f64,
    /// Where its price was read, and when.
    pub(super) source: String,
    #[serde(skip)]
    price: PerImage,
}

/// Several models, and the name of it all.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mix {
    pub(super) name: String,
    pub(super) parts: Vec<Part>,
}

impl Mix {
    /// Reads a mix as `help.txt` says it is written.
    ///
    /// # Errors
    ///
    /// A sentence that names the part, and what to write.
    pub(super) fn parse(
        text: &str,
        catalog: &Catalog,
        prices: &Prices,
        extras: Extras,
    ) -> Result<Self, String> {
        let part = |text: &str| Part::parse(text.trim(), catalog, prices, extras);
        let parts = text
            .split(',')
            .map(|text| part(text).map_err(|error| format!("--mix {}: {error}", text.trim())));
        Ok(Self { name: text.to_owned(), parts: parts.collect::<Result<_, _>>()? })
    }

    /// The mean of its parts by their shares.
    pub(super) fn per_image(&self) -> PerImage {
        let all: f64 = self.parts.iter().map(|part| part.share).sum();
        let mean = |of: fn(&PerImage) -> Option<f64>| {
            let sum: Option<f64> =
                self.parts.iter().map(|part| Some(of(&part.price)? * part.share)).sum();
            sum.map(|sum| sum / all)
        };
        PerImage {
            list: mean(|price| Some(price.list)).unwrap_or_default(),
            expected: mean(|price| Some(price.expected)).unwrap_or_default(),
            at_most: mean(|price| price.at_most),
        }
    }
}

impl Part {
    /// Without tier and share.
    pub(super) fn label(&self) -> String {
        format!("{}/{}", self.platform, self.model)
    }

    fn parse(
        text: &str,
        catalog: &Catalog,
        prices: &Prices,
        extras: Extras,
    ) -> Result<Self, String> {
        let (text, share) = match text.rsplit_once('=') {
            Some((text, share)) => (text, positive(share)?),
            None => (text, 1.0),
        };
        let (text, tier) = match text.rsplit_once(':') {
            Some((text, tier)) => (text, tier_named(tier)?),
            None => (text, Tier::Standard),
        };
        let (text, size) = match text.rsplit_once('@') {
            Some((text, size)) => (text, prices::size(size)?),
            None => (text, ImageSize::K1),
        };
        let (platform, model) = text.split_once('/').unwrap_or(("gemini-api", text));
        let platform = Platform::from(platform.to_owned());
        let id = prices::canonical(catalog, model);
        let own = prices.image(&platform, id, size);
        let (price, source) = match own {
            Some(_) if tier != Tier::Standard => {
                return Err("a price of --prices has no tiers; leave the tier out".to_owned());
            }
            Some(image) => (own_price(image, extras), prices.file.clone()),
            None => listed(catalog, &platform, model, size, tier, prices, extras)?,
        };
        let (platform, model) = (platform.as_str().to_owned(), id.to_owned());
        Ok(Self { platform, model, size: size.as_str(), tier, share, source, price })
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let share = text.trim_end_matches('%').trim().parse::<f64>().ok();
    share
        .filter(|share| share.is_finite() && *share > 0.0)
        .ok_or_else(|| format!("\"{text}\" is not a share; write a number above 0"))
}

fn tier_named(text: &str) -> Result<Tier, String> {
    Ok(match text {
        "standard" => Tier::Standard,
        "batch" => Tier::Batch,
        "flex" => Tier::Flex,
        "priority" => Tier::Priority,
        _ => return Err(format!("no tier \"{text}\"; write standard, batch, flex or priority")),
    })
}

/// By the image, whatever it holds: a refused call costs one at most.
fn own_price(image: u64, extras: Extras) -> PerImage {
    let image = micro(image);
    PerImage { list: image, expected: image, at_most: Some(image * (1.0 + refused(extras))) }
}

/// Refused calls for each that is delivered.
fn refused(extras: Extras) -> f64 {
    extras.refusals / (1.0 - extras.refusals)
}

/// By the catalogue.
fn listed(
    catalog: &Catalog,
    platform: &Platform,
    name: &str,
    size: ImageSize,
    tier: Tier,
    prices: &Prices,
    extras: Extras,
) -> Result<(PerImage, String), String> {
    let unknown = || {
        let known: Vec<_> = catalog.models().map(|model| model.id.as_str()).collect();
        format!("no model \"{name}\"; the catalogue has {}", known.join(", "))
    };
    let model = catalog.lookup(name).ok_or_else(unknown)?;
    let price = model.price(platform).ok_or_else(|| match prices.know(platform) {
        true => format!("{} has no price of {} at {size}", prices.file, model.id),
        false => {
            format!("no prices of \"{}\" are known; name a file with --prices", platform.as_str())
        }
    })?;
    let call = call(&model.id, size, tier).ok_or_else(unknown)?;
    let (list, expected) = (
        cost::list_price(platform, catalog, &call).at_most_microusd,
        cost::expected_on(platform, catalog, &call).at_most_microusd,
    );
    let (Some(list), Some(expected)) = (list, expected) else {
        return Err(format!("{} has no list price at {size}", model.id));
    };
    let refusal = classify(&call, StatusCode::OK, &HeaderMap::new(), REFUSAL);
    let refusal = cost::cost_on(platform, catalog, &call, &refusal, None);
    let most = cost::worst_case_on(platform, catalog, &call, extras.drafts);
    let at_most = most.at_most_microusd.zip(refusal.at_most_microusd);
    let at_most = at_most.map(|(image, refusal)| micro(image) + refused(extras) * micro(refusal));
    let retired = match model.retired {
        Some(day) if model.is_retired_on(today()) => format!("; retired on {day}"),
        _ => String::new(),
    };
    let source = format!("{}, {}{retired}", price.source, price.as_of);
    // A batch costs half, whatever comes of it (Gemini API pricing page, 2026-10).
    let part = if tier == Tier::Batch { 0.5 } else { 1.0 };
    let (list, expected) = (part * micro(list), part * micro(expected));
    Ok((PerImage { list, expected, at_most: at_most.map(|most| part * most) }, source))
}

/// A call for one image.
fn call(model: &str, size: ImageSize, tier: Tier) -> Option<Call> {
    let uri: Uri = format!("/v1beta/models/{model}:generateContent").parse().ok()?;
    let mut call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(b"{}"));
    call.size = Some(size);
    // A name says nothing of a model that only the user's catalogue has.
    (call.wants_image, call.images) = (true, 1);
    call.tier = match tier {
        Tier::Standard | Tier::Batch => ServiceTier::Standard,
        Tier::Flex => ServiceTier::Flex,
        Tier::Priority => ServiceTier::Priority,
    };
    Some(call)
}

#[allow(clippy::cast_precision_loss, reason = "prices of an image are far below 2^53")]
fn micro(microusd: u64) -> f64 {
    microusd as f64
}

/// A price of one image, for people.
pub(super) fn shown(price: Option<f64>) -> String {
    let Some(price) = price else { return "unbounded".to_owned() };
    let text = format!("{:.4}", price / 1e6);
    // Three digits as in price lists, and one more where it says something.
    let whole = text.find('.').map_or(text.len(), |dot| dot + 4);
    let digits = text.trim_end_matches('0').len().max(whole);
    format!("${}", text.get(..digits).unwrap_or(&text))
}
