//! Owns the list and watch of the resources that a field selector matches, as a stream of changes that does not end.
//! Never keeps an object. One that cannot be decoded is reported as such, and does not affect the others.

use std::time::Duration;

use futures::{
    Stream, StreamExt,
    stream::{select_all, unfold},
};
use kube::{
    Client, Resource,
    api::{ListParams, WatchParams},
    core::Request,
};
use tokio::time::{Instant, sleep, timeout};
use workflow_run_stop_api::WorkflowRunStop;
use workflow_run_stop_common::error::root_cause;

use crate::operator::response_stream::{Body, Event, Events, LIST_IDLE, Page, PageEnd, ResponseError, too_large};
use crate::reconcile::backoff::delay;
use crate::rng;
use crate::stored_object::{Decode, Undecodable, decode, identify};

/// The largest number of resources in one page of a list. The operator never holds a page; the API server does.
const MAX_PAGE: u32 = 500;

/// The smallest number of resources in one page of a list, after pages that failed.
const MIN_PAGE: u32 = 15;

/// The longest delay between two attempts to list or watch.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// The time without a failure after which the backoff starts anew.
const WELL_AGAIN: Duration = Duration::from_secs(120);

/// A watch that ends sooner, without an event, is not renewed at once.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// The number of failed attempts to continue a list or watch after which the resources are listed again.
const MAX_RESUMES: u32 = 8;

/// A change of the matching resources of one watched namespace, or of all if all are watched.
#[derive(Debug, PartialEq)]
pub enum Change<T> {
    /// A list begins. One that began before and has not ended is void.
    ListStarted,
    /// A resource in the list.
    Listed(T),
    /// The list is complete: what was not in it does not match any more, or is gone.
    ListEnded,
    /// A resource was created or changed, or matches now.
    Applied(T),
    /// The resource with this uid does not match any more, or is gone.
    Deleted(String),
    /// A resource in the list, or one that was created or changed, cannot be decoded.
    Undecodable(Undecodable),
}

/// Returns the paths of the resources in these namespaces, or in all if there are none.
pub fn paths(namespaces: &[String]) -> Vec<String> {
    let path = |namespace| WorkflowRunStop::url_path(&(), namespace);
    if namespaces.is_empty() { vec![path(None)] } else { namespaces.iter().map(|name| path(Some(name))).collect() }
}

/// Returns the changes of the resources that a field selector matches, each with the index of its path. Failures are
/// logged and retried.
pub fn changes<T: Decode + Send + 'static>(
    client: &Client,
    paths: Vec<String>,
    fields: &'static str,
) -> impl Stream<Item = (usize, Change<T>)> + use<T> {
    select_all(paths.into_iter().enumerate().map(|(number, path)| {
        let list_watch = ListWatch::new(Requests { client: client.clone(), path, fields });
        unfold(list_watch, move |mut list_watch| async move { Some(((number, list_watch.next().await), list_watch)) })
            .boxed()
    }))
}

struct ListWatch<T> {
    requests: Requests,
    state: State<T>,
    /// The way of the next list.
    list: ListBy,
    /// The way of a list that does not follow a failed one.
    usual: ListBy,
    backoff: Backoff,
    /// The number of failed attempts to continue the list or watch since its last page or event.
    resumes: u32,
    /// The number of resources in the next page. Very large ones may take the API server too long: then it is less.
    page_size: u32,
}

/// A way of listing.
#[derive(Clone, Copy, PartialEq)]
enum ListBy {
    /// A watch that begins with all resources. It costs the API server the least.
    Watch,
    /// Pages.
    Pages,
    /// One page with all resources.
    OnePage,
}

enum State<T> {
    /// To be listed.
    Unlisted,
    /// A watch that has not sent all resources yet.
    ListingByWatch(Events),
    /// The page of a list with this token; the first one has none.
    Listing(Box<Page<T>>, Option<String>),
    /// The page of a list with this token is next.
    NextPage(String),
    /// To be watched from this version.
    Listed(String),
    /// A watch that has reached this version, and the time at which it began, until its first event.
    Watching(Events, String, Option<Instant>),
}

impl<T: Decode> ListWatch<T> {
    fn new(requests: Requests) -> Self {
        let (list, usual) = (ListBy::Watch, ListBy::Watch);
        let (state, backoff) = (State::Unlisted, Backoff::default());
        Self { requests, state, list, usual, backoff, resumes: 0, page_size: MAX_PAGE }
    }

