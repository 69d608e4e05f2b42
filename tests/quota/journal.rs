//! The journal in a file and on servers: what a killed process leaves, and what replicas share.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tower_gemini::store::{
    Claim, Journal, JournalChange, JournalFuture, JournalRecord, JournalResponse, JournalState,
    MemoryJournal,
};
use tower_gemini_store::RedbStore;

use crate::common::{open, open_with};
use crate::quota_redis::Server;

const KEY: [u8; 32] = [7; 32];
const KEEP: Duration = Duration::from_secs(600);

fn record_of(call: u128, fingerprint: [u8; 32]) -> JournalRecord {
    JournalRecord::new(call, fingerprint, KEEP)
}

fn begin(call: u128) -> JournalChange {
    begin_of(call, KEY)
}

fn begin_of(call: u128, fingerprint: [u8; 32]) -> JournalChange {
    JournalChange::Begin(Box::new(record_of(call, fingerprint)))
}

fn stored(bytes: usize, taken: bool) -> JournalChange {
    JournalChange::stored(response(bytes), taken, KEEP)
}

fn response(bytes: usize) -> JournalResponse {
    let half = Bytes::from(vec![b'x'; bytes / 2]);
    JournalResponse::new("the head".into(), vec![half.clone(), half])
}

/// What every journal must do, seen from the process that wrote it and from another.
async fn keeps_the_rules(own: Arc<dyn Journal>, other: Arc<dyn Journal>) {
    let write = |call, change| own.write(call, change);
    assert!(matches!(own.claim(KEY, false).await.unwrap(), Claim::Nothing));
    assert!(!write(1, JournalChange::Forget).await.unwrap(), "no such record");

    // A call in flight is seen, and not taken over.
    assert!(write(1, begin(1)).await.unwrap());
    assert!(matches!(own.claim(KEY, false).await.unwrap(), Claim::Nothing), "its own");
    let seen = other.claim(KEY, false).await.unwrap();
    assert!(matches!(seen, Claim::InFlight { detached: false, .. }), "{seen:?}");
    assert!(write(1, JournalChange::Detached(true)).await.unwrap());
    let seen = other.claim(KEY, false).await.unwrap();
    assert!(matches!(seen, Claim::InFlight { detached: true, .. }), "{seen:?}");
    assert!(!other.write(1, JournalChange::Forget).await.unwrap(), "another's");

    // A response that waits goes to whoever asks for it first.
    assert!(write(1, stored(1_000, false)).await.unwrap());
    let own_copy = own.read(1).await.unwrap().unwrap();
    assert_eq!((own_copy.head.as_str(), own_copy.bytes()), ("the head", 1_000));
    let Claim::Call(record, Some(copy)) = other.claim(KEY, false).await.unwrap() else { panic!() };
    assert_eq!((record.call, copy.bytes()), (1, 1_000));
    assert!(!write(1, JournalChange::Taken(true, KEEP)).await.unwrap(), "given to another");
    assert!(matches!(own.claim(KEY, false).await.unwrap(), Claim::InFlight { .. }), "it is taken");
    assert!(other.write(1, JournalChange::Taken(false, KEEP)).await.unwrap());
    assert!(
        matches!(own.claim(KEY, false).await.unwrap(), Claim::Call(_, Some(_))),
        "and put back"
    );
    assert!(write(1, JournalChange::Forget).await.unwrap());
    assert!(matches!(other.claim(KEY, false).await.unwrap(), Claim::Nothing));

    // Whatever else is in flight with it, one whose client is gone is waited for.
    for call in [5, 6, 7] {
        assert!(write(call, begin(call)).await.unwrap());
    }
    assert!(write(5, JournalChange::Detached(true)).await.unwrap());
    assert!(write(7, JournalChange::Lost(KEEP)).await.unwrap());
    let seen = other.claim(KEY, false).await.unwrap();
    assert!(matches!(seen, Claim::InFlight { detached: true, .. }), "{seen:?}");
    for call in [5, 6, 7] {
        assert!(write(call, JournalChange::Forget).await.unwrap());
    }

    keeps_what_was_delivered_for_a_marked_resend(&*own, &*other).await;

    // A loss is told wherever the client asks.
    assert!(write(2, begin(2)).await.unwrap());
    assert!(write(2, JournalChange::Lost(KEEP)).await.unwrap());
    let Claim::Call(record, None) = other.claim(KEY, false).await.unwrap() else { panic!() };
    assert_eq!((record.call, &record.state), (2, &JournalState::Lost));
    assert!(other.write(2, JournalChange::Forget).await.unwrap());

    // A key belongs to one process, and its result to all.
    let keyed = |call| {
        let mut record = record_of(call, KEY);
        record.keyed_request = Some([9; 32]);
        JournalChange::Begin(Box::new(record))
    };
    assert!(write(3, keyed(3)).await.unwrap());
    assert!(!other.write(4, keyed(4)).await.unwrap(), "the key is taken");
    assert!(write(3, stored(1_000, false)).await.unwrap());
    for journal in [&other, &own, &other] {
        let claim = journal.claim(KEY, false).await.unwrap();
        assert!(matches!(&claim, Claim::Call(record, Some(_)) if record.call == 3), "{claim:?}");
    }
    assert!(other.write(3, JournalChange::Forget).await.unwrap());
    assert!(matches!(own.claim(KEY, false).await.unwrap(), Claim::Nothing));
}

