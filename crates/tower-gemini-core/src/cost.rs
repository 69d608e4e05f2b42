//! Computes what an attempt costs, as an interval from at least to at most.
//!
//! Only the bill has the exact cost; an interval that contains it can be computed. Before an
//! attempt there are [`expected`] and [`worst_case`]; after it, [`cost_of`] takes list prices (the
//! [catalogue](crate::catalog)), the [`Call`], the [`Verdict`] and, where the response has one, its
//! [`Usage`]. Batch discounts, committed use and grounding with search are not included.
//!
//! ```
//! use http::{HeaderMap, Method, Uri};
//! use tower_gemini_core::{call::Call, catalog::Catalog, cost::cost_of, verdict::Verdict};
//!
//! let uri = Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
//! let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(br#"{"contents":[{"parts":[{"text":"a cat"}]}]}"#));
//!
//! // Never sent: nothing. Cut off: anything from nothing to the image with its drafts and thoughts.
//! assert_eq!(cost_of(Catalog::builtin(), &call, &Verdict::not_sent(), None).at_most_microusd, Some(0));
//! let cut_off = cost_of(Catalog::builtin(), &call, &Verdict::interrupted(), None);
//! assert!(cut_off.contains(0) && cut_off.contains(134_400));
//! // Delivered: at least the image.
//! let delivered = cost_of(Catalog::builtin(), &call, &Verdict::delivering(), None);
//! assert!(delivered.at_least_microusd >= 134_000 && delivered.contains(134_400));
//! ```

use std::fmt;
use std::iter::Sum;
use std::ops::Add;

use serde::Serialize;

use crate::call::{Call, Dialect, ImageSize, ServiceTier, Verb};
use crate::catalog::{Catalog, Model, Platform, Price, Thinking};
use crate::scan::Usage;
pub use crate::served::ServedBy;
use crate::verdict::{Charge, Outcome, Verdict};

/// Money in micro-dollars (millionths of a US dollar), from at least to at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// At least this much.
    pub at_least_microusd: u64,
    /// At most this much; `None` where nothing bounds it (an unknown model).
    pub at_most_microusd: Option<u64>,
}

impl Cost {
    /// Nothing.
    pub const ZERO: Self = Self { at_least_microusd: 0, at_most_microusd: Some(0) };
    /// Anything.
    pub const UNKNOWN: Self = Self { at_least_microusd: 0, at_most_microusd: None };

    /// Exactly this much.
    #[must_use]
    pub fn exactly(microusd: u64) -> Self {
        Self { at_least_microusd: microusd, at_most_microusd: Some(microusd) }
    }

    /// From nothing to this much.
    #[must_use]
    pub fn up_to(microusd: u64) -> Self {
        Self { at_least_microusd: 0, at_most_microusd: Some(microusd) }
    }

    /// Returns what one of `images` images cost: the lower end rounded down, the upper up. `None`
    /// where there are none.
    #[must_use]
    pub fn per_image(self, images: u64) -> Option<Self> {
        Some(Self {
            at_least_microusd: self.at_least_microusd.checked_div(images)?,
            at_most_microusd: self.at_most_microusd.map(|most| most.div_ceil(images)),
        })
    }

    /// Returns the interval with its upper end lowered to that of `bound`, but not below its own
    /// lower end.
    ///
    /// ```
    /// use tower_gemini_core::cost::Cost;
    ///
    /// assert_eq!(Cost::UNKNOWN.bounded_by(Cost::up_to(5)), Cost::up_to(5));
    /// assert_eq!(Cost::exactly(7).bounded_by(Cost::up_to(5)), Cost::exactly(7));
    /// ```
    #[must_use]
    pub fn bounded_by(self, bound: Self) -> Self {
        let Some(bound) = bound.at_most_microusd else { return self };
        let most = self.at_most_microusd.map_or(bound, |most| most.min(bound));
        Self { at_most_microusd: Some(most.max(self.at_least_microusd)), ..self }
    }

    /// Returns the smallest interval that holds both.
    fn or(self, other: Self) -> Self {
        let most = self.at_most_microusd.zip(other.at_most_microusd);
        Self {
            at_least_microusd: self.at_least_microusd.min(other.at_least_microusd),
            at_most_microusd: most.map(|(a, b)| a.max(b)),
        }
    }

    /// Whether `microusd` lies in the interval.
    #[must_use]
    pub fn contains(&self, microusd: u64) -> bool {
        self.at_least_microusd <= microusd
            && self.at_most_microusd.is_none_or(|most| microusd <= most)
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            at_least_microusd: self.at_least_microusd.saturating_add(other.at_least_microusd),
            at_most_microusd: match (self.at_most_microusd, other.at_most_microusd) {
                (Some(a), Some(b)) => Some(a.saturating_add(b)),
                _ => None,
            },
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss, reason = "for people: four digits are shown")]
        let usd = |micro: u64| format!("${:.4}", micro as f64 / 1e6);
        let least = usd(self.at_least_microusd);
        match self.at_most_microusd.map(usd) {
            // Ends that differ only behind the digits shown are one figure to a reader.
            Some(most) if most == least => f.write_str(&most),
            Some(most) => write!(f, "{least} to {most}"),
            None => write!(f, "at least {least}"),
        }
    }
}

/// Returns what an attempt cost by the list price of the platform its dialect belongs to (Vertex AI
/// for its own, else the Gemini API).
///
/// | charge | at least | at most |
/// | --- | --- | --- |
/// | `None`, `Waived` | 0 | 0 |
/// | `Charged`, an image | one final image for each that was asked for and counted | every counted token; without a count: images, drafts, thoughts and input |
/// | `Charged`, no image | 0 | the tokens it counted; without a count: thoughts, text and input |
/// | `Maybe` | 0 | the tokens of a complete answer that counted; else as for an image without a count |
///
/// The lower end holds only final images: whether input is billed on a refusal, and at which rate
/// cached input is, is nowhere stated. The upper end allows for drafts, of which documentation says
/// that they are free and operators measured that unmarked ones are counted.
///
/// A model that the catalogue does not know, or has no price of, bounds nothing from above; so does
/// a batch, which is billed elsewhere. A model whose date of retirement is known may have been
/// served by its successor: the interval holds what either costs.
///
/// Where the response says how it was served, [`cost_served`] is narrower, and right where this is
/// not.
#[must_use]
pub fn cost_of(catalog: &Catalog, call: &Call, verdict: &Verdict, usage: Option<&Usage>) -> Cost {
    cost_on(platform_of(call), catalog, call, verdict, usage)
}

