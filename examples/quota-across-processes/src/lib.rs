//! Several processes at full demand share one quota, and together never pass it.
//!
//! With a redis server (its own, started here on a free port, or one given with `--redis URL`) all
//! processes run at once. Without the program `redis-server` the count is in a file, and the
//! processes take turns: each is killed in the middle of its work, and the next goes on where the
//! file says.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use clap::Parser;
use tower_gemini::quota_guard::{Limits, QuotaGuardLayer, QuotaKey};
use tower_gemini::store::QuotaStore;
use tower_gemini_store::{RedbStore, RedisStore};

/// Anything that can go wrong, as text.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Requests that all processes together were let through.
    pub taken: u64,
    /// Whether the count was in redis.
    pub over_redis: bool,
}

/// Several processes at full demand share one quota, and together never pass it
#[derive(Debug, Clone, Parser)]
#[command(name = "quota-across-processes")]
struct Options {
    /// How many processes
    #[arg(long, value_name = "N", default_value_t = 4)]
    processes: usize,
    /// Requests in any 60 seconds, of all processes together
    #[arg(long, value_name = "N", default_value_t = 240)]
    rpm: u64,
    /// Requests until midnight Pacific
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    rpd: u64,
    /// How long they press
    #[arg(long, value_name = "N", default_value_t = 8)]
    seconds: u64,
    /// A server that runs already
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// The file, even where redis is there
    #[arg(long)]
    file: bool,
    /// The file of a child
    #[arg(long, hide = true)]
    path: Option<PathBuf>,
    /// This is one of the processes
    #[arg(long, hide = true)]
    child: bool,
}

/// Runs the example: `program` is this program, which is started again for each process.
///
/// # Errors
///
/// Where an option cannot be read or a process cannot be started.
pub fn app(program: &Path, args: &[String], out: &mut dyn Write) -> Result<Summary, AnyError> {
    let name = std::iter::once("quota-across-processes");
    let options = match Options::try_parse_from(name.chain(args.iter().map(String::as_str))) {
        Err(help) if !help.use_stderr() => {
            write!(out, "{help}")?;
            return Ok(Summary { taken: 0, over_redis: false });
        }
        options => options?,
    };
    if options.child {
        return child(&options, out);
    }
    let start = options.redis.is_none() && !options.file;
    let server = if start { Server::start() } else { None };
    let url = options.redis.clone().or_else(|| server.as_ref().map(|server| server.url.clone()));
    if url.is_none() && start {
        writeln!(
            out,
            "redis-server is not installed (apt-get install redis-server): the count is in a file, \
             one process at a time"
        )?;
    }
    let mut parent = Parent { program, counts: vec![(0, 0); options.processes], options, out };
    match &url {
        Some(url) => parent.together(url)?,
        None => parent.in_turns()?,
    }
    parent.finish(url.is_some())
}

/// One process: it takes whatever it is let, until its time is over, and says so.
fn child(options: &Options, out: &mut dyn Write) -> Result<Summary, AnyError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store: Arc<dyn QuotaStore> = match (&options.redis, &options.path) {
            // A server that was just started for this has nothing to forget.
            (Some(url), _) => Arc::new(RedisStore::open(url)?.restart_hold(Duration::ZERO)),
            (None, Some(path)) => Arc::new(RedbStore::open(path)?),
            (None, None) => return Err("a child needs --redis or --path".into()),
        };
        let limits = Limits::unlimited().rpm(options.rpm).rpd(options.rpd);
        let layer = QuotaGuardLayer::new(limits).store(store).alert_at([]);
        let handle =
            layer.handle(&QuotaKey::new("demo", "gemini-3.1-flash-image")).ok_or("no limits")?;
        let end = tokio::time::Instant::now() + Duration::from_secs(options.seconds);
        let mut taken = 0;
        while let Ok(mut reservation) = handle.reserve(100, 1, Some(end)).await {
            // Here the request would be sent.
            reservation.sent();
            taken += 1;
            writeln!(out, "{taken} {}", layer.counts().store_exchanges)?;
            out.flush()?;
            tokio::time::sleep(Duration::from_millis(5)).await;
            reservation.settle(None);
        }
        layer.flush().await;
        Ok(Summary { taken, over_redis: options.redis.is_some() })
    })
}

/// What a process has taken and its round trips to the shared count, by the process's number.
type News = (usize, (u64, u64));

/// The process that starts the others and shows what they do.
struct Parent<'a> {
    program: &'a Path,
    options: Options,
    counts: Vec<(u64, u64)>,
    out: &'a mut dyn Write,
}

