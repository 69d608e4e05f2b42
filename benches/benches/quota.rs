//! The quota guard beside governor, and its redis script beside a PING.
//!
//! `cargo bench -p tower-gemini-benches --bench quota`. Only ratios inside one run hold anywhere
//! else.

use std::num::NonZeroU32;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tower_gemini::quota_guard::{
    Admission, Limits, Moment, QuotaAmounts, QuotaGuardLayer, QuotaHandle, QuotaKey,
};
use tower_gemini::store::{Exchange, QuotaStore};
use tower_gemini_benches::Row;
use tower_gemini_store::RedisStore;

fn main() {
    // `cargo test --benches` only asks whether it runs.
    if !std::env::args().any(|arg| arg == "--test") {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let rows: Vec<Row> = over_redis::exchange_beside_ping().into_iter().collect();
        tower_gemini_benches::write(target, "quota", &rows)
            .expect("the target directory takes a file");
    }
    divan::main();
}

const PLENTY: u32 = u32::MAX;

/// Far from its limits, as governor's: the usual call is let through.
fn limits() -> Limits {
    let plenty = u64::from(PLENTY) * 1_000;
    Limits::unlimited().rpm(plenty).tpm(plenty).ipm(plenty).rpd(plenty)
}

fn handle() -> QuotaHandle {
    let layer = QuotaGuardLayer::new(limits());
    match layer.handle(&QuotaKey::new("default", "m")) {
        Some(handle) => handle,
        None => unreachable!("a key with limits has a handle"),
    }
}

fn governor() -> DefaultDirectRateLimiter {
    RateLimiter::direct(Quota::per_minute(NonZeroU32::MAX))
}

const THREADS: &[usize] = &[1, 2, 4];

mod peers {
    use super::*;

    #[divan::bench(threads = THREADS, sample_size = 1_000)]
    fn governor_one(bencher: Bencher<'_, '_>) {
        let limiter = governor();
        bencher.bench(|| black_box(limiter.check().is_ok()));
    }

    /// Four side by side, as four dimensions would need; not atomic together, and nothing can be
    /// given back.
    #[divan::bench(threads = THREADS, sample_size = 1_000)]
    fn governor_four(bencher: Bencher<'_, '_>) {
        let limiters = [governor(), governor(), governor(), governor()];
        bencher.bench(|| black_box(limiters.iter().all(|limiter| limiter.check().is_ok())));
    }
}

mod ours {
    use super::*;

    /// The decision alone, without lock or clock.
    #[divan::bench(sample_size = 200)]
    fn admission_take_and_settle(bencher: Bencher<'_, '_>) {
        let mut admission = Admission::new(limits(), 500);
        let now = Moment { steady_ms: 1_000, wall_ms: 1_773_000_000_000 };
        bencher.bench_local(|| {
            if let Ok(receipt) = admission.take(now, QuotaAmounts::for_call(100, 1), 0) {
                admission.settle(receipt, None);
            }
        });
    }

    /// Four limits, all or nothing, clock and lock and alerts included: what the goal is about.
    #[divan::bench(threads = THREADS, sample_size = 1_000)]
    fn four_limits_take(bencher: Bencher<'_, '_>) {
        let handle = handle();
        // Dropped outside the measurement; the next benchmark counts that too.
        bencher.bench(|| black_box(handle.try_reserve(100, 1).ok()));
    }

    #[divan::bench(threads = THREADS, sample_size = 1_000)]
    fn four_limits_take_and_give_back(bencher: Bencher<'_, '_>) {
        let handle = handle();
        bencher.bench(|| {
            if let Ok(reservation) = handle.try_reserve(100, 1) {
                reservation.give_back();
            }
        });
    }
}

/// A server on a free port; `None`, said aloud, where the program is missing.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let url = format!("redis://127.0.0.1:{port}/");
        let child = Command::new("redis-server")
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
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!(
                "redis-server is not installed (apt-get install redis-server): its benchmarks do nothing"
            );
            return None;
        };
        let server = Self { child, url };
        let client = redis::Client::open(server.url.as_str()).ok()?;
        while client.get_connection_with_timeout(Duration::from_millis(100)).is_err() {
            std::thread::yield_now();
        }
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

