//! Resends: marked ones, and those that come before the disconnect is noticed.

use super::*;

#[test]
fn a_resend_that_comes_before_the_disconnect_is_noticed_waits_for_it() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let first = tokio::spawn(whole(service.clone(), request(&scenario, &Trail::new())));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let resend = tokio::spawn(whole(service, request(&scenario, &Trail::new())));
        tokio::time::sleep(Duration::from_millis(50)).await;
        first.abort();
        resend.await.unwrap().unwrap();
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

#[test]
fn a_marked_resend_gets_a_delivered_response_and_an_unmarked_one_does_not() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let send = |count: &'static str| {
            let mut request = request(&scenario, &Trail::new());
            request
                .headers_mut()
                .insert("x-stainless-retry-count", HeaderValue::from_static(count));
            whole(service.clone(), request)
        };
        let first = send("0").await.unwrap();
        let resent = send("1").await.unwrap();
        assert_eq!((&first, sim.ledger().charges(TAG)), (&resent, 1));
        send("0").await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 2, "a new call is a new call");
    });
}

/// A client that is receiving a replay is connected, as far as its next request can know.
#[test]
fn a_resend_that_comes_before_the_disconnect_of_a_replay_is_noticed_waits_for_it() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(1_000)).await;
        assert!(keep.drain(Duration::from_secs(100)).await);
        for _ in 0..3 {
            let redeemed =
                service.clone().oneshot(request(&scenario, &Trail::new())).await.unwrap();
            let next = tokio::spawn(whole(service.clone(), request(&scenario, &Trail::new())));
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(redeemed);
            // Its client disconnects in turn.
            next.abort();
            let _ = next.await;
        }
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!((sim.ledger().charges(TAG), keep.counts().stored), (1, 0));
    });
}

/// Two deliberate identical calls: the resend of the second does not get the response of the first.
#[test]
fn a_resend_waits_for_its_own_call_and_takes_no_other_calls_response() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let (_, first) = whole(service.clone(), with(&scenario, RETRY_COUNT, "0")).await.unwrap();
        disconnect(service.clone(), with(&scenario, RETRY_COUNT, "0"), Patience::Time(1_000)).await;
        let (_, second) = whole(service, with(&scenario, RETRY_COUNT, "1")).await.unwrap();
        assert_ne!(first, second);
        assert_eq!((sim.ledger().charges(TAG), keep.counts().stored), (2, 0));
    });
}

#[test]
fn a_late_replay_is_there_for_a_resend_right_after_it() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        disconnect(service.clone(), with(&scenario, RETRY_COUNT, "0"), Patience::Time(1_000)).await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        let first = whole(service.clone(), with(&scenario, RETRY_COUNT, "1")).await.unwrap();
        assert_eq!(whole(service, with(&scenario, RETRY_COUNT, "2")).await.unwrap(), first);
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

/// The error went to a client that had disconnected unnoticed.
#[test]
fn a_resend_that_comes_before_its_call_breaks_gets_the_loss() {
    in_paused_time(async {
        let scenario = Scenario {
            latency: Duration::from_secs(20),
            ..Scenario::new([Fault::ResetAfterGeneration])
        };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        // Its client has disconnected, and nothing has noticed yet.
        let first = tokio::spawn(whole(service.clone(), with(&scenario, RETRY_COUNT, "0")));
        tokio::time::sleep(Duration::from_millis(19_500)).await;
        assert!(!first.is_finished());
        let reported = whole(service, with(&scenario, RETRY_COUNT, "1")).await.unwrap_err();
        assert!(reported.is_resend_refused() && first.await.unwrap().is_err(), "{reported}");
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

/// There was no room for a copy of it, and it never arrived.
#[test]
fn a_marked_resend_of_a_response_that_is_too_large_to_hold_gets_the_loss() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new().max_stored_bytes(100));
        let service = stack(&scenario, &sim, &keep);
        whole(service.clone(), with(&scenario, RETRY_COUNT, "0")).await.unwrap();
        let reported = whole(service.clone(), with(&scenario, RETRY_COUNT, "1")).await.unwrap_err();
        assert!(reported.is_resend_refused() && sim.requests() == 1, "{reported}");
        whole(service, with(&scenario, RETRY_COUNT, "0")).await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 2, "a new call is a new call");
    });
}

/// The client got the first one's loss, and sent a new call when it was forgotten.
#[test]
fn a_resend_of_a_free_call_does_not_get_an_earlier_calls_loss() {
    in_paused_time(async {
        let busy = [const { Fault::HighDemand }; 8];
        let scenario = Scenario::new([Fault::ResetAfterGeneration].into_iter().chain(busy));
        let scenario = Scenario { latency: Duration::from_millis(10), ..scenario };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        assert_eq!(
            whole(service.clone(), with(&scenario, RETRY_COUNT, "0")).await.unwrap_err().charge(),
            Charge::Maybe
        );
        tokio::time::sleep(Duration::from_secs(60)).await;
        let mut again = with(&scenario, RETRY_COUNT, "0");
        again.extensions_mut().insert(CallOptions::new().deadline(Duration::from_secs(1)));
        assert_eq!(whole(service.clone(), again).await.unwrap().0, 503);
        let sent = sim.requests();
        let resend = whole(service, with(&scenario, RETRY_COUNT, "1")).await;
        assert!(sim.requests() > sent, "{resend:?}");
    });
}

#[test]
fn no_request_waits_for_a_call_that_panicked() {
    in_paused_time(async {
        let panics = std::sync::atomic::AtomicBool::new(true);
        let client = Arc::new(move || {
            assert!(!panics.swap(false, std::sync::atomic::Ordering::Relaxed), "it panics once")
        });
        let client = tower::service_fn(move |_: Request<tower_gemini::WireBody>| {
            client();
            async { Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from("{}")))) }
        });
        let keep = KeepPaidLayer::new().grace(Duration::from_secs(100));
        let service = GeminiStack::new().keep_paid(keep.clone()).raw(client);
        let first =
            tokio::spawn(whole(service.clone(), request(&Scenario::new([]), &Trail::new())));
        assert!(first.await.unwrap_err().is_panic());
        let began = tokio::time::Instant::now();
        let _ = whole(service, request(&Scenario::new([]), &Trail::new())).await;
        assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
    });
}
