//! One test for each row of the answer table: the requests that were sent, and the status that follows.

use std::time::Duration;

use lab::{
    simulator::{ErrorBody, Fault, Kind, RepeatedStop, RetryAfter, Run, Simulator, StopEffect, StopResponseTasks},
    testing::{History, Operator, TENANT, TestEnv, a_stop, condition, condition_lines, ready, stop_request},
};
use serde_json::json;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionType, Reason, StopResult},
};

/// The conditions while the first request of a new stop is in flight.
pub const FIRST_CLAIM: [&str; 1] = ["Ready: Unknown StopRequested"];

/// The final conditions of a stop that its answer accepted.
pub const STOPPED: [&str; 3] =
    ["Ready: True RunStopped", "StopAccepted: True StopAccepted", "RunEnded: True RunStopped"];

/// The final conditions of a stop that was confirmed by reading the run.
pub const CONFIRMED: [&str; 3] =
    ["Ready: True RunStopped", "StopAccepted: True ConfirmedByRead", "RunEnded: True RunStopped"];

/// The final conditions of a stop of an active run that something other than Amperity answers.
pub const UNEXPECTED_ANSWER: [&str; 4] = [
    "Ready: False UnexpectedAnswer",
    "Stalled: True UnexpectedAnswer",
    "StopAccepted: False UnexpectedAnswer",
    "RunEnded: False UnexpectedAnswer",
];

/// A running operator in its test environment. Keeps every version of every stop.
pub struct Fixture {
    pub env: TestEnv,
    pub operator: Operator,
    pub history: History,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with_env(TestEnv::new().await).await
    }

    pub async fn with_env(env: TestEnv) -> Self {
        let history = env.record_history().await;
        let operator = env.start_operator().await;
        Self { env, operator, history }
    }

    /// Adds a run. Each stop request for it gets the next of these faults.
    pub fn add_run(&self, run: Run, id: &str, faults: impl IntoIterator<Item = Fault>) {
        self.env.amperity.add_run(TENANT, run);
        self.env.amperity.on_stop(id, faults);
    }

    /// Waits until the stop has finished, checks the invariants and the log, and returns all versions of the stop.
    pub async fn wait_finished(&self, name: &str) -> Vec<WorkflowRunStop> {
        let versions = self.history.wait_until(name, "finished", WorkflowRunStop::is_finished).await;
        assert_invariants(&versions);
        let log = self.operator.log().join("\n");
        for secret in ["good-token", "bad-token", "good-secret", "tok-1", "Bearer"] {
            assert!(!log.contains(secret), "the log shows {secret}:\n{log}");
        }
        versions
    }
}

/// Checks what must hold for every version of a stop in every test.
pub fn assert_invariants(versions: &[WorkflowRunStop]) {
    let mut attempts = 0;
    let mut claims: Vec<String> = vec![];
    // Until the operator writes it, the status is the default of the CRD.
    let written = |stop: &&WorkflowRunStop| stop.status.as_ref().is_some_and(|status| !status.conditions.is_empty());
    for stop in versions.iter().filter(written) {
        let status = format!("{:#?}", stop.status);
        let request = stop_request(stop);
        let (accepted, _) = condition(stop, ConditionType::StopAccepted);
        let (ready, _) = ready(stop);
        let stalled = condition(stop, ConditionType::Stalled).0 == "True";
        if stop.is_finished() {
            assert_eq!(condition(stop, ConditionType::Reconciling), Default::default(), "{status}");
            assert_eq!((ready == "True", ready == "False"), (!stalled, stalled), "{status}");
            assert_eq!(request.next_attempt_time, None, "{status}");
        } else if condition_lines(stop) == FIRST_CLAIM {
            assert!(request.claim.is_some() && request.attempts == 1, "{status}");
        } else {
            assert_eq!(condition(stop, ConditionType::Reconciling).0, "True", "{status}");
            assert!(!stalled && ready != "True", "{status}");
            assert_eq!(
                request.claim.is_some(),
                accepted == "Unknown",
                "a claim exists exactly while the outcome is open: {status}"
            );
        }
        assert_eq!(request.accepted_time.is_some(), accepted == "True", "{status}");
        if let Some(claim) = request.claim.filter(|claim| !claims.contains(&claim.id)) {
            claims.push(claim.id);
            attempts += 1;
        }
        assert_eq!(request.attempts, attempts, "each claim is one attempt: {status}");
        assert!(stop.status.as_ref().unwrap().observed_generation <= stop.metadata.generation, "{status}");
    }
}

/// Returns true if one version had exactly these conditions.
pub fn had_conditions(versions: &[WorkflowRunStop], lines: &[&str]) -> bool {
    versions.iter().any(|stop| condition_lines(stop) == lines)
}

