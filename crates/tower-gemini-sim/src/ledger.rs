//! Records what really happened: which requests arrived, which images were generated, what was
//! charged.
//!
//! A client sees responses; only the server knows what it charged. Tests compare a client's own
//! books to this ledger.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::fault::Fault;
use crate::lock;
use crate::model::{Size, Tier};

/// How much of the response's body the client read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
pub enum Delivered {
    /// All of it, to the last byte.
    Full,
    /// Some of it, or all that a truncated answer held.
    Partial,
    /// Nothing.
    #[default]
    NotDelivered,
}

/// One request, as the server saw it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Record {
    /// Counted from 0 in order of arrival, refused connections included.
    pub number: usize,
    /// The value of the `x-sim-call` header: tests tag all attempts of one call with it.
    pub call: Option<Arc<str>>,
    /// The project that the key belongs to; never the key.
    pub project: Arc<str>,
    /// The model asked for, without prefixes.
    pub model: Arc<str>,
    /// The model that worked on it, where that is another one: it is billed as that model's.
    pub served_by: Option<Arc<str>>,
    /// The size asked for, once the request was understood.
    pub size: Option<Size>,
    /// It asked for the flex tier, which costs half.
    pub flex: bool,
    /// The tier that it is served and billed in.
    pub tier: Tier,
    /// The fault that was scripted or drawn.
    pub fault: Fault,
    /// What decided the response: `image`, a fault's name, or a check of the server such as
    /// `quota_day`, `credentials`, `rejected`.
    pub outcome: &'static str,
    /// Whether the request was read; a refused connection was not.
    pub received: bool,
    /// Since the simulator's clock began.
    pub received_at: Duration,
    /// When the response was read to its end or abandoned, or it was certain that none would come.
    pub ended_at: Option<Duration>,
    /// The status of the response, if there was one.
    pub status: Option<u16>,
    /// The model finished.
    pub generated: bool,
    /// The project is charged for this request.
    pub charged: bool,
    /// The charge in micro-dollars.
    pub cost_microusd: u64,
    /// Tokens of the input.
    pub input_tokens: u64,
    /// Tokens of thinking and text.
    pub text_tokens: u64,
    /// Tokens of images.
    pub image_tokens: u64,
    /// It is about something that is stored (an interaction, a batch, a file), and does not start
    /// anything: it generates and costs nothing.
    pub is_fetch: bool,
    /// Lines of the batch that it created.
    pub batch_lines: usize,
    /// Those of them that are on the bill, once the batch has ended.
    pub batch_lines_charged: usize,
    /// The request counts against the project's limits.
    pub request_counted: bool,
    /// How much of the response was read.
    pub delivered: Delivered,
    /// The client disconnected before the response.
    pub aborted: bool,
    /// [`hash64`](crate::hash64) of the request's body, once it was read.
    pub body_hash: Option<u64>,
    /// [`hash64`](crate::hash64) of the final image's file in the response.
    pub image_hash: Option<u64>,
    /// Length of that file.
    pub image_len: Option<usize>,
    /// Order among all arrivals and charges, to tell what came after what.
    #[serde(skip)]
    pub(crate) arrived: u64,
    #[serde(skip)]
    pub(crate) charged_as: Option<u64>,
}

/// Sums over a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// Different `x-sim-call` tags.
    pub calls: usize,
    /// Requests sent, refused connections included.
    pub requests: usize,
    /// Requests read.
    pub received: usize,
    /// Requests whose model finished.
    pub generated: usize,
    /// Requests that cost money.
    pub charged: usize,
    /// Requests that cost money and whose response was not read whole.
    pub charged_but_undelivered: usize,
    /// Images that arrived whole.
    pub images_delivered: usize,
    /// All charges in micro-dollars.
    pub cost_microusd: u64,
    /// Requests that count against limits.
    pub quota_requests: usize,
    /// Input tokens of those.
    pub quota_tokens: u64,
}

/// The ledger at one moment.
///
/// Serialises as `{"totals": …, "requests": […]}`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LedgerSnapshot {
    totals: Totals,
    requests: Vec<Record>,
}

impl LedgerSnapshot {
    /// Every request in order of arrival.
    pub fn requests(&self) -> &[Record] {
        &self.requests
    }

    /// Sums over all requests.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The attempts of one call, in order of arrival.
    pub fn of_call<'a>(&'a self, tag: &'a str) -> impl Iterator<Item = &'a Record> {
        self.requests.iter().filter(move |record| record.call.as_deref() == Some(tag))
    }

    /// How often the call was sent, refused connections included and fetches not.
    pub fn sends(&self, tag: &str) -> usize {
        self.of_call(tag).filter(|record| !record.is_fetch).count()
    }

    /// How often the call was charged.
    pub fn charges(&self, tag: &str) -> usize {
        self.of_call(tag).filter(|record| record.charged).count()
    }

    /// What the call cost in micro-dollars.
    pub fn cost_microusd(&self, tag: &str) -> u64 {
        self.of_call(tag).map(|record| record.cost_microusd).sum()
    }

