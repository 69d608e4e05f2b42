//! How fast days pass: one run, with real time beside the virtual.

use std::io::{self, Write};

use crate::drive::run;
use crate::scenario::Scenario;
use crate::zoo::Policy;

/// Calls of a run, unless `--scale` says otherwise.
const CALLS: f64 = 1e6;

/// Runs `policy` through `scenario` once, on one core, and writes what it took.
pub fn measure(
    scenario: &Scenario,
    policy: &Policy,
    scale: Option<f64>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let usual = scenario.arrivals().per_hour * f64::from(scenario.of.hours);
    let began = now();
    let score = run(scenario, policy, 1, scale.unwrap_or(CALLS / usual));
    let seconds = began.elapsed().as_secs_f64();
    writeln!(out, "{} in {}: {} calls", policy.name, scenario.name, score.calls)?;
    let requests = score.attempts;
    writeln!(
        out,
        "{requests} requests in {seconds:.1} s, {:.0} a second",
        requests as f64 / seconds
    )?;
    match peak_memory() {
        Some(peak) => writeln!(out, "peak memory {peak}"),
        None => Ok(()),
    }
}

#[allow(clippy::disallowed_methods, reason = "real time is what is measured")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Of this process, where the system says so.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(|peak| peak.trim().to_owned())
}
