//! Another place to send a call to.

use std::borrow::Cow;
use std::fmt;

use http::header::{AUTHORIZATION, COOKIE, HOST, HeaderName, HeaderValue, PROXY_AUTHORIZATION};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Uri};

use super::Unfit;
use crate::call::{Call, Dialect};

static X_GOOG_API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");
static X_GOOG_USER_PROJECT: HeaderName = HeaderName::from_static("x-goog-user-project");
static X_VERTEX_TIER: HeaderName = HeaderName::from_static("x-vertex-ai-llm-shared-request-type");

/// Another place to send a call to: its address, its dialect of the Gemini API, its credentials and
/// the account that pays there.
///
/// The caller's own credentials never go to it, unless
/// [`carry_credentials`](Self::carry_credentials) says so. Its own are in no `Debug`.
///
/// ```
/// use http::{HeaderValue, Uri};
/// use tower_gemini_core::target::{Target, Upstream};
///
/// let vertex = Upstream::vertex(Uri::from_static("https://aiplatform.googleapis.com"), "my-project", "global")
///     .bearer("ya29.a-token")?
///     .account("my-project");
/// let target = Target::new("gemini-3-pro-image").on(vertex);
/// assert!(!format!("{target:?}").contains("a-token"));
/// # Ok::<(), http::header::InvalidHeaderValue>(())
/// ```
#[derive(Clone)]
pub struct Upstream {
    base: Uri,
    api: Form,
    version: Option<Cow<'static, str>>,
    credentials: Credentials,
    account: Option<Cow<'static, str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// The caller's own path, under another base.
    Same,
    Gemini,
    Vertex {
        project: Cow<'static, str>,
        location: Cow<'static, str>,
    },
    Express,
}

#[derive(Clone)]
enum Credentials {
    None,
    Carried,
    Own(HeaderName, HeaderValue),
}

impl Upstream {
    fn new(base: Uri, api: Form) -> Self {
        Self { base, api, version: None, credentials: Credentials::None, account: None }
    }

    /// The Gemini Developer API, or a proxy that speaks it, under `base` (without the version).
    #[must_use]
    pub fn gemini_api(base: Uri) -> Self {
        Self::new(base, Form::Gemini)
    }

    /// Vertex AI, for a project and a location. Gemini 3 models live in `global`, whose host is
    /// `aiplatform.googleapis.com`.
    #[must_use]
    pub fn vertex(
        base: Uri,
        project: impl Into<Cow<'static, str>>,
        location: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(base, Form::Vertex { project: project.into(), location: location.into() })
    }

    /// Vertex AI in express mode: an API key, neither project nor location.
    #[must_use]
    pub fn express(base: Uri) -> Self {
        Self::new(base, Form::Express)
    }

    /// A place that speaks whatever the caller speaks, OpenAI-style dialects too: the caller's own
    /// path under another base.
    #[must_use]
    pub fn same_api(base: Uri) -> Self {
        Self::new(base, Form::Same)
    }

