//! Alerts end to end: the gateway over the simulator, and a receiver on a socket of its own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State as Extracted;
use axum::routing::{get, post};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tower_gemini::clock::SystemClock;
use tower_gemini_sim::{Fault, Sim};

use super::deliver::{Channel, advice};
use super::watch::watch as watch_for_alerts;
use crate::config::{self, AlertKind, Config, named_keys};
use crate::handler::handle;
use crate::snapshot::Snapshot;
use crate::state::State;
use crate::state::tests::Scratch;

const PRO: &str = "gemini-3-pro-image";
/// The path of the receiver.
const SECRET: &str = "/services/T0/B0/SENTINEL";

/// A receiver of alerts, which also serves a status feed.
struct Receiver {
    addr: SocketAddr,
    alerts: mpsc::UnboundedReceiver<Value>,
    feed: Arc<Mutex<String>>,
    _server: JoinSet<()>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, (sender, alerts)) = (listener.local_addr().unwrap(), mpsc::unbounded_channel());
        let feed = Arc::new(Mutex::new("[]".to_owned()));
        let shown = feed.clone();
        let app = Router::new()
            .route(
                SECRET,
                post(
                    async |Extracted(sender): Extracted<mpsc::UnboundedSender<_>>, body: String| {
                        sender.send(serde_json::from_str::<Value>(&body).unwrap()).unwrap();
                        StatusCode::OK
                    },
                ),
            )
            .route("/incidents.json", get(async move || shown.lock().unwrap().clone()))
            .with_state(sender);
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { addr, alerts, feed, _server: server }
    }

    /// The next alert: its kind, state and subject, and all of it.
    async fn next(&mut self) -> (String, Value) {
        let alert = timeout(Duration::from_secs(30), self.alerts.recv()).await;
        let alert = alert.expect("an alert").unwrap();
        let field = |name: &str| alert[name].as_str().unwrap().to_owned();
        let text = field("text");
        assert!(text.starts_with("gemini-gateway, "), "{text}");
        assert!(!field("advice").is_empty() && !field("severity").is_empty(), "{alert}");
        (format!("{} {} {}", field("kind"), field("state"), field("subject")), alert)
    }
}

/// A gateway over the simulator, watched.
struct Watched {
    snapshot: Arc<Snapshot>,
    state: State,
    next: watch::Sender<Arc<Snapshot>>,
    calls: usize,
    _watch: JoinSet<()>,
}

impl Watched {
    fn start(sim: &Sim, receiver: &Receiver, toml: &str, state: State) -> Self {
        let addr = receiver.addr;
        let toml = format!("{toml}\n[alerts]\nwebhook = \"http://{addr}{SECRET}\"\n");
        let config = Config::parse(&toml, "gateway.toml").unwrap();
        let client = |_: &config::Upstream| Ok(sim.service());
        let snapshot = Snapshot::assemble(client, SystemClock, &config, None, state.clone());
        let snapshot = Arc::new(snapshot.unwrap());
        let next = watch::Sender::new(snapshot.clone());
        let mut watching = JoinSet::new();
        watching.spawn(watch_for_alerts(next.subscribe(), Duration::from_millis(10)));
        Self { snapshot, state, next, calls: 0, _watch: watching }
    }

