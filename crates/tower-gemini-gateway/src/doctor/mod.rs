//! `gemini-gateway doctor`: checks what a gateway needs, one thing after the other.
//!
//! | check | how | costs |
//! | --- | --- | --- |
//! | `config` | as `gemini-gateway check` | |
//! | `dns`, `connect`, `tls` | the way to each upstream, through its proxy where it has one | |
//! | `clock` | the Date header of the upstream's response | |
//! | `key` | the list of models, or on Vertex AI the count of two tokens | nothing |
//! | `image`, with `--image` | one image of the cheapest model, once its price is agreed to | its price |
//!
//! What a response means, and what it cost, is judged as for the gateway's own calls;
//! `remedies.toml` says what to do in terms of the gateway's file.

mod calls;
mod network;
mod report;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::HeaderValue;
use tower_gemini::catalog::Catalog;
use tower_gemini::classify::remedy;
use tower_gemini::cost::cost_served;
use tower_gemini::verdict::Outcome;

use self::calls::{Called, Caller, Canary};
use self::report::{Finding, Report};
use crate::config::{AuthMode, Config, ConfigError, Upstream};
use crate::reload::FromFile;
use crate::snapshot::Snapshot;
use crate::{explain, stats, upstream};

/// What is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(after_help = "Exit codes: 0 all is well; 1 a problem; 2 wrong arguments.")]
pub(crate) struct DoctorArgs {
    /// Check this upstream only
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
    /// Request one image as well, of the cheapest model; states the price and asks first
    #[arg(long)]
    image: bool,
    /// Agree to the price of --image
    #[arg(long, requires = "image")]
    yes: bool,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

/// Reads a line from the terminal.
pub(crate) type ReadLine = fn() -> String;

/// Where `auth.mode = "passthrough"` leaves keys to the callers, this variable has one to check.
const KEY_ENV: &str = "GEMINI_API_KEY";
/// A clock may be off by so much: the Date header has whole seconds, and was on its way.
const CLOCK_TOLERANCE_SECS: u64 = 30;
/// For the free call: it generates nothing.
const FREE_CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the subcommand over what was read as the configuration. `ask` is there on a terminal.
///
/// The result is the exit code: 0 all is well, 1 a problem, 2 wrong arguments.
pub(crate) async fn run(
    args: &DoctorArgs,
    file: Result<FromFile, ConfigError>,
    ask: Option<ReadLine>,
    output: &mut (dyn Write + Send),
    errors: &mut (dyn Write + Send),
) -> u8 {
    let mut refuse = |why: &str| {
        let _ = writeln!(errors, "gemini-gateway: {why}");
        2
    };
    if args.image && !args.yes && ask.is_none() {
        return refuse("--image costs money, and nobody is there to ask; write --yes to agree");
    }
    let mut report = Report::new(output, args.json);
    let file = match file {
        Ok(file) => file,
        Err(error) => {
            refused_config(&error, &mut report);
            report.end();
            return 1;
        }
    };
    let config = file.config;
    let is_chosen = |one: &&Upstream| args.upstream.as_ref().is_none_or(|name| *name == one.name);
    let chosen: Vec<_> = config.upstream.iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        let names: Vec<_> = config.upstream.iter().map(|one| one.name.as_str()).collect();
        return refuse(&format!("no such upstream; there are {}", names.join(", ")));
    }
    match Snapshot::build(&config, None) {
        Ok(_) => report.add(Finding::ok("config", "the configuration is valid".into())),
        Err(error) => refused_config(&error, &mut report),
    }
    // What is wrong with the file of models has just been reported.
    let catalog = config.read_catalog().unwrap_or_else(|_| Arc::new(Catalog::builtin().clone()));
    let mut accepted = None;
    for upstream in chosen {
        let found = examine(&config, &catalog, upstream, &mut report).await;
        accepted = accepted.or(found.filter(|(caller, _)| caller.speaks_gemini()));
    }
    match (args.image, accepted) {
        (false, _) => {}
        (true, None) => report.add(Finding::skipped("image", "no key was accepted")),
        (true, Some((caller, listed))) => {
            let ask = ask.filter(|_| !args.yes);
            let name = caller.name().to_owned();
            let finding = image(&config, caller, &listed, ask, errors).await;
            report.add(finding.of(&name));
        }
    }
    if report.end() { 0 } else { 1 }
}

fn refused_config(error: &ConfigError, report: &mut Report<'_>) {
    for problem in &error.problems {
        let place = match (&error.file, problem.line) {
            (Some(file), Some(line)) => format!("{file}, line {line}: "),
            (Some(file), None) => format!("{file}: "),
            (None, _) => String::new(),
        };
        let mut finding = Finding::problem("config", format!("{place}{}", problem.what));
        finding.remedies.extend(Some(problem.remedy.clone()).filter(|text| !text.is_empty()));
        report.add(finding);
    }
}

