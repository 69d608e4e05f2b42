//! Every pair of layers: which orders compile, which fail before anything is sent, and which are
//! fine both ways. The table in the docs is generated here.

use std::future::{Ready, ready};
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::util::ServiceFn;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_gemini::body::WireBody;
use tower_gemini::model_fallback::Chain;
use tower_gemini::peak_hour_router::Schedule;
use tower_gemini::quota_guard::Limits;
use tower_gemini::*;

use crate::harness::{Scenario, in_paused_time};

type Client = ServiceFn<fn(Request<WireBody>) -> Ready<io::Result<Response<Full<Bytes>>>>>;
type Attempts = ClassifyGeminiError<Client>;
type Calls = SingleAttempt<Attempts>;
type Json = final_image_extract::FinalImageJson<Calls>;
type Collected = CollectRequest<Json>;

/// Whether `L` can be put over `S`.
struct Pair<L, S>(PhantomData<(L, S)>);

trait DoesNotCompile {
    const COMPILES: bool = false;
}

impl<L, S> DoesNotCompile for Pair<L, S> {}

impl<L: Layer<S>, S> Pair<L, S> {
    /// Preferred to the trait's where the bound holds.
    const COMPILES: bool = true;
}

macro_rules! rows {
    ($($outer:ty),* ; $inners:tt) => { [$(row!($outer; $inners)),*] };
}

macro_rules! row {
    ($outer:ty; ($($inner:ty),*)) => { [$(Pair::<$outer, $inner>::COMPILES),*] };
}

const NAMES: [&str; 15] = [
    "AnswerErrors",
    "Observe",
    "CollectRequest",
    "KeepPaid",
    "FinalImageExtract",
    "ThoughtSignatures",
    "PeakHourRouter",
    "ModelFallback",
    "ResolutionFallback",
    "JitteredRetry",
    "Spending",
    "QuotaGuard",
    "AttemptTimeout",
    "ClassifyGeminiError",
    "ResumeInteractions",
];

/// `COMPILES[outer][inner]`: whether the outer layer can stand directly over the inner one, which
/// stands on what it needs.
fn compiles() -> [[bool; 15]; 15] {
    rows!(
        AnswerErrorsLayer, ObserveLayer, CollectRequestLayer, KeepPaidLayer, FinalImageExtractLayer,
        ThoughtSignaturesLayer, PeakHourRouterLayer, ModelFallbackLayer, ResolutionFallbackLayer,
        JitteredRetryLayer, SpendingLayer, QuotaGuardLayer, AttemptTimeoutLayer,
        ClassifyGeminiErrorLayer, ResumeInteractionsLayer;
        (
            AnswerErrors<Collected>, Observe<Collected>, Collected, KeepPaid<Json>,
            FinalImageExtract<Calls>, ThoughtSignatures<Calls>, PeakHourRouter<Calls>,
            ModelFallback<Calls>, ResolutionFallback<Calls>, JitteredRetry<Attempts>,
            Spending<Attempts>, QuotaGuard<Attempts>, AttemptTimeout<Attempts>, Attempts,
            ResumeInteractions<Client>
        )
    )
}

/// How often something was sent.
static SENT: AtomicUsize = AtomicUsize::new(0);

fn client() -> Client {
    const IMAGE: &str = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#;
    service_fn(|_| {
        SENT.fetch_add(1, Ordering::Relaxed);
        ready(Ok(Response::new(Full::from(IMAGE))))
    })
}

/// What a stack that compiles makes of a call: whether it is refused before anything is sent.
async fn is_refused<S, T>(stack: S) -> bool
where
    S: Service<Request<Full<Bytes>>, Response = T, Error = Error>,
{
    let before = SENT.load(Ordering::Relaxed);
    match stack.oneshot(Scenario::new([]).request("order")).await {
        Ok(_) => {
            assert_eq!(SENT.load(Ordering::Relaxed) - before, 1);
            false
        }
        Err(error) => {
            assert!(error.is_misplaced_layer(), "{error}");
            assert!(error.to_string().contains("; put "), "it says what to do: {error}");
            assert_eq!(SENT.load(Ordering::Relaxed), before, "nothing was sent");
            true
        }
    }
}

/// The same where the inner stack turns its error into a response.
async fn answers_misplaced<S, T>(stack: S) -> bool
where
    S: Service<Request<Full<Bytes>>, Response = Response<T>, Error = Error>,
{
    let before = SENT.load(Ordering::Relaxed);
    let response = stack.oneshot(Scenario::new([]).request("order")).await.unwrap();
    assert_eq!(SENT.load(Ordering::Relaxed), before, "nothing was sent");
    !response.status().is_success()
}

