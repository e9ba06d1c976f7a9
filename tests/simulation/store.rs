//! Owns the tests of the store against the simulated API server: each result of a claim, a record and an update, with
//! one scripted fault at a time.
//! Never runs the operator around it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use workflow_run_stop_api::{Claim, StopRequest, WorkflowRunStopStatus, workflow_run::TaskInstance};
use workflow_run_stop_operator::{
    metric_labels::ResultLabel,
    reconcile::store::{ClaimResult, Claimed, StoreError, WriteResult},
};

use crate::{
    in_virtual_time,
    scenario::{Fault, Scenario, claim_of_another, finish},
    secrets::STATIC,
};

/// The operations of the store that these tests repeat.
impl Scenario {
    async fn claim(&self) -> Result<ClaimResult, StoreError> {
        let (store, stored) = (&self.context.store, self.stored());
        store.claim(store.turn_to_claim(&stored).await, &stored, |claim| with_request(Some(claim))).await
    }

    async fn claimed(&self) -> Claimed {
        match self.claim().await {
            Ok(ClaimResult::Claimed(claimed)) => *claimed,
            _ => panic!("the claim is stored"),
        }
    }

    fn writes(&self, result: &'static str) -> u64 {
        self.context.store.writes.get_or_create(&ResultLabel { result }).get()
    }
}

fn with_request(claim: Option<Claim>) -> WorkflowRunStopStatus {
    let request = StopRequest { attempts: 1, claim, ..StopRequest::default() };
    WorkflowRunStopStatus { stop_request: Some(request), ..WorkflowRunStopStatus::default() }
}

/// Returns a status with this state of the run.
fn in_state(state: &str) -> WorkflowRunStopStatus {
    WorkflowRunStopStatus { state: Some(state.to_owned()), ..with_request(None) }
}

fn label(object: &mut Value) {
    object["metadata"]["labels"] = json!({"changed": "yes"});
}

#[test]
fn a_claim_is_made_only_if_it_is_stored() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        assert_eq!(test.context.store.holder(), "replica-0");
        test.faults(&[]);
        let claimed = test.claimed().await;
        assert_eq!(claimed.resource().claim(), test.stored().claim());
        assert_eq!((test.requests().as_str(), test.writes("stored")), ("PATCH", 1));
        for (faults, claims) in [
            // The answer was lost, or a proxy repeated the patch: a read shows that the claim is stored.
            (&[Fault::ResponseLost][..], true),
            (&[Fault::Repeated(422)], true),
            (&[Fault::Repeated(500)], true),
            // The claim is not stored.
            (&[Fault::RequestLost], false),
            (&[Fault::Refused(403)], false),
            (&[Fault::Refused(422)], false),
            // Nobody knows.
            (&[Fault::ResponseLost, Fault::RequestLost], false),
        ] {
            let test = Scenario::new();
            test.faults(faults);
            let claim = test.claim().await;
            assert_eq!(matches!(claim, Ok(ClaimResult::Claimed(_))), claims, "{faults:?}");
            assert_eq!(claim.is_ok(), claims, "{faults:?}");
        }
    });
}

#[test]
fn a_resource_that_changed_or_is_gone_is_not_claimed() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        test.faults(&[Fault::ChangedBefore(claim_of_another)]);
        let Ok(ClaimResult::NotClaimed(WriteResult::Changed(now))) = test.claim().await else { panic!("claimed") };
        assert_eq!(now.claim().unwrap().id, "other");
        assert_eq!(test.writes("conflict"), 1);
        let test = Scenario::new();
        test.faults(&[Fault::DeletedBefore]);
        assert!(matches!(test.claim().await, Ok(ClaimResult::NotClaimed(WriteResult::Gone))));
        assert_eq!(test.writes("gone"), 1);
    });
}

#[test]
fn an_outcome_is_recorded_until_it_is_stored() {
    in_virtual_time(1, async {
        for (faults, requests, results) in [
            (&[][..], "PATCH", (1, 0, 0)),
            // Only the answer was lost: a read shows that it is stored.
            (&[Fault::ResponseLost], "PATCH GET", (1, 0, 0)),
            (&[Fault::Repeated(500)], "PATCH GET", (1, 0, 0)),
            // Not stored: again, after a while.
            (&[Fault::RequestLost], "PATCH GET PATCH", (1, 0, 1)),
            (&[Fault::Refused(500), Fault::RequestLost], "PATCH GET PATCH", (1, 0, 1)),
            (&[Fault::RequestLost, Fault::None, Fault::RequestLost], "PATCH GET PATCH GET PATCH", (1, 0, 2)),
            // A change in between that leaves the claim: at once, for the newest version.
            (&[Fault::ChangedBefore(label)], "PATCH GET PATCH", (1, 1, 0)),
        ] {
            let test = Scenario::new();
            let claimed = test.claimed().await;
            let before = test.writes("stored");
            test.faults(faults);
            let written = test.context.store.record(claimed, |_| in_state("stopping")).await;
            assert!(matches!(written, WriteResult::Stored(_)), "{faults:?}: {written:?}");
            assert_eq!(test.stored().status, Some(in_state("stopping")), "{faults:?}");
            assert_eq!(test.requests(), requests, "{faults:?}");
            let counts = (test.writes("stored") - before, test.writes("conflict"), test.writes("failed"));
            assert_eq!(counts, results, "{faults:?}");
        }
    });
}

