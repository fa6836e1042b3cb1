//! A request as it is read, and what is said of it when nobody takes it.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap};

use crate::hub::Hub;
use crate::journal::{Entry, Kind};
use crate::reply::{Cut, Reply, error_reply, json_reply};
use crate::wire::{self, CallKind, Route};

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
    pub(crate) reply_lost: bool,
}

impl Seen {
    pub(crate) fn new(call: CallKind, route: &Route, headers: HeaderMap, body: Bytes) -> Self {
        let mut entry = Entry::new(Kind::Call(call)).body(body.clone());
        match route {
            Route::Result(task) | Route::ResultStream(task) => entry.task = Some(task.clone()),
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

/// Reads a body to its end; `None` if it is over the limit.
pub(crate) async fn read(mut body: Incoming, limit: usize) -> Result<Option<Bytes>, Cut> {
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

/// Whether it has a bearer token that counts.
pub(crate) fn authorized(hub: &Hub, seen: &Seen) -> bool {
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
        CallKind::Register
        | CallKind::Stream
        | CallKind::Heartbeat
        | CallKind::Result
        | CallKind::ResultStream => error_reply(status, message),
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
