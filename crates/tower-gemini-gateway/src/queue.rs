//! Shares places and memory among callers: whoever holds least is served first, and the rest wait.
//!
//! A caller alone may take everything. Once others wait, what becomes free goes to the one that
//! holds least, so that each comes to its share. The wait is bounded in length, in which the caller
//! with most waiting requests gives way, and in time.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::{Instant, timeout, timeout_at};

use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError};

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

/// How long a response waits for memory: longer than any client takes nothing of its own. Then it
/// is passed on unbuffered.
const PATIENCE: Duration = Duration::from_secs(120);

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

#[derive(Debug)]
struct State {
    limits: Limits,
    places: usize,
    calls: usize,
    bytes: usize,
    callers: HashMap<Caller, Holder>,
    waiting: HashMap<u64, Waiting>,
    /// The callers that wait, by what they hold and the number of their first request.
    order: BTreeSet<(u64, u64, Caller)>,
    /// The same by how many of their requests wait.
    crowd: BTreeSet<(usize, Caller)>,
    leases: HashMap<u64, Leased>,
    growing: VecDeque<Growing>,
    /// The lease that has the reserve.
    reserved: Option<u64>,
    /// Calls that wait for hours, and their bytes.
    deferred: (usize, usize),
    next: u64,
}

#[derive(Debug)]
struct Leased {
    caller: Caller,
    bytes: usize,
    of_reserve: usize,
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
    number: u64,
    lease: u64,
    /// In all.
    bytes: usize,
    granted: oneshot::Sender<()>,
}

/// An admitted request: a place while its client is connected, and a lease of memory while anything
/// works on it.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) place: Place,
    pub(crate) lease: Lease,
}

/// A place in flight, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Queue);

/// Memory that is accounted for a call, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    queue: Queue,
    id: u64,
}

