//! The gateway as a part of another program: a router whose configuration can be replaced while it runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower_gemini::clock::{Clock, SystemClock};

use crate::config::{Config, ConfigError};
use crate::door::Connection;
#[cfg(feature = "jobs")]
use crate::jobs::{self, Jobs, Working};
use crate::snapshot::Snapshot;
use crate::state::State;
use crate::{alerts, figures, guard, handler, pages};

/// A gateway without a socket: an [`axum::Router`] for somebody else's server. Clones share their
/// state.
///
/// Limits of connections (`server.max_connections`, the timeouts of heads and stalled clients,
/// `server.listen`) are the server's; everything else of the [`Config`] applies.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower::ServiceExt;
/// use tower_gemini_gateway::{Config, Gateway};
/// use tower_gemini_sim::{Sim, serve};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Offline: a simulated Gemini as the upstream.
/// let gemini = serve(Sim::quick([]), ([127, 0, 0, 1], 0).into()).await?;
/// let config = format!(
///     "[[upstream]]\nname = \"sim\"\nkind = \"relay\"\nbase_url = \"{}\"\n",
///     gemini.url(),
/// );
/// let gateway = Gateway::new(&Config::parse(&config, "gateway.toml")?).await?;
///
/// let app = Router::new()
///     .route("/hello", get(|| async { "hello" }))
///     .nest("/gemini", gateway.router());
///
/// let request = http::Request::post("/gemini/v1beta/models/gemini-3-pro-image:generateContent")
///     .header("x-goog-api-key", "any-key")
///     .body(r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#.to_owned())?;
/// let response = app.oneshot(request).await?;
/// assert_eq!(response.status(), 200);
///
/// assert!(gateway.finish(std::time::Duration::from_secs(60)).await, "nothing paid for was lost");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Gateway {
    snapshot: watch::Sender<Arc<Snapshot>>,
    started: Instant,
    #[cfg(feature = "jobs")]
    jobs: Option<Arc<Working>>,
    /// Ends with the last clone.
    _upkeep: Arc<JoinSet<()>>,
}

impl Gateway {
    /// Builds a gateway, opens its state (`server.state_dir`, `server.store`), and loads what an
    /// earlier one saved in `keep.dir` and `signatures.file`.
    /// Installs a Prometheus recorder for `/metrics` where the program has no recorder of its own.
    ///
    /// # Errors
    ///
    /// A setting that this machine refuses: a file that cannot be read, a state directory that
    /// cannot be written or is in use, an environment variable that is not set.
    pub async fn new(config: &Config) -> Result<Self, ConfigError> {
        let recorder = pages::recorder();
        let snapshot = Snapshot::first(config, State::open(&config.server).await?)?;
        if let (Some(keep), Some(dir)) = (&snapshot.layers().keep, &config.keep.dir) {
            let entries = keep.load_from(dir.clone()).await.map_err(|error| {
                let what = format!("keep.dir {} cannot be read: {error}", dir.display());
                ConfigError::at("keep.dir", what, "make it readable, or name another directory")
            })?;
            if entries > 0 {
                tracing::info!(entries, "stored responses of the earlier process were loaded");
            }
        }
        // What refusals closed before this start is not tried anew.
        if let Err(error) = snapshot.layers().fallback.circuits().refresh().await {
            tracing::warn!(%error, "models and accounts that rest are tried again");
        }
        snapshot.door().load().await;
        let mut upkeep = JoinSet::new();
        upkeep.spawn(pages::upkeep(|| recorder.run_upkeep()));
        let snapshot = watch::Sender::new(Arc::new(snapshot));
        upkeep.spawn(watch_tokens(snapshot.subscribe()));
        upkeep.spawn(follow_others(snapshot.subscribe()));
        upkeep.spawn(keep_figures(snapshot.subscribe()));
        upkeep.spawn(alerts::watch::watch(snapshot.subscribe(), alerts::watch::EVERY));
        Ok(Self {
            #[cfg(feature = "jobs")]
            jobs: Working::begin(&snapshot).await?,
            snapshot,
            started: Instant::now(),
            _upkeep: Arc::new(upkeep),
        })
    }

