//! Refuses what may cost money while the state cannot be written: a crash would forget it.
//!
//! Stands below `KeepPaid`, so that what is stored is delivered all the same.

use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use http::Request;
use tower::Layer;
use tower_gemini::body::CallBody;
use tower_gemini::error::Error;
use tower_service::Service;

use crate::state::State;

/// Makes [`StateGuard`] services.
#[derive(Debug, Clone)]
pub(crate) struct StateGuardLayer {
    pub(crate) state: State,
}

/// Passes calls on while the state can be written.
#[derive(Debug, Clone)]
pub(crate) struct StateGuard<S> {
    inner: S,
    state: State,
}

impl<S> Layer<S> for StateGuardLayer {
    type Service = StateGuard<S>;

    fn layer(&self, inner: S) -> Self::Service {
        StateGuard { inner, state: self.state.clone() }
    }
}

impl<S: Service<Request<CallBody>, Error = Error>> Service<Request<CallBody>> for StateGuard<S> {
    type Response = S::Response;
    type Error = Error;
    type Future = Either<S::Future, Ready<Result<S::Response, Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        match self.state.problem().filter(|_| request.body().call().generates()) {
            None => Either::Left(self.inner.call(request)),
            Some(problem) => Either::Right(ready(Err(Error::not_recorded(problem)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::Body;
    use http_body_util::BodyExt;
    use tokio::time::Instant;
    use tower_gemini::clock::SystemClock;
    use tower_gemini_sim::Sim;

    use super::*;
    use crate::config::Config;
    use crate::handler::handle;
    use crate::snapshot::Snapshot;
    use crate::state::tests::Scratch;

    async fn ask(
        gateway: &Arc<Snapshot>,
        request: http::request::Builder,
        body: &str,
    ) -> (u16, String) {
        let request = request
            .header("x-goog-api-key", "AIzaSyA-state-key-0123456789abcdefghijk")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let (parts, body) = handle(gateway.clone(), Instant::now(), request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn nothing_is_paid_for_while_the_state_cannot_be_written() {
        let (scratch, sim) = (Scratch::new("guard"), Sim::quick([]));
        let state = State::open(&scratch.config()).await.unwrap();
        let config = Config::default();
        let snapshot =
            Snapshot::assemble(|_| Ok(sim.service()), SystemClock, &config, None, state.clone());
        let gateway = Arc::new(snapshot.unwrap());
        let gemini = "/v1beta/models/gemini-3-pro-image:generateContent";
        let prompt = r#"{"contents":[{"parts":[{"text":"an apple"}]}]}"#;
        let openai = "/v1beta/openai/images/generations";
        let openai_prompt = r#"{"model":"gemini-3-pro-image","prompt":"an apple"}"#;

        state.set_problem(Some("the disk is full"));
        for (path, body) in [(gemini, prompt), (openai, openai_prompt)] {
            let (status, answer) = ask(&gateway, Request::post(path), body).await;
            assert_eq!(status, 503, "{answer}");
            assert!(answer.contains("the disk is full"), "{answer}");
        }
        let (_, answer) = ask(&gateway, Request::post(gemini), prompt).await;
        assert!(answer.contains(r#""reason":"STATE_NOT_WRITABLE""#), "{answer}");
        assert_eq!(sim.totals().requests, 0, "nothing was sent");
        let (status, why) = ask(&gateway, Request::get("/readyz"), "").await;
        assert_eq!((status, why.as_str()), (503, "the disk is full\n"));
        assert_eq!(ask(&gateway, Request::get("/livez"), "").await.0, 200);
        let (_, status) = ask(&gateway, Request::get("/status.json"), "").await;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["diagnosis"]["hour"]["cause"], "not_recorded", "{status}");
        assert_eq!(status["last_hour"]["attempts"], 0, "none was made, and none failed");
        // What costs nothing passes.
        let (status, answer) =
            ask(&gateway, Request::get("/v1beta/models/gemini-3-pro-image"), "").await;
        assert_ne!(status, 503, "{answer}");

        state.set_problem(None);
        assert_eq!(ask(&gateway, Request::get("/readyz"), "").await.0, 200);
        assert_eq!(ask(&gateway, Request::post(gemini), prompt).await.0, 200);
        gateway.stop_being_ready();
        assert_eq!(ask(&gateway, Request::get("/readyz"), "").await.0, 503);
    }
}
