//! Owns `/healthz`, `/readyz` and `/metrics`.
//! Never reports leadership: a standby replica is ready as well.

use axum::{
    Router,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::watch};

use crate::observe::metrics::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The content type that Prometheus requests to get native histograms.
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// Serves until the future is dropped. `/readyz` succeeds while `ready` is true.
pub async fn serve(listener: TcpListener, metrics: Metrics, ready: watch::Receiver<bool>) {
    let readiness = move || {
        let ready = *ready.borrow();
        async move { if ready { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") } }
    };
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readiness))
        .route("/metrics", get(async move |headers: HeaderMap| metrics_response(&metrics, &headers)));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "health server stopped");
    }
}

/// Returns the metrics in the format that the client prefers.
fn metrics_response(metrics: &Metrics, headers: &HeaderMap) -> Response {
    if prefers_protobuf(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default()) {
        ([(CONTENT_TYPE, PROTOBUF)], metrics.protobuf()).into_response()
    } else {
        ([(CONTENT_TYPE, OPENMETRICS)], metrics.text()).into_response()
    }
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
}
