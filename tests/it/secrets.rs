//! No secret appears in anything we print.

use proptest::prelude::*;
use tower::ServiceExt;
use tower_gemini::CallOptions;
use tower_gemini::Trail;

use crate::harness::{Scenario, TAG, cases, faults, in_paused_time};

proptest! {
    #![proptest_config(cases(1000))]

    // Among the faults are bodies that hold the caller's key: "Invalid API key: …", "Consumer
    // 'api_key:…' has been suspended".
    #[test]
    fn a_sentinel_key_is_in_nothing_that_we_print(weather in proptest::collection::vec(faults(), 1..4)) {
        let scenario = Scenario::new(weather);
        let printed = in_paused_time(async {
            let sim = scenario.sim();
            let trail = Trail::new();
            let mut request = scenario.request(TAG);
            request.extensions_mut().insert(CallOptions::new().trail(trail.clone()));
            let mut printed = match scenario.stack().images(sim.service()).oneshot(request).await {
                Ok(response) => format!("{response:?}"),
                Err(error) => format!("{error} {error:?} {:#?} {:?}", error, std::error::Error::source(&error).map(ToString::to_string)),
            };
            printed.push_str(&format!("{trail} {trail:?} {}", serde_json::to_string(&trail).unwrap()));
            printed
        });
        prop_assert!(!printed.contains("sentinel"), "{printed}");
    }
}
