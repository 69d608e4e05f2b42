//! Another service to send a call to.

use std::borrow::Cow;
use std::fmt;

use http::header::{AUTHORIZATION, COOKIE, HOST, HeaderName, HeaderValue, PROXY_AUTHORIZATION};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Uri};
use serde::{Deserialize, Serialize};

use super::Unfit;
use crate::call::{Call, Dialect};

static X_GOOG_API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");
static X_GOOG_USER_PROJECT: HeaderName = HeaderName::from_static("x-goog-user-project");
static X_VERTEX_TIER: HeaderName = HeaderName::from_static("x-vertex-ai-llm-shared-request-type");

/// Which form of the API an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum UpstreamKind {
    /// The Gemini Developer API.
    GeminiApi,
    /// Vertex AI, for a project and a location.
    VertexAi,
    /// Vertex AI in express mode: an API key, neither project nor location.
    VertexExpress,
    /// Whatever the caller speaks: the caller's own path under another base URL.
    SameApi,
}

impl UpstreamKind {
    /// Returns the word used in trails and keys.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GeminiApi => "gemini-api",
            Self::VertexAi => "vertex-ai",
            Self::VertexExpress => "vertex-express",
            Self::SameApi => "same-api",
        }
    }
}

/// The identity of an upstream: part of the keys of stores, and of the trail. Nothing in it is
/// secret.
///
/// Two upstreams that differ in any of its fields share no quota, health or kept response. Its
/// `Display` (`vertex-ai https://aiplatform.googleapis.com my-project vertex-eu`) is stable and
/// tells every two of them apart, so it can be a part of a persistent key.
///
/// ```
/// use http::Uri;
/// use tower_gemini_core::target::Upstream;
///
/// let base = Uri::from_static("https://user:secret@aiplatform.googleapis.com/");
/// let upstream = Upstream::vertex(base, "my-project", "global").name("vertex-eu");
/// let id = upstream.id();
/// assert_eq!(id.to_string(), "vertex-ai https://aiplatform.googleapis.com my-project vertex-eu");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UpstreamId {
    /// The name given to it; the host where it has none.
    pub name: String,
    /// The form of the API.
    pub kind: UpstreamKind,
    /// Scheme, host, port and path, without credentials and a slash at the end.
    pub base_url: String,
    /// The project of Vertex AI.
    pub project: Option<String>,
}

impl UpstreamId {
    /// The identity of what `uri` addresses, whose own path is `path`.
    fn new(kind: UpstreamKind, uri: &Uri, path: &str, project: Option<&str>) -> Self {
        let (scheme, host) = (uri.scheme_str().unwrap_or("https"), uri.host().unwrap_or(""));
        let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
        Self {
            name: host.to_owned(),
            kind,
            base_url: [scheme, "://", host, &port, path.trim_end_matches('/')].concat(),
            project: project.map(str::to_owned),
        }
    }

    /// Whether both have the same host and port.
    #[must_use]
    pub fn has_address_of(&self, other: &Self) -> bool {
        // The third part of `scheme://host:port/path`.
        self.base_url.split('/').nth(2) == other.base_url.split('/').nth(2)
    }

    /// Returns the identity of the service that the caller's own request goes to, where no target
    /// names another: its host, and the project in a path of Vertex AI.
    ///
    /// ```
    /// use http::{HeaderMap, Method, Uri};
    /// use tower_gemini_core::{call::Call, target::UpstreamId};
    ///
    /// let uri = Uri::from_static("https://aiplatform.googleapis.com/v1/projects/p/locations/global/publishers/google/models/gemini-3-pro-image:generateContent?key=k");
    /// let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), None);
    /// let id = UpstreamId::from_request(&uri, &call);
    /// assert_eq!(id.to_string(), "vertex-ai https://aiplatform.googleapis.com p aiplatform.googleapis.com");
    /// ```
    #[must_use]
    pub fn from_request(uri: &Uri, call: &Call) -> Self {
        let mut segments = uri.path().split('/').skip_while(|segment| *segment != "projects");
        let project = segments.nth(1).filter(|_| call.dialect == Dialect::VertexAi);
        let kind = match call.dialect {
            Dialect::GeminiApi => UpstreamKind::GeminiApi,
            Dialect::VertexAi if project.is_none() => UpstreamKind::VertexExpress,
            Dialect::VertexAi => UpstreamKind::VertexAi,
            _ => UpstreamKind::SameApi,
        };
        Self::new(kind, uri, "", project)
    }
}

impl fmt::Display for UpstreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither a URL nor a project holds a space, and the name comes last.
        let project = self.project.as_deref().unwrap_or("-");
        write!(f, "{} {} {project} {}", self.kind.as_str(), self.base_url, self.name)
    }
}

/// Another service to send a call to: its address, the form of its API, its credentials and the
/// account that pays there.
///
/// The caller's own credentials are never sent to it, unless
/// [`carry_credentials`](Self::carry_credentials) says so. `Debug` shows none.
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
// Two upstreams are equal if what is sent there would be the same.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    base: Uri,
    kind: UpstreamKind,
    /// In the path of Vertex AI, with the location.
    project: Option<Cow<'static, str>>,
    location: Cow<'static, str>,
    name: Option<Cow<'static, str>>,
    version: Option<Cow<'static, str>>,
    credentials: Credentials,
    account: Option<Cow<'static, str>>,
}

#[derive(Clone, PartialEq, Eq)]
enum Credentials {
    None,
    Carried,
    Own(HeaderName, HeaderValue),
}

impl Upstream {
    fn new(base: Uri, kind: UpstreamKind) -> Self {
        Self {
            base,
            kind,
            project: None,
            location: Cow::Borrowed(""),
            name: None,
            version: None,
            credentials: Credentials::None,
            account: None,
        }
    }