/// Checks one upstream. Returns it with its models where it accepts the key.
async fn examine<'a>(
    config: &Config,
    catalog: &'a Catalog,
    upstream: &'a Upstream,
    report: &mut Report<'_>,
) -> Option<(Caller<'a>, Called)> {
    let connect = config.timeouts.connect.0;
    if !network::reach(upstream, connect, |finding| report.add(finding)).await {
        let skipped = Finding::skipped("key", "not sent: the upstream cannot be reached");
        report.add(skipped.of(&upstream.name));
        return None;
    }
    let (key, no_key) = match key(config, upstream) {
        Ok(key) => (key, None),
        Err(error) => (None, Some(error)),
    };
    let has_key = key.is_some();
    let caller = Caller::new(upstream, catalog, key, connect);
    // Without a key it still shows the clock.
    let request = caller.free_call()?;
    let what = format!("{} {}", request.method(), request.uri().path());
    let called = match caller.send(request, FREE_CALL_TIMEOUT).await {
        Ok(called) => called,
        Err(error) => {
            refused_config(&error, report);
            return None;
        }
    };
    report.add(clock(called.ahead).of(&upstream.name));
    if let Some(error) = no_key {
        // The configuration's own check has reported it.
        report.add(Finding::skipped("key", &error.to_string()).of(&upstream.name));
        return None;
    }
    if !has_key {
        let skipped = match upstream.kind.is_vertex() {
            true => "callers bring theirs (auth.mode = \"passthrough\")".to_owned(),
            false => format!(
                "callers bring theirs (auth.mode = \"passthrough\"); set {KEY_ENV} to check one"
            ),
        };
        report.add(Finding::skipped("key", &skipped).of(&upstream.name));
        return None;
    }
    if !called.verdict.outcome().is_success() || called.failure.is_some() {
        report.add(failed("key", &called).of(&upstream.name));
        return None;
    }
    report.add(Finding::ok("key", format!("accepted ({what}, free)")).of(&upstream.name));
    Some((caller, called))
}

/// The key that is checked; `None` where callers bring theirs.
fn key(config: &Config, upstream: &Upstream) -> Result<Option<HeaderValue>, ConfigError> {
    let env = |name: &str| std::env::var(name).ok();
    if config.auth.mode == AuthMode::Tokens {
        return upstream::read_key(upstream, env).map(Some);
    }
    let key = env(KEY_ENV).filter(|_| !upstream.kind.is_vertex());
    Ok(key.and_then(|key| HeaderValue::try_from(key.trim()).ok()).map(|mut key| {
        key.set_sensitive(true);
        key
    }))
}

fn clock(ahead: Option<i64>) -> Finding {
    let Some(ahead) = ahead else {
        return Finding::skipped("clock", "the response had no Date header");
    };
    let off = format!("{} s", ahead.unsigned_abs());
    match ahead.unsigned_abs() {
        0..=1 => Finding::ok("clock", "this machine's clock agrees with the upstream's".into()),
        2..=CLOCK_TOLERANCE_SECS => {
            Finding::ok("clock", format!("this machine's clock is {off} off, which is harmless"))
        }
        _ => {
            let side = if ahead > 0 { "ahead of" } else { "behind" };
            let what = format!("this machine's clock is {off} {side} the upstream's");
            Finding::problem("clock", what).remedied("clock")
        }
    }
}

