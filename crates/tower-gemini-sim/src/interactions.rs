//! Interactions that the server has stored, to be fetched by their ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::lock;

/// An event of a stream, ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) bytes: Vec<Bytes>,
}

/// One interaction in all its forms.
#[derive(Debug, Clone)]
pub(crate) struct Interaction {
    /// When it ends, by the simulator's clock.
    pub(crate) ends_at: Duration,
    pub(crate) running: Vec<Bytes>,
    pub(crate) cancelled: Vec<Bytes>,
    pub(crate) whole: Vec<Bytes>,
    pub(crate) events: Vec<Event>,
    pub(crate) is_cancelled: bool,
}

impl Interaction {
    /// What it is at this moment.
    pub(crate) fn document(&self, now: Duration) -> Vec<Bytes> {
        match () {
            () if self.is_cancelled => self.cancelled.clone(),
            () if now < self.ends_at => self.running.clone(),
            () => self.whole.clone(),
        }
    }

    /// Its events behind this one; `None` where there is no such event.
    pub(crate) fn events_after(&self, event: Option<&str>) -> Option<Vec<Bytes>> {
        let skipped = match event {
            Some(id) => self.events.iter().position(|event| event.id == id)? + 1,
            None => 0,
        };
        Some(self.events.iter().skip(skipped).flat_map(|event| event.bytes.clone()).collect())
    }
}

/// All of them, by project and id.
#[derive(Debug, Default)]
pub(crate) struct Interactions(Mutex<HashMap<(Arc<str>, String), Interaction>>);

impl Interactions {
    pub(crate) fn store(&self, project: Arc<str>, id: String, interaction: Interaction) {
        lock(&self.0).insert((project, id), interaction);
    }

    pub(crate) fn get(&self, project: &Arc<str>, id: &str) -> Option<Interaction> {
        lock(&self.0).get(&(project.clone(), id.to_owned())).cloned()
    }

    /// Cancels one that has not ended at `now`, and returns what it is then.
    pub(crate) fn cancel(
        &self,
        project: &Arc<str>,
        id: &str,
        now: Duration,
    ) -> Option<Interaction> {
        let mut all = lock(&self.0);
        let interaction = all.get_mut(&(project.clone(), id.to_owned()))?;
        interaction.is_cancelled |= now < interaction.ends_at;
        Some(interaction.clone())
    }
}