    /// Waits for the next change.
    async fn next(&mut self) -> Change<T> {
        loop {
            match self.step().await {
                Ok(Some(change)) => return change,
                Ok(None) => {}
                Err(error) => {
                    log_error(&error, &self.requests);
                    sleep(self.backoff.next_delay()).await;
                }
            }
        }
    }

    /// Sends a request or waits for the next part of a response. After an error, the state is that of the next attempt.
    async fn step(&mut self) -> Result<Option<Change<T>>, ResponseError> {
        // An error that does not set another state leads to a new list.
        match std::mem::replace(&mut self.state, State::Unlisted) {
            State::Unlisted => self.list().await,
            State::ListingByWatch(events) => self.list_by_watch(events).await,
            State::Listing(page, token) => self.list_page(page, token).await,
            State::NextPage(token) => self.request_page(Some(token)).await.map(|()| None),
            State::Listed(version) => self.watch_from(version).await,
            State::Watching(events, version, quiet_since) => self.watch(events, version, quiet_since).await,
        }
    }

    /// Begins a list.
    async fn list(&mut self) -> Result<Option<Change<T>>, ResponseError> {
        match self.list {
            ListBy::Watch => match self.requests.watch("", true).await {
                Ok(body) => self.state = State::ListingByWatch(Events::new(body)),
                Err(error) => {
                    self.list = ListBy::Pages;
                    if !matches!(code(&error), Some(400 | 422)) {
                        return Err(error);
                    }
                    // Kubernetes 1.33 does so by default. That does not change while a server runs.
                    tracing::debug!(path = self.requests.path, %error, "the API server refuses a streaming list, will list in pages");
                    self.usual = ListBy::Pages;
                    return Ok(None);
                }
            },
            ListBy::Pages | ListBy::OnePage => self.request_page(None).await?,
        }
        Ok(Some(Change::ListStarted))
    }

    /// Requests the page with this token; the first one has none.
    async fn request_page(&mut self, token: Option<String>) -> Result<(), ResponseError> {
        let limit = (self.list == ListBy::Pages).then_some(self.page_size);
        match self.requests.page(token.clone(), limit).await {
            Ok(body) => self.state = State::Listing(Box::new(Page::new(body)), token),
            Err(error) => return Err(self.page_failed(token, error)),
        }
        Ok(())
    }

    /// Chooses how the list goes on after a page that failed.
    fn page_failed(&mut self, token: Option<String>, error: ResponseError) -> ResponseError {
        let smaller = (self.page_size / 2).max(MIN_PAGE);
        match (code(&error), token) {
            // The versions of the list are compacted. Without pages, a list is always from one version.
            (Some(410), Some(_)) => self.list = ListBy::OnePage,
            (Some(code), _) if code != 429 && (400..500).contains(&code) => self.list = self.usual,
            (_, Some(token)) if self.list == ListBy::Pages && self.resumes < MAX_RESUMES => {
                (self.page_size, self.resumes) = (smaller, self.resumes + 1);
                self.state = State::NextPage(token);
            }
            (_, _) => (self.page_size, self.resumes, self.list) = (smaller, 0, self.usual),
        }
        error
    }

    async fn list_by_watch(&mut self, mut events: Events) -> Result<Option<Change<T>>, ResponseError> {
        // Whatever goes wrong, the other way of listing may work.
        self.list = ListBy::Pages;
        let change = match timeout(LIST_IDLE, events.next()).await??.ok_or(ResponseError::Incomplete)? {
            Event::Bookmark { version, ends_list: true } => {
                self.list = ListBy::Watch;
                self.state = State::Watching(events, version, None);
                return Ok(Some(Change::ListEnded));
            }
            // It is one of a watch that began without a list: the API server does not know streaming lists.
            Event::Bookmark { version: _, ends_list: false } => {
                self.usual = ListBy::Pages;
                return Err(ResponseError::Incomplete);
            }
            Event::Unknown => None,
            Event::Stored(json) => Some(decode(json).map_or_else(Change::Undecodable, Change::Listed)),
            Event::Deleted(json) => Some(Change::Deleted(identify(json).0.uid)),
            Event::TooLarge => Some(Change::Undecodable(too_large())),
        };
        self.state = State::ListingByWatch(events);
        Ok(change)
    }

