//! Failed logins: counted, and answered later and later for a source that has many.
//!
//! Only failures wait. A caller with a valid token behind the same address is let in at once, so
//! nobody can shut others out by guessing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Failures before the first wait: a mistyped token is no attack.
const FREE: u32 = 3;
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// Below the shortest timeout of a client that was measured, which then reads the 401.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// A source without a failure for so long is forgotten.
const MEMORY: Duration = Duration::from_secs(60);
/// Sources remembered: about 100 bytes each.
const MAX_SOURCES: usize = 4096;
/// Failures that wait at once. Each holds a connection; more are answered at once.
const MAX_WAITING: usize = 256;

const COUNTER: &str = "gateway_failed_logins_total";

#[derive(Debug, Default)]
pub(crate) struct Failures {
    sources: Mutex<Sources>,
    waiting: AtomicUsize,
}

/// In two generations, of which the older one is dropped whole: every step takes the same time.
#[derive(Debug, Default)]
struct Sources {
    recent: HashMap<IpAddr, Failed>,
    older: HashMap<IpAddr, Failed>,
}

#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    last: Instant,
}

impl Sources {
    /// Counts a failure and returns how many there were lately.
    fn count(&mut self, source: IpAddr, now: Instant) -> u32 {
        let known = self.recent.get(&source).or_else(|| self.older.get(&source)).copied();
        let known = known.filter(|known| now.duration_since(known.last) < MEMORY);
        let times = known.map_or(0, |known| known.times).saturating_add(1);
        if self.recent.len() >= MAX_SOURCES / 2 && !self.recent.contains_key(&source) {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(source, Failed { times, last: now });
        times
    }
}

impl Failures {
    /// Counts a failure, and waits as long as its source has earned.
    pub(crate) async fn count(&self, peer: Option<IpAddr>) {
        metrics::counter!(COUNTER).increment(1);
        let Some(peer) = peer else { return };
        let now = Instant::now();
        let times = {
            let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.count(source(peer), now)
        };
        let delay = delay(times);
        if times == FREE + 1 {
            tracing::warn!(%peer, "repeated failed logins; further ones are answered late");
        }
        if !delay.is_zero() {
            let waiting = Waiting::new(&self.waiting);
            if waiting.before < MAX_WAITING {
                sleep(delay).await;
            }
        }
    }
}

/// Describes the counter.
pub(crate) fn describe() {
    metrics::describe_counter!(COUNTER, "Requests without a valid token");
}

struct Waiting<'a> {
    all: &'a AtomicUsize,
    before: usize,
}

impl<'a> Waiting<'a> {
    fn new(all: &'a AtomicUsize) -> Self {
        Self { all, before: all.fetch_add(1, Ordering::AcqRel) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::AcqRel);
    }
}

fn delay(times: u32) -> Duration {
    match times.checked_sub(FREE + 1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_DELAY.saturating_mul(1 << doublings.min(10)).min(LONGEST_DELAY),
    }
}

/// Who counts as one source: whoever has one address of IPv6 has its whole /64.
fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(n).into()
    }

    async fn took(failures: &Failures, peer: IpAddr) -> Duration {
        let began = Instant::now();
        failures.count(Some(peer)).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_one_source_wait_longer_each_time_and_never_longer_than_5_s() {
        let failures = Failures::default();
        let mut waited = Vec::new();
        for _ in 0..12 {
            waited.push(took(&failures, address(1)).await.as_millis());
        }
        assert_eq!(waited, [0, 0, 0, 250, 500, 1000, 2000, 4000, 5000, 5000, 5000, 5000]);
        assert_eq!(took(&failures, address(2)).await, Duration::ZERO);
        tokio::time::advance(MEMORY).await;
        assert_eq!(took(&failures, address(1)).await, Duration::ZERO);
    }

    #[test]
    fn the_memory_of_failures_is_bounded_and_keeps_the_latest() {
        let mut sources = Sources::default();
        let now = Instant::now();
        for n in 0..100_000 {
            sources.count(address(n), now);
        }
        assert!(sources.recent.len() + sources.older.len() <= MAX_SOURCES);
        assert_eq!(sources.count(address(99_999), now), 2);
    }

    #[test]
    fn all_addresses_of_one_network_are_one_source() {
        let one = source("2001:db8:1:2:3:4:5:6".parse().unwrap());
        assert_eq!(one, source("2001:db8:1:2:ffff::1".parse().unwrap()));
        assert_ne!(one, source("2001:db8:1:3::1".parse().unwrap()));
        assert_eq!(source("::ffff:192.0.2.1".parse().unwrap()), address(0xc000_0201));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_failures_holds_no_more_than_so_many_connections() {
        let failures = std::sync::Arc::new(Failures::default());
        for _ in 0..FREE {
            failures.count(Some(address(1))).await;
        }
        let began = Instant::now();
        let crowd: Vec<_> = (0..MAX_WAITING)
            .map(|_| {
                let failures = failures.clone();
                tokio::spawn(async move { failures.count(Some(address(1))).await })
            })
            .collect();
        while failures.waiting.load(Ordering::Acquire) < MAX_WAITING {
            tokio::task::yield_now().await;
        }
        failures.count(Some(address(1))).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "there is no room to wait in");
        for one in crowd {
            one.await.unwrap();
        }
        assert_eq!(failures.waiting.load(Ordering::Acquire), 0);
    }
}
