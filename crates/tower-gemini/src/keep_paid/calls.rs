//! All calls that are known, by their fingerprints. Times are handed in.
//!
//! An `Idempotency-Key` is one more fingerprint: its call differs only in how often its result is
//! given ([`Replay`]), and in that clients may join it while it is in flight.

use std::collections::{BTreeSet, HashMap};
use std::mem::take;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::files::{CallFile, SavedCall};
use super::fingerprint::Fingerprint;
use super::progress::{CallEvent, CallProgress, Replay};
use super::shares::{Caller, Shares};
use super::stored::{CallId, StoredResponse};
use super::{KeepCounts, Settings};
use crate::call_state::CallState;
use crate::store::{Journal, JournalChange};

/// As many losses are remembered as are reported within minutes by any plausible fleet; a few
/// hundred bytes each.
const MAX_LOSSES: usize = 1024;

/// As many clients wait for one call: more than the workers that share one job, and few enough that
/// a caller cannot fill a server with requests that do nothing but wait.
const MAX_WAITING: usize = 32;

/// A stored response takes this much beside its bytes: it bounds how many there are.
const LEAST_BYTES: usize = 1024;

/// Gives the response of a call with a key to all clients that wait for it. Clients that no longer
/// wait are not among its receivers.
pub(super) type Clients = watch::Sender<Option<Arc<StoredResponse>>>;
pub(super) type Client = watch::Receiver<Option<Arc<StoredResponse>>>;

#[derive(Debug)]
pub(super) struct Calls {
    max_detached: usize,
    retention: Duration,
    resend_window: Duration,
    loss_window: Duration,
    max_bytes: usize,
    slots: HashMap<Fingerprint, Slot>,
    /// Of all stored responses.
    stored_bytes: usize,
    stored_count: usize,
    /// Of responses on their way from here to a client: they can come back.
    delivering_bytes: usize,
    /// Stored responses by their callers, numbered; of those of a caller the first one makes room
    /// first.
    delivered: Shares<(u64, CallId)>,
    undelivered: Shares<(u64, CallId)>,
    next_stored: u64,
    detached: usize,
    /// Calls without a key that are stored, and that are lost and unreported.
    waiting: usize,
    unreported: usize,
    /// When each call is forgotten.
    expiry: BTreeSet<(Instant, CallId)>,
    /// Losses; of those of a caller the first one is forgotten first.
    losses: Shares<(CallProgress, Instant, CallId)>,
    losses_count: usize,
    pub(super) totals: KeepCounts,
    pub(super) to_do: ToDo,
    journal: Option<Arc<dyn Journal>>,
}

/// What is left to do when the calls are unlocked.
#[derive(Debug, Default)]
pub(super) struct ToDo {
    pub(super) delete: Vec<PathBuf>,
    /// Responses that no client received.
    pub(super) dropped: Vec<Arc<StoredResponse>>,
    pub(super) forgotten_losses: usize,
}

/// The calls with one fingerprint.
#[derive(Debug)]
struct Slot {
    calls: Vec<Call>,
    /// Told of each change.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Call {
    number: u128,
    caller: Caller,
    progress: CallProgress,
    /// When it came there: what it is dated by.
    since: Instant,
    /// When a client was first told that it is lost.
    first_report: Option<Instant>,
    /// The request that an `Idempotency-Key` was used for.
    keyed_request: Option<Fingerprint>,
    /// While it is in flight.
    state: Option<CallState>,
    clients: Option<Clients>,
    /// While it is stored or delivered.
    response: Option<Arc<StoredResponse>>,
    /// What it takes of the bound while it is delivered.
    delivering_bytes: usize,
    /// Its place in the order of eviction, while it is stored.
    stored_as: Option<(Rank, u64)>,
    file: Option<CallFile>,
    journaled: Journaled,
}

/// What the journal has of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Journaled {
    #[default]
    Nothing,
    /// That it was or may have been charged.
    Record,
    /// Its response too.
    Response,
}

/// Where a response is that is not in memory.
#[derive(Debug, Clone)]
pub(super) enum Copy {
    File(CallFile),
    Journal(u128, Instant),
}

impl Call {
    fn replay(&self) -> Replay {
        if self.keyed_request.is_some() { Replay::Always } else { Replay::Once }
    }

    fn stored(&self) -> Option<&Arc<StoredResponse>> {
        self.response.as_ref().filter(|_| self.stored_as.is_some())
    }

    /// Its response, where it is not only in memory.
    fn copy(&self) -> Option<Copy> {
        let file = self.file.clone().filter(|file| file.has_response).map(Copy::File);
        let journal = || Copy::Journal(self.number, self.since);
        file.or_else(|| (self.journaled == Journaled::Response).then(journal))
    }

    /// What is to be written down when this happens.
    fn change(
        &mut self,
        event: CallEvent,
        next: Option<CallProgress>,
        [retention, resend_window, loss_window]: [Duration; 3],
    ) -> Option<JournalChange> {
        use CallEvent as On;
        let has_copy = self.journaled == Journaled::Response;
        if self.journaled == Journaled::Nothing {
            return None;
        }
        match (event, next) {
            // A response that could not be read stays for the next process.
            (On::Report | On::Forget, _) if has_copy => {
                self.journaled = Journaled::Nothing;
                None
            }
            (_, None) => {
                self.journaled = Journaled::Nothing;
                Some(JournalChange::Forget)
            }
            (_, Some(CallProgress::Delivered)) => Some(JournalChange::Delivered(resend_window)),
            (On::Lose | On::PutBack | On::Store | On::Evict, _) if has_copy => {
                Some(JournalChange::Taken(false, retention))
            }
            (On::Lose | On::Evict, _) => Some(JournalChange::Lost(retention)),
            (On::Report, _) => Some(JournalChange::Lost(loss_window)),
            (On::Detach, _) => Some(JournalChange::Detached(true)),
            (On::Attach, _) => Some(JournalChange::Detached(false)),
            _ => None,
        }
    }
}

