//! What an error body states, collected in one pass over its JSON whatever it is wrapped in.
//!
//! Wrappers differ without end (arrays, relays, objects in `message`), the members that matter do
//! not. So the reader walks any JSON and picks members by name; for the few whose meaning depends
//! on depth (`code`, `status`, `message`) the innermost statement wins, because wrappers put theirs
//! outside.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::span::span;
use super::text::{http_of_rpc, http_of_word};
use crate::verdict::QuotaDetail;

/// What an error body states.
#[derive(Debug, Default, Clone)]
pub(super) struct Facts<'a> {
    /// The status of the innermost error as HTTP knows it, from its number.
    pub(super) code: Option<u16>,
    /// The same, from its word (`RESOURCE_EXHAUSTED`).
    pub(super) status: Option<u16>,
    /// A machine word of the innermost error that is no canonical status
    /// (`channel:image_generation_failed`, `insufficient_quota`).
    pub(super) word: Option<Cow<'a, str>>,
    /// `type` of an OpenAI-style error.
    pub(super) kind: Option<Cow<'a, str>>,
    /// The innermost message.
    pub(super) message: Option<Cow<'a, str>>,
    /// `DebugInfo.detail`, or a field violation's description: the truth where the message is a
    /// placeholder.
    pub(super) debug: Option<Cow<'a, str>>,
    /// `ErrorInfo.reason`.
    pub(super) reason: Option<Cow<'a, str>>,
    /// `errors[].reason` of Google's older format.
    pub(super) legacy_reason: Option<Cow<'a, str>>,
    pub(super) retry_delay: Option<Duration>,
    pub(super) reset_delay: Option<Duration>,
    /// The quota that decides.
    pub(super) quota: QuotaFacts<'a>,
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
    pub(super) model: Option<Cow<'a, str>>,
    /// A proxy says that its shared pool upstream is used up.
    pub(super) shared_pool: bool,
    /// A string that may hold another answer (`metadata.raw`, `upstreamResponse`).
    pub(super) raw: Option<Cow<'a, str>>,
    /// An error object was met.
    pub(super) has_error: bool,
    /// An answer of a model was met (`candidates`, `promptFeedback` …).
    pub(super) has_answer: bool,
    /// It was a web page.
    pub(super) is_page: bool,
    /// The error came with the canonical status word that Google's own errors carry.
    pub(super) is_google: bool,
    pub(super) code_depth: u8,
    pub(super) status_depth: u8,
    pub(super) word_depth: u8,
    pub(super) message_depth: u8,
}

/// One violation of a quota.
#[derive(Debug, Default, Clone)]
pub(super) struct QuotaFacts<'a> {
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) metric: Option<Cow<'a, str>>,
    pub(super) value: Option<u64>,
    pub(super) dimensions: Vec<(String, String)>,
    window: Window,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Window {
    #[default]
    Unknown,
    Minute,
    Day,
}

impl QuotaFacts<'_> {
    pub(super) fn is_stated(&self) -> bool {
        self.id.is_some() || self.metric.is_some()
    }

    pub(super) fn to_detail(&self) -> QuotaDetail {
        QuotaDetail {
            id: self.id.as_deref().map(str::to_owned),
            metric: self.metric.as_deref().map(str::to_owned),
            value: self.value,
            dimensions: self.dimensions.clone(),
        }
    }

    fn into_owned(self) -> QuotaFacts<'static> {
        QuotaFacts {
            id: owned(self.id),
            metric: owned(self.metric),
            value: self.value,
            dimensions: self.dimensions,
            window: self.window,
        }
    }
}

