//! Requests through the gateway on loopback, with the simulator behind it, whose ledger judges.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_gemini_gateway::Running;
use tower_gemini_sim::{
    Fault, Forbidden, Latency, Refusal, ServeHandle, Shape, Sim, hash64, serve,
};

const KEY: &str = "AIzaSyA-sentinel-key-0123456789abcdefghij";

struct World {
    sim: Sim,
    upstream: Option<ServeHandle>,
    gateway: Running,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// A file with both kinds of upstream at `url`. What stands before the first section of `extra`
/// belongs to each upstream.
fn config(url: &str, extra: &str) -> String {
    let (of_each, sections) = extra.split_at(extra.find('[').unwrap_or(extra.len()));
    let upstream = |kind: &str| {
        format!(
            "[[upstream]]\nname = \"{kind}\"\nkind = \"{kind}\"\nbase_url = \"{url}\"\n{of_each}"
        )
    };
    let (gemini, vertex) = (upstream("gemini"), upstream("vertex"));
    let listen = "[server]\nlisten = \"127.0.0.1:0\"\n";
    match sections.strip_prefix("[server]\n") {
        Some(more) => format!("{listen}{}{gemini}{vertex}", more),
        None => format!("{listen}{gemini}{vertex}{sections}"),
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The images in a Gemini answer, drafts too.
    fn images(&self) -> Vec<Bytes> {
        fn find(value: &Value, found: &mut Vec<Bytes>) {
            match value {
                Value::Object(members) => {
                    if let Some(data) = members
                        .get("data")
                        .and_then(Value::as_str)
                        .filter(|_| members.contains_key("mimeType"))
                    {
                        found.push(decode(data));
                    }
                    members.values().for_each(|value| find(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| find(value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        find(&self.json(), &mut found);
        found
    }
}

fn decode(data: &str) -> Bytes {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(data).unwrap().into()
}

impl World {
    async fn new(sim: Sim, extra: &str) -> Self {
        let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let config = config(&upstream.url(), extra);
        let gateway = tower_gemini_gateway::start(&config)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{config}"));
        Self {
            sim,
            upstream: Some(upstream),
            gateway,
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    async fn quick(faults: impl IntoIterator<Item = Fault>) -> Self {
        Self::new(Sim::quick(faults), "").await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.gateway.url())
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let (parts, body) = self.client.request(request).await.unwrap().into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    fn request(&self, path: &str, body: &Value) -> Request<Full<Bytes>> {
        Request::post(self.url(path))
            .header("x-goog-api-key", KEY)
            .header("content-type", "application/json")
            .header("x-sim-call", "call")
            .body(Full::from(body.to_string()))
            .unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(path, body)).await
    }

    fn ledger(&self) -> (usize, usize) {
        let ledger = self.sim.ledger();
        (ledger.sends("call"), ledger.charges("call"))
    }
}

const PRO: &str = "/v1beta/models/gemini-3-pro-image:generateContent";

fn apple() -> Value {
    json!({ "contents": [{ "role": "user", "parts": [{ "text": "a red apple" }] }], "generationConfig": { "responseModalities": ["TEXT", "IMAGE"] } })
}

fn drafts() -> Fault {
    Fault::Shaped(Shape { drafts: 2, ..Shape::default() })
}

#[tokio::test]
async fn a_drop_in_base_url_gives_the_final_image_and_no_drafts() {
    let world = World::quick([Fault::HighDemand, drafts()]).await;
    let answer = world.post(PRO, &apple()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.images(), [world.sim.image_for(1).unwrap()]);
    assert!(answer.text().contains("thoughtSignature"), "signatures are kept");
    assert_eq!(answer.headers["content-length"], answer.body.len().to_string());
    assert!(!answer.headers.contains_key("alt-svc"), "it would lead the caller past the gateway");
    assert_eq!(world.ledger(), (2, 1));
}

#[tokio::test]
async fn drafts_come_along_where_they_are_wanted() {
    let world = World::new(Sim::quick([drafts()]), "[responses]\nstrip_drafts = false\n").await;
    let answer = world.post(PRO, &apple()).await;
    assert_eq!(answer.images().len(), 3);
    assert_eq!(answer.images()[2], world.sim.image_for(0).unwrap());
}

#[tokio::test]
async fn every_door_of_googles_leads_to_the_upstream() {
    for path in [
        "/v1/models/gemini-3-pro-image:generateContent",
        "//v1beta//models/gemini-3-pro-image:generateContent",
        "/v1beta1/publishers/google/models/gemini-3-pro-image:generateContent",
        "/v1/projects/p/locations/global/publishers/google/models/gemini-3-pro-image:generateContent",
    ] {
        let world = World::quick([drafts()]).await;
        let answer = world.post(path, &apple()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.images().len()),
            (200, 1),
            "{path}: {}",
            answer.text()
        );
    }
    let world = World::quick([]).await;
    let answer = world.post("/v1beta/models/gemini-3-pro-image:countTokens", &apple()).await;
    assert!(answer.json()["totalTokens"].as_u64().unwrap() > 0);
    let answer = world
        .post(
            "/v1beta/interactions",
            &json!({ "model": "gemini-3-pro-image", "input": "a red apple" }),
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // What nobody knows is the upstream's to answer.
    let answer = world
        .send(
            Request::get(world.url("/v1beta/corpora/nobody"))
                .header("x-goog-api-key", KEY)
                .body(Full::default())
                .unwrap(),
        )
        .await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn the_list_of_models_is_that_of_the_api_whose_client_asks() {
    let world = World::quick([]).await;
    let ask = |name: &'static str, value: String| {
        Request::get(world.url("/v1/models")).header(name, value).body(Full::default()).unwrap()
    };
    let openai = world.send(ask("authorization", format!("Bearer {KEY}"))).await;
    assert_eq!(
        (openai.status.as_u16(), &openai.json()["object"]),
        (200, &json!("list")),
        "{}",
        openai.text()
    );
    assert!(
        openai.json()["data"]
            .as_array()
            .unwrap()
            .iter()
            .any(|model| model["id"] == "gemini-3-pro-image")
    );
    assert!(world.sim.ledger().requests().is_empty());
    // Google's own is the upstream's to give.
    let google = world.send(ask("x-goog-api-key", KEY.to_owned())).await;
    assert_eq!(google.status, 200, "{}", google.text());
    assert!(google.json()["models"].is_array());
}

#[tokio::test]
async fn imagen_style_predictions_pass_through() {
    let world = World::new(
        Sim::builder()
            .latency(Latency::none())
            .tiny_images(true)
            .revive("imagen-4.0-generate-001")
            .build(),
        "",
    )
    .await;
    let body =
        json!({ "instances": [{ "prompt": "a red apple" }], "parameters": { "sampleCount": 1 } });
    let answer = world.post("/v1beta/models/imagen-4.0-generate-001:predict", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.json()["predictions"][0]["bytesBase64Encoded"].is_string());
}

#[tokio::test]
async fn mixed_spellings_pass_as_they_are() {
    let world = World::quick([]).await;
    let body = json!({
        "contents": [{ "parts": [{ "text": "an edit" }, { "inlineData": { "mime_type": "image/png", "data": "iVBORw0KGgo-_w" } }] }],
        "generation_config": { "response_modalities": ["TEXT", "IMAGE"], "imageConfig": { "image_size": "2K" } },
        "safetySettings": null
    });
    let answer = world.post(PRO, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        world.sim.ledger().requests()[0].body_hash,
        Some(hash64(body.to_string().as_bytes())),
        "byte for byte"
    );
}

#[tokio::test]
async fn a_key_is_taken_from_wherever_clients_put_it() {
    for (path, header) in [
        (format!("{PRO}?key={KEY}"), None),
        (PRO.to_owned(), Some(("authorization", format!("Bearer {KEY}")))),
        (PRO.to_owned(), Some(("x-goog-api-key", KEY.to_owned()))),
    ] {
        let world = World::quick([]).await;
        let mut request = Request::post(world.url(&path)).header("x-sim-call", "call");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let answer = world.send(request.body(Full::from(apple().to_string())).unwrap()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(&*world.sim.ledger().requests()[0].project, world.sim.project_of(KEY));
    }
}

#[tokio::test]
async fn the_gateways_own_key_is_for_callers_with_a_token() {
    let (_dir, extra) = own_key();
    let world = World::new(Sim::quick([]), &extra).await;
    let ask = |token: &str| {
        Request::post(world.url(PRO))
            .header("authorization", format!("Bearer {token}"))
            .header("x-sim-call", "call")
            .body(Full::from(apple().to_string()))
            .unwrap()
    };
    let answer = world.send(ask("token-of-alice-0123456789")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(&*world.sim.ledger().requests()[0].project, world.sim.project_of(KEY));
    let answer = world.send(ask("token-of-mallory-987654321")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["error"]["status"].as_str()),
        (401, Some("UNAUTHENTICATED"))
    );
    let answer = world
        .send(Request::post(world.url("/v1/chat/completions")).body(Full::from("{}")).unwrap())
        .await;
    assert_eq!(answer.status, 401);
    assert!(
        answer.json()["error"]["type"].is_string(),
        "OpenAI's form on OpenAI's paths: {}",
        answer.text()
    );
    assert_eq!(world.ledger(), (1, 1));
}

#[tokio::test]
async fn a_stream_stays_a_stream_and_loses_its_drafts() {
    let sim = Sim::builder()
        .latency(Latency::none())
        .tiny_images(true)
        .script([drafts()])
        .chunks(512, Duration::from_millis(20))
        .build();
    let world = World::new(sim, "").await;
    let path = "/v1beta/models/gemini-3-pro-image:streamGenerateContent?alt=sse";
    let mut body = world.client.request(world.request(path, &apple())).await.unwrap().into_body();
    let mut text = Vec::new();
    let mut first = None;
    while let Some(frame) = body.frame().await {
        text.extend_from_slice(&frame.unwrap().into_data().unwrap());
        first.get_or_insert_with(|| world.sim.ledger().requests()[0].ended_at.is_some());
    }
    assert_eq!(first, Some(false), "the first byte came before the upstream was done");
    let text = String::from_utf8(text).unwrap();
    let images: Vec<Bytes> = events(&text).flat_map(|event| event.images()).collect();
    assert_eq!(images, [world.sim.image_for(0).unwrap()]);
}

/// Each event of a stream, as a response of its own.
fn events(text: &str) -> impl Iterator<Item = Answer> + '_ {
    let events = text.lines().filter_map(|line| line.strip_prefix("data:"));
    events.map(|event| Answer {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: event.trim().to_owned().into(),
    })
}

#[tokio::test]
async fn drafts_that_are_not_marked_are_left_out_of_every_dialect() {
    for path in ["generateContent", "streamGenerateContent", "streamGenerateContent?alt=sse"] {
        let shape = Shape { drafts_marked: false, ..Shape::with_drafts(2) };
        let world = World::quick([Fault::Shaped(shape)]).await;
        let answer =
            world.post(&format!("/v1beta/models/gemini-3-pro-image:{path}"), &apple()).await;
        let images = match answer.text().starts_with("data:") {
            false => answer.images(),
            true => events(&answer.text()).flat_map(|event| event.images()).collect(),
        };
        assert_eq!(images, [world.sim.image_for(0).unwrap()], "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn an_array_stream_is_an_array_still() {
    let world = World::quick([drafts()]).await;
    let answer =
        world.post("/v1beta/models/gemini-3-pro-image:streamGenerateContent", &apple()).await;
    assert!(answer.json().is_array());
    assert_eq!(answer.images(), [world.sim.image_for(0).unwrap()]);
}

#[tokio::test]
async fn a_refusal_is_shown_as_it_is_and_charged_once() {
    let world = World::quick([Fault::Refused(Refusal::ImageSafety)]).await;
    let answer = world.post(PRO, &apple()).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["candidates"][0]["finishReason"].as_str()),
        (200, Some("IMAGE_SAFETY"))
    );
    assert_eq!(world.ledger(), (1, 1));
}

#[tokio::test]
async fn when_its_own_retries_are_spent_the_last_answer_says_when_to_come_back_and_not_to_retry() {
    let world = World::new(
        Sim::quick(vec![
            Fault::RateLimitMinute {
                retry_after: Duration::from_millis(34_200),
                limit: tower_gemini_sim::Limit::Requests
            };
            3
        ]),
        "[retry]\nattempts = 1\n",
    )
    .await;
    let answer = world.post(PRO, &apple()).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.headers["x-should-retry"], "false");
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((35..=36).contains(&wait), "{wait}");
    assert!(answer.json()["error"]["details"].is_array(), "and Google's own words");
}

#[tokio::test]
async fn a_cut_upstream_never_reaches_a_client_that_would_send_again() {
    for fault in [
        Fault::CutBody { at: 3000 },
        Fault::ResetAfterGeneration,
        Fault::CutHead { at: 20 },
        Fault::TruncatedBody { at: 2000 },
    ] {
        let world = World::quick([fault.clone()]).await;
        let answer = world.post(PRO, &apple()).await;
        assert_eq!(answer.status, 424, "{fault:?}: {}", answer.text());
        assert_eq!(answer.headers["x-should-retry"], "false");
        assert_eq!(answer.json()["error"]["status"], "ABORTED");
        assert_eq!(world.ledger(), (1, 1), "{fault:?}");
    }
}

#[tokio::test]
async fn a_client_that_gives_up_on_silence_hears_blanks() {
    let sim = Sim::builder()
        .latency(Latency::fixed(Duration::from_millis(2500)))
        .tiny_images(true)
        .build();
    let world = World::new(sim, "[responses]\nheartbeat = \"500ms\"\n").await;
    let answer = world.post(PRO, &apple()).await;
    assert!(answer.body.starts_with(b"   "), "{:?}", &answer.body[..8]);
    assert_eq!(answer.images(), [world.sim.image_for(0).unwrap()]);
}

#[tokio::test]
async fn headers_tell_what_happened_where_they_are_asked_for() {
    let world =
        World::new(Sim::quick([Fault::HighDemand]), "[responses]\nreport_headers = true\n").await;
    let answer = world.post(PRO, &apple()).await;
    assert_eq!(answer.headers["x-gemini-attempts"], "2");
    assert_eq!(answer.headers["x-gemini-model"], "gemini-3-pro-image");
    assert_eq!(answer.headers["x-gemini-charge"], "charged");
    let quiet = World::quick([]).await.post(PRO, &apple()).await;
    assert!(!quiet.headers.keys().any(|name| name.as_str().starts_with("x-gemini-")));
}

#[tokio::test]
async fn an_interaction_that_is_cut_is_delivered_with_its_id_and_one_that_is_lost_names_it() {
    let ask = json!({ "model": "gemini-3-pro-image", "input": "a red apple" });
    let cut = Fault::CutBody { at: 300 };
    let world = World::quick([cut.clone()]).await;
    let answer = world.post("/v1beta/interactions", &ask).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["status"].as_str()),
        (200, Some("completed"))
    );
    assert_eq!(answer.headers["x-gemini-interaction-id"], answer.json()["id"].as_str().unwrap());
    assert_eq!((world.sim.requests(), world.sim.totals().charged), (2, 1));

    let world = World::new(Sim::quick([cut]), "[interactions]\nresume = false\n").await;
    let answer = world.post("/v1beta/interactions", &ask).await;
    assert_eq!(answer.status, 424, "{}", answer.text());
    assert!(!answer.headers.contains_key("x-gemini-interaction-id"), "it was not looked for");

    // The key may not fetch it.
    let forbidden = Fault::Forbidden(Forbidden::Generic);
    let world = World::quick([Fault::CutBody { at: 300 }, forbidden]).await;
    let answer = world.post("/v1beta/interactions", &ask).await;
    assert_eq!(answer.status, 424, "{}", answer.text());
    let id = answer.headers["x-gemini-interaction-id"].to_str().unwrap();
    assert!(answer.text().contains(&format!("it is interaction {id}")), "{}", answer.text());
    assert_eq!((world.sim.requests(), world.sim.totals().charged), (2, 1));
}

/// Sends a request and hangs up after `patience`.
async fn hang_up(world: &World, patience: Duration) {
    hang_up_on(world.request(PRO, &apple()), patience).await;
}

async fn hang_up_on(request: Request<Full<Bytes>>, patience: Duration) {
    // A client of its own: dropping it closes the connection.
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    assert!(
        tokio::time::timeout(patience, client.request(request)).await.is_err(),
        "it was to be too late"
    );
}

#[tokio::test]
async fn what_was_paid_for_is_kept_for_the_one_who_hung_up_and_given_once() {
    let sim = Sim::builder()
        .latency(Latency::fixed(Duration::from_millis(1500)))
        .tiny_images(true)
        .build();
    let world = World::new(sim, "[responses]\nreport_headers = true\n").await;
    hang_up(&world, Duration::from_millis(400)).await;
    let answer = world.post(PRO, &apple()).await;
    assert_eq!(answer.images(), [world.sim.image_for(0).unwrap()]);
    assert_eq!(answer.headers["x-gemini-redeemed"], "1");
    assert_eq!(world.ledger(), (1, 1));
    let another = world.post(PRO, &apple()).await;
    assert_eq!(another.images(), [world.sim.image_for(1).unwrap()], "given once");
    assert_eq!(world.ledger(), (2, 2));
}

// OpenAI's images API has no answer without an image: a refusal is an error there, and was paid for
// all the same.
#[tokio::test]
async fn a_refusal_that_was_paid_for_is_kept_whatever_status_tells_it() {
    for fault in [Fault::Refused(Refusal::ImageSafety), Fault::StopWithoutImage, Fault::MaxTokens] {
        for (path, body, status) in [
            (
                "/v1/images/generations",
                json!({ "model": "gemini-3-pro-image", "prompt": "a red apple" }),
                400,
            ),
            ("/v1/chat/completions", chat("{}"), 200),
        ] {
            let latency = Latency::fixed(Duration::from_millis(900));
            let sim =
                Sim::builder().script([fault.clone()]).latency(latency).tiny_images(true).build();
            let world = World::new(sim, "").await;
            hang_up_on(world.request(path, &body), Duration::from_millis(300)).await;
            let answer = world.post(path, &body).await;
            assert_eq!(
                (answer.status.as_u16(), world.ledger()),
                (status, (1, 1)),
                "{fault:?} {path}: {}",
                answer.text()
            );
        }
    }
}

// Nobody pays again unawares: whoever hung up was not told that it may have paid for nothing.
#[tokio::test]
async fn what_was_lost_after_its_caller_had_gone_is_told_to_its_next_request() {
    for (path, body) in [(PRO, apple()), ("/v1/chat/completions", chat("{}"))] {
        for (extra, told, ledger) in
            [("", 424, (1, 1)), ("[retry]\nmaybe_charged_resends = 1\nattempts = 1\n", 200, (2, 2))]
        {
            let latency = Latency::fixed(Duration::from_millis(700));
            let sim = Sim::builder()
                .script([Fault::CutBody { at: 700 }])
                .latency(latency)
                .tiny_images(true)
                .build();
            let world = World::new(sim, extra).await;
            hang_up_on(world.request(path, &body), Duration::from_millis(300)).await;
            let answer = world.post(path, &body).await;
            assert_eq!(
                (answer.status.as_u16(), world.ledger()),
                (told, ledger),
                "{path}: {}",
                answer.text()
            );
            if told == 424 {
                assert!(
                    answer.text().contains("within a minute of each other"),
                    "{}",
                    answer.text()
                );
                assert_eq!(answer.headers["x-should-retry"], "false");
                // As an SDK that resends whatever it hears, and as one who wants to pay again.
                assert_eq!(world.post(path, &body).await.status, 424, "{path}");
                let with = |resends: &str| {
                    let mut request = world.request(path, &body);
                    let name = "x-gemini-maybe-charged-resends";
                    request.headers_mut().insert(name, resends.parse().unwrap());
                    world.send(request)
                };
                let wrong = with("yes").await;
                assert_eq!(wrong.status, 400, "{}", wrong.text());
                assert!(wrong.text().contains("write 0 to 10"), "{}", wrong.text());
                assert_eq!(world.ledger(), (1, 1));
                assert_eq!(with("1").await.status, 200);
                assert_eq!(world.ledger(), (2, 2));
            }
        }
    }
}

// A day's limit was asked five times by five sends of one SDK, each a unit of the day's quota.
#[tokio::test]
async fn a_day_that_google_closed_is_asked_once_until_an_operator_reopens_it() {
    let day = Fault::RateLimitDay { retry_after: Duration::from_millis(2_500) };
    let world = World::quick([day]).await;
    let first = world.post(PRO, &apple()).await;
    assert_eq!((first.status.as_u16(), world.sim.requests()), (429, 1), "{}", first.text());
    for path in [PRO, "/v1/chat/completions", "/v1/images/generations"] {
        let body = match path {
            PRO => apple(),
            "/v1/chat/completions" => chat("{}"),
            _ => json!({ "model": "gemini-3-pro-image", "prompt": "an apple" }),
        };
        let refused = world.post(path, &body).await;
        assert_eq!(refused.status, 429, "{path}: {}", refused.text());
        assert!(refused.text().contains("the day's requests are exhausted"), "{}", refused.text());
        assert!(!refused.headers.contains_key("retry-after"), "{:?}", refused.headers);
        assert!(refused.headers.contains_key("x-closed-for"), "{:?}", refused.headers);
    }
    assert_eq!(world.sim.requests(), 1);
    // Another model, and another project, are none of it.
    let flash = "/v1beta/models/gemini-3.1-flash-image:generateContent";
    assert_eq!(world.post(flash, &apple()).await.status, 200);
    let mut other = world.request(PRO, &apple());
    other.headers_mut().insert("x-goog-api-key", "another".parse().unwrap());
    assert_eq!(world.send(other).await.status, 200);

    world.gateway.gateway().reopen();
    assert_eq!(world.post(PRO, &apple()).await.status, 200);
}

// The shape that an answer is told in is part of the request, and no other caller.
#[tokio::test]
async fn an_idempotency_key_that_is_used_for_another_request_is_refused_in_openais_words_too() {
    let world = World::quick([]).await;
    let send = |path: &'static str, body: Value| {
        let mut request = world.request(path, &body);
        request.headers_mut().insert("idempotency-key", "one".parse().unwrap());
        world.send(request)
    };
    let images = |more: &str| {
        let mut body = json!({ "model": "gemini-3-pro-image", "prompt": "a red apple" });
        body.as_object_mut()
            .unwrap()
            .extend(serde_json::from_str::<serde_json::Map<String, Value>>(more).unwrap());
        body
    };
    let first = send("/v1/images/generations", images("{}")).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(send("/v1/images/generations", images("{}")).await.body, first.body);
    for (path, body) in [
        ("/v1/images/generations", images(r#"{"response_format":"url"}"#)),
        ("/v1/images/generations", images(r#"{"model":"gemini-2.5-flash-image"}"#)),
        ("/v1/chat/completions", chat("{}")),
        (PRO, apple()),
    ] {
        let answer = send(path, body).await;
        assert_eq!(answer.status, 422, "{path}: {}", answer.text());
        let error = &answer.json()["error"];
        assert!(
            error["message"].as_str().unwrap().contains("A new request needs a new key"),
            "{error}"
        );
        // Each in the words of its path.
        assert_eq!(
            (error["type"].is_string(), error["status"].is_string()),
            (path != PRO, path == PRO),
            "{error}"
        );
    }
    assert_eq!(world.ledger(), (1, 1));
}

#[tokio::test]
async fn a_continuation_is_sent_once_and_never_kept() {
    let world = World::quick([Fault::HighDemand]).await;
    let mut body = apple();
    body["continuationToken"] = json!("next");
    let answer = world.post(PRO, &body).await;
    assert_eq!(answer.status, 503, "not retried: {}", answer.text());
    assert_eq!(world.ledger(), (1, 0));
}

#[tokio::test]
async fn openai_chat_is_the_same_stack_in_other_words() {
    let world = World::quick([Fault::HighDemand, drafts()]).await;
    let body = json!({ "model": "nano-banana-pro", "messages": [{ "role": "user", "content": "a red apple" }] });
    let answer = world.post("/v1beta/openai/chat/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let images = &answer.json()["choices"][0]["message"]["images"];
    assert_eq!(images.as_array().unwrap().len(), 1);
    let url = images[0]["image_url"]["url"].as_str().unwrap();
    assert_eq!(decode(url.split_once(";base64,").unwrap().1), world.sim.image_for(1).unwrap());
    assert_eq!(world.ledger(), (2, 1));
}

#[tokio::test]
async fn openai_images_are_the_same_stack_in_other_words() {
    let world = World::quick([drafts()]).await;
    let answer = world
        .post(
            "/v1/images/generations",
            &json!({ "model": "gemini-3-pro-image", "prompt": "a red apple", "size": "1024x1024" }),
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        decode(answer.json()["data"][0]["b64_json"].as_str().unwrap()),
        world.sim.image_for(0).unwrap()
    );
    let refused = World::quick([Fault::CutBody { at: 3000 }]).await;
    let answer = refused
        .post("/v1/images/generations", &json!({ "model": "gemini-3-pro-image", "prompt": "x" }))
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["error"]["message"].is_string()),
        (424, true),
        "{}",
        answer.text()
    );
    assert_eq!(refused.ledger(), (1, 1));
}

#[tokio::test]
async fn an_openai_stream_ends_with_done_and_holds_the_final_image() {
    let world = World::quick([drafts()]).await;
    let body = json!({ "model": "gemini-3-pro-image", "stream": true, "messages": [{ "role": "user", "content": "a red apple" }] });
    let answer = world.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    assert!(answer.text().trim_end().ends_with("data: [DONE]"), "{}", answer.text());
    let images: Vec<String> = answer
        .text()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data:")?.trim()).ok())
        .filter_map(|chunk| {
            Some(chunk["choices"][0]["delta"]["images"][0]["image_url"]["url"].as_str()?.to_owned())
        })
        .collect();
    assert_eq!(images.len(), 1);
    assert_eq!(
        decode(images[0].split_once(";base64,").unwrap().1),
        world.sim.image_for(0).unwrap()
    );
}

#[tokio::test]
async fn bad_input_is_a_clear_answer_and_nothing_is_sent() {
    let world = World::quick([]).await;
    let raw = |path: &str, body: &[u8]| {
        Request::builder()
            .method(Method::POST)
            .uri(world.url(path))
            .header("x-goog-api-key", KEY)
            .header("x-sim-call", "call")
            .body(Full::from(Bytes::copy_from_slice(body)))
            .unwrap()
    };
    for body in [&b"{\"messages\": "[..], b"\xff\xfe{}", b"", b"[1]"] {
        let answer = world.send(raw("/v1/chat/completions", body)).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.json()["error"]["message"].as_str().unwrap().len() > 10);
    }
    assert_eq!(world.ledger(), (0, 0));
    // On Google's own paths it is Google's to say.
    let answer = world.send(raw(PRO, b"{\"contents\": ")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(world.ledger(), (1, 0));
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_said_in_words() {
    let mut world = World::new(Sim::quick([]), "[retry]\nattempts = 1\n").await;
    world.upstream.take().unwrap().shutdown().await;
    let answer = world.post(PRO, &apple()).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("nothing was charged"), "{}", answer.text());
}

#[tokio::test]
async fn health_metrics_and_status_answer_and_hold_no_key() {
    let world =
        World::quick([Fault::HighDemand, Fault::None, Fault::Refused(Refusal::ImageSafety)]).await;
    world.post(&format!("{PRO}?key={KEY}"), &apple()).await;
    world.post(PRO, &apple()).await;
    let get = |path: &str| Request::get(world.url(path)).body(Full::default()).unwrap();
    assert_eq!(world.send(get("/healthz")).await.status, 200);
    let metrics = world.send(get("/metrics")).await.text();
    assert!(metrics.contains("gemini_"), "{metrics}");
    let page = world.send(get("/status")).await;
    assert!(
        page.text().contains("<html")
            && page.headers["content-type"].to_str().unwrap().starts_with("text/html")
    );
    let status = world.send(get("/status.json")).await;
    assert!(status.json().is_object());
    // As health checks ask.
    for path in ["/healthz", "/metrics", "/status"] {
        let head = Request::head(world.url(path)).body(Full::default()).unwrap();
        let answer = world.send(head).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0), "{path}");
    }
    for text in [metrics, page.text(), status.text()] {
        assert!(!text.contains("sentinel"), "{text}");
    }
}

#[tokio::test]
async fn a_shutdown_finishes_what_was_paid_for() {
    let sim = Sim::builder()
        .latency(Latency::fixed(Duration::from_millis(1200)))
        .tiny_images(true)
        .build();
    let world = World::new(sim, "").await;
    let (sim, url) = (world.sim.clone(), world.gateway.url());
    let asked = tokio::spawn({
        let (client, request) = (world.client.clone(), world.request(PRO, &apple()));
        async move {
            let (parts, body) = client.request(request).await.unwrap().into_parts();
            (parts.status, body.collect().await.unwrap().to_bytes())
        }
    });
    while sim.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let World { gateway, .. } = world;
    gateway.shutdown().await;
    let (status, body) = asked.await.unwrap();
    assert_eq!(status, 200);
    assert!(!body.is_empty());
    assert_eq!(sim.ledger().charges("call"), 1);
    let late = Client::builder(TokioExecutor::new())
        .build_http::<Full<Bytes>>()
        .request(Request::get(format!("{url}/healthz")).body(Full::default()).unwrap())
        .await;
    assert!(late.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_is_kept_outlives_the_process() {
    let dir = tempdir();
    let sim = Sim::builder()
        .latency(Latency::fixed(Duration::from_millis(800)))
        .tiny_images(true)
        .build();
    let extra = format!("[keep]\ndir = {:?}\n", dir.join("kept"));
    let world = World::new(sim.clone(), &extra).await;
    hang_up(&world, Duration::from_millis(300)).await;
    let World { gateway, .. } = world;
    // Waits for the attempt that has no caller, and writes its answer.
    gateway.shutdown().await;
    assert_eq!(sim.ledger().charges("call"), 1);
    let world = World::new(sim.clone(), &extra).await;
    let answer = world.post(PRO, &apple()).await;
    assert_eq!(answer.images(), [sim.image_for(0).unwrap()]);
    assert_eq!(sim.ledger().charges("call"), 1);
}

// A conversation that went on after a restart had lost its signatures.
#[tokio::test]
async fn thought_signatures_outlive_the_process() {
    let signature = "c2lnbmF0dXJl".repeat(8);
    let image = json!({ "inlineData": { "mimeType": "image/png", "data": "QUJD".repeat(64) } });
    let mut signed = image.clone();
    signed["thoughtSignature"] = json!(signature);
    let answer = json!({ "candidates": [{ "content": { "role": "model", "parts": [signed] }, "finishReason": "STOP" }] });
    let (url, asked) = scripted(vec![(200, JSON, answer.to_string())]).await;
    let dir = tempdir();
    let extra = format!("[signatures]\nfile = {:?}\n", dir.join("signatures"));
    let world = world_before(&url, &extra).await;
    assert_eq!(world.post(PRO, &apple()).await.status, 200);
    world.gateway.shutdown().await;
    let world = world_before(&url, &extra).await;
    let mut turn = apple();
    let contents = turn["contents"].as_array_mut().unwrap();
    contents.push(json!({ "role": "model", "parts": [image] }));
    contents.push(json!({ "role": "user", "parts": [{ "text": "greener" }] }));
    assert_eq!(world.post(PRO, &turn).await.status, 200);
    assert!(asked.lock().unwrap()[1].1.contains(&signature), "{:?}", asked.lock().unwrap()[1]);
}

/// An upstream that gives these answers, one after the other and the last again and again, and
/// remembers what it was asked.
async fn scripted(
    answers: Vec<(u16, &'static str, String)>,
) -> (String, Arc<Mutex<Vec<(String, String)>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let asked = asked.clone();
        move |request: Request<axum::body::Body>| {
            let (asked, answers) = (asked.clone(), answers.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let mut asked = asked.lock().unwrap();
                asked.push((parts.uri.to_string(), String::from_utf8_lossy(&body).into_owned()));
                let (status, kind, body) =
                    answers[(asked.len() - 1).min(answers.len() - 1)].clone();
                Response::builder()
                    .status(status)
                    .header("content-type", kind)
                    .body(axum::body::Body::from(body))
                    .unwrap()
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handler)).await });
    (url, asked)
}

async fn world_before(url: &str, extra: &str) -> World {
    let config = config(url, extra);
    let gateway = tower_gemini_gateway::start(&config)
        .await
        .unwrap_or_else(|error| panic!("{error}\n{config}"));
    World {
        sim: Sim::quick([]),
        upstream: None,
        gateway,
        client: Client::builder(TokioExecutor::new()).build_http(),
    }
}

const JSON: &str = "application/json";

fn chat(more: &str) -> Value {
    let mut chat = json!({ "model": "gemini-3-pro-image", "messages": [{ "role": "user", "content": "a red apple" }] });
    chat.as_object_mut()
        .unwrap()
        .extend(serde_json::from_str::<serde_json::Map<String, Value>>(more).unwrap());
    chat
}

// Clients go by the status, and a front end that gave up waiting says nothing of the money.
#[tokio::test]
async fn a_status_that_clients_send_again_for_is_not_passed_on_where_money_may_be_gone() {
    let busy =
        r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
    for (path, body, answer) in [
        (PRO, apple(), (504, "text/plain", "upstream request timeout")),
        ("/v1/chat/completions", chat("{}"), (504, "text/plain", "upstream request timeout")),
        // Within a 200 nobody knows what it cost.
        ("/v1/chat/completions", chat("{}"), (200, JSON, busy)),
        (
            "/v1/images/generations",
            json!({ "model": "gemini-3-pro-image", "prompt": "a red apple" }),
            (200, JSON, busy),
        ),
    ] {
        let (url, asked) = scripted(vec![(answer.0, answer.1, answer.2.to_owned())]).await;
        let world = world_before(&url, "").await;
        let (mut named, plain) = (world.request(path, &body), world.request(path, &body));
        named.headers_mut().insert("idempotency-key", "one".parse().unwrap());
        for (sent, request) in [(1, named.clone()), (1, named), (2, plain)] {
            let told = world.send(request).await;
            assert_eq!(
                (told.status.as_u16(), &told.headers["x-should-retry"]),
                (424, &"false".parse().unwrap()),
                "{path} {answer:?}"
            );
            assert_eq!(asked.lock().unwrap().len(), sent);
            if path != PRO {
                assert!(told.json()["error"]["message"].is_string(), "{}", told.text());
            }
        }
    }
}

#[tokio::test]
async fn a_call_for_words_never_falls_back_to_an_image() {
    let busy =
        r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
    let (url, asked) = scripted(vec![(503, JSON, busy.to_owned())]).await;
    let world = world_before(
        &url,
        "[fallback]\nmodels = [\"gemini-3-pro-image\"]\n[retry]\nattempts = 1\n",
    )
    .await;
    let answer =
        world.post("/v1beta/models/gemini-2.5-flash:generateContent", &apple_in_words()).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    let asked = asked.lock().unwrap();
    assert!(asked.len() == 1 && asked[0].0.contains("gemini-2.5-flash:"), "{asked:?}");
}

fn apple_in_words() -> Value {
    json!({ "contents": [{ "role": "user", "parts": [{ "text": "describe a red apple" }] }] })
}

#[tokio::test]
async fn the_gateways_own_key_is_not_told_to_its_callers_by_googles_errors() {
    let (_dir, extra) = own_key();
    let denied = format!(
        r#"{{"error":{{"code":403,"message":"Permission denied: Consumer 'api_key:{KEY}' has been suspended.","status":"PERMISSION_DENIED"}}}}"#
    );
    let (url, _) = scripted(vec![(403, JSON, denied)]).await;
    let world = world_before(&url, &extra).await;
    for (path, body) in
        [(PRO, apple()), ("/v1/chat/completions", chat("{}")), ("/v1beta/files", json!({}))]
    {
        let mut request = world.request(path, &body);
        request
            .headers_mut()
            .insert("x-goog-api-key", "token-of-alice-0123456789".parse().unwrap());
        let answer = world.send(request).await;
        let text = answer.text();
        assert_eq!(answer.status, 403, "{text}");
        assert!(
            text.contains("suspended") && text.contains("***") && !text.contains("sentinel"),
            "{path}: {text}"
        );
    }
}

// Once the head is out, Google's errors are events of a stream, or members of an array.
#[tokio::test]
async fn the_gateways_own_key_is_not_told_within_a_stream_either() {
    let (_dir, extra) = own_key();
    let begun = r#"{"candidates":[{"content":{"parts":[{"text":"Here"}],"role":"model"}}]}"#;
    let denied = format!(
        r#"{{"error":{{"code":403,"message":"Permission denied: Consumer 'api_key:{KEY}' has been suspended.","status":"PERMISSION_DENIED"}}}}"#
    );
    for (path, body, kind, told) in [
        (
            "/v1beta/models/gemini-3-pro-image:streamGenerateContent?alt=sse",
            apple(),
            "text/event-stream",
            0,
        ),
        ("/v1beta/models/gemini-3-pro-image:streamGenerateContent", apple(), JSON, 1),
        ("/v1/chat/completions", chat(r#"{"stream":true}"#), "text/event-stream", 0),
    ] {
        let answer = match told {
            0 => format!("data: {begun}\r\n\r\ndata: {denied}\r\n\r\n"),
            _ => format!("[{begun}\n,\r\n{denied}\n]"),
        };
        let (url, _) = scripted(vec![(200, kind, answer)]).await;
        let world = world_before(&url, &extra).await;
        let mut request = world.request(path, &body);
        request
            .headers_mut()
            .insert("x-goog-api-key", "token-of-alice-0123456789".parse().unwrap());
        let text = world.send(request).await.text();
        assert!(
            text.contains("suspended") && text.contains("***") && !text.contains("sentinel"),
            "{path}: {text}"
        );
    }
}

#[tokio::test]
async fn a_timeout_between_two_bytes_does_not_end_a_stream_that_goes_on() {
    let sim = Sim::builder()
        .latency(Latency::none())
        .tiny_images(true)
        .chunks(600, Duration::from_millis(400))
        .build();
    let world = World::new(sim, "").await;
    let mut request = world.request("/v1/chat/completions", &chat(r#"{"stream":true}"#));
    request.headers_mut().insert("x-stainless-read-timeout", "1".parse().unwrap());
    let began = tokio::time::Instant::now();
    let answer = world.send(request).await;
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    let text = answer.text();
    assert!(text.contains("data:image/") && text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn vertex_has_an_openai_door_of_its_own() {
    let (url, asked) = scripted(vec![(200, JSON, "{}".to_owned())]).await;
    let world = world_before(&url, "").await;
    let path = "/v1/projects/p/locations/global/endpoints/openapi/chat/completions";
    let body = chat(r#"{"model":"google/gemini-3-pro-image"}"#);
    let request = Request::post(world.url(path))
        .header("authorization", "Bearer ya29.x")
        .body(Full::from(body.to_string()));
    assert_eq!(world.send(request.unwrap()).await.status, 200);
    assert_eq!(*asked.lock().unwrap(), [(path.to_owned(), body.to_string())]);
}

/// Takes so many bytes of an answer and hangs up.
async fn some_of(world: &World, request: &str, bytes: usize) {
    let mut stream =
        tokio::net::TcpStream::connect(world.gateway.url().trim_start_matches("http://"))
            .await
            .unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut taken = vec![0; bytes];
    stream.read_exact(&mut taken).await.unwrap();
}

// What counts as delivered are the bytes that the caller gets, in whatever words.
#[tokio::test]
async fn an_answer_that_was_cut_on_its_way_to_the_caller_is_there_for_its_next_request() {
    let data = "QUJD".repeat(6 << 20);
    let answer = format!(
        r#"{{"candidates":[{{"content":{{"parts":[{{"inlineData":{{"mimeType":"image/png","data":"{data}"}}}}]}},"finishReason":"STOP"}}]}}"#
    );
    let (url, asked) = scripted(vec![(200, JSON, answer)]).await;
    let images = |n: usize| json!({ "model": "gemini-3-pro-image", "prompt": "apples", "n": n });
    for (path, body, calls) in [
        (PRO, apple(), 1),
        ("/v1/chat/completions", chat("{}"), 1),
        ("/v1/images/generations", images(1), 1),
        ("/v1/images/generations", images(3), 3),
    ] {
        asked.lock().unwrap().clear();
        let world = world_before(&url, "").await;
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // And again: what was kept and cut on its way is kept on.
        for n in 0..3 {
            some_of(&world, &request, (n * (calls - 1) * data.len()).max(1 << 20) / 2).await;
        }
        let mut again =
            Request::post(world.url(path)).header("authorization", format!("Bearer {KEY}"));
        again.headers_mut().unwrap().insert("content-type", JSON.parse().unwrap());
        let told = world.send(again.body(Full::from(body)).unwrap()).await;
        assert!(
            told.status == 200 && told.body.len() > calls * data.len(),
            "{} {}",
            told.status,
            told.body.len()
        );
        assert_eq!(asked.lock().unwrap().len(), calls, "{path}");
    }
}

#[tokio::test]
async fn a_reload_neither_forgets_what_is_kept_nor_what_was_spent() {
    let sim = Sim::builder()
        .latency(Latency::fixed(Duration::from_millis(600)))
        .tiny_images(true)
        .build();
    let world = World::new(sim, "[spending]\nper_day = 3.0\n").await;
    hang_up(&world, Duration::from_millis(300)).await;
    let config = config(
        &world.upstream.as_ref().unwrap().url(),
        "[keep]\nretention = \"20m\"\n[spending]\nper_day = 3.0\nper_hour = 100.0\n",
    );
    world.gateway.reload(&config).unwrap();
    assert_eq!(world.post(PRO, &apple()).await.status, 200);
    assert_eq!(world.ledger(), (1, 1), "what it hung up on");
    let status = world
        .send(Request::get(world.url("/status.json")).body(Full::default()).unwrap())
        .await
        .json();
    let spent = status["spending"][0]["spent"]["at_least_microusd"].as_u64();
    assert!(spent.is_some_and(|spent| spent > 100_000), "{}", status["spending"]);
}

// Fifty dollars that a gateway may spend in all were fifty dollars after each restart.
#[tokio::test]
async fn a_total_cap_counts_what_was_spent_before_this_start() {
    let spent = "[spending]\ntotal = 50.0\nstarting_balance = 49.0\n";
    let world = World::new(Sim::quick([]), spent).await;
    let answer = world.post(PRO, &apple()).await;
    assert_ne!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["error"]["details"][0]["domain"], "tower-gemini", "{}", answer.text());
    assert_eq!(world.ledger(), (0, 0));
    let world = World::new(Sim::quick([]), "[spending]\ntotal = 50.0\n").await;
    assert_eq!(world.post(PRO, &apple()).await.status, 200);
}

#[tokio::test]
async fn a_rotated_key_of_the_gateways_makes_no_other_callers() {
    let (dir, extra) = own_key();
    let world = World::new(Sim::quick([]), &extra).await;
    let ask = || {
        Request::post(world.url(PRO))
            .header("authorization", "Bearer token-of-alice-0123456789")
            .header("idempotency-key", "one")
            .header("x-sim-call", "call")
            .body(Full::from(apple().to_string()))
            .unwrap()
    };
    let first = world.send(ask()).await;
    assert_eq!(first.status, 200, "{}", first.text());
    std::fs::write(dir.join("key"), "AIzaSyA-sentinel-rotated-3456789abcdefg").unwrap();
    let config = config(&world.upstream.as_ref().unwrap().url(), &extra);
    world.gateway.reload(&config).unwrap();
    let again = world.send(ask()).await;
    assert_eq!(world.ledger(), (1, 1), "{}", again.status);
    assert_eq!(first.body, again.body);
}

#[tokio::test]
async fn an_openai_continuation_is_told_in_openais_words() {
    let world = World::quick([]).await;
    let answer = world
        .post("/v1/chat/completions", &chat(r#"{"google":{"continuation_token":"next"}}"#))
        .await;
    assert!(
        answer.json()["choices"].is_array() || answer.json()["error"]["type"].is_string(),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn an_oauth_token_in_the_query_is_a_bearer() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let s = seen.clone();
    let app = axum::Router::new().fallback(move |request: Request<axum::body::Body>| {
        let s = s.clone();
        async move {
            s.lock().unwrap().push(format!("{} {:?}", request.uri(), request.headers()));
            "{}"
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let world = world_before(&url, "").await;
    world
        .send(
            Request::get(world.url("/v1beta/files?access_token=ya29.sentinel"))
                .body(Full::default())
                .unwrap(),
        )
        .await;
    assert!(seen.lock().unwrap()[0].contains("\"authorization\""), "{:?}", seen.lock().unwrap());
}

// base64 makes a form's images a third longer: what was within the gateway's bound was beyond it
// once it was translated.
#[tokio::test]
async fn a_form_that_is_taken_is_protected() {
    let world = World::new(Sim::quick([]), "").await;
    let config =
        config(&world.upstream.as_ref().unwrap().url(), "[server]\nmax_body = \"64KiB\"\n");
    let gateway = tower_gemini_gateway::start(&config).await.unwrap();
    let mut image = b"\x89PNG\r\n\x1a\n".to_vec();
    image.extend((0..60_000u32).map(|n| (n * 31 % 251) as u8));
    let mut form = b"--XX\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\ngemini-3-pro-image\r\n--XX\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\nbluer\r\n--XX\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a.png\"\r\ncontent-type: image/png\r\n\r\n".to_vec();
    form.extend(&image);
    form.extend(b"\r\n--XX--\r\n");
    for _ in 0..2 {
        let request = Request::post(format!("{}/v1/images/edits", gateway.url()))
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", "multipart/form-data; boundary=XX")
            .header("x-sim-call", "call")
            .header("idempotency-key", "one")
            .body(Full::from(form.clone()))
            .unwrap();
        let answer = world.send(request).await;
        assert_eq!((answer.status.as_u16(), world.ledger()), (200, (1, 1)), "{}", answer.text());
    }
}

// axum sent an empty reply wherever the upstream used chunked encoding: a body that was rebuilt kept
// the headers of the one before.
#[tokio::test]
async fn a_mounted_gateway_delivers_what_an_upstream_sent_in_chunks() {
    let answer = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"QUJD"}}]},"finishReason":"STOP"}]}"#;
    let url = heads(200, "content-type", JSON.to_owned(), answer).await;
    let config = tower_gemini_gateway::Config::parse(&config(&url, ""), "gateway.toml").unwrap();
    let gateway = tower_gemini_gateway::Gateway::new(&config).await.unwrap();
    let app = axum::Router::new().nest("/google", gateway.router());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = format!("http://{}/google", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = Client::builder(TokioExecutor::new()).build_http();
    for (path, body) in [
        (PRO, apple()),
        ("/v1/chat/completions", chat("{}")),
        ("/v1/images/generations", json!({ "model": "gemini-3-pro-image", "prompt": "x" })),
        ("/v1beta/models/gemini-3-pro-image:countTokens", apple()),
    ] {
        let request = Request::post(format!("{own}{path}"))
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", JSON)
            .body(Full::<Bytes>::from(body.to_string()))
            .unwrap();
        let response = client.request(request).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&text).contains("QUJD"), "{path}: {text:?}");
    }
}

// A path that no upstream of the file answers is nobody else's either.
#[tokio::test]
async fn a_path_without_an_upstream_of_its_kind_is_refused_and_nothing_is_sent() {
    let (url, asked) = scripted(vec![(200, JSON, "{}".to_owned())]).await;
    let file = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"r\"\nkind = \"relay\"\nbase_url = \"{url}\"\n"
    );
    let mut world = world_before(&url, "").await;
    world.gateway = tower_gemini_gateway::start(&file).await.unwrap();
    let vertex = "/v1/projects/p/locations/global/publishers/google/models/gemini-3-pro-image:generateContent";
    let answer = world.post(vertex, &apple()).await;
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert!(answer.text().contains("[[upstream]]"), "{}", answer.text());
    assert!(asked.lock().unwrap().is_empty());
}

async fn heads(status: u16, name: &'static str, value: String, body: &'static str) -> String {
    let app = axum::Router::new().fallback(move |_: Request<axum::body::Body>| {
        let value = value.clone();
        async move {
            Response::builder()
                .status(status)
                .header(name, value)
                .body(axum::body::Body::from_stream(futures_once(body)))
                .unwrap()
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

fn futures_once(body: &'static str) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> {
    futures::stream::once(async move { Ok(Bytes::from_static(body.as_bytes())) })
}

#[tokio::test]
async fn the_gateways_own_key_is_not_told_in_a_head() {
    let (_dir, extra) = own_key();
    for (status, name) in
        [(200, "location"), (302, "location"), (308, "location"), (401, "www-authenticate")]
    {
        let url = heads(status, name, format!("https://x/?key={KEY}&a=b"), "{}").await;
        let world = world_before(&url, &extra).await;
        let request = Request::get(world.url("/v1beta/files/a:download"))
            .header("x-goog-api-key", "token-of-alice-0123456789");
        let answer = world.send(request.body(Full::default()).unwrap()).await;
        assert!(!format!("{:?}", answer.headers).contains("sentinel"), "{status}");
    }
}

#[test]
fn what_callers_were_still_waiting_for_at_the_end_is_not_paid_for_again() {
    let dir = tempdir();
    let rt = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let (outside, first, second) = (rt(), rt(), rt());
    let sim = Sim::builder()
        .latency(Latency::fixed(Duration::from_millis(1500)))
        .tiny_images(true)
        .build();
    let upstream = outside.block_on(serve(sim.clone(), "127.0.0.1:0".parse().unwrap())).unwrap();
    let extra =
        format!("[server]\nshutdown_grace = \"200ms\"\n[keep]\ndir = {:?}\n", dir.join("kept"));
    let config = config(&upstream.url(), &extra);
    let ask = |url: String| async move {
        let request = Request::post(format!("{url}{PRO}"))
            .header("x-goog-api-key", KEY)
            .header("content-type", "application/json")
            .header("x-sim-call", "call")
            .body(Full::from(apple().to_string()))
            .unwrap();
        let answer = Client::builder(TokioExecutor::new())
            .build_http::<Full<Bytes>>()
            .request(request)
            .await?;
        Ok::<_, hyper_util::client::legacy::Error>(answer.status())
    };
    let gateway = first.block_on(tower_gemini_gateway::start(&config)).unwrap();
    let call = outside.spawn(ask(gateway.url()));
    while sim.requests() == 0 {
        outside.block_on(async { tokio::time::sleep(Duration::from_millis(10)).await });
    }
    first.block_on(gateway.shutdown());
    first.shutdown_timeout(Duration::from_millis(200));
    assert!(outside.block_on(call).unwrap().is_err(), "the connection was cut");
    let gateway = second.block_on(tower_gemini_gateway::start(&config)).unwrap();
    assert_eq!(outside.block_on(ask(gateway.url())).unwrap(), 424);
    outside.block_on(async { tokio::time::sleep(Duration::from_millis(1000)).await });
    assert_eq!(sim.ledger().charges("call"), 1);
}

/// A directory that goes with its test.
struct TempDir(std::path::PathBuf);

impl std::ops::Deref for TempDir {
    type Target = std::path::Path;

    fn deref(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A configuration with a key of the gateway's own, and the directory that it is in.
fn own_key() -> (TempDir, String) {
    let dir = tempdir();
    std::fs::write(dir.join("key"), KEY).unwrap();
    std::fs::write(dir.join("tokens"), "# who: token\nalice:token-of-alice-0123456789\n").unwrap();
    let (key, tokens) = (dir.join("key"), dir.join("tokens"));
    let extra =
        format!("api_key_file = {key:?}\n[auth]\nmode = \"tokens\"\ntokens_file = {tokens:?}\n");
    (dir, extra)
}

fn tempdir() -> TempDir {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("gateway-test-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    TempDir(dir)
}
