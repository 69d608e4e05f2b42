//! One budget of memory for all requests and their responses, and what each call takes of it.
//!
//! `server.memory` has three parts: what stored responses may take (`keep.max_bytes`), a reserve for
//! one response at a time, and the rest, from which each request takes its part before its body is
//! read: what its body becomes, and the response that it is expected to bring. A response that
//! outgrows it takes more as it comes, or is passed on unbuffered.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::Future;
use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use http::StatusCode;
use http::request::Parts;
use tower_gemini::call::{Call, Dialect};
use tower_gemini_openai::Endpoint;

use crate::body_fault::BodyFault;
use crate::config::Config;
use crate::queue::{Admitted, Caller, Deferred, Lease, Limits, Place, Queue, Refused};
use crate::responses::Rejection;
use crate::wire;

/// The response that a call for an image is expected to bring: a 1K image and its JSON (2.5 MB,
/// measured 2026-11) less what is passed on while it comes.
const EXPECTED: usize = 2 * 1024 * 1024;
/// The same for calls that are passed through as they come: the buffers of two sockets.
const EXPECTED_PASSING: usize = 128 * 1024;
/// What a request takes beside its body: heads, tasks and buffers.
const REQUEST: usize = 64 * 1024;
/// What a body of unknown length takes before its first chunk.
const FIRST_CHUNK: usize = 64 * 1024;
/// A body that is translated is there up to four times: as it came, its texts without escapes or
/// its images as base64, and its translation.
const TRANSLATED: usize = 4;
/// Its tree takes up to this, fifty times a short body's size.
const TREE: (usize, usize) = (50, 8 * 1024 * 1024);
/// A lease grows in steps, so that not every chunk asks for more.
const STEP: usize = 64 * 1024;

/// The longest wait that is left to a request that states a deadline: the other half is for the
/// call itself.
const WAIT_SHARE: u32 = 2;

/// Divides the memory of a configuration, and its places.
pub(crate) fn limits(config: &Config) -> Limits {
    let (server, memory) = (&config.server, config.server.memory.0);
    let kept = if config.keep.enabled { config.kept_bytes() } else { 0 };
    let whole = config.responses.buffer_up_to.0;
    let reserve = whole.saturating_mul(usize::from(RESPONSE_TRANSLATED / QUARTER)).min(memory / 4);
    Limits {
        places: server.max_in_flight,
        calls: if config.keep.enabled { config.most_calls() } else { server.max_in_flight },
        bytes: memory.saturating_sub(kept).saturating_sub(reserve),
        reserve,
        queue: server.queue,
        time: server.queue_time.0,
    }
}

/// The longest body of a request to Google's own paths that can ever be admitted.
pub(crate) fn longest_body(limits: &Limits) -> usize {
    limits.bytes.saturating_sub(REQUEST + EXPECTED)
}

/// A digest of what identifies a caller, for this process.
pub(crate) fn caller(identity: &[u8]) -> Caller {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    KEYS.get_or_init(RandomState::new).hash_one(identity)
}

/// How a request's body is handled, which says what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handling {
    /// Held to be sent again.
    Held,
    /// Translated from OpenAI's format.
    Translated,
    /// Sent once, with a response that passes as it comes.
    Passing,
}

impl Handling {
    pub(crate) fn of(parts: &Parts, endpoint: Option<Endpoint>) -> Self {
        if endpoint.is_some_and(|endpoint| endpoint != Endpoint::Models) {
            return Self::Translated;
        }
        let call = Call::parse(&parts.method, &parts.uri, &parts.headers, None);
        match call.dialect != Dialect::Unrecognised && call.generates() {
            true => Self::Held,
            false => Self::Passing,
        }
    }

    fn expected(self) -> usize {
        if self == Self::Passing { EXPECTED_PASSING } else { EXPECTED }
    }

    /// What a body of so many bytes becomes.
    fn takes(self, body: usize) -> usize {
        let body = match self {
            Self::Translated => {
                let tree = body.saturating_mul(TREE.0).min(TREE.1);
                body.saturating_mul(TRANSLATED).saturating_add(tree)
            }
            Self::Held | Self::Passing => body,
        };
        body.saturating_add(REQUEST)
    }
}

