//! Makes calls, a few at a time, and prints what happens as it happens.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tower_gemini::Error;
use tower_gemini::FinalImage;
use tower_gemini::trail::{Attempt, Step, StopReason, TrailObserver, WaitReason};
use tower_gemini::verdict::{Charge, Outcome};

use crate::files;
use crate::gemini::Job;
use crate::talk::{Talk, Tone};

/// How a call ended.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    /// The image is on disk.
    Saved(Saved),
    /// The image came and could not be kept.
    Lost(String),
    /// There is no image, and this is why.
    NoImage(String),
    /// We were interrupted first.
    CutOff,
    /// We were interrupted before it began.
    NotStarted,
}

#[derive(Debug, Clone)]
pub(crate) struct Saved {
    pub(crate) path: PathBuf,
    pub(crate) bytes: usize,
    pub(crate) pixels: Option<(u32, u32)>,
    pub(crate) drafts: u32,
    pub(crate) is_thought: bool,
}

/// A call and its end.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) job: Job,
    pub(crate) ended: Ended,
}

/// What the calls have in common.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) key: HeaderValue,
    pub(crate) out: PathBuf,
    /// Whether files of an earlier run are replaced.
    pub(crate) replace: bool,
    pub(crate) at_once: usize,
    /// Names the call to the simulator, whose ledger is kept by call.
    pub(crate) tag_calls: bool,
}

/// Runs all jobs. `true` where it was interrupted; what ran then was dropped, and its trail says
/// *maybe charged*.
pub(crate) async fn run<S>(
    gemini: S,
    jobs: Vec<Job>,
    settings: Settings,
    talk: &mut Talk<'_>,
    interrupted: impl Future<Output = ()>,
) -> (Vec<Report>, bool)
where
    S: Service<Request<Full<Bytes>>, Response = Response<FinalImage>, Error = Error>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let began = Instant::now();
    let width = jobs.iter().map(|job| job.name.chars().count()).max().unwrap_or_default();
    let mut reports: Vec<_> =
        jobs.into_iter().map(|job| Report { job, ended: Ended::NotStarted }).collect();
    let (sender, mut news) = unbounded_channel();
    // How many attempts each call that has begun has made.
    let mut attempts: Vec<u32> = Vec::with_capacity(reports.len());
    let settings = Arc::new(settings);
    let mut running = JoinSet::new();
    let mut interrupted = pin!(interrupted);
    let mut stopped = false;
    loop {
        while !stopped && running.len() < settings.at_once.max(1) && attempts.len() < reports.len()
        {
            let index = attempts.len();
            let Some(report) = reports.get_mut(index) else { break };
            attempts.push(0);
            let observer = Observer { index, news: sender.clone() };
            report.job.trail.observe(Arc::new(observer));
            report.ended = Ended::CutOff;
            let (gemini, job, settings) = (gemini.clone(), report.job.clone(), settings.clone());
            running.spawn(async move { (index, draw(gemini, &job, &settings).await) });
        }
        let mut say = |index: usize, tone, what: &str| {
            let name = reports.get(index).map_or("", |report| &report.job.name);
            talk.line(
                tone,
                &format!("{:6.2} s  {name:width$}  {what}", began.elapsed().as_secs_f64()),
            );
        };
        tokio::select! {
            // What a call did is printed before its end.
            biased;
            Some((index, what)) = news.recv() => {
                if let Some((tone, line)) = attempts.get_mut(index).and_then(|count| what.line(count)) {
                    say(index, tone, &line);
                }
            }
            () = &mut interrupted, if !stopped => {
                stopped = true;
                running.abort_all();
            }
            ended = running.join_next() => match ended {
                Some(Ok((index, ended))) => {
                    let (tone, what) = in_words(&ended);
                    say(index, tone, &what);
                    if let Some(report) = reports.get_mut(index) {
                        report.ended = ended;
                    }
                }
                // An aborted task has nothing to say; its trail has.
                Some(Err(_)) => {}
                None => break,
            },
        }
    }
    (reports, stopped)
}

/// One call from its request to its file.
async fn draw<S>(gemini: S, job: &Job, settings: &Settings) -> Ended
where
    S: Service<Request<Full<Bytes>>, Response = Response<FinalImage>, Error = Error>,
{
    let mut request = match job.request(&settings.key) {
        Ok(request) => request,
        Err(error) => {
            return Ended::NoImage(format!(
                "no request can be made of this model or endpoint: {error}; nothing was sent"
            ));
        }
    };
    if let (true, Ok(name)) = (settings.tag_calls, HeaderValue::from_str(&job.name)) {
        request.headers_mut().insert("x-sim-call", name);
    }
    match gemini.oneshot(request).await {
        Ok(response) => {
            save(response.into_body(), &job.name, &settings.out, settings.replace).await
        }
        Err(error) => Ended::NoImage(error.to_string()),
    }
}

