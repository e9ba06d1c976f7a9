//! Owns the right to send: at most so many requests in any sliding second for one tenant.
//! Never sends anything, and never lets one tenant's queue delay another's.
//!
//! The API counts arrivals, which only it sees: somewhere between the start of the sending and the
//! answer. So a request counts from its answer on, or from [`IN_TRANSIT`] after its sending where
//! the answer takes longer. A slot is granted a moment before its turn: as long as the claim and the
//! connection took lately, so that they cost no part of the rate. After a 429 requests are spread as well.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, SetOnce},
    time::{Instant, sleep_until},
};

use crate::amperity::{adaptive_rate::AdaptiveRate, endpoint::BudgetKey, purpose::Purpose};
use crate::clock::until;
use crate::fault_injection::{Fault, is_injected};
use crate::rng;

/// In any so long there are at the most so many requests as the rate says.
const WINDOW: Duration = Duration::from_secs(1);

/// By then a request surely has arrived, where no answer says so earlier.
const IN_TRANSIT: Duration = Duration::from_millis(100);

/// How long before its turn a slot is granted, at the least and at the most.
const MIN_LEAD: Duration = Duration::from_millis(50);
const MAX_LEAD: Duration = Duration::from_secs(1);

/// How long a 429 without `Retry-After` closes the budget; doubles with each further one up to the maximum.
const FIRST_CLOSURE: Duration = Duration::from_secs(1);
const MAX_CLOSURE: Duration = Duration::from_secs(60);

/// One budget as it is now, for those who tell it.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Whose it is.
    pub tenant: String,
    /// The rate that is allowed, in requests per second.
    pub rate: f64,
    /// For how long a 429 closes it.
    pub closed_for: Option<Duration>,
    /// How many requests wait for their turn, by purpose.
    pub waiting: BTreeMap<Purpose, usize>,
}

/// A place in the queue: the purpose, then the age of the resource, then the order of arrival.
type Place = (Purpose, Timestamp, u64);

/// All tenants' budgets.
#[derive(Clone)]
pub struct Budget {
    tenants: Arc<Mutex<HashMap<BudgetKey, Tenant>>>,
    per_second: u32,
}

struct Tenant {
    per_second: u32,
    rate: AdaptiveRate,
    /// The latest turn that was given.
    last_turn: Option<Instant>,
    closed_until: Option<Instant>,
    /// When the last 429 came in that told something new.
    struck: Option<Instant>,
    /// How many of them came one after the other.
    strikes: u32,
    /// How long it lately took from a slot to a request that can be written.
    lead: Duration,
    next_id: u64,
    /// The slots that were granted and are still there: their requests may be answered with a 429.
    slots: usize,
    /// The requests that count: from when on, or `None` while it has a slot and was not sent.
    counting: BTreeMap<u64, Option<Instant>>,
    queue: BTreeMap<Place, Arc<Notify>>,
}

/// The right to send one request. Given back unused when it is dropped unsent.
#[must_use]
pub struct Slot {
    budget: Budget,
    key: BudgetKey,
    id: u64,
    turn: Mutex<Turn>,
    sent: SetOnce<Instant>,
}

/// The turn of a slot in the rate limit.
#[derive(Clone, Copy)]
struct Turn {
    at: Instant,
    /// The start of the claim and the connection, which come before the request.
    begun: Instant,
}

impl Budget {
    /// Budgets of `per_second` requests in any sliding second, for each tenant.
    pub fn new(per_second: u32) -> Self {
        Self { tenants: Arc::default(), per_second: per_second.max(1) }
    }

    /// Waits for a slot. Dropping the future leaves the queue.
    pub async fn acquire(&self, key: &BudgetKey, purpose: Purpose, created: Timestamp) -> Slot {
        let waiting = self.enqueue(key, purpose, created);
        loop {
            let wait = self.with(key, |tenant| {
                let now = Instant::now();
                if tenant.queue.first_key_value().is_none_or(|(first, _)| *first != waiting.place) {
                    return Err(None);
                }
                tenant.take(now)
            });
            match wait {
                Ok((id, turn)) => {
                    let turn = Mutex::new(Turn { at: turn, begun: Instant::now() });
                    return Slot { budget: self.clone(), key: key.clone(), id, turn, sent: SetOnce::new() };
                }
                Err(at) => {
                    tokio::select! {
                        biased;
                        () = until(at) => {}
                        () = waiting.woken.notified() => {}
                    }
                }
            }
        }
    }

