//! What an error body states, collected in one pass over its JSON whatever it is wrapped in.
//!
//! Wrappers differ without end (arrays, relays, objects in `message`), the members that matter do
//! not. So the reader walks any JSON and picks members by name ([`step`] is the table). For the few
//! whose meaning depends on depth (`code`, `status`, `message`) the innermost statement wins,
//! because wrappers put theirs outside.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::span::span;
use super::text::{http_of_rpc, http_of_word};
use crate::verdict::QuotaDetail;

/// What an error body states.
#[derive(Debug, Default, Clone)]
pub(super) struct Facts {
    /// The status of the innermost error as HTTP knows it, from its number.
    pub(super) code: Option<u16>,
    /// The same, from its word (`RESOURCE_EXHAUSTED`).
    pub(super) status: Option<u16>,
    /// A machine word of the innermost error that is no canonical status
    /// (`channel:image_generation_failed`, `insufficient_quota`).
    pub(super) word: Option<String>,
    /// `type` of an OpenAI-style error.
    pub(super) kind: Option<String>,
    /// The innermost message.
    pub(super) message: Option<String>,
    /// `DebugInfo.detail`, or a field violation's description: the truth where the message is a
    /// placeholder.
    pub(super) debug: Option<String>,
    /// `ErrorInfo.reason`.
    pub(super) reason: Option<String>,
    /// `errors[].reason` of Google's older format.
    pub(super) legacy_reason: Option<String>,
    pub(super) retry_delay: Option<Duration>,
    pub(super) reset_delay: Option<Duration>,
    /// `retry_after` and its relatives, of whoever answered.
    pub(super) retry_after: Option<Duration>,
    /// The quota that decides, and its window.
    pub(super) quota: QuotaDetail,
    pub(super) window: QuotaWindow,
    /// Which windows the violated quotas belong to.
    pub(super) day: bool,
    pub(super) minute: bool,
    /// Violations met, those with a stated limit, those of the free tier.
    pub(super) violations: u32,
    pub(super) valued: u32,
    pub(super) free_tier: u32,
    /// A quota whose limit is zero.
    pub(super) zero: bool,
    /// The model that the refusal is about.
    pub(super) model: Option<String>,
    /// A proxy says that its shared pool upstream is used up.
    pub(super) shared_pool: bool,
    /// A string that may hold another response (`metadata.raw`, `upstreamResponse`).
    pub(super) raw: Option<String>,
    /// An error object was met.
    pub(super) has_error: bool,
    /// What a model answered was met (`candidates`, `promptFeedback` …).
    pub(super) has_answer: bool,
    /// It was a web page.
    pub(super) is_page: bool,
    /// The error came with the canonical status word that Google's own errors carry.
    pub(super) is_google: bool,
    /// How deep the code, status, word and message were found.
    pub(super) depths: [u8; 4],
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum QuotaWindow {
    #[default]
    Unknown,
    Minute,
    Day,
}

/// Returns whether a quota says which it is.
pub(super) fn names_quota(quota: &QuotaDetail) -> bool {
    quota.id.is_some() || quota.metric.is_some()
}

/// The window of a quota by its id or metric, as substrings: ids come with suffixes (`-FreeTier`,
/// `-PaidTier2`) without end.
fn window_of(name: &str) -> QuotaWindow {
    let name = name.as_bytes();
    let starts = |text: &[u8], word: &[u8]| {
        text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    let mut window = QuotaWindow::Unknown;
    // `PerDay`, `per_day`, `per-day`, `PerMinute`, `per_minute`, `per-min`: a "per" and a unit.
    for at in memchr::memchr2_iter(b'P', b'p', name) {
        let Some(rest) =
            name.get(at..).filter(|rest| starts(rest, b"per")).and_then(|rest| rest.get(3..))
        else {
            continue;
        };
        let unit = rest.strip_prefix(b"_").or_else(|| rest.strip_prefix(b"-")).unwrap_or(rest);
        if starts(unit, b"day") {
            return QuotaWindow::Day;
        }
        if starts(unit, b"min") {
            window = QuotaWindow::Minute;
        }
    }
    // `generated_images_paid_tier_1_per_model` counts images of a *day* (its unit is `/d`), though
    // its name has no "day".
    let has = |word: &[u8]| memchr::memmem::find(name, word).is_some();
    if window == QuotaWindow::Unknown && (has(b"aily") || has(b"generated_images_")) {
        QuotaWindow::Day
    } else {
        window
    }
}

/// Returns whether a metric counts input tokens: those windows are minutes unless an id says
/// otherwise.
fn counts_tokens(metric: &str) -> bool {
    metric.contains("input_token")
        || metric.contains("InputToken")
        || metric.contains("token_count")
}

impl Facts {
    /// Reads the JSON at the start of the text, and says how many bytes it took.
    pub(super) fn read(json: &str) -> Result<(Self, usize), serde_json::Error> {
        // A stream of one: it stops after the first value, where more text may follow.
        let mut values = serde_json::Deserializer::from_str(json).into_iter::<Self>();
        let facts = values.next().transpose()?.unwrap_or_default();
        Ok((facts, values.byte_offset()))
    }

    /// Returns whether anything here says what went wrong.
    pub(super) fn is_telling(&self) -> bool {
        self.has_answer || self.states_error()
    }

    pub(super) fn states_error(&self) -> bool {
        self.has_error
            || self.code.is_some()
            || self.status.is_some()
            || self.reason.is_some()
            || self.violations > 0
            || self.retry_delay.is_some()
    }

    /// Takes over what an inner response (one wrapped as text) states: it is more specific.
    pub(super) fn absorb(&mut self, inner: Self) {
        if inner.states_error() && (inner.code.is_some() || inner.status.is_some()) {
            self.code = inner.code;
            self.status = inner.status;
            self.is_google = inner.is_google;
        }
        // A wrapper's word says nothing once the cause is known ("http_error", "api_error").
        if inner.has_error {
            self.word = inner.word;
            self.kind = inner.kind;
        }
        for (slot, inner) in [
            (&mut self.message, inner.message),
            (&mut self.debug, inner.debug),
            (&mut self.reason, inner.reason),
            (&mut self.legacy_reason, inner.legacy_reason),
            (&mut self.model, inner.model),
        ] {
            *slot = inner.or(slot.take());
        }
        self.retry_delay = inner.retry_delay.or(self.retry_delay);
        self.reset_delay = inner.reset_delay.or(self.reset_delay);
        self.retry_after = inner.retry_after.or(self.retry_after);
        if names_quota(&inner.quota) {
            self.quota = inner.quota;
            self.window = inner.window;
        }
        self.day |= inner.day;
        self.minute |= inner.minute;
        self.violations += inner.violations;
        self.valued += inner.valued;
        self.free_tier += inner.free_tier;
        self.zero |= inner.zero;
        self.shared_pool |= inner.shared_pool;
        self.has_error |= inner.has_error;
        self.has_answer |= inner.has_answer;
        self.is_page |= inner.is_page;
    }

    fn set_code(&mut self, code: Option<u16>, depth: u8) {
        set_deepest(&mut self.code, &mut self.depths[0], code, depth);
    }

    fn set_word(&mut self, word: Cow<'_, str>, depth: u8, is_status: bool) {
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            if let Ok(number) = word.parse() {
                return self.set_code(status_number(number), depth);
            }
        }
        // Google's own words are in capitals; a relay's `"status": "unavailable"` is its own.
        let is_canonical = word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        if set_deepest(&mut self.status, &mut self.depths[1], http_of_word(&word), depth) {
            self.is_google |= is_status && is_canonical;
        }
        if !is_status {
            set_deepest(&mut self.word, &mut self.depths[2], non_empty(word), depth);
        }
    }

    fn set_message(&mut self, message: Cow<'_, str>, depth: u8) {
        set_deepest(&mut self.message, &mut self.depths[3], non_empty(message), depth);
    }

    /// One more violated quota: the decisive one (the longest window) is kept.
    fn add_quota(&mut self, quota: QuotaDetail) {
        let id = quota.id.as_deref().unwrap_or_default();
        let metric = quota.metric.as_deref().unwrap_or_default();
        // The id is the limit, the metric only what it counts: the metric is asked where the id is
        // silent.
        let window = match (window_of(id), window_of(metric)) {
            (QuotaWindow::Unknown, QuotaWindow::Unknown)
                if counts_tokens(id) || counts_tokens(metric) =>
            {
                QuotaWindow::Minute
            }
            (QuotaWindow::Unknown, window) | (window, _) => window,
        };
        self.violations += 1;
        self.valued += u32::from(quota.value.is_some());
        self.free_tier += u32::from(id.contains("FreeTier") || metric.contains("free_tier"));
        self.zero |= quota.value == Some(0);
        self.day |= window == QuotaWindow::Day;
        self.minute |= window == QuotaWindow::Minute;
        if !names_quota(&self.quota) || window > self.window {
            self.quota = quota;
            self.window = window;
        }
    }

    /// Takes the value of a member that means something.
    fn take(&mut self, slot: Slot, leaf: Leaf<'_>, depth: u8, quota: &mut QuotaDetail) {
        match slot {
            Slot::Reason => self.reason = leaf.text().or(self.reason.take()),
            Slot::Debug => keep(&mut self.debug, leaf.text()),
            Slot::LegacyReason => keep(&mut self.legacy_reason, leaf.text()),
            Slot::LegacyMessage => keep(&mut self.message, leaf.text()),
            Slot::Kind => self.kind = leaf.text(),
            Slot::RetryDelay => keep(&mut self.retry_delay, leaf.delay()),
            Slot::ResetDelay => {
                keep(&mut self.reset_delay, leaf.text().and_then(|text| span(text.as_bytes())));
            }
            Slot::RetryAfter(unit) => keep(&mut self.retry_after, leaf.after(unit)),
            Slot::SharedPool => {
                self.shared_pool |= leaf.text().is_some_and(|source| source.contains("shared"));
            }
            Slot::Model => keep(&mut self.model, leaf.text()),
            Slot::QuotaId => quota.id = leaf.text(),
            Slot::QuotaMetric => quota.metric = leaf.text(),
            Slot::QuotaValue => quota.value = leaf.number(),
            Slot::QuotaDimensions => {
                quota.dimensions = leaf.pairs();
                let mut dimensions = quota.dimensions.iter();
                let model = dimensions.find(|(name, _)| name == "model");
                keep(&mut self.model, model.map(|(_, model)| model.clone()));
            }
            Slot::Code => match leaf {
                Leaf::Text(word) => self.set_word(word, depth + 1, false),
                leaf => self.set_code(leaf.number().and_then(status_number), depth + 1),
            },
            Slot::Status => match leaf {
                Leaf::Text(word) => self.set_word(word, depth + 1, true),
                leaf if self.code.is_none() => {
                    self.set_code(leaf.number().and_then(status_number), depth);
                }
                _ => {}
            },
            // Beats the code beside it, and loses to the upstream's own body.
            Slot::UpstreamStatus => match leaf {
                Leaf::Text(_) => {}
                leaf => self.set_code(leaf.number().and_then(status_number), depth + 2),
            },
            Slot::Answer => self.has_answer = true,
            Slot::Object => {
                self.has_answer |= leaf.text().is_some_and(|kind| kind.starts_with("interaction"));
            }
        }
    }
}

/// Sets what an inner statement says, unless a deeper one was there first. Returns whether it did.
fn set_deepest<T>(slot: &mut Option<T>, at: &mut u8, value: Option<T>, depth: u8) -> bool {
    let counts = value.is_some() && (slot.is_none() || depth >= *at);
    if counts {
        *slot = value;
        *at = depth;
    }
    counts
}

fn keep<T>(slot: &mut Option<T>, found: Option<T>) {
    if slot.is_none() {
        *slot = found;
    }
}

fn non_empty(text: Cow<'_, str>) -> Option<String> {
    (!text.is_empty()).then(|| text.into_owned())
}

/// A status number of any kind: HTTP's own, or a canonical code's below 17.
fn status_number(number: u64) -> Option<u16> {
    http_of_rpc(number)
        .or_else(|| u16::try_from(number).ok().filter(|code| (100..=999).contains(code)))
}

/// Where the walk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// Anywhere that has no meaning of its own; the outermost value too.
    Root,
    /// An error object, or a string in its place.
    Error,
    /// `message`: a string, or an object in its place.
    Message,
    /// A string or object that is another response.
    Raw,
    /// `details` and its members; `violations` and its.
    Details,
    Metadata,
    Violations,
    /// `fieldViolations`.
    Fields,
    /// `errors[]`.
    Legacy,
    /// `param`: another response, or a name that says nothing here.
    Param,
    /// The value of a member that is taken as it is.
    Leaf,
}

