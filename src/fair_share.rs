//! Owns the division of a bounded resource, such as connections or memory, among keys such as namespaces or tenants.
//! Never waits: an amount that does not fit is refused, and the caller tries again after another one was given back.
//!
//! A key may hold at most as much as is still free. So one key alone gets up to half of the capacity, `n` keys get up
//! to `1/(n+1)` each, and the same is left for a newcomer, whatever the others do (dynamic thresholds, as in switches
//! with a shared buffer).

use std::{collections::HashMap, hash::Hash};

/// The shares of one bounded resource.
#[derive(Debug)]
pub struct FairShare<K> {
    /// The part of the capacity that no key holds.
    free: usize,
    /// The part that no key gets. What is held of it now joins it when it is given back.
    reserve: usize,
    held: HashMap<K, usize>,
}

impl<K: Eq + Hash + Clone> FairShare<K> {
    /// Creates shares of this capacity.
    pub fn new(capacity: usize) -> Self {
        Self { free: capacity, reserve: 0, held: HashMap::new() }
    }

    /// Sets the part that no key gets.
    pub fn set_reserve(&mut self, amount: usize) {
        self.reserve = amount;
    }

    /// Returns the amount that is free, without the reserve.
    pub fn free(&self) -> usize {
        self.free.saturating_sub(self.reserve)
    }

    /// Returns true if no key holds anything.
    pub fn is_unused(&self) -> bool {
        self.held.is_empty()
    }

    /// Returns true if the key may take this much more.
    pub fn fits(&self, key: &K, amount: usize) -> bool {
        self.fits_with_rest(key, amount, 0)
    }

    /// Returns true if the key may take this much more, and after that still `rest`.
    pub fn fits_with_rest(&self, key: &K, amount: usize, rest: usize) -> bool {
        let held = self.held.get(key).copied().unwrap_or_default();
        held.saturating_add(amount).saturating_add(rest) <= self.free()
    }

    /// Returns how much of an amount counts. For a key that holds nothing, it is at most half of what is free: so a large
    /// amount is not kept waiting by very many small ones, and something is left for the next key.
    fn counted(&self, key: &K, amount: usize) -> usize {
        if self.held.contains_key(key) { amount } else { amount.min(self.free().div_ceil(2).max(1)) }
    }

    /// Returns true if what counts of an amount fits, and after that still `rest`.
    pub fn counted_fits(&self, key: &K, amount: usize, rest: usize) -> bool {
        self.fits_with_rest(key, self.counted(key, amount), rest)
    }

    /// Takes what counts of an amount, which must fit. Returns how much that is.
    pub fn take_counted(&mut self, key: &K, amount: usize) -> usize {
        let counted = self.counted(key, amount);
        assert!(self.take(key, counted), "the caller has checked that it fits");
        counted
    }

    /// Takes this much if it fits. Returns true if it was taken.
    #[must_use]
    pub fn take(&mut self, key: &K, amount: usize) -> bool {
        let fits = self.fits(key, amount);
        if fits {
            self.free -= amount;
            match self.held.get_mut(key) {
                Some(held) => *held += amount,
                None => drop(self.held.insert(key.clone(), amount)),
            }
        }
        fits
    }

    /// Returns this much, which the key must have taken before.
    pub fn give_back(&mut self, key: &K, amount: usize) {
        self.free += amount;
        if let Some(held) = self.held.get_mut(key) {
            *held -= amount;
            if *held == 0 {
                self.held.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a key take one by one until it is refused. Returns how much it took.
    fn take_all(shares: &mut FairShare<u32>, key: u32) -> usize {
        std::iter::from_fn(|| shares.take(&key, 1).then_some(())).count()
    }

    #[test]
    fn each_key_gets_at_most_as_much_as_is_left_free() {
        let mut shares = FairShare::new(100);
        assert_eq!(take_all(&mut shares, 1), 50);
        assert_eq!(take_all(&mut shares, 2), 25);
        assert!(!shares.fits(&1, 1) && shares.fits(&3, 25) && !shares.fits(&3, 26));
    }

    #[test]
    fn a_newcomer_finds_room_although_many_others_take_what_they_can() {
        let mut shares = FairShare::new(100);
        for key in 0..50 {
            while shares.fits(&key, 1) {
                assert!(shares.take(&key, 1));
                for other in 0..key {
                    // As over time: each holds no more than what is free.
                    while shares.free < shares.held.get(&other).copied().unwrap_or_default() {
                        shares.give_back(&other, 1);
                    }
                }
            }
        }
        assert!(shares.fits(&1000, 1));
    }

    #[test]
    fn a_large_amount_of_a_newcomer_fits_beside_very_many_others_and_the_overdraft_is_bounded() {
        let mut shares = FairShare::new(100);
        for key in 0..84 {
            assert!(shares.take(&key, 1));
        }
        let large: Vec<_> = (100..110)
            .map_while(|key| {
                let amount = shares.counted(&key, 64);
                shares.take(&key, amount).then_some(amount)
            })
            .collect();
        assert_eq!(large, [8, 4, 2, 1, 1]);
        assert_eq!(shares.counted(&0, 64), 64, "a key that holds something counts all of it");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut shares = FairShare::new(10);
        assert!(shares.take(&1, 5) && !shares.take(&1, 1));
        shares.give_back(&1, 5);
        assert_eq!((take_all(&mut shares, 2), shares.held.len()), (5, 1));
    }

    #[test]
    fn a_part_of_a_key_leaves_room_for_other_parts_of_it() {
        let mut shares = FairShare::new(300);
        let first = (0..).take_while(|held| shares.fits_with_rest(&1, 1, *held) && shares.take(&1, 1)).count();
        assert_eq!(first, 100);
        assert!(shares.fits_with_rest(&1, 50, 0));
    }
}
