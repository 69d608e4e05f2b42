//! The settings of a simulator.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::answer::{CREATED, ImageOptions};
use crate::fault::{BatchFault, Fault};
use crate::model::Price;
use crate::quota::Quota;
use crate::weather::{Latency, Weather};

/// Settings of a [`Sim`](crate::Sim). [`Sim::builder`](crate::Sim::builder) begins with these:
///
/// | setting | default |
/// | --- | --- |
/// | seed | 0 |
/// | scripts, weather | no faults |
/// | latency | tens of seconds, see [`Latency`] |
/// | quota | none |
/// | images | full size, see [`ImageOptions`] |
/// | chunks | 64 KiB, no delay, length not announced |
/// | server's own deadline | 600 s, the timeout of `generateContent` in Google's gRPC service config |
/// | request bodies | up to 100 MB (blog.google, January 2026) |
/// | keys | every key is accepted, and is a project of its own |
/// | requests of disconnected callers | are finished and charged |
/// | blocked prompts | cost their input |
/// | batches | pending for 37 s, then running for 53 s, see [`Batches`]; at most 100 at once |
/// | clock | starts at 20:00 UTC, noon Pacific in winter |
#[derive(Debug, Clone)]
pub struct Builder {
    pub(crate) seed: u64,
    pub(crate) scripts: Scripts,
    pub(crate) weather: Weather,
    pub(crate) latency: Latency,
    pub(crate) quota: Quota,
    pub(crate) quota_by_model: Vec<(String, Quota)>,
    pub(crate) quota_by_project: Vec<(String, Quota)>,
    pub(crate) images: ImageOptions,
    pub(crate) chunk: usize,
    pub(crate) chunk_delay: Duration,
    pub(crate) announce_length: bool,
    pub(crate) server_deadline: Duration,
    /// Later deadlines, by the time after the start.
    pub(crate) later_deadlines: Vec<(Duration, Duration)>,
    pub(crate) max_request_bytes: usize,
    pub(crate) accepted_keys: Option<HashSet<String>>,
    /// Since when.
    pub(crate) rejected_keys: HashMap<String, Duration>,
    pub(crate) projects: HashMap<String, String>,
    /// The successor of a model, and from when on after the start.
    pub(crate) retired: HashMap<String, (Duration, String)>,
    pub(crate) revived: HashSet<String>,
    pub(crate) prices: HashMap<String, Price>,
    pub(crate) abort_charges: bool,
    pub(crate) blocked_prompts_charge: bool,
    pub(crate) time_of_day: Duration,
    pub(crate) epoch: Option<Duration>,
    pub(crate) batches: Batches,
    pub(crate) batch_script: VecDeque<BatchFault>,
}

/// How long batches take, and how much is too much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches {
    /// From its creation until a batch runs. By default 37 s, as in the recorded operation of
    /// 2025-12-10 that `BATCH.md` shows; Google's goal is 24 hours for all of it.
    pub pending: Duration,
    /// From then until it ends, in which its lines are done evenly. By default 53 s, as there.
    pub running: Duration,
    /// Batches of a project that have not ended; a further one is answered 429. By default 100
    /// (ai.google.dev "Rate limits", 2026-09).
    pub concurrent: usize,
    /// Bytes of a request with inline requests; a longer one is answered 400. By default 20 MB
    /// (ai.google.dev "Batch API", 2026-09).
    pub inline_bytes: usize,
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            pending: Duration::from_secs(37),
            running: Duration::from_secs(53),
            concurrent: 100,
            inline_bytes: 20_000_000,
        }
    }
}

/// Faults to come, of any call and of calls with a tag.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scripts {
    pub(crate) common: VecDeque<Fault>,
    pub(crate) by_call: HashMap<String, VecDeque<Fault>>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            seed: 0,
            scripts: Scripts::default(),
            weather: Weather::calm(),
            latency: Latency::default(),
            quota: Quota::UNLIMITED,
            quota_by_model: Vec::new(),
            quota_by_project: Vec::new(),
            images: ImageOptions::default(),
            chunk: 64 * 1024,
            chunk_delay: Duration::ZERO,
            announce_length: false,
            server_deadline: Duration::from_secs(600),
            later_deadlines: Vec::new(),
            max_request_bytes: 100_000_000,
            accepted_keys: None,
            rejected_keys: HashMap::new(),
            projects: HashMap::new(),
            retired: HashMap::new(),
            revived: HashSet::new(),
            prices: HashMap::new(),
            abort_charges: true,
            blocked_prompts_charge: true,
            time_of_day: Duration::from_secs(20 * 3600),
            epoch: None,
            batches: Batches::default(),
            batch_script: VecDeque::new(),
        }
    }
}

