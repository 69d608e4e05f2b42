//! Merges the responses of several calls into one.

use bytes::Bytes;
use memchr::memmem;

use super::error::unreadable_response;
use super::json::{self, Json, Members};
use super::sse::{BracketDepth, EventReader, EventTooLong};

/// What the only choice of a response begins with.
const CHOICE: &[u8] = br#""choices":[{"index":0"#;

/// Merges the translated responses to [`GeminiRequest::count`](crate::GeminiRequest::count) calls
/// into one, as they are read, one after the other.
///
/// `data` or `choices` holds the elements of all, and `usage` the sums. What else stands behind the
/// elements (`size`, `model`) is left out where it is not the same in all. Nothing is held but the
/// few bytes around the elements.
///
/// ```
/// use bytes::Bytes;
/// use http::HeaderMap;
/// use tower_gemini_openai::{Endpoint, to_gemini};
///
/// let body = br#"{"model": "nano-banana-pro", "prompt": "a red apple", "n": 2}"#;
/// let gemini =
///     to_gemini(Endpoint::ImageGenerations, &HeaderMap::new(), &Bytes::from_static(body))?;
/// assert_eq!(gemini.count, 2);
/// let mut merger = gemini.translator.merger();
/// let mut merged = Vec::new();
/// for response in [
///     r#"{"created":1,"data":[{"b64_json":"QUJD"}],"usage":{"total_tokens":7}}"#,
///     r#"{"created":2,"data":[{"b64_json":"REVG"}],"usage":{"total_tokens":8}}"#,
/// ] {
///     merged.extend(merger.push(&Bytes::from_static(response.as_bytes())));
///     assert!(merger.is_between());
/// }
/// merged.extend(merger.finish());
/// assert_eq!(
///     std::str::from_utf8(&merged).unwrap(),
///     r#"{"created":1,"data":[{"b64_json":"QUJD"},{"b64_json":"REVG"}],"usage":{"total_tokens":15}}"#,
/// );
/// # Ok::<(), tower_gemini_openai::OpenAiError>(())
/// ```
#[derive(Debug)]
pub struct ResponseMerger {
    is_chat: bool,
    place: Place,
    /// What is read of the current response before its list, or after it.
    held: Vec<u8>,
    /// What follows the list, of every response that is complete.
    ends: Vec<Vec<u8>>,
}

/// Where in the current response reading is.
#[derive(Debug)]
enum Place {
    Head,
    List(BracketDepth),
    End(BracketDepth),
}

impl ResponseMerger {
    pub(super) fn new(is_chat: bool) -> Self {
        Self { is_chat, place: Place::Head, held: Vec::new(), ends: Vec::new() }
    }