    /// Asks for so many images, one after the other, and returns the statuses.
    async fn ask(&mut self, calls: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..calls {
            self.calls += 1;
            let body =
                format!(r#"{{"contents":[{{"parts":[{{"text":"apple {}"}}]}}]}}"#, self.calls);
            let request = Request::post(format!("/v1beta/models/{PRO}:generateContent"))
                .header("x-goog-api-key", "AIzaSyA-alert-key-0123456789abcdefghijk")
                .body(Body::from(body));
            let answer = handle(self.snapshot.clone(), Instant::now(), request.unwrap()).await;
            let (parts, body) = answer.into_parts();
            body.collect().await.unwrap();
            statuses.push(parts.status.as_u16());
        }
        statuses
    }

    /// The state cannot be written, or can again.
    fn store_fails(&self, problem: Option<&str>) {
        self.state.set_problem(problem);
    }
}

async fn state(name: &str) -> (Scratch, State) {
    let scratch = Scratch::new(name);
    let state = State::open(&scratch.config()).await.unwrap();
    (scratch, state)
}

#[tokio::test]
async fn a_hundred_calls_at_a_quota_are_one_alert_and_a_failing_store_is_told_from_begin_to_end() {
    let (_scratch, state) = state("alert-quota").await;
    let (sim, mut receiver) = (Sim::quick([]), Receiver::start().await);
    let quota = "[quota]\nrpm = 10\nlongest_wait = \"2s\"\n[retry]\nattempts = 1\n";
    let mut gateway = Watched::start(&sim, &receiver, quota, state);
    let statuses = gateway.ask(100).await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 10);
    let (what, alert) = receiver.next().await;
    assert!(what.starts_with(&format!("quota firing {PRO} of project ")), "{what}");
    assert!(what.ends_with("rpm"), "{what}");
    assert!(alert["what"].as_str().unwrap().contains("of 10 rpm are used"), "{alert}");
    assert!(alert["advice"].as_str().unwrap().contains("quota.rpm"), "{alert}");
    // Whatever else the hundred calls led to would come first.
    gateway.store_fails(Some("the disk is full"));
    let (what, alert) = receiver.next().await;
    assert_eq!(what, "store firing ");
    assert!(alert["what"].as_str().unwrap().contains("the disk is full"), "{alert}");
    assert_eq!(alert["severity"], "critical");
    gateway.store_fails(None);
    assert_eq!(receiver.next().await.0, "store resolved ");
}

#[tokio::test]
async fn an_outage_is_told_when_it_begins_and_when_it_ends() {
    let sim = Sim::quick([const { Fault::Overloaded }; 5]);
    let mut receiver = Receiver::start().await;
    let each_by_itself = "[retry]\nattempts = 1\nprobe_every = \"0s\"\n";
    let mut gateway = Watched::start(&sim, &receiver, each_by_itself, State::default());
    assert_eq!(gateway.ask(5).await, [503; 5]);
    let (what, alert) = receiver.next().await;
    assert_eq!(what, format!("outage firing {PRO}"));
    assert!(alert["what"].as_str().unwrap().contains("(no capacity)"), "{alert}");
    assert_eq!(gateway.ask(1).await, [200]);
    assert_eq!(receiver.next().await.0, format!("outage resolved {PRO}"));
}

#[tokio::test]
async fn a_cap_is_told_when_most_is_spent_and_when_it_stops_a_call() {
    let (sim, mut receiver) = (Sim::quick([]), Receiver::start().await);
    let cap = "[spending]\nper_day = 0.5\nmode = \"expected\"\n[retry]\nattempts = 1\n";
    let mut gateway = Watched::start(&sim, &receiver, cap, State::default());
    let mut told = Vec::new();
    while gateway.ask(1).await == [200] {}
    while told.len() < 2 {
        told.push(receiver.next().await.0);
    }
    told.sort_unstable();
    assert_eq!(told, ["cap firing per_day", "cap firing per_day reached"]);
}

#[tokio::test]
async fn a_day_that_the_service_closes_is_told() {
    let sim = Sim::quick([Fault::RateLimitDay { retry_after: Duration::from_secs(2) }]);
    let mut receiver = Receiver::start().await;
    let once = "[retry]\nattempts = 1\n";
    let mut gateway = Watched::start(&sim, &receiver, once, State::default());
    assert_eq!(gateway.ask(1).await, [429]);
    let (what, alert) = receiver.next().await;
    assert!(what.starts_with(&format!("day_spent firing {PRO} of project ")), "{what}");
    assert!(alert["what"].as_str().unwrap().contains("as the service says"), "{alert}");
}

