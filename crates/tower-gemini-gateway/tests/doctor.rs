//! `gemini-gateway doctor` before a simulated Gemini, and before planted faults.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tower_gemini_gateway::app;
use tower_gemini_sim::{BadRequest, Fault, ServeHandle, Sim, serve};

const KEY: &str = "AIzaSyA-doctor-key-0123456789abcdefghijk";

/// A configuration in a directory of its own, with the key in a file.
struct Setup {
    dir: PathBuf,
}

impl Setup {
    fn new(name: &str, upstream: &str) -> Self {
        let dir = format!("gemini-doctor-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("key"), KEY).unwrap();
        std::fs::write(dir.join("tokens"), "ann:token-of-ann-0123456789abcdef\n").unwrap();
        let config = format!(
            "[[upstream]]\nname = \"up\"\nkind = \"relay\"\n{upstream}\napi_key_file = {:?}\n\
             [auth]\nmode = \"tokens\"\ntokens_file = {:?}\n[timeouts]\nconnect = \"5s\"\n",
            dir.join("key"),
            dir.join("tokens"),
        );
        std::fs::write(dir.join("gateway.toml"), config).unwrap();
        Self { dir }
    }

    async fn run(&self, args: &[&str]) -> (u8, String, String) {
        let config = self.dir.join("gateway.toml");
        run(&[&["doctor", "-c", config.to_str().unwrap()], args].concat()).await
    }

    /// The findings as JSON: the exit code, and a finding by its check.
    async fn json(&self, args: &[&str]) -> (u8, Found) {
        let (code, out, _) = self.run(&[args, &["--json"]].concat()).await;
        (code, Found(serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}"))))
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Found(Value);

impl Found {
    fn check(&self, name: &str) -> &Value {
        let checks = self.0["checks"].as_array().unwrap();
        checks.iter().find(|one| one["check"] == name).unwrap_or_else(|| panic!("{:#}", self.0))
    }

    fn statuses(&self) -> Vec<String> {
        let checks = self.0["checks"].as_array().unwrap().iter();
        checks.map(|one| format!("{} {}", one["check"], one["status"]).replace('"', "")).collect()
    }
}

async fn run(args: &[&str]) -> (u8, String, String) {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (_sender, signals) = mpsc::channel(1);
    let code = app(&args, &mut out, &mut err, signals).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(out), text(err))
}

async fn upstream(sim: &Sim) -> (ServeHandle, String) {
    let server = serve(sim.clone(), ([127, 0, 0, 1], 0).into()).await.unwrap();
    let base = format!("base_url = {:?}", server.url());
    (server, base)
}

/// A server that gives every request this response.
async fn says(response: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("base_url = \"http://{}\"", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let response = response.clone();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(response.as_bytes()).await;
            });
        }
    });
    base
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

#[tokio::test]
async fn all_is_well_before_an_upstream_that_takes_the_key_and_nothing_is_paid() {
    let sim = Sim::quick([]);
    let (_server, base) = upstream(&sim).await;
    let setup = Setup::new("well", &base);
    let (code, found) = setup.json(&[]).await;
    assert_eq!(
        (code, found.statuses()),
        (0, ["config ok", "dns ok", "connect ok", "clock ok", "key ok"].map(str::to_owned).into())
    );
    assert_eq!(found.0["ok"], true);
    let (code, out, _) = setup.run(&[]).await;
    assert!(code == 0 && out.ends_with("All is well.\n"), "{out}");
    assert!(!out.contains(KEY), "{out}");
    assert_eq!(sim.totals().charged, 0);
}

#[tokio::test]
async fn the_canary_is_priced_before_it_is_sent_and_paid_once() {
    let sim = Sim::quick([]);
    let (_server, base) = upstream(&sim).await;
    let setup = Setup::new("canary", &base);
    let (code, out, err) = setup.run(&["--image", "--yes"]).await;
    assert_eq!(code, 0, "{out}");
    assert!(err.starts_with("One image of gemini-3.1-flash-lite-image at 1K costs $0.03"), "{err}");
    assert!(
        out.contains("image    up: an image of gemini-3.1-flash-lite-image at 1K came"),
        "{out}"
    );
    let totals = sim.totals();
    assert_eq!((totals.charged, totals.images_delivered), (1, 1));
    let (_, found) = setup.json(&["--image", "--yes"]).await;
    assert_eq!(found.check("image")["charged"], "yes");
}

#[tokio::test]
async fn an_image_is_never_requested_without_consent() {
    let sim = Sim::quick([]);
    let (_server, base) = upstream(&sim).await;
    let setup = Setup::new("consent", &base);
    // The standard input of a test run may be a terminal: this one asks as the program does there.
    let config = setup.dir.join("gateway.toml");
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_gemini-gateway"));
    program.args(["doctor", "--image", "-c"]).arg(config).stdin(std::process::Stdio::null());
    let output = program.output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("--yes"), "{err}");
    assert_eq!(sim.requests(), 0);
}

#[tokio::test]
async fn wrong_arguments_are_another_exit_code_than_a_problem() {
    let setup = Setup::new("usage", "base_url = \"http://127.0.0.1:1\"");
    for args in [&["--yes"][..], &["--upstream", "nobody"], &["--what"]] {
        let (code, out, err) = setup.run(args).await;
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
    }
    let (code, out, _) = run(&["doctor", "-c", "no-such-file.toml"]).await;
    assert!(code == 1 && out.starts_with("problem  config"), "{out}");
}

