//! Reads arbitrary catalogues and scenarios: nothing may panic, and what is read is used without a
//! panic either. The first byte chooses which.
#![no_main]

use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use tower_gemini_core::call::Call;
use tower_gemini_core::catalog::{Catalog, Platform, date};
use tower_gemini_core::cost::{expected, list_price, worst_case};
use tower_gemini_sim::Scenario;

fn use_catalog(catalog: &Catalog) {
    let day = date(2026, 11, 30);
    for model in catalog.models() {
        let path = format!("/v1beta/models/{}:generateContent", model.id);
        let Ok(path) = path.parse() else { continue };
        let call = Call::parse(&Method::POST, &path, &HeaderMap::new(), None);
        let worst = worst_case(catalog, &call, None);
        assert!(worst.at_most_microusd.is_none_or(|most| most >= worst.at_least_microusd));
        let _ = (expected(catalog, &call), list_price(&Platform::GeminiApi, catalog, &call));
        // What is retired leads somewhere, or nowhere: never in a circle for ever.
        let _ = catalog.successor_on(model, day);
    }
    let _ = (catalog.default_on(day), catalog.dead_ends_on(day));
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if choice & 1 == 0 {
        match Catalog::from_toml(text) {
            Ok(catalog) => use_catalog(&catalog),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    } else if let Ok(scenario) = Scenario::parse(text) {
        let _ = scenario.builder().build();
    }
});
