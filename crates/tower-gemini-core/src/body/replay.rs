use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};

use crate::call::Call;
use crate::context::CallContext;
use crate::error::{BoxError, Error};
use crate::target::{Original, Rewrite, Rules, Target, Unfit, rewrite};
use crate::trail::AttemptId;
#[cfg(doc)]
use crate::trail::Trail;
use crate::verdict::ResendPermit;

/// A request's body, kept so that it can be sent again, with the [`Call`] it belongs to and that
/// call's [`CallContext`].
///
/// It cannot be cloned. A second body comes only from a [`KeptRequest`], and that asks for a
/// [`ResendPermit`]. Bytes are shared, never copied.
///
/// A body that was too large to keep is [streamed once](Self::once) and is not replayable.
pub struct ReplayBody {
    data: Data,
    call: Arc<Call>,
    context: CallContext,
    /// The attempt that sends it, once there is one.
    attempt: Option<AttemptId>,
}

enum Data {
    Whole {
        chunks: Chunks,
        next: Place,
        trailers: Option<HeaderMap>,
    },
    Once {
        held: Chunks,
        next: Place,
        rest: Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>,
    },
}

/// Chunks in order. One chunk, the usual case, needs no allocation.
#[derive(Clone)]
enum Chunks {
    One(Bytes),
    Many(Arc<[Bytes]>),
}

impl Chunks {
    fn of(chunks: impl IntoIterator<Item = Bytes>) -> Self {
        let mut chunks = chunks.into_iter();
        let first = chunks.next().unwrap_or_default();
        match chunks.next() {
            None => Self::One(first),
            Some(second) => Self::Many([first, second].into_iter().chain(chunks).collect()),
        }
    }

    fn as_slice(&self) -> &[Bytes] {
        match self {
            Self::One(chunk) => std::slice::from_ref(chunk),
            Self::Many(chunks) => chunks,
        }
    }

    /// The next piece, and whether it is the last.
    fn next(&self, at: &mut Place) -> Option<(Bytes, bool)> {
        while let Some(chunk) = self.as_slice().get(at.chunk) {
            let left = chunk.len() - at.offset;
            let take = if left > SLICE + SLICE / 2 { SLICE } else { left };
            let piece = chunk.slice(at.offset..at.offset + take);
            if take == left {
                *at = Place { chunk: at.chunk + 1, offset: 0 };
            } else {
                at.offset += take;
            }
            if !piece.is_empty() {
                return Some((piece, self.len_from(*at) == 0));
            }
        }
        None
    }

    fn len_from(&self, at: Place) -> u64 {
        let all: u64 = self.as_slice().iter().skip(at.chunk).map(|chunk| chunk.len() as u64).sum();
        all - at.offset as u64
    }
}

/// How far a body has been read.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    chunk: usize,
    offset: usize,
}

/// A long chunk is handed out in slices of this size: how much of a body a client has asked for is
/// what tells whether the server can have all of it, and a client asks for the next slice only when
/// most of the last has left (hyper holds up to about 400 KiB back).
const SLICE: usize = 64 * 1024;

impl ReplayBody {
    /// A body that is held whole, in chunks as they came.
    #[must_use]
    pub fn whole(
        chunks: impl IntoIterator<Item = Bytes>,
        trailers: Option<HeaderMap>,
        call: Arc<Call>,
        context: CallContext,
    ) -> Self {
        Self {
            data: Data::Whole { chunks: Chunks::of(chunks), next: Place::default(), trailers },
            call,
            context,
            attempt: None,
        }
    }

    /// A body that was too large to hold: what was read of it so far, and the rest, which can be
    /// sent once.
    #[must_use]
    pub fn once(
        held: impl IntoIterator<Item = Bytes>,
        rest: Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>,
        call: Arc<Call>,
        context: CallContext,
    ) -> Self {
        Self {
            data: Data::Once { held: Chunks::of(held), next: Place::default(), rest },
            call,
            context,
            attempt: None,
        }
    }

