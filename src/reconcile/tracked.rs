//! Owns the state that one replica keeps for one resource, and which changes of the resource matter.
//! Never does IO and chooses nothing.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use workflow_run_stop_api::{WorkflowRunStop, conditions::Reason};

use crate::amperity::answer::ReadAnswer;
use crate::fault_injection::{Fault, is_injected};
use crate::reconcile::{
    backoff::{MAX_CREDENTIALS_DELAY, delay, read_delay},
    decide::{Established, Observed},
    facts::{ClaimFacts, Facts},
    step_report::Requeue,
    store::WriteResult,
};
use crate::rng;

/// The requeue time of a resource that seems to be gone.
pub const GONE_REQUEUE: Duration = Duration::from_secs(60);

/// One resource and what this replica remembers about it, while a step works on it.
pub struct Tracked {
    /// The newest version known.
    pub resource: Box<WorkflowRunStop>,
    /// The observations of this process that the resource does not contain.
    pub memory: Memory,
    /// The announcement that the status does not have yet, because the limit of announcements is used up.
    pub unannounced: Option<Announcement>,
}

/// The reason why a resource waits, for its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The reason for the conditions.
    pub reason: Reason,
    /// The detail for the message; empty if there is none.
    pub detail: Box<str>,
}

/// The observations of a process that the resource does not contain. Correctness does not depend on them: a process
/// without them waits longer.
#[derive(Default)]
pub struct Memory {
    /// The claim as last observed, and since when.
    pub claim: Option<(ClaimFacts, Instant)>,
    /// `nextAttemptTime` as last observed, and since when.
    pub next_attempt: Option<(Timestamp, Instant)>,
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
    pub unrecorded: Option<Box<(ReadAnswer, Established)>>,
}

/// The request that reads belong to. Reads of another request prove nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct About {
    attempts: i32,
    claim: Option<String>,
    accepted: bool,
}

impl Memory {
    /// Returns true if nothing is remembered.
    pub fn is_empty(&self) -> bool {
        let Self { claim, next_attempt, reads, next_read, follow_reads, failures } = self;
        let Reads { about, tried, active, unreadable, unrecorded } = reads;
        claim.is_none()
            && next_attempt.is_none()
            && next_read.is_none()
            && *follow_reads == 0
            && *failures == 0
            && *about == About::default()
            && tried.is_none()
            && active.is_none()
            && unreadable.is_none()
            && unrecorded.is_none()
    }

    /// Returns what this process observed, for the decision.
    pub fn observed(&mut self, facts: &Facts) -> Observed {
        let now = Instant::now();
        let ago = |since: Instant| now - since;
        let Reads { about: _, tried, active, unreadable, unrecorded } = self.reads(facts);
        let (tried, active, unreadable, unrecorded) = (*tried, *active, *unreadable, unrecorded.is_some());
        if facts.claim() != self.claim.as_ref().map(|(claim, _)| claim) {
            self.claim = facts.claim().map(|claim| (claim.clone(), now));
        }
        if facts.next_attempt() != self.next_attempt.map(|(time, _)| time) {
            self.next_attempt = facts.next_attempt().map(|time| (time, now));
        }
        Observed {
            claim_unchanged: self.claim.as_ref().map_or(Duration::ZERO, |(_, since)| ago(*since)),
            next_attempt_unchanged: self.next_attempt.as_ref().map_or(Duration::ZERO, |(_, since)| ago(*since)),
            active_for: if is_injected(Fault::ConfirmAfterOneRead) { Some(Duration::MAX) } else { active.map(ago) },
            unreadable_for: if is_injected(Fault::UnreadableOnce) { Some(Duration::MAX) } else { unreadable.map(ago) },
            tried_for: tried.map(ago),
            unrecorded,
            next_read: self.next_read.map(|at| at.saturating_duration_since(now)),
        }
    }

    /// Remembers a try to read the run.
    pub fn tried_to_read(&mut self, facts: &Facts) {
        self.reads(facts).tried.get_or_insert(Instant::now());
    }

    /// Returns the reads that concern the current request; those of another one are dropped.
    pub fn reads(&mut self, facts: &Facts) -> &mut Reads {
        let claim = facts.claim().map(|claim| claim.id.clone());
        let about = About { attempts: facts.attempts(), claim, accepted: facts.accepted().is_some() };
        if self.reads.about != about {
            self.reads = Reads { about, ..Reads::default() };
        }
        &mut self.reads
    }
}

impl Tracked {
    /// Creates an entry without memory.
    pub fn new(resource: WorkflowRunStop) -> Self {
        Self { resource: Box::new(resource), memory: Memory::default(), unannounced: None }
    }

    /// Returns the facts of the resource.
    pub fn facts(&self) -> Facts {
        Facts::of(&self.resource)
    }

    /// Returns what this process observed, for the decision.
    pub fn observed(&mut self) -> Observed {
        self.memory.observed(&Facts::of(&self.resource))
    }

    /// Remembers a try to read the run.
    pub fn tried_to_read(&mut self) {
        self.memory.tried_to_read(&Facts::of(&self.resource));
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
        self.memory.reads(&Facts::of(&self.resource))
    }

    /// Takes over the result of a write, and returns when to requeue.
    pub fn take(&mut self, written: WriteResult) -> Requeue {
        match written {
            WriteResult::Stored(now) | WriteResult::Changed(now) => {
                self.resource = now;
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
    use crate::reconcile::facts::tests::{THEN, a_stop, with_request};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use workflow_run_stop_api::Claim;

    const SECOND: Duration = Duration::from_secs(1);

    fn claim(id: &str) -> Option<Claim> {
        Some(Claim { id: id.into(), holder: "pod-1".into(), time: THEN, ended: None })
    }

    fn in_state(state: &str) -> ReadAnswer {
        ReadAnswer::Run(Box::new(Run { state: state.into(), ..Run::default() }))
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
            *tracked.resource = resource;
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
        *tracked.resource = with_request("2", |request| request.accepted_time = Some(THEN));
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
