//! What all services of one layer share: who is being answered, what is being finished, and what
//! waits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::trail::NotKeptReason;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::KeepCounts;
use super::course::Course;
use super::files::{Record, Written, remove_file, remove_word};
use super::identity::Identity;
use super::layer::Settings;
use super::named::{Named, Names, Report};
use super::store::{Answer, For, Lost, Store};

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
    /// Calls whose callers went away, that were or may have been paid for, and of which there is no
    /// answer. Each is told once.
    losses: Store,
    /// Calls whose callers are there.
    live: HashMap<Identity, Group<Present>>,
    /// Calls that are being finished without their callers, each with where it is written down.
    orphans: HashMap<Identity, Group<Arc<Record>>>,
    /// How many these are.
    orphan_calls: usize,
    /// Calls that their callers gave a name.
    named: Names,
}

/// Calls that are alike. Whoever waits for one of them to end hears of each end.
#[derive(Debug)]
struct Group<T> {
    calls: Vec<T>,
    ends: Arc<Notify>,
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self { calls: Vec::new(), ends: Arc::default() }
    }
}

/// What a caller who is there waits for.
#[derive(Debug)]
enum Present {
    /// What was sent for it.
    Sent(Course),
    /// What was kept, or what stands in its place until it is read from where it is written down.
    Given(Arc<Answer>),
}

impl Present {
    fn record(&self) -> &Arc<Record> {
        match self {
            Self::Sent(course) => &course.record,
            Self::Given(answer) => &answer.record,
        }
    }
}

/// What there is for a request.
pub(super) enum Found {
    Answer(Arc<Answer>),
    /// Not here any more, and written down.
    OnDisk(Arc<Answer>),
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

/// As many losses are remembered as are told within minutes by any plausible fleet; a few hundred
/// bytes each.
const MOST_LOSSES: usize = 1024;

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        let store = Store::new(settings.max_bytes, settings.retention, settings.resend_window);
        let losses = Store::new(MOST_LOSSES, settings.retention, settings.resend_window);
        Self {
            state: Mutex::new(State {
                store,
                losses,
                live: HashMap::new(),
                orphans: HashMap::new(),
                orphan_calls: 0,
                named: Names::default(),
            }),
            settings,
            detached: watch::Sender::new(0),
            redeemed: AtomicU64::new(0),
            not_kept: Default::default(),
            lost: AtomicU64::new(0),
            on_the_way: AtomicUsize::new(0),
            saving: Mutex::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in another holder leaves the maps complete: each write is one insertion or
        // removal.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> KeepCounts {
        let mut state = self.state();
        let lost = state.expire(Instant::now());
        let (kept, kept_bytes, losses) =
            (state.store.waiting(), state.store.bytes(), state.losses.waiting());
        drop(state);
        self.let_go(&lost);
        let not_kept = |reason: NotKeptReason| {
            self.not_kept.get(place(reason)).map_or(0, |count| count.load(Ordering::Relaxed))
        };
        KeepCounts {
            detached: *self.detached.borrow(),
            kept,
            kept_bytes,
            losses,
            redeemed: self.redeemed.load(Ordering::Relaxed),
            free: not_kept(NotKeptReason::Free),
            broken: not_kept(NotKeptReason::Broken),
            too_large: not_kept(NotKeptReason::TooLarge),
            too_many: not_kept(NotKeptReason::TooMany),
            too_late: not_kept(NotKeptReason::TooLate),
            never_asked_for: self.lost.load(Ordering::Relaxed),
        }
    }

    /// What there is for this request. An answer is taken, and counts as a call whose caller is
    /// there until it has been [given](Self::leave) or [put back](Self::put_back).
    ///
    /// `waits` says that a call beside it is waited for; `is_resend` that the request is marked as
    /// one. What seemed delivered comes last: the resend may be that of another call, whose own
    /// answer is still on its way, or lost.
    ///
    /// A loss that is told to a client which marks its resends is told to its next resend too, in
    /// case that it did not hear.
    pub(super) fn find(
        &self,
        identity: Identity,
        waits: bool,
        is_resend: bool,
        marks_resends: bool,
    ) -> Found {
        let now = Instant::now();
        let mut state = self.state();
        let lost = state.expire(now);
        let found = state.find(identity, now, waits, is_resend);
        // Before anybody else looks.
        if marks_resends && matches!(found, Found::Lost) {
            state.lose(identity, For::Resend, Answer::lost(now));
        }
        drop(state);
        self.let_go(&lost);
        found
    }

