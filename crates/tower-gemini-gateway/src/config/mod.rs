//! Reads the gateway's file: what it may contain, and what is wrong with it when it cannot work.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use toml::de::DeTable;
use tower_gemini::catalog::Catalog;
use tower_gemini::jittered_retry::{OutagePolicy, RetryPolicy, presets};
use tower_gemini::quota_guard::{Limits, tiers};
use tower_gemini::spending::ReserveBy;

/// The documented example, which has every key with its default: `gemini-gateway --print-config`
/// prints it.
pub const EXAMPLE: &str = include_str!("../../gateway.toml");

macro_rules! section {
    ($(#[$meta:meta])* $vis:vis $name:ident { $($field:ident: $kind:ty = $default:expr),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        $vis struct $name { $(pub(crate) $field: $kind),* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }
    };
}

mod alerts;
mod error;
mod fallback;
#[cfg_attr(not(feature = "jobs"), allow(dead_code, reason = "the section is read all the same"))]
mod jobs;
mod otel;
mod peak;
mod renamed;
mod upstream;
mod values;

pub(crate) use self::alerts::{AlertKind, Alerts, WebhookUrl};
pub use self::error::{ConfigError, ConfigProblem};
pub(crate) use self::fallback::{Fallback, FallbackOrder};
#[cfg(feature = "jobs")]
pub(crate) use self::jobs::JobPlaces;
pub(crate) use self::jobs::Jobs;
pub(crate) use self::otel::Otel;
pub(crate) use self::peak::Peak;
pub(crate) use self::upstream::{Upstream, UpstreamKind};
pub(crate) use self::values::{BaseUrl, Size, Span, StoreUrl};

section! {
    /// A configuration of the gateway. [`EXAMPLE`] documents every key with its default.
    ///
    /// ```
    /// use tower_gemini_gateway::config::{Config, ConfigError, EXAMPLE};
    ///
    /// assert_eq!(Config::parse(EXAMPLE, "gateway.toml")?, Config::default());
    /// # Ok::<(), ConfigError>(())
    /// ```
    pub Config {
        server: Server = Server::default(),
        upstream: Vec<Upstream> = Upstream::google(),
        auth: Auth = Auth::default(),
        responses: Responses = Responses::default(),
        keep: Keep = Keep::default(),
        retry: Retry = Retry::default(),
        fallback: Fallback = Fallback::default(),
        quota: Quota = Quota::default(),
        spending: Spending = Spending::default(),
        peak: Peak = Peak::default(),
        signatures: Signatures = Signatures::default(),
        interactions: Interactions = Interactions::default(),
        timeouts: Timeouts = Timeouts::default(),
        catalog: CatalogFile = CatalogFile::default(),
        alerts: Alerts = Alerts::default(),
        jobs: Jobs = Jobs::default(),
        otel: Otel = Otel::default(),
        log: Log = Log::default(),
    }
}
section! { pub(crate) Server {
    listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8787)),
    max_body: Size = Size::mib(110),
    memory: Size = Size::mib(1024),
    max_in_flight: usize = 256,
    queue: usize = 1024,
    queue_time: Span = Span::secs(120),
    max_connections: usize = 4096,
    first_byte_timeout: Span = Span::secs(30),
    header_read_timeout: Span = Span::secs(10),
    idle_timeout: Span = Span::secs(120),
    body_idle_timeout: Span = Span::secs(30),
    response_stall_timeout: Span = Span::secs(60),
    shutdown_grace: Span = Span::secs(660),
    status_page: bool = true,
    status_listen: Option<SocketAddr> = None,
    allow_public: bool = false,
    state_dir: Option<PathBuf> = None,
    store: StoreUrl = StoreUrl::redb(),
    store_password_env: Option<String> = None,
    store_prefix: String = "tower-gemini".to_owned(),
    store_replicas: u32 = 0,
    store_bytes: Size = Size::mib(256),
    store_restart_hold: Span = Span::secs(65),
    flush_within: Span = Span::secs(0),
    hosts: Vec<String> = Vec::new(),
    accept_changes: Option<String> = None,
    tls: Option<Tls> = None,
}}

/// `[server.tls]`: the certificate of the listener.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

section! { pub(crate) Auth {
    mode: AuthMode = AuthMode::Passthrough,
    tokens_env: Option<String> = None,
    tokens_file: Option<PathBuf> = None,
}}

/// Whose key goes upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AuthMode {
    /// The caller's.
    Passthrough,
    /// The gateway's own; callers have tokens.
    Tokens,
}

section! { pub(crate) Responses {
    strip_drafts: bool = true,
    buffer_up_to: Size = Size::mib(64),
    heartbeat: Option<Span> = None,
    report_headers: bool = false,
    longest_retry_after: Span = Span::secs(120),
}}
section! { pub(crate) Keep {
    enabled: bool = true,
    max_detached: Option<usize> = None,
    max_bytes: Option<Size> = None,
    max_detached_time: Span = Span::secs(660),
    retention: Span = Span::secs(600),
    loss_window: Span = Span::secs(60),
    dir: Option<PathBuf> = None,
}}
section! { pub(crate) Retry {
    policy: String = "recommended".to_owned(),
    attempts: Option<u32> = None,
    deadline: Option<Span> = None,
    probe_every: Option<Span> = None,
    continue_resends: Span = Span::secs(60),
    maybe_charged_resends: u32 = 0,
}}
section! { pub(crate) Quota {
    tier: Option<Tier> = None,
    rpm: u64 = 0,
    tpm: u64 = 0,
    ipm: u64 = 0,
    rpd: u64 = 0,
    longest_wait: Span = Span::secs(120),
    min_interval: Span = Span::secs(0),
    warn_at_percent: u8 = 70,
    model: BTreeMap<String, ModelQuota> = BTreeMap::new(),
}}
/// A tier whose published limits hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tier {
    Free,
    Tier1,
    Tier2,
    Tier3,
}