    /// All budgets as they are now. Those that nobody used for a while are not there.
    pub fn states(&self) -> Vec<State> {
        let now = Instant::now();
        let tenants = self.lock();
        let state = |(key, tenant): (&BudgetKey, &Tenant)| {
            let mut waiting = BTreeMap::from(Purpose::ALL.map(|purpose| (purpose, 0)));
            for (purpose, ..) in tenant.queue.keys() {
                *waiting.entry(*purpose).or_default() += 1;
            }
            let closed_for = tenant.closed(now).map(|until| until - now);
            State { tenant: key.tenant().to_owned(), rate: tenant.rate.rate(now), closed_for, waiting }
        };
        tenants.iter().map(state).collect()
    }

    /// True where requests of this tenant wait for their turn.
    pub fn is_waited_for(&self, key: &BudgetKey) -> bool {
        self.lock().get(key).is_some_and(|tenant| !tenant.queue.is_empty())
    }

    /// The limit for each tenant, in requests per second.
    pub fn limit(&self) -> u32 {
        self.per_second
    }

    fn enqueue(&self, key: &BudgetKey, purpose: Purpose, created: Timestamp) -> Waiting<'_> {
        let woken = Arc::new(Notify::new());
        let place = self.with(key, |tenant| {
            tenant.next_id += 1;
            let place = (purpose, created, tenant.next_id);
            tenant.queue.insert(place, woken.clone());
            place
        });
        Waiting { budget: self, key: key.clone(), place, woken }
    }

    /// Looks at one tenant's budget. When a new tenant comes, those that need no memory are forgotten.
    fn with<T>(&self, key: &BudgetKey, work: impl FnOnce(&mut Tenant) -> T) -> T {
        let mut tenants = self.lock();
        if !tenants.contains_key(key) {
            let now = Instant::now();
            tenants.retain(|_, tenant| !tenant.is_idle(now));
        }
        let tenant = tenants.entry(key.clone()).or_insert_with(|| Tenant::new(self.per_second));
        work(tenant)
    }

    /// Changes one tenant's budget and lets the first in its queue look again.
    fn change(&self, key: &BudgetKey, work: impl FnOnce(&mut Tenant)) {
        let mut tenants = self.lock();
        let Some(tenant) = tenants.get_mut(key) else { return };
        work(tenant);
        if let Some((_, first)) = tenant.queue.first_key_value() {
            first.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BudgetKey, Tenant>> {
        self.tenants.lock().expect("nothing panics while it holds this lock")
    }
}

/// A place in the queue that is left when this is dropped.
struct Waiting<'a> {
    budget: &'a Budget,
    key: BudgetKey,
    place: Place,
    woken: Arc<Notify>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.budget.change(&self.key, |tenant| {
            tenant.queue.remove(&self.place);
        });
    }
}

impl Tenant {
    fn new(per_second: u32) -> Self {
        Self {
            per_second,
            rate: AdaptiveRate::new(f64::from(per_second)),
            last_turn: None,
            closed_until: None,
            struck: None,
            strikes: 0,
            lead: MIN_LEAD,
            next_id: 0,
            slots: 0,
            counting: BTreeMap::new(),
            queue: BTreeMap::new(),
        }
    }

    /// Takes a slot with the time of its turn, or says when to look again; `None`: when another one's
    /// request was sent or given back.
    fn take(&mut self, now: Instant) -> Result<(u64, Instant), Option<Instant>> {
        let patient = !is_injected(Fault::ClaimBeforeSlot);
        if let Some(until) = self.closed(now).filter(|_| patient) {
            return Err(Some(until));
        }
        self.counting.retain(|_, from| from.is_none_or(|from| now < from + WINDOW));
        let mut turn = self.paced(now);
        if let Some(too_many) = self.counting.len().checked_sub(self.per_second as usize) {
            // So many more than one have to end before there is room; those that were not sent yet end
            // after all others.
            let mut froms: Vec<Instant> = self.counting.values().copied().flatten().collect();
            froms.sort_unstable();
            turn = froms.get(too_many).map(|from| turn.max(*from + WINDOW)).ok_or(None)?;
        }
        if now + self.lead < turn && patient {
            return Err(Some(turn - self.lead));
        }
        self.next_id += 1;
        self.counting.insert(self.next_id, None);
        self.slots += 1;
        self.last_turn = Some(turn);
        Ok((self.next_id, turn))
    }

    /// The earliest turn that the pace allows.
    fn paced(&self, now: Instant) -> Instant {
        let next = self.last_turn.zip(self.rate.interval(now)).map(|(last, interval)| last + interval);
        next.map_or(now, |next| next.max(now))
    }

    /// Until when a 429 closes the budget.
    fn closed(&self, now: Instant) -> Option<Instant> {
        self.closed_until.filter(|until| now < *until)
    }

