//! When images are asked for.

use std::time::Duration;

use fastrand::Rng;
use tower_gemini_sim::{ArrivalKind, Arrivals};

use crate::scenario::Scenario;
use crate::zoo::secs;

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

/// Draws the calls of a scenario, with `scale` of them.
pub fn plan(scenario: &Scenario, seed: u64, scale: f64) -> Plan {
    let arrivals = scenario.arrivals();
    let lasts = scenario.lasts();
    let workers = arrivals.workers as usize;
    match arrivals.kind {
        ArrivalKind::Closed => {
            let pause = secs(arrivals.pause_seconds);
            Plan::Closed { workers, pause, calls: usize::MAX }
        }
        ArrivalKind::Batch => {
            let calls = (f64::from(arrivals.calls) * scale) as usize;
            Plan::Closed { workers, pause: Duration::ZERO, calls }
        }
        ArrivalKind::Bursts => {
            // Bursts of another size would meet the limits in another way.
            let every = secs(arrivals.every_minutes * 60).div_f64(scale);
            let bursts = (lasts.as_secs_f64() / every.as_secs_f64()) as u32;
            Plan::Open((0..bursts).flat_map(|n| vec![every * n; arrivals.burst as usize]).collect())
        }
        _ => Plan::Open(by_chance(arrivals, scenario.first_hour(), lasts, seed, scale)),
    }
}

/// Times of calls by people who do not wait for each other.
fn by_chance(
    arrivals: &Arrivals,
    first_hour: u64,
    lasts: Duration,
    seed: u64,
    scale: f64,
) -> Vec<Duration> {
    let by_hour = arrivals.by_hour.unwrap_or([1.0; 24]);
    let mean = by_hour.iter().sum::<f64>() / 24.0;
    let rate = |hour: u64| arrivals.per_hour * scale * by_hour[(hour % 24) as usize] / mean;
    let most = (0..24).map(rate).fold(0.0, f64::max);
    let mut rng = Rng::with_seed(seed ^ 0x7aff1c);
    let (mut at, mut calls) = (0.0, Vec::new());
    loop {
        // Candidates at the highest rate, thinned to the rate of the hour.
        at -= 3600.0 * (1.0 - rng.f64()).ln() / most;
        if at >= lasts.as_secs_f64() {
            return calls;
        }
        if rng.f64() < rate(first_hour + (at / 3600.0) as u64) / most {
            calls.push(Duration::from_secs_f64(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn scenario(toml: &str) -> Scenario {
        Scenario::parse("test", toml).unwrap()
    }

    #[test]
    fn as_many_calls_as_asked_come_when_they_should() {
        let traffic = scenario(
            "starts_at_utc = 6\n[arrivals]\nper_hour = 200\n\
             by_hour = [0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 1.8, 1.8, 1.8, \
             1.8, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84, 0.84]",
        );
        let Plan::Open(times) = plan(&traffic, 1, 1.0) else { panic!("an open loop") };
        assert!((4_500..5_100).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted());
        // 10 to 14 UTC are the hours 4 to 8 of a day that starts at 6.
        let peak = times.iter().filter(|at| (4..8).contains(&(at.as_secs() / 3600))).count();
        assert!((0.27..0.33).contains(&(peak as f64 / times.len() as f64)));
    }

    #[test]
    fn bursts_come_at_once() {
        let toml = "[arrivals]\nkind = \"bursts\"\nburst = 3\nevery_minutes = 720";
        let Plan::Open(times) = plan(&scenario(toml), 1, 1.0) else { panic!("an open loop") };
        assert_eq!(times, [[Duration::ZERO; 3], [DAY / 2; 3]].concat());
    }

    #[test]
    fn a_part_of_a_batch_is_smaller() {
        let batch = scenario("[arrivals]\nkind = \"batch\"\ncalls = 400\nworkers = 4");
        let part = Plan::Closed { workers: 4, pause: Duration::ZERO, calls: 100 };
        assert_eq!(plan(&batch, 1, 0.25), part);
    }
}
