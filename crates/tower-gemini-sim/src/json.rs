//! JSON as Google prints it: fields in a fixed order, two spaces of indentation, and megabytes of
//! base64 that are shared, not copied.

use std::borrow::Cow;

use bytes::Bytes;

/// A value to be printed. Fields keep their order, unlike in `serde_json`, because tests cut
/// answers at a byte.
#[derive(Debug, Clone)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Num(u64),
    Str(Cow<'static, str>),
    /// A string that needs no escapes: base64 of an image or of a signature, shared with the cache.
    Blob(Bytes),
    /// A `data:` URL around shared base64.
    DataUrl(&'static str, Bytes),
    Arr(Vec<Json>),
    Obj(Vec<(&'static str, Json)>),
}

impl Json {
    pub(crate) fn str(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Str(text.into())
    }

    /// Two spaces, one field a line: what `generateContent` answers.
    pub(crate) fn pretty(&self) -> Vec<Bytes> {
        let mut out = Printer::new(true);
        out.value(self, 0);
        out.newline(0);
        out.finish()
    }

    /// `": "` after names and nothing after commas: what an event of `alt=sse` holds.
    pub(crate) fn compact(&self) -> Vec<Bytes> {
        let mut out = Printer::new(false);
        out.value(self, 0);
        out.finish()
    }

    pub(crate) fn pretty_string(&self) -> String {
        join(&self.pretty())
    }

    pub(crate) fn compact_string(&self) -> String {
        join(&self.compact())
    }
}

fn join(segments: &[Bytes]) -> String {
    segments.iter().map(|segment| String::from_utf8_lossy(segment)).collect()
}

struct Printer {
    pretty: bool,
    text: Vec<u8>,
    segments: Vec<Bytes>,
}

impl Printer {
    fn new(pretty: bool) -> Self {
        Self { pretty, text: Vec::with_capacity(4096), segments: Vec::new() }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.seal();
        self.segments
    }

    fn seal(&mut self) {
        if !self.text.is_empty() {
            self.segments.push(std::mem::take(&mut self.text).into());
        }
    }

    fn newline(&mut self, depth: usize) {
        if self.pretty {
            self.text.push(b'\n');
            self.text.resize(self.text.len() + 2 * depth, b' ');
        }
    }

    fn shared(&mut self, blob: &Bytes) {
        // Small blobs are cheaper to copy than to carry as a segment of their own.
        if blob.len() < 4096 {
            self.text.extend_from_slice(blob);
        } else {
            self.seal();
            self.segments.push(blob.clone());
        }
    }

    fn value(&mut self, value: &Json, depth: usize) {
        match value {
            Json::Null => self.text.extend_from_slice(b"null"),
            Json::Bool(true) => self.text.extend_from_slice(b"true"),
            Json::Bool(false) => self.text.extend_from_slice(b"false"),
            Json::Num(number) => self.text.extend_from_slice(number.to_string().as_bytes()),
            Json::Str(text) => self.string(text),
            Json::Blob(blob) => {
                self.text.push(b'"');
                self.shared(blob);
                self.text.push(b'"');
            }
            Json::DataUrl(mime, blob) => {
                self.text.extend_from_slice(b"\"data:");
                self.text.extend_from_slice(mime.as_bytes());
                self.text.extend_from_slice(b";base64,");
                self.shared(blob);
                self.text.push(b'"');
            }
            Json::Arr(items) => {
                self.text.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        self.text.push(b',');
                    }
                    self.newline(depth + 1);
                    self.value(item, depth + 1);
                }
                if !items.is_empty() {
                    self.newline(depth);
                }
                self.text.push(b']');
            }
            Json::Obj(fields) => {
                self.text.push(b'{');
                for (index, (name, item)) in fields.iter().enumerate() {
                    if index > 0 {
                        self.text.push(b',');
                    }
                    self.newline(depth + 1);
                    self.string(name);
                    self.text.extend_from_slice(b": ");
                    self.value(item, depth + 1);
                }
                if !fields.is_empty() {
                    self.newline(depth);
                }
                self.text.push(b'}');
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push(b'"');
        if !text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
            self.text.extend_from_slice(text.as_bytes());
            self.text.push(b'"');
            return;
        }
        for byte in text.bytes() {
            match byte {
                b'"' => self.text.extend_from_slice(b"\\\""),
                b'\\' => self.text.extend_from_slice(b"\\\\"),
                b'\n' => self.text.extend_from_slice(b"\\n"),
                b'\r' => self.text.extend_from_slice(b"\\r"),
                b'\t' => self.text.extend_from_slice(b"\\t"),
                0..0x20 => self.text.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => self.text.push(byte),
            }
        }
        self.text.push(b'"');
    }
}

/// An object literal: names are `&'static str`, values are anything that becomes a [`Json`].
macro_rules! obj {
    ($($name:literal : $value:expr),* $(,)?) => {
        $crate::json::Json::Obj(vec![$(($name, $crate::json::Json::from($value))),*])
    };
}
pub(crate) use obj;

/// What becomes a value, and how.
macro_rules! values {
    ($($from:ty => $make:expr,)*) => {
        $(impl From<$from> for Json {
            fn from(value: $from) -> Self {
                $make(value)
            }
        })*
    };
}

values! {
    &'static str => Self::str,
    String => Self::str,
    u64 => Self::Num,
    bool => Self::Bool,
    Vec<Json> => Self::Arr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_json_reads_back_as_the_same_value() {
        let value = obj! { "a": "q\"uo\\te\n\u{1}ü", "b": vec![Json::Num(1), Json::Null, Json::Bool(true)], "c": obj! {}, "d": Vec::new(),
        "e": Json::Blob(Bytes::from(vec![b'A'; 5000])), "f": Json::DataUrl("image/png", Bytes::from_static(b"AAAA")) };
        let expected = serde_json::json!({ "a": "q\"uo\\te\n\u{1}ü", "b": [1, null, true], "c": {}, "d": [],
            "e": "A".repeat(5000), "f": "data:image/png;base64,AAAA" });
        for text in [value.pretty_string(), value.compact_string()] {
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
        }
    }

    #[test]
    fn names_and_values_are_spaced_as_google_spaces_them() {
        assert_eq!(obj! { "a": 1u64, "b": 2u64 }.compact_string(), r#"{"a": 1,"b": 2}"#);
        assert_eq!(
            obj! { "a": vec![Json::Num(1)] }.pretty_string(),
            "{\n  \"a\": [\n    1\n  ]\n}\n"
        );
    }
}
