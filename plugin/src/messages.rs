//! Owns the texts about a stop: its full name, progress and outcome, and the kubectl commands to check it.
//! Never prints. Never returns control characters from an API.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Resource;
use workflow_run_stop_api::conditions::{self, ConditionStatus, ConditionType, Reason, StopResult};
use workflow_run_stop_api::workflow_run::{Phase, RunError, TaskInstance};
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopStatus};

use crate::exit::Exit;

/// The number of failed tasks that are listed; `kubectl get -o yaml` has all of them.
const MAX_TASKS: usize = 10;

/// The length in characters to which the error of a task is truncated.
const MAX_ERROR_LENGTH: usize = 120;

/// The kubectl commands for a cluster and a namespace.
#[derive(Clone, Debug, Default)]
pub struct KubectlCommands {
    /// The namespace.
    pub namespace: String,
    /// The flags that select the cluster, such as `--context prod`.
    pub cluster_flags: Vec<String>,
}

impl KubectlCommands {
    fn flags(&self) -> String {
        std::iter::once(format!("-n {}", self.namespace))
            .chain(self.cluster_flags.iter().cloned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Returns the command that lists all stops.
    pub fn get_all(&self) -> String {
        format!("kubectl get wrs {}", self.flags())
    }

    /// Returns the commands that show these stops, one a line.
    pub fn get_and_describe(&self, names: &[&str]) -> String {
        let (names, flags) = (names.join(" "), self.flags());
        format!("  kubectl get wrs {names} {flags}\n  kubectl describe wrs {names} {flags}")
    }

    /// Returns the command that waits until these stops have finished.
    pub fn wait_for(&self, names: &[&str]) -> String {
        let (names, flags) = (names.join(" "), self.flags());
        format!("kubectl wait wrs {names} {flags} --for=jsonpath='{{.status.completionTime}}' --timeout=10m")
    }
}

/// Returns kind, group and name as kubectl prints them.
pub fn full_name(name: &str) -> String {
    let kind = WorkflowRunStop::kind(&()).to_lowercase();
    format!("{kind}.{}/{name}", WorkflowRunStop::group(&()))
}

/// Returns the progress of a stop in one line: the run's state, and the reason and message of `Ready`.
pub fn progress(stop: &WorkflowRunStop) -> String {
    let Some(ready) = ready(stop) else { return "waiting for the operator".to_owned() };
    let state = stop.status.as_ref().and_then(|status| status.state.as_deref());
    let state = state.map(|state| format!("run {state}, ")).unwrap_or_default();
    one_line(&format!("{state}{}: {}", ready.reason, ready.message))
}

/// Returns whether no operator has processed the stop yet.
pub fn is_unprocessed(stop: &WorkflowRunStop) -> bool {
    stop.status.as_ref().and_then(|status| status.observed_generation).is_none_or(|generation| generation < 0)
}

/// Returns the exit code of a finished stop.
pub fn exit(stop: &WorkflowRunStop) -> Exit {
    match result(stop) {
        Some(StopResult::Stopped | StopResult::Accepted) => Exit::Done,
        Some(StopResult::EndedOtherwise) => Exit::EndedOtherwise,
        Some(StopResult::Expired) => Exit::Expired,
        Some(StopResult::Unknown) => Exit::Unknown,
        Some(StopResult::Failed | StopResult::StillActive) => Exit::Failed,
        None if ready(stop).is_some_and(|ready| ready.status == ConditionStatus::True.as_str()) => Exit::Done,
        None => Exit::Failed,
    }
}

/// Returns the result of a finished stop. If an older operator wrote none, the result is derived from the reason of
/// `Ready`; `None` if this version does not know the reason.
fn result(stop: &WorkflowRunStop) -> Option<StopResult> {
    stop.status.as_ref()?.result.or_else(|| Reason::of(ready(stop)?)?.result())
}

/// Returns the outcome of a finished stop in several lines.
pub fn outcome(stop: &WorkflowRunStop) -> String {
    let empty = WorkflowRunStopStatus::default();
    let status = stop.status.as_ref().unwrap_or(&empty);
    let result = result(stop).map_or("finished", StopResult::as_str);
    let ready = ready(stop).map_or_else(String::new, |ready| format!(" ({}): {}", ready.reason, ready.message));
    let mut lines = vec![
        one_line(&format!("{}: {result}{ready}", stop.name())),
        one_line(&format!("  run    {}, {}", stop.spec.run_id, status.state.as_deref().unwrap_or("state not known"))),
    ];
    if let Some(error) = &status.error {
        lines.push(one_line(&format!("  error  {}", error_text(error))));
    }
    if let Some(elapsed) = elapsed(stop, status.completion_time.as_ref()) {
        lines.push(format!("  took   {elapsed}"));
    }
    lines.extend(failed_tasks(stop, status));
    lines.join("\n")
}

/// Returns the time from the creation to the completion.
fn elapsed(stop: &WorkflowRunStop, completed: Option<&Time>) -> Option<String> {
    let Time(completed) = completed?;
    let elapsed = completed.duration_since(stop.created());
    // The API server sets one time and the operator the other, so clock skew can make the difference negative.
    (!elapsed.is_negative()).then(|| format!("{elapsed:#}"))
}

/// Formats a duration as it is written in a flag, such as `10m`.
pub fn duration(duration: Duration) -> String {
    SignedDuration::try_from(duration).map_or_else(|_| format!("{duration:?}"), |duration| format!("{duration:#}"))
}

/// Returns whether a task failed. A task that was stopped has an error as well, but did not fail.
fn has_failed(task: &TaskInstance) -> bool {
    let state = task.state.as_deref().unwrap_or_default();
    Phase::of(state) == Phase::EndedOtherwise && !state.eq_ignore_ascii_case("succeeded")
}

/// Returns a table of the failed tasks, or nothing if there are none.
fn failed_tasks(stop: &WorkflowRunStop, status: &WorkflowRunStopStatus) -> Vec<String> {
    let failed: Vec<_> = status.task_instances.iter().flatten().filter(|task| has_failed(task)).collect();
    if failed.is_empty() {
        return vec![];
    }
    let mut rows = vec![["TASK", "STATE", "ERROR"].map(str::to_owned)];
    rows.extend(failed.iter().take(MAX_TASKS).map(|task| {
        let name = task.label.as_deref().or(task.id.as_deref()).unwrap_or("?");
        let error = task.error.as_ref().map(error_text).unwrap_or_default();
        [one_line(name), one_line(task.state.as_deref().unwrap_or_default()), truncated(&one_line(&error))]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (first, second) = (width(0), width(1));
    let mut lines = vec!["  failed tasks:".to_owned()];
    lines.extend(
        rows.iter().map(|[name, state, error]| {
            format!("    {name:<first$}   {state:<second$}   {error}").trim_end().to_owned()
        }),
    );
    if MAX_TASKS < failed.len() {
        let more = failed.len() - MAX_TASKS;
        lines.push(format!("    and {more} more, see: kubectl get wrs {} -o yaml", stop.name()));
    }
    if let Some(omitted) = status.task_instances_omitted.filter(|omitted| 0 < *omitted) {
        lines.push(format!("    the status omits {omitted} tasks"));
    }
    lines
}

fn error_text(error: &RunError) -> String {
    let message = error.message.as_deref().or(error.r#type.as_deref()).unwrap_or("without a message");
    match &error.attribution {
        Some(attribution) => format!("{message} (attributed to {attribution})"),
        None => message.to_owned(),
    }
}

fn ready(stop: &WorkflowRunStop) -> Option<&Condition> {
    conditions::find(&stop.status.as_ref()?.conditions, ConditionType::Ready)
}

/// Quotes a word if needed, so that a shell reads it as one argument.
pub fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:@%+=,".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Returns the text as one line without control characters, which a text from an API may contain.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim_end().to_owned()
}

fn truncated(text: &str) -> String {
    match text.char_indices().nth(MAX_ERROR_LENGTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use workflow_run_stop_api::WorkflowRunStopSpec;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn stop(ready: ConditionStatus, reason: Reason, state: &str) -> WorkflowRunStop {
        let mut stop = WorkflowRunStop::new("stop-wf-1-x", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
        stop.metadata.creation_timestamp = Some(at(100));
        let why = (reason, reason.message(""));
        stop.status = Some(WorkflowRunStopStatus {
            state: (!state.is_empty()).then(|| state.to_owned()),
            conditions: vec![conditions::condition(ConditionType::Ready, ready, why, Some(1), &at(100))],
            observed_generation: Some(1),
            ..WorkflowRunStopStatus::default()
        });
        stop
    }

    fn task(label: &str, state: &str, error: Option<&str>) -> TaskInstance {
        TaskInstance {
            label: Some(label.to_owned()),
            state: Some(state.to_owned()),
            error: error.map(|message| RunError { message: Some(message.to_owned()), ..RunError::default() }),
            ..TaskInstance::default()
        }
    }

    fn finished(mut stop: WorkflowRunStop, tasks: Vec<TaskInstance>) -> WorkflowRunStop {
        let status = stop.status.as_mut().unwrap();
        status.completion_time = Some(at(165));
        status.task_instances = Some(tasks);
        stop
    }

    #[test]
    fn progress_has_state_reason_and_message() {
        let new = WorkflowRunStop::new("x", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
        assert_eq!(progress(&new), "waiting for the operator");
        assert!(is_unprocessed(&new));
        let waiting = stop(ConditionStatus::Unknown, Reason::WaitingForBudget, "");
        assert_eq!(progress(&waiting), "WaitingForBudget: The request waits for a slot of the tenant's rate limit.");
        assert!(!is_unprocessed(&waiting));
        assert!(
            progress(&stop(ConditionStatus::Unknown, Reason::FollowingRun, "stopping"))
                .starts_with("run stopping, FollowingRun: ")
        );
    }

    #[test]
    fn each_result_has_its_exit_code_for_any_conditions() {
        let codes = StopResult::ALL.map(|result| {
            let mut stop = stop(ConditionStatus::Unknown, Reason::FollowingRun, "");
            stop.status.as_mut().unwrap().result = Some(result);
            (result.as_str(), exit(&stop).code())
        });
        assert_eq!(
            codes,
            [
                ("Stopped", 0),
                ("EndedOtherwise", 4),
                ("Accepted", 0),
                ("Expired", 5),
                ("StillActive", 1),
                ("Unknown", 6),
                ("Failed", 1),
            ]
        );
    }

    #[test]
    fn without_a_result_the_exit_code_is_derived_from_ready() {
        for (ready, reason, code) in [
            (ConditionStatus::True, Reason::RunStopped, 0),
            (ConditionStatus::True, Reason::StopAccepted, 0),
            (ConditionStatus::True, Reason::RunUnreadable, 0),
            (ConditionStatus::True, Reason::RunEndedOtherwise, 4),
            (ConditionStatus::False, Reason::OutcomeUnknown, 6),
            (ConditionStatus::False, Reason::RunStillActive, 1),
            (ConditionStatus::False, Reason::DeadlineExceeded, 1),
            (ConditionStatus::False, Reason::Unauthorized, 1),
            (ConditionStatus::Unknown, Reason::FollowingRun, 1),
        ] {
            assert_eq!(exit(&stop(ready, reason, "")).code(), code, "{reason:?}");
        }
        for (ready, code) in [(ConditionStatus::True, 0), (ConditionStatus::False, 1)] {
            let mut stop = stop(ready, Reason::RunStopped, "");
            stop.status.as_mut().unwrap().conditions[0].reason = "OfAnotherVersion".to_owned();
            assert_eq!(exit(&stop).code(), code, "{ready:?}");
            assert!(outcome(&stop).starts_with("stop-wf-1-x: finished (OfAnotherVersion): "), "{}", outcome(&stop));
        }
        let bare = WorkflowRunStop::new("x", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
        assert_eq!(exit(&bare), Exit::Failed);
    }

    #[test]
    fn an_outcome_has_state_error_time_and_only_the_failed_tasks() {
        let tasks = vec![
            task("Load", "succeeded", None),
            task("Send to A", "failed", Some("A refused the file")),
            task("Send to BB", "Failed", None),
            task("Send to C", "canceled", Some("Workflow manually stopped")),
        ];
        let mut stop = finished(stop(ConditionStatus::True, Reason::RunEndedOtherwise, "failed"), tasks);
        stop.status.as_mut().unwrap().error = Some(RunError {
            attribution: Some("customer".to_owned()),
            message: Some("A task failed".to_owned()),
            ..RunError::default()
        });
        assert_eq!(
            outcome(&stop),
            "\
stop-wf-1-x: EndedOtherwise (RunEndedOtherwise): The run ended on its own.
  run    wf-1, failed
  error  A task failed (attributed to customer)
  took   1m 5s
  failed tasks:
    TASK         STATE    ERROR
    Send to A    failed   A refused the file
    Send to BB   Failed"
        );
    }

    #[test]
    fn the_outcome_of_a_failure_says_that_the_state_is_not_known() {
        let text = outcome(&finished(stop(ConditionStatus::False, Reason::RunNotFound, ""), vec![]));
        assert!(text.starts_with("stop-wf-1-x: Failed (RunNotFound): Amperity does not know this run"), "{text}");
        assert!(text.contains("wf-1, state not known") && !text.contains("tasks"), "{text}");
    }

    #[test]
    fn at_most_ten_failed_tasks_are_listed_and_the_rest_is_counted() {
        let tasks = (0..13).map(|index| task(&format!("t{index}"), "failed", Some(&"x".repeat(500)))).collect();
        let text = outcome(&finished(stop(ConditionStatus::True, Reason::RunStopped, "canceled"), tasks));
        assert!(text.contains("t9 ") && !text.contains("t10 "), "{text}");
        assert!(text.ends_with("and 3 more, see: kubectl get wrs stop-wf-1-x -o yaml"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() < 160), "{text}");
    }

    #[test]
    fn control_characters_from_an_api_are_removed() {
        let tasks = vec![task("a\u{1b}[2Jb", "failed", Some("two\nlines\r\u{7}"))];
        let text = outcome(&finished(stop(ConditionStatus::True, Reason::RunStopped, "cancel\u{9b}ed"), tasks));
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.ends_with("a [2Jb   failed   two lines"), "{text:?}");
    }

    #[test]
    fn a_word_is_quoted_if_a_shell_would_split_or_expand_it() {
        assert_eq!(shell_quoted("arn:aws:eks:eu-1:7:cluster/x"), "arn:aws:eks:eu-1:7:cluster/x");
        assert_eq!([shell_quoted("a b"), shell_quoted("a'b$c")], ["'a b'", "'a'\\''b$c'"]);
    }

    #[test]
    fn the_kubectl_commands_name_the_same_cluster_and_namespace() {
        let kubectl = KubectlCommands { namespace: "ops".to_owned(), cluster_flags: vec!["--context prod".to_owned()] };
        assert_eq!(
            kubectl.get_and_describe(&["a", "b"]),
            "  kubectl get wrs a b -n ops --context prod\n  kubectl describe wrs a b -n ops --context prod"
        );
    }
}
