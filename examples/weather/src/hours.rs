//! Which peak hours to route by: each published table, and hours that are learned, in the worlds
//! of all tables.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tower_gemini::peak_hour_router::{
    Learning,
    presets::{self, FLASH_503_RATES, PRO_503_RATE, PeakHours},
};

use crate::client::{FLASH, PRO};
use crate::drive::{run, side_by_side};
use crate::scenario::Scenario;
use crate::score::{Score, share};
use crate::zoo::ours::Hours;
use crate::zoo::{Kind, Policy, secs};

/// The share of 503s in the peak hours of the guides of 2026-02: "up to 45 %".
const PEAK: f64 = 0.45;
/// Their share at all other hours, which those guides do not state: "below 5 %" is healthy off the
/// peak (LaoZhang, 2026-01).
const QUIET: f64 = 0.05;
const WEEK: u32 = 7 * 24;

/// A world in which a table is true.
struct World {
    scenario: Scenario,
    table: PeakHours,
}

impl World {
    /// Outages that follow the table. Calls ask for the model that its source calls unreliable, and
    /// the other one is what they can fall back to.
    fn new(table: PeakHours, independent: bool, trial: &Trial) -> Self {
        let (asked, of_asked, other, of_other) = if table == presets::TEN_TO_FOURTEEN_UTC {
            (FLASH, FLASH_503_RATES, PRO, PRO_503_RATE)
        } else {
            let schedule = table.schedule();
            let at = |hour: usize| std::time::UNIX_EPOCH + secs(hour as u64 * 3600);
            let of_hour = |hour| if schedule.is_peak(at(hour)) { PEAK } else { QUIET };
            (PRO, std::array::from_fn(of_hour), FLASH, QUIET)
        };
        let outages = |model: &str, by_hour: [f64; 24]| {
            format!(
                "[[outages]]\nmodel = \"{model}\"\nby_hour = {by_hour:?}\nmean_minutes = 50\n\
                 shape = 0.94\nindependent = {independent}\n"
            )
        };
        let text = format!(
            "hours = {}\nusual_faults = true\n[arrivals]\nper_hour = {}\n\
             mix = [{{ model = \"{asked}\", size = \"1K\", share = 1.0 }}]\n{}{}",
            trial.weeks * WEEK,
            trial.per_hour,
            outages(asked, of_asked),
            outages(other, [of_other; 24]),
        );
        let faults = if independent { "independent" } else { "outages" };
        let name = format!("{}/{faults}", table.name);
        // A text of this file that is wrong would fail the test of this module.
        let mut scenario =
            Scenario::parse(&name, &text).unwrap_or_else(|error| unreachable!("{text}: {error}"));
        scenario.warm_up = secs(u64::from(trial.weeks / 2 * WEEK) * 3600);
        Self { scenario, table }
    }
}

/// How much is simulated.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// The second half of them is scored.
    weeks: u32,
    per_hour: u32,
    seeds: u64,
}

/// What one way of routing made of one world.
#[derive(Debug)]
pub struct Row {
    /// The world.
    pub world: String,
    /// The way of routing.
    pub hours: &'static str,
    /// Whether it is the world's own table.
    pub is_own: bool,
    scores: Vec<Score>,
}

/// The tables, and learning with its defaults and with each of them changed.
fn policies() -> Vec<Policy> {
    let policy = |name, hours| Policy { name, what: "", kind: Kind::Hours(hours) };
    let tables = presets::ALL.map(|table| policy(table.name, Hours::Table(table)));
    let mut all = vec![policy("none", Hours::Asked)];
    all.extend(tables);
    all.push(policy(LEARNED, Hours::Learned(Learning::on)));
    all.push(policy("learned_margin_0.05", Hours::Learned(|| Learning::on().margin(0.05))));
    all.push(policy("learned_margin_0.20", Hours::Learned(|| Learning::on().margin(0.20))));
    all.push(policy("learned_prior_5", Hours::Learned(|| Learning::on().prior_calls(5))));
    all.push(policy("learned_prior_100", Hours::Learned(|| Learning::on().prior_calls(100))));
    all.push(policy(
        "learned_half_life_56d",
        Hours::Learned(|| Learning::on().half_life(secs(56 * 86_400))),
    ));
    all.push(policy("learned_explore_0.1", Hours::Learned(|| Learning::on().explore(0.1))));
    all
}

