//! Pictures through bad weather: the logic of the `quickstart` program.
//!
//! [`app`] is the whole program over any input, output and interruption, so that a test runs it.

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

use clap::Parser as _;

use crate::args::Options;
use crate::talk::Talk;

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
    let args = std::iter::once("quickstart").chain(args.iter().map(String::as_str));
    let options = match Options::try_parse_from(args) {
        Ok(options) => options,
        Err(help) if !help.use_stderr() => {
            talk.text(&help.to_string());
            return 0;
        }
        Err(wrong) => {
            // There is nobody left to tell where this fails too.
            let _ = write!(errors, "{wrong}");
            return 2;
        }
    };
    // Two workers: the simulator draws on one while the other keeps reporting what happens.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.map_err(|error| format!("no runtime: {error}")).and_then(|runtime| {
        runtime.block_on(async {
            if options.real {
                real::real(&options, key, input, &mut talk, interrupted).await
            } else {
                demo::demo(&options, &mut talk, interrupted).await
            }
        })
    });
    done.unwrap_or_else(|message| {
        let _ = writeln!(errors, "quickstart: {message}");
        2
    })
}
