//! Owns a simulated run: what a test says about it, the state it is in at an instant, and its JSON.
//! Never reads a clock: the instant is passed in, so that a test's paused time moves a run as well.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::task;

/// What a stop answers in `task_instances`. The documentation contradicts itself here, so all three occur.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StopAnswerTasks {
    /// The field is missing.
    #[default]
    Absent,
    /// The field is an empty list.
    Empty,
    /// The field has every task, as the verbose view has it.
    Full,
}

/// What a stop answers when the run is already stopping or has ended. Undocumented, so all three occur.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Again {
    /// 200 and the record as it was.
    #[default]
    Unchanged200,
    /// 400 with an error body.
    BadRequest400,
    /// 409 with an error body.
    Conflict409,
}

/// One workflow run. Without further words it is `running`, has no tasks, and a stop ends it at once.
#[derive(Clone, Debug)]
pub struct Run {
    pub(super) id: String,
    pub(super) again: Again,
    pub(super) unreadable: Option<u16>,
    pub(super) stop_answer_tasks: StopAnswerTasks,
    pub(super) tasks: usize,
    tenant: String,
    active_state: String,
    ends_on_its_own: Option<(String, Duration)>,
    stopped_state: &'static str,
    stops_in: Duration,
    stale_for: Duration,
    stopped: Option<Instant>,
    added: Instant,
    added_wall: SystemTime,
}

/// How far a run has come at one instant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    Active,
    Stopping,
    Ended { state: String, at: Instant },
}

impl Run {
    /// A run in the state `running`.
    pub fn new(id: impl Into<String>) -> Self {
        Run {
            id: id.into(),
            again: Again::default(),
            unreadable: None,
            stop_answer_tasks: StopAnswerTasks::default(),
            tasks: 0,
            tenant: String::new(),
            active_state: "running".to_owned(),
            ends_on_its_own: None,
            stopped_state: "canceled",
            stops_in: Duration::ZERO,
            stale_for: Duration::ZERO,
            stopped: None,
            added: Instant::now(),
            added_wall: SystemTime::UNIX_EPOCH,
        }
    }

    /// What its state is called while it is active, e.g. `scheduled` or a value nobody has published.
    pub fn in_state(mut self, state: impl Into<String>) -> Self {
        self.active_state = state.into();
        self
    }

    /// How many task instances it has.
    pub fn with_tasks(mut self, count: usize) -> Self {
        self.tasks = count;
        self
    }

    /// After a stop it reads `stopping` for so long, and ends then.
    pub fn stops_in(mut self, time: Duration) -> Self {
        self.stops_in = time;
        self
    }

    /// Reads do not see a stop until this long after its effect: they answer as if it had not happened. The answer to
    /// a stop is never stale.
    pub fn stale_for(mut self, time: Duration) -> Self {
        self.stale_for = time;
        self
    }

    /// After a stop it ends as `failed`, with an error that has data, and failed tasks.
    pub fn failing_with_error(mut self) -> Self {
        self.stopped_state = "failed";
        self
    }

    /// It has ended already.
    pub fn ended(self, state: impl Into<String>) -> Self {
        self.ends_on_its_own(state, Duration::ZERO)
    }

    /// It ends in this state so long after it was added, even while it is stopping.
    pub fn ends_on_its_own(mut self, state: impl Into<String>, after: Duration) -> Self {
        self.ends_on_its_own = Some((state.into(), after));
        self
    }

    /// Every read of it answers this status.
    pub fn unreadable(mut self, status: u16) -> Self {
        self.unreadable = Some(status);
        self
    }

    /// What a stop answers in `task_instances`.
    pub fn stop_answer_tasks(mut self, tasks: StopAnswerTasks) -> Self {
        self.stop_answer_tasks = tasks;
        self
    }

    /// What a stop answers when it is already stopping or has ended.
    pub fn again(mut self, answer: Again) -> Self {
        self.again = answer;
        self
    }

    /// Puts the run into the world: its own times count from here.
    pub(super) fn add(&mut self, tenant: &str, now: Instant, wall: SystemTime) {
        tenant.clone_into(&mut self.tenant);
        self.added = now;
        self.added_wall = wall;
    }

    /// A stop arrives. Returns how far the run had come before it.
    pub(super) fn stop(&mut self, now: Instant) -> Phase {
        let before = self.phase(now);
        if before == Phase::Active {
            self.stopped = Some(now);
        }
        before
    }

    /// The run as a read sees it.
    pub(super) fn as_read(&self, now: Instant) -> Cow<'_, Run> {
        match self.stopped {
            Some(at) if now < at + self.stale_for => Cow::Owned(Run { stopped: None, ..self.clone() }),
            Some(_) | None => Cow::Borrowed(self),
        }
    }

    pub(super) fn phase(&self, now: Instant) -> Phase {
        let by_itself = self.ends_on_its_own.as_ref().map(|(state, after)| (state.as_str(), self.added + *after));
        let by_stop = self.stopped.map(|at| (self.stopped_state, at + self.stops_in));
        let end = [by_itself, by_stop].into_iter().flatten().min_by_key(|(_, at)| *at);
        if let Some((state, at)) = end.filter(|(_, at)| *at <= now) {
            return Phase::Ended { state: state.to_owned(), at };
        }
        if self.stopped.is_some() { Phase::Stopping } else { Phase::Active }
    }

    /// The state as it is on the wire.
    pub(super) fn state(&self, now: Instant) -> String {
        match self.phase(now) {
            Phase::Active => self.active_state.clone(),
            Phase::Stopping => "stopping".to_owned(),
            Phase::Ended { state, .. } => state,
        }
    }

    /// The record without tasks, as a stop answers it.
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

    /// The default view.
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

    /// So many task instances, in states that go with the run's own.
    pub(super) fn task_instances(&self, count: usize, now: Instant) -> Value {
        let ended_at = match self.phase(now) {
            Phase::Ended { at, .. } => Some(self.wall_time(at)),
            Phase::Active | Phase::Stopping => None,
        };
        let of = task::Of {
            run_id: &self.id,
            tenant: &self.tenant,
            run_state: &self.state(now),
            created_at: &self.created_at(),
            ended_at: ended_at.as_deref(),
        };
        (0..count).map(|index| of.task(index)).collect()
    }

    fn created_at(&self) -> String {
        timestamp(self.added_wall - Duration::from_secs(600))
    }

    fn wall_time(&self, at: Instant) -> String {
        timestamp(self.added_wall + at.saturating_duration_since(self.added))
    }
}

/// The documented error of a run that a person stopped, or one of a failed run.
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
