//! Property tests: whatever the API answers, the status made from it can be stored and decoded from a list.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectList;
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::json;
use workflow_run_stop_api::{Claim, WorkflowRunStop, WorkflowRunStopSpec, WorkflowRunStopStatus};
use workflow_run_stop_operator::amperity::answer::{ReadAnswer, ResponseInfo, StopAnswer};
use workflow_run_stop_operator::amperity::decode::{access_token, decode_body};
use workflow_run_stop_operator::amperity::run::Run;
use workflow_run_stop_operator::amperity::run::stored_bytes;
use workflow_run_stop_operator::reconcile::{
    decide::{Ending, Established},
    outcome::{Retry, claimed, confirmed, finished, followed, stop_answered},
    status_builder::StepTime,
};

use crate::nested_json::nested;

/// The limit for the size of a status.
const MAX_STATUS_BYTES: usize = 512 * 1024;

const STEP_TIME: fn() -> StepTime =
    || StepTime { now: Timestamp::from_second(1_000).unwrap(), jitter: 0.5, settle_time: Duration::from_secs(30) };

/// Returns a stop with the longest possible spec, whose request was claimed.
fn a_claimed_stop() -> WorkflowRunStop {
    let mut spec = WorkflowRunStopSpec::new(&"r".repeat(128), &"t".repeat(63), "amperity");
    spec.base_url = Some(format!("https://{}", "b".repeat(1000)));
    spec.reason = Some("😀".repeat(256));
    let mut stop = WorkflowRunStop::new("a", spec);
    stop.metadata.generation = Some(3);
    let time = Time(Timestamp::from_second(1_000).unwrap());
    let claim = Claim { id: "c".into(), holder: "h".repeat(63), time, ended: None };
    stop.status = Some(claimed(&stop, claim, format!("https://{}", "u".repeat(8000)), STEP_TIME()));
    stop
}

/// Returns every kind of status that an answer with this run can lead to.
fn statuses(run: &Run, said: &ResponseInfo) -> Vec<WorkflowRunStopStatus> {
    let with = |status| WorkflowRunStop { status: Some(status), ..a_claimed_stop() };
    let run = || Box::new(run.clone());
    let answered = |answer| stop_answered(&a_claimed_stop(), &answer, Retry::Backoff, STEP_TIME());
    let accepted = answered(StopAnswer::Accepted(Some(run()), said.clone()));
    let first = Established::default();
    let twice = Established { active: true, unreadable: true };
    let again = followed(&with(accepted.clone()), &ReadAnswer::Run(run()), first, STEP_TIME());
    let unread = followed(&with(accepted.clone()), &ReadAnswer::Unreadable(said.clone()), first, STEP_TIME());
    let unreadable = followed(&with(accepted.clone()), &ReadAnswer::Unreadable(said.clone()), twice, STEP_TIME());
    let ended = finished(&with(again.clone()), Ending::Ended, STEP_TIME());
    let mut statuses = vec![accepted, again, unread, unreadable, ended];
    let to = "https://login.example".to_owned();
    for answer in [
        StopAnswer::Conflict(said.clone()),
        StopAnswer::BadRequest(said.clone()),
        StopAnswer::Foreign(said.clone()),
        StopAnswer::ServerError(said.clone(), None),
        StopAnswer::Redirected(said.clone(), to),
    ] {
        let status = answered(answer);
        for (answer, established) in [
            (ReadAnswer::Run(run()), first),
            (ReadAnswer::Run(run()), twice),
            (ReadAnswer::Unreadable(said.clone()), first),
            (ReadAnswer::Unreadable(said.clone()), twice),
        ] {
            statuses.push(confirmed(&with(status.clone()), &answer, established, 1, STEP_TIME()));
        }
        statuses.push(status);
    }
    statuses
}

/// Returns the size of a value in bytes as the API server stores it, which is written in Go.
fn stored_by_go(value: &serde_json::Value) -> usize {
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    let text = |text: &str| 2 + text.chars().map(go_character).sum::<usize>();
    let commas = |count: usize| 2 + count.saturating_sub(1);
    match value {
        Null => 4,
        Bool(value) => value.to_string().len(),
        Number(number) => go_number(number).len(),
        String(value) => text(value),
        Array(items) => commas(items.len()) + items.iter().map(stored_by_go).sum::<usize>(),
        Object(fields) => {
            let field = |(key, value): (&std::string::String, _)| text(key) + 1 + stored_by_go(value);
            commas(fields.len()) + fields.iter().map(field).sum::<usize>()
        }
    }
}

