//! Turning what is nearly JSON into JSON: Python and Elixir literals, raw newlines in strings,
//! stray commas, cut-off ends.
//!
//! Used only where strict parsing fails. The result is strict JSON text, so that one reader serves
//! both; what cannot be understood becomes a string or is left out. It never fails and its result
//! is at most a few times as long as its input.

/// serde_json gives up at 128 levels; real error bodies have fewer than ten.
const MAX_DEPTH: u8 = 48;

/// More than any collected error body, nested ones included (11 KB).
const MAX_INPUT: usize = 64 * 1024;

/// Repairs the value at the start of the text. Says how many bytes of the input it took.
pub(super) fn repair(text: &str) -> (String, usize) {
    let mut end = text.len().min(MAX_INPUT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    let mut repair = Repair { text, at: 0, out: String::with_capacity(text.len().min(1024) + 16) };
    repair.value(0);
    (repair.out, repair.at)
}

struct Repair<'a> {
    text: &'a str,
    at: usize,
    out: String,
}

impl<'a> Repair<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    /// Skips blanks (NBSP is one) and stray commas.
    fn blanks(&mut self) {
        while self.peek().is_some_and(|c| c.is_whitespace() || c == ',' || c == '\u{feff}') {
            self.bump();
        }
    }

    fn value(&mut self, depth: u8) {
        self.blanks();
        if self.peek() == Some('%') {
            // Elixir: `%{…}` and `%Name{…}`.
            let name = self.rest().find('{').filter(|&at| at < 64);
            if let Some(at) = name {
                self.at += at;
            }
        }
        match self.peek() {
            None => self.out.push_str("null"),
            Some('{') => self.container(depth, "{}"),
            Some('[' | '(') => self.container(depth, "[]"),
            Some('"' | '\'') => self.string(),
            Some(_) => self.bare(),
        }
    }

    fn container(&mut self, depth: u8, brackets: &str) {
        let is_object = brackets == "{}";
        let (open, close) = brackets.split_at(1);
        self.bump();
        self.out.push_str(open);
        if depth == MAX_DEPTH {
            self.at = self.text.len();
        }
        let mut is_first = true;
        loop {
            self.blanks();
            match self.peek() {
                None => break,
                Some(c @ ('}' | ']' | ')')) => {
                    // A closing bracket of something else: this container was never closed.
                    if (c == '}') == is_object {
                        self.bump();
                    }
                    break;
                }
                Some(_) => {}
            }
            if !is_first {
                self.out.push(',');
            }
            is_first = false;
            let before = self.at;
            if is_object {
                self.key();
            }
            if !is_object || self.eat("=>") || self.eat(":") || self.eat("=") {
                self.value(depth + 1);
            } else {
                self.out.push_str("null");
            }
            if self.at == before {
                // Nothing was understood: step over it, or this would never end.
                self.bump();
            }
        }
        self.out.push_str(close);
    }

    fn key(&mut self) {
        match self.peek() {
            Some('"' | '\'') => self.string(),
            _ => self.bare_key(),
        }
        self.out.push(':');
        while self.peek().is_some_and(char::is_whitespace) {
            self.bump();
        }
    }

    fn string(&mut self) {
        let Some(quote) = self.bump() else { return };
        self.out.push('"');
        while let Some(c) = self.bump() {
            match c {
                c if c == quote => break,
                '\\' => self.escape(),
                c => push_escaped(&mut self.out, c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self) {
        match self.bump() {
            Some('n') => self.out.push_str("\\n"),
            Some('t') => self.out.push_str("\\t"),
            Some('r') => self.out.push_str("\\r"),
            Some('b') => self.out.push_str("\\b"),
            Some('f') => self.out.push_str("\\f"),
            Some('u') => self.hex(4),
            Some('x') => self.hex(2),
            // Python joins a line that ends in a backslash.
            Some('\n') | None => {}
            Some(c) => push_escaped(&mut self.out, c),
        }
    }

    fn hex(&mut self, digits: usize) {
        let code =
            self.rest().get(..digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        if let Some(code) = code.and_then(|hex| u32::from_str_radix(hex, 16).ok()) {
            self.at += digits;
            // A surrogate half is no character; its pair is not worth joining in a message that is
            // only searched.
            push_escaped(
                &mut self.out,
                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER),
            );
        }
    }

    /// `error:` and `:error` of Elixir, `error` of JavaScript.
    fn bare_key(&mut self) {
        self.eat(":");
        let end = self
            .rest()
            .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '@' | '$' | '.')))
            .unwrap_or(self.rest().len());
        let key = self.rest().get(..end).unwrap_or_default();
        self.at += end;
        self.quote(key);
    }

    /// A number, a constant, or words without quotes.
    fn bare(&mut self) {
        let rest = self.rest();
        // `b'…'`, `u"…"`: Python's prefixes.
        let mut chars = rest.chars();
        if let (Some('b' | 'u' | 'r' | 'f' | 'B' | 'U'), Some('"' | '\'')) =
            (chars.next(), chars.next())
        {
            self.bump();
            self.string();
            return;
        }
        let end = rest.find([',', '}', ']', ')', '\n']).unwrap_or(rest.len());
        let token = rest.get(..end).unwrap_or_default();
        self.at += end;
        let token = token.trim();
        match token {
            "None" | "nil" | "null" | "undefined" | "NaN" | "" => self.out.push_str("null"),
            "True" | "true" => self.out.push_str("true"),
            "False" | "false" => self.out.push_str("false"),
            _ if is_number(token) => self.out.push_str(token),
            // An enum of Python prints as `<FinishReason.STOP: 'STOP'>`: the name in it is enough.
            _ => self.quote(token.trim_start_matches(':')),
        }
    }

    fn quote(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            push_escaped(&mut self.out, c);
        }
        self.out.push('"');
    }
}

