//! Jobs of many images: works on them in this process, by its own stacks, budgets and journal.

mod address;
mod answers;
mod batch_ended;
pub(crate) mod commands;
mod draw;
mod fetch;
pub(crate) mod http;
mod notify;
mod page;
mod submission;
#[cfg(test)]
mod tests;
mod view;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tower_gemini::catalog::Platform;
use tower_gemini_jobs::plan::Limits;
use tower_gemini_jobs::{Inputs, JobOptions, JobStore, Planner, StoreError, Worker};

use self::draw::InGateway;
use self::fetch::Reach;
use self::notify::{Notifier, WebhookSecret};
use crate::config::{Config, ConfigError, JobPlaces};
use crate::snapshot::Snapshot;
use crate::today::default_model;
use crate::wire;

/// The jobs of a gateway: their store, and the worker over the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Jobs {
    pub(crate) store: JobStore,
    pub(crate) places: JobPlaces,
    worker: Worker<InGateway>,
    notifier: Notifier,
    /// What Google signs its webhooks of batches with.
    batch_secret: Option<WebhookSecret>,
}

/// Off-peak hours begin at least once in it.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// The margin before stored responses are forgotten. Ours: longer than any start of the program.
const MARGIN: Duration = Duration::from_secs(60);

impl Jobs {
    /// Opens the store of jobs that the configuration names; `None` where it names none.
    pub(crate) async fn open(
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Result<Option<Self>, ConfigError> {
        let snapshot = snapshots.borrow().clone();
        let config = snapshot.config();
        let env = |name: &str| std::env::var(name).ok();
        let Some(places) = config.job_places(env)? else { return Ok(None) };
        if JobStore::is_shared_place(&places.store) && !snapshot.state().is_shared() {
            return Err(ConfigError::at(
                "jobs.store",
                "jobs in Postgres are for several workers, and a journal in server.state_dir is \
                 this process's own: what a killed worker had paid for, no other would know",
                "set server.store to a redis:// or postgres:// that all workers share",
            ));
        }
        let store = open_store(&places).await?;
        let draw = InGateway::new(snapshots.clone(), store.clone(), config.jobs_key(env)?);
        let unusable =
            |error: StoreError| ConfigError::at("jobs.store", error.to_string(), String::new());
        let resume_within = match snapshot.has_journal() {
            true => config.keep.retention.0.saturating_sub(MARGIN),
            // Nothing remembers what was sent.
            false => Duration::ZERO,
        };
        let reach = Reach { connect: config.timeouts.connect.0, private: config.jobs.private_urls };
        let secret = |key, variable: &Option<String>| {
            let Some(text) = config.jobs_secret(key, variable.as_deref(), env)? else {
                return Ok(None);
            };
            WebhookSecret::parse(&text).map(Some).ok_or_else(|| {
                ConfigError::at(
                    key,
                    "it names a variable that holds no secret of webhooks",
                    "write whsec_ and 24 to 64 bytes in base64: `openssl rand -base64 32` prints 32",
                )
            })
        };
        let own = secret("jobs.webhook_secret_env", &config.jobs.webhook_secret_env)?;
        let of_batches =
            secret("jobs.batch_webhook_secret_env", &config.jobs.batch_webhook_secret_env)?;
        let notifier = Notifier { store: store.clone(), secret: own, reach };
        let worker = Worker::new(store.clone(), draw, places.dir.clone())
            .map_err(unusable)?
            .inputs(Inputs::new(".").fetch(move |url| Box::pin(fetch::image(url, reach))))
            .resume_within(resume_within)
            .max_running(config.jobs.max_running)
            .lease(config.jobs.lease.0)
            .keep(config.jobs.keep.map(|keep| keep.0))
            .prices(config.read_catalog()?, platform(config))
            .off_peak_in(move || snapshots.borrow().layers().peak.delay(A_DAY));
        Ok(Some(Self { store, places, worker, notifier, batch_secret: of_batches }))
    }

    /// Works on jobs until `stop` is true. A store or a disk that fails is tried again.
    pub(crate) async fn run(&self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let Err(error) = self.worker.run(stop.clone()).await else { return };
            tracing::error!(%error, "jobs rest for 10 s");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(10)) => {}
                _ = stop.changed() => {}
            }
        }
    }

    /// Works on jobs until nothing is left to do, and tells their webhooks once. What does not
    /// answer is told again by whoever works on jobs later.
    pub(crate) async fn run_until_idle(&self) -> Result<(), StoreError> {
        self.worker.run_until_idle().await?;
        self.notifier.deliver_due(now_ms()).await
    }

    /// Has batches looked after at once.
    pub(crate) async fn look_after_batches(&self) -> Result<(), StoreError> {
        self.worker.look_after_batches().await
    }

    /// Has what was just submitted begun at once.
    pub(crate) fn wake(&self) {
        self.worker.wake();
    }
}

