//! What an upstream charges for where its response does not say: data per upstream, in
//! `catalog/charge_rules.toml`, each with its source and date.
//!
//! Google does not charge for its own errors. A relay in front of it reports failures of its own, by
//! which nobody knows whether the image was made and paid for: unless the relay documents otherwise,
//! such a failure *may* have been charged.
//!
//! ```
//! use tower_gemini_core::charge_rules::ChargeRules;
//! use tower_gemini_core::verdict::Charge;
//!
//! assert_eq!(ChargeRules::for_host("generativelanguage.googleapis.com").name(), "google");
//! assert_eq!(ChargeRules::for_host("relay.example").name(), "unknown");
//! assert_eq!(ChargeRules::named("apiyi").unwrap().disconnect(), Charge::Charged);
//! ```

use std::fmt;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::verdict::Charge;

/// The rules of one upstream. O(1) to copy.
#[derive(Clone, Copy)]
pub struct ChargeRules(&'static Rules);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    name: String,
    hosts: Vec<String>,
    failure: Word,
    disconnect: Word,
    empty_success: Word,
    source: String,
    date: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    None,
    Maybe,
    Charged,
}

impl From<Word> for Charge {
    fn from(word: Word) -> Self {
        match word {
            Word::None => Self::None,
            Word::Maybe => Self::Maybe,
            Word::Charged => Self::Charged,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    upstream: Vec<Rules>,
}

static ALL: LazyLock<Vec<Rules>> = LazyLock::new(|| {
    toml::from_str::<File>(include_str!("../catalog/charge_rules.toml"))
        .map(|file| file.upstream)
        .unwrap_or_default()
});

/// The careful rules, which hold where nothing is known.
static UNKNOWN: LazyLock<Rules> = LazyLock::new(|| Rules {
    name: "unknown".to_owned(),
    hosts: Vec::new(),
    failure: Word::Maybe,
    disconnect: Word::Maybe,
    empty_success: Word::Maybe,
    source: "nothing is known: what may have been charged is not sent again".to_owned(),
    date: String::new(),
});

impl ChargeRules {
    /// Returns the careful rules: whatever is not proven free may have been charged.
    #[must_use]
    pub fn unknown() -> Self {
        Self(&UNKNOWN)
    }

    /// Returns the rules of that name (`google`, `vertex`, `laozhang`, `apiyi`, `unknown`).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|rules| rules.name() == name)
    }

    /// Returns the rules of the upstream at that host, [`unknown`](Self::unknown) where it is not
    /// listed. A host is listed with its subdomains; a port does not matter.
    #[must_use]
    pub fn for_host(host: &str) -> Self {
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host).trim_end_matches('.');
        let is_of = |listed: &String| {
            let Some(at) = host.len().checked_sub(listed.len()) else { return false };
            let (sub, name) = match (host.get(..at), host.get(at..)) {
                (Some(sub), Some(name)) => (sub, name),
                _ => return false,
            };
            name.eq_ignore_ascii_case(listed)
                && (sub.is_empty() || sub.ends_with('.') || listed.starts_with('-'))
        };
        let found = ALL.iter().find(|rules| rules.hosts.iter().any(is_of));
        found.map_or_else(Self::unknown, Self)
    }

    /// Returns all rules, `unknown` last.
    pub fn all() -> impl Iterator<Item = Self> {
        ALL.iter().map(Self).chain([Self::unknown()])
    }

    /// Returns the upstream's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        &self.0.name
    }

    /// Returns what a failure (5xx) costs that Google did not report itself and that does not prove
    /// that nothing was sent.
    #[must_use]
    pub fn failure(self) -> Charge {
        self.0.failure.into()
    }

    /// Returns what an attempt costs whose connection broke after it was sent.
    #[must_use]
    pub fn disconnect(self) -> Charge {
        self.0.disconnect.into()
    }

    /// Returns what a 200 costs in which nothing was made and no tokens were counted.
    #[must_use]
    pub fn empty_success(self) -> Charge {
        self.0.empty_success.into()
    }

    /// Returns where the rules are documented.
    #[must_use]
    pub fn source(self) -> &'static str {
        &self.0.source
    }

    /// Returns when the source was read, as `2026-11`; empty for `unknown`.
    #[must_use]
    pub fn date(self) -> &'static str {
        &self.0.date
    }
}

impl Default for ChargeRules {
    fn default() -> Self {
        Self::unknown()
    }
}

impl PartialEq for ChargeRules {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for ChargeRules {}

impl fmt::Debug for ChargeRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChargeRules").field(&self.name()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_and_every_rule_has_a_source_and_a_date() {
        let file: File = toml::from_str(include_str!("../catalog/charge_rules.toml")).unwrap();
        for rules in &file.upstream {
            assert!(!rules.source.is_empty() && !rules.date.is_empty(), "{}", rules.name);
        }
        let names: Vec<_> = ChargeRules::all().map(ChargeRules::name).collect();
        assert_eq!(names, ["google", "vertex", "laozhang", "apiyi", "unknown"]);
    }

    #[test]
    fn a_host_is_known_with_its_subdomains_and_nothing_else() {
        for (host, name) in [
            ("generativelanguage.googleapis.com", "google"),
            ("Generativelanguage.GoogleAPIs.com:443", "google"),
            ("aiplatform.googleapis.com", "vertex"),
            ("us-central1-aiplatform.googleapis.com", "vertex"),
            ("aiplatform.us.rep.googleapis.com", "vertex"),
            ("api.laozhang.ai", "laozhang"),
            ("vip.apiyi.com", "apiyi"),
            ("evil-generativelanguage.googleapis.com.example", "unknown"),
            ("xgenerativelanguage.googleapis.com", "unknown"),
            ("notapiyi.com", "unknown"),
            ("127.0.0.1:8080", "unknown"),
            ("", "unknown"),
        ] {
            assert_eq!(ChargeRules::for_host(host).name(), name, "{host}");
        }
    }
}
