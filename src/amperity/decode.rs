//! Owns the tolerant decoding of whole bodies, and of headers.
//! Never fails on a header: one that cannot be decoded counts as absent.

use std::time::Duration;

use jiff::Timestamp;

use crate::amperity::{
    answer_memory::Share,
    body::{BodyDecoder, TokenDecoder},
    reply::Body,
};

/// The longest wait that a `Retry-After` is honoured for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Decodes a whole body as [`BodyDecoder`] does.
pub fn decode_body(body: &[u8]) -> Body {
    let mut decoder = BodyDecoder::new(Share::default());
    decoder.push(body);
    decoder.finish()
}

/// Decodes the response of a token endpoint as [`TokenDecoder`] does.
pub fn access_token(body: &[u8]) -> Option<(String, Duration)> {
    let mut decoder = TokenDecoder::default();
    decoder.push(body);
    decoder.finish()
}

/// Parses an HTTP date, such as `Wed, 25 Nov 2026 02:00:09 GMT`.
pub fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// Parses a `Retry-After` in seconds or as an HTTP date; returns at most `MAX_RETRY_AFTER`. Returns `None` if it is
/// neither, and for a wait of zero: then the caller uses its own backoff.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::{
        answer_memory::Held,
        body_fields::BodyFields,
        lenient_json::object,
        reply::Shape,
        run::{MAX_DATA_DEPTH, MAX_TEXT_BYTES, Run},
    };
    use serde_json::{Value, json};
    use workflow_run_stop_api::workflow_run::{RunDetails, RunError, TaskInstance};

    fn decoded(body: &Value) -> Run {
        decode_body(body.to_string().as_bytes()).run.unwrap()
    }

    #[test]
    fn a_run_needs_only_id_and_state() {
        assert_eq!(decoded(&json!({"id": "wf-1", "state": "stopping"})).state, "stopping");
        for body in
            [json!({"id": "wf-1"}), json!({"state": "x"}), json!([]), json!("x"), json!({"id": null, "state": "x"})]
        {
            assert_eq!(decode_body(body.to_string().as_bytes()).run, None, "{body}");
        }
        assert_eq!(decode_body(b"<html>").run, None);
    }

    /// Decodes a body as a whole, without its chunks, and returns the shape and the fields.
    fn decoded_at_once(body: &[u8]) -> Body {
        let fields = object::<BodyFields>(body);
        let shape = if body.trim_ascii().is_empty() { Shape::Empty } else { Shape::Other };
        fields.map_or(Body { shape, ..Body::default() }, |fields| fields.into_body(Held::default()))
    }

    fn decoded_in_chunks(body: &[u8], size: usize) -> Body {
        let mut decoder = BodyDecoder::new(Share::default());
        body.chunks(size).for_each(|chunk| decoder.push(chunk));
        decoder.finish()
    }

    /// Writes a JSON value that may be nearly JSON, with known keys in any place.
    fn write_json(out: &mut String, depth: usize, below: &mut impl FnMut(usize) -> usize) {
        const KEYS: [&str; 16] = [
            "id",
            "state",
            "error",
            "error",
            "task_instances",
            "data",
            "type",
            "name",
            "message",
            "status",
            "timeout_ms",
            "err\\u006fr",
            "request_id",
            "label",
            "\\ud800",
            "later",
        ];
        const SCALARS: [&str; 16] = [
            "null",
            "true",
            "7",
            "404.0",
            "1e999",
            "-1.5",
            "\"x\"",
            "\"wf-1\"",
            "\"\"",
            "\"\\ud800\"",
            "\"\0\"",
            "\"\\x\"",
            "\"[{,:\\\"\"",
            "\"é\"",
            "{}",
            "[]",
        ];
        let count = below(5);
        match below(if depth == 0 { 1 } else { 4 }) {
            0 => out.push_str(SCALARS[below(SCALARS.len())]),
            1 => {
                out.push('[');
                for index in 0..count {
                    out.push_str(if index == 0 { "" } else { " , " });
                    write_json(out, depth - 1, below);
                }
                out.push(']');
            }
            _ => {
                out.push('{');
                for index in 0..count {
                    out.push_str(if index == 0 { "\"" } else { ",\"" });
                    out.push_str(KEYS[below(KEYS.len())]);
                    out.push_str("\": ");
                    write_json(out, depth - 1, below);
                }
                out.push('}');
            }
        }
    }

    #[test]
    fn a_body_in_chunks_is_decoded_as_the_whole_body() {
        let mut random = 7;
        let mut below = |limit: usize| {
            random = u64::wrapping_mul(random, 6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % limit
        };
        let (mut objects, mut runs) = (0, 0);
        for _ in 0..20_000 {
            let mut body = String::from(["", "\u{FEFF}", " "][below(3)]);
            write_json(&mut body, 4, &mut below);
            if below(2) == 0 {
                body = body.replacen('{', "{\"id\":\"a\",\"state\":\"b\"", 1).replacen("\"b\"\"", "\"b\",\"", 1);
            }
            let mut body = body.into_bytes();
            if below(3) == 0 && !body.is_empty() {
                let at = below(body.len());
                body[at] = b"{}[],:\"\\ 1\xff"[below(11)];
            }
            let expected = decoded_at_once(&body);
            objects += usize::from(expected.shape == Shape::Object);
            runs += usize::from(expected.run.is_some());
            for size in [usize::MAX, 1, 1 + below(9)] {
                let decoded = decoded_in_chunks(&body, size);
                assert_eq!(decoded, expected, "{} in chunks of {size}", String::from_utf8_lossy(&body));
            }
        }
        assert!(5_000 < objects && 2_000 < runs, "{objects} {runs}");
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
    fn tasks_that_do_not_fit_into_the_status_are_left_out_and_counted() {
        let tasks = vec![json!({"id": "wft-1", "state": "running", "label": "x".repeat(500)}); 10_000];
        let run = decoded(&json!({"id": "a", "state": "b", "task_instances": tasks}));
        let kept = run.tasks.unwrap().len();
        assert!(0 < kept && kept < 1000);
        assert_eq!(kept + run.tasks_omitted, 10_000);
    }

    #[test]
    fn an_error_is_an_object_or_an_array_or_absent() {
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
    fn error_data_that_is_nested_too_deep_is_left_out_and_the_other_fields_stay() {
        for (depth, kept) in [(MAX_DATA_DEPTH, true), (MAX_DATA_DEPTH + 1, false), (500_000, false)] {
            let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let error = format!(r#"{{"data":{nested},"type":"t"}}"#);
            let body = format!(r#"{{"error":{error},"task_instances":[{{"error":{error}}}],"id":"a","state":"b"}}"#);
            let run = decode_body(body.as_bytes()).run.unwrap();
            for error in [run.error.unwrap(), run.tasks.unwrap().remove(0).error.unwrap()] {
                assert_eq!(error.data.is_some(), kept, "{depth}");
                assert_eq!(error.r#type.as_deref(), Some("t"));
            }
        }
    }

    #[test]
    fn a_run_is_decoded_whatever_else_the_body_contains() {
        for fields in [
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
            let body = format!(r#"{{{fields},"id":"wf-1","state":"stopping"}}"#);
            let run = decode_body(body.as_bytes()).run.unwrap_or_else(|| panic!("{body}"));
            assert_eq!((run.id.as_str(), run.state.as_str()), ("wf-1", "stopping"), "{body}");
        }
        for depth in [127, 128, 129, 100_000] {
            for (open, close) in [("[", "]"), (r#"{"x":"#, "}")] {
                let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                for key in ["x", "name", "status", "error", "task_instances", "warn_after_ms"] {
                    let body = format!(r#"{{"{key}":{nested},"id":"wf-1","state":"stopping"}}"#);
                    assert!(decode_body(body.as_bytes()).run.is_some(), "{key} {depth}");
                }
            }
        }
    }

    #[test]
    fn invalid_characters_are_replaced_and_escaped_control_characters_stay() {
        let run = decode_body(b"\xEF\xBB\xBF{\"id\":\"a\",\"state\":\"x\xff\x01\\ud800\\n\\u0000\"}").run.unwrap();
        assert_eq!(run.state, "x\u{FFFD}\u{FFFD}\u{FFFD}\n\0");
    }

    #[test]
    fn a_number_out_of_range_is_absent_and_a_huge_integer_saturates() {
        let of = |number: &str| {
            let body = format!(r#"{{"id":"a","state":"b","warn_after_ms":{number}}}"#);
            decode_body(body.as_bytes()).run.unwrap().details.warn_after_ms
        };
        assert_eq!(of("1e999"), None);
        assert_eq!(of(&"9".repeat(400)), None);
        assert_eq!(of("1e300"), Some(i64::MAX));
        assert_eq!(of("-99999999999999999999"), Some(i64::MIN));
        assert_eq!(of("18446744073709551615"), Some(i64::MAX));
    }

    #[test]
    fn a_message_is_a_text_and_the_request_id_falls_back_to_the_trace_id() {
        let of = |body: Value| decode_body(body.to_string().as_bytes());
        assert_eq!(of(json!({"message": "m", "request_id": "r", "trace_id": "t"})).message.as_deref(), Some("m"));
        for not_a_text in [json!(7), json!(["m"]), json!(null), json!({"message": "m"})] {
            assert_eq!(of(json!({"message": not_a_text})).message, None);
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
            assert_eq!(decode_body(format!(r#"{{"status":{status}}}"#).as_bytes()).error_status, expected, "{status}");
        }
        assert_eq!(decode_body(b"{}").error_status, None);
    }

    #[test]
    fn only_an_error_that_is_a_text_is_an_oauth_error() {
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
            assert_eq!(decode_body(body.as_bytes()).oauth_error, expected, "{body}");
        }
    }

    #[test]
    fn the_shape_of_a_body_is_empty_or_object_or_other() {
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
            assert_eq!(decode_body(body.as_bytes()).shape, shape, "{body:?}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let run = decoded(&json!({"id": "a", "state": "b", "name": "é".repeat(5000)}));
        let name = run.details.name.unwrap();
        assert!(name.ends_with('…') && name.len() <= MAX_TEXT_BYTES + 3);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_is_capped() {
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
    fn a_token_has_a_lifetime() {
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

    #[test]
    fn every_documented_field_of_a_run_and_its_tasks_is_decoded() {
        let error = json!({"attribution": "customer", "type": "core/cancel", "message": "stopped", "data": {"a": 1}});
        let body = json!({
            "id": "wf-1", "state": "stopping", "error": error, "name": "n", "type": "ty", "created_at": "ca",
            "ended_at": "ea", "launched_version": "lv", "current_version": "cv", "principal_id": "pi",
            "principal_name": "pn", "principal_email": "pe", "warn_after_ms": 5,
            "task_instances": [{
                "id": "wft-1", "run_id": "wf-1", "workflow_id": "w", "label": "l", "state": "failed",
                "execution_type": "et", "task_definition_id": "tdi", "task_definition_type": "tdt", "tenant": "acme",
                "timeout_ms": 7, "created_at": "ca", "state_changed_at": "sca", "ended_at": "ea", "error": error,
            }],
        });
        let text = |text: &str| Some(text.to_owned());
        let error = RunError {
            attribution: text("customer"),
            r#type: text("core/cancel"),
            message: text("stopped"),
            data: Some(json!({"a": 1}).into()),
        };
        let task = TaskInstance {
            id: text("wft-1"),
            run_id: text("wf-1"),
            workflow_id: text("w"),
            label: text("l"),
            state: text("failed"),
            execution_type: text("et"),
            task_definition_id: text("tdi"),
            task_definition_type: text("tdt"),
            tenant: text("acme"),
            timeout_ms: Some(7),
            created_at: text("ca"),
            state_changed_at: text("sca"),
            ended_at: text("ea"),
            error: Some(error.clone()),
        };
        let details = RunDetails {
            name: text("n"),
            r#type: text("ty"),
            created_at: text("ca"),
            ended_at: text("ea"),
            launched_version: text("lv"),
            current_version: text("cv"),
            principal_id: text("pi"),
            principal_name: text("pn"),
            principal_email: text("pe"),
            warn_after_ms: Some(5),
        };
        let run = Run {
            id: "wf-1".to_owned(),
            state: "stopping".to_owned(),
            error: Some(error),
            tasks: Some(vec![task]),
            tasks_omitted: 0,
            details,
            memory: Held::default(),
        };
        assert_eq!(decoded(&body), run);
    }
}