section! { pub(crate) ModelQuota {
    rpm: u64 = 0,
    tpm: u64 = 0,
    ipm: u64 = 0,
    rpd: u64 = 0,
}}
section! {
    /// `budget` of an `[[upstream]]`, in US dollars.
    pub(crate) Budget {
        per_day: f64 = 0.0,
        per_month: f64 = 0.0,
        total: f64 = 0.0,
    }
}
section! {
    /// `[spending]`, in US dollars.
    pub(crate) Spending {
        per_call: f64 = 0.0,
        per_hour: f64 = 0.0,
        per_day: f64 = 0.0,
        per_month: f64 = 0.0,
        total: f64 = 0.0,
        starting_balance: f64 = 0.0,
        mode: SpendingMode = SpendingMode::WorstCase,
        assume_drafts: Option<u32> = None,
        fall_back_when_capped: bool = false,
    }
}

/// What is reserved for an attempt before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SpendingMode {
    /// The most that it can cost: caps are hard.
    WorstCase,
    /// The list price: a cap can be exceeded by the attempts in flight.
    Expected,
}

section! { pub(crate) Signatures {
    restore: bool = true,
    file: Option<PathBuf> = None,
}}
section! { pub(crate) Interactions {
    resume: bool = true,
}}
section! { pub(crate) Timeouts {
    connect: Span = Span::secs(10),
    up_to_2k: Span = Span::secs(300),
    at_4k: Span = Span::secs(600),
    longest: Span = Span::secs(1200),
    idle: Span = Span::secs(120),
}}
section! {
    /// `[catalog]`: models, prices and dates beside those that are known here.
    pub(crate) CatalogFile {
        file: Option<PathBuf> = None,
    }
}
section! { pub(crate) Log {
    level: String = "info".to_owned(),
    format: LogFormat = LogFormat::Text,
    observations: Option<PathBuf> = None,
    audit: Option<PathBuf> = None,
}}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

type Check<T> = Result<T, ConfigError>;

