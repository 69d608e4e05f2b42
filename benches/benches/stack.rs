//! What the layers cost on the way of a success: the whole stack over a service that answers at
//! once, beside what people put around a client today.
//!
//! Run with `cargo bench -p tower-gemini-benches --bench stack`. Only ratios within one run mean
//! anything: CPU time over the bare service, the median of interleaved rounds, and allocations over
//! the bare service's.
//!
//! All stacks get the same request and are read to the end of the body. Only ours looks at the body
//! on its way, so the cost of looking is a line of its own: `judging alone` is the scanner and the
//! classifier over the same bytes.

#![allow(clippy::print_stdout, reason = "the tables are what is run for")]

use std::alloc::System;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::path::Path;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cpu_time::ThreadTime;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_gemini::PeakHourRouterLayer;
use tower_gemini::model_fallback::Chain;
use tower_gemini::peak_hour_router::presets::TEN_TO_FOURTEEN_UTC;
use tower_gemini::quota_guard::Limits;
use tower_gemini::spending::Caps;
use tower_gemini::{
    AnswerErrorsLayer, GeminiStack, KeepPaidLayer, ObserveLayer, QuotaGuardLayer,
    ResolutionFallbackLayer, SpendingLayer, ThoughtSignaturesLayer,
};
use tower_gemini_benches::Row;
use tower_gemini_core::call::{Call, Framing};
use tower_gemini_core::classify::classify_answer;
use tower_gemini_core::scan::Scanner;
use tower_http::trace::TraceLayer;
use tower_resilience::{bulkhead, circuitbreaker, fallback, ratelimiter, retry, timelimiter};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

type ApiRequest = Request<Full<Bytes>>;
type ApiResponse = Response<Full<Bytes>>;

/// What the service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The smallest answer there is: a token count. What is left is the layers' own cost.
    Count,
    /// 300 bytes, the image a single pixel.
    Pixel,
    /// An image of 1.5 MB, as 1K images are.
    Image,
}

const ANSWERS: [Answer; 3] = [Answer::Count, Answer::Pixel, Answer::Image];

impl Answer {
    fn body(self) -> Bytes {
        let image = |data: &str| {
            format!(
                r#"{{"candidates":[{{"content":{{"parts":[{{"inlineData":{{"mimeType":"image/png","data":"{data}"}}}}],"role":"model"}},"finishReason":"STOP","index":0}}],"usageMetadata":{{"promptTokenCount":12,"candidatesTokenCount":1120,"totalTokenCount":1132}},"modelVersion":"gemini-3-pro-image"}}"#
            )
        };
        match self {
            Self::Count => Bytes::from_static(br#"{"totalTokens":12}"#),
            Self::Pixel => image("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptV").into(),
            Self::Image => {
                let noise: Vec<u8> = (0..1_500_000_u64)
                    .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
                    .collect();
                image(&STANDARD.encode(noise)).into()
            }
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Count => {
                "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-pro-image:countTokens"
            }
            _ => {
                "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-pro-image:generateContent"
            }
        }
    }

    /// What every SDK sends: two headers of fixed values, and the key, whose text is the caller's
    /// own.
    fn request(self) -> ApiRequest {
        const BODY: &[u8] = br#"{"contents":[{"role":"user","parts":[{"text":"A red apple on a wooden table, soft morning light"}]}],"generationConfig":{"responseModalities":["TEXT","IMAGE"],"imageConfig":{"aspectRatio":"16:9","imageSize":"1K"}}}"#;
        let key = http::HeaderValue::from_str("a-key-of-thirty-nine-letters-or-so-long")
            .expect("a header");
        Request::post(self.path())
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::USER_AGENT, "bench")
            .header("x-goog-api-key", key)
            .body(Full::new(Bytes::from_static(BODY)))
            .expect("a request")
    }
}

/// Answers at once.
#[derive(Clone)]
struct Api(Bytes);

impl<B> Service<Request<B>> for Api
where
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = ApiResponse;
    type Error = Infallible;
    type Future = Ready<Result<ApiResponse, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        black_box(request);
        ready(Ok(Response::new(Full::new(self.0.clone()))))
    }
}

/// Polls what is ready at once. No executor: its cost is not the stacks'.
fn now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}

fn drain<B: Body<Data = Bytes, Error: std::fmt::Debug>>(body: B) -> usize {
    let mut body = std::pin::pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    let mut len = 0;
    while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
        len += frame.expect("a good body").data_ref().map_or(0, Bytes::len);
    }
    len
}

