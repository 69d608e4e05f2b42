//! The gateway's file: what may stand in it, and what is wrong with it when it cannot work.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use tower_gemini::catalog::Catalog;
use tower_gemini::jittered_retry::{RetryPolicy, presets};
use tower_gemini::peak_hour_router::{Schedule, Window, Zone};
use tower_gemini::quota_guard::Limits;

/// The documented example, which holds every key with its default: `gemini-gateway --print-config`
/// prints it.
pub const EXAMPLE: &str = include_str!("../gateway.toml");

macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty = $default:expr),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$field_meta])* pub(crate) $field: $kind),* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }
    };
}

section! {
    /// The whole file.
    Config {
        server: Server = Server::default(),
        upstream: Upstream = Upstream::default(),
        auth: Auth = Auth::default(),
        answers: Answers = Answers::default(),
        keep: Keep = Keep::default(),
        retry: Retry = Retry::default(),
        fallback: Fallback = Fallback::default(),
        quota: Quota = Quota::default(),
        spending: Spending = Spending::default(),
        peak: Peak = Peak::default(),
        signatures: Signatures = Signatures::default(),
        timeouts: Timeouts = Timeouts::default(),
        log: Log = Log::default(),
    }
}
section! {
    /// `[server]`
    Server {
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8787)),
        max_body: Size = Size::mib(110),
        max_in_flight: usize = 256,
        max_connections: usize = 4096,
        header_read_timeout: Span = Span::secs(10),
        idle_timeout: Span = Span::secs(120),
        body_idle_timeout: Span = Span::secs(30),
        answer_stall_timeout: Span = Span::secs(60),
        shutdown_grace: Span = Span::secs(660),
        status_page: bool = true,
        allow_open: bool = false,
    }
}
section! {
    /// `[upstream]`
    Upstream {
        base_url: Base = Base(Uri::from_static("https://generativelanguage.googleapis.com")),
        vertex_base_url: Base = Base(Uri::from_static("https://aiplatform.googleapis.com")),
        connect_timeout: Span = Span::secs(10),
    }
}
section! {
    /// `[auth]`
    Auth {
        mode: AuthMode = AuthMode::Pass,
        api_key_env: Option<String> = None,
        api_key_file: Option<PathBuf> = None,
        tokens_env: Option<String> = None,
        tokens_file: Option<PathBuf> = None,
    }
}

/// Whose key goes to Google.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// The caller's.
    Pass,
    /// The gateway's own; callers have tokens.
    Own,
}

section! {
    /// `[answers]`
    Answers {
        strip_drafts: bool = true,
        hold: Size = Size::mib(64),
        heartbeat: Option<Span> = None,
        report_headers: bool = false,
        deadline: Option<Span> = None,
    }
}
section! {
    /// `[keep]`
    Keep {
        enabled: bool = true,
        max_detached: usize = 64,
        max_bytes: Size = Size::mib(256),
        max_time: Span = Span::secs(660),
        retention: Span = Span::secs(600),
        dir: Option<PathBuf> = None,
    }
}
section! {
    /// `[retry]`
    Retry {
        policy: String = "recommended".to_owned(),
        attempts: Option<u32> = None,
        deadline: Option<Span> = None,
        maybe_charged_resends: u32 = 0,
    }
}
section! {
    /// `[fallback]`
    Fallback {
        models: Vec<String> = Vec::new(),
        sizes: bool = false,
        keep_size: bool = false,
        keep_aspect: bool = false,
    }
}
section! {
    /// `[quota]`
    Quota {
        rpm: u64 = 0,
        tpm: u64 = 0,
        ipm: u64 = 0,
        rpd: u64 = 0,
        longest_wait: Span = Span::secs(120),
        alert_at: u8 = 70,
        model: BTreeMap<String, ModelQuota> = BTreeMap::new(),
    }
}
section! {
    /// `[quota.model."…"]`
    ModelQuota {
        rpm: u64 = 0,
        tpm: u64 = 0,
        ipm: u64 = 0,
        rpd: u64 = 0,
    }
}
section! {
    /// `[spending]`, in US dollars.
    Spending {
        per_call: f64 = 0.0,
        per_hour: f64 = 0.0,
        per_day: f64 = 0.0,
        per_month: f64 = 0.0,
    }
}
section! {
    /// `[peak]`
    Peak {
        windows: Vec<String> = Vec::new(),
        zone: String = "UTC".to_owned(),
        lead: BTreeMap<String, String> = BTreeMap::new(),
    }
}
section! {
    /// `[signatures]`
    Signatures {
        restore: bool = true,
    }
}
section! {
    /// `[timeouts]`
    Timeouts {
        up_to_2k: Span = Span::secs(300),
        at_4k: Span = Span::secs(600),
        idle: Span = Span::secs(120),
    }
}
section! {
    /// `[log]`
    Log {
        level: String = "info".to_owned(),
        format: LogFormat = LogFormat::Text,
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A duration as people write it: `90s`, `5m`, `2h`, `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub(crate) Duration);

impl Span {
    const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(end);
        let milliseconds: u64 = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        Some(Self(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(milliseconds)?)))
    }
}

/// A number of bytes as people write it: `64MiB`, `10MB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub(crate) usize);

impl Size {
    const fn mib(mebibytes: usize) -> Self {
        Self(mebibytes * 1024 * 1024)
    }

    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let bytes: usize = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "KB" | "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return None,
        };
        Some(Self(number.parse::<usize>().ok()?.checked_mul(bytes)?))
    }
}

