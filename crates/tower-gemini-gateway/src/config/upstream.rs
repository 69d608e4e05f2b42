//! `[[upstream]]`: where calls go, with which key.

use std::collections::BTreeSet;
use std::path::PathBuf;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Uri};
use serde::Deserialize;
use tower_gemini::charge_rules::ChargeRules;
use tower_gemini::target::{self, UpstreamId};

use super::{AuthMode, BaseUrl, Budget, Check, Config, ModelQuota, ensure, ensure_money};
use crate::wire::API_KEY;

/// One `[[upstream]]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    pub(crate) kind: UpstreamKind,
    base_url: Option<BaseUrl>,
    pub(crate) project: Option<String>,
    pub(crate) api_key_env: Option<String>,
    pub(crate) api_key_file: Option<PathBuf>,
    charge_rules: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) proxy: Option<BaseUrl>,
    weight: Option<u32>,
    pub(crate) quota: Option<ModelQuota>,
    pub(crate) budget: Option<Budget>,
}

/// Which API an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum UpstreamKind {
    /// The Gemini Developer API.
    Gemini,
    /// Vertex AI.
    Vertex,
    /// Somebody else's server that speaks the Gemini Developer API.
    Relay,
    /// Another vendor's images API, as OpenAI has it.
    OpenAi,
}

impl Config {
    pub(super) fn check_upstreams(&self) -> Check<()> {
        let is_any = !self.upstream.is_empty();
        ensure_upstream(is_any, "there is no upstream".into(), "write at least one [[upstream]]")?;
        let mut names = BTreeSet::new();
        for upstream in &self.upstream {
            upstream.check()?;
            let what = format!("two upstreams are called \"{}\"", upstream.name);
            ensure_upstream(names.insert(&upstream.name), what, "rename one")?;
        }
        for upstream in &self.upstream {
            self.check_use(upstream)?;
            self.check_beside_others(upstream)?;
        }
        Ok(())
    }

    /// Whether calls ever go there, with a key.
    fn check_use(&self, upstream: &Upstream) -> Check<()> {
        let (name, leader) = (&upstream.name, self.leader(upstream.kind.is_vertex()));
        let is_led = leader.is_none_or(|leader| leader.name != *name);
        let is_vendor = upstream.kind == UpstreamKind::OpenAi;
        ensure_upstream(
            !is_vendor || leader.is_some(),
            format!("upstream \"{name}\" is a last resort, and no other upstream comes first"),
            "write an [[upstream]] of kind \"gemini\" or \"relay\" before it",
        )?;
        ensure_upstream(
            !is_vendor || upstream.weight.is_none(),
            format!("upstream \"{name}\" is in no pool and has a weight"),
            "remove it: an upstream of kind \"openai\" gets what a [[fallback.target]] sends",
        )?;
        let is_target = self.fallback.named_upstreams().any(|named| named == name.as_str());
        ensure_upstream(
            !is_led || is_target || self.is_pooled(upstream),
            format!(
                "upstream \"{name}\" is never used: these paths go to \"{}\"",
                leader.map_or("", |leader| leader.name.as_str())
            ),
            "name it in a [[fallback.target]], or remove it. Several of one kind are a pool",
        )?;
        ensure_upstream(
            !is_led || self.auth.mode == AuthMode::Tokens,
            format!("upstream \"{name}\" needs a key of its own, and callers bring theirs"),
            "set [auth] mode = \"tokens\": a caller's key goes to no other upstream",
        )?;
        Ok(())
    }

