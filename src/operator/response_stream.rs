//! Owns reading the responses to lists and watches while they arrive: one object or event at a time.
//! Never holds a whole list, more than one object that is not decoded, or an object that is larger than the limit.

use std::{collections::VecDeque, io, pin::Pin, time::Duration};

use futures::{AsyncBufRead, AsyncBufReadExt};
use kube::core::Status;
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::time::{error::Elapsed, timeout};

use crate::json_stream::{Container, Limits, Malformed, Part, Piece, Splitter};
use crate::stored_object::{Decode, ObjectId, Undecodable, decode};

/// The largest object in bytes of JSON. etcd stores at most 1.5 MiB by default, and the API server accepts at most 3 MiB.
const MAX_OBJECT: usize = 8 * 1024 * 1024;

/// The largest buffer that is kept for the next event, in bytes.
const KEPT_CAPACITY: usize = 16 * 1024;

/// The number of bytes that are split at once: what they contain is decoded before it is handed on.
const CHUNK: usize = 16 * 1024;

/// The time without data after which a list, or the request of a watch, has failed. It is longer than a minute, after which
/// a watch gets a bookmark: a proxy may hold back the start of the response until then.
pub const LIST_IDLE: Duration = Duration::from_secs(90);

/// The time without data after which a watch is renewed. The API server ends it after 290 seconds.
const WATCH_IDLE: Duration = Duration::from_secs(295);

/// The same for a watch that gets bookmarks: the API server sends one about every minute. Without any, the connection is
/// dead, and changes would be missed.
const BOOKMARK_IDLE: Duration = Duration::from_secs(150);

/// The body of a response.
pub type Body = Pin<Box<dyn AsyncBufRead + Send>>;

/// An error of a list or watch.
#[derive(Debug, Error)]
pub enum ResponseError {
    /// The request failed, or the API server answered or ended the watch with an error.
    #[error(transparent)]
    Request(#[from] kube::Error),
    /// The connection broke.
    #[error("the response broke off: {0}")]
    Broken(#[from] io::Error),
    /// No data within [`LIST_IDLE`].
    #[error("the API server sent nothing for {} s", LIST_IDLE.as_secs())]
    Silent,
    /// The response ended before its end.
    #[error("the list ended before it was complete")]
    Incomplete,
    /// The response is not one of the API server.
    #[error("the response is not a list or watch of Kubernetes objects")]
    Malformed,
}

impl From<Malformed> for ResponseError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<Elapsed> for ResponseError {
    fn from(_: Elapsed) -> Self {
        Self::Silent
    }
}

impl ResponseError {
    /// Returns the status with which the API server answered; `None` if it did not.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Request(kube::Error::Api(status)) => Some(status),
            Self::Request(_) | Self::Broken(_) | Self::Silent | Self::Incomplete | Self::Malformed => None,
        }
    }
}

/// An event of a watch.
pub enum Event<'a> {
    /// The object was added or modified.
    Stored(&'a [u8]),
    /// The object was deleted, or does not match any more.
    Deleted(&'a [u8]),
    /// All changes up to this version were sent.
    Bookmark {
        /// The version.
        version: String,
        /// True if all objects were sent that existed when the watch began.
        ends_list: bool,
    },
    /// The event is larger than the limit, and was skipped.
    TooLarge,
    /// An event of a type that this version does not know.
    Unknown,
}

/// The events of a watch, as they arrive.
pub struct Events {
    body: Body,
    line: Vec<u8>,
    idle: Duration,
}

impl Events {
    /// Reads the events of this response.
    pub fn new(body: Body) -> Self {
        Self { body, line: vec![], idle: WATCH_IDLE }
    }

    /// Expects a bookmark about every minute from now on.
    pub fn expect_bookmarks(&mut self) {
        self.idle = BOOKMARK_IDLE;
    }

    /// Waits for the next event. Returns `None` when the watch has ended, or was silent for longer than it lasts.
    ///
    /// # Errors
    /// If the connection broke, or the API server reports an error.
    pub async fn next(&mut self) -> Result<Option<Event<'_>>, ResponseError> {
        match timeout(self.idle, self.read_line()).await {
            Ok(line) => match line? {
                None => Ok(None),
                Some(Piece::TooLarge) => Ok(Some(Event::TooLarge)),
                Some(Piece::Whole(line)) => event(line).map(Some),
            },
            Err(_) => Ok(None),
        }
    }

    /// Reads the next line; `None` at the end of the response. A line that is not complete is dropped.
    async fn read_line(&mut self) -> Result<Option<Piece<'_>>, io::Error> {
        let Self { body, line, idle: _ } = self;
        if KEPT_CAPACITY < line.capacity() {
            *line = vec![];
        }
        line.clear();
        let mut too_large = false;
        loop {
            let bytes = body.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            too_large |= MAX_OBJECT < line.len() + part.len();
            if too_large {
                *line = vec![];
            } else {
                line.extend_from_slice(part);
            }
            let read = part.len() + usize::from(end.is_some());
            body.as_mut().consume(read);
            match end {
                Some(_) if too_large => return Ok(Some(Piece::TooLarge)),
                Some(_) => return Ok(Some(Piece::Whole(line))),
                None => {}
            }
        }
    }
}