const LEARNED: &str = "learned";

impl Trial {
    /// All of it, or what a test can wait for.
    pub fn new(is_reduced: bool, seeds: Option<u64>) -> Self {
        let (weeks, per_hour, usual) = if is_reduced { (2, 6, 2) } else { (4, 60, 4) };
        Self { weeks, per_hour, seeds: seeds.unwrap_or(usual) }
    }

    /// Runs every way of routing through every world, under the same skies.
    pub fn run(&self, err: &mut (dyn Write + Send)) -> Vec<Row> {
        let worlds = [false, true]
            .map(|independent| presets::ALL.map(|table| World::new(table, independent, self)));
        let policies = policies();
        let pairs: Vec<_> = worlds
            .as_flattened()
            .iter()
            .flat_map(|world| policies.iter().map(move |policy| (world, policy)))
            .collect();
        let jobs: Vec<_> =
            pairs.iter().flat_map(|pair| (0..self.seeds).map(move |seed| (*pair, seed))).collect();
        let one = |((world, policy), seed): &((&World, &Policy), u64)| {
            run(&world.scenario, policy, *seed, 1.0)
        };
        let err = Mutex::new(err);
        let progress = |ended: usize, _: &_| {
            let mut err = err.lock().unwrap_or_else(PoisonError::into_inner);
            // Progress is worth no failure.
            let _ = write!(err, "\r{ended} of {}", jobs.len());
        };
        let mut scores = side_by_side(&jobs, one, progress).into_iter();
        let row = |(world, policy): (&World, &Policy)| Row {
            world: world.scenario.name.clone(),
            hours: policy.name,
            is_own: policy.name == world.table.name,
            scores: scores.by_ref().take(self.seeds as usize).collect(),
        };
        pairs.into_iter().map(row).collect()
    }
}

/// A figure of one run.
type Value = fn(&Score) -> f64;

const FIGURES: [(&str, usize, Value); 4] = [
    ("delivered_pct", 2, |score| 100.0 * score.success()),
    ("as_asked_pct", 1, |score| 100.0 * share(score.as_asked, score.calls)),
    ("usd_per_image", 5, Score::dollars_per_image),
    ("quota_per_image", 3, |score| score.per_image(score.quota)),
];

/// Mean and twice its standard error.
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, 2.0 * (squares / (n - 1.0).max(1.0) / n).sqrt())
}

impl Row {
    fn mean(&self, value: Value) -> f64 {
        mean(&self.scores.iter().map(value).collect::<Vec<_>>()).0
    }

    /// By how much this row's figure is above that of another under the same skies, and the noise
    /// of that: twice its standard error.
    pub fn above(&self, other: &Self, value: Value) -> (f64, f64) {
        let pairs = self.scores.iter().zip(&other.scores);
        mean(&pairs.map(|(own, other)| value(own) - value(other)).collect::<Vec<_>>())
    }
}

/// The figures as CSV. The columns `learned_…` are by how much learning is above the row, and
/// `noise_…` twice the standard error of that.
pub fn csv(rows: &[Row]) -> String {
    let mut csv = "world,hours,own".to_owned();
    for (name, ..) in FIGURES {
        let _ = write!(csv, ",{name},learned_{name},noise_{name}");
    }
    for row in rows {
        let _ = write!(csv, "\n{},{},{}", row.world, row.hours, row.is_own);
        let Some(learned) = rows.iter().find(|of| of.world == row.world && of.hours == LEARNED)
        else {
            continue;
        };
        for (_, digits, value) in FIGURES {
            let (above, noise) = learned.above(row, value);
            let _ = write!(csv, ",{:.digits$},{above:.digits$},{noise:.digits$}", row.mean(value));
        }
    }
    csv + "\n"
}

/// Writes the figures.
///
/// # Errors
///
/// What the file system says.
pub fn write(rows: &[Row], dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("hours.csv"), csv(rows))
}
