//! Owns the run as the API describes it: its plain data, and what its state means.
//! Never adds anything to what was returned: the same words stand in the status.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A run as one answer described it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// The run's id.
    pub id: String,
    /// The run's state as received.
    pub state: String,
    /// The run's error, where one came along.
    pub error: Option<RunError>,
    /// The run's tasks, as far as they fit into the status; `None` where the answer did not speak of them.
    pub tasks: Option<Vec<TaskInstance>>,
    /// How many tasks were left out of `tasks`.
    pub tasks_omitted: usize,
    /// The rest.
    pub details: RunDetails,
}

/// What a state means for a stop. The API declares new states as non-breaking, so every state that
/// is not known counts as active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not ended and not about to.
    Active,
    /// A stop was accepted and tasks still run.
    Stopping,
    /// Ended by a stop.
    Stopped,
    /// Ended in another way.
    EndedOtherwise,
}

impl Phase {
    /// Classifies a state; case, spaces, `-` and `_` do not count.
    pub fn of(state: &str) -> Self {
        let folded: String =
            state.chars().filter(|c| !matches!(c, ' ' | '-' | '_')).flat_map(char::to_lowercase).collect();
        match folded.as_str() {
            "canceled" | "cancelled" | "stopped" => Self::Stopped,
            "stopping" | "canceling" | "cancelling" => Self::Stopping,
            "succeeded" | "failed" => Self::EndedOtherwise,
            _ => Self::Active,
        }
    }

    /// True where the run has ended.
    pub fn has_ended(self) -> bool {
        match self {
            Self::Stopped | Self::EndedOtherwise => true,
            Self::Active | Self::Stopping => false,
        }
    }
}

/// How many bytes a run's tasks may have, as [`stored_bytes`] counts them. The rest of the status has about 25 texts of at
/// most [`MAX_TEXT_BYTES`] and one `data`, so that the whole stays under 512 KiB.
const MAX_TASKS_BYTES: usize = 400 * 1024;

/// The largest `data` of one error, as [`stored_bytes`] counts it; a larger one is left out.
pub const MAX_DATA_BYTES: usize = 16 * 1024;

/// How many arrays and objects may be nested in the `data` of one error; deeper data is left out. A client that lists the
/// resource decodes at most 128 levels, those around `data` included.
pub const MAX_DATA_DEPTH: usize = 32;

/// The longest text of one field, as [`stored_bytes`] counts it but without quotes; a longer one is cut.
pub const MAX_TEXT_BYTES: usize = 4096;

/// The size of a value in bytes as the API server stores it: as JSON in which Go escapes `<`, `>`, `&`, U+2028 and U+2029.
pub fn stored_bytes(value: &(impl Serialize + ?Sized)) -> usize {
    let size = |c| if matches!(c, '"' | '\\') { 1 } else { escaped_bytes(c) };
    // Text, and maps with texts as keys, can always be written.
    serde_json::to_string(value).map_or(usize::MAX, |json| json.chars().map(size).sum())
}

/// The size of one character of a text in bytes, as the API server stores it.
fn escaped_bytes(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => 6,
        _ => c.len_utf8(),
    }
}

