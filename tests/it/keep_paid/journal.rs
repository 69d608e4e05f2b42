//! What is known of paid calls after a crash, and to other processes.

use std::future::poll_fn;
use std::pin::Pin;

use tower_gemini::store::{
    Claim, Journal, JournalChange, JournalFuture, JournalResponse, MemoryJournal,
};

use super::*;

fn layer(journal: &MemoryJournal) -> KeepPaidLayer {
    KeepPaidLayer::new().journal(Arc::new(journal.clone()))
}

/// The moments of a call at which a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Generating,
    CallerGone,
    Stored,
    Delivering,
    BeforeTheLastByte,
    Replaying,
}

const MOMENTS: [Moment; 6] = [
    Moment::Generating,
    Moment::CallerGone,
    Moment::Stored,
    Moment::Delivering,
    Moment::BeforeTheLastByte,
    Moment::Replaying,
];

fn sim() -> Sim {
    let latency = Latency::fixed(Duration::from_secs(20));
    Sim::builder()
        .latency(latency)
        .tiny_images(false)
        .announce_length(true)
        .chunks(64 * 1024 * 1024, Duration::ZERO)
        .build()
}

fn with_key(scenario: &Scenario, key: Option<&'static str>) -> Request<Full<Bytes>> {
    key.map_or_else(|| request(scenario, &Trail::new()), |key| with(scenario, KEY, key))
}

/// Sends a call, and returns what is left of it in the moment in which the process is killed.
async fn until(moment: Moment, service: &Kept, request: impl Fn() -> Request<Full<Bytes>>) {
    let seconds = |seconds: u64| Patience::Time(seconds * 1_000);
    match moment {
        Moment::Generating => {
            // Killed: nobody sees it disconnect.
            tokio::spawn(whole(service.clone(), request()));
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        Moment::CallerGone => {
            disconnect(service.clone(), request(), seconds(5)).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        Moment::Stored => {
            disconnect(service.clone(), request(), seconds(5)).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Moment::Delivering => part_of(service, request(), 1).await,
        Moment::BeforeTheLastByte => part_of(service, request(), usize::MAX).await,
        Moment::Replaying => {
            disconnect(service.clone(), request(), seconds(5)).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            part_of(service, request(), 1).await;
        }
    }
}

/// Reads so much of a response, and not its last chunk.
async fn part_of(service: &Kept, request: Request<Full<Bytes>>, chunks: usize) {
    let mut body = service.clone().oneshot(request).await.unwrap().into_body();
    for _ in 0..chunks {
        body.frame().await.unwrap().unwrap();
        if body.size_hint().upper().is_some_and(|left| left < 100_000) {
            break;
        }
    }
    std::mem::forget(body);
}

#[test]
fn a_process_killed_at_any_moment_is_paid_once_and_what_had_arrived_is_delivered() {
    for (moment, key) in
        MOMENTS.into_iter().flat_map(|moment| [(moment, None), (moment, Some("k"))])
    {
        in_paused_time(async {
            let scenario = Scenario::new([]);
            let (sim, journal) = (sim(), MemoryJournal::new());
            let service = stack(&scenario, &sim, &layer(&journal));
            until(moment, &service, || with_key(&scenario, key)).await;
            let journal = journal.after_a_crash();
            let next = stack(&scenario, &sim, &layer(&journal));
            tokio::time::sleep(Duration::from_secs(30)).await;
            let response = whole(next.clone(), with_key(&scenario, key)).await;
            assert_eq!(sim.ledger().charges(TAG), 1, "{moment:?} {key:?}");
            let arrived = !matches!(moment, Moment::Generating | Moment::CallerGone);
            match response {
                Ok((status, body)) => {
                    assert!(arrived, "{moment:?} {key:?}");
                    assert!(status == 200 && body.len() > 100_000, "{moment:?} {key:?}");
                }
                Err(error) => {
                    assert!(!arrived, "{moment:?} {key:?} {error}");
                    assert_eq!(error.charge(), Charge::Maybe);
                }
            }
            // Whoever buys the risk is sent.
            if !arrived && key.is_none() {
                let mut bought = request(&scenario, &Trail::new());
                bought.extensions_mut().insert(CallOptions::new().maybe_charged_resends(1));
                whole(next, bought).await.unwrap();
                assert_eq!(sim.ledger().charges(TAG), 2);
            }
        });
    }
}

#[test]
fn without_a_journal_a_killed_process_is_paid_twice_at_every_moment() {
    for moment in MOMENTS {
        in_paused_time(async {
            let (scenario, sim) = (Scenario::new([]), sim());
            let service = stack(&scenario, &sim, &KeepPaidLayer::new());
            until(moment, &service, || request(&scenario, &Trail::new())).await;
            let next = stack(&scenario, &sim, &KeepPaidLayer::new());
            whole(next, request(&scenario, &Trail::new())).await.unwrap();
            assert_eq!(sim.ledger().charges(TAG), 2, "{moment:?}");
        });
    }
}

#[test]
fn a_call_that_cost_nothing_leaves_no_record() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::HighDemand, Fault::None]);
        let (sim, journal) = (scenario.sim(), MemoryJournal::new());
        let service = stack(&scenario, &sim, &layer(&journal));
        let mut call = Box::pin(whole(service, request(&scenario, &Trail::new())));
        // The first attempt has ended, and the second waits.
        while sim.requests() == 0 || !journal.is_empty() {
            let _ = tokio::time::timeout(Duration::from_millis(100), &mut call).await;
        }
        assert_eq!(sim.requests(), 1);
        let after = journal.after_a_crash();
        std::mem::forget(call);
        let next = stack(&scenario, &sim, &layer(&after));
        whole(next, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 1);
        assert!(after.is_empty(), "delivered");
    });
}

