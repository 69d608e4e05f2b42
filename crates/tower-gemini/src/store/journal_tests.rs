use super::*;

const US: u64 = 1;
const OTHER: u64 = 2;
const KEY: CallFingerprint = [7; 32];
const MINUTE: Duration = Duration::from_secs(60);

fn record(call: u128, state: JournalState) -> JournalRecord {
    JournalRecord { state, since_ms: 1_000, ..JournalRecord::new(call, KEY, MINUTE) }
}

fn keyed(call: u128, state: JournalState) -> JournalRecord {
    JournalRecord { keyed_request: Some([8; 32]), ..record(call, state) }
}

fn stored(taken: bool) -> JournalState {
    JournalState::Stored { head: "head".to_owned(), taken }
}

fn delivered() -> JournalState {
    JournalState::Delivered { head: Some("head".to_owned()) }
}

/// A table in which the other process has these records.
fn others(records: impl IntoIterator<Item = JournalRecord>) -> JournalTable {
    let mut table = JournalTable::default();
    records.into_iter().for_each(|record| table.insert(OTHER, record));
    table
}

/// What a claim of ours gets: the state that it takes over, or whether a client is there elsewhere.
fn claim(table: &mut JournalTable, is_resend: bool, is_alive: bool) -> Result<JournalState, &str> {
    let heard = |owner| (is_alive && owner == OTHER).then_some(Duration::ZERO);
    match table.claim(US, KEY, is_resend, heard) {
        Claim::Nothing => Err("nothing"),
        Claim::InFlight { detached: false, .. } => Err("in flight"),
        Claim::InFlight { detached: true, .. } => Err("in flight for nobody"),
        Claim::Call(record, _) => {
            assert_eq!(table.get(record.call), Some(&*record));
            assert_eq!(
                table.change(OTHER, record.call, &JournalChange::Forget, 0),
                TableChange::NotOurs,
                "what was claimed has one owner"
            );
            Ok(record.state)
        }
    }
}

#[test]
fn what_a_claim_gets_depends_on_how_far_the_call_came_and_on_whether_its_process_lives() {
    use JournalState::{InFlight, Lost, Waiting};
    let (here, gone) = (InFlight { detached: false }, InFlight { detached: true });
    // The state; what is left of a dead process's, of a living one's, and of the latter under a key.
    for (state, dead, alive, under_key) in [
        (Waiting, Err("nothing"), Err("in flight"), Err("in flight for nobody")),
        (here, Ok(Lost), Err("in flight"), Err("in flight for nobody")),
        (gone, Ok(Lost), Err("in flight for nobody"), Err("in flight for nobody")),
        (Lost, Ok(Lost), Ok(Lost), Ok(Lost)),
        (stored(false), Ok(stored(true)), Ok(stored(true)), Ok(stored(false))),
        (stored(true), Ok(stored(true)), Err("in flight"), Err("in flight for nobody")),
        (delivered(), Err("nothing"), Err("nothing"), Err("nothing")),
    ] {
        let table = || others([record(1, state.clone())]);
        assert_eq!(claim(&mut table(), false, false), dead, "{state:?} of a dead process");
        assert_eq!(claim(&mut table(), false, true), alive, "{state:?} of a living process");
        let mut table = others([keyed(1, state.clone())]);
        assert_eq!(claim(&mut table, false, true), under_key, "{state:?} under a key");
    }
    let mut table = others([record(1, delivered())]);
    assert_eq!(claim(&mut table, true, true), Ok(delivered()), "a marked resend gets it again");
    let mut table = others([record(1, Waiting)]);
    assert_eq!(claim(&mut table, false, false), Err("nothing"));
    assert!(table.is_empty(), "nothing was sent: the key is free again");
}

#[test]
fn a_response_comes_before_a_loss_and_a_call_that_may_yet_end_well_before_it_too() {
    use JournalState::{InFlight, Lost};
    let mut table = others([record(1, Lost), record(2, stored(false))]);
    assert_eq!(claim(&mut table, false, true), Ok(stored(true)));
    assert_eq!(claim(&mut table, false, true), Ok(Lost));
    assert_eq!(claim(&mut table, false, true), Err("nothing"), "both are ours");
    let mut table = others([record(1, Lost), record(2, stored(false))]);
    table.remove(2);
    assert_eq!(claim(&mut table, false, true), Ok(Lost), "the other one stays");
    let mut table = others([record(1, Lost), record(2, InFlight { detached: true })]);
    assert_eq!(claim(&mut table, false, true), Err("in flight for nobody"));
    let mut table = others([record(1, Lost), record(2, InFlight { detached: false })]);
    assert_eq!(claim(&mut table, false, true), Ok(Lost), "that one has a client of its own");
}

