//! Jobs over HTTP through the router, with the simulator as Google.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::routing::post;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use tower_gemini_sim::{Fault, ServeHandle, Sim, serve};

use crate::Gateway;
use crate::config::Config;
use crate::door::hashed;

const ANN: &str = "a-token-of-ann-0123456789";
const BOB: &str = "a-token-of-bob-0123456789";

/// A gateway that works on jobs when it is told to, over a simulator.
struct World {
    dir: PathBuf,
    toml: String,
    sim: Sim,
    gateway: Gateway,
    _upstream: ServeHandle,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, String::from_utf8_lossy(&self.body))
    }
}

async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

impl World {
    async fn new(faults: impl IntoIterator<Item = Fault>, of_jobs: &str) -> Self {
        Self::with_tokens(faults, of_jobs, &format!("ann:{ANN}\nbob:{BOB}\n")).await
    }

    async fn with_tokens(
        faults: impl IntoIterator<Item = Fault>,
        of_jobs: &str,
        tokens: &str,
    ) -> Self {
        static DIRS: AtomicUsize = AtomicUsize::new(0);
        let number = DIRS.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("http-jobs-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let sim = Sim::quick(faults);
        let upstream = serve(sim.clone(), ([127, 0, 0, 1], 0).into()).await.unwrap();
        let at = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).unwrap();
            dir.join(name).display().to_string()
        };
        let toml = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nstate_dir = \"{}\"\n\
             [auth]\nmode = \"tokens\"\ntokens_file = \"{}\"\n[log]\naudit = \"{}\"\n\
             [[upstream]]\nname = \"sim\"\nkind = \"relay\"\nbase_url = \"{}\"\n\
             api_key_file = \"{}\"\n[jobs]\nrun = false\n{of_jobs}",
            dir.join("state").display(),
            at("tokens", tokens),
            dir.join("audit").display(),
            upstream.url(),
            at("key", "the-key-of-the-gateway\n"),
        );
        let gateway = open(&toml).await;
        Self { dir, toml, sim, gateway, _upstream: upstream }
    }

    async fn ask(&self, request: http::request::Builder, body: impl Into<Body>) -> Answer {
        let request = request.body(body.into()).unwrap();
        read(self.gateway.router().oneshot(request).await.unwrap()).await
    }

    async fn get(&self, token: &str, path: &str) -> Answer {
        self.ask(Request::get(path).header("x-goog-api-key", token), Body::empty()).await
    }

    async fn post(&self, token: &str, path: &str, body: &Value) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        self.ask(request.header("x-goog-api-key", token), body.to_string()).await
    }

    /// Submits prompts, and gives the job's id.
    async fn submit(&self, token: &str, options: Value, prompts: &[&str]) -> String {
        let items: Vec<_> = prompts.iter().map(|prompt| json!({ "prompt": prompt })).collect();
        let answer =
            self.post(token, "/jobs", &json!({ "options": options, "items": items })).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["job"]["id"].as_str().unwrap().to_owned()
    }

    async fn run(&self) {
        let jobs = self.gateway.jobs().unwrap().clone();
        let run = tokio::time::timeout(std::time::Duration::from_secs(60), jobs.run_until_idle());
        run.await.unwrap().unwrap();
    }

    /// Another process over the same state.
    async fn restart(&mut self) {
        assert!(self.gateway.finish(std::time::Duration::from_secs(5)).await);
        self.gateway = open(&self.toml).await;
    }
}

