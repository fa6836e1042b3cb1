//! First-run help: finds the usual servers on this machine and writes the config entries for them. It changes nothing.

use std::{collections::HashSet, fmt, time::Duration};

use futures_util::future::join_all;
use reqwest::{Client, StatusCode, Url};
use serde::Serialize;

use super::{
    config_file::last_part,
    openai::{
        http::{BaseUrl, Clients},
        models::Models,
        readiness::MAX_ANSWER_BYTES,
    },
    providers::KINDS,
};
use crate::{domain::counted, http::read_at_most};

/// How long a server on this machine may take to list its models.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A place on this machine to look at: its address, and what usually listens there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The `type` of an entry for a server there, unless its models say otherwise.
    pub kind: &'static str,
    /// The `url` of such an entry.
    pub url: String,
}

/// Where the kinds of servers that run on this machine listen, each address once.
pub fn usual_places() -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for kind in &KINDS {
        let Some(url) = kind.url().filter(|url| url.starts_with("http://127.0.0.1:")) else { continue };
        if places.iter().all(|place| place.url != url) {
            places.push(Place { kind: kind.name, url: url.to_owned() });
        }
    }
    places
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
    /// It lists nothing without a key.
    pub wants_key: bool,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, url, models, wants_key } = self;
        match models.len() {
            _ if *wants_key => write!(
                f,
                "{kind} on {url}, which wants a key: write its entry by hand, with apiKeyEnv naming the environment variable"
            ),
            0 => write!(f, "{kind} on {url}, without a chat model yet"),
            models => write!(f, "{kind} on {url}, with {}", counted(models, "model")),
        }
    }
}

/// Asks at all places at once.
///
/// # Errors
/// If no HTTP client can be made.
pub async fn detect(places: &[Place]) -> Result<Vec<Found>, String> {
    let here = Url::parse("http://127.0.0.1").expect("a URL");
    let client = Clients::default().for_url(&here).map_err(|error| error.to_string())?;
    let asked = places.iter().map(|place| look(&client, place));
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

async fn look(client: &Client, place: &Place) -> Option<Found> {
    let mut response =
        client.get(BaseUrl::parse(&place.url).ok()?.join("models")).timeout(TIMEOUT).send().await.ok()?;
    let found = Found { kind: place.kind, url: place.url.clone(), models: Vec::new(), wants_key: false };
    if response.status() == StatusCode::UNAUTHORIZED {
        return Some(Found { wants_key: true, ..found });
    }
    if !response.status().is_success() {
        return None;
    }
    // Without a list of models, something else listens there.
    let list = Models::read(&read_at_most(&mut response, MAX_ANSWER_BYTES).await.ok()?)?;
    let kind = list.rows.iter().find_map(|model| owner(&model.owned_by)).unwrap_or(place.kind);
    let models = list.rows.into_iter().map(|model| model.id).filter(|id| can_chat(id)).collect();
    Some(Found { kind, models, ..found })
}

/// The kind of server that names this owner of its models.
fn owner(owned_by: &str) -> Option<&'static str> {
    KINDS.iter().find(|kind| kind.owners.contains(&owned_by)).map(|kind| kind.name)
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
    let last = last_part(model).trim_end_matches(".gguf");
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
            wants_key: false,
        };
        let llamacpp = Found {
            kind: "llamacpp",
            url: "http://127.0.0.1:8080".to_owned(),
            models: vec!["/models/Smol LM.gguf".to_owned()],
            wants_key: false,
        };
        let parsed = config_file::parse(entries(&[ollama, llamacpp]).as_bytes()).unwrap();
        let names: Vec<String> = parsed.entries.iter().map(|entry| entry.name.to_string()).collect();
        assert_eq!(names, ["ollama-llama3.2-3b", "ollama-qwen3", "ollama-qwen3-2", "llamacpp-smol-lm"]);
        assert!(parsed.warnings.is_empty() && parsed.entries.iter().all(|entry| !entry.publish));
    }

    #[test]
    fn what_is_found_is_told_in_words() {
        let url = "http://127.0.0.1:8000".to_owned();
        let found = Found { kind: "vllm", url, models: vec!["m".to_owned()], wants_key: false };
        assert_eq!(found.to_string(), "vllm on http://127.0.0.1:8000, with 1 model");
        let closed = Found { wants_key: true, models: Vec::new(), ..found };
        assert!(
            closed.to_string().starts_with("vllm on http://127.0.0.1:8000, which wants a key"),
            "{closed}"
        );
    }
}
