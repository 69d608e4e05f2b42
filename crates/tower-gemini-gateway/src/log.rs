//! Logs to standard error, with every key and token masked, whoever logs.

use std::io::{self, IsTerminal, Write};

use tower_gemini::redact::redact;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Config, ConfigError, LogFormat};

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

/// A writer whose every line goes through [`redact`]: at `trace`, libraries print what they send.
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
        self.0.write_all(redact(&String::from_utf8_lossy(event)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

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
        tracing::subscriber::with_default(log, || {
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
