//! One table of every figure that has a goal, as the other benches and the load example left them.
//!
//! ```not_rust
//! cargo bench -p tower-gemini-benches                              # runs all benches, this one last
//! cargo bench -p tower-gemini-benches --bench table -- --save 2026-11-30
//! ```
//!
//! `--save` writes the table to `benches/results/DATE.csv`, under the machine's name, and draws it
//! beside it.

#![allow(clippy::print_stdout, reason = "the table is what is run for")]

use std::error::Error;
use std::fs;
use std::path::Path;

use plotters::prelude::*;
use tower_gemini_benches::{Goal, Row, lines, read};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    // `cargo test --benches` only asks whether it runs.
    if args.iter().any(|arg| arg == "--test") {
        return Ok(());
    }
    let rows = read(Path::new(env!("CARGO_TARGET_TMPDIR")))
        .map_err(|error| format!("no figures yet: run the other benches first ({error})"))?;
    println!("\n| program | figure | measured | goal | reached |\n| --- | --- | --- | --- | --- |");
    for (program, row) in &rows {
        let goal = match row.goal {
            Goal::AtMost(goal) => format!("≤ {goal:.3}"),
            Goal::AtLeast(goal) => format!("≥ {goal:.3}"),
        };
        let reached = if row.ratio() <= 1.0 { "yes" } else { "no" };
        println!("| {program} | {} | {:.3} | {goal} | {reached} |", row.what, row.measured);
    }
    if let Some(at) = args.iter().position(|arg| arg == "--save") {
        let date = args.get(at + 1).ok_or("--save needs a date, such as 2026-11-30")?;
        let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
        save(&Path::new(env!("CARGO_MANIFEST_DIR")).join("results").join(date), &rows)?;
    }
    Ok(())
}

fn save(path: &Path, rows: &[Row]) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(path.parent().ok_or("a path in a directory")?)?;
    let text = format!("# {}\nfigure,measured,kind,goal\n{}", machine(), lines(rows));
    fs::write(path.with_extension("csv"), text)?;
    draw(&path.with_extension("svg"), rows)
}

/// What the figures were measured on. Only Linux says.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} threads", model.unwrap_or("a machine that does not tell its name"))
}

/// A bar a figure: how far it is beyond its goal, which is the line at 1.
fn draw(path: &Path, rows: &[Row]) -> Result<(), Box<dyn Error>> {
    let height = u32::try_from(rows.len())?;
    let area = SVGBackend::new(path, (1000, 24 * height + 70)).into_drawing_area();
    area.fill(&WHITE)?;
    let most = rows.iter().map(Row::ratio).fold(2.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .x_label_area_size(40)
        .margin(15)
        .build_cartesian_2d(-most..most, 0.0..f64::from(height))?;
    chart.configure_mesh().disable_mesh().disable_y_axis().x_labels(0).draw()?;
    for (y, row) in (0..height).rev().map(f64::from).zip(rows) {
        let colour = if row.ratio() <= 1.0 { GREEN.mix(0.6) } else { RED.mix(0.6) };
        let bar = Rectangle::new([(0.0, y + 0.15), (row.ratio(), y + 0.85)], colour.filled());
        let text = format!("{}: {:.2} of the goal", row.what, row.ratio());
        chart.draw_series([bar])?;
        chart.draw_series([Text::new(text, (-most, y + 0.75), ("sans-serif", 13))])?;
    }
    let goal = [(1.0, 0.0), (1.0, f64::from(height))];
    chart.draw_series([PathElement::new(goal, BLACK)])?;
    area.present()?;
    Ok(())
}
