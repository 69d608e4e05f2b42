//! Logs to standard error, with every key and token masked, whoever logs.

use std::io::{self, IsTerminal, Write};
use std::sync::{PoisonError, RwLock};

use percent_encoding::percent_decode_str;
use tower_gemini::redact::redact;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Config, ConfigError, LogFormat};
use crate::mask::Secrets;

/// The secrets of this process's configurations: the log is the process's too.
static HIDDEN: RwLock<Vec<(String, Secrets)>> = RwLock::new(Vec::new());

/// Shorter ones are part of other words.
const SHORTEST_HIDDEN: usize = 8;

/// Keeps a secret of any form out of the log from now on.
pub(crate) fn hide(secret: &str) {
    let mut hidden = HIDDEN.write().unwrap_or_else(PoisonError::into_inner);
    if secret.len() >= SHORTEST_HIDDEN && hidden.iter().all(|(known, _)| known != secret) {
        hidden.push((secret.to_owned(), Secrets::new([secret])));
    }
}

/// Starts the log. A program's own subscriber stays where it has one.
pub(crate) fn begin(config: &Config) -> Result<(), ConfigError> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(config.log.filter()?)
        .with_writer(Redacting(io::stderr))
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let _ = match config.log.format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    Ok(())
}

/// The same for the passwords in a URL (`scheme://user:password@host`, `scheme://…?password=…`).
pub(crate) fn hide_password(url: &str) {
    let authority = url.split('/').nth(2).unwrap_or_default();
    let of_user = authority.rsplit_once('@').and_then(|(user, _)| user.split_once(':'));
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let of_query = query.split('&').filter_map(|part| part.strip_prefix("password="));
    for password in of_user.map(|(_, password)| password).into_iter().chain(of_query) {
        hide(password);
        hide(&percent_decode_str(password).decode_utf8_lossy());
    }
}

/// A writer whose every line goes through [`redact`], without what is [hidden](hide): at `trace`,
/// libraries print what they send.
#[derive(Debug, Clone, Copy)]
struct Redacting<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Redacting<W> {
    type Writer = Redacting<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Redacting(self.0.make_writer())
    }
}

impl<W: Write> Write for Redacting<W> {
    /// An event comes whole, in one call.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut line = event.to_vec();
        for (_, secret) in &*HIDDEN.read().unwrap_or_else(PoisonError::into_inner) {
            secret.mask(&mut line);
        }
        self.0.write_all(redact(&String::from_utf8_lossy(&line)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// What is logged.
    #[derive(Clone, Default)]
    pub(crate) struct Lines(pub(crate) Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_key_reaches_the_log_whoever_logs_it() {
        let lines = Lines::default();
        let to = lines.clone();
        let log = tracing_subscriber::fmt()
            .json()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(Redacting(move || to.clone()))
            .finish();
        hide("no-form-SENTINEL/of-a-key");
        hide_password("redis://:pass-SENTINEL%2f@host:1/0");
        hide_password("postgres://host/db?user=u&password=query-SENTINEL");
        tracing::subscriber::with_default(log, || {
            tracing::error!("AUTH pass-SENTINEL/ failed");
            tracing::error!("AUTH query-SENTINEL failed");
            tracing::error!(error = "no-form-SENTINEL/of-a-key", "in no form of a key");
            tracing::info!(
                uri = "/v1/x?key=AIzaSySENTINEL7890abcdefghijklmnopqrstu&alt=sse",
                "a careless line"
            );
            tracing::trace!(target: "hyper", header = "authorization: Bearer SENTINEL0123456789", "another");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.contains("a careless line") && text.contains("another") && text.contains("***"),
            "{text}"
        );
        assert!(!text.contains("SENTINEL"), "{text}");
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }
}
