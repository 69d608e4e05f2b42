//! Our layers in the order of `GeminiStack`, as the gateway builds them.

use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_gemini::clock::RuntimeClock;
use tower_gemini::jittered_retry::{Backoff, OutcomePolicy, RetryBudget, RetryPolicy};
use tower_gemini::model_fallback::{Chain, Cooldowns, presets::FLASH_TO_PRO};
use tower_gemini::peak_hour_router::presets::PeakHours;
use tower_gemini::stack::Json;
use tower_gemini::trail::{Step, StopReason};
use tower_gemini::verdict::Outcome;
use tower_gemini::{
    AnswerErrorsLayer, CallOptions, GeminiStack, JitteredRetryLayer, ModelFallbackLayer,
    PeakHourRouterLayer, ResolutionFallbackLayer,
};
use tower_gemini_sim::SimService;

use super::secs;
use crate::client::{Ask, Client, FLASH, Failure, PRO, Reply, reply};

/// A stack before it has a client.
type Stack = GeminiStack<AnswerErrorsLayer>;
/// What a stack needs of the run: the seed of its jitter, and the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Seed of the jitter.
    pub seed: u64,
    /// Wall time as the weather has it.
    pub clock: RuntimeClock,
}

impl Setting {
    /// A scenario that starts now, at this hour of 2026-11-15.
    pub fn new(seed: u64, starts_at: u64) -> Self {
        let midnight = SystemTime::UNIX_EPOCH + secs(1_794_700_800);
        let clock = RuntimeClock::starting_at(midnight + secs(starts_at * 3600));
        Self { seed, clock }
    }

    fn stack(self, policy: RetryPolicy, continue_resends: Duration) -> Stack {
        let retry = JitteredRetryLayer::new(policy).seed(self.seed);
        GeminiStack::new()
            .retry(retry.continue_resends(continue_resends))
            .answer_errors(AnswerErrorsLayer::new().clock(self.clock))
    }

    fn falling(self, stack: Stack, chain: Chain) -> Stack {
        stack.fallback(ModelFallbackLayer::new(chain).clock(self.clock))
    }
}

/// The gateway's window for resends of its clients.
const CONTINUE: Duration = secs(60);

fn both_models() -> Chain {
    Chain::new([FLASH, PRO]).wrapping()
}

/// The gateway's defaults: recommended retry, resends continued.
pub fn default(setting: Setting) -> Stack {
    setting.stack(RetryPolicy::recommended(), CONTINUE)
}

/// The defaults without continued resends.
pub fn without_continue(setting: Setting) -> Stack {
    setting.stack(RetryPolicy::recommended(), Duration::ZERO)
}

/// The defaults and the other model.
pub fn chain(setting: Setting) -> Stack {
    setting.falling(default(setting), both_models())
}

/// The defaults and the other model, with circuits that stay open as long as the guides say that
/// outages last, 5 to 120 minutes.
pub fn long_circuits(setting: Setting) -> Stack {
    let cooldowns = Cooldowns::recommended().overload(secs(5 * 60), secs(120 * 60));
    let fallback = ModelFallbackLayer::new(both_models()).cooldowns(cooldowns).clock(setting.clock);
    default(setting).fallback(fallback)
}

/// The defaults and smaller sizes.
pub fn sizes(setting: Setting) -> Stack {
    default(setting).resolution(ResolutionFallbackLayer::new())
}

/// The defaults, smaller sizes, and the other model.
pub fn chain_and_sizes(setting: Setting) -> Stack {
    chain(setting).resolution(ResolutionFallbackLayer::new())
}

/// The defaults, each call by itself.
pub fn alone(setting: Setting) -> Stack {
    setting.stack(by_itself(), CONTINUE)
}

/// The same with a retry budget of 100 tokens, 10 a resend, 1 back for a success.
pub fn budget(setting: Setting) -> Stack {
    setting.stack(by_itself().budget(RetryBudget::new(100, 10, 1)), CONTINUE)
}

/// Each call by itself, a 503 from 30 s to 300 s and eight attempts.
pub fn patient(setting: Setting) -> Stack {
    let slow = OutcomePolicy::new(8, Backoff::exponential(secs(30), 2.0, secs(300)));
    let policy = by_itself().attempts(8).on(Outcome::Overloaded, slow).longest_wait(secs(300));
    setting.stack(policy, CONTINUE)
}

fn by_itself() -> RetryPolicy {
    RetryPolicy::recommended().outages(None)
}

/// The waits and the chain of the guide on 503s, under our rule: what may have been charged is not
/// sent again.
pub fn guide_under_our_rule(setting: Setting) -> Stack {
    let policy = tower_gemini::jittered_retry::presets::exponential_1s_x2();
    setting.falling(setting.stack(policy, Duration::ZERO), FLASH_TO_PRO.chain())
}

/// The defaults and the other model, which leads in the peak hours of a table.
pub fn peak_hours(setting: Setting, table: PeakHours) -> Stack {
    let router = PeakHourRouterLayer::new(table.schedule()).clock(setting.clock);
    chain(setting).peak_hours(router.in_peak(FLASH, PRO).in_peak(PRO, FLASH))
}

/// A stack over the simulator.
#[derive(Clone)]
pub struct Ours(Json<SimService, AnswerErrorsLayer>);

impl std::fmt::Debug for Ours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ours")
    }
}

impl Ours {
    /// Puts the stack over the simulator.
    pub fn new(stack: &Stack, sim: SimService) -> Self {
        Self(stack.json(sim))
    }
}

impl Client for Ours {
    fn call(&self, ask: Ask) -> BoxFuture<'static, Reply> {
        let stack = self.0.clone();
        Box::pin(async move {
            let trail = ask.new_trail();
            let mut request = ask.request();
            let options = CallOptions::new().deadline(ask.patience).trail(trail.clone());
            request.extensions_mut().insert(options);
            let seen = match stack.oneshot(request).await {
                Ok(response) => {
                    let status = response.status().as_u16();
                    match response.into_body().collect().await {
                        Ok(body) => reply(status, &body.to_bytes()),
                        Err(_) => Reply::failed(Failure::Cut),
                    }
                }
                Err(never) => match never {},
            };
            let near =
                |step: &Step| matches!(step, Step::Stopped { why: StopReason::DeadlineTooNear });
            Reply { out_of_time: trail.steps().iter().any(near), ..seen }
        })
    }
}
