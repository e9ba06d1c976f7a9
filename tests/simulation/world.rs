//! Owns all that lies outside of the operator: the stored objects, the runs, chance, and what happened.
//! Never knows how the operator works: it judges only what reaches it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{sync::Notify, time::Instant};

use crate::chance::Chance;

/// Until then things go wrong; after it nothing does, and everything has to come to its end.
pub const TROUBLE: Duration = Duration::from_secs(240);

/// The operator's `--request-timeout` and `--settle-time`.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
pub const SETTLE_TIME: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

pub struct Inner {
    pub chance: Chance,
    start: Instant,
    /// Objects by name.
    pub objects: BTreeMap<String, Value>,
    pub version: u64,
    /// Every change with its version: the object before and after it.
    pub changes: Vec<(u64, Option<Value>, Option<Value>)>,
    pub changed: Arc<Notify>,
    pub runs: BTreeMap<String, Run>,
    pub history: Vec<String>,
    pub wrong: Vec<String>,
    /// What each replica is told to crash by, and after how many more steps of its IO.
    pub fuses: BTreeMap<usize, (Arc<Notify>, Option<u32>)>,
    /// When each replica was told of a 429, and until when that closes its budget.
    pub closed: BTreeMap<usize, (Instant, Instant)>,
}

#[derive(Clone)]
pub struct Run {
    pub uid: String,
    pub readable: bool,
    pub state: &'static str,
    /// When it reaches its next state by itself.
    pub ends: Option<(Instant, &'static str)>,
    pub posts: Vec<Post>,
    /// Until then readers do not see that a stop took effect.
    pub hidden: Option<Instant>,
}

/// A stop request that was written.
#[derive(Clone)]
pub struct Post {
    /// It took effect.
    pub effect: bool,
    /// It may still take effect.
    pub pending: bool,
    /// It was answered with a server error.
    pub server_error: bool,
    /// It was answered with a success.
    pub success: bool,
}

impl World {
    pub fn new(chance: Chance) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            chance,
            start: Instant::now(),
            objects: BTreeMap::new(),
            version: 100,
            changes: vec![],
            changed: Arc::default(),
            runs: BTreeMap::new(),
            history: vec![],
            wrong: vec![],
            fuses: BTreeMap::new(),
            closed: BTreeMap::new(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// The date by a clock that is so many seconds ahead.
    pub fn date(&self, skew: i64) -> Timestamp {
        let elapsed = self.lock().start.elapsed();
        Timestamp::from_second(1_800_000_000 + skew).unwrap() + elapsed
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

    /// One step of a replica's IO. Here it may crash; then it goes no further.
    pub async fn step(&self, replica: usize) {
        // Dice burn a fuse instead, so that there are not crashes only.
        let planned = matches!(self.lock().chance, Chance::Plan(_)) && self.trouble(0.0);
        let crash = {
            let mut inner = self.lock();
            let (crash, left) = inner.fuses.get_mut(&replica).unwrap();
            let burnt = *left == Some(0);
            *left = left.map(|left| left.saturating_sub(1));
            (planned || burnt).then(|| crash.clone())
        };
        if let Some(crash) = crash {
            crash.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

impl Inner {
    pub fn tell(&mut self, what: &str) {
        let at = self.start.elapsed().as_secs_f64();
        let mut line = String::new();
        write!(line, "{at:9.3} {what}").unwrap();
        self.history.push(line);
    }

    pub fn fail(&mut self, what: &str) {
        self.tell(&format!("WRONG: {what}"));
        self.wrong.push(what.to_owned());
    }

    /// True where a 429 closes the budget of a replica, which knew of it when it sent what arrives now.
    pub fn has_closed_for_long(&self, replica: usize) -> bool {
        let on_the_way = Duration::from_secs(20);
        let now = Instant::now();
        self.closed.get(&replica).is_some_and(|(told, until)| *told + on_the_way < now && now + on_the_way < *until)
    }

    /// Stores, replaces or removes an object.
    pub fn put(&mut self, name: &str, object: Option<Value>) -> Option<Value> {
        self.version += 1;
        let object = object.map(|mut object| {
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            object
        });
        let before = match &object {
            Some(object) => self.objects.insert(name.to_owned(), object.clone()),
            None => self.objects.remove(name),
        };
        self.changes.push((self.version, before, object.clone()));
        self.changed.notify_waiters();
        object
    }

    /// The run as it is now.
    pub fn run(&mut self, id: &str) -> Option<&mut Run> {
        let run = self.runs.get_mut(id)?;
        if let Some((at, state)) = run.ends
            && at <= Instant::now()
        {
            (run.state, run.ends) = (state, None);
        }
        Some(run)
    }
}
