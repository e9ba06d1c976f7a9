//! Owns the state of one tenant's budget: which requests count, the turn of the next one, and closures after a 429.
//! Never waits, and reads no clock.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::amperity::{
    adaptive_rate::AdaptiveRate,
    wait_queue::{Requester, WaitQueue},
};
use crate::fault_injection::{Fault, is_injected};
use crate::rng;

/// The sliding window in which at most `per_second` requests are sent.
pub const WINDOW: Duration = Duration::from_secs(1);

/// The time after its write at which a request counts as arrived, if no response came earlier.
pub const IN_TRANSIT: Duration = Duration::from_millis(100);

/// The shortest lead: the time between the grant of a slot and its turn.
pub const MIN_LEAD: Duration = Duration::from_millis(50);
/// The longest lead, see [`MIN_LEAD`].
pub const MAX_LEAD: Duration = Duration::from_secs(1);

/// The time for which a 429 without `Retry-After` closes the budget. It doubles with each further one up to the maximum. This
/// backoff with jitter is the advice of <https://docs.amperity.com/api/responses.html>, which does not mention
/// `Retry-After`.
const FIRST_CLOSURE: Duration = Duration::from_secs(1);
const MAX_CLOSURE: Duration = Duration::from_secs(60);

/// The time after its turn at which an unused slot lapses. Its request takes a new turn when it is ready, so that a
/// namespace whose claims are slow holds no slots that others could use.
pub const LAPSE: Duration = Duration::from_millis(500);

/// The budget of one tenant, with the requests that wait for it, each with its waiter `W`.
pub struct TenantBudget<W> {
    per_second: u32,
    /// The rate after recent 429s.
    rate: AdaptiveRate,
    /// The latest turn that was assigned.
    last_turn: Option<Instant>,
    /// The end of the closure after a 429.
    closed_until: Option<Instant>,
    /// The arrival of the last new 429. A 429 is new if its request was written after the previous new one had arrived.
    last_429: Option<Instant>,
    /// The number of new 429s since the last other response.
    consecutive_429s: u32,
    /// The recent time from the grant of a slot to a request that is ready to be written.
    lead: Duration,
    /// The id of the last slot.
    last_id: u64,
    /// The slots that are not dropped, with their namespaces: their requests may still get a 429.
    slots: HashMap<u64, SlotState>,
    /// The requests that count.
    counted: BTreeMap<u64, Counted>,
    /// The requests that wait for a slot.
    pub queue: WaitQueue<W>,
}

/// A slot that is not dropped.
struct SlotState {
    namespace: Arc<str>,
    /// True if it no longer counts and was not sent.
    lapsed: bool,
}

/// A request that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// It is not sent yet, and lapses at this time.
    Unsent {
        /// The time at which it may be sent.
        turn: Instant,
        /// The time at which it no longer counts.
        lapses: Instant,
    },
    /// It was sent, and its window starts at this time.
    Sent(Instant),
}

impl Counted {
    /// Returns the end of the time for which the request counts, unless it is sent before.
    fn end(self) -> Instant {
        match self {
            Self::Unsent { lapses, .. } => lapses,
            Self::Sent(start) => start + WINDOW,
        }
    }
}

/// A granted slot.
#[derive(Clone, Copy, Debug)]
pub struct Granted {
    /// The id, by which the request counts.
    pub id: u64,
    /// The time at which the slot may be used.
    pub turn: Instant,
}

/// The result of asking for the next slot.
pub enum Next<W> {
    /// A slot for this request.
    Slot(Granted, Requester, W),
    /// No slot before this time.
    At(Instant),
    /// No request that waits may go on now.
    Blocked,
    /// No request waits.
    Empty,
}

impl<W> TenantBudget<W> {
    /// Creates an open budget with the full rate.
    pub fn new(per_second: u32) -> Self {
        Self {
            per_second,
            rate: AdaptiveRate::new(f64::from(per_second)),
            last_turn: None,
            closed_until: None,
            last_429: None,
            consecutive_429s: 0,
            lead: MIN_LEAD,
            last_id: 0,
            slots: HashMap::new(),
            counted: BTreeMap::new(),
            queue: WaitQueue::default(),
        }
    }

    /// Returns the rate that is allowed now, in requests per second.
    pub fn rate(&self, now: Instant) -> f64 {
        self.rate.rate(now)
    }

    /// Grants a slot to the next request, of those that are `allowed` to go on. That depends on the namespace, on the
    /// waiter, and on whether slots of the namespace have lapsed: while their requests are late, no others should start.
    pub fn next(&mut self, now: Instant, allowed: impl Fn(&Arc<str>, &W, bool) -> bool) -> Next<W> {
        if self.queue.is_empty() {
            return Next::Empty;
        }
        let guarded = !is_injected(Fault::ClaimBeforeSlot);
        if let Some(until) = self.closure_end(now).filter(|_| guarded) {
            return Next::At(until);
        }
        self.expire(now);
        let mut turn = self.earliest_turn(now);
        if let Some(excess) = self.counted.len().checked_sub(self.per_second as usize) {
            // `excess + 1` windows have to end first. Those of unsent slots have not started yet.
            let (mut ends, mut lapses) = (vec![], vec![]);
            for counted in self.counted.values() {
                match counted {
                    Counted::Sent(start) => ends.push(*start + WINDOW),
                    Counted::Unsent { lapses: at, .. } => lapses.push(*at),
                }
            }
            ends.sort_unstable();
            let Some(end) = ends.get(excess) else { return lapses.into_iter().min().map_or(Next::Blocked, Next::At) };
            turn = turn.max(*end);
        }
        if now + self.lead < turn && guarded {
            return Next::At(turn - self.lead);
        }
        let late: HashSet<&Arc<str>> =
            self.slots.values().filter(|slot| slot.lapsed).map(|slot| &slot.namespace).collect();
        let allowed = |namespace: &Arc<str>, waiter: &W| allowed(namespace, waiter, late.contains(namespace));
        let Some((requester, waiter)) = self.queue.pop(allowed) else { return Next::Blocked };
        self.last_id += 1;
        self.counted.insert(self.last_id, Counted::Unsent { turn, lapses: turn.max(now) + LAPSE });
        self.slots.insert(self.last_id, SlotState { namespace: requester.namespace.clone(), lapsed: false });
        self.last_turn = Some(turn);
        Next::Slot(Granted { id: self.last_id, turn }, requester, waiter)
    }

