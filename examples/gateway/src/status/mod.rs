//! What is going on, for people: the status page.

use serde::Serialize;
use tower_gemini::observe::Report;

/// What the page shows.
#[derive(Debug, Serialize)]
pub struct StatusView {
    /// What was seen.
    pub report: Report,
}

/// The page.
#[must_use]
pub fn page(view: &StatusView) -> String {
    format!("<!doctype html><html><body><pre>{}</pre></body></html>", view.report)
}

/// The page's policy for what it may load.
#[must_use]
pub fn csp() -> String {
    "default-src 'none'".to_owned()
}
