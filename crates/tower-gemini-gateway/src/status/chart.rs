//! The last 24 hours as bars: which share of calls failed, against what is aimed for.

use std::fmt::Write as _;

use tower_gemini::observe::{Health, Hour, Report};

use super::html::{clock, number, percent};

/// Height of the plot, in pixels. Widths are percentages, so that text keeps its size on a phone.
const HEIGHT: f64 = 120.0;
/// Room above it, for marks.
const TOP: f64 = 14.0;
/// How high the bars of the numbers of calls are, below.
const VOLUME: f64 = 22.0;

/// One bar.
struct Bar<'a> {
    start_unix: u64,
    hour: Option<&'a Hour>,
}

/// The chart, and the same as a table for who cannot see it.
pub(super) fn chart(report: &Report) -> String {
    let now = report.at_unix / 3600;
    let bars: Vec<_> = (now.saturating_sub(23)..=now)
        .map(|hour| Bar {
            start_unix: hour * 3600,
            hour: report.hours.iter().find(|one| one.window.start_unix == hour * 3600),
        })
        .collect();
    let rate = |bar: &Bar<'_>| bar.hour.and_then(|hour| hour.window.failure_rate);
    let highest = bars.iter().filter_map(rate).fold(0.0_f64, f64::max);
    // The targets are always in sight; bars that leave them far behind set the scale.
    let scale = (highest * 1.05).max(report.targets.peak * 1.25).max(0.01);
    let y = |share: f64| TOP + HEIGHT * (1.0 - (share / scale).min(1.0));
    let busiest = bars
        .iter()
        .filter_map(|bar| bar.hour)
        .map(|hour| hour.window.calls)
        .max()
        .unwrap_or(0)
        .max(1);

    let day = &report.last_day;
    let label = match day.failure_rate {
        Some(rate) => {
            format!(
                "Share of failed calls by hour. In the last 24 hours {} of {} calls failed.",
                percent(rate),
                day.calls
            )
        }
        None => "Share of failed calls by hour. No calls in the last 24 hours.".to_owned(),
    };
    let base = TOP + HEIGHT;
    let mut svg = format!(
        "<svg class=\"chart\" width=\"100%\" height=\"{}\" role=\"img\" aria-label=\"{label}\">",
        base + VOLUME + 24.0
    );
    for (share, class) in [(report.targets.off_peak, "off-peak"), (report.targets.peak, "at-peak")]
    {
        let _ = write!(
            svg,
            "<line class=\"target {class}\" x1=\"0\" x2=\"100%\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>",
            y(share)
        );
    }
    let step = 100.0 / 24.0;
    for (i, bar) in (0_u32..).zip(&bars) {
        let x = f64::from(i) * step;
        let Some(hour) = bar.hour else {
            let _ = write!(
                svg,
                "<circle class=\"none\" cx=\"{:.2}%\" cy=\"{:.1}\" r=\"1.5\"/>",
                x + step / 2.0,
                base - 2.0
            );
            continue;
        };
        let share = rate(bar).unwrap_or(0.0);
        let health = report.targets.judge(rate(bar), hour.is_peak);
        let top = y(share).min(base - 3.0);
        let class = health.as_str();
        let _ = write!(
            svg,
            "<g class=\"{class}\"><title>{}</title><rect x=\"{:.2}%\" width=\"{:.2}%\" y=\"{top:.1}\" height=\"{:.1}\" rx=\"1.5\"/>",
            in_words(bar),
            x + step * 0.12,
            step * 0.76,
            base - top,
        );
        // Not by its colour alone.
        if health == Health::Failing {
            let _ = write!(
                svg,
                "<text class=\"over\" x=\"{:.2}%\" y=\"{:.1}\">▲</text>",
                x + step / 2.0,
                top - 3.0
            );
        }
        #[allow(clippy::cast_precision_loss, reason = "pixels")]
        let volume = (hour.window.calls as f64 / busiest as f64 * VOLUME).max(1.0);
        let _ = write!(
            svg,
            "<rect class=\"volume\" x=\"{:.2}%\" width=\"{:.2}%\" y=\"{:.1}\" height=\"{volume:.1}\"/></g>",
            x + step * 0.12,
            step * 0.76,
            base + 3.0,
        );
    }
    for (i, bar) in (0_u32..).zip(&bars) {
        if (bar.start_unix / 3600) % 6 == 0 {
            let x = f64::from(i) * step + step / 2.0;
            let _ = write!(
                svg,
                "<text class=\"hour\" x=\"{x:.2}%\" y=\"{:.1}\">{}</text>",
                base + VOLUME + 18.0,
                clock(bar.start_unix)
            );
        }
    }
    svg.push_str("</svg>");
    let mut names = format!(
        "<svg class=\"names\" width=\"78\" height=\"{}\" aria-hidden=\"true\">",
        base + VOLUME + 24.0
    );
    for (share, name) in [(report.targets.off_peak, "off-peak"), (report.targets.peak, "peak")] {
        let _ = write!(
            names,
            "<text x=\"6\" y=\"{:.1}\">{} {name}</text>",
            y(share) + 4.0,
            percent(share)
        );
    }
    let _ = write!(names, "<text x=\"6\" y=\"{:.1}\">calls</text></svg>", base + 16.0);
    let targets = &report.targets;
    let key = |class: &str, what: &str| {
        format!("<span class=\"key\"><span class=\"swatch {class}\"></span>{what}</span> ")
    };
    let legend = [
        key("good", "within its target"),
        key("strained", &format!("{} or more off peak", percent(targets.off_peak))),
        key("failing", &format!("▲ {} or more", percent(targets.peak))),
        key("none", "no calls"),
    ];
    let legend = format!("<p class=\"legend quiet\">{}</p>", legend.concat());
    format!("<div class=\"plot\">{svg}{names}</div>{legend}{}", table(&bars))
}

/// `14:00 UTC: 2 of 40 calls failed (5 %)`.
fn in_words(bar: &Bar<'_>) -> String {
    let at = clock(bar.start_unix);
    let Some(hour) = bar.hour else { return format!("{at} UTC: no calls") };
    let window = &hour.window;
    let peak = if hour.is_peak == Some(true) { ", peak" } else { "" };
    match window.failure_rate {
        Some(rate) => {
            let counted = window.successes + window.failures;
            format!(
                "{at} UTC{peak}: {} of {} calls failed ({})",
                window.failures,
                number(counted),
                percent(rate)
            )
        }
        None => format!("{at} UTC{peak}: {} calls, none of them waited for", number(window.calls)),
    }
}

fn table(bars: &[Bar<'_>]) -> String {
    let mut rows = String::from(
        "<table class=\"unseen\"><caption>Failed calls by hour</caption><tr><th>Hour</th></tr>",
    );
    for bar in bars.iter().filter(|bar| bar.hour.is_some()) {
        let _ = write!(rows, "<tr><td>{}</td></tr>", in_words(bar));
    }
    rows.push_str("</table>");
    rows
}
