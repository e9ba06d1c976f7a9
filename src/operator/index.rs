//! Owns the index of the unfinished resources: for each only what a decision needs, and what it waits for.
//! Never does IO, and decides nothing.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{Hash, Hasher},
    sync::Arc,
};

use tokio::time::Instant;
use workflow_run_stop_api::WorkflowRunStop;

use crate::amperity::{
    budget::Started,
    endpoint::BudgetKey,
    purpose::Purpose,
    wait_queue::{Place, Requester},
};
use crate::observe::reporter::ResourceReport;
use crate::reconcile::{
    facts::Facts,
    resource_id::ResourceId,
    tracked::{Announcement, Memory},
};

/// The number of whole resources that are kept for their next step.
const MOST_FRESH: usize = 32;

/// The size of a resource that adds 1 to the weight of its step, in bytes. A step holds the resource several times, decoded
/// and as text.
const BYTES_PER_WEIGHT: usize = 16 * 1024;

/// The largest weight: etcd stores at most 1.5 MiB of a resource by default.
const MAX_WEIGHT: u8 = 96;

/// The number of a resource in the index.
pub type Number = u64;

/// One unfinished resource.
pub struct Entry {
    /// Its identity.
    pub id: Arc<ResourceId>,
    /// The index of the watch that it belongs to.
    pub stream: usize,
    /// The list in which it was seen last.
    pub list: u32,
    /// The facts of its newest version.
    pub facts: Facts,
    /// The memory of this process about it.
    pub memory: Option<Box<Memory>>,
    /// The budget that its requests count in; `None` if no request may be sent to its endpoint.
    pub budget: Option<BudgetKey>,
    /// The part of the steps in flight that a step of it takes, see [`weight`].
    pub weight: u8,
    /// The state of its reports; `None` while a step has it.
    pub report: Option<ResourceReport>,
    /// Its present state.
    pub state: State,
    /// The time at which it is looked at again.
    pub timer: Option<Instant>,
    /// The announcement that its status does not have yet.
    pub unannounced: Option<Announcement>,
}

/// The state of a resource: the queue in which it waits, or its running step.
pub enum State {
    /// It waits for its timer or for a change.
    Idle,
    /// It waits for the rate limit.
    Queued {
        /// Its place in the queue.
        place: Place,
        /// The purpose of its request.
        purpose: Purpose,
        /// The time at which it was queued.
        since: Instant,
    },
    /// A step that needs no slot waits to start.
    Ready,
    /// A step runs.
    Running(Box<Running>),
}

/// The changes of a resource while a step runs.
#[derive(Default)]
pub struct Running {
    /// The place in the queue that it keeps while its status is written, and the time at which it was queued.
    pub queued: Option<(Place, Purpose, Instant)>,
    /// The slot that it was granted meanwhile.
    pub started: Option<Started>,
    /// True if only its status is being written, to say what it waits for.
    pub announcing: bool,
    /// The part that it takes of the capacity for steps without a slot, or for announcements.
    pub taken: usize,
    /// The time at which it was to be looked at again before it was announced.
    pub timer: Option<Instant>,
    /// The newest facts from the watch.
    pub seen: Option<Facts>,
    /// True if the resource left the watch.
    pub gone: bool,
    /// True if it has to be looked at again when the step ends.
    pub wake: bool,
}

impl Entry {
    /// Returns the requester of a slot for this purpose.
    pub fn requester(&self, purpose: Purpose) -> Requester {
        let namespace = self.id.namespace.clone();
        Requester { namespace, secret: self.facts.secret.clone(), created: self.facts.created_second(), purpose }
    }

    /// Uses the memory of the resource, together with its facts. An empty one is not kept.
    pub fn with_memory<T>(&mut self, work: impl FnOnce(&mut Memory, &Facts) -> T) -> T {
        let mut memory = self.memory.take().unwrap_or_default();
        let result = work(&mut memory, &self.facts);
        self.memory = Some(memory).filter(|memory| !memory.is_empty());
        result
    }

