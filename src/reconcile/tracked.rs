//! Owns what one replica knows of one resource, and which changes of it matter.
//! Never does IO and chooses nothing.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;
use workflow_run_stop_api::{Claim, WorkflowRunStop};

use crate::amperity::answer::ReadAnswer;
use crate::fault_injection::{Fault, is_injected};
use crate::reconcile::{
    backoff::next_look,
    decide::{Established, Observed},
    step_report::Requeue,
    store::WriteResult,
};
use crate::rng;

/// When to look again at a resource that seems to be gone.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// One resource as this replica knows it.
pub struct Tracked {
    /// The newest version known.
    pub resource: WorkflowRunStop,
    /// What this process knows beside it.
    pub memory: Memory,
}

/// What is known beside the resource. Only an optimisation, except that a claim which was not seen
/// for long is waited for longer.
#[derive(Default)]
pub struct Memory {
    /// The claim that was last seen, and since when.
    pub claim: Option<(Claim, Instant)>,
    /// The next attempt's time that was last seen, and since when.
    pub next_attempt: Option<(Time, Instant)>,
    /// What reads have shown since the last stop request, or since its acceptance.
    pub reads: Reads,
    /// When the run is to be read again.
    pub next_look: Option<Instant>,
    /// How often the run was read.
    pub looks: u32,
    /// How many failures came one after the other.
    pub failures: u32,
}

/// What reads have shown of one stop request.
#[derive(Default)]
pub struct Reads {
    about: About,
    /// When it was first tried to read the run.
    tried: Option<Instant>,
    /// When the run was first read as active.
    active: Option<Instant>,
    /// When the first of the latest reads in a row came back unreadable.
    unreadable: Option<Instant>,
    /// What was read and could not be stored yet.
    pub unrecorded: Option<(ReadAnswer, Established)>,
}

/// The request that reads are about: what was read of another one tells nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct About {
    attempts: i32,
    claim: Option<String>,
    accepted: bool,
}

/// What a change of the resource is measured by: what others may change that a decision builds on. Its
/// state, tasks and times only this replica writes while it works on the resource.
pub struct Snapshot {
    resource_version: Option<u64>,
    generation: Option<i64>,
    deleting: bool,
    claim: Option<Claim>,
    accepted: bool,
    finished: bool,
}

impl Snapshot {
    fn of(resource: &WorkflowRunStop) -> Self {
        Self {
            resource_version: version(resource),
            generation: resource.metadata.generation,
            deleting: resource.metadata.deletion_timestamp.is_some(),
            claim: resource.claim().cloned(),
            accepted: resource.accepted_time().is_some(),
            finished: resource.is_finished(),
        }
    }

    /// True where a version of the resource asks for another look: it is newer, and differs in more
    /// than what this replica itself writes while it waits; with `any_spec`, in more than its spec.
    pub fn is_outdated_by(&self, resource: &WorkflowRunStop, any_spec: bool) -> bool {
        let Self { resource_version, generation, deleting, claim, accepted, finished } = Self::of(resource);
        let newer = resource_version.zip(self.resource_version).is_none_or(|(other, known)| known < other);
        let same = (any_spec || generation == self.generation)
            && deleting == self.deleting
            && claim == self.claim
            && accepted == self.accepted
            && finished == self.finished;
        newer && !same
    }
}

/// Versions are whole numbers that grow. Where they are not, every other version counts as newer, and
/// the guards of the writes find out.
fn version(resource: &WorkflowRunStop) -> Option<u64> {
    resource.resource_version().parse().ok()
}

impl Tracked {
    /// A resource that nothing else is known of.
    pub fn new(resource: WorkflowRunStop) -> Self {
        Self { resource, memory: Memory::default() }
    }

    /// Takes over another version of the same resource, if it is newer than the known one.
    pub fn refresh(&mut self, other: &WorkflowRunStop) {
        let newer = version(other).zip(version(&self.resource)).is_none_or(|(other, known)| known < other);
        if newer {
            self.resource = other.clone();
        }
    }

