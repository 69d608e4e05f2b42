//! Run with
//!
//! ```not_rust
//! cargo run -p watch-a-storm
//! cargo run -p watch-a-storm -- --seed 7 --hours 12
//! ```
//!
//! A day of bad weather at Gemini's image models, in seconds and offline: a plain retry and a
//! fallback chain beside it. See `--help`.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    ExitCode::from(watch_a_storm::app(&args, &mut io::stdout().lock(), &mut io::stderr().lock()))
}
