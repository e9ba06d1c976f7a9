//! Owns all that lies outside of the operator: the stored objects, the runs, chance, and what happened.
//! Never knows how the operator works: it judges only what reaches it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{sync::Notify, time::Instant};

/// Until then things go wrong; after it nothing does, and everything has to come to its end.
pub const TROUBLE: Duration = Duration::from_secs(240);

/// The operator's `--request-timeout` and `--settle-time`.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
pub const SETTLE_TIME: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

pub struct Inner {
    pub random: StdRng,
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
    /// For each replica, how many more IO steps until it crashes.
    pub fuses: BTreeMap<usize, (u32, Arc<Notify>)>,
    /// How often things go wrong, from 0 to 1.
    pub trouble: f64,
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
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let trouble = [0.0, 0.02, 0.1, 0.3][random.random_range(0..4)];
        Self(Arc::new(Mutex::new(Inner {
            random,
            start: Instant::now(),
            objects: BTreeMap::new(),
            version: 100,
            changes: vec![],
            changed: Arc::default(),
            runs: BTreeMap::new(),
            history: vec![],
            wrong: vec![],
            fuses: BTreeMap::new(),
            trouble,
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

    /// True so often while there is trouble.
    pub fn trouble(&self, weight: f64) -> bool {
        let mut inner = self.lock();
        let roll = inner.random.random::<f64>();
        inner.start.elapsed() < TROUBLE && roll < inner.trouble * weight
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.lock().random.random_range(0..limit)
    }

    pub async fn pause(&self, most: Duration) {
        let share = self.lock().random.random::<f64>();
        tokio::time::sleep(most.mul_f64(share * share)).await;
    }

    pub fn tell(&self, what: impl AsRef<str>) {
        self.lock().tell(what.as_ref());
    }

    /// One IO step of a replica; where its fuse has burnt down it crashes here and goes no further.
    pub async fn step(&self, replica: usize) {
        let crash = {
            let mut inner = self.lock();
            match inner.fuses.get_mut(&replica) {
                Some((left, crash)) if *left == 0 => Some(crash.clone()),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
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