#[test]
fn a_record_is_changed_by_its_owner_alone_and_says_whether_anything_changed() {
    use JournalChange::{Begin, Charged, Delivered, Detached, Forget, Stored, Taken};
    let mut table = JournalTable::default();
    let begin = Begin(Box::new(record(1, JournalState::InFlight { detached: false })));
    assert_eq!(table.change(US, 1, &begin, 0), TableChange::Changed);
    let cost = Cost { at_least_microusd: 1, at_most_microusd: Some(2) };
    let response = JournalResponse::new("head".to_owned(), vec![Bytes::from_static(b"ab"); 2]);
    assert_eq!(response.bytes(), 4);
    let stored_as = |taken| Stored { response: response.clone(), taken, keep_for: 2 * MINUTE };
    let none = JournalState::Delivered { head: None };
    for (change, state) in [
        (Charged(cost), JournalState::InFlight { detached: false }),
        (Detached(true), JournalState::InFlight { detached: true }),
        (Delivered(MINUTE), none.clone()),
        (Taken(true, MINUTE), none),
        (stored_as(false), stored(false)),
        (Detached(false), stored(false)),
        (Taken(true, MINUTE), stored(true)),
        (Delivered(MINUTE), delivered()),
        (Taken(false, MINUTE), stored(false)),
        (JournalChange::Lost(MINUTE), JournalState::Lost),
    ] {
        let before = table.get(1).cloned();
        assert_eq!(table.change(OTHER, 1, &change, 5_000), TableChange::NotOurs);
        assert_eq!(table.get(1), before.as_ref(), "{change:?} of another process");
        let changed = table.change(US, 1, &change, 5_000);
        let is_same = table.get(1) == before.as_ref();
        assert_eq!(changed == TableChange::Unchanged, is_same, "{change:?}");
        assert_eq!(table.get(1).unwrap().state, state, "after {change:?}");
        assert_eq!(table.change(US, 1, &change, 5_000), TableChange::Unchanged, "{change:?} twice");
    }
    let record = table.get(1).unwrap();
    assert_eq!(record.outcome.as_deref(), Some("charged 1 to 2 microusd"));
    assert_eq!((record.since_ms, record.keep_for_ms), (5_000, 60_000));
    assert_eq!((table.change(US, 1, &Forget, 0), table.len()), (TableChange::Removed, 0));
    assert_eq!(table.change(US, 1, &Forget, 0), TableChange::NotOurs);
}

#[test]
fn a_key_that_another_process_has_is_not_taken_twice() {
    let begin = JournalChange::Begin(Box::new(keyed(2, JournalState::Waiting)));
    let mut table = others([keyed(1, JournalState::Waiting)]);
    assert_eq!(table.change(US, 2, &begin, 0), TableChange::NotOurs);
    assert_eq!(table.change(OTHER, 2, &begin, 0), TableChange::Changed);
    table.remove(1);
    table.remove(2);
    assert_eq!(table.change(US, 2, &begin, 0), TableChange::Changed);
    let unkeyed = JournalChange::Begin(Box::new(record(3, JournalState::Waiting)));
    assert_eq!(table.change(OTHER, 3, &unkeyed, 0), TableChange::Changed, "requests may be alike");
}

#[test]
fn what_is_of_no_use_any_more_is_removed_but_for_ones_own() {
    let mut table = others([record(1, JournalState::Lost), record(2, stored(false))]);
    table.insert(US, record(3, JournalState::Lost));
    assert_eq!((table.expire(US, 60_999), table.len()), (vec![], 3));
    assert_eq!((table.expire(US, 61_000), table.len()), (vec![1, 2], 1));
    assert!(table.get(3).is_some() && !table.is_empty());
    assert_eq!(claim(&mut table, false, true), Err("nothing"));
}