#[tokio::test]
async fn a_broken_file_is_reported_with_its_line_and_its_remedy() {
    let setup = Setup::new("broken", "base_url = \"http://127.0.0.1:1\"\n");
    let path = setup.dir.join("gateway.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}[retry]\natempts = 1\n")).unwrap();
    let (code, found) = setup.json(&[]).await;
    assert_eq!(code, 1);
    let config = found.check("config");
    assert!(config["what"].as_str().unwrap().contains("line 13"), "{config}");
    assert!(config["do"][0].as_str().unwrap().contains("attempts"), "{config}");
    std::fs::write(&path, text).unwrap();
    // A key that cannot be read is a problem of the file; the way is checked all the same.
    std::fs::remove_file(setup.dir.join("key")).unwrap();
    let (code, found) = setup.json(&[]).await;
    assert_eq!((code, &found.check("config")["status"]), (1, &"problem".into()));
    assert_eq!(found.check("connect")["problem"], "refused");
}

#[tokio::test]
async fn each_fault_of_the_way_is_named_with_the_key_that_cures_it() {
    let (_server, plain) = upstream(&Sim::quick([])).await;
    let secure = secure_server().await;
    let tunnel = says("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".into()).await;
    let tunnel = tunnel.replace("base_url", "proxy");
    for (name, upstream, check, problem, cure) in [
        ("dns", "base_url = \"https://no-such-host.invalid\"", "dns", "no_name", "base_url"),
        ("closed", "base_url = \"http://127.0.0.1:1\"", "connect", "refused", "base_url"),
        ("plain", &plain.replace("http:", "https:"), "tls", "not_tls", "http://"),
        ("issuer", &secure, "tls", "unknown_issuer", "ca_file"),
        (
            "proxy",
            &format!("base_url = \"https://g.example\"\n{tunnel}"),
            "connect",
            "proxy",
            "proxy",
        ),
    ] {
        let setup = Setup::new(name, upstream);
        let (code, found) = setup.json(&[]).await;
        let finding = found.check(check);
        assert_eq!((code, &finding["problem"]), (1, &problem.into()), "{finding}");
        assert!(finding["do"].to_string().contains(cure), "{finding}");
        assert_eq!(found.check("key")["status"], "skipped");
    }
}

/// A server with a certificate of the tests' CA, for as long as the test runs.
async fn secure_server() -> String {
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[server.tls]\ncert = {:?}\nkey = {:?}\n",
        file("first.pem"),
        file("first.key")
    );
    let gateway = tower_gemini_gateway::start(&config).await.unwrap();
    let base = format!("base_url = {:?}", gateway.url());
    std::mem::forget(gateway);
    base
}

#[tokio::test]
async fn a_private_ca_that_is_named_is_trusted() {
    let secure = secure_server().await;
    let setup = Setup::new("ca", &format!("{secure}\nca_file = {:?}", file("ca.pem")));
    let (_, found) = setup.json(&[]).await;
    assert_eq!(found.check("tls")["status"], "ok", "{:#}", found.0);
}

#[tokio::test]
async fn what_the_service_refuses_is_named_with_its_charge_and_the_key_that_cures_it() {
    let day = Fault::RateLimitDay { retry_after: std::time::Duration::from_secs(2) };
    for (name, script, check, problem, cause, cure) in [
        (
            "key",
            vec![Fault::BadRequest(BadRequest::ApiKeyInvalid)],
            "key",
            "auth",
            "key or region",
            "api_key_file",
        ),
        (
            "region",
            vec![Fault::BadRequest(BadRequest::Location)],
            "key",
            "region",
            "key or region",
            "vertex",
        ),
        (
            "day",
            vec![Fault::None, day],
            "image",
            "rate_limit_day",
            "daily quota used up",
            "[quota] rpd",
        ),
        (
            "busy",
            vec![Fault::None, Fault::Overloaded],
            "image",
            "overloaded",
            "no capacity",
            "[fallback]",
        ),
    ] {
        let sim = Sim::quick(script);
        let (_server, base) = upstream(&sim).await;
        let setup = Setup::new(name, &base);
        let (code, found) = setup.json(&["--image", "--yes"]).await;
        let finding = found.check(check);
        assert_eq!((code, &finding["problem"]), (1, &problem.into()), "{finding}");
        assert_eq!(finding["charged"], "no", "{finding}");
        assert_eq!(finding["cause"], cause, "{finding}");
        assert!(finding["do"].to_string().contains(cure), "{finding}");
        assert!(!found.0.to_string().contains(KEY));
        assert_eq!(sim.totals().charged, 0);
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_reported_with_how_far() {
    let body = r#"{"models":[{"name":"models/gemini-3-pro-image"}]}"#;
    let response = format!(
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let setup = Setup::new("clock", &says(response).await);
    let (code, found) = setup.json(&[]).await;
    let clock = found.check("clock");
    assert_eq!((code, &clock["problem"]), (1, &"clock".into()));
    assert!(clock["what"].as_str().unwrap().ends_with("s ahead of the upstream's"), "{clock}");
    assert_eq!(found.check("key")["status"], "ok");
}

#[tokio::test]
async fn an_upstream_that_hangs_up_is_a_problem_and_no_panic() {
    let setup = Setup::new("hangup", &says(String::new()).await);
    let (code, found) = setup.json(&[]).await;
    assert_eq!((code, &found.check("key")["status"]), (1, &"problem".into()));
}