    /// Whether things still stand as they did when this request was told to wait for these changes.
    pub(super) fn is_waiting_worthwhile(&self, identity: Identity, changes: &Arc<Notify>) -> bool {
        let state = self.state();
        if state.store.holds(identity) {
            return false;
        }
        // Those of other calls that are alike, which came when these had ended, are others, and
        // nobody tells of these any more.
        match state.orphans.get(&identity) {
            Some(orphans) => Arc::ptr_eq(&orphans.ends, changes),
            None => {
                state.live.get(&identity).is_some_and(|group| Arc::ptr_eq(&group.ends, changes))
            }
        }
    }

    /// A call goes out. `is_new` where its client says that it is no resend: what was told of
    /// earlier ones was heard.
    pub(super) fn enter(&self, identity: Identity, course: &Course, is_new: bool) {
        let mut state = self.state();
        if is_new {
            state.forget_told(identity);
        }
        state.live.entry(identity).or_default().calls.push(Present::Sent(course.clone()));
    }

    /// What was told of a loss does not hold: its caller bought another send.
    pub(super) fn untell(&self, identity: Identity) {
        self.state().forget_told(identity);
    }

    /// A caller got its answer, or went away and left nothing: nothing of it is kept anywhere.
    pub(super) fn leave(&self, identity: Identity, record: &Arc<Record>) {
        remove_file(record);
        self.state().end_live(identity, record);
    }

    /// A caller went away, and what it was about to get cannot be finished.
    pub(super) fn abandon(&self, identity: Identity, record: &Arc<Record>) {
        let mut state = self.state();
        state.lose(identity, For::Next, Answer::lost_at(Instant::now(), record));
        state.end_live(identity, record);
    }

    /// A caller was told that there is no answer to what was or may have been paid for. Where it
    /// never heard, its resend, marked as one, is.
    pub(super) fn told_of_loss(&self, identity: Identity) {
        self.state().lose(identity, For::Resend, Answer::lost(Instant::now()));
    }

    /// A place among the calls that are finished without their callers, where one is free.
    pub(super) fn take_place(&self) -> bool {
        self.state().take_place(self.settings.max_detached)
    }

    pub(super) fn leave_place(&self) {
        let mut state = self.state();
        state.orphan_calls = state.orphan_calls.saturating_sub(1);
    }

    pub(super) fn trim_names(&self) {
        self.state().named.trim(self.settings.max_bytes);
    }

    /// A caller went away: what it was about to get is finished. `false` where too many are, and it
    /// is lost.
    pub(super) fn detach(&self, identity: Identity, record: &Arc<Record>) -> bool {
        let mut state = self.state();
        let is_free = state.take_place(self.settings.max_detached);
        // Before the call leaves the living, so that who waits for that finds it here.
        if is_free {
            state.orphans.entry(identity).or_default().calls.push(record.clone());
            self.task_begins();
        } else {
            state.lose(identity, For::Next, Answer::lost_at(Instant::now(), record));
        }
        state.end_live(identity, record);
        is_free
    }

    /// What was finished without its caller is here, or is not to be had.
    pub(super) fn reattach(&self, identity: Identity, record: &Arc<Record>, came: Came) {
        let now = Instant::now();
        let mut state = self.state();
        let mut lost = Lost::new();
        match came {
            Came::Answer(answer) => lost = state.keep(identity, answer, now),
            Came::Free => remove_file(record),
            Came::Lost => state.lose(identity, For::Next, Answer::lost_at(now, record)),
        }
        state.orphan_calls = state.orphan_calls.saturating_sub(1);
        end(&mut state.orphans, identity, |other| Arc::ptr_eq(other, record));
        drop(state);
        self.task_ends();
        self.let_go(&lost);
    }

    /// An answer that was taken, and whose taker went away too. It waits anew, from now on.
    pub(super) fn put_back(&self, identity: Identity, answer: &Answer) {
        let now = Instant::now();
        let mut state = self.state();
        let lost = if answer.record.is_whole() && !state.store.has_room(answer.bytes) {
            // Where it is written down it needs no place of another's.
            state.lose(identity, For::Next, Answer::lost_at(now, &answer.record));
            Lost::new()
        } else {
            answer.record.outdate();
            state.keep(identity, Arc::new(Answer { at: now, ..answer.clone() }), now)
        };
        if let Some(orphans) = state.orphans.get(&identity) {
            // Who waits for another call that is alike can have this one.
            orphans.ends.notify_waiters();
        }
        state.end_live(identity, &answer.record);
        drop(state);
        self.let_go(&lost);
    }

