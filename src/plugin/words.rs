//! Owns what `kubectl stop-run` says of a resource.
//! Never writes it anywhere, and reads no clock.

use std::time::Duration;

use crate::resource::{
    WorkflowRunStop,
    conditions::{self, ConditionType, Truth},
};
use crate::run::{Phase, RunError, TaskInstance};

/// As many tasks are listed; the rest is counted.
const MOST_TASKS: usize = 20;

/// The resource's name as kubectl prints it.
pub fn name_line(stop: &WorkflowRunStop) -> String {
    format!("workflowrunstop.workflow.amperity.com/{}\n", label(stop))
}

/// What kubectl says of what it created.
pub fn created(stop: &WorkflowRunStop, note: &str) -> String {
    format!("{} created{note}\n", name_line(stop).trim_end())
}

/// The name, or what it will begin with.
pub fn label(stop: &WorkflowRunStop) -> &str {
    match stop.metadata.name.as_deref() {
        Some(name) => name,
        None => stop.metadata.generate_name.as_deref().unwrap_or_default(),
    }
}

/// What a resource is at, in one line; nothing where no operator has looked at it.
pub fn at(stop: &WorkflowRunStop) -> Option<String> {
    let status = stop.status.as_ref()?;
    let ready = conditions::find(&status.conditions, ConditionType::Ready)?;
    Some(format!("{}: {}", ready.reason, shown(&ready.message)))
}

/// What is said where no operator looks at a resource.
pub fn not_looked_at(stop: &WorkflowRunStop) -> String {
    format!("no operator has looked at it yet: is one installed, and does it watch the namespace {}?", stop.namespace())
}

/// How to look at a resource later, after that.
pub fn again(stop: &WorkflowRunStop, why: &str) -> String {
    let (name, namespace) = (stop.name(), stop.namespace());
    format!(
        "{why}: {name} stays, and the operator goes on with it. To look again:\n  \
         kubectl get wrs {name} --namespace {namespace}\n  \
         kubectl describe wrs {name} --namespace {namespace}\n"
    )
}

/// How a resource ended, with what failed in the run, and whether that is well.
pub fn outcome(stop: &WorkflowRunStop, took: Duration) -> (String, bool) {
    let Some(status) = &stop.status else { return (String::new(), false) };
    let ready = conditions::find(&status.conditions, ConditionType::Ready);
    let well = ready.is_some_and(|ready| ready.status == Truth::True.as_str());
    let message = ready.map(|ready| shown(&ready.message)).unwrap_or_default();
    let mut text = format!("{}: {message} ({} s)\n", stop.name(), took.as_secs());
    // A run that was stopped carries an error that says so.
    let stopped = status.state.as_deref().is_some_and(|state| Phase::of(state) == Phase::Stopped);
    if let Some(error) = status.error.as_ref().filter(|_| !stopped) {
        text.push_str(&format!("  error: {}\n", one_line(error)));
    }
    let failed = |task: &&TaskInstance| {
        task.error.is_some() || task.state.as_deref().is_some_and(|state| state.eq_ignore_ascii_case("failed"))
    };
    let tasks: Vec<_> = status.task_instances.iter().flatten().filter(failed).collect();
    if !tasks.is_empty() {
        text.push_str(&table(&tasks));
    }
    (text, well)
}

/// The tasks that failed, a line each.
fn table(tasks: &[&TaskInstance]) -> String {
    let dash = || "-".to_owned();
    let row = |task: &&TaskInstance| {
        let name = task.label.clone().or_else(|| task.id.clone()).unwrap_or_else(dash);
        let state = task.state.clone().unwrap_or_else(dash);
        [shown(&name), shown(&state), task.error.as_ref().map_or_else(dash, one_line)]
    };
    let mut rows = vec![["TASK".to_owned(), "STATE".to_owned(), "ERROR".to_owned()]];
    rows.extend(tasks.iter().take(MOST_TASKS).map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (name, state) = (width(0), width(1));
    let mut text: String =
        rows.iter().map(|[task, at, error]| format!("  {task:name$}  {at:state$}  {error}\n")).collect();
    if let Some(more @ 1..) = tasks.len().checked_sub(MOST_TASKS) {
        text.push_str(&format!("  and {more} more\n"));
    }
    text
}

fn one_line(error: &RunError) -> String {
    let said = error.message.as_deref().or(error.r#type.as_deref()).unwrap_or("no message");
    shown(said)
}

/// A text of somebody else's in one line, without what a terminal would take for a command.
fn shown(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{WorkflowRunStopSpec, WorkflowRunStopStatus, conditions::Reason};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    fn ended(ready: Truth, reason: Reason) -> WorkflowRunStop {
        let mut stop = WorkflowRunStop::new("stop-1", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
        let why = (reason, reason.message("its state is x"));
        let ready = conditions::condition(ConditionType::Ready, ready, why, None, &Time(Timestamp::UNIX_EPOCH));
        stop.status = Some(WorkflowRunStopStatus { conditions: vec![ready], ..WorkflowRunStopStatus::default() });
        stop
    }

    fn error(message: &str) -> RunError {
        RunError { message: Some(message.to_owned()), ..RunError::default() }
    }

    #[test]
    fn an_outcome_tells_what_happened_and_which_tasks_failed() {
        let mut stop = ended(Truth::True, Reason::RunEndedOtherwise);
        let status = stop.status.as_mut().unwrap();
        status.error = Some(error("two\nlines and \u{1b}[31mred"));
        let task = |label: &str, state: &str, error| TaskInstance {
            label: Some(label.to_owned()),
            state: Some(state.to_owned()),
            error,
            ..TaskInstance::default()
        };
        status.task_instances = Some(vec![
            task("load", "succeeded", None),
            task("transform all", "failed", Some(error("no such column"))),
            task("send", "canceled", None),
        ]);
        assert_eq!(
            outcome(&stop, Duration::from_secs(12)),
            (
                "stop-1: The run ended in another way than by being stopped: its state is x. (12 s)\n  \
                 error: two lines and [31mred\n  \
                 TASK           STATE   ERROR\n  \
                 transform all  failed  no such column\n"
                    .to_owned(),
                true
            )
        );
    }

    #[test]
    fn a_stop_that_failed_for_good_is_not_well_and_long_lists_are_cut() {
        let mut stop = ended(Truth::False, Reason::RunStillActive);
        let failed = TaskInstance { error: Some(error("x")), ..TaskInstance::default() };
        stop.status.as_mut().unwrap().task_instances = Some(vec![failed; 25]);
        let (text, well) = outcome(&stop, Duration::ZERO);
        assert!(!well && text.lines().count() == 1 + 1 + MOST_TASKS + 1 && text.ends_with("and 5 more\n"), "{text}");
    }
}
