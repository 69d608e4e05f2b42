//! A request's body at the three stages of the stack.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tower_gemini_core::call::Call;
use tower_gemini_core::target::{Rewrite, Rules, Target, Unfit, UpstreamId, rewrite};

use super::Chunks;
use crate::call_memory::CallMemory;
use crate::call_options::CallOptions;
use crate::call_state::{Attempt, CallState, ResendPermit};
use crate::error::{BoxError, Error};
use crate::jittered_retry::RetryOverride;
use crate::trail::Trail;

/// The body of a call: what the caller wants, held so that further attempts can be made from it.
///
/// [`CollectRequest`](crate::CollectRequest) makes one from any body. It cannot be cloned, and it
/// is not an [`http_body::Body`]: no client can send it.
pub struct CallBody(Payload);

/// The body of one attempt: one send, numbered and permitted.
///
/// [`JitteredRetry`](crate::JitteredRetry) and [`SingleAttempt`](crate::SingleAttempt) make one
/// from a [`CallBody`]. It cannot be cloned or sent.
pub struct AttemptBody {
    payload: Payload,
    attempt: Attempt,
    /// Where this attempt must end before the call does.
    deadline: Option<Instant>,
}

/// The body on the wire: what the client sends.
///
/// [`ClassifyGeminiError`](crate::ClassifyGeminiError) makes one from an [`AttemptBody`]. Reading
/// it tells the attempt how far the request got: as long as the client has not asked for the last
/// byte, the server cannot have the request, so a connection that is never made, or breaks during
/// an upload, costs nothing, whatever the client's error says. Once the attempt was abandoned
/// before its last byte was read, the body ends with an error: a client may go on with a request
/// that nobody waits for (hyper does, while it waits for an HTTP/2 stream), and must not complete
/// one that was called free.
pub struct WireBody {
    data: Data,
    call: Arc<Call>,
    attempt: Attempt,
    upstream: Option<Arc<UpstreamId>>,
}

struct Payload {
    data: Data,
    context: CallContext,
}

/// What goes with a call's bytes through its layers.
#[derive(Clone)]
struct CallContext {
    call: Arc<Call>,
    state: CallState,
    retry: RetryOverride,
    /// The upstream that a fallback sends it to; `None` is the caller's own.
    upstream: Option<Arc<UpstreamId>>,
}

enum Data {
    Whole { chunks: Chunks, trailers: Option<HeaderMap> },
    Once { held: Chunks, rest: Rest },
}

/// What was not read of a body that is too large to hold.
pub(crate) type Rest = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// A long chunk is handed out in slices of this size: how much of a body a client has asked for is
/// what tells whether the server can have all of it, and a client asks for the next slice only when
/// most of the last has left (hyper holds up to about 400 KiB back).
const SLICE: usize = 64 * 1024;

impl Payload {
    fn debug(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.data, Data::Whole { .. }) { "whole" } else { "once" };
        f.debug_struct(name)
            .field("kind", &kind)
            .field("held_bytes", &self.data.held().bytes())
            .field("call", &self.context.call)
            .finish()
    }
}

impl Data {
    fn held(&self) -> &Chunks {
        let (Self::Whole { chunks, .. } | Self::Once { held: chunks, .. }) = self;
        chunks
    }
}

impl CallBody {
    /// A body that is held whole, in chunks as they came.
    pub(crate) fn whole(
        chunks: impl Into<Chunks>,
        trailers: Option<HeaderMap>,
        call: Arc<Call>,
        state: CallState,
    ) -> Self {
        Self::new(Data::Whole { chunks: chunks.into(), trailers }, call, state)
    }

    /// A body that was too large to hold: what was read of it so far, and the rest, which can be
    /// sent once.
    pub(crate) fn once(
        held: impl Into<Chunks>,
        rest: Rest,
        call: Arc<Call>,
        state: CallState,
    ) -> Self {
        Self::new(Data::Once { held: held.into(), rest }, call, state)
    }

    fn new(data: Data, call: Arc<Call>, state: CallState) -> Self {
        let context = CallContext { call, state, retry: RetryOverride::default(), upstream: None };
        Self(Payload { data, context })
    }

