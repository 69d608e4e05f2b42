//! Our layers with one thing more: they know of outages, and send nothing into them. No real client
//! can; what others miss of it is their regret.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

use super::foreign::other;
use super::secs;
use crate::client::{Ask, Client, Failure, Reply};
use crate::world::SkyService;

/// How often it looks.
const LOOK: u64 = 5;

/// By model and size: at which look, and whether it was up.
type Seen = HashMap<(&'static str, &'static str), (u64, bool)>;

/// See the [module](self).
#[derive(Clone)]
pub struct Oracle {
    inner: Arc<dyn Client>,
    /// The same sky without anything but its outages.
    outages: SkyService,
    /// What was seen at which look, so that a thousand waiting calls look once.
    seen: Arc<Mutex<Seen>>,
    falls_back: bool,
    began: Instant,
}

impl Oracle {
    /// Asks `inner`, looks at `outages`, and takes the other model where the one asked for is in an
    /// outage, if it `falls_back`.
    pub fn new(inner: Arc<dyn Client>, outages: SkyService, falls_back: bool) -> Self {
        Self { inner, outages, seen: Arc::default(), falls_back, began: Instant::now() }
    }

    async fn is_up(&self, ask: &Ask) -> bool {
        let look = self.began.elapsed().as_secs() / LOOK;
        let key = (ask.model, ask.size);
        let lock = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(&key).copied();
        if let Some((_, up)) = known.filter(|(at, _)| *at == look) {
            return up;
        }
        let answer = self.outages.clone().oneshot(ask.request()).await;
        let up = answer.is_ok_and(|response| response.status().is_success());
        lock().insert(key, (look, up));
        up
    }

    async fn run(self, ask: Ask) -> Reply {
        let began = Instant::now();
        let mut last = Reply::failed(Failure::Overloaded);
        while let Some(patience) = ask.patience.checked_sub(began.elapsed()) {
            let ask = Ask { patience, ..ask.clone() };
            let stand_in = Ask { model: other(ask.model), ..ask.clone() };
            let there = self.is_up(&ask).await;
            if there || (self.falls_back && self.is_up(&stand_in).await) {
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
