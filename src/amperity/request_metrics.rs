//! Owns the counts of requests to the API: how each was answered, and how long that took.
//! Never sends or decides anything.

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
    answer::{ReadAnswer, StopAnswer, TOKEN_CLASSES},
    purpose::Purpose,
};
use crate::metric_labels::{Tenant, Tenants};

/// Requests of one purpose that were answered in one way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    tenant: Tenant,
    purpose: &'static str,
    answer: &'static str,
}

/// Requests of one purpose.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Asked {
    tenant: Tenant,
    purpose: &'static str,
}

/// A histogram of seconds: with these buckets for all, and with native ones for those that ask for them.
#[derive(Clone, Debug)]
pub struct Seconds(pub &'static [f64]);

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        // As many native buckets as the Go client's own documentation advises.
        Histogram::new_classic_and_native(self.0.iter().copied(), NativeHistogramConfig::default().max_buckets(160))
    }
}

/// Up to the default limit of a request.
const ANSWERED: Seconds = Seconds(&[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0]);

/// Counts requests.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    /// The tenants that have metrics of their own.
    pub tenants: Tenants,
    /// Requests by the class of their answer.
    pub requests: Family<Answered, Counter>,
    /// How long it took from their writing to the whole answer.
    pub durations: Family<Asked, Histogram, Seconds>,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            tenants: Tenants::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(ANSWERED),
        }
    }
}

impl RequestMetrics {
    /// A counter that is there from the start shows its first event.
    pub fn expect(&self, tenant: &Tenant) {
        for purpose in Purpose::ALL {
            let classes: &[&'static str] = match purpose {
                Purpose::Token => &TOKEN_CLASSES,
                Purpose::Stop => &StopAnswer::CLASSES,
                Purpose::Read => &ReadAnswer::CLASSES,
            };
            let purpose = purpose.as_str();
            for answer in classes.iter().copied() {
                drop(self.requests.get_or_create(&Answered { tenant: tenant.clone(), purpose, answer }));
            }
            drop(self.durations.get_or_create(&Asked { tenant: tenant.clone(), purpose }));
        }
    }

    /// Counts one request that is over; `sent` is when it was written, if it was.
    pub fn count(&self, tenant: &str, purpose: Purpose, answer: &'static str, sent: Option<Instant>) {
        let (tenant, purpose) = (self.tenants.label(tenant), purpose.as_str());
        if let Some(sent) = sent {
            let asked = Asked { tenant: tenant.clone(), purpose };
            self.durations.get_or_create(&asked).observe(sent.elapsed().as_secs_f64());
        }
        self.requests.get_or_create(&Answered { tenant, purpose, answer }).inc();
    }
}
