//! What a request's body refers to: files, caches and interactions of Google's, by their ids. Pure.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::paths::Kind;

/// Something that a body names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    /// Kept by Google under an id.
    Kept(Kind, String),
    /// An object in Cloud Storage, read with the rights of the gateway's project: `bucket/object`.
    Object(String),
}

/// More than any request of a person has.
const MAX_REFERENCES: usize = 1024;

/// Reads a whole body once, without building a tree of it, and returns what it refers to.
///
/// # Errors
///
/// What is no JSON, or refers to more than 1,024 things: what it asks for is not known.
pub(crate) fn find(body: &[u8]) -> Result<Vec<Reference>, serde_json::Error> {
    let mut found = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(body);
    Walk { found: &mut found, field: None }.deserialize(&mut json)?;
    json.end()?;
    Ok(found)
}

/// The fields whose texts refer to something.
#[derive(Debug, Clone, Copy)]
enum Field {
    Uri,
    Cache,
    Interaction,
}

impl Field {
    fn named(name: &str) -> Option<Self> {
        match name {
            "fileUri" | "file_uri" | "uri" | "fileName" | "file_name" | "gcsUri" | "gcs_uri"
            | "gcsSource" | "gcs_source" => Some(Self::Uri),
            "cachedContent" | "cached_content" => Some(Self::Cache),
            "previousInteractionId" | "previous_interaction_id" => Some(Self::Interaction),
            _ => None,
        }
    }

    fn refers_to(self, text: &str) -> Option<Reference> {
        let kept = |kind: Kind, id: &str| {
            let id = id.split(['?', '#', ':']).next().unwrap_or_default();
            Some(Reference::Kept(kind, id.to_owned()))
        };
        match self {
            Self::Interaction => kept(Kind::Interaction, text),
            Self::Cache => kept(Kind::Cache, text.rsplit('/').next().unwrap_or_default()),
            Self::Uri => {
                if let Some(object) = text.strip_prefix("gs://") {
                    return Some(Reference::Object(object.to_owned()));
                }
                let (host, path) = match text.split_once("://") {
                    Some((_, rest)) => rest.split_once('/').unwrap_or((rest, "")),
                    None => ("", text),
                };
                // A file elsewhere is read by Google as anybody could.
                if !host.is_empty() && !host.to_ascii_lowercase().contains("googleapis.com") {
                    return None;
                }
                let mut segments = path.split('/');
                segments.find(|segment| *segment == "files")?;
                kept(Kind::File, segments.next().unwrap_or_default())
            }
        }
    }
}

struct Walk<'a> {
    found: &'a mut Vec<Reference>,
    field: Option<Field>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if let Some(reference) = self.field.and_then(|field| field.refers_to(text)) {
            if self.found.len() >= MAX_REFERENCES {
                return Err(E::custom("too many references"));
            }
            if !self.found.contains(&reference) {
                self.found.push(reference);
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let (found, field) = (self.found, self.field);
        while items.next_element_seed(Walk { found: &mut *found, field })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key_seed(Name)? {
            let field = Field::named(&name);
            members.next_value_seed(Walk { found: &mut *self.found, field })?;
        }
        Ok(())
    }
}

/// A member's name, borrowed where nothing in it is escaped.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Cow<'de, str>, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(body: &str) -> Vec<Reference> {
        find(body.as_bytes()).unwrap()
    }

    #[test]
    fn a_body_refers_to_what_its_fields_name_however_they_are_spelled() {
        let file = |id: &str| Reference::Kept(Kind::File, id.to_owned());
        for (body, reference) in [
            (
                r#"{"contents":[{"parts":[{"fileData":{"fileUri":"https://generativelanguage.googleapis.com/v1beta/files/abc"}}]}]}"#,
                file("abc"),
            ),
            (r#"{"a":{"file_data":{"file_uri":"files/abc"}}}"#, file("abc")),
            (r#"{"\u0066ileUri":"files\/abc"}"#, file("abc")),
            (r#"{"batch":{"inputConfig":{"fileName":"files/abc"}}}"#, file("abc")),
            (
                r#"{"input":[{"type":"image","uri":"https://X.GoogleApis.com/v1/files/abc?alt=media"}]}"#,
                file("abc"),
            ),
            (r#"{"cachedContent":"cachedContents/c"}"#, Reference::Kept(Kind::Cache, "c".into())),
            (
                r#"{"previous_interaction_id":"v1_i"}"#,
                Reference::Kept(Kind::Interaction, "v1_i".into()),
            ),
            (r#"{"fileUri":"gs://bucket/a/b"}"#, Reference::Object("bucket/a/b".into())),
        ] {
            assert_eq!(found(body), [reference], "{body}");
        }
    }

    #[test]
    fn texts_and_files_elsewhere_are_no_references() {
        for body in [
            r#"{"contents":[{"parts":[{"text":"see files/abc and gs://x and \"fileUri\":\"files/abc\""}]}]}"#,
            r#"{"fileUri":"https://example.com/files/abc"}"#,
            r#"{"name":"files/abc","displayName":"cachedContents/c"}"#,
            "[]",
        ] {
            assert_eq!(found(body), [], "{body}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for body in ["", "{", "{\"fileUri\":'files/abc'}", "{}{\"fileUri\":\"files/abc\"}"] {
            assert!(find(body.as_bytes()).is_err(), "{body}");
        }
        assert!(find("[".repeat(100_000).as_bytes()).is_err());
    }
}
