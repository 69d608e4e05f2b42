//! What all services of one layer share: who is being answered, what is being finished, and what waits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tower_gemini_core::trail::NotKeptReason;

use super::files::Written;
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
}

#[derive(Debug)]
struct State {
    store: Store,
    /// Calls whose callers are there.
    live: HashMap<Identity, Group>,
    /// Calls that are being finished without their callers.
    orphans: HashMap<Identity, Group>,
    /// Calls that their callers gave a name.
    named: HashMap<Identity, Named>,
}

/// Calls that are alike. Whoever waits for one of them to end hears of each end.
#[derive(Debug, Default)]
struct Group {
    calls: usize,
    ends: Arc<Notify>,
}

/// A call that its caller gave a name.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) request: Identity,
    pub(super) result: watch::Receiver<NamedResult>,
    began: Instant,
}

/// What became of it.
#[derive(Debug, Clone)]
pub(super) enum NamedResult {
    UnderWay,
    /// Everybody who asks gets it.
    Answer(Arc<Answer>),
    /// It was or may have been paid for, and there is no answer.
    Lost,
    /// It cost nothing: who still wants it may send it.
    Free,
}

/// What there is for a request.
pub(super) enum Found {
    Answer(Arc<Answer>),
    /// Being finished without its caller: something happens when this says so.
    Orphan(Arc<Notify>),
    /// Being answered to its caller, who may have gone.
    Live(Arc<Notify>),
    Nothing,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        let store = Store::new(settings.max_bytes, settings.retention, settings.resend_window);
        Self {
            settings,
            state: Mutex::new(State { store, live: HashMap::new(), orphans: HashMap::new(), named: HashMap::new() }),
            detached: watch::Sender::new(0),
            redeemed: AtomicU64::new(0),
            not_kept: Default::default(),
            lost: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in another holder leaves the maps complete: each write is one insertion or removal.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> KeepCounts {
        let (kept, kept_bytes) = {
            let mut state = self.state();
            let lost = state.store.expire(Instant::now());
            let counts = (state.store.waiting(), state.store.bytes());
            drop(state);
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

    /// What there is for this request; an answer is taken.
    pub(super) fn find(&self, identity: Identity, resend: bool) -> Found {
        let mut state = self.state();
        let (answer, lost) = state.store.take(identity, resend, Instant::now());
        let found = match answer {
            Some(answer) => Found::Answer(answer),
            None => match (state.orphans.get(&identity), state.live.get(&identity)) {
                (Some(group), _) => Found::Orphan(group.ends.clone()),
                (None, Some(group)) => Found::Live(group.ends.clone()),
                (None, None) => Found::Nothing,
            },
        };
        drop(state);
        self.let_go(&lost);
        found
    }

    /// Whether things still stand as they did when this request was told to wait: for one that is live, or for one without its caller.
    pub(super) fn is_waiting_worthwhile(&self, identity: Identity, for_live: bool) -> bool {
        let state = self.state();
        let orphan = state.orphans.contains_key(&identity);
        if state.store.holds(identity) {
            return false;
        }
        if for_live { !orphan && state.live.contains_key(&identity) } else { orphan }
    }

    pub(super) fn enter(&self, identity: Identity) {
        self.state().live.entry(identity).or_default().calls += 1;
    }

    /// A caller got its answer, or went away and left nothing.
    pub(super) fn leave(&self, identity: Identity) {
        end(&mut self.state().live, identity);
    }

    /// A caller went away: what it was about to get is finished. `false` where too many are.
    pub(super) fn detach(&self, identity: Identity) -> bool {
        let mut state = self.state();
        let free = self.detached.send_if_modified(|detached| {
            let free = *detached < self.settings.max_detached;
            *detached += usize::from(free);
            free
        });
        if free {
            // Before the call leaves the living, so that who waits for that finds it here.
            state.orphans.entry(identity).or_default().calls += 1;
        }
        end(&mut state.live, identity);
        free
    }

    /// What was finished without its caller is here, or is not to be had.
    pub(super) fn reattach(&self, identity: Identity, answer: Option<Arc<Answer>>) {
        let mut state = self.state();
        let lost = match answer {
            Some(answer) => state.store.put(identity, For::Next, answer, Instant::now()),
            None => Vec::new(),
        };
        end(&mut state.orphans, identity);
        drop(state);
        self.detached.send_modify(|detached| *detached = detached.saturating_sub(1));
        self.let_go(&lost);
    }

    /// An answer that was taken, and whose taker went away too.
    pub(super) fn put_back(&self, identity: Identity, answer: Arc<Answer>) {
        let lost = self.state().store.put(identity, For::Next, answer, Instant::now());
        self.let_go(&lost);
    }

    /// An answer that seems to have reached its caller.
    pub(super) fn delivered(&self, identity: Identity, answer: Answer) {
        let lost = self.state().store.put(identity, For::Resend, Arc::new(answer), Instant::now());
        // Nobody was to get it.
        drop(lost.into_iter().filter(|answer| answer.file.is_some()).collect::<Vec<_>>());
    }

    /// A kept answer reached somebody.
    pub(super) fn redeemed(&self, answer: &Answer) {
        self.redeemed.fetch_add(1, Ordering::Relaxed);
        remove_file(answer);
    }

    pub(super) fn not_kept(&self, reason: NotKeptReason) {
        if let Some(count) = self.not_kept.get(place(reason)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn let_go(&self, lost: &Lost) {
        self.lost.fetch_add(lost.len() as u64, Ordering::Relaxed);
        for answer in lost {
            tracing::warn!(
                bytes = answer.bytes,
                cost_at_least_microusd = answer.cost.at_least_microusd,
                "a kept answer was let go: nobody asked for it in time, or newer ones needed its place"
            );
            remove_file(answer);
        }
    }

    /// The call of this name: the one that is under way or done, or a new one, to be reported by the sender.
    pub(super) fn named(&self, name: Identity, request: Identity) -> Result<watch::Sender<NamedResult>, Named> {
        let now = Instant::now();
        let mut state = self.state();
        let gone = state.trim_named(self.settings.max_bytes, self.settings.retention, now);
        let found = match state.named.entry(name) {
            Entry::Occupied(entry) if !matches!(*entry.get().result.borrow(), NamedResult::Free) => Err(entry.get().clone()),
            entry => {
                let (sender, result) = watch::channel(NamedResult::UnderWay);
                let named = Named { request, result, began: now };
                match entry {
                    Entry::Occupied(mut entry) => drop(entry.insert(named)),
                    Entry::Vacant(entry) => drop(entry.insert(named)),
                }
                Ok(sender)
            }
        };
        drop(state);
        gone.iter().for_each(|answer| remove_file(answer));
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

    /// What is to outlive the process: answers that wait for their callers, and what became of the calls that have a name.
    pub(super) fn waiting(&self) -> Vec<Written> {
        let now = Instant::now();
        let mut state = self.state();
        let lost = state.store.expire(now);
        let gone = state.trim_named(self.settings.max_bytes, self.settings.retention, now);
        let waiting = state.store.all().into_iter();
        let mut all: Vec<_> =
            waiting.map(|(identity, answer)| Written { identity, named: None, lost: false, answer }).collect();
        for (name, named) in &state.named {
            let (lost, answer) = match &*named.result.borrow() {
                NamedResult::Answer(answer) => (false, answer.clone()),
                NamedResult::Lost => (true, Arc::new(Answer::none(named.began))),
                NamedResult::UnderWay | NamedResult::Free => continue,
            };
            all.push(Written { identity: *name, named: Some(named.request), lost, answer });
        }
        drop(state);
        self.let_go(&lost);
        gone.iter().for_each(|answer| remove_file(answer));
        all
    }

    /// How many of these are kept now.
    pub(super) fn take_in(&self, found: Vec<Written>) -> usize {
        let mut let_go = Vec::new();
        let mut names = 0;
        let mut state = self.state();
        let now = Instant::now();
        for Written { identity, named, lost, answer } in found {
            let Some(request) = named else {
                let_go.extend(state.store.put(identity, For::Next, answer, now));
                continue;
            };
            let began = answer.at;
            let result = if lost { NamedResult::Lost } else { NamedResult::Answer(answer) };
            // Nobody sends anything into it any more; what it holds stays to be read.
            let (_, result) = watch::channel(result);
            state.named.entry(identity).or_insert(Named { request, result, began });
            names += 1;
        }
        let kept = state.store.waiting() + names;
        drop(state);
        self.let_go(&let_go);
        kept
    }
}

impl State {
    /// Forgets the calls of names that are too old, and then the oldest answers until the rest is within the bound that holds for kept
    /// answers too. Gives what is forgotten.
    fn trim_named(&mut self, most: usize, retention: Duration, now: Instant) -> Vec<Arc<Answer>> {
        let answer = |named: &Named| match &*named.result.borrow() {
            NamedResult::Answer(answer) => Some(answer.clone()),
            _ => None,
        };
        let mut gone = Vec::new();
        self.named.retain(|_, named| {
            // One that is under way has a sender; what is done is kept for as long as an answer is.
            let under_way = matches!(*named.result.borrow(), NamedResult::UnderWay);
            let stays = under_way || now.saturating_duration_since(named.began) < retention;
            if !stays {
                gone.extend(answer(named));
            }
            stays
        });
        let mut bytes: usize = self.named.values().filter_map(answer).map(|answer| answer.bytes).sum();
        while bytes > most {
            let held = self.named.iter().filter_map(|(name, named)| Some((named.began, *name, answer(named)?)));
            let Some((_, name, oldest)) = held.min_by_key(|(began, ..)| *began) else { break };
            self.named.remove(&name);
            bytes -= oldest.bytes;
            gone.push(oldest);
        }
        gone
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

fn remove_file(answer: &Answer) {
    let Some(file) = answer.file.clone() else { return };
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
