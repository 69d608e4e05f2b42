//! The goals that the benches and the load example measure themselves against, one table of all.
//!
//! Each program writes its rows into a file of its own under `target/tmp/goals`; the bench `table`,
//! which runs last, prints all of them.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

/// What a figure is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// The figure is to be no greater.
    AtMost(f64),
    /// The figure is to be no smaller.
    AtLeast(f64),
}

/// One figure beside its goal.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was measured, beside what, in which unit. No comma: it is a field of a CSV file.
    pub what: String,
    /// The figure.
    pub measured: f64,
    /// Its goal.
    pub goal: Goal,
}

impl Row {
    /// A figure that is to be no greater than the goal.
    #[must_use]
    pub fn at_most(what: &str, measured: f64, goal: f64) -> Self {
        Self { what: what.to_owned(), measured, goal: Goal::AtMost(goal) }
    }

    /// A figure that is to be no smaller than the goal.
    #[must_use]
    pub fn at_least(what: &str, measured: f64, goal: f64) -> Self {
        Self { what: what.to_owned(), measured, goal: Goal::AtLeast(goal) }
    }

    /// How far the figure is beyond its goal: up to 1 it is reached.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        match self.goal {
            Goal::AtMost(goal) => self.measured / goal,
            Goal::AtLeast(goal) => goal / self.measured,
        }
    }

    /// Reads a line that [`write()`] wrote.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(',');
        let what = fields.next()?.to_owned();
        let measured = fields.next()?.parse().ok()?;
        let (kind, goal) = (fields.next()?, fields.next()?.parse().ok()?);
        let goal = match kind {
            "at most" => Goal::AtMost(goal),
            "at least" => Goal::AtLeast(goal),
            _ => return None,
        };
        Some(Self { what, measured, goal })
    }
}

/// The lines of a CSV file of these rows, without a heading.
#[must_use]
pub fn lines(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let (kind, goal) = match row.goal {
            Goal::AtMost(goal) => ("at most", goal),
            Goal::AtLeast(goal) => ("at least", goal),
        };
        let _ = writeln!(text, "{},{:.4},{kind},{goal}", row.what, row.measured);
    }
    text
}

/// Writes the rows of a program. `target_tmp` is the directory `tmp` of cargo's target directory:
/// `env!("CARGO_TARGET_TMPDIR")` in a bench.
///
/// # Errors
///
/// Those of the file system.
pub fn write(target_tmp: &Path, program: &str, rows: &[Row]) -> io::Result<()> {
    let dir = target_tmp.join("goals");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(program).with_extension("csv"), lines(rows))
}

/// Reads what programs wrote, in the order of their names.
///
/// # Errors
///
/// Those of the file system, and a line that [`write()`] would not write.
pub fn read(target_tmp: &Path) -> io::Result<Vec<(String, Row)>> {
    let mut files: Vec<_> =
        fs::read_dir(target_tmp.join("goals"))?.collect::<io::Result<Vec<_>>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    let mut rows = Vec::new();
    for file in files {
        let path = file.path();
        let program = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for line in fs::read_to_string(&path)?.lines() {
            let row = Row::parse(line).ok_or_else(|| {
                io::Error::other(format!("{}: not a row: {line}", path.display()))
            })?;
            rows.push((program.clone(), row));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let rows =
            [Row::at_most("CPU beside a bare proxy", 1.25, 1.5), Row::at_least("GB/s", 11.9, 15.0)];
        let text = lines(&rows);
        assert_eq!(text.lines().filter_map(Row::parse).collect::<Vec<_>>(), rows);
        assert!(rows[0].ratio() < 1.0 && rows[1].ratio() > 1.0);
    }
}
