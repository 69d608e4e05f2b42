//! Batches: their states in virtual time, their results, their faults and their bill.
// The exemption of tests from these lints does not reach helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{CAT, FLASH, FLASH31, PRO, Taken, generate, post, send};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tower_gemini_sim::{
    BadRequest, BatchFault, BatchRecord, BatchState, Batches, Fault, ImageOptions, Latency, Quota,
    Refusal, Shape, Sim,
};
use tower_service::Service as _;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const API: &str = "https://gemini.example/v1beta";

/// Batches are pending for one minute and run for ten.
fn sim(faults: impl IntoIterator<Item = BatchFault>) -> Sim {
    let times = Batches { pending: MINUTE, running: 10 * MINUTE, ..Batches::default() };
    let builder = Sim::builder().latency(Latency::none()).tiny_images(true);
    builder.batches(times).script_batches(faults).build()
}

fn request(method: Method, path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(format!("{API}/{path}"));
    request.header("x-goog-api-key", "key-1").body(Full::default()).unwrap()
}

async fn get(sim: &Sim, path: &str) -> Taken {
    send(sim, request(Method::GET, path)).await.unwrap()
}

fn prompt(text: &str) -> Value {
    json!({ "contents": [{ "parts": [{ "text": text }] }] })
}

/// Inline requests with the keys `k0`, `k1` and so on.
fn inline(count: usize) -> Value {
    let line = |index: usize| json!({ "request": prompt(&format!("cat {index}")), "metadata": { "key": format!("k{index}") } });
    let lines: Vec<_> = (0..count).map(line).collect();
    json!({ "batch": {
        "displayName": "cats",
        "inputConfig": { "requests": { "requests": lines } },
    } })
}

fn creation(model: &str, body: &Value) -> Request<Full<Bytes>> {
    post(format!("{API}/models/{model}:batchGenerateContent"), body.to_string())
}

/// Creates a batch and returns its name.
async fn create(sim: &Sim, body: &Value) -> String {
    let made = send(sim, creation(PRO, body)).await.unwrap();
    assert_eq!(made.status, 200, "{}", made.text());
    made.json()["name"].as_str().unwrap().to_owned()
}

async fn ended(sim: &Sim, body: &Value) -> Value {
    let name = create(sim, body).await;
    tokio::time::sleep(12 * MINUTE).await;
    get(sim, &name).await.json()
}

fn results(operation: &Value) -> &[Value] {
    let results = &operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"];
    results.as_array().map_or(&[], Vec::as_slice)
}

fn keys(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["metadata"]["key"].as_str().unwrap()).collect()
}

fn only(sim: &Sim) -> BatchRecord {
    let mut batches = sim.batches();
    assert_eq!(batches.len(), 1);
    batches.remove(0)
}

/// What one request of these costs by itself.
async fn alone() -> u64 {
    let sim = Sim::quick([]);
    send(&sim, post(format!("{API}/models/{PRO}:generateContent"), prompt("cat 0").to_string()))
        .await
        .unwrap();
    sim.totals().cost_microusd
}

/// Uploads a file as the SDKs do, in two parts, and returns its name.
async fn upload(sim: &Sim, content: &str) -> String {
    let start = Request::post("https://gemini.example/upload/v1beta/files")
        .header("x-goog-api-key", "key-1")
        .header("x-goog-upload-protocol", "resumable")
        .header("x-goog-upload-command", "start")
        .header("x-goog-upload-header-content-type", "application/jsonl")
        .body(Full::from(json!({ "file": { "displayName": "lines" } }).to_string()))
        .unwrap();
    let started = sim.service().call(start).await.unwrap();
    assert_eq!(started.headers()["x-goog-upload-status"], "active");
    let address = started.headers()["x-goog-upload-url"].to_str().unwrap().to_owned();
    drop(started);
    let half = content.len() / 2;
    let part = |command: &str, offset: usize, bytes: &str| {
        Request::post(&address)
            .header("x-goog-upload-command", command)
            .header("x-goog-upload-offset", offset)
            .body(Full::from(bytes.to_owned()))
            .unwrap()
    };
    let first = sim.service().call(part("upload", 0, &content[..half])).await.unwrap();
    assert_eq!(first.headers()["x-goog-upload-status"], "active");
    drop(first);
    // A part that does not go on where the last one ended is refused.
    let wrong = send(sim, part("upload, finalize", half + 1, &content[half..])).await.unwrap();
    assert_eq!(wrong.status, 400);
    let last = sim.service().call(part("upload, finalize", half, &content[half..])).await.unwrap();
    assert_eq!(last.headers()["x-goog-upload-status"], "final");
    let body = last.into_body().collect().await.unwrap().to_bytes();
    let file: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(file["file"]["sizeBytes"], content.len().to_string());
    file["file"]["name"].as_str().unwrap().to_owned()
}

fn of_file(name: &str) -> Value {
    json!({ "batch": { "displayName": "cats", "inputConfig": { "fileName": name } } })
}

// -- states and shapes

