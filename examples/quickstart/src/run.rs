//! Makes calls, a few at a time, and prints what happens as it happens.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tower_gemini::trail::{Attempt, Step, StopReason, TrailObserver, WaitReason};
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini::{Error, FinalImage};

use crate::files;
use crate::gemini::Job;
use crate::talk::{Talk, Tone};

/// Calls under way at a time: the smallest paid tier allows ten images a minute.
pub(crate) const AT_ONCE: usize = 3;

#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) image: FinalImage,
}

/// What the calls have in common.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) key: HeaderValue,
    pub(crate) out: PathBuf,
    /// Names each call to the simulator, whose ledger is kept by call, and replaces files of an
    /// earlier run.
    pub(crate) simulated: bool,
}

/// Runs all jobs. `true` where it was interrupted; what ran then was dropped: it has no end, and its
/// trail says *maybe charged*.
pub(crate) async fn run<S>(
    gemini: S,
    jobs: &mut [Job],
    settings: Settings,
    talk: &mut Talk<'_>,
    interrupted: impl Future<Output = ()>,
) -> bool
where
    S: Service<Request<Full<Bytes>>, Response = Response<FinalImage>, Error = Error> + Clone,
{
    let began = Instant::now();
    let width = jobs.iter().map(|job| job.name.chars().count()).max().unwrap_or_default();
    let mut say = |job: &Job, tone, what: &str| {
        let seconds = began.elapsed().as_secs_f64();
        talk.line(tone, &format!("{seconds:6.2} s  {:width$}  {what}", job.name));
    };
    let (sender, mut news) = unbounded_channel();
    for (index, job) in jobs.iter().enumerate() {
        let attempts = AtomicU32::new(0);
        job.trail.observe(Arc::new(Observer { index, attempts, news: sender.clone() }));
    }
    let mut ends = Vec::new();
    let mut interrupted = pin!(interrupted);
    let mut stopped = false;
    {
        let calls = jobs.iter().enumerate().map(|(index, job)| {
            let call = draw(gemini.clone(), job, &settings);
            async move { (index, call.await) }
        });
        let mut calls = stream::iter(calls).buffer_unordered(AT_ONCE);
        loop {
            let ended = tokio::select! {
                biased;
                Some((index, tone, line)) = news.recv() => {
                    say(&jobs[index], tone, &line);
                    continue;
                }
                () = &mut interrupted => {
                    stopped = true;
                    None
                }
                ended = calls.next() => ended,
            };
            // What a call did is printed before its end.
            while let Ok((index, tone, line)) = news.try_recv() {
                say(&jobs[index], tone, &line);
            }
            let Some((index, ended)) = ended else { break };
            match &ended {
                Ok(saved) => say(&jobs[index], Tone::Good, &saved.as_text()),
                Err(why) => say(&jobs[index], Tone::Bad, &format!("no image: {why}")),
            }
            ends.push((index, ended));
        }
    }
    for (index, end) in ends {
        jobs[index].end = Some(end);
    }
    stopped
}

/// One call from its request to its file.
async fn draw<S>(gemini: S, job: &Job, settings: &Settings) -> Result<Saved, String>
where
    S: Service<Request<Full<Bytes>>, Response = Response<FinalImage>, Error = Error>,
{
    let mut request = job.request(&settings.key).map_err(|error| {
        format!("no request can be made of this model or endpoint: {error}; nothing was sent")
    })?;
    if let (true, Ok(name)) = (settings.simulated, HeaderValue::from_str(&job.name)) {
        request.headers_mut().insert("x-sim-call", name);
    }
    let response = gemini.oneshot(request).await.map_err(|error| error.to_string())?;
    let image = response.into_body();
    if image.bytes.is_empty() {
        let place = image.url.as_deref().unwrap_or("no bytes");
        return Err(format!("the answer gives a place instead of bytes: {place}"));
    }
    let (name, out, replace) = (job.name.clone(), settings.out.clone(), settings.simulated);
    // Disks are slow; other calls go on meanwhile.
    let write = move || {
        let files = image.files(&name);
        let paths: Result<_, _> =
            files.map(|(file, bytes)| files::write(&out, &file, bytes, replace)).collect();
        Ok(Saved { paths: paths?, image })
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(saved)) => Ok(saved),
        Ok(Err::<_, String>(error)) => Err(format!("it was paid for and lost: {error}")),
        Err(error) => Err(format!("it was paid for and lost: {error}")),
    }
}

