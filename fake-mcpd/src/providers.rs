//! The providers' side: register, channel, heartbeat, results.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::builder::PingStyle;
use crate::hub::{Core, Event, Hub};
use crate::journal::{Entry, Kind};
use crate::server::{Cut, Reply, ReplyBody, Seen, error_reply, json_reply, refuse, sse_reply};
use crate::state::{Applied, OpenedChannel, RegisterRefusal};
use crate::verdict::Rule;
use crate::wire::{self, Part, RegisterBody, RegisterReply, ResultBody};

/// A register call under way, for the verdict.
pub(crate) struct Registering<'a> {
    hub: &'a Hub,
    who: String,
}

impl<'a> Registering<'a> {
    pub(crate) fn new(hub: &'a Hub, seen: &Seen) -> Self {
        let who = registrar(seen);
        hub.look(|core| core.verdict.register_began(core.now, &who));
        Self { hub, who }
    }
}

impl Drop for Registering<'_> {
    fn drop(&mut self) {
        self.hub.look(|core| core.verdict.register_ended(&self.who));
    }
}

/// Who registers: the session or, on its first time, the names in the set.
fn registrar(seen: &Seen) -> String {
    seen.entry.session.clone().unwrap_or_else(|| {
        let body: Option<RegisterBody> = serde_json::from_slice(&seen.body).ok();
        let providers = body.map(|body| body.providers).unwrap_or_default();
        providers.iter().map(|provider| provider.name.as_str()).collect::<Vec<_>>().join(",")
    })
}

/// A result part whose reply is held back, for the verdict.
pub(crate) struct Held<'a> {
    hub: &'a Hub,
    task: &'a str,
    part: Option<Part>,
}

impl<'a> Held<'a> {
    pub(crate) fn new(hub: &'a Hub, task: &'a str, part: Option<Part>) -> Self {
        hub.look(|core| core.verdict.hold(task, part));
        Self { hub, task, part }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.hub.look(|core| core.verdict.release(self.task, self.part));
    }
}

/// Replaces the session's whole set.
pub(crate) fn register(hub: &Hub, seen: &Seen) -> Reply {
    let body: RegisterBody = match serde_json::from_slice(&seen.body) {
        Ok(body) => body,
        Err(error) => return refuse(hub, seen, 400, &format!("the body is no register call: {error}")),
    };
    let sticky = body.provider_session_id.as_deref().filter(|id| !id.is_empty());
    let registered = hub.act(|core| {
        let id = core.state.register(core.now, sticky, body.providers)?;
        core.verdict.registered(core.now, &id);
        core.verdict.registered(core.now, &registrar(seen));
        core.log(|| seen.answered(200).session(&id));
        let shown = !core.armed.hides_session_id();
        let llms = hub.llms(core, Some(&id));
        let features = if hub.settings.idempotent { vec![wire::IDEMPOTENT_RESULTS] } else { Vec::new() };
        Ok(RegisterReply { provider_session_id: shown.then_some(id), llms, features })
    });
    hub.deadline_set();
    match registered {
        Ok(reply) => json_reply(200, wire::json(&reply)),
        Err(RegisterRefusal::BadName(name)) => {
            refuse(hub, seen, 400, &format!("the name {name:?} is empty or there twice"))
        }
        Err(RegisterRefusal::Conflicts(names)) => {
            hub.act(|core| core.log(|| seen.answered(409)));
            json_reply(409, wire::json(&serde_json::json!({"conflicts": names})))
        }
    }
}

/// Revives the session's last registered set.
pub(crate) fn heartbeat(hub: &Hub, seen: &Seen) -> Reply {
    let id = seen.entry.session.as_deref().unwrap_or_default();
    let status = hub.act(|core| {
        let status = if core.state.heartbeat(core.now, id) { 200 } else { 404 };
        core.log(|| seen.answered(status));
        status
    });
    hub.deadline_set();
    empty_or_unknown(status)
}

fn empty_or_unknown(status: u16) -> Reply {
    match status {
        200 => json_reply(200, Bytes::from_static(b"{}")),
        status => error_reply(status, "the provider session is unknown: register first"),
    }
}

/// Opens the session's channel in place of any former one.
pub(crate) fn stream(hub: &Arc<Hub>, seen: &Seen) -> Reply {
    let id = seen.entry.session.as_deref().unwrap_or_default();
    let opened = hub.act(|core| {
        core.check_heartbeats(id);
        if core.state.take_channel(id).is_some() {
            core.log(|| Entry::new(Kind::ChannelClosed).session(id).note("replaced"));
        }
        let opened = core.state.open_channel(core.now, id);
        core.log(|| seen.answered(if opened.is_some() { 200 } else { 404 }));
        if opened.is_some() {
            greet(core, id);
        }
        opened
    });
    match opened {
        None => empty_or_unknown(404),
        Some(opened) => {
            let body = ChannelBody::new(Arc::clone(hub), id.to_owned(), opened);
            sse_reply(ReplyBody::Channel(Box::pin(body)))
        }
    }
}

