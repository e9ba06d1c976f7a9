//! Owns the rate limit of each tenant: at most `per_second` requests in any sliding second. The documented limit is
//! ten, see <https://docs.amperity.com/api/rate_limits.html>.
//! Never sends a request, and never lets the queue of one tenant delay another tenant.
//!
//! The API counts a request when it arrives, at an unknown time between its write and its response. So the second for
//! which a request counts starts at its response, or at `IN_TRANSIT` after its write if the response takes longer.
//!
//! A slot is granted before its turn, because the claim and the connection take time, which must not lower the rate.
//! The lead is the time that they took recently. After a 429, requests are also spaced evenly.

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

use crate::amperity::{
    endpoint::BudgetKey,
    purpose::Purpose,
    tenant_budget::{Grant, QueuePosition, TenantBudget},
};

/// A snapshot of one budget, for the metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The tenant.
    pub tenant: String,
    /// The rate that is allowed now, in requests per second.
    pub rate: f64,
    /// The remaining time of the closure after a 429.
    pub closed_for: Option<Duration>,
    /// The number of requests that wait for a slot, by purpose.
    pub waiting: BTreeMap<Purpose, usize>,
}

/// The budgets of all tenants.
#[derive(Clone)]
pub struct Budget {
    tenants: Arc<Mutex<HashMap<BudgetKey, TenantBudget>>>,
    per_second: u32,
}

/// The right to send one request. Dropping an unused slot gives it back.
#[must_use]
pub struct Slot {
    budget: Budget,
    key: BudgetKey,
    id: u64,
    turn: Mutex<Turn>,
    sent_at: SetOnce<Instant>,
}

/// The time at which a slot may be used.
#[derive(Clone, Copy)]
struct Turn {
    at: Instant,
    /// The start of the preparations: the claim and the connection.
    preparing_since: Instant,
}

impl Budget {
    /// Creates budgets of `per_second` requests in any sliding second, for each tenant.
    pub fn new(per_second: u32) -> Self {
        Self { tenants: Arc::default(), per_second: per_second.max(1) }
    }

    /// Waits for a slot. Dropping the future leaves the queue. `created` is the time of the resource's creation.
    pub async fn acquire(&self, key: &BudgetKey, purpose: Purpose, created: Timestamp) -> Slot {
        let entry = self.enqueue(key, purpose, created);
        loop {
            match self.with_tenant(key, |tenant| tenant.try_grant(&entry.position, Instant::now())) {
                Grant::Slot { id, turn } => {
                    let turn = Mutex::new(Turn { at: turn, preparing_since: Instant::now() });
                    return Slot { budget: self.clone(), key: key.clone(), id, turn, sent_at: SetOnce::new() };
                }
                Grant::At(retry_at) => {
                    tokio::select! {
                        biased;
                        () = sleep_until(retry_at) => {}
                        () = entry.woken.notified() => {}
                    }
                }
                Grant::OnChange => entry.woken.notified().await,
            }
        }
    }

    /// Returns a snapshot of each budget. Idle ones may be missing.
    pub fn states(&self) -> Vec<State> {
        let now = Instant::now();
        let tenants = self.lock();
        let state = |(key, tenant): (&BudgetKey, &TenantBudget)| {
            let mut waiting = BTreeMap::from(Purpose::ALL.map(|purpose| (purpose, 0)));
            for purpose in tenant.waiting() {
                *waiting.entry(purpose).or_default() += 1;
            }
            let closed_for = tenant.closure_end(now).map(|until| until - now);
            State { tenant: key.tenant().to_owned(), rate: tenant.rate(now), closed_for, waiting }
        };
        tenants.iter().map(state).collect()
    }

    /// Returns true if requests wait for a slot of this budget.
    pub fn has_waiting_requests(&self, key: &BudgetKey) -> bool {
        self.lock().get(key).is_some_and(|tenant| tenant.waiting().next().is_some())
    }

    /// Returns the limit for each tenant, in requests per second.
    pub fn limit(&self) -> u32 {
        self.per_second
    }

