//! Owns what is known of every stop that was applied, and holds what is seen of it against the promises.
//! Never keeps a stop that was judged: of its run stay only its name here, and its requests in the simulator.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use lab::simulator::Simulator;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason, find},
};

/// What a stop is to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It stays until this program has judged it.
    Kept,
    /// The operator deletes it soon after it finished.
    Expiring,
    /// Its run goes on for a while after the stop.
    Followed,
    /// Its run is not followed.
    Unfollowed,
    /// It is suspended at first.
    Resumed,
    /// It stays suspended.
    Suspended,
    /// It is deleted while it may be at work.
    Deleted,
    /// It is deleted, and one of its name is created for another run.
    Recreated,
    /// Nobody knows its run.
    Unknown,
    /// Its run cannot be read.
    Sealed,
    /// Its run ends on its own.
    Ending,
    /// It has little time.
    Hurried,
}

impl Kind {
    /// Each kind, and how often it comes among so many.
    pub const SHARES: [(Self, u32); 12] = [
        (Self::Kept, 22),
        (Self::Expiring, 25),
        (Self::Followed, 15),
        (Self::Unfollowed, 5),
        (Self::Resumed, 6),
        (Self::Suspended, 2),
        (Self::Deleted, 7),
        (Self::Recreated, 6),
        (Self::Unknown, 2),
        (Self::Sealed, 3),
        (Self::Ending, 4),
        (Self::Hurried, 3),
    ];

    pub fn expires(self) -> bool {
        matches!(self, Self::Expiring | Self::Followed | Self::Hurried)
    }

    /// The reasons with which such a stop may finish without success.
    fn may_fail_for(self) -> &'static [Reason] {
        match self {
            Self::Unknown => &[Reason::RunNotFound, Reason::OutcomeUnknown],
            Self::Sealed => &[Reason::OutcomeUnknown],
            Self::Hurried => &[Reason::DeadlineExceeded],
            Self::Kept
            | Self::Expiring
            | Self::Followed
            | Self::Unfollowed
            | Self::Resumed
            | Self::Suspended
            | Self::Deleted
            | Self::Recreated
            | Self::Ending => &[],
        }
    }
}

/// One stop.
#[derive(Clone, Debug)]
pub struct Errand {
    pub kind: Kind,
    pub tenant: &'static str,
    pub run: String,
}

/// What is known.
#[derive(Default)]
pub struct Book(Mutex<Pages>);

#[derive(Default)]
pub struct Pages {
    /// The stops that were not judged yet, by uid.
    pub open: HashMap<String, Errand>,
    /// Every run that there was a stop of.
    pub runs: Vec<String>,
    /// How often stops ended for which reason.
    pub endings: BTreeMap<String, usize>,
    /// The promises that were not kept.
    pub broken: Vec<String>,
}

impl Book {
    pub fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap()
    }

    /// Says that a promise was not kept.
    pub fn broken(&self, how: impl Into<String>) {
        self.pages().broken.push(how.into());
    }

    /// Judges a stop that has finished, or that the operator removed when it had.
    pub fn close(&self, uid: &str, stop: Option<&WorkflowRunStop>, amperity: &Simulator) {
        let Some(errand) = self.pages().open.remove(uid) else { return };
        let (ending, faults) = match stop {
            Some(stop) => finished(&errand, stop, amperity),
            None => removed(&errand, amperity),
        };
        let mut pages = self.pages();
        *pages.endings.entry(ending).or_default() += 1;
        pages.broken.extend(faults.into_iter().map(|fault| format!("{}: {fault}; {errand:?}", errand.run)));
    }

    /// Holds every run against the promise that no stop follows one that had its effect, also long after it was judged.
    pub fn once(&self, amperity: &Simulator) -> Requests {
        let mut pages = self.pages();
        let mut requests = Requests::default();
        let mut broken = vec![];
        for run in &pages.runs {
            let took = amperity.took_effect(run);
            if took.iter().rev().skip(1).any(|took| *took) {
                broken.push(format!("{run}: a stop was sent after one that had its effect: {took:?}"));
            }
            requests.stops += took.len();
            requests.effects += took.iter().filter(|took| **took).count();
            requests.most = requests.most.max(took.len());
        }
        broken.retain(|how| !pages.broken.contains(how));
        pages.broken.extend(broken);
        requests
    }
}

/// What arrived at the simulator.
#[derive(Default)]
pub struct Requests {
    pub stops: usize,
    pub effects: usize,
    /// The most stops of one run.
    pub most: usize,
}

/// The reason, and what is wrong.
fn finished(errand: &Errand, stop: &WorkflowRunStop, amperity: &Simulator) -> (String, Vec<String>) {
    let mut faults = vec![];
    let conditions = stop.status.as_ref().map(|status| &status.conditions[..]).unwrap_or_default();
    let Some(ready) = find(conditions, ConditionType::Ready) else {
        return ("none".to_owned(), vec!["it finished without the condition Ready".to_owned()]);
    };
    let reason = ready.reason.clone();
    if stop.claim().is_some() && reason != Reason::OutcomeUnknown.as_str() {
        faults.push(format!("it finished as {reason} and keeps a claim"));
    }
    if ready.status == ConditionStatus::True.as_str() {
        faults.extend(not_stopped(errand, amperity));
    } else if !errand.kind.may_fail_for().iter().any(|allowed| allowed.as_str() == reason) {
        faults.push(format!("it finished as {reason}: {}", ready.message));
    }
    (reason, faults)
}

fn removed(errand: &Errand, amperity: &Simulator) -> (String, Vec<String>) {
    let fault = if errand.kind.expires() {
        // One in a hurry may have missed its deadline.
        not_stopped(errand, amperity).filter(|_| errand.kind != Kind::Hurried)
    } else {
        Some("it is gone though nobody deleted it".to_owned())
    };
    ("(expired before it was seen)".to_owned(), fault.into_iter().collect())
}

/// What is wrong where the run goes on, or where it was not the stop that ended it.
fn not_stopped(errand: &Errand, amperity: &Simulator) -> Option<String> {
    let state = amperity.state(errand.tenant, &errand.run);
    let took = amperity.took_effect(&errand.run);
    let on_its_own = errand.kind == Kind::Ending;
    match state.as_deref() {
        None | Some("running") => Some(format!("it finished well, but its run is {state:?}; its stops: {took:?}")),
        Some(_) if !on_its_own && !took.contains(&true) => Some(format!("its stops had no effect: {took:?}")),
        Some(_) => None,
    }
}
