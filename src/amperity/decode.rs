//! Owns the bytes: JSON bodies and headers of the API, decoded tolerantly.
//! Never fails on an unknown field, a null, an absent field, an integer sent as a double, or a text that is nearly JSON.

use std::{marker::PhantomData, time::Duration};

use jiff::Timestamp;
use serde::de::{MapAccess, SeqAccess};
use serde_json::Number;
use workflow_run_stop_api::workflow_run::{RunDetails, RunError, TaskInstance};

use crate::amperity::run::Run;
use crate::amperity::run::{MAX_DATA_BYTES, MAX_DATA_DEPTH, TaskSelection};
use crate::amperity::{
    lenient_json::{
        AnyNumber, Bounded, Fields, Object, Objects, Text, TextOrNumber, Wanted, WholeText, item, object, skip,
        skip_items, value,
    },
    reply::{Body, Shape},
};

/// The longest time that a `Retry-After` is honoured for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Decodes a body; only its shape where it is no JSON object. A run needs only `id` and `state`, since the API's
/// descriptions differ in the rest, and no other field can make it fail.
pub fn said(body: &[u8]) -> Body {
    let Some(answer) = object::<Answer>(body) else {
        let shape = if body.trim_ascii().is_empty() { Shape::Empty } else { Shape::Other };
        return Body { shape, ..Body::default() };
    };
    let Answer { id, state, error, tasks, details, message, request_id, trace_id, status } = answer;
    let (error, oauth_error) = match error {
        ErrorValue::Object(error) => (Some(error), false),
        ErrorValue::Text => (None, true),
        ErrorValue::Absent => (None, false),
    };
    let (tasks, omitted) = tasks.map(TaskSelection::finish).unzip();
    let tasks_omitted = omitted.unwrap_or_default();
    Body {
        run: id.zip(state).map(|(id, state)| Run { id, state, error, tasks, tasks_omitted, details }),
        message,
        request_id: request_id.or(trace_id),
        error_status: status.as_ref().and_then(http_status),
        oauth_error,
        shape: Shape::Object,
    }
}