impl Parent<'_> {
    /// Starts a process, whose news end with it.
    fn start(&self, number: usize, with: [&str; 2], news: Sender<News>) -> Result<Child, AnyError> {
        let Options { rpm, rpd, seconds, .. } = &self.options;
        let mut child = Command::new(self.program)
            .arg("--child")
            .args(["--rpm", &rpm.to_string(), "--rpd", &rpd.to_string()])
            .args(["--seconds", &seconds.to_string()])
            .args(with)
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("a child without output")?;
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Some((taken, exchanges)) = line.split_once(' ') else { continue };
                if let (Ok(taken), Ok(exchanges)) = (taken.parse(), exchanges.parse()) {
                    let _ = news.send((number, (taken, exchanges)));
                }
            }
        });
        Ok(child)
    }

    /// All at once, over redis.
    fn together(&mut self, url: &str) -> Result<(), AnyError> {
        let (processes, rpm) = (self.options.processes, self.options.rpm);
        writeln!(
            self.out,
            "{processes} processes, one quota in redis: {rpm} requests in any 60 s"
        )?;
        let (sender, news) = channel();
        let children: Result<Vec<_>, _> = (0..processes)
            .map(|number| self.start(number, ["--redis", url], sender.clone()))
            .collect();
        drop(sender);
        let live = std::io::stdout().is_terminal();
        let mut drawn = 0;
        for (process, counts) in news {
            self.counts[process] = counts;
            // Often enough to look alive, seldom enough to be read.
            if live && self.taken() >= drawn + rpm / 50 {
                drawn = self.taken();
                self.draw()?;
                // Back up, to draw over it.
                write!(self.out, "\x1b[{}A", processes + 1)?;
            }
        }
        for mut child in children? {
            child.wait()?;
        }
        self.draw()
    }

    /// One after another, over a file.
    fn in_turns(&mut self) -> Result<(), AnyError> {
        // A file for each run: two runs in one process (tests are) must not meet in one.
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let name = format!("quota-across-processes-{}-{run}.redb", std::process::id());
        let path = std::env::temp_dir().join(name);
        let text = path.to_string_lossy().into_owned();
        let (processes, rpm) = (self.options.processes, self.options.rpm);
        writeln!(
            self.out,
            "{processes} processes, one after another, one quota in a file: {rpm} requests in any 60 s"
        )?;
        for number in 0..processes {
            let (sender, news) = channel();
            let mut child = self.start(number, ["--path", &text], sender)?;
            // All but the last are killed when they have taken their share, in the middle of what
            // they do.
            let share = rpm / processes as u64;
            for (process, counts) in news {
                self.counts[process] = counts;
                if number + 1 < processes && counts.0 >= share {
                    child.kill()?;
                }
            }
            child.wait()?;
            self.draw()?;
        }
        let _ = std::fs::remove_file(path);
        Ok(())
    }

    fn taken(&self) -> u64 {
        self.counts.iter().map(|(taken, _)| taken).sum()
    }

    fn draw(&mut self) -> Result<(), AnyError> {
        const WIDTH: usize = 50;
        let rpm = self.options.rpm;
        let bar = |amount: u64| {
            let full = usize::try_from(amount * WIDTH as u64 / rpm.max(1)).unwrap_or(WIDTH);
            let full = full.min(WIDTH);
            format!("{}{}", "█".repeat(full), "·".repeat(WIDTH - full))
        };
        for (process, (taken, exchanges)) in self.counts.iter().enumerate() {
            let bar = bar(*taken);
            writeln!(self.out, "process {process} {bar} {taken:>5} sent, {exchanges} round trips")?;
        }
        let total = self.taken();
        writeln!(self.out, "together  {} {total:>5} of {rpm}", bar(total))?;
        self.out.flush()?;
        Ok(())
    }

    fn finish(&mut self, over_redis: bool) -> Result<Summary, AnyError> {
        let Options { rpm, seconds, .. } = &self.options;
        let (taken, exchanges) =
            (self.taken(), self.counts.iter().map(|(_, trips)| trips).sum::<u64>());
        let verdict = if taken <= *rpm { "never over the limit" } else { "OVER the limit" };
        writeln!(
            self.out,
            "{taken} of {rpm} requests in {seconds} s, {exchanges} round trips: {verdict}"
        )?;
        Ok(Summary { taken, over_redis })
    }
}

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Self { child, url: format!("redis://127.0.0.1:{port}/") };
        let client = redis::Client::open(server.url.as_str()).ok()?;
        // Each try is bounded, and a server takes a fraction of a second to start.
        let answers = (0..1_000).any(|_| {
            let ready = client.get_connection_with_timeout(Duration::from_millis(100)).is_ok();
            if !ready {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            ready
        });
        answers.then_some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
