//! Calls that their callers gave a name.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::course::Course;
use super::files::{Record, Written, remove_file};
use super::identity::Identity;
use super::store::Answer;

/// A call that its caller gave a name.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) request: Identity,
    pub(super) result: watch::Receiver<NamedResult>,
    /// Told by each who stops waiting for it.
    pub(super) left: Arc<Notify>,
    under_way: Option<Course>,
}

/// What became of it.
#[derive(Debug, Clone)]
pub(super) enum NamedResult {
    UnderWay,
    /// Everybody who asks gets it.
    Answer(Arc<Answer>),
    /// It was or may have been paid for, and there is no answer. What stands in its place says
    /// since when.
    Lost(Arc<Answer>),
    /// It cost nothing: who still wants it may send it.
    Free,
}

/// Where the task of a named call tells what became of it. Dropped without a word (the task
/// panicked, or its runtime ended), it says that the call is lost.
#[derive(Debug)]
pub(super) struct Report {
    result: watch::Sender<NamedResult>,
    pub(super) left: Arc<Notify>,
    pub(super) course: Course,
}

impl Report {
    /// Everybody who asks gets it, and it is given back for who asked first.
    pub(super) fn answer(&self, answer: Answer) -> Arc<Answer> {
        let answer = Arc::new(Answer { record: self.course.record.clone(), ..answer });
        self.result.send_replace(NamedResult::Answer(answer.clone()));
        answer
    }

    /// There is no answer. Where nothing of it can have been paid for, who still wants it may send
    /// it.
    pub(super) fn none(&self, last_was_free: bool) {
        if last_was_free && !self.course.was_out_before() {
            remove_file(&self.course.record);
            self.result.send_replace(NamedResult::Free);
        } else {
            self.result.send_replace(NamedResult::Lost(self.loss()));
        }
    }

    fn loss(&self) -> Arc<Answer> {
        Arc::new(Answer::lost_at(Instant::now(), &self.course.record))
    }

    /// Whether nobody waits for it: the one receiver left is the registry's own.
    pub(super) fn is_unheard(&self) -> bool {
        self.result.receiver_count() <= 1
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.result.send_if_modified(|result| {
            let untold = matches!(result, NamedResult::UnderWay);
            if untold {
                *result = NamedResult::Lost(self.loss());
            }
            untold
        });
    }
}

impl Named {
    /// One that is over. Nobody tells anything of it any more; what is known stays to be read.
    fn done(request: Identity, result: NamedResult) -> Self {
        let (_, result) = watch::channel(result);
        Self { request, result, left: Arc::default(), under_way: None }
    }

    fn answer(&self) -> Option<Arc<Answer>> {
        match &*self.result.borrow() {
            NamedResult::Answer(answer) => Some(answer.clone()),
            _ => None,
        }
    }
}

/// All of them, by their names.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<Identity, Named>);

impl Names {
    /// The call of this name: the one that is under way or done, or a new one, to be reported on.
    pub(super) fn claim(
        &mut self,
        name: Identity,
        request: Identity,
        course: Course,
    ) -> Result<Report, Named> {
        match self.0.entry(name) {
            Entry::Occupied(entry)
                if !matches!(*entry.get().result.borrow(), NamedResult::Free) =>
            {
                Err(entry.get().clone())
            }
            entry => {
                let (result, receiver) = watch::channel(NamedResult::UnderWay);
                let left = Arc::new(Notify::new());
                entry.insert_entry(Named {
                    request,
                    result: receiver,
                    left: left.clone(),
                    under_way: Some(course.clone()),
                });
                Ok(Report { result, left, course })
            }
        }
    }

    /// What is done is kept for as long as an answer is, from its end on.
    pub(super) fn forget_old(&mut self, retention: Duration, now: Instant) {
        self.0.retain(|_, named| match &*named.result.borrow() {
            NamedResult::UnderWay => true,
            NamedResult::Answer(answer) | NamedResult::Lost(answer) => {
                let stays = now.saturating_duration_since(answer.at) < retention;
                if !stays {
                    remove_file(&answer.record);
                }
                stays
            }
            NamedResult::Free => false,
        });
    }

    /// Lets the oldest answers go until the rest is within the bound that holds for kept answers
    /// too. What was paid for stays known to be: whoever asks by such a name is told that its
    /// answer is lost, or gets it from where it is written down.
    pub(super) fn trim(&mut self, most: usize) {
        let mut bytes: usize =
            self.0.values().filter_map(Named::answer).map(|answer| answer.bytes).sum();
        while bytes > most {
            let held = self.0.values_mut().filter_map(|named| Some((named.answer()?, named)));
            let Some((oldest, named)) = held.min_by_key(|(answer, _)| answer.at) else { break };
            *named = Named::done(named.request, NamedResult::Lost(oldest.loss()));
            bytes -= oldest.bytes;
        }
    }

    /// What is to outlive the process.
    pub(super) fn written(&self, now: Instant) -> impl Iterator<Item = Written> {
        self.0.iter().filter_map(move |(name, named)| {
            let answer = match &*named.result.borrow() {
                NamedResult::Answer(answer) if answer.is_of_use() => answer.clone(),
                // Without its verdict an error of this process says nothing of the money.
                NamedResult::Answer(answer) => answer.loss(),
                NamedResult::Lost(loss) => loss.clone(),
                NamedResult::UnderWay => match &named.under_way {
                    // The process ends before it does.
                    Some(course) if course.may_have_cost() => {
                        Arc::new(Answer::lost_at(now, &course.record))
                    }
                    _ => return None,
                },
                NamedResult::Free => return None,
            };
            Some(Written { identity: *name, named: Some(named.request), answer })
        })
    }

    /// Where they are written down.
    pub(super) fn records(&self) -> impl Iterator<Item = Arc<Record>> {
        self.0.values().filter_map(|named| match &*named.result.borrow() {
            NamedResult::Answer(answer) | NamedResult::Lost(answer) => Some(answer.record.clone()),
            NamedResult::UnderWay => named.under_way.as_ref().map(|course| course.record.clone()),
            NamedResult::Free => None,
        })
    }

    /// What an earlier process knew of a name. `false` where more is known here.
    pub(super) fn take_in(
        &mut self,
        name: Identity,
        request: Identity,
        answer: Arc<Answer>,
    ) -> bool {
        let lost = answer.is_lost();
        match self.0.entry(name) {
            Entry::Occupied(known)
                if lost || !matches!(*known.get().result.borrow(), NamedResult::Lost(_)) =>
            {
                false
            }
            entry => {
                let result =
                    if lost { NamedResult::Lost(answer) } else { NamedResult::Answer(answer) };
                entry.insert_entry(Named::done(request, result));
                true
            }
        }
    }
}
