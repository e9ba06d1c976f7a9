//! Owns the labels that several metrics share, and bounds the number of tenants in them.
//! Never registers or updates a metric.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use prometheus_client::encoding::EncodeLabelSet;

/// The label `result`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// One value of a small fixed set.
    pub result: &'static str,
}

/// The largest number of tenants with their own label value; each has about a hundred series.
const MAX_TENANTS: usize = 100;

/// The label value of all other tenants. No tenant begins with `_`.
const OTHER: &str = "_other";

/// The label value of a tenant.
pub type Tenant = Arc<str>;

/// The tenants with their own label value: the first ones that were seen. Anyone who can create resources chooses the
/// tenants, and must not be able to exhaust memory with them.
#[derive(Clone, Debug, Default)]
pub struct Tenants(Arc<Mutex<HashSet<Tenant>>>);

impl Tenants {
    /// Returns the label value for a tenant.
    pub fn label(&self, tenant: &str) -> Tenant {
        let mut known = self.0.lock().expect("nothing panics while it holds this lock");
        let wanted = if known.contains(tenant) || known.len() < MAX_TENANTS { tenant } else { OTHER };
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
    fn the_number_of_tenants_with_their_own_label_value_is_bounded() {
        let tenants = Tenants::default();
        for tenant in 0..1_000 {
            drop(tenants.label(&format!("tenant-{tenant}")));
        }
        assert_eq!(&*tenants.label("tenant-3"), "tenant-3");
        assert_eq!(&*tenants.label("tenant-999"), OTHER);
        assert_eq!(tenants.0.lock().unwrap().len(), MAX_TENANTS + 1);
    }
}
