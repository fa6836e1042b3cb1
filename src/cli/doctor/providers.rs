//! The checks of the providers that config.json publishes: what the provider host would say about each.

use std::path::Path;

use futures_util::future::join_all;

use crate::{
    cli::report::Finding,
    config::Lookup,
    domain::{Printable, ProviderState},
    provide::{
        Clients,
        config_file::{Entry, Parsed},
        providers::{self, Readiness},
    },
};

/// What to do if the host's sentence does not say it.
const MEND: &str = "start it, or correct its entry in config.json";

/// Asks all opted-in servers at once; no other server is contacted. The authorities in `ca_file` are trusted too.
pub(super) async fn examine(config: &Parsed, ca_file: Option<&Path>, env: Lookup<'_>) -> Vec<Finding> {
    let clients = Clients::trusting(ca_file.map(Path::to_owned));
    let opted_in = config.entries.iter().filter(|entry| entry.publish);
    join_all(opted_in.map(|entry| one(entry, &clients, env))).await
}

async fn one(entry: &Entry, clients: &Clients, env: Lookup<'_>) -> Finding {
    let subject = format!("provider {}", Printable(entry.name.as_str()));
    if let Some(variable) =
        entry.api_key_env.as_deref().filter(|name| env(name).is_none_or(|key| key.is_empty()))
    {
        // The host may have it nevertheless: a service can have variables that a shell does not.
        let message = format!("its key's variable {} is not set here", Printable(variable));
        return Finding::warning(&subject, message, "see that it is set where the provider host runs");
    }
    told(&subject, entry, &providers::ask(entry, clients).await)
}

/// What the host found, as a finding.
fn told(subject: &str, entry: &Entry, readiness: &Readiness) -> Finding {
    let detail = &readiness.detail;
    let message = Printable(&detail.what).to_string();
    match readiness.state {
        ProviderState::Ready if detail.is_empty() => {
            let (kind, model) = (Printable(&entry.kind), Printable(&entry.model));
            Finding::ok(subject, format!("ready, with type {kind} and model {model}"))
        }
        ProviderState::Ready => {
            let advice = detail.clone().or_advice("load it, or correct its name in config.json").advice;
            Finding::warning(subject, message, advice)
        }
        ProviderState::Loading => Finding::warning(subject, message, "wait; its tasks wait too"),
        ProviderState::Unavailable => {
            Finding::failure(subject, message, detail.clone().or_advice(MEND).advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, routing};
    use serde_json::json;

    use super::*;
    use crate::{
        cli::{report::Level, stub::Stub},
        provide::config_file,
    };

    fn config(entry: serde_json::Value) -> Parsed {
        let text = json!({"llm": {"providers": [entry]}}).to_string();
        config_file::parse(text.as_bytes()).expect("it is JSON")
    }

    fn published(kind: &str, url: &str) -> Parsed {
        config(json!({"name": "a", "type": kind, "model": "m", "url": url, "publish": true}))
    }

    async fn finding(config: &Parsed) -> Finding {
        examine(config, None, &|_| None).await.remove(0)
    }

    /// A server that answers the question for its models so.
    async fn server(status: u16, body: &'static str) -> Stub {
        let status = StatusCode::from_u16(status).expect("a status");
        Stub::serve(Router::new().route("/v1/models", routing::get(async move || (status, body)))).await
    }

    #[tokio::test]
    async fn a_server_is_judged_as_the_provider_host_judges_it() {
        for (status, body, level, said) in [
            (200, r#"{"data":[{"id":"m"}]}"#, Level::Ok, "ready, with type ollama and model m"),
            (200, r#"{"data":[{"id":"other"}]}"#, Level::Warning, "does not list the model m"),
            (200, "<!doctype html><title>It works</title>", Level::Failure, "not with a list of models"),
            (401, "", Level::Failure, "wants a key"),
            (502, "", Level::Failure, "answers 502"),
        ] {
            let stub = server(status, body).await;
            let found = finding(&published("ollama", &stub.url)).await;
            assert!(found.result == level && found.message.contains(said), "{said}: {found:?}");
            assert_eq!(found.advice.is_some(), level != Level::Ok, "{found:?}");
        }
    }

    #[tokio::test]
    async fn a_model_that_is_loading_is_a_warning() {
        let health = async || StatusCode::SERVICE_UNAVAILABLE;
        let stub = Stub::serve(Router::new().route("/health", routing::get(health))).await;
        let found = finding(&published("llamacpp", &stub.url)).await;
        assert_eq!((found.result, &*found.message), (Level::Warning, "the model is loading"));
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_a_failure_and_its_password_stays_out() {
        let found = finding(&published("ollama", "http://u:s3cret@127.0.0.1:1/v1")).await;
        assert_eq!(found.result, Level::Failure);
        assert!(
            found.message.starts_with("http://127.0.0.1:1/v1 does not answer: Connection refused"),
            "{found:?}"
        );
        assert_eq!(finding(&published("ollama", "ftp://h")).await.result, Level::Failure);
    }

    #[tokio::test]
    async fn the_embedded_provider_is_always_ready_and_nobody_asks_what_is_not_opted_in() {
        let echo = config(json!({"name": "a", "type": "echo", "publish": true}));
        assert_eq!(finding(&echo).await.result, Level::Ok);
        let shy = config(json!({"name": "a", "type": "ollama", "model": "m", "url": "http://127.0.0.1:1"}));
        assert_eq!(examine(&shy, None, &|_| None).await, []);
    }

    #[tokio::test]
    async fn a_key_that_is_not_set_here_is_a_warning() {
        let mut keyed = published("openai", "http://127.0.0.1:1");
        keyed.entries[0].api_key_env = Some("SOME_KEY".to_owned());
        assert_eq!(finding(&keyed).await.result, Level::Warning);
    }
}