fn owned(text: Option<Cow<'_, str>>) -> Option<Cow<'static, str>> {
    text.map(|text| Cow::Owned(text.into_owned()))
}

/// The window of a quota by its id or metric, as substrings: ids come with suffixes (`-FreeTier`,
/// `-PaidTier2`) without end.
fn window_of(name: &str) -> Window {
    let name = name.as_bytes();
    let starts = |text: &[u8], word: &[u8]| {
        text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    let mut window = Window::Unknown;
    // `PerDay`, `per_day`, `per-day`, `PerMinute`, `per_minute`, `per-min`: a "per" and a unit.
    for at in memchr::memchr2_iter(b'P', b'p', name) {
        let Some(rest) =
            name.get(at..).filter(|rest| starts(rest, b"per")).and_then(|rest| rest.get(3..))
        else {
            continue;
        };
        let unit = rest.strip_prefix(b"_").or_else(|| rest.strip_prefix(b"-")).unwrap_or(rest);
        if starts(unit, b"day") {
            return Window::Day;
        }
        if starts(unit, b"min") {
            window = Window::Minute;
        }
    }
    // `generated_images_paid_tier_1_per_model` counts images of a *day* (its unit is `/d`), though
    // its name has no "day".
    let has = |word: &[u8]| memchr::memmem::find(name, word).is_some();
    if window == Window::Unknown && (has(b"aily") || has(b"generated_images_")) {
        Window::Day
    } else {
        window
    }
}

/// Whether a metric counts input tokens: those windows are minutes unless an id says otherwise.
fn counts_tokens(metric: &str) -> bool {
    metric.contains("input_token")
        || metric.contains("InputToken")
        || metric.contains("token_count")
}

impl<'a> Facts<'a> {
    /// Reads the JSON at the start of the text, and says how many bytes it took.
    pub(super) fn read(json: &'a str) -> Result<(Self, usize), serde_json::Error> {
        let mut facts = Self::default();
        let mut whole = serde_json::Deserializer::from_str(json);
        Walk { facts: &mut facts, place: Place::Root, depth: 0 }.deserialize(&mut whole)?;
        if whole.end().is_ok() {
            return Ok((facts, json.len()));
        }
        // More text follows. Only a stream says where the value ended, and it costs a second
        // reading.
        let mut facts = Self::default();
        let end = facts.walk(json)?;
        Ok((facts, end))
    }

    fn walk(&mut self, json: &'a str) -> Result<usize, serde_json::Error> {
        // A stream of one: it stops after the first value, where more text may follow.
        let mut json = serde_json::Deserializer::from_str(json).into_iter::<Probe<'a>>();
        match json.next() {
            Some(Ok(Probe(facts))) => {
                *self = *facts;
                Ok(json.byte_offset())
            }
            Some(Err(error)) => Err(error),
            None => Ok(0),
        }
    }

    /// Whether anything here says what went wrong.
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

    pub(super) fn into_owned(self) -> Facts<'static> {
        Facts {
            word: owned(self.word),
            kind: owned(self.kind),
            message: owned(self.message),
            debug: owned(self.debug),
            reason: owned(self.reason),
            legacy_reason: owned(self.legacy_reason),
            quota: self.quota.into_owned(),
            model: owned(self.model),
            raw: owned(self.raw),
            code: self.code,
            status: self.status,
            retry_delay: self.retry_delay,
            reset_delay: self.reset_delay,
            day: self.day,
            minute: self.minute,
            violations: self.violations,
            valued: self.valued,
            free_tier: self.free_tier,
            zero: self.zero,
            shared_pool: self.shared_pool,
            has_error: self.has_error,
            has_answer: self.has_answer,
            is_page: self.is_page,
            is_google: self.is_google,
            code_depth: self.code_depth,
            status_depth: self.status_depth,
            word_depth: self.word_depth,
            message_depth: self.message_depth,
        }
    }

    /// Takes over what an inner answer (one that was wrapped as text) states: it knows better.
    pub(super) fn absorb(&mut self, inner: Facts<'static>) {
        if inner.states_error() && (inner.code.is_some() || inner.status.is_some()) {
            self.code = inner.code;
            self.status = inner.status;
            self.is_google = inner.is_google;
        }
        fn take<T>(slot: &mut Option<T>, inner: Option<T>) {
            if inner.is_some() {
                *slot = inner;
            }
        }
        // A wrapper's word says nothing once the cause is known ("http_error", "api_error").
        if inner.has_error {
            self.word = inner.word;
            self.kind = inner.kind;
        }
        take(&mut self.message, inner.message);
        take(&mut self.debug, inner.debug);
        take(&mut self.reason, inner.reason);
        take(&mut self.legacy_reason, inner.legacy_reason);
        take(&mut self.retry_delay, inner.retry_delay);
        take(&mut self.reset_delay, inner.reset_delay);
        take(&mut self.model, inner.model);
        if inner.quota.is_stated() {
            self.quota = inner.quota;
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

    fn set_code(&mut self, code: u16, depth: u8) {
        if self.code.is_none() || depth >= self.code_depth {
            self.code = Some(code);
            self.code_depth = depth;
        }
    }

    fn set_word(&mut self, word: Cow<'a, str>, depth: u8, is_status: bool) {
        if word.is_empty() {
            return;
        }
        let is_number = word.starts_with(|c: char| c.is_ascii_digit());
        if let Some(number) = is_number.then(|| word.parse::<u64>().ok()).flatten() {
            if let Some(code) = status_number(number) {
                self.set_code(code, depth);
            }
            return;
        }
        let counts = self.status.is_none() || depth >= self.status_depth;
        if let Some(status) = http_of_word(&word).filter(|_| counts) {
            self.status = Some(status);
            self.status_depth = depth;
            self.is_google |= is_status;
        }
        if !is_status && (self.word.is_none() || depth >= self.word_depth) {
            self.word = Some(word);
            self.word_depth = depth;
        }
    }

    fn set_message(&mut self, message: Cow<'a, str>, depth: u8) {
        if !message.is_empty() && (self.message.is_none() || depth >= self.message_depth) {
            self.message = Some(message);
            self.message_depth = depth;
        }
    }

    /// One more violated quota: the decisive one (the longest window) is kept.
    fn add_quota(&mut self, mut quota: QuotaFacts<'a>) {
        let id = quota.id.as_deref().unwrap_or_default();
        let metric = quota.metric.as_deref().unwrap_or_default();
        // The id is the limit, the metric only what it counts: the metric is asked where the id is
        // silent.
        quota.window = match window_of(id) {
            Window::Unknown => match window_of(metric) {
                Window::Unknown if counts_tokens(id) || counts_tokens(metric) => Window::Minute,
                window => window,
            },
            window => window,
        };
        self.violations += 1;
        self.valued += u32::from(quota.value.is_some());
        self.free_tier += u32::from(id.contains("FreeTier") || metric.contains("free_tier"));
        self.zero |= quota.value == Some(0);
        self.day |= quota.window == Window::Day;
        self.minute |= quota.window == Window::Minute;
        if !self.quota.is_stated() || quota.window > self.quota.window {
            self.quota = quota;
        }
    }
}

/// A status number of any kind: HTTP's own, or a canonical code's below 17.
fn status_number(number: u64) -> Option<u16> {
    http_of_rpc(number)
        .or_else(|| u16::try_from(number).ok().filter(|code| (100..=999).contains(code)))
}

/// Where the walk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Anywhere that has no meaning of its own; the outermost value too.
    Root,
    /// An error object, or a string in its place.
    Error,
    /// `message`: a string, or an object in its place.
    Message,
    /// A string or object that is another answer.
    Raw,
    /// `details` and its members; `violations` and its.
    Details,
    Metadata,
    Violations,
    /// `fieldViolations`.
    Fields,
    /// `errors[]`.
    Legacy,
}

struct Probe<'a>(Box<Facts<'a>>);

impl<'de> serde::Deserialize<'de> for Probe<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut facts = Facts::default();
        Walk { facts: &mut facts, place: Place::Root, depth: 0 }.deserialize(deserializer)?;
        Ok(Self(Box::new(facts)))
    }
}