/// An HTTP date, such as `Wed, 25 Nov 2026 02:00:09 GMT`.
pub fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// The access token of a token endpoint's answer and its time to live, one hour where it is not said.
pub fn access_token(body: &[u8]) -> Option<(String, Duration)> {
    let Grant { access_token, expires_in } = object(body)?;
    // A token that had to be repaired is not the one that was issued.
    let token = access_token.filter(|token| !token.contains(char::REPLACEMENT_CHARACTER))?;
    let seconds = expires_in.as_ref().map(integer).and_then(|seconds| u64::try_from(seconds).ok());
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

/// The fields of a run and those of an error object, beside each other.
#[derive(Default)]
struct Answer {
    id: Option<String>,
    state: Option<String>,
    error: ErrorValue,
    tasks: Option<TaskSelection>,
    details: RunDetails,
    message: Option<String>,
    request_id: Option<String>,
    trace_id: Option<String>,
    status: Option<Number>,
}

impl Fields for Answer {
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "id" => self.id = value(map, TextOrNumber)?,
            "state" => self.state = value(map, TextOrNumber)?,
            "error" => self.error = value(map, ErrorValue::Absent)?,
            "task_instances" => self.tasks = value(map, Objects::<TaskInstance, _>(PhantomData))?,
            "name" => self.details.name = value(map, TextOrNumber)?,
            "type" => self.details.r#type = value(map, TextOrNumber)?,
            "created_at" => self.details.created_at = value(map, TextOrNumber)?,
            "ended_at" => self.details.ended_at = value(map, TextOrNumber)?,
            "launched_version" => self.details.launched_version = value(map, TextOrNumber)?,
            "current_version" => self.details.current_version = value(map, TextOrNumber)?,
            "principal_id" => self.details.principal_id = value(map, TextOrNumber)?,
            "principal_name" => self.details.principal_name = value(map, TextOrNumber)?,
            "principal_email" => self.details.principal_email = value(map, TextOrNumber)?,
            "warn_after_ms" => self.details.warn_after_ms = milliseconds(map)?,
            "message" => self.message = value(map, Text)?,
            "request_id" => self.request_id = value(map, TextOrNumber)?,
            "trace_id" => self.trace_id = value(map, TextOrNumber)?,
            "status" => self.status = value(map, AnyNumber)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl Fields for TaskInstance {
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "id" => self.id = value(map, TextOrNumber)?,
            "run_id" => self.run_id = value(map, TextOrNumber)?,
            "workflow_id" => self.workflow_id = value(map, TextOrNumber)?,
            "label" => self.label = value(map, TextOrNumber)?,
            "state" => self.state = value(map, TextOrNumber)?,
            "execution_type" => self.execution_type = value(map, TextOrNumber)?,
            "task_definition_id" => self.task_definition_id = value(map, TextOrNumber)?,
            "task_definition_type" => self.task_definition_type = value(map, TextOrNumber)?,
            "tenant" => self.tenant = value(map, TextOrNumber)?,
            "timeout_ms" => self.timeout_ms = milliseconds(map)?,
            "created_at" => self.created_at = value(map, TextOrNumber)?,
            "state_changed_at" => self.state_changed_at = value(map, TextOrNumber)?,
            "ended_at" => self.ended_at = value(map, TextOrNumber)?,
            "error" => {
                self.error = match value(map, ErrorValue::Absent)? {
                    ErrorValue::Object(error) => Some(error),
                    ErrorValue::Text | ErrorValue::Absent => None,
                }
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl Fields for RunError {
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "attribution" => self.attribution = value(map, TextOrNumber)?,
            "type" => self.r#type = value(map, TextOrNumber)?,
            "message" => self.message = value(map, TextOrNumber)?,
            "data" => self.data = value(map, Bounded { bytes: MAX_DATA_BYTES, depth: MAX_DATA_DEPTH })?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// The answer of a token endpoint.
#[derive(Default)]
struct Grant {
    access_token: Option<String>,
    expires_in: Option<Number>,
}

impl Fields for Grant {
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "access_token" => self.access_token = value(map, WholeText)?,
            "expires_in" => self.expires_in = value(map, AnyNumber)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// The value of a field `error`. The documents call it an array and describe an object: both are accepted, and of an array
/// the first item counts. An OAuth server has a text there.
#[derive(Default)]
enum ErrorValue {
    Object(RunError),
    Text,
    #[default]
    Absent,
}

impl Wanted for ErrorValue {
    type Value = Self;

    fn absent(self) -> Self {
        Self::Absent
    }

    fn text(self, _: &str) -> Self {
        Self::Text
    }

    fn array<'de, A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        let first = item(&mut items, Object(PhantomData))?;
        skip_items(&mut items)?;
        Ok(first.flatten().map_or(Self::Absent, Self::Object))
    }

    fn object<'de, A: MapAccess<'de>>(self, fields: A) -> Result<Self, A::Error> {
        let error = Object(PhantomData).object(fields)?;
        Ok(error.map_or(Self::Absent, Self::Object))
    }
}

fn milliseconds<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<i64>, A::Error> {
    Ok(value(map, AnyNumber)?.as_ref().map(integer))
}

/// An integer; the API sends some as doubles.
fn integer(number: &Number) -> i64 {
    // The cast saturates; a fraction of a millisecond has no meaning here.
    number.as_i64().or_else(|| number.as_f64().map(|double| double as i64)).unwrap_or_default()
}

/// The HTTP status that a number is, also as a double without a fraction.
fn http_status(number: &Number) -> Option<u16> {
    let whole = number.as_f64().filter(|double| double.fract() == 0.0)?;
    (100.0..=999.0).contains(&whole).then_some(whole as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::run::MAX_TEXT_BYTES;
    use serde_json::{Value, json};

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
    fn of_very_many_tasks_only_those_that_fit_are_kept_and_the_rest_is_counted() {
        let tasks = vec![json!({"id": "wft-1", "state": "running", "label": "x".repeat(500)}); 10_000];
        let run = decoded(&json!({"id": "a", "state": "b", "task_instances": tasks}));
        let kept = run.tasks.unwrap().len();
        assert!(0 < kept && kept < 1000);
        assert_eq!(kept + run.tasks_omitted, 10_000);
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
    fn error_data_that_is_nested_too_deep_is_left_out_and_the_rest_stays() {
        for (depth, kept) in [(MAX_DATA_DEPTH, true), (MAX_DATA_DEPTH + 1, false), (500_000, false)] {
            let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let error = format!(r#"{{"data":{nested},"type":"t"}}"#);
            let body = format!(r#"{{"error":{error},"task_instances":[{{"error":{error}}}],"id":"a","state":"b"}}"#);
            let run = said(body.as_bytes()).run.unwrap();
            for error in [run.error.unwrap(), run.tasks.unwrap().remove(0).error.unwrap()] {
                assert_eq!(error.data.is_some(), kept, "{depth}");
                assert_eq!(error.r#type.as_deref(), Some("t"));
            }
        }
    }

    #[test]
    fn a_run_is_decoded_whatever_else_the_body_carries() {
        for noise in [
            r#""name":"\ud800""#,
            r#""\udc00":1"#,
            r#""x":{"\ud800":"\ud800"}"#,
            "\"x\":\"\0\n\x1b\"",
            "\"x\n\":[\"\t\"]",
            r#""x":1e999,"warn_after_ms":-1e999"#,
            r#""status":1e999,"message":1e999,"error":[1e999,{"data":1e999}]"#,
            r#""task_instances":[1e999,{"timeout_ms":1e999,"error":{"data":[1e999]}}]"#,
            r#""task_instances":{"x":[]},"error":[[[{}]]]"#,
            r#""task_instances":[[],[{}],"x",null,true]"#,
            r#""id":"first","state":"first""#,
        ] {
            let noise = format!(r#"{{{noise},"id":"wf-1","state":"stopping"}}"#);
            let run = said(noise.as_bytes()).run.unwrap_or_else(|| panic!("{noise}"));
            assert_eq!((run.id.as_str(), run.state.as_str()), ("wf-1", "stopping"), "{noise}");
        }
        for depth in [127, 128, 129, 100_000] {
            for (open, close) in [("[", "]"), (r#"{"x":"#, "}")] {
                let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                for key in ["x", "name", "status", "error", "task_instances", "warn_after_ms"] {
                    let body = format!(r#"{{"{key}":{nested},"id":"wf-1","state":"stopping"}}"#);
                    assert!(said(body.as_bytes()).run.is_some(), "{key} {depth}");
                }
            }
        }
    }

    #[test]
    fn texts_are_repaired_and_escaped_control_characters_stay() {
        let run = said(b"\xEF\xBB\xBF{\"id\":\"a\",\"state\":\"x\xff\x01\\ud800\\n\\u0000\"}").run.unwrap();
        assert_eq!(run.state, "x\u{FFFD}\u{FFFD}\u{FFFD}\n\0");
    }

    #[test]
    fn a_number_out_of_range_is_absent_and_a_huge_integer_saturates() {
        let of = |number: &str| {
            let body = format!(r#"{{"id":"a","state":"b","warn_after_ms":{number}}}"#);
            said(body.as_bytes()).run.unwrap().details.warn_after_ms
        };
        assert_eq!(of("1e999"), None);
        assert_eq!(of(&"9".repeat(400)), None);
        assert_eq!(of("1e300"), Some(i64::MAX));
        assert_eq!(of("-99999999999999999999"), Some(i64::MIN));
        assert_eq!(of("18446744073709551615"), Some(i64::MAX));
    }

    #[test]
    fn a_message_is_only_a_text_and_an_id_of_the_request_falls_back_to_the_trace() {
        let of = |body: Value| said(body.to_string().as_bytes());
        assert_eq!(of(json!({"message": "m", "request_id": "r", "trace_id": "t"})).message.as_deref(), Some("m"));
        for no_text in [json!(7), json!(["m"]), json!(null), json!({"message": "m"})] {
            assert_eq!(of(json!({"message": no_text})).message, None);
        }
        let id = |body: Value| of(body).request_id;
        assert_eq!(id(json!({"request_id": "r", "trace_id": "t"})).as_deref(), Some("r"));
        assert_eq!(id(json!({"request_id": null, "trace_id": "t"})).as_deref(), Some("t"));
        assert_eq!(id(json!({"trace_id": 7})).as_deref(), Some("7"));
        assert_eq!(id(json!({})), None);
    }

    #[test]
    fn the_status_of_an_error_object_is_an_integer_from_100_to_999() {
        for (status, expected) in [
            ("404", Some(404)),
            ("404.0", Some(404)),
            ("4.04e2", Some(404)),
            ("100", Some(100)),
            ("999", Some(999)),
            ("99", None),
            ("1000", None),
            ("404.5", None),
            ("-404", None),
            ("65940", None),
            ("\"404\"", None),
            ("null", None),
            ("1e999", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(said(format!(r#"{{"status":{status}}}"#).as_bytes()).error_status, expected, "{status}");
        }
        assert_eq!(said(b"{}").error_status, None);
    }

    #[test]
    fn only_an_error_that_is_a_text_is_one_of_oauth() {
        for (body, expected) in [
            (r#"{"error":"invalid_client"}"#, true),
            (r#"{"error":""}"#, true),
            (r#"{"error":{"type":"t"}}"#, false),
            (r#"{"error":["invalid_client"]}"#, false),
            (r#"{"error":1}"#, false),
            (r#"{"error":null}"#, false),
            (r#"{"x":{"error":"x"}}"#, false),
            (r#"{"error":"x","error":null}"#, false),
            ("{}", false),
        ] {
            assert_eq!(said(body.as_bytes()).oauth_error, expected, "{body}");
        }
    }

    #[test]
    fn a_body_is_blank_or_an_object_or_something_else() {
        for (body, shape) in [
            ("", Shape::Empty),
            (" \t\r\n", Shape::Empty),
            ("{}", Shape::Object),
            ("\u{FEFF} {\"id\":1e999} ", Shape::Object),
            ("[]", Shape::Other),
            ("null", Shape::Other),
            ("\"x\"", Shape::Other),
            ("<html>", Shape::Other),
            ("{", Shape::Other),
            ("{}{}", Shape::Other),
        ] {
            assert_eq!(said(body.as_bytes()).shape, shape, "{body:?}");
        }
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
        assert_eq!(token(json!({"access_token": 7})), None);
        assert_eq!(token(json!({"access_token": "t".repeat(9000)})).unwrap().0.len(), 9000);
        assert_eq!(access_token(b"{\"access_token\":\"t\xff\"}"), None);
    }
}
