//! Which files, caches, batches and interactions were created through which token.
//!
//! Google knows one project: whoever knows an id may read, change and delete what it stands for. So
//! the gateway remembers whose it is, at least for as long as Google keeps it. Where there is a
//! store, a restart forgets nothing, and what the store says wins: another gateway may have created
//! it anew. Without one, what was created before a restart is open to nobody, or to tokens whose
//! `allow` has it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tower_gemini::store::RecordStore;

use super::paths::Kind;

/// The table of what was created, by collection and id: when Google forgets it, in seconds since
/// 1970, and the token.
const TABLE: &str = "owned";
/// A store that takes longer has failed for this request.
const STORE_LIMIT: Duration = Duration::from_secs(2);

/// Ids remembered of one token; the one that ends first makes room. About 100 bytes each.
const MAX_IDS: usize = 10_000;
/// Longer ids are not Google's.
const MAX_ID_BYTES: usize = 256;

const HOUR: u64 = 3600;

impl Kind {
    /// How long Google keeps one that says nothing else.
    fn kept_for(self) -> Duration {
        Duration::from_secs(match self {
            // Gemini API documentation, files, 2026-10.
            Self::File => 48 * HOUR,
            // The default `ttl` (context caching).
            Self::Cache => HOUR,
            // No end is documented; users read results days later (forum, 2026-09). Ours.
            Self::Batch => 30 * 24 * HOUR,
            // Paid projects (Interactions API documentation, data retention).
            Self::Interaction => 55 * 24 * HOUR,
        })
    }
}

/// Whose everything is, here and in the store.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    owned: Mutex<Owned>,
    store: Option<Arc<dyn RecordStore>>,
    /// Changes on their way to the store.
    writing: Mutex<JoinSet<()>>,
}

impl Ownership {
    pub(super) fn new(store: Option<Arc<dyn RecordStore>>) -> Self {
        Self { store, ..Self::default() }
    }

    fn owned(&self) -> MutexGuard<'_, Owned> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what was remembered before, so that all of it stays within its bound.
    pub(super) async fn load(&self) {
        let Some(store) = &self.store else { return };
        let records = match store.all(TABLE).await {
            Ok(records) => records,
            Err(error) => {
                tracing::warn!(%error, "what tokens created before is looked up one by one");
                return;
            }
        };
        let mut dropped = Vec::new();
        for (key, text) in records {
            if let (Some((kind, id)), Some((end, token))) = (read_key(&key), read_owner(&text)) {
                dropped.extend(self.owned().insert(token, kind, id.to_owned(), end));
            }
        }
        self.write(dropped.into_iter().map(|(kind, id)| (key(kind, &id), None)).collect());
    }

    /// Remembers whose something is. A name that callers choose may be created anew by another,
    /// once Google has forgotten the one before: the last one has it.
    pub(super) fn remember(&self, token: &str, created: Created, now: SystemTime) -> Stored {
        let Created { kind, id, end } = created;
        if id.is_empty() || id.len() > MAX_ID_BYTES {
            return Stored(None);
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = end.unwrap_or_else(|| now.saturating_add(kind.kept_for()).as_secs());
        let mut records = vec![(key(kind, &id), Some(format!("{end} {token}")))];
        let dropped = self.owned().insert(token, kind, id, end);
        records.extend(dropped.into_iter().map(|(kind, id)| (key(kind, &id), None)));
        self.write(records)
    }

    fn write(&self, records: Vec<(String, Option<String>)>) -> Stored {
        let store = self.store.as_ref().filter(|_| !records.is_empty());
        let Some(store) = store else { return Stored(None) };
        let change = store.change(TABLE, records);
        // Without a runtime nobody waits for it: it is on its way as far as the store can.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return Stored(None) };
        let (end, ended) = oneshot::channel::<()>();
        let mut writing = self.writing();
        while writing.try_join_next().is_some() {}
        writing.spawn_on(
            async move {
                if let Err(error) = change.await {
                    tracing::warn!(%error, "a restart may forget what a token created");
                }
                drop(end);
            },
            &runtime,
        );
        Stored(Some(ended))
    }

    /// Completes when what was remembered is in the store, or is not for too long.
    pub(super) async fn written(&self) {
        let mut writing = std::mem::take(&mut *self.writing());
        // One that panicked is written no more; the others are.
        let all = async { while writing.join_next().await.is_some() {} };
        if tokio::time::timeout(STORE_LIMIT, all).await.is_err() {
            writing.detach_all();
        }
    }

    /// Which of these were not created through this token.
    pub(super) async fn not_of(
        &self,
        token: &str,
        asked: Vec<(Kind, String)>,
    ) -> Vec<(Kind, String)> {
        let keys = asked.iter().map(|(kind, id)| key(*kind, id)).collect();
        let stored = match self.store.as_ref().filter(|_| !asked.is_empty()) {
            None => Vec::new(),
            Some(store) => match tokio::time::timeout(STORE_LIMIT, store.get(TABLE, keys)).await {
                Ok(Ok(stored)) => stored,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "what tokens created is known from this process alone");
                    Vec::new()
                }
                Err(_) => {
                    tracing::warn!(
                        "what tokens created is known from this process alone: the store \
                                    is too slow"
                    );
                    Vec::new()
                }
            },
        };
        let owned = self.owned();
        let is_of = |(at, (kind, id)): (usize, &(Kind, String))| {
            let stored = stored.get(at).and_then(|text| read_owner(text.as_deref()?));
            match stored {
                Some((_, owner)) => owner == token,
                // It is on its way there.
                None => owned.is_of(token, *kind, id),
            }
        };
        let all = asked.iter().enumerate();
        all.filter(|one| !is_of(*one)).map(|(_, asked)| asked.clone()).collect()
    }
}

