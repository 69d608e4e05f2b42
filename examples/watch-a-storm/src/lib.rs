//! A storm at Gemini's image models, watched by two clients under the same sky: one retries, one
//! falls back.
//!
//! The weather has memory: each model at each size has good and bad stretches of its own, of tens
//! of minutes, as users report them. A ladder of waits that ends after minutes does not outlive
//! them; another model, or a smaller image, does.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join, join_all};
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, sleep_until};
use tower::ServiceExt;
use tower_gemini::jittered_retry::presets::exponential_1s_x2;
use tower_gemini::model_fallback::presets::FLASH_TO_PRO;
use tower_gemini::target::Served;
use tower_gemini::{GeminiStack, JitteredRetryLayer, ModelFallbackLayer, ResolutionFallbackLayer};
use tower_gemini_sim::{Each, Fault, Outages, Sim, Totals, Weather};

const HELP: &str = "\
A storm at Gemini's image models, watched by two clients under the same sky. Offline; hours pass in seconds.

usage: watch-a-storm [--seed N] [--hours N] [--every SECONDS]

  --seed N         the weather and the jitter; the same seed gives the same run (default 20)
  --hours N        how long the storm lasts (default 8, at most 240)
  --every SECONDS  a call for a 4K image every so many seconds, from each client (default 60)
";

/// The model that is asked for.
const MODEL: &str = "gemini-3.1-flash-image";

/// What the command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options {
    seed: u64,
    hours: u64,
    every: u64,
}

impl Options {
    /// `None` asks for help.
    fn parse(args: &[String]) -> Result<Option<Self>, String> {
        let mut options = Self { seed: 20, hours: 8, every: 60 };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut number = || -> Result<u64, String> {
                let value = args.next().ok_or_else(|| format!("{arg} wants a number"))?;
                value.parse().map_err(|_| format!("{arg} wants a number, and got `{value}`"))
            };
            match arg.as_str() {
                "-h" | "--help" => return Ok(None),
                "--seed" => options.seed = number()?,
                "--hours" => options.hours = number()?.clamp(1, 240),
                "--every" => options.every = number()?.clamp(1, 3600),
                other => return Err(format!("unknown argument `{other}`")),
            }
        }
        Ok(Some(options))
    }
}