#[test]
fn an_outcome_is_retried_with_delays_that_double_up_to_five_seconds() {
    in_virtual_time(1, async {
        // Ten rounds of a patch and a read.
        let test = Scenario::new();
        let claimed = test.claimed().await;
        test.faults(&[Fault::RequestLost; 20]);
        let start = Instant::now();
        let written = test.context.store.record(claimed, |_| in_state("stopping")).await;
        assert!(matches!(written, WriteResult::Stored(_)), "{written:?}");
        // Without jitter: 0.1 + 0.2 + … + 3.2 + 4 times 5 s. Jitter takes off up to half.
        let longest = Duration::from_millis(26_300);
        assert!((longest / 2..=longest).contains(&start.elapsed()), "{:?}", start.elapsed());
    });
}

#[test]
fn an_outcome_is_given_up_only_if_the_resource_is_gone_finished_or_claimed_by_another() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        let claimed = test.claimed().await;
        test.faults(&[Fault::DeletedBefore]);
        assert!(matches!(test.context.store.record(claimed, |_| in_state("stopping")).await, WriteResult::Gone));
        for change in [claim_of_another as fn(&mut Value), finish] {
            let test = Scenario::new();
            let claimed = test.claimed().await;
            test.faults(&[Fault::ChangedBefore(change)]);
            let written = test.context.store.record(claimed, |_| in_state("stopping")).await;
            assert!(matches!(written, WriteResult::Changed(_)), "{written:?}");
            assert_eq!(test.stored().status.unwrap().state, None, "the record of another is not overwritten");
        }
    });
}

#[test]
fn an_outcome_that_the_api_server_rejects_is_stored_without_details() {
    in_virtual_time(1, async {
        let with_tasks =
            || WorkflowRunStopStatus { task_instances: Some(vec![TaskInstance::default()]), ..in_state("stopping") };
        let test = Scenario::new();
        let claimed = test.claimed().await;
        test.faults(&[Fault::Refused(422)]);
        assert!(matches!(test.context.store.record(claimed, |_| with_tasks()).await, WriteResult::Stored(_)));
        assert_eq!(test.stored().status, Some(with_tasks().bare()));
        // Another error says nothing about the content.
        let test = Scenario::new();
        let claimed = test.claimed().await;
        test.faults(&[Fault::Refused(503)]);
        assert!(matches!(test.context.store.record(claimed, |_| with_tasks()).await, WriteResult::Stored(_)));
        assert_eq!(test.stored().status, Some(with_tasks()));
        // An update does the same at once, if there are details to leave out.
        for (status, requests, stored) in [(with_tasks(), "PATCH GET PATCH", true), (in_state("x"), "PATCH GET", false)]
        {
            let test = Scenario::new();
            test.faults(&[Fault::Refused(422)]);
            let written = test.context.store.update(&test.stored(), status.clone()).await;
            assert_eq!(matches!(written, Ok(WriteResult::Stored(_))), stored, "{written:?}");
            assert_eq!(matches!(written, Err(StoreError::Invalid(_))), !stored, "{written:?}");
            assert_eq!(test.requests(), requests);
        }
    });
}

#[test]
fn an_update_builds_on_the_version_that_was_read_and_is_skipped_if_nothing_changes() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        let written = test.context.store.update(&test.stored(), in_state("a")).await.unwrap();
        let WriteResult::Stored(stored) = written else { panic!("{written:?}") };
        test.faults(&[]);
        assert!(matches!(test.context.store.update(&stored, in_state("a")).await, Ok(WriteResult::Same)));
        assert_eq!(test.requests(), "", "nothing is sent");
        test.faults(&[Fault::ChangedBefore(label)]);
        assert!(matches!(test.context.store.update(&stored, in_state("b")).await, Ok(WriteResult::Changed(_))));
        assert_eq!(test.stored().status, Some(in_state("a")));
        test.faults(&[Fault::Refused(500)]);
        assert!(matches!(test.context.store.write(&test.stored(), &in_state("b")).await, Err(StoreError::Kube(_))));
        assert_eq!((test.writes("stored"), test.writes("conflict"), test.writes("failed")), (1, 1, 1));
    });
}

#[test]
fn a_secret_is_cached_for_one_second_and_one_read_serves_all_that_wait() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        let (namespace, name) = {
            let inner = test.world.lock();
            (inner.namespaces()[0], STATIC)
        };
        test.faults(&[]);
        let (first, second) =
            tokio::join!(test.context.store.secret(namespace, name), test.context.store.secret(namespace, name));
        let version = first.unwrap().unwrap().version;
        assert_eq!(second.unwrap().unwrap().version, version);
        assert_eq!(test.requests(), "GET");
        tokio::time::advance(Duration::from_millis(900)).await;
        assert!(test.context.store.secret(namespace, "none").await.unwrap().is_none());
        assert!(test.context.store.secret(namespace, name).await.unwrap().is_some());
        assert_eq!(test.requests(), "GET GET", "it is still fresh, although another one was read");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(test.context.store.secret(namespace, name).await.unwrap().is_some());
        assert_eq!(test.requests(), "GET GET GET", "it is read again after one second");
        test.faults(&[Fault::Refused(403)]);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(test.context.store.secret(namespace, name).await.is_err_and(|error| error.is_forbidden()));
    });
}
