//! Owns the events that wait to be written: namespaces take turns, and each gets a share of the queue and of the writes.
//! Never writes an event, and never waits for space: what does not fit is refused.

use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::{Notify, mpsc};

use crate::fair_share::FairShare;
use crate::observe::event_filter::EventDraft;
use crate::turns::Turns;

/// The capacity of the queue. One entry has all events of one step, at most a few KiB.
const MOST_WAITING: usize = 4096;

/// The number of entries that are written concurrently. It is small, since the claims of other stops are more urgent for the
/// API server.
pub const AT_ONCE: usize = 8;

/// Creates an empty queue.
pub fn channel() -> (EventSender, EventQueue) {
    let state = Arc::new(Mutex::new(State {
        waiting: Turns::default(),
        held: FairShare::new(MOST_WAITING),
        writing: FairShare::new(AT_ONCE),
        last: 0,
    }));
    let (wake, woken) = mpsc::channel(1);
    let ended = Arc::new(Notify::new());
    (EventSender { state: state.clone(), wake }, EventQueue { state, woken, ended, closed: false })
}

struct State {
    waiting: Turns<u64, (ObjectReference, Vec<EventDraft>)>,
    /// The entries of each namespace that wait or are being written.
    held: FairShare<Arc<str>>,
    writing: FairShare<Arc<str>>,
    last: u64,
}

/// Adds events to the queue.
#[derive(Clone)]
pub struct EventSender {
    state: Arc<Mutex<State>>,
    wake: mpsc::Sender<()>,
}

impl EventSender {
    /// Adds events of one object. Returns false if its namespace has too many that wait.
    #[must_use]
    pub fn send(&self, about: ObjectReference, drafts: Vec<EventDraft>) -> bool {
        let namespace: Arc<str> = about.namespace.as_deref().unwrap_or_default().into();
        let mut state = lock(&self.state);
        let fits = state.held.take(&namespace, 1);
        if fits {
            state.last += 1;
            let number = state.last;
            state.waiting.push(&namespace, number, (about, drafts));
            // If it is full, the receiver is woken already.
            let _ = self.wake.try_send(());
        }
        fits
    }
}

/// Returns the events in their turn.
pub struct EventQueue {
    state: Arc<Mutex<State>>,
    woken: mpsc::Receiver<()>,
    ended: Arc<Notify>,
    closed: bool,
}

/// The events of one object, and the right to write them, which ends when it is dropped.
pub struct Entry {
    /// The object.
    pub about: ObjectReference,
    /// Its events, in their order.
    pub drafts: Vec<EventDraft>,
    state: Arc<Mutex<State>>,
    ended: Arc<Notify>,
    namespace: Arc<str>,
}

impl EventQueue {
    /// Waits for the next events; `None` if there are none and all senders are dropped.
    pub async fn next(&mut self) -> Option<Entry> {
        loop {
            if let Some(entry) = self.try_next() {
                return Some(entry);
            }
            if self.closed && lock(&self.state).waiting.is_empty() {
                return None;
            }
            tokio::select! {
                () = self.ended.notified() => {}
                woken = self.woken.recv(), if !self.closed => self.closed = woken.is_none(),
            }
        }
    }

    /// Returns the next events that may be written now.
    pub fn try_next(&mut self) -> Option<Entry> {
        let mut state = lock(&self.state);
        let State { waiting, writing, .. } = &mut *state;
        let (namespace, _, (about, drafts)) = waiting.pop(|namespace, _| writing.fits(namespace, 1))?;
        let fits = writing.take(&namespace, 1);
        debug_assert!(fits, "it fitted a moment ago");
        Some(Entry { about, drafts, state: self.state.clone(), ended: self.ended.clone(), namespace })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.writing.give_back(&self.namespace, 1);
        state.held.give_back(&self.namespace, 1);
        self.ended.notify_one();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("nothing panics while it holds this lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(namespace: &str) -> ObjectReference {
        ObjectReference { namespace: Some(namespace.to_owned()), ..ObjectReference::default() }
    }

    fn namespace(entry: &Entry) -> &str {
        entry.about.namespace.as_deref().unwrap()
    }

    #[tokio::test]
    async fn a_namespace_whose_events_hang_delays_those_of_no_other() {
        let (sender, mut queue) = channel();
        let sent = (0..10_000).filter(|_| sender.send(about("hostile"), vec![])).count();
        assert_eq!(sent, MOST_WAITING / 2);
        let hanging: Vec<_> = std::iter::from_fn(|| queue.try_next()).collect();
        assert_eq!(hanging.len(), AT_ONCE / 2);
        assert!(sender.send(about("victim"), vec![]));
        let next = queue.next().await.unwrap();
        assert_eq!(namespace(&next), "victim");
        drop((next, hanging));
        assert_eq!(namespace(&queue.next().await.unwrap()), "hostile");
        assert!(sender.send(about("hostile"), vec![]), "what was written makes room");
    }

    #[tokio::test]
    async fn the_queue_ends_when_all_senders_are_dropped_and_everything_is_taken() {
        let (sender, mut queue) = channel();
        for _ in 0..AT_ONCE {
            assert!(sender.clone().send(about("a"), vec![]));
        }
        drop(sender);
        let mut taken = 0;
        while let Some(entry) = queue.next().await {
            taken += 1;
            drop(entry);
        }
        assert_eq!(taken, AT_ONCE);
    }
}