/// Which responses make room first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// A client has it, as far as can be seen from here, or a file.
    Delivered,
    /// It is nowhere else.
    Undelivered,
}

/// Who asks for a response.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    /// The request waits for an identical one in the foreground to be disconnected.
    pub(super) waits: bool,
    /// Marked as one.
    pub(super) is_resend: bool,
    pub(super) can_read_files: bool,
}

/// What there is for a request.
#[derive(Debug)]
pub(super) enum Found {
    /// To be delivered, or put back.
    Response(CallId, Arc<StoredResponse>),
    /// To be read, and then [taken](Calls::take_read).
    Elsewhere(CallId, Copy),
    /// Another request in flight must change first.
    Detached(watch::Receiver<()>),
    Foreground(watch::Receiver<()>),
    /// Enough requests wait for it.
    TooMany,
    /// It was or may have been charged, and there is no response.
    Lost,
    Nothing,
}

/// What there is for a request with an `Idempotency-Key`.
#[derive(Debug)]
pub(super) enum Keyed {
    /// Nothing: the request is to be sent.
    New(CallId, Clients, Client),
    InFlight(Client),
    /// Enough requests wait for it.
    TooMany,
    Response(Arc<StoredResponse>),
    Elsewhere(Copy),
    Lost,
    /// The key was used for another request.
    OtherRequest,
}

impl Calls {
    pub(super) fn new(settings: &Settings) -> Self {
        let Settings { max_detached, max_bytes, retention, resend_window, loss_window, .. } =
            *settings;
        Self {
            max_detached,
            retention,
            resend_window,
            loss_window,
            max_bytes,
            slots: HashMap::new(),
            stored_bytes: 0,
            stored_count: 0,
            delivering_bytes: 0,
            delivered: Shares::default(),
            undelivered: Shares::default(),
            next_stored: 0,
            detached: 0,
            waiting: 0,
            unreported: 0,
            expiry: BTreeSet::new(),
            losses: Shares::default(),
            losses_count: 0,
            totals: KeepCounts::default(),
            to_do: ToDo::default(),
            journal: settings.journal.clone(),
        }
    }

    /// A call is about to be sent.
    pub(super) fn begin(
        &mut self,
        fingerprint: Fingerprint,
        caller: Caller,
        state: CallState,
    ) -> CallId {
        self.insert(fingerprint, |call| (call.caller, call.state) = (caller, Some(state)))
    }

    fn insert(&mut self, fingerprint: Fingerprint, set: impl FnOnce(&mut Call)) -> CallId {
        let number = fastrand::u128(..);
        let mut call = Call {
            number,
            caller: 0,
            progress: CallProgress::Foreground,
            since: Instant::now(),
            first_report: None,
            keyed_request: None,
            state: None,
            clients: None,
            response: None,
            delivering_bytes: 0,
            stored_as: None,
            file: None,
            journaled: Journaled::Nothing,
        };
        set(&mut call);
        let id = CallId { fingerprint, number: call.number };
        let slot = self
            .slots
            .entry(fingerprint)
            .or_insert_with(|| Slot { calls: Vec::new(), changed: watch::Sender::new(()) });
        slot.calls.push(call);
        id
    }

    /// An attempt of the call is written down from now on.
    pub(super) fn journaled(&mut self, id: CallId) {
        if let Some(call) = self.call_mut(id).filter(|call| call.journaled == Journaled::Nothing) {
            call.journaled = Journaled::Record;
        }
    }

    /// Whether the journal has a record of the call, and not its response.
    pub(super) fn is_to_be_written(&mut self, id: CallId) -> bool {
        self.call_mut(id).is_some_and(|call| call.journaled == Journaled::Record)
    }

    /// The journal holds the response.
    pub(super) fn written(&mut self, id: CallId) {
        if let Some(call) = self.call_mut(id) {
            call.journaled = Journaled::Response;
        }
    }

    /// Whether the journal, and so another process, knows of the response.
    pub(super) fn is_shared(&mut self, id: CallId) -> bool {
        self.call_mut(id).is_some_and(|call| call.journaled != Journaled::Nothing)
    }

    /// Another process gives the response to a client.
    pub(super) fn taken_elsewhere(&mut self, id: CallId, now: Instant) {
        if let Some(call) = self.call_mut(id) {
            call.journaled = Journaled::Nothing;
        }
        self.apply(id, CallEvent::Deliver { remember: false }, now);
    }

    fn call_mut(&mut self, id: CallId) -> Option<&mut Call> {
        let slot = self.slots.get_mut(&id.fingerprint)?;
        slot.calls.iter_mut().find(|call| call.number == id.number)
    }

