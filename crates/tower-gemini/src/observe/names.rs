//! Models by bounded names: callers choose the models they name, so only those of the catalogue are
//! counted by name. Pure.

use std::sync::Arc;

use tower_gemini_core::call::ModelId;
use tower_gemini_core::catalog::Catalog;

/// The names under which models are counted.
#[derive(Debug, Clone)]
pub(super) struct ModelNames {
    catalog: Arc<Catalog>,
    names: Vec<Arc<str>>,
}

/// A name's place, small enough to be counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ModelPlace(u16);

/// A model that the catalogue does not know.
pub(super) const OTHER: &str = "other";
/// A request that names no model.
pub(super) const NONE: &str = "none";

impl ModelNames {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        let known = catalog.models().map(|model| Arc::from(model.id.as_str()));
        let names = [Arc::from(NONE), Arc::from(OTHER)]
            .into_iter()
            .chain(known)
            .take(usize::from(u16::MAX))
            .collect();
        Self { catalog, names }
    }

    /// Where a model is counted. Aliases are counted as what they stand for.
    pub(super) fn place(&self, model: Option<&ModelId>) -> ModelPlace {
        let Some(model) = model else { return ModelPlace(0) };
        let known = self
            .catalog
            .lookup(model.as_str())
            .and_then(|model| self.names.iter().position(|name| **name == *model.id));
        ModelPlace(known.and_then(|at| u16::try_from(at).ok()).unwrap_or(1))
    }

    pub(super) fn name(&self, place: ModelPlace) -> Arc<str> {
        self.names.get(usize::from(place.0)).cloned().unwrap_or_else(|| Arc::from(OTHER))
    }

    /// Whether it is a model that the catalogue knows.
    #[cfg(test)]
    pub(super) fn is_known(&self, place: ModelPlace) -> bool {
        place.0 > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_models_of_the_catalogue_are_counted_by_name() {
        let names = ModelNames::new(Arc::new(Catalog::builtin().clone()));
        let of = |model: &str| names.name(names.place(Some(&ModelId::new(model)))).to_string();
        assert_eq!(of("gemini-3-pro-image"), "gemini-3-pro-image");
        // Old names of it are counted as it.
        assert!(names.is_known(names.place(Some(&ModelId::new("gemini-3-pro-image-preview")))));
        assert_eq!(of("whatever-a-caller-types"), "other");
        assert_eq!(of("none"), "other");
        assert_eq!(&*names.name(names.place(None)), "none");
    }
}