async fn save(image: FinalImage, name: &str, out: &Path, replace: bool) -> Ended {
    if image.bytes.is_empty() {
        let place = image
            .url
            .as_deref()
            .map_or_else(|| "no bytes".into(), |url| format!("a place instead of bytes: {url}"));
        return Ended::NoImage(format!("the answer gives {place}"));
    }
    let (name, out) = (name.to_owned(), out.to_owned());
    let (bytes, extension) = (image.bytes.clone(), files::extension(&image.bytes, &image.mime));
    // Disks are slow; other calls go on meanwhile.
    let written =
        tokio::task::spawn_blocking(move || files::write(&out, &name, extension, &bytes, replace))
            .await;
    match written {
        Ok(Ok(path)) => Ended::Saved(Saved {
            path,
            bytes: image.bytes.len(),
            pixels: image.width.zip(image.height),
            drafts: image.drafts,
            is_thought: image.is_thought,
        }),
        Ok(Err(error)) => Ended::Lost(error),
        Err(error) => Ended::Lost(format!("cannot write the image: {error}")),
    }
}

fn in_words(ended: &Ended) -> (Tone, String) {
    match ended {
        Ended::Saved(saved) => {
            let pixels = saved.pixels.map_or_else(
                || "unknown size".to_owned(),
                |(width, height)| format!("{width}x{height}"),
            );
            let drafts = match saved.drafts {
                0 => String::new(),
                1 => ", 1 draft left out".to_owned(),
                drafts => format!(", {drafts} drafts left out"),
            };
            let sketch = if saved.is_thought { ", only a sketch" } else { "" };
            let size = weight(saved.bytes);
            (
                Tone::Good,
                format!("saved {} ({pixels}, {size}{drafts}{sketch})", saved.path.display()),
            )
        }
        Ended::Lost(why) => (Tone::Bad, format!("paid for and lost: {why}")),
        Ended::NoImage(why) => (Tone::Bad, format!("no image: {why}")),
        Ended::CutOff => (Tone::Bad, "cut off".to_owned()),
        Ended::NotStarted => (Tone::Plain, "not started".to_owned()),
    }
}

fn weight(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..1_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
    }
}

/// Sends what a call does to the loop that prints it.
struct Observer {
    index: usize,
    news: UnboundedSender<(usize, News)>,
}

enum News {
    Sent(Attempt),
    Step(Step),
}

impl TrailObserver for Observer {
    fn on_send(&self, attempt: &Attempt) {
        // Nobody listens any more when the program is interrupted.
        let _ = self.news.send((self.index, News::Sent(attempt.clone())));
    }

    fn on_step(&self, step: &Step) {
        let _ = self.news.send((self.index, News::Step(step.clone())));
    }
}

impl News {
    /// The line that says it. `count` is that of the call's attempts.
    fn line(&self, count: &mut u32) -> Option<(Tone, String)> {
        Some(match self {
            Self::Sent(attempt) => {
                *count += 1;
                (Tone::Plain, begun(*count, attempt))
            }
            Self::Step(Step::Attempt(attempt)) => {
                let has_image = attempt.outcome == Some(Outcome::Image);
                let tone = if has_image { Tone::Plain } else { Tone::Waiting };
                (tone, ended(*count, attempt))
            }
            Self::Step(Step::Waited { delay, why }) => {
                let is_hint = *why == WaitReason::ServerHint;
                let why = if is_hint { "the server asked for it" } else { "backoff" };
                (Tone::Waiting, format!("waits {:.2} s ({why})", delay.as_secs_f64()))
            }
            // The reason is in the outcome already where nothing else would help.
            Self::Step(Step::Stopped { why }) => {
                let tone = if *why == StopReason::Charged { Tone::Plain } else { Tone::Bad };
                (tone, format!("is not sent again: {}", why.as_str()))
            }
            Self::Step(_) => return None,
        })
    }
}

fn begun(number: u32, attempt: &Attempt) -> String {
    let model = attempt.model.as_ref().map_or("unnamed model", |model| model.as_str());
    let size = attempt.size.map(|size| format!(" at {size}")).unwrap_or_default();
    format!("attempt {number} goes to {model}{size}")
}

fn ended(number: u32, attempt: &Attempt) -> String {
    if attempt.outcome == Some(Outcome::Image) {
        return format!("attempt {number}: an image");
    }
    let outcome = attempt.outcome.map_or("cut off", Outcome::as_str);
    let fine_print: Vec<_> =
        [attempt.status.map(|status| status.to_string()), attempt.reason.clone()]
            .into_iter()
            .flatten()
            .collect();
    let fine_print =
        if fine_print.is_empty() { String::new() } else { format!(" ({})", fine_print.join(", ")) };
    let charge = match attempt.charge {
        Charge::None => "nothing charged",
        Charge::Waived => "not charged, it says",
        Charge::Maybe => "maybe charged",
        Charge::Charged => "charged",
    };
    format!("attempt {number}: {outcome}{fine_print}, {charge}")
}