    /// Returns true if it waits for the rate limit with a stop.
    pub fn waits_for_stop(&self) -> bool {
        match &self.state {
            State::Queued { purpose, .. } => *purpose == Purpose::Stop,
            State::Idle | State::Ready | State::Running(_) => false,
        }
    }
}

/// Returns the weight of a step of a resource of this size in bytes.
pub fn weight(size: usize) -> u8 {
    u8::try_from(1 + size / BYTES_PER_WEIGHT).unwrap_or(u8::MAX).min(MAX_WEIGHT)
}

/// The resources of one namespace.
#[derive(Default)]
pub struct Namespace {
    /// Those that may be worked on, the oldest first.
    pub admitted: BTreeSet<(i64, Number)>,
    /// Those over the limit of the namespace.
    pub over: BTreeSet<(i64, Number)>,
    /// The name of the Secret of the resource that was seen last. Most resources of a namespace share one.
    secret: Arc<str>,
}

/// The identity of a resource as a key: its uid.
struct ByUid(Arc<ResourceId>);

impl Borrow<str> for ByUid {
    fn borrow(&self) -> &str {
        &self.0.uid
    }
}

impl Hash for ByUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.uid.hash(state);
    }
}

impl PartialEq for ByUid {
    fn eq(&self, other: &Self) -> bool {
        self.0.uid == other.0.uid
    }
}

impl Eq for ByUid {}

/// The unfinished resources.
#[derive(Default)]
pub struct Index {
    entries: HashMap<Number, Box<Entry>>,
    numbers: HashMap<ByUid, Number>,
    namespaces: HashMap<Arc<str>, Namespace>,
    timers: BTreeSet<(Instant, Number)>,
    last: Number,
    fresh: VecDeque<(Number, Box<WorkflowRunStop>)>,
    /// The largest number of admitted resources of one namespace.
    limit: Option<usize>,
}

impl Index {
    /// Creates an empty index that admits at most `limit` resources of each namespace.
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Returns a resource.
    pub fn get_mut(&mut self, number: Number) -> Option<&mut Entry> {
        self.entries.get_mut(&number).map(Box::as_mut)
    }

    /// Returns the number of a resource.
    pub fn number(&self, uid: &str) -> Option<Number> {
        self.numbers.get(uid).copied()
    }

    /// Returns the shared name of a namespace.
    pub fn namespace(&self, name: &str) -> Arc<str> {
        self.namespaces.get_key_value(name).map_or_else(|| name.into(), |(shared, _)| shared.clone())
    }

    /// Lets facts share the name of the Secret with others of the namespace, to save memory.
    pub fn share_secret(&mut self, namespace: &Arc<str>, facts: &mut Facts) {
        let shared = &mut self.namespaces.entry(namespace.clone()).or_default().secret;
        if *shared == facts.secret {
            facts.secret = shared.clone();
        } else {
            *shared = facts.secret.clone();
        }
    }

    /// Adds a resource. Returns its number, and the number of the one that it displaces over the namespace's limit.
    pub fn insert(&mut self, mut entry: Entry) -> (Number, Option<Number>) {
        self.share_secret(&entry.id.namespace, &mut entry.facts);
        self.last += 1;
        let number = self.last;
        self.numbers.insert(ByUid(entry.id.clone()), number);
        let namespace = self.namespaces.entry(entry.id.namespace.clone()).or_default();
        namespace.admitted.insert((entry.facts.created_second(), number));
        self.entries.insert(number, Box::new(entry));
        let displaced = self.limit.filter(|limit| *limit < namespace.admitted.len()).and_then(|_| {
            let newest = namespace.admitted.pop_last()?;
            namespace.over.insert(newest);
            Some(newest.1)
        });
        (number, displaced)
    }

    /// Removes a resource. Returns the number of the one that is admitted in its place.
    pub fn remove(&mut self, number: Number) -> Option<Number> {
        self.set_timer(number, None);
        self.fresh.retain(|(of, _)| *of != number);
        let entry = self.entries.remove(&number)?;
        self.numbers.remove(&*entry.id.uid);
        let place = (entry.facts.created_second(), number);
        let namespace = self.namespaces.get_mut(&entry.id.namespace)?;
        namespace.over.remove(&place);
        let admitted = namespace.admitted.remove(&place).then(|| namespace.over.pop_first()).flatten();
        namespace.admitted.extend(admitted);
        if namespace.admitted.is_empty() {
            self.namespaces.remove(&entry.id.namespace);
        }
        admitted.map(|(_, number)| number)
    }

