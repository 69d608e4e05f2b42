//! The worker: claims items, calls Gemini for them, and settles what became of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tower_gemini::catalog::{Catalog, Platform};
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::jittered_retry::RetryOverride;
use tower_gemini::trail::Step;
use tower_gemini::verdict::{Charge, Verdict};
use tower_gemini::{CallOptions, FinalImage, Trail};

use crate::decide::{Ended, Left, Next, next};
use crate::draw::{Draw, Drawn};
use crate::inputs::Inputs;
use crate::item::OF_ITEM;
use crate::job::{ItemState, JobOptions, Spent};
use crate::lane::{Lane, Situation, choose};
use crate::output::{self, Delivered, Record};
use crate::request::{Picture, single};
use crate::store::{Ask, Claimed, Holder, JobStore, Settlement, StoreError, StoredItem};
use crate::{random_name, unix_ms};

/// Runs the items of a store's jobs. Clones share their settings.
///
/// # Defaults
///
/// | setting | value | source |
/// | --- | --- | --- |
/// | `lease` | 30 s, renewed every third | a worker that is gone is noticed within a minute |
/// | `resume_within` | 9 min | `KeepPaid` stores responses for 10 minutes |
/// | `max_running` | 8 | each holds one response; jobs have limits of their own |
///
/// # Cancel safety
///
/// Dropping [`run`](Self::run) is like a crash: the items in flight are taken over by the next
/// worker.
#[derive(Debug, Clone)]
pub struct Worker<D> {
    store: JobStore,
    draw: D,
    inputs: Inputs,
    dir: PathBuf,
    name: String,
    lease: Duration,
    resume_within: Duration,
    max_running: usize,
    clock: Arc<dyn Clock>,
    off_peak_in: OffPeak,
    batch_poll: Duration,
    keep: Option<Duration>,
    catalog: Arc<Catalog>,
    platform: Platform,
    wake: Arc<Notify>,
    resting: Arc<Mutex<HashMap<String, i64>>>,
}

/// How long until the off-peak hours begin.
#[derive(Clone)]
struct OffPeak(Arc<dyn Fn() -> Option<Duration> + Send + Sync>);

impl std::fmt::Debug for OffPeak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OffPeak")
    }
}

impl<D: Draw> Worker<D> {
    /// A worker that draws with this and writes images below `dir`, a directory a job.
    ///
    /// # Errors
    ///
    /// No random numbers for its name.
    pub fn new(store: JobStore, draw: D, dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Ok(Self {
            store,
            draw,
            inputs: Inputs::new("."),
            dir: dir.into(),
            name: random_name()?,
            lease: Duration::from_secs(30),
            resume_within: Duration::from_secs(9 * 60),
            max_running: 8,
            clock: Arc::new(SystemClock),
            off_peak_in: OffPeak(Arc::new(|| None)),
            batch_poll: Duration::from_secs(60),
            keep: None,
            catalog: Arc::new(Catalog::builtin().clone()),
            platform: Platform::GeminiApi,
            wake: Arc::new(Notify::new()),
            resting: Arc::default(),
        })
    }

    /// Where input images come from. Default: files below the working directory, no URLs.
    #[must_use]
    pub fn inputs(mut self, inputs: Inputs) -> Self {
        self.inputs = inputs;
        self
    }

    /// How long a claim holds without a sign of life.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long after a worker's last sign of life its calls may be resent with their keys: shorter
    /// than what draws remembers keys. Later they are *unknown*.
    #[must_use]
    pub fn resume_within(mut self, time: Duration) -> Self {
        self.resume_within = time;
        self
    }

    /// How many items this worker has in flight at once, over all jobs.
    #[must_use]
    pub fn max_running(mut self, items: usize) -> Self {
        self.max_running = items.max(1);
        self
    }

    /// The source of wall time.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Says how long until the off-peak hours begin; `None` where they have, or are not known.
    #[must_use]
    pub fn off_peak_in(
        mut self,
        off_peak_in: impl Fn() -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        self.off_peak_in = OffPeak(Arc::new(off_peak_in));
        self
    }

