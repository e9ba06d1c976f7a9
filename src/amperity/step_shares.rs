//! Owns the shares that steps take of one capacity: each namespace gets at most half of it, and one tenant of one
//! namespace a third.
//! Never waits and reads no clock.

use std::{collections::HashMap, sync::Arc};

use crate::amperity::endpoint::BudgetKey;
use crate::fair_share::FairShare;

/// The shares of one capacity.
pub struct StepShares {
    namespaces: FairShare<Arc<str>>,
    /// The part that each namespace holds for each tenant.
    tenants: HashMap<(Arc<str>, BudgetKey), usize>,
}

impl StepShares {
    /// Creates shares of this capacity.
    pub fn new(capacity: usize) -> Self {
        Self { namespaces: FairShare::new(capacity), tenants: HashMap::new() }
    }

    /// Sets the part of the capacity that nobody gets.
    pub fn set_reserve(&mut self, amount: usize) {
        self.namespaces.set_reserve(amount);
    }

    /// Returns true if anything is free.
    pub fn has_room(&self) -> bool {
        0 < self.namespaces.free()
    }

    /// Returns true if a step of this weight may start for a tenant. One tenant leaves as much as it holds to the other
    /// tenants of the namespace.
    pub fn fits(&self, namespace: &Arc<str>, key: &BudgetKey, weight: usize) -> bool {
        let held = self.tenants.get(&(namespace.clone(), key.clone())).copied().unwrap_or_default();
        self.namespaces.counted_fits(namespace, weight, held)
    }

    /// Returns true if the smallest step may start for a tenant for which the namespace holds nothing.
    pub fn fits_any(&self, namespace: &Arc<str>) -> bool {
        self.namespaces.fits(namespace, 1)
    }

    /// Takes the part of a step that fits. Returns how much that is.
    pub fn take(&mut self, namespace: &Arc<str>, key: &BudgetKey, weight: usize) -> usize {
        let taken = self.namespaces.take_counted(namespace, weight);
        *self.tenants.entry((namespace.clone(), key.clone())).or_default() += taken;
        taken
    }

    /// Gives this much back, which was taken before.
    pub fn give_back(&mut self, namespace: &Arc<str>, key: &BudgetKey, taken: usize) {
        self.namespaces.give_back(namespace, taken);
        let part = (namespace.clone(), key.clone());
        if let Some(held) = self.tenants.get_mut(&part) {
            *held -= taken;
            if *held == 0 {
                self.tenants.remove(&part);
            }
        }
    }
}
