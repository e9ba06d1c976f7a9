//! The rule book: for every situation the one next step.
#![allow(clippy::unwrap_used, missing_docs)]

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

/// Created at 0 s; it is 1000 s now. A request takes 30 s at the most and settles in 30 s.
const NOW: i64 = 1000;
const RULES: Rules = Rules { request_timeout: Duration::from_secs(30), settle_time: Duration::from_secs(30) };

/// 5 s to send, 30 s to answer, 30 s to settle.
const QUIET: u64 = 65;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

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

    /// A stop request was dropped for this reason.
    fn dropped(self, reason: Reason) -> Self {
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

    fn ended(self, second: i64, answer: UnclearAnswer) -> Self {
        self.status(|status| {
            let claim = status.stop_request.as_mut().unwrap().claim.as_mut().unwrap();
            claim.ended = Some(ClaimEnded { time: at(second), answer });
        })
    }

    fn seen_unchanged_for(mut self, wait: u64) -> Self {
        self.observed.claim_unchanged = seconds(wait);
        self
    }

    fn next_attempt_at(self, second: i64) -> Self {
        self.status(|status| status.stop_request.get_or_insert_default().next_attempt_time = Some(at(second)))
    }

    fn next_attempt_seen_for(mut self, wait: u64) -> Self {
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

    fn was_read(self) -> Self {
        self.tried_for(65)
    }

    fn tried_for(mut self, wait: u64) -> Self {
        self.observed.tried_for = Some(seconds(wait));
        self
    }

    fn next_look_in(mut self, wait: u64) -> Self {
        self.observed.next_look = Some(seconds(wait));
        self
    }

    fn unrecorded(mut self) -> Self {
        self.observed.unrecorded = true;
        self
    }

    fn decide(&self) -> Decision {
        decide(&self.stop, Timestamp::from_second(NOW).unwrap(), &self.observed, &RULES)
    }
}

#[test]
fn every_situation_has_its_next_step() {
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
        ("a new one is stopped", a_stop(), Stop(None)),
        ("a finished one is a record", a_stop().finished(), Nothing),
        ("a finished one with a claim is a record", a_stop().claimed_at(0).finished(), Nothing),
        ("one being deleted is left alone", a_stop().being_deleted(), Nothing),
        ("one being deleted is left alone, claim or not", a_stop().claimed_at(0).being_deleted(), Nothing),
        // Claims.
        ("a fresh claim is waited for", a_stop().claimed_at(999), wait(QUIET)),
        (
            "a claim is waited for as long as it was not observed",
            a_stop().claimed_at(999).seen_unchanged_for(64),
            wait(1),
        ),
        ("a claim observed for long enough is confirmed", a_stop().claimed_at(999).seen_unchanged_for(65), first),
        ("a claim's written time is not believed", a_stop().claimed_at(0).seen_unchanged_for(5), wait(60)),
        (
            "a claim of the future is judged by what was observed",
            a_stop().claimed_at(9000).seen_unchanged_for(65),
            first,
        ),
        ("suspension does not hide a claim", a_stop().claimed_at(0).seen_unchanged_for(65).suspended(), first),
        ("a deadline does not hide a claim", a_stop().claimed_at(0).seen_unchanged_for(65).deadline(1), first),
        ("notAfter does not hide a claim", a_stop().claimed_at(0).seen_unchanged_for(65).not_after(1), first),
        ("after no answer it settles", a_stop().claimed_at(990).ended(999, NoAnswer), wait(30)),
        ("after a server error it settles", a_stop().claimed_at(990).ended(999, ServerError), wait(30)),
        ("after a strange answer it settles", a_stop().claimed_at(990).ended(999, NotOurRun), wait(30)),
        ("settled is confirmed", a_stop().claimed_at(960).ended(969, NoAnswer).seen_unchanged_for(30), first),
        (
            "settled a moment ago is waited for",
            a_stop().claimed_at(900).ended(910, NoAnswer).seen_unchanged_for(29),
            wait(1),
        ),
        ("a conflict is looked into at once", a_stop().claimed_at(999).ended(999, Conflict), first),
        (
            "an active run observed once tells nothing yet",
            a_stop().claimed_at(0).seen_unchanged_for(65).active_for(29),
            first,
        ),
        (
            "an active run observed twice, with the settle time between, tells that there was no effect",
            a_stop().claimed_at(0).seen_unchanged_for(65).active_for(30),
            Confirm(ACTIVE),
        ),
        (
            "an unreadable run observed once tells nothing yet",
            a_stop().claimed_at(0).seen_unchanged_for(65).unreadable_for(29),
            first,
        ),
        (
            "an unreadable run observed twice, with the settle time between, stays unreadable",
            a_stop().claimed_at(0).seen_unchanged_for(65).unreadable_for(30),
            Confirm(UNREADABLE),
        ),
        ("reading has its backoff too", a_stop().claimed_at(0).seen_unchanged_for(65).next_attempt_at(1010), wait(10)),
        (
            "a claim that is open for an hour and was read ends, whatever it waits for",
            a_stop().claimed_at(NOW - 3600).seen_unchanged_for(65).was_read().next_attempt_at(1010),
            Finish(Ending::OutcomeUnknown),
        ),
        (
            "not a minute earlier",
            a_stop().claimed_at(NOW - 3540).seen_unchanged_for(65).was_read().next_attempt_at(1010),
            wait(10),
        ),
        (
            "not before it was read by this process",
            a_stop().claimed_at(NOW - 3600).seen_unchanged_for(65).next_attempt_at(1010),
            wait(10),
        ),
        (
            "also where its time was written by a clock that was far ahead",
            a_stop().claimed_at(NOW + 9000).seen_unchanged_for(3600).was_read(),
            Finish(Ending::OutcomeUnknown),
        ),
        (
            "not before it was tried for a while",
            a_stop().claimed_at(NOW - 3600).seen_unchanged_for(65).tried_for(64),
            first,
        ),
        (
            "not while the second of two reads is expected",
            a_stop().claimed_at(NOW - 3600).seen_unchanged_for(65).was_read().active_for(629),
            Confirm(ACTIVE),
        ),
        (
            "but not for ever",
            a_stop().claimed_at(NOW - 3600).seen_unchanged_for(65).was_read().active_for(630),
            Finish(Ending::OutcomeUnknown),
        ),
        (
            "what was read is stored before it is confirmed once more",
            a_stop().claimed_at(NOW - 3600).seen_unchanged_for(65).was_read().unrecorded(),
            Record,
        ),
        (
            "not while its request may be in flight, whatever the clock says",
            a_stop().claimed_at(NOW - 3600).seen_unchanged_for(64).was_read(),
            wait(1),
        ),
        (
            "not before followTimeoutSeconds",
            a_stop().claimed_at(NOW - 3600).seen_unchanged_for(65).was_read().followed_for(3601),
            first,
        ),
        // Accepted.
        ("an accepted one is read at once after a restart", a_stop().accepted_at(990), READ),
        ("an accepted one is read when it is due", a_stop().accepted_at(990).next_look_in(0), READ),
        ("else it waits", a_stop().accepted_at(990).next_look_in(9), Wait(seconds(9))),
        ("stopping is followed", a_stop().accepted_at(990).state("stopping").tasks_known(), READ),
        ("an unknown state is followed", a_stop().accepted_at(990).state("pondering").tasks_known(), READ),
        ("canceled ends it", a_stop().accepted_at(990).state("canceled").tasks_known(), Finish(Ending::Ended)),
        ("failed ends it", a_stop().accepted_at(990).state("failed").tasks_known(), Finish(Ending::Ended)),
        ("an end without tasks is read once for them", a_stop().accepted_at(990).state("canceled"), READ),
        (
            "but not when it is not followed",
            a_stop().accepted_at(990).state("canceled").followed_for(0),
            Finish(Ending::Ended),
        ),
        (
            "and not for ever",
            a_stop().accepted_at(900).state("canceled").followed_for(100).was_read(),
            Finish(Ending::Ended),
        ),
        (
            "not followed is done",
            a_stop().accepted_at(990).state("stopping").followed_for(0),
            Finish(Ending::NotFollowed),
        ),
        (
            "not followed is done without a state",
            a_stop().accepted_at(990).followed_for(0),
            Finish(Ending::NotFollowed),
        ),
        (
            "followed for long enough is over",
            a_stop().accepted_at(900).state("stopping").followed_for(100).was_read(),
            Finish(Ending::StillActive),
        ),
        (
            "what no replica has followed is read once, at once",
            a_stop().accepted_at(900).state("stopping").followed_for(100).next_look_in(9),
            READ,
        ),
        (
            "unreadable for the settle time, it stays so",
            a_stop().accepted_at(990).unreadable_for(30),
            Decision::Read(UNREADABLE),
        ),
        ("notAfter does not end the following", a_stop().accepted_at(990).not_after(1), READ),
        ("what was read is stored first", a_stop().accepted_at(990).next_look_in(9).unrecorded(), Record),
        ("also when the following is over", a_stop().accepted_at(900).followed_for(100).unrecorded(), Record),
        ("but not on one being deleted", a_stop().accepted_at(990).unrecorded().being_deleted(), Nothing),
        ("suspension does not end the following", a_stop().accepted_at(990).suspended(), READ),
        ("the stop deadline does not end the following", a_stop().accepted_at(990).deadline(1), READ),
        // Not sent yet.
        ("a suspended one waits", a_stop().suspended(), Suspended),
        ("a suspended one has no deadline", a_stop().suspended().deadline(1), Suspended),
        ("the deadline ends it", a_stop().deadline(1000), Finish(Ending::DeadlineExceeded)),
        ("the deadline bounds the stop", a_stop().deadline(1007), Stop(by(1007))),
        ("notAfter bounds the stop", a_stop().not_after(1007), Stop(by(1007))),
        ("the earlier of both counts", a_stop().not_after(1007).deadline(1003), Stop(by(1003))),
        ("whichever that is", a_stop().not_after(1002).deadline(1003), Stop(by(1002))),
        ("at notAfter it is too late", a_stop().not_after(NOW), Finish(Ending::DeadlineExceeded)),
        ("a moment before, it is not", a_stop().not_after(NOW + 1), Stop(by(NOW + 1))),
        ("one created at its notAfter has expired", a_stop().not_after(0), Finish(Ending::Expired)),
        ("one created after it has expired", a_stop().not_after(-5), Finish(Ending::Expired)),
        (
            "one that was sent has not, whatever it was created after",
            a_stop().dropped(Reason::Unavailable).not_after(0),
            Finish(Ending::DeadlineExceeded),
        ),
        ("one created before it has not", a_stop().not_after(1), Finish(Ending::DeadlineExceeded)),
        ("notAfter ends a suspended one", a_stop().suspended().not_after(1), Finish(Ending::DeadlineExceeded)),
        ("also one that had expired", a_stop().suspended().not_after(0), Finish(Ending::Expired)),
        // A further request.
        ("refused by a 429 it is sent again", a_stop().dropped(Reason::RateLimited), Stop(None)),
        ("refused by a 401 it is sent again", a_stop().dropped(Reason::Unauthorized), Stop(None)),
        ("refused by a 403 it is sent again", a_stop().dropped(Reason::Forbidden), Stop(None)),
        ("not sent, it is sent again", a_stop().dropped(Reason::Unreachable), Stop(None)),
        ("too late to be sent, it is sent again", a_stop().dropped(Reason::StopRequested), Stop(None)),
        (
            "without effect as far as reads tell, it is read first",
            a_stop().dropped(Reason::Unavailable),
            Repeat(None, NOTHING),
        ),
        ("after a conflict, it is read first", a_stop().dropped(Reason::Conflict), Repeat(None, NOTHING)),
        (
            "after a gateway's answer, it is read first",
            a_stop().dropped(Reason::UnexpectedAnswer),
            Repeat(None, NOTHING),
        ),
        (
            "also with a deadline and unreadable before",
            a_stop().dropped(Reason::Unavailable).deadline(1007).unreadable_for(30),
            Repeat(by(1007), UNREADABLE),
        ),
        ("its backoff comes first", a_stop().dropped(Reason::Unavailable).next_attempt_at(1005), wait(5)),
        (
            "a status that lost its reason is read first",
            a_stop().status(|status| status.stop_request.get_or_insert_default().attempts = 1),
            Repeat(None, NOTHING),
        ),
        ("the next attempt waits", a_stop().next_attempt_at(1005), Wait(seconds(5))),
        ("its time has come", a_stop().next_attempt_at(1000), Stop(None)),
        ("a time that somebody may write counts", a_stop().next_attempt_at(NOW + 360), wait(360)),
        ("a time of a clock that is far ahead is waited for as long", a_stop().next_attempt_at(NOW + 3600), wait(360)),
        ("and no longer, by the own clock", a_stop().next_attempt_at(NOW + 3600).next_attempt_seen_for(359), wait(1)),
        ("then its time has come", a_stop().next_attempt_at(NOW + 3600).next_attempt_seen_for(360), Stop(None)),
    ];
    for (name, situation, expected) in rules {
        assert_eq!(situation.decide(), *expected, "{name}");
    }
}

