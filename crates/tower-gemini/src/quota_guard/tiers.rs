//! Lists limits that were published, with their dates: a place to start from, never the truth.
//!
//! Google no longer publishes limits: AI Studio shows them, they differ by project and are not
//! guaranteed. A preset that is too high is corrected by what refusals say; one that is too low
//! wastes quota. Sources contradict each other (10 RPM in one, 150 in another, for sibling models),
//! so each row names its own.

use super::limits::Limits;

/// A project's tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// No billing. Free projects have no quota for image models at all (APIYI, Nano Banana 2 limits,
    /// 2026-03; Google's own 429s say `limit: 0`).
    Free,
    /// Billing linked.
    Tier1,
    /// $100 paid and 3 days (Google, 2026; older pages say $250 and 30 days).
    Tier2,
    /// $1,000 paid and 30 days.
    Tier3,
}

/// Limits that somebody published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishedTier {
    /// The model as the source calls it, by today's id.
    pub model: &'static str,
    /// The tier.
    pub tier: Tier,
    /// The limits stated.
    pub limits: Limits,
    /// When they were published.
    pub as_of: &'static str,
    /// Who published them.
    pub source: &'static str,
}

/// Images per minute that a source leaves out.
const NO_IPM: u64 = u64::MAX;

const FLASH: &str = "gemini-3.1-flash-image";
const PRO: &str = "gemini-3-pro-image";
const NANO_BANANA: (&str, &str) = ("2026-03", "APIYI, Nano Banana 2 limits");
/// It gives the image model the row of the text model that it is built on; its IPM is shown in the
/// dashboard only.
const GUIDE_429: (&str, &str) = ("2026-02", "APIYI, guide to 429s, row Gemini 3 Pro");

/// Model, tier, RPM, IPM, RPD, source.
const ROWS: [(&str, Tier, u64, u64, u64, (&str, &str)); 7] = [
    (FLASH, Tier::Free, 0, 0, 0, NANO_BANANA),
    (FLASH, Tier::Tier1, 10, 10, 1_000, NANO_BANANA),
    (FLASH, Tier::Tier2, 30, 30, 5_000, NANO_BANANA),
    (FLASH, Tier::Tier3, 60, 60, 10_000, NANO_BANANA),
    (PRO, Tier::Free, 0, 0, 0, NANO_BANANA),
    (PRO, Tier::Tier1, 150, NO_IPM, 1_000, GUIDE_429),
    (PRO, Tier::Tier2, 1_000, NO_IPM, 10_000, GUIDE_429),
];

/// Returns every published row known to us.
pub fn all() -> impl Iterator<Item = PublishedTier> {
    ROWS.into_iter().map(|(model, tier, rpm, ipm, rpd, (as_of, source))| {
        let limits = Limits::unlimited().rpm(rpm).rpd(rpd);
        let limits = if ipm == NO_IPM { limits } else { limits.ipm(ipm) };
        PublishedTier { model, tier, limits, as_of, source }
    })
}

/// Returns the newest published limits of a model at a tier, where anybody published any.
///
/// ```
/// use tower_gemini::quota_guard::{QuotaDimension, tiers::{Tier, published}};
///
/// let row = published("gemini-3.1-flash-image", Tier::Tier1).unwrap();
/// assert_eq!(row.limits.get(QuotaDimension::ImagesPerMinute), Some(10));
/// assert_eq!(row.as_of, "2026-03");
/// ```
#[must_use]
pub fn published(model: &str, tier: Tier) -> Option<PublishedTier> {
    all().filter(|row| row.model == model && row.tier == tier).max_by_key(|row| row.as_of)
}