/// Waits until a request can be admitted, with what its body takes and the response that it is
/// expected to bring. Nothing of the body is read before.
pub(crate) async fn admit(
    queue: &Queue,
    caller: Caller,
    parts: &Parts,
    (handling, body): (Handling, http_body::SizeHint),
) -> Result<(Place, Arc<RequestMemory>), Rejection> {
    let length = body.exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    let request = handling.takes(length.unwrap_or(FIRST_CHUNK));
    let expected = handling.expected();
    let stated = wire::stated_deadline(&parts.headers, false);
    let at_most = stated.map_or(Duration::MAX, |stated| stated / WAIT_SHARE);
    let bytes = request.saturating_add(expected);
    let refused = |refused| match refused {
        Refused::TooLarge => Rejection::fault(BodyFault::NeverFits { takes: bytes }),
        Refused::QueueFull => busy(&format!(
            "{} requests are in flight (server.max_in_flight) or their memory is taken \
             (server.memory), and {} wait (server.queue).",
            queue.limits().places,
            queue.limits().queue,
        )),
        Refused::TimedOut(waited) => busy(&format!(
            "No place in flight (server.max_in_flight) and no memory (server.memory) became free \
             within {:.0} s (server.queue_time, or half of the request's own deadline).",
            waited.as_secs_f64()
        )),
    };
    let Admitted { place, lease } = queue.admit(caller, bytes, at_most).await.map_err(refused)?;
    let state =
        Mutex::new(Taken { request, responses: 0, granted: bytes, weight: RESPONSE_PASSED });
    Ok((place, Arc::new(RequestMemory { lease, handling, expected, state })))
}

fn busy(why: &str) -> Rejection {
    let message = format!("This gateway is busy: {why} Nothing was read or sent.");
    Rejection::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
}

/// The memory of one request and its responses.
#[derive(Debug)]
pub(crate) struct RequestMemory {
    lease: Lease,
    handling: Handling,
    expected: usize,
    state: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    request: usize,
    responses: usize,
    granted: usize,
    weight: u8,
}

impl Taken {
    /// What all of it takes, in steps.
    fn needed(&self, expected: usize) -> usize {
        let bytes = self.request.saturating_add(expected.max(self.responses));
        bytes.div_ceil(STEP).saturating_mul(STEP)
    }
}

impl RequestMemory {
    fn state(&self) -> MutexGuard<'_, Taken> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accounts for a body of which so many bytes have come. `false` where there is no room.
    pub(crate) fn receive(&self, body: usize) -> bool {
        let request = self.handling.takes(body);
        let mut state = self.state();
        if request <= state.request {
            return true;
        }
        let before = std::mem::replace(&mut state.request, request);
        let needed = state.needed(self.expected);
        if needed > state.granted && !self.lease.try_resize(needed, false) {
            state.request = before;
            return false;
        }
        state.granted = state.granted.max(needed);
        true
    }

    /// Takes so many bytes in all, where there are so many.
    fn grow(&self, needed: usize) -> bool {
        let mut state = self.state();
        if needed > state.granted {
            if !self.lease.try_resize(needed, true) {
                return false;
            }
            state.granted = needed;
        }
        true
    }

    /// The body is what it stays from now on, and takes so many bytes; `weight` is that of its
    /// responses.
    pub(crate) fn settle(&self, body: usize, weight: u8) {
        let mut state = self.state();
        state.weight = weight;
        state.request = body.saturating_add(REQUEST);
        let needed = state.needed(self.expected);
        if needed < state.granted && self.lease.try_resize(needed, false) {
            state.granted = needed;
        }
    }

    /// Lets its call wait for hours, where there is room for that.
    pub(crate) fn defer(&self) -> Option<Deferred> {
        self.lease.defer()
    }

    /// Whether others wait, and whether its caller has more than its share.
    pub(crate) fn pressure(&self) -> Pressure {
        match (self.lease.is_under_pressure(), self.lease.is_over_share()) {
            (false, _) => Pressure::None,
            (true, false) => Pressure::OthersWait,
            (true, true) => Pressure::OverShare,
        }
    }

    /// What one response to the request takes.
    pub(crate) fn response(self: &Arc<Self>) -> Arc<ResponseMemory> {
        let weight = self.state().weight;
        Arc::new(ResponseMemory { request: self.clone(), weight, held: Mutex::new(0) })
    }
}

/// Whether others wait for what a request holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pressure {
    None,
    OthersWait,
    OverShare,
}

/// What a byte of a response takes, in quarters of a byte.
const QUARTER: u8 = 4;
/// As it came, with short chunks copied for its client's resend.
pub(crate) const RESPONSE_PASSED: u8 = 5;
/// An event as it came, its tree and its translation.
pub(crate) const RESPONSE_STREAMED: u8 = 8;
/// As it came, in one piece, its images, and its translation.
pub(crate) const RESPONSE_TRANSLATED: u8 = 16;

/// The memory of one response.
pub(crate) struct ResponseMemory {
    request: Arc<RequestMemory>,
    weight: u8,
    /// What is accounted for it.
    held: Mutex<usize>,
}

impl ResponseMemory {
    /// Accounts for `bytes` of it: how many of them are new, and what the request takes then in
    /// all. `None` where that many are accounted for already.
    fn take(&self, bytes: usize) -> Option<(usize, usize)> {
        let takes = bytes.saturating_mul(usize::from(self.weight)) / usize::from(QUARTER);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let more = takes.checked_sub(*held).filter(|more| *more > 0)?;
        *held += more;
        let mut state = self.request.state();
        state.responses += more;
        Some((more, state.needed(self.request.expected)))
    }