/// Stops the run `wf-1` with these faults, and returns the versions of the stop and the last one.
async fn stop_with_faults(
    run: Run,
    faults: impl IntoIterator<Item = Fault>,
) -> (Fixture, Vec<WorkflowRunStop>, WorkflowRunStop) {
    let fixture = Fixture::new().await;
    fixture.add_run(run, "wf-1", faults);
    fixture.env.create(a_stop("wf-1")).await;
    let versions = fixture.wait_finished("wf-1").await;
    let stop = versions.last().unwrap().clone();
    (fixture, versions, stop)
}

/// A run whose stop response holds its tasks, so that no read follows an answered stop.
pub fn a_run(id: &str) -> Run {
    Run::new(id).with_tasks(3).stop_response_tasks(StopResponseTasks::Full)
}

pub fn status(code: u16, effect: StopEffect, body: ErrorBody) -> Fault {
    Fault::Status { code, effect, body }
}

fn tasks_of(stop: &WorkflowRunStop) -> Option<usize> {
    stop.status.as_ref()?.task_instances.as_ref().map(Vec::len)
}

#[tokio::test]
async fn a_run_that_stops_slowly_is_stopped_once_and_followed_to_its_end() {
    let run = Run::new("wf-1").with_tasks(3).stops_in(Duration::from_secs(1));
    let (fixture, versions, stop) = stop_with_faults(run, []).await;
    assert_eq!(condition_lines(&stop), STOPPED);
    let following = [
        "Ready: Unknown FollowingRun",
        "Reconciling: True FollowingRun",
        "StopAccepted: True StopAccepted",
        "RunEnded: False FollowingRun",
    ];
    assert!(had_conditions(&versions, &following));
    assert_eq!(tasks_of(&stop), Some(3));
    let status = stop.status.clone().unwrap();
    assert_eq!(status.state.as_deref(), Some("canceled"));
    assert_eq!(status.error.unwrap().message.as_deref(), Some("Workflow manually stopped"));
    let request = stop_request(&stop);
    assert_eq!((request.attempts, request.claim, request.http_status), (1, None, Some(200)));
    assert_eq!(request.answered_state.as_deref(), Some("stopping"));
    assert_eq!((fixture.env.amperity.stops("wf-1"), fixture.env.amperity.effects("wf-1")), (1, 1));
}

#[tokio::test]
async fn a_run_that_ends_at_once_is_read_once_if_the_answer_lacks_its_tasks() {
    let (fixture, _, stop) = stop_with_faults(Run::new("wf-1").with_tasks(3), []).await;
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 1));
    assert_eq!(tasks_of(&stop), Some(3));
    assert_eq!(stop_request(&stop).answered_state.as_deref(), Some("canceled"));
}

#[tokio::test]
async fn a_run_that_ends_at_once_counts_as_stopped_even_if_its_tasks_cannot_be_read() {
    let (fixture, _, stop) = stop_with_faults(Run::new("wf-1").with_tasks(3).unreadable(403), []).await;
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 2));
    assert_eq!(tasks_of(&stop), None);
}

#[tokio::test]
async fn a_run_that_ends_at_once_is_not_read_if_the_answer_holds_its_tasks() {
    let fixture = Fixture::new().await;
    for (run, answers, tasks) in [("wf-1", StopResponseTasks::Full, 3), ("wf-2", StopResponseTasks::Empty, 0)] {
        fixture.add_run(Run::new(run).with_tasks(3).stop_response_tasks(answers), run, []);
        fixture.env.create(a_stop(run)).await;
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(condition_lines(&stop), STOPPED);
        assert_eq!(fixture.env.request_counts(run), (1, 1, 0), "{answers:?}");
        assert_eq!(tasks_of(&stop), Some(tasks));
    }
}

