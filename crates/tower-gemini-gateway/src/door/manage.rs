//! `gemini-gateway token new|hash|revoke`: makes and removes tokens in their file.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};

use super::tokens::{MIN_TOKEN_LENGTH, TokenList, check_name, hashed};

/// In front of a token, so that people and scanners for secrets see what it is.
const TOKEN_PREFIX: &str = "gg_";

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, print it once, and add its hash to the list of tokens
    New(NewToken),
    /// Read a token from standard input and print its hash, for the list of tokens
    Hash,
    /// Remove a token from the list: within 2 s it opens nothing
    Revoke {
        /// The caller's name
        name: String,
        #[command(flatten)]
        list: ListFile,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct ListFile {
    /// The list of tokens, in place of auth.tokens_file of --config
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct NewToken {
    /// The caller's name
    name: String,
    #[command(flatten)]
    list: ListFile,
    /// The last day, or the moment, on which it opens: 2027-01-31
    #[arg(long, value_name = "DATE")]
    expires: Option<String>,
    /// What it may ask for besides generating: "GET /v1beta/files". May be given several times
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,
    /// Calls a minute
    #[arg(long)]
    rpm: Option<u64>,
    /// Calls a day
    #[arg(long)]
    rpd: Option<u64>,
    /// US dollars a day
    #[arg(long, value_name = "USD")]
    usd_per_day: Option<f64>,
    /// US dollars a month
    #[arg(long, value_name = "USD")]
    usd_per_month: Option<f64>,
    /// Requests at once
    #[arg(long, value_name = "REQUESTS")]
    concurrency: Option<usize>,
}

/// Carries out a command and returns what to print. `known` is the configuration's own list.
pub(crate) fn run(command: &TokenCommand, known: Option<PathBuf>) -> Result<String, String> {
    match command {
        TokenCommand::New(new) => new_token(new, known),
        TokenCommand::Hash => {
            let mut token = String::new();
            let read = io::stdin().lock().take(64 * 1024).read_to_string(&mut token);
            read.map_err(|error| format!("the token cannot be read: {error}"))?;
            hash(token.trim())
        }
        TokenCommand::Revoke { name, list } => {
            let file = list.file.clone().or(known).ok_or(
                "there is no list of tokens: name it with --file, or --config a file with \
                 auth.tokens_file",
            )?;
            revoke(name, &file)
        }
    }
}

fn hash(token: &str) -> Result<String, String> {
    if token.len() < MIN_TOKEN_LENGTH || token.contains(char::is_whitespace) {
        return Err(format!(
            "a token has {MIN_TOKEN_LENGTH} characters or more and no blanks: write it to standard \
             input, or make one with `gemini-gateway token new`"
        ));
    }
    Ok(hashed(token) + "\n")
}

fn new_token(new: &NewToken, known: Option<PathBuf>) -> Result<String, String> {
    check_name(&new.name).map_err(str::to_owned)?;
    let mut random = [0_u8; 32];
    getrandom::fill(&mut random).map_err(|error| format!("no randomness: {error}"))?;
    let token = format!("{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random));
    let entry = new.entry(&hashed(&token));
    // What is printed works: a bad option is said before anything is written.
    TokenList::parse(&entry).map_err(|problem| format!("{problem}; {}", problem.remedy))?;
    let shown = format!("The token of {}, shown this once:\n\n    {token}\n\n", new.name);
    let Some(file) = new.list.file.clone().or(known) else {
        return Ok(format!(
            "{shown}Its entry for the list of tokens (auth.tokens_file):\n\n{entry}"
        ));
    };
    add(&file, &new.name, &entry, &hashed(&token), new.has_options())?;
    Ok(format!(
        "{shown}Its hash was added to {}. A running gateway admits it within 2 s.\n",
        file.display()
    ))
}

impl NewToken {
    fn has_options(&self) -> bool {
        self.expires.is_some() || !self.allow.is_empty() || self.limits().next().is_some()
    }

    fn limits(&self) -> impl Iterator<Item = (&'static str, String)> {
        // Debug keeps the point that makes a TOML float of it.
        let usd = |usd: f64| format!("{usd:?}");
        let all = [
            ("rpm", self.rpm.map(|value| value.to_string())),
            ("rpd", self.rpd.map(|value| value.to_string())),
            ("usd_per_day", self.usd_per_day.map(usd)),
            ("usd_per_month", self.usd_per_month.map(usd)),
            ("concurrency", self.concurrency.map(|value| value.to_string())),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value?)))
    }

    /// A `[[token]]`.
    fn entry(&self, hash: &str) -> String {
        // A string of JSON is one of TOML.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut entry = format!("[[token]]\nname = {}\nhash = \"{hash}\"\n", quoted(&self.name));
        if let Some(expires) = &self.expires {
            entry += &format!("expires = {}\n", quoted(expires));
        }
        if !self.allow.is_empty() {
            let allow: Vec<_> = self.allow.iter().map(|pattern| quoted(pattern)).collect();
            entry += &format!("allow = [{}]\n", allow.join(", "));
        }
        self.limits().fold(entry, |entry, (key, value)| entry + &format!("{key} = {value}\n"))
    }
}

fn is_toml(text: &str) -> bool {
    let is_content = |line: &&str| !line.is_empty() && !line.starts_with('#');
    text.lines().map(str::trim).find(is_content).is_none_or(|line| line.starts_with('['))
}

fn in_file(file: &Path, what: impl std::fmt::Display) -> String {
    format!("{}: {what}", file.display())
}

fn add(file: &Path, name: &str, entry: &str, hash: &str, has_options: bool) -> Result<(), String> {
    let old = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(|error| in_file(file, error))?,
    };
    let mut new = old.trim_end().to_owned();
    if !new.is_empty() {
        new.push('\n');
    }
    if is_toml(&old) {
        if !new.is_empty() {
            new.push('\n');
        }
        new += entry;
    } else if has_options {
        return Err(in_file(
            file,
            "its name:token lines have no room for limits; write [[token]] tables instead, with \
             the hashes of `gemini-gateway token hash`",
        ));
    } else {
        new += &format!("{name}:{hash}\n");
    }
    TokenList::parse(&new).map_err(|problem| in_file(file, problem))?;
    replace(file, &new)
}

