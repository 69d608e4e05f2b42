//! Answers that wait for their callers, within bounds: pure. Times are handed in.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::{Outcome, Verdict};

use super::files::Record;
use super::identity::Identity;
use crate::answer_errors::clients_retry;

/// A whole answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) chunks: Vec<Bytes>,
    pub(super) bytes: usize,
    /// When its last byte came.
    pub(super) at: Instant,
    /// What it cost, all attempts of its call together.
    pub(super) cost: Cost,
    /// What it means.
    pub(super) outcome: Outcome,
    /// How it was judged, where it was in this process.
    pub(super) verdict: Option<Arc<Verdict>>,
    /// Where it is written down, if it is: shared by what stands in its place while it is not
    /// there.
    pub(super) record: Arc<Record>,
}

impl Answer {
    /// In the place of an answer that was or may have been paid for and that there is none of. It
    /// weighs one, so that a bound on bytes bounds the number of such.
    pub(super) fn lost(at: Instant) -> Self {
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            chunks: Vec::new(),
            bytes: 1,
            at,
            cost: Cost::ZERO,
            outcome: Outcome::Interrupted,
            verdict: None,
            record: Arc::default(),
        }
    }

    /// The same, of one that may be written down, or come to be.
    pub(super) fn lost_at(at: Instant, record: &Arc<Record>) -> Self {
        Self { record: record.clone(), ..Self::lost(at) }
    }

    /// Whether it only stands in an answer's place: none has no bytes and weighs one.
    pub(super) fn is_lost(&self) -> bool {
        self.chunks.is_empty() && self.bytes == 1
    }

    /// What stands in its place when it had to go. Where it is written down it stays.
    pub(super) fn loss(&self) -> Arc<Self> {
        Arc::new(Self::lost_at(self.at, &self.record))
    }

    /// Whether somebody can have it later in the place of one of their own.
    pub(super) fn is_of_use(&self) -> bool {
        is_of_use(self.status, self.outcome)
    }
}

/// Whether an answer is what was paid for, in whatever status it is told: a refusal that cost
/// something is a 200 of Google's and an error of other APIs. An error that may have cost something
/// (a front end's 504) is nothing that anybody paid for, and a status after which clients send
/// again would make them ask for it without end.
pub(super) fn is_of_use(status: StatusCode, outcome: Outcome) -> bool {
    if status.is_success() {
        return !matches!(outcome, Outcome::Interrupted | Outcome::StreamError);
    }
    // 425 too: "send it again later" is what it says.
    let is_final =
        status.is_client_error() && !clients_retry(status) && status != StatusCode::TOO_EARLY;
    let says_what_came = matches!(
        outcome,
        Outcome::Image
            | Outcome::Answered
            | Outcome::NoImage
            | Outcome::OutOfTokens
            | Outcome::ContentBlocked
            | Outcome::PromptBlocked
    );
    is_final && says_what_came
}

/// Whom an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// The same caller's next identical request, once.
    Next,
    /// It seemed delivered: only a request that says that it is a resend.
    Resend,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    whom: For,
    answer: Arc<Answer>,
}

/// What is kept.
#[derive(Debug)]
pub(super) struct Store {
    most_bytes: usize,
    retention: Duration,
    resend_window: Duration,
    entries: HashMap<Identity, VecDeque<Entry>>,
    /// In the order in which they came.
    order: VecDeque<(u64, Identity)>,
    next: u64,
    bytes: usize,
    count: usize,
}

/// Answers that went to nobody, and whose they are.
pub(super) type Lost = Vec<(Identity, Arc<Answer>)>;

impl Store {
    pub(super) fn new(most_bytes: usize, retention: Duration, resend_window: Duration) -> Self {
        Self {
            most_bytes,
            retention,
            resend_window,
            entries: HashMap::new(),
            order: VecDeque::new(),
            next: 0,
            bytes: 0,
            count: 0,
        }
    }

    /// How many answers wait for their callers; such as seemed delivered are not among them.
    pub(super) fn waiting(&self) -> usize {
        self.entries.values().flatten().filter(|entry| entry.whom == For::Next).count()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether so much more has a place without another's.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.bytes.checked_add(bytes).is_some_and(|bytes| bytes <= self.most_bytes)
    }

