//! Merges the responses of several calls into one.

use bytes::Bytes;
use memchr::memmem;

use super::json::{Json, Members};
use super::sse::BracketDepth;

/// Merges the translated responses to [`GeminiRequest::count`](crate::GeminiRequest::count) calls
/// into one, as they are read, one after the other.
///
/// `data` or `choices` holds the elements of all, and `usage` the sums. Nothing is held but the few
/// bytes around the elements.
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
            let list: &[u8] =
                if self.is_chat { br#""choices":[{"index":0"# } else { br#""data":["# };
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
            if let Ok(Json::Object(members)) = serde_json::from_slice(end) {
                add(&mut sum, members);
            }
        }
        let comma: &[u8] = if sum.is_empty() { b"" } else { b"," };
        Bytes::from([b"]", comma, &Json::Object(sum).to_bytes(512)[1..]].concat())
    }
}

/// The members after a list, as an object of their own.
fn as_object(end: &[u8]) -> Vec<u8> {
    let end = end.trim_ascii_start();
    [b"{", end.strip_prefix(b",").unwrap_or(end)].concat()
}

/// Adds up counts, at any depth; of anything else the first stays.
fn add<'a>(sum: &mut Members<'a>, more: Members<'a>) {
    for (name, value) in more {
        match (sum.iter_mut().find(|(known, _)| *known == name).map(|(_, sum)| sum), value) {
            (None, value) => sum.push((name, value)),
            (Some(Json::Object(sum)), Json::Object(more)) => add(sum, more),
            (Some(sum @ Json::Number(_)), more) => {
                let counts = [sum.count(), more.count()];
                *sum = counts.into_iter().flatten().fold(0, u64::saturating_add).into();
            }
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
        assert_eq!(
            merged(false, &["{\"data\":[1]}\n", " {\"data\":[2]}"], 1000),
            r#"{"data":[1,2]}"#,
            "blanks between them"
        );
    }
}
