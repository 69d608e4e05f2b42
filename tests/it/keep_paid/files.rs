//! What outlives the process.

use std::path::Path;

use super::*;

/// Runs in a directory of its own, and in real time: files are written by threads that a paused
/// clock does not wait for.
fn in_dir(name: &str, case: impl AsyncFnOnce(&Path)) {
    let dir = std::env::temp_dir().join(format!("keep-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(case(&dir));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_is_stored_is_saved_and_loaded_without_a_secret() {
    in_dir("paid", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(150), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let first = stack(&scenario, &sim, &keep);
        disconnect(first, request(&scenario, &Trail::new()), Patience::Time(10)).await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        assert_eq!(keep.save_to(dir).await.unwrap(), 1);
        std::fs::write(dir.join("torn.response"), b"{\"version\":1").unwrap();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            assert!(
                !String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains("sentinel"),
                "{}",
                path.display()
            );
            #[cfg(unix)]
            if !path.ends_with("torn.response") {
                let mode = std::os::unix::fs::PermissionsExt::mode(
                    &std::fs::metadata(&path).unwrap().permissions(),
                );
                assert_eq!(mode & 0o077, 0, "readable by its owner alone");
            }
        }
        // A process that is killed right after it has loaded loses nothing.
        for _ in 0..2 {
            assert_eq!(KeepPaidLayer::new().load_from(dir).await.unwrap(), 1);
        }
        let next = KeepPaidLayer::new();
        assert_eq!(next.load_from(dir).await.unwrap(), 1);
        let (status, body) =
            whole(stack(&scenario, &sim, &next), request(&scenario, &Trail::new())).await.unwrap();
        assert!(status == 200 && !body.is_empty());
        assert_eq!(sim.ledger().charges(TAG), 1);
        // The file is deleted with its response; the damaged one is kept for a person.
        for _ in 0..200 {
            let left: Vec<_> =
                std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            if left == ["torn.damaged"] {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
        assert_eq!(KeepPaidLayer::new().load_from(dir.join("nowhere")).await.unwrap(), 0);
    });
}

#[test]
fn the_result_of_an_idempotency_key_outlives_the_process() {
    in_dir("named", async |dir| {
        let scenario = Scenario::new([Fault::None, Fault::ResetAfterGeneration]);
        let scenario = Scenario { latency: Duration::from_millis(1), ..scenario };
        let sim = scenario.sim();
        let send = |keep: &KeepPaidLayer, key: &'static str| {
            let mut request = request(&scenario, &Trail::new());
            request.headers_mut().insert("idempotency-key", HeaderValue::from_static(key));
            whole(stack(&scenario, &sim, keep), request)
        };
        let first = KeepPaidLayer::new();
        let response = send(&first, "drawn").await.unwrap();
        assert!(!send(&first, "lost").await.unwrap_err().charge().is_surely_free());
        assert_eq!(first.save_to(dir).await.unwrap(), 2);
        for _ in 0..2 {
            let next = KeepPaidLayer::new();
            assert_eq!(next.load_from(dir).await.unwrap(), 2);
            assert_eq!(send(&next, "drawn").await.unwrap(), response);
            assert!(!send(&next, "lost").await.unwrap_err().charge().is_surely_free());
        }
        assert_eq!((sim.requests(), sim.ledger().charges(TAG)), (2, 2));
        // Not for ever: files that are too old are deleted.
        let late = KeepPaidLayer::new().retention(Duration::ZERO);
        assert_eq!(late.load_from(dir).await.unwrap(), 0);
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    });
}

/// Waits until so many files are left, for 5 s at most: they are removed by threads.
async fn files_left(dir: &std::path::Path, count: usize) -> usize {
    let left = || std::fs::read_dir(dir).unwrap().count();
    for _ in 0..500 {
        if left() == count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    left()
}

#[test]
fn the_file_of_a_key_is_deleted_when_its_retention_is_over() {
    in_dir("named-old", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(1), ..Scenario::new([]) };
        let (sim, first) = (scenario.sim(), KeepPaidLayer::new());
        whole(stack(&scenario, &sim, &first), with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!(first.save_to(dir).await.unwrap(), 1);
        let next = KeepPaidLayer::new().retention(Duration::from_secs(1));
        assert_eq!(next.load_from(dir).await.unwrap(), 1);
        assert_eq!(files_left(dir, 1).await, 1);
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        // Expired when the next one comes.
        whole(stack(&scenario, &sim, &next), with(&scenario, KEY, "two")).await.unwrap();
        assert_eq!(files_left(dir, 0).await, 0);
    });
}

/// It is not damaged, and its fingerprints mean something else.
#[test]
fn files_of_another_format_version_stay_unread() {
    in_dir("version", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(1), ..Scenario::new([]) };
        let (sim, first) = (scenario.sim(), KeepPaidLayer::new());
        whole(stack(&scenario, &sim, &first), with(&scenario, KEY, "one")).await.unwrap();
        first.save_to(dir).await.unwrap();
        let path = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
        let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
        assert!(text.starts_with("{\"version\":3,"), "{text}");
        std::fs::write(&path, text.replacen(":3,", ":2,", 1)).unwrap();
        // Before version 3 the files had another extension, and were keyed by `Debug` texts.
        let older = dir.join("0123.answer");
        std::fs::write(&older, "{\"version\":2,\"identity\":\"00\",\"lost\":true}\n").unwrap();
        assert_eq!(KeepPaidLayer::new().load_from(dir).await.unwrap(), 0);
        assert!(path.exists() && older.exists());
    });
}

