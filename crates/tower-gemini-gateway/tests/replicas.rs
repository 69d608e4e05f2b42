//! Two gateways on one server under load, with clients that go from one to the other: nothing is
//! paid twice, every resend gets its image, and quotas and caps hold for both together.
//!
//! The figures are printed: `cargo test -p tower-gemini-gateway --test replicas -- --nocapture`.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Gateway, Redis, Scratch, until};
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tower_gemini_sim::{Latency, LedgerSnapshot, Sim, serve};

/// A drawing takes this long.
const DRAWING: Duration = Duration::from_secs(2);
/// Requests that are under way at once.
const AT_ONCE: usize = 32;
const CALLERS: usize = 6;

/// Calls of each model, and what limits them.
const BY_MINUTE: (&str, usize) = ("gemini-3.1-flash-image", 120);
const RPM: usize = 70;
const BY_DAY: (&str, usize) = ("gemini-3.1-flash-lite-image", 120);
const RPD: usize = 80;
const BY_MONEY: (&str, usize) = ("gemini-3-pro-image", 120);
const CAP_USD: f64 = 16.0;

/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Manner {
    Patient,
    /// Hangs up, and asks the other gateway after the pause of an SDK.
    HangsUp,
    /// Hangs up and asks the other gateway at once, three times, with the mark of openai's clients.
    Impatient,
    /// States a deadline that is shorter than the drawing, and asks the other gateway then.
    StatesDeadline,
    /// Hangs up when its response is in the buffers of its socket, without reading it, and asks the
    /// other gateway with the mark of openai's clients.
    NeverReads,
    /// Asks both gateways at once with one `Idempotency-Key`, and once more later.
    Keyed,
}

const MANNERS: [Manner; 6] = [
    Manner::Patient,
    Manner::HangsUp,
    Manner::Impatient,
    Manner::StatesDeadline,
    Manner::NeverReads,
    Manner::Keyed,
];

/// What the last request of a call, or each one with a key, came to.
#[derive(Debug)]
struct Outcome {
    manner: Manner,
    tag: String,
    responses: Vec<Response>,
}

/// The gateways, each in its turn, and what is behind them.
struct RoundRobin {
    gateways: [Gateway; 2],
    turn: AtomicUsize,
    sim: Sim,
}

type Response = (u16, String);

impl RoundRobin {
    /// One gateway and the other.
    fn next(&self) -> (&Gateway, &Gateway) {
        let [first, second] = &self.gateways;
        match self.turn.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => (first, second),
            _ => (second, first),
        }
    }

    /// One call of one client.
    async fn call(&self, model: &str, n: usize) -> Outcome {
        let (tag, manner) = (format!("{model}-{n}"), MANNERS[n % MANNERS.len()]);
        let headers = format!(
            "x-goog-api-key: caller-{}\r\nx-sim-call: {tag}\r\n",
            n / MANNERS.len() % CALLERS
        );
        let with = |more: &str| format!("{headers}{more}\r\n");
        // While its image is drawn, unless a response comes first.
        let hang_up = async |gateway: &Gateway, headers: &str| -> Option<Response> {
            let drawn = async {
                until(async || self.sim.ledger().sends(&tag) > 0).await;
                sleep(DRAWING / 10).await;
            };
            tokio::select! {
                response = gateway.ask(model, headers, &tag) => Some(response),
                () = drawn => None,
            }
        };
        let (one, other) = self.next();
        let responses = match manner {
            Manner::Patient => vec![one.ask(model, &headers, &tag).await],
            Manner::HangsUp => match hang_up(one, &headers).await {
                Some(response) => vec![response],
                None => {
                    sleep(Duration::from_millis(500)).await;
                    vec![other.ask(model, &headers, &tag).await]
                }
            },
            Manner::Impatient => {
                let mark = |sends: usize| with(&format!("x-stainless-retry-count: {sends}"));
                let mut response = None;
                for (resends, gateway) in [one, other, one].into_iter().enumerate() {
                    response = hang_up(gateway, &mark(resends)).await;
                    if response.is_some() {
                        break;
                    }
                }
                match response {
                    Some(response) => vec![response],
                    None => vec![other.ask(model, &mark(3), &tag).await],
                }
            }
            Manner::StatesDeadline => {
                let stated = with("x-server-timeout: 1");
                let first = one.ask(model, &stated, &tag).await;
                vec![first, other.ask(model, &headers, &tag).await]
            }
            Manner::NeverReads => {
                let mark = |sends: usize| with(&format!("x-stainless-retry-count: {sends}"));
                let stream = one.send(model, &mark(0), &tag).await;
                // All of a small response is in the socket once its beginning is.
                let _ = timeout(Duration::from_secs(60), stream.peek(&mut [0])).await;
                sleep(DRAWING / 20).await;
                drop(stream);
                vec![other.ask(model, &mark(1), &tag).await]
            }
            Manner::Keyed => {
                let headers = with(&format!("idempotency-key: key-{tag}"));
                let (first, second) =
                    tokio::join!(one.ask(model, &headers, &tag), other.ask(model, &headers, &tag));
                vec![first, second, other.ask(model, &headers, &tag).await]
            }
        };
        Outcome { manner, tag, responses }
    }

    /// Calls from clients that are so many at once, until all are made.
    async fn all(&self, calls: Vec<(&str, usize)>) -> Vec<Outcome> {
        let next = AtomicUsize::new(0);
        let client = async || {
            let mut outcomes = Vec::new();
            while let Some((model, n)) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
                outcomes.push(self.call(model, *n).await);
            }
            outcomes
        };
        join_all((0..AT_ONCE).map(|_| client())).await.into_iter().flatten().collect()
    }
}

