//! Owns the state of the simulated API behind one lock: runs, tokens, rate limit, faults and holds.
//! Never waits while the lock is held, and never creates a response.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::HoldPoint;
use super::fault::{Fault, FaultRule, Faults, RetryAfter};
use super::request_log::{Kind, RequestLog};
use super::run::Run;
use super::tokens::Tokens;

/// Shared by the simulator's handle, its connections and its handlers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) requests: RequestLog,
    /// The connections that were accepted, with TLS those whose handshake is complete.
    pub(super) connections: AtomicUsize,
    /// True once the simulator is dropped, which ends waiting handlers.
    pub(super) ended: watch::Sender<bool>,
    state: Mutex<ApiState>,
}

#[derive(Debug)]
pub(super) struct ApiState {
    runs: HashMap<(String, String), Run>,
    pub(super) tokens: Tokens,
    pub(super) limit: RateLimit,
    pub(super) on_stop: Faults,
    pub(super) on_read: Faults,
    pub(super) on_token: Faults,
    pub(super) rule: Option<FaultRule>,
    /// Sent with every response, e.g. `Deprecation`.
    pub(super) response_headers: Vec<(String, String)>,
    holds: Vec<(HoldPoint, Arc<Semaphore>)>,
    error_count: usize,
}

/// A limit of the requests of each tenant in any sliding second.
#[derive(Debug)]
pub(super) struct RateLimit {
    pub(super) per_second: Option<usize>,
    pub(super) retry_after: Option<RetryAfter>,
    admitted: HashMap<String, VecDeque<Instant>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Shared {
            requests: RequestLog::new(),
            connections: AtomicUsize::new(0),
            ended: watch::Sender::new(false),
            state: Mutex::new(ApiState {
                runs: HashMap::new(),
                tokens: Tokens::new(),
                limit: RateLimit { per_second: None, retry_after: None, admitted: HashMap::new() },
                on_stop: Faults::default(),
                on_read: Faults::default(),
                on_token: Faults::default(),
                rule: None,
                response_headers: Vec::new(),
                holds: Vec::new(),
                error_count: 0,
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ApiState> {
        // A poisoned lock must not hide the message of the test that panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while stops are held at this point.
    pub(super) async fn wait_at(&self, point: HoldPoint) {
        let held: Vec<_> = {
            let state = self.lock();
            let at_point = state.holds.iter().filter(|(at, _)| *at == point);
            at_point.map(|(_, semaphore)| Arc::clone(semaphore)).collect()
        };
        for semaphore in held {
            // An error means that the hold was released.
            if let Ok(permit) = semaphore.acquire().await {
                permit.forget();
            }
        }
    }
}

impl ApiState {
    pub(super) fn add_run(&mut self, tenant: &str, run: Run) {
        self.runs.insert((tenant.to_owned(), run.id.clone()), run);
    }

    pub(super) fn run(&mut self, tenant: &str, id: &str) -> Option<&mut Run> {
        self.runs.get_mut(&(tenant.to_owned(), id.to_owned()))
    }

    /// Removes a hold without releasing the stops that wait at it.
    pub(super) fn pass_new_stops(&mut self, held: &Arc<Semaphore>) {
        self.holds.retain(|(_, semaphore)| !Arc::ptr_eq(semaphore, held));
    }

    /// Returns the fault of this request: queued, permanent or by rule.
    pub(super) fn fault(&mut self, kind: Kind, run_id: &str) -> Option<Fault> {
        let fault = match kind {
            Kind::Stop => self.on_stop.next(run_id),
            Kind::Read => self.on_read.next(run_id),
            Kind::Token => self.on_token.next(""),
            Kind::Other => None,
        };
        fault.or_else(|| self.rule.as_mut().and_then(|FaultRule(rule)| rule(kind, run_id)))
    }

    /// Adds a hold at this point.
    pub(super) fn hold(&mut self, point: HoldPoint) -> Arc<Semaphore> {
        let semaphore = Arc::new(Semaphore::new(0));
        self.holds.retain(|(_, semaphore)| !semaphore.is_closed());
        self.holds.push((point, Arc::clone(&semaphore)));
        semaphore
    }

    pub(super) fn next_request_id(&mut self) -> String {
        self.error_count += 1;
        format!("req-{}", self.error_count)
    }
}

impl RateLimit {
    /// Counts this request if it is within the limit, and returns whether it is.
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

    /// Removes a request from the count, after a 429 for another reason.
    pub(super) fn release(&mut self, tenant: &str, at: Instant) {
        if let Some(admitted) = self.admitted.get_mut(tenant)
            && let Some(index) = admitted.iter().rposition(|admitted| *admitted == at)
        {
            admitted.remove(index);
        }
    }
}
