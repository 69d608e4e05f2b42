//! A simulated Gemini, a stretch of bad weather, and ten calls that go through it.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::TcpSocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tower_gemini::call::ImageSize;
use tower_gemini::jittered_retry::{Backoff, OutcomePolicy, RetryPolicy};
use tower_gemini::trail::{Step, TrailObserver};
use tower_gemini::verdict::Outcome;
use tower_gemini_sim::{
    Fault, ImageOptions, Latency, Limit, Refusal, ServeHandle, Shape, Sim, Size, serve,
};

use crate::args::Demo;
use crate::gemini::{self, Job};
use crate::run::{Settings, run};
use crate::talk::{Talk, Tone};
use crate::{DONE, FAILED, INTERRUPTED, files, report};

/// The simulator takes any key, and this one says so.
const KEY: &str = "any-key-will-do";
/// Calls under way at a time.
const AT_ONCE: usize = 3;

const FLASH: &str = "gemini-3.1-flash-image";
const OLDER_FLASH: &str = "gemini-2.5-flash-image";
const PRO: &str = "gemini-3-pro-image";

/// A call, and what happens to its attempts before one goes well.
struct Story {
    prompt: &'static str,
    model: &'static str,
    size: Option<ImageSize>,
    faults: Vec<Fault>,
    /// Goes to a door that nobody opens before the first knock.
    by_the_late_door: bool,
}

fn stories(hint: Duration) -> Vec<Story> {
    let story = |prompt, model, size, faults| Story {
        prompt,
        model,
        size,
        faults,
        by_the_late_door: false,
    };
    let (k1, k2, k4) = (Some(ImageSize::K1), Some(ImageSize::K2), Some(ImageSize::K4));
    let unmarked = Shape { drafts_marked: false, drafts_small: true, ..Shape::with_drafts(1) };
    vec![
        story("Lighthouse", FLASH, k1, vec![Fault::HighDemand]),
        story(
            "Paper boat",
            FLASH,
            k2,
            vec![Fault::RateLimitMinute { retry_after: hint, limit: Limit::Requests }],
        ),
        story("Brass orrery", PRO, k2, vec![Fault::Shaped(Shape::with_drafts(2))]),
        story("Greenhouse", PRO, k2, vec![Fault::Shaped(unmarked)]),
        story("Senator in a tub", FLASH, k1, vec![Fault::Refused(Refusal::ImageSafety)]),
        // 2.5 Flash draws in one size, and refuses to be asked for it.
        story("Fox in a library", OLDER_FLASH, None, vec![Fault::ImageOther { waived: true }]),
        story("Night train", PRO, k1, vec![Fault::ResetAfterGeneration]),
        Story { by_the_late_door: true, ..story("Harbour crane", FLASH, k1, Vec::new()) },
        story("Mountain range", PRO, k4, vec![Fault::Overloaded, Fault::DeadlineExpired503]),
        story("Red bicycle", OLDER_FLASH, None, vec![Fault::Internal]),
    ]
}

/// How quickly everything goes.
struct Pace {
    latency: Latency,
    images: ImageOptions,
    hint: Duration,
    policy: RetryPolicy,
    in_words: &'static str,
}

impl Pace {
    /// Real models take tens of seconds, and so do sensible waits; nobody watches a demonstration
    /// for that long.
    fn scaled() -> Self {
        let ms = Duration::from_millis;
        let overload = OutcomePolicy::new(5, Backoff::exponential(ms(500), 2.0, ms(6_000)));
        // Below the hint: a hint is a floor, and backoff that is longer would hide it.
        let limit = OutcomePolicy::new(5, Backoff::exponential(ms(250), 2.0, ms(3_000)));
        Self {
            latency: Latency::none()
                .errors(ms(50)..=ms(150))
                .with(None, None, ms(1_000)..=ms(1_600))
                .with(Some(PRO), None, ms(2_000)..=ms(3_000))
                .with(None, Some(Size::K4), ms(3_000)..=ms(4_000)),
            images: ImageOptions::default(),
            hint: ms(1_200),
            policy: RetryPolicy::recommended()
                .on(Outcome::Overloaded, overload)
                .on(Outcome::Deadline, overload)
                .on(Outcome::RateLimitedMinute, limit),
            in_words: "Retries: the recommended policy with shorter backoff: from 0.5 s after an overload instead of 10 s,\n\
                       from 0.25 s after a rate limit instead of 5 s. Hints of the server are kept. Images take 1 to 4 s instead\n\
                       of 10 to 170.",
        }
    }

