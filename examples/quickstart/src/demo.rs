//! A simulated Gemini, a stretch of bad weather, and ten calls that go through it.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::HeaderValue;
use tokio::net::TcpSocket;
use tower_gemini::call::ImageSize;
use tower_gemini::jittered_retry::{Backoff, OutcomePolicy, RetryPolicy};
use tower_gemini::trail::Attempt;
use tower_gemini::verdict::Outcome;
use tower_gemini_sim::{Fault, ImageOptions, Latency, Limit, Refusal, Shape, Sim, Size, serve};

use crate::args::Options;
use crate::gemini::{Job, stack};
use crate::run::{AT_ONCE, Settings, run};
use crate::talk::{Talk, Tone};
use crate::{INTERRUPTED, files, report};

const FLASH: &str = "gemini-3.1-flash-image";
const OLDER_FLASH: &str = "gemini-2.5-flash-image";
const PRO: &str = "gemini-3-pro-image";

/// A prompt, a model, a size, and what happens to the attempts before one goes well.
type Story = (&'static str, &'static str, Option<ImageSize>, Vec<Fault>);

/// Goes to a door that nobody opens before the first knock.
const LATE: &str = "Harbour crane";

fn stories(hint: Duration) -> [Story; 10] {
    let (k1, k2, k4) = (Some(ImageSize::K1), Some(ImageSize::K2), Some(ImageSize::K4));
    let limit = Fault::RateLimitMinute { retry_after: hint, limit: Limit::Requests };
    let unmarked = Shape { drafts_marked: false, drafts_small: true, ..Shape::with_drafts(1) };
    let refused = Fault::Refused(Refusal::ImageSafety);
    [
        ("Lighthouse", FLASH, k1, vec![Fault::HighDemand]),
        ("Paper boat", FLASH, k2, vec![limit]),
        ("Brass orrery", PRO, k2, vec![Fault::Shaped(Shape::with_drafts(2))]),
        ("Greenhouse", PRO, k2, vec![Fault::Shaped(unmarked)]),
        ("Senator in a tub", FLASH, k1, vec![refused]),
        // 2.5 Flash draws in one size, and refuses to be asked for it.
        ("Fox in a library", OLDER_FLASH, None, vec![Fault::ImageOther { waived: true }]),
        ("Night train", PRO, k1, vec![Fault::ResetAfterGeneration]),
        (LATE, FLASH, k1, Vec::new()),
        ("Mountain range", PRO, k4, vec![Fault::Overloaded, Fault::DeadlineExpired503]),
        ("Red bicycle", OLDER_FLASH, None, vec![Fault::Internal]),
    ]
}

/// How quickly everything goes.
struct Pace {
    latency: Latency,
    images: ImageOptions,
    hint: Duration,
    policy: RetryPolicy,
    as_text: &'static str,
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Five attempts, and waits from `first` to `most`.
fn five(first: u64, factor: f64, most: u64) -> OutcomePolicy {
    OutcomePolicy::new(5, Backoff::exponential(ms(first), factor, ms(most)))
}

impl Pace {
    /// Real models take tens of seconds, and so do sensible waits; nobody watches a demonstration
    /// for that long.
    fn scaled() -> Self {
        Self {
            latency: Latency::none()
                .errors(ms(50)..=ms(150))
                .with(None, None, ms(1_000)..=ms(1_600))
                .with(Some(PRO), None, ms(2_000)..=ms(3_000))
                .with(None, Some(Size::K4), ms(3_000)..=ms(4_000)),
            images: ImageOptions::default(),
            hint: ms(1_200),
            policy: RetryPolicy::recommended()
                .on(Outcome::Overloaded, five(500, 2.0, 6_000))
                .on(Outcome::Deadline, five(500, 2.0, 6_000))
                // Below the hint: a hint is a floor, and backoff that is longer would hide it.
                .on(Outcome::RateLimitedMinute, five(250, 2.0, 3_000)),
            as_text: "Retries: the recommended policy with shorter backoff: from 0.5 s after an \
                      overload instead of 10 s,\nfrom 0.25 s after a rate limit instead of 5 s. \
                      Hints of the server are kept. Images take 1 to 4 s instead\nof 10 to 170.",
        }
    }

