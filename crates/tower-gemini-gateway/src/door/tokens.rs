//! Reads lists of callers' tokens. Pure.
//!
//! A token is stored as its SHA-256. A slow hash protects secrets that can be guessed; a token of
//! `gemini-gateway token new` has 256 random bits, which nobody guesses at any speed, and is
//! checked on every request. For the same reason tokens that people choose must be long.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::pattern::Pattern;

/// Shorter tokens could be guessed; `openssl rand -hex 16` makes 32 characters.
pub(crate) const MIN_TOKEN_LENGTH: usize = 16;
/// Names are labels in logs.
const MAX_NAME_LENGTH: usize = 64;
/// In front of a digest.
pub(crate) const HASH_PREFIX: &str = "sha256:";

/// One caller's token.
pub(crate) struct Token {
    pub(crate) name: String,
    /// Of the same length for every token, so that the time of a comparison reveals nothing.
    digest: [u8; 32],
    pub(crate) grants: Grants,
}

/// What a token may do.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Grants {
    /// From then on it opens nothing.
    pub(crate) expires: Option<SystemTime>,
    /// Beyond what every token may.
    pub(crate) allow: Vec<Pattern>,
    pub(crate) limits: Limits,
}

/// What a token may use up; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Limits {
    /// Calls that may cost something, a minute.
    pub(crate) rpm: Option<u64>,
    /// The same a day, until midnight Pacific.
    pub(crate) rpd: Option<u64>,
    pub(crate) usd_per_day: Option<f64>,
    pub(crate) usd_per_month: Option<f64>,
    /// Requests in flight.
    pub(crate) concurrency: Option<usize>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Token {
    /// Whether it has not expired.
    pub(crate) fn is_valid(&self, now: SystemTime) -> bool {
        self.grants.expires.is_none_or(|end| now < end)
    }
}

/// Why a list of tokens is refused. It never repeats a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenProblem {
    line: Option<usize>,
    what: String,
    pub(crate) remedy: &'static str,
}

impl fmt::Display for TokenProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// A list without duplicates, that is not empty.
#[derive(Debug)]
pub(crate) struct TokenList(Vec<std::sync::Arc<Token>>);

type Checked<T> = Result<T, TokenProblem>;

fn wrong<T>(line: usize, what: impl Into<String>, remedy: &'static str) -> Checked<T> {
    Err(TokenProblem { line: Some(line), what: what.into(), remedy })
}

impl TokenList {
    /// Reads `name:token` pairs separated by lines or commas, or TOML with `[[token]]` tables.
    pub(crate) fn parse(text: &str) -> Checked<Self> {
        let is_content = |line: &&str| !line.is_empty() && !line.starts_with('#');
        let first = text.lines().map(str::trim).find(is_content);
        let tokens = match first.is_some_and(|line| line.starts_with('[')) {
            true => tables(text)?,
            false => lines(text)?,
        };
        let (mut names, mut digests) = (HashSet::new(), HashSet::new());
        for (line, token) in &tokens {
            let name = &token.name;
            if !names.insert(name) {
                let what = format!("the name {name} is there twice");
                return wrong(*line, what, "a name stands for one caller: rename one");
            }
            if !digests.insert(token.digest) {
                let what = format!("the token of {name} is also that of another name");
                return wrong(*line, what, "give each name a token of its own");
            }
        }
        if tokens.is_empty() {
            return Err(TokenProblem {
                line: None,
                what: "the list of tokens is empty".to_owned(),
                remedy: "write name:token lines, or add one with `gemini-gateway token new`",
            });
        }
        Ok(Self(tokens.into_iter().map(|(_, token)| std::sync::Arc::new(token)).collect()))
    }

