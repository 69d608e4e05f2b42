//! Several processes at full demand share one quota, and together never pass it.
//!
//! With a redis server (its own, started here on a free port, or one given with `--redis URL`) all
//! processes run at once. Without the program `redis-server` the count is in a file, and the
//! processes take turns: each is killed in the middle of its work, and the next goes on where the
//! file says.
//!
//! | option | default | |
//! | --- | --- | --- |
//! | `--processes N` | 4 | how many |
//! | `--rpm N` | 240 | requests in any 60 seconds, of all processes together |
//! | `--rpd N` | 1000 | requests until midnight Pacific |
//! | `--seconds N` | 8 | how long they press |
//! | `--redis URL` | | a server that runs already |
//! | `--file` | | the file, even where redis is there |

use std::collections::HashMap;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tower_gemini::quota_guard::{Limits, QuotaGuardLayer, QuotaKey};
use tower_gemini::store::QuotaStore;
use tower_gemini_store::{RedbStore, RedisStore};

/// Anything that can go wrong, in words.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Requests that all processes together were let through.
    pub taken: u64,
    /// What the limit of the minute allowed.
    pub rpm: u64,
    /// Round trips to the shared count.
    pub exchanges: u64,
    /// Whether the count was in redis.
    pub over_redis: bool,
}

#[derive(Debug, Clone)]
struct Options {
    processes: usize,
    rpm: u64,
    rpd: u64,
    seconds: u64,
    redis: Option<String>,
    file: Option<PathBuf>,
    force_file: bool,
    child: Option<usize>,
}

fn options(args: &[String]) -> Result<Options, AnyError> {
    let mut options = Options {
        processes: 4,
        rpm: 240,
        rpd: 1_000,
        seconds: 8,
        redis: None,
        file: None,
        force_file: false,
        child: None,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--file" {
            options.force_file = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--processes" => options.processes = value.parse()?,
            "--rpm" => options.rpm = value.parse()?,
            "--rpd" => options.rpd = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            "--redis" => options.redis = Some(value.clone()),
            "--path" => options.file = Some(value.into()),
            "--child" => options.child = Some(value.parse()?),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(options)
}

/// Runs the example: `program` is this program, which is started again for each process.
///
/// # Errors
///
/// Where an option cannot be read or a process cannot be started.
pub fn app(program: &Path, args: &[String], out: &mut dyn Write) -> Result<Summary, AnyError> {
    let options = options(args)?;
    if options.child.is_some() {
        return child(&options, out);
    }
    let server = match (&options.redis, options.force_file) {
        (None, false) => Server::start(),
        _ => None,
    };
    let url = options.redis.clone().or_else(|| server.as_ref().map(|server| server.url.clone()));
    match url {
        Some(url) => together(program, &options, &url, out),
        None => {
            if !options.force_file {
                writeln!(
                    out,
                    "redis-server is not installed (apt-get install redis-server): the count is in a file, one process at a time"
                )?;
            }
            in_turns(program, &options, out)
        }
    }
}

/// One process: it takes whatever it is let, until its time is over, and says so.
fn child(options: &Options, out: &mut dyn Write) -> Result<Summary, AnyError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store: Arc<dyn QuotaStore> = match (&options.redis, &options.file) {
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
            writeln!(out, "taken {taken} exchanges {}", layer.counts().store_exchanges)?;
            out.flush()?;
            tokio::time::sleep(Duration::from_millis(5)).await;
            reservation.settle(None);
        }
        layer.flush().await;
        Ok(Summary {
            taken,
            rpm: options.rpm,
            exchanges: layer.counts().store_exchanges,
            over_redis: options.redis.is_some(),
        })
    })
}

/// `(process, taken, exchanges)`, and `None` when a process has ended.
type News = (usize, Option<(u64, u64)>);

fn start(
    program: &Path,
    options: &Options,
    number: usize,
    with: [&str; 2],
    news: Sender<News>,
) -> Result<Child, AnyError> {
    let mut child = Command::new(program)
        .args([
            "--child",
            &number.to_string(),
            "--rpm",
            &options.rpm.to_string(),
            "--rpd",
            &options.rpd.to_string(),
        ])
        .args(["--seconds", &options.seconds.to_string()])
        .args(with)
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let words: Vec<_> = line.split_whitespace().collect();
                let ["taken", taken, "exchanges", exchanges] = words.as_slice() else { continue };
                let (Ok(taken), Ok(exchanges)) = (taken.parse(), exchanges.parse()) else {
                    continue;
                };
                let _ = news.send((number, Some((taken, exchanges))));
            }
            let _ = news.send((number, None));
        });
    }
    Ok(child)
}

