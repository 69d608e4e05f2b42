//! The retries of clients and proxies that people use. "Measured" is 2026-11, against a server that
//! keeps a ledger.

use std::time::Duration;

use super::foreign::{Breaker, Bucket, Spec, Target, Then};
use super::{additive, secs};
use crate::client::Failure::{self, *};

/// One attempt: the defaults of google-genai, js-genai, gemini-rust, genai, rig and curl
/// (measured).
pub fn naive() -> Spec {
    Spec::new(1, |_| Then::Stop, |_, _, _| Duration::ZERO)
}

/// google-genai 3.4 with `HttpRetryOptions()`: five attempts, 1 s doubled and up to 1 s more
/// (measured 1-2, 2-3, 4-5, 8-9 s); 408, 429, 5xx and read timeouts, but no resets. No timeout of
/// its own.
pub fn google_genai() -> Spec {
    Spec::new(5, status_or_timeout, additive)
}

/// js-genai 3.1 with `retryOptions`: five attempts, 1 s doubled, each up to twice as long
/// (measured 1-2, 2-4, 4-7, 8-16 s).
pub fn js_genai() -> Spec {
    let wait = |_: Failure, n: u32, random: f64| (secs(1) * 2_u32.pow(n)).mul_f64(1.0 + random);
    Spec::new(5, status_or_timeout, wait)
}

/// openai-python 3.54 by default: three attempts, 0.5 s doubled to 8 s and up to a quarter less
/// (measured 0.4-0.5, 0.8-1 s), for 408, 409, 429, 5xx, resets, broken bodies and its timeout of
/// 600 s.
pub fn openai() -> Spec {
    let then = |failure| match failure {
        Refused | NoImage | Garbled => Then::Stop,
        _ => Then::Retry,
    };
    let wait = |_: Failure, n: u32, random: f64| {
        (secs(1) * 2_u32.pow(n)).min(secs(16)).mul_f64(0.5 - 0.125 * random)
    };
    Spec { timeout: Some(secs(600)), ..Spec::new(3, then, wait) }
}

/// gemini-cli, 2026-08: ten attempts, 5 s doubled to 30 s, 30 % more or less; honours `RetryInfo`
/// up to 300 s; a limit without a hint waits 60 s.
pub fn gemini_cli() -> Spec {
    let then = |failure| match failure {
        Refused | NoImage | Garbled | Cut | Timeout => Then::Stop,
        _ => Then::Retry,
    };
    let wait = |failure, n: u32, random: f64| match failure {
        RateLimited => secs(60),
        _ => (secs(5) * 2_u32.pow(n).min(6)).mul_f64(0.7 + 0.6 * random),
    };
    Spec { hint_up_to: secs(300), ..Spec::new(10, then, wait) }
}

/// LiteLLM's router: two resends without a wait (measured 0.01 s) of everything that is an error,
/// three failures close a deployment for 5 s, then the fallback model.
pub fn litellm() -> Spec {
    let then = |failure| if failure == NoImage { Then::Stop } else { Then::Retry };
    Spec {
        targets: vec![Target::asked(3), Target::other(3)],
        breaker: Some(Breaker { failures: 3, open: secs(5) }),
        ..Spec::new(3, then, |_, _, _| Duration::from_millis(10))
    }
}

/// Vercel's AI SDK: `maxRetries: 2`, after 2 and 4 s; 408, 409, 429, 5xx and failed connections.
pub fn vercel() -> Spec {
    Spec::new(3, status_or_reset, |_, n, _| secs(2) * 2_u32.pow(n))
}

/// AWS SDKs, standard mode: three attempts, a random part of 1 s doubled to 20 s, and a bucket of
/// 500 tokens, 5 a resend, 1 back for a success.
pub fn aws() -> Spec {
    let then = |failure| if failure == Timeout { Then::Retry } else { status_or_reset(failure) };
    let wait =
        |_: Failure, n: u32, random: f64| (secs(1) * 2_u32.pow(n)).min(secs(20)).mul_f64(random);
    Spec { bucket: Some(Bucket { capacity: 500, retry: 5, refund: 1 }), ..Spec::new(3, then, wait) }
}

/// Google's gRPC service configuration of `generateContent`, 2026-08: UNAVAILABLE only, five
/// attempts, a random part of 1 s times 1.3 to 10 s.
pub fn grpc() -> Spec {
    let then = |failure| if failure == Overloaded { Then::Retry } else { Then::Stop };
    let wait = |_: Failure, n: u32, random: f64| {
        Duration::from_secs_f64(1.3_f64.powi(n.min(20) as i32).min(10.0) * random)
    };
    Spec::new(5, then, wait)
}

/// Retry, breaker and fallback of general tower middleware put together, as tower-resilience
/// invites to: three attempts 100 ms apart, doubled; five failures in a row open a circuit for
/// 30 s; then the other model. The numbers are ours, of the size its examples use.
pub fn general_middleware() -> Spec {
    Spec {
        targets: vec![Target::asked(3), Target::other(3)],
        breaker: Some(Breaker { failures: 5, open: secs(30) }),
        ..Spec::new(3, retry_errors, |_, n, _| Duration::from_millis(100) * 2_u32.pow(n))
    }
}

/// A proxy that sends three times, 1 and 2 s apart, whatever failed.
pub fn proxy() -> Spec {
    Spec::new(3, retry_errors, additive)
}

/// google-genai with retries over a proxy: the proxy's broken connections are 502s to it.
pub fn google_genai_over_proxy() -> Spec {
    Spec::new(5, retry_errors, additive)
}

fn retry_errors(failure: Failure) -> Then {
    if matches!(failure, Refused | NoImage) { Then::Stop } else { Then::Retry }
}

fn status_or_timeout(failure: Failure) -> Then {
    match failure {
        RateLimited | Overloaded | Internal | BadGateway | Deadline | Timeout => Then::Retry,
        _ => Then::Stop,
    }
}

fn status_or_reset(failure: Failure) -> Then {
    match failure {
        RateLimited | Overloaded | Internal | BadGateway | Deadline | Broken => Then::Retry,
        _ => Then::Stop,
    }
}
