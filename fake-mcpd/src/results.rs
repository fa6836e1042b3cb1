//! Result parts: they are read, checked by the verdict, applied, and answered.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::core::Core;
use crate::hub::Hub;
use crate::journal::Entry;
use crate::parts::{Posted, ResultBody};
use crate::reply::{Reply, error_reply, json_reply};
use crate::request::{Seen, refuse};
use crate::tasks::Applied;
use crate::verdict::Rule;

/// A result part whose reply is held back, for the verdict.
pub(crate) struct Held<'a> {
    hub: &'a Hub,
    posted: &'a Posted,
}

impl<'a> Held<'a> {
    pub(crate) fn new(hub: &'a Hub, posted: &'a Posted) -> Self {
        hub.look(|core| core.verdict.hold(&posted.task, posted.part));
        Self { hub, posted }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.hub.look(|core| core.verdict.release(&self.posted.task, self.posted.part));
    }
}

/// Takes a part of a task's result; waits while the caller is behind.
pub(crate) async fn take(hub: &Hub, seen: &Seen, posted: &Posted) -> Reply {
    let body = match &posted.body {
        Ok(body) => body,
        Err(reason) => return refuse(hub, seen, 400, &format!("the body is no result: {reason}")),
    };
    loop {
        let applied = hub.act(|core| {
            let applied = core.state.tasks.apply(&posted.task, posted.part, body, hub.settings.idempotent);
            judge(core, posted, body, &applied);
            log(core, posted, body, &applied, |status| seen.answered(status));
            applied
        });
        let Applied::Full(caller) = applied else { return reply(&applied) };
        wait_for_room(hub, posted, &caller).await;
    }
}

/// Waits while the caller is behind.
pub(crate) async fn wait_for_room(hub: &Hub, posted: &Posted, caller: &mpsc::Sender<Bytes>) {
    let _held = Held::new(hub, posted);
    // Room, or a caller that left: either way the next try tells.
    let _ = caller.reserve().await;
}

/// Tells the verdict what became of the part.
pub(crate) fn judge(core: &mut Core, posted: &Posted, body: &ResultBody, applied: &Applied) {
    let (now, id) = (core.now, &posted.task);
    match applied {
        Applied::Accepted => {
            core.verdict.accepted(now, id, posted.part, body);
            if core.state.tasks.is_streaming(id) && matches!(body, ResultBody::Status { status: ..400, .. }) {
                core.verdict.breach(now, Rule::StatusInStream, id, "a whole reply came for a stream");
            }
        }
        Applied::Gone => core.verdict.told_gone(id, posted.part),
        Applied::NotStreaming => {
            let detail = "a part of a stream came for a task that asked for none";
            core.verdict.breach(now, Rule::ChunkOnPlainTask, id, detail);
        }
        Applied::Repeated | Applied::Gap | Applied::Full(_) => {}
    }
}

/// Journals what became of the part, in an entry of its status.
pub(crate) fn log(
    core: &mut Core,
    posted: &Posted,
    body: &ResultBody,
    applied: &Applied,
    answered: impl FnOnce(u16) -> Entry,
) {
    let Some(status) = applied.status() else { return };
    core.journal.push(core.now, || {
        let answered = answered(status);
        let session = core.state.tasks.session(&posted.task).map(str::to_owned);
        let note = applied.note().map(str::to_owned).or(answered.note);
        Entry { session, note, ..answered }
    });
    if matches!(applied, Applied::Accepted) && body.is_end() {
        core.log_end(&posted.task);
    }
}

impl Applied {
    /// The status answered; none while the caller is behind.
    fn status(&self) -> Option<u16> {
        match self {
            Self::Accepted | Self::Repeated => Some(200),
            Self::NotStreaming => Some(400),
            Self::Gone => Some(404),
            Self::Gap => Some(409),
            Self::Full(_) => None,
        }
    }

    fn note(&self) -> Option<&'static str> {
        match self {
            Self::Accepted | Self::Full(_) => None,
            Self::Repeated => Some("repeated"),
            Self::NotStreaming => Some("the task asked for no stream: send {\"status\", \"body\"}"),
            Self::Gone => Some("nobody waits for this task"),
            Self::Gap => Some("a part before it has not come"),
        }
    }
}

fn reply(applied: &Applied) -> Reply {
    match (applied.status(), applied.note()) {
        (Some(status @ 400..), Some(note)) => error_reply(status, note),
        _ => json_reply(200, Bytes::from_static(b"{}")),
    }
}