#[tokio::test]
async fn the_error_and_the_tasks_of_a_failed_run_are_stored_as_returned() {
    let (fixture, _, stop) = stop_with_faults(a_run("wf-1").failing_with_error(), []).await;
    assert_eq!(
        condition_lines(&stop),
        ["Ready: True RunEndedOtherwise", "StopAccepted: True StopAccepted", "RunEnded: True RunEndedOtherwise"]
    );
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 0));
    let status = stop.status.unwrap();
    assert_eq!(status.state.as_deref(), Some("failed"));
    let error = status.error.unwrap();
    assert_eq!(error.attribution.as_deref(), Some("amperity"));
    assert_eq!(error.r#type.as_deref(), Some("amperity.workflow.task/failed"));
    let data = json!({"failed_task_count": 1, "causes": [{"code": "E-17", "retryable": false}]});
    assert_eq!(error.data, Some(data.into()));
    let tasks = status.task_instances.unwrap();
    let task = &tasks[1];
    assert_eq!(task.id.as_deref(), Some("wft-20240619-1-9Kx3Qb"));
    assert_eq!((task.state.as_deref(), task.timeout_ms), (Some("failed"), Some(7_200_000)));
    assert_eq!(task.task_definition_type.as_deref(), Some("amperity.courier.task/send"));
    assert_eq!(task.error.as_ref().unwrap().data, Some(json!({"destination": 1, "code": 550}).into()));
    assert_eq!(tasks[0].timeout_ms, Some(3_600_000), "a double is accepted as a number");
    let run = status.run.unwrap();
    assert_eq!(run.principal_email.as_deref(), Some("jane@example.com"));
    assert_eq!(run.warn_after_ms, Some(86_400_000));
    assert!(run.ended_at.is_some() && run.created_at.is_some());
}

#[tokio::test]
async fn other_2xx_answers_count_as_accepted_and_the_state_is_read() {
    let fixture = Fixture::new().await;
    let created = status(201, StopEffect::Immediate, ErrorBody::OtherJson);
    let no_content = status(204, StopEffect::Immediate, ErrorBody::Empty);
    for (run, code, fault) in [("wf-1", 202, Fault::Accepted202), ("wf-2", 201, created), ("wf-3", 204, no_content)] {
        fixture.add_run(a_run(run), run, [fault]);
        fixture.env.create(a_stop(run)).await;
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(condition_lines(&stop), STOPPED, "{code}");
        assert_eq!(fixture.env.request_counts(run), (1, 1, 1), "{code}");
        assert_eq!((stop_request(&stop).http_status, stop_request(&stop).answered_state), (Some(code), None));
        assert_eq!(stop.status.unwrap().state.as_deref(), Some("canceled"));
    }
}

/// Checks that a stop with a fault without effect is sent again: after two reads of an active run, the settle time
/// apart, and one more read right before the second request.
async fn assert_sent_again_after_two_reads(faults: impl IntoIterator<Item = Fault>, open_conditions: [&str; 4]) {
    let fixture = Fixture::new().await;
    let mut runs = vec![];
    for (index, fault) in faults.into_iter().enumerate() {
        let run = format!("wf-{index}");
        fixture.add_run(a_run(&run), &run, [fault.clone()]);
        fixture.env.create(a_stop(&run)).await;
        runs.push((run, fault));
    }
    for (run, fault) in runs {
        let versions = fixture.wait_finished(&run).await;
        let stop = versions.last().unwrap();
        assert_eq!(condition_lines(stop), STOPPED, "{fault:?}");
        assert_eq!(fixture.env.request_counts(&run), (2, 1, 3), "{fault:?}");
        assert_eq!((stop_request(stop).attempts, stop_request(stop).claim), (2, None), "{fault:?}");
        let open = versions
            .iter()
            .find(|stop| condition_lines(stop) == open_conditions)
            .unwrap_or_else(|| panic!("{fault:?}: {versions:#?}"));
        assert!(stop_request(open).claim.unwrap().ended.is_some(), "{fault:?}");
        let requests = fixture.env.amperity.requests();
        let of_run: Vec<_> = requests.iter().filter(|request| request.run_id.as_deref() == Some(&*run)).collect();
        let kinds: Vec<_> = of_run.iter().map(|request| request.kind).collect();
        assert_eq!(kinds, [Kind::Stop, Kind::Read, Kind::Read, Kind::Read, Kind::Stop], "{fault:?}");
        for (earlier, later) in [(0, 1), (1, 2)] {
            let between = of_run[later].at - of_run[earlier].at;
            assert!(Duration::from_secs(1) <= between, "{fault:?}: {between:?} is less than the settle time");
        }
    }
}

