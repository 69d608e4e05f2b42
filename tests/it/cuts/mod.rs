//! A connection that is cut, wherever: what may have been paid for is never called "not sent".
//!
//! The origin is a socket that reads and writes so many bytes and then closes (FIN) or resets
//! (RST), and says whether it had the whole request. What a client can know is less than that: a
//! request of a kilobyte fits into the socket's buffer at once, so of a connection that breaks
//! right after nobody can say how much of it arrived, and it counts as *maybe charged*. A request
//! of megabytes that the client has not handed over whole is recognised, and costs nothing; so is
//! one that never found a connection, and one of which the server itself says that it did nothing
//! with it.

mod connecting;
mod http1;
mod http2;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tower::ServiceExt;
use tower_gemini::CallOptions;
use tower_gemini::Trail;
use tower_gemini::stage::WireClient;
use tower_gemini::verdict::Charge;
use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer, SingleAttemptLayer, compose};

const IMAGE: &str = "{\"candidates\":[{\"content\":{\"parts\":[{\"inlineData\":{\"mimeType\":\"image/png\",\"data\":\"AQIDBAUGBwgJ\"}}]},\"finishReason\":\"STOP\"}]}";

/// Beyond what the sockets and the client's own buffers hold: of a body this long a client knows
/// whether it is out.
const LONG: usize = 16 * 1024 * 1024;

fn body(bytes: usize) -> Bytes {
    format!("{{\"contents\":[{{\"parts\":[{{\"text\":\"{}\"}}]}}]}}", "a".repeat(bytes)).into()
}

fn request(addr: SocketAddr, body: Bytes, trail: &Trail) -> Request<Full<Bytes>> {
    Request::post(format!("http://{addr}/v1beta/models/gemini-3-pro-image:generateContent"))
        .header("content-type", "application/json")
        .extension(CallOptions::new().trail(trail.clone()))
        .body(Full::new(body))
        .unwrap()
}

/// Sends one request and reads its answer. Gives what the stack takes it to cost.
async fn charge<S: WireClient>(client: S, addr: SocketAddr, body: Bytes) -> Charge {
    let trail = Trail::new();
    let service = compose(
        (CollectRequestLayer::new(), SingleAttemptLayer::new(), ClassifyGeminiErrorLayer::new()),
        client,
    );
    if let Ok(answer) = service.oneshot(request(addr, body, &trail)).await {
        let _ = answer.into_body().collect().await;
    }
    trail.attempts().last().unwrap().charge
}

/// What the origin knows of a request, and what a client can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    /// The origin had all of it.
    Whole,
    /// It had not, or said of it that it did nothing with it, and the client can know.
    Unsent,
    /// It had not, and nobody but the origin can say so.
    Untold,
}

/// Counts, by the phase in which the connection ended.
#[derive(Debug, Default)]
struct Tally(BTreeMap<&'static str, [usize; 4]>);

impl Tally {
    fn note(&mut self, phase: &'static str, truth: Truth, charge: Charge, what: &dyn Debug) {
        let [whole, untold, unsent, recognised] = self.0.entry(phase).or_default();
        match truth {
            Truth::Whole => {
                *whole += 1;
                assert!(
                    !charge.is_surely_free(),
                    "{phase}, {what:?}: the origin had all of it, and it was called {charge}"
                );
            }
            Truth::Untold => *untold += 1,
            Truth::Unsent => {
                *unsent += 1;
                *recognised += usize::from(charge.is_surely_free());
            }
        }
    }

    /// Prints the table, and demands of what a client can know that at least 95 % were recognised.
    fn settle(self, name: &str) {
        let mut table = format!(
            "{name:<40} {:>7} {:>7} {:>7} {:>11}\n",
            "whole", "untold", "unsent", "recognised"
        );
        let mut sum = [0; 4];
        for (phase, counts) in &self.0 {
            let [whole, untold, unsent, recognised] = counts;
            table += &format!("{phase:<40} {whole:>7} {untold:>7} {unsent:>7} {recognised:>11}\n");
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        println!("{table}");
        let [_, _, unsent, recognised] = sum;
        assert!(
            recognised * 100 >= unsent * 95,
            "{recognised} of {unsent} unsent requests were recognised:\n{table}"
        );
        // A table without entries proves nothing.
        assert!(sum.iter().all(|&count| count > 0), "{table}");
    }
}
