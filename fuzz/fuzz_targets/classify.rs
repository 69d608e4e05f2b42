//! Judges arbitrary responses: nothing may panic, what cannot be charged is free, what an unknown
//! service may have done is never free to send again, and a wait is no shorter than stated and one
//! that a timer takes. The first byte chooses the status and the call; headers go up to the first
//! empty line, the body follows.
#![no_main]

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use libfuzzer_sys::fuzz_target;
use tower_gemini_core::call::Call;
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::classify::{classify, classify_without_status, remedy};
use tower_gemini_core::cost::cost_of;
use tower_gemini_core::verdict::Charge;

const STATUSES: [u16; 16] =
    [200, 201, 206, 302, 400, 401, 403, 404, 409, 413, 429, 499, 500, 502, 503, 504];

fn call(choice: u8) -> Call {
    let (method, path) = match choice >> 4 & 3 {
        0 => (Method::POST, "/v1beta/models/gemini-3-pro-image:generateContent"),
        1 => (Method::GET, "/v1beta/models"),
        2 => (Method::POST, "/somewhere/else"),
        _ => (Method::POST, "/v1beta/interactions"),
    };
    Call::parse(&method, &path.parse().unwrap(), &HeaderMap::new(), None)
}

fn headers(text: &str) -> HeaderMap {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter_map(|(name, value)| {
            let name: HeaderName = name.trim().parse().ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        })
        .collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let end = rest.windows(2).position(|two| two == b"\n\n").unwrap_or(0);
    let (head, body) = rest.split_at(end);
    let headers = headers(&String::from_utf8_lossy(head));
    let call = call(*choice);
    let status = StatusCode::from_u16(STATUSES[usize::from(choice & 15)]).unwrap();
    for verdict in [
        classify(&call, status, &headers, body),
        classify_without_status(&call, &headers, body),
    ] {
        match call.can_be_charged() {
            Some(false) => assert_eq!(verdict.charge(), Charge::None),
            None if verdict.is_retryable() || verdict.another_model_helps() => {
                assert!(!verdict.charge().is_surely_free());
            }
            _ => {}
        }
        if let Some(wait) = verdict.wait() {
            assert!(wait.not_before() >= wait.stated());
            assert!(Instant::now().checked_add(wait.not_before()).is_some());
        }
        let _ = remedy(&verdict);
        let cost = cost_of(Catalog::builtin(), &call, &verdict, None);
        assert!(cost.contains(cost.at_least_microusd));
    }
});
