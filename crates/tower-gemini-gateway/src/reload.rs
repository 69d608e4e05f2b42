//! Reloads the configuration file, and the keys that it names, when they change. Tokens are read
//! apart from it, by [`TokenSource`](crate::door::TokenSource).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config::{self, Config, ConfigError};
use crate::gateway::Gateway;
use crate::guard;

/// How often the files are checked.
const EVERY: Duration = Duration::from_secs(1);

/// A configuration file and the files of keys that it names, checked now and then.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    /// The command line's, in place of the file's.
    listen: Option<SocketAddr>,
    /// The file as it is in effect.
    text: String,
    seen: Vec<(PathBuf, Option<Stamp>)>,
}

type Stamp = (SystemTime, u64);

/// A configuration with the text that it was read from.
#[derive(Debug)]
pub(crate) struct FromFile {
    pub(crate) config: Config,
    pub(crate) text: String,
}

impl Watched {
    pub(crate) fn new(path: PathBuf, listen: Option<SocketAddr>, file: &FromFile) -> Self {
        let mut watched = Self { path, listen, text: file.text.clone(), seen: Vec::new() };
        watched.follow(&file.config);
        watched
    }

    /// Watches the files that this configuration names from now on. Called before they are read, so
    /// that every later change is seen.
    pub(crate) fn follow(&mut self, config: &Config) {
        let keys = config
            .upstream
            .iter()
            .flat_map(|upstream| upstream.api_key_file.iter().chain(&upstream.ca_file));
        let files = std::iter::once(&self.path).chain(keys);
        let files = files.chain(&config.catalog.file).chain(&config.alerts.webhook_file);
        let known = std::mem::take(&mut self.seen);
        self.seen = files
            .map(|file| {
                let seen = known.iter().find(|(known, _)| known == file).map(|(_, stamp)| *stamp);
                (file.clone(), seen.unwrap_or_else(|| stamp(file)))
            })
            .collect();
    }

    /// Waits until one of the files has changed, and no longer changes: one that is still being
    /// written is not read.
    pub(crate) async fn changed(&mut self) {
        let mut before = self.stamps();
        loop {
            tokio::time::sleep(EVERY).await;
            let now = self.stamps();
            let is_settled = std::mem::replace(&mut before, now.clone()) == now;
            // A file that is away for a moment is being replaced.
            let is_change = |(now, (_, seen)): (&Option<Stamp>, &(_, Option<Stamp>))| {
                now.is_some() && now != seen
            };
            if is_settled && now.iter().zip(&self.seen).any(is_change) {
                for (now, (_, seen)) in now.into_iter().zip(&mut self.seen) {
                    *seen = now.or(*seen);
                }
                return;
            }
        }
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        self.seen.iter().map(|(file, _)| stamp(file)).collect()
    }

    /// Reads the configuration.
    fn read(&self) -> Result<FromFile, ConfigError> {
        let mut file = read(&self.path)?;
        if let Some(listen) = self.listen {
            file.config.server.listen = listen;
        }
        Ok(file)
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
    if let Ok(file) = &read {
        watched.follow(&file.config);
    }
    let reloaded = read.and_then(|file| {
        let lost = guard::lost(&watched.text, &file.text);
        gateway.reload_at(addr, &file.config, lost).map(|()| file)
    });
    match reloaded {
        Ok(file) => {
            tracing::info!("configuration reloaded; requests in flight keep the previous one");
            for section in needs_restart(before.config(), &file.config) {
                tracing::warn!(section, "changed, and takes effect after a restart");
            }
            watched.text = file.text;
        }
        Err(error) => {
            tracing::error!(%error, "configuration not reloaded; the previous one stays in effect")
        }
    }
}

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<FromFile, ConfigError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::at("--config", format!("{file} cannot be read: {error}"), "")
    })?;
    Ok(FromFile { config: Config::parse(&text, &file)?, text })
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
    let server = |config: &Config| config::Server { accept_changes: None, ..config.server.clone() };
    let quotas = |config: &Config| {
        let quota = |one: &config::Upstream| (one.name.clone(), one.quota.clone());
        config.upstream.iter().map(quota).collect::<Vec<_>>()
    };
    let budgets = |config: &Config| {
        let budget = |one: &config::Upstream| (one.name.clone(), one.budget.clone());
        config.upstream.iter().map(budget).collect::<Vec<_>>()
    };
    [
        ("[server]", server(old) != server(new)),
        ("[keep]", kept(old) != kept(new)),
        ("[quota]", old.quota != new.quota),
        ("quota of [[upstream]]", quotas(old) != quotas(new)),
        ("budget of [[upstream]]", budgets(old) != budgets(new)),
        ("[spending]", old.spending != new.spending),
        ("[otel]", old.otel != new.otel),
        ("[jobs]", old.jobs != new.jobs),
        ("[log]", old.log != new.log),
    ]
    .into_iter()
    .filter_map(|(section, differs)| differs.then_some(section))
    .collect()
}