    /// What the request asks for.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// What the call carries through all its attempts.
    #[must_use]
    pub fn context(&self) -> &CallContext {
        &self.context
    }

    /// What the call carries, to set a deadline or an allowance.
    pub fn context_mut(&mut self) -> &mut CallContext {
        &mut self.context
    }

    /// Whether the bytes are all held, so that they could be sent again.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        matches!(self.data, Data::Whole { .. })
    }

    /// The bytes in order, where they are all held.
    ///
    /// Whoever has them may send them, so the request counts as [out](Trail::request_is_out) from
    /// here on.
    #[must_use]
    pub fn chunks(&self) -> Option<&[Bytes]> {
        match &self.data {
            Data::Whole { chunks, .. } => {
                match &self.attempt {
                    Some(attempt) => attempt.count_as_sent(),
                    None => self.context.trail().handed_over(),
                }
                Some(chunks.as_slice())
            }
            Data::Once { .. } => None,
        }
    }

    /// The bytes in order, to be read here and not sent, where they are all held: for whoever
    /// compares requests.
    ///
    /// Unlike [`chunks`](Self::chunks) it does not make the request count as
    /// [out](Trail::request_is_out), so that a call that is given up before its first attempt stays
    /// what it is: never sent.
    #[must_use]
    pub fn slices(&self) -> Option<impl Iterator<Item = &[u8]> + Clone> {
        match &self.data {
            Data::Whole { chunks, .. } => Some(chunks.as_slice().iter().map(|chunk| &chunk[..])),
            Data::Once { .. } => None,
        }
    }

    /// Whether reading this body tells how far the request got: an empty one is never read.
    #[must_use]
    pub fn tells_whether_it_is_out(&self) -> bool {
        !self.is_end_stream()
    }

    /// Says which attempt sends this body: from then on reading it tells that attempt how far the
    /// request got, and it ends with an error once the attempt was [given up](AttemptId::cut_off)
    /// before its last byte was read. A client may go on with a request that nobody waits for; it
    /// must not complete one that was called free.
    pub fn sent_by(&mut self, attempt: AttemptId) {
        self.attempt = Some(attempt);
    }

    /// The same body with other bytes in place of its own: a layer that rewrites a request keeps
    /// what does not change as slices of the chunks that were there. A body that is not held whole
    /// is given back as it is.
    ///
    /// Whoever changes the length must remove `content-length` and `transfer-encoding` from the
    /// head: a stale length is silently truncated, or hangs, in hyper and reqwest alike.
    ///
    /// # Errors
    ///
    /// The body itself where it is not held whole.
    pub fn with_chunks(self, chunks: Vec<Bytes>) -> Result<Self, Box<Self>> {
        match self.data {
            Data::Whole { trailers, .. } => {
                let data =
                    Data::Whole { chunks: Chunks::of(chunks), next: Place::default(), trailers };
                Ok(Self { data, call: self.call, context: self.context, attempt: None })
            }
            Data::Once { .. } => Err(Box::new(self)),
        }
    }

    /// The [`ReplayBody`] of any request, where it has one.
    #[must_use]
    pub fn of<B: 'static>(request: &Request<B>) -> Option<&Self> {
        (request.body() as &dyn Any).downcast_ref()
    }

    /// The same, to change it.
    pub fn of_mut<B: 'static>(request: &mut Request<B>) -> Option<&mut Self> {
        (request.body_mut() as &mut dyn Any).downcast_mut()
    }

    /// The call of any request: from its [`ReplayBody`], else from an `Arc<Call>` in its
    /// extensions, else from its head alone.
    #[must_use]
    pub fn call_of<B: 'static>(request: &Request<B>) -> Arc<Call> {
        if let Some(body) = Self::of(request) {
            return body.call.clone();
        }
        if let Some(call) = request.extensions().get::<Arc<Call>>() {
            return call.clone();
        }
        Arc::new(Call::parse(request.method(), request.uri(), request.headers(), None))
    }

    /// The context of any request: from its [`ReplayBody`], else an empty one.
    #[must_use]
    pub fn context_of<B: 'static>(request: &Request<B>) -> CallContext {
        match Self::of(request) {
            Some(body) => body.context.clone(),
            None => CallContext::new(),
        }
    }
}

