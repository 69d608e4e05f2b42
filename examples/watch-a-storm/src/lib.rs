//! A storm at Gemini's image models, watched by two clients under the same sky: one retries, one
//! falls back.
//!
//! The weather has memory: each model at each size has good and bad stretches of its own, of tens
//! of minutes, as users report them. A ladder of waits that ends after minutes does not outlive
//! them; another model, or a smaller image, does.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use futures::future::{join, join_all};
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, sleep_until};
use tower::ServiceExt;
use tower_gemini::jittered_retry::presets::exponential_1s_x2;
use tower_gemini::model_fallback::presets::FLASH_TO_PRO;
use tower_gemini::stack::Raw;
use tower_gemini::target::Served;
use tower_gemini::{GeminiStack, JitteredRetryLayer, ModelFallbackLayer, ResolutionFallbackLayer};
use tower_gemini_sim::{Each, Fault, Outages, Sim, SimService, Weather};

/// A storm at Gemini's image models, watched by two clients under the same sky. Offline; hours pass
/// in seconds.
#[derive(Debug, Parser)]
#[command(name = "watch-a-storm")]
struct Options {
    /// The weather and the jitter; the same seed gives the same run
    #[arg(long, default_value_t = 20)]
    seed: u64,
    /// How long the storm lasts
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=240))]
    hours: u64,
    /// A call for a 4K image every so many seconds, from each client
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
}

/// The model that is asked for.
const MODEL: &str = "gemini-3.1-flash-image";

/// Runs the program. Returns its exit code.
pub fn app(args: &[String], out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let args = std::iter::once("watch-a-storm").chain(args.iter().map(String::as_str));
    let options = match Options::try_parse_from(args) {
        Ok(options) => options,
        Err(help) if !help.use_stderr() => return u8::from(write!(out, "{help}").is_err()),
        Err(error) => {
            // There is nobody left to tell when standard error is closed.
            let _ = write!(err, "{error}");
            return 2;
        }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    match runtime.and_then(|runtime| runtime.block_on(watch(&options, out))) {
        Ok(()) => 0,
        // A reader that has seen enough closes the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            let _ = writeln!(err, "watch-a-storm: {error}");
            1
        }
    }
}

/// The sky over both clients: 45 % of the time each model at each size is in a bad stretch, which
/// lasts 50 minutes on average.
///
/// 45 % is what APIYI (503s on Nano Banana 2, 2026-03) claims for 503s at the peak, and a mean of
/// 50 minutes fits its recovery times (70 % within an hour, 90 % within two). It gives Pro a third
/// to a quarter of that: here 12 %.
fn weather() -> Weather {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let outages = |model: &str, up| {
        Outages::new(Fault::HighDemand)
            .model(model)
            .each(Each::Size)
            .mean_up(minutes(up))
            .mean_down(minutes(50))
            .share(0.97)
    };
    // 50 / (50 + 61) is 45 %; 50 / (50 + 367) is 12 %.
    Weather::calm()
        .outages(outages(MODEL, 61))
        .outages(outages("gemini-3-pro-image", 367))
        .with(0.01, Fault::Internal)
}

/// One of the two clients, with a simulator of its own: the same seed, so the same sky.
struct Client {
    name: &'static str,
    sim: Sim,
    gemini: Raw<SimService>,
    /// What became of each call.
    marks: Vec<char>,
}

/// As asked, smaller, by another model, or not at all.
const MARKS: [char; 4] = ['#', '+', 'o', '.'];

impl Client {
    fn new(name: &'static str, seed: u64, stack: GeminiStack) -> Self {
        let sim = Sim::builder().seed(seed).weather(weather()).tiny_images(true).build();
        Self { name, gemini: stack.raw(sim.service()), sim, marks: Vec::new() }
    }

    fn count(&self, mark: char) -> usize {
        self.marks.iter().filter(|found| **found == mark).count()
    }

    fn images(&self) -> usize {
        self.marks.len() - self.count('.')
    }
}

/// Calls for a 4K image; returns its mark, or `None` without an image.
async fn call(gemini: Raw<SimService>, number: u64) -> Option<char> {
    let body = serde_json::json!({
        "contents": [{ "role": "user", "parts": [{ "text": "a lighthouse in a storm" }] }],
        "generationConfig": { "imageConfig": { "imageSize": "4K" } },
    });
    let url = format!("https://gemini.example/v1beta/models/{MODEL}:generateContent");
    let request = Request::post(url)
        .header("x-goog-api-key", "any")
        .header("x-sim-call", number.to_string())
        .body(Full::<Bytes>::from(body.to_string()))
        .ok()?;
    let (parts, body) = gemini.oneshot(request).await.ok()?.into_parts();
    body.collect().await.ok()?;
    let served = parts.extensions.get::<Served>();
    let model =
        served.and_then(|served| served.model.as_ref()).is_none_or(|id| id.as_str() == MODEL);
    let size = served.and_then(|served| served.size).is_none_or(|size| size.as_str() == "4K");
    parts.status.is_success().then_some(match (model, size) {
        (true, true) => '#',
        (true, false) => '+',
        (false, _) => 'o',
    })
}