    /// How often batches are asked how far they are. Default: a minute; Google tells by webhook
    /// too.
    #[must_use]
    pub fn batch_poll(mut self, every: Duration) -> Self {
        self.batch_poll = every;
        self
    }

    /// Removes jobs with their images so long after their end. Default: they stay.
    #[must_use]
    pub fn keep(mut self, time: Option<Duration>) -> Self {
        self.keep = time;
        self
    }

    /// The models and prices by which what came in batches is priced. Default: the built-in
    /// catalogue and the Gemini API's prices.
    #[must_use]
    pub fn prices(mut self, catalog: Arc<Catalog>, platform: Platform) -> Self {
        (self.catalog, self.platform) = (catalog, platform);
        self
    }

    /// Has batches looked after at once, as after a webhook of Google's.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn look_after_batches(&self) -> Result<(), StoreError> {
        self.store.check_batches_now().await?;
        self.wake();
        Ok(())
    }

    /// Wakes the worker, as after a submission in this process.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn now_ms(&self) -> i64 {
        unix_ms(self.clock.now())
    }

    /// Runs until nothing is left to do.
    ///
    /// # Errors
    ///
    /// The store failed, or the disk: what is in flight then is taken over by the next run. Another
    /// process works on the same SQLite file.
    pub async fn run_until_idle(&self) -> Result<(), StoreError> {
        let (_keep, never) = watch::channel(false);
        self.anew()?.work(never, true).await
    }

    /// Runs until `stop` is true; then nothing more is started, and what is in flight ends.
    ///
    /// # Errors
    ///
    /// As [`run_until_idle`](Self::run_until_idle).
    pub async fn run(&self, stop: watch::Receiver<bool>) -> Result<(), StoreError> {
        self.anew()?.work(stop, false).await
    }

    /// The same worker under another name: what an earlier run left is somebody else's, and is taken
    /// over.
    fn anew(&self) -> Result<Self, StoreError> {
        Ok(Self { name: random_name()?, ..self.clone() })
    }

    async fn work(
        &self,
        mut stop: watch::Receiver<bool>,
        until_idle: bool,
    ) -> Result<(), StoreError> {
        let _only = self.store.lock_for_worker()?;
        let mut running: JoinSet<Result<(), StoreError>> = JoinSet::new();
        // One at a time: a batch is large.
        let mut batches: JoinSet<Result<(), StoreError>> = JoinSet::new();
        // Where there is one worker, whatever runs at its start was left by another.
        let mut alone = !self.store.is_shared();
        let mut beat = tokio::time::interval(self.lease / 3);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks_after_batches = false;
        self.clear().await?;
        loop {
            let stopped = *stop.borrow();
            if looks_after_batches && batches.is_empty() && !stopped {
                looks_after_batches = false;
                let worker = self.clone();
                batches.spawn(async move {
                    while worker.batch_step().await? {}
                    Ok(())
                });
            }
            while !stopped && running.len() < self.max_running {
                let now_ms = self.now_ms();
                let Some(claimed) = self.next_item(now_ms, &mut alone).await? else { break };
                let worker = self.clone();
                running.spawn(async move { worker.carry_out(claimed).await });
            }
            if stopped && running.is_empty() && batches.is_empty() {
                return Ok(());
            }
            let wait = self.time_to_next(running.len()).await?;
            if until_idle
                && running.is_empty()
                && batches.is_empty()
                && self.store.is_idle().await?
            {
                return Ok(());
            }
            tokio::select! {
                Some(ended) = running.join_next() => match ended {
                    Ok(ended) => ended?,
                    Err(error) => return Err(StoreError::new(error)),
                },
                () = tokio::time::sleep(wait) => {}
                () = self.wake.notified() => looks_after_batches = true,
                _ = beat.tick() => {
                    self.store.beat(&self.name, self.lease_end(self.now_ms())).await?;
                    self.store.expire(self.now_ms()).await?;
                    self.clear().await?;
                    looks_after_batches = true;
                }
                Some(ended) = batches.join_next() => match ended {
                    Ok(ended) => ended?,
                    Err(error) => return Err(StoreError::new(error)),
                },
                Ok(()) = stop.changed() => {}
            }
        }
    }

    /// Removes what has been kept for long enough. What cannot be removed is tried again.
    async fn clear(&self) -> Result<(), StoreError> {
        let Some(keep) = self.keep else { return Ok(()) };
        let before = self.now_ms().saturating_sub(crate::millis(keep));
        for job in self.store.ended_before(before).await? {
            match output::delete_job(&self.store, &job, &self.dir).await {
                Ok(_) => tracing::info!(job, "an old job is removed with its images"),
                Err(error) => tracing::warn!(%error, "an old job stays"),
            }
        }
        Ok(())
    }

    fn lease_end(&self, now_ms: i64) -> i64 {
        now_ms.saturating_add(crate::millis(self.lease))
    }

    pub(crate) fn ask<'a>(&'a self, now_ms: i64, resting: &'a str) -> Ask<'a> {
        Ask { worker: &self.name, now_ms, lease_ms: self.lease_end(now_ms), resting }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn store(&self) -> &JobStore {
        &self.store
    }

    pub(crate) fn draw(&self) -> &D {
        &self.draw
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(crate) fn platform(&self) -> &Platform {
        &self.platform
    }

    pub(crate) fn batch_interval(&self) -> Duration {
        self.batch_poll
    }

    /// An item of a worker that is gone, or the next that waits.
    async fn next_item(&self, now_ms: i64, alone: &mut bool) -> Result<Option<Work>, StoreError> {
        let resting = self.resting(now_ms);
        let ask = self.ask(now_ms, &resting);
        if let Some(left) = self.store.take_over(&ask, *alone).await? {
            return Ok(Some(Work::Left(left)));
        }
        *alone = false;
        Ok(self.store.claim(&ask).await?.map(Work::New))
    }

    /// The models that no call of a job can be made to before a time that is still to come.
    fn resting(&self, now_ms: i64) -> String {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.retain(|_, until| *until > now_ms);
        let names: Vec<_> = resting.keys().map(String::as_str).collect();
        if names.is_empty() { String::new() } else { format!(",{},", names.join(",")) }
    }

    /// Until the next item is due, or somebody else may have submitted one.
    async fn time_to_next(&self, running: usize) -> Result<Duration, StoreError> {
        let now_ms = self.now_ms();
        let rests = {
            let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
            resting.values().min().copied()
        };
        let due = self.store.next_due().await?;
        let wait = |at: i64| Duration::from_millis(u64::try_from(at - now_ms).unwrap_or(0));
        let next = match due {
            Some(due) if due > now_ms => wait(due),
            _ => rests.map_or(POLL, wait),
        };
        // A process with nothing in flight may be told by nobody of what others submit.
        let longest = if running == 0 { POLL } else { self.lease / 3 };
        Ok(next.clamp(Duration::from_millis(20), longest))
    }

    async fn carry_out(&self, work: Work) -> Result<(), StoreError> {
        let (claimed, is_left) = match work {
            Work::New(claimed) => (claimed, false),
            Work::Left(claimed) => (claimed, true),
        };
        let item = &claimed.stored;
        if is_left {
            if let Some(record) = output::read_record(&self.dir, item) {
                return self.settle(item, done(item, &record)).await;
            }
            let heard_of = item_heard_of(item, self.lease);
            if self.now_ms() - heard_of > crate::millis(self.resume_within) {
                let why = "its worker ended while it was being drawn, too long ago to ask";
                return self.settle(item, self.lost(item, &claimed.options, why)).await;
            }
        } else {
            output::forget(&self.dir, item);
        }
        let settlement = match self.pictures(item).await {
            Ok(pictures) => self.call(&claimed, &pictures, is_left).await?,
            Err(why) if is_left => self.lost(item, &claimed.options, &why),
            Err(why) => failed(item, Spent::default(), 0, why),
        };
        self.settle(item, settlement).await
    }

    async fn settle(&self, item: &StoredItem, settlement: Settlement) -> Result<(), StoreError> {
        self.settle_as(Holder::Worker(&self.name), item, settlement).await
    }

    pub(crate) async fn settle_as(
        &self,
        holder: Holder<'_>,
        item: &StoredItem,
        settlement: Settlement,
    ) -> Result<(), StoreError> {
        let done = self.store.settle(holder, item, &settlement, self.now_ms()).await?;
        if !done {
            tracing::warn!(job = item.job, item = item.number, "another worker took it over");
        }
        Ok(())
    }

    /// The input images of an item.
    pub(crate) async fn pictures(&self, item: &StoredItem) -> Result<Vec<Picture>, String> {
        let mut pictures = Vec::new();
        let mut bytes = 0;
        for input in &item.item.inputs {
            let picture = match input.strip_prefix(OF_ITEM) {
                Some(name) => self.drawn_before(&item.job, name).await?,
                None => self.inputs.load(input).await?,
            };
            bytes += picture.bytes.len() as u64;
            if bytes > crate::inputs::MOST_BYTES {
                return Err("its input images are larger than a request may be".to_owned());
            }
            pictures.push(picture);
        }
        Ok(pictures)
    }

    /// What another item of the job drew.
    async fn drawn_before(&self, job: &str, name: &str) -> Result<Picture, String> {
        let found = self.store.result_of(job, crate::store::stem(name)).await;
        let record: Option<Record> = found
            .map_err(|error| error.to_string())?
            .and_then(|line| serde_json::from_str(&line).ok());
        let record = record.ok_or_else(|| format!("item `{name}` has no image"))?;
        let bytes = output::first_image(&self.dir, job, &record)
            .map_err(|error| format!("the image of item `{name}`: {error}"))?;
        Picture::new(bytes).ok_or_else(|| format!("item `{name}` has an image of an unknown type"))
    }

    /// Calls Gemini for an item, and writes what came.
    async fn call(
        &self,
        claimed: &Claimed,
        pictures: &[Picture],
        is_left: bool,
    ) -> Result<Settlement, StoreError> {
        let Claimed { stored: item, options } = claimed;
        let trail = Trail::new();
        let time = self.time_left(item, is_left);
        let request = self.request(item, pictures, &trail, time);
        let drawn = self.draw.draw(request).await;
        let seen = Seen::of(&trail, item.reserved_microusd, &drawn);
        let image = FinalImage::from_json(&drawn.body).ok().filter(|image| !image.bytes.is_empty());
        if let Some(image) = image {
            let degraded =
                drawn.served.iter().flat_map(|one| &one.given_up).map(ToString::to_string);
            let delivered = Delivered {
                spent: seen.spent,
                requests: seen.requests,
                degraded: degraded.collect(),
                trail: trail.clone(),
            };
            let record = write(&self.dir, item, image, delivered).await?;
            return Ok(done(item, &record));
        }
        let reason = reason_of(drawn.verdict.as_ref());
        let verdict = drawn.verdict.as_ref();
        Ok(self.after(
            item,
            options,
            &seen,
            Call { verdict, sent: seen.requests > 0, time },
            reason,
        ))
    }

    /// What becomes of an item after a call that brought no image.
    pub(crate) fn after(
        &self,
        item: &StoredItem,
        options: &JobOptions,
        seen: &Seen,
        call: Call<'_>,
        reason: String,
    ) -> Settlement {
        let ended = Ended { charge: seen.charge, sent: call.sent, verdict: call.verdict };
        let left = Left {
            failures: item.failures,
            max_failures: options.max_failures,
            unknown_resends: unknown_resends(item, options.unknown_resends, seen),
            backoff: options.backoff(),
            time: call.time,
        };
        let decided = next(&ended, &left, fastrand::f64());
        self.settlement(item, options, decided, seen, reason)
    }

    /// What becomes of an item of which nobody can say whether it was paid for: its whole
    /// reservation counts.
    pub(crate) fn lost(&self, item: &StoredItem, options: &JobOptions, why: &str) -> Settlement {
        let spent = Spent { at_least_microusd: 0, at_most_microusd: item.reserved_microusd };
        let seen = Seen { charge: Charge::Maybe, spent, requests: item.reserved_requests };
        let verdict = Verdict::interrupted();
        let call = Call { verdict: Some(&verdict), sent: true, time: self.time_left(item, false) };
        self.after(item, options, &seen, call, why.to_owned())
    }

    fn settlement(
        &self,
        item: &StoredItem,
        options: &JobOptions,
        decided: Next,
        seen: &Seen,
        reason: String,
    ) -> Settlement {
        let now_ms = self.now_ms();
        let mut settlement = failed(item, seen.spent, seen.requests, reason);
        match decided {
            Next::Unknown => settlement.state = ItemState::Unknown,
            Next::Failed(why) => {
                let said = settlement.reason.take().unwrap_or_default();
                settlement.reason = Some(format!("{why}: {said}"));
            }
            Next::Resend => {
                settlement.state = ItemState::Waiting;
                settlement.resends += 1;
            }
            Next::Again { after, counts } => {
                settlement.state = ItemState::Waiting;
                settlement.not_before_ms = now_ms.saturating_add(crate::millis(after));
                settlement.failures += u32::from(counts);
                if !counts {
                    let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
                    let key = format!("{} {}", item.job, item.model);
                    resting.insert(key, settlement.not_before_ms);
                }
                // The failure was free, so another lane may take it. What failed in a batch is not
                // put into one again: that may take another day.
                if item.item.lane.is_none() {
                    let again =
                        |lane: &Lane| !(counts && *lane == item.lane && *lane == Lane::Batch);
                    settlement.lane = choose(&Situation {
                        left: item.deadline_ms.map(|at| crate::until(now_ms, at)),
                        allowed: options.lanes.iter().copied().filter(again).collect(),
                        off_peak_in: (self.off_peak_in.0)(),
                    });
                    settlement.worst_microusd =
                        item.lane.worst_in(settlement.lane, item.worst_microusd);
                }
            }
        }
        if let Some(why) = cap_of_item(item, &settlement) {
            let said = settlement.reason.take().unwrap_or_default();
            settlement.state = ItemState::Failed;
            settlement.reason = Some(format!("{why}: {said}"));
        }
        settlement
    }

    /// How long until the item's deadline. What an earlier worker had sent is asked for even after
    /// it.
    pub(crate) fn time_left(&self, item: &StoredItem, is_left: bool) -> Option<Duration> {
        let left = crate::until(self.now_ms(), item.deadline_ms?);
        Some(if is_left { left.max(Duration::from_secs(60)) } else { left })
    }

    fn request(
        &self,
        item: &StoredItem,
        pictures: &[Picture],
        trail: &Trail,
        time: Option<Duration>,
    ) -> Request<Bytes> {
        let mut request = single(&item.item, &item.model, item.lane, pictures);
        let retry = RetryOverride::none().attempts(item.reserved_requests.max(1));
        let mut options = CallOptions::new().trail(trail.clone()).retry(retry);
        if let Some(time) = time {
            options = options.deadline(time);
        }
        request.extensions_mut().insert(options);
        request.extensions_mut().insert(crate::draw::OfJob(item.job.clone()));
        // Another key after each resend that was bought: the earlier one stands for what is lost.
        let key = format!("{}-{}-{}", item.job, item.number, item.resends);
        if let Ok(key) = HeaderValue::try_from(key) {
            request.headers_mut().insert(HeaderName::from_static("idempotency-key"), key);
        }
        request
    }
}

/// How often a worker with nothing to do looks for what others submitted.
const POLL: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Work {
    /// Claimed for the first time, or again after a settlement.
    New(Claimed),
    /// Another worker had it, and ended.
    Left(Claimed),
}

/// A call that brought no image, beside what its trail says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) verdict: Option<&'a Verdict>,
    /// Whether anything was sent that counts as a try.
    pub(crate) sent: bool,
    /// How long until the item's deadline.
    pub(crate) time: Option<Duration>,
}