impl Body for ReplayBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let given_up =
            || Poll::Ready(Some(Err(Error::request_body("the attempt was given up".into()))));
        if this.attempt.as_ref().is_some_and(AttemptId::is_given_up) {
            return given_up();
        }
        let hand_over = || match &this.attempt {
            Some(attempt) => attempt.hand_over(),
            None => {
                this.context.trail().handed_over();
                true
            }
        };
        match &mut this.data {
            Data::Whole { chunks, next, trailers } => match chunks.next(next) {
                // Given up in this very moment: the last piece stays here.
                Some((_, true)) if !hand_over() => given_up(),
                Some((piece, _)) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if !hand_over() => given_up(),
                None => Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
            },
            Data::Once { held, next, rest } => {
                if let Some((piece, _)) = held.next(next) {
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                // Where it ends is the sender's knowledge: any of what follows may be the last of
                // it.
                if !hand_over() {
                    return given_up();
                }
                Poll::Ready(
                    ready!(rest.as_mut().poll_frame(cx))
                        .map(|frame| frame.map_err(Error::request_body)),
                )
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.data {
            Data::Whole { chunks, next, trailers } => {
                trailers.is_none() && chunks.len_from(*next) == 0
            }
            Data::Once { held, next, rest } => held.len_from(*next) == 0 && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.data {
            Data::Whole { chunks, next, .. } => SizeHint::with_exact(chunks.len_from(*next)),
            Data::Once { held, next, rest } => {
                let (held, rest) = (held.len_from(*next), rest.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(held.saturating_add(rest.lower()));
                if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(held)) {
                    hint.set_upper(upper);
                }
                hint
            }
        }
    }
}

impl fmt::Debug for ReplayBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, bytes) = match &self.data {
            Data::Whole { chunks, .. } => ("whole", chunks.len_from(Place::default())),
            Data::Once { held, .. } => ("once", held.len_from(Place::default())),
        };
        f.debug_struct("ReplayBody")
            .field("kind", &kind)
            .field("held_bytes", &bytes)
            .field("call", &self.call)
            .finish()
    }
}

/// A request put by, so that it can be sent again.
///
/// ```
/// use std::sync::Arc;
/// use tower_gemini_core::{body::{KeptRequest, ReplayBody}, call::Call, context::CallContext, verdict::Verdict};
///
/// let body = ReplayBody::whole(vec!["{}".into()], None, Arc::new(Call::unrecognised()), CallContext::new());
/// let request = http::Request::post("/v1beta/models/m:generateContent").body(body).unwrap();
/// let kept = KeptRequest::of(&request).unwrap();
/// // … the request is sent, and the connection is refused:
/// let permit = Verdict::not_sent().resend_permit().unwrap();
/// let again = kept.again(permit);
/// assert_eq!(again.uri(), "/v1beta/models/m:generateContent");
/// ```
#[derive(Clone)]
pub struct KeptRequest {
    parts: Parts,
    chunks: Chunks,
    trailers: Option<HeaderMap>,
    call: Arc<Call>,
    context: CallContext,
    /// The chunks in one piece, made once when a rewrite has to read them.
    joined: OnceLock<Bytes>,
}

/// The request's body was too large to keep, so it can be sent once only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotReplayable;

impl fmt::Display for NotReplayable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request's body was too large to keep for a second send")
    }
}

impl std::error::Error for NotReplayable {}

