//! Owns queues in which namespaces take turns: each pop serves the next namespace, and within it the first item.
//! Never waits and reads no clock.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

/// A queue of items `T`, ordered by `O` within each namespace.
#[derive(Debug)]
pub struct Turns<O, T> {
    /// An empty queue stays until its namespace's next turn.
    queues: HashMap<Arc<str>, BTreeMap<O, T>>,
    /// The namespaces of `queues`, the one whose turn is next first.
    order: VecDeque<Arc<str>>,
    len: usize,
}

impl<O, T> Default for Turns<O, T> {
    fn default() -> Self {
        Self { queues: HashMap::new(), order: VecDeque::new(), len: 0 }
    }
}

impl<O: Ord + Clone, T> Turns<O, T> {
    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if there are no items.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an item. The turn of a namespace that is new comes after all others.
    pub fn push(&mut self, namespace: &Arc<str>, position: O, item: T) {
        let queue = self.queues.entry(namespace.clone()).or_insert_with(|| {
            self.order.push_back(namespace.clone());
            BTreeMap::new()
        });
        if queue.insert(position, item).is_none() {
            self.len += 1;
        }
    }

    /// Removes an item, wherever it is in the queue.
    pub fn remove(&mut self, namespace: &str, position: &O) -> Option<T> {
        let removed = self.queues.get_mut(namespace)?.remove(position)?;
        self.len -= 1;
        Some(removed)
    }

    /// Removes the first item of the next namespace whose first item is `allowed`. A namespace that is passed over keeps
    /// its turn.
    pub fn pop(&mut self, allowed: impl Fn(&Arc<str>, &T) -> bool) -> Option<(Arc<str>, O, T)> {
        let mut index = 0;
        while let Some(namespace) = self.order.get(index) {
            let Some(first) = self.queues.get_mut(namespace).and_then(|queue| queue.first_entry()) else {
                let namespace = self.order.remove(index)?;
                self.queues.remove(&namespace);
                continue;
            };
            if allowed(namespace, first.get()) {
                let (position, item) = first.remove_entry();
                self.len -= 1;
                let namespace = self.order.remove(index)?;
                self.order.push_back(namespace.clone());
                return Some((namespace, position, item));
            }
            index += 1;
        }
        None
    }

    /// Returns true if the first item of a namespace is `allowed`.
    pub fn any(&self, allowed: impl Fn(&Arc<str>, &T) -> bool) -> bool {
        let mut first =
            self.queues.iter().filter_map(|(namespace, queue)| Some((namespace, queue.first_key_value()?.1)));
        first.any(|(namespace, item)| allowed(namespace, item))
    }

    /// Removes all items of one namespace that match, in their order.
    pub fn drain(&mut self, namespace: &str, matches: impl Fn(&T) -> bool) -> Vec<(O, T)> {
        let Some(queue) = self.queues.get_mut(namespace) else { return vec![] };
        let positions: Vec<O> =
            queue.iter().filter(|(_, item)| matches(item)).map(|(position, _)| position.clone()).collect();
        self.len -= positions.len();
        positions.into_iter().filter_map(|position| queue.remove_entry(&position)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(items: &[(&str, u32)]) -> Turns<u32, u32> {
        let mut turns = Turns::default();
        for (namespace, item) in items {
            turns.push(&Arc::from(*namespace), *item, *item);
        }
        turns
    }

    fn order(mut turns: Turns<u32, u32>) -> Vec<(String, u32)> {
        std::iter::from_fn(|| turns.pop(|_, _| true))
            .map(|(namespace, _, item)| (namespace.to_string(), item))
            .collect()
    }

    #[test]
    fn namespaces_take_turns_and_the_items_of_each_keep_their_order() {
        let turns = queue(&[("a", 3), ("a", 1), ("a", 2), ("b", 9), ("c", 5), ("c", 4)]);
        let expected = [("a", 1), ("b", 9), ("c", 4), ("a", 2), ("c", 5), ("a", 3)];
        assert_eq!(order(turns), expected.map(|(namespace, item)| (namespace.to_owned(), item)));
    }

    #[test]
    fn a_newcomer_waits_for_one_item_of_each_other_namespace() {
        let mut turns = queue(&[("a", 1), ("a", 2), ("a", 3)]);
        assert_eq!(turns.pop(|_, _| true).unwrap().2, 1);
        turns.push(&Arc::from("b"), 7, 7);
        assert_eq!(turns.pop(|_, _| true).unwrap().2, 2);
        assert_eq!(turns.pop(|_, _| true).unwrap().2, 7);
    }

    #[test]
    fn a_namespace_that_is_passed_over_keeps_its_turn() {
        let mut turns = queue(&[("a", 1), ("b", 2), ("c", 3)]);
        assert_eq!(turns.pop(|namespace, _| &**namespace != "a").unwrap().2, 2);
        assert_eq!(turns.pop(|_, _| true).unwrap().2, 1);
        assert!(turns.pop(|_, _| false).is_none());
        assert!(turns.any(|namespace, _| &**namespace == "c") && !turns.any(|namespace, _| &**namespace == "b"));
        assert_eq!(turns.len(), 1);
    }

    #[test]
    fn removed_items_leave_no_gap_and_no_memory() {
        let mut turns = queue(&[("a", 1), ("a", 2), ("b", 3)]);
        assert_eq!(turns.remove("a", &1), Some(1));
        assert_eq!(turns.remove("a", &1), None);
        assert_eq!(turns.drain("a", |item| *item == 2), [(2, 2)]);
        assert_eq!(turns.len(), 1);
        assert_eq!(turns.pop(|_, _| true).unwrap().2, 3);
        assert!(turns.pop(|_, _| true).is_none() && turns.is_empty());
        assert_eq!((turns.queues.len(), turns.order.len()), (0, 0));
    }
}
