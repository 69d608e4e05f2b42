//! JSON whose strings are not copied: a conversation holds images of megabytes that are only moved.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::Number;

/// A value that borrows its strings from the text it was parsed from, where they have no escapes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Members<'a>),
    /// A media type and megabytes of base64, joined only when the value is serialized.
    DataUri(Cow<'a, str>, Cow<'a, str>),
}

/// The members of an object, in order.
pub(super) type Members<'a> = Vec<(Cow<'a, str>, Json<'a>)>;

impl<'a> Json<'a> {
    /// Returns a member, the last one if it is repeated (as serde_json does). `null` counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        let Self::Object(members) = self else { return None };
        let (_, value) = members.iter().rev().find(|(key, _)| key == name)?;
        Some(value).filter(|value| **value != Self::Null)
    }

    /// Returns a member under the first of these names that is present.
    pub(super) fn any(&self, names: &[&str]) -> Option<&Self> {
        names.iter().find_map(|name| self.get(name))
    }

    /// Returns a nested member.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |value, name| value.get(name))
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(super) fn text_of(&self, names: &[&str]) -> Option<&str> {
        self.any(names)?.text()
    }

    /// Returns a text, or a number as text: `"size": 1024`.
    pub(super) fn text_or_number_of(&self, names: &[&str]) -> Option<Cow<'_, str>> {
        match self.any(names)? {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Number(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&[Self]> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    pub(super) fn members(&self) -> Option<&[(Cow<'a, str>, Self)]> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }

    /// Returns a number, also one written as text, as forms do.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => number.as_f64(),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// Returns a count; some gateways write counts as floats.
    pub(super) fn count(&self) -> Option<u64> {
        match self {
            Self::Number(number) => {
                number.as_u64().or_else(|| number.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64))
            }
            _ => None,
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Bool(value) => *value,
            Self::Text(text) => text.trim().eq_ignore_ascii_case("true"),
            _ => false,
        }
    }

    /// Borrows this value.
    pub(super) fn borrowed(&self) -> Json<'_> {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Number(number) => Json::Number(number.clone()),
            Self::Text(text) => Json::Text(Cow::Borrowed(text)),
            Self::List(list) => Json::List(list.iter().map(Self::borrowed).collect()),
            Self::DataUri(mime, data) => Json::DataUri(Cow::Borrowed(mime), Cow::Borrowed(data)),
            Self::Object(members) => Json::Object(
                members
                    .iter()
                    .map(|(name, value)| (Cow::Borrowed(&**name), value.borrowed()))
                    .collect(),
            ),
        }
    }

    /// Serializes to JSON of about `capacity` bytes.
    pub(super) fn to_bytes(&self, capacity: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(capacity);
        // Writing to memory does not fail, and every key is a text.
        let _ = serde_json::to_writer(&mut bytes, self);
        bytes
    }
}

/// Makes an object of these members.
pub(super) fn object<'a>(members: impl IntoIterator<Item = (&'a str, Json<'a>)>) -> Json<'a> {
    Json::Object(members.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect())
}

impl<'a> From<&'a str> for Json<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Json<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl<'a> From<Cow<'a, str>> for Json<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Json<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number.into())
    }
}

impl<'a, T: Into<Json<'a>>> From<Option<T>> for Json<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The most values of a request, member names included: a conversation of some three thousand
/// messages. Each takes up to a hundred bytes in memory and as little as two in the text, so that
/// their number is what bounds the memory of a tree.
pub(super) const MAX_VALUES: usize = 32 * 1024;
/// The most values of a response, which was charged: as a list of events it can have many.
pub(super) const MAX_RESPONSE_VALUES: usize = 512 * 1024;

/// Parses a text of at most `max_values` values.
///
/// # Errors
///
/// What the parser says, or that there are too many values.
pub(super) fn parse(text: &[u8], max_values: usize) -> Result<Json<'_>, serde_json::Error> {
    let room = Cell::new(max_values);
    let mut parser = serde_json::Deserializer::from_slice(text);
    let value = Bounded { room: &room }.deserialize(&mut parser)?;
    parser.end()?;
    Ok(value)
}

/// Reads a value while there is room for one.
#[derive(Clone, Copy)]
struct Bounded<'r> {
    room: &'r Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let too_many = || Error::custom("it has too many values, names of members included");
        let left = self.room.get().checked_sub(1).ok_or_else(too_many)?;
        self.room.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element_seed(self)? {
            list.push(element);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        // A key is read as a value to borrow it as values are borrowed.
        while let Some((name, value)) = entries.next_entry_seed(self, self)? {
            if let Json::Text(name) = name {
                members.push((name, value));
            }
        }
        Ok(Json::Object(members))
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::DataUri(mime, data) => {
                serializer.collect_str(&format_args!("data:{mime};base64,{data}"))
            }
            Self::List(list) => serializer.collect_seq(list),
            Self::Object(members) => {
                serializer.collect_map(members.iter().map(|(name, value)| (name, value)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // 84 MB of `{"":0},` took 4 GB, and the process with it.
    #[test]
    fn a_tree_has_so_many_values_and_no_more() {
        for filler in ["{\"\":0}", "0", "[]", "{\"a\":1,\"b\":2}"] {
            let text = format!("{{\"x\":[{}]}}", vec![filler; MAX_VALUES + 1].join(","));
            let error = parse(text.as_bytes(), MAX_VALUES).unwrap_err().to_string();
            assert!(error.contains("too many values"), "{error}");
            assert!(parse(text.as_bytes(), 4 * MAX_VALUES).is_ok() || filler.contains("a"));
        }
        let most = format!("[{}]", vec!["0"; MAX_VALUES - 1].join(","));
        assert!(parse(most.as_bytes(), MAX_VALUES).is_ok());
        assert!(parse(b"{} {}", MAX_VALUES).is_err(), "and it is one");
    }
}