impl Config {
    /// Parses a file's text. `file` is what errors call it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every problem that was found: a key that is unknown (with the nearest
    /// name) or that earlier versions had (with the new spelling), a value of the wrong kind, or
    /// settings that cannot work.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let refused = |problems| ConfigError { file: Some(file.to_owned()), problems };
        let malformed = |error: toml::de::Error| {
            let line = error.span().map(|span| line_at(text, span.start));
            let (what, remedy) = with_nearest_name(error.message());
            refused(vec![ConfigProblem { line, key: None, what, remedy }])
        };
        let table = DeTable::parse(text).map_err(malformed)?;
        let renamed = renamed::problems(table.get_ref(), text);
        if !renamed.is_empty() {
            return Err(refused(renamed));
        }
        let config: Self = toml::from_str(text).map_err(malformed)?;
        let mut problems = config.problems();
        for problem in &mut problems {
            let found = problem.key.as_ref().and_then(|key| locate(table.get_ref(), text, key));
            problem.line = found.map(|found| found.line);
        }
        if problems.is_empty() { Ok(config) } else { Err(refused(problems)) }
    }

    /// Whether it may listen there: on the address in the file, or the one that it has.
    pub(crate) fn check_listen(&self, listen: SocketAddr) -> Check<()> {
        let is_open = self.auth.mode == AuthMode::Passthrough && !self.server.allow_public;
        ensure(
            !is_open || listen.ip().is_loopback(),
            "server.listen",
            format!("server.listen = \"{listen}\" lets everybody on the network use this gateway"),
            "set [auth] mode = \"tokens\" with tokens, or server.allow_public = true",
        )
    }

    /// Every setting that cannot work.
    fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut check = |result: Check<()>| {
            problems.extend(result.err().map(|error| error.problems).unwrap_or_default());
        };
        check(self.check_listen(self.server.listen));
        for (key, value) in [
            ("server.max_in_flight", self.server.max_in_flight),
            ("server.max_connections", self.server.max_connections),
            ("server.max_body", self.server.max_body.0),
        ] {
            let what = format!("{key} = 0 lets nothing through");
            check(ensure(value > 0, key, what, "write 1 or more"));
        }
        for (key, span) in [
            ("server.first_byte_timeout", Some(self.server.first_byte_timeout)),
            ("server.header_read_timeout", Some(self.server.header_read_timeout)),
            ("server.idle_timeout", Some(self.server.idle_timeout)),
            ("server.body_idle_timeout", Some(self.server.body_idle_timeout)),
            ("server.response_stall_timeout", Some(self.server.response_stall_timeout)),
            ("responses.heartbeat", self.responses.heartbeat),
            ("keep.max_detached_time", Some(self.keep.max_detached_time)),
            ("keep.retention", Some(self.keep.retention)),
            ("retry.deadline", self.retry.deadline),
            ("timeouts.connect", Some(self.timeouts.connect)),
            ("timeouts.up_to_2k", Some(self.timeouts.up_to_2k)),
            ("timeouts.at_4k", Some(self.timeouts.at_4k)),
            ("timeouts.longest", Some(self.timeouts.longest)),
            ("timeouts.idle", Some(self.timeouts.idle)),
        ] {
            let what = format!("{key} = \"0s\" leaves no time");
            check(ensure(span != Some(Span::secs(0)), key, what, "write a longer one"));
        }
        let server = &self.server;
        let is_plain = !server.store_prefix.is_empty() && !server.store_prefix.contains(['{', '}']);
        let what = "server.store_prefix is empty or has braces, which redis clusters read";
        check(ensure(is_plain, "server.store_prefix", what, "write letters, digits and `-`"));
        let is_for_redis = !matches!(server.store, StoreUrl::Postgres(_));
        let what = "server.store_replicas is for a redis: postgres has a setting of its own";
        let remedy = "set synchronous_standby_names in postgres";
        let is_obeyed = is_for_redis || server.store_replicas == 0;
        check(ensure(is_obeyed, "server.store_replicas", what, remedy));
        check(self.check_memory());
        check(self.check_upstreams());
        check(self.check_auth());
        let (what, remedy) =
            ("retry.attempts = 0 sends nothing", "1 is a single attempt without retries");
        check(ensure(self.retry.attempts != Some(0), "retry.attempts", what, remedy));
        check(self.policy().map(drop));
        self.fallback.check(self, &mut check);
        // Where there is a file of models, they are looked up when it is read.
        if self.catalog.file.is_none() {
            self.check_models(Catalog::builtin(), &mut check);
        }
        let (key, percent) = ("quota.warn_at_percent", self.quota.warn_at_percent);
        let what = format!("{key} = {percent} is not a percentage");
        check(ensure((1..=100).contains(&percent), key, what, "write 1 to 100"));
        let balance = ("starting_balance", self.spending.starting_balance);
        for (name, usd) in self.spending.caps().into_iter().chain([balance]) {
            check(ensure_money(&format!("spending.{name}"), "spending", name, usd));
        }
        self.peak.check(self.fallback.has_models(), &mut check);
        self.alerts.check(&mut check);
        self.jobs.check(&mut check);
        self.otel.check(&mut check);
        check(self.log.filter().map(drop));
        problems
    }

    /// Every model that the file names and a catalogue does not.
    fn check_models(&self, catalog: &Catalog, check: &mut impl FnMut(Check<()>)) {
        let named = self.fallback.named_models().map(|model| ("fallback.models", model));
        let quotas = self.quota.model.keys().map(|model| ("quota.model", model.as_str()));
        let peak = self.peak.named_models().map(|model| ("peak.prefer", model));
        for (key, model) in named.chain(quotas).chain(peak) {
            check(known_model(catalog, key, model));
        }
    }

    /// What is known of models: here, and in `catalog.file`, which goes before.
    pub(crate) fn read_catalog(&self) -> Check<Arc<Catalog>> {
        let mut catalog = Catalog::builtin().clone();
        let Some(file) = &self.catalog.file else { return Ok(Arc::new(catalog)) };
        let wrong = |what: String, remedy: &str| {
            let what = format!("catalog.file {}: {what}", file.display());
            ConfigError::at("catalog.file", what, remedy)
        };
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string(), ""))?;
        let more = Catalog::from_toml(&text).map_err(|error| {
            let remedy = "gemini-gateway --print-config shows how an entry begins";
            wrong(error.to_string(), remedy)
        })?;
        catalog.extend(more);
        let mut problems = Vec::new();
        self.check_models(&catalog, &mut |check: Check<()>| {
            problems.extend(check.err().map(|error| error.problems).unwrap_or_default());
        });
        match problems.is_empty() {
            true => Ok(Arc::new(catalog)),
            false => Err(ConfigError { file: None, problems }),
        }
    }

    fn check_memory(&self) -> Check<()> {
        let memory = self.server.memory.0;
        let what = "server.memory is too little for one image and its JSON".to_owned();
        let least = Size::mib(64).0;
        ensure(memory >= least, "server.memory", what, "write \"64MiB\" or more")?;
        let what = "keep.max_bytes takes more than half of server.memory".to_owned();
        let kept = self.keep.max_bytes.map_or(0, |bytes| bytes.0);
        ensure(
            kept <= memory / 2,
            "keep.max_bytes",
            what,
            "write less, or raise server.memory: the other half is for requests in flight",
        )
    }

    /// What stored responses may take of the memory: a quarter, where nothing else is written.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.keep.max_bytes.map_or(self.server.memory.0 / 4, |bytes| bytes.0)
    }

    /// How many calls there may be, with their clients or without: what a client hangs up on is
    /// never one too many.
    pub(crate) fn most_calls(&self) -> usize {
        let places = self.server.max_in_flight;
        self.keep.max_detached.map_or(places.saturating_mul(2), |calls| calls.max(places))
    }

    fn check_auth(&self) -> Check<()> {
        let check =
            |is_right, what: String, remedy: &str| ensure(is_right, "auth.mode", what, remedy);
        let auth = &self.auth;
        let (env, file) = (auth.tokens_env.is_some(), auth.tokens_file.is_some());
        if auth.mode == AuthMode::Passthrough {
            return check(
                !env && !file && !self.upstream.iter().any(Upstream::has_key),
                "mode = \"passthrough\" uses neither a key of an [[upstream]] nor tokens".into(),
                "set [auth] mode = \"tokens\", or remove them",
            );
        }
        let what = "mode = \"tokens\" needs the callers' tokens from one place".into();
        check(env != file, what, "write tokens_env or tokens_file")?;
        for one in &self.upstream {
            let what = format!("mode = \"tokens\" needs a key for upstream \"{}\"", one.name);
            let remedy = "write api_key_env or api_key_file in its [[upstream]]";
            check(one.has_key(), what, remedy)?;
        }
        Ok(())
    }

    /// How calls are retried.
    pub(crate) fn policy(&self) -> Check<RetryPolicy> {
        let mut policy = retry_policy("retry.policy", &self.retry.policy)?;
        if let Some(attempts) = self.retry.attempts {
            policy = policy.attempts(attempts);
        }
        if let Some(deadline) = self.retry.deadline {
            policy = policy.deadline(deadline.0);
        }
        let outages = match self.retry.probe_every {
            Some(every) if every.0.is_zero() => None,
            Some(every) => Some(OutagePolicy::recommended().probe_every(every.0)),
            None => policy.outage_policy(),
        };
        // The other half is for models that are well.
        let most_waiting = self.server.max_in_flight.div_ceil(2);
        let policy = policy.outages(outages.map(|outages| outages.most_waiting(most_waiting)));
        Ok(policy.maybe_charged_resends(self.retry.maybe_charged_resends))
    }

    /// Every model that the file names.
    pub(crate) fn models(&self) -> impl Iterator<Item = &str> {
        let quotas = self.quota.model.keys().map(String::as_str);
        self.fallback.named_models().chain(quotas).chain(self.peak.preferred())
    }
}

