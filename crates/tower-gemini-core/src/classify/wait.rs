//! Reading how long a server asks to wait, in the order in which its statements can be trusted.

use std::time::Duration;

use http::HeaderMap;

use super::facts::Facts;
use super::span::{decimal, span};
use super::text::{Lower, after_marks};
use crate::verdict::{WaitHint, WaitSource};

/// A wait longer than this is no matter of a minute: the window behind it is a day's or hours'
/// (gemini-cli's `MAX_RETRYABLE_DELAY_SECONDS`, 5 minutes, beyond which it gives the model up).
pub(super) const LONG: Duration = Duration::from_secs(300);

/// What stands before a wait in a message, and before the end of a quota's window.
const SAID: [&str; 9] = [
    "retry in ",
    "retry after ",
    "retry-after: ",
    "try again in ",
    "try again after ",
    "please wait ",
    "wait for ",
    "available in ",
    "available again in ",
];
const RESETS: [&str; 4] = ["reset after ", "resets after ", "reset in ", "resets in "];

/// The best hint there is. Order of trust: `RetryInfo`, the message, `quotaResetDelay`, the reset
/// text, headers, a page's text.
pub(super) fn hint(facts: &Facts, text: &Lower, headers: &HeaderMap) -> Option<WaitHint> {
    let said = || first_span(text, &SAID);
    // A RetryInfo in text that could not be parsed is still one.
    if let Some(delay) = facts.retry_delay.or_else(|| printed_delay(text)) {
        // Google floors RetryInfo to whole seconds while its message keeps the fraction: the exact
        // one is not early.
        let exact = if delay.subsec_nanos() == 0 { said() } else { None };
        if let Some(exact) =
            exact.filter(|&exact| exact > delay && exact - delay < Duration::from_secs(1))
        {
            return Some(WaitHint::new(exact, WaitSource::Message));
        }
        return Some(WaitHint::new(delay, WaitSource::RetryInfo));
    }
    // Most messages without a hint hold no digit at all: one look saves a search for each lead.
    if facts.reset_delay.is_none() && facts.retry_after.is_none() && !has_digit(text.bytes()) {
        return header(headers).map(|wait| WaitHint::new(wait, WaitSource::RetryAfter));
    }
    let from = |span: Option<Duration>, source| span.map(|span| WaitHint::new(span, source));
    let text_source = if facts.is_page { WaitSource::Page } else { WaitSource::Message };
    // A page's text comes last, a message's second.
    let message = from(said(), text_source);
    message
        .filter(|_| !facts.is_page)
        .or_else(|| from(facts.reset_delay, WaitSource::QuotaResetDelay))
        .or_else(|| from(first_span(text, &RESETS), WaitSource::ResetText))
        .or_else(|| from(header(headers), WaitSource::RetryAfter))
        .or_else(|| from(facts.retry_after, WaitSource::Body))
        .or(message)
}

/// A delay among details that were printed: `'retryDelay': '41s'`, `retryDelay:41s` (Go's maps),
/// `retry_delay { seconds: 41 nanos: 500000000 }` (protobuf's text).
fn printed_delay(text: &Lower) -> Option<Duration> {
    ["retrydelay", "retry_delay"].iter().find_map(|name| {
        text.after(name).find_map(|rest| {
            let rest = after_marks(rest);
            let Some(rest) = rest.strip_prefix(b"seconds") else { return span(rest) };
            let (seconds, _, rest) = decimal(after_marks(rest))?;
            let nanos = after_marks(rest)
                .strip_prefix(b"nanos")
                .and_then(|rest| decimal(after_marks(rest)));
            let nanos = nanos
                .and_then(|(nanos, ..)| u32::try_from(nanos).ok())
                .filter(|&nanos| nanos < 1_000_000_000);
            Some(Duration::new(seconds, nanos.unwrap_or(0)))
        })
    })
}

/// Looks at every byte, without an early exit, so that it is vectorised.
fn has_digit(text: &[u8]) -> bool {
    text.iter().fold(false, |found, byte| found | byte.is_ascii_digit())
}

fn first_span(text: &Lower, leads: &[&'static str]) -> Option<Duration> {
    leads.iter().find_map(|lead| text.after(lead).find_map(span))
}

/// `retry-after-ms`, then `Retry-After` in seconds or as a date. A date needs a clock, which this
/// crate does not read: the response's own `Date` header is one.
fn header(headers: &HeaderMap) -> Option<Duration> {
    if headers.is_empty() {
        return None;
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some((whole, billionths, [])) =
        text("retry-after-ms").and_then(|ms| decimal(ms.as_bytes()))
    {
        let up = u64::from(billionths > 0);
        return Some(Duration::from_millis(whole.saturating_add(up)));
    }
    let after = text("retry-after")?;
    if let Some((whole, billionths, rest)) = decimal(after.as_bytes()) {
        return (rest.is_empty() || rest == b"s").then(|| Duration::new(whole, billionths));
    }
    let until = httpdate::parse_http_date(after).ok()?;
    let now = httpdate::parse_http_date(text("date")?).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_after_date_is_read_against_the_date_header() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT".parse().unwrap());
        assert_eq!(header(&headers), None);
        headers.insert("date", "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap());
        assert_eq!(header(&headers), Some(Duration::from_secs(30)));
        headers.insert("retry-after", "7".parse().unwrap());
        assert_eq!(header(&headers), Some(Duration::from_secs(7)));
        headers.insert("retry-after-ms", "1500.5".parse().unwrap());
        assert_eq!(header(&headers), Some(Duration::from_millis(1501)));
        headers.insert("retry-after-ms", "x".parse().unwrap());
        headers.insert("retry-after", "-1".parse().unwrap());
        assert_eq!(header(&headers), None);
    }
}