impl Builder {
    /// The time since 1970, so long after the clock's start.
    pub(crate) fn unix(&self, at: Duration) -> Duration {
        self.epoch.unwrap_or(Duration::from_secs(CREATED) + self.time_of_day) + at
    }

    /// The same as RFC 3339, with nanoseconds as recorded responses have it.
    pub(crate) fn timestamp(&self, at: Duration) -> String {
        let seconds = i64::try_from(self.unix(at).as_secs()).unwrap_or(i64::MAX);
        let nanos = i32::try_from(self.unix(at).subsec_nanos()).unwrap_or_default();
        jiff::Timestamp::new(seconds, nanos).map(|at| format!("{at:.9}")).unwrap_or_default()
    }
}

impl Builder {
    setters! {
        /// Sets the seed of weather, latency and pictures. The same seed and the same requests in
        /// the same order give the same run.
        seed: u64,
        /// Sets what happens by chance.
        weather: Weather,
        /// Sets how long responses take.
        latency: Latency,
        /// Sets the limits of every model, for each project.
        quota: Quota,
        /// Sets which pictures are made.
        images: ImageOptions,
        /// Sets whether responses have a `content-length`; over HTTP they are chunked otherwise, as
        /// Google's are.
        announce_length: bool,
        /// Sets when the server itself gives up on a generation and answers 504.
        server_deadline: Duration,
        /// Sets the size of the largest request body; larger ones are answered 400.
        max_request_bytes: usize,
        /// Sets whether a request is finished and charged whose caller disconnected. Google does
        /// not document it; js-genai's documentation says that usage may still be charged.
        abort_charges: bool,
        /// Sets whether a blocked prompt costs its input tokens. Google does not document it for
        /// image models; `usageMetadata` counts them.
        blocked_prompts_charge: bool,
        /// Sets how long batches take, and their limits.
        batches: Batches,
    }

    /// Sets what happens to the first batches, one fault each, in order of creation. After that
    /// none has a fault. What happens to the requests about them is in [`script`](Self::script).
    ///
    /// ```
    /// use tower_gemini_sim::{BatchFault, Sim};
    /// let sim = Sim::builder().script_batches([BatchFault::Stuck]).build();
    /// # let _ = sim;
    /// ```
    #[must_use]
    pub fn script_batches(mut self, faults: impl IntoIterator<Item = BatchFault>) -> Self {
        self.batch_script = faults.into_iter().collect();
        self
    }

    /// Sets the time since 1970 at which the clock starts, which times in responses and webhooks
    /// show: 2026-10-01 at the hour of [`starts_at_utc`](Self::starts_at_utc) by default. The
    /// listener of a webhook refuses one that is older than five minutes by its own clock.
    #[must_use]
    pub fn epoch(mut self, since_1970: Duration) -> Self {
        self.epoch = Some(since_1970);
        self
    }

    /// Sets what happens to the first requests, one fault each, in order of arrival. After that the
    /// weather decides.
    #[must_use]
    pub fn script(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.scripts.common = faults.into_iter().collect();
        self
    }

    /// Sets what happens to the first requests of the call with this `x-sim-call` tag, one fault
    /// each, in order of arrival: calls that run in parallel have scripts of their own. After that
    /// the common script decides, then the weather.
    ///
    /// ```
    /// use tower_gemini_sim::{Fault, Sim};
    /// let sim = Sim::builder()
    ///     .script_of("cat", [Fault::HighDemand])
    ///     .script_of("dog", [Fault::NoImage])
    ///     .build();
    /// # let _ = sim;
    /// ```
    #[must_use]
    pub fn script_of(
        mut self,
        call: impl Into<String>,
        faults: impl IntoIterator<Item = Fault>,
    ) -> Self {
        self.scripts.by_call.insert(call.into(), faults.into_iter().collect());
        self
    }