    /// The token that was shown.
    pub(crate) fn find(&self, shown: &[u8]) -> Option<&std::sync::Arc<Token>> {
        let digest: [u8; 32] = Sha256::digest(shown).into();
        // Compared with all of them, so that the time reveals nothing.
        let same = self.0.iter().fold(None, |same, token| {
            if bool::from(token.digest.ct_eq(&digest)) { Some(token) } else { same }
        });
        same.filter(|_| !shown.is_empty())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &std::sync::Arc<Token>> {
        self.0.iter()
    }
}

/// The text of a digest in a file.
pub(crate) fn hashed(token: &str) -> String {
    let digest = Sha256::digest(token);
    digest.iter().fold(HASH_PREFIX.to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Reads the text of a digest.
fn digest(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix(HASH_PREFIX)?;
    let mut digest = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// Checks a name.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("a name is empty");
    }
    let is_plain = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, ':' | ',' | '"');
    match name.len() <= MAX_NAME_LENGTH && name.chars().all(is_plain) {
        true => Ok(()),
        false => Err("a name has blanks, colons, commas or quotes, or more than 64 bytes"),
    }
}

const RENAME: &str = "write a short name without blanks for each caller";

fn lines(text: &str) -> Checked<Vec<(usize, Token)>> {
    let mut tokens = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        for entry in line.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            // The line itself is a secret and is not repeated.
            let Some((name, token)) = entry.split_once(':') else {
                let what = "a line of the tokens has no name";
                return wrong(number, what, "write it as name:token");
            };
            let (name, token) = (name.trim(), token.trim());
            check_name(name).or_else(|what| wrong(number, what, RENAME))?;
            let digest = match token.strip_prefix(HASH_PREFIX) {
                Some(_) => digest(token),
                None if token.len() < MIN_TOKEN_LENGTH => {
                    let what = format!(
                        "the token of {name} is shorter than {MIN_TOKEN_LENGTH} characters"
                    );
                    const REMEDY: &str =
                        "write one that cannot be guessed, as `gemini-gateway token new` makes";
                    return wrong(number, what, REMEDY);
                }
                None => Some(Sha256::digest(token).into()),
            };
            let Some(digest) = digest else {
                let what = format!("the hash of {name} is not sha256: and 64 hexadecimal digits");
                return wrong(number, what, "`gemini-gateway token hash` prints it");
            };
            let grants = Grants::default();
            tokens.push((number, Token { name: name.to_owned(), digest, grants }));
        }
    }
    Ok(tokens)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    token: Vec<toml::Spanned<Table>>,
}

/// One `[[token]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    hash: String,
    expires: Option<Expiry>,
    #[serde(default)]
    allow: Vec<String>,
    rpm: Option<u64>,
    rpd: Option<u64>,
    usd_per_day: Option<f64>,
    usd_per_month: Option<f64>,
    concurrency: Option<usize>,
}

/// A date, or a time, as a value of TOML's own or as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Expiry {
    Date(toml::value::Datetime),
    Text(String),
}

impl Expiry {
    /// The end of a day in UTC, or a moment.
    fn moment(&self) -> Option<SystemTime> {
        let text = match self {
            Self::Date(date) => date.to_string(),
            Self::Text(text) => text.trim().to_owned(),
        };
        let moment = match text.parse::<jiff::Timestamp>() {
            Ok(moment) => moment,
            Err(_) => {
                let date: jiff::civil::Date = text.parse().ok()?;
                let day = date.tomorrow().ok()?;
                day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()
            }
        };
        let seconds = u64::try_from(moment.as_second()).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }
}

