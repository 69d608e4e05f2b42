//! Decides what a reload may not change by itself: pure.
//!
//! A file that is cut short, or half written, is often a valid file: without its `[auth]` section
//! it lets everybody in. So a reload that changes who is admitted or where keys go, or a file that
//! lost sections that it had, is refused, and the log names a code. With that code as
//! `server.accept_changes` exactly this change is accepted. The code is made of both
//! configurations, so that a key that is left in the file accepts nothing later.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use toml::de::{DeTable, DeValue};

use crate::config::{Config, ConfigError};

const KEY: &str = "server.accept_changes";

/// Every change that needs an acknowledgement, in words.
fn guarded(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    if old.auth.mode != new.auth.mode {
        changes.push(format!("auth.mode becomes \"{}\"", new.auth.mode.as_str()));
    } else if old.auth != new.auth {
        changes.push("[auth] names another list of tokens".to_owned());
    }
    for before in &old.upstream {
        match new.upstream.iter().find(|after| after.name == before.name) {
            None => changes.push(format!("upstream \"{}\" is gone", before.name)),
            Some(after) if after != before => {
                changes.push(format!("upstream \"{}\" is another", before.name));
            }
            Some(_) => {}
        }
    }
    let added = new.upstream.iter().filter(|after| {
        let mut known = old.upstream.iter();
        known.all(|before| before.name != after.name)
    });
    changes.extend(added.map(|after| format!("upstream \"{}\" is new", after.name)));
    changes
}

/// What a file lost, in words: sections that `old` had and `new` has not, or all that followed its
/// present end.
pub(crate) fn lost(old: &str, new: &str) -> Vec<String> {
    let (before, after) = (sections(old), sections(new));
    let mut lost: Vec<_> =
        before.difference(&after).map(|section| format!("[{section}] is gone")).collect();
    let (old, new) = (old.trim_end(), new.trim_end());
    // Its last section may have lost keys only.
    if lost.is_empty() && old != new && old.starts_with(new) {
        lost.push("the file ends earlier than it did, as though it were cut short".to_owned());
    }
    lost
}

/// The sections of a file, with those in sections. One that cannot be read has none: the reader of
/// the configuration says what is wrong with it.
fn sections(text: &str) -> BTreeSet<String> {
    fn collect(table: &DeTable<'_>, prefix: &str, found: &mut BTreeSet<String>) {
        for (name, value) in table {
            let name = format!("{prefix}{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => {
                    collect(inner, &format!("{name}."), found);
                    found.insert(name);
                }
                DeValue::Array(_) if prefix.is_empty() => drop(found.insert(name)),
                _ => {}
            }
        }
    }
    let mut found = BTreeSet::new();
    if let Ok(table) = DeTable::parse(text) {
        collect(table.get_ref(), "", &mut found);
    }
    found
}

/// Checks a change of the configuration. Returns what was accepted, which is to be logged: nothing
/// where nothing needed it.
///
/// # Errors
///
/// Everything that changed without being acknowledged, with the code that acknowledges it.
pub(crate) fn check(
    old: &Config,
    new: &Config,
    lost: Vec<String>,
) -> Result<Vec<String>, ConfigError> {
    let mut changes = guarded(old, new);
    changes.extend(lost);
    if changes.is_empty() {
        return Ok(changes);
    }
    let code = code(old, new, &changes);
    if new.server.accept_changes.as_deref() == Some(code.as_str()) {
        return Ok(changes);
    }
    let what = format!("needs a restart or an acknowledgement: {}", changes.join("; "));
    let remedy =
        format!("restart, or write accept_changes = \"{code}\" in [server] to accept just this");
    Err(ConfigError::at(KEY, what, remedy))
}

