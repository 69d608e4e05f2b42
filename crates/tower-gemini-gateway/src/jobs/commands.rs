//! `gemini-gateway jobs …`.

use std::io::{BufRead, BufReader, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tokio::sync::mpsc;
use tower_gemini_jobs::read::{Format, LineFault, items};
use tower_gemini_jobs::{
    Item, ItemState, Job, JobOptions, JobState, JobStore, Lane, NewItem, NewJob, Plan, Planner,
    StoreError, StoredItem, copy_images, delete_job, manifest_csv,
};

use super::{Jobs, open_store, planner, view};
use crate::config::{Config, ConfigError, Log};
use crate::gateway::Gateway;
use crate::running::Signal;

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub(crate) enum JobsCommand {
    /// Say what a file of items costs and how long it takes, without sending anything
    Plan {
        #[command(flatten)]
        from: FromFile,
        /// For scripts
        #[arg(long)]
        json: bool,
    },
    /// Queue the items of a file
    Submit {
        #[command(flatten)]
        from: FromFile,
        /// Work on it at once, until it has ended
        #[arg(long)]
        run: bool,
    },
    /// Work on all jobs until nothing is left to do (a running gateway with the same state
    /// directory does so by itself)
    Run,
    /// Show a job live until it has ended
    Watch(OneJob),
    /// List the jobs
    List {
        /// For scripts
        #[arg(long)]
        json: bool,
    },
    /// Show a job, and its items that failed, may have been paid for, or wait
    Show {
        #[command(flatten)]
        job: OneJob,
        /// For scripts: the job and all of its items
        #[arg(long)]
        json: bool,
    },
    /// Start nothing more; what is in flight ends
    Pause(OneJob),
    /// Go on with a job that was paused or has reached its cap
    Resume {
        #[command(flatten)]
        job: OneJob,
        /// A new cap, in US dollars
        #[arg(long, value_name = "USD")]
        max_usd: Option<f64>,
        /// A new cap on requests
        #[arg(long, value_name = "N")]
        max_requests: Option<u32>,
    },
    /// End a job: what waits is never sent, what is there stays
    Cancel(OneJob),
    /// Remove a job that has ended, with its images
    Delete {
        /// Its id, the beginning of it, or its name: of several, the newest
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Call the items again that failed
    Retry {
        #[command(flatten)]
        job: OneJob,
        /// Also those that may have been paid for: they may be paid for twice
        #[arg(long)]
        unknown: bool,
    },
    /// Copy the images of a job into a directory, with a manifest
    Fetch {
        #[command(flatten)]
        job: OneJob,
        /// The directory
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
    /// Print the manifest: prompt, model, size, charge, steps, and the checksum of each image
    Export {
        #[command(flatten)]
        job: OneJob,
        /// How
        #[arg(long, value_enum, default_value_t = ManifestFormat::Jsonl)]
        format: ManifestFormat,
    },
}

/// How a manifest is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ManifestFormat {
    /// A JSON object a line, with the steps of each call
    Jsonl,
    /// A row an image
    Csv,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct OneJob {
    /// Its id, the beginning of it, or its name. Default: the newest
    #[arg(value_name = "JOB")]
    job: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct FromFile {
    /// JSONL, or CSV by its ending; `-` reads JSONL from standard input. Fields: prompt, model,
    /// size, aspect, inputs, output, deadline, lane, max_usd, max_requests
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Read standard input as CSV
    #[arg(long)]
    csv: bool,
    /// Leave lines out that are no items, in place of refusing the file
    #[arg(long)]
    skip_bad_lines: bool,
    /// What people call the job. Default: the name of the file
    #[arg(long)]
    name: Option<String>,
    /// The model of the items that name none
    #[arg(long)]
    model: Option<String>,
    /// A hard cap, in US dollars
    #[arg(long, value_name = "USD")]
    max_usd: Option<f64>,
    /// A hard cap on requests sent
    #[arg(long, value_name = "N")]
    max_requests: Option<u32>,
    /// How many items may be in flight
    #[arg(long, value_name = "N", default_value_t = JobOptions::default().max_concurrent)]
    max_concurrent: u32,
    /// Lanes from which the cheapest is chosen that meets the deadline: standard, deferred, flex,
    /// batch
    #[arg(long, value_name = "LANES", value_delimiter = ',', value_parser = lane)]
    lanes: Vec<Lane>,
    /// How often an item that may have been paid for is sent again all the same
    #[arg(long, value_name = "N", default_value_t = 0)]
    unknown_resends: u32,
    /// A URL that is told when the job has ended
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
}

fn lane(word: &str) -> Result<Lane, String> {
    let named = Lane::named(word).filter(|lane| *lane != Lane::Priority);
    named.ok_or_else(|| "the lanes are standard, deferred, flex and batch".to_owned())
}

impl FromFile {
    fn options(&self) -> JobOptions {
        let mut options = JobOptions::default();
        let stem = self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        options.name = self.name.clone().or(stem.filter(|stem| stem != "-"));
        options.model.clone_from(&self.model);
        options.max_usd = self.max_usd;
        options.max_requests = self.max_requests;
        options.max_concurrent = self.max_concurrent;
        options.unknown_resends = self.unknown_resends;
        options.webhook.clone_from(&self.webhook);
        if !self.lanes.is_empty() {
            options.lanes.clone_from(&self.lanes);
        }
        options
    }

    fn open(&self) -> Result<(Box<dyn BufRead + Send>, Format), JobsError> {
        if self.file == Path::new("-") {
            let format = if self.csv { Format::Csv } else { Format::Jsonl };
            return Ok((Box::new(BufReader::new(std::io::stdin())), format));
        }
        let file = std::fs::File::open(&self.file)
            .map_err(|error| JobsError::new(format!("{}: {error}", self.file.display())))?;
        Ok((Box::new(BufReader::new(file)), Format::of_name(&self.file.to_string_lossy())))
    }

    /// Paths of input images are relative to the file, wherever the worker runs.
    fn rooted(&self, mut item: Item) -> Item {
        let base = self.file.parent().filter(|_| self.file != Path::new("-"));
        let base = base.filter(|base| !base.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for input in &mut item.inputs {
            if !input.starts_with("item:") && !input.contains("://") {
                let path = base.join(&*input);
                let path = std::path::absolute(&path).unwrap_or(path);
                *input = path.to_string_lossy().into_owned();
            }
        }
        item
    }
}

/// Why a command did nothing, or no more.
#[derive(Debug)]
pub(crate) struct JobsError(String);

impl JobsError {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl std::fmt::Display for JobsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StoreError> for JobsError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

impl From<ConfigError> for JobsError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for JobsError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<serde_json::Error> for JobsError {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// Runs a command. What it says goes to `output`, what is wrong with lines to `errors`.
pub(crate) async fn run(
    command: &JobsCommand,
    config: Config,
    output: &mut (dyn Write + Send),
    errors: &mut (dyn Write + Send),
    signals: mpsc::Receiver<Signal>,
) -> Result<(), JobsError> {
    if let JobsCommand::Plan { from, json } = command {
        let plan = plan(from, &config, errors)?;
        let text = if *json { pretty(&plan)? } else { view::plan(&plan) };
        return Ok(output.write_all(text.as_bytes())?);
    }
    let env = |name: &str| std::env::var(name).ok();
    let places = config.job_places(env)?.ok_or_else(|| {
        JobsError::new(
            "there is no place for jobs: set server.state_dir in the configuration, and name the \
             file with --config",
        )
    })?;
    if matches!(command, JobsCommand::Run) {
        return work(config, None, output, signals).await;
    }
    let store = open_store(&places).await?;
    let done = match command {
        JobsCommand::Submit { from, run } => {
            let (job, plan) = submit(from, &config, &store, errors).await?;
            output.write_all(view::submitted(&job, &plan).as_bytes())?;
            output.flush()?;
            if *run {
                return work(config, Some(job.id), output, signals).await;
            }
            Ok(())
        }
        JobsCommand::Watch(one) => {
            let job = find(&store, one).await?;
            watch(&store, &job.id, output, signals).await
        }
        JobsCommand::List { json } => list(&store, *json, output).await,
        JobsCommand::Show { job, json } => show(&store, job, *json, output).await,
        JobsCommand::Fetch { job, out } => {
            let job = find(&store, job).await?;
            let copied = copy_images(&store, &job.id, &places.dir, out).await?;
            let text = format!("{copied} images and manifest.jsonl are in {}\n", out.display());
            Ok(output.write_all(text.as_bytes())?)
        }
        JobsCommand::Delete { job } => {
            let job = find(&store, &OneJob { job: Some(job.clone()) }).await?;
            if !delete_job(&store, &job.id, &places.dir).await? {
                let what = format!("job {} has not ended; cancel it first", job.id);
                return Err(JobsError::new(what));
            }
            Ok(writeln!(output, "job {} and its images are removed", job.id)?)
        }
        JobsCommand::Export { job, format } => export(&store, job, *format, output).await,
        other => change(&store, other, output).await,
    };
    store.close().await;
    done
}

fn pretty(value: &impl serde::Serialize) -> Result<String, JobsError> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// The most bad lines that are printed one by one.
const SHOWN_FAULTS: u64 = 20;

/// The planned items of a file; bad lines go to `errors` and count.
struct Lines<'l> {
    from: &'l FromFile,
    planner: &'l Planner,
    errors: &'l mut (dyn Write + Send),
    bad: u64,
}

impl Lines<'_> {
    /// The item of a line; `None` where the line is bad.
    fn item(&mut self, read: Result<(u64, Item), LineFault>) -> Option<NewItem> {
        let planned = read.map_err(|fault| fault.to_string()).and_then(|(line, item)| {
            let planned = self.planner.item(self.from.rooted(item));
            planned.map_err(|what| format!("line {line}: {what}"))
        });
        match planned {
            Ok(item) => Some(item),
            Err(fault) => {
                self.bad += 1;
                if self.bad <= SHOWN_FAULTS {
                    let _ = writeln!(self.errors, "{}: {fault}", self.from.file.display());
                }
                None
            }
        }
    }

    /// An error where there are bad lines that nobody asked to leave out.
    fn check(&mut self) -> Result<(), StoreError> {
        if self.bad > SHOWN_FAULTS {
            let _ = writeln!(self.errors, "… and {} more", self.bad - SHOWN_FAULTS);
        }
        match self.bad {
            0 => Ok(()),
            bad if self.from.skip_bad_lines => {
                let _ = writeln!(self.errors, "{bad} bad lines are left out");
                Ok(())
            }
            bad => Err(format!(
                "{bad} lines are no items, so nothing is queued; mend them, or leave them out with \
                 --skip-bad-lines"
            )
            .into()),
        }
    }
}

fn plan(
    from: &FromFile,
    config: &Config,
    errors: &mut (dyn Write + Send),
) -> Result<Plan, JobsError> {
    let planner = planner(config, from.options())?;
    let (reader, format) = from.open()?;
    let mut lines = Lines { from, planner: &planner, errors, bad: 0 };
    let mut plan = planner.plan();
    for read in items(reader, format) {
        if let Some(item) = lines.item(read) {
            plan.add(&item);
        }
    }
    lines.check()?;
    Ok(plan.finish())
}

async fn submit(
    from: &FromFile,
    config: &Config,
    store: &JobStore,
    errors: &mut (dyn Write + Send),
) -> Result<(Job, Plan), JobsError> {
    let options = from.options();
    let planner = planner(config, options.clone())?;
    let (reader, format) = from.open()?;
    let mut lines = Lines { from, planner: &planner, errors, bad: 0 };
    let mut plan = planner.plan();
    let mut read = items(reader, format);
    let mut is_over = false;
    // The whole file is read before anything is kept, so that all bad lines are known.
    let planned = std::iter::from_fn(|| {
        for read in read.by_ref() {
            if let Some(item) = lines.item(read) {
                plan.add(&item);
                return Some(Ok(item));
            }
        }
        let ends = std::mem::replace(&mut is_over, true);
        lines.check().err().filter(|_| !ends).map(Err)
    });
    let now_ms = planner.now_ms();
    let job = store.submit(NewJob::new("", options, now_ms), planned).await?;
    Ok((job, plan.finish()))
}

/// A job by its id, the beginning of it, or its name; the newest where nothing is said.
async fn find(store: &JobStore, one: &OneJob) -> Result<Job, JobsError> {
    let jobs = store.jobs(None).await?;
    let Some(asked) = &one.job else {
        return jobs.into_iter().next().ok_or_else(|| JobsError::new("there are no jobs"));
    };
    let is_named = |job: &&Job| job.options.name.as_ref() == Some(asked);
    let exact = jobs.iter().find(|job| job.id == *asked).or_else(|| jobs.iter().find(is_named));
    if let Some(job) = exact {
        return Ok(job.clone());
    }
    let mut beginning = jobs.iter().filter(|job| job.id.starts_with(asked.as_str()));
    match (beginning.next(), beginning.next()) {
        (Some(job), None) => Ok(job.clone()),
        (Some(_), Some(_)) => Err(JobsError::new(format!("several jobs begin with {asked}"))),
        (None, _) => {
            let what = format!("no job is called {asked}; `gemini-gateway jobs list` has them");
            Err(JobsError::new(what))
        }
    }
}

async fn list(
    store: &JobStore,
    json: bool,
    output: &mut (dyn Write + Send),
) -> Result<(), JobsError> {
    let mut rows = Vec::new();
    for job in store.jobs(None).await? {
        let counts = store.counts(&job.id).await?;
        rows.push((job, counts));
    }
    let text = match json {
        true => {
            let rows: Vec<_> = rows.iter().map(|(job, counts)| view::json(job, counts)).collect();
            pretty(&rows)?
        }
        false => view::list(&rows),
    };
    Ok(output.write_all(text.as_bytes())?)
}

/// All items of a job, or those in one state, a page at a time.
async fn each_item(
    store: &JobStore,
    job: &str,
    state: Option<ItemState>,
    mut with: impl FnMut(StoredItem) -> Result<(), JobsError>,
) -> Result<(), JobsError> {
    let mut after = 0;
    loop {
        let page = store.items(job, state, after, 500).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.number;
        page.into_iter().try_for_each(&mut with)?;
    }
}

async fn show(
    store: &JobStore,
    one: &OneJob,
    json: bool,
    output: &mut (dyn Write + Send),
) -> Result<(), JobsError> {
    let job = find(store, one).await?;
    let counts = store.counts(&job.id).await?;
    if json {
        let mut value = view::json(&job, &counts);
        let mut all = Vec::new();
        each_item(store, &job.id, None, |item| {
            all.push(serde_json::to_value(item)?);
            Ok(())
        })
        .await?;
        value["list"] = all.into();
        return Ok(output.write_all(pretty(&value)?.as_bytes())?);
    }
    output.write_all(view::job(&job, &counts).as_bytes())?;
    for state in [ItemState::Failed, ItemState::Unknown, ItemState::Waiting] {
        let items = store.items(&job.id, Some(state), 0, 10).await?;
        output.write_all(view::items(state, &items, &counts).as_bytes())?;
    }
    Ok(())
}

async fn export(
    store: &JobStore,
    one: &OneJob,
    format: ManifestFormat,
    output: &mut (dyn Write + Send),
) -> Result<(), JobsError> {
    let job = find(store, one).await?;
    if format == ManifestFormat::Csv {
        return Ok(output.write_all(manifest_csv(store, &job.id).await?.as_bytes())?);
    }
    each_item(store, &job.id, None, |item| {
        let Some(line) = &item.result else { return Ok(()) };
        Ok(writeln!(output, "{line}")?)
    })
    .await
}

async fn change(
    store: &JobStore,
    command: &JobsCommand,
    output: &mut (dyn Write + Send),
) -> Result<(), JobsError> {
    let ended = |job: &Job| format!("job {} has ended; nothing changed\n", job.id);
    let text = match command {
        JobsCommand::Pause(one) => {
            let job = find(store, one).await?;
            match store.pause(&job.id).await? {
                true => format!("job {} is paused; what is in flight ends\n", job.id),
                false => ended(&job),
            }
        }
        JobsCommand::Resume { job, max_usd, max_requests } => {
            let job = find(store, job).await?;
            store.set_caps(&job.id, *max_usd, *max_requests).await?;
            match store.resume(&job.id).await? {
                true => format!("job {} goes on\n", job.id),
                false if job.state == JobState::Active => {
                    format!("job {} goes on as it did\n", job.id)
                }
                false => ended(&job),
            }
        }
        JobsCommand::Cancel(one) => {
            let job = find(store, one).await?;
            match store.cancel(&job.id, super::now_ms()).await? {
                true => format!("job {} is cancelled; what is there stays\n", job.id),
                false => ended(&job),
            }
        }
        JobsCommand::Retry { job, unknown } => {
            let job = find(store, job).await?;
            let again = store.retry(&job.id, *unknown).await?;
            format!("{again} items of job {} are called again\n", job.id)
        }
        _ => String::new(),
    };
    Ok(output.write_all(text.as_bytes())?)
}

/// Works on jobs in this process until nothing is left to do, or somebody stops it.
async fn work(
    mut config: Config,
    watched: Option<String>,
    output: &mut (dyn Write + Send),
    mut signals: mpsc::Receiver<Signal>,
) -> Result<(), JobsError> {
    // Lines about every call would bury the progress.
    if config.log == Log::default() {
        config.log.level = "warn".to_owned();
    }
    crate::log::begin(&config)?;
    config.jobs.run = false;
    let grace = config.server.shutdown_grace.0;
    let gateway = Gateway::new(&config).await?;
    let jobs = gateway.jobs().ok_or_else(|| JobsError::new("there is no place for jobs"))?.clone();
    let result = {
        let working = jobs.run_until_idle();
        tokio::pin!(working);
        let mut progress = view::Progress::new(std::io::stdout().is_terminal());
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                ended = &mut working => break ended.map_err(JobsError::from),
                _ = tick.tick() => {
                    report(&jobs, watched.as_deref(), &mut progress, output).await?;
                }
                signal = signals.recv() => if signal != Some(Signal::Reload) {
                    writeln!(output, "\nstopped; `gemini-gateway jobs run` goes on where it was")?;
                    break Ok(());
                }
            }
        }
    };
    let mut progress = view::Progress::new(false);
    report(&jobs, watched.as_deref(), &mut progress, output).await?;
    // What was in flight is completed and stored, for the next run.
    gateway.finish(grace).await;
    result
}

async fn report(
    jobs: &Jobs,
    watched: Option<&str>,
    progress: &mut view::Progress,
    output: &mut (dyn Write + Send),
) -> Result<(), JobsError> {
    for job in jobs.store.jobs(None).await? {
        let is_shown = watched.map_or(job.state == JobState::Active, |id| id == job.id);
        if is_shown || progress.has_shown(&job.id) {
            let counts = jobs.store.counts(&job.id).await?;
            let text = progress.line(&job, &counts, super::now_ms());
            output.write_all(text.as_bytes())?;
        }
    }
    Ok(output.flush()?)
}

/// Shows a job until it has ended.
async fn watch(
    store: &JobStore,
    id: &str,
    output: &mut (dyn Write + Send),
    mut signals: mpsc::Receiver<Signal>,
) -> Result<(), JobsError> {
    let mut progress = view::Progress::new(std::io::stdout().is_terminal());
    loop {
        let job = store.job(id).await?.ok_or_else(|| JobsError::new("the job is gone"))?;
        let counts = store.counts(id).await?;
        output.write_all(progress.line(&job, &counts, super::now_ms()).as_bytes())?;
        if let Some(next) = store.next_wait(id).await?.filter(|_| counts.running == 0) {
            output.write_all(progress.waits(&next, super::now_ms()).as_bytes())?;
        }
        output.flush()?;
        let has_ended = !matches!(job.state, JobState::Active | JobState::Paused);
        if has_ended && counts.running == 0 {
            output.write_all(format!("\n{}", view::job(&job, &counts)).as_bytes())?;
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = signals.recv() => return Ok(()),
        }
    }
}