/// A later process could not replay it: the next request gets an error, and is not charged.
#[test]
fn an_error_of_a_key_that_may_be_charged_is_saved_as_lost() {
    in_dir("error", async |dir| {
        let client = tower::service_fn(|_: Request<tower_gemini::WireBody>| async {
            let response = Response::builder()
                .status(504)
                .body(Full::new(Bytes::from("upstream request timeout")));
            Ok::<_, std::io::Error>(response.unwrap())
        });
        let scenario = Scenario::new([]);
        let service = |keep: &KeepPaidLayer| GeminiStack::new().keep_paid(keep.clone()).raw(client);
        let first = KeepPaidLayer::new();
        let response = service(&first).oneshot(with(&scenario, KEY, "one")).await.unwrap();
        let charge = response.body().verdict().map(tower_gemini::verdict::Verdict::charge);
        assert_eq!(
            (response.status().as_u16(), charge),
            (504, Some(Charge::Maybe)),
            "its verdict comes along"
        );
        assert_eq!(first.save_to(dir).await.unwrap(), 1);
        let next = KeepPaidLayer::new();
        assert_eq!(next.load_from(dir).await.unwrap(), 1);
        let lost = whole(service(&next), with(&scenario, KEY, "one")).await.unwrap_err();
        assert_eq!(lost.charge(), Charge::Maybe, "{lost}");
    });
}

#[test]
fn a_response_from_a_file_whose_delivery_is_cut_is_there_for_the_next_request() {
    in_dir("cut", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(150), ..Scenario::new([]) };
        let sim = Sim::builder().latency(Latency::fixed(scenario.latency)).build();
        let keep = KeepPaidLayer::new();
        disconnect(
            stack(&scenario, &sim, &keep),
            request(&scenario, &Trail::new()),
            Patience::Time(10),
        )
        .await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        keep.save_to(dir).await.unwrap();
        let next = KeepPaidLayer::new();
        next.load_from(dir).await.unwrap();
        let service = stack(&scenario, &sim, &next);
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Chunks(2)).await;
        assert_eq!(next.counts().stored, 1);
        let (_, body) = whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert!(body.len() > 500_000, "{}", body.len());
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