/// Eight characters that stand for one change. Not a secret: it protects against accidents.
fn code(old: &Config, new: &Config, changes: &[String]) -> String {
    let upstreams = |config: &Config| format!("{:?} {:?}", config.auth, config.upstream);
    let text = format!("{} {} {changes:?}", upstreams(old), upstreams(new));
    Sha256::digest(text)
        .iter()
        .take(4)
        .fold(String::new(), |code, byte| code + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: &str = "[[upstream]]\nname = \"g\"\nkind = \"gemini\"\napi_key_env = \"K\"\n[retry]\nattempts = 3\n[auth]\nmode = \"tokens\"\ntokens_env = \"T\"\n";

    fn config(text: &str) -> Config {
        Config::parse(text, "gateway.toml").unwrap()
    }

    fn refusal(old: &str, new: &str) -> String {
        check(&config(old), &config(new), lost(old, new)).unwrap_err().to_string()
    }

    // A file that was cut short switched tokens to passthrough, and callers' tokens went to Google
    // as keys.
    #[test]
    fn a_reload_does_not_change_the_auth_mode_by_itself() {
        let said = refusal(TOKENS, "[retry]\nattempts = 3\n");
        assert!(said.contains("auth.mode becomes \"passthrough\""), "{said}");
        assert!(said.contains("[auth] is gone") && said.contains("[upstream] is gone"), "{said}");
        assert!(said.contains("accept_changes = \""), "{said}");
    }

    #[test]
    fn a_reload_does_not_change_an_upstream_or_the_list_of_tokens_by_itself() {
        for (from, to, says) in [
            ("kind = \"gemini\"", "kind = \"gemini\"\nbase_url = \"https://e.example\"", "another"),
            ("api_key_env = \"K\"", "api_key_env = \"L\"", "\"g\" is another"),
            ("name = \"g\"", "name = \"h\"", "\"g\" is gone; upstream \"h\" is new"),
            ("tokens_env = \"T\"", "tokens_file = \"t\"", "another list of tokens"),
        ] {
            let said = refusal(TOKENS, &TOKENS.replace(from, to));
            assert!(said.contains(says), "{said}");
        }
        let other = TOKENS.replace("attempts = 3", "attempts = 4");
        assert_eq!(check(&config(TOKENS), &config(&other), lost(TOKENS, &other)).unwrap().len(), 0);
    }

    #[test]
    fn a_file_that_lost_a_section_or_its_end_is_refused() {
        let old = "[retry]\nattempts = 3\n[quota.model.\"gemini-3-pro-image\"]\nrpm = 5\n[spending]\nper_call = 2.0\nper_day = 9.0\n";
        for (new, says) in [
            ("[retry]\nattempts = 3\n", "[quota.model.gemini-3-pro-image] is gone"),
            ("", "[spending] is gone"),
            (old.trim_end_matches("per_day = 9.0\n"), "as though it were cut short"),
        ] {
            let said = refusal(old, new);
            assert!(said.contains(says), "{said}");
        }
        // Keys may go, and sections may come.
        let fewer = old.replace("rpm = 5\n", "") + "[log]\n";
        assert!(lost(old, &fewer).is_empty());
        assert!(lost(old, &format!("{old}\n\n")).is_empty());
    }

    #[test]
    fn an_acknowledgement_accepts_the_change_that_it_was_given_for_and_no_other() {
        let (new, other) = ("[retry]\nattempts = 3\n", "[log]\n");
        let said = refusal(TOKENS, new);
        let code = said.split("accept_changes = \"").nth(1).unwrap().split('"').next().unwrap();
        let with = |text: &str| format!("[server]\naccept_changes = \"{code}\"\n{text}");
        let (accepting, later) = (with(new), with(other));
        let accepted = check(&config(TOKENS), &config(&accepting), lost(TOKENS, &accepting));
        assert_eq!(accepted.unwrap().len(), 6);
        refusal(TOKENS, &later);
        // What is left in the file does not accept the next one.
        let back = with(TOKENS);
        refusal(&accepting, &back);
    }
}
