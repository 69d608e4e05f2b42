//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

pub(crate) const HELP: &str = "\
A drop-in base URL for Gemini SDKs that never pays twice.

Usage: gateway [--config FILE] [--listen ADDR] [--simulate[=stormy]]

  --config FILE       the configuration; without it every setting has its default
  --listen ADDR       in place of server.listen
  --simulate          answer from a simulated Gemini: no key, no network, no money
  --simulate=stormy   the same in bad weather
  --check             read the configuration, say what is wrong with it, and end
  --print-config      print a configuration with every key, its default and what it does
  --version
  --help

SIGHUP, or a change of the file, reads the configuration again. SIGTERM and Ctrl-C finish what is under way; a second one ends at once.

Exit codes: 0 ended as asked; 1 something paid for may be lost; 2 not started: arguments, configuration or address.
";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Run(Run),
    Check(Option<PathBuf>),
    Help,
    Version,
    PrintConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Run {
    pub(crate) config: Option<PathBuf>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) simulate: Option<Skies>,
}

/// The weather of the simulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skies {
    Calm,
    Stormy,
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(args: &[String]) -> Result<Command, String> {
    let mut run = Run::default();
    let mut check = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (arg.as_str(), None),
        };
        let mut value = || {
            inline
                .or_else(|| args.next().map(String::as_str))
                .ok_or_else(|| format!("{name} needs a value"))
        };
        match name {
            "--help" | "-h" => return Ok(Command::Help),
            "--version" | "-V" => return Ok(Command::Version),
            "--print-config" => return Ok(Command::PrintConfig),
            "--check" => check = true,
            "--config" | "-c" => run.config = Some(PathBuf::from(value()?)),
            "--listen" => {
                let text = value()?;
                run.listen = Some(text.parse().map_err(|_| {
                    format!("--listen {text}: no address; write it as 127.0.0.1:8787")
                })?);
            }
            "--simulate" => {
                run.simulate = Some(match inline {
                    None | Some("calm") => Skies::Calm,
                    Some("stormy") => Skies::Stormy,
                    Some(other) => return Err(format!("--simulate={other}: it is calm or stormy")),
                });
            }
            _ => return Err(format!("`{arg}` is not known")),
        }
    }
    Ok(if check { Command::Check(run.config) } else { Command::Run(run) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_read_in_both_spellings() {
        let run = |run| Ok(Command::Run(run));
        assert_eq!(parsed(""), run(Run::default()));
        let listen = Some("127.0.0.1:1".parse().unwrap());
        let both = Run { config: Some("a.toml".into()), listen, simulate: Some(Skies::Stormy) };
        assert_eq!(parsed("--config a.toml --listen=127.0.0.1:1 --simulate=stormy"), run(both));
        assert_eq!(parsed("--check -c a.toml"), Ok(Command::Check(Some("a.toml".into()))));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, says) in [
            ("--port 1", "`--port` is not known"),
            ("--listen here", "write it as"),
            ("--config", "--config needs a value"),
            ("--simulate=rain", "calm or stormy"),
        ] {
            assert!(parsed(line).unwrap_err().contains(says), "{line}");
        }
    }
}
