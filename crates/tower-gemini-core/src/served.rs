//! What a response says of who served it.

use http::{HeaderMap, HeaderName};

use crate::call::{Call, ModelId, ServiceTier};
use crate::catalog::Catalog;
use crate::scan::Answer;
use crate::size::strip_model_prefix;

/// The model and the service tier that a response names. They decide its price, and not the
/// request: Google sends calls to a retired model on to its successor (Gemini API changelog,
/// 2026-10-08) and serves a priority request as standard (Gemini API documentation, priority
/// inference, 2026-08), both without a word.
///
/// ```
/// use http::{HeaderMap, Method, Uri};
/// use tower_gemini_core::{call::Call, catalog::Catalog, cost::ServedBy};
///
/// let uri = Uri::from_static("/v1beta/models/gemini-2.5-flash-image:generateContent");
/// let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(b"{}"));
/// let served = ServedBy::new().named("gemini-3.1-flash-image");
/// let other = served.in_place_of(Catalog::builtin(), &call).unwrap();
/// assert_eq!(other.as_str(), "gemini-3.1-flash-image");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServedBy {
    /// The model, as spelled, without `models/` in front. `None` where the response names none.
    pub model: Option<ModelId>,
    /// The tier. `None` where the response names none.
    pub tier: Option<ServiceTier>,
}

impl ServedBy {
    /// Of a response that names neither.
    #[must_use]
    pub const fn new() -> Self {
        Self { model: None, tier: None }
    }

    /// What the head of a response says: the Gemini API names the tier in `x-gemini-service-tier`.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Self {
        const NAME: HeaderName = HeaderName::from_static("x-gemini-service-tier");
        let tier = headers.get(NAME).and_then(|tier| tier.to_str().ok());
        Self { model: None, tier: tier.and_then(ServiceTier::served) }
    }

    /// Adds what the body says. A tier in the head goes before one in the body.
    #[must_use]
    pub fn and_answer(self, answer: &Answer) -> Self {
        let said = answer.service_tier.as_deref().and_then(ServiceTier::served);
        let tier = self.tier.or(said);
        let named = Self { tier, ..self };
        match &answer.model_version {
            Some(model) => named.named(model),
            None => named,
        }
    }

    /// Sets the model.
    #[must_use]
    pub fn named(self, model: &str) -> Self {
        let model = Some(strip_model_prefix(model)).filter(|model| !model.is_empty());
        Self { model: model.map(ModelId::new).or(self.model), ..self }
    }

    /// Returns the model that served in place of the one that the call names: its id in the
    /// catalogue, or its name where it is not there. `None` where they are the same model, where
    /// the response names none, and for a call to a model that the catalogue does not know, which
    /// may be another name for the one that served.
    #[must_use]
    pub fn in_place_of(&self, catalog: &Catalog, call: &Call) -> Option<ModelId> {
        let (asked, served) = (call.model.as_ref()?, self.model.as_ref()?);
        let asked = catalog.lookup_version(asked.as_str())?;
        match catalog.lookup_version(served.as_str()) {
            Some(known) => (known.id != asked.id).then(|| ModelId::new(&known.id)),
            None => Some(served.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method, Uri};

    use super::*;

    #[test]
    fn another_model_is_told_from_another_name_of_the_same() {
        let uri = Uri::from_static("/v1beta/models/nano-banana-pro:generateContent");
        let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), None);
        for (served, other) in [
            ("gemini-3-pro-image", None),
            ("models/gemini-3-pro-image-001", None),
            ("google/gemini-3-pro-image-4k", None),
            ("", None),
            ("models/nano-banana-2", Some("gemini-3.1-flash-image")),
            ("gemini-3-pro-image-preview", Some("gemini-3-pro-image-preview")),
            ("gemini-4-image", Some("gemini-4-image")),
        ] {
            let found = ServedBy::new().named(served).in_place_of(Catalog::builtin(), &call);
            assert_eq!(found.as_ref().map(ModelId::as_str), other, "{served}");
        }
        let unknown = Uri::from_static("/v1beta/models/house-banana:generateContent");
        let unknown = Call::parse(&Method::POST, &unknown, &HeaderMap::new(), None);
        let served = ServedBy::new().named("gemini-3-pro-image");
        assert_eq!(served.in_place_of(Catalog::builtin(), &unknown), None, "it may be its name");
    }

    #[test]
    fn the_tier_of_the_head_goes_before_that_of_the_body() {
        let tier = |head: Option<&'static str>, body: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(head) = head {
                headers.insert("x-gemini-service-tier", HeaderValue::from_static(head));
            }
            let service_tier = body.map(str::to_owned);
            let answer = Answer { service_tier, ..Answer::default() };
            ServedBy::from_headers(&headers).and_answer(&answer).tier
        };
        use ServiceTier::{Flex, Other, Priority, Standard};
        for (head, body, expected) in [
            (None, None, None),
            (Some("standard"), Some("priority"), Some(Standard)),
            (Some("PRIORITY"), None, Some(Priority)),
            (None, Some("flex"), Some(Flex)),
            (None, Some("default"), Some(Standard)),
            (None, Some("ON_DEMAND"), Some(Standard)),
            (None, Some("ON_DEMAND_FLEX"), Some(Flex)),
            (None, Some("ON_DEMAND_PRIORITY"), Some(Priority)),
            (None, Some("PROVISIONED_THROUGHPUT"), Some(Other)),
            (None, Some("deferred"), Some(Other)),
            (Some(""), Some("unspecified"), None),
        ] {
            assert_eq!(tier(head, body), expected, "{head:?} {body:?}");
        }
    }
}
