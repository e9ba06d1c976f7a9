//! Owns the bytes: JSON bodies and headers of the API, decoded tolerantly.
//! Never fails on an unknown field, a null, an absent field or an integer sent as a double.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::amperity::reply::{Body, Shape};
use crate::run::{MAX_DATA_BYTES, MAX_TEXT_BYTES, Run, RunDetails, RunError, TaskInstance};

/// The longest time that a `Retry-After` is honoured for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// What a body says; nothing where it is no JSON object.
pub fn said(body: &[u8]) -> Body {
    if body.trim_ascii().is_empty() {
        return Body { shape: Shape::Empty, ..Body::default() };
    }
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else { return Body::default() };
    Body {
        run: run(&body),
        message: text(&body, "message"),
        request_id: text(&body, "request_id").or_else(|| text(&body, "trace_id")),
        error_status: integer(&body, "status").and_then(|status| u16::try_from(status).ok()),
        oauth_error: body.get("error").is_some_and(Value::is_string),
        shape: Shape::Object,
    }
}

/// An HTTP date, such as `Wed, 25 Nov 2026 02:00:09 GMT`.
pub fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// The access token of a token endpoint's answer and its time to live, one hour where it is not said.
pub fn access_token(body: &[u8]) -> Option<(String, Duration)> {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else { return None };
    let token = body.get("access_token")?.as_str()?.to_owned();
    let seconds = integer(&body, "expires_in").and_then(|seconds| u64::try_from(seconds).ok());
    // A day at the most: an absurd number must not overflow an instant.
    Some((token, Duration::from_secs(seconds.unwrap_or(3600).min(86_400))))
}

/// `Retry-After` in seconds or as an HTTP date, at most [`MAX_RETRY_AFTER`]. `None` where it is neither, or
/// says that there is nothing to wait for: the caller's own backoff is better than that.
pub fn retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    let header = header.trim();
    let wait = match header.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) if !header.is_empty() && header.bytes().all(|b| b.is_ascii_digit()) => MAX_RETRY_AFTER,
        Err(_) => {
            let date = http_date(header)?;
            Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO)
        }
    };
    Some(wait.min(MAX_RETRY_AFTER)).filter(|wait| !wait.is_zero())
}

/// A run; only `id` and `state` are required, since the API's descriptions differ in the rest.
fn run(body: &Map<String, Value>) -> Option<Run> {
    Some(Run {
        id: text(body, "id")?,
        state: text(body, "state")?,
        error: body.get("error").and_then(error),
        tasks: body
            .get("task_instances")
            .and_then(Value::as_array)
            .map(|tasks| tasks.iter().filter_map(Value::as_object).map(task).collect()),
        details: RunDetails {
            name: text(body, "name"),
            r#type: text(body, "type"),
            created_at: text(body, "created_at"),
            ended_at: text(body, "ended_at"),
            launched_version: text(body, "launched_version"),
            current_version: text(body, "current_version"),
            principal_id: text(body, "principal_id"),
            principal_name: text(body, "principal_name"),
            principal_email: text(body, "principal_email"),
            warn_after_ms: integer(body, "warn_after_ms"),
        },
    })
}

fn task(body: &Map<String, Value>) -> TaskInstance {
    TaskInstance {
        id: text(body, "id"),
        run_id: text(body, "run_id"),
        workflow_id: text(body, "workflow_id"),
        label: text(body, "label"),
        state: text(body, "state"),
        execution_type: text(body, "execution_type"),
        task_definition_id: text(body, "task_definition_id"),
        task_definition_type: text(body, "task_definition_type"),
        tenant: text(body, "tenant"),
        timeout_ms: integer(body, "timeout_ms"),
        created_at: text(body, "created_at"),
        state_changed_at: text(body, "state_changed_at"),
        ended_at: text(body, "ended_at"),
        error: body.get("error").and_then(error),
    }
}

/// The documents call `error` an array and describe an object: both are accepted.
fn error(value: &Value) -> Option<RunError> {
    let object = match value {
        Value::Object(object) => object,
        Value::Array(errors) => errors.first()?.as_object()?,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return None,
    };
    let data = object.get("data").filter(|data| !data.is_null());
    Some(RunError {
        attribution: text(object, "attribution"),
        r#type: text(object, "type"),
        message: text(object, "message"),
        data: data.filter(|data| data.to_string().len() <= MAX_DATA_BYTES).cloned(),
    })
}

