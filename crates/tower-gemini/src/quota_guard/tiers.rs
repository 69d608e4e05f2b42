//! Limits that were published, as data with their date: a place to start from, never the truth.
//!
//! Google no longer publishes limits; they are shown in AI Studio, differ by project and are not
//! guaranteed. A preset that is too high is corrected by what refusals say; one that is too low
//! wastes allowance. Where the articles contradict each other (article 003 says 10 RPM where 004
//! says 150 to 300 for another model) both are here, each under its own source.

use super::limits::Limits;

/// A project's tier. Free projects have no quota for image models at all (article 003; Google's own
/// 429s say `limit: 0`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// No billing.
    Free,
    /// Billing linked.
    Tier1,
    /// $100 paid and 3 days (Google, 2026; older pages say $250 and 30 days).
    Tier2,
    /// $1,000 paid and 30 days.
    Tier3,
}

/// Limits somebody published.
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

const fn row(
    model: &'static str,
    tier: Tier,
    limits: Limits,
    as_of: &'static str,
    source: &'static str,
) -> PublishedTier {
    PublishedTier { model, tier, limits, as_of, source }
}

const NONE: Limits = Limits::unlimited();

/// Every published row known to us.
pub const PUBLISHED: &[PublishedTier] = &[
    row("gemini-3.1-flash-image", Tier::Free, NONE.rpm(0).ipm(0).rpd(0), "2026-03", "article 003"),
    row(
        "gemini-3.1-flash-image",
        Tier::Tier1,
        NONE.rpm(10).ipm(10).rpd(1_000),
        "2026-03",
        "article 003",
    ),
    row(
        "gemini-3.1-flash-image",
        Tier::Tier2,
        NONE.rpm(30).ipm(30).rpd(5_000),
        "2026-03",
        "article 003",
    ),
    row(
        "gemini-3.1-flash-image",
        Tier::Tier3,
        NONE.rpm(60).ipm(60).rpd(10_000),
        "2026-03",
        "article 003",
    ),
    // Article 004 gives the image model the row of the text model it is built on; its IPM is shown
    // in the dashboard only.
    row("gemini-3-pro-image", Tier::Free, NONE.rpm(0).ipm(0).rpd(0), "2026-03", "article 003"),
    row(
        "gemini-3-pro-image",
        Tier::Tier1,
        NONE.rpm(150).rpd(1_000),
        "2026-02",
        "article 004, row Gemini 3 Pro",
    ),
    row(
        "gemini-3-pro-image",
        Tier::Tier2,
        NONE.rpm(1_000).rpd(10_000),
        "2026-02",
        "article 004, row Gemini 3 Pro",
    ),
];

/// The newest published limits of a model at a tier, where anybody published any.
///
/// ```
/// use tower_gemini::quota_guard::{QuotaDimension, tiers::{Tier, published}};
///
/// let row = published("gemini-3.1-flash-image", Tier::Tier1).unwrap();
/// assert_eq!(row.limits.get(QuotaDimension::ImagesPerMinute), Some(10));
/// assert_eq!(row.as_of, "2026-03");
/// ```
#[must_use]
pub fn published(model: &str, tier: Tier) -> Option<&'static PublishedTier> {
    PUBLISHED
        .iter()
        .filter(|row| row.model == model && row.tier == tier)
        .max_by_key(|row| row.as_of)
}
