//! The account and its queue.

use std::time::SystemTime;

use shuttle::future::block_on;
use shuttle::sync::Arc;
use tokio::time::Instant;
use tower_gemini::calendar::Zone;
use tower_gemini::clock::RuntimeClock;
use tower_gemini::spending::{Account, Period};
use tower_gemini::spending::{Caps, SpendAmounts};

use crate::sync::{AtomicUsize, Ordering};
use crate::{LONG, check, join, look_once};
use gate::{Asked, SpendGate};

mod account {
    pub(super) use tower_gemini::spending::{
        Account, BlockedBy, CapReached, Period, SpendReservation,
    };
}
#[path = "../../../crates/tower-gemini/src/spending/gate.rs"]
mod gate;

/// Four calls for two places of a cap. What they reserve is given back, and one leaves the queue:
/// each other one is served, and never more than two at a time.
pub fn every_call_that_waits_for_money_is_served() {
    check(|| {
        let clock = RuntimeClock::starting_at(SystemTime::UNIX_EPOCH);
        let caps = Caps::none().attempts(2);
        let account = Account::new(Zone::utc(), [(Period::Day, caps)]);
        let gate = SpendGate::new(Arc::new(clock), account);
        let running = Arc::new(AtomicUsize::new(0));
        let mut one = SpendAmounts::NONE;
        one.attempts = 1;
        join((0..4).map(|n| {
            let (gate, running) = (gate.clone(), running.clone());
            move || {
                let deadline = Instant::now() + LONG;
                let reservation = match gate.ask(one) {
                    Asked::Granted(reservation) => reservation,
                    Asked::Wait(queued) if n == 0 => match look_once(queued.served(deadline)) {
                        Some(served) => served.unwrap(),
                        None => return,
                    },
                    Asked::Wait(queued) => block_on(queued.served(deadline)).unwrap(),
                    Asked::Refused(reached) => panic!("{reached}"),
                };
                assert!(running.fetch_add(1, Ordering::SeqCst) < 2);
                shuttle::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                gate.settle(reservation, SpendAmounts::NONE, 0);
            }
        }));
        let spent = gate.look(|account| account.spent(SystemTime::UNIX_EPOCH));
        assert_eq!((spent[0].reserved, spent[0].settled), Default::default());
    });
}
