//! Google's Gemini, for money.

use std::future::Future;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderValue, Method, Uri};
use tower_gemini::call::{Call, ImageSize};
use tower_gemini::catalog::Catalog;
use tower_gemini::cost::{Cost, cost_of};
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::verdict::Verdict;

use crate::args::Real;
use crate::gemini::{self, Job};
use crate::run::{Ended, Settings, run};
use crate::talk::Talk;
use crate::{DONE, FAILED, INTERRUPTED, files, report};

/// Calls under way at a time: the smallest paid tier allows ten images a minute.
const AT_ONCE: usize = 3;

/// What is asked for, checked and agreed to.
pub(crate) struct Ready {
    jobs: Vec<Job>,
    key: HeaderValue,
    out: PathBuf,
}

/// Checks everything that can be checked before money is spent, says how much that may be, and
/// asks. `None` where the answer is no.
pub(crate) fn prepare(
    options: &Real,
    out: &Path,
    key: Option<String>,
    input: Option<&mut dyn BufRead>,
    talk: &mut Talk<'_>,
) -> Result<Option<Ready>, String> {
    let key = key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()).ok_or(
        "--real needs a key: set the environment variable GEMINI_API_KEY to one from https://aistudio.google.com/apikey. \
         Without --real nothing is needed.",
    )?;
    let mut key = HeaderValue::from_str(&key)
        .map_err(|_| "GEMINI_API_KEY holds characters that no key has")?;
    key.set_sensitive(true);
    let size = size_to_ask(&options.model, options.size)?;
    let job = || Job::new(&options.prompt, &options.model, size, &options.endpoint);
    files::prepare(out)?;

    let first = job();
    let uri: Uri = first
        .url()
        .parse()
        .map_err(|error| format!("no request can be made of this endpoint: {error}"))?;
    let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(first.body().as_bytes()));
    let estimate = cost_of(Catalog::builtin(), &call, &Verdict::delivering(), None);
    talk.plain(&format!(
        "{} of {} at {}: {}. Nothing is sent again after it was, or may have been, paid for.",
        if options.count == 1 { "1 image".to_owned() } else { format!("{} images", options.count) },
        options.model,
        options.size,
        priced(estimate, options.count)
    ));
    if !options.yes {
        let Some(input) = input else {
            return Err("nobody is there to agree to the price; --yes agrees".into());
        };
        talk.text("Send it? [y/N] ");
        let mut answer = String::new();
        input.read_line(&mut answer).map_err(|error| format!("no answer can be read: {error}"))?;
        if !matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            talk.plain("Nothing was sent.");
            return Ok(None);
        }
    }
    let jobs = (1..=options.count)
        .map(|number| {
            let mut job = job();
            if options.count > 1 {
                job.name = format!("{}-{number}", job.name);
            }
            job
        })
        .collect();
    Ok(Some(Ready { jobs, key, out: out.to_owned() }))
}

/// Models of one size refuse to be asked for it; sizes that a known model does not make are better
/// refused here.
fn size_to_ask(model: &str, size: ImageSize) -> Result<Option<ImageSize>, String> {
    match Catalog::builtin().lookup(model) {
        Some(known) if !known.makes(size) => {
            let sizes: Vec<_> = known.sizes.iter().map(|size| size.as_str()).collect();
            Err(format!("{model} does not draw at {size}; it draws at {}", sizes.join(", ")))
        }
        Some(known) if known.sizes.len() == 1 => Ok(None),
        _ => Ok(Some(size)),
    }
}

fn priced(one: Cost, count: u32) -> String {
    let count = u64::from(count);
    let all = |microusd: u64| Cost::exactly(microusd.saturating_mul(count));
    match one.at_most_microusd {
        Some(most) => format!(
            "usually little more than {}, at the very most {} (if ten drafts each and long thoughts were charged)",
            all(one.at_least_microusd),
            all(most)
        ),
        None => {
            "the price list does not know this model, so nothing bounds what it costs".to_owned()
        }
    }
}

pub(crate) async fn real(
    ready: Ready,
    talk: &mut Talk<'_>,
    interrupted: impl Future<Output = ()>,
) -> Result<u8, String> {
    let client = gemini::secure_client().map_err(|error| format!("no TLS: {error}"))?;
    let settings = Settings {
        key: ready.key,
        out: ready.out,
        replace: false,
        at_once: AT_ONCE,
        tag_calls: false,
    };
    talk.plain("");
    let gemini = gemini::stack(client, RetryPolicy::recommended(), None);
    let (reports, stopped) = run(gemini, ready.jobs, settings, talk, interrupted).await;
    talk.plain("");
    report::table(talk, &reports, None);
    report::explain(talk, &reports, None);
    report::so_far(talk, &reports);
    let all_saved = reports.iter().all(|report| matches!(report.ended, Ended::Saved(_)));
    Ok(match (stopped, all_saved) {
        (true, _) => INTERRUPTED,
        (false, true) => DONE,
        (false, false) => FAILED,
    })
}
