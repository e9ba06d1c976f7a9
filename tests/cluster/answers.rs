//! One test for each row of the answer table: how often the request was sent, and what the status says.

use std::time::Duration;

use lab::simulator::{Again, ErrorBody, Fault, Kind, RetryAfter, Run, Simulator, StopAnswerTasks, Took};
use serde_json::json;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionType, Reason, StopResult},
};

use crate::support::{History, Operator, Place, TENANT, a_stop, condition, ready, request, told};

/// What is told at the end of a stop that was accepted in the answer.
pub const STOPPED: [&str; 3] =
    ["Ready: True RunStopped", "StopAccepted: True StopAccepted", "RunEnded: True RunStopped"];

/// What is told at the end of a stop whose acceptance was learned by reading.
pub const CONFIRMED: [&str; 3] =
    ["Ready: True RunStopped", "StopAccepted: True ConfirmedByRead", "RunEnded: True RunStopped"];

/// What is told at the end of a stop that something else than Amperity answers, while its run goes on.
pub const NOT_AMPERITYS_ANSWER: [&str; 4] = [
    "Ready: False UnexpectedAnswer",
    "Stalled: True UnexpectedAnswer",
    "StopAccepted: False UnexpectedAnswer",
    "RunEnded: False UnexpectedAnswer",
];

/// A place with an operator at work, where every version of every stop is kept.
pub struct Bench {
    pub place: Place,
    pub operator: Operator,
    pub history: History,
}

impl Bench {
    pub async fn new() -> Self {
        Self::at(Place::new().await).await
    }

    pub async fn at(place: Place) -> Self {
        let history = place.history().await;
        let operator = place.operator().await;
        Self { place, operator, history }
    }

    /// Adds a run whose stops meet these faults, one each.
    pub fn add(&self, run: Run, id: &str, faults: impl IntoIterator<Item = Fault>) {
        self.place.amperity.add_run(TENANT, run);
        self.place.amperity.on_stop(id, faults);
    }

    /// Waits for the end. Every version up to it has to be sound.
    pub async fn finished(&self, name: &str) -> Vec<WorkflowRunStop> {
        let versions = self.history.until(name, "finished", WorkflowRunStop::is_finished).await;
        assert_sound(&versions);
        let log = self.operator.log().join("\n");
        for secret in ["good-token", "bad-token", "good-secret", "tok-1", "Bearer"] {
            assert!(!log.contains(secret), "the log shows {secret}:\n{log}");
        }
        versions
    }
}

/// What has to hold of every version of a stop, whatever happened.
pub fn assert_sound(versions: &[WorkflowRunStop]) {
    let mut attempts = 0;
    let mut claims: Vec<String> = vec![];
    // At first the status is the CRD's default, which the operator did not write.
    let written = |stop: &&WorkflowRunStop| stop.status.as_ref().is_some_and(|status| !status.conditions.is_empty());
    for stop in versions.iter().filter(written) {
        let seen = format!("{:#?}", stop.status);
        let request = request(stop);
        let (accepted, _) = condition(stop, ConditionType::StopAccepted);
        let (ready, _) = ready(stop);
        let stalled = condition(stop, ConditionType::Stalled).0 == "True";
        if stop.is_finished() {
            assert_eq!(condition(stop, ConditionType::Reconciling), Default::default(), "{seen}");
            assert_eq!((ready == "True", ready == "False"), (!stalled, stalled), "{seen}");
            assert_eq!(request.next_attempt_time, None, "{seen}");
        } else {
            assert_eq!(condition(stop, ConditionType::Reconciling).0, "True", "{seen}");
            assert!(!stalled && ready != "True", "{seen}");
            assert_eq!(request.claim.is_some(), accepted == "Unknown", "a claim stands for an open outcome: {seen}");
        }
        assert_eq!(request.accepted_time.is_some(), accepted == "True", "{seen}");
        if let Some(claim) = request.claim.filter(|claim| !claims.contains(&claim.id)) {
            claims.push(claim.id);
            attempts += 1;
        }
        assert_eq!(request.attempts, attempts, "each claim is one attempt: {seen}");
        assert!(stop.status.as_ref().unwrap().observed_generation <= stop.metadata.generation, "{seen}");
    }
}

/// True where some version told this and nothing else.
pub fn was_told(versions: &[WorkflowRunStop], lines: &[&str]) -> bool {
    versions.iter().any(|stop| told(stop) == lines)
}