/// A policy by its name.
fn retry_policy(key: &str, name: &str) -> Check<RetryPolicy> {
    let mut known = presets::all();
    known.push(("recommended", RetryPolicy::recommended()));
    match known.iter().find(|(preset, _)| *preset == name) {
        Some((_, policy)) => Ok(policy.clone()),
        None => {
            let nearest = nearest_name(name, known.iter().map(|(preset, _)| *preset));
            wrong(key, format!("{key} = \"{name}\" is not known"), nearest)
        }
    }
}

fn ensure(is_right: bool, key: &str, what: impl Into<String>, remedy: &str) -> Check<()> {
    if is_right { Ok(()) } else { wrong(key, what, remedy) }
}

/// `key` is where it stands, and `section` what the error calls that.
fn ensure_money(key: &str, section: &str, name: &str, usd: f64) -> Check<()> {
    let what = format!("{section}.{name} = {usd} is not an amount of money");
    ensure(usd.is_finite() && usd >= 0.0, key, what, "write US dollars, or 0 for none")
}

fn wrong<T>(key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Check<T> {
    Err(ConfigError::at(key, what, remedy))
}

impl AuthMode {
    /// As the file spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::Tokens => "tokens",
        }
    }
}

impl Quota {
    /// The limits of every model without limits of its own.
    pub(crate) fn limits(&self) -> Limits {
        self.over(Limits::unlimited())
    }

    /// The limits of models that have their own: from the file, or else of the tier.
    pub(crate) fn by_model(&self) -> BTreeMap<&str, Limits> {
        let published = |tier: Tier| {
            let known = tiers::all().filter(move |row| row.tier == tier.published());
            known.filter_map(|row| tiers::published(row.model, row.tier))
        };
        let of_tier = self.tier.into_iter().flat_map(published);
        let of_tier = of_tier.map(|row| (row.model, self.over(row.limits)));
        let written = self.model.iter().map(|(model, quota)| (model.as_str(), quota.limits()));
        of_tier.chain(written).collect()
    }

    fn over(&self, limits: Limits) -> Limits {
        over(limits, [self.rpm, self.tpm, self.ipm, self.rpd])
    }
}

impl ModelQuota {
    pub(crate) fn limits(&self) -> Limits {
        over(Limits::unlimited(), [self.rpm, self.tpm, self.ipm, self.rpd])
    }
}

impl Tier {
    fn published(self) -> tiers::Tier {
        match self {
            Self::Free => tiers::Tier::Free,
            Self::Tier1 => tiers::Tier::Tier1,
            Self::Tier2 => tiers::Tier::Tier2,
            Self::Tier3 => tiers::Tier::Tier3,
        }
    }
}

/// Limits with those that are written. Nobody runs a gateway that lets nothing through: 0 is how
/// the file says "no limit".
fn over(limits: Limits, written: [u64; 4]) -> Limits {
    let setters: [fn(Limits, u64) -> Limits; 4] =
        [Limits::rpm, Limits::tpm, Limits::ipm, Limits::rpd];
    let written = written.into_iter().zip(setters).filter(|(value, _)| *value > 0);
    written.fold(limits, |limits, (value, set)| set(limits, value))
}

