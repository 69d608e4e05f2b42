//! The lock and the wait queue under every interleaving that shuttle finds: the same source, with
//! shuttle's `Mutex`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};

use shuttle::sync::Arc;
use shuttle::thread;

use tower_gemini::quota_guard::{Admission, Limits, Moment, QuotaAmounts};

// `gate.rs` imports from `super`: this is all that it imports.
mod admission {
    pub(crate) use tower_gemini::quota_guard::{Admission, Denied, Moment, Receipt, RestReason};
    pub(crate) use tower_gemini::store::Booking;
}
mod limits {
    pub(crate) use tower_gemini::quota_guard::QuotaAmounts;
}
mod sync {
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;
}
/// No store: it covers everything.
#[allow(dead_code, reason = "nothing has to wait for a store here")]
mod lease {
    pub(crate) enum Draw {
        Covered(Option<super::admission::Booking>),
        Later(u64),
        Fetch,
    }
}
/// Neither alerts nor learned limits.
mod hooks {
    use super::admission::{Admission, Booking, Moment};
    use super::lease::Draw;
    use super::limits::QuotaAmounts;

    pub(crate) struct KeyHooks;

    impl KeyHooks {
        pub(crate) fn draw(&mut self, _: Moment, _: QuotaAmounts) -> Draw {
            Draw::Covered(None)
        }
        pub(crate) fn review_at(&self) -> Option<u64> {
            None
        }
        pub(crate) fn after_take(&mut self, _: &mut Admission, _: Moment) -> bool {
            false
        }
        pub(crate) fn put_back(&mut self, _: Moment, _: Option<Booking>, _: QuotaAmounts) {}
        pub(crate) fn settled(&mut self, _: Option<Booking>, _: QuotaAmounts, _: Option<u64>) {}
    }
}
#[allow(dead_code, reason = "the whole file is compiled; the test needs the queue, not the alerts")]
#[path = "../../crates/tower-gemini/src/quota_guard/gate.rs"]
mod gate;
#[allow(dead_code, reason = "the whole file is compiled; the test does not use all of it")]
#[path = "../../crates/tower-gemini/src/reservation/queue.rs"]
mod queue;

use gate::{Ask, Gate, Try, Turn};
use hooks::KeyHooks;

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

const NOW: Moment = Moment { steady_ms: 1_000_000, wall_ms: 1_773_000_000_000 };
const ASK: Ask = Ask { amounts: QuotaAmounts([1, 10, 1, 1]), day_reserve: 0 };
const LIMIT: u64 = 2;

/// Takes at once or after waiting; some leave the queue, some give back, some settle. Whoever waits and
/// was not woken is not served by polling again: a lost wake would leave it waiting for ever.
fn one_call(gate: &Gate, held: &AtomicU64, most: &AtomicU64, behaviour: usize) {
    let taken = match gate.try_take(NOW, ASK) {
        Try::Taken(taken) => Some(taken),
        Try::Denied(_) | Try::Queue => match gate.join(NOW, ASK, None) {
            Err(_) => None,
            Ok((ticket, _)) => {
                let woken = std::sync::Arc::new(Woken(AtomicBool::new(true)));
                let waker = Waker::from(woken.clone());
                let mut patience = 20;
                loop {
                    let is_woken = woken.0.swap(false, Ordering::SeqCst);
                    if is_woken && let Turn::Taken(taken) = gate.turn(NOW, ticket, &waker) {
                        break Some(taken);
                    }
                    patience -= 1;
                    if behaviour == 0 || patience == 0 {
                        gate.leave(ticket);
                        break None;
                    }
                    thread::yield_now();
                }
            }
        },
    };
    let Some(taken) = taken else { return };
    let now = held.fetch_add(1, Ordering::SeqCst) + 1;
    most.fetch_max(now, Ordering::SeqCst);
    thread::yield_now();
    held.fetch_sub(1, Ordering::SeqCst);
    gate.give_back(NOW, &taken);
}

#[test]
fn no_interleaving_admits_more_than_the_limit_or_leaves_anything_behind() {
    let run = || {
        let gate = Arc::new(Gate::new(
            Admission::new(Limits::unlimited().rpm(LIMIT).tpm(10 * LIMIT), 0),
            KeyHooks,
        ));
        let (held, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let calls: Vec<_> = (0..5)
            .map(|i| {
                let (gate, held, most) = (gate.clone(), held.clone(), most.clone());
                thread::spawn(move || one_call(&gate, &held, &most, i % 3))
            })
            .collect();
        for call in calls {
            call.join().unwrap();
        }
        assert!(most.load(Ordering::SeqCst) <= LIMIT);
        assert_eq!(gate.waiting(), 0);
        let totals = gate.look(|admission, _| admission.totals());
        assert_eq!(totals.outstanding, QuotaAmounts::default());
        assert_eq!(totals.taken, totals.given_back);
        assert_eq!(gate.look(|admission, _| admission.taken(NOW)), QuotaAmounts::default());
    };
    shuttle::check_random(run, 3_000);
    shuttle::check_pct(run, 2_000, 3);
}

/// When quota comes back the first in the queue is woken, whoever gives it back and whoever leaves
/// meanwhile.
#[test]
fn no_wake_is_lost() {
    let run = || {
        let gate = Arc::new(Gate::new(Admission::new(Limits::unlimited().rpm(1), 0), KeyHooks));
        let Try::Taken(first) = gate.try_take(NOW, ASK) else { panic!("the first fits") };
        let (leaver, _) = gate.join(NOW, ASK, None).unwrap();
        let (waiter, _) = gate.join(NOW, ASK, None).unwrap();
        let woken = std::sync::Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(woken.clone());
        assert!(matches!(gate.turn(NOW, leaver, Waker::noop()), Turn::Later(_)));
        assert!(matches!(gate.turn(NOW, waiter, &waker), Turn::Queued));
        let (one, two) = (gate.clone(), gate.clone());
        let gives = thread::spawn(move || one.give_back(NOW, &first));
        let leaves = thread::spawn(move || two.leave(leaver));
        gives.join().unwrap();
        leaves.join().unwrap();
        assert!(woken.0.load(Ordering::SeqCst));
        assert!(matches!(gate.turn(NOW, waiter, &waker), Turn::Taken(_)));
    };
    shuttle::check_random(run, 3_000);
}
