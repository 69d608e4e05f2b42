//! Writes what became of each attempt to a file: the weather, to be replayed and measured.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use tower_gemini::call::ImageSize;
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::observe::{CallInfo, CallObserver, ObservedStep};
use tower_gemini::trail::{Attempt, Step};
use tower_gemini::verdict::Outcome;
use tower_gemini_sim::OBSERVATIONS_HEADER;

/// Appends a line an attempt to a CSV file. It holds no prompt, key or caller.
#[derive(Debug)]
pub(crate) struct ObservationFile(Mutex<Option<File>>);

impl ObservationFile {
    /// Opens a file, to be appended to.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if file.metadata()?.len() == 0 {
            writeln!(file, "{OBSERVATIONS_HEADER}")?;
        }
        Ok(Self(Mutex::new(Some(file))))
    }

    fn write(&self, line: &str) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = &mut *file else { return };
        // One write a line: a process that is killed leaves whole lines.
        if let Err(error) = open.write_all(line.as_bytes()) {
            tracing::error!(%error, "log.observations cannot be written and ends here");
            *file = None;
        }
    }
}

impl CallObserver for ObservationFile {
    fn on_step(&self, call: &CallInfo, observed: &ObservedStep<'_>) {
        if let (Step::Attempt(attempt), true) = (observed.step, call.generates) {
            self.write(&line(attempt, observed.model));
        }
    }
}

/// `model` is a name of the catalogue's: a model that is not in it is whatever a caller wrote.
fn line(attempt: &Attempt, model: &str) -> String {
    let now = SystemClock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let sent = now.saturating_sub(attempt.took).as_secs_f64();
    let size = attempt.size.map_or("", ImageSize::as_str);
    let outcome = attempt.outcome.unwrap_or(Outcome::Interrupted).as_str();
    format!("{sent:.3},{model},{size},{outcome},{}\n", attempt.took.as_millis())
}

#[cfg(test)]
mod tests {
    use tower_gemini_sim::Observations;

    #[tokio::test]
    async fn what_the_gateway_wrote_can_be_replayed() {
        let path = std::env::temp_dir().join(format!("observations-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let sim = tower_gemini_sim::Sim::quick([tower_gemini_sim::Fault::Internal]);
        let server = tower_gemini_sim::serve(sim, ([127, 0, 0, 1], 0).into()).await.unwrap();
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[log]\nobservations = '{}'\n[[upstream]]\n\
             name = \"sim\"\nkind = \"relay\"\nbase_url = \"{}\"\n",
            path.display(),
            server.url()
        );
        let config = crate::Config::parse(&config, "gateway.toml").unwrap();
        let gateway = crate::Gateway::new(&config).await.unwrap();
        let request = http::Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
            .header("x-goog-api-key", "any-key")
            .body(axum::body::Body::from(r#"{"contents":[{"parts":[{"text":"an apple"}]}]}"#))
            .unwrap();
        let response = tower::ServiceExt::oneshot(gateway.router(), request).await.unwrap();
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        let seen = Observations::parse(&written).unwrap();
        let outcomes: Vec<_> = seen.all().iter().map(|one| one.outcome.as_str()).collect();
        assert_eq!(outcomes, ["internal", "success"], "{written}");
        assert!(!written.contains("apple") && !written.contains("any-key"), "{written}");
        std::fs::remove_file(&path).unwrap();
    }
}
