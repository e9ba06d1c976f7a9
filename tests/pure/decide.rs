//! The rule book of `decide`: one row for each situation, with its next step.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use workflow_run_stop_api::{
    Claim, ClaimEnded, UnclearAnswer, WorkflowRunStop, WorkflowRunStopSpec, WorkflowRunStopStatus,
    conditions::{ConditionStatus, ConditionType, Reason, condition, set},
};
use workflow_run_stop_operator::reconcile::decide::{
    Decision, Ending, Established, Observed, Rules, at_the_latest, decide,
};
use workflow_run_stop_operator::reconcile::facts::Facts;

/// The current time, in seconds. The resource was created at 0 s.
const NOW: i64 = 1000;
const RULES: Rules = Rules { request_timeout: Duration::from_secs(30), settle_time: Duration::from_secs(30) };

/// The time until a claimed request can no longer be in flight: claim validity 5 s, request timeout and settle time.
const QUIET: u64 = 65;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The input of `decide`. The methods change one property each.
struct Situation {
    stop: WorkflowRunStop,
    observed: Observed,
}

fn a_stop() -> Situation {
    let mut stop = WorkflowRunStop::new("a", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
    stop.metadata.creation_timestamp = Some(at(0));
    Situation { stop, observed: Observed::default() }
}

impl Situation {
    fn status(mut self, change: impl FnOnce(&mut WorkflowRunStopStatus)) -> Self {
        change(self.stop.status.get_or_insert_default());
        self
    }

    fn finished(self) -> Self {
        self.status(|status| status.completion_time = Some(at(900)))
    }

    fn being_deleted(mut self) -> Self {
        self.stop.metadata.deletion_timestamp = Some(at(999));
        self
    }

    fn suspended(mut self) -> Self {
        self.stop.spec.suspend = true;
        self
    }

    fn deadline(mut self, seconds: i32) -> Self {
        self.stop.spec.stop_deadline_seconds = Some(seconds);
        self
    }

    fn not_after(mut self, second: i64) -> Self {
        self.stop.spec.not_after = Some(at(second));
        self
    }

    /// One stop request was sent, its claim is gone, and StopAccepted is False with this reason.
    fn not_accepted(self, reason: Reason) -> Self {
        self.status(|status| {
            status.stop_request.get_or_insert_default().attempts = 1;
            let why = (reason, String::new());
            set(
                &mut status.conditions,
                condition(ConditionType::StopAccepted, ConditionStatus::False, why, None, &at(900)),
            );
        })
    }

    fn followed_for(mut self, seconds: i32) -> Self {
        self.stop.spec.follow_timeout_seconds = seconds;
        self
    }

    fn claimed_at(self, second: i64) -> Self {
        let claim = Claim { id: "c".into(), holder: "pod-1".into(), time: at(second), ended: None };
        self.status(|status| status.stop_request.get_or_insert_default().claim = Some(claim))
    }

    fn answer_unclear_at(self, second: i64, answer: UnclearAnswer) -> Self {
        self.status(|status| {
            let claim = status.stop_request.as_mut().unwrap().claim.as_mut().unwrap();
            claim.ended = Some(ClaimEnded { time: at(second), answer });
        })
    }

    fn claim_unchanged_for(mut self, wait: u64) -> Self {
        self.observed.claim_unchanged = seconds(wait);
        self
    }

    fn next_attempt_at(self, second: i64) -> Self {
        self.status(|status| status.stop_request.get_or_insert_default().next_attempt_time = Some(at(second)))
    }

    fn next_attempt_unchanged_for(mut self, wait: u64) -> Self {
        self.observed.next_attempt_unchanged = seconds(wait);
        self
    }

    fn accepted_at(self, second: i64) -> Self {
        self.status(|status| status.stop_request.get_or_insert_default().accepted_time = Some(at(second)))
    }

    fn state(self, state: &str) -> Self {
        self.status(|status| status.state = Some(state.into()))
    }

    fn tasks_known(self) -> Self {
        self.status(|status| status.task_instances = Some(vec![]))
    }

    fn active_for(mut self, wait: u64) -> Self {
        self.observed.active_for = Some(seconds(wait));
        self
    }

    fn unreadable_for(mut self, wait: u64) -> Self {
        self.observed.unreadable_for = Some(seconds(wait));
        self
    }

    fn tried_long_enough(self) -> Self {
        self.tried_for(QUIET)
    }

    fn tried_for(mut self, wait: u64) -> Self {
        self.observed.tried_for = Some(seconds(wait));
        self
    }

    fn next_read_in(mut self, wait: u64) -> Self {
        self.observed.next_read = Some(seconds(wait));
        self
    }

    fn unrecorded(mut self) -> Self {
        self.observed.unrecorded = true;
        self
    }

    fn decide(&self) -> Decision {
        decide(&Facts::of(&self.stop), Timestamp::from_second(NOW).unwrap(), &self.observed, &RULES)
    }
}

#[test]
fn every_situation_has_one_next_step() {
    use Decision::{Confirm, Finish, Nothing, Record, Repeat, Stop, Suspended, Wait};
    use UnclearAnswer::{Conflict, NoAnswer, NotOurRun, ServerError};
    const NOTHING: Established = Established { active: false, unreadable: false };
    const ACTIVE: Established = Established { active: true, unreadable: false };
    const UNREADABLE: Established = Established { active: false, unreadable: true };
    const READ: Decision = Decision::Read(NOTHING);
    let wait = |wait| Wait(seconds(wait));
    let by = |second| Some(Timestamp::from_second(second).unwrap());
    let first = Confirm(NOTHING);
    let rules: &[(&str, Situation, Decision)] = &[
        ("a new resource is stopped", a_stop(), Stop(None)),
        ("a finished resource is left alone", a_stop().finished(), Nothing),
        ("a finished resource with a claim is left alone", a_stop().claimed_at(0).finished(), Nothing),
        ("a resource being deleted is left alone", a_stop().being_deleted(), Nothing),
        ("a resource being deleted with a claim is left alone", a_stop().claimed_at(0).being_deleted(), Nothing),
        // Claims.
        ("a new claim is waited for", a_stop().claimed_at(999), wait(QUIET)),
        (
            "a claim is waited for until it was observed for the whole quiet time",
            a_stop().claimed_at(999).claim_unchanged_for(64),
            wait(1),
        ),
        (
            "a claim observed for the whole quiet time is confirmed",
            a_stop().claimed_at(999).claim_unchanged_for(65),
            first,
        ),
        ("an old time in a claim does not shorten the wait", a_stop().claimed_at(0).claim_unchanged_for(5), wait(60)),
        (
            "a future time in a claim does not prolong the wait",
            a_stop().claimed_at(9000).claim_unchanged_for(65),
            first,
        ),
        (
            "a claim is confirmed although the stop is suspended",
            a_stop().claimed_at(0).claim_unchanged_for(65).suspended(),
            first,
        ),
        (
            "a claim is confirmed although the stop deadline has passed",
            a_stop().claimed_at(0).claim_unchanged_for(65).deadline(1),
            first,
        ),
        (
            "a claim is confirmed although notAfter has passed",
            a_stop().claimed_at(0).claim_unchanged_for(65).not_after(1),
            first,
        ),
        (
            "after no answer the settle time is waited for",
            a_stop().claimed_at(990).answer_unclear_at(999, NoAnswer),
            wait(30),
        ),
        (
            "after a server error the settle time is waited for",
            a_stop().claimed_at(990).answer_unclear_at(999, ServerError),
            wait(30),
        ),
        (
            "after an answer with another run the settle time is waited for",
            a_stop().claimed_at(990).answer_unclear_at(999, NotOurRun),
            wait(30),
        ),
        (
            "after the settle time the claim is confirmed",
            a_stop().claimed_at(960).answer_unclear_at(969, NoAnswer).claim_unchanged_for(30),
            first,
        ),
        (
            "the settle time is counted from the observation, not from the written time",
            a_stop().claimed_at(900).answer_unclear_at(910, NoAnswer).claim_unchanged_for(29),
            wait(1),
        ),
        (
            "after a conflict the claim is confirmed at once",
            a_stop().claimed_at(999).answer_unclear_at(999, Conflict),
            first,
        ),
        (
            "active for less than the settle time establishes nothing",
            a_stop().claimed_at(0).claim_unchanged_for(65).active_for(29),
            first,
        ),
        (
            "active for the settle time: active again means no effect",
            a_stop().claimed_at(0).claim_unchanged_for(65).active_for(30),
            Confirm(ACTIVE),
        ),
        (
            "unreadable for less than the settle time establishes nothing",
            a_stop().claimed_at(0).claim_unchanged_for(65).unreadable_for(29),
            first,
        ),
        (
            "unreadable for the settle time: unreadable again means unreadable for good",
            a_stop().claimed_at(0).claim_unchanged_for(65).unreadable_for(30),
            Confirm(UNREADABLE),
        ),
        (
            "confirming waits for its backoff",
            a_stop().claimed_at(0).claim_unchanged_for(65).next_attempt_at(1010),
            wait(10),
        ),
        (
            "a claim that is open for an hour and was tried ends, in spite of its backoff",
            a_stop().claimed_at(NOW - 3600).claim_unchanged_for(65).tried_long_enough().next_attempt_at(1010),
            Finish(Ending::OutcomeUnknown),
        ),
        (
            "a claim that is open for 59 minutes does not end",
            a_stop().claimed_at(NOW - 3540).claim_unchanged_for(65).tried_long_enough().next_attempt_at(1010),
            wait(10),
        ),
        (
            "an open claim does not end before this process has tried to read the run",
            a_stop().claimed_at(NOW - 3600).claim_unchanged_for(65).next_attempt_at(1010),
            wait(10),
        ),
        (
            "a claim that was observed for an hour ends, although its time is in the future",
            a_stop().claimed_at(NOW + 9000).claim_unchanged_for(3600).tried_long_enough(),
            Finish(Ending::OutcomeUnknown),
        ),
        (
            "an open claim does not end before this process has tried for the whole quiet time",
            a_stop().claimed_at(NOW - 3600).claim_unchanged_for(65).tried_for(64),
            first,
        ),
        (
            "an open claim does not end while the second of two reads is expected",
            a_stop().claimed_at(NOW - 3600).claim_unchanged_for(65).tried_long_enough().active_for(629),
            Confirm(ACTIVE),
        ),
        (
            "the second of two reads is expected for ten minutes after the settle time",
            a_stop().claimed_at(NOW - 3600).claim_unchanged_for(65).tried_long_enough().active_for(630),
            Finish(Ending::OutcomeUnknown),
        ),
        (
            "an unrecorded read is stored before the claim ends",
            a_stop().claimed_at(NOW - 3600).claim_unchanged_for(65).tried_long_enough().unrecorded(),
            Record,
        ),
        (
            "an open claim does not end while its request may be in flight",
            a_stop().claimed_at(NOW - 3600).claim_unchanged_for(64).tried_long_enough(),
            wait(1),
        ),
        (
            "an open claim does not end before followTimeoutSeconds",
            a_stop().claimed_at(NOW - 3600).claim_unchanged_for(65).tried_long_enough().followed_for(3601),
            first,
        ),
        // Accepted.
        ("after a restart an accepted stop is read at once", a_stop().accepted_at(990), READ),
        ("an accepted stop is read when its next read is due", a_stop().accepted_at(990).next_read_in(0), READ),
        ("an accepted stop waits for its next read", a_stop().accepted_at(990).next_read_in(9), Wait(seconds(9))),
        ("a run that is stopping is followed", a_stop().accepted_at(990).state("stopping").tasks_known(), READ),
        ("a run in an unknown state is followed", a_stop().accepted_at(990).state("pondering").tasks_known(), READ),
        (
            "a canceled run finishes the resource",
            a_stop().accepted_at(990).state("canceled").tasks_known(),
            Finish(Ending::Ended),
        ),
        (
            "a failed run finishes the resource",
            a_stop().accepted_at(990).state("failed").tasks_known(),
            Finish(Ending::Ended),
        ),
        ("a run that ended without known tasks is read once more", a_stop().accepted_at(990).state("canceled"), READ),
        (
            "a run that is not followed is not read for its tasks",
            a_stop().accepted_at(990).state("canceled").followed_for(0),
            Finish(Ending::Ended),
        ),
        (
            "a run is not read for its tasks after followTimeoutSeconds",
            a_stop().accepted_at(900).state("canceled").followed_for(100).tried_long_enough(),
            Finish(Ending::Ended),
        ),
        (
            "an accepted stop with followTimeoutSeconds 0 finishes",
            a_stop().accepted_at(990).state("stopping").followed_for(0),
            Finish(Ending::NotFollowed),
        ),
        (
            "an accepted stop with followTimeoutSeconds 0 finishes without a state",
            a_stop().accepted_at(990).followed_for(0),
            Finish(Ending::NotFollowed),
        ),
        (
            "following ends after followTimeoutSeconds",
            a_stop().accepted_at(900).state("stopping").followed_for(100).tried_long_enough(),
            Finish(Ending::StillActive),
        ),
        (
            "a run that this process has not read is read once, at once, before following ends",
            a_stop().accepted_at(900).state("stopping").followed_for(100).next_read_in(9),
            READ,
        ),
        (
            "unreadable for the settle time after acceptance is established",
            a_stop().accepted_at(990).unreadable_for(30),
            Decision::Read(UNREADABLE),
        ),
        ("notAfter does not end following", a_stop().accepted_at(990).not_after(1), READ),
        ("an unrecorded read is stored first", a_stop().accepted_at(990).next_read_in(9).unrecorded(), Record),
        (
            "an unrecorded read is stored before following ends",
            a_stop().accepted_at(900).followed_for(100).unrecorded(),
            Record,
        ),
        (
            "an unrecorded read is not stored on a resource being deleted",
            a_stop().accepted_at(990).unrecorded().being_deleted(),
            Nothing,
        ),
        ("suspension does not end following", a_stop().accepted_at(990).suspended(), READ),
        ("the stop deadline does not end following", a_stop().accepted_at(990).deadline(1), READ),
        // Not sent yet.
        ("a suspended stop waits", a_stop().suspended(), Suspended),
        ("a suspended stop has no stop deadline", a_stop().suspended().deadline(1), Suspended),
        ("the stop deadline finishes the resource", a_stop().deadline(1000), Finish(Ending::DeadlineExceeded)),
        ("the stop deadline limits the time of sending", a_stop().deadline(1007), Stop(by(1007))),
        ("notAfter limits the time of sending", a_stop().not_after(1007), Stop(by(1007))),
        (
            "the stop deadline counts if it is earlier than notAfter",
            a_stop().not_after(1007).deadline(1003),
            Stop(by(1003)),
        ),
        (
            "notAfter counts if it is earlier than the stop deadline",
            a_stop().not_after(1002).deadline(1003),
            Stop(by(1002)),
        ),
        ("at notAfter the resource finishes", a_stop().not_after(NOW), Finish(Ending::DeadlineExceeded)),
        ("one second before notAfter the stop is sent", a_stop().not_after(NOW + 1), Stop(by(NOW + 1))),
        ("a resource created at its notAfter has expired", a_stop().not_after(0), Finish(Ending::Expired)),
        ("a resource created after its notAfter has expired", a_stop().not_after(-5), Finish(Ending::Expired)),
        (
            "a stop that was sent does not expire, even if created after its notAfter",
            a_stop().not_accepted(Reason::Unavailable).not_after(0),
            Finish(Ending::DeadlineExceeded),
        ),
        (
            "a resource created before its notAfter exceeds its deadline instead",
            a_stop().not_after(1),
            Finish(Ending::DeadlineExceeded),
        ),
        ("notAfter finishes a suspended stop", a_stop().suspended().not_after(1), Finish(Ending::DeadlineExceeded)),
        (
            "a suspended stop created at its notAfter has expired",
            a_stop().suspended().not_after(0),
            Finish(Ending::Expired),
        ),
        // A further request.
        ("after a 429 the stop is sent again", a_stop().not_accepted(Reason::RateLimited), Stop(None)),
        ("after a 401 the stop is sent again", a_stop().not_accepted(Reason::Unauthorized), Stop(None)),
        ("after a 403 the stop is sent again", a_stop().not_accepted(Reason::Forbidden), Stop(None)),
        ("after a failed connection the stop is sent again", a_stop().not_accepted(Reason::Unreachable), Stop(None)),
        (
            "after a claim that was too old the stop is sent again",
            a_stop().not_accepted(Reason::StopRequested),
            Stop(None),
        ),
        (
            "after a request that had no effect according to reads, the run is read first",
            a_stop().not_accepted(Reason::Unavailable),
            Repeat(None, NOTHING),
        ),
        ("after a conflict the run is read first", a_stop().not_accepted(Reason::Conflict), Repeat(None, NOTHING)),
        (
            "after the answer of a gateway the run is read first",
            a_stop().not_accepted(Reason::UnexpectedAnswer),
            Repeat(None, NOTHING),
        ),
        (
            "the read keeps the deadline and what earlier reads established",
            a_stop().not_accepted(Reason::Unavailable).deadline(1007).unreadable_for(30),
            Repeat(by(1007), UNREADABLE),
        ),
        (
            "a backoff is waited for before the read",
            a_stop().not_accepted(Reason::Unavailable).next_attempt_at(1005),
            wait(5),
        ),
        (
            "without a reason in the status the run is read first",
            a_stop().status(|status| status.stop_request.get_or_insert_default().attempts = 1),
            Repeat(None, NOTHING),
        ),
        ("nextAttemptTime is waited for", a_stop().next_attempt_at(1005), Wait(seconds(5))),
        ("at nextAttemptTime the stop is sent", a_stop().next_attempt_at(1000), Stop(None)),
        (
            "a nextAttemptTime as far ahead as the longest backoff and clock skew is waited for",
            a_stop().next_attempt_at(NOW + 360),
            wait(360),
        ),
        (
            "a nextAttemptTime further ahead is waited for no longer than that",
            a_stop().next_attempt_at(NOW + 3600),
            wait(360),
        ),
        (
            "the wait for a nextAttemptTime far ahead is measured by this process's own clock",
            a_stop().next_attempt_at(NOW + 3600).next_attempt_unchanged_for(359),
            wait(1),
        ),
        (
            "after the longest wait for a nextAttemptTime the stop is sent",
            a_stop().next_attempt_at(NOW + 3600).next_attempt_unchanged_for(360),
            Stop(None),
        ),
    ];
    for (name, situation, expected) in rules {
        assert_eq!(situation.decide(), *expected, "{name}");
    }
}

#[test]
fn a_wait_ends_no_later_than_the_next_deadline() {
    let latest = |situation: Situation| {
        at_the_latest(&Facts::of(&situation.stop), Timestamp::from_second(NOW).unwrap()).map(|wait| wait.as_secs())
    };
    assert_eq!(latest(a_stop()), None);
    assert_eq!(latest(a_stop().deadline(1002)), Some(2));
    assert_eq!(latest(a_stop().deadline(1)), Some(0), "a deadline that has passed");
    assert_eq!(latest(a_stop().deadline(1002).suspended()), None, "a suspended stop has no stop deadline");
    assert_eq!(latest(a_stop().not_after(1004)), Some(4));
    assert_eq!(latest(a_stop().not_after(1004).deadline(1002)), Some(2));
    assert_eq!(latest(a_stop().not_after(1004).suspended()), Some(4), "suspension does not move notAfter");
    assert_eq!(latest(a_stop().deadline(1002).claimed_at(999)), None, "an open claim has to be confirmed first");
    assert_eq!(latest(a_stop().deadline(1002).accepted_at(990).followed_for(15)), Some(5), "following ends");
    assert_eq!(latest(a_stop().deadline(1002).finished()), None);
    assert_eq!(latest(a_stop().deadline(1).being_deleted()), None, "a resource being deleted is left alone");
}

#[test]
fn a_resource_created_after_its_not_after_expires_even_if_the_clock_is_behind() {
    let stop = a_stop().not_after(-5).stop;
    let behind = Timestamp::from_second(-3600).unwrap();
    assert_eq!(decide(&Facts::of(&stop), behind, &Observed::default(), &RULES), Decision::Finish(Ending::Expired));
}

#[test]
fn a_settle_time_longer_than_the_backoff_is_waited_for() {
    let rules = Rules { settle_time: seconds(600), ..RULES };
    let situation = a_stop().claimed_at(900).answer_unclear_at(990, UnclearAnswer::NoAnswer).next_attempt_at(NOW + 590);
    let now = Timestamp::from_second(NOW).unwrap();
    let observed = Observed { claim_unchanged: seconds(600), ..Observed::default() };
    assert_eq!(decide(&Facts::of(&situation.stop), now, &observed, &rules), Decision::Wait(seconds(590)));
}
