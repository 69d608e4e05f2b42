//! Shares places and memory among callers: whoever holds least is served first, and the rest wait.
//!
//! A caller alone may take everything. Once others wait, what becomes free goes to the one that
//! holds least, so that each comes to its share. The wait is bounded in length, in which the caller
//! with most waiting requests gives way, and in time.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Tells callers apart: a digest of a credential or of a token's name.
pub(crate) type Caller = u64;

/// What there is to share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Requests whose clients are connected.
    pub(crate) places: usize,
    /// Calls, also those whose clients disconnected.
    pub(crate) calls: usize,
    /// Bytes of requests, and of the responses that are expected or have come.
    pub(crate) bytes: usize,
    /// Bytes beside those, for the responses of one call at a time that found no room among them.
    /// So one call after another gets on, and none waits for memory that another one waits with.
    pub(crate) reserve: usize,
    /// Requests that wait for a place.
    pub(crate) queue: usize,
    /// How long they wait.
    pub(crate) time: Duration,
}

/// Why a request was not admitted. Nothing of its body was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Enough others wait, and none of them for a caller with more waiting requests.
    QueueFull,
    /// It waited this long.
    TimedOut(Duration),
    /// It needs more bytes than there are.
    TooLarge,
}

/// How many waiting requests are looked at for one whose bytes fit.
const LOOKED_AT: usize = 16;

/// The queue, and what it gives out.
#[derive(Debug, Clone)]
pub(crate) struct Queue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    state: Mutex<State>,
    /// Requests and responses that wait, to be read without the lock.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    places: usize,
    calls: usize,
    bytes: usize,
    callers: HashMap<Caller, Holder>,
    waiting: HashMap<u64, Waiting>,
    /// The callers that wait, by what they hold and the number of their first request.
    order: BTreeSet<(u64, u64, Caller)>,
    /// The same by how many of their requests wait.
    crowd: BTreeSet<(usize, Caller)>,
    growing: VecDeque<Growing>,
    /// The lease that has the reserve, and how much of it.
    reserved: Option<(u64, usize)>,
    next: u64,
}

/// A caller that holds something, or waits.
#[derive(Debug, Default)]
struct Holder {
    calls: usize,
    bytes: usize,
    waiting: VecDeque<u64>,
    /// Where it stands in the order.
    position: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Waiting {
    caller: Caller,
    bytes: usize,
    since: Instant,
    granted: oneshot::Sender<Admitted>,
}

/// A response that waits for memory.
#[derive(Debug)]
struct Growing {
    lease: Arc<Lease>,
    more: usize,
    granted: oneshot::Sender<bool>,
}

/// An admitted request: a place while its client is connected, and a lease of memory while anything
/// works on it.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) place: Place,
    pub(crate) lease: Arc<Lease>,
}

/// A place in flight, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Queue);

/// Memory that is accounted for a call, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    queue: Queue,
    caller: Caller,
    id: u64,
    /// Changed under the queue's lock only.
    bytes: AtomicUsize,
}

/// What happens once the lock is released: whoever is told may drop what it is given.
#[derive(Default)]
struct Told {
    admitted: Vec<(oneshot::Sender<Admitted>, Admitted)>,
    grown: Vec<(oneshot::Sender<bool>, Arc<Lease>)>,
}

