//! The way of a request: it is read, checked, hit by faults, and passed to whoever answers it.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderName};
use hyper::{Request, Version};

use crate::armed::Orders;
use crate::faults::Answer;
use crate::hub::Hub;
use crate::parts::Posted;
use crate::providers::Registering;
use crate::reply::{Cut, Reply, error_reply, ordered_reply, set_header};
use crate::request::{Seen, authorized, read, refuse};
use crate::results::Held;
use crate::wire::{CallKind, Route};
use crate::{admin, callers, openai, providers, results, uploads};

/// Answers one request.
pub(crate) async fn handle(hub: Arc<Hub>, request: Request<Incoming>) -> Result<Reply, Cut> {
    let (head, body) = request.into_parts();
    let route = Route::parse(&head.method, head.uri.path());
    match route {
        Route::ResultStream(task) if hub.settings.result_stream => {
            let route = Route::ResultStream(task.clone());
            let seen = Seen::new(CallKind::ResultStream, &route, head.headers, Bytes::new());
            return uploads::take(&hub, seen, &task, body).await;
        }
        // Nobody said that there is such a path.
        Route::ResultStream(_) => {
            return Ok(admin::reply(&hub, &head.method, &Route::Unknown, &head.uri, Bytes::new()));
        }
        _ => {}
    }
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
    // HTTP/2 has no such headers: its connections are closed by a GOAWAY.
    if let Some(timeout) = hub.settings.keep_alive.filter(|_| head.version <= Version::HTTP_11) {
        set_header(&mut reply, CONNECTION, "keep-alive");
        set_header(
            &mut reply,
            HeaderName::from_static("keep-alive"),
            &format!("timeout={}", timeout.as_secs()),
        );
    }
    Ok(reply)
}

/// Checks the token, lets the faults have their way, and passes the call on.
async fn checked(hub: &Arc<Hub>, route: Route, mut seen: Seen) -> Result<Reply, Cut> {
    if !authorized(hub, &seen) {
        // Heartbeats with a token that no longer counts were sent all the same.
        hub.look(|core| core.verdict.forgive_silence(core.now));
        return Ok(refuse(hub, &seen, 401, "the bearer token is missing or wrong"));
    }
    let posted = match &route {
        Route::Result(task) => Some(Posted::read(task, seen.entry.key.as_deref(), &seen.body)),
        _ => None,
    };
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
pub(crate) fn arrive(hub: &Hub, seen: &Seen, posted: Option<&Posted>) -> Orders {
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
pub(crate) fn answer_as_ordered(hub: &Hub, seen: &Seen, posted: Option<&Posted>, answer: &Answer) -> Reply {
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
        Route::Result(_) | Route::ResultStream(_) | Route::Fake(_) | Route::Unknown => {
            error_reply(404, "there is no such path")
        }
    }
}
