//! The arguments.

use std::path::PathBuf;

use http::Uri;
use tower_gemini::call::ImageSize;

pub(crate) const HELP: &str = "\
quickstart: pictures through bad weather, and what they cost

USAGE
    quickstart [--out DIR] [--seed N] [--port N] [--quick]
        Starts a simulated Gemini on a loopback port and draws some pictures through a stretch of bad weather: overload,
        rate limits, drafts, a refusal, broken connections. Prints what happens as it happens, then every attempt with what it
        cost by our books, beside what the simulator really charged. No network, no key, about 15 seconds.

    GEMINI_API_KEY=... quickstart --real [--prompt TEXT] [--model ID] [--size 512|1K|2K|4K] [--count N] [--yes] [--out DIR]
        Draws with Google's Gemini, for money: says how much at most, and asks first.

OPTIONS
    --out DIR        where the images go                               (default: out/quickstart)
    --seed N         of pictures, latencies and jitter                 (default: 7)
                     (who gets which of the last two depends on the order of arrival)
    --port N         the simulator's port                              (default: any free one)
    --quick          small pictures, no latencies, waits of milliseconds

    --real           talk to Google, with the key in GEMINI_API_KEY
    --prompt TEXT    what to draw                                      (default: a red panda)
    --model ID       who draws                                         (default: gemini-3.1-flash-image)
    --size SIZE      how large                                         (default: 1K)
    --count N        how many, 1 to 100                                (default: 1)
    --yes            do not ask
    --endpoint URL   another place than https://generativelanguage.googleapis.com

    -h, --help       print this

EXIT CODE
    0 all well; 1 an image is missing, or the simulator's ledger disagrees with ours; 2 nothing was sent; 130 interrupted
";

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) out: PathBuf,
    pub(crate) mode: Mode,
}

#[derive(Debug)]
pub(crate) enum Mode {
    Help,
    Simulated(Demo),
    Real(Real),
}

#[derive(Debug)]
pub(crate) struct Demo {
    pub(crate) seed: u64,
    pub(crate) port: u16,
    pub(crate) quick: bool,
}

#[derive(Debug)]
pub(crate) struct Real {
    pub(crate) prompt: String,
    pub(crate) model: String,
    pub(crate) size: ImageSize,
    pub(crate) count: u32,
    pub(crate) yes: bool,
    pub(crate) endpoint: String,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        let mut out = PathBuf::from("out/quickstart");
        let mut demo = Demo { seed: 7, port: 0, quick: false };
        let mut real = Real {
            prompt: "A red panda reading a newspaper by a train window, soft morning light"
                .to_owned(),
            model: "gemini-3.1-flash-image".to_owned(),
            size: ImageSize::K1,
            count: 1,
            yes: false,
            endpoint: "https://generativelanguage.googleapis.com".to_owned(),
        };
        let (mut is_real, mut only_real, mut only_simulated) = (false, None, None);
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (name, attached) = match arg.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value)),
                _ => (arg.as_str(), None),
            };
            let mut value = || {
                let value = attached.or_else(|| args.next().map(String::as_str));
                let value = value.ok_or_else(|| format!("{name} needs a value"))?;
                if value.trim().is_empty() {
                    return Err(format!("{name} needs a value, and is given an empty one"));
                }
                Ok(value)
            };
            let (mut of_real, mut of_simulated) = (true, false);
            match name {
                "-h" | "--help" => return Ok(Self { out, mode: Mode::Help }),
                "--real" | "--yes" | "--quick" if attached.is_some() => {
                    return Err(format!("{name} takes no value"));
                }
                "--real" => is_real = true,
                "--yes" => real.yes = true,
                "--prompt" => real.prompt = value()?.to_owned(),
                "--model" => real.model = model(value()?)?,
                "--size" => real.size = size(value()?)?,
                "--count" => real.count = count(value()?)?,
                "--endpoint" => real.endpoint = endpoint(value()?)?,
                _ => {
                    (of_real, of_simulated) = (false, true);
                    match name {
                        "--quick" => demo.quick = true,
                        "--seed" => demo.seed = number(name, value()?)?,
                        "--port" => demo.port = number(name, value()?)?,
                        "--out" => (out, of_simulated) = (PathBuf::from(value()?), false),
                        _ if name.starts_with('-') => {
                            return Err(format!("there is no option {name}"));
                        }
                        _ => {
                            return Err(format!(
                                "`{arg}` is not an option; a prompt goes after --real --prompt"
                            ));
                        }
                    }
                }
            }
            if of_real && name != "--real" {
                only_real = Some(name);
            }
            if of_simulated {
                only_simulated = Some(name);
            }
        }
        match (is_real, only_real, only_simulated) {
            (false, Some(name), _) => {
                Err(format!("{name} goes with --real, which talks to Google and costs money"))
            }
            (true, _, Some(name)) => {
                Err(format!("{name} is of the simulator and does not go with --real"))
            }
            (true, ..) => Ok(Self { out, mode: Mode::Real(real) }),
            (false, ..) => Ok(Self { out, mode: Mode::Simulated(demo) }),
        }
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} needs a number, and `{value}` is none that it takes"))
}

