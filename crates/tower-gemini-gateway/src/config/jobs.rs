//! `[jobs]`: where jobs are kept, and whether this process works on them.

use std::path::PathBuf;

use http::HeaderValue;
use serde::Deserialize;
use tower_gemini::quota_guard::QuotaDimension;

use super::{Check, Config, ConfigError, Span, ensure, read_secret};

section! { pub(crate) Jobs {
    run: bool = true,
    store: Option<String> = None,
    store_env: Option<String> = None,
    dir: Option<PathBuf> = None,
    max_running: usize = 8,
    lease: Span = Span::secs(30),
    keep: Option<Span> = None,
    api_key_env: Option<String> = None,
    input_urls: bool = false,
    private_urls: bool = false,
    webhook_secret_env: Option<String> = None,
    batch_webhook_secret_env: Option<String> = None,
}}

/// Where jobs and their images are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobPlaces {
    /// A path, or the URL of a Postgres.
    pub(crate) store: String,
    pub(crate) dir: PathBuf,
}

impl Jobs {
    pub(super) fn check(&self, check: &mut impl FnMut(Check<()>)) {
        let what = "jobs.max_running = 0 runs nothing";
        check(ensure(self.max_running > 0, "jobs.max_running", what, "write 1 or more"));
        let what = "jobs.lease is too short for a worker to be heard of";
        let is_long = self.lease.0 >= Span::secs(1).0;
        check(ensure(is_long, "jobs.lease", what, "write \"1s\" or more"));
        let what = "jobs.store and jobs.store_env are two places";
        let both = self.store.is_some() && self.store_env.is_some();
        check(ensure(!both, "jobs.store_env", what, "write one of them"));
        let has_password = self.store.as_deref().is_some_and(|store| {
            store.contains("://")
                && store.split('@').next().is_some_and(|user| user.matches(':').count() > 1)
        });
        let what = "jobs.store has a password in it";
        let remedy = "put the URL into an environment variable and name it in jobs.store_env";
        check(ensure(!has_password, "jobs.store", what, remedy));
    }
}

impl Config {
    /// The key that jobs are drawn with where upstreams have none of their own.
    pub(crate) fn jobs_key(
        &self,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<HeaderValue>, ConfigError> {
        let Some(name) = &self.jobs.api_key_env else { return Ok(None) };
        let variable = ("jobs.api_key_env", Some(name.as_str()));
        let (_, key) = read_secret("the key of jobs", variable, ("", None), env)?;
        let mut key = HeaderValue::from_str(key.trim()).map_err(|_| {
            let what = format!("the environment variable {name} is no API key");
            ConfigError::at("jobs.api_key_env", what, "")
        })?;
        key.set_sensitive(true);
        Ok(Some(key))
    }

    /// A secret of webhooks, as the environment variable that a key names has it.
    pub(crate) fn jobs_secret(
        &self,
        key: &str,
        variable: Option<&str>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<String>, ConfigError> {
        let Some(name) = variable else { return Ok(None) };
        let read = read_secret("a secret of webhooks", (key, Some(name)), ("", None), env);
        read.map(|(_, secret)| Some(secret))
    }

    /// Requests a minute and a day that the file or its tier allows a model; 0 where it says
    /// nothing.
    pub(crate) fn limits_of(&self, model: &str) -> (u64, u64) {
        let of_model = self.quota.by_model();
        let limits = of_model.get(model).copied().unwrap_or_else(|| self.quota.limits());
        let of = |dimension| limits.get(dimension).unwrap_or(0);
        (of(QuotaDimension::RequestsPerMinute), of(QuotaDimension::RequestsPerDay))
    }

    /// Where jobs are; `None` where the file names no place for them. `env` looks a variable up.
    pub(crate) fn job_places(
        &self,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<JobPlaces>, ConfigError> {
        let state = self.server.state_dir.as_ref();
        let named = match &self.jobs.store_env {
            Some(name) => Some(env(name).ok_or_else(|| {
                let what = format!("jobs.store_env names {name}, which is not set");
                ConfigError::at("jobs.store_env", what, "set it to postgres://…")
            })?),
            None => self.jobs.store.clone(),
        };
        let in_state = || state.map(|dir| dir.join("jobs.db").to_string_lossy().into_owned());
        let Some(store) = named.or_else(in_state) else { return Ok(None) };
        let dir = self.jobs.dir.clone().or_else(|| state.map(|dir| dir.join("jobs")));
        let dir = dir.ok_or_else(|| {
            let what = "jobs.store is set, and nothing says where images go";
            ConfigError::at("jobs.dir", what, "set jobs.dir or server.state_dir")
        })?;
        Ok(Some(JobPlaces { store, dir }))
    }
}
