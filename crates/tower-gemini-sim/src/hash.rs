//! A hash that is the same on every machine and toolchain, and quick in an unoptimised build.

const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes bytes into the number the ledger reports for bodies and images.
///
/// Eight bytes a step, so that a 20 MB image costs milliseconds in a debug build. Not for untrusted
/// input: collisions are easy to make on purpose.
///
/// ```
/// use tower_gemini_sim::hash64;
/// assert_eq!(hash64(b"banana"), hash64(b"banana"));
/// assert_ne!(hash64(b"banana"), hash64(b"banane"));
/// ```
pub fn hash64(bytes: &[u8]) -> u64 {
    let mut state = mix(bytes.len() as u64 ^ SPREAD);
    let words = bytes.chunks_exact(8);
    let rest = words.remainder();
    for word in words {
        state = (state.rotate_left(5) ^ little_endian(word)).wrapping_mul(SPREAD);
    }
    mix(state ^ little_endian(rest))
}

/// Up to eight bytes as a number.
pub(crate) fn little_endian(bytes: &[u8]) -> u64 {
    let mut word = [0u8; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Spreads one number over all 64 bits (the finaliser of `SplitMix64`).
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(SPREAD);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// So many characters of an alphabet, by a number.
pub(crate) fn letters(alphabet: &[u8], seed: u64, count: usize) -> String {
    let mut state = mix(seed);
    let next = |_| {
        state = mix(state);
        char::from(alphabet[(state % alphabet.len() as u64) as usize])
    };
    (0..count).map(next).collect()
}
