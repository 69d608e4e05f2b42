//! The retry numbers of five published guides and of the official and common clients, each cited.
//!
//! For comparison, and for moving over from them one step at a time. They differ wildly, and every
//! one of them still runs under this crate's rule: what was or may have been paid for is not sent
//! again, whatever the original did. Waits of 0 to 1 s of random addition are [`Jitter::Additive`];
//! none of them reads `RetryInfo` unless said so.

use std::time::Duration;

use tower_gemini_core::verdict::Outcome::{
    self, BadGateway, Deadline, Internal, Interrupted, NotSent, Other, Overloaded, RateLimited,
    RateLimitedMinute,
};

use super::{Backoff, Jitter, OutcomePolicy, RetryPolicy};

const S: Duration = Duration::from_secs(1);
const QUOTA: [Outcome; 2] = [RateLimitedMinute, RateLimited];

fn on_all(mut policy: RetryPolicy, outcomes: &[Outcome], how: OutcomePolicy) -> RetryPolicy {
    for &outcome in outcomes {
        policy = policy.on(outcome, how);
    }
    policy
}

/// Of the post-mortem of the outage of 2026-01-21 (APIYI), full ladder client: 3 attempts, 30 s and
/// 60 s between them, no jitter.
#[must_use]
pub fn linear_30s() -> RetryPolicy {
    RetryPolicy::uniform(3, Backoff::linear(30 * S, 60 * S).jitter(Jitter::None)).ignore_hints()
}

/// Of the post-mortem of the outage of 2026-01-21 (APIYI), retry queue: 5 resends after 60, 120,
/// 240, 480 and 960 s, no jitter.
#[must_use]
pub fn queue_60s() -> RetryPolicy {
    RetryPolicy::uniform(6, Backoff::exponential(60 * S, 2.0, 960 * S).jitter(Jitter::None))
        .ignore_hints()
}

/// Of the operators' error guide for Nano Banana Pro (2026-02), client class: 3 attempts; a 429
/// waits 5, 10 … up to 60 s; a 503 is not retried (the guide falls back at once); others wait 1, 2,
/// 4 s.
#[must_use]
pub fn rate_limit_5s() -> RetryPolicy {
    let others = Backoff::exponential(S, 2.0, 4 * S).jitter(Jitter::None);
    let quota =
        OutcomePolicy::new(3, Backoff::exponential(5 * S, 2.0, 60 * S).jitter(Jitter::None));
    on_all(RetryPolicy::uniform(3, others), &QUOTA, quota)
        .on(Overloaded, OutcomePolicy::never())
        .longest_wait(60 * S)
        .ignore_hints()
}

/// Of the operators' error guide for Nano Banana Pro (2026-02), prose: 5 s, doubled to 60 s, up to
/// 2 s more, 5 attempts.
#[must_use]
pub fn jittered_5s_to_60s() -> RetryPolicy {
    RetryPolicy::uniform(
        5,
        Backoff::exponential(5 * S, 2.0, 60 * S).jitter(Jitter::Additive(2 * S)),
    )
    .ignore_hints()
}

/// Of the operators' error guide for Nano Banana Pro (2026-02), overload: 5 to 10 minutes before
/// the model is tried again.
#[must_use]
pub fn overload_5min_to_10min() -> RetryPolicy {
    RetryPolicy::uniform(3, Backoff::constant(600 * S).jitter(Jitter::Equal)).only(&[Overloaded])
}

/// Of the article on 503s on Nano Banana 2 (APIYI, 2026-03), 503 loop: 5 resends after 1, 2, 4, 8
/// and 16 s and up to 1 s more; nothing else is retried.
#[must_use]
pub fn exponential_1s_x2() -> RetryPolicy {
    let backoff = Backoff::exponential(S, 2.0, 17 * S).jitter(Jitter::Additive(S));
    RetryPolicy::uniform(6, backoff).only(&[Overloaded]).ignore_hints()
}

/// Of the article on 503s on Nano Banana 2 (APIYI, 2026-03), one model of its chain: `attempts`
/// sends (3 on Nano Banana 2, 2 on Pro), 503 only.
#[must_use]
pub fn exponential_1s_x2_attempts(attempts: u32) -> RetryPolicy {
    exponential_1s_x2().attempts(attempts)
}

