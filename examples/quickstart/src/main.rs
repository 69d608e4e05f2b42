//! Run with
//!
//! ```not_rust
//! cargo run -p quickstart
//! GEMINI_API_KEY=... cargo run -p quickstart -- --real --prompt "a red panda reading a newspaper"
//! ```
//!
//! Draws pictures through bad weather, and compares its books with what was really charged. The
//! part to copy is `gemini.rs`: a client, the stack around it, and a request. See `--help`.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use quickstart::{Surroundings, app};

fn main() -> ExitCode {
    let args: Vec<_> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let (mut input, mut output, mut errors) = (io::stdin().lock(), io::stdout(), io::stderr());
    let surroundings = Surroundings {
        key: std::env::var("GEMINI_API_KEY").ok(),
        input: if io::stdin().is_terminal() { Some(&mut input) } else { None },
        colour: output.is_terminal() && !no_color,
        output: &mut output,
        errors: &mut errors,
    };
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a handler Ctrl-C ends the process by itself.
            std::future::pending::<()>().await;
        }
    };
    ExitCode::from(app(&args, surroundings, interrupted))
}
