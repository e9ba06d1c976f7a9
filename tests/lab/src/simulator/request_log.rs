//! Owns the recorded requests, and notifies waiting tests of changes.
//! Never holds its lock while a test's code runs: a condition may use the simulator.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

/// The kind of a request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// `POST …/workflow/runs/{id}/stop`.
    Stop,
    /// `GET …/workflow/runs/{id}`.
    Read,
    /// `POST …/oauth2/token`.
    Token,
    /// Everything else, including a known path with a wrong method.
    Other,
}

/// A recorded request.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// Arrival time of its head.
    pub at: Instant,
    /// Arrival time by the wall clock.
    pub wall: SystemTime,
    /// Kind of the request.
    pub kind: Kind,
    /// HTTP method.
    pub method: String,
    /// Path with the query.
    pub path: String,
    /// Header `amperity-tenant` (`x-amperity-tenant` of a token request).
    pub tenant: Option<String>,
    /// Run id in the path.
    pub run_id: Option<String>,
    /// Headers, the names in lower case.
    pub headers: HashMap<String, String>,
    /// Body; empty until it has arrived.
    pub body: String,
    /// Status code of the response; `None` if there was none or the client had disconnected.
    pub response_status: Option<u16>,
    /// Whether it is a stop that reached a run while it was active or stopping.
    pub effect: bool,
}

impl RecordedRequest {
    /// Returns the value of a header; the name is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Returns a query parameter, not decoded.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.path.split_once('?')?;
        query.split('&').filter_map(|pair| pair.split_once('=')).find_map(|(key, value)| (key == name).then_some(value))
    }
}

/// The position of a request in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryId {
    /// Among all requests, cleared ones included.
    overall: usize,
    /// Among the stops of its run; 0 for other requests.
    among_stops: usize,
}

#[derive(Debug)]
pub(super) struct RequestLog {
    entries: Mutex<Entries>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Entries {
    /// Shared with readers, so that reading needs neither a copy nor the lock.
    records: Arc<Vec<RecordedRequest>>,
    /// Number of cleared records.
    cleared: usize,
    /// Not derived from the records: a stop that arrived before `clear` may take effect after it.
    effects: HashMap<String, usize>,
    /// Whether each stop of a run took effect, in order of arrival. Never cleared.
    stops: HashMap<String, Vec<bool>>,
}

impl RequestLog {
    pub(super) fn new() -> Self {
        RequestLog { entries: Mutex::default(), changed: watch::Sender::new(()) }
    }

    pub(super) fn add(&self, request: RecordedRequest) -> EntryId {
        let mut entries = self.entries();
        let mut entry = EntryId { overall: entries.cleared + entries.records.len(), among_stops: 0 };
        if let (Kind::Stop, Some(run_id)) = (request.kind, &request.run_id) {
            let stops = entries.stops.entry(run_id.clone()).or_default();
            entry.among_stops = stops.len();
            stops.push(false);
        }
        Arc::make_mut(&mut entries.records).push(request);
        drop(entries);
        self.changed.send_replace(());
        entry
    }

    pub(super) fn update(&self, entry: EntryId, change: impl FnOnce(&mut RecordedRequest)) {
        let mut entries = self.entries();
        if let Some(index) = entry.overall.checked_sub(entries.cleared)
            && let Some(record) = Arc::make_mut(&mut entries.records).get_mut(index)
        {
            change(record);
        }
        drop(entries);
        self.changed.send_replace(());
    }

    pub(super) fn record_effect(&self, entry: EntryId, run_id: &str) {
        let mut entries = self.entries();
        *entries.effects.entry(run_id.to_owned()).or_default() += 1;
        if let Some(took) = entries.stops.get_mut(run_id).and_then(|stops| stops.get_mut(entry.among_stops)) {
            *took = true;
        }
        drop(entries);
        self.update(entry, |record| record.effect = true);
    }

    pub(super) fn effects(&self, run_id: &str) -> usize {
        self.entries().effects.get(run_id).copied().unwrap_or(0)
    }

    pub(super) fn stops(&self, run_id: &str) -> Vec<bool> {
        self.entries().stops.get(run_id).cloned().unwrap_or_default()
    }

    pub(super) fn records(&self) -> Arc<Vec<RecordedRequest>> {
        Arc::clone(&self.entries().records)
    }

    pub(super) fn clear(&self) {
        let mut entries = self.entries();
        entries.cleared += entries.records.len();
        entries.records = Arc::default();
        entries.effects.clear();
        drop(entries);
        self.changed.send_replace(());
    }

    pub(super) async fn wait_until(&self, mut condition: impl FnMut(&[RecordedRequest]) -> bool) {
        let mut changes = self.changed.subscribe();
        loop {
            if condition(&self.records()) {
                return;
            }
            changes.changed().await.expect("the sender lives as long as self");
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // A poisoned lock must not hide the message of the test that panicked.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the largest number of these instants within one second. Two instants exactly a second apart do not count as
/// within it.
pub(super) fn max_in_any_second(mut instants: Vec<Instant>) -> usize {
    instants.sort_unstable();
    let mut first = 0;
    let mut max = 0;
    for (last, at) in instants.iter().enumerate() {
        while instants[first] + Duration::from_secs(1) <= *at {
            first += 1;
        }
        max = max.max(last - first + 1);
    }
    max
}
