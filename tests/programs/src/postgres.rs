//! A Postgres server of a test's own.

#![allow(clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Set to anything, only programs in `PATH` are found: not those in Debian's directories of
/// Postgres.
const ONLY_IN_PATH: &str = "TEST_PROGRAMS_ONLY_IN_PATH";

/// A server on a free port of the loopback interface, which is stopped and removed with this value.
///
/// It does without the flushes of the disk that survive a crash of the machine.
#[derive(Debug)]
pub struct Server {
    child: Child,
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    user: Option<(u32, u32)>,
}

/// Starts a server. `None`, said aloud, where the program is missing.
///
/// # Panics
///
/// Where the program is there and does not start.
#[must_use]
pub fn start() -> Option<Server> {
    let Some(bin) = find() else {
        super::skip("postgres", "`apt-get install postgresql`");
        return None;
    };
    Some(Server::new(bin).unwrap_or_else(|error| panic!("postgres does not start: {error}")))
}

/// The directory of its programs. Debian keeps them out of `PATH`.
fn find() -> Option<PathBuf> {
    let mut versions = Vec::new();
    if std::env::var_os(ONLY_IN_PATH).is_none() {
        let found = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        versions.extend(found.map(|version| version.path().join("bin")));
        versions.sort();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(versions.into_iter().rev());
    // Its other programs are beside what a link leads to.
    let program = super::find_in(dirs, &["postgres"])?.canonicalize().ok()?;
    let bin = program.parent()?;
    bin.join("initdb").is_file().then(|| bin.to_owned())
}

impl Server {
    fn new(bin: PathBuf) -> io::Result<Self> {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let (process, n) = (std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("tower-gemini-postgres-{process}-{n}"));
        fs::create_dir_all(&dir)?;
        // Whoever owns a new directory is who we are: postgres refuses to run as root.
        let user = (fs::metadata(&dir)?.uid() == 0).then(nobody).transpose()?;
        if let Some((user, group)) = user {
            chown(&dir, Some(user), Some(group))?;
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let data = dir.join("data");
        let mut initdb = command(&bin, "initdb", user);
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8"]);
        let made = initdb.args(["--no-locale", "--pgdata"]).arg(&data).output()?;
        if !made.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        let child = spawn(&bin, &data, port, user)?;
        let server = Self { child, bin, dir, port, user };
        server.await_ready();
        Ok(server)
    }

    /// Where it listens: anybody is its superuser.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Runs SQL, and returns what it selects, a row a line.
    ///
    /// # Panics
    ///
    /// Where it fails.
    #[must_use]
    pub fn run(&self, sql: &str) -> String {
        let mut psql = command(&self.bin, "psql", self.user);
        let ran = psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", &self.url(), "-c", sql]);
        let ran = ran.output().unwrap_or_else(|error| panic!("psql does not run: {error}"));
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).trim().to_owned()
    }

    /// Stops it in the middle of whatever it does (`true`), or lets it go on.
    pub fn pause(&self, pauses: bool) {
        // Its backends, too: they answer by themselves.
        let signal = if pauses { "-STOP" } else { "-CONT" };
        let pid = self.child.id().to_string();
        let _ = Command::new("pkill").args([signal, "-P", &pid]).status();
        let _ = Command::new("kill").args([signal, &pid]).status();
    }

    /// Ends it without a checkpoint, as a crash would. What was committed is there after the
    /// [restart](Self::restart).
    pub fn crash(&mut self) {
        let _ = Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port.
    ///
    /// # Panics
    ///
    /// Where it does not start.
    pub fn restart(&mut self) {
        let again = spawn(&self.bin, &self.dir.join("data"), self.port, self.user);
        self.child = again.unwrap_or_else(|error| panic!("postgres does not start: {error}"));
        self.await_ready();
    }

    fn await_ready(&self) {
        let port = self.port.to_string();
        for _ in 0..600 {
            let mut asks = command(&self.bin, "pg_isready", self.user);
            let asks = asks.args(["-q", "-h", "127.0.0.1", "-p", &port]);
            if asks.status().is_ok_and(|status| status.success()) {
                return;
            }
            // A bounded wait for another process: no runtime's clock moves it.
            let (_sender, receiver) = mpsc::channel::<()>();
            let _ = receiver.recv_timeout(Duration::from_millis(50));
        }
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        panic!("postgres does not answer: {log}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.pause(false);
        self.crash();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// An account without rights.
fn nobody() -> io::Result<(u32, u32)> {
    let id = |of: &str| {
        let printed = Command::new("id").args([of, "nobody"]).output()?;
        let printed = String::from_utf8_lossy(&printed.stdout).trim().parse();
        printed.map_err(|_| io::Error::other("there is no user `nobody` to run it as"))
    };
    Ok((id("-u")?, id("-g")?))
}

fn command(bin: &Path, program: &str, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(bin.join(program));
    // The user need not be able to read the present one.
    command.current_dir("/").stdin(Stdio::null());
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
    command
}

fn spawn(bin: &Path, data: &Path, port: u16, user: Option<(u32, u32)>) -> io::Result<Child> {
    let dir = data.parent().unwrap_or(data);
    let log = fs::File::create(dir.join("log"))?;
    let mut postgres = command(bin, "postgres", user);
    postgres.arg("-D").arg(data).args(["-p", &port.to_string()]);
    for setting in ["listen_addresses=127.0.0.1", "fsync=off", "shared_buffers=16MB"] {
        postgres.args(["-c", setting]);
    }
    postgres.arg("-c").arg(format!("unix_socket_directories={}", dir.display()));
    postgres.stdout(Stdio::null()).stderr(log).spawn()
}