fn event(line: &[u8]) -> Result<Event<'_>, ResponseError> {
    /// The object is not decoded together with its event: then its depth would be limited by that of the event.
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(rename = "type")]
        kind: String,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct Bookmark {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        resource_version: String,
        #[serde(default)]
        annotations: Annotations,
    }
    #[derive(Default, Deserialize)]
    struct Annotations {
        #[serde(rename = "k8s.io/initial-events-end")]
        ends_list: Option<String>,
    }
    let Line { kind, object } = serde_json::from_slice(line).map_err(|_| ResponseError::Malformed)?;
    let object = object.get();
    match kind.as_str() {
        "ADDED" | "MODIFIED" => Ok(Event::Stored(object.as_bytes())),
        "DELETED" => Ok(Event::Deleted(object.as_bytes())),
        "BOOKMARK" => {
            let Bookmark { metadata } = serde_json::from_str(object).map_err(|_| ResponseError::Malformed)?;
            if metadata.resource_version.is_empty() {
                return Err(ResponseError::Malformed);
            }
            let ends_list = metadata.annotations.ends_list.as_deref() == Some("true");
            Ok(Event::Bookmark { version: metadata.resource_version, ends_list })
        }
        "ERROR" => {
            let status: Status = serde_json::from_str(object).map_err(|_| ResponseError::Malformed)?;
            Err(kube::Error::Api(Box::new(status)).into())
        }
        _ => Ok(Event::Unknown),
    }
}

/// Returns the error of an object that was skipped because it is too large.
pub fn too_large() -> Undecodable {
    Undecodable { id: ObjectId::default(), why: format!("an object is larger than {MAX_OBJECT} bytes") }
}

/// The objects of one page of a list, as they arrive.
pub struct Page<T> {
    body: Body,
    splitter: Splitter,
    /// Objects that arrived together with the last one.
    decoded: VecDeque<Result<T, Undecodable>>,
    end: PageEnd,
    has_items: bool,
    is_read: bool,
}

/// The metadata of a list, which each of its pages has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PageEnd {
    /// The version of the list; empty if the response has none.
    pub resource_version: String,
    /// The token of the next page; empty if there is none.
    pub r#continue: String,
}

impl<T: Decode> Page<T> {
    /// Reads the objects of this response.
    pub fn new(body: Body) -> Self {
        let limits = Limits { key: 64, field: CHUNK, child: MAX_OBJECT };
        let splitter = Splitter::new(&["items"], limits);
        Self { body, splitter, decoded: VecDeque::new(), end: PageEnd::default(), has_items: false, is_read: false }
    }

    /// Waits for the next object. Returns `None` after the last one.
    ///
    /// # Errors
    /// If the connection broke, or the response is not a complete list.
    pub async fn next(&mut self) -> Result<Option<Result<T, Undecodable>>, ResponseError> {
        while self.decoded.is_empty() && !self.is_read {
            let bytes = timeout(LIST_IDLE, self.body.fill_buf()).await??;
            let bytes = &bytes[..bytes.len().min(CHUNK)];
            self.is_read = bytes.is_empty();
            let (decoded, end, has_items) = (&mut self.decoded, &mut self.end, &mut self.has_items);
            self.splitter.push(bytes, &mut |part| match part {
                Part::Item { value: Piece::Whole(json), .. } => decoded.push_back(decode(json)),
                Part::Item { value: Piece::TooLarge, .. } => decoded.push_back(Err(too_large())),
                Part::Field { key, value } if key.text().as_deref() == Some("metadata") => {
                    *end = value.json().and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default();
                }
                Part::Start { container: Container::Array, .. } => *has_items = true,
                Part::Field { .. } | Part::Start { .. } | Part::Member { .. } => {}
            })?;
            let read = bytes.len();
            self.body.as_mut().consume(read);
        }
        Ok(self.decoded.pop_front())
    }

