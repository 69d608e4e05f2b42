//! The real layers, led along the events of the model: a stack over the simulator, whose provider
//! holds each attempt until an event says what becomes of it.

use std::future::{Future, ready};
use std::mem::take;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep_until, timeout_at};
use tower::util::{BoxCloneService, MapResponse};
use tower::{BoxError, ServiceExt, service_fn};
use tower_gemini::clock::RuntimeClock;
use tower_gemini::cost::Cost;
use tower_gemini::jittered_retry::{Backoff, Jitter, RetryPolicy};
use tower_gemini::quota_guard::{DimensionUsage, Limits, OnExhausted, QuotaDimension};
use tower_gemini::store::{
    CallFingerprint, Claim, Journal, JournalChange, JournalFuture, JournalResponse, JournalState,
    MemoryJournal, MemoryStore,
};
use tower_gemini::verdict::Charge;
use tower_gemini::{
    AttemptTimeoutLayer, CallOptions, Error, GeminiStack, JitteredRetryLayer, KeepPaidLayer,
    QuotaGuardLayer, SpendingLayer, Trail, WireBody,
};
use tower_gemini_sim::{BadRequest, Fault, Latency, Limit, Refusal, Sim, SimBody};

use super::machine::{ATTEMPTS, Answer, Client, Event, Phase, QUOTA, Record, State, Told, WAITS};
use crate::harness::{Scenario, TAG};

/// One wait of the model, and the moment in which everything that is due is done.
const WAIT: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(1);
/// A wait that the provider asks for is longer by at most so much.
const HINT_JITTER: Duration = Duration::from_millis(500);
/// The model forgets nothing, so nothing may become too old.
const EVER: Duration = Duration::from_secs(86_400);
/// 2026-03-08 20:00 UTC, noon Pacific: no day ends within a test.
const NOON: Duration = Duration::from_secs(1_773_000_000);

/// What the provider does with the attempt that it holds.
enum Order {
    RefuseConnection,
    Receive,
    Answer(Fault),
    /// Its process is killed: nobody is answered.
    Die {
        is_charged: bool,
    },
}

#[derive(Clone)]
struct Provider {
    sim: Sim,
    orders: Arc<tokio::sync::Mutex<UnboundedReceiver<Order>>>,
    attempts: Arc<AtomicUsize>,
}

impl Provider {
    async fn next(&self) -> Order {
        self.orders.lock().await.recv().await.expect("the test outlives its attempts")
    }

    async fn send(self, request: Request<WireBody>) -> Result<Response<SimBody>, BoxError> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        match self.next().await {
            Order::Receive => {}
            Order::RefuseConnection => {
                self.sim.push_script([Fault::ConnectionRefused]);
                return Ok(self.sim.service().oneshot(request).await?);
            }
            _ => std::future::pending().await,
        }
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, Full::new(body.collect().await?.to_bytes()));
        match self.next().await {
            Order::Answer(fault) => {
                self.sim.push_script([fault]);
                Ok(self.sim.service().oneshot(request).await?)
            }
            order => {
                if let Order::Die { is_charged: true } = order {
                    self.sim.push_script([Fault::ResetAfterGeneration]);
                    let _ = self.sim.service().oneshot(request).await;
                }
                std::future::pending().await
            }
        }
    }
}

/// A journal that says how far its one record has come.
#[derive(Debug, Clone)]
struct Watched {
    journal: MemoryJournal,
    record: Arc<Mutex<Record>>,
}

impl Watched {
    fn after_a_crash(&self) -> Self {
        Self { journal: self.journal.after_a_crash(), ..self.clone() }
    }

    fn record(&self) -> Record {
        let record = *self.record.lock().unwrap();
        assert_eq!(self.journal.len(), usize::from(record != Record::Nothing), "one client's call");
        record
    }
}

