//! The list of tokens in effect: read apart from the rest of the configuration, again every second.
//!
//! Whatever is wrong with the configuration, a token that was removed from its file stops working
//! within two seconds, and a list that cannot be read lets nobody in.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::tokens::{Token, TokenList};
use crate::config::{self, ConfigError};

/// How old the list may be before the file is read again: half of what is promised, since a request
/// may find the file being read.
const FRESH: Duration = Duration::from_secs(1);
/// How old the list may be at all, where the file system does not respond.
const STALE: Duration = Duration::from_secs(2);
/// A problem that lasts is logged this often.
const REPEAT: Duration = Duration::from_secs(60);
/// Room for 50,000 tokens. A longer file is no list of tokens.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Why nobody can be admitted now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoList(pub(crate) Arc<str>);

/// A list of tokens with where it comes from.
pub(crate) struct TokenSource {
    /// `None` for an environment variable, which does not change.
    file: Option<PathBuf>,
    current: RwLock<Current>,
    /// Held while the file is read.
    reading: Mutex<()>,
}

struct Current {
    list: Result<Arc<TokenList>, NoList>,
    /// Of the content, so that an unchanged file is not parsed.
    digest: Option<[u8; 32]>,
    checked_at: Instant,
    logged_at: Option<Instant>,
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource").field("file", &self.file).finish_non_exhaustive()
    }
}

impl TokenSource {
    /// Reads the list for the first time.
    ///
    /// # Errors
    ///
    /// What is wrong with it: a gateway does not start with a list that admits nobody.
    pub(crate) fn open(
        config: &config::Auth,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let (key, text) = config::read_secret(
            "the callers' tokens",
            ("auth.tokens_env", config.tokens_env.as_deref()),
            ("auth.tokens_file", config.tokens_file.as_deref()),
            env,
        )?;
        let list = TokenList::parse(&text)
            .map_err(|problem| ConfigError::at(key, problem.to_string(), problem.remedy))?;
        let file = config.tokens_file.clone();
        if let Some(file) = &file {
            crate::files::warn_if_readable_by_others(file, "the list of tokens");
        }
        let current = Current {
            list: Ok(Arc::new(list)),
            digest: Some(Sha256::digest(&text).into()),
            checked_at: Instant::now(),
            logged_at: None,
        };
        Ok(Self { file, current: RwLock::new(current), reading: Mutex::new(()) })
    }

    /// The list as it is now, at most two seconds old.
    pub(crate) fn list(&self) -> Result<Arc<TokenList>, NoList> {
        let Some(file) = &self.file else { return self.look(|current| current.list.clone()) };
        if self.look(|current| current.checked_at.elapsed() < FRESH) {
            return self.look(|current| current.list.clone());
        }
        match self.reading.try_lock() {
            // A small local file, once a second: cheaper than a task, and it cannot be late.
            Ok(_reading) => self.refresh(file),
            Err(std::sync::TryLockError::Poisoned(_)) => self.refresh(file),
            // Another request reads it.
            Err(std::sync::TryLockError::WouldBlock) => {}
        }
        self.look(|current| match current.checked_at.elapsed() < STALE {
            true => current.list.clone(),
            false => Err(NoList("the list of tokens takes too long to read".into())),
        })
    }

    /// The caller with this token.
    pub(crate) fn find(&self, shown: &[u8]) -> Result<Option<Arc<Token>>, NoList> {
        Ok(self.list()?.find(shown).cloned())
    }

    /// What is wrong with the list, where nobody is admitted for it.
    pub(crate) fn problem(&self) -> Option<String> {
        self.list().err().map(|problem| problem.0.to_string())
    }