    /// A request was answered, so it has arrived.
    fn arrived(&mut self, id: u64, sent: Instant) {
        self.counting.insert(id, Some(Instant::now().min(sent + IN_TRANSIT)));
    }

    fn rate_limited(&mut self, sent: Instant, retry_after: Option<Duration>) {
        let now = Instant::now();
        // A request that was sent before the last 429 came in tells nothing new of the rate.
        let new = self.struck.is_none_or(|struck| struck < sent);
        self.strikes += u32::from(new);
        let doubled = FIRST_CLOSURE.saturating_mul(1 << self.strikes.saturating_sub(1).min(10)).min(MAX_CLOSURE);
        let until = now + retry_after.unwrap_or_else(|| doubled.mul_f64(rng::upper_half()));
        self.closed_until = self.closed_until.max(Some(until));
        if new {
            self.struck = Some(now);
            self.rate.slow_down(now, until);
        }
    }

    /// True where a new budget would be no other: nobody waits, no slot is out, no request counts any more, and the
    /// rate has grown back.
    fn is_idle(&self, now: Instant) -> bool {
        let counts = |from: &Option<Instant>| from.is_none_or(|from| now < from + WINDOW);
        let open = self.closed(now).is_none();
        self.slots == 0
            && self.queue.is_empty()
            && open
            && self.rate.interval(now).is_none()
            && !self.counting.values().any(counts)
    }
}