    fn enqueue(&self, key: &BudgetKey, purpose: Purpose, created: Timestamp) -> QueueEntry<'_> {
        let woken = Arc::new(Notify::new());
        let position = self.with_tenant(key, |tenant| tenant.enqueue(purpose, created, woken.clone()));
        QueueEntry { budget: self, key: key.clone(), position, woken }
    }

    /// Accesses the budget of one tenant. A new one is created if needed; idle ones are then removed.
    fn with_tenant<T>(&self, key: &BudgetKey, work: impl FnOnce(&mut TenantBudget) -> T) -> T {
        let mut tenants = self.lock();
        if !tenants.contains_key(key) {
            let now = Instant::now();
            tenants.retain(|_, tenant| !tenant.is_idle(now));
        }
        let tenant = tenants.entry(key.clone()).or_insert_with(|| TenantBudget::new(self.per_second));
        work(tenant)
    }

    /// Changes the budget of one tenant and wakes the first request in its queue.
    fn update(&self, key: &BudgetKey, work: impl FnOnce(&mut TenantBudget)) {
        let mut tenants = self.lock();
        let Some(tenant) = tenants.get_mut(key) else { return };
        work(tenant);
        tenant.wake_first();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BudgetKey, TenantBudget>> {
        self.tenants.lock().expect("nothing panics while it holds this lock")
    }
}

/// A request in the queue. Dropping it leaves the queue.
struct QueueEntry<'a> {
    budget: &'a Budget,
    key: BudgetKey,
    position: QueuePosition,
    woken: Arc<Notify>,
}

impl Drop for QueueEntry<'_> {
    fn drop(&mut self) {
        self.budget.update(&self.key, |tenant| tenant.leave_queue(&self.position));
    }
}