async fn open(toml: &str) -> Gateway {
    let config = Config::parse(toml, "gateway.toml").unwrap_or_else(|error| panic!("{error}"));
    Gateway::new(&config).await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn a_job_of_one_token_does_not_exist_for_another() {
    let world = World::new([], "").await;
    let id = world.submit(ANN, json!({}), &["a red apple"]).await;
    world.run().await;
    let nowhere = "0123456789abcdef";
    for path in ["", "/items", "/items/1/image", "/items/1/image/1", "/manifest"] {
        let own = world.get(ANN, &format!("/jobs/{id}{path}")).await;
        assert_eq!(own.status, 200, "{path} {own:?}");
        let others = world.get(BOB, &format!("/jobs/{id}{path}")).await;
        let none = world.get(BOB, &format!("/jobs/{nowhere}{path}")).await;
        assert_eq!(others.status, 404, "{path}");
        assert_eq!((others.status, &others.body), (none.status, &none.body), "{path}");
    }
    for verb in ["pause", "resume", "cancel", "retry"] {
        let answer = world.post(BOB, &format!("/jobs/{id}/{verb}"), &json!({})).await;
        assert_eq!(answer.status, 404, "{verb}");
    }
    let delete = async |token: &str| {
        let delete = Request::delete(format!("/jobs/{id}")).header("x-goog-api-key", token);
        world.ask(delete, Body::empty()).await
    };
    assert_eq!(delete(BOB).await.status, 404);
    let list = |answer: Answer| answer.json()["jobs"].as_array().unwrap().len();
    assert_eq!(list(world.get(ANN, "/jobs").await), 1);
    assert_eq!(list(world.get(BOB, "/jobs").await), 0);
    let nobody = world.ask(Request::get("/jobs"), Body::empty()).await;
    assert_eq!(nobody.status, 401, "{nobody:?}");
    assert_eq!(delete(ANN).await.status, 204);
    assert_eq!(world.get(ANN, &format!("/jobs/{id}")).await.status, 404);
}

#[tokio::test]
async fn a_job_that_has_not_ended_is_not_deleted() {
    let world = World::new([], "").await;
    let id = world.submit(ANN, json!({}), &["a red apple"]).await;
    let delete = Request::delete(format!("/jobs/{id}")).header("x-goog-api-key", ANN);
    let answer = world.ask(delete, Body::empty()).await;
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.message().contains("Cancel it first"), "{answer:?}");
    world.run().await;
    assert_eq!(world.get(ANN, &format!("/jobs/{id}/items/1/image")).await.status, 200);
}

#[tokio::test]
async fn an_image_is_the_one_that_was_drawn_and_the_manifest_names_it() {
    use sha2::Digest as _;
    let world = World::new([], "").await;
    let id = world.submit(ANN, json!({ "name": "fruit" }), &["a red apple", "a green pear"]).await;
    world.run().await;
    let drawn = world.get(ANN, &format!("/jobs/{id}/items/1/image")).await;
    let kind = drawn.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("image/"), "{kind}");
    // What the simulator draws for the same request, by a call of one's own.
    let body = r#"{"contents":[{"role":"user","parts":[{"text":"a red apple"}]}],"generationConfig":{"responseModalities":["IMAGE"]}}"#;
    let config = Config::parse(&world.toml, "gateway.toml").unwrap();
    let planner = super::planner(&config, tower_gemini_jobs::JobOptions::default()).unwrap();
    let model = planner.item(tower_gemini_jobs::Item::new("a")).unwrap().model;
    let call = Request::post(format!("/v1beta/models/{model}:generateContent"))
        .header("x-goog-api-key", ANN)
        .header("content-type", "application/json");
    let answer = world.ask(call, body).await;
    let image = tower_gemini::FinalImage::from_json(&answer.body).unwrap();
    assert_eq!(drawn.body, image.bytes);
    let manifest = world.get(ANN, &format!("/jobs/{id}/manifest")).await;
    let text = String::from_utf8(manifest.body.to_vec()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum: String =
        sha2::Sha256::digest(&drawn.body).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!((lines.len(), lines[0]["images"][0]["sha256"].as_str()), (2, Some(&*sum)));
    assert!(!text.contains("trail"), "the steps of calls concern no caller");
    let csv = world.get(ANN, &format!("/jobs/{id}/manifest?format=csv")).await;
    assert_eq!(String::from_utf8_lossy(&csv.body).lines().count(), 3);
    let further = world.get(ANN, &format!("/jobs/{id}/items/1/image/2")).await;
    assert_eq!(further.status, 404, "there is one image");
    let items = world.get(ANN, &format!("/jobs/{id}/items?state=done&limit=1")).await.json();
    assert_eq!(
        (items["items"][0]["number"].as_i64(), items["next_after"].as_i64()),
        (Some(1), Some(1))
    );
    let rest = world.get(ANN, &format!("/jobs/{id}/items?state=done&after=1&limit=2")).await.json();
    assert_eq!((rest["items"][0]["number"].as_i64(), &rest["next_after"]), (Some(2), &Value::Null));
}

