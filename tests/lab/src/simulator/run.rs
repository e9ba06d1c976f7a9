//! Owns a simulated run: its settings, its state at an instant, and its JSON.
//! Never reads the clock to compute a state: the instant is a parameter, so that paused time applies to runs.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::task;

/// The field `task_instances` in the response to a stop. The documentation contradicts itself, so all three are possible.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StopResponseTasks {
    /// The field is missing.
    #[default]
    Absent,
    /// The field is an empty list.
    Empty,
    /// The field has all tasks, as in the verbose view.
    Full,
}

/// The response to a stop of a run that is already stopping or has ended. Undocumented, so all three are possible.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RepeatedStop {
    /// 200 and the unchanged record.
    #[default]
    Unchanged200,
    /// 400 with an error object.
    BadRequest400,
    /// 409 with an error object.
    Conflict409,
}

/// A workflow run. By default it is `running`, has no tasks, and a stop ends it at once.
#[derive(Clone, Debug)]
pub struct Run {
    pub(super) id: String,
    pub(super) on_repeated_stop: RepeatedStop,
    pub(super) unreadable: Option<u16>,
    pub(super) stop_response_tasks: StopResponseTasks,
    pub(super) tasks: usize,
    tenant: String,
    active_state: String,
    ends_on_its_own: Option<(String, Duration)>,
    stopped_state: &'static str,
    stops_in: Duration,
    stale_reads_for: Duration,
    stopped: Option<Instant>,
    added: Instant,
    added_wall: SystemTime,
}

/// The phase of a run at an instant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    Active,
    Stopping,
    Ended { state: String, at: Instant },
}

impl Run {
    /// Creates a run in the state `running`.
    pub fn new(id: impl Into<String>) -> Self {
        Run {
            id: id.into(),
            on_repeated_stop: RepeatedStop::default(),
            unreadable: None,
            stop_response_tasks: StopResponseTasks::default(),
            tasks: 0,
            tenant: String::new(),
            active_state: "running".to_owned(),
            ends_on_its_own: None,
            stopped_state: "canceled",
            stops_in: Duration::ZERO,
            stale_reads_for: Duration::ZERO,
            stopped: None,
            added: Instant::now(),
            added_wall: SystemTime::UNIX_EPOCH,
        }
    }

    /// Sets the name of its state while it is active, e.g. `scheduled` or an undocumented value.
    pub fn in_state(mut self, state: impl Into<String>) -> Self {
        self.active_state = state.into();
        self
    }

    /// Sets its number of task instances.
    pub fn with_tasks(mut self, count: usize) -> Self {
        self.tasks = count;
        self
    }

    /// Sets how long it is `stopping` after a stop, before it ends.
    pub fn stops_in(mut self, time: Duration) -> Self {
        self.stops_in = time;
        self
    }

    /// Makes reads stale: they do not show a stop until this long after its effect. The response to a stop is never
    /// stale.
    pub fn stale_reads_for(mut self, time: Duration) -> Self {
        self.stale_reads_for = time;
        self
    }

    /// Lets the run end as `failed` after a stop, with an error that has data, and with failed tasks.
    pub fn failing_with_error(mut self) -> Self {
        self.stopped_state = "failed";
        self
    }

    /// Makes the run one that has already ended, in this state.
    pub fn ended(self, state: impl Into<String>) -> Self {
        self.ends_on_its_own(state, Duration::ZERO)
    }

    /// Lets it end in this state on its own, this long after it was added, even while it is stopping.
    pub fn ends_on_its_own(mut self, state: impl Into<String>, after: Duration) -> Self {
        self.ends_on_its_own = Some((state.into(), after));
        self
    }

    /// Makes all reads of the run fail with this status code.
    pub fn unreadable(mut self, status: u16) -> Self {
        self.unreadable = Some(status);
        self
    }

    /// Sets the field `task_instances` in the response to a stop.
    pub fn stop_response_tasks(mut self, tasks: StopResponseTasks) -> Self {
        self.stop_response_tasks = tasks;
        self
    }

    /// Sets the response to a stop when it is already stopping or has ended.
    pub fn on_repeated_stop(mut self, response: RepeatedStop) -> Self {
        self.on_repeated_stop = response;
        self
    }

    /// Sets tenant and start: its times count from here.
    pub(super) fn add(&mut self, tenant: &str, now: Instant, wall: SystemTime) {
        tenant.clone_into(&mut self.tenant);
        self.added = now;
        self.added_wall = wall;
    }

