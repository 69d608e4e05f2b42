//! Who asks, and with whose key Google is asked.

use std::borrow::Cow;
use std::fmt;

use axum::body::Body;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tower_gemini::redact::redact;

use crate::answers::Refused;
use crate::config::{self, AuthMode};
use crate::hide::{star_headers, starred};

const API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// How callers are admitted.
pub(crate) enum Auth {
    /// Their own key goes on.
    Pass,
    /// They have tokens, and Google gets this key.
    Own { key: HeaderValue, tokens: Vec<Token> },
}

pub(crate) struct Token {
    name: String,
    /// Of the same length whatever the token's, so that comparing tells nothing of it.
    digest: [u8; 32],
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("Pass"),
            Self::Own { tokens, .. } => {
                f.debug_list().entries(tokens.iter().map(|token| &token.name)).finish()
            }
        }
    }
}

/// Who asks.
pub(crate) struct Caller {
    /// Of the token, where there are tokens.
    name: Option<String>,
    /// The key came where only Google's clients put it.
    is_googles: bool,
    credential: Option<Credential>,
}

#[derive(Clone)]
enum Credential {
    Key(HeaderValue),
    /// `Bearer …`, as it came.
    Bearer(HeaderValue),
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Auth {
    /// Reads key and tokens from where the configuration says they are. `env` looks a variable up.
    pub(crate) fn build(
        config: &config::Auth,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        if config.mode == AuthMode::Pass {
            return Ok(Self::Pass);
        }
        let read = |what: &str, variable: &Option<String>, file: &Option<std::path::PathBuf>| match (
            variable, file,
        ) {
            (Some(name), _) => env(name)
                .ok_or_else(|| format!("the environment variable {name} for {what} is not set")),
            (None, Some(path)) => std::fs::read_to_string(path)
                .map_err(|error| format!("{what} cannot be read from {}: {error}", path.display())),
            (None, None) => Err(format!("[auth] does not say where {what} is")),
        };
        let key = read("Google's key", &config.api_key_env, &config.api_key_file)?;
        let mut key = HeaderValue::from_str(key.trim())
            .map_err(|_| "Google's key holds characters that no key has".to_owned())?;
        if key.is_empty() {
            return Err("Google's key is empty".to_owned());
        }
        key.set_sensitive(true);
        let text = read("the callers' tokens", &config.tokens_env, &config.tokens_file)?;
        let mut tokens = Vec::new();
        for line in text
            .split(['\n', ','])
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            // The line itself is a secret and is not repeated.
            let (name, token) =
                line.split_once(':').ok_or("a line of the tokens is not of the form name:token")?;
            let (name, token) = (name.trim(), token.trim());
            if token.len() < MIN_TOKEN {
                return Err(format!(
                    "the token of {name} is shorter than {MIN_TOKEN} characters, and could be guessed"
                ));
            }
            tokens.push(Token { name: name.to_owned(), digest: Sha256::digest(token).into() });
        }
        if tokens.is_empty() {
            return Err("there are no callers' tokens, so that nobody could ask".to_owned());
        }
        Ok(Self::Own { key, tokens })
    }

    /// Google's sentences about a key hold the key. The gateway's own is none of its callers'
    /// business.
    pub(crate) async fn hide_key(&self, answer: Response<Body>) -> Response<Body> {
        let Self::Own { key, .. } = self else { return answer };
        let status = answer.status();
        if status.is_success() || status.is_informational() {
            return starred(answer, key);
        }
        let (mut parts, body) = answer.into_parts();
        star_headers(&mut parts.headers, key.as_bytes());
        let body = match Limited::new(body, LONGEST_ERROR).collect().await {
            Ok(body) => without(&body.to_bytes(), key.as_bytes()),
            Err(error) => {
                tracing::debug!(%error, "an error answer broke off, or is too long to be looked through");
                Bytes::new()
            }
        };
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(TRANSFER_ENCODING);
        Response::from_parts(parts, Body::from(body))
    }

