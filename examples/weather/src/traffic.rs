//! When images are asked for.

use std::time::Duration;

use fastrand::Rng;

/// Who asks when.
#[derive(Debug, Clone, Copy)]
pub enum Traffic {
    /// Many people, who do not wait for each other.
    Poisson {
        /// Calls an hour on average.
        per_hour: f64,
        /// The share of a day's calls that falls into 10 to 14 UTC; a sixth is even.
        at_peak: f64,
    },
    /// Programs in a loop: the next call follows on the last.
    Loop {
        /// How many.
        workers: usize,
        /// The pause between two calls.
        pause: Duration,
    },
    /// A pile of calls at once, again and again.
    Bursts {
        /// How often.
        every: Duration,
        /// How many.
        calls: usize,
    },
    /// A fixed number of calls, some at a time.
    Batch {
        /// How many.
        calls: usize,
        /// At a time.
        workers: usize,
    },
}

/// The calls of a scenario.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Each at its time.
    Open(Vec<Duration>),
    /// The next one when one of `workers` is free, up to `calls`.
    Closed {
        /// How many at a time.
        workers: usize,
        /// The pause between two calls of a worker.
        pause: Duration,
        /// How many in all.
        calls: usize,
    },
}

impl Traffic {
    /// The same, with this share of the calls.
    pub fn scaled(self, scale: f64) -> Self {
        match self {
            Self::Poisson { per_hour, at_peak } => {
                Self::Poisson { per_hour: per_hour * scale, at_peak }
            }
            Self::Batch { calls, workers } => {
                Self::Batch { calls: (calls as f64 * scale) as usize, workers }
            }
            // Bursts of another size would meet the limits in another way.
            Self::Bursts { every, calls } => Self::Bursts { every: every.div_f64(scale), calls },
            Self::Loop { .. } => self,
        }
    }

    /// Draws the calls of the time from `starts_at` o'clock UTC on.
    pub fn plan(self, starts_at: u64, lasts: Duration, seed: u64) -> Plan {
        match self {
            Self::Poisson { per_hour, at_peak } => {
                let most = per_hour * 24.0 * (at_peak / 4.0).max((1.0 - at_peak) / 20.0);
                let mut rng = Rng::with_seed(seed ^ 0x7aff1c);
                let (mut at, mut calls) = (0.0, Vec::new());
                loop {
                    // Candidates at the highest rate, thinned to the rate of the hour.
                    at -= 3600.0 * (1.0 - rng.f64()).ln() / most;
                    if at >= lasts.as_secs_f64() {
                        return Plan::Open(calls);
                    }
                    let hour = (starts_at + (at / 3600.0) as u64) % 24;
                    let is_peak = (10..14).contains(&hour);
                    let share = if is_peak { at_peak / 4.0 } else { (1.0 - at_peak) / 20.0 };
                    if rng.f64() < per_hour * 24.0 * share / most {
                        calls.push(Duration::from_secs_f64(at));
                    }
                }
            }
            Self::Loop { workers, pause } => Plan::Closed { workers, pause, calls: usize::MAX },
            Self::Bursts { every, calls } => {
                let bursts = (lasts.as_secs_f64() / every.as_secs_f64()) as u32;
                Plan::Open((0..bursts).flat_map(|n| vec![every * n; calls]).collect())
            }
            Self::Batch { calls, workers } => {
                Plan::Closed { workers, pause: Duration::ZERO, calls }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn as_many_calls_as_asked_come_when_they_should() {
        let traffic = Traffic::Poisson { per_hour: 200.0, at_peak: 0.3 };
        let Plan::Open(times) = traffic.plan(6, DAY, 1) else { panic!("an open loop") };
        assert!((4_500..5_100).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted());
        // 10 to 14 UTC are the hours 4 to 8 of a day that starts at 6.
        let peak = times.iter().filter(|at| (4..8).contains(&(at.as_secs() / 3600))).count();
        assert!((0.27..0.33).contains(&(peak as f64 / times.len() as f64)));
    }

    #[test]
    fn bursts_come_at_once() {
        let traffic = Traffic::Bursts { every: DAY / 2, calls: 3 };
        let Plan::Open(times) = traffic.plan(0, DAY, 1) else { panic!("an open loop") };
        assert_eq!(times, [[Duration::ZERO; 3], [DAY / 2; 3]].concat());
    }

    #[test]
    fn a_part_of_a_batch_is_smaller() {
        let batch = Traffic::Batch { calls: 400, workers: 4 }.scaled(0.25);
        let plan = Plan::Closed { workers: 4, pause: Duration::ZERO, calls: 100 };
        assert_eq!(batch.plan(0, DAY, 1), plan);
    }
}