    /// How many attempts of the call arrived after one of them had been charged: each may be
    /// charged twice. A well-behaved client makes this zero. A charge that the client could not know of yet
    /// counts too, since resending was a bet then.
    pub fn sends_after_charge(&self, tag: &str) -> usize {
        let Some(first_charge) = self.of_call(tag).filter_map(|record| record.charged_as).min()
        else {
            return 0;
        };
        let is_late = |record: &&Record| record.received && record.arrived > first_charge;
        self.of_call(tag).filter(is_late).filter(|record| !record.is_fetch).count()
    }

    /// The same for every tag that is not zero.
    pub fn resent_after_charge(&self) -> BTreeMap<Arc<str>, usize> {
        let tags: std::collections::BTreeSet<_> =
            self.requests.iter().filter_map(|record| record.call.clone()).collect();
        tags.into_iter()
            .map(|tag| (tag.clone(), self.sends_after_charge(&tag)))
            .filter(|(_, sends)| *sends > 0)
            .collect()
    }
}

/// The ledger being written, and the simulator's clock.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    inner: Mutex<Inner>,
    began: OnceLock<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    /// In order of their numbers, some of which were [taken](Ledger::take_ended).
    records: Vec<Record>,
    /// The number of the next request.
    next: usize,
    order: u64,
}

impl Inner {
    fn get_mut(&mut self, number: usize) -> Option<&mut Record> {
        let at = self.records.binary_search_by_key(&number, |record| record.number).ok()?;
        self.records.get_mut(at)
    }
}

/// What a request costs, if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bill {
    pub(crate) cost_microusd: u64,
    pub(crate) input_tokens: u64,
    pub(crate) text_tokens: u64,
    pub(crate) image_tokens: u64,
}

impl Bill {
    /// Both together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cost_microusd: self.cost_microusd + other.cost_microusd,
            input_tokens: self.input_tokens + other.input_tokens,
            text_tokens: self.text_tokens + other.text_tokens,
            image_tokens: self.image_tokens + other.image_tokens,
        }
    }

    /// The same tokens at half the price: batches (ai.google.dev "Pricing", 2026-09).
    pub(crate) fn at_half_price(self) -> Self {
        Self { cost_microusd: self.cost_microusd / 2, ..self }
    }
}

impl Ledger {
    /// Returns the time since the clock began, which it does with the first call.
    pub(crate) fn now(&self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(*self.began.get_or_init(|| now))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Opens a record. `draw` is given the number and says which fault it meets, under the lock, so
    /// that scripts and numbers agree.
    pub(crate) fn open(&self, at: Duration, draw: impl FnOnce(usize) -> Fault) -> (usize, Fault) {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        let fault = draw(number);
        inner.order += 1;
        let arrived = inner.order;
        inner.records.push(Record {
            number,
            outcome: fault.name(),
            fault: fault.clone(),
            received_at: at,
            arrived,
            ..Record::default()
        });
        (number, fault)
    }

    pub(crate) fn edit(&self, number: usize, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.lock().get_mut(number) {
            change(record);
        }
    }

    /// Records that the model finished, or that something else is charged.
    pub(crate) fn settle(&self, number: usize, generated: bool, bill: Option<Bill>) {
        let mut inner = self.lock();
        inner.order += 1;
        let order = inner.order;
        let Some(record) = inner.get_mut(number) else { return };
        record.generated |= generated;
        if let Some(bill) = bill {
            record.charged = true;
            record.charged_as = Some(order);
            record.cost_microusd = bill.cost_microusd;
            record.input_tokens = bill.input_tokens;
            record.text_tokens = bill.text_tokens;
            record.image_tokens = bill.image_tokens;
        }
    }

    pub(crate) fn snapshot(&self) -> LedgerSnapshot {
        let requests = self.lock().records.clone();
        let totals = totals(&requests);
        LedgerSnapshot { totals, requests }
    }

    pub(crate) fn totals(&self) -> Totals {
        totals(&self.lock().records)
    }

    pub(crate) fn sent(&self) -> usize {
        self.lock().next
    }

    pub(crate) fn take_ended(&self) -> Vec<Record> {
        let mut inner = self.lock();
        let all = std::mem::take(&mut inner.records).into_iter();
        let (ended, open) = all.partition(|record| record.ended_at.is_some());
        inner.records = open;
        ended
    }

    pub(crate) fn forget(&self) {
        *self.lock() = Inner::default();
    }
}

fn totals(records: &[Record]) -> Totals {
    let mut totals = Totals { requests: records.len(), ..Totals::default() };
    let mut calls = std::collections::HashSet::new();
    for record in records {
        if let Some(call) = &record.call {
            calls.insert(call);
        }
        totals.received += usize::from(record.received);
        totals.generated += usize::from(record.generated);
        totals.charged += usize::from(record.charged);
        totals.charged_but_undelivered +=
            usize::from(record.charged && record.delivered != Delivered::Full);
        totals.images_delivered +=
            usize::from(record.image_hash.is_some() && record.delivered == Delivered::Full);
        totals.cost_microusd += record.cost_microusd;
        totals.quota_requests += usize::from(record.request_counted);
        totals.quota_tokens += if record.request_counted { record.input_tokens } else { 0 };
    }
    totals.calls = calls.len();
    totals
}