impl Saved {
    pub(crate) fn pixels(&self) -> String {
        let pixels = self.image.width.zip(self.image.height);
        pixels.map_or_else(|| "?".to_owned(), |(width, height)| format!("{width}x{height}"))
    }

    fn as_text(&self) -> String {
        let size = match self.image.len {
            len @ 0..10_000 => format!("{len} bytes"),
            len @ 10_000..1_000_000 => format!("{} kB", len / 1_000),
            len => format!("{}.{} MB", len / 1_000_000, len / 100_000 % 10),
        };
        let drafts = match self.image.drafts {
            0 => String::new(),
            1 => ", 1 draft left out".to_owned(),
            drafts => format!(", {drafts} drafts left out"),
        };
        let sketch = if self.image.is_thought { ", only a sketch" } else { "" };
        let paths: Vec<_> = self.paths.iter().map(|path| path.display().to_string()).collect();
        format!("saved {} ({}, {size}{drafts}{sketch})", paths.join(", "), self.pixels())
    }
}

/// Sends what a call does to the loop that prints it.
struct Observer {
    index: usize,
    attempts: AtomicU32,
    news: UnboundedSender<(usize, Tone, String)>,
}

impl Observer {
    fn send(&self, tone: Tone, line: String) {
        // Nobody listens any more when the program is interrupted.
        let _ = self.news.send((self.index, tone, line));
    }
}

impl TrailObserver for Observer {
    fn on_send(&self, attempt: &Attempt) {
        let number = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let model = attempt.model.as_ref().map_or("unnamed model", |model| model.as_str());
        let size = attempt.size.map(|size| format!(" at {size}")).unwrap_or_default();
        self.send(Tone::Plain, format!("attempt {number} goes to {model}{size}"));
    }

    fn on_step(&self, step: &Step) {
        let number = self.attempts.load(Ordering::Relaxed);
        match step {
            Step::Attempt(attempt) if attempt.outcome == Some(Outcome::Image) => {
                self.send(Tone::Plain, format!("attempt {number}: an image"));
            }
            Step::Attempt(attempt) => {
                let outcome = attempt.outcome.map_or("cut off", Outcome::as_str);
                let status = attempt.status.map(|status| status.to_string());
                let details: Vec<_> =
                    [status, attempt.reason.clone()].into_iter().flatten().collect();
                let details = match details.as_slice() {
                    [] => String::new(),
                    details => format!(" ({})", details.join(", ")),
                };
                let charge = match attempt.charge {
                    Charge::None => "nothing charged",
                    Charge::Waived => "not charged, it says",
                    Charge::Maybe => "maybe charged",
                    Charge::Charged => "charged",
                };
                let line = format!("attempt {number}: {outcome}{details}, {charge}");
                self.send(Tone::Waiting, line);
            }
            Step::Waited { delay, why } => {
                let is_hint = *why == WaitReason::ServerHint;
                let why = if is_hint { "the server asked for it" } else { "backoff" };
                let line = format!("waits {:.2} s ({why})", delay.as_secs_f64());
                self.send(Tone::Waiting, line);
            }
            Step::Stopped { why } => {
                let tone = if *why == StopReason::Charged { Tone::Plain } else { Tone::Bad };
                self.send(tone, format!("is not sent again: {}", why.as_str()));
            }
            _ => {}
        }
    }
}