    /// Takes a chunk of the current response and returns what goes out in its place. The chunk
    /// after the last of a response belongs to the next one; blanks between them are skipped.
    #[must_use]
    pub fn push(&mut self, chunk: &Bytes) -> Bytes {
        let mut rest = match self.is_between() {
            true => chunk.slice_ref(chunk.trim_ascii_start()),
            false => chunk.clone(),
        };
        let mut begin = None;
        if matches!(self.place, Place::Head) {
            self.held.extend_from_slice(&rest);
            let list: &[u8] = if self.is_chat { CHOICE } else { br#""data":["# };
            let Some(at) = memmem::find(&self.held, list) else { return Bytes::new() };
            rest = Bytes::from(self.held.split_off(at + list.len()));
            let head = std::mem::take(&mut self.held);
            begin = Some(match (self.ends.len(), self.is_chat) {
                (0, _) => head,
                (n, true) => format!(r#",{{"index":{n}"#).into_bytes(),
                (_, false) => vec![b','],
            });
            self.place = Place::List(BracketDepth::within(1 + usize::from(self.is_chat)));
        }
        let mut out = Bytes::new();
        if let Place::List(depth) = &mut self.place {
            match depth.feed(&rest) {
                None => out = std::mem::take(&mut rest),
                Some(end) => {
                    out = rest.split_to(end - 1);
                    // Without the bracket, which comes once.
                    rest = rest.slice(1..);
                    self.place = Place::End(BracketDepth::within(1));
                }
            }
        }
        if let Place::End(depth) = &mut self.place {
            let end = depth.feed(&rest);
            self.held.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
            if end.is_some() {
                self.ends.push(std::mem::take(&mut self.held));
                self.place = Place::Head;
            }
        }
        match begin {
            Some(begin) => Bytes::from([begin.as_slice(), &out].concat()),
            None => out,
        }
    }

    /// Whether the response that was pushed last is complete.
    #[must_use]
    pub fn is_between(&self) -> bool {
        matches!(self.place, Place::Head) && self.held.is_empty()
    }

    /// Returns the end of the merged response, after the last one is complete.
    #[must_use]
    pub fn finish(&mut self) -> Bytes {
        let ends = std::mem::take(&mut self.ends);
        let ends: Vec<Vec<u8>> = ends.iter().map(|end| as_object(end)).collect();
        let mut sum = Members::new();
        for end in &ends {
            if let Ok(Json::Object(members)) = json::parse(end, json::MAX_VALUES) {
                add(&mut sum, members);
            }
        }
        sum.retain(|(_, value)| !matches!(value, Json::Null));
        let comma: &[u8] = if sum.is_empty() { b"" } else { b"," };
        Bytes::from([b"]", comma, &Json::Object(sum).to_bytes(512)[1..]].concat())
    }
}

/// The translated stream of one of [`GeminiRequest::count`](crate::GeminiRequest::count) calls, as
/// a choice of the one stream that the client asked for.
///
/// Choices may be pushed in any order and in turn. Memory: one event each.
///
/// ```
/// use tower_gemini_openai::ChoiceStream;
///
/// let (mut first, mut second) = (ChoiceStream::new(0), ChoiceStream::new(1));
/// let chunk = br#"data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}"#;
/// let mut out = second.push(&[&chunk[..], b"\n\ndata: [DONE]\n\n"].concat());
/// assert!(second.has_ended() && !first.has_ended());
/// out.extend(first.push(b"data: [DONE]\n\n"));
/// out.extend(ChoiceStream::finish(&[first, second], None));
/// assert_eq!(
///     String::from_utf8(out.concat())?,
///     "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"Hi\"}}]}\n\ndata: [DONE]\n\n",
/// );
/// # Ok::<(), std::string::FromUtf8Error>(())
/// ```
#[derive(Debug)]
pub struct ChoiceStream {
    index: usize,
    events: EventReader,
    /// The event with the token counts.
    usage: Option<Bytes>,
    error: Option<Bytes>,
    has_ended: bool,
}

impl ChoiceStream {
    /// Creates the choice with that index.
    #[must_use]
    pub fn new(index: usize) -> Self {
        let events = EventReader::default();
        Self { index, events, usage: None, error: None, has_ended: false }
    }

    /// Takes a chunk of the call's stream and returns the events that are complete. The token
    /// counts and the end are held for [`finish`](Self::finish).
    #[must_use]
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Bytes> {
        let events = self.events.push(chunk).unwrap_or_else(|EventTooLong| {
            let message = "an event of the upstream's stream is longer than any response";
            vec![unreadable_response(message).1]
        });
        events.into_iter().filter_map(|event| self.event(event)).collect()
    }

    /// Ends a stream that broke off. Where it had not [ended](Self::has_ended), that is its error.
    pub fn end(&mut self) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.error = Some(unreadable_response("a response ended before it was complete").1);
        }
    }

    /// Whether the last event was read: the end of the stream, or an error.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The error that the stream ended with, as OpenAI's JSON.
    #[must_use]
    pub fn error(&self) -> Option<&Bytes> {
        self.error.as_ref()
    }

