//! The FIFO wait queue: who waits, in which order, and whom to wake. Pure: it has no lock, no clock
//! and no timer.

use std::collections::VecDeque;
use std::task::Waker;

/// A queue of waiting calls, each with what it asks for.
#[derive(Debug)]
pub(crate) struct WaitQueue<T> {
    entries: VecDeque<QueueEntry<T>>,
    next_ticket: u64,
}

#[derive(Debug)]
struct QueueEntry<T> {
    ticket: u64,
    ask: T,
    waker: Option<Waker>,
}

impl<T> WaitQueue<T> {
    pub(crate) fn new() -> Self {
        Self { entries: VecDeque::new(), next_ticket: 0 }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What each asks for, first come first.
    pub(crate) fn asks(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|entry| &entry.ask)
    }

    /// Joins at the end and returns the ticket of the new entry.
    pub(crate) fn join(&mut self, ask: T) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.entries.push_back(QueueEntry { ticket, ask, waker: None });
        ticket
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        // Tickets only grow, so the queue is in their order.
        self.entries.binary_search_by_key(&ticket, |entry| entry.ticket).ok()
    }

    /// What the entry asks for, if it is the first.
    pub(crate) fn if_first(&self, ticket: u64) -> Option<&T> {
        self.entries.front().filter(|first| first.ticket == ticket).map(|first| &first.ask)
    }

    /// Remembers whom to wake when this entry's turn may have come.
    pub(crate) fn park(&mut self, ticket: u64, waker: &Waker) {
        if let Some(entry) = self.position(ticket).and_then(|at| self.entries.get_mut(at)) {
            entry.waker = Some(waker.clone());
        }
    }

    /// Removes an entry, served or given up. `false` if it was not there.
    pub(crate) fn leave(&mut self, ticket: u64) -> bool {
        self.position(ticket).is_some_and(|at| self.entries.remove(at).is_some())
    }

    /// Takes the waker of the first entry. Call it after the lock is released: a waker may run its
    /// task at once, on this thread.
    #[must_use]
    pub(crate) fn first_waker(&mut self) -> Option<Waker> {
        self.entries.front_mut().and_then(|first| first.waker.take())
    }
}

/// Wakes, where there is somebody to wake.
pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
