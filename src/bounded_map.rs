//! Owns maps whose size is bounded in all. When a map is full, an insert removes entries of the owner that has the most.
//! Never waits and reads no clock.
//!
//! So an owner, such as a namespace, that adds very many entries displaces its own, and not those of others.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

/// A map from `K` to `V`. Each entry has an owner and a size.
#[derive(Debug)]
pub struct BoundedMap<K, V> {
    entries: HashMap<K, Entry<V>>,
    owners: HashMap<Arc<str>, Owner<K>>,
    size: usize,
    max: usize,
}

#[derive(Debug)]
struct Entry<V> {
    owner: Arc<str>,
    size: usize,
    value: V,
}

/// The keys of an owner, and the size of their entries.
#[derive(Debug)]
struct Owner<K> {
    keys: HashSet<K>,
    size: usize,
}

impl<K: Eq + Hash + Clone, V> BoundedMap<K, V> {
    /// Creates an empty map for entries of `max` in all.
    pub fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), owners: HashMap::new(), size: 0, max }
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Returns the value of a key. Its size is not measured again.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    /// Inserts a value in place of the one that the key had, and removes others if there are too many.
    pub fn insert(&mut self, owner: &Arc<str>, key: K, size: usize, value: V) {
        self.remove(&key);
        self.size += size;
        let of_owner = self.owners.entry(owner.clone()).or_insert_with(|| Owner { keys: HashSet::new(), size: 0 });
        of_owner.keys.insert(key.clone());
        of_owner.size += size;
        self.entries.insert(key, Entry { owner: owner.clone(), size, value });
        while self.max < self.size {
            let largest = self.owners.values().max_by_key(|owner| owner.size);
            let Some(key) = largest.and_then(|owner| owner.keys.iter().next()).cloned() else { return };
            self.remove(&key);
        }
    }

    /// Removes a key, and returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let Entry { owner, size, value } = self.entries.remove(key)?;
        self.size -= size;
        if let Some(of_owner) = self.owners.get_mut(&owner) {
            of_owner.keys.remove(key);
            of_owner.size -= size;
            if of_owner.keys.is_empty() {
                self.owners.remove(&owner);
            }
        }
        Some(value)
    }

    /// Removes the entries whose value is not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut V) -> bool) {
        let removed = self.entries.iter_mut().filter_map(|(key, entry)| (!keep(&mut entry.value)).then(|| key.clone()));
        for key in removed.collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: impl IntoIterator<Item = (&'static str, usize)>) -> BoundedMap<usize, usize> {
        let mut map = BoundedMap::new(100);
        for (owner, key) in entries {
            map.insert(&owner.into(), key, 10, key);
        }
        map
    }

    #[test]
    fn an_owner_that_adds_very_many_entries_displaces_its_own_and_not_those_of_others() {
        let hostile = (100..1000).map(|key| ("hostile", key));
        let map = map([("a", 1), ("b", 2)].into_iter().chain(hostile));
        assert_eq!((map.get(&1), map.get(&2), map.len()), (Some(&1), Some(&2), 10));
    }

    #[test]
    fn a_newcomer_displaces_an_entry_of_the_owner_that_has_the_most() {
        let mut map = map((0..10).map(|key| (if key < 3 { "a" } else { "b" }, key)));
        map.insert(&"new".into(), 10, 10, 10);
        assert_eq!((0..3).filter(|key| map.get(key).is_some()).count(), 3);
        assert_eq!((map.get(&10), map.len()), (Some(&10), 10));
    }

    #[test]
    fn a_replaced_or_removed_entry_makes_room() {
        let mut map = map((0..10).map(|key| ("a", key)));
        map.insert(&"a".into(), 9, 10, 90);
        assert_eq!((map.get(&9), map.len()), (Some(&90), 10));
        assert_eq!(map.remove(&9), Some(90));
        map.retain(|value| *value != 8);
        map.insert(&"b".into(), 10, 20, 10);
        assert_eq!(map.len(), 9);
        map.retain(|_| false);
        assert!(map.is_empty() && map.owners.is_empty() && map.size == 0);
    }

    #[test]
    fn what_is_larger_than_the_bound_is_not_kept() {
        let mut map = map([]);
        map.insert(&"a".into(), 1, 101, 1);
        assert!(map.is_empty());
    }
}