fn config(store: &str, upstream: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nstore = {:?}\nstore_restart_hold = \"0s\"\n\
         [[upstream]]\nname = \"sim\"\nkind = \"relay\"\nbase_url = \"{upstream}\"\n\
         charge_rules = \"google\"\nproject = \"shared\"\n\
         [quota]\nlongest_wait = \"1s\"\n[quota.model.{:?}]\nrpm = {RPM}\n\
         [quota.model.{:?}]\nrpd = {RPD}\n\
         [spending]\nper_day = {CAP_USD:?}\nassume_drafts = 0\n",
        store, BY_MINUTE.0, BY_DAY.0,
    )
}

/// The most requests of a model that arrived within 60 s of each other.
fn most_in_a_minute(ledger: &LedgerSnapshot, model: &str) -> usize {
    let requests = ledger.requests().iter().filter(|request| &*request.model == model);
    let times: Vec<_> = requests.map(|request| request.received_at).collect();
    let from = |start: &Duration| {
        let within = |at: &&Duration| *at >= start && **at < *start + Duration::from_secs(60);
        times.iter().filter(within).count()
    };
    times.iter().map(from).max().unwrap_or(0)
}

/// Paid once, and then delivered; or nothing was sent, and the refusal says so.
fn judge(outcome: &Outcome, ledger: &LedgerSnapshot) {
    let Outcome { manner, tag, responses } = outcome;
    // The time that it stated was over: the only 424 that is right, and the next one has the image.
    let (first, resends) = responses.split_at(1);
    let is_late = *manner == Manner::StatesDeadline && first[0].0 == 424;
    let responses = if is_late { resends } else { responses };
    let (sends, charges) = (ledger.sends(tag), ledger.charges(tag));
    let statuses: Vec<_> = responses.iter().map(|(status, _)| *status).collect();
    let said = || responses.iter().map(|(_, text)| &text[..text.len().min(1_500)]);
    let context = || format!("{manner:?} {tag} {statuses:?}: {:?}", said().collect::<Vec<_>>());
    assert!(charges <= 1, "paid {charges} times: {}", context());
    // By a quota or a cap; too early, for a resend; or while it waited for them.
    let is_refused = |(status, text): &&Response| {
        *status == 429 || ["RETRIED_TOO_EARLY", "NOT_SENT"].iter().any(|why| text.contains(why))
    };
    let refused = responses.iter().filter(is_refused).count();
    let delivered = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(delivered + refused, responses.len(), "{}", context());
    // A key's first request may have been refused before another one was admitted.
    assert_eq!((delivered > 0, sends > 0), (charges == 1, charges == 1), "{}", context());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_pay_for_no_image_twice_and_hold_quota_and_cap_together() {
    let dir = Scratch::new("replicas-redis");
    let Some(redis) = Redis::start(&dir).await else { return };
    pay_for_no_image_twice("redis", &redis.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_on_postgres_pay_for_no_image_twice_and_hold_quota_and_cap_together() {
    let Some(postgres) = test_programs::postgres::start() else { return };
    pay_for_no_image_twice("postgres", &postgres.url()).await;
}

async fn pay_for_no_image_twice(name: &str, store: &str) {
    let dirs = ["a", "b"].map(|of| Scratch::new(&format!("replicas-{name}-{of}")));
    let sim = Sim::builder().latency(Latency::fixed(DRAWING)).tiny_images(true).build();
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let config = config(store, &upstream.url());
    let gateways = [&dirs[0], &dirs[1]].map(|dir| Gateway::start(dir, &config));
    let balancer = RoundRobin { gateways, turn: AtomicUsize::new(0), sim: sim.clone() };

    let began = Instant::now();
    let calls = |(model, calls): (&'static str, usize)| (0..calls).map(move |n| (model, n));
    let mut outcomes =
        balancer.all(calls(BY_MINUTE).zip(calls(BY_DAY)).flat_map(|(a, b)| [a, b]).collect()).await;
    outcomes.extend(balancer.all(calls(BY_MONEY).collect()).await);
    let took = began.elapsed();
    let settled = async || sim.ledger().requests().iter().all(|request| request.ended_at.is_some());
    until(settled).await;

    let (ledger, totals) = (sim.ledger(), sim.totals());
    let usd = totals.cost_microusd as f64 / 1e6;
    let received = |model: &str| ledger.requests().iter().filter(|r| &*r.model == model).count();
    let (by_minute, by_day) = (most_in_a_minute(&ledger, BY_MINUTE.0), received(BY_DAY.0));
    println!(
        "{} calls of {CALLERS} callers through two gateways in {:.1} s: {} sent, {} paid, ${usd:.2}",
        outcomes.len(),
        took.as_secs_f64(),
        totals.requests,
        totals.charged
    );
    println!("| limit | at most | came to |\n| --- | --- | --- |");
    println!("| requests of a model in any 60 s | {RPM} | {by_minute} |");
    println!("| requests of a model in the day | {RPD} | {by_day} |");
    println!("| spent in the day | ${CAP_USD:.2} | ${usd:.2} |");
    println!(
        "\n| client | calls | responses | paid | paid twice |\n| --- | --- | --- | --- | --- |"
    );
    for manner in MANNERS {
        let of: Vec<_> = outcomes.iter().filter(|outcome| outcome.manner == manner).collect();
        let mut statuses = BTreeMap::<u16, usize>::new();
        for (status, _) in of.iter().flat_map(|outcome| &outcome.responses) {
            *statuses.entry(*status).or_default() += 1;
        }
        let charges = of.iter().map(|outcome| ledger.charges(&outcome.tag));
        let twice = charges.clone().filter(|charges| *charges > 1).count();
        println!(
            "| {manner:?} | {} | {statuses:?} | {} | {twice} |",
            of.len(),
            charges.sum::<usize>()
        );
    }

    for outcome in &outcomes {
        judge(outcome, &ledger);
    }
    assert_eq!(ledger.resent_after_charge(), BTreeMap::new());
    assert!(by_minute <= RPM && by_day <= RPD && usd <= CAP_USD);
    // The limits were reached: what held was not the lack of calls.
    let refused = |(model, calls): (&str, usize)| received(model) < calls;
    assert!(refused(BY_MINUTE) && refused(BY_DAY) && refused(BY_MONEY));
}
