//! Owns `/healthz`, `/readyz` and `/metrics`.
//! Never says more than the process knows of itself: ready is not leader.

use axum::{Router, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch};

use crate::operator::report::Metrics;

/// Serves until it is dropped. Ready while `ready` is true.
pub async fn serve(listener: TcpListener, metrics: Metrics, ready: watch::Receiver<bool>) {
    let readiness = move || {
        let ready = *ready.borrow();
        async move { if ready { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") } }
    };
    let openmetrics = [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readiness))
        .route("/metrics", get(async move || (openmetrics, metrics.text())));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the health endpoints are no longer served");
    }
}