impl Told {
    fn tell(self) {
        for (granted, admitted) in self.admitted {
            // A request that waits no longer gives back what it got.
            drop(granted.send(admitted));
        }
        for (granted, lease) in self.grown {
            let _ = granted.send(true);
            drop(lease);
        }
    }
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        let (state, waiting) = (Mutex::default(), AtomicUsize::new(0));
        Self(Arc::new(Inner { limits, state, waiting }))
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Changes the state, and admits whoever can be then.
    fn with<T>(&self, change: impl FnOnce(&mut State, &mut Told) -> T) -> T {
        let mut told = Told::default();
        // A panic in another holder leaves counts that are too high at worst.
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut state, &mut told);
        self.admit_waiting(&mut state, &mut told);
        self.0.waiting.store(state.waiting.len() + state.growing.len(), Ordering::Relaxed);
        drop(state);
        told.tell();
        changed
    }

    /// Waits for a place and so many bytes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue.
    pub(crate) async fn admit(
        &self,
        caller: Caller,
        bytes: usize,
        at_most: Duration,
    ) -> Result<Admitted, Refused> {
        if bytes > self.0.limits.bytes {
            return Err(Refused::TooLarge);
        }
        let since = Instant::now();
        let time = at_most.min(self.0.limits.time);
        let (granted, mut admitted) = oneshot::channel();
        let number = self.with(|state, _| {
            state.next += 1;
            let number = state.next;
            state.enqueue(number, Waiting { caller, bytes, since, granted });
            number
        });
        let leaves = Leaves { queue: self, number };
        // Usually it is there already. What cannot wait is taken out in the same moment.
        self.with(|state, _| state.shorten(self.0.limits.queue));
        if let Ok(admitted) = admitted.try_recv() {
            return Ok(admitted);
        }
        let result = timeout_at(since + time, admitted).await;
        drop(leaves);
        match result {
            Ok(Ok(admitted)) => Ok(admitted),
            Ok(Err(_)) => Err(Refused::QueueFull),
            Err(_) => Err(Refused::TimedOut(time)),
        }
    }

    /// Admits the waiting requests that there is room for, those of callers that hold least first.
    fn admit_waiting(&self, state: &mut State, told: &mut Told) {
        let limits = &self.0.limits;
        while let Some(first) = state.growing.front() {
            let (id, more) = (first.lease.id, first.more);
            if !state.grow(limits, id, first.lease.caller, more) {
                // What was paid for comes before what has not begun.
                return;
            }
            if let Some(Growing { lease, granted, .. }) = state.growing.pop_front() {
                lease.bytes.fetch_add(more, Ordering::Relaxed);
                told.grown.push((granted, lease));
            }
        }
        while state.places < limits.places && state.calls < limits.calls {
            let fits = |(_, number, caller): &(u64, u64, Caller)| {
                let waiting = state.waiting.get(number)?;
                let calls = state.callers.get(caller).map_or(0, |holder| holder.calls);
                // With its clients or without them, a caller has no more calls than all may have
                // clients: some are left for the others, whatever it does.
                let may = calls < limits.places;
                Some((may && state.bytes + waiting.bytes <= limits.bytes, waiting.since))
            };
            let mut found = None;
            for at in state.order.iter().take(LOOKED_AT) {
                let Some((has_room, since)) = fits(at) else { continue };
                if has_room {
                    found = Some(at.1);
                    break;
                }
                // Smaller requests pass it for a while only.
                if since.elapsed() > limits.time / 2 {
                    break;
                }
            }
            let Some(Waiting { caller, bytes, granted, .. }) =
                found.and_then(|number| state.dequeue(number))
            else {
                return;
            };
            state.places += 1;
            state.calls += 1;
            state.bytes += bytes;
            state.next += 1;
            let id = state.next;
            state.hold(limits, caller, |holder| {
                holder.calls += 1;
                holder.bytes += bytes;
            });
            let lease = Lease { queue: self.clone(), caller, id, bytes: AtomicUsize::new(bytes) };
            let admitted = Admitted { place: Place(self.clone()), lease: Arc::new(lease) };
            told.admitted.push((granted, admitted));
        }
    }

    /// Whether anybody waits, for a place or for memory.
    pub(crate) fn is_under_pressure(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }

    /// What is taken, for people.
    pub(crate) fn usage(&self) -> Usage {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = state.reserved.map_or(0, |(_, bytes)| bytes);
        Usage {
            places: state.places,
            calls: state.calls,
            bytes: state.bytes + reserved,
            waiting: state.waiting.len(),
            callers: state.callers.len(),
        }
    }
}

/// What is taken of the [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) places: usize,
    pub(crate) calls: usize,
    pub(crate) bytes: usize,
    pub(crate) waiting: usize,
    /// Callers that hold something, or wait.
    pub(crate) callers: usize,
}

/// Takes a request out of the queue that waits no longer.
struct Leaves<'a> {
    queue: &'a Queue,
    number: u64,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.queue.with(|state, _| drop(state.dequeue(self.number)));
    }
}

impl State {
    /// Changes what a caller holds, and where it stands in the order.
    fn hold(&mut self, limits: &Limits, caller: Caller, change: impl FnOnce(&mut Holder)) {
        let holder = self.callers.entry(caller).or_default();
        change(holder);
        if let Some((score, first)) = holder.position.take() {
            self.order.remove(&(score, first, caller));
        }
        if let Some(&first) = holder.waiting.front() {
            let score = holder.score(limits);
            self.order.insert((score, first, caller));
            holder.position = Some((score, first));
        } else if holder.calls == 0 && holder.bytes == 0 {
            self.callers.remove(&caller);
        }
    }
}

impl Holder {
    /// How much of what there is it holds, in thousandths.
    fn score(&self, limits: &Limits) -> u64 {
        let of = |held: usize, all: usize| held as u64 * 1000 / all.max(1) as u64;
        of(self.calls, limits.places).max(of(self.bytes, limits.bytes))
    }
}
