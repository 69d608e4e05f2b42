//! Responses that were or may have been charged after a disconnect, and are lost.

use super::*;

/// As long as identical requests are told of a loss.
const LOSS_WINDOW: Duration = Duration::from_secs(60);

#[test]
fn a_response_that_is_too_large_or_too_late_is_counted_and_not_stored() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        for (keep, why) in [
            (KeepPaidLayer::new().max_stored_bytes(100), "too large"),
            (KeepPaidLayer::new().max_detached_time(Duration::from_secs(1)), "too long"),
        ] {
            let sim = scenario.sim();
            let trail = Trail::new();
            disconnect(
                stack(&scenario, &sim, &keep),
                request(&scenario, &trail),
                Patience::Time(5_000),
            )
            .await;
            assert!(keep.drain(Duration::from_secs(1000)).await);
            assert!(trail.to_string().contains(why), "{trail}");
            assert_eq!(
                (keep.counts().stored, keep.counts().too_large + keep.counts().too_late),
                (0, 1)
            );
        }
    });
}

/// A front end's 504 may be charged and is no result. Its client did not receive it: the next
/// request gets an error.
#[test]
fn an_error_that_may_be_charged_is_not_stored() {
    in_paused_time(async {
        let client = tower::service_fn(|request: Request<tower_gemini::WireBody>| async move {
            let _ = request.into_body().collect().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let response = Response::builder()
                .status(504)
                .body(Full::new(Bytes::from("upstream request timeout")));
            Ok::<_, std::io::Error>(response.unwrap())
        });
        let keep = KeepPaidLayer::new();
        let service = GeminiStack::new().keep_paid(keep.clone()).raw(client);
        let scenario = Scenario::new([]);
        let call = whole(service.clone(), with(&scenario, RETRY_COUNT, "0"));
        assert!(tokio::time::timeout(Duration::from_secs(2), call).await.is_err());
        assert!(keep.drain(Duration::from_secs(100)).await);
        let lost = whole(service.clone(), with(&scenario, RETRY_COUNT, "1")).await.unwrap_err();
        assert_eq!(
            (lost.charge(), keep.counts().stored, keep.counts().incomplete),
            (Charge::Maybe, 0, 1)
        );
        assert!(lost.to_string().contains("within a minute of each other"), "{lost}");
        tokio::time::sleep(LOSS_WINDOW).await;
        let (status, _) = whole(service, with(&scenario, RETRY_COUNT, "0")).await.unwrap();
        assert_eq!((status, keep.counts().replayed), (504, 0));
    });
}

// The resend that the first client had bought was sent without it, or begun and dropped, whichever
// way its client took the request.
#[test]
fn a_resend_that_was_bought_is_not_sent_for_a_client_that_has_left() {
    // It leaves while the attempt is under way, and in the wait after it.
    for patience in [10_000, 20_500] {
        in_paused_time(async {
            let scenario = Scenario::new([Fault::ResetAfterGeneration]);
            let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
            let service = stack(&scenario, &sim, &keep);
            let mut bought = request(&scenario, &Trail::new());
            bought.extensions_mut().insert(CallOptions::new().maybe_charged_resends(1));
            disconnect(service.clone(), bought, Patience::Time(patience)).await;
            assert!(keep.drain(Duration::from_secs(1000)).await);
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!((sim.requests(), keep.counts().losses), (1, 1), "{patience}");
            let told = whole(service, request(&scenario, &Trail::new())).await.unwrap_err();
            assert_eq!((told.charge(), sim.requests()), (Charge::Maybe, 1), "{patience}");
        });
    }
}

#[test]
fn a_request_with_an_allowance_is_sent_again_after_a_loss() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::ResetAfterGeneration, Fault::ResetAfterGeneration]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        assert!(keep.drain(Duration::from_secs(100)).await);
        let mut bought = request(&scenario, &Trail::new());
        bought.extensions_mut().insert(CallOptions::new().maybe_charged_resends(1));
        // The allowance is spent on the earlier send: this one's own loss is reported.
        assert_eq!(whole(service.clone(), bought).await.unwrap_err().charge(), Charge::Maybe);
        assert_eq!(sim.ledger().charges(TAG), 2);
        tokio::time::sleep(LOSS_WINDOW).await;
        assert_eq!(whole(service, request(&scenario, &Trail::new())).await.unwrap().0, 200);
        assert_eq!(sim.ledger().charges(TAG), 3, "it was reported: sending again is another call");
    });
}

