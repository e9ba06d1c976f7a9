//! Owns the order of the requests that wait for the rate limit of one tenant.
//! Never reads a clock, and never grants anything.
//!
//! Requests of steps in flight go first: such a step had its turn already, and its claim or its read must not get old.
//! Then come stops, reads, and requests with credentials that the tenant has not accepted yet. In each of these lanes,
//! namespaces take turns; within one, older stops go before newer ones, and reads by the time at which they were due. Of
//! five sends, reads get at least one, and credentials that are not accepted at most one, as long as others wait.

use std::sync::Arc;

use jiff::Timestamp;

use crate::amperity::purpose::Purpose;
use crate::turns::Turns;

/// Reads, and requests with unaccepted credentials, get one of this many sends.
const SHARE: u32 = 5;

/// The requester of a request: what its order depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The namespace of the resource.
    pub namespace: Arc<str>,
    /// The name of its Secret.
    pub secret: Arc<str>,
    /// The creation time of the resource, in seconds since the Unix epoch.
    pub created: i64,
    /// The purpose of the request.
    pub purpose: Purpose,
}

impl Requester {
    /// Creates a requester for a resource of this namespace, with this Secret.
    pub fn new(namespace: &str, secret: &str, purpose: Purpose, created: Timestamp) -> Self {
        Self { namespace: namespace.into(), secret: secret.into(), created: created.as_second(), purpose }
    }
}

/// The position of a request in the queue of its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    purpose: Purpose,
    created: i64,
    number: u64,
}

/// The place of a request in the queue: a number, which belongs to its requester.
#[derive(Clone, Copy, Debug)]
pub struct Place(u64);

/// The standing of a request. Standing and purpose decide on its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It belongs to a step in flight, which had its turn.
    InFlight,
    /// The tenant has accepted its credentials.
    Accepted,
    /// The tenant has not accepted its credentials yet.
    Unaccepted,
}

/// The lanes of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// Requests of steps in flight.
    InFlight,
    /// Requests for tokens and stops with accepted credentials.
    Stops,
    /// Reads with accepted credentials.
    Reads,
    /// Requests with credentials that the tenant has not accepted yet.
    Unaccepted,
}

/// The requests that wait, each with its waiter `W`.
pub struct WaitQueue<W> {
    in_flight: Turns<Position, Entry<W>>,
    stops: Turns<Position, Entry<W>>,
    reads: Turns<Position, Entry<W>>,
    unaccepted: Turns<Position, Entry<W>>,
    /// The numbers of waiting requests, by the index of their purpose in [`Purpose::ALL`].
    waiting: [usize; Purpose::ALL.len()],
    next_number: u64,
    /// The numbers of sends since the last one of a read, and of unaccepted credentials.
    since_read: u32,
    since_unaccepted: u32,
}

struct Entry<W> {
    secret: Arc<str>,
    waiter: W,
}

impl<W> Default for WaitQueue<W> {
    fn default() -> Self {
        Self {
            in_flight: Turns::default(),
            stops: Turns::default(),
            reads: Turns::default(),
            unaccepted: Turns::default(),
            waiting: [0; Purpose::ALL.len()],
            next_number: 0,
            since_read: 0,
            since_unaccepted: 0,
        }
    }
}

