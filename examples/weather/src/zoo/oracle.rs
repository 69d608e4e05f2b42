//! Our layers with one thing more: they know of outages, and send nothing into them. No real client
//! can; what others miss of it is their regret.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tower_gemini_sim::{Sim, Size};

use super::foreign::other;
use super::secs;
use crate::client::{Ask, Client, Failure, KEY, Reply};

/// How often it looks.
const LOOK: u64 = 5;

/// From this share of failing requests on it sends nothing into an outage.
const HOPELESS: f64 = 0.95;

/// See the [module](self).
#[derive(Clone)]
pub struct Oracle {
    inner: Arc<dyn Client>,
    sim: Sim,
    falls_back: bool,
}

impl Oracle {
    /// Asks `inner`, looks at the simulator's outages, and takes the other model where the one asked
    /// for is in one, if it `falls_back`.
    pub fn new(inner: Arc<dyn Client>, sim: Sim, falls_back: bool) -> Self {
        Self { inner, sim, falls_back }
    }

    fn is_up(&self, ask: &Ask) -> bool {
        let size = Size::parse(ask.size).unwrap_or(Size::K1);
        self.sim.share_failing(KEY, ask.model, size) < HOPELESS
    }

    async fn run(self, ask: Ask) -> Reply {
        let began = Instant::now();
        let mut last = Reply::failed(Failure::Overloaded);
        while let Some(patience) = ask.patience.checked_sub(began.elapsed()) {
            let ask = Ask { patience, ..ask.clone() };
            let stand_in = Ask { model: other(ask.model), ..ask.clone() };
            let there = self.is_up(&ask);
            if there || (self.falls_back && self.is_up(&stand_in)) {
                last = self.inner.call(if there { ask } else { stand_in }).await;
                // Another outage began meanwhile.
                if last.result != Err(Failure::Overloaded) {
                    return last;
                }
            }
            sleep(secs(LOOK)).await;
        }
        Reply { out_of_time: true, ..last }
    }
}

impl fmt::Debug for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oracle").field("falls_back", &self.falls_back).finish_non_exhaustive()
    }
}

impl Client for Oracle {
    fn call(&self, ask: Ask) -> BoxFuture<'static, Reply> {
        Box::pin(self.clone().run(ask))
    }
}
