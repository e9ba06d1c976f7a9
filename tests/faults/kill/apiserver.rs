//! A proxy in front of the API server that loses, delays or refuses single requests.

use std::{collections::HashSet, time::Duration};

use lab::{
    apiserver_proxy::{ApiserverProxy, ProxiedRequest, ProxyAction, Purpose},
    simulator::{HoldPoint, Run},
    testing::{Operator, TENANT, TestEnv, a_stop, condition, is, ready, stop_request},
};
use tokio::time::{Instant, timeout};
use workflow_run_stop_api::conditions::{ConditionStatus, ConditionType, Reason};

use crate::batch::{Batch, wait_received, wait_stored};

const STOPS: usize = 30;
const OUTAGE: Duration = Duration::from_secs(10);

fn is_write(request: &ProxiedRequest) -> bool {
    matches!(request.purpose, Purpose::Claim | Purpose::Record | Purpose::Patch)
}

/// Checks that each stop is sent once although the proxy does this to its first request for this purpose. Returns the
/// log of the operator, too.
async fn assert_sent_once_despite(purpose: Purpose, action: ProxyAction) -> (Batch, Vec<String>) {
    let batch = Batch::new(STOPS).await;
    let proxy = batch.start_proxy().await;
    proxy.set_rule_for_first(purpose, action);
    batch.create_stops().await;
    let operator = batch.start_operator_behind(&proxy, &[]).await;
    batch.assert_one_request_each().await;
    (batch, operator.log())
}

/// Checks that every stop was accepted by its answer and not by a later read.
async fn assert_answers_recorded(batch: &Batch) {
    for run in &batch.runs {
        let stop = batch.env.get(run).await;
        assert_eq!(condition(&stop, ConditionType::StopAccepted), ("True".into(), "StopAccepted".into()), "{run}");
    }
}

/// Checks the number of claims of each stop.
async fn assert_attempts(batch: &Batch, attempts: i32) {
    for run in &batch.runs {
        let stop = batch.env.get(run).await;
        assert_eq!(stop_request(&stop).attempts, attempts, "{run}");
    }
}

#[tokio::test]
async fn a_claim_whose_response_is_lost_is_read_and_used() {
    let (batch, _) = assert_sent_once_despite(Purpose::Claim, ProxyAction::DropResponse).await;
    assert_answers_recorded(&batch).await;
    assert_attempts(&batch, 1).await;
}

#[tokio::test]
async fn an_unconfirmed_claim_sends_nothing_and_is_replaced_by_a_second_one() {
    let batch = Batch::new(STOPS).await;
    let proxy = batch.start_proxy().await;
    let mut met: HashSet<(String, bool)> = HashSet::new();
    proxy.set_rule(move |request| {
        let mut first = |is_claim| met.insert((request.name.clone(), is_claim));
        match request.purpose {
            Purpose::Claim if first(true) => ProxyAction::DropResponse,
            Purpose::Read if first(false) => ProxyAction::Refuse,
            Purpose::Claim | Purpose::Read | Purpose::Record | Purpose::Patch | Purpose::Secret | Purpose::Other => {
                ProxyAction::Forward
            }
        }
    });
    batch.create_stops().await;
    let _operator = batch.start_operator_behind(&proxy, &[]).await;
    wait_received(&proxy, Purpose::Read, STOPS).await;
    assert_eq!(batch.stop_request_count(), 0, "nothing is sent before the claim is confirmed");
    batch.assert_one_request_each().await;
    assert_attempts(&batch, 2).await;
}

#[tokio::test]
async fn a_claim_that_is_refused_is_written_again() {
    let (batch, _) = assert_sent_once_despite(Purpose::Claim, ProxyAction::Refuse).await;
    assert_answers_recorded(&batch).await;
    assert_attempts(&batch, 1).await;
}

#[tokio::test]
async fn a_claim_that_is_stored_three_seconds_late_is_used() {
    let (batch, _) = assert_sent_once_despite(Purpose::Claim, ProxyAction::DelayRequest(Duration::from_secs(3))).await;
    assert_attempts(&batch, 1).await;
}

