//! Owns the tests of the injected faults and of held stops.
//! Never repeats the documented checks.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::StopEffect::{Immediate, NoEffect};
use super::super::{ErrorBody, Fault, HoldPoint, RetryAfter, Run, Simulator};
use super::{Call, RUN, TENANT, simulator_with};

#[tokio::test]
async fn queued_faults_apply_in_order_and_then_the_api_responds_normally() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let status = |code, effect, body| Fault::Status { code, effect, body };
    simulator.on_stop(
        RUN,
        [
            status(503, NoEffect, ErrorBody::ErrorJson),
            status(502, NoEffect, ErrorBody::Html),
            status(404, NoEffect, ErrorBody::Empty),
            Fault::TooManyRequests { retry_after: RetryAfter::Text("soon".to_owned()) },
            Fault::Redirect { code: 302, location: "https://login.example.com/".to_owned() },
            Fault::HtmlWith200(NoEffect),
            Fault::WrongId(NoEffect),
            Fault::JsonWith200(json!([1]), NoEffect),
        ],
    );

    let response = Call::stop().send(&simulator).await;
    assert_eq!((response.status, &response.json()["status"]), (503, &json!(503)));
    let response = Call::stop().send(&simulator).await;
    assert_eq!((response.status, response.header("content-type")), (502, Some("text/html")));
    let response = Call::stop().send(&simulator).await;
    assert_eq!((response.status, response.body.as_str()), (404, ""));
    let response = Call::stop().send(&simulator).await;
    assert_eq!((response.status, response.header("retry-after")), (429, Some("soon")));
    let response = Call::stop().send(&simulator).await;
    assert_eq!((response.status, response.header("location")), (302, Some("https://login.example.com/")));
    let response = Call::stop().send(&simulator).await;
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/html")));
    let response = Call::stop().send(&simulator).await;
    assert_eq!(response.status, 200);
    assert_ne!(response.json()["id"], RUN);
    let response = Call::stop().send(&simulator).await;
    assert_eq!((response.status, response.body.as_str()), (200, "[1]"));
    assert_eq!(simulator.effects(RUN), 0);

    let response = Call::stop().send(&simulator).await;
    assert_eq!(response.json()["state"], "canceled");
    assert_eq!((simulator.stops(RUN), simulator.effects(RUN)), (9, 1));
}

#[tokio::test]
async fn a_fault_with_an_immediate_effect_stops_the_run_like_a_normal_stop() {
    let body = ErrorBody::Empty;
    for fault in [
        Fault::Status { code: 500, effect: Immediate, body },
        Fault::HtmlWith200(Immediate),
        Fault::WrongId(Immediate),
        Fault::Accepted202,
        Fault::JsonWith200(json!({}), Immediate),
    ] {
        let simulator = simulator_with(Run::new(RUN)).await;
        simulator.on_stop(RUN, [fault.clone()]);
        Call::stop().send(&simulator).await;
        assert_eq!(simulator.effects(RUN), 1, "{fault:?}");
        assert_eq!(simulator.state(TENANT, RUN).as_deref(), Some("canceled"), "{fault:?}");
    }
}

#[tokio::test]
async fn a_permanent_fault_applies_until_it_is_cleared() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.always_on_stop(RUN, Fault::HtmlWith200(NoEffect));
    let (code, body) = (500, ErrorBody::Empty);
    simulator.always_on_read(RUN, Fault::Status { code, effect: NoEffect, body });
    simulator.on_token([Fault::Status { code, effect: NoEffect, body }]);

    for _ in 0..3 {
        assert_eq!(Call::read().send(&simulator).await.status, 500);
        Call::stop().send(&simulator).await;
    }
    assert_eq!((simulator.stops(RUN), simulator.effects(RUN)), (3, 0));
    assert_eq!(Call::token().send(&simulator).await.status, 500);
    simulator.clear_faults();
    assert_eq!(Call::read().send(&simulator).await.status, 200);
}

#[tokio::test]
async fn an_injected_429_does_not_count_towards_the_rate_limit_and_can_have_a_date() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.set_rate_limit(Some(1));
    simulator.on_read(RUN, [Fault::TooManyRequests { retry_after: RetryAfter::Date(120) }]);

    let response = Call::read().send(&simulator).await;
    let date = response.header("retry-after").expect("a date");
    assert_eq!(response.status, 429);
    assert_eq!((date.len(), &date[3..5], &date[25..]), (29, ", ", " GMT"));
    assert_eq!(Call::read().send(&simulator).await.status, 200);
}