    async fn list_page(
        &mut self,
        mut page: Box<Page<T>>,
        token: Option<String>,
    ) -> Result<Option<Change<T>>, ResponseError> {
        let end = match page.next().await {
            Ok(Some(item)) => {
                self.state = State::Listing(page, token);
                return Ok(Some(item.map_or_else(Change::Undecodable, Change::Listed)));
            }
            Ok(None) => page.end(),
            Err(error) => Err(error),
        };
        let PageEnd { resource_version, r#continue } = end.map_err(|error| self.page_failed(token, error))?;
        self.resumes = 0;
        if !r#continue.is_empty() {
            self.state = State::NextPage(r#continue);
            return Ok(None);
        }
        self.list = self.usual;
        self.page_size = (self.page_size * 2).min(MAX_PAGE);
        self.state = State::Listed(resource_version);
        Ok(Some(Change::ListEnded))
    }

    /// Begins a watch that continues from a version.
    async fn watch_from(&mut self, version: String) -> Result<Option<Change<T>>, ResponseError> {
        match self.requests.watch(&version, false).await {
            Ok(body) => self.state = State::Watching(Events::new(body), version, Some(Instant::now())),
            // The version is compacted, or the API server does not know it. Only a list has one that it knows.
            Err(error) if matches!(code(&error), Some(400 | 410 | 422)) || self.resumes == MAX_RESUMES => {
                self.resumes = 0;
                return Err(error);
            }
            Err(error) => {
                self.resumes += 1;
                self.state = State::Listed(version);
                return Err(error);
            }
        }
        Ok(None)
    }

    async fn watch(
        &mut self,
        mut events: Events,
        version: String,
        quiet_since: Option<Instant>,
    ) -> Result<Option<Change<T>>, ResponseError> {
        let (change, reached) = match events.next().await {
            Ok(Some(Event::Stored(json))) => {
                (Some(decode(json).map_or_else(Change::Undecodable, Change::Applied)), identify(json).1)
            }
            Ok(Some(Event::Deleted(json))) => {
                let (id, version) = identify(json);
                (Some(Change::Deleted(id.uid)), version)
            }
            Ok(Some(Event::Bookmark { version, ends_list: _ })) => {
                events.expect_bookmarks();
                (None, version)
            }
            Ok(Some(Event::Unknown)) => (None, String::new()),
            Ok(Some(Event::TooLarge)) => (Some(Change::Undecodable(too_large())), String::new()),
            Ok(None) => {
                self.state = State::Listed(version);
                if quiet_since.is_some_and(|since| since.elapsed() < SHORTEST_WATCH) {
                    sleep(self.backoff.next_delay()).await;
                }
                return Ok(None);
            }
            // The API server ended the watch with an error: mostly the version is compacted. After an event that is not
            // understood, the changes are not known.
            Err(error @ (ResponseError::Request(_) | ResponseError::Malformed)) => return Err(error),
            Err(error) => {
                self.state = State::Listed(version);
                return Err(error);
            }
        };
        let (version, quiet_since) = if reached.is_empty() { (version, quiet_since) } else { (reached, None) };
        if quiet_since.is_none() {
            self.resumes = 0;
            self.backoff.reset();
        }
        self.state = State::Watching(events, version, quiet_since);
        Ok(change)
    }
}

/// The requests of a list and watch.
struct Requests {
    client: Client,
    path: String,
    fields: &'static str,
}

impl Requests {
    /// Sends a watch request. If it `lists`, the watch begins with all resources as of now.
    async fn watch(&self, version: &str, lists: bool) -> Result<Body, ResponseError> {
        let params = WatchParams { send_initial_events: lists, ..WatchParams::default().fields(self.fields) };
        let request = Request::new(&*self.path).watch(&params, version).map_err(kube::Error::BuildRequest)?;
        Ok(Box::pin(timeout(LIST_IDLE, self.client.request_stream(request)).await??))
    }

    /// Requests a page of a list: the first one without a token, and all resources without a limit.
    async fn page(&self, token: Option<String>, limit: Option<u32>) -> Result<Body, ResponseError> {
        let params = ListParams { limit, continue_token: token, ..ListParams::default().fields(self.fields) };
        let request = Request::new(&*self.path).list(&params).map_err(kube::Error::BuildRequest)?;
        Ok(Box::pin(timeout(LIST_IDLE, self.client.request_stream(request)).await??))
    }
}

/// Returns the HTTP status code with which the API server answered; `None` if it did not.
fn code(error: &ResponseError) -> Option<u16> {
    error.status().map(|status| status.code)
}

/// The backoff of a list or watch.
#[derive(Default)]
struct Backoff {
    failures: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// Starts anew.
    fn reset(&mut self) {
        *self = Self::default();
    }