/// Cuts a text at [`MAX_TEXT_BYTES`], between characters; then it ends with `…`.
pub fn cut(text: &str) -> String {
    let mut size = 0;
    let mut too_much = text.char_indices().skip_while(|(_, c)| {
        size += escaped_bytes(*c);
        size <= MAX_TEXT_BYTES
    });
    match too_much.next() {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The least that a task counts for, so that many tiny tasks do not take much memory.
const MIN_TASK_BYTES: usize = 128;

/// Selects the tasks that fit into the status while they are decoded, so that only these are held in memory.
///
/// Tasks are kept until the next one does not fit, the unsuccessful and the unended first, in the order received.
#[derive(Default)]
pub struct TaskSelection {
    needed: Fitting,
    well_ended: Fitting,
    total: usize,
}

/// Tasks with their places among all.
#[derive(Default)]
struct Fitting {
    tasks: Vec<(usize, TaskInstance)>,
    sizes: Vec<usize>,
    bytes: usize,
    /// Set when a task did not fit; no later one is kept.
    full: bool,
}

impl Fitting {
    fn push(&mut self, place: usize, task: TaskInstance, room: usize) {
        if self.full {
            return;
        }
        let size = stored_bytes(&task).saturating_add(1).max(MIN_TASK_BYTES);
        self.full = room < self.bytes.saturating_add(size);
        if !self.full {
            self.tasks.push((place, task));
            self.sizes.push(size);
            self.bytes += size;
        }
    }

    fn shrink(&mut self, room: usize) {
        while room < self.bytes {
            self.full = true;
            self.tasks.pop();
            self.bytes -= self.sizes.pop().unwrap_or(self.bytes);
        }
    }
}

impl TaskSelection {
    /// Returns the kept tasks and how many were left out.
    pub fn finish(self) -> (Vec<TaskInstance>, usize) {
        let mut kept = self.needed.tasks;
        kept.extend(self.well_ended.tasks);
        kept.sort_by_key(|(place, _)| *place);
        let omitted = self.total - kept.len();
        (kept.into_iter().map(|(_, task)| task).collect(), omitted)
    }
}

impl Extend<TaskInstance> for TaskSelection {
    fn extend<I: IntoIterator<Item = TaskInstance>>(&mut self, tasks: I) {
        for task in tasks {
            let state = task.state.as_deref().unwrap_or_default();
            if matches!(state.to_lowercase().as_str(), "succeeded" | "skipped") {
                self.well_ended.push(self.total, task, MAX_TASKS_BYTES - self.needed.bytes);
            } else {
                self.needed.push(self.total, task, MAX_TASKS_BYTES);
                let room = if self.needed.full { 0 } else { MAX_TASKS_BYTES - self.needed.bytes };
                self.well_ended.full |= self.needed.full;
                self.well_ended.shrink(room);
            }
            self.total += 1;
        }
    }
}

/// An error of a run or of a task, as returned.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunError {
    /// Who caused it, for example `customer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribution: Option<String>,
    /// The kind of error, for example `amperity.workflow.workflow.repository.core/cancel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// What happened, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Any JSON that came along; left out where it is larger than 16 KiB or nested deeper than 32 levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
    pub data: Option<Value>,
}

/// One task of the run, as returned.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TaskInstance {
    /// The task's id, for example `wft-...`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The run that the task belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The workflow that the task belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
    /// The task's name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The task's state as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// How the task is executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_type: Option<String>,
    /// The id of the task's definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_definition_id: Option<String>,
    /// The type of the task's definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_definition_type: Option<String>,
    /// The task's tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The task's time limit in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<i64>,
    /// When the task was created, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When the task's state last changed, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_changed_at: Option<String>,
    /// When the task ended, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The task's error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RunError>,
}

