//! What was done and what it cost, by our books and, where there is one, by the simulator's ledger.

use tower_gemini::cost::Cost;
use tower_gemini::trail::{Attempt, Step, StopReason};
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini_sim::LedgerSnapshot;

use crate::gemini::Job;
use crate::talk::{Talk, Tone};

const COLUMNS: [&str; 13] = [
    "call", "try", "outcome", "charge", "waited", "model", "size", "pixels", "our cost", "|",
    "sends", "charged", "cost",
];
/// How many of the columns are ours; the others are the simulator's.
const OURS: usize = 9;

/// One line for each attempt; what belongs to the whole call stands on its first.
pub(crate) fn table(talk: &mut Talk<'_>, jobs: &[Job], ledger: Option<&LedgerSnapshot>) {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    for job in jobs {
        let begins = rows.len();
        for step in job.trail.steps() {
            match step {
                Step::Attempt(attempt) => {
                    let mut row = <[String; 13]>::default();
                    row[1] = (rows.len() - begins + 1).to_string();
                    row[2] = attempt.outcome.map_or("cut off", Outcome::as_str).to_owned();
                    if let Some(status) = attempt.status {
                        row[2] += &format!(" ({status})");
                    }
                    row[3] = attempt.charge.to_string();
                    rows.push(row);
                }
                // The wait that followed the attempt.
                Step::Waited { delay, .. } if rows.len() > begins => {
                    if let Some(row) = rows.last_mut() {
                        row[4] = format!("{:.2} s", delay.as_secs_f64());
                    }
                }
                _ => {}
            }
        }
        if rows.len() == begins {
            rows.push(<[String; 13]>::default());
            rows[begins][2] = "not sent".to_owned();
        }
        let row = &mut rows[begins];
        row[0].clone_from(&job.name);
        row[5].clone_from(&job.model);
        row[6] = job.size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        row[7] = match &job.end {
            Some(Ok(saved)) => saved.pixels(),
            _ => "-".to_owned(),
        };
        row[8] = job.trail.cost().to_string();
        // Two ends that read the same are written once.
        if let Some((low, high)) = row[8].split_once(" to ")
            && low == high
        {
            row[8] = low.to_owned();
        }
        if let Some(ledger) = ledger {
            row[10] = ledger.sends(&job.name).to_string();
            row[11] = ledger.charges(&job.name).to_string();
            row[12] = Cost::exactly(ledger.cost_microusd(&job.name)).to_string();
        }
    }
    let shown = if ledger.is_some() { COLUMNS.len() } else { OURS };
    let widths: [usize; 13] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    });
    for row in &mut rows {
        row[OURS] = "|".to_owned();
    }
    rows.insert(1, widths.map(|width| "-".repeat(width)));
    if ledger.is_some() {
        let ours: usize = widths[..OURS].iter().map(|width| width + 2).sum();
        talk.plain(&format!("{:ours$}|  the simulator's truth", "OUR TRAILS"));
    }
    for row in rows {
        let cells: Vec<_> = (0..shown)
            .map(|column| {
                let (cell, width) = (&row[column], widths[column]);
                // Numbers to the right, so that they can be compared.
                let is_number = matches!(column, 1 | 4 | 6 | 7 | 10..);
                if is_number { format!("{cell:>width$}") } else { format!("{cell:width$}") }
            })
            .collect();
        talk.plain(cells.join("  ").trim_end());
    }
}

/// Why calls have no image, in sentences.
pub(crate) fn explain(talk: &mut Talk<'_>, jobs: &[Job], ledger: Option<&LedgerSnapshot>) {
    let mut heading = Some("\nWITHOUT AN IMAGE");
    for job in jobs {
        let why = match &job.end {
            Some(Ok(_)) => continue,
            Some(Err(why)) => why,
            None if job.trail.attempts().is_empty() => continue,
            None => "cut off while it ran; what it had sent may have been charged",
        };
        let name = &job.name;
        let mut line = format!("{name}: {why}.");
        for step in job.trail.steps() {
            match step {
                Step::Stopped { why: StopReason::MaybeCharged } => line.push_str(
                    " Sending it again might pay for it twice, so that is left to you: \
                     `CallOptions::maybe_charged_resends` buys the risk.",
                ),
                Step::Stopped { why } => {
                    line.push_str(&format!(" Not sent again: {}.", why.as_str()));
                }
                _ => {}
            }
        }
        if let Some(ledger) = ledger {
            line.push_str(&match (ledger.charges(name), ledger.cost_microusd(name)) {
                (0, _) => " The simulator did not charge it.".to_owned(),
                (_, cost) => format!(" The simulator charged {} for it.", Cost::exactly(cost)),
            });
        }
        if let Some(heading) = heading.take() {
            talk.plain(heading);
        }
        talk.plain(&line);
    }
}

