//! Wrong stacks do not compile, and the message says which layer is missing.

use std::process::Command;

/// The compiler whose words are recorded in `ui/*.stderr`.
const RECORDED_WITH: &str = "rustc 1.95";

#[test]
fn wrong_stacks_do_not_compile_and_say_which_layer_is_missing() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc)
        .arg("--version")
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match version {
        Ok(version) if version.starts_with(RECORDED_WITH) => {
            trybuild::TestCases::new().compile_fail("ui/*.rs")
        }
        // Each compiler puts the frame around our sentences in its own words.
        other => println!(
            "skipped: the messages are recorded with {RECORDED_WITH}, and this is {other:?}; `rustup toolchain install 1.95` runs it"
        ),
    }
}
