//! How long an attempt may take: pure.

use std::time::Duration;

use http::HeaderValue;
use tower_gemini_core::call::{Call, ImageSize};

/// The limits of the [module](super).
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) by_size: [Duration; 4],
    pub(super) other: Duration,
    pub(super) margin: Duration,
    pub(super) idle: Option<Duration>,
    /// The longest limit that a caller can ask for.
    pub(super) longest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let (usual, large) = (Duration::from_secs(300), Duration::from_secs(600));
        Self {
            by_size: [usual, usual, usual, large],
            other: usual,
            margin: Duration::from_secs(5),
            idle: Some(Duration::from_secs(120)),
            longest: Duration::from_secs(20 * 60),
        }
    }
}

pub(super) fn index(size: ImageSize) -> usize {
    ImageSize::ALL.iter().position(|&known| known == size).unwrap_or(1)
}

/// Which limit holds for a call: that of a size, or, behind those, the one of everything else.
pub(super) fn slot(call: &Call) -> usize {
    match call.size {
        Some(size) => index(size),
        // The size an image model draws when it is not told is 1K.
        None if call.wants_image => index(ImageSize::K1),
        None => ImageSize::ALL.len(),
    }
}

impl Limits {
    /// The limit of one attempt of a call of this [`slot`].
    pub(super) fn attempt(&self, slot: usize) -> Duration {
        self.by_size.get(slot).copied().unwrap_or(self.other)
    }

    /// The limit of one attempt of a call. `stated` is how long the caller waits: a longer wait than
    /// ours raises the limit.
    pub(super) fn of(&self, call: &Call, stated: Option<Duration>) -> Duration {
        let usual = self.attempt(slot(call)).saturating_add(call.tier.queue_time());
        stated.map_or(usual, |stated| usual.max(stated.min(self.longest)))
    }

    /// What to tell the server of each limit as it stands, by [`slot`].
    pub(super) fn told(&self) -> [HeaderValue; 5] {
        let [a, b, c, d] = self.by_size;
        [a, b, c, d, self.other].map(|limit| HeaderValue::from(self.server_seconds(limit, None)))
    }

    /// The whole seconds to tell the server, so that it gives up before `limit`; at least 1.
    /// `stated` is the caller's own wish.
    pub(super) fn server_seconds(&self, limit: Duration, stated: Option<u64>) -> u64 {
        let ours = limit.saturating_sub(self.margin).as_secs().max(1);
        stated.map_or(ours, |stated| stated.min(ours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower_gemini_core::call::ServiceTier;

    #[test]
    fn the_server_gives_up_before_we_do() {
        let limits = Limits::default();
        for seconds in 2..1000 {
            let limit = Duration::from_secs(seconds);
            assert!(limits.server_seconds(limit, None) < seconds);
        }
        assert_eq!(limits.server_seconds(Duration::from_secs(300), None), 295);
    }

    #[test]
    fn a_shorter_wish_of_the_caller_is_kept() {
        let limits = Limits::default();
        assert_eq!(limits.server_seconds(Duration::from_secs(300), Some(60)), 60);
        assert_eq!(limits.server_seconds(Duration::from_secs(300), Some(900)), 295);
    }

    #[test]
    fn a_longer_wish_of_the_caller_raises_the_limit_up_to_the_longest() {
        let (limits, s) = (Limits::default(), Duration::from_secs);
        let call = Call::unrecognised();
        for (stated, limit) in [(None, 300), (Some(60), 300), (Some(900), 900), (Some(9_000), 1200)]
        {
            assert_eq!(limits.of(&call, stated.map(s)), s(limit), "{stated:?}");
        }
    }

    #[test]
    fn a_flex_call_is_not_ended_while_it_queues() {
        let mut call = Call::unrecognised();
        call.tier = ServiceTier::Flex;
        assert_eq!(Limits::default().of(&call, None), Duration::from_secs(300 + 900));
    }

    #[test]
    fn only_4k_gets_ten_minutes() {
        let limits = Limits::default();
        let mut call = Call::unrecognised();
        call.wants_image = true;
        for (size, seconds) in [
            (None, 300),
            (Some(ImageSize::K1), 300),
            (Some(ImageSize::K2), 300),
            (Some(ImageSize::K4), 600),
        ] {
            call.size = size;
            assert_eq!(limits.attempt(slot(&call)), Duration::from_secs(seconds));
        }
    }
}