/// What happens once the lock is released: whoever is told may drop what it is given.
#[derive(Default)]
struct Told {
    admitted: Vec<(oneshot::Sender<Admitted>, Admitted)>,
    grown: Vec<oneshot::Sender<()>>,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        let state = State {
            limits,
            places: 0,
            calls: 0,
            bytes: 0,
            callers: HashMap::new(),
            waiting: HashMap::new(),
            order: BTreeSet::new(),
            crowd: BTreeSet::new(),
            leases: HashMap::new(),
            growing: VecDeque::new(),
            reserved: None,
            deferred: (0, 0),
            next: 0,
        };
        let waiting = AtomicUsize::new(0);
        Self(Arc::new(Inner { limits, state: Mutex::new(state), waiting }))
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in another holder leaves counts that are too high at worst.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and serves whoever can be served then.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut told = Told::default();
        let mut state = self.state();
        let changed = change(&mut state);
        state.serve(self, &mut told);
        self.0.waiting.store(state.waiting.len() + state.growing.len(), Ordering::Relaxed);
        drop(state);
        // A request that waits no longer gives back what it is sent.
        told.admitted.into_iter().for_each(|(granted, admitted)| drop(granted.send(admitted)));
        for granted in told.grown {
            let _ = granted.send(());
        }
        changed
    }

    /// Waits for a place and so many bytes, for `at_most` or as long as requests wait.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue.
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
        let number = self.with(|state| state.enqueue(Waiting { caller, bytes, since, granted }));
        let _leaves = Leaves { queue: self, number };
        // What could not be served at once makes the queue longer.
        self.with(State::shorten);
        match admitted.try_recv() {
            Ok(admitted) => return Ok(admitted),
            Err(TryRecvError::Closed) => return Err(Refused::QueueFull),
            Err(TryRecvError::Empty) => {}
        }
        match timeout_at(since + time, admitted).await {
            Ok(Ok(admitted)) => Ok(admitted),
            Ok(Err(_)) => Err(Refused::QueueFull),
            Err(_) => Err(Refused::TimedOut(time)),
        }
    }

    /// Lets a call that holds a place and so many bytes wait for hours. `None` where those that do
    /// would hold more than half of the places or of the memory: the rest is for all others.
    pub(crate) fn defer(&self, bytes: usize) -> Option<Deferred> {
        let mut state = self.state();
        let (calls, held) = (state.deferred.0 + 1, state.deferred.1.saturating_add(bytes));
        let has_room = calls <= state.limits.places / 2 && held <= state.limits.bytes / 2;
        has_room.then(|| {
            state.deferred = (calls, held);
            Deferred { queue: self.clone(), bytes }
        })
    }

    /// Whether anybody waits, for a place or for memory.
    pub(crate) fn is_under_pressure(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }

    /// What is taken, for people.
    pub(crate) fn usage(&self) -> Usage {
        let state = self.state();
        let reserved = state.reserved.and_then(|holder| state.leases.get(&holder));
        let has_place = state.places < state.limits.places && state.calls < state.limits.calls;
        let (for_place, for_memory) =
            if has_place { (0, state.waiting.len()) } else { (state.waiting.len(), 0) };
        Usage {
            places: state.places,
            calls: state.calls,
            bytes: state.bytes + reserved.map_or(0, |lease| lease.of_reserve),
            for_place,
            for_memory,
            responses: state.growing.len(),
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
    /// Requests that wait for a place. Those that wait while there is one wait for memory.
    pub(crate) for_place: usize,
    pub(crate) for_memory: usize,
    /// Responses that wait for memory.
    pub(crate) responses: usize,
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
        self.queue.with(|state| drop(state.dequeue(self.number)));
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn enqueue(&mut self, waiting: Waiting) -> u64 {
        let (number, caller) = (self.number(), waiting.caller);
        self.waiting.insert(number, waiting);
        self.change(caller, |holder| holder.waiting.push_back(number));
        number
    }

    fn dequeue(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        self.change(waiting.caller, |holder| holder.waiting.retain(|other| *other != number));
        Some(waiting)
    }

    /// Takes requests out that the queue is too short for: the last of whoever has most of them.
    fn shorten(&mut self) {
        while self.waiting.len() > self.limits.queue {
            let crowd = self.crowd.last();
            let last = crowd.and_then(|(_, caller)| self.callers.get(caller)?.waiting.back());
            let Some(&last) = last else { return };
            self.dequeue(last);
        }
    }

    /// Changes what a caller holds or waits for, and where it stands in the order.
    fn change(&mut self, caller: Caller, change: impl FnOnce(&mut Holder)) {
        let holder = self.callers.entry(caller).or_default();
        if let Some((score, first)) = holder.position.take() {
            self.order.remove(&(score, first, caller));
            self.crowd.remove(&(holder.waiting.len(), caller));
        }
        change(holder);
        if let Some(&first) = holder.waiting.front() {
            let score = holder.score(&self.limits);
            holder.position = Some((score, first));
            self.order.insert((score, first, caller));
            self.crowd.insert((holder.waiting.len(), caller));
        } else if holder.calls == 0 && holder.bytes == 0 {
            self.callers.remove(&caller);
        }
    }

    /// Lets a lease hold so many bytes in all, of the reserve too where it `may`. `false` where there
    /// are not so many now.
    fn resize(&mut self, id: u64, bytes: usize, may: bool) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        let has = lease.held();
        let caller = lease.caller;
        if let Some(more) = bytes.checked_sub(has) {
            if self.bytes + more <= self.limits.bytes {
                lease.bytes += more;
                self.bytes += more;
                self.change(caller, |holder| holder.bytes += more);
                return true;
            }
            let is_free = self.reserved.is_none_or(|holder| holder == id);
            if !may || !is_free || lease.of_reserve + more > self.limits.reserve {
                return false;
            }
            lease.of_reserve += more;
            self.reserved = Some(id);
            return true;
        }
        // The reserve goes back first: it is the others' way on.
        let less = has - bytes;
        let of_reserve = less.min(lease.of_reserve);
        let shared = less - of_reserve;
        lease.of_reserve -= of_reserve;
        lease.bytes -= shared;
        let has_reserve = lease.of_reserve > 0;
        self.reserved.take_if(|holder| *holder == id && !has_reserve);
        self.bytes -= shared;
        self.change(caller, |holder| holder.bytes -= shared);
        true
    }

    /// Serves who waits: requests of callers that hold far less than their share, then responses
    /// that wait for memory, then the other requests, those of callers that hold least first.
    fn serve(&mut self, queue: &Queue, told: &mut Told) {
        // Responses have the reserve to get on with, one after another.
        self.admit(queue, told, true);
        while let Some(first) = self.growing.front() {
            let (lease, bytes) = (first.lease, first.bytes);
            let has = self.leases.get(&lease).map_or(0, Leased::held);
            if bytes > has && !self.resize(lease, bytes, true) {
                // What was paid for comes before what has not begun.
                return;
            }
            told.grown.extend(self.growing.pop_front().map(|first| first.granted));
        }
        self.admit(queue, told, false);
    }

    /// Admits the requests that there is room for, or only those of callers that are `far_below`
    /// their share.
    fn admit(&mut self, queue: &Queue, told: &mut Told, far_below: bool) {
        while self.places < self.limits.places && self.calls < self.limits.calls {
            let Some(number) = self.next_in_order(far_below) else { return };
            let Some(Waiting { caller, bytes, granted, .. }) = self.dequeue(number) else { return };
            self.places += 1;
            self.calls += 1;
            self.bytes += bytes;
            self.change(caller, |holder| {
                holder.calls += 1;
                holder.bytes += bytes;
            });
            let id = self.number();
            self.leases.insert(id, Leased { caller, bytes, of_reserve: 0 });
            let lease = Lease { queue: queue.clone(), id };
            told.admitted.push((granted, Admitted { place: Place(queue.clone()), lease }));
        }
    }

    fn next_in_order(&self, far_below: bool) -> Option<u64> {
        let callers = self.callers.len();
        if far_below && callers < 2 {
            return None;
        }
        for (_, number, caller) in self.order.iter().take(LOOKED_AT) {
            let (waiting, holder) = (self.waiting.get(number)?, self.callers.get(caller)?);
            // With its clients or without them, a caller has no more calls than all may have
            // clients: some are left for the others, whatever it does.
            let has_calls = holder.calls < self.limits.places;
            if far_below && holder.bytes + waiting.bytes > self.limits.bytes / (2 * callers) {
                return None;
            }
            if has_calls && self.bytes + waiting.bytes <= self.limits.bytes {
                return Some(*number);
            }
            // Smaller requests pass it for a while only.
            if has_calls && waiting.since.elapsed() > self.limits.time / 2 {
                return None;
            }
        }
        None
    }
}

