//! The process is killed with a hundred stops at one point; another process ends what it began.

use lab::{
    apiserver_proxy::{Fate, Purpose},
    simulator::HoldPoint,
};

use crate::{
    batch::{Batch, came, stored},
    support::{Operator, request},
};

const MANY: usize = 100;

/// The first process waits for its answers as long as it lives.
const PATIENT: [&str; 2] = ["--request-timeout", "60s"];

/// The first process is killed, and a second one is started.
async fn killed(batch: &Batch, first: Operator) -> Operator {
    first.kill().await;
    batch.operator(&[]).await
}

#[tokio::test]
async fn a_kill_before_the_claims_are_stored_sends_each_stop_once_even_if_they_arrive_afterwards() {
    let batch = Batch::new(MANY).await;
    let proxy = batch.proxy().await;
    proxy.rule_for(Purpose::Claim, Fate::Hold);
    batch.apply().await;
    let first = batch.operator_behind(&proxy, &[]).await;
    came(&proxy, Purpose::Claim, MANY).await;
    first.kill().await;
    assert_eq!(batch.all_posts(), 0, "nothing is sent without a stored claim");
    let (_second, ()) = tokio::join!(batch.operator(&[]), async { proxy.let_go() });
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_kill_between_the_claim_and_the_request_sends_each_stop_once() {
    let batch = Batch::new(MANY).await;
    let proxy = batch.proxy().await;
    proxy.rule_for(Purpose::Claim, Fate::HoldAnswer);
    batch.apply().await;
    let first = batch.operator_behind(&proxy, &[]).await;
    stored(&proxy, Purpose::Claim, MANY).await;
    first.kill().await;
    assert_eq!(batch.all_posts(), 0, "nothing is sent without the word that the claim is stored");
    let _second = batch.operator(&[]).await;
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_kill_at_the_first_claims_seen_leaves_one_effect_each() {
    let batch = Batch::new(MANY).await;
    batch.apply().await;
    let first = batch.operator(&[]).await;
    batch.until("one was claimed", |stops| stops.values().any(|stop| request(stop).claim.is_some())).await;
    let _second = killed(&batch, first).await;
    batch.kept().await;
}

#[tokio::test]
async fn a_kill_before_the_effects_leaves_one_request_and_one_effect_each() {
    killed_while_held_at(HoldPoint::BeforeEffect).await;
}

#[tokio::test]
async fn a_kill_after_the_effects_leaves_one_request_and_one_effect_each() {
    killed_while_held_at(HoldPoint::AfterEffect).await;
}

async fn killed_while_held_at(point: HoldPoint) {
    let batch = Batch::new(MANY).await;
    let hold = batch.place.amperity.hold_stops(point);
    batch.apply().await;
    let first = batch.operator(&PATIENT).await;
    batch.posts(MANY, |_| true).await;
    first.kill().await;
    hold.release();
    let _second = batch.operator(&[]).await;
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_kill_at_the_first_answers_leaves_one_effect_each() {
    let batch = Batch::new(MANY).await;
    let hold = batch.place.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.apply().await;
    let first = batch.operator(&PATIENT).await;
    batch.posts(MANY, |_| true).await;
    hold.release();
    batch.posts(1, |request| request.answered.is_some()).await;
    let _second = killed(&batch, first).await;
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_kill_between_the_answer_and_its_record_leaves_one_request_each() {
    let batch = Batch::new(MANY).await;
    let proxy = batch.proxy().await;
    proxy.rule_for(Purpose::Record, Fate::Swallow);
    batch.apply().await;
    let first = batch.operator_behind(&proxy, &[]).await;
    came(&proxy, Purpose::Record, MANY).await;
    batch.posts(MANY, |request| request.answered == Some(200)).await;
    let _second = killed(&batch, first).await;
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_record_that_arrives_after_its_process_was_killed_is_as_good_as_any() {
    let batch = Batch::new(MANY).await;
    let proxy = batch.proxy().await;
    proxy.rule_for(Purpose::Record, Fate::Hold);
    batch.apply().await;
    let first = batch.operator_behind(&proxy, &[]).await;
    came(&proxy, Purpose::Record, MANY).await;
    let _second = killed(&batch, first).await;
    proxy.let_go();
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_kill_before_the_records_are_known_to_be_stored_leaves_one_request_each() {
    let batch = Batch::new(MANY).await;
    let proxy = batch.proxy().await;
    proxy.rule_for(Purpose::Record, Fate::HoldAnswer);
    batch.apply().await;
    let first = batch.operator_behind(&proxy, &[]).await;
    stored(&proxy, Purpose::Record, MANY).await;
    let _second = killed(&batch, first).await;
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_kill_at_the_first_records_seen_leaves_one_effect_each() {
    let batch = Batch::new(MANY).await;
    batch.apply().await;
    let first = batch.operator(&[]).await;
    batch.until("one was accepted", |stops| stops.values().any(|stop| request(stop).accepted_time.is_some())).await;
    let _second = killed(&batch, first).await;
    batch.kept().await;
}

#[tokio::test]
async fn kills_one_after_the_other_while_requests_are_under_way_leave_one_effect_each() {
    let batch = Batch::new(MANY).await;
    batch.apply().await;
    let mut operator = batch.operator(&[]).await;
    for sent in [5, 17, 36, 58, 79] {
        batch.posts(sent, |_| true).await;
        operator = killed(&batch, operator).await;
    }
    batch.kept().await;
}