    /// Puts an answer by. What has to go for it comes back: such as seemed delivered first, then
    /// the oldest.
    ///
    /// An answer that is larger than the bound, or seemed delivered and has no place without one
    /// that nobody got, is not put by, and comes back itself.
    pub(super) fn put(
        &mut self,
        identity: Identity,
        whom: For,
        answer: Arc<Answer>,
        now: Instant,
    ) -> Lost {
        let mut lost = self.expire(now);
        if answer.bytes > self.most_bytes {
            lost.push((identity, answer));
            return lost;
        }
        while self.bytes + answer.bytes > self.most_bytes {
            // What seemed delivered never drives out what nobody got.
            let victim = self
                .oldest(For::Resend)
                .or_else(|| (whom == For::Next).then(|| self.oldest(For::Next)).flatten());
            let Some((number, victim)) = victim else {
                lost.push((identity, answer));
                return lost;
            };
            if let Some(entry) = self.remove(victim, |entry| entry.number == number) {
                if entry.whom == For::Next {
                    lost.push((victim, entry.answer));
                }
            }
        }
        self.bytes += answer.bytes;
        self.count += 1;
        self.order.push_back((self.next, identity));
        self.entries.entry(identity).or_default().push_back(Entry {
            number: self.next,
            whom,
            answer,
        });
        self.next += 1;
        lost
    }

    /// Takes the oldest answer that waits for this request.
    pub(super) fn take(&mut self, identity: Identity, now: Instant) -> (Option<Arc<Answer>>, Lost) {
        let lost = self.expire(now);
        (self.remove(identity, |entry| entry.whom == For::Next).map(|entry| entry.answer), lost)
    }

    /// Takes the oldest one that seemed delivered: for a request that says that it is a resend.
    pub(super) fn take_delivered(&mut self, identity: Identity) -> Option<Arc<Answer>> {
        self.remove(identity, |entry| entry.whom == For::Resend).map(|entry| entry.answer)
    }

    /// Whether an answer waits for this request.
    pub(super) fn holds(&self, identity: Identity) -> bool {
        self.entries
            .get(&identity)
            .is_some_and(|entries| entries.iter().any(|entry| entry.whom == For::Next))
    }

    /// All answers that wait for their callers, oldest first.
    pub(super) fn all(&self) -> Vec<(Identity, Arc<Answer>)> {
        let mut all: Vec<_> = self
            .entries
            .iter()
            .flat_map(|(identity, entries)| entries.iter().map(move |entry| (*identity, entry)))
            .filter(|(_, entry)| entry.whom == For::Next)
            .collect();
        all.sort_by_key(|(_, entry)| entry.number);
        all.into_iter().map(|(identity, entry)| (identity, entry.answer.clone())).collect()
    }

    /// Lets go of what is too old.
    pub(super) fn expire(&mut self, now: Instant) -> Lost {
        let mut lost = Vec::new();
        let old: Vec<(u64, Identity)> = self
            .entries
            .iter()
            .flat_map(|(identity, entries)| entries.iter().map(move |entry| (*identity, entry)))
            .filter(|(_, entry)| {
                now.saturating_duration_since(entry.answer.at) >= self.patience(entry.whom)
            })
            .map(|(identity, entry)| (entry.number, identity))
            .collect();
        for (number, identity) in old {
            if let Some(entry) = self.remove(identity, |entry| entry.number == number) {
                if entry.whom == For::Next {
                    lost.push((identity, entry.answer));
                }
            }
        }
        lost
    }

    fn patience(&self, whom: For) -> Duration {
        match whom {
            For::Next => self.retention,
            For::Resend => self.resend_window,
        }
    }

    fn oldest(&self, whom: For) -> Option<(u64, Identity)> {
        self.order.iter().copied().find(|(number, identity)| {
            self.entries.get(identity).is_some_and(|entries| {
                entries.iter().any(|entry| entry.number == *number && entry.whom == whom)
            })
        })
    }