fn revoke(name: &str, file: &Path) -> Result<String, String> {
    let old = fs::read_to_string(file).map_err(|error| in_file(file, error))?;
    // A list with a bad line admits nobody already; what it holds is for a person to look at.
    let before = TokenList::parse(&old).map_err(|problem| in_file(file, problem))?;
    if !before.iter().any(|token| token.name == name) {
        let names: Vec<_> = before.iter().map(|token| token.name.as_str()).collect();
        let there = names.join(", ");
        return Err(in_file(file, format!("there is no token of {name}; there are {there}")));
    }
    let new = if is_toml(&old) { without_table(&old, name) } else { without_entry(&old, name) };
    // Whatever the file looks like, it has lost this one and no other.
    let left: Vec<_> = match TokenList::parse(&new) {
        Ok(after) => after.iter().map(|token| token.name.clone()).collect(),
        Err(_) => Vec::new(),
    };
    let should_be = before.iter().map(|token| &token.name).filter(|known| *known != name);
    if !left.iter().eq(should_be) {
        return Err(in_file(file, "it is written in a way that only an editor can change safely"));
    }
    replace(file, &new)?;
    let rest = match left.len() {
        0 => "It was the last one: nobody is admitted now.".to_owned(),
        left => format!("{left} are left."),
    };
    Ok(format!(
        "The token of {name} was removed from {}. A running gateway refuses it within 2 s. {rest}\n",
        file.display()
    ))
}

/// The text without the `[[token]]` of this name.
fn without_table(text: &str, name: &str) -> String {
    let mut blocks = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with('[') {
            blocks.push(String::new());
        }
        if let Some(block) = blocks.last_mut() {
            block.push_str(line);
        }
    }
    let is_it = |block: &String| {
        let table = toml::from_str::<toml::Table>(block).ok();
        let token = table.as_ref().and_then(|table| table.get("token")?.get(0));
        token.and_then(|token| token.get("name")?.as_str()).map(str::trim) == Some(name)
    };
    blocks.retain(|block| !is_it(block));
    blocks.concat()
}

/// The text without the `name:token` of this name.
fn without_entry(text: &str, name: &str) -> String {
    let is_it =
        |entry: &str| entry.split_once(':').is_some_and(|(before, _)| before.trim() == name);
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with('#') || !line.split(',').any(is_it) {
            kept.push_str(line);
            continue;
        }
        let others: Vec<_> = line.split(',').filter(|entry| !is_it(entry)).collect();
        let others = others.join(",");
        if !others.trim().is_empty() {
            kept.push_str(others.trim_end());
            kept.push('\n');
        }
    }
    kept
}