#[tokio::test]
async fn nothing_is_sent_on_a_claim_whose_response_comes_too_late() {
    let (batch, _) = assert_sent_once_despite(Purpose::Claim, ProxyAction::DelayResponse(Duration::from_secs(6))).await;
    assert_attempts(&batch, 2).await;
}

#[tokio::test]
async fn a_claim_that_is_stored_after_it_was_given_up_is_never_used() {
    let batch = Batch::new(STOPS).await;
    let proxy = batch.start_proxy().await;
    proxy.set_rule_for_first(Purpose::Claim, ProxyAction::HoldRequest);
    batch.create_stops().await;
    let _operator = batch.start_operator_behind(&proxy, &[]).await;
    // The operator gives up the claim and reads the resource. Then the claim arrives before or after the next one.
    wait_stored(&proxy, Purpose::Read, STOPS).await;
    proxy.release_held();
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn a_record_whose_response_is_lost_is_not_written_twice_and_not_reported_as_late() {
    let (batch, log) = assert_sent_once_despite(Purpose::Record, ProxyAction::DropResponse).await;
    assert_answers_recorded(&batch).await;
    let late: Vec<_> = log.into_iter().filter(|line| line.contains("late")).collect();
    assert_eq!(late, Vec::<String>::new());
}

#[tokio::test]
async fn a_record_that_is_stored_after_it_was_given_up_is_not_written_twice() {
    let (batch, _) =
        assert_sent_once_despite(Purpose::Record, ProxyAction::DelayRequest(Duration::from_secs(12))).await;
    assert_answers_recorded(&batch).await;
}

#[tokio::test]
async fn answers_received_while_writes_fail_are_recorded_afterwards() {
    let batch = Batch::new(STOPS).await;
    let proxy = batch.start_proxy().await;
    let hold = batch.env.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.create_stops().await;
    let _operator = batch.start_operator_behind(&proxy, &["--request-timeout", "30s"]).await;
    batch.wait_for_stop_requests(STOPS, |_| true).await;
    let before = proxy.requests().len();
    proxy.set_rule(|request| if is_write(request) { ProxyAction::Refuse } else { ProxyAction::Forward });
    hold.release();
    let outage_is_over = |requests: &[ProxiedRequest]| {
        let mut refused = requests[before..].iter().filter(|request| is_write(request));
        let (first, last) = (refused.next(), refused.next_back());
        first.zip(last).is_some_and(|(first, last)| OUTAGE <= last.at - first.at)
    };
    timeout(OUTAGE * 3, proxy.wait_until(outage_is_over)).await.expect("the operator retries");
    proxy.set_rule(|_| ProxyAction::Forward);
    batch.assert_one_request_each().await;
    assert_answers_recorded(&batch).await;
}

#[tokio::test]
async fn a_run_end_that_was_read_is_recorded_even_if_writes_fail_past_the_follow_timeout() {
    const FOLLOWED: Duration = Duration::from_secs(4);
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(1)));
    let proxy = ApiserverProxy::start(env.operator_client()).await;
    let mut stop = a_stop("wf-1");
    stop.spec.follow_timeout_seconds = FOLLOWED.as_secs() as i32;
    env.create(stop).await;
    let mut command = env.operator_command();
    command.env("KUBECONFIG", proxy.kubeconfig());
    let _operator = Operator::start(command).await;
    env.wait_for_reason("wf-1", Reason::FollowingRun).await;
    let accepted = Instant::now();
    proxy.set_rule(|request| if is_write(request) { ProxyAction::Refuse } else { ProxyAction::Forward });
    // The only read before the follow timeout finds that the run has ended. Its result cannot be written.
    let refused_afterwards = |requests: &[ProxiedRequest]| {
        requests.iter().any(|request| is_write(request) && FOLLOWED + Duration::from_secs(1) <= request.at - accepted)
    };
    timeout(FOLLOWED * 10, proxy.wait_until(refused_afterwards)).await.expect("the operator retries");
    let reads = env.amperity.reads("wf-1");
    proxy.set_rule(|_| ProxyAction::Forward);
    assert_eq!(ready(&env.wait_finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(env.amperity.reads("wf-1"), reads, "the run is not read again");
}
