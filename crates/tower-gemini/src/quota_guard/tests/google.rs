//! A Google that enforces its quotas exactly as stated: any 60 seconds, any Pacific day, counted
//! when a request arrives.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::Instant;
use tower_gemini_core::call::{Call, ModelId, Verb};
use tower_gemini_core::verdict::{Detail, Outcome, Verdict};

use crate::CallOptions;
use crate::body::{AttemptBody, CallBody, JudgedBody};
use crate::calendar::PacificDay;
use crate::call_state::CallState;
use crate::error::Error;
use crate::quota_guard::{Limits, QuotaDimension};

pub(super) const MODEL: &str = "gemini-3.1-flash-image";
/// 2026-03-08 20:00 UTC: the day of a daylight change, at noon Pacific.
pub(super) const START_MS: i64 = 1_773_000_000_000;

pub(super) fn start() -> std::time::SystemTime {
    std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(START_MS.unsigned_abs())
}

pub(super) fn call(tokens: u64, images: u32) -> Arc<Call> {
    let mut call = Call::unrecognised();
    call.model = Some(ModelId::new(MODEL));
    call.verb = Verb::Generate;
    call.wants_image = true;
    call.images = images;
    call.input_tokens_estimate = tokens;
    Arc::new(call)
}

pub(super) fn request(tokens: u64, images: u32, options: CallOptions) -> Request<AttemptBody> {
    request_of(tokens, images, CallState::new(options))
}

pub(super) fn request_of(tokens: u64, images: u32, state: CallState) -> Request<AttemptBody> {
    let body = CallBody::whole([Bytes::from_static(b"{}")], None, call(tokens, images), state);
    Request::post(format!("/v1beta/models/{MODEL}:generateContent"))
        .body(body.into_attempt())
        .unwrap()
}

#[derive(Clone)]
pub(super) struct Google(Arc<Mutex<Inner>>);

struct Inner {
    limits: Limits,
    epoch: Instant,
    arrivals: VecDeque<(Duration, [u64; 4])>,
    day: (i32, u64),
    random: fastrand::Rng,
    latency_ms: u64,
    served: u64,
    refused: u64,
}

impl Google {
    pub(super) fn new(limits: Limits, latency_ms: u64, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            limits,
            epoch: Instant::now(),
            arrivals: VecDeque::new(),
            day: (0, 0),
            random: fastrand::Rng::with_seed(seed),
            latency_ms,
            served: 0,
            refused: 0,
        })))
    }

    pub(super) fn served(&self) -> u64 {
        self.0.lock().unwrap().served
    }

    pub(super) fn refused(&self) -> u64 {
        self.0.lock().unwrap().refused
    }

    /// The request travels, arrives, is counted, and is answered some seconds later.
    pub(super) async fn answer(
        self,
        request: Request<AttemptBody>,
    ) -> Result<Response<JudgedBody<Full<Bytes>>>, Error> {
        let (travel, work) = {
            let mut inner = self.0.lock().unwrap();
            let latency = inner.latency_ms;
            (inner.random.u64(0..=latency), inner.random.u64(3_000..40_000))
        };
        tokio::time::sleep(Duration::from_millis(travel)).await;
        let call = request.body().call().clone();
        let amounts = [1, call.input_tokens_estimate, u64::from(call.images), 1];
        let violated = self.0.lock().unwrap().arrive(amounts);
        let state = request.body().state().clone();
        let (status, verdict) = match violated {
            None => {
                tokio::time::sleep(Duration::from_millis(work)).await;
                (200, Verdict::delivering())
            }
            Some(QuotaDimension::RequestsPerDay) => (
                429,
                Verdict::refused_locally(Outcome::RateLimitedDay, None, true, Detail::default()),
            ),
            Some(_) => (
                429,
                Verdict::refused_locally(Outcome::RateLimitedMinute, None, true, Detail::default()),
            ),
        };
        let mut response =
            Response::new(JudgedBody::local(Bytes::from_static(b"{}"), verdict, call, state));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        Ok(response)
    }
}

impl Inner {
    fn arrive(&mut self, amounts: [u64; 4]) -> Option<QuotaDimension> {
        let now = self.epoch.elapsed();
        while self.arrivals.front().is_some_and(|(at, _)| *at + Duration::from_secs(60) <= now) {
            self.arrivals.pop_front();
        }
        let day = PacificDay::holding(START_MS + i64::try_from(now.as_millis()).unwrap()).number();
        if self.day.0 != day {
            self.day = (day, 0);
        }
        let violated = QuotaDimension::ALL.into_iter().enumerate().find(|&(d, dimension)| {
            let used: u64 =
                if d == 3 { self.day.1 } else { self.arrivals.iter().map(|(_, a)| a[d]).sum() };
            self.limits.get(dimension).is_some_and(|limit| used + amounts[d] > limit)
        });
        // Refused requests count as well, for all that Google says.
        self.arrivals.push_back((now, amounts));
        self.day.1 += 1;
        match violated {
            None => self.served += 1,
            Some(_) => self.refused += 1,
        }
        violated.map(|(_, dimension)| dimension)
    }
}