/// A response that a client has is for a marked resend, for a while, and no loss for anybody else.
async fn keeps_what_was_delivered_for_a_marked_resend(own: &dyn Journal, other: &dyn Journal) {
    let deliver = async |journal: &dyn Journal, keep_for| {
        assert!(journal.write(8, JournalChange::Delivered(keep_for)).await.unwrap());
    };
    let given = |claim: Claim| match claim {
        Claim::Call(record, response) => {
            assert!(matches!(record.state, JournalState::Delivered { .. }), "{record:?}");
            response.map(|response| (response.head.clone(), response.bytes()))
        }
        claim => panic!("{claim:?}"),
    };
    let whole = Some(("the head".to_owned(), 1_000));
    assert!(own.write(8, begin(8)).await.unwrap());
    assert!(own.write(8, stored(1_000, true)).await.unwrap());
    deliver(own, KEEP).await;
    assert!(matches!(other.claim(KEY, false).await.unwrap(), Claim::Nothing), "not marked");
    assert!(matches!(own.claim(KEY, true).await.unwrap(), Claim::Nothing), "its own");
    assert_eq!(own.read(8).await.unwrap().unwrap().bytes(), 1_000);

    // What waits, is being made for nobody, or is lost comes first.
    assert!(own.write(5, begin(5)).await.unwrap());
    assert!(own.write(5, JournalChange::Detached(true)).await.unwrap());
    let seen = other.claim(KEY, true).await.unwrap();
    assert!(matches!(seen, Claim::InFlight { detached: true, .. }), "{seen:?}");
    assert!(own.write(5, JournalChange::Lost(KEEP)).await.unwrap());
    let claim = other.claim(KEY, true).await.unwrap();
    assert!(matches!(&claim, Claim::Call(record, None) if record.call == 5), "{claim:?}");
    assert!(other.write(5, JournalChange::Forget).await.unwrap());

    // It belongs to whoever gives it away, and may be delivered again, by that one or another.
    assert_eq!(given(other.claim(KEY, true).await.unwrap()), whole);
    assert!(!own.write(8, JournalChange::Taken(true, KEEP)).await.unwrap(), "given to another");
    assert!(other.write(8, JournalChange::Taken(true, KEEP)).await.unwrap());
    assert!(matches!(own.claim(KEY, true).await.unwrap(), Claim::InFlight { .. }), "it is taken");
    deliver(other, KEEP).await;
    assert_eq!(given(own.claim(KEY, true).await.unwrap()), whole);

    // One that its client did not receive waits as long as any.
    let moment = Duration::from_millis(300);
    deliver(own, moment).await;
    assert!(own.write(8, JournalChange::Taken(true, KEEP)).await.unwrap());
    assert!(own.write(8, JournalChange::Taken(false, KEEP)).await.unwrap());
    tokio::time::sleep(2 * moment).await;
    let claim = other.claim(KEY, false).await.unwrap();
    assert!(matches!(&claim, Claim::Call(_, Some(copy)) if copy.bytes() == 1_000), "{claim:?}");
    deliver(other, moment).await;
    tokio::time::sleep(2 * moment).await;
    assert!(matches!(own.claim(KEY, true).await.unwrap(), Claim::Nothing), "its time is over");
    let _ = other.write(8, JournalChange::Forget).await.unwrap();

    // Of one that the store never had, a marked resend is told.
    assert!(own.write(9, begin(9)).await.unwrap());
    assert!(own.write(9, JournalChange::Delivered(KEEP)).await.unwrap());
    assert_eq!(given(other.claim(KEY, true).await.unwrap()), None);
    assert!(other.write(9, JournalChange::Forget).await.unwrap());
}