impl Leased {
    fn held(&self) -> usize {
        self.bytes + self.of_reserve
    }
}

impl Holder {
    /// How much of what there is it holds, in thousandths.
    fn score(&self, limits: &Limits) -> u64 {
        let of = |held: usize, all: usize| held as u64 * 1000 / all.max(1) as u64;
        of(self.calls, limits.places).max(of(self.bytes, limits.bytes))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.with(|state| state.places -= 1);
    }
}

/// A call that may wait for hours, until this is dropped.
#[derive(Debug)]
pub(crate) struct Deferred {
    queue: Queue,
    bytes: usize,
}

impl Drop for Deferred {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.deferred.0 -= 1;
        state.deferred.1 -= self.bytes;
    }
}

impl Lease {
    /// Lets its call wait for hours, where there is room for that.
    pub(crate) fn defer(&self) -> Option<Deferred> {
        let held = self.queue.state().leases.get(&self.id).map_or(0, Leased::held);
        self.queue.defer(held)
    }

    /// Changes what it holds to so many bytes in all. `false` where there are not so many now, or
    /// where a response waits for them. Less is always possible. The reserve is for responses:
    /// `is_paid`.
    pub(crate) fn try_resize(&self, bytes: usize, is_paid: bool) -> bool {
        self.queue.with(|state| {
            let has = state.leases.get(&self.id).map_or(0, Leased::held);
            let may = bytes <= has || state.growing.is_empty() || state.reserved == Some(self.id);
            may && state.resize(self.id, bytes, is_paid)
        })
    }

    /// Waits until it holds at least so many bytes in all. `false` where that can never be, or was not for
    /// two minutes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the wait.
    pub(crate) async fn grow(&self, bytes: usize) -> bool {
        let (granted, received) = oneshot::channel();
        let number = self.queue.with(|state| {
            let number = state.number();
            let limits = &state.limits;
            let is_possible = bytes <= limits.bytes.max(limits.reserve);
            let growing = Growing { number, lease: self.id, bytes, granted };
            is_possible.then(|| state.growing.push_back(growing)).map(|()| number)
        });
        let Some(number) = number else { return false };
        let _gives_up = GivesUp { queue: &self.queue, number };
        matches!(timeout(PATIENCE, received).await, Ok(Ok(())))
    }

