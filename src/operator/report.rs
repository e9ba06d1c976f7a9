//! Owns what others see of a step: its log line and its counters, made from the returned report.
//! Never decides, writes or calls anything.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use crate::amperity::answer::StopAnswer;
use crate::resource::{
    WorkflowRunStop,
    conditions::{self, ConditionType, Truth},
};
use crate::stop::report::{Did, Report};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    answer: &'static str,
}

/// The operator's counters.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    answers: Family<Answer, Counter>,
    finished: Counter,
    failures: Counter,
    panics: Counter,
    unfinished: Gauge,
    leading: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("workflow_run_stop_operator");
        let metrics = Self {
            registry: Arc::default(),
            answers: Family::default(),
            finished: Counter::default(),
            failures: Counter::default(),
            panics: Counter::default(),
            unfinished: Gauge::default(),
            leading: Gauge::default(),
        };
        registry.register(
            "stop_requests",
            "Claimed stop requests by the class of their answer",
            metrics.answers.clone(),
        );
        // A counter that is there from the start shows its first event.
        for answer in StopAnswer::CLASSES {
            drop(metrics.answers.get_or_create(&Answer { answer }));
        }
        registry.register("finished", "Resources whose end this replica wrote", metrics.finished.clone());
        registry.register("api_server_failures", "Steps that failed at the API server", metrics.failures.clone());
        registry.register("panics", "Panics caught while handling one resource", metrics.panics.clone());
        registry.register("unfinished", "Resources that this replica works on", metrics.unfinished.clone());
        registry.register("leading", "1 where this replica may start new work", metrics.leading.clone());
        registry.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry: Arc::new(registry), ..metrics }
    }
}

impl Metrics {
    /// All counters in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }

    /// Says how many resources are worked on.
    pub fn set_unfinished(&self, count: usize) {
        self.unfinished.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Says whether this replica may start new work.
    pub fn set_leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    /// Tells of one step: one log line, unless nothing happened.
    pub fn step(&self, resource: &WorkflowRunStop, report: &Report) {
        let (step, answer) = match &report.did {
            Did::Looked => return,
            Did::Stopped { class, .. } => {
                self.answers.get_or_create(&Answer { answer: class }).inc();
                ("stop", Some(*class))
            }
            Did::Read => ("read", None),
            Did::Told => ("wait", None),
            Did::Finished => ("finish", None),
            Did::Failed(error) => {
                self.failures.inc();
                let (namespace, name) = (resource.namespace(), resource.name());
                let (tenant, run) = (&resource.spec.tenant, &resource.spec.run_id);
                tracing::warn!(namespace, name, tenant, run, %error, "the API server gave no usable answer; it is tried again");
                return;
            }
        };
        if matches!(report.did, Did::Finished | Did::Stopped { finished: true, .. }) {
            self.finished.inc();
        }
        let status = resource.status.as_ref();
        let find = |kind| status.and_then(|status| conditions::find(&status.conditions, kind));
        let ready = find(ConditionType::Ready);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    namespace = resource.namespace(),
                    name = resource.name(),
                    tenant = resource.spec.tenant,
                    run = resource.spec.run_id,
                    step,
                    answer,
                    state = status.and_then(|status| status.state.as_deref()),
                    reason = ready.map(|ready| ready.reason.as_str()),
                    "{}",
                    ready.map(|ready| ready.message.as_str()).unwrap_or_default(),
                )
            };
        }
        // What fails, now or for good, is worth a look.
        if ready.is_some_and(|ready| ready.status == Truth::False.as_str()) { line!(warn) } else { line!(info) }
    }

    /// Tells of a panic that was caught while a resource was handled.
    pub fn panic(&self, resource: &WorkflowRunStop, rest: Duration) {
        self.panics.inc();
        tracing::error!(
            namespace = resource.namespace(),
            name = resource.name(),
            "a panic was caught while this resource was handled; it is looked at again in {} s; this is a fault of the operator, please report it",
            rest.as_secs(),
        );
    }
}
