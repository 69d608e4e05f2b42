//! Which peak hours to route by: each published table in the worlds in which another is true.

use std::array::from_fn;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use tower_gemini::peak_hour_router::presets::{self, FLASH_503_RATES, PRO_503_RATE, PeakHours};

use crate::client::{FLASH, PRO};
use crate::drive::{run, side_by_side};
use crate::scenario::Scenario;
use crate::score::{Score, share};
use crate::zoo::{Kind, Policy, ours, secs};

/// The share of 503s in the peak hours of the two guides of 2026-02: "up to 45 %".
const PEAK: f64 = 0.45;
/// Their share at all other hours, which those guides do not state: below 5 % is healthy off the
/// peak (LaoZhang, 2026-01).
const QUIET: f64 = 0.05;

/// No routing.
const NONE: &str = "none";

/// What one way of routing made of one world.
#[derive(Debug)]
pub struct Row {
    /// The table that is true, and how requests fail.
    pub world: String,
    /// The table that is followed.
    pub hours: &'static str,
    /// One for each sky.
    scores: Vec<Score>,
}

/// A week in which a table is true. Calls ask for the model that its source calls unreliable; the
/// other one is what they can fall back to.
fn world(table: PeakHours, faults: &str) -> Scenario {
    let (asked, of_asked, other, of_other) = if table == presets::TEN_TO_FOURTEEN_UTC {
        (FLASH, FLASH_503_RATES, PRO, PRO_503_RATE)
    } else {
        let schedule = table.schedule();
        let is_peak = |hour: usize| schedule.is_peak(UNIX_EPOCH + secs(hour as u64 * 3600));
        (PRO, from_fn(|hour| if is_peak(hour) { PEAK } else { QUIET }), FLASH, QUIET)
    };
    let outages = |model: &str, by_hour: [f64; 24]| {
        format!(
            "[[outages]]\nmodel = \"{model}\"\nby_hour = {by_hour:?}\nmean_minutes = 50\n\
             shape = 0.94\nindependent = {}\n",
            faults == "independent"
        )
    };
    let text = format!(
        "hours = 168\nusual_faults = true\n[arrivals]\nper_hour = 60\n\
         mix = [{{ model = \"{asked}\", size = \"1K\", share = 1.0 }}]\n{}{}",
        outages(asked, of_asked),
        outages(other, [of_other; 24]),
    );
    // A text of this file that is wrong would fail the test of this module.
    Scenario::parse(&format!("{}/{faults}", table.name), &text)
        .unwrap_or_else(|error| unreachable!("{text}: {error}"))
}

/// Follows every table, and none, in every world, under the same skies, with `scale` of the calls.
pub fn rows(seeds: u64, scale: f64, err: &mut (dyn Write + Send)) -> Vec<Row> {
    let policy = |name, kind| Policy { name, what: "", kind };
    let tables = presets::ALL.map(|table| policy(table.name, Kind::PeakHours(table)));
    let policies = [&[policy(NONE, Kind::Ours(ours::chain))][..], &tables].concat();
    let worlds =
        ["outages", "independent"].map(|faults| presets::ALL.map(|table| world(table, faults)));
    let pairs =
        worlds.as_flattened().iter().flat_map(|world| policies.iter().map(move |p| (world, p)));
    let jobs: Vec<_> =
        pairs.clone().flat_map(|pair| (0..seeds).map(move |seed| (pair, seed))).collect();
    let err = Mutex::new(err);
    let mut scores = side_by_side(
        &jobs,
        |((world, policy), seed)| run(world, policy, *seed, scale),
        |ended, _| {
            let mut err = err.lock().unwrap_or_else(PoisonError::into_inner);
            // Progress is worth no failure.
            let _ = write!(err, "\r{ended} of {}", jobs.len());
        },
    )
    .into_iter();
    let row = |(world, policy): (&Scenario, &Policy)| Row {
        world: world.name.clone(),
        hours: policy.name,
        scores: scores.by_ref().take(seeds as usize).collect(),
    };
    pairs.map(row).collect()
}

/// A figure of one run: its name, its digits, itself.
type Figure = (&'static str, usize, fn(&Score) -> f64);

const FIGURES: [Figure; 4] = [
    ("delivered_pct", 2, |score| 100.0 * score.success()),
    ("as_asked_pct", 1, |score| 100.0 * share(score.as_asked, score.calls)),
    ("usd_per_image", 4, Score::dollars_per_image),
    ("quota_per_image", 3, |score| score.per_image(score.quota)),
];

/// The mean of some figures, and twice its standard error.
fn mean(figures: &[f64]) -> (f64, f64) {
    let n = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / n;
    let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
    (mean, 2.0 * (squares / (n - 1.0).max(1.0) / n).sqrt())
}

/// A row's figures in the mean of its skies, each with the noise of its distance to no routing under
/// the same skies.
fn figures(rows: &[Row], row: &Row) -> [(f64, f64); FIGURES.len()] {
    let none = rows.iter().find(|of| of.world == row.world && of.hours == NONE).unwrap_or(row);
    FIGURES.map(|(.., figure)| {
        let own: Vec<_> = row.scores.iter().map(figure).collect();
        let above: Vec<_> =
            own.iter().zip(&none.scores).map(|(own, none)| own - figure(none)).collect();
        (mean(&own).0, mean(&above).1)
    })
}

/// The figures as CSV.
pub fn csv(rows: &[Row]) -> String {
    let mut csv = "world,hours".to_owned();
    for (name, ..) in FIGURES {
        let _ = write!(csv, ",{name},noise");
    }
    for row in rows {
        let _ = write!(csv, "\n{},{}", row.world, row.hours);
        for ((_, digits, _), (own, noise)) in FIGURES.iter().zip(figures(rows, row)) {
            let _ = write!(csv, ",{own:.digits$},{noise:.digits$}");
        }
    }
    csv + "\n"
}

/// The page.
fn page(rows: &[Row], command: &str) -> String {
    let mut page = format!(
        "# Peak hours in each other's worlds\n\nMade by `{command}`.\n\n\
         In each world one published table is true: 503s have its hours, and calls ask for the \
         model that its source calls unreliable. In `outages` they come as outages of 50 minutes, in \
         `independent` each request fails by itself. All rows can fall back to the other model; in \
         the peak hours of the table that is followed, the other one leads. ± is twice the standard \
         error of the distance to no routing under the same skies. *Itself* is the world's own table.\n\n\
         | true | followed | delivered % | as asked % | $ an image | quota units an image |\n\
         | --- | --- | --- | --- | --- | --- |\n"
    );
    for row in rows {
        let is_own = row.world.split('/').next() == Some(row.hours);
        let hours = if is_own { "*itself*" } else { row.hours };
        let _ = write!(page, "| {} | {hours} |", row.world);
        for ((_, digits, _), (own, noise)) in FIGURES.iter().zip(figures(rows, row)) {
            let _ = match row.hours {
                NONE => write!(page, " {own:.digits$} |"),
                _ => write!(page, " {own:.digits$} ± {noise:.digits$} |"),
            };
        }
        page.push('\n');
    }
    page
}

/// Writes `hours.csv` and `hours.md`.
///
/// # Errors
///
/// What the file system says.
pub fn write(rows: &[Row], dir: &Path, command: &str) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("hours.csv"), csv(rows))?;
    std::fs::write(dir.join("hours.md"), page(rows, command))
}
