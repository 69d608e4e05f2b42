//! What happened to a call, in headers of its answer: pure.
//!
//! | header | says |
//! | --- | --- |
//! | `x-gemini-attempts` | how many requests were sent |
//! | `x-gemini-model`, `x-gemini-size` | which model answered, and at which size, where the request named one |
//! | `x-gemini-degraded` | what was given up, where something was |
//! | `x-gemini-charge` | `none`, `waived`, `maybe` or `charged`: the worst of all attempts |
//! | `x-gemini-cost-usd` | from at least to at most, by list price: `0.1340-0.1352`, `0.0000-unknown` |
//! | `x-gemini-waited-ms` | how long the call waited, all in all |
//! | `x-gemini-redeemed` | `1` where this is the kept answer of an earlier, identical request: nothing was sent |
//!
//! Two more are there whether these are asked for or not, as clients go by them: `x-should-retry`,
//! and `x-upstream-status` where the status is a 424 in place of one after which clients would send
//! again what may have been paid for.
//!
//! Of a stream they say what was known when its head went out. All of them together stay below 1
//! KiB.

use http::{HeaderMap, HeaderName, HeaderValue};
use tower_gemini::trail::{Step, Trail};
use tower_gemini::verdict::Charge;

/// Of what was given up, this much is told: the whole stays below 1 KiB.
const LONGEST: usize = 240;

/// Adds the headers for what `trail` holds.
pub(crate) fn add(headers: &mut HeaderMap, trail: &Trail) {
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
    let degraded: Vec<String> = steps
        .iter()
        .rev()
        .find_map(|step| match step {
            Step::Degraded { given_up } => Some(given_up.iter().map(ToString::to_string).collect()),
            _ => None,
        })
        .unwrap_or_default();
    if !degraded.is_empty() {
        set("x-gemini-degraded", &degraded.join(", "));
    }
    set("x-gemini-charge", worst(attempts.iter().map(|attempt| attempt.charge)).as_str());
    let cost = trail.cost();
    #[allow(clippy::cast_precision_loss, reason = "for people: four digits are shown")]
    let usd = |microusd: u64| format!("{:.4}", microusd as f64 / 1e6);
    let most = cost.at_most_microusd.map_or_else(|| "unknown".to_owned(), usd);
    set("x-gemini-cost-usd", &format!("{}-{most}", usd(cost.at_least_microusd)));
    set("x-gemini-waited-ms", &trail.waited().as_millis().to_string());
    if steps.iter().any(|step| matches!(step, Step::Redeemed { .. })) {
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
    use tower_gemini::ledger::Cost;
    use tower_gemini::trail::WaitReason;
    use tower_gemini::verdict::Verdict;

    #[test]
    fn the_headers_say_what_happened_in_less_than_a_kibibyte() {
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
        add(&mut headers, &trail);
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
}
