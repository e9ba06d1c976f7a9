//! Owns the metrics of requests to the API: the classes of their answers and their durations.
//! Never sends a request and never decides anything.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        histogram::{Histogram, NativeHistogramConfig},
    },
};
use tokio::time::Instant;

use crate::amperity::{
    answer::{READ_CLASSES, STOP_CLASSES, TOKEN_CLASSES},
    purpose::Purpose,
};
use crate::metric_labels::{Tenant, Tenants};

/// The labels of a count of requests: their purpose and the class of their answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabels {
    tenant: Tenant,
    purpose: &'static str,
    answer: &'static str,
}

/// The labels of a histogram of durations: the purpose of the requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PurposeLabels {
    tenant: Tenant,
    purpose: &'static str,
}

/// Creates histograms of seconds with these classic buckets and with native ones.
#[derive(Clone, Debug)]
pub struct SecondsHistogram(pub &'static [f64]);

impl MetricConstructor<Histogram> for SecondsHistogram {
    fn new_metric(&self) -> Histogram {
        // The number of native buckets that the documentation of the Go client advises.
        Histogram::new_classic_and_native(self.0.iter().copied(), NativeHistogramConfig::default().max_buckets(160))
    }
}

/// Up to the default request timeout.
const DURATIONS: SecondsHistogram = SecondsHistogram(&[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0]);

/// The metrics of requests to the API.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    /// The tenants that have their own label value.
    pub tenants: Tenants,
    /// The number of requests by the class of their answer.
    pub requests: Family<AnswerLabels, Counter>,
    /// The time from the write of a request to the end of its response, or to its failure.
    pub durations: Family<PurposeLabels, Histogram, SecondsHistogram>,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            tenants: Tenants::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(DURATIONS),
        }
    }
}

impl RequestMetrics {
    /// Creates the metrics of a tenant with the value 0, so that the first increment is visible as one.
    pub fn initialize(&self, tenant: &Tenant) {
        for purpose in Purpose::ALL {
            let classes: &[&'static str] = match purpose {
                Purpose::Token => TOKEN_CLASSES,
                Purpose::Stop => STOP_CLASSES,
                Purpose::Read => READ_CLASSES,
            };
            let purpose = purpose.as_str();
            for answer in classes.iter().copied() {
                drop(self.requests.get_or_create(&AnswerLabels { tenant: tenant.clone(), purpose, answer }));
            }
            drop(self.durations.get_or_create(&PurposeLabels { tenant: tenant.clone(), purpose }));
        }
    }

    /// Records one completed request. `sent_at` is the time at which it was written; `None` if it was not.
    pub fn record(&self, tenant: &str, purpose: Purpose, answer: &'static str, sent_at: Option<Instant>) {
        let (tenant, purpose) = (self.tenants.label(tenant), purpose.as_str());
        if let Some(sent_at) = sent_at {
            let labels = PurposeLabels { tenant: tenant.clone(), purpose };
            self.durations.get_or_create(&labels).observe(sent_at.elapsed().as_secs_f64());
        }
        self.requests.get_or_create(&AnswerLabels { tenant, purpose, answer }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_counted_by_class_and_only_those_that_were_written_have_a_duration() {
        let metrics = RequestMetrics::default();
        let tenant = metrics.tenants.label("acme");
        let count = |answer| {
            let labels = AnswerLabels { tenant: tenant.clone(), purpose: "stop", answer };
            metrics.requests.get(&labels).map(|counter| counter.get())
        };
        assert_eq!(count("accepted"), None);
        metrics.initialize(&tenant);
        assert_eq!((count("accepted"), count("not_sent")), (Some(0), Some(0)));
        metrics.record("acme", Purpose::Stop, "accepted", Some(Instant::now()));
        metrics.record("acme", Purpose::Stop, "not_sent", None);
        assert_eq!((count("accepted"), count("not_sent")), (Some(1), Some(1)));
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("durations", "Durations", metrics.durations.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("durations_count{tenant=\"acme\",purpose=\"stop\"} 1"), "{text}");
    }
}
