//! What was done and what it cost, by our books and, where there is one, by the simulator's ledger.

use tower_gemini::cost::Cost;
use tower_gemini::trail::{Attempt, Step, StopReason};
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini_sim::LedgerSnapshot;

use crate::run::{Ended, Report};
use crate::talk::{Talk, Tone};

const COLUMNS: [&str; 12] = [
    "call", "try", "outcome", "charge", "waited", "model", "size", "pixels", "our cost", "sends",
    "charged", "cost",
];
/// How many of the columns are ours; the others are the simulator's.
const OURS: usize = 9;

/// One line for each attempt; what belongs to the whole call stands on its first.
pub(crate) fn table(talk: &mut Talk<'_>, reports: &[Report], ledger: Option<&LedgerSnapshot>) {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    for report in reports {
        let mut call: Vec<[String; 12]> = attempts_and_waits(report)
            .into_iter()
            .enumerate()
            .map(|(index, (attempt, waited))| {
                let mut row = <[String; 12]>::default();
                row[1] = (index + 1).to_string();
                row[2] = outcome(&attempt);
                row[3] = attempt.charge.to_string();
                row[4] = waited;
                row
            })
            .collect();
        if call.is_empty() {
            call.push(std::array::from_fn(|column| {
                if column == 2 { "not sent".to_owned() } else { String::new() }
            }));
        }
        if let Some(row) = call.first_mut() {
            row[0].clone_from(&report.job.name);
            row[5].clone_from(&report.job.model);
            row[6] = report.job.size.map_or_else(|| "-".to_owned(), |size| size.to_string());
            row[7] = pixels(&report.ended);
            row[8] = interval(report.job.trail.cost());
            if let Some(ledger) = ledger {
                let name = &report.job.name;
                row[9] = ledger.sends(name).to_string();
                row[10] = ledger.charges(name).to_string();
                row[11] = money(ledger.cost_microusd(name));
            }
        }
        rows.append(&mut call);
    }
    let shown = if ledger.is_some() { COLUMNS.len() } else { OURS };
    let widths: Vec<_> = (0..shown)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
        .collect();
    if ledger.is_some() {
        let ours: usize = widths.iter().take(OURS).map(|width| width + 2).sum();
        talk.plain(&format!("{:ours$}| the simulator's truth", "OUR TRAILS"));
    }
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, width) in widths.iter().copied().enumerate() {
            let cell = &row[column];
            // Numbers to the right, so that they can be compared.
            let is_number = matches!(column, 1 | 4 | 6 | 7 | 9..);
            let cell = if is_number { format!("{cell:>width$}") } else { format!("{cell:width$}") };
            line.push_str(if column == OURS { "| " } else { "" });
            line.push_str(&cell);
            line.push_str("  ");
        }
        talk.plain(line.trim_end());
        if index == 0 {
            let rule: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
            let (ours, theirs) = rule.split_at(OURS.min(rule.len()));
            let rule = if theirs.is_empty() {
                ours.join("  ")
            } else {
                format!("{}  | {}", ours.join("  "), theirs.join("  "))
            };
            talk.plain(&rule);
        }
    }
}

/// Each attempt with the wait that followed it.
fn attempts_and_waits(report: &Report) -> Vec<(Attempt, String)> {
    let mut found: Vec<(Attempt, String)> = Vec::new();
    for step in report.job.trail.steps() {
        match (step, found.last_mut()) {
            (Step::Attempt(attempt), _) => found.push((attempt, String::new())),
            (Step::Waited { delay, .. }, Some((_, waited))) => {
                *waited = format!("{:.2} s", delay.as_secs_f64())
            }
            _ => {}
        }
    }
    found
}

fn outcome(attempt: &Attempt) -> String {
    let outcome = attempt.outcome.map_or("cut off", Outcome::as_str);
    match attempt.status {
        Some(status) => format!("{outcome} ({status})"),
        None => outcome.to_owned(),
    }
}

fn pixels(ended: &Ended) -> String {
    match ended {
        Ended::Saved(saved) => saved
            .pixels
            .map_or_else(|| "?".to_owned(), |(width, height)| format!("{width}x{height}")),
        _ => "-".to_owned(),
    }
}

/// Two ends that read the same are written once.
fn interval(cost: Cost) -> String {
    let text = cost.to_string();
    match text.split_once(" to ") {
        Some((low, high)) if low == high => low.to_owned(),
        _ => text,
    }
}

fn money(microusd: u64) -> String {
    Cost::exactly(microusd).to_string()
}

