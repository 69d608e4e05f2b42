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
/// It gives 250,000 tokens a minute to free projects and 1 to 2 million to others, without saying
/// which model has how many: too vague to be a limit here.
const GUIDE_429_TEXT: (&str, &str) = ("2026-02", "APIYI, guide to 429s");

/// The same guide on the cut of the free tier of about 2025-12-07. Its own table says 100 and 250 a
/// day for the time after it.
const BEFORE_THE_CUT: (&str, &str) = ("2025-11", "APIYI, guide to 429s, before the cut");
const AFTER_THE_CUT: (&str, &str) =
    ("2025-12", "APIYI, guide to 429s, after the cut; the lower end of 20 to 100 a day");

/// Model, tier, RPM, IPM, RPD, source.
type Row = (&'static str, Tier, u64, u64, u64, (&'static str, &'static str));

const ROWS: [Row; 21] = [
    (FLASH, Tier::Free, 0, 0, 0, NANO_BANANA),
    (FLASH, Tier::Tier1, 10, 10, 1_000, NANO_BANANA),
    (FLASH, Tier::Tier2, 30, 30, 5_000, NANO_BANANA),
    (FLASH, Tier::Tier3, 60, 60, 10_000, NANO_BANANA),
    (PRO, Tier::Free, 0, 0, 0, NANO_BANANA),
    (PRO, Tier::Tier1, 150, NO_IPM, 1_000, GUIDE_429),
    (PRO, Tier::Tier2, 1_000, NO_IPM, 10_000, GUIDE_429),
    // The other side on free projects: the row of the text model, which image models do not get.
    (PRO, Tier::Free, 10, NO_IPM, 100, GUIDE_429),
    ("gemini-2.5-pro", Tier::Free, 5, NO_IPM, 100, GUIDE_429_TEXT),
    ("gemini-2.5-pro", Tier::Tier1, 150, NO_IPM, 1_000, GUIDE_429_TEXT),
    ("gemini-2.5-pro", Tier::Tier2, 1_000, NO_IPM, 10_000, GUIDE_429_TEXT),
    ("gemini-2.5-flash", Tier::Free, 10, NO_IPM, 250, GUIDE_429_TEXT),
    ("gemini-2.5-flash", Tier::Tier1, 300, NO_IPM, 1_500, GUIDE_429_TEXT),
    ("gemini-2.5-flash", Tier::Tier2, 2_000, NO_IPM, 10_000, GUIDE_429_TEXT),
    ("gemini-2.5-pro", Tier::Free, 10, NO_IPM, 250, BEFORE_THE_CUT),
    ("gemini-2.5-pro", Tier::Free, 5, NO_IPM, 20, AFTER_THE_CUT),
    ("gemini-2.5-flash", Tier::Free, 15, NO_IPM, 250, BEFORE_THE_CUT),
    ("gemini-2.5-flash", Tier::Free, 10, NO_IPM, 20, AFTER_THE_CUT),
    ("gemini-2.5-flash-lite", Tier::Free, 15, NO_IPM, 1_000, GUIDE_429_TEXT),
    ("gemini-2.5-flash-lite", Tier::Tier1, 300, NO_IPM, 1_500, GUIDE_429_TEXT),
    ("gemini-2.5-flash-lite", Tier::Tier2, 2_000, NO_IPM, 10_000, GUIDE_429_TEXT),
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

#[cfg(test)]
mod tests {
    use super::super::limits::QuotaDimension::RequestsPerDay;
    use super::*;

    // A source that is older, or says the opposite, is listed and not taken.
    #[test]
    fn every_side_is_listed_and_the_newest_is_taken() {
        let rpd = |row: PublishedTier| row.limits.get(RequestsPerDay).unwrap();
        let listed = |model, tier| {
            let rows = all().filter(|row| row.model == model && row.tier == tier);
            rows.map(rpd).collect::<Vec<_>>()
        };
        let taken = |model, tier| published(model, tier).map(rpd);
        assert_eq!(listed("gemini-2.5-flash", Tier::Free), [250, 250, 20]);
        assert_eq!(taken("gemini-2.5-pro", Tier::Free), Some(100));
        assert_eq!(listed(PRO, Tier::Free), [0, 100]);
        assert_eq!(taken(PRO, Tier::Free), Some(0), "image models have no free tier");
    }
}
