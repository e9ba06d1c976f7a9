//! Owns the state outside of the operator: stored objects, runs, clocks, the source of choices, and the history.
//! Never knows how the operator works: it sees only the requests that reach it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{sync::Notify, time::Instant};

use crate::{
    assumptions::Assumption,
    choices::Choices,
    faults::Faults,
    promises::{Promise, Violation},
    runs::Run,
    secrets::Secrets,
};

/// The time in which faults are injected. After it only permanent faults are left, and every resource has to finish.
pub const FAULT_PERIOD: Duration = Duration::from_secs(240);

/// The operator's `--request-timeout`, `--settle-time` and `--requests-per-second`.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
pub const SETTLE_TIME: Duration = Duration::from_secs(30);
pub const RATE: u32 = 10;

/// The size of a world: numbers of resources, tenants and namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Small,
    Large,
}

#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

pub struct Inner {
    pub size: Size,
    pub choices: Choices,
    /// The assumption that does not hold in this world.
    pub off: Option<Assumption>,
    start: Instant,
    /// Objects by `namespace/name`.
    pub objects: BTreeMap<String, Value>,
    pub version: u64,
    /// Every change of an object, by version.
    pub changes: Vec<Change>,
    /// Watches and tokens of lists that start before this version expire.
    pub compacted: u64,
    /// The objects of each list that were not returned yet, by the token of the next page.
    pub next_pages: BTreeMap<String, Vec<Value>>,
    pub changed: Arc<Notify>,
    pub runs: BTreeMap<String, Run>,
    pub secrets: Secrets,
    pub faults: Faults,
    pub history: Vec<String>,
    pub violations: Vec<Violation>,
    pub replicas: BTreeMap<usize, Replica>,
    /// The id of the last claim of each resource and the time at which it was stored, by the resource's uid.
    pub claims: BTreeMap<String, (String, Instant)>,
}

/// A change of an object.
#[derive(Clone)]
pub struct Change {
    pub version: u64,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// The state of a replica outside of the operator.
#[derive(Default)]
pub struct Replica {
    /// The number of its starts.
    pub incarnation: u32,
    /// The signal that crashes it, and the number of IO steps until then, if it is to crash.
    crash: Option<(Arc<Notify>, Option<u32>)>,
    /// The offset of its wall clock from the true date.
    clock: Milliseconds,
    /// The offset before the last jump.
    pub clock_before: Milliseconds,
    /// The time at which it received the last 429 of each tenant, and the end of the `Retry-After`.
    rate_limited: BTreeMap<String, (Instant, Instant)>,
    /// The times of the requests that it wrote for each tenant in the last second.
    sent: BTreeMap<String, VecDeque<Instant>>,
}

/// A time span in milliseconds; it may be negative.
type Milliseconds = i64;

impl World {
    pub fn new(choices: Choices, size: Size, off: Option<Assumption>) -> Self {
        let world = Self(Arc::new(Mutex::new(Inner {
            size,
            choices,
            off,
            start: Instant::now(),
            objects: BTreeMap::new(),
            version: 100,
            changes: vec![],
            compacted: 0,
            next_pages: BTreeMap::new(),
            changed: Arc::default(),
            runs: BTreeMap::new(),
            secrets: Secrets::default(),
            faults: Faults::default(),
            history: vec![],
            violations: vec![],
            replicas: BTreeMap::new(),
            claims: BTreeMap::new(),
        })));
        world.lock().create_secrets();
        world
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Returns true if this assumption does not hold in this world.
    pub fn is_off(&self, assumption: Assumption) -> bool {
        self.lock().off == Some(assumption)
    }

    /// Returns the true date.
    pub fn date(&self) -> Timestamp {
        self.lock().date(0)
    }

    /// Chooses one of the options. The first one is the undisturbed case and the only one after the fault period; the
    /// others are faults of this weight.
    pub fn choose<T, const OPTIONS: usize>(&self, weight: f64, options: [T; OPTIONS]) -> T {
        let option = {
            let mut inner = self.lock();
            if inner.start.elapsed() < FAULT_PERIOD { inner.choices.option(OPTIONS, weight) } else { 0 }
        };
        options.into_iter().nth(option).expect("a plan names an option that exists")
    }

    /// Returns true if a fault of this weight is injected here.
    pub fn fault_occurs(&self, weight: f64) -> bool {
        self.choose(weight, [false, true])
    }

    /// Returns a number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        self.lock().choices.below(limit)
    }

    /// Returns a number from 0 to 1.
    pub fn fraction(&self) -> f64 {
        self.lock().choices.fraction()
    }

    /// Waits for at most `max`; short delays are the most likely ones.
    pub async fn delay(&self, max: Duration) {
        let fraction = self.fraction();
        tokio::time::sleep(max.mul_f64(fraction * fraction)).await;
    }

    /// Waits for as long as a request or response travels between a replica and the API server.
    pub async fn network_delay(&self) {
        let max = self.choose(0.3, [20, 500, 9_000]);
        self.delay(Duration::from_millis(max)).await;
    }

    /// Adds a line to the history.
    pub fn log(&self, what: impl AsRef<str>) {
        self.lock().log(what.as_ref());
    }