    /// What is known now, to measure changes by.
    pub fn known(&self) -> Snapshot {
        Snapshot::of(&self.resource)
    }

    /// What this process knows, for the decision.
    pub fn observed(&mut self) -> Observed {
        let now = Instant::now();
        let ago = |since: Instant| now - since;
        let Reads { about: _, tried, active, unreadable, unrecorded } = self.reads();
        let (tried, active, unreadable, unrecorded) = (*tried, *active, *unreadable, unrecorded.is_some());
        let claim = self.resource.claim();
        if claim != self.memory.claim.as_ref().map(|(claim, _)| claim) {
            self.memory.claim = claim.map(|claim| (claim.clone(), now));
        }
        let next_attempt = self.resource.stop_request().and_then(|request| request.next_attempt_time.as_ref());
        if next_attempt != self.memory.next_attempt.as_ref().map(|(time, _)| time) {
            self.memory.next_attempt = next_attempt.map(|time| (time.clone(), now));
        }
        Observed {
            claim_unchanged: self.memory.claim.as_ref().map_or(Duration::ZERO, |(_, since)| ago(*since)),
            next_attempt_unchanged: self.memory.next_attempt.as_ref().map_or(Duration::ZERO, |(_, since)| ago(*since)),
            active_for: if is_injected(Fault::ConfirmAfterOneRead) { Some(Duration::MAX) } else { active.map(ago) },
            unreadable_for: if is_injected(Fault::UnreadableOnce) { Some(Duration::MAX) } else { unreadable.map(ago) },
            tried_for: tried.map(ago),
            unrecorded,
            next_look: self.memory.next_look.map(|at| at.saturating_duration_since(now)),
        }
    }

    /// Remembers that it was tried to read the run.
    pub fn tried_to_read(&mut self) {
        self.reads().tried.get_or_insert(Instant::now());
    }

    /// Remembers what a read showed.
    pub fn read(&mut self, answer: &ReadAnswer) {
        let now = Instant::now();
        let reads = self.reads();
        reads.tried.get_or_insert(now);
        match answer {
            ReadAnswer::Run(_) => {
                if answer.is_active() {
                    reads.active.get_or_insert(now);
                }
                reads.unreadable = None;
                self.memory.failures = 0;
            }
            ReadAnswer::Unreadable(_) => {
                reads.unreadable.get_or_insert(now);
                self.memory.failures = 0;
            }
            ReadAnswer::Failed(_) => {
                reads.unreadable = None;
                self.memory.failures += 1;
            }
        }
    }

    /// Remembers that the run is followed by one more read; the next one comes no earlier than after `wait`.
    pub fn looked(&mut self, wait: Duration) {
        self.memory.looks += 1;
        self.memory.next_look = Some(Instant::now() + next_look(self.memory.looks, rng::unit()).max(wait));
    }

    /// What reads have shown of the request that the status speaks of.
    pub fn reads(&mut self) -> &mut Reads {
        let about = About {
            attempts: self.resource.stop_request().map_or(0, |request| request.attempts),
            claim: self.resource.claim().map(|claim| claim.id.clone()),
            accepted: self.resource.accepted_time().is_some(),
        };
        if self.memory.reads.about != about {
            self.memory.reads = Reads { about, ..Reads::default() };
        }
        &mut self.memory.reads
    }

    /// Takes over what a write left behind, and says when to look again.
    pub fn take(&mut self, written: WriteResult) -> Requeue {
        match written {
            WriteResult::Stored(now) | WriteResult::Changed(now) => {
                self.resource = *now;
                Requeue::Now
            }
            WriteResult::Same => Requeue::Now,
            // A resource that is gone leaves the watch. Something on the way to the API server may have answered as well.
            WriteResult::Gone => Requeue::At(Instant::now() + LOOK_AGAIN),
        }
    }
}