impl KeptRequest {
    /// Puts a request by before it is sent. The bytes are shared, the head is copied.
    ///
    /// # Errors
    ///
    /// [`NotReplayable`] where the body is not held whole.
    pub fn of(request: &Request<ReplayBody>) -> Result<Self, NotReplayable> {
        let Data::Whole { chunks, trailers, .. } = &request.body().data else {
            return Err(NotReplayable);
        };
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = request.method().clone();
        parts.uri = request.uri().clone();
        parts.version = request.version();
        parts.headers = request.headers().clone();
        parts.extensions = request.extensions().clone();
        let body = request.body();
        Ok(Self {
            parts,
            chunks: chunks.clone(),
            trailers: trailers.clone(),
            call: body.call.clone(),
            context: body.context.clone(),
            joined: OnceLock::new(),
        })
    }

    /// What the request asks for.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// What the call carries.
    #[must_use]
    pub fn context(&self) -> &CallContext {
        &self.context
    }

    /// The request as it would be sent to a target, or why it cannot be. Nothing is sent: see
    /// [`Rewrite`].
    ///
    /// A body in one chunk is shared and never copied; one in many is joined once, for all
    /// rewrites.
    ///
    /// # Errors
    ///
    /// [`Unfit`] says what the target lacks, or what the caller [must
    /// keep](crate::target::MustKeep).
    pub fn rewritten(&self, target: &Target, rules: &Rules<'_>) -> Result<Rewrite, Unfit> {
        let original = Original { parts: &self.parts, call: &self.call };
        rewrite(&original, target, rules, || match &self.chunks {
            Chunks::One(chunk) => chunk.clone(),
            Chunks::Many(chunks) => self.joined.get_or_init(|| chunks.concat().into()).clone(),
        })
    }

    /// The request once more, rewritten, for a permit.
    #[must_use]
    pub fn again_as(&self, permit: ResendPermit, rewrite: Rewrite) -> Request<ReplayBody> {
        self.again(permit).map_rewritten(rewrite)
    }

    /// The request once more, byte for byte, for a permit.
    #[must_use]
    pub fn again(&self, permit: ResendPermit) -> Request<ReplayBody> {
        // The permit is used up here: taking it by value is what makes a second send impossible
        // without another.
        let ResendPermit { .. } = permit;
        let data = Data::Whole {
            chunks: self.chunks.clone(),
            next: Place::default(),
            trailers: self.trailers.clone(),
        };
        Request::from_parts(
            self.parts.clone(),
            ReplayBody {
                data,
                call: self.call.clone(),
                context: self.context.clone(),
                attempt: None,
            },
        )
    }
}

trait MapRewritten {
    fn map_rewritten(self, rewrite: Rewrite) -> Self;
}

impl MapRewritten for Request<ReplayBody> {
    fn map_rewritten(self, rewrite: Rewrite) -> Self {
        let (mut parts, mut body) = self.into_parts();
        rewrite.head(&mut parts);
        if let (Some(new), Data::Whole { chunks, .. }) = (rewrite.chunks, &mut body.data) {
            *chunks = Chunks::of(new);
        }
        body.call = rewrite.call;
        Self::from_parts(parts, body)
    }
}

impl Rewrite {
    /// The rewritten request in place of the one it was made from, which is not sent: so it takes
    /// no permit.
    #[must_use]
    pub fn instead_of(self, request: Request<ReplayBody>) -> Request<ReplayBody> {
        request.map_rewritten(self)
    }
}