fn greet(core: &mut Core, id: &str) {
    let data = wire::json(&serde_json::json!({"providerSessionId": id}));
    core.send(id, Event::Hello, Entry::new(Kind::Hello).body(data));
    if core.armed.closes_channel() {
        core.state.take_channel(id);
        core.log(|| Entry::new(Kind::ChannelClosed).session(id).note("closed on order"));
    }
}

/// Takes a part of a task's result; waits while the caller is behind.
pub(crate) async fn result(
    hub: &Hub,
    seen: &Seen,
    id: &str,
    part: Option<Part>,
    body: Result<ResultBody, String>,
) -> Reply {
    let body = match body {
        Ok(body) => body,
        Err(reason) => return refuse(hub, seen, 400, &format!("the body is no result: {reason}")),
    };
    loop {
        let full = match hub.act(|core| apply(core, seen, id, part, &body, hub.settings.idempotent)) {
            Outcome::Answered(reply) => return reply,
            Outcome::Full(full) => full,
        };
        let _held = Held::new(hub, id, part);
        // Room, or a caller that left: either way the next try tells.
        let _ = full.reserve().await;
    }
}

enum Outcome {
    Answered(Reply),
    Full(mpsc::Sender<Bytes>),
}

fn apply(
    core: &mut Core,
    seen: &Seen,
    id: &str,
    part: Option<Part>,
    body: &ResultBody,
    idempotent: bool,
) -> Outcome {
    let streaming = core.state.tasks.get(id).is_some_and(|task| task.streaming);
    let session = core.state.tasks.get(id).map(|task| task.session.clone());
    let applied = core.state.apply(id, part, body, idempotent);
    let note = match &applied {
        Applied::Full(full) => return Outcome::Full(full.clone()),
        Applied::Accepted => {
            core.verdict.accepted(core.now, id, part, body);
            if streaming && matches!(body, ResultBody::Status { status: ..400, .. }) {
                core.verdict.breach(
                    core.now,
                    Rule::StatusInStream,
                    id,
                    "a stream was answered with a whole reply",
                );
            }
            None
        }
        Applied::Repeated => Some("repeated"),
        Applied::Gone => {
            core.verdict.told_gone(id, part);
            Some("nobody waits")
        }
        Applied::NotStreaming => {
            let detail = "a part of a stream came for a task that asked for none";
            core.verdict.breach(core.now, Rule::ChunkOnPlainTask, id, detail);
            Some("no stream was asked for")
        }
    };
    let reply = match applied {
        Applied::Gone => error_reply(404, "nobody waits for this task"),
        Applied::NotStreaming => {
            error_reply(400, "the task asked for no stream: send {\"status\", \"body\"}")
        }
        _ => json_reply(200, Bytes::from_static(b"{}")),
    };
    let status = reply.status().as_u16();
    core.log(|| {
        let mut entry = seen.answered(status);
        entry.session = session;
        entry.note = note.map(str::to_owned).or(entry.note);
        entry
    });
    if matches!(status, 200) && note.is_none() && body.is_end() {
        core.log_end(id);
    }
    Outcome::Answered(reply)
}

/// The body of a control channel: its frames, and keep-alives in between.
#[derive(Debug)]
pub(crate) struct ChannelBody {
    hub: Arc<Hub>,
    session: String,
    opened: OpenedChannel,
    ping: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl ChannelBody {
    fn new(hub: Arc<Hub>, session: String, opened: OpenedChannel) -> Self {
        let ping =
            hub.settings.ping_interval.map(|interval| (interval, Box::pin(tokio::time::sleep(interval))));
        Self { hub, session, opened, ping }
    }

    pub(crate) fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Cut>>> {
        match self.opened.frames.poll_recv(context) {
            Poll::Ready(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
            Poll::Ready(None) if self.opened.control.broken.load(Ordering::Relaxed) => {
                return Poll::Ready(Some(Err(Cut)));
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        self.poll_ping(context).map(|frame| Some(Ok(frame)))
    }

    fn poll_ping(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let Some((interval, sleep)) = &mut self.ping else { return Poll::Pending };
        loop {
            std::task::ready!(sleep.as_mut().poll(context));
            sleep.as_mut().reset(Instant::now() + *interval);
            if !self.opened.control.silent.load(Ordering::Relaxed) {
                break;
            }
        }
        self.hub.act(|core| core.log(|| Entry::new(Kind::Ping).session(&self.session)));
        Poll::Ready(Bytes::from_static(match self.hub.settings.ping_style {
            PingStyle::Event => wire::PING_EVENT,
            PingStyle::Comment => wire::PING_COMMENT,
        }))
    }
}

impl Drop for ChannelBody {
    fn drop(&mut self) {
        let (session, epoch) = (&self.session, self.opened.epoch);
        self.hub.act(|core| {
            if core.state.channel_epoch(session) == Some(epoch) {
                core.check_heartbeats(session);
                core.state.take_channel(session);
                core.log(|| Entry::new(Kind::ChannelClosed).session(session).note("closed by the agent"));
            }
        });
    }
}
