//! The budget of resends, and what calls know of outages together.

use http::{HeaderMap, Request, StatusCode};
use shuttle::future::block_on;
use shuttle::sync::Arc;
use tokio::time::Instant;
use tower_gemini_core::call::Call;
use tower_gemini_core::classify::classify;
use tower_gemini_core::verdict::Verdict;

use crate::call_states::state;
use crate::refusal::RequestTemplate;
use crate::sync::{AtomicU32, Ordering};
use crate::{LONG, check, check_on, join, look_once};
use budget::RetryBudget;
use outages::{Gate, OutagePolicy, Outages};

#[path = "../../../crates/tower-gemini/src/jittered_retry/budget.rs"]
mod budget;
#[path = "../../../crates/tower-gemini/src/jittered_retry/outages.rs"]
mod outages;

/// Stands in for a resend that a fallback makes.
pub(crate) struct ComeBack;

pub fn no_token_is_spent_twice_or_lost() {
    check(|| {
        let budget = RetryBudget::new(20, 10, 3);
        assert!(budget.withdraw());
        let resends = Arc::new(AtomicU32::new(1));
        join((0..3).map(|n| {
            let (budget, resends) = (budget.clone(), resends.clone());
            move || {
                if n > 0 {
                    budget.deposit();
                }
                resends.fetch_add(u32::from(budget.withdraw()), Ordering::SeqCst);
            }
        }));
        let resends = resends.load(Ordering::SeqCst);
        assert_eq!(budget.tokens(), 20 + 2 * 3 - resends * 10);
        assert_eq!(resends, 2, "what came in is no third resend");
    });
}

pub fn the_bucket_never_overflows() {
    check(|| {
        let budget = RetryBudget::new(20, 10, 7);
        assert!(budget.withdraw());
        join((0..3).map(|_| {
            let budget = budget.clone();
            move || {
                budget.deposit();
                assert!(budget.tokens() <= 20);
            }
        }));
        assert_eq!(budget.tokens(), 20);
    });
}

fn request() -> RequestTemplate {
    let (parts, ()) = Request::new(()).into_parts();
    RequestTemplate { parts, call: Arc::new(Call::unrecognised()), state: state(0) }
}

fn overloaded() -> Verdict {
    let body =
        br#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
    classify(&Call::unrecognised(), StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), body)
}

/// In an outage one call probes at a time. The first probe comes to nothing, the second one is
/// answered, and whoever waits meanwhile is sent by the one or the other.
pub fn every_call_that_waits_for_the_end_of_an_outage_is_sent() {
    let runtime = Arc::new(crate::runtime());
    let timers = runtime.clone();
    check_on(&runtime, 1_000, move || {
        let outages = Arc::new(Outages::default());
        let policy = OutagePolicy::recommended().after_failures(1).probe_every(LONG / 4);
        let before = request();
        let gate = Gate { outages: &outages, policy, request: &before, waits: true };
        gate.unchecked().settle(&overloaded());
        assert!(!gate.is_open());
        // A probe is due.
        look_once(tokio::time::advance(LONG));
        let timers = timers.clone();
        let (sent, probing) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let calls = (0..3).map(|_| {
            let (outages, sent, probing) = (outages.clone(), sent.clone(), probing.clone());
            Box::new(move || {
                let request = request();
                let gate = Gate { outages: &outages, policy, request: &request, waits: true };
                let now = Instant::now();
                let pass = block_on(gate.pass(now, now + LONG, 0.0)).unwrap();
                match sent.fetch_add(1, Ordering::SeqCst) {
                    0 => {
                        assert_eq!(probing.fetch_add(1, Ordering::SeqCst), 0);
                        shuttle::thread::yield_now();
                        probing.fetch_sub(1, Ordering::SeqCst);
                        drop(pass);
                    }
                    _ => {
                        assert_eq!(probing.load(Ordering::SeqCst), 0, "one at a time");
                        pass.settle(&Verdict::delivering());
                    }
                }
            }) as Box<dyn FnOnce() + Send>
        });
        let all = sent.clone();
        // The moment that a call waits after an outage is over.
        let passes = move || {
            while all.load(Ordering::SeqCst) < 3 {
                timers.block_on(tokio::task::yield_now());
                shuttle::thread::yield_now();
            }
        };
        join(calls.chain([Box::new(passes) as Box<dyn FnOnce() + Send>]));
        assert_eq!(sent.load(Ordering::SeqCst), 3);
        assert!(gate.is_open());
    });
}
