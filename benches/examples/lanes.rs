//! What the lanes of a job come to in the weather: money, time and images beside drawing at once.
//!
//! ```not_rust
//! cargo run --release -p tower-gemini-benches --example lanes
//! ```
//!
//! A job of 120 images of 1K is submitted at 10:00 UTC, when the peak of the scenario `day` begins,
//! under twelve skies for each lane; the skies are the same for all. The scenario's flex tier turns
//! nobody away. Time is simulated at 1,000 times its speed, so the figures differ by a little from
//! run to run: the store takes real time.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program for people, which stops where it cannot go on"
)]
#![allow(clippy::disallowed_methods, reason = "real time moves the simulated one")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tower::ServiceExt;
use tower_gemini::clock::{Clock, RuntimeClock};
use tower_gemini::{GeminiStack, KeepPaidLayer};
use tower_gemini_jobs::{
    Item, ItemState, JobOptions, JobStore, Lane, NewJob, Planner, Through, Worker,
};
use tower_gemini_sim::Scenario;

const ITEMS: usize = 120;
const SKIES: u64 = 12;
const MODEL: &str = "gemini-3.1-flash-image";
/// 2026-12-01, 10:00 UTC.
const BEGIN: Duration = Duration::from_secs(1_796_119_200);
/// The peak of the scenario ends at 14:00.
const PEAK: Duration = Duration::from_secs(4 * 3600);

/// Opening a store takes real time, and is given up after so much of simulated time.
static IS_OPENING: AtomicBool = AtomicBool::new(false);

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    // Time stands still while a thread may block, and is moved by hand.
    let (tick, mut ticks) = tokio::sync::mpsc::channel(1);
    tokio::task::spawn_blocking(move || {
        while tick.blocking_send(()).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    tokio::spawn(async move {
        while ticks.recv().await.is_some() {
            if !IS_OPENING.load(Ordering::Relaxed) {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }
    });
    println!(
        "| lane | delivered | a delivered image | requests an image | half of them after | all after, \
         under half of the skies | under the worst |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for lane in [Lane::Standard, Lane::Priority, Lane::Deferred, Lane::Flex, Lane::Batch] {
        let (mut done, mut billed, mut requests) = (0, 0, 0);
        let (mut times, mut last) = (Vec::new(), Vec::new());
        for seed in 0..SKIES {
            let ran = run(lane, seed).await;
            done += ran.times.len();
            billed += ran.billed_microusd;
            requests += ran.requests;
            last.extend(ran.times.iter().max());
            times.extend(ran.times);
        }
        times.sort_unstable();
        last.sort_unstable();
        let minutes = |sorted: &[i64]| sorted.get(sorted.len() / 2).map_or(0, |ms| ms / 60_000);
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let (images, usd, sent) = (done.max(1) as f64, billed as f64 / 1e6, requests as f64);
        println!(
            "| {lane} | {:.1} % | ${:.4} | {:.2} | {} min | {} min | {} min |",
            100.0 * images / (f64::from(u32::try_from(SKIES).unwrap()) * 120.0),
            usd / images,
            sent / images,
            minutes(&times),
            minutes(&last),
            last.last().map_or(0, |ms| ms / 60_000),
        );
    }
    std::process::exit(0); // the ticking thread has no end
}

/// What a job came to under one sky.
struct Ran {
    /// When each image was there, in milliseconds from submission.
    times: Vec<i64>,
    billed_microusd: u64,
    requests: usize,
}

async fn run(lane: Lane, seed: u64) -> Ran {
    let dir = std::env::temp_dir().join(format!("gemini-lanes-{}-{lane}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let sim = Scenario::named("day").unwrap().builder().seed(seed).tiny_images(true);
    let sim = sim.starts_at_utc(Duration::from_secs(10 * 3600)).build();
    let clock = RuntimeClock::starting_at(SystemTime::UNIX_EPOCH + BEGIN);
    let now_ms = || {
        let since = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        i64::try_from(since.as_millis()).unwrap()
    };
    let mut options = JobOptions::default();
    options.max_concurrent = 4;
    // A queue that is in no hurry outlives an outage.
    options.max_failures = 12;
    let begin = now_ms();
    let planner = Planner::new(MODEL, options.clone(), begin).off_peak_in(Some(PEAK));
    let items = (0..ITEMS).map(|number| {
        let mut item = Item::new(format!("apple {number}"));
        item.lane = Some(lane);
        Ok(planner.item(item).unwrap())
    });
    IS_OPENING.store(true, Ordering::Relaxed);
    let store = JobStore::open(&dir.join("jobs.db").to_string_lossy()).await.unwrap();
    IS_OPENING.store(false, Ordering::Relaxed);
    let job = store.submit(NewJob::new("", options, begin), items).await.unwrap();
    let client = sim.service().map_request(|mut request: http::Request<_>| {
        request.headers_mut().insert("x-goog-api-key", http::HeaderValue::from_static("any"));
        request
    });
    let stack = GeminiStack::new().keep_paid(KeepPaidLayer::new()).json(client);
    let worker = Worker::new(store.clone(), Through(stack), dir.join("images"))
        .unwrap()
        .clock(Arc::new(clock));
    worker.run_until_idle().await.unwrap();
    let done = store.items(&job.id, Some(ItemState::Done), 0, 1_000).await.unwrap();
    let times = done.iter().filter_map(|item| Some(item.ended_ms? - begin)).collect();
    store.close().await;
    let _ = std::fs::remove_dir_all(&dir);
    Ran { times, billed_microusd: sim.totals().cost_microusd, requests: sim.requests() }
}
