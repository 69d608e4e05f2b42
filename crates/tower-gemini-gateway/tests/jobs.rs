//! The program's jobs, killed with SIGKILL at random moments: every item is delivered once and paid
//! once, or is *unknown*, and the manifest agrees with the simulator's ledger.
//!
//! `JOBS_KILLS=1000 cargo test -p tower-gemini-gateway --test jobs` kills that often; the default
//! is what a test run has time for.

#![cfg(all(unix, feature = "jobs"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{Gateway, Scratch, until};
use serde_json::{Value, json};
use tower_gemini_jobs::JobStore;
use tower_gemini_sim::{Latency, Sim, serve};

/// Runs a command of the program with this configuration.
fn jobs(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemini-gateway"));
    command.arg("--config").arg(dir.join("gateway.toml")).arg("jobs").args(arguments);
    command.env("JOBS_KEY", "any-key").stdin(Stdio::null()).current_dir(dir);
    command
}

async fn output(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = jobs(dir, arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn text(dir: &Path, arguments: &[&str]) -> String {
    let output = output(dir, arguments).await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

async fn shown(dir: &Path, job: &str) -> Value {
    serde_json::from_str(&text(dir, &["show", job, "--json"]).await).unwrap()
}

fn configure(dir: &Scratch, upstream: &str) {
    let config = format!(
        "[server]\nstate_dir = {:?}\n[jobs]\napi_key_env = \"JOBS_KEY\"\n[[upstream]]\n\
         name = \"sim\"\nkind = \"gemini\"\nbase_url = \"{upstream}\"\n[log]\nlevel = \"warn\"\n",
        dir.0.join("state"),
    );
    std::fs::write(dir.0.join("gateway.toml"), config).unwrap();
}

fn write_items(dir: &Path, count: usize) {
    let lines: String =
        (0..count).map(|number| format!("{{\"prompt\": \"apple {number}\"}}\n")).collect();
    std::fs::write(dir.join("apples.jsonl"), lines).unwrap();
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_at_random_moments_delivers_and_pays_each_item_once() {
    let kills: u32 = std::env::var("JOBS_KILLS").map_or(25, |text| text.parse().unwrap());
    let (mut killed, mut done, mut unknown) = (0, 0, 0);
    while killed < kills {
        let dir = Scratch::new("jobs-kills");
        let latency = Latency::fixed(Duration::from_millis(40));
        let sim = Sim::builder().latency(latency).tiny_images(true).build();
        let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        configure(&dir, &upstream.url());
        write_items(&dir.0, 200);
        text(&dir.0, &["submit", "apples.jsonl", "--max-concurrent", "4"]).await;
        for _ in 0..kills - killed {
            let mut worker =
                jobs(&dir.0, &["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let life = Duration::from_millis(fastrand_u64(60..700));
            tokio::time::sleep(life).await;
            if worker.try_wait().unwrap().is_some() {
                break; // all done
            }
            worker.kill().unwrap();
            worker.wait().unwrap();
            killed += 1;
        }
        text(&dir.0, &["run"]).await;
        let job = shown(&dir.0, "apples").await;
        let counts = &job["counts"];
        assert_eq!(job["state"], "finished", "{counts}");
        let (of_job, lost) = (number(&counts["done"]), number(&counts["unknown"]));
        assert_eq!(of_job + lost, 200, "nothing fails: {counts}");
        let totals = sim.totals();
        let charged = totals.charged as u64;
        assert!(charged >= of_job && charged <= of_job + lost, "{charged} charged: {counts}");
        // The ledger lies in what the job says that it spent.
        let spent = &job["spent"];
        let (least, most) =
            (number(&spent["at_least_microusd"]), number(&spent["at_most_microusd"]));
        assert!((least..=most).contains(&totals.cost_microusd), "{spent} {}", totals.cost_microusd);
        assert_eq!(number(&job["reserved_microusd"]), 0);
        // Every image is there, whole, and no two are of one response.
        text(&dir.0, &["fetch", "--out", "out"]).await;
        let manifest = std::fs::read_to_string(dir.0.join("out/manifest.jsonl")).unwrap();
        let mut responses = HashSet::new();
        for line in manifest.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let image = &record["images"][0];
            let file = dir.0.join("out").join(image["file"].as_str().unwrap());
            assert_eq!(std::fs::metadata(file).unwrap().len(), number(&image["bytes"]));
            let response = record["response_id"].to_string();
            assert!(responses.insert(response), "one response for two items: {line}");
        }
        assert_eq!(responses.len() as u64, of_job);
        (done, unknown) = (done + of_job, unknown + lost);
    }
    eprintln!("{killed} kills: {done} delivered and paid once, {unknown} unknown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_workers_on_a_postgres_is_killed_and_the_others_pay_for_nothing_twice() {
    let Some(postgres) = test_programs::postgres::start() else { return };
    let dir = Scratch::new("jobs-postgres");
    let latency = Latency::fixed(Duration::from_millis(150));
    let sim = Sim::builder().latency(latency).tiny_images(true).build();
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = postgres.url();
    let config = format!(
        "[server]\nstore = \"{url}\"\n[jobs]\nstore = \"{url}\"\ndir = {:?}\nlease = \"2s\"\n\
         api_key_env = \"JOBS_KEY\"\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\n\
         base_url = \"{}\"\n[log]\nlevel = \"warn\"\n",
        dir.0.join("images"),
        upstream.url(),
    );
    std::fs::write(dir.0.join("gateway.toml"), config).unwrap();
    write_items(&dir.0, 200);
    text(&dir.0, &["submit", "apples.jsonl", "--max-concurrent", "6"]).await;
    let log =
        || std::fs::File::options().create(true).append(true).open(dir.0.join("log")).unwrap();
    let start = || jobs(&dir.0, &["run"]).stdout(Stdio::null()).stderr(log()).spawn().unwrap();
    let mut workers = [start(), start(), start()];
    let kills: u64 =
        std::env::var("JOBS_KILLS").map_or(4, |text| text.parse::<u64>().unwrap() / 50);
    for kill in 0..kills {
        tokio::time::sleep(Duration::from_millis(fastrand_u64(400..1_500))).await;
        let killed = &mut workers[usize::try_from(kill % 3).unwrap()];
        if killed.try_wait().unwrap().is_some() {
            break; // all done
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
        *killed = start();
    }
    let succeeded = tokio::task::spawn_blocking(move || {
        workers.iter_mut().all(|worker| worker.wait().unwrap().success())
    });
    let succeeded = succeeded.await.unwrap();
    let log = std::fs::read_to_string(dir.0.join("log")).unwrap();
    assert!(succeeded, "{log}");
    let job = shown(&dir.0, "apples").await;
    let counts = &job["counts"];
    let (done, unknown) = (number(&counts["done"]), number(&counts["unknown"]));
    assert_eq!((job["state"].as_str(), done + unknown), (Some("finished"), 200), "{counts}");
    let totals = sim.totals();
    assert!((done..=done + unknown).contains(&(totals.charged as u64)), "{counts} {totals:?}");
    let spent = &job["spent"];
    let (least, most) = (number(&spent["at_least_microusd"]), number(&spent["at_most_microusd"]));
    assert!((least..=most).contains(&totals.cost_microusd), "{spent} {totals:?}");
    eprintln!("three workers on Postgres: {done} delivered and paid once, {unknown} unknown");
}

/// One request without a client, and the response.
async fn exchange(addr: &str, request: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-goog-api-key: any-key\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A simulator whose batches begin at once and run so long.
fn with_short_batches(running_ms: u64) -> tower_gemini_sim::Builder {
    let mut batches = tower_gemini_sim::Batches::default();
    (batches.pending, batches.running) = (Duration::ZERO, Duration::from_millis(running_ms));
    Sim::builder().latency(Latency::none()).tiny_images(true).batches(batches)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_webhook_of_a_batch_is_taken_and_any_other_is_refused_and_audited() {
    let dir = Scratch::new("jobs-webhook");
    let now =
        Duration::try_from(jiff::Timestamp::now().duration_since(jiff::Timestamp::UNIX_EPOCH));
    let sim = with_short_batches(300).epoch(now.unwrap()).build();
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hook = json!({
        "name": "jobs", "uri": format!("http://127.0.0.1:{port}/jobs/batch-ended"),
        "subscribed_events": ["batch.succeeded"],
    });
    let made = post("/v1beta/webhooks", &hook.to_string());
    let made = exchange(&upstream.addr().to_string(), &made).await;
    let body = made.find('{').zip(made.rfind('}')).map(|(begin, end)| &made[begin..=end]);
    let made: Value = serde_json::from_str(body.unwrap_or(&made)).unwrap();
    let secret = made["new_signing_secret"].as_str().unwrap_or_else(|| panic!("{made}"));
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\nstate_dir = {:?}\n[jobs]\n\
         api_key_env = \"JOBS_KEY\"\nbatch_webhook_secret_env = \"HOOK_SECRET\"\n[log]\n\
         audit = {:?}\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\n",
        dir.0.join("state"),
        dir.0.join("audit.jsonl"),
        upstream.url(),
    );
    let variables = [("JOBS_KEY", "any-key"), ("HOOK_SECRET", secret)];
    let gateway = Gateway::start_with(&dir, &config, &variables);
    let refused = exchange(&gateway.addr, &post("/jobs/batch-ended", "{}")).await;
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    write_items(&dir.0, 3);
    text(&dir.0, &["submit", "apples.jsonl", "--lanes", "batch"]).await;
    let audited = || std::fs::read_to_string(dir.0.join("audit.jsonl")).unwrap_or_default();
    let has = |status: u64| {
        audited().lines().any(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["path"] == "/jobs/batch-ended" && line["status"] == status
        })
    };
    until(async || has(204)).await;
    assert!(has(401), "{}", audited());
    until(async || shown(&dir.0, "apples").await["state"] == "finished").await;
    assert_eq!(sim.batches().len(), 1);
}

// Making tables that were there took locks that workers wait for, and waited for workers.
#[tokio::test]
async fn opening_a_store_waits_for_no_worker() {
    let Some(postgres) = test_programs::postgres::start() else { return };
    let postgres = std::sync::Arc::new(postgres);
    let store = JobStore::open(&postgres.url()).await.unwrap();
    let held = std::sync::Arc::clone(&postgres);
    let writer = std::thread::spawn(move || {
        // As whoever is in the middle of an update has it.
        held.run("BEGIN; LOCK TABLE jobs, items IN ROW EXCLUSIVE MODE; SELECT pg_sleep(600)")
    });
    let locks = "SELECT count(*) FROM pg_locks WHERE mode = 'RowExclusiveLock' AND \
                 relation = 'items'::regclass";
    until(async || postgres.run(locks) == "1").await;
    let url = postgres.url();
    let opened = tokio::time::timeout(Duration::from_secs(30), JobStore::open(&url)).await;
    opened.expect("it waits for the writer").unwrap();
    assert!(!writer.is_finished());
    let _ = postgres.run(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE \
                          relation = 'items'::regclass AND mode = 'RowExclusiveLock'",
    );
    assert!(writer.join().is_err(), "it was ended");
    store.close().await;
}

/// A random number without a crate for it: the address of nothing in particular and the time.
fn fastrand_u64(range: std::ops::Range<u64>) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    range.start + random % (range.end - range.start)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_lines_are_refused_together_and_left_out_on_demand() {
    let dir = Scratch::new("jobs-lines");
    let sim = Sim::quick([]);
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    configure(&dir, &upstream.url());
    let lines = "{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"size\":\"9K\"}\n{\"promt\":\"c\"}\n";
    std::fs::write(dir.0.join("mixed.jsonl"), lines).unwrap();

    let refused = output(&dir.0, &["submit", "mixed.jsonl"]).await;
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2));
    for says in [
        "mixed.jsonl: line 2: `9K` is no size",
        "line 3: unknown field `promt`",
        "--skip-bad-lines",
    ] {
        assert!(errors.contains(says), "{errors}");
    }
    assert!(text(&dir.0, &["list"]).await.contains("There are no jobs"));

    let said = text(&dir.0, &["submit", "mixed.jsonl", "--skip-bad-lines", "--run"]).await;
    assert!(said.contains("1 items") && said.contains("1 of 1, 1 done"), "{said}");
    assert_eq!(sim.totals().charged, 1);
    let csv = text(&dir.0, &["export", "--format", "csv"]).await;
    assert!(csv.lines().nth(1).unwrap().starts_with("1,00001."), "{csv}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_sends_nothing_and_needs_no_place() {
    let dir = Scratch::new("jobs-plan");
    std::fs::write(dir.0.join("gateway.toml"), "[quota]\ntier = \"tier1\"\n").unwrap();
    std::fs::write(
        dir.0.join("shots.csv"),
        "prompt,size,deadline\na chair,4K,\na table,1K,48h\n\"a lamp, lit\",,10m\n",
    )
    .unwrap();
    let said =
        text(&dir.0, &["plan", "shots.csv", "--lanes", "standard,flex,batch", "--json"]).await;
    let plan: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(number(&plan["items"]), 3);
    assert_eq!(plan["lanes"], serde_json::json!({"standard": 1, "batch": 2}));
    assert!(plan["at_least_usd"].as_f64().unwrap() > 0.1, "{plan}");
    let refused = output(&dir.0, &["submit", "shots.csv"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("set server.state_dir"));
}

/// The files of `examples/jobs`, in a directory of their own.
fn examples(dir: &Scratch) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/jobs");
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.0.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_draw_product_shots_in_four_sizes_and_an_edit_chain() {
    let dir = Scratch::new("jobs-examples");
    let sim = Sim::quick([]);
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    configure(&dir, &upstream.url());
    examples(&dir);
    text(&dir.0, &["submit", "product-shots.csv", "--run"]).await;
    text(&dir.0, &["fetch", "product-shots", "--out", "shots"]).await;
    for name in ["chair", "lamp", "vase"] {
        assert_eq!(std::fs::read_dir(dir.0.join("shots").join(name)).unwrap().count(), 4);
    }
    text(&dir.0, &["submit", "edit-chain.jsonl", "--run"]).await;
    let job = shown(&dir.0, "edit-chain").await;
    assert_eq!(number(&job["counts"]["done"]), 4, "{job}");
    // What an item drew is in the request of the item that waits for it.
    assert_eq!(sim.totals().charged, 12 + 4);

    text(&dir.0, &["delete", "product-shots"]).await;
    write_items(&dir.0, 1);
    text(&dir.0, &["submit", "apples.jsonl"]).await;
    let refused = output(&dir.0, &["delete", "apples"]).await;
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && errors.contains("has not ended"), "{errors}");
    let left = text(&dir.0, &["list"]).await;
    assert!(!left.contains("product-shots") && left.contains("edit-chain"), "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nightly_run_of_the_examples_takes_half_price_lanes() {
    let dir = Scratch::new("jobs-nightly");
    let sim = with_short_batches(100).build();
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    configure(&dir, &upstream.url());
    examples(&dir);
    write_items(&dir.0, 3);
    let mut command = Command::new("sh");
    command.arg(dir.0.join("nightly.sh")).arg(dir.0.join("apples.jsonl"));
    command.env("GEMINI_GATEWAY", env!("CARGO_BIN_EXE_gemini-gateway"));
    command.env("GEMINI_GATEWAY_CONFIG", dir.0.join("gateway.toml")).env("JOBS_KEY", "any-key");
    command.stdin(Stdio::null()).current_dir(&dir.0);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    assert_eq!((sim.batches().len(), sim.totals().generated), (1, 1), "one batch of three");
    assert_eq!(std::fs::read_dir(dir.0.join("images")).unwrap().count(), 4);
}