    /// Handles a stop request. Returns the phase before it.
    pub(super) fn stop(&mut self, now: Instant) -> Phase {
        let before = self.phase(now);
        if before == Phase::Active {
            self.stopped = Some(now);
        }
        before
    }

    /// Returns the run as a read shows it.
    pub(super) fn as_read(&self, now: Instant) -> Cow<'_, Run> {
        match self.stopped {
            Some(at) if now < at + self.stale_reads_for => Cow::Owned(Run { stopped: None, ..self.clone() }),
            Some(_) | None => Cow::Borrowed(self),
        }
    }

    /// Returns the phase at this instant.
    pub(super) fn phase(&self, now: Instant) -> Phase {
        let on_its_own = self.ends_on_its_own.as_ref().map(|(state, after)| (state.as_str(), self.added + *after));
        let by_stop = self.stopped.map(|at| (self.stopped_state, at + self.stops_in));
        let end = [on_its_own, by_stop].into_iter().flatten().min_by_key(|(_, at)| *at);
        if let Some((state, at)) = end.filter(|(_, at)| *at <= now) {
            return Phase::Ended { state: state.to_owned(), at };
        }
        if self.stopped.is_some() { Phase::Stopping } else { Phase::Active }
    }

    /// Returns the state as sent in a response.
    pub(super) fn state(&self, now: Instant) -> String {
        match self.phase(now) {
            Phase::Active => self.active_state.clone(),
            Phase::Stopping => "stopping".to_owned(),
            Phase::Ended { state, .. } => state,
        }
    }

    /// Returns the record without tasks, as in the response to a stop.
    pub(super) fn record(&self, now: Instant) -> Map<String, Value> {
        let mut record = self.overview(now);
        let state = self.state(now);
        let more = json!({
            "principal_id": "google-apps|jane@example.com",
            "principal_name": "Jane Doe",
            "principal_email": "jane@example.com",
            "launched_version": "v-20240619-14400-launch",
            "current_version": "v-20240619-14400-launch",
            "warn_after_ms": 86_400_000.0,
            "unheard_of_field": {"added": "without breaking anybody"},
        });
        if let Value::Object(more) = more {
            record.extend(more);
        }
        if let Some(error) = run_error(&state) {
            record.insert("error".to_owned(), error);
        }
        record
    }

    /// Returns the default view.
    pub(super) fn overview(&self, now: Instant) -> Map<String, Value> {
        let mut record = Map::new();
        let mut put = |name: &str, value: Value| record.insert(name.to_owned(), value);
        put("id", json!(self.id));
        put("state", json!(self.state(now)));
        put("type", json!("courier-group"));
        put("name", json!("Daily courier group"));
        put("tenant", json!(self.tenant));
        put("created_at", json!(self.created_at()));
        if let Phase::Ended { at, .. } = self.phase(now) {
            put("ended_at", json!(self.wall_time(at)));
        }
        record
    }

    /// Returns this number of task instances, in states that match the run's state.
    pub(super) fn task_instances(&self, count: usize, now: Instant) -> Value {
        let ended_at = match self.phase(now) {
            Phase::Ended { at, .. } => Some(self.wall_time(at)),
            Phase::Active | Phase::Stopping => None,
        };
        let context = task::TaskContext {
            run_id: &self.id,
            tenant: &self.tenant,
            run_state: &self.state(now),
            created_at: &self.created_at(),
            ended_at: ended_at.as_deref(),
        };
        (0..count).map(|index| context.task(index)).collect()
    }

    fn created_at(&self) -> String {
        timestamp(self.added_wall - Duration::from_secs(600))
    }

    fn wall_time(&self, at: Instant) -> String {
        timestamp(self.added_wall + at.saturating_duration_since(self.added))
    }
}

/// Returns the documented error of a run that a person stopped, or an error of a failed run.
fn run_error(state: &str) -> Option<Value> {
    match state {
        "canceled" | "stopped" => Some(json!({
            "attribution": "customer",
            "type": "amperity.workflow.workflow.repository.core/cancel",
            "message": "Workflow manually stopped",
        })),
        "failed" => Some(json!({
            "attribution": "amperity",
            "type": "amperity.workflow.task/failed",
            "message": "A task of the workflow failed",
            "data": {"failed_task_count": 1, "causes": [{"code": "E-17", "retryable": false}]},
        })),
        _ => None,
    }
}

fn timestamp(wall: SystemTime) -> String {
    Timestamp::try_from(wall)
        .expect("a wall clock between the years -9999 and 9999")
        .strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
        .to_string()
}
