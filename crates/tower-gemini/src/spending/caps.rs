use std::fmt;
use std::time::Duration;

use tower_gemini_core::cost::Cost;

/// What is counted against caps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dimension {
    /// Money that surely was paid, in micro-dollars.
    MoneyCertain,
    /// Money that was or may have been paid, in micro-dollars.
    MoneyAtMost,
    /// Sends.
    Attempts,
    /// Requests that count, or may count, against the API's quota.
    QuotaUnits,
    /// Time that attempts were under way, in milliseconds.
    WallTime,
}

impl Dimension {
    /// Every dimension.
    pub const ALL: [Self; 5] =
        [Self::MoneyCertain, Self::MoneyAtMost, Self::Attempts, Self::QuotaUnits, Self::WallTime];

    /// The word used in refusals and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MoneyCertain => "money_certain",
            Self::MoneyAtMost => "money_at_most",
            Self::Attempts => "attempts",
            Self::QuotaUnits => "quota_units",
            Self::WallTime => "wall_time",
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

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// So much in every dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Amounts {
    /// Micro-dollars that surely were paid.
    pub certain_microusd: u64,
    /// Micro-dollars that were or may have been paid. `u64::MAX` where nothing bounds them.
    pub at_most_microusd: u64,
    /// Sends.
    pub attempts: u64,
    /// Requests that count or may count.
    pub quota_units: u64,
    /// Milliseconds under way.
    pub wall_ms: u64,
}

impl Amounts {
    /// Nothing.
    pub const NONE: Self =
        Self { certain_microusd: 0, at_most_microusd: 0, attempts: 0, quota_units: 0, wall_ms: 0 };

    /// The money of an interval; what nothing bounds is as much as there is.
    #[must_use]
    pub fn of_cost(cost: Cost) -> Self {
        Self {
            certain_microusd: cost.at_least_microusd,
            at_most_microusd: cost.at_most_microusd.unwrap_or(u64::MAX),
            ..Self::NONE
        }
    }

    /// How much of one dimension.
    #[must_use]
    pub fn of(&self, dimension: Dimension) -> u64 {
        match dimension {
            Dimension::MoneyCertain => self.certain_microusd,
            Dimension::MoneyAtMost => self.at_most_microusd,
            Dimension::Attempts => self.attempts,
            Dimension::QuotaUnits => self.quota_units,
            Dimension::WallTime => self.wall_ms,
        }
    }

    /// Both together; what does not fit is as much as there is.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self::from_fn(|dimension| self.of(dimension).saturating_add(other.of(dimension)))
    }

    pub(super) fn from_fn(of: impl Fn(Dimension) -> u64) -> Self {
        Self {
            certain_microusd: of(Dimension::MoneyCertain),
            at_most_microusd: of(Dimension::MoneyAtMost),
            attempts: of(Dimension::Attempts),
            quota_units: of(Dimension::QuotaUnits),
            wall_ms: of(Dimension::WallTime),
        }
    }

    /// The money as an interval.
    #[must_use]
    pub fn cost(&self) -> Cost {
        let at_most = (self.at_most_microusd < u64::MAX).then_some(self.at_most_microusd);
        Cost { at_least_microusd: self.certain_microusd, at_most_microusd: at_most }
    }
}

/// What may not be passed. Nothing is capped unless it is set.
///
/// ```
/// use std::time::Duration;
/// use tower_gemini::spending::Caps;
///
/// // Five dollars at the very most, two hundred sends, an hour of attempts.
/// let caps = Caps::none().at_most_usd(5.0).attempts(200).wall_time(Duration::from_secs(3600));
/// assert_eq!(caps.to_string(), "$5.0000 at most, 200 attempts, 3600.0 s");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    pub(super) certain_microusd: Option<u64>,
    pub(super) at_most_microusd: Option<u64>,
    pub(super) attempts: Option<u64>,
    pub(super) quota_units: Option<u64>,
    pub(super) wall_ms: Option<u64>,
}

impl Caps {
    /// No cap at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Money that was or may have been paid, in US dollars. Rounded down to the micro-dollar; what
    /// is no amount caps at nothing.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast of a float saturates, and NaN is 0"
    )]
    pub fn at_most_usd(self, usd: f64) -> Self {
        self.at_most_microusd((usd * 1e6) as u64)
    }

    /// Money that was or may have been paid, in micro-dollars.
    #[must_use]
    pub fn at_most_microusd(mut self, microusd: u64) -> Self {
        self.at_most_microusd = Some(microusd);
        self
    }

    /// Money that surely was paid, in micro-dollars.
    #[must_use]
    pub fn certain_microusd(mut self, microusd: u64) -> Self {
        self.certain_microusd = Some(microusd);
        self
    }

    /// Sends.
    #[must_use]
    pub fn attempts(mut self, attempts: u64) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// Requests that count, or may count, against the API's quota.
    #[must_use]
    pub fn quota_units(mut self, units: u64) -> Self {
        self.quota_units = Some(units);
        self
    }

    /// Time that attempts are under way.
    #[must_use]
    pub fn wall_time(mut self, time: Duration) -> Self {
        self.wall_ms = Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// The cap of one dimension, where there is one.
    #[must_use]
    pub fn of(&self, dimension: Dimension) -> Option<u64> {
        match dimension {
            Dimension::MoneyCertain => self.certain_microusd,
            Dimension::MoneyAtMost => self.at_most_microusd,
            Dimension::Attempts => self.attempts,
            Dimension::QuotaUnits => self.quota_units,
            Dimension::WallTime => self.wall_ms,
        }
    }

    /// The first dimension in which `amounts` would be past its cap, and that cap.
    #[must_use]
    pub fn passed_by(&self, amounts: Amounts) -> Option<(Dimension, u64)> {
        Dimension::ALL.into_iter().find_map(|dimension| {
            let cap = self.of(dimension)?;
            (amounts.of(dimension) > cap).then_some((dimension, cap))
        })
    }
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for dimension in Dimension::ALL {
            let Some(cap) = self.of(dimension) else { continue };
            let kind = match dimension {
                Dimension::MoneyCertain => " for certain",
                Dimension::MoneyAtMost => " at most",
                _ => "",
            };
            write!(f, "{}{}{kind}", if first { "" } else { ", " }, dimension.show(cap))?;
            first = false;
        }
        if first { f.write_str("no cap") } else { Ok(()) }
    }
}