    /// Takes the credential out of a request, key in the query and all, and says who asks.
    pub(crate) fn admit(&self, parts: &mut Parts) -> Result<Caller, Refused> {
        let in_query = take_query_credential(&mut parts.uri);
        let shown = parts.headers.get_all(API_KEY).iter().count()
            + parts.headers.get_all(AUTHORIZATION).iter().count();
        let key = parts.headers.remove(API_KEY);
        let bearer = parts.headers.remove(AUTHORIZATION);
        if shown > 1 {
            return Err(Refused::new(
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
        match self {
            Self::Pass => Ok(Caller { name: None, is_googles, credential }),
            Self::Own { key, tokens } => {
                let shown = credential.as_ref().map(Credential::secret).unwrap_or_default();
                let digest: [u8; 32] = Sha256::digest(shown).into();
                // Against all of them, whichever fits: how long it takes tells nothing.
                let mut fits = None;
                for token in tokens {
                    let same: Choice = token.digest.ct_eq(&digest);
                    if bool::from(same) {
                        fits = Some(token.name.clone());
                    }
                }
                match fits {
                    Some(name) if !shown.is_empty() => Ok(Caller {
                        name: Some(name),
                        is_googles,
                        credential: Some(Credential::Key(key.clone())),
                    }),
                    _ => Err(Refused::new(
                        StatusCode::UNAUTHORIZED,
                        "UNAUTHENTICATED",
                        "This gateway asks with a key of its own and wants to know who asks: send your token as x-goog-api-key or as a Bearer token.",
                    )),
                }
            }
        }
    }
}

/// Of error answers the largest that was collected has 11 KB; pages of front ends are longer.
const LONGEST_ERROR: usize = 1024 * 1024;

/// A text without this secret, and without anything else that looks like one.
fn without(text: &[u8], secret: &[u8]) -> Bytes {
    let mut clean = Vec::with_capacity(text.len());
    let mut from = 0;
    for at in memchr::memmem::find_iter(text, secret) {
        clean.extend_from_slice(&text[from..at]);
        clean.extend_from_slice(b"***");
        from = at + secret.len();
    }
    clean.extend_from_slice(&text[from..]);
    match std::str::from_utf8(&clean).map(redact) {
        Ok(Cow::Owned(clean)) => clean.into(),
        _ => clean.into(),
    }
}

/// As many characters as no list of guesses holds; `openssl rand -hex 16` gives 32.
const MIN_TOKEN: usize = 16;

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

    /// Puts the credential where Gemini's own API reads it, of a client of OpenAI's, whose tokens
    /// are keys unless they look like OAuth's.
    pub(crate) fn sign_openai(&self, headers: &mut HeaderMap) {
        let key = match &self.credential {
            Some(Credential::Bearer(bearer)) => bearer
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
            None => self.sign(headers),
        }
    }

    /// The name of the caller's token, where callers have tokens: never a credential.
    pub(crate) fn token_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Puts the credential where Gemini's own API reads it.
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        match &self.credential {
            Some(Credential::Key(key)) => headers.insert(API_KEY, key.clone()),
            Some(Credential::Bearer(bearer)) => headers.insert(AUTHORIZATION, bearer.clone()),
            None => None,
        };
    }

    /// Puts the credential where the API behind this path reads it: Google's OpenAI-style paths
    /// take a key as a Bearer token.
    pub(crate) fn sign_for(&self, path: &str, headers: &mut HeaderMap) {
        match &self.credential {
            Some(Credential::Key(key)) if path.contains("/openai/") => {
                if let Ok(mut value) =
                    HeaderValue::from_bytes(&[b"Bearer ", key.as_bytes()].concat())
                {
                    value.set_sensitive(true);
                    headers.insert(AUTHORIZATION, value);
                }
            }
            _ => self.sign(headers),
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
    let path = uri.path();
    let text = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = text.parse().ok();
    // A query without its key is as good as it was with it, so this never fails; if it did, the key
    // must not stay in it.
    *uri = Uri::from_parts(parts).unwrap_or_default();
    Some(credential)
}

fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail
            .get(..2)
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(text), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const KEY: &str = "AIzaSyA-sentinel-key-0123456789abcdefghij";

    fn parts(uri: &str, headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn own() -> Auth {
        let config = config::Auth {
            mode: AuthMode::Own,
            api_key_env: Some("KEY".to_owned()),
            tokens_env: Some("TOKENS".to_owned()),
            ..config::Auth::default()
        };
        Auth::build(&config, |name| {
            Some(if name == "KEY" {
                KEY.to_owned()
            } else {
                "ann:token-of-ann-012345, ben:token-of-ben-012345".to_owned()
            })
        })
        .unwrap()
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
            let caller = Auth::Pass.admit(&mut parts).unwrap();
            assert_eq!(parts.uri, rest);
            caller.sign(&mut parts.headers);
            assert_eq!(parts.headers[API_KEY], KEY);
            assert!(!format!("{caller:?} {:?}", parts.headers).contains("sentinel"));
        }
    }

    #[test]
    fn an_api_key_as_a_bearer_token_is_an_api_key_and_an_oauth_token_stays_one() {
        let mut as_key = parts("/v1/x", &[("authorization", &format!("Bearer {KEY}"))]);
        Auth::Pass.admit(&mut as_key).unwrap().sign(&mut as_key.headers);
        assert_eq!(as_key.headers[API_KEY], KEY);
        assert!(!as_key.headers.contains_key(AUTHORIZATION));
        let mut oauth = parts("/v1/x", &[("authorization", "Bearer ya29.token")]);
        Auth::Pass.admit(&mut oauth).unwrap().sign(&mut oauth.headers);
        assert_eq!(oauth.headers[AUTHORIZATION], "Bearer ya29.token");
        let mut compat = parts("/v1beta/openai/embeddings", &[("x-goog-api-key", KEY)]);
        Auth::Pass
            .admit(&mut compat)
            .unwrap()
            .sign_for("/v1beta/openai/embeddings", &mut compat.headers);
        assert_eq!(compat.headers[AUTHORIZATION], format!("Bearer {KEY}"));
    }

    #[test]
    fn two_credentials_are_one_too_many() {
        let mut both = parts("/v1/x", &[("authorization", "Bearer a"), ("x-goog-api-key", "b")]);
        assert_eq!(Auth::Pass.admit(&mut both).unwrap_err().status, 400);
        let mut twice = parts("/v1/x", &[("x-goog-api-key", "a"), ("x-goog-api-key", "b")]);
        assert_eq!(Auth::Pass.admit(&mut twice).unwrap_err().status, 400);
    }

    #[test]
    fn a_token_names_its_caller_and_is_replaced_by_the_gateways_key() {
        let auth = own();
        let mut known = parts("/v1/x", &[("authorization", "Bearer token-of-ben-012345")]);
        let caller = auth.admit(&mut known).unwrap();
        assert_eq!(caller.token_name(), Some("ben"));
        caller.sign(&mut known.headers);
        assert_eq!(known.headers[API_KEY], KEY);
        for wrong in ["token-of-ben-01234", "token-of-ben-0123456", KEY, "", "Bearer"] {
            let mut unknown = parts("/v1/x", &[("x-goog-api-key", wrong)]);
            assert_eq!(auth.admit(&mut unknown).unwrap_err().status, 401, "{wrong}");
        }
        assert_eq!(auth.admit(&mut parts("/v1/x", &[])).unwrap_err().status, 401);
        assert!(!format!("{auth:?}").contains("token-of"));
    }

    #[test]
    fn keys_and_tokens_that_cannot_work_are_refused_without_being_repeated() {
        let config = config::Auth {
            mode: AuthMode::Own,
            api_key_env: Some("KEY".to_owned()),
            tokens_env: Some("TOKENS".to_owned()),
            ..config::Auth::default()
        };
        let says = |key: Option<&str>, tokens: &str| {
            let tokens = tokens.to_owned();
            Auth::build(&config, |name| {
                if name == "KEY" { key.map(str::to_owned) } else { Some(tokens.clone()) }
            })
            .unwrap_err()
        };
        assert!(says(None, "a:0123456789abcdef").contains("KEY for Google's key is not set"));
        assert!(says(Some(" "), "a:0123456789abcdef").contains("empty"));
        let said = says(Some("k"), "sentinel-without-a-name");
        assert!(said.contains("name:token") && !said.contains("sentinel"), "{said}");
        assert!(says(Some("k"), "ann:short").contains("token of ann is shorter than 16"));
        assert!(says(Some("k"), "# nobody\n").contains("nobody could ask"));
    }
}
