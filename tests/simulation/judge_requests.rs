//! Owns the invariants of every request that a replica writes to Amperity, checked when it is written.
//! Never judges by anything but the stored objects, the runs, and the clocks.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    promises::Promise,
    runs::Post,
    world::{Inner, RATE},
};

/// The time for which a claim allows sending.
const CLAIM_VALIDITY: Duration = Duration::from_secs(5);

/// The precision of a stored time.
const ROUNDING: Duration = Duration::from_secs(1);

/// The number of stop requests for one run within a minute that backoff never allows.
const TOO_MANY_POSTS: usize = 40;

/// The number of reads that one process may write for a run after its follow timeout: the last one, one that was
/// decided before, two by a replica whose lagging watch does not show the acceptance yet, and one more after each
/// status write with an unknown result.
const LATE_READS: u32 = 6;

/// Checks a request of any kind for a tenant.
pub fn check_request(inner: &mut Inner, replica: usize, tenant: &str) {
    if inner.exceeds_rate(replica, tenant) {
        inner.fail(
            Promise::RateLimit,
            &format!("replica {replica} sends more than {RATE} requests in a second for {tenant}"),
        );
    }
}

/// Returns the stored object with this uid.
fn object_of<'a>(inner: &'a Inner, uid: &str) -> Option<&'a Value> {
    inner.objects.values().find(|object| object["metadata"]["uid"] == uid)
}

pub fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// Returns the earlier of both deadlines, after which no stop request may be sent, and its field.
fn deadline(object: &Value) -> Option<(Timestamp, &'static str)> {
    let created = time(&object["metadata"]["creationTimestamp"]);
    let seconds = object["spec"]["stopDeadlineSeconds"].as_u64().map(Duration::from_secs);
    let relative = created.zip(seconds).map(|(created, seconds)| created + seconds);
    let absolute = time(&object["spec"]["notAfter"]);
    let relative = relative.map(|end| (end, "stopDeadlineSeconds"));
    relative.into_iter().chain(absolute.map(|end| (end, "notAfter"))).min()
}

/// Checks a stop request that just passed the fence: its deadline and its claim.
pub fn check_fence(inner: &mut Inner, replica: usize, id: &str) {
    let uid = inner.runs[id].uid.clone();
    let Some(object) = object_of(inner, &uid).cloned() else { return };
    let wall = inner.wall(replica);
    if let Some((deadline, field)) = deadline(&object)
        && deadline < wall
    {
        let late = wall.duration_since(deadline).as_secs();
        let what = format!("a POST for {id} after its {field}, {late} s by the sender's clock");
        inner.fail(Promise::AsSpecified, &what);
    }
    let claim = &object["status"]["stopRequest"]["claim"];
    if claim["holder"] != format!("replica-{replica}") {
        inner.fail(Promise::Once, &format!("a POST for {id} by replica {replica} without a claim of its own"));
        return;
    }
    if let Some((_, stored)) = inner.claims.get(&uid)
        && CLAIM_VALIDITY < stored.elapsed()
    {
        inner.fail(Promise::Once, &format!("a POST for {id} with a claim that is too old"));
    }
    if let Some(claimed) = time(&claim["time"]) {
        let age = wall.duration_since(claimed).unsigned_abs();
        if CLAIM_VALIDITY + ROUNDING < age {
            let what =
                format!("a POST for {id} with a claim that is {} s old by the sender's wall clock", age.as_secs());
            inner.fail(Promise::Once, &what);
        }
    }
}

/// Checks and records a stop request. Returns its index among those for its run.
pub fn record_stop(inner: &mut Inner, replica: usize, id: &str) -> usize {
    let run = inner.run(id).unwrap().clone();
    let number = run.posts.len();
    inner.log(&format!("replica {replica}: POST {number} for {id}"));
    if run.posts.iter().any(|post| post.effect || post.pending) {
        inner.fail(Promise::Once, &format!("a further POST for {id} while an earlier one may have been accepted"));
    }
    if let Some(stored) = object_of(inner, &run.uid) {
        let claimed = stored["status"]["stopRequest"]["attempts"].as_u64().unwrap_or_default();
        if claimed < number as u64 + 1 {
            inner.fail(Promise::Once, &format!("a POST for {id} without a claim"));
        }
    }
    let recent = run.posts.iter().rev().take_while(|post| post.written.elapsed() < Duration::from_secs(60));
    if TOO_MANY_POSTS <= recent.count() {
        inner.fail(Promise::AsSpecified, &format!("POSTs for {id} follow each other without backoff"));
    }
    let post = Post { written: Instant::now(), effect: false, pending: true, success: false, received: None };
    inner.runs.get_mut(id).unwrap().posts.push(post);
    number
}

/// Checks a read of a run.
pub fn check_read(inner: &mut Inner, replica: usize, id: &str) {
    let wall = inner.wall(replica);
    let Some(object) = object_of(inner, &inner.runs[id].uid) else { return };
    let follow = object["spec"]["followTimeoutSeconds"].as_u64().unwrap_or(3600);
    let Some(accepted) = time(&object["status"]["stopRequest"]["acceptedTime"]) else { return };
    // A replica may not know yet that another one finished the resource.
    let is_finished = object["status"]["completionTime"].is_string();
    if is_finished || wall <= accepted + Duration::from_secs(follow) {
        return;
    }
    let reads = inner.runs.get_mut(id).unwrap().late_reads.entry(replica).or_default();
    *reads += 1;
    if LATE_READS < *reads {
        inner.fail(Promise::AsSpecified, &format!("{id} is read too often after its follow timeout"));
    }
}

/// Records the time at which a claim was stored.
pub fn record_claim(inner: &mut Inner, uid: &str, claim: &str) {
    let known = inner.claims.get(uid).is_some_and(|(id, _)| id == claim);
    if !known {
        inner.claims.insert(uid.to_owned(), (claim.to_owned(), Instant::now()));
    }
}
