//! Invalid stacks are compile errors that name the layer and its place.

use std::process::Command;

/// The compiler whose words are recorded in `ui/*.stderr`.
const RECORDED_WITH: &str = "rustc 1.95";

#[test]
fn invalid_stacks_are_compile_errors_that_name_the_layer_and_its_place() {
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
