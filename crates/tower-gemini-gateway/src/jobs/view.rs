//! What the commands print: pure.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::{Value, json as value};
use tower_gemini_jobs::{Counts, ItemState, Job, Plan, StoredItem};

/// A duration in seconds, for people.
pub(super) fn time(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h {minutes:02} min", seconds / 3600),
        _ => format!("{days} days {hours} h"),
    }
}

#[allow(clippy::cast_precision_loss, reason = "for people: two digits are shown")]
fn usd(microusd: u64) -> String {
    format!("${:.2}", microusd as f64 / 1e6)
}

pub(super) fn plan(plan: &Plan) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{} items", plan.items);
    for (what, count) in &plan.draws {
        let _ = writeln!(text, "  {count:>7}  {what}");
    }
    for (lane, count) in &plan.lanes {
        let _ = writeln!(text, "  {count:>7}  in lane {lane}");
    }
    let _ = writeln!(
        text,
        "Cost:  ${:.2} if every image is delivered; usually up to ${:.2}; ${:.2} at most",
        plan.at_least_usd, plan.usually_at_most_usd, plan.at_most_usd
    );
    if plan.unpriced > 0 {
        let _ =
            writeln!(text, "       {} items have no known price and are not in it", plan.unpriced);
    }
    let _ = writeln!(text, "Time:  at least {}, by {}", time(plan.seconds), plan.bound_by);
    if let Some(days) = plan.quota_days.filter(|days| *days > 1) {
        let _ = writeln!(text, "       the quota of {days} days");
    }
    text
}

pub(super) fn submitted(job: &Job, planned: &Plan) -> String {
    format!("Job {} is queued.\n{}", job.id, plan(planned))
}

/// A job and how its items stand, for scripts.
pub(super) fn json(job: &Job, counts: &Counts) -> Value {
    let mut all = value!(job);
    all["counts"] = value!(counts);
    all
}

fn name(job: &Job) -> &str {
    job.options.name.as_deref().unwrap_or("")
}

pub(super) fn list(rows: &[(Job, Counts)]) -> String {
    if rows.is_empty() {
        return "There are no jobs. `gemini-gateway jobs submit FILE` makes one.\n".to_owned();
    }
    let mut text = format!(
        "{:<16}  {:<20} {:<9} {:>13} {:>6} {:>7} {:>19}\n",
        "job", "name", "state", "done", "failed", "unknown", "spent"
    );
    for (job, counts) in rows {
        let done = format!("{} of {}", counts.done, job.items);
        let spent =
            format!("{} to {}", usd(job.spent.at_least_microusd), usd(job.spent.at_most_microusd));
        let name: String = name(job).chars().take(20).collect();
        let _ = writeln!(
            text,
            "{:<16}  {name:<20} {:<9} {done:>13} {:>6} {:>7} {spent:>19}",
            job.id, job.state, counts.failed, counts.unknown
        );
    }
    text
}

pub(super) fn job(job: &Job, counts: &Counts) -> String {
    let mut text = format!("Job {} {}: {}\n", job.id, name(job), job.state);
    if let Some(stopped) = &job.stopped {
        let _ = writeln!(text, "  {stopped}; `gemini-gateway jobs resume --max-usd …` goes on");
    }
    let _ = writeln!(
        text,
        "  {} items: {} done, {} failed, {} unknown, {} cancelled, {} left",
        job.items,
        counts.done,
        counts.failed,
        counts.unknown,
        counts.cancelled,
        counts.left()
    );
    let cap = job.options.max_usd.map(|cap| format!(" of ${cap:.2}")).unwrap_or_default();
    let _ = writeln!(
        text,
        "  spent {} to {}{cap}, {} reserved, {} requests",
        usd(job.spent.at_least_microusd),
        usd(job.spent.at_most_microusd),
        usd(job.reserved_microusd),
        job.requests
    );
    if counts.unknown > 0 {
        text.push_str(
            "  unknown: they may have been paid for, and nobody can say what became of them.\n  \
             `gemini-gateway jobs retry --unknown` sends them again; they may be paid for twice\n",
        );
    }
    text
}

pub(super) fn items(state: ItemState, items: &[StoredItem], counts: &Counts) -> String {
    let all = match state {
        ItemState::Failed => counts.failed,
        ItemState::Unknown => counts.unknown,
        _ => counts.waiting,
    };
    let mut text = String::new();
    if items.is_empty() {
        return text;
    }
    let _ = writeln!(text, "  {state}, {} of {all}:", items.len());
    for item in items {
        let reason = item.reason.as_deref().unwrap_or("its turn has not come");
        let _ = writeln!(text, "    {:>6}  {}  {reason}", item.number, item.output);
    }
    text
}

/// Lines of progress: one that is drawn over on a terminal, one a tenth elsewhere.
#[derive(Debug)]
pub(super) struct Progress {
    is_terminal: bool,
    shown: HashMap<String, (u64, i64, u64)>,
}

impl Progress {
    pub(super) fn new(is_terminal: bool) -> Self {
        Self { is_terminal, shown: HashMap::new() }
    }

    pub(super) fn has_shown(&self, job: &str) -> bool {
        self.shown.contains_key(job)
    }

    /// The line for a job now; empty where nothing new is to be said.
    pub(super) fn line(&mut self, job: &Job, counts: &Counts, now_ms: i64) -> String {
        const WIDTH: u64 = 24;
        let ended = job.items.saturating_sub(counts.left());
        let part = |of: u64| (ended * of).checked_div(job.items).unwrap_or(of);
        let (first, began, tenth) =
            *self.shown.entry(job.id.clone()).or_insert((ended, now_ms, u64::MAX));
        let is_new = part(10) != tenth;
        if let Some(shown) = self.shown.get_mut(&job.id) {
            shown.2 = part(10);
        }
        if !self.is_terminal && !is_new {
            return String::new();
        }
        let seconds = u64::try_from((now_ms - began) / 1000).unwrap_or(0);
        let made = ended.saturating_sub(first);
        let left = (seconds * counts.left()).checked_div(made).map(time);
        let filled = usize::try_from(part(WIDTH)).unwrap_or(0);
        let bar: String =
            (0..WIDTH as usize).map(|at| if at < filled { '█' } else { '░' }).collect();
        let mut line = format!(
            "{bar} {ended} of {}, {} done, {} to {}, {} reserved",
            job.items,
            counts.done,
            usd(job.spent.at_least_microusd),
            usd(job.spent.at_most_microusd),
            usd(job.reserved_microusd),
        );
        if let Some(left) = left.filter(|_| counts.left() > 0) {
            let _ = write!(line, ", {left} left");
        }
        match self.is_terminal {
            true => format!("\r\x1b[2K{line}"),
            false => line + "\n",
        }
    }

    /// Why nothing happens.
    pub(super) fn waits(&self, next: &StoredItem, now_ms: i64) -> String {
        let wait = u64::try_from((next.not_before_ms - now_ms) / 1000).unwrap_or(0);
        if !self.is_terminal || wait == 0 {
            return String::new();
        }
        let why = next.reason.as_deref().unwrap_or("a time that is to come");
        let why: String = why.chars().take(60).collect();
        format!(", waits {}: {why}", time(wait))
    }
}