#[tokio::test]
async fn the_journal_in_memory_keeps_the_rules() {
    let journal = MemoryJournal::new();
    let other = journal.replica();
    keeps_the_rules(Arc::new(journal), Arc::new(other)).await;
}

#[tokio::test]
async fn the_journal_on_redis_keeps_the_rules() {
    let Some(server) = Server::start() else { return };
    keeps_the_rules(open(&server.url()).journal, open(&server.url()).journal).await;
}

#[tokio::test]
async fn the_journal_on_postgres_keeps_the_rules() {
    let Some(server) = test_programs::postgres::start() else { return };
    keeps_the_rules(open(&server.url()).journal, open(&server.url()).journal).await;
}

#[tokio::test]
async fn of_many_processes_on_redis_one_takes_a_key_and_one_gets_its_response() {
    let Some(server) = Server::start() else { return };
    one_of_many(&server.url()).await;
}

#[tokio::test]
async fn of_many_processes_on_postgres_one_takes_a_key_and_one_gets_its_response() {
    let Some(server) = test_programs::postgres::start() else { return };
    one_of_many(&server.url()).await;
}

/// Of processes that begin at once, with clocks that are decades behind, and then of others that
/// claim at once. A process that had only claimed counted as gone: another one got the response
/// too.
async fn one_of_many(url: &str) {
    let journals: Vec<_> = (0..8).map(|_| open(url).journal).collect();
    for round in 0..10_u8 {
        let call_of = |n: usize| 100 * u128::from(round) + n as u128;
        let key = [round; 32];
        let begin = |(n, journal): (usize, &Arc<dyn Journal>)| {
            let mut record = record_of(call_of(n), key);
            (record.keyed_request, record.since_ms) = (Some([9; 32]), 0);
            journal.write(call_of(n), JournalChange::Begin(Box::new(record)))
        };
        let begun = join_all(journals.iter().enumerate().map(begin)).await;
        let owners: Vec<_> = (0..8).filter(|n| *begun[*n].as_ref().unwrap()).collect();
        let [owner] = owners[..] else { panic!("{begun:?}") };
        for (n, journal) in journals.iter().enumerate().filter(|(n, _)| *n != owner) {
            let claim = journal.claim(key, false).await.unwrap();
            assert!(matches!(claim, Claim::InFlight { detached: true, .. }), "{n}: {claim:?}");
        }
        assert!(journals[owner].write(call_of(owner), JournalChange::Forget).await.unwrap());

        assert!(journals[0].write(call_of(9), begin_of(call_of(9), key)).await.unwrap());
        assert!(journals[0].write(call_of(9), stored(1_000, false)).await.unwrap());
        let others: Vec<_> = (0..8).map(|_| open(url).journal).collect();
        let claims = join_all(others.iter().map(|other| other.claim(key, false))).await;
        let got = claims.iter().filter(|claim| matches!(claim, Ok(Claim::Call(_, Some(_)))));
        assert_eq!(got.count(), 1);
    }
}

// Nobody asks again for most of what was delivered.
#[tokio::test]
async fn what_is_of_no_use_any_more_leaves_postgres_unasked() {
    let Some(server) = test_programs::postgres::start() else { return };
    let (gone, other) = (open(&server.url()).journal, open(&server.url()).journal);
    for change in [begin(1), stored(1_000, true), JournalChange::Delivered(KEEP / 10_000)] {
        assert!(gone.write(1, change).await.unwrap());
    }
    assert!(other.write(2, begin(2)).await.unwrap());
    let calls =
        || server.run("SELECT string_agg(right(call::text, 1), ' ') FROM tower_gemini_calls");
    for _ in 0..100 {
        if calls() == "2" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} are there", calls());
}