/// Replaces a file whole: a gateway that reads it meanwhile finds the one or the other.
fn replace(file: &Path, text: &str) -> Result<(), String> {
    let unfinished = file.with_extension("unfinished");
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut open = options.open(&unfinished)?;
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
        if let Ok(before) = fs::metadata(file) {
            fs::set_permissions(&unfinished, before.permissions())?;
        }
        fs::rename(&unfinished, file)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        in_file(file, format!("it cannot be written: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("manage-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn list(&self) -> PathBuf {
            self.0.join("tokens.toml")
        }

        fn read(&self) -> String {
            fs::read_to_string(self.list()).unwrap()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn new(name: &str) -> NewToken {
        NewToken {
            name: name.to_owned(),
            list: ListFile { file: None },
            expires: None,
            allow: Vec::new(),
            rpm: None,
            rpd: None,
            usd_per_day: None,
            usd_per_month: None,
            concurrency: None,
        }
    }

    fn token_in(said: &str) -> &str {
        said.split_whitespace().find(|word| word.starts_with(TOKEN_PREFIX)).unwrap()
    }

    #[test]
    fn a_new_token_opens_is_stored_as_a_hash_and_opens_nothing_once_revoked() {
        let dir = Dir::new("new");
        let limited = NewToken {
            expires: Some("2027-01-31".into()),
            allow: vec!["GET /v1beta/files".into()],
            usd_per_day: Some(5.0),
            ..new("ann")
        };
        let ann = new_token(&limited, Some(dir.list())).unwrap();
        let ben = new_token(&new("ben"), Some(dir.list())).unwrap();
        assert_ne!(token_in(&ann), token_in(&ben));
        assert!(!dir.read().contains(token_in(&ann)), "{}", dir.read());
        let admits = |said: &str| {
            let list = TokenList::parse(&dir.read()).unwrap();
            list.find(token_in(said).as_bytes()).map(|token| token.name.clone())
        };
        assert_eq!(admits(&ann).as_deref(), Some("ann"));
        assert_eq!(hash(token_in(&ann)).unwrap().trim(), hashed(token_in(&ann)));
        assert!(revoke("ann", &dir.list()).unwrap().contains("1 are left"));
        assert_eq!((admits(&ann), admits(&ben).as_deref()), (None, Some("ben")));
        assert!(revoke("ann", &dir.list()).unwrap_err().contains("no token of ann"));
        assert!(revoke("ben", &dir.list()).unwrap().contains("nobody is admitted now"));
    }

    #[cfg(unix)]
    #[test]
    fn a_list_that_is_made_here_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = Dir::new("mode");
        new_token(&new("ann"), Some(dir.list())).unwrap();
        let mode = fs::metadata(dir.list()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn comments_and_other_tokens_survive_a_change() {
        let dir = Dir::new("lines");
        let before = "# the team\nann:token-of-ann-0123456, ben:token-of-ben-0123456\ncat:token-of-cat-0123456\n";
        fs::write(dir.list(), before).unwrap();
        revoke("ann", &dir.list()).unwrap();
        assert_eq!(dir.read(), "# the team\n ben:token-of-ben-0123456\ncat:token-of-cat-0123456\n");
        new_token(&new("ann"), Some(dir.list())).unwrap();
        assert!(dir.read().contains("\nann:sha256:"));
        let limited = NewToken { rpm: Some(5), ..new("dan") };
        assert!(new_token(&limited, Some(dir.list())).unwrap_err().contains("[[token]] tables"));

        let hash = hashed("token-of-ann-0123456");
        let other = hashed("token-of-ben-0123456");
        let before = format!(
            "# the team\n[[token]]\nname = \"ann\"\nhash = \"{hash}\"\n\n[[token]]\nname = \"ben\" # x\nhash = \"{other}\"\n"
        );
        fs::write(dir.list(), &before).unwrap();
        revoke("ann", &dir.list()).unwrap();
        let (head, rest) = before.split_at(before.find("[[token]]").unwrap());
        assert_eq!(dir.read(), format!("{head}{}", &rest[rest.rfind("[[token]]").unwrap()..]));
    }

    #[test]
    fn what_would_break_the_list_is_refused_and_changes_nothing() {
        let dir = Dir::new("bad");
        new_token(&new("ann"), Some(dir.list())).unwrap();
        let before = dir.read();
        for (bad, says) in [
            (new("ann"), "twice"),
            (new(""), "empty"),
            (NewToken { expires: Some("soon".into()), ..new("ben") }, "not a date"),
            (NewToken { allow: vec!["files".into()], ..new("ben") }, "no pattern"),
            (NewToken { rpm: Some(0), ..new("ben") }, "lets nothing through"),
        ] {
            let said = new_token(&bad, Some(dir.list())).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
        assert_eq!(dir.read(), before);
        assert!(hash("short").is_err());
    }
}
