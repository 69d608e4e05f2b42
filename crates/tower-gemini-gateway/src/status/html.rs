//! Text and figures as HTML: nothing gets into the page but through [`esc`] or as a number.

use std::borrow::Cow;
use std::fmt::Write as _;

use tower_gemini::ledger::Cost;

/// A text that can stand in an element or a quoted attribute.
pub(super) fn esc(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe.into()
}

/// `12 345`, with narrow spaces.
pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut shown = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            shown.push('\u{202f}');
        }
        shown.push(digit);
    }
    shown
}

/// `98.1 %`, which does not break.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let is_whole = percent >= 99.95 || (percent - percent.round()).abs() < 0.05;
    if is_whole { format!("{percent:.0}\u{a0}%") } else { format!("{percent:.1}\u{a0}%") }
}

/// `$12.34`, with four digits behind the point where it is less than a dollar.
#[allow(clippy::cast_precision_loss, reason = "money for people")]
pub(super) fn usd(microusd: u64) -> String {
    let dollars = microusd as f64 / 1e6;
    match microusd {
        0 => "$0".to_owned(),
        1..1_000_000 => format!("${dollars:.4}"),
        _ => format!("${dollars:.2}"),
    }
}

/// `$12.34 to $15.80`.
pub(super) fn cost(cost: Cost) -> String {
    let least = usd(cost.at_least_microusd);
    match cost.at_most_microusd.map(usd) {
        Some(most) if most == least => most,
        Some(most) => format!("{least} to {most}"),
        None => format!("at least {least}"),
    }
}

/// `$12.34–15.80`, for where room is scarce.
pub(super) fn short_cost(cost: Cost) -> String {
    let least = usd(cost.at_least_microusd);
    match cost.at_most_microusd.map(usd) {
        Some(most) if most == least => most,
        Some(most) => format!("{least}–{}", most.trim_start_matches('$')),
        None => format!("≥\u{a0}{least}"),
    }
}

/// A sentence of ours, escaped, whose figures do not break from their signs.
pub(super) fn sentence(text: &str) -> String {
    esc(text).replace(" %", "\u{a0}%")
}

/// `850 ms`, `4.1 s`, `41 s`, `5 min`.
pub(super) fn seconds(s: f64) -> String {
    match s {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

/// `42 s`, `5 min`, `3 h 20 min`, `4 d 2 h`.
pub(super) fn span(s: u64) -> String {
    match s {
        0..120 => format!("{s} s"),
        120..7200 => format!("{} min", s / 60),
        7200..172_800 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// `14:03`, in UTC.
pub(super) fn clock(unix: u64) -> String {
    format!("{:02}:{:02}", unix / 3600 % 24, unix / 60 % 60)
}

/// `12 MB`.
#[allow(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn bytes(n: u64) -> String {
    match n {
        0..1000 => format!("{n} B"),
        1000..1_000_000 => format!("{} kB", n / 1000),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}

/// A bar of a share, 0 to 1, with what is held but not used behind it, and perhaps a mark. Its
/// label is for who does not see it.
pub(super) fn bar(class: &str, used: f64, held: f64, mark: Option<f64>, label: &str) -> String {
    let percent = |share: f64| (share.clamp(0.0, 1.0) * 100.0 * 100.0).round() / 100.0;
    let (used, all) = (percent(used), percent(used + held));
    let mut svg = format!(
        "<svg class=\"bar {class}\" width=\"100%\" height=\"10\" role=\"img\" aria-label=\"{}\">\
         <rect class=\"track\" width=\"100%\" height=\"10\" rx=\"3\"/>",
        esc(label)
    );
    if all > used {
        let _ = write!(svg, "<rect class=\"held\" width=\"{all}%\" height=\"10\" rx=\"3\"/>");
    }
    if used > 0.0 {
        let _ = write!(svg, "<rect class=\"fill\" width=\"{used}%\" height=\"10\" rx=\"3\"/>");
    }
    if let Some(mark) = mark {
        let at = percent(mark);
        let _ = write!(svg, "<line class=\"mark\" x1=\"{at}%\" x2=\"{at}%\" y1=\"0\" y2=\"10\"/>");
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(number(999), "999");
        assert_eq!(
            (percent(0.981).as_str(), percent(1.0).as_str(), percent(0.0).as_str()),
            ("98.1\u{a0}%", "100\u{a0}%", "0\u{a0}%")
        );
        assert_eq!(cost(Cost::exactly(134_000)), "$0.1340");
        assert_eq!(
            cost(Cost { at_least_microusd: 12_340_000, at_most_microusd: Some(15_800_000) }),
            "$12.34 to $15.80"
        );
        assert_eq!(cost(Cost::UNKNOWN), "at least $0");
        assert_eq!(
            (span(61).as_str(), span(12_000).as_str(), span(352_800).as_str()),
            ("61 s", "3 h 20 min", "4 d 2 h")
        );
        assert_eq!(
            (seconds(0.85).as_str(), seconds(4.12).as_str(), seconds(300.0).as_str()),
            ("850 ms", "4.1 s", "5 min")
        );
    }

    proptest! {
        #[test]
        fn nothing_escaped_opens_a_tag_or_ends_an_attribute(text in any::<String>()) {
            let safe = esc(&text);
            prop_assert!(!safe.contains(['<', '>', '"', '\'']));
            let back = safe.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&");
            prop_assert_eq!(back, text);
        }
    }
}