#[tokio::test]
async fn bad_items_are_refused_together_with_their_numbers_or_left_out() {
    let world = World::new([], "").await;
    let items = json!({ "items": [
        { "prompt": "a" }, { "prompt": " " }, { "prompt": "b", "sise": "1K" },
        { "prompt": "c", "inputs": ["/etc/passwd"] }, { "prompt": "d", "output": "../x" }, 7,
    ]});
    let refused = world.post(ANN, "/jobs", &items).await;
    assert_eq!(refused.status, 400);
    let bad = &refused.json()["error"]["bad"];
    let numbers: Vec<_> = bad.as_array().unwrap().iter().map(|one| &one["number"]).collect();
    assert_eq!(numbers, [2, 3, 4, 5, 6]);
    assert!(bad[2]["what"].as_str().unwrap().contains("a file of the gateway's machine"));
    assert_eq!(world.get(ANN, "/jobs").await.json()["jobs"], json!([]), "nothing is queued");

    let taken = world.post(ANN, "/jobs?skip_bad=1", &items).await;
    assert_eq!(
        (taken.status, taken.json()["job"]["items"].as_u64()),
        (StatusCode::ACCEPTED, Some(1))
    );
    assert_eq!(taken.json()["bad_items"], 5);

    let lines = "{\"prompt\":\"a\"}\n\nnot json\n{\"prompt\":\"b\"}\n";
    let request = |query: &str, kind: &str| {
        Request::post(format!("/jobs{query}"))
            .header("x-goog-api-key", ANN)
            .header("content-type", kind)
    };
    let refused = world.ask(request("", "application/jsonl"), lines).await;
    assert_eq!(refused.json()["error"]["bad"][0]["number"], 3, "{refused:?}");
    let query = "?name=two%20lines&max_usd=9.5&lanes=standard,flex&skip_bad=1";
    let taken = world.ask(request(query, "application/jsonl"), lines).await;
    let options = &taken.json()["job"]["options"];
    assert_eq!(
        (options["name"].as_str(), options["max_usd"].as_f64()),
        (Some("two lines"), Some(9.5))
    );
    assert_eq!(options["lanes"], json!(["standard", "flex"]));
    let csv = world.ask(request("", "text/csv"), "prompt,size\n\"a, b\",1K\n").await;
    assert_eq!((csv.status, csv.json()["job"]["items"].as_u64()), (StatusCode::ACCEPTED, Some(1)));
    for query in ["?max_usd=lots", "?no_such=1", "?max_concurrent=0", "?name=a&name=b", "?plan=x"] {
        let answer = world.ask(request(query, "application/jsonl"), lines).await;
        assert_eq!(answer.status, 400, "{query} {answer:?}");
    }
}

#[tokio::test]
async fn a_plan_alone_queues_nothing_and_calls_nothing() {
    let world = World::new([], "").await;
    let answer = world.post(ANN, "/jobs?plan=1", &json!({ "items": [{ "prompt": "a" }] })).await;
    assert_eq!((answer.status, answer.json()["plan"]["items"].as_u64()), (StatusCode::OK, Some(1)));
    assert_eq!(world.get(ANN, "/jobs").await.json()["jobs"], json!([]));
    assert_eq!(world.sim.requests(), 0);
}

#[tokio::test]
async fn more_items_than_one_submission_may_have_are_refused() {
    let world = World::new([], "").await;
    let item = json!({ "prompt": "a" });
    let items = vec![item.clone(); super::submission::MOST_ITEMS + 1];
    let answer = world.post(ANN, "/jobs", &json!({ "items": items })).await;
    assert!(answer.status == 400 && answer.message().contains("10000 items"), "{answer:?}");
    let lines = format!("{item}\n").repeat(super::submission::MOST_ITEMS + 1);
    let request = Request::post("/jobs").header("x-goog-api-key", ANN);
    let answer = world.ask(request, lines).await;
    assert!(answer.status == 400 && answer.message().contains("10000 items"), "{answer:?}");
}

#[tokio::test]
async fn a_submission_is_within_the_bounds_of_bodies_and_of_memory() {
    let mut world = World::new([], "").await;
    let server = |more: &str| format!("[server]\n{more}");
    let plain = world.toml.clone();
    let long = json!({ "items": [{ "prompt": "a".repeat(4096) }] });
    world.toml = plain.replace("[server]\n", &server("max_body = \"1KiB\"\n"));
    world.restart().await;
    assert_eq!(world.post(ANN, "/jobs", &long).await.status, 413);
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>(long.to_string())]);
    let request = Request::post("/jobs").header("x-goog-api-key", ANN);
    let answer = world.ask(request, Body::from_stream(chunks)).await;
    assert_eq!(answer.status, 413, "a body that states no length {answer:?}");
    assert_eq!(world.get(ANN, "/jobs").await.json()["jobs"], json!([]));
    let usage = world.gateway.snapshot().queue().usage();
    assert_eq!((usage.places, usage.bytes), (0, 0), "what was refused takes nothing");
}

