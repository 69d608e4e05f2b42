//! Admits callers and signs requests: with the caller's credential or the gateway's own key.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{StatusCode, Uri};
use percent_encoding::percent_decode_str;

use crate::config::{self, AuthMode, ConfigError};
use crate::door::{Token, TokenSource};
use crate::responses::Rejection;
use crate::upstream::Upstream;
use crate::wire::{API_KEY, with_path};

/// How callers are admitted.
#[derive(Debug, Clone)]
pub(crate) enum Auth {
    /// Everybody; their own credential goes upstream.
    Passthrough,
    /// Callers with one of these tokens; upstreams get the gateway's own key.
    Tokens(Arc<TokenSource>),
}

/// The caller of a request.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Where there are tokens.
    token: Option<Arc<Token>>,
    /// The key came where only Google's clients put it.
    is_googles: bool,
    credential: Option<Credential>,
}

/// Its values are marked as sensitive, so that `Debug` does not show them.
#[derive(Debug)]
enum Credential {
    Key(HeaderValue),
    /// `Bearer …`, as it came.
    Bearer(HeaderValue),
}

impl Auth {
    /// Reads the tokens from where the configuration says they are. `env` looks a variable up.
    pub(crate) fn build(
        config: &config::Auth,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        match config.mode {
            AuthMode::Passthrough => Ok(Self::Passthrough),
            AuthMode::Tokens => Ok(Self::Tokens(Arc::new(TokenSource::open(config, env)?))),
        }
    }

    /// Why nobody is admitted, where that is so.
    pub(crate) fn problem(&self) -> Option<String> {
        match self {
            Self::Passthrough => None,
            Self::Tokens(source) => source.problem(),
        }
    }

    /// The caller whose token has this name, if it still opens.
    pub(crate) fn caller_named(&self, name: &str, now: SystemTime) -> Option<Caller> {
        let Self::Tokens(source) = self else { return None };
        let list = source.list().ok()?;
        let token = list.iter().find(|token| token.name == name && token.is_valid(now))?.clone();
        Some(Caller { token: Some(token), is_googles: true, credential: None })
    }

    /// The caller for which this process makes a request of its own: the owner of a job, or nobody
    /// but the operator. `None` where the owner's token opens no more.
    pub(crate) fn internal(&self, owner: &str, now: SystemTime) -> Option<Caller> {
        match owner {
            "" => Some(Caller { token: None, is_googles: true, credential: None }),
            owner => self.caller_named(owner, now),
        }
    }

    /// Removes the credential from a request, also from its query, and identifies the caller.
    pub(crate) fn admit(&self, parts: &mut Parts, now: SystemTime) -> Result<Caller, Rejection> {
        let in_query = take_query_credential(&mut parts.uri);
        let shown = parts.headers.get_all(API_KEY).iter().count()
            + parts.headers.get_all(AUTHORIZATION).iter().count();
        let key = parts.headers.remove(API_KEY);
        let bearer = parts.headers.remove(AUTHORIZATION);
        if shown > 1 {
            return Err(Rejection::new(
                StatusCode::BAD_REQUEST,
                "INVALID_ARGUMENT",
                "Multiple authentication credentials received. Please pass only one.",
            ));
        }
        let is_googles = key.is_some() || in_query.is_some();
        let mut credential = match (key, bearer, in_query) {
            (Some(key), _, _) => Some(Credential::Key(key)),
            (None, Some(bearer), _) => Some(Credential::of_bearer(bearer)),
            (None, None, Some(credential)) => credential,
            (None, None, None) => None,
        };
        if let Some(Credential::Key(value) | Credential::Bearer(value)) = &mut credential {
            value.set_sensitive(true);
        }
        let Self::Tokens(source) = self else {
            return Ok(Caller { token: None, is_googles, credential });
        };
        let shown = credential.as_ref().map(Credential::secret).unwrap_or_default();
        let found = source.find(shown).map_err(|_| {
            // The reason is in the log and not for those who are not admitted.
            Rejection::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "UNAVAILABLE",
                "This gateway cannot read its list of tokens and admits nobody. Nothing was sent.",
            )
        })?;
        let unauthenticated =
            |message: &str| Rejection::new(StatusCode::UNAUTHORIZED, UNAUTHENTICATED, message);
        let token = found.ok_or_else(|| {
            unauthenticated(
                "This gateway uses a key of its own and admits callers by token. Send your token \
                 as x-goog-api-key or as a Bearer token.",
            )
        })?;
        if !token.is_valid(now) {
            return Err(unauthenticated("This token has expired. Ask for another one."));
        }
        Ok(Caller { token: Some(token), is_googles, credential: None })
    }
}

