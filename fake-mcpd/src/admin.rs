//! `/_fake/`: the journal, the verdict and the faults of a running fake-mcpd. No token is asked for.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{Method, Uri};
use serde_json::{Value, json};

use crate::faults::Fault;
use crate::hub::Hub;
use crate::reply::{Reply, error_reply, json_reply};
use crate::spec::{BadFault, Step};
use crate::verdict::Rule;
use crate::view::Snapshot;
use crate::wire::{self, Route};

/// Answers what is no call of the contract.
pub(crate) fn reply(hub: &Arc<Hub>, method: &Method, route: &Route, uri: &Uri, body: Bytes) -> Reply {
    let Route::Fake(path) = route else { return unknown(hub, method, uri.path()) };
    match (method.as_str(), path.as_str()) {
        ("GET", "journal") => journal(hub, uri.query().unwrap_or_default()),
        ("GET", "state") => json_reply(200, wire::json(&hub.look(|core| Snapshot::new(hub, core)))),
        ("GET", "verdict") => json_reply(200, wire::json(&hub.verdict())),
        ("POST", "faults") => faults(hub, &body),
        ("DELETE", "faults") => {
            hub.fault(Fault::Clear);
            json_reply(200, Bytes::from_static(b"{}"))
        }
        _ => {
            error_reply(404, "under /_fake/ there are GET journal, state and verdict, POST and DELETE faults")
        }
    }
}

/// Answers a path that there is not, in the shape that its caller's library reads.
fn unknown(hub: &Hub, method: &Method, path: &str) -> Reply {
    if path.starts_with(wire::PROVIDER_PREFIX) {
        let what = format!("{method} {path} is no call of the contract");
        hub.look(|core| core.verdict.breach(core.now, Rule::UnknownPath, path, &what));
        return error_reply(404, &what);
    }
    let supported = "supported are GET /v1/models, GET /v1/models/{name} and POST /v1/chat/completions";
    let message = format!("there is no {method} {path}: {supported}");
    json_reply(404, wire::openai_error(&message, "invalid_request_error", "unknown_url"))
}

fn journal(hub: &Hub, query: &str) -> Reply {
    let since = query.split('&').find_map(|pair| pair.strip_prefix("since="));
    let Ok(since) = since.unwrap_or("0").parse() else {
        return error_reply(400, "since= takes a sequence number");
    };
    let (entries, dropped) = hub.look(|core| (core.journal.since(since), core.journal.dropped()));
    json_reply(200, wire::json(&json!({"dropped": dropped, "entries": entries})))
}

/// Takes one fault or a list of them: JSON objects, JSON texts, or the plain text of the command line.
fn faults(hub: &Arc<Hub>, body: &[u8]) -> Reply {
    let steps = match serde_json::from_slice(body) {
        Ok(Value::Array(faults)) => faults.into_iter().map(Step::from_json).collect(),
        Ok(fault) => Step::from_json(fault).map(|step| vec![step]),
        Err(_) => Step::parse(String::from_utf8_lossy(body).trim()).map(|step| vec![step]),
    };
    match steps {
        Ok(steps) => {
            hub.schedule(steps);
            json_reply(200, Bytes::from_static(b"{}"))
        }
        Err(error) => bad_fault(&error),
    }
}

fn bad_fault(error: &BadFault) -> Reply {
    error_reply(400, &error.to_string())
}
