//! Owns the labels that several metrics share; of tenants there is a bounded number.
//! Never knows a metric.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use prometheus_client::encoding::EncodeLabelSet;

/// What came of something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// One of a few words.
    pub result: &'static str,
}

/// So many tenants have metrics of their own; each has about a hundred series.
const MOST_TENANTS: usize = 100;

/// Stands for all tenants beyond these. No tenant begins with `_`.
const OTHER: &str = "_other";

/// A tenant's name in metrics.
pub type Tenant = Arc<str>;

/// The tenants that have metrics of their own: the first ones that were seen. Who may create resources
/// chooses the tenants, and must not fill memories with them.
#[derive(Clone, Debug, Default)]
pub struct Tenants(Arc<Mutex<HashSet<Tenant>>>);

impl Tenants {
    /// The name under which this tenant is counted.
    pub fn label(&self, tenant: &str) -> Tenant {
        let mut known = self.0.lock().expect("nothing panics while it holds this lock");
        let wanted = if known.contains(tenant) || known.len() < MOST_TENANTS { tenant } else { OTHER };
        match known.get(wanted) {
            Some(label) => label.clone(),
            None => {
                let label: Tenant = wanted.into();
                known.insert(label.clone());
                label
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_tenants_with_metrics_of_their_own_is_bounded() {
        let tenants = Tenants::default();
        for tenant in 0..1_000 {
            drop(tenants.label(&format!("tenant-{tenant}")));
        }
        assert_eq!(&*tenants.label("tenant-3"), "tenant-3");
        assert_eq!(&*tenants.label("tenant-999"), OTHER);
        assert_eq!(tenants.0.lock().unwrap().len(), MOST_TENANTS + 1);
    }
}