/// Google's name of the status 401.
pub(crate) const UNAUTHENTICATED: &str = "UNAUTHENTICATED";

impl Credential {
    /// API keys come as Bearer tokens from OpenAI's clients; OAuth tokens (`ya29.…`, or a JWT) stay
    /// what they are.
    fn of_bearer(value: HeaderValue) -> Self {
        let key = value
            .to_str()
            .ok()
            .and_then(strip_bearer)
            .filter(|token| token.starts_with("AIza") || token.starts_with("AQ."));
        match key.and_then(|key| HeaderValue::from_str(key).ok()) {
            Some(key) => Self::Key(key),
            None => Self::Bearer(value),
        }
    }

    fn secret(&self) -> &[u8] {
        match self {
            Self::Key(value) => value.as_bytes(),
            Self::Bearer(value) => {
                value.to_str().ok().and_then(strip_bearer).map_or(value.as_bytes(), str::as_bytes)
            }
        }
    }
}

fn strip_bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl Caller {
    /// Whether a client of Google's asks: `/v1/models` is a path of both APIs.
    pub(crate) fn is_googles(&self) -> bool {
        self.is_googles
    }

    /// What it takes its share as: a token, or whose credential it shows.
    pub(crate) fn sharer(&self) -> crate::queue::Caller {
        let shown = self.credential.as_ref().map(Credential::secret).unwrap_or_default();
        crate::memory::caller(self.token_name().map_or(shown, str::as_bytes))
    }

    /// The name of the caller's token, where callers have tokens: never a credential.
    pub(crate) fn token_name(&self) -> Option<&str> {
        self.token.as_deref().map(|token| token.name.as_str())
    }

    /// The caller's token, where callers have tokens.
    pub(crate) fn token(&self) -> Option<&Arc<Token>> {
        self.token.as_ref()
    }

    /// Whether nothing tells this caller from others.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.token.is_none() && self.credential.is_none()
    }

    /// Signs a request translated from OpenAI's API, whose clients send keys as Bearer tokens. One
    /// that looks like OAuth's stays a Bearer token.
    pub(crate) fn sign_openai(&self, upstream: &Upstream, headers: &mut HeaderMap) {
        let key = match &self.credential {
            Some(Credential::Bearer(bearer)) if upstream.key().is_none() => bearer
                .to_str()
                .ok()
                .and_then(strip_bearer)
                .filter(|token| !token.starts_with("ya29.") && token.matches('.').count() != 2),
            _ => None,
        };
        match key.and_then(|key| HeaderValue::from_str(key).ok()) {
            Some(mut key) => {
                key.set_sensitive(true);
                headers.insert(API_KEY, key);
            }
            None => self.sign(upstream, "", headers),
        }
    }

    /// Signs a request for this path. Google's OpenAI-style paths take a key as a Bearer token.
    pub(crate) fn sign(&self, upstream: &Upstream, path: &str, headers: &mut HeaderMap) {
        let (name, value) = match (upstream.key(), &self.credential) {
            (Some(key), _) | (None, Some(Credential::Key(key))) if path.contains("/openai/") => {
                let bearer = [b"Bearer ", key.as_bytes()].concat();
                (AUTHORIZATION, HeaderValue::from_bytes(&bearer).ok())
            }
            (Some(key), _) | (None, Some(Credential::Key(key))) => (API_KEY, Some(key.clone())),
            (None, Some(Credential::Bearer(bearer))) => (AUTHORIZATION, Some(bearer.clone())),
            (None, None) => return,
        };
        if let Some(mut value) = value {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
}

/// Cuts `key=…` out of a query, and OAuth tokens, which Google takes there too. The rest stays byte
/// for byte. Of a credential that no header can hold nothing is left.
fn take_query_credential(uri: &mut Uri) -> Option<Option<Credential>> {
    let query = uri.query()?;
    let of = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_decoded(value);
        match &*percent_decoded(name) {
            "key" => Some(HeaderValue::from_str(&value).ok().map(Credential::Key)),
            "access_token" | "oauth_token" => {
                Some(HeaderValue::from_str(&format!("Bearer {value}")).ok().map(Credential::Bearer))
            }
            _ => None,
        }
    };
    let credential = query.split('&').find_map(of)?;
    let rest: Vec<&str> = query.split('&').filter(|pair| of(pair).is_none()).collect();
    let rest = (!rest.is_empty()).then(|| rest.join("&"));
    // A query without its key is as good as it was with it, so this never fails; if it did, the key
    // must not stay in it.
    *uri = with_path(uri, uri.path(), rest.as_deref()).unwrap_or_default();
    Some(credential)
}