/// Checks that a stop with a fault that had an effect is confirmed by one read and sent once.
async fn assert_confirmed_by_one_read(faults: impl IntoIterator<Item = Fault>, open_conditions: [&str; 4]) {
    let fixture = Fixture::new().await;
    let mut runs = vec![];
    for (index, fault) in faults.into_iter().enumerate() {
        let run = format!("wf-{index}");
        fixture.add_run(a_run(&run), &run, [fault.clone()]);
        fixture.env.create(a_stop(&run)).await;
        runs.push((run, fault));
    }
    for (run, fault) in runs {
        let versions = fixture.wait_finished(&run).await;
        let stop = versions.last().unwrap();
        assert_eq!(condition_lines(stop), CONFIRMED, "{fault:?}");
        assert_eq!(fixture.env.request_counts(&run), (1, 1, 1), "{fault:?}");
        assert_eq!((stop_request(stop).attempts, stop_request(stop).claim), (1, None), "{fault:?}");
        assert_eq!(tasks_of(stop), Some(3), "{fault:?}");
        assert!(had_conditions(&versions, &open_conditions), "{fault:?}: {versions:#?}");
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

fn not_our_run(took: StopEffect) -> [Fault; 2] {
    [Fault::HtmlWith200(took), Fault::WrongId(took)]
}

fn server_errors(took: StopEffect) -> [Fault; 4] {
    [
        status(500, took, ErrorBody::ErrorJson),
        status(502, took, ErrorBody::Html),
        status(503, took, ErrorBody::Empty),
        status(504, took, ErrorBody::Html),
    ]
}

fn no_whole_answer(took: StopEffect) -> [Fault; 3] {
    [Fault::Reset(took), Fault::NoResponse(took), Fault::EndlessBody(took)]
}

#[tokio::test]
async fn the_stop_is_sent_again_after_two_reads_if_a_200_without_the_run_had_no_effect() {
    assert_sent_again_after_two_reads(not_our_run(StopEffect::NoEffect), UNKNOWN).await;
}

#[tokio::test]
async fn the_stop_is_confirmed_by_reading_if_a_200_without_the_run_had_an_effect() {
    assert_confirmed_by_one_read(not_our_run(StopEffect::Immediate), UNKNOWN).await;
}

#[tokio::test]
async fn the_stop_is_sent_again_after_two_reads_if_a_server_error_had_no_effect() {
    assert_sent_again_after_two_reads(server_errors(StopEffect::NoEffect), UNAVAILABLE).await;
}

#[tokio::test]
async fn the_stop_is_confirmed_by_reading_if_a_server_error_had_an_effect() {
    assert_confirmed_by_one_read(server_errors(StopEffect::Immediate), UNAVAILABLE).await;
}

#[tokio::test]
async fn the_stop_is_sent_again_after_two_reads_without_a_complete_answer_and_without_effect() {
    assert_sent_again_after_two_reads(no_whole_answer(StopEffect::NoEffect), UNKNOWN).await;
}

#[tokio::test]
async fn the_stop_is_confirmed_by_reading_without_a_complete_answer_but_with_an_effect() {
    assert_confirmed_by_one_read(no_whole_answer(StopEffect::Immediate), UNKNOWN).await;
}

#[tokio::test]
async fn stop_accepted_stays_unknown_if_the_run_ends_on_its_own_while_the_outcome_is_open() {
    let run = a_run("wf-1").ends_on_its_own("succeeded", Duration::from_secs(1));
    let (fixture, _, stop) = stop_with_faults(run, [Fault::Reset(StopEffect::NoEffect)]).await;
    assert_eq!(ready(&stop), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!(condition(&stop, ConditionType::StopAccepted).0, "Unknown");
    assert_eq!(condition(&stop, ConditionType::RunEnded), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!((fixture.env.amperity.stops("wf-1"), fixture.env.amperity.effects("wf-1")), (1, 0));
    assert_eq!(stop.status.unwrap().state.as_deref(), Some("succeeded"));
}

#[tokio::test]
async fn the_outcome_stays_unknown_and_nothing_is_sent_again_without_an_answer_or_a_readable_run() {
    let fixture = Fixture::new().await;
    let rows = [
        ("wf-1", 403, Fault::NoResponse(StopEffect::NoEffect)),
        ("wf-2", 404, Fault::Reset(StopEffect::NoEffect)),
        ("wf-3", 405, Fault::EndlessBody(StopEffect::NoEffect)),
        ("wf-4", 403, Fault::HtmlWith200(StopEffect::NoEffect)),
    ];
    for (run, code, fault) in rows {
        fixture.add_run(a_run(run).unreadable(code), run, [fault]);
        fixture.env.create(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2", "wf-3", "wf-4"] {
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(
            condition_lines(&stop),
            [
                "Ready: False OutcomeUnknown",
                "Stalled: True OutcomeUnknown",
                "StopAccepted: Unknown OutcomeUnknown",
                "RunEnded: Unknown OutcomeUnknown"
            ]
        );
        assert_eq!(fixture.env.request_counts(run), (1, 0, 2));
        assert!(stop_request(&stop).claim.is_some(), "the claim stays while the outcome is unknown");
    }
}

#[tokio::test]
async fn a_slow_answer_within_the_request_timeout_is_used() {
    let (fixture, _, stop) = stop_with_faults(a_run("wf-1"), [Fault::Slow(Duration::from_millis(1_200))]).await;
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn three_429s_and_a_success_are_four_requests_and_one_effect() {
    let limited = || Fault::TooManyRequests { retry_after: RetryAfter::Seconds(0) };
    let (fixture, versions, stop) = stop_with_faults(a_run("wf-1"), [limited(), limited(), limited()]).await;
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (4, 1, 0));
    assert_eq!(stop_request(&stop).attempts, 4);
    let limited = [
        "Ready: False RateLimited",
        "Reconciling: True RateLimited",
        "StopAccepted: False RateLimited",
        "RunEnded: Unknown RateLimited",
    ];
    assert!(had_conditions(&versions, &limited), "{versions:#?}");
}

/// Returns the time from a 429 with this header to the next request: monotonic, and by the wall clock counted from the
/// start of the second in which the 429 was sent, because an HTTP date has no fractions of a second.
async fn wait_after_429(retry_after: RetryAfter) -> (Duration, Duration) {
    let (fixture, versions, stop) = stop_with_faults(a_run("wf-1"), [Fault::TooManyRequests { retry_after }]).await;
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (2, 1, 0));
    let waited =
        |stop: &WorkflowRunStop| ready(stop).1 == "RateLimited" && stop_request(stop).next_attempt_time.is_some();
    assert!(versions.iter().any(waited), "{versions:#?}");
    let requests = fixture.env.amperity.requests();
    let since_second = requests[0].wall.duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let by_wall = requests[1].wall.duration_since(requests[0].wall).unwrap();
    (requests[1].at - requests[0].at, by_wall + Duration::from_nanos(since_second.into()))
}

#[tokio::test]
async fn a_retry_after_in_seconds_is_respected() {
    let (waited, _) = wait_after_429(RetryAfter::Seconds(3)).await;
    assert!(Duration::from_secs(3) <= waited && waited < Duration::from_secs(8), "{waited:?}");
}

#[tokio::test]
async fn a_retry_after_as_a_date_is_respected() {
    let (_, waited) = wait_after_429(RetryAfter::Date(4)).await;
    assert!(Duration::from_secs(4) <= waited && waited < Duration::from_secs(9), "{waited:?}");
}

#[tokio::test]
async fn a_429_without_a_usable_retry_after_is_retried_with_backoff() {
    for retry_after in [RetryAfter::None, RetryAfter::Text("soon".to_owned()), RetryAfter::Date(-3600)] {
        let (waited, _) = wait_after_429(retry_after.clone()).await;
        let bounds = Duration::from_millis(100)..Duration::from_secs(6);
        assert!(bounds.contains(&waited), "{retry_after:?}: {waited:?}");
    }
}

#[tokio::test]
async fn a_refused_token_is_retried_until_the_secret_changes() {
    let env = TestEnv::new().await;
    env.put_secret("amperity", &[("token", "bad-token")]).await;
    let fixture = Fixture::with_env(env).await;
    fixture.add_run(a_run("wf-1"), "wf-1", []);
    fixture.env.create(a_stop("wf-1")).await;
    let refused = fixture.env.wait_for_reason("wf-1", Reason::Unauthorized).await;
    assert_eq!(
        condition_lines(&refused),
        [
            "Ready: False Unauthorized",
            "Reconciling: True Unauthorized",
            "StopAccepted: False Unauthorized",
            "RunEnded: Unknown Unauthorized"
        ]
    );
    assert_eq!((stop_request(&refused).claim, stop_request(&refused).http_status), (None, Some(401)));
    fixture.env.amperity.wait_until(|requests| 2 <= requests.len()).await;
    fixture.env.put_secret("amperity", &[("token", "good-token")]).await;
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    let (stops, effects, reads) = fixture.env.request_counts("wf-1");
    assert_eq!((effects, reads, i32::try_from(stops).unwrap()), (1, 0, stop_request(&stop).attempts));
}

#[tokio::test]
async fn a_403_is_retried_until_the_key_has_the_permission() {
    let forbidden = || status(403, StopEffect::NoEffect, ErrorBody::ErrorJson);
    let (fixture, versions, stop) = stop_with_faults(a_run("wf-1"), [forbidden(), forbidden()]).await;
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (3, 1, 0));
    assert_eq!(stop_request(&stop).attempts, 3);
    let forbidden = [
        "Ready: False Forbidden",
        "Reconciling: True Forbidden",
        "StopAccepted: False Forbidden",
        "RunEnded: Unknown Forbidden",
    ];
    assert!(had_conditions(&versions, &forbidden), "{versions:#?}");
}

pub fn a_stop_with_client(run: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.credentials_secret_ref.name = "client".to_owned();
    stop
}

pub fn token_requests(fixture: &Fixture) -> usize {
    fixture.env.amperity.requests().iter().filter(|request| request.kind == Kind::Token).count()
}

#[tokio::test]
async fn a_fetched_token_that_became_invalid_is_replaced_once() {
    let fixture = Fixture::new().await;
    fixture.env.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    fixture.add_run(a_run("wf-1"), "wf-1", []);
    fixture.add_run(a_run("wf-2"), "wf-2", []);
    fixture.env.create(a_stop_with_client("wf-1")).await;
    assert_eq!(condition_lines(fixture.wait_finished("wf-1").await.last().unwrap()), STOPPED);
    assert_eq!(token_requests(&fixture), 1);

    fixture.env.amperity.set_tokens(["good-token"]);
    fixture.env.create(a_stop_with_client("wf-2")).await;
    let stop = fixture.wait_finished("wf-2").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-2"), (2, 1, 0));
    assert_eq!(token_requests(&fixture), 2);
    assert_eq!(stop_request(&stop).attempts, 2);
}

#[tokio::test]
async fn a_new_token_that_is_refused_is_not_fetched_again_in_a_loop() {
    let fixture = Fixture::new().await;
    fixture.env.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    fixture.env.amperity.add_run(TENANT, a_run("wf-1"));
    fixture.env.amperity.always_on_stop("wf-1", status(401, StopEffect::NoEffect, ErrorBody::ErrorJson));
    fixture.env.create(a_stop_with_client("wf-1")).await;
    let stops = |requests: &[lab::simulator::RecordedRequest]| -> Vec<_> {
        requests.iter().filter(|request| request.kind == Kind::Stop).map(|request| request.at).collect()
    };
    fixture.env.amperity.wait_until(|requests| 3 <= stops(requests).len()).await;
    let at = stops(&fixture.env.amperity.requests());
    assert!(Duration::from_millis(500) <= at[1] - at[0], "{at:?}");
    assert!(Duration::from_secs(1) <= at[2] - at[1], "{at:?}");
    let tokens = token_requests(&fixture);
    assert!(tokens <= at.len(), "{tokens} tokens for {} stops", at.len());
    fixture.env.amperity.clear_faults();
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.amperity.effects("wf-1"), 1);
}

#[tokio::test]
async fn stops_that_share_a_refused_token_retry_it_one_at_a_time() {
    const STOPS: usize = 30;
    let env = TestEnv::new().await;
    env.put_secret("amperity", &[("token", "bad-token")]).await;
    let runs: Vec<_> = (0..STOPS).map(|index| format!("wf-{index}")).collect();
    for run in &runs {
        env.amperity.add_run(TENANT, a_run(run));
        env.create(a_stop(run)).await;
    }
    let fixture = Fixture::with_env(env).await;
    for run in &runs {
        fixture.env.wait_for_reason(run, Reason::Unauthorized).await;
    }
    fixture.env.amperity.wait_until(|requests| 12 <= requests.len()).await;
    // At most ten requests were in flight when the first one was refused. Then each backoff is twice the previous one.
    let at: Vec<_> = fixture.env.amperity.requests().iter().map(|request| request.at).collect();
    assert!(Duration::from_millis(500) <= at[10] - at[0], "{:?}", at[10] - at[0]);
    assert!(Duration::from_secs(1) <= at[11] - at[10], "{:?}", at[11] - at[10]);

    fixture.env.put_secret("amperity", &[("token", "good-token")]).await;
    let mut attempts = 0;
    for run in &runs {
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(condition_lines(&stop), STOPPED);
        assert_eq!(fixture.env.amperity.effects(run), 1);
        attempts += usize::try_from(stop_request(&stop).attempts).unwrap();
    }
    let requests = fixture.env.amperity.requests();
    let refused = requests.iter().filter(|request| request.response_status == Some(401)).count();
    assert!(refused <= 14, "{refused} requests were refused");
    assert_eq!((requests.len(), attempts), (STOPS + refused, STOPS + refused));
}

#[tokio::test]
async fn a_409_for_a_run_that_is_stopping_or_stopped_means_accepted() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1").on_repeated_stop(RepeatedStop::Conflict409).ended("canceled"), "wf-1", []);
    let stopping = a_run("wf-2").in_state("stopping").ends_on_its_own("canceled", Duration::from_secs(5));
    fixture.add_run(stopping, "wf-2", [status(409, StopEffect::NoEffect, ErrorBody::ErrorJson)]);
    for run in ["wf-1", "wf-2"] {
        fixture.env.create(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2"] {
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(condition_lines(&stop), CONFIRMED, "{run}");
        assert_eq!(fixture.env.amperity.stops(run), 1);
        assert_eq!((stop_request(&stop).claim, stop_request(&stop).http_status), (None, Some(409)));
    }
    assert_eq!(fixture.env.amperity.reads("wf-1"), 1);
}

#[tokio::test]
async fn a_409_for_a_run_that_ended_on_its_own_finishes_the_stop() {
    let (fixture, _, stop) =
        stop_with_faults(a_run("wf-1").on_repeated_stop(RepeatedStop::Conflict409).ended("succeeded"), []).await;
    assert_eq!(ready(&stop), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!(condition(&stop, ConditionType::RunEnded), ("True".into(), "RunEndedOtherwise".into()));
    assert_ne!(condition(&stop, ConditionType::StopAccepted).0, "True");
    assert_eq!(stop_request(&stop).claim, None);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 0, 1));
}

#[tokio::test]
async fn a_409_for_an_active_run_is_retried_until_the_deadline() {
    let fixture = Fixture::new().await;
    fixture.env.amperity.add_run(TENANT, a_run("wf-1"));
    fixture.env.amperity.always_on_stop("wf-1", status(409, StopEffect::NoEffect, ErrorBody::ErrorJson));
    let mut stop = a_stop("wf-1");
    stop.spec.stop_deadline_seconds = Some(6);
    let created = fixture.env.create(stop).await.metadata.creation_timestamp.unwrap().0;
    let versions = fixture.wait_finished("wf-1").await;
    let stop = versions.last().unwrap();
    assert_eq!(
        condition_lines(stop),
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
    assert!(had_conditions(&versions, &conflict), "{versions:#?}");
    let (stops, effects, reads) = fixture.env.request_counts("wf-1");
    // One read after each stop request, and one before each repeated one.
    let expected = 2 * stops - 1..=2 * stops;
    assert!(2 <= stops && effects == 0 && expected.contains(&reads), "{stops} stops, {effects} effects, {reads} reads");
    assert_eq!((stop_request(stop).attempts, stop_request(stop).claim), (i32::try_from(stops).unwrap(), None));
    let deadline = std::time::SystemTime::from(created) + Duration::from_secs(6);
    let requests = fixture.env.amperity.requests();
    assert!(requests.iter().filter(|request| request.kind == Kind::Stop).all(|request| request.wall <= deadline));
}

#[tokio::test]
async fn a_409_for_a_run_that_cannot_be_read_is_a_rejection() {
    let fixture = Fixture::new().await;
    for (run, code) in [("wf-1", 403), ("wf-2", 404), ("wf-3", 405)] {
        fixture.add_run(a_run(run).unreadable(code), run, [status(409, StopEffect::NoEffect, ErrorBody::ErrorJson)]);
        fixture.env.create(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2", "wf-3"] {
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(
            condition_lines(&stop),
            [
                "Ready: False Rejected",
                "Stalled: True Rejected",
                "StopAccepted: False Rejected",
                "RunEnded: Unknown Rejected"
            ]
        );
        assert_eq!(fixture.env.request_counts(run), (1, 0, 2));
        assert_eq!(stop_request(&stop).claim, None);
    }
}

#[tokio::test]
async fn an_unknown_run_finishes_the_stop_without_a_retry() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-2"), "wf-2", [status(404, StopEffect::NoEffect, ErrorBody::ErrorJson)]);
    for run in ["wf-1", "wf-2"] {
        fixture.env.create(a_stop(run)).await;
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(
            condition_lines(&stop),
            [
                "Ready: False RunNotFound",
                "Stalled: True RunNotFound",
                "StopAccepted: False RunNotFound",
                "RunEnded: Unknown RunNotFound"
            ]
        );
        assert_eq!(fixture.env.request_counts(run), (1, 0, 0));
        assert_eq!((stop_request(&stop).claim, stop_request(&stop).http_status), (None, Some(404)));
    }
    let message = stop_request(&fixture.env.get("wf-1").await).message;
    assert_eq!(message.as_deref(), Some("Workflow run not found"));
}

#[tokio::test]
async fn a_rejection_is_final_and_its_message_and_request_id_are_stored() {
    let fixture = Fixture::new().await;
    // A 400 or 422 may mean that the run has ended, so the run is read once.
    let rows = [("wf-1", 400, 1), ("wf-2", 405, 0), ("wf-3", 410, 0), ("wf-4", 422, 1), ("wf-5", 418, 0)];
    for (run, code, _) in rows {
        fixture.add_run(a_run(run), run, [status(code, StopEffect::NoEffect, ErrorBody::ErrorJson)]);
        fixture.env.create(a_stop(run)).await;
    }
    for (run, code, reads) in rows {
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        let run_ended = if reads == 0 { "RunEnded: Unknown Rejected" } else { "RunEnded: False Rejected" };
        assert_eq!(
            condition_lines(&stop),
            ["Ready: False Rejected", "Stalled: True Rejected", "StopAccepted: False Rejected", run_ended],
            "{code}"
        );
        assert_eq!(fixture.env.request_counts(run), (1, 0, reads), "{code}");
        let request = stop_request(&stop);
        assert_eq!((request.attempts, request.claim, request.http_status), (1, None, Some(i32::from(code))));
        assert_eq!(request.message.as_deref(), Some("Something went wrong"));
        assert!(request.request_id.is_some_and(|id| id.starts_with("req-")));
    }
}

#[tokio::test]
async fn a_400_for_a_run_that_has_ended_is_not_a_rejection() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1").on_repeated_stop(RepeatedStop::BadRequest400).ended("succeeded"), "wf-1", []);
    fixture.add_run(a_run("wf-2").on_repeated_stop(RepeatedStop::BadRequest400).ended("canceled"), "wf-2", []);
    for run in ["wf-1", "wf-2"] {
        fixture.env.create(a_stop(run)).await;
    }
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(ready(&stop), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!(stop.status.unwrap().result, Some(StopResult::EndedOtherwise));
    let stop = fixture.wait_finished("wf-2").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), CONFIRMED);
    assert_eq!((fixture.env.request_counts("wf-1"), fixture.env.request_counts("wf-2")), ((1, 0, 1), (1, 0, 1)));
}

