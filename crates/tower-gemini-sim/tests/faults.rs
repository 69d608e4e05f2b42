//! Every fault is the answer that it says, and the ledger knows what it cost.
// The exemption of tests from these lints does not reach helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{CAT, FLASH31, PRO, final_image, generate, post, send, stream};
use http_body_util::BodyExt as _;
use tower_gemini_sim::{
    BadRequest, Delivered, Fault, Forbidden, NotFound, Refusal, Sim, SimErrorKind, hash64,
};
use tower_service::Service as _;

/// Status and a piece of the body for every fault that is an error status.
fn documented(fault: &Fault) -> Option<(u16, &'static str)> {
    Some(match fault {
        Fault::RateLimitMinute { .. } => (429, "PerMinute"),
        Fault::RateLimitDay { .. } => (429, "PerDay"),
        Fault::ZeroQuota { .. } => (429, "limit: 0"),
        Fault::ZeroQuotaErrorInfo => (429, "\"quota_limit_value\": \"0\""),
        Fault::ExhaustedBare => (429, "Resource has been exhausted (e.g. check quota)."),
        Fault::SharedCapacity => (429, "error-code-429"),
        Fault::SpendRate => (429, "spend-based rate limit"),
        Fault::SpendCap => (429, "monthly spending cap"),
        Fault::PrepayDepleted { payment_required } => {
            (if *payment_required { 402 } else { 429 }, "prepayment credits are depleted")
        }
        Fault::CapacityExhausted { unavailable } => {
            (if *unavailable { 503 } else { 429 }, "MODEL_CAPACITY_EXHAUSTED")
        }
        Fault::Overloaded => (503, "The model is overloaded."),
        Fault::HighDemand => (503, "currently experiencing high demand"),
        Fault::ServiceUnavailable => (503, "The service is currently unavailable."),
        Fault::DeadlineExpired503 => (503, "Deadline expired"),
        Fault::DeadlineExpired504 => (504, "Deadline expired"),
        Fault::Internal => (500, "An internal error has occurred"),
        Fault::Unimplemented => (501, "UNIMPLEMENTED"),
        Fault::BadGatewayHtml => (502, "Please try again in 30 seconds."),
        Fault::Cancelled => (499, "The operation was cancelled."),
        Fault::RequestTimeout => (408, "timed out"),
        Fault::BadRequest(kind) => (
            400,
            match kind {
                BadRequest::ApiKeyInvalid => "Invalid API key: key-1",
                BadRequest::UnknownField => "Cannot find field.",
                BadRequest::Location => "User location is not supported",
                BadRequest::LocationGrpcMessage => "$grpcMessage",
                BadRequest::MissingThoughtSignature => "missing a thought_signature",
                _ => "\"INVALID_ARGUMENT\"",
            },
        ),
        Fault::Unauthenticated => (401, "UNAUTHENTICATED"),
        Fault::Forbidden(kind) => (
            403,
            match kind {
                Forbidden::Suspended => "api_key:key-1",
                Forbidden::ServiceDisabled => "SERVICE_DISABLED",
                _ => "PERMISSION_DENIED",
            },
        ),
        Fault::NotFound(kind) => (
            404,
            match kind {
                NotFound::Html => "<!DOCTYPE html>",
                NotFound::Retired => "Please update your code to use models/",
                NotFound::CachedContent => "cache content metadata",
                _ => "NOT_FOUND",
            },
        ),
        Fault::PayloadTooLargeHtml => (413, "413 Request Entity Too Large"),
        Fault::ProxyWrapped503 => (500, "litellm.InternalServerError"),
        Fault::ProxyHidden429 => (500, "Too Many Requests"),
        Fault::ProxyPreviousErrors => (404, "previous_errors"),
        Fault::ErrorArray503 => (503, "[\n  {\n    \"error\""),
        Fault::ProxyText503 => (503, "Max retries exhausted."),
        _ => return None,
    })
}

#[tokio::test(start_paused = true)]
async fn every_error_status_has_its_documented_body_and_costs_nothing() {
    let mut seen = 0;
    for fault in Fault::all() {
        let Some((status, piece)) = documented(&fault) else { continue };
        seen += 1;
        for request in [generate(FLASH31), stream(FLASH31)] {
            let sim = Sim::quick([fault.clone()]);
            let taken = send(&sim, request).await.unwrap();
            assert_eq!(taken.status, status, "{fault:?}");
            assert!(taken.text().contains(piece), "{fault:?}: {}", taken.text());
            let ledger = sim.ledger();
            let record = &ledger.requests()[0];
            assert!(!record.charged && !record.generated && record.received, "{fault:?}");
            assert_eq!(
                (record.delivered, record.status),
                (Delivered::Full, Some(status)),
                "{fault:?}"
            );
            assert_eq!(record.request_counted, status != 429, "{fault:?}");
            assert_eq!(record.outcome, fault.name());
            assert_eq!(record.cost_microusd, 0);
        }
    }
    assert!(seen > 45, "{seen}");
}

