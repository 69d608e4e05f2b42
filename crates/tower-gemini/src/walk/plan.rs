//! Gives a call's next target, and says what it passes over. Pure: the time is handed in.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use http::{HeaderMap, Uri};
use tokio::time::Instant;
use tower_gemini_core::call::{Dialect, ImageSize, ModelId};
use tower_gemini_core::catalog::{Date, Model};
use tower_gemini_core::redact::redact;
use tower_gemini_core::target::{Rewrite, Rules, Target, Upstream, UpstreamId};
use tower_gemini_core::verdict::{Outcome, Verdict};

use super::chain::{Leg, id_of};
use super::circuit_states::Keys;
use super::circuits::{Circuits, Guard};
use super::ladder::makes;
use super::policy::Ways;
use super::{FallbackOrder, Settings};
use crate::body::RequestTemplate;
use crate::jittered_retry::{Before, ComeBack, RetryOverride};
use crate::trail::{SkipReason, Step, WaitReason};

/// One call's way along its targets.
pub(super) struct Walk<'a> {
    settings: &'a Settings,
    circuits: &'a Circuits,
    template: &'a RequestTemplate,
    payer: String,
    today: Option<Date>,
    legs: Vec<Leg>,
    /// The identity of each leg's upstream.
    upstreams: Vec<String>,
    queue: VecDeque<Candidate>,
    closed_accounts: Vec<String>,
    /// Candidates whose circuits are open, and those that failed and are due again later: for when
    /// nothing else is left.
    later: Vec<Candidate>,
    has_sent: bool,
}

/// A leg at a size.
struct Candidate {
    leg: usize,
    /// `None` is the size that the call asks for.
    size: Option<ImageSize>,
    rewrite: Option<Rewrite>,
    /// The trail has why it was passed over.
    is_reported: bool,
    /// The call was here before, and when it may come back.
    come_back: Option<Box<ComeBack>>,
}

/// The next target, and the request for it.
pub(super) struct Next {
    pub(super) rewrite: Rewrite,
    pub(super) visit: Visit,
}

/// A call's visit to a target, and its admission to it.
pub(super) struct Visit {
    /// What the target is called in the trail.
    pub(super) label: String,
    leg: usize,
    size: Option<ImageSize>,
    guard: Option<Guard>,
    /// What the retry inside remembers of earlier visits.
    before: Before,
    /// Why the call waited before it, where it did.
    pub(super) why: WaitReason,
    /// Other targets could be visited after it, now.
    more_targets: bool,
    /// So could smaller sizes of it.
    more_sizes: bool,
    /// So could targets that another account pays for.
    more_accounts: bool,
}

/// A circle of successors in a catalogue ends here.
const MAX_SUCCESSIONS: usize = 64;