fn together(
    program: &Path,
    options: &Options,
    url: &str,
    out: &mut dyn Write,
) -> Result<Summary, AnyError> {
    writeln!(
        out,
        "{} processes, one quota in redis: {} requests in any 60 s",
        options.processes, options.rpm
    )?;
    let (sender, receiver) = channel();
    let mut children = Vec::new();
    for number in 0..options.processes {
        children.push(start(program, options, number, ["--redis", url], sender.clone())?);
    }
    drop(sender);
    let counts = watch(&receiver, options, out)?;
    for child in &mut children {
        child.wait()?;
    }
    finish(&counts, options, true, out)
}

fn in_turns(program: &Path, options: &Options, out: &mut dyn Write) -> Result<Summary, AnyError> {
    // A file for each run: two runs in one process (tests are) must not meet in one.
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let name = format!("quota-across-processes-{}-{run}.redb", std::process::id());
    let path = std::env::temp_dir().join(name);
    let text = path.to_string_lossy().into_owned();
    writeln!(
        out,
        "{} processes, one after another, one quota in a file: {} requests in any 60 s",
        options.processes, options.rpm
    )?;
    let mut counts = HashMap::new();
    for number in 0..options.processes {
        let (sender, receiver) = channel();
        let mut child = start(program, options, number, ["--path", &text], sender)?;
        let last = number + 1 == options.processes;
        // All but the last are killed when they have taken their share, in the middle of what they
        // do.
        let share = options.rpm / options.processes as u64;
        for (process, news) in &receiver {
            let Some(news) = news else { break };
            counts.insert(process, news);
            if !last && news.0 >= share {
                child.kill()?;
            }
        }
        child.wait()?;
        draw(&counts, options, false, out)?;
    }
    let summary = finish(&counts, options, false, out);
    let _ = std::fs::remove_file(path);
    summary
}

fn watch(
    news: &Receiver<News>,
    options: &Options,
    out: &mut dyn Write,
) -> Result<HashMap<usize, (u64, u64)>, AnyError> {
    let live = std::io::stdout().is_terminal();
    let mut counts = HashMap::new();
    let (mut running, mut drawn) = (options.processes, 0u64);
    while running > 0 {
        match news.recv_timeout(Duration::from_millis(250)) {
            Ok((process, Some(news))) => {
                counts.insert(process, news);
                // Often enough to look alive, seldom enough to be read.
                let total: u64 = counts.values().map(|(taken, _)| taken).sum();
                if live && total >= drawn + options.rpm / 50 {
                    drawn = total;
                    draw(&counts, options, true, out)?;
                }
            }
            Ok((_, None)) => running -= 1,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    draw(&counts, options, false, out)?;
    Ok(counts)
}

fn draw(
    counts: &HashMap<usize, (u64, u64)>,
    options: &Options,
    again: bool,
    out: &mut dyn Write,
) -> Result<(), AnyError> {
    const WIDTH: u64 = 50;
    let bar = |amount: u64| {
        let full = (amount * WIDTH / options.rpm.max(1)).min(WIDTH);
        format!(
            "{}{}",
            "█".repeat(usize::try_from(full).unwrap_or(0)),
            "·".repeat(usize::try_from(WIDTH - full).unwrap_or(0))
        )
    };
    for process in 0..options.processes {
        let (taken, exchanges) = counts.get(&process).copied().unwrap_or_default();
        writeln!(out, "process {process} {} {taken:>5} sent, {exchanges} round trips", bar(taken))?;
    }
    let total: u64 = counts.values().map(|(taken, _)| taken).sum();
    writeln!(out, "together  {} {total:>5} of {}", bar(total), options.rpm)?;
    if again {
        // Back up, to draw over it.
        write!(out, "\x1b[{}A", options.processes + 1)?;
    }
    out.flush()?;
    Ok(())
}

fn finish(
    counts: &HashMap<usize, (u64, u64)>,
    options: &Options,
    over_redis: bool,
    out: &mut dyn Write,
) -> Result<Summary, AnyError> {
    let taken = counts.values().map(|(taken, _)| taken).sum();
    let exchanges = counts.values().map(|(_, exchanges)| exchanges).sum();
    let verdict = if taken <= options.rpm { "never over the limit" } else { "OVER the limit" };
    writeln!(
        out,
        "{taken} of {} requests in {} s, {exchanges} round trips: {verdict}",
        options.rpm, options.seconds
    )?;
    Ok(Summary { taken, rpm: options.rpm, exchanges, over_redis })
}

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
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