impl Journal for Watched {
    fn write(&self, call: u128, change: JournalChange) -> JournalFuture<bool> {
        let after = match &change {
            JournalChange::Begin(_) => Some(Record::InFlight),
            JournalChange::Lost(_) => Some(Record::Lost),
            JournalChange::Stored { .. } => Some(Record::Stored),
            JournalChange::Forget => Some(Record::Nothing),
            _ => None,
        };
        let written = self.journal.write(call, change).now_or_never().unwrap();
        // The dead write nothing.
        if let (Ok(true), Some(after)) = (&written, after) {
            *self.record.lock().unwrap() = after;
        }
        Box::pin(ready(written))
    }

    fn claim(&self, fingerprint: CallFingerprint, is_resend: bool) -> JournalFuture<Claim> {
        let claimed = self.journal.claim(fingerprint, is_resend).now_or_never().unwrap();
        if let Ok(Claim::Call(record, _)) = &claimed
            && record.state == JournalState::Lost
        {
            *self.record.lock().unwrap() = Record::Lost;
        }
        Box::pin(ready(claimed))
    }

    fn read(&self, call: u128) -> JournalFuture<Option<JournalResponse>> {
        self.journal.read(call)
    }
}

type Body = UnsyncBoxBody<Bytes, Error>;
type Stack = BoxCloneService<Request<Full<Bytes>>, Response<Body>, Error>;
type Calling = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>>>>;

/// The client's request.
#[derive(Default)]
enum Asked {
    #[default]
    Nothing,
    Calling(Calling),
    Holding(Body),
}

/// What is gone when the process is killed, and its parts that can be looked into.
struct Running {
    stack: Stack,
    quota: QuotaGuardLayer,
    keep: KeepPaidLayer,
}

/// What can be seen of the layers, in the words of the model.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Begun since the beginning, by all processes.
    attempts: usize,
    paid: u8,
    told: Option<Told>,
    holds_response: bool,
    journal: Record,
    /// Requests that are counted and that are reserved, by the guard of this process.
    quota: (u8, u8),
    /// Whether the account knows of a payment that was or may have been made, and for how many
    /// attempts it reserves.
    account: (bool, u8),
    /// Attempts that were charged and that may have been, by the trails.
    charges: (u8, u8),
    /// Calls that go on without a client, and responses that wait for one.
    kept: (u8, u8),
}

impl Observed {
    /// What the model says is to be seen.
    pub(crate) fn expected(state: &State, attempts: usize, told: Option<Told>) -> Self {
        let State { client, process, journal, account, truth, .. } = state;
        let holds_response = *client == Client::Holds;
        let (quota, kept) = process.as_ref().map_or_else(Default::default, |process| {
            let is_detached = process.call.as_ref().is_some_and(|call| call.is_detached);
            let is_stored = process.kept == Record::Stored && !holds_response;
            let quota = &process.quota;
            ((quota.counted, quota.reserved), (u8::from(is_detached), u8::from(is_stored)))
        });
        Self {
            attempts,
            paid: truth.paid,
            told,
            holds_response,
            journal: *journal,
            quota,
            account: (account.most > 0, account.reserved),
            charges: (
                account.least + account.arriving,
                account.most - account.least + account.reserved - account.arriving,
            ),
            kept,
        }
    }
}

pub(crate) struct Layers {
    sim: Sim,
    provider: Provider,
    orders: UnboundedSender<Order>,
    clock: RuntimeClock,
    store: Arc<MemoryStore>,
    journal: Watched,
    trails: Vec<Trail>,
    running: Option<Running>,
    asked: Asked,
    deadline: Instant,
    /// Killed processes are never polled again.
    dead: Vec<(Asked, Option<Running>)>,
}

