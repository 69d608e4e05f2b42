//! What is going on, for people: the status page.
//!
//! [`page`] is a page of its own: one string, no other file, nothing from elsewhere. It is whole
//! without a script; with one it fetches [`json`] every five seconds and puts in what has changed,
//! so that one piece of code draws both. [`csp`] allows the browser exactly the page's own script
//! and style, by their hashes, and to ask this server; whatever else might get into the page is not
//! run.
//!
//! | path | answer with |
//! | --- | --- |
//! | `/status` | [`page`], `text/html; charset=utf-8`, `Content-Security-Policy:` [`csp`] |
//! | `/status.json` | [`json`], `application/json` |
//!
//! `status.json` is looked for beside the page, so a prefix in front of both does no harm. Both
//! should be `no-store`.

mod calls;
mod chart;
mod figures;
mod html;
mod page;
mod view;

#[cfg(test)]
mod browser_tests;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

pub use page::{csp, json, page};
pub use view::{KeptView, QuotaEntryView, QuotaView, SpendingView, StatusView, TargetView};