/// One stop of the run `wf-1`, met by these faults, up to its end.
async fn answered(run: Run, faults: impl IntoIterator<Item = Fault>) -> (Bench, Vec<WorkflowRunStop>, WorkflowRunStop) {
    let bench = Bench::new().await;
    bench.add(run, "wf-1", faults);
    bench.place.apply(a_stop("wf-1")).await;
    let versions = bench.finished("wf-1").await;
    let stop = versions.last().unwrap().clone();
    (bench, versions, stop)
}

/// A run that tells of its tasks when it is stopped, so that a stop that was answered is never followed by a read.
pub fn a_run(id: &str) -> Run {
    Run::new(id).with_tasks(3).stop_answer_tasks(StopAnswerTasks::Full)
}

pub fn status(code: u16, effect: Took, body: ErrorBody) -> Fault {
    Fault::Status { code, effect, body }
}

fn tasks_of(stop: &WorkflowRunStop) -> Option<usize> {
    stop.status.as_ref()?.task_instances.as_ref().map(Vec::len)
}

#[tokio::test]
async fn a_run_that_takes_a_while_to_stop_is_stopped_once_and_followed_to_its_end() {
    let run = Run::new("wf-1").with_tasks(3).stops_in(Duration::from_secs(1));
    let (bench, versions, stop) = answered(run, []).await;
    assert_eq!(told(&stop), STOPPED);
    let following = [
        "Ready: Unknown FollowingRun",
        "Reconciling: True FollowingRun",
        "StopAccepted: True StopAccepted",
        "RunEnded: False FollowingRun",
    ];
    assert!(was_told(&versions, &following));
    assert_eq!(tasks_of(&stop), Some(3));
    let status = stop.status.clone().unwrap();
    assert_eq!(status.state.as_deref(), Some("canceled"));
    assert_eq!(status.error.unwrap().message.as_deref(), Some("Workflow manually stopped"));
    let request = request(&stop);
    assert_eq!((request.attempts, request.claim, request.http_status), (1, None, Some(200)));
    assert_eq!(request.answered_state.as_deref(), Some("stopping"));
    assert_eq!((bench.place.amperity.stops("wf-1"), bench.place.amperity.effects("wf-1")), (1, 1));
}

#[tokio::test]
async fn a_run_that_ends_at_once_without_a_word_of_its_tasks_is_read_once_for_them() {
    let (bench, _, stop) = answered(Run::new("wf-1").with_tasks(3), []).await;
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 1));
    assert_eq!(tasks_of(&stop), Some(3));
    assert_eq!(request(&stop).answered_state.as_deref(), Some("canceled"));
}

#[tokio::test]
async fn a_run_that_ends_at_once_and_cannot_be_read_for_its_tasks_is_stopped_all_the_same() {
    let (bench, _, stop) = answered(Run::new("wf-1").with_tasks(3).unreadable(403), []).await;
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 2));
    assert_eq!(tasks_of(&stop), None);
}

#[tokio::test]
async fn a_run_that_ends_at_once_and_tells_of_its_tasks_is_not_read() {
    let bench = Bench::new().await;
    for (run, answers, tasks) in [("wf-1", StopAnswerTasks::Full, 3), ("wf-2", StopAnswerTasks::Empty, 0)] {
        bench.add(Run::new(run).with_tasks(3).stop_answer_tasks(answers), run, []);
        bench.place.apply(a_stop(run)).await;
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(told(&stop), STOPPED);
        assert_eq!(bench.place.sent(run), (1, 1, 0), "{answers:?}");
        assert_eq!(tasks_of(&stop), Some(tasks));
    }
}

#[tokio::test]
async fn the_error_and_the_tasks_of_a_run_that_fails_are_kept_as_returned() {
    let (bench, _, stop) = answered(a_run("wf-1").failing_with_error(), []).await;
    assert_eq!(
        told(&stop),
        ["Ready: True RunEndedOtherwise", "StopAccepted: True StopAccepted", "RunEnded: True RunEndedOtherwise"]
    );
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 0));
    let status = stop.status.unwrap();
    assert_eq!(status.state.as_deref(), Some("failed"));
    let error = status.error.unwrap();
    assert_eq!(error.attribution.as_deref(), Some("amperity"));
    assert_eq!(error.r#type.as_deref(), Some("amperity.workflow.task/failed"));
    let data = json!({"failed_task_count": 1, "causes": [{"code": "E-17", "retryable": false}]});
    assert_eq!(error.data, Some(data));
    let tasks = status.task_instances.unwrap();
    let task = &tasks[1];
    assert_eq!(task.id.as_deref(), Some("wft-20240619-1-9Kx3Qb"));
    assert_eq!((task.state.as_deref(), task.timeout_ms), (Some("failed"), Some(7_200_000)));
    assert_eq!(task.task_definition_type.as_deref(), Some("amperity.courier.task/send"));
    assert_eq!(task.error.as_ref().unwrap().data, Some(json!({"destination": 1, "code": 550})));
    assert_eq!(tasks[0].timeout_ms, Some(3_600_000), "a double is a number as well");
    let run = status.run.unwrap();
    assert_eq!(run.principal_email.as_deref(), Some("jane@example.com"));
    assert_eq!(run.warn_after_ms, Some(86_400_000));
    assert!(run.ended_at.is_some() && run.created_at.is_some());
}