#[tokio::test]
async fn responses_on_redis_stay_within_their_bytes_and_the_oldest_makes_room() {
    let Some(server) = Server::start() else { return };
    responses_stay_within_their_bytes(&server.url()).await;
}

#[tokio::test]
async fn responses_on_postgres_stay_within_their_bytes_and_the_oldest_makes_room() {
    let Some(server) = test_programs::postgres::start() else { return };
    responses_stay_within_their_bytes(&server.url()).await;
    let held = server.run("SELECT sum(octet_length(body)) FROM tower_gemini_calls");
    assert_eq!(held, "8000");
}

async fn responses_stay_within_their_bytes(url: &str) {
    let journal = || open_with(url, "test", 10_000).journal;
    let (own, other) = (journal(), journal());
    for call in 1..=4 {
        let record = record_of(call, [call as u8; 32]);
        assert!(own.write(call, JournalChange::Begin(Box::new(record))).await.unwrap());
        let keep_for = KEEP + Duration::from_secs(call as u64);
        let change = JournalChange::stored(response(4_000), false, keep_for);
        assert!(own.write(call, change).await.unwrap());
    }
    let mut found = Vec::new();
    for call in 1..=4 {
        let Claim::Call(_, response) = other.claim([call; 32], false).await.unwrap() else {
            panic!()
        };
        found.push(response.is_some());
    }
    assert_eq!(found, [false, false, true, true], "what made room is lost, and said to be");
    assert!(own.write(5, begin(5)).await.unwrap());
    let error = own.write(5, stored(20_000, false)).await.unwrap_err().to_string();
    assert!(error.contains("larger than"), "{error}");
}

// What a client has makes room without being called a loss, and before what still waits.
#[tokio::test]
async fn a_delivered_response_that_makes_room_on_redis_is_lost_to_its_marked_resend_alone() {
    let Some(server) = Server::start() else { return };
    what_was_delivered_makes_room(&server.url()).await;
}

#[tokio::test]
async fn a_delivered_response_that_makes_room_on_postgres_is_lost_to_its_marked_resend_alone() {
    let Some(server) = test_programs::postgres::start() else { return };
    what_was_delivered_makes_room(&server.url()).await;
}

async fn what_was_delivered_makes_room(url: &str) {
    let journal = || open_with(url, "test", 10_000).journal;
    let (own, other) = (journal(), journal());
    for call in 1..=3 {
        let record = record_of(call, [call as u8; 32]);
        assert!(own.write(call, JournalChange::Begin(Box::new(record))).await.unwrap());
        assert!(own.write(call, stored(4_000, call == 2)).await.unwrap());
        if call == 2 {
            assert!(own.write(2, JournalChange::Delivered(KEEP / 20)).await.unwrap());
        }
    }
    for waiting in [1, 3] {
        let claim = other.claim([waiting; 32], false).await.unwrap();
        assert!(matches!(claim, Claim::Call(_, Some(_))), "{claim:?}");
    }
    assert!(matches!(other.claim([2; 32], false).await.unwrap(), Claim::Nothing));
    let Claim::Call(record, None) = other.claim([2; 32], true).await.unwrap() else { panic!() };
    assert_eq!(record.state, JournalState::Delivered { head: Some("the head".into()) });
}

// A process that is killed is not heard of any more: what it had in flight is lost, and what it had
// stored is delivered.
#[tokio::test]
async fn what_a_killed_process_left_on_redis_is_taken_over() {
    let Some(server) = Server::start() else { return };
    what_a_killed_process_left_is_taken_over(&server.url()).await;
}

#[tokio::test]
async fn what_a_killed_process_left_on_postgres_is_taken_over() {
    let Some(server) = test_programs::postgres::start() else { return };
    what_a_killed_process_left_is_taken_over(&server.url()).await;
}

