//! One call through a stack over the simulator, in paused time, and everything that can be known of
//! it afterwards.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tower_gemini::CallOptions;
use tower_gemini::Error;
use tower_gemini::Trail;
use tower_gemini::jittered_retry::{JitteredRetryLayer, RetryPolicy};
use tower_gemini::trail::{Step, StopReason, WaitReason};
use tower_gemini::{AttemptTimeoutLayer, GeminiStack};
use tower_gemini_sim::{
    Fault, Latency, LedgerSnapshot, Record, Refusal, Sim, SimError, SimService,
};

/// Property tests run this many cases unless the environment asks for more.
pub(crate) fn cases(least: u32) -> ProptestConfig {
    let cases =
        std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(0);
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(least.max(cases)) }
}

/// Runs one case in a runtime of its own whose clock stands still until everything waits.
pub(crate) fn in_paused_time<F: Future>(case: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(case)
}

/// How a call is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Whole,
    Sse,
    Array,
}

/// A call and the weather it meets.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) faults: Vec<Fault>,
    pub(crate) ask: Ask,
    pub(crate) size: &'static str,
    pub(crate) latency: Duration,
    pub(crate) seed: u64,
    pub(crate) deadline: Option<Duration>,
    pub(crate) allowance: u32,
    pub(crate) policy: RetryPolicy,
    pub(crate) attempt_limit: Duration,
    /// Ignore hints, as most clients' presets do: then no wait is checked against them.
    pub(crate) hints: bool,
}

impl Scenario {
    pub(crate) fn new(faults: impl IntoIterator<Item = Fault>) -> Self {
        Self {
            faults: faults.into_iter().collect(),
            ask: Ask::Whole,
            size: "1K",
            latency: Duration::from_secs(20),
            seed: 1,
            deadline: None,
            allowance: 0,
            policy: RetryPolicy::recommended(),
            attempt_limit: Duration::from_secs(300),
            hints: true,
        }
    }

    pub(crate) fn sim(&self) -> Sim {
        Sim::builder()
            .seed(self.seed)
            .script(self.faults.clone())
            .latency(Latency::fixed(self.latency))
            .tiny_images(true)
            .build()
    }

    pub(crate) fn request(&self, tag: &str) -> Request<Full<Bytes>> {
        let verb = match self.ask {
            Ask::Whole => "generateContent",
            Ask::Sse => "streamGenerateContent?alt=sse",
            Ask::Array => "streamGenerateContent",
        };
        let size = self.size;
        let body = format!(
            r#"{{"contents":[{{"role":"user","parts":[{{"text":"a red apple on a white background"}}]}}],"generationConfig":{{"responseModalities":["TEXT","IMAGE"],"imageConfig":{{"imageSize":"{size}"}}}}}}"#
        );
        Request::post(format!("https://gemini.example/v1beta/models/gemini-3-pro-image:{verb}"))
            .header("x-goog-api-key", "AIzaSyA-sentinel-key-0123456789abcdefghij")
            .header("content-type", "application/json")
            .header("x-sim-call", tag)
            .body(Full::from(body))
            .unwrap()
    }

    pub(crate) fn stack(&self) -> GeminiStack {
        GeminiStack::new()
            .retry(JitteredRetryLayer::new(self.policy.clone()).seed(self.seed))
            .timeout(AttemptTimeoutLayer::new().limit(self.attempt_limit))
    }
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Report {
    /// The answer's status and bytes; with a body that broke off, the bytes before and the error.
    pub(crate) answer: Result<(u16, Vec<u8>, Option<Error>), Error>,
    /// What the server saw, in order.
    pub(crate) ledger: LedgerSnapshot,
    /// What left the server, an entry a response.
    pub(crate) upstream: Vec<Vec<u8>>,
    pub(crate) trail: Trail,
    pub(crate) elapsed: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.answer {
            Ok((status, bytes, broken)) => {
                writeln!(f, "answer: {status}, {} bytes, {broken:?}", bytes.len())?
            }
            Err(error) => writeln!(f, "error: {error}")?,
        }
        writeln!(f, "after {:?}, trail:\n{}", self.elapsed, self.trail)?;
        for r in self.records() {
            writeln!(
                f,
                "truth: {} {:?} -> {} {:?}, {:?} to {:?}, charged {} ({} micro-dollars), aborted {}",
                r.number,
                r.fault,
                r.outcome,
                r.status,
                r.received_at,
                r.ended_at,
                r.charged,
                r.cost_microusd,
                r.aborted
            )?;
        }
        Ok(())
    }
}

