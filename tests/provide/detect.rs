//! `--detect` finds servers by what they say, not only by where they listen.

use mcprelay::provide::detect::{self, Place};

use crate::server::{Server, json};

/// A server whose list of models is `models` with this status, at the place of `kind`.
async fn server(kind: &'static str, status: u16, models: &str) -> (Server, Place) {
    let server = Server::start(|_| async { json(200, "{}") }).await;
    server.page("/v1/models", status, models);
    let url = server.url.clone();
    (server, Place { kind, url })
}

async fn told(places: &[&Place]) -> Vec<String> {
    let places: Vec<Place> = places.iter().copied().cloned().collect();
    detect::detect(&places).await.unwrap().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn the_usual_servers_are_found_and_other_things_on_their_ports_are_not() {
    let list = r#"{"data":[{"id":"llama3.2:3b","owned_by":"library"},{"id":"nomic-embed-text"}]}"#;
    let (_a, ollama) = server("ollama", 200, list).await;
    let (_b, llamacpp) = server("llamacpp", 200, r#"{"data":[{"id":"m","owned_by":"vllm"}]}"#).await;
    let (_c, vllm) = server("vllm", 200, "<html>a web server</html>").await;
    let (_d, lmstudio) = server("lmstudio", 200, r#"{"hello":"a program of another kind"}"#).await;
    let expected = [
        format!("ollama on {}, with 1 model", ollama.url),
        format!("vllm on {}, with 1 model", llamacpp.url),
    ];
    let places = [ollama, llamacpp, vllm, lmstudio];
    let found = detect::detect(&places).await.unwrap();
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    assert!(detect::entries(&found).contains(r#""name": "ollama-llama3.2-3b""#));
}

#[tokio::test]
async fn a_server_without_models_or_with_a_null_in_one_row_is_found() {
    let (_a, fresh) = server("ollama", 200, r#"{"object":"list","data":null}"#).await;
    let rows = r#"{"data":[{"id":"a","owned_by":null,"context_length":8192.0},{"id":"b"}]}"#;
    let (_b, odd) = server("vllm", 200, rows).await;
    assert_eq!(told(&[&fresh]).await, [format!("ollama on {}, without a chat model yet", fresh.url)]);
    assert_eq!(told(&[&odd]).await, [format!("vllm on {}, with 2 models", odd.url)]);
}

#[tokio::test]
async fn a_server_that_wants_a_key_is_found_and_says_so() {
    let (_a, closed) = server("lmstudio", 401, "{}").await;
    let [told] = <[String; 1]>::try_from(told(&[&closed]).await).expect("one server");
    assert!(told.contains("wants a key") && told.contains("apiKeyEnv"), "{told}");
}

#[tokio::test]
async fn servers_of_every_kind_are_told_apart_by_the_owner_of_their_models() {
    for (owner, kind) in [
        ("docker", "dockermodelrunner"),
        ("llama-swap", "llamaswap"),
        ("sglang", "sglang"),
        ("koboldcpp", "koboldcpp"),
        ("library", "ollama"),
    ] {
        let list = format!(r#"{{"data":[{{"id":"m","owned_by":"{owner}"}}]}}"#);
        let (_server, place) = server("llamacpp", 200, &list).await;
        assert_eq!(told(&[&place]).await, [format!("{kind} on {}, with 1 model", place.url)]);
    }
}

#[test]
fn each_usual_address_is_looked_at_once() {
    let places = detect::usual_places();
    let mut urls: Vec<&str> = places.iter().map(|place| place.url.as_str()).collect();
    urls.sort_unstable();
    urls.dedup();
    assert_eq!(urls.len(), places.len());
    for port in [11434, 8080, 8000, 1234, 30000, 12434, 1337, 5001] {
        assert!(urls.iter().any(|url| url.contains(&format!(":{port}"))), "{port}");
    }
}

#[tokio::test]
async fn ports_on_which_nobody_listens_are_not_found() {
    let (silent, place) = server("ollama", 200, "").await;
    drop(silent);
    assert!(told(&[&place]).await.is_empty());
}
