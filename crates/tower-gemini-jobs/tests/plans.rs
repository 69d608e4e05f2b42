//! What a plan says is what the bill comes to, in many weathers, and planning is fast.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::field_reassign_with_default,
    missing_docs,
    reason = "a test that cannot go on says where; settings may grow"
)]

use tower_gemini::{GeminiStack, KeepPaidLayer};
use tower_gemini_jobs::{
    Item, ItemState, JobOptions, JobStore, NewJob, Planner, StoreError, Through, Worker,
};
use tower_gemini_sim::{Block, Fault, Latency, Refusal, Sim, Weather};

/// Every fourth call meets one of these. What is free changes no bill, and makes its item wait.
fn weather() -> Weather {
    let faults = [
        Fault::Refused(Refusal::ImageSafety),
        Fault::PromptBlocked(Block::ALL[0]),
        Fault::NoImage,
        Fault::CutHead { at: 17 },
        Fault::ResetAfterGeneration,
    ];
    faults.into_iter().fold(Weather::calm(), |weather, fault| weather.with(0.05, fault))
}

#[tokio::test]
async fn a_plan_holds_the_bill_in_a_hundred_weathers() {
    let dir = std::env::temp_dir().join(format!("tower-gemini-plans-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let store = JobStore::open(&dir.join("jobs.db").to_string_lossy()).await.unwrap();
    for seed in 0..100 {
        let sim = Sim::builder().latency(Latency::none()).tiny_images(true);
        let sim = sim.seed(seed).weather(weather()).build();
        let mut options = JobOptions::default();
        options.backoff_seconds = 0;
        options.attempts_per_call = 1;
        options.unknown_resends = u32::from(seed % 2 == 0);
        let planner = Planner::new("gemini-3-pro-image", options.clone(), 0);
        let items: Vec<_> =
            (0..6).map(|n| planner.item(Item::new(format!("apple {n}"))).unwrap()).collect();
        let mut plan = planner.plan();
        items.iter().for_each(|item| plan.add(item));
        let plan = plan.finish();
        let each = plan.at_least_usd / 6.0;
        let job =
            store.submit(NewJob::new("", options, 0), items.into_iter().map(Ok)).await.unwrap();
        let client = tower::ServiceBuilder::new()
            .map_request(|mut request: http::Request<_>| {
                request.headers_mut().insert("x-goog-api-key", "key".parse().unwrap());
                request
            })
            .service(sim.service());
        let stack = GeminiStack::new().keep_paid(KeepPaidLayer::new()).json(client);
        let worker = Worker::new(store.clone(), Through(stack), dir.join("out")).unwrap();
        worker.run_until_idle().await.unwrap();
        let job = store.job(&job.id).await.unwrap().unwrap();
        let billed = sim.totals().cost_microusd;
        #[allow(clippy::cast_precision_loss)]
        let usd = billed as f64 / 1e6;
        let done = store.items(&job.id, Some(ItemState::Done), 0, 9).await.unwrap().len();
        #[allow(clippy::cast_precision_loss)]
        let at_least = each * done as f64;
        assert!((at_least..=plan.at_most_usd).contains(&usd), "seed {seed}: {usd} {plan:?}");
        let spent = job.spent;
        assert!(
            (spent.at_least_microusd..=spent.at_most_microusd).contains(&billed),
            "seed {seed}: {billed} {spent:?}"
        );
    }
    store.close().await;
    let _ = std::fs::remove_dir_all(&dir);
}

// 100,000 items are queued one after the other: what is held is their names.
#[tokio::test]
async fn items_are_queued_one_after_the_other_and_the_first_fault_takes_all_back() {
    let dir = std::env::temp_dir().join(format!("tower-gemini-queue-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let store = JobStore::open(&dir.join("jobs.db").to_string_lossy()).await.unwrap();
    let planner = Planner::new("gemini-3-pro-image", JobOptions::default(), 0);
    let mut made = 0;
    let items = std::iter::from_fn(|| {
        made += 1;
        match made {
            ..2_000 => Some(planner.item(Item::new("an apple")).map_err(StoreError::from)),
            _ => Some(Err(StoreError::from("line 2000: no item".to_owned()))),
        }
    });
    let error = store.submit(NewJob::new("", JobOptions::default(), 0), items).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), made), ("line 2000: no item", 2_000));
    assert!(store.jobs(None).await.unwrap().is_empty());
    store.close().await;
    let _ = std::fs::remove_dir_all(&dir);
}
