//! What a call can cost before its first byte is sent. Pure.

use tower_gemini_core::call::{Call, ImageSize, ModelId};
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::cost;

use super::SpendAmounts;

/// Describes what may be done for one call: where it may be sent, how often, and how many attempts
/// may be paid for without an image.
///
/// ```
/// use http::{HeaderMap, Method, Uri};
/// use tower_gemini::{call::{Call, ImageSize, ModelId}, catalog::Catalog};
/// use tower_gemini::spending::Plan;
///
/// let uri = Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
/// let body = br#"{"contents":[{"parts":[{"text":"a cat"}]}],"generationConfig":{"imageConfig":{"imageSize":"4K"}}}"#;
/// let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(body));
///
/// let plan = Plan::new(&call).attempts(5);
/// let worst = plan.worst_case(Catalog::builtin());
/// assert_eq!(worst.attempts, 5);
/// // Only an attempt that is surely free is followed by another: five cost at most what one costs.
/// assert_eq!(worst.cost(), Plan::new(&call).worst_case(Catalog::builtin()).cost());
/// // What the caller allows to be lost comes on top.
/// let risky = plan.allowance(1).worst_case(Catalog::builtin());
/// assert_eq!(risky.at_most_microusd, 2 * worst.at_most_microusd);
/// ```
#[derive(Debug, Clone)]
pub struct Plan {
    /// What may be sent, and how often each.
    targets: Vec<(Call, u32)>,
    allowance: u32,
    drafts: Option<u32>,
}

impl Plan {
    /// Plans one attempt at what is asked for.
    #[must_use]
    pub fn new(call: &Call) -> Self {
        Self { targets: vec![(call.clone(), 1)], allowance: 0, drafts: None }
    }

    /// Allows so many attempts at what is asked for.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        if let Some((_, first)) = self.targets.first_mut() {
            *first = attempts;
        }
        self
    }

    /// Allows so many further attempts at another model, or at another size (`None` leaves the size
    /// to the model).
    #[must_use]
    pub fn or_target(mut self, model: ModelId, size: Option<ImageSize>, attempts: u32) -> Self {
        if let Some((call, _)) = self.targets.first() {
            let mut call = call.clone();
            (call.model, call.size) = (Some(model), size);
            self.targets.push((call, attempts));
        }
        self
    }

    /// Allows so many attempts after one that may have been paid for.
    #[must_use]
    pub fn allowance(mut self, resends: u32) -> Self {
        self.allowance = resends;
        self
    }

    /// Assumes so many drafts beside each image. Default: those that the catalogue knows of.
    #[must_use]
    pub fn drafts(mut self, drafts: u32) -> Self {
        self.drafts = Some(drafts);
        self
    }

    /// Returns the most that the plan can come to, whatever happens. Its lower end is nothing.
    ///
    /// A charged response is never followed by another attempt, and one that may have been charged
    /// only within the allowance. So at most one attempt more than the allowance is paid, at the
    /// worst case of the dearest target each. An unknown model bounds nothing.
    #[must_use]
    pub fn worst_case(&self, catalog: &Catalog) -> SpendAmounts {
        let sends = self.targets.iter().map(|(_, sends)| u64::from(*sends)).sum();
        let targets = self.targets.iter().filter(|(_, sends)| *sends > 0);
        let dearest = targets.map(|(call, _)| worst_case(catalog, call, self.drafts)).max();
        let paid = u64::from(self.allowance).saturating_add(1).min(sends);
        let money = dearest.unwrap_or(0).saturating_mul(paid);
        SpendAmounts {
            certain_microusd: money,
            at_most_microusd: money,
            attempts: sends,
            quota_units: sends,
            wall_ms: 0,
        }
    }
}

/// The worst case of one attempt in micro-dollars; `u64::MAX` where nothing bounds it.
pub(super) fn worst_case(catalog: &Catalog, call: &Call, drafts: Option<u32>) -> u64 {
    cost::worst_case(catalog, call, drafts).at_most_microusd.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method};
    use proptest::prelude::*;
    use tower_gemini_core::catalog::Platform;

    fn call(model: &str, size: &str) -> Call {
        let uri = format!("/v1beta/models/{model}:generateContent").parse().unwrap();
        let body = format!(
            r#"{{"contents":[{{"parts":[{{"text":"a cat"}}]}}],"generationConfig":{{"imageConfig":{{"imageSize":"{size}"}}}}}}"#
        );
        Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(body.as_bytes()))
    }

    #[test]
    fn an_unknown_model_bounds_nothing() {
        let worst =
            Plan::new(&call("gemini-99-image", "1K")).attempts(3).worst_case(Catalog::builtin());
        assert_eq!(worst.cost().at_most_microusd, None);
        assert_eq!(
            Plan::new(&call("gemini-99-image", "1K")).attempts(0).worst_case(Catalog::builtin()),
            SpendAmounts::NONE
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Any way of playing a plan by its rules: free failures until a paid end, losses only out
        /// of the allowance.
        #[test]
        fn no_way_of_playing_a_plan_costs_more_than_its_worst_case(
            steps in proptest::collection::vec((0_usize..3, 0_u8..4, 0_u64..=10), 0..12),
            allowance in 0_u32..4, sends in proptest::array::uniform3(0_u32..4),
        ) {
            let models = [("gemini-3.1-flash-image", "2K"), ("gemini-3-pro-image", "4K"), ("gemini-3.1-flash-image", "1K")];
            let catalog = Catalog::builtin();
            let plan = Plan::new(&call(models[0].0, models[0].1))
                .attempts(sends[0])
                .or_target(ModelId::new(models[1].0), Some(ImageSize::K4), sends[1])
                .or_target(ModelId::new(models[2].0), Some(ImageSize::K1), sends[2])
                .allowance(allowance);
            let worst = plan.worst_case(catalog);
            let (mut left, mut allowed, mut cost, mut attempts) = (sends, allowance, 0_u64, 0_u64);
            for (target, end, drafts) in steps {
                if left[target] == 0 {
                    continue;
                }
                left[target] -= 1;
                attempts += 1;
                let model = catalog.lookup(models[target].0).unwrap();
                let size = ImageSize::ALL.into_iter().find(|size| size.as_str() == models[target].1).unwrap();
                let rate = model.price(&Platform::GeminiApi).unwrap().image_output_microusd_per_mtok.unwrap();
                let image = model.tokens_per_image[&size] * rate / 1_000_000 * (1 + drafts);
                match end {
                    // Free.
                    0 | 1 => {}
                    // Paid and lost; sent again only where the caller allows it.
                    2 => {
                        cost += image;
                        match allowed.checked_sub(1) {
                            Some(left) => allowed = left,
                            None => break,
                        }
                    }
                    // Paid and delivered.
                    _ => {
                        cost += image;
                        break;
                    }
                }
            }
            prop_assert!(cost <= worst.at_most_microusd, "{cost} > {worst:?}");
            prop_assert!(attempts <= worst.attempts);
        }
    }
}
