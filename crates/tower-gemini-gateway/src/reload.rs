//! The configuration file, and the keys and tokens that it names, read again when they change.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config::{self, Config};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// A configuration file and the files of keys and tokens that it names, looked at now and then.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    /// What the command line says in place of the file.
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

    /// Looks at the files that this configuration names from now on. Called before they are read:
    /// what changes after that is seen.
    pub(crate) fn follow(&mut self, config: &Config) {
        let named = [&config.auth.api_key_file, &config.auth.tokens_file];
        let files = std::iter::once(&self.path).chain(named.into_iter().flatten());
        let known = std::mem::take(&mut self.seen);
        self.seen = files
            .map(|file| {
                let seen = known.iter().find(|(known, _)| known == file).map(|(_, stamp)| *stamp);
                (file.clone(), seen.unwrap_or_else(|| stamp(file)))
            })
            .collect();
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
        let mut config = read(&self.path)?;
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        Ok(config)
    }
}

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Config::parse(&text, &path.display().to_string()).map_err(|error| error.to_string())
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// The sections that differ and take effect only with a restart: a socket is bound once, and the
/// state behind the others (what is kept for callers, what was spent, what was used of the quota)
/// is worth more than another setting of it.
pub(crate) fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    // Where answers are written is asked at the end.
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