/// What a call's trail says.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) charge: Charge,
    pub(crate) spent: Spent,
    pub(crate) requests: u32,
}

impl Seen {
    fn of(trail: &Trail, reserved_microusd: u64, drawn: &Drawn) -> Self {
        let mut cost = trail.cost();
        let mut charge = drawn.verdict.as_ref().map_or(Charge::Maybe, Verdict::charge);
        let attempts = trail.attempts();
        let surely_free = |charge: Charge| charge.is_surely_free();
        if let Some(worse) =
            attempts.iter().map(|attempt| attempt.charge).find(|charge| !surely_free(*charge))
            && surely_free(charge)
        {
            charge = worse;
        }
        for step in trail.steps() {
            if let Step::Replayed { cost: replayed, .. } = step {
                cost = [cost, replayed].into_iter().sum();
            }
        }
        // Nothing was sent now, and an earlier send may have been paid for.
        if !surely_free(charge) && cost.at_most_microusd == Some(0) {
            cost.at_most_microusd = None;
        }
        let spent = Spent::of(cost, reserved_microusd);
        Self { charge, spent, requests: u32::try_from(attempts.len()).unwrap_or(u32::MAX) }
    }
}

/// How many resends are left that may be paid for twice, within the item's own cap.
fn unknown_resends(item: &StoredItem, bought: u32, seen: &Seen) -> u32 {
    let spent = item.spent.at_most_microusd.saturating_add(seen.spent.at_most_microusd);
    match exceeds(item, spent.saturating_add(item.worst_microusd)) {
        true => 0,
        false => bought.saturating_sub(item.resends),
    }
}

