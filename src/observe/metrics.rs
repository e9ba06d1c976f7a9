//! Owns the metrics: what each is called, what it means, and the formats they are told in.
//! Never decides or measures anything by itself; the doors count their own requests.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, prometheus_protobuf, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use workflow_run_stop_api::{WorkflowRunStop, conditions::Reason};

use crate::amperity::{
    budget::Budget,
    request_metrics::{RequestMetrics, Seconds},
};
use crate::clock::Clock;
use crate::metric_labels::{Outcome, Tenant, Tenants};
use crate::observe::{
    backlog::{Backlog, BacklogEntry},
    events,
};
use crate::reconcile::store;

/// From a stop that goes out at once to one that waits behind many others, or for a person.
const SENT: Seconds = Seconds(&[0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0]);

/// Up to the longest time that a run can be followed: a week.
const ENDED: Seconds =
    Seconds(&[1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0, 86_400.0, 604_800.0]);

/// The reasons with which a resource finishes.
const ENDS: [Reason; 11] = [
    Reason::RunStopped,
    Reason::RunEndedOtherwise,
    Reason::StopAccepted,
    Reason::RunUnreadable,
    Reason::Expired,
    Reason::RunStillActive,
    Reason::RunNotFound,
    Reason::Rejected,
    Reason::UnexpectedAnswer,
    Reason::OutcomeUnknown,
    Reason::DeadlineExceeded,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    tenant: Tenant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    tenant: Tenant,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Unfinished {
    tenant: Tenant,
    waits_for: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Queued {
    tenant: Tenant,
    purpose: &'static str,
}

/// A gauge that is no whole number.
type Real = Gauge<f64, AtomicU64>;

/// The operator's metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: RequestMetrics,
    backlog: Backlog,
    created_to_sent: Family<Of, Histogram, Seconds>,
    accepted_to_ended: Family<Of, Histogram, Seconds>,
    finished: Family<Ended, Counter>,
    /// Events by what came of them.
    pub events: Family<Outcome, Counter>,
    /// Claims of another process whose outcome this replica found out.
    pub taken_over: Counter,
    /// Steps that failed at the API server.
    pub failures: Counter,
    /// Panics that were caught.
    pub panics: Counter,
    leading: Gauge,
}

impl Metrics {
    /// Metrics of a replica that sends through this door, writes through that one, and has this budget.
    pub fn new(requests: &RequestMetrics, writes: &Family<Outcome, Counter>, budget: &Budget, clock: &Clock) -> Self {
        let mut registry = Registry::with_prefix("workflow_run_stop_operator");
        let metrics = Self {
            registry: Arc::default(),
            requests: requests.clone(),
            backlog: Backlog::default(),
            created_to_sent: Family::new_with_constructor(SENT),
            accepted_to_ended: Family::new_with_constructor(ENDED),
            finished: Family::default(),
            events: Family::default(),
            taken_over: Counter::default(),
            failures: Counter::default(),
            panics: Counter::default(),
            leading: Gauge::default(),
        };
        // What is there from the start shows its first event.
        for result in store::RESULTS {
            drop(writes.get_or_create(&Outcome { result }));
        }
        for result in events::RESULTS {
            drop(metrics.events.get_or_create(&Outcome { result }));
        }
        let limit = Gauge::<i64>::default();
        limit.set(budget.limit().into());
        macro_rules! register {
            ($($name:literal, $help:literal, $metric:expr;)*) => {
                $(registry.register($name, $help, $metric.clone());)*
            };
        }
        register! {
            "requests", "Requests to Amperity by purpose and class of answer", requests.requests;
            "request_duration_seconds", "From a request's writing to its whole answer, or to its failure", requests.durations;
            "created_to_sent_seconds", "From a resource's creation to its first stop request", metrics.created_to_sent;
            "accepted_to_ended_seconds", "From a stop's acceptance to the end of its run", metrics.accepted_to_ended;
            "finished", "Resources whose end this replica wrote, by the reason of Ready", metrics.finished;
            "budget_limit_requests_per_second", "The limit for each tenant", limit;
            "claims_taken_over", "Claims of another process whose outcome this replica found out", metrics.taken_over;
            "status_writes", "Writes of a status by what came of them", writes;
            "api_server_failures", "Steps that failed at the API server", metrics.failures;
            "events", "Kubernetes events by what came of them", metrics.events;
            "panics", "Panics caught while one resource was handled", metrics.panics;
            "leading", "1 where this replica may start new work", metrics.leading;
        }
        registry.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let now = Now {
            backlog: metrics.backlog.clone(),
            budget: budget.clone(),
            tenants: requests.tenants.clone(),
            clock: clock.clone(),
        };
        registry.register_collector(Box::new(now));
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// All metrics in the OpenMetrics text format, which has no native histograms.
    pub fn text(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }

    /// All metrics in the protobuf format, native histograms included.
    pub fn protobuf(&self) -> Vec<u8> {
        prometheus_protobuf::encode_to_vec(&self.registry).expect("writing to memory does not fail")
    }

    /// Counts a resource as unfinished until what is returned is dropped.
    pub fn enter(&self, resource: &WorkflowRunStop) -> BacklogEntry {
        let tenant = self.requests.tenants.label(&resource.spec.tenant);
        self.requests.expect(&tenant);
        for reason in ENDS {
            drop(self.finished.get_or_create(&Ended { tenant: tenant.clone(), reason: reason.as_str() }));
        }
        let of = Of { tenant: tenant.clone() };
        drop(self.created_to_sent.get_or_create(&of));
        drop(self.accepted_to_ended.get_or_create(&of));
        self.backlog.enter(tenant, resource)
    }

    /// Says whether this replica may start new work.
    pub fn set_leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    /// The first request for a resource was written so long after its creation.
    pub fn sent(&self, resource: &WorkflowRunStop, after: Duration) {
        self.created_to_sent.get_or_create(&self.of(resource)).observe(after.as_secs_f64());
    }

    /// A resource finished for this reason; with a run that ended so long after the stop was accepted.
    pub fn finished(&self, resource: &WorkflowRunStop, reason: Reason, ended_after: Option<Duration>) {
        let of = self.of(resource);
        if let Some(after) = ended_after {
            self.accepted_to_ended.get_or_create(&of).observe(after.as_secs_f64());
        }
        self.finished.get_or_create(&Ended { tenant: of.tenant, reason: reason.as_str() }).inc();
    }

    fn of(&self, resource: &WorkflowRunStop) -> Of {
        Of { tenant: self.requests.tenants.label(&resource.spec.tenant) }
    }
}

impl Default for Metrics {
    /// Metrics of a replica that never did anything.
    fn default() -> Self {
        let clock: Clock = Arc::new(|| jiff::Timestamp::UNIX_EPOCH);
        Self::new(&RequestMetrics::default(), &Family::default(), &Budget::new(1), &clock)
    }
}

/// What is looked up when somebody asks.
struct Now {
    backlog: Backlog,
    budget: Budget,
    tenants: Tenants,
    clock: Clock,
}

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Now").finish_non_exhaustive()
    }
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let unfinished = Family::<Unfinished, Gauge>::default();
        let oldest = Family::<Unfinished, Real>::default();
        for waiting in self.backlog.waiting() {
            let labels = Unfinished { tenant: waiting.tenant, waits_for: waiting.waits_for.as_str() };
            unfinished.get_or_create(&labels).set(i64::try_from(waiting.count).unwrap_or(i64::MAX));
            oldest.get_or_create(&labels).set(waiting.oldest.map_or(0.0, seconds));
        }
        let rate = Family::<Of, Real>::default();
        let closed = Family::<Of, Real>::default();
        let queued = Family::<Queued, Gauge>::default();
        // A tenant at several base URLs has as many budgets, and one name here.
        let mut states = BTreeMap::<Tenant, Vec<_>>::new();
        for state in self.budget.states() {
            states.entry(self.tenants.label(&state.tenant)).or_default().push(state);
        }
        for (tenant, states) in states {
            let of = Of { tenant: tenant.clone() };
            rate.get_or_create(&of).set(states.iter().map(|state| state.rate).fold(f64::INFINITY, f64::min));
            let closed_for = states.iter().filter_map(|state| state.closed_for).max();
            let until = closed_for.and_then(|wait| (self.clock)().checked_add(wait).ok());
            closed.get_or_create(&of).set(until.map_or(0.0, seconds));
            for (purpose, count) in states.iter().flat_map(|state| &state.waiting) {
                let labels = Queued { tenant: tenant.clone(), purpose: purpose.as_str() };
                queued.get_or_create(&labels).inc_by(i64::try_from(*count).unwrap_or(i64::MAX));
            }
        }
        macro_rules! encode {
            ($($name:literal, $help:literal, $metric:expr;)*) => {
                $($metric.encode(encoder.encode_descriptor($name, $help, None, $metric.metric_type())?)?;)*
            };
        }
        encode! {
            "unfinished", "Resources that this replica works on, by what they wait for", unfinished;
            "oldest_unfinished_created_timestamp_seconds", "When the oldest of these was created; 0 where there is none", oldest;
            "budget_requests_per_second", "The rate that a tenant is allowed now", rate;
            "budget_waiting", "Requests that wait for their turn", queued;
            "budget_closed_until_timestamp_seconds", "Until when a 429 closes the budget; 0 where it is open", closed;
        }
        Ok(())
    }
}

fn seconds(at: jiff::Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}
