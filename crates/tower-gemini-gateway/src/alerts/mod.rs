//! Tells people: what needs one is sent to a webhook, once.
//!
//! Once a second [`watch`] reads from the state of the gateway what holds ([`conditions`]), the pure
//! [`decide`] says what of it is news, and a bounded queue leads to the one task that
//! [sends](deliver). No request waits for any of it, and nothing runs where no webhook is configured.
//! What was reported is forgotten at a restart, and replicas report each for itself.

mod conditions;
mod decide;
mod deliver;
mod feed;
pub(crate) mod watch;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::deliver::{Channel, Delivery};
use crate::config::{self, ConfigError};

pub(crate) use self::deliver::describe_metrics;

/// Where alerts of one configuration go, and what became of all so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Alerts {
    channel: Option<Arc<Channel>>,
    delivery: Arc<Delivery>,
}

impl Alerts {
    /// Reads where alerts go. `env` looks a variable up; the counts of `before` go on.
    pub(crate) fn build(
        config: &config::Alerts,
        before: Option<&Self>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let delivery = before.map(|before| before.delivery.clone()).unwrap_or_default();
        Ok(Self { channel: Channel::build(config, env)?.map(Arc::new), delivery })
    }

    /// What became of alerts so far; `None` where nobody is told.
    pub(crate) fn delivery(&self) -> Option<&Delivery> {
        self.channel.as_ref().map(|_| &*self.delivery)
    }
}