/// Whatever cannot be stored is reported to identical requests.
#[test]
fn the_loss_of_a_detached_call_is_reported_for_a_minute() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        for keep in [
            KeepPaidLayer::new().max_stored_bytes(100),
            KeepPaidLayer::new().max_detached_time(Duration::from_secs(1)),
            KeepPaidLayer::new().max_detached(0),
        ] {
            let sim = scenario.sim();
            let service = stack(&scenario, &sim, &keep);
            disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000))
                .await;
            assert!(keep.drain(Duration::from_secs(1000)).await);
            for _ in 0..3 {
                let trail = Trail::new();
                let lost = whole(service.clone(), request(&scenario, &trail)).await.unwrap_err();
                assert_eq!((lost.charge(), sim.requests()), (Charge::Maybe, 1), "{lost}");
                assert!(
                    matches!(
                        trail.steps()[..],
                        [Step::Stopped { why: StopReason::EarlierResponseLost }]
                    ),
                    "{trail}"
                );
                tokio::time::sleep(LOSS_WINDOW / 2).await;
            }
            tokio::time::sleep(LOSS_WINDOW).await;
            assert_eq!(whole(service, request(&scenario, &Trail::new())).await.unwrap().0, 200);
        }
    });
}

/// It was charged all the same.
#[test]
fn an_evicted_response_is_reported_as_lost() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let (_, body) =
            whole(stack(&scenario, &sim, &KeepPaidLayer::new()), request(&scenario, &Trail::new()))
                .await
                .unwrap();
        let keep = KeepPaidLayer::new().max_stored_bytes(body.len() + body.len() / 2);
        let service = stack(&scenario, &sim, &keep);
        for key in ["first", "second"] {
            disconnect(
                service.clone(),
                with(&scenario, "x-goog-api-key", key),
                Patience::Time(5_000),
            )
            .await;
            assert!(keep.drain(Duration::from_secs(100)).await);
        }
        let lost =
            whole(service.clone(), with(&scenario, "x-goog-api-key", "first")).await.unwrap_err();
        assert_eq!(lost.charge(), Charge::Maybe);
        assert_eq!(
            whole(service, with(&scenario, "x-goog-api-key", "second")).await.unwrap().0,
            200
        );
        assert_eq!(sim.ledger().charges(TAG), 3, "the one to measure, and two");
    });
}

/// litellm with `num_retries` sends again 0.2 s after our 424, and does not mark it as a resend.
#[test]
fn who_was_told_of_a_loss_and_sends_again_at_once_is_told_again() {
    in_paused_time(async {
        let page = tower::service_fn(|request: Request<tower_gemini::WireBody>| async move {
            let _ = request.into_body().collect().await;
            let page = Response::builder().status(502).body(Full::new(Bytes::from("<html>nginx")));
            Ok::<_, std::io::Error>(page.unwrap())
        });
        let cut = Scenario::new([Fault::ResetAfterGeneration]);
        let sim = cut.sim();
        let scenario = Scenario::new([]);
        let ask = || request(&scenario, &Trail::new());
        let service = stack(&cut, &sim, &KeepPaidLayer::new());
        assert!(!whole(service.clone(), ask()).await.unwrap_err().is_resend_refused());
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(whole(service.clone(), ask()).await.unwrap_err().is_resend_refused());
        assert_eq!(sim.ledger().charges(TAG), 1);
        tokio::time::sleep(LOSS_WINDOW).await;
        assert_eq!(whole(service, ask()).await.unwrap().0, 200);

        let service = GeminiStack::new().keep_paid(KeepPaidLayer::new()).raw(page);
        assert_eq!(whole(service.clone(), ask()).await.unwrap().0, 502);
        assert!(whole(service, ask()).await.unwrap_err().is_resend_refused());
    });
}

