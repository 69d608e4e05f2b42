//! The delays of other people's clients are those that their sources state.

use std::time::Duration;

use weather::client::Failure::{self, Internal, Overloaded, RateLimited, Timeout};
use weather::zoo::foreign::{Spec, Then};
use weather::zoo::{clients, guides};

/// Waits in seconds for a random number.
fn waits(spec: &Spec, failure: Failure, random: f64) -> Vec<f64> {
    spec.waits(failure, random).iter().map(Duration::as_secs_f64).collect()
}

#[test]
fn the_guides_wait_as_they_print() {
    let at = |spec: Spec, failure| waits(&spec, failure, 0.0);
    assert_eq!(at(guides::ladder(), Overloaded), [30.0, 60.0]);
    assert_eq!(at(guides::queue(), Overloaded), [60.0, 120.0, 240.0, 480.0, 960.0]);
    assert_eq!(at(guides::error_guide(), RateLimited), [5.0, 10.0]);
    assert_eq!(at(guides::error_guide(), Timeout), [0.0, 0.0]);
    assert_eq!(at(guides::error_guide(), Overloaded), [0.0; 0], "on to the other model at once");
    assert_eq!(at(guides::loop_503(), Overloaded), [1.0, 2.0, 4.0, 8.0, 16.0]);
    assert_eq!(at(guides::loop_503(), RateLimited), [0.0; 0]);
    assert_eq!(at(guides::chain_503(), Overloaded), [1.0, 2.0]);
    assert_eq!(at(guides::tenacity(), RateLimited), [2.0, 4.0, 8.0, 16.0]);
    assert_eq!(at(guides::tenacity(), Internal), [0.0; 0]);
    assert_eq!(at(guides::chain_429(), Overloaded), [10.0]);
    assert_eq!(waits(&guides::troubleshooting(), Overloaded, 1.0), [1.0, 2.0, 4.0, 8.0, 16.0]);
}

#[test]
fn the_clients_wait_as_they_were_measured() {
    let between = |spec: Spec, failure, ranges: &[(f64, f64)]| {
        let (least, most) = (waits(&spec, failure, 0.0), waits(&spec, failure, 1.0));
        let seen: Vec<_> = least.iter().zip(&most).map(|(a, b)| (a.min(*b), a.max(*b))).collect();
        assert_eq!(seen, ranges);
    };
    between(clients::naive(), Overloaded, &[]);
    let python = [(1.0, 2.0), (2.0, 3.0), (4.0, 5.0), (8.0, 9.0)];
    between(clients::google_genai(), Overloaded, &python);
    between(clients::js_genai(), Overloaded, &[(1.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, 16.0)]);
    between(clients::openai(), Overloaded, &[(0.375, 0.5), (0.75, 1.0)]);
    between(clients::vercel(), RateLimited, &[(2.0, 2.0), (4.0, 4.0)]);
    between(clients::aws(), Overloaded, &[(0.0, 1.0), (0.0, 2.0)]);
    between(clients::litellm(), Internal, &[(0.01, 0.01); 2]);
    between(clients::grpc(), Overloaded, &[(0.0, 1.0), (0.0, 1.3), (0.0, 1.69), (0.0, 2.197)]);
    between(clients::grpc(), RateLimited, &[]);
    let cli = waits(&clients::gemini_cli(), Overloaded, 0.5);
    assert_eq!(cli, [5.0, 10.0, 20.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0]);
}

#[test]
fn five_sends_over_three_are_fifteen() {
    let sends = |spec: Spec| spec.waits(Overloaded, 0.0).len() + 1;
    assert_eq!(sends(clients::google_genai_over_proxy()) * sends(clients::proxy()), 15);
    assert_eq!((clients::proxy().then)(Failure::Broken), Then::Retry);
}
