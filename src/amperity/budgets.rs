//! Owns the budgets of all tenants and the steps in flight: which tenant is to be looked at next, and which steps may start.
//! Never waits, and never sends anything.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::amperity::{
    endpoint::BudgetKey,
    step_shares::StepShares,
    tenant_budget::{Granted, Next, TenantBudget},
    wait_queue::{Place, Requester, Standing},
};
use crate::bounded_map::BoundedMap;
use crate::turns::Turns;

/// The capacity for steps in flight. Each has at most one connection open at a time, to the API server or to Amperity,
/// which takes about 60 KiB with its buffers.
pub const STEPS: usize = 750;

/// The capacity for steps that prepare their first request, with a Secret or a claim: twice the requests that the
/// operator sends to the API server at a time. More would only wait for these.
pub const STARTING: usize = 128;

/// The same while resources are listed. The API server ends a streaming list that cannot keep up with the changes of the
/// listed resources, and each claim is one. Repeated requests, and those after a token request, are not counted.
pub const STARTING_WHILE_LISTING: usize = 16;

/// The largest number of blocked tenants that are looked at when a step leaves its share. The others are looked at when
/// the next one does.
const LOOKED_AT: usize = 64;

/// Stands for all namespaces among the blocked ones: no namespace has this name.
const ANY: &str = "";

/// The largest number of accepted credentials that are remembered. Others are accepted anew by their next answer.
const MOST_ACCEPTED: usize = 8192;

/// The time after which the budget of a tenant without requests is looked at again, to remove it.
pub const IDLE_CHECK: Duration = Duration::from_secs(10);

/// A step that waits for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The id that its owner gave it.
    pub id: u64,
    /// The part of [`STEPS`] that it takes while it is in flight, at least 1: steps of large objects take more.
    pub weight: u8,
}

/// The waiter of a request.
pub enum Waiter {
    /// A step that starts when it gets a slot: the fields of [`Step`], which take less memory here.
    Step {
        /// See [`Step::id`].
        id: u64,
        /// See [`Step::weight`].
        weight: u8,
    },
    /// A request of a step in flight.
    InFlight(oneshot::Sender<Granted>),
}

/// A step that may start.
pub struct StartedStep {
    /// The id that its owner gave it.
    pub id: u64,
    /// Its budget.
    pub key: BudgetKey,
    /// Its requester.
    pub requester: Requester,
    /// Its slot.
    pub granted: Granted,
    /// The part of [`STEPS`] that it takes.
    pub taken: usize,
}

/// The budgets of all tenants, and the steps in flight.
pub struct Budgets {
    /// The tenants that are not idle.
    pub tenants: HashMap<BudgetKey, TenantBudget<Waiter>>,
    /// The tenants by the time at which the next slot may be granted.
    due: BTreeSet<(Instant, BudgetKey)>,
    due_at: HashMap<BudgetKey, Instant>,
    /// Steps in flight.
    in_flight: StepShares,
    /// Those of them that prepare their first request.
    starting: StepShares,
    /// The tenants in whose queues steps of a namespace wait for others to leave their shares.
    blocked: Blocked,
    /// The credentials that each tenant has accepted: namespace and name of the Secret. They are remembered also while the
    /// tenant has no budget.
    accepted: BoundedMap<(BudgetKey, Arc<str>, Arc<str>), ()>,
    /// Steps that may start.
    started: VecDeque<StartedStep>,
    /// True if a tenant is due earlier than before.
    due_earlier: bool,
    per_second: u32,
}

/// The tenants that are blocked for a namespace, each once. Namespaces take turns; within one, those that were added first
/// come first.
#[derive(Default)]
struct Blocked {
    /// Each with its position.
    order: Turns<u64, (u64, BudgetKey)>,
    members: HashSet<(Arc<str>, BudgetKey)>,
    /// The last position.
    last: u64,
}

impl Blocked {
    fn push(&mut self, namespace: Arc<str>, key: &BudgetKey) {
        if self.members.insert((namespace.clone(), key.clone())) {
            self.last += 1;
            self.order.push(&namespace, self.last, (self.last, key.clone()));
        }
    }