    /// A router for every path: Gemini's, Vertex AI's, OpenAI's, and the gateway's own
    /// `/livez`, `/readyz`, `/healthz`, `/status`, `/status.json`, `/metrics` and `/jobs`. Nest it to give it a prefix.
    pub fn router(&self) -> Router {
        let gateway = self.clone();
        Router::new().fallback(move |request: Request<Body>| {
            let gateway = gateway.clone();
            async move { gateway.handle(request).await }
        })
    }

    /// Handles one request.
    async fn handle(&self, request: Request<Body>) -> Response<Body> {
        #[cfg(feature = "jobs")]
        if jobs::http::is_path(request.uri().path()) {
            return jobs::http::handle(self.snapshot(), self.jobs(), request).await;
        }
        handler::handle(self.snapshot(), self.started, request).await
    }

    /// The status pages alone, for a port of their own.
    pub(crate) fn status_router(&self) -> Router {
        let gateway = self.clone();
        Router::new().fallback(move |mut request: Request<Body>| {
            if let Some(connection) = request.extensions_mut().get_mut::<Connection>() {
                *connection = connection.for_status();
            }
            let gateway = gateway.clone();
            async move { gateway.handle(request).await }
        })
    }

    /// Takes another configuration for the requests to come. Requests in flight end with the one
    /// they began with; changes of `[server]`, `[keep]`, `[quota]`, `[spending]`, `[jobs]`, `[otel]` and
    /// `[log]` need a new gateway.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and where `[auth]` or an upstream changed without
    /// `server.accept_changes`. The previous configuration stays in effect.
    pub fn reload(&self, config: &Config) -> Result<(), ConfigError> {
        self.reload_with(config, Vec::new())
    }

    /// As [`reload`](Self::reload), from a file that lost this.
    pub(crate) fn reload_with(
        &self,
        config: &Config,
        lost: Vec<String>,
    ) -> Result<(), ConfigError> {
        let before = self.snapshot();
        let accepted = guard::check(before.config(), config, lost)?;
        let next = Snapshot::build(config, Some(&before))?;
        if !accepted.is_empty() {
            let changes = accepted.join("; ");
            tracing::warn!(changes, "accepted by server.accept_changes, and in effect now");
        }
        self.snapshot.send_replace(Arc::new(next));
        Ok(())
    }

    /// Tries again what refusals closed: days that are spent, models and accounts that rest. For an
    /// operator who knows better, as after a change of tier.
    pub fn reopen(&self) {
        let snapshot = self.snapshot();
        let days = snapshot.quota().reopen();
        let circuits = snapshot.layers().fallback.circuits().reset();
        tracing::info!(days, circuits, "what refusals closed is tried again");
    }

    pub(crate) fn reload_at(
        &self,
        addr: SocketAddr,
        config: &Config,
        lost: Vec<String>,
    ) -> Result<(), ConfigError> {
        config.check_listen(addr)?;
        self.reload_with(config, lost)
    }