    /// Ends the page, after its last object.
    ///
    /// # Errors
    /// If the response ended early, or has no version or no items: an empty list has an empty array.
    pub fn end(self) -> Result<PageEnd, ResponseError> {
        self.splitter.finish().map_err(|_| ResponseError::Incomplete)?;
        if self.end.resource_version.is_empty() || !self.has_items {
            Err(ResponseError::Malformed)
        } else {
            Ok(self.end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::api_response::tests::in_chunks;
    use futures::{TryStreamExt, stream};
    use serde_json::{Value, json};

    /// An object that is decoded to its spec, a text.
    #[derive(Debug, PartialEq)]
    struct Spec(String);

    impl Decode for Spec {
        fn decode(json: &[u8]) -> Result<Self, serde_json::Error> {
            #[derive(Deserialize)]
            struct Needed {
                spec: String,
            }
            serde_json::from_slice(json).map(|Needed { spec }| Self(spec))
        }
    }

    fn body(text: &str, size: usize) -> Body {
        Box::pin(in_chunks(text, size))
    }

    /// Returns a deeply nested value, which `Value` could not hold.
    fn nested() -> String {
        format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))
    }

    async fn shown(events: &mut Events) -> Result<Option<String>, ResponseError> {
        let text = |json: &[u8]| String::from_utf8(json.to_vec()).unwrap();
        Ok(events.next().await?.map(|event| match event {
            Event::Stored(json) => format!("stored {}", text(json)),
            Event::Deleted(json) => format!("deleted {}", text(json)),
            Event::Bookmark { version, ends_list } => format!("bookmark {version} {ends_list}"),
            Event::TooLarge => "too large".to_owned(),
            Event::Unknown => "unknown".to_owned(),
        }))
    }

    #[tokio::test]
    async fn events_are_read_one_by_one_wherever_the_chunks_end() {
        let deep = nested();
        let lines = [
            r#"{"type":"ADDED","object":{"a":"\n{"}}"#.to_owned(),
            format!(r#"{{"type":"MODIFIED","object":{{"a":{deep}}}}}"#),
            r#"{"object": {"b": 1}, "type": "DELETED"}"#.to_owned(),
            r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7","creationTimestamp":null}}}"#.to_owned(),
            r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"8","annotations":{"a":"b","k8s.io/initial-events-end":"true"}}}}"#.to_owned(),
            // The connection broke within a line.
            r#"{"type":"ADD"#.to_owned(),
        ];
        for size in [1, 7, 64, usize::MAX] {
            let mut events = Events::new(body(&lines.join("\n"), size));
            let mut all = vec![];
            while let Some(event) = shown(&mut events).await.unwrap() {
                all.push(event);
            }
            let expected = [
                r#"stored {"a":"\n{"}"#.to_owned(),
                format!(r#"stored {{"a":{deep}}}"#),
                r#"deleted {"b": 1}"#.to_owned(),
                "bookmark 7 false".to_owned(),
                "bookmark 8 true".to_owned(),
            ];
            assert!(all == expected, "{size}");
        }
    }

    #[tokio::test]
    async fn an_error_event_is_an_error_with_its_status_and_another_line_is_malformed() {
        let text =
            "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\"}}\n<html>\n";
        let mut events = Events::new(body(text, 64));
        assert_eq!(shown(&mut events).await.unwrap_err().status().unwrap().code, 410);
        assert!(matches!(shown(&mut events).await, Err(ResponseError::Malformed)));
    }

