//! Owns `/healthz`, `/readyz` and `/metrics`.
//! Never reports leadership: a standby replica is ready as well.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::observe::metrics::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The content type that Prometheus requests to get native histograms.
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// The largest number of responses with metrics in memory at the same time, each of 1.5 MB if 100 tenants are known. More
/// clients that do not read them could exhaust the memory.
const MAX_SCRAPES: usize = 4;

/// Returns the routes. `/readyz` succeeds while `ready` is true.
pub fn routes(metrics: Metrics, ready: watch::Receiver<bool>) -> Router {
    let readiness = move || {
        let ready = *ready.borrow();
        async move { if ready { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") } }
    };
    let scrapes = Arc::new(Semaphore::new(MAX_SCRAPES));
    let scrape = async move |headers: HeaderMap| match scrapes.clone().try_acquire_owned() {
        Ok(permit) => metrics_response(&metrics, &headers, permit),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "too many scrapes at the same time\n").into_response(),
    };
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readiness))
        .route("/metrics", get(scrape))
}

/// A response and its permit, which is returned when the response is no longer in memory.
struct Scrape {
    content: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Scrape {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

/// Returns the metrics in the format that the client prefers.
fn metrics_response(metrics: &Metrics, headers: &HeaderMap, permit: OwnedSemaphorePermit) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (content_type, content) = if prefers_protobuf(accept) {
        (PROTOBUF, metrics.protobuf())
    } else {
        (OPENMETRICS, metrics.text().into_bytes())
    };
    let content = Bytes::from_owner(Scrape { content, _permit: permit });
    ([(CONTENT_TYPE, content_type)], Body::from(content)).into_response()
}

/// Returns true if the protobuf format is the first one in the header `Accept`, where Prometheus lists its preferred
/// format first.
fn prefers_protobuf(accept: &str) -> bool {
    let first = accept.split(',').next().unwrap_or_default();
    first.contains("application/vnd.google.protobuf") && first.contains("io.prometheus.client.MetricFamily")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::Request;
    use tower::ServiceExt;

    #[test]
    fn protobuf_is_served_to_clients_that_prefer_it() {
        let protobuf =
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6";
        let text = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert!(prefers_protobuf(&format!("{protobuf},{text}")));
        assert!(!prefers_protobuf(&format!("{text},{protobuf}")));
        assert!(!prefers_protobuf(text));
        assert!(!prefers_protobuf(""));
    }

    #[tokio::test]
    async fn the_number_of_metrics_responses_in_memory_is_bounded_and_probes_do_not_count() {
        let routes = routes(Metrics::default(), watch::channel(true).1);
        let get = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            routes.clone().oneshot(request).await.unwrap()
        };
        let mut unread = vec![];
        for _ in 0..MAX_SCRAPES {
            unread.push(get("/metrics").await);
        }
        assert!(unread.iter().all(|response| response.status() == StatusCode::OK));
        assert_eq!(get("/metrics").await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get("/readyz").await.status(), StatusCode::OK);
        // What hyper holds until it is written.
        let content = axum::body::to_bytes(unread.pop().unwrap().into_body(), usize::MAX).await.unwrap();
        assert_eq!(get("/metrics").await.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(content);
        assert_eq!(get("/metrics").await.status(), StatusCode::OK);
    }
}