/// A member whose value is taken.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Answer,
    Code,
    Debug,
    Kind,
    LegacyMessage,
    LegacyReason,
    Model,
    Object,
    QuotaDimensions,
    QuotaId,
    QuotaMetric,
    QuotaValue,
    Reason,
    ResetDelay,
    /// A number of milliseconds, or of seconds.
    RetryAfter(Duration),
    RetryDelay,
    SharedPool,
    Status,
    UpstreamStatus,
}

/// What is done with a member.
enum Step {
    Skip,
    Take(Slot),
    /// Walks on there, this much deeper.
    Walk(Position, u8),
}

/// Returns what the member `key` at `position` is.
fn step(position: Position, key: &str) -> Step {
    use Position as P;
    use Slot as S;
    use Step::{Skip, Take, Walk};
    match (position, key) {
        (P::Details, "reason") => Take(S::Reason),
        (P::Details, "detail") | (P::Violations | P::Fields, "description") => Take(S::Debug),
        (P::Details, "retryDelay" | "retry_delay") => Take(S::RetryDelay),
        (P::Details, "violations") => Walk(P::Violations, 0),
        (P::Details, "fieldViolations" | "field_violations") => Walk(P::Fields, 0),
        (P::Details, "metadata") => Walk(P::Metadata, 0),
        (P::Details, "error") => Walk(P::Error, 1),

        (P::Violations, "quotaId" | "quota_id") => Take(S::QuotaId),
        (P::Violations, "quotaMetric" | "quota_metric") => Take(S::QuotaMetric),
        (P::Violations, "quotaValue" | "quota_value") => Take(S::QuotaValue),
        (P::Violations, "quotaDimensions" | "quota_dimensions") => Take(S::QuotaDimensions),

        (P::Metadata, "quota_limit") => Take(S::QuotaId),
        (P::Metadata, "quota_metric") => Take(S::QuotaMetric),
        (P::Metadata, "quota_limit_value") => Take(S::QuotaValue),
        (P::Metadata, "model") => Take(S::Model),
        (P::Metadata, "quotaResetDelay") => Take(S::ResetDelay),
        (P::Metadata, "limit_source") => Take(S::SharedPool),
        (P::Metadata, "raw") => Walk(P::Raw, 1),
        // The last provider's code says nothing of the cause that came first ("404" after a 429).
        (P::Metadata | P::Error, "previous_errors") => Walk(P::Error, 1),
        (P::Details | P::Violations | P::Metadata | P::Fields, _) => Skip,

        (P::Legacy, "reason") => Take(S::LegacyReason),
        (P::Legacy, "message") => Take(S::LegacyMessage),

        // Error objects, their wrappers, and whatever else: one set of names.
        (
            _,
            "error" | "upstreamError" | "upstream_error" | "innererror" | "originalError" | "cause",
        ) => Walk(P::Error, 1),
        // FastAPI and friends put their text (or a whole error) into `detail`.
        (
            _,
            "message" | "msg" | "error_message" | "errorMessage" | "error_description" | "detail",
        ) => Walk(P::Message, 1),
        (_, "code" | "statusCode" | "status_code" | "error_code") => Take(S::Code),
        (_, "status") => Take(S::Status),
        (_, "upstreamStatus" | "upstream_status" | "upstream_status_code") => {
            Take(S::UpstreamStatus)
        }
        (_, "upstreamResponse" | "upstream_response" | "response" | "original_response")
        | (_, "body" | "raw" | "data" | "result") => Walk(P::Raw, 1),
        (_, "retry_after" | "retryAfter" | "retry_after_seconds" | "retryAfterSeconds") => {
            Take(S::RetryAfter(Duration::from_secs(1)))
        }
        (_, "retry_after_ms" | "retryAfterMs") => Take(S::RetryAfter(Duration::from_millis(1))),
        (P::Error, "type") => Take(S::Kind),
        // An interaction, or an event of one.
        (_, "object" | "event_type") => Take(S::Object),
        // Vercel's gateway puts the upstream's error there; elsewhere it is a field's name.
        (P::Error, "param") => Walk(P::Param, 1),
        (_, "details") => Walk(P::Details, 1),
        (_, "errors") => Walk(P::Legacy, 0),
        (P::Error, "metadata") => Walk(P::Metadata, 1),
        (_, "candidates" | "promptFeedback" | "prompt_feedback" | "choices" | "predictions")
        | (_, "finishReason") => Take(S::Answer),
        // The members of a detail where the list itself was torn out of its error (an array of
        // details, or one).
        (P::Root | P::Raw, "reason") => Take(S::Reason),
        (_, "metadata") => Walk(P::Metadata, 0),
        (_, "violations") => Walk(P::Violations, 0),
        (_, "retryDelay") => Take(S::RetryDelay),
        _ => Skip,
    }
}