impl Layers {
    pub(crate) fn new() -> Self {
        let sim = Sim::builder().latency(Latency::none()).tiny_images(true).build();
        let (orders, receiver) = mpsc::unbounded_channel();
        let provider = Provider {
            sim: sim.clone(),
            orders: Arc::new(tokio::sync::Mutex::new(receiver)),
            attempts: Arc::default(),
        };
        let clock = RuntimeClock::starting_at(SystemTime::UNIX_EPOCH + NOON);
        let journal = Watched { journal: MemoryJournal::new(), record: Arc::default() };
        let mut layers = Self {
            sim,
            provider,
            orders,
            store: Arc::new(MemoryStore::new().clock(clock)),
            clock,
            journal,
            trails: Vec::new(),
            running: None,
            asked: Asked::Nothing,
            deadline: Instant::now(),
            dead: Vec::new(),
        };
        layers.start();
        layers
    }

    fn start(&mut self) {
        let policy =
            RetryPolicy::uniform(u32::from(ATTEMPTS), Backoff::constant(WAIT).jitter(Jitter::None))
                .longest_wait(2 * WAIT + HINT_JITTER);
        let quota = QuotaGuardLayer::new(Limits::unlimited().rpd(u64::from(QUOTA)))
            .on_exhausted(OnExhausted::Refuse)
            .keep_for_first_attempts(0)
            .clock(self.clock)
            .learn_nothing();
        let keep = KeepPaidLayer::new()
            .journal(Arc::new(self.journal.clone()))
            .max_detached_time(EVER)
            .retention(EVER)
            .loss_window(EVER);
        let provider = self.provider.clone();
        let client = service_fn(move |request| provider.clone().send(request));
        let stack = GeminiStack::new()
            .keep_paid(keep.clone())
            .retry(JitteredRetryLayer::new(policy))
            .spending(self.spending())
            .quota(quota.clone())
            .timeout(AttemptTimeoutLayer::new().limit(EVER))
            .raw(client);
        let boxed = |response: Response<_>| response.map(BodyExt::boxed_unsync);
        let stack = BoxCloneService::new(MapResponse::new(stack, boxed));
        self.running = Some(Running { stack, quota, keep });
    }

    /// Lets an event happen, and returns what the client was told.
    pub(crate) async fn happens(&mut self, event: Event, before: &State) -> Option<Told> {
        let mut time = MOMENT;
        match event {
            Event::Send { allows_a_resend } => self.send(allows_a_resend),
            Event::NotSent => self.order(Order::RefuseConnection),
            Event::Received => self.order(Order::Receive),
            Event::Answer(answer) => self.order(Order::Answer(fault(answer))),
            Event::WaitOver => {
                if let Some(Phase::Pausing(waits)) = before.call().map(|call| call.phase) {
                    time += WAIT * u32::try_from(waits).unwrap() + HINT_JITTER;
                }
            }
            Event::Deadline => time += self.deadline - Instant::now(),
            Event::HangUp => self.asked = Asked::Nothing,
            Event::Read => {
                let Asked::Holding(body) = take(&mut self.asked) else { panic!("no response") };
                assert!(!body.collect().await.unwrap().to_bytes().is_empty());
            }
            Event::Kill { is_charged } => {
                let phase = before.call().map(|call| call.phase);
                if matches!(phase, Some(Phase::Sending | Phase::Working)) {
                    self.order(Order::Die { is_charged });
                    self.pass(MOMENT).await;
                }
                self.journal = self.journal.after_a_crash();
                self.dead.push((take(&mut self.asked), self.running.take()));
            }
            Event::Start => self.start(),
        }
        self.pass(time).await
    }

    fn order(&self, order: Order) {
        self.orders.send(order).ok().unwrap();
    }

    fn send(&mut self, allows_a_resend: bool) {
        // Half a wait longer, so that no wait ends with it.
        let within = WAIT * u32::from(WAITS.unsigned_abs()) + WAIT / 2;
        let trail = Trail::new();
        let options = CallOptions::new()
            .deadline(within)
            .maybe_charged_resends(u32::from(allows_a_resend))
            .trail(trail.clone());
        self.trails.push(trail);
        let mut request = Scenario::new([]).request(TAG);
        request.extensions_mut().insert(options);
        self.deadline = Instant::now() + within;
        let stack = self.running.as_ref().unwrap().stack.clone();
        self.asked = Asked::Calling(Box::pin(stack.oneshot(request)));
    }

