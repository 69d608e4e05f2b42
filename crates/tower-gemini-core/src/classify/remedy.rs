//! What a refusal comes from, and what to write instead: data in `classify/remedies.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::verdict::Verdict;

/// What a refused request did wrong, and what to write instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remedy {
    /// The cause, as part of a sentence.
    pub cause: &'static str,
    /// What to write or change, as an imperative.
    pub instead: &'static str,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    outcome: String,
    words: Vec<String>,
    cause: String,
    instead: String,
}

#[derive(Deserialize)]
struct File {
    remedy: Vec<Row>,
}

static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    toml::from_str::<File>(include_str!("../../classify/remedies.toml"))
        .map(|file| file.remedy)
        .unwrap_or_default()
});

/// Returns what the request did wrong and what to write instead, where the verdict is a refusal of
/// it (a 400, a blocked prompt or image, a missing image) whose cause is known.
///
/// ```
/// use http::{HeaderMap, StatusCode};
/// use tower_gemini_core::call::Call;
/// use tower_gemini_core::classify::{classify, remedy};
///
/// let body = br#"{"error": {"code": 400, "status": "INVALID_ARGUMENT",
///     "message": "Invalid value at 'generation_config.image_config.image_size': \"2k\""}}"#;
/// let verdict = classify(&Call::unrecognised(), StatusCode::BAD_REQUEST, &HeaderMap::new(), body);
/// assert!(remedy(&verdict).unwrap().instead.contains("capital K"));
/// ```
#[must_use]
pub fn remedy(verdict: &Verdict) -> Option<Remedy> {
    let said = [verdict.message(), verdict.reason()].map(|text| text.unwrap_or_default());
    let said = said.join("\n").to_ascii_lowercase();
    let outcome = verdict.outcome().as_str();
    let fits = |row: &&Row| {
        row.outcome == outcome
            && (row.words.is_empty() || row.words.iter().any(|word| said.contains(word.as_str())))
    };
    ROWS.iter().find(fits).map(|row| Remedy { cause: &row.cause, instead: &row.instead })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::call::Call;
    use crate::classify::classify;
    use crate::verdict::Outcome;

    fn cause(status: u16, body: &str) -> Option<&'static str> {
        let call = Call { wants_image: true, ..Call::unrecognised() };
        let status = StatusCode::from_u16(status).unwrap();
        remedy(&classify(&call, status, &HeaderMap::new(), body.as_bytes())).map(|it| it.cause)
    }

    fn of_400(message: &str) -> Option<&'static str> {
        let error =
            serde_json::json!({"code": 400, "message": message, "status": "INVALID_ARGUMENT"});
        cause(400, &serde_json::json!({ "error": error }).to_string())
    }

    #[test]
    fn the_file_is_read_and_every_row_can_be_found() {
        let file: File = toml::from_str(include_str!("../../classify/remedies.toml")).unwrap();
        for row in &file.remedy {
            assert!(Outcome::ALL.iter().any(|outcome| outcome.as_str() == row.outcome), "{row:?}");
            assert!(row.words.iter().all(|word| *word == word.to_ascii_lowercase()), "{row:?}");
        }
    }

    #[test]
    fn a_400_names_its_cause() {
        for (message, part) in [
            ("Invalid value at 'generation_config.image_config.image_size' (\"2k\")", "image size"),
            ("Aspect ratio is not enabled for this model", "makes no images"),
            ("Invalid aspect_ratio: '7:3'. Supported: 1:1", "aspect ratio"),
            (
                "Invalid JSON payload received. Unknown name \"aspectRatio\" at 'generation_config': Cannot find field.",
                "aspectRatio stands",
            ),
            (
                "Invalid JSON payload received. Unknown name \"responseModalities\" at 'generation_config': Cannot find field.",
                "version v1",
            ),
            (
                "Invalid JSON payload received. Unknown name \"system\": Cannot find field.",
                "a field",
            ),
            ("* GenerateContentRequest.contents: contents is not specified", "prompt is empty"),
            ("Request contains an invalid argument.", "only that"),
        ] {
            assert!(of_400(message).is_some_and(|cause| cause.contains(part)), "{message}");
        }
        assert_eq!(of_400("words that are new"), None);
    }

    #[test]
    fn a_refusal_says_what_to_change_in_the_prompt() {
        let finished = |reason: &str| {
            cause(200, &format!(r#"{{"candidates":[{{"finishReason":"{reason}"}}]}}"#)).unwrap()
        };
        assert!(finished("IMAGE_PROHIBITED_CONTENT").contains("somebody else"));
        assert!(finished("IMAGE_RECITATION").contains("existing"));
        assert!(finished("IMAGE_SAFETY").contains("safety filter"));
        assert!(finished("NO_IMAGE").contains("text"));
        let blocked = cause(200, r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"}}"#);
        assert!(blocked.unwrap().contains("prohibited"));
        assert_eq!(cause(503, "{}"), None);
    }
}
