//! The operator is killed while a hundred stops are at the same point; another process completes them.

use lab::{
    apiserver_proxy::{ProxyAction, Purpose},
    simulator::HoldPoint,
    testing::{Operator, stop_request},
};

use crate::batch::{Batch, wait_received, wait_stored};

const STOPS: usize = 100;

/// The first process never reaches its request timeout.
const LONG_REQUEST_TIMEOUT: [&str; 2] = ["--request-timeout", "60s"];

/// Kills the first process and starts a second one.
async fn kill_and_restart(batch: &Batch, first: Operator) -> Operator {
    first.kill().await;
    batch.start_operator(&[]).await
}

#[tokio::test]
async fn each_stop_is_sent_once_when_the_operator_is_killed_before_its_claims_are_stored() {
    let batch = Batch::new(STOPS).await;
    let proxy = batch.start_proxy().await;
    proxy.set_rule_for(Purpose::Claim, ProxyAction::HoldRequest);
    batch.create_stops().await;
    let first = batch.start_operator_behind(&proxy, &[]).await;
    wait_received(&proxy, Purpose::Claim, STOPS).await;
    first.kill().await;
    assert_eq!(batch.stop_request_count(), 0, "nothing is sent without a stored claim");
    let (_second, ()) = tokio::join!(batch.start_operator(&[]), async { proxy.release_held() });
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn each_stop_is_sent_once_when_the_operator_is_killed_between_claim_and_request() {
    let batch = Batch::new(STOPS).await;
    let proxy = batch.start_proxy().await;
    proxy.set_rule_for(Purpose::Claim, ProxyAction::HoldResponse);
    batch.create_stops().await;
    let first = batch.start_operator_behind(&proxy, &[]).await;
    wait_stored(&proxy, Purpose::Claim, STOPS).await;
    first.kill().await;
    assert_eq!(batch.stop_request_count(), 0, "nothing is sent before the claim is confirmed");
    let _second = batch.start_operator(&[]).await;
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn each_stop_has_one_effect_when_the_operator_is_killed_at_the_first_claim() {
    let batch = Batch::new(STOPS).await;
    batch.create_stops().await;
    let first = batch.start_operator(&[]).await;
    batch.wait_until("one was claimed", |stops| stops.values().any(|stop| stop_request(stop).claim.is_some())).await;
    let _second = kill_and_restart(&batch, first).await;
    batch.assert_one_effect_each().await;
}

#[tokio::test]
async fn each_stop_is_sent_once_when_the_operator_is_killed_before_the_effects() {
    kill_while_held_at(HoldPoint::BeforeEffect).await;
}

#[tokio::test]
async fn each_stop_is_sent_once_when_the_operator_is_killed_after_the_effects() {
    kill_while_held_at(HoldPoint::AfterEffect).await;
}

async fn kill_while_held_at(point: HoldPoint) {
    let batch = Batch::new(STOPS).await;
    let hold = batch.env.amperity.hold_stops(point);
    batch.create_stops().await;
    let first = batch.start_operator(&LONG_REQUEST_TIMEOUT).await;
    batch.wait_for_stop_requests(STOPS, |_| true).await;
    first.kill().await;
    hold.release();
    let _second = batch.start_operator(&[]).await;
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn each_stop_is_sent_once_when_the_operator_is_killed_at_the_first_answer() {
    let batch = Batch::new(STOPS).await;
    let hold = batch.env.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.create_stops().await;
    let first = batch.start_operator(&LONG_REQUEST_TIMEOUT).await;
    batch.wait_for_stop_requests(STOPS, |_| true).await;
    hold.release();
    batch.wait_for_stop_requests(1, |request| request.response_status.is_some()).await;
    let _second = kill_and_restart(&batch, first).await;
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn each_stop_is_sent_once_when_the_operator_is_killed_between_answer_and_record() {
    let batch = Batch::new(STOPS).await;
    let proxy = batch.start_proxy().await;
    proxy.set_rule_for(Purpose::Record, ProxyAction::Blackhole);
    batch.create_stops().await;
    let first = batch.start_operator_behind(&proxy, &[]).await;
    wait_received(&proxy, Purpose::Record, STOPS).await;
    batch.wait_for_stop_requests(STOPS, |request| request.response_status == Some(200)).await;
    let _second = kill_and_restart(&batch, first).await;
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn each_stop_is_sent_once_when_its_record_is_stored_after_the_operator_is_killed() {
    let batch = Batch::new(STOPS).await;
    let proxy = batch.start_proxy().await;
    proxy.set_rule_for(Purpose::Record, ProxyAction::HoldRequest);
    batch.create_stops().await;
    let first = batch.start_operator_behind(&proxy, &[]).await;
    wait_received(&proxy, Purpose::Record, STOPS).await;
    let _second = kill_and_restart(&batch, first).await;
    proxy.release_held();
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn each_stop_is_sent_once_when_the_operator_is_killed_before_its_records_are_confirmed() {
    let batch = Batch::new(STOPS).await;
    let proxy = batch.start_proxy().await;
    proxy.set_rule_for(Purpose::Record, ProxyAction::HoldResponse);
    batch.create_stops().await;
    let first = batch.start_operator_behind(&proxy, &[]).await;
    wait_stored(&proxy, Purpose::Record, STOPS).await;
    let _second = kill_and_restart(&batch, first).await;
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn each_stop_has_one_effect_when_the_operator_is_killed_at_the_first_record() {
    let batch = Batch::new(STOPS).await;
    batch.create_stops().await;
    let first = batch.start_operator(&[]).await;
    batch
        .wait_until("one was accepted", |stops| stops.values().any(|stop| stop_request(stop).accepted_time.is_some()))
        .await;
    let _second = kill_and_restart(&batch, first).await;
    batch.assert_one_effect_each().await;
}

#[tokio::test]
async fn each_stop_has_one_effect_when_the_operator_is_killed_five_times_in_a_row() {
    let batch = Batch::new(STOPS).await;
    batch.create_stops().await;
    let mut operator = batch.start_operator(&[]).await;
    for sent in [5, 17, 36, 58, 79] {
        batch.wait_for_stop_requests(sent, |_| true).await;
        operator = kill_and_restart(&batch, operator).await;
    }
    batch.assert_one_effect_each().await;
}