fn answer_of<S>(stack: &mut S, request: ApiRequest) -> S::Response
where
    S: Service<ApiRequest, Error: std::fmt::Debug>,
{
    now(async { stack.ready().await.expect("ready").call(request).await.expect("an answer") })
}

/// One call through a stack, and what it gave read to its end.
fn send<S, B>(stack: &mut S, request: ApiRequest) -> usize
where
    S: Service<ApiRequest, Response = Response<B>, Error: std::fmt::Debug>,
    B: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    drain(answer_of(stack, request).into_body())
}

/// A stack as a function, so that all are called alike.
type Run = Box<dyn FnMut(ApiRequest) -> usize>;

fn bare(answer: Answer) -> Run {
    let mut api = Api(answer.body());
    Box::new(move |request| send(&mut api, request))
}

fn ours_raw(answer: Answer) -> Run {
    let mut stack = GeminiStack::new().raw(Api(answer.body()));
    Box::new(move |request| send(&mut stack, request))
}

fn ours_images(answer: Answer) -> Run {
    let mut stack = GeminiStack::new().images(Api(answer.body()));
    Box::new(move |request: ApiRequest| answer_of(&mut stack, request).into_body().bytes.len())
}

/// Every layer on, and each with something to do on every call; limits are far away.
fn ours_all(answer: Answer) -> Run {
    let chain = Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
    let mut stack = GeminiStack::new()
        .answer_errors(AnswerErrorsLayer::new())
        .observe(ObserveLayer::new())
        .keep_paid(KeepPaidLayer::new())
        .signatures(ThoughtSignaturesLayer::new())
        .peak_hours(PeakHourRouterLayer::new(TEN_TO_FOURTEEN_UTC.schedule()))
        .fallback_to(chain)
        .resolution(ResolutionFallbackLayer::new())
        .spending(SpendingLayer::new().per_day(Caps::none().at_most_usd(1e9)))
        .quota(QuotaGuardLayer::new(Limits::unlimited().rpm(1 << 40).rpd(1 << 40)))
        .raw(Api(answer.body()));
    Box::new(move |request| send(&mut stack, request))
}

/// Retries a 503 once: what the usual policy looks at is the status.
#[derive(Clone)]
struct On503(u8);

impl<E> tower::retry::Policy<ApiRequest, ApiResponse, E> for On503 {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut ApiRequest,
        result: &mut Result<ApiResponse, E>,
    ) -> Option<Ready<()>> {
        let failed = result
            .as_ref()
            .is_ok_and(|response| response.status() == StatusCode::SERVICE_UNAVAILABLE);
        self.0 = self.0.checked_sub(u8::from(failed))?;
        failed.then(|| ready(()))
    }

    fn clone_request(&mut self, request: &ApiRequest) -> Option<ApiRequest> {
        Some(request.clone())
    }
}

fn tower_five(answer: Answer) -> Run {
    let mut stack = ServiceBuilder::new()
        .rate_limit(u64::MAX, Duration::from_secs(1))
        .layer(TraceLayer::new_for_http())
        .retry(On503(3))
        .concurrency_limit(100)
        .timeout(Duration::from_secs(300))
        .service(Api(answer.body()));
    Box::new(move |request| send(&mut stack, request))
}

fn api_for_boxes(
    answer: Answer,
) -> impl Service<ApiRequest, Response = ApiResponse, Error = String, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static {
    ServiceExt::<ApiRequest>::map_err(Api(answer.body()), |never: Infallible| match never {})
}

fn resilience_four(answer: Answer) -> Run {
    let mut stack = ServiceBuilder::new()
        .layer(retry::RetryLayer::<ApiRequest, ApiResponse, _>::exponential_backoff().build())
        .layer(circuitbreaker::CircuitBreakerLayer::standard().build().expect("a breaker"))
        .layer(bulkhead::BulkheadLayer::large().build().expect("a bulkhead"))
        .layer(timelimiter::TimeLimiterLayer::slow().build())
        .service(api_for_boxes(answer));
    Box::new(move |request| send(&mut stack, request))
}

