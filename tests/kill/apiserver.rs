//! The way to the API server loses, delays or refuses single requests.

use std::{collections::HashSet, time::Duration};

use lab::{
    apiserver_proxy::{ApiserverProxy, Call, Fate, Purpose},
    simulator::{HoldPoint, Run},
};
use tokio::time::{Instant, timeout};
use workflow_run_stop_api::conditions::{ConditionStatus, ConditionType, Reason};

use crate::{
    batch::{Batch, came, stored},
    support::{Operator, Place, TENANT, a_stop, condition, is, ready, request},
};

const SOME: usize = 30;
const OUTAGE: Duration = Duration::from_secs(10);

fn is_write(call: &Call) -> bool {
    matches!(call.purpose, Purpose::Claim | Purpose::Record | Purpose::Patch)
}

/// The first requests of each stop for this purpose meet this fate; one request is sent for each all the same. Also
/// returns what the operator logged until then.
async fn sent_once_though_the_first(purpose: Purpose, fate: Fate) -> (Batch, Vec<String>) {
    let batch = Batch::new(SOME).await;
    let proxy = batch.proxy().await;
    proxy.rule_for_first(purpose, fate);
    batch.apply().await;
    let operator = batch.operator_behind(&proxy, &[]).await;
    batch.kept_with_one_request_each().await;
    (batch, operator.log())
}

/// All were accepted by the answer itself, not by reading later on.
async fn assert_answers_recorded(batch: &Batch) {
    for run in &batch.runs {
        let stop = batch.place.get(run).await;
        assert_eq!(condition(&stop, ConditionType::StopAccepted), ("True".into(), "StopAccepted".into()), "{run}");
    }
}

/// So many claims were made for each stop.
async fn assert_attempts(batch: &Batch, attempts: i32) {
    for run in &batch.runs {
        let stop = batch.place.get(run).await;
        assert_eq!(request(&stop).attempts, attempts, "{run}");
    }
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_found_and_used() {
    let (batch, _) = sent_once_though_the_first(Purpose::Claim, Fate::LoseAnswer).await;
    assert_answers_recorded(&batch).await;
    assert_attempts(&batch, 1).await;
}

#[tokio::test]
async fn a_claim_whose_answer_and_reading_are_lost_is_waited_out() {
    let batch = Batch::new(SOME).await;
    let proxy = batch.proxy().await;
    let mut met: HashSet<(String, bool)> = HashSet::new();
    proxy.rule(move |call| {
        let mut first = |is_claim| met.insert((call.name.clone(), is_claim));
        match call.purpose {
            Purpose::Claim if first(true) => Fate::LoseAnswer,
            Purpose::Read if first(false) => Fate::Refuse,
            Purpose::Claim | Purpose::Read | Purpose::Record | Purpose::Patch | Purpose::Other => Fate::Pass,
        }
    });
    batch.apply().await;
    let _operator = batch.operator_behind(&proxy, &[]).await;
    came(&proxy, Purpose::Read, SOME).await;
    assert_eq!(batch.all_posts(), 0, "nothing is sent without the word that the claim is stored");
    batch.kept_with_one_request_each().await;
    assert_attempts(&batch, 2).await;
}

#[tokio::test]
async fn a_claim_that_is_refused_is_made_again() {
    let (batch, _) = sent_once_though_the_first(Purpose::Claim, Fate::Refuse).await;
    assert_answers_recorded(&batch).await;
    assert_attempts(&batch, 1).await;
}

#[tokio::test]
async fn a_claim_that_is_stored_somewhat_late_is_used() {
    let (batch, _) = sent_once_though_the_first(Purpose::Claim, Fate::Late(Duration::from_secs(3))).await;
    assert_attempts(&batch, 1).await;
}

#[tokio::test]
async fn nothing_is_sent_on_a_claim_whose_answer_comes_too_late() {
    let (batch, _) = sent_once_though_the_first(Purpose::Claim, Fate::LateAnswer(Duration::from_secs(6))).await;
    assert_attempts(&batch, 2).await;
}

#[tokio::test]
async fn a_claim_that_is_stored_after_it_was_given_up_entitles_nobody() {
    let batch = Batch::new(SOME).await;
    let proxy = batch.proxy().await;
    proxy.rule_for_first(Purpose::Claim, Fate::Hold);
    batch.apply().await;
    let _operator = batch.operator_behind(&proxy, &[]).await;
    // It waits for the answer in vain and asks what is stored; then the claim arrives before or after its next one.
    stored(&proxy, Purpose::Read, SOME).await;
    proxy.let_go();
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_record_whose_answer_is_lost_is_not_made_twice_and_not_reported_as_late() {
    let (batch, log) = sent_once_though_the_first(Purpose::Record, Fate::LoseAnswer).await;
    assert_answers_recorded(&batch).await;
    let late: Vec<_> = log.into_iter().filter(|line| line.contains("late")).collect();
    assert_eq!(late, Vec::<String>::new());
}

#[tokio::test]
async fn a_record_that_is_stored_after_it_was_given_up_is_not_made_twice() {
    let (batch, _) = sent_once_though_the_first(Purpose::Record, Fate::Late(Duration::from_secs(12))).await;
    assert_answers_recorded(&batch).await;
}

#[tokio::test]
async fn what_was_learned_while_nothing_could_be_written_is_recorded_afterwards() {
    let batch = Batch::new(SOME).await;
    let proxy = batch.proxy().await;
    let hold = batch.place.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.apply().await;
    let _operator = batch.operator_behind(&proxy, &["--request-timeout", "30s"]).await;
    batch.posts(SOME, |_| true).await;
    let before = proxy.calls().len();
    proxy.rule(|call| if is_write(call) { Fate::Refuse } else { Fate::Pass });
    hold.release();
    let outage_is_over = |calls: &[Call]| {
        let mut refused = calls[before..].iter().filter(|call| is_write(call));
        let (first, last) = (refused.next(), refused.next_back());
        first.zip(last).is_some_and(|(first, last)| OUTAGE <= last.at - first.at)
    };
    timeout(OUTAGE * 3, proxy.wait_until(outage_is_over)).await.expect("it goes on trying");
    proxy.rule(|_| Fate::Pass);
    batch.kept_with_one_request_each().await;
    assert_answers_recorded(&batch).await;
}

#[tokio::test]
async fn an_end_that_was_read_is_told_although_it_could_not_be_written_before_the_following_was_over() {
    const FOLLOWED: Duration = Duration::from_secs(4);
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(1)));
    let proxy = ApiserverProxy::start(place.operators_client()).await;
    let mut stop = a_stop("wf-1");
    stop.spec.follow_timeout_seconds = FOLLOWED.as_secs() as i32;
    place.apply(stop).await;
    let mut command = place.command();
    command.env("KUBECONFIG", proxy.kubeconfig());
    let _operator = Operator::start(command).await;
    place.reason("wf-1", Reason::FollowingRun).await;
    let accepted = Instant::now();
    proxy.rule(|call| if is_write(call) { Fate::Refuse } else { Fate::Pass });
    // The only look before the following is over comes when the run has ended; nothing of it can be written.
    let refused_afterwards = |calls: &[Call]| {
        calls.iter().any(|call| is_write(call) && FOLLOWED + Duration::from_secs(1) <= call.at - accepted)
    };
    timeout(FOLLOWED * 10, proxy.wait_until(refused_afterwards)).await.expect("it goes on trying");
    let reads = place.amperity.reads("wf-1");
    proxy.rule(|_| Fate::Pass);
    assert_eq!(ready(&place.finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(place.amperity.reads("wf-1"), reads, "it is not read again");
}