/// A text; a number is taken as its digits. Cut at [`MAX_TEXT_BYTES`].
fn text(object: &Map<String, Value>, key: &str) -> Option<String> {
    match object.get(key)? {
        Value::String(text) if text.len() <= MAX_TEXT_BYTES => Some(text.clone()),
        Value::String(text) => {
            let end = (0..=MAX_TEXT_BYTES).rev().find(|&end| text.is_char_boundary(end))?;
            Some(format!("{}…", &text[..end]))
        }
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// An integer; the API sends some as doubles.
fn integer(object: &Map<String, Value>, key: &str) -> Option<i64> {
    let number = object.get(key)?.as_number()?;
    // The cast saturates; a fraction of a millisecond has no meaning here.
    number.as_i64().or_else(|| number.as_f64().map(|double| double as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn decoded(body: &Value) -> Run {
        said(body.to_string().as_bytes()).run.unwrap()
    }

    #[test]
    fn a_run_needs_only_id_and_state() {
        assert_eq!(decoded(&json!({"id": "wf-1", "state": "stopping"})).state, "stopping");
        for body in
            [json!({"id": "wf-1"}), json!({"state": "x"}), json!([]), json!("x"), json!({"id": null, "state": "x"})]
        {
            assert_eq!(said(body.to_string().as_bytes()).run, None, "{body}");
        }
        assert_eq!(said(b"<html>").run, None);
    }

    #[test]
    fn unknown_null_and_absent_fields_and_doubles_are_accepted() {
        let run = decoded(&json!({
            "id": "wf-1", "state": "canceled", "later": {"x": [1]}, "name": null, "warn_after_ms": 1.5e3,
            "task_instances": [{"id": "wft-1", "timeout_ms": 3600000.0, "new": 1}, null, {"timeout_ms": 7}],
        }));
        assert_eq!(run.details.warn_after_ms, Some(1500));
        let tasks = run.tasks.unwrap();
        assert_eq!(tasks.iter().map(|task| task.timeout_ms).collect::<Vec<_>>(), [Some(3_600_000), Some(7)]);
    }

    #[test]
    fn absent_and_empty_tasks_differ() {
        assert_eq!(decoded(&json!({"id": "a", "state": "b"})).tasks, None);
        assert_eq!(decoded(&json!({"id": "a", "state": "b", "task_instances": null})).tasks, None);
        assert_eq!(decoded(&json!({"id": "a", "state": "b", "task_instances": []})).tasks, Some(vec![]));
    }

    #[test]
    fn an_error_is_an_object_or_an_array_or_nothing() {
        let error = |error: Value| decoded(&json!({"id": "a", "state": "b", "error": error})).error;
        let object = json!({"type": "t", "message": "m", "attribution": "customer", "data": {"k": 1}});
        let expected = error(object.clone()).unwrap();
        assert_eq!(expected.attribution.as_deref(), Some("customer"));
        assert_eq!(error(json!([object, {"type": "second"}])).unwrap(), expected);
        assert_eq!(error(json!([])), None);
        assert_eq!(error(json!(null)), None);
        assert_eq!(error(json!({"type": "t", "data": "x".repeat(20_000)})).unwrap().data, None);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let run = decoded(&json!({"id": "a", "state": "b", "name": "é".repeat(5000)}));
        let name = run.details.name.unwrap();
        assert!(name.ends_with('…') && name.len() <= MAX_TEXT_BYTES + 3);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_a_cap() {
        let now: Timestamp = "2026-11-25T02:00:00Z".parse().unwrap();
        let seconds = |header| retry_after(header, now).map(|wait| wait.as_secs());
        assert_eq!(seconds("7"), Some(7));
        assert_eq!(seconds("Wed, 25 Nov 2026 02:00:09 GMT"), Some(9));
        assert_eq!(seconds("Wed, 25 Nov 2026 01:00:00 GMT"), None);
        assert_eq!(seconds("0"), None);
        assert_eq!(seconds("86400"), Some(300));
        assert_eq!(seconds("99999999999999999999999"), Some(300));
        assert_eq!(seconds("soon"), None);
        assert_eq!(seconds("-1"), None);
        assert_eq!(seconds(""), None);
    }

    #[test]
    fn a_token_has_a_time_to_live() {
        let token = |body: Value| access_token(body.to_string().as_bytes());
        assert_eq!(
            token(json!({"access_token": "t", "expires_in": 60.0})),
            Some(("t".into(), Duration::from_secs(60)))
        );
        assert_eq!(token(json!({"access_token": "t"})), Some(("t".into(), Duration::from_secs(3600))));
        assert_eq!(token(json!({"access_token": "t", "expires_in": 1e300})).unwrap().1, Duration::from_secs(86_400));
        assert_eq!(token(json!({"token": "t"})), None);
    }
}