/// Returns the size of a character as `encoding/json` writes it.
fn go_character(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\u{0}'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => 6,
        _ => c.len_utf8(),
    }
}

/// Returns a number as `encoding/json` writes it. The API server decodes integers of other ranges as doubles.
fn go_number(number: &serde_json::Number) -> String {
    if let Some(integer) = number.as_i64() {
        return integer.to_string();
    }
    let double = number.as_f64().unwrap();
    let exponent = double != 0.0 && !(1e-6..1e21).contains(&double.abs());
    if exponent { format!("{double:e}").replace('e', "e+").replace("e+-", "e-") } else { double.to_string() }
}

/// Encodes a stop in a list and decodes it as the watch does.
fn decode_from_list(stop: &WorkflowRunStop) -> WorkflowRunStop {
    let list = json!({
        "apiVersion": "workflow.amperity.com/v1alpha1",
        "kind": "WorkflowRunStopList",
        "metadata": {"resourceVersion": "1"},
        "items": [stop],
    });
    let list: ObjectList<WorkflowRunStop> = serde_json::from_slice(&serde_json::to_vec(&list).unwrap()).unwrap();
    list.items.into_iter().next().unwrap()
}

/// Checks that every status from an answer can be stored and decoded from a list. Returns the run of the answer.
fn check(body: &[u8]) -> Option<Run> {
    let _ = access_token(body);
    let (run, statuses) = statuses_from(body)?;
    for status in statuses {
        check_size(&status);
        let stop = WorkflowRunStop { status: Some(status), ..a_claimed_stop() };
        assert_eq!(decode_from_list(&stop), stop);
    }
    Some(run)
}

/// Returns the run of an answer, and the statuses that it can lead to.
fn statuses_from(body: &[u8]) -> Option<(Run, Vec<WorkflowRunStopStatus>)> {
    let answer = decode_body(body);
    let (message, request_id) = (answer.message, answer.request_id);
    let run = answer.run?;
    let statuses = statuses(&run, &ResponseInfo { status: 200, message, request_id, own: true });
    Some((run, statuses))
}

/// Checks the size of a status, and returns it.
fn check_size(status: &WorkflowRunStopStatus) -> usize {
    let size = stored_by_go(&serde_json::to_value(status).unwrap());
    assert!(size < MAX_STATUS_BYTES, "a status of {size} bytes");
    size
}

/// Keys that have a meaning in an answer, and some that have none.
fn key() -> impl Strategy<Value = String> {
    let known = [
        "id",
        "state",
        "error",
        "task_instances",
        "name",
        "type",
        "created_at",
        "ended_at",
        "launched_version",
        "warn_after_ms",
        "message",
        "request_id",
        "trace_id",
        "status",
        "data",
        "attribution",
        "label",
        "timeout_ms",
        "principal_email",
        "access_token",
        "expires_in",
        "",
        "later",
    ];
    prop_oneof![8 => select(known.to_vec()).prop_map(|key| format!("\"{key}\"")), 1 => text()]
}

/// A JSON string, valid or almost valid.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[ -~]{0,8}".prop_map(|plain| plain.replace(['"', '\\'], "x")),
        1 => any::<char>().prop_map(|c| json!(c.to_string()).as_str().unwrap().replace(['"', '\\'], "")),
        2 => select(&[
            r"\ud800", r"\udfff", r"\ud83d\ude00", r"\ud800\ud800", r"\u0000", r"\n", r"\\", r#"\""#, r"\/", r"\u2028",
            r"\x", r"\u12", "\0", "\n", "\u{1b}", "\u{7f}", "\u{FFFF}", "<&>", "é", "😀",
        ][..]).prop_map(str::to_owned),
        1 => (select(&["x", "é", "\0", r"\u0000", "<", r"\ud800"][..]), prop_oneof![3 => 0..50usize, 1 => 0..6000usize]).prop_map(|(c, n)| c.repeat(n)),
    ];
    vec(part, 0..4).prop_map(|parts| format!("\"{}\"", parts.concat()))
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter_map("not a JSON number", |n| n.is_finite().then(|| json!(n).to_string())),
        select(&["1e999", "-1E+999", "1e-999", "-0", "-0.0", "1.0", "1e3", "404.0", "99999999999999999999"][..])
            .prop_map(str::to_owned),
        (1..400usize).prop_map(|digits| "7".repeat(digits)),
    ]
}

