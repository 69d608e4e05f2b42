//! Reloads the configuration file, and the keys and tokens that it names, when they change.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config::{self, Config, ConfigError};
use crate::gateway::Gateway;

/// How often the files are checked.
const EVERY: Duration = Duration::from_secs(2);

/// A configuration file and the files of keys and tokens that it names, checked now and then.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    /// The command line's, in place of the file's.
    listen: Option<SocketAddr>,
    seen: Vec<(PathBuf, Option<Stamp>)>,
}

type Stamp = (SystemTime, u64);

impl Watched {
    pub(crate) fn new(path: PathBuf, listen: Option<SocketAddr>, config: &Config) -> Self {
        let mut watched = Self { path, listen, seen: Vec::new() };
        watched.follow(config);
        watched
    }

    /// Watches the files that this configuration names from now on. Called before they are read, so
    /// that every later change is seen.
    pub(crate) fn follow(&mut self, config: &Config) {
        let keys = config.upstream.iter().filter_map(|upstream| upstream.api_key_file.as_ref());
        let files = std::iter::once(&self.path).chain(keys).chain(&config.auth.tokens_file);
        let known = std::mem::take(&mut self.seen);
        self.seen = files
            .map(|file| {
                let seen = known.iter().find(|(known, _)| known == file).map(|(_, stamp)| *stamp);
                (file.clone(), seen.unwrap_or_else(|| stamp(file)))
            })
            .collect();
    }

    /// Waits until one of the files changes.
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
    fn read(&self) -> Result<Config, ConfigError> {
        let mut config = read(&self.path)?;
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        Ok(config)
    }
}

/// Reloads the configuration. An invalid one changes nothing.
pub(crate) fn reload(gateway: &Gateway, addr: SocketAddr, watched: Option<&mut Watched>) {
    let Some(watched) = watched else {
        tracing::warn!("there is no configuration file to reload; --config names one");
        return;
    };
    let before = gateway.snapshot();
    let read = watched.read();
    if let Ok(config) = &read {
        watched.follow(config);
    }
    match read.and_then(|config| gateway.reload_at(addr, &config).map(|()| config)) {
        Ok(config) => {
            tracing::info!("configuration reloaded; requests in flight keep the previous one");
            for section in needs_restart(before.config(), &config) {
                tracing::warn!(section, "changed, and takes effect after a restart");
            }
        }
        Err(error) => {
            tracing::error!(%error, "configuration not reloaded; the previous one stays in effect")
        }
    }
}

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<Config, ConfigError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::at("--config", format!("{file} cannot be read: {error}"), "")
    })?;
    Config::parse(&text, &file)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// The sections that differ and take effect only after a restart: a socket is bound once, and the
/// state behind the others (stored responses, spending, quota usage) is worth more than new
/// settings.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    // The directory is read at the end only, and so is the file of signatures.
    let kept = |config: &Config| config::Keep { dir: None, ..config.keep.clone() };
    [
        ("[server]", old.server != new.server),
        ("[keep]", kept(old) != kept(new)),
        ("[quota]", old.quota != new.quota),
        ("[spending]", old.spending != new.spending),
        ("[log]", old.log != new.log),
    ]
    .into_iter()
    .filter_map(|(section, differs)| differs.then_some(section))
    .collect()
}