    fn give_back(&self, more: usize) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) -= more;
        self.request.state().responses -= more;
    }
}

impl tower_gemini::CallMemory for ResponseMemory {
    fn try_hold(&self, bytes: usize) -> bool {
        let Some((more, needed)) = self.take(bytes) else { return true };
        let has_room = self.request.grow(needed);
        if !has_room {
            self.give_back(more);
        }
        has_room
    }

    fn hold(self: Arc<Self>, bytes: usize) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        Box::pin(async move {
            let Some((more, needed)) = self.take(bytes) else { return true };
            let has_room = self.request.lease.grow(needed).await;
            if has_room {
                let mut state = self.request.state();
                state.granted = state.granted.max(needed);
            } else {
                self.give_back(more);
            }
            has_room
        })
    }
}

impl fmt::Debug for ResponseMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseMemory").field("request", &self.request).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use http_body::SizeHint;
    use tower_gemini::CallMemory as _;

    fn limits_of(toml: &str) -> Limits {
        limits(&Config::parse(toml, "gateway.toml").unwrap())
    }

    fn parts() -> Parts {
        let uri = "/v1beta/models/gemini-3-pro-image:generateContent";
        Request::post(uri).body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_parts_of_the_memory_are_never_more_than_the_whole() {
        for memory in ["64MiB", "100MiB", "256MiB", "1GiB", "64GiB"] {
            for more in ["", "[keep]\nenabled = false\n", "[responses]\nbuffer_up_to = \"1GiB\"\n"]
            {
                let config = format!("[server]\nmemory = \"{memory}\"\n{more}");
                let config = Config::parse(&config, "gateway.toml").unwrap();
                let limits = limits(&config);
                let kept = if config.keep.enabled { config.kept_bytes() } else { 0 };
                assert_eq!(limits.bytes + limits.reserve + kept, config.server.memory.0);
                assert!(limits.bytes >= config.server.memory.0 / 2);
            }
        }
        // By default every place can have a 1K image, and any body is admitted.
        let limits = limits_of("");
        assert!(limits.places * (EXPECTED / 16 * 15) <= limits.bytes);
        let body = Config::default().server.max_body.0;
        assert!(Handling::Translated.takes(body) + EXPECTED <= limits.bytes);
        assert!(limits.calls >= limits.places);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_can_never_fit_is_refused_at_once_and_names_the_setting() {
        let queue = Queue::new(limits_of("[server]\nmemory = \"64MiB\"\n"));
        for (length, status) in [(10 << 20, None), (100 << 20, Some(StatusCode::PAYLOAD_TOO_LARGE))]
        {
            let body = (Handling::Held, SizeHint::with_exact(length));
            let admitted = admit(&queue, 1, &parts(), body).await;
            assert_eq!(admitted.as_ref().err().map(|rejected| rejected.status), status);
            if let Err(rejected) = admitted {
                assert!(format!("{rejected:?}").contains("server.memory"));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_unknown_length_is_accounted_for_as_it_comes() {
        let queue = Queue::new(limits_of("[server]\nmemory = \"64MiB\"\n"));
        let unknown = (Handling::Held, SizeHint::new());
        let (_place, memory) = admit(&queue, 1, &parts(), unknown).await.unwrap();
        let most = (1..200).take_while(|mib| memory.receive(mib << 20)).count();
        assert_eq!(most, longest_body(queue.limits()) >> 20);
        assert!(queue.usage().bytes <= queue.limits().bytes + queue.limits().reserve);
        memory.settle(100, RESPONSE_PASSED);
        assert!(queue.usage().bytes <= EXPECTED + 2 * REQUEST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_several_holders_of_one_response_hold_is_accounted_for_once() {
        let queue = Queue::new(limits_of(""));
        let body = (Handling::Held, SizeHint::with_exact(100));
        let (place, memory) = admit(&queue, 1, &parts(), body).await.unwrap();
        let before = queue.usage().bytes;
        let first = memory.response();
        assert!(first.try_hold(EXPECTED / 2) && queue.usage().bytes <= before + STEP);
        for _ in 0..3 {
            assert!(first.try_hold(8 << 20));
        }
        let one = queue.usage().bytes;
        assert!((10 << 20..11 << 20).contains(&one), "{one}");
        let second = memory.response();
        assert!(second.clone().hold(8 << 20).await);
        assert!((20 << 20..21 << 20).contains(&queue.usage().bytes));
        drop((place, memory, first));
        assert!(queue.usage().bytes > 0, "a call goes on without its client");
        drop(second);
        assert_eq!(queue.usage().bytes, 0);
    }
}
