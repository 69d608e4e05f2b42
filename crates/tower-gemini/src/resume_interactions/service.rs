use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use pin_project::pin_project;
use tower_gemini_core::call::{Dialect, Framing};
use tower_gemini_core::scan::Scanner;
use tower_service::Service;

use super::ResumeInteractionsLayer;
use super::body::{Pipe, Piped, Rest, ResumedBody};
use super::fetch::{Fetch, Resumed, is_event_stream, next};
use super::plan::{Event, Progress, Splitter, completed_event, is_usable};
use crate::body::WireBody;
use crate::error::BoxError;
use crate::headers::{for_changed_body, for_rebuilt_body, is_encoded};
use crate::ready::take_ready;
use crate::stage::{UpstreamBody, WireClient};

/// Fetches interactions whose responses broke off. See the [module](super).
#[derive(Debug, Clone)]
pub struct ResumeInteractions<S> {
    inner: S,
    settings: ResumeInteractionsLayer,
}

crate::access::inner_access!(ResumeInteractions);

impl<S> ResumeInteractions<S> {
    pub(super) fn new(inner: S, settings: ResumeInteractionsLayer) -> Self {
        Self { inner, settings }
    }
}

impl<S: WireClient> Service<Request<WireBody>> for ResumeInteractions<S> {
    type Response = Response<ResumedBody<S::ResponseBody>>;
    type Error = S::ClientError;
    type Future = ResumeFuture<S::Future, S::ResponseBody, S::ClientError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::ClientError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<WireBody>) -> Self::Future {
        let call = request.body().call();
        let starts_one = call.dialect == Dialect::Interactions && call.generates();
        let Some(max) = self.settings.max_held_bytes.filter(|_| starts_one) else {
            return ResumeFuture { state: State::Passed(self.inner.call(request)) };
        };
        let mut client = take_ready(&mut self.inner);
        let fetch = Fetch::new(client.clone(), &request, max);
        let response = client.call(request);
        let state = State::Resumable(Box::pin(async move {
            let response = response.await?;
            Ok(resumable(fetch, response).await)
        }));
        ResumeFuture { state }
    }
}

async fn resumable<S: WireClient>(
    fetch: Fetch<S>,
    response: Response<S::ResponseBody>,
) -> Response<ResumedBody<S::ResponseBody>> {
    let (mut head, body) = response.into_parts();
    if !head.status.is_success() || is_encoded(&head.headers) {
        return Response::from_parts(head, ResumedBody::new([], Rest::Passed(body)));
    }
    let body = if is_event_stream(&head.headers) {
        for_rebuilt_body(&mut head.headers, None);
        let pipe = Pipe::default();
        let task = stream(fetch, body, pipe.clone());
        ResumedBody::new([], Rest::Piped(Piped::new(pipe, task)))
    } else {
        whole(fetch, body, &mut head.headers).await
    };
    Response::from_parts(head, body)
}

/// Holds a whole response until it is complete, and fetches the interaction where it breaks off.
async fn whole<S: WireClient>(
    mut fetch: Fetch<S>,
    mut body: S::ResponseBody,
    headers: &mut HeaderMap,
) -> ResumedBody<S::ResponseBody> {
    let (mut held, mut length, mut id) = (Vec::new(), 0, None);
    let mut scanner = Scanner::judging(Framing::Whole);
    let mut error = None;
    while let Some(chunk) = next(&mut body).await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(broken) => {
                error = Some(broken);
                break;
            }
        };
        let _ = scanner.feed(&chunk);
        length += chunk.len();
        held.push(chunk);
        if id.is_none() {
            id = scanner.response_id().filter(|id| is_usable(id)).map(str::to_owned);
            id.iter().for_each(|id| fetch.attempt.name_interaction(id));
        }
        if length > fetch.max_bytes {
            return ResumedBody::new(held, Rest::Passed(body));
        }
    }
    let fault = scanner.finish().err();
    if fault.is_none() {
        // A response that is all here is complete, whatever became of its connection.
        for_rebuilt_body(headers, Some(length as u64));
        return ResumedBody::new(held, Rest::End(None));
    }
    let is_cut = error.is_some() || fault.is_some_and(|fault| fault.error.is_truncated());
    let Some(id) = id.filter(|_| is_cut) else {
        return ResumedBody::new(held, Rest::End(error));
    };
    match fetch.resume(&id, None).await {
        Resumed::Document(of_document, document) => {
            let length = document.iter().map(Bytes::len).sum::<usize>();
            for_changed_body(headers, Some(length as u64));
            if let Some(kind) = of_document.get(header::CONTENT_TYPE) {
                headers.insert(header::CONTENT_TYPE, kind.clone());
            }
            ResumedBody::new(document, Rest::End(None))
        }
        Resumed::Stream(_) | Resumed::Lost => ResumedBody::new(held, Rest::End(error)),
    }
}

