//! Owns the backlog: how many unfinished resources of each tenant wait for what.
//! Never decides anything; it reads the status for the metrics only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use workflow_run_stop_api::conditions::{Reason, WaitsFor};

use crate::metric_labels::Tenant;
use crate::reconcile::facts::Facts;

/// Returns what a resource waits for according to its status.
fn waits_for(facts: &Facts) -> WaitsFor {
    if facts.accepted().is_some() {
        return WaitsFor::RunEnd;
    }
    if let Some(claim) = facts.claim() {
        return if claim.ended.is_none() { WaitsFor::Answer } else { WaitsFor::Outcome };
    }
    facts.ready.and_then(Reason::waits_for).unwrap_or(WaitsFor::New)
}

/// The unfinished resources of one tenant that wait for the same cause, the oldest first.
type Row = BTreeSet<(i64, u64)>;

/// The backlog of all tenants.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<Mutex<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<(Tenant, WaitsFor), Row>,
    next_id: u64,
}

/// The number of resources of one tenant that wait for one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogCount {
    /// The tenant.
    pub tenant: Tenant,
    /// The cause.
    pub waits_for: WaitsFor,
    /// The number of resources.
    pub count: usize,
    /// The creation time of the oldest, in seconds since the Unix epoch.
    pub oldest: Option<i64>,
}

impl Backlog {
    /// Counts a resource until the returned entry is dropped.
    pub fn enter(&self, tenant: Tenant, facts: &Facts) -> BacklogEntry {
        let mut backlog = self.lock();
        backlog.next_id += 1;
        let place = (facts.created_second(), backlog.next_id);
        // All rows of the tenant exist from now on with the value 0, so that the first increase is visible in the
        // metrics.
        for waits_for in WaitsFor::ALL {
            backlog.rows.entry((tenant.clone(), waits_for)).or_default();
        }
        let key = (tenant, waits_for(facts));
        backlog.rows.entry(key.clone()).or_default().insert(place);
        BacklogEntry { backlog: self.clone(), key, place }
    }

    /// Returns the current counts of every tenant that had a resource since the start, also those that are 0.
    pub fn waiting(&self) -> Vec<BacklogCount> {
        let backlog = self.lock();
        let rows = backlog.rows.iter().map(|((tenant, waits_for), row)| BacklogCount {
            tenant: tenant.clone(),
            waits_for: *waits_for,
            count: row.len(),
            oldest: row.first().map(|(created, _)| *created),
        });
        rows.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// One resource that is counted.
#[derive(Debug)]
pub struct BacklogEntry {
    backlog: Backlog,
    key: (Tenant, WaitsFor),
    place: (i64, u64),
}

impl BacklogEntry {
    /// Moves the resource to the count that matches its status.
    pub fn update(&mut self, facts: &Facts) {
        let waits_for = waits_for(facts);
        if waits_for != self.key.1 {
            let mut backlog = self.backlog.lock();
            backlog.leave(&self.key, self.place);
            self.key.1 = waits_for;
            backlog.rows.entry(self.key.clone()).or_default().insert(self.place);
        }
    }
}

impl Drop for BacklogEntry {
    fn drop(&mut self) {
        self.backlog.lock().leave(&self.key, self.place);
    }
}

impl Rows {
    fn leave(&mut self, key: &(Tenant, WaitsFor), place: (i64, u64)) {
        if let Some(row) = self.rows.get_mut(key) {
            row.remove(&place);
        }
    }
}