macro_rules! from_text {
    ($kind:ident, $expected:literal, $number:expr) => {
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $kind;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$kind, E> {
                        $kind::parse(text.trim())
                            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
                    }
                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$kind, E> {
                        let unsigned = u64::try_from(number).ok();
                        unsigned
                            .and_then($number)
                            .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }
    };
}

from_text!(Span, "a duration such as \"90s\", \"5m\", \"2h\" or \"250ms\"", |_| None);
from_text!(Size, "a size such as \"64MiB\", \"10MB\" or a number of bytes", |bytes| {
    usize::try_from(bytes).ok().map(Size)
});

/// `https://host`, perhaps with a path, without a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base(pub(crate) Uri);

impl<'de> Deserialize<'de> for Base {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || {
            D::Error::custom(format!(
                "`{text}` is no base URL; write it as https://host or http://host:port/path"
            ))
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let whole = matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty());
        if whole && uri.query().is_none() { Ok(Self(uri)) } else { Err(wrong()) }
    }
}

/// Why a file is refused: what is wrong, where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    line: Option<usize>,
    what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads a file's text. `file` is what it is called in errors.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] where a key is unknown (with the nearest name), a value is of the wrong
    /// kind, or the whole cannot work.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map(|span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
            ConfigError { file: file.to_owned(), line, what: helpful(error.message()) }
        })?;
        config.check().map_err(|what| ConfigError { file: file.to_owned(), line: None, what })?;
        Ok(config)
    }

    /// Whether it may listen there: on the address in the file, or the one that it has.
    pub(crate) fn check_listen(&self, listen: SocketAddr) -> Result<(), String> {
        if !listen.ip().is_loopback() && self.auth.mode == AuthMode::Pass && !self.server.allow_open
        {
            return Err(format!(
                "server.listen = \"{}\" lets everybody on the network use this gateway; set [auth] mode = \"own\" with tokens, or say server.allow_open = true",
                listen
            ));
        }
        Ok(())
    }

    /// What cannot work, in words.
    fn check(&self) -> Result<(), String> {
        self.check_listen(self.server.listen)?;
        let server = &self.server;
        for (name, value) in [
            ("server.max_in_flight", server.max_in_flight),
            ("server.max_connections", server.max_connections),
            ("server.max_body", server.max_body.0),
        ] {
            if value == 0 {
                return Err(format!("{name} = 0 lets nothing through"));
            }
        }
        for (name, span) in [
            ("server.header_read_timeout", server.header_read_timeout),
            ("server.idle_timeout", server.idle_timeout),
            ("server.body_idle_timeout", server.body_idle_timeout),
            ("server.answer_stall_timeout", server.answer_stall_timeout),
            ("upstream.connect_timeout", self.upstream.connect_timeout),
            ("timeouts.up_to_2k", self.timeouts.up_to_2k),
            ("timeouts.at_4k", self.timeouts.at_4k),
            ("timeouts.idle", self.timeouts.idle),
            ("keep.max_time", self.keep.max_time),
            ("keep.retention", self.keep.retention),
        ]
        .into_iter()
        .chain(self.answers.heartbeat.map(|span| ("answers.heartbeat", span)))
        .chain(self.answers.deadline.map(|span| ("answers.deadline", span)))
        .chain(self.retry.deadline.map(|span| ("retry.deadline", span)))
        {
            if span.0.is_zero() {
                return Err(format!("{name} = \"0s\" leaves no time for anything"));
            }
        }
        self.auth.check()?;
        if self.retry.attempts == Some(0) {
            return Err("retry.attempts = 0 sends nothing; 1 is a single attempt without retries"
                .to_owned());
        }
        self.policy()?;
        let mut seen = Vec::new();
        for model in &self.fallback.models {
            known_model("fallback.models", model)?;
            if seen.contains(&model) {
                return Err(format!(
                    "fallback.models holds \"{model}\" twice; what failed once is not asked again"
                ));
            }
            seen.push(model);
        }
        for model in self.quota.model.keys() {
            known_model("quota.model", model)?;
        }
        if !(1..=100).contains(&self.quota.alert_at) {
            return Err(format!(
                "quota.alert_at = {} is no percentage from 1 to 100",
                self.quota.alert_at
            ));
        }
        for (name, usd) in self.spending.all() {
            if !usd.is_finite() || usd < 0.0 {
                return Err(format!("spending.{name} = {usd} is no amount of money; 0 is no cap"));
            }
        }
        self.schedule()?;
        if !self.peak.windows.is_empty() && self.fallback.models.is_empty() {
            return Err(
                "[peak] lets another model lead, and [fallback] models names none; list them there"
                    .to_owned(),
            );
        }
        for (asked, lead) in &self.peak.lead {
            known_model("peak.lead", asked)?;
            known_model("peak.lead", lead)?;
        }
        self.log.filter()?;
        Ok(())
    }

    /// How calls are retried.
    pub(crate) fn policy(&self) -> Result<RetryPolicy, String> {
        let name = self.retry.policy.as_str();
        let found = if name == "recommended" {
            Some(RetryPolicy::recommended())
        } else {
            presets::all().into_iter().find(|(preset, _)| *preset == name).map(|(_, policy)| policy)
        };
        let mut policy = found.ok_or_else(|| {
            let names = presets::all().into_iter().map(|(preset, _)| preset).chain(["recommended"]);
            format!("retry.policy = \"{name}\" is not known{}", did_you_mean(name, names))
        })?;
        if let Some(attempts) = self.retry.attempts {
            policy = policy.attempts(attempts);
        }
        if let Some(deadline) = self.retry.deadline {
            policy = policy.deadline(deadline.0);
        }
        Ok(policy.maybe_charged_resends(self.retry.maybe_charged_resends))
    }

    /// The hours in which other models lead.
    pub(crate) fn schedule(&self) -> Result<Option<Schedule>, String> {
        if self.peak.windows.is_empty() {
            return Ok(None);
        }
        let windows = self
            .peak
            .windows
            .iter()
            .map(|text| {
                text.split_once('-').map(|(start, end)| Window::daily(start.trim(), end.trim()))
            })
            .collect::<Option<Vec<_>>>()
            .ok_or("peak.windows holds a window that is not of the form \"10:00-14:00\"")?;
        Schedule::new(zone(&self.peak.zone)?, windows)
            .map(Some)
            .map_err(|error| format!("peak.windows: {error}"))
    }
}