impl<W> WaitQueue<W> {
    /// Returns true if no request waits.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.stops.is_empty() && self.reads.is_empty() && self.unaccepted.is_empty()
    }

    /// Returns the number of waiting requests for a purpose.
    pub fn waiting(&self, purpose: Purpose) -> usize {
        self.waiting[purpose as usize]
    }

    /// Adds a request.
    pub fn push(&mut self, requester: &Requester, standing: Standing, waiter: W) -> Place {
        let Requester { namespace, secret, created: _, purpose } = requester;
        self.next_number += 1;
        let position = position(requester, self.next_number);
        let lane = lane_of(standing, *purpose);
        self.lane(lane).push(namespace, position, Entry { secret: secret.clone(), waiter });
        self.waiting[*purpose as usize] += 1;
        Place(self.next_number)
    }

    /// Removes a request that no longer waits, of the requester with which it was added.
    pub fn remove(&mut self, requester: &Requester, Place(number): Place) -> Option<W> {
        let position = position(requester, number);
        // The credentials may have been accepted or refused since the request was added.
        let lanes = [Lane::InFlight, Lane::Stops, Lane::Reads, Lane::Unaccepted];
        let removed = lanes.into_iter().find_map(|lane| self.lane(lane).remove(&requester.namespace, &position))?;
        self.waiting[position.purpose as usize] -= 1;
        Some(removed.waiter)
    }

    /// Removes the request whose turn it is, of those whose waiter is `allowed` to go on.
    pub fn pop(&mut self, allowed: impl Fn(&Arc<str>, &W) -> bool) -> Option<(Requester, W)> {
        let order = self.order();
        let allowed = |namespace: &Arc<str>, entry: &Entry<W>| allowed(namespace, &entry.waiter);
        let (lane, (namespace, position, entry)) =
            order.into_iter().find_map(|lane| Some((lane, self.lane(lane).pop(allowed)?)))?;
        self.waiting[position.purpose as usize] -= 1;
        self.since_read = if lane == Lane::Reads { 0 } else { self.since_read.saturating_add(1) };
        self.since_unaccepted = if lane == Lane::Unaccepted { 0 } else { self.since_unaccepted.saturating_add(1) };
        let Position { created, purpose, .. } = position;
        Some((Requester { namespace, secret: entry.secret, created, purpose }, entry.waiter))
    }

    /// Takes over that the tenant accepted credentials: their waiting requests leave the share of the unaccepted ones.
    pub fn accept(&mut self, namespace: &Arc<str>, secret: &Arc<str>) {
        for (position, entry) in self.unaccepted.drain(namespace, |entry| entry.secret == *secret) {
            let lane = lane_of(Standing::Accepted, position.purpose);
            self.lane(lane).push(namespace, position, entry);
        }
    }

    /// Returns the lanes in the order in which the next send looks for a request.
    fn order(&self) -> [Lane; 4] {
        let due = |since: u32| SHARE <= since + 1;
        match (due(self.since_read), due(self.since_unaccepted)) {
            (true, true) => [Lane::InFlight, Lane::Reads, Lane::Unaccepted, Lane::Stops],
            (true, false) => [Lane::InFlight, Lane::Reads, Lane::Stops, Lane::Unaccepted],
            (false, true) => [Lane::InFlight, Lane::Unaccepted, Lane::Stops, Lane::Reads],
            (false, false) => [Lane::InFlight, Lane::Stops, Lane::Reads, Lane::Unaccepted],
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut Turns<Position, Entry<W>> {
        match lane {
            Lane::InFlight => &mut self.in_flight,
            Lane::Stops => &mut self.stops,
            Lane::Reads => &mut self.reads,
            Lane::Unaccepted => &mut self.unaccepted,
        }
    }
}

fn lane_of(standing: Standing, purpose: Purpose) -> Lane {
    match (standing, purpose) {
        (Standing::InFlight, _) => Lane::InFlight,
        (Standing::Unaccepted, _) => Lane::Unaccepted,
        (Standing::Accepted, Purpose::Token | Purpose::Stop) => Lane::Stops,
        (Standing::Accepted, Purpose::Read) => Lane::Reads,
    }
}

fn position(requester: &Requester, number: u64) -> Position {
    let purpose = requester.purpose;
    // Reads are queued when they are due.
    let created = if purpose == Purpose::Read { i64::MIN } else { requester.created };
    Position { purpose, created, number }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requester(namespace: &str, purpose: Purpose, created: i64) -> Requester {
        Requester { namespace: namespace.into(), secret: "s".into(), created, purpose }
    }

    /// Adds `count` requests of a namespace for a purpose; the waiter is `namespace`, `purpose` and a number. The credentials
    /// of the namespaces x and y are not accepted.
    fn add(queue: &mut WaitQueue<String>, namespace: &str, purpose: Purpose, count: i64) -> Vec<Place> {
        let standing = if matches!(namespace, "x" | "y") { Standing::Unaccepted } else { Standing::Accepted };
        let name = |number| format!("{namespace} {} {number}", purpose.as_str());
        (0..count).map(|number| queue.push(&requester(namespace, purpose, number), standing, name(number))).collect()
    }

    fn pop(queue: &mut WaitQueue<String>, count: usize) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(|_, _| true)).take(count).map(|(_, waiter)| waiter).collect()
    }

    #[test]
    fn namespaces_take_turns_however_many_stops_one_of_them_has() {
        let mut queue = WaitQueue::default();
        add(&mut queue, "a", Purpose::Stop, 1000);
        add(&mut queue, "b", Purpose::Stop, 2);
        assert_eq!(pop(&mut queue, 4), ["a stop 0", "b stop 0", "a stop 1", "b stop 1"]);
        assert_eq!(queue.waiting(Purpose::Stop), 998);
    }

    #[test]
    fn within_a_namespace_steps_in_flight_go_first_and_then_older_stops() {
        let mut queue = WaitQueue::default();
        let mut push = |purpose, created, standing| {
            queue.push(&requester("a", purpose, created), standing, format!("{} {created}", purpose.as_str()));
        };
        push(Purpose::Stop, 9, Standing::Accepted);
        push(Purpose::Stop, 3, Standing::Accepted);
        push(Purpose::Token, 20, Standing::Accepted);
        push(Purpose::Stop, 30, Standing::InFlight);
        assert_eq!(pop(&mut queue, 9), ["stop 30", "token 20", "stop 3", "stop 9"]);
    }

    #[test]
    fn a_request_of_a_step_in_flight_waits_for_no_turn_of_other_namespaces() {
        let mut queue = WaitQueue::default();
        add(&mut queue, "a", Purpose::Stop, 10);
        add(&mut queue, "b", Purpose::Stop, 10);
        queue.push(&requester("c", Purpose::Read, 9), Standing::InFlight, "c in flight".into());
        assert_eq!(pop(&mut queue, 2), ["c in flight", "a stop 0"]);
    }

    #[test]
    fn reads_get_one_of_five_sends_while_stops_wait_and_are_sent_in_the_order_in_which_they_were_due() {
        let mut queue = WaitQueue::default();
        add(&mut queue, "a", Purpose::Stop, 100);
        queue.push(&requester("b", Purpose::Read, 7), Standing::Accepted, "due first".into());
        queue.push(&requester("b", Purpose::Read, 1), Standing::Accepted, "due later".into());
        let sent = pop(&mut queue, 10);
        assert_eq!(sent.iter().position(|waiter| waiter == "due first"), Some(4), "{sent:?}");
        assert_eq!(sent.iter().position(|waiter| waiter == "due later"), Some(9), "{sent:?}");
    }

    #[test]
    fn unaccepted_credentials_get_one_of_five_sends_together_while_others_wait_and_all_of_them_otherwise() {
        let mut queue = WaitQueue::default();
        add(&mut queue, "a", Purpose::Stop, 16);
        add(&mut queue, "x", Purpose::Stop, 100);
        add(&mut queue, "y", Purpose::Read, 100);
        let sent = pop(&mut queue, 20);
        let unaccepted = sent.iter().filter(|waiter| !waiter.starts_with('a')).count();
        assert_eq!(unaccepted, 4, "{sent:?}");
        assert_eq!(pop(&mut queue, 1000).len(), 196);
    }

    #[test]
    fn all_three_lanes_get_their_share() {
        let mut queue = WaitQueue::default();
        add(&mut queue, "a", Purpose::Stop, 100);
        add(&mut queue, "a", Purpose::Read, 100);
        add(&mut queue, "x", Purpose::Stop, 100);
        // Before the first turn of the others.
        assert_eq!(pop(&mut queue, 4).iter().filter(|waiter| waiter.starts_with("a stop")).count(), 4);
        for _ in 0..10 {
            let sent = pop(&mut queue, 5);
            let count = |prefix: &str| sent.iter().filter(|waiter| waiter.starts_with(prefix)).count();
            assert_eq!((count("a stop"), count("a read"), count("x")), (3, 1, 1), "{sent:?}");
        }
    }

    #[test]
    fn an_acceptance_moves_the_waiting_requests_of_the_same_credentials_and_no_others() {
        let mut queue = WaitQueue::default();
        add(&mut queue, "x", Purpose::Stop, 3);
        let mut other = requester("x", Purpose::Stop, 0);
        other.secret = "other".into();
        queue.push(&other, Standing::Unaccepted, "other".into());
        queue.accept(&"x".into(), &"s".into());
        assert_eq!((queue.stops.len(), queue.unaccepted.len()), (3, 1));
        assert_eq!(pop(&mut queue, 9), ["x stop 0", "x stop 1", "x stop 2", "other"]);
    }

    #[test]
    fn a_request_is_removed_from_whichever_lane_it_is_in() {
        let mut queue = WaitQueue::default();
        let places = add(&mut queue, "x", Purpose::Stop, 2);
        let removed = |queue: &mut WaitQueue<String>, number: i64| {
            let place = places[usize::try_from(number).unwrap()];
            queue.remove(&requester("x", Purpose::Stop, number), place).is_some()
        };
        assert!(removed(&mut queue, 0));
        queue.accept(&"x".into(), &"s".into());
        assert!(removed(&mut queue, 1) && !removed(&mut queue, 1));
        assert!(queue.is_empty());
        assert_eq!(queue.waiting(Purpose::Stop), 0);
    }

    #[test]
    fn a_waiter_that_may_not_go_on_is_passed_over() {
        let mut queue = WaitQueue::default();
        add(&mut queue, "a", Purpose::Stop, 1);
        add(&mut queue, "b", Purpose::Stop, 1);
        let (requester, waiter) = queue.pop(|namespace, _| &**namespace == "b").unwrap();
        assert_eq!((&*requester.namespace, waiter.as_str()), ("b", "b stop 0"));
        assert!(queue.pop(|_, waiter| waiter.starts_with('x')).is_none());
        assert_eq!(pop(&mut queue, 9), ["a stop 0"]);
    }
}