#[tokio::test]
async fn any_other_success_is_accepted_and_the_state_comes_from_reading() {
    let bench = Bench::new().await;
    let created = status(201, Took::Effect, ErrorBody::OtherJson);
    let no_content = status(204, Took::Effect, ErrorBody::Empty);
    for (run, code, fault) in [("wf-1", 202, Fault::Accepted202), ("wf-2", 201, created), ("wf-3", 204, no_content)] {
        bench.add(a_run(run), run, [fault]);
        bench.place.apply(a_stop(run)).await;
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(told(&stop), STOPPED, "{code}");
        assert_eq!(bench.place.sent(run), (1, 1, 1), "{code}");
        assert_eq!((request(&stop).http_status, request(&stop).answered_state), (Some(code), None));
        assert_eq!(stop.status.unwrap().state.as_deref(), Some("canceled"));
    }
}

/// The faults leave the outcome open and had no effect: each run is read as active twice, with the settle time
/// between, and once more right before the request is repeated.
async fn sent_again_after_two_reads(faults: impl IntoIterator<Item = Fault>, meanwhile: [&str; 4]) {
    let bench = Bench::new().await;
    let mut runs = vec![];
    for (index, fault) in faults.into_iter().enumerate() {
        let run = format!("wf-{index}");
        bench.add(a_run(&run), &run, [fault.clone()]);
        bench.place.apply(a_stop(&run)).await;
        runs.push((run, fault));
    }
    for (run, fault) in runs {
        let versions = bench.finished(&run).await;
        let stop = versions.last().unwrap();
        assert_eq!(told(stop), STOPPED, "{fault:?}");
        assert_eq!(bench.place.sent(&run), (2, 1, 3), "{fault:?}");
        assert_eq!((request(stop).attempts, request(stop).claim), (2, None), "{fault:?}");
        let open =
            versions.iter().find(|stop| told(stop) == meanwhile).unwrap_or_else(|| panic!("{fault:?}: {versions:#?}"));
        assert!(request(open).claim.unwrap().ended.is_some(), "{fault:?}");
        let requests = bench.place.amperity.requests();
        let of_run: Vec<_> = requests.iter().filter(|request| request.run_id.as_deref() == Some(&*run)).collect();
        let kinds: Vec<_> = of_run.iter().map(|request| request.kind).collect();
        assert_eq!(kinds, [Kind::Stop, Kind::Read, Kind::Read, Kind::Read, Kind::Stop], "{fault:?}");
        for (earlier, later) in [(0, 1), (1, 2)] {
            let between = of_run[later].at - of_run[earlier].at;
            assert!(Duration::from_secs(1) <= between, "{fault:?}: {between:?} is less than the settle time");
        }
    }
}

/// The faults leave the outcome open and had their effect: one read tells.
async fn confirmed_by_one_read(faults: impl IntoIterator<Item = Fault>, meanwhile: [&str; 4]) {
    let bench = Bench::new().await;
    let mut runs = vec![];
    for (index, fault) in faults.into_iter().enumerate() {
        let run = format!("wf-{index}");
        bench.add(a_run(&run), &run, [fault.clone()]);
        bench.place.apply(a_stop(&run)).await;
        runs.push((run, fault));
    }
    for (run, fault) in runs {
        let versions = bench.finished(&run).await;
        let stop = versions.last().unwrap();
        assert_eq!(told(stop), CONFIRMED, "{fault:?}");
        assert_eq!(bench.place.sent(&run), (1, 1, 1), "{fault:?}");
        assert_eq!((request(stop).attempts, request(stop).claim), (1, None), "{fault:?}");
        assert_eq!(tasks_of(stop), Some(3), "{fault:?}");
        assert!(was_told(&versions, &meanwhile), "{fault:?}: {versions:#?}");
    }
}