#[tokio::test]
async fn a_redirect_is_never_followed_and_the_status_names_its_host() {
    let elsewhere = Simulator::start().await;
    elsewhere.add_run(TENANT, a_run("wf-1"));
    let fixture = Fixture::new().await;
    for (run, code) in [("wf-1", 302), ("wf-2", 307)] {
        let location = format!("{}/workflow/runs/{run}/stop", elsewhere.base_url());
        fixture.add_run(a_run(run), run, [Fault::Redirect { code, location }]);
        fixture.env.create(a_stop(run)).await;
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(condition_lines(&stop), UNEXPECTED_ANSWER);
        assert_eq!(fixture.env.request_counts(run), (1, 0, 2));
        assert_eq!(stop_request(&stop).claim, None);
        let status = stop.status.unwrap();
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert!(ready.message.contains(&elsewhere.address().to_string()), "{}", ready.message);
    }
    assert_eq!(elsewhere.requests().len(), 0);
}

#[tokio::test]
async fn an_unsent_stop_is_sent_once_when_the_api_can_be_reached() {
    let env = TestEnv::new().await;
    env.amperity.go_offline().await;
    let fixture = Fixture::with_env(env).await;
    fixture.add_run(a_run("wf-1"), "wf-1", []);
    fixture.env.create(a_stop("wf-1")).await;
    let unreachable = fixture.env.wait_for_reason("wf-1", Reason::Unreachable).await;
    assert_eq!(
        condition_lines(&unreachable),
        [
            "Ready: False Unreachable",
            "Reconciling: True Unreachable",
            "StopAccepted: False Unreachable",
            "RunEnded: Unknown Unreachable"
        ]
    );
    assert_eq!(stop_request(&unreachable).claim, None);
    assert!(stop_request(&unreachable).next_attempt_time.is_some());
    fixture.env.amperity.go_online().await;
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 0));
    assert!(2 <= stop_request(&stop).attempts);
}

#[tokio::test]
async fn a_status_stores_as_many_of_5000_tasks_as_fit_and_failed_tasks_first() {
    let task = |index: usize| {
        let state = if index % 250 == 249 { "failed" } else { "succeeded" };
        let label = format!("Send to the destination number {index}, which has a rather long name");
        json!({"id": format!("wft-{index}"), "state": state, "label": label, "tenant": TENANT, "run_id": "wf-1"})
    };
    let tasks: Vec<_> = (0..5000).map(task).collect();
    let body = json!({"id": "wf-1", "state": "canceled", "task_instances": tasks});
    let (fixture, _, stop) = stop_with_faults(a_run("wf-1"), [Fault::JsonWith200(body, StopEffect::Immediate)]).await;
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 0));
    let status = stop.status.unwrap();
    assert!(serde_json::to_vec(&status).unwrap().len() < 512 * 1024);
    let kept = status.task_instances.unwrap();
    let omitted = usize::try_from(status.task_instances_omitted.unwrap()).unwrap();
    assert_eq!(kept.len() + omitted, 5000);
    assert!(1000 < kept.len(), "only {} were kept", kept.len());
    let failed = kept.iter().filter(|task| task.state.as_deref() == Some("failed")).count();
    assert_eq!(failed, 20);
}