// A part of several images has a blank at its end, which is read when the client has all of them. From
// a file it came in one chunk with the rest, and counted as delivered.
#[test]
fn a_response_from_a_file_is_not_delivered_before_its_last_byte() {
    in_dir("last-byte", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(150), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let first = stack(&scenario, &sim, &keep);
        disconnect(first, request(&scenario, &Trail::new()), Patience::Time(10)).await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        keep.save_to(dir).await.unwrap();
        let next = KeepPaidLayer::new();
        next.load_from(dir).await.unwrap();
        let service = stack(&scenario, &sim, &next);
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Chunks(1)).await;
        assert_eq!(next.counts().stored, 1);
        assert_eq!(whole(service, request(&scenario, &Trail::new())).await.unwrap().0, 200);
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

#[test]
fn a_key_whose_call_was_in_flight_at_the_end_is_not_charged_twice() {
    in_dir("under-way", async |dir| {
        let scenario = Scenario { latency: Duration::from_secs(30), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let call = whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "one"));
        assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
        assert!(!keep.drain(Duration::from_millis(50)).await);
        assert_eq!(keep.save_to(dir).await.unwrap(), 1);
        let next = KeepPaidLayer::new();
        assert_eq!(next.load_from(dir).await.unwrap(), 1);
        let lost =
            whole(stack(&scenario, &sim, &next), with(&scenario, KEY, "one")).await.unwrap_err();
        assert!(!lost.charge().is_surely_free(), "{lost}");
        assert_eq!(sim.requests(), 1);
    });
}

#[test]
fn a_loss_outlives_the_process() {
    in_dir("lost", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(300), ..Scenario::new([]) };
        let sim = scenario.sim();
        // One is lost, and one is still in flight.
        let keep = KeepPaidLayer::new().max_detached(1);
        let of = |caller| with(&scenario, "x-goog-api-key", caller);
        for caller in ["ann", "ben"] {
            disconnect(stack(&scenario, &sim, &keep), of(caller), Patience::Time(20)).await;
        }
        assert_eq!(keep.save_to(dir).await.unwrap(), 2);
        let next = KeepPaidLayer::new();
        assert_eq!((next.load_from(dir).await.unwrap(), next.counts().stored), (2, 0));
        let service = stack(&scenario, &sim, &next);
        for caller in ["ann", "ben"] {
            assert_eq!(
                whole(service.clone(), of(caller)).await.unwrap_err().charge(),
                Charge::Maybe
            );
        }
        assert_eq!(sim.requests(), 2);
        assert_eq!(files_left(dir, 2).await, 2, "a third process would report them too");
    });
}

#[test]
fn a_response_that_is_saved_twice_is_one_file() {
    in_dir("twice", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(150), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        disconnect(
            stack(&scenario, &sim, &keep),
            request(&scenario, &Trail::new()),
            Patience::Time(10),
        )
        .await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        keep.save_to(dir).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        keep.save_to(dir).await.unwrap();
        assert_eq!(
            std::fs::read_dir(dir).unwrap().count(),
            1,
            "a file that is up to date stays as it is"
        );
    });
}

#[test]
fn a_response_delivered_after_it_was_saved_is_not_delivered_again() {
    in_dir("given", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(150), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        disconnect(
            stack(&scenario, &sim, &keep),
            request(&scenario, &Trail::new()),
            Patience::Time(10),
        )
        .await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        keep.save_to(dir).await.unwrap();
        whole(stack(&scenario, &sim, &keep), request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!(keep.counts().replayed, 1);
        assert_eq!(
            files_left(dir, 0).await,
            0,
            "the file is deleted when its response was delivered"
        );
    });
}

#[test]
fn a_key_saved_in_flight_and_then_with_its_response_has_its_response() {
    in_dir("under-way", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(200), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let call = tokio::spawn(whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "one")));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(keep.save_to(dir).await.unwrap(), 1);
        let response = call.await.unwrap().unwrap();
        assert_eq!(keep.save_to(dir).await.unwrap(), 1);
        let next = KeepPaidLayer::new();
        next.load_from(dir).await.unwrap();
        assert_eq!(
            whole(stack(&scenario, &sim, &next), with(&scenario, KEY, "one")).await.unwrap(),
            response
        );
    });
}

