//! Owns the state that one replica keeps for one resource, and which changes of the resource matter.
//! Never does IO and chooses nothing.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;
use workflow_run_stop_api::{Claim, WorkflowRunStop};

use crate::amperity::answer::ReadAnswer;
use crate::fault_injection::{Fault, is_injected};
use crate::reconcile::{
    backoff::{MAX_CREDENTIALS_DELAY, delay, read_delay},
    decide::{Established, Observed},
    step_report::Requeue,
    store::WriteResult,
};
use crate::rng;

/// The requeue time of a resource that seems to be gone.
const GONE_REQUEUE: Duration = Duration::from_secs(60);

/// One resource and what this replica remembers about it.
pub struct Tracked {
    /// The newest version known.
    pub resource: WorkflowRunStop,
    /// The observations of this process that the resource does not contain.
    pub memory: Memory,
}

/// The observations of a process that the resource does not contain. Correctness does not depend on them: a process
/// without them waits longer.
#[derive(Default)]
pub struct Memory {
    /// The claim as last observed, and since when.
    pub claim: Option<(Claim, Instant)>,
    /// `nextAttemptTime` as last observed, and since when.
    pub next_attempt: Option<(Time, Instant)>,
    /// The reads since the last stop request, or since its acceptance.
    pub reads: Reads,
    /// The time of the next read of a followed run.
    pub next_read: Option<Instant>,
    /// The number of reads of the followed run.
    pub follow_reads: u32,
    /// The number of consecutive failures.
    pub failures: u32,
}

/// The reads that concern one stop request.
#[derive(Default)]
pub struct Reads {
    about: About,
    /// The first try to read the run.
    tried: Option<Instant>,
    /// The first read that showed an active run.
    active: Option<Instant>,
    /// The first of the latest consecutive unreadable reads.
    unreadable: Option<Instant>,
    /// A read that could not be stored yet.
    pub unrecorded: Option<(ReadAnswer, Established)>,
}

/// The request that reads belong to. Reads of another request prove nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct About {
    attempts: i32,
    claim: Option<String>,
    accepted: bool,
}

/// The parts of a resource that others may change and that a decision depends on.
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

    /// Returns true if `resource` is newer and differs in a part that matters. With `any_spec`, a changed spec does not
    /// matter.
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

/// Returns the resource version as a number; `None` if it is not a number. Then every other version counts as newer,
/// and the guards of the writes decide.
fn version(resource: &WorkflowRunStop) -> Option<u64> {
    resource.resource_version().parse().ok()
}

impl Tracked {
    /// Creates an entry without memory.
    pub fn new(resource: WorkflowRunStop) -> Self {
        Self { resource, memory: Memory::default() }
    }

    /// Takes over another version of the resource if it is newer.
    pub fn refresh(&mut self, other: &WorkflowRunStop) {
        let newer = version(other).zip(version(&self.resource)).is_none_or(|(other, known)| known < other);
        if newer {
            self.resource = other.clone();
        }
    }

