//! What is spent, in stores that outlive processes: a kill -9 passes no cap and forgets nothing.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tower_gemini::calendar::Zone;
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::spending::{BlockedBy, Caps, Period, SpendAmounts, Spent};
use tower_gemini::store::{
    SpendAsk, SpendSettlement, SpendingBooks, SpendingStore, StoredSpending,
};
use tower_gemini_store::{PostgresStore, RedbStore, RedisStore};

use crate::common::{open, open_with};
use crate::quota_redis::{Server, block_on, pause};

const STORE: &str = "SPENDING_TEST_STORE";
const LIMIT: u64 = 200;

fn attempts(attempts: u64) -> SpendAmounts {
    let mut amounts = SpendAmounts::NONE;
    amounts.attempts = attempts;
    amounts
}

fn books(caps: Caps) -> Arc<SpendingBooks> {
    Arc::new(SpendingBooks::new(
        "test {braces}",
        Zone::pacific(),
        [(Period::Month, caps), (Period::Total, Caps::none())],
    ))
}

/// Not a test of its own: a process that is killed.
#[test]
#[ignore = "started by other tests as another process"]
fn child_that_spends() {
    let Ok(store) = std::env::var(STORE) else { return };
    let (store, books) = (open(&store).spending, books(Caps::none().attempts(LIMIT)));
    block_on(async {
        for n in 0_u32.. {
            let id = u128::from(std::process::id()) << 32 | u128::from(n);
            let ask = SpendAsk::new(books.clone(), id, attempts(1));
            match store.reserve(ask).await.unwrap().outcome {
                Ok(_) => println!("sent"),
                Err(reached) if reached.blocked_by == BlockedBy::Reservations => {
                    pause(Duration::from_millis(20));
                    continue;
                }
                Err(_) => break,
            }
            let paid = SpendSettlement::new(books.clone(), Some(id), attempts(1), 1);
            store.settle(paid).await.unwrap();
        }
        println!("full");
    });
}

fn child(store: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["spending_stores::child_that_spends", "--exact", "--ignored", "--nocapture"])
        .env(STORE, store)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets `at_once` processes spend until one of them has sent a few, kills them all, a few times;
/// then lets one spend the rest.
fn kills_pass_no_cap(store: &str, at_once: usize) {
    const KILLS: usize = 3;
    let mut sent = 0;
    for _ in 0..KILLS {
        let mut children: Vec<_> = (0..at_once).map(|_| child(store)).collect();
        let mut outputs: Vec<_> = children
            .iter_mut()
            .map(|child| BufReader::new(child.stdout.take().unwrap()).lines())
            .collect();
        let mut here = 0;
        while here < 20 {
            match outputs[0].next() {
                Some(Ok(line)) => here += usize::from(line.contains("sent")),
                _ => break,
            }
        }
        for child in &mut children {
            child.kill().unwrap();
        }
        for output in outputs {
            here += output.map_while(Result::ok).filter(|line| line.contains("sent")).count();
        }
        for mut child in children {
            child.wait().unwrap();
        }
        sent += here;
    }
    let mut last = child(store);
    let lines = BufReader::new(last.stdout.take().unwrap()).lines().map_while(Result::ok);
    let (mut rest, mut full) = (0, false);
    for line in lines {
        rest += usize::from(line.contains("sent"));
        full |= line.contains("full");
    }
    last.wait().unwrap();
    let limit = usize::try_from(LIMIT).unwrap();
    assert!(full, "what a dead process had reserved is spent, and nobody waits for it");
    assert!(sent + rest <= limit, "{sent} + {rest}");
    // Each kill may cost the one attempt that a process had reserved.
    assert!(sent + rest >= limit - KILLS * at_once, "{sent} + {rest}");
}

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tower-gemini-spending-{name}-{}.redb", std::process::id()))
}

