//! Owns the tests of behaviour of gateways and distributed systems: foreign responses, delayed effects, stale reads.
//! Never repeats the tests of faults in the API's own responses.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::json;

use super::super::StopEffect::{Delayed, Immediate, NoEffect};
use super::super::{ErrorBody, Fault, RetryAfter, Run, StopEffect};
use super::{Call, RUN, TENANT, simulator_with};

/// Longer than a test takes in real time, so that nothing happens before time is paused and advanced.
const HOUR: Duration = Duration::from_secs(3600);

async fn advance_an_hour() {
    tokio::time::pause();
    tokio::time::sleep(HOUR).await;
}

fn status(code: u16, effect: StopEffect, body: ErrorBody) -> Fault {
    Fault::Status { code, effect, body }
}

#[tokio::test]
async fn a_delayed_stop_takes_effect_after_its_delay_whatever_the_response_was() {
    for (fault, expected) in [
        (Fault::Reset(Delayed(HOUR)), None),
        (status(504, Delayed(HOUR), ErrorBody::Html), Some(504)),
        (status(403, Delayed(HOUR), ErrorBody::ErrorJson), Some(403)),
        (status(202, Delayed(HOUR), ErrorBody::Empty), Some(202)),
        (Fault::JsonWith200(json!({}), Delayed(HOUR)), Some(200)),
    ] {
        let simulator = simulator_with(Run::new(RUN)).await;
        simulator.on_stop(RUN, [fault.clone()]);

        let response = Call::stop().send_head(&simulator).await;

        assert_eq!(response.ok().map(|response| response.status().as_u16()), expected, "{fault:?}");
        assert_eq!((simulator.effects(RUN), simulator.stop_effects(RUN)), (0, vec![false]), "{fault:?}");
        assert_eq!(Call::read().send(&simulator).await.json()["state"], "running", "{fault:?}");
        advance_an_hour().await;
        simulator.wait_until(|requests| requests[0].effect).await;
        assert_eq!((simulator.effects(RUN), simulator.stop_effects(RUN)), (1, vec![true]), "{fault:?}");
        assert_eq!(Call::read().send(&simulator).await.json()["state"], "canceled", "{fault:?}");
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_delayed_stop_takes_effect_even_without_a_response_and_after_a_disconnect() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.on_stop(RUN, [Fault::NoResponse(Delayed(HOUR))]);
    let client = tokio::spawn({
        let simulator = Arc::clone(&simulator);
        async move { Call::stop().send_head(&simulator).await.map(drop) }
    });
    simulator.wait_until(|requests| requests.len() == 1).await;
    // The read is handled after the stop has arrived.
    assert_eq!(Call::read().send(&simulator).await.json()["state"], "running");
    client.abort();

    advance_an_hour().await;

    simulator.wait_until(|requests| requests[0].effect).await;
    assert_eq!(simulator.state(TENANT, RUN).as_deref(), Some("canceled"));
}

#[tokio::test]
async fn a_delayed_stop_has_no_effect_if_the_run_has_ended_before() {
    let simulator = simulator_with(Run::new(RUN).ends_on_its_own("succeeded", HOUR / 2)).await;
    simulator.on_stop(RUN, [status(504, Delayed(HOUR), ErrorBody::Empty)]);

    Call::stop().send(&simulator).await;
    advance_an_hour().await;
    tokio::time::sleep(HOUR).await;

    assert_eq!(simulator.stop_effects(RUN), [false]);
    assert_eq!(Call::read().send(&simulator).await.json()["state"], "succeeded");
}

#[tokio::test]
async fn stale_reads_show_the_run_before_the_stop_until_the_delay_is_over() {
    let simulator = simulator_with(Run::new(RUN).with_tasks(2).stale_reads_for(HOUR)).await;

    assert_eq!(Call::stop().send(&simulator).await.json()["state"], "canceled");

    let stale = Call::read().send(&simulator).await.json();
    assert_eq!((&stale["state"], stale.get("error"), stale.get("ended_at")), (&json!("running"), None, None));
    assert_eq!(stale["task_instances"][1]["state"], "running");
    assert_eq!((simulator.state(TENANT, RUN).as_deref(), simulator.effects(RUN)), (Some("canceled"), 1));
    advance_an_hour().await;
    let fresh = Call::read().send(&simulator).await.json();
    assert_eq!(fresh["state"], "canceled");
    assert!(fresh["ended_at"].is_string() && fresh["error"].is_object());
}

#[tokio::test]
async fn a_stale_read_shows_an_end_that_was_not_caused_by_the_stop() {
    let run = Run::new(RUN).stops_in(2 * HOUR).stale_reads_for(2 * HOUR).ends_on_its_own("failed", HOUR);
    let simulator = simulator_with(run).await;

    Call::stop().send(&simulator).await;
    assert_eq!(Call::read().send(&simulator).await.json()["state"], "running");
    advance_an_hour().await;

    assert_eq!(Call::read().send(&simulator).await.json()["state"], "failed");
}

#[tokio::test]
async fn a_gateway_can_respond_to_every_kind_of_request_with_any_status_and_its_own_body() {
    for code in [302, 400, 401, 403, 404, 409, 410, 422, 429, 499, 500, 502, 503, 504] {
        for (body, sent) in [
            (ErrorBody::Html, None),
            (ErrorBody::Empty, Some("")),
            (ErrorBody::OtherJson, Some(r#"{"message":"no Route matched with those values"}"#)),
        ] {
            for effect in [NoEffect, Immediate] {
                let simulator = simulator_with(Run::new(RUN)).await;
                let fault = status(code, effect, body);
                simulator.on_stop(RUN, [fault.clone()]);
                simulator.on_read(RUN, [fault.clone()]);
                simulator.on_token([fault.clone()]);
                for call in [Call::stop(), Call::read(), Call::token()] {
                    let response = call.send(&simulator).await;
                    assert_eq!(response.status, code, "{fault:?}");
                    match sent {
                        Some(sent) => assert_eq!(response.body, sent, "{fault:?}"),
                        None => assert!(response.body.starts_with("<html>"), "{fault:?}"),
                    }
                }
                assert_eq!(simulator.effects(RUN), usize::from(effect == Immediate), "{fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn own_error_responses_have_the_documented_error_object_for_every_status() {
    let simulator = simulator_with(Run::new(RUN)).await;
    for code in [400, 401, 403, 404, 405, 409, 410, 422, 500, 503] {
        simulator.on_stop(RUN, [status(code, NoEffect, ErrorBody::ErrorJson)]);
        let error = Call::stop().send(&simulator).await.json();
        assert_eq!(error["status"], code);
        assert!(error["message"].is_string() && error["request_id"].is_string(), "{error}");
    }
}

#[tokio::test]
async fn the_token_endpoint_returns_oauth_errors_until_faults_are_cleared() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.always_on_token(status(401, NoEffect, ErrorBody::OAuthJson));
    simulator.on_token([status(401, NoEffect, ErrorBody::Html)]);

    assert_eq!(Call::token().send(&simulator).await.header("content-type"), Some("text/html"));
    for _ in 0..2 {
        let response = Call::token().send(&simulator).await;
        assert_eq!((response.status, response.json()), (401, json!({"error": "invalid_client"})));
    }
    simulator.clear_faults();
    assert_eq!(Call::token().send(&simulator).await.status, 200);
}

#[tokio::test]
async fn every_fault_can_have_a_retry_after_and_other_headers() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let unavailable = status(503, Immediate, ErrorBody::Html).with_retry_after(RetryAfter::Seconds(7));
    let moved = status(302, NoEffect, ErrorBody::Html).with_header("location", "https://login.example.com/");
    let typed = status(502, NoEffect, ErrorBody::OtherJson).with_header("content-type", "text/plain");
    let proper = Fault::Slow(Duration::ZERO).with_retry_after(RetryAfter::Text("soon".to_owned()));
    simulator.on_stop(RUN, [unavailable]);
    simulator.on_read(RUN, [moved, typed, proper]);

    let response = Call::stop().send(&simulator).await;
    assert_eq!((response.status, response.header("retry-after"), simulator.effects(RUN)), (503, Some("7"), 1));
    let response = Call::read().send(&simulator).await;
    assert_eq!((response.status, response.header("location")), (302, Some("https://login.example.com/")));
    let response = Call::read().send(&simulator).await;
    let types: Vec<_> = response.headers.get_all("content-type").iter().collect();
    assert_eq!(response.status, 502);
    assert_eq!(types, ["text/plain"], "replaces the usual one");
    let response = Call::read().send(&simulator).await;
    assert_eq!((response.status, response.header("retry-after")), (200, Some("soon")));
}

#[tokio::test]
async fn raw_bytes_are_sent_unchanged() {
    let nested = [vec![b'['; 10_000], vec![b']'; 10_000]].concat();
    for (code, body, effect) in [(200, b"\xff\xfe{\"id\"".to_vec(), Immediate), (500, nested, NoEffect)] {
        let simulator = simulator_with(Run::new(RUN)).await;
        simulator.on_stop(RUN, [Fault::Raw { code, body: body.clone(), effect }]);

        let response = Call::stop().send_head(&simulator).await.expect("a head");

        assert_eq!(response.status().as_u16(), code);
        assert_eq!(response.headers()["content-type"], "application/json");
        let received = response.into_body().collect().await.expect("a whole body").to_bytes();
        assert!(received == body, "{code}");
        assert_eq!(simulator.effects(RUN), usize::from(effect == Immediate));
    }
}
