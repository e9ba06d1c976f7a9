//! Whether the budget finds out what other clients of the same tenant leave over: in virtual time, against a
//! limit of ten requests in any second.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

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
    },
    rng,
};

const LIMIT: usize = 10;
const LASTS: Duration = Duration::from_secs(600);

/// A limit in any sliding second that all clients share.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<VecDeque<Instant>>>);

impl Api {
    /// Whether a request is within the limit; only then it counts.
    fn admits(&self) -> bool {
        let (mut counting, now) = (self.0.lock().unwrap(), Instant::now());
        while counting.front().is_some_and(|at| *at + Duration::from_secs(1) <= now) {
            counting.pop_front();
        }
        let admits = counting.len() < LIMIT;
        if admits {
            counting.push_back(now);
        }
        admits
    }
}

/// What another client does.
#[derive(Clone, Copy, Debug)]
enum Other {
    /// So many in a second, evenly.
    Evenly(u32),
    /// So many at the begin of each second.
    AtOnce(u32),
    /// So many in a second, evenly, and from half of the time on nothing.
    Leaves(u32),
}

/// What the operator's requests met.
#[derive(Debug, Default)]
struct Met {
    accepted: u32,
    refused: u32,
    /// How many were accepted in the last minute.
    lately: u32,
}

impl Met {
    fn share_refused(&self) -> f64 {
        f64::from(self.refused) / f64::from(self.accepted + self.refused)
    }

    fn per_second(&self) -> f64 {
        f64::from(self.accepted) / LASTS.as_secs_f64()
    }
}

fn key() -> BudgetKey {
    let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
    endpoints.of("acme", None).unwrap().budget_key()
}

async fn other_client(api: Api, other: Other) {
    let start = Instant::now();
    for second in 0.. {
        let begin = start + Duration::from_secs(second);
        let (count, apart) = match other {
            Other::Leaves(_) if LASTS / 2 < start.elapsed() => return,
            Other::Evenly(count) | Other::Leaves(count) => (count, Duration::from_secs(1) / count),
            Other::AtOnce(count) => (count, Duration::ZERO),
        };
        for index in 0..count {
            sleep_until(begin + apart * index).await;
            api.admits();
        }
        sleep_until(begin + Duration::from_secs(1)).await;
    }
}

/// A queue that is never empty, beside another client. `latency` is the longest way there, and back; each
/// request takes another part of it.
async fn share(other: Other, latency: Duration, retry_after: Option<Duration>) -> Met {
    rng::seed(7);
    let (api, budget, met) = (Api::default(), Budget::new(LIMIT as u32), Arc::<Mutex<Met>>::default());
    tokio::spawn(other_client(api.clone(), other));
    let start = Instant::now();
    let oldest = Timestamp::UNIX_EPOCH;
    while start.elapsed() < LASTS {
        let slot = budget.acquire(&key(), Purpose::Stop, oldest).await;
        let (api, met) = (api.clone(), met.clone());
        tokio::spawn(async move {
            slot.turn().await;
            slot.send();
            sleep(latency.mul_f64(rng::unit())).await;
            let admitted = api.admits();
            let at = start.elapsed();
            sleep(latency.mul_f64(rng::unit())).await;
            if admitted {
                slot.answered()
            } else {
                slot.rate_limited(retry_after)
            }
            let mut met = met.lock().unwrap();
            met.accepted += u32::from(admitted);
            met.refused += u32::from(!admitted);
            met.lately += u32::from(admitted && LASTS - Duration::from_secs(60) < at);
        });
    }
    let met = std::mem::take(&mut *met.lock().unwrap());
    println!(
        "{other:?}, {latency:?}, {retry_after:?}: {:.2} a second, {:.2} % refused, {} in the last minute",
        met.per_second(),
        100.0 * met.share_refused(),
        met.lately
    );
    met
}

const QUICK: Duration = Duration::from_millis(5);
const SECOND: Option<Duration> = Some(Duration::from_secs(1));
const CLOSURES: [Option<Duration>; 3] = [None, SECOND, Some(Duration::from_secs(2))];

#[tokio::test(start_paused = true)]
async fn beside_a_client_that_uses_half_it_gets_nine_tenths_of_the_rest_with_few_429s() {
    for latency in [1, 5].map(Duration::from_millis) {
        for retry_after in CLOSURES {
            for other in [Other::Evenly(5), Other::AtOnce(5)] {
                let met = share(other, latency, retry_after).await;
                assert!(4.5 <= met.per_second(), "{latency:?} {retry_after:?} {other:?}: {met:?}");
                assert!(met.share_refused() < 0.03, "{latency:?} {retry_after:?} {other:?}: {met:?}");
            }
        }
    }
}

/// Then now and then more arrive within a second than were sent in one.
#[tokio::test(start_paused = true)]
async fn where_the_way_takes_now_longer_and_now_shorter_it_gets_three_quarters_with_few_429s() {
    for retry_after in CLOSURES {
        let met = share(Other::Evenly(5), Duration::from_millis(200), retry_after).await;
        assert!(3.75 <= met.per_second(), "{retry_after:?}: {met:?}");
        assert!(met.share_refused() < 0.03, "{retry_after:?}: {met:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_another_client_uses_it_gets_nine_tenths_of_the_rest_with_few_429s() {
    for used in 1..10 {
        let met = share(Other::Evenly(used), QUICK, SECOND).await;
        let rest = LIMIT as f64 - f64::from(used);
        assert!(0.9 * rest <= met.per_second(), "{used}: {met:?}");
        assert!(met.share_refused() < 0.03, "{used}: {met:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_other_client_leaves_the_whole_rate_is_used_again() {
    let met = share(Other::Leaves(8), QUICK, SECOND).await;
    assert!(0.97 * 600.0 <= f64::from(met.lately), "{met:?}");
}
