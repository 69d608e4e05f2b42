//! The configuration file, read again when it changes.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config::Config;

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// A file that is looked at now and then.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    seen: Option<(SystemTime, u64)>,
}

impl Watched {
    pub(crate) fn new(path: PathBuf) -> Self {
        let seen = stamp(&path);
        Self { path, seen }
    }

    /// Waits until the file is another one than it was.
    pub(crate) async fn changed(&mut self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let now = stamp(&self.path);
            // A file that is away for a moment is being replaced.
            if now.is_some() && now != self.seen {
                self.seen = now;
                return;
            }
        }
    }

    /// Reads it.
    pub(crate) fn read(&self) -> Result<Config, String> {
        read(&self.path)
    }
}

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Config::parse(&text, &path.display().to_string()).map_err(|error| error.to_string())
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// The settings that differ and take effect only with a restart.
pub(crate) fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut names = Vec::new();
    if old.server != new.server {
        names.push("[server]");
    }
    if old.log != new.log {
        names.push("[log]");
    }
    names
}