    /// Counts a failure, and returns the delay before the next attempt.
    fn next_delay(&mut self) -> Duration {
        let now = Instant::now();
        let well_since = self.last.replace(now).is_none_or(|last| WELL_AGAIN < now - last);
        self.failures = if well_since { 1 } else { self.failures + 1 };
        delay(self.failures, MAX_DELAY, rng::upper_half())
    }
}

fn log_error(error: &ResponseError, Requests { client: _, path, fields }: &Requests) {
    let path = format!("{path}?fieldSelector={fields}");
    let status = error.status();
    let error = root_cause(error);
    match status {
        Some(status) if status.code == 404 => {
            tracing::error!(path, error, "watch failed, will retry: install the CustomResourceDefinition");
        }
        Some(status) if status.is_forbidden() => {
            tracing::error!(
                path,
                error,
                "watch failed, will retry: grant the operator list and watch on workflowrunstops"
            );
        }
        // Watches end from time to time: the resource version is too old, or a connection breaks.
        Some(_) | None => tracing::warn!(path, error, "watch failed, will retry"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use http_body_util::{BodyExt, StreamBody};
    use serde::Deserialize;
    use serde_json::{Value, json};
    use std::{
        collections::VecDeque,
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    /// An object that is decoded to its name.
    #[derive(Debug, PartialEq)]
    struct Name(String);

    impl Decode for Name {
        fn decode(json: &[u8]) -> Result<Self, serde_json::Error> {
            #[derive(Deserialize)]
            struct Needed {
                spec: String,
            }
            serde_json::from_slice(json).map(|Needed { spec }| Self(spec))
        }
    }

    /// A response of the API server.
    struct Scripted {
        code: u16,
        body: String,
        /// True if the response does not end.
        is_open: bool,
    }

    fn closed(code: u16, body: String) -> Scripted {
        Scripted { code, body, is_open: false }
    }

    fn refused(code: u16) -> Scripted {
        closed(code, json!({"kind": "Status", "code": code, "message": "refused", "reason": "Refused"}).to_string())
    }

    fn open(body: String) -> Scripted {
        Scripted { code: 200, body, is_open: true }
    }

    fn object(name: &str, version: u64) -> Value {
        json!({"metadata": {"name": name, "uid": format!("u-{name}"), "resourceVersion": version.to_string()}, "spec": name})
    }

    fn event(kind: &str, object: &Value) -> String {
        format!("{}\n", json!({"type": kind, "object": object}))
    }

    fn bookmark(version: u64, annotations: &Value) -> String {
        let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
        event("BOOKMARK", &json!({"metadata": metadata}))
    }

    fn end_of_list(version: u64) -> String {
        bookmark(version, &json!({"k8s.io/initial-events-end": "true"}))
    }

    fn page(names: &[&str], token: &str) -> Scripted {
        let items: Vec<_> = names.iter().map(|name| object(name, 1)).collect();
        closed(200, json!({"items": items, "metadata": {"resourceVersion": "50", "continue": token}}).to_string())
    }

    /// The time without a change after which a run ends: longer than all delays after failures in a row and a list that
    /// hangs, and shorter than a watch without events.
    const QUIET: Duration = Duration::from_secs(250);

    /// Runs a list and watch against these responses, until none is left and nothing happens any more. Returns the
    /// changes and the queries of the requests.
    async fn run(responses: Vec<Scripted>) -> (Vec<String>, Vec<String>) {
        let script = Arc::new(Mutex::new(VecDeque::from(responses)));
        let queries = Arc::new(Mutex::new(vec![]));
        let recorded = queries.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            recorded.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
            let response = script.lock().unwrap().pop_front();
            async move {
                let Some(Scripted { code, body, is_open }) = response else { return std::future::pending().await };
                let data = stream::iter([Ok::<_, Infallible>(http_body::Frame::data(bytes::Bytes::from(body)))]);
                let body = if is_open { data.chain(stream::pending()).boxed() } else { data.boxed() };
                let response = http::Response::builder().status(code).body(StreamBody::new(body).boxed_unsync());
                Ok::<_, Infallible>(response.unwrap())
            }
        });
        let client = Client::new(service, "ops");
        let mut changes = std::pin::pin!(changes::<Name>(&client, paths(&["ops".to_owned()]), "a=b"));
        let mut all = vec![];
        while let Ok(Some((number, change))) = timeout(QUIET, changes.next()).await {
            assert_eq!(number, 0);
            all.push(match change {
                Change::ListStarted => "started".to_owned(),
                Change::Listed(Name(name)) => format!("listed {name}"),
                Change::ListEnded => "ended".to_owned(),
                Change::Applied(Name(name)) => format!("applied {name}"),
                Change::Deleted(uid) => format!("deleted {uid}"),
                Change::Undecodable(error) => format!("undecodable {}", error.id.uid),
            });
        }
        let queries = queries.lock().unwrap().iter().map(|query| brief(query)).collect();
        (all, queries)
    }

    /// Returns the parameters that differ between requests.
    fn brief(query: &str) -> String {
        assert!(query.contains("fieldSelector=a%3Db"), "{query}");
        let all = ["watch", "sendInitialEvents", "resourceVersionMatch", "resourceVersion", "limit", "continue"];
        let mut parts: Vec<_> = query.split('&').filter_map(|part| part.split_once('=')).collect();
        parts.retain(|(key, _)| all.contains(key));
        parts.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    const LIST_BY_WATCH: &str = "watch=true sendInitialEvents=true resourceVersionMatch=NotOlderThan resourceVersion=";

    #[tokio::test(start_paused = true)]
    async fn a_streaming_list_becomes_a_watch_which_is_resumed_from_its_last_version() {
        let undecodable = json!({"metadata": {"uid": "u-x", "resourceVersion": "9"}, "spec": 1});
        let mut first = event("ADDED", &object("a", 1)) + &event("ADDED", &undecodable) + &end_of_list(10);
        first += &(event("MODIFIED", &object("a", 11)) + &event("DELETED", &json!({"metadata": {"uid": "u-x"}})));
        let (changes, queries) = run(vec![
            closed(200, first),
            closed(200, event("MODIFIED", &undecodable) + &bookmark(30, &json!({}))),
            closed(200, String::new()),
            refused(500),
            open(event("ADDED", &object("b", 31))),
        ])
        .await;
        let expected = [
            "started",
            "listed a",
            "undecodable u-x",
            "ended",
            "applied a",
            "deleted u-x",
            "undecodable u-x",
            "applied b",
        ];
        assert_eq!(changes, expected);
        let from = |version: u64| format!("watch=true resourceVersion={version}");
        assert_eq!(queries, [LIST_BY_WATCH.to_owned(), from(11), from(30), from(30), from(30)]);
    }

    #[tokio::test(start_paused = true)]
    async fn where_streaming_lists_are_refused_every_list_is_one_of_pages() {
        for code in [400, 422] {
            let (changes, queries) = run(vec![
                refused(code),
                page(&["a", "b"], "next"),
                page(&["c"], ""),
                closed(
                    200,
                    event("ERROR", &json!({"kind": "Status", "code": 410, "message": "expired", "reason": "Expired"})),
                ),
                page(&["d"], ""),
                refused(410),
                page(&["e"], ""),
                open(String::new()),
            ])
            .await;
            let expected = [
                "started", "listed a", "listed b", "listed c", "ended", "started", "listed d", "ended", "started",
                "listed e", "ended",
            ];
            assert_eq!(changes, expected);
            let (list, watch) = ("limit=500", "watch=true resourceVersion=50");
            let expected = [LIST_BY_WATCH, list, "limit=500 continue=next", watch, list, watch, list, watch];
            assert_eq!(queries, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_whose_next_page_has_expired_starts_anew_without_pages() {
        let (changes, queries) = run(vec![
            refused(422),
            page(&["a"], "next"),
            refused(410),
            page(&["a", "b"], ""),
            refused(410),
            page(&["c"], ""),
            open(String::new()),
        ])
        .await;
        let expected =
            ["started", "listed a", "started", "listed a", "listed b", "ended", "started", "listed c", "ended"];
        assert_eq!(changes, expected);
        let watch = "watch=true resourceVersion=50";
        let expected = [LIST_BY_WATCH, "limit=500", "limit=500 continue=next", "", watch, "limit=500", watch];
        assert_eq!(queries, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_streaming_list_that_fails_is_followed_by_one_of_pages_and_tried_again_later() {
        let status =
            json!({"kind": "Status", "code": 504, "message": "too large resource version", "reason": "Timeout"});
        for failure in [
            refused(504),
            // It breaks off, or never ends.
            closed(200, event("ADDED", &object("a", 1))),
            closed(200, event("ERROR", &status)),
            open(event("ADDED", &object("a", 1)) + "<html>\n"),
            open(event("ADDED", &object("a", 1))),
        ] {
            let (changes, queries) = run(vec![failure, page(&["b"], ""), refused(410), open(end_of_list(60))]).await;
            let changes: Vec<_> = changes.into_iter().filter(|change| change != "listed a").collect();
            let expected = ["started", "listed b", "ended", "started", "ended"];
            assert_eq!(changes[changes.len() - expected.len()..], expected);
            assert_eq!(queries, [LIST_BY_WATCH, "limit=500", "watch=true resourceVersion=50", LIST_BY_WATCH]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_of_pages_that_breaks_off_starts_anew() {
        let broken = closed(200, format!(r#"{{"metadata":{{"resourceVersion":"50"}},"items":[{},"#, object("a", 1)));
        let (changes, _) = run(vec![refused(422), broken, refused(500), page(&["a"], ""), open(String::new())]).await;
        assert_eq!(changes, ["started", "listed a", "started", "listed a", "ended"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_fails_is_requested_again_with_fewer_resources() {
        let broken = || closed(200, format!(r#"{{"metadata":{{"resourceVersion":"50"}},"items":[{},"#, object("b", 1)));
        let responses = vec![
            refused(422),
            page(&["a"], "t"),
            broken(),
            refused(504),
            page(&["b"], "u"),
            page(&["c"], ""),
            open(String::new()),
        ];
        let (changes, queries) = run(responses).await;
        assert_eq!(changes, ["started", "listed a", "listed b", "listed b", "listed c", "ended"]);
        let pages = [
            "limit=500",
            "limit=500 continue=t",
            "limit=250 continue=t",
            "limit=125 continue=t",
            "limit=125 continue=u",
        ];
        assert_eq!(queries[1..6], pages);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_of_which_a_page_never_succeeds_starts_anew_in_the_end() {
        let failures = (0..=MAX_RESUMES).map(|_| refused(504));
        let responses = [refused(422), page(&["a"], "t")].into_iter().chain(failures);
        let (changes, queries) = run(responses.chain([page(&["a"], ""), open(String::new())]).collect()).await;
        assert_eq!(changes, ["started", "listed a", "started", "listed a", "ended"]);
        assert_eq!(queries[queries.len() - 3..], ["limit=15 continue=t", "limit=15", "watch=true resourceVersion=50"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_does_not_know_streaming_lists_is_noticed_by_its_first_bookmark() {
        let (changes, queries) = run(vec![
            open(event("ADDED", &object("a", 1)) + &bookmark(10, &json!({}))),
            page(&["a"], ""),
            refused(410),
            page(&["b"], ""),
            open(String::new()),
        ])
        .await;
        assert_eq!(changes, ["started", "listed a", "started", "listed a", "ended", "started", "listed b", "ended"]);
        let watch = "watch=true resourceVersion=50";
        assert_eq!(queries, [LIST_BY_WATCH, "limit=500", watch, "limit=500", watch]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_ends_at_once_is_renewed_with_a_growing_delay() {
        let start = Instant::now();
        let ends = (0..7).map(|_| closed(200, String::new()));
        let last = open(event("ADDED", &object("a", 11)));
        let (changes, _) = run([closed(200, end_of_list(10))].into_iter().chain(ends).chain([last]).collect()).await;
        assert_eq!(changes, ["started", "ended", "applied a"]);
        assert!(QUIET + Duration::from_secs(45) < start.elapsed(), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_backoff_grows_to_half_a_minute_and_starts_anew_after_two_minutes_without_a_failure() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..10).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] <= Duration::from_secs(1) && Duration::from_secs(15) <= delays[9], "{delays:?}");
        tokio::time::advance(WELL_AGAIN + Duration::from_secs(1)).await;
        assert!(backoff.next_delay() <= Duration::from_secs(1));
    }
}