struct Walk<'f, 'a> {
    facts: &'f mut Facts<'a>,
    place: Place,
    depth: u8,
}

impl<'de> DeserializeSeed<'de> for Walk<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Walk<'_, 'a> {
    fn text(self, text: Cow<'a, str>) {
        match self.place {
            Place::Error => {
                self.facts.has_error |= !text.is_empty();
                self.facts.set_message(text, self.depth);
            }
            Place::Message | Place::Legacy => self.facts.set_message(text, self.depth),
            Place::Raw | Place::Root if !text.is_empty() && self.facts.raw.is_none() => {
                self.facts.raw = Some(text)
            }
            // `{"error": "Failed", "details": "[403 Forbidden] …"}`: web apps put the cause into
            // `details`, as text or as JSON in it.
            Place::Details
                if self.facts.raw.is_none()
                    && memchr::memchr2(b'{', b'[', text.as_bytes()).is_some() =>
            {
                self.facts.raw = Some(text);
            }
            Place::Details if !text.is_empty() => keep(&mut self.facts.debug, Some(text)),
            _ => {}
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.text(Cow::Owned(text.to_owned()));
        Ok(())
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<(), E> {
        self.text(Cow::Borrowed(text));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { facts, place, depth } = self;
        while seq.next_element_seed(Walk { facts: &mut *facts, place, depth })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { facts, place, depth } = self;
        let deeper = depth.saturating_add(1);
        let mut quota = QuotaFacts::default();
        if place == Place::Error {
            facts.has_error = true;
        }
        while let Some(Text(key)) = map.next_key()? {
            // Keys with a blank or NBSP in front were recorded (" @type").
            let is_plain = matches!(key.as_bytes(), [b'!'..=b'~'] | [b'!'..=b'~', .., b'!'..=b'~']);
            let key = if is_plain { &*key } else { key.trim() };
            match (place, key) {
                (Place::Details, "reason") => {
                    facts.reason = text_of(&mut map)?.or(facts.reason.take())
                }
                (Place::Details, "detail") => keep(&mut facts.debug, text_of(&mut map)?),
                (Place::Details, "retryDelay" | "retry_delay") => {
                    let delay = map.next_value::<Delay>()?.0;
                    keep(&mut facts.retry_delay, delay);
                }
                (Place::Details, "violations") => {
                    map.next_value_seed(Walk { facts, place: Place::Violations, depth })?
                }
                (Place::Details, "fieldViolations" | "field_violations") => {
                    map.next_value_seed(Walk { facts, place: Place::Fields, depth })?;
                }
                (Place::Details, "metadata") => {
                    map.next_value_seed(Walk { facts, place: Place::Metadata, depth })?
                }
                (Place::Details, "error") => {
                    map.next_value_seed(Walk { facts, place: Place::Error, depth: deeper })?;
                }
                (Place::Details, _) => skip(&mut map)?,

                (Place::Violations, "quotaId" | "quota_id") => quota.id = text_of(&mut map)?,
                (Place::Violations, "quotaMetric" | "quota_metric") => {
                    quota.metric = text_of(&mut map)?
                }
                (Place::Violations, "quotaValue" | "quota_value") => {
                    quota.value = number_of(&mut map)?
                }
                (Place::Violations, "quotaDimensions" | "quota_dimensions") => {
                    let Dimensions(dimensions) = map.next_value()?;
                    if facts.model.is_none() {
                        facts.model = dimensions
                            .iter()
                            .find(|(name, _)| name == "model")
                            .map(|(_, model)| Cow::Owned(model.clone()));
                    }
                    quota.dimensions = dimensions;
                }
                (Place::Violations, "description") => keep(&mut facts.debug, text_of(&mut map)?),
                (Place::Violations, _) => skip(&mut map)?,

                (Place::Metadata, "quota_limit") => quota.id = text_of(&mut map)?,
                (Place::Metadata, "quota_metric") => quota.metric = text_of(&mut map)?,
                (Place::Metadata, "quota_limit_value") => quota.value = number_of(&mut map)?,
                (Place::Metadata, "model") => keep(&mut facts.model, text_of(&mut map)?),
                (Place::Metadata, "quotaResetDelay") => {
                    keep(
                        &mut facts.reset_delay,
                        text_of(&mut map)?.and_then(|text| span(text.as_bytes())),
                    );
                }
                (Place::Metadata, "limit_source") => {
                    facts.shared_pool |=
                        text_of(&mut map)?.is_some_and(|source| source.contains("shared"));
                }
                (Place::Metadata, "raw") => {
                    map.next_value_seed(Walk { facts, place: Place::Raw, depth: deeper })?
                }
                (Place::Metadata, "previous_errors") => {
                    // The last provider's code says nothing of the cause that came first ("404"
                    // after a 429).
                    map.next_value_seed(Walk { facts, place: Place::Error, depth: deeper })?;
                }
                (Place::Metadata, _) => skip(&mut map)?,

                (Place::Fields, "description") => keep(&mut facts.debug, text_of(&mut map)?),
                (Place::Fields, _) => skip(&mut map)?,

                (Place::Legacy, "reason") => keep(&mut facts.legacy_reason, text_of(&mut map)?),
                (Place::Legacy, "message") => {
                    let message = text_of(&mut map)?;
                    if facts.message.is_none() {
                        facts.message = message;
                    }
                }

                // Error objects, their wrappers, and whatever else: one set of names.
                (
                    _,
                    "error" | "upstreamError" | "upstream_error" | "innererror" | "originalError"
                    | "cause",
                ) => {
                    map.next_value_seed(Walk { facts, place: Place::Error, depth: deeper })?;
                }
                (_, "message" | "msg" | "error_message" | "errorMessage" | "error_description") => {
                    map.next_value_seed(Walk { facts, place: Place::Message, depth: deeper })?;
                }
                // FastAPI and friends put their text (or a whole error) here.
                (_, "detail") => {
                    map.next_value_seed(Walk { facts, place: Place::Message, depth: deeper })?
                }
                (_, "code" | "statusCode" | "status_code" | "error_code") => {
                    match map.next_value()? {
                        Scalar::Text(word) => facts.set_word(word, deeper, false),
                        Scalar::Number(number) => {
                            if let Some(code) = status_number(number) {
                                facts.set_code(code, deeper);
                            }
                        }
                        Scalar::Nothing => {}
                    }
                }
                (_, "status") => match map.next_value()? {
                    Scalar::Text(word) => facts.set_word(word, deeper, true),
                    Scalar::Number(number) => {
                        if let Some(code) = status_number(number).filter(|_| facts.code.is_none()) {
                            facts.set_code(code, depth);
                        }
                    }
                    Scalar::Nothing => {}
                },
                (_, "upstreamStatus" | "upstream_status" | "upstream_status_code") => {
                    // Beats the code beside it, and loses to the upstream's own body.
                    let code = match map.next_value()? {
                        Scalar::Number(number) => status_number(number),
                        _ => None,
                    };
                    if let Some(code) = code {
                        facts.set_code(code, deeper.saturating_add(1));
                    }
                }
                (
                    _,
                    "upstreamResponse" | "upstream_response" | "response" | "body" | "raw" | "data"
                    | "result" | "original_response",
                ) => {
                    map.next_value_seed(Walk { facts, place: Place::Raw, depth: deeper })?;
                }
                (_, "type") => {
                    let kind = text_of(&mut map)?;
                    if place == Place::Error {
                        facts.kind = kind;
                    }
                }
                (_, "details") => {
                    map.next_value_seed(Walk { facts, place: Place::Details, depth: deeper })?
                }
                (_, "errors") => {
                    map.next_value_seed(Walk { facts, place: Place::Legacy, depth })?
                }
                (Place::Error, "metadata") => {
                    map.next_value_seed(Walk { facts, place: Place::Metadata, depth: deeper })?
                }
                (Place::Error, "previous_errors") => {
                    map.next_value_seed(Walk { facts, place: Place::Error, depth: deeper })?
                }
                (
                    _,
                    "candidates" | "promptFeedback" | "prompt_feedback" | "choices" | "predictions"
                    | "finishReason",
                ) => {
                    facts.has_answer = true;
                    skip(&mut map)?;
                }
                // The members of a detail where the list itself was torn out of its error (an array
                // of details, or one).
                (Place::Root | Place::Raw, "reason") => {
                    facts.reason = text_of(&mut map)?.or(facts.reason.take())
                }
                (_, "metadata") => {
                    map.next_value_seed(Walk { facts, place: Place::Metadata, depth })?
                }
                (_, "violations") => {
                    map.next_value_seed(Walk { facts, place: Place::Violations, depth })?
                }
                (_, "retryDelay") => {
                    let delay = map.next_value::<Delay>()?.0;
                    keep(&mut facts.retry_delay, delay);
                }
                _ => skip(&mut map)?,
            }
        }
        match place {
            Place::Violations => facts.add_quota(quota),
            Place::Metadata if quota.is_stated() || quota.value.is_some() => facts.add_quota(quota),
            _ => {}
        }
        Ok(())
    }
}

fn keep<T>(slot: &mut Option<T>, found: Option<T>) {
    if slot.is_none() {
        *slot = found;
    }
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

fn text_of<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    Ok(match map.next_value()? {
        Scalar::Text(text) if !text.is_empty() => Some(text),
        _ => None,
    })
}

/// A whole number, as a number or as the string that protobuf's JSON makes of 64-bit integers.
fn number_of<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<u64>, A::Error> {
    Ok(match map.next_value()? {
        Scalar::Number(number) => Some(number),
        Scalar::Text(text) => text.trim().parse().ok(),
        Scalar::Nothing => None,
    })
}

/// A string, borrowed where it holds no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A string or a whole number; anything else is nothing.
enum Scalar<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    Nothing,
}

impl<'de> serde::Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Scalar::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Scalar::Text(Cow::Borrowed(text)))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Scalar::Number(number))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Scalar::Nothing)
            }

            fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
                // Python's json writes 429.0 where a float was stored; no status or limit has a
                // fraction.
                let is_whole = number.fract() == 0.0 && (0.0..1e15).contains(&number);
                Ok(if is_whole { Scalar::Number(number as u64) } else { Scalar::Nothing })
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Scalar::Nothing)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Scalar::Nothing)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Nothing)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Nothing)
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// `"34.07s"`, or `{"seconds": 34, "nanos": 74824224}` as re-serialising gateways spell it.
struct Delay(Option<Duration>);