const UNKNOWN: [&str; 4] = [
    "Ready: Unknown OutcomeUnknown",
    "Reconciling: True OutcomeUnknown",
    "StopAccepted: Unknown OutcomeUnknown",
    "RunEnded: Unknown OutcomeUnknown",
];

const UNAVAILABLE: [&str; 4] = [
    "Ready: False Unavailable",
    "Reconciling: True Unavailable",
    "StopAccepted: Unknown Unavailable",
    "RunEnded: Unknown Unavailable",
];

fn not_our_run(took: Took) -> [Fault; 2] {
    [Fault::HtmlWith200(took), Fault::WrongId(took)]
}

fn server_errors(took: Took) -> [Fault; 4] {
    [
        status(500, took, ErrorBody::ErrorJson),
        status(502, took, ErrorBody::Html),
        status(503, took, ErrorBody::Empty),
        status(504, took, ErrorBody::Html),
    ]
}

fn no_whole_answer(took: Took) -> [Fault; 3] {
    [Fault::Reset(took), Fault::NoAnswer(took), Fault::EndlessBody(took)]
}

#[tokio::test]
async fn a_success_without_our_run_and_without_effect_is_sent_again_after_two_reads() {
    sent_again_after_two_reads(not_our_run(Took::NoEffect), UNKNOWN).await;
}

#[tokio::test]
async fn a_success_without_our_run_that_had_its_effect_is_confirmed_by_reading() {
    confirmed_by_one_read(not_our_run(Took::Effect), UNKNOWN).await;
}

#[tokio::test]
async fn a_server_error_without_effect_is_sent_again_after_two_reads() {
    sent_again_after_two_reads(server_errors(Took::NoEffect), UNAVAILABLE).await;
}

#[tokio::test]
async fn a_server_error_that_had_its_effect_is_confirmed_by_reading() {
    confirmed_by_one_read(server_errors(Took::Effect), UNAVAILABLE).await;
}

#[tokio::test]
async fn a_request_without_a_whole_answer_and_without_effect_is_sent_again_after_two_reads() {
    sent_again_after_two_reads(no_whole_answer(Took::NoEffect), UNKNOWN).await;
}

#[tokio::test]
async fn a_request_without_a_whole_answer_that_had_its_effect_is_confirmed_by_reading() {
    confirmed_by_one_read(no_whole_answer(Took::Effect), UNKNOWN).await;
}

