//! Time, limits, checks and bills.
// The exemption of tests from these lints does not reach helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{CAT, FLASH, FLASH31, PRO, final_image, generate, post, send, sized, stream, tagged};
use tower_gemini_sim::{
    Delivered, Fault, ImageOptions, Latency, Quota, Record, Shape, Sim, Size, Weather, hash64,
};
use tower_service::Service as _;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[tokio::test(start_paused = true)]
async fn a_good_answer_looks_like_googles() {
    let sim = Sim::quick([]);
    let taken = send(&sim, generate(PRO)).await.unwrap();
    assert_eq!(
        (taken.status, taken.content_type.as_str()),
        (200, "application/json; charset=UTF-8")
    );
    assert!(
        taken
            .text()
            .contains("            \"inlineData\": {\n              \"mimeType\": \"image/jpeg\",\n              \"data\": \"")
    );
    let answer = taken.json();
    assert_eq!(answer["candidates"][0]["finishReason"], "STOP");
    assert_eq!(answer["modelVersion"], PRO);
    assert_eq!(answer["usageMetadata"]["candidatesTokensDetails"][0]["tokenCount"], 1120);
    assert!(answer["candidates"][0]["content"]["parts"][1]["thoughtSignature"].is_string());

    let flash = send(&sim, generate(FLASH)).await.unwrap().json();
    assert_eq!(
        flash["candidates"][0]["content"]["parts"][1]["inlineData"]["mimeType"],
        "image/png"
    );
    assert_eq!(flash["usageMetadata"]["candidatesTokensDetails"][0]["tokenCount"], 1290);
    assert!(flash["candidates"][0]["content"]["parts"][1]["thoughtSignature"].is_null());
}