/// The jobs of a gateway that works on them.
#[derive(Debug)]
pub(crate) struct Working {
    pub(crate) jobs: Jobs,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Working {
    /// Opens the jobs of a gateway, and begins to work on them where it should.
    pub(crate) async fn begin(
        snapshots: &watch::Sender<Arc<Snapshot>>,
    ) -> Result<Option<Arc<Self>>, ConfigError> {
        let Some(jobs) = Jobs::open(snapshots.subscribe()).await? else { return Ok(None) };
        let (stop, stopped) = watch::channel(false);
        let works = snapshots.borrow().config().jobs.run;
        let task = works.then(|| {
            let jobs = jobs.clone();
            tokio::spawn(async move {
                tokio::join!(jobs.run(stopped.clone()), jobs.notifier.run(stopped));
            })
        });
        Ok(Some(Arc::new(Self { jobs, stop, task: Mutex::new(task) })))
    }

    /// Starts nothing more, and waits so long for what is in flight.
    pub(crate) async fn end(&self, within: Duration) {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut task) = task
            && tokio::time::timeout(within, &mut task).await.is_err()
        {
            task.abort();
        }
        self.jobs.store.close().await;
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// The store of jobs, without a gateway: for the commands that send nothing.
pub(crate) async fn open_store(places: &JobPlaces) -> Result<JobStore, ConfigError> {
    if !places.store.contains("://")
        && let Some(dir) = std::path::Path::new(&places.store).parent()
        && !dir.as_os_str().is_empty()
    {
        crate::state::private_dir(dir).map_err(|error| {
            let what = format!("jobs.store {}: {error}", places.store);
            ConfigError::at("jobs.store", what, "name another place")
        })?;
    }
    let opened = JobStore::open(&places.store).await;
    opened.map_err(|error| ConfigError::at("jobs.store", error.to_string(), ""))
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(wire::now_unix()).unwrap_or(0).saturating_mul(1000)
}

/// How items are planned with this configuration, for a job with these settings.
pub(crate) fn planner(config: &Config, options: JobOptions) -> Result<Planner, ConfigError> {
    let catalog = config.read_catalog()?;
    let now_ms = now_ms();
    let mut planner = Planner::new(default_model(&catalog), options, now_ms)
        .platform(platform(config))
        .drafts(config.spending.assume_drafts)
        .fallbacks(config.fallback.named_models().map(str::to_owned));
    let some = |limit: u64| u32::try_from(limit).ok().filter(|limit| *limit > 0);
    for model in catalog.models() {
        let (rpm, rpd) = config.limits_of(&model.id);
        planner = planner.limits(&model.id, Limits::new(some(rpm), some(rpd)));
    }
    Ok(planner.catalog(catalog).off_peak_in(config.peak.layer()?.delay(A_DAY)))
}

/// Whose prices hold.
fn platform(config: &Config) -> Platform {
    match config.leader(false) {
        Some(_) => Platform::GeminiApi,
        None => Platform::VertexAi,
    }
}
