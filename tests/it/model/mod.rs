//! The state machine of attempts, charges, quota, deadline and crash: every state of it is visited,
//! and the real layers are held to it.
//!
//! `machine.rs` is the model. `layers.rs` leads a stack over the simulator along the same events.

mod layers;
mod machine;

use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use self::layers::{Layers, Observed};
use self::machine::{Event, Flaw, State, Step, Violation};
use crate::harness::{cases, in_paused_time};

/// The layers are led along every sequence of so many events.
const DEPTH: usize = 6;

/// What an exploration found.
#[derive(Debug, Default)]
struct Explored {
    depth: usize,
    states: usize,
    transitions: usize,
    events: HashSet<Event>,
    violations: BTreeSet<Violation>,
}

/// Visits every state, breadth first, until there is no new one. With a flaw, until what it must
/// lead to was found.
fn explore(flaw: Option<(Flaw, &[Violation])>) -> Explored {
    let expected = flaw.map(|(_, expected)| expected);
    let mut found = Explored::default();
    let mut known = HashSet::from([State::start()]);
    let mut frontier = vec![State::start()];
    let is_done = |violations: &BTreeSet<_>| {
        expected.is_some_and(|expected| expected.iter().all(|one| violations.contains(one)))
    };
    while !frontier.is_empty() && !is_done(&found.violations) {
        let mut next = Vec::new();
        for state in frontier {
            for event in state.events() {
                let step = state.after(event, flaw.map(|(flaw, _)| flaw));
                found.transitions += 1;
                found.events.insert(event);
                found.violations.extend(step.violations);
                if known.insert(step.state.clone()) {
                    next.push(step.state);
                }
            }
        }
        found.depth += usize::from(!next.is_empty());
        frontier = next;
    }
    found.states = known.len();
    found
}

#[test]
fn no_reachable_state_breaks_a_rule() {
    let found = explore(None);
    let Explored { depth, states, transitions, .. } = found;
    let figures = format!("{states} states, {transitions} transitions, depth {depth}");
    println!("{figures}");
    assert_eq!(found.violations, BTreeSet::new());
    assert_eq!(found.events.len(), Event::ALL.len(), "each event happens");
    assert!(include_str!("../../../DESIGN.md").contains(&figures), "DESIGN.md says {figures}");
}

#[test]
fn every_flaw_is_found() {
    let mut all = BTreeSet::new();
    for (flaw, expected) in Flaw::ALL {
        let Explored { violations, depth, .. } = explore(Some((flaw, expected)));
        println!("{flaw:?}: {violations:?} at depth {depth}");
        assert!(expected.iter().all(|one| violations.contains(one)), "{flaw:?}: {violations:?}");
        all.extend(violations);
    }
    assert_eq!(all, BTreeSet::from(Violation::ALL), "each rule is broken by some flaw");
}

// A comparison that does not look at what a flaw changes would find no layer at fault.
#[test]
fn every_flaw_can_be_seen_in_what_is_compared() {
    for (flaw, _) in Flaw::ALL {
        let mut pairs = vec![(State::start(), State::start())];
        let mut depth = 0;
        let mut is_seen = false;
        while !is_seen && depth < DEPTH {
            let mut next = Vec::new();
            for (right, wrong) in pairs {
                for event in right.events().filter(|event| wrong.is_possible(*event)) {
                    let (right, wrong) = (right.after(event, None), wrong.after(event, Some(flaw)));
                    let seen = |step: &Step| {
                        Observed::expected(&step.state, usize::from(step.is_sent), step.told)
                    };
                    is_seen |= seen(&right) != seen(&wrong);
                    next.push((right.state, wrong.state));
                }
            }
            depth += 1;
            pairs = next;
        }
        assert!(is_seen, "{flaw:?} within {DEPTH} events");
    }
}

/// Leads the layers along these events, and compares them with the model after each.
fn follow(events: impl IntoIterator<Item = Event>) -> Result<(), String> {
    in_paused_time(async {
        let (mut state, mut layers, mut attempts) = (State::start(), Layers::new(), 0);
        let mut so_far = Vec::new();
        for event in events {
            so_far.push(event);
            let step = state.after(event, None);
            attempts += usize::from(step.is_sent);
            let told = layers.happens(event, &state).await;
            let observed = layers.observed(told).await;
            let expected = Observed::expected(&step.state, attempts, step.told);
            if observed != expected {
                return Err(format!(
                    "{so_far:?}\n  layers: {observed:?}\n  model:  {expected:?}\n{}",
                    layers.trails()
                ));
            }
            state = step.state;
        }
        Ok(())
    })
}

/// Every sequence of so many events, and shorter ones that end by themselves.
fn sequences(state: &State, left: usize) -> Vec<Vec<Event>> {
    let mut all = Vec::new();
    for event in state.events().filter(|_| left > 0) {
        for mut rest in sequences(&state.after(event, None).state, left - 1) {
            rest.insert(0, event);
            all.push(rest);
        }
    }
    if all.is_empty() { vec![Vec::new()] } else { all }
}

#[test]
fn the_layers_do_what_the_model_does_along_every_sequence_of_events() {
    let all = sequences(&State::start(), DEPTH);
    println!("{} sequences of up to {DEPTH} events", all.len());
    let differing: Vec<_> = all.into_iter().filter_map(|events| follow(events).err()).collect();
    assert!(differing.is_empty(), "{} differ, as:\n{}", differing.len(), differing[0]);
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn the_layers_do_what_the_model_does_along_long_sequences(
        choices in proptest::collection::vec(any::<prop::sample::Index>(), 10..40),
    ) {
        let (mut state, mut events) = (State::start(), Vec::new());
        for choice in choices {
            let possible: Vec<_> = state.events().collect();
            let Some(event) = (!possible.is_empty()).then(|| choice.get(&possible)) else { break };
            events.push(*event);
            state = state.after(*event, None).state;
        }
        follow(events).map_err(TestCaseError::fail)?;
    }
}
