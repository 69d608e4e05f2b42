//! A real redis server, started here on a free port: shared by processes that are killed, killed
//! itself, and stopped.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tower_gemini::quota_guard::{
    Limits, QuotaAmounts, QuotaDimension, QuotaGuardLayer, QuotaKey, StoreFailure,
};
use tower_gemini::store::Exchange;
use tower_gemini_store::RedisStore;

use crate::common::{MODEL, open};

const URL: &str = "QUOTA_TEST_STORE";
const SECONDS: &str = "QUOTA_TEST_SECONDS";
const RPM: u64 = 600;

pub(crate) struct Server {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Server {
    /// `None`, said aloud, where the program is missing.
    pub(crate) fn start() -> Option<Self> {
        test_programs::find(&["redis-server"], "redis-server")?;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir =
            std::env::temp_dir().join(format!("tower-gemini-redis-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let child = spawn(port, &dir);
        let server = Self { child, port, dir };
        server.await_ready();
        Some(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    fn await_ready(&self) {
        let client = redis::Client::open(self.url()).unwrap();
        for _ in 0..2_000 {
            let ready = client.get_connection_with_timeout(Duration::from_millis(200)).is_ok_and(
                |mut connection| redis::cmd("PING").query::<String>(&mut connection).is_ok(),
            );
            if ready {
                return;
            }
            pause(Duration::from_millis(10));
        }
        panic!("redis-server does not answer");
    }

    fn signal(&self, signal: &str) {
        let status =
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn restart(&mut self) {
        self.child = spawn(self.port, &self.dir);
        self.await_ready();
    }
}

fn spawn(port: u16, dir: &PathBuf) -> Child {
    Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .arg("--dir")
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A bounded wait for another process: no runtime's clock moves it.
pub(crate) fn pause(wait: Duration) {
    let (_sender, receiver) = std::sync::mpsc::channel::<()>();
    let _ = receiver.recv_timeout(wait);
}

pub(crate) fn layer(url: &str, limits: Limits) -> QuotaGuardLayer {
    QuotaGuardLayer::new(limits).store(open(url).quota).alert_at([])
}

pub(crate) fn key() -> QuotaKey {
    QuotaKey::new("default", MODEL)
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(3))
}

/// Not a test of its own: one of the processes.
#[test]
#[ignore = "started by other tests as another process"]
fn child_that_takes() {
    let (Ok(url), Ok(seconds)) = (std::env::var(URL), std::env::var(SECONDS)) else { return };
    let end = Instant::now() + Duration::from_secs(seconds.parse().unwrap());
    block_on(async {
        let layer = layer(&url, Limits::unlimited().rpm(RPM).rpd(100_000));
        let handle = layer.handle(&key()).unwrap();
        println!("ready");
        let mut taken = 0u64;
        while let Ok(mut reservation) = handle.reserve(1, 1, Some(end)).await {
            reservation.sent();
            taken += 1;
            if taken.is_multiple_of(10) {
                println!("taken {taken}");
            }
            reservation.settle(None);
            tokio::task::yield_now().await;
        }
        println!("taken {taken} exchanges {}", layer.counts().store_exchanges);
    });
}

fn child(url: &str, seconds: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["quota_redis::child_that_takes", "--exact", "--ignored", "--nocapture"])
        .env(URL, url)
        .env(SECONDS, seconds.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The last count a child printed, and its exchanges.
fn read(child: &mut Child) -> (u64, u64) {
    let (mut taken, mut exchanges) = (0, 0);
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        let words: Vec<_> = line.split_whitespace().collect();
        if let Some(at) = words.iter().position(|word| *word == "taken") {
            taken = words.get(at + 1).and_then(|n| n.parse().ok()).unwrap_or(taken);
            exchanges = words.get(at + 3).and_then(|n| n.parse().ok()).unwrap_or(exchanges);
        }
    }
    child.wait().unwrap();
    (taken, exchanges)
}

#[test]
fn processes_at_full_pressure_take_no_more_than_the_limit_together() {
    let Some(server) = Server::start() else { return };
    processes_take_no_more_than_the_limit(&server.url());
}

pub(crate) fn processes_take_no_more_than_the_limit(url: &str) {
    // All of it happens within one window, so together they may take the limit once.
    let mut children: Vec<_> = (0..4).map(|_| child(url, 8)).collect();
    let results: Vec<_> = children.iter_mut().map(read).collect();
    let taken: u64 = results.iter().map(|(taken, _)| taken).sum();
    let exchanges: u64 = results.iter().map(|(_, exchanges)| exchanges).sum();
    println!("4 processes took {taken} of {RPM} with {exchanges} exchanges");
    assert!(taken <= RPM, "{taken} of {RPM}");
    assert!(taken * 100 >= RPM * 95, "{taken} of {RPM}");
    assert!(exchanges * 10 <= taken * 4, "{exchanges} exchanges");
}

#[test]
fn a_client_killed_in_mid_flight_costs_at_most_its_lease() {
    let Some(server) = Server::start() else { return };
    a_killed_client_costs_at_most_its_lease(&server.url());
}

pub(crate) fn a_killed_client_costs_at_most_its_lease(url: &str) {
    let mut victim = child(url, 30);
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    // Killed as soon as it has taken something.
    while let Some(Ok(line)) = lines.next() {
        if line.contains("taken") {
            break;
        }
    }
    victim.kill().unwrap();
    let printed = lines
        .map_while(Result::ok)
        .filter_map(|line| {
            line.split_whitespace().skip_while(|word| *word != "taken").nth(1)?.parse::<u64>().ok()
        })
        .last()
        .unwrap_or(10);
    victim.wait().unwrap();
    let mut heir = child(url, 6);
    let (taken, _) = read(&mut heir);
    println!("the victim took at least {printed}, its heir {taken}, of {RPM}");
    assert!(printed + taken <= RPM);
    // At most nine that it had not printed yet, and a lease.
    assert!(printed + taken + 9 + RPM / 16 + 1 >= RPM);
}

#[test]
fn a_server_that_was_killed_is_refused_and_then_reached_again() {
    let Some(mut server) = Server::start() else { return };
    block_on(async {
        let layer = layer(&server.url(), Limits::unlimited().rpd(100));
        let handle = layer.handle(&key()).unwrap();
        for _ in 0..40 {
            handle.reserve(1, 1, soon()).await.unwrap().settle(None);
        }
        layer.flush().await;
        server.signal("-9");
        server.child.wait().unwrap();
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let began = Instant::now();
        assert!(handle.reserve(1, 1, Some(began + Duration::from_secs(2))).await.is_err());
        assert!(began.elapsed() < Duration::from_secs(4));
        assert!(layer.counts().store_failures > 0);
        // It comes back with nothing in its memory: the day is told to it by who remembers.
        server.restart();
        let mut taken = 0;
        let end = Instant::now() + Duration::from_secs(4);
        while let Ok(reservation) = handle.reserve(1, 1, Some(end)).await {
            reservation.settle(None);
            taken += 1;
        }
        assert!(taken <= 60, "{taken} more after 40 of 100");
        assert!(taken >= 50, "{taken}");
    });
}

#[test]
fn a_server_that_just_started_is_not_trusted_with_the_last_minute() {
    let Some(server) = Server::start() else { return };
    block_on(async {
        let store = RedisStore::open(&server.url()).unwrap();
        let layer = QuotaGuardLayer::new(Limits::unlimited().rpm(100)).store(Arc::new(store));
        let handle = layer.handle(&key()).unwrap();
        let denied = handle.reserve(1, 1, soon()).await.unwrap_err();
        assert!(denied.at_ms.is_some());
    });
}

#[test]
fn a_server_that_is_stopped_hangs_nobody() {
    let Some(server) = Server::start() else { return };
    block_on(async {
        let closed = layer(&server.url(), Limits::unlimited().rpm(1_000));
        let open = layer(&server.url(), Limits::unlimited().rpm(1_000))
            .on_store_failure(StoreFailure::OpenOnLastLease);
        let (closed_handle, open_handle) =
            (closed.handle(&key()).unwrap(), open.handle(&key()).unwrap());
        for _ in 0..20 {
            closed_handle.reserve(1, 1, soon()).await.unwrap().settle(None);
            open_handle.reserve(1, 1, soon()).await.unwrap().settle(None);
        }
        server.signal("-STOP");
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let began = Instant::now();
        assert!(closed_handle.reserve(1, 1, soon()).await.is_err());
        // In the same minute an open one has no more than it had, so it refuses too: never over,
        // and never a hang.
        assert!(open_handle.reserve(1, 1, soon()).await.is_err());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(closed.counts().store_failures > 0 && open.counts().store_failures > 0);
        server.signal("-CONT");
        let again = Some(Instant::now() + Duration::from_secs(10));
        closed_handle.reserve(1, 1, again).await.unwrap().settle(None);
        open_handle.reserve(1, 1, again).await.unwrap().settle(None);
    });
}

/// The script by itself: give-backs, settlements and the day, on the server's clock.
#[test]
fn the_script_counts_what_the_guard_counts() {
    let Some(server) = Server::start() else { return };
    counts_what_the_guard_counts(&server.url());
}

pub(crate) fn counts_what_the_guard_counts(url: &str) {
    block_on(async {
        let layer = layer(url, Limits::unlimited().rpm(50).tpm(1_000).ipm(20).rpd(200));
        let handle = layer.handle(&key()).unwrap();
        let mut kept = Vec::new();
        while let Ok(mut reservation) =
            handle.reserve(100, 1, Some(Instant::now() + Duration::from_millis(300))).await
        {
            reservation.sent();
            kept.push(reservation);
        }
        assert_eq!(kept.len(), 10, "the tokens are the tightest");
        // Half were never counted, and the rest had fewer tokens than was thought.
        for reservation in kept.split_off(5) {
            reservation.give_back();
        }
        for reservation in kept {
            reservation.settle(Some(40));
        }
        layer.flush().await;
        let mut more = 0;
        let end = Instant::now() + Duration::from_secs(4);
        while let Ok(reservation) = handle.reserve(100, 1, Some(end)).await {
            reservation.settle(None);
            more += 1;
        }
        // 1,000 - 5 × 40 = 800 tokens.
        assert_eq!(more, 8);
        let ledger = handle.usage();
        assert_eq!(ledger.entries[QuotaDimension::ALL.len() - 1].used, 13);
    });
}

#[test]
fn a_day_that_was_closed_and_reopened_grants_again() {
    let Some(server) = Server::start() else { return };
    a_closed_day_can_be_reopened(&server.url());
}

pub(crate) fn a_closed_day_can_be_reopened(url: &str) {
    block_on(async {
        let store = open(url).quota;
        let granted = async |close_day| {
            let need = QuotaAmounts::for_call(10, 1);
            let mut ask = Exchange::new(key(), Limits::unlimited().rpm(50), need, 1);
            ask.close_day = close_day;
            store.exchange(ask).await.unwrap().granted
        };
        let mut all = Vec::new();
        for close_day in [None, Some(true), None, Some(false), None] {
            all.push(granted(close_day).await);
        }
        assert_eq!(all, [1, 0, 0, 1, 1]);
    });
}