    /// Returns true if the resource is over the limit of its namespace.
    pub fn is_over_limit(&self, number: Number) -> bool {
        let place =
            self.entries.get(&number).map(|entry| (&entry.id.namespace, (entry.facts.created_second(), number)));
        place.is_some_and(|(name, place)| {
            self.namespaces.get(name).is_some_and(|namespace| namespace.over.contains(&place))
        })
    }

    /// Returns the oldest stop of a namespace that waits for the rate limit, and their number.
    pub fn waiting_stops(&self, name: &Arc<str>) -> (Option<Number>, usize) {
        let Some(namespace) = self.namespaces.get(name) else { return (None, 0) };
        let waits = |number: &Number| self.entries.get(number).is_some_and(|entry| entry.waits_for_stop());
        let mut waiting = namespace.admitted.iter().map(|(_, number)| *number).filter(waits);
        let oldest = waiting.next();
        (oldest, usize::from(oldest.is_some()) + waiting.count())
    }

    /// Sets the time at which a resource is looked at again.
    pub fn set_timer(&mut self, number: Number, at: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if let Some(earlier) = std::mem::replace(&mut entry.timer, at) {
            self.timers.remove(&(earlier, number));
        }
        self.timers.extend(at.map(|at| (at, number)));
    }

    /// Returns the time of the first timer.
    pub fn first_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Removes the first timer if it is due, and returns its resource.
    pub fn due(&mut self, now: Instant) -> Option<Number> {
        let number = self.timers.first().filter(|(at, _)| *at <= now).map(|(_, number)| *number)?;
        self.set_timer(number, None);
        Some(number)
    }

    /// Keeps a whole resource for its next step, in place of the oldest one kept, unless it is large.
    pub fn keep_fresh(&mut self, number: Number, resource: Box<WorkflowRunStop>) {
        self.fresh.retain(|(of, _)| *of != number);
        let small = self.entries.get(&number).is_some_and(|entry| entry.weight == 1);
        if !small || resource.status.as_ref().is_some_and(|status| status.task_instances.is_some()) {
            return;
        }
        if self.fresh.len() == MOST_FRESH {
            self.fresh.pop_front();
        }
        self.fresh.push_back((number, resource));
    }

    /// Returns the whole resource, if it was kept and no newer version is known.
    pub fn take_fresh(&mut self, number: Number) -> Option<Box<WorkflowRunStop>> {
        let position = self.fresh.iter().position(|(of, _)| *of == number)?;
        let (_, resource) = self.fresh.remove(position)?;
        let version = self.entries.get(&number)?.facts.resource_version;
        Some(resource).filter(|resource| resource.resource_version().parse().ok() == version)
    }

    /// Returns the resources of a watch that were not seen in its last list.
    pub fn not_in_list(&self, stream: usize, list: u32) -> Vec<Number> {
        let missing = |entry: &Entry| entry.stream == stream && entry.list != list;
        self.entries.iter().filter(|(_, entry)| missing(entry)).map(|(number, _)| *number).collect()
    }

    /// Returns all that wait for the rate limit, with their budgets and places, and removes the slots that they were
    /// granted meanwhile.
    pub fn take_queued(&mut self) -> Vec<(BudgetKey, Requester, Number, Place)> {
        let queued = self.entries.iter_mut().filter_map(|(number, entry)| {
            let (place, purpose) = match &mut entry.state {
                State::Queued { place, purpose, .. } => (*place, *purpose),
                State::Running(running) => {
                    running.started = None;
                    let (place, purpose, _) = running.queued.take()?;
                    (place, purpose)
                }
                State::Idle | State::Ready => return None,
            };
            Some((entry.budget.clone()?, entry.requester(purpose), *number, place))
        });
        queued.collect()
    }
}
