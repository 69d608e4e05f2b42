//! `[alerts]`: who is told what needs a person, and how often.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::{BaseUrl, Check, ConfigError, Span, ensure, read_secret, via_http};

section! { pub(crate) Alerts {
    webhook: Option<WebhookUrl> = None,
    webhook_env: Option<String> = None,
    webhook_file: Option<PathBuf> = None,
    proxy: Option<BaseUrl> = None,
    repeat_every: Span = Span::secs(3600),
    kinds: Vec<AlertKind> = Vec::new(),
    status_feed: Option<BaseUrl> = None,
}}

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AlertKind {
    /// `quota.warn_at_percent` of a limit is used.
    Quota,
    /// Nothing of the day's requests is left, by our count or the service's.
    DaySpent,
    /// A model fails again and again.
    Outage,
    /// Most or all of a cap of `[spending]` is used.
    Cap,
    /// State cannot be written.
    Store,
    /// A model in use is about to retire.
    Retirement,
    /// The list of tokens admits nobody.
    NobodyAdmitted,
    /// `alerts.status_feed` reports an incident.
    Incident,
}

impl AlertKind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Quota,
        Self::DaySpent,
        Self::Outage,
        Self::Cap,
        Self::Store,
        Self::Retirement,
        Self::NobodyAdmitted,
        Self::Incident,
    ];

    /// As the file and the messages spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::DaySpent => "day_spent",
            Self::Outage => "outage",
            Self::Cap => "cap",
            Self::Store => "store",
            Self::Retirement => "retirement",
            Self::NobodyAdmitted => "nobody_admitted",
            Self::Incident => "incident",
        }
    }

    /// Whether people wait for its end: it is repeated while it lasts, and its end is reported.
    pub(crate) fn has_end(self) -> bool {
        matches!(self, Self::Outage | Self::Store | Self::NobodyAdmitted | Self::Incident)
    }
}

/// Where alerts are sent. Its path is a secret with most receivers: it is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WebhookUrl(Uri);

impl WebhookUrl {
    fn parse(text: &str) -> Option<Self> {
        let BaseUrl(uri) = BaseUrl::parse(text.split('?').next().unwrap_or_default())?;
        // A user name would not be sent.
        let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        is_plain.then(|| text.parse().ok().map(Self)).flatten()
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.0
    }
}

const NO_URL: &str = "is no URL; write https://host/path, without a user name";

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for WebhookUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("alerts.webhook {NO_URL}")))
    }
}

impl Alerts {
    /// Where alerts are sent, read from where the file says that it is. `env` looks a variable up.
    pub(crate) fn webhook(
        &self,
        env: impl Fn(&str) -> Option<String>,
    ) -> Check<Option<WebhookUrl>> {
        let (variable, file) = (self.webhook_env.as_deref(), self.webhook_file.as_deref());
        if variable.is_none() && file.is_none() {
            return Ok(self.webhook.clone());
        }
        let what = "the URL of the webhook";
        let (env_key, file_key) = ("alerts.webhook_env", "alerts.webhook_file");
        let (key, text) = read_secret(what, (env_key, variable), (file_key, file), env)?;
        let url = WebhookUrl::parse(text.trim());
        let no_url = || ConfigError::at(key, format!("{what} {NO_URL}"), "");
        url.ok_or_else(no_url).map(Some)
    }

    /// Every setting that cannot work.
    pub(super) fn check(&self, check: &mut impl FnMut(Check<()>)) {
        let sources =
            [self.webhook.is_some(), self.webhook_env.is_some(), self.webhook_file.is_some()];
        let sources = sources.into_iter().filter(|is_set| *is_set).count();
        let (what, remedy) = (
            "[alerts] has its webhook in several places",
            "write one of webhook, webhook_env and webhook_file",
        );
        check(ensure(sources < 2, "alerts.webhook", what, remedy));
        let what = "alerts.status_feed has nobody to tell";
        let has_receiver = sources > 0 || self.status_feed.is_none();
        check(ensure(has_receiver, "alerts.status_feed", what, "write alerts.webhook"));
        check(via_http("alerts.proxy", self.proxy.as_ref()));
        // What lasts would be repeated at every look.
        let is_long = self.repeat_every.0 >= Duration::from_secs(60);
        let what = "alerts.repeat_every is too short";
        check(ensure(is_long, "alerts.repeat_every", what, "write \"1m\" or more"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, EXAMPLE};
    use super::*;

    #[test]
    fn the_url_of_the_webhook_is_read_from_one_place_and_shown_in_none() {
        let url = "https://hooks.example/services/T0/SENTINEL?a=b";
        let config = Config::parse(&format!("[alerts]\nwebhook = \"{url}\"\n"), "f").unwrap();
        let webhook = config.alerts.webhook(|_| None).unwrap().unwrap();
        assert_eq!(webhook.uri(), url);
        assert!(!format!("{config:?} {webhook:?}").contains("SENTINEL"));
        let config = Config::parse("[alerts]\nwebhook_env = \"W\"\n", "f").unwrap();
        let read = |text: &str| {
            let text = text.to_owned();
            config.alerts.webhook(move |name| (name == "W").then(|| text.clone()))
        };
        assert_eq!(read(&format!("{url}\n")).unwrap(), Some(webhook));
        for wrong in ["SENTINEL", "ftp://SENTINEL", "https://u:SENTINEL@h/", "https://h/SENT INEL"]
        {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("the URL of the webhook is no URL"), "{error}");
            let file = format!("[alerts]\nwebhook = \"{wrong}\"\n");
            let refusal = Config::parse(&file, "f").unwrap_err().to_string();
            assert!(refusal.contains("line 2: alerts.webhook is no URL"), "{refusal}");
            assert!(!error.contains("SENT") && !refusal.contains("SENT"), "{error} {refusal}");
        }
        assert!(config.alerts.webhook(|_| None).unwrap_err().to_string().contains("not set"));
    }

    #[test]
    fn every_kind_is_spelled_and_documented_as_it_is_read() {
        let section = EXAMPLE.split("\n[alerts]").nth(1).unwrap();
        let section = section.split("\n[").next().unwrap();
        for kind in AlertKind::ALL {
            let name = kind.as_str();
            let read = Config::parse(&format!("[alerts]\nkinds = [\"{name}\"]\n"), "f").unwrap();
            assert_eq!(read.alerts.kinds, [kind]);
            assert!(section.contains(&format!("\"{name}\"")), "{name}");
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
    }
}
