//! The page around its sections, its script, its style, and what the browser may do with them.

use std::fmt::Write as _;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json as value};
use sha2::{Digest, Sha256};

use super::html::clock;
use super::view::StatusView;
use super::{calls, chart, figures};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Every part that changes, by the id of the element that it stands in.
fn sections(view: &StatusView) -> [(&'static str, String); 10] {
    let report = &view.report;
    [
        ("head", figures::head(view)),
        ("diagnoses", figures::diagnoses(report)),
        ("tiles", figures::tiles(report)),
        ("chart", chart::chart(report)),
        ("outcomes", figures::outcomes(report)),
        ("quotas", figures::quotas(&view.quotas)),
        ("targets", figures::targets(&view.targets, report)),
        ("money", figures::money(&view.spending, report)),
        ("kept", figures::kept(view.kept.as_ref(), report)),
        ("calls", calls::calls(report)),
    ]
}

/// The page, whole.
#[must_use]
pub fn page(view: &StatusView) -> String {
    let mut html = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>Gemini gateway: status</title>\
         <link rel=\"icon\" href=\"data:,\"><noscript><meta http-equiv=\"refresh\" content=\"15\"></noscript>",
    );
    let _ = write!(html, "<style>{STYLE}</style></head><body>");
    let at = clock(view.report.at_unix);
    let [head, diagnoses, tiles, chart, outcomes, quotas, targets, money, kept, calls] =
        sections(view).map(|(_, html)| html);
    let _ = write!(
        html,
        "<header><h1>Gemini gateway</h1><div id=\"head\" class=\"facts\">{head}</div>\
         <p id=\"live\" class=\"live\"><span id=\"live-dot\" class=\"dot\" aria-hidden=\"true\"></span>\
         <span id=\"live-text\">as of {at} UTC</span></p></header><main>\
         <section id=\"diagnoses\" class=\"wide pair\" aria-label=\"Diagnosis\">{diagnoses}</section>\
         <dl id=\"tiles\" class=\"wide tiles\">{tiles}</dl>"
    );
    for (id, class, title, note, body) in [
        (
            "chart",
            "card wide",
            "Success by hour",
            "the bars show which share of the calls failed: the lower, the better",
            &chart,
        ),
        ("quotas", "card", "Quotas", "", &quotas),
        ("targets", "card", "Targets", "", &targets),
        ("money", "card", "Money", "", &money),
        ("kept", "card", "What was paid for is kept", "", &kept),
        ("outcomes", "card wide", "Outcomes", "", &outcomes),
        ("calls", "card wide", "Last calls", "", &calls),
    ] {
        let note = if note.is_empty() { String::new() } else { format!(" <small>{note}</small>") };
        let _ = write!(
            html,
            "<section class=\"{class}\" aria-labelledby=\"{id}-title\"><h2 id=\"{id}-title\">{title}{note}</h2><div id=\"{id}\">{body}</div></section>"
        );
    }
    let _ = writeln!(
        html,
        "</main><footer><a href=\"status.json\">status.json</a> · times in UTC · money from at least to at most</footer>\
         <script>{SCRIPT}</script></body></html>"
    );
    html
}

/// The same as JSON: the view for programs, and the sections that the page's script puts in.
#[must_use]
pub fn json(view: &StatusView) -> String {
    let sections: Map<String, Value> =
        sections(view).into_iter().map(|(id, html)| (id.to_owned(), Value::String(html))).collect();
    value!({ "at": format!("{} UTC", clock(view.report.at_unix)), "sections": sections, "view": view }).to_string()
}

/// The page's `Content-Security-Policy`.
#[must_use]
pub fn csp() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash =
            |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
        format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE)
        )
    });
    &POLICY
}
