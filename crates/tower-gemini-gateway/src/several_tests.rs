//! Several images of one request, with the simulator as the client in process and in paused time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower_gemini::clock::SystemClock;
use tower_gemini_sim::{Fault, Latency, Refusal, Sim};

use crate::config::Config;
use crate::handler::handle;
use crate::snapshot::Snapshot;

struct World {
    sim: Sim,
    gateway: Arc<Snapshot>,
}

impl World {
    fn new(faults: impl IntoIterator<Item = Fault>, more: &str) -> Self {
        let latency = Latency::fixed(Duration::from_secs(2));
        let sim = Sim::builder().script(faults).latency(latency).tiny_images(true).build();
        let config = format!("[responses]\nreport_headers = true\n{more}");
        let config = Config::parse(&config, "gateway.toml").unwrap();
        let gateway = Arc::new(Snapshot::over(sim.service(), SystemClock, &config, None).unwrap());
        Self { sim, gateway }
    }

    async fn send(&self, path: &str, body: &Value) -> Response<Body> {
        self.send_keyed(path, body, None).await
    }

    async fn send_keyed(&self, path: &str, body: &Value, key: Option<&str>) -> Response<Body> {
        let mut request = Request::post(path)
            .header("authorization", "Bearer AIzaSyA-key-0123456789abcdefghijklmnopq")
            .header("content-type", "application/json")
            .header("x-sim-call", "call");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Body::from(body.to_string())).unwrap();
        handle(self.gateway.clone(), Instant::now(), request).await
    }

    async fn images(&self, n: u64) -> (u16, HeaderMap, Value) {
        read(self.send(IMAGES, &apples(n)).await).await
    }

    /// How many requests were sent, and how many of them were charged.
    fn ledger(&self) -> (usize, usize) {
        let ledger = self.sim.ledger();
        (ledger.sends("call"), ledger.charges("call"))
    }

    /// Whether these are the images that the simulator made, in whatever order.
    fn made(&self, answer: &Value, of: impl IntoIterator<Item = usize>) {
        let mut expected: Vec<Bytes> =
            of.into_iter().map(|n| self.sim.image_for(n).unwrap()).collect();
        let images = answer["data"].as_array().unwrap().iter();
        let mut images: Vec<_> = images
            .map(|image| Bytes::from(STANDARD.decode(image["b64_json"].as_str().unwrap()).unwrap()))
            .collect();
        images.sort();
        expected.sort();
        assert!(images == expected, "{} images", images.len());
    }
}

const IMAGES: &str = "/v1/images/generations";

fn apples(n: u64) -> Value {
    json!({ "model": "gemini-3-pro-image", "prompt": "red apples", "n": n })
}

async fn read(response: Response<Body>) -> (u16, HeaderMap, Value) {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap())
}

#[tokio::test(start_paused = true)]
async fn as_many_images_come_as_were_asked_for() {
    let world = World::new([], "");
    let (_, _, one) = world.images(1).await;
    let started = Instant::now();
    let (status, headers, answer) = world.images(3).await;
    assert_eq!((status, world.ledger()), (200, (4, 4)), "{answer}");
    world.made(&answer, 1..4);
    assert_eq!(headers["x-gemini-attempts"], "3");
    assert_eq!(headers["content-type"], "application/json");
    assert!(!headers.contains_key("content-length") && !headers.contains_key("x-gemini-missing"));
    assert!(started.elapsed() < Duration::from_secs(4), "all at once");
    let tokens = |answer: &Value| answer["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&answer), 3 * tokens(&one));
    assert_eq!(answer["output_format"], one["output_format"]);
    let started = Instant::now();
    let (_, _, answer) = world.images(10).await;
    world.made(&answer, 4..14);
    assert_eq!(started.elapsed().as_secs(), 6, "four at once");
}

#[tokio::test(start_paused = true)]
async fn a_chat_has_as_many_choices_as_were_asked_for() {
    let world = World::new([], "");
    let body = json!({ "model": "gemini-3-pro-image", "n": 2, "messages": [{ "role": "user", "content": "an apple" }] });
    let (status, _, answer) = read(world.send("/v1/chat/completions", &body).await).await;
    assert_eq!((status, world.ledger()), (200, (2, 2)), "{answer}");
    for (n, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(n), &json!("stop")));
        assert_eq!(choice["message"]["images"].as_array().unwrap().len(), 1);
    }
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_did_not_wait_for_is_there_for_its_next_request() {
    let world = World::new([], "");
    let sent = tokio::time::timeout(Duration::from_secs(1), world.images(3));
    assert!(sent.await.is_err());
    let (status, headers, answer) = world.images(3).await;
    assert_eq!((status, world.ledger()), (200, (3, 3)), "{answer}");
    assert_eq!(headers["x-gemini-redeemed"], "3");
    assert_eq!(headers["x-gemini-attempts"], "0");
    world.made(&answer, 0..3);
    // Once: the next ones are new.
    world.images(3).await;
    assert_eq!(world.ledger(), (6, 6));
}

