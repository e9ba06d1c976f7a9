//! Owns what has to hold at every request that a replica writes to Amperity, at the moment when it is written.
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

/// A claim allows sending for so long.
const CLAIM_VALIDITY: Duration = Duration::from_secs(5);

/// A stored time has whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);

/// With backoff there are never so many stop requests for one run within a minute.
const TOO_OFTEN: usize = 40;

/// How many reads one process may write for a run after its follow timeout: the last one, one that had been decided
/// before, two by a replica whose watch lags and which does not know yet that the stop was accepted, and one more each
/// time that it cannot learn what became of its write.
const LATE_READS: u32 = 6;

/// Any request is written for a tenant.
pub fn request_is_written(inner: &mut Inner, replica: usize, tenant: &str) {
    if inner.exceeds_rate(replica, tenant) {
        inner.fail(
            Promise::RateLimit,
            &format!("replica {replica} sends more than {RATE} requests in a second for {tenant}"),
        );
    }
}

/// The object that is to stop this run, as it is stored.
fn object_of<'a>(inner: &'a Inner, uid: &str) -> Option<&'a Value> {
    inner.objects.values().find(|object| object["metadata"]["uid"] == uid)
}

pub fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// The time after which no stop request may be sent, the earlier one of both deadlines, and the field that says so.
fn deadline(object: &Value) -> Option<(Timestamp, &'static str)> {
    let created = time(&object["metadata"]["creationTimestamp"]);
    let seconds = object["spec"]["stopDeadlineSeconds"].as_u64().map(Duration::from_secs);
    let relative = created.zip(seconds).map(|(created, seconds)| created + seconds);
    let absolute = time(&object["spec"]["notAfter"]);
    let relative = relative.map(|end| (end, "stopDeadlineSeconds"));
    relative.into_iter().chain(absolute.map(|end| (end, "notAfter"))).min()
}

/// The last look at the claim allowed a stop request to be written now.
pub fn fence_was_passed(inner: &mut Inner, replica: usize, id: &str) {
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

/// A stop request is written. Returns its number among those for its run.
pub fn stop_is_written(inner: &mut Inner, replica: usize, id: &str) -> usize {
    let run = inner.run(id).unwrap().clone();
    let number = run.posts.len();
    inner.tell(&format!("replica {replica}: POST {number} for {id}"));
    if run.posts.iter().any(|post| post.effect || post.pending) {
        inner.fail(Promise::Once, &format!("a further POST for {id} while an earlier one may have been accepted"));
    }
    if let Some(stored) = object_of(inner, &run.uid) {
        let claimed = stored["status"]["stopRequest"]["attempts"].as_u64().unwrap_or_default();
        if claimed < number as u64 + 1 {
            inner.fail(Promise::Once, &format!("a POST for {id} without a claim"));
        }
    }
    let lately = run.posts.iter().rev().take_while(|post| post.written.elapsed() < Duration::from_secs(60));
    if TOO_OFTEN <= lately.count() {
        inner.fail(Promise::AsSpecified, &format!("POSTs for {id} follow each other without backoff"));
    }
    let post = Post { written: Instant::now(), effect: false, pending: true, success: false, received: None };
    inner.runs.get_mut(id).unwrap().posts.push(post);
    number
}

/// A read of a run is written.
pub fn read_is_written(inner: &mut Inner, replica: usize, id: &str) {
    let wall = inner.wall(replica);
    let Some(object) = object_of(inner, &inner.runs[id].uid) else { return };
    let follow = object["spec"]["followTimeoutSeconds"].as_u64().unwrap_or(3600);
    let Some(accepted) = time(&object["status"]["stopRequest"]["acceptedTime"]) else { return };
    // A replica may not know yet that another one finished it.
    let is_finished = object["status"]["completionTime"].is_string();
    if is_finished || wall <= accepted + Duration::from_secs(follow) {
        return;
    }
    let reads = inner.runs.get_mut(id).unwrap().late_reads.entry(replica).or_default();
    *reads += 1;
    if LATE_READS < *reads {
        inner.fail(Promise::AsSpecified, &format!("{id} is read again and again after its follow timeout"));
    }
}

/// When a claim that is now in the status was stored.
pub fn claim_is_stored(inner: &mut Inner, uid: &str, claim: &str) {
    let known = inner.claims.get(uid).is_some_and(|(id, _)| id == claim);
    if !known {
        inner.claims.insert(uid.to_owned(), (claim.to_owned(), Instant::now()));
    }
}