    /// Why this gateway takes no paid work at present, as `/readyz` says: it is shutting down, its
    /// state cannot be written, or the list of tokens is unreadable, empty or has a bad line.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        self.snapshot().not_ready()
    }

    /// `/readyz` fails from now on: no new requests should come. Those that do are served.
    pub fn stop_being_ready(&self) {
        self.snapshot().stop_being_ready();
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Waits, for `within` at most, for the calls whose clients disconnected, and saves stored
    /// responses to `keep.dir` and thought signatures to `signatures.file`, closes the state
    /// directory, and exports the last spans. Call it after the server has stopped. `false` where something that was or may have been paid for is lost.
    pub async fn finish(&self, within: Duration) -> bool {
        let snapshot = self.snapshot();
        #[cfg(feature = "jobs")]
        if let Some(jobs) = &self.jobs {
            jobs.end(within).await;
        }
        let whole = self.save(&snapshot, within).await;
        // Last, when every call has ended: what is not settled counts as its worst case.
        let settled = async {
            snapshot.layers().spending.all_settled().await;
            snapshot.layers().budgets.all_settled().await;
            snapshot.door().all_settled().await;
            snapshot.quota().flush().await;
        };
        if tokio::time::timeout(SETTLING, settled).await.is_err() {
            tracing::warn!(
                "the store did not take what the last calls cost: they count as their worst case"
            );
        }
        let gateway = snapshot.clone();
        let _ = tokio::task::spawn_blocking(move || save_figures(&gateway)).await;
        snapshot.state().close();
        snapshot.otel().finish().await;
        whole
    }

    /// The jobs of this gateway, where it has a place for them.
    #[cfg(feature = "jobs")]
    pub(crate) fn jobs(&self) -> Option<&Jobs> {
        self.jobs.as_ref().map(|working| &working.jobs)
    }

    async fn save(&self, snapshot: &Snapshot, within: Duration) -> bool {
        if let Some(file) = &snapshot.config().signatures.file
            && let Err(error) = snapshot.layers().signatures.save_to(file)
        {
            tracing::error!(%error, file = %file.display(), "thought signatures were not saved");
        }
        let Some(keep) = &snapshot.layers().keep else { return true };
        let all = keep.drain(within).await;
        if !all {
            tracing::warn!(
                "some calls of disconnected clients were not completed: what they cost is lost"
            );
        }
        // The journal has everything already.
        if snapshot.has_journal() {
            return all;
        }
        let counts = keep.counts();
        let Some(dir) = &snapshot.config().keep.dir else {
            if counts.stored == 0 && counts.losses == 0 {
                return all;
            }
            tracing::warn!(
                responses = counts.stored,
                losses = counts.losses,
                "stored responses and records of lost ones end with this process; set \
                 server.state_dir to keep them"
            );
            return false;
        };
        match keep.save_to(dir.clone()).await {
            Ok(entries) => {
                if entries > 0 {
                    tracing::info!(entries, dir = %dir.display(), "stored responses were saved");
                }
                all
            }
            Err(error) => {
                let dir = dir.display();
                tracing::error!(%error, %dir, "stored responses were not saved and are lost");
                false
            }
        }
    }
}

/// How long the end of the program waits for the store to take what the last calls cost.
const SETTLING: Duration = Duration::from_secs(5);

/// How often the list of tokens is looked at while nobody asks for it.
const TOKENS_EVERY: Duration = Duration::from_secs(1);

/// How often the store is asked what others have spent and closed.
const FOLLOW_EVERY: Duration = Duration::from_secs(15);

/// Keeps the list of tokens fresh while nobody asks, so that its problems are logged, and a file
/// system that does not respond blocks no request.
async fn watch_tokens(snapshot: watch::Receiver<Arc<Snapshot>>) {
    loop {
        tokio::time::sleep(TOKENS_EVERY).await;
        let auth = snapshot.borrow().auth().clone();
        // It ends by itself; a look that panics is followed by the next.
        let _ = tokio::task::spawn_blocking(move || auth.problem()).await;
    }
}

/// Shows the tokens that have called earlier processes, and saves the figures of the status page as
/// long as the gateway runs.
async fn keep_figures(snapshot: watch::Receiver<Arc<Snapshot>>) {
    let gateway = snapshot.borrow().clone();
    let Some(figures) = gateway.state().figures() else { return };
    for name in &figures.earlier().callers {
        let caller = gateway.auth().caller_named(name, SystemClock.now());
        if let Some(token) = caller.as_ref().and_then(|caller| caller.token()) {
            gateway.door().recall(token).await;
        }
    }
    drop(gateway);
    figures::keep(move || save_figures(&snapshot.borrow().clone())).await;
}

fn save_figures(gateway: &Snapshot) {
    if let (Some(file), Some(figures)) = (gateway.state().figures(), pages::figures(gateway)) {
        file.save(figures);
    }
}

/// Asks the store now and then what others have spent, for the pages that show it, and what
/// refusals have closed for them.
async fn follow_others(snapshot: watch::Receiver<Arc<Snapshot>>) {
    let mut every = tokio::time::interval(FOLLOW_EVERY);
    loop {
        every.tick().await;
        let layers = snapshot.borrow().layers().clone();
        // A failure is logged where it refuses calls.
        let _ = layers.spending.refresh().await;
        layers.budgets.refresh().await;
        if let Ok(closed @ 1..) = layers.fallback.circuits().refresh().await {
            tracing::info!(closed, "models or accounts that refused others are left alone");
        }
    }
}