#[test]
fn kills_pass_no_cap_with_redb() {
    let path = file("kill");
    kills_pass_no_cap(path.to_str().unwrap(), 1);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn kills_of_two_processes_pass_no_cap_with_redis() {
    let Some(server) = Server::start() else { return };
    kills_pass_no_cap(&server.url(), 2);
}

#[test]
fn kills_of_two_processes_pass_no_cap_with_postgres() {
    let Some(server) = test_programs::postgres::start() else { return };
    kills_pass_no_cap(&server.url(), 2);
}

#[test]
fn what_was_not_settled_when_a_file_was_closed_counts_as_spent() {
    let path = file("reopened");
    let books = books(Caps::none().attempts(10));
    let ask = |id, amount| SpendAsk::new(books.clone(), id, attempts(amount));
    block_on(async {
        let store = RedbStore::open(&path).unwrap();
        assert!(store.reserve(ask(1, 6)).await.unwrap().outcome.is_ok());
        let reached = store.reserve(ask(2, 6)).await.unwrap().outcome.unwrap_err();
        assert_eq!(reached.blocked_by, BlockedBy::Reservations);
        drop(store);
        let store = RedbStore::open(&path).unwrap();
        let reached = store.reserve(ask(3, 6)).await.unwrap().outcome.unwrap_err();
        assert_eq!((reached.blocked_by, reached.taken), (BlockedBy::Spent, 6));
        // Its process is gone, so nobody settles it; an error of somebody who does is none.
        let late = SpendSettlement::new(books.clone(), Some(1), attempts(1), 1);
        store.settle(late).await.unwrap();
        assert!(store.reserve(ask(4, 4)).await.unwrap().outcome.is_ok());
    });
    std::fs::remove_file(path).unwrap();
}

#[test]
fn what_redis_gave_up_can_still_be_settled() {
    let Some(server) = Server::start() else { return };
    let store = RedisStore::open(&server.url()).unwrap().give_up_after(Duration::from_millis(1));
    what_was_given_up_can_still_be_settled(&store);
}

#[test]
fn what_postgres_gave_up_can_still_be_settled() {
    let Some(server) = test_programs::postgres::start() else { return };
    let store = PostgresStore::open(&server.url()).unwrap();
    what_was_given_up_can_still_be_settled(&store.give_up_after(Duration::from_millis(1)));
}

fn what_was_given_up_can_still_be_settled(store: &dyn SpendingStore) {
    let books = books(Caps::none().attempts(10));
    let ask = |id, amounts| SpendAsk::new(books.clone(), id, amounts);
    let taken = |spent: &[Spent]| (spent[0].settled.attempts, spent[0].reserved.attempts);
    block_on(async {
        assert!(store.reserve(ask(1, attempts(6))).await.unwrap().outcome.is_ok());
        pause(Duration::from_millis(20));
        let reply = store.reserve(ask(2, attempts(6))).await.unwrap();
        assert_eq!(reply.outcome.unwrap_err().blocked_by, BlockedBy::Spent);
        assert_eq!(taken(&reply.spent), (6, 0), "at its worst case");
        let late = SpendSettlement::new(books.clone(), Some(1), attempts(2), 1);
        // Tried again after an answer that was lost.
        store.settle(late.clone()).await.unwrap();
        store.settle(late).await.unwrap();
        let reply = store.reserve(ask(3, SpendAmounts::NONE)).await.unwrap();
        assert_eq!((taken(&reply.spent), reply.spent[0].images), ((2, 0), 1));
    });
}

/// The script is another implementation of the account: by random moves it says the same.
#[test]
fn redis_counts_as_the_account_does() {
    let Some(server) = Server::start() else { return };
    counts_as_the_account_does(&server.url());
}

/// What is written and read again between two moves loses nothing.
#[test]
fn postgres_counts_as_the_account_does() {
    let Some(server) = test_programs::postgres::start() else { return };
    counts_as_the_account_does(&server.url());
}

fn counts_as_the_account_does(url: &str) {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let store = open_with(url, &format!("seed-{seed}"), 0).spending;
        let caps = Caps::none()
            .at_most_microusd(random.u64(0..9_000))
            .attempts(random.u64(0..12))
            .wall_time(Duration::from_millis(random.u64(0..2_000)));
        let mut books = SpendingBooks::new(
            "same",
            Zone::pacific(),
            [(Period::Month, caps), (Period::Total, Caps::none().certain_microusd(20_000))],
        );
        books.starting_balance.certain_microusd = random.u64(0..5_000);
        let books = Arc::new(books);
        let mut model = StoredSpending::new(books.clone());
        let mut open = Vec::new();
        block_on(async {
            for step in 0..60_u128 {
                let now = SystemClock.now();
                if random.u8(0..5) < 3 || open.is_empty() {
                    let mut amounts = attempts(random.u64(0..3));
                    amounts.wall_ms = random.u64(0..500);
                    amounts.certain_microusd = random.u64(0..3_000);
                    amounts.at_most_microusd = match random.u8(0..9) {
                        0 => u64::MAX,
                        _ => amounts.certain_microusd + random.u64(0..500),
                    };
                    let ask = SpendAsk::new(books.clone(), step, amounts);
                    let (ours, theirs) =
                        (model.reserve(now, &ask), store.reserve(ask).await.unwrap());
                    assert_eq!(ours.spent, theirs.spent, "seed {seed}, step {step}");
                    match (ours.outcome, theirs.outcome) {
                        (Ok(ours), Ok(theirs)) => {
                            assert_eq!(ours, theirs, "seed {seed}, step {step}");
                            open.push((step, ours));
                        }
                        (Err(mut ours), Err(theirs)) => {
                            // Time passes between the two.
                            assert_eq!(ours.wait.is_some(), theirs.wait.is_some());
                            ours.wait = theirs.wait;
                            assert_eq!(ours, theirs, "seed {seed}, step {step}");
                        }
                        (ours, theirs) => {
                            panic!("seed {seed}, step {step}: {ours:?} and {theirs:?}")
                        }
                    }
                } else {
                    let (id, amounts) = open.swap_remove(random.usize(0..open.len()));
                    let mut came_to = amounts;
                    came_to.at_most_microusd = random.u64(0..3_000);
                    let id = (random.u8(0..8) > 0).then_some(id);
                    let settlement =
                        SpendSettlement::new(books.clone(), id, came_to, random.u64(0..2));
                    model.settle(now, &settlement);
                    store.settle(settlement).await.unwrap();
                }
            }
        });
    }
}