#[test]
fn what_was_loaded_can_be_saved_elsewhere() {
    in_dir("else", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(1), ..Scenario::new([]) };
        let (sim, first) = (scenario.sim(), KeepPaidLayer::new());
        let response =
            whole(stack(&scenario, &sim, &first), with(&scenario, KEY, "one")).await.unwrap();
        first.save_to(dir.join("a")).await.unwrap();
        let second = KeepPaidLayer::new();
        second.load_from(dir.join("a")).await.unwrap();
        assert_eq!(second.save_to(dir.join("b")).await.unwrap(), 1);
        let third = KeepPaidLayer::new();
        assert_eq!(third.load_from(dir.join("b")).await.unwrap(), 1);
        assert_eq!(
            whole(stack(&scenario, &sim, &third), with(&scenario, KEY, "one")).await.unwrap(),
            response
        );
    });
}

#[test]
fn the_file_of_a_lost_key_is_not_duplicated_by_each_process() {
    in_dir("lost", async |dir| {
        let scenario = Scenario {
            latency: Duration::from_millis(1),
            ..Scenario::new([Fault::ResetAfterGeneration])
        };
        let (sim, mut keep) = (scenario.sim(), KeepPaidLayer::new());
        let _ = whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "one")).await;
        for _ in 0..3 {
            keep.save_to(dir).await.unwrap();
            keep = KeepPaidLayer::new();
            keep.load_from(dir).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
    });
}

#[test]
fn an_evicted_response_of_a_key_is_read_from_its_file() {
    in_dir("room", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(1), ..Scenario::new([]) };
        let (sim, first) = (scenario.sim(), KeepPaidLayer::new());
        let response =
            whole(stack(&scenario, &sim, &first), with(&scenario, KEY, "one")).await.unwrap();
        first.save_to(dir).await.unwrap();
        let keep = KeepPaidLayer::new().max_stored_bytes(response.1.len() + response.1.len() / 2);
        keep.load_from(dir).await.unwrap();
        whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "two")).await.unwrap();
        whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "two")).await.unwrap();
        assert_eq!(
            whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "one")).await.unwrap(),
            response
        );
        // Killed: nothing is saved.
        let next = KeepPaidLayer::new();
        next.load_from(dir).await.unwrap();
        assert_eq!(
            whole(stack(&scenario, &sim, &next), with(&scenario, KEY, "one")).await.unwrap(),
            response
        );
        assert_eq!(sim.ledger().charges(TAG), 2, "one and two");
    });
}

