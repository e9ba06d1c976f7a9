//! Owns the state of one tenant's budget: which requests count, the turn of the next one, and closures after a 429.
//! Never waits.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::Notify, time::Instant};

use crate::amperity::{adaptive_rate::AdaptiveRate, purpose::Purpose};
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

/// The order of the queue: by purpose, then by the creation of the resource, then by arrival.
pub type QueuePosition = (Purpose, Timestamp, u64);

/// The budget of one tenant.
pub struct TenantBudget {
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
    /// The id of the last slot or queue entry.
    next_id: u64,
    /// The number of slots that are not dropped: their requests may still get a 429.
    slots: usize,
    /// The requests that count, with the start of their window; `None` while a slot is unused.
    counted: BTreeMap<u64, Option<Instant>>,
    /// The requests that wait for a slot.
    queue: BTreeMap<QueuePosition, Arc<Notify>>,
}

/// The result of asking for a slot.
pub enum Grant {
    /// A slot with its id and turn.
    Slot {
        /// The id, by which the request counts.
        id: u64,
        /// The time at which the slot may be used.
        turn: Instant,
    },
    /// No slot before this time.
    At(Instant),
    /// No slot until another one is used or given back, or another request leaves the queue.
    OnChange,
}

impl TenantBudget {
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
            next_id: 0,
            slots: 0,
            counted: BTreeMap::new(),
            queue: BTreeMap::new(),
        }
    }

    /// Adds a request to the queue. `created` is the time of the resource's creation.
    pub fn enqueue(&mut self, purpose: Purpose, created: Timestamp, woken: Arc<Notify>) -> QueuePosition {
        self.next_id += 1;
        let position = (purpose, created, self.next_id);
        self.queue.insert(position, woken);
        position
    }

    /// Removes a request from the queue.
    pub fn leave_queue(&mut self, position: &QueuePosition) {
        self.queue.remove(position);
    }

    /// Wakes the first request in the queue.
    pub fn wake_first(&self) {
        if let Some((_, first)) = self.queue.first_key_value() {
            first.notify_one();
        }
    }

    /// Returns the purposes of the requests in the queue.
    pub fn waiting(&self) -> impl Iterator<Item = Purpose> {
        self.queue.keys().map(|(purpose, ..)| *purpose)
    }

    /// Returns the rate that is allowed now, in requests per second.
    pub fn rate(&self, now: Instant) -> f64 {
        self.rate.rate(now)
    }

    /// Grants a slot to the request at this position of the queue, or returns when to try again.
    pub fn try_grant(&mut self, position: &QueuePosition, now: Instant) -> Grant {
        if self.queue.first_key_value().is_none_or(|(first, _)| first != position) {
            return Grant::OnChange;
        }
        let guarded = !is_injected(Fault::ClaimBeforeSlot);
        if let Some(until) = self.closure_end(now).filter(|_| guarded) {
            return Grant::At(until);
        }
        self.counted.retain(|_, start| start.is_none_or(|start| now < start + WINDOW));
        let mut turn = self.earliest_turn(now);
        if let Some(excess) = self.counted.len().checked_sub(self.per_second as usize) {
            // `excess + 1` windows have to end first; those of unused slots end last.
            let mut starts: Vec<Instant> = self.counted.values().copied().flatten().collect();
            starts.sort_unstable();
            let Some(start) = starts.get(excess) else { return Grant::OnChange };
            turn = turn.max(*start + WINDOW);
        }
        if now + self.lead < turn && guarded {
            return Grant::At(turn - self.lead);
        }
        self.next_id += 1;
        self.counted.insert(self.next_id, None);
        self.slots += 1;
        self.last_turn = Some(turn);
        Grant::Slot { id: self.next_id, turn }
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

    /// Takes a new turn after a closure.
    pub fn retake_turn(&mut self, now: Instant) -> Instant {
        *self.last_turn.insert(self.earliest_turn(now))
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
        self.counted.insert(id, Some(now + IN_TRANSIT));
    }

    /// Records a 429 to a request that was written at `sent_at`.
    pub fn record_rate_limited(&mut self, id: u64, sent_at: Instant, retry_after: Option<Duration>) {
        self.mark_arrived(id, sent_at);
        self.close(sent_at, retry_after);
    }

    /// Records a response other than 429. It ends the backoff, if the request was written after the last closure.
    pub fn record_answered(&mut self, id: u64, sent_at: Instant) {
        self.mark_arrived(id, sent_at);
        if self.closed_until.is_none_or(|until| until <= sent_at) {
            self.consecutive_429s = 0;
            self.closed_until = None;
        }
    }

    /// Drops a slot, and gives it back if it is unused.
    pub fn release(&mut self, id: u64, unused: bool) {
        self.slots -= 1;
        if unused {
            self.counted.remove(&id);
        }
    }

    /// Records that a request was answered and so has arrived.
    fn mark_arrived(&mut self, id: u64, sent_at: Instant) {
        self.counted.insert(id, Some(Instant::now().min(sent_at + IN_TRANSIT)));
    }

    /// Closes the budget after a 429, for `retry_after` or with exponential backoff, and lowers the rate.
    pub fn close(&mut self, sent_at: Instant, retry_after: Option<Duration>) {
        let now = Instant::now();
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
        let counts = |start: &Option<Instant>| start.is_none_or(|start| now < start + WINDOW);
        let open = self.closure_end(now).is_none();
        self.slots == 0
            && self.queue.is_empty()
            && open
            && self.rate.interval(now).is_none()
            && !self.counted.values().any(counts)
    }
}