/// Returns the same as [`cost_of`] where the response says which model and which tier it was served
/// by: those are paid for, whatever was asked for.
///
/// | the response names | the price is that of |
/// | --- | --- |
/// | a model of the catalogue, also with a version behind its name | that model |
/// | another model | nobody knows: from nothing, without an upper end |
/// | no model | the model asked for, or, where its date of retirement is known, its successor |
/// | standard, flex | standard, or half of it |
/// | priority | 175 to 200 % of standard (Gemini API documentation, priority inference, 2026-08) |
/// | another tier | from nothing to twice the standard price: no list names it |
/// | no tier | the tier asked for; of flex and priority that, or standard |
///
/// ```
/// use http::{HeaderMap, Method, Uri};
/// use tower_gemini_core::{call::Call, catalog::Catalog, verdict::Verdict};
/// use tower_gemini_core::cost::{ServedBy, cost_served};
///
/// let uri = Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
/// let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(b"{}"));
/// let served = ServedBy::new().named("gemini-nano-banana-2.1");
/// let cost = cost_served(Catalog::builtin(), &call, &served, &Verdict::delivering(), None);
/// assert!(cost.contains(33_600) && cost.at_least_microusd < 134_000);
/// ```
#[must_use]
pub fn cost_served(
    catalog: &Catalog,
    call: &Call,
    served: &ServedBy,
    verdict: &Verdict,
    usage: Option<&Usage>,
) -> Cost {
    cost_served_on(platform_of(call), catalog, call, served, verdict, usage)
}

/// Returns the same as [`cost_of`] by the price list of another platform, for instance a relay.
#[must_use]
pub fn cost_on(
    platform: &Platform,
    catalog: &Catalog,
    call: &Call,
    verdict: &Verdict,
    usage: Option<&Usage>,
) -> Cost {
    cost_served_on(platform, catalog, call, &ServedBy::new(), verdict, usage)
}

/// Returns the same as [`cost_served`] by the price list of another platform.
#[must_use]
pub fn cost_served_on(
    platform: &Platform,
    catalog: &Catalog,
    call: &Call,
    served: &ServedBy,
    verdict: &Verdict,
    usage: Option<&Usage>,
) -> Cost {
    if verdict.charge().is_surely_free() {
        return Cost::ZERO;
    }
    let cost = Bill::of_each(platform, catalog, call, served, |bill| bill.cost(verdict, usage));
    in_tier(served.tier, call.tier, cost)
}

/// Returns the list price of one attempt at a call: its final images at the size at which they are
/// drawn (1K where the call names none), its text input, and for a model that thinks 529 tokens of
/// thoughts and text an image (the most in public recordings, 2026-11). Drafts are not included,
/// because documentation says that they are free.
///
/// Both ends are equal. A call that cannot be charged costs nothing; a model that the catalogue
/// does not know, or has no price of, is [`Cost::UNKNOWN`]. It is an estimate: an attempt may cost
/// more, at most the [`worst_case`].
///
/// ```
/// use http::{HeaderMap, Method, Uri};
/// use tower_gemini_core::{call::Call, catalog::Catalog, cost::expected};
///
/// let uri = Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
/// let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(b"{}"));
/// assert_eq!(expected(Catalog::builtin(), &call).to_string(), "$0.1407");
/// ```
#[must_use]
pub fn expected(catalog: &Catalog, call: &Call) -> Cost {
    expected_on(platform_of(call), catalog, call)
}

/// Returns the same as [`expected`] by the price list of another platform.
#[must_use]
pub fn expected_on(platform: &Platform, catalog: &Catalog, call: &Call) -> Cost {
    let bill = match Bill::new(platform, catalog, call) {
        Ok(bill) => bill.as_drawn(0),
        Err(cost) => return cost,
    };
    let images = u64::from(call.images.max(1));
    let image = if call.wants_image { bill.image().times(images) } else { Cost::ZERO };
    let text = if bill.model.thinking == Thinking::None { 0 } else { TEXT_TOKENS_SEEN };
    let text = text.saturating_mul(if call.wants_image { images } else { 1 });
    let cost = image + bill.priced(call.input_tokens_estimate, text);
    let Some(microusd) = cost.at_most_microusd else { return Cost::UNKNOWN };
    Cost::exactly(tier_price(call.tier, microusd))
}

/// Returns the list price of a call's final images alone, as price lists state it: rounded, without
/// thoughts and input. [`Cost::UNKNOWN`] where the platform has no price of that size.
///
/// ```
/// use http::{HeaderMap, Method, Uri};
/// use tower_gemini_core::{call::Call, catalog::{Catalog, Platform}, cost::list_price};
///
/// let uri = Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
/// let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(b"{}"));
/// let price = list_price(&Platform::GeminiApi, Catalog::builtin(), &call);
/// assert_eq!(price.to_string(), "$0.1340");
/// ```
#[must_use]
pub fn list_price(platform: &Platform, catalog: &Catalog, call: &Call) -> Cost {
    let bill = match Bill::new(platform, catalog, call) {
        Ok(bill) => bill.as_drawn(0),
        Err(cost) => return cost,
    };
    let listed = bill.size.and_then(|size| bill.price.per_image_microusd.get(&size));
    let images = u64::from(call.images.max(1));
    listed.map_or(Cost::UNKNOWN, |one| {
        Cost::exactly(tier_price(call.tier, one.saturating_mul(images)))
    })
}

/// What a tier makes of a standard price; priority at most, and the standard price where no list
/// names one.
fn tier_price(tier: ServiceTier, microusd: u64) -> u64 {
    match tier {
        ServiceTier::Standard | ServiceTier::Other => microusd,
        ServiceTier::Flex => microusd / 2,
        ServiceTier::Priority => microusd.saturating_mul(2),
    }
}

