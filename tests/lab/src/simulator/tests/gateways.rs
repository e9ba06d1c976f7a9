//! Owns the tests of what real gateways and real distributed systems do: answers of others, late effects, stale reads.
//! Never repeats the faults that are answered by the API itself.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::json;

use super::super::Took::{Effect, Late, NoEffect};
use super::super::{ErrorBody, Fault, RetryAfter, Run, Took};
use super::{Call, RUN, TENANT, simulator_with};

/// Longer than a test runs in real time, so that nothing happens before time is paused and moved on.
const HOUR: Duration = Duration::from_secs(3600);

async fn an_hour_later() {
    tokio::time::pause();
    tokio::time::sleep(HOUR).await;
}

fn status(code: u16, effect: Took, body: ErrorBody) -> Fault {
    Fault::Status { code, effect, body }
}

#[tokio::test]
async fn a_late_stop_takes_effect_after_its_time_whatever_the_client_was_answered() {
    for (fault, answered) in [
        (Fault::Reset(Late(HOUR)), None),
        (status(504, Late(HOUR), ErrorBody::Html), Some(504)),
        (status(403, Late(HOUR), ErrorBody::ErrorJson), Some(403)),
        (status(202, Late(HOUR), ErrorBody::Empty), Some(202)),
        (Fault::JsonWith200(json!({}), Late(HOUR)), Some(200)),
    ] {
        let simulator = simulator_with(Run::new(RUN)).await;
        simulator.on_stop(RUN, [fault.clone()]);

        let answer = Call::stop().begin(&simulator).await;

        assert_eq!(answer.ok().map(|answer| answer.status().as_u16()), answered, "{fault:?}");
        assert_eq!((simulator.effects(RUN), simulator.took_effect(RUN)), (0, vec![false]), "{fault:?}");
        assert_eq!(Call::read().send(&simulator).await.json()["state"], "running", "{fault:?}");
        an_hour_later().await;
        simulator.wait_until(|requests| requests[0].effect).await;
        assert_eq!((simulator.effects(RUN), simulator.took_effect(RUN)), (1, vec![true]), "{fault:?}");
        assert_eq!(Call::read().send(&simulator).await.json()["state"], "canceled", "{fault:?}");
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_late_stop_takes_effect_even_if_no_answer_ever_comes_and_the_client_leaves() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.on_stop(RUN, [Fault::NoAnswer(Late(HOUR))]);
    let client = tokio::spawn({
        let simulator = Arc::clone(&simulator);
        async move { Call::stop().begin(&simulator).await.map(drop) }
    });
    simulator.wait_until(|requests| requests.len() == 1).await;
    // The read is answered after the stop has arrived.
    assert_eq!(Call::read().send(&simulator).await.json()["state"], "running");
    client.abort();

    an_hour_later().await;

    simulator.wait_until(|requests| requests[0].effect).await;
    assert_eq!(simulator.state(TENANT, RUN).as_deref(), Some("canceled"));
}

#[tokio::test]
async fn a_late_stop_of_a_run_that_has_ended_meanwhile_has_no_effect() {
    let simulator = simulator_with(Run::new(RUN).ends_on_its_own("succeeded", HOUR / 2)).await;
    simulator.on_stop(RUN, [status(504, Late(HOUR), ErrorBody::Empty)]);

    Call::stop().send(&simulator).await;
    an_hour_later().await;
    tokio::time::sleep(HOUR).await;

    assert_eq!(simulator.took_effect(RUN), [false]);
    assert_eq!(Call::read().send(&simulator).await.json()["state"], "succeeded");
}

#[tokio::test]
async fn stale_reads_show_the_run_before_the_stop_until_their_time_is_over() {
    let simulator = simulator_with(Run::new(RUN).with_tasks(2).stale_for(HOUR)).await;

    assert_eq!(Call::stop().send(&simulator).await.json()["state"], "canceled");

    let stale = Call::read().send(&simulator).await.json();
    assert_eq!((&stale["state"], stale.get("error"), stale.get("ended_at")), (&json!("running"), None, None));
    assert_eq!(stale["task_instances"][1]["state"], "running");
    assert_eq!((simulator.state(TENANT, RUN).as_deref(), simulator.effects(RUN)), (Some("canceled"), 1));
    an_hour_later().await;
    let fresh = Call::read().send(&simulator).await.json();
    assert_eq!(fresh["state"], "canceled");
    assert!(fresh["ended_at"].is_string() && fresh["error"].is_object());
}

#[tokio::test]
async fn a_stale_read_still_shows_an_end_that_no_stop_brought_about() {
    let run = Run::new(RUN).stops_in(2 * HOUR).stale_for(2 * HOUR).ends_on_its_own("failed", HOUR);
    let simulator = simulator_with(run).await;

    Call::stop().send(&simulator).await;
    assert_eq!(Call::read().send(&simulator).await.json()["state"], "running");
    an_hour_later().await;

    assert_eq!(Call::read().send(&simulator).await.json()["state"], "failed");
}

#[tokio::test]
async fn a_gateway_answers_stops_reads_and_token_requests_with_any_status_and_a_body_of_its_own() {
    for code in [302, 400, 401, 403, 404, 409, 410, 422, 429, 499, 500, 502, 503, 504] {
        for (body, sent) in [
            (ErrorBody::Html, None),
            (ErrorBody::Empty, Some("")),
            (ErrorBody::OtherJson, Some(r#"{"message":"no Route matched with those values"}"#)),
        ] {
            for effect in [NoEffect, Effect] {
                let simulator = simulator_with(Run::new(RUN)).await;
                let fault = status(code, effect, body);
                simulator.on_stop(RUN, [fault.clone()]);
                simulator.on_read(RUN, [fault.clone()]);
                simulator.on_token([fault.clone()]);
                for call in [Call::stop(), Call::read(), Call::token()] {
                    let answer = call.send(&simulator).await;
                    assert_eq!(answer.status, code, "{fault:?}");
                    match sent {
                        Some(sent) => assert_eq!(answer.body, sent, "{fault:?}"),
                        None => assert!(answer.body.starts_with("<html>"), "{fault:?}"),
                    }
                }
                assert_eq!(simulator.effects(RUN), usize::from(effect == Effect), "{fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn amperity_itself_answers_any_status_with_the_documented_error_object() {
    let simulator = simulator_with(Run::new(RUN)).await;
    for code in [400, 401, 403, 404, 405, 409, 410, 422, 500, 503] {
        simulator.on_stop(RUN, [status(code, NoEffect, ErrorBody::ErrorJson)]);
        let error = Call::stop().send(&simulator).await.json();
        assert_eq!(error["status"], code);
        assert!(error["message"].is_string() && error["request_id"].is_string(), "{error}");
    }
}

#[tokio::test]
async fn the_token_endpoint_answers_with_an_oauth_error_as_long_as_it_is_told_to() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.always_on_token(status(401, NoEffect, ErrorBody::OAuthJson));
    simulator.on_token([status(401, NoEffect, ErrorBody::Html)]);

    assert_eq!(Call::token().send(&simulator).await.header("content-type"), Some("text/html"));
    for _ in 0..2 {
        let answer = Call::token().send(&simulator).await;
        assert_eq!((answer.status, answer.json()), (401, json!({"error": "invalid_client"})));
    }
    simulator.clear_faults();
    assert_eq!(Call::token().send(&simulator).await.status, 200);
}

#[tokio::test]
async fn any_fault_can_have_a_retry_after_and_other_headers() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let unavailable = status(503, Effect, ErrorBody::Html).with_retry_after(RetryAfter::Seconds(7));
    let moved = status(302, NoEffect, ErrorBody::Html).with_header("location", "https://login.example.com/");
    let typed = status(502, NoEffect, ErrorBody::OtherJson).with_header("content-type", "text/plain");
    let proper = Fault::Slow(Duration::ZERO).with_retry_after(RetryAfter::Text("soon".to_owned()));
    simulator.on_stop(RUN, [unavailable]);
    simulator.on_read(RUN, [moved, typed, proper]);

    let answer = Call::stop().send(&simulator).await;
    assert_eq!((answer.status, answer.header("retry-after"), simulator.effects(RUN)), (503, Some("7"), 1));
    let answer = Call::read().send(&simulator).await;
    assert_eq!((answer.status, answer.header("location")), (302, Some("https://login.example.com/")));
    let answer = Call::read().send(&simulator).await;
    let types: Vec<_> = answer.headers.get_all("content-type").iter().collect();
    assert_eq!(answer.status, 502);
    assert_eq!(types, ["text/plain"], "in place of the usual one");
    let answer = Call::read().send(&simulator).await;
    assert_eq!((answer.status, answer.header("retry-after")), (200, Some("soon")));
}

#[tokio::test]
async fn raw_bytes_arrive_as_they_are() {
    let nested = [vec![b'['; 10_000], vec![b']'; 10_000]].concat();
    for (code, body, effect) in [(200, b"\xff\xfe{\"id\"".to_vec(), Effect), (500, nested, NoEffect)] {
        let simulator = simulator_with(Run::new(RUN)).await;
        simulator.on_stop(RUN, [Fault::Raw { code, body: body.clone(), effect }]);

        let answer = Call::stop().begin(&simulator).await.expect("a head");

        assert_eq!(answer.status().as_u16(), code);
        assert_eq!(answer.headers()["content-type"], "application/json");
        let received = answer.into_body().collect().await.expect("a whole body").to_bytes();
        assert!(received == body, "{code}");
        assert_eq!(simulator.effects(RUN), usize::from(effect == Effect));
    }
}