    /// Returns the last events, after every choice has ended: the sum of the token counts, and the
    /// end, or the error that stands in its place.
    #[must_use]
    pub fn finish(choices: &[Self], error: Option<&[u8]>) -> Vec<Bytes> {
        let mut sum: Option<Members<'_>> = None;
        for usage in choices.iter().filter_map(|choice| choice.usage.as_deref()) {
            match (&mut sum, json::parse(usage, json::MAX_VALUES)) {
                (None, Ok(Json::Object(first))) => sum = Some(first),
                (Some(sum), Ok(Json::Object(mut more))) => {
                    more.retain(|(name, _)| name == "usage");
                    add(sum, more);
                }
                _ => {}
            }
        }
        let usage = sum.map(|sum| line(&[&Json::Object(sum).to_bytes(512)]));
        usage.into_iter().chain([line(&[error.unwrap_or(b"[DONE]")])]).collect()
    }

    fn event(&mut self, event: Bytes) -> Option<Bytes> {
        if self.has_ended {
            return None;
        }
        let is_error = event.starts_with(br#"{"error":"#);
        if is_error || event == b"[DONE]"[..] {
            self.has_ended = true;
            self.error = is_error.then_some(event);
            return None;
        }
        // A text that quotes this has its quotes escaped.
        let Some(at) = memmem::find(&event, CHOICE) else {
            self.usage = Some(event);
            return None;
        };
        let (head, rest) = event.split_at(at + CHOICE.len());
        let index = self.index.to_string();
        Some(line(&[&head[..head.len() - 1], index.as_bytes(), rest]))
    }
}

fn line(pieces: &[&[u8]]) -> Bytes {
    Bytes::from([b"data: ", &*pieces.concat(), b"\n\n"].concat())
}

/// The members after a list, as an object of their own.
fn as_object(end: &[u8]) -> Vec<u8> {
    let end = end.trim_ascii_start();
    [b"{", end.strip_prefix(b",").unwrap_or(end)].concat()
}

/// Adds up counts, at any depth; a text that is not the same in both becomes null, and of anything
/// else the first stays.
fn add<'a>(sum: &mut Members<'a>, more: Members<'a>) {
    for (name, value) in more {
        match (sum.iter_mut().find(|(known, _)| *known == name).map(|(_, sum)| sum), value) {
            (None, value) => sum.push((name, value)),
            (Some(Json::Object(sum)), Json::Object(more)) => add(sum, more),
            (Some(sum @ Json::Number(_)), more) => {
                let counts = [sum.count(), more.count()];
                *sum = counts.into_iter().flatten().fold(0, u64::saturating_add).into();
            }
            (Some(sum @ Json::Text(_)), more) if *sum != more => *sum = Json::Null,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(is_chat: bool, responses: &[&str], cut: usize) -> String {
        let (mut merger, mut out) = (ResponseMerger::new(is_chat), Vec::new());
        for response in responses {
            assert!(merger.is_between());
            for chunk in response.as_bytes().chunks(cut) {
                out.extend(merger.push(&Bytes::copy_from_slice(chunk)));
            }
        }
        assert!(merger.is_between());
        out.extend(merger.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn responses_are_merged_wherever_they_are_cut() {
        let image = |data: &str, end: &str| format!(r#"{{"created":1,"data":[{data}]{end}}}"#);
        let usage = r#","output_format":"png","usage":{"a":2,"details":{"b":3}}"#;
        let odd = r#"{"url":"https://h/\"]}data[{"}"#;
        let images =
            [image(r#"{"b64_json":"QUJD"}"#, usage), image(odd, ""), image("{},{}", usage)];
        let images: Vec<&str> = images.iter().map(String::as_str).collect();
        let chat = |text: &str| {
            format!(
                r#"{{"id":"x","model":"\"choices\":[{{","choices":[{{"index":0,"message":{{"content":"{text}","index":0}}}}],"usage":{{"a":2}}}}"#
            )
        };
        let chats = [chat("one ]}"), chat("two"), chat("")];
        let chats: Vec<&str> = chats.iter().map(String::as_str).collect();
        for cut in [1, 2, 3, 7, 16, 1000] {
            assert_eq!(
                merged(false, &images, cut),
                format!(
                    r#"{{"created":1,"data":[{{"b64_json":"QUJD"}},{odd},{{}},{{}}],"output_format":"png","usage":{{"a":4,"details":{{"b":6}}}}}}"#
                )
            );
            assert_eq!(
                merged(true, &chats, cut),
                r#"{"id":"x","model":"\"choices\":[{","choices":[{"index":0,"message":{"content":"one ]}","index":0}},{"index":1,"message":{"content":"two","index":0}},{"index":2,"message":{"content":"","index":0}}],"usage":{"a":6}}"#
            );
            assert_eq!(merged(false, &images[1..2], cut), images[1], "one stays as it is");
        }
        let of = |size: &str| format!(r#"{{"data":[1],"size":"{size}","model":"m"}}"#);
        let (same, other) = (of("1x1"), of("2x2"));
        for (responses, expected) in [
            ([&*same, &*same, &*same], r#"{"data":[1,1,1],"size":"1x1","model":"m"}"#),
            ([&*same, &*other, &*same], r#"{"data":[1,1,1],"model":"m"}"#),
        ] {
            assert_eq!(merged(false, &responses, 1000), expected, "no size is that of all");
        }
        assert_eq!(
            merged(false, &["{\"data\":[1]}\n", " {\"data\":[2]}"], 1000),
            r#"{"data":[1,2]}"#,
            "blanks between them"
        );
    }

    #[test]
    fn choices_of_a_stream_keep_their_events_whole_and_in_order_wherever_they_are_cut() {
        let event = |text: &str, index: usize| {
            format!(
                r#"data: {{"id":"x","model":"\"choices\":[{{\"index\":0","choices":[{{"index":{index},"delta":{{"content":"{text}","index":0}}}}]}}"#
            ) + "\n\n"
        };
        let usage = |count: u32| {
            format!(r#"data: {{"created":5,"choices":[],"usage":{{"a":{count},"of":{{"b":1}}}}}}"#)
                + "\n\n"
        };
        let stream = |texts: &[&str], end: &str| {
            texts.iter().map(|text| event(text, 0)).collect::<String>() + &usage(2) + end
        };
        let error = r#"{"error":{"message":"lost"}}"#;
        let texts = [&["one", "[DONE]"][..], &["two ]}"], &[]];
        let ends = ["data: [DONE]\n\n", "data: [DONE]\n\n", &format!("data: {error}\n\n")];
        for cut in [1, 2, 3, 7, 16, 1000] {
            let mut choices: Vec<_> = (0..3).map(ChoiceStream::new).collect();
            for (choice, (texts, end)) in choices.iter_mut().zip(texts.iter().zip(ends)) {
                let mut out = Vec::new();
                for chunk in stream(texts, end).as_bytes().chunks(cut) {
                    assert!(!choice.has_ended() || chunk == b"\n", "{cut}");
                    out.extend(choice.push(chunk));
                }
                let expected: String = texts.iter().map(|text| event(text, choice.index)).collect();
                assert_eq!(String::from_utf8(out.concat()).unwrap(), expected);
                assert!(choice.has_ended());
                choice.end();
            }
            let mut cut_off = ChoiceStream::new(3);
            cut_off.end();
            assert!(cut_off.has_ended() && cut_off.error().is_some());
            let errors: Vec<_> = choices.iter().map(ChoiceStream::error).collect();
            assert_eq!(errors, [None, None, Some(&Bytes::from_static(error.as_bytes()))]);
            for (told, end) in [(None, "[DONE]"), (Some(error), error)] {
                let out = ChoiceStream::finish(&choices, told.map(str::as_bytes)).concat();
                let sum = usage(6).replace("\"b\":1", "\"b\":3");
                assert_eq!(String::from_utf8(out).unwrap(), format!("{sum}data: {end}\n\n"));
            }
        }
    }
}