#[tokio::test]
async fn no_path_or_id_leads_out_of_the_jobs() {
    let world = World::new([], "").await;
    let id = world.submit(ANN, json!({}), &["a"]).await;
    world.run().await;
    for path in [
        "/jobs/../status",
        "/jobs/%2e%2e/status",
        "/jobs/..%2f..%2fkey",
        &format!("/jobs/{id}/items/1/image/../../../../../key"),
        &format!("/jobs/{id}/items/1/image/..%2f..%2f..%2fkey"),
        &format!("/jobs/{id}/items/%2e%2e/image"),
        &format!("/jobs/{id}/items/1/image/0"),
        &format!("/jobs/{id}/items/-1/image"),
        &format!("/jobs/{id}%00/items"),
        &format!("/jobs/{}/items", id.to_uppercase()),
        "/jobs/'%20OR%201=1--",
        "/jobs/%25/items",
        "/jobs/x/y/z",
        "/jobs/",
    ] {
        let answer = world.get(ANN, path).await;
        assert!([400, 404].contains(&answer.status.as_u16()), "{path} {answer:?}");
        assert!(!answer.body.windows(7).any(|part| part == b"the-key"), "{path}");
    }
    let page =
        world.ask(Request::get(format!("/jobs.image?job=..%2f{id}&item=1")), Body::empty()).await;
    assert_eq!(page.status, 404);
}

#[tokio::test]
async fn a_cap_stops_a_job_and_a_higher_one_lets_it_go_on() {
    let world = World::new([], "").await;
    let prompts = ["a", "b", "c", "d", "e"];
    let options = json!({ "max_requests": 2, "attempts_per_call": 1 });
    let id = world.submit(ANN, options, &prompts).await;
    world.run().await;
    let job = world.get(ANN, &format!("/jobs/{id}")).await.json();
    assert_eq!(job["state"], "capped", "{job}");
    assert_eq!(world.sim.requests(), 2);
    let path = format!("/jobs/{id}/resume?max_requests=9&max_usd=9.5");
    let resumed = world.post(ANN, &path, &json!({})).await.json();
    assert_eq!((&resumed["state"], &resumed["changed"]), (&json!("active"), &json!(true)));
    world.run().await;
    let job = world.get(ANN, &format!("/jobs/{id}")).await.json();
    assert_eq!(job["options"]["max_usd"], 9.5);
    assert_eq!(
        (job["state"].as_str(), job["counts"]["done"].as_u64()),
        (Some("finished"), Some(5))
    );
    assert_eq!(world.sim.requests(), 5, "nothing is drawn twice");
}

#[tokio::test]
async fn what_is_cancelled_is_never_sent_and_what_is_paused_waits() {
    let world = World::new([], "").await;
    let id = world.submit(ANN, json!({}), &["a", "b"]).await;
    let paused = world.post(ANN, &format!("/jobs/{id}/pause"), &json!({})).await.json();
    assert_eq!(paused["state"], "paused");
    world.run().await;
    assert_eq!(world.sim.requests(), 0);
    let cancelled = world.post(ANN, &format!("/jobs/{id}/cancel"), &json!({})).await.json();
    assert_eq!((&cancelled["state"], &cancelled["changed"]), (&json!("cancelled"), &json!(true)));
    let again = world.post(ANN, &format!("/jobs/{id}/cancel"), &json!({})).await.json();
    assert_eq!(again["changed"], false);
    let retried = world.post(ANN, &format!("/jobs/{id}/retry"), &json!({})).await;
    assert_eq!(retried.status, 400);
    world.run().await;
    assert_eq!(world.sim.requests(), 0);
    let wrong = world.get(ANN, &format!("/jobs/{id}/cancel")).await;
    assert_eq!((wrong.status.as_u16(), &wrong.headers["allow"]), (405, &"POST".parse().unwrap()));
}

#[tokio::test]
async fn a_submission_that_is_sent_again_with_its_key_is_the_same_job() {
    let world = World::new([], "").await;
    let body = json!({ "items": [{ "prompt": "a" }] }).to_string();
    let send = async |token: &str, key: &str, body: &str| {
        let request = Request::post("/jobs").header("content-type", "application/json");
        let request = request.header("x-goog-api-key", token).header("idempotency-key", key);
        world.ask(request, body.to_owned()).await
    };
    let (first, second) = tokio::join!(send(ANN, "k", &body), send(ANN, "k", &body));
    let id = |answer: &Answer| answer.json()["job"]["id"].as_str().unwrap().to_owned();
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (202, 202), "{first:?} {second:?}");
    assert_eq!(id(&first), id(&second));
    assert_eq!(id(&send(ANN, "k", &body).await), id(&first));
    assert_ne!(id(&send(ANN, "other", &body).await), id(&first));
    assert_ne!(id(&send(BOB, "k", &body).await), id(&first), "a key is its owner's");
    let other = send(ANN, "k", &body.replace("\"a\"", "\"b\"")).await;
    assert!(other.status == 400 && other.message().contains("another request"), "{other:?}");
}