#[test]
fn no_wait_outlasts_a_deadline() {
    let latest = |situation: Situation| {
        at_the_latest(&situation.stop, Timestamp::from_second(NOW).unwrap()).map(|wait| wait.as_secs())
    };
    assert_eq!(latest(a_stop()), None);
    assert_eq!(latest(a_stop().deadline(1002)), Some(2));
    assert_eq!(latest(a_stop().deadline(1)), Some(0), "a deadline that is over");
    assert_eq!(latest(a_stop().deadline(1002).suspended()), None, "suspended, it has none");
    assert_eq!(latest(a_stop().not_after(1004)), Some(4));
    assert_eq!(latest(a_stop().not_after(1004).deadline(1002)), Some(2));
    assert_eq!(latest(a_stop().not_after(1004).suspended()), Some(4), "suspension does not move notAfter");
    assert_eq!(latest(a_stop().deadline(1002).claimed_at(999)), None, "a claim has to be cleared up first");
    assert_eq!(latest(a_stop().deadline(1002).accepted_at(990).followed_for(15)), Some(5), "the following ends");
    assert_eq!(latest(a_stop().deadline(1002).finished()), None);
    assert_eq!(latest(a_stop().deadline(1).being_deleted()), None, "it is left alone, however long its deletion takes");
}

#[test]
fn one_created_after_its_not_after_expires_also_where_the_clock_is_behind() {
    let stop = a_stop().not_after(-5).stop;
    let behind = Timestamp::from_second(-3600).unwrap();
    assert_eq!(decide(&stop, behind, &Observed::default(), &RULES), Decision::Finish(Ending::Expired));
}

#[test]
fn a_long_settle_time_is_waited_for() {
    let rules = Rules { settle_time: seconds(600), ..RULES };
    let situation = a_stop().claimed_at(900).ended(990, UnclearAnswer::NoAnswer).next_attempt_at(NOW + 590);
    let now = Timestamp::from_second(NOW).unwrap();
    let observed = Observed { claim_unchanged: seconds(600), ..Observed::default() };
    assert_eq!(decide(&situation.stop, now, &observed, &rules), Decision::Wait(seconds(590)));
}