// A stored image that another model had drawn looked like what was asked for, unless it was the
// first.
#[tokio::test(start_paused = true)]
async fn any_of_several_images_that_differs_from_what_was_asked_for_is_told_also_when_stored() {
    let (pro, flash) = ("gemini-3-pro-image", "gemini-3.1-flash-image");
    let chain = format!("[fallback]\nmodels = [\"{pro}\", \"{flash}\"]\n");
    let world = World::new([Fault::None, Fault::Overloaded], &chain);
    let body = apples(2);
    let leaves = tokio::time::timeout(Duration::from_secs(1), world.send(IMAGES, &body)).await;
    assert!(leaves.is_err(), "the client leaves");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (status, headers, _) = world.images(2).await;
    assert_eq!((status, world.ledger()), (200, (3, 2)), "nothing is sent again");
    assert_eq!(headers["x-gemini-redeemed"], "2");
    assert_eq!(headers["x-gemini-degraded"], format!("model {pro} -> {flash}").as_str());
    assert_eq!(headers["x-gemini-model"], flash);
    let world = World::new([Fault::None, Fault::Overloaded], &chain);
    let (_, headers, _) = world.images(2).await;
    assert_eq!(headers["x-gemini-degraded"], format!("model {pro} -> {flash}").as_str());
}

// The first image had been read to its end when the client was cut off in the second, so it counted
// as delivered: the resend paid for it again.
#[tokio::test(start_paused = true)]
async fn a_response_that_is_cut_within_any_image_is_there_as_a_whole() {
    for (fault, came) in [(None, 3), (Some(Fault::Refused(Refusal::ImageSafety)), 2)] {
        let world = World::new(fault, "");
        // Each image is a chunk, and the end is one.
        for taken in 0..=came + 1 {
            let mut body = world.send(IMAGES, &apples(3)).await.into_body();
            for _ in 0..taken {
                body.frame().await.unwrap().unwrap();
            }
        }
        let (status, headers, answer) = world.images(3).await;
        assert_eq!((status, world.ledger()), (200, (3, 3)), "{answer}");
        assert_eq!(headers.contains_key("x-gemini-missing"), came < 3);
        assert_eq!(answer["data"].as_array().unwrap().len(), came);
        world.images(3).await;
        assert_eq!(world.ledger(), (6, 6), "once");
    }
}

#[tokio::test(start_paused = true)]
async fn images_that_came_are_delivered_and_the_header_says_what_is_missing() {
    let world = World::new([Fault::Refused(Refusal::ImageSafety)], "");
    let (status, headers, answer) = world.images(3).await;
    assert_eq!((status, world.ledger()), (200, (3, 3)), "{answer}");
    world.made(&answer, 1..3);
    let missing = headers["x-gemini-missing"].to_str().unwrap();
    assert!(missing.starts_with("1 of 3: the image was refused (IMAGE_SAFETY)"), "{missing}");
}

