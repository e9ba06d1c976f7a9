//! Owns the tests of the recorded requests and counts, of waiting for them, and of going offline.
//! Never tests the content of responses, except added headers.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::super::{Fault, HoldPoint, Kind, Run, Simulator, StopEffect};
use super::{Call, RUN, TENANT, simulator_with};

#[tokio::test]
async fn each_request_is_recorded_with_path_headers_and_body() {
    let simulator = simulator_with(Run::new(RUN)).await;

    Call::stop().header("x-trace", "17").send(&simulator).await;
    Call::read().send(&simulator).await;
    Call::token().send(&simulator).await;
    Call::new("PUT", "/elsewhere").body("hello").send(&simulator).await;

    let requests = simulator.requests();
    let kinds: Vec<_> = requests.iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Stop, Kind::Read, Kind::Token, Kind::Other]);
    assert!(requests.is_sorted_by_key(|request| request.at));
    let statuses: Vec<_> = requests.iter().filter_map(|request| request.response_status).collect();
    assert_eq!(statuses, [200, 200, 200, 404]);

    let stop = &requests[0];
    assert_eq!(stop.method, "POST");
    assert_eq!(stop.tenant.as_deref(), Some(TENANT));
    assert_eq!(stop.run_id.as_deref(), Some(RUN));
    assert_eq!(stop.header("x-trace"), Some("17"));
    assert!(stop.effect && stop.body.is_empty());
    assert_eq!(requests[1].path, format!("/api/workflow/runs/{RUN}?view=verbose"));
    assert!(requests[2].body.starts_with("grant_type=client_credentials"));
    assert_eq!(requests[3].body, "hello");
    assert_eq!((simulator.stops(RUN), simulator.reads(RUN)), (1, 1));

    simulator.clear_requests();
    assert!(simulator.requests().is_empty());
    assert_eq!((simulator.stops(RUN), simulator.effects(RUN)), (0, 0));
    assert_eq!(simulator.stop_effects(RUN), [true]);
}

#[tokio::test]
async fn the_effect_of_every_stop_is_recorded_also_after_requests_were_cleared() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.set_fault_rule(|kind, _| (kind == Kind::Stop).then_some(Fault::Reset(StopEffect::NoEffect)));
    assert!(Call::stop().send_head(&simulator).await.is_err());
    simulator.clear_faults();
    let hold = simulator.hold_stops(HoldPoint::BeforeEffect);
    let clearing = async {
        simulator.wait_until(|requests| requests.len() == 2).await;
        simulator.clear_requests();
        hold.release();
    };
    tokio::join!(Call::stop().send(&simulator), clearing);
    assert_eq!(simulator.stop_effects(RUN), [false, true]);
}

#[tokio::test(start_paused = true)]
async fn the_busiest_second_may_start_at_any_request() {
    let simulator = simulator_with(Run::new(RUN)).await;

    for (count, pause) in [(1, 600), (2, 600), (1, 1000), (1, 0)] {
        for _ in 0..count {
            Call::read().send(&simulator).await;
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    assert_eq!(simulator.max_in_any_second(TENANT), 3);
    assert_eq!(simulator.max_in_any_second("socktown"), 0);
}

#[tokio::test]
async fn waiting_ends_with_the_change_and_the_condition_can_use_the_simulator() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let waiting = tokio::spawn({
        let simulator = Arc::clone(&simulator);
        async move {
            simulator.wait_until(|_| simulator.effects(RUN) == 1).await;
        }
    });

    Call::stop().send(&simulator).await;

    waiting.await.expect("the waiting task ends");
}

#[tokio::test]
async fn every_response_has_the_added_headers() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.add_response_header("Deprecation", "@1700000000");

    for call in [Call::stop(), Call::read().without("authorization")] {
        assert_eq!(call.send(&simulator).await.header("deprecation"), Some("@1700000000"));
    }
}

#[tokio::test]
async fn connections_are_refused_offline_and_accepted_at_the_same_address_afterwards() {
    let simulator = Simulator::start().await;
    simulator.add_run(TENANT, Run::new(RUN));

    simulator.go_offline().await;
    assert!(TcpStream::connect(simulator.address()).await.is_err());

    simulator.go_online().await;
    assert_eq!(Call::stop().send(&simulator).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_requests_are_recorded_while_a_task_waits_for_them() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let simulator = Arc::clone(&simulator);
        clients.spawn(async move {
            for _ in 0..100 {
                assert_eq!(Call::read().send(&simulator).await.status, 200);
            }
        });
    }

    let recorded = simulator
        .wait_until(|requests| requests.iter().filter(|request| request.response_status.is_some()).count() == 2000);
    tokio::time::timeout(Duration::from_secs(60), recorded).await.expect("far less than a minute");

    clients.join_all().await;
    assert_eq!(simulator.reads(RUN), 2000);
}