    fn quick() -> Self {
        let policy = RetryPolicy::recommended();
        let soon = |policy: RetryPolicy, outcome: &Outcome| policy.on(*outcome, five(5, 2.0, 50));
        Self {
            latency: Latency::none(),
            images: ImageOptions::tiny(),
            hint: ms(20),
            // The late door opens when a busy machine gets round to it; five attempts within some
            // 50 ms could all come too early.
            policy: Outcome::ALL
                .iter()
                .fold(policy, soon)
                .on(Outcome::NotSent, five(50, 3.0, 2_000)),
            as_text: "Retries: the recommended policy, except that backoff starts at 5 ms. Images \
                      are small and take no time.",
        }
    }
}

pub(crate) async fn demo(
    options: &Options,
    talk: &mut Talk<'_>,
    interrupted: impl Future<Output = ()>,
) -> Result<u8, String> {
    files::prepare(&options.out)?;
    let pace = if options.quick { Pace::quick() } else { Pace::scaled() };
    let stories = stories(pace.hint);

    let builder = Sim::builder().seed(options.seed).latency(pace.latency).images(pace.images);
    let sim = stories
        .iter()
        .fold(builder, |builder, (prompt, _, _, faults)| {
            builder.script_of(files::slug(prompt), faults.iter().cloned())
        })
        .build();
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
    let server = serve(sim.clone(), addr).await.map_err(|error| {
        format!(
            "the simulator cannot listen on {addr}: {error}. Choose another --port, or leave it out."
        )
    })?;
    let (socket, late) =
        closed_port().map_err(|error| format!("no second port for the simulator: {error}"))?;

    let mut jobs = stories.map(|(prompt, model, size, _)| {
        let url = if prompt == LATE { format!("http://{late}") } else { server.url() };
        Job::new(files::slug(prompt), prompt, model, size, &url)
    });
    let trail = jobs.iter().find(|job| job.prompt == LATE).map(|job| job.trail.clone());
    let (trail, behind) = (trail.unwrap_or_default(), sim.clone());
    // A server that is just starting: it listens when somebody has been refused.
    let door = tokio::spawn(async move {
        let refused = |attempt: &Attempt| attempt.outcome == Some(Outcome::NotSent);
        while !trail.attempts().iter().any(refused) {
            tokio::time::sleep(ms(1)).await;
        }
        drop(socket);
        serve(behind, late).await
    });

    talk.plain(&format!(
        "A simulated Gemini listens on {} (seed {}). {} calls, {AT_ONCE} at a time.",
        server.url(),
        options.seed,
        jobs.len()
    ));
    talk.plain(&format!("{}\n", pace.as_text));
    let gemini = stack(pace.policy, Some(options.seed)).map_err(|error| error.to_string())?;
    // The simulator takes any key, and this one says so.
    let key = HeaderValue::from_static("any-key-will-do");
    let settings = Settings { key, out: options.out.clone(), simulated: true };
    let stopped = run(gemini, &mut jobs, settings, talk, interrupted).await;

    // A closed server has settled every bill, those of callers who left too.
    server.shutdown().await;
    door.abort();
    match door.await {
        Ok(Ok(server)) => server.shutdown().await,
        Ok(Err(error)) => talk.line(Tone::Bad, &format!("The late door stayed shut: {error}")),
        // Interrupted before anybody knocked.
        Err(_) => {}
    }
    let ledger = sim.ledger();
    talk.plain("");
    report::table(talk, &jobs, Some(&ledger));
    report::explain(talk, &jobs, Some(&ledger));
    report::totals(talk, &jobs, &ledger);
    let holds = report::verdict(talk, &jobs, &ledger);
    if stopped {
        report::so_far(talk, &jobs);
    }
    Ok(if stopped { INTERRUPTED } else { u8::from(!holds) })
}

/// A port that refuses connections: a socket that is bound and does not listen keeps its port, and
/// the kernel refuses whoever connects.
fn closed_port() -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let addr = socket.local_addr()?;
    Ok((socket, addr))
}