impl Slot {
    /// Waits until it is time to connect: no 429 closes the budget, and the turn is no further away than the
    /// preparations took lately.
    pub async fn near(&self) {
        loop {
            self.reopened().await;
            let (turn, lead) = (self.its_turn().at, self.with(|tenant| tenant.lead));
            let Some(wait) = (turn - lead).checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) else {
                return;
            };
            tokio::time::sleep(wait).await;
            self.its_turn().begun = Instant::now();
        }
    }

    /// Waits while a 429 that came in since the slot was granted closes the budget. Then its turn is a new
    /// one: requests that waited for the same moment are not sent all at once.
    async fn reopened(&self) {
        while let Some(until) = self.with(|tenant| tenant.closed(Instant::now())) {
            sleep_until(until).await;
            let at = self.with(|tenant| *tenant.last_turn.insert(tenant.paced(Instant::now())));
            *self.its_turn() = Turn { at, begun: Instant::now() };
        }
    }

    /// Waits for its turn. To be called when all else is ready.
    pub async fn turn(&self) {
        let took = self.its_turn().begun.elapsed();
        self.with(|tenant| tenant.lead = ((tenant.lead * 3 + took) / 4).clamp(MIN_LEAD, MAX_LEAD));
        loop {
            let turn = self.its_turn().at;
            sleep_until(turn).await;
            self.reopened().await;
            if self.its_turn().at == turn {
                return;
            }
        }
    }

    fn its_turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().expect("nothing panics while it holds this lock")
    }

    fn with<T>(&self, work: impl FnOnce(&mut Tenant) -> T) -> T {
        self.budget.with(&self.key, work)
    }

    /// Says that the request is written now. It counts from here on.
    pub fn send(&self) {
        let now = Instant::now();
        if self.sent.set(now).is_ok() {
            self.budget.change(&self.key, |tenant| {
                tenant.counting.insert(self.id, Some(now + IN_TRANSIT));
            });
        }
    }

    /// When the request was written.
    pub fn sent(&self) -> Option<Instant> {
        self.sent.get().copied()
    }

    /// Waits until the request is written, and returns when it was.
    pub async fn written(&self) -> Instant {
        *self.sent.wait().await
    }

    /// Says that the answer was a 429: closes the tenant's budget for everybody.
    pub fn rate_limited(&self, retry_after: Option<Duration>) {
        let Some(sent) = self.sent.get() else { return };
        self.budget.change(&self.key, |tenant| {
            tenant.arrived(self.id, *sent);
            tenant.rate_limited(*sent, retry_after);
        });
    }

    /// Says that there was an answer other than 429.
    pub fn answered(&self) {
        let Some(sent) = self.sent.get() else { return };
        self.budget.change(&self.key, |tenant| {
            tenant.arrived(self.id, *sent);
            if tenant.closed_until.is_none_or(|until| until <= *sent) {
                tenant.strikes = 0;
                tenant.closed_until = None;
            }
        });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let unused = self.sent().is_none();
        self.budget.change(&self.key, |tenant| {
            tenant.slots -= 1;
            if unused {
                tenant.counting.remove(&self.id);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::endpoint::{AllowedHosts, Endpoints};

    fn key(tenant: &str) -> BudgetKey {
        let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
        endpoints.of(tenant, None).unwrap().budget_key()
    }

    fn age(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    async fn send(budget: &Budget, tenant: &str, takes: Duration) -> Instant {
        let slot = budget.acquire(&key(tenant), Purpose::Stop, age(0)).await;
        slot.turn().await;
        slot.send();
        let sent = Instant::now();
        tokio::time::sleep(takes).await;
        slot.answered();
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn no_sliding_second_has_more_than_the_rate_and_the_rate_is_used() {
        let budget = Budget::new(10);
        let start = Instant::now();
        let sends = (0..100).map(|index| {
            let budget = budget.clone();
            tokio::spawn(async move { send(&budget, "a", Duration::from_millis(index % 7)).await })
        });
        let mut sent = vec![];
        for task in sends.collect::<Vec<_>>() {
            sent.push(task.await.unwrap());
        }
        sent.sort_unstable();
        for window in sent.windows(11) {
            assert!(Duration::from_secs(1) <= window[10] - window[0], "{:?}", window[10] - window[0]);
        }
        assert_eq!(sent[9], start, "a burst goes out at once");
        let rest = sent[99] - sent[9];
        assert!(rest <= Duration::from_millis(9_100), "{rest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answers_cost_the_transit_time_and_no_more() {
        let budget = Budget::new(10);
        let start = Instant::now();
        let tasks: Vec<_> = (0..30)
            .map(|_| {
                let budget = budget.clone();
                tokio::spawn(async move { send(&budget, "a", Duration::from_secs(25)).await })
            })
            .collect();
        let mut last = start;
        for task in tasks {
            last = last.max(task.await.unwrap());
        }
        assert_eq!(last - start, (Duration::from_secs(1) + IN_TRANSIT) * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn stops_go_before_reads_and_the_older_before_the_newer() {
        let budget = Budget::new(1);
        send(&budget, "a", Duration::ZERO).await;
        let order = Arc::new(Mutex::new(vec![]));
        let wanted =
            [(Purpose::Read, 1), (Purpose::Stop, 9), (Purpose::Stop, 3), (Purpose::Token, 20), (Purpose::Read, 0)];
        let tasks: Vec<_> = wanted
            .into_iter()
            .map(|(purpose, second)| {
                let (budget, order) = (budget.clone(), order.clone());
                tokio::spawn(async move {
                    let slot = budget.acquire(&key("a"), purpose, age(second)).await;
                    slot.turn().await;
                    slot.send();
                    order.lock().unwrap().push((purpose, second));
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let expected =
            [(Purpose::Token, 20), (Purpose::Stop, 3), (Purpose::Stop, 9), (Purpose::Read, 0), (Purpose::Read, 1)];
        assert_eq!(*order.lock().unwrap(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_that_was_not_used_is_given_back() {
        let budget = Budget::new(1);
        let start = Instant::now();
        drop(budget.acquire(&key("a"), Purpose::Stop, age(0)).await);
        send(&budget, "a", Duration::ZERO).await;
        assert_eq!(Instant::now(), start);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_queue_holds_nobody_up() {
        let budget = Budget::new(1);
        send(&budget, "a", Duration::ZERO).await;
        let start = Instant::now();
        let mut first = Box::pin(async { budget.acquire(&key("a"), Purpose::Stop, age(0)).await });
        let second = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(&key("a"), Purpose::Stop, age(1)).await.turn().await }
        });
        assert!(futures::poll!(first.as_mut()).is_pending());
        tokio::task::yield_now().await;
        drop(first);
        second.await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_429_closes_the_budget_for_all_of_its_tenant_and_for_nobody_else() {
        let budget = Budget::new(10);
        let start = Instant::now();
        let slot = budget.acquire(&key("a"), Purpose::Stop, age(0)).await;
        slot.send();
        slot.rate_limited(Some(Duration::from_secs(7)));
        send(&budget, "b", Duration::ZERO).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "another tenant is not held up");
        send(&budget, "a", Duration::ZERO).await;
        assert_eq!(start.elapsed(), Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_granted_a_moment_before_its_turn_and_a_429_moves_the_turn() {
        let budget = Budget::new(1);
        send(&budget, "a", Duration::ZERO).await;
        let start = Instant::now();
        let slot = budget.acquire(&key("a"), Purpose::Stop, age(0)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(1) - MIN_LEAD);
        budget.with(&key("a"), |tenant| tenant.rate_limited(Instant::now(), Some(Duration::from_secs(3))));
        slot.turn().await;
        assert_eq!(start.elapsed(), Duration::from_secs(4) - MIN_LEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_way_to_the_api_costs_no_part_of_the_rate() {
        let budget = Budget::new(10);
        let start = Instant::now();
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                let budget = budget.clone();
                tokio::spawn(async move {
                    let slot = budget.acquire(&key("a"), Purpose::Stop, age(0)).await;
                    // The claim and the connection.
                    tokio::time::sleep(Duration::from_millis(400)).await;
                    slot.turn().await;
                    slot.send();
                    let sent = Instant::now();
                    slot.answered();
                    sent
                })
            })
            .collect();
        let mut sent = vec![];
        for task in tasks {
            sent.push(task.await.unwrap());
        }
        sent.sort_unstable();
        for window in sent.windows(11) {
            assert!(Duration::from_secs(1) <= window[10] - window[0], "{:?}", window[10] - window[0]);
        }
        let whole = sent[99] - start;
        assert!(whole < Duration::from_secs(11), "{whole:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_that_nobody_uses_any_more_are_forgotten() {
        let budget = Budget::new(10);
        for tenant in ["a", "b", "c"] {
            send(&budget, tenant, Duration::ZERO).await;
        }
        let slot = budget.acquire(&key("limited"), Purpose::Stop, age(0)).await;
        slot.send();
        slot.rate_limited(None);
        tokio::time::sleep(Duration::from_secs(2)).await;
        send(&budget, "d", Duration::ZERO).await;
        let mut known: Vec<_> = budget.lock().keys().cloned().collect();
        known.sort_by_key(|known| format!("{known:?}"));
        assert_eq!(known, [key("d"), key("limited")], "a lowered rate is remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn the_429s_of_one_burst_lower_the_rate_once_and_then_requests_are_spread() {
        let budget = Budget::new(10);
        let mut slots = vec![];
        for _ in 0..10 {
            let slot = budget.acquire(&key("a"), Purpose::Stop, age(0)).await;
            slot.send();
            slots.push(slot);
        }
        for slot in slots {
            slot.rate_limited(Some(Duration::from_secs(1)));
        }
        let first = send(&budget, "a", Duration::ZERO).await;
        let second = send(&budget, "a", Duration::ZERO).await;
        let apart = second - first;
        assert!((0.19..=0.2).contains(&apart.as_secs_f64()), "{apart:?}: half of ten a second");
    }

    #[tokio::test(start_paused = true)]
    async fn slots_that_a_429_held_up_do_not_go_all_at_once() {
        let budget = Budget::new(10);
        let mut held = vec![];
        for _ in 0..5 {
            held.push(budget.acquire(&key("a"), Purpose::Stop, age(0)).await);
        }
        let slot = budget.acquire(&key("a"), Purpose::Stop, age(0)).await;
        slot.send();
        slot.rate_limited(Some(Duration::from_secs(1)));
        let start = Instant::now();
        let sent = futures::future::join_all(held.iter().map(async |slot| {
            slot.near().await;
            slot.turn().await;
            slot.send();
            start.elapsed().as_millis()
        }));
        let mut sent = sent.await;
        sent.sort_unstable();
        assert!(sent.windows(2).all(|two| 150 <= two[1] - two[0]), "{sent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_429_that_is_late_is_like_a_first_one() {
        let budget = Budget::new(10);
        let (late, first) = (
            budget.acquire(&key("a"), Purpose::Stop, age(0)).await,
            budget.acquire(&key("a"), Purpose::Stop, age(0)).await,
        );
        late.send();
        first.send();
        tokio::time::sleep(Duration::from_millis(5)).await;
        first.rate_limited(None);
        send(&budget, "a", Duration::ZERO).await;
        late.rate_limited(None);
        let start = Instant::now();
        send(&budget, "a", Duration::ZERO).await;
        assert!(start.elapsed() <= FIRST_CLOSURE, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn without_retry_after_the_closure_doubles_up_to_a_minute() {
        let budget = Budget::new(10);
        let mut closures = vec![];
        for _ in 0..9 {
            let slot = budget.acquire(&key("a"), Purpose::Stop, age(0)).await;
            slot.send();
            let start = Instant::now();
            tokio::time::advance(Duration::from_millis(1)).await;
            slot.rate_limited(None);
            drop(budget.acquire(&key("a"), Purpose::Stop, age(0)).await);
            closures.push(start.elapsed().as_secs_f64());
        }
        assert!((0.5..=1.1).contains(&closures[0]), "{closures:?}");
        assert!((4.0..=8.1).contains(&closures[3]), "{closures:?}");
        assert!((30.0..=60.1).contains(&closures[8]), "{closures:?}");
    }
}