    /// Whether others wait while its caller holds more than its share of what there is.
    pub(crate) fn is_over_share(&self) -> bool {
        if !self.queue.is_under_pressure() {
            return false;
        }
        let state = self.queue.state();
        let Some(caller) = state.leases.get(&self.id).map(|lease| lease.caller) else {
            return false;
        };
        let (limits, callers) = (&state.limits, state.callers.len());
        state.callers.get(&caller).is_some_and(|holder| {
            callers > 1
                && (holder.calls > limits.places / callers || holder.bytes > limits.bytes / callers)
        })
    }

    /// Whether anybody waits.
    pub(crate) fn is_under_pressure(&self) -> bool {
        self.queue.is_under_pressure()
    }
}

/// Takes a response out of the queue that waits no longer.
struct GivesUp<'a> {
    queue: &'a Queue,
    number: u64,
}

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        self.queue.with(|state| state.growing.retain(|waiting| waiting.number != self.number));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.queue.with(|state| {
            state.resize(self.id, 0, false);
            let Some(Leased { caller, .. }) = state.leases.remove(&self.id) else { return };
            state.calls -= 1;
            state.change(caller, |holder| holder.calls -= 1);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        places: 4,
        calls: 8,
        bytes: 100,
        reserve: 60,
        queue: 16,
        time: Duration::from_secs(120),
    };
    const NOW: Duration = Duration::ZERO;
    const LONG: Duration = Duration::MAX;

    fn is_empty(queue: &Queue) -> bool {
        let state = queue.state();
        assert_eq!(state.waiting.len() + state.order.len() + state.crowd.len(), 0);
        assert_eq!(state.leases.len() + state.growing.len() + state.callers.len(), 0);
        (state.places, state.calls, state.bytes, state.reserved) == (0, 0, 0, None)
    }

    // One caller could take every place for a day, with calls that cost nothing while they wait.
    #[test]
    fn calls_that_wait_for_hours_leave_half_of_the_places_and_of_the_memory_to_others() {
        let queue = Queue::new(LIMITS);
        let two = (queue.defer(10).unwrap(), queue.defer(10).unwrap());
        assert!(queue.defer(10).is_none());
        drop(two);
        let one = queue.defer(50).unwrap();
        assert!(queue.defer(1).is_none() && queue.defer(usize::MAX).is_none());
        drop(one);
        assert!(queue.defer(50).is_some());
    }

    // 744 of 1,000 were refused, although each would have had its turn.
    #[tokio::test(start_paused = true)]
    async fn a_thousand_requests_above_the_limit_wait_and_all_are_served() {
        let limits = Limits { places: 256, calls: 512, bytes: 1 << 30, queue: 1024, ..LIMITS };
        let queue = Queue::new(limits);
        let calls: Vec<_> = (0..1000)
            .map(|n| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    let admitted = queue.admit(n, 1 << 20, LONG).await;
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    admitted.is_ok()
                })
            })
            .collect();
        for call in calls {
            assert!(call.await.unwrap());
        }
        assert!(is_empty(&queue));
    }

    #[tokio::test(start_paused = true)]
    async fn what_becomes_free_goes_to_whoever_holds_least() {
        let queue = Queue::new(LIMITS);
        let mut held = Vec::new();
        for _ in 0..LIMITS.places {
            held.push(queue.admit(1, 1, LONG).await.unwrap());
        }
        // A caller alone has had everything; the next of its requests wait before the other's.
        let next = queue.admit(1, 1, LONG);
        let other = queue.admit(2, 1, LONG);
        tokio::pin!(next, other);
        assert!((&mut next).now_or_never().is_none() && (&mut other).now_or_never().is_none());
        held.pop();
        assert!((&mut next).now_or_never().is_none());
        let other = other.now_or_never().unwrap().unwrap();
        drop(other);
        assert!(next.now_or_never().unwrap().is_ok());
        held.clear();
        assert!(is_empty(&queue));
    }

    #[tokio::test(start_paused = true)]
    async fn what_requests_and_responses_wait_for_is_told_apart() {
        let queue = Queue::new(LIMITS);
        let large = queue.admit(1, LIMITS.bytes, LONG).await.unwrap();
        let mut next = Box::pin(queue.admit(2, 1, LONG));
        assert!(next.as_mut().now_or_never().is_none());
        let waits = |queue: &Queue| {
            let usage = queue.usage();
            (usage.for_place, usage.for_memory, usage.responses)
        };
        assert_eq!(waits(&queue), (0, 1, 0));
        drop((next, large));
        let mut held = Vec::new();
        for _ in 0..LIMITS.places {
            held.push(queue.admit(1, LIMITS.bytes / LIMITS.places, LONG).await.unwrap());
        }
        let mut next = Box::pin(queue.admit(2, 1, LONG));
        assert!(next.as_mut().now_or_never().is_none());
        // One response has the reserve, and the other waits for it.
        let mut response = Box::pin(held[0].lease.grow(LIMITS.reserve));
        assert!(response.as_mut().now_or_never().is_some());
        let mut response = Box::pin(held[1].lease.grow(LIMITS.reserve));
        assert!(response.as_mut().now_or_never().is_none());
        assert_eq!(waits(&queue), (1, 0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_without_clients_never_take_the_places_of_other_callers() {
        let queue = Queue::new(LIMITS);
        let mut detached = Vec::new();
        // It hangs up on every call, which goes on.
        while let Ok(Admitted { place, lease }) = queue.admit(1, 1, NOW).await {
            drop(place);
            detached.push(lease);
        }
        assert_eq!(detached.len(), LIMITS.places);
        let other: Vec<_> = (0..LIMITS.places).map(|_| queue.admit(2, 1, NOW)).collect();
        for admitted in futures::future::join_all(other).await {
            assert!(admitted.is_ok(), "all places are left to the other");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_makes_room_at_the_cost_of_whoever_fills_it() {
        let queue = Queue::new(Limits { places: 1, ..LIMITS });
        let admitted = queue.admit(1, 1, LONG).await.unwrap();
        let waits = |caller| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.admit(caller, 1, LONG).await.map(drop) })
        };
        let mut many: Vec<_> = (0..LIMITS.queue + 9).map(|_| waits(1)).collect();
        tokio::task::yield_now().await;
        let mut refused = 0;
        for one in &mut many {
            if let Some(result) = one.now_or_never() {
                assert_eq!(result.unwrap(), Err(Refused::QueueFull));
                refused += 1;
            }
        }
        assert_eq!(refused, 9);
        let other = waits(2);
        tokio::task::yield_now().await;
        drop(admitted);
        assert_eq!(other.await.unwrap(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_its_time_and_leaves_nothing() {
        let queue = Queue::new(Limits { places: 1, ..LIMITS });
        let admitted = queue.admit(1, 1, LONG).await.unwrap();
        let (start, short) = (Instant::now(), Duration::from_secs(3));
        for (at_most, waited) in [(short, short), (LONG, LIMITS.time)] {
            let start = Instant::now();
            let refused = queue.admit(2, 1, at_most).await.unwrap_err();
            assert_eq!((refused, start.elapsed()), (Refused::TimedOut(waited), waited));
        }
        assert!(start.elapsed() < LIMITS.time * 2 && !queue.is_under_pressure());
        assert_eq!(queue.admit(2, LIMITS.bytes + 1, LONG).await.unwrap_err(), Refused::TooLarge);
        drop(admitted);
        assert!(is_empty(&queue));
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_request_is_passed_by_smaller_ones_for_a_while_and_not_for_ever() {
        let queue = Queue::new(Limits { places: 99, calls: 99, ..LIMITS });
        let _most = queue.admit(1, 60, LONG).await.unwrap();
        let large = queue.admit(2, 90, LONG);
        tokio::pin!(large);
        assert!((&mut large).now_or_never().is_none());
        assert!(queue.admit(3, 10, NOW).now_or_never().is_some_and(|small| small.is_ok()));
        tokio::time::advance(LIMITS.time / 2 + Duration::from_secs(1)).await;
        assert!(queue.admit(3, 10, LONG).now_or_never().is_none());
        drop(_most);
        assert!(large.now_or_never().unwrap().is_ok());
    }

    // With all memory held by responses that wait for more of it, none would ever get on.
    #[tokio::test(start_paused = true)]
    async fn responses_that_need_more_than_there_is_complete_one_after_the_other() {
        let queue = Queue::new(Limits { places: 99, calls: 99, ..LIMITS });
        let mut calls = Vec::new();
        for n in 0..10 {
            let lease = queue.admit(n, 10, LONG).await.unwrap().lease;
            calls.push(tokio::spawn(async move {
                for bytes in 11..=LIMITS.reserve {
                    if !lease.try_resize(bytes, true) && !lease.grow(bytes).await {
                        return false;
                    }
                    tokio::task::yield_now().await;
                }
                true
            }));
        }
        for call in calls {
            assert!(call.await.unwrap());
        }
        assert!(is_empty(&queue));
    }

    // Forty clients that did not read had all memory, and the next of their responses came before
    // another caller's request.
    #[tokio::test(start_paused = true)]
    async fn responses_that_wait_for_memory_do_not_keep_a_small_caller_out() {
        let queue = Queue::new(LIMITS);
        let greedy = [queue.admit(1, 50, LONG).await, queue.admit(1, 50, LONG).await];
        let [first, second] = greedy.map(|admitted| admitted.unwrap().lease);
        assert!(first.try_resize(100, true), "the reserve");
        let more = second.grow(60);
        let other = queue.admit(2, 10, LONG);
        tokio::pin!(more, other);
        assert!((&mut more).now_or_never().is_none() && (&mut other).now_or_never().is_none());
        assert!(first.try_resize(40, true));
        assert!(other.now_or_never().is_some_and(|admitted| admitted.is_ok()));
        assert!(more.now_or_never().is_some_and(|grown| grown), "with the reserve");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask(Caller, usize),
        HangUp(usize),
        End(usize),
        Grow(usize, usize),
        Leave(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..4u64, 0..120usize).prop_map(|(who, bytes)| Step::Ask(who, bytes)),
            1 => (0..20usize).prop_map(Step::HangUp),
            3 => (0..20usize).prop_map(Step::End),
            2 => (0..20usize, 0..120usize).prop_map(|(n, bytes)| Step::Grow(n, bytes)),
            1 => (0..20usize).prop_map(Step::Leave),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_limit_is_ever_exceeded_and_all_that_was_taken_comes_back(steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time().start_paused(true).build().unwrap();
            let _entered = runtime.enter();
            let queue = Queue::new(LIMITS);
            type Wait = std::pin::Pin<Box<dyn Future<Output = Result<Admitted, Refused>>>>;
            let (mut waits, mut held): (Vec<Wait>, Vec<(Option<Place>, Lease)>) = Default::default();
            for step in steps {
                match step {
                    Step::Ask(who, bytes) => {
                        let queue = queue.clone();
                        waits.push(Box::pin(async move { queue.admit(who, bytes, LONG).await }));
                    }
                    Step::HangUp(n) if n < held.len() => held[n].0 = None,
                    Step::End(n) if n < held.len() => drop(held.swap_remove(n)),
                    Step::Grow(n, bytes) if n < held.len() => {
                        let _ = held[n].1.try_resize(bytes, n % 2 == 0);
                    }
                    Step::Leave(n) if n < waits.len() => drop(waits.swap_remove(n)),
                    _ => {}
                }
                waits.retain_mut(|wait| match wait.as_mut().now_or_never() {
                    None => true,
                    Some(Ok(admitted)) => {
                        held.push((Some(admitted.place), admitted.lease));
                        false
                    }
                    Some(Err(_)) => false,
                });
                let usage = queue.usage();
                prop_assert!(usage.places <= LIMITS.places && usage.calls <= LIMITS.calls);
                prop_assert!(queue.state().bytes <= LIMITS.bytes);
                prop_assert!(usage.bytes <= LIMITS.bytes + LIMITS.reserve);
                prop_assert!(usage.for_place + usage.for_memory <= LIMITS.queue);
                prop_assert_eq!(usage.places, held.iter().filter(|one| one.0.is_some()).count());
                prop_assert_eq!(usage.calls, held.len());
            }
            drop((waits, held));
            prop_assert!(is_empty(&queue));
        }
    }
}