/// What a call came to that got nothing.
fn failed(check: &'static str, called: &Called) -> Finding {
    let (verdict, outcome) = (&called.verdict, called.verdict.outcome());
    let advice = explain::advice(verdict);
    let mut what = advice.means.clone();
    let says = called.failure.as_deref().or(verdict.message()).or(verdict.reason());
    if let Some(says) = says {
        what.push_str(&format!(" ({})", says.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    let mut finding = Finding::problem(check, what);
    let said = remedy(verdict).map_or_else(|| advice.r#do.clone(), |it| it.instead.to_string());
    finding.remedies.push(said);
    finding.charged = Some(explain::billed(verdict.charge()));
    finding.cause = Some(stats::title(outcome));
    finding.remedied(outcome.as_str())
}

/// Requests one image, once its price is agreed to.
async fn image(
    config: &Config,
    caller: Caller<'_>,
    listed: &Called,
    ask: Option<ReadLine>,
    errors: &mut (dyn Write + Send),
) -> Finding {
    let Some(canary) = Canary::cheapest(&caller, &listed.models()) else {
        return Finding::skipped("image", "the catalogue knows no model that makes one today");
    };
    let (least, most) = (canary.expected(), canary.worst_case());
    let most = most.at_most_microusd.map_or(least, tower_gemini::cost::Cost::exactly);
    let named = format!("{} at {}", canary.model, canary.size);
    let price =
        format!("One image of {named} costs {least} at list price, and {most} at the very most.");
    if let Some(read_line) = ask {
        let _ = write!(errors, "{price} Pay for it? [y/N] ").and_then(|()| errors.flush());
        if !matches!(read_line().trim(), "y" | "Y" | "yes") {
            return Finding::skipped("image", "not sent, as you said");
        }
    } else {
        let _ = writeln!(errors, "{price}");
    }
    let called = caller.send(canary.request, config.timeouts.up_to_2k.0);
    let called = match with_progress(called, errors).await {
        Ok(called) => called,
        Err(error) => return Finding::problem("image", error.to_string()),
    };
    let verdict = &called.verdict;
    let usage = called.usage.as_ref();
    let cost = cost_served(caller.catalog, &canary.call, &called.served, verdict, usage);
    if verdict.outcome() != Outcome::Image || called.failure.is_some() {
        let mut finding = failed("image", &called);
        if !verdict.charge().is_surely_free() {
            finding.what.push_str(&format!("; it may have cost {cost}"));
        }
        return finding;
    }
    let took = called.took.as_secs_f64();
    let what = format!(
        "an image of {named} came after {took:.1} s and cost {cost}. Where your own request fails \
         now, its prompt or its settings are the cause, not key, tier or quota"
    );
    Finding { charged: Some(explain::billed(verdict.charge())), ..Finding::ok("image", what) }
}

/// How often a wait for an image is reported.
const PROGRESS: Duration = Duration::from_secs(10);

/// Waits, and says so: an image takes as long as a program that hangs.
async fn with_progress<T>(work: impl Future<Output = T>, errors: &mut (dyn Write + Send)) -> T {
    let mut work = std::pin::pin!(work);
    let mut waited = Duration::ZERO;
    loop {
        match tokio::time::timeout(PROGRESS, &mut work).await {
            Ok(done) => return done,
            Err(_) => waited += PROGRESS,
        }
        let _ = writeln!(errors, "waiting for the image: {} s", waited.as_secs());
    }
}

#[cfg(test)]
mod tests {
    use tower_gemini_sim::{Sim, serve};

    use super::*;

    /// The output, and what was charged.
    async fn asked(ask: Option<ReadLine>) -> (u8, String, usize) {
        let sim = Sim::quick([]);
        let server = serve(sim.clone(), ([127, 0, 0, 1], 0).into()).await.unwrap();
        let key = std::env::temp_dir().join(format!("doctor-asks-{}", std::process::id()));
        std::fs::write(&key, "name:a-token-or-a-key-0123456789abcdef").unwrap();
        let text = format!(
            "[[upstream]]\nname = \"up\"\nkind = \"relay\"\nbase_url = {:?}\napi_key_file = {key:?}\n\
             [auth]\nmode = \"tokens\"\ntokens_file = {key:?}\n",
            server.url()
        );
        let config = Config::parse(&text, "gateway.toml").unwrap();
        let args = DoctorArgs { image: true, ..DoctorArgs::default() };
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let code = run(&args, Ok(FromFile { config, text }), ask, &mut output, &mut errors).await;
        output.extend(errors);
        (code, String::from_utf8(output).unwrap(), sim.totals().charged)
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_an_image_is_reported_while_it_lasts() {
        let mut errors = Vec::new();
        let image = async {
            tokio::time::sleep(Duration::from_secs(25)).await;
            "an image"
        };
        assert_eq!(with_progress(image, &mut errors).await, "an image");
        let said = String::from_utf8(errors).unwrap();
        assert_eq!(said, "waiting for the image: 10 s\nwaiting for the image: 20 s\n");
    }

    #[tokio::test]
    async fn an_image_is_paid_for_only_after_a_yes_to_its_price() {
        let (code, said, charged) = asked(Some(|| "n\n".to_owned())).await;
        assert_eq!((code, charged), (0, 0), "{said}");
        assert!(said.contains("costs $0.03") && said.contains("not sent, as you said"), "{said}");
        // The end of the input is no consent.
        assert_eq!(asked(Some(String::new)).await.2, 0);
        let (code, said, charged) = asked(Some(|| "y\n".to_owned())).await;
        assert_eq!((code, charged), (0, 1), "{said}");
        let (code, said, charged) = asked(None).await;
        assert_eq!((code, charged), (2, 0), "{said}");
    }
}
