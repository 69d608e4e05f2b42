//! A client's stated time bounds how long it waits, and not what was paid for.

use super::*;

fn stack_with_timeouts(sim: &Sim, keep: &KeepPaidLayer) -> Kept {
    GeminiStack::new().keep_paid(keep.clone()).raw(sim.service())
}

fn in_time(ask: Ask, time: Duration) -> Request<Full<Bytes>> {
    let scenario = Scenario { ask, ..Scenario::new([]) };
    let mut request = request(&scenario, &Trail::new());
    let seconds = time.as_secs().to_string();
    request.headers_mut().insert("x-server-timeout", HeaderValue::from_str(&seconds).unwrap());
    request.extensions_mut().insert(CallOptions::new().deadline(time));
    request
}

// An SDK with a timeout of 7 s on a generation of 8 s paid twice.
#[test]
fn a_client_whose_time_is_over_pays_once_and_its_resend_gets_the_response() {
    for (ask, key) in [(Ask::Whole, None), (Ask::Sse, None), (Ask::Whole, Some("k"))] {
        in_paused_time(async {
            let latency = Latency::fixed(Duration::from_secs(8));
            let (sim, keep) = (Sim::builder().latency(latency).build(), KeepPaidLayer::new());
            let service = stack_with_timeouts(&sim, &keep);
            let send = || {
                let mut request = in_time(ask, Duration::from_secs(7));
                if let Some(key) = key {
                    request.headers_mut().insert(KEY, HeaderValue::from_static(key));
                }
                whole(service.clone(), request)
            };
            let begun = tokio::time::Instant::now();
            let error = send().await.unwrap_err();
            assert_eq!(begun.elapsed(), Duration::from_secs(7));
            assert!(error.is_timeout() && error.charge() == Charge::Maybe, "{error}");
            assert!(error.to_string().contains("7.0 s"), "{error}");
            assert_eq!(keep.counts().detached, 1);
            let (status, body) = send().await.unwrap();
            assert!(status == 200 && !body.is_empty());
            assert_eq!(sim.ledger().charges(TAG), 1, "{ask:?}");
        });
    }
}

#[test]
fn a_body_that_outlasts_the_clients_time_is_completed_without_it() {
    in_paused_time(async {
        let sim = Sim::builder()
            .latency(Latency::fixed(Duration::from_secs(3)))
            .chunks(500_000, Duration::from_secs(2))
            .build();
        let keep = KeepPaidLayer::new();
        let service = stack_with_timeouts(&sim, &keep);
        let begun = tokio::time::Instant::now();
        let error = whole(service.clone(), in_time(Ask::Whole, Duration::from_secs(6)));
        let error = error.await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(6));
        assert!(error.is_timeout() && error.charge() == Charge::Maybe, "{error}");
        let (status, _) =
            whole(service, in_time(Ask::Whole, Duration::from_secs(60))).await.unwrap();
        assert_eq!((status, sim.ledger().charges(TAG)), (200, 1));
    });
}

// The attempt has ended for a layer that reads the whole body before its head goes on.
#[test]
fn a_client_whose_time_is_over_while_a_layer_works_on_its_response_is_not_kept_waiting() {
    in_paused_time(async {
        let sim = Sim::builder().latency(Latency::fixed(Duration::from_secs(3))).build();
        let works_on_it = tower::layer::layer_fn(|inner| {
            tower::util::MapFuture::new(inner, |response| async {
                let response = response.await;
                tokio::time::sleep(Duration::from_secs(10)).await;
                response
            })
        });
        let keep = KeepPaidLayer::new();
        let service = GeminiStack::new().keep_paid(keep).call_layer(works_on_it).raw(sim.service());
        let begun = tokio::time::Instant::now();
        let error = whole(service.clone(), in_time(Ask::Whole, Duration::from_secs(5)));
        let error = error.await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        assert!(error.is_timeout() && error.charge() == Charge::Maybe, "{error}");
        let (status, _) =
            whole(service, in_time(Ask::Whole, Duration::from_secs(60))).await.unwrap();
        assert_eq!((status, sim.ledger().charges(TAG)), (200, 1));
    });
}

#[test]
fn nothing_is_sent_after_the_clients_time_is_over() {
    in_paused_time(async {
        let sim = Sim::builder()
            .script([Fault::HighDemand, Fault::HighDemand])
            .latency(
                Latency::fixed(Duration::from_secs(8))
                    .errors(Duration::from_secs(10)..=Duration::from_secs(10)),
            )
            .build();
        let keep = KeepPaidLayer::new();
        let service = stack_with_timeouts(&sim, &keep);
        let error = whole(service, in_time(Ask::Whole, Duration::from_secs(7))).await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!((sim.requests(), sim.ledger().charges(TAG), keep.counts().free), (1, 0, 1));
    });
}

#[test]
fn a_request_that_waits_for_a_detached_call_past_its_own_deadline_costs_nothing() {
    in_paused_time(async {
        let latency = Latency::fixed(Duration::from_secs(100));
        let (sim, keep) = (Sim::builder().latency(latency).build(), KeepPaidLayer::new());
        let service = stack_with_timeouts(&sim, &keep);
        let send =
            |seconds| whole(service.clone(), in_time(Ask::Whole, Duration::from_secs(seconds)));
        // Its client leaves, and it goes on.
        let left = tokio::time::timeout(Duration::from_secs(2), send(600)).await;
        assert!(left.is_err() && keep.counts().detached == 1);
        let begun = tokio::time::Instant::now();
        let error = send(10).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        assert!(error.is_timeout() && error.charge() == Charge::None, "{error}");
        assert_eq!(send(600).await.unwrap().0, 200);
        assert_eq!((sim.requests(), sim.ledger().charges(TAG)), (1, 1));
    });
}