#[test]
fn nothing_is_sent_that_cannot_be_recorded() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, journal) = (scenario.sim(), MemoryJournal::new());
        let service = stack(&scenario, &sim, &layer(&journal));
        journal.set_failing(true);
        let trail = Trail::new();
        let error = whole(service.clone(), request(&scenario, &trail)).await.unwrap_err();
        assert!(error.is_not_recorded(), "{error}");
        assert_eq!(trail.attempts().len(), 0, "none that could count as a failed connection");
        assert_eq!(
            error.to_string(),
            "not sent: what is paid for is recorded first, and the journal cannot be written; make \
             its store writable: the store failed: the journal takes nothing; nothing was charged"
        );
        assert_eq!(sim.requests(), 0);
        journal.set_failing(false);
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
    });
}

#[test]
fn a_resend_that_lands_on_another_replica_gets_the_response_once() {
    in_paused_time(async {
        let (scenario, sim, journal) = (Scenario::new([]), sim(), MemoryJournal::new());
        let one = stack(&scenario, &sim, &layer(&journal));
        let two = stack(&scenario, &sim, &layer(&journal.replica()));
        // While it is generated, the other replica waits for it.
        disconnect(one.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        let (status, body) = whole(two.clone(), request(&scenario, &Trail::new())).await.unwrap();
        assert!(status == 200 && body.len() > 100_000);
        assert_eq!(sim.ledger().charges(TAG), 1);
        // It was given: the next request is another call, wherever it lands.
        let (_, next) = whole(one.clone(), request(&scenario, &Trail::new())).await.unwrap();
        assert_ne!(body, next);
        assert_eq!(sim.ledger().charges(TAG), 2);
        assert!(journal.is_empty());
    });
}

/// The other processes that a resend can land on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Replica,
    AfterACrash,
}

// The client never read it: only the process that had delivered it knew, and each other one paid
// again.
#[test]
fn a_marked_resend_of_what_another_process_delivered_gets_it_and_an_unmarked_request_does_not() {
    for other in [Other::Replica, Other::AfterACrash] {
        in_paused_time(async {
            let (scenario, sim, journal) = (Scenario::new([]), sim(), MemoryJournal::new());
            let ask =
                |service: &Kept, sends| whole(service.clone(), with(&scenario, RETRY_COUNT, sends));
            let one = stack(&scenario, &sim, &layer(&journal));
            let first = ask(&one, "0").await.unwrap();
            let next_journal = match other {
                Other::Replica => journal.replica(),
                Other::AfterACrash => journal.after_a_crash(),
            };
            let two = stack(&scenario, &sim, &layer(&next_journal));
            // However often, and from wherever the process is that is still alive.
            assert_eq!(ask(&two, "1").await.unwrap(), first);
            if other == Other::Replica {
                assert_eq!(ask(&one, "2").await.unwrap(), first);
            }
            assert_eq!(ask(&two, "3").await.unwrap(), first);
            assert_eq!(sim.ledger().charges(TAG), 1, "{other:?}");
            let another = ask(&two, "0").await.unwrap();
            assert_ne!(another, first, "a new call is a new call");
            assert_eq!(sim.ledger().charges(TAG), 2, "{other:?}");
            // As long as the process that delivered it would keep it.
            tokio::time::sleep(Duration::from_secs(31)).await;
            assert_ne!(ask(&two, "1").await.unwrap(), another);
            assert_eq!(sim.ledger().charges(TAG), 3, "{other:?}");
            tokio::time::sleep(Duration::from_secs(31)).await;
            whole(two, request(&scenario, &Trail::new())).await.unwrap();
            assert!(next_journal.is_empty(), "{other:?}");
        });
    }
}