/// Both clients call at the same moments, under the same sky; a line is written for each hour when
/// its last answer is in.
async fn watch(options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let Options { seed, hours, every } = *options;
    let stack =
        || GeminiStack::new().retry(JitteredRetryLayer::new(exponential_1s_x2()).seed(seed));
    let chain = ModelFallbackLayer::new(FLASH_TO_PRO.chain());
    let circuits = chain.circuits().clone();
    let falling = stack().fallback(chain).resolution(ResolutionFallbackLayer::new());
    let mut clients = [Client::new("retry", seed, stack()), Client::new("fallback", seed, falling)];

    writeln!(
        out,
        "{MODEL} at 4K, a call every {every} s from each client, seed {seed}\n\
         \x20 retry     APIYI's loop: 5 resends in about half a minute\n\
         \x20 fallback  APIYI's chain (Nano Banana 2 three times, then Pro twice), each at 4K, 2K, 1K\n\
         \x20 # as asked   + smaller   o another model   . no image\n"
    )?;
    let started = Instant::now();
    let calls = 3600 / every;
    for hour in 0..hours {
        let answers = (0..calls).map(|slot| {
            let number = hour * calls + slot;
            let [retry, fallback] = [0, 1].map(|client: usize| clients[client].gemini.clone());
            async move {
                sleep_until(started + Duration::from_secs(number * every)).await;
                join(call(retry, number), call(fallback, number)).await
            }
        });
        let (retried, fallen): (Vec<_>, Vec<_>) = join_all(answers).await.into_iter().unzip();
        for (client, marks) in clients.iter_mut().zip([retried, fallen]) {
            let marks: Vec<_> = marks.into_iter().map(|mark| mark.unwrap_or('.')).collect();
            let label = if client.name == "retry" { format!("{hour:>3} h") } else { String::new() };
            let images = marks.iter().filter(|mark| **mark != '.').count();
            writeln!(out, "{label:>5}  {:<8} {} {images:>3} of {calls}", client.name, bar(&marks))?;
            client.marks.extend(marks);
        }
        out.flush()?;
    }
    summary(out, hours, &clients)?;
    let unwell: Vec<_> = circuits.snapshot().into_iter().map(|circuit| circuit.name).collect();
    if !unwell.is_empty() {
        writeln!(out, "\nresting at the end: {}", unwell.join(", "))?;
    }
    Ok(())
}

/// At most 60 characters, each the commonest mark of its share of the hour.
fn bar(marks: &[char]) -> String {
    let width = marks.len().min(60);
    (0..width)
        .filter_map(|at| {
            let share = &marks[at * marks.len() / width..(at + 1) * marks.len() / width];
            let count = |mark: &char| share.iter().filter(|found| *found == mark).count();
            MARKS.into_iter().max_by_key(count)
        })
        .collect()
}

fn summary(out: &mut dyn Write, hours: u64, clients: &[Client; 2]) -> io::Result<()> {
    writeln!(out)?;
    let mut row = |name: &str, value: &dyn Fn(&Client) -> String| {
        let [retry, fallback] = [0, 1].map(|client: usize| value(&clients[client]));
        writeln!(out, "{name:<34}{retry:>12}{fallback:>12}")
    };
    row(&format!("after {hours} hours"), &|client| client.name.to_owned())?;
    row("calls", &|client| client.marks.len().to_string())?;
    row("images", &|client| client.images().to_string())?;
    row("  as asked", &|client| client.count('#').to_string())?;
    row("  smaller, of the same model", &|client| client.count('+').to_string())?;
    row("  of the other model", &|client| client.count('o').to_string())?;
    row("requests against the day's quota", &|client| {
        client.sim.totals().quota_requests.to_string()
    })?;
    let dollars = |client: &Client| client.sim.totals().cost_microusd as f64 / 1e6;
    row("paid", &|client| format!("${:.2}", dollars(client)))?;
    row("paid for an image", &|client| match client.sim.totals().images_delivered {
        0 => "-".to_owned(),
        images => format!("${:.4}", dollars(client) / images as f64),
    })?;
    row("paid and not delivered", &|client| {
        client.sim.totals().charged_but_undelivered.to_string()
    })?;
    row("calls sent again after a charge", &|client| {
        client.sim.ledger().resent_after_charge().len().to_string()
    })?;
    let [retry, fallback] = clients;
    let more = fallback.images().saturating_sub(retry.images());
    writeln!(out, "\nthe fallback delivered {more} images more, of {} calls", retry.marks.len())
}
