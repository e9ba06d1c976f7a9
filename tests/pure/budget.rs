//! Tests that the budget adapts to the rate that other clients of the same tenant leave free, in virtual time, against
//! a limit of ten requests in any second.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, sleep, sleep_until};
use workflow_run_stop_operator::{
    amperity::{
        budget::Budget,
        endpoint::{AllowedHosts, BudgetKey, Endpoints},
        purpose::Purpose,
        wait_queue::Requester,
    },
    rng,
};

/// Requests in any second.
const LIMIT: usize = 10;

/// The duration of a test.
const DURATION: Duration = Duration::from_secs(600);

/// An API with a limit for any sliding second, shared by all clients.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<VecDeque<Instant>>>);

impl Api {
    /// Returns true, and counts the request, if it is within the limit.
    fn admits(&self) -> bool {
        let (mut counted, now) = (self.0.lock().unwrap(), Instant::now());
        while counted.front().is_some_and(|at| *at + Duration::from_secs(1) <= now) {
            counted.pop_front();
        }
        let admits = counted.len() < LIMIT;
        if admits {
            counted.push_back(now);
        }
        admits
    }
}

/// The behavior of another client.
#[derive(Clone, Copy, Debug)]
enum OtherClient {
    /// This many requests a second, evenly spaced.
    Evenly(u32),
    /// This many requests at the start of each second.
    Burst(u32),
    /// This many requests a second, evenly spaced, in the first half of the test only.
    FirstHalf(u32),
}

/// The results of the operator's requests.
#[derive(Debug, Default)]
struct Results {
    accepted: u32,
    refused: u32,
    /// Accepted in the last minute of the test.
    accepted_last_minute: u32,
}

impl Results {
    fn refused_share(&self) -> f64 {
        f64::from(self.refused) / f64::from(self.accepted + self.refused)
    }

    fn per_second(&self) -> f64 {
        f64::from(self.accepted) / DURATION.as_secs_f64()
    }
}

fn key() -> BudgetKey {
    let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
    endpoints.of("acme", None).unwrap().budget_key()
}

async fn other_client(api: Api, other: OtherClient) {
    let start = Instant::now();
    for second in 0.. {
        let second_start = start + Duration::from_secs(second);
        let (count, interval) = match other {
            OtherClient::FirstHalf(_) if DURATION / 2 < start.elapsed() => return,
            OtherClient::Evenly(count) | OtherClient::FirstHalf(count) => (count, Duration::from_secs(1) / count),
            OtherClient::Burst(count) => (count, Duration::ZERO),
        };
        for index in 0..count {
            sleep_until(second_start + interval * index).await;
            api.admits();
        }
        sleep_until(second_start + Duration::from_secs(1)).await;
    }
}

/// Sends the requests of a queue that is never empty while another client is active. Each request, and each response,
/// takes a random part of `latency`.
async fn run_with(other: OtherClient, latency: Duration, retry_after: Option<Duration>) -> Results {
    rng::seed(7);
    let (api, budget, results) = (Api::default(), Budget::new(LIMIT as u32), Arc::<Mutex<Results>>::default());
    tokio::spawn(other_client(api.clone(), other));
    let start = Instant::now();
    let oldest = Timestamp::UNIX_EPOCH;
    while start.elapsed() < DURATION {
        let slot = budget.acquire(&key(), &Requester::new("ops", "amperity", Purpose::Stop, oldest)).await;
        let (api, results) = (api.clone(), results.clone());
        tokio::spawn(async move {
            slot.end_preparations();
            slot.wait_for_turn().await;
            slot.mark_sent();
            sleep(latency.mul_f64(rng::unit())).await;
            let admitted = api.admits();
            let at = start.elapsed();
            sleep(latency.mul_f64(rng::unit())).await;
            if admitted {
                slot.record_answered();
            } else {
                slot.record_rate_limited(retry_after);
            }
            let mut results = results.lock().unwrap();
            results.accepted += u32::from(admitted);
            results.refused += u32::from(!admitted);
            results.accepted_last_minute += u32::from(admitted && DURATION - Duration::from_secs(60) < at);
        });
    }
    let results = std::mem::take(&mut *results.lock().unwrap());
    println!(
        "{other:?}, {latency:?}, {retry_after:?}: {:.2} a second, {:.2} % refused, {} in the last minute",
        results.per_second(),
        100.0 * results.refused_share(),
        results.accepted_last_minute
    );
    results
}

const SHORT_LATENCY: Duration = Duration::from_millis(5);
const ONE_SECOND: Option<Duration> = Some(Duration::from_secs(1));
const RETRY_AFTERS: [Option<Duration>; 3] = [None, ONE_SECOND, Some(Duration::from_secs(2))];

#[tokio::test(start_paused = true)]
async fn the_budget_uses_nine_tenths_of_what_a_client_with_half_leaves_free_with_few_429s() {
    for latency in [1, 5].map(Duration::from_millis) {
        for retry_after in RETRY_AFTERS {
            for other in [OtherClient::Evenly(5), OtherClient::Burst(5)] {
                let results = run_with(other, latency, retry_after).await;
                assert!(4.5 <= results.per_second(), "{latency:?} {retry_after:?} {other:?}: {results:?}");
                assert!(results.refused_share() < 0.03, "{latency:?} {retry_after:?} {other:?}: {results:?}");
            }
        }
    }
}

/// With a varying latency, more requests may arrive in a second than were sent in one.
#[tokio::test(start_paused = true)]
async fn the_budget_uses_three_quarters_of_what_is_free_with_few_429s_when_latency_varies() {
    for retry_after in RETRY_AFTERS {
        let results = run_with(OtherClient::Evenly(5), Duration::from_millis(200), retry_after).await;
        assert!(3.75 <= results.per_second(), "{retry_after:?}: {results:?}");
        assert!(results.refused_share() < 0.03, "{retry_after:?}: {results:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_budget_uses_nine_tenths_of_what_any_client_leaves_free_with_few_429s() {
    for used in 1..10 {
        let results = run_with(OtherClient::Evenly(used), SHORT_LATENCY, ONE_SECOND).await;
        let rest = LIMIT as f64 - f64::from(used);
        assert!(0.9 * rest <= results.per_second(), "{used}: {results:?}");
        assert!(results.refused_share() < 0.03, "{used}: {results:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_budget_uses_the_whole_rate_again_after_the_other_client_has_stopped() {
    let results = run_with(OtherClient::FirstHalf(8), SHORT_LATENCY, ONE_SECOND).await;
    assert!(0.97 * 600.0 <= f64::from(results.accepted_last_minute), "{results:?}");
}