/// Writes a stop request to a new TCP connection.
async fn write_stop(simulator: &Simulator) -> TcpStream {
    let mut stream = TcpStream::connect(simulator.address()).await.expect("connected");
    let request = format!(
        "POST /api/workflow/runs/{RUN}/stop HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer good-token\r\namperity-tenant: {TENANT}\r\n\
         api-version: 2024-04-01\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

#[tokio::test]
async fn a_reset_is_a_tcp_rst_and_not_a_normal_close() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.on_stop(RUN, [Fault::Reset(Immediate)]);
    let mut stream = write_stop(&simulator).await;

    let error = stream.read_u8().await.expect_err("no response");

    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(simulator.effects(RUN), 1);
    assert_eq!(simulator.requests()[0].response_status, None);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_the_no_response_fault_gets_none_within_an_hour() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.on_stop(RUN, [Fault::NoResponse(Immediate)]);
    let mut stream = write_stop(&simulator).await;
    // Paused time advances when all tasks wait, also for the network. The request has to arrive before that.
    simulator.wait_until(|requests| requests.iter().any(|request| request.effect)).await;

    let byte = tokio::time::timeout(Duration::from_secs(3600), stream.read_u8()).await;

    assert!(byte.is_err());
    assert_eq!(simulator.requests()[0].response_status, None);
}

#[tokio::test]
async fn connections_without_a_response_are_closed_when_the_simulator_is_dropped() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.on_stop(RUN, [Fault::NoResponse(NoEffect)]);
    let stop = tokio::spawn({
        let stream = TcpStream::connect(simulator.address()).await.expect("connected");
        Call::stop().send_on(stream)
    });
    simulator.wait_until(|requests| requests.len() == 1).await;

    drop(simulator);

    assert!(stop.await.expect("no panic").is_err());
}

#[tokio::test(start_paused = true)]
async fn a_slow_stop_gets_its_normal_response_after_the_delay() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let minute = Duration::from_secs(60);
    simulator.on_stop(RUN, [Fault::Slow(minute)]);

    assert_eq!(Call::stop().send(&simulator).await.json()["state"], "canceled");
    assert!(simulator.requests()[0].at.elapsed() >= minute);
}

#[tokio::test]
async fn a_stop_that_has_arrived_takes_effect_even_if_the_client_disconnects() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let hold = simulator.hold_stops(HoldPoint::BeforeEffect);
    let mut stream = write_stop(&simulator).await;
    simulator.wait_until(|requests| requests.len() == 1).await;
    stream.shutdown().await.expect("the client disconnects");
    assert_eq!(stream.read(&mut [0]).await.expect("the server closes the connection"), 0);
    assert_eq!(simulator.effects(RUN), 0);

    hold.release();

    simulator.wait_until(|requests| requests[0].effect).await;
    assert_eq!(simulator.requests()[0].response_status, None);
}

#[tokio::test]
async fn an_endless_body_continues_until_the_client_disconnects() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.on_stop(RUN, [Fault::EndlessBody(Immediate)]);

    let mut body = Call::stop().send_head(&simulator).await.expect("a head").into_body();

    let mut length = 0;
    while length < 4 * 1024 * 1024 {
        let frame = body.frame().await.expect("no end").expect("no error");
        length += frame.into_data().expect("data").len();
    }
}

#[tokio::test]
async fn the_response_to_a_stop_or_a_read_can_have_many_tasks() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.on_stop(RUN, [Fault::ManyTasks(5000)]);
    simulator.on_read(RUN, [Fault::ManyTasks(2000)]);

    for (call, count) in [(Call::stop(), 5000), (Call::read(), 2000)] {
        let run = call.send(&simulator).await.json();
        assert_eq!(run["task_instances"].as_array().expect("tasks").len(), count);
    }
    assert_eq!(simulator.effects(RUN), 1);
}

#[tokio::test]
async fn held_stops_wait_before_the_effect_or_after_it() {
    for (point, effects) in [(HoldPoint::BeforeEffect, 0), (HoldPoint::AfterEffect, 2)] {
        let simulator = simulator_with(Run::new(RUN).stops_in(Duration::from_secs(60))).await;
        let hold = simulator.hold_stops(point);
        let mut stops = tokio::task::JoinSet::new();
        for _ in 0..2 {
            let client = Arc::clone(&simulator);
            stops.spawn(async move { Call::stop().send(&client).await.status });
        }
        simulator.wait_until(|requests| requests.len() == 2 && simulator.effects(RUN) == effects).await;
        hold.release_one();
        assert_eq!(stops.join_next().await.expect("one").expect("no panic"), 200);
        assert_eq!(simulator.effects(RUN), effects.max(1), "{point:?}");
        hold.release();
        assert_eq!(stops.join_next().await.expect("other").expect("no panic"), 200);
        assert_eq!(simulator.effects(RUN), 2);
    }
}