/// Returns whether it is a number that strict JSON takes: no leading zeros, no sign but minus, few
/// enough digits to be finite.
fn is_number(token: &str) -> bool {
    let digits = token.strip_prefix('-').unwrap_or(token);
    let (whole, fraction) =
        digits.split_once('.').map_or((digits, None), |(whole, fraction)| (whole, Some(fraction)));
    let all_digits = |part: &str| {
        !part.is_empty() && part.len() <= 18 && part.bytes().all(|b| b.is_ascii_digit())
    };
    all_digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(all_digits)
}

fn push_escaped(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        // No other control character means anything in a message.
        c if c.is_control() => out.push(' '),
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn value(text: &str) -> Value {
        let (repaired, _) = repair(text);
        serde_json::from_str(&repaired).unwrap_or_else(|error| panic!("{error}: {repaired}"))
    }

    #[test]
    fn literals_of_other_languages_are_read() {
        assert_eq!(
            value(
                r#"{'error': {'code': 429, 'message': 'it\'s "full"', 'details': None, 'ok': True}}"#
            ),
            json!({"error": {"code": 429, "message": "it's \"full\"", "details": null, "ok": true}})
        );
        assert_eq!(
            value(r#"%{"error" => %{"code" => 400, "x" => nil}}"#),
            json!({"error": {"code": 400, "x": null}})
        );
        assert_eq!(
            value("%{error: %{code: 400, status: :not_found}}"),
            json!({"error": {"code": 400, "status": "not_found"}})
        );
    }

    #[test]
    fn broken_json_keeps_what_came_before_the_break() {
        assert_eq!(
            value("{\"a\": \"x\ny\", , \"b\": [1, 2,],}"),
            json!({"a": "x\ny", "b": [1, 2]})
        );
        assert_eq!(
            value(r#"{"error":{"code":400,"message":"cut o"#),
            json!({"error": {"code": 400, "message": "cut o"}})
        );
        assert_eq!(value("{\"\u{a0}@type\": 1}"), json!({"\u{a0}@type": 1}));
        assert_eq!(value(r#"{"error": bad_json}"#), json!({"error": "bad_json"}));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn whatever_is_repaired_is_json(text in r#"[\[\]{}()'":,=>%\\ \nabu0-9.Nx-]{0,200}"#) {
            let (repaired, taken) = repair(&text);
            prop_assert!(taken <= text.len());
            prop_assert!(serde_json::from_str::<Value>(&repaired).is_ok(), "{repaired}");
        }
    }
}