/// Passes a stream's complete events on, resumes it where it is cut, and ends with the error that
/// ends the body.
async fn stream<S: WireClient>(
    mut fetch: Fetch<S>,
    mut body: S::ResponseBody,
    pipe: Pipe,
) -> Option<BoxError> {
    let mut progress = Progress::default();
    loop {
        let mut events = Splitter::new();
        let mut error = None;
        while let Some(chunk) = next(&mut body).await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(broken) => {
                    error = Some(broken);
                    break;
                }
            };
            for event in events.push(chunk) {
                name(&fetch, progress.name(&event), &progress);
                if progress.take(&event) {
                    fetch.advanced();
                    pipe.send(event.bytes).await;
                }
            }
            if events.held_bytes() > fetch.max_bytes {
                pipe.send(events.take_held()).await;
                return pass(&mut body, &pipe).await;
            }
        }
        let cut = Event::read(events.take_held());
        name(&fetch, progress.name(&cut), &progress);
        progress.is_over |= cut.is_bare_error();
        let Some(id) = progress.interaction.as_deref().filter(|_| !progress.is_over) else {
            // What stands behind the last event is not an event, and may be an error.
            pipe.send(cut.bytes).await;
            return error.filter(|_| !progress.is_over);
        };
        match fetch.resume(id, progress.missing()).await {
            Resumed::Stream(resumed) => body = resumed,
            Resumed::Document(_, document) => {
                pipe.send([completed_event(&document).into()]).await;
                return None;
            }
            Resumed::Lost => {
                pipe.send(cut.bytes).await;
                return error;
            }
        }
    }
}

/// Writes down an interaction's id that is new.
fn name<S>(fetch: &Fetch<S>, is_new: bool, progress: &Progress) {
    if let Some(id) = progress.interaction.as_deref().filter(|_| is_new) {
        fetch.attempt.name_interaction(id);
    }
}

/// Passes the rest of a body on as it comes.
async fn pass<B: UpstreamBody>(body: &mut B, pipe: &Pipe) -> Option<BoxError> {
    while let Some(chunk) = next(body).await {
        match chunk {
            Ok(chunk) => pipe.send([chunk]).await,
            Err(error) => return Some(error),
        }
    }
    None
}

/// The future of [`ResumeInteractions`]: the client's own, where the request starts no interaction.
#[pin_project]
pub struct ResumeFuture<F, B, E> {
    #[pin]
    state: State<F, B, E>,
}

type Resumable<B, E> = Pin<Box<dyn Future<Output = Result<Response<ResumedBody<B>>, E>> + Send>>;

#[pin_project(project = Projection)]
enum State<F, B, E> {
    Passed(#[pin] F),
    Resumable(Resumable<B, E>),
}

impl<F, B, E> Future for ResumeFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResumedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projection::Passed(future) => {
                let pass = |body| ResumedBody::new([], Rest::Passed(body));
                future.poll(cx).map_ok(|response| response.map(pass))
            }
            Projection::Resumable(future) => future.as_mut().poll(cx),
        }
    }
}

impl<F, B, E> fmt::Debug for ResumeFuture<F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumeFuture").finish_non_exhaustive()
    }
}
