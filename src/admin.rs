//! The admin address: `/metrics`, `/healthz`, `/readyz`, `/status`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use tokio::sync::watch;

use crate::agent::Heartbeat;
use crate::agent::inbox::Inbox;
use crate::agent::report::Report;
use crate::metrics::Metrics;

/// How long a request waits for a report newer than itself, before the last one does.
const FRESH: Duration = Duration::from_millis(500);

/// What the answers are made of.
#[derive(Clone)]
pub(crate) struct Admin {
    /// The newest report.
    pub reports: watch::Receiver<Arc<Report>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where a fresh report is asked for.
    pub inbox: Arc<Inbox>,
    /// Whether the loop turns.
    pub heartbeat: Heartbeat,
}

impl Admin {
    /// Answers for ever.
    ///
    /// # Errors
    /// Where the listener fails.
    pub(crate) async fn serve(self, listener: std::net::TcpListener) -> anyhow::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let routes = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/status", get(status))
            .with_state(self);
        axum::serve(listener, routes).await.context("the admin address failed")
    }

    /// A report made after this call, or the last one where the loop is busy.
    async fn fresh(&self) -> Arc<Report> {
        let mut reports = self.reports.clone();
        reports.mark_unchanged();
        self.inbox.refresh();
        let _ = tokio::time::timeout(FRESH, reports.changed()).await;
        Arc::clone(&reports.borrow())
    }
}

async fn status(State(admin): State<Admin>) -> impl IntoResponse {
    Json(admin.fresh().await.as_ref().clone())
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    admin.fresh().await;
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    match admin.metrics.encode() {
        Ok(text) => (StatusCode::OK, kind, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, kind, error.to_string()),
    }
}

/// The loop turns.
async fn healthz(State(admin): State<Admin>) -> impl IntoResponse {
    if admin.heartbeat.is_fresh() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the loop does not turn\n".to_owned())
    }
}

/// The view is applied.
async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    let report = Arc::clone(&admin.reports.borrow());
    let view = &report.view;
    if view.applied {
        let so = if view.complete { "" } else { ", and incomplete: nothing that is not known is deleted" };
        (StatusCode::OK, format!("view {} is applied{so}\n", view.revision))
    } else if view.failed.is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "no view yet\n".to_owned())
    } else {
        let failed = view.failed.join("\n");
        (StatusCode::SERVICE_UNAVAILABLE, format!("view {} is not applied:\n{failed}\n", view.revision))
    }
}
