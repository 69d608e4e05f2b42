use bytes::Bytes;
use smallvec::SmallVec;

/// Chunks of a body, in order. One chunk, the usual case, needs no allocation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chunks {
    chunks: SmallVec<[Bytes; 1]>,
    /// How many were taken out at the front.
    taken: usize,
}

impl Chunks {
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.chunks.push(chunk);
    }

    pub(crate) fn pop_front(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.get_mut(self.taken)?;
        self.taken += 1;
        Some(std::mem::take(chunk))
    }

    /// Takes out the next piece that holds anything. A chunk that is much longer than `length` is
    /// handed out in slices of that length.
    pub(super) fn pop_piece(&mut self, length: usize) -> Option<Bytes> {
        loop {
            let chunk = self.chunks.get_mut(self.taken)?;
            if chunk.len() > length + length / 2 {
                return Some(chunk.split_to(length));
            }
            match self.pop_front()? {
                empty if empty.is_empty() => {}
                piece => return Some(piece),
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.as_slice().iter().all(Bytes::is_empty)
    }

    pub(crate) fn as_slice(&self) -> &[Bytes] {
        &self.chunks[self.taken..]
    }

    /// How many bytes there are in all.
    pub(crate) fn bytes(&self) -> usize {
        self.as_slice().iter().map(Bytes::len).sum()
    }

    /// All of them as one.
    pub(crate) fn joined(&self) -> Bytes {
        match self.as_slice() {
            [one] => one.clone(),
            many => many.concat().into(),
        }
    }
}

impl<I: IntoIterator<Item = Bytes>> From<I> for Chunks {
    fn from(chunks: I) -> Self {
        Self { chunks: chunks.into_iter().collect(), taken: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(1000))]
        /// `None` takes the next chunk out.
        #[test]
        fn chunks_come_out_in_the_order_they_went_in(steps in proptest::collection::vec(proptest::option::of(0u8..), 0..20)) {
            let (mut held, mut model) = (Chunks::default(), VecDeque::new());
            for step in steps {
                match step {
                    Some(byte) => {
                        held.push(Bytes::from(vec![byte]));
                        model.push_back(byte);
                    }
                    None => assert_eq!(held.pop_front().map(|chunk| chunk[0]), model.pop_front()),
                }
                assert_eq!(held.bytes(), model.len());
                assert_eq!(held.joined(), Vec::from(model.clone()));
            }
        }
    }
}