    /// The Gemini Developer API, or a proxy that speaks it, under `base` (without the version).
    #[must_use]
    pub fn gemini_api(base: Uri) -> Self {
        Self::new(base, UpstreamKind::GeminiApi)
    }

    /// Vertex AI, for a project and a location. Gemini 3 models are served in `global` only, whose
    /// host is `aiplatform.googleapis.com`.
    #[must_use]
    pub fn vertex(
        base: Uri,
        project: impl Into<Cow<'static, str>>,
        location: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (project, location) = (Some(project.into()), location.into());
        Self { project, location, ..Self::new(base, UpstreamKind::VertexAi) }
    }

    /// Vertex AI in express mode: an API key, neither project nor location.
    #[must_use]
    pub fn express(base: Uri) -> Self {
        Self::new(base, UpstreamKind::VertexExpress)
    }

    /// A service that speaks whatever the caller speaks, OpenAI-style dialects too: the caller's
    /// own path under another base URL.
    #[must_use]
    pub fn same_api(base: Uri) -> Self {
        Self::new(base, UpstreamKind::SameApi)
    }

    /// Names the project that pays, where the address does not: a part of its identity.
    #[must_use]
    pub fn project(mut self, project: impl Into<Cow<'static, str>>) -> Self {
        self.project = Some(project.into());
        self
    }

    /// Sets the name under which it stands in trails, reports and keys. Default: the host.
    #[must_use]
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the API version in the path. Default: the caller's where the dialect is the caller's,
    /// else `v1beta` (Gemini API) or `v1beta1` (Vertex AI), as the official SDKs have it.
    #[must_use]
    pub fn version(mut self, version: impl Into<Cow<'static, str>>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Sets its credentials: a header and its secret value.
    #[must_use]
    pub fn auth(mut self, header: HeaderName, mut secret: HeaderValue) -> Self {
        secret.set_sensitive(true);
        self.credentials = Credentials::Own(header, secret);
        self
    }

    /// Sets an API key, sent as `x-goog-api-key`.
    ///
    /// # Errors
    /// Characters that no header may hold.
    pub fn api_key(self, key: &str) -> Result<Self, http::header::InvalidHeaderValue> {
        Ok(self.auth(X_GOOG_API_KEY.clone(), HeaderValue::from_str(key)?))
    }

    /// Sets a token, sent as `Authorization: Bearer`.
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

    /// Sets the account that pays there. All targets of an account rest when it is refused.
    /// Default: the address.
    #[must_use]
    pub fn account(mut self, account: impl Into<Cow<'static, str>>) -> Self {
        self.account = Some(account.into());
        self
    }

    /// Returns the account that pays there.
    #[must_use]
    pub fn account_name(&self) -> &str {
        match &self.account {
            Some(account) => account,
            None => self.base.authority().map_or("", Authority::as_str),
        }
    }

    /// Returns the host.
    #[must_use]
    pub fn host(&self) -> &str {
        self.base.host().unwrap_or("")
    }

    /// Returns its identity: name, kind, base URL and project.
    #[must_use]
    pub fn id(&self) -> UpstreamId {
        let (base, project) = (&self.base, self.project.as_deref());
        let id = UpstreamId::new(self.kind, base, base.path(), project);
        let name = self.name.as_deref().map_or(id.name, str::to_owned);
        UpstreamId { name, ..id }
    }

    fn own_dialect(&self) -> Option<Dialect> {
        match self.kind {
            UpstreamKind::SameApi => None,
            UpstreamKind::GeminiApi => Some(Dialect::GeminiApi),
            UpstreamKind::VertexAi | UpstreamKind::VertexExpress => Some(Dialect::VertexAi),
        }
    }

    /// Returns the dialect of a call that is sent there; `None` where it cannot be.
    pub(super) fn dialect(&self, call: &Call) -> Option<Dialect> {
        match self.own_dialect() {
            None => Some(call.dialect),
            own => own.filter(|_| call.dialect.is_gemini_shaped()),
        }
    }

    /// Returns the path there. `same_path` is the caller's own with the model put in already.
    pub(super) fn path(&self, call: &Call, model: &str, verb: &str, same_path: &str) -> String {
        let prefix = self.base.path().trim_end_matches('/');
        let own = self.own_dialect();
        let version = match (&self.version, &call.version) {
            (Some(version), _) => version,
            (None, Some(version)) if Some(call.dialect) == own => version,
            (None, _) if own == Some(Dialect::VertexAi) => "v1beta1",
            (None, _) => "v1beta",
        };
        let collection = match self.kind {
            UpstreamKind::SameApi => {
                return format!("{prefix}/{}", same_path.trim_start_matches('/'));
            }
            UpstreamKind::GeminiApi => "models".into(),
            UpstreamKind::VertexExpress => "publishers/google/models".into(),
            UpstreamKind::VertexAi => {
                let project = self.project.as_deref().unwrap_or("-");
                let location = &self.location;
                format!("projects/{project}/locations/{location}/publishers/google/models")
            }
        };
        format!("{prefix}/{version}/{collection}/{model}:{verb}")
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
        let credentials = match &self.credentials {
            Credentials::None => "none".to_owned(),
            Credentials::Carried => "the caller's".to_owned(),
            Credentials::Own(name, _) => format!("{name}: (hidden)"),
        };
        // Not the base, which may hold a key as well (`https://user:secret@…`).
        f.debug_struct("Upstream")
            .field("id", &self.id())
            .field("credentials", &credentials)
            .finish_non_exhaustive()
    }
}