    #[tokio::test]
    async fn an_event_that_is_too_large_is_skipped_and_the_next_one_is_read() {
        let large = "x".repeat(MAX_OBJECT);
        let text = format!("{{\"type\":\"ADDED\",\"object\":{large:?}}}\n{{\"type\":\"DELETED\",\"object\":1}}\n");
        let mut events = Events::new(body(&text, 1 << 20));
        assert_eq!(shown(&mut events).await.unwrap().as_deref(), Some("too large"));
        assert_eq!(shown(&mut events).await.unwrap().as_deref(), Some("deleted 1"));
        assert!(events.line.capacity() <= KEPT_CAPACITY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_silent_for_longer_than_it_lasts_has_ended() {
        let mut events = Events::new(Box::pin(stream::pending::<io::Result<Vec<u8>>>().into_async_read()));
        let start = tokio::time::Instant::now();
        assert!(matches!(events.next().await, Ok(None)));
        assert_eq!(start.elapsed(), WATCH_IDLE);
        events.expect_bookmarks();
        assert!(matches!(events.next().await, Ok(None)));
        assert_eq!(start.elapsed(), WATCH_IDLE + BOOKMARK_IDLE);
    }

    fn item(name: &str, spec: &Value) -> String {
        json!({"metadata": {"namespace": "ops", "name": name, "uid": name}, "spec": spec}).to_string()
    }

    #[tokio::test]
    async fn the_objects_of_a_page_are_decoded_one_by_one_and_one_that_cannot_be_harms_no_other() {
        let deep = item("deep", &json!("x")).replace(r#""x""#, &nested());
        let items = [item("a", &json!("1")), item("b", &json!({"hush": 2})), deep, item("c", &json!("3"))].join(",");
        let meta = r#""metadata":{"resourceVersion":"7","continue":"token","remainingItemCount":9}"#;
        for text in
            [format!(r#"{{"kind":"List",{meta},"items":[{items}]}}"#), format!(r#"{{"items":[{items}],{meta}}}"#)]
        {
            for size in [1, 7, 64, usize::MAX] {
                let mut page = Page::<Spec>::new(body(&text, size));
                let mut all = vec![];
                while let Some(object) = page.next().await.unwrap() {
                    all.push(object.map(|Spec(text)| text).map_err(|error| error.id.name));
                }
                let [a, c] = ["1", "3"].map(|text| Ok(text.to_owned()));
                assert_eq!(all, [a, Err("b".to_owned()), Err("deep".to_owned()), c]);
                let PageEnd { resource_version, r#continue } = page.end().unwrap();
                assert_eq!((resource_version.as_str(), r#continue.as_str()), ("7", "token"));
            }
        }
    }

    #[tokio::test]
    async fn an_object_of_a_page_that_is_too_large_is_skipped() {
        let large = item("large", &json!("x".repeat(MAX_OBJECT)));
        let text = format!(r#"{{"items":[{large},{}],"metadata":{{"resourceVersion":"7"}}}}"#, item("a", &json!("1")));
        let mut page = Page::<Spec>::new(body(&text, CHUNK));
        assert_eq!(page.next().await.unwrap(), Some(Err(too_large())));
        assert_eq!(page.next().await.unwrap(), Some(Ok(Spec("1".to_owned()))));
        assert_eq!(page.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_page_that_breaks_off_or_is_no_list_is_an_error_after_its_objects() {
        let text = format!(r#"{{"metadata":{{"resourceVersion":"7"}},"items":[{},"#, item("a", &json!("1")));
        let mut page = Page::<Spec>::new(body(&text, 64));
        assert!(matches!(page.next().await, Ok(Some(Ok(_)))));
        assert!(matches!(page.next().await, Ok(None)));
        assert!(matches!(page.end(), Err(ResponseError::Incomplete)));
        let mut page = Page::<Spec>::new(body("<html>", 64));
        assert!(matches!(page.next().await, Err(ResponseError::Malformed)));
        let mut page = Page::<Spec>::new(body(r#"{"items": []}"#, 64));
        assert!(matches!(page.next().await, Ok(None)));
        assert!(matches!(page.end(), Err(ResponseError::Malformed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_silent_for_long_has_failed() {
        let mut page = Page::<Spec>::new(Box::pin(stream::pending::<io::Result<Vec<u8>>>().into_async_read()));
        let start = tokio::time::Instant::now();
        assert!(matches!(page.next().await, Err(ResponseError::Silent)));
        assert_eq!(start.elapsed(), LIST_IDLE);
    }
}
