//! An encrypted link as mcpd saw it: its journal in the form of what the relay sees of a plain one. The two are the same where nothing
//! stands between the agent and mcpd.

use std::collections::BTreeMap;

use fake_mcpd::{CallKind, Entry, Kind};

use super::story::Passed;
use crate::support::wire::{Request, What};

/// What passed, with a connection for each call.
pub fn passed(journal: &[Entry]) -> Vec<Passed> {
    let mut channels = BTreeMap::new();
    let mut all = Vec::new();
    for entry in journal {
        match entry.kind {
            Kind::Call(kind) => call(kind, entry, &mut channels, &mut all),
            Kind::Hello => event("hello", entry, &channels, &mut all),
            Kind::Task => event("task", entry, &channels, &mut all),
            Kind::Cancel => event("cancel", entry, &channels, &mut all),
            Kind::ChannelClosed => closed(entry, &mut channels, &mut all),
            _ => {}
        }
    }
    all
}

type Channels = BTreeMap<String, u64>;

fn call(kind: CallKind, entry: &Entry, channels: &mut Channels, all: &mut Vec<Passed>) {
    let call = match kind {
        CallKind::Register => "_provider-register",
        CallKind::Stream => "_provider-stream",
        CallKind::Heartbeat => "_provider-heartbeat",
        CallKind::Result => "result",
        _ => return,
    };
    let mut pass = |what| all.push(Passed { at: entry.at_ms, connection: entry.seq, what });
    pass(What::Request(Request { call: call.to_owned(), key: entry.key.clone(), body: entry.text() }));
    match entry.status {
        Some(status) => pass(What::Reply { status, retry_after: None }),
        None => pass(What::McpdClosed),
    }
    if kind == CallKind::Stream && entry.status == Some(200) {
        channels.insert(entry.session.clone().unwrap_or_default(), entry.seq);
    }
}

fn event(name: &str, entry: &Entry, channels: &Channels, all: &mut Vec<Passed>) {
    let session = entry.session.as_deref().unwrap_or_default();
    let Some(&connection) = channels.get(session).filter(|_| entry.note.is_none()) else { return };
    let (name, task) = (name.to_owned(), entry.task.clone().unwrap_or_default());
    all.push(Passed { at: entry.at_ms, connection, what: What::Event { name, task } });
}

fn closed(entry: &Entry, channels: &mut Channels, all: &mut Vec<Passed>) {
    let Some(connection) = entry.session.as_ref().and_then(|session| channels.remove(session)) else {
        return;
    };
    let by_agent = matches!(entry.note.as_deref(), Some("closed by the agent" | "replaced"));
    let what = if by_agent { What::AgentClosed } else { What::McpdClosed };
    all.push(Passed { at: entry.at_ms, connection, what });
}
