//! Run with
//!
//! ```not_rust
//! cargo run --release -p weather
//! cargo run --release -p weather -- --scenario peak --policy ours --policy google-genai --out /tmp/weather
//! ```
//!
//! Days of bad weather at Gemini's image models in seconds and offline: guides, SDKs, proxies and our
//! layers beside each other. See `--help`.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    ExitCode::from(weather::app(&args, &mut io::stdout().lock(), &mut io::stderr()))
}
