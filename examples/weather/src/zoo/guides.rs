//! The code of five published guides, as it is printed there: what was or may have been charged is
//! sent again wherever the code does so.
//!
//! Chains name today's models: Pro, and Nano Banana 2 in place of the retired ones.

use std::time::Duration;

use super::foreign::{Spec, Target, Then};
use super::{additive, secs};
use crate::client::Failure::{self, *};

/// APIYI, post-mortem of the outage of 2026-01-21, full client: 4K, 2K, 1K with three attempts
/// each, a timeout of 180 s, waits of 30 and 60 s, whatever went wrong.
pub fn ladder() -> Spec {
    let wait = |_: Failure, n: u32, _: f64| secs(30 * u64::from(n + 1));
    Spec {
        targets: vec![Target::asked(3), Target::size("2K", 3), Target::size("1K", 3)],
        timeout: Some(secs(180)),
        ..Spec::new(3, |_| Then::Retry, wait)
    }
}

/// The same source, retry queue: 60 s, doubled, five resends. Its limit of two at a time is left
/// out.
pub fn queue() -> Spec {
    Spec::new(6, |_| Then::Retry, |_, n, _| secs(60) * 2_u32.pow(n))
}

/// Operators' error guide for Nano Banana Pro, 2026-02, client class: a 429 waits 5, 10 … 60 s, a
/// 503 goes to the other model at once, a timeout is sent again at once with half as much time
/// again, anything else waits 1, 2, 4 s; the other model after the last attempt.
pub fn error_guide() -> Spec {
    let then = |failure| match failure {
        Overloaded => Then::Next,
        Refused | NoImage => Then::Stop,
        _ => Then::Retry,
    };
    let wait = |failure, n: u32, _: f64| match failure {
        RateLimited => secs(5) * 2_u32.pow(n).min(12),
        Timeout => Duration::ZERO,
        _ => secs(1) * 2_u32.pow(n),
    };
    Spec {
        targets: vec![Target::asked(3), Target::other(1)],
        timeout: Some(secs(300)),
        timeout_growth: 1.5,
        ..Spec::new(3, then, wait)
    }
}

/// APIYI, 503s on Nano Banana 2, 2026-03, retry loop: a 503 is sent again after 1, 2, 4, 8, 16 s
/// and up to 1 s more; nothing else is. A timeout of 120 s.
pub fn loop_503() -> Spec {
    let then = |failure| if failure == Overloaded { Then::Retry } else { Then::Stop };
    Spec { timeout: Some(secs(120)), ..Spec::new(6, then, additive) }
}

/// The same source, chain: the model asked for three times, the other twice; a 429 and a timeout go
/// on to the other model.
pub fn chain_503() -> Spec {
    let then = |failure| match failure {
        Overloaded => Then::Retry,
        RateLimited | Timeout => Then::Next,
        _ => Then::Stop,
    };
    Spec {
        targets: vec![Target::asked(3), Target::other(2)],
        timeout: Some(secs(120)),
        ..Spec::new(3, then, additive)
    }
}

/// Operators' troubleshooting guide for Nano Banana 2, 2026-03: 429, 502 and 503 from 1 s to 32 s
/// with jitter, six attempts.
pub fn troubleshooting() -> Spec {
    let then = |failure| match failure {
        RateLimited | BadGateway | Overloaded => Then::Retry,
        _ => Then::Stop,
    };
    Spec::new(6, then, |_, n, random| secs(32).min(secs(1) * 2_u32.pow(n)).mul_f64(random))
}

/// Operators' guide to RESOURCE_EXHAUSTED, 2026-02, tenacity: 429 and 503 after 2, 4, 8, 16 s.
pub fn tenacity() -> Spec {
    Spec::new(5, quota_and_overload, |_, n, _| secs(60).min(secs(2) * 2_u32.pow(n)))
}

/// The same source, waits by error with its chain of two attempts a model: a 429 from 1 s to 30 s
/// and up to 1 s more, a 503 from 10 s to 120 s and up to 5 s more, anything else 5 s.
pub fn chain_429() -> Spec {
    let wait = |failure, n: u32, random: f64| match failure {
        RateLimited => secs(30).min(additive(failure, n, random)),
        Overloaded => secs(120).min(secs(10) * 2_u32.pow(n) + secs(5).mul_f64(random)),
        _ => secs(5),
    };
    Spec {
        targets: vec![Target::asked(2), Target::other(2)],
        ..Spec::new(2, quota_and_overload, wait)
    }
}

fn quota_and_overload(failure: Failure) -> Then {
    if matches!(failure, RateLimited | Overloaded) { Then::Retry } else { Then::Stop }
}
