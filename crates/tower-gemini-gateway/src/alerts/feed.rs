//! Reads a status feed: a list of incidents, as `incidents.json` of Google Cloud's status page has it.

use serde::Deserialize;

/// Incidents that concern Gemini name one of these, in whatever case.
const NAMES: [&str; 2] = ["vertex", "gemini"];

/// Texts of a feed are cut after so many characters.
const LONGEST: usize = 300;

/// An incident that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Incident {
    pub(super) id: String,
    pub(super) what: String,
    pub(super) link: String,
}

/// An incident as the feed has it. What is not needed is not read.
#[derive(Debug, Deserialize)]
struct Entry {
    id: String,
    end: Option<String>,
    #[serde(default)]
    external_desc: String,
    #[serde(default)]
    service_name: String,
    #[serde(default)]
    affected_products: Vec<Product>,
    #[serde(default)]
    uri: String,
}

#[derive(Debug, Deserialize)]
struct Product {
    #[serde(default)]
    title: String,
}

/// The incidents of a feed that have not ended and name Vertex AI or Gemini. `host` is the feed's: a
/// link there is added to a path.
pub(super) fn open_incidents(json: &[u8], host: &str) -> Result<Vec<Incident>, serde_json::Error> {
    let entries: Vec<Entry> = serde_json::from_slice(json)?;
    let cut = |text: &str| text.chars().take(LONGEST).collect::<String>();
    let open = entries.into_iter().filter(|entry| entry.end.is_none() && entry.concerns_us());
    let incident = |entry: Entry| Incident {
        id: cut(&entry.id),
        what: cut(&entry.external_desc),
        link: match entry.uri.trim_start_matches('/') {
            "" => String::new(),
            path if path.contains("://") => cut(path),
            path => format!("https://{host}/{}", cut(path)),
        },
    };
    Ok(open.map(incident).collect())
}

impl Entry {
    fn concerns_us(&self) -> bool {
        let products = self.affected_products.iter().map(|product| &product.title);
        let mut texts = products.chain([&self.external_desc, &self.service_name]);
        texts.any(|text| {
            let text = text.to_ascii_lowercase();
            NAMES.iter().any(|name| text.contains(name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_incidents_that_name_vertex_or_gemini_are_found() {
        let feed = serde_json::json!([
            {"id": "a", "end": "2026-11-01T00:00:00Z", "external_desc": "Vertex AI errors"},
            {"id": "b", "external_desc": "Elevated errors", "uri": "incidents/b", "severity": "high",
             "affected_products": [{"title": "Vertex Gemini API", "id": "x"}]},
            {"id": "c", "external_desc": "Compute is slow", "affected_products": [{"title": "Compute"}]},
            {"id": "d", "end": null, "service_name": "Vertex AI", "begin": "2026-11-02T00:00:00Z"},
        ]);
        let found = open_incidents(feed.to_string().as_bytes(), "status.example").unwrap();
        let ids: Vec<_> = found.iter().map(|incident| incident.id.as_str()).collect();
        assert_eq!(ids, ["b", "d"]);
        assert_eq!(found[0].link, "https://status.example/incidents/b");
        assert_eq!((found[0].what.as_str(), found[1].link.as_str()), ("Elevated errors", ""));
        assert!(open_incidents(b"<html>", "h").is_err());
    }
}
