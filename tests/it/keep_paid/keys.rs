//! Requests with an `Idempotency-Key`.

use super::*;

#[test]
fn requests_with_one_idempotency_key_are_one_call() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let send = |key: &'static str| {
            let mut request = request(&scenario, &Trail::new());
            request.headers_mut().insert("idempotency-key", HeaderValue::from_static(key));
            whole(service.clone(), request)
        };
        let (a, b, c) = tokio::join!(send("one"), send("one"), send("two"));
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert!(a == b && a != c);
        assert_eq!(send("one").await.unwrap(), a, "and later ones");
        assert_eq!(sim.ledger().charges(TAG), 2);
        // Even when all clients have disconnected.
        assert!(tokio::time::timeout(Duration::from_secs(1), send("three")).await.is_err());
        assert!(keep.drain(Duration::from_secs(100)).await);
        send("three").await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 3);
        let larger = Scenario { size: "2K", ..Scenario::new([]) };
        let mut other = request(&larger, &Trail::new());
        other.headers_mut().insert("idempotency-key", HeaderValue::from_static("one"));
        let (status, body) = whole(service.clone(), other).await.unwrap();
        assert_eq!(status, 422);
        assert!(String::from_utf8_lossy(&body).contains("A new request needs a new key"));
        tokio::time::sleep(Duration::from_secs(700)).await;
        send("one").await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 4, "not for ever");
    });
}

#[test]
fn an_idempotency_key_whose_response_was_lost_is_not_charged_twice() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::ResetAfterGeneration]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        for _ in 0..3 {
            let mut request = request(&scenario, &Trail::new());
            request.headers_mut().insert("idempotency-key", HeaderValue::from_static("one"));
            let error = whole(service.clone(), request).await.unwrap_err();
            assert!(!error.charge().is_surely_free(), "{error}");
        }
        assert_eq!((sim.requests(), sim.ledger().charges(TAG)), (1, 1));
    });
}

/// All clients had disconnected, and the time limit of the detached call had begun.
#[test]
fn a_client_that_joins_a_detached_key_again_stops_its_time_limit() {
    in_paused_time(async {
        let scenario = Scenario { latency: Duration::from_secs(20), ..Scenario::new([]) };
        let (sim, keep) =
            (scenario.sim(), KeepPaidLayer::new().max_detached_time(Duration::from_secs(10)));
        let service = stack(&scenario, &sim, &keep);
        let left = whole(service.clone(), with(&scenario, KEY, "one"));
        assert!(tokio::time::timeout(Duration::from_secs(2), left).await.is_err());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (status, _) = whole(service, with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!((status, sim.ledger().charges(TAG)), (200, 1));
    });
}

/// However long the call took.
#[test]
fn the_retention_of_a_key_starts_at_the_end_of_its_call() {
    in_paused_time(async {
        let scenario = Scenario { latency: Duration::from_secs(250), ..Scenario::new([]) };
        let sim = scenario.sim();
        let service =
            stack(&scenario, &sim, &KeepPaidLayer::new().retention(Duration::from_secs(260)));
        let first = whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap(), first);
        assert_eq!(sim.ledger().charges(TAG), 1);
        tokio::time::sleep(Duration::from_secs(61)).await;
        whole(service, with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 2, "not for ever");
    });
}

#[test]
fn an_evicted_response_of_a_key_is_lost_and_not_charged_again() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let service = stack(&scenario, &sim, &KeepPaidLayer::new());
        let (_, body) = whole(service.clone(), with(&scenario, KEY, "sized")).await.unwrap();
        let keep = KeepPaidLayer::new().max_stored_bytes(body.len() + body.len() / 2);
        let service = stack(&scenario, &sim, &keep);
        let first = whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!(whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap(), first);
        whole(service.clone(), with(&scenario, KEY, "two")).await.unwrap();
        whole(service.clone(), with(&scenario, KEY, "two")).await.unwrap();
        let lost = whole(service, with(&scenario, KEY, "one")).await.unwrap_err();
        assert!(
            !lost.charge().is_surely_free()
                && lost.to_string().contains("use another key to send it again"),
            "{lost}"
        );
        assert_eq!(sim.ledger().charges(TAG), 3);
    });
}