/// The value of a member.
enum Leaf<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    Fraction(f64),
    Object(Vec<(String, Leaf<'a>)>),
    Nothing,
}

/// A quota has two or three dimensions (model, location, base model); more than this is no
/// statement of Google's.
const MAX_PAIRS: usize = 8;

impl Leaf<'_> {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => non_empty(text),
            _ => None,
        }
    }

    /// A whole number, as a number or as the string that protobuf's JSON makes of 64-bit integers.
    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// `"34.07s"`, or `{"seconds": 34, "nanos": 74824224}` as re-serialising gateways spell it.
    fn delay(&self) -> Option<Duration> {
        match self {
            Self::Text(text) => span(text.as_bytes()),
            Self::Number(seconds) => Some(Duration::from_secs(*seconds)),
            Self::Fraction(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
            Self::Object(members) => {
                let number = |name: &str| {
                    members.iter().find(|(key, _)| key == name).and_then(|(_, leaf)| leaf.number())
                };
                let nanos = number("nanos").and_then(|nanos| u32::try_from(nanos).ok());
                let nanos = nanos.filter(|&nanos| nanos < 1_000_000_000).unwrap_or(0);
                number("seconds").map(|seconds| Duration::new(seconds, nanos))
            }
            Self::Nothing => None,
        }
    }

    /// A wait as `60`, `"60"` or `"60s"`; a number without a unit counts in `unit`.
    fn after(&self, unit: Duration) -> Option<Duration> {
        match self {
            Self::Text(text) => {
                let count: Option<f64> = text.trim().parse().ok();
                count.map_or_else(
                    || span(text.as_bytes()),
                    |count| Duration::try_from_secs_f64(count * unit.as_secs_f64()).ok(),
                )
            }
            Self::Number(count) => unit.checked_mul(u32::try_from(*count).ok()?),
            Self::Fraction(count) => Duration::try_from_secs_f64(count * unit.as_secs_f64()).ok(),
            Self::Object(_) | Self::Nothing => None,
        }
    }

    fn pairs(self) -> Vec<(String, String)> {
        let Self::Object(members) = self else { return Vec::new() };
        members.into_iter().filter_map(|(key, leaf)| Some((key, leaf.text()?))).collect()
    }
}