#[test]
fn a_call_in_the_foreground_is_saved_as_lost() {
    in_dir("live", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(400), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let call =
            tokio::spawn(whole(stack(&scenario, &sim, &keep), request(&scenario, &Trail::new())));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(keep.save_to(dir).await.unwrap(), 1);
        // The process ends: the connection goes with it.
        call.abort();
        let _ = call.await;
        let next = KeepPaidLayer::new();
        next.load_from(dir).await.unwrap();
        let reported = whole(stack(&scenario, &sim, &next), request(&scenario, &Trail::new()))
            .await
            .unwrap_err();
        assert!(reported.is_resend_refused(), "{reported}");
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

#[test]
fn a_response_in_delivery_is_saved() {
    in_dir("on-its-way", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(150), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        disconnect(
            stack(&scenario, &sim, &keep),
            request(&scenario, &Trail::new()),
            Patience::Time(10),
        )
        .await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        let redeemed =
            stack(&scenario, &sim, &keep).oneshot(request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!(keep.save_to(dir).await.unwrap(), 1);
        drop(redeemed);
        let next = KeepPaidLayer::new();
        next.load_from(dir).await.unwrap();
        assert_eq!(
            whole(stack(&scenario, &sim, &next), request(&scenario, &Trail::new()))
                .await
                .unwrap()
                .0,
            200
        );
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

#[test]
fn a_known_call_is_not_loaded_a_second_time() {
    in_dir("here", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(300), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(20)).await;
        assert_eq!(keep.save_to(dir).await.unwrap(), 1);
        keep.load_from(dir).await.unwrap();
        assert!(keep.drain(Duration::from_secs(10)).await);
        assert!(whole(service.clone(), request(&scenario, &Trail::new())).await.is_ok());
        let third = whole(service, request(&scenario, &Trail::new())).await;
        assert!(third.is_ok(), "a loss was reported that was none: {}", third.unwrap_err());
    });
}

#[test]
fn an_evicted_response_is_read_from_its_file() {
    in_dir("whole", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(150), ..Scenario::new([]) };
        let (sim, first) = (scenario.sim(), KeepPaidLayer::new());
        let of = |caller| with(&scenario, "x-goog-api-key", caller);
        disconnect(stack(&scenario, &sim, &first), of("ann"), Patience::Time(10)).await;
        assert!(first.drain(Duration::from_secs(10)).await);
        let bytes = first.counts().stored_bytes;
        first.save_to(dir).await.unwrap();
        let keep = KeepPaidLayer::new().max_stored_bytes(bytes + bytes / 2);
        keep.load_from(dir).await.unwrap();
        disconnect(stack(&scenario, &sim, &keep), of("ben"), Patience::Time(10)).await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        assert_eq!(
            std::fs::read_dir(dir).unwrap().count(),
            1,
            "ann's response is in memory or in its file"
        );
        let ann = whole(stack(&scenario, &sim, &keep), of("ann")).await;
        assert_eq!(files_left(dir, 0).await, 0, "delivered, and deleted");
        assert!(ann.is_ok());
    });
}

#[test]
fn files_of_evicted_responses_stay_however_many_there_are() {
    in_dir("many", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(5), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new().max_detached(4000));
        let service = stack(&scenario, &sim, &keep);
        for n in 0..1100 {
            let mut request = request(&scenario, &Trail::new());
            request.headers_mut().insert("x-goog-api-key", HeaderValue::from(n));
            disconnect(service.clone(), request, Patience::Time(2)).await;
        }
        assert!(keep.drain(Duration::from_secs(100)).await);
        let saved = keep.save_to(dir).await.unwrap();
        let next = KeepPaidLayer::new().max_stored_bytes(20_000);
        next.load_from(dir).await.unwrap();
        // Removed by threads, if they were.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let left = std::fs::read_dir(dir).unwrap().count();
        assert_eq!(saved, left);
    });
}

#[derive(Debug)]
struct At(std::time::SystemTime);

impl tower_gemini::clock::Clock for At {
    fn now(&self) -> std::time::SystemTime {
        self.0
    }
}

#[test]
fn the_file_of_a_response_that_was_put_back_is_dated_anew() {
    in_dir("anew", async |dir| {
        let scenario = Scenario { latency: Duration::from_millis(150), ..Scenario::new([]) };
        let sim = scenario.sim();
        let start = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let at = |minutes: u64| {
            KeepPaidLayer::new().clock(At(start + Duration::from_secs(60 * minutes)))
        };
        let first = at(0);
        disconnect(
            stack(&scenario, &sim, &first),
            request(&scenario, &Trail::new()),
            Patience::Time(10),
        )
        .await;
        assert!(first.drain(Duration::from_secs(10)).await);
        first.save_to(dir).await.unwrap();
        let second = at(9);
        assert_eq!(second.load_from(dir).await.unwrap(), 1);
        // Its client disconnects before the first chunk.
        drop(
            stack(&scenario, &sim, &second)
                .oneshot(request(&scenario, &Trail::new()))
                .await
                .unwrap(),
        );
        assert_eq!(second.save_to(dir).await.unwrap(), 1);
        assert_eq!(at(15).load_from(dir).await.unwrap(), 1);
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
    });
}
