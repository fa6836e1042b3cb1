//! The providers that config.json publishes: whether somebody answers where they should be.

use std::time::Duration;

use reqwest::{Client, Url, redirect};
use serde_json::Value;

use crate::{
    cli::report::Finding,
    config::Lookup,
    credentials::is_loopback,
    domain::{Printable, root_cause},
    provide::detect::Ports,
};

/// How long a provider may take to answer at all: those on this machine take milliseconds.
const ANSWER: Duration = Duration::from_secs(5);

/// One opted-in entry of config.json, as far as it matters here.
pub(super) struct Entry {
    name: String,
    kind: String,
    url: Option<String>,
    api_key_env: Option<String>,
}

/// The opted-in entries; whatever is not readable is left out, as the provider host does.
pub(super) fn published(config: &Value) -> Vec<Entry> {
    let entries = config.pointer("/llm/providers").and_then(Value::as_array);
    entries
        .into_iter()
        .flatten()
        .filter(|entry| entry["publish"] == Value::Bool(true))
        .filter_map(entry)
        .collect()
}

fn entry(entry: &Value) -> Option<Entry> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(Entry { name: text("name")?, kind: text("type")?, url: text("url"), api_key_env: text("apiKeyEnv") })
}

/// Where a provider of this kind is when its entry does not say.
fn usual_url(kind: &str) -> Option<String> {
    let ports = Ports::default();
    let port = match kind {
        "ollama" => ports.ollama,
        "llamacpp" => ports.llamacpp,
        "vllm" => ports.vllm,
        "lmstudio" => ports.lmstudio,
        _ => return None,
    };
    Some(format!("http://127.0.0.1:{port}"))
}

/// Looks for an answer, of whatever kind: a key or a model that is wrong shows at the first inference.
pub(super) async fn examine(entry: &Entry, env: Lookup<'_>) -> Finding {
    let subject = format!("provider {}", Printable(&entry.name));
    if let Some(variable) =
        entry.api_key_env.as_deref().filter(|name| env(name).is_none_or(|key| key.is_empty()))
    {
        let message = format!("its key's variable {} is not set here", Printable(variable));
        return Finding::warning(&subject, message, "set it for mcprelay's service too");
    }
    match entry.url.clone().or_else(|| usual_url(&entry.kind)) {
        Some(url) => answers(&subject, &url).await,
        None => Finding::skipped(&subject, format!("type {} is not on this machine", Printable(&entry.kind))),
    }
}

async fn answers(subject: &str, text: &str) -> Finding {
    let advice = "write it like http://127.0.0.1:11434 in config.json";
    let Ok(url) = Url::parse(text) else {
        return Finding::failure(subject, "its url is none", advice);
    };
    // Without its credentials and query, which are nobody's business.
    let shown = url.origin().ascii_serialization();
    match client(&url).get(url).send().await {
        Ok(_) => Finding::ok(subject, format!("{shown} answers")),
        Err(error) if error.is_builder() => Finding::failure(subject, "its url is not http", advice),
        Err(error) => {
            let why = root_cause(&error.without_url());
            Finding::failure(
                subject,
                format!("{shown} does not answer ({why})"),
                "start it, or correct its url",
            )
        }
    }
}

/// As the provider host's: a proxy is for what is not on this machine.
fn client(url: &Url) -> Client {
    let builder = Client::builder().redirect(redirect::Policy::none()).timeout(ANSWER);
    let builder = if is_loopback(url) { builder.no_proxy() } else { builder };
    builder.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::{report::Level, stub::Stub};

    fn one(url: &str) -> Entry {
        let config = json!({"llm": {"providers": [
            {"name": "a", "type": "ollama", "url": url, "publish": true},
            {"name": "b", "type": "ollama", "publish": "yes"}, {"publish": true}, 5,
        ]}});
        let mut entries = published(&config);
        assert_eq!(entries.len(), 1, "only what is opted in and readable");
        entries.remove(0)
    }

    #[tokio::test]
    async fn any_answer_is_one_and_none_is_a_failure() {
        let stub = Stub::serve(axum::Router::new()).await;
        assert_eq!(examine(&one(&stub.url), &|_| None).await.result, Level::Ok);
        let silent = examine(&one("http://u:s3cret@127.0.0.1:1/v1"), &|_| None).await;
        assert_eq!(silent.result, Level::Failure);
        assert!(
            silent.message.starts_with("http://127.0.0.1:1 does not answer (Connection refused"),
            "{silent:?}"
        );
        assert_eq!(examine(&one("ftp://h"), &|_| None).await.result, Level::Failure);
    }

    #[test]
    fn an_entry_without_a_url_is_looked_for_at_its_kinds_usual_port_and_a_cloud_nowhere() {
        let ports =
            ["ollama", "llamacpp", "vllm", "lmstudio"].map(|kind| usual_url(kind).unwrap_or_default());
        assert_eq!(ports, [11434, 8080, 8000, 1234].map(|port| format!("http://127.0.0.1:{port}")));
        assert_eq!(usual_url("openai"), None);
    }

    #[tokio::test]
    async fn a_key_that_is_not_set_is_a_warning() {
        let entry = Entry { api_key_env: Some("SOME_KEY".into()), ..one("http://127.0.0.1:1") };
        assert_eq!(examine(&entry, &|_| None).await.result, Level::Warning);
    }
}