pub(crate) const TAG: &str = "call";

impl Report {
    pub(crate) fn records(&self) -> Vec<Record> {
        self.ledger.of_call(TAG).cloned().collect()
    }
}

/// Sends one call through the recommended stack and reads its answer to the end.
pub(crate) async fn run(scenario: &Scenario) -> Report {
    let sim = scenario.sim();
    let wire = Wire::new(sim.service());
    let service = scenario.stack().raw(wire.clone());
    run_on(scenario, &sim, &wire, service).await
}

/// The same through any service that takes plain requests.
pub(crate) async fn run_on<S, B>(scenario: &Scenario, sim: &Sim, wire: &Wire, service: S) -> Report
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Error>,
    B: Body<Data = Bytes, Error = Error> + Unpin,
{
    let trail = Trail::new();
    let mut options =
        CallOptions::new().maybe_charged_resends(scenario.allowance).trail(trail.clone());
    if let Some(deadline) = scenario.deadline {
        options = options.deadline(deadline);
    }
    let mut request = scenario.request(TAG);
    request.extensions_mut().insert(options);
    let started = Instant::now();
    // A stack without limits could wait for ever: a day is the outer bound of every test.
    let answer = tokio::time::timeout(Duration::from_secs(86_400), async {
        match service.oneshot(request).await {
            Ok(response) => {
                let (head, mut body) = response.into_parts();
                let (mut bytes, mut broken) = (Vec::new(), None);
                while let Some(frame) = body.frame().await {
                    match frame {
                        Ok(frame) => {
                            bytes.extend_from_slice(&frame.into_data().unwrap_or_default())
                        }
                        Err(error) => broken = Some(error),
                    }
                }
                Ok((head.status.as_u16(), bytes, broken))
            }
            Err(error) => Err(error),
        }
    })
    .await
    .unwrap();
    let elapsed = started.elapsed();
    Report { answer, ledger: sim.ledger(), upstream: wire.answers(), trail, elapsed }
}

/// The bytes of one answer so far.
type Copy = Arc<Mutex<Vec<u8>>>;

/// The simulator as innermost service, with a copy kept of every byte that leaves it.
#[derive(Clone)]
pub(crate) struct Wire {
    inner: SimService,
    answers: Arc<Mutex<Vec<Copy>>>,
}

impl Wire {
    pub(crate) fn new(inner: SimService) -> Self {
        Self { inner, answers: Arc::default() }
    }

    pub(crate) fn answers(&self) -> Vec<Vec<u8>> {
        self.answers.lock().unwrap().iter().map(|answer| answer.lock().unwrap().clone()).collect()
    }
}

impl<B> Service<Request<B>> for Wire
where
    SimService:
        Service<Request<B>, Error = SimError, Response = Response<tower_gemini_sim::SimBody>>,
    <SimService as Service<Request<B>>>::Future: Send + 'static,
{
    type Response = Response<Copied>;
    type Error = SimError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, SimError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SimError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.inner.call(request);
        let answers = self.answers.clone();
        Box::pin(async move {
            let copy = Copy::default();
            let answer = answer.await?;
            answers.lock().unwrap().push(copy.clone());
            Ok(answer.map(|body| Copied { body: Box::pin(body), copy }))
        })
    }
}

pub(crate) struct Copied {
    body: Pin<Box<tower_gemini_sim::SimBody>>,
    copy: Copy,
}