    fn look<R>(&self, look: impl FnOnce(&Current) -> R) -> R {
        look(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn refresh(&self, file: &Path) {
        // Dated before it is read: a change while it is read counts as a later one.
        let now = Instant::now();
        let read = read(file);
        let digest = read.as_ref().ok().map(|text| Sha256::digest(text).into());
        let is_same = |current: &Current| digest.is_some() && current.digest == digest;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.checked_at = now;
        if is_same(&current) {
            return self.log(&mut current, file, now, false);
        }
        let was = current.list.clone();
        current.digest = digest;
        current.list = read
            .map_err(|error| format!("it cannot be read: {error}"))
            .and_then(|text| TokenList::parse(&text).map_err(|problem| problem.to_string()))
            .map(Arc::new)
            .map_err(|what| NoList(what.into()));
        let is_new = match (&was, &current.list) {
            (Err(before), Err(now)) => before != now,
            _ => true,
        };
        self.log(&mut current, file, now, is_new);
    }

    fn log(&self, current: &mut Current, file: &Path, now: Instant, is_new: bool) {
        let file = file.display();
        match &current.list {
            Ok(list) if is_new => {
                let tokens = list.iter().count();
                tracing::info!(%file, tokens, "the list of tokens was read");
                current.logged_at = None;
            }
            Ok(_) => {}
            Err(NoList(what)) => {
                let is_due = current.logged_at.is_none_or(|at| now.duration_since(at) >= REPEAT);
                if is_new || is_due {
                    tracing::error!(%file, %what, "nobody is admitted: the list of tokens is bad");
                    current.logged_at = Some(now);
                }
            }
        }
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(std::io::Error::other("it is longer than 16 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Written {
        path: PathBuf,
        source: TokenSource,
    }

    impl Drop for Written {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    const ANN: &str = "ann:token-of-ann-0123456\n";
    const BEN: &str = "ben:token-of-ben-0123456\n";

    fn written(name: &str, text: &str) -> Written {
        let path = std::env::temp_dir().join(format!("tokens-{name}-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let file = config::Auth {
            mode: config::AuthMode::Tokens,
            tokens_file: Some(path.clone()),
            ..config::Auth::default()
        };
        Written { source: TokenSource::open(&file, |_| None).unwrap(), path }
    }

    impl Written {
        fn admits(&self, token: &str) -> bool {
            matches!(self.source.find(token.as_bytes()), Ok(Some(_)))
        }

        async fn becomes(&self, text: &str) {
            std::fs::write(&self.path, text).unwrap();
            tokio::time::advance(FRESH).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_token_stops_working_within_two_seconds() {
        let written = written("removed", &format!("{ANN}{BEN}"));
        assert!(written.admits("token-of-ann-0123456"));
        // Of the same length and, on a coarse file system, of the same date.
        written.becomes(&format!("cat:token-of-cat-0123456\n{BEN}")).await;
        assert!(!written.admits("token-of-ann-0123456"));
        assert!(written.admits("token-of-ben-0123456") && written.admits("token-of-cat-0123456"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreadable_empty_or_bad_list_lets_nobody_in_and_says_why() {
        let written = written("bad", ANN);
        for (text, why) in [
            ("", "empty"),
            ("# nobody\n", "empty"),
            (&format!("{ANN}sentinel\n"), "line 2"),
            (&format!("{ANN}{ANN}"), "twice"),
        ] {
            written.becomes(text).await;
            assert!(!written.admits("token-of-ann-0123456"), "{text}");
            let problem = written.source.problem().unwrap();
            assert!(problem.contains(why) && !problem.contains("sentinel"), "{problem}");
            written.becomes(ANN).await;
            assert!(written.admits("token-of-ann-0123456"));
            assert_eq!(written.source.problem(), None);
        }
        std::fs::remove_file(&written.path).unwrap();
        tokio::time::advance(FRESH).await;
        assert!(written.source.problem().unwrap().contains("cannot be read"));
        assert!(written.source.find(b"token-of-ann-0123456").is_err());
    }

    // Whoever holds the lock is waiting for a file system that does not respond.
    #[allow(clippy::await_holding_lock, reason = "the reader that never ends")]
    #[tokio::test(start_paused = true)]
    async fn a_list_that_takes_too_long_to_read_lets_nobody_in() {
        let written = written("slow", ANN);
        let reading = written.source.reading.lock().unwrap();
        tokio::time::advance(FRESH).await;
        assert!(written.admits("token-of-ann-0123456"), "another request reads it");
        tokio::time::advance(STALE - FRESH).await;
        assert!(!written.admits("token-of-ann-0123456"));
        drop(reading);
        assert!(written.admits("token-of-ann-0123456"));
    }
}
