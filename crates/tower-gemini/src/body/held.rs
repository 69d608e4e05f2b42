use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// What was read ahead of an answer, in order. One chunk, the usual case, needs no allocation.
#[derive(Debug, Default)]
pub(crate) struct Held {
    first: Option<Bytes>,
    more: VecDeque<Bytes>,
}

impl Held {
    pub(super) fn push(&mut self, chunk: Bytes) {
        if self.first.is_none() && self.more.is_empty() {
            self.first = Some(chunk);
        } else {
            self.more.push_back(chunk);
        }
    }

    pub(super) fn next(&mut self) -> Option<Bytes> {
        self.first.take().or_else(|| self.more.pop_front())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.first.iter().chain(&self.more)
    }

    pub(super) fn len(&self) -> usize {
        self.iter().map(Bytes::len).sum()
    }

    /// In one piece, which costs a copy only where there are several.
    pub(super) fn joined(&self) -> Bytes {
        match &self.first {
            Some(one) if self.more.is_empty() => one.clone(),
            _ => {
                let mut all = BytesMut::with_capacity(self.len());
                self.iter().for_each(|chunk| all.extend_from_slice(chunk));
                all.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(1000))]
        /// `None` takes the next chunk out.
        #[test]
        fn chunks_come_out_in_the_order_they_went_in(steps in proptest::collection::vec(proptest::option::of(0u8..), 0..20)) {
            let (mut held, mut model) = (Held::default(), VecDeque::new());
            for step in steps {
                match step {
                    Some(byte) => {
                        held.push(Bytes::from(vec![byte]));
                        model.push_back(byte);
                    }
                    None => assert_eq!(held.next().map(|chunk| chunk[0]), model.pop_front()),
                }
                assert_eq!(held.len(), model.len());
                assert_eq!(held.joined(), Vec::from(model.clone()));
            }
        }
    }
}