impl fmt::Debug for KeptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and URI hold keys: they are left out.
        f.debug_struct("KeptRequest")
            .field("call", &self.call)
            .field("bytes", &self.chunks.len_from(Place::default()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Verdict;
    use std::task::Waker;

    fn drain(body: ReplayBody) -> Vec<u8> {
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

    fn request(chunks: Vec<Bytes>) -> Request<ReplayBody> {
        Request::new(ReplayBody::whole(
            chunks,
            None,
            Arc::new(Call::unrecognised()),
            CallContext::new(),
        ))
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(1000))]
        #[test]
        fn a_replay_equals_the_first_send(chunks in proptest::collection::vec(proptest::collection::vec(0u8.., 0..50), 0..6)) {
            let chunks: Vec<Bytes> = chunks.into_iter().map(Bytes::from).collect();
            let request = request(chunks);
            let kept = KeptRequest::of(&request).unwrap();
            let hint = request.body().size_hint().exact().unwrap();
            let first = drain(request.into_body());
            assert_eq!(hint, first.len() as u64);
            for _ in 0..2 {
                let again = kept.again(Verdict::not_sent().resend_permit().unwrap());
                assert_eq!(drain(again.into_body()), first);
            }
        }
    }

    #[test]
    fn a_request_is_out_with_its_last_byte_and_not_before() {
        let long = Bytes::from(vec![7; 3 * SLICE]);
        let body = ReplayBody::whole(
            [long.clone(), Bytes::new(), "end".into()],
            None,
            Arc::new(Call::unrecognised()),
            CallContext::new(),
        );
        let trail = body.context().trail().clone();
        let _ = trail.begin_attempt(None, None);
        let mut body = std::pin::pin!(body);
        let mut cx = Context::from_waker(Waker::noop());
        let mut read = 0;
        while read < long.len() + 3 {
            assert!(!trail.request_is_out(), "{read} bytes read");
            let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) else {
                panic!("the body stops short")
            };
            read += frame.into_data().unwrap().len();
        }
        assert!(trail.request_is_out());
    }

    // A client may go on with a request that nobody waits for any more (hyper does, while it waits
    // for an HTTP/2 stream): the server would get the whole of a request that was called free, and
    // of the one sent in its place.
    #[test]
    fn a_request_that_was_given_up_never_goes_out_whole() {
        for (chunks, reads) in
            [(vec![Bytes::from_static(b"{}")], 0), (vec![Bytes::from(vec![7; 3 * SLICE])], 2)]
        {
            let mut body = request(chunks.clone()).into_body();
            let attempt = body.context().trail().begin_attempt(None, None);
            body.sent_by(attempt.clone());
            let mut body = std::pin::pin!(body);
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..reads {
                assert!(matches!(body.as_mut().poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
            }
            assert_eq!(attempt.cut_off().charge(), crate::verdict::Charge::None);
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
        let mut body = request(vec!["{}".into()]).into_body();
        let attempt = body.context().trail().begin_attempt(None, None);
        body.sent_by(attempt.clone());
        assert_eq!(drain(body), b"{}");
        assert_eq!(attempt.cut_off().charge(), crate::verdict::Charge::Maybe);
    }

    #[test]
    fn who_takes_the_bytes_may_have_sent_them() {
        let request = request(vec!["{}".into()]);
        let trail = request.body().context().trail().clone();
        let _ = trail.begin_attempt(None, None);
        assert_eq!(request.body().chunks().unwrap().concat(), b"{}");
        assert!(trail.request_is_out());
    }

    #[test]
    fn who_only_looks_at_the_bytes_sends_nothing() {
        let request = request(vec!["{".into(), "}".into()]);
        let trail = request.body().context().trail().clone();
        assert_eq!(request.body().slices().unwrap().collect::<Vec<_>>().concat(), b"{}");
        assert!(!trail.request_is_out());
        assert_eq!(trail.cut_off().outcome(), crate::verdict::Outcome::NotSent);
    }

    #[test]
    fn a_body_sent_once_cannot_be_kept() {
        struct Rest(u8);
        impl Body for Rest {
            type Data = Bytes;
            type Error = BoxError;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
                self.0 = self.0.saturating_sub(1);
                Poll::Ready((self.0 > 0).then(|| Ok(Frame::data(Bytes::from_static(b"rest")))))
            }
        }
        let body = ReplayBody::once(
            vec!["held ".into()],
            Box::pin(Rest(3)),
            Arc::new(Call::unrecognised()),
            CallContext::new(),
        );
        assert!(!body.is_replayable());
        let request = Request::new(body);
        assert_eq!(KeptRequest::of(&request).unwrap_err(), NotReplayable);
        assert_eq!(drain(request.into_body()), b"held restrest");
    }
}
