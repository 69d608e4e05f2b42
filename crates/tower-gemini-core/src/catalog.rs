//! Models as data.
/// stub
#[derive(Debug)]
pub struct Catalog;
impl Catalog {
    /// stub
    pub fn builtin() -> &'static Self {
        &Catalog
    }
}