/// What else the API said of the run, as returned.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunDetails {
    /// The run's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The run's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// When the run was created, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When the run ended, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The workflow's version when the run was launched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched_version: Option<String>,
    /// The workflow's version now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// The id of who launched the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_id: Option<String>,
    /// The name of who launched the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_name: Option<String>,
    /// The email address of who launched the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_email: Option<String>,
    /// After how many milliseconds the API warns that the run takes long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warn_after_ms: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the tasks that fit into the status, and how many do not.
    fn fit_tasks(tasks: Vec<TaskInstance>) -> (Vec<TaskInstance>, usize) {
        let mut selection = TaskSelection::default();
        selection.extend(tasks);
        selection.finish()
    }

    #[test]
    fn a_state_is_classified_whatever_its_case_and_separators() {
        for (state, phase) in [
            ("canceled", Phase::Stopped),
            ("Cancelled", Phase::Stopped),
            ("stopped", Phase::Stopped),
            ("STOPPING", Phase::Stopping),
            ("canceling", Phase::Stopping),
            ("cancelling", Phase::Stopping),
            ("succeeded", Phase::EndedOtherwise),
            ("Failed", Phase::EndedOtherwise),
            ("running-with-failures", Phase::Active),
            ("In progress", Phase::Active),
            ("scheduled", Phase::Active),
            ("something new", Phase::Active),
            ("", Phase::Active),
        ] {
            assert_eq!(Phase::of(state), phase, "{state}");
        }
    }

    #[test]
    fn of_too_many_tasks_the_unsuccessful_and_unended_stay() {
        let task = |index: usize| TaskInstance {
            id: Some(format!("wft-{index}")),
            label: Some("x".repeat(200)),
            state: Some(
                match index % 100 {
                    0 => "failed",
                    1 => "running",
                    _ => "succeeded",
                }
                .to_owned(),
            ),
            ..TaskInstance::default()
        };
        let (kept, omitted) = fit_tasks((0..5000).map(task).collect());
        assert_eq!(kept.len() + omitted, 5000);
        assert!(0 < omitted);
        let unwell = kept.iter().filter(|task| task.state.as_deref() != Some("succeeded")).count();
        assert_eq!(unwell, 100);
        assert!(serde_json::to_vec(&kept).unwrap().len() <= MAX_TASKS_BYTES);
        assert!(kept.is_sorted_by_key(|task| task.id.as_ref().unwrap()[4..].parse::<usize>().unwrap()));
    }
    #[test]
    fn tasks_that_are_added_one_by_one_are_chosen_as_if_all_were_known() {
        // The rule in its plain form: the needed ones first, until one does not fit.
        let expected = |tasks: &[TaskInstance]| {
            let is_well = |place: &usize| tasks[*place].state.as_deref() == Some("Succeeded");
            let (well, needed): (Vec<usize>, Vec<usize>) = (0..tasks.len()).partition(is_well);
            let mut left = MAX_TASKS_BYTES;
            let fits = |place: &usize| {
                let rest = left.checked_sub((stored_bytes(&tasks[*place]) + 1).max(MIN_TASK_BYTES));
                left = rest.unwrap_or(left);
                rest.is_some()
            };
            let mut kept: Vec<usize> = needed.into_iter().chain(well).take_while(fits).collect();
            kept.sort_unstable();
            kept.into_iter().map(|place| tasks[place].clone()).collect::<Vec<_>>()
        };
        for (seed, count, largest, needed) in [
            (1, 400, 9000, 2),
            (2, 400, 9000, 9),
            (3, 4000, 100, 5),
            (4, 100, 90_000, 1),
            (5, 1000, 2000, 3),
            (6, 4000, 60, 0),
        ] {
            let mut chance = seed;
            let mut below = |limit: u64| {
                chance = u64::wrapping_mul(chance, 6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (chance >> 33) % limit
            };
            let mut task = |number: u64| TaskInstance {
                id: Some(format!("wft-{number}")),
                label: Some("x".repeat(below(largest) as usize)),
                state: Some(if below(10) < needed { "running" } else { "Succeeded" }.to_owned()),
                ..TaskInstance::default()
            };
            let tasks: Vec<_> = (0..count).map(&mut task).collect();
            let kept = expected(&tasks);
            let omitted = tasks.len() - kept.len();
            assert!(omitted != 0 && !kept.is_empty());
            assert_eq!(fit_tasks(kept.clone()), (kept.clone(), 0));
            assert_eq!(fit_tasks(tasks), (kept, omitted), "{seed}");
        }
    }

    #[test]
    fn no_more_tasks_are_kept_than_memory_allows() {
        let (kept, omitted) = fit_tasks(vec![TaskInstance::default(); 10_000]);
        assert_eq!(
            (kept.len(), omitted),
            (MAX_TASKS_BYTES / MIN_TASK_BYTES, 10_000 - MAX_TASKS_BYTES / MIN_TASK_BYTES)
        );
        assert!(size_of::<TaskInstance>() <= 4 * MIN_TASK_BYTES);
    }

    #[test]
    fn tasks_are_measured_with_their_escapes() {
        let task = TaskInstance { label: Some("<\0\u{2028}".repeat(500)), ..TaskInstance::default() };
        let (kept, omitted) = fit_tasks(vec![task; 100]);
        assert_eq!(kept.len() + omitted, 100);
        assert!(stored_bytes(&kept) <= MAX_TASKS_BYTES && MAX_TASKS_BYTES - 10_000 < stored_bytes(&kept));
    }

    #[test]
    fn a_value_has_the_size_that_the_api_server_stores() {
        for (value, size) in [
            ("", 2),
            ("x", 3),
            ("é€😀", 11),
            ("\"\\\n\r\t\u{8}\u{c}", 16),
            ("\0\u{1f}", 14),
            ("<>&\u{2028}\u{2029}", 32),
            ("\x7f\u{FFFD}", 6),
        ] {
            assert_eq!(stored_bytes(value), size, "{value:?}");
        }
        assert_eq!(stored_bytes(&serde_json::json!({"<": [1.5, null, "\""]})), 26);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut(&"x".repeat(MAX_TEXT_BYTES)), "x".repeat(MAX_TEXT_BYTES));
        assert_eq!(cut(&"x".repeat(MAX_TEXT_BYTES + 1)), "x".repeat(MAX_TEXT_BYTES) + "…");
        assert_eq!(cut(&("x".to_owned() + &"é".repeat(MAX_TEXT_BYTES))), format!("x{}…", "é".repeat(2047)));
        assert_eq!(cut(&"\0".repeat(MAX_TEXT_BYTES)), "\0".repeat(MAX_TEXT_BYTES / 6) + "…");
        assert_eq!(cut(""), "");
    }
}
