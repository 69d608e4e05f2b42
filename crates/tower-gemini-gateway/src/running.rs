//! Runs a gateway on a socket of its own until it is stopped.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::config::{Config, ConfigError};
use crate::gateway::Gateway;
use crate::reload::{self, Watched};
use crate::server;
use crate::tls::Acceptor;

/// Exit code: ended as asked.
pub(crate) const DONE: u8 = 0;
/// Exit code: something that was or may have been paid for is lost.
pub(crate) const LOST: u8 = 1;
/// Exit code: nothing was started, for arguments, configuration or address.
pub(crate) const NOT_STARTED: u8 = 2;

/// What reaches a running gateway from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Stop after the requests in flight; the second time, stop at once.
    Stop,
    /// Reload the configuration, and try again what refusals closed (see [`Gateway::reopen`]).
    Reload,
}

/// A gateway that runs inside this program, on a socket of its own. Dropping it stops it too,
/// without waiting for the end.
#[derive(Debug)]
pub struct Running {
    scheme: &'static str,
    addr: SocketAddr,
    gateway: Gateway,
    signals: mpsc::Sender<Signal>,
    task: JoinHandle<u8>,
}

impl Running {
    /// `http://127.0.0.1:port`, without a slash at its end; `https` with `[server.tls]`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    /// The gateway itself.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Takes another configuration for the requests to come.
    ///
    /// # Errors
    ///
    /// What is wrong with it; the previous one stays in effect.
    pub fn reload(&self, toml: &str) -> Result<(), ConfigError> {
        self.gateway.reload_at(self.addr, &Config::parse(toml, "gateway.toml")?, Vec::new())
    }

    /// Stops listening, lets the requests in flight end, and saves what is stored. The exit code of
    /// the program it would have been.
    pub async fn shutdown(mut self) -> u8 {
        // A gateway that has ended receives nothing, and has its code.
        let _ = self.signals.send(Signal::Stop).await;
        (&mut self.task).await.unwrap_or(LOST)
    }
}

/// Starts a gateway with the configuration in `toml`, on the runtime that this is called in.
///
/// # Errors
///
/// What is wrong with the configuration or the address.
pub async fn start(toml: &str) -> Result<Running, ConfigError> {
    let bound = Bound::new(&Config::parse(toml, "gateway.toml")?).await?;
    let (scheme, addr, gateway) = (bound.scheme(), bound.addr, bound.gateway.clone());
    let (signals, received) = mpsc::channel(4);
    let task = tokio::spawn(bound.run(None, received));
    Ok(Running { scheme, addr, gateway, signals, task })
}

async fn bind(key: &str, listen: SocketAddr) -> Result<TcpListener, ConfigError> {
    TcpListener::bind(listen).await.map_err(|error| {
        let option = if key == "server.listen" { " or --listen" } else { "" };
        ConfigError::at(
            key,
            format!("cannot listen on {listen}: {error}"),
            format!("write another address in {key}{option}"),
        )
    })
}

/// A gateway that has its address and serves nothing yet.
pub(crate) struct Bound {
    listener: TcpListener,
    /// Of the status pages.
    status: Option<TcpListener>,
    tls: Acceptor,
    pub(crate) addr: SocketAddr,
    pub(crate) gateway: Gateway,
}

impl Bound {
    pub(crate) async fn new(config: &Config) -> Result<Self, ConfigError> {
        let tls = Acceptor::new(config.server.tls.as_ref())?;
        let listener = bind("server.listen", config.server.listen).await?;
        let addr = listener.local_addr().map_err(|error| {
            ConfigError::at("server.listen", format!("the socket has no address: {error}"), "")
        })?;
        let status = match config.server.status_listen {
            Some(listen) => Some(bind("server.status_listen", listen).await?),
            None => None,
        };
        Ok(Self { listener, status, tls, addr, gateway: Gateway::new(config).await? })
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_tls() { "https" } else { "http" }
    }

    /// Serves until it is stopped, finishes the requests in flight, and returns the exit code.
    pub(crate) async fn run(
        self,
        mut watched: Option<Watched>,
        mut signals: mpsc::Receiver<Signal>,
    ) -> u8 {
        let Self { listener, status, tls, addr, gateway } = self;
        let snapshot = gateway.snapshot();
        let (limits, queue) = (snapshot.config().server.clone(), snapshot.queue().clone());
        let upstreams: Vec<_> = snapshot.upstreams().map(|one| one.id().to_string()).collect();
        let upstreams = upstreams.join(", ");
        // The configuration may be replaced while this runs.
        drop(snapshot);
        tracing::info!(%addr, upstreams, "listening");
        // Whether a sender sends or is dropped, it says the same.
        let (stop, stopped) = oneshot::channel::<()>();
        let (stop_now, stopped_now) = oneshot::channel::<()>();
        // Served until the end, and dropped with this future.
        let mut pages = JoinSet::new();
        let (_open, never) = oneshot::channel::<()>();
        let (_open_too, never_now) = oneshot::channel::<()>();
        if let Some(status) = status {
            let (router, limits) = (gateway.status_router(), limits.clone());
            let (tls, queue) = (tls.clone(), queue.clone());
            tracing::info!(addr = ?status.local_addr().ok(), "listening for the status pages");
            pages.spawn(async move {
                server::serve(status, tls, router, &limits, &queue, never, never_now).await;
            });
        }
        let router = gateway.router();
        let served = server::serve(listener, tls, router, &limits, &queue, stopped, stopped_now);
        let mut serving = Box::pin(served);
        let mut stop = Some(stop);
        let mut deadline = None;
        let whole = loop {
            let changed = async {
                match &mut watched {
                    Some(watched) => watched.changed().await,
                    None => std::future::pending().await,
                }
            };
            let signal = tokio::select! {
                ended = &mut serving => break ended,
                () = changed => {
                    reload::reload(&gateway, addr, watched.as_mut());
                    continue;
                }
                signal = signals.recv() => signal.unwrap_or(Signal::Stop),
            };
            match signal {
                Signal::Reload => {
                    gateway.reopen();
                    reload::reload(&gateway, addr, watched.as_mut());
                }
                Signal::Stop if stop.take().is_some() => {
                    gateway.stop_being_ready();
                    deadline = Some(Instant::now() + limits.shutdown_grace.0);
                    if signals.is_closed() {
                        // Nobody is there to say it a second time.
                        break serving.await;
                    }
                }
                Signal::Stop => {
                    tracing::warn!("asked to stop for the second time: requests in flight are cut");
                    drop(stop_now);
                    break serving.await;
                }
            }
        };
        let left =
            deadline.filter(|_| whole).map(|end| end.saturating_duration_since(Instant::now()));
        let saved = gateway.finish(left.unwrap_or_default()).await;
        if whole && saved { DONE } else { LOST }
    }
}
