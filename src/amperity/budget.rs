//! Owns the rate limit of each tenant: at most `per_second` requests in any sliding second. The documented limit is
//! ten, see <https://docs.amperity.com/api/rate_limits.html>.
//! Never sends a request, and never lets the queue of one tenant delay another tenant, or one namespace another.
//!
//! The API counts a request when it arrives, at an unknown time between its write and its response. So the second for
//! which a request counts starts at its response, or at `IN_TRANSIT` after its write if the response takes longer.
//!
//! A slot is granted before its turn, because the claim and the connection take time, which must not lower the rate.
//! The lead is the time that they took recently. After a 429, requests are also spaced evenly.
//!
//! Steps wait without a task: [`Budget::enqueue`] adds one, and [`Budget::next_step`] returns the next one that may start.
//! The steps in flight are bounded in all, and so are connections and memory; those that prepare their first request are
//! bounded further. Each namespace gets a share of each bound.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, SetOnce, oneshot},
    time::{Instant, sleep_until},
};

use crate::amperity::{
    budgets::{Budgets, StartedStep, Step, Waiter},
    endpoint::BudgetKey,
    purpose::Purpose,
    tenant_budget::{Granted, TenantBudget},
    wait_queue::{Place, Requester},
};
use crate::clock::until;
use crate::fault_injection::{Fault, is_injected};

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
    state: Arc<Mutex<Budgets>>,
    /// Notified when a slot may be granted earlier than expected.
    due_earlier: Arc<Notify>,
    /// Notified when steps may start.
    started: Arc<Notify>,
    per_second: u32,
}

/// A step that may start.
pub struct Started {
    /// The id of the step.
    pub id: u64,
    /// The slot for its first request.
    pub slot: Slot,
    /// Held while the step is in flight.
    pub permit: StepPermit,
}

/// The right of a step to be in flight.
#[must_use]
pub struct StepPermit {
    budget: Budget,
    namespace: Arc<str>,
    key: BudgetKey,
    taken: usize,
}

/// The right to send one request. Dropping an unused slot gives it back.
#[must_use]
pub struct Slot {
    budget: Budget,
    key: BudgetKey,
    requester: Requester,
    turn: Mutex<Turn>,
    sent_at: SetOnce<Instant>,
    /// True while it is the slot of a step that prepares its first request.
    is_starting: AtomicBool,
}

/// The time at which a slot may be used.
#[derive(Clone, Copy)]
struct Turn {
    /// The id, by which the request counts.
    id: u64,
    /// The start of the preparations: the claim and the connection.
    preparing_since: Instant,
}

impl Budget {
    /// Creates budgets of `per_second` requests in any sliding second, for each tenant.
    pub fn new(per_second: u32) -> Self {
        let per_second = per_second.max(1);
        let state = Budgets::new(per_second);
        let state = Arc::new(Mutex::new(state));
        Self { state, due_earlier: Arc::default(), started: Arc::default(), per_second }
    }

    /// Adds a step to the queue of a tenant. [`Self::next_step`] returns it when it may start. Returns the key with the
    /// strings that all steps of the queue share, and the place.
    pub fn enqueue(&self, key: &BudgetKey, requester: &Requester, step: Step) -> (BudgetKey, Place) {
        let Step { id, weight } = step;
        self.change(|state| {
            let place = state.push(key, requester, Waiter::Step { id, weight });
            (state.tenants.get_key_value(key).map_or(key, |(shared, _)| shared).clone(), place)
        })
    }

    /// Removes a step that no longer waits, or gives its slot back. Key, requester and id are those with which it was added.
    pub fn leave(&self, key: &BudgetKey, requester: &Requester, id: u64, place: Place) {
        let removed = self.update(key, |tenant| tenant.queue.remove(requester, place).is_some());
        if !removed {
            self.change(|state| state.cancel_step(id));
        }
    }

    /// Waits for the next step that may start. Only one task may call it at a time.
    pub async fn next_step(&self) -> Started {
        loop {
            let (started, earlier) = (self.started.notified(), self.due_earlier.notified());
            let (due, next) = self.change(|state| (state.grant_due(Instant::now()), state.next_step()));
            if let Some(StartedStep { id, key, requester, granted, taken }) = next {
                let (namespace, budget) = (requester.namespace.clone(), self.clone());
                let permit = StepPermit { budget, namespace, key: key.clone(), taken };
                let slot = Slot::new(self, key, requester, granted, true);
                return Started { id, slot, permit };
            }
            tokio::select! {
                biased;
                () = started => {}
                () = earlier => {}
                () = until(due) => {}
            }
        }
    }

