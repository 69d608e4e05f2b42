//! A drop-in base URL for Gemini SDKs that never pays twice: the logic of the `gateway` program.
//!
//! | room | holds |
//! | --- | --- |
//! | `config`, `args`, `reload` | what is asked for |
//! | `gateway`, `services` | what that makes: layers, stacks, who may use them |
//! | `server`, `socket`, `limits`, `auth` | the door: connections, bounds, credentials |
//! | `proxy`, `wire`, `tell`, `hold`, `hide`, `answers`, `report` | one request on its way |
//! | `openai` | the same requests in OpenAI's words |
//! | `pages`, `status`, `log` | what it says of itself |
//!
//! [`start`] runs one inside another program; [`app`] is the whole program over any arguments and
//! outputs, so that a test runs it.

mod answers;
mod args;
mod auth;
pub mod config;
mod gateway;
mod hide;
mod hold;
mod limits;
mod log;
pub mod openai;
mod pages;
mod proxy;
mod reload;
mod report;
mod server;
mod services;
mod socket;
pub mod status;
mod tell;
mod wire;

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tower_gemini_sim::{Latency, ServeHandle, Sim};

use crate::args::{Command, HELP, Run, Skies};
use crate::config::Config;
use crate::gateway::{Current, Gateway};
use crate::limits::Bounded;
use crate::reload::Watched;

/// Ended as asked.
const DONE: u8 = 0;
/// Something that was or may have been paid for had to be left.
const LOST: u8 = 1;
/// Nothing was started: arguments, configuration or address.
const NOT_STARTED: u8 = 2;

/// What reaches a running gateway from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// To stop; the second time to stop at once.
    Stop,
    /// To read its configuration again.
    Reload,
}

/// A gateway that runs inside this program. Dropping it stops it too, without waiting for the end.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    current: Current,
    signals: mpsc::Sender<Signal>,
    task: JoinHandle<u8>,
}

impl Running {
    /// `http://127.0.0.1:port`, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Takes another configuration for the requests to come.
    ///
    /// # Errors
    ///
    /// What is wrong with it; the one before stays.
    pub fn reload(&self, toml: &str) -> Result<(), String> {
        let config = Config::parse(toml, "gateway.toml").map_err(|error| error.to_string())?;
        self.current.reload(&config)
    }

    /// Stops listening, lets what is under way end, and writes down what is kept. The exit code of
    /// the program it would have been.
    pub async fn shutdown(mut self) -> u8 {
        // A gateway that has ended hears nothing, and has its code.
        let _ = self.signals.send(Signal::Stop).await;
        (&mut self.task).await.unwrap_or(LOST)
    }
}

/// Starts a gateway with the configuration in `toml`, on the runtime that this is called in.
///
/// # Errors
///
/// What is wrong with the configuration or the address, in words.
pub async fn start(toml: &str) -> Result<Running, String> {
    let config = Config::parse(toml, "gateway.toml").map_err(|error| error.to_string())?;
    let ready = Ready::new(&config).await?;
    let (addr, current) = (ready.addr, ready.current.clone());
    let (signals, heard) = mpsc::channel(4);
    let task = tokio::spawn(ready.run(None, heard));
    Ok(Running { addr, current, signals, task })
}

/// A gateway that has its address and has not begun to answer.
struct Ready {
    listener: TcpListener,
    addr: SocketAddr,
    current: Current,
}

