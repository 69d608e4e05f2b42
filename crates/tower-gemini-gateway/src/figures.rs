//! Keeps the figures of the status page over restarts: the file `figures` in the state directory.
//!
//! It is written every [`EVERY`] where something changed, and at the end; a crash forgets what was
//! counted since. The file is a line with its version and the digest of what follows, which is
//! JSON. A file that is damaged or of another version is set aside, and counting begins anew.
//! Nothing that costs money reads it, so a disk that is full costs figures and no call.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tower_gemini::calendar::PacificDay;

use crate::stats;
use crate::status::{QuotaLimit, Spending, Status, Stored};

/// How much a crash forgets at most, beside the time of one write. Ours: people see no difference,
/// and a disk has one write in that time.
pub(crate) const EVERY: Duration = Duration::from_secs(5);

/// The first line, but for the digest. The number rises when a field changes its meaning.
const HEAD: &str = "gemini-gateway figures 1 ";

/// Everything that is counted over time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) stats: Option<stats::Kept>,
    /// Of these, what happened; not what is stored now.
    stored: Stored,
    alerts_sent: u64,
    alerts_failed: u64,
    /// The names of the tokens that have called.
    pub(crate) callers: BTreeSet<String>,
    /// Counts that end with their period, by what is counted and when the period began.
    periods: BTreeMap<String, u64>,
}

impl Figures {
    /// What a status shows, in which the figures of earlier processes are.
    pub(crate) fn new(status: &mut Status, stats: stats::Kept, earlier: &Self) -> Self {
        let (stored, alerts) = (status.stored.as_ref(), status.alerts.as_ref());
        let called = status.callers.iter().map(|of| &of.name);
        let mut figures = Self {
            stats: Some(stats),
            // Where they are off now, they may be on again.
            stored: stored.map_or(earlier.stored, |of| Stored {
                in_progress: 0,
                stored: 0,
                stored_bytes: 0,
                ..*of
            }),
            alerts_sent: alerts.map_or(earlier.alerts_sent, |of| of.sent),
            alerts_failed: alerts.map_or(earlier.alerts_failed, |of| of.failed),
            callers: earlier.callers.iter().chain(called).cloned().collect(),
            periods: BTreeMap::new(),
        };
        // The quota of a key is shown once it is asked for.
        let today = today(status);
        let of_today = |(what, _): &(&String, &u64)| what.ends_with(&today);
        let carried = earlier.periods.iter().filter(of_today);
        figures.periods.extend(carried.map(|(what, count)| (what.clone(), *count)));
        for_each_period(status, |what, count| {
            if *count > 0 {
                figures.periods.insert(what, *count);
            }
        });
        figures
    }

    /// Adds these figures, which are earlier processes', to those of this one. The calls' own are
    /// there already.
    pub(crate) fn add_to(&self, status: &mut Status) {
        let add = |count: &mut u64, earlier: u64| *count = count.saturating_add(earlier);
        if let Some(stored) = &mut status.stored {
            add(&mut stored.replayed, self.stored.replayed);
            add(&mut stored.free, self.stored.free);
            add(&mut stored.lost, self.stored.lost);
        }
        if let Some(alerts) = &mut status.alerts {
            add(&mut alerts.sent, self.alerts_sent);
            add(&mut alerts.failed, self.alerts_failed);
        }
        for_each_period(status, |what, count| {
            add(count, self.periods.get(&what).copied().unwrap_or(0));
        });
    }

    fn to_text(&self) -> io::Result<String> {
        let body = serde_json::to_string(self)?;
        Ok(format!("{HEAD}{}\n{body}", digest(&body)))
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let (head, body) = text.split_once('\n').unwrap_or((text, ""));
        let Some(stated) = head.strip_prefix(HEAD) else {
            return Err("another version wrote it, or something else".to_owned());
        };
        if stated != digest(body) {
            return Err("it is damaged".to_owned());
        }
        serde_json::from_str(body).map_err(|error| format!("another version wrote it: {error}"))
    }
}

/// The end of the names of what is counted by the day of quotas.
fn today(status: &Status) -> String {
    let now = Duration::from_secs(status.report.at_unix_seconds);
    format!(" on {}", PacificDay::at(SystemTime::UNIX_EPOCH + now))
}

