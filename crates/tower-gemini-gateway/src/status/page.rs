//! The page: a constant, and the policy that allows its script and style.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

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
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash =
            |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
        format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE)
        )
    });
    &POLICY
}
