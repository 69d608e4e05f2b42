//! The gateway's places and memory.

use shuttle::future::block_on;
use shuttle::sync::Arc;

use crate::queue::{Admitted, Limits, Queue, Usage};
use crate::sync::{AtomicUsize, Mutex, Ordering};
use crate::{LONG, check, join, look_once};

const LIMITS: Limits = Limits { places: 2, calls: 3, bytes: 10, reserve: 4, queue: 8, time: LONG };

fn assert_is_empty(queue: &Queue) {
    let Usage { places, calls, bytes, for_place, for_memory, responses, callers } = queue.usage();
    assert_eq!((places, calls, bytes, callers), (0, 0, 0, 0));
    assert_eq!((for_place, for_memory, responses), (0, 0, 0));
    assert!(!queue.is_under_pressure());
}

/// Four callers and one place. One leaves the queue; the calls of the others go on when their
/// clients have left their places, so that only those places let the next ones in.
pub fn every_request_that_waits_is_served_and_none_beyond_the_places() {
    check(|| {
        let queue = Queue::new(Limits { places: 1, calls: 4, ..LIMITS });
        let held = Arc::new(AtomicUsize::new(0));
        let leases = Arc::new(Mutex::new(Vec::new()));
        join((0..4).map(|n| {
            let (queue, held, leases) = (queue.clone(), held.clone(), leases.clone());
            move || {
                let admitted = queue.admit(n, 2, LONG);
                let admitted = match n {
                    0 => look_once(admitted),
                    _ => Some(block_on(admitted)),
                };
                let Some(admitted) = admitted else { return };
                let Admitted { place, lease } = admitted.unwrap();
                assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0);
                leases.lock().unwrap().push(lease);
                held.fetch_sub(1, Ordering::SeqCst);
                drop(place);
            }
        }));
        assert!(leases.lock().unwrap().len() >= 3);
        leases.lock().unwrap().clear();
        assert_is_empty(&queue);
    });
}

/// Responses that outgrow what was expected: one after another they get on by the reserve, and one
/// that is given up keeps nobody from it.
pub fn every_response_that_waits_for_memory_gets_it() {
    check(|| {
        let queue = Queue::new(LIMITS);
        join((0..3).map(|n| {
            let queue = queue.clone();
            move || {
                let Admitted { place, lease } = block_on(queue.admit(n, 4, LONG)).unwrap();
                let bytes = 7;
                if n == 0 {
                    let _ = look_once(lease.grow(bytes));
                } else if !lease.try_resize(bytes, true) {
                    assert!(block_on(lease.grow(bytes)));
                }
                assert!(queue.usage().bytes <= LIMITS.bytes + LIMITS.reserve);
                drop((lease, place));
            }
        }));
        assert_is_empty(&queue);
    });
}

/// A response that wants more than there is keeps a smaller one waiting, until it is given up.
pub fn a_response_that_gives_up_lets_the_next_one_on() {
    check(|| {
        let queue = Queue::new(LIMITS);
        let [large, small] = [0, 1].map(|caller| block_on(queue.admit(caller, 4, LONG)).unwrap());
        let large = Arc::new(large);
        let gives_up = large.clone();
        let threads: [Box<dyn FnOnce() + Send>; 2] = [
            Box::new(move || {
                let _ = look_once(gives_up.lease.grow(LIMITS.bytes));
            }),
            Box::new(move || assert!(block_on(small.lease.grow(6)))),
        ];
        join(threads);
        drop((large, small.place));
        assert_is_empty(&queue);
    });
}