    /// Removes the next one of a namespace that is `allowed`, of those that were added up to `last`.
    fn pop(&mut self, last: u64, allowed: impl Fn(&Arc<str>) -> bool) -> Option<BudgetKey> {
        let (namespace, _, (_, key)) =
            self.order.pop(|namespace, (position, _)| *position <= last && allowed(namespace))?;
        self.members.remove(&(namespace, key.clone()));
        Some(key)
    }
}

fn credentials(key: &BudgetKey, requester: &Requester) -> (BudgetKey, Arc<str>, Arc<str>) {
    (key.clone(), requester.namespace.clone(), requester.secret.clone())
}

impl Budgets {
    /// Creates budgets of `per_second` requests in any sliding second, for each tenant.
    pub fn new(per_second: u32) -> Self {
        Self {
            tenants: HashMap::new(),
            due: BTreeSet::new(),
            due_at: HashMap::new(),
            in_flight: StepShares::new(STEPS),
            starting: StepShares::new(STARTING),
            blocked: Blocked::default(),
            accepted: BoundedMap::new(MOST_ACCEPTED),
            started: VecDeque::new(),
            due_earlier: false,
            per_second,
        }
    }

    /// Adds a request that waits for a slot.
    pub fn push(&mut self, key: &BudgetKey, requester: &Requester, waiter: Waiter) -> Place {
        let standing = match &waiter {
            Waiter::InFlight(_) => Standing::InFlight,
            Waiter::Step { .. } if self.accepted.get(&credentials(key, requester)).is_some() => Standing::Accepted,
            Waiter::Step { .. } => Standing::Unaccepted,
        };
        self.update(key, |tenant| tenant.queue.push(requester, standing, waiter))
    }

    /// Records that the tenant accepted the credentials of a request, which then leave the share of unaccepted ones.
    pub fn accept_credentials(&mut self, key: &BudgetKey, requester: &Requester) {
        let credentials = credentials(key, requester);
        if self.accepted.get(&credentials).is_none() {
            self.accepted.insert(&requester.namespace, credentials, 1, ());
            self.update(key, |tenant| tenant.queue.accept(&requester.namespace, &requester.secret));
        }
    }

    /// Records that the tenant refused the credentials of a request. Requests that wait already keep their place.
    pub fn refuse_credentials(&mut self, key: &BudgetKey, requester: &Requester) {
        self.accepted.remove(&credentials(key, requester));
    }

    /// Accesses the budget of one tenant, and grants what may be granted then.
    pub fn update<T>(&mut self, key: &BudgetKey, work: impl FnOnce(&mut TenantBudget<Waiter>) -> T) -> T {
        let per_second = self.per_second;
        let tenant = self.tenants.entry(key.clone()).or_insert_with(|| TenantBudget::new(per_second));
        let result = work(tenant);
        self.grant(key, Instant::now());
        result
    }