    /// Removes what no longer counts.
    fn expire(&mut self, now: Instant) {
        let ended: Vec<u64> =
            self.counted.iter().filter(|(_, counted)| counted.end() <= now).map(|(id, _)| *id).collect();
        for id in ended {
            if let Some(Counted::Unsent { .. }) = self.counted.remove(&id) {
                self.set_lapsed(id, true);
            }
        }
    }

    fn set_lapsed(&mut self, id: u64, lapsed: bool) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.lapsed = lapsed;
        }
    }

    /// Returns the turn of an unsent slot. `None` if it has lapsed, or if a 429 closes the budget: then its request needs
    /// another slot.
    pub fn turn(&mut self, id: u64, now: Instant) -> Option<Instant> {
        self.expire(now);
        let Counted::Unsent { turn, .. } = *self.counted.get(&id)? else { return None };
        if self.closure_end(now).is_some() && !is_injected(Fault::ClaimBeforeSlot) {
            self.counted.remove(&id);
            self.set_lapsed(id, true);
            return None;
        }
        Some(turn)
    }

    /// Returns the earliest time at which an unsent slot lapses.
    pub fn next_lapse(&self) -> Option<Instant> {
        let unsent = |counted: &Counted| match counted {
            Counted::Unsent { lapses, .. } => Some(*lapses),
            Counted::Sent(_) => None,
        };
        self.counted.values().filter_map(unsent).min()
    }

    /// Returns the earliest turn that the adaptive rate allows.
    fn earliest_turn(&self, now: Instant) -> Instant {
        let next = self.last_turn.zip(self.rate.interval(now)).map(|(last, interval)| last + interval);
        next.map_or(now, |next| next.max(now))
    }

    /// Returns the end of the closure; `None` while the budget is open.
    pub fn closure_end(&self, now: Instant) -> Option<Instant> {
        self.closed_until.filter(|until| now < *until)
    }

    /// Returns the recent time from the grant of a slot to a request that is ready to be written.
    pub fn lead(&self) -> Duration {
        self.lead
    }

    /// Records how long the preparations of a request took.
    pub fn learn_lead(&mut self, took: Duration) {
        self.lead = ((self.lead * 3 + took) / 4).clamp(MIN_LEAD, MAX_LEAD);
    }

    /// Records that a request is written.
    pub fn record_sent(&mut self, id: u64, now: Instant) {
        self.set_lapsed(id, false);
        self.counted.insert(id, Counted::Sent(now + IN_TRANSIT));
    }

    /// Records a 429 to a request that was written at `sent_at`.
    pub fn record_rate_limited(&mut self, id: u64, sent_at: Instant, now: Instant, retry_after: Option<Duration>) {
        self.mark_arrived(id, sent_at, now);
        self.close(sent_at, now, retry_after);
    }

    /// Records a response other than 429. It ends the backoff, if the request was written after the last closure.
    pub fn record_answered(&mut self, id: u64, sent_at: Instant, now: Instant) {
        self.mark_arrived(id, sent_at, now);
        if self.closed_until.is_none_or(|until| until <= sent_at) {
            self.consecutive_429s = 0;
            self.closed_until = None;
        }
    }

    /// Drops a slot, and gives it back if it is unused.
    pub fn release(&mut self, id: u64, unused: bool) {
        self.slots.remove(&id);
        if unused {
            self.counted.remove(&id);
        }
    }

    /// Records that a request was answered and so has arrived.
    fn mark_arrived(&mut self, id: u64, sent_at: Instant, now: Instant) {
        self.counted.insert(id, Counted::Sent(now.min(sent_at + IN_TRANSIT)));
    }

    /// Closes the budget after a 429, for `retry_after` or with exponential backoff, and lowers the rate.
    pub fn close(&mut self, sent_at: Instant, now: Instant, retry_after: Option<Duration>) {
        // A request that was written before the last 429 arrived says nothing new about the rate.
        let new = self.last_429.is_none_or(|last| last < sent_at);
        self.consecutive_429s += u32::from(new);
        let doublings = self.consecutive_429s.saturating_sub(1).min(10);
        let backoff = FIRST_CLOSURE.saturating_mul(1 << doublings).min(MAX_CLOSURE);
        let until = now + retry_after.unwrap_or_else(|| backoff.mul_f64(rng::upper_half()));
        self.closed_until = self.closed_until.max(Some(until));
        if new {
            self.last_429 = Some(now);
            self.rate.slow_down(now, until);
        }
    }

    /// Returns true if a new budget would behave the same: no queue, no slots, no counted requests, the full rate.
    pub fn is_idle(&self, now: Instant) -> bool {
        let open = self.closure_end(now).is_none();
        self.slots.is_empty()
            && self.queue.is_empty()
            && open
            && self.rate.interval(now).is_none()
            && self.counted.values().all(|counted| counted.end() <= now)
    }
}