#[tokio::test(start_paused = true)]
async fn a_batch_is_pending_then_runs_and_then_has_its_results() {
    let sim = sim([]);
    let made = send(&sim, creation(PRO, &inline(4))).await.unwrap().json();
    let name = made["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("batches/") && name.len() == "batches/".len() + 36, "{name}");
    let metadata = &made["metadata"];
    assert_eq!(metadata["state"], "BATCH_STATE_PENDING");
    assert_eq!(metadata["batchStats"], json!({ "requestCount": "4", "pendingRequestCount": "4" }));
    assert_eq!((&metadata["displayName"], &metadata["name"]), (&json!("cats"), &json!(name)));
    assert_eq!(metadata["model"], "models/gemini-3-pro-image");
    // `done` is absent until the end, as answered.
    assert_eq!(made.get("done"), None);

    tokio::time::sleep(MINUTE + 5 * MINUTE).await;
    let running = get(&sim, &name).await.json();
    assert_eq!(running["metadata"]["state"], "BATCH_STATE_RUNNING");
    let half = json!({
        "requestCount": "4", "successfulRequestCount": "2", "pendingRequestCount": "2"
    });
    assert_eq!(running["metadata"]["batchStats"], half);
    assert!(results(&running).is_empty() && running.get("response").is_none());

    tokio::time::sleep(5 * MINUTE).await;
    let done = get(&sim, &name).await.json();
    assert_eq!(
        (&done["metadata"]["state"], &done["done"]),
        (&json!("BATCH_STATE_SUCCEEDED"), &json!(true))
    );
    let all = json!({ "requestCount": "4", "successfulRequestCount": "4" });
    assert_eq!(done["metadata"]["batchStats"], all);
    assert_eq!(keys(results(&done)), ["k0", "k1", "k2", "k3"]);
    assert!(common::final_image(&results(&done)[0]["response"]).is_some());
    // The response of the operation has the results once more.
    assert_eq!(
        done["response"]["inlinedResponses"],
        done["metadata"]["output"]["inlinedResponses"]
    );
    let times = (&done["metadata"]["createTime"], &done["metadata"]["endTime"]);
    let expected = ("2026-10-01T20:00:00.000000000Z", "2026-10-01T20:11:00.000000000Z");
    assert_eq!(times, (&json!(expected.0), &json!(expected.1)));
}

#[tokio::test(start_paused = true)]
async fn a_file_of_requests_becomes_a_file_of_results_with_their_keys() {
    let sim = sim([]);
    let line = |key: &str, request: Value| json!({ "key": key, "request": request }).to_string();
    let lines = [
        line("a", prompt("a cat")),
        line("b", json!({ "contents": [] })),
        "not JSON".to_owned(),
        line("c", prompt("a dog")),
    ];
    let input = upload(&sim, &(lines.join("\n") + "\n")).await;
    let done = ended(&sim, &of_file(&input)).await;
    assert_eq!(done["metadata"]["inputConfig"], json!({ "fileName": input }));
    let output = done["metadata"]["output"]["responsesFile"].as_str().unwrap();
    assert_eq!(done["response"]["responsesFile"], output);
    assert!(output.starts_with("files/batch-"), "{output}");
    let stats = json!({
        "requestCount": "4", "successfulRequestCount": "2", "failedRequestCount": "2"
    });
    assert_eq!(done["metadata"]["batchStats"], stats);

    let file = get(&sim, &format!("{output}:download?alt=media")).await;
    let lines: Vec<Value> =
        file.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys: Vec<_> = lines.iter().map(|line| line["key"].as_str()).collect();
    assert_eq!(keys, [Some("a"), Some("b"), None, Some("c")]);
    for (index, line) in lines.iter().enumerate() {
        if [0, 3].contains(&index) {
            assert!(common::final_image(&line["response"]).is_some(), "{index}");
        } else {
            assert_eq!(
                (&line["error"]["code"], line.get("response")),
                (&json!(3), None),
                "{index}"
            );
        }
    }
    assert_eq!(get(&sim, output).await.json()["source"], "GENERATED");
}

#[tokio::test(start_paused = true)]
async fn an_uploaded_file_is_kept_for_two_days_and_cannot_be_downloaded() {
    let sim = sim([]);
    let name = upload(&sim, "{}\n{}\n").await;
    let file = get(&sim, &name).await.json();
    assert_eq!(
        (&file["displayName"], &file["mimeType"]),
        (&json!("lines"), &json!("application/jsonl"))
    );
    assert_eq!((&file["state"], &file["source"]), (&json!("ACTIVE"), &json!("UPLOADED")));
    assert_eq!(get(&sim, &format!("{name}:download?alt=media")).await.status, 400);
    assert_eq!(get(&sim, "files").await.json()["files"][0]["name"], name);
    tokio::time::sleep(48 * HOUR).await;
    let gone = get(&sim, &name).await;
    assert_eq!(gone.status, 403);
    assert!(gone.text().contains("or it may not exist."), "{}", gone.text());
    assert_eq!(send(&sim, creation(PRO, &of_file(&name))).await.unwrap().status, 403);
}

#[tokio::test(start_paused = true)]
async fn a_list_has_pages_newest_first_without_the_results() {
    let sim = sim([]);
    let mut names = Vec::new();
    for _ in 0..5 {
        names.push(create(&sim, &inline(1)).await);
    }
    tokio::time::sleep(HOUR).await;
    let deleted = send(&sim, request(Method::DELETE, &names[1])).await.unwrap();
    assert_eq!(deleted.json(), json!({}));
    assert_eq!(get(&sim, &names[1]).await.status, 404);

    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = get(&sim, &format!("batches?pageSize=3&pageToken={token}")).await.json();
        for operation in page["operations"].as_array().unwrap() {
            assert_eq!(operation["metadata"]["state"], "BATCH_STATE_SUCCEEDED");
            assert!(operation["metadata"].get("output").is_none());
            seen.push(operation["name"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["nextPageToken"].as_str() else { break };
        token = next.to_owned();
    }
    names.remove(1);
    names.reverse();
    assert_eq!(seen, names);

    let mut other = request(Method::GET, &names[0]);
    other.headers_mut().insert("x-goog-api-key", "key-2".parse().unwrap());
    assert_eq!(send(&sim, other).await.unwrap().status, 404);
}

// -- the bill

#[tokio::test(start_paused = true)]
async fn a_line_costs_half_of_what_its_request_costs_alone() {
    let sim = sim([]);
    create(&sim, &inline(3)).await;
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(sim.totals().cost_microusd, 0, "nothing is charged before the end");
    tokio::time::sleep(2 * MINUTE).await;
    let alone = alone().await;
    let lines = only(&sim).lines;
    assert_eq!(lines[0].cost_microusd, alone / 2);
    let record = sim.ledger().requests()[0].clone();
    assert_eq!((record.batch_lines, record.batch_lines_charged), (3, 3));
    assert_eq!(record.cost_microusd, lines.iter().map(|line| line.cost_microusd).sum::<u64>());
    // Polling costs nothing and starts nothing.
    get(&sim, "batches").await;
    assert!(sim.ledger().requests()[1].is_fetch && !sim.ledger().requests()[0].is_fetch);
}

#[tokio::test(start_paused = true)]
async fn drafts_are_on_the_bill_of_a_batch_where_they_are_on_that_of_a_request() {
    let mut costs = Vec::new();
    for drafts_charged in [false, true] {
        let shape = Shape::with_drafts(2);
        let images = ImageOptions { shape, drafts_charged, ..ImageOptions::tiny() };
        let sim = Sim::builder().latency(Latency::none()).images(images).build();
        create(&sim, &inline(1)).await;
        let body = prompt("cat 0").to_string();
        send(&sim, post(format!("{API}/models/{PRO}:generateContent"), body)).await.unwrap();
        tokio::time::sleep(HOUR).await;
        let ledger = sim.ledger();
        let [batch, alone] = ledger.requests() else { panic!("{ledger:?}") };
        assert_eq!(batch.cost_microusd, alone.cost_microusd / 2);
        assert_eq!(batch.text_tokens, alone.text_tokens, "thoughts are charged");
        costs.push(batch.cost_microusd);
    }
    assert!(costs[1] > costs[0] + 100_000, "{costs:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_deleted_goes_on_and_is_charged() {
    let sim = sim([]);
    let name = create(&sim, &inline(2)).await;
    tokio::time::sleep(2 * MINUTE).await;
    let deleted = send(&sim, request(Method::DELETE, &name)).await.unwrap();
    assert_eq!((deleted.status, get(&sim, &name).await.status), (200, 404));
    tokio::time::sleep(HOUR).await;
    assert_eq!(only(&sim).state, BatchState::Succeeded);
    assert_eq!(sim.ledger().requests()[0].batch_lines_charged, 2);
}

#[tokio::test(start_paused = true)]
async fn a_batch_cancelled_before_it_ran_costs_nothing() {
    let sim = sim([]);
    let name = create(&sim, &inline(4)).await;
    let cancel = || post(format!("{API}/{name}:cancel"), "");
    assert_eq!(send(&sim, cancel()).await.unwrap().json(), json!({}));
    tokio::time::sleep(HOUR).await;
    let operation = get(&sim, &name).await.json();
    assert_eq!(operation["metadata"]["state"], "BATCH_STATE_CANCELLED");
    assert_eq!((&operation["done"], &operation["error"]["code"]), (&json!(true), &json!(13)));
    assert_eq!(sim.totals().cost_microusd, 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_cancelled_while_it_ran_has_and_costs_what_was_done() {
    for fault in [BatchFault::None, BatchFault::CancelledWithResults] {
        let sim = sim([fault.clone()]);
        let name = create(&sim, &inline(4)).await;
        tokio::time::sleep(6 * MINUTE).await;
        send(&sim, post(format!("{API}/{name}:cancel"), "")).await.unwrap();
        tokio::time::sleep(HOUR).await;
        let operation = get(&sim, &name).await.json();
        let results = results(&operation);
        if fault == BatchFault::None {
            assert_eq!(operation["metadata"]["state"], "BATCH_STATE_SUCCEEDED");
            assert_eq!(results[2], json!({ "error": { "code": 1 }, "metadata": { "key": "k2" } }));
            assert_eq!(operation["metadata"]["batchStats"]["failedRequestCount"], "2");
        } else {
            assert_eq!(operation["metadata"]["state"], "BATCH_STATE_CANCELLED");
            assert_eq!(results.len(), 2);
        }
        assert!(results[..2].iter().all(|line| line.get("response").is_some()));
        assert_eq!(sim.ledger().requests()[0].batch_lines_charged, 2);
        // Again, after the end: nothing changes.
        send(&sim, post(format!("{API}/{name}:cancel"), "")).await.unwrap();
        assert_eq!(get(&sim, &name).await.json(), operation);
    }
}

// -- faults

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_done_in_48_hours_expires_without_results_or_charge() {
    for running in [false, true] {
        let sim = sim([BatchFault::Expired { running }]);
        let name = create(&sim, &inline(2)).await;
        tokio::time::sleep(47 * HOUR).await;
        let state = if running { "BATCH_STATE_RUNNING" } else { "BATCH_STATE_PENDING" };
        assert_eq!(get(&sim, &name).await.json()["metadata"]["state"], state);
        tokio::time::sleep(HOUR).await;
        let operation = get(&sim, &name).await.json();
        assert_eq!(operation["metadata"]["state"], "BATCH_STATE_EXPIRED");
        assert_eq!(operation["done"], true);
        assert!(
            operation["metadata"].get("output").is_none() && operation.get("response").is_none()
        );
        assert_eq!(sim.totals().cost_microusd, 0);
    }
    // One that would take longer than that expires too.
    let slow = Batches { running: 50 * HOUR, ..Batches::default() };
    let sim = Sim::builder().latency(Latency::none()).tiny_images(true).batches(slow).build();
    create(&sim, &inline(2)).await;
    tokio::time::sleep(60 * HOUR).await;
    assert_eq!((only(&sim).state, sim.totals().charged), (BatchState::Expired, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_batch_is_pending_for_ever_and_can_be_cancelled() {
    let sim = sim([BatchFault::Stuck]);
    let name = create(&sim, &inline(1)).await;
    tokio::time::sleep(1_000 * HOUR).await;
    assert_eq!(get(&sim, &name).await.json()["metadata"]["state"], "BATCH_STATE_PENDING");
    send(&sim, post(format!("{API}/{name}:cancel"), "")).await.unwrap();
    assert_eq!(only(&sim).state, BatchState::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_says_why_and_costs_nothing() {
    let sim = sim([BatchFault::Failed(Fault::ExhaustedBare)]);
    let operation = ended(&sim, &inline(2)).await;
    assert_eq!(operation["metadata"]["state"], "BATCH_STATE_FAILED");
    let error = json!({ "code": 8, "message": "Resource has been exhausted (e.g. check quota)." });
    assert_eq!((&operation["error"], &operation["done"]), (&error, &json!(true)));
    assert!(operation.get("response").is_none());
    assert_eq!(sim.totals().cost_microusd, 0);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_fails_is_free_and_says_its_status_and_a_refused_one_is_neither() {
    for (fault, code) in [
        (Fault::Internal, Some(13)),
        (Fault::HighDemand, Some(14)),
        (Fault::SharedCapacity, Some(8)),
        (Fault::BadRequest(BadRequest::Generic), Some(3)),
        (Fault::ResetAfterGeneration, Some(13)),
        (Fault::Refused(Refusal::ImageSafety), None),
        (Fault::NoImage, None),
    ] {
        let failed = BatchFault::LinesFailed { first: 1, count: 2, fault: fault.clone() };
        let sim = sim([failed]);
        let operation = ended(&sim, &inline(4)).await;
        let results = results(&operation);
        assert_eq!(keys(results), ["k0", "k1", "k2", "k3"]);
        let charged: Vec<_> = only(&sim).lines.iter().map(|line| line.charged).collect();
        match code {
            Some(code) => {
                assert_eq!(results[1]["error"]["code"], code, "{fault:?}");
                assert!(results[1].get("response").is_none() && results[2].get("error").is_some());
                assert_eq!(charged, [true, false, false, true], "{fault:?}");
                assert_eq!(operation["metadata"]["batchStats"]["failedRequestCount"], "2");
            }
            None => {
                let finish = &results[1]["response"]["candidates"][0]["finishReason"];
                assert!(finish != "STOP" && finish.is_string(), "{finish}");
                assert_eq!(charged, [true; 4], "{fault:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lines_may_be_missing_charged_or_not_or_twice_and_charged_once() {
    let range = |first, count, charged| BatchFault::LinesMissing { first, count, charged };
    let cases = [
        (range(1, 2, false), vec!["k0", "k3"], 2),
        (range(1, 2, true), vec!["k0", "k3"], 4),
        (BatchFault::LinesTwice { first: 3, count: 9 }, vec!["k0", "k1", "k2", "k3", "k3"], 4),
        (BatchFault::OutOfOrder, vec!["k3", "k2", "k1", "k0"], 4),
    ];
    for (fault, expected, charged) in cases {
        let sim = sim([fault.clone()]);
        let operation = ended(&sim, &inline(4)).await;
        assert_eq!(keys(results(&operation)), expected, "{fault:?}");
        assert_eq!(sim.ledger().requests()[0].batch_lines_charged, charged, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn results_that_are_too_large_to_be_inline_come_as_a_file() {
    let sim = sim([BatchFault::ResultsInFile]);
    let operation = ended(&sim, &inline(2)).await;
    assert!(results(&operation).is_empty());
    let output = operation["response"]["responsesFile"].as_str().unwrap();
    let file = get(&sim, &format!("{output}:download?alt=media")).await;
    let lines: Vec<Value> =
        file.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(keys(&lines), ["k0", "k1"]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_may_have_succeeded_before_its_results_are_there() {
    let sim = sim([BatchFault::ResultsLate { by: 5 * MINUTE }]);
    let operation = ended(&sim, &inline(1)).await;
    assert_eq!(operation["metadata"]["state"], "BATCH_STATE_SUCCEEDED");
    assert!(operation["metadata"].get("output").is_none() && operation.get("response").is_none());
    tokio::time::sleep(5 * MINUTE).await;
    let name = operation["name"].as_str().unwrap();
    assert_eq!(results(&get(&sim, name).await.json()).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_creation_is_not_answered_exists_and_is_charged() {
    let lost = [Fault::ResetAfterGeneration, Fault::CutHead { at: 17 }, Fault::CutBody { at: 30 }];
    for fault in lost {
        let sim = sim([]);
        sim.push_script([fault.clone()]);
        send(&sim, creation(PRO, &inline(2))).await.unwrap_err();
        let listed = get(&sim, "batches").await.json();
        assert_eq!(listed["operations"][0]["metadata"]["displayName"], "cats", "{fault:?}");
        tokio::time::sleep(HOUR).await;
        let totals = sim.totals();
        assert_eq!((totals.charged, totals.charged_but_undelivered), (1, 1), "{fault:?}");
    }
    for fault in [Fault::ResetAfterReceipt, Fault::ConnectionRefused, Fault::HighDemand] {
        let sim = sim([]);
        sim.push_script([fault.clone()]);
        let made = send(&sim, creation(PRO, &inline(2))).await;
        assert!(made.is_err() || made.unwrap().status == 503, "{fault:?}");
        assert!(sim.batches().is_empty(), "{fault:?}");
        assert!(get(&sim, "batches").await.json().get("operations").is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn the_bill_of_every_fault_is_that_of_the_lines_that_its_record_names() {
    for fault in BatchFault::all() {
        let sim = sim([fault.clone()]);
        let name = create(&sim, &inline(3)).await;
        tokio::time::sleep(49 * HOUR).await;
        let batch = only(&sim);
        assert_eq!(batch.fault, fault);
        let operation = get(&sim, &name).await.json();
        let has_ended = fault != BatchFault::Stuck;
        assert_eq!((batch.ended_at.is_some(), operation["done"] == true), (has_ended, has_ended));
        assert_eq!(operation["metadata"]["state"], batch.state.as_str(), "{fault:?}");
        let cost: u64 = batch.lines.iter().map(|line| line.cost_microusd).sum();
        assert_eq!(sim.totals().cost_microusd, cost, "{fault:?}");
        for line in &batch.lines {
            assert_eq!(line.charged, line.cost_microusd > 0, "{fault:?}");
            let lost = matches!(fault, BatchFault::LinesMissing { charged: true, .. });
            assert!(!line.charged || line.has_response, "{fault:?}");
            assert!(!line.charged || line.in_results > 0 || lost, "{fault:?}");
        }
        if fault != BatchFault::ResultsInFile {
            let times: usize = batch.lines.iter().map(|line| line.in_results).sum();
            assert_eq!(results(&operation).len(), times, "{fault:?}");
        }
    }
}

// -- what a server refuses

#[tokio::test(start_paused = true)]
async fn batches_have_limits_of_their_own_and_take_nothing_of_those_of_requests() {
    let limits = Batches { concurrent: 2, inline_bytes: 1_000, ..Batches::default() };
    let builder = Sim::builder().latency(Latency::none()).tiny_images(true).batches(limits);
    let sim = builder.quota(Quota { rpm: Some(1), ..Quota::UNLIMITED }).build();
    for status in [200, 200, 429] {
        let made = send(&sim, creation(FLASH31, &inline(1))).await.unwrap();
        assert_eq!(made.status, status);
    }
    tokio::time::sleep(HOUR).await;
    assert_eq!(send(&sim, creation(FLASH31, &inline(1))).await.unwrap().status, 200);
    let large = send(&sim, creation(FLASH31, &inline(20))).await.unwrap();
    assert_eq!(large.status, 400, "{}", large.text());
    assert_eq!(send(&sim, generate(FLASH31)).await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_checked_before_it_exists_and_its_lines_when_they_are_made() {
    let sim = sim([]);
    for (model, body, status) in [
        ("imagen-4.0-generate-001", inline(1), 404),
        ("gemini-2.5-flash-image-preview", inline(1), 404),
        ("no-such-model", inline(1), 404),
        (FLASH, json!({ "batch": {} }), 400),
        (FLASH, json!({ "batch": { "inputConfig": { "requests": { "requests": [] } } } }), 400),
        (FLASH, of_file("files/nowhere"), 403),
    ] {
        let made = send(&sim, creation(model, &body)).await.unwrap();
        assert_eq!(made.status, status, "{model}: {}", made.text());
    }
    let mut no_key = creation(FLASH, &inline(1));
    no_key.headers_mut().remove("x-goog-api-key");
    assert_eq!(send(&sim, no_key).await.unwrap().status, 400);
    assert!(sim.batches().is_empty());

    let config = json!({ "imageConfig": { "imageSize": "4k" } });
    let mut bad: Value = serde_json::from_str(CAT).unwrap();
    bad["generationConfig"] = config;
    let lines = json!([{ "request": bad }, { "metadata": { "key": "b", "n": -1.5 } }]);
    let body = json!({ "batch": { "input_config": { "requests": { "requests": lines } } } });
    let operation = ended(&sim, &body).await;
    let results = results(&operation);
    assert_eq!(
        (&results[0]["error"]["code"], &results[1]["error"]["code"]),
        (&json!(3), &json!(3))
    );
    assert!(results[0]["error"]["message"].as_str().unwrap().contains("image_size"));
    assert_eq!(results[1]["metadata"], json!({ "key": "b", "n": -1.5 }));
    assert_eq!(sim.totals().cost_microusd, 0);
}

// -- the OpenAI-compatible endpoint

/// A line of an input file in OpenAI's form.
fn openai_line(key: &str, model: &str) -> String {
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "cat 0" }] });
    let url = "/v1/chat/completions";
    json!({ "custom_id": key, "method": "POST", "url": url, "body": body }).to_string()
}

/// Makes a request as the openai client does, with its key as a token.
async fn openai(sim: &Sim, method: Method, path: &str, body: Option<Value>) -> Taken {
    let request = Request::builder().method(method).uri(format!("{API}/openai/{path}"));
    let body = body.map_or_else(String::new, |body| body.to_string());
    let request = request.header("authorization", "Bearer key-1").body(Full::from(body));
    send(sim, request.unwrap()).await.unwrap()
}

fn order(input: &str) -> Value {
    json!({
        "input_file_id": input,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": { "job": "cats" },
    })
}

/// Creates a batch of these lines.
async fn openai_batch(sim: &Sim, lines: &[String]) -> Value {
    let input = upload(sim, &lines.join("\n")).await;
    let made = openai(sim, Method::POST, "batches", Some(order(&input))).await;
    assert_eq!(made.status, 200, "{}", made.text());
    made.json()
}

async fn retrieved(sim: &Sim, made: &Value) -> Value {
    let path = format!("batches/{}", made["id"].as_str().unwrap().replace('/', "%2F"));
    openai(sim, Method::GET, &path, None).await.json()
}

async fn cancelled(sim: &Sim, made: &Value) -> Value {
    let path = format!("batches/{}/cancel", made["id"].as_str().unwrap());
    openai(sim, Method::POST, &path, None).await.json()
}

/// The lines of a file of results that a batch names.
async fn file_of(sim: &Sim, batch: &Value, name: &str) -> Vec<Value> {
    let Some(file) = batch[name].as_str() else { return Vec::new() };
    let file = get(sim, &format!("{file}:download?alt=media")).await;
    assert_eq!(file.status, 200, "{}", file.text());
    file.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_openai_batch_goes_through_its_states_and_answers_each_line_by_its_custom_id() {
    let sim = sim([]);
    let made = openai_batch(&sim, &["a", "b"].map(|key| openai_line(key, PRO))).await;
    let record = only(&sim);
    assert_eq!(made["id"], &*record.name);
    let same = ["object", "endpoint", "completion_window", "metadata"];
    let expected =
        [json!("batch"), json!("/v1/chat/completions"), json!("24h"), json!({ "job": "cats" })];
    assert_eq!(same.map(|name| made[name].clone()), expected);
    assert!(made["input_file_id"].as_str().unwrap().starts_with("files/"));
    let created = made["created_at"].as_u64().unwrap();
    let counts = |done: u64| json!({ "total": 2, "completed": done, "failed": 0 });

    for (at, status, done) in [(0, "validating", 0), (6, "in_progress", 1), (11, "completed", 2)] {
        tokio::time::sleep(at * MINUTE - sim.now()).await;
        let batch = retrieved(&sim, &made).await;
        assert_eq!((&batch["status"], &batch["request_counts"]), (&json!(status), &counts(done)));
        assert_eq!(batch["output_file_id"].is_string(), status == "completed");
        let began = (status != "validating").then_some(created + 60);
        assert_eq!(batch["in_progress_at"].as_u64(), began);
        let ended = (status == "completed").then_some(created + 660);
        assert_eq!((batch["completed_at"].as_u64(), batch.get("error_file_id")), (ended, None));
    }
    let batch = retrieved(&sim, &made).await;
    let lines = file_of(&sim, &batch, "output_file_id").await;
    assert_eq!(lines.len(), 2);
    for (line, key) in lines.iter().zip(["a", "b"]) {
        assert_eq!((&line["custom_id"], &line["error"]), (&json!(key), &Value::Null));
        assert_eq!(line["response"]["status_code"], 200);
        let body = &line["response"]["body"];
        assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!(PRO)));
        let image = &body["choices"][0]["message"]["images"][0]["image_url"]["url"];
        assert!(image.as_str().unwrap().starts_with("data:image/"), "{image}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_of_an_openai_batch_costs_half_and_a_failed_one_is_free_and_in_a_file_of_its_own() {
    let failed = BatchFault::LinesFailed { first: 1, count: 1, fault: Fault::HighDemand };
    let sim = sim([failed]);
    let lines = [
        openai_line("a", PRO),
        openai_line("b", PRO),
        openai_line("c", "no-such-model"),
        openai_line("d", "imagen-4.0-generate-001"),
        json!({ "custom_id": "e" }).to_string(),
        "not JSON".to_owned(),
        openai_line("f", &format!("models/{FLASH}")),
    ];
    let made = openai_batch(&sim, &lines).await;
    tokio::time::sleep(12 * MINUTE).await;
    let batch = retrieved(&sim, &made).await;
    assert_eq!(batch["request_counts"], json!({ "total": 7, "completed": 2, "failed": 5 }));
    let good = file_of(&sim, &batch, "output_file_id").await;
    let keys: Vec<_> = good.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
    assert_eq!(keys, ["a", "f"]);
    let bad = file_of(&sim, &batch, "error_file_id").await;
    let told = |line: &Value| {
        let code = &line["response"]["body"][0]["error"]["code"];
        assert_eq!(&line["response"]["status_code"], code);
        (line["custom_id"].as_str().unwrap_or_default().to_owned(), code.as_u64().unwrap())
    };
    let told: Vec<_> = bad.iter().map(told).collect();
    let expected = [("b", 503), ("c", 404), ("d", 404), ("e", 400), ("", 400)];
    assert_eq!(told, expected.map(|(key, code)| (key.to_owned(), code)));

    let record = only(&sim);
    let costs: Vec<_> = record.lines.iter().map(|line| line.cost_microusd).collect();
    assert_eq!((costs[0], &costs[1..6]), (alone().await / 2, &[0; 5][..]));
    assert_eq!(sim.totals().cost_microusd, costs.iter().sum::<u64>());
}

#[tokio::test(start_paused = true)]
async fn an_openai_batch_ends_as_its_faults_say_and_costs_what_they_say() {
    for fault in BatchFault::all() {
        let sim = sim([fault.clone()]);
        let lines = ["a", "b", "c"].map(|key| openai_line(key, PRO));
        let made = openai_batch(&sim, &lines).await;
        tokio::time::sleep(47 * HOUR).await;
        let early = retrieved(&sim, &made).await;
        let outputs = file_of(&sim, &early, "output_file_id").await.len();
        let errors = file_of(&sim, &early, "error_file_id").await.len();
        let record = only(&sim);
        let times: usize = record.lines.iter().map(|line| line.in_results).sum();
        assert_eq!(outputs + errors, times, "{fault:?}");
        tokio::time::sleep(2 * HOUR).await;
        let batch = retrieved(&sim, &made).await;
        let status = match fault {
            BatchFault::Stuck => "validating",
            BatchFault::Expired { .. } => "expired",
            BatchFault::Failed(_) => "failed",
            _ => "completed",
        };
        assert_eq!(batch["status"], status, "{fault:?}");
        assert_eq!(batch["errors"]["data"][0]["message"].is_string(), status == "failed");
        let cost: u64 = only(&sim).lines.iter().map(|line| line.cost_microusd).sum();
        assert_eq!(sim.totals().cost_microusd, cost, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_openai_batch_that_is_cancelled_costs_what_was_done() {
    let sim = sim([BatchFault::None, BatchFault::None, BatchFault::CancelledWithResults]);
    let lines = ["a", "b"].map(|key| openai_line(key, PRO));
    let early = openai_batch(&sim, &lines).await;
    assert_eq!(cancelled(&sim, &early).await["status"], "cancelled");
    assert_eq!(retrieved(&sim, &early).await.get("output_file_id"), None);

    for status in ["completed", "cancelled"] {
        let made = openai_batch(&sim, &lines).await;
        tokio::time::sleep(6 * MINUTE).await;
        let batch = cancelled(&sim, &made).await;
        assert_eq!(batch["status"], status);
        assert_eq!(batch, retrieved(&sim, &made).await);
        assert_eq!(file_of(&sim, &batch, "output_file_id").await.len(), 1);
        let errors = file_of(&sim, &batch, "error_file_id").await;
        assert_eq!(errors.len(), usize::from(status == "completed"));
        for line in errors {
            assert_eq!((&line["custom_id"], &line["response"]), (&json!("b"), &Value::Null));
            assert_eq!(line["error"]["code"], "batch_cancelled");
        }
    }
    assert_eq!(sim.totals().cost_microusd, 2 * (alone().await / 2));
}

#[tokio::test(start_paused = true)]
async fn the_openai_list_has_pages_of_its_own_batches_and_googles_has_all() {
    let sim = sim([]);
    let native = create(&sim, &inline(1)).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let made = openai_batch(&sim, &[openai_line("a", PRO)]).await;
        ids.insert(0, made["id"].as_str().unwrap().to_owned());
    }
    let page = openai(&sim, Method::GET, "batches?limit=2", None).await.json();
    let id = |index: usize| json!(ids[index]);
    assert_eq!((&page["data"][0]["id"], &page["data"][1]["id"]), (&id(0), &id(1)));
    assert_eq!((&page["last_id"], &page["has_more"]), (&id(1), &json!(true)));
    let after = format!("batches?limit=2&after={}", ids[1].replace('/', "%2F"));
    let page = openai(&sim, Method::GET, &after, None).await.json();
    assert_eq!((&page["data"][0]["id"], &page["data"].get(1)), (&id(2), &None));
    assert_eq!((&page["object"], &page["has_more"]), (&json!("list"), &json!(false)));

    let all = get(&sim, "batches").await.json();
    assert_eq!(all["operations"].as_array().unwrap().len(), 4);
    assert_eq!(get(&sim, &ids[0]).await.json()["metadata"]["state"], "BATCH_STATE_PENDING");
    assert_eq!(openai(&sim, Method::GET, &native, None).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn an_openai_batch_of_what_is_not_served_is_refused_as_an_array_and_does_not_exist() {
    let sim = sim([]);
    let input = upload(&sim, &openai_line("a", PRO)).await;
    for (name, value, status) in [
        ("endpoint", "/v1/embeddings", 400),
        ("completion_window", "1h", 400),
        ("input_file_id", "files/nowhere", 403),
    ] {
        let mut body = order(&input);
        body[name] = json!(value);
        let made = openai(&sim, Method::POST, "batches", Some(body)).await;
        assert_eq!((made.status, &made.json()[0]["error"]["code"]), (status, &json!(status)));
    }
    assert_eq!(openai(&sim, Method::POST, "files", None).await.status, 404);
    let content = format!("{input}/content");
    assert_eq!(openai(&sim, Method::GET, &content, None).await.status, 404);
    assert!(sim.batches().is_empty());
}

// -- webhooks

async fn listen(sim: &Sim, events: &[&str]) -> Value {
    let body = json!({ "name": "jobs", "uri": "http://listener.example/hook", "subscribed_events": events });
    let made = send(sim, post(format!("{API}/webhooks"), body.to_string())).await.unwrap();
    assert_eq!(made.status, 200, "{}", made.text());
    made.json()
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_batch_is_told_to_those_who_listen_for_it() {
    for (fault, event, error) in [
        (BatchFault::None, "batch.succeeded", None),
        (BatchFault::Failed(Fault::Internal), "batch.failed", Some(13)),
        (BatchFault::Expired { running: true }, "batch.expired", None),
    ] {
        let sim = sim([fault]);
        listen(&sim, &[event]).await;
        listen(&sim, &["interaction.completed"]).await;
        let name = create(&sim, &inline(1)).await;
        tokio::time::sleep(10 * MINUTE).await;
        assert!(sim.take_webhooks().is_empty());
        tokio::time::sleep(48 * HOUR).await;
        let sent = sim.take_webhooks();
        assert_eq!((sent.len(), sim.take_webhooks().len()), (1, 0), "{event}");
        let body: Value = serde_json::from_slice(sent[0].body()).unwrap();
        assert_eq!((&body["type"], &body["version"]), (&json!(event), &json!("v1")));
        assert_eq!(body["data"]["id"], name);
        assert_eq!(body["data"]["error_code"].as_u64(), error);
        assert_eq!(sent[0].uri(), "http://listener.example/hook");
        assert!(sent[0].headers()["webhook-signature"].to_str().unwrap().starts_with("v1,"));
        // Sent 48 hours and ten minutes after 2026-10-01 20:00 UTC.
        let at = 1_790_812_800 + (20 + 48) * 3600 + 600;
        assert_eq!(sent[0].headers()["webhook-timestamp"], at.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_webhook_is_sent_as_often_as_its_fault_says_under_one_id() {
    for times in [0, 2] {
        let sim = sim([BatchFault::Webhooks { times }]);
        listen(&sim, &["batch.succeeded"]).await;
        let input =
            upload(&sim, &json!({ "key": "a", "request": prompt("a cat") }).to_string()).await;
        let operation = ended(&sim, &of_file(&input)).await;
        let sent = sim.take_webhooks();
        assert_eq!(sent.len(), times);
        for webhook in &sent {
            assert_eq!(webhook.headers()["webhook-id"], sent[0].headers()["webhook-id"]);
            let body: Value = serde_json::from_slice(webhook.body()).unwrap();
            assert_eq!(body["data"]["output_file_uri"], operation["response"]["responsesFile"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_secret_of_a_webhook_is_shown_once_and_a_batch_with_its_own_tells_nobody_else() {
    let sim = sim([]);
    let made = listen(&sim, &["batch.succeeded", "batch.failed"]).await;
    assert!(made["new_signing_secret"].as_str().unwrap().starts_with("whsec_"));
    let path = format!("webhooks/{}", made["id"].as_str().unwrap());
    let shown = get(&sim, &path).await.json();
    assert_eq!((&shown["state"], shown.get("new_signing_secret")), (&json!("enabled"), None));
    assert_eq!(get(&sim, "webhooks").await.json()["webhooks"], json!([shown]));

    let mut body = inline(1);
    body["batch"]["webhookConfig"] = json!({ "uris": ["https://own.example/hook"] });
    ended(&sim, &body).await;
    assert!(sim.take_webhooks().is_empty());
    assert_eq!(send(&sim, request(Method::DELETE, &path)).await.unwrap().json(), json!({}));
    ended(&sim, &inline(1)).await;
    assert!(sim.take_webhooks().is_empty());
    assert_eq!(get(&sim, &path).await.status, 404);
}
