//! Owns the deletion of finished resources after `ttlSecondsAfterFinished`.
//! Never deletes an unfinished resource, or another one of the same name, and never holds all that expire.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Client, Resource,
    api::{DeleteParams, Preconditions},
    core::Request,
};
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use workflow_run_stop_api::{EXPIRING, WorkflowRunStop};

use crate::clock::{Clock, until};
use crate::fair_share::FairShare;
use crate::observe::{reporter::Reporter, undecodable::Reports};
use crate::operator::list_watch::{Change, changes, paths};
use crate::stored_object::Decode;

/// The delay after a failed deletion. It is long because the permission to delete may be missing for a long time.
const RETRY: Duration = Duration::from_secs(60);

/// The timeout of one deletion.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// The capacity for deletions in flight. Namespaces share it, so that slow deletions in one delay none in another.
const DELETIONS: usize = 16;

/// The number of resources that are held. With their names, they take at most 4 MiB.
const MOST_HELD: usize = 4096;

/// The parts of a resource that its expiry depends on.
struct Expiring {
    uid: String,
    namespace: String,
    name: String,
    at: Timestamp,
}

impl Decode for Expiring {
    fn decode(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Finished {
            metadata: Metadata,
            spec: Spec,
            status: Status,
        }
        #[derive(Deserialize)]
        struct Metadata {
            uid: String,
            namespace: String,
            name: String,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Spec {
            ttl_seconds_after_finished: u32,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Status {
            completion_time: Time,
        }
        let Finished { metadata, spec, status } = serde_json::from_slice(json)?;
        let Metadata { uid, namespace, name } = metadata;
        let (ttl, Time(finished)) = (spec.ttl_seconds_after_finished, status.completion_time);
        let at = finished.saturating_add(Duration::from_secs(ttl.into())).unwrap_or(Timestamp::MAX);
        Ok(Self { uid, namespace, name, at })
    }
}

/// A place in the order of deletions: the time, then the uid.
type Place = (Timestamp, String);

/// The finished resources of one watched namespace, or of all, that expire first.
struct DeletionQueue {
    /// The largest number of resources that are held.
    most_held: usize,
    /// Namespace and name by place.
    due: BTreeMap<Place, (String, String)>,
    times: HashMap<String, Timestamp>,
    /// The first place of a resource that is not held; `None` if all are.
    not_held: Option<Place>,
    /// The current list is for resources at this place or later: those before it were tried already.
    from: Option<Place>,
    /// True if the current list had resources before `from`, whose deletion failed.
    has_earlier: bool,
    /// The end of the last list; `None` while listing.
    listed: Option<Timestamp>,
}

/// The next thing to do.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Delete the resource at this place.
    Delete(Place),
    /// List again, because there are more resources than were held.
    List,
}

impl DeletionQueue {
    fn new(most_held: usize) -> Self {
        let (due, times) = (BTreeMap::new(), HashMap::new());
        Self { most_held, due, times, not_held: None, from: None, has_earlier: false, listed: None }
    }

    /// Returns what to do next, and when. Resources are deleted only in namespaces that are `allowed`.
    fn next(&self, allowed: impl Fn(&String) -> bool) -> Option<(Timestamp, Next)> {
        let first = self.due.iter().find(|(_, (namespace, _))| allowed(namespace));
        let first = first.map(|(place, _)| (place.0, Next::Delete(place.clone())));
        let more = self.listed.and_then(|listed| match &self.not_held {
            Some((at, _)) => Some((*at, Next::List)),
            None => self.has_earlier.then(|| (later(listed), Next::List)),
        });
        first.into_iter().chain(more).min_by_key(|(at, _)| *at)
    }

    /// Takes the resource at a place.
    fn take(&mut self, place: Place) -> Option<Expiring> {
        let (namespace, name) = self.due.remove(&place)?;
        let (at, uid) = place;
        self.times.remove(&uid);
        Some(Expiring { uid, namespace, name, at })
    }

    /// Prepares for a new list, which goes on where the resources that were held end, or starts anew.
    fn continue_from(&mut self) {
        self.from = self.not_held.take();
        self.listed = None;
    }

    fn start_list(&mut self) {
        self.due.clear();
        self.times.clear();
        (self.not_held, self.has_earlier, self.listed) = (None, false, None);
    }

    fn put_listed(&mut self, expiring: Expiring) {
        if self.from.as_ref().is_some_and(|from| (expiring.at, &expiring.uid) < (from.0, &from.1)) {
            self.has_earlier = true;
        } else {
            self.put(expiring);
        }
    }