/// Every count that ends with a period, with a name that no other one has.
fn for_each_period(status: &mut Status, mut visit: impl FnMut(String, &mut u64)) {
    let today = today(status);
    let mut requests = |whose: &str, limits: &mut [QuotaLimit]| {
        for day in limits.iter_mut().filter(|limit| limit.dimension == "rpd") {
            visit(format!("requests {whose}{today}"), &mut day.used);
        }
    };
    for quota in &mut status.quotas {
        let upstream = quota.upstream.as_deref().unwrap_or_default();
        let whose = format!("of {} of {} at {upstream}", quota.model, quota.project);
        requests(&whose, &mut quota.limits);
    }
    for caller in &mut status.callers {
        requests(&format!("by {}", caller.name), &mut caller.limits);
    }
    let mut refused = |whose: &str, spending: &mut [Spending]| {
        for of in spending {
            let what = format!("refused{whose} per {} from {}", of.period, of.began_unix_seconds);
            visit(what, &mut of.rejected_attempts);
        }
    };
    refused("", &mut status.spending);
    for budget in &mut status.budgets {
        refused(&format!(" at {}", budget.upstream), &mut budget.spending);
    }
    for caller in &mut status.callers {
        refused(&format!(" to {}", caller.name), &mut caller.spending);
    }
}

