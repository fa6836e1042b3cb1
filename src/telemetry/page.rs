//! The metrics as a page for Prometheus, on a loopback address.

use std::net::{SocketAddr, TcpListener};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use opentelemetry_prometheus::PrometheusExporter;
use opentelemetry_sdk::error::OTelSdkError;
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::runtime;

use super::error::SetupError;

/// What the page shows. Cheap to clone.
#[derive(Clone)]
pub(super) struct Page(Registry);

impl Page {
    /// An empty page and the reader that fills it.
    pub(super) fn new() -> Result<(Self, PrometheusExporter), OTelSdkError> {
        let registry = Registry::new();
        // The only scope is the agent's own, so a label for it would say nothing.
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()?;
        Ok((Self(registry), reader))
    }

    /// The page in Prometheus' text format.
    pub(super) fn text(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn reply(&self) -> Response {
        match self.text() {
            Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "The metrics cannot be written.\n").into_response(),
        }
    }

    /// Serves the page at `/metrics` until the worker ends.
    pub(super) fn serve(self, worker: &runtime::Handle, listener: TcpListener) -> Result<(), SetupError> {
        let failed = |e| SetupError::Listen(local(&listener), e);
        listener.set_nonblocking(true).map_err(failed)?;
        let _on_the_worker = worker.enter();
        let listener =
            tokio::net::TcpListener::from_std(listener.try_clone().map_err(failed)?).map_err(failed)?;
        let app = Router::new().route("/metrics", get(move || async move { self.reply() }));
        worker.spawn(async move { axum::serve(listener, app).await });
        Ok(())
    }
}

fn local(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// Takes the page's address; only loopback ones, since the page knows no credentials.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, SetupError> {
    if !address.ip().is_loopback() {
        return Err(SetupError::NotLoopback(address));
    }
    TcpListener::bind(address).map_err(|e| SetupError::Listen(address, e))
}
