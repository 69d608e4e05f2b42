//! The count in a file: after a kill -9 the day goes on where it was.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tower_gemini::quota_guard::{Limits, QuotaGuardLayer, QuotaHandle, QuotaKey};
use tower_gemini_store::RedbStore;

use crate::common::MODEL;

const FILE: &str = "QUOTA_TEST_REDB_FILE";
const LIMIT: u64 = 300;

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tower-gemini-quota-{name}-{}.redb", std::process::id()))
}

fn handle(store: RedbStore) -> (QuotaGuardLayer, QuotaHandle) {
    // A generous limit on the store's time: the disk of a busy machine may take its time.
    let layer = QuotaGuardLayer::new(Limits::unlimited().rpd(LIMIT))
        .store(Arc::new(store))
        .store_timeout(Duration::from_secs(20));
    let handle = layer.handle(&QuotaKey::new("default", MODEL)).unwrap();
    (layer, handle)
}

/// Not a test of its own: the process that is killed.
#[test]
#[ignore = "started by the_day_survives_a_kill as another process"]
fn child_that_takes() {
    let Ok(path) = std::env::var(FILE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (_layer, handle) = handle(RedbStore::open(path).unwrap());
        while let Ok(mut reservation) =
            handle.reserve(1, 1, Some(tokio::time::Instant::now() + Duration::from_secs(20))).await
        {
            reservation.sent();
            println!("taken");
            reservation.settle(None);
            tokio::task::yield_now().await;
        }
        println!("full");
    });
}

fn child(path: &PathBuf) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["quota_redb::child_that_takes", "--exact", "--ignored", "--nocapture"])
        .env(FILE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn the_day_survives_a_kill() {
    let path = file("kill");
    let mut taken = 0;
    for _ in 0..3 {
        let mut child = child(&path);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut here = 0;
        while here < 40 {
            match lines.next() {
                Some(Ok(line)) if line.contains("taken") => here += 1,
                Some(Ok(_)) => {}
                _ => break,
            }
        }
        // In mid-flight: SIGKILL.
        child.kill().unwrap();
        // What it had printed before it died was taken too.
        here += lines.map_while(Result::ok).filter(|line| line.contains("taken")).count();
        child.wait().unwrap();
        taken += here;
    }
    assert!(taken >= 120);
    let mut last = child(&path);
    let lines = BufReader::new(last.stdout.take().unwrap()).lines().map_while(Result::ok);
    let (mut rest, mut full) = (0, false);
    for line in lines {
        rest += usize::from(line.contains("taken"));
        full |= line.contains("full");
    }
    last.wait().unwrap();
    let limit = usize::try_from(LIMIT).unwrap();
    assert!(full);
    assert!(taken + rest <= limit, "{taken} + {rest}");
    // Each kill may cost at most what was left of one lease: a sixteenth of the limit.
    assert!(taken + rest >= limit - 3 * limit / 16, "{taken} + {rest}");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_second_process_is_refused_with_an_error_that_says_so() {
    let path = file("second");
    let first = RedbStore::open(&path).unwrap();
    let error = RedbStore::open(&path).unwrap_err();
    assert!(error.to_string().contains("open in another process"), "{error}");
    drop(first);
    RedbStore::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
}

// A worker that was killed in its first moments left a file that nobody could open again.
#[test]
fn a_file_whose_making_was_killed_is_made_anew() {
    let path = file("unfinished");
    drop(RedbStore::open(&path).unwrap());
    let finished = std::fs::read(&path).unwrap();
    for cut in [0, 1, 9, 64, finished.len()] {
        // As it is before redb writes its first bytes, which it does last.
        let mut unfinished = vec![0; finished.len()];
        unfinished[9.min(cut)..cut].copy_from_slice(&finished[9.min(cut)..cut]);
        std::fs::write(&path, unfinished).unwrap();
        drop(RedbStore::open(&path).unwrap_or_else(|error| panic!("{cut}: {error}")));
        RedbStore::open(&path).unwrap_or_else(|error| panic!("{cut}: {error}"));
    }
    let _ = std::fs::remove_dir_all(path.with_extension("responses"));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_file_that_is_no_database_is_an_error_and_stays_as_it_was() {
    let path = file("foreign");
    std::fs::write(&path, b"not a database").unwrap();
    assert!(RedbStore::open(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"not a database");
    std::fs::remove_file(path).unwrap();
}
