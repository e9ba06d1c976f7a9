//! Owns what each unfinished resource waits for, counted for all of them together.
//! Never decides anything; the status is read for those who look at the metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use jiff::Timestamp;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{self, ConditionType, Reason},
};

use crate::metric_labels::Tenant;

/// What an unfinished resource waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaitsFor {
    /// Its first look, or a turn that comes within seconds.
    New,
    /// `spec.suspend` to be false.
    Suspended,
    /// Its turn within the rate limit.
    Budget,
    /// Credentials that can be used.
    Credentials,
    /// An endpoint that is allowed.
    Endpoint,
    /// The answer to its stop request.
    Answer,
    /// What became of its stop request, which is found out by reading.
    Outcome,
    /// Another attempt, since the API is unavailable or did not carry out the request.
    Retry,
    /// The end of the run.
    RunEnd,
}

impl WaitsFor {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::New,
        Self::Suspended,
        Self::Budget,
        Self::Credentials,
        Self::Endpoint,
        Self::Answer,
        Self::Outcome,
        Self::Retry,
        Self::RunEnd,
    ];

    /// As it stands in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Suspended => "suspended",
            Self::Budget => "budget",
            Self::Credentials => "credentials",
            Self::Endpoint => "endpoint",
            Self::Answer => "answer",
            Self::Outcome => "outcome",
            Self::Retry => "retry",
            Self::RunEnd => "run_end",
        }
    }

    /// What a resource waits for, as its status tells.
    pub fn of(resource: &WorkflowRunStop) -> Self {
        if resource.accepted_time().is_some() {
            return Self::RunEnd;
        }
        if let Some(claim) = resource.claim() {
            return if claim.ended.is_none() { Self::Answer } else { Self::Outcome };
        }
        let status = resource.status.as_ref();
        let ready = status.and_then(|status| conditions::find(&status.conditions, ConditionType::Ready));
        match ready.and_then(Reason::of) {
            Some(Reason::Suspended) => Self::Suspended,
            Some(Reason::WaitingForBudget | Reason::RateLimited) => Self::Budget,
            Some(Reason::CredentialsMissing | Reason::Unauthorized | Reason::Forbidden) => Self::Credentials,
            Some(Reason::EndpointNotAllowed) => Self::Endpoint,
            Some(Reason::Unavailable | Reason::Unreachable | Reason::Conflict | Reason::UnexpectedAnswer) => {
                Self::Retry
            }
            Some(Reason::OutcomeUnknown) => Self::Outcome,
            // The others speak of a request, or of an end.
            Some(
                Reason::StopRequested
                | Reason::StopAccepted
                | Reason::ConfirmedByRead
                | Reason::FollowingRun
                | Reason::RunStopped
                | Reason::RunEndedOtherwise
                | Reason::RunStillActive
                | Reason::RunUnreadable
                | Reason::Expired
                | Reason::RunNotFound
                | Reason::Rejected
                | Reason::DeadlineExceeded,
            )
            | None => Self::New,
        }
    }
}

/// The unfinished resources of one tenant that wait for the same, the oldest first.
type Row = BTreeSet<(Timestamp, u64)>;

/// What all unfinished resources wait for.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<Mutex<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<(Tenant, WaitsFor), Row>,
    next_id: u64,
}

/// How many resources of a tenant wait for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogCount {
    /// Whose they are.
    pub tenant: Tenant,
    /// What they wait for.
    pub waits_for: WaitsFor,
    /// How many there are.
    pub count: usize,
    /// When the oldest one was created.
    pub oldest: Option<Timestamp>,
}

impl Backlog {
    /// Counts a resource from now on, until what is returned is dropped.
    pub fn enter(&self, tenant: Tenant, resource: &WorkflowRunStop) -> BacklogEntry {
        let mut backlog = self.lock();
        backlog.next_id += 1;
        let place = (resource.created(), backlog.next_id);
        // A row that is there from the start shows its first resource.
        for waits_for in WaitsFor::ALL {
            backlog.rows.entry((tenant.clone(), waits_for)).or_default();
        }
        let key = (tenant, WaitsFor::of(resource));
        backlog.rows.entry(key.clone()).or_default().insert(place);
        BacklogEntry { backlog: self.clone(), key, place }
    }

    /// All that was ever waited for, with how many do so now.
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
    place: (Timestamp, u64),
}

impl BacklogEntry {
    /// What the resource waits for.
    pub fn waits_for(&self) -> WaitsFor {
        self.key.1
    }

    /// Counts the resource where its status says that it is now.
    pub fn update(&mut self, resource: &WorkflowRunStop) {
        let waits_for = WaitsFor::of(resource);
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
    fn leave(&mut self, key: &(Tenant, WaitsFor), place: (Timestamp, u64)) {
        if let Some(row) = self.rows.get_mut(key) {
            row.remove(&place);
        }
    }
}
