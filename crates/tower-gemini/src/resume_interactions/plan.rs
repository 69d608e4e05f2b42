//! Where an interaction is fetched, when, and what of its stream is passed on: pure.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tower_gemini_core::call::Framing;
use tower_gemini_core::scan::{Answer, Scanner};

/// Before the second fetch. Ours: an image takes seconds.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Ours: what a minute's generation loses by it is a sixth.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// How long to wait before a fetch, by how many went before it in a row that brought nothing.
pub(super) fn delay(before: u32) -> Duration {
    let Some(doublings) = before.checked_sub(1) else { return Duration::ZERO };
    FIRST_DELAY.saturating_mul(1 << doublings.min(10)).min(LONGEST_DELAY)
}

/// Whether an id can stand in a path as it is. Recorded ones are `v1_` and base64 for URLs.
pub(super) fn is_usable(id: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_~=".contains(&b);
    (1..=512).contains(&id.len()) && id.bytes().all(is_plain)
}

/// What of an interaction's stream is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Events<'a> {
    All,
    /// What follows the event of this id.
    After(&'a str),
}

/// The address of an interaction that was started at `started`, whose query stays: it may hold the
/// key. Without `events` it is the interaction as it is now.
pub(super) fn address(started: &Uri, id: &str, events: Option<Events<'_>>) -> Option<Uri> {
    let mut path_and_query = format!("{}/{id}", started.path().trim_end_matches('/'));
    let stream = events.map(|events| match events {
        Events::All => "stream=true".to_owned(),
        Events::After(id) => {
            format!("stream=true&last_event_id={}", utf8_percent_encode(id, NON_ALPHANUMERIC))
        }
    });
    let mut sign = '?';
    for part in started.query().into_iter().chain(stream.as_deref()) {
        path_and_query.push(sign);
        path_and_query.push_str(part);
        sign = '&';
    }
    let mut parts = started.clone().into_parts();
    parts.path_and_query = Some(path_and_query.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// What a fetch says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The interaction has ended, well or not: this is its result.
    Ended,
    /// It goes on.
    Running,
    /// Another fetch may do better.
    Failed,
    /// No further fetch will.
    Refused,
}

/// Judges a fetch by its status, and by what a complete document says.
pub(super) fn judge(status: StatusCode, document: Option<&Answer>) -> Fetched {
    match (status.is_success(), document.and_then(|document| document.status.as_deref())) {
        (true, Some("queued" | "in_progress")) => Fetched::Running,
        (true, Some(_)) => Fetched::Ended,
        (true, None) => Fetched::Failed,
        // One that was just made may not be found yet.
        (false, _) if matches!(status.as_u16(), 404 | 408 | 429) => Fetched::Failed,
        (false, _) if status.is_client_error() => Fetched::Refused,
        (false, _) => Fetched::Failed,
    }
}

/// The event that ends a stream, with a whole interaction.
pub(super) fn completed_event(document: &[Bytes]) -> Vec<u8> {
    let mut event =
        b"event: interaction.completed\ndata: {\"event_type\":\"interaction.completed\",\
                      \"interaction\":"
            .to_vec();
    // A line of data ends at a line feed, and JSON has them only between its tokens.
    let json = document.iter().flatten();
    event.extend(json.map(|&b| if matches!(b, b'\n' | b'\r') { b' ' } else { b }));
    event.extend_from_slice(b"}\n\n");
    event
}

/// One complete event of a stream: its bytes as they came, and what they say.
#[derive(Debug, Default)]
pub(super) struct Event {
    pub(super) bytes: Vec<Bytes>,
    id: Option<String>,
    interaction: Option<String>,
    is_last: bool,
}

impl Event {
    /// Reads an event, or the beginning of one.
    pub(super) fn read(bytes: Vec<Bytes>) -> Self {
        let mut scanner = Scanner::judging(Framing::Sse);
        // What cannot be read says nothing, and whoever judges the response will see it.
        let _ = bytes.iter().try_for_each(|piece| scanner.feed(piece));
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let (id, interaction) = (owned(scanner.event_id()), owned(scanner.response_id()));
        Self { id, interaction, is_last: scanner.has_closed(), bytes }
    }

    /// Whether it is an error that stands behind the events without being one, as Google ends
    /// failing streams.
    pub(super) fn is_bare_error(&self) -> bool {
        let first = self.bytes.first().map(|bytes| bytes.trim_ascii_start());
        self.is_last && first.is_some_and(|bytes| bytes.starts_with(b"{"))
    }
}

/// Cuts a stream into its events.
#[derive(Debug)]
pub(super) struct Splitter {
    /// What was read of the event that is not complete.
    held: Vec<Bytes>,
    line_is_empty: bool,
    after_cr: bool,
}

impl Splitter {
    pub(super) fn new() -> Self {
        Self { held: Vec::new(), line_is_empty: true, after_cr: false }
    }

    /// The events that end in this chunk.
    pub(super) fn push(&mut self, mut chunk: Bytes) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(end) = self.end_of_event(&chunk) {
            self.held.push(chunk.split_to(end));
            events.push(Event::read(self.take_held()));
        }
        if !chunk.is_empty() {
            self.held.push(chunk);
        }
        events
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held.iter().map(Bytes::len).sum()
    }

    pub(super) fn take_held(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.held)
    }

    /// Where the blank line ends that ends the event, if it does so in these bytes.
    fn end_of_event(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, &b) in bytes.iter().enumerate() {
            let after_cr = std::mem::replace(&mut self.after_cr, b == b'\r');
            match b {
                // The second half of a line's end.
                b'\n' if after_cr => {}
                b'\n' | b'\r' if self.line_is_empty => {
                    let is_pair = b == b'\r' && bytes.get(at + 1) == Some(&b'\n');
                    self.after_cr &= !is_pair;
                    return Some(at + 1 + usize::from(is_pair));
                }
                b'\n' | b'\r' => self.line_is_empty = true,
                _ => self.line_is_empty = false,
            }
        }
        None
    }
}

