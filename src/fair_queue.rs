//! Owns queues whose items start when their namespace's turn has come and its share of a capacity allows it.
//! Never waits and reads no clock.

use std::sync::Arc;

use crate::fair_share::FairShare;
use crate::turns::Turns;

/// A queue of items `T`, ordered by `O` within each namespace, and the capacity for those that have started.
#[derive(Debug)]
pub struct FairQueue<O, T> {
    waiting: Turns<O, (usize, T)>,
    in_flight: FairShare<Arc<str>>,
}

/// An item that starts.
#[derive(Debug, PartialEq, Eq)]
pub struct Popped<O, T> {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its position in the queue.
    pub position: O,
    /// The item.
    pub item: T,
    /// The part of the capacity that it takes, to be given back when it ends.
    pub taken: usize,
}

impl<O: Ord + Clone, T> FairQueue<O, T> {
    /// Creates an empty queue with this capacity.
    pub fn new(capacity: usize) -> Self {
        Self { waiting: Turns::default(), in_flight: FairShare::new(capacity) }
    }

    /// Adds an item that takes `weight` of the capacity while it is in flight.
    pub fn push(&mut self, namespace: &Arc<str>, position: O, weight: usize, item: T) {
        self.waiting.push(namespace, position, (weight, item));
    }

    /// Removes an item, wherever it is in the queue.
    pub fn remove(&mut self, namespace: &str, position: &O) {
        self.waiting.remove(namespace, position);
    }

    /// Removes the next item that may start, and takes its part of the capacity.
    pub fn pop(&mut self) -> Option<Popped<O, T>> {
        let Self { waiting, in_flight } = self;
        let (namespace, position, (weight, item)) =
            waiting.pop(|namespace, (weight, _)| in_flight.counted_fits(namespace, *weight, 0))?;
        let taken = in_flight.take_counted(&namespace, weight);
        Some(Popped { namespace, position, item, taken })
    }

    /// Ends an item in flight, which has taken this part of the capacity.
    pub fn end(&mut self, namespace: &Arc<str>, taken: usize) {
        self.in_flight.give_back(namespace, taken);
    }

    /// Returns true if no item waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns true if an item may start.
    pub fn can_start(&self) -> bool {
        self.waiting.any(|namespace, (weight, _)| self.in_flight.counted_fits(namespace, *weight, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(items: &[(&str, u32, usize)]) -> FairQueue<u32, ()> {
        let mut queue = FairQueue::new(8);
        for (namespace, position, weight) in items {
            queue.push(&Arc::from(*namespace), *position, *weight, ());
        }
        queue
    }

    /// Starts all that may start.
    fn start(queue: &mut FairQueue<u32, ()>) -> Vec<(u32, usize)> {
        std::iter::from_fn(|| queue.pop()).map(|popped| (popped.position, popped.taken)).collect()
    }

    #[test]
    fn a_namespace_takes_at_most_half_and_goes_on_when_one_of_its_items_ends() {
        let mut queue = queue(&[("a", 1, 2), ("a", 2, 2), ("a", 3, 2), ("b", 4, 2)]);
        assert_eq!(start(&mut queue), [(1, 2), (4, 2), (2, 2)]);
        assert!(!queue.can_start() && !queue.is_empty());
        queue.end(&"a".into(), 2);
        assert!(queue.can_start());
        assert_eq!(start(&mut queue), [(3, 2)]);
        assert!(queue.is_empty() && !queue.can_start());
    }

    #[test]
    fn the_first_item_of_a_namespace_starts_also_if_it_weighs_more_than_what_is_free() {
        let mut queue = queue(&[("a", 1, 100), ("b", 2, 100), ("a", 3, 1)]);
        assert_eq!(start(&mut queue), [(1, 4), (2, 2)]);
        queue.end(&"a".into(), 4);
        assert_eq!(start(&mut queue), [(3, 1)]);
    }

    #[test]
    fn an_item_that_was_removed_does_not_start() {
        let mut queue = queue(&[("a", 1, 1), ("a", 2, 1)]);
        queue.remove("a", &1);
        queue.remove("b", &2);
        assert_eq!(start(&mut queue), [(2, 1)]);
    }
}