    /// What the request asks for.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.0.context.call
    }

    /// What has been decided for this call so far, for people.
    #[must_use]
    pub fn trail(&self) -> &Trail {
        self.0.context.state.trail()
    }

    /// The moment at which the caller stops waiting for the whole call, where it has one.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.0.context.state.deadline()
    }

    /// Whether the bytes are all held, so that further attempts can be made.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        matches!(self.0.data, Data::Whole { .. })
    }

    /// The bytes in order, to be read and not sent, where they are all held.
    #[must_use]
    pub fn chunks(&self) -> Option<&[Bytes]> {
        match &self.0.data {
            Data::Whole { chunks, .. } => Some(chunks.as_slice()),
            Data::Once { .. } => None,
        }
    }

    /// The bytes as one piece, where they are all held.
    pub(crate) fn joined(&self) -> Option<Bytes> {
        match &self.0.data {
            Data::Whole { chunks, .. } => Some(chunks.joined()),
            Data::Once { .. } => None,
        }
    }

    pub(crate) fn state(&self) -> &CallState {
        &self.0.context.state
    }

    pub(crate) fn retry(&self) -> &RetryOverride {
        &self.0.context.retry
    }

    /// How this pass of the call is to be retried.
    pub(crate) fn set_retry(&mut self, retry: RetryOverride) {
        self.0.context.retry = retry;
    }

    /// The same body with other bytes in place of its own: a layer that rewrites a request keeps
    /// what does not change as slices of the chunks that were there. A body that is not held whole
    /// stays as it is.
    pub(crate) fn replace_chunks(&mut self, new: Vec<Bytes>) {
        if let Data::Whole { chunks, .. } = &mut self.0.data {
            *chunks = new.into();
        }
    }

    /// The next attempt of this call. The body is used up: who wants another needs a permit.
    pub(crate) fn into_attempt(self) -> AttemptBody {
        let attempt = self.0.context.state.new_attempt();
        AttemptBody { payload: self.0, attempt, deadline: None }
    }
}

impl AttemptBody {
    /// What the request asks for.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.payload.context.call
    }

    /// What has been decided for this call so far, for people.
    #[must_use]
    pub fn trail(&self) -> &Trail {
        self.payload.context.state.trail()
    }

    /// The moment at which this attempt must have ended, where there is one: the call's deadline, or
    /// an earlier one of its own.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.payload.context.state.deadline().into_iter().chain(self.deadline).min()
    }

    /// The same, where an attempt under way ends at the call's deadline.
    pub(crate) fn attempt_deadline(&self) -> Option<Instant> {
        let state = &self.payload.context.state;
        state.attempt_deadline().into_iter().chain(self.deadline).min()
    }

    /// Gives this attempt alone an earlier deadline.
    pub(crate) fn limit_deadline(&mut self, at: Instant) {
        self.deadline = self.deadline.into_iter().chain([at]).min();
    }

    /// Which attempt of the call this is, from 1 on, all targets and sizes counted.
    #[must_use]
    pub fn number(&self) -> usize {
        self.attempt.number()
    }

    pub(crate) fn state(&self) -> &CallState {
        &self.payload.context.state
    }

    pub(crate) fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// The upstream that a fallback sends the attempt to; `None` where it goes to the caller's own.
    #[must_use]
    pub fn upstream(&self) -> Option<&Arc<UpstreamId>> {
        self.payload.context.upstream.as_ref()
    }

    pub(crate) fn retry(&self) -> &RetryOverride {
        &self.payload.context.retry
    }

    /// The body as the client sends it.
    pub(crate) fn into_wire(self) -> WireBody {
        let Payload { data, context: CallContext { call, upstream, .. } } = self.payload;
        let body = WireBody { data, call, attempt: self.attempt, upstream };
        if body.is_end_stream() {
            // An empty body is never read: it tells nothing.
            body.attempt.count_as_sent();
        }
        body
    }
}

impl WireBody {
    /// What the request asks for.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// The upstream that a fallback sends the request to; `None` where it goes to the caller's own.
    #[must_use]
    pub fn upstream(&self) -> Option<&UpstreamId> {
        self.upstream.as_deref()
    }

