//! Connections and the way of a request: read, checked, hit by faults, answered.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::callers::CallStream;
use crate::faults::Answer;
use crate::hub::Hub;
use crate::journal::{Entry, Kind};
use crate::providers::ChannelBody;
use crate::verdict::Attempt;
use crate::wire::{self, CallKind, Part, ResultBody, Route};
use crate::{admin, callers, openai, providers};

/// A body over its limit is still read to its end, up to here, so that its sender gets to see the 413.
const DRAIN_LIMIT: usize = 256 * 1024 * 1024;

/// The connection is cut without a reply.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut on order")]
pub(crate) struct Cut;

/// The body of a reply.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    Full(Option<Bytes>),
    Stream(Box<CallStream>),
    Channel(Pin<Box<ChannelBody>>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => {
                stream.poll_frame(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Channel(body) => {
                body.as_mut().poll_frame(context).map(|bytes| bytes.map(|bytes| bytes.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}

pub(crate) type Reply = Response<ReplyBody>;

/// A JSON reply.
pub(crate) fn json_reply(status: u16, body: Bytes) -> Reply {
    let mut reply = Response::new(ReplyBody::Full(Some(body)));
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// An error towards providers: one sentence.
pub(crate) fn error_reply(status: u16, message: &str) -> Reply {
    json_reply(status, wire::json(&serde_json::json!({"error": message})))
}

/// An SSE reply.
pub(crate) fn sse_reply(body: ReplyBody) -> Reply {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    reply.headers_mut().insert("cache-control", HeaderValue::from_static("no-cache"));
    reply
}

/// Sets a header, unless its text cannot be one.
pub(crate) fn set_header(reply: &mut Reply, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
}

/// Accepts connections for ever; dropping the future ends them all.
pub(crate) async fn serve(hub: Arc<Hub>, listener: TcpListener) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if hub.refuses_connections() => drop(stream.set_zero_linger()),
                Ok((stream, _)) => drop(connections.spawn(connection(Arc::clone(&hub), stream))),
                // Out of descriptors, most likely: give the others time to close theirs.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

/// A pause after a failed accept, so that a lasting failure does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves one connection until it ends, idles too long, or is cut on order.
async fn connection(hub: Arc<Hub>, stream: TcpStream) {
    // Small frames must leave at once; a socket that cannot is served all the same.
    let _ = stream.set_nodelay(true);
    let mut cuts = hub.cuts();
    let keep_alive = hub.settings.keep_alive;
    let requested = Arc::new(Notify::new());
    let service = service_fn(|request| {
        requested.notify_one();
        handle(Arc::clone(&hub), request)
    });
    let mut server = http1::Builder::new();
    let connection = server.header_read_timeout(None).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        _ = cuts.changed() => return,
        _ = &mut connection => return,
        // What is under way is finished, nothing more is taken.
        () = idle(keep_alive, &requested) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        biased;
        _ = cuts.changed() => {}
        _ = &mut connection => {}
    }
}

/// Ends once no request came for the keep-alive timeout.
async fn idle(timeout: Option<Duration>, requested: &Notify) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    while tokio::time::timeout(timeout, requested.notified()).await.is_ok() {}
}

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
async fn handle(hub: Arc<Hub>, request: Request<Incoming>) -> Result<Reply, Cut> {
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
    let result = matches!(route, Route::Result(_)).then(|| ResultBody::parse(&seen.body));
    let task = seen.entry.task.as_deref().unwrap_or_default();
    let part = seen.entry.key.as_deref().and_then(|key| Part::parse(key, task));
    let orders = hub.look(|core| {
        if let Some(body) = &result {
            core.verdict.attempt(core.now, &Attempt { task, part, bytes: &seen.body, body });
        }
        if seen.call == CallKind::Heartbeat {
            core.heartbeat_arrived(seen.entry.session.as_deref().unwrap_or_default());
        }
        core.armed.orders(core.now, seen.call)
    });
    if orders.cut {
        hub.act(|core| {
            core.verdict.forgive_silence(core.now);
            core.log(|| seen.entry.clone().note("cut unapplied"));
        });
        return Err(Cut);
    }
    let _registering = (seen.call == CallKind::Register).then(|| providers::Registering::new(hub, &seen));
    if let Some(delay) = orders.delay {
        let _held = result.is_some().then(|| providers::Held::new(hub, task, part));
        tokio::time::sleep(delay).await;
    }
    if let Some(answer) = orders.answer {
        if result.is_some() && matches!(answer.status, 404 | 410) {
            hub.look(|core| core.verdict.told_gone(task, part));
        }
        return Ok(ordered(hub, &seen, &answer));
    }
    seen.reply_lost = orders.lose_reply;
    let reply = match (route, result) {
        (Route::Result(task), Some(result)) => providers::result(hub, &seen, &task, part, result).await,
        (Route::Register, _) => providers::register(hub, &seen),
        (Route::Stream, _) => providers::stream(hub, &seen),
        (Route::Heartbeat, _) => providers::heartbeat(hub, &seen),
        (Route::List, _) => callers::list(hub, &seen),
        (Route::Infer(name), _) => callers::infer(hub, &seen, &name).await,
        (Route::Models(name), _) => openai::models(hub, &seen, name.as_deref()),
        (Route::Chat, _) => openai::chat(hub, &seen).await,
        (Route::Result(_) | Route::Fake(_) | Route::Unknown, _) => error_reply(404, "there is no such path"),
    };
    if seen.reply_lost { Err(Cut) } else { Ok(reply) }
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

/// The answer that a fault ordered.
fn ordered(hub: &Hub, seen: &Seen, answer: &Answer) -> Reply {
    hub.act(|core| core.log(|| seen.answered(answer.status).note("answered on order")));
    let message = format!("fake-mcpd was told to answer {}", answer.status);
    let mut reply = match (&answer.body, answer.html) {
        (Some(body), _) => json_reply(answer.status, body.clone().into()),
        (None, true) => json_reply(answer.status, HTML_PAGE.into()),
        (None, false) => error_reply(answer.status, &message),
    };
    if answer.html {
        set_header(&mut reply, CONTENT_TYPE, "text/html");
    }
    if let Some(seconds) = answer.retry_after {
        set_header(&mut reply, RETRY_AFTER, &seconds.to_string());
    }
    reply
}

/// What a proxy or a captive portal says.
const HTML_PAGE: &str = "<!doctype html><html><body><h1>Welcome</h1></body></html>";