#[tokio::test]
async fn a_job_is_charged_to_the_budget_of_its_token() {
    let tokens = format!(
        "[[token]]\nname = \"ann\"\nhash = \"{}\"\nusd_per_day = 0.01\n\
         [[token]]\nname = \"bob\"\nhash = \"{}\"\n",
        hashed(ANN),
        hashed(BOB),
    );
    let world = World::with_tokens([], "", &tokens).await;
    let options = json!({ "max_failures": 1, "backoff_seconds": 0 });
    let (ann, bob) = (
        world.submit(ANN, options.clone(), &["a"]).await,
        world.submit(BOB, options, &["a"]).await,
    );
    let done = async |token: &str, id: &str| {
        world.get(token, &format!("/jobs/{id}")).await.json()["counts"]["done"] == 1
    };
    let of_bob = async { while !done(BOB, &bob).await {} };
    // The other job waits for another day.
    tokio::select! {
        () = world.run() => {}
        () = of_bob => {}
    }
    assert!(done(BOB, &bob).await && !done(ANN, &ann).await);
    assert_eq!(world.sim.requests(), 1, "nothing is sent for a token whose budget is spent");
}

#[tokio::test]
async fn without_tokens_jobs_have_no_owner_and_are_refused() {
    let dir = std::env::temp_dir().join(format!("http-jobs-open-{}", std::process::id()));
    let gateway =
        open(&format!("[server]\nstate_dir = \"{}\"\n[jobs]\nrun = false\n", dir.display())).await;
    let request = Request::post("/jobs").header("x-goog-api-key", "AIzaSy-any-key");
    let answer = gateway.router().oneshot(request.body(Body::from("{}")).unwrap()).await.unwrap();
    let answer = read(answer).await;
    assert_eq!(answer.status, 403);
    assert!(answer.message().contains("gemini-gateway jobs"), "{answer:?}");
    std::fs::remove_dir_all(dir).unwrap();
}

// What a killed worker had paid for would be known to no other.
#[tokio::test]
async fn jobs_of_several_workers_are_refused_over_a_journal_of_one() {
    let dir = std::env::temp_dir().join(format!("http-jobs-redb-{}", std::process::id()));
    let toml = format!(
        "[server]\nstate_dir = {:?}\n[jobs]\nstore = \"postgres://nobody@127.0.0.1:1/none\"\n",
        dir.join("state")
    );
    let config = Config::parse(&toml, "gateway.toml").unwrap();
    let error = Gateway::new(&config).await.unwrap_err().to_string();
    assert!(error.contains("set server.store to a redis:// or postgres://"), "{error}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn every_request_for_jobs_has_its_line_in_the_audit() {
    let world = World::new([], "").await;
    let id = world.submit(ANN, json!({}), &["a secret prompt"]).await;
    world.get(BOB, &format!("/jobs/{id}")).await;
    world.ask(Request::get("/jobs.json"), Body::empty()).await;
    let audit = std::fs::read_to_string(world.dir.join("audit")).unwrap();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                line["caller"].as_str(),
                line["method"].as_str().unwrap(),
                line["status"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(seen, [(Some("ann"), "POST", 202), (Some("bob"), "GET", 404), (None, "GET", 200)]);
    assert!(!audit.contains("secret prompt"));
}

#[tokio::test]
async fn inputs_by_url_are_off_and_never_lead_into_the_gateways_network() {
    let with = |input: &str| json!({ "items": [{ "prompt": "a", "inputs": [input] }] });
    let off = World::new([], "").await;
    let answer = off.post(ANN, "/jobs", &with("https://a.example/x.png")).await;
    assert!(format!("{answer:?}").contains("jobs.input_urls"), "{answer:?}");
    let on = World::new([], "input_urls = true\n").await;
    for url in ["http://127.0.0.1:1/x", "http://[::1]/x", "http://169.254.169.254/latest"] {
        let answer = on.post(ANN, "/jobs", &with(url)).await;
        assert!(format!("{answer:?}").contains("jobs.private_urls"), "{url} {answer:?}");
    }
    // A name is resolved when it is fetched.
    let answer =
        on.post(ANN, "/jobs", &with(&on._upstream.url().replace("127.0.0.1", "localhost"))).await;
    let id = answer.json()["job"]["id"].as_str().unwrap().to_owned();
    on.run().await;
    let items = on.get(ANN, &format!("/jobs/{id}/items")).await.json();
    let reason = items["items"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("jobs.private_urls"), "{items}");
    assert_eq!(on.sim.requests(), 0);
}

/// A receiver of webhooks: what it got, and what it answers in turn, then 204.
#[derive(Clone, Default)]
struct Receiver {
    got: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    answers: Arc<Mutex<Vec<u16>>>,
}

impl Receiver {
    /// Listens, and gives its URL.
    async fn listen(answers: &[u16]) -> (Self, String) {
        let receiver = Self::default();
        *receiver.answers.lock().unwrap() = answers.iter().rev().copied().collect();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/a-secret-path?and-query", listener.local_addr().unwrap());
        let state = receiver.clone();
        let answer = post(move |headers: HeaderMap, body: Bytes| {
            state.got.lock().unwrap().push((headers, body));
            let next = state.answers.lock().unwrap().pop().unwrap_or(204);
            std::future::ready(StatusCode::from_u16(next).unwrap())
        });
        let app = axum::Router::new().route("/a-secret-path", answer);
        tokio::spawn(async move { axum::serve(listener, app).await });
        (receiver, url)
    }

    fn count(&self) -> usize {
        self.got.lock().unwrap().len()
    }

    fn header(&self, at: usize, name: &str) -> Option<String> {
        let got = self.got.lock().unwrap();
        got[at].0.get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    fn json(&self, at: usize) -> Value {
        serde_json::from_slice(&self.got.lock().unwrap()[at].1).unwrap()
    }
}

impl World {
    /// Tells webhooks what is due in so many seconds from now.
    async fn tell(&self, seconds: i64, secret: Option<&str>) {
        let mut notifier = self.gateway.jobs().unwrap().notifier.clone();
        notifier.secret = secret.map(|text| super::notify::WebhookSecret::parse(text).unwrap());
        notifier.deliver_due(super::now_ms() + seconds * 1000).await.unwrap();
    }
}

/// HMAC-SHA256 by its definition (RFC 2104), for keys of one block at most.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    use sha2::{Digest as _, Sha256};
    let mut block = [0_u8; 64];
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(text);
    let outer = Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c));
    outer.chain_update(inner.finalize()).finalize().to_vec()
}

