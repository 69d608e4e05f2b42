//! What a call can cost before its first byte is sent: pure.

use tower_gemini_core::call::{Call, ImageSize, ModelId};
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::cost::{Cost, cost_of};
use tower_gemini_core::verdict::Verdict;

use super::Amounts;

/// What may be done for one call: where it may be sent, how often, and how much of that may be paid
/// without an image.
///
/// ```
/// use http::{HeaderMap, Method, Uri};
/// use tower_gemini::{call::{Call, ImageSize, ModelId}, catalog::Catalog};
/// use tower_gemini::spending::{Plan, worst_case};
///
/// let uri = Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
/// let body = br#"{"contents":[{"parts":[{"text":"a cat"}]}],"generationConfig":{"imageConfig":{"imageSize":"4K"}}}"#;
/// let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(body));
///
/// let plan = Plan::of(&call).attempts(5);
/// let worst = worst_case(Catalog::builtin(), &plan);
/// assert_eq!(worst.attempts, 5);
/// // Only an answer that is surely free is followed by another send: five attempts cost what one costs.
/// assert_eq!(worst.cost(), worst_case(Catalog::builtin(), &Plan::of(&call)).cost());
/// // What the caller allows to be lost comes on top.
/// let risky = worst_case(Catalog::builtin(), &plan.allowance(1));
/// assert_eq!(risky.at_most_microusd, 2 * worst.at_most_microusd);
/// ```
#[derive(Debug, Clone)]
pub struct Plan {
    call: Call,
    targets: Vec<(Call, u32)>,
    attempts: u32,
    allowance: u32,
}

impl Plan {
    /// One attempt at what is asked for.
    #[must_use]
    pub fn of(call: &Call) -> Self {
        Self { call: call.clone(), targets: Vec::new(), attempts: 1, allowance: 0 }
    }

    /// Up to so many sends of what is asked for.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Then up to so many sends to another model, or at another size (`None` is the model's own
    /// choice).
    #[must_use]
    pub fn or_target(mut self, model: ModelId, size: Option<ImageSize>, attempts: u32) -> Self {
        let mut call = self.call.clone();
        call.model = Some(model);
        call.size = size;
        self.targets.push((call, attempts));
        self
    }

    /// So many sends after one that may have been paid for.
    #[must_use]
    pub fn allowance(mut self, resends: u32) -> Self {
        self.allowance = resends;
        self
    }
}

/// The most that a plan can come to, whatever happens. Its lower end is nothing.
///
/// A charged answer is never followed by another send, and one that may have been charged only out
/// of the allowance: so at most one attempt more than the allowance is paid, at the dearest
/// target's upper end each. An unknown model bounds nothing.
#[must_use]
pub fn worst_case(catalog: &Catalog, plan: &Plan) -> Amounts {
    let attempts = |sends: &u32| u64::from(*sends);
    let sends = plan
        .targets
        .iter()
        .map(|(_, sends)| sends)
        .chain([&plan.attempts])
        .map(attempts)
        .fold(0, u64::saturating_add);
    let targets = plan
        .targets
        .iter()
        .chain([(plan.call.clone(), plan.attempts)].iter())
        .filter(|(_, sends)| *sends > 0)
        .map(|(call, _)| attempt_at_most(catalog, call))
        .collect::<Vec<_>>();
    let dearest = targets.into_iter().max().unwrap_or(0);
    let paid = sends.min(u64::from(plan.allowance).saturating_add(1));
    Amounts {
        certain_microusd: dearest.saturating_mul(paid),
        at_most_microusd: dearest.saturating_mul(paid),
        attempts: sends,
        quota_units: sends,
        wall_ms: 0,
    }
}

/// The most that one attempt can cost: of all that it may end in, the upper end of the dearest.
pub(super) fn attempt_at_most(catalog: &Catalog, call: &Call) -> u64 {
    let most = |verdict: &Verdict| match cost_of(catalog, call, verdict, None) {
        Cost { at_most_microusd: Some(most), .. } => most,
        _ => u64::MAX,
    };
    most(&Verdict::interrupted()).max(most(&Verdict::delivering()))
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
            worst_case(Catalog::builtin(), &Plan::of(&call("gemini-99-image", "1K")).attempts(3));
        assert_eq!(worst.cost().at_most_microusd, None);
        assert_eq!(
            worst_case(Catalog::builtin(), &Plan::of(&call("gemini-99-image", "1K")).attempts(0)),
            Amounts::NONE
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
            let plan = Plan::of(&call(models[0].0, models[0].1))
                .attempts(sends[0])
                .or_target(ModelId::new(models[1].0), Some(ImageSize::K4), sends[1])
                .or_target(ModelId::new(models[2].0), Some(ImageSize::K1), sends[2])
                .allowance(allowance);
            let worst = worst_case(catalog, &plan);
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