#[test]
fn attached_calls_with_a_key_take_no_place_of_detached_calls() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new().max_detached(1));
        let service = stack(&scenario, &sim, &keep);
        let named = tokio::spawn(whole(service.clone(), with(&scenario, KEY, "one")));
        tokio::time::sleep(Duration::from_millis(500)).await;
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(1_000)).await;
        named.await.unwrap().unwrap();
        assert!(keep.drain(Duration::from_secs(100)).await);
        assert_eq!((keep.counts().too_many, keep.counts().stored), (0, 1));
    });
}

/// A call waits for its next attempt, without clients and without a charge.
#[test]
fn a_call_with_a_key_whose_clients_all_disconnected_before_dispatch_is_not_sent() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::HighDemand, Fault::None]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let mut callers = Vec::new();
        for _ in 0..3 {
            callers.push(tokio::spawn(whole(service.clone(), with(&scenario, KEY, "one"))));
            tokio::task::yield_now().await;
        }
        while sim.ledger().totals().requests == 0 || sim.ledger().totals().charged > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The first attempt has ended free by now, and the wait for the next has begun.
        tokio::time::sleep(scenario.latency + Duration::from_millis(50)).await;
        for caller in callers {
            caller.abort();
            let _ = caller.await;
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(sim.requests(), 1);
        assert!(keep.drain(Duration::ZERO).await);
        whole(service, with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!((sim.requests(), sim.ledger().charges(TAG)), (2, 1));
    });
}

/// A body that is not held cannot be compared: with a key it is not sent at all.
#[test]
fn a_request_too_large_to_hold_is_not_sent_with_a_key() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let stack = scenario
            .stack()
            .collect(CollectRequestLayer::new().max_held_bytes(10))
            .keep_paid(keep.clone());
        let service = stack.raw(sim.service());
        let (status, body) = whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(
            status == 413 && text.contains("Send it without the key, or send a smaller request"),
            "{status} {text}"
        );
        assert_eq!(sim.requests(), 0);
        assert_eq!(whole(service, request(&scenario, &Trail::new())).await.unwrap().0, 200);
    });
}

#[test]
fn the_loss_of_an_earlier_attempt_of_a_key_is_reported_too() {
    in_paused_time(async {
        let scenario = Scenario::new([
            Fault::ResetAfterGeneration,
            Fault::HighDemand,
            Fault::HighDemand,
            Fault::HighDemand,
            Fault::HighDemand,
        ]);
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
        let mut bought = with(&scenario, KEY, "one");
        bought
            .extensions_mut()
            .insert(CallOptions::new().trail(trail.clone()).maybe_charged_resends(1));
        let mut call = Box::pin(whole(service.clone(), bought));
        while sim.requests() < 2 {
            assert!(tokio::time::timeout(Duration::from_millis(100), &mut call).await.is_err());
        }
        drop(call);
        assert!(keep.drain(Duration::from_secs(100)).await);
        let reported = whole(service, with(&scenario, KEY, "one")).await.unwrap_err();
        assert!(reported.is_resend_refused(), "{reported}");
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

#[test]
fn a_response_of_a_key_larger_than_the_bound_is_never_charged_again() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new().max_stored_bytes(100));
        let service = stack(&scenario, &sim, &keep);
        let call = whole(service.clone(), with(&scenario, KEY, "one"));
        assert!(tokio::time::timeout(Duration::from_secs(2), call).await.is_err());
        assert!(keep.drain(Duration::from_secs(100)).await);
        for _ in 0..3 {
            let _ = whole(service.clone(), with(&scenario, KEY, "one")).await;
        }
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

// What was not stored was lost for the clients that waited, although all of it had arrived.
#[test]
fn clients_that_wait_with_a_key_get_a_response_that_is_larger_than_the_bound() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new().max_stored_bytes(100));
        let service = stack(&scenario, &sim, &keep);
        let send = || whole(service.clone(), with(&scenario, KEY, "one"));
        let (first, second) = tokio::join!(send(), send());
        assert_eq!(first.unwrap(), second.unwrap());
        assert!(send().await.unwrap_err().is_resend_refused());
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}
