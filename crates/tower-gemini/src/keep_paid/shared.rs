//! What all services of one layer share: who is being answered, what is being finished, and what waits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tower_gemini_core::trail::{NotKeptReason, Trail};

use super::detached::may_be_paid;
use super::files::{Record, Written};
use super::identity::Identity;
use super::layer::Settings;
use super::store::{Answer, For, Lost, Store};
use super::{KeepCounts, files};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    state: Mutex<State>,
    /// How many tasks finish something.
    detached: watch::Sender<usize>,
    redeemed: AtomicU64,
    not_kept: [AtomicU64; 5],
    lost: AtomicU64,
    /// Bytes of answers on their way to somebody, held in case that they are left.
    on_the_way: AtomicUsize,
    /// Held by whoever writes down what is kept: one at a time.
    pub(super) saving: Mutex<()>,
}

#[derive(Debug)]
struct State {
    store: Store,
    /// Calls whose callers went away, that were or may have been paid for, and of which there is no answer. Each is told once.
    losses: Store,
    /// Calls whose callers are there.
    live: HashMap<Identity, Group>,
    /// Calls that are being finished without their callers.
    orphans: HashMap<Identity, Orphans>,
    /// How many these are.
    orphan_calls: usize,
    /// Calls that their callers gave a name.
    named: HashMap<Identity, Named>,
}

/// Calls that are alike. Whoever waits for one of them to end hears of each end.
#[derive(Debug, Default)]
struct Group {
    calls: usize,
    ends: Arc<Notify>,
}

/// The same of calls without their callers, each with where it is written down.
#[derive(Debug, Default)]
struct Orphans {
    records: Vec<Arc<Record>>,
    ends: Arc<Notify>,
}

/// A call that its caller gave a name.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) request: Identity,
    pub(super) result: watch::Receiver<NamedResult>,
    /// Told by each who stops waiting for it.
    pub(super) left: Arc<Notify>,
    under_way: Option<UnderWay>,
}

/// What is known of a call before it has come to anything.
#[derive(Debug, Clone)]
struct UnderWay {
    trail: Trail,
    /// Of what comes of it.
    record: Arc<Record>,
}

/// What became of it.
#[derive(Debug, Clone)]
pub(super) enum NamedResult {
    UnderWay,
    /// Everybody who asks gets it.
    Answer(Arc<Answer>),
    /// It was or may have been paid for, and there is no answer. What stands in its place says since when.
    Lost(Arc<Answer>),
    /// It cost nothing: who still wants it may send it.
    Free,
}

/// Where the task of a named call tells what became of it. Dropped without a word (the task panicked, or its runtime ended), it says
/// that the call is lost.
#[derive(Debug)]
pub(super) struct Report {
    result: watch::Sender<NamedResult>,
    pub(super) left: Arc<Notify>,
    record: Arc<Record>,
}

impl Report {
    /// Everybody who asks gets it, and it is given back for who asked first.
    pub(super) fn answer(&self, answer: Answer) -> Arc<Answer> {
        let answer = Arc::new(Answer { record: self.record.clone(), ..answer });
        self.result.send_replace(NamedResult::Answer(answer.clone()));
        answer
    }

    pub(super) fn free(&self) {
        remove_file(&self.record);
        self.result.send_replace(NamedResult::Free);
    }

    pub(super) fn lost(&self) {
        self.result.send_replace(NamedResult::Lost(self.loss()));
    }

    fn loss(&self) -> Arc<Answer> {
        Arc::new(Answer { record: self.record.clone(), ..Answer::lost(Instant::now()) })
    }

    /// Whether nobody waits for it: the one receiver left is the registry's own.
    pub(super) fn is_unheard(&self) -> bool {
        self.result.receiver_count() <= 1
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.result.send_if_modified(|result| {
            let untold = matches!(result, NamedResult::UnderWay);
            if untold {
                *result = NamedResult::Lost(self.loss());
            }
            untold
        });
    }
}

/// What there is for a request.
pub(super) enum Found {
    Answer(Arc<Answer>),
    /// Being finished without its caller: something happens when this says so.
    Orphan(Arc<Notify>),
    /// Being answered to its caller, who may have gone.
    Live(Arc<Notify>),
    /// It was or may have been paid for, and there is no answer.
    Lost,
    Nothing,
}

/// What became of a call that was finished without its caller.
#[derive(Debug)]
pub(super) enum Came {
    Answer(Arc<Answer>),
    /// Nothing that cost anything.
    Free,
    Lost,
}

