//! Pictures through bad weather: the logic of the `quickstart` program.
//!
//! [`app`] is the whole program over any input, output and interruption, so that a test runs it.
//! The part to copy is `gemini.rs`: a client, the stack around it, and a request.

mod args;
mod demo;
mod files;
mod gemini;
mod real;
mod report;
mod run;
mod talk;

use std::future::Future;
use std::io::{BufRead, Write};

use crate::args::{HELP, Mode, Options};
use crate::talk::Talk;

/// All images are there, and the bookkeeping holds.
const DONE: u8 = 0;
/// An image is missing, or the bookkeeping does not hold.
const FAILED: u8 = 1;
/// Nothing was sent: the arguments, the key or the machine do not allow it.
const NOT_STARTED: u8 = 2;
/// What shells give for Ctrl-C: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// What surrounds the program.
#[allow(missing_debug_implementations, reason = "holds a key and somebody's streams")]
pub struct Surroundings<'a> {
    /// The value of `GEMINI_API_KEY`, where it is set. Only `--real` looks at it.
    pub key: Option<String>,
    /// Where answers to questions are read, where somebody can answer.
    pub input: Option<&'a mut dyn BufRead>,
    /// Progress and results.
    pub output: &'a mut dyn Write,
    /// Why nothing was done.
    pub errors: &'a mut dyn Write,
    /// Whether the output understands colours.
    pub colour: bool,
}

/// Runs the program until it is done or `interrupted` is. The result is the exit code: 0; 1 where
/// an image is missing or the simulator's ledger disagrees with ours; 2 where nothing was sent; 130
/// where it was interrupted.
pub fn app(
    args: &[String],
    surroundings: Surroundings<'_>,
    interrupted: impl Future<Output = ()>,
) -> u8 {
    let Surroundings { key, input, output, errors, colour } = surroundings;
    let mut talk = Talk::new(output, colour);
    let done = match Options::parse(args) {
        Ok(Options { mode: Mode::Help, .. }) => {
            talk.text(HELP);
            Ok(DONE)
        }
        Ok(Options { out, mode: Mode::Simulated(demo) }) => {
            on_runtime(async { demo::demo(&demo, &out, &mut talk, interrupted).await })
        }
        Ok(Options { out, mode: Mode::Real(real) }) => {
            real::prepare(&real, &out, key, input, &mut talk).and_then(|ready| match ready {
                Some(ready) => {
                    on_runtime(async { real::real(ready, &mut talk, interrupted).await })
                }
                None => Ok(FAILED),
            })
        }
        Err(message) => Err(format!("{message}\n\nTry --help.")),
    };
    done.unwrap_or_else(|message| {
        // There is nobody left to tell where this fails too.
        let _ = writeln!(errors, "quickstart: {message}");
        NOT_STARTED
    })
}

/// Two workers: the simulator draws on one while the other keeps telling what happens.
fn on_runtime(work: impl Future<Output = Result<u8, String>>) -> Result<u8, String> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?
        .block_on(work)
}
