//! Calls in flight: what happens to one whose client disconnects.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::error::Error;
use crate::trail::{NotStoredReason, Step};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tower_gemini_core::call::ServiceTier;
use tower_gemini_core::verdict::{Outcome, Verdict};

use super::calls::{Clients, after};
use super::progress::CallEvent;
use super::registry::{Registry, TaskCount};
use super::room::Room;
use super::stored::{CallId, StoredResponse, encode, is_worth_storing, last_byte_apart};
use crate::body::HasVerdict;
use crate::call_state::CallState;
use crate::headers::for_rebuilt_body;
use crate::store::JournalChange;

/// Bodies that can be read to their end without a client. Implemented for every body of this crate;
/// there is nothing to implement by hand.
pub trait CompletableBody:
    Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static
{
}

impl<B> CompletableBody for B where
    B: Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static
{
}

/// A call that was or will be sent. Dropped before it has come to anything (a panic, the end of the
/// runtime), it is lost where it may be charged.
pub(super) struct InFlight {
    pub(super) registry: Arc<Registry>,
    pub(super) id: CallId,
    pub(super) state: CallState,
    /// Its client marks its resends.
    pub(super) marks_resends: bool,
    /// Who waits for it, where it has a key.
    pub(super) clients: Option<Clients>,
    /// How long it may go on without a client.
    max_time: Duration,
    is_detached: bool,
    is_over: bool,
    /// Last, so that whoever waits for the task finds its result.
    task: Option<TaskCount>,
}

impl InFlight {
    pub(super) fn new(
        registry: Arc<Registry>,
        id: CallId,
        state: CallState,
        tier: ServiceTier,
        marks_resends: bool,
        clients: Option<Clients>,
    ) -> Self {
        Self {
            max_time: registry.settings.max_time.saturating_add(tier.queue_time()),
            registry,
            id,
            state,
            marks_resends,
            clients,
            is_detached: false,
            is_over: false,
            task: None,
        }
    }

    fn end(mut self, event: CallEvent) {
        self.is_over = true;
        self.registry.with(|calls, now| calls.apply(self.id, event, now));
    }

    /// The client is told of this error, and its resends are told of what may have been charged:
    /// some SDKs resend whatever they hear.
    pub(super) fn fail(self, error: &Error) {
        let is_free = error.charge().is_surely_free() && !self.state.earlier_may_be_charged();
        self.end(if is_free { CallEvent::EndFree } else { CallEvent::Report });
    }

    /// The client has the whole response, as far as can be seen from here.
    pub(super) fn deliver(mut self, seen: Collected, verdict: Option<Verdict>) {
        let is_free = is_free(verdict.as_ref());
        if !is_free && !is_worth_storing(seen.status, outcome_of(verdict.as_ref())) {
            // It told the client of a loss.
            return self.end(CallEvent::Report);
        }
        self.is_over = true;
        let is_for_resend = self.marks_resends && !is_free;
        let response = is_for_resend.then(|| seen.response(&self.state, verdict)).flatten();
        self.registry.with(|calls, now| match response {
            // There was no room for a copy.
            None if is_for_resend => {
                calls.apply(self.id, CallEvent::Deliver { remember: true }, now);
            }
            response => calls.delivered(self.id, response.map(Arc::new), now),
        });
    }

    pub(super) fn has_journal(&self) -> bool {
        self.registry.settings.journal.is_some()
    }

