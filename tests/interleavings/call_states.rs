//! The state of a call.

use std::sync::Arc;
use std::time::Duration;

use tower_gemini_core::call::Call;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::target::MustKeep;
use tower_gemini_core::verdict::{Charge, Verdict};

use crate::call_state::{AttemptEnd, CallState, Passing, SendGate};
use crate::sync::{AtomicUsize, Ordering};
use crate::trail::Trail;
use crate::{check, join};

pub(crate) fn state(allowance: u32) -> CallState {
    CallState::open(Trail, MustKeep::default(), None, Some(allowance), None, None)
}

/// An attempt is abandoned while its client takes the last of its request: either it is called free
/// and stays here, or it goes out and is not called free.
pub fn what_is_called_free_does_not_go_out() {
    check(|| {
        let state = state(0);
        let attempt = state.new_attempt();
        attempt.begin(&Call::unrecognised(), None);
        let went_out = Arc::new(AtomicUsize::new(0));
        let (client, out) = (attempt.clone(), went_out.clone());
        let (one, other) = (state.clone(), attempt.clone());
        let charges = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
        let [first, second] = charges.clone();
        let threads: [Box<dyn FnOnce() + Send>; 3] = [
            Box::new(move || {
                let goes_on = client.read() && client.hand_over();
                out.store(usize::from(goes_on), Ordering::SeqCst);
            }),
            Box::new(move || {
                let is_free = one.cut_off().charge() == Charge::None;
                first.store(usize::from(is_free), Ordering::SeqCst);
            }),
            Box::new(move || {
                let is_free = other.cut_off().charge() == Charge::None;
                second.store(usize::from(is_free), Ordering::SeqCst);
            }),
        ];
        join(threads);
        let is_out = went_out.load(Ordering::SeqCst) == 1;
        for is_free in charges {
            assert_eq!(is_free.load(Ordering::SeqCst) == 0, is_out);
        }
    });
}

pub fn an_allowance_is_used_up_once() {
    check(|| {
        let state = state(2);
        state.new_attempt();
        let bought = Arc::new(AtomicUsize::new(0));
        join((0..3).map(|_| {
            let (state, bought) = (state.clone(), bought.clone());
            move || {
                let permit = state.permit_after(&Verdict::interrupted());
                bought.fetch_add(usize::from(permit.is_some()), Ordering::SeqCst);
            }
        }));
        assert_eq!((bought.load(Ordering::SeqCst), state.allowance_left()), (2, 0));
    });
}

/// Counts how often it is settled.
#[derive(Debug)]
struct Settled(AtomicUsize);

impl SendGate for Settled {
    fn pass<'a>(&'a self, _: &'a Call) -> Passing<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn settle(&self, _: &AttemptEnd<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The end of a body, and whoever drops it.
pub fn a_gate_is_settled_once() {
    check(|| {
        let state = state(0);
        let gate = Arc::new(Settled(AtomicUsize::new(0)));
        state.add_gate(gate.clone());
        let attempt = state.new_attempt();
        attempt.begin(&Call::unrecognised(), None);
        join((0..2).map(|_| {
            let attempt = attempt.clone();
            move || {
                let verdict = Verdict::interrupted();
                attempt.end(None, &verdict, Cost::UNKNOWN, Duration::ZERO);
                attempt.close(&AttemptEnd {
                    verdict: &verdict,
                    usage: None,
                    images: None,
                    facts: None,
                    cost: Cost::UNKNOWN,
                });
            }
        }));
        assert_eq!(gate.0.load(Ordering::SeqCst), 1);
    });
}
