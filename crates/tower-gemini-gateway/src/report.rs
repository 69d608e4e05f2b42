//! Reports what happened to a call in headers of its response: pure.
//!
//! | header | says |
//! | --- | --- |
//! | `x-gemini-attempts` | how many requests were sent |
//! | `x-gemini-model`, `x-gemini-size` | which model responded, and at which size, where the request named one |
//! | `x-gemini-degraded` | in what the response differs from the request, where it does: `size 4K -> 2K` |
//! | `x-gemini-charge` | `none`, `waived`, `maybe` or `charged`: the worst of all attempts |
//! | `x-gemini-cost-usd` | from at least to at most, by list price: `0.1340-0.1352`, `0.0000-unknown` |
//! | `x-gemini-waited-ms` | how long the call waited, all in all |
//! | `x-gemini-redeemed` | `1` where this is the stored response to an earlier, identical request: nothing was sent |
//!
//! Three more are always there, since clients act on them: `x-should-retry`, `x-upstream-status`
//! where the status is a 424 in place of one after which clients would resend what may have been
//! paid for, and `x-gemini-interaction-id` where the response named its interaction, which can be
//! fetched by that id.
//!
//! Those of a stream report what was known when its head went out. All of them together stay below
//! 1 KiB.

use http::{HeaderMap, HeaderName, HeaderValue};
use tower_gemini::target::Served;
use tower_gemini::trail::{Step, Trail};
use tower_gemini::verdict::Charge;

/// The longest value, so that all of them stay below 1 KiB.
const LONGEST: usize = 240;

/// Adds the id of the interaction that the response is of.
pub(crate) fn add_interaction(headers: &mut HeaderMap, trail: &Trail) {
    let id = trail.interaction_id().and_then(|id| HeaderValue::try_from(id).ok());
    if let Some(id) = id {
        headers.insert(HeaderName::from_static("x-gemini-interaction-id"), id);
    }
}

/// Adds the headers for a trail. `served` is the target of the response, where there is one.
pub(crate) fn add(headers: &mut HeaderMap, trail: &Trail, served: Option<&Served>) {
    let steps = trail.steps();
    let mut set = |name: &'static str, value: &str| {
        let value: String =
            value.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).take(LONGEST).collect();
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let attempts = trail.attempts();
    set("x-gemini-attempts", &attempts.len().to_string());
    if let Some(last) = attempts.last() {
        if let Some(model) = &last.model {
            set("x-gemini-model", model.as_str());
        }
        if let Some(size) = last.size {
            set("x-gemini-size", size.as_str());
        }
    }
    let given_up = served.map(|served| served.given_up.as_slice()).unwrap_or_default();
    if !given_up.is_empty() {
        let degraded: Vec<String> = given_up.iter().map(ToString::to_string).collect();
        // Headers are ASCII.
        set("x-gemini-degraded", &degraded.join(", ").replace('→', "->"));
    }
    set("x-gemini-charge", worst(attempts.iter().map(|attempt| attempt.charge)).as_str());
    let cost = trail.cost();
    #[allow(clippy::cast_precision_loss, reason = "for people: four digits are shown")]
    let usd = |microusd: u64| format!("{:.4}", microusd as f64 / 1e6);
    let most = cost.at_most_microusd.map_or_else(|| "unknown".to_owned(), usd);
    set("x-gemini-cost-usd", &format!("{}-{most}", usd(cost.at_least_microusd)));
    set("x-gemini-waited-ms", &trail.waited().as_millis().to_string());
    if steps.iter().any(|step| matches!(step, Step::Replayed { .. })) {
        set("x-gemini-redeemed", "1");
    }
}

fn worst(charges: impl Iterator<Item = Charge>) -> Charge {
    let rank = |charge: &Charge| match charge {
        Charge::None => 0,
        Charge::Waived => 1,
        Charge::Maybe => 2,
        Charge::Charged => 3,
    };
    charges.max_by_key(rank).unwrap_or(Charge::None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tower_gemini::call::{ImageSize, ModelId};
    use tower_gemini::cost::Cost;
    use tower_gemini::target::{Degradation, GivenUp};
    use tower_gemini::trail::WaitReason;
    use tower_gemini::verdict::Verdict;

    #[test]
    fn the_headers_report_what_happened_in_less_than_a_kibibyte() {
        let trail = Trail::new();
        trail.begin_attempt(None, None).end(
            Some(503),
            &Verdict::not_sent(),
            Cost::ZERO,
            Duration::ZERO,
        );
        trail.push(Step::Waited { delay: Duration::from_millis(1500), why: WaitReason::Backoff });
        let model = ModelId::new(&"gemini-3-pro-image".repeat(40));
        trail.begin_attempt(Some(model), Some(ImageSize::K2)).end(
            Some(200),
            &Verdict::delivering(),
            Cost { at_least_microusd: 134_000, at_most_microusd: None },
            Duration::ZERO,
        );
        let mut headers = HeaderMap::new();
        add(&mut headers, &trail, None);
        assert_eq!(headers["x-gemini-attempts"], "2");
        assert_eq!(headers["x-gemini-size"], "2K");
        assert_eq!(headers["x-gemini-charge"], "charged");
        assert_eq!(headers["x-gemini-cost-usd"], "0.1340-unknown");
        assert_eq!(headers["x-gemini-waited-ms"], "1500");
        assert!(!headers.contains_key("x-gemini-degraded"));
        let size: usize =
            headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        assert!(size < 1024, "{size}");
    }

    // After the chain had come back to the model that was asked for, the header still said
    // "degraded"; and its arrow was lost, as headers are ASCII.
    #[test]
    fn the_degraded_header_is_about_the_response_that_is_delivered() {
        let smaller = Degradation { what: GivenUp::Size, from: "4K".into(), to: Some("2K".into()) };
        let trail = Trail::new();
        trail.push(Step::Degraded { given_up: vec![smaller.clone()] });
        for (given_up, header) in [(vec![], None), (vec![smaller], Some("size 4K -> 2K"))] {
            let mut headers = HeaderMap::new();
            add(&mut headers, &trail, Some(&Served::new(None, None, given_up)));
            let degraded = headers.get("x-gemini-degraded").map(|value| value.to_str().unwrap());
            assert_eq!(degraded, header);
        }
    }
}