    /// Sets weather and limits of a storm for demonstrations, compressed in time so that 120 calls
    /// show all of it in one or two minutes. A client that waits for hints and moves to another
    /// model when one closes loses almost nothing in it; a client that resends blindly loses a
    /// third.
    ///
    /// | what happens | parameters | how long it lasts |
    /// | --- | --- | --- |
    /// | minute's limit, 429 with a true hint | 90 requests a minute for each model of a project | until the window of 60 s opens |
    /// | day's limit, 429 | 120 requests left today for `gemini-3-pro-image` | until midnight Pacific |
    /// | overload, 503 | each model on its own, up for 60 s on average; fails 5 % of requests at 1K, 30 % at 2K, 80 % at 4K | 30 s on average |
    /// | refused account, 403 | each project on its own, up for 2 hours on average | 10 minutes on average |
    /// | no capacity, 503 with a hint of 9 s | 3 % | one request |
    /// | 500 | 4 % | one request |
    /// | 502 of the front end | 2 % | one request |
    /// | refusal after generation, charged | 1 % | one request |
    /// | reset before, and after generation | 0.5 % each | one request |
    /// | drafts before the final image | 15 % | one request |
    ///
    /// Sources: that minute and day belong to a project and a model, and that failed requests count
    /// (ai.google.dev "Rate limits", 2026-09); the shares by size (APIYI, post-mortem of the outage
    /// of 2026-01-21: 1K ~95 %, 2K ~70 %, 4K below 20 % delivered); the length of outages is that
    /// of users' reports (see [`Outages`](crate::Outages)), a hundred times shorter; 429s are by
    /// far the most frequent failure, then 503 (operators' error guide for Nano Banana Pro, 2026-02).
    /// The other numbers are chosen for the demonstration.
    ///
    /// ```
    /// use tower_gemini_sim::Sim;
    /// let sim = Sim::builder().storm().seed(3).build();
    /// # let _ = sim;
    /// ```
    #[must_use]
    pub fn storm(self) -> Self {
        let minute = Quota { rpm: Some(90), ..Quota::UNLIMITED };
        self.weather(Weather::storm())
            .quota(minute)
            .quota_of("gemini-3-pro-image", Quota { rpd: Some(120), ..minute })
    }

    /// Sets the limits of one model, for each project.
    #[must_use]
    pub fn quota_of(mut self, model: impl Into<String>, quota: Quota) -> Self {
        self.quota_by_model.push((model.into(), quota));
        self
    }

    /// Sets the limits of each model for one project.
    #[must_use]
    pub fn quota_of_project(mut self, project: impl Into<String>, quota: Quota) -> Self {
        self.quota_by_project.push((project.into(), quota));
        self
    }

    /// Makes small pictures and signatures, so that answers have a few kilobytes. Keeps the other
    /// image options.
    #[must_use]
    pub fn tiny_images(mut self, tiny: bool) -> Self {
        self.images.tiny = tiny;
        self.images.variants = if tiny { 64 } else { ImageOptions::default().variants };
        self
    }

    /// Sets the bytes in a chunk of a body, and the pause before each.
    #[must_use]
    pub fn chunks(mut self, bytes: usize, delay: Duration) -> Self {
        self.chunk = bytes;
        self.chunk_delay = delay;
        self
    }

    /// Accepts these keys only.
    #[must_use]
    pub fn keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.accepted_keys = Some(keys.into_iter().map(Into::into).collect());
        self
    }

    /// Rejects this key.
    #[must_use]
    pub fn reject_key(self, key: impl Into<String>) -> Self {
        self.reject_key_from(Duration::ZERO, key)
    }

    /// Rejects this key so long after the start, as when Google closes a project.
    #[must_use]
    pub fn reject_key_from(mut self, at: Duration, key: impl Into<String>) -> Self {
        self.rejected_keys.insert(key.into(), at);
        self
    }

    /// Sets the project that a key belongs to: keys of one project share its limits.
    #[must_use]
    pub fn project(mut self, key: impl Into<String>, project: impl Into<String>) -> Self {
        self.projects.insert(key.into(), project.into());
        self
    }

    /// Answers 404 for this model, naming a successor.
    #[must_use]
    pub fn retire(self, model: impl Into<String>, successor: impl Into<String>) -> Self {
        self.retire_from(Duration::ZERO, model, successor)
    }

    /// Retires a model so long after the start.
    #[must_use]
    pub fn retire_from(
        mut self,
        at: Duration,
        model: impl Into<String>,
        successor: impl Into<String>,
    ) -> Self {
        self.retired.insert(model.into(), (at, successor.into()));
        self
    }

    /// Changes the server's own deadline so long after the start, as Google did within the outage of
    /// 2026-01-21.
    #[must_use]
    pub fn server_deadline_from(mut self, at: Duration, deadline: Duration) -> Self {
        self.later_deadlines.push((at, deadline));
        self.later_deadlines.sort_by_key(|(at, _)| *at);
        self
    }

    /// Lets a retired model answer, such as a preview id or Imagen.
    #[must_use]
    pub fn revive(mut self, model: impl Into<String>) -> Self {
        self.revived.insert(model.into());
        self
    }

    /// Sets what a model charges.
    #[must_use]
    pub fn price(mut self, model: impl Into<String>, price: Price) -> Self {
        self.prices.insert(model.into(), price);
        self
    }

    /// Sets where the simulator's UTC clock starts. Weather by the hour and the day's limits depend
    /// on it.
    #[must_use]
    pub fn starts_at_utc(mut self, time_of_day: Duration) -> Self {
        self.time_of_day = Duration::from_secs(time_of_day.as_secs() % 86_400);
        self
    }
}