    /// Returns the parts that matter, to detect changes.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.resource)
    }

    /// Returns what this process observed, for the decision.
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
            next_read: self.memory.next_read.map(|at| at.saturating_duration_since(now)),
        }
    }

    /// Remembers a try to read the run.
    pub fn tried_to_read(&mut self) {
        self.reads().tried.get_or_insert(Instant::now());
    }

    /// Remembers the result of a read.
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

    /// Counts a failure, and returns when to requeue after it.
    pub fn retry_after_failure(&mut self) -> Requeue {
        self.memory.failures += 1;
        Requeue::At(Instant::now() + delay(self.memory.failures, MAX_CREDENTIALS_DELAY, rng::unit()))
    }

    /// Schedules the first read of a followed run.
    pub fn schedule_first_read(&mut self, wait: Duration) {
        self.memory.next_read = Some(Instant::now() + wait);
    }

    /// Remembers one more read of a followed run, and schedules the next one, after `wait` at the earliest.
    pub fn schedule_next_read(&mut self, wait: Duration) {
        self.memory.follow_reads += 1;
        self.memory.next_read = Some(Instant::now() + read_delay(self.memory.follow_reads, rng::unit()).max(wait));
    }

    /// Returns the reads that concern the current request; those of another one are dropped.
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

    /// Takes over the result of a write, and returns when to requeue.
    pub fn take(&mut self, written: WriteResult) -> Requeue {
        match written {
            WriteResult::Stored(now) | WriteResult::Changed(now) => {
                self.resource = *now;
                Requeue::Now
            }
            WriteResult::Same => Requeue::Now,
            // A deleted resource leaves the watch. If it does not, a proxy may have answered for the API server.
            WriteResult::Gone => Requeue::At(Instant::now() + GONE_REQUEUE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::{
        answer::{ReadFailure, ResponseInfo},
        run::Run,
    };
    use k8s_openapi::jiff::Timestamp;
    use workflow_run_stop_api::{StopRequest, WorkflowRunStopSpec, WorkflowRunStopStatus};

    const THEN: Time = Time(Timestamp::UNIX_EPOCH);
    const SECOND: Duration = Duration::from_secs(1);

    fn a_stop(version: &str) -> WorkflowRunStop {
        let mut stop = WorkflowRunStop::new("a", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
        stop.metadata.resource_version = Some(version.into());
        stop.metadata.generation = Some(1);
        stop
    }

    fn with_request(version: &str, change: impl Fn(&mut StopRequest)) -> WorkflowRunStop {
        let mut request = StopRequest { attempts: 1, ..StopRequest::default() };
        change(&mut request);
        let status = WorkflowRunStopStatus { stop_request: Some(request), ..WorkflowRunStopStatus::default() };
        WorkflowRunStop { status: Some(status), ..a_stop(version) }
    }

    fn claim(id: &str) -> Option<Claim> {
        Some(Claim { id: id.into(), holder: "pod-1".into(), time: THEN, ended: None })
    }

    fn in_state(state: &str) -> ReadAnswer {
        ReadAnswer::Run(Box::new(Run { state: state.into(), ..Run::default() }))
    }

    #[test]
    fn only_a_newer_version_with_a_change_that_matters_outdates_a_snapshot() {
        let known = Tracked::new(a_stop("5")).snapshot();
        let outdates = |resource: &WorkflowRunStop| known.is_outdated_by(resource, false);
        let deleting = |version: &str| {
            let mut stop = a_stop(version);
            stop.metadata.deletion_timestamp = Some(THEN);
            stop
        };
        assert!(!outdates(&a_stop("6")), "nothing changed");
        assert!(!outdates(&with_request("6", |_| {})), "attempts do not matter");
        assert!(!outdates(&deleting("4")) && !outdates(&deleting("5")), "not newer");
        assert!(outdates(&deleting("6")));
        assert!(outdates(&deleting("not a number")), "the guard of a write decides");
        assert!(outdates(&with_request("6", |request| request.claim = claim("c"))));
        assert!(outdates(&with_request("6", |request| request.accepted_time = Some(THEN))));
        let mut finished = with_request("6", |_| {});
        finished.status.as_mut().unwrap().completion_time = Some(THEN);
        assert!(outdates(&finished));
        let mut spec = a_stop("6");
        spec.metadata.generation = Some(2);
        assert!(outdates(&spec));
        assert!(!known.is_outdated_by(&spec, true), "what was read is valid for any spec");
        assert!(known.is_outdated_by(&deleting("6"), true));
    }

    #[test]
    fn only_a_newer_version_replaces_the_known_one() {
        let mut tracked = Tracked::new(a_stop("5"));
        for (version, kept) in [("4", "5"), ("5", "5"), ("6", "6"), ("10", "10"), ("9", "10"), ("x", "x")] {
            tracked.refresh(&a_stop(version));
            assert_eq!(tracked.resource.resource_version(), kept, "{version}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_and_a_next_attempt_are_measured_from_when_they_were_first_observed() {
        let with = |id, next| {
            with_request("1", move |request| {
                request.claim = claim(id);
                request.next_attempt_time = Some(Time(Timestamp::from_second(next).unwrap()));
            })
        };
        let mut tracked = Tracked::new(with("c", 10));
        let mut unchanged = |resource| {
            tracked.resource = resource;
            let observed = tracked.observed();
            (observed.claim_unchanged, observed.next_attempt_unchanged)
        };
        assert_eq!(unchanged(with("c", 10)), (Duration::ZERO, Duration::ZERO));
        tokio::time::advance(SECOND).await;
        assert_eq!(unchanged(with("c", 10)), (SECOND, SECOND));
        assert_eq!(unchanged(with("d", 10)), (Duration::ZERO, SECOND));
        assert_eq!(unchanged(with("d", 11)), (Duration::ZERO, Duration::ZERO));
        tokio::time::advance(SECOND).await;
        assert_eq!(unchanged(with("d", 11)), (SECOND, SECOND));
        assert_eq!(unchanged(a_stop("2")), (Duration::ZERO, Duration::ZERO));
        assert_eq!(unchanged(with("d", 11)), (Duration::ZERO, Duration::ZERO), "observed anew");
    }

    #[tokio::test(start_paused = true)]
    async fn reads_are_measured_from_the_first_of_their_kind_and_belong_to_one_request() {
        let mut tracked = Tracked::new(with_request("1", |request| request.claim = claim("c")));
        let times = |tracked: &mut Tracked| {
            let observed = tracked.observed();
            (observed.tried_for, observed.active_for, observed.unreadable_for)
        };
        let unreadable = ReadAnswer::Unreadable(ResponseInfo::default());
        assert_eq!(times(&mut tracked), (None, None, None));
        tracked.tried_to_read();
        tokio::time::advance(SECOND).await;
        tracked.read(&unreadable);
        tokio::time::advance(SECOND).await;
        tracked.read(&unreadable);
        assert_eq!(times(&mut tracked), (Some(SECOND * 2), None, Some(SECOND)));
        tracked.read(&in_state("running"));
        tokio::time::advance(SECOND).await;
        tracked.read(&in_state("running"));
        assert_eq!(times(&mut tracked), (Some(SECOND * 3), Some(SECOND), None));
        tracked.read(&unreadable);
        tracked.read(&ReadAnswer::Failed(ReadFailure::NotSent(String::new())));
        assert_eq!(
            times(&mut tracked),
            (Some(SECOND * 3), Some(SECOND), None),
            "a failure ends a series of unreadable reads"
        );
        tracked.resource = with_request("2", |request| request.accepted_time = Some(THEN));
        assert_eq!(times(&mut tracked), (None, None, None), "reads before the acceptance prove nothing after it");
        tracked.read(&in_state("stopping"));
        assert_eq!(times(&mut tracked), (Some(Duration::ZERO), None, None), "a stopping run is not active");
    }

    #[test]
    fn consecutive_failures_are_counted_until_an_answer() {
        let mut tracked = Tracked::new(a_stop("1"));
        let failed = ReadAnswer::Failed(ReadFailure::NotSent(String::new()));
        for (answer, failures) in [
            (&failed, 1),
            (&failed, 2),
            (&in_state("running"), 0),
            (&failed, 1),
            (&ReadAnswer::Unreadable(ResponseInfo::default()), 0),
        ] {
            tracked.read(answer);
            assert_eq!(tracked.memory.failures, failures, "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reads_of_a_followed_run_become_rarer_and_respect_the_wait_that_was_asked_for() {
        let mut tracked = Tracked::new(a_stop("1"));
        let mut next = |wait| {
            tracked.schedule_next_read(wait);
            tracked.observed().next_read.unwrap()
        };
        assert_eq!(next(SECOND * 100), SECOND * 100);
        let delays: Vec<_> = (0..10).map(|_| next(Duration::ZERO)).collect();
        assert!(delays[0] < SECOND * 6 && SECOND * 54 <= delays[9], "{delays:?}");
        tokio::time::advance(SECOND * 100).await;
        assert_eq!(tracked.observed().next_read, Some(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn the_result_of_a_write_is_taken_over_and_a_resource_that_is_gone_waits() {
        let mut tracked = Tracked::new(a_stop("1"));
        assert_eq!(tracked.take(WriteResult::Stored(Box::new(a_stop("2")))), Requeue::Now);
        assert_eq!(tracked.resource.resource_version(), "2");
        assert_eq!(tracked.take(WriteResult::Changed(Box::new(a_stop("3")))), Requeue::Now);
        assert_eq!(tracked.resource.resource_version(), "3");
        assert_eq!(tracked.take(WriteResult::Same), Requeue::Now);
        assert_eq!(tracked.take(WriteResult::Gone), Requeue::At(Instant::now() + GONE_REQUEUE));
    }
}