const PRIVATE: &str = "private_urls = true\n";

#[tokio::test]
async fn a_webhook_is_told_again_after_a_failure_and_a_restart_until_it_has_heard() {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    let (receiver, url) = Receiver::listen(&[500, 302]).await;
    let mut world = World::new([], PRIVATE).await;
    let id = world.submit(ANN, json!({ "webhook": url, "name": "fruit" }), &["a", "b"]).await;
    let shown = world.get(ANN, &format!("/jobs/{id}")).await;
    assert!(!format!("{shown:?}").contains("a-secret-path"), "{shown:?}");
    world.run().await;
    assert_eq!(receiver.count(), 1);
    assert_eq!(receiver.header(0, "webhook-signature"), None, "without a secret it is unsigned");
    world.tell(50, None).await;
    assert_eq!(receiver.count(), 1, "the next attempt is after a minute");
    world.restart().await;
    let secret = [7_u8; 32];
    let text = format!("whsec_{}", BASE64_STANDARD.encode(secret));
    world.tell(65, Some(&text)).await;
    assert_eq!(receiver.count(), 2, "a process that starts later tells it");
    world.tell(65 + 250, Some(&text)).await;
    assert_eq!(
        receiver.count(),
        2,
        "a redirect is a failure, and the next attempt after 5 minutes"
    );
    world.tell(65 + 310, Some(&text)).await;
    assert_eq!(receiver.count(), 3);
    world.tell(1_000_000, Some(&text)).await;
    assert_eq!(receiver.count(), 3, "what it has heard is not told again");

    let said = receiver.json(2);
    assert_eq!((said["id"].as_str(), said["name"].as_str()), (Some(&*id), Some("fruit")));
    assert_eq!(
        (said["state"].as_str(), said["counts"]["done"].as_u64()),
        (Some("finished"), Some(2))
    );
    assert!(said["spent"]["at_least_microusd"].as_u64().unwrap() > 0, "{said}");
    for at in 0..3 {
        assert_eq!(receiver.header(at, "webhook-id"), receiver.header(0, "webhook-id"));
    }
    for at in [1, 2] {
        let part = |name| receiver.header(at, name).unwrap();
        let body = receiver.got.lock().unwrap()[at].1.clone();
        let signed = format!("{}.{}.", part("webhook-id"), part("webhook-timestamp"));
        let mac = hmac(&secret, &[signed.as_bytes(), &body].concat());
        assert_eq!(part("webhook-signature"), format!("v1,{}", BASE64_STANDARD.encode(mac)));
    }
}

#[tokio::test]
async fn a_webhook_that_never_answers_well_is_abandoned_after_two_and_a_half_hours() {
    let (receiver, url) = Receiver::listen(&[500; 99]).await;
    let world = World::new([], PRIVATE).await;
    world.submit(ANN, json!({ "webhook": url }), &["a"]).await;
    world.run().await;
    let mut counts = vec![receiver.count()];
    let mut at = 0;
    for pause in [60, 5 * 60, 30 * 60, 2 * 3600, 24 * 3600] {
        at += pause + 2;
        world.tell(at, None).await;
        counts.push(receiver.count());
    }
    assert_eq!(counts, [1, 2, 3, 4, 5, 5]);
}