/// A change on its way to the store, whether or not somebody waits for it.
pub(super) struct Stored(Option<oneshot::Receiver<()>>);

impl Stored {
    /// Completes when it is there, or is not for too long.
    pub(super) async fn wait(self) {
        if let Some(ended) = self.0 {
            let _ = tokio::time::timeout(STORE_LIMIT, ended).await;
        }
    }
}

fn key(kind: Kind, id: &str) -> String {
    format!("{}/{id}", kind.collection())
}

fn read_key(key: &str) -> Option<(Kind, &str)> {
    let (collection, id) = key.split_once('/')?;
    Some((Kind::of_collection(collection)?, id))
}

fn read_owner(text: &str) -> Option<(u64, &str)> {
    let (end, token) = text.split_once(' ')?;
    Some((end.parse().ok()?, token))
}

/// Whose everything is, within bounds.
#[derive(Debug, Default)]
struct Owned {
    /// The token and when Google forgets it, in seconds since 1970.
    owners: HashMap<(Kind, String), (Arc<str>, u64)>,
    by_token: HashMap<Arc<str>, BTreeSet<(u64, Kind, String)>>,
}

/// What a response says was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    end: Option<u64>,
}

impl Created {
    pub(crate) fn new(kind: Kind, id: &str) -> Self {
        Self { kind, id: id.to_owned(), end: None }
    }

    /// Everything that a response to a request about this kind names: itself, and the file in which
    /// a batch has its results.
    pub(crate) fn find(kind: Kind, response: &[u8]) -> Vec<Self> {
        let Ok(response) = serde_json::from_slice::<Value>(response) else { return Vec::new() };
        let of = |value: &Value| {
            let name = value.get("name").or_else(|| value.get("id"))?.as_str()?;
            let id = name.strip_prefix(kind.collection()).map_or(name, |id| &id[1.min(id.len())..]);
            let end = ["expireTime", "expirationTime"].iter().find_map(|key| {
                let end: jiff::Timestamp = value.get(key)?.as_str()?.parse().ok()?;
                u64::try_from(end.as_second()).ok()
            });
            Some(Self { kind, id: id.to_owned(), end })
        };
        let nested = response.get("file").and_then(of);
        let mut found: Vec<_> = nested.or_else(|| of(&response)).into_iter().collect();
        if kind == Kind::Batch {
            let holders = ["/response", "/metadata/output", "/output", "/dest"];
            let names = holders.iter().filter_map(|at| {
                let holder = response.pointer(at)?;
                let name = holder.get("responsesFile").or_else(|| holder.get("fileName"))?;
                name.as_str()?.strip_prefix("files/")
            });
            found.extend(names.map(|id| Self::new(Kind::File, id)));
        }
        found
    }
}

impl Owned {
    /// What makes room for it.
    fn insert(&mut self, token: &str, kind: Kind, id: String, end: u64) -> Vec<(Kind, String)> {
        let known = self.by_token.get_key_value(token).map(|(token, _)| token.clone());
        let token = known.unwrap_or_else(|| Arc::from(token));
        let key = (kind, id);
        if let Some((owner, before)) = self.owners.insert(key.clone(), (token.clone(), end))
            && let Some(ids) = self.by_token.get_mut(&owner)
        {
            ids.remove(&(before, kind, key.1.clone()));
        }
        let ids = self.by_token.entry(token).or_default();
        ids.insert((end, kind, key.1));
        // Nothing is forgotten by the clock, which may jump: only what ends first makes room.
        let over = ids.len().saturating_sub(MAX_IDS);
        let over = (0..over).filter_map(|_| ids.pop_first());
        let over: Vec<_> = over.map(|(_, kind, id)| (kind, id)).collect();
        for dropped in &over {
            self.owners.remove(dropped);
        }
        over
    }

