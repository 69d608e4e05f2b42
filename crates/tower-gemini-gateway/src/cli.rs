//! Parses the command line: subcommands, with `serve` as the default.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::cost::CostArgs;
use crate::doctor::DoctorArgs;
use crate::door::manage::TokenCommand;
use crate::explain::ExplainArgs;
#[cfg(feature = "jobs")]
use crate::jobs::commands::JobsCommand;

const AFTER_HELP: &str = "\
SIGHUP, or a change of the file, reloads the configuration; SIGHUP also tries again what the API closed
(a day's limit, after a change of tier). SIGTERM and Ctrl-C finish the requests
in flight; a second one stops at once.

Exit codes: 0 ended as asked; 1 something that was or may have been paid for is lost;
2 not started: wrong arguments, configuration or address.";

/// A drop-in base URL for Gemini SDKs that never pays twice.
#[derive(Debug, Parser)]
#[command(name = "gemini-gateway", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<SubCommand>,
    /// The configuration file; without it every setting has its default
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    serve: ServeArgs,
    /// The same as the subcommand `check`
    #[arg(long)]
    check: bool,
    /// Print a configuration file with every key, its default and what it does
    #[arg(long)]
    print_config: bool,
}

#[derive(Debug, Subcommand)]
enum SubCommand {
    /// Answer requests (the default)
    Serve(ServeArgs),
    /// Read the configuration, report what is wrong with it, and exit
    Check(CheckArgs),
    /// List the published chains, ladders, peak hours and retry policies that the configuration may
    /// name, with their sources
    Presets(PresetsArgs),
    /// Serve a scenario: a simulated Gemini in its weather, without a gateway
    Simulate(SimulateArgs),
    /// Make and revoke the tokens of callers
    #[command(subcommand)]
    Token(TokenCommand),
    /// Count what a volume of images costs, by model, size, tier and platform
    Cost(CostArgs),
    /// Check the configuration, the way to the upstreams, the clock and the key
    Doctor(DoctorArgs),
    /// Plan, queue and run jobs of many images
    #[cfg(feature = "jobs")]
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Print the completions of a shell
    Completions {
        #[arg(value_name = "SHELL")]
        shell: CompletionShell,
    },
    /// Say what a response means, what it cost, and what to do
    Explain(ExplainArgs),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
pub(crate) struct ServeArgs {
    /// The address to listen on, in place of server.listen
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Answer from a simulated Gemini: no key, no network, no money
    #[arg(
        long,
        value_name = "WEATHER",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "calm"
    )]
    pub(crate) simulate: Option<SimWeather>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
pub(crate) struct CheckArgs {
    /// Write one JSON object: whether it is valid, and each problem with its line and key
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct PresetsArgs {
    /// For scripts
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct SimulateArgs {
    /// A file, or the name of a scenario that comes with the program. A file that ends in .csv is
    /// replayed: what log.observations wrote
    #[arg(long, value_name = "FILE", default_value = "day")]
    pub(crate) scenario: String,
    /// The same seed and the same requests give the same run
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print the scenario that fits a file of observations, with how well its numbers are known,
    /// and exit
    #[arg(long, value_name = "CSV")]
    pub(crate) fit: Option<std::path::PathBuf>,
    /// The address to listen on
    #[arg(id = "at", long = "listen", value_name = "ADDR", value_parser = listen_address,
        default_value = "127.0.0.1:8788")]
    pub(crate) listen: SocketAddr,
    /// Write one JSON object at the start, with the URL, and one at the end, with what was charged
    #[arg(long)]
    pub(crate) json: bool,
}

/// The weather of the simulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SimWeather {
    /// Every call succeeds
    Calm,
    /// Overloads, limits and broken connections, as users report them
    Stormy,
}

/// A shell that has completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletionShell {
    Bash,
    Zsh,
    Fish,
}

/// The completions of a shell.
pub(crate) fn completions(shell: CompletionShell) -> Vec<u8> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "gemini-gateway", &mut script);
    script
}

/// A parsed command line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    Serve {
        config: Option<PathBuf>,
        args: ServeArgs,
    },
    Check {
        config: Option<PathBuf>,
        listen: Option<SocketAddr>,
        json: bool,
    },
    Presets(PresetsArgs),
    Simulate(SimulateArgs),
    Token {
        config: Option<PathBuf>,
        command: TokenCommand,
    },
    PrintConfig,
    Explain(ExplainArgs),
    Doctor {
        config: Option<PathBuf>,
        args: DoctorArgs,
    },
    Cost {
        config: Option<PathBuf>,
        args: CostArgs,
    },
    Completions(CompletionShell),
    #[cfg(feature = "jobs")]
    Jobs {
        config: Option<PathBuf>,
        command: JobsCommand,
    },
}

impl Command {
    /// Whether it ends in order on a signal; all others end at once.
    pub(crate) fn ends_in_order(&self) -> bool {
        #[cfg(feature = "jobs")]
        if matches!(self, Self::Jobs { .. }) {
            return true;
        }
        matches!(self, Self::Serve { .. } | Self::Simulate(_))
    }
}

