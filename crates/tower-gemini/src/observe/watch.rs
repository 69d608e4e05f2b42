//! Watches one call from its start to its end.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::trail::{Attempt, Step, Trail, TrailObserver};
use tokio::time::Instant;
use tower_gemini_core::catalog::Catalog;

use super::observer::{
    CallEnd, CallId, CallInfo, CallObserver, ObservedStep, OwnObserver, SendKind,
};
use super::outcome::{HowEnded, outcome_of};
use super::sentence::sentence;
use super::{clip, events, model_label};

/// What all calls of a layer share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) catalog: Arc<Catalog>,
    pub(super) observers: Vec<Arc<dyn CallObserver>>,
    /// Distinguishes processes whose logs are read together.
    prefix: u16,
    next: Arc<AtomicU64>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            catalog: Arc::new(Catalog::builtin().clone()),
            observers: Vec::new(),
            prefix: fastrand::u16(..),
            next: Arc::new(AtomicU64::new(1)),
        }
    }

    pub(super) fn start(
        self: &Arc<Self>,
        trail: Trail,
        generates: bool,
        own: Option<OwnObserver>,
    ) -> CallWatch {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = CallId(format!("{:04x}-{number:x}", self.prefix).into());
        let call = CallInfo { id, generates };
        let observer =
            Arc::new(StepObserver { shared: self.clone(), own, call, progress: Mutex::default() });
        observer.each(|one, call| one.on_start(call));
        // A trail that a caller uses twice holds the steps of the call before.
        let skip = trail.steps().len();
        trail.observe(observer.clone());
        CallWatch {
            observer,
            trail,
            skip,
            started: Instant::now(),
            status: None,
            when_dropped: HowEnded::Dropped,
            has_ended: false,
        }
    }
}

/// Turns each step of one call's trail into an event, metrics and what other observers make of it.
struct StepObserver {
    shared: Arc<Shared>,
    /// The call's own.
    own: Option<OwnObserver>,
    call: CallInfo,
    progress: Mutex<Progress>,
}

#[derive(Clone, Default)]
struct Progress {
    sent: u32,
    /// Whether a fallback left a target, so that the next attempt goes to another one.
    has_moved: bool,
    last: Option<Attempt>,
}

impl StepObserver {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn each(&self, notify: impl Fn(&dyn CallObserver, &CallInfo)) {
        #[cfg(feature = "metrics")]
        notify(&super::metrics::Metrics, &self.call);
        let own = self.own.iter().map(|own| &own.0);
        self.shared.observers.iter().chain(own).for_each(|one| notify(&**one, &self.call));
    }
}

impl TrailObserver for StepObserver {
    fn on_send(&self, _: &Attempt) {
        let mut progress = self.progress();
        progress.sent += 1;
        let kind = match (progress.sent, std::mem::take(&mut progress.has_moved)) {
            (1, _) => SendKind::First,
            (_, true) => SendKind::Fallback,
            (_, false) => SendKind::Retry,
        };
        drop(progress);
        self.each(|one, call| one.on_send(call, kind));
    }

    fn on_step(&self, step: &Step) {
        let clean = clip::step(step);
        let mut progress = self.progress();
        match &clean {
            Step::Attempt(attempt) => progress.last = Some(attempt.clone()),
            Step::FellBack { .. } => progress.has_moved = true,
            _ => {}
        }
        let Progress { sent, last, .. } = progress.clone();
        drop(progress);
        events::step(self.call.id.as_str(), sent, last.as_ref(), &clean);
        let responder = clean.as_attempt().and_then(Attempt::responder);
        let model = model_label(&self.shared.catalog, responder);
        let observed = ObservedStep { step: &clean, attempt: sent, model };
        self.each(|one, call| one.on_step(call, &observed));
    }
}

/// Reports the end of one call, once.
pub struct CallWatch {
    observer: Arc<StepObserver>,
    trail: Trail,
    skip: usize,
    started: Instant,
    pub(super) status: Option<u16>,
    /// How the call has ended if it is dropped.
    pub(super) when_dropped: HowEnded,
    has_ended: bool,
}

impl CallWatch {
    pub(super) fn id(&self) -> &CallId {
        &self.observer.call.id
    }

    pub(super) fn trail(&self) -> &Trail {
        &self.trail
    }

    pub(super) fn end(&mut self, how: HowEnded) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let (trail, skip) = (&self.trail, self.skip);
        let took = self.started.elapsed();
        let steps: Vec<_> = trail.steps().iter().skip(skip).map(clip::step).collect();
        let outcome = outcome_of(&steps, how, self.status);
        let sentence = &sentence(&steps, outcome, took);
        let end = CallEnd { outcome, took, sentence, trail, skip };
        self.observer.each(|one, call| one.on_end(call, &end));
        let Progress { sent, last, .. } = self.observer.progress().clone();
        events::end(self.id().as_str(), sent, last.as_ref(), &steps, &end);
    }
}

impl fmt::Debug for CallWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CallWatch").field(&self.id().as_str()).finish()
    }
}

impl Drop for CallWatch {
    fn drop(&mut self) {
        self.end(self.when_dropped);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{CallOptions, GeminiStack, ObserveLayer, WireBody};

    /// Keeps what each call's attempts said of themselves.
    #[derive(Default)]
    struct Seen(Mutex<Vec<(String, Vec<Attempt>)>>);

    impl CallObserver for Seen {
        fn on_end(&self, call: &CallInfo, end: &CallEnd<'_>) {
            let attempts = super::super::observer::attempts(&end.steps()).cloned().collect();
            self.0.lock().unwrap().push((call.id.to_string(), attempts));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_reported_to_its_own_observer_and_no_other_call_is() {
        let said = r#"{"candidates":[{"content":{"parts":[{"text":"no"}]},"finishReason":"IMAGE_OTHER"}],"modelVersion":"m-001","responseId":"r1","usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":7,"thoughtsTokenCount":2,"totalTokenCount":14}}"#;
        let whole = (":generateContent", said.to_owned());
        let stream = (":streamGenerateContent?alt=sse", format!("data: {said}\r\n\r\n"));
        for (verb, body) in [whole, stream] {
            let client = service_fn(move |_: Request<WireBody>| {
                let body = Full::new(Bytes::from(body.clone()));
                std::future::ready(Ok::<_, std::io::Error>(Response::new(body)))
            });
            let (own, all) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
            let layer = ObserveLayer::new().observer(all.clone());
            let gemini = GeminiStack::new().observe(layer).raw(client);
            for options in [CallOptions::new().observer(own.clone()), CallOptions::new()] {
                let path = format!("/v1beta/models/gemini-3-pro-image{verb}");
                let mut request = Request::post(path).body(Full::<Bytes>::default()).unwrap();
                request.extensions_mut().insert(options);
                let response = gemini.clone().oneshot(request).await.unwrap();
                let _ = response.into_body().collect().await;
            }
            let (own, all) = (own.0.lock().unwrap(), all.0.lock().unwrap());
            assert_eq!((own.len(), all.len()), (1, 2), "{verb}");
            assert_eq!(own[0].0, all[0].0);
            let said = own[0].1[0].response.as_deref().unwrap();
            assert_eq!((said.model.as_deref(), said.id.as_deref()), (Some("m-001"), Some("r1")));
            assert_eq!(said.finish_reason.as_deref(), Some("IMAGE_OTHER"));
            assert_eq!((said.input_tokens, said.output_tokens), (Some(5), Some(9)));
        }
    }
}
