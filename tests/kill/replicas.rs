//! Two replicas at work: side by side, and one after the other has slept.

use lab::{
    apiserver_proxy::{Fate, Purpose},
    simulator::HoldPoint,
};
use tokio::process::Command;

use crate::{
    batch::{Batch, stored},
    support::{Operator, TENANT, a_stop, ends_at_once},
};

const SOME: usize = 20;

async fn signal(operator: &Operator, signal: &str) {
    let done = Command::new("kill").args([signal, &operator.pid().to_string()]).status().await.unwrap();
    assert!(done.success());
}

/// Puts a replica to sleep, and waits until it sleeps.
async fn put_to_sleep(operator: &Operator) {
    signal(operator, "-STOP").await;
    let stat = format!("/proc/{}/stat", operator.pid());
    // The state follows the name, which stands in parentheses.
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        tokio::task::yield_now().await;
    }
}

/// The replica that slept goes on, and has to do the work of another one that ended: whatever it had still in
/// mind it has done then.
async fn awake_and_at_work(batch: &Batch, slept: Operator, other: Operator) {
    signal(&slept, "-CONT").await;
    assert_eq!(other.terminate().await, Some(0));
    batch.place.amperity.add_run(TENANT, ends_at_once("wf-later"));
    batch.place.apply(a_stop("wf-later")).await;
    batch.place.finished("wf-later").await;
    assert_eq!(batch.place.sent("wf-later").0, 1);
    assert_eq!(slept.terminate().await, Some(0));
}

#[tokio::test]
async fn two_replicas_without_leader_election_send_two_hundred_stops_once_each() {
    let batch = Batch::new(200).await;
    let (_first, _second) = (batch.operator(&[]).await, batch.operator(&[]).await);
    batch.apply().await;
    batch.kept_with_one_request_each().await;
    assert_eq!(batch.all_posts(), 200);
}

#[tokio::test]
async fn a_leader_that_slept_past_its_lease_with_requests_in_flight_sends_nothing_twice() {
    let batch = Batch::new(SOME).await;
    let flags = ["--leader-elect", "--lease-namespace", &batch.place.namespace];
    let hold = batch.place.amperity.hold_stops(HoldPoint::AfterEffect);
    let first = batch.operator(&flags).await;
    batch.apply().await;
    batch.posts(SOME, |_| true).await;
    put_to_sleep(&first).await;
    let second = batch.operator(&flags).await;
    batch.finished().await;
    hold.release();
    awake_and_at_work(&batch, first, second).await;
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_leader_that_slept_past_its_lease_with_claims_in_hand_sends_nothing_on_them() {
    let batch = Batch::new(SOME).await;
    let flags = ["--leader-elect", "--lease-namespace", &batch.place.namespace];
    let proxy = batch.proxy().await;
    proxy.rule_for_first(Purpose::Claim, Fate::HoldAnswer);
    let first = batch.operator_behind(&proxy, &flags).await;
    batch.apply().await;
    stored(&proxy, Purpose::Claim, SOME).await;
    put_to_sleep(&first).await;
    // The words that the claims are stored wait for it in its sockets.
    proxy.let_go();
    let second = batch.operator(&flags).await;
    batch.finished().await;
    assert_eq!(batch.all_posts(), SOME, "all of them are the other's");
    awake_and_at_work(&batch, first, second).await;
    batch.kept_with_one_request_each().await;
}