    /// Whether it is told apart from the others where it must be, and only there.
    fn check_beside_others(&self, upstream: &Upstream) -> Check<()> {
        let name = &upstream.name;
        let is_same_judge = |other: &Upstream| {
            other.base_url().host() != upstream.base_url().host()
                || other.charge_rules() == upstream.charge_rules()
        };
        ensure_upstream(
            self.upstream.iter().all(is_same_judge),
            format!("upstream \"{name}\" has the host of another, with other charge_rules"),
            "write the same charge_rules in both: a response is judged by its host",
        )?;
        let is_same_count = |other: &Upstream| {
            self.identity(other) != self.identity(upstream) || other.quota == upstream.quota
        };
        ensure_upstream(
            self.upstream.iter().all(is_same_count),
            format!("upstream \"{name}\" has the project of another, with another quota"),
            "write the same quota in both: keys of one project share one count",
        )?;
        let is_same_budget = |other: &Upstream| {
            self.identity(other) != self.identity(upstream) || other.budget == upstream.budget
        };
        ensure_upstream(
            self.upstream.iter().all(is_same_budget),
            format!("upstream \"{name}\" has the project of another, with another budget"),
            "write the same budget in both: keys of one project are paid by one account",
        )?;
        let is_same_way = |other: &&Upstream| {
            let address = |one: &Upstream| one.base_url().authority().cloned();
            address(other) != address(upstream)
                || (&other.ca_file, &other.proxy) == (&upstream.ca_file, &upstream.proxy)
        };
        ensure_upstream(
            self.upstream.iter().all(|other| is_same_way(&other)),
            format!("upstream \"{name}\" has the address of another, with another way to it"),
            "write the same ca_file and proxy in both",
        )?;
        let is_vendor = |one: &Upstream| one.kind == UpstreamKind::OpenAi;
        let is_other_api = |other: &Upstream| {
            is_vendor(other) && !is_vendor(upstream) && other.base_url() == upstream.base_url()
        };
        ensure_upstream(
            !self.upstream.iter().any(is_other_api),
            format!("upstream \"{name}\" has the base_url of one of kind \"openai\""),
            "write the path of either API in its base_url, such as https://…/v1 for \"openai\"",
        )?;
        Ok(())
    }

    /// The upstream that calls are addressed to: the first for paths of Vertex AI, or for all
    /// others, that has a share.
    pub(crate) fn leader(&self, vertex: bool) -> Option<&Upstream> {
        let mut own = self.upstream.iter().filter(|one| one.kind != UpstreamKind::OpenAi);
        own.find(|one| one.kind.is_vertex() == vertex && one.weight != Some(0))
    }

    /// The others that stand for it: of its kind, and with a share.
    pub(crate) fn pool(&self, leader: &Upstream) -> impl Iterator<Item = &Upstream> {
        let (kind, name) = (leader.kind, leader.name.clone());
        let is_member = move |one: &&Upstream| one.kind == kind && one.name != name;
        self.upstream.iter().filter(is_member).filter(|one| one.weight != Some(0))
    }

    fn is_pooled(&self, upstream: &Upstream) -> bool {
        let leader = self.leader(upstream.kind.is_vertex());
        leader.is_some_and(|leader| self.pool(leader).any(|one| one.name == upstream.name))
    }

    /// The identity of an upstream for stores and the trail. Those of one project are one.
    pub(crate) fn identity(&self, upstream: &Upstream) -> UpstreamId {
        let account = |one: &Upstream| (one.kind, one.base_url(), one.project.clone());
        let own = account(upstream);
        let first = self.upstream.iter().find(|one| one.project.is_some() && account(one) == own);
        upstream.target(first.unwrap_or(upstream).name.clone()).id()
    }
}

impl UpstreamKind {
    pub(crate) fn is_vertex(self) -> bool {
        self == Self::Vertex
    }

    /// The header that a key goes into; `None` where the key cannot stand in it.
    pub(crate) fn signed(self, key: HeaderValue) -> Option<(HeaderName, HeaderValue)> {
        if self != Self::OpenAi {
            return Some((API_KEY, key));
        }
        let mut bearer = HeaderValue::from_bytes(&[b"Bearer ", key.as_bytes()].concat()).ok()?;
        bearer.set_sensitive(true);
        Some((AUTHORIZATION, bearer))
    }

    fn is_googles(self) -> bool {
        matches!(self, Self::Gemini | Self::Vertex)
    }
}

fn ensure_upstream(is_right: bool, what: String, remedy: &str) -> Check<()> {
    ensure(is_right, "upstream", what, remedy)
}