mod over_redis {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => unreachable!("a runtime: {error}"),
        }
    }

    /// The median of an exchange beside that of a PING, by turns on one server.
    #[expect(clippy::disallowed_methods, reason = "a round trip takes real time")]
    pub(super) fn exchange_beside_ping() -> Option<Row> {
        const ROUNDS: usize = 5_000;
        let server = Server::start()?;
        let client = redis::Client::open(server.url.as_str()).ok()?;
        let store = RedisStore::open(&server.url).ok()?.restart_hold(Duration::ZERO);
        let (mut pings, mut exchanges) = (Vec::new(), Vec::new());
        runtime().block_on(async {
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            for _ in 0..ROUNDS {
                let began = Instant::now();
                redis::cmd("PING").query_async::<String>(&mut connection).await.ok()?;
                pings.push(began.elapsed());
                let began = Instant::now();
                store.exchange(exchange()).await.ok()?;
                exchanges.push(began.elapsed());
            }
            let median = |times: &mut Vec<Duration>| {
                times.sort_unstable();
                times[ROUNDS / 2].as_secs_f64()
            };
            let ratio = median(&mut exchanges) / median(&mut pings);
            Some(Row::at_most("redis: one exchange of four limits beside a PING", ratio, 1.5))
        })
    }

    fn exchange() -> Exchange {
        let plenty = Limits::unlimited().rpm(1 << 50).tpm(1 << 50).ipm(1 << 50).rpd(1 << 50);
        Exchange::new(QuotaKey::new("default", "m"), plenty, QuotaAmounts::for_call(100, 1), 1)
    }

    #[divan::bench(sample_size = 200)]
    fn ping(bencher: Bencher<'_, '_>) {
        let Some(server) = Server::start() else { return };
        let runtime = runtime();
        let client = redis::Client::open(server.url.as_str()).ok();
        let connection =
            runtime.block_on(async { client?.get_multiplexed_async_connection().await.ok() });
        let Some(mut connection) = connection else { return };
        bencher.bench_local(|| {
            let pong: Result<String, _> =
                runtime.block_on(redis::cmd("PING").query_async(&mut connection));
            black_box(pong.is_ok())
        });
    }

    /// One exchange a call, as if there were no leases.
    #[divan::bench(sample_size = 200)]
    fn one_exchange_over_four_limits(bencher: Bencher<'_, '_>) {
        let Some(server) = Server::start() else { return };
        let runtime = runtime();
        let Ok(store) = RedisStore::open(&server.url) else { return };
        let store = store.restart_hold(Duration::ZERO);
        let exchange = exchange();
        bencher.bench_local(|| {
            let reply = runtime.block_on(store.exchange(exchange.clone()));
            black_box(reply.is_ok_and(|reply| reply.granted == 1))
        });
    }

    /// A busy process: one exchange a second, the rest from its lease.
    #[divan::bench(sample_size = 200)]
    fn on_leases(bencher: Bencher<'_, '_>) {
        let Some(server) = Server::start() else { return };
        let runtime = runtime();
        let plenty = Limits::unlimited().rpm(1 << 50).tpm(1 << 50).ipm(1 << 50).rpd(1 << 50);
        let Some(handle) = shared(&server, plenty) else { return };
        bencher.bench_local(|| {
            let reservation = runtime.block_on(handle.reserve(100, 1, None));
            if let Ok(reservation) = reservation {
                reservation.settle(None);
            }
        });
    }

    fn shared(server: &Server, limits: Limits) -> Option<QuotaHandle> {
        let store = RedisStore::open(&server.url).ok()?.restart_hold(Duration::ZERO);
        QuotaGuardLayer::new(limits).store(Arc::new(store)).handle(&QuotaKey::new("default", "m"))
    }
}
