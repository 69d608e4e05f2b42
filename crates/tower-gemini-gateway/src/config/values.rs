//! Reads durations, sizes and base URLs as people write them.

use std::fmt;
use std::time::Duration;

use http::Uri;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A duration: `90s`, `5m`, `2h`, `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A number of bytes: `64MiB`, `10MB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

impl Span {
    pub(crate) const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        const UNITS: &[(&str, u64)] =
            &[("ms", 1), ("s", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000)];
        scaled(text, UNITS).map(Duration::from_millis).map(Self)
    }
}

impl Size {
    pub(crate) const fn mib(mebibytes: usize) -> Self {
        Self(mebibytes * 1024 * 1024)
    }

    fn parse(text: &str) -> Option<Self> {
        const UNITS: &[(&str, u64)] = &[
            ("", 1),
            ("B", 1),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("KB", 1_000),
            ("kB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
        ];
        usize::try_from(scaled(text, UNITS)?).ok().map(Self)
    }
}

/// A whole number with a unit, in the smallest unit.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// `https://host`, perhaps with a path, without a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseUrl(pub(crate) Uri);

impl BaseUrl {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let is_base = matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none();
        is_base.then_some(Self(uri))
    }
}

/// Where state is kept: `redb` for a file in the state directory, or the URL of a Redis or
/// Postgres.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    Redb,
    Redis(String),
    Postgres(String),
}

impl StoreUrl {
    pub(crate) const fn redb() -> Self {
        Self::Redb
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL may hold a password.
        f.write_str(match self {
            Self::Redb => "redb",
            Self::Redis(_) => "redis",
            Self::Postgres(_) => "postgres",
        })
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.split_once("://").map_or(text.as_str(), |(scheme, _)| scheme) {
            "redis" | "rediss" | "unix" | "redis+unix" => Ok(Self::Redis(text)),
            "postgres" | "postgresql" => Ok(Self::Postgres(text)),
            _ if text == "redb" => Ok(Self::Redb),
            _ => Err(D::Error::custom(
                "server.store is neither \"redb\" nor a URL such as \"redis://host:6379/0\", \
                 \"rediss://host:6379/0\" (TLS) or \"postgres://user@host/database\"",
            )),
        }
    }
}

/// Reads a text, or a number as people write it, by the type's own `parse`.
macro_rules! from_text {
    ($kind:ident, $expected:literal) => {
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = match toml::Value::deserialize(deserializer)? {
                    toml::Value::String(text) => text,
                    toml::Value::Integer(number) => number.to_string(),
                    other => other.type_str().to_owned(),
                };
                let wrong = || D::Error::custom(format!("`{text}` is not {}", $expected));
                $kind::parse(text.trim()).ok_or_else(wrong)
            }
        }
    };
}

from_text!(Span, "a duration such as \"90s\", \"5m\", \"2h\" or \"250ms\"");
from_text!(Size, "a size such as \"64MiB\", \"10MB\" or a number of bytes");
from_text!(BaseUrl, "a base URL; write it as https://host or http://host:port/path");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_what_people_write() {
        assert_eq!(Span::parse("250ms").unwrap().0, Duration::from_millis(250));
        assert_eq!(Span::parse("2h").unwrap().0, Duration::from_secs(7200));
        assert_eq!(Size::parse("10MB").unwrap().0, 10_000_000);
        assert_eq!(Size::parse("4096").unwrap().0, 4096);
        for nonsense in ["", "s", "1.5h", "99999999999999999999s", "10 parsecs"] {
            assert!(Span::parse(nonsense).is_none(), "{nonsense}");
        }
    }
}
