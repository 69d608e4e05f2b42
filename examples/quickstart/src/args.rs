//! The arguments.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::NonEmptyStringValueParser;
use http::Uri;
use tower_gemini::calendar::PacificDay;
use tower_gemini::call::ImageSize;
use tower_gemini::catalog::Catalog;
use tower_gemini::clock::{Clock, SystemClock};

const ABOUT: &str = "\
Draws pictures through bad weather, and says what they cost.

Starts a simulated Gemini on a loopback port and draws some pictures through a stretch of bad
weather: overload, rate limits, drafts, a refusal, broken connections. Prints what happens as it
happens, then every attempt with its cost by our books, beside what the simulator really charged.
No network, no key, about 15 seconds.

With --real it draws with Google's Gemini, for money: it says how much at most, and asks first.";

const AFTER_HELP: &str = "\
Exit codes: 0 all well; 1 an image is missing, or the simulator's ledger disagrees with ours;
2 nothing was sent; 130 interrupted.";

const PANDA: &str = "A red panda reading a newspaper by a train window, soft morning light";

#[derive(Debug, Parser)]
#[command(about = ABOUT, after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// Where the images go
    #[arg(long, value_name = "DIR", default_value = "out/quickstart")]
    pub(crate) out: PathBuf,

    /// Seed of pictures, latencies and jitter; who gets which of the last two depends on the order
    /// of arrival
    #[arg(long, value_name = "N", default_value_t = 7, conflicts_with = "real")]
    pub(crate) seed: u64,
    /// The simulator's port; 0 is any free one
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "real")]
    pub(crate) port: u16,
    /// Small pictures, no latencies, waits of milliseconds
    #[arg(long, conflicts_with = "real")]
    pub(crate) quick: bool,

    /// Talk to Google, with the key in the environment variable GEMINI_API_KEY
    #[arg(long)]
    pub(crate) real: bool,
    /// What to draw
    #[arg(long, value_name = "TEXT", default_value = PANDA, requires = "real",
        value_parser = NonEmptyStringValueParser::new())]
    pub(crate) prompt: String,
    /// Who draws
    #[arg(long, value_name = "ID", default_value_t = newest(), requires = "real",
        value_parser = model)]
    pub(crate) model: String,
    /// How large
    #[arg(long, value_name = "512|1K|2K|4K", default_value = "1K", requires = "real",
        value_parser = size)]
    pub(crate) size: ImageSize,
    /// How many, 1 to 100
    #[arg(long, value_name = "N", default_value_t = 1, requires = "real",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) count: u32,
    /// Do not ask
    #[arg(long, requires = "real")]
    pub(crate) yes: bool,
    /// Another place than Google's
    #[arg(long, value_name = "URL", default_value = "https://generativelanguage.googleapis.com",
        requires = "real", value_parser = endpoint)]
    pub(crate) endpoint: String,
}

/// The newest quick model of today.
fn newest() -> String {
    let today = PacificDay::at(SystemClock.now()).to_string().parse().unwrap_or_default();
    let newest = Catalog::builtin().default_on(today);
    newest.map_or("gemini-3.1-flash-image", |model| model.id.as_str()).to_owned()
}

fn model(value: &str) -> Result<String, String> {
    let id = value.trim_start_matches("models/");
    // It becomes a part of the path: nothing that means something there may pass.
    if id.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_'))
        && !id.contains("..")
        && !id.is_empty()
    {
        Ok(id.to_owned())
    } else {
        Err("this is not a model's id; an id looks like gemini-3.1-flash-image".to_owned())
    }
}

fn size(value: &str) -> Result<ImageSize, String> {
    // The API itself refuses a lower-case k; a person at a keyboard means the same.
    let known = ImageSize::ALL.into_iter().find(|size| size.as_str().eq_ignore_ascii_case(value));
    known.ok_or_else(|| "the sizes are 512, 1K, 2K and 4K".to_owned())
}

fn endpoint(value: &str) -> Result<String, String> {
    let uri: Uri = value.parse().map_err(|error| format!("this is not a URL: {error}"))?;
    let loopback = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if loopback => {}
        _ => {
            return Err("it must begin with https:// (http:// only for this machine): the key \
                would travel in the clear"
                .to_owned());
        }
    }
    if uri.query().is_some() {
        return Err("it must end before the query".to_owned());
    }
    Ok(value.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(args: &[&str]) -> String {
        let args = std::iter::once("quickstart").chain(args.iter().copied());
        Options::try_parse_from(args).map(|options| format!("{options:?}")).unwrap_err().to_string()
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_a_sentence() {
        for (args, said) in [
            (&["--fast"][..], "unexpected argument '--fast'"),
            (&["panda"], "unexpected argument 'panda'"),
            (&["--out"], "a value is required for '--out <DIR>'"),
            (&["--out="], "a value is required for '--out <DIR>'"),
            (&["--port", "70000"], "invalid value '70000' for '--port <N>'"),
            (&["--real", "--size", "8K"], "the sizes are 512, 1K, 2K and 4K"),
            (&["--real", "--model", "../x"], "not a model's id"),
            (&["--real", "--count=0"], "0 is not in 1..=100"),
            (&["--real", "--prompt="], "a value is required for '--prompt <TEXT>'"),
            (&["--real=yes"], "unexpected value 'yes' for '--real'"),
            (&["--prompt", "a cat"], "required arguments were not provided:\n  --real"),
            (&["--real", "--seed", "1"], "'--real' cannot be used with"),
            (&["--real", "--endpoint", "http://example.com"], "in the clear"),
        ] {
            assert!(error(args).contains(said), "{args:?}: {}", error(args));
        }
    }

    #[test]
    fn a_size_may_be_typed_in_lower_case() {
        assert_eq!(size("2k"), Ok(ImageSize::K2));
    }
}
