//! The calls that ended last, with what was decided for each.

use std::fmt::Write as _;

use tower_gemini::observe::{CallOutcome, FinishedCall, Report};

use super::html::{cost, esc, seconds, span};

/// How many are shown; the JSON holds all that are kept.
const SHOWN: usize = 25;

pub(super) fn calls(report: &Report) -> String {
    if report.recent.is_empty() {
        return "<p class=\"quiet\">No call has ended yet.</p>".to_owned();
    }
    let mut html = String::new();
    for call in report.recent.iter().take(SHOWN) {
        html.push_str(&one(call, report.at_unix));
    }
    html
}

fn one(call: &FinishedCall, now: u64) -> String {
    let (class, mark) = match call.outcome {
        CallOutcome::CallerLeft => ("left", "↩"),
        outcome if outcome.is_success() => ("good", "✓"),
        _ => ("failing", "✕"),
    };
    let ago = span(now.saturating_sub(call.ended_unix));
    // The name is one of ours, and still it is written as what it might be.
    let id = esc(&call.call);
    let mut html = format!(
        "<details id=\"call-{id}\"><summary><span class=\"mark {class}\" aria-hidden=\"true\">{mark}</span>\
         <span class=\"what\"><b>{}</b><span class=\"says\">{}</span></span>\
         <span class=\"when\">{ago} ago</span></summary>",
        esc(&call.outcome.as_str().replace('_', " ")),
        esc(&call.sentence)
    );
    let _ = write!(
        html,
        "<p class=\"facts\">call {id} · {} · {}{}</p><ol class=\"trail\">",
        seconds(call.took.as_secs_f64()),
        cost(call.cost),
        if call.is_under_way() { " · finished without its caller" } else { "" }
    );
    for line in &call.trail {
        let _ = write!(html, "<li>{}</li>", esc(line));
    }
    html.push_str("</ol></details>");
    html
}
