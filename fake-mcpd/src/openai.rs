//! The OpenAI paths, so that any OpenAI SDK is a caller: the API key is the token, the model is the LLM's name.

use std::sync::Arc;

use crate::callers;
use crate::hub::Hub;
use crate::reply::{Reply, json_reply};
use crate::request::{Seen, refuse};
use crate::wire::{self, CallerPeek, LlmView};

/// `POST /v1/chat/completions`.
pub(crate) async fn chat(hub: &Arc<Hub>, seen: &Seen) -> Reply {
    let model = match CallerPeek::parse(&seen.body) {
        Ok((_, peek)) => peek.model.map(|model| model.into_owned()),
        Err(error) => return refuse(hub, seen, 400, &format!("the body is no JSON object: {error}")),
    };
    match model {
        Some(model) => callers::infer(hub, seen, &model).await,
        None => refuse(hub, seen, 400, "the body names no model: set it to the name of a virtual LLM"),
    }
}

/// `GET /v1/models` and `GET /v1/models/{name}`: the active LLMs.
pub(crate) fn models(hub: &Hub, seen: &Seen, name: Option<&str>) -> Reply {
    let llms = hub.look(|core| hub.llms(core, None));
    let active = llms.iter().filter(|llm| llm.status == "active");
    let Some(name) = name else {
        hub.act(|core| core.log(|| seen.answered(200)));
        let data: Vec<_> = active.map(model).collect();
        return json_reply(200, wire::json(&serde_json::json!({"object": "list", "data": data})));
    };
    match active.into_iter().find(|llm| llm.spec.name == name) {
        Some(llm) => {
            hub.act(|core| core.log(|| seen.answered(200)));
            json_reply(200, wire::json(&model(llm)))
        }
        None => refuse(hub, seen, 404, &format!("there is no active LLM named {name:?}")),
    }
}

fn model(llm: &LlmView) -> serde_json::Value {
    serde_json::json!({"id": llm.spec.name, "object": "model", "created": 0, "owned_by": llm.spec.kind})
}
