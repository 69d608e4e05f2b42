//! How long to wait before the next attempt: pure.

use std::time::Duration;

/// Where the randomness of a wait goes. All of them stay within the cap, and none of them vanishes
/// at it: when a storm has driven every client to the cap, they still do not fire together.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Jitter {
    /// None: waits are the schedule's own. For tests, and for presets of clients that have none.
    None,
    /// Anywhere from nothing to the schedule's wait.
    Full,
    /// Half the schedule's wait, and anywhere up to the other half.
    Equal,
    /// Anywhere from the first wait to three times the last one.
    Decorrelated,
    /// The schedule's wait, and anywhere up to this much more. At the cap the schedule's part gives
    /// way, so that the sum stays within.
    Additive(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Growth {
    /// `initial * factor^n`
    Exponential(f64),
    /// `initial * (n + 1)`
    Linear,
}

/// A schedule of waits with a cap and jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    initial: Duration,
    growth: Growth,
    cap: Duration,
    jitter: Jitter,
}

impl Backoff {
    /// `initial`, then `factor` times as long each time, up to `cap`. Equal jitter unless changed.
    /// A factor below 1 or not finite counts as 1.
    #[must_use]
    pub fn exponential(initial: Duration, factor: f64, cap: Duration) -> Self {
        let factor = if factor.is_finite() { factor.max(1.0) } else { 1.0 };
        Self { initial, growth: Growth::Exponential(factor), cap, jitter: Jitter::Equal }
    }

    /// `step`, twice `step`, three times `step` …, up to `cap`. Equal jitter unless changed.
    #[must_use]
    pub fn linear(step: Duration, cap: Duration) -> Self {
        Self { initial: step, growth: Growth::Linear, cap, jitter: Jitter::Equal }
    }

    /// Always `wait`. Equal jitter unless changed.
    #[must_use]
    pub fn constant(wait: Duration) -> Self {
        Self { initial: wait, growth: Growth::Exponential(1.0), cap: wait, jitter: Jitter::Equal }
    }

    /// The same schedule with this jitter.
    #[must_use]
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The longest wait it gives.
    #[must_use]
    pub fn cap(&self) -> Duration {
        self.cap
    }

    /// The schedule's wait before resend `n` (0 is the first), without jitter.
    #[must_use]
    pub fn schedule(&self, n: u32) -> Duration {
        let wait = match self.growth {
            Growth::Exponential(factor) => {
                // Capped in floating point: `powi` reaches infinity long before a Duration could
                // hold it.
                let seconds =
                    self.initial.as_secs_f64() * factor.powi(i32::try_from(n).unwrap_or(i32::MAX));
                if seconds >= self.cap.as_secs_f64() {
                    self.cap
                } else {
                    Duration::from_secs_f64(seconds)
                }
            }
            Growth::Linear => self.initial.saturating_mul(n.saturating_add(1)),
        };
        wait.min(self.cap)
    }

    /// The wait before resend `n`, for a random `unit` in `0.0..1.0` and the wait before (for
    /// decorrelated jitter). Never above the cap.
    #[must_use]
    pub fn wait(&self, n: u32, last: Option<Duration>, unit: f64) -> Duration {
        let unit = if unit.is_finite() { unit.clamp(0.0, 1.0) } else { 0.0 };
        let between = |low: Duration, high: Duration| low + high.saturating_sub(low).mul_f64(unit);
        let base = self.schedule(n);
        let wait = match self.jitter {
            Jitter::None => base,
            Jitter::Full => between(Duration::ZERO, base),
            Jitter::Equal => between(base / 2, base),
            Jitter::Decorrelated => {
                let high = last.unwrap_or(self.initial).saturating_mul(3).min(self.cap);
                between(self.initial.min(high), high)
            }
            Jitter::Additive(spread) => {
                let high = base.saturating_add(spread).min(self.cap);
                between(high.saturating_sub(spread), high)
            }
        };
        wait.min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn jitters() -> impl Strategy<Value = Jitter> {
        prop_oneof![
            Just(Jitter::None),
            Just(Jitter::Full),
            Just(Jitter::Equal),
            Just(Jitter::Decorrelated),
            (1u64..5_000).prop_map(|ms| Jitter::Additive(Duration::from_millis(ms))),
        ]
    }

    fn backoffs() -> impl Strategy<Value = Backoff> {
        (
            1u64..20_000,
            prop_oneof![(0.5f64..5.0).prop_map(Some), Just(None)],
            1u64..200_000,
            jitters(),
        )
            .prop_map(|(initial, factor, cap, jitter)| {
                let (initial, cap) = (Duration::from_millis(initial), Duration::from_millis(cap));
                match factor {
                    Some(factor) => Backoff::exponential(initial, factor, cap),
                    None => Backoff::linear(initial, cap),
                }
                .jitter(jitter)
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_wait_is_above_the_cap(backoff in backoffs(), n in 0u32..2000, last in proptest::option::of(0u64..1_000_000), unit in 0.0f64..1.0) {
            let wait = backoff.wait(n, last.map(Duration::from_millis), unit);
            prop_assert!(wait <= backoff.cap());
        }

        // backon adds jitter after the cap, up to twice it; tower's vanishes at the cap, so that
        // all clients fire together.
        #[test]
        fn jitter_is_alive_at_the_cap(backoff in backoffs(), n in 50u32..2000) {
            prop_assume!(backoff.jitter != Jitter::None);
            // Decorrelated jitter has no room where the first wait is the cap already.
            prop_assume!(backoff.jitter != Jitter::Decorrelated || backoff.initial < backoff.cap);
            prop_assume!(backoff.schedule(n) > Duration::from_millis(1));
            let (low, high) = (backoff.wait(n, Some(backoff.cap()), 0.0), backoff.wait(n, Some(backoff.cap()), 0.999_999));
            prop_assert!(high > low, "{low:?} .. {high:?}");
        }

        #[test]
        fn a_schedule_never_shrinks(backoff in backoffs(), n in 0u32..100) {
            prop_assert!(backoff.schedule(n + 1) >= backoff.schedule(n));
        }
    }

    #[test]
    fn odd_numbers_make_no_panic() {
        let backoff = Backoff::exponential(Duration::MAX, f64::NAN, Duration::MAX)
            .jitter(Jitter::Additive(Duration::MAX));
        assert!(backoff.wait(u32::MAX, Some(Duration::MAX), f64::NAN) <= Duration::MAX);
        let backoff = Backoff::exponential(Duration::from_secs(1), f64::INFINITY, Duration::MAX)
            .jitter(Jitter::Full);
        let _ = backoff.wait(u32::MAX, None, 2.0);
    }
}