#[test]
fn records_outlive_a_process_until_they_are_removed() {
    let path = file("records");
    let (redis, postgres) = (Server::start(), test_programs::postgres::start());
    let servers = [redis.as_ref().map(Server::url), postgres.as_ref().map(|server| server.url())];
    for store in path.to_str().into_iter().chain(servers.iter().flatten().map(String::as_str)) {
        let open = || open(store).records;
        let record = |key: &str, text: Option<&str>| (key.to_owned(), text.map(str::to_owned));
        let keys = || ["a {b}", "gone", "never"].map(str::to_owned).to_vec();
        block_on(async {
            let before = open();
            assert_eq!(before.get("one", keys()).await.unwrap(), [None, None, None]);
            assert_eq!(before.all("one").await.unwrap(), []);
            let records = vec![record("a {b}", Some("old")), record("gone", Some("x"))];
            before.change("one", records).await.unwrap();
            before.change("other", vec![record("a {b}", Some("other"))]).await.unwrap();
            let records = vec![
                record("gone", None),
                record("a {b}", Some("older")),
                record("a {b}", Some("new")),
            ];
            before.change("one", records).await.unwrap();
            drop(before);
            let after = open();
            let texts = after.get("one", keys()).await.unwrap();
            assert_eq!(texts, [Some("new".to_owned()), None, None], "{store}");
            let all = after.all("one").await.unwrap();
            assert_eq!(all, [("a {b}".to_owned(), "new".to_owned())], "{store}");
        });
    }
    std::fs::remove_file(path).unwrap();
}
