//! Signatures that were seen, within bounds: pure.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tower_gemini_core::scan::PartKey;

/// Which service made a signature: the other one refuses it ("Invalid thought signature", seen
/// where a proxy fell over from one to the other, 2026).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Backend {
    GeminiApi,
    VertexAi,
}

type Key = (Backend, PartKey);

/// The signatures asked for last, as many as fit.
#[derive(Debug)]
pub(super) struct Store {
    max_entries: usize,
    max_bytes: usize,
    bytes: usize,
    /// Counts the uses.
    clock: u64,
    /// The signatures, each with its last use.
    by_key: HashMap<Key, (Bytes, u64)>,
    /// The oldest first.
    by_use: BTreeMap<u64, Key>,
}

impl Store {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            max_entries,
            max_bytes,
            bytes: 0,
            clock: 0,
            by_key: HashMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    /// Keeps a signature, as spelled. What is not base64 could not be written into a request as it
    /// is, and is none.
    pub(super) fn put(&mut self, backend: Backend, part: PartKey, signature: Bytes) {
        let is_base64 =
            |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_' | b'=');
        if self.max_entries == 0
            || signature.is_empty()
            || signature.len() > self.max_bytes
            || !signature.iter().all(is_base64)
        {
            return;
        }
        self.remove((backend, part));
        while self.by_key.len() >= self.max_entries || self.bytes + signature.len() > self.max_bytes
        {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.remove(oldest);
        }
        self.insert((backend, part), signature);
    }

    fn insert(&mut self, key: Key, signature: Bytes) {
        self.clock += 1;
        self.bytes += signature.len();
        self.by_use.insert(self.clock, key);
        self.by_key.insert(key, (signature, self.clock));
    }

    fn remove(&mut self, key: Key) -> Option<Bytes> {
        let (signature, used) = self.by_key.remove(&key)?;
        self.bytes -= signature.len();
        self.by_use.remove(&used);
        Some(signature)
    }

    /// The signature of a part, where it was seen.
    pub(super) fn get(&mut self, backend: Backend, part: PartKey) -> Option<Bytes> {
        let signature = self.remove((backend, part))?;
        self.insert((backend, part), signature.clone());
        Some(signature)
    }

    /// Everything that is remembered, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Backend, PartKey, &Bytes)> {
        self.by_use
            .values()
            .filter_map(|key| self.by_key.get(key).map(|(signature, _)| (key.0, key.1, signature)))
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tower_gemini_core::scan::PartKeyer;

    fn key(n: u8) -> PartKey {
        PartKeyer::new([3, 4]).text(&n.to_string())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Against a plain list, the last used at its end.
        #[test]
        fn it_keeps_what_was_used_last_and_never_more_than_it_may(
            steps in proptest::collection::vec((any::<bool>(), any::<bool>(), 0_u8..12, 0_usize..40), 0..120),
            max_entries in 0_usize..8, max_bytes in 0_usize..120,
        ) {
            let mut store = Store::new(max_entries, max_bytes);
            let mut plain: Vec<(Key, Bytes)> = Vec::new();
            for (put, vertex, n, len) in steps {
                let backend = if vertex { Backend::VertexAi } else { Backend::GeminiApi };
                let key = (backend, key(n));
                let found = plain.iter().position(|(known, _)| *known == key);
                if put {
                    let signature = Bytes::from(vec![b'A' + n; len]);
                    store.put(backend, key.1, signature.clone());
                    if len > 0 && len <= max_bytes && max_entries > 0 {
                        if let Some(found) = found {
                            plain.remove(found);
                        }
                        plain.push((key, signature));
                        while plain.len() > max_entries || plain.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > max_bytes {
                            plain.remove(0);
                        }
                    }
                } else {
                    let expected = found.map(|found| plain.remove(found));
                    prop_assert_eq!(store.get(backend, key.1), expected.as_ref().map(|(_, bytes)| bytes.clone()));
                    plain.extend(expected);
                }
                prop_assert_eq!(store.len(), plain.len());
                prop_assert_eq!(store.bytes(), plain.iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
                prop_assert_eq!(store.by_use.len(), store.by_key.len());
            }
        }
    }

    #[test]
    fn a_signature_that_could_break_out_of_its_string_is_not_kept() {
        let mut store = Store::new(8, 100);
        store.put(Backend::GeminiApi, key(1), Bytes::from_static(b"AAAA\",\"x\":\""));
        assert_eq!(store.len(), 0);
    }
}
