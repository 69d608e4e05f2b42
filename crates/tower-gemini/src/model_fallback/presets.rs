//! The chains that published guides recommend, each cited.
//!
//! They contradict each other: two of them leave Pro for Flash because Pro fails in the peak hours,
//! one leaves Flash for Pro because Flash does. None of them was measured by Google: which way is
//! better shows in your own trails. The ids are today's, in place of the retired ones that the
//! guides name.

use tower_gemini_core::target::Target;

use super::Chain;
use crate::jittered_retry::RetryPolicy;
use crate::jittered_retry::presets::{exponential_1s_x2, exponential_2s_to_60s, rate_limit_5s};

const PRO: &str = "gemini-3-pro-image";
/// Nano Banana 2.
const FLASH: &str = "gemini-3.1-flash-image";
/// Nano Banana, retired on 2026-10-02: its successor takes its place.
const FLASH_25: &str = "gemini-2.5-flash-image";
/// Retired on 2026-08-17, and asked by `predict`: its successor takes its place.
const IMAGEN_FAST: &str = "imagen-4.0-fast-generate-001";

/// A chain as a source states it.
///
/// ```
/// use tower_gemini::ModelFallbackLayer;
/// use tower_gemini::model_fallback::presets::FLASH_TO_PRO;
///
/// let layer = ModelFallbackLayer::new(FLASH_TO_PRO.chain());
/// # let _ = layer;
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ChainPreset {
    /// What it is called here.
    pub name: &'static str,
    /// Who states it, and when.
    pub source: &'static str,
    /// Models and their attempts, in order.
    pub links: &'static [(&'static str, u32)],
    /// Whether a call that begins in the middle goes on from the beginning.
    pub wraps: bool,
    /// How a model with so many attempts is retried.
    retry: fn(u32) -> RetryPolicy,
}

/// Pro, three attempts by the waits of the guide's client, a 503 at once on to 2.5 Flash.
pub const PRO_TO_FLASH_25: ChainPreset = ChainPreset {
    name: "pro_to_flash_25",
    source: "operators' error guide for Nano Banana Pro, 2026-02",
    links: &[(PRO, 3), (FLASH_25, 1)],
    wraps: false,
    retry: |attempts| rate_limit_5s().attempts(attempts),
};

/// Nano Banana 2 three times, then Pro twice; waits of 1, 2 s and up to 1 s more between the
/// attempts.
///
/// It wraps: a call that asks for Pro goes on to Nano Banana 2, which is the source's chain for its
/// peak hours.
pub const FLASH_TO_PRO: ChainPreset = ChainPreset {
    name: "flash_to_pro",
    source: "APIYI, 503s on Nano Banana 2, 2026-03",
    links: &[(FLASH, 3), (PRO, 2)],
    wraps: true,
    retry: |attempts| exponential_1s_x2().attempts(attempts),
};

/// [`FLASH_TO_PRO`] in the peak hours (10 to 14 UTC by its source) and with `prefer_fast` reversed:
/// Pro twice, then Nano Banana 2 three times.
pub const PRO_TO_FLASH: ChainPreset =
    ChainPreset { name: "pro_to_flash", links: &[(PRO, 2), (FLASH, 3)], ..FLASH_TO_PRO };

/// Pro, 2.5 Flash, Imagen 4 Fast, two attempts each.
///
/// Imagen is retired; its successor takes its place as the last link.
pub const PRO_TO_FLASH_25_TO_IMAGEN: ChainPreset = ChainPreset {
    name: "pro_to_flash_25_to_imagen",
    source: "operators' guide to RESOURCE_EXHAUSTED, 2026-02",
    links: &[(PRO, 2), (FLASH_25, 2), (IMAGEN_FAST, 2)],
    wraps: false,
    retry: |attempts| exponential_2s_to_60s().attempts(attempts),
};

/// Every preset.
pub const ALL: [ChainPreset; 4] =
    [PRO_TO_FLASH_25, FLASH_TO_PRO, PRO_TO_FLASH, PRO_TO_FLASH_25_TO_IMAGEN];

impl ChainPreset {
    /// The chain.
    #[must_use]
    pub fn chain(&self) -> Chain {
        let chain = self.links.iter().fold(Chain::default(), |chain, &(model, attempts)| {
            let target = Target::new(model).attempts(attempts);
            if attempts > 1 {
                chain.then_retried(target, (self.retry)(attempts))
            } else {
                chain.then(target)
            }
        });
        if self.wraps { chain.wrapping() } else { chain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Each source's own models and attempts.
    #[test]
    fn presets_carry_the_models_and_attempts_of_their_sources() {
        for (preset, links) in [
            (PRO_TO_FLASH_25, vec![(PRO, 3), (FLASH_25, 1)]),
            (FLASH_TO_PRO, vec![(FLASH, 3), (PRO, 2)]),
            (PRO_TO_FLASH, vec![(PRO, 2), (FLASH, 3)]),
            (PRO_TO_FLASH_25_TO_IMAGEN, vec![(PRO, 2), (FLASH_25, 2), (IMAGEN_FAST, 2)]),
        ] {
            let chain = preset.chain();
            let of_chain = chain
                .targets()
                .map(|target| (target.model().as_str(), target.max_attempts().unwrap()));
            assert_eq!(of_chain.collect::<Vec<_>>(), links, "{}", preset.name);
        }
    }
}
