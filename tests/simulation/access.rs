//! Owns the tests of a step's credentials and of its wait for the rate limit.
//! Never runs the watch around them.

use std::time::Duration;

use lab::testing::message;
use tokio::time::sleep;
use workflow_run_stop_api::conditions::{ConditionType, Reason};
use workflow_run_stop_operator::{
    amperity::{credentials::Refusal, purpose::Purpose},
    reconcile::{
        outcome::Retry,
        step_report::{Requeue, StepOutcome},
    },
};

use crate::{
    answers::{Answer, Effect},
    in_virtual_time,
    scenario::{Fault, LONG, Scenario, claim_of_another, wait},
    secrets::STATIC,
};

#[test]
fn a_missing_secret_is_reported_and_looked_up_again_with_backoff_and_is_no_try_to_read() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.change(|object| object["spec"]["credentialsSecretRef"]["name"] = "none".into());
        let mut waits = vec![];
        for _ in 0..8 {
            let report = test.step().await;
            waits.push(wait(report.requeue).unwrap());
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert_eq!(test.reason(), Some(Reason::CredentialsMissing));
        assert_eq!(test.stored().stop_request(), None, "nothing is claimed");
        assert!(waits.iter().all(|wait| !wait.is_zero() && *wait <= Duration::from_secs(60)), "{waits:?}");
        // With an open claim, a person can still correct it: it does not count as a try to read the run.
        test.change(claim_of_another);
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(test.step().await);
        tokio::time::sleep(Duration::from_secs(70)).await;
        drop(test.step().await);
        *test.tracked.resource = test.stored();
        assert_eq!(test.tracked.observed().tried_for, None);
    });
}

#[test]
fn a_403_to_a_stop_ends_the_backoff_that_an_earlier_401_started_for_reads() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        for (answer, reason) in [(401, Reason::Unauthorized), (403, Reason::Forbidden)] {
            test.stops(Answer::Own(answer), Effect::None);
            while test.reason() != Some(reason) {
                drop(test.step_that_writes().await);
            }
        }
        // Accepted by another replica with other credentials.
        test.change(|object| {
            object["status"]["stopRequest"]["acceptedTime"] = "2027-01-15T08:00:00Z".into();
        });
        let report = test.step_that_writes().await;
        assert!(matches!(report.outcome, StepOutcome::RunRead), "{report:?}");
    });
}

#[test]
fn a_stop_that_waited_for_the_rate_limit_is_sent_with_unchanged_credentials() {
    for is_client in [false, true] {
        in_virtual_time(1, async {
            let mut test = Scenario::new();
            if is_client {
                test.uses_client();
                // The token is fetched before the wait.
                drop(test.access().await);
            }
            test.close_budget(LONG).await;
            let report = test.step().await;
            assert!(matches!(report.outcome, StepOutcome::StopAttempted { .. }), "{is_client}: {report:?}");
            assert_eq!(test.posts(), 1);
        });
    }
}

#[test]
fn a_stop_that_waited_for_the_rate_limit_uses_its_credentials_as_they_are_after_the_wait() {
    in_virtual_time(1, async {
        for was_refused in [false, true] {
            let mut test = Scenario::new();
            test.close_budget(LONG).await;
            let (cache, world) = (test.context.credential_cache.clone(), test.world.clone());
            let key = test.credentials_key(STATIC).await;
            let permit = cache.admit(&key, Purpose::Stop).unwrap();
            let meanwhile = async {
                sleep(LONG - Duration::from_millis(100)).await;
                match was_refused {
                    true => cache.record_refusal(&key, permit, Refusal::Unauthorized, ""),
                    false => world.lock().renew(&format!("sim/{STATIC}")),
                }
            };
            let (report, ()) = tokio::join!(test.step(), meanwhile);
            assert_eq!(test.posts(), usize::from(!was_refused), "{report:?}");
            let waits = matches!(report.requeue, Requeue::At(_));
            assert_eq!((waits, test.reason() == Some(Reason::Unauthorized)), (was_refused, was_refused), "{report:?}");
        }
    });
}

#[test]
fn a_refused_token_from_the_cache_is_replaced_at_once_and_a_new_one_starts_a_backoff() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        test.uses_client();
        drop(test.access().await);
        let kept = test.access().await;
        assert_eq!(test.context.refused(&kept, Refusal::Unauthorized, ""), Retry::AtOnce);
        let fetched = test.access().await;
        assert_eq!(test.context.refused(&fetched, Refusal::Unauthorized, ""), Retry::Backoff);
        let slot = test.slot(Purpose::Read).await;
        let access = test.context.access(&test.requester(Purpose::Read), &test.endpoint(), slot).await;
        assert!(access.is_err(), "in backoff");
        test.context.may_read(&fetched);
        drop(test.access().await);
        let kept = test.access().await;
        assert_eq!(test.context.refused(&kept, Refusal::Forbidden, ""), Retry::Backoff, "a 403 is not about the token");
    });
}

#[test]
fn a_run_is_read_again_at_once_if_its_cached_token_was_refused() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.uses_client();
        test.is_accepted();
        drop(test.access().await);
        test.reads(Answer::Own(401));
        let report = test.step().await;
        assert_eq!((matches!(report.outcome, StepOutcome::Unchanged), report.requeue), (true, Requeue::Now));
        let report = test.step().await;
        assert!(matches!(report.outcome, StepOutcome::RunRead), "{report:?}");
        assert_eq!(test.reason(), Some(Reason::Unauthorized));
    });
}

#[test]
fn a_successful_read_ends_the_backoff_of_its_credentials() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.is_accepted();
        let key = test.credentials_key(STATIC).await;
        let cache = test.context.credential_cache.clone();
        cache.record_refusal(&key, cache.admit(&key, Purpose::Read).unwrap(), Refusal::Unauthorized, "");
        sleep(Duration::from_secs(2)).await;
        let report = test.step_that_writes().await;
        assert!(matches!(report.outcome, StepOutcome::RunRead), "{report:?}");
        assert!((0..2).all(|_| cache.admit(&key, Purpose::Read).is_ok()), "nothing waits for a trial");
    });
}

#[test]
fn a_secret_that_cannot_be_read_is_reported_with_the_cause() {
    in_virtual_time(1, async {
        for (code, text) in
            [(403, "the operator is not allowed to read the Secret"), (500, "the API server cannot read")]
        {
            let mut test = Scenario::new();
            test.faults(&[Fault::Refused(code)]);
            drop(test.step().await);
            assert_eq!(test.reason(), Some(Reason::CredentialsMissing), "{code}");
            let message = message(&test.stored(), ConditionType::Ready);
            assert!(message.contains(text), "{message}");
        }
        // Any other failure says nothing about the Secret.
        let mut test = Scenario::new();
        test.faults(&[Fault::Refused(503)]);
        assert!(matches!(test.step().await.outcome, StepOutcome::Failed(_)));
    });
}

#[test]
fn a_token_request_that_is_answered_429_is_repeated_when_the_budget_reopens() {
    in_virtual_time(1, async {
        let mut test = Scenario::new();
        test.uses_client();
        test.world.lock().faults.always_rate_limited = Some("acme");
        let report = test.step().await;
        assert_eq!((test.reason(), test.posts()), (Some(Reason::RateLimited), 0));
        let reopens_in = test.context.budget.states()[0].closed_for.unwrap();
        assert_eq!(wait(report.requeue), Some(reopens_in));
    });
}
