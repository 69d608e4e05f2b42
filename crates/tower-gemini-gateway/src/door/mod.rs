//! The door: who comes in, with what, and what is written down about it.
//!
//! | file | does |
//! | --- | --- |
//! | `entry` | lets a request in, and its response out |
//! | `tokens`, `source` | read the list of tokens, and keep it fresh |
//! | `paths`, `pattern`, `heads`, `references` | say what a request asks for |
//! | `owned`, `uploads` | remember what was created through which token |
//! | `allowance` | counts what each token uses up |
//! | `host`, `failures` | names on loopback, failed logins |
//! | `audit` | writes a line a request |
//! | `manage` | makes and revokes tokens: the subcommand `token` |

mod allowance;
mod audit;
pub(crate) mod entry;
mod failures;
mod heads;
mod host;
pub(crate) mod manage;
mod owned;
mod paths;
mod pattern;
mod references;
mod source;
#[cfg(test)]
mod tests;
mod tokens;
mod uploads;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tower_gemini::clock::Clock;
use tower_gemini::redact::redact;

pub(crate) use self::allowance::TokenSpendingLayer;
use self::allowance::{Allowance, Allowances};
use self::audit::{AuditFile, Visit};
use self::failures::Failures;
pub(crate) use self::failures::describe as describe_metrics;
use self::owned::{Created, Ownership, Stored};
use self::paths::Kind;
pub(crate) use self::source::TokenSource;
pub(crate) use self::tokens::Token;
#[cfg(test)]
pub(crate) use self::tokens::hashed;
use self::uploads::Uploads;
use crate::config::{Config, ConfigError};
use crate::state::Store;
use crate::status::{self, QuotaLimit};

/// The connection of a request, in its extensions. A gateway in somebody else's server has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    peer: IpAddr,
    local: SocketAddr,
    /// No other connection of the process has it.
    number: u64,
    /// On the port of the status pages.
    is_for_status: bool,
}

impl Connection {
    pub(crate) fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { peer: peer.ip().to_canonical(), local, number, is_for_status: false }
    }

    pub(crate) fn for_status(self) -> Self {
        Self { is_for_status: true, ..self }
    }

    fn is_loopback(&self) -> bool {
        self.local.ip().to_canonical().is_loopback()
    }
}

/// What the door remembers. It outlives reloads.
#[derive(Debug)]
pub(crate) struct Door {
    failures: Failures,
    allowances: Allowances,
    owned: Ownership,
    uploads: Uploads,
    /// Requests that are creating an interaction, by token.
    creating: Mutex<HashMap<String, Vec<Weak<Visit>>>>,
    audit: Option<AuditFile>,
    clock: Arc<dyn Clock>,
    /// Tells the anonymous callers of this process from those of others.
    process: u64,
    next_anonymous: AtomicU64,
}

impl Door {
    pub(crate) fn new(
        config: &Config,
        clock: Arc<dyn Clock>,
        store: Option<&Store>,
    ) -> Result<Self, ConfigError> {
        let open = |path: &std::path::PathBuf| {
            AuditFile::open(path).map_err(|error| {
                let what = format!("log.audit {} cannot be written: {error}", path.display());
                ConfigError::at("log.audit", what, "make it writable, or name another file")
            })
        };
        Ok(Self {
            failures: Failures::default(),
            allowances: Allowances::new(
                clock.clone(),
                config.spending.reserve_by(),
                store.cloned(),
            ),
            owned: Ownership::new(store.map(Store::records)),
            uploads: Uploads::default(),
            creating: Mutex::default(),
            audit: config.log.audit.as_ref().map(open).transpose()?,
            clock,
            process: RandomState::new().hash_one(0_u8),
            next_anonymous: AtomicU64::new(0),
        })
    }

    /// Reads what earlier processes remembered.
    pub(crate) async fn load(&self) {
        self.owned.load().await;
    }

    /// What each token has used of what it may, for the status pages.
    pub(crate) fn callers(&self) -> Vec<status::Caller> {
        let caller = |(name, allowance): (String, Arc<Allowance>)| status::Caller {
            name: redact(&name).into_owned(),
            requests_in_flight: allowance.in_flight(),
            limits: allowance.calls().as_ref().map(QuotaLimit::all).unwrap_or_default(),
            spending: allowance.spent().iter().map(status::Spending::from).collect(),
        };
        self.allowances.all().into_iter().map(caller).collect()
    }

    /// Shows on the status pages what a token has used up, before it is used.
    pub(crate) async fn recall(&self, token: &Token) {
        self.allowances.of(token).refresh().await;
    }

    /// Completes when what tokens have used up and created is in the store.
    pub(crate) async fn all_settled(&self) {
        self.owned.written().await;
        self.allowances.all_settled().await;
    }

    fn remember(&self, token: &str, created: Created) -> Stored {
        self.owned.remember(token, created, self.clock.now())
    }

    fn remember_interaction(&self, token: &str, id: &str) -> Stored {
        self.remember(token, Created::new(Kind::Interaction, id))
    }

    fn watch_creation(&self, token: &str, visit: &Arc<Visit>) {
        let mut creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        let visits = creating.entry(token.to_owned()).or_default();
        visits.retain(|visit| visit.strong_count() > 0);
        visits.push(Arc::downgrade(visit));
    }

    /// The first of these that was not created through this token, and is not being created.
    async fn not_of(&self, token: &str, asked: Vec<(Kind, String)>) -> Option<(Kind, String)> {
        let mut foreign = self.owned.not_of(token, asked).await.into_iter();
        foreign.find(|(kind, id)| *kind != Kind::Interaction || !self.creates(token, id))
    }

    /// Whether an interaction is being created.
    fn creates(&self, token: &str, id: &str) -> bool {
        let creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        let visits: Vec<_> = creating.get(token).into_iter().flatten().cloned().collect();
        // A visit may end here, and takes a lock when it does.
        drop(creating);
        let mut visits = visits.iter().filter_map(Weak::upgrade);
        visits.any(|visit| visit.interactions().iter().any(|named| named == id))
    }
}