fn digest(body: &str) -> String {
    Sha256::digest(body).iter().fold(String::new(), |mut text, byte| {
        // Text takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Saves as long as it is polled. `save` blocks on the disk.
pub(crate) async fn keep(save: impl Fn() + Clone + Send + 'static) {
    loop {
        tokio::time::sleep(EVERY).await;
        // A panic has been logged, and costs figures only.
        let _ = tokio::task::spawn_blocking(save.clone()).await;
    }
}

/// The file of one gateway, which owns its directory.
#[derive(Debug)]
pub(crate) struct FiguresFile {
    path: PathBuf,
    earlier: Figures,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    figures: Figures,
    has_failed: bool,
    is_closed: bool,
}

impl FiguresFile {
    /// Reads the file in this directory. One that cannot be read is set aside.
    pub(crate) fn open(dir: &Path) -> Self {
        let path = dir.join("figures");
        let read = match fs::read(&path) {
            Ok(bytes) => String::from_utf8(bytes)
                .map_err(|_| "it is damaged".to_owned())
                .and_then(|text| Figures::from_text(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Figures::default()),
            Err(error) => Err(format!("it cannot be read: {error}")),
        };
        let earlier = read.unwrap_or_else(|problem| {
            let aside = path.with_extension("aside");
            let is_kept = fs::rename(&path, &aside).is_ok();
            tracing::warn!(
                problem,
                aside = is_kept.then(|| tracing::field::display(aside.display())),
                "the figures of the status page begin anew: their file cannot be used"
            );
            Figures::default()
        });
        let written = Written { figures: earlier.clone(), has_failed: false, is_closed: false };
        Self { path, earlier, written: Mutex::new(written) }
    }

    /// What earlier processes counted.
    pub(crate) fn earlier(&self) -> &Figures {
        &self.earlier
    }

    /// Writes the figures where they changed. Blocks on the disk. A failure is logged once, until
    /// they can be written again.
    pub(crate) fn save(&self, figures: Figures) {
        let mut written = self.written();
        if written.is_closed || (written.figures == figures && !written.has_failed) {
            return;
        }
        let replaced = figures.to_text().and_then(|text| self.replace(&text));
        match &replaced {
            Ok(()) if written.has_failed => {
                tracing::info!("the figures of the status page are saved again");
            }
            Err(error) if !written.has_failed => {
                let file = self.path.display();
                tracing::warn!(%error, %file, "the figures of the status page cannot be saved");
            }
            _ => {}
        }
        written.has_failed = replaced.is_err();
        written.figures = figures;
    }

    /// Leaves the file to the next gateway.
    pub(crate) fn close(&self) {
        self.written().is_closed = true;
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        // What is not written is written the next time.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the file whole: a crash leaves the old one or the new one.
    fn replace(&self, text: &str) -> io::Result<()> {
        let unfinished = self.path.with_extension("unfinished");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&unfinished).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        let replaced = written.and_then(|()| fs::rename(&unfinished, &self.path));
        if replaced.is_err() {
            // It may be what fills the disk.
            let _ = fs::remove_file(&unfinished);
        }
        replaced
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::tests::Scratch;

    fn figures() -> Figures {
        let periods = BTreeMap::from([("refused per day from 1".to_owned(), 3)]);
        let callers = BTreeSet::from(["ann".to_owned()]);
        let stats = Some(stats::Stats::new().kept());
        Figures { stats, callers, periods, alerts_sent: 2, ..Figures::default() }
    }

    /// What a gateway finds in a file with this content, and whether the file was set aside.
    fn read(dir: &Path, content: &[u8]) -> (Figures, bool) {
        fs::create_dir_all(dir).unwrap();
        let aside = dir.join("figures.aside");
        let _ = fs::remove_file(&aside);
        fs::write(dir.join("figures"), content).unwrap();
        let found = FiguresFile::open(dir).earlier().clone();
        (found, fs::read(&aside).is_ok_and(|kept| kept == content))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

        #[test]
        fn a_damaged_file_is_set_aside_and_counting_begins_anew(
            at in any::<prop::sample::Index>(), with in prop::option::of(any::<u8>()),
        ) {
            let scratch = Scratch::new("damaged-figures");
            let mut content = figures().to_text().unwrap().into_bytes();
            let at = at.index(content.len());
            match with {
                Some(byte) => {
                    prop_assume!(content[at] != byte);
                    content[at] = byte;
                }
                None => content.truncate(at),
            }
            prop_assert_eq!(read(scratch.path(), &content), (Figures::default(), true));
        }
    }

    #[test]
    fn a_file_of_another_version_is_set_aside() {
        let scratch = Scratch::new("other-figures");
        let figures = figures();
        let text = figures.to_text().unwrap();
        assert_eq!(read(scratch.path(), text.as_bytes()), (figures, false));
        let body = text.split_once('\n').unwrap().1.replace("alerts_sent", "alerts_gone");
        for other in [
            text.replacen("figures 1 ", "figures 2 ", 1),
            format!("{HEAD}{}\n{body}", digest(&body)),
        ] {
            assert_eq!(
                read(scratch.path(), other.as_bytes()),
                (Figures::default(), true),
                "{other}"
            );
        }
    }

    #[test]
    fn nothing_is_written_where_nothing_changed_or_another_gateway_may_have_the_directory() {
        let scratch = Scratch::new("same-figures");
        fs::create_dir_all(scratch.path()).unwrap();
        let (file, path) = (FiguresFile::open(scratch.path()), scratch.path().join("figures"));
        let figures = figures();
        file.save(figures.clone());
        fs::remove_file(&path).unwrap();
        file.save(figures.clone());
        assert!(!path.exists());
        let more = Figures { alerts_failed: 1, ..figures.clone() };
        file.save(more.clone());
        assert_eq!(FiguresFile::open(scratch.path()).earlier(), &more);
        file.close();
        file.save(figures);
        assert_eq!(FiguresFile::open(scratch.path()).earlier(), &more);
    }

    // A count of yesterday, or of a cap's earlier period, would be added to one of today.
    #[test]
    fn a_count_of_a_period_is_added_to_the_same_period_only() {
        let mut status = Status::new(stats::Stats::new().report());
        let limit =
            QuotaLimit { dimension: "rpd", limit: 9, used: 2, reserved: 0, resets_in_seconds: 1 };
        status.callers.push(crate::status::Caller {
            name: "ann".to_owned(),
            requests_in_flight: 0,
            limits: vec![limit],
            spending: Vec::new(),
        });
        let kept = || stats::Stats::new().kept();
        let earlier = Figures::new(&mut status, kept(), &Figures::default());
        let used = |status: &Status| status.callers[0].limits[0].used;
        let mut same_day = status.clone();
        earlier.add_to(&mut same_day);
        assert_eq!(used(&same_day), 4);
        let mut next_day = status.clone();
        next_day.report.at_unix_seconds += 86_400;
        earlier.add_to(&mut next_day);
        assert_eq!(used(&next_day), 2);
        let later = Figures::new(&mut next_day, kept(), &earlier);
        assert_eq!(later.periods.len(), 1, "ended periods leave the file: {later:?}");
    }
}
