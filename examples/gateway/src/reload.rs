//! The configuration file, and the keys and tokens that it names, read again when they change.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config::Config;

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// A configuration file and the files of keys and tokens that it names, looked at now and then.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    seen: Vec<(PathBuf, Option<Stamp>)>,
}

type Stamp = (SystemTime, u64);

impl Watched {
    pub(crate) fn new(path: PathBuf, config: &Config) -> Self {
        let mut watched = Self { path, seen: Vec::new() };
        watched.follow(config);
        watched
    }

    /// Looks at the files that this configuration names from now on.
    pub(crate) fn follow(&mut self, config: &Config) {
        let named = [&config.auth.api_key_file, &config.auth.tokens_file];
        let files = std::iter::once(&self.path).chain(named.into_iter().flatten());
        self.seen = files.map(|file| (file.clone(), stamp(file))).collect();
    }

    /// Waits until one of the files is another one than it was.
    pub(crate) async fn changed(&mut self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let mut changed = false;
            for (file, seen) in &mut self.seen {
                let now = stamp(file);
                // A file that is away for a moment is being replaced.
                if now.is_some() && now != *seen {
                    *seen = now;
                    changed = true;
                }
            }
            if changed {
                return;
            }
        }
    }

    /// Reads the configuration.
    pub(crate) fn read(&self) -> Result<Config, String> {
        read(&self.path)
    }
}

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Config::parse(&text, &path.display().to_string()).map_err(|error| error.to_string())
}

fn stamp(path: &Path) -> Option<Stamp> {
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