/// How far a stream has come, over all its connections.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The interaction's id.
    pub(super) interaction: Option<String>,
    /// The id of the last event that was passed on.
    last: Option<String>,
    /// Whether any event was passed on.
    has_begun: bool,
    /// Whether its last event was passed on.
    pub(super) is_over: bool,
    seen: HashSet<String>,
}

impl Progress {
    /// Takes note of an event. Returns whether it is to be passed on: not if it was before.
    pub(super) fn take(&mut self, event: &Event) -> bool {
        if let Some(id) = &event.id {
            if !self.seen.insert(id.clone()) {
                return false;
            }
            self.last = Some(id.clone());
        }
        self.has_begun = true;
        self.name(event);
        self.is_over |= event.is_last;
        true
    }

    /// Takes the interaction's id, if it was not known. Returns whether it is now.
    pub(super) fn name(&mut self, event: &Event) -> bool {
        let id = event.interaction.as_ref().filter(|id| is_usable(id));
        let is_new = self.interaction.is_none() && id.is_some();
        if is_new {
            self.interaction = id.cloned();
        }
        is_new
    }

    /// What is missing of the stream; `None` where the last event that was passed on has no id.
    pub(super) fn missing(&self) -> Option<Events<'_>> {
        match &self.last {
            Some(id) => Some(Events::After(id)),
            None => (!self.has_begun).then_some(Events::All),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_fetch_does_not_wait_and_no_wait_is_longer_than_ten_seconds() {
        let seconds: Vec<_> = (0..7).map(|before| delay(before).as_secs()).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 10, 10]);
        assert_eq!(delay(u32::MAX).as_secs(), 10);
    }

    #[test]
    fn an_interaction_is_fetched_where_it_was_started_with_the_same_query() {
        let address = |started: &str, events| {
            address(&started.parse().unwrap(), "v1_a", events).unwrap().to_string()
        };
        let base = "https://g.example/v1beta/interactions";
        assert_eq!(address(base, None), format!("{base}/v1_a"));
        assert_eq!(address(&format!("{base}/?key=k"), None), format!("{base}/v1_a?key=k"));
        assert_eq!(
            address(&format!("{base}?key=k"), Some(Events::After("e/1&x="))),
            format!("{base}/v1_a?key=k&stream=true&last_event_id=e%2F1%26x%3D")
        );
        assert_eq!(address("/interactions", Some(Events::All)), "/interactions/v1_a?stream=true");
    }

    #[test]
    fn an_id_that_would_lead_elsewhere_is_not_used() {
        assert!(is_usable("v1_ChdTeXN0ZW0-abc="));
        for id in ["", ".", "..", "a/b", "a?b", "a#b", "a%2Fb", "a b", "a:cancel", "ä"] {
            assert!(!is_usable(id), "{id}");
        }
    }

    #[test]
    fn a_fetch_is_judged_by_its_status_and_that_of_the_interaction() {
        let answer = |status: &str| {
            let mut scanner = Scanner::judging(Framing::Whole);
            scanner.feed(format!(r#"{{"id":"v1_a","status":"{status}"}}"#).as_bytes()).unwrap();
            scanner.finish().unwrap()
        };
        for said in ["queued", "in_progress"] {
            assert_eq!(judge(StatusCode::OK, Some(&answer(said))), Fetched::Running);
        }
        for said in ["completed", "incomplete", "failed", "cancelled", "requires_action", "new"] {
            assert_eq!(judge(StatusCode::OK, Some(&answer(said))), Fetched::Ended, "{said}");
        }
        assert_eq!(judge(StatusCode::OK, None), Fetched::Failed);
        for (status, fetched) in [
            (400, Fetched::Refused),
            (401, Fetched::Refused),
            (403, Fetched::Refused),
            (404, Fetched::Failed),
            (429, Fetched::Failed),
            (500, Fetched::Failed),
            (503, Fetched::Failed),
        ] {
            assert_eq!(judge(StatusCode::from_u16(status).unwrap(), None), fetched, "{status}");
        }
    }

    #[test]
    fn a_whole_interaction_is_one_event_however_it_is_printed() {
        let document =
            [Bytes::from("{\r\n  \"id\": \"v1_a\",\n"), Bytes::from("\"status\":\"failed\"}\n")];
        let mut events = Splitter::new().push(completed_event(&document).into());
        let event = events.pop().unwrap();
        assert!(events.is_empty() && event.is_last);
        assert_eq!(event.interaction.as_deref(), Some("v1_a"));
    }

    #[test]
    fn only_a_bare_error_ends_a_stream_without_a_blank_line() {
        let held = |text: &'static str| {
            let mut splitter = Splitter::new();
            assert!(splitter.push(Bytes::from_static(text.as_bytes())).is_empty(), "{text}");
            Event::read(splitter.take_held()).is_bare_error()
        };
        assert!(held("{\n  \"error\": {\n    \"code\": 503\n  }\n}"));
        assert!(!held("{\n  \"error\": {\n    \"code\": 503"));
        assert!(!held("data: {\"event_type\":\"interaction.completed\"}\n"));
        assert!(!held(""));
    }

    #[test]
    fn an_event_that_was_passed_on_is_not_passed_on_again() {
        let event = |id: &str| {
            let text = format!("data: {{\"event_id\":\"{id}\",\"event_type\":\"step.stop\"}}\n\n");
            Splitter::new().push(text.into()).pop().unwrap()
        };
        let mut progress = Progress::default();
        assert_eq!(progress.missing(), Some(Events::All));
        assert!(progress.take(&event("a")) && progress.take(&event("b")));
        assert!(!progress.take(&event("a")) && !progress.take(&event("b")));
        assert_eq!(progress.missing(), Some(Events::After("b")));
        let mut progress = Progress::default();
        assert!(progress.take(&Event::default()) && progress.take(&Event::default()));
        assert_eq!(progress.missing(), None, "events without ids are not told apart");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn events_are_the_same_however_the_stream_is_cut(
            ends in proptest::collection::vec(0..3usize, 1..6),
            cuts in proptest::collection::vec(1..9usize, 0..40),
        ) {
            let mut stream = String::new();
            for (i, &end) in ends.iter().enumerate() {
                let end = ["\n", "\r\n", "\r"][end];
                stream.push_str(&format!("event: x{end}data: {{\"event_id\":\"e{i}\"}}{end}{end}"));
            }
            let mut bytes = Bytes::from(stream.clone() + "data: {\"event_id\":\"cut");
            let (mut events, mut ids, mut passed) = (Splitter::new(), Vec::new(), Vec::new());
            let mut cuts = cuts.into_iter();
            while !bytes.is_empty() {
                let chunk = bytes.split_to(cuts.next().unwrap_or(usize::MAX).min(bytes.len()));
                for event in events.push(chunk) {
                    passed.extend(event.bytes.concat());
                    ids.extend(event.id);
                }
            }
            let expected: Vec<_> = (0..ends.len()).map(|i| format!("e{i}")).collect();
            prop_assert_eq!(ids, expected);
            passed.extend(events.take_held().concat());
            prop_assert_eq!(passed, (stream + "data: {\"event_id\":\"cut").into_bytes());
        }
    }
}