#[tokio::test]
async fn a_run_that_ends_by_itself_while_the_outcome_is_open_leaves_open_whether_the_stop_was_accepted() {
    let run = a_run("wf-1").ends_on_its_own("succeeded", Duration::from_secs(1));
    let (bench, _, stop) = answered(run, [Fault::Reset(Took::NoEffect)]).await;
    assert_eq!(ready(&stop), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!(condition(&stop, ConditionType::StopAccepted).0, "Unknown");
    assert_eq!(condition(&stop, ConditionType::RunEnded), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!((bench.place.amperity.stops("wf-1"), bench.place.amperity.effects("wf-1")), (1, 0));
    assert_eq!(stop.status.unwrap().state.as_deref(), Some("succeeded"));
}

#[tokio::test]
async fn without_an_answer_and_without_a_way_to_read_the_run_the_outcome_stays_unknown_and_nothing_is_sent_again() {
    let bench = Bench::new().await;
    let rows = [
        ("wf-1", 403, Fault::NoAnswer(Took::NoEffect)),
        ("wf-2", 404, Fault::Reset(Took::NoEffect)),
        ("wf-3", 405, Fault::EndlessBody(Took::NoEffect)),
        ("wf-4", 403, Fault::HtmlWith200(Took::NoEffect)),
    ];
    for (run, code, fault) in rows {
        bench.add(a_run(run).unreadable(code), run, [fault]);
        bench.place.apply(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2", "wf-3", "wf-4"] {
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(
            told(&stop),
            [
                "Ready: False OutcomeUnknown",
                "Stalled: True OutcomeUnknown",
                "StopAccepted: Unknown OutcomeUnknown",
                "RunEnded: Unknown OutcomeUnknown"
            ]
        );
        assert_eq!(bench.place.sent(run), (1, 0, 2));
        assert!(request(&stop).claim.is_some(), "a claim stands for an outcome that is not known");
    }
}

#[tokio::test]
async fn a_slow_answer_within_the_timeout_is_waited_for() {
    let (bench, _, stop) = answered(a_run("wf-1"), [Fault::Slow(Duration::from_millis(1_200))]).await;
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn three_429s_and_a_success_are_four_requests_and_one_effect() {
    let limited = || Fault::TooManyRequests { retry_after: RetryAfter::Seconds(0) };
    let (bench, versions, stop) = answered(a_run("wf-1"), [limited(), limited(), limited()]).await;
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (4, 1, 0));
    assert_eq!(request(&stop).attempts, 4);
    let limited = [
        "Ready: False RateLimited",
        "Reconciling: True RateLimited",
        "StopAccepted: False RateLimited",
        "RunEnded: Unknown RateLimited",
    ];
    assert!(was_told(&versions, &limited), "{versions:#?}");
}

/// How long after a 429 with this header the next request came; by the wall clock since the second in which it came.
async fn wait_after(retry_after: RetryAfter) -> (Duration, Duration) {
    let (bench, versions, stop) = answered(a_run("wf-1"), [Fault::TooManyRequests { retry_after }]).await;
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (2, 1, 0));
    let waited = |stop: &WorkflowRunStop| ready(stop).1 == "RateLimited" && request(stop).next_attempt_time.is_some();
    assert!(versions.iter().any(waited), "{versions:#?}");
    let requests = bench.place.amperity.requests();
    let since_second = requests[0].wall.duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let by_wall = requests[1].wall.duration_since(requests[0].wall).unwrap();
    (requests[1].at - requests[0].at, by_wall + Duration::from_nanos(since_second.into()))
}

#[tokio::test]
async fn a_retry_after_in_seconds_is_waited_for() {
    let (waited, _) = wait_after(RetryAfter::Seconds(3)).await;
    assert!(Duration::from_secs(3) <= waited && waited < Duration::from_secs(8), "{waited:?}");
}

#[tokio::test]
async fn a_retry_after_as_a_date_is_waited_for() {
    let (_, waited) = wait_after(RetryAfter::Date(4)).await;
    assert!(Duration::from_secs(4) <= waited && waited < Duration::from_secs(9), "{waited:?}");
}

#[tokio::test]
async fn a_429_without_a_usable_retry_after_is_waited_for_with_backoff() {
    for retry_after in [RetryAfter::None, RetryAfter::Text("soon".to_owned()), RetryAfter::Date(-3600)] {
        let (waited, _) = wait_after(retry_after.clone()).await;
        let bounds = Duration::from_millis(100)..Duration::from_secs(6);
        assert!(bounds.contains(&waited), "{retry_after:?}: {waited:?}");
    }
}

#[tokio::test]
async fn a_refused_token_is_tried_again_until_the_secret_changes() {
    let place = Place::new().await;
    place.put_secret("amperity", &[("token", "bad-token")]).await;
    let bench = Bench::at(place).await;
    bench.add(a_run("wf-1"), "wf-1", []);
    bench.place.apply(a_stop("wf-1")).await;
    let refused = bench.place.reason("wf-1", Reason::Unauthorized).await;
    assert_eq!(
        told(&refused),
        [
            "Ready: False Unauthorized",
            "Reconciling: True Unauthorized",
            "StopAccepted: False Unauthorized",
            "RunEnded: Unknown Unauthorized"
        ]
    );
    assert_eq!((request(&refused).claim, request(&refused).http_status), (None, Some(401)));
    bench.place.amperity.wait_until(|requests| 2 <= requests.len()).await;
    bench.place.put_secret("amperity", &[("token", "good-token")]).await;
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    let (stops, effects, reads) = bench.place.sent("wf-1");
    assert_eq!((effects, reads, i32::try_from(stops).unwrap()), (1, 0, request(&stop).attempts));
}

#[tokio::test]
async fn a_403_is_tried_again_until_the_key_has_the_right() {
    let forbidden = || status(403, Took::NoEffect, ErrorBody::ErrorJson);
    let (bench, versions, stop) = answered(a_run("wf-1"), [forbidden(), forbidden()]).await;
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (3, 1, 0));
    assert_eq!(request(&stop).attempts, 3);
    let forbidden = [
        "Ready: False Forbidden",
        "Reconciling: True Forbidden",
        "StopAccepted: False Forbidden",
        "RunEnded: Unknown Forbidden",
    ];
    assert!(was_told(&versions, &forbidden), "{versions:#?}");
}

pub fn with_client(run: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.credentials_secret_ref.name = "client".to_owned();
    stop
}

pub fn tokens_asked_for(bench: &Bench) -> usize {
    bench.place.amperity.requests().iter().filter(|request| request.kind == Kind::Token).count()
}

#[tokio::test]
async fn a_fetched_token_that_became_invalid_is_replaced_by_one_new_token() {
    let bench = Bench::new().await;
    bench.place.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    bench.add(a_run("wf-1"), "wf-1", []);
    bench.add(a_run("wf-2"), "wf-2", []);
    bench.place.apply(with_client("wf-1")).await;
    assert_eq!(told(bench.finished("wf-1").await.last().unwrap()), STOPPED);
    assert_eq!(tokens_asked_for(&bench), 1);

    bench.place.amperity.set_tokens(["good-token"]);
    bench.place.apply(with_client("wf-2")).await;
    let stop = bench.finished("wf-2").await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-2"), (2, 1, 0));
    assert_eq!(tokens_asked_for(&bench), 2);
    assert_eq!(request(&stop).attempts, 2);
}

#[tokio::test]
async fn a_token_that_is_refused_as_soon_as_it_is_fetched_is_not_fetched_in_a_loop() {
    let bench = Bench::new().await;
    bench.place.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    bench.place.amperity.add_run(TENANT, a_run("wf-1"));
    bench.place.amperity.always_on_stop("wf-1", status(401, Took::NoEffect, ErrorBody::ErrorJson));
    bench.place.apply(with_client("wf-1")).await;
    let stops = |requests: &[lab::simulator::Recorded]| -> Vec<_> {
        requests.iter().filter(|request| request.kind == Kind::Stop).map(|request| request.at).collect()
    };
    bench.place.amperity.wait_until(|requests| 3 <= stops(requests).len()).await;
    let at = stops(&bench.place.amperity.requests());
    assert!(Duration::from_millis(500) <= at[1] - at[0], "{at:?}");
    assert!(Duration::from_secs(1) <= at[2] - at[1], "{at:?}");
    let tokens = tokens_asked_for(&bench);
    assert!(tokens <= at.len(), "{tokens} tokens for {} stops", at.len());
    bench.place.amperity.clear_faults();
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.amperity.effects("wf-1"), 1);
}

