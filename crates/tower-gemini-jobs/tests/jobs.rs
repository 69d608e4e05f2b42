//! Whole jobs over the simulator, in a SQLite file.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::field_reassign_with_default,
    missing_docs,
    reason = "a test that cannot go on says where; settings may grow"
)]

use std::path::Path;
use std::time::Duration;

use tower_gemini::{GeminiStack, KeepPaidLayer};
use tower_gemini_jobs::{
    Item, ItemState, Job, JobOptions, JobState, JobStore, NewJob, Planner, StoreError, Through,
    Worker, delete_job,
};
use tower_gemini_sim::{BadRequest, Fault, Sim};

struct Bench {
    dir: tempdir::Dir,
    store: JobStore,
    sim: Sim,
}

mod tempdir {
    //! A directory that is removed with its value.

    pub(super) struct Dir(pub(super) std::path::PathBuf);

    impl Dir {
        pub(super) fn new() -> Self {
            let name =
                format!("tower-gemini-jobs-{}-{:08x}", std::process::id(), fastrand::u32(..));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Bench {
    async fn new(faults: impl IntoIterator<Item = Fault>) -> Self {
        let dir = tempdir::Dir::new();
        let store = JobStore::open(&dir.0.join("jobs.db").to_string_lossy()).await.unwrap();
        Self { dir, store, sim: Sim::quick(faults) }
    }

    async fn submit(
        &self,
        options: JobOptions,
        items: impl IntoIterator<Item = Item>,
    ) -> Result<Job, StoreError> {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let planner = Planner::new("gemini-3-pro-image", options.clone(), now_ms);
        let items: Vec<_> = items.into_iter().map(|item| Ok(planner.item(item).unwrap())).collect();
        self.store.submit(NewJob::new("", options, now_ms), items.into_iter()).await
    }

    async fn run(&self) {
        let client = tower::ServiceBuilder::new()
            .map_request(|mut request: http::Request<_>| {
                request.headers_mut().insert("x-goog-api-key", "key".parse().unwrap());
                request
            })
            .service(self.sim.service());
        let stack = GeminiStack::new().keep_paid(KeepPaidLayer::new()).json(client);
        let worker = Worker::new(self.store.clone(), Through(stack), self.dir.0.join("out"))
            .unwrap()
            .lease(Duration::from_secs(3));
        tokio::time::timeout(Duration::from_secs(60), worker.run_until_idle())
            .await
            .unwrap()
            .unwrap();
    }
}

fn quick() -> JobOptions {
    let mut options = JobOptions::default();
    options.backoff_seconds = 0;
    options.attempts_per_call = 1;
    options.max_concurrent = 4;
    options
}

fn items(count: usize) -> impl Iterator<Item = Item> {
    (0..count).map(|number| Item::new(format!("apple {number}")))
}

fn files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count()
}

#[tokio::test]
async fn every_item_is_delivered_and_paid_once_in_spite_of_free_failures() {
    let faults = [Fault::Internal, Fault::ConnectionRefused, Fault::Internal, Fault::Internal];
    let bench = Bench::new(faults).await;
    let job = bench.submit(quick(), items(12)).await.unwrap();
    bench.run().await;
    let counts = bench.store.counts(&job.id).await.unwrap();
    assert_eq!((counts.done, counts.left()), (12, 0), "{counts:?}");
    let job = bench.store.job(&job.id).await.unwrap().unwrap();
    assert_eq!((job.state, job.reserved_microusd), (JobState::Finished, 0));
    let (billed, spent) = (bench.sim.totals().cost_microusd, job.spent);
    assert!(
        spent.at_least_microusd <= billed && billed <= spent.at_most_microusd,
        "{spent:?} {billed}"
    );
    assert_eq!(bench.sim.totals().charged, 12);
    assert_eq!(files(&bench.dir.0.join("out").join(&job.id)), 12);
}

#[tokio::test]
async fn a_cap_on_money_holds_with_many_at_once_and_what_is_there_stays() {
    let bench = Bench::new([]).await;
    let mut options = quick();
    // One call can cost $1.58; delivered it costs about 14 cents.
    options.max_usd = Some(3.0);
    let job = bench.submit(options, items(40)).await.unwrap();
    bench.run().await;
    let job = bench.store.job(&job.id).await.unwrap().unwrap();
    let counts = bench.store.counts(&job.id).await.unwrap();
    assert_eq!(job.state, JobState::Capped);
    assert!(bench.sim.totals().cost_microusd <= 3_000_000);
    assert!(counts.done >= 9 && counts.waiting > 0, "{counts:?}");
    // With a higher cap it goes on where it stopped.
    bench.store.set_caps(&job.id, Some(50.0), None).await.unwrap();
    assert!(bench.store.resume(&job.id).await.unwrap());
    bench.run().await;
    assert_eq!(bench.store.counts(&job.id).await.unwrap().done, 40);
    assert_eq!(bench.sim.totals().charged, 40);
}

#[tokio::test]
async fn a_cap_on_requests_holds_with_retries() {
    let bench = Bench::new(vec![Fault::Internal; 7]).await;
    let mut options = quick();
    options.attempts_per_call = 3;
    options.max_requests = Some(10);
    let job = bench.submit(options, items(20)).await.unwrap();
    bench.run().await;
    let job = bench.store.job(&job.id).await.unwrap().unwrap();
    assert_eq!(job.state, JobState::Capped);
    assert!(bench.sim.requests() <= 10, "{}", bench.sim.requests());
}

#[tokio::test]
async fn an_items_own_caps_hold_over_its_failures() {
    let bench = Bench::new(vec![Fault::Internal; 9]).await;
    let mut item = Item::new("an apple");
    item.max_requests = Some(3);
    let mut options = quick();
    (options.attempts_per_call, options.max_failures) = (2, 9);
    let job = bench.submit(options, [item]).await.unwrap();
    bench.run().await;
    let failed = &bench.store.items(&job.id, Some(ItemState::Failed), 0, 9).await.unwrap()[0];
    assert_eq!((failed.requests, bench.sim.requests()), (3, 3), "{failed:?}");
    assert!(failed.reason.as_ref().unwrap().contains("`max_requests` is used up"), "{failed:?}");

    // One call can cost $1.58, and one that may have been paid for counts as that.
    let bench = Bench::new([Fault::CutHead { at: 17 }]).await;
    let mut item = Item::new("an apple");
    item.max_usd = Some(2.0);
    let mut options = quick();
    options.unknown_resends = 1;
    let job = bench.submit(options, [item]).await.unwrap();
    bench.run().await;
    assert_eq!(bench.store.counts(&job.id).await.unwrap().unknown, 1);
    assert_eq!(bench.sim.totals().charged, 1);
}

#[tokio::test]
async fn an_item_that_waits_for_another_gets_its_image_and_fails_with_it() {
    let bench = Bench::new([]).await;
    let mut first = Item::new("a chair");
    first.output = Some("chair.png".to_owned());
    let mut second = Item::new("the same in oak");
    second.inputs = vec!["item:chair.png".to_owned()];
    let job = bench.submit(quick(), [first.clone(), second.clone()]).await.unwrap();
    bench.run().await;
    assert_eq!(bench.store.counts(&job.id).await.unwrap().done, 2);

    let bench = Bench::new([Fault::BadRequest(BadRequest::ALL[0])]).await;
    let job = bench.submit(quick(), [first, second.clone()]).await.unwrap();
    bench.run().await;
    let failed = bench.store.items(&job.id, Some(ItemState::Failed), 0, 9).await.unwrap();
    assert_eq!((failed.len(), bench.sim.requests()), (2, 1), "{failed:?}");
    assert!(failed[1].reason.as_ref().unwrap().contains("waits for item 1"));

    let error = bench.submit(quick(), [second]).await.unwrap_err().to_string();
    assert!(error.contains("the output of no item before it"), "{error}");
    assert_eq!(bench.store.jobs(None).await.unwrap().len(), 1, "all or nothing");
}

#[tokio::test]
async fn what_may_have_been_paid_is_unknown_and_sent_again_only_if_bought() {
    for (bought, done, charged) in [(0, 0, 1), (1, 1, 2)] {
        let bench = Bench::new([Fault::CutHead { at: 17 }]).await;
        let mut options = quick();
        options.unknown_resends = bought;
        let job = bench.submit(options, items(1)).await.unwrap();
        bench.run().await;
        let counts = bench.store.counts(&job.id).await.unwrap();
        assert_eq!((counts.done, counts.unknown), (done, 1 - done), "{counts:?}");
        assert_eq!(bench.sim.totals().charged, charged);
        let spent = bench.store.job(&job.id).await.unwrap().unwrap().spent;
        let billed = bench.sim.totals().cost_microusd;
        assert!((spent.at_least_microusd..=spent.at_most_microusd).contains(&billed), "{spent:?}");
    }
}

#[tokio::test]
async fn a_paused_job_starts_nothing_and_a_cancelled_one_never_does() {
    let bench = Bench::new([]).await;
    let job = bench.submit(quick(), items(3)).await.unwrap();
    assert!(bench.store.pause(&job.id).await.unwrap());
    bench.run().await;
    assert_eq!(bench.sim.requests(), 0);
    assert!(bench.store.cancel(&job.id, 1).await.unwrap());
    assert!(!bench.store.resume(&job.id).await.unwrap());
    bench.run().await;
    assert_eq!(
        (bench.sim.requests(), bench.store.counts(&job.id).await.unwrap().cancelled),
        (0, 3)
    );
}

// Each would take what the other has in flight for what a dead worker left, and pay for it again.
#[tokio::test]
async fn two_workers_never_work_on_one_file() {
    let bench = Bench::new([]).await;
    let job = bench.submit(quick(), items(1)).await.unwrap();
    let stack = || GeminiStack::new().json(bench.sim.service());
    let worker = || Worker::new(bench.store.clone(), Through(stack()), bench.dir.0.join("out"));
    let (_keep, stop) = tokio::sync::watch::channel(false);
    let first = worker().unwrap();
    let running = tokio::spawn(async move { first.run(stop).await });
    while bench.store.counts(&job.id).await.unwrap().left() > 0 {
        tokio::task::yield_now().await;
    }
    let error = worker().unwrap().run_until_idle().await.unwrap_err().to_string();
    assert!(error.contains("another process works on the jobs"), "{error}");
    running.abort();
    let _ = running.await;
    worker().unwrap().run_until_idle().await.unwrap();
}

// They waited for ever, and nothing said why.
#[tokio::test]
async fn nothing_of_a_cancelled_job_is_called_again() {
    let bench = Bench::new([Fault::BadRequest(BadRequest::ALL[0])]).await;
    let mut options = quick();
    (options.max_concurrent, options.max_requests) = (1, Some(1));
    let job = bench.submit(options, items(3)).await.unwrap();
    bench.run().await;
    let counts = bench.store.counts(&job.id).await.unwrap();
    assert_eq!((counts.failed, counts.waiting), (1, 2), "{counts:?}");
    assert!(bench.store.cancel(&job.id, 1).await.unwrap());
    assert_eq!(bench.store.retry(&job.id, true).await.unwrap(), 0);
    bench.run().await;
    assert_eq!((bench.sim.requests(), bench.store.counts(&job.id).await.unwrap().left()), (1, 0));
}

#[tokio::test]
async fn a_job_is_removed_with_its_images_once_it_has_ended_and_not_before() {
    let bench = Bench::new([]).await;
    let dir = bench.dir.0.join("out");
    let job = bench.submit(quick(), items(2)).await.unwrap();
    let other = bench.submit(quick(), items(1)).await.unwrap();
    assert!(!delete_job(&bench.store, &job.id, &dir).await.unwrap(), "it has not ended");
    bench.run().await;
    // Where an image cannot be removed, the job stays and can be removed later.
    std::fs::rename(dir.join(&job.id), bench.dir.0.join("aside")).unwrap();
    std::fs::write(dir.join(&job.id), b"in the way").unwrap();
    let error = delete_job(&bench.store, &job.id, &dir).await.unwrap_err().to_string();
    assert!(error.contains("cannot be removed"), "{error}");
    assert_eq!(bench.store.counts(&job.id).await.unwrap().done, 2);
    std::fs::remove_file(dir.join(&job.id)).unwrap();
    std::fs::rename(bench.dir.0.join("aside"), dir.join(&job.id)).unwrap();

    assert!(delete_job(&bench.store, &job.id, &dir).await.unwrap());
    assert!(bench.store.job(&job.id).await.unwrap().is_none());
    assert_eq!(bench.store.items(&job.id, None, 0, 10).await.unwrap().len(), 0);
    assert!(!dir.join(&job.id).exists());
    assert!(!delete_job(&bench.store, &job.id, &dir).await.unwrap(), "it is gone");
    assert_eq!((bench.store.jobs(None).await.unwrap().len(), files(&dir.join(&other.id))), (1, 1));
}

#[tokio::test]
async fn a_worker_removes_jobs_that_ended_long_ago_and_no_other() {
    let bench = Bench::new([]).await;
    let dir = bench.dir.0.join("out");
    let old = bench.submit(quick(), items(1)).await.unwrap();
    let paused = bench.submit(quick(), items(1)).await.unwrap();
    bench.store.pause(&paused.id).await.unwrap();
    bench.run().await;
    let left = async |keep| {
        let stack = GeminiStack::new().json(bench.sim.service());
        let worker = Worker::new(bench.store.clone(), Through(stack), &dir).unwrap().keep(keep);
        worker.run_until_idle().await.unwrap();
        let jobs = bench.store.jobs(None).await.unwrap();
        jobs.into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert_eq!(left(None).await.len(), 2);
    assert_eq!(left(Some(Duration::from_secs(3600))).await.len(), 2);
    assert_eq!(left(Some(Duration::ZERO)).await, [paused.id]);
    assert!(!dir.join(&old.id).exists());
}

#[tokio::test]
async fn an_image_that_cannot_be_written_is_not_paid_again() {
    let bench = Bench::new([]).await;
    let job = bench.submit(quick(), items(1)).await.unwrap();
    // A file stands where the directory should be.
    std::fs::write(bench.dir.0.join("out"), b"in the way").unwrap();
    let client = tower::ServiceBuilder::new()
        .map_request(|mut request: http::Request<_>| {
            request.headers_mut().insert("x-goog-api-key", "key".parse().unwrap());
            request
        })
        .service(bench.sim.service());
    let keep = KeepPaidLayer::new();
    let stack = GeminiStack::new().keep_paid(keep).json(client);
    let worker = Worker::new(bench.store.clone(), Through(stack), bench.dir.0.join("out")).unwrap();
    let error = worker.run_until_idle().await.unwrap_err().to_string();
    assert!(error.contains("cannot be written below"), "{error}");
    std::fs::remove_file(bench.dir.0.join("out")).unwrap();
    // The same worker goes on with what it had left.
    worker.run_until_idle().await.unwrap();
    assert_eq!(bench.store.counts(&job.id).await.unwrap().done, 1);
    assert_eq!(bench.sim.totals().charged, 1);
    assert_eq!(files(&bench.dir.0.join("out").join(&job.id)), 1);
}
