//! The upstreams with their keys.

use std::fmt;

use http::{HeaderValue, Uri};
use tower_gemini::ClassifyGeminiErrorLayer;
use tower_gemini::charge_rules::ChargeRules;
use tower_gemini::target::{self, UpstreamId};

use crate::config::{self, AuthMode, Config, ConfigError, UpstreamKind};
use crate::files::warn_if_readable_by_others;
use crate::log;
use crate::wire;

/// One `[[upstream]]` with its key.
#[derive(Clone)]
pub(crate) struct Upstream {
    name: String,
    id: UpstreamId,
    is_vertex: bool,
    base: Uri,
    target: target::Upstream,
    /// Whether it speaks OpenAI's images API.
    is_vendor: bool,
    key: Option<HeaderValue>,
    charge_rules: ChargeRules,
}

/// Reads the upstreams with their keys from where the configuration says they are. `env` looks a
/// variable up.
pub(crate) fn upstreams(
    config: &Config,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Upstream>, ConfigError> {
    let has_keys = config.auth.mode == AuthMode::Tokens;
    let upstreams = config.upstream.iter().map(|upstream| {
        let key = has_keys.then(|| read_key(upstream, &env)).transpose()?;
        let (id, base) = (config.identity(upstream), upstream.base_url());
        let target = upstream.target(id.name.clone());
        Ok(Upstream {
            name: upstream.name.clone(),
            id,
            is_vertex: upstream.kind == UpstreamKind::Vertex,
            is_vendor: upstream.kind == UpstreamKind::OpenAi,
            base,
            // What was read as a key can stand in a header.
            target: match key.clone().and_then(|key| upstream.kind.signed(key)) {
                Some((name, key)) => target.auth(name, key),
                None => target,
            },
            key,
            charge_rules: upstream.charge_rules(),
        })
    });
    let upstreams: Vec<Upstream> = upstreams.collect::<Result<_, ConfigError>>()?;
    for (at, one) in upstreams.iter().enumerate() {
        // Google counts its two APIs apart.
        let is_same_api = |other: &&Upstream| {
            (other.is_vertex, other.is_vendor, &other.base)
                == (one.is_vertex, one.is_vendor, &one.base)
        };
        let has_same_key =
            |other: &&Upstream| one.key.is_some() && other.key == one.key && other.id != one.id;
        let mut earlier = upstreams.iter().take(at).filter(is_same_api);
        if let Some(other) = earlier.find(has_same_key) {
            let what = format!("upstreams \"{}\" and \"{}\" have one key", other.name, one.name);
            let remedy = "remove one: a key has one quota, and would be counted twice";
            return Err(ConfigError::at("upstream", what, remedy));
        }
    }
    Ok(upstreams)
}

impl Upstream {
    /// What the file calls it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As a target of calls that are addressed to another, with its key.
    pub(crate) fn target(&self) -> target::Upstream {
        self.target.clone()
    }

    /// Its identity: part of the keys of stores and of the trail. Several keys of one project have
    /// one.
    pub(crate) fn id(&self) -> &UpstreamId {
        &self.id
    }

    /// Whether the paths of Vertex AI are its own.
    pub(crate) fn is_vertex(&self) -> bool {
        self.is_vertex
    }

    /// Where its images API is, for another vendor's.
    pub(crate) fn images_api(&self) -> Option<Uri> {
        self.is_vendor.then(|| wire::upstream_uri(&self.base, "/images/generations")).flatten()
    }

    pub(crate) fn base(&self) -> &Uri {
        &self.base
    }

    /// Has responses judged by what it charges for.
    pub(crate) fn judge(&self, classify: ClassifyGeminiErrorLayer) -> ClassifyGeminiErrorLayer {
        let host = self.base.host().unwrap_or_default();
        classify.charge_rules(host, self.charge_rules)
    }

    /// The gateway's own key for it, where callers have tokens.
    pub(crate) fn key(&self) -> Option<&HeaderValue> {
        self.key.as_ref()
    }

    /// Whether keys and pictures leave this machine without TLS.
    pub(crate) fn is_unencrypted(&self) -> bool {
        is_unencrypted(&self.base)
    }
}

/// Whether what is sent there leaves this machine without TLS.
pub(crate) fn is_unencrypted(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_local =
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    url.scheme_str() == Some("http") && !is_local
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reads the gateway's own key for an upstream.
pub(crate) fn read_key(
    upstream: &config::Upstream,
    env: impl Fn(&str) -> Option<String>,
) -> Result<HeaderValue, ConfigError> {
    let name = &upstream.name;
    let what = format!("the key of upstream \"{name}\"");
    let (key, text) = config::read_secret(
        &what,
        ("upstream.api_key_env", upstream.api_key_env.as_deref()),
        ("upstream.api_key_file", upstream.api_key_file.as_deref()),
        env,
    )?;
    if let Some(file) = &upstream.api_key_file {
        warn_if_readable_by_others(file, &what);
    }
    let text = text.trim();
    if text.is_empty() {
        return Err(ConfigError::at(key, format!("{what} is empty"), ""));
    }
    log::hide(text);
    let mut secret = HeaderValue::from_str(text)
        .map_err(|_| ConfigError::at(key, format!("{what} has characters that no key has"), ""))?;
    secret.set_sensitive(true);
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str, key: Option<&str>) -> Result<Vec<Upstream>, ConfigError> {
        let config = Config::parse(toml, "gateway.toml").unwrap();
        upstreams(&config, |name| {
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
            assert_eq!(read(&file, None).unwrap()[0].is_unencrypted(), unencrypted, "{base}");
        }
    }

    #[test]
    fn the_identity_of_an_upstream_has_its_name_kind_address_and_project() {
        let ids = |file: &str| {
            let upstreams = read(file, None).unwrap();
            upstreams.iter().map(|one| one.id().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            ids(""),
            [
                "gemini-api https://generativelanguage.googleapis.com - google",
                "vertex-express https://aiplatform.googleapis.com - vertex",
            ]
        );
        let relay = "[[upstream]]\nname = \"r\"\nkind = \"relay\"\nbase_url = \"https://r/x\"\n";
        let vertex = "[[upstream]]\nname = \"v\"\nkind = \"vertex\"\nproject = \"p\"\n";
        assert_eq!(
            ids(&format!("{relay}{vertex}")),
            ["same-api https://r/x - r", "vertex-ai https://aiplatform.googleapis.com p v"]
        );
    }

    // Its quota was counted twice.
    #[test]
    fn two_upstreams_with_one_key_are_refused() {
        let upstream = |name: &str| {
            format!("[[upstream]]\nname = \"{name}\"\nkind = \"gemini\"\napi_key_env = \"K\"\n")
        };
        let auth = "[auth]\nmode = \"tokens\"\ntokens_env = \"T\"\n";
        let file = format!("{}{}{auth}", upstream("a"), upstream("b"));
        let error = read(&file, Some("sentinel")).unwrap_err().to_string();
        assert!(error.contains("\"a\" and \"b\" have one key"), "{error}");
        assert!(!error.contains("sentinel"), "{error}");
    }

    #[test]
    fn a_key_that_cannot_work_is_refused_without_being_repeated() {
        let file = "[[upstream]]\nname = \"g\"\nkind = \"gemini\"\napi_key_env = \"K\"\n[auth]\nmode = \"tokens\"\ntokens_env = \"T\"\n";
        for (key, says) in [
            (None, "the environment variable K for the key of upstream \"g\" is not set"),
            (Some(" "), "is empty"),
            (Some("sentinel\n-key"), "characters that no key has"),
        ] {
            let error = read(file, key).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("sentinel"), "{error}");
        }
        let kept = read(file, Some("sentinel\n")).unwrap();
        assert_eq!(kept[0].key().unwrap(), "sentinel");
        assert!(!format!("{kept:?}").contains("sentinel"));
    }
}
