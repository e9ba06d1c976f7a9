//! Owns all that lies outside of the operator: the stored objects, the runs, the clocks, chance, and what happened.
//! Never knows how the operator works: it judges only what reaches it.

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
    chance::Chance,
    faults::Faults,
    promises::{Promise, Violation},
    runs::Run,
    secrets::Secrets,
};

/// Until then things go wrong; after it nothing does but for permanent faults, and everything has to come to its end.
pub const TROUBLE: Duration = Duration::from_secs(240);

/// The operator's `--request-timeout`, `--settle-time` and `--requests-per-second`.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
pub const SETTLE_TIME: Duration = Duration::from_secs(30);
pub const RATE: u32 = 10;

/// How many resources, tenants and namespaces there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Small,
    Large,
}

#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

pub struct Inner {
    pub size: Size,
    pub chance: Chance,
    /// What holds everywhere but here.
    pub off: Option<Assumption>,
    start: Instant,
    /// Objects by `namespace/name`.
    pub objects: BTreeMap<String, Value>,
    pub version: u64,
    /// Every change with its version: the object before and after it.
    pub changes: Vec<Change>,
    /// Watches that begin before this version are refused.
    pub compacted: u64,
    pub changed: Arc<Notify>,
    pub runs: BTreeMap<String, Run>,
    pub secrets: Secrets,
    pub faults: Faults,
    pub history: Vec<String>,
    pub wrong: Vec<Violation>,
    pub replicas: BTreeMap<usize, Replica>,
    /// When the claim of each resource, by its uid, was stored, and its id.
    pub claims: BTreeMap<String, (String, Instant)>,
}