    /// Puts a resource into the queue, unless all that are held expire before it and there are more.
    fn put(&mut self, Expiring { uid, namespace, name, at }: Expiring) {
        self.remove(&uid);
        let place = (at, uid);
        if self.not_held.as_ref().is_some_and(|first| *first <= place) {
            return;
        }
        self.times.insert(place.1.clone(), at);
        self.due.insert(place, (namespace, name));
        if self.most_held < self.due.len()
            && let Some((place, _)) = self.due.pop_last()
        {
            self.times.remove(&place.1);
            self.not_held = Some(place);
        }
    }

    fn remove(&mut self, uid: &str) {
        if let Some(at) = self.times.remove(uid) {
            self.due.remove(&(at, uid.to_owned()));
        }
    }
}

/// Returns the time of the next attempt after this one.
fn later(now: Timestamp) -> Timestamp {
    now.saturating_add(RETRY).unwrap_or(Timestamp::MAX)
}

/// Deletes expired resources until the future is dropped.
pub async fn run(client: Client, namespaces: Vec<String>, clock: Clock, reporter: Reporter) {
    let paths = paths(&namespaces);
    let most_held = MOST_HELD.div_ceil(paths.len());
    let each = paths.into_iter().map(|path| delete_expired(&client, path, most_held, &clock, &reporter));
    join_all(each).await;
}

async fn delete_expired(client: &Client, path: String, most_held: usize, clock: &Clock, reporter: &Reporter) {
    let list_and_watch = || changes::<Expiring>(client, vec![path.clone()], EXPIRING).boxed();
    let mut incoming = list_and_watch();
    let (mut queue, mut undecodable) = (DeletionQueue::new(most_held), Reports::default());
    let (mut deletions, mut share) = (FuturesUnordered::new(), FairShare::new(DELETIONS));
    loop {
        let next = queue.next(|namespace| share.fits(namespace, 1));
        let wait = next.as_ref().map(|(at, _)| Duration::try_from(at.duration_since(clock())).unwrap_or_default());
        tokio::select! {
            Some(ended) = deletions.next(), if !deletions.is_empty() => {
                let (expired, deleted): (Expiring, bool) = ended;
                share.give_back(&expired.namespace, 1);
                if !deleted {
                    queue.put(Expiring { at: later(clock()), ..expired });
                }
            }
            () = until(wait.map(|wait| Instant::now() + wait)) => match next {
                Some((_, Next::List)) => {
                    queue.continue_from();
                    incoming = list_and_watch();
                }
                Some((_, Next::Delete(place))) => if let Some(expired) = queue.take(place)
                    && share.take(&expired.namespace, 1)
                {
                    deletions.push(delete(client, expired));
                },
                None => {}
            },
            change = incoming.next() => match change {
                None => return,
                Some((_, Change::ListStarted)) => queue.start_list(),
                Some((_, Change::Listed(expiring))) => queue.put_listed(expiring),
                Some((_, Change::ListEnded)) => queue.listed = Some(clock()),
                Some((_, Change::Applied(expiring))) => queue.put(expiring),
                Some((_, Change::Deleted(uid))) => queue.remove(&uid),
                Some((_, Change::Undecodable(error))) => {
                    queue.remove(&error.id.uid);
                    undecodable.report(&error, &reporter.metrics, reporter.events.as_ref());
                }
            },
        }
    }
}

/// Deletes one resource, and returns it. The second value is true if it is gone.
async fn delete(client: &Client, expired: Expiring) -> (Expiring, bool) {
    let Expiring { uid, namespace, name, at: _ } = &expired;
    let only_this = Preconditions { uid: Some(uid.clone()), resource_version: None };
    let params = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
    let deletion = async {
        let request = Request::new(WorkflowRunStop::url_path(&(), Some(namespace))).delete(name, &params);
        // The answer may contain the resource, which need not be decodable.
        client.request_text(request.map_err(kube::Error::BuildRequest)?).await
    };
    let gone = match timeout(DELETE_TIMEOUT, deletion).await {
        Err(_) => false,
        Ok(Ok(_)) => {
            tracing::info!(namespace, name, "deleted expired stop: ttlSecondsAfterFinished has passed");
            true
        }
        // Gone already, or another resource of this name.
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => true,
        Ok(Err(error)) => {
            tracing::warn!(namespace, name, %error, "failed to delete expired stop, will retry; check that the operator may delete workflowrunstops");
            false
        }
    };
    (expired, gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn expiring(second: i64) -> Expiring {
        Expiring { uid: format!("u-{second:06}"), namespace: "ops".into(), name: "a".into(), at: at(second) }
    }

    fn place(second: i64) -> Place {
        (at(second), format!("u-{second:06}"))
    }

    fn next(queue: &DeletionQueue) -> Option<(Timestamp, Next)> {
        queue.next(|_| true)
    }

    /// Takes the first resource.
    fn pop(queue: &mut DeletionQueue) -> Expiring {
        let place = queue.due.first_key_value().unwrap().0.clone();
        queue.take(place).unwrap()
    }

    #[test]
    fn a_namespace_whose_deletions_are_slow_delays_none_of_another() {
        let mut queue = DeletionQueue::new(9);
        queue.put(expiring(10));
        queue.put(Expiring { namespace: "other".into(), ..expiring(20) });
        assert_eq!(queue.next(|namespace| namespace != "ops"), Some((at(20), Next::Delete(place(20)))));
        assert_eq!(queue.next(|_| false), None);
    }

    /// Lists the resources that expire at these seconds.
    fn list(queue: &mut DeletionQueue, seconds: &[i64], now: i64) {
        queue.start_list();
        seconds.iter().for_each(|second| queue.put_listed(expiring(*second)));
        queue.listed = Some(at(now));
    }

    #[test]
    fn the_resources_that_expire_first_are_held_and_the_others_are_listed_when_they_expire() {
        let mut queue = DeletionQueue::new(3);
        assert_eq!(next(&queue), None, "nothing is listed yet");
        list(&mut queue, &[50, 10, 40, 20, 30], 0);
        for second in [10, 20, 30] {
            assert_eq!(next(&queue), Some((at(second), Next::Delete(place(second)))));
            assert_eq!(pop(&mut queue).at, at(second));
        }
        assert_eq!(next(&queue), Some((at(40), Next::List)));
        queue.continue_from();
        assert_eq!(next(&queue), None, "only a list shows the others");
        list(&mut queue, &[40, 50], 40);
        assert_eq!([pop(&mut queue).at, pop(&mut queue).at], [at(40), at(50)]);
        assert_eq!(next(&queue), None);
    }

    #[test]
    fn a_resource_that_expires_after_those_that_are_not_held_is_not_held_either() {
        let mut queue = DeletionQueue::new(2);
        list(&mut queue, &[10, 20, 30], 0);
        assert_eq!(pop(&mut queue).at, at(10));
        queue.put(expiring(99));
        queue.put(expiring(15));
        assert_eq!([pop(&mut queue).at, pop(&mut queue).at], [at(15), at(20)]);
        assert_eq!(next(&queue), Some((at(30), Next::List)));
    }

    #[test]
    fn resources_that_cannot_be_deleted_do_not_keep_others_from_being_deleted() {
        let all: Vec<_> = (0..10).collect();
        let (mut queue, mut tried) = (DeletionQueue::new(2), vec![]);
        list(&mut queue, &all, 100);
        while tried.len() < 30 {
            match next(&queue).unwrap() {
                (_, Next::Delete(_)) => {
                    let failed = pop(&mut queue);
                    tried.push(failed.at.as_second());
                    queue.put(Expiring { at: later(at(101)), ..failed });
                }
                (when, Next::List) => {
                    let starts_anew = queue.not_held.is_none();
                    assert_eq!(when == at(160), starts_anew, "a new pass is not made at once");
                    queue.continue_from();
                    list(&mut queue, &all, 100);
                }
            }
        }
        assert_eq!(tried, [&all[..], &all, &all].concat());
    }

    #[test]
    fn a_changed_resource_is_held_once_and_a_deleted_one_not_at_all() {
        let mut queue = DeletionQueue::new(3);
        list(&mut queue, &[10, 20], 0);
        queue.put(Expiring { at: at(30), ..expiring(10) });
        queue.remove(&expiring(20).uid);
        assert_eq!(pop(&mut queue).at, at(30));
        assert_eq!((next(&queue), queue.times.len()), (None, 0));
    }

    #[test]
    fn only_what_the_expiry_depends_on_is_decoded() {
        let json = serde_json::json!({
            "metadata": {"uid": "u", "namespace": "ops", "name": "a", "managedFields": "none"},
            "spec": {"ttlSecondsAfterFinished": 60, "runId": 1},
            "status": {"completionTime": "1970-01-01T00:01:00Z", "taskInstances": 1},
        });
        let Expiring { uid, namespace, name, at: expires } = Expiring::decode(json.to_string().as_bytes()).unwrap();
        assert_eq!((uid.as_str(), namespace.as_str(), name.as_str(), expires), ("u", "ops", "a", at(120)));
    }
}