impl Budget {
    /// The caps by name; 0 is none.
    pub(crate) fn caps(&self) -> [(&'static str, f64); 3] {
        [("per_day", self.per_day), ("per_month", self.per_month), ("total", self.total)]
    }
}

impl Spending {
    /// The caps by name; 0 is none.
    pub(crate) fn caps(&self) -> [(&'static str, f64); 5] {
        [
            ("per_call", self.per_call),
            ("per_hour", self.per_hour),
            ("per_day", self.per_day),
            ("per_month", self.per_month),
            ("total", self.total),
        ]
    }

    /// What is reserved for an attempt.
    pub(crate) fn reserve_by(&self) -> ReserveBy {
        match self.mode {
            SpendingMode::WorstCase => ReserveBy::WorstCase { drafts: self.assume_drafts },
            SpendingMode::Expected => ReserveBy::Expected,
        }
    }
}

impl Log {
    /// The filter of log lines.
    pub(crate) fn filter(&self) -> Check<tracing_subscriber::EnvFilter> {
        let quiet = format!("{},hyper=warn,hyper_util=warn,rustls=warn", self.level);
        tracing_subscriber::EnvFilter::try_new(quiet).or_else(|_| {
            wrong(
                "log.level",
                format!("log.level = \"{}\" is not a level", self.level),
                "write error, warn, info, debug or trace",
            )
        })
    }
}

/// Whether a proxy can be used: a client speaks to it without TLS.
fn via_http(key: &str, proxy: Option<&BaseUrl>) -> Check<()> {
    let is_http = |proxy: &BaseUrl| proxy.0.scheme_str() == Some("http");
    let what = format!("{key} is reached by http:// only");
    ensure(proxy.is_none_or(is_http), key, what, "write proxy = \"http://host:port\"")
}

fn known_model(catalog: &Catalog, key: &str, model: &str) -> Check<()> {
    if catalog.lookup(model).is_some() {
        return Ok(());
    }
    let nearest = nearest_name(model, catalog.models().map(|model| model.id.as_str()));
    let is_near = nearest.starts_with("did you");
    let nearest = if is_near { nearest } else { "describe it in a [catalog] file".to_owned() };
    wrong(key, format!("{key}: the model \"{model}\" is not known"), nearest)
}

/// Reads a secret from an environment variable or a file, and says under which key it was named.
pub(crate) fn read_secret<'k>(
    what: &str,
    (env_key, variable): (&'k str, Option<&str>),
    (file_key, file): (&'k str, Option<&Path>),
    env: impl Fn(&str) -> Option<String>,
) -> Check<(&'k str, String)> {
    if let Some(name) = variable {
        let unset = format!("the environment variable {name} for {what} is not set");
        let problem = || ConfigError::at(env_key, unset, "export it before the gateway starts");
        return env(name).map(|text| (env_key, text)).ok_or_else(problem);
    }
    let Some(path) = file else {
        return wrong(file_key, format!("{what} has no source"), format!("write {file_key}"));
    };
    std::fs::read_to_string(path).map(|text| (file_key, text)).or_else(|error| {
        wrong(file_key, format!("{what} cannot be read from {}: {error}", path.display()), "")
    })
}

/// serde's sentence about an unknown key, with the nearest name in place of the list.
fn with_nearest_name(message: &str) -> (String, String) {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.strip_prefix("unknown field"), quoted.split_first()) {
        (Some(_), Some((unknown, known))) => (
            format!("the key `{unknown}` is not known"),
            nearest_name(unknown, known.iter().copied()),
        ),
        _ => (message.to_owned(), String::new()),
    }
}

fn nearest_name<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        Some((likeness, nearest)) if likeness > 0.7 => format!("did you mean `{nearest}`?"),
        _ => "`gemini-gateway --print-config` lists everything that is".to_owned(),
    }
}

/// Where a key stands in a file, and its value where that is text.
struct Located<'a> {
    line: usize,
    value: Option<&'a str>,
}

/// Finds a dotted key. Keys of a list of tables are found at the list.
fn locate<'a>(table: &'a DeTable<'_>, text: &str, key: &str) -> Option<Located<'a>> {
    let (first, rest) =
        key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let (name, value) = table.iter().find(|(name, _)| name.get_ref() == first)?;
    match (rest, value.get_ref().as_table()) {
        (Some(rest), table) => locate(table?, text, rest),
        (None, _) => Some(Located {
            line: line_at(text, name.span().start),
            value: value.get_ref().as_str(),
        }),
    }
}

fn line_at(text: &str, byte: usize) -> usize {
    text.get(..byte).unwrap_or(text).matches('\n').count() + 1
}