#[tokio::test]
async fn many_stops_behind_one_refused_token_try_it_one_at_a_time() {
    const MANY: usize = 30;
    let place = Place::new().await;
    place.put_secret("amperity", &[("token", "bad-token")]).await;
    let runs: Vec<_> = (0..MANY).map(|index| format!("wf-{index}")).collect();
    for run in &runs {
        place.amperity.add_run(TENANT, a_run(run));
        place.apply(a_stop(run)).await;
    }
    let bench = Bench::at(place).await;
    for run in &runs {
        bench.place.reason(run, Reason::Unauthorized).await;
    }
    bench.place.amperity.wait_until(|requests| 12 <= requests.len()).await;
    // At most ten were on their way when the first one was refused. Then each rest is twice as long as the one before.
    let at: Vec<_> = bench.place.amperity.requests().iter().map(|request| request.at).collect();
    assert!(Duration::from_millis(500) <= at[10] - at[0], "{:?}", at[10] - at[0]);
    assert!(Duration::from_secs(1) <= at[11] - at[10], "{:?}", at[11] - at[10]);

    bench.place.put_secret("amperity", &[("token", "good-token")]).await;
    let mut attempts = 0;
    for run in &runs {
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(told(&stop), STOPPED);
        assert_eq!(bench.place.amperity.effects(run), 1);
        attempts += usize::try_from(request(&stop).attempts).unwrap();
    }
    let requests = bench.place.amperity.requests();
    let refused = requests.iter().filter(|request| request.answered == Some(401)).count();
    assert!(refused <= 14, "{refused} requests were refused");
    assert_eq!((requests.len(), attempts), (MANY + refused, MANY + refused));
}

#[tokio::test]
async fn a_409_for_a_run_that_is_stopping_or_stopped_means_accepted() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1").again(Again::Conflict409).ended("canceled"), "wf-1", []);
    let stopping = a_run("wf-2").in_state("stopping").ends_on_its_own("canceled", Duration::from_secs(5));
    bench.add(stopping, "wf-2", [status(409, Took::NoEffect, ErrorBody::ErrorJson)]);
    for run in ["wf-1", "wf-2"] {
        bench.place.apply(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2"] {
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(told(&stop), CONFIRMED, "{run}");
        assert_eq!(bench.place.amperity.stops(run), 1);
        assert_eq!((request(&stop).claim, request(&stop).http_status), (None, Some(409)));
    }
    assert_eq!(bench.place.amperity.reads("wf-1"), 1);
}