    /// Writes a charged response into the journal, where there is one. `taken`: a client waits for
    /// it.
    pub(super) fn write_down(
        &self,
        response: Option<StoredResponse>,
        taken: bool,
    ) -> Option<Writing> {
        let journal = self.registry.settings.journal.clone()?;
        let response = response.filter(StoredResponse::is_worth_storing)?;
        let id = self.id;
        if !self.registry.with(|calls, _| calls.is_to_be_written(id)) {
            return None;
        }
        let keep_for = self.registry.settings.retention;
        let registry = self.registry.clone();
        let written = encode(&response).map(|response| {
            journal.write(id.number, JournalChange::Stored { response, taken, keep_for })
        });
        Some(Box::pin(async move {
            let written = match written {
                Ok(written) => written.await,
                Err(error) => Err(error),
            };
            match written {
                Ok(true) => registry.with(|calls, _| calls.written(id)),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "a response could not be written to the journal: a crash would lose it");
                }
            }
        }))
    }

    /// The client disconnected, and the last attempt costs nothing.
    pub(super) fn end_free(self) {
        let lost = self.state.earlier_may_be_charged();
        self.end(if lost { CallEvent::Lose } else { CallEvent::EndFree });
    }

    /// Nobody waits for the call any more and its future was dropped, which may have sent it.
    pub(super) fn abandon(self) {
        if self.state.last_may_be_charged() {
            self.end(CallEvent::Lose);
        } else {
            self.end_free();
        }
    }

    /// The client disconnected: completes the call in a task of its own, where there is a runtime
    /// and room for it.
    pub(super) fn complete_detached(
        mut self,
        work: impl Future<Output = Result<Completed, Error>> + Send + 'static,
    ) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return self.end(CallEvent::Lose);
        };
        if self.detach() {
            self.task = Some(self.registry.count_task());
            runtime.spawn(complete(Box::pin(work), self, None));
        }
    }

    /// Runs a call with a key in a task from its start: other clients may come to wait for it,
    /// whatever its first one does.
    pub(super) fn complete_keyed(
        mut self,
        work: impl Future<Output = Result<Completed, Error>> + Send + 'static,
        reply: oneshot::Sender<Result<Arc<StoredResponse>, Error>>,
    ) {
        self.task = Some(self.registry.count_task());
        tokio::spawn(complete(Box::pin(work), self, Some(reply)));
    }

    /// `false` where too many calls are detached: the call is lost.
    fn detach(&mut self) -> bool {
        let has_room = self.registry.with(|calls, now| calls.detach(self.id, now));
        if !has_room {
            self.is_over = true;
            self.count_not_stored(NotStoredReason::TooMany);
        } else if !std::mem::replace(&mut self.is_detached, true) {
            tracing::info!(call = ?self.id.fingerprint, "client disconnected: the call is completed without it");
            self.state.record(Step::ClientDisconnected);
        }
        has_room
    }

    fn attach(&mut self) {
        if std::mem::take(&mut self.is_detached) {
            self.registry.with(|calls, now| calls.apply(self.id, CallEvent::Attach, now));
        }
    }

    fn is_alone(&self) -> bool {
        self.clients.as_ref().is_none_or(Clients::is_closed)
    }

    fn count_not_stored(&self, why: NotStoredReason) {
        self.state.record(Step::NotStored { why });
        self.registry.with(|calls, _| calls.totals.count(why));
    }

    fn not_stored(self, why: NotStoredReason) {
        if self.is_detached {
            tracing::info!(call = ?self.id.fingerprint, why = why.as_str(), "response not stored");
            self.count_not_stored(why);
        }
        if why == NotStoredReason::Free { self.end_free() } else { self.end(CallEvent::Lose) }
    }

    fn store(mut self, response: Arc<StoredResponse>) {
        self.is_over = true;
        if self.is_detached {
            tracing::info!(call = ?self.id.fingerprint, bytes = response.bytes, "response stored for the next identical request");
            self.state.record(Step::Stored { bytes: response.bytes as u64 });
        }
        let is_delivered = !self.is_alone();
        self.registry.with(|calls, now| calls.store(self.id, response.clone(), is_delivered, now));
        if let Some(clients) = &self.clients {
            clients.send_replace(Some(response));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.is_over {
            let lost = self.is_detached || self.state.may_be_charged();
            let event = if lost { CallEvent::Lose } else { CallEvent::EndFree };
            self.registry.with(|calls, now| calls.apply(self.id, event, now));
        }
    }
}