#[tokio::test(start_paused = true)]
async fn without_an_image_the_error_that_may_have_cost_something_is_told() {
    let once = "[retry]\nattempts = 1\n";
    let free = || Fault::Overloaded;
    for (faults, told, then) in [
        ([free(), free(), free()], 503, 6),
        // A minute long the one that may have been paid for is not sent again.
        ([free(), Fault::CutBody { at: 700 }, free()], 424, 5),
        ([free(), free(), Fault::Refused(Refusal::ImageSafety)], 400, 6),
    ] {
        let world = World::new(faults.clone(), once);
        let (status, headers, answer) = world.images(3).await;
        assert_eq!(status, told, "{faults:?} {answer}");
        assert_eq!(headers["x-gemini-attempts"], "3");
        assert!(answer["error"]["message"].is_string(), "{answer}");
        let (status, _, answer) = world.images(3).await;
        assert_eq!((status, world.ledger().0), (200, then), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_key_gets_the_same_images_as_often_as_it_is_sent() {
    let world = World::new([], "");
    let (_, _, first) = read(world.send_keyed(IMAGES, &apples(3), Some("a")).await).await;
    let (_, headers, again) = read(world.send_keyed(IMAGES, &apples(3), Some("a")).await).await;
    assert_eq!(headers["x-gemini-redeemed"], "3");
    assert_eq!((again, world.ledger()), (first, (3, 3)));
    let mut other = apples(3);
    other["prompt"] = json!("green apples");
    let (status, _, answer) = read(world.send_keyed(IMAGES, &other, Some("a")).await).await;
    assert_eq!((status, world.ledger()), (422, (3, 3)), "{answer}");
}

fn chat(n: u64) -> Value {
    json!({
        "model": "gemini-3-pro-image", "n": n, "stream": true,
        "stream_options": { "include_usage": true },
        "messages": [{ "role": "user", "content": "an apple" }],
    })
}

/// The events of a stream.
fn events(text: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(text).unwrap();
    let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    events.map(|event| serde_json::from_str(event).unwrap_or(json!(event))).collect()
}

impl World {
    async fn chat_events(&self, n: u64) -> (HeaderMap, Vec<Value>) {
        let response = self.send("/v1/chat/completions", &chat(n)).await;
        assert_eq!(response.status(), 200);
        let (parts, body) = response.into_parts();
        (parts.headers, events(&body.collect().await.unwrap().to_bytes()))
    }
}

/// How many images each of so many choices got, and how many times it ended.
fn choices(events: &[Value], n: usize) -> Vec<(usize, usize)> {
    let mut choices = vec![(0, 0); n];
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        let (images, ends) = &mut choices[choice["index"].as_u64().unwrap() as usize];
        *images += choice["delta"]["images"].as_array().map_or(0, Vec::len);
        *ends += usize::from(choice["finish_reason"] == "stop");
    }
    choices
}

#[tokio::test(start_paused = true)]
async fn a_streamed_chat_has_as_many_choices_as_were_asked_for() {
    let world = World::new([], "");
    let (_, one) = world.chat_events(1).await;
    let started = Instant::now();
    let (headers, several) = world.chat_events(5).await;
    assert_eq!(world.ledger(), (6, 6));
    assert_eq!(choices(&several, 5), [(1, 1); 5]);
    assert_eq!(started.elapsed().as_secs(), 4, "four at once");
    assert_eq!(headers["content-type"], "text/event-stream; charset=utf-8");
    let tokens = |events: &[Value]| {
        let usages = events.iter().filter_map(|event| event["usage"]["total_tokens"].as_u64());
        usages.collect::<Vec<_>>()
    };
    assert_eq!(tokens(&several), [5 * tokens(&one)[0]], "once, and the sum");
    let ends = several.iter().filter(|event| **event == "[DONE]").count();
    assert!(ends == 1 && several.last().unwrap() == "[DONE]");
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_several_that_is_cut_anywhere_is_there_as_a_whole() {
    let world = World::new([], "");
    let whole = world.chat_events(3).await.1.len();
    assert_eq!(world.ledger(), (3, 3));
    for taken in 0..=whole + 1 {
        let mut body = world.send("/v1/chat/completions", &chat(3)).await.into_body();
        for _ in 0..taken {
            if let Some(frame) = body.frame().await {
                frame.unwrap();
            }
        }
    }
    // The last of them was taken to its end.
    assert_eq!(world.ledger(), (6, 6));
    let (_, events) = world.chat_events(3).await;
    assert_eq!((choices(&events, 3), world.ledger()), (vec![(1, 1); 3], (9, 9)));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_one_of_several_comes_behind_all_that_the_others_made() {
    let once = "[retry]\nattempts = 1\n";
    let refused = Fault::Refused(Refusal::ImageSafety);
    for (fault, told, came) in [
        (Fault::Overloaded, Some("overloaded"), 2),
        (Fault::CutBody { at: 700 }, Some("charged"), 2),
        // A refusal is a choice like any other.
        (refused, None, 2),
    ] {
        let world = World::new([fault.clone()], once);
        let (_, events) = world.chat_events(3).await;
        let images = choices(&events, 3).iter().map(|(images, _)| images).sum::<usize>();
        assert_eq!((images, world.ledger().0), (came, 3), "{fault:?}");
        let last = events.last().unwrap();
        match told {
            None => assert_eq!(last, "[DONE]"),
            Some(told) => {
                let message = last["error"]["message"].as_str().unwrap_or_default();
                assert!(message.contains(told), "{fault:?} {last}");
            }
        }
    }
    // Without any choice it is no stream.
    let world = World::new([Fault::Overloaded, Fault::Overloaded], once);
    let response = world.send("/v1/chat/completions", &chat(2)).await;
    assert_eq!(response.status(), 503);
}
