//! Real clients, unchanged and with their built-in retries, against a server on loopback; the
//! simulator's ledger judges.
//!
//! One test is one thing that happens upstream, and every client goes through it by itself: its own
//! simulator, its own server, its own process. What it saw is the line of JSON that its program
//! printed; what it cost is in the ledger. `tests/clients/run` installs the clients and runs
//! everything; without them these tests say that they were skipped, or fail when `CLIENTS_REQUIRED`
//! is set.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // a test that cannot go on says so, and prints its table

mod bed;

use std::time::Duration;

use bed::{Case, Run, each_client, each_target, with_another_vendor};
use serde_json::{Value, json};
use tower_gemini::GeminiStack;
use tower_gemini::jittered_retry::{RetryPolicy, presets};
use tower_gemini::model_fallback::Chain;
use tower_gemini_sim::{
    BatchFault, BatchRecord, Batches, Fault, ImageOptions, Latency, Limit, Outages, Refusal, Shape,
    Sim, Weather,
};

const LEADER: &str = "gemini-3-pro-image";

/// What a case comes to for one client: requests upstream, charges, and whether its user has an
/// image.
type Bill = (usize, usize, bool);

fn bill(run: &Run) -> Bill {
    (run.requests(), run.charges(), run.saw.ok && run.saw.chosen_sha256.is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn in_good_weather_every_client_pays_once_a_turn_and_gets_the_image() {
    let case = Case::new("good weather", || Sim::quick([]));
    each_client(&case, |client, run| {
        assert_eq!(bill(run), (client.turns, client.turns, true));
        assert!(run.chose_the_final_image());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_opens_in_a_second_costs_the_user_a_second() {
    let minute =
        Fault::RateLimitMinute { retry_after: Duration::from_secs(1), limit: Limit::Requests };
    let case = Case::new("429, then well", move || Sim::quick([minute.clone()]));
    each_client(&case, |client, run| match run.guarded {
        true => {
            assert_eq!(bill(run), (client.turns + 1, client.turns, true));
            assert!(run.chose_the_final_image());
        }
        // No client reads RetryInfo; only openai asks again, on its own schedule.
        false if client.retries => assert_eq!(bill(run), (2, 1, true)),
        false => {
            assert_eq!(bill(run), (1, 0, false));
            assert_eq!(run.saw.status, Some(429));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_model_is_down_another_makes_the_image() {
    let outage = Outages::new(Fault::HighDemand)
        .model(LEADER)
        .mean_up(Duration::ZERO)
        .mean_down(Duration::from_secs(1_000_000));
    let sky = Weather::calm().outages(outage);
    let sim = move || {
        Sim::builder().latency(Latency::none()).tiny_images(true).weather(sky.clone()).build()
    };
    let case = Case::new("503 to the end", sim).gateway(
        r#"
        [fallback]
        models = ["gemini-3-pro-image", "gemini-3.1-flash-image"]
        [retry]
        attempts = 2
        "#,
    );
    let chain = Chain::new([LEADER, "gemini-3.1-flash-image"]);
    let case = case.stack(
        GeminiStack::new().fallback_to(chain).retry_policy(RetryPolicy::recommended().attempts(2)),
    );
    each_client(&case, |client, run| match run.guarded {
        true => {
            assert_eq!((run.charges(), run.saw.ok), (client.turns, true));
            assert!(run.chose_the_final_image());
        }
        false => {
            assert_eq!(bill(run), (if client.retries { 3 } else { 1 }, 0, false));
            assert_eq!(run.saw.status, Some(503));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_google_is_down_another_vendor_makes_the_image() {
    let clients = ["google-genai", "google-genai stream", "openai chat", "openai images"];
    let google = never_well(Fault::HighDemand);
    with_another_vendor(&clients, google, |client, run| {
        assert!(run.saw.ok && run.has_the_image, "{}: {run:?}", client.name);
        assert_eq!(run.charges, (0, 1), "{}", client.name);
    })
    .await;
}

fn never_well(fault: Fault) -> impl Fn() -> Sim {
    let outage = Outages::new(fault)
        .model(LEADER)
        .mean_up(Duration::ZERO)
        .mean_down(Duration::from_secs(1_000_000));
    let sky = Weather::calm().outages(outage);
    move || Sim::builder().latency(Latency::none()).tiny_images(true).weather(sky.clone()).build()
}

/// The most that five sends of a client and three of ours may come to.
const MOST_REQUESTS: usize = 7;

#[tokio::test(flavor = "multi_thread")]
async fn five_sends_of_a_client_and_three_of_ours_are_seven_and_none_hangs() {
    let case = Case::new("503, five sends", never_well(Fault::HighDemand)).sends(5).gateway(
        r#"
        [retry]
        policy = "grpc_service_config"
        attempts = 3
        "#,
    );
    let policy = presets::grpc_service_config().attempts(3);
    let case = case.stack(GeminiStack::new().retry_policy(policy));
    each_client(&case, |client, run| {
        assert_eq!((run.charges(), run.saw.ok, run.saw.status), (0, false, Some(503)));
        match run.guarded {
            true => assert!((3..=MOST_REQUESTS).contains(&run.requests()), "{}", run.requests()),
            false => assert!(run.requests() >= if client.resends_on_demand { 5 } else { 1 }),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_is_over_is_asked_for_once_and_no_client_waits_for_midnight() {
    let day = Fault::RateLimitDay { retry_after: Duration::from_millis(2_500) };
    let case = Case::new("429_day, five sends", never_well(day)).sends(5);
    each_client(&case, |client, run| {
        assert_eq!((run.charges(), run.saw.ok, run.saw.status), (0, false, Some(429)));
        match run.guarded {
            true => assert_eq!(run.requests(), 1),
            false => assert!(run.requests() >= if client.resends_on_demand { 5 } else { 1 }),
        }
    })
    .await;
}

// litellm with `num_retries` sent again 0.2 s after our 424, and paid twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_paid_for_once_however_often_its_client_sends() {
    let case = Case::new("reset, five sends", || Sim::quick([Fault::ResetAfterGeneration]));
    each_client(&case.sends(5), |_, run| {
        if run.guarded {
            assert_eq!(bill(run), (1, 1, false));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_image_is_paid_for_once_and_not_asked_for_again() {
    let case = Case::new("IMAGE_SAFETY", || Sim::quick([Fault::Refused(Refusal::ImageSafety)]));
    each_client(&case, |_, run| {
        assert_eq!(bill(run), (1, 1, false));
        assert!(run.saw.chosen_sha256.is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_not_paid_for_twice() {
    let case = Case::new("reset after generation", || Sim::quick([Fault::ResetAfterGeneration]));
    each_client(&case, |client, run| match run.guarded {
        true => assert_eq!(bill(run), (1, 1, false)),
        // Why there is a gateway: these two pay again without a word.
        false if client.retries || client.retries_resets => assert_eq!(bill(run), (2, 2, true)),
        false => assert_eq!(bill(run), (1, 1, false)),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_cut_in_its_middle_is_not_paid_for_twice() {
    let case = Case::new("cut in mid-body", || Sim::quick([Fault::CutBody { at: 300 }]));
    each_client(&case, |client, run| match run.guarded {
        true => assert_eq!(bill(run), (1, 1, false)),
        false if client.retries => assert_eq!(bill(run), (2, 2, true)),
        false => assert_eq!(bill(run), (1, 1, false)),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_user_is_left_with_a_draft() {
    let case = Case::new("two drafts", || {
        Sim::builder()
            .latency(Latency::none())
            .images(ImageOptions { shape: Shape::with_drafts(2), ..ImageOptions::tiny() })
            .build()
    });
    each_client(&case, |client, run| {
        assert_eq!((run.requests(), run.charges()), (client.turns, client.turns));
        // Directly, these leave their users with the first draft, or with three files in one.
        let deceived = !run.guarded && client.takes_drafts;
        assert_eq!(run.chose_the_final_image(), !deceived);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_image_arrives_byte_for_byte() {
    // One simulator for all: drawing a 4K picture takes longer than any client.
    let sim = Sim::builder()
        .latency(Latency::none())
        .images(ImageOptions { variants: 1, ..ImageOptions::default() })
        .build();
    let case =
        Case::new("4K image", move || sim.clone()).size("4K").within(Duration::from_secs(120));
    each_client(&case, |client, run| {
        assert_eq!(bill(run), (client.turns, client.turns, true));
        assert!(run.chose_the_final_image());
        let image = run.saw.images.last().unwrap();
        assert!(image.bytes >= 20_000_000, "{} bytes", image.bytes);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_is_waited_for() {
    let case = Case::new("3 s", || Sim::quick([Fault::Late { latency: Duration::from_secs(3) }]));
    each_client(&case, |client, run| {
        assert_eq!(bill(run), (client.turns, client.turns, true));
        assert!(run.chose_the_final_image());
        assert!(run.took >= Duration::from_secs(3));
    })
    .await;
}

/// Batches that are quick enough for the real clock; the second line of the first two fails.
fn quick_batches() -> Sim {
    let times = Batches {
        pending: Duration::from_millis(200),
        running: Duration::from_millis(300),
        ..Batches::default()
    };
    let failed = BatchFault::LinesFailed { first: 1, count: 1, fault: Fault::HighDemand };
    let sim = Sim::builder().latency(Latency::none()).tiny_images(true).batches(times);
    sim.script_batches([failed.clone(), failed]).build()
}

/// The client saw the batch through its states, and each line as the simulator has it.
fn saw_the_batch(said: &Value, batch: &BatchRecord, key: &str) {
    let states = ["JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"];
    saw_its_lines(said, batch, (states, key, 14));
}

/// The same, with the client's words for the states and the code of the second line's error.
fn saw_its_lines(said: &Value, batch: &BatchRecord, (states, key, code): ([&str; 3], &str, u64)) {
    assert_eq!(said["states"], json!(states));
    let lines = said["lines"].as_array().unwrap();
    assert_eq!((lines.len(), batch.lines.len()), (3, 3));
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["key"], format!("{key}{index}"));
        let is_failed = index == 1;
        assert_eq!(line["sha256"].is_string(), !is_failed);
        assert_eq!(line["error"][0].as_u64(), is_failed.then_some(code));
        assert_eq!(batch.lines[index].charged, !is_failed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn googles_python_client_gets_its_batches_inline_and_by_file_and_its_webhooks() {
    each_target("genai_batches.py", quick_batches, |said, sim| {
        let [inline, file, cancelled] = &sim.batches()[..] else { panic!("{:?}", sim.batches()) };
        saw_the_batch(&said["inline"], inline, "k");
        saw_the_batch(&said["file"], file, "f");
        assert_eq!(said["inline"]["display_name"], "inline");
        assert_eq!(said["inline"]["model"], "models/gemini-3-pro-image");
        assert_eq!(said["upload"], json!({ "same": true, "name": "requests" }));
        assert_eq!(said["cancelled"], "JOB_STATE_CANCELLED");
        assert_eq!(said["listed"], json!(["cancelled", "file", "inline"]));
        assert_eq!((&said["left"], &said["webhooks"]), (&json!(2), &json!([true])));
        assert!(cancelled.lines.iter().all(|line| !line.charged));
        let heard = |mut data: Value, batch: &BatchRecord| {
            data["id"] = json!(batch.name);
            json!({ "signed": true, "type": "batch.succeeded", "data": data })
        };
        let output = format!("files/batch-{}", file.name.trim_start_matches("batches/"));
        let expected =
            [heard(json!({}), inline), heard(json!({ "output_file_uri": output }), file)];
        assert_eq!(said["heard"], json!(expected));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn googles_javascript_client_gets_its_batches_inline_and_by_file() {
    each_target("genai_batches.mjs", quick_batches, |said, sim| {
        let [inline, file] = &sim.batches()[..] else { panic!("{:?}", sim.batches()) };
        saw_the_batch(&said["inline"], inline, "k");
        saw_the_batch(&said["file"], file, "f");
        assert_eq!(said["listed"], json!(["file", "inline"]));
    })
    .await;
}

// The shapes are OpenAI's, since Google publishes none of its own (BATCH.md of the simulator).
#[tokio::test(flavor = "multi_thread")]
async fn openais_python_client_gets_its_batches_with_the_files_of_googles() {
    each_target("openai_batches.py", quick_batches, |said, sim| {
        let [batch, cancelled] = &sim.batches()[..] else { panic!("{:?}", sim.batches()) };
        saw_its_lines(said, batch, (["validating", "in_progress", "completed"], "c", 503));
        assert_eq!(said["counts"], json!({ "total": 3, "completed": 2, "failed": 1 }));
        assert_eq!((&said["object"], &said["took"]), (&json!("batch"), &json!(true)));
        assert_eq!(said["metadata"], json!({ "job": "cats" }));
        assert_eq!(said["cancelled"], json!(["cancelled", "cancelled"]));
        assert!(cancelled.lines.iter().all(|line| !line.charged));
        assert_eq!(said["listed"], json!(["cancelled", "cats"]));
        assert_eq!(said["files"], 404);
    })
    .await;
}