    /// Where what is held of the response is accounted for, for clients that hold it whole; `None`
    /// where nothing is.
    #[must_use]
    pub fn memory(&self) -> Option<Arc<dyn CallMemory>> {
        self.attempt.state().memory().cloned()
    }

    pub(crate) fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// An empty body of a further request of the same attempt.
    pub(crate) fn empty(call: Arc<Call>, attempt: Attempt) -> Self {
        let data = Data::Whole { chunks: Chunks::default(), trailers: None };
        Self { data, call, attempt, upstream: None }
    }

    /// The bytes in order, where they are all held, for clients that take a body in one piece.
    ///
    /// Whoever has them may send them, so the request counts as sent from here on.
    #[must_use]
    pub fn chunks(&self) -> Option<&[Bytes]> {
        match &self.data {
            Data::Whole { chunks, .. } => {
                self.attempt.count_as_sent();
                Some(chunks.as_slice())
            }
            Data::Once { .. } => None,
        }
    }
}

/// A body that belongs to no call, to try a client without a stack.
impl From<Bytes> for WireBody {
    fn from(bytes: Bytes) -> Self {
        let state = CallState::new(CallOptions::new());
        let call = Arc::new(Call::unrecognised());
        CallBody::whole([bytes], None, call, state).into_attempt().into_wire()
    }
}

impl Body for WireBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let abandoned =
            || Poll::Ready(Some(Err(Error::request_body("the attempt was abandoned".into()))));
        if !this.attempt.read() {
            return abandoned();
        }
        match &mut this.data {
            Data::Whole { chunks, trailers } => match chunks.pop_piece(SLICE) {
                // Abandoned in this very moment: the last piece stays here.
                Some(_) if chunks.is_empty() && !this.attempt.hand_over() => abandoned(),
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if !this.attempt.hand_over() => abandoned(),
                None => Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
            },
            Data::Once { held, rest } => {
                if let Some(piece) = held.pop_piece(SLICE) {
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                // Where it ends is the sender's knowledge: any of what follows may be the last of
                // it.
                if !this.attempt.hand_over() {
                    return abandoned();
                }
                let frame = ready!(rest.as_mut().poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(Error::request_body)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.data {
            Data::Whole { chunks, trailers } => trailers.is_none() && chunks.is_empty(),
            Data::Once { held, rest } => held.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.data.held().bytes() as u64;
        match &self.data {
            Data::Whole { .. } => SizeHint::with_exact(held),
            Data::Once { rest, .. } => and_held(rest.size_hint(), held),
        }
    }
}

/// The size of a body of which `held` bytes come before the rest.
pub(crate) fn and_held(rest: SizeHint, held: u64) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_lower(held.saturating_add(rest.lower()));
    if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(held)) {
        hint.set_upper(upper);
    }
    hint
}

impl fmt::Debug for CallBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("CallBody", f)
    }
}

impl fmt::Debug for AttemptBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.payload.debug("AttemptBody", f)
    }
}

impl fmt::Debug for WireBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireBody").field("call", &self.call).finish_non_exhaustive()
    }
}

/// A request that is kept to make further attempts of it, for a permit each.
#[derive(Clone)]
pub(crate) struct RequestTemplate {
    parts: Parts,
    chunks: Chunks,
    trailers: Option<HeaderMap>,
    context: CallContext,
    /// The chunks in one piece, made once when a rewrite has to read them.
    joined: OnceLock<Bytes>,
}

impl RequestTemplate {
    /// Keeps a request before it is sent; `None` where its body is not held whole. The bytes are
    /// shared, the head is copied.
    pub(crate) fn new(request: &Request<CallBody>) -> Option<Self> {
        let Payload { data, context } = &request.body().0;
        let Data::Whole { chunks, trailers } = data else { return None };
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = request.method().clone();
        parts.uri = request.uri().clone();
        parts.version = request.version();
        parts.headers = request.headers().clone();
        parts.extensions = request.extensions().clone();
        Some(Self {
            parts,
            chunks: chunks.clone(),
            trailers: trailers.clone(),
            context: context.clone(),
            joined: OnceLock::new(),
        })
    }