fn count(value: &str) -> Result<u32, String> {
    number("--count", value).and_then(|count: u32| match count {
        1..=100 => Ok(count),
        _ => Err(format!("--count is from 1 to 100, and {value} is not")),
    })
}

fn model(value: &str) -> Result<String, String> {
    let id = value.trim_start_matches("models/");
    // It becomes a part of the path: nothing that means something there may pass.
    if id.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_'))
        && !id.contains("..")
    {
        Ok(id.to_owned())
    } else {
        Err(format!("`{value}` is not a model's id; an id looks like gemini-3.1-flash-image"))
    }
}

fn size(value: &str) -> Result<ImageSize, String> {
    // The API itself refuses a lower-case k; a person at a keyboard means the same.
    let known = ImageSize::ALL.into_iter().find(|size| size.as_str().eq_ignore_ascii_case(value));
    known.ok_or_else(|| format!("`{value}` is not a size; the sizes are 512, 1K, 2K and 4K"))
}

fn endpoint(value: &str) -> Result<String, String> {
    let uri: Uri = value.parse().map_err(|error| format!("--endpoint needs a URL: {error}"))?;
    let loopback = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if loopback => {}
        _ => {
            return Err(
                "--endpoint must begin with https:// (http:// only for this machine): the key would travel in the clear".into(),
            );
        }
    }
    if uri.query().is_some() {
        return Err("--endpoint ends before the query".into());
    }
    Ok(value.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(args: &[&str]) -> String {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Options::parse(&args).map(|options| format!("{options:?}")).unwrap_err()
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_a_sentence() {
        assert_eq!(error(&["--fast"]), "there is no option --fast");
        assert_eq!(
            error(&["panda"]),
            "`panda` is not an option; a prompt goes after --real --prompt"
        );
        assert_eq!(error(&["--out"]), "--out needs a value");
        assert_eq!(error(&["--out="]), "--out needs a value, and is given an empty one");
        assert_eq!(
            error(&["--port", "70000"]),
            "--port needs a number, and `70000` is none that it takes"
        );
        assert_eq!(
            error(&["--real", "--size", "8K"]),
            "`8K` is not a size; the sizes are 512, 1K, 2K and 4K"
        );
        assert!(error(&["--real", "--model", "../x"]).contains("is not a model's id"));
        assert_eq!(error(&["--real", "--count=0"]), "--count is from 1 to 100, and 0 is not");
        assert_eq!(error(&["--real=yes"]), "--real takes no value");
        assert!(error(&["--prompt", "a cat"]).contains("goes with --real"));
        assert!(error(&["--real", "--seed", "1"]).contains("does not go with --real"));
        assert!(error(&["--real", "--endpoint", "http://example.com"]).contains("in the clear"));
    }

    #[test]
    fn a_size_may_be_typed_in_lower_case() {
        assert_eq!(size("2k"), Ok(ImageSize::K2));
    }
}
