//! Short texts that outlive a process or are shared by several: what is small, changes seldom, and
//! needs no arithmetic of the store.

use std::fmt;

use super::SpendingFuture;

/// Keeps short texts by table and key, for several processes or over a restart.
///
/// The layers keep open circuits that only time or people close so
/// ([`Circuits::share`](crate::model_fallback::Circuits::share)). A table has as many texts as
/// whoever writes it leaves in it: a store forgets nothing by itself.
///
/// ```
/// use tower_gemini::store::{MemoryStore, RecordStore};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_gemini::store::StoreError> {
/// let store = MemoryStore::new();
/// let key = || "files/abc".to_owned();
/// store.change("owners", vec![(key(), Some("ann".to_owned()))]).await?;
/// assert_eq!(store.get("owners", vec![key()]).await?, [Some("ann".to_owned())]);
/// store.change("owners", vec![(key(), None)]).await?;
/// assert!(store.all("owners").await?.is_empty());
/// # Ok(()) }
/// ```
pub trait RecordStore: fmt::Debug + Send + Sync {
    /// Writes texts, and removes the keys without one, all at once. To be polled to its end.
    fn change(
        &self,
        table: &'static str,
        records: Vec<(String, Option<String>)>,
    ) -> SpendingFuture<()>;

    /// Returns the texts of these keys, in their order.
    fn get(&self, table: &'static str, keys: Vec<String>) -> SpendingFuture<Vec<Option<String>>>;

    /// Returns every key of a table with its text.
    fn all(&self, table: &'static str) -> SpendingFuture<Vec<(String, String)>>;
}