    /// Moves a call on, and does what belongs to its new progress.
    pub(super) fn apply(&mut self, id: CallId, event: CallEvent, now: Instant) {
        let retention = self.retention;
        let windows = [retention, self.resend_window, self.loss_window];
        let Some(call) = self.call_mut(id) else { return };
        let (before, since, replay) = (call.progress, call.since, call.replay());
        let caller = call.caller;
        let next = before.next(event, replay);
        let is_report = event == CallEvent::Report && next == Some(CallProgress::Reported);
        if is_report {
            // Each report makes the window longer, for as long as a response would be stored.
            let first = *call.first_report.get_or_insert(now);
            if before == CallProgress::Reported && now >= after(first, retention) {
                return;
            }
        } else if next == Some(before) {
            return;
        }
        // A response that made room stays as old as it was.
        if !matches!(event, CallEvent::Take | CallEvent::Evict) {
            call.since = now;
        }
        let dated = call.since;
        call.progress = next.unwrap_or(before);
        if !call.progress.is_in_flight() {
            call.state = None;
            call.clients = None;
        }
        let mut delivered_bytes = 0;
        if before == CallProgress::Delivering {
            delivered_bytes = take(&mut call.delivering_bytes);
            if call.stored_as.is_none() {
                call.response = None;
            }
        }
        let change = call.change(event, next, windows);
        // A response that could not be read stays for the next process.
        if matches!(event, CallEvent::Report | CallEvent::Forget) {
            call.file.take_if(|file| file.has_response);
        }
        let is_settled = next.is_none_or(|next| next == CallProgress::Delivered);
        let file = if is_settled { call.file.take() } else { None };
        self.to_do.delete.extend(file.map(|file| file.path));

        // Under the lock: the journal hears of the changes in their order.
        if let (Some(journal), Some(change)) = (&self.journal, change) {
            drop(journal.write(id.number, change));
        }
        self.delivering_bytes -= delivered_bytes;
        self.unindex((id, caller, replay), before, since);
        match next {
            Some(next) => self.index((id, caller, replay), next, dated),
            None => {
                let response = self.unstore(id);
                if before == CallProgress::Stored && replay == Replay::Once {
                    self.drop_unasked(response);
                }
            }
        }
        let Some(slot) = self.slots.get_mut(&id.fingerprint) else { return };
        slot.changed.send_replace(());
        if next.is_none() {
            slot.calls.retain(|call| call.number != id.number);
            if slot.calls.is_empty() {
                self.slots.remove(&id.fingerprint);
            }
        }
        while self.losses_count > MAX_LOSSES {
            let Some((.., oldest)) = self.losses.first_to_go(caller, 0) else { break };
            self.to_do.forgotten_losses += 1;
            self.apply(oldest, CallEvent::Forget, now);
        }
    }

    fn index(
        &mut self,
        (id, caller, replay): (CallId, Caller, Replay),
        progress: CallProgress,
        since: Instant,
    ) {
        self.expiry.extend(self.deadline(progress, since).map(|deadline| (deadline, id)));
        if let Some(count) = self.count_of(progress, replay) {
            *count += 1;
        }
        if progress.is_loss() {
            self.losses.insert(caller, (progress, since, id), 1);
            self.losses_count += 1;
        }
    }

    fn unindex(
        &mut self,
        (id, caller, replay): (CallId, Caller, Replay),
        progress: CallProgress,
        since: Instant,
    ) {
        if let Some(deadline) = self.deadline(progress, since) {
            self.expiry.remove(&(deadline, id));
        }
        if let Some(count) = self.count_of(progress, replay) {
            *count -= 1;
        }
        if progress.is_loss() {
            self.losses.remove(caller, &(progress, since, id));
            self.losses_count -= 1;
        }
    }

    /// What counts the calls that have come so far.
    fn count_of(&mut self, progress: CallProgress, replay: Replay) -> Option<&mut usize> {
        match (progress, replay) {
            (CallProgress::Detached, _) => Some(&mut self.detached),
            (CallProgress::Stored, Replay::Once) => Some(&mut self.waiting),
            (CallProgress::Lost, Replay::Once) => Some(&mut self.unreported),
            _ => None,
        }
    }

    /// When a call is forgotten.
    fn deadline(&self, progress: CallProgress, since: Instant) -> Option<Instant> {
        match progress {
            CallProgress::Stored | CallProgress::Lost => Some(after(since, self.retention)),
            CallProgress::Delivered => Some(after(since, self.resend_window)),
            CallProgress::Reported => Some(after(since, self.loss_window)),
            _ => None,
        }
    }

