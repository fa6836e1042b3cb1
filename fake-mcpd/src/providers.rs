//! The providers' side: register, heartbeat and the control channel.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::Sleep;

use crate::builder::PingStyle;
use crate::core::{Core, Event};
use crate::hub::Hub;
use crate::journal::{Entry, Kind};
use crate::reply::{Cut, Reply, error_reply, json_reply, sse_reply};
use crate::request::{Seen, refuse};
use crate::state::{OpenedChannel, RegisterRefusal};
use crate::verdict::Rule;
use crate::wire::{self, RegisterBody, RegisterReply};

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

/// Replaces the session's whole set.
pub(crate) fn register(hub: &Hub, seen: &Seen) -> Reply {
    let body: RegisterBody = match serde_json::from_slice(&seen.body) {
        Ok(body) => body,
        Err(error) => return malformed(hub, seen, &format!("the body is no register call: {error}")),
    };
    let sticky = body.provider_session_id.as_deref().filter(|id| !id.is_empty());
    let registered = hub.act(|core| {
        let id = core.state.register(core.now, sticky, body.providers)?;
        core.verdict.registered(core.now, &id);
        core.verdict.registered(core.now, &registrar(seen));
        core.verdict.counts.registers += 1;
        core.log(|| seen.answered(200).session(&id));
        let shown = !core.armed.hides_session_id();
        let llms = hub.llms(core, Some(&id));
        let features = [
            hub.settings.idempotent.then_some(wire::IDEMPOTENT_RESULTS),
            hub.settings.result_stream.then_some(wire::RESULT_STREAM),
        ];
        let features = features.into_iter().flatten().collect();
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

/// Refuses a body that is not what the contract says, which is the agent's fault.
fn malformed(hub: &Hub, seen: &Seen, what: &str) -> Reply {
    let who = seen.entry.session.clone().unwrap_or_default();
    hub.look(|core| core.verdict.breach(core.now, Rule::MalformedBody, &who, what));
    refuse(hub, seen, 400, what)
}

/// Revives the session's last registered set.
pub(crate) fn heartbeat(hub: &Hub, seen: &Seen) -> Reply {
    let body: wire::SessionBody = serde_json::from_slice(&seen.body).unwrap_or_default();
    if body.provider_session_id.is_none() {
        return malformed(hub, seen, "the body is no heartbeat: it names no providerSessionId");
    }
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
    let Some(id) = seen.entry.session.as_deref() else { return without_session(hub, seen) };
    let opened = hub.act(|core| {
        core.check_heartbeats(id);
        if core.state.take_channel(id).is_some() {
            core.log(|| Entry::new(Kind::ChannelClosed).session(id).note("replaced"));
        }
        let opened = core.state.open_channel(core.now, id);
        core.log(|| seen.answered(if opened.is_some() { 200 } else { 404 }));
        if opened.is_some() {
            core.verdict.counts.channels += 1;
            greet(core, id);
        }
        opened
    });
    match opened {
        None => empty_or_unknown(404),
        Some(opened) => {
            let body = ChannelBody::new(Arc::clone(hub), id.to_owned(), opened);
            sse_reply(body)
        }
    }
}

/// Refuses a channel that nobody can be found for.
fn without_session(hub: &Hub, seen: &Seen) -> Reply {
    let what = format!("the header {} is missing: it names the session", wire::SESSION_HEADER);
    hub.look(|core| core.verdict.breach(core.now, Rule::MissingSessionHeader, "", &what));
    refuse(hub, seen, 400, &what)
}

fn greet(core: &mut Core, id: &str) {
    let data = wire::json(&serde_json::json!({"providerSessionId": id}));
    core.send(id, Event::Hello, Entry::new(Kind::Hello).body(data));
    if core.armed.closes_channel() {
        core.state.take_channel(id);
        core.log(|| Entry::new(Kind::ChannelClosed).session(id).note("closed on order"));
    }
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

    fn poll_ping(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let Some((interval, sleep)) = &mut self.ping else { return Poll::Pending };
        loop {
            std::task::ready!(sleep.as_mut().poll(context));
            sleep.as_mut().set(tokio::time::sleep(*interval));
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

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.opened.frames.poll_recv(context) {
            Poll::Ready(Some(frame)) => Poll::Ready(Some(Ok(Frame::data(frame)))),
            Poll::Ready(None) if self.opened.control.broken.load(Ordering::Relaxed) => {
                Poll::Ready(Some(Err(Cut)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => self.poll_ping(context).map(|ping| Some(Ok(Frame::data(ping)))),
        }
    }
}

impl Drop for ChannelBody {
    fn drop(&mut self) {
        let (session, epoch) = (&self.session, self.opened.epoch);
        self.hub.act(|core| {
            if core.state.channel_epoch(session) == Some(epoch) {
                core.check_heartbeats(session);
                core.state.take_channel(session);
                core.verdict.left(session);
                core.log(|| Entry::new(Kind::ChannelClosed).session(session).note("closed by the agent"));
            }
        });
    }
}