impl<'a> Walk<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        circuits: &'a Circuits,
        template: &'a RequestTemplate,
        headers: &HeaderMap,
        uri: &Uri,
    ) -> Self {
        let (call, state) = (template.call(), template.state());
        let asked = call.model.as_ref().map_or("", ModelId::as_str);
        let legs = match &settings.chain {
            Some(chain) => {
                let lead = state.preferred();
                let lead = lead.as_ref().map(ModelId::as_str);
                let legs = chain.order(asked, lead, settings.catalog());
                // An interaction is continued in the project that it began in.
                if call.dialect == Dialect::Interactions { legs } else { chain.at_pool(legs) }
            }
            None => vec![Leg::named(Target::new(asked))],
        };
        let own = UpstreamId::from_request(uri, call);
        let upstream = |leg: &Leg| match leg.target.upstream().map(Upstream::id) {
            // One service has one capacity for all of its accounts.
            Some(at) if !(leg.is_pooled && at.has_address_of(&own)) => at.to_string(),
            _ => own.to_string(),
        };
        let sizes = settings.ladder.iter().filter(|_| settings.may_shrink(template));
        let sizes: Vec<_> = sizes.flat_map(|ladder| ladder.sizes_below(call.size)).collect();
        Self {
            queue: plan(legs.len(), &sizes, settings.order),
            settings,
            circuits,
            template,
            payer: payer(headers, uri),
            today: settings.chain.as_ref().and_then(|_| settings.today()),
            upstreams: legs.iter().map(upstream).collect(),
            legs,
            closed_accounts: Vec::new(),
            later: Vec::new(),
            has_sent: false,
        }
    }

    /// The next target that may be used, or none. Records what it passes over. `early`: nothing else
    /// is left, so a target whose capacity may be back is probed before its time.
    pub(super) fn next(&mut self, now: Instant, early: bool) -> Option<Next> {
        while let Some(mut candidate) = self.take() {
            let admitted = self.prepare(&mut candidate);
            match admitted.and_then(|()| self.admit(&candidate, now, early).map_err(Some)) {
                Ok(guard) => return self.visit(candidate, guard, now),
                Err(None) => {}
                Err(Some(why)) => {
                    let is_known = std::mem::replace(&mut candidate.is_reported, true);
                    if !is_known && candidate.come_back.is_none() {
                        self.skip(candidate.leg, why);
                    }
                    if matches!(why, SkipReason::CircuitOpen { .. } | SkipReason::Probed) {
                        self.later.push(candidate);
                    } else {
                        // It fits at no other size either.
                        self.queue.retain(|other| other.leg != candidate.leg);
                    }
                }
            }
        }
        None
    }

    /// When to look again where nothing can be tried now: when the first target is due, at the
    /// latest. `None` where none can be tried before the deadline.
    pub(super) fn wake_at(&self, now: Instant, deadline: Instant) -> Option<Instant> {
        if !self.settings.policy.waits || deadline <= now {
            return None;
        }
        let due = self.later.iter().filter_map(|candidate| {
            let latest = candidate.come_back.as_ref().map(|at| at.latest.min(deadline));
            let latest = latest.unwrap_or(deadline);
            let due = self.due(candidate);
            match self.time_left(candidate, now, true) {
                Some(left) => due.max(now.checked_add(left)).filter(|at| *at < latest),
                // Another call is probing it: it closes when that succeeds.
                None => (latest > now && due < Some(latest)).then_some(latest),
            }
        });
        due.min()
    }

    /// Considers again what was left for later: the targets with open circuits, and what is due.
    pub(super) fn look_again(&mut self, now: Instant) {
        let later = std::mem::take(&mut self.later);
        let (due, later) = later.into_iter().partition(|one| self.due(one) <= Some(now));
        (self.later, self.queue) = (later, VecDeque::from_iter(due));
        self.queue.make_contiguous().sort_by_key(|candidate: &Candidate| candidate.leg);
    }

    /// Whether a target that was left for later can be tried now without a probe.
    pub(super) fn has_recovered(&self, now: Instant) -> bool {
        self.later.iter().any(|candidate| {
            !self.circuits.is_open(&self.keys(candidate)) && self.due(candidate) <= Some(now)
        })
    }

    /// When a call may come back to a target; `None` where it has not been there.
    fn due(&self, candidate: &Candidate) -> Option<Instant> {
        let at = candidate.come_back.as_ref()?;
        Some(if self.circuits.is_open(&self.keys(candidate)) { at.probes_from } else { at.due })
    }

    /// How long until the first target may be tried again, for whoever is refused.
    pub(super) fn shortest_wait(&self, now: Instant) -> Option<Duration> {
        let left = |candidate| {
            let due = self.due(candidate).map(|due| due.saturating_duration_since(now));
            Some(self.time_left(candidate, now, false)?.max(due.unwrap_or_default()))
        };
        self.later.iter().filter_map(left).min()
    }

    pub(super) fn most_waiting(&self) -> usize {
        self.settings.policy.most_waiting
    }

    /// Whether anything was left for later.
    pub(super) fn has_more(&self) -> bool {
        !self.later.is_empty()
    }

    /// How long until a circuit may be probed; `None` while another call is probing it.
    fn time_left(&self, candidate: &Candidate, now: Instant, early: bool) -> Option<Duration> {
        match self.circuits.check(&self.keys(candidate), now, early) {
            Ok(()) => Some(Duration::ZERO),
            Err(SkipReason::CircuitOpen { left }) => Some(left),
            Err(_) => None,
        }
    }

    /// How a visit is retried: as its link or its size says, and by the retry's own policy otherwise.
    /// For that, the call comes back where it may wait, and where not, the target is tried once while
    /// something else can be tried at once.
    pub(super) fn retries(&self, visit: &mut Visit, own: RetryOverride) -> RetryOverride {
        let leg = &self.legs[visit.leg];
        let by_size =
            self.settings.ladder.as_ref().filter(|_| self.settings.may_shrink(self.template));
        let is_set = leg.retry.is_some()
            || leg.target.max_attempts().is_some()
            || by_size.is_some_and(|ladder| visit.more_sizes || ladder.sets_retries());
        let elsewhere = visit.more_targets || visit.more_sizes;
        let own = own.other_account(visit.more_accounts);
        if self.settings.waits_after(&own) && !is_set {
            return own.elsewhere(elsewhere).comes_back(std::mem::take(&mut visit.before));
        }
        let by_link = |mut retries: RetryOverride| {
            if let Some(policy) = &leg.retry {
                retries = retries.policy(policy.clone());
            }
            match leg.target.max_attempts() {
                Some(attempts) => retries.attempts(attempts),
                None if visit.more_targets && leg.retry.is_none() => retries.attempts(1),
                None => retries,
            }
        };
        let by_size = |retries| match by_size {
            Some(ladder) => ladder.retries(retries, !visit.more_sizes),
            None => retries,
        };
        let retries = match self.settings.order {
            FallbackOrder::SizeFirst => by_size(by_link(own)),
            FallbackOrder::ModelFirst => by_link(by_size(own)),
        };
        retries.elsewhere(elsewhere)
    }

    /// Records in the circuits what came of a visit.
    pub(super) fn settle(&self, visit: &mut Visit, now: Instant, verdict: &Verdict) {
        let Some(guard) = visit.guard.take() else { return };
        let midnight = match verdict.outcome() {
            Outcome::RateLimitedDay => self.settings.until_midnight(),
            _ => Duration::ZERO,
        };
        guard.settle(now, verdict, midnight, &self.settings.cooldowns);
    }

    /// Goes on after a visit, only where the policy allows.
    pub(super) fn go_on(&mut self, from: &Visit, verdict: &Verdict, ways: Ways) {
        let named = || verdict.detail()?.successor.clone();
        let known = || self.model(from.leg)?.successor.clone();
        let is_gone = verdict.outcome() == Outcome::NotFound;
        let successor = if is_gone { named().or_else(known) } else { None };
        let sizes = ways.sizes || successor.is_some();
        let (legs, upstreams) = (&self.legs, &self.upstreams);
        let at = |leg: usize| (legs[leg].target.model(), &upstreams[leg]);
        let goes_on = |next: &Candidate| match next.leg == from.leg {
            true => sizes,
            false => ways.targets && (ways.other_accounts || at(next.leg) != at(from.leg)),
        };
        self.queue.retain(goes_on);
        self.later.retain(goes_on);
        let target = &self.legs[from.leg].target;
        if ways.account_closed {
            self.closed_accounts.push(target.account().to_owned());
        }
        // A target that is gone is followed by its successor at once.
        if let Some(successor) = successor {
            let model = target.model().as_str();
            self.circuits.learn_successor(model, &self.upstreams[from.leg], &successor);
            self.succeed(from.leg, &successor);
            self.queue.push_front(Candidate::new(from.leg, from.size));
        }
    }

    /// Leaves a visit for later, when the retry inside has a further attempt for it.
    pub(super) fn come_back(&mut self, from: &Visit, at: Box<ComeBack>) {
        let candidate = Candidate::new(from.leg, from.size);
        self.later.push(Candidate { come_back: Some(at), ..candidate });
    }

    /// The next candidate that is neither retired nor of a closed account. A retired model gives
    /// way to its successor.
    fn take(&mut self) -> Option<Candidate> {
        let mut successions = 0;
        loop {
            let mut candidate = self.queue.pop_front()?;
            let why = match self.successor(candidate.leg) {
                Some(Some(successor)) if successions < MAX_SUCCESSIONS => {
                    successions += 1;
                    self.succeed(candidate.leg, &successor);
                    (candidate.rewrite, candidate.come_back) = (None, None);
                    self.queue.push_front(candidate);
                    continue;
                }
                Some(_) => SkipReason::Gone,
                None if self.is_closed(candidate.leg) => SkipReason::Account,
                None => return Some(candidate),
            };
            self.skip(candidate.leg, why);
            self.queue.retain(|other| other.leg != candidate.leg);
        }
    }

    /// Makes the request that a candidate sends, once. `Err(None)` where it asks for nothing that
    /// was not asked for before.
    fn prepare(&self, candidate: &mut Candidate) -> Result<(), Option<SkipReason>> {
        if candidate.size.is_some_and(|size| !makes(self.model(candidate.leg), size)) {
            return Err(None);
        }
        if candidate.rewrite.is_none() {
            let mut target = self.legs[candidate.leg].target.clone();
            if let Some(cap) = target.max_size().into_iter().chain(candidate.size).min() {
                target = target.size_cap(cap);
            }
            let rules = Rules::new(self.settings.catalog())
                .must_keep(self.template.state().must_keep().and(target.keeps()))
                .signatures(self.settings.policy.signatures);
            let rewrite = self.template.rewritten(&target, &rules);
            candidate.rewrite = Some(rewrite.map_err(|unfit| Some(SkipReason::Unfit(unfit)))?);
        }
        let is_unchanged = candidate.rewrite.as_ref().is_some_and(Rewrite::is_unchanged);
        let is_old = match self.settings.chain {
            // The request as it came: another fallback above has visited it for this one.
            Some(_) if is_unchanged && !self.has_sent => false,
            _ if candidate.come_back.is_some() => false,
            Some(_) => self.template.state().has_visited(&self.identity(candidate)),
            // A size that stands where it cannot be changed would be asked for again.
            None => candidate.size.is_some() && is_unchanged,
        };
        if is_old { Err(None) } else { Ok(()) }
    }

    /// Admits the call to a candidate that is prepared. Without a chain there is no other target,
    /// and nothing is left alone.
    fn admit(
        &self,
        at: &Candidate,
        now: Instant,
        early: bool,
    ) -> Result<Option<Guard>, SkipReason> {
        match self.settings.chain {
            Some(_) if !self.settings.successors_only => {
                self.circuits.admit(self.keys(at), now, early).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn visit(&mut self, at: Candidate, guard: Option<Guard>, now: Instant) -> Option<Next> {
        self.has_sent = true;
        if self.settings.chain.is_some() {
            // In the call's state: a ladder outside makes several walks of one call.
            self.template.state().visit(&self.identity(&at));
        }
        let (mut more_targets, mut more_sizes, mut more_accounts) = (false, false, false);
        let account = |leg: usize| self.legs[leg].target.account();
        let mut queue = std::mem::take(&mut self.queue);
        for next in &mut queue {
            let is_other = account(next.leg) != account(at.leg);
            let found = if next.leg == at.leg { &mut more_sizes } else { &mut more_targets };
            if (!*found || (is_other && !more_accounts)) && self.could_visit(next, now) {
                (*found, more_accounts) = (true, more_accounts || is_other);
            }
        }
        self.queue = queue;
        let (size, target) = (at.size, &self.legs[at.leg].target);
        let rewrite = at.rewrite?;
        let label = if self.settings.may_shrink(self.template) {
            format!("{target} {}", rewrite.call().size.unwrap_or(ImageSize::K1))
        } else {
            target.to_string()
        };
        let is_probe = guard.as_ref().is_some_and(Guard::is_probe);
        let back = at.come_back.as_ref().filter(|_| !is_probe);
        let why = back.map_or(WaitReason::Cooldown, |back| back.why);
        let before = at.come_back.map(|at| at.go()).unwrap_or_default();
        let leg = at.leg;
        let visit =
            Visit { label, leg, size, guard, before, why, more_targets, more_sizes, more_accounts };
        Some(Next { rewrite, visit })
    }

    /// Whether a candidate could be visited now: until then the retries inside have no reason to
    /// wait long.
    fn could_visit(&self, candidate: &mut Candidate, now: Instant) -> bool {
        match self.successor(candidate.leg) {
            Some(successor) => successor.is_some(),
            None => {
                !self.is_closed(candidate.leg)
                    && self.prepare(candidate).is_ok()
                    && (self.settings.chain.is_none()
                        || self.circuits.check(&self.keys(candidate), now, false).is_ok())
            }
        }
    }

    fn model(&self, leg: usize) -> Option<&'a Model> {
        self.settings.catalog().lookup(self.legs[leg].target.model().as_str())
    }

    fn is_closed(&self, leg: usize) -> bool {
        self.closed_accounts.iter().any(|closed| closed == self.legs[leg].target.account())
    }

    /// `None` where the model is served as far as is known; otherwise what takes its place, if
    /// anything does. Announced dates are the earliest possible ones: the model that the call names
    /// is given up only by the API's own response.
    fn successor(&self, at: usize) -> Option<Option<String>> {
        let leg = &self.legs[at];
        let (model, catalog) = (leg.target.model().as_str(), self.settings.catalog());
        let retired = self.today.filter(|_| !leg.is_named).and_then(|today| {
            let entry = catalog.lookup(model).filter(|entry| entry.is_retired_on(today))?;
            Some(catalog.successor_on(entry, today).map(|successor| successor.id.clone()))
        });
        let learned = || self.circuits.successor(model, &self.upstreams[at]).map(Some);
        retired.or_else(learned)
    }

    /// Puts a successor in the place of a leg's model: says so in this call's trail, and once in the
    /// log.
    fn succeed(&mut self, at: usize, successor: &str) {
        let leg = &mut self.legs[at];
        let model = leg.target.model().as_str().to_owned();
        leg.target = leg.target.with_model(successor);
        leg.is_named = false;
        let others = self.queue.iter_mut().chain(&mut self.later);
        for other in others.filter(|other| other.leg == at) {
            (other.rewrite, other.come_back) = (None, None);
        }
        if self.circuits.announce(&model) {
            tracing::warn!(
                model = %redact(&model),
                successor = %redact(successor),
                "the model is retired, and its successor takes its place"
            );
        }
        let successor = successor.to_owned();
        self.template.state().record(Step::Replaced { model, successor });
    }

    /// What a candidate asks for: a call asks for nothing twice.
    fn identity(&self, candidate: &Candidate) -> String {
        let target = &self.legs[candidate.leg].target;
        let size = candidate.rewrite.as_ref().and_then(|rewrite| rewrite.call().size);
        format!(
            "{} on {} of {} {}",
            id_of(target.model().as_str(), self.settings.catalog()),
            self.upstreams[candidate.leg],
            target.account(),
            size.map_or("", |size| size.as_str()),
        )
    }

    /// By the size that is asked for in the end: that is what needs the capacity.
    fn keys(&self, candidate: &Candidate) -> Keys {
        let size = candidate.rewrite.as_ref().and_then(|rewrite| rewrite.call().size);
        let target = &self.legs[candidate.leg].target;
        let model = id_of(target.model().as_str(), self.settings.catalog());
        let payer = if target.account().is_empty() { &self.payer } else { target.account() };
        Keys::new(model, size, &self.upstreams[candidate.leg], payer)
    }

    fn skip(&self, leg: usize, why: SkipReason) {
        let target = self.legs[leg].target.to_string();
        self.template.state().record(Step::Skipped { target, why });
    }
}

/// Every leg at every size, in the order in which they are tried.
fn plan(legs: usize, smaller: &[ImageSize], order: FallbackOrder) -> VecDeque<Candidate> {
    let sizes = || std::iter::once(None).chain(smaller.iter().copied().map(Some));
    match order {
        FallbackOrder::SizeFirst => {
            (0..legs).flat_map(|leg| sizes().map(move |size| Candidate::new(leg, size))).collect()
        }
        FallbackOrder::ModelFirst => {
            sizes().flat_map(|size| (0..legs).map(move |leg| Candidate::new(leg, size))).collect()
        }
    }
}

impl Candidate {
    fn new(leg: usize, size: Option<ImageSize>) -> Self {
        Self { leg, size, rewrite: None, is_reported: false, come_back: None }
    }
}

/// Who pays for a call that is sent where the caller sends it: a fingerprint of its credentials,
/// not the credentials. Stable within a process, which is as long as it is needed.
fn payer(headers: &HeaderMap, uri: &Uri) -> String {
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
    if any { format!("caller {:08x}", hasher.finish() >> 32) } else { "the caller".to_owned() }
}