#[derive(Clone)]
pub struct Change {
    pub version: u64,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// One replica as the world sees it.
#[derive(Default)]
pub struct Replica {
    /// How often it was started.
    pub life: u32,
    /// What it is told to crash by, and after how many more steps of its IO.
    fuse: Option<(Arc<Notify>, Option<u32>)>,
    /// How far its wall clock is ahead.
    clock: Milliseconds,
    /// How far it was ahead before it last jumped.
    pub clock_before: Milliseconds,
    /// When it was told of a 429 of each tenant, and until when that closes its budget.
    closed: BTreeMap<String, (Instant, Instant)>,
    /// The requests that it wrote for each tenant in the last second.
    sent: BTreeMap<String, VecDeque<Instant>>,
}

/// A time span in milliseconds that may be negative.
type Milliseconds = i64;

impl World {
    pub fn new(chance: Chance, size: Size, off: Option<Assumption>) -> Self {
        let world = Self(Arc::new(Mutex::new(Inner {
            size,
            chance,
            off,
            start: Instant::now(),
            objects: BTreeMap::new(),
            version: 100,
            changes: vec![],
            compacted: 0,
            changed: Arc::default(),
            runs: BTreeMap::new(),
            secrets: Secrets::default(),
            faults: Faults::default(),
            history: vec![],
            wrong: vec![],
            replicas: BTreeMap::new(),
            claims: BTreeMap::new(),
        })));
        world.lock().create_secrets();
        world
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// True if the world does not keep this assumption.
    pub fn is_off(&self, assumption: Assumption) -> bool {
        self.lock().off == Some(assumption)
    }

    /// The true date.
    pub fn date(&self) -> Timestamp {
        self.lock().date(0)
    }

    /// The first of these is usual; the others come with trouble of this weight, while there is trouble.
    pub fn one_of<T, const WAYS: usize>(&self, weight: f64, ways: [T; WAYS]) -> T {
        let way = {
            let mut inner = self.lock();
            if inner.start.elapsed() < TROUBLE { inner.chance.way(WAYS, weight) } else { 0 }
        };
        ways.into_iter().nth(way).unwrap()
    }

    /// True where there is trouble of this weight.
    pub fn trouble(&self, weight: f64) -> bool {
        self.one_of(weight, [false, true])
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.lock().chance.below(limit)
    }

    /// From 0 to 1.
    pub fn share(&self) -> f64 {
        self.lock().chance.share()
    }

    pub async fn pause(&self, most: Duration) {
        let share = self.share();
        tokio::time::sleep(most.mul_f64(share * share)).await;
    }

    /// A request or an answer is on its way between a replica and the API server.
    pub async fn on_the_way(&self) {
        let most = self.one_of(0.3, [20, 500, 9_000]);
        self.pause(Duration::from_millis(most)).await;
    }

    pub fn tell(&self, what: impl AsRef<str>) {
        self.lock().tell(what.as_ref());
    }

    /// One step of a replica's IO. Here it may crash; then it goes no further. Its wall clock may jump.
    pub async fn step(&self, replica: usize) {
        // Dice burn a fuse instead, so that there are not crashes only.
        let (planned, clocks_jump) = {
            let inner = self.lock();
            (matches!(inner.chance, Chance::Plan(_)), inner.faults.clocks_jump)
        };
        let planned_crash = planned && self.trouble(0.0);
        if clocks_jump && self.trouble(0.03) {
            self.jump(replica);
        }
        let crash = {
            let mut inner = self.lock();
            let (crash, left) = inner.replica(replica).fuse.as_mut().unwrap();
            let burnt = *left == Some(0);
            *left = left.map(|left| left.saturating_sub(1));
            (planned_crash || burnt).then(|| crash.clone())
        };
        if let Some(crash) = crash {
            crash.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// A replica's wall clock jumps, forwards or backwards.
    fn jump(&self, replica: usize) {
        let most = [5_000, 60_000, 3_600_000][self.below(3) as usize];
        let clock = self.below(2 * most) as i64 - most as i64;
        self.lock().set_clock(replica, clock);
    }

    /// A replica's machine is suspended and wakes up: its monotonic clock stood still, its wall clock did not.
    pub fn suspend(&self, replica: usize) {
        let slept = 7_000 + self.below(3_600_000) as i64;
        let mut inner = self.lock();
        let clock = inner.replica(replica).clock + slept;
        inner.set_clock(replica, clock);
    }
}

impl Inner {
    pub fn tell(&mut self, what: &str) {
        let at = self.start.elapsed().as_secs_f64();
        let mut line = String::new();
        write!(line, "{at:9.3} {what}").unwrap();
        self.history.push(line);
    }

    pub fn fail(&mut self, promise: Promise, what: &str) {
        let violation = Violation { promise, what: what.to_owned() };
        self.tell(&format!("WRONG: {violation:?}"));
        // What goes wrong again and again is counted once.
        if !self.wrong.iter().any(|known| known.kind() == violation.kind()) {
            self.wrong.push(violation);
        }
    }

    pub fn replica(&mut self, replica: usize) -> &mut Replica {
        self.replicas.entry(replica).or_default()
    }

    /// The date by a clock that is so many milliseconds ahead.
    pub fn date(&self, ahead: i64) -> Timestamp {
        let start = Timestamp::from_millisecond(1_800_000_000_000 + ahead).unwrap();
        start + self.start.elapsed()
    }

    /// The date by a replica's wall clock.
    pub fn wall(&self, replica: usize) -> Timestamp {
        self.date(self.replicas.get(&replica).map_or(0, |replica| replica.clock))
    }

    /// The latest date that a replica's wall clock may have shown lately.
    pub fn wall_at_most(&self, replica: usize) -> Timestamp {
        self.date(self.replicas.get(&replica).map_or(0, |replica| replica.clock.max(replica.clock_before)))
    }

    pub fn set_clock(&mut self, replica: usize, clock: i64) {
        let known = self.replica(replica);
        (known.clock_before, known.clock) = (known.clock, clock);
        // By another clock the follow timeout may not be over yet.
        for run in self.runs.values_mut() {
            run.late_reads.remove(&replica);
        }
        if clock != 0 {
            self.tell(&format!("replica {replica}: the wall clock is {:.3} s ahead", clock as f64 / 1000.0));
        }
    }

    /// A process starts as this replica; it can be crashed by what is returned.
    pub fn begin_life(&mut self, replica: usize, burns: Option<u32>) -> Arc<Notify> {
        let crash = Arc::new(Notify::new());
        let known = self.replica(replica);
        known.life += 1;
        known.fuse = Some((crash.clone(), burns));
        known.closed.clear();
        known.sent.clear();
        self.runs.values_mut().for_each(|run| run.forget(replica));
        self.tell(&format!("replica {replica} starts"));
        crash
    }

    /// Counts a request that is written for a tenant; true where it is one too many within a second.
    pub fn exceeds_rate(&mut self, replica: usize, tenant: &str) -> bool {
        let now = Instant::now();
        let sent = self.replica(replica).sent.entry(tenant.to_owned()).or_default();
        while sent.front().is_some_and(|at| Duration::from_secs(1) <= now - *at) {
            sent.pop_front();
        }
        sent.push_back(now);
        (RATE as usize) < sent.len()
    }

    /// A replica learns of a 429 that closes its budget for a tenant for so long.
    pub fn close(&mut self, replica: usize, tenant: &str, closed: Duration) {
        let now = Instant::now();
        self.replica(replica).closed.insert(tenant.to_owned(), (now, now + closed));
    }

    /// True where a 429 closes the budget of a replica, which knew of it when it sent what arrives now.
    pub fn has_closed_for_long(&mut self, replica: usize, tenant: &str) -> bool {
        let on_the_way = Duration::from_secs(20);
        let now = Instant::now();
        let closed = self.replica(replica).closed.get(tenant);
        closed.is_some_and(|(told, until)| *told + on_the_way < now && now + on_the_way < *until)
    }

    /// Stores, replaces or removes an object.
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

    /// The run as it is now.
    pub fn run(&mut self, id: &str) -> Option<&mut Run> {
        let run = self.runs.get_mut(id)?;
        if let Some((at, state)) = run.ends
            && at <= Instant::now()
        {
            run.becomes(state);
            run.ends = None;
        }
        Some(run)
    }
}
