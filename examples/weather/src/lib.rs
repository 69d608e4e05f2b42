//! A simulated day at Gemini's image models, and what each way of retrying makes of it.
//!
//! [`scenario`] has the days, [`zoo`] those who are compared, [`drive`] runs one through the other
//! in virtual time, [`score`] asks the simulator's ledger what became of it, [`headline`] repeats
//! the figures of published articles, [`hours`] their peak hours, [`report`] writes it all down, and
//! [`speed`] measures how long a day takes.

pub mod client;
pub mod drive;
pub mod headline;
pub mod hours;
pub mod report;
pub mod scenario;
pub mod score;
pub mod speed;
pub mod traffic;
pub mod zoo;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::Parser;

use report::{Report, Row};
use scenario::Scenario;
use score::Score;
use zoo::Policy;

/// A simulated day at Gemini's image models, and what each way of retrying makes of it. Offline;
/// days pass in a fraction of a second.
#[derive(Debug, Parser)]
#[command(name = "weather")]
struct Options {
    /// Where the report goes
    #[arg(long, value_name = "DIR", default_value = "examples/weather/report")]
    out: PathBuf,
    /// Two skies, a quarter of the calls, no repetition of the articles' figures
    #[arg(long)]
    reduced: bool,
    /// Compares tables of peak hours in each other's worlds, and nothing else
    #[arg(long, conflicts_with_all = ["scenario", "policy"])]
    hours: bool,
    /// Only this scenario, by name or from a file (may be repeated)
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Only this policy (may be repeated)
    #[arg(long, value_name = "NAME")]
    policy: Vec<String>,
    /// How many skies each scenario has [default: 12, or 2 with --reduced]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: Option<u64>,
    /// How many calls there are, as a multiple of the scenario's [default: 1, or 0.25 with
    /// --reduced]
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
    /// No report: one run of a million calls on one core, `ours` in `day` unless others are named;
    /// prints requests, seconds and peak memory
    #[arg(long)]
    speed: bool,
}

/// Runs the program. Returns its exit code.
pub fn app(args: &[String], out: &mut dyn Write, err: &mut (dyn Write + Send)) -> u8 {
    let with_name = std::iter::once("weather").chain(args.iter().map(String::as_str));
    let options = match Options::try_parse_from(with_name) {
        Ok(options) => options,
        Err(help) if !help.use_stderr() => return u8::from(write!(out, "{help}").is_err()),
        Err(error) => {
            // There is nobody left to tell when standard error is closed.
            let _ = write!(err, "{error}");
            return 2;
        }
    };
    let command = format!("cargo run --release -p weather -- {}", args.join(" "));
    match simulate(&options, command.trim_end_matches(" -- ").to_owned(), out, err) {
        Ok(code) => code,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            let _ = writeln!(err, "weather: {error}");
            1
        }
    }
}

/// The scenarios that are wanted, by name or from files, or what is wrong with one.
fn scenarios(wanted: &[String]) -> Result<Vec<Scenario>, String> {
    let all = scenario::all();
    let known: Vec<_> = all.iter().map(|scenario| scenario.name.as_str()).collect();
    let known = known.join(", ");
    let named = |name: &String| {
        if let Some(scenario) = scenario::find(name) {
            return Ok(scenario);
        }
        let text = std::fs::read_to_string(name)
            .map_err(|_| format!("`{name}` is neither a file nor one of {known}"))?;
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        Scenario::parse(&stem, &text).map_err(|error| format!("{name}: {error}"))
    };
    if wanted.is_empty() { Ok(all) } else { wanted.iter().map(named).collect() }
}

/// The policies that are wanted, or the first name that is not known.
fn policies(wanted: &[String]) -> Result<Vec<&'static Policy>, String> {
    let named = |name: &String| {
        let known: Vec<_> = zoo::ALL.iter().map(|policy| policy.name).collect();
        zoo::find(name).ok_or_else(|| format!("`{name}` is not one of {}", known.join(", ")))
    };
    match wanted.is_empty() {
        true => Ok(zoo::ALL.iter().collect()),
        false => wanted.iter().map(named).collect(),
    }
}

fn simulate(
    options: &Options,
    command: String,
    out: &mut dyn Write,
    err: &mut (dyn Write + Send),
) -> io::Result<u8> {
    let seeds = options.seeds.unwrap_or(if options.reduced { 2 } else { 12 });
    let scale = options.scale.unwrap_or(if options.reduced { 0.25 } else { 1.0 });
    if options.hours {
        let rows = hours::rows(seeds, scale, err);
        hours::write(&rows, &options.out, &command)?;
        write!(out, "{}", hours::csv(&rows))?;
        return Ok(0);
    }
    let (scenarios, policies) = (scenarios(&options.scenario), policies(&options.policy));
    let (scenarios, policies) = match (scenarios, policies) {
        (Ok(scenarios), Ok(policies)) => (scenarios, policies),
        (Err(unknown), _) | (_, Err(unknown)) => {
            writeln!(err, "weather: {unknown}")?;
            return Ok(2);
        }
    };
    if options.speed {
        let scenario = scenarios.iter().find(|one| one.name == "day").unwrap_or(&scenarios[0]);
        let policy = policies.iter().find(|one| one.name == "ours").unwrap_or(&policies[0]);
        speed::measure(scenario, policy, options.scale, out)?;
        return Ok(0);
    }
    let rows = rows(&scenarios, &policies, seeds, scale, err);
    let is_whole = options.scenario.is_empty() && options.policy.is_empty();
    let figures = if is_whole && !options.reduced { headline::figures() } else { Vec::new() };
    let report = Report { rows, figures, seeds, command };
    report.write(&options.out)?;
    let requests: usize = report.rows.iter().map(|row| row.score.attempts).sum();
    writeln!(err, "{requests} requests; the report is in {}", options.out.display())?;
    write!(out, "{}", report.scoreboard())?;
    Ok(0)
}

/// Runs every policy through every scenario, under as many skies.
pub fn rows(
    scenarios: &[Scenario],
    policies: &[&'static Policy],
    seeds: u64,
    scale: f64,
    err: &mut (dyn Write + Send),
) -> Vec<Row> {
    let pairs: Vec<_> = scenarios
        .iter()
        .flat_map(|scenario| policies.iter().map(move |policy| (scenario, *policy)))
        .collect();
    let jobs: Vec<_> =
        pairs.iter().flat_map(|pair| (0..seeds).map(move |seed| (*pair, seed))).collect();
    let err = Mutex::new(err);
    let mut scores = drive::side_by_side(
        &jobs,
        |((scenario, policy), seed)| drive::run(scenario, policy, *seed, scale),
        |ended, ((scenario, policy), _)| {
            let mut err = err.lock().unwrap_or_else(PoisonError::into_inner);
            // Progress is worth no failure.
            let _ = write!(
                err,
                "\r{ended} of {}: {} in {:<40}",
                jobs.len(),
                policy.name,
                scenario.name
            );
            let _ = if ended == jobs.len() { writeln!(err) } else { err.flush() };
        },
    )
    .into_iter();
    let row = |(scenario, policy): (&Scenario, &'static Policy)| {
        let own = scores.by_ref().take(seeds as usize);
        let score = own.reduce(Score::merge).unwrap_or_default();
        Row { scenario: scenario.clone(), policy, score }
    };
    pairs.into_iter().map(row).collect()
}