/// Of the operators' troubleshooting guide for Nano Banana 2 (2026-03): 1 s, doubled to 32 s, with
/// jitter, for 429 by the minute, 502 and 503.
#[must_use]
pub fn exponential_1s_to_32s() -> RetryPolicy {
    RetryPolicy::uniform(6, Backoff::exponential(S, 2.0, 32 * S).jitter(Jitter::Full))
        .only(&[RateLimitedMinute, RateLimited, BadGateway, Overloaded])
        .ignore_hints()
}

/// Of the operators' guide to RESOURCE_EXHAUSTED (2026-02), tenacity: 5 attempts, 2, 4, 8, 16 s,
/// for 429 and 503 only.
#[must_use]
pub fn exponential_2s_to_60s() -> RetryPolicy {
    RetryPolicy::uniform(5, Backoff::exponential(2 * S, 2.0, 60 * S).jitter(Jitter::None))
        .only(&[RateLimitedMinute, RateLimited, Overloaded])
        .ignore_hints()
}

/// Of the operators' guide to RESOURCE_EXHAUSTED (2026-02), Node: 5 attempts, 2 s doubled to 60 s,
/// up to 1 s more.
#[must_use]
pub fn exponential_2s_to_60s_plus_1s() -> RetryPolicy {
    RetryPolicy::uniform(5, Backoff::exponential(2 * S, 2.0, 60 * S).jitter(Jitter::Additive(S)))
        .only(&[RateLimitedMinute, RateLimited, Overloaded])
        .ignore_hints()
}

/// Of the operators' guide to RESOURCE_EXHAUSTED (2026-02), by error: 429 from 1 s to 30 s, up to 1
/// s more; 503 from 10 s to 120 s, up to 5 s more; anything else 5 s.
#[must_use]
pub fn by_error_10s_to_120s() -> RetryPolicy {
    let quota =
        OutcomePolicy::new(5, Backoff::exponential(S, 2.0, 30 * S).jitter(Jitter::Additive(S)));
    let overload = OutcomePolicy::new(
        5,
        Backoff::exponential(10 * S, 2.0, 120 * S).jitter(Jitter::Additive(5 * S)),
    );
    on_all(RetryPolicy::uniform(5, Backoff::constant(5 * S).jitter(Jitter::None)), &QUOTA, quota)
        .on(Overloaded, overload)
        .longest_wait(120 * S)
        .ignore_hints()
}

/// python-genai 2.19 and js-genai 2.18 with retry switched on (off by default): 5 attempts, 1 s
/// doubled to 60 s, up to 1 s more, for 408, 429, 500, 502, 503, 504 and transport errors
/// (`_api_client.py`, `_api_client.ts`; 2026-08).
#[must_use]
pub fn google_genai() -> RetryPolicy {
    RetryPolicy::uniform(5, Backoff::exponential(S, 2.0, 60 * S).jitter(Jitter::Additive(S)))
        .only(&[
            RateLimitedMinute,
            RateLimited,
            Overloaded,
            Deadline,
            Internal,
            BadGateway,
            NotSent,
            Interrupted,
            Other,
        ])
        .ignore_hints()
}

/// Google's gRPC service configuration for generateContent: UNAVAILABLE only, 5 attempts, 1 s times
/// 1.3 to 10 s (2026-08). gRPC draws each wait between 0 and the schedule's.
#[must_use]
pub fn grpc_service_config() -> RetryPolicy {
    RetryPolicy::uniform(5, Backoff::exponential(S, 1.3, 10 * S).jitter(Jitter::Full))
        .only(&[Overloaded])
        .ignore_hints()
}