    /// What the request asks for.
    pub(crate) fn call(&self) -> &Arc<Call> {
        &self.context.call
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) fn chunks(&self) -> &[Bytes] {
        self.chunks.as_slice()
    }

    pub(crate) fn state(&self) -> &CallState {
        &self.context.state
    }

    /// The request as it would be sent to a target, or why it cannot be. Nothing is sent.
    ///
    /// A body in one chunk is shared and never copied; one in many is joined once, for all
    /// rewrites.
    pub(crate) fn rewritten(&self, target: &Target, rules: &Rules<'_>) -> Result<Rewrite, Unfit> {
        let joined = || self.joined.get_or_init(|| self.chunks.joined()).clone();
        rewrite(&self.parts, &self.context.call, target, rules, joined)
    }

    /// The request once more, byte for byte, for a permit.
    pub(crate) fn again(&self, permit: ResendPermit) -> Request<CallBody> {
        // The permit is used up here: taking it by value is what makes a second send impossible
        // without another.
        permit.use_up();
        let data = Data::Whole { chunks: self.chunks.clone(), trailers: self.trailers.clone() };
        let payload = Payload { data, context: self.context.clone() };
        Request::from_parts(self.parts.clone(), CallBody(payload))
    }

    /// The request once more, rewritten, for a permit.
    pub(crate) fn again_as(&self, permit: ResendPermit, rewrite: Rewrite) -> Request<CallBody> {
        instead_of(self.again(permit), rewrite)
    }
}

/// The rewritten request in place of the one it was made from, which is not sent: so it takes no
/// permit.
pub(crate) fn instead_of(request: Request<CallBody>, rewrite: Rewrite) -> Request<CallBody> {
    let (mut parts, mut body) = request.into_parts();
    rewrite.apply_to_head(&mut parts);
    if let Some(upstream) = rewrite.upstream() {
        body.0.context.upstream = Some(Arc::new(upstream.id()));
    }
    let (chunks, call) = rewrite.into_body();
    if let Some(chunks) = chunks {
        body.replace_chunks(chunks);
    }
    body.0.context.call = call;
    Request::from_parts(parts, body)
}