    /// Marks one step of a replica's IO. The replica may crash here, then this never returns; its wall clock may jump.
    pub async fn step(&self, replica: usize) {
        // With a seed the crash is drawn when the process starts: with a draw at each step none would run for long.
        let (planned, clocks_jump) = {
            let inner = self.lock();
            (matches!(inner.choices, Choices::Plan(_)), inner.faults.clocks_jump)
        };
        let planned_crash = planned && self.fault_occurs(0.0);
        if clocks_jump && self.fault_occurs(0.03) {
            self.jump(replica);
        }
        let crash = {
            let mut inner = self.lock();
            let (crash, steps_left) = inner.replica(replica).crash.as_mut().unwrap();
            let is_due = *steps_left == Some(0);
            *steps_left = steps_left.map(|steps| steps.saturating_sub(1));
            (planned_crash || is_due).then(|| crash.clone())
        };
        if let Some(crash) = crash {
            crash.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// Lets a replica's wall clock jump, forwards or backwards.
    fn jump(&self, replica: usize) {
        let max = [5_000, 60_000, 3_600_000][self.below(3) as usize];
        let clock = self.below(2 * max) as i64 - max as i64;
        self.lock().set_clock(replica, clock);
    }

    /// Suspends and resumes a replica's machine: its wall clock has advanced, its monotonic clock has not.
    pub fn suspend(&self, replica: usize) {
        let suspended = 7_000 + self.below(3_600_000) as i64;
        let mut inner = self.lock();
        let clock = inner.replica(replica).clock + suspended;
        inner.set_clock(replica, clock);
    }
}

impl Inner {
    /// Adds a line to the history, with the virtual time in seconds.
    pub fn log(&mut self, what: &str) {
        let at = self.start.elapsed().as_secs_f64();
        let mut line = String::new();
        write!(line, "{at:9.3} {what}").unwrap();
        self.history.push(line);
    }

    /// Records a violation.
    pub fn fail(&mut self, promise: Promise, what: &str) {
        let violation = Violation { promise, what: what.to_owned() };
        self.log(&format!("VIOLATION: {violation:?}"));
        // Each kind is recorded once.
        if !self.violations.iter().any(|known| known.kind() == violation.kind()) {
            self.violations.push(violation);
        }
    }

    pub fn replica(&mut self, replica: usize) -> &mut Replica {
        self.replicas.entry(replica).or_default()
    }

    /// Returns the date by a clock with this offset from the true date.
    pub fn date(&self, offset: Milliseconds) -> Timestamp {
        let start = Timestamp::from_millisecond(1_800_000_000_000 + offset).unwrap();
        start + self.start.elapsed()
    }

    /// Returns the date by a replica's wall clock.
    pub fn wall(&self, replica: usize) -> Timestamp {
        self.date(self.replicas.get(&replica).map_or(0, |replica| replica.clock))
    }

    /// Returns the latest date that a replica's wall clock may have shown recently: before or after its last jump.
    pub fn wall_at_most(&self, replica: usize) -> Timestamp {
        self.date(self.replicas.get(&replica).map_or(0, |replica| replica.clock.max(replica.clock_before)))
    }

    /// Sets the offset of a replica's wall clock.
    pub fn set_clock(&mut self, replica: usize, clock: Milliseconds) {
        let known = self.replica(replica);
        (known.clock_before, known.clock) = (known.clock, clock);
        // By the new clock the follow timeout may not be over yet.
        for run in self.runs.values_mut() {
            run.late_reads.remove(&replica);
        }
        if clock != 0 {
            self.log(&format!("replica {replica}: the wall clock is {:.3} s ahead", clock as f64 / 1000.0));
        }
    }

    /// Starts a new process of a replica, which is to crash after this number of IO steps. Returns the crash signal.
    pub fn start_process(&mut self, replica: usize, crash_after: Option<u32>) -> Arc<Notify> {
        let crash = Arc::new(Notify::new());
        let known = self.replica(replica);
        known.incarnation += 1;
        known.crash = Some((crash.clone(), crash_after));
        known.rate_limited.clear();
        known.sent.clear();
        self.runs.values_mut().for_each(|run| run.forget(replica));
        self.log(&format!("replica {replica} starts"));
        crash
    }

    /// Counts a request for a tenant. Returns true if it exceeds the rate limit of the last second.
    pub fn exceeds_rate(&mut self, replica: usize, tenant: &str) -> bool {
        let now = Instant::now();
        let sent = self.replica(replica).sent.entry(tenant.to_owned()).or_default();
        while sent.front().is_some_and(|at| Duration::from_secs(1) <= now - *at) {
            sent.pop_front();
        }
        sent.push_back(now);
        (RATE as usize) < sent.len()
    }

    /// Records that a replica received a 429 with this `Retry-After` for a tenant.
    pub fn rate_limited(&mut self, replica: usize, tenant: &str, retry_after: Duration) {
        let now = Instant::now();
        self.replica(replica).rate_limited.insert(tenant.to_owned(), (now, now + retry_after));
    }

    /// Returns true if a 429 closes the replica's budget, and did when the replica sent the write that arrives now.
    pub fn is_rate_limited(&mut self, replica: usize, tenant: &str) -> bool {
        let max_write_time = Duration::from_secs(20);
        let now = Instant::now();
        let known = self.replica(replica).rate_limited.get(tenant);
        known.is_some_and(|(received, until)| *received + max_write_time < now && now + max_write_time < *until)
    }

    /// Stores, replaces or removes an object. Returns the stored object.
    pub fn put(&mut self, key: &str, object: Option<Value>) -> Option<Value> {
        self.version += 1;
        let object = object.map(|mut object| {
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            object
        });
        let before = match &object {
            Some(object) => self.objects.insert(key.to_owned(), object.clone()),
            None => self.objects.remove(key),
        };
        self.changes.push(Change { version: self.version, before, after: object.clone() });
        self.changed.notify_waiters();
        object
    }

    /// Returns a run in its current state.
    pub fn run(&mut self, id: &str) -> Option<&mut Run> {
        let run = self.runs.get_mut(id)?;
        if let Some((at, state)) = run.next_state
            && at <= Instant::now()
        {
            run.set_state(state);
            run.next_state = None;
        }
        Some(run)
    }
}