impl Body for Copied {
    type Data = Bytes;
    type Error = SimError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SimError>>> {
        let frame = self.body.as_mut().poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.copy.lock().unwrap().extend_from_slice(data);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What must never happen, whatever the schedule. Found in the server's ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Violation {
    /// More sends after a charge than the caller allowed.
    ResentAfterCharge,
    /// More sends after attempts that may have been charged than the caller allowed.
    ResentAfterMaybe,
    /// A send after an answer that no resend can better.
    RetriedNonRetryable,
    /// A send earlier than the server asked for.
    EarlierThanHint,
    /// A wait longer than the policy's longest.
    WaitedTooLong,
    /// An answer, or a send, after the deadline.
    DeadlineOutlived,
    /// Two sends of one call with different bodies.
    ReplayDiffers,
    /// Something else than one upstream answer, byte for byte, or an error of ours.
    Mixture,
    /// The bill is outside the interval in the trail.
    LedgerWrong,
}

/// Whether the same request to the same model can do no better, by what the fault is, not by how it
/// was judged.
pub(crate) fn is_terminal(record: &Record) -> bool {
    // A scripted fault that never came about, because the server's own deadline passed first,
    // decides nothing. Nor does one that the caller never saw.
    record.outcome == record.fault.name()
        && record.status.is_some()
        && matches!(
            record.fault,
            Fault::RateLimitDay { .. }
                | Fault::ZeroQuota { .. }
                | Fault::ZeroQuotaErrorInfo
                | Fault::SpendCap
                | Fault::PrepayDepleted { .. }
                | Fault::Unimplemented
                | Fault::BadRequest(_)
                | Fault::Unauthenticated
                | Fault::Forbidden(_)
                | Fault::NotFound(_)
                | Fault::PayloadTooLargeHtml
                | Fault::Refused(
                    Refusal::Safety
                        | Refusal::ImageSafety
                        | Refusal::ProhibitedContent
                        | Refusal::ImageProhibitedContent
                        | Refusal::Recitation
                        | Refusal::ImageRecitation
                        | Refusal::Blocklist
                        | Refusal::Spii
                        | Refusal::Language
                        | Refusal::ModelArmor
                        | Refusal::MissingThoughtSignature
                )
                | Fault::PromptBlocked(_)
                | Fault::MaxTokens
                | Fault::StopWithoutImage
        )
}

/// Whether the caller cannot tell from what it saw that nothing was charged.
pub(crate) fn is_ambiguous(record: &Record) -> bool {
    // A request whose body the server never read cannot have been worked on, and the caller knows
    // how much of it was taken.
    (record.aborted && record.body_hash.is_some())
        || record.outcome == record.fault.name()
            && matches!(
                record.fault,
                Fault::ResetAfterReceipt
                    | Fault::ResetAfterGeneration
                    | Fault::CutHead { .. }
                    | Fault::CutBody { .. }
                    | Fault::TruncatedBody { .. }
                    | Fault::NoAnswer { .. }
                    | Fault::StallBody { .. }
                    | Fault::NoFinishReason { .. }
                    | Fault::StreamErrorTail { .. }
                    | Fault::StreamErrorEvent { .. }
                    | Fault::ErrorInOk
                    | Fault::NoImage
                    // The API does not say what these two mean.
                    | Fault::Refused(Refusal::Other | Refusal::MalformedFunctionCall)
                    | Fault::ImageOther { waived: false }
                    | Fault::UnknownFinishReason
            )
}

/// Everything that went wrong in one run.
pub(crate) fn violations(scenario: &Scenario, report: &Report) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut check = |holds: bool, violation| {
        if !holds {
            found.push(violation);
        }
    };
    let records = report.records();
    let allowed = scenario.allowance as usize;
    let (mut after_charge, mut after_maybe, mut after_terminal, mut early, mut long) =
        (0, 0, 0, false, false);
    // In an outage a call waits for others, as long as its deadline lets it.
    let in_outages = report.trail.steps().into_iter().filter_map(|step| match step {
        Step::Waited { delay, why: WaitReason::Outage } => Some(delay),
        _ => None,
    });
    let cap = scenario.policy.cap() + in_outages.sum::<Duration>() + Duration::from_millis(2);
    for pair in records.windows(2) {
        let [before, after] = pair else { continue };
        // Each resend is one bet; what follows on an uncharged answer after it is not another.
        after_charge += usize::from(before.charged);
        after_maybe += usize::from(is_ambiguous(before));
        after_terminal += usize::from(is_terminal(before));
        let waited = after.received_at.saturating_sub(before.ended_at.unwrap_or(after.received_at));
        if let (Fault::RateLimitMinute { retry_after, .. }, true) =
            (&before.fault, scenario.hints && before.status == Some(429))
        {
            early |= waited < *retry_after;
        }
        long |= waited > cap;
    }
    check(after_charge <= allowed, Violation::ResentAfterCharge);
    // Without any bet bought, no send at all may come after a charge.
    check(allowed > 0 || report.ledger.sends_after_charge(TAG) == 0, Violation::ResentAfterCharge);
    check(after_maybe <= allowed, Violation::ResentAfterMaybe);
    check(after_terminal == 0, Violation::RetriedNonRetryable);
    check(!early, Violation::EarlierThanHint);
    check(!long, Violation::WaitedTooLong);
    if let Some(deadline) = scenario.deadline {
        check(report.elapsed <= deadline + Duration::from_millis(2), Violation::DeadlineOutlived);
    }
    let mut hashes: Vec<_> = records.iter().filter_map(|record| record.body_hash).collect();
    hashes.dedup();
    check(hashes.len() <= 1, Violation::ReplayDiffers);
    if let Ok((status, bytes, broken)) = &report.answer {
        let last = report.upstream.last().map_or(&[][..], |bytes| bytes);
        let same = match broken {
            None => last == bytes.as_slice(),
            // What was handed on before the error is the beginning of that one answer.
            Some(_) => last.starts_with(bytes),
        };
        let status_of_last = records.iter().rev().find_map(|record| record.status);
        // Where an outage leaves no time for a further attempt, the error is ours.
        let stopped = Step::Stopped { why: StopReason::DeadlineTooNear };
        let is_ours = *status == 503
            && String::from_utf8_lossy(bytes).contains("\"MODEL_IN_OUTAGE\"")
            && report.trail.steps().contains(&stopped);
        check(is_ours || same && status_of_last == Some(*status), Violation::Mixture);
    }
    check(report.trail.cost().contains(report.ledger.cost_microusd(TAG)), Violation::LedgerWrong);
    found
}

