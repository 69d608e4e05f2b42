//! Run with
//!
//! ```not_rust
//! cargo run -p explain < answer.txt
//! cargo run -p explain -- --jsonl < answers.jsonl
//! ```
//!
//! Says what an answer of the Gemini image API means, and what to do: `gemini-gateway explain`. See
//! `--help`.

use std::io;
use std::process::ExitCode;

use tower_gemini_gateway::explain;

fn main() -> ExitCode {
    let args: Vec<_> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    ExitCode::from(explain::app(&args, &mut input, &mut output, &mut io::stderr().lock()))
}