/// The writing of a response into a journal.
pub(super) type Writing = Pin<Box<dyn Future<Output = ()> + Send>>;

type Work = Pin<Box<dyn Future<Output = Result<Completed, Error>> + Send>>;

/// Runs a call to its end. While no client waits for it, it goes on only while it may be charged,
/// and no longer than [`Settings::max_time`](super::Settings).
async fn complete(
    mut work: Work,
    mut call: InFlight,
    reply: Option<oneshot::Sender<Result<Arc<StoredResponse>, Error>>>,
) {
    let mut deadline = None;
    let result = loop {
        let alone = call.is_alone();
        if alone && !call.state.is_worth_completing() {
            // Dropped first: the request can go out until then.
            drop(work);
            let is_out = call.state.last_may_be_charged();
            let why = if is_out { NotStoredReason::Broken } else { NotStoredReason::Free };
            return call.not_stored(why);
        }
        if !alone {
            call.attach();
            deadline = None;
        } else if !call.detach() {
            return;
        }
        let until = *deadline.get_or_insert_with(|| after(Instant::now(), call.max_time));
        let state = &call.state;
        let work = poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            // The attempt ended without a response: nobody wants another one.
            Poll::Pending if alone && !state.is_worth_completing() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        let disconnected = async {
            match &call.clients {
                Some(clients) if !alone => clients.closed().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = work => if let Some(result) = result { break result },
            () = disconnected => {}
            () = sleep_until(until), if alone => if call.is_alone() {
                return call.not_stored(NotStoredReason::TooLate);
            },
        }
    };
    let useless = |is_free| if is_free { NotStoredReason::Free } else { NotStoredReason::Broken };
    let result = match result {
        Ok(Completed { seen, verdict }) => {
            let is_free = is_free(verdict.as_ref());
            let is_worth_it = call.clients.is_some()
                || is_worth_storing(seen.status, outcome_of(verdict.as_ref()));
            match seen.response(&call.state, verdict).map(Arc::new) {
                response if is_free || !is_worth_it => {
                    call.not_stored(useless(is_free));
                    response.map(Ok)
                }
                Some(response) => {
                    if let Some(writing) = call.write_down(Some((*response).clone()), false) {
                        writing.await;
                    }
                    call.store(response.clone());
                    Some(Ok(response))
                }
                None => {
                    call.not_stored(NotStoredReason::TooLarge);
                    None
                }
            }
        }
        Err(error) => {
            call.not_stored(useless(error.charge().is_surely_free()));
            Some(Err(error))
        }
    };
    if let (Some(reply), Some(result)) = (reply, result) {
        // A client that disconnected can ask again with the same key.
        let _ = reply.send(result);
    }
}

fn is_free(verdict: Option<&Verdict>) -> bool {
    verdict.is_some_and(|verdict| verdict.charge().is_surely_free())
}

fn outcome_of(verdict: Option<&Verdict>) -> Outcome {
    verdict.map_or(Outcome::Other, Verdict::outcome)
}

/// A response that was read to its end.
pub(super) struct Completed {
    seen: Collected,
    verdict: Option<Verdict>,
}

/// Reads a body to its end; `seen` is what was read of it before.
pub(super) async fn read_body<B: CompletableBody>(
    mut body: B,
    mut seen: Collected,
) -> Result<Completed, Error> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            // Nobody waits for it: reading on can wait for room.
            seen.room.wait_for(seen.bytes + data.len()).await;
            seen.push(&data);
        }
    }
    // The body is dropped before the trail's cost is read: its end writes the attempt's cost there.
    Ok(Completed { seen, verdict: body.verdict().cloned() })
}

/// Reads a response to its end, and holds as much of it as there is room for.
pub(super) async fn read_response<B: CompletableBody>(
    response: impl Future<Output = Result<Response<B>, Error>>,
    room: Room,
) -> Result<Completed, Error> {
    let (parts, body) = response.await?.into_parts();
    read_body(body, Collected::new(parts.status, parts.headers, room)).await
}

