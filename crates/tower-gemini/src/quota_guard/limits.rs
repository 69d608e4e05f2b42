//! Dimensions, amounts, limits and keys of quotas.

use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher24};
use tower_gemini_core::call::ModelId;
use tower_gemini_core::target::UpstreamId;

/// One of the four things that Google counts, all at once (Google's rate-limit pages and APIYI's
/// guide to 429s, 2026-02).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QuotaDimension {
    /// RPM.
    RequestsPerMinute,
    /// TPM: input tokens.
    TokensPerMinute,
    /// IPM.
    ImagesPerMinute,
    /// RPD: until midnight Pacific.
    RequestsPerDay,
}

impl QuotaDimension {
    /// All four, in the order of [`QuotaAmounts`].
    pub const ALL: [Self; 4] = [
        Self::RequestsPerMinute,
        Self::TokensPerMinute,
        Self::ImagesPerMinute,
        Self::RequestsPerDay,
    ];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// Returns the name used in logs and refusals: `rpm`, `tpm`, `ipm` or `rpd`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        ["rpm", "tpm", "ipm", "rpd"][self.index()]
    }

    /// Returns Google's `quotaId` for it, which clients can read.
    #[must_use]
    pub fn quota_id(self) -> &'static str {
        [
            "GenerateRequestsPerMinutePerProjectPerModel",
            "GenerateContentInputTokensPerModelPerMinute",
            "GenerateImagesPerMinutePerProjectPerModel",
            "GenerateRequestsPerDayPerProjectPerModel",
        ][self.index()]
    }
}

impl fmt::Display for QuotaDimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount in each dimension, in the order of [`QuotaDimension::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct QuotaAmounts(pub [u64; 4]);

impl QuotaAmounts {
    /// What one call takes: a request of the minute and of the day, its input tokens, its images.
    #[must_use]
    pub fn for_call(tokens: u64, images: u64) -> Self {
        Self([1, tokens, images, 1])
    }

    /// Returns the amount in one dimension.
    #[must_use]
    pub fn get(&self, dimension: QuotaDimension) -> u64 {
        self.0[dimension.index()]
    }

    /// Whether every amount is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(crate) fn times(self, by: u64) -> Self {
        Self(self.0.map(|amount| amount.saturating_mul(by)))
    }

    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|d| with(self.0[d], other.0[d])))
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    pub(crate) fn fits_in(self, other: Self) -> bool {
        (0..4).all(|d| self.0[d] <= other.0[d])
    }
}

/// The limits of one (project, model). A dimension without a limit is not counted against
/// anything.
///
/// ```
/// use tower_gemini::quota_guard::{Limits, QuotaDimension};
///
/// let limits = Limits::unlimited().rpm(10).ipm(10).rpd(1_000);
/// assert_eq!(limits.get(QuotaDimension::RequestsPerDay), Some(1_000));
/// assert_eq!(limits.get(QuotaDimension::TokensPerMinute), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits(pub(super) [Option<u64>; 4]);

impl Limits {
    /// Limits no dimension.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self([None; 4])
    }

    /// Limits requests in any 60 seconds.
    #[must_use]
    pub const fn rpm(self, requests: u64) -> Self {
        self.with(QuotaDimension::RequestsPerMinute, Some(requests))
    }

    /// Limits input tokens in any 60 seconds.
    #[must_use]
    pub const fn tpm(self, tokens: u64) -> Self {
        self.with(QuotaDimension::TokensPerMinute, Some(tokens))
    }

    /// Limits images in any 60 seconds.
    #[must_use]
    pub const fn ipm(self, images: u64) -> Self {
        self.with(QuotaDimension::ImagesPerMinute, Some(images))
    }

    /// Limits requests from midnight Pacific to midnight Pacific.
    #[must_use]
    pub const fn rpd(self, requests: u64) -> Self {
        self.with(QuotaDimension::RequestsPerDay, Some(requests))
    }

    /// Returns the limit in one dimension, where there is one.
    #[must_use]
    pub const fn get(&self, dimension: QuotaDimension) -> Option<u64> {
        self.0[dimension.index()]
    }

    /// Returns the same limits with one dimension changed.
    #[must_use]
    pub const fn with(mut self, dimension: QuotaDimension, limit: Option<u64>) -> Self {
        self.0[dimension.index()] = limit;
        self
    }

    /// Whether no dimension has a limit.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::unlimited()
    }
}

/// Names a project: limits are per project, not per API key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectId(Arc<str>);

impl ProjectId {
    /// Names a project.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names a project after a keyed fingerprint of its credential (128 bits of SipHash-2-4 under
    /// `secret`), without keeping the credential.
    ///
    /// The same secret gives the same name in every process. Without the secret nobody can test
    /// credentials against the name.
    ///
    /// ```
    /// use tower_gemini::quota_guard::ProjectId;
    ///
    /// let project = ProjectId::from_credential(&[7; 16], "AIza-not-a-key");
    /// assert_eq!(project, ProjectId::from_credential(&[7; 16], "AIza-not-a-key"));
    /// assert_ne!(project, ProjectId::from_credential(&[8; 16], "AIza-not-a-key"));
    /// assert!(!project.as_str().contains("AIza"));
    /// ```
    #[must_use]
    pub fn from_credential(secret: &[u8; 16], credential: &str) -> Self {
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

/// What one count is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct QuotaKey {
    /// The upstream that counts; `None` where neither the layer nor the request's URI names one.
    pub upstream: Option<Arc<UpstreamId>>,
    /// The project whose quota it is.
    pub project: ProjectId,
    /// The model as the request spells it.
    pub model: ModelId,
}

impl QuotaKey {
    /// Makes a key of this project and model, without an upstream: for requests whose URI is a path.
    #[must_use]
    pub fn new(project: &str, model: &str) -> Self {
        Self { upstream: None, project: ProjectId::new(project), model: ModelId::new(model) }
    }

    /// Returns the same key at this upstream.
    #[must_use]
    pub fn at(mut self, upstream: UpstreamId) -> Self {
        self.upstream = Some(Arc::new(upstream));
        self
    }
}

/// The key of a store: stable, and different for every two keys.
impl fmt::Display for QuotaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Spaces separate, so none may be in a part.
        let part = |text: &str| text.replace('%', "%25").replace(' ', "%20");
        match &self.upstream {
            Some(upstream) => write!(f, "{upstream}")?,
            None => f.write_str("-")?,
        }
        write!(f, " {} {}", part(self.project.as_str()), part(self.model.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use http::Uri;
    use tower_gemini_core::target::Upstream;

    use super::*;

    #[test]
    fn two_keys_never_have_one_text() {
        let a = Upstream::gemini_api(Uri::from_static("https://a.example"));
        let keys = [
            QuotaKey::new("p", "m"),
            QuotaKey::new("p m", "m"),
            QuotaKey::new("p", "m m"),
            QuotaKey::new("p%20m", "m"),
            QuotaKey::new("p", "m").at(a.id()),
            QuotaKey::new("p", "m").at(a.name("b").id()),
        ];
        let texts: std::collections::HashSet<_> = keys.iter().map(QuotaKey::to_string).collect();
        assert_eq!(texts.len(), keys.len(), "{texts:?}");
    }
}
