//! Reads spans of time as people, Go and protobuf's JSON write them.

use std::time::Duration;

/// Reads the span at the start of the text: `56.18s`, `900.2ms`, `19h14m47s`, `1 minute`, `30
/// seconds`. Negative, overflowing and malformed ones are none.
pub(super) fn span(text: &[u8]) -> Option<Duration> {
    let mut rest = text.trim_ascii_start();
    let mut total: Option<Duration> = None;
    // Days, hours, minutes, seconds, milliseconds: no span has more members.
    for _ in 0..5 {
        let Some((whole, nanos, after)) = decimal(rest) else { break };
        let after = after.trim_ascii_start();
        let letters = after.iter().take_while(|b| b.is_ascii_alphabetic()).count();
        let (unit, tail) = after.split_at(letters);
        let unit_nanos: u128 = match unit {
            b"ms" | b"millis" | b"millisecond" | b"milliseconds" => 1_000_000,
            b"s" | b"sec" | b"secs" | b"second" | b"seconds" => 1_000_000_000,
            b"m" | b"min" | b"mins" | b"minute" | b"minutes" => 60_000_000_000,
            b"h" | b"hr" | b"hrs" | b"hour" | b"hours" => 3_600_000_000_000,
            b"d" | b"day" | b"days" => 86_400_000_000_000,
            _ => break,
        };
        let nanos = u128::from(whole)
            .checked_mul(unit_nanos)?
            .checked_add((u128::from(nanos) * unit_nanos).div_ceil(1_000_000_000))?;
        let part = Duration::new(
            u64::try_from(nanos / 1_000_000_000).ok()?,
            u32::try_from(nanos % 1_000_000_000).ok()?,
        );
        total = Some(total.unwrap_or_default().checked_add(part)?);
        rest = tail.trim_ascii_start();
    }
    total
}

/// A decimal number as whole units and billionths; more than nine fraction digits are rounded up,
/// so that no wait is early.
pub(super) fn decimal(text: &[u8]) -> Option<(u64, u32, &[u8])> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    let (whole, mut rest) = text.split_at(digits);
    let whole = whole
        .iter()
        .try_fold(0u64, |n, digit| n.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?;
    let mut billionths = 0u32;
    if let Some(tail) =
        rest.strip_prefix(b".").filter(|tail| tail.first().is_some_and(u8::is_ascii_digit))
    {
        let digits = tail.iter().take_while(|b| b.is_ascii_digit()).count();
        let (fraction, tail) = tail.split_at(digits);
        for place in 0..9 {
            billionths =
                billionths * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0'));
        }
        if fraction.get(9..).is_some_and(|more| more.iter().any(|&digit| digit != b'0')) {
            billionths = billionths.saturating_add(1).min(999_999_999);
        }
        rest = tail;
    }
    Some((whole, billionths, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_servers_write_them() {
        for (text, want) in [
            ("56.185908122s", Some(Duration::new(56, 185_908_122))),
            ("900.2ms", Some(Duration::from_micros(900_200))),
            ("539.477544ms", Some(Duration::from_nanos(539_477_544))),
            ("19h14m47s", Some(Duration::from_secs(69_287))),
            ("1h43m56s.", Some(Duration::from_secs(6_236))),
            ("30 seconds. more", Some(Duration::from_secs(30))),
            ("2 minutes", Some(Duration::from_secs(120))),
            ("0s", Some(Duration::ZERO)),
            ("1.0000000001s", Some(Duration::new(1, 1))),
            ("-5s", None),
            ("abc", None),
            ("", None),
            ("99999999999999999999999s", None),
            ("18446744073709551615d", None),
            ("5", None),
        ] {
            assert_eq!(span(text.as_bytes()), want, "{text}");
        }
    }
}
