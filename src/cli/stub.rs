//! A small stand-in for mcpd on loopback, for the commands' tests.

use std::ffi::OsString;

use axum::Router;
use clap::Args;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::cli::http::Mcpd;
use crate::config::{HomeArgs, McpdArgs, parse_args};

/// A server that ends when it is dropped.
pub(crate) struct Stub {
    pub(crate) url: String,
    server: JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stub {
    /// Serves `router` on a free loopback port.
    pub(crate) async fn serve(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { url, server }
    }

    /// A client of it with a token.
    pub(crate) fn mcpd(&self) -> Mcpd {
        mcpd(&self.url)
    }
}

/// A client of the mcpd at `url` with a token.
pub(crate) fn mcpd(url: &str) -> Mcpd {
    let flag = format!("--mcpd-url={url}");
    let home: HomeArgs = parse(&["--home=/nonexistent"]);
    Mcpd::new(&parse::<McpdArgs>(&[&flag]), &home, &token)
        .map_err(|stop| format!("{stop:?}"))
        .expect("a client")
}

/// An environment with a token and nothing else.
pub(crate) fn token(name: &str) -> Option<OsString> {
    (name == "MCPRELAY_TOKEN").then(|| "t0ken".into())
}

/// Argument structs from flags, without this process's environment having a say.
pub(crate) fn parse<A: Args>(flags: &[&str]) -> A {
    parse_args(flags, &|_| None).expect("good flags")
}