/// The pairs of one stage, outer and inner by their place in `NAMES`, that are refused at run time.
async fn refused() -> Vec<(usize, usize)> {
    let (collect, single) = (CollectRequestLayer::new(), SingleAttemptLayer::new());
    let classify = ClassifyGeminiErrorLayer::new();
    let signatures = ThoughtSignaturesLayer::new();
    let router = PeakHourRouterLayer::new(Schedule::never());
    let fallback = ModelFallbackLayer::new(Chain::new(["gemini-3-pro-image"]));
    let ladder = ResolutionFallbackLayer::new();
    let (spending, quota) =
        (SpendingLayer::new(), QuotaGuardLayer::new(Limits::unlimited().rpm(1_000)));
    let timeout = AttemptTimeoutLayer::new();
    let mut refused = Vec::new();
    macro_rules! calls {
        ($(($o:expr, $outer:expr)),*; $inners:tt) => { $(calls!(@ $o, $outer; $inners);)* };
        (@ $o:expr, $outer:expr; ($(($i:expr, $inner:expr)),*)) => {$(
            let layers = (collect, $outer.clone(), $inner.clone(), single, classify.clone());
            if is_refused(compose(layers, client())).await {
                refused.push(($o, $i));
            }
        )*};
    }
    macro_rules! attempts {
        ($(($o:expr, $outer:expr)),*; $inners:tt) => { $(attempts!(@ $o, $outer; $inners);)* };
        (@ $o:expr, $outer:expr; ($(($i:expr, $inner:expr)),*)) => {$(
            let layers = (collect, single, $outer.clone(), $inner.clone(), classify.clone());
            if is_refused(compose(layers, client())).await {
                refused.push(($o, $i));
            }
        )*};
    }
    calls!((5, signatures), (6, router), (7, fallback), (8, ladder);
        ((5, signatures), (6, router), (7, fallback), (8, ladder)));
    // A whole stack as the client of another.
    let json = || FinalImageExtractLayer::json();
    let stack = || compose((collect, json(), single, classify.clone()), client());
    let outer = || (collect, single, classify.clone());
    let answering = compose(outer(), AnswerErrorsLayer::new().layer(stack()));
    let resume = || (outer(), ResumeInteractionsLayer::new());
    let resuming = compose(resume(), AnswerErrorsLayer::new().layer(stack()));
    for (outer, inner, is_refused) in [
        (13, 0, answers_misplaced(answering).await),
        (13, 1, is_refused(compose(outer(), ObserveLayer::new().layer(stack()))).await),
        (13, 2, is_refused(compose(outer(), stack())).await),
        (14, 0, answers_misplaced(resuming).await),
        (14, 1, is_refused(compose(resume(), ObserveLayer::new().layer(stack()))).await),
        (14, 2, is_refused(compose(resume(), stack())).await),
    ] {
        if is_refused {
            refused.push((outer, inner));
        }
    }
    attempts!((10, spending), (11, quota), (12, timeout); ((10, spending), (11, quota), (12, timeout)));
    refused
}

/// Why an order that is not the recommended one is fine, by outer and inner layer.
const FINE: &[(usize, usize, &str)] = &[
    (1, 0, "Observe then sees responses where it would have seen errors"),
    (1, 1, "the outer one observes: a call is reported once"),
    (3, 3, "the outer one keeps what the inner one replays"),
    (5, 5, "the outer one finds nothing missing"),
    (6, 5, "signatures belong to the conversation, whichever model leads"),
    (7, 5, "signatures are checked for each target"),
    (8, 5, "signatures are checked for each size"),
    (8, 7, "\"model first\": every model is asked before a smaller size"),
    (10, 10, "two accounts: both must allow the attempt"),
    (11, 10, "money is reserved after the turn has come: a quota may wait in vain"),
    (11, 11, "two quotas: both must allow the attempt"),
    (12, 12, "the shorter limit ends the attempt"),
    (14, 14, "the outer one finds nothing broken"),
];

fn table(compiles: &[[bool; 15]; 15], refused: &[(usize, usize)]) -> String {
    let mut out = String::from(
        "Outer layers are rows, inner ones columns, numbered in the order of the stack. `·` is a\n\
         compile error, `!` a typed error before anything is sent\n\
         ([`Error::is_misplaced_layer`](crate::Error::is_misplaced_layer)), `+` the recommended order, `~`\n\
         another order that is fine.\n\n|  | outer |",
    );
    for i in 1..=15 {
        out.push_str(&format!(" {i} |"));
    }
    out.push_str(&format!("\n| --- | --- |{}\n", " --- |".repeat(15)));
    for (o, row) in compiles.iter().enumerate() {
        out.push_str(&format!("| {} | `{}` |", o + 1, NAMES[o]));
        for (i, &compiles) in row.iter().enumerate() {
            let sign = match (compiles, refused.contains(&(o, i))) {
                (false, _) => "·",
                (true, true) => "!",
                (true, false) if o < i => "+",
                (true, false) => "~",
            };
            out.push_str(&format!(" {sign} |"));
        }
        out.push('\n');
    }
    out.push_str("\nWhy the orders marked `~` are fine:\n\n");
    for (o, i, why) in FINE {
        out.push_str(&format!("- `{}` over `{}`: {why}\n", NAMES[*o], NAMES[*i]));
    }
    out
}

#[test]
fn every_pair_of_layers_compiles_is_refused_or_is_fine_as_the_table_in_the_docs_says() {
    let compiles = compiles();
    let refused = in_paused_time(refused());
    let generated = table(&compiles, &refused);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/tower-gemini/src/orders.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &generated).unwrap();
    }
    for (o, row) in compiles.iter().enumerate() {
        for (i, &compiles) in row.iter().enumerate() {
            let is_fine = FINE.iter().any(|&(outer, inner, _)| (outer, inner) == (o, i));
            let is_other_order = compiles && o >= i && !refused.contains(&(o, i));
            assert_eq!(is_fine, is_other_order, "{} over {}", NAMES[o], NAMES[i]);
        }
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(written, generated, "run with UPDATE_DOCS=1 to write the table anew");
}
