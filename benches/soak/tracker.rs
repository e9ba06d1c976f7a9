//! Owns the stops that were applied, and checks their results against the promises.
//! Never keeps a stop after its check, only the id of its run; the simulator keeps the effects of its requests.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use lab::simulator::Simulator;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason, find},
};

/// The scenario of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The resource stays until this program has checked it.
    Plain,
    /// The operator deletes the resource 5 s after it finished.
    Ttl,
    /// The run is stopping for a while after the request.
    Followed,
    /// The follow timeout is 0.
    NotFollowed,
    /// The resource is suspended, and resumed later.
    Resumed,
    /// The resource stays suspended.
    Suspended,
    /// The resource is deleted, possibly during a request.
    Deleted,
    /// The resource is deleted, and recreated with the same name for another run.
    Recreated,
    /// The run does not exist.
    UnknownRun,
    /// Reads of the run fail with 403.
    UnreadableRun,
    /// The run ends on its own.
    EndsOnItsOwn,
    /// The deadline is 5 s.
    ShortDeadline,
}

impl Scenario {
    /// All scenarios with their weights.
    pub const WEIGHTS: [(Self, u32); 12] = [
        (Self::Plain, 22),
        (Self::Ttl, 25),
        (Self::Followed, 15),
        (Self::NotFollowed, 5),
        (Self::Resumed, 6),
        (Self::Suspended, 2),
        (Self::Deleted, 7),
        (Self::Recreated, 6),
        (Self::UnknownRun, 2),
        (Self::UnreadableRun, 3),
        (Self::EndsOnItsOwn, 4),
        (Self::ShortDeadline, 3),
    ];

    /// Returns whether the operator deletes the resource after its TTL.
    pub fn has_ttl(self) -> bool {
        matches!(self, Self::Ttl | Self::Followed | Self::ShortDeadline)
    }

    /// Returns the reasons with which the stop may fail.
    fn allowed_failures(self) -> &'static [Reason] {
        match self {
            Self::UnknownRun => &[Reason::RunNotFound, Reason::OutcomeUnknown],
            Self::UnreadableRun => &[Reason::OutcomeUnknown],
            Self::ShortDeadline => &[Reason::DeadlineExceeded],
            Self::Plain
            | Self::Ttl
            | Self::Followed
            | Self::NotFollowed
            | Self::Resumed
            | Self::Suspended
            | Self::Deleted
            | Self::Recreated
            | Self::EndsOnItsOwn => &[],
        }
    }
}

/// A stop that is not checked yet.
#[derive(Clone, Debug)]
pub struct TrackedStop {
    pub scenario: Scenario,
    pub tenant: &'static str,
    pub run: String,
}

/// All stops of this run of the program.
#[derive(Default)]
pub struct Tracker(Mutex<State>);

#[derive(Default)]
pub struct State {
    /// The stops that are not checked yet, by uid.
    pub open: HashMap<String, TrackedStop>,
    /// The ids of all runs with a stop.
    pub runs: Vec<String>,
    /// Number of finished stops by reason.
    pub reasons: BTreeMap<String, usize>,
    /// Descriptions of broken promises.
    pub violations: Vec<String>,
}

impl Tracker {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Records a broken promise.
    pub fn record_violation(&self, description: impl Into<String>) {
        self.lock().violations.push(description.into());
    }

    /// Checks a stop that has finished, or that the operator deleted after it had.
    pub fn check(&self, uid: &str, stop: Option<&WorkflowRunStop>, amperity: &Simulator) {
        let Some(tracked) = self.lock().open.remove(uid) else { return };
        let (reason, violations) = match stop {
            Some(stop) => check_finished(&tracked, stop, amperity),
            None => check_deleted(&tracked, amperity),
        };
        let mut state = self.lock();
        *state.reasons.entry(reason).or_default() += 1;
        let described = violations.into_iter().map(|violation| format!("{}: {violation}; {tracked:?}", tracked.run));
        state.violations.extend(described);
    }

    /// Checks for all runs, also of stops that were checked long ago, that no stop request follows one that took effect.
    pub fn check_requests(&self, amperity: &Simulator) -> Requests {
        let mut state = self.lock();
        let mut requests = Requests::default();
        let mut violations = vec![];
        for run in &state.runs {
            let effects = amperity.stop_effects(run);
            if effects.iter().rev().skip(1).any(|effect| *effect) {
                violations.push(format!("{run}: a stop request was sent after one that took effect: {effects:?}"));
            }
            requests.stops += effects.len();
            requests.effects += effects.iter().filter(|effect| **effect).count();
            requests.max_per_run = requests.max_per_run.max(effects.len());
        }
        violations.retain(|violation| !state.violations.contains(violation));
        state.violations.extend(violations);
        requests
    }
}

/// Number of stop requests that arrived at the simulator.
#[derive(Default)]
pub struct Requests {
    pub stops: usize,
    pub effects: usize,
    /// The largest number of stop requests for one run.
    pub max_per_run: usize,
}

/// Returns the reason of a finished stop, and the violations.
fn check_finished(tracked: &TrackedStop, stop: &WorkflowRunStop, amperity: &Simulator) -> (String, Vec<String>) {
    let mut violations = vec![];
    let conditions = stop.status.as_ref().map(|status| &status.conditions[..]).unwrap_or_default();
    let Some(ready) = find(conditions, ConditionType::Ready) else {
        return ("none".to_owned(), vec!["finished without the condition Ready".to_owned()]);
    };
    let reason = ready.reason.clone();
    if stop.claim().is_some() && reason != Reason::OutcomeUnknown.as_str() {
        violations.push(format!("finished with reason {reason} and a claim"));
    }
    if ready.status == ConditionStatus::True.as_str() {
        violations.extend(run_violation(tracked, amperity));
    } else if !tracked.scenario.allowed_failures().iter().any(|allowed| allowed.as_str() == reason) {
        violations.push(format!("finished with reason {reason}: {}", ready.message));
    }
    (reason, violations)
}

/// Returns a label in place of the reason, and the violations.
fn check_deleted(tracked: &TrackedStop, amperity: &Simulator) -> (String, Vec<String>) {
    let violation = if tracked.scenario.has_ttl() {
        // With a short deadline the stop may have failed.
        run_violation(tracked, amperity).filter(|_| tracked.scenario != Scenario::ShortDeadline)
    } else {
        Some("the resource was deleted unexpectedly".to_owned())
    };
    ("(deleted by TTL before the check)".to_owned(), violation.into_iter().collect())
}

/// Returns the violation if the run is still running, or if no stop request ended it.
fn run_violation(tracked: &TrackedStop, amperity: &Simulator) -> Option<String> {
    let state = amperity.state(tracked.tenant, &tracked.run);
    let effects = amperity.stop_effects(&tracked.run);
    let on_its_own = tracked.scenario == Scenario::EndsOnItsOwn;
    match state.as_deref() {
        None | Some("running") => {
            Some(format!("the stop succeeded, but the run is {state:?}; effects of its requests: {effects:?}"))
        }
        Some(_) if !on_its_own && !effects.contains(&true) => Some(format!("no stop request took effect: {effects:?}")),
        Some(_) => None,
    }
}
