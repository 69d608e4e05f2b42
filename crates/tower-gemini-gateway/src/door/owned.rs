//! Which files, caches, batches and interactions were created through which token.
//!
//! Google knows one project: whoever knows an id may read, change and delete what it stands for. So
//! the gateway remembers whose it is, at least for as long as Google keeps it. A restart forgets: until this
//! is stored, what was created before is open to nobody, or to tokens whose `allow` has it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
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

/// Whose everything is. Plain data, so that it can be stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<Record>", into = "Vec<Record>")]
pub(crate) struct Owned {
    /// The token and when Google forgets it, in seconds since 1970.
    owners: HashMap<(Kind, String), (Arc<str>, u64)>,
    by_token: HashMap<Arc<str>, BTreeSet<(u64, Kind, String)>>,
}

/// A token, when Google forgets it, what it is and its id.
type Record = (String, u64, Kind, String);

impl From<Vec<Record>> for Owned {
    fn from(records: Vec<Record>) -> Self {
        let mut owned = Self::default();
        for (token, end, kind, id) in records {
            owned.insert(&token, kind, id, end);
        }
        owned
    }
}

impl From<Owned> for Vec<Record> {
    fn from(owned: Owned) -> Self {
        let of = |(token, ids): (Arc<str>, BTreeSet<(u64, Kind, String)>)| {
            ids.into_iter().map(move |(end, kind, id)| (token.to_string(), end, kind, id))
        };
        owned.by_token.into_iter().flat_map(of).collect()
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
    /// Remembers whose something is. A name that callers choose may be created anew by another,
    /// once Google has forgotten the one before: the last one has it.
    pub(crate) fn remember(&mut self, token: &str, created: Created, now: SystemTime) {
        let Created { kind, id, end } = created;
        if id.is_empty() || id.len() > MAX_ID_BYTES {
            return;
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = end.unwrap_or_else(|| now.saturating_add(kind.kept_for()).as_secs());
        self.insert(token, kind, id, end);
    }

    fn insert(&mut self, token: &str, kind: Kind, id: String, end: u64) {
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
        while ids.len() > MAX_IDS {
            if let Some((_, kind, id)) = ids.pop_first() {
                self.owners.remove(&(kind, id));
            }
        }
    }

    /// Whether something was created through this token. Whether Google still has it is Google's to
    /// say.
    pub(crate) fn is_of(&self, token: &str, kind: Kind, id: &str) -> bool {
        let owner = self.owners.get(&(kind, id.to_owned()));
        owner.is_some_and(|(owner, _)| **owner == *token)
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
    fn a_clock_that_jumps_takes_nothing_from_anybody() {
        let mut owned = Owned::default();
        owned.remember("ann", Created::new(Kind::File, "old"), at(0));
        owned.remember("ann", Created::new(Kind::File, "new"), at(400 * 24 * HOUR));
        assert!(owned.is_of("ann", Kind::File, "old") && owned.is_of("ann", Kind::File, "new"));
    }

    #[test]
    fn a_name_that_is_created_anew_is_of_the_one_who_created_it_last() {
        let mut owned = Owned::default();
        owned.remember("ann", Created::new(Kind::File, "report"), at(0));
        owned.remember("ben", Created::new(Kind::File, "report"), at(49 * HOUR));
        assert!(owned.is_of("ben", Kind::File, "report"));
        assert!(!owned.is_of("ann", Kind::File, "report"));
    }

    #[test]
    fn the_ids_of_a_token_are_bounded_and_what_google_forgets_first_makes_room() {
        let mut owned = Owned::default();
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
        assert_eq!(owned.by_token["ann"].len(), MAX_IDS);
        assert_eq!(owned.owners.len(), MAX_IDS + 1);
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

    #[test]
    fn what_is_owned_survives_being_written_down() {
        let mut owned = Owned::default();
        owned.remember("ann", Created::new(Kind::Batch, "b"), at(7));
        let text = serde_json::to_string(&owned).unwrap();
        assert_eq!(serde_json::from_str::<Owned>(&text).unwrap(), owned);
    }
}