fn resilience_six(answer: Answer) -> Run {
    let empty = || Response::new(Full::new(Bytes::new()));
    let mut stack = ServiceBuilder::new()
        .layer(fallback::FallbackLayer::<ApiRequest, ApiResponse, _>::value_fn(empty))
        .layer(retry::RetryLayer::<ApiRequest, ApiResponse, _>::exponential_backoff().build())
        .layer(circuitbreaker::CircuitBreakerLayer::standard().build().expect("a breaker"))
        .layer(ratelimiter::RateLimiterLayer::per_second(1_000_000_000).build().expect("a limit"))
        .layer(bulkhead::BulkheadLayer::large().build().expect("a bulkhead"))
        .layer(timelimiter::TimeLimiterLayer::slow().build())
        .service(api_for_boxes(answer));
    Box::new(move |request| send(&mut stack, request))
}

/// What the stack does with the body itself, without any layer.
fn judging_alone(answer: Answer) -> Run {
    let body = answer.body();
    let request = answer.request();
    let call = Call::parse(request.method(), request.uri(), &HeaderMap::new(), None);
    Box::new(move |request| {
        black_box(request);
        let mut scanner = Scanner::judging(Framing::Whole);
        scanner.feed(&body).expect("a good body");
        let answer = scanner.finish().expect("a good body");
        black_box(classify_answer(&call, &answer));
        body.len()
    })
}

type Named = (&'static str, fn(Answer) -> Run);

const STACKS: [Named; 8] = [
    ("bare service", bare),
    ("ours, raw", ours_raw),
    ("ours, all layers", ours_all),
    ("ours, images", ours_images),
    ("judging alone", judging_alone),
    ("tower, five", tower_five),
    ("tower-resilience, four", resilience_four),
    ("tower-resilience, six", resilience_six),
];

/// What a call through a stack takes.
struct Taken {
    ns: f64,
    allocations: f64,
}

/// Times of whole rounds, interleaved, so that a busy machine disturbs all alike; the median of
/// each.
fn measure(answer: Answer) -> Vec<(&'static str, Taken)> {
    let (rounds, calls) = if answer == Answer::Image { (11, 30) } else { (41, 1000) };
    let mut stacks: Vec<(&str, Run, Vec<Duration>, usize)> = STACKS
        .iter()
        // A count has no image to take out.
        .filter(|(name, _)| answer != Answer::Count || *name != "ours, images")
        .map(|(name, make)| (*name, make(answer), Vec::new(), 0))
        .collect();
    for _ in 0..rounds {
        for (_, run, times, allocations) in &mut stacks {
            let region = Region::new(ALLOCATOR);
            // Requests are made within the time, for the bare service too: made before it, a
            // thousand of them would be cold.
            let started = ThreadTime::now();
            for _ in 0..calls {
                black_box(run(answer.request()));
            }
            times.push(started.elapsed() / calls);
            let change = region.change();
            *allocations += change.allocations + change.reallocations;
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_nanos() as f64
    };
    let calls = f64::from(rounds * calls);
    stacks
        .into_iter()
        .map(|(name, _, times, allocations)| {
            (name, Taken { ns: median(times), allocations: allocations as f64 / calls })
        })
        .collect()
}

fn table(answer: Answer, rows: &mut Vec<Row>) {
    let measured = measure(answer);
    let of = |name: &str| {
        let found = measured.iter().find(|(known, _)| *known == name);
        &found.unwrap_or_else(|| unreachable!("{name} is measured")).1
    };
    let bare = of("bare service");
    let over = |name: &str| of(name).ns - bare.ns;
    println!(
        "\n{answer:?}, over the bare service ({:.0} ns, {:.0} allocations): ns, times tower's five, times tower-resilience's six, allocations",
        bare.ns, bare.allocations
    );
    for (name, taken) in &measured[1..] {
        println!(
            "  {name:<24} {:>10.0} {:>8.2}x {:>8.2}x {:>8.1}",
            over(name),
            over(name) / over("tower, five"),
            over(name) / over("tower-resilience, six"),
            taken.allocations - bare.allocations,
        );
    }
    if answer != Answer::Image {
        let all = of("ours, all layers");
        rows.extend([
            Row::at_most(
                &format!("all layers; {answer:?}: µs over the bare service"),
                over("ours, all layers") / 1e3,
                5.0,
            ),
            Row::at_most(
                &format!("all layers; {answer:?}: allocations over the bare service's"),
                all.allocations - bare.allocations,
                6.0,
            ),
        ]);
    }
}

fn main() {
    // `cargo test --benches` only asks whether it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut rows = Vec::new();
    ANSWERS.into_iter().for_each(|answer| table(answer, &mut rows));
    tower_gemini_benches::write(Path::new(env!("CARGO_TARGET_TMPDIR")), "stack", &rows)
        .expect("the target directory takes a file");
}