/// Returns what one attempt at a call can cost at most, whatever it ends in; the lower end is zero.
///
/// The images are priced at the size at which they are drawn: the one that the call names, and 1K
/// where it names none. `drafts` is how many drafts beside each final image are assumed to be paid
/// for by a model that drafts; `None` takes what the catalogue knows of the model
/// ([`drafts_at_most`](Model::drafts_at_most): none for a model that does not think, else 10). With
/// a lower number the result can be passed by an attempt that draws more.
///
/// A call that cannot be charged costs nothing, and an unknown model is bounded by nothing, as in
/// [`expected`].
///
/// An attempt that reported no usage can be settled at
/// `cost_of(…).bounded_by(worst_case(…))`: then what is settled never exceeds what was reserved.
///
/// ```
/// use http::{HeaderMap, Method, Uri};
/// use tower_gemini_core::{call::Call, catalog::Catalog, cost::worst_case};
///
/// let uri = Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
/// let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(b"{}"));
/// // 11 images of 1K at $0.1344, and $0.0988 of thoughts and input.
/// assert_eq!(worst_case(Catalog::builtin(), &call, None).to_string(), "$0.0000 to $1.5772");
/// // Documentation: up to two drafts.
/// assert_eq!(worst_case(Catalog::builtin(), &call, Some(2)).to_string(), "$0.0000 to $0.5020");
/// ```
#[must_use]
pub fn worst_case(catalog: &Catalog, call: &Call, drafts: Option<u32>) -> Cost {
    worst_case_on(platform_of(call), catalog, call, drafts)
}

/// Returns the same as [`worst_case`] by the price list of another platform.
#[must_use]
pub fn worst_case_on(
    platform: &Platform,
    catalog: &Catalog,
    call: &Call,
    drafts: Option<u32>,
) -> Cost {
    let cost = Bill::of_each(platform, catalog, call, &ServedBy::new(), |bill| {
        let known = bill.model.drafts_at_most;
        let bill = bill.as_drawn(if known == 0 { 0 } else { drafts.unwrap_or(known) });
        bill.uncounted_image().or_free()
    });
    in_tier(None, call.tier, cost)
}

fn platform_of(call: &Call) -> &'static Platform {
    if call.dialect == Dialect::VertexAi { &Platform::VertexAi } else { &Platform::GeminiApi }
}

/// The most thoughts and text beside an image in public recordings, in tokens (2026-11).
const TEXT_TOKENS_SEEN: u64 = 529;
/// Thoughts and text beside an image when nothing was counted, in tokens: fifteen times the most
/// that was seen. A model's own limit of output tokens lowers it.
const TEXT_TOKENS_AT_MOST: u64 = 8_192;
/// How far the estimate of input tokens can be below the truth: a token is at least one byte of
/// text where the estimate takes four, and an input image counts 1,120 tokens (Vertex AI
/// documentation, Gemini 3.1 Flash Image, 2026-10) where it takes 258.
const INPUT_FACTOR: u64 = 5;
/// Tokens that a request has beside its contents.
const INPUT_BASE: u64 = 256;

#[derive(Clone, Copy)]
struct Bill<'a> {
    model: &'a Model,
    price: &'a Price,
    call: &'a Call,
    /// The size of its images; `None` for any that the model makes.
    size: Option<ImageSize>,
    drafts: u32,
}

impl<'a> Bill<'a> {
    /// Before or after an attempt of which nothing is known; an error holds the cost of a call that
    /// has no price list.
    fn new(platform: &Platform, catalog: &'a Catalog, call: &'a Call) -> Result<Self, Cost> {
        if call.can_be_charged() == Some(false) {
            return Err(Cost::ZERO);
        }
        let model = call.model.as_ref().and_then(|id| catalog.lookup_version(id.as_str()));
        // A batch is billed elsewhere.
        let model = model.filter(|_| call.verb != Verb::Batch);
        model.and_then(|model| Self::by(platform, model, call)).ok_or(Cost::UNKNOWN)
    }

    /// For a call that `model` serves, where the platform has a price of it.
    fn by(platform: &Platform, model: &'a Model, call: &'a Call) -> Option<Self> {
        let price = model.price(platform)?;
        let size = call.size.filter(|size| model.makes(*size));
        Some(Self { model, price, call, size, drafts: model.drafts_at_most })
    }

    /// Returns what every model costs that may have served the call, as one interval.
    fn of_each(
        platform: &Platform,
        catalog: &'a Catalog,
        call: &'a Call,
        served: &ServedBy,
        cost: impl Fn(Self) -> Cost,
    ) -> Cost {
        let asked = Self::new(platform, catalog, call);
        match (&served.model, asked) {
            (_, Err(free @ Cost::ZERO)) => free,
            (Some(_), _) if call.verb == Verb::Batch => Cost::UNKNOWN,
            (Some(id), _) => {
                let model = catalog.lookup_version(id.as_str());
                let bill = model.and_then(|model| Self::by(platform, model, call));
                bill.map_or(Cost::UNKNOWN, cost)
            }
            (None, Err(unknown)) => unknown,
            // What the platform does not sell, it does not serve.
            (None, Ok(asked)) => catalog
                .may_serve(asked.model)
                .filter_map(|model| Self::by(platform, model, call))
                .map(cost)
                .reduce(Cost::or)
                .unwrap_or(Cost::UNKNOWN),
        }
    }

    /// The cost in the standard tier of what may have been charged.
    fn cost(self, verdict: &Verdict, usage: Option<&Usage>) -> Cost {
        let charged = verdict.charge() == Charge::Charged;
        match (
            verdict.outcome(),
            usage.filter(|usage| usage.total > 0 || usage.candidates > 0 || usage.prompt > 0),
        ) {
            (Outcome::Image, Some(usage)) if charged => self.counted_image(usage),
            (Outcome::Image, None) if charged && verdict.has_image() => self.uncounted_image(),
            // A count met before the break is of what was made by then.
            (Outcome::Interrupted | Outcome::StreamError | Outcome::Other, Some(usage)) => {
                let (counted, uncounted) = (self.counted_tokens(usage), self.uncounted_image());
                let most = counted.at_most_microusd.zip(uncounted.at_most_microusd);
                Cost { at_least_microusd: 0, at_most_microusd: most.map(|(a, b)| a.max(b)) }
            }
            (_, Some(usage)) => self.counted_tokens(usage),
            // A refusal made no image that could be billed; thoughts and input may be. Anything
            // else may have made one.
            (Outcome::ContentBlocked | Outcome::PromptBlocked | Outcome::OutOfTokens, None) => {
                self.uncounted_non_image()
            }
            (_, None) => self.uncounted_image().or_free(),
        }
    }

    fn as_drawn(self, drafts: u32) -> Self {
        Self { size: self.model.drawn_size(self.call.size), drafts, ..self }
    }