    /// Waits for a slot for a request of a step in flight, which goes before the steps that wait for their turn.
    /// Dropping the future leaves the queue.
    pub async fn acquire(&self, key: &BudgetKey, requester: &Requester) -> Slot {
        let (granted, waiting) = oneshot::channel();
        let place = self.change(|state| state.push(key, requester, Waiter::InFlight(granted)));
        let mut entry = QueueEntry { budget: self, key, requester, place, waiting };
        // Later, only its own tenant: there may be very many, and very many that wait.
        self.change(|state| state.grant_due(Instant::now()));
        loop {
            let earlier = self.due_earlier.notified();
            let due = self.change(|state| state.grant_due_of(key, Instant::now()));
            tokio::select! {
                biased;
                granted = &mut entry.waiting => {
                    // The budget keeps the sender until it grants the slot.
                    if let Ok(granted) = granted {
                        return Slot::new(self, key.clone(), requester.clone(), granted, false);
                    }
                }
                () = earlier => {}
                () = until(due) => {}
            }
        }
    }

    /// Returns a snapshot of each budget. Idle ones may be missing.
    pub fn states(&self) -> Vec<State> {
        let now = Instant::now();
        let state = self.lock();
        let snapshot = |(key, tenant): (&BudgetKey, &TenantBudget<Waiter>)| {
            let closed_for = tenant.closure_end(now).map(|until| until - now);
            // A step gets the token that it needs; no request waits for that alone.
            let waiting = [Purpose::Stop, Purpose::Read].map(|purpose| (purpose, tenant.queue.waiting(purpose))).into();
            State { tenant: key.tenant().to_owned(), rate: tenant.rate(now), closed_for, waiting }
        };
        state.tenants.iter().map(snapshot).collect()
    }

    /// Returns the limit for each tenant, in requests per second.
    pub fn limit(&self) -> u32 {
        self.per_second
    }

    /// Sets whether resources are listed: then fewer steps start at a time.
    pub fn set_listing(&self, is_listing: bool) {
        self.change(|state| state.set_listing(is_listing));
    }

    /// Records that the tenant accepted the credentials of a request, which then leave the share of unaccepted ones.
    pub fn accept_credentials(&self, key: &BudgetKey, requester: &Requester) {
        self.change(|state| state.accept_credentials(key, requester));
    }

    /// Records that the tenant refused the credentials of a request.
    pub fn refuse_credentials(&self, key: &BudgetKey, requester: &Requester) {
        self.change(|state| state.refuse_credentials(key, requester));
    }

    /// Changes the budget of one tenant, and grants what may be granted then.
    fn update<T>(&self, key: &BudgetKey, work: impl FnOnce(&mut TenantBudget<Waiter>) -> T) -> T {
        self.change(|state| state.update(key, work))
    }

    /// Changes the state, and wakes those that may go on.
    fn change<T>(&self, work: impl FnOnce(&mut Budgets) -> T) -> T {
        let mut state = self.lock();
        let result = work(&mut state);
        if state.take_due_earlier() {
            self.due_earlier.notify_waiters();
        }
        if state.has_started() {
            self.started.notify_one();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Budgets> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

/// A request of a step in flight in the queue. Dropping it leaves the queue, or gives the slot back.
struct QueueEntry<'a> {
    budget: &'a Budget,
    key: &'a BudgetKey,
    requester: &'a Requester,
    place: Place,
    waiting: oneshot::Receiver<Granted>,
}

impl Drop for QueueEntry<'_> {
    fn drop(&mut self) {
        self.waiting.close();
        let unused = self.waiting.try_recv().ok();
        self.budget.update(self.key, |tenant| {
            tenant.queue.remove(self.requester, self.place);
            if let Some(granted) = unused {
                tenant.release(granted.id, true);
            }
        });
    }
}

impl Drop for StepPermit {
    fn drop(&mut self) {
        self.budget.change(|state| state.end_step(&self.namespace, &self.key, self.taken));
    }
}

impl Slot {
    fn new(budget: &Budget, key: BudgetKey, requester: Requester, granted: Granted, is_starting: bool) -> Self {
        let turn = Mutex::new(Turn { id: granted.id, preparing_since: Instant::now() });
        let (budget, is_starting) = (budget.clone(), is_starting.into());
        Self { budget, key, requester, turn, sent_at: SetOnce::new(), is_starting }
    }