#[tokio::test]
async fn a_cap_is_told_and_so_is_the_end_after_it_under_another_id() {
    let (receiver, url) = Receiver::listen(&[]).await;
    let world = World::new([], PRIVATE).await;
    let options = json!({ "webhook": url, "max_requests": 1, "attempts_per_call": 1 });
    let id = world.submit(ANN, options, &["a", "b"]).await;
    world.run().await;
    assert_eq!((receiver.count(), receiver.json(0)["state"].as_str()), (1, Some("capped")));
    world.post(ANN, &format!("/jobs/{id}/resume?max_requests=9"), &json!({})).await;
    world.run().await;
    assert_eq!((receiver.count(), receiver.json(1)["state"].as_str()), (2, Some("finished")));
    assert_ne!(receiver.header(0, "webhook-id"), receiver.header(1, "webhook-id"));
}

#[tokio::test]
async fn no_webhook_leads_into_the_gateways_network() {
    let (receiver, url) = Receiver::listen(&[]).await;
    let world = World::new([], "").await;
    let body = json!({ "options": { "webhook": url }, "items": [{ "prompt": "a" }] });
    let refused = world.post(ANN, "/jobs", &body).await;
    assert!(refused.status == 400 && refused.message().contains("private_urls"), "{refused:?}");
    assert!(!refused.message().contains("a-secret-path"), "{refused:?}");
    // A name is resolved when it is told.
    let named = url.replace("127.0.0.1", "localhost");
    world.submit(ANN, json!({ "webhook": named }), &["a"]).await;
    world.run().await;
    assert_eq!(receiver.count(), 0);
}

/// Asks as a browser does.
fn browser(path: &str) -> http::request::Builder {
    Request::get(path).header("accept", "text/html,application/xhtml+xml,*/*;q=0.8")
}

#[tokio::test]
async fn the_page_of_jobs_is_seen_by_the_rule_of_the_status_pages() {
    use crate::door::Connection;
    let tokens = format!(
        "[[token]]\nname = \"ann\"\nhash = \"{}\"\n\
         [[token]]\nname = \"bob\"\nhash = \"{}\"\nallow = [\"GET /jobs*\"]\n",
        hashed(ANN),
        hashed(BOB),
    );
    let world = World::with_tokens([], "", &tokens).await;
    let id = world.submit(ANN, json!({}), &["a red apple"]).await;
    world.run().await;
    let data = [format!("/jobs.json?job={id}"), format!("/jobs.image?job={id}&item=1")];
    let from = |path: &str, local: &str| {
        let connection = Connection::new("192.0.2.7:9".parse().unwrap(), local.parse().unwrap());
        browser(path).header("host", "localhost").extension(connection)
    };
    for path in ["/jobs", "/jobs.json", &*data[0], &*data[1]] {
        let near = world.ask(from(path, "127.0.0.1:80"), Body::empty()).await;
        assert_eq!(near.status, 200, "{path} {near:?}");
        let far = world.ask(from(path, "192.0.2.1:80"), Body::empty()).await;
        assert_eq!(far.status, 401, "{path}");
        assert!(far.headers.contains_key("www-authenticate"), "browsers ask for the token");
        let ann = from(path, "192.0.2.1:80").header("x-goog-api-key", ANN);
        assert_eq!(world.ask(ann, Body::empty()).await.status, 403, "{path}");
        let bob = from(path, "192.0.2.1:80").header("x-goog-api-key", BOB);
        assert_eq!(world.ask(bob, Body::empty()).await.status, 200, "{path}");
        let rebound = from(path, "127.0.0.1:80").header("host", "evil.example");
        assert_ne!(world.ask(rebound, Body::empty()).await.status, 200, "{path}");
    }
    let page = world.ask(browser("/jobs"), Body::empty()).await;
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let image = world.ask(browser(&data[1]), Body::empty()).await;
    assert_eq!(image.body, world.get(ANN, &format!("/jobs/{id}/items/1/image")).await.body);
}

