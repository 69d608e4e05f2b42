//! JSON as Google prints it: fields in a fixed order, two spaces of indentation, and megabytes of
//! base64 that are shared, not copied.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A value to be printed. Fields keep their order, unlike in `serde_json`, because tests cut
/// answers at a byte.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(untagged)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Num(u64),
    Str(Cow<'static, str>),
    Arr(Vec<Json>),
    Obj(Fields),
    /// A string that needs no escapes, after a prefix that needs none: the base64 of an image or of
    /// a signature, shared with the cache.
    #[serde(skip)]
    Blob(String, Bytes),
    /// A number that is no count, from a caller's own JSON.
    #[serde(skip)]
    Real(f64),
    /// The value of a field that is left out.
    #[serde(skip)]
    Absent,
}

/// The fields of an object in their order.
#[derive(Debug, Clone)]
pub(crate) struct Fields(Vec<(Cow<'static, str>, Json)>);

impl Fields {
    pub(crate) fn new<const N: usize>(fields: [(&'static str, Json); N]) -> Self {
        let mut present = Vec::with_capacity(N);
        for (name, value) in fields {
            if !matches!(value, Json::Absent) {
                present.push((Cow::Borrowed(name), value));
            }
        }
        Self(present)
    }

    /// The value of one of them.
    pub(crate) fn get(&self, name: &str) -> Option<Json> {
        self.0.iter().find(|(named, _)| named == name).map(|(_, value)| value.clone())
    }

    /// The same with one more before them.
    pub(crate) fn led_by(mut self, name: &'static str, value: impl Into<Json>) -> Self {
        self.0.insert(0, (name.into(), value.into()));
        self
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// An object literal: values are anything that becomes a [`Json`]; fields of which there is `None`
/// are left out.
macro_rules! obj {
    ($($name:tt : $value:expr),* $(,)?) => {
        $crate::json::Json::Obj($crate::json::Fields::new([
            $(($name, $crate::json::Json::from($value))),*
        ]))
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
    &'static str => |text: &'static str| Self::Str(text.into()),
    String => |text: String| Self::Str(text.into()),
    u64 => Self::Num,
    bool => Self::Bool,
    Vec<Json> => Self::Arr,
    Bytes => |base64| Self::Blob(String::new(), base64),
}

impl From<&serde_json::Value> for Json {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => match number.as_u64() {
                Some(count) => Self::Num(count),
                None => Self::Real(number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => Self::Str(text.clone().into()),
            Value::Array(items) => Self::Arr(items.iter().map(Self::from).collect()),
            Value::Object(fields) => {
                let named = |(name, value): (&String, &Value)| (name.clone().into(), value.into());
                Self::Obj(Fields(fields.iter().map(named).collect()))
            }
        }
    }
}

impl<T: Into<Json>> From<Option<T>> for Json {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Into::into)
    }
}

impl Json {
    /// Two spaces, one field a line: what `generateContent` answers.
    pub(crate) fn pretty(&self) -> Vec<Bytes> {
        // Room for a response with a small image: growing would copy it four times.
        let text = Vec::with_capacity(4096);
        let mut out = Printer { pretty: true, text, ..Printer::default() };
        out.value(self, 0);
        out.newline(0);
        out.finish()
    }

    /// `": "` after names and nothing after commas: what an event of `alt=sse` holds.
    pub(crate) fn compact(&self) -> Vec<Bytes> {
        let mut out = Printer::default();
        out.value(self, 0);
        out.finish()
    }
}

#[derive(Default)]
struct Printer {
    pretty: bool,
    text: Vec<u8>,
    segments: Vec<Bytes>,
}

impl Printer {
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

    fn value(&mut self, value: &Json, depth: usize) {
        match value {
            Json::Null | Json::Absent => self.text.extend_from_slice(b"null"),
            Json::Bool(value) => self.text.extend_from_slice(value.to_string().as_bytes()),
            Json::Num(number) => {
                // Writing into memory does not fail, here and below.
                let _ = serde_json::to_writer(&mut self.text, number);
            }
            Json::Real(number) => {
                let _ = serde_json::to_writer(&mut self.text, number);
            }
            Json::Str(text) => self.string(text),
            Json::Blob(prefix, blob) => {
                self.text.push(b'"');
                self.text.extend_from_slice(prefix.as_bytes());
                // Small blobs are cheaper to copy than to carry as a segment of their own.
                if blob.len() < 4096 {
                    self.text.extend_from_slice(blob);
                } else {
                    self.seal();
                    self.segments.push(blob.clone());
                }
                self.text.push(b'"');
            }
            Json::Arr(items) => self.list(b"[]", items, depth, |out, item, depth| {
                out.value(item, depth);
            }),
            Json::Obj(Fields(fields)) => {
                self.list(b"{}", fields, depth, |out, (name, item), depth| {
                    out.string(name);
                    out.text.extend_from_slice(b": ");
                    out.value(item, depth);
                });
            }
        }
    }

    fn list<T>(
        &mut self,
        brackets: &[u8; 2],
        items: &[T],
        depth: usize,
        print: impl Fn(&mut Self, &T, usize),
    ) {
        self.text.push(brackets[0]);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.text.push(b',');
            }
            self.newline(depth + 1);
            print(self, item, depth + 1);
        }
        if !items.is_empty() {
            self.newline(depth);
        }
        self.text.push(brackets[1]);
    }

    fn string(&mut self, text: &str) {
        // Without an early exit, compilers turn it into vector code.
        let is_escaped = |b: u8| (b < b' ') | (b == b'"') | (b == b'\\');
        if text.bytes().fold(false, |any, b| any | is_escaped(b)) {
            let _ = serde_json::to_writer(&mut self.text, text);
        } else {
            self.text.push(b'"');
            self.text.extend_from_slice(text.as_bytes());
            self.text.push(b'"');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(segments: Vec<Bytes>) -> String {
        String::from_utf8(segments.concat()).unwrap()
    }

    #[test]
    fn printed_json_reads_back_as_the_same_value() {
        let value = obj! {
            "a": "q\"uo\\te\n\u{1}ü",
            "b": vec![Json::Num(1), Json::Null, Json::Bool(true)],
            "c": obj! {},
            "d": Vec::new(),
            "e": Bytes::from(vec![b'A'; 5000]),
            "f": Json::Blob("data:image/png;base64,".into(), Bytes::from_static(b"AAAA")),
            "g": None::<u64>,
        };
        let expected = serde_json::json!({ "a": "q\"uo\\te\n\u{1}ü", "b": [1, null, true], "c": {}, "d": [],
            "e": "A".repeat(5000), "f": "data:image/png;base64,AAAA" });
        for text in [text(value.pretty()), text(value.compact())] {
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
        }
    }

    #[test]
    fn names_and_values_are_spaced_as_google_spaces_them() {
        assert_eq!(text(obj! { "a": 1u64, "b": 2u64 }.compact()), r#"{"a": 1,"b": 2}"#);
        assert_eq!(
            text(obj! { "a": vec![Json::Num(1)] }.pretty()),
            "{\n  \"a\": [\n    1\n  ]\n}\n"
        );
    }
}
