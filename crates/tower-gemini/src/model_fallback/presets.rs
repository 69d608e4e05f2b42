//! The chains of the articles, each cited.
//!
//! They contradict each other: 001 and 004 flee from Pro to Flash because Pro fails in the peak
//! hours, 002 flees from Flash to Pro because Flash does. None of them was measured by Google:
//! which way is better shows in your own trails. The ids are today's, in place of the retired ones
//! that the articles name.
//!
//! Articles by number: `000` outage post-mortem of 2026-01-21, `001` error hub (Feb 2026), `002`
//! 503 on Nano Banana 2 (Mar 2026), `004` RESOURCE_EXHAUSTED guide (Feb 2026).

use tower_gemini_core::target::Target;

use super::Chain;
use crate::jittered_retry::presets::{article_001_client, article_002_chain, article_004_tenacity};

const PRO: &str = "gemini-3-pro-image";
/// Nano Banana 2, retired on 2026-10-29: a call that knows the day goes to its successor.
const FLASH: &str = "gemini-3.1-flash-image";
/// Nano Banana, retired on 2026-10-02: likewise.
const FLASH_25: &str = "gemini-2.5-flash-image";
/// Retired on 2026-08-17, and asked by `predict`: a call for `generateContent` passes it over, or
/// goes to its successor.
const IMAGEN_FAST: &str = "imagen-4.0-fast-generate-001";

/// Article 001: Pro, 3 attempts by its client's waits, a 503 at once on to 2.5 Flash.
#[must_use]
pub fn article_001() -> Chain {
    Chain::new()
        .then_retried(Target::new(PRO).attempts(3), article_001_client())
        .then(Target::new(FLASH_25).attempts(1))
}

/// Article 002, off-peak: Nano Banana 2 three times, then Pro twice; waits of 1, 2 s and up to 1 s
/// more between the attempts.
///
/// It wraps: a call that asks for Pro goes on to Nano Banana 2, which is the article's chain for
/// its peak hours.
#[must_use]
pub fn article_002() -> Chain {
    Chain::new()
        .then_retried(Target::new(FLASH).attempts(3), article_002_chain(3))
        .then_retried(Target::new(PRO).attempts(2), article_002_chain(2))
        .wrapping()
}

/// Article 002, peak hours (10 to 14 UTC by the article) and its `prefer_fast` reversed: Pro twice,
/// then Nano Banana 2 three times.
#[must_use]
pub fn article_002_peak() -> Chain {
    Chain::new()
        .then_retried(Target::new(PRO).attempts(2), article_002_chain(2))
        .then_retried(Target::new(FLASH).attempts(3), article_002_chain(3))
        .wrapping()
}

/// Article 004: Pro, 2.5 Flash, Imagen 4 Fast, two attempts each.
///
/// Imagen is dead and its successor (Firebase AI Logic, migration page) is Nano Banana 2: with a
/// day handed in, that is the last link; without one, Imagen is passed over, because it is asked in
/// another way.
#[must_use]
pub fn article_004() -> Chain {
    [PRO, FLASH_25, IMAGEN_FAST].into_iter().fold(Chain::new(), |chain, model| {
        chain.then_retried(Target::new(model).attempts(2), article_004_tenacity().attempts(2))
    })
}

/// Every preset with the name of its function.
#[must_use]
pub fn all() -> Vec<(&'static str, Chain)> {
    vec![
        ("article_001", article_001()),
        ("article_002", article_002()),
        ("article_002_peak", article_002_peak()),
        ("article_004", article_004()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    // Requirements L of the articles: each row's own models and attempts.
    #[test]
    fn presets_carry_the_models_and_attempts_of_their_articles() {
        let rows = |chain: Chain| -> Vec<(String, Option<u32>)> {
            chain
                .targets()
                .map(|target| (target.model().to_string(), target.max_attempts()))
                .collect()
        };
        let row = |model: &str, attempts| (model.to_owned(), Some(attempts));
        assert_eq!(rows(article_001()), [row(PRO, 3), row(FLASH_25, 1)]);
        assert_eq!(rows(article_002()), [row(FLASH, 3), row(PRO, 2)]);
        assert_eq!(rows(article_002_peak()), [row(PRO, 2), row(FLASH, 3)]);
        assert_eq!(rows(article_004()), [row(PRO, 2), row(FLASH_25, 2), row(IMAGEN_FAST, 2)]);
    }
}