#[tokio::test]
async fn the_data_of_the_page_has_exactly_the_documented_fields() {
    use std::collections::BTreeSet;
    let (_receiver, url) = Receiver::listen(&[]).await;
    let world = World::new([], PRIVATE).await;
    let id = world.submit(ANN, json!({ "webhook": url }), &["a"]).await;
    world.run().await;
    let all = world.ask(browser("/jobs.json"), Body::empty()).await.json();
    let one = world.ask(browser(&format!("/jobs.json?job={id}")), Body::empty()).await;
    assert!(!format!("{one:?}").contains("a-secret-path"), "a webhook's URL is its owner's");
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/jobs.md");
    let (docs, one) = (std::fs::read_to_string(docs).unwrap(), one.json());
    for (section, object) in [
        ("All jobs", &all),
        ("One job", &one),
        ("A job on the page", &all["jobs"][0]),
        ("An item on the page", &one["items"][0]),
    ] {
        let text = docs.split(&format!("#### {section}\n")).nth(1).expect(section);
        let rows = text.split("\n#").next().unwrap().lines().filter(|line| line.starts_with("| `"));
        let documented: BTreeSet<_> = rows
            .flat_map(|row| {
                row[1..].split(" | ").next().unwrap_or_default().split('`').skip(1).step_by(2)
            })
            .collect();
        // Fields that are absent without a value.
        let fields: BTreeSet<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
        let rare = ["batch", "reason"];
        let documented: BTreeSet<_> =
            documented.into_iter().filter(|name| !rare.contains(name)).collect();
        assert_eq!(fields, documented, "{section}");
    }
}

#[test]
fn the_page_of_jobs_is_drawn_by_a_browser_and_no_value_becomes_markup() {
    use crate::status::tests::HOSTILE;
    use crate::status::tests::browser::{browse, chromium, elements};
    let Some(program) = chromium() else { return };
    let target = PathBuf::from(
        std::env::var_os("CARGO_TARGET_DIR")
            .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../target").into()),
    );
    let shots = target.join("jobs-page");
    std::fs::create_dir_all(&shots).unwrap();
    let profile = std::env::temp_dir().join(format!("jobs-page-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new([], "").await;
        let prompts = ["a red apple", "a green pear on a table of oak", "a plum", "a quince"];
        let options = json!({ "name": "fruit for the catalogue", "max_usd": 5.0 });
        let id = world.submit(ANN, options, &prompts).await;
        world.run().await;
        let text = "a name that is harmless";
        let harmless = world.submit(ANN, json!({ "name": text }), &[text]).await;
        world.post(ANN, &format!("/jobs/{harmless}/pause"), &json!({})).await;
        // The same with a script that measures it, which the policy forbids.
        let script = "<script>setTimeout(() => { document.body.dataset.overflow = \
            document.documentElement.scrollWidth - innerWidth }, 2000)</script></body>";
        let html = world.ask(browser("/jobs"), Body::empty()).await.body;
        let html = String::from_utf8_lossy(&html).replace("</body>", script);
        let measured = axum::routing::get(move || std::future::ready(axum::response::Html(html)));
        let app = world.gateway.router().route("/measured", measured);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let run = async |more: Vec<String>, width: u32, path: &str| {
            let budget = "--virtual-time-budget=12000".to_owned();
            let window = format!("--window-size={width},1800");
            let arguments = [more, vec![budget, window, format!("{base}{path}")]].concat();
            browse(&program, &profile, &arguments).await
        };
        let dump = async |width, path: &str| run(vec!["--dump-dom".to_owned()], width, path).await;
        let (list, detail) = ("/jobs".to_owned(), format!("/jobs?job={id}"));
        let dom = dump(1280, &list).await;
        assert!(dom.contains("data-live=\"yes\""), "the script ran under the policy: {dom}");
        for says in ["fruit for the catalogue", "4 items:", " of $5.00", "up to $"] {
            assert!(dom.contains(says), "{says}");
        }
        let dom = dump(1280, &detail).await;
        assert_eq!(dom.matches("<img ").count(), 4, "{dom}");
        for (name, width) in [("phone", 390), ("desktop", 1280)] {
            for (page, path) in [("list", &list), ("job", &detail)] {
                let shot = shots.join(format!("{page}-{name}.png"));
                run(vec![format!("--screenshot={}", shot.display())], width, path).await;
                let png = std::fs::read(&shot).unwrap();
                assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{}", shot.display());
            }
            for path in ["/measured", &format!("/measured?job={id}")] {
                let dom = dump(width, path).await;
                assert!(dom.contains("data-overflow=\"0\""), "nothing is wider than {width} px");
            }
        }
        let plain = dump(1280, &format!("/jobs?job={harmless}")).await;
        for text in HOSTILE {
            let hostile = world.submit(ANN, json!({ "name": text }), &[text]).await;
            world.post(ANN, &format!("/jobs/{hostile}/pause"), &json!({})).await;
            let dom = dump(1280, &format!("/jobs?job={hostile}")).await;
            assert_eq!(elements(&dom), elements(&plain), "{text}");
        }
    });
    let _ = std::fs::remove_dir_all(&profile);
    println!("screenshots are in {}", shots.display());
}