impl<'de> serde::Deserialize<'de> for Delay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DelayVisitor;
        impl<'de> Visitor<'de> for DelayVisitor {
            type Value = Delay;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration")
            }

            fn visit_str<E>(self, text: &str) -> Result<Delay, E> {
                Ok(Delay(span(text.as_bytes())))
            }

            fn visit_u64<E>(self, seconds: u64) -> Result<Delay, E> {
                Ok(Delay(Some(Duration::from_secs(seconds))))
            }

            fn visit_f64<E>(self, seconds: f64) -> Result<Delay, E> {
                Ok(Delay(Duration::try_from_secs_f64(seconds).ok()))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Delay, E> {
                Ok(Delay(None))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Delay, E> {
                Ok(Delay(None))
            }

            fn visit_unit<E>(self) -> Result<Delay, E> {
                Ok(Delay(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Delay, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Delay(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Delay, A::Error> {
                let (mut seconds, mut nanos) = (None, 0);
                while let Some(Text(key)) = map.next_key()? {
                    match &*key {
                        "seconds" => seconds = number_of(&mut map)?,
                        "nanos" => nanos = number_of(&mut map)?.unwrap_or(0),
                        _ => skip(&mut map)?,
                    }
                }
                let nanos =
                    u32::try_from(nanos).ok().filter(|&nanos| nanos < 1_000_000_000).unwrap_or(0);
                Ok(Delay(seconds.map(|seconds| Duration::new(seconds, nanos))))
            }
        }
        deserializer.deserialize_any(DelayVisitor)
    }
}

struct Dimensions(Vec<(String, String)>);

/// A quota has two or three dimensions (model, location, base model); more than this is no
/// statement of Google's.
const MAX_DIMENSIONS: usize = 8;

impl<'de> serde::Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DimensionsVisitor;
        impl<'de> Visitor<'de> for DimensionsVisitor {
            type Value = Dimensions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("quota dimensions")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Dimensions, A::Error> {
                let mut dimensions = Vec::new();
                while let Some(Text(key)) = map.next_key()? {
                    if let Some(value) =
                        text_of(&mut map)?.filter(|_| dimensions.len() < MAX_DIMENSIONS)
                    {
                        dimensions.push((key.into_owned(), value.into_owned()));
                    }
                }
                Ok(Dimensions(dimensions))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dimensions, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Dimensions(Vec::new()))
            }

            fn visit_unit<E>(self) -> Result<Dimensions, E> {
                Ok(Dimensions(Vec::new()))
            }

            fn visit_str<E>(self, _: &str) -> Result<Dimensions, E> {
                Ok(Dimensions(Vec::new()))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Dimensions, E> {
                Ok(Dimensions(Vec::new()))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Dimensions, E> {
                Ok(Dimensions(Vec::new()))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Dimensions, E> {
                Ok(Dimensions(Vec::new()))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Dimensions, E> {
                Ok(Dimensions(Vec::new()))
            }
        }
        deserializer.deserialize_any(DimensionsVisitor)
    }
}