/// As many losses are remembered as are told within minutes by any plausible fleet; a few hundred bytes each.
const MOST_LOSSES: usize = 1024;

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        let store = Store::new(settings.max_bytes, settings.retention, settings.resend_window);
        let losses = Store::new(MOST_LOSSES, settings.retention, settings.resend_window);
        Self {
            settings,
            state: Mutex::new(State {
                store,
                losses,
                live: HashMap::new(),
                orphans: HashMap::new(),
                orphan_calls: 0,
                named: HashMap::new(),
            }),
            detached: watch::Sender::new(0),
            redeemed: AtomicU64::new(0),
            not_kept: Default::default(),
            lost: AtomicU64::new(0),
            on_the_way: AtomicUsize::new(0),
            saving: Mutex::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in another holder leaves the maps complete: each write is one insertion or removal.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> KeepCounts {
        let (kept, kept_bytes) = {
            let mut state = self.state();
            let lost = state.expire(Instant::now());
            let counts = (state.store.waiting(), state.store.bytes());
            drop(state);
            forget_files(&lost);
            self.let_go(&lost);
            counts
        };
        let not_kept =
            |reason: NotKeptReason| self.not_kept.get(place(reason)).map_or(0, |count| count.load(Ordering::Relaxed));
        KeepCounts {
            detached: *self.detached.borrow(),
            kept,
            kept_bytes,
            redeemed: self.redeemed.load(Ordering::Relaxed),
            free: not_kept(NotKeptReason::Free),
            broken: not_kept(NotKeptReason::Broken),
            too_large: not_kept(NotKeptReason::TooLarge),
            too_many: not_kept(NotKeptReason::TooMany),
            too_late: not_kept(NotKeptReason::TooLate),
            never_asked_for: self.lost.load(Ordering::Relaxed),
        }
    }

    /// What there is for this request. An answer is taken, and counts as a call whose caller is there until it has been
    /// [given or put back](Self::leave).
    ///
    /// `waits` says that a call beside it is waited for; `is_resend` that the request is marked as one. What seemed delivered comes last:
    /// the resend may be that of another call, whose own answer is still on its way, or lost.
    pub(super) fn find(&self, identity: Identity, waits: bool, is_resend: bool) -> Found {
        let now = Instant::now();
        let mut state = self.state();
        let (mut answer, lost) = state.store.take(identity, now);
        let (mut told, mut gone) = (None, Lost::new());
        let mut found = Found::Nothing;
        if answer.is_none() {
            if let Some(group) = state.orphans.get(&identity) {
                found = Found::Orphan(group.ends.clone());
            } else if let Some(group) = state.live.get(&identity).filter(|_| waits) {
                found = Found::Live(group.ends.clone());
            } else {
                (told, gone) = state.losses.take(identity, now);
                if told.is_some() {
                    found = Found::Lost;
                } else if is_resend {
                    answer = state.store.take_delivered(identity);
                }
            }
        }
        if let Some(answer) = answer {
            state.live.entry(identity).or_default().calls += 1;
            found = Found::Answer(answer);
        }
        drop(state);
        told.iter().for_each(|loss| remove_file(&loss.record));
        forget_files(&gone);
        forget_files(&lost);
        self.let_go(&lost);
        found
    }

    /// Whether things still stand as they did when this request was told to wait for these changes.
    pub(super) fn is_waiting_worthwhile(&self, identity: Identity, changes: &Arc<Notify>) -> bool {
        let state = self.state();
        if state.store.holds(identity) {
            return false;
        }
        // Those of other calls that are alike, which came when these had ended, are others, and nobody tells of these any more.
        match state.orphans.get(&identity) {
            Some(orphans) => Arc::ptr_eq(&orphans.ends, changes),
            None => state.live.get(&identity).is_some_and(|group| Arc::ptr_eq(&group.ends, changes)),
        }
    }

    pub(super) fn enter(&self, identity: Identity) {
        self.state().live.entry(identity).or_default().calls += 1;
    }

    /// A caller got its answer, or went away and left nothing.
    pub(super) fn leave(&self, identity: Identity) {
        end(&mut self.state().live, identity);
    }

    /// A caller went away, and what it was about to get cannot be finished.
    pub(super) fn abandon(&self, identity: Identity) {
        let mut state = self.state();
        let gone = state.lose(identity, Answer::lost(Instant::now()));
        end(&mut state.live, identity);
        drop(state);
        forget_files(&gone);
    }

    /// A caller went away: what it was about to get is finished, and is written down there. `None` where too many are, and it is lost.
    pub(super) fn detach(&self, identity: Identity) -> Option<Arc<Record>> {
        let mut state = self.state();
        let mut gone = Lost::new();
        let record = (state.orphan_calls < self.settings.max_detached).then(Arc::<Record>::default);
        // Before the call leaves the living, so that who waits for that finds it here.
        match &record {
            Some(record) => {
                state.orphan_calls += 1;
                state.orphans.entry(identity).or_default().records.push(record.clone());
                self.task_begins();
            }
            None => gone = state.lose(identity, Answer::lost(Instant::now())),
        }
        end(&mut state.live, identity);
        drop(state);
        forget_files(&gone);
        record
    }

    /// What was finished without its caller is here, or is not to be had.
    pub(super) fn reattach(&self, identity: Identity, record: &Arc<Record>, came: Came) {
        let now = Instant::now();
        let mut state = self.state();
        let (mut lost, mut gone) = (Lost::new(), Lost::new());
        match came {
            Came::Answer(answer) => lost = state.keep(identity, answer, now),
            Came::Free => remove_file(record),
            Came::Lost => gone = state.lose(identity, Answer { record: record.clone(), ..Answer::lost(now) }),
        }
        state.orphan_calls = state.orphan_calls.saturating_sub(1);
        if let Entry::Occupied(mut orphans) = state.orphans.entry(identity) {
            orphans.get_mut().records.retain(|other| !Arc::ptr_eq(other, record));
            orphans.get().ends.notify_waiters();
            if orphans.get().records.is_empty() {
                orphans.remove();
            }
        }
        drop(state);
        self.task_ends();
        forget_files(&gone);
        self.let_go(&lost);
    }

    /// An answer that was taken, and whose taker went away too.
    pub(super) fn put_back(&self, identity: Identity, answer: Arc<Answer>) {
        let mut state = self.state();
        let lost = state.keep(identity, answer, Instant::now());
        if let Some(orphans) = state.orphans.get(&identity) {
            // Who waits for another call that is alike can have this one.
            orphans.ends.notify_waiters();
        }
        end(&mut state.live, identity);
        drop(state);
        self.let_go(&lost);
    }

    /// An answer that seems to have reached its caller.
    pub(super) fn delivered(&self, identity: Identity, answer: Answer) {
        let answer = Arc::new(answer);
        let mut lost = self.state().store.put(identity, For::Resend, answer.clone(), Instant::now());
        // Where there is no place for it, nobody has lost anything.
        lost.retain(|(_, lost)| !Arc::ptr_eq(lost, &answer));
        forget_files(&lost);
        self.let_go(&lost);
    }

    /// Takes room for so many bytes of an answer on its way. `false` where there is none: no more is held of it.
    pub(super) fn reserve(&self, bytes: usize) -> bool {
        let most = self.settings.max_bytes;
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= most);
        self.on_the_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn release(&self, bytes: usize) {
        self.on_the_way.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A kept answer reached somebody.
    pub(super) fn redeemed(&self, answer: &Answer) {
        self.redeemed.fetch_add(1, Ordering::Relaxed);
        remove_file(&answer.record);
    }

    pub(super) fn not_kept(&self, reason: NotKeptReason) {
        if let Some(count) = self.not_kept.get(place(reason)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn let_go(&self, lost: &Lost) {
        self.lost.fetch_add(lost.len() as u64, Ordering::Relaxed);
        for (_, answer) in lost {
            tracing::warn!(
                bytes = answer.bytes,
                cost_at_least_microusd = answer.cost.at_least_microusd,
                "a kept answer was let go: nobody asked for it in time, or newer ones needed its place"
            );
        }
    }

    /// The call of this name: the one that is under way or done, or a new one, to be reported on.
    pub(super) fn named(&self, name: Identity, request: Identity, trail: &Trail) -> Result<Report, Named> {
        let now = Instant::now();
        let mut state = self.state();
        let gone = state.forget_old_names(self.settings.retention, now);
        // Looked up before others make room: its own answer is not let go for it.
        let found = match state.named.entry(name) {
            Entry::Occupied(entry) if !matches!(*entry.get().result.borrow(), NamedResult::Free) => Err(entry.get().clone()),
            entry => {
                let (result, receiver) = watch::channel(NamedResult::UnderWay);
                let left = Arc::new(Notify::new());
                let record = Arc::<Record>::default();
                let under_way = Some(UnderWay { trail: trail.clone(), record: record.clone() });
                let named = Named { request, result: receiver, left: left.clone(), under_way };
                match entry {
                    Entry::Occupied(mut entry) => drop(entry.insert(named)),
                    Entry::Vacant(entry) => drop(entry.insert(named)),
                }
                Ok(Report { result, left, record })
            }
        };
        state.trim_names(self.settings.max_bytes);
        drop(state);
        gone.iter().for_each(|answer| remove_file(&answer.record));
        found
    }

    /// Counts a task that must be waited for at the end.
    pub(super) fn task_begins(&self) {
        self.detached.send_modify(|detached| *detached += 1);
    }

    pub(super) fn task_ends(&self) {
        self.detached.send_modify(|detached| *detached = detached.saturating_sub(1));
    }

    pub(super) async fn drain(&self, within: Duration) -> bool {
        let mut detached = self.detached.subscribe();
        let drained = timeout(within, detached.wait_for(|detached| *detached == 0)).await;
        matches!(drained, Ok(Ok(_)))
    }

    /// What is to outlive the process: answers that wait for their callers, losses that are still to be told, and what became of the calls
    /// that have a name. What is not finished yet is lost with the process.
    pub(super) fn waiting(&self) -> Vec<Written> {
        let now = Instant::now();
        let mut state = self.state();
        let lost = state.expire(now);
        let gone = state.forget_old_names(self.settings.retention, now);
        state.trim_names(self.settings.max_bytes);
        let waiting = state.store.all().into_iter();
        let mut all: Vec<_> =
            waiting.map(|(identity, answer)| Written { identity, named: None, lost: false, answer }).collect();
        let not_yet = |record: &Arc<Record>| Arc::new(Answer { record: record.clone(), ..Answer::lost(now) });
        let orphans = state.orphans.iter();
        let under_way =
            orphans.flat_map(|(identity, orphans)| orphans.records.iter().map(|record| (*identity, not_yet(record))));
        let losses = state.losses.all().into_iter().chain(under_way);
        all.extend(losses.map(|(identity, answer)| Written { identity, named: None, lost: true, answer }));
        for (name, named) in &state.named {
            let (lost, answer) = match &*named.result.borrow() {
                NamedResult::Answer(answer) if answer.is_of_use() => (false, answer.clone()),
                // Without its verdict an error of this process says nothing of the money.
                NamedResult::Answer(answer) => (true, answer.loss()),
                NamedResult::Lost(loss) => (true, loss.clone()),
                NamedResult::UnderWay => match &named.under_way {
                    // The process ends before it does.
                    Some(under_way) if may_be_paid(&under_way.trail) => (true, not_yet(&under_way.record)),
                    _ => continue,
                },
                NamedResult::Free => continue,
            };
            all.push(Written { identity: *name, named: Some(named.request), lost, answer });
        }
        drop(state);
        forget_files(&lost);
        self.let_go(&lost);
        gone.iter().for_each(|answer| remove_file(&answer.record));
        all
    }

    /// How many of these are kept now.
    pub(super) fn take_in(&self, found: Vec<Written>) -> usize {
        let (mut let_go, mut gone) = (Lost::new(), Lost::new());
        let (mut names, mut losses) = (0, 0);
        let mut state = self.state();
        let now = Instant::now();
        let known = state.records();
        let is_new = |written: &Written| !known.iter().any(|record| record.is_at_the_place_of(&written.answer.record));
        for Written { identity, named, lost, answer } in found.into_iter().filter(is_new) {
            let Some(request) = named else {
                if lost {
                    gone.extend(state.losses.put(identity, For::Next, answer, now));
                    losses += 1;
                } else {
                    let_go.extend(state.keep(identity, answer, now));
                }
                continue;
            };
            match state.named.entry(identity) {
                // What is known here is newer.
                Entry::Occupied(known) if lost || !matches!(*known.get().result.borrow(), NamedResult::Lost(_)) => continue,
                entry => {
                    let result = if lost { NamedResult::Lost(answer) } else { NamedResult::Answer(answer) };
                    entry.insert_entry(Named::done(request, result));
                }
            }
            names += 1;
        }
        let kept = state.store.waiting() + names + losses;
        drop(state);
        forget_files(&gone);
        self.let_go(&let_go);
        kept
    }
}

impl Named {
    /// One that is over. Nobody tells anything of it any more; what is known stays to be read.
    fn done(request: Identity, result: NamedResult) -> Self {
        let (_, result) = watch::channel(result);
        Self { request, result, left: Arc::default(), under_way: None }
    }

    fn answer(&self) -> Option<Arc<Answer>> {
        match &*self.result.borrow() {
            NamedResult::Answer(answer) => Some(answer.clone()),
            _ => None,
        }
    }
}

impl State {
    /// Puts an answer by for its caller. What is too old or has to go for it comes back. The latter is told as lost to whoever asks for it
    /// here; where it is written down it stays, for the next process.
    fn keep(&mut self, identity: Identity, answer: Arc<Answer>, now: Instant) -> Lost {
        let mut lost = self.expire(now);
        forget_files(&lost);
        for (identity, answer) in self.store.put(identity, For::Next, answer, now) {
            forget_files(&self.losses.put(identity, For::Next, answer.loss(), now));
            lost.push((identity, answer));
        }
        lost
    }

    /// What nobody asked for in time. Whoever asks now asks anew.
    fn expire(&mut self, now: Instant) -> Lost {
        forget_files(&self.losses.expire(now));
        self.store.expire(now)
    }

    /// Remembers that there is no answer of a call. Gives those that have to go for it.
    fn lose(&mut self, identity: Identity, loss: Answer) -> Lost {
        let now = loss.at;
        self.losses.put(identity, For::Next, Arc::new(loss), now)
    }

    /// Where everything is written down that is here.
    fn records(&self) -> Vec<Arc<Record>> {
        let kept = self.store.all().into_iter().chain(self.losses.all()).map(|(_, answer)| answer.record.clone());
        let named = self.named.values().filter_map(|named| match &*named.result.borrow() {
            NamedResult::Answer(answer) | NamedResult::Lost(answer) => Some(answer.record.clone()),
            NamedResult::UnderWay | NamedResult::Free => None,
        });
        kept.chain(named).collect()
    }

    /// What is done is kept for as long as an answer is, from its end on. Gives what is too old.
    fn forget_old_names(&mut self, retention: Duration, now: Instant) -> Vec<Arc<Answer>> {
        let mut gone = Vec::new();
        self.named.retain(|_, named| match &*named.result.borrow() {
            NamedResult::UnderWay => true,
            NamedResult::Answer(answer) | NamedResult::Lost(answer) => {
                let stays = now.saturating_duration_since(answer.at) < retention;
                if !stays {
                    gone.push(answer.clone());
                }
                stays
            }
            NamedResult::Free => false,
        });
        gone
    }

    /// Lets the oldest answers go until the rest is within the bound that holds for kept answers too. What was paid for stays known to be:
    /// whoever asks by such a name here is told that its answer is lost; where it is written down it stays, for the next process.
    fn trim_names(&mut self, most: usize) {
        let mut bytes: usize = self.named.values().filter_map(Named::answer).map(|answer| answer.bytes).sum();
        while bytes > most {
            let held = self.named.values_mut().filter_map(|named| Some((named.answer()?, named)));
            let Some((oldest, named)) = held.min_by_key(|(answer, _)| answer.at) else { break };
            *named = Named::done(named.request, NamedResult::Lost(oldest.loss()));
            bytes -= oldest.bytes;
        }
    }
}

/// One of the calls that are alike has ended.
fn end(groups: &mut HashMap<Identity, Group>, identity: Identity) {
    if let Entry::Occupied(mut group) = groups.entry(identity) {
        let calls = group.get().calls.saturating_sub(1);
        group.get_mut().calls = calls;
        group.get().ends.notify_waiters();
        if calls == 0 {
            group.remove();
        }
    }
}

/// A moment that is so much later. One that no clock comes to is as good as one in a lifetime.
pub(super) fn after(moment: Instant, time: Duration) -> Instant {
    const LIFETIME: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    moment.checked_add(time.min(LIFETIME)).unwrap_or(moment)
}

fn forget_files(gone: &Lost) {
    gone.iter().for_each(|(_, answer)| remove_file(&answer.record));
}

fn remove_file(record: &Record) {
    let Some(file) = record.forget() else { return };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || files::forget(&file))),
        Err(_) => files::forget(&file),
    }
}

fn place(reason: NotKeptReason) -> usize {
    match reason {
        NotKeptReason::Free => 0,
        NotKeptReason::Broken => 1,
        NotKeptReason::TooLarge => 2,
        NotKeptReason::TooMany => 3,
        _ => 4,
    }
}