impl Upstream {
    /// What cannot work whatever else the file says.
    fn check(&self) -> Check<()> {
        let name = &self.name;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ensure_upstream(
            !name.is_empty() && name.chars().all(is_plain),
            format!("\"{name}\" cannot be the name of an upstream"),
            "use letters, digits, `-`, `_` and `.`",
        )?;
        let rules = self.charge_rules.as_deref().unwrap_or("unknown");
        let names: Vec<_> = ChargeRules::all().map(ChargeRules::name).collect();
        ensure_upstream(
            ChargeRules::named(rules).is_some(),
            format!("upstream \"{name}\" has unknown charge_rules \"{rules}\""),
            &format!("write one of {}", names.join(", ")),
        )?;
        ensure_upstream(
            self.kind.is_googles() || self.base_url.is_some(),
            format!("upstream \"{name}\" is not Google's and has no base_url"),
            "write base_url = \"https://…\"",
        )?;
        ensure_upstream(
            self.api_key_env.is_none() || self.api_key_file.is_none(),
            format!("upstream \"{name}\" has its key in two places"),
            "write api_key_env or api_key_file, not both",
        )?;
        for (cap, usd) in self.budget.iter().flat_map(Budget::caps) {
            ensure_money("upstream", &format!("the budget of upstream \"{name}\""), cap, usd)?;
        }
        let is_http = |proxy: &BaseUrl| proxy.0.scheme_str() == Some("http");
        ensure_upstream(
            self.proxy.as_ref().is_none_or(is_http),
            format!("the proxy of upstream \"{name}\" is reached by http:// only"),
            "write proxy = \"http://host:port\": what goes through it is encrypted all the same",
        )?;
        Ok(())
    }

    const GEMINI: &str = "https://generativelanguage.googleapis.com";
    const VERTEX: &str = "https://aiplatform.googleapis.com";

    fn new(name: &str, kind: UpstreamKind, base_url: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            base_url: BaseUrl::parse(base_url),
            project: None,
            api_key_env: None,
            api_key_file: None,
            charge_rules: None,
            ca_file: None,
            proxy: None,
            weight: None,
            quota: None,
            budget: None,
        }
    }

    /// Something else that the gateway calls, under the name of its key.
    pub(crate) fn other(key: &str, url: Uri, proxy: Option<BaseUrl>) -> Self {
        Self { base_url: Some(BaseUrl(url)), proxy, ..Self::new(key, UpstreamKind::Relay, "") }
    }

    /// Google's own two.
    pub(super) fn google() -> Vec<Self> {
        vec![
            Self::new("google", UpstreamKind::Gemini, Self::GEMINI),
            Self::new("vertex", UpstreamKind::Vertex, Self::VERTEX),
        ]
    }

    /// One server for the paths of both APIs.
    pub(crate) fn both_at(name: &str, url: &str) -> Vec<Self> {
        let vertex = format!("{name}-vertex");
        vec![
            Self::new(name, UpstreamKind::Gemini, url),
            Self::new(&vertex, UpstreamKind::Vertex, url),
        ]
    }

    /// As a target, without a key, under the name that stands in stores and the trail.
    pub(crate) fn target(&self, name: String) -> target::Upstream {
        let base = self.base_url();
        let upstream = match (self.kind, &self.project) {
            // The client speaks the vendor's API in Gemini's name.
            (UpstreamKind::Gemini | UpstreamKind::OpenAi, _) => target::Upstream::gemini_api(base),
            (UpstreamKind::Relay, _) => target::Upstream::same_api(base),
            (UpstreamKind::Vertex, None) => target::Upstream::express(base),
            (UpstreamKind::Vertex, Some(project)) => {
                target::Upstream::vertex(base, project.clone(), "global")
            }
        };
        let upstream = upstream.name(name).account(self.name.clone());
        match &self.project {
            Some(project) => upstream.project(project.clone()),
            None => upstream,
        }
    }

    /// Its share of the calls of a pool.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.unwrap_or(1)
    }

    /// What it charges for where its responses do not say: as configured, else by its host.
    pub(crate) fn charge_rules(&self) -> ChargeRules {
        let configured = self.charge_rules.as_deref().and_then(ChargeRules::named);
        configured.unwrap_or_else(|| {
            self.base_url().host().map_or_else(ChargeRules::unknown, ChargeRules::for_host)
        })
    }

    pub(super) fn has_key(&self) -> bool {
        self.api_key_env.is_some() || self.api_key_file.is_some()
    }

    pub(crate) fn base_url(&self) -> Uri {
        match (&self.base_url, self.kind) {
            (Some(base), _) => base.0.clone(),
            (None, UpstreamKind::Vertex) => Uri::from_static(Self::VERTEX),
            (None, _) => Uri::from_static(Self::GEMINI),
        }
    }
}
