//! One call's way along its targets: what is passed over, and what comes next.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use crate::body::RequestTemplate;
use crate::call_state::CallState;
use crate::trail::{SkipReason, Step};
use http::{HeaderMap, Uri};
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::redact::redact;
use tower_gemini_core::target::{Rewrite, Rules, Target, Unfit};

use super::chain::{Link, identity};
use super::health::{Health, Keys, Ticket};
use super::layer::Settings;

/// What is still to be tried, and what not any more.
pub(super) struct Walk<'a> {
    settings: &'a Settings,
    health: &'a Health,
    template: &'a RequestTemplate,
    state: CallState,
    payer: String,
    queue: VecDeque<Candidate>,
    visited: Vec<String>,
    closed: Vec<String>,
    /// Targets that rest, for when nothing else is left.
    resting: Vec<Candidate>,
    /// The shortest rest seen: what a refusal of ours asks to wait.
    pub(super) shortest_rest: Option<Duration>,
}

struct Candidate {
    link: Link,
    rewrite: Option<Result<Rewrite, Unfit>>,
}

/// The next target, with leave to use it.
pub(super) struct Next {
    pub(super) link: Link,
    pub(super) rewrite: Rewrite,
    pub(super) ticket: Ticket,
    /// Whether another one could follow.
    pub(super) is_last: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        health: &'a Health,
        template: &'a RequestTemplate,
        payer: String,
    ) -> Self {
        let state = template.state().clone();
        let asked = template.call().model.as_ref().map_or("", |model| model.as_str());
        let preferred = state.preferred();
        let preferred = preferred.as_ref().map(|model| model.as_str());
        let queue = settings.chain.from(asked, preferred, settings.catalog());
        Self {
            settings,
            health,
            template,
            state,
            payer,
            queue: queue.into_iter().map(Candidate::new).collect(),
            visited: Vec::new(),
            closed: Vec::new(),
            resting: Vec::new(),
            shortest_rest: None,
        }
    }

    /// The next target that may be used, or none. Says in the trail what it passes over.
    pub(super) fn next(&mut self, now: Instant) -> Option<Next> {
        while let Some(mut candidate) = self.take() {
            let rewrite = match self.rewrite_of(&mut candidate) {
                Ok(rewrite) => rewrite,
                Err(unfit) => {
                    self.skip(&candidate.link.target, SkipReason::Unfit(unfit));
                    continue;
                }
            };
            if self.state.has_visited(&self.sent(&candidate.link.target, &rewrite)) {
                self.skip(&candidate.link.target, SkipReason::AlreadyTried);
                continue;
            }
            match self.health.admit(&self.keys(&candidate.link.target, &rewrite), now, false) {
                Ok(ticket) => return Some(self.leave(candidate.link, rewrite, ticket, now)),
                Err(why) => {
                    if let SkipReason::Resting { left } = why {
                        self.shortest_rest =
                            Some(self.shortest_rest.map_or(left, |rest| rest.min(left)));
                    }
                    self.skip(&candidate.link.target, why);
                    self.resting
                        .push(Candidate { link: candidate.link, rewrite: Some(Ok(rewrite)) });
                }
            }
        }
        None
    }

    /// When every target rests: the one whose rest ends first is tried before its time, by one call
    /// at a time.
    pub(super) fn early(&mut self, now: Instant) -> Option<Next> {
        if !self.settings.policy.probes_when_all_rest {
            return None;
        }
        let mut resting = std::mem::take(&mut self.resting);
        resting.sort_by_key(|candidate| {
            let Some(Ok(rewrite)) = &candidate.rewrite else { return Duration::MAX };
            match self.health.left(&self.keys(&candidate.link.target, rewrite), now, false) {
                Err(SkipReason::Resting { left }) => left,
                _ => Duration::MAX,
            }
        });
        for candidate in resting {
            let Candidate { link, rewrite: Some(Ok(rewrite)) } = candidate else { continue };
            if let Ok(ticket) = self.health.admit(&self.keys(&link.target, &rewrite), now, true) {
                return Some(self.leave(link, rewrite, ticket, now));
            }
        }
        None
    }

    /// Every target of this account is closed for this call.
    pub(super) fn close_account(&mut self, account: &str) {
        self.closed.push(account.to_owned());
    }

    /// A target that was found to be gone is followed by its successor.
    pub(super) fn follow(&mut self, link: &Link, successor: &str) {
        let model = link.target.model().as_str();
        self.health.learn(
            model,
            link.target.upstream().map_or("", |upstream| upstream.host()),
            successor,
        );
        self.announce(model, successor);
        let link = Link { target: link.target.with_model(successor), retry: link.retry.clone() };
        self.queue.push_front(Candidate::new(link));
    }

    /// Says that a model is retired: in this call's trail, and once in the log.
    fn announce(&self, model: &str, successor: &str) {
        if self.health.announce(model) {
            tracing::warn!(model = %redact(model), successor = %redact(successor), "the model is retired, and its successor takes its place");
        }
        self.state
            .record(Step::Succeeded { model: model.to_owned(), successor: successor.to_owned() });
    }

    fn leave(&mut self, link: Link, rewrite: Rewrite, ticket: Ticket, now: Instant) -> Next {
        self.state.visit(&self.sent(&link.target, &rewrite));
        self.visited.push(identity(&link.target, self.settings.catalog()));
        let is_last = !self.has_more(now);
        Next { link, rewrite, ticket, is_last }
    }

    /// The next candidate that is not retired, visited or of a closed account. A retired one gives
    /// its successor.
    fn take(&mut self) -> Option<Candidate> {
        // Successors are put in one at a time and visited once: a circle in a catalogue ends here.
        for _ in 0..64 {
            let mut candidate = self.queue.pop_front()?;
            let model = candidate.link.target.model().as_str().to_owned();
            if let Some(successor) = self.known_successor(&candidate.link.target) {
                let Some(successor) = successor else {
                    self.skip(&candidate.link.target, SkipReason::Gone);
                    continue;
                };
                self.announce(&model, &successor);
                candidate = Candidate::new(Link {
                    target: candidate.link.target.with_model(&successor),
                    retry: candidate.link.retry.clone(),
                });
            }
            if self.visited.contains(&identity(&candidate.link.target, self.settings.catalog())) {
                continue;
            }
            if self.closed.iter().any(|closed| closed == candidate.link.target.account()) {
                self.skip(&candidate.link.target, SkipReason::Account);
                continue;
            }
            return Some(candidate);
        }
        None
    }

    /// `None` where the model answers as far as is known; otherwise what takes its place, if
    /// anything does.
    fn known_successor(&self, target: &Target) -> Option<Option<String>> {
        let model = target.model().as_str();
        let catalog = self.settings.catalog();
        if let Some(today) = self.settings.today() {
            if let Some(entry) = catalog.lookup(model).filter(|entry| entry.is_retired_on(today)) {
                return Some(
                    catalog.successor_on(entry, today).map(|successor| successor.id.clone()),
                );
            }
        }
        self.health
            .successor(model, target.upstream().map_or("", |upstream| upstream.host()))
            .map(Some)
    }

    fn rewrite_of(&self, candidate: &mut Candidate) -> Result<Rewrite, Unfit> {
        let catalog: &Catalog = self.settings.catalog();
        let rules = Rules::new(catalog)
            .must_keep(self.template.state().must_keep())
            .signatures(self.settings.policy.signatures);
        candidate
            .rewrite
            .take()
            .unwrap_or_else(|| self.template.rewritten(&candidate.link.target, &rules))
    }

    /// Whether a target after this one could be used now: until then the retries inside have no
    /// reason to wait long.
    fn has_more(&mut self, now: Instant) -> bool {
        for index in 0..self.queue.len() {
            let Some(mut candidate) = self.queue.get_mut(index).map(std::mem::take) else { break };
            let rewrite = self.rewrite_of(&mut candidate);
            let target = &candidate.link.target;
            let usable = !self.visited.contains(&identity(target, self.settings.catalog()))
                && !self.closed.iter().any(|closed| closed == target.account())
                && !matches!(self.known_successor(target), Some(None))
                && rewrite.as_ref().is_ok_and(|rewrite| {
                    !self.state.has_visited(&self.sent(target, rewrite))
                        && self.health.left(&self.keys(target, rewrite), now, false).is_ok()
                });
            candidate.rewrite = Some(rewrite);
            if let Some(slot) = self.queue.get_mut(index) {
                *slot = candidate;
            }
            if usable {
                return true;
            }
        }
        false
    }

    /// What would go out: the same target asked for the same size is asked for the same image.
    fn sent(&self, target: &Target, rewrite: &Rewrite) -> String {
        let size = rewrite.call().size.map_or("", |size| size.as_str());
        format!("{} {size}", identity(target, self.settings.catalog()))
    }

    /// By the size that is asked for in the end: that is what the capacity is needed for.
    fn keys(&self, target: &Target, rewrite: &Rewrite) -> Keys {
        let catalog = self.settings.catalog();
        let model = catalog
            .lookup(target.model().as_str())
            .map_or(target.model().as_str(), |model| &model.id);
        let size = rewrite.call().size;
        let place = target.upstream().map_or("", |upstream| upstream.host());
        let payer = if target.account().is_empty() { &self.payer } else { target.account() };
        Keys::new(model, size, place, payer)
    }

    fn skip(&self, target: &Target, why: SkipReason) {
        self.state.record(Step::Skipped { target: target.to_string(), why });
    }
}

impl Candidate {
    fn new(link: Link) -> Self {
        Self { link, rewrite: None }
    }
}

impl Default for Candidate {
    fn default() -> Self {
        Self::new(Link { target: Target::new(""), retry: None })
    }
}

/// Who pays for a call that is sent where the caller sends it: a fingerprint of its credentials,
/// not the credentials. Stable within a process, which is as long as it is needed.
pub(super) fn payer(headers: &HeaderMap, uri: &Uri) -> String {
    let mut hasher = DefaultHasher::new();
    let mut any = false;
    for name in ["x-goog-api-key", "authorization", "x-goog-user-project"] {
        if let Some(value) = headers.get(name) {
            any = true;
            value.as_bytes().hash(&mut hasher);
        }
    }
    for pair in uri.query().unwrap_or("").split('&').filter(|pair| pair.starts_with("key=")) {
        any = true;
        pair.hash(&mut hasher);
    }
    if any {
        format!("of caller {:08x}", hasher.finish() >> 32)
    } else {
        "of the caller".to_owned()
    }
}