/// JSON, valid or almost valid, with known keys in unexpected places, duplicate keys, and some deeply nested values.
fn any_json() -> impl Strategy<Value = String> {
    let leaf =
        prop_oneof![select(&["null", "true", "false"][..]).prop_map(str::to_owned), number(), text(), nested(0..300),];
    leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(","))),
            vec((key(), inner), 0..6).prop_map(|fields| object(&fields)),
        ]
    })
}

fn object(fields: &[(String, String)]) -> String {
    let fields: Vec<_> = fields.iter().map(|(key, value)| format!("{key}:{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// Other fields of a run than its id and state.
fn other_fields() -> impl Strategy<Value = Vec<(String, String)>> {
    let error = vec((key(), any_json()), 0..6).prop_map(|fields| ("\"error\"".to_owned(), object(&fields)));
    let task = vec((key(), any_json()), 0..8).prop_map(|fields| object(&fields));
    let tasks = (vec(task, 0..6), select(&[1usize, 1, 1, 1, 1, 1, 1, 20][..])).prop_map(|(tasks, times)| {
        ("\"task_instances\"".to_owned(), format!("[{}]", vec![tasks; times].concat().join(",")))
    });
    let key = key().prop_filter("added by with_id_and_state", |key| key != "\"id\"" && key != "\"state\"");
    let field = prop_oneof![4 => (key, any_json()), 1 => error, 1 => tasks];
    vec(field, 0..10)
}

/// Encodes a run whose id and state are between other fields, at these positions.
fn with_id_and_state(mut fields: Vec<(String, String)>, at: (usize, usize)) -> String {
    let place = |at: usize, fields: &Vec<_>| at % (fields.len() + 1);
    fields.insert(place(at.0, &fields), ("\"id\"".into(), "\"wf-1\"".into()));
    fields.insert(place(at.1, &fields), ("\"state\"".into(), "\"stopping\"".into()));
    object(&fields)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_status_from_any_bytes_can_be_stored(body in vec(any::<u8>(), 0..200)) {
        check(&body);
    }

    #[test]
    fn a_status_from_any_json_can_be_stored(body in any_json()) {
        check(body.as_bytes());
    }

    #[test]
    fn a_run_between_any_other_fields_is_decoded(fields in other_fields(), at in any::<(usize, usize)>()) {
        let body = with_id_and_state(fields, at);
        let run = check(body.as_bytes()).unwrap();
        prop_assert_eq!((run.id.as_str(), run.state.as_str()), ("wf-1", "stopping"));
    }

    #[test]
    fn a_status_from_a_damaged_run_can_be_stored(
        fields in other_fields(),
        damage in vec((any::<usize>(), any::<u8>(), any::<bool>()), 0..8),
    ) {
        let mut body = with_id_and_state(fields, (0, 0)).into_bytes();
        for (at, byte, insert) in damage {
            let at = at % body.len();
            if insert { body.insert(at, byte) } else { body[at] = byte }
        }
        check(&body);
    }

    #[test]
    fn a_run_with_invalid_utf8_in_its_strings_is_decoded(bytes in vec(any::<u8>(), 0..40)) {
        let bytes: Vec<u8> = bytes.into_iter().filter(|byte| !matches!(byte, b'"' | b'\\')).collect();
        let body = [&b"{\"id\":\"wf-1\",\"name\":\""[..], &bytes, b"\",\"", &bytes, b"x\":1,\"state\":\"stopping\"}"].concat();
        let run = check(&body).unwrap();
        prop_assert_eq!(run.details.name.unwrap().chars().count(), String::from_utf8_lossy(&bytes).chars().count());
    }
}

/// The fields of a run that are texts, except its id.
const TEXTS: [&str; 12] = [
    "name",
    "type",
    "created_at",
    "ended_at",
    "launched_version",
    "current_version",
    "principal_id",
    "principal_name",
    "principal_email",
    "message",
    "request_id",
    "state",
];

/// Sets every text of a body, except the id of the run, to this one.
fn set_texts(body: &mut serde_json::Value, text: &str) {
    for key in TEXTS {
        body[key] = text.into();
    }
}

#[test]
fn the_largest_run_fits_into_a_status() {
    for text in ["x", "\u{0}", "<", "\"", "é", "\u{2028}"] {
        let long = text.repeat(5000);
        let data = |pad: usize| json!({"k": [text.repeat(pad)]});
        let each = stored_bytes(text) - 2;
        let pad = (16 * 1024 - stored_bytes(&data(0))) / each;
        let error = json!({"type": long, "message": long, "attribution": long, "data": data(pad)});
        let mut body = json!({"error": error, "warn_after_ms": i64::MIN});
        set_texts(&mut body, &long);
        body["id"] = long.as_str().into();
        for tasks in [vec![json!({"label": long, "error": error}); 100], vec![json!({"id": text}); 40_000]] {
            body["task_instances"] = tasks.into();
            let run = check(&serde_json::to_vec(&body).unwrap()).unwrap();
            assert!(run.error.unwrap().data.is_some());
        }
    }
}

/// A text that is as long as a status keeps it, of characters that take as much space as possible, or a short one.
fn large_text() -> impl Strategy<Value = String> {
    let characters = select(&["x", "\u{0}", "<", "\"", "é", "\u{2028}", "\u{8}", "😀", "&\u{1f}>"][..]);
    prop_oneof![
        5 => (characters, 4000..5000usize).prop_map(|(text, bytes)| text.repeat(bytes / (stored_bytes(text) - 2) + 1)),
        1 => Just("x".to_owned()),
    ]
}

/// The data of an error, about as large as a status keeps it, of values whose stored form is much longer than the
/// received one.
fn large_data() -> impl Strategy<Value = String> {
    const ITEMS: &[&str] =
        &["1e20", "1e-6", "9e20", "-1e17", "18446744073709551615", "[0]", r#"{"":0}"#, "null", "\"<\"", r#""\u0000""#];
    let items = vec(select(ITEMS), 1..3).prop_map(|items| items.join(","));
    (items, 0..20_000usize).prop_map(|(items, bytes)| {
        let count = bytes / (items.len() + 1) + 1;
        format!("[{}]", vec![items; count].join(","))
    })
}

/// An object with an id and a state, and with almost every field that a status keeps at its largest size.
fn large_run() -> impl Strategy<Value = LargeBody> {
    let error = || {
        (vec(large_text(), 3), large_data()).prop_map(|(texts, data)| {
            let [attribution, kind, message] = [0, 1, 2].map(|index| json!(texts[index]));
            format!(r#"{{"attribution":{attribution},"type":{kind},"message":{message},"data":{data}}}"#)
        })
    };
    let task = (large_text(), select(&["failed", "succeeded"][..]), proptest::option::of(error())).prop_map(
        |(label, state, error)| {
            let error = error.unwrap_or("null".into());
            format!(r#"{{"label":{},"state":"{state}","error":{error}}}"#, json!(label))
        },
    );
    let tiny =
        select(&["{}", r#"{"state":"failed"}"#, r#"{"id":"1","state":"succeeded"}"#][..]).prop_map(str::to_owned);
    let tasks = vec(prop_oneof![3 => task, 1 => tiny], 1..5).prop_map(|mut tasks| {
        tasks.push(json!({"label": "x".repeat(1000)}).to_string());
        let times = 1_000_000 / tasks.concat().len();
        format!("[{}]", vec![tasks; times].concat().join(","))
    });
    (vec(large_text(), TEXTS.len() + 1), error(), tasks).prop_map(|(texts, error, tasks)| {
        let mut fields: Vec<_> = TEXTS
            .iter()
            .chain(&["later"])
            .zip(texts)
            .map(|(key, text)| (format!("\"{key}\""), json!(text).to_string()))
            .collect();
        fields.extend([
            ("\"error\"".into(), error),
            ("\"task_instances\"".into(), tasks),
            ("\"id\"".into(), "\"wf-1\"".into()),
        ]);
        LargeBody(object(&fields))
    })
}

/// A body whose text is not printed if a test fails.
struct LargeBody(String);

impl std::fmt::Debug for LargeBody {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "a body of {} bytes", self.0.len())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 16, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn a_status_with_the_largest_parts_can_be_stored(body in large_run()) {
        let (_, statuses) = statuses_from(body.0.as_bytes()).unwrap();
        let largest = statuses.iter().map(check_size).max().unwrap();
        prop_assert!(MAX_STATUS_BYTES / 2 < largest, "the parts are not large: {largest}");
    }
}

/// Returns the status of a stop whose run was read before the stop was rejected: it has the run, and three conditions
/// with the texts of both the answer to the stop and the answer to the read.
fn rejected_after_a_read(run: &Run, said: &ResponseInfo) -> WorkflowRunStopStatus {
    let with = |status| WorkflowRunStop { status: Some(status), ..a_claimed_stop() };
    let claim = a_claimed_stop().claim().cloned().unwrap();
    let url = format!("https://{}", "u".repeat(12_000));
    let answered = |stop: &WorkflowRunStop, answer| with(stop_answered(stop, &answer, Retry::Backoff, STEP_TIME()));
    let not_stopped = answered(&a_claimed_stop(), StopAnswer::Conflict(said.clone()));
    let read = ReadAnswer::Run(Box::new(run.clone()));
    let read = confirmed(&not_stopped, &read, Established::default(), 0, STEP_TIME());
    let claimed = with(claimed(&with(read), claim, url, STEP_TIME()));
    let rejected = answered(&claimed, StopAnswer::BadRequest(said.clone()));
    let twice = Established { active: true, unreadable: true };
    confirmed(&rejected, &ReadAnswer::Unreadable(said.clone()), twice, 0, STEP_TIME())
}

#[test]
fn tasks_give_way_to_the_largest_texts_of_a_status() {
    let mut fewer = false;
    for (text, item) in [("\u{0}", "1e20"), ("<", "1e-6"), ("é", "[0]"), ("x", "1e21")] {
        let long = text.repeat(5000);
        let data = format!("[{}]", vec![item; 16 * 1024 / 23].join(","));
        let data: serde_json::Value = serde_json::from_str(&data).unwrap();
        let error = json!({"type": long, "message": long, "attribution": long, "data": data});
        let mut body = json!({"id": "wf-1", "error": error});
        set_texts(&mut body, &long);
        for task in [json!({"error": {"data": data}}), json!({"label": "x".repeat(100), "state": "succeeded"})] {
            let count = 600_000 / task.to_string().len();
            body["task_instances"] = vec![task; count].into();
            let answer = decode_body(&serde_json::to_vec(&body).unwrap());
            let (message, request_id, run) = (answer.message, answer.request_id, answer.run.unwrap());
            let status = rejected_after_a_read(&run, &ResponseInfo { status: 400, message, request_id, own: true });
            assert!(MAX_STATUS_BYTES - 30_000 < check_size(&status), "{text} {item}");
            let (tasks, omitted) = (status.task_instances.unwrap(), status.task_instances_omitted.unwrap());
            assert_eq!(tasks.len() + usize::try_from(omitted).unwrap(), count, "every task is kept or counted");
            fewer |= tasks.len() < run.tasks.unwrap().len();
        }
    }
    assert!(fewer, "tasks make room for the other fields");
}

#[test]
fn deeply_nested_error_data_can_be_decoded_from_a_list() {
    for depth in (0..40).chain([63, 64, 127, 128, 200]) {
        let data = format!("{}1{}", r#"{"k":["#.repeat(depth), "]}".repeat(depth));
        let task = format!(r#"{{"error":{{"data":{data}}}}}"#);
        let body = format!(r#"{{"id":"wf-1","state":"x","error":{{"data":{data}}},"task_instances":[{task}]}}"#);
        assert_eq!(check(body.as_bytes()).unwrap().error.unwrap().data.is_some(), depth <= 16, "{depth}");
    }
}
