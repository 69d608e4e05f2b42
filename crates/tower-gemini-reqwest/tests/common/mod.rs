//! What the tests over a real socket share.
// Each test binary uses a part of this; the exemption of tests from these lints does not reach
// helpers.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::error::Error as StdError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Extensions;
use reqwest_middleware::{
    ClientBuilder, ClientWithMiddleware, Middleware, Next, RequestBuilder, Result,
};
use tower_gemini::GeminiStack;
use tower_gemini::jittered_retry::{Backoff, RetryPolicy};
use tower_gemini_reqwest::client_builder;
use tower_gemini_sim::{Fault, Latency, ServeHandle, Sim, serve};

/// A key that must turn up nowhere.
pub(crate) const KEY: &str = "sentinel0451";
pub(crate) const CAT: &str = r#"{"contents":[{"parts":[{"text":"a cat on a wall"}]}]}"#;

/// The recommended stack with three attempts that wait next to nothing.
pub(crate) fn quick_stack() -> GeminiStack {
    GeminiStack::new()
        .retry_policy(RetryPolicy::uniform(3, Backoff::constant(Duration::from_millis(1))))
}

/// A simulator that serves on a free port.
pub(crate) struct Upstream {
    pub(crate) sim: Sim,
    pub(crate) server: ServeHandle,
}

impl Upstream {
    pub(crate) async fn with(sim: Sim) -> Self {
        let server = serve(sim.clone(), ([127, 0, 0, 1], 0).into()).await.unwrap();
        Self { sim, server }
    }

    pub(crate) async fn scripted(script: impl IntoIterator<Item = Fault>) -> Self {
        Self::with(Sim::quick(script)).await
    }

    /// One that would answer in five minutes.
    pub(crate) async fn slow() -> Self {
        Self::with(
            Sim::builder()
                .latency(Latency::fixed(Duration::from_secs(300)))
                .tiny_images(true)
                .build(),
        )
        .await
    }

    pub(crate) fn url(&self) -> String {
        url_at(&self.server.url())
    }

    /// The URL as it is told: with all but the key.
    pub(crate) fn told_url(&self) -> String {
        self.url().replace(KEY, "***")
    }

    pub(crate) fn post(&self, client: &ClientWithMiddleware) -> RequestBuilder {
        client.post(self.url()).header("x-sim-call", "cat").body(CAT)
    }

    pub(crate) fn sends(&self) -> usize {
        self.sim.ledger().sends("cat")
    }

    pub(crate) fn charges(&self) -> usize {
        self.sim.ledger().charges("cat")
    }

    /// Until the server has seen this many requests come in whole.
    pub(crate) async fn received(&self, requests: usize) {
        while self.sim.ledger().requests().iter().filter(|record| record.request_counted).count()
            < requests
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Until the server has noticed that the caller of its first request went away.
    pub(crate) async fn aborted(&self) {
        let wait = async {
            while !self.sim.ledger().requests()[0].aborted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("the attempt goes on though nobody waits for it");
    }
}

pub(crate) fn url_at(base: &str) -> String {
    format!("{base}/v1beta/models/gemini-3-pro-image:generateContent?key={KEY}")
}

pub(crate) fn client(middleware: impl Middleware) -> ClientWithMiddleware {
    ClientBuilder::new(client_builder().build().unwrap()).with(middleware).build()
}

pub(crate) fn client_over(
    middleware: impl Middleware,
    below: impl Middleware,
) -> ClientWithMiddleware {
    ClientBuilder::new(client_builder().build().unwrap()).with(middleware).with(below).build()
}

/// What a middleware below the stack sees.
#[derive(Clone, Default)]
pub(crate) struct Probe(pub(crate) Arc<Seen>);

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) attempts: AtomicUsize,
    pub(crate) at_once: AtomicUsize,
    pub(crate) most_at_once: AtomicUsize,
    pub(crate) heads: Mutex<Vec<Head>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Head {
    pub(crate) url: String,
    pub(crate) version: http::Version,
    pub(crate) timeout: Option<Duration>,
}

/// Left by the probe in the extensions of the attempt of this number, and of no other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct First;
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Later(pub(crate) usize);

impl Probe {
    pub(crate) fn attempts(&self) -> usize {
        self.0.attempts.load(Ordering::SeqCst)
    }
}

#[async_trait::async_trait]
impl Middleware for Probe {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<reqwest::Response> {
        let number = self.0.attempts.fetch_add(1, Ordering::SeqCst);
        match number {
            0 => drop(extensions.insert(First)),
            later => drop(extensions.insert(Later(later))),
        }
        self.0.heads.lock().unwrap().push(Head {
            url: request.url().to_string(),
            version: request.version(),
            timeout: request.timeout().copied(),
        });
        let now = self.0.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_at_once.fetch_max(now, Ordering::SeqCst);
        let answer = next.run(request, extensions).await;
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
        answer
    }
}

/// An error and all its causes, in both forms in which they are printed.
pub(crate) fn everything_printed(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        text.push_str(&format!("{error}\n{error:?}\n{error:#?}\n"));
        next = error.source();
    }
    text
}

/// The final image in an answer.
pub(crate) fn image_in(answer: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let answer: serde_json::Value = serde_json::from_slice(answer).unwrap();
    let parts = answer["candidates"][0]["content"]["parts"].as_array().unwrap();
    let image = parts
        .iter()
        .filter(|part| part["thought"] != true)
        .find_map(|part| part["inlineData"]["data"].as_str());
    base64::engine::general_purpose::STANDARD.decode(image.unwrap()).unwrap()
}
