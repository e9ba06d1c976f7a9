//! Owns the record of every request that arrived, and wakes those who wait for it to change.
//! Never holds its lock while a test's code runs: a predicate may ask the simulator anything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

/// What a request asked for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// `POST …/workflow/runs/{id}/stop`.
    Stop,
    /// `GET …/workflow/runs/{id}`.
    Read,
    /// `POST …/oauth2/token`.
    Token,
    /// Everything else, a known path with a wrong method included.
    Other,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// When its head had arrived.
    pub at: Instant,
    /// The same by the wall clock.
    pub wall: SystemTime,
    /// What it asked for.
    pub kind: Kind,
    /// Its method.
    pub method: String,
    /// Its path, with the query.
    pub path: String,
    /// The header `amperity-tenant` (`x-amperity-tenant` where a token is asked for).
    pub tenant: Option<String>,
    /// The run in its path.
    pub run_id: Option<String>,
    /// Its headers, the names in lower case.
    pub headers: HashMap<String, String>,
    /// Its body; empty until it has arrived.
    pub body: String,
    /// The status that was handed to a connection which still stood.
    pub answered: Option<u16>,
    /// Whether it is a stop that reached a run which was active or stopping.
    pub effect: bool,
}

impl Recorded {
    /// The value of a header; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// A parameter of the query, not decoded.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.path.split_once('?')?;
        query.split('&').filter_map(|pair| pair.split_once('=')).find_map(|(key, value)| (key == name).then_some(value))
    }
}

/// Where a request stands in the journal, forgotten ones counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    of_all: usize,
    /// Among the stops of its run, where it is one.
    of_run: usize,
}

#[derive(Debug)]
pub(super) struct Journal {
    pages: Mutex<Pages>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Pages {
    /// Shared with those who look at it, so that looking needs neither a copy nor the lock.
    records: Arc<Vec<Recorded>>,
    forgotten: usize,
    /// Counted apart from the records: a stop that arrived before `forget` may take effect after it.
    effects: HashMap<String, usize>,
    /// Whether each stop of a run took effect, in order of arrival. Never forgotten: a run is judged by all its stops.
    stops: HashMap<String, Vec<bool>>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Journal { pages: Mutex::default(), changed: watch::Sender::new(()) }
    }

    pub(super) fn note(&self, request: Recorded) -> Entry {
        let mut pages = self.pages();
        let mut entry = Entry { of_all: pages.forgotten + pages.records.len(), of_run: 0 };
        if let (Kind::Stop, Some(run_id)) = (request.kind, &request.run_id) {
            let stops = pages.stops.entry(run_id.clone()).or_default();
            entry.of_run = stops.len();
            stops.push(false);
        }
        Arc::make_mut(&mut pages.records).push(request);
        drop(pages);
        self.changed.send_replace(());
        entry
    }

    pub(super) fn amend(&self, entry: Entry, change: impl FnOnce(&mut Recorded)) {
        let mut pages = self.pages();
        if let Some(index) = entry.of_all.checked_sub(pages.forgotten)
            && let Some(record) = Arc::make_mut(&mut pages.records).get_mut(index)
        {
            change(record);
        }
        drop(pages);
        self.changed.send_replace(());
    }

    pub(super) fn effect(&self, entry: Entry, run_id: &str) {
        let mut pages = self.pages();
        *pages.effects.entry(run_id.to_owned()).or_default() += 1;
        if let Some(took) = pages.stops.get_mut(run_id).and_then(|stops| stops.get_mut(entry.of_run)) {
            *took = true;
        }
        drop(pages);
        self.amend(entry, |record| record.effect = true);
    }

    pub(super) fn effects(&self, run_id: &str) -> usize {
        self.pages().effects.get(run_id).copied().unwrap_or(0)
    }

    pub(super) fn stops(&self, run_id: &str) -> Vec<bool> {
        self.pages().stops.get(run_id).cloned().unwrap_or_default()
    }

    pub(super) fn records(&self) -> Arc<Vec<Recorded>> {
        Arc::clone(&self.pages().records)
    }

    pub(super) fn forget(&self) {
        let mut pages = self.pages();
        pages.forgotten += pages.records.len();
        pages.records = Arc::default();
        pages.effects.clear();
        drop(pages);
        self.changed.send_replace(());
    }

    pub(super) async fn wait_until(&self, mut enough: impl FnMut(&[Recorded]) -> bool) {
        let mut changes = self.changed.subscribe();
        loop {
            if enough(&self.records()) {
                return;
            }
            changes.changed().await.expect("the journal, which is borrowed, holds the sender");
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // A test that panicked elsewhere must not hide its own message behind a poisoned lock.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The largest number of these instants within any one second. Two that are exactly a second apart are not.
pub(super) fn max_in_any_second(mut instants: Vec<Instant>) -> usize {
    instants.sort_unstable();
    let mut first = 0;
    let mut most = 0;
    for (last, at) in instants.iter().enumerate() {
        while instants[first] + Duration::from_secs(1) <= *at {
            first += 1;
        }
        most = most.max(last - first + 1);
    }
    most
}
