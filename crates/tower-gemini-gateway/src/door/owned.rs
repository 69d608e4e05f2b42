//! Which files, caches, batches and interactions were created through which token.
//!
//! Google knows one project: whoever knows an id may read, change and delete what it stands for. So
//! the gateway remembers whose it is, for as long as Google keeps it. A restart forgets: until this
//! is stored, what was created before is open to nobody, or to tokens whose `allow` has it.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::paths::Kind;

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

/// The ids of all tokens. Plain data, so that it can be stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Owned {
    by_token: HashMap<String, Ids>,
}

/// The ids of one token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, Kind, String)>", into = "Vec<(u64, Kind, String)>")]
struct Ids {
    /// When Google forgets each, in seconds since 1970.
    ends: HashMap<(Kind, String), u64>,
    by_end: BTreeSet<(u64, Kind, String)>,
}

impl From<Vec<(u64, Kind, String)>> for Ids {
    fn from(all: Vec<(u64, Kind, String)>) -> Self {
        let mut ids = Self::default();
        all.into_iter().for_each(|(end, kind, id)| ids.insert(kind, id, end));
        ids
    }
}

impl From<Ids> for Vec<(u64, Kind, String)> {
    fn from(ids: Ids) -> Self {
        ids.by_end.into_iter().collect()
    }
}

impl Ids {
    fn insert(&mut self, kind: Kind, id: String, end: u64) {
        if let Some(before) = self.ends.insert((kind, id.clone()), end) {
            self.by_end.remove(&(before, kind, id.clone()));
        }
        self.by_end.insert((end, kind, id));
        while self.by_end.len() > MAX_IDS {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, kind, id)) = self.by_end.pop_first() {
            self.ends.remove(&(kind, id));
        }
    }
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
    /// Remembers whose something is.
    pub(crate) fn remember(&mut self, token: &str, created: Created, now: SystemTime) {
        let Created { kind, id, end } = created;
        if id.is_empty() || id.len() > MAX_ID_BYTES {
            return;
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = end.unwrap_or_else(|| now.saturating_add(kind.kept_for()).as_secs());
        let ids = match self.by_token.get_mut(token) {
            Some(ids) => ids,
            None => self.by_token.entry(token.to_owned()).or_default(),
        };
        ids.insert(kind, id, end);
        // Two at a time keep up with one that comes: each costs the same.
        for _ in 0..2 {
            if ids.by_end.first().is_some_and(|(end, ..)| *end < now.as_secs()) {
                ids.forget_first();
            }
        }
    }

    /// Whether something was created through this token. Whether Google still has it is Google's to
    /// say: a clock that jumps takes nothing from anybody.
    pub(crate) fn is_of(&self, token: &str, kind: Kind, id: &str) -> bool {
        let ids = self.by_token.get(token);
        ids.is_some_and(|ids| ids.ends.contains_key(&(kind, id.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_one_token_created_is_its_own() {
        let mut owned = Owned::default();
        owned.remember("ann", Created::new(Kind::File, "abc"), at(0));
        assert!(owned.is_of("ann", Kind::File, "abc"));
        assert!(!owned.is_of("ben", Kind::File, "abc"));
        assert!(!owned.is_of("ann", Kind::Cache, "abc"));
    }

    #[test]
    fn ids_are_kept_as_long_as_google_keeps_what_they_stand_for() {
        let mut owned = Owned::default();
        owned.remember("ann", Created::new(Kind::File, "old"), at(0));
        owned.remember("ann", Created::new(Kind::File, "new"), at(48 * HOUR));
        assert!(owned.is_of("ann", Kind::File, "old"));
        owned.remember("ann", Created::new(Kind::File, "newer"), at(48 * HOUR + 1));
        assert!(!owned.is_of("ann", Kind::File, "old"));
        assert!(owned.is_of("ann", Kind::File, "new"));
        // A cache says when it ends, and may be told to end later.
        let cache = |end| format!(r#"{{"name":"cachedContents/c","expireTime":"{end}"}}"#);
        for (end, seconds) in [("1970-01-01T01:00:00Z", HOUR), ("1970-01-02T00:00:00Z", 24 * HOUR)]
        {
            let created = Created::find(Kind::Cache, cache(end).as_bytes());
            assert_eq!(created[0].end, Some(seconds));
            owned.remember("ann", created[0].clone(), at(0));
        }
        assert_eq!(owned.by_token["ann"].ends[&(Kind::Cache, "c".into())], 24 * HOUR);
    }

    #[test]
    fn the_ids_of_a_token_are_bounded() {
        let mut owned = Owned::default();
        for n in 0..MAX_IDS as u64 + 5 {
            owned.remember("ann", Created::new(Kind::File, &n.to_string()), at(n));
        }
        owned.remember("ann", Created::new(Kind::File, &"x".repeat(MAX_ID_BYTES + 1)), at(0));
        assert_eq!(owned.by_token["ann"].ends.len(), MAX_IDS);
        assert_eq!(owned.by_token["ann"].by_end.len(), MAX_IDS);
        assert!(!owned.is_of("ann", Kind::File, "0"));
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

    #[test]
    fn what_is_owned_survives_being_written_down() {
        let mut owned = Owned::default();
        owned.remember("ann", Created::new(Kind::Batch, "b"), at(7));
        let text = serde_json::to_string(&owned).unwrap();
        assert_eq!(serde_json::from_str::<Owned>(&text).unwrap(), owned);
    }
}
