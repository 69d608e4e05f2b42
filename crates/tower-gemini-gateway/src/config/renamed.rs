//! Refuses keys of earlier files and says what each is called now.

use toml::de::DeTable;

use super::error::ConfigProblem;
use super::locate;

/// An earlier key, the value that it must have had (`""` is any), and what to write now. Sections
/// stand below their keys.
const RENAMED: &[(&str, &str, &str)] = &[
    ("server.allow_open", "", "server.allow_public"),
    ("server.answer_stall_timeout", "", "server.response_stall_timeout"),
    ("upstream.base_url", "", "[[upstream]] with name, kind = \"gemini\" and base_url"),
    ("upstream.vertex_base_url", "", "[[upstream]] with name, kind = \"vertex\" and base_url"),
    ("upstream.connect_timeout", "", "timeouts.connect"),
    ("auth.mode", "pass", "auth.mode = \"passthrough\""),
    ("auth.mode", "own", "auth.mode = \"tokens\""),
    ("auth.api_key_env", "", "[[upstream]] api_key_env"),
    ("auth.api_key_file", "", "[[upstream]] api_key_file"),
    ("answers.strip_drafts", "", "responses.strip_drafts"),
    ("answers.hold", "", "responses.buffer_up_to"),
    ("answers.heartbeat", "", "responses.heartbeat"),
    ("answers.report_headers", "", "responses.report_headers"),
    ("answers.deadline", "", "retry.deadline"),
    ("answers", "", "[responses]"),
    ("keep.max_time", "", "keep.max_detached_time"),
    ("peak.lead", "", "peak.prefer"),
    ("quota.alert_at", "", "quota.warn_at_percent"),
];

/// Every earlier key in a file.
pub(super) fn problems(table: &DeTable<'_>, text: &str) -> Vec<ConfigProblem> {
    let mut problems: Vec<ConfigProblem> = Vec::new();
    for (key, value, now) in RENAMED {
        let Some(found) = locate(table, text, key) else { continue };
        let is_meant = value.is_empty() || found.value.is_some_and(|is| is == *value);
        let is_covered = || {
            problems
                .iter()
                .filter_map(|p| p.key.as_ref())
                .any(|k| k.starts_with(&format!("{key}.")))
        };
        if !is_meant || is_covered() {
            continue;
        }
        let what = match *value {
            "" => format!("`{key}` is not used any more"),
            value => format!("`{key} = \"{value}\"` is not used any more"),
        };
        let (line, key, remedy) =
            (Some(found.line), Some((*key).to_owned()), format!("write {now}"));
        problems.push(ConfigProblem { line, key, what, remedy });
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::{Config, EXAMPLE};
    use super::*;

    fn file_with(key: &str, value: &str) -> String {
        let value = if value.is_empty() { "1" } else { value };
        match key.split_once('.') {
            Some((section, key)) => format!("\n[{section}]\n{key} = \"{value}\"\n"),
            None => format!("\n[{key}]\n"),
        }
    }

    #[test]
    fn each_earlier_key_is_refused_with_its_line_and_the_new_spelling() {
        for (key, value, now) in RENAMED {
            let error = Config::parse(&file_with(key, value), "gateway.toml").unwrap_err();
            let problem = &error.problems[0];
            assert_eq!((error.problems.len(), problem.key.as_deref()), (1, Some(*key)), "{error}");
            assert_eq!(problem.remedy, format!("write {now}"));
            assert_eq!(problem.line, Some(if key.contains('.') { 3 } else { 2 }), "{error}");
        }
    }

    #[test]
    fn all_earlier_keys_of_a_file_are_reported_at_once() {
        let file = "[upstream]\nbase_url = \"x\"\n[auth]\nmode = \"pass\"\n[peak]\nlead = {}\n";
        let error = Config::parse(file, "gateway.toml").unwrap_err();
        assert_eq!(error.problems.len(), 3, "{error}");
        assert!(error.to_string().contains("line 6: `peak.lead`"), "{error}");
    }

    #[test]
    fn every_new_spelling_is_documented() {
        for (_, _, now) in RENAMED {
            let words = now.split([' ', '.', ',', '"', '=', '[', ']']);
            for word in words.filter(|word| !word.is_empty()) {
                assert!(EXAMPLE.contains(word), "{word} of {now}");
            }
        }
    }
}
