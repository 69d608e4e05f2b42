//! Writes what was found: a page, tables and pictures.

mod page;
mod plots;

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use crate::headline::Figure;
use crate::scenario::Scenario;
use crate::score::{Score, share};
use crate::zoo::Policy;

/// What one policy made of one scenario.
#[derive(Debug, Clone)]
pub struct Row {
    /// The scenario.
    pub scenario: Scenario,
    /// The policy.
    pub policy: &'static Policy,
    /// The sum of all its runs.
    pub score: Score,
}

/// Everything that is reported.
#[derive(Debug, Clone)]
pub struct Report {
    /// By scenario, then by policy.
    pub rows: Vec<Row>,
    /// The articles' figures; empty where they were not asked for.
    pub figures: Vec<Figure>,
    /// How many skies each scenario had.
    pub seeds: u64,
    /// The command that makes this report.
    pub command: String,
}

impl Report {
    /// Writes all files into a directory.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("scoreboard.csv"), self.scoreboard())?;
        fs::write(dir.join("by_hour.csv"), self.by_hour())?;
        if !self.figures.is_empty() {
            fs::write(dir.join("figures.csv"), self.figures_csv())?;
        }
        let pictures = plots::write(self, dir)?;
        fs::write(dir.join("README.md"), page::page(self, &pictures))
    }

    /// The rows of one scenario.
    pub fn of<'a>(&'a self, scenario: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.scenario.name == scenario)
    }

    /// One row of a scenario.
    pub fn row(&self, scenario: &str, policy: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.scenario.name == scenario && row.policy.name == policy)
    }

    /// The scoreboard as CSV.
    pub fn scoreboard(&self) -> String {
        let mut csv = COLUMNS.map(|(name, _)| name).join(",");
        csv.insert_str(0, "scenario,policy,");
        for Row { scenario, policy, score } in &self.rows {
            let cells = COLUMNS.map(|(_, value)| value(score));
            let _ = write!(csv, "\n{},{},{}", scenario.name, policy.name, cells.join(","));
        }
        csv + "\n"
    }

    fn by_hour(&self) -> String {
        let mut csv = "scenario,policy,hour_utc,calls,images".to_owned();
        for Row { scenario, policy, score } in &self.rows {
            for (hour, (calls, images)) in score.by_hour.iter().enumerate() {
                if *calls > 0 {
                    let (scenario, policy) = (&scenario.name, policy.name);
                    let _ = write!(csv, "\n{scenario},{policy},{hour},{calls},{images}");
                }
            }
        }
        csv + "\n"
    }

    fn figures_csv(&self) -> String {
        let mut csv = "id,claim,assuming,from,to,found,holds".to_owned();
        for Figure { id, claim, assuming, claimed: (from, to), found, .. } in &self.figures {
            let holds = (*from..=*to).contains(found);
            let _ = write!(csv, "\n{id},\"{claim}\",\"{assuming}\",{from},{to},{found:.4},{holds}");
        }
        csv + "\n"
    }
}

/// A cell of the scoreboard.
type Cell = fn(&Score) -> String;

/// A number with so many digits; nothing where there was no image to divide by.
fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { String::new() }
}

/// The columns of the scoreboard.
const COLUMNS: [(&str, Cell); 17] = [
    ("calls", |score| score.calls.to_string()),
    ("delivered_pct", |score| format!("{:.2}", 100.0 * score.success())),
    ("as_asked_pct", |score| format!("{:.2}", 100.0 * share(score.as_asked, score.calls))),
    ("p50_s", |score| number(score.seconds(0.50), 1)),
    ("p95_s", |score| number(score.seconds(0.95), 1)),
    ("p99_s", |score| number(score.seconds(0.99), 1)),
    ("usd_per_image", |score| number(score.dollars_per_image(), 4)),
    ("charges_for_nothing", |score| score.for_nothing.to_string()),
    ("duplicate_charges", |score| score.duplicates.to_string()),
    ("quota_per_image", |score| number(score.per_image(score.quota), 3)),
    ("attempts_per_image", |score| number(score.per_image(score.attempts), 3)),
    ("out_of_time", |score| score.out_of_time.to_string()),
    ("requests", |score| score.attempts.to_string()),
    ("costs_stated", |score| score.stated.0.to_string()),
    ("costs_true", |score| score.stated.1.to_string()),
    ("true_usd", |score| number(score.cost as f64 / 1e6, 2)),
    ("stated_at_most_usd", |score| number(score.at_most.0 as f64 / 1e6, 2)),
];