/// gemini-cli (2026-08): 10 attempts, 5 s doubled to 30 s with jitter, for 429, 499 and 5xx;
/// honours the server's delay up to 300 s, with up to 20 % more; a minute's limit without a hint
/// waits 60 s.
#[must_use]
pub fn gemini_cli() -> RetryPolicy {
    let minute = OutcomePolicy::new(10, Backoff::constant(60 * S).jitter(Jitter::None));
    RetryPolicy::uniform(10, Backoff::exponential(5 * S, 2.0, 30 * S).jitter(Jitter::Equal))
        .only(&[RateLimited, Overloaded, Deadline, Internal, BadGateway, NotSent, Interrupted])
        .on(RateLimitedMinute, minute)
        .longest_wait(300 * S)
}

/// openai-python 3.54: 3 attempts, about 0.5 s and 1 s, and a server's `Retry-After` up to 120 s
/// (measured 2026-11).
#[must_use]
pub fn openai_python() -> RetryPolicy {
    RetryPolicy::uniform(
        3,
        Backoff::exponential(Duration::from_millis(500), 2.0, 8 * S).jitter(Jitter::Equal),
    )
    .longest_wait(120 * S)
}

/// langchain-google-genai 4.4: 6 attempts, 1 s doubled to 60 s, up to 1 s more, by default
/// (measured 2026-11).
#[must_use]
pub fn langchain() -> RetryPolicy {
    google_genai().attempts(6)
}

/// vercel/ai: 2 resends, 2 s and 4 s.
#[must_use]
pub fn vercel_ai() -> RetryPolicy {
    RetryPolicy::uniform(3, Backoff::exponential(2 * S, 2.0, 4 * S).jitter(Jitter::None))
        .ignore_hints()
}

/// Every preset with the name of its function, for tables, tests and comparisons.
#[must_use]
pub fn all() -> Vec<(&'static str, RetryPolicy)> {
    vec![
        ("linear_30s", linear_30s()),
        ("queue_60s", queue_60s()),
        ("rate_limit_5s", rate_limit_5s()),
        ("jittered_5s_to_60s", jittered_5s_to_60s()),
        ("overload_5min_to_10min", overload_5min_to_10min()),
        ("exponential_1s_x2", exponential_1s_x2()),
        ("exponential_1s_x2_attempts", exponential_1s_x2_attempts(3)),
        ("exponential_1s_to_32s", exponential_1s_to_32s()),
        ("exponential_2s_to_60s", exponential_2s_to_60s()),
        ("exponential_2s_to_60s_plus_1s", exponential_2s_to_60s_plus_1s()),
        ("by_error_10s_to_120s", by_error_10s_to_120s()),
        ("google_genai", google_genai()),
        ("grpc_service_config", grpc_service_config()),
        ("gemini_cli", gemini_cli()),
        ("openai_python", openai_python()),
        ("langchain", langchain()),
        ("vercel_ai", vercel_ai()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(policy: &RetryPolicy, outcome: Outcome) -> Vec<u64> {
        policy.schedule_of(outcome).iter().map(Duration::as_secs).collect()
    }

    #[test]
    fn presets_carry_the_numbers_of_their_sources() {
        assert_eq!(schedule(&linear_30s(), Overloaded), [30, 60]);
        assert_eq!(schedule(&queue_60s(), Overloaded), [60, 120, 240, 480, 960]);
        assert_eq!(schedule(&rate_limit_5s(), RateLimited), [5, 10]);
        assert_eq!(schedule(&rate_limit_5s(), Overloaded), [0; 0]);
        assert_eq!(schedule(&jittered_5s_to_60s(), RateLimited), [5, 10, 20, 40]);
        assert_eq!(schedule(&exponential_1s_x2(), Overloaded), [1, 2, 4, 8, 16]);
        assert_eq!(schedule(&exponential_1s_x2(), RateLimited), [0; 0]);
        assert_eq!(schedule(&exponential_1s_to_32s(), Overloaded), [1, 2, 4, 8, 16]);
        assert_eq!(schedule(&exponential_2s_to_60s(), Overloaded), [2, 4, 8, 16]);
        assert_eq!(schedule(&by_error_10s_to_120s(), Overloaded), [10, 20, 40, 80]);
        assert_eq!(schedule(&google_genai(), Overloaded), [1, 2, 4, 8]);
        assert_eq!(schedule(&gemini_cli(), Overloaded), [5, 10, 20, 30, 30, 30, 30, 30, 30]);
    }
}
