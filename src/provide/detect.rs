//! First-run help: finds the usual servers on this machine and writes the config entries for them. It changes nothing.

use std::{collections::HashSet, fmt, time::Duration};

use futures_util::future::join_all;
use reqwest::{Client, Url};
use serde::Serialize;

use crate::{domain::counted, http::read_at_most};

use super::openai::{
    http::{BaseUrl, Clients},
    readiness::{MAX_ANSWER_BYTES, Models, is_list},
};

/// How long a server on this machine may take to list its models.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Where the usual servers listen on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Ollama.
    pub ollama: u16,
    /// llama.cpp's llama-server.
    pub llamacpp: u16,
    /// vLLM.
    pub vllm: u16,
    /// LM Studio.
    pub lmstudio: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { ollama: 11434, llamacpp: 8080, vllm: 8000, lmstudio: 1234 }
    }
}

/// A server that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its `type` in config.json.
    pub kind: &'static str,
    /// Its `url` in config.json.
    pub url: String,
    /// Its models; embedding models are left out.
    pub models: Vec<String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.models.len() {
            0 => write!(f, "{} on {}, without a chat model yet", self.kind, self.url),
            models => write!(f, "{} on {}, with {}", self.kind, self.url, counted(models, "model")),
        }
    }
}

/// Asks all four at once.
///
/// # Errors
/// If no HTTP client can be made.
pub async fn detect(ports: Ports) -> Result<Vec<Found>, String> {
    let here = Url::parse("http://127.0.0.1").expect("a URL");
    let client = Clients::default().for_url(&here).map_err(|error| error.to_string())?;
    let places = [
        ("ollama", ports.ollama),
        ("llamacpp", ports.llamacpp),
        ("vllm", ports.vllm),
        ("lmstudio", ports.lmstudio),
    ];
    let asked = places.into_iter().map(|(kind, port)| look(&client, kind, port));
    Ok(join_all(asked).await.into_iter().flatten().collect())
}

/// Entries for everything found, as the text of a config.json. Nothing is opted in: that is for the owner to say.
pub fn entries(found: &[Found]) -> String {
    let mut names = HashSet::new();
    let each = found.iter().flat_map(|found| found.models.iter().map(move |model| (found, model)));
    let providers = each.map(|(found, model)| Entry::new(found, model, &mut names)).collect();
    // Texts and flags only: nothing in it can fail to be JSON.
    serde_json::to_string_pretty(&File { llm: Llm { providers } }).unwrap_or_default()
}

async fn look(client: &Client, usual: &'static str, port: u16) -> Option<Found> {
    let url = format!("http://127.0.0.1:{port}");
    let models = BaseUrl::parse(&url).ok()?.join("models");
    let mut response = client.get(models).timeout(TIMEOUT).send().await.ok()?.error_for_status().ok()?;
    let list = read_at_most(&mut response, MAX_ANSWER_BYTES).await.ok()?;
    // Without a list of models, something else listens there.
    let list: Models = serde_json::from_slice(&list).ok().filter(|_| is_list(&list))?;
    let kind = list.data.iter().find_map(|model| owner(&model.owned_by)).unwrap_or(usual);
    let models = list.data.into_iter().map(|model| model.id).filter(|id| can_chat(id)).collect();
    Some(Found { kind, url, models })
}

/// The kind of server that names this owner of its models.
fn owner(owned_by: &str) -> Option<&'static str> {
    match owned_by {
        "library" => Some("ollama"),
        "llamacpp" => Some("llamacpp"),
        "vllm" => Some("vllm"),
        "organization_owner" => Some("lmstudio"),
        _ => None,
    }
}

/// Embedding models have no chat completions; their names are all that tells them apart.
fn can_chat(id: &str) -> bool {
    !id.is_empty() && !id.to_lowercase().contains("embed")
}

#[derive(Serialize)]
struct File<'a> {
    llm: Llm<'a>,
}

#[derive(Serialize)]
struct Llm<'a> {
    providers: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: String,
    r#type: &'static str,
    model: &'a str,
    url: &'a str,
    publish: bool,
}

impl<'a> Entry<'a> {
    fn new(found: &'a Found, model: &'a str, names: &mut HashSet<String>) -> Self {
        let plain = name_of(found.kind, model);
        let numbered = (2..).map(|n| format!("{plain}-{n}"));
        let name = std::iter::once(plain.clone()).chain(numbered).find(|name| names.insert(name.clone()));
        Self { name: name.unwrap_or(plain), r#type: found.kind, model, url: &found.url, publish: false }
    }
}

/// "ollama" and "llama3.2:3b" make "ollama-llama3.2-3b"; a path gives its last part.
fn name_of(kind: &str, model: &str) -> String {
    let last = model.rsplit(['/', '\\']).next().unwrap_or(model).trim_end_matches(".gguf");
    let plain =
        |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c.to_ascii_lowercase() } else { '-' };
    format!("{kind}-{}", last.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provide::config_file;

    #[test]
    fn the_entries_can_be_pasted_and_publish_nothing() {
        let ollama = Found {
            kind: "ollama",
            url: "http://127.0.0.1:11434".to_owned(),
            models: vec!["llama3.2:3b".to_owned(), "hf.co/x/Qwen3".to_owned(), "qwen3".to_owned()],
        };
        let llamacpp = Found {
            kind: "llamacpp",
            url: "http://127.0.0.1:8080".to_owned(),
            models: vec!["/models/Smol LM.gguf".to_owned()],
        };
        let parsed = config_file::parse(entries(&[ollama, llamacpp]).as_bytes()).unwrap();
        let names: Vec<String> = parsed.entries.iter().map(|entry| entry.name.to_string()).collect();
        assert_eq!(names, ["ollama-llama3.2-3b", "ollama-qwen3", "ollama-qwen3-2", "llamacpp-smol-lm"]);
        assert!(parsed.warnings.is_empty() && parsed.entries.iter().all(|entry| !entry.publish));
    }

    #[test]
    fn what_is_found_is_told_in_words() {
        let found =
            Found { kind: "vllm", url: "http://127.0.0.1:8000".to_owned(), models: vec!["m".to_owned()] };
        assert_eq!(found.to_string(), "vllm on http://127.0.0.1:8000, with 1 model");
    }
}