/// Parses the arguments after the program's name. An `Err` may also be the text of `--help` or
/// `--version`.
pub(crate) fn parse(args: &[String]) -> Result<Command, clap::Error> {
    let program = std::iter::once("gemini-gateway");
    let cli = Cli::try_parse_from(program.chain(args.iter().map(String::as_str)))?;
    if cli.print_config {
        return Ok(Command::PrintConfig);
    }
    let before = cli.serve;
    let check = |CheckArgs { json }, config| Command::Check { config, listen: before.listen, json };
    Ok(match cli.command {
        Some(SubCommand::Check(args)) => check(args, cli.config),
        _ if cli.check => check(CheckArgs::default(), cli.config),
        Some(SubCommand::Presets(args)) => Command::Presets(args),
        Some(SubCommand::Simulate(args)) => Command::Simulate(args),
        Some(SubCommand::Token(command)) => Command::Token { config: cli.config, command },
        Some(SubCommand::Completions { shell }) => Command::Completions(shell),
        #[cfg(feature = "jobs")]
        Some(SubCommand::Jobs(command)) => Command::Jobs { config: cli.config, command },
        Some(SubCommand::Cost(args)) => Command::Cost { config: cli.config, args },
        Some(SubCommand::Doctor(args)) => Command::Doctor { config: cli.config, args },
        Some(SubCommand::Explain(args)) => Command::Explain(args),
        Some(SubCommand::Serve(after)) => Command::Serve {
            config: cli.config,
            args: ServeArgs {
                listen: after.listen.or(before.listen),
                simulate: after.simulate.or(before.simulate),
            },
        },
        None => Command::Serve { config: cli.config, args: before },
    })
}

fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "not an address with a port; write it as 127.0.0.1:8787")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        let args: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        parse(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn serve_is_the_default_and_takes_its_options_before_or_after_its_name() {
        let serve = |config: Option<&str>, args| {
            Ok(Command::Serve { config: config.map(PathBuf::from), args })
        };
        assert_eq!(parsed(""), serve(None, ServeArgs::default()));
        let listen = Some("127.0.0.1:1".parse().unwrap());
        let args = ServeArgs { listen, simulate: Some(SimWeather::Stormy) };
        for line in [
            "--config a.toml --listen=127.0.0.1:1 --simulate=stormy",
            "serve -c a.toml --listen 127.0.0.1:1 --simulate=stormy",
            "--config=a.toml --simulate=stormy serve --listen 127.0.0.1:1",
        ] {
            assert_eq!(parsed(line), serve(Some("a.toml"), args), "{line}");
        }
        let calm = ServeArgs { simulate: Some(SimWeather::Calm), ..ServeArgs::default() };
        assert_eq!(parsed("--simulate"), serve(None, calm));
        assert_eq!(parsed("--simulate --config a.toml"), serve(Some("a.toml"), calm));
    }

    #[test]
    fn check_is_a_subcommand_and_a_flag() {
        let check = |json| Ok(Command::Check { config: Some("a.toml".into()), listen: None, json });
        for line in ["--check -c a.toml", "check -c a.toml", "-c a.toml check"] {
            assert_eq!(parsed(line), check(false), "{line}");
        }
        assert_eq!(parsed("check --json -c a.toml"), check(true));
        assert_eq!(parsed("--print-config"), Ok(Command::PrintConfig));
    }

    #[test]
    fn tokens_are_managed_by_a_subcommand_that_knows_the_configuration() {
        for line in ["token new ann --usd-per-day 5 -c a.toml", "-c a.toml token revoke ann"] {
            let Ok(Command::Token { config, .. }) = parsed(line) else { panic!("{line}") };
            assert_eq!(config, Some("a.toml".into()), "{line}");
        }
        assert!(parsed("token new").unwrap_err().contains("<NAME>"));
        assert!(parsed("token").unwrap_err().contains("revoke"));
    }

    #[test]
    fn completions_know_every_subcommand_and_its_options() {
        for (name, shell) in [
            ("bash", CompletionShell::Bash),
            ("zsh", CompletionShell::Zsh),
            ("fish", CompletionShell::Fish),
        ] {
            assert_eq!(parsed(&format!("completions {name}")), Ok(Command::Completions(shell)));
            let script = String::from_utf8(completions(shell)).unwrap();
            for word in ["serve", "doctor", "cost", "explain", "simulate", "upstream", "refusals"] {
                assert!(script.contains(word), "{name}: {word}");
            }
        }
        assert!(parsed("completions csh").unwrap_err().contains("bash, zsh, fish"));
    }

    #[test]
    fn errors_name_the_argument_and_what_to_write() {
        for (line, says) in [
            ("--port 1", "unexpected argument '--port'"),
            ("--confg a.toml", "'--config'"),
            ("--listen here", "write it as 127.0.0.1:8787"),
            ("--config", "a value is required for '--config <FILE>'"),
            ("--simulate=rain", "possible values: calm, stormy"),
            ("chek", "'check'"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(says) && error.contains("--help"), "{line}: {error}");
        }
    }
}