    /// Forgets what is too old: whoever asks for it now asks anew.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.expiry.first().filter(|(at, _)| *at <= now) {
            self.expiry.remove(&(deadline, id));
            self.apply(id, CallEvent::Expire, now);
        }
    }

    /// Lets a call go on without a client. `false` where as many do already as may.
    pub(super) fn detach(&mut self, id: CallId, now: Instant) -> bool {
        let is_detached = |call: &mut Call| call.progress == CallProgress::Detached;
        if self.call_mut(id).is_some_and(is_detached) {
            return true;
        }
        let has_room = self.detached < self.max_detached;
        self.apply(id, if has_room { CallEvent::Detach } else { CallEvent::Lose }, now);
        has_room
    }

    /// Stores the response of a call. `is_delivered` where a client has it too, or a file.
    pub(super) fn store(
        &mut self,
        id: CallId,
        response: Arc<StoredResponse>,
        is_delivered: bool,
        now: Instant,
    ) {
        self.expire(now);
        self.apply(id, CallEvent::Store, response.completed_at);
        let rank = if is_delivered { Rank::Delivered } else { Rank::Undelivered };
        self.put(id, response, rank, now);
    }

    /// Stores a response, or changes its rank. It is evicted itself if it is larger than the bound,
    /// if only responses of a higher rank could make room for it, or if its caller would hold more
    /// than any other.
    fn put(&mut self, id: CallId, response: Arc<StoredResponse>, rank: Rank, now: Instant) {
        self.unstore(id);
        let Some(caller) = self.call_mut(id).map(|call| call.caller) else { return };
        while !self.has_room(response.bytes) {
            let first = self.first_to_go(rank, caller, response.bytes);
            let Some(victim) = first.filter(|_| response.bytes <= self.max_bytes) else {
                return self.evict(id, response, now);
            };
            if let Some(response) = self.unstore(victim) {
                self.evict(victim, response, now);
            }
        }
        let (bytes, stored_as) = (response.bytes, (rank, self.next_stored));
        let Some(call) = self.call_mut(id) else { return };
        (call.response, call.stored_as) = (Some(response), Some(stored_as));
        self.stored_bytes += bytes;
        self.stored_count += 1;
        self.next_stored += 1;
        self.ranked(rank).insert(caller, (stored_as.1, id), bytes.max(1));
    }

    /// What makes room for a response of this rank and caller. What was delivered does before what
    /// is nowhere else.
    fn first_to_go(&self, rank: Rank, caller: Caller, bytes: usize) -> Option<CallId> {
        let (shares, bytes) = match rank {
            Rank::Undelivered if self.delivered.is_empty() => (&self.undelivered, bytes),
            Rank::Undelivered => (&self.delivered, 0),
            Rank::Delivered => (&self.delivered, bytes),
        };
        shares.first_to_go(caller, bytes).map(|(_, id)| id)
    }

    fn ranked(&mut self, rank: Rank) -> &mut Shares<(u64, CallId)> {
        match rank {
            Rank::Delivered => &mut self.delivered,
            Rank::Undelivered => &mut self.undelivered,
        }
    }

    /// Takes a response out of what is stored.
    fn unstore(&mut self, id: CallId) -> Option<Arc<StoredResponse>> {
        let call = self.call_mut(id)?;
        let (rank, number) = call.stored_as.take()?;
        let (response, caller) = (call.response.take()?, call.caller);
        self.ranked(rank).remove(caller, &(number, id));
        self.stored_bytes -= response.bytes;
        self.stored_count -= 1;
        Some(response)
    }

    fn evict(&mut self, id: CallId, response: Arc<StoredResponse>, now: Instant) {
        let was_waiting = self.call_mut(id).is_some_and(|call| {
            call.progress == CallProgress::Stored && call.replay() == Replay::Once
        });
        if was_waiting {
            self.drop_unasked(Some(response));
        }
        self.apply(id, CallEvent::Evict, now);
    }

    /// Whether so many more bytes can be stored without another response making room.
    fn has_room(&self, bytes: usize) -> bool {
        let most = self.max_bytes / LEAST_BYTES + MAX_WAITING;
        self.stored_count < most
            && self
                .stored_bytes
                .checked_add(self.delivering_bytes)
                .and_then(|held| held.checked_add(bytes))
                .is_some_and(|bytes| bytes <= self.max_bytes)
    }

    fn drop_unasked(&mut self, response: Option<Arc<StoredResponse>>) {
        self.totals.expired += 1;
        self.to_do.dropped.extend(response);
    }

    /// A client received a response. It is kept for a resend where there is room for it, or in the
    /// journal; where there is none, the resend is told that it is lost.
    pub(super) fn delivered(
        &mut self,
        id: CallId,
        for_resend: Option<Arc<StoredResponse>>,
        now: Instant,
    ) {
        self.expire(now);
        let remember = for_resend.is_some();
        if let Some(response) = for_resend {
            // It takes the same room once more, and not twice.
            let delivering = self.call_mut(id).map(|call| take(&mut call.delivering_bytes));
            self.delivering_bytes -= delivering.unwrap_or_default();
            self.put(id, response, Rank::Delivered, now);
        }
        self.apply(id, CallEvent::Deliver { remember }, now);
    }

    /// A client that was given a response disconnected before its end: the response waits again,
    /// from now on.
    pub(super) fn put_back(&mut self, id: CallId, response: Arc<StoredResponse>, now: Instant) {
        self.expire(now);
        let is_on_disk = self.call_mut(id).is_some_and(|call| call.copy().is_some());
        if is_on_disk && !self.has_room(response.bytes) {
            // It can be read again, and needs no other response's room.
            self.apply(id, CallEvent::Evict, now);
        } else {
            self.apply(id, CallEvent::PutBack, now);
            self.put(id, response, Rank::Undelivered, now);
        }
    }

    /// The client pays again for what was lost.
    pub(super) fn forget_reported(&mut self, fingerprint: Fingerprint, now: Instant) {
        while let Some(id) = self.first(fingerprint, CallProgress::Reported) {
            self.apply(id, CallEvent::Expire, now);
        }
    }

    fn first(&self, fingerprint: Fingerprint, progress: CallProgress) -> Option<CallId> {
        let calls = &self.slots.get(&fingerprint)?.calls;
        let call = calls.iter().find(|call| call.progress == progress)?;
        Some(CallId { fingerprint, number: call.number })
    }

    /// What there is for this request. What was delivered comes last: the resend may be that of
    /// another call, whose own response is still on its way, or lost.
    pub(super) fn find(&mut self, fingerprint: Fingerprint, ask: Ask, now: Instant) -> Found {
        self.expire(now);
        let Some(slot) = self.slots.get(&fingerprint) else { return Found::Nothing };
        let has_enough = slot.changed.receiver_count() >= MAX_WAITING;
        let changed = slot.changed.subscribe();
        let first = |progress| self.first(fingerprint, progress);
        if let Some(id) = first(CallProgress::Stored) {
            return self.take(id, now);
        }
        if first(CallProgress::Detached).is_some() {
            return if has_enough { Found::TooMany } else { Found::Detached(changed) };
        }
        let in_foreground = [CallProgress::Foreground, CallProgress::Delivering];
        if ask.waits && in_foreground.into_iter().any(|progress| first(progress).is_some()) {
            return if has_enough { Found::TooMany } else { Found::Foreground(changed) };
        }
        let delivered = || first(CallProgress::Delivered).filter(|_| ask.is_resend);
        if let Some(id) = first(CallProgress::Lost).or_else(delivered) {
            let call = self.call_mut(id);
            let is_here = call.as_ref().is_some_and(|call| call.stored().is_some());
            let copy = call.and_then(|call| call.copy()).filter(|_| ask.can_read_files);
            return match copy {
                _ if is_here => self.take(id, now),
                Some(copy) => Found::Elsewhere(id, copy),
                None => self.report(id, now),
            };
        }
        first(CallProgress::Reported).map_or(Found::Nothing, |id| self.report(id, now))
    }

    fn report(&mut self, id: CallId, now: Instant) -> Found {
        self.apply(id, CallEvent::Report, now);
        Found::Lost
    }

    fn take(&mut self, id: CallId, now: Instant) -> Found {
        let Some(response) = self.unstore(id) else { return Found::Lost };
        self.apply(id, CallEvent::Take, now);
        self.count_delivering(id, &response);
        Found::Response(id, response)
    }

    /// A response was read from its file, or could not be. `false` if another request was faster.
    pub(super) fn take_read(
        &mut self,
        id: CallId,
        response: Option<&Arc<StoredResponse>>,
        now: Instant,
    ) -> bool {
        let is_elsewhere = |call: &&mut Call| {
            matches!(call.progress, CallProgress::Lost | CallProgress::Delivered)
                && call.stored().is_none()
        };
        let Some(call) = self.call_mut(id).filter(is_elsewhere) else { return false };
        call.response = None;
        let event = response.map_or(CallEvent::Report, |_| CallEvent::Take);
        self.apply(id, event, now);
        if let Some(response) = response {
            self.count_delivering(id, response);
        }
        true
    }

    /// A response is on its way to a client, and takes its room as long as it can come back.
    fn count_delivering(&mut self, id: CallId, response: &Arc<StoredResponse>) {
        let is_delivering = |call: &&mut Call| call.progress == CallProgress::Delivering;
        let Some(call) = self.call_mut(id).filter(is_delivering) else { return };
        (call.response, call.delivering_bytes) = (Some(response.clone()), response.bytes);
        self.delivering_bytes += response.bytes;
    }

    /// What there is for a request with a key, which is sent where there is nothing.
    pub(super) fn find_keyed(
        &mut self,
        key: Fingerprint,
        request: Fingerprint,
        (caller, state): (Caller, CallState),
        now: Instant,
    ) -> Keyed {
        self.expire(now);
        let Some(call) = self.slots.get(&key).and_then(|slot| slot.calls.first()) else {
            let (clients, client) = watch::channel(None);
            let id = self.insert(key, |call| {
                (call.caller, call.keyed_request) = (caller, Some(request));
                call.state = Some(state);
                call.clients = Some(clients.clone());
            });
            return Keyed::New(id, clients, client);
        };
        if call.keyed_request != Some(request) {
            return Keyed::OtherRequest;
        }
        if let Some(clients) = &call.clients {
            if clients.receiver_count() >= MAX_WAITING {
                return Keyed::TooMany;
            }
            return Keyed::InFlight(clients.subscribe());
        }
        let id = CallId { fingerprint: key, number: call.number };
        match (call.stored().cloned(), call.copy()) {
            (Some(response), _) => {
                self.put(id, response.clone(), Rank::Delivered, now);
                Keyed::Response(response)
            }
            (None, Some(copy)) => Keyed::Elsewhere(copy),
            (None, None) => Keyed::Lost,
        }
    }

    pub(super) fn counts(&self) -> KeepCounts {
        KeepCounts {
            stored: self.waiting,
            losses: self.unreported,
            stored_bytes: self.stored_bytes,
            ..self.totals
        }
    }

    /// What must outlive the process: responses that wait for a client or are on their way to one,
    /// losses, and the results of keys. A call in flight that may be charged is lost with the
    /// process.
    pub(super) fn snapshot(&self) -> Vec<SavedCall> {
        let mut all = Vec::new();
        for (&fingerprint, slot) in &self.slots {
            for call in &slot.calls {
                let id = CallId { fingerprint, number: call.number };
                let response = match call.progress {
                    CallProgress::Foreground | CallProgress::Detached => {
                        if !call.state.as_ref().is_some_and(CallState::may_be_charged) {
                            continue;
                        }
                        None
                    }
                    CallProgress::Delivered => continue,
                    CallProgress::Delivering => call.response.clone(),
                    // Without its verdict a later process knows nothing of an error's charge.
                    _ => call.stored().filter(|response| response.is_worth_storing()).cloned(),
                };
                let (keyed_request, since, file) =
                    (call.keyed_request, call.since, call.file.clone());
                all.push(SavedCall { id, keyed_request, since, response, file });
            }
        }
        all
    }

    /// A call was written to a file. `false` where it is over already.
    pub(super) fn saved(&mut self, id: CallId, file: CallFile) -> bool {
        let is_open = |call: &&mut Call| call.progress != CallProgress::Delivered;
        let Some(call) = self.call_mut(id).filter(is_open) else {
            self.to_do.delete.push(file.path);
            return false;
        };
        let path = file.path.clone();
        let before = call.file.replace(file).filter(|before| before.path != path);
        self.to_do.delete.extend(before.map(|before| before.path));
        true
    }

    /// Takes a call in that an earlier process saved. `false` where more is known here.
    pub(super) fn take_in(&mut self, saved: SavedCall, now: Instant) -> bool {
        self.take_in_as(saved, CallProgress::Stored, Journaled::Nothing, now)
    }

    /// Takes a call in that is in the journal, and belongs to this process now. `is_delivered`: it is
    /// for a marked resend.
    pub(super) fn take_over(&mut self, saved: SavedCall, is_delivered: bool, now: Instant) {
        let has_response = saved.response.is_some();
        let journaled = if has_response { Journaled::Response } else { Journaled::Record };
        let id = saved.id;
        let is_former = |call: &&mut Call| call.progress == CallProgress::Delivered;
        if let Some(former) = self.call_mut(id).filter(is_former) {
            // What this process knew of it before another one had it.
            former.journaled = Journaled::Nothing;
            self.apply(id, CallEvent::Expire, now);
        }
        let progress = if is_delivered { CallProgress::Delivered } else { CallProgress::Stored };
        self.take_in_as(saved, progress, journaled, now);
    }

    fn take_in_as(
        &mut self,
        saved: SavedCall,
        progress: CallProgress,
        journaled: Journaled,
        now: Instant,
    ) -> bool {
        let SavedCall { id, keyed_request, since, response, file } = saved;
        let known = |call: &&Call| call.number == id.number;
        let calls = self.slots.get(&id.fingerprint).map_or(&[][..], |slot| &slot.calls);
        let known = if keyed_request.is_some() { calls.first() } else { calls.iter().find(known) };
        if let Some(known) = known {
            let replaces = known.progress == CallProgress::Lost && response.is_some();
            if !(replaces && keyed_request.is_some()) {
                return false;
            }
            let known = CallId { number: known.number, ..id };
            self.apply(known, CallEvent::Expire, now);
        }
        self.insert(id.fingerprint, |call| {
            call.number = id.number;
            call.keyed_request = keyed_request;
            call.file = file;
        });
        if progress == CallProgress::Delivered {
            // Dated now: by its own clock the journal had it still.
            self.apply(id, CallEvent::Lose, now);
            match response.clone() {
                Some(response) => self.delivered(id, Some(response), now),
                None => self.apply(id, CallEvent::Deliver { remember: true }, now),
            }
        } else {
            self.apply(id, CallEvent::Lose, since);
        }
        if let Some(call) = self.call_mut(id) {
            call.journaled = journaled;
        }
        if let Some(response) = response.filter(|_| progress == CallProgress::Stored) {
            self.store(id, response, true, now);
        }
        true
    }
}

