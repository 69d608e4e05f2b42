//! Finding the error in whatever came back: JSON, arrays, streams, text with JSON in it, strings
//! with JSON in them, pages.

use std::cell::Cell;

use super::facts::Facts;
use super::lenient;
use super::text::stated_status;

/// JSON in a string in JSON … was recorded three deep (gemini-cli's fixtures); twice that is
/// plenty.
const MAX_NESTING: u8 = 8;

/// How many places of a text are tried as the start of JSON. Prefixes hold a bracket or two
/// (`[nuxt] [500] …`), and each try reads on to the end of the text.
const MAX_STARTS: usize = 12;

/// Beyond this nothing is read: the largest collected error body has 11 KB, and a 200 with an image
/// is not read here.
const MAX_BODY: usize = 128 * 1024;

/// How many bytes may be read in all, counting each try to its end. Every nesting may hold many
/// starts and every start be tried twice, so that a hostile body of 1 KB could cost 12^8 tries;
/// real ones take a few times their length.
const MAX_WORK: usize = 1024 * 1024;

/// How much deeper and longer a search may go.
#[derive(Clone, Copy)]
struct Room<'w> {
    depth: u8,
    work: &'w Cell<usize>,
}

impl Room<'_> {
    fn deeper(self) -> Self {
        Self { depth: self.depth.saturating_add(1), ..self }
    }

    fn is_left(self) -> bool {
        self.depth < MAX_NESTING && self.work.get() > 0
    }

    fn spend(self, bytes: usize) {
        self.work.set(self.work.get().saturating_sub(bytes));
    }
}

/// Reads what an error body states. Never fails: the least it gives is the text as a message.
pub(super) fn read(body: &[u8]) -> Facts {
    let body = body.get(..MAX_BODY).unwrap_or(body);
    let work = Cell::new(MAX_WORK);
    let room = Room { depth: 0, work: &work };
    match simdutf8::basic::from_utf8(body) {
        Ok(text) => read_text(text, room),
        Err(_) => read_text(&String::from_utf8_lossy(body), room),
    }
}

fn read_text(text: &str, room: Room<'_>) -> Facts {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    match text.as_bytes().first() {
        Some(b'{' | b'[') => {
            let found = Facts::read(text).ok().filter(|(facts, _)| {
                facts.is_telling()
                    || (room.is_left() && (facts.message.is_some() || facts.raw.is_some()))
            });
            if let Some((mut facts, end)) = found {
                unfold(&mut facts, room);
                // A response's chunk may be followed by the error that ended the stream.
                let rest = text.get(end..).unwrap_or_default();
                let later = if facts.states_error() { None } else { embedded(rest, room) };
                if let Some(later) = later.filter(Facts::states_error) {
                    facts.absorb(later);
                }
                if facts.is_telling() {
                    return facts;
                }
            }
        }
        // A JSON string that holds the body.
        Some(b'"') if room.is_left() => {
            if let Ok(inner) = serde_json::from_str::<String>(text) {
                return read_text(&inner, room.deeper());
            }
        }
        Some(b'<') if is_page(text) => return read_page(text),
        _ => {}
    }
    read_prose(text, room)
}

/// Text with JSON somewhere in it, or none.
fn read_prose(text: &str, room: Room<'_>) -> Facts {
    let mut facts = embedded(text, room).unwrap_or_default();
    if facts.code.is_none() && facts.status.is_none() {
        facts.code = stated_status(text);
    }
    if facts.message.is_none() && !text.is_empty() {
        facts.message = Some(text.to_owned());
    }
    facts
}

/// Looks into the strings that may hold another response.
fn unfold(facts: &mut Facts, room: Room<'_>) {
    if !room.is_left() {
        return;
    }
    if let Some((raw, first)) = facts
        .raw
        .take()
        .and_then(|raw| raw.trim_ascii_start().bytes().next().map(|first| (raw, first)))
    {
        let is_structured = matches!(first, b'{' | b'[' | b'<' | b'"');
        let inner = read_text(&raw, room.deeper());
        if is_structured && (inner.is_telling() || inner.is_page) {
            facts.absorb(inner);
        } else if let Some(inner) = embedded(&raw, room.deeper()) {
            facts.absorb(inner);
        } else if facts.states_error() && !is_structured {
            // "google/x is temporarily rate-limited upstream": a provider's plain words beat
            // "Provider returned error".
            facts.message = Some(raw);
        }
    }
    let Some(message) = &facts.message else { return };
    if message.trim_ascii_start().starts_with('<') {
        let page = read_page(message);
        facts.absorb(Facts { code: facts.code.or(page.code), ..page });
        return;
    }
    let has_json = memchr::memchr2(b'{', b'[', message.as_bytes()).is_some();
    if let Some(inner) = has_json.then(|| embedded(message, room.deeper())).flatten() {
        // What a wrapper wrote around the JSON may hold the only name of the fault, where the JSON
        // holds details alone.
        let kept = (inner.message.is_none()).then(|| facts.message.take()).flatten();
        facts.absorb(inner);
        facts.message = kept.or(facts.message.take());
    }
}