/// Runs the program. Returns its exit code.
pub fn app(args: &[String], out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let options = match Options::parse(args) {
        Ok(Some(options)) => options,
        Ok(None) => return u8::from(out.write_all(HELP.as_bytes()).is_err()),
        Err(message) => {
            // There is nobody left to tell when standard error is closed.
            let _ = writeln!(err, "watch-a-storm: {message}\n\n{HELP}");
            return 2;
        }
    };
    let Ok(runtime) =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()
    else {
        let _ = writeln!(err, "watch-a-storm: no runtime can be started here");
        return 1;
    };
    match runtime.block_on(watch(options, out)) {
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

/// What became of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Asked,
    Smaller,
    Other,
    Failed,
}

impl Ended {
    fn mark(self) -> char {
        match self {
            Self::Asked => '#',
            Self::Smaller => '+',
            Self::Other => 'o',
            Self::Failed => '.',
        }
    }
}

/// One of the two clients, with a simulator of its own: the same seed, so the same sky.
struct Client {
    name: &'static str,
    sim: Sim,
    stack: GeminiStack,
}

impl Client {
    fn new(name: &'static str, seed: u64, stack: GeminiStack) -> Self {
        let sim = Sim::builder().seed(seed).weather(weather()).tiny_images(true).build();
        Self { name, sim, stack }
    }
}

async fn call<S, B>(service: S, number: u64) -> Ended
where
    S: tower::Service<
            Request<Full<Bytes>>,
            Response = http::Response<B>,
            Error = tower_gemini::error::Error,
        >,
    B: http_body::Body,
{
    let body = serde_json::json!({
        "contents": [{ "role": "user", "parts": [{ "text": "a lighthouse in a storm" }] }],
        "generationConfig": { "imageConfig": { "imageSize": "4K" } },
    });
    let request =
        Request::post(format!("https://gemini.example/v1beta/models/{MODEL}:generateContent"))
            .header("x-goog-api-key", "any")
            .header("x-sim-call", number.to_string())
            .body(Full::from(body.to_string()));
    let Ok(request) = request else { return Ended::Failed };
    let Ok(answer) = service.oneshot(request).await else { return Ended::Failed };
    let (parts, body) = answer.into_parts();
    if body.collect().await.is_err() {
        return Ended::Failed;
    }
    if !parts.status.is_success() {
        return Ended::Failed;
    }
    let served = parts.extensions.get::<Served>();
    let model =
        served.and_then(|served| served.model.as_ref()).map_or(MODEL, |model| model.as_str());
    let size = served.and_then(|served| served.size).map_or("4K", |size| size.as_str());
    match (model == MODEL, size == "4K") {
        (true, true) => Ended::Asked,
        (true, false) => Ended::Smaller,
        (false, _) => Ended::Other,
    }
}

/// Both clients call at the same moments, under the same sky; a line is written for each hour when
/// its last answer is in.
async fn watch(options: Options, out: &mut dyn Write) -> io::Result<()> {
    let retry = || JitteredRetryLayer::new(exponential_1s_x2()).seed(options.seed);
    let chain = ModelFallbackLayer::new(FLASH_TO_PRO.chain());
    let circuits = chain.circuits().clone();
    let falling = GeminiStack::new()
        .retry(retry())
        .fallback(chain)
        .resolution(ResolutionFallbackLayer::new());
    let plain = Client::new("retry", options.seed, GeminiStack::new().retry(retry()));
    let falling = Client::new("fallback", options.seed, falling);
    let (plain_service, falling_service) =
        (plain.stack.raw(plain.sim.service()), falling.stack.raw(falling.sim.service()));

    writeln!(
        out,
        "{MODEL} at 4K, a call every {} s from each client, seed {}",
        options.every, options.seed
    )?;
    writeln!(out, "  retry     APIYI's loop: 5 resends in about half a minute")?;
    writeln!(
        out,
        "  fallback  APIYI's chain (Nano Banana 2 three times, then Pro twice), each at 4K, 2K, 1K"
    )?;
    writeln!(out, "  # as asked   + smaller   o another model   . no image\n")?;
    let started = Instant::now();
    let calls = 3600 / options.every;
    let (mut plain_tally, mut falling_tally) = (Tally::default(), Tally::default());
    for hour in 0..options.hours {
        let answers = (0..calls).map(|slot| {
            let number = hour * calls + slot;
            let (plain, falling) = (plain_service.clone(), falling_service.clone());
            async move {
                sleep_until(started + Duration::from_secs(number * options.every)).await;
                join(call(plain, number), call(falling, number)).await
            }
        });
        let (retried, fallen): (Vec<_>, Vec<_>) = join_all(answers).await.into_iter().unzip();
        for (client, ended, tally) in
            [(&plain, retried, &mut plain_tally), (&falling, fallen, &mut falling_tally)]
        {
            ended.iter().for_each(|ended| tally.add(ended));
            let label = if client.name == "retry" { format!("{hour:>3} h") } else { String::new() };
            writeln!(
                out,
                "{label:>5}  {:<8} {} {:>3} of {calls}",
                client.name,
                bar(&ended),
                images(&ended)
            )?;
        }
        out.flush()?;
    }
    summary(out, options, [(&plain, &plain_tally), (&falling, &falling_tally)])?;
    let unwell: Vec<_> = circuits.snapshot().into_iter().map(|circuit| circuit.name).collect();
    if !unwell.is_empty() {
        writeln!(out, "\nresting at the end: {}", unwell.join(", "))?;
    }
    Ok(())
}

fn images(ended: &[Ended]) -> usize {
    ended.iter().filter(|ended| !matches!(ended, Ended::Failed)).count()
}

/// At most 60 characters, each the commonest end of its share of the hour.
fn bar(ended: &[Ended]) -> String {
    let width = ended.len().min(60);
    (0..width)
        .map(|at| {
            let share = ended
                .get(at * ended.len() / width..(at + 1) * ended.len() / width)
                .unwrap_or_default();
            let count = |mark| share.iter().filter(|ended| ended.mark() == mark).count();
            ['#', '+', 'o', '.'].into_iter().max_by_key(|mark| count(*mark)).unwrap_or('.')
        })
        .collect()
}

/// How many calls ended how.
#[derive(Debug, Default)]
struct Tally {
    calls: usize,
    asked: usize,
    smaller: usize,
    other: usize,
}

impl Tally {
    fn add(&mut self, ended: &Ended) {
        self.calls += 1;
        match ended {
            Ended::Asked => self.asked += 1,
            Ended::Smaller => self.smaller += 1,
            Ended::Other => self.other += 1,
            Ended::Failed => {}
        }
    }

    fn images(&self) -> usize {
        self.asked + self.smaller + self.other
    }
}

fn summary(
    out: &mut dyn Write,
    options: Options,
    clients: [(&Client, &Tally); 2],
) -> io::Result<()> {
    let totals = clients.map(|(client, _)| client.sim.totals());
    let dollars =
        |micros: u64| format!("${}.{:02}", micros / 1_000_000, micros % 1_000_000 / 10_000);
    let each = |totals: &Totals| match u64::try_from(totals.images_delivered) {
        Ok(images) if images > 0 => {
            format!("${:.4}", totals.cost_microusd as f64 / 1e6 / images as f64)
        }
        _ => "-".to_owned(),
    };
    let mut table = String::new();
    let mut row = |name: &str, values: [String; 2]| {
        // Writing into a string does not fail.
        let _ = writeln!(table, "{name:<34}{:>12}{:>12}", values[0], values[1]);
    };
    row(
        &format!("after {} hours", options.hours),
        clients.map(|(client, _)| client.name.to_owned()),
    );
    row("calls", clients.map(|(_, tally)| tally.calls.to_string()));
    row("images", clients.map(|(_, tally)| tally.images().to_string()));
    row("  as asked", clients.map(|(_, tally)| tally.asked.to_string()));
    row("  smaller, of the same model", clients.map(|(_, tally)| tally.smaller.to_string()));
    row("  of the other model", clients.map(|(_, tally)| tally.other.to_string()));
    row(
        "requests against the day's quota",
        [0, 1].map(|i: usize| totals[i].quota_requests.to_string()),
    );
    row("paid", [0, 1].map(|i: usize| dollars(totals[i].cost_microusd)));
    row("paid for an image", [0, 1].map(|i: usize| each(&totals[i])));
    row(
        "paid and not delivered",
        [0, 1].map(|i: usize| totals[i].charged_but_undelivered.to_string()),
    );
    let resent =
        clients.map(|(client, _)| client.sim.ledger().resent_after_charge().len().to_string());
    row("calls sent again after a charge", resent);
    let more = clients[1].1.images().saturating_sub(clients[0].1.images());
    writeln!(
        out,
        "\n{table}\nthe fallback delivered {more} images more, of {} calls",
        clients[0].1.calls
    )
}
