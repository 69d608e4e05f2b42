//! The pictures, each as SVG and as PNG.

use std::error::Error;
use std::path::Path;
use std::{fs, io};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::{Report, Row};

const SIZE: (u32, u32) = (1000, 600);
const FONT: &str = "sans-serif";

/// One picture, whatever it is drawn on.
trait Picture {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), Box<dyn Error>>
    where
        B::ErrorType: 'static;
}

/// Writes every picture that the report has data for; returns name and caption of each.
pub(super) fn write(report: &Report, dir: &Path) -> io::Result<Vec<(&'static str, String)>> {
    // The same letters on every machine: PNG files have no fonts of their own.
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| io::Error::other("the font cannot be read"))?;
    let has = |name: &str| report.of(name).next().is_some();
    let first = report.rows.first().map_or("", |row| row.scenario.name.as_str());
    let day = if has("day") { "day" } else { first };
    let peak = if has("peak") { "peak" } else { first };
    let mut written = Vec::new();
    let mut save = |name, caption: String, result: Result<(), Box<dyn Error>>| {
        written.push((name, caption));
        result.map_err(|error| io::Error::other(format!("{name}: {error}")))
    };
    let lines = Lines::by_hour(report, day);
    save("success-by-hour", lines.caption.clone(), both(&lines, dir, "success-by-hour"))?;
    let points = Points::cost(report, peak);
    save(
        "cost-against-success",
        points.caption.clone(),
        both(&points, dir, "cost-against-success"),
    )?;
    let lines = Lines::times(report, peak);
    save("time-to-image", lines.caption.clone(), both(&lines, dir, "time-to-image"))?;
    let bars = Bars::quota(report, peak);
    save("quota-used", bars.caption.clone(), both(&bars, dir, "quota-used"))?;
    Ok(written)
}

fn both<P: Picture>(picture: &P, dir: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    let mut svg = String::new();
    picture.draw(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area())?;
    fs::write(dir.join(name).with_extension("svg"), svg)?;
    let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
    picture.draw(&BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area())?;
    let mut encoder =
        png::Encoder::new(fs::File::create(dir.join(name).with_extension("png"))?, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::High);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(())
}

/// The policies that pictures with few lines show, each with its colour.
const SHOWN: [(&str, RGBColor); 9] = [
    ("oracle-chain", RGBColor(0, 0, 0)),
    ("guide-503-chain", RGBColor(160, 60, 110)),
    ("litellm", RGBColor(213, 94, 0)),
    ("google-genai", RGBColor(230, 159, 0)),
    ("no-retry", RGBColor(150, 150, 150)),
    ("ours", RGBColor(86, 180, 233)),
    ("ours-alone", RGBColor(0, 158, 115)),
    ("ours-chain", RGBColor(0, 114, 178)),
    ("ours-long-circuits", RGBColor(40, 40, 160)),
];
/// Others whose names stand in the picture of the costs.
const NAMED: [&str; 6] =
    ["oracle", "guide-queue", "guide-our-rule", "guide-errors", "sdk-on-proxy", "gemini-cli"];

/// A policy's name, colour and points.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

/// Lines, with a legend.
struct Lines {
    caption: String,
    axes: (&'static str, &'static str),
    x: (f64, f64),
    /// Says what a place on the x axis means.
    x_label: fn(&f64) -> String,
    lines: Vec<Line>,
}

impl Lines {
    fn shown(
        report: &Report,
        scenario: &str,
        points: impl Fn(&Row) -> Vec<(f64, f64)>,
    ) -> Vec<Line> {
        let shown = SHOWN.iter().filter_map(|(name, colour)| {
            report.row(scenario, name).map(|row| (*name, *colour, points(row)))
        });
        shown.collect()
    }

    fn by_hour(report: &Report, scenario: &str) -> Self {
        let by_hour = |row: &Row| {
            let hours = row.score.by_hour.iter().enumerate().filter(|(_, (calls, _))| *calls > 0);
            let percent = |(hour, (calls, images)): (usize, &(usize, usize))| {
                (hour as f64 + 0.5, 100.0 * *images as f64 / *calls as f64)
            };
            hours.map(percent).collect()
        };
        Self {
            caption: format!("Calls that gave an image, by hour of the scenario `{scenario}`"),
            axes: ("hour (UTC)", "images, % of the calls"),
            x: (0.0, 24.0),
            x_label: |hour| format!("{hour:02.0}"),
            lines: Self::shown(report, scenario, by_hour),
        }
    }

    fn times(report: &Report, scenario: &str) -> Self {
        let by_time = |row: &Row| {
            let all = row.score.times.len();
            let point = |step: usize| {
                let at = (all * step / 200).min(all.saturating_sub(1));
                let seconds = *row.score.times.get(at)? as f64 / 1000.0;
                Some((seconds.log10(), 100.0 * (at + 1) as f64 / row.score.calls as f64))
            };
            let points: Vec<_> = (0..=200).filter_map(point).collect();
            let last = points.last().map(|(_, percent)| (3.0, *percent));
            points.into_iter().chain(last).collect()
        };
        Self {
            caption: format!("Calls that have their image after so long, scenario `{scenario}`"),
            axes: ("seconds since the call (logarithmic)", "images, % of the calls"),
            x: (0.9, 3.0),
            x_label: |log| format!("{:.0}", 10_f64.powf(*log)),
            lines: Self::shown(report, scenario, by_time),
        }
    }
}