fn zone(name: &str) -> Result<Zone, String> {
    let offset = || {
        let (sign, rest) = match name.strip_prefix('+') {
            Some(rest) => (1, rest),
            None => (-1, name.strip_prefix('-')?),
        };
        let (hours, minutes) = rest.split_once(':').unwrap_or((rest, "0"));
        let hours: i8 = hours.parse().ok()?;
        Zone::fixed(sign * hours, minutes.parse().ok()?).ok()
    };
    match name.to_ascii_lowercase().as_str() {
        "utc" => Some(Zone::utc()),
        "pacific" => Some(Zone::pacific()),
        _ => offset(),
    }
    .ok_or_else(|| format!("peak.zone = \"{name}\" is not known; write \"UTC\", \"Pacific\" or an offset such as \"+08:00\""))
}

impl Upstream {
    /// This base for everything.
    pub(crate) fn at(url: &str) -> Result<Self, String> {
        let base = Base(url.parse().map_err(|_| format!("{url} is no base URL"))?);
        Ok(Self { base_url: base.clone(), vertex_base_url: base, ..Self::default() })
    }
}

impl Auth {
    fn check(&self) -> Result<(), String> {
        let key =
            usize::from(self.api_key_env.is_some()) + usize::from(self.api_key_file.is_some());
        let tokens =
            usize::from(self.tokens_env.is_some()) + usize::from(self.tokens_file.is_some());
        match self.mode {
            AuthMode::Pass if key + tokens > 0 => {
                Err("[auth] names a key or tokens and mode = \"pass\" uses neither; set mode = \"own\"".to_owned())
            }
            AuthMode::Own if key != 1 => {
                Err("[auth] mode = \"own\" needs Google's key from one place: api_key_env or api_key_file".to_owned())
            }
            AuthMode::Own if tokens != 1 => {
                Err("[auth] mode = \"own\" needs the callers' tokens from one place: tokens_env or tokens_file".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl Quota {
    pub(crate) fn limits(&self) -> Limits {
        limits(self.rpm, self.tpm, self.ipm, self.rpd)
    }
}

impl ModelQuota {
    pub(crate) fn limits(&self) -> Limits {
        limits(self.rpm, self.tpm, self.ipm, self.rpd)
    }
}

fn limits(rpm: u64, tpm: u64, ipm: u64, rpd: u64) -> Limits {
    let mut limits = Limits::unlimited();
    // Nobody runs a gateway that lets nothing through: 0 is how the file says "no limit".
    for (value, set) in [
        (rpm, Limits::rpm as fn(Limits, u64) -> Limits),
        (tpm, Limits::tpm),
        (ipm, Limits::ipm),
        (rpd, Limits::rpd),
    ] {
        if value > 0 {
            limits = set(limits, value);
        }
    }
    limits
}

impl Spending {
    pub(crate) fn all(&self) -> [(&'static str, f64); 4] {
        [
            ("per_call", self.per_call),
            ("per_hour", self.per_hour),
            ("per_day", self.per_day),
            ("per_month", self.per_month),
        ]
    }
}

impl Log {
    /// The filter of log lines.
    pub(crate) fn filter(&self) -> Result<tracing_subscriber::EnvFilter, String> {
        let quiet = format!("{},hyper=warn,hyper_util=warn,rustls=warn", self.level);
        tracing_subscriber::EnvFilter::try_new(quiet).map_err(|_| {
            format!(
                "log.level = \"{}\" is no level; write error, warn, info, debug or trace",
                self.level
            )
        })
    }
}

fn known_model(key: &str, model: &str) -> Result<(), String> {
    let catalog = Catalog::builtin();
    if catalog.lookup(model).is_some() {
        return Ok(());
    }
    let near = did_you_mean(model, catalog.models().map(|model| model.id.as_str()));
    Err(format!("{key}: nothing is known of a model \"{model}\"{near}"))
}

/// serde's sentence about an unknown key, with the nearest name in place of the list.
fn helpful(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.strip_prefix("unknown field"), quoted.split_first()) {
        (Some(_), Some((unknown, known))) => {
            format!(
                "the key `{unknown}` is not known{}",
                did_you_mean(unknown, known.iter().copied())
            )
        }
        _ => message.to_owned(),
    }
}

fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        Some((likeness, nearest)) if likeness > 0.7 => format!("; did you mean `{nearest}`?"),
        _ => "; `gemini-gateway --print-config` lists everything that is".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Config::parse(text, "gateway.toml").unwrap_err().to_string()
    }

    #[test]
    fn the_documented_file_is_the_default() {
        assert_eq!(Config::parse(EXAMPLE, "gateway.toml").unwrap(), Config::default());
        assert_eq!(Config::parse("", "gateway.toml").unwrap(), Config::default());
    }

    #[test]
    fn every_key_is_documented() {
        for section in [
            "server",
            "upstream",
            "auth",
            "answers",
            "keep",
            "retry",
            "fallback",
            "quota",
            "spending",
            "peak",
            "signatures",
            "timeouts",
            "log",
        ] {
            let error = toml::from_str::<Config>(&format!("[{section}]\n__ = 1\n"))
                .unwrap_err()
                .to_string();
            let keys: Vec<&str> = error
                .split('`')
                .skip(1)
                .step_by(2)
                .filter(|key| *key != "__" && *key != "model")
                .collect();
            assert!(!keys.is_empty(), "{error}");
            let start = EXAMPLE
                .find(&format!("\n[{section}]"))
                .unwrap_or_else(|| panic!("[{section}] is missing"));
            let text = EXAMPLE[start + 1..].split("\n[").next().unwrap();
            for key in keys {
                let documented = text
                    .lines()
                    .any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
                assert!(documented, "[{section}] {key}");
            }
        }
    }

    #[test]
    fn what_is_commented_out_can_be_commented_in() {
        for section in EXAMPLE.split("\n\n").skip(1) {
            let live: String = section
                .lines()
                .map(|line| line.strip_prefix("# ").unwrap_or(line))
                .collect::<Vec<_>>()
                .join("\n");
            if live.starts_with("[auth]") {
                continue; // Two ways each for the key and the tokens: only one of each may be set.
            }
            Config::parse(&live, "gateway.toml").unwrap_or_else(|error| panic!("{error}\n{live}"));
        }
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_nearest_name_and_its_line() {
        assert_eq!(
            refusal("[retry]\natempts = 3\n"),
            "gateway.toml, line 2: the key `atempts` is not known; did you mean `attempts`?"
        );
        assert_eq!(
            refusal("\n[sever]\n"),
            "gateway.toml, line 2: the key `sever` is not known; did you mean `server`?"
        );
        assert!(
            refusal("[server]\nxyzzy = 1\n")
                .ends_with("`gemini-gateway --print-config` lists everything that is")
        );
    }

    #[test]
    fn what_cannot_work_is_refused_in_words_that_say_what_to_write() {
        for (text, says) in [
            ("[server]\nlisten = \"0.0.0.0:80\"\n", "allow_open"),
            ("[server]\nmax_in_flight = 0\n", "lets nothing through"),
            ("[server]\nmax_in_flight = -1\n", "line 2"),
            ("[server]\nbody_idle_timeout = \"soon\"\n", "a duration such as"),
            ("[server]\nbody_idle_timeout = 30\n", "a duration such as"),
            ("[server]\nbody_idle_timeout = \"0s\"\n", "no time"),
            ("[server]\nmax_body = \"1 elephant\"\n", "a size such as"),
            ("[upstream]\nbase_url = \"generativelanguage\"\n", "https://host"),
            ("[auth]\nmode = \"own\"\n", "api_key_env or api_key_file"),
            ("[auth]\nmode = \"own\"\napi_key_env = \"K\"\n", "tokens_env or tokens_file"),
            ("[auth]\napi_key_env = \"K\"\n", "mode = \"own\""),
            ("[retry]\nattempts = 0\n", "1 is a single attempt"),
            ("[retry]\npolicy = \"openai_pyton\"\n", "did you mean `openai_python`?"),
            (
                "[fallback]\nmodels = [\"gemini-3-pro-imag\"]\n",
                "did you mean `gemini-3-pro-image`?",
            ),
            ("[fallback]\nmodels = [\"gemini-3-pro-image\", \"gemini-3-pro-image\"]\n", "twice"),
            ("[quota.model.\"gpt-image\"]\nrpm = 1\n", "nothing is known of a model"),
            ("[quota]\nalert_at = 0\n", "percentage"),
            ("[spending]\nper_day = -1.0\n", "no amount of money"),
            ("[spending]\nper_day = inf\n", "no amount of money"),
            ("[peak]\nwindows = [\"10:00-14:00\"]\n", "[fallback] models"),
            ("[peak]\nwindows = [\"ten to two\"]\n", "10:00-14:00"),
            ("[peak]\nwindows = [\"10:00-10:00\"]\n", "no minute"),
            ("[peak]\nwindows = [\"10:00-14:00\"]\nzone = \"Mars\"\n", "+08:00"),
            ("[log]\nlevel = \"lo=u=d\"\n", "debug or trace"),
            ("[log]\nformat = \"xml\"\n", "json"),
            ("nonsense", "line 1"),
        ] {
            let refusal = refusal(text);
            assert!(refusal.contains(says), "{text}\n{refusal}\n(should say: {says})");
        }
    }

    #[test]
    fn spans_and_sizes_are_what_people_write() {
        assert_eq!(Span::parse("250ms").unwrap().0, Duration::from_millis(250));
        assert_eq!(Span::parse("2h").unwrap().0, Duration::from_secs(7200));
        assert_eq!(Size::parse("10MB").unwrap().0, 10_000_000);
        assert_eq!(Size::parse("4096").unwrap().0, 4096);
        for nonsense in ["", "s", "1.5h", "99999999999999999999s", "10 parsecs"] {
            assert!(Span::parse(nonsense).is_none(), "{nonsense}");
        }
    }
}