    fn remove(&mut self, identity: Identity, which: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let entries = self.entries.get_mut(&identity)?;
        let at = entries.iter().position(which)?;
        let entry = entries.remove(at)?;
        if entries.is_empty() {
            self.entries.remove(&identity);
        }
        self.order.retain(|(number, _)| *number != entry.number);
        self.bytes -= entry.answer.bytes;
        self.count -= 1;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(bytes: usize, at: Instant) -> Arc<Answer> {
        Arc::new(Answer {
            chunks: vec![Bytes::from(vec![0; bytes])],
            bytes,
            outcome: Outcome::Image,
            ..Answer::lost(at)
        })
    }

    #[test]
    fn what_is_of_use_is_what_was_paid_for_and_nothing_that_clients_send_again_for() {
        for &outcome in Outcome::ALL {
            for status in (200..600).filter_map(|code| StatusCode::from_u16(code).ok()) {
                let sent_again =
                    status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429);
                let use_of_it = is_of_use(status, outcome);
                assert!(
                    !(use_of_it && (sent_again || outcome == Outcome::Interrupted)),
                    "{status} {outcome:?}"
                );
                let refused = matches!(
                    outcome,
                    Outcome::ContentBlocked | Outcome::PromptBlocked | Outcome::NoImage
                );
                if refused && (status == 200 || status == 400) {
                    assert!(use_of_it, "{status} {outcome:?}");
                }
            }
        }
        assert!(!is_of_use(StatusCode::FAILED_DEPENDENCY, Outcome::Other));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put { who: u8, resend: bool, bytes: usize },
        Take { who: u8, resend: bool },
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..3u8, any::<bool>(), 0..60usize).prop_map(|(who, resend, bytes)| Step::Put {
                who,
                resend,
                bytes
            }),
            (0..3u8, any::<bool>()).prop_map(|(who, resend)| Step::Take { who, resend }),
            (0..400u64).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn the_bound_holds_nothing_is_given_twice_and_nothing_vanishes_untold(steps in steps()) {
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
                let mut store = Store::new(100, Duration::from_secs(600), Duration::from_secs(30));
                let (mut put, mut came_back, mut delivered_ones) = (0_usize, 0_usize, 0_usize);
                for step in steps {
                    let now = Instant::now();
                    match step {
                        Step::Put { who, resend, bytes } => {
                            let whom = if resend { For::Resend } else { For::Next };
                            if resend { delivered_ones += 1 } else { put += 1 }
                            came_back += store.put(Identity([who; 32]), whom, answer(bytes, now), now).len();
                        }
                        Step::Take { who, resend } => {
                            let (next, lost) = store.take(Identity([who; 32]), now);
                            let found = next.or_else(|| if resend { store.take_delivered(Identity([who; 32])) } else { None });
                            came_back += lost.len();
                            if let Some(found) = found {
                                assert!(now - found.at < Duration::from_secs(600), "too old");
                                came_back += usize::from(Arc::strong_count(&found) == 1);
                            }
                        }
                        Step::Wait(seconds) => tokio::time::advance(Duration::from_secs(seconds)).await,
                    }
                    assert!(store.bytes() <= 100, "{} bytes", store.bytes());
                    assert_eq!(store.bytes(), store.entries.values().flatten().map(|entry| entry.answer.bytes).sum::<usize>());
                    assert_eq!(store.count, store.order.len());
                    // Every answer for a next request is still here, was given, or was told to be
                    // lost; of the others some may be too.
                    assert!(store.waiting() + came_back >= put && store.waiting() + came_back <= put + delivered_ones);
                }
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_seemed_delivered_goes_only_to_a_marked_resend_and_drives_nothing_out() {
        let now = Instant::now();
        let (me, mut store) =
            (Identity([1; 32]), Store::new(100, Duration::from_secs(600), Duration::from_secs(30)));
        assert!(store.put(me, For::Next, answer(80, now), now).is_empty());
        assert_eq!(
            store.put(me, For::Resend, answer(30, now), now).len(),
            1,
            "it comes back itself"
        );
        assert_eq!(store.waiting(), 1);
        assert!(store.take(me, now).0.is_some());
        store.put(me, For::Resend, answer(30, now), now);
        assert!(store.take(me, now).0.is_none());
        assert!(store.take_delivered(me).is_some());
        store.put(me, For::Resend, answer(30, now), now);
        assert!(store.take(me, now + Duration::from_secs(31)).0.is_none());
        assert!(store.take_delivered(me).is_none());
    }
}
