//! Holds the pages that people read to the program: blocks of TOML are configurations that it
//! takes, and the guide names every key.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

use std::fs;
use std::path::{Path, PathBuf};

use tower_gemini_gateway::config::{Config, EXAMPLE};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The pages of `docs/`, and both READMEs that show configurations.
fn pages() -> Vec<(String, String)> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path.display().to_string(), text)
    };
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let readmes = ["README.md", "crates/tower-gemini-gateway/README.md"];
    docs.chain(readmes.map(|readme| root().join(readme))).map(read).collect()
}

/// Each fenced block with the words after its fence, and the line on which it begins.
fn blocks(text: &str) -> Vec<(usize, &str, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, &str, String)> = None;
    for (at, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(info), None) => open = Some((at + 1, info.trim(), String::new())),
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some((from, info, block))) => open = Some((from, info, block + line + "\n")),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed: {open:?}");
    blocks
}

/// What else a page may show. Rust that is not compiled, or TOML that is not read, would rot.
const LANGUAGES: [&str; 6] = ["toml", "rust", "rust,no_run", "python", "sh", "text"];

/// Other files in TOML that READMEs show, by how they begin.
const OF_OTHERS: [(&str, &str); 3] = [
    ("[dependencies]", "a Cargo.toml"),
    ("about = ", "a scenario of the simulator, which a test of its own reads"),
    ("[[token]]", "a list of tokens, which is a file of its own"),
];

#[test]
fn every_block_of_toml_is_a_configuration_that_the_gateway_takes() {
    let mut count = 0;
    for (page, text) in pages() {
        for (line, info, block) in blocks(&text) {
            assert!(LANGUAGES.contains(&info), "{page}, block at line {line}: {info:?}");
            if info != "toml" || OF_OTHERS.iter().any(|(begins, _)| block.starts_with(begins)) {
                continue;
            }
            Config::parse(&block, &format!("{page}, block at line {line}"))
                .unwrap_or_else(|error| panic!("{error}\n{block}"));
            count += 1;
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn every_workflow_that_the_guide_links_is_a_configuration_that_the_gateway_takes() {
    for entry in fs::read_dir(root().join("examples/configs")).unwrap() {
        let path = entry.unwrap().path();
        let (text, name) = (fs::read_to_string(&path).unwrap(), path.display().to_string());
        if name.ends_with("-models.toml") {
            continue; // A file for [catalog].
        }
        Config::parse(&text, &name).unwrap_or_else(|error| panic!("{error}"));
    }
}

// Their Rust is compiled by the package of the whole stacks, which is not published.
#[test]
fn every_page_is_among_those_whose_rust_is_compiled() {
    let compiled = fs::read_to_string(root().join("tests/docs.rs")).unwrap();
    for (page, _) in pages() {
        let name = Path::new(&page).file_name().unwrap().to_str().unwrap();
        assert!(name == "README.md" || compiled.contains(&format!("\"{name}\"")), "{page}");
    }
}

/// Keys that no guide gives advice about.
const SPOKEN_OF_BY_NOBODY: [(&str, &str, &[&str]); 8] = [
    (
        "server",
        "how a server stands on its machine and network, and where its state is; README.md and \
         OPERATIONS.md say how",
        &[
            "listen",
            "max_body",
            "max_connections",
            "first_byte_timeout",
            "header_read_timeout",
            "idle_timeout",
            "body_idle_timeout",
            "response_stall_timeout",
            "shutdown_grace",
            "status_listen",
            "allow_public",
            "store_password_env",
            "store_prefix",
            "store_replicas",
            "store_bytes",
            "store_restart_hold",
            "flush_within",
            "hosts",
            "accept_changes",
            "memory",
        ],
    ),
    ("server.tls", "the listener's certificate", &["cert", "key"]),
    ("upstream", "the way through a private network", &["ca_file", "proxy"]),
    ("auth", "the callers' tokens; README.md", &["tokens_env", "tokens_file"]),
    ("keep", "bounds of what is stored; OPERATIONS.md", &["max_detached", "dir", "loss_window"]),
    (
        "alerts",
        "how a webhook is reached, and how often it is told; OPERATIONS.md",
        &["webhook_env", "webhook_file", "proxy", "repeat_every", "kinds"],
    ),
    (
        "jobs",
        "where jobs are, and what they may reach; docs/jobs.md",
        &[
            "store",
            "store_env",
            "dir",
            "api_key_env",
            "input_urls",
            "private_urls",
            "webhook_secret_env",
        ],
    ),
    ("log", "how lines look and where they go", &["level", "format", "audit"]),
];

/// Every key of the documented file with its section, commented out or not.
fn keys() -> Vec<(String, String)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(table) = line.strip_prefix('[') {
            let end = table.find(']').unwrap();
            section = table[..end].trim_start_matches('[').replace(".\"gemini-3-pro-image\"", "");
        } else if let Some((key, _)) = line.split_once(" = ") {
            let is_key =
                key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_key && !keys.contains(&(section.clone(), key.to_owned())) {
                keys.push((section.clone(), key.to_owned()));
            }
        }
    }
    keys
}

fn is_excepted(section: &str, key: &str) -> bool {
    SPOKEN_OF_BY_NOBODY.iter().any(|(of, _, keys)| *of == section && keys.contains(&key))
}

/// Whether the guide has a key between backticks, as `section.key` or `[section] key`.
fn is_named(guide: &str, section: &str, key: &str) -> bool {
    let dotted = format!("{section}.{key}");
    let of_section = [format!("[{section}]"), format!("[[{section}]]"), format!("[{section}.")];
    let quoted = guide.split('`').skip(1).step_by(2);
    let is_word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.');
    quoted.into_iter().any(|code| {
        let has = |word: &str| code.split(is_word).any(|part| part == word);
        has(&dotted) || (of_section.iter().any(|of| code.starts_with(of.as_str())) && has(key))
    })
}

// A setting that the guide does not name is one that its reader does not find.
#[test]
fn the_guide_names_every_key_of_the_configuration() {
    let guide = fs::read_to_string(root().join("docs/guide.md")).unwrap();
    let keys = keys();
    assert!(keys.len() > 100, "{}", keys.len());
    let missing: Vec<_> = keys
        .iter()
        .filter(|(section, key)| !is_excepted(section, key) && !is_named(&guide, section, key))
        .collect();
    assert!(missing.is_empty(), "docs/guide.md does not name {missing:?}");
}

// An exception that is no key, or that the guide names, would hide the next one.
#[test]
fn every_exception_is_a_key_that_the_guide_leaves_out() {
    let guide = fs::read_to_string(root().join("docs/guide.md")).unwrap();
    let known = keys();
    for (section, why, keys) in SPOKEN_OF_BY_NOBODY {
        assert!(!why.is_empty());
        for key in keys {
            let is_known = known.iter().any(|(of, known)| of == section && known == key);
            assert!(is_known, "{section}.{key} is no key");
            assert!(!is_named(&guide, section, key), "the guide names {section}.{key}");
        }
    }
}

// A page that is renamed leaves readers before a closed door.
#[test]
fn every_link_between_pages_leads_to_a_file() {
    for (page, text) in pages() {
        let dir = Path::new(&page).parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(dir.join(file).exists(), "{page}: {link}");
        }
    }
}