    /// Time passes, in which the process and its client do what they can.
    async fn pass(&mut self, time: Duration) -> Option<Told> {
        let until = Instant::now() + time;
        let response = match &mut self.asked {
            Asked::Calling(call) => timeout_at(until, call).await.ok(),
            _ => None,
        };
        let told = match response {
            None => None,
            Some(Ok(response)) if response.status() == 200 => {
                self.asked = Asked::Holding(response.into_body());
                None
            }
            Some(Ok(response)) => {
                response.into_body().collect().await.unwrap();
                self.asked = Asked::Nothing;
                Some(Told::Free)
            }
            Some(Err(error)) => {
                self.asked = Asked::Nothing;
                match error.charge() {
                    Charge::None => Some(Told::Free),
                    Charge::Maybe => Some(Told::Maybe),
                    charge => panic!("{error} is {charge}"),
                }
            }
        };
        sleep_until(until).await;
        told
    }

    pub(crate) fn trails(&self) -> String {
        self.trails.iter().map(|trail| format!("{trail}")).collect()
    }

    pub(crate) async fn observed(&self, told: Option<Told>) -> Observed {
        let small = |number| u8::try_from(number).unwrap();
        let ledger = self.sim.ledger();
        let bill = ledger.cost_microusd(TAG);
        let trails: Cost = self.trails.iter().map(Trail::cost).sum();
        assert!(trails.contains(bill), "the bill of {bill} is not within {trails} of the trails");
        let ended = self.trails.iter().flat_map(Trail::attempts);
        let charges: Vec<_> = ended.map(|attempt| attempt.charge).collect();
        let count = |charge| small(charges.iter().filter(|other| **other == charge).count() as u64);

        let auditor = self.spending();
        auditor.refresh().await.unwrap();
        let spent = &auditor.spent()[0];
        let both = spent.settled.plus(spent.reserved).at_most_microusd;
        assert!((spent.settled.certain_microusd..=both).contains(&bill), "{bill}: {spent:?}");

        let mut observed = Observed {
            attempts: self.provider.attempts.load(Ordering::Relaxed),
            paid: small(ledger.charges(TAG) as u64),
            told,
            holds_response: matches!(self.asked, Asked::Holding(_)),
            journal: self.journal.record(),
            account: (spent.settled.at_most_microusd > 0, small(spent.reserved.attempts)),
            charges: (count(Charge::Charged), count(Charge::Maybe)),
            ..Observed::default()
        };
        if let Some(Running { quota, keep, .. }) = &self.running {
            if let Some(usage) = quota.usages().pop() {
                let day =
                    |entry: &&DimensionUsage| entry.dimension == QuotaDimension::RequestsPerDay;
                let day = usage.entries.iter().find(day).unwrap();
                observed.quota = (small(day.used), small(day.reserved));
            }
            let counts = keep.counts();
            observed.kept = (small(counts.detached as u64), small(counts.stored as u64));
        }
        observed
    }

    /// A layer over the account that outlives the process.
    fn spending(&self) -> SpendingLayer {
        SpendingLayer::new().clock(self.clock).store(self.store.clone())
    }
}

fn fault(answer: Answer) -> Fault {
    match answer {
        Answer::Overloaded => Fault::HighDemand,
        Answer::RateLimited => {
            // A hint is whole seconds, and may be a second short.
            let retry_after = 2 * WAIT - Duration::from_secs(1);
            Fault::RateLimitMinute { retry_after, limit: Limit::Requests }
        }
        Answer::BadRequest => Fault::BadRequest(BadRequest::Generic),
        Answer::Image => Fault::None,
        Answer::Refusal => Fault::Refused(Refusal::ImageSafety),
        Answer::Lost { is_charged: true } => Fault::ResetAfterGeneration,
        Answer::Lost { is_charged: false } => Fault::ResetAfterReceipt,
    }
}