#[tokio::test(start_paused = true)]
async fn each_size_has_its_pixels_tokens_and_price() {
    let sim = Sim::quick([]);
    for (model, size, tokens) in [
        (FLASH31, "512", 747),
        (FLASH31, "1K", 1120),
        (FLASH31, "4K", 2520),
        (PRO, "2K", 1120),
        (PRO, "4K", 2000),
    ] {
        let answer = send(&sim, sized(model, size)).await.unwrap().json();
        assert_eq!(
            answer["usageMetadata"]["candidatesTokensDetails"][0]["tokenCount"], tokens,
            "{model} {size}"
        );
        let record = sim.ledger().requests().last().unwrap().clone();
        assert_eq!((record.size.map(Size::as_str), record.image_tokens), (Some(size), tokens));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_size_answer_weighs_megabytes() {
    let images = ImageOptions { shape: Shape::with_drafts(2), ..ImageOptions::default() };
    let sim = Sim::builder().latency(Latency::none()).images(images).build();
    let taken = send(&sim, generate(PRO)).await.unwrap();
    assert!((5_000_000..12_000_000).contains(&taken.body.len()), "{}", taken.body.len());
    assert_eq!(final_image(&taken.json()).unwrap(), sim.image_for(0).unwrap());
}

#[tokio::test(start_paused = true)]
async fn one_seed_is_one_trace() {
    async fn trace(seed: u64) -> serde_json::Value {
        let sim =
            Sim::builder().seed(seed).weather(Weather::everything(0.6)).tiny_images(true).build();
        let mut answers = Vec::new();
        for number in 0..150 {
            let request = if number % 2 == 0 { generate(PRO) } else { stream(FLASH31) };
            let answer = tokio::time::timeout(seconds(700), send(&sim, request)).await;
            answers.push(match answer {
                Ok(Ok(taken)) => hash64(&taken.body),
                Ok(Err(error)) => hash64(error.to_string().as_bytes()),
                Err(_) => 0,
            });
        }
        serde_json::json!({ "answers": answers, "ledger": sim.ledger() })
    }
    let (one, again, other) = (trace(7).await, trace(7).await, trace(8).await);
    assert_eq!(one, again);
    assert_ne!(one, other);
    assert_eq!(one["ledger"]["totals"]["requests"], 150);
}

#[tokio::test(start_paused = true)]
async fn a_limit_holds_in_every_window_of_sixty_seconds() {
    let quota = Quota { rpm: Some(5), ..Quota::UNLIMITED };
    let sim = Sim::builder()
        .latency(Latency::none())
        .tiny_images(true)
        .quota(quota)
        .project("key-1", "p")
        .project("key-2", "p")
        .build();
    let mut admitted = Vec::new();
    for step in 0..300 {
        let mut request = generate(PRO);
        if step % 2 == 1 {
            request.headers_mut().insert("x-goog-api-key", "key-2".parse().unwrap());
        }
        let taken = send(&sim, request).await.unwrap();
        match taken.status {
            200 => admitted.push(sim.now()),
            429 => {
                let hint =
                    taken.json()["error"]["details"][2]["retryDelay"].as_str().unwrap().to_owned();
                assert!(hint.ends_with('s'), "{hint}");
            }
            status => panic!("{status}"),
        }
        tokio::time::sleep(Duration::from_millis(1_700)).await;
    }
    assert!(admitted.len() >= 40, "{}", admitted.len());
    for window in admitted.windows(6) {
        assert!(window[5] - window[0] >= seconds(60), "two keys of one project share its limit");
    }
    let totals = sim.totals();
    assert_eq!(totals.quota_requests, admitted.len());
    assert_eq!(totals.charged, admitted.len());
}

#[tokio::test(start_paused = true)]
async fn the_hint_of_an_enforced_limit_is_right() {
    let quota = Quota { rpm: Some(1), ..Quota::UNLIMITED };
    let sim =
        Sim::builder().latency(Latency::none()).tiny_images(true).quota_of(PRO, quota).build();
    assert_eq!(send(&sim, generate(PRO)).await.unwrap().status, 200);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let refused = send(&sim, generate(PRO)).await.unwrap();
    assert_eq!(refused.status, 429);
    assert!(
        refused.text().contains("\"retryDelay\": \"58s\"")
            && refused.text().contains("retry in 58.5"),
        "{}",
        refused.text()
    );
    assert_eq!(
        send(&sim, generate(FLASH31)).await.unwrap().status,
        200,
        "limits belong to one model"
    );
    tokio::time::sleep(Duration::from_millis(58_500)).await;
    assert_eq!(send(&sim, generate(PRO)).await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn the_servers_own_timeout_is_a_504_in_time_and_free() {
    let sim = Sim::builder().latency(Latency::fixed(seconds(90))).tiny_images(true).build();
    let mut request = generate(PRO);
    request.headers_mut().insert("x-server-timeout", "30".parse().unwrap());
    let began = tokio::time::Instant::now();
    let taken = send(&sim, request).await.unwrap();
    assert_eq!(began.elapsed(), seconds(30));
    assert_eq!(taken.status, 504);
    assert_eq!(
        taken.json()["error"]["message"],
        "Deadline expired before operation could complete."
    );
    let record = sim.ledger().requests()[0].clone();
    assert!(!record.charged && !record.generated && record.image_hash.is_none());
    assert_eq!(record.outcome, "server_deadline");

    let mut request = generate(PRO);
    request.headers_mut().insert("x-server-timeout", "91".parse().unwrap());
    assert_eq!(send(&sim, request).await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_pays_and_gets_nothing() {
    let builder = Sim::builder().latency(Latency::fixed(seconds(90))).tiny_images(true);
    let sim = builder.clone().build();
    for wait in [seconds(1), seconds(89)] {
        tokio::time::timeout(wait, sim.service().call(tagged(generate(PRO), "cat")))
            .await
            .unwrap_err();
    }
    let ledger = sim.ledger();
    let record = &ledger.requests()[0];
    assert!(record.charged && record.generated && record.aborted);
    assert_eq!((record.delivered, record.ended_at), (Delivered::NotDelivered, Some(seconds(1))));
    assert_eq!((ledger.charges("cat"), ledger.sends_after_charge("cat")), (2, 1));
    assert_eq!(ledger.totals().charged_but_undelivered, 2);

    // A request that the server would have given up in time is not made after all.
    let mut request = generate(PRO);
    request.headers_mut().insert("x-server-timeout", "60".parse().unwrap());
    tokio::time::timeout(seconds(30), sim.service().call(request)).await.unwrap_err();
    assert!(!sim.ledger().requests()[2].charged);

    let sim = builder.abort_charges(false).build();
    tokio::time::timeout(seconds(1), sim.service().call(generate(PRO))).await.unwrap_err();
    assert!(!sim.ledger().requests()[0].charged);

    let sim = Sim::quick([]);
    drop(sim.service().call(generate(PRO)));
    assert_eq!(sim.requests(), 0, "a future that was never polled sent nothing");
}

#[tokio::test(start_paused = true)]
async fn a_body_dropped_half_way_is_a_partial_delivery() {
    use http_body_util::BodyExt as _;
    let sim =
        Sim::builder().latency(Latency::none()).tiny_images(true).chunks(100, seconds(1)).build();
    let mut body = sim.service().call(generate(PRO)).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 100);
    assert_eq!(sim.now(), seconds(1));
    drop(body);
    let record = sim.ledger().requests()[0].clone();
    assert_eq!(
        (record.delivered, record.charged, record.aborted),
        (Delivered::Partial, true, false)
    );
}

#[tokio::test(start_paused = true)]
async fn requests_are_checked_as_google_checks_them() {
    let sim =
        Sim::builder().latency(Latency::none()).tiny_images(true).reject_key("stolen").build();
    let uri = |model: &str| format!("https://gemini.example/v1beta/models/{model}:generateContent");
    let bare = |uri: String| {
        http::Request::post(uri).body(http_body_util::Full::new(bytes::Bytes::from(CAT))).unwrap()
    };
    let mut both = generate(PRO);
    both.headers_mut().insert("authorization", "Bearer t".parse().unwrap());
    let vertex = |model: &str| {
        post(
            format!(
                "https://v.example/v1/projects/p/locations/global/publishers/google/models/{model}:generateContent"
            ),
            CAT,
        )
    };
    for (request, status, text) in [
        (bare(uri(PRO)), 400, "API_KEY_INVALID"),
        (bare(format!("{}?key=stolen", uri(PRO))), 400, "Invalid API key: stolen"),
        (both, 400, "Multiple authentication credentials received."),
        (
            generate("gemini-9-image"),
            404,
            "models/gemini-9-image is not found for API version v1beta",
        ),
        (
            generate("gemini-3-pro-image-preview"),
            404,
            "Please update your code to use models/gemini-3-pro-image ",
        ),
        (generate("imagen-4.0-generate-001"), 404, "models/gemini-3.1-flash-image "),
        (vertex("gemini-9-image"), 404, "Publisher Model `projects/"),
        (post(uri(PRO), "{ not json"), 400, "Invalid JSON payload received."),
        (post(uri(PRO), "{}"), 400, "contents is not specified"),
        (sized(PRO, "2k"), 400, "image_size must be one of '1K', '2K', or '4K'."),
        (sized(FLASH, "1K"), 400, "not enabled for this model"),
        (post("https://gemini.example/v1beta/elsewhere", CAT), 404, "<!DOCTYPE html>"),
        (
            post(format!("https://g.example/v1beta/models/{PRO}:countTokens"), CAT),
            200,
            "\"totalTokens\": 4",
        ),
        (vertex(PRO), 200, "\"trafficType\": \"ON_DEMAND\""),
        (bare(format!("{}?key=good", uri(PRO))), 200, "inlineData"),
    ] {
        let what = request.uri().clone();
        let taken = send(&sim, request).await.unwrap();
        assert_eq!(taken.status, status, "{what}: {}", taken.text());
        assert!(taken.text().contains(text), "{what}: {}", taken.text());
    }
    assert_eq!(sim.totals().charged, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_from_the_ledger_has_ended_and_numbers_go_on() {
    let sim = Sim::builder().latency(Latency::fixed(seconds(20))).tiny_images(true).build();
    let mut open = Box::pin(send(&sim, generate(PRO)));
    tokio::time::timeout(seconds(10), &mut open).await.unwrap_err();
    tokio::time::timeout(seconds(5), send(&sim, generate(PRO))).await.unwrap_err();
    let numbers = |records: Vec<Record>| records.iter().map(|one| one.number).collect::<Vec<_>>();
    let aborted = sim.take_ended();
    assert!(aborted[0].charged && aborted[0].aborted);
    assert_eq!(numbers(aborted), [1]);
    assert_eq!(open.await.unwrap().status, 200);
    assert_eq!(send(&sim, generate(PRO)).await.unwrap().status, 200);
    assert_eq!(numbers(sim.ledger().requests().to_vec()), [0, 2]);
    assert_eq!(numbers(sim.take_ended()), [0, 2]);
    assert_eq!((sim.requests(), sim.totals().requests, sim.image_for(0)), (3, 0, None));
}

#[tokio::test(start_paused = true)]
async fn imagen_can_be_revived() {
    let sim = Sim::builder()
        .latency(Latency::none())
        .tiny_images(true)
        .revive("imagen-4.0-generate-001")
        .build();
    let body = r#"{ "instances": [{ "prompt": "a cat" }], "parameters": { "sampleCount": 2, "sampleImageSize": "1k" } }"#;
    let answer =
        send(&sim, post("https://g.example/v1beta/models/imagen-4.0-generate-001:predict", body))
            .await
            .unwrap()
            .json();
    assert_eq!(answer["predictions"].as_array().unwrap().len(), 2);
    assert_eq!(sim.totals().cost_microusd, 80_000);
}

#[tokio::test(start_paused = true)]
async fn a_history_made_by_the_simulator_is_taken_back() {
    let sim = Sim::quick([]);
    let first = send(&sim, generate(PRO)).await.unwrap().json();
    let turn = |content: serde_json::Value| {
        let body = serde_json::json!({ "contents": [{ "role": "user", "parts": [{ "text": "a cat" }] }, content,
            { "role": "user", "parts": [{ "text": "with a hat" }] }] });
        post(format!("https://g.example/v1beta/models/{PRO}:generateContent"), body.to_string())
    };
    let mut content = first["candidates"][0]["content"].clone();
    assert_eq!(send(&sim, turn(content.clone())).await.unwrap().status, 200);
    content["parts"][1].as_object_mut().unwrap().remove("thoughtSignature");
    let refused = send(&sim, turn(content)).await.unwrap();
    assert!(
        refused
            .text()
            .contains("missing a thought_signature in content position 2, part position 2."),
        "{}",
        refused.text()
    );
}

#[tokio::test(start_paused = true)]
async fn sends_after_a_charge_are_counted_by_call() {
    let sim = Sim::quick([Fault::HighDemand, Fault::ResetAfterGeneration, Fault::None]);
    for _ in 0..3 {
        let _ = send(&sim, tagged(generate(PRO), "cat")).await;
    }
    let _ = send(&sim, tagged(generate(PRO), "dog")).await;
    let ledger = sim.ledger();
    assert_eq!(
        (ledger.sends("cat"), ledger.charges("cat"), ledger.sends_after_charge("cat")),
        (3, 2, 1)
    );
    assert_eq!((ledger.sends_after_charge("dog"), ledger.resent_after_charge().len()), (0, 1));
    assert_eq!((ledger.totals().calls, ledger.totals().charged_but_undelivered), (2, 1));
}
