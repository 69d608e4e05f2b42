//! Everybody who is compared: guides, clients, proxies, ourselves, and an oracle.

pub mod clients;
pub mod foreign;
pub mod guides;
pub mod oracle;
pub mod ours;

use std::sync::Arc;
use std::time::Duration;

use tower_gemini::peak_hour_router::presets::PeakHours;
use tower_gemini::{AnswerErrorsLayer, GeminiStack};
use tower_gemini_sim::Sim;

use crate::client::{Client, Failure, Wire};
use crate::scenario::Scenario;
use foreign::{Foreign, Spec};
use oracle::Oracle;
use ours::{Ours, Setting};

/// Seconds.
pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// 1 s doubled, and up to 1 s more.
fn additive(_: Failure, n: u32, random: f64) -> Duration {
    secs(1) * 2_u32.pow(n) + secs(1).mul_f64(random)
}

/// One way of asking for images.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// A short name, for the command line and tables.
    pub name: &'static str,
    /// What it is, in a few words.
    pub what: &'static str,
    /// Whose it is.
    pub kind: Kind,
}

/// How a policy is built.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Somebody's client.
    Foreign(fn() -> Spec),
    /// Somebody's client over somebody's proxy.
    Stacked(fn() -> Spec, fn() -> Spec),
    /// Our layers.
    Ours(fn(Setting) -> GeminiStack<AnswerErrorsLayer>),
    /// Our layers with both models and the peak hours of a table.
    PeakHours(PeakHours),
    /// google-genai with its retries over our layers.
    SdkOverOurs(fn(Setting) -> GeminiStack<AnswerErrorsLayer>),
    /// It knows when outages end, and may take the other model.
    Oracle {
        /// Whether it does.
        falls_back: bool,
    },
}

impl Policy {
    /// Whether our layers decide about every attempt.
    pub fn is_ours(&self) -> bool {
        matches!(
            self.kind,
            Kind::Ours(_) | Kind::PeakHours(_) | Kind::SdkOverOurs(_) | Kind::Oracle { .. }
        )
    }

    /// The policy at work, with this simulator behind it.
    pub fn client(&self, scenario: &Scenario, sim: &Sim, seed: u64) -> Arc<dyn Client> {
        let wire = Wire(sim.service());
        let setting = Setting::new(seed, scenario.of.starts_at_utc.into());
        let ours = |stack: fn(Setting) -> _| Ours::new(&stack(setting), sim.service());
        match self.kind {
            Kind::Foreign(spec) => Arc::new(Foreign::new(spec(), Arc::new(wire), seed)),
            Kind::Stacked(outer, inner) => {
                let inner = Foreign::new(inner(), Arc::new(wire), seed ^ 1);
                Arc::new(Foreign::new(outer(), Arc::new(inner), seed))
            }
            Kind::Ours(stack) => Arc::new(ours(stack)),
            Kind::PeakHours(table) => {
                Arc::new(Ours::new(&ours::peak_hours(setting, table), sim.service()))
            }
            Kind::SdkOverOurs(stack) => {
                Arc::new(Foreign::new(clients::google_genai(), Arc::new(ours(stack)), seed))
            }
            Kind::Oracle { falls_back } => {
                Arc::new(Oracle::new(Arc::new(ours(ours::default)), sim.clone(), falls_back))
            }
        }
    }
}

/// Builds the table of policies.
macro_rules! policies {
    ($($name:literal, $kind:expr, $what:literal;)*) => {
        /// Every policy, in the order of the tables.
        pub const ALL: &[Policy] = &[$(Policy { name: $name, what: $what, kind: $kind },)*];
    };
}

use Kind::{Foreign as F, Oracle as O, Ours as U, SdkOverOurs as S, Stacked};

policies! {
    "no-retry", F(clients::naive), "one attempt: most SDKs as they come";
    "guide-ladder", F(guides::ladder), "post-mortem of 2026-01-21: 4K, 2K, 1K, three attempts each";
    "guide-queue", F(guides::queue), "the same: a queue, 60 s doubled, five resends";
    "guide-errors", F(guides::error_guide), "error guide: a 503 to the other model, timeouts again";
    "guide-503-loop", F(guides::loop_503), "article on 503s: 1 to 16 s, five resends";
    "guide-503-chain", F(guides::chain_503), "the same: three attempts, then two of the other model";
    "guide-trouble", F(guides::troubleshooting), "troubleshooting guide: 1 to 32 s, full jitter";
    "guide-tenacity", F(guides::tenacity), "guide to 429s: 2 to 16 s, four resends";
    "guide-429-chain", F(guides::chain_429), "the same: waits by error, two attempts a model";
    "google-genai", F(clients::google_genai), "google-genai with retry options: 1 to 8 s";
    "js-genai", F(clients::js_genai), "js-genai with retry options: 1 to 16 s";
    "openai", F(clients::openai), "openai-python by default: 0.5 and 1 s";
    "gemini-cli", F(clients::gemini_cli), "gemini-cli: ten attempts, 5 to 30 s, honours hints";
    "litellm", F(clients::litellm), "LiteLLM's router: no waits, cooldown of 5 s, fallback";
    "vercel-ai", F(clients::vercel), "Vercel AI SDK: 2 and 4 s";
    "aws", F(clients::aws), "AWS SDKs, standard mode: full jitter, token bucket";
    "grpc", F(clients::grpc), "Google's gRPC service configuration";
    "middleware", F(clients::general_middleware), "general retry, breaker of 30 s, fallback";
    "sdk-on-proxy", Stacked(clients::google_genai_over_proxy, clients::proxy),
        "google-genai with retries over a proxy that retries: 5 × 3";
    "ours", U(ours::default), "our gateway's defaults";
    "ours-chain", U(ours::chain), "and the other model";
    "ours-sizes", U(ours::sizes), "our defaults and smaller sizes";
    "ours-all", U(ours::chain_and_sizes), "our defaults, smaller sizes, and the other model";
    "ours-long-circuits", U(ours::long_circuits), "both models, circuits open for 5 to 120 min";
    "ours-alone", U(ours::alone), "our defaults, but each call finds out by itself about outages";
    "ours-alone-budget", U(ours::budget), "and a retry budget: 100 tokens, 10 a resend";
    "ours-alone-patient", U(ours::patient), "each call by itself, a 503 from 30 s, eight attempts";
    "guide-our-rule", U(ours::guide_under_our_rule), "the chain on 503s through our layers";
    "sdk-on-ours", S(ours::default), "google-genai with retries over our gateway";
    "sdk-on-ours-apart", S(ours::without_continue), "the same, each resend a call of its own";
    "oracle", O { falls_back: false }, "knows when outages end";
    "oracle-chain", O { falls_back: true }, "and takes the other model meanwhile";
}

/// The policy of this name.
pub fn find(name: &str) -> Option<&'static Policy> {
    ALL.iter().find(|policy| policy.name == name)
}