// A client that hangs up on a replayed response of another process: it waits for the next request.
#[test]
fn what_was_delivered_elsewhere_and_is_not_received_here_waits() {
    in_paused_time(async {
        let (scenario, sim, journal) = (Scenario::new([]), sim(), MemoryJournal::new());
        let one = stack(&scenario, &sim, &layer(&journal));
        let two = stack(&scenario, &sim, &layer(&journal.replica()));
        let first = whole(one.clone(), with(&scenario, RETRY_COUNT, "0")).await.unwrap();
        drop(two.oneshot(with(&scenario, RETRY_COUNT, "1")).await.unwrap());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let next = whole(one, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!((next, sim.ledger().charges(TAG)), (first, 1));
    });
}

// What makes room in memory is not paid again: the journal has it, and without one the resend is
// told.
#[test]
fn a_delivered_response_that_makes_room_in_memory_is_read_from_the_journal() {
    for has_journal in [true, false] {
        in_paused_time(async {
            let (scenario, sim, journal) = (Scenario::new([]), sim(), MemoryJournal::new());
            let larger = Scenario { size: "2K", ..Scenario::new([]) };
            let ask = |service: &Kept, scenario: &Scenario, sends| {
                whole(service.clone(), with(scenario, RETRY_COUNT, sends))
            };
            let unkept = scenario.stack().raw(sim.service());
            let (_, body) = whole(unkept, request(&larger, &Trail::new())).await.unwrap();
            let keep = match has_journal {
                true => layer(&journal),
                false => KeepPaidLayer::new(),
            };
            let keep = keep.max_stored_bytes(body.len() + 1_000);
            let service = stack(&scenario, &sim, &keep);
            let first = ask(&service, &scenario, "0").await.unwrap();
            ask(&service, &larger, "0").await.unwrap();
            let resent = ask(&service, &scenario, "1").await;
            assert_eq!(sim.ledger().charges(TAG), 1 + 2, "{has_journal}");
            match resent {
                Ok(resent) => assert!(has_journal && resent == first),
                Err(error) => assert!(!has_journal && error.charge() == Charge::Maybe, "{error}"),
            }
        });
    }
}

#[test]
fn connected_clients_of_two_replicas_get_a_response_each() {
    in_paused_time(async {
        let (scenario, sim, journal) = (Scenario::new([]), sim(), MemoryJournal::new());
        let one = stack(&scenario, &sim, &layer(&journal));
        let two = stack(&scenario, &sim, &layer(&journal.replica()));
        let (a, b) = tokio::join!(
            whole(one, request(&scenario, &Trail::new())),
            whole(two, request(&scenario, &Trail::new())),
        );
        assert_ne!(a.unwrap().1, b.unwrap().1);
        assert_eq!(sim.ledger().charges(TAG), 2);
    });
}

#[test]
fn a_key_is_one_call_in_all_replicas_however_often_it_is_asked_for() {
    in_paused_time(async {
        let (scenario, sim, journal) = (Scenario::new([]), sim(), MemoryJournal::new());
        let stacks: Vec<_> =
            (0..3).map(|_| stack(&scenario, &sim, &layer(&journal.replica()))).collect();
        let ask = |at: usize| whole(stacks[at].clone(), with(&scenario, KEY, "one"));
        let (a, b, c) = tokio::join!(ask(0), ask(1), ask(2));
        let first = a.unwrap();
        assert!(first == b.unwrap() && first == c.unwrap());
        for at in [2, 0, 1, 1] {
            assert_eq!(ask(at).await.unwrap(), first);
        }
        assert_eq!(sim.ledger().charges(TAG), 1);
        // The same key for another request is refused by all of them.
        let larger = Scenario { size: "2K", ..Scenario::new([]) };
        for service in stacks {
            let (status, _) = whole(service, with(&larger, KEY, "one")).await.unwrap();
            assert_eq!(status, 422);
        }
    });
}

// A response that had to make room in memory is in the journal still.
#[test]
fn what_makes_room_in_memory_is_read_from_the_journal() {
    in_paused_time(async {
        let (scenario, sim, journal) = (Scenario::new([]), sim(), MemoryJournal::new());
        let sizes = ["1K", "2K", "4K"].map(|size| Scenario { size, ..Scenario::new([]) });
        let largest = whole(scenario.stack().raw(sim.service()), request(&sizes[2], &Trail::new()));
        let room = largest.await.unwrap().1.len() + 1_000;
        let keep = layer(&journal).max_stored_bytes(room);
        let service = stack(&scenario, &sim, &keep);
        for scenario in &sizes {
            let request = request(scenario, &Trail::new());
            disconnect(service.clone(), request, Patience::Time(5_000)).await;
            tokio::time::sleep(Duration::from_secs(100)).await;
        }
        assert!(keep.counts().stored < sizes.len());
        for scenario in &sizes {
            let (status, _) =
                whole(service.clone(), request(scenario, &Trail::new())).await.unwrap();
            assert_eq!(status, 200, "{}", scenario.size);
        }
        assert_eq!(sim.ledger().charges(TAG), 1 + 3);
        assert!(journal.is_empty());
    });
}

proptest! {
    #![proptest_config(cases(1000))]

    // Whatever the server does and whenever the process is killed: both sends together are paid
    // once, unless the first client had its result.
    #[test]
    fn no_crash_makes_a_resend_pay_again(
        weather in proptest::collection::vec(faults(), 0..4),
        leaves in prop::option::of(0u64..60_000),
        killed in 0u64..90_000,
        pause in 0u64..30_000,
        key in prop::option::of(Just("k")),
        ask in prop::sample::select(vec![Ask::Whole, Ask::Sse, Ask::Array]),
    ) {
        let scenario = Scenario { ask, latency: Duration::from_secs(3), ..Scenario::new(weather) };
        in_paused_time(async {
            let sim = Sim::builder()
                .seed(scenario.seed)
                .script(scenario.faults.clone())
                .latency(Latency::fixed(scenario.latency))
                .tiny_images(true)
                .chunks(700, Duration::from_millis(300))
                .build();
            let journal = MemoryJournal::new();
            let service = stack(&scenario, &sim, &layer(&journal));
            let patience = Patience::Time(leaves.unwrap_or(u64::from(u32::MAX)));
            // What the dead process does after that reaches nobody, and records nothing.
            let client = tokio::spawn(disconnect(service, with_key(&scenario, key), patience));
            let done = tokio::time::timeout(Duration::from_millis(killed), client).await;
            let received = done.map_or(Received::Nothing, Result::unwrap);
            let after = journal.after_a_crash();
            let next = stack(&scenario, &sim, &layer(&after));
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let response = whole(next, with_key(&scenario, key)).await;
            tokio::time::sleep(Duration::from_secs(600)).await;
            let charges = sim.ledger().charges(TAG);
            let most = 1 + usize::from(received == Received::Result && key.is_none());
            assert!(charges <= most, "{charges} charges, {received:?}, {response:?}");
        });
    }
}

/// Writes in its own time, as a disk does.
#[derive(Debug)]
struct Slow(MemoryJournal);

impl Journal for Slow {
    fn write(&self, call: u128, change: JournalChange) -> JournalFuture<bool> {
        let written = self.0.write(call, change);
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            written.await
        })
    }

    fn claim(&self, fingerprint: [u8; 32], is_resend: bool) -> JournalFuture<Claim> {
        self.0.claim(fingerprint, is_resend)
    }

    fn read(&self, call: u128) -> JournalFuture<Option<JournalResponse>> {
        self.0.read(call)
    }
}