fn percent_decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8().unwrap_or(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::door::hashed;
    use crate::upstream::upstreams;
    use http::Request;
    use std::time::Duration;

    impl Auth {
        fn admit_now(&self, parts: &mut Parts) -> Result<Caller, Rejection> {
            self.admit(parts, SystemTime::UNIX_EPOCH)
        }
    }

    const KEY: &str = "AIzaSyA-sentinel-key-0123456789abcdefghij";

    fn parts(uri: &str, headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn tokens(text: &str) -> Result<Auth, ConfigError> {
        let config = config::Auth {
            mode: AuthMode::Tokens,
            tokens_env: Some("TOKENS".to_owned()),
            ..config::Auth::default()
        };
        Auth::build(&config, |_| Some(text.to_owned()))
    }

    fn upstream(key: Option<&str>) -> Upstream {
        let file = match key {
            None => "",
            Some(_) => {
                "[[upstream]]\nname = \"g\"\nkind = \"gemini\"\napi_key_env = \"K\"\n[auth]\nmode = \"tokens\"\ntokens_env = \"T\"\n"
            }
        };
        let config = Config::parse(file, "gateway.toml").unwrap();
        let env = |_: &str| key.map(str::to_owned);
        upstreams(&config, env).unwrap().remove(0)
    }

    #[test]
    fn the_key_leaves_the_query_and_nothing_else_does() {
        for (uri, rest) in [
            (format!("/v1/x?key={KEY}"), "/v1/x"),
            (format!("/v1/x?alt=sse&key={KEY}&b=%2F"), "/v1/x?alt=sse&b=%2F"),
            (format!("/v1/x?key={KEY}&alt=sse"), "/v1/x?alt=sse"),
            (format!("/v1/x?k%65y={KEY}&alt=sse"), "/v1/x?alt=sse"),
        ] {
            let mut parts = parts(&uri, &[]);
            let caller = Auth::Passthrough.admit_now(&mut parts).unwrap();
            assert_eq!(parts.uri, rest);
            caller.sign(&upstream(None), "", &mut parts.headers);
            assert_eq!(parts.headers[API_KEY], KEY);
            assert!(!format!("{caller:?} {:?}", parts.headers).contains("sentinel"));
        }
    }

    #[test]
    fn an_api_key_as_a_bearer_token_is_an_api_key_and_an_oauth_token_stays_one() {
        let mut as_key = parts("/v1/x", &[("authorization", &format!("Bearer {KEY}"))]);
        Auth::Passthrough.admit_now(&mut as_key).unwrap().sign(
            &upstream(None),
            "",
            &mut as_key.headers,
        );
        assert_eq!(as_key.headers[API_KEY], KEY);
        assert!(!as_key.headers.contains_key(AUTHORIZATION));
        let mut oauth = parts("/v1/x", &[("authorization", "Bearer ya29.token")]);
        Auth::Passthrough.admit_now(&mut oauth).unwrap().sign(
            &upstream(None),
            "",
            &mut oauth.headers,
        );
        assert_eq!(oauth.headers[AUTHORIZATION], "Bearer ya29.token");
        let mut compat = parts("/v1beta/openai/embeddings", &[("x-goog-api-key", KEY)]);
        let caller = Auth::Passthrough.admit_now(&mut compat).unwrap();
        caller.sign(&upstream(None), "/v1beta/openai/embeddings", &mut compat.headers);
        assert_eq!(compat.headers[AUTHORIZATION], format!("Bearer {KEY}"));
    }

    #[test]
    fn two_credentials_are_one_too_many() {
        let mut both = parts("/v1/x", &[("authorization", "Bearer a"), ("x-goog-api-key", "b")]);
        assert_eq!(Auth::Passthrough.admit_now(&mut both).unwrap_err().status, 400);
        let mut twice = parts("/v1/x", &[("x-goog-api-key", "a"), ("x-goog-api-key", "b")]);
        assert_eq!(Auth::Passthrough.admit_now(&mut twice).unwrap_err().status, 400);
    }

    #[test]
    fn a_token_names_its_caller_and_is_replaced_by_the_gateways_key() {
        let auth = tokens("ann:token-of-ann-012345, ben:token-of-ben-012345").unwrap();
        let mut known = parts("/v1/x", &[("authorization", "Bearer token-of-ben-012345")]);
        let caller = auth.admit_now(&mut known).unwrap();
        assert_eq!(caller.token_name(), Some("ben"));
        caller.sign(&upstream(Some(KEY)), "", &mut known.headers);
        assert_eq!(known.headers[API_KEY], KEY);
        for wrong in ["token-of-ben-01234", "token-of-ben-0123456", KEY, "", "Bearer"] {
            let mut unknown = parts("/v1/x", &[("x-goog-api-key", wrong)]);
            assert_eq!(auth.admit_now(&mut unknown).unwrap_err().status, 401, "{wrong}");
        }
        assert_eq!(auth.admit_now(&mut parts("/v1/x", &[])).unwrap_err().status, 401);
        assert!(!format!("{auth:?}").contains("token-of"));
    }

    #[test]
    fn tokens_that_cannot_work_are_refused_without_being_repeated() {
        let says = |text: &str| tokens(text).unwrap_err().to_string();
        let said = says("sentinel-without-a-name");
        assert!(said.contains("name:token") && !said.contains("sentinel"), "{said}");
        assert!(says("ann:short").contains("token of ann is shorter than 16"));
        assert!(says("# nobody\n").contains("list of tokens is empty"));
    }

    #[test]
    fn a_token_opens_nothing_after_its_expiry() {
        let hash = hashed("token-of-ann-0123456");
        let auth = tokens(&format!(
            "[[token]]\nname = \"ann\"\nhash = \"{hash}\"\nexpires = 2026-12-01T00:00:00Z\n"
        ));
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_083_200);
        let admit = |now| {
            let mut parts = parts("/v1/x", &[("x-goog-api-key", "token-of-ann-0123456")]);
            auth.as_ref().unwrap().admit(&mut parts, now).map(drop)
        };
        assert!(admit(end - Duration::from_secs(1)).is_ok());
        let rejection = admit(end).unwrap_err();
        assert_eq!(rejection.status, 401);
        assert!(format!("{rejection:?}").contains("has expired"));
    }
}
