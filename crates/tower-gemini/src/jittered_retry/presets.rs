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
const QUOTA_AND_OVERLOAD: [Outcome; 3] = [RateLimitedMinute, RateLimited, Overloaded];

/// Waits that start at `initial` and are doubled up to `cap`.
fn doubled(initial: Duration, cap: Duration, jitter: Jitter) -> Backoff {
    Backoff::exponential(initial, 2.0, cap).jitter(jitter)
}

fn constant(wait: Duration) -> Backoff {
    Backoff::constant(wait).jitter(Jitter::None)
}

/// Most sources state one backoff, and read no hints.
fn without_hints(attempts: u32, backoff: Backoff) -> RetryPolicy {
    RetryPolicy::uniform(attempts, backoff).ignore_hints()
}

fn on_quota(policy: RetryPolicy, attempts: u32, backoff: Backoff) -> RetryPolicy {
    let quota = OutcomePolicy::new(attempts, backoff);
    QUOTA.into_iter().fold(policy, |policy, outcome| policy.on(outcome, quota))
}

macro_rules! presets {
    ($($(#[doc = $doc:literal])* $name:ident: $policy:expr;)*) => {
        $(
            $(#[doc = $doc])*
            #[must_use]
            pub fn $name() -> RetryPolicy {
                $policy
            }
        )*

        /// Every preset with the name of its function, for tables, tests and comparisons.
        #[must_use]
        pub fn all() -> Vec<(&'static str, RetryPolicy)> {
            vec![$((stringify!($name), $name())),*]
        }

        /// What each preset is of, and its numbers, by name: a sentence for lists.
        #[must_use]
        pub fn described() -> Vec<(&'static str, &'static str)> {
            vec![$((stringify!($name), concat!($($doc),*).trim_ascii())),*]
        }
    };
}

presets! {
    /// Of the post-mortem of the outage of 2026-01-21 (APIYI), full ladder client: 3 attempts, 30 s
    /// and 60 s between them, no jitter.
    linear_30s: without_hints(3, Backoff::linear(30 * S, 60 * S).jitter(Jitter::None));

    /// Of the post-mortem of the outage of 2026-01-21 (APIYI), retry queue: 5 resends after 60, 120,
    /// 240, 480 and 960 s, no jitter.
    queue_60s: without_hints(6, doubled(60 * S, 960 * S, Jitter::None));

    /// Of the operators' error guide for Nano Banana Pro (2026-02), client class: 3 attempts; a 429
    /// waits 5, 10 … up to 60 s; a 503 is not retried (the guide falls back at once); others wait 1,
    /// 2, 4 s.
    rate_limit_5s: {
        let others = without_hints(3, doubled(S, 4 * S, Jitter::None));
        on_quota(others, 3, doubled(5 * S, 60 * S, Jitter::None))
            .on(Overloaded, OutcomePolicy::never())
            .longest_wait(60 * S)
    };

    /// Of the operators' error guide for Nano Banana Pro (2026-02), prose: 5 s, doubled to 60 s, up
    /// to 2 s more, 5 attempts.
    jittered_5s_to_60s: without_hints(5, doubled(5 * S, 60 * S, Jitter::Additive(2 * S)));

    /// Of the operators' error guide for Nano Banana Pro (2026-02), overload: 5 to 10 minutes before
    /// the model is tried again.
    overload_5min_to_10min:
        RetryPolicy::uniform(3, Backoff::constant(600 * S).jitter(Jitter::Equal)).only(&[Overloaded]);

    /// Of the article on 503s on Nano Banana 2 (APIYI, 2026-03), 503 loop: 5 resends after 1, 2, 4, 8
    /// and 16 s and up to 1 s more; nothing else is retried. Its chain makes three attempts on Nano
    /// Banana 2 and two on Pro.
    exponential_1s_x2:
        without_hints(6, doubled(S, 17 * S, Jitter::Additive(S))).only(&[Overloaded]);

    /// Of the operators' troubleshooting guide for Nano Banana 2 (2026-03): 1 s, doubled to 32 s,
    /// with jitter, for 429 by the minute, 502 and 503.
    exponential_1s_to_32s: without_hints(6, doubled(S, 32 * S, Jitter::Full))
        .only(&[RateLimitedMinute, RateLimited, BadGateway, Overloaded]);

    /// Of the operators' guide to RESOURCE_EXHAUSTED (2026-02), tenacity: 5 attempts, 2, 4, 8, 16 s,
    /// for 429 and 503 only.
    exponential_2s_to_60s:
        without_hints(5, doubled(2 * S, 60 * S, Jitter::None)).only(&QUOTA_AND_OVERLOAD);

    /// Of the operators' guide to RESOURCE_EXHAUSTED (2026-02), Node: 5 attempts, 2 s doubled to
    /// 60 s, up to 1 s more.
    exponential_2s_to_60s_plus_1s:
        without_hints(5, doubled(2 * S, 60 * S, Jitter::Additive(S))).only(&QUOTA_AND_OVERLOAD);

    /// Of the operators' guide to RESOURCE_EXHAUSTED (2026-02), by error: 429 from 1 s to 30 s, up to
    /// 1 s more; 503 from 10 s to 120 s, up to 5 s more; anything else 5 s.
    by_error_10s_to_120s: {
        let overload = doubled(10 * S, 120 * S, Jitter::Additive(5 * S));
        on_quota(without_hints(5, constant(5 * S)), 5, doubled(S, 30 * S, Jitter::Additive(S)))
            .on(Overloaded, OutcomePolicy::new(5, overload))
            .longest_wait(120 * S)
    };

    /// python-genai 2.19 and js-genai 2.18 with retry switched on (off by default): 5 attempts, 1 s
    /// doubled to 60 s, up to 1 s more, for 408, 429, 500, 502, 503, 504 and transport errors
    /// (`_api_client.py`, `_api_client.ts`; 2026-08).
    google_genai: without_hints(5, doubled(S, 60 * S, Jitter::Additive(S)))
        .only(&[
            RateLimitedMinute, RateLimited, Overloaded, Deadline, Internal, BadGateway, NotSent,
            Interrupted, Other,
        ]);

    /// Google's gRPC service configuration for generateContent: UNAVAILABLE only, 5 attempts, 1 s
    /// times 1.3 to 10 s (2026-08). gRPC draws each wait between 0 and the schedule's.
    grpc_service_config:
        without_hints(5, Backoff::exponential(S, 1.3, 10 * S).jitter(Jitter::Full))
            .only(&[Overloaded]);

    /// gemini-cli (2026-08): 10 attempts, 5 s doubled to 30 s with jitter, for 429, 499 and 5xx;
    /// honours the server's delay up to 300 s, with up to 20 % more; a minute's limit without a hint
    /// waits 60 s.
    gemini_cli: RetryPolicy::uniform(10, doubled(5 * S, 30 * S, Jitter::Equal))
        .only(&[RateLimited, Overloaded, Deadline, Internal, BadGateway, NotSent, Interrupted])
        .on(RateLimitedMinute, OutcomePolicy::new(10, constant(60 * S)))
        .longest_wait(300 * S);

    /// openai-python 3.54: 3 attempts, about 0.5 s and 1 s, and a server's `Retry-After` up to 120 s
    /// (measured 2026-11).
    openai_python:
        RetryPolicy::uniform(3, doubled(S / 2, 8 * S, Jitter::Equal)).longest_wait(120 * S);

    /// langchain-google-genai 4.4: 6 attempts, 1 s doubled to 60 s, up to 1 s more, by default
    /// (measured 2026-11).
    langchain: google_genai().attempts(6);

    /// LiteLLM 1.109, `num_retries=2` as its router has by default: 3 attempts without a wait, and no
    /// hint is read (measured 2026-11). It resends a 400 as well; nothing here does.
    litellm: without_hints(3, constant(Duration::ZERO));

    /// vercel/ai: 2 resends, 2 s and 4 s.
    vercel_ai: without_hints(3, doubled(2 * S, 4 * S, Jitter::None));
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
        assert_eq!(schedule(&litellm(), Overloaded), [0, 0]);
        assert_eq!(schedule(&gemini_cli(), Overloaded), [5, 10, 20, 30, 30, 30, 30, 30, 30]);
    }
}
