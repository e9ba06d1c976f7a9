//! Owns the metrics: names, help texts and formats.
//! Never decides anything. Requests and status writes are counted where they are made.

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
    request_metrics::{RequestMetrics, SecondsHistogram},
};
use crate::clock::Clock;
use crate::metric_labels::{ResultLabel, Tenant, Tenants};
use crate::observe::{
    backlog::{Backlog, BacklogEntry},
    events,
};
use crate::reconcile::{facts::Facts, store};

/// Buckets for stops that are sent at once, that wait behind many others, or that wait for a person.
const SENT: SecondsHistogram =
    SecondsHistogram(&[0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0]);

/// Buckets up to the longest `followTimeoutSeconds`: a week.
const ENDED: SecondsHistogram =
    SecondsHistogram(&[1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0, 86_400.0, 604_800.0]);

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

/// A gauge with a floating-point value.
type Real = Gauge<f64, AtomicU64>;

/// The operator's metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: RequestMetrics,
    backlog: Backlog,
    created_to_sent: Family<Of, Histogram, SecondsHistogram>,
    accepted_to_ended: Family<Of, Histogram, SecondsHistogram>,
    finished: Family<Ended, Counter>,
    /// Events by result.
    pub events: Family<ResultLabel, Counter>,
    /// Claims of other processes that this replica confirmed.
    pub taken_over: Counter,
    /// Steps that failed because of the API server.
    pub failures: Counter,
    /// Versions of resources that were received and could not be decoded.
    pub undecodable: Counter,
    /// Caught panics.
    pub panics: Counter,
    leading: Gauge,
}

impl Metrics {
    /// Creates and registers the metrics of a replica with these counters of requests and writes, and this budget.
    pub fn new(
        requests: &RequestMetrics,
        writes: &Family<ResultLabel, Counter>,
        budget: &Budget,
        clock: &Clock,
    ) -> Self {
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
            undecodable: Counter::default(),
            panics: Counter::default(),
            leading: Gauge::default(),
        };
        // Initialised to zero, so that the first increase is visible to `increase()`.
        for result in store::RESULTS {
            drop(writes.get_or_create(&ResultLabel { result }));
        }
        for result in events::RESULTS {
            drop(metrics.events.get_or_create(&ResultLabel { result }));
        }
        let limit = Gauge::<i64>::default();
        limit.set(budget.limit().into());
        macro_rules! register {
            ($($name:literal, $help:literal, $metric:expr;)*) => {
                $(registry.register($name, $help, $metric.clone());)*
            };
        }
        register! {
            "requests", "Requests to Amperity by purpose and class of the answer", requests.requests;
            "request_duration_seconds", "Time from when a request is written to the end of its response or its failure", requests.durations;
            "created_to_sent_seconds", "Time from the creation of a resource to its first stop request", metrics.created_to_sent;
            "accepted_to_ended_seconds", "Time from the acceptance of a stop to the end of its run", metrics.accepted_to_ended;
            "finished", "Resources that this replica finished, by the reason of the condition Ready", metrics.finished;
            "budget_limit_requests_per_second", "Configured rate limit for each tenant, in requests per second", limit;
            "claims_taken_over", "Claims of other processes that this replica confirmed", metrics.taken_over;
            "status_writes", "Status writes by result", writes;
            "api_server_failures", "Reconciliations that failed because of the API server", metrics.failures;
            "events", "Kubernetes events by result", metrics.events;
            "undecodable_objects", "Versions of resources that could not be decoded", metrics.undecodable;
            "panics", "Panics caught while reconciling a resource", metrics.panics;
            "leading", "1 if this replica is the leader, which may start new work", metrics.leading;
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

    /// Returns all metrics in the OpenMetrics text format, which has no native histograms.
    pub fn text(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }

    /// Returns all metrics in the protobuf format, with native histograms.
    pub fn protobuf(&self) -> Vec<u8> {
        prometheus_protobuf::encode_to_vec(&self.registry).expect("writing to memory does not fail")
    }

    /// Counts a resource as unfinished until the returned entry is dropped.
    pub fn enter(&self, tenant: &str, facts: &Facts) -> BacklogEntry {
        let tenant = self.requests.tenants.label(tenant);
        self.requests.initialize(&tenant);
        for reason in Reason::ALL.iter().filter(|reason| reason.result().is_some()) {
            drop(self.finished.get_or_create(&Ended { tenant: tenant.clone(), reason: reason.as_str() }));
        }
        let of = Of { tenant: tenant.clone() };
        drop(self.created_to_sent.get_or_create(&of));
        drop(self.accepted_to_ended.get_or_create(&of));
        self.backlog.enter(tenant, facts)
    }

    /// Sets whether this replica is the leader.
    pub fn set_leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    /// Records the time from the creation of a resource to its first stop request.
    pub fn sent(&self, resource: &WorkflowRunStop, after: Duration) {
        self.created_to_sent.get_or_create(&self.of(resource)).observe(after.as_secs_f64());
    }

    /// Counts a finished resource, and records the time from acceptance to the end of its run, if known.
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
    /// Returns metrics that are registered with counters of their own.
    fn default() -> Self {
        let clock: Clock = Arc::new(|| jiff::Timestamp::UNIX_EPOCH);
        Self::new(&RequestMetrics::default(), &Family::default(), &Budget::new(1), &clock)
    }
}

/// Collects the gauges that are computed at each scrape.
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
            oldest.get_or_create(&labels).set(waiting.oldest.map_or(0.0, whole_seconds));
        }
        let rate = Family::<Of, Real>::default();
        let closed = Family::<Of, Real>::default();
        let queued = Family::<Queued, Gauge>::default();
        // A tenant with several base URLs has a budget for each, and one label value.
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
            "unfinished", "Unfinished resources by what they wait for", unfinished;
            "oldest_unfinished_created_timestamp_seconds", "Creation time of the oldest unfinished resource; 0 if there is none", oldest;
            "budget_requests_per_second", "Current rate limit of a tenant, in requests per second", rate;
            "budget_waiting", "Requests that wait for the rate limit", queued;
            "budget_closed_until_timestamp_seconds", "Time until which a 429 closes the budget; 0 if it is open", closed;
        }
        Ok(())
    }
}

fn seconds(at: jiff::Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

/// Returns seconds since the Unix epoch as the value of a metric.
fn whole_seconds(since_the_epoch: i64) -> f64 {
    Duration::from_secs(since_the_epoch.try_into().unwrap_or_default()).as_secs_f64()
}