#[tokio::test]
async fn an_incident_of_the_feed_is_told_from_begin_to_end() {
    let mut receiver = Receiver::start().await;
    let feed = |incident: &str| format!(r#"[{{"id":"i1",{incident}"external_desc":"Vertex AI"}}]"#);
    *receiver.feed.lock().unwrap() = feed("");
    let gateway = Watched::start(&Sim::quick([]), &receiver, "", State::default());
    // In place of five minutes, a reload: the feed is read at once.
    let reload = || {
        let toml = format!(
            "[alerts]\nwebhook = \"http://{0}{SECRET}\"\nstatus_feed = \"http://{0}/incidents.json\"\n",
            receiver.addr
        );
        let config = Config::parse(&toml, "gateway.toml").unwrap();
        let next = Snapshot::build(&config, Some(&gateway.snapshot)).unwrap();
        gateway.next.send_replace(Arc::new(next));
    };
    reload();
    let told = receiver.alerts.recv().await.unwrap();
    assert_eq!((&told["kind"], &told["state"]), (&"incident".into(), &"firing".into()), "{told}");
    *receiver.feed.lock().unwrap() = feed(r#""end":"2026-11-30T00:00:00Z","#);
    reload();
    assert_eq!(receiver.next().await.0, "incident resolved i1");
}

#[tokio::test]
async fn a_list_of_tokens_that_admits_nobody_is_told() {
    let (mut receiver, scratch) = (Receiver::start().await, Scratch::new("alert-tokens"));
    let dir = scratch.config().state_dir.unwrap();
    std::fs::create_dir_all(&dir).unwrap();
    let (tokens, key) = (dir.join("tokens"), dir.join("key"));
    std::fs::write(&tokens, "ann:a-token-of-a-caller").unwrap();
    std::fs::write(&key, "AIzaSyA-alert-key-0123456789abcdefghijk").unwrap();
    let toml = format!(
        "[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\napi_key_file = {key:?}\n[auth]\n\
         mode = \"tokens\"\ntokens_file = {tokens:?}\n"
    );
    let _gateway = Watched::start(&Sim::quick([]), &receiver, &toml, State::default());
    std::fs::write(&tokens, "no list").unwrap();
    assert_eq!(receiver.next().await.0, "nobody_admitted firing ");
    std::fs::write(&tokens, "ann:a-token-of-a-caller").unwrap();
    assert_eq!(receiver.next().await.0, "nobody_admitted resolved ");
}

// The program itself, and a model that has retired for good.
#[tokio::test]
async fn a_retired_model_of_the_configuration_is_told_once_and_the_url_stays_secret() {
    let (mut receiver, scratch) = (Receiver::start().await, Scratch::new("alert-url"));
    let file = scratch.config().state_dir.unwrap();
    std::fs::create_dir_all(&file).unwrap();
    let file = file.join("webhook");
    std::fs::write(&file, format!("http://{}{SECRET}\n", receiver.addr)).unwrap();
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[fallback]\nmodels = [\"gemini-2.5-flash-image\"]\n\
         [alerts]\nwebhook_file = {file:?}\n"
    );
    let gateway = crate::start(&config).await.unwrap();
    let (what, alert) = receiver.next().await;
    assert_eq!(what, "retirement firing gemini-2.5-flash-image");
    assert!(alert["advice"].as_str().unwrap().contains("gemini-3.1-flash-image"), "{alert}");
    let snapshot = gateway.gateway().snapshot();
    let get = Request::get("/status.json").body(Body::empty()).unwrap();
    let status = handle(snapshot.clone(), Instant::now(), get).await;
    let status = status.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["alerts"]["problem"], Value::Null);
    assert!(!format!("{status} {:?}", snapshot.config()).contains("SENTINEL"));
    assert_eq!(gateway.shutdown().await, 0);
}

#[tokio::test]
async fn an_error_of_delivery_says_why_and_not_where() {
    for (path, says) in [("/nowhere/SENTINEL", "it answered 404"), ("", "refused")] {
        let receiver = Receiver::start().await;
        let url = match path {
            // Nothing listens there.
            "" => "http://127.0.0.1:1/SENTINEL".to_owned(),
            path => format!("http://{}{path}", receiver.addr),
        };
        let config = Config::parse(&format!("[alerts]\nwebhook = \"{url}\"\n"), "f").unwrap();
        let channel = Channel::build(&config.alerts, |_| None).unwrap().unwrap();
        let failure = channel.post("{}".into()).await.unwrap_err().to_string();
        assert!(failure.contains(says), "{failure}");
        assert!(!format!("{failure} {channel:?}").contains("SENTINEL"));
    }
}

#[test]
fn every_kind_has_advice_that_names_keys_of_the_file() {
    for kind in AlertKind::ALL {
        assert!(advice(kind).len() > 40, "{kind:?}");
        assert!(!named_keys(advice(kind)).is_empty(), "{kind:?} names no key");
    }
}
