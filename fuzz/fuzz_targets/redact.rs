//! Hides secrets in arbitrary texts: nothing may panic, a text without a secret is borrowed, hiding
//! twice is hiding once, and a key that the text ends in never shows. Quadratic time shows as a
//! timeout (`.ci/fuzz` gives a run two seconds).
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_gemini_core::redact::redact;

const KEY: &str = "AIzaSyA-sentinel-key-0123456789abcdefghij";

fuzz_target!(|text: &str| {
    let hidden = redact(text);
    assert_eq!(redact(&hidden), hidden, "it stays as it is");
    // The fuzzer learns the word from here, and may write it itself.
    let told = |text: &str| text.matches("sentinel").count();
    assert!(told(&redact(&format!("{text} {KEY}"))) <= told(text));
});