impl Ready {
    async fn new(config: &Config) -> Result<Self, String> {
        pages::recorder();
        let gateway = Gateway::build(config, None)?;
        let listen = config.server.listen;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            format!("{listen} cannot be listened on: {error}; another address goes into server.listen or --listen")
        })?;
        let addr = listener.local_addr().map_err(|error| error.to_string())?;
        if let (Some(keep), Some(dir)) = (&gateway.layers().keep, &config.keep.dir) {
            match keep.load_from(dir.clone()).await {
                Ok(loaded) if loaded > 0 => {
                    tracing::info!(
                        entries = loaded,
                        "what the process before had kept, and what it had lost, is here"
                    )
                }
                Ok(_) => {}
                Err(error) => {
                    return Err(format!("keep.dir {} cannot be read: {error}", dir.display()));
                }
            }
        }
        Ok(Self { listener, addr, current: Current::new(gateway, addr) })
    }

    /// Answers until it is told to stop, and ends in order. The exit code.
    async fn run(self, mut watched: Option<Watched>, mut signals: mpsc::Receiver<Signal>) -> u8 {
        let Self { listener, addr, current } = self;
        let started = Instant::now();
        let server = current.get().config().server.clone();
        tracing::info!(%addr, upstream = %current.get().upstream(), "listening");
        let app = axum::Router::new().fallback({
            let current = current.clone();
            move |request| answer(current.clone(), started, request)
        });
        // Ends with what it is spawned by.
        let mut upkeep = JoinSet::new();
        upkeep.spawn(pages::upkeep(|| pages::recorder().run_upkeep()));
        let (stop, stopped) = oneshot::channel::<()>();
        let told = async {
            // Whether it is sent or dropped, it says the same.
            let _ = stopped.await;
        };
        let (now, at_once) = oneshot::channel::<()>();
        let at_once = async {
            let _ = at_once.await;
        };
        let mut serving =
            Box::pin(server::serve(listener, app, &server, told, at_once, server.shutdown_grace.0));
        let (mut stop, mut stopping) = (Some(stop), None);
        let whole = loop {
            let changed = async {
                match &mut watched {
                    Some(watched) => watched.changed().await,
                    None => std::future::pending().await,
                }
            };
            let signal = tokio::select! {
                ended = &mut serving => break matches!(ended, Ok(true)),
                () = changed => Signal::Reload,
                signal = signals.recv() => signal.unwrap_or(Signal::Stop),
            };
            match (signal, stop.take()) {
                (Signal::Reload, still) => {
                    stop = still;
                    again(&current, watched.as_mut());
                }
                (Signal::Stop, Some(told)) => {
                    stopping = Some(Instant::now());
                    drop(told);
                    if signals.is_closed() {
                        // Nobody is there to say it a second time.
                        break matches!(serving.await, Ok(true));
                    }
                }
                (Signal::Stop, None) => {
                    tracing::warn!("told to stop for the second time: what is under way is left");
                    drop(now);
                    break matches!(serving.await, Ok(true));
                }
            }
        };
        let left = server
            .shutdown_grace
            .0
            .saturating_sub(stopping.map_or(Duration::ZERO, |since| since.elapsed()));
        let saved = put_by(&current.get(), if whole { left } else { Duration::ZERO }).await;
        if whole && saved { DONE } else { LOST }
    }
}

/// Reads the configuration again. One that cannot work changes nothing.
fn again(current: &Current, watched: Option<&mut Watched>) {
    let Some(watched) = watched else {
        tracing::warn!("there is no configuration file to read again; --config names one");
        return;
    };
    let before = current.get();
    let read = watched.read();
    if let Ok(config) = &read {
        watched.follow(config);
    }
    match read.and_then(|config| current.reload(&config).map(|()| config)) {
        Ok(config) => {
            tracing::info!(
                "the configuration was read again; requests under way end with the one before"
            );
            for section in reload::needs_restart(before.config(), &config) {
                tracing::warn!(section, "changed, and takes effect with the next start");
            }
        }
        Err(error) => {
            tracing::error!(%error, "the configuration was not taken, the one before stays")
        }
    }
}

/// Waits for what is being finished without a caller, and writes down what is kept. `false` where
/// something paid for is lost.
async fn put_by(gateway: &Gateway, within: Duration) -> bool {
    let Some(keep) = &gateway.layers().keep else { return true };
    let all = keep.drain(within).await;
    if !all {
        tracing::warn!("some calls without a caller were not finished: what they cost is lost");
    }
    let counts = keep.counts();
    match &gateway.config().keep.dir {
        Some(dir) => match keep.save_to(dir.clone()).await {
            Ok(0) => all,
            Ok(saved) => {
                tracing::info!(entries = saved, dir = %dir.display(), "kept answers, and what was lost of others, are written down for the next start");
                all
            }
            Err(error) => {
                tracing::error!(%error, dir = %dir.display(), "kept answers could not be written down, and are lost");
                false
            }
        },
        None if counts.stored == 0 && counts.losses == 0 => all,
        None => {
            tracing::warn!(
                answers = counts.stored,
                losses = counts.losses,
                "kept answers that nobody came back for, and the word of those that were lost, go with this process; keep.dir names a \
                 place for them"
            );
            false
        }
    }
}

/// Answers one request: a page of the gateway's own, or what the upstream says.
async fn answer(
    current: Current,
    started: Instant,
    request: Request<Body>,
) -> http::Response<Body> {
    let gateway = current.get();
    let path = wire::tidy_path(request.uri().path()).into_owned();
    // HEAD too, as health checks ask: the server leaves the body out.
    let looks = matches!(*request.method(), http::Method::GET | http::Method::HEAD);
    if let Some(page) = looks.then(|| pages::page(&gateway, &path, started)).flatten() {
        return page;
    }
    let form = answers::form_of(&path);
    let limits = &gateway.config().server;
    let told = request
        .headers()
        .get(http::header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| usize::try_from(told).map_or(true, |told| told > limits.max_body.0))
    {
        let fault = limits::BodyFault::TooLarge { most: limits.max_body.0 };
        return answers::refused(form, &answers::Refused::fault(fault));
    }
    let Some(place) = gateway.places().take() else {
        let message = format!(
            "This gateway has {} requests under way, which is all it takes (server.max_in_flight).",
            gateway.places().all()
        );
        let mut answer = answers::refused(
            form,
            &answers::Refused::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message),
        );
        // Nothing was sent and nothing is wrong: a second later a place may be free.
        answer.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("1"));
        return answer;
    };
    let (most, silence) = (limits.max_body.0, limits.body_idle_timeout.0);
    let request = request.map(|body| Body::new(Bounded::new(body, most, silence)));
    limits::holding(proxy::handle(gateway, request).await, place)
}