// The last bytes wait until the response is written down, and a client that leaves in between finds
// it.
#[test]
fn a_client_that_leaves_while_its_response_is_written_down_gets_it() {
    in_paused_time(async {
        let (scenario, sim) = (Scenario::new([]), sim());
        let journal = MemoryJournal::new();
        let keep = KeepPaidLayer::new().journal(Arc::new(Slow(journal.clone())));
        let service = stack(&scenario, &sim, &keep);
        let call = service.clone().oneshot(request(&scenario, &Trail::new()));
        let mut body = call.await.unwrap().into_body();
        let read = async {
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                frame.unwrap();
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(100), read).await.is_err());
        drop(body);
        let (status, body) = whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert!(status == 200 && body.len() > 100_000);
        assert_eq!(sim.ledger().charges(TAG), 1);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(journal.is_empty());
    });
}

// All that had come was read ahead, with the error behind it: a client that left in between counted
// as served, and its resend was paid again.
#[test]
fn a_client_that_leaves_before_the_error_of_its_response_is_told_of_the_loss() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::CutBody { at: 200_000 }, Fault::None]);
        let sim = Sim::builder().script(scenario.faults.clone()).latency(Latency::none()).build();
        let journal = MemoryJournal::new();
        let service = stack(&scenario, &sim, &layer(&journal));
        let response = service.clone().oneshot(request(&scenario, &Trail::new())).await.unwrap();
        let mut body = response.into_body();
        while body.size_hint().exact() != Some(0) {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        let error = whole(service, request(&scenario, &Trail::new())).await.unwrap_err();
        assert_eq!((error.charge(), sim.ledger().charges(TAG)), (Charge::Maybe, 1), "{error}");
    });
}