impl Picture for Lines {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), Box<dyn Error>>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.caption, (FONT, 22))
            .margin(15)
            .x_label_area_size(45)
            .y_label_area_size(60)
            .build_cartesian_2d(self.x.0..self.x.1, 0.0..102.0)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .label_style((FONT, 15))
            .x_desc(self.axes.0)
            .y_desc(self.axes.1)
            .x_label_formatter(&self.x_label)
            .y_label_formatter(&|percent| format!("{percent:.0}"))
            .draw()?;
        for (name, colour, points) in &self.lines {
            let style = colour.stroke_width(3);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 15))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

/// Points with names beside them.
struct Points {
    caption: String,
    points: Vec<(&'static str, RGBColor, f64, f64)>,
}

impl Points {
    fn cost(report: &Report, scenario: &str) -> Self {
        let rows = report.of(scenario).filter(|row| row.score.delivered > 0);
        let points = rows.map(|row| {
            let (success, dollars) = (100.0 * row.score.success(), row.score.dollars_per_image());
            (row.policy.name, colour(row), success, dollars)
        });
        Self {
            caption: format!(
                "Cost of a delivered image, scenario `{scenario}` (ours blue, others orange)"
            ),
            points: points.collect(),
        }
    }
}

/// Ours blue, the oracle black, everybody else orange.
fn colour(row: &Row) -> RGBColor {
    match row.policy.name {
        name if name.starts_with("oracle") => BLACK,
        _ if row.policy.is_ours() => RGBColor(0, 114, 178),
        _ => RGBColor(213, 94, 0),
    }
}

impl Picture for Points {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), Box<dyn Error>>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        let dearest = self.points.iter().map(|(.., dollars)| *dollars).fold(0.0, f64::max);
        let worst = self.points.iter().map(|(_, _, success, _)| *success).fold(100.0, f64::min);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.caption, (FONT, 22))
            .margin(15)
            .x_label_area_size(45)
            .y_label_area_size(70)
            .build_cartesian_2d(worst - 3.0..104.0, 0.0..dearest * 1.15)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .label_style((FONT, 15))
            .x_desc("images, % of the calls")
            .y_desc("dollars for an image, all charges counted")
            .x_label_formatter(&|percent| format!("{percent:.0}"))
            .y_label_formatter(&|dollars| format!("{dollars:.2}"))
            .draw()?;
        // Names of points that lie close together stand one below the other.
        let mut placed: Vec<(f64, f64)> = Vec::new();
        let mut points = self.points.clone();
        points.sort_by(|a, b| b.3.total_cmp(&a.3));
        for (name, colour, success, dollars) in points {
            chart.draw_series([Circle::new((success, dollars), 4, colour.filled())])?;
            if !SHOWN.iter().any(|(shown, _)| *shown == name) && !NAMED.contains(&name) {
                continue;
            }
            let crowd = |y: f64| {
                placed
                    .iter()
                    .any(|(x, of)| (x - success).abs() < 8.0 && (of - y).abs() < dearest * 0.03)
            };
            let mut y = dollars;
            while crowd(y) {
                y -= dearest * 0.0305;
            }
            placed.push((success, y));
            let text = (FONT, 13).into_font().color(&colour);
            chart.draw_series([PathElement::new(
                [(success, dollars), (success + 0.4, y)],
                colour.mix(0.4),
            )])?;
            chart.draw_series([Text::new(name, (success + 0.5, y + dearest * 0.012), text)])?;
        }
        area.present()?;
        Ok(())
    }
}

/// One bar a policy.
struct Bars {
    caption: String,
    bars: Vec<(&'static str, RGBColor, f64)>,
}

impl Bars {
    fn quota(report: &Report, scenario: &str) -> Self {
        let rows = report.of(scenario).filter(|row| row.score.delivered > 0);
        let mut bars: Vec<_> = rows
            .map(|row| (row.policy.name, colour(row), row.score.per_image(row.score.quota)))
            .collect();
        bars.sort_by(|a, b| a.2.total_cmp(&b.2));
        Self {
            caption: format!("Requests against the quota for each image, scenario `{scenario}`"),
            bars,
        }
    }
}

impl Picture for Bars {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), Box<dyn Error>>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        let longest = self.bars.iter().map(|(.., length)| *length).fold(1.0, f64::max);
        let rows = self.bars.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.caption, (FONT, 22))
            .margin(15)
            .x_label_area_size(40)
            .build_cartesian_2d(-0.18 * longest..longest * 1.08, 0.0..rows)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(WHITE)
            .label_style((FONT, 15))
            .x_label_formatter(&|x| if *x < 0.0 { String::new() } else { format!("{x:.0}") })
            .draw()?;
        for (at, (name, colour, length)) in self.bars.iter().enumerate() {
            let bottom = rows - 1.0 - at as f64;
            let bar =
                Rectangle::new([(0.0, bottom + 0.15), (*length, bottom + 0.85)], colour.filled());
            chart.draw_series([bar])?;
            let text = |text: String, x| Text::new(text, (x, bottom + 0.85), (FONT, 13));
            chart.draw_series([
                text((*name).to_owned(), -0.17 * longest),
                text(format!("{length:.2}"), length + 0.01 * longest),
            ])?;
        }
        area.present()?;
        Ok(())
    }
}