#[tokio::test]
async fn a_409_for_a_run_that_ended_otherwise_is_the_end() {
    let (bench, _, stop) = answered(a_run("wf-1").again(Again::Conflict409).ended("succeeded"), []).await;
    assert_eq!(ready(&stop), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!(condition(&stop, ConditionType::RunEnded), ("True".into(), "RunEndedOtherwise".into()));
    assert_ne!(condition(&stop, ConditionType::StopAccepted).0, "True");
    assert_eq!(request(&stop).claim, None);
    assert_eq!(bench.place.sent("wf-1"), (1, 0, 1));
}

#[tokio::test]
async fn a_409_for_a_run_that_is_active_is_tried_again_until_the_deadline() {
    let bench = Bench::new().await;
    bench.place.amperity.add_run(TENANT, a_run("wf-1"));
    bench.place.amperity.always_on_stop("wf-1", status(409, Took::NoEffect, ErrorBody::ErrorJson));
    let mut stop = a_stop("wf-1");
    stop.spec.stop_deadline_seconds = Some(6);
    let created = bench.place.apply(stop).await.metadata.creation_timestamp.unwrap().0;
    let versions = bench.finished("wf-1").await;
    let stop = versions.last().unwrap();
    assert_eq!(
        told(stop),
        [
            "Ready: False DeadlineExceeded",
            "Stalled: True DeadlineExceeded",
            "StopAccepted: False Conflict",
            "RunEnded: False DeadlineExceeded"
        ]
    );
    let conflict = [
        "Ready: False Conflict",
        "Reconciling: True Conflict",
        "StopAccepted: False Conflict",
        "RunEnded: False Conflict",
    ];
    assert!(was_told(&versions, &conflict), "{versions:#?}");
    let (stops, effects, reads) = bench.place.sent("wf-1");
    // One read after each, and one before each further one.
    let expected = 2 * stops - 1..=2 * stops;
    assert!(2 <= stops && effects == 0 && expected.contains(&reads), "{stops} stops, {effects} effects, {reads} reads");
    assert_eq!((request(stop).attempts, request(stop).claim), (i32::try_from(stops).unwrap(), None));
    let deadline = std::time::SystemTime::from(created) + Duration::from_secs(6);
    let requests = bench.place.amperity.requests();
    assert!(requests.iter().filter(|request| request.kind == Kind::Stop).all(|request| request.wall <= deadline));
}

#[tokio::test]
async fn a_409_for_a_run_that_cannot_be_read_is_a_rejection() {
    let bench = Bench::new().await;
    for (run, code) in [("wf-1", 403), ("wf-2", 404), ("wf-3", 405)] {
        bench.add(a_run(run).unreadable(code), run, [status(409, Took::NoEffect, ErrorBody::ErrorJson)]);
        bench.place.apply(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2", "wf-3"] {
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(
            told(&stop),
            [
                "Ready: False Rejected",
                "Stalled: True Rejected",
                "StopAccepted: False Rejected",
                "RunEnded: Unknown Rejected"
            ]
        );
        assert_eq!(bench.place.sent(run), (1, 0, 2));
        assert_eq!(request(&stop).claim, None);
    }
}

#[tokio::test]
async fn a_run_that_the_api_does_not_know_is_not_asked_for_again() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-2"), "wf-2", [status(404, Took::NoEffect, ErrorBody::ErrorJson)]);
    for run in ["wf-1", "wf-2"] {
        bench.place.apply(a_stop(run)).await;
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(
            told(&stop),
            [
                "Ready: False RunNotFound",
                "Stalled: True RunNotFound",
                "StopAccepted: False RunNotFound",
                "RunEnded: Unknown RunNotFound"
            ]
        );
        assert_eq!(bench.place.sent(run), (1, 0, 0));
        assert_eq!((request(&stop).claim, request(&stop).http_status), (None, Some(404)));
    }
    let message = request(&bench.place.get("wf-1").await).message;
    assert_eq!(message.as_deref(), Some("Workflow run not found"));
}

#[tokio::test]
async fn a_rejection_is_final_and_keeps_what_the_support_asks_for() {
    let bench = Bench::new().await;
    // A 400 or 422 may say that the run has ended, so that it is read once.
    let rows = [("wf-1", 400, 1), ("wf-2", 405, 0), ("wf-3", 410, 0), ("wf-4", 422, 1), ("wf-5", 418, 0)];
    for (run, code, _) in rows {
        bench.add(a_run(run), run, [status(code, Took::NoEffect, ErrorBody::ErrorJson)]);
        bench.place.apply(a_stop(run)).await;
    }
    for (run, code, reads) in rows {
        let stop = bench.finished(run).await.pop().unwrap();
        let run_ended = if reads == 0 { "RunEnded: Unknown Rejected" } else { "RunEnded: False Rejected" };
        assert_eq!(
            told(&stop),
            ["Ready: False Rejected", "Stalled: True Rejected", "StopAccepted: False Rejected", run_ended],
            "{code}"
        );
        assert_eq!(bench.place.sent(run), (1, 0, reads), "{code}");
        let request = request(&stop);
        assert_eq!((request.attempts, request.claim, request.http_status), (1, None, Some(i32::from(code))));
        assert_eq!(request.message.as_deref(), Some("Something went wrong"));
        assert!(request.request_id.is_some_and(|id| id.starts_with("req-")));
    }
}

#[tokio::test]
async fn a_400_for_a_run_that_has_ended_is_no_rejection() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1").again(Again::BadRequest400).ended("succeeded"), "wf-1", []);
    bench.add(a_run("wf-2").again(Again::BadRequest400).ended("canceled"), "wf-2", []);
    for run in ["wf-1", "wf-2"] {
        bench.place.apply(a_stop(run)).await;
    }
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(ready(&stop), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!(stop.status.unwrap().result, Some(StopResult::EndedOtherwise));
    let stop = bench.finished("wf-2").await.pop().unwrap();
    assert_eq!(told(&stop), CONFIRMED);
    assert_eq!((bench.place.sent("wf-1"), bench.place.sent("wf-2")), ((1, 0, 1), (1, 0, 1)));
}

#[tokio::test]
async fn a_redirect_is_never_followed_and_the_status_names_its_host() {
    let elsewhere = Simulator::start().await;
    elsewhere.add_run(TENANT, a_run("wf-1"));
    let bench = Bench::new().await;
    for (run, code) in [("wf-1", 302), ("wf-2", 307)] {
        let location = format!("{}/workflow/runs/{run}/stop", elsewhere.base_url());
        bench.add(a_run(run), run, [Fault::Redirect { code, location }]);
        bench.place.apply(a_stop(run)).await;
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(told(&stop), NOT_AMPERITYS_ANSWER);
        assert_eq!(bench.place.sent(run), (1, 0, 2));
        assert_eq!(request(&stop).claim, None);
        let status = stop.status.unwrap();
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert!(ready.message.contains(&elsewhere.address().to_string()), "{}", ready.message);
    }
    assert_eq!(elsewhere.requests().len(), 0);
}

#[tokio::test]
async fn what_could_not_be_sent_is_sent_once_when_the_api_can_be_reached() {
    let mut place = Place::new().await;
    place.amperity.go_offline().await;
    let mut bench = Bench::at(place).await;
    bench.add(a_run("wf-1"), "wf-1", []);
    bench.place.apply(a_stop("wf-1")).await;
    let unreachable = bench.place.reason("wf-1", Reason::Unreachable).await;
    assert_eq!(
        told(&unreachable),
        [
            "Ready: False Unreachable",
            "Reconciling: True Unreachable",
            "StopAccepted: False Unreachable",
            "RunEnded: Unknown Unreachable"
        ]
    );
    assert_eq!(request(&unreachable).claim, None);
    assert!(request(&unreachable).next_attempt_time.is_some());
    bench.place.amperity.go_online().await;
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 0));
    assert!(2 <= request(&stop).attempts);
}

#[tokio::test]
async fn of_five_thousand_tasks_those_that_fit_are_kept_and_the_unsuccessful_first() {
    let task = |index: usize| {
        let state = if index % 250 == 249 { "failed" } else { "succeeded" };
        let label = format!("Send to the destination number {index}, which has a rather long name");
        json!({"id": format!("wft-{index}"), "state": state, "label": label, "tenant": TENANT, "run_id": "wf-1"})
    };
    let tasks: Vec<_> = (0..5000).map(task).collect();
    let body = json!({"id": "wf-1", "state": "canceled", "task_instances": tasks});
    let (bench, _, stop) = answered(a_run("wf-1"), [Fault::JsonWith200(body, Took::Effect)]).await;
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 0));
    let status = stop.status.unwrap();
    assert!(serde_json::to_vec(&status).unwrap().len() < 512 * 1024);
    let kept = status.task_instances.unwrap();
    let omitted = usize::try_from(status.task_instances_omitted.unwrap()).unwrap();
    assert_eq!(kept.len() + omitted, 5000);
    assert!(1000 < kept.len(), "only {} were kept", kept.len());
    let failed = kept.iter().filter(|task| task.state.as_deref() == Some("failed")).count();
    assert_eq!(failed, 20);
}
