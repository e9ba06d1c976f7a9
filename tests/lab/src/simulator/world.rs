//! Owns what the simulated API knows at an instant: runs, tokens, limits, faults and holds, behind one lock.
//! Never waits and never answers: the handler asks it, and lets go of the lock before it waits.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::HoldPoint;
use super::fault::{Fault, Faults, RetryAfter, Rule};
use super::record::{Journal, Kind};
use super::run::Run;
use super::tokens::Tokens;

/// Shared by the simulator's handle, its connections and its handlers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) journal: Journal,
    /// True when the simulator was dropped: handlers that still wait then end.
    pub(super) ended: watch::Sender<bool>,
    world: Mutex<World>,
}

#[derive(Debug)]
pub(super) struct World {
    runs: HashMap<(String, String), Run>,
    pub(super) tokens: Tokens,
    pub(super) limit: Limit,
    pub(super) on_stop: Faults,
    pub(super) on_read: Faults,
    pub(super) on_token: Faults,
    pub(super) rule: Option<Rule>,
    /// Sent with every answer, e.g. `Deprecation`.
    pub(super) answer_headers: Vec<(String, String)>,
    holds: Vec<(HoldPoint, Arc<Semaphore>)>,
    requests: usize,
}

/// So many requests of a tenant in any sliding second.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) per_second: Option<usize>,
    pub(super) retry_after: Option<RetryAfter>,
    admitted: HashMap<String, VecDeque<Instant>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Shared {
            journal: Journal::new(),
            ended: watch::Sender::new(false),
            world: Mutex::new(World {
                runs: HashMap::new(),
                tokens: Tokens::new(),
                limit: Limit { per_second: None, retry_after: None, admitted: HashMap::new() },
                on_stop: Faults::default(),
                on_read: Faults::default(),
                on_token: Faults::default(),
                rule: None,
                answer_headers: Vec::new(),
                holds: Vec::new(),
                requests: 0,
            }),
        }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        // A test that panicked elsewhere must not hide its own message behind a poisoned lock.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as stops are held at this point.
    pub(super) async fn pass(&self, point: HoldPoint) {
        let held: Vec<_> = {
            let world = self.world();
            let at_point = world.holds.iter().filter(|(at, _)| *at == point);
            at_point.map(|(_, gate)| Arc::clone(gate)).collect()
        };
        for gate in held {
            // An error means that the gate was opened for good.
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
        }
    }
}

impl World {
    pub(super) fn put(&mut self, tenant: &str, run: Run) {
        self.runs.insert((tenant.to_owned(), run.id.clone()), run);
    }

    pub(super) fn run(&mut self, tenant: &str, id: &str) -> Option<&mut Run> {
        self.runs.get_mut(&(tenant.to_owned(), id.to_owned()))
    }

    pub(super) fn pass_others(&mut self, held: &Arc<Semaphore>) {
        self.holds.retain(|(_, gate)| !Arc::ptr_eq(gate, held));
    }

    /// What this request meets instead of its proper answer.
    pub(super) fn fault(&mut self, kind: Kind, run_id: &str) -> Option<Fault> {
        let waiting = match kind {
            Kind::Stop => self.on_stop.next(run_id),
            Kind::Read => self.on_read.next(run_id),
            Kind::Token => self.on_token.next(""),
            Kind::Other => None,
        };
        waiting.or_else(|| self.rule.as_mut().and_then(|Rule(rule)| rule(kind, run_id)))
    }

    pub(super) fn hold(&mut self, point: HoldPoint) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.holds.retain(|(_, gate)| !gate.is_closed());
        self.holds.push((point, Arc::clone(&gate)));
        gate
    }

    pub(super) fn next_request_id(&mut self) -> String {
        self.requests += 1;
        format!("req-{}", self.requests)
    }
}

impl Limit {
    /// Whether this request is within the limit; if so, it counts.
    pub(super) fn admit(&mut self, tenant: &str, at: Instant) -> bool {
        let Some(per_second) = self.per_second else {
            return true;
        };
        let admitted = self.admitted.entry(tenant.to_owned()).or_default();
        while admitted.front().is_some_and(|first| *first + Duration::from_secs(1) <= at) {
            admitted.pop_front();
        }
        if admitted.len() >= per_second {
            return false;
        }
        admitted.push_back(at);
        true
    }

    /// A request that was answered 429 for another reason does not count after all.
    pub(super) fn release(&mut self, tenant: &str, at: Instant) {
        if let Some(admitted) = self.admitted.get_mut(tenant)
            && let Some(index) = admitted.iter().rposition(|admitted| *admitted == at)
        {
            admitted.remove(index);
        }
    }
}
