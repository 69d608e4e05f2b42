//! Run with
//!
//! ```not_rust
//! cargo run -p explain < answer.txt
//! cargo run -p explain -- --jsonl < answers.jsonl
//! ```
//!
//! Says what an answer of the Gemini image API means, and what to do. See `--help`.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    ExitCode::from(explain::app(
        &args,
        io::stdin().lock(),
        io::stdout().lock(),
        io::stderr().lock(),
    ))
}