impl Slot {
    /// Waits until it is time to connect: the budget is open, and the turn is at most the lead away.
    pub async fn wait_until_near_turn(&self) {
        loop {
            self.wait_while_closed().await;
            let (turn, lead) = (self.lock_turn().at, self.with_tenant(|tenant| tenant.lead()));
            let Some(wait) = (turn - lead).checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) else {
                return;
            };
            tokio::time::sleep(wait).await;
            self.lock_turn().preparing_since = Instant::now();
        }
    }

    /// Waits while a 429 closes the budget, and then takes a new turn: requests that waited for the same end of a
    /// closure are not sent all at once.
    async fn wait_while_closed(&self) {
        while let Some(until) = self.with_tenant(|tenant| tenant.closure_end(Instant::now())) {
            sleep_until(until).await;
            let at = self.with_tenant(|tenant| tenant.retake_turn(Instant::now()));
            *self.lock_turn() = Turn { at, preparing_since: Instant::now() };
        }
    }

    /// Waits for the turn. To be called when all preparations are done: their duration adjusts the lead.
    pub async fn wait_for_turn(&self) {
        let took = self.lock_turn().preparing_since.elapsed();
        self.with_tenant(|tenant| tenant.learn_lead(took));
        loop {
            let turn = self.lock_turn().at;
            sleep_until(turn).await;
            self.wait_while_closed().await;
            if self.lock_turn().at == turn {
                return;
            }
        }
    }

    fn lock_turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().expect("nothing panics while it holds this lock")
    }

    fn with_tenant<T>(&self, work: impl FnOnce(&mut TenantBudget) -> T) -> T {
        self.budget.with_tenant(&self.key, work)
    }

    /// Records that the request is written now.
    pub fn mark_sent(&self) {
        let now = Instant::now();
        if self.sent_at.set(now).is_ok() {
            self.budget.update(&self.key, |tenant| tenant.record_sent(self.id, now));
        }
    }

    /// Returns when the request was written.
    pub fn sent_at(&self) -> Option<Instant> {
        self.sent_at.get().copied()
    }

    /// Waits until the request is written, and returns when it was.
    pub async fn wait_until_sent(&self) -> Instant {
        *self.sent_at.wait().await
    }

    /// Records a 429: it closes the budget for all requests of the tenant. Returns the time until it reopens.
    pub fn record_rate_limited(&self, retry_after: Option<Duration>) -> Duration {
        let Some(sent_at) = self.sent_at() else { return Duration::ZERO };
        self.budget.update(&self.key, |tenant| tenant.record_rate_limited(self.id, sent_at, retry_after));
        let now = Instant::now();
        self.with_tenant(|tenant| tenant.closure_end(now)).map(|until| until - now).unwrap_or_default()
    }

    /// Records a response other than 429.
    pub fn record_answered(&self) {
        let Some(sent_at) = self.sent_at() else { return };
        self.budget.update(&self.key, |tenant| tenant.record_answered(self.id, sent_at));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let unused = self.sent_at().is_none();
        self.budget.update(&self.key, |tenant| tenant.release(self.id, unused));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::endpoint::{AllowedHosts, Endpoints};
    use crate::amperity::tenant_budget::{IN_TRANSIT, MAX_LEAD, MIN_LEAD, WINDOW};

    fn key(tenant: &str) -> BudgetKey {
        let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
        endpoints.of(tenant, None).unwrap().budget_key()
    }

    fn created(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    async fn send(budget: &Budget, tenant: &str, latency: Duration) -> Instant {
        let slot = budget.acquire(&key(tenant), Purpose::Stop, created(0)).await;
        slot.wait_for_turn().await;
        slot.mark_sent();
        let sent = Instant::now();
        tokio::time::sleep(latency).await;
        slot.record_answered();
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn no_sliding_second_exceeds_the_rate_and_the_rate_is_used_up() {
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
        assert_eq!(sent[9], start, "a burst is sent at once");
        let rest = sent[99] - sent[9];
        assert!(rest <= Duration::from_millis(9_100), "{rest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_response_delays_later_requests_by_the_transit_time_only() {
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
    async fn stops_get_slots_before_reads_and_older_resources_before_newer_ones() {
        let budget = Budget::new(1);
        send(&budget, "a", Duration::ZERO).await;
        let order = Arc::new(Mutex::new(vec![]));
        let requests =
            [(Purpose::Read, 1), (Purpose::Stop, 9), (Purpose::Stop, 3), (Purpose::Token, 20), (Purpose::Read, 0)];
        let tasks: Vec<_> = requests
            .into_iter()
            .map(|(purpose, second)| {
                let (budget, order) = (budget.clone(), order.clone());
                tokio::spawn(async move {
                    let slot = budget.acquire(&key("a"), purpose, created(second)).await;
                    slot.wait_for_turn().await;
                    slot.mark_sent();
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
    async fn an_unused_slot_is_given_back() {
        let budget = Budget::new(1);
        let start = Instant::now();
        drop(budget.acquire(&key("a"), Purpose::Stop, created(0)).await);
        send(&budget, "a", Duration::ZERO).await;
        assert_eq!(Instant::now(), start);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_leaves_the_queue_does_not_delay_the_others() {
        let budget = Budget::new(1);
        send(&budget, "a", Duration::ZERO).await;
        let start = Instant::now();
        let mut first = Box::pin(async { budget.acquire(&key("a"), Purpose::Stop, created(0)).await });
        let second = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(&key("a"), Purpose::Stop, created(1)).await.wait_for_turn().await }
        });
        assert!(futures::poll!(first.as_mut()).is_pending());
        tokio::task::yield_now().await;
        drop(first);
        second.await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_429_closes_the_whole_budget_of_its_tenant_and_no_other() {
        let budget = Budget::new(10);
        let start = Instant::now();
        let slots = [
            budget.acquire(&key("a"), Purpose::Stop, created(0)).await,
            budget.acquire(&key("a"), Purpose::Stop, created(0)).await,
        ];
        slots.iter().for_each(Slot::mark_sent);
        assert_eq!(slots[0].record_rate_limited(Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(
            slots[1].record_rate_limited(Some(Duration::from_secs(3))),
            Duration::from_secs(7),
            "until it reopens"
        );
        send(&budget, "b", Duration::ZERO).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "another tenant is not delayed");
        send(&budget, "a", Duration::ZERO).await;
        assert_eq!(start.elapsed(), Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_granted_ahead_of_its_turn_and_a_429_postpones_the_turn() {
        let budget = Budget::new(1);
        send(&budget, "a", Duration::ZERO).await;
        let start = Instant::now();
        let slot = budget.acquire(&key("a"), Purpose::Stop, created(0)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(1) - MIN_LEAD);
        budget.with_tenant(&key("a"), |tenant| tenant.close(Instant::now(), Some(Duration::from_secs(3))));
        slot.wait_for_turn().await;
        assert_eq!(start.elapsed(), Duration::from_secs(4) - MIN_LEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_claims_and_connections_do_not_lower_the_rate() {
        let budget = Budget::new(10);
        let start = Instant::now();
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                let budget = budget.clone();
                tokio::spawn(async move {
                    let slot = budget.acquire(&key("a"), Purpose::Stop, created(0)).await;
                    // The claim and the connection.
                    tokio::time::sleep(Duration::from_millis(400)).await;
                    slot.wait_for_turn().await;
                    slot.mark_sent();
                    let sent = Instant::now();
                    slot.record_answered();
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
        let elapsed = sent[99] - start;
        assert!(elapsed < Duration::from_secs(11), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_budgets_are_removed_unless_their_rate_is_lowered() {
        let budget = Budget::new(10);
        for tenant in ["a", "b", "c"] {
            send(&budget, tenant, Duration::ZERO).await;
        }
        let slot = budget.acquire(&key("limited"), Purpose::Stop, created(0)).await;
        slot.mark_sent();
        slot.record_rate_limited(None);
        tokio::time::sleep(Duration::from_secs(2)).await;
        send(&budget, "d", Duration::ZERO).await;
        let mut known: Vec<_> = budget.lock().keys().cloned().collect();
        known.sort_by_key(|known| format!("{known:?}"));
        assert_eq!(known, [key("d"), key("limited")], "a budget with a lowered rate stays");
    }

    #[tokio::test(start_paused = true)]
    async fn the_429s_of_one_burst_lower_the_rate_once_and_requests_are_then_spaced() {
        let budget = Budget::new(10);
        let mut slots = vec![];
        for _ in 0..10 {
            let slot = budget.acquire(&key("a"), Purpose::Stop, created(0)).await;
            slot.mark_sent();
            slots.push(slot);
        }
        for slot in slots {
            slot.record_rate_limited(Some(Duration::from_secs(1)));
        }
        let first = send(&budget, "a", Duration::ZERO).await;
        let second = send(&budget, "a", Duration::ZERO).await;
        let interval = second - first;
        assert!((0.19..=0.2).contains(&interval.as_secs_f64()), "{interval:?}: half of ten per second");
    }

    #[tokio::test(start_paused = true)]
    async fn slots_that_a_429_delayed_are_not_used_all_at_once() {
        let budget = Budget::new(10);
        let mut delayed = vec![];
        for _ in 0..5 {
            delayed.push(budget.acquire(&key("a"), Purpose::Stop, created(0)).await);
        }
        let slot = budget.acquire(&key("a"), Purpose::Stop, created(0)).await;
        slot.mark_sent();
        slot.record_rate_limited(Some(Duration::from_secs(1)));
        let start = Instant::now();
        let sent = futures::future::join_all(delayed.iter().map(async |slot| {
            slot.wait_until_near_turn().await;
            let near = start.elapsed();
            slot.wait_for_turn().await;
            slot.mark_sent();
            (near, start.elapsed())
        }));
        let (near, mut sent): (Vec<_>, Vec<_>) = sent.await.into_iter().unzip();
        let lead = near.iter().zip(&sent).map(|(near, sent)| *sent - *near);
        assert!(lead.clone().all(|lead| lead <= MIN_LEAD), "they connect when their turn is near: {near:?}, {sent:?}");
        sent.sort_unstable();
        let apart = Duration::from_millis(150);
        assert!(sent.windows(2).all(|two| apart <= two[1] - two[0]), "{sent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_429_of_an_older_request_does_not_double_the_closure() {
        let budget = Budget::new(10);
        let (late, first) = (
            budget.acquire(&key("a"), Purpose::Stop, created(0)).await,
            budget.acquire(&key("a"), Purpose::Stop, created(0)).await,
        );
        late.mark_sent();
        first.mark_sent();
        tokio::time::sleep(Duration::from_millis(5)).await;
        first.record_rate_limited(None);
        send(&budget, "a", Duration::ZERO).await;
        late.record_rate_limited(None);
        let start = Instant::now();
        send(&budget, "a", Duration::ZERO).await;
        assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn without_retry_after_the_closure_doubles_up_to_a_minute() {
        let budget = Budget::new(10);
        let mut closures = vec![];
        for _ in 0..9 {
            let slot = budget.acquire(&key("a"), Purpose::Stop, created(0)).await;
            slot.mark_sent();
            let start = Instant::now();
            tokio::time::advance(Duration::from_millis(1)).await;
            slot.record_rate_limited(None);
            drop(budget.acquire(&key("a"), Purpose::Stop, created(0)).await);
            closures.push(start.elapsed().as_secs_f64());
        }
        assert!((0.5..=1.1).contains(&closures[0]), "{closures:?}");
        assert!((4.0..=8.1).contains(&closures[3]), "{closures:?}");
        assert!((30.0..=60.1).contains(&closures[8]), "{closures:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_the_doubling_if_its_request_was_written_after_the_closure() {
        for (answered_later, doubled) in [(true, false), (false, true)] {
            let budget = Budget::new(10);
            let early = budget.acquire(&key("a"), Purpose::Stop, created(0)).await;
            early.mark_sent();
            let limited = async || {
                let slot = budget.acquire(&key("a"), Purpose::Stop, created(0)).await;
                slot.wait_for_turn().await;
                slot.mark_sent();
                tokio::time::advance(Duration::from_millis(1)).await;
                slot.record_rate_limited(None)
            };
            limited().await;
            limited().await;
            match answered_later {
                true => drop(send(&budget, "a", Duration::ZERO).await),
                false => early.record_answered(),
            }
            let closure = limited().await;
            // The first closure lasts up to 1 s, the third one at least 2 s.
            assert_eq!(Duration::from_secs(2) <= closure, doubled, "{answered_later}: {closure:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_names_tenant_rate_closure_and_waiting_requests() {
        let budget = Budget::new(2);
        assert_eq!((budget.limit(), budget.states()), (2, vec![]));
        let slots = [
            budget.acquire(&key("a"), Purpose::Stop, created(0)).await,
            budget.acquire(&key("a"), Purpose::Stop, created(0)).await,
        ];
        let [State { rate, closed_for, .. }] = budget.states()[..] else { panic!("{:?}", budget.states()) };
        assert_eq!((rate, closed_for), (2.0, None));
        assert!(!budget.has_waiting_requests(&key("a")) && !budget.has_waiting_requests(&key("b")));
        let (other, of) = (budget.clone(), key("a"));
        let waits = tokio::spawn(async move { other.acquire(&of, Purpose::Read, created(0)).await });
        tokio::task::yield_now().await;
        assert!(budget.has_waiting_requests(&key("a")));
        slots[0].mark_sent();
        slots[0].record_rate_limited(Some(Duration::from_secs(7)));
        let [state] = &budget.states()[..] else { panic!("{:?}", budget.states()) };
        assert_eq!((state.tenant.as_str(), state.closed_for), ("a", Some(Duration::from_secs(7))));
        assert!((0.5..2.0).contains(&state.rate), "{state:?}");
        assert_eq!(state.waiting, BTreeMap::from([(Purpose::Token, 0), (Purpose::Stop, 0), (Purpose::Read, 1)]));
        waits.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_in_use_is_not_removed() {
        let budget = Budget::new(1);
        let is_there = |tenant: &str| budget.states().iter().any(|state| state.tenant == tenant);
        // A new tenant removes idle budgets.
        let used = budget.acquire(&key("slot"), Purpose::Stop, created(0)).await;
        drop(budget.acquire(&key("x"), Purpose::Stop, created(0)).await);
        assert!(is_there("slot"), "a slot is granted");
        used.mark_sent();
        drop(used);
        drop(budget.acquire(&key("y"), Purpose::Stop, created(0)).await);
        assert!(is_there("slot"), "its request still counts");
        tokio::time::advance(WINDOW + IN_TRANSIT - Duration::from_millis(1)).await;
        drop(budget.acquire(&key("z"), Purpose::Stop, created(0)).await);
        assert!(is_there("slot"), "its request counts until the window ends");
        tokio::time::advance(Duration::from_millis(1)).await;
        drop(budget.acquire(&key("w"), Purpose::Stop, created(0)).await);
        assert!(!is_there("slot"), "it is idle");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_waits_for_its_turn_before_it_connects() {
        let budget = Budget::new(1);
        let first = budget.acquire(&key("a"), Purpose::Stop, created(0)).await;
        first.mark_sent();
        first.record_answered();
        let (start, second) = (Instant::now(), budget.acquire(&key("a"), Purpose::Stop, created(0)).await);
        second.wait_until_near_turn().await;
        let near = start.elapsed();
        assert!((WINDOW - MAX_LEAD..WINDOW).contains(&near) && WINDOW - MIN_LEAD * 2 <= near, "{near:?}");
        // A 429 in between closes the budget: the time to connect is near its end.
        second.mark_sent();
        second.record_rate_limited(Some(Duration::from_secs(30)));
        second.wait_until_near_turn().await;
        assert!(start.elapsed() >= Duration::from_secs(30), "{:?}", start.elapsed());
    }
}