/// Any fault, with cut points and delays of its own.
pub(crate) fn faults() -> impl Strategy<Value = Fault> {
    let ms = |range: std::ops::Range<u64>| range.prop_map(Duration::from_millis);
    prop_oneof![
        6 => proptest::sample::select(Fault::all()),
        // The transient ones again, so that calls live long enough to meet more of the others.
        6 => prop::sample::select(vec![
            Fault::Overloaded, Fault::HighDemand, Fault::ServiceUnavailable, Fault::Internal, Fault::BadGatewayHtml,
            Fault::ConnectionRefused, Fault::SharedCapacity, Fault::ExhaustedBare, Fault::DeadlineExpired503,
            Fault::DeadlineExpired504, Fault::Cancelled, Fault::ImageOther { waived: true },
        ]),
        2 => (ms(1..150_000)).prop_map(|retry_after| Fault::RateLimitMinute { retry_after, limit: tower_gemini_sim::Limit::Requests }),
        1 => (0usize..20_000).prop_map(|at| Fault::CutBody { at }),
        1 => (0usize..20_000).prop_map(|at| Fault::TruncatedBody { at }),
        1 => (0usize..20_000).prop_map(|at| Fault::StallBody { at }),
        1 => (0usize..400).prop_map(|at| Fault::CutHead { at }),
        1 => ms(1..900_000).prop_map(|latency| Fault::Late { latency }),
        1 => (1usize..5000, ms(1..5_000)).prop_map(|(chunk, every)| Fault::Trickle { chunk, every }),
    ]
}
