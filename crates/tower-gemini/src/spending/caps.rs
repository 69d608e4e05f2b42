use std::fmt;
use std::time::Duration;

use tower_gemini_core::cost::Cost;

use crate::clock::millis;

/// What caps can limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CapDimension {
    /// Money that surely was paid, in micro-dollars.
    MoneyCertain,
    /// Money that was or may have been paid, in micro-dollars.
    MoneyAtMost,
    /// Attempts sent.
    Attempts,
    /// Requests that count, or may count, against the API's quota.
    QuotaUnits,
    /// Time that attempts were running, in milliseconds.
    WallTime,
}

impl CapDimension {
    /// Every dimension.
    pub const ALL: [Self; 5] =
        [Self::MoneyCertain, Self::MoneyAtMost, Self::Attempts, Self::QuotaUnits, Self::WallTime];

    /// Returns the name used in refusals and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        ["money_certain", "money_at_most", "attempts", "quota_units", "wall_time"][self as usize]
    }

    /// Whether it is money.
    #[must_use]
    pub fn is_money(self) -> bool {
        matches!(self, Self::MoneyCertain | Self::MoneyAtMost)
    }

    /// What is said of a cap after its amount.
    pub(super) fn qualifier(self) -> &'static str {
        match self {
            Self::MoneyCertain => " for certain",
            Self::MoneyAtMost => " at most",
            _ => "",
        }
    }

    pub(super) fn show(self, amount: u64) -> String {
        #[allow(clippy::cast_precision_loss, reason = "for people: four digits are enough")]
        match self {
            Self::MoneyCertain | Self::MoneyAtMost => format!("${:.4}", amount as f64 / 1e6),
            Self::Attempts => format!("{amount} attempts"),
            Self::QuotaUnits => format!("{amount} requests of quota"),
            Self::WallTime => format!("{:.1} s", amount as f64 / 1e3),
        }
    }
}

impl fmt::Display for CapDimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount in each dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct SpendAmounts {
    /// Micro-dollars that surely were paid.
    pub certain_microusd: u64,
    /// Micro-dollars that were or may have been paid. `u64::MAX` where nothing bounds them.
    pub at_most_microusd: u64,
    /// Attempts sent.
    pub attempts: u64,
    /// Requests that count or may count.
    pub quota_units: u64,
    /// Milliseconds that attempts were running.
    pub wall_ms: u64,
}

impl SpendAmounts {
    /// Nothing.
    pub const NONE: Self =
        Self { certain_microusd: 0, at_most_microusd: 0, attempts: 0, quota_units: 0, wall_ms: 0 };

    /// Returns the money of an interval. Where nothing bounds it, it is `u64::MAX`.
    #[must_use]
    pub fn from_cost(cost: Cost) -> Self {
        Self {
            certain_microusd: cost.at_least_microusd,
            at_most_microusd: cost.at_most_microusd.unwrap_or(u64::MAX),
            ..Self::NONE
        }
    }

    /// Returns the amounts in the order of [`CapDimension::ALL`].
    #[must_use]
    pub fn to_array(self) -> [u64; 5] {
        let Self { certain_microusd, at_most_microusd, attempts, quota_units, wall_ms } = self;
        [certain_microusd, at_most_microusd, attempts, quota_units, wall_ms]
    }

    /// Makes amounts of [`to_array`](Self::to_array)'s.
    #[must_use]
    pub fn from_array(amounts: [u64; 5]) -> Self {
        let [certain_microusd, at_most_microusd, attempts, quota_units, wall_ms] = amounts;
        Self { certain_microusd, at_most_microusd, attempts, quota_units, wall_ms }
    }

    /// Returns the amount in one dimension.
    #[must_use]
    pub fn get(&self, dimension: CapDimension) -> u64 {
        self.to_array()[dimension as usize]
    }

    /// Returns the sum. It saturates.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let (a, b) = (self.to_array(), other.to_array());
        Self::from_array(std::array::from_fn(|d| a[d].saturating_add(b[d])))
    }

    /// Returns the money as an interval.
    #[must_use]
    pub fn cost(&self) -> Cost {
        let at_most = (self.at_most_microusd < u64::MAX).then_some(self.at_most_microusd);
        Cost { at_least_microusd: self.certain_microusd, at_most_microusd: at_most }
    }
}

/// Limits what is spent. Nothing is capped unless it is set.
///
/// ```
/// use std::time::Duration;
/// use tower_gemini::spending::Caps;
///
/// // Five dollars at the very most, two hundred attempts, an hour of running attempts.
/// let caps = Caps::none().at_most_usd(5.0).attempts(200).wall_time(Duration::from_secs(3600));
/// assert_eq!(caps.to_string(), "$5.0000 at most, 200 attempts, 3600.0 s");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps([Option<u64>; 5]);

impl Caps {
    /// No cap at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Returns the same caps with one changed.
    #[must_use]
    pub fn with(mut self, dimension: CapDimension, cap: Option<u64>) -> Self {
        self.0[dimension as usize] = cap;
        self
    }

    /// Caps money that was or may have been paid, in US dollars. Rounded down to the micro-dollar;
    /// what is no amount caps at nothing.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast of a float saturates, and NaN is 0"
    )]
    pub fn at_most_usd(self, usd: f64) -> Self {
        self.at_most_microusd((usd * 1e6) as u64)
    }

    /// Caps money that was or may have been paid, in micro-dollars.
    #[must_use]
    pub fn at_most_microusd(self, microusd: u64) -> Self {
        self.with(CapDimension::MoneyAtMost, Some(microusd))
    }

    /// Caps money that surely was paid, in micro-dollars.
    #[must_use]
    pub fn certain_microusd(self, microusd: u64) -> Self {
        self.with(CapDimension::MoneyCertain, Some(microusd))
    }

    /// Caps attempts sent.
    #[must_use]
    pub fn attempts(self, attempts: u64) -> Self {
        self.with(CapDimension::Attempts, Some(attempts))
    }

    /// Caps requests that count, or may count, against the API's quota.
    #[must_use]
    pub fn quota_units(self, units: u64) -> Self {
        self.with(CapDimension::QuotaUnits, Some(units))
    }

    /// Caps the time that attempts are running.
    #[must_use]
    pub fn wall_time(self, time: Duration) -> Self {
        self.with(CapDimension::WallTime, Some(millis(time)))
    }

    /// Returns the cap of one dimension, where there is one.
    #[must_use]
    pub fn get(&self, dimension: CapDimension) -> Option<u64> {
        self.0[dimension as usize]
    }

    /// Returns the first dimension in which `amounts` would exceed its cap, and that cap.
    #[must_use]
    pub fn exceeded_by(&self, amounts: SpendAmounts) -> Option<(CapDimension, u64)> {
        CapDimension::ALL.into_iter().find_map(|dimension| {
            let cap = self.get(dimension)?;
            (amounts.get(dimension) > cap).then_some((dimension, cap))
        })
    }
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for dimension in CapDimension::ALL {
            let Some(cap) = self.get(dimension) else { continue };
            write!(f, "{separator}{}{}", dimension.show(cap), dimension.qualifier())?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("no cap") } else { Ok(()) }
    }
}