/// Why calls have no image, in sentences.
pub(crate) fn explain(talk: &mut Talk<'_>, reports: &[Report], ledger: Option<&LedgerSnapshot>) {
    let failed = reports.iter().filter_map(|report| match &report.ended {
        Ended::NoImage(why) => Some((report, why.clone())),
        Ended::Lost(why) => Some((report, format!("the image was paid for and lost: {why}"))),
        Ended::CutOff => Some((
            report,
            "cut off while it ran; what it had sent may have been charged".to_owned(),
        )),
        _ => None,
    });
    for (index, (report, why)) in failed.enumerate() {
        if index == 0 {
            talk.plain("");
            talk.plain("WITHOUT AN IMAGE");
        }
        let mut line = format!("{}: {why}.", report.job.name);
        let stopped = report.job.trail.steps().into_iter().find_map(|step| match step {
            Step::Stopped { why } => Some(why),
            _ => None,
        });
        match stopped {
            Some(StopReason::MaybeCharged) => line.push_str(
                " Sending it again might pay for it twice, so that is left to you: `CallOptions::maybe_charged_resends` buys the risk.",
            ),
            Some(why) => line.push_str(&format!(" Not sent again: {}.", why.as_str())),
            None => {}
        }
        if let Some(ledger) = ledger {
            line.push_str(&match (
                ledger.charges(&report.job.name),
                ledger.cost_microusd(&report.job.name),
            ) {
                (0, _) => " The simulator did not charge it.".to_owned(),
                (_, cost) => format!(" The simulator charged {} for it.", money(cost)),
            });
        }
        talk.plain(&line);
    }
}

fn attempts(reports: &[Report]) -> Vec<Attempt> {
    reports.iter().flat_map(|report| report.job.trail.attempts()).collect()
}

fn cost(reports: &[Report]) -> Cost {
    reports.iter().map(|report| report.job.trail.cost()).sum()
}

fn saved(reports: &[Report]) -> usize {
    reports.iter().filter(|report| matches!(report.ended, Ended::Saved(_))).count()
}

/// Our sums beside the simulator's.
pub(crate) fn totals(talk: &mut Talk<'_>, reports: &[Report], ledger: &LedgerSnapshot) {
    let attempts = attempts(reports);
    let never_left =
        attempts.iter().filter(|attempt| attempt.outcome == Some(Outcome::NotSent)).count();
    let charged = attempts.iter().filter(|attempt| attempt.charge == Charge::Charged).count();
    let maybe = attempts.iter().filter(|attempt| attempt.charge == Charge::Maybe).count();
    let truth = ledger.totals();
    let resent: usize = ledger.resent_after_charge().values().sum();
    let left = attempts.len() - never_left;
    let rows = [
        ("TOTALS", "ours".to_owned(), "the simulator's truth".to_owned()),
        ("sends", format!("{left}, and {never_left} that never left"), truth.requests.to_string()),
        ("images delivered", saved(reports).to_string(), truth.images_delivered.to_string()),
        ("sends charged", format!("{charged}, and {maybe} perhaps"), truth.charged.to_string()),
        ("money", cost(reports).to_string(), money(truth.cost_microusd)),
        ("resent after a charge", String::new(), resent.to_string()),
    ];
    talk.plain("");
    for (what, ours, theirs) in rows {
        talk.plain(&format!("{what:23}{ours:30}{theirs}"));
    }
}

/// Says whether the truth lies where we say it does, for each call and in sum, and whether anything
/// was sent again after it was charged. `true` where all is well.
pub(crate) fn verdict(talk: &mut Talk<'_>, reports: &[Report], ledger: &LedgerSnapshot) -> bool {
    let mut faults: Vec<String> = reports
        .iter()
        .filter(|report| !report.job.trail.cost().contains(ledger.cost_microusd(&report.job.name)))
        .map(|report| {
            let truth = money(ledger.cost_microusd(&report.job.name));
            format!(
                "{} cost {truth}, which is not in our {}",
                report.job.name,
                report.job.trail.cost()
            )
        })
        .collect();
    if !cost(reports).contains(ledger.totals().cost_microusd) {
        faults.push("the sum is not in our interval".to_owned());
    }
    faults.extend(
        ledger
            .resent_after_charge()
            .iter()
            .map(|(call, sends)| format!("{call} was sent {sends} times after it was charged")),
    );
    talk.plain("");
    if faults.is_empty() {
        talk.line(
            Tone::Good,
            "The ledger's truth lies within our interval for every call and in sum, and nothing was sent again after it was charged.",
        );
    } else {
        talk.line(Tone::Bad, &format!("OUR BOOKS ARE WRONG: {}.", faults.join("; ")));
    }
    faults.is_empty()
}

/// What has been sent and may have been paid for, where nobody but the bill knows more.
pub(crate) fn so_far(talk: &mut Talk<'_>, reports: &[Report]) {
    let attempts = attempts(reports);
    let count = |charge: Charge| attempts.iter().filter(|attempt| attempt.charge == charge).count();
    talk.plain("");
    talk.plain(&format!(
        "{} sends: {} charged, {} perhaps charged, {} surely not. Cost: {}. Images saved: {}.",
        attempts.len(),
        count(Charge::Charged),
        count(Charge::Maybe),
        count(Charge::None) + count(Charge::Waived),
        cost(reports),
        saved(reports)
    ));
}
