//! How a request is handled: it is read, checked, hit by faults, and answered.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, HeaderMap, HeaderName};

use crate::armed::Orders;
use crate::faults::Answer;
use crate::hub::Hub;
use crate::journal::{Entry, Kind};
use crate::providers::Registering;
use crate::reply::{Cut, Reply, error_reply, json_reply, ordered_reply, set_header};
use crate::results::{Held, Posted};
use crate::wire::{self, CallKind, Route};
use crate::{admin, callers, openai, providers, results};

/// A body over its limit is still read to its end, up to here, so that its sender gets to see the 413.
const DRAIN_LIMIT: usize = 256 * 1024 * 1024;

/// A request as far as everybody needs it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) call: CallKind,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// What the journal says of it.
    pub(crate) entry: Entry,
    /// A fault cuts the connection before the reply.
    reply_lost: bool,
}

impl Seen {
    fn new(call: CallKind, route: &Route, headers: HeaderMap, body: Bytes) -> Self {
        let mut entry = Entry::new(Kind::Call(call)).body(body.clone());
        match route {
            Route::Result(task) => entry.task = Some(task.clone()),
            Route::Infer(llm) | Route::Models(Some(llm)) => entry.llm = Some(llm.clone()),
            Route::Register | Route::Heartbeat => {
                let session: wire::SessionBody = serde_json::from_slice(&body).unwrap_or_default();
                entry.session = session.provider_session_id.filter(|id| !id.is_empty());
            }
            _ => {}
        }
        let mut seen = Self { call, headers, body, entry, reply_lost: false };
        seen.entry.key = seen.header(wire::KEY_HEADER).map(str::to_owned);
        if call == CallKind::Stream {
            seen.entry.session = seen.header(wire::SESSION_HEADER).map(str::to_owned);
        }
        seen
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The journal's entry with the status answered.
    pub(crate) fn answered(&self, status: u16) -> Entry {
        let entry = self.entry.clone();
        if self.reply_lost { entry.note("reply lost") } else { entry.status(status) }
    }
}

/// Answers one request.
pub(crate) async fn handle(hub: Arc<Hub>, request: Request<Incoming>) -> Result<Reply, Cut> {
    let (head, body) = request.into_parts();
    let route = Route::parse(&head.method, head.uri.path());
    let limit = if matches!(route, Route::Infer(_) | Route::Chat) {
        hub.settings.event_limit
    } else {
        hub.settings.result_limit
    };
    let body = read(body, limit).await?;
    let mut reply = match (route.call(), body) {
        (None, body) => admin::reply(&hub, &head.method, &route, &head.uri, body.unwrap_or_default()),
        (Some(call), None) => {
            let seen = Seen::new(call, &route, head.headers, Bytes::new());
            refuse(&hub, &seen, 413, &format!("the body is over the limit of {limit} bytes"))
        }
        (Some(call), Some(body)) => {
            let seen = Seen::new(call, &route, head.headers, body);
            checked(&hub, route, seen).await?
        }
    };
    if let Some(timeout) = hub.settings.keep_alive {
        set_header(&mut reply, CONNECTION, "keep-alive");
        set_header(
            &mut reply,
            HeaderName::from_static("keep-alive"),
            &format!("timeout={}", timeout.as_secs()),
        );
    }
    Ok(reply)
}

/// Reads a body to its end; `None` if it is over the limit.
async fn read(mut body: Incoming, limit: usize) -> Result<Option<Bytes>, Cut> {
    let mut size = 0;
    let mut pieces = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Cut)?.into_data() else { continue };
        size += data.len();
        if size > DRAIN_LIMIT {
            return Ok(None);
        }
        if size <= limit {
            pieces.push(data);
        }
    }
    Ok((size <= limit).then(|| if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() }))
}

