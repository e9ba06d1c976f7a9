//! Owns the tests of single reconciliations: what a step does, what it remembers, and when it is requeued.
//! Never runs the watch around them.

use std::time::Duration;

use futures::FutureExt;
use serde_json::json;
use tokio::{
    task::unconstrained,
    time::{Instant, sleep},
};
use workflow_run_stop_api::conditions::Reason;
use workflow_run_stop_operator::reconcile::step_report::{Requeue, StepOutcome};

use crate::{
    answers::{Answer, Effect, Page},
    in_virtual_time,
    scenario::{Fault, LONG, RUN, Scenario, claim_of_another, finish, wait},
    world::SETTLE_TIME,
};

#[test]
fn an_accepted_stop_is_followed_and_its_run_is_read_two_seconds_later() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.is_stopping();
        let report = test.step().await;
        let StepOutcome::StopAttempted { class, sent, finished, unstored } = &report.outcome else {
            panic!("{report:?}")
        };
        assert_eq!((*class, sent.is_some(), *finished, unstored.is_none()), ("accepted", true, false, true));
        assert_eq!((report.requeue, test.reason()), (Requeue::Now, Some(Reason::FollowingRun)));
        let report = test.step().await;
        assert!(matches!(report.outcome, StepOutcome::Unchanged), "{report:?}");
        let wait = wait(report.requeue).unwrap();
        assert!((Duration::from_millis(1500)..Duration::from_millis(2300)).contains(&wait), "{wait:?}");
        test.world.lock().runs.get_mut(RUN).unwrap().set_state("canceled");
        let report = test.step_that_writes().await;
        assert!(matches!(report.outcome, StepOutcome::Finished), "{report:?}");
    });
}

#[test]
fn an_accepted_stop_without_a_run_in_its_answer_is_read_at_once() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.stops(Answer::Foreign(202, Page::Empty), Effect::AtOnce);
        drop(test.step().await);
        let start = Instant::now();
        drop(test.step_that_writes().await);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(test.stored().status.unwrap().state.is_some());
    });
}

#[test]
fn failed_requests_to_the_api_server_are_retried_with_backoff() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        let mut longest = Duration::ZERO;
        for failures in 1..=12 {
            test.faults(&[Fault::Refused(503); 4]);
            let report = test.step().await;
            assert!(matches!(report.outcome, StepOutcome::Failed(_)), "{report:?}");
            let wait = wait(report.requeue).unwrap();
            let limit = Duration::from_secs(1 << (failures - 1).min(6)).min(Duration::from_secs(60));
            assert!(Duration::ZERO < wait && wait <= limit, "{failures}: {wait:?}");
            longest = longest.max(wait);
        }
        assert!(Duration::from_secs(8) < longest, "the delay grows: {longest:?}");
    });
}

#[test]
fn an_answer_that_another_replica_has_overtaken_is_reported_and_not_stored() {
    in_virtual_time(1, async {
        for change in [claim_of_another as fn(&mut serde_json::Value), finish] {
            let mut test = Scenario::new();
            // Secret, claim, record.
            test.faults(&[Fault::None, Fault::None, Fault::ChangedBefore(change)]);
            let report = test.step().await;
            let StepOutcome::StopAttempted { sent, finished, unstored, .. } = &report.outcome else {
                panic!("{report:?}")
            };
            assert_eq!((sent.is_some(), *finished, unstored.is_some()), (true, false, true));
            let unstored = unstored.as_ref().unwrap();
            assert!(unstored.stop_request.as_ref().unwrap().accepted_time.is_some());
            assert_eq!(test.stored().accepted_time(), None);
        }
    });
}