/// Whether an item's own cap on money is below this.
fn exceeds(item: &StoredItem, microusd: u64) -> bool {
    #[allow(clippy::cast_precision_loss, reason = "compared with an amount in dollars")]
    let usd = microusd as f64 / 1e6;
    item.item.max_usd.is_some_and(|most| usd > most)
}

/// Why an item's own caps let no further call be made, where it waits for one.
fn cap_of_item(item: &StoredItem, settlement: &Settlement) -> Option<&'static str> {
    if settlement.state != ItemState::Waiting {
        return None;
    }
    let spent = item.spent.at_most_microusd.saturating_add(settlement.spent.at_most_microusd);
    if exceeds(item, spent.saturating_add(settlement.worst_microusd)) {
        return Some("its `max_usd` allows no further call");
    }
    let requests = item.requests.saturating_add(settlement.requests.into());
    let most = item.item.max_requests;
    most.is_some_and(|most| requests >= most.into()).then_some("its `max_requests` is used up")
}

/// The last sign of life of the worker that had it, in milliseconds since 1970.
fn item_heard_of(item: &StoredItem, lease: Duration) -> i64 {
    item.lease_ms.saturating_sub(crate::millis(lease)).max(item.started_ms.unwrap_or(0))
}

/// Why a call has no image, in words.
pub(crate) fn reason_of(verdict: Option<&Verdict>) -> String {
    let Some(verdict) = verdict else { return "no response".to_owned() };
    let outcome = verdict.outcome().to_string();
    match verdict.message().or(verdict.reason()) {
        Some(said) => format!("{outcome}: {said}"),
        None => outcome,
    }
}

