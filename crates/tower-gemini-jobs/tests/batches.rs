//! The batch lane over the simulator's Batch API and its faults: paid once, at half the price.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::field_reassign_with_default,
    missing_docs,
    reason = "a test that cannot go on says where; settings may grow"
)]

use std::time::Duration;

use tower_gemini::{GeminiStack, KeepPaidLayer};
use tower_gemini_jobs::{
    Counts, Item, Job, JobOptions, JobStore, Lane, NewJob, Planner, Through, Worker,
};
use tower_gemini_sim::{BatchFault, Batches, Builder, Fault, Latency, Sim};

struct Bench {
    dir: std::path::PathBuf,
    store: JobStore,
    sim: Sim,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Bench {
    async fn new(with: impl FnOnce(Builder) -> Builder) -> Self {
        let name = format!("tower-gemini-batches-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let mut batches = Batches::default();
        batches.pending = Duration::from_millis(50);
        batches.running = Duration::from_millis(100);
        let sim = Sim::builder().latency(Latency::none()).tiny_images(true).batches(batches);
        let store = JobStore::open(&dir.join("jobs.db").to_string_lossy()).await.unwrap();
        Self { dir, store, sim: with(sim).build() }
    }

    async fn submit(&self, count: usize, with: impl FnOnce(&mut JobOptions)) -> Job {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let mut options = JobOptions::default();
        options.lanes = vec![Lane::Standard, Lane::Batch];
        options.backoff_seconds = 0;
        with(&mut options);
        let planner = Planner::new("gemini-3-pro-image", options.clone(), now_ms);
        let items = (0..count).map(|n| Item::new(format!("apple {n}")));
        let items: Vec<_> = items.map(|item| Ok(planner.item(item).unwrap())).collect();
        self.store.submit(NewJob::new("", options, now_ms), items.into_iter()).await.unwrap()
    }

    /// Works for so long, or until all has ended.
    async fn run(&self, within: Duration) -> bool {
        let client = tower::ServiceBuilder::new()
            .map_request(|mut request: http::Request<_>| {
                request.headers_mut().insert("x-goog-api-key", "key".parse().unwrap());
                request
            })
            .service(self.sim.service());
        let stack = GeminiStack::new().keep_paid(KeepPaidLayer::new()).json(client);
        let worker = Worker::new(self.store.clone(), Through(stack), self.dir.join("out"))
            .unwrap()
            .lease(Duration::from_millis(300))
            .batch_poll(Duration::from_millis(50));
        tokio::time::timeout(within, worker.run_until_idle()).await.map(Result::unwrap).is_ok()
    }

    async fn ended(&self, job: &Job) -> (Counts, Job) {
        assert!(self.run(Duration::from_secs(60)).await, "{:?}", self.store.counts(&job.id).await);
        let counts = self.store.counts(&job.id).await.unwrap();
        let job = self.store.job(&job.id).await.unwrap().unwrap();
        assert_eq!(job.reserved_microusd, 0, "{job:?}");
        let (spent, billed) = (job.spent, self.sim.totals().cost_microusd);
        assert!(
            (spent.at_least_microusd..=spent.at_most_microusd).contains(&billed),
            "{spent:?} {billed}"
        );
        (counts, job)
    }
}

#[tokio::test]
async fn a_batch_delivers_every_item_at_half_the_price() {
    for count in [2, 30] {
        let standard = Bench::new(|sim| sim).await;
        let job = standard.submit(count, |options| options.lanes = vec![Lane::Standard]).await;
        standard.ended(&job).await;

        let bench = Bench::new(|sim| sim).await;
        let job = bench.submit(count, |_| ()).await;
        let (counts, _) = bench.ended(&job).await;
        assert_eq!(counts.done as usize, count, "{counts:?}");
        let (batch, alone) = (bench.sim.totals(), standard.sim.totals());
        assert_eq!(batch.cost_microusd * 2, alone.cost_microusd);
        let made = bench.sim.batches().len();
        assert_eq!(made, if count == 2 { 1 } else { 2 }, "results stay retrievable");
        let out = std::fs::read_dir(bench.dir.join("out").join(&job.id)).unwrap();
        assert_eq!(out.count(), count + 1, "the images, and their records");
    }
}

// There is no key of idempotency: what is created twice is paid twice.
#[tokio::test]
async fn a_creation_that_is_not_answered_is_found_by_its_name_and_never_sent_again() {
    for fault in [Fault::CutHead { at: 17 }, Fault::NoAnswer { charged: true }] {
        // The upload of more than a few items would meet the fault in place of the creation.
        let bench = Bench::new(|sim| sim.script([fault])).await;
        let job = bench.submit(3, |_| ()).await;
        // A connection on which nothing comes is given up by the next worker.
        if !bench.run(Duration::from_secs(3)).await {
            assert_eq!(bench.sim.batches().len(), 1);
        }
        let (counts, _) = bench.ended(&job).await;
        assert_eq!((counts.done, bench.sim.batches().len()), (3, 1), "{counts:?}");
    }
}

#[tokio::test]
async fn a_creation_that_is_refused_leaves_the_lane_for_nothing() {
    let bench = Bench::new(|sim| sim.script([Fault::Overloaded])).await;
    let job = bench.submit(3, |_| ()).await;
    let (counts, _) = bench.ended(&job).await;
    assert_eq!(counts.done, 3, "{counts:?}");
    assert!(bench.sim.batches().is_empty(), "refused, and drawn one by one");
}

#[tokio::test]
async fn lines_that_failed_are_free_and_drawn_otherwise() {
    let fault = BatchFault::LinesFailed { first: 1, count: 2, fault: Fault::HighDemand };
    let bench = Bench::new(|sim| sim.script_batches([fault])).await;
    let job = bench.submit(4, |_| ()).await;
    let (counts, job) = bench.ended(&job).await;
    assert_eq!((counts.done, bench.sim.batches().len()), (4, 1), "{counts:?} {job:?}");
    // Half of it was reserved for them.
    for item in bench.store.items(&job.id, None, 0, 9).await.unwrap() {
        let worst = if item.lane == Lane::Batch { 788_618 } else { 1_577_236 };
        assert_eq!(item.worst_microusd, worst, "{item:?}");
    }
}

#[tokio::test]
async fn a_batch_that_failed_whole_costs_nothing_and_its_items_are_drawn() {
    let bench = Bench::new(|sim| sim.script_batches([BatchFault::Failed(Fault::Internal)])).await;
    let job = bench.submit(3, |_| ()).await;
    let (counts, _) = bench.ended(&job).await;
    assert_eq!(counts.done, 3, "{counts:?}");
    assert_eq!(bench.sim.totals().charged, 3);
}

#[tokio::test]
async fn a_line_that_is_missing_is_unknown_and_one_that_is_there_twice_counts_once() {
    let missing = BatchFault::LinesMissing { first: 1, count: 1, charged: true };
    let bench = Bench::new(|sim| sim.script_batches([missing])).await;
    let job = bench.submit(3, |_| ()).await;
    let (counts, _) = bench.ended(&job).await;
    assert_eq!((counts.done, counts.unknown), (2, 1), "{counts:?}");

    let bench =
        Bench::new(|sim| sim.script_batches([BatchFault::LinesTwice { first: 0, count: 2 }])).await;
    let job = bench.submit(3, |_| ()).await;
    let (counts, job) = bench.ended(&job).await;
    assert_eq!((counts.done, job.requests), (3, 3), "{counts:?}");
}

#[tokio::test]
async fn a_batch_that_is_pending_for_ever_is_not_made_again_and_ends_with_its_job() {
    let bench = Bench::new(|sim| sim.script_batches([BatchFault::Stuck])).await;
    let job = bench.submit(3, |_| ()).await;
    assert!(!bench.run(Duration::from_secs(2)).await);
    assert_eq!(bench.sim.batches().len(), 1);
    assert!(bench.store.cancel(&job.id, 1).await.unwrap());
    let (counts, _) = bench.ended(&job).await;
    assert_eq!((counts.left(), counts.done, bench.sim.batches().len()), (0, 0, 1), "{counts:?}");
}

#[tokio::test]
async fn results_in_any_order_late_or_in_a_file_are_delivered() {
    let late = BatchFault::ResultsLate { by: Duration::from_millis(300) };
    for fault in [BatchFault::OutOfOrder, BatchFault::ResultsInFile, late] {
        let bench = Bench::new(|sim| sim.script_batches([fault.clone()])).await;
        let job = bench.submit(4, |_| ()).await;
        let (counts, _) = bench.ended(&job).await;
        assert_eq!((counts.done, bench.sim.totals().charged), (4, 1), "{fault:?} {counts:?}");
    }
}

#[tokio::test]
async fn a_cap_holds_for_batches_too() {
    let bench = Bench::new(|sim| sim).await;
    // One item can cost half of $1.58.
    let job = bench.submit(20, |options| options.max_usd = Some(2.0)).await;
    let (counts, job) = bench.ended(&job).await;
    assert!(bench.sim.totals().cost_microusd <= 2_000_000);
    assert_eq!(job.state, tower_gemini_jobs::JobState::Capped);
    assert!(counts.done >= 10 && counts.waiting > 0, "{counts:?}");
}
