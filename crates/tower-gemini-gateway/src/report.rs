//! Reports what happened to a call in headers of its response: pure.
//!
//! | header | says |
//! | --- | --- |
//! | `x-gemini-attempts` | how many requests were sent |
//! | `x-gemini-model`, `x-gemini-size` | which model responded, as the response says it where it does, and at which size, where the request named one |
//! | `x-gemini-degraded` | in what the response differs from the request, where it does: `size 4K -> 2K` |
//! | `x-gemini-upstream` | which upstream responded, where it is not the one that gets the calls |
//! | `x-gemini-charge` | `none`, `waived`, `maybe` or `charged`: the worst of all attempts |
//! | `x-gemini-cost-usd` | from at least to at most, by list price: `0.1340-0.1352`, `0.0000-unknown` |
//! | `x-gemini-waited-ms` | how long the call waited, all in all |
//! | `x-gemini-redeemed` | `1` where this is the stored response to an earlier, identical request: nothing was sent |
//!
//! Of a response that holds the images of several calls (`n` of OpenAI's API) they report the sums,
//! the worst charge and how many images are redeemed. `x-gemini-missing` is always there where
//! fewer images came than were asked for, and says why: `1 of 3: the image was refused`. A stream
//! begins before that is known, and ends with the error.
//!
//! Where a response differs from what was asked for, `x-gemini-degraded`, `-model`, `-size` and
//! `x-gemini-upstream` (which of several upstreams it came from) are always there.
//!
//! Three more are always there, since clients act on them: `x-should-retry`, `x-upstream-status`
//! where the status is a 424 in place of one after which clients would resend what may have been
//! paid for, and `x-gemini-interaction-id` where the response named its interaction, which can be
//! fetched by that id.
//!
//! Those of a stream report what was known when its head went out. All of them together stay below
//! 1 KiB.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tower_gemini::call::ImageSize;
use tower_gemini::cost::Cost;
use tower_gemini::target::{GivenUp, Served};
use tower_gemini::trail::{Step, Trail};
use tower_gemini::verdict::Charge;

const MODEL: HeaderName = HeaderName::from_static("x-gemini-model");
const SIZE: HeaderName = HeaderName::from_static("x-gemini-size");
const UPSTREAM: HeaderName = HeaderName::from_static("x-gemini-upstream");
const DEGRADED: HeaderName = HeaderName::from_static("x-gemini-degraded");

/// The longest value, so that all of them stay below 1 KiB.
const LONGEST: usize = 240;

/// A text as the value of a header: what is not ASCII and what is too long is left out.
pub(crate) fn header_value(text: &str) -> HeaderValue {
    let ascii = text.chars().filter(|c| c.is_ascii() && !c.is_ascii_control());
    let value: String = ascii.take(LONGEST).collect();
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static(""))
}

/// Adds the id of the interaction that the response is of.
pub(crate) fn add_interaction(headers: &mut HeaderMap, trail: &Trail) {
    let id = trail.interaction_id().and_then(|id| HeaderValue::try_from(id).ok());
    if let Some(id) = id {
        headers.insert(HeaderName::from_static("x-gemini-interaction-id"), id);
    }
}

/// Adds the headers that say in what a response differs from what was asked for.
pub(crate) fn add_differences(headers: &mut HeaderMap, served: &Served) {
    let mut set = |name: HeaderName, value: &str| headers.insert(name, header_value(value));
    let given = |what| served.given_up.iter().rev().find(|one| one.what == what);
    if let Some(model) = served.model.as_ref().filter(|_| given(GivenUp::Model).is_some()) {
        set(MODEL, model.as_str());
    }
    if given(GivenUp::Size).is_some() {
        set(SIZE, served.size.unwrap_or(ImageSize::K1).as_str());
    }
    if let Some(to) = given(GivenUp::Upstream).and_then(|one| one.to.as_deref()) {
        set(UPSTREAM, to);
    }
    let mut degraded: Vec<String> = Vec::new();
    let losses = served.given_up.iter().filter(|one| one.is_loss());
    for one in losses.map(ToString::to_string) {
        if !degraded.contains(&one) {
            degraded.push(one);
        }
    }
    if !degraded.is_empty() {
        // Headers are ASCII.
        set(DEGRADED, &degraded.join(", ").replace('→', "->"));
    }
}

/// Adds in what another response, which becomes a part of this one, differs from what was asked
/// for. A stored one says it in its head and nowhere else.
pub(crate) fn join_differences(headers: &mut HeaderMap, other: &HeaderMap) {
    for name in [MODEL, SIZE, UPSTREAM] {
        if let Some(value) = other.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let degraded = |headers: &HeaderMap| {
        let value = headers.get(DEGRADED).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let (mut all, others) = (degraded(headers), degraded(other));
    for one in others.split(", ").filter(|one| !one.is_empty()) {
        if !all.split(", ").any(|known| known == one) {
            all += if all.is_empty() { "" } else { ", " };
            all += one;
        }
    }
    if !all.is_empty() {
        headers.insert(DEGRADED, header_value(&all));
    }
}

/// Adds the other headers for the calls that a response comes from.
pub(crate) fn add(headers: &mut HeaderMap, calls: &[Trail]) {
    let mut set = |name: &'static str, value: &str| {
        headers.insert(HeaderName::from_static(name), header_value(value));
    };
    let attempts: Vec<_> = calls.iter().flat_map(|call| call.attempts()).collect();
    set("x-gemini-attempts", &attempts.len().to_string());
    if let Some(last) = attempts.last() {
        if let Some(model) = last.responder() {
            set("x-gemini-model", model.as_str());
        }
        if let Some(size) = last.size {
            set("x-gemini-size", size.as_str());
        }
    }
    set("x-gemini-charge", worst(attempts.iter().map(|attempt| attempt.charge)).as_str());
    let cost: Cost = calls.iter().map(|call| call.cost()).sum();
    #[allow(clippy::cast_precision_loss, reason = "for people: four digits are shown")]
    let usd = |microusd: u64| format!("{:.4}", microusd as f64 / 1e6);
    let most = cost.at_most_microusd.map_or_else(|| "unknown".to_owned(), usd);
    set("x-gemini-cost-usd", &format!("{}-{most}", usd(cost.at_least_microusd)));
    let waited: Duration = calls.iter().map(|call| call.waited()).sum();
    set("x-gemini-waited-ms", &waited.as_millis().to_string());
    let is_replayed =
        |call: &&Trail| call.steps().iter().any(|step| matches!(step, Step::Replayed { .. }));
    let redeemed = calls.iter().filter(is_replayed).count();
    if redeemed > 0 {
        set("x-gemini-redeemed", &redeemed.to_string());
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
    use tower_gemini::call::ModelId;
    use tower_gemini::target::Degradation;
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
        add(&mut headers, &[trail]);
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
        for (given_up, header) in [(vec![], None), (vec![smaller], Some("size 4K -> 2K"))] {
            let mut headers = HeaderMap::new();
            add_differences(&mut headers, &Served::new(None, None, given_up));
            let degraded = headers.get("x-gemini-degraded").map(|value| value.to_str().unwrap());
            assert_eq!(degraded, header);
        }
    }
}