/// Shorter chunks are copied together: a slice of a few bytes keeps the whole buffer that a client
/// read it into, which can be a thousand times as long.
const COPIED_BELOW: usize = 32 * 1024;

/// A response as it is collected. One that is too large, or comes beside too many others, is not
/// held.
pub(super) struct Collected {
    status: StatusCode,
    headers: HeaderMap,
    chunks: Option<Vec<Bytes>>,
    /// The end of the chunks.
    copied: Vec<u8>,
    bytes: usize,
    room: Room,
}

impl Collected {
    pub(super) fn new(status: StatusCode, headers: HeaderMap, room: Room) -> Self {
        Self { status, headers, chunks: Some(Vec::new()), copied: Vec::new(), bytes: 0, room }
    }

    pub(super) fn push(&mut self, chunk: &Bytes) {
        let Some(chunks) = &mut self.chunks else { return };
        let bytes = self.bytes + chunk.len();
        if !self.room.holds(bytes, chunk.len()) {
            (self.chunks, self.copied, self.room) = (None, Vec::new(), Room::unbounded());
        } else if chunk.len() < COPIED_BELOW {
            self.copied.extend_from_slice(chunk);
            if self.copied.len() >= 2 * COPIED_BELOW {
                chunks.push(std::mem::take(&mut self.copied).into());
            }
        } else {
            if !self.copied.is_empty() {
                chunks.push(std::mem::take(&mut self.copied).into());
            }
            chunks.push(chunk.clone());
        }
        self.bytes = bytes;
    }

    pub(super) fn holds_all(&self) -> bool {
        self.chunks.is_some()
    }

    /// The whole response, where all of it is held.
    pub(super) fn response(
        &self,
        state: &CallState,
        verdict: Option<Verdict>,
    ) -> Option<StoredResponse> {
        let (mut chunks, mut headers) = (self.chunks.clone()?, self.headers.clone());
        if !self.copied.is_empty() {
            chunks.push(Bytes::copy_from_slice(&self.copied));
        }
        for_rebuilt_body(&mut headers, Some(self.bytes as u64));
        Some(StoredResponse {
            status: self.status,
            headers,
            chunks: last_byte_apart(chunks),
            bytes: self.bytes,
            completed_at: Instant::now(),
            cost: state.cost(),
            outcome: outcome_of(verdict.as_ref()),
            verdict: verdict.map(Arc::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CallOptions;

    /// A buffer of a client's, of which a chunk is a slice.
    #[allow(dead_code, reason = "counted by its clones")]
    struct Buffer(Arc<()>, Vec<u8>);

    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            &self.1
        }
    }

    // A response in chunks of a few bytes kept every buffer of 8 KiB that one of them was read into.
    #[test]
    fn a_stored_response_keeps_no_buffer_that_is_much_longer_than_what_it_holds() {
        let buffers = Arc::new(());
        let mut seen = Collected::new(StatusCode::OK, HeaderMap::new(), Room::unbounded());
        let mut whole = Vec::new();
        for n in 0..20_000_u32 {
            let buffer = Bytes::from_owner(Buffer(buffers.clone(), vec![n as u8; 8192]));
            seen.push(&buffer.slice(..n as usize % 9));
            whole.extend_from_slice(&buffer[..n as usize % 9]);
        }
        let long = Bytes::from_owner(Buffer(buffers.clone(), vec![7; COPIED_BELOW]));
        seen.push(&long);
        whole.extend_from_slice(&long);
        drop(long);
        assert_eq!(Arc::strong_count(&buffers), 2, "only the buffer that is used whole");
        let state = CallState::new(CallOptions::new());
        let stored = seen.response(&state, None).unwrap();
        assert_eq!((stored.chunks.concat(), stored.bytes), (whole.clone(), whole.len()));
        assert_eq!(stored.chunks.last().map(Bytes::len), Some(1), "it is not all before its end");
    }
}