/// Returns the first JSON in a text that states an error, else the first that is an answer.
fn embedded(text: &str, room: Room<'_>) -> Option<Facts> {
    if !room.is_left() {
        return None;
    }
    let mut answer: Option<Facts> = None;
    let mut astray: Option<Facts> = None;
    let mut at = 0;
    for _ in 0..MAX_STARTS {
        let Some(start) = next_start(text, at) else { break };
        let Some(json) = text.get(start..) else { break };
        if !room.is_left() {
            break;
        }
        room.spend(json.len());
        let mut end = 1;
        let mut is_broken = false;
        let found = match Facts::read(json) {
            Ok((mut facts, taken)) => {
                end = taken.max(1);
                unfold(&mut facts, room.deeper());
                Some(facts)
            }
            Err(_) => {
                is_broken = true;
                read_broken(json, room)
            }
        };
        if let Some(mut facts) = found {
            if facts.states_error() {
                // A repair can go astray (inner quotes that lost their backslashes): an inner start
                // may be read better.
                if is_broken && has_lost_details(&facts, json) {
                    match &mut astray {
                        Some(outer) => outer.absorb(facts),
                        None => astray = Some(facts),
                    }
                    at = start + 1;
                    continue;
                }
                if let Some(mut outer) = astray.take() {
                    outer.absorb(facts);
                    return Some(outer);
                }
                if facts.message.is_none() && facts.code.is_none() && facts.status.is_none() {
                    // A torn-out list of details: the text in front of it says the rest.
                    facts.code = text.get(..start).and_then(stated_status);
                    facts.message = text
                        .get(..start)
                        .map(str::trim)
                        .filter(|t| !t.is_empty())
                        .map(str::to_owned);
                }
                facts.has_answer |= answer.is_some();
                return Some(facts);
            }
            if facts.has_answer && answer.is_none() {
                answer = Some(facts);
            }
        }
        at = start + end;
    }
    astray.or(answer)
}

/// Returns whether the text has details that the repair did not find.
fn has_lost_details(facts: &Facts, json: &str) -> bool {
    let has = |word: &str| memchr::memmem::find(json.as_bytes(), word.as_bytes()).is_some();
    (facts.code.is_none()
        && facts.status.is_none()
        && facts.reason.is_none()
        && facts.violations == 0)
        || (facts.violations == 0 && (has("quotaId") || has("quotaMetric")))
        || (facts.retry_delay.is_none() && facts.violations == 0 && has("retryDelay"))
}

/// Returns where JSON may start: at `{`, or at the `[` right before one.
fn next_start(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let brace = from + memchr::memchr(b'{', bytes.get(from..)?)?;
    let before = bytes.get(from..brace)?;
    let lead = before.strip_suffix(b"%").unwrap_or(before).trim_ascii_end();
    Some(if lead.last() == Some(&b'[') { from + lead.len() - 1 } else { brace })
}

/// JSON that strict parsing refuses: of another language, broken, cut off, or with its quotes
/// escaped.
fn read_broken(json: &str, room: Room<'_>) -> Option<Facts> {
    if let Some(unescaped) = unescape(json) {
        let facts = read_text(&unescaped, room.deeper());
        if facts.is_telling() {
            return Some(facts);
        }
    }
    let (repaired, _) = lenient::repair(json);
    let (mut facts, _) = Facts::read(&repaired).ok()?;
    unfold(&mut facts, room.deeper());
    Some(facts)
}

/// `{\"error\": {\"code\" …` or `{\n  \"error\"` with the backslashes spelled out: JSON that was
/// printed as part of a string.
fn unescape(json: &str) -> Option<String> {
    let inside = json.trim_start_matches(['{', '[']);
    let inside = inside.trim_start_matches("\\n").trim_ascii_start();
    let is_spelled_out = json.get(1..).is_some_and(|rest| rest.starts_with("\\n"));
    if !inside.starts_with("\\\"") && !is_spelled_out {
        return None;
    }
    let mut out = String::with_capacity(json.len());
    let mut chars = json.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(c) => out.push(c),
                None => {}
            },
            c => out.push(c),
        }
    }
    Some(out)
}

/// How much of a page is read, and how much text is kept of it: Google's pages have 1.6 KB,
/// gateways' up to some 10.
const MAX_PAGE: usize = 64 * 1024;
const MAX_PAGE_TEXT: usize = 1000;

/// Returns whether a text that begins with `<` is markup, and not an object that was printed
/// (`<_InactiveRpcError of RPC …`, `<Response [503]>`).
fn is_page(text: &str) -> bool {
    let is_tag = text
        .as_bytes()
        .get(1)
        .is_some_and(|&b| b.is_ascii_alphabetic() || matches!(b, b'!' | b'?' | b'/'));
    let printed = || text.split_once('>').is_some_and(|(_, after)| after.trim().is_empty());
    is_tag && !printed()
}

/// A web page: its text, without markup, styles and scripts.
fn read_page(page: &str) -> Facts {
    let mut text = String::new();
    let mut rest = page;
    let mut read = 0;
    while text.len() < MAX_PAGE_TEXT && read < MAX_PAGE {
        let (words, tag) = rest.split_once('<').unwrap_or((rest, ""));
        for word in words.split_whitespace() {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(word);
            if text.len() >= MAX_PAGE_TEXT {
                break;
            }
        }
        let is_hidden = |name: &str| {
            tag.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        let skip_to = if is_hidden("style") {
            "</style"
        } else if is_hidden("script") {
            "</script"
        } else {
            ""
        };
        let tag = if skip_to.is_empty() {
            tag
        } else {
            find_ignoring_case(tag, skip_to).and_then(|at| tag.get(at..)).unwrap_or("")
        };
        let Some((_, after)) = tag.split_once('>') else { break };
        read += rest.len() - after.len();
        rest = after;
    }
    let code = stated_status(&text);
    let message = (!text.is_empty()).then_some(text);
    Facts { code, message, is_page: true, ..Facts::default() }
}

fn find_ignoring_case(text: &str, word: &str) -> Option<usize> {
    text.as_bytes()
        .windows(word.len())
        .position(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}