    /// What one image may cost: the listed price is rounded and the tokens' price is exact, so both
    /// ends are needed.
    fn image(&self) -> Cost {
        let sizes = self.size.as_ref().map_or(self.model.sizes.as_slice(), std::slice::from_ref);
        let prices = || {
            sizes.iter().flat_map(|size| {
                let listed = self.price.per_image_microusd.get(size).copied();
                let tokens = self.model.tokens_per_image.get(size);
                let exact = tokens
                    .zip(self.price.image_output_microusd_per_mtok)
                    .map(|(&tokens, rate)| tokens_price(tokens, rate));
                let low = exact.map(|exact| exact.at_least_microusd);
                let high = exact.and_then(|exact| exact.at_most_microusd);
                [listed, low, high].into_iter().flatten()
            })
        };
        prices().min().map_or(Cost::UNKNOWN, |least| Cost {
            at_least_microusd: least,
            at_most_microusd: prices().max(),
        })
    }

    fn counted_image(&self, usage: &Usage) -> Cost {
        let one = self.image();
        let images = match (usage.image_tokens(), self.price.image_output_microusd_per_mtok) {
            // Counted drafts may be free: then one image is what is paid, and never more than was
            // counted.
            (tokens @ 1.., Some(rate)) => {
                let counted = tokens_price(tokens, rate);
                let least = counted.at_least_microusd.min(one.at_least_microusd);
                Cost { at_least_microusd: least, ..counted }
            }
            // Gateways leave the details out.
            _ => self.images(one),
        };
        images + self.non_image(usage)
    }

    fn uncounted_image(&self) -> Cost {
        self.images(self.image()) + self.uncounted_non_image()
    }

    /// Prices a response that counted, and is not surely an image: image tokens count where there
    /// are any.
    fn counted_tokens(&self, usage: &Usage) -> Cost {
        let images = match (usage.image_tokens(), self.price.image_output_microusd_per_mtok) {
            (0, _) => Cost::ZERO,
            (tokens, Some(rate)) => tokens_price(tokens, rate).or_free(),
            (_, None) => Cost::UNKNOWN,
        };
        images + self.non_image(usage)
    }

    /// Returns the most that all but the images of a counted response cost. `candidates` may hold
    /// text that the details leave out, and on refusals it repeats the thoughts, so it is taken
    /// whole.
    fn non_image(&self, usage: &Usage) -> Cost {
        let text =
            usage.candidates.saturating_sub(usage.image_tokens()).saturating_add(usage.thoughts);
        // Tool use and whatever else only the total knows of is billed as input.
        let input = usage
            .prompt
            .max(usage.total.saturating_sub(usage.candidates).saturating_sub(usage.thoughts));
        self.priced(input, text)
    }

    fn uncounted_non_image(&self) -> Cost {
        let mut input =
            self.call.input_tokens_estimate.saturating_mul(INPUT_FACTOR).saturating_add(INPUT_BASE);
        // Nothing is known of how long a film or a document is; the model's limit is.
        if self.call.has_other_files {
            input = u64::MAX;
        }
        let input = input.min(self.model.input_token_limit.unwrap_or(u64::MAX));
        let text = self.model.output_token_limit.unwrap_or(u64::MAX).min(TEXT_TOKENS_AT_MOST);
        self.priced(input, text.saturating_mul(u64::from(self.call.images.max(1))))
    }

    /// The most that input and text cost; they may be free.
    fn priced(&self, input: u64, text: u64) -> Cost {
        // Imagen, and relays with a price by the image, have no tokens to pay for.
        let by_the_image = self.price.image_output_microusd_per_mtok.is_none();
        let part = |tokens: u64, rate: Option<u64>| match rate {
            Some(rate) => tokens_price(tokens, rate).or_free(),
            None if tokens == 0 || by_the_image => Cost::ZERO,
            None => Cost::UNKNOWN,
        };
        part(input, self.price.input_microusd_per_mtok)
            + part(text, self.price.text_output_microusd_per_mtok)
    }

    /// From one image to all that were asked for, with their drafts.
    fn images(&self, one: Cost) -> Cost {
        // A model that cannot make several makes one all the same.
        let images = u64::from(self.call.images.max(1));
        one.times(images.saturating_mul(1 + u64::from(self.drafts)))
    }
}

/// Flex costs half, and what was asked as flex is never served dearer than standard; priority costs
/// 75 to 100 % more and may be served as standard (Gemini API documentation, optimization and
/// priority inference, 2026-08).
fn in_tier(served: Option<ServiceTier>, asked: ServiceTier, cost: Cost) -> Cost {
    let least = cost.at_least_microusd;
    match (served, asked) {
        (Some(ServiceTier::Standard), _) | (None, ServiceTier::Standard) => cost,
        (Some(ServiceTier::Flex), _) => Cost {
            at_least_microusd: least / 2,
            at_most_microusd: cost.at_most_microusd.map(|most| most.div_ceil(2)),
        },
        (Some(ServiceTier::Priority), _) => {
            Cost { at_least_microusd: least.saturating_add(least / 4 * 3), ..cost.times(2) }
        }
        (None, ServiceTier::Flex) => Cost { at_least_microusd: least / 2, ..cost },
        (None, ServiceTier::Priority) => cost.times(2),
        (Some(ServiceTier::Other), _) | (None, ServiceTier::Other) => cost.times(2).or_free(),
    }
}

/// The price of some tokens, rounded down and up.
fn tokens_price(tokens: u64, microusd_per_mtok: u64) -> Cost {
    let product = u128::from(tokens) * u128::from(microusd_per_mtok);
    let whole = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    Cost {
        at_least_microusd: whole(product / 1_000_000),
        at_most_microusd: Some(whole(product.div_ceil(1_000_000))),
    }
}

impl Cost {
    /// From nothing to as much as before.
    fn or_free(self) -> Self {
        Self { at_least_microusd: 0, ..self }
    }

    /// From once to so many times as much.
    fn times(self, most: u64) -> Self {
        let at_most = self.at_most_microusd.map(|one| one.saturating_mul(most));
        Self { at_most_microusd: at_most, ..self }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, Uri};
    use proptest::prelude::*;

    use super::*;
    use crate::scan::TokenCount;