pub(crate) fn failed(item: &StoredItem, spent: Spent, requests: u32, reason: String) -> Settlement {
    Settlement {
        state: ItemState::Failed,
        lane: item.lane,
        worst_microusd: item.worst_microusd,
        not_before_ms: 0,
        failures: item.failures,
        resends: item.resends,
        spent,
        requests,
        reason: Some(reason),
        result: None,
    }
}

pub(crate) fn done(item: &StoredItem, record: &Record) -> Settlement {
    let (at_least_microusd, at_most_microusd) = record.last_call;
    let spent = Spent { at_least_microusd, at_most_microusd };
    Settlement {
        state: ItemState::Done,
        reason: None,
        result: serde_json::to_string(record).ok(),
        ..failed(item, spent, record.requests, String::new())
    }
}

/// Writes on a thread that may block.
pub(crate) async fn write(
    dir: &Path,
    item: &StoredItem,
    image: FinalImage,
    delivered: Delivered,
) -> Result<Record, StoreError> {
    let (dir_of, stored) = (dir.to_owned(), item.clone());
    let write = move || output::write(&dir_of, &stored, &image, &delivered);
    let written = tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other);
    // The image is in the journal: the next worker gets it, once there is room.
    written.and_then(|written| written).map_err(|error| {
        StoreError::new(format_args!(
            "the image of item {} of job {} cannot be written below {}: {error}",
            item.number,
            item.job,
            dir.display()
        ))
    })
}