#[test]
fn an_error_within_a_200_is_not_stored() {
    in_paused_time(async {
        let client = tower::service_fn(move |r: Request<tower_gemini::WireBody>| async move {
            let _ = r.into_body().collect().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let busy = r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
            Ok::<_, std::io::Error>(
                Response::builder()
                    .status(200)
                    .header("content-type", "application/json")
                    .body(Full::new(Bytes::from(busy)))
                    .unwrap(),
            )
        });
        let scenario = Scenario::new([]);
        let keep = KeepPaidLayer::new();
        let service = GeminiStack::new().keep_paid(keep.clone()).raw(client);
        let _ = tokio::time::timeout(
            Duration::from_secs(2),
            service.clone().oneshot(request(&scenario, &Trail::new())),
        )
        .await;
        assert_eq!(keep.counts().detached, 1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let reported = whole(service, request(&scenario, &Trail::new())).await.unwrap_err();
        assert_eq!(
            (reported.charge(), keep.counts().replayed),
            (Charge::Maybe, 0),
            "an error of unknown charge is not stored"
        );
    });
}

/// The caller bought a second attempt, which was free: the first is lost all the same.
#[test]
fn the_loss_of_an_earlier_attempt_is_reported_too() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::ResetAfterGeneration, Fault::HighDemand]);
        let sim = Sim::builder()
            .script(scenario.faults.clone())
            .latency(
                Latency::fixed(Duration::from_secs(20))
                    .errors(Duration::from_secs(10)..=Duration::from_secs(10)),
            )
            .tiny_images(true)
            .build();
        let keep = KeepPaidLayer::new();
        let service = stack(&scenario, &sim, &keep);
        let trail = Trail::new();
        let mut bought = scenario.request(TAG);
        bought
            .extensions_mut()
            .insert(CallOptions::new().trail(trail.clone()).maybe_charged_resends(1));
        // The client disconnects while the second is in flight.
        let mut call = Box::pin(whole(service.clone(), bought));
        while sim.requests() < 2 {
            assert!(tokio::time::timeout(Duration::from_millis(100), &mut call).await.is_err());
        }
        drop(call);
        assert!(keep.drain(Duration::from_secs(100)).await);
        // Without an allowance this time.
        let reported = whole(service, request(&scenario, &Trail::new())).await.unwrap_err();
        assert!(reported.is_resend_refused(), "{reported}");
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

/// A client that sends what it has when it is dropped, as one does whose connection is on another
/// thread.
struct SendsLate(Option<tower_gemini::WireBody>);

impl Future for SendsLate {
    type Output = Result<Response<Full<Bytes>>, std::io::Error>;

    fn poll(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> std::task::Poll<Self::Output> {
        std::task::Poll::Pending
    }
}

impl Drop for SendsLate {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take() else { return };
        let mut cx = Context::from_waker(Waker::noop());
        while let std::task::Poll::Ready(Some(Ok(_))) =
            std::pin::Pin::new(&mut body).poll_frame(&mut cx)
        {}
    }
}

#[test]
fn a_request_that_is_dispatched_while_it_is_dropped_is_reported_as_lost() {
    in_paused_time(async {
        for key in [None, Some("one")] {
            let client = tower::service_fn(|request: Request<tower_gemini::WireBody>| {
                SendsLate(Some(request.into_body()))
            });
            let keep = KeepPaidLayer::new();
            let service = GeminiStack::new().keep_paid(keep.clone()).raw(client);
            let ask = || {
                let mut request = request(&Scenario::new([]), &Trail::new());
                if let Some(key) = key {
                    request.headers_mut().insert(KEY, HeaderValue::from_static(key));
                }
                request
            };
            let call = whole(service.clone(), ask());
            assert!(tokio::time::timeout(Duration::from_secs(5), call).await.is_err());
            assert!(keep.drain(Duration::from_secs(1)).await);
            let reported = tokio::time::timeout(Duration::from_secs(5), whole(service, ask()))
                .await
                .unwrap()
                .unwrap_err();
            assert!(reported.is_resend_refused(), "{key:?}: {reported}");
        }
    });
}

#[test]
fn detached_calls_with_a_key_are_within_the_bound_too() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new().max_detached(1));
        let service = stack(&scenario, &sim, &keep);
        for key in ["one", "two"] {
            let call = whole(service.clone(), with(&scenario, KEY, key));
            assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
        }
        assert!(keep.drain(Duration::from_secs(100)).await);
        assert_eq!(keep.counts().too_many, 1);
        assert_eq!(whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap().0, 200);
        assert!(whole(service, with(&scenario, KEY, "two")).await.unwrap_err().is_resend_refused());
        assert_eq!(sim.requests(), 2);
    });
}