    /// Grants slots of one tenant, until none is left or no request may go on.
    fn grant(&mut self, key: &BudgetKey, now: Instant) {
        let look_again_at = loop {
            let Some(tenant) = self.tenants.get_mut(key) else { break None };
            let (in_flight, starting) = (&self.in_flight, &self.starting);
            let is_full = !in_flight.has_room() || !starting.has_room();
            let full = RefCell::new(HashSet::new());
            let next = tenant.next(now, |namespace, waiter, late| match waiter {
                Waiter::InFlight(_) => true,
                Waiter::Step { .. } if late || is_full => false,
                Waiter::Step { id: _, weight } => {
                    let fits = in_flight.fits(namespace, key, (*weight).into()) && starting.fits(namespace, key, 1);
                    if !fits {
                        full.borrow_mut().insert(namespace.clone());
                    }
                    fits
                }
            });
            match next {
                Next::Slot(granted, _, Waiter::InFlight(waiter)) => {
                    if waiter.send(granted).is_err() {
                        tenant.release(granted.id, true);
                    }
                }
                Next::Slot(granted, requester, Waiter::Step { id, weight }) => {
                    let taken = self.in_flight.take(&requester.namespace, key, weight.into());
                    self.starting.take(&requester.namespace, key, 1);
                    self.started.push_back(StartedStep { id, key: key.clone(), requester, granted, taken });
                }
                Next::At(then) => break Some(then),
                Next::Blocked => {
                    if is_full {
                        self.blocked.push(ANY.into(), key);
                    }
                    for namespace in full.into_inner() {
                        self.blocked.push(namespace, key);
                    }
                    break tenant.next_lapse();
                }
                Next::Empty if tenant.is_idle(now) => {
                    self.tenants.remove(key);
                    break None;
                }
                Next::Empty => break Some(now + IDLE_CHECK),
            }
        };
        let before = self.due_at.remove(key);
        if let Some(before) = before {
            self.due.remove(&(before, key.clone()));
        }
        if let Some(then) = look_again_at {
            self.due_earlier |= before.is_none_or(|before| then < before);
            self.due.insert((then, key.clone()));
            self.due_at.insert(key.clone(), then);
        }
    }

    /// Grants the slots that are due. Returns when to call it again.
    pub fn grant_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some((_, key)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
            self.grant(&key, now);
        }
        self.due.first().map(|(at, _)| *at)
    }

    /// Grants the slots of one tenant if they are due. Returns when to call it again.
    pub fn grant_due_of(&mut self, key: &BudgetKey, now: Instant) -> Option<Instant> {
        if self.due_at.get(key).is_some_and(|at| *at <= now) {
            self.grant(key, now);
        }
        self.due_at.get(key).copied()
    }

    /// Returns true if a tenant is due earlier than at the last call.
    pub fn take_due_earlier(&mut self) -> bool {
        std::mem::take(&mut self.due_earlier)
    }

    /// Returns true if there are steps that may start.
    pub fn has_started(&self) -> bool {
        !self.started.is_empty()
    }

    /// Removes the next step that may start.
    pub fn next_step(&mut self) -> Option<StartedStep> {
        self.started.pop_front()
    }

    /// Gives back what a step got that no longer starts.
    pub fn cancel_step(&mut self, id: u64) {
        let Some(index) = self.started.iter().position(|step| step.id == id) else { return };
        let Some(step) = self.started.remove(index) else { return };
        self.update(&step.key, |tenant| tenant.release(step.granted.id, true));
        self.starting.give_back(&step.requester.namespace, &step.key, 1);
        self.end_step(&step.requester.namespace, &step.key, step.taken);
    }

    /// Records that a step is prepared, waits for another slot, or has ended, and starts those that it kept from starting.
    pub fn end_start(&mut self, namespace: &Arc<str>, key: &BudgetKey) {
        self.starting.give_back(namespace, key, 1);
        self.grant_blocked();
    }

    /// Sets whether resources are listed.
    pub fn set_listing(&mut self, is_listing: bool) {
        self.starting.set_reserve(if is_listing { STARTING - STARTING_WHILE_LISTING } else { 0 });
        self.grant_blocked();
    }

    /// Ends a step in flight, and starts those that it kept from starting.
    pub fn end_step(&mut self, namespace: &Arc<str>, key: &BudgetKey, taken: usize) {
        self.in_flight.give_back(namespace, key, taken);
        self.grant_blocked();
    }

    /// Grants slots of the tenants that are blocked for a namespace which has room again. Those that are still blocked are
    /// added anew, behind the others.
    fn grant_blocked(&mut self) {
        let (now, last) = (Instant::now(), self.blocked.last);
        for _ in 0..LOOKED_AT {
            let Self { in_flight, starting, .. } = self;
            if !in_flight.has_room() || !starting.has_room() {
                return;
            }
            let has_room = |name: &Arc<str>| **name == *ANY || (in_flight.fits_any(name) && starting.fits_any(name));
            let Some(key) = self.blocked.pop(last, has_room) else { return };
            self.grant(&key, now);
        }
    }
}