    fn call(model: &str, body: &str) -> Call {
        let uri = format!("/v1beta/models/{model}:generateContent").parse().unwrap();
        Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(body.as_bytes()))
    }

    fn cost(call: &Call, verdict: &Verdict, usage: Option<&Usage>) -> Cost {
        cost_of(Catalog::builtin(), call, verdict, usage)
    }

    fn usage(prompt: u64, image: u64, text: u64, thoughts: u64) -> Usage {
        Usage {
            prompt,
            candidates: image + text,
            thoughts,
            total: prompt + image + text + thoughts,
            candidates_details: vec![TokenCount { modality: "IMAGE".into(), tokens: image }],
        }
    }

    const IN_4K: &str = r#"{"generationConfig":{"imageConfig":{"imageSize":"4K"}}}"#;

    #[test]
    fn what_is_surely_free_costs_nothing_whatever_was_counted() {
        let call = call("gemini-3-pro-image", "{}");
        let counted = usage(1000, 2000, 30, 400);
        for verdict in [
            Verdict::new(Outcome::Overloaded),
            Verdict::new(Outcome::NoImage).with_charge(Charge::Waived),
            Verdict::not_sent(),
        ] {
            assert_eq!(cost(&call, &verdict, Some(&counted)), Cost::ZERO);
        }
    }

    #[test]
    fn a_counted_image_costs_its_tokens_and_at_most_all_others() {
        let call = call("gemini-3-pro-image", IN_4K);
        // 2,000 image tokens at $120 a million; 100 of input at $2, 50 of text and 300 of thoughts
        // at $12.
        let cost = cost(&call, &Verdict::delivering(), Some(&usage(100, 2000, 50, 300)));
        assert_eq!(
            cost,
            Cost { at_least_microusd: 240_000, at_most_microusd: Some(240_000 + 200 + 600 + 3600) }
        );
    }

    #[test]
    fn counted_drafts_widen_the_interval_from_one_image_to_all_of_them() {
        let call = call(
            "gemini-3-pro-image",
            r#"{"generationConfig":{"imageConfig":{"imageSize":"1K"}}}"#,
        );
        let cost = cost(&call, &Verdict::delivering(), Some(&usage(0, 3 * 1120, 0, 0)));
        assert_eq!(cost, Cost { at_least_microusd: 134_000, at_most_microusd: Some(3 * 134_400) });
    }

    #[test]
    fn an_image_that_is_only_expected_may_cost_nothing_and_one_that_came_costs_its_price() {
        let call = call("gemini-3-pro-image", "{}");
        let came = cost(&call, &Verdict::delivering(), None);
        let expected = cost(&call, &Verdict::delivering_stream(), None);
        assert_eq!(came.at_least_microusd, 134_000);
        assert_eq!(expected, Cost { at_least_microusd: 0, ..came });
    }

    #[test]
    fn an_uncounted_image_of_unknown_size_may_be_any_of_the_models_sizes() {
        let cost = cost(&call("gemini-3.1-flash-image", "{}"), &Verdict::delivering(), None);
        assert!(cost.contains(44_820) && cost.contains(151_200), "{cost}");
        assert!(!cost.contains(44_000));
        let nano = super::cost_of(
            Catalog::builtin(),
            &call("gemini-2.5-flash-image", "{}"),
            &Verdict::delivering(),
            None,
        );
        assert_eq!(nano.at_least_microusd, 38_700);
        assert!(nano.contains(39_000));
    }

    #[test]
    fn a_refusal_costs_its_tokens_at_most() {
        let call = call("gemini-3-pro-image", "{}");
        // Seen in BerriAI/litellm#20357: 1,119 of input, 240 of thoughts, and `candidates` repeats
        // the thoughts on some refusals.
        let counted =
            Usage { prompt: 1119, candidates: 240, thoughts: 240, total: 1359, ..Usage::default() };
        let refused = cost(&call, &Verdict::new(Outcome::ContentBlocked), Some(&counted));
        assert_eq!(refused, Cost::up_to(1119 * 2 + 480 * 12));
        assert!(refused.contains(1119 * 2 + 240 * 12));
        let uncounted = cost(&call, &Verdict::new(Outcome::PromptBlocked), None);
        assert!(
            uncounted.at_most_microusd.is_some_and(|most| most < 134_000),
            "no image was made: {uncounted}"
        );
    }

    #[test]
    fn what_may_have_been_paid_is_bounded_by_the_image_with_its_drafts() {
        let cost = cost(&call("gemini-3-pro-image", IN_4K), &Verdict::interrupted(), None);
        assert_eq!(cost.at_least_microusd, 0);
        assert!(cost.contains(240_000) && cost.contains(3 * 240_000), "{cost}");
    }

    #[test]
    fn a_count_met_before_a_break_is_not_the_last_word() {
        let cost = cost(
            &call("gemini-3-pro-image", IN_4K),
            &Verdict::interrupted(),
            Some(&usage(10, 0, 5, 0)),
        );
        assert!(cost.contains(0) && cost.contains(240_000), "{cost}");
    }

    #[test]
    fn a_list_price_is_what_the_list_says_in_the_tier_that_is_asked_for() {
        let list = |model: &str, body: &str| {
            list_price(&Platform::GeminiApi, Catalog::builtin(), &call(model, body))
        };
        assert_eq!(list("gemini-3-pro-image", IN_4K), Cost::exactly(240_000));
        assert_eq!(list("gemini-2.5-flash-image", "{}"), Cost::exactly(39_000));
        assert_eq!(list("gemini-3-pro-image", r#"{"serviceTier":"flex"}"#), Cost::exactly(67_000));
        let dear = list("gemini-3-pro-image", r#"{"serviceTier":"priority"}"#);
        assert_eq!(dear, Cost::exactly(268_000));
        assert_eq!(list("gemini-99-image", "{}"), Cost::UNKNOWN);
        // The catalogue has no price of a relay: it is the user's own.
        let relay = Platform::other("relay");
        let unpriced = list_price(&relay, Catalog::builtin(), &call("gemini-3-pro-image", "{}"));
        assert_eq!(unpriced, Cost::UNKNOWN);
    }

    #[test]
    fn an_unknown_model_is_bounded_by_nothing() {
        assert_eq!(
            cost(&call("gemini-99-image", "{}"), &Verdict::interrupted(), None),
            Cost::UNKNOWN
        );
        assert_eq!(
            cost(&call("gemini-99-image", "{}"), &Verdict::delivering(), None).at_most_microusd,
            None
        );
        assert_eq!(cost(&call("gemini-99-image", "{}"), &Verdict::not_sent(), None), Cost::ZERO);
    }

    /// A cap of $7 with four parallel calls made 2 of 50 images, since each unsized call to Pro was
    /// reserved at eleven images of 4K, $2.74 (issue 11, fault 9).
    #[test]
    fn an_unsized_call_is_reserved_at_the_size_that_will_be_drawn() {
        let catalog = Catalog::builtin();
        let most = |model: &str, body: &str, drafts| {
            worst_case(catalog, &call(model, body), drafts).at_most_microusd.unwrap()
        };
        let pro = "gemini-3-pro-image";
        let in_1k = r#"{"generationConfig":{"imageConfig":{"imageSize":"1K"}}}"#;
        let in_512 = r#"{"generationConfig":{"imageConfig":{"imageSize":"512"}}}"#;
        // 8,192 tokens of thoughts at $12, and 256 of input at $2.
        let other = 98_304 + 512;
        for (body, drafts, images) in [
            ("{}", None, 11 * 134_400),
            ("{}", Some(0), 134_400),
            ("{}", Some(2), 3 * 134_400),
            (in_1k, Some(2), 3 * 134_400),
            (IN_4K, Some(2), 3 * 240_000),
            // Pro has no 512: the API answers 400, a proxy may draw any size.
            (in_512, Some(0), 240_000),
        ] {
            assert_eq!(most(pro, body, drafts), images + other, "{body} {drafts:?}");
        }
        // It neither thinks nor drafts, and has one size; but it is retired, and what may serve its
        // calls is dearer.
        let (flash25, flash31) = ("gemini-2.5-flash-image", "gemini-3.1-flash-image");
        for (body, drafts) in [("{}", Some(2)), (IN_4K, None)] {
            assert_eq!(most(flash25, body, drafts), most(flash31, body, drafts));
        }
        assert_eq!(worst_case(catalog, &call("gemini-99-image", "{}"), Some(0)), Cost::UNKNOWN);
    }

    #[test]
    fn the_expected_cost_is_that_of_the_final_images_and_lies_below_the_worst_case() {
        let catalog = Catalog::builtin();
        let cost = |model: &str, body: &str| expected(catalog, &call(model, body));
        let pro = "gemini-3-pro-image";
        let other = 529 * 12;
        assert_eq!(cost(pro, "{}"), Cost::exactly(134_400 + other));
        assert_eq!(cost(pro, IN_4K), Cost::exactly(240_000 + other));
        assert_eq!(cost("gemini-3.1-flash-image", "{}"), Cost::exactly(67_200 + 529 * 3));
        assert_eq!(cost("gemini-2.5-flash-image", "{}"), Cost::exactly(39_000));
        assert_eq!(
            cost(pro, r#"{"generationConfig":{"responseModalities":["TEXT"]}}"#),
            Cost::exactly(other)
        );
        assert_eq!(
            cost(pro, r#"{"generationConfig":{"candidateCount":2}}"#),
            Cost::exactly(2 * (134_400 + other))
        );
        assert_eq!(cost(pro, r#"{"serviceTier":"flex"}"#), Cost::exactly((134_400 + other) / 2));
        assert_eq!(
            cost(pro, r#"{"serviceTier":"priority"}"#),
            Cost::exactly(2 * (134_400 + other))
        );
        // Four tokens of text at $2.
        let text = r#"{"contents":[{"parts":[{"text":"a red apple, x"}]}]}"#;
        assert_eq!(cost(pro, text), Cost::exactly(134_400 + other + 8));
        assert_eq!(cost("gemini-99-image", "{}"), Cost::UNKNOWN);
    }

    #[test]
    fn a_call_that_cannot_be_charged_costs_nothing() {
        let count = Uri::from_static("/v1beta/models/gemini-3-pro-image:countTokens");
        let batch = Uri::from_static("/v1beta/models/gemini-3-pro-image:batchGenerateContent");
        let call = |method, uri| Call::parse(&method, uri, &HeaderMap::new(), None);
        let catalog = Catalog::builtin();
        for free in [call(Method::POST, &count), call(Method::GET, &batch)] {
            assert_eq!(cost(&free, &Verdict::delivering(), None), Cost::ZERO);
            assert_eq!(worst_case(catalog, &free, None), Cost::ZERO);
            assert_eq!(expected(catalog, &free), Cost::ZERO);
        }
        assert_eq!(expected(catalog, &call(Method::POST, &batch)), Cost::UNKNOWN);
        assert_eq!(worst_case(catalog, &call(Method::POST, &batch), None), Cost::UNKNOWN);
        assert_eq!(worst_case(catalog, &Call::unrecognised(), None), Cost::UNKNOWN);
    }

    #[test]
    fn tiers_move_the_end_they_may_move() {
        let standard = cost(
            &call("gemini-3-pro-image", "{}"),
            &Verdict::delivering(),
            Some(&usage(0, 1120, 0, 0)),
        );
        let flex = cost(
            &call("gemini-3-pro-image", r#"{"serviceTier":"flex"}"#),
            &Verdict::delivering(),
            Some(&usage(0, 1120, 0, 0)),
        );
        let priority = cost(
            &call("gemini-3-pro-image", r#"{"serviceTier":"priority"}"#),
            &Verdict::delivering(),
            Some(&usage(0, 1120, 0, 0)),
        );
        assert_eq!(flex, Cost { at_least_microusd: 67_000, ..standard });
        assert_eq!(priority, Cost { at_most_microusd: Some(268_800), ..standard });
    }

    fn served(model: &str, tier: Option<ServiceTier>) -> ServedBy {
        ServedBy { tier, ..ServedBy::new() }.named(model)
    }

    /// An image of Nano Banana 2.1 that came for a call to Pro was reported at Pro's price.
    #[test]
    fn the_response_decides_the_price_and_not_the_request() {
        let call = call("gemini-3-pro-image", r#"{"serviceTier":"priority"}"#);
        let price = |model: &str, tier, verdict: &Verdict| {
            let usage = usage(0, 1120, 0, 0);
            cost_served(Catalog::builtin(), &call, &served(model, tier), verdict, Some(&usage))
        };
        let delivered = |model: &str, tier| price(model, tier, &Verdict::delivering());
        let nano = "gemini-nano-banana-2.1";
        let exactly = |least, most| Cost { at_least_microusd: least, at_most_microusd: Some(most) };
        for (model, tier, expected) in [
            (nano, ServiceTier::Standard, Cost::exactly(33_600)),
            (nano, ServiceTier::Flex, Cost::exactly(16_800)),
            (nano, ServiceTier::Priority, exactly(58_800, 67_200)),
            (nano, ServiceTier::Other, Cost::up_to(67_200)),
            ("models/gemini-3-pro-image-001", ServiceTier::Standard, exactly(134_000, 134_400)),
        ] {
            assert_eq!(delivered(model, Some(tier)), expected, "{model} {tier}");
        }
        // Nobody knows what it costs: not what the request says, and nothing from above.
        assert_eq!(delivered("gemini-4-image", None), Cost::UNKNOWN);
        let free = Verdict::not_sent();
        assert_eq!(price("gemini-4-image", None, &free), Cost::ZERO);
        assert_eq!(price("gemini-4-image", None, &Verdict::interrupted()), Cost::UNKNOWN);
    }

    #[test]
    fn a_retired_models_price_holds_that_of_its_successor_until_the_response_names_one() {
        let call = call("gemini-2.5-flash-image", "{}");
        let cost = |served: &ServedBy| {
            cost_served(Catalog::builtin(), &call, served, &Verdict::delivering(), None)
        };
        let silent = cost(&ServedBy::new());
        assert!(silent.contains(38_700) && silent.contains(67_200), "{silent}");
        let own = cost(&served("gemini-2.5-flash-image", None));
        assert!(own.contains(38_700) && !own.contains(67_200), "{own}");
        let other = cost(&served("gemini-3.1-flash-image", None));
        assert!(!other.contains(38_700) && other.contains(67_200), "{other}");
    }

    #[test]
    fn a_relays_own_price_counts_on_its_platform() {
        let mut catalog = Catalog::builtin().clone();
        catalog.extend(
            Catalog::from_toml(
                "[[model]]\nid = \"gemini-3-pro-image\"\nfamily = \"pro\"\nimages = true\nsizes = [\"1K\"]\n[[model.price]]\nplatform = \"relay\"\n\
                 source = \"its list\"\nas_of = \"2026-11-01\"\nper_image_microusd = { \"1K\" = 50_000 }\n",
            )
            .unwrap(),
        );
        let call = call("gemini-3-pro-image", "{}");
        assert_eq!(
            cost_on(&Platform::other("relay"), &catalog, &call, &Verdict::delivering(), None),
            Cost::exactly(50_000)
        );
        assert_eq!(cost_of(&catalog, &call, &Verdict::delivering(), None), Cost::UNKNOWN);
    }

    /// Gateways send counts with some fields left out.
    #[test]
    fn any_field_that_counts_makes_a_count_and_zeros_make_none() {
        let call = call("gemini-3-pro-image", IN_4K);
        let delivered = |usage: Usage| cost(&call, &Verdict::delivering(), Some(&usage));
        let uncounted = cost(&call, &Verdict::delivering(), None);
        assert_eq!(delivered(Usage::default()), uncounted);
        // Without the details, the images may have been eleven.
        let images = 11 * 240_000_u64;
        let counted =
            |tokens| Cost { at_least_microusd: 240_000, at_most_microusd: Some(images + tokens) };
        assert_eq!(delivered(Usage { prompt: 7, ..Usage::default() }), counted(14));
        assert_eq!(delivered(Usage { total: 7, ..Usage::default() }), counted(14));
        assert_eq!(delivered(Usage { candidates: 7, ..Usage::default() }), counted(84));
    }

    #[test]
    fn a_price_that_is_not_listed_bounds_nothing_once_it_is_needed() {
        let mut catalog = Catalog::builtin().clone();
        let model =
            "[[model]]\nid = \"x-image\"\nfamily = \"flash\"\nimages = true\nsizes = [\"1K\"]\n";
        let price = |platform: &str, rest: &str| {
            format!(
                "[[model.price]]\nplatform = \"{platform}\"\nsource = \"a list\"\nas_of = \"2026-11-01\"\n\
                 per_image_microusd = {{ \"1K\" = 10 }}\n{rest}\n"
            )
        };
        let by_token = price("gemini-api", "image_output_microusd_per_mtok = 1_000_000");
        let text = format!("{model}{by_token}{}", price("vertex-ai", ""));
        catalog.extend(Catalog::from_toml(&text).unwrap());
        let call = call("x-image", "{}");
        let only_images = Usage { total: 10, ..usage(0, 10, 0, 0) };
        let delivered = |call: &Call, usage: Usage| {
            cost_of(&catalog, call, &Verdict::delivering(), Some(&usage))
        };
        assert_eq!(delivered(&call, only_images), Cost::exactly(10));
        assert_eq!(delivered(&call, usage(1, 10, 0, 0)).at_most_microusd, None);
        assert_eq!(delivered(&call, usage(0, 10, 1, 0)).at_most_microusd, None);
        // By the image, nothing else is paid. And Vertex AI has a list of its own.
        let uri = Uri::from_static("/v1/publishers/google/models/x-image:generateContent");
        let vertex = Call::parse(&Method::POST, &uri, &HeaderMap::new(), None);
        assert_eq!(delivered(&vertex, usage(1, 10, 1, 0)), Cost::exactly(10));
        assert_eq!(worst_case(&catalog, &vertex, None), Cost::up_to(10));
        assert_eq!(worst_case(&catalog, &call, None), Cost::UNKNOWN);
    }

    #[test]
    fn bounds_shares_and_text_of_an_interval() {
        let wide = Cost { at_least_microusd: 3, at_most_microusd: Some(9) };
        assert_eq!(wide.bounded_by(Cost::up_to(5)), Cost { at_most_microusd: Some(5), ..wide });
        assert_eq!(wide.bounded_by(Cost::up_to(2)), Cost::exactly(3));
        assert_eq!(wide.bounded_by(Cost::up_to(20)), wide);
        assert_eq!(wide.bounded_by(Cost::UNKNOWN), wide);
        let half = Cost { at_least_microusd: 1, at_most_microusd: Some(5) };
        assert_eq!((wide.per_image(2), wide.per_image(0)), (Some(half), None));
        for (cost, text) in [
            (Cost::exactly(134_400), "$0.1344"),
            (Cost { at_least_microusd: 134_400, at_most_microusd: Some(134_410) }, "$0.1344"),
            (Cost::up_to(240_000), "$0.0000 to $0.2400"),
            (Cost::UNKNOWN, "at least $0.0000"),
        ] {
            assert_eq!(cost.to_string(), text);
        }
    }

    #[test]
    fn sums_saturate_and_stay_unbounded() {
        let huge = Cost::exactly(u64::MAX) + Cost::exactly(1);
        assert_eq!(huge, Cost::exactly(u64::MAX));
        assert_eq!(
            [Cost::exactly(1), Cost::UNKNOWN].into_iter().sum::<Cost>(),
            Cost { at_least_microusd: 1, at_most_microusd: None }
        );
    }

    proptest! {
        #[test]
        fn lower_is_never_above_upper(
            model in prop::sample::select(Catalog::builtin().models().map(|model| model.id.clone()).chain(["what-image".to_owned()]).collect::<Vec<_>>()),
            body in prop::sample::select(vec!["{}", IN_4K, r#"{"serviceTier":"flex"}"#, r#"{"serviceTier":"priority","generationConfig":{"candidateCount":4294967295}}"#]),
            outcome in prop::sample::select(Outcome::ALL.to_vec()),
            charge in prop::sample::select(vec![Charge::None, Charge::Waived, Charge::Maybe, Charge::Charged]),
            counts in prop::option::of(prop::array::uniform5(prop_oneof![0_u64..5000, any::<u64>()])),
        ) {
            let usage = counts.map(|[prompt, candidates, thoughts, total, image]| Usage {
                prompt, candidates, thoughts, total,
                candidates_details: vec![TokenCount { modality: "IMAGE".into(), tokens: image }],
            });
            let cost = cost(&call(&model, body), &Verdict::new(outcome).with_charge(charge), usage.as_ref());
            prop_assert!(cost.at_most_microusd.is_none_or(|most| cost.at_least_microusd <= most), "{cost:?}");
            if charge.is_surely_free() {
                prop_assert_eq!(cost, Cost::ZERO);
            }
            let worst = worst_case(Catalog::builtin(), &call(&model, body), None);
            prop_assert!(expected(Catalog::builtin(), &call(&model, body)).at_most_microusd.is_none_or(|most| worst.contains(most)));
            if charge == Charge::Maybe {
                prop_assert!(cost.contains(0));
            }
        }

        /// Whichever reading of the rules is right (drafts free or paid, refusals' input free or
        /// paid), the bill lies inside.
        #[test]
        fn the_interval_holds_the_bill(
            model in prop::sample::select(vec!["gemini-3-pro-image", "gemini-3.1-flash-image", "gemini-nano-banana-2.1"]),
            size in prop::sample::select(vec![ImageSize::K1, ImageSize::K2, ImageSize::K4]),
            drafts in 0_u64..=10,
            (drafts_paid, other_paid, is_counted) in any::<(bool, bool, bool)>(),
            (text, thoughts) in (0_u64..400, 0_u64..2000),
            prompt in "\\PC{1,60}",
        ) {
            let body = serde_json::json!({"contents": [{"parts": [{"text": prompt}]}], "generationConfig": {"imageConfig": {"imageSize": size.as_str()}}});
            let call = call(model, &body.to_string());
            let entry = Catalog::builtin().lookup(model).unwrap();
            let price = entry.price(&Platform::GeminiApi).unwrap();
            let tokens = entry.tokens_per_image[&size];
            let input = prompt.len() as u64;
            let mut bill = tokens * price.image_output_microusd_per_mtok.unwrap();
            if drafts_paid {
                bill *= 1 + drafts;
            }
            if other_paid {
                bill += input * price.input_microusd_per_mtok.unwrap() + (text + thoughts) * price.text_output_microusd_per_mtok.unwrap();
            }
            let counted = usage(input, tokens * (1 + drafts), text, thoughts);
            let cost = cost(&call, &Verdict::delivering(), is_counted.then_some(&counted));
            prop_assert!(cost.contains(bill / 1_000_000), "{} in {cost}", bill / 1_000_000);
            prop_assert!(worst_case(Catalog::builtin(), &call, None).contains(bill / 1_000_000));
            let maybe = super::cost_of(Catalog::builtin(), &call, &Verdict::interrupted(), None);
            prop_assert!(maybe.contains(bill / 1_000_000) && maybe.contains(0));
        }

        /// Whatever served the call, in whatever tier, and whether or not the response says so.
        #[test]
        fn the_interval_holds_the_bill_of_what_served(
            (asked, by) in prop::sample::select(vec![
                ("gemini-3-pro-image", "gemini-3-pro-image"),
                ("gemini-3-pro-image-preview", "gemini-3-pro-image"),
                ("gemini-2.5-flash-image", "gemini-3.1-flash-image"),
                ("gemini-2.5-flash-image-preview", "gemini-3.1-flash-image"),
                ("gemini-3-pro-image", "gemini-nano-banana-2.1"),
            ]),
            size in prop::sample::select(vec![ImageSize::K1, ImageSize::K2, ImageSize::K4]),
            (tier, percent) in prop::sample::select(vec![
                ("standard", 100_u64), ("flex", 50), ("flex", 100), ("priority", 175),
                ("priority", 190), ("priority", 200), ("priority", 100),
            ]),
            (thoughts, drafts) in (0_u64..2000, 0_u64..=10),
            (names_model, names_tier, is_counted, arrives) in any::<(bool, bool, bool, bool)>(),
        ) {
            let body = serde_json::json!({"serviceTier": tier, "generationConfig": {"imageConfig": {"imageSize": size.as_str()}}});
            let call = call(asked, &body.to_string());
            let entry = Catalog::builtin().lookup(by).unwrap();
            let price = entry.price(&Platform::GeminiApi).unwrap();
            let tokens = entry.tokens_per_image[&size] * (1 + drafts);
            let full = tokens * price.image_output_microusd_per_mtok.unwrap()
                + thoughts * price.text_output_microusd_per_mtok.unwrap();
            let bill = full * percent / 100 / 1_000_000;
            // A living model is not replaced in silence.
            let is_silent = Catalog::builtin().lookup(asked).unwrap().retired.is_some();
            let mut served = ServedBy::new();
            if names_model || (!is_silent && asked != by) {
                served = served.named(&format!("models/{by}-001"));
            }
            if names_tier {
                let named = if percent == 100 { "standard" } else { tier };
                served.tier = ServiceTier::served(named);
            }
            let counted = usage(0, tokens, 0, thoughts);
            let verdict = if arrives { Verdict::delivering() } else { Verdict::interrupted() };
            let cost = cost_served(Catalog::builtin(), &call, &served, &verdict, is_counted.then_some(&counted));
            prop_assert!(cost.contains(bill), "{bill} in {cost}");
            if is_silent || asked == by {
                prop_assert!(worst_case(Catalog::builtin(), &call, None).contains(bill));
            }
        }
    }
}