#[tokio::test(start_paused = true)]
async fn every_fault_ends_as_it_says_and_the_money_agrees() {
    for fault in Fault::all() {
        for request in [generate(PRO), stream(PRO)] {
            let sim = Sim::quick([fault.clone()]);
            let ended = tokio::time::timeout(Duration::from_secs(3600), send(&sim, request)).await;
            let record = sim.ledger().requests()[0].clone();
            assert_eq!(ended.is_err(), fault.is_endless(), "{fault:?}");
            assert!(record.ended_at.is_some(), "{fault:?}");
            assert_eq!(record.charged, record.cost_microusd > 0, "{fault:?}");
            match ended {
                Err(_) => assert_ne!(record.delivered, Delivered::Full, "{fault:?}"),
                Ok(Err(_)) => assert!(fault.is_transport(), "{fault:?}"),
                Ok(Ok(taken)) => {
                    assert!(!fault.is_transport(), "{fault:?}");
                    assert_eq!(record.status, Some(taken.status), "{fault:?}");
                    assert_eq!(
                        record.delivered == Delivered::Full,
                        !matches!(fault, Fault::TruncatedBody { .. }),
                        "{fault:?}"
                    );
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_caller_pays_is_what_the_usage_says() {
    let pro = |input: u64, text: u64, image: u64| (input * 2 + text * 12 + image * 120, image);
    for (fault, image) in [
        (Fault::None, 1120),
        (Fault::Refused(Refusal::ImageSafety), 0),
        (Fault::NoImage, 0),
        (Fault::MaxTokens, 0),
        (Fault::StopWithoutImage, 1290),
        (Fault::ImageOther { waived: false }, 0),
    ] {
        let sim = Sim::quick([fault.clone()]);
        let answer = send(&sim, generate(PRO)).await.unwrap().json();
        let usage = |name: &str| answer["usageMetadata"][name].as_u64().unwrap_or(0);
        let text = usage("candidatesTokenCount") - image + usage("thoughtsTokenCount");
        let record = sim.ledger().requests()[0].clone();
        assert_eq!(
            (record.cost_microusd, record.image_tokens),
            pro(usage("promptTokenCount"), text, image),
            "{fault:?}"
        );
        assert!(record.generated && record.charged, "{fault:?}");
    }
    let sim = Sim::quick([Fault::ImageOther { waived: true }]);
    let answer = send(&sim, generate(PRO)).await.unwrap();
    assert!(answer.text().contains("You will not be charged for this request."));
    let record = sim.ledger().requests()[0].clone();
    assert!(record.generated && !record.charged && record.cost_microusd == 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_leaves_good_events_and_a_bare_error() {
    let sim = Sim::quick([Fault::StreamErrorTail { charged: false }]);
    let taken = send(&sim, stream(PRO)).await.unwrap();
    assert_eq!((taken.status, taken.content_type.as_str()), (200, "text/event-stream"));
    let (events, tail) = taken.text().rsplit_once("\r\n\r\n").unwrap();
    assert!(events.starts_with("data: {\"candidates\": [{"));
    let error: serde_json::Value = serde_json::from_str(tail).unwrap();
    assert_eq!(error["error"]["code"], 503);
    assert!(!sim.ledger().requests()[0].charged);

    let sim = Sim::quick([Fault::NoFinishReason { charged: true }]);
    let taken = send(&sim, stream(PRO)).await.unwrap();
    assert!(taken.text().ends_with("\r\n\r\n") && !taken.text().contains("finishReason"));
    assert!(sim.ledger().requests()[0].charged);
}

/// Cutting anywhere gives exactly that many bytes, then an error; cutting "cleanly" gives the same
/// bytes and an end.
#[tokio::test(start_paused = true)]
async fn an_answer_can_be_cut_at_every_byte() {
    let whole = send(&Sim::quick([]), generate(FLASH31)).await.unwrap().body;
    assert!(whole.len() < 4_000, "{}", whole.len());
    for at in 0..whole.len() {
        let sim = Sim::quick([Fault::CutBody { at }, Fault::TruncatedBody { at }]);
        let mut service = sim.service();
        let mut body = service.call(generate(FLASH31)).await.unwrap().into_body();
        let mut got = Vec::new();
        let error = loop {
            match body.frame().await {
                Some(Ok(frame)) => got.extend_from_slice(&frame.into_data().unwrap()),
                Some(Err(error)) => break error,
                None => panic!("ended in good order at {at}"),
            }
        };
        assert_eq!(got, whole[..at]);
        assert_eq!(error.kind(), SimErrorKind::BodyCut);
        let source =
            std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().unwrap();
        assert_eq!(source.kind(), std::io::ErrorKind::UnexpectedEof);

        // The script's numbers make another responseId, so only the length can be compared.
        let truncated = send(&sim, generate(FLASH31)).await.unwrap();
        assert_eq!(truncated.body.len(), at);
        let expected = if at == 0 { Delivered::NotDelivered } else { Delivered::Partial };
        let ledger = sim.ledger();
        assert!(
            ledger.requests().iter().all(|record| record.charged && record.delivered == expected),
            "{at}"
        );
        assert_eq!(ledger.totals().charged_but_undelivered, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_was_never_received() {
    let sim = Sim::quick([
        Fault::ConnectionRefused,
        Fault::ResetAfterReceipt,
        Fault::ResetAfterGeneration,
        Fault::CutHead { at: 3 },
    ]);
    for (kind, io, charged) in [
        (SimErrorKind::ConnectionRefused, std::io::ErrorKind::ConnectionRefused, false),
        (SimErrorKind::ConnectionReset, std::io::ErrorKind::ConnectionReset, false),
        (SimErrorKind::ConnectionReset, std::io::ErrorKind::ConnectionReset, true),
        (SimErrorKind::HeadCut, std::io::ErrorKind::UnexpectedEof, true),
    ] {
        let error = send(&sim, generate(PRO)).await.unwrap_err();
        let source =
            std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().unwrap();
        assert_eq!((error.kind(), source.kind()), (kind, io));
        let record = sim.ledger().requests().last().unwrap().clone();
        let received = kind != SimErrorKind::ConnectionRefused;
        assert_eq!(
            (record.received, record.request_counted, record.charged),
            (received, received, charged)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_final_image_is_the_one_in_the_ledger_whatever_the_shape() {
    for fault in
        Fault::all().into_iter().filter(|fault| matches!(fault, Fault::None | Fault::Shaped(_)))
    {
        let sim = Sim::quick([fault.clone()]);
        let answer = send(&sim, generate(PRO)).await.unwrap();
        let record = sim.ledger().requests()[0].clone();
        let image = sim.image_for(0).unwrap();
        assert_eq!(
            (record.image_hash, record.image_len),
            (Some(hash64(&image)), Some(image.len()))
        );
        let Fault::Shaped(shape) = fault else {
            assert_eq!(final_image(&answer.json()).unwrap(), image);
            continue;
        };
        if !shape.final_marked && !shape.snake_case {
            assert_eq!(final_image(&answer.json()).unwrap(), image, "{shape:?}");
        }
        assert_eq!(answer.text().contains("usageMetadata"), !shape.no_usage);
        assert_eq!(
            answer.text().matches("\"thought\": true").count() > 0,
            shape.final_marked
                || shape.drafts > 0 && shape.drafts_marked
                || shape.draft_after_final
        );
    }
}

#[tokio::test(start_paused = true)]
async fn errors_take_the_dialect_of_the_request() {
    let chat = || {
        let body = format!(
            r#"{{ "model": "{PRO}", "messages": [{{ "role": "user", "content": "a cat" }}] }}"#
        );
        post("https://gemini.example/v1beta/openai/chat/completions", body)
    };
    let sim = Sim::quick([Fault::HighDemand, Fault::None]);
    assert_eq!(send(&sim, chat()).await.unwrap().json()[0]["error"]["code"], 503);
    let answer = send(&sim, chat()).await.unwrap().json();
    let url = answer["choices"][0]["message"]["images"][0]["image_url"]["url"].as_str().unwrap();
    assert!(url.starts_with("data:image/jpeg;base64,/9j/"), "{url}");

    let interaction = || {
        let body = format!(r#"{{ "model": "{PRO}", "input": "a cat" }}"#);
        post("https://gemini.example/v1beta/interactions", body)
    };
    let sim = Sim::quick([
        Fault::RateLimitDay { retry_after: Duration::from_secs(2) },
        Fault::Refused(Refusal::ImageSafety),
        Fault::None,
    ]);
    assert_eq!(send(&sim, interaction()).await.unwrap().json()["error"]["code"], "quota_exceeded");
    assert_eq!(
        send(&sim, interaction()).await.unwrap().json()["errors"][0]["code"],
        "image_safety"
    );
    assert_eq!(send(&sim, interaction()).await.unwrap().json()["status"], "completed");

    let array =
        || post(format!("https://gemini.example/v1beta/models/{PRO}:streamGenerateContent"), CAT);
    let sim =
        Sim::quick([Fault::HighDemand, Fault::None, Fault::StreamErrorTail { charged: false }]);
    assert_eq!(send(&sim, array()).await.unwrap().json()[0]["error"]["status"], "UNAVAILABLE");
    assert_eq!(
        send(&sim, array()).await.unwrap().json().as_array().unwrap().last().unwrap()["candidates"]
            [0]["finishReason"],
        "STOP"
    );
    assert_eq!(
        send(&sim, array()).await.unwrap().json().as_array().unwrap().last().unwrap()["error"]["code"],
        503
    );
}

/// An interaction is stored under the id that its first bytes state, and fetched without a charge.
#[tokio::test(start_paused = true)]
async fn an_interaction_is_fetched_by_its_id_and_charged_once() {
    const URL: &str = "https://gemini.example/v1beta/interactions";
    let ask = |more: &str| {
        let body = format!(r#"{{ "model": "{PRO}", "input": "a cat"{more} }}"#);
        http::Request::post(URL).header("x-goog-api-key", "key-1").body(body).unwrap()
    };
    let get = |rest: &str| {
        let request = http::Request::get(format!("{URL}/{rest}"));
        request.header("x-goog-api-key", "key-1").body(String::new()).unwrap()
    };
    let read = async |sim: &Sim, request: http::Request<String>| {
        let response = sim.service().call(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await;
        (status, body.map(|body| String::from_utf8(body.to_bytes().to_vec()).unwrap()))
    };
    let id_of = |text: &str| {
        let (_, rest) = text.split_once("\"v1_").unwrap();
        format!("v1_{}", rest.split_once('"').unwrap().0)
    };

    // Whole, cut after the id.
    let sim = Sim::quick([]);
    let (_, whole) = read(&sim, ask("")).await;
    let whole = whole.unwrap();
    let (_, again) = read(&sim, get(&id_of(&whole))).await;
    assert_eq!(again.unwrap(), whole);
    assert_eq!(read(&sim, get("v1_unknown")).await.0, 404);

    // Streamed: every event has an id, and those behind one can be had alone.
    let (_, stream) = read(&sim, ask(r#", "stream": true"#)).await;
    let stream = stream.unwrap();
    let events: Vec<_> = stream.split_inclusive("\r\n\r\n").collect();
    assert!(events[0].starts_with("event: interaction.created"), "{stream}");
    assert!(events.last().unwrap().starts_with("event: interaction.completed"), "{stream}");
    for (i, event) in events.iter().enumerate() {
        assert!(event.contains(&format!("\"event_id\": \"evt_{i}\"")), "{event}");
        let rest = format!("{}?stream=true&last_event_id=evt_{i}", id_of(&stream));
        assert_eq!(read(&sim, get(&rest)).await.1.unwrap(), events[i + 1..].concat());
    }
    let unknown = format!("{}?stream=true&last_event_id=evt_99", id_of(&stream));
    assert_eq!(read(&sim, get(&unknown)).await.0, 400);
    assert_eq!(sim.totals().charged, 2);

    // In the background: the id at once, the image when it is there.
    let slow = Sim::builder()
        .latency(tower_gemini_sim::Latency::fixed(Duration::from_secs(20)))
        .tiny_images(true)
        .build();
    let (_, running) = read(&slow, ask(r#", "background": true"#)).await;
    let id = id_of(&running.unwrap());
    assert_eq!(slow.now(), Duration::ZERO);
    assert!(read(&slow, get(&id)).await.1.unwrap().contains("in_progress"));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(read(&slow, get(&id)).await.1.unwrap().contains("\"data\""));
    // One that is cancelled before it ends stays so.
    let (_, running) = read(&slow, ask(r#", "background": true"#)).await;
    let id = id_of(&running.unwrap());
    let cancel =
        http::Request::post(format!("{URL}/{id}:cancel")).header("x-goog-api-key", "key-1");
    assert!(
        read(&slow, cancel.body(String::new()).unwrap()).await.1.unwrap().contains("cancelled")
    );
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(read(&slow, get(&id)).await.1.unwrap().contains("cancelled"));

    // One that is not stored cannot be fetched.
    let (_, whole) = read(&sim, ask(r#", "store": false"#)).await;
    assert_eq!(read(&sim, get(&id_of(&whole.unwrap()))).await.0, 404);
}
