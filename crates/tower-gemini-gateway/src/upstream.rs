//! Chooses the upstream of a request by its path, and holds the upstreams' keys.

use std::fmt;

use http::{HeaderValue, Uri};

use crate::config::{self, AuthMode, Config, ConfigProblem, UpstreamKind};
use crate::wire;

/// One `[[upstream]]` with its key.
#[derive(Clone)]
pub(crate) struct Upstream {
    name: String,
    kind: UpstreamKind,
    base: Uri,
    key: Option<HeaderValue>,
}

/// The upstreams: at most one for the paths of each API.
#[derive(Debug, Clone)]
pub(crate) struct Upstreams(Vec<Upstream>);

impl Upstreams {
    /// Reads the keys from where the configuration says they are. `env` looks a variable up.
    pub(crate) fn build(
        config: &Config,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigProblem> {
        let has_keys = config.auth.mode == AuthMode::Tokens;
        let upstreams = config.upstream.iter().map(|upstream| {
            let key = has_keys.then(|| read_key(upstream, &env)).transpose()?;
            let (name, kind, base) = (upstream.name.clone(), upstream.kind, upstream.base_url());
            Ok(Upstream { name, kind, base, key })
        });
        upstreams.collect::<Result<_, _>>().map(Self)
    }

    /// The upstream that answers this path.
    pub(crate) fn for_path(&self, path: &str) -> Option<&Upstream> {
        self.of_kind(wire::is_vertex(path))
    }

    /// The upstream that speaks the Gemini Developer API.
    pub(crate) fn gemini(&self) -> Option<&Upstream> {
        self.of_kind(false)
    }

    fn of_kind(&self, vertex: bool) -> Option<&Upstream> {
        self.0.iter().find(|one| one.kind.is_vertex() == vertex)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Upstream> {
        self.0.iter()
    }

    /// The gateway's own keys, which no caller may see.
    pub(crate) fn keys(&self) -> Vec<&HeaderValue> {
        let mut keys: Vec<_> = self.0.iter().filter_map(Upstream::key).collect();
        keys.dedup();
        keys
    }
}

impl Upstream {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn base(&self) -> &Uri {
        &self.base
    }

    /// The gateway's own key for it, where callers have tokens.
    pub(crate) fn key(&self) -> Option<&HeaderValue> {
        self.key.as_ref()
    }

    /// Whether keys and pictures leave this machine without TLS.
    pub(crate) fn is_unencrypted(&self) -> bool {
        let host = self.base.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_local = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        self.base.scheme_str() == Some("http") && !is_local
    }
}

impl fmt::Display for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, upstream) in self.0.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{} ({})", upstream.name, upstream.base)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("name", &self.name)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

fn read_key(
    upstream: &config::Upstream,
    env: impl Fn(&str) -> Option<String>,
) -> Result<HeaderValue, ConfigProblem> {
    let name = &upstream.name;
    let what = format!("the key of upstream \"{name}\"");
    let (key, text) = config::read_secret(
        &what,
        ("upstream.api_key_env", upstream.api_key_env.as_deref()),
        ("upstream.api_key_file", upstream.api_key_file.as_deref()),
        env,
    )?;
    let text = text.trim();
    if text.is_empty() {
        return Err(ConfigProblem::at(key, format!("{what} is empty"), ""));
    }
    let mut secret = HeaderValue::from_str(text).map_err(|_| {
        ConfigProblem::at(key, format!("{what} has characters that no key has"), "")
    })?;
    secret.set_sensitive(true);
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams(toml: &str, key: Option<&str>) -> Result<Upstreams, ConfigProblem> {
        let config = Config::parse(toml, "gateway.toml").unwrap();
        Upstreams::build(&config, |name| {
            assert_eq!(name, "K");
            key.map(str::to_owned)
        })
    }

    #[test]
    fn only_plain_http_to_another_machine_is_unencrypted() {
        for (base, unencrypted) in [
            ("https://generativelanguage.googleapis.com", false),
            ("http://127.0.0.1:1", false),
            ("http://localhost:1", false),
            ("http://[::1]:1/x", false),
            ("http://egress.internal:3128", true),
            ("http://192.0.2.1", true),
        ] {
            let file =
                format!("[[upstream]]\nname = \"a\"\nkind = \"relay\"\nbase_url = \"{base}\"\n");
            let upstreams = upstreams(&file, None).unwrap();
            assert_eq!(upstreams.gemini().unwrap().is_unencrypted(), unencrypted, "{base}");
        }
    }

    #[test]
    fn a_path_leads_to_the_upstream_of_its_api_and_nowhere_else() {
        let names = |file: &str| {
            let upstreams = upstreams(file, None).unwrap();
            ["/v1beta/models/m:generateContent", "/v1/projects/p/locations/l/x"]
                .map(|path| upstreams.for_path(path).map(|one| one.name().to_owned()))
        };
        let (google, vertex) = (Some("google".to_owned()), Some("vertex".to_owned()));
        assert_eq!(names(""), [google, vertex]);
        let relay = "[[upstream]]\nname = \"r\"\nkind = \"relay\"\nbase_url = \"https://r\"\n";
        assert_eq!(names(relay), [Some("r".to_owned()), None]);
        assert_eq!(
            names("[[upstream]]\nname = \"v\"\nkind = \"vertex\"\n"),
            [None, Some("v".to_owned())]
        );
    }

    #[test]
    fn a_key_that_cannot_work_is_refused_without_being_repeated() {
        let file = "[[upstream]]\nname = \"g\"\nkind = \"gemini\"\napi_key_env = \"K\"\n[auth]\nmode = \"tokens\"\ntokens_env = \"T\"\n";
        for (key, says) in [
            (None, "the environment variable K for the key of upstream \"g\" is not set"),
            (Some(" "), "is empty"),
            (Some("sentinel\n-key"), "characters that no key has"),
        ] {
            let error = upstreams(file, key).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("sentinel"), "{error}");
        }
        let kept = upstreams(file, Some("sentinel\n")).unwrap();
        assert_eq!(kept.keys(), ["sentinel"]);
        assert!(!format!("{kept:?}").contains("sentinel"));
    }
}
