//! Two replicas: at the same time, and one that takes over while the other is paused.

use lab::{
    apiserver_proxy::{ProxyAction, Purpose},
    simulator::HoldPoint,
    testing::{Operator, TENANT, a_stop, ends_at_once},
};

use crate::batch::{Batch, wait_stored};

const STOPS: usize = 20;

/// Sends SIGSTOP to a replica and waits until it is stopped.
async fn pause(operator: &Operator) {
    operator.signal("-STOP").await;
    let stat = format!("/proc/{}/stat", operator.pid());
    // The state follows the process name, which is in parentheses.
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        tokio::task::yield_now().await;
    }
}

/// Resumes the paused replica, terminates the other one, and waits until the resumed one has processed a new stop. By
/// then it has also completed the steps that were interrupted by the pause.
async fn resume_and_check(batch: &Batch, paused: Operator, other: Operator) {
    paused.signal("-CONT").await;
    assert_eq!(other.terminate().await, Some(0));
    batch.env.amperity.add_run(TENANT, ends_at_once("wf-later"));
    batch.env.create(a_stop("wf-later")).await;
    batch.env.wait_finished("wf-later").await;
    assert_eq!(batch.env.request_counts("wf-later").0, 1);
    assert_eq!(paused.terminate().await, Some(0));
}

#[tokio::test]
async fn two_replicas_without_leader_election_send_two_hundred_stops_once_each() {
    let batch = Batch::new(200).await;
    let (_first, _second) = (batch.start_operator(&[]).await, batch.start_operator(&[]).await);
    batch.create_stops().await;
    batch.assert_one_request_each().await;
    assert_eq!(batch.stop_request_count(), 200);
}

#[tokio::test]
async fn a_leader_paused_past_its_lease_with_requests_in_flight_sends_nothing_twice() {
    let batch = Batch::new(STOPS).await;
    let flags = ["--leader-elect", "--lease-namespace", &batch.env.namespace];
    let hold = batch.env.amperity.hold_stops(HoldPoint::AfterEffect);
    let first = batch.start_operator(&flags).await;
    batch.create_stops().await;
    batch.wait_for_stop_requests(STOPS, |_| true).await;
    pause(&first).await;
    let second = batch.start_operator(&flags).await;
    batch.wait_finished().await;
    hold.release();
    resume_and_check(&batch, first, second).await;
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn a_leader_paused_past_its_lease_sends_nothing_on_its_stored_claims() {
    let batch = Batch::new(STOPS).await;
    let flags = ["--leader-elect", "--lease-namespace", &batch.env.namespace];
    let proxy = batch.start_proxy().await;
    proxy.set_rule_for_first(Purpose::Claim, ProxyAction::HoldResponse);
    let first = batch.start_operator_behind(&proxy, &flags).await;
    batch.create_stops().await;
    wait_stored(&proxy, Purpose::Claim, STOPS).await;
    pause(&first).await;
    // The responses that confirm the claims wait in its sockets.
    proxy.release_held();
    let second = batch.start_operator(&flags).await;
    batch.wait_finished().await;
    assert_eq!(batch.stop_request_count(), STOPS, "all of them were sent by the second replica");
    resume_and_check(&batch, first, second).await;
    batch.assert_one_request_each().await;
}