    /// Lets another step start in place of this one, since it no longer needs the API server, or waits for something else.
    pub fn end_start(&self) {
        if self.is_starting.swap(false, Ordering::Relaxed) {
            self.budget.change(|state| state.end_start(&self.requester.namespace, &self.key));
        }
    }

    /// Waits until it is time to connect: the budget is open, and the turn is at most the lead away.
    pub async fn wait_until_near_turn(&self) {
        loop {
            let turn = self.turn().await;
            let lead = self.with_tenant(|tenant| tenant.lead());
            let Some(wait) = (turn - lead).checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) else {
                return;
            };
            tokio::time::sleep(wait).await;
            self.lock_turn().preparing_since = Instant::now();
        }
    }

    /// Returns true if a 429 has closed the budget for longer than the preparations of a request take.
    pub fn is_closed(&self) -> bool {
        let now = Instant::now();
        let is_closed = |tenant: &mut TenantBudget<Waiter>| {
            tenant.closure_end(now).is_some_and(|until| now + tenant.lead() < until)
        };
        self.with_tenant(is_closed) && !is_injected(Fault::ClaimBeforeSlot)
    }

    /// Adjusts the lead to the duration of the preparations. To be called when they are done, a new connection among them.
    pub fn end_preparations(&self) {
        let took = self.lock_turn().preparing_since.elapsed();
        self.with_tenant(|tenant| tenant.learn_lead(took));
    }

    /// Waits for the turn.
    pub async fn wait_for_turn(&self) {
        loop {
            let turn = self.turn().await;
            if turn <= Instant::now() {
                return;
            }
            sleep_until(turn).await;
        }
    }

    /// Returns the turn. If the slot has lapsed, or a 429 closed the budget, waits for another one in its place.
    async fn turn(&self) -> Instant {
        loop {
            let id = self.lock_turn().id;
            if let Some(turn) = self.with_tenant(|tenant| tenant.turn(id, Instant::now())) {
                return turn;
            }
            // It may take long. Others may start meanwhile.
            self.end_start();
            let mut other = self.budget.acquire(&self.key, &self.requester).await;
            // The other one is dropped with the id of this one, and gives that back.
            std::mem::swap(&mut *self.lock_turn(), other.turn.get_mut().expect("nothing panics with this lock"));
        }
    }

