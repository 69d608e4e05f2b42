//! What the checks found, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::sync::LazyLock;

use serde::Serialize;
use serde_json::json;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    Problem,
    Skipped,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upstream: Option<String>,
    pub(super) status: Status,
    pub(super) what: String,
    /// What a call failed for in a few words, as the status page says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cause: Option<&'static str>,
    /// The entry of `remedies.toml`: the outcome of a call, or what is wrong with the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problem: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) charged: Option<&'static str>,
    #[serde(rename = "do", skip_serializing_if = "Vec::is_empty")]
    pub(super) remedies: Vec<String>,
}

impl Finding {
    fn new(check: &'static str, status: Status, what: String) -> Self {
        let (upstream, cause, problem, charged) = (None, None, None, None);
        Self { check, upstream, status, what, cause, problem, charged, remedies: Vec::new() }
    }

    pub(super) fn ok(check: &'static str, what: String) -> Self {
        Self::new(check, Status::Ok, what)
    }

    pub(super) fn problem(check: &'static str, what: String) -> Self {
        Self::new(check, Status::Problem, what)
    }

    pub(super) fn skipped(check: &'static str, what: &str) -> Self {
        Self::new(check, Status::Skipped, what.to_owned())
    }

    pub(super) fn of(mut self, upstream: &str) -> Self {
        self.upstream = Some(upstream.to_owned());
        self
    }

    /// Adds what helps against that problem, after what is there.
    pub(super) fn remedied(mut self, problem: &'static str) -> Self {
        self.problem = Some(problem);
        self.remedies.extend(remedies(problem).iter().cloned());
        self
    }
}

/// What `remedies.toml` says; `other` where it says nothing of that problem.
fn remedies(problem: &str) -> &'static [String] {
    static TEXTS: LazyLock<BTreeMap<String, Vec<String>>> =
        LazyLock::new(|| toml::from_str(include_str!("remedies.toml")).unwrap_or_default());
    TEXTS.get(problem).or_else(|| TEXTS.get("other")).map_or(&[], Vec::as_slice)
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Problem => "problem",
            Status::Skipped => "skipped",
        };
        write!(f, "{status:<9}{:<9}", self.check)?;
        if let Some(upstream) = &self.upstream {
            write!(f, "{upstream}: ")?;
        }
        if let Some(cause) = self.cause {
            write!(f, "{cause}: ")?;
        }
        f.write_str(&self.what)?;
        for remedy in &self.remedies {
            write!(f, "\n{:18}do: {remedy}", "")?;
        }
        Ok(())
    }
}

/// All findings; people see each when it is there.
pub(super) struct Report<'a> {
    findings: Vec<Finding>,
    output: &'a mut (dyn Write + Send),
    as_json: bool,
}

impl<'a> Report<'a> {
    pub(super) fn new(output: &'a mut (dyn Write + Send), as_json: bool) -> Self {
        Self { findings: Vec::new(), output, as_json }
    }

    pub(super) fn add(&mut self, finding: Finding) {
        if !self.as_json {
            self.print(&format!("{finding}\n"));
        }
        self.findings.push(finding);
    }

    /// Where nobody reads the output any more there is nobody to report it to.
    fn print(&mut self, text: &str) {
        let _ = self.output.write_all(text.as_bytes()).and_then(|()| self.output.flush());
    }

    /// Whether all is well.
    pub(super) fn end(mut self) -> bool {
        let problems = self.findings.iter().filter(|one| one.status == Status::Problem).count();
        let end = match (self.as_json, problems) {
            (true, _) => format!("{:#}\n", json!({ "ok": problems == 0, "checks": self.findings })),
            (_, 0) => "All is well.\n".to_owned(),
            (_, 1) => "1 problem.\n".to_owned(),
            (_, more) => format!("{more} problems.\n"),
        };
        self.print(&end);
        problems == 0
    }
}

#[cfg(test)]
mod tests {
    use tower_gemini::verdict::Outcome;

    use super::*;

    #[test]
    fn every_entry_of_the_remedies_names_an_outcome_or_a_problem_of_the_network() {
        let texts: BTreeMap<String, Vec<String>> =
            toml::from_str(include_str!("remedies.toml")).unwrap();
        let sources = concat!(include_str!("network.rs"), include_str!("mod.rs"));
        for (name, texts) in texts {
            let is_outcome = Outcome::ALL.iter().any(|outcome| outcome.as_str() == name);
            assert!(is_outcome || sources.contains(&format!("\"{name}\"")), "{name}");
            assert!(!texts.is_empty(), "{name}");
        }
    }
}
