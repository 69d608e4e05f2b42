//! The models of today.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tower_gemini::catalog::{Catalog, Date, Family, Model};

use crate::wire;

/// The day in UTC.
pub(crate) fn today() -> Date {
    let now = i64::try_from(wire::now_unix()).ok().and_then(|now| Timestamp::from_second(now).ok());
    now.unwrap_or_default().to_zoned(TimeZone::UTC).date()
}

/// The models that Google makes images with today, in the order of the catalogue.
pub(crate) fn current_models(catalog: &Catalog) -> impl Iterator<Item = &Model> {
    let today = today();
    catalog.models().filter(move |model| {
        model.images
            && model.vendor == "google"
            && model.family != Family::Imagen
            && !model.is_retired_on(today)
    })
}

/// The model to ask where nobody names one.
pub(crate) fn default_model(catalog: &Catalog) -> String {
    catalog.default_on(today()).map_or("gemini-3-pro-image", |model| &model.id).to_owned()
}
