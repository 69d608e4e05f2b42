//! What may be used: the words and the numbers.

use std::fmt;
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;

use tower_gemini_core::call::ModelId;

/// One of the four things that Google counts, all at once (article 004 and Google's rate-limit
/// pages).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// RPM.
    RequestsPerMinute,
    /// TPM: input tokens.
    TokensPerMinute,
    /// IPM.
    ImagesPerMinute,
    /// RPD: until midnight Pacific.
    RequestsPerDay,
}

impl Dimension {
    /// All four, in the order of [`Amounts`].
    pub const ALL: [Self; 4] = [
        Self::RequestsPerMinute,
        Self::TokensPerMinute,
        Self::ImagesPerMinute,
        Self::RequestsPerDay,
    ];

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::RequestsPerMinute => 0,
            Self::TokensPerMinute => 1,
            Self::ImagesPerMinute => 2,
            Self::RequestsPerDay => 3,
        }
    }

    /// The word used in logs and refusals: `rpm`, `tpm`, `ipm` or `rpd`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "rpm",
            Self::TokensPerMinute => "tpm",
            Self::ImagesPerMinute => "ipm",
            Self::RequestsPerDay => "rpd",
        }
    }

    /// Google's own `quotaId` for it, which clients know how to read.
    #[must_use]
    pub fn quota_id(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "GenerateRequestsPerMinutePerProjectPerModel",
            Self::TokensPerMinute => "GenerateContentInputTokensPerModelPerMinute",
            Self::ImagesPerMinute => "GenerateImagesPerMinutePerProjectPerModel",
            Self::RequestsPerDay => "GenerateRequestsPerDayPerProjectPerModel",
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount in each dimension, in the order of [`Dimension::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Amounts(pub [u64; 4]);

impl Amounts {
    /// What one call takes: a request of the minute and of the day, its input tokens, its images.
    #[must_use]
    pub fn of_call(tokens: u64, images: u64) -> Self {
        Self([1, tokens, images, 1])
    }

    /// The amount in one dimension.
    #[must_use]
    pub fn get(&self, dimension: Dimension) -> u64 {
        self.0[dimension.index()]
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(crate) fn times(self, by: u64) -> Self {
        Self(self.0.map(|amount| amount.saturating_mul(by)))
    }
}

/// The limits of one (project, model). A dimension without one is not counted against anything.
///
/// ```
/// use tower_gemini::quota_guard::{Dimension, Limits};
///
/// let limits = Limits::unlimited().rpm(10).ipm(10).rpd(1_000);
/// assert_eq!(limits.get(Dimension::RequestsPerDay), Some(1_000));
/// assert_eq!(limits.get(Dimension::TokensPerMinute), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits(pub(super) [Option<u64>; 4]);

impl Limits {
    /// No limit in any dimension.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self([None; 4])
    }

    /// Requests in any 60 seconds.
    #[must_use]
    pub const fn rpm(mut self, requests: u64) -> Self {
        self.0[0] = Some(requests);
        self
    }

    /// Input tokens in any 60 seconds.
    #[must_use]
    pub const fn tpm(mut self, tokens: u64) -> Self {
        self.0[1] = Some(tokens);
        self
    }

    /// Images in any 60 seconds.
    #[must_use]
    pub const fn ipm(mut self, images: u64) -> Self {
        self.0[2] = Some(images);
        self
    }

    /// Requests from midnight Pacific to midnight Pacific.
    #[must_use]
    pub const fn rpd(mut self, requests: u64) -> Self {
        self.0[3] = Some(requests);
        self
    }

    /// The limit in one dimension, where there is one.
    #[must_use]
    pub const fn get(&self, dimension: Dimension) -> Option<u64> {
        self.0[dimension.index()]
    }

    /// The same with one dimension changed.
    #[must_use]
    pub fn with(mut self, dimension: Dimension, limit: Option<u64>) -> Self {
        self.0[dimension.index()] = limit;
        self
    }

    /// Whether no dimension has a limit.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// A project, by any name: limits are per project and not per key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectId(Arc<str>);

impl ProjectId {
    /// A project by the name that you give it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A project told by its credential, without keeping the credential: 128 bits of SipHash-2-4
    /// under `secret`.
    ///
    /// The same secret gives the same project in every process. Without the secret nobody can try
    /// credentials against the name.
    ///
    /// ```
    /// use tower_gemini::quota_guard::ProjectId;
    ///
    /// let project = ProjectId::of_credential(&[7; 16], "AIza-not-a-key");
    /// assert_eq!(project, ProjectId::of_credential(&[7; 16], "AIza-not-a-key"));
    /// assert_ne!(project, ProjectId::of_credential(&[8; 16], "AIza-not-a-key"));
    /// assert!(!project.as_str().contains("AIza"));
    /// ```
    #[must_use]
    pub fn of_credential(secret: &[u8; 16], credential: &str) -> Self {
        let mut hasher = SipHasher24::new_with_key(secret);
        hasher.write(credential.as_bytes());
        Self(format!("key-{:032x}", hasher.finish128().as_u128()).into())
    }
}

impl fmt::Debug for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What limits are counted for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QuotaKey {
    /// Whose quota it is.
    pub project: ProjectId,
    /// The model as the request spells it.
    pub model: ModelId,
}

impl QuotaKey {
    /// A key of this project and model.
    #[must_use]
    pub fn new(project: &str, model: &str) -> Self {
        Self { project: ProjectId::new(project), model: ModelId::new(model) }
    }
}

impl fmt::Display for QuotaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.model)
    }
}