/// Runs the program. `signals` are what the operating system tells it.
///
/// Exit codes: 0 ended as asked; 1 something that was or may have been paid for had to be left; 2
/// not started.
pub async fn app(
    args: &[String],
    output: &mut (dyn Write + Send),
    errors: &mut (dyn Write + Send),
    signals: mpsc::Receiver<Signal>,
) -> u8 {
    // Where nobody listens any more there is nobody to tell.
    let mut print =
        |text: &str| drop(output.write_all(text.as_bytes()).and_then(|()| output.flush()));
    let run = match args::parse(args) {
        Ok(Command::Help) => {
            print(HELP);
            return DONE;
        }
        Ok(Command::Version) => {
            print(concat!("gateway ", env!("CARGO_PKG_VERSION"), "\n"));
            return DONE;
        }
        Ok(Command::PrintConfig) => {
            print(config::EXAMPLE);
            return DONE;
        }
        Ok(Command::Check(path)) => {
            let checked = path
                .as_deref()
                .map_or_else(|| Ok(Config::default()), reload::read)
                .and_then(|config| Gateway::build(&config, None));
            return match checked {
                Ok(_) => {
                    print("The configuration can work.\n");
                    DONE
                }
                Err(error) => refuse(errors, &error),
            };
        }
        Ok(Command::Run(run)) => run,
        Err(error) => return refuse(errors, &format!("{error}; try --help")),
    };
    match prepare(&run).await {
        Ok((ready, watched, sim)) => {
            print(&welcome(&ready, sim.is_some()));
            let code = ready.run(watched, signals).await;
            if let Some(sim) = sim {
                sim.shutdown().await;
            }
            code
        }
        Err(error) => refuse(errors, &error),
    }
}

fn refuse(errors: &mut (dyn Write + Send), error: &str) -> u8 {
    let _ = writeln!(errors, "gateway: {error}");
    NOT_STARTED
}

async fn prepare(run: &Run) -> Result<(Ready, Option<Watched>, Option<ServeHandle>), String> {
    let mut config = run.config.as_deref().map_or_else(|| Ok(Config::default()), reload::read)?;
    // A simulated upstream is not in the file, so a changed file must not take its place.
    let watched = run
        .config
        .clone()
        .filter(|_| run.simulate.is_none())
        .map(|path| Watched::new(path, run.listen, &config));
    if let Some(listen) = run.listen {
        config.server.listen = listen;
        config.check_listen(listen)?;
    }
    log::begin(&config)?;
    let sim = match run.simulate {
        Some(skies) => {
            let handle =
                tower_gemini_sim::serve(simulated(skies), SocketAddr::from(([127, 0, 0, 1], 0)))
                    .await
                    .map_err(|error| {
                        format!("the simulated Gemini cannot listen on a loopback port: {error}")
                    })?;
            config.upstream = config::Upstream::at(&handle.url())?;
            Some(handle)
        }
        None => None,
    };
    Ok((Ready::new(&config).await?, watched, sim))
}

fn simulated(skies: Skies) -> Sim {
    let sim = Sim::builder().latency(Latency::fixed(Duration::from_secs(2)));
    match skies {
        Skies::Calm => sim.build(),
        Skies::Stormy => sim.storm().build(),
    }
}

/// What to do with it, ready to copy.
fn welcome(ready: &Ready, simulated: bool) -> String {
    let url = format!("http://{}", ready.addr);
    let key = if simulated { "any-key" } else { "$GEMINI_API_KEY" };
    let what = if simulated {
        "In front of a simulated Gemini: no key, no network, no money."
    } else {
        "In front of Google."
    };
    format!(
        "{what}\n\n\
         Python   genai.Client(api_key=…, http_options={{'base_url': '{url}'}})\n\
         Node     new GoogleGenAI({{ apiKey, httpOptions: {{ baseUrl: '{url}' }} }})\n\
         OpenAI   OpenAI(api_key=…, base_url='{url}/v1beta/openai/')\n\
         curl     curl -s {url}/v1beta/models/gemini-3-pro-image:generateContent -H \"x-goog-api-key: {key}\" \\\n         \
         -H content-type:application/json -d '{{\"contents\":[{{\"parts\":[{{\"text\":\"a red apple\"}}]}}]}}' -o answer.json\n\n\
         What is going on: {url}/status\n\n"
    )
}
