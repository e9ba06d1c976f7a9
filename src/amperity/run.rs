//! Owns a run as a response describes it, cut to what fits into a status.
//! Never adds anything to what the API returned.

use serde::Serialize;
use workflow_run_stop_api::workflow_run::{ErrorData, RunDetails, RunError, TaskInstance};

use crate::amperity::answer_memory::{Held, Share};

/// A run as one response describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// The run's id.
    pub id: String,
    /// The run's state as received.
    pub state: String,
    /// The run's error, if the response has one. A stopped run has one as well, see
    /// <https://docs.amperity.com/api/endpoint_get_workflows_fetch.html>.
    pub error: Option<RunError>,
    /// The run's tasks, as far as they fit into the status; `None` if the response has no `task_instances`.
    pub tasks: Option<Vec<TaskInstance>>,
    /// The number of tasks that were left out of `tasks`.
    pub tasks_omitted: usize,
    /// The other fields.
    pub details: RunDetails,
    /// The memory that the run takes.
    pub memory: Held,
}

/// The largest size of a run's tasks, as [`stored_bytes`] counts it. The rest of a status mostly takes much less than
/// [`MAX_STATUS_BYTES`] leaves; otherwise [`omit_tasks`] makes room for it.
const MAX_TASKS_BYTES: usize = 400 * 1024;

/// The largest size of a status, as [`stored_bytes`] counts it. etcd accepts objects of 1.5 MiB.
pub const MAX_STATUS_BYTES: usize = 512 * 1024;

/// The largest size of the `data` of one error, as [`stored_bytes`] counts it; larger data is left out.
pub const MAX_DATA_BYTES: usize = 16 * 1024;

/// The largest depth of nested arrays and objects in the `data` of one error; deeper data is left out. A client that
/// lists the resource decodes at most 128 levels, including those around `data`.
pub const MAX_DATA_DEPTH: usize = 32;

/// The longest text of one field, as [`stored_bytes`] counts it without the quotes; a longer one is cut.
pub const MAX_TEXT_BYTES: usize = 4096;

/// Returns the size of a value in bytes as the API server stores it: as JSON in which Go escapes `<`, `>`, `&`, U+2028
/// and U+2029, and writes doubles from 1e-6 to 1e21 without an exponent.
pub fn stored_bytes(value: &(impl Serialize + ?Sized)) -> usize {
    let size = |c| if matches!(c, '"' | '\\') { 1 } else { escaped_bytes(c) };
    // Serializing texts, and maps with texts as keys, does not fail.
    let Ok(json) = serde_json::to_string(value) else { return usize::MAX };
    let (mut bytes, mut rest) = (0, json.as_str());
    while let Some(start) = rest.find('"') {
        let (before, text) = rest.split_at(start);
        let escaped = |quote: usize| text[..quote].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
        let end = text.match_indices('"').map(|(quote, _)| quote).find(|quote| *quote != 0 && !escaped(*quote));
        let (text, after) = text.split_at(end.map_or(text.len(), |end| end + 1));
        bytes += bytes_outside_of_texts(before) + text.chars().map(size).sum::<usize>();
        rest = after;
    }
    bytes + bytes_outside_of_texts(rest)
}

/// Returns the size of brackets, commas, colons, words and numbers, as the API server stores them.
fn bytes_outside_of_texts(json: &str) -> usize {
    let size = |part: &str| match part.parse::<f64>() {
        Ok(double) if part.contains(['.', 'e']) => double_bytes(double),
        Ok(_) | Err(_) => part.len(),
    };
    json.split_inclusive(['[', ']', '{', '}', ',', ':'])
        .map(|part| {
            let word = part.trim_end_matches(['[', ']', '{', '}', ',', ':']);
            part.len() - word.len() + size(word)
        })
        .sum()
}

/// Returns the size of a double as Go writes it.
fn double_bytes(double: f64) -> usize {
    match double.abs() {
        0.0 | 1e-6..1e21 => double.to_string().len(),
        // With a sign in front of a positive exponent.
        small if small < 1e-6 => format!("{double:e}").len(),
        _ => format!("{double:e}").len() + 1,
    }
}