    /// The API version in the path. Default: the caller's where the dialect is the caller's, else
    /// `v1beta` (Gemini API) or `v1beta1` (Vertex AI), as the official SDKs have it.
    #[must_use]
    pub fn version(mut self, version: impl Into<Cow<'static, str>>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Its credentials: a header and its secret value.
    #[must_use]
    pub fn auth(mut self, header: HeaderName, mut secret: HeaderValue) -> Self {
        secret.set_sensitive(true);
        self.credentials = Credentials::Own(header, secret);
        self
    }

    /// An API key, sent as `x-goog-api-key`.
    ///
    /// # Errors
    /// Characters that no header may hold.
    pub fn api_key(self, key: &str) -> Result<Self, http::header::InvalidHeaderValue> {
        Ok(self.auth(X_GOOG_API_KEY.clone(), HeaderValue::from_str(key)?))
    }

    /// A token, sent as `Authorization: Bearer`.
    ///
    /// # Errors
    /// Characters that no header may hold.
    pub fn bearer(self, token: &str) -> Result<Self, http::header::InvalidHeaderValue> {
        Ok(self.auth(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}"))?))
    }

    /// Sends the caller's own credentials there: for another address of the same service.
    #[must_use]
    pub fn carry_credentials(mut self) -> Self {
        self.credentials = Credentials::Carried;
        self
    }

    /// Who pays there. Targets of one account close together when the account is refused. Default:
    /// the address.
    #[must_use]
    pub fn account(mut self, account: impl Into<Cow<'static, str>>) -> Self {
        self.account = Some(account.into());
        self
    }

    /// Who pays there.
    #[must_use]
    pub fn account_name(&self) -> &str {
        match &self.account {
            Some(account) => account,
            None => self.base.authority().map_or("", Authority::as_str),
        }
    }

    /// A name for trails: the host, nothing secret.
    #[must_use]
    pub fn host(&self) -> &str {
        self.base.host().unwrap_or("")
    }

    /// The dialect of a call that is sent there; `None` where it cannot be.
    pub(super) fn dialect(&self, call: &Call) -> Option<Dialect> {
        let gemini_shaped = matches!(call.dialect, Dialect::GeminiApi | Dialect::VertexAi);
        match self.api {
            Form::Same => Some(call.dialect),
            Form::Gemini => gemini_shaped.then_some(Dialect::GeminiApi),
            Form::Vertex { .. } | Form::Express => gemini_shaped.then_some(Dialect::VertexAi),
        }
    }

    /// The path there. `same_path` is the caller's own with the model put in already.
    pub(super) fn path(&self, call: &Call, model: &str, verb: &str, same_path: &str) -> String {
        let prefix = self.base.path().trim_end_matches('/');
        let (own, default) = match self.api {
            Form::Same => return format!("{prefix}/{}", same_path.trim_start_matches('/')),
            Form::Gemini => (Dialect::GeminiApi, "v1beta"),
            Form::Vertex { .. } | Form::Express => (Dialect::VertexAi, "v1beta1"),
        };
        let version = match (&self.version, &call.version) {
            (Some(version), _) => version,
            (None, Some(version)) if call.dialect == own => version,
            (None, _) => default,
        };
        match &self.api {
            Form::Vertex { project, location } => {
                format!(
                    "{prefix}/{version}/projects/{project}/locations/{location}/publishers/google/models/{model}:{verb}"
                )
            }
            Form::Express => format!("{prefix}/{version}/publishers/google/models/{model}:{verb}"),
            Form::Same | Form::Gemini => format!("{prefix}/{version}/models/{model}:{verb}"),
        }
    }

    pub(super) fn uri(&self, path: &str, query: Option<&str>) -> Result<Uri, Unfit> {
        let scheme = self.base.scheme().cloned().unwrap_or(Scheme::HTTPS);
        let authority = self.base.authority().cloned().ok_or(Unfit::BadAddress)?;
        // A key in the query is a credential like any other.
        let carried = matches!(self.credentials, Credentials::Carried);
        let query: Vec<_> = query
            .unwrap_or("")
            .split('&')
            .filter(|pair| {
                !pair.is_empty()
                    && (carried || !matches!(pair.split('=').next(), Some("key" | "access_token")))
            })
            .collect();
        let path =
            if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
        Uri::builder()
            .scheme(scheme)
            .authority(authority)
            .path_and_query(path)
            .build()
            .map_err(|_| Unfit::BadAddress)
    }

    pub(super) fn head(&self, headers: &mut HeaderMap, dialect: Dialect) {
        headers.remove(HOST);
        if dialect != Dialect::VertexAi {
            headers.remove(&X_VERTEX_TIER);
        }
        if matches!(self.credentials, Credentials::Carried) {
            return;
        }
        for name in
            [&X_GOOG_API_KEY, &X_GOOG_USER_PROJECT, &AUTHORIZATION, &PROXY_AUTHORIZATION, &COOKIE]
        {
            headers.remove(name);
        }
        if let Credentials::Own(name, value) = &self.credentials {
            headers.insert(name.clone(), value.clone());
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A base may hold a key as well (`https://user:secret@…`): host and dialect say enough.
        let credentials = match &self.credentials {
            Credentials::None => "none".to_owned(),
            Credentials::Carried => "the caller's".to_owned(),
            Credentials::Own(name, _) => format!("{name}: (hidden)"),
        };
        f.debug_struct("Upstream")
            .field("host", &self.host())
            .field("api", &self.api)
            .field("credentials", &credentials)
            .finish()
    }
}

// Two upstreams are the same place if what is sent there would be the same.
impl PartialEq for Upstream {
    fn eq(&self, other: &Self) -> bool {
        let credentials = match (&self.credentials, &other.credentials) {
            (Credentials::None, Credentials::None)
            | (Credentials::Carried, Credentials::Carried) => true,
            (Credentials::Own(name, value), Credentials::Own(other, secret)) => {
                name == other && value == secret
            }
            _ => false,
        };
        credentials
            && self.base == other.base
            && self.api == other.api
            && self.version == other.version
            && self.account_name() == other.account_name()
    }
}

impl Eq for Upstream {}
