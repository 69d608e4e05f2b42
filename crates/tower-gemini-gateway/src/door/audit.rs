//! A line a request: who asked for what, what became of it, what it cost. Never the prompt.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use http::Method;
use http::request::Parts;
use serde::Serialize;
use tokio::time::Instant;
use tower_gemini::Trail;
use tower_gemini::cost::Cost;
use tower_gemini::redact::redact;
use tower_gemini::verdict::Outcome;

use super::{Connection, Door};

/// A longer path says nothing more.
const MAX_PATH_CHARS: usize = 512;

/// The file of `log.audit`.
#[derive(Debug)]
pub(crate) struct AuditFile(Mutex<Option<File>>);

impl AuditFile {
    /// Opens a file, to be appended to.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Self(Mutex::new(Some(options.open(path)?))))
    }

    fn write(&self, line: &str) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = &mut *file else { return };
        // One write a line: a process that is killed leaves whole lines.
        if let Err(error) = open.write_all(line.as_bytes()) {
            tracing::error!(%error, "log.audit cannot be written and ends here");
            *file = None;
        }
    }
}

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at: String,
    caller: Option<&'a str>,
    peer: Option<IpAddr>,
    method: &'a str,
    path: &'a str,
    /// `null` where the client disconnected before a response.
    status: Option<u16>,
    outcome: &'static str,
    attempts: usize,
    cost_at_least_microusd: u64,
    /// `null` where it is not known.
    cost_at_most_microusd: Option<u64>,
    ms: u128,
}

/// One request, from its head until nothing works on it any more: the response is sent, and the
/// call behind it has ended, which may be long after the client has gone. Its line is written when
/// it is dropped.
#[derive(Debug)]
pub(crate) struct Visit {
    door: Arc<Door>,
    at: SystemTime,
    since: Instant,
    peer: Option<IpAddr>,
    method: Method,
    path: String,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    caller: Option<String>,
    status: Option<u16>,
    trails: Vec<Trail>,
}

impl Visit {
    pub(crate) fn new(door: Arc<Door>, parts: &Parts, path: &str) -> Self {
        let peer = parts.extensions.get::<Connection>().map(|connection| connection.peer);
        let method = parts.method.clone();
        let path = redact(path).chars().take(MAX_PATH_CHARS).collect();
        let (at, since, seen) = (door.clock.now(), Instant::now(), Mutex::default());
        Self { door, at, since, peer, method, path, seen }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, caller: Option<&str>) {
        self.seen().caller = caller.map(str::to_owned);
    }

    /// A call is made for it.
    pub(crate) fn follow(&self, trail: &Trail) {
        self.seen().trails.push(trail.clone());
    }

    pub(crate) fn responded(&self, status: u16) {
        self.seen().status = Some(status);
    }

    /// The interactions that its responses named so far.
    pub(super) fn interactions(&self) -> Vec<String> {
        self.seen().trails.iter().filter_map(Trail::interaction_id).collect()
    }

    fn line(&self, seen: &Seen) -> String {
        let attempts: Vec<_> = seen.trails.iter().flat_map(Trail::attempts).collect();
        let cost: Cost = seen.trails.iter().map(Trail::cost).sum();
        let last = attempts.last().map(|last| last.outcome.unwrap_or(Outcome::Interrupted));
        let outcome = match (seen.status, last) {
            (None, _) => "client_disconnected",
            (Some(_), Some(outcome)) => outcome.as_str(),
            (Some(status), None) if status < 400 => "served_here",
            (Some(_), None) => "refused_here",
        };
        let line = Line {
            at: jiff::Timestamp::try_from(self.at).unwrap_or_default().to_string(),
            caller: seen.caller.as_deref(),
            peer: self.peer,
            method: self.method.as_str(),
            path: &self.path,
            status: seen.status,
            outcome,
            attempts: attempts.len(),
            cost_at_least_microusd: cost.at_least_microusd,
            cost_at_most_microusd: cost.at_most_microusd,
            ms: self.since.elapsed().as_millis(),
        };
        // Every key is a string and every value plain data.
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let seen = std::mem::take(&mut *self.seen());
        if let Some(caller) = &seen.caller {
            for id in seen.trails.iter().filter_map(Trail::interaction_id) {
                self.door.remember_interaction(caller, &id);
            }
        }
        if let Some(file) = &self.door.audit {
            file.write(&self.line(&seen));
        }
    }
}