/// Returns the size of one character of a text in bytes, as the API server stores it.
fn escaped_bytes(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => 6,
        _ => c.len_utf8(),
    }
}

/// Cuts a text at [`MAX_TEXT_BYTES`], between characters, and appends `…` if it was longer.
pub fn cut(text: &str) -> String {
    let mut size = 0;
    let mut excess = text.char_indices().skip_while(|(_, c)| {
        size += escaped_bytes(*c);
        size <= MAX_TEXT_BYTES
    });
    match excess.next() {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The smallest size that a task counts with, so that many tiny tasks do not take much memory.
const MIN_TASK_BYTES: usize = 128;

/// Selects the tasks that fit into the status while they are decoded, so that only these are held in memory.
///
/// Failed and unfinished tasks take precedence over successful ones. Of each kind, tasks are kept in the order received
/// until one does not fit.
#[derive(Default)]
pub struct TaskSelection {
    important: BoundedTasks,
    successful: BoundedTasks,
    total: usize,
}

/// Tasks with their indexes among all tasks.
#[derive(Default)]
struct BoundedTasks {
    tasks: Vec<(usize, TaskInstance)>,
    bytes: usize,
    memory: usize,
    /// True once a task did not fit; no later one is kept.
    full: bool,
}

impl BoundedTasks {
    /// Adds a task if it fits below the limit, and its memory into the share.
    fn push(&mut self, index: usize, task: TaskInstance, limit: usize, share: &mut Share) {
        let (size, memory) = (task_bytes(&task), task_memory(&task));
        self.full |= limit < self.bytes.saturating_add(size) || !share.take(memory);
        if !self.full {
            self.tasks.push((index, task));
            self.bytes += size;
            self.memory += memory;
        }
    }

    /// Removes the last task. Returns false if there is none.
    fn pop(&mut self, share: &mut Share) -> bool {
        self.full = true;
        let Some((_, task)) = self.tasks.pop() else { return false };
        let (size, memory) = (task_bytes(&task), task_memory(&task));
        self.bytes -= size;
        self.memory -= memory;
        share.put_back(memory);
        true
    }

    fn shrink(&mut self, limit: usize, share: &mut Share) {
        while limit < self.bytes && self.pop(share) {}
    }
}

/// Returns the memory that a text takes beside its place in a struct, in bytes, with what the allocator adds.
fn text_memory(text: Option<&str>) -> usize {
    text.map_or(0, |text| text.len() + 32)
}

/// Returns the memory that an error takes beside its place in a struct, in bytes.
pub fn error_memory(error: &RunError) -> usize {
    let RunError { attribution, r#type, message, data } = error;
    let texts = [attribution, r#type, message].map(|text| text_memory(text.as_deref()));
    texts.iter().sum::<usize>() + text_memory(data.as_ref().map(ErrorData::as_json))
}

/// Returns the memory that further details of a run take beside their place in a struct, in bytes.
pub fn details_memory(details: &RunDetails) -> usize {
    let RunDetails {
        name,
        r#type,
        created_at,
        ended_at,
        launched_version,
        current_version,
        principal_id,
        principal_name,
        principal_email,
        warn_after_ms: _,
    } = details;
    let texts = [
        name,
        r#type,
        created_at,
        ended_at,
        launched_version,
        current_version,
        principal_id,
        principal_name,
        principal_email,
    ];
    texts.map(|text| text_memory(text.as_deref())).iter().sum()
}

/// Returns the memory that a task takes in a list, in bytes.
fn task_memory(task: &TaskInstance) -> usize {
    let TaskInstance {
        id,
        run_id,
        workflow_id,
        label,
        state,
        execution_type,
        task_definition_id,
        task_definition_type,
        tenant,
        timeout_ms: _,
        created_at,
        state_changed_at,
        ended_at,
        error,
    } = task;
    let texts = [
        id,
        run_id,
        workflow_id,
        label,
        state,
        execution_type,
        task_definition_id,
        task_definition_type,
        tenant,
        created_at,
        state_changed_at,
        ended_at,
    ];
    let texts: usize = texts.map(|text| text_memory(text.as_deref())).iter().sum();
    // A list that grows has up to twice as many places as tasks.
    2 * size_of::<(usize, TaskInstance)>() + texts + error.as_ref().map_or(0, error_memory)
}

/// Returns the size that a task counts with in the status, with a comma.
fn task_bytes(task: &TaskInstance) -> usize {
    stored_bytes(task).saturating_add(1).max(MIN_TASK_BYTES)
}

fn is_successful(task: &TaskInstance) -> bool {
    let state = task.state.as_deref().unwrap_or_default();
    matches!(state.to_lowercase().as_str(), "succeeded" | "skipped")
}

/// Removes tasks until the rest is smaller by `excess` bytes, or none is left: the last ones, but the successful ones
/// first. Returns their number.
pub fn omit_tasks(tasks: &mut Vec<TaskInstance>, excess: usize) -> usize {
    let (mut kept, mut removed) = (vec![true; tasks.len()], 0);
    for successful in [true, false] {
        for (index, task) in tasks.iter().enumerate().rev() {
            if removed < excess && is_successful(task) == successful {
                kept[index] = false;
                // With the comma.
                removed += stored_bytes(task) + 1;
            }
        }
    }
    let (count, mut kept) = (tasks.len(), kept.into_iter());
    tasks.retain(|_| kept.next().unwrap_or(true));
    count - tasks.len()
}

impl TaskSelection {
    /// Adds a task if it fits into the status, and its memory into the share.
    pub fn add(&mut self, task: TaskInstance, share: &mut Share) {
        if is_successful(&task) {
            if !self.successful.full {
                self.successful.push(self.total, task, MAX_TASKS_BYTES - self.important.bytes, share);
            }
        } else if !self.important.full {
            while !share.could_take(task_memory(&task)) && self.successful.pop(share) {}
            self.important.push(self.total, task, MAX_TASKS_BYTES, share);
            let limit = if self.important.full { 0 } else { MAX_TASKS_BYTES - self.important.bytes };
            self.successful.full |= self.important.full;
            self.successful.shrink(limit, share);
        }
        self.total += 1;
    }

    /// Returns the memory that the kept tasks take, in bytes.
    pub fn memory(&self) -> usize {
        self.important.memory + self.successful.memory
    }

    /// Omits the last task that was kept, but first the successful ones. Returns false if no task is kept.
    pub fn omit_last(&mut self, share: &mut Share) -> bool {
        self.successful.pop(share) || self.important.pop(share)
    }

    /// Returns true if no other task is kept, whatever it contains.
    pub fn is_full(&self) -> bool {
        self.important.full && self.successful.full
    }

    /// Counts a task that is left out.
    pub fn omit(&mut self) {
        self.total += 1;
    }

    /// Returns the kept tasks and the number of those left out.
    pub fn finish(self) -> (Vec<TaskInstance>, usize) {
        let mut kept = self.important.tasks;
        kept.extend(self.successful.tasks);
        kept.sort_by_key(|(index, _)| *index);
        let omitted = self.total - kept.len();
        (kept.into_iter().map(|(_, task)| task).collect(), omitted)
    }
}

impl Extend<TaskInstance> for TaskSelection {
    fn extend<I: IntoIterator<Item = TaskInstance>>(&mut self, tasks: I) {
        for task in tasks {
            self.add(task, &mut Share::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the tasks that fit into the status, and the number of those that do not.
    fn fit_tasks(tasks: Vec<TaskInstance>) -> (Vec<TaskInstance>, usize) {
        let mut selection = TaskSelection::default();
        selection.extend(tasks);
        selection.finish()
    }

    #[test]
    fn of_too_many_tasks_the_failed_and_unfinished_ones_are_kept() {
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
        let important = kept.iter().filter(|task| task.state.as_deref() != Some("succeeded")).count();
        assert_eq!(important, 100);
        assert!(serde_json::to_vec(&kept).unwrap().len() <= MAX_TASKS_BYTES);
        assert!(kept.is_sorted_by_key(|task| task.id.as_ref().unwrap()[4..].parse::<usize>().unwrap()));
    }

    #[test]
    fn tasks_that_are_added_one_by_one_are_selected_as_if_all_were_known() {
        // The rule for all tasks at once: the important ones first, until one does not fit.
        let expected = |tasks: &[TaskInstance]| {
            let is_successful = |index: &usize| tasks[*index].state.as_deref() == Some("Succeeded");
            let (successful, important): (Vec<usize>, Vec<usize>) = (0..tasks.len()).partition(is_successful);
            let mut left = MAX_TASKS_BYTES;
            let fits = |index: &usize| {
                let rest = left.checked_sub((stored_bytes(&tasks[*index]) + 1).max(MIN_TASK_BYTES));
                left = rest.unwrap_or(left);
                rest.is_some()
            };
            let mut kept: Vec<usize> = important.into_iter().chain(successful).take_while(fits).collect();
            kept.sort_unstable();
            kept.into_iter().map(|index| tasks[index].clone()).collect::<Vec<_>>()
        };
        for (seed, count, largest, important_tenths) in [
            (1, 400, 9000, 2),
            (2, 400, 9000, 9),
            (3, 4000, 100, 5),
            (4, 100, 90_000, 1),
            (5, 1000, 2000, 3),
            (6, 4000, 60, 0),
        ] {
            let mut random = seed;
            let mut below = |limit: u64| {
                random = u64::wrapping_mul(random, 6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % limit
            };
            let mut task = |number: u64| TaskInstance {
                id: Some(format!("wft-{number}")),
                label: Some("x".repeat(below(largest) as usize)),
                state: Some(if below(10) < important_tenths { "running" } else { "Succeeded" }.to_owned()),
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
    fn successful_tasks_after_important_ones_get_the_rest_of_their_limit() {
        let task = |state: &str| TaskInstance {
            label: Some("x".repeat(1000)),
            state: Some(state.to_owned()),
            ..TaskInstance::default()
        };
        let half = MAX_TASKS_BYTES / 2 / 1000;
        let (kept, omitted) = fit_tasks([vec![task("failed"); half], vec![task("succeeded"); 2 * half]].concat());
        assert!(half < kept.len() && 0 < omitted);
        assert!(serde_json::to_vec(&kept).unwrap().len() <= MAX_TASKS_BYTES);
    }

    #[test]
    fn the_number_of_kept_tasks_is_bounded() {
        let (kept, omitted) = fit_tasks(vec![TaskInstance::default(); 10_000]);
        assert_eq!(
            (kept.len(), omitted),
            (MAX_TASKS_BYTES / MIN_TASK_BYTES, 10_000 - MAX_TASKS_BYTES / MIN_TASK_BYTES)
        );
        assert!(size_of::<TaskInstance>() <= 4 * MIN_TASK_BYTES);
    }

    #[test]
    fn the_size_of_tasks_includes_json_escapes() {
        let task = TaskInstance { label: Some("<\0\u{2028}".repeat(500)), ..TaskInstance::default() };
        let (kept, omitted) = fit_tasks(vec![task; 100]);
        assert_eq!(kept.len() + omitted, 100);
        assert!(stored_bytes(&kept) <= MAX_TASKS_BYTES && MAX_TASKS_BYTES - 10_000 < stored_bytes(&kept));
    }

    #[test]
    fn the_size_of_a_value_is_the_one_that_the_api_server_stores() {
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
    fn the_size_of_a_double_is_the_one_that_go_writes() {
        for (double, stored) in [
            (0.5, "0.5"),
            (-1e-5, "-0.00001"),
            (1e-6, "0.000001"),
            (1.5e-7, "1.5e-7"),
            (1e20, "100000000000000000000"),
            (1.5e21, "1.5e+21"),
            (-1e300, "-1e+300"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            assert_eq!(stored_bytes(&double), stored.len(), "{double}");
            let data = serde_json::json!({"1e20": [double, "1e20", "\\", {"\\\"": double}], "k": "\\\\\""});
            let zero = serde_json::json!({"1e20": [0, "1e20", "\\", {"\\\"": 0}], "k": "\\\\\""});
            assert_eq!(stored_bytes(&data), zero.to_string().len() + 2 * (stored.len() - 1), "{double}");
        }
    }

    #[test]
    fn the_last_tasks_are_omitted_but_the_successful_ones_first() {
        let task = |id: usize, state: &str| TaskInstance {
            id: Some(id.to_string()),
            state: Some(state.to_owned()),
            ..TaskInstance::default()
        };
        let all = [(0, "failed"), (1, "Succeeded"), (2, "running"), (3, "skipped"), (4, "failed")];
        let all = all.map(|(id, state)| task(id, state));
        for (omitted, kept) in [(0, "0 1 2 3 4"), (1, "0 1 2 4"), (2, "0 2 4"), (3, "0 2"), (4, "0"), (5, "")] {
            let order = [3, 1, 4, 2, 0].map(|index| stored_bytes(&all[index]) + 1);
            let excess = order.iter().take(omitted).sum::<usize>();
            for excess in if omitted == 0 { vec![0] } else { vec![excess, excess - 1] } {
                let mut tasks = all.to_vec();
                assert_eq!(omit_tasks(&mut tasks, excess), omitted);
                let ids: Vec<_> = tasks.iter().map(|task| task.id.as_deref().unwrap()).collect();
                assert_eq!(ids.join(" "), kept);
                let size = |tasks: &[TaskInstance]| stored_bytes(tasks);
                assert!(tasks.is_empty() || size(&tasks) + excess <= size(&all));
            }
        }
        assert_eq!(omit_tasks(&mut all.to_vec(), usize::MAX), 5);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut(&"x".repeat(MAX_TEXT_BYTES)), "x".repeat(MAX_TEXT_BYTES));
        assert_eq!(cut(&"x".repeat(MAX_TEXT_BYTES + 1)), "x".repeat(MAX_TEXT_BYTES) + "…");
        assert_eq!(cut(&("x".to_owned() + &"é".repeat(MAX_TEXT_BYTES))), format!("x{}…", "é".repeat(2047)));
        assert_eq!(cut(&"\0".repeat(MAX_TEXT_BYTES)), "\0".repeat(MAX_TEXT_BYTES / 6) + "…");
        assert_eq!(cut(&"\"".repeat(MAX_TEXT_BYTES)), "\"".repeat(MAX_TEXT_BYTES / 2) + "…");
        assert_eq!(cut(""), "");
    }

    #[test]
    fn failed_tasks_take_the_place_of_successful_ones_and_no_more() {
        let task = |state: &str, kib: usize| TaskInstance {
            label: Some("x".repeat(kib * 1024)),
            state: Some(state.to_owned()),
            ..TaskInstance::default()
        };
        let states = |tasks: Vec<TaskInstance>| {
            let (kept, omitted) = fit_tasks(tasks);
            (kept.into_iter().filter_map(|task| task.state).collect::<Vec<_>>().join(" "), omitted)
        };
        let (small, large) = (task("succeeded", 100), task("failed", 150));
        assert_eq!(states(vec![small.clone(), small.clone(), large.clone()]), ("succeeded succeeded failed".into(), 0));
        assert_eq!(
            states(vec![small.clone(), small.clone(), small.clone(), large]),
            ("succeeded succeeded failed".into(), 1)
        );
        assert_eq!(states(vec![small.clone(), small, task("failed", 350)]), ("failed".into(), 2));
    }

    #[test]
    fn the_limits_are_those_of_the_documentation() {
        assert_eq!((MAX_TEXT_BYTES, MAX_DATA_BYTES, MAX_DATA_DEPTH, MAX_TASKS_BYTES), (4096, 16_384, 32, 409_600));
    }
}