impl fmt::Debug for RequestTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and URI hold keys: they are left out.
        f.debug_struct("RequestTemplate").field("call", &self.context.call).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;
    use std::time::Duration;
    use tower_gemini_core::verdict::{Charge, Verdict};

    fn call_body(chunks: Vec<Bytes>) -> CallBody {
        let state = CallState::new(CallOptions::new());
        CallBody::whole(chunks, None, Arc::new(Call::unrecognised()), state)
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempts_own_deadline_never_moves_back_nor_beyond_the_calls() {
        let options = CallOptions::new().deadline(Duration::from_secs(10));
        let state = CallState::new(options);
        let at = |seconds| Some(state.started() + Duration::from_secs(seconds));
        let call = Arc::new(Call::unrecognised());
        let mut body = CallBody::whole([], None, call, state.clone()).into_attempt();
        for (limit, deadline) in [(60, 10), (5, 5), (9, 5)] {
            body.limit_deadline(at(limit).unwrap());
            assert_eq!(body.deadline(), at(deadline));
        }
        assert_eq!(state.deadline(), at(10), "the call's is its own");
    }

    /// The body as it is sent, and its attempt.
    fn wire(body: CallBody) -> (WireBody, Attempt) {
        let attempt = body.into_attempt();
        let handle = attempt.attempt().clone();
        handle.begin(&Call::unrecognised(), None);
        (attempt.into_wire(), handle)
    }

    fn drain(body: WireBody) -> Vec<u8> {
        let mut body = std::pin::pin!(body);
        let mut all = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
            if let Ok(data) = frame.unwrap().into_data() {
                all.extend_from_slice(&data);
            }
        }
        all
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(1000))]
        #[test]
        fn a_replay_equals_the_first_send(chunks in proptest::collection::vec(proptest::collection::vec(0u8.., 0..50), 0..6)) {
            let chunks: Vec<Bytes> = chunks.into_iter().map(Bytes::from).collect();
            let request = Request::new(call_body(chunks));
            let template = RequestTemplate::new(&request).unwrap();
            let state = template.state().clone();
            let (body, _) = wire(request.into_body());
            let hint = body.size_hint().exact().unwrap();
            let first = drain(body);
            assert_eq!(hint, first.len() as u64);
            for _ in 0..2 {
                let permit = state.permit_after(&Verdict::not_sent()).unwrap();
                let (again, _) = wire(template.again(permit).into_body());
                assert_eq!(drain(again), first);
            }
        }
    }

    #[test]
    fn a_request_is_out_with_its_last_byte_and_not_before() {
        let long = Bytes::from(vec![7; 3 * SLICE]);
        let body = call_body(vec![long.clone(), Bytes::new(), "end".into()]);
        let state = body.state().clone();
        let (body, _) = wire(body);
        let mut body = std::pin::pin!(body);
        let mut cx = Context::from_waker(Waker::noop());
        let mut read = 0;
        while read < long.len() + 3 {
            assert_eq!(state.worst_charge(), Charge::None, "{read} bytes read");
            let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) else {
                panic!("the body stops short")
            };
            read += frame.into_data().unwrap().len();
        }
        assert_eq!(state.worst_charge(), Charge::Maybe);
    }

    // A client may go on with a request that nobody waits for any more (hyper does, while it waits
    // for an HTTP/2 stream): the server would get the whole of a request that was called free, and
    // of the one sent in its place.
    #[test]
    fn a_request_that_was_abandoned_never_goes_out_whole() {
        for (chunks, reads) in
            [(vec![Bytes::from_static(b"{}")], 0), (vec![Bytes::from(vec![7; 3 * SLICE])], 2)]
        {
            let (body, attempt) = wire(call_body(chunks));
            let mut body = std::pin::pin!(body);
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..reads {
                assert!(matches!(body.as_mut().poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
            }
            assert_eq!(attempt.cut_off().charge(), Charge::None);
            for _ in 0..3 {
                let Poll::Ready(Some(Err(error))) = body.as_mut().poll_frame(&mut cx) else {
                    panic!("it goes on")
                };
                assert!(error.charge().is_surely_free());
            }
        }
    }

    #[test]
    fn a_request_that_is_out_is_not_called_free_afterwards() {
        let (body, attempt) = wire(call_body(vec!["{}".into()]));
        assert_eq!(drain(body), b"{}");
        assert_eq!(attempt.cut_off().charge(), Charge::Maybe);
    }

    #[test]
    fn a_client_that_takes_the_bytes_may_have_sent_them() {
        let (body, attempt) = wire(call_body(vec!["{}".into()]));
        assert_eq!(body.chunks().unwrap().concat(), b"{}");
        assert_eq!(attempt.cut_off().charge(), Charge::Maybe);
    }

    #[test]
    fn looking_at_a_call_sends_nothing() {
        let body = call_body(vec!["{".into(), "}".into()]);
        assert_eq!(body.chunks().unwrap().concat(), b"{}");
        assert_eq!(body.state().worst_charge(), Charge::None);
        assert_eq!(body.state().cut_off(), Verdict::not_sent());
    }

    // An empty body is never read, so nothing tells when it is sent.
    #[test]
    fn an_empty_body_counts_as_sent_from_the_start() {
        let (body, attempt) = wire(call_body(Vec::new()));
        assert!(body.is_end_stream());
        assert_eq!(attempt.cut_off().charge(), Charge::Maybe);
    }

    #[test]
    fn a_body_that_can_be_sent_once_makes_no_template() {
        struct Rest(u8);
        impl Body for Rest {
            type Data = Bytes;
            type Error = BoxError;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
                self.0 = self.0.saturating_sub(1);
                let frame = (self.0 > 0).then(|| Ok(Frame::data(Bytes::from_static(b"rest"))));
                Poll::Ready(frame)
            }
        }
        let call = Arc::new(Call::unrecognised());
        let state = CallState::new(CallOptions::new());
        let body = CallBody::once(vec!["held ".into()], Box::pin(Rest(3)), call, state);
        assert!(!body.is_replayable());
        let request = Request::new(body);
        assert!(RequestTemplate::new(&request).is_none());
        let (body, _) = wire(request.into_body());
        assert_eq!(drain(body), b"held restrest");
    }
}
