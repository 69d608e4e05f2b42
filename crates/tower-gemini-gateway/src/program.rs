//! The `gemini-gateway` program over any arguments and outputs, so that a test can run it.

use std::io::{IsTerminal as _, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tower_gemini_sim::{Latency, ServeHandle, Sim, Totals};

use crate::cli::{self, Command, ServeArgs, SimWeather, SimulateArgs};
use crate::config::{self, Config, ConfigError, Upstream};
use crate::door::manage;
#[cfg(feature = "jobs")]
use crate::jobs;
use crate::reload::{self, FromFile, Watched};
use crate::running::{Bound, DONE, NOT_STARTED, Signal};
use crate::simulate::{self, Simulation};
use crate::snapshot::Snapshot;
use crate::{cost, doctor, explain, log, pages, presets, today, wire};

/// Runs the program. `signals` are the operating system's.
///
/// Exit codes: 0 ended as asked; 1 something that was or may have been paid for is lost; 2 not
/// started.
pub async fn app(
    args: &[String],
    output: &mut (dyn Write + Send),
    errors: &mut (dyn Write + Send),
    signals: mpsc::Receiver<Signal>,
) -> u8 {
    // Where nobody reads the output any more there is nobody to report it to.
    let mut print =
        |text: &str| drop(output.write_all(text.as_bytes()).and_then(|()| output.flush()));
    let mut refuse = |error: &dyn std::fmt::Display| {
        let _ = writeln!(errors, "gemini-gateway: {error}");
        NOT_STARTED
    };
    let (config, args) = match cli::parse(args) {
        Ok(Command::Serve { config, args }) => (config, args),
        Ok(Command::Simulate(SimulateArgs { fit: Some(file), .. })) => {
            return match simulate::fitted(&file) {
                Ok(scenario) => {
                    print(&scenario);
                    DONE
                }
                Err(error) => refuse(&error),
            };
        }
        Ok(Command::Presets(args)) => {
            print(&presets::list(args.json));
            return DONE;
        }
        Ok(Command::Simulate(args)) => {
            return match Simulation::start(&args).await {
                Ok(simulation) => {
                    print(&simulation.welcome());
                    print(&simulation.run(signals).await);
                    DONE
                }
                Err(error) => refuse(&error),
            };
        }
        Ok(Command::Token { config, command }) => {
            let known = match config.as_deref().map(reload::read).transpose() {
                Ok(file) => file.and_then(|file| file.config.auth.tokens_file),
                Err(error) => return refuse(&error),
            };
            return match manage::run(&command, known) {
                Ok(said) => {
                    print(&said);
                    DONE
                }
                Err(error) => refuse(&error),
            };
        }
        Ok(Command::Doctor { config, args }) => {
            let file = read_config(config.as_deref(), None);
            let ask = std::io::stdin().is_terminal().then_some(read_line as doctor::ReadLine);
            return doctor::run(&args, file, ask, output, errors).await;
        }
        #[cfg(feature = "jobs")]
        Ok(Command::Jobs { config, command }) => {
            let file = match read_config(config.as_deref(), None) {
                Ok(file) => file,
                Err(error) => return refuse(&error),
            };
            let done = jobs::commands::run(&command, file.config, output, errors, signals).await;
            return match done {
                Ok(()) => DONE,
                Err(error) => {
                    let _ = writeln!(errors, "gemini-gateway: {error}");
                    NOT_STARTED
                }
            };
        }
        Ok(Command::Completions(shell)) => {
            print(&String::from_utf8_lossy(&cli::completions(shell)));
            return DONE;
        }
        Ok(Command::Cost { config, args }) => {
            let file = read_config(config.as_deref(), None);
            return match file.and_then(|file| file.config.read_catalog()) {
                Ok(catalog) => cost::run(&args, &catalog, output, errors),
                Err(error) => refuse(&error),
            };
        }
        Ok(Command::Explain(args)) => {
            return explain::run(&args, &mut std::io::stdin().lock(), output, errors);
        }
        Ok(Command::PrintConfig) => {
            print(config::EXAMPLE);
            return DONE;
        }
        Ok(Command::Check { config, listen, json }) => {
            return match (check(config.as_deref(), listen), json) {
                (checked, true) => {
                    print(&checked_json(checked.as_ref().err()));
                    if checked.is_ok() { DONE } else { NOT_STARTED }
                }
                (Ok(()), false) => {
                    print("The configuration is valid.\n");
                    DONE
                }
                (Err(error), false) => refuse(&error),
            };
        }
        Err(error) if error.use_stderr() => {
            let _ = write!(errors, "{error}");
            return NOT_STARTED;
        }
        Err(help) => {
            print(&help.to_string());
            return DONE;
        }
    };
    match prepare(config, args).await {
        Ok((bound, watched, sim)) => {
            let gateway = bound.gateway.clone();
            let model = today::default_model(gateway.snapshot().catalog());
            let url = format!("{}://{}", bound.scheme(), bound.addr);
            print(&welcome(&url, &model, sim.is_some()));
            let (calls, images) = pages::delivered(&gateway.snapshot());
            let code = bound.run(watched, signals).await;
            if let Some((sim, server)) = sim {
                // Without what earlier processes delivered.
                let (all_calls, all_images) = pages::delivered(&gateway.snapshot());
                print(&gain((all_calls - calls, all_images - images), sim.totals()));
                server.shutdown().await;
            }
            code
        }
        Err(error) => refuse(&error),
    }
}

/// Whether the program ends in order on a signal with these arguments. With all others (an
/// `explain` that waits for its input, say) the operating system ends it.
#[must_use]
pub fn ends_in_order(args: &[String]) -> bool {
    cli::parse(args).is_ok_and(|command| command.ends_in_order())
}

/// A line from the terminal; empty at its end.
fn read_line() -> String {
    let mut line = String::new();
    // An error is no consent either.
    let _ = std::io::stdin().read_line(&mut line);
    line
}

fn check(path: Option<&Path>, listen: Option<SocketAddr>) -> Result<(), ConfigError> {
    Snapshot::build(&read_config(path, listen)?.config, None)?;
    Ok(())
}

/// What is wrong with a configuration, for scripts and editors.
fn checked_json(error: Option<&ConfigError>) -> String {
    let problems = error.map_or(&[][..], |error| &error.problems).iter().map(|problem| {
        json!({
            "line": problem.line,
            "key": problem.key,
            "what": problem.what,
            "remedy": Some(&problem.remedy).filter(|remedy| !remedy.is_empty()),
        })
    });
    let problems: Vec<_> = problems.collect();
    let file = error.and_then(|error| error.file.as_deref());
    format!("{:#}\n", json!({ "ok": error.is_none(), "file": file, "problems": problems }))
}

fn read_config(path: Option<&Path>, listen: Option<SocketAddr>) -> Result<FromFile, ConfigError> {
    let without = || Ok(FromFile { config: Config::default(), text: String::new() });
    let mut file = path.map_or_else(without, reload::read)?;
    if let Some(listen) = listen {
        file.config.server.listen = listen;
        file.config.check_listen(listen)?;
    }
    Ok(file)
}

async fn prepare(
    path: Option<PathBuf>,
    args: ServeArgs,
) -> Result<(Bound, Option<Watched>, Option<(Sim, ServeHandle)>), ConfigError> {
    let file = read_config(path.as_deref(), args.listen)?;
    // A simulated upstream is not in the file, so a changed file must not take its place.
    let watched =
        path.filter(|_| args.simulate.is_none()).map(|path| Watched::new(path, args.listen, &file));
    let mut config = file.config;
    log::begin(&config)?;
    let sim = match args.simulate {
        Some(weather) => {
            let (here, sim) = (SocketAddr::from(([127, 0, 0, 1], 0)), simulated(weather));
            let server = tower_gemini_sim::serve(sim.clone(), here).await.map_err(|error| {
                let what = format!("the simulated Gemini cannot listen on loopback: {error}");
                ConfigError::at("--simulate", what, "")
            })?;
            config.upstream = Upstream::both_at("simulator", &server.url());
            Some((sim, server))
        }
        None => None,
    };
    Ok((Bound::new(&config).await?, watched, sim))
}

/// A simulated Gemini at the gateway's own time: its peak hours and its midnight are real, and its
/// webhooks are not old.
fn simulated(weather: SimWeather) -> Sim {
    let now = Duration::from_secs(wire::now_unix());
    let sim = Sim::builder().latency(Latency::fixed(Duration::from_secs(2)));
    let sim = sim.starts_at_utc(now).epoch(now);
    match weather {
        SimWeather::Calm => sim.build(),
        SimWeather::Stormy => sim.storm().build(),
    }
}

/// What the gateway gained over a client that sends once, by the simulator's own ledger.
fn gain((calls, delivered): (u64, u64), sent: Totals) -> String {
    if calls == 0 {
        return String::new();
    }
    let once = 100 * sent.images_delivered / sent.requests.max(1);
    format!(
        "Through the gateway: {delivered} of {calls} calls got an image ({} %).\n\
         Sending once: {} of {} requests to the simulated Gemini returned one ({once} %).\n\
         Paid for: {} images, of which {} did not arrive.\n",
        100 * delivered / calls,
        sent.images_delivered,
        sent.requests,
        sent.charged,
        sent.charged_but_undelivered,
    )
}

/// How to use it, ready to copy.
fn welcome(url: &str, model: &str, simulated: bool) -> String {
    let (key, what) = match simulated {
        true => (
            "any-key",
            "In front of a simulated Gemini: no key, no network, no money. Ctrl-C prints the gain.",
        ),
        false => ("$GEMINI_API_KEY", "In front of the upstreams of the configuration."),
    };
    format!(
        "{what}

Python   genai.Client(api_key=…, http_options={{'base_url': '{url}'}})
Node     new GoogleGenAI({{ apiKey, httpOptions: {{ baseUrl: '{url}' }} }})
OpenAI   OpenAI(api_key=…, base_url='{url}/v1beta/openai/')
curl     curl -s {url}/v1beta/models/{model}:generateContent \\
         -H \"x-goog-api-key: {key}\" -H content-type:application/json \\
         -d '{{\"contents\":[{{\"parts\":[{{\"text\":\"a red apple\"}}]}}]}}' -o answer.json

What is going on: {url}/status

"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demonstration_reports_what_the_gateway_gained() {
        let sim = Sim::quick([]);
        assert_eq!(gain((0, 0), sim.totals()), "");
        let text = gain((120, 117), sim.totals());
        assert!(
            text.starts_with("Through the gateway: 117 of 120 calls got an image (97 %)."),
            "{text}"
        );
    }

    #[test]
    fn what_check_finds_is_json_for_scripts_with_the_line_and_the_key() {
        let read = |error: Option<&ConfigError>| -> serde_json::Value {
            serde_json::from_str(&checked_json(error)).unwrap()
        };
        assert_eq!(read(None), json!({ "ok": true, "file": null, "problems": [] }));
        let error = Config::parse("[retry]\nattempts = 0\n", "a.toml").unwrap_err();
        let said = read(Some(&error));
        assert_eq!((&said["ok"], &said["file"]), (&json!(false), &json!("a.toml")));
        assert_eq!(said["problems"][0]["line"], 2);
        assert_eq!(said["problems"][0]["key"], "retry.attempts");
    }

    // Its example named a model by hand, which would have been wrong from its end on.
    #[test]
    fn the_welcome_names_a_model_of_today() {
        let catalog = tower_gemini::catalog::Catalog::builtin();
        let model = today::default_model(catalog);
        let known = catalog.lookup(&model).unwrap();
        assert!(!known.is_retired_on(today::today()));
        assert!(welcome("http://here", &model, false).contains(&format!("/models/{model}:")));
    }

    // Whoever checks the signature of a webhook refuses one that is five minutes old.
    #[tokio::test]
    async fn what_the_simulated_gemini_dates_is_of_today() {
        use http_body_util::BodyExt as _;
        use tower::ServiceExt as _;
        let create = http::Request::post("/v1beta/models/gemini-3-pro-image:batchGenerateContent")
            .header("x-goog-api-key", "any")
            .body(http_body_util::Full::from(
                r#"{"batch": {"inputConfig": {"requests": {"requests": [{"request":
                    {"contents": [{"parts": [{"text": "a cat"}]}]}}]}}}}"#,
            ))
            .unwrap();
        let made = simulated(SimWeather::Calm).service().oneshot(create).await.unwrap();
        let made = made.into_body().collect().await.unwrap().to_bytes();
        let made: serde_json::Value = serde_json::from_slice(&made).unwrap();
        let dated: jiff::Timestamp =
            made["metadata"]["createTime"].as_str().unwrap().parse().unwrap();
        assert!(jiff::Timestamp::now().duration_since(dated).abs().as_secs() < 60, "{made}");
    }
}
