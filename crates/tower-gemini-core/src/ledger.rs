//! Money as intervals: what an attempt cost, from at least to at most.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;

use serde::Serialize;

/// Money in micro-dollars (millionths of a US dollar), from at least to at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// At least this much.
    pub at_least_microusd: u64,
    /// At most this much; `None` where nothing bounds it (an unknown model).
    pub at_most_microusd: Option<u64>,
}

impl Cost {
    /// Nothing at all.
    pub const ZERO: Self = Self { at_least_microusd: 0, at_most_microusd: Some(0) };
    /// Anything.
    pub const UNKNOWN: Self = Self { at_least_microusd: 0, at_most_microusd: None };

    /// Exactly this much.
    #[must_use]
    pub fn exactly(microusd: u64) -> Self {
        Self { at_least_microusd: microusd, at_most_microusd: Some(microusd) }
    }

    /// From nothing to this much.
    #[must_use]
    pub fn up_to(microusd: u64) -> Self {
        Self { at_least_microusd: 0, at_most_microusd: Some(microusd) }
    }

    /// Whether `microusd` lies in the interval.
    #[must_use]
    pub fn contains(&self, microusd: u64) -> bool {
        self.at_least_microusd <= microusd && self.at_most_microusd.is_none_or(|most| microusd <= most)
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            at_least_microusd: self.at_least_microusd.saturating_add(other.at_least_microusd),
            at_most_microusd: match (self.at_most_microusd, other.at_most_microusd) {
                (Some(a), Some(b)) => Some(a.saturating_add(b)),
                _ => None,
            },
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss, reason = "for people: six digits are enough")]
        let usd = |micro: u64| micro as f64 / 1e6;
        match self.at_most_microusd {
            Some(most) if most == self.at_least_microusd => write!(f, "${:.4}", usd(most)),
            Some(most) => write!(f, "${:.4} to ${:.4}", usd(self.at_least_microusd), usd(most)),
            None => write!(f, "at least ${:.4}", usd(self.at_least_microusd)),
        }
    }
}

/// stub
pub fn cost_of(
    _: &crate::catalog::Catalog,
    _: &crate::call::Call,
    _: &crate::verdict::Verdict,
    _: Option<&crate::scan::Usage>,
) -> Cost {
    Cost::UNKNOWN
}
