//! `--detect` finds servers by what they say, not only by where they listen.

use mcprelay::provide::detect::{self, Ports};

use crate::server::{Server, json};

async fn server(models: &str) -> (Server, u16) {
    let server = Server::start(|_| async { json(200, "{}") }).await;
    server.page("/v1/models", 200, models);
    let port = server.url.rsplit(':').next().unwrap().parse().unwrap();
    (server, port)
}

#[tokio::test]
async fn the_usual_servers_are_found_and_other_things_on_their_ports_are_not() {
    let (_a, ollama) =
        server(r#"{"data":[{"id":"llama3.2:3b","owned_by":"library"},{"id":"nomic-embed-text"}]}"#).await;
    let (_b, llamacpp) = server(r#"{"data":[{"id":"m","owned_by":"vllm"}]}"#).await;
    let (_c, vllm) = server("<html>a web server</html>").await;
    let (_d, lmstudio) = server(r#"{"hello":"a program of another kind"}"#).await;
    let found = detect::detect(Ports { ollama, llamacpp, vllm, lmstudio }).await.unwrap();
    let told: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            format!("ollama on http://127.0.0.1:{ollama}, with 1 model"),
            format!("vllm on http://127.0.0.1:{llamacpp}, with 1 model"),
        ]
    );
    assert!(detect::entries(&found).contains(r#""name": "ollama-llama3.2-3b""#));
}

#[tokio::test]
async fn ports_on_which_nobody_listens_are_not_found() {
    let (silent, port) = server("").await;
    drop(silent);
    let found = detect::detect(Ports { ollama: port, llamacpp: port, vllm: port, lmstudio: port }).await;
    assert!(found.unwrap().is_empty());
}