/// The keys that a text names as `section.key`.
///
/// # Panics
///
/// Where one is not documented, or a table is none of the file's.
#[cfg(test)]
pub(crate) fn named_keys(text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let words = text.split(|c| !is_word(c)).map(|word| word.trim_matches('.'));
    let is_number = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    let mut named = Vec::new();
    for word in words.filter(|word| !is_number(word)) {
        let Some((section, key)) = word.split_once('.').filter(|(_, key)| !key.contains('.'))
        else {
            continue;
        };
        if EXAMPLE.contains(&format!("[[{word}]]")) {
            continue; // A table, such as [[fallback.target]].
        }
        let text = EXAMPLE.split(&format!("\n[{section}]")).nth(1);
        let text = text.unwrap_or_else(|| panic!("[{section}] of {word}"));
        let text = text.split("\n\n").next().unwrap_or_default();
        let is_key = |line: &str| {
            let line = line.trim_start_matches("# ");
            line.starts_with(&format!("{key} = "))
                || line.starts_with(&format!("[{section}.{key}."))
        };
        assert!(text.lines().any(is_key), "{word} is no key");
        named.push(word);
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay_at(name: &str) -> String {
        format!("[[upstream]]\nname = \"{name}\"\nkind = \"relay\"\nbase_url = \"http://{name}\"\n")
    }

    fn refusal(text: &str) -> String {
        Config::parse(text, "gateway.toml").unwrap_err().to_string()
    }

    #[test]
    fn the_documented_file_is_the_default() {
        assert_eq!(Config::parse(EXAMPLE, "gateway.toml").unwrap(), Config::default());
        assert_eq!(Config::parse("", "gateway.toml").unwrap(), Config::default());
    }

    // The first one got all calls, whatever its weight.
    #[test]
    fn an_upstream_without_a_share_is_for_the_targets_that_name_it() {
        let upstream = |name: &str, weight: u32| {
            format!("{}api_key_env = \"K\"\nweight = {weight}\n", relay_at(name))
        };
        let tokens = "[auth]\nmode = \"tokens\"\ntokens_env = \"T\"\n";
        let target = "[[fallback.target]]\nmodel = \"gemini-3-pro-image\"\nupstream = \"a\"\n";
        let file = upstream("a", 0) + &upstream("b", 1) + tokens;
        assert!(refusal(&file).contains("upstream \"a\" is never used"), "{}", refusal(&file));
        let config = Config::parse(&(file + target), "gateway.toml").unwrap();
        assert_eq!(config.leader(false).unwrap().name, "b");
    }

    #[test]
    fn every_key_is_documented() {
        for section in [
            "server",
            "[upstream]",
            "auth",
            "responses",
            "keep",
            "retry",
            "fallback",
            "quota",
            "spending",
            "peak",
            "signatures",
            "interactions",
            "timeouts",
            "catalog",
            "alerts",
            "jobs",
            "otel",
            "log",
        ] {
            let error = toml::from_str::<Config>(&format!("[{section}]\n__ = 1\n"))
                .unwrap_err()
                .to_string();
            let keys: Vec<&str> = error
                .split('`')
                .skip(1)
                .step_by(2)
                .filter(|key| !matches!(*key, "__" | "model" | "tls" | "target"))
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
            let live = commented_in(section);
            if live.starts_with("[fallback]") {
                let (table, target) = live.split_at(live.find("[[fallback.target]]").unwrap());
                let without = |text: &str, key: &str| {
                    let lines = text.lines().filter(|line| !line.starts_with(key));
                    lines.fold(String::new(), |all, line| all + line + "\n")
                };
                let target = without(table, "preset") + &without(target, "upstream");
                for live in [table, &target] {
                    Config::parse(live, "gateway.toml").unwrap_or_else(|error| panic!("{error}"));
                }
                continue;
            }
            if ["[alerts]", "[jobs]", "[otel]"].iter().any(|table| live.starts_with(table)) {
                // From one place only.
                let others = ["webhook_env", "webhook_file", "headers_file", "store_env"];
                let is_other = |line: &&str| others.iter().any(|key| line.starts_with(key));
                let lines = live.lines().filter(|line| !is_other(line));
                let live = lines.fold(String::new(), |all, line| all + line + "\n");
                Config::parse(&live, "gateway.toml").unwrap_or_else(|error| panic!("{error}"));
                continue;
            }
            if live.starts_with("[peak]") {
                let live = format!("[fallback]\nmodels = [\"gemini-3-pro-image\"]\n{live}");
                Config::parse(&live, "gateway.toml").unwrap_or_else(|error| panic!("{error}"));
                continue;
            }
            if live.starts_with("[auth]") || live.starts_with("[[upstream]]") {
                continue; // Only together, and from one place each: below.
            }
            Config::parse(&live, "gateway.toml").unwrap_or_else(|error| panic!("{error}\n{live}"));
        }
        let sections: String = EXAMPLE
            .split("\n\n")
            .filter(|section| section.starts_with("[auth]") || section.starts_with("[[upstream]]"))
            .fold(String::new(), |all, section| all + &commented_in(section) + "\n");
        for source in ["_env", "_file"] {
            let other = if source == "_env" { "_file" } else { "_env = \"G" };
            let live: String = sections
                .lines()
                .filter(|line| !line.split('#').next().unwrap().contains(other))
                .fold(String::new(), |all, line| all + line + "\n")
                .replacen("mode = \"passthrough\"", "mode = \"tokens\"", 1);
            Config::parse(&live, "gateway.toml").unwrap_or_else(|error| panic!("{error}\n{live}"));
        }
    }

    fn commented_in(section: &str) -> String {
        let lines = section.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
        lines.fold(String::new(), |all, line| all + line + "\n")
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(1000))]

        // Whatever is written for a key, alone or beside other strange values.
        #[test]
        fn any_value_of_any_key_is_taken_or_refused_and_never_panics(
            section in proptest::prelude::any::<proptest::sample::Index>(),
            changes in proptest::collection::vec(
                (
                    proptest::prelude::any::<proptest::sample::Index>(),
                    proptest::sample::select(ODD_VALUES),
                ),
                1..4,
            ),
        ) {
            let sections: Vec<_> = EXAMPLE.split("\n\n").skip(1).map(commented_in).collect();
            let mut lines: Vec<_> = section.get(&sections).lines().map(str::to_owned).collect();
            for (line, value) in changes {
                let line = line.get_mut(&mut lines);
                if let Some((key, _)) = line.split_once(" = ") {
                    *line = format!("{key} = {value}");
                }
            }
            if let Err(error) = Config::parse(&lines.join("\n"), "gateway.toml") {
                proptest::prop_assert!(error.to_string().starts_with("gateway.toml"), "{error}");
            }
        }
    }

    const ODD_VALUES: &[&str] = &[
        "-1",
        "0",
        "1",
        "true",
        "99999999999999999999",
        "9223372036854775807",
        "1e308",
        "nan",
        "-0.0",
        "0.1",
        "\"\"",
        "\"\\u0000\"",
        "\"é\"",
        "\"0s\"",
        "\"1s\"",
        "\"99999999999h\"",
        "\"0B\"",
        "\"99999999TiB\"",
        "\"http://[::1\"",
        "\"https://h:99999\"",
        "\"24:00-24:00\"",
        "\"off\"",
        "[]",
        "[\"\"]",
        "[[1]]",
        "[\"4K\", \"4K\"]",
        "{}",
        "{ per_day = -1 }",
        "1979-05-27",
        "\"a\\r\\nb: c\"",
    ];

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
    fn what_cannot_work_is_refused_with_what_to_write() {
        let relay = "[[upstream]]\nname = \"a\"\nkind = \"relay\"\n";
        let two = format!(
            "{relay}base_url = \"http://a\"\n[[upstream]]\nname = \"b\"\nkind = \"gemini\"\n"
        );
        let twice = "[[upstream]]\nname = \"a\"\nkind = \"gemini\"\n[[upstream]]\nname = \"a\"\nkind = \"vertex\"\n";
        let tokens = "[auth]\nmode = \"tokens\"\n";
        let target = "[[fallback.target]]\nmodel = \"gemini-3-pro-image\"\n";
        let second = format!("{}{}", relay_at("a"), relay_at("b"));
        for (text, says) in [
            ("[server]\nlisten = \"0.0.0.0:80\"\n", "line 2: server.listen"),
            ("[server]\nlisten = \"0.0.0.0:80\"\n", "allow_public"),
            ("[server]\nmax_in_flight = 0\n", "lets nothing through"),
            ("[server]\nmax_in_flight = -1\n", "line 2"),
            ("[server]\nbody_idle_timeout = \"soon\"\n", "a duration such as"),
            ("[server]\nbody_idle_timeout = 30\n", "a duration such as"),
            ("[server]\nbody_idle_timeout = \"0s\"\n", "no time"),
            ("[server]\nmax_body = \"1 elephant\"\n", "a size such as"),
            ("upstream = []\n", "at least one [[upstream]]"),
            (&format!("{relay}base_url = \"generativelanguage\"\n"), "https://host"),
            (relay, "write base_url"),
            (&two, "upstream \"b\" is never used: these paths go to \"a\""),
            (
                &format!("{relay}base_url = \"http://a\"\ncharge_rules = \"gogle\"\n"),
                "write one of google, vertex, laozhang, apiyi, unknown",
            ),
            (twice, "two upstreams are called \"a\""),
            ("[[upstream]]\nname = \"a b\"\nkind = \"gemini\"\n", "cannot be the name"),
            ("[[upstream]]\nkind = \"gemini\"\n", "missing field `name`"),
            (&format!("{tokens}tokens_env = \"T\"\n"), "a key for upstream \"google\""),
            (tokens, "tokens_env or tokens_file"),
            ("[auth]\ntokens_env = \"T\"\n", "mode = \"tokens\""),
            (
                &format!("{}api_key_env = \"K\"\n", relay.replace("relay", "gemini")),
                "mode = \"tokens\"",
            ),
            ("[retry]\nattempts = 0\n", "1 is a single attempt"),
            ("[retry]\npolicy = \"openai_pyton\"\n", "did you mean `openai_python`?"),
            (
                "[fallback]\nmodels = [\"gemini-3-pro-imag\"]\n",
                "did you mean `gemini-3-pro-image`?",
            ),
            ("[fallback]\nmodels = [\"gemini-3-pro-image\", \"gemini-3-pro-image\"]\n", "twice"),
            ("[quota.model.\"gpt-image\"]\nrpm = 1\n", "the model \"gpt-image\" is not known"),
            ("[quota]\nwarn_at_percent = 0\n", "percentage"),
            ("[spending]\nper_day = -1.0\n", "not an amount of money"),
            ("[spending]\nper_day = inf\n", "not an amount of money"),
            (
                "[peak]\nwindows = [\"10:00-14:00\"]\n\
                 prefer = { \"nano-banana-2\" = \"nano-banana-pro\" }\n",
                "[fallback] models",
            ),
            ("[peak]\nwindows = [\"ten to two\"]\n", "10:00-14:00"),
            ("[peak]\nwindows = [\"10:00-10:00\"]\n", "no minute"),
            ("[peak]\nwindows = [\"10:00-14:00\"]\nzone = \"Mars\"\n", "+08:00"),
            ("[peak]\npreset = \"ten_to_fourteen\"\n", "did you mean `ten_to_fourteen_utc`?"),
            ("[peak]\nwindows = [\"1:00-2:00\"]\npreset = \"three_peaks_utc\"\n", "hours twice"),
            ("[fallback]\npreset = \"flash_to_prof\"\n", "did you mean `flash_to_pro`?"),
            ("[fallback]\nladder = \"to_1k\"\n", "there is no ladder \"to_1k\""),
            (
                "[fallback]\nmodels = [\"gemini-3-pro-image\"]\npreset = \"flash_to_pro\"\n",
                "write one of models, preset and [[fallback.target]]",
            ),
            (&format!("{target}upstream = \"nowhere\"\n"), "write an [[upstream]] of that name"),
            (&format!("{target}upstream = \"vertex\"\n"), "set [auth] mode = \"tokens\""),
            (&format!("{target}size_cap = \"3K\"\n"), "write one of 512, 1K, 2K, 4K"),
            (&format!("{target}attempts = 0\n"), "write 1 or more"),
            (&format!("{target}retry = \"openai_pyton\"\n"), "did you mean `openai_python`?"),
            (&format!("{target}must_keep = [\"style\"]\n"), "`size`, `aspect`, `vendor`"),
            (&second, "set [auth] mode = \"tokens\": a caller's key goes to no other upstream"),
            ("[quota]\ntier = \"tier9\"\n", "`tier3`"),
            ("[alerts]\nkinds = [\"outages\"]\n", "`outage`"),
            ("[alerts]\nrepeat_every = \"5s\"\n", "\"1m\" or more"),
            ("[alerts]\nstatus_feed = \"https://s/i.json\"\n", "write alerts.webhook"),
            ("[alerts]\nwebhook_env = \"A\"\nwebhook_file = \"B\"\n", "in several places"),
            ("[otel]\nsample_ratio = 1.5\n", "write 0.0 to 1.0"),
            ("[otel]\nservice_name = \" \"\n", "write a name"),
            ("[otel]\nheaders_env = \"H\"\n", "write otel.endpoint"),
            ("[otel]\nheaders_env = \"H\"\nheaders_file = \"F\"\n", "in two places"),
            ("[otel]\nendpoint = \"collector:4318\"\n", "https://host"),
            ("[otel]\nendpoint = \"http://u:secret@c\"\n", "an authorization header"),
            ("[otel]\nproxy = \"https://proxy\"\n", "http://host:port"),
            ("[log]\nlevel = \"lo=u=d\"\n", "debug or trace"),
            ("[log]\nformat = \"xml\"\n", "json"),
            ("[server]\nstore = \"mysql://u:secret@db\"\n", "redis://host:6379/0"),
            (
                "[server]\nstore = \"postgres://u:secret@db\"\nstore_replicas = 1\n",
                "synchronous_standby_names",
            ),
            ("[server]\nstore_prefix = \"{a}\"\n", "letters, digits"),
            ("nonsense", "line 1"),
        ] {
            let refusal = refusal(text);
            assert!(refusal.contains(says), "{text}\n{refusal}\n(should say: {says})");
            assert!(!refusal.contains("secret"), "{refusal}");
        }
    }

    #[test]
    fn upstreams_that_contradict_each_other_are_refused_with_what_to_write() {
        let file = |upstreams: &[&str]| {
            let one = |(at, more): (usize, &&str)| {
                format!("[[upstream]]\nname = \"u{at}\"\napi_key_env = \"K{at}\"\n{more}\n")
            };
            let all: String = upstreams.iter().enumerate().map(one).collect();
            let rest = "[auth]\nmode = \"tokens\"\ntokens_env = \"T\"\n[[fallback.target]]\nmodel = \"gemini-3-pro-image\"\nupstream = \"u0\"\n";
            all + rest
        };
        let google = "kind = \"gemini\"";
        let pooled = format!("{google}\nproject = \"p\"\nquota = {{ rpm = 1 }}");
        let vendor = "kind = \"openai\"\nbase_url = \"http://r/v1\"";
        let relay = "kind = \"relay\"\nbase_url = \"http://r:1\"\ncharge_rules = \"google\"";
        for (upstreams, says) in [
            (vec![vendor], "write an [[upstream]] of kind \"gemini\" or \"relay\" before it"),
            (vec![vendor, relay], "write the same charge_rules in both"),
            (vec![&format!("{vendor}\nweight = 2"), google], "is in no pool and has a weight"),
            (vec![&pooled, &pooled.replace("= 1", "= 2")], "keys of one project share one count"),
        ] {
            let refusal = refusal(&file(&upstreams));
            assert!(refusal.contains(says), "{refusal}\n(should say: {says})");
        }
        for upstreams in [[vendor, google], [&pooled, &pooled]] {
            Config::parse(&file(&upstreams), "gateway.toml").unwrap_or_else(|e| panic!("{e}"));
        }
    }

    #[test]
    fn every_problem_of_a_file_is_reported_at_once() {
        let error = Config::parse(
            "[retry]\nattempts = 0\n[quota]\nwarn_at_percent = 0\n[log]\nlevel = \"x=y=z\"\n",
            "gateway.toml",
        );
        let lines: Vec<_> = error.unwrap_err().problems.iter().map(|p| p.line).collect();
        assert_eq!(lines, [Some(2), Some(4), Some(6)]);
    }
}
