//! Fetches an interaction by its id, until it has ended.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap};
use http::{Method, Request, Response, Uri};
use http_body::Body;
use tokio::time::sleep;
use tower_gemini_core::call::{Call, Framing};
use tower_gemini_core::scan::Scanner;

use super::plan::{Events, Fetched, address, delay, judge};
use crate::body::WireBody;
use crate::call_state::Attempt;
use crate::error::BoxError;
use crate::stage::WireClient;
use crate::trail::{FetchKind, Step};

/// Fetches in a row that fail. Ours: they take 15 seconds.
const MAX_FAILURES: u32 = 5;
/// Fetches in a row that bring nothing new, failed or not. Ours: they take 16 minutes, longer than
/// any documented generation; a time limit ends them before.
const MAX_FETCHES: u32 = 100;

/// What a fetch brought.
pub(super) enum Resumed<B> {
    /// The stream goes on.
    Stream(B),
    /// The interaction has ended, and this is all of it.
    Document(HeaderMap, Vec<Bytes>),
    /// It cannot be fetched.
    Lost,
}

/// Everything that is needed to fetch what one request starts.
pub(super) struct Fetch<S> {
    client: S,
    started: Uri,
    /// The headers of a fetch: those of the request without what describes its body.
    headers: HeaderMap,
    extensions: http::Extensions,
    pub(super) attempt: Attempt,
    pub(super) max_bytes: usize,
    fetches: u32,
    failures: u32,
    /// Whether its stream can be resumed, as far as is known.
    streams: bool,
}

impl<S: WireClient> Fetch<S> {
    pub(super) fn new(client: S, request: &Request<WireBody>, max_bytes: usize) -> Self {
        let mut headers = request.headers().clone();
        for name in [
            header::CONTENT_TYPE,
            header::CONTENT_LENGTH,
            header::CONTENT_ENCODING,
            header::TRANSFER_ENCODING,
            header::EXPECT,
        ] {
            headers.remove(name);
        }
        Self {
            client,
            started: request.uri().clone(),
            headers,
            extensions: request.extensions().clone(),
            attempt: request.body().attempt().clone(),
            max_bytes,
            fetches: 0,
            failures: 0,
            streams: true,
        }
    }

    /// The last fetch brought something new.
    pub(super) fn advanced(&mut self) {
        (self.fetches, self.failures) = (0, 0);
    }

    /// Fetches the interaction until it has ended: these events of its stream, where they can be had,
    /// or all of it.
    pub(super) async fn resume(
        &mut self,
        id: &str,
        events: Option<Events<'_>>,
    ) -> Resumed<S::ResponseBody> {
        while self.failures < MAX_FAILURES && self.fetches < MAX_FETCHES {
            sleep(delay(self.fetches)).await;
            self.fetches += 1;
            let events = events.filter(|_| self.streams);
            let how = if events.is_some() { FetchKind::Stream } else { FetchKind::Poll };
            let (fetched, resumed) = self.fetch(id, events, how).await;
            match (fetched, how) {
                (Fetched::Ended, _) => return resumed,
                (Fetched::Running, _) => self.failures = 0,
                (Fetched::Refused, FetchKind::Poll) => break,
                (Fetched::Refused, FetchKind::Stream) => self.streams = false,
                (Fetched::Failed, _) => self.failures += 1,
            }
        }
        Resumed::Lost
    }

    async fn fetch(
        &mut self,
        id: &str,
        events: Option<Events<'_>>,
        how: FetchKind,
    ) -> (Fetched, Resumed<S::ResponseBody>) {
        let (mut status, mut said) = (None, None);
        let mut fetched = (Fetched::Failed, Resumed::Lost);
        if let Some(response) = self.send(id, events).await {
            let (head, mut body) = response.into_parts();
            status = Some(head.status.as_u16());
            if head.status.is_success() && is_event_stream(&head.headers) {
                fetched = match how {
                    FetchKind::Stream => (Fetched::Ended, Resumed::Stream(body)),
                    FetchKind::Poll => fetched,
                };
            } else {
                let document = read(&mut body, self.max_bytes).await;
                let answer = document.as_ref().and_then(|chunks| {
                    let mut scanner = Scanner::judging(Framing::Whole);
                    chunks.iter().try_for_each(|chunk| scanner.feed(chunk)).ok()?;
                    scanner.finish().ok()
                });
                said = answer.as_ref().and_then(|answer| answer.status.clone());
                fetched.0 = match judge(head.status, answer.as_ref()) {
                    // No such stream, though there may be such an interaction.
                    Fetched::Failed if how == FetchKind::Stream && head.status == 404 => {
                        Fetched::Refused
                    }
                    fetched => fetched,
                };
                fetched.1 = Resumed::Document(head.headers, document.unwrap_or_default());
            }
        }
        self.attempt.state().record(Step::Fetched { how, status, said });
        fetched
    }

    async fn send(
        &mut self,
        id: &str,
        events: Option<Events<'_>>,
    ) -> Option<Response<S::ResponseBody>> {
        let uri = address(&self.started, id, events)?;
        let call = Arc::new(Call::parse(&Method::GET, &uri, &self.headers, None));
        let mut request = Request::new(WireBody::empty(call, self.attempt.clone()));
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        *request.extensions_mut() = self.extensions.clone();
        poll_fn(|cx| self.client.poll_ready(cx)).await.ok()?;
        self.client.call(request).await.ok()
    }
}

/// Whether a response is a stream of events by its own word.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().starts_with("text/event-stream"))
}

/// The next data of a body.
pub(super) async fn next<B>(body: &mut B) -> Option<Result<Bytes, BoxError>>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await? {
            Ok(frame) => {
                // Trailers say nothing about an interaction.
                if let Ok(mut data) = frame.into_data() {
                    return Some(Ok(data.copy_to_bytes(data.remaining())));
                }
            }
            Err(error) => return Some(Err(error.into())),
        }
    }
}

/// A whole body, unless it breaks off or is longer than `max`.
async fn read<B>(body: &mut B, max: usize) -> Option<Vec<Bytes>>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    let (mut chunks, mut length) = (Vec::new(), 0);
    while let Some(chunk) = next(body).await {
        let chunk = chunk.ok()?;
        length += chunk.len();
        if length > max {
            return None;
        }
        chunks.push(chunk);
    }
    Some(chunks)
}