    fn lock_turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().expect("nothing panics while it holds this lock")
    }

    fn with_tenant<T>(&self, work: impl FnOnce(&mut TenantBudget<Waiter>) -> T) -> T {
        self.budget.update(&self.key, work)
    }

    /// Records that the request is written now.
    pub fn mark_sent(&self) {
        let now = Instant::now();
        if self.sent_at.set(now).is_ok() {
            let id = self.lock_turn().id;
            self.with_tenant(|tenant| tenant.record_sent(id, now));
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
        let id = self.lock_turn().id;
        self.with_tenant(|tenant| {
            let now = Instant::now();
            tenant.record_rate_limited(id, sent_at, now, retry_after);
            tenant.closure_end(now).map(|until| until - now).unwrap_or_default()
        })
    }

    /// Records a response other than 429.
    pub fn record_answered(&self) {
        let Some(sent_at) = self.sent_at() else { return };
        let id = self.lock_turn().id;
        self.with_tenant(|tenant| tenant.record_answered(id, sent_at, Instant::now()));
    }

    /// Returns the key of the budget.
    pub fn key(&self) -> &BudgetKey {
        &self.key
    }

    /// Returns the requester.
    pub fn requester(&self) -> &Requester {
        &self.requester
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let unused = self.sent_at().is_none();
        let id = self.lock_turn().id;
        self.with_tenant(|tenant| tenant.release(id, unused));
        self.end_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::budgets::{IDLE_CHECK, STARTING, STARTING_WHILE_LISTING, STEPS};
    use crate::amperity::endpoint::{AllowedHosts, Endpoints};
    use crate::amperity::tenant_budget::{IN_TRANSIT, LAPSE, MAX_LEAD, MIN_LEAD, WINDOW};

    fn key(tenant: &str) -> BudgetKey {
        let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
        endpoints.of(tenant, None).unwrap().budget_key()
    }

    /// Returns the requester for a resource that was created in this second.
    fn requester(purpose: Purpose, second: i64) -> Requester {
        Requester { namespace: "n".into(), secret: "s".into(), created: second, purpose }
    }

    async fn send(budget: &Budget, tenant: &str, latency: Duration) -> Instant {
        let slot = budget.acquire(&key(tenant), &requester(Purpose::Stop, 0)).await;
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
                    let slot = budget.acquire(&key("a"), &requester(purpose, second)).await;
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
            [(Purpose::Token, 20), (Purpose::Stop, 3), (Purpose::Stop, 9), (Purpose::Read, 1), (Purpose::Read, 0)];
        assert_eq!(*order.lock().unwrap(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_slot_is_given_back() {
        let budget = Budget::new(1);
        let start = Instant::now();
        drop(budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await);
        send(&budget, "a", Duration::ZERO).await;
        assert_eq!(Instant::now(), start);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_leaves_the_queue_does_not_delay_the_others() {
        let budget = Budget::new(1);
        send(&budget, "a", Duration::ZERO).await;
        let start = Instant::now();
        let mut first = Box::pin(async { budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await });
        let second = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(&key("a"), &requester(Purpose::Stop, 1)).await.wait_for_turn().await }
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
            budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await,
            budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await,
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
        let slot = budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(1) - MIN_LEAD);
        budget.update(&key("a"), |tenant| tenant.close(Instant::now(), Instant::now(), Some(Duration::from_secs(3))));
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
                    let slot = budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await;
                    // The claim and the connection.
                    tokio::time::sleep(Duration::from_millis(400)).await;
                    slot.end_preparations();
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
        let slot = budget.acquire(&key("limited"), &requester(Purpose::Stop, 0)).await;
        slot.mark_sent();
        slot.record_rate_limited(None);
        drop(slot);
        tokio::time::sleep(IDLE_CHECK * 2).await;
        send(&budget, "d", Duration::ZERO).await;
        let mut known: Vec<_> = budget.lock().tenants.keys().cloned().collect();
        known.sort_by_key(|known| format!("{known:?}"));
        assert_eq!(known, [key("d"), key("limited")], "a budget with a lowered rate stays");
    }

    #[tokio::test(start_paused = true)]
    async fn the_429s_of_one_burst_lower_the_rate_once_and_requests_are_then_spaced() {
        let budget = Budget::new(10);
        let mut slots = vec![];
        for _ in 0..10 {
            let slot = budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await;
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
            delayed.push(budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await);
        }
        let slot = budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await;
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
            budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await,
            budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await,
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
            let slot = budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await;
            slot.mark_sent();
            let start = Instant::now();
            tokio::time::advance(Duration::from_millis(1)).await;
            slot.record_rate_limited(None);
            drop(budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await);
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
            let early = budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await;
            early.mark_sent();
            let limited = async || {
                let slot = budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await;
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
            budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await,
            budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await,
        ];
        let [State { rate, closed_for, .. }] = budget.states()[..] else { panic!("{:?}", budget.states()) };
        assert_eq!((rate, closed_for), (2.0, None));
        let (other, of) = (budget.clone(), key("a"));
        let waits = tokio::spawn(async move { other.acquire(&of, &requester(Purpose::Read, 0)).await });
        tokio::task::yield_now().await;
        slots[0].mark_sent();
        slots[0].record_rate_limited(Some(Duration::from_secs(7)));
        let [state] = &budget.states()[..] else { panic!("{:?}", budget.states()) };
        assert_eq!((state.tenant.as_str(), state.closed_for), ("a", Some(Duration::from_secs(7))));
        assert!((0.5..2.0).contains(&state.rate), "{state:?}");
        assert_eq!(state.waiting, BTreeMap::from([(Purpose::Stop, 0), (Purpose::Read, 1)]));
        waits.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_in_use_is_not_removed() {
        let budget = Budget::new(1);
        let is_there = |tenant: &str| budget.states().iter().any(|state| state.tenant == tenant);
        let used = budget.acquire(&key("slot"), &requester(Purpose::Stop, 0)).await;
        drop(budget.acquire(&key("x"), &requester(Purpose::Stop, 0)).await);
        assert!(is_there("slot"), "a slot is granted");
        used.mark_sent();
        drop(used);
        drop(budget.acquire(&key("y"), &requester(Purpose::Stop, 0)).await);
        assert!(is_there("slot"), "its request still counts");
        tokio::time::advance(IDLE_CHECK).await;
        drop(budget.acquire(&key("w"), &requester(Purpose::Stop, 0)).await);
        assert!(!is_there("slot"), "it is idle");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_waits_for_its_turn_before_it_connects() {
        let budget = Budget::new(1);
        let first = budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await;
        first.mark_sent();
        first.record_answered();
        let (start, second) = (Instant::now(), budget.acquire(&key("a"), &requester(Purpose::Stop, 0)).await);
        second.wait_until_near_turn().await;
        let near = start.elapsed();
        assert!((WINDOW - MAX_LEAD..WINDOW).contains(&near) && WINDOW - MIN_LEAD * 2 <= near, "{near:?}");
        // A 429 in between closes the budget: the time to connect is near its end.
        second.mark_sent();
        second.record_rate_limited(Some(Duration::from_secs(30)));
        second.wait_until_near_turn().await;
        assert!(start.elapsed() >= Duration::from_secs(30), "{:?}", start.elapsed());
    }

    /// Adds a step of a namespace with this id.
    fn enqueue(budget: &Budget, namespace: &str, id: u64, weight: usize) -> Place {
        let requester = Requester { namespace: namespace.into(), ..requester(Purpose::Stop, 0) };
        budget.enqueue(&key("a"), &requester, Step { id, weight: weight.try_into().unwrap() }).1
    }

    /// Returns the steps that start at once.
    async fn started(budget: &Budget) -> Vec<Started> {
        let mut started = vec![];
        while let Ok(step) = tokio::time::timeout(Duration::ZERO, budget.next_step()).await {
            started.push(step);
        }
        started
    }

    fn ids(started: &[Started]) -> Vec<u64> {
        started.iter().map(|step| step.id).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn accepted_credentials_are_remembered_also_if_the_tenant_has_no_requests_for_long() {
        let budget = Budget::new(5);
        let of =
            |namespace: &str, created| Requester { namespace: namespace.into(), ..requester(Purpose::Stop, created) };
        budget.accept_credentials(&key("a"), &of("good", 0));
        tokio::time::advance(IDLE_CHECK * 10).await;
        drop(budget.acquire(&key("b"), &of("other", 0)).await);
        assert!(!budget.states().iter().any(|state| state.tenant == "a"), "its budget is gone");
        for id in 0..10 {
            budget.enqueue(&key("a"), &of("x", 0), Step { id, weight: 1 });
            budget.enqueue(&key("a"), &of("good", 0), Step { id: 100 + id, weight: 1 });
        }
        let first = started(&budget).await;
        first.iter().for_each(|step| step.slot.mark_sent());
        assert_eq!(ids(&first).iter().filter(|id| 100 <= **id).count(), 2, "{:?}", ids(&first));
        tokio::time::advance(WINDOW * 2).await;
        let next = ids(&started(&budget).await);
        assert_eq!(next.iter().filter(|id| 100 <= **id).count(), 4, "{next:?}");
    }

    /// Adds a thousand steps of two tenants of one namespace each. Returns those that start, first of one tenant, then of
    /// both. They are prepared at once, or not at all.
    async fn start_all_of_two_tenants(budget: &Budget, are_prepared: bool) -> (usize, Vec<Started>) {
        let hostile = Requester { namespace: "hostile".into(), ..requester(Purpose::Stop, 0) };
        let start_all = async || {
            let mut all = vec![];
            loop {
                let some = started(budget).await;
                some.iter().filter(|_| are_prepared).for_each(|step| step.slot.end_start());
                if some.is_empty() {
                    return all;
                }
                all.extend(some);
            }
        };
        for id in 0..1000 {
            budget.enqueue(&key("a"), &hostile, Step { id, weight: 1 });
        }
        let mut all = start_all().await;
        let of_one = all.len();
        for id in 1000..2000 {
            budget.enqueue(&key("b"), &hostile, Step { id, weight: 1 });
        }
        all.extend(start_all().await);
        (of_one, all)
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_leaves_steps_in_flight_to_others_and_to_its_own_other_tenants() {
        for (are_prepared, capacity) in [(true, STEPS), (false, STARTING)] {
            let budget = Budget::new(10_000);
            let (of_one, hostile) = start_all_of_two_tenants(&budget, are_prepared).await;
            assert_eq!(of_one, (capacity + 1) / 3, "{are_prepared}");
            assert!((capacity * 2 / 5..=capacity / 2).contains(&hostile.len()), "{are_prepared}: {}", hostile.len());
            enqueue(&budget, "victim", 2000, 16);
            assert_eq!(ids(&started(&budget).await), [2000], "{are_prepared}");
            drop(hostile);
            let next = started(&budget).await.len();
            assert!(STARTING / 3 < next, "{are_prepared}: those that were kept from starting start now: {next}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_steps_start_while_the_resources_are_listed() {
        let budget = Budget::new(10_000);
        budget.set_listing(true);
        for id in 0..1000 {
            enqueue(&budget, &format!("n-{id}"), id, 1);
        }
        let mut all = started(&budget).await;
        assert_eq!(all.len(), STARTING_WHILE_LISTING);
        budget.set_listing(false);
        all.extend(started(&budget).await);
        assert_eq!(all.len(), STARTING);
        // In the next list, those that start already go on.
        budget.set_listing(true);
        all.truncate(STARTING_WHILE_LISTING);
        assert!(started(&budget).await.is_empty());
        drop(all.pop());
        assert_eq!(started(&budget).await.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_waits_for_a_closed_budget_keeps_no_other_from_starting() {
        let budget = Budget::new(10_000);
        let (_, hostile) = start_all_of_two_tenants(&budget, false).await;
        let (first, waiting) = hostile.split_first().unwrap();
        first.slot.mark_sent();
        first.slot.record_rate_limited(Some(Duration::from_secs(60)));
        let waits = waiting.iter().filter(|step| *step.slot.key() == key("a"));
        let mut waits: Vec<_> = waits.map(|step| Box::pin(step.slot.wait_until_near_turn())).collect();
        for wait in &mut waits {
            assert!(futures::poll!(wait.as_mut()).is_pending());
        }
        let next = started(&budget).await;
        assert!(next.iter().all(|step| *step.slot.key() == key("b")) && !next.is_empty(), "{:?}", ids(&next));
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_whose_requests_are_late_holds_no_slots_that_others_could_use() {
        let budget = Budget::new(2);
        for id in 0..4 {
            enqueue(&budget, "slow", id, 1);
        }
        let slow = started(&budget).await;
        assert_eq!(ids(&slow), [0, 1]);
        enqueue(&budget, "b", 10, 1);
        assert!(started(&budget).await.is_empty(), "both slots are granted");
        tokio::time::advance(LAPSE).await;
        assert_eq!(ids(&started(&budget).await), [10]);
        tokio::time::advance(WINDOW * 10).await;
        assert!(started(&budget).await.is_empty(), "no further one of the late namespace starts");
        // A late request takes another slot when it is ready, and then the namespace goes on.
        for step in slow {
            step.slot.wait_for_turn().await;
            step.slot.mark_sent();
        }
        tokio::time::advance(WINDOW * 2).await;
        assert_eq!(ids(&started(&budget).await), [2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_step_starts_no_other_of_a_late_namespace() {
        let budget = Budget::new(3);
        for id in 0..600 {
            enqueue(&budget, "slow", id, STEPS / 5);
        }
        let mut slow = started(&budget).await;
        assert_eq!(ids(&slow), [0, 1], "a third one does not fit");
        enqueue(&budget, "slow", 600, 1);
        tokio::time::advance(LAPSE).await;
        enqueue(&budget, "other", 700, 1);
        let other = started(&budget).await;
        assert_eq!(ids(&other), [700]);
        drop(other);
        assert!(started(&budget).await.is_empty(), "the namespace is late");
        drop(slow.pop());
        assert!(started(&budget).await.is_empty(), "its other request is late");
        drop(slow);
        assert_eq!(ids(&started(&budget).await), [2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_leaves_gives_back_what_it_got() {
        let budget = Budget::new(1);
        let a = Requester { namespace: "a".into(), ..requester(Purpose::Stop, 0) };
        let first = enqueue(&budget, "a", 1, 1);
        let second = enqueue(&budget, "a", 2, 1);
        enqueue(&budget, "a", 3, 1);
        budget.leave(&key("a"), &a, 1, first);
        budget.leave(&key("a"), &a, 2, second);
        assert_eq!(ids(&started(&budget).await), [3]);
    }
}
