//! How peers' texts are shown: as clean text, whoever sent them.

use mcprelay::pb;
use serde_json::json;

use super::{ESCAPES, Real};
use crate::support::{
    Client, chat,
    process::{output, text},
    provider,
};

#[tokio::test]
async fn nothing_that_a_peer_says_reaches_the_terminal_or_the_log_as_an_escape() {
    let real = Real::start(&["--log-format", "text"]).await;
    let mut client = Client::connect(&real.socket(), &format!("c{ESCAPES}")[..20]).await;
    let evil = pb::Provider {
        r#type: ESCAPES.to_owned(),
        model: ESCAPES.to_owned(),
        tier: ESCAPES.to_owned(),
        description: ESCAPES.to_owned(),
        state_detail: ESCAPES.to_owned(),
        ..provider("llama", true)
    };
    client.push(&[evil, provider(ESCAPES, true)]).await;
    real.active("llama").await;
    let task = json!({"kind": "infer", "taskId": ESCAPES, "llmName": "llama", "streaming": false, "caller": ESCAPES, "request": chat("hi")});
    real.mcpd.send_task(task.to_string());
    let offer = client.offer().await;
    let under_way = output(real.home.path(), &["status"]).await;
    let error = pb::Error { message: ESCAPES.to_owned(), ..pb::Error::default() };
    client.finish_error(&offer, error).await;
    let unknown = json!({"kind": ESCAPES, "taskId": "t2", "llmName": ESCAPES, "request": {}});
    real.mcpd.send_task(unknown.to_string());
    real.agent.says("task ended").await;
    let mut shown = vec![text(&under_way), real.agent.log().clone()];
    for arguments in
        [&["status"][..], &["get", "llm"], &["get", "llm", "-o", "wide"], &["infer", "nobody", ESCAPES]]
    {
        shown.push(text(&output(real.home.path(), arguments).await));
    }
    for printed in shown {
        assert!(!printed.is_empty());
        let bad: Vec<_> =
            printed.chars().filter(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}').collect();
        assert!(bad.is_empty() && !printed.contains("\nroot: logged in"), "{bad:?} in {printed:?}");
    }
}