fn tables(text: &str) -> Checked<Vec<(usize, Token)>> {
    let line_of = |byte: usize| text.get(..byte).unwrap_or(text).matches('\n').count() + 1;
    let read: Tables = toml::from_str(text).map_err(|error| {
        let message = error.message();
        // Other messages may quote a value.
        let names_a_key =
            ["unknown field", "missing field"].iter().any(|text| message.starts_with(text));
        let what = if names_a_key { message } else { "this is not TOML, or not of the right kind" };
        TokenProblem {
            line: error.span().map(|span| line_of(span.start)),
            what: what.to_owned(),
            remedy: "write [[token]] tables with name and hash, as `gemini-gateway token new` does",
        }
    })?;
    read.token
        .into_iter()
        .map(|table| {
            let line = line_of(table.span().start);
            let table = table.into_inner();
            let name = table.name.trim().to_owned();
            check_name(&name).or_else(|what| wrong(line, what, RENAME))?;
            let Some(digest) = digest(table.hash.trim()) else {
                let what = format!("the hash of {name} is not sha256: and 64 hexadecimal digits");
                return wrong(line, what, "`gemini-gateway token hash` prints it");
            };
            let expires = match table.expires.as_ref().map(Expiry::moment) {
                Some(None) => {
                    let what = format!("expires of {name} is not a date");
                    return wrong(line, what, "write 2027-01-31, or 2027-01-31T12:00:00Z");
                }
                Some(moment) => moment,
                None => None,
            };
            let mut allow = Vec::new();
            for text in &table.allow {
                match Pattern::parse(text) {
                    Some(pattern) => allow.push(pattern),
                    None => {
                        let what = format!("allow of {name} has \"{text}\", which is no pattern");
                        return wrong(
                            line,
                            what,
                            "write a method and a path: \"GET /v1beta/files\"",
                        );
                    }
                }
            }
            let money = [table.usd_per_day, table.usd_per_month];
            let counts = [table.rpm, table.rpd, table.concurrency.map(|count| count as u64)];
            let is_right = money.iter().flatten().all(|usd| usd.is_finite() && *usd > 0.0)
                && counts.iter().flatten().all(|count| *count > 0);
            if !is_right {
                let what = format!("a limit of {name} lets nothing through");
                return wrong(line, what, "write more than 0, or leave it out for no limit");
            }
            let limits = Limits {
                rpm: table.rpm,
                rpd: table.rpd,
                usd_per_day: table.usd_per_day,
                usd_per_month: table.usd_per_month,
                concurrency: table.concurrency,
            };
            Ok((line, Token { name, digest, grants: Grants { expires, allow, limits } }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> String {
        TokenList::parse(text).unwrap_err().to_string()
    }

    const ANN: &str = "token-of-ann-0123456";

    #[test]
    fn a_token_opens_whether_it_is_written_plain_or_hashed() {
        for text in [
            format!("ann:{ANN}, ben:token-of-ben-0123456"),
            format!("# all\nann:{}\n", hashed(ANN)),
            format!("[[token]]\nname = \"ann\"\nhash = \"{}\"\n", hashed(ANN)),
        ] {
            let list = TokenList::parse(&text).unwrap();
            assert_eq!(list.find(ANN.as_bytes()).unwrap().name, "ann", "{text}");
            for other in ["", "token-of-ann-012345", &hashed(ANN)] {
                assert!(list.find(other.as_bytes()).is_none(), "{other}");
            }
            assert!(!format!("{list:?}").contains("0123456"));
        }
    }

    #[test]
    fn a_bad_line_refuses_the_whole_list_and_is_never_repeated() {
        for (text, line) in [
            ("sentinel-without-a-name", "line 1: a line of the tokens has no name"),
            ("ann:token-of-ann-0123456\nben:sentinel", "line 2: the token of ben is shorter"),
            ("ann:sha256:sentinel", "line 1: the hash of ann"),
            (":sentinel-0123456789", "line 1: a name is empty"),
            ("a b:sentinel-0123456789", "line 1: a name has blanks"),
            ("[[token]]\nname = \"ann\"\nhash = \"sentinel\"", "line 1: the hash of ann"),
            ("[[token]]\nname = \"ann\"\nhash = 5\nx = \"sentinel\"", "line"),
            ("[[token]]\nname = \"ann\"\nhsh = \"sentinel\"", "line 3: unknown field `hsh`"),
            ("[[token]]\nname = \"\"\nhash = \"sentinel\"", "line 1: a name is empty"),
            ("[[token]]\nname = [\"sentinel\"", "not TOML"),
        ] {
            let said = says(text);
            assert!(said.contains(line) && !said.contains("sentinel"), "{text}\n{said}");
        }
    }

    #[test]
    fn duplicate_names_and_tokens_and_an_empty_list_are_refused() {
        assert!(says("ann:token-of-ann-0123456\nann:token-of-ben-0123456").contains("twice"));
        let shared = says("ann:token-of-ann-0123456\nben:token-of-ann-0123456");
        assert!(shared.contains("line 2: the token of ben is also that of another"), "{shared}");
        for nothing in ["", "# nobody\n", " \n,,\n", "[[token]]\n"] {
            assert!(!says(nothing).is_empty());
        }
        assert!(says("").contains("empty"));
    }

    #[test]
    fn the_grants_of_a_token_are_read_and_what_cannot_work_is_refused() {
        let table =
            |more: &str| format!("[[token]]\nname = \"ann\"\nhash = \"{}\"\n{more}\n", hashed(ANN));
        let list = TokenList::parse(&table(
            "expires = 2027-01-31\nallow = [\"GET /v1beta/files\"]\nrpm = 5\nrpd = 9\n\
             usd_per_day = 2.5\nusd_per_month = 20\nconcurrency = 2",
        ));
        let grants = list.unwrap().find(ANN.as_bytes()).unwrap().grants.clone();
        // 2027-02-01T00:00:00Z: the day is the last one.
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_801_440_000);
        assert_eq!((grants.expires, grants.allow.len()), (Some(end), 1));
        assert_eq!(grants.limits.usd_per_day, Some(2.5));
        for text in ["expires = \"2027-01-31T12:00:00Z\"", "expires = 2027-01-31T12:00:00Z"] {
            let list = TokenList::parse(&table(text)).unwrap();
            let expires = list.iter().next().unwrap().grants.expires;
            assert_eq!(expires, Some(end - Duration::from_secs(43_200)), "{text}");
        }
        for (more, what) in [
            ("expires = \"soon\"", "is not a date"),
            ("allow = [\"files\"]", "\"files\", which is no pattern"),
            ("rpm = 0", "lets nothing through"),
            ("usd_per_day = -1.0", "lets nothing through"),
            ("usd_per_day = nan", "lets nothing through"),
        ] {
            assert!(says(&table(more)).contains(what), "{more}");
        }
    }
}
