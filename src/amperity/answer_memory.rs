//! Owns the memory that all answers together may take, whatever they contain.
//! Never makes an answer wait: what gets no share of the memory is left out of the answer.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::amperity::endpoint::BudgetKey;
use crate::fair_share::FairShare;

/// The memory for all answers at once, in bytes. Until the outcome of an answer is stored, its parts are copied into the
/// new status, into the request that stores it, and into the response: all copies take up to six times as much.
const CAPACITY: usize = 6 * 1024 * 1024;

/// The part of an answer that is not counted, in bytes, so that a usual run is complete even if nothing is free.
const UNCOUNTED: usize = 16 * 1024;

/// The memory that all answers together may take, except a small part of each.
///
/// No tenant takes more than it leaves free. Thus the first tenant takes at most half, the second one at most half of the
/// rest, and so on: each of them leaves something for the next one.
#[derive(Clone)]
pub struct AnswerMemory(Arc<Mutex<FairShare<BudgetKey>>>);

impl Default for AnswerMemory {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl AnswerMemory {
    /// Creates a memory of this size in bytes.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(FairShare::new(capacity))))
    }

    /// Returns an empty share for an answer to a request of this tenant.
    pub fn share(&self, tenant: BudgetKey) -> Share {
        Share { source: Some((self.clone(), tenant)), bytes: 0 }
    }

    /// Returns the number of bytes that are free.
    pub fn free(&self) -> usize {
        self.lock().free()
    }

    fn lock(&self) -> MutexGuard<'_, FairShare<BudgetKey>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    #[must_use]
    fn take(&self, tenant: &BudgetKey, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let mut shares = self.lock();
        // Unlike a slot, a part of an answer may be large: what it leaves free counts.
        shares.fits_with_rest(tenant, bytes, bytes) && shares.take(tenant, bytes)
    }

    fn put_back(&self, tenant: &BudgetKey, bytes: usize) {
        self.lock().give_back(tenant, bytes);
    }
}

/// The memory that one answer takes. It is free again when the share is dropped.
#[derive(Default)]
pub struct Share {
    /// `None` if there is no limit.
    source: Option<(AnswerMemory, BudgetKey)>,
    bytes: usize,
}

impl Share {
    /// Takes this number of bytes, or none. Returns false if they are not free.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> bool {
        let all = self.bytes.saturating_add(bytes);
        if let Some((memory, tenant)) = &self.source
            && !memory.take(tenant, counted(all) - counted(self.bytes))
        {
            return false;
        }
        self.bytes = all;
        true
    }

    /// Returns true if this number of bytes is free. Another answer may take them first.
    pub fn could_take(&mut self, bytes: usize) -> bool {
        let could = self.take(bytes);
        if could {
            self.put_back(bytes);
        }
        could
    }

    /// Returns bytes that were taken before.
    pub fn put_back(&mut self, bytes: usize) {
        let rest = self.bytes.saturating_sub(bytes);
        let returned = counted(self.bytes) - counted(rest);
        if let Some((memory, tenant)) = &self.source
            && returned != 0
        {
            memory.put_back(tenant, returned);
        }
        self.bytes = rest;
    }
}

/// Returns the part of an answer's bytes that is counted.
fn counted(bytes: usize) -> usize {
    bytes.saturating_sub(UNCOUNTED)
}

impl Drop for Share {
    fn drop(&mut self) {
        self.put_back(self.bytes);
    }
}

/// Keeps the share of an answer for as long as a part of the answer, or a clone of it, exists. All are equal.
#[derive(Clone, Default)]
pub struct Held(Option<Arc<Share>>);

impl From<Share> for Held {
    fn from(share: Share) -> Self {
        Self(Some(Arc::new(share)))
    }
}

impl PartialEq for Held {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.0.as_ref().map_or(0, |share| share.bytes);
        write!(formatter, "{bytes} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::endpoint::{AllowedHosts, Endpoints};

    fn tenant(name: &str) -> BudgetKey {
        let endpoints = Endpoints::new("https://app.amperity.com", AllowedHosts::parse("").unwrap()).unwrap();
        endpoints.of(name, None).unwrap().budget_key()
    }

    /// Returns the share of a new answer that takes as much as it gets, in steps of 1000 bytes.
    fn greedy(memory: &AnswerMemory, name: &str) -> Share {
        let mut share = memory.share(tenant(name));
        assert!(share.take(UNCOUNTED));
        while share.take(1000) {}
        share
    }

    #[test]
    fn one_tenant_takes_at_most_half_however_many_answers_it_gets() {
        let memory = AnswerMemory::new(1_000_000);
        let answers: Vec<_> = (0..10).map(|_| greedy(&memory, "a")).collect();
        assert_eq!(memory.free(), 500_000);
        drop(answers);
        assert_eq!(memory.free(), 1_000_000);
    }

    #[test]
    fn a_newcomer_always_finds_room() {
        let memory = AnswerMemory::new(1_000_000);
        let mut shares = vec![];
        for index in 0..8 {
            let before = memory.free();
            shares.push(greedy(&memory, &format!("tenant-{index}")));
            let taken = before - memory.free();
            assert!(before / 2 - 1000 <= taken && taken <= before / 2, "{index}");
        }
    }

    #[test]
    fn what_was_put_back_can_be_taken_again() {
        let memory = AnswerMemory::new(100_000);
        let mut first = greedy(&memory, "a");
        assert!(!first.take(1000));
        assert!(first.take(0));
        first.put_back(20_000);
        assert_eq!(memory.free(), 70_000);
        let mut second = memory.share(tenant("a"));
        assert!(second.take(UNCOUNTED + 20_000) && !second.take(1));
        drop(first);
        drop(second);
        assert_eq!(memory.free(), 100_000);
        assert!(memory.lock().is_unused(), "tenants without an answer take no memory");
    }

    #[test]
    fn the_first_bytes_of_an_answer_are_not_counted() {
        let memory = AnswerMemory::new(0);
        let mut share = memory.share(tenant("a"));
        assert!(share.take(UNCOUNTED - 1) && share.take(1) && !share.take(1));
        share.put_back(10);
        assert!(share.take(10) && !share.take(1));
    }

    #[test]
    fn a_share_is_free_again_when_the_last_clone_is_dropped() {
        let memory = AnswerMemory::new(100_000);
        let mut share = memory.share(tenant("a"));
        assert!(share.take(UNCOUNTED + 30_000));
        let held = Held::from(share);
        let clone = held.clone();
        drop(held);
        assert_eq!(memory.free(), 70_000);
        drop(clone);
        assert_eq!(memory.free(), 100_000);
    }

    #[test]
    fn a_share_without_a_memory_has_no_limit() {
        let mut share = Share::default();
        assert!(share.take(usize::MAX) && share.take(usize::MAX));
        share.put_back(1);
    }
}
