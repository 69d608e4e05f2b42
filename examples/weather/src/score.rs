//! What became of the calls, by the simulator's ledger: the truth, whatever a client believes.

use std::collections::HashMap;
use std::time::Duration;

use tower_gemini::cost::Cost;
use tower_gemini_sim::{Delivered, Record, Sim};

use crate::scenario::{Scenario, Wanted};
use crate::zoo::Policy;

/// One call, as its caller saw it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its number, which the ledger knows too.
    pub number: usize,
    /// What it asks for.
    pub asks: Wanted,
    /// Since the first call could come.
    pub asked_at: Duration,
    /// Until the caller had an image or an error.
    pub took: Duration,
    /// Its time was up.
    pub out_of_time: bool,
    /// The caller has an image.
    pub got_image: bool,
    /// What our layers say it cost.
    pub cost: Cost,
}

/// Compares the calls of a run to the simulator's ledger while it goes on, and keeps the sums only.
#[derive(Debug)]
pub struct Scorer<'a> {
    scenario: &'a Scenario,
    policy: &'a Policy,
    sim: &'a Sim,
    /// Calls that have ended since the ledger was last read.
    ended: Vec<Call>,
    /// Requests of calls that have not.
    requests: HashMap<usize, Vec<Record>>,
    score: Score,
}

/// Calls between two looks into the ledger.
const BATCH: usize = 1024;

impl<'a> Scorer<'a> {
    /// No call has ended.
    pub fn new(scenario: &'a Scenario, policy: &'a Policy, sim: &'a Sim) -> Self {
        let (ended, requests, score) = (Vec::new(), HashMap::new(), Score::default());
        Self { scenario, policy, sim, ended, requests, score }
    }

    /// A call has ended.
    pub fn add(&mut self, call: Call) {
        self.ended.push(call);
        if self.ended.len() == BATCH {
            self.settle();
        }
    }

    fn settle(&mut self) {
        for record in self.sim.take_ended() {
            if let Some(number) = record.call.as_deref().and_then(|tag| tag.parse().ok()) {
                self.requests.entry(number).or_default().push(record);
            }
        }
        for call in self.ended.drain(..) {
            let mut own = self.requests.remove(&call.number).unwrap_or_default();
            // One that was abandoned may have ended before an earlier one.
            own.sort_unstable_by_key(|record| record.number);
            self.score.add(self.scenario, self.policy, &call, &own);
        }
    }

    /// The sums, when every call has ended.
    pub fn finish(mut self) -> Score {
        self.settle();
        self.score.times.sort_unstable();
        self.score
    }
}

/// Sums over the calls of one or more runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Score {
    /// Calls.
    pub calls: usize,
    /// Calls that gave an image.
    pub delivered: usize,
    /// Calls that gave an image of the model and the size asked for.
    pub as_asked: usize,
    /// Milliseconds to the image of each call that gave one, ascending.
    pub times: Vec<u64>,
    /// All charges, in micro-dollars.
    pub cost: u64,
    /// Charges that brought no image to a caller.
    pub for_nothing: usize,
    /// Charges of a call after its first.
    pub duplicates: usize,
    /// Requests that count against the project's limits.
    pub quota: usize,
    /// Requests sent.
    pub attempts: usize,
    /// Calls that ended because their time was up.
    pub out_of_time: usize,
    /// Calls whose cost our layers state, and those where the interval holds the truth.
    pub stated: (usize, usize),
    /// The upper ends of those intervals together, and how many have none.
    pub at_most: (u64, usize),
    /// Calls and images by the hour (UTC) of the call.
    pub by_hour: [(usize, usize); 24],
}

impl Score {
    /// Counts a call, whose requests these are in order of arrival.
    fn add(&mut self, scenario: &Scenario, policy: &Policy, call: &Call, own: &[Record]) {
        let arrived =
            |record: &&Record| record.image_hash.is_some() && record.delivered == Delivered::Full;
        let image = own.iter().rev().find(arrived).filter(|_| call.got_image);
        let charges = own.iter().filter(|record| record.charged).count();
        let cost = own.iter().map(|record| record.cost_microusd).sum();
        let Wanted { model, size, .. } = call.asks;
        let is_as_asked = image.is_some_and(|record| {
            *record.model == *model && record.size.is_some_and(|of| of.as_str() == size)
        });
        self.calls += 1;
        self.delivered += usize::from(image.is_some());
        self.as_asked += usize::from(is_as_asked);
        self.times.extend(image.map(|_| call.took.as_millis() as u64));
        self.cost += cost;
        self.for_nothing += charges - usize::from(image.is_some_and(|record| record.charged));
        self.duplicates += charges.saturating_sub(1);
        self.quota += own.iter().filter(|record| record.request_counted).count();
        self.attempts += own.len();
        self.out_of_time += usize::from(call.out_of_time);
        if policy.is_ours() {
            self.stated.0 += 1;
            self.stated.1 += usize::from(call.cost.contains(cost));
            self.at_most.0 += call.cost.at_most_microusd.unwrap_or(0);
            self.at_most.1 += usize::from(call.cost.at_most_microusd.is_none());
        }
        let hour = (scenario.first_hour() + call.asked_at.as_secs() / 3600) % 24;
        let hour = &mut self.by_hour[hour as usize];
        hour.0 += 1;
        hour.1 += usize::from(image.is_some());
    }

    /// Adds another run.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.calls += other.calls;
        self.delivered += other.delivered;
        self.as_asked += other.as_asked;
        self.times.extend(other.times);
        self.times.sort_unstable();
        self.cost += other.cost;
        self.for_nothing += other.for_nothing;
        self.duplicates += other.duplicates;
        self.quota += other.quota;
        self.attempts += other.attempts;
        self.out_of_time += other.out_of_time;
        self.stated.0 += other.stated.0;
        self.stated.1 += other.stated.1;
        self.at_most.0 += other.at_most.0;
        self.at_most.1 += other.at_most.1;
        for (own, other) in self.by_hour.iter_mut().zip(other.by_hour) {
            own.0 += other.0;
            own.1 += other.1;
        }
        self
    }

    /// The share of the calls that gave an image.
    pub fn success(&self) -> f64 {
        share(self.delivered, self.calls)
    }

    /// Seconds to the image below which this share of them lies.
    pub fn seconds(&self, quantile: f64) -> f64 {
        let at = (self.times.len() as f64 * quantile) as usize;
        let time = self.times.get(at.min(self.times.len().saturating_sub(1)));
        time.map_or(f64::NAN, |ms| *ms as f64 / 1000.0)
    }

    /// Dollars for each delivered image.
    pub fn dollars_per_image(&self) -> f64 {
        self.cost as f64 / 1e6 / self.delivered as f64
    }

    /// Something for each delivered image.
    pub fn per_image(&self, count: usize) -> f64 {
        count as f64 / self.delivered as f64
    }
}

/// `part` of `whole`; nothing of nothing.
pub fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
