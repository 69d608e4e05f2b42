//! Where the members of a JSON text stand, so that a few bytes of it can be replaced and the rest
//! passed on as it is.
//!
//! Twenty megabytes of reference images stand around the dozen words that change. Nothing here
//! decodes or copies them: strings are passed over at the speed of `memchr`, and what comes out is
//! byte ranges.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

/// One member of an object.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Where its name begins, the quote included.
    pub(super) start: usize,
    /// Its name in camel case, however it is spelled: protobuf's JSON takes both.
    pub(super) name: String,
    /// Whether the name is spelled with an underscore.
    pub(super) snake: bool,
    pub(super) value: Range<usize>,
}

/// A JSON text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl<'a> Text<'a> {
    fn at(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn blank(self, mut at: usize) -> usize {
        while matches!(self.at(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            at += 1;
        }
        at
    }

    /// The whole text's value, without what stands around it.
    pub(super) fn root(self) -> Option<Range<usize>> {
        let start = self.blank(if self.0.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 });
        let end = self.skip(start)?;
        (self.blank(end) == self.0.len()).then_some(start..end)
    }

    /// The end of the string that starts here.
    fn string(self, start: usize) -> Option<usize> {
        let mut at = start + 1;
        loop {
            at += memchr::memchr2(b'"', b'\\', self.0.get(at..)?)?;
            if self.at(at) == Some(b'"') {
                return Some(at + 1);
            }
            at += 2;
        }
    }

    /// The end of the value that starts here, however deep, without recursion.
    fn skip(self, start: usize) -> Option<usize> {
        let mut at = start;
        let mut depth = 0_usize;
        loop {
            at = self.blank(at);
            match self.at(at)? {
                b'"' => at = self.string(at)?,
                b'{' | b'[' => {
                    depth += 1;
                    at += 1;
                    continue;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    at += 1;
                }
                b',' | b':' if depth > 0 => {
                    at += 1;
                    continue;
                }
                b',' | b':' => return None,
                _ => {
                    let scalar = self.0.get(at..)?;
                    let length =
                        scalar.iter().position(|b| !matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'+' | b'-' | b'.'));
                    let length = length.unwrap_or(scalar.len());
                    if length == 0 {
                        return None;
                    }
                    at += length;
                }
            }
            if depth == 0 {
                return Some(at);
            }
        }
    }

    pub(super) fn is(self, value: &Range<usize>, kind: u8) -> bool {
        self.at(value.start) == Some(kind)
    }

    /// The members of an object; `None` where it is none, or is broken.
    pub(super) fn members(self, object: &Range<usize>) -> Option<Vec<Member>> {
        let mut members = Vec::new();
        self.walk(object, b'{', b'}', |start| {
            if self.at(start) != Some(b'"') {
                return None;
            }
            let key_end = self.string(start)?;
            let name = self.text(&(start..key_end))?;
            let colon = self.blank(key_end);
            if self.at(colon) != Some(b':') {
                return None;
            }
            let value = self.blank(colon + 1);
            let end = self.skip(value)?;
            members.push(Member {
                start,
                snake: name.contains('_'),
                name: camel(&name),
                value: value..end,
            });
            Some(end)
        })?;
        Some(members)
    }

    /// The elements of an array. A value that is no array is its only element: Google's parser
    /// reads it so too.
    pub(super) fn elements(self, array: &Range<usize>) -> Option<Vec<Range<usize>>> {
        if !self.is(array, b'[') {
            return Some(vec![array.clone()]);
        }
        let mut elements = Vec::new();
        self.walk(array, b'[', b']', |start| {
            let end = self.skip(start)?;
            elements.push(start..end);
            Some(end)
        })?;
        Some(elements)
    }

    /// Passes over the entries of a container; the callback takes one and says where it ends.
    fn walk(
        self,
        container: &Range<usize>,
        open: u8,
        close: u8,
        mut entry: impl FnMut(usize) -> Option<usize>,
    ) -> Option<()> {
        if self.at(container.start) != Some(open) {
            return None;
        }
        let mut at = self.blank(container.start + 1);
        if self.at(at) == Some(close) {
            return Some(());
        }
        loop {
            let end = self.blank(entry(at)?);
            match self.at(end)? {
                b',' => at = self.blank(end + 1),
                byte if byte == close => return Some(()),
                _ => return None,
            }
        }
    }

    /// A string's text. Names and options are short; what is longer than any of them is given up
    /// on.
    pub(super) fn text(self, value: &Range<usize>) -> Option<Cow<'a, str>> {
        const LONGEST: usize = 1024;
        let quoted = self.0.get(value.clone())?;
        if quoted.first() != Some(&b'"') || quoted.len() > LONGEST {
            return None;
        }
        if memchr::memchr(b'\\', quoted).is_some() {
            return serde_json::from_slice::<String>(quoted).ok().map(Cow::Owned);
        }
        std::str::from_utf8(quoted.get(1..quoted.len() - 1)?).ok().map(Cow::Borrowed)
    }

    /// A scalar as it is written.
    pub(super) fn raw(self, value: &Range<usize>) -> &'a str {
        self.0.get(value.clone()).and_then(|raw| std::str::from_utf8(raw).ok()).unwrap_or("")
    }
}

fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = !out.is_empty();
        } else if std::mem::take(&mut upper) {
            out.push(c.to_ascii_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// What is replaced, in any order; no two overlap.
#[derive(Debug, Default)]
pub(super) struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    pub(super) fn replace(&mut self, span: Range<usize>, text: impl Into<String>) {
        self.0.push((span, text.into()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes entries out of a container, commas included, and puts new ones in front of the rest.
    /// `spans` are all its entries in order.
    pub(super) fn reshape(
        &mut self,
        container: &Range<usize>,
        spans: &[Range<usize>],
        gone: &[bool],
        new: &[String],
    ) {
        let stays = gone.iter().filter(|gone| !**gone).count();
        let mut front = new.join(",");
        if !front.is_empty() && stays > 0 {
            front.push(',');
        }
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else {
            if !front.is_empty() {
                self.replace(container.start + 1..container.start + 1, front);
            }
            return;
        };
        if stays == 0 {
            self.replace(first.start..last.end, front);
            return;
        }
        if !front.is_empty() {
            self.replace(first.start..first.start, front);
        }
        let mut at = 0;
        while at < spans.len() {
            if !gone.get(at).copied().unwrap_or(false) {
                at += 1;
                continue;
            }
            let run = at;
            while gone.get(at).copied().unwrap_or(false) {
                at += 1;
            }
            // A run that reaches the end takes the comma before it along, any other the one behind
            // it.
            let span = match (
                spans.get(at),
                run.checked_sub(1).and_then(|before| spans.get(before)),
                spans.get(run),
            ) {
                (Some(next), _, Some(first)) => first.start..next.start,
                (None, Some(before), _) => before.end..last.end,
                _ => continue,
            };
            self.replace(span, "");
        }
    }

    /// The text with the edits made, as pieces of the original and small new ones. The large parts
    /// are shared, never copied.
    pub(super) fn apply(mut self, body: &Bytes) -> Vec<Bytes> {
        self.0.sort_by_key(|(span, _)| (span.start, span.end));
        let mut chunks = Vec::with_capacity(2 * self.0.len() + 1);
        let mut at = 0;
        for (span, text) in self.0 {
            if at < span.start {
                chunks.push(body.slice(at..span.start));
            }
            if !text.is_empty() {
                chunks.push(Bytes::from(text));
            }
            at = at.max(span.end);
        }
        if at < body.len() {
            chunks.push(body.slice(at..));
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_members_can_be_taken_out_and_put_in(
            count in 0usize..6, gone in proptest::collection::vec(any::<bool>(), 6), new in 0usize..3, spaced in any::<bool>(),
        ) {
            let (comma, colon) = if spaced { (" ,\n", " : ") } else { (",", ":") };
            let entries: Vec<_> = (0..count).map(|i| format!("\"k{i}\"{colon}{{\"a\":[{i},\"}}\\\"\"]}}")).collect();
            let text = Bytes::from(format!("{{ {} }}", entries.join(comma)));
            let json = Text(&text);
            let root = json.root().unwrap();
            let members = json.members(&root).unwrap();
            prop_assert_eq!(members.len(), count);
            let spans: Vec<_> = members.iter().map(|member| member.start..member.value.end).collect();
            let inserted: Vec<_> = (0..new).map(|i| format!("\"n{i}\":{i}")).collect();
            let mut edits = Edits::default();
            edits.reshape(&root, &spans, &gone[..count], &inserted);
            let out = edits.apply(&text).concat();
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            let mut expected: Vec<_> = (0..count).filter(|i| !gone[*i]).map(|i| format!("k{i}")).collect();
            expected.extend((0..new).map(|i| format!("n{i}")));
            expected.sort();
            prop_assert_eq!(keys, expected);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(prop::sample::select(b"{}[]\",:\\a1 \n".to_vec()), 0..60)) {
            let json = Text(&bytes);
            if let Some(root) = json.root() {
                let _ = json.members(&root);
                let _ = json.elements(&root);
            }
        }
    }

    #[test]
    fn names_are_read_in_both_spellings() {
        let json = Text(br#"{"image_config":1,"imageConfig":2,"im\u0061ge":3}"#);
        let members = json.members(&json.root().unwrap()).unwrap();
        let names: Vec<_> =
            members.iter().map(|member| (member.name.as_str(), member.snake)).collect();
        assert_eq!(names, [("imageConfig", true), ("imageConfig", false), ("image", false)]);
    }
}