fn attempts(jobs: &[Job]) -> Vec<Attempt> {
    jobs.iter().flat_map(|job| job.trail.attempts()).collect()
}

fn charged(jobs: &[Job], charges: &[Charge]) -> usize {
    attempts(jobs).iter().filter(|attempt| charges.contains(&attempt.charge)).count()
}

fn cost(jobs: &[Job]) -> Cost {
    jobs.iter().map(|job| job.trail.cost()).sum()
}

pub(crate) fn saved(jobs: &[Job]) -> usize {
    jobs.iter().filter(|job| matches!(job.end, Some(Ok(_)))).count()
}

/// Our sums beside the simulator's.
pub(crate) fn totals(talk: &mut Talk<'_>, jobs: &[Job], ledger: &LedgerSnapshot) {
    let (attempts, truth) = (attempts(jobs), ledger.totals());
    let not_sent = |attempt: &&Attempt| attempt.outcome == Some(Outcome::NotSent);
    let never_left = attempts.iter().filter(not_sent).count();
    let sends = format!("{}, and {never_left} that never left", attempts.len() - never_left);
    let certainly = charged(jobs, &[Charge::Charged]);
    let sends_charged = format!("{certainly}, and {} perhaps", charged(jobs, &[Charge::Maybe]));
    let resent: usize = ledger.resent_after_charge().values().sum();
    talk.plain("");
    for (what, ours, theirs) in [
        ("TOTALS", "ours".to_owned(), "the simulator's truth".to_owned()),
        ("sends", sends, truth.requests.to_string()),
        ("images delivered", saved(jobs).to_string(), truth.images_delivered.to_string()),
        ("sends charged", sends_charged, truth.charged.to_string()),
        ("money", cost(jobs).to_string(), Cost::exactly(truth.cost_microusd).to_string()),
        ("resent after a charge", String::new(), resent.to_string()),
    ] {
        talk.plain(&format!("{what:23}{ours:30}{theirs}"));
    }
}

/// Says whether the truth lies where we say it does, for each call and in sum, and whether anything
/// was sent again after it was charged. `true` where all is well.
pub(crate) fn verdict(talk: &mut Talk<'_>, jobs: &[Job], ledger: &LedgerSnapshot) -> bool {
    let mut faults = Vec::new();
    for job in jobs {
        let (truth, ours) = (ledger.cost_microusd(&job.name), job.trail.cost());
        if !ours.contains(truth) {
            let truth = Cost::exactly(truth);
            faults.push(format!("{} cost {truth}, which is not in our {ours}", job.name));
        }
    }
    if !cost(jobs).contains(ledger.totals().cost_microusd) {
        faults.push("the sum is not in our interval".to_owned());
    }
    for (call, sends) in ledger.resent_after_charge() {
        faults.push(format!("{call} was sent {sends} times after it was charged"));
    }
    if faults.is_empty() {
        talk.line(
            Tone::Good,
            "\nThe ledger's truth lies within our interval for every call and in sum, and nothing \
             was sent again after it was charged.",
        );
    } else {
        talk.line(Tone::Bad, &format!("\nOUR BOOKS ARE WRONG: {}.", faults.join("; ")));
    }
    faults.is_empty()
}

/// What has been sent and may have been paid for, where nobody but the bill knows more.
pub(crate) fn so_far(talk: &mut Talk<'_>, jobs: &[Job]) {
    talk.plain(&format!(
        "\n{} sends: {} charged, {} perhaps charged, {} surely not. Cost: {}. Images saved: {}.",
        attempts(jobs).len(),
        charged(jobs, &[Charge::Charged]),
        charged(jobs, &[Charge::Maybe]),
        charged(jobs, &[Charge::None, Charge::Waived]),
        cost(jobs),
        saved(jobs)
    ));
}
