//! Looks at what holds, and has sent what is news of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tower_gemini::clock::{Clock, SystemClock};

use super::Alerts;
use super::conditions::{self, Conditions};
use super::decide::{Ledger, MAX_NOTICES, Notice};
use super::deliver::{Channel, message};
use super::feed::{Incident, open_incidents};
use crate::snapshot::Snapshot;
use crate::today::today;

/// How often it is looked at what holds.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
/// How often the status feed is read.
const FEED_EVERY: Duration = Duration::from_secs(300);

/// Open incidents of the status feed, as last read.
type Incidents = Arc<Mutex<Vec<Incident>>>;

/// Looks `every` so often at what holds, and sends what is news, as long as it is polled.
pub(crate) async fn watch(gateway: watch::Receiver<Arc<Snapshot>>, every: Duration) {
    let (notices, queue) = mpsc::channel(MAX_NOTICES);
    let incidents = Incidents::default();
    tokio::join!(
        observe(gateway.clone(), every, incidents.clone(), notices),
        send(gateway.clone(), queue),
        follow_feed(gateway, incidents),
    );
}

async fn observe(
    gateway: watch::Receiver<Arc<Snapshot>>,
    every: Duration,
    incidents: Incidents,
    notices: mpsc::Sender<Notice>,
) {
    let (mut ledger, mut conditions) = (Ledger::default(), Conditions::default());
    let mut every = interval(every);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let snapshot = gateway.borrow().clone();
        let Alerts { channel: Some(channel), delivery } = snapshot.alerts().clone() else {
            continue;
        };
        // The list of tokens is a file, and a file system may not respond.
        let look = tokio::task::spawn_blocking(move || {
            let all = conditions.look(&snapshot, today());
            (conditions, all)
        });
        let mut all = match look.await {
            Ok((looked, all)) => {
                conditions = looked;
                all
            }
            // A look that panics is followed by the next.
            Err(_) => {
                conditions = Conditions::default();
                continue;
            }
        };
        let open = incidents.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(open.iter().map(conditions::incident));
        drop(open);
        let news = ledger.step(Instant::now(), channel.repeat_every, all);
        for notice in news.into_iter().filter(|notice| channel.wants(notice)) {
            let kind = notice.condition.kind.as_str();
            tracing::debug!(kind, what = notice.condition.what, state = ?notice.state, "alert");
            if notices.try_send(notice).is_err() {
                delivery.fail("too many wait for delivery".to_owned());
            }
        }
    }
}

async fn send(gateway: watch::Receiver<Arc<Snapshot>>, mut queue: mpsc::Receiver<Notice>) {
    while let Some(notice) = queue.recv().await {
        let alerts = gateway.borrow().alerts().clone();
        let Some(channel) = &alerts.channel else { continue };
        let message = message(&notice, SystemClock.now());
        let post = || {
            let (channel, message) = (channel.clone(), message.clone());
            async move { channel.post(message).await }
        };
        alerts.delivery.deliver(post).await;
    }
}

async fn follow_feed(mut gateway: watch::Receiver<Arc<Snapshot>>, incidents: Incidents) {
    let mut has_failed = false;
    loop {
        let channel = gateway.borrow_and_update().alerts().channel.clone();
        match read_feed(channel).await {
            Ok(open) => {
                *incidents.lock().unwrap_or_else(PoisonError::into_inner) = open;
                has_failed = false;
            }
            // What was known stays: a feed that fails ends no incident.
            Err(error) if !has_failed => {
                tracing::warn!(error, "alerts.status_feed cannot be read");
                has_failed = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = sleep(FEED_EVERY) => {}
            changed = gateway.changed() => if changed.is_err() { return },
        }
    }
}

/// The open incidents; none where no feed is configured.
async fn read_feed(channel: Option<Arc<Channel>>) -> Result<Vec<Incident>, String> {
    let feed = channel.as_ref().and_then(|channel| channel.feed.clone());
    let Some((channel, feed)) = channel.zip(feed) else { return Ok(Vec::new()) };
    let text = channel.read(&feed).await.map_err(|failure| failure.to_string())?;
    let host = feed.host().unwrap_or_default();
    open_incidents(&text, host).map_err(|error| format!("it is no list of incidents: {error}"))
}
