//! The page: a constant, and the policy that allows its script and style.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(include_str!("live.js"), include_str!("page.js"));

/// Returns the page, which draws `status.json`.
#[must_use]
pub fn page() -> &'static str {
    static PAGE: LazyLock<String> = LazyLock::new(|| {
        include_str!("page.html").replace("/*style*/", STYLE).replace("/*script*/", SCRIPT)
    });
    &PAGE
}

/// Returns the page's `Content-Security-Policy`.
#[must_use]
pub fn csp() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| policy(SCRIPT, STYLE, "data:"));
    &POLICY
}

/// A policy that allows a page exactly this script and style, images from there, and requests to its
/// own server.
pub(crate) fn policy(script: &str, style: &str, images: &str) -> String {
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src {images}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(script),
        hash(style)
    )
}