    /// Whether something was created through this token. Whether Google still has it is Google's to
    /// say.
    fn is_of(&self, token: &str, kind: Kind, id: &str) -> bool {
        let owner = self.owners.get(&(kind, id.to_owned()));
        owner.is_some_and(|(owner, _)| **owner == *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower_gemini::store::MemoryStore;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    impl Ownership {
        fn is_of(&self, token: &str, kind: Kind, id: &str) -> bool {
            self.owned().is_of(token, kind, id)
        }
    }

    async fn is_stored_of(owned: &Ownership, token: &str, kind: Kind, id: &str) -> bool {
        owned.written().await;
        owned.not_of(token, vec![(kind, id.to_owned())]).await.is_empty()
    }

    #[test]
    fn what_one_token_created_is_its_own() {
        let owned = Ownership::default();
        owned.remember("ann", Created::new(Kind::File, "abc"), at(0));
        assert!(owned.is_of("ann", Kind::File, "abc"));
        assert!(!owned.is_of("ben", Kind::File, "abc"));
        assert!(!owned.is_of("ann", Kind::Cache, "abc"));
    }

    #[test]
    fn a_clock_that_jumps_takes_nothing_from_anybody() {
        let owned = Ownership::default();
        owned.remember("ann", Created::new(Kind::File, "old"), at(0));
        owned.remember("ann", Created::new(Kind::File, "new"), at(400 * 24 * HOUR));
        assert!(owned.is_of("ann", Kind::File, "old") && owned.is_of("ann", Kind::File, "new"));
    }

    #[tokio::test]
    async fn a_name_that_is_created_anew_is_of_the_one_who_created_it_last_wherever_that_was() {
        let store: Arc<dyn RecordStore> = Arc::new(MemoryStore::new());
        let here = Ownership::new(Some(store.clone()));
        let there = Ownership::new(Some(store));
        here.remember("ann", Created::new(Kind::File, "report"), at(0));
        assert!(is_stored_of(&here, "ann", Kind::File, "report").await);
        there.remember("ben", Created::new(Kind::File, "report"), at(49 * HOUR));
        for one in [&there, &here] {
            assert!(is_stored_of(one, "ben", Kind::File, "report").await);
            assert!(!is_stored_of(one, "ann", Kind::File, "report").await);
        }
    }

    #[tokio::test]
    async fn what_is_owned_outlives_the_process_within_its_bound() {
        let store = Arc::new(MemoryStore::new());
        let first = Ownership::new(Some(store.clone()));
        for n in 0..MAX_IDS as u64 {
            first.remember("ann", Created::new(Kind::File, &n.to_string()), at(n));
        }
        first.remember("ben of x", Created::new(Kind::Batch, "b/c"), at(0));
        first.written().await;
        let second = Ownership::new(Some(store.clone()));
        second.load().await;
        assert!(is_stored_of(&second, "ben of x", Kind::Batch, "b/c").await);
        second.remember("ann", Created::new(Kind::File, "one more"), at(MAX_IDS as u64));
        assert!(is_stored_of(&second, "ann", Kind::File, "one more").await);
        assert!(!is_stored_of(&second, "ann", Kind::File, "0").await);
        assert_eq!(store.all(TABLE).await.unwrap().len(), MAX_IDS + 1);
    }

    #[test]
    fn the_ids_of_a_token_are_bounded_and_what_google_forgets_first_makes_room() {
        let owned = Ownership::default();
        let cache = |id: &str, end| {
            let text = format!(r#"{{"name":"cachedContents/{id}","expireTime":"{end}"}}"#);
            Created::find(Kind::Cache, text.as_bytes()).remove(0)
        };
        // It says when it ends, and may be told to end later.
        owned.remember("ann", cache("c", "1970-01-01T01:00:00Z"), at(0));
        owned.remember("ann", cache("c", "2970-01-01T01:00:00Z"), at(0));
        for n in 0..MAX_IDS as u64 + 5 {
            owned.remember("ann", Created::new(Kind::File, &n.to_string()), at(n));
        }
        owned.remember("ann", Created::new(Kind::File, &"x".repeat(MAX_ID_BYTES + 1)), at(0));
        owned.remember("ben", Created::new(Kind::File, "b"), at(0));
        assert_eq!(owned.owned().by_token["ann"].len(), MAX_IDS);
        assert_eq!(owned.owned().owners.len(), MAX_IDS + 1);
        assert!(owned.is_of("ann", Kind::Cache, "c") && !owned.is_of("ann", Kind::File, "0"));
    }

    #[test]
    fn responses_name_what_they_created_in_all_their_forms() {
        let ids = |kind, text: &str| {
            let found = Created::find(kind, text.as_bytes());
            found.into_iter().map(|one| (one.kind, one.id)).collect::<Vec<_>>()
        };
        let file = |id: &str| (Kind::File, id.to_owned());
        assert_eq!(ids(Kind::File, r#"{"file":{"name":"files/f","uri":"x"}}"#), [file("f")]);
        assert_eq!(ids(Kind::File, r#"{"name":"files/f"}"#), [file("f")]);
        let interaction = ids(Kind::Interaction, r#"{"id":"v1_x","status":"completed"}"#);
        assert_eq!(interaction, [(Kind::Interaction, "v1_x".to_owned())]);
        let batch = r#"{"name":"batches/b","done":true,"response":{"responsesFile":"files/r"}}"#;
        assert_eq!(ids(Kind::Batch, batch), [(Kind::Batch, "b".to_owned()), file("r")]);
        for nothing in ["", "[]", "{}", r#"{"name":5}"#] {
            assert_eq!(ids(Kind::File, nothing), []);
        }
    }
}