/// The instant that is so much later. Beyond a lifetime the difference does not matter.
pub(super) fn after(moment: Instant, time: Duration) -> Instant {
    const LIFETIME: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    moment.checked_add(time.min(LIFETIME)).unwrap_or(moment)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::Mutex;
    use std::task::{Context, Wake};

    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;
    use tower_gemini_core::cost::Cost;
    use tower_gemini_core::verdict::Outcome;

    use super::*;
    use crate::CallOptions;

    const MAX_BYTES: usize = 100;
    const MAX_DETACHED: usize = 2;
    const RETENTION: Duration = Duration::from_secs(600);
    const RESEND_WINDOW: Duration = Duration::from_secs(30);

    fn calls() -> Calls {
        Calls::new(&Settings {
            max_detached: MAX_DETACHED,
            max_bytes: MAX_BYTES,
            retention: RETENTION,
            resend_window: RESEND_WINDOW,
            ..Settings::default()
        })
    }

    fn state() -> CallState {
        CallState::new(CallOptions::new())
    }

    fn response(bytes: usize, at: Instant) -> Arc<StoredResponse> {
        Arc::new(StoredResponse {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            chunks: vec![Bytes::from(vec![0; bytes])],
            bytes,
            completed_at: at,
            cost: Cost::ZERO,
            outcome: Outcome::Image,
            verdict: None,
        })
    }

    fn ask(is_resend: bool) -> Ask {
        Ask { waits: false, is_resend, can_read_files: false }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A client disconnects, and its call is completed with so many bytes.
        Disconnect {
            who: u8,
            bytes: usize,
        },
        Ask {
            who: u8,
            marks_resends: bool,
            is_resend: bool,
            takes_all: bool,
        },
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..3u8, 0..120usize).prop_map(|(who, bytes)| Step::Disconnect { who, bytes }),
            (0..3u8, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
                |(who, marks_resends, resend, takes_all)| Step::Ask {
                    who,
                    marks_resends,
                    is_resend: marks_resends && resend,
                    takes_all
                }
            ),
            (0..9u64).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn the_bound_holds_nothing_is_given_twice_and_nothing_vanishes_unreported(steps in steps()) {
            let (mut calls, mut now) = (calls(), Instant::now());
            // Calls that were charged, and whose clients have neither a response nor a report.
            let mut open = 0;
            for step in steps {
                match step {
                    Step::Disconnect { who, bytes } => {
                        let id = calls.begin(Fingerprint([who; 32]), u64::from(who), state());
                        prop_assert!(calls.detach(id, now));
                        calls.store(id, response(bytes, now), false, now);
                        open += 1;
                    }
                    Step::Ask { who, marks_resends, is_resend, takes_all } => {
                        let before = calls.counts();
                        match calls.find(Fingerprint([who; 32]), ask(is_resend), now) {
                            Found::Response(id, response) => {
                                let was_waiting = before.stored > calls.counts().stored;
                                prop_assert!(was_waiting || is_resend, "given twice");
                                open -= usize::from(was_waiting);
                                if takes_all {
                                    calls.delivered(id, marks_resends.then_some(response), now);
                                } else {
                                    calls.put_back(id, response, now);
                                    open += 1;
                                }
                            }
                            Found::Lost => {
                                let was_unreported = before.losses > calls.counts().losses;
                                open -= usize::from(was_unreported);
                            }
                            Found::Nothing => {}
                            found => prop_assert!(false, "{found:?}"),
                        }
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                calls.expire(now);
                let counts = calls.counts();
                prop_assert!(counts.stored_bytes <= MAX_BYTES);
                prop_assert_eq!(counts.stored + counts.losses, open);
                let all = || calls.slots.values().flat_map(|slot| &slot.calls);
                let count = |what| all().filter(|call| call.progress == what).count();
                prop_assert_eq!(counts.stored, count(CallProgress::Stored));
                prop_assert_eq!(counts.losses, count(CallProgress::Lost));
            }
            // No index outlives its call.
            calls.expire(now + RETENTION);
            prop_assert!(calls.slots.is_empty() && calls.expiry.is_empty() && calls.losses.is_empty());
            prop_assert_eq!((calls.stored_bytes, calls.stored_count, calls.detached), (0, 0, 0));
            prop_assert_eq!(calls.delivering_bytes, 0);
            prop_assert!(calls.delivered.is_empty() && calls.undelivered.is_empty());
            prop_assert_eq!((calls.waiting, calls.unreported, calls.losses_count), (0, 0, 0));
        }
    }

    #[test]
    fn no_more_calls_are_detached_than_may_and_the_next_one_is_lost() {
        let (mut calls, now) = (calls(), Instant::now());
        let ids = [1, 2, 3].map(|who| calls.begin(Fingerprint([who; 32]), 1, state()));
        assert_eq!(ids.map(|id| calls.detach(id, now)), [true, true, false]);
        assert!(calls.detach(ids[0], now), "it is detached already");
        assert_eq!(calls.counts().losses, 1);
        calls.apply(ids[0], CallEvent::EndFree, now);
        let next = calls.begin(Fingerprint([4; 32]), 1, state());
        assert!(calls.detach(next, now));
    }

    // Forty clients that took their stored responses and did not read them held as much again.
    #[test]
    fn a_response_on_its_way_takes_its_room_until_it_is_delivered() {
        let (mut calls, now) = (calls(), Instant::now());
        let keep = |calls: &mut Calls, who: u8| {
            let id = calls.begin(Fingerprint([who; 32]), 1, state());
            calls.store(id, response(60, now), false, now);
        };
        keep(&mut calls, 1);
        let found = calls.find(Fingerprint([1; 32]), ask(false), now);
        let Found::Response(id, given) = found else { panic!("{found:?}") };
        keep(&mut calls, 2);
        assert!(matches!(calls.find(Fingerprint([2; 32]), ask(false), now), Found::Lost));
        calls.put_back(id, given, now);
        assert_eq!((calls.counts().stored, calls.counts().stored_bytes), (1, 60));
        let found = calls.find(Fingerprint([1; 32]), ask(false), now);
        let Found::Response(id, _) = found else { panic!("{found:?}") };
        calls.delivered(id, None, now);
        keep(&mut calls, 3);
        assert!(matches!(calls.find(Fingerprint([3; 32]), ask(false), now), Found::Response(..)));
    }

    // One caller's hang-ups pushed out the only image that another had waiting.
    #[test]
    fn a_caller_who_disconnects_often_pushes_out_its_own_responses_and_no_others() {
        let (mut calls, now) = (calls(), Instant::now());
        let mine = calls.begin(Fingerprint([0; 32]), 1, state());
        calls.store(mine, response(20, now), false, now);
        for n in 1..=70 {
            let theirs = calls.begin(Fingerprint([n; 32]), 2, state());
            calls.store(theirs, response(10, now), false, now);
        }
        assert_eq!(calls.counts().stored, 1 + 8, "and a caller has all the room that is left");
        let found = calls.find(Fingerprint([0; 32]), ask(false), now);
        assert!(matches!(found, Found::Response(..)), "{found:?}");
    }

    #[test]
    fn one_callers_losses_do_not_make_another_pay_twice() {
        let (mut calls, now) = (calls(), Instant::now());
        let lose = |calls: &mut Calls, who: u32, caller| {
            let mut fingerprint = [0; 32];
            fingerprint[..4].copy_from_slice(&who.to_le_bytes());
            let id = calls.begin(Fingerprint(fingerprint), caller, state());
            calls.apply(id, CallEvent::Lose, now);
            Fingerprint(fingerprint)
        };
        let mine = lose(&mut calls, 0, 1);
        for n in 1..=2 * MAX_LOSSES as u32 {
            lose(&mut calls, n, 2);
        }
        assert_eq!(calls.counts().losses, MAX_LOSSES);
        assert!(matches!(calls.find(mine, ask(false), now), Found::Lost));
    }

    // 256 requests with one key, or 256 identical ones, waited for one call and filled a gateway.
    #[test]
    fn no_more_requests_wait_for_one_call_than_a_job_has_workers() {
        let (mut calls, now) = (calls(), Instant::now());
        let (key, request) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        let mut waiting = Vec::new();
        let too_many = loop {
            match calls.find_keyed(key, request, (1, state()), now) {
                Keyed::New(_, _, client) | Keyed::InFlight(client) => waiting.push(client),
                other => break other,
            }
        };
        assert!(matches!(too_many, Keyed::TooMany) && waiting.len() == MAX_WAITING);
        waiting.pop();
        assert!(matches!(calls.find_keyed(key, request, (1, state()), now), Keyed::InFlight(_)));

        let id = calls.begin(request, 1, state());
        assert!(calls.detach(id, now));
        let mut waiting = Vec::new();
        let too_many = loop {
            match calls.find(request, ask(false), now) {
                Found::Detached(changed) => waiting.push(changed),
                other => break other,
            }
        };
        assert!(matches!(too_many, Found::TooMany) && waiting.len() == MAX_WAITING);
    }

    #[test]
    fn a_delivered_response_goes_only_to_a_marked_resend_and_evicts_none_that_waits() {
        let (mut calls, now, me) = (calls(), Instant::now(), Fingerprint([1; 32]));
        let waiting = calls.begin(Fingerprint([2; 32]), 1, state());
        calls.store(waiting, response(80, now), false, now);
        let deliver = |calls: &mut Calls| {
            let id = calls.begin(me, 1, state());
            calls.delivered(id, Some(response(30, now)), now);
        };
        deliver(&mut calls);
        assert!(matches!(calls.find(me, ask(true), now), Found::Lost), "there was no room");
        assert!(matches!(calls.find(me, ask(false), now), Found::Nothing), "it was delivered");
        assert_eq!(calls.counts().stored, 1);
        calls.expire(now + RESEND_WINDOW);
        calls.apply(waiting, CallEvent::Expire, now);
        deliver(&mut calls);
        assert!(matches!(calls.find(me, ask(false), now), Found::Nothing));
        let Found::Response(id, _) = calls.find(me, ask(true), now) else { panic!() };
        calls.delivered(id, None, now);
        deliver(&mut calls);
        let later = now + RESEND_WINDOW;
        assert!(matches!(calls.find(me, ask(true), later), Found::Nothing));
    }

    // litellm sends again 0.2 s after our 424, and not marked as a resend: it paid twice.
    #[test]
    fn a_loss_is_reported_until_a_minute_after_the_last_request_and_not_for_ever() {
        let s = Duration::from_secs;
        let (mut calls, mut now, me) = (calls(), Instant::now(), Fingerprint([1; 32]));
        let id = calls.begin(me, 1, state());
        calls.apply(id, CallEvent::Report, now);
        let first = now;
        let mut is_told = |now| match calls.find(me, ask(false), now) {
            Found::Lost => true,
            Found::Nothing => false,
            found => panic!("{found:?}"),
        };
        while is_told(now) {
            now += s(59);
            assert!(now < first + RETENTION + s(120), "it never ends");
        }
        assert!(now > first + RETENTION, "{:?}", now - first);

        let id = calls.begin(me, 1, state());
        calls.apply(id, CallEvent::Report, now);
        assert!(matches!(calls.find(me, ask(false), now + s(60)), Found::Nothing));
    }

    struct OnWake {
        clients: Clients,
        receivers: Mutex<Option<usize>>,
    }

    impl Wake for OnWake {
        fn wake(self: Arc<Self>) {
            *self.receivers.lock().unwrap() = Some(self.clients.receiver_count());
        }
    }

    // Woken while the client that disconnected still counted, the call looked once more, saw it
    // there, and was never woken again.
    #[test]
    fn a_client_that_disconnects_from_a_call_is_gone_when_the_call_is_woken() {
        let (mut calls, now) = (calls(), Instant::now());
        let (key, request) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        let Keyed::New(_, clients, client) = calls.find_keyed(key, request, (1, state()), now)
        else {
            panic!()
        };
        let Keyed::InFlight(second) = calls.find_keyed(key, request, (1, state()), now) else {
            panic!()
        };
        let woken = Arc::new(OnWake { clients: clients.clone(), receivers: Mutex::new(None) });
        let mut closed = std::pin::pin!(clients.closed());
        let waker = woken.clone().into();
        assert!(closed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(client);
        assert_eq!(*woken.receivers.lock().unwrap(), None, "one is still there");
        drop(second);
        assert_eq!(*woken.receivers.lock().unwrap(), Some(0));
    }
}