    /// What is written down was taken, and its taker went away before it was read; or it cannot be
    /// read, and that is told.
    pub(super) fn leave_on_disk(&self, identity: Identity, loss: &Answer, is_told: bool) {
        let mut state = self.state();
        if !is_told {
            state.lose(identity, For::Next, loss.clone());
        }
        state.end_live(identity, &loss.record);
    }

    /// An answer that seems to have reached its caller.
    pub(super) fn delivered(&self, identity: Identity, answer: Answer) {
        let now = Instant::now();
        let mut state = self.state();
        let lost = state.expire(now);
        if !state.store.put(identity, For::Resend, Arc::new(answer), now).is_empty() {
            // There is no place for it. Should it not have arrived, that is what its resend is
            // told.
            state.lose(identity, For::Resend, Answer::lost(now));
        }
        drop(state);
        self.let_go(&lost);
    }

    /// Takes room for so many bytes of an answer on its way. `false` where there is none: no more
    /// is held of it.
    pub(super) fn reserve(&self, bytes: usize) -> bool {
        let most = self.settings.max_bytes;
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= most);
        self.on_the_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn release(&self, bytes: usize) {
        self.on_the_way.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A kept answer reached somebody.
    pub(super) fn redeemed(&self, identity: Identity, answer: &Answer) {
        self.redeemed.fetch_add(1, Ordering::Relaxed);
        self.leave(identity, &answer.record);
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
    pub(super) fn named(
        &self,
        name: Identity,
        request: Identity,
        course: Course,
    ) -> Result<Report, Named> {
        let mut state = self.state();
        state.named.forget_old(self.settings.retention, Instant::now());
        // Looked up before others make room: its own answer is not let go for it.
        let found = state.named.claim(name, request, course);
        state.named.trim(self.settings.max_bytes);
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

    /// What is to outlive the process: answers that wait for their callers or are on their way to
    /// them, losses that are still to be told, and what became of the calls that have a name. What
    /// is not finished yet is lost with the process.
    pub(super) fn waiting(&self) -> Vec<Written> {
        let now = Instant::now();
        let mut state = self.state();
        let lost = state.expire(now);
        state.named.forget_old(self.settings.retention, now);
        state.named.trim(self.settings.max_bytes);
        let mut all = state.unnamed(now);
        all.extend(state.named.written(now));
        drop(state);
        self.let_go(&lost);
        all
    }

    /// How many of these are kept now.
    pub(super) fn take_in(&self, found: Vec<Written>) -> usize {
        let now = Instant::now();
        let mut let_go = Lost::new();
        let mut taken = 0;
        let mut state = self.state();
        let known = state.records();
        for Written { identity, named, answer } in found {
            if known.iter().any(|record| record.is_at_the_place_of(&answer.record)) {
                continue;
            }
            taken += match named {
                Some(request) => usize::from(state.named.take_in(identity, request, answer)),
                None if answer.is_lost() => {
                    state.lose(identity, For::Next, (*answer).clone());
                    1
                }
                None => {
                    let_go.extend(state.keep(identity, answer, now));
                    1
                }
            };
        }
        drop(state);
        self.let_go(&let_go);
        taken
    }
}

impl State {
    fn take_place(&mut self, most: usize) -> bool {
        let is_free = self.orphan_calls < most;
        self.orphan_calls += usize::from(is_free);
        is_free
    }

    fn find(&mut self, identity: Identity, now: Instant, waits: bool, is_resend: bool) -> Found {
        if let (Some(answer), _) = self.store.take(identity, now) {
            return self.give(identity, answer);
        }
        if let Some(group) = self.orphans.get(&identity) {
            return Found::Orphan(group.ends.clone());
        }
        if let Some(group) = self.live.get(&identity).filter(|_| waits) {
            return Found::Live(group.ends.clone());
        }
        if let (Some(loss), _) = self.losses.take(identity, now) {
            if loss.record.is_whole() && tokio::runtime::Handle::try_current().is_ok() {
                self.live.entry(identity).or_default().calls.push(Present::Given(loss.clone()));
                return Found::OnDisk(loss);
            }
            remove_word(&loss.record);
            return Found::Lost;
        }
        if !is_resend {
            return Found::Nothing;
        }
        match self.store.take_delivered(identity) {
            Some(answer) => self.give(identity, answer),
            None if self.losses.take_delivered(identity).is_some() => Found::Lost,
            None => Found::Nothing,
        }
    }

    fn give(&mut self, identity: Identity, answer: Arc<Answer>) -> Found {
        self.live.entry(identity).or_default().calls.push(Present::Given(answer.clone()));
        Found::Answer(answer)
    }

    fn end_live(&mut self, identity: Identity, record: &Arc<Record>) {
        end(&mut self.live, identity, |present| Arc::ptr_eq(present.record(), record));
    }

    /// Puts an answer by for its caller. What has to go for it comes back, and is told as lost to
    /// whoever asks for it, or read from where it is written down.
    fn keep(&mut self, identity: Identity, answer: Arc<Answer>, now: Instant) -> Lost {
        let mut lost = self.expire(now);
        for (identity, answer) in self.store.put(identity, For::Next, answer, now) {
            self.lose(identity, For::Next, (*answer.loss()).clone());
            lost.push((identity, answer));
        }
        lost
    }

    /// What nobody asked for in time. Whoever asks now asks anew.
    fn expire(&mut self, now: Instant) -> Lost {
        for (_, loss) in self.losses.expire(now) {
            remove_file(&loss.record);
        }
        let lost = self.store.expire(now);
        lost.iter().for_each(|(_, answer)| remove_file(&answer.record));
        lost
    }

    /// Remembers that there is no answer of a call.
    fn lose(&mut self, identity: Identity, whom: For, loss: Answer) {
        let now = Instant::now();
        for (_, old) in self.losses.expire(now) {
            remove_file(&old.record);
        }
        for (_, old) in self.losses.put(identity, whom, Arc::new(loss), now) {
            tracing::warn!(
                "more answers are lost than can be remembered: whoever asks for the oldest asks anew"
            );
            remove_word(&old.record);
        }
    }

    fn forget_told(&mut self, identity: Identity) {
        while self.losses.take_delivered(identity).is_some() {}
    }

    /// What is to outlive the process, but for the calls that have a name.
    fn unnamed(&self, now: Instant) -> Vec<Written> {
        let written = |identity, answer| Written { identity, named: None, answer };
        let not_yet = |record: &Arc<Record>| Arc::new(Answer::lost_at(now, record));
        let kept = self.store.all().into_iter().chain(self.losses.all());
        let mut all: Vec<_> = kept.map(|(identity, answer)| written(identity, answer)).collect();
        for (identity, group) in &self.orphans {
            all.extend(group.calls.iter().map(|record| written(*identity, not_yet(record))));
        }
        for (identity, group) in &self.live {
            all.extend(group.calls.iter().filter_map(|present| match present {
                Present::Given(answer) => Some(written(*identity, answer.clone())),
                Present::Sent(course) => {
                    course.may_have_cost().then(|| written(*identity, not_yet(&course.record)))
                }
            }));
        }
        all
    }

    /// Where everything is written down that is here.
    fn records(&self) -> Vec<Arc<Record>> {
        let kept = self
            .store
            .all()
            .into_iter()
            .chain(self.losses.all())
            .map(|(_, answer)| answer.record.clone());
        let live = self
            .live
            .values()
            .flat_map(|group| group.calls.iter().map(|present| present.record().clone()));
        let orphans = self.orphans.values().flat_map(|group| group.calls.iter().cloned());
        kept.chain(live).chain(orphans).chain(self.named.records()).collect()
    }
}

/// One of the calls that are alike has ended.
fn end<T>(
    groups: &mut HashMap<Identity, Group<T>>,
    identity: Identity,
    which: impl Fn(&T) -> bool,
) {
    let Entry::Occupied(mut group) = groups.entry(identity) else { return };
    let calls = &mut group.get_mut().calls;
    if let Some(at) = calls.iter().position(which) {
        calls.swap_remove(at);
    }
    group.get().ends.notify_waiters();
    if group.get().calls.is_empty() {
        group.remove();
    }
}

/// A moment that is so much later. One that no clock comes to is as good as one in a lifetime.
pub(super) fn after(moment: Instant, time: Duration) -> Instant {
    const LIFETIME: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    moment.checked_add(time.min(LIFETIME)).unwrap_or(moment)
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
