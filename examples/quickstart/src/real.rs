//! Google's Gemini, for money.

use std::future::Future;
use std::io::BufRead;

use http::{HeaderMap, HeaderValue, Method, Uri};
use tower_gemini::call::{Call, ImageSize};
use tower_gemini::catalog::Catalog;
use tower_gemini::cost::{Cost, cost_of};
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::verdict::Verdict;

use crate::args::Options;
use crate::gemini::{Job, stack};
use crate::run::{Settings, run};
use crate::talk::Talk;
use crate::{INTERRUPTED, files, report};

/// Checks everything that can be checked before money is spent, says how much that may be, asks,
/// and draws.
pub(crate) async fn real(
    options: &Options,
    key: Option<String>,
    input: Option<&mut dyn BufRead>,
    talk: &mut Talk<'_>,
    interrupted: impl Future<Output = ()>,
) -> Result<u8, String> {
    let key = key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()).ok_or(
        "--real needs a key: set the environment variable GEMINI_API_KEY to one from \
         https://aistudio.google.com/apikey. Without --real nothing is needed.",
    )?;
    let mut key = HeaderValue::from_str(&key)
        .map_err(|_| "GEMINI_API_KEY holds characters that no key has")?;
    key.set_sensitive(true);
    let size = size_to_ask(&options.model, options.size)?;
    let job = |name| Job::new(name, &options.prompt, &options.model, size, &options.endpoint);
    files::prepare(&options.out)?;

    let name = files::slug(&options.prompt);
    let mut jobs: Vec<_> = match options.count {
        1 => vec![job(name)],
        count => (1..=count).map(|number| job(format!("{name}-{number}"))).collect(),
    };
    let images = if options.count == 1 { "image" } else { "images" };
    talk.plain(&format!(
        "{} {images} of {} at {}: {}. Nothing is sent again after it was, or may have been, paid for.",
        options.count,
        options.model,
        options.size,
        price(&jobs)?
    ));
    if !options.yes {
        let input = input.ok_or("nobody is there to agree to the price; --yes agrees")?;
        talk.text("Send it? [y/N] ");
        let mut answer = String::new();
        input.read_line(&mut answer).map_err(|error| format!("no answer can be read: {error}"))?;
        if !matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            talk.plain("Nothing was sent.");
            return Ok(1);
        }
    }

    let gemini = stack(RetryPolicy::recommended(), None).map_err(|error| error.to_string())?;
    let settings = Settings { key, out: options.out.clone(), simulated: false };
    talk.plain("");
    let stopped = run(gemini, &mut jobs, settings, talk, interrupted).await;
    talk.plain("");
    report::table(talk, &jobs, None);
    report::explain(talk, &jobs, None);
    report::so_far(talk, &jobs);
    let all_saved = report::saved(&jobs) == jobs.len();
    Ok(if stopped { INTERRUPTED } else { u8::from(!all_saved) })
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

/// What these jobs, which are alike, may cost.
fn price(jobs: &[Job]) -> Result<String, String> {
    let first = jobs.first().ok_or("there is nothing to draw")?;
    let uri: Uri = first
        .url()
        .parse()
        .map_err(|error| format!("no request can be made of this endpoint: {error}"))?;
    let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(first.body().as_bytes()));
    let one = cost_of(Catalog::builtin(), &call, &Verdict::delivering(), None);
    let all = |microusd: u64| Cost::exactly(microusd.saturating_mul(jobs.len() as u64));
    Ok(match one.at_most_microusd {
        Some(most) => format!(
            "usually little more than {}, at the very most {} (if ten drafts each and long \
             thoughts were charged)",
            all(one.at_least_microusd),
            all(most)
        ),
        None => {
            "the price list does not know this model, so nothing bounds what it costs".to_owned()
        }
    })
}