impl<'de> serde::Deserialize<'de> for Facts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut facts = Self::default();
        Walk { facts: &mut facts, position: Position::Root, depth: 0 }.deserialize(deserializer)?;
        Ok(facts)
    }
}

/// A member's name, borrowed where it holds no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

struct Walk<'f> {
    facts: &'f mut Facts,
    position: Position,
    depth: u8,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Leaf<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Leaf<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Walk<'_> {
    fn text<'de>(self, text: Cow<'de, str>) -> Leaf<'de> {
        let Self { facts, position, depth } = self;
        match position {
            Position::Leaf => return Leaf::Text(text),
            Position::Error => {
                facts.has_error |= !text.is_empty();
                // OAuth's `"error": "invalid_grant"` is a machine word.
                if !text.contains(char::is_whitespace) {
                    facts.set_word(text.clone(), depth, false);
                }
                facts.set_message(text, depth);
            }
            Position::Message | Position::Legacy => facts.set_message(text, depth),
            Position::Raw | Position::Root => keep(&mut facts.raw, non_empty(text)),
            // `{"error": "Failed", "details": "[403 Forbidden] …"}`: web apps put the cause into
            // `details`, as text or as JSON in it.
            Position::Details if facts.raw.is_none() && text.contains(['{', '[']) => {
                facts.raw = Some(text.into_owned());
            }
            Position::Details => keep(&mut facts.debug, non_empty(text)),
            Position::Metadata | Position::Violations | Position::Fields | Position::Param => {}
        }
        Leaf::Nothing
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Leaf<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Leaf<'de>, E> {
        Ok(Leaf::Nothing)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Leaf<'de>, E> {
        Ok(Leaf::Nothing)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Leaf<'de>, E> {
        Ok(Leaf::Nothing)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Leaf<'de>, E> {
        Ok(Leaf::Number(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Leaf<'de>, E> {
        // Python's json writes 429.0 where a float was stored; no status or limit has a fraction.
        let is_whole = number.fract() == 0.0 && (0.0..1e15).contains(&number);
        Ok(if is_whole { Leaf::Number(number as u64) } else { Leaf::Fraction(number) })
    }

    fn visit_str<E>(self, text: &str) -> Result<Leaf<'de>, E> {
        Ok(self.text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Leaf<'de>, E> {
        Ok(self.text(Cow::Borrowed(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Leaf<'de>, A::Error> {
        let Self { facts, position, depth } = self;
        if position == Position::Leaf {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
        } else {
            while seq.next_element_seed(Walk { facts: &mut *facts, position, depth })?.is_some() {}
        }
        Ok(Leaf::Nothing)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Leaf<'de>, A::Error> {
        let Self { facts, position, depth } = self;
        let mut members = Vec::new();
        let mut quota = QuotaDetail::default();
        facts.has_error |= position == Position::Error;
        while let Some(Key(key)) = map.next_key()? {
            if position == Position::Leaf {
                let leaf = map.next_value_seed(Walk { facts: &mut *facts, position, depth })?;
                if members.len() < MAX_PAIRS {
                    members.push((key.into_owned(), leaf));
                }
                continue;
            }
            // Keys with a blank or NBSP in front were recorded (" @type").
            let is_plain = matches!(key.as_bytes(), [b'!'..=b'~'] | [b'!'..=b'~', .., b'!'..=b'~']);
            match step(position, if is_plain { &key } else { key.trim() }) {
                Step::Skip => drop(map.next_value::<IgnoredAny>()?),
                Step::Take(Slot::Answer) => {
                    facts.has_answer = true;
                    map.next_value::<IgnoredAny>()?;
                }
                Step::Take(slot) => {
                    let position = Position::Leaf;
                    let leaf = map.next_value_seed(Walk { facts: &mut *facts, position, depth })?;
                    facts.take(slot, leaf, depth, &mut quota);
                }
                Step::Walk(position, by) => {
                    let depth = depth.saturating_add(by);
                    map.next_value_seed(Walk { facts: &mut *facts, position, depth })?;
                }
            }
        }
        let is_stated = names_quota(&quota) || quota.value.is_some();
        if position == Position::Violations || (position == Position::Metadata && is_stated) {
            facts.add_quota(quota);
        }
        Ok(if position == Position::Leaf { Leaf::Object(members) } else { Leaf::Nothing })
    }
}