async fn what_a_killed_process_left_is_taken_over(url: &str) {
    let mut child = child(url);
    await_line(&mut child, "ready");
    let other = open(url).journal;
    let claim = other.claim(KEY, false).await.unwrap();
    assert!(matches!(claim, Claim::InFlight { .. }), "{claim:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    taken_over(&*other).await;
}

#[tokio::test]
async fn what_a_killed_process_left_in_its_file_is_taken_over() {
    let path =
        std::env::temp_dir().join(format!("tower-gemini-journal-{}.redb", std::process::id()));
    let mut child = child(path.to_str().unwrap());
    await_line(&mut child, "ready");
    child.kill().unwrap();
    child.wait().unwrap();
    // What is claimed is written down too: a second process that is killed changes nothing.
    for _ in 0..2 {
        let store = RedbStore::open(&path).unwrap();
        taken_over(&store).await;
    }
    let store = RedbStore::open(&path).unwrap();
    taken_over(&store).await;
    for call in [1, 2] {
        assert!(store.write(call, JournalChange::Forget).await.unwrap());
    }
    drop(store);
    let left = std::fs::read_dir(path.with_extension("responses")).unwrap().count();
    assert_eq!(left, 0, "a response that was delivered leaves no file");
    std::fs::remove_dir_all(path.with_extension("responses")).unwrap();
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn what_was_delivered_is_in_the_file_for_a_marked_resend_and_goes_when_its_time_is_over() {
    let name = format!("tower-gemini-delivered-{}.redb", std::process::id());
    let path = std::env::temp_dir().join(name);
    let is_marked = [(false, KEEP), (true, KEEP), (true, Duration::from_millis(1))];
    for (round, (is_resend, keep_for)) in is_marked.into_iter().enumerate() {
        let store = RedbStore::open(&path).unwrap();
        let call = round as u128;
        for change in [begin(call), stored(1_000, true), JournalChange::Delivered(keep_for)] {
            assert!(store.write(call, change).await.unwrap());
        }
        drop(store);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let next = RedbStore::open(&path).unwrap();
        let claim = next.claim(KEY, is_resend).await.unwrap();
        match claim {
            Claim::Call(record, Some(copy)) => {
                assert!(round == 1 && copy.bytes() == 1_000, "{record:?}")
            }
            claim => assert!(round != 1 && matches!(claim, Claim::Nothing), "{claim:?}"),
        }
        if round == 0 {
            assert!(matches!(next.claim(KEY, true).await.unwrap(), Claim::Call(_, Some(_))));
        }
        let _ = next.write(call, JournalChange::Forget).await.unwrap();
        drop(next);
    }
    let left = std::fs::read_dir(path.with_extension("responses")).unwrap().count();
    assert_eq!(left, 0);
    std::fs::remove_dir_all(path.with_extension("responses")).unwrap();
    std::fs::remove_file(path).unwrap();
}

/// Takes over the two calls of the killed process: a response first, then the loss.
async fn taken_over(journal: &dyn Journal) {
    let mut found = Vec::new();
    for _ in 0..200 {
        match journal.claim(KEY, false).await.unwrap() {
            Claim::Call(record, response) => {
                found.push((record.call, response.map(|response| response.bytes())));
            }
            _ if found.len() == 2 => break,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    assert_eq!(found, [(2, Some(1_000_000)), (1, None)]);
}

const AT: &str = "JOURNAL_TEST_AT";

/// Not a test of its own: the process that is killed.
#[test]
#[ignore = "started as another process, and killed"]
fn child_that_is_killed() {
    let Ok(at) = std::env::var(AT) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let journal = open(&at).journal;
        let written: Vec<JournalFuture<bool>> = vec![
            journal.write(1, begin(1)),
            journal.write(2, begin(2)),
            journal.write(3, begin(3)),
            journal.write(2, stored(1_000_000, true)),
            journal.write(3, JournalChange::Forget),
        ];
        for written in written {
            assert!(written.await.unwrap());
        }
        println!("ready");
        std::future::pending::<()>().await;
    });
}

fn child(at: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["journal::child_that_is_killed", "--exact", "--ignored", "--nocapture"])
        .env(AT, at)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn await_line(child: &mut Child, line: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|found| found.contains(line)), "the process ended");
}