    fn quick() -> Self {
        let ms = Duration::from_millis;
        let soon = OutcomePolicy::new(5, Backoff::exponential(ms(5), 2.0, ms(50)));
        let policy = Outcome::ALL
            .iter()
            .fold(RetryPolicy::recommended(), |policy, outcome| policy.on(*outcome, soon));
        // The late door opens when a busy machine gets round to it; five attempts within some 50 ms
        // could all come too early.
        let policy = policy.on(
            Outcome::NotSent,
            OutcomePolicy::new(5, Backoff::exponential(ms(50), 3.0, ms(2_000))),
        );
        Self {
            latency: Latency::none(),
            images: ImageOptions::tiny(),
            hint: ms(20),
            policy,
            in_words: "Retries: the recommended policy, except that backoff starts at 5 ms. Images are small and take no time.",
        }
    }
}

pub(crate) async fn demo(
    options: &Demo,
    out: &Path,
    talk: &mut Talk<'_>,
    interrupted: impl Future<Output = ()>,
) -> Result<u8, String> {
    files::prepare(out)?;
    let pace = if options.quick { Pace::quick() } else { Pace::scaled() };
    let stories = stories(pace.hint);

    let builder = Sim::builder().seed(options.seed).latency(pace.latency).images(pace.images);
    let sim = stories
        .iter()
        .fold(builder, |builder, story| {
            builder.script_of(files::slug(story.prompt), story.faults.iter().cloned())
        })
        .build();
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
    let server = serve(sim.clone(), addr)
        .await
        .map_err(|error| format!("the simulator cannot listen on {addr}: {error}. Choose another --port, or leave it out."))?;
    let late = LateDoor::reserve()
        .map_err(|error| format!("no second port for the simulator: {error}"))?;
    let late_url = format!("http://{}", late.addr);

    let jobs: Vec<_> = stories
        .iter()
        .map(|story| {
            let endpoint = if story.by_the_late_door { late_url.clone() } else { server.url() };
            Job::new(story.prompt, story.model, story.size, &endpoint)
        })
        .collect();
    let refused = Arc::new(Refused::default());
    for (story, job) in stories.iter().zip(&jobs) {
        if story.by_the_late_door {
            job.trail.observe(refused.clone());
        }
    }
    let late = late.open_when(refused, sim.clone());

    talk.plain(&format!(
        "A simulated Gemini listens on {} (seed {}). {} calls, {AT_ONCE} at a time.",
        server.url(),
        options.seed,
        jobs.len()
    ));
    talk.plain(pace.in_words);
    talk.plain("");
    let settings = Settings {
        key: HeaderValue::from_static(KEY),
        out: out.to_owned(),
        replace: true,
        at_once: AT_ONCE,
        tag_calls: true,
    };
    let gemini = gemini::stack(gemini::plain_client(), pace.policy, Some(options.seed));
    let (reports, stopped) = run(gemini, jobs, settings, talk, interrupted).await;

    // A closed server has settled every bill, those of callers who left too.
    server.shutdown().await;
    late.abort();
    match late.await {
        Ok(Ok(server)) => server.shutdown().await,
        Ok(Err(error)) => talk.line(Tone::Bad, &format!("The late door stayed shut: {error}")),
        // Interrupted before anybody knocked.
        Err(_) => {}
    }
    let ledger = sim.ledger();
    talk.plain("");
    report::table(talk, &reports, Some(&ledger));
    report::explain(talk, &reports, Some(&ledger));
    report::totals(talk, &reports, &ledger);
    let holds = report::verdict(talk, &reports, &ledger);
    Ok(match (stopped, holds) {
        (true, _) => {
            report::so_far(talk, &reports);
            INTERRUPTED
        }
        (false, true) => DONE,
        (false, false) => FAILED,
    })
}

/// A port that refuses connections until somebody has been refused: a server that is just starting.
struct LateDoor {
    socket: TcpSocket,
    addr: SocketAddr,
}

impl LateDoor {
    /// A socket that is bound and does not listen keeps its port, and the kernel refuses whoever
    /// connects.
    fn reserve() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let addr = socket.local_addr()?;
        Ok(Self { socket, addr })
    }

    fn open_when(self, refused: Arc<Refused>, sim: Sim) -> JoinHandle<io::Result<ServeHandle>> {
        tokio::spawn(async move {
            refused.0.notified().await;
            let Self { socket, addr } = self;
            drop(socket);
            serve(sim, addr).await
        })
    }
}

/// Notices that a connection was refused.
#[derive(Default)]
struct Refused(Notify);

impl TrailObserver for Refused {
    fn on_step(&self, step: &Step) {
        if matches!(step, Step::Attempt(attempt) if attempt.outcome == Some(Outcome::NotSent)) {
            self.0.notify_one();
        }
    }
}