/// Checks the token, lets the faults have their way, and passes the call on.
async fn checked(hub: &Arc<Hub>, route: Route, mut seen: Seen) -> Result<Reply, Cut> {
    if !authorized(hub, &seen) {
        // Heartbeats with a token that no longer counts were sent all the same.
        hub.look(|core| core.verdict.forgive_silence(core.now));
        return Ok(refuse(hub, &seen, 401, "the bearer token is missing or wrong"));
    }
    let posted = Posted::read(&route, &seen);
    let orders = arrive(hub, &seen, posted.as_ref());
    if orders.cut {
        return Err(Cut);
    }
    let _registering = (seen.call == CallKind::Register).then(|| Registering::new(hub, &seen));
    if let Some(delay) = orders.delay {
        let _held = posted.as_ref().map(|posted| Held::new(hub, posted));
        tokio::time::sleep(delay).await;
    }
    if let Some(answer) = orders.answer {
        return Ok(answer_as_ordered(hub, &seen, posted.as_ref(), &answer));
    }
    seen.reply_lost = orders.lose_reply;
    let reply = dispatch(hub, &seen, route, posted).await;
    if seen.reply_lost { Err(Cut) } else { Ok(reply) }
}

/// Tells the verdict of a call that arrived and asks the faults what to do to it.
fn arrive(hub: &Hub, seen: &Seen, posted: Option<&Posted>) -> Orders {
    hub.act(|core| {
        if let Some(posted) = posted {
            core.verdict.attempt(core.now, posted, &seen.body);
        }
        if seen.call == CallKind::Heartbeat {
            core.heartbeat_arrived(seen.entry.session.as_deref().unwrap_or_default());
        }
        let orders = core.armed.orders(core.now, seen.call);
        if orders.cut {
            core.verdict.forgive_silence(core.now);
            core.log(|| seen.entry.clone().note("cut unapplied"));
        }
        orders
    })
}

/// Answers what a fault ordered; to the agent a 404 or 410 is mcpd's word, ordered or not.
fn answer_as_ordered(hub: &Hub, seen: &Seen, posted: Option<&Posted>, answer: &Answer) -> Reply {
    hub.act(|core| {
        if let Some(posted) = posted.filter(|_| matches!(answer.status, 404 | 410)) {
            core.verdict.told_gone(&posted.task, posted.part);
        }
        core.log(|| seen.answered(answer.status).note("answered on order"));
    });
    ordered_reply(answer)
}

async fn dispatch(hub: &Arc<Hub>, seen: &Seen, route: Route, posted: Option<Posted>) -> Reply {
    if let Some(posted) = posted {
        return results::take(hub, seen, &posted).await;
    }
    match route {
        Route::Register => providers::register(hub, seen),
        Route::Stream => providers::stream(hub, seen),
        Route::Heartbeat => providers::heartbeat(hub, seen),
        Route::List => callers::list(hub, seen),
        Route::Infer(name) => callers::infer(hub, seen, &name).await,
        Route::Models(name) => openai::models(hub, seen, name.as_deref()),
        Route::Chat => openai::chat(hub, seen).await,
        Route::Result(_) | Route::Fake(_) | Route::Unknown => error_reply(404, "there is no such path"),
    }
}

fn authorized(hub: &Hub, seen: &Seen) -> bool {
    let sent = seen.header(AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '));
    let bearer =
        sent.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    hub.look(|core| match (bearer, &core.token) {
        (None | Some(""), _) => false,
        (Some(_), None) => true,
        (Some(sent), Some(token)) => sent == token,
    })
}

/// Answers with an error before anybody looked at the call, and journals it.
pub(crate) fn refuse(hub: &Hub, seen: &Seen, status: u16, message: &str) -> Reply {
    hub.act(|core| core.log(|| seen.answered(status).note(message)));
    match seen.call {
        CallKind::Register | CallKind::Stream | CallKind::Heartbeat | CallKind::Result => {
            error_reply(status, message)
        }
        _ => json_reply(status, wire::openai_error(message, "invalid_request_error", code_of(status))),
    }
}

fn code_of(status: u16) -> &'static str {
    match status {
        401 => "invalid_api_key",
        413 => "request_too_large",
        _ => "invalid_request",
    }
}