#[test]
fn an_open_claim_is_confirmed_by_reading_the_run_after_the_request_timeout_and_the_settle_time() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.change(claim_of_another);
        let report = test.step().await;
        let quiet = Duration::from_secs(5) + test.context.rules.request_timeout + SETTLE_TIME;
        assert_eq!(wait(report.requeue), Some(quiet));
        tokio::time::sleep(quiet).await;
        let report = test.step_that_writes().await;
        assert!(matches!(report.outcome, StepOutcome::RunRead), "{report:?}");
        assert_eq!(test.reason(), Some(Reason::OutcomeUnknown));
        assert!(test.world.lock().runs[RUN].posts.is_empty(), "nothing is sent");
        // Active again, the settle time later: the request had no effect, and a new one is sent.
        drop(test.step_that_writes().await);
        assert_eq!(test.stored().claim(), None);
        drop(test.step_that_writes().await);
        assert_eq!(test.world.lock().runs[RUN].posts.len(), 1);
    });
}

/// Returns a stop whose request had no effect, and may be repeated.
async fn without_effect() -> Scenario {
    let mut test = Scenario::new();
    test.stops(Answer::Own(503), Effect::None);
    drop(test.step().await);
    assert_eq!(test.world.lock().runs[RUN].posts.len(), 1);
    // Two reads show that it had no effect, and the claim is dropped.
    drop(test.step_that_writes().await);
    drop(test.step_that_writes().await);
    assert_eq!((test.stored().claim(), test.reason()), (None, Some(Reason::Unavailable)));
    test
}

#[test]
fn a_repeated_stop_is_preceded_by_a_read_and_is_not_sent_if_the_run_has_stopped() {
    in_virtual_time(1, async {
        let mut test = without_effect().await;
        test.world.lock().runs.get_mut(RUN).unwrap().set_state("canceled");
        drop(test.step_that_writes().await);
        assert_eq!(test.world.lock().runs[RUN].posts.len(), 1, "no second request");
        assert!(test.stored().accepted_time().is_some());
    });
}

#[test]
fn a_repeated_stop_whose_claim_waits_long_for_the_api_server_is_not_sent_before_another_read() {
    in_virtual_time(1, async {
        let mut test = without_effect().await;
        sleep(LONG).await;
        // The Secret is in the cache, and other requests of the namespace take all the turns that it gets.
        drop(test.access().await);
        let (store, stored) = (test.context.store.clone(), test.stored());
        let turns: Vec<_> = std::iter::from_fn(|| unconstrained(store.turn_to_claim(&stored)).now_or_never()).collect();
        let start = Instant::now();
        let report = test.step().await;
        assert!(matches!((&report.outcome, report.requeue), (StepOutcome::Unchanged, Requeue::Now)), "{report:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        drop(turns);
        test.world.lock().runs.get_mut(RUN).unwrap().set_state("canceled");
        drop(test.step_that_writes().await);
        assert_eq!(test.world.lock().runs[RUN].posts.len(), 1, "no second request");
    });
}

#[test]
fn a_run_that_is_unreadable_after_acceptance_ends_the_following_at_the_second_read() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.is_stopping();
        test.reads(Answer::Own(403));
        drop(test.step().await);
        let start = Instant::now();
        while !test.stored().is_finished() {
            drop(test.step_that_writes().await);
        }
        assert!(SETTLE_TIME <= start.elapsed() && start.elapsed() < SETTLE_TIME * 4, "{:?}", start.elapsed());
        assert_eq!(test.reason(), Some(Reason::RunUnreadable));
    });
}

#[test]
fn a_read_is_stored_although_somebody_changed_a_label_meanwhile() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.is_accepted();
        // Secret, record.
        test.faults(&[Fault::None, Fault::ChangedBefore(|object| object["metadata"]["labels"] = json!({"a": "b"}))]);
        let report = test.step().await;
        assert!(matches!(report.outcome, StepOutcome::RunRead), "{report:?}");
    });
}

#[test]
fn the_last_read_after_the_follow_timeout_finishes_the_resource_in_the_same_write() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.is_accepted();
        test.change(|object| object["spec"]["followTimeoutSeconds"] = 5.into());
        sleep(LONG * 2).await;
        let report = test.step_that_writes().await;
        assert!(matches!(report.outcome, StepOutcome::Finished), "{report:?}");
        assert_eq!(test.reason(), Some(Reason::RunStillActive));
    });
}
