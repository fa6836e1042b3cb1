//! The checks of mcpd: whether it is reachable, accepts the token, has the right time, and whether its channel is delayed on the way.

use std::{
    convert::Infallible,
    io,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use reqwest::{Body, Response, header};
use serde::de::IgnoredAny;
use tokio::time::{Instant, timeout};

use crate::{
    cli::{
        http::{CALL_TIMEOUT, CallError, Mcpd},
        llms::server_time,
        report::{Finding, Report},
    },
    domain::{Printable, Reason, TaskId},
    http::{self, ProxySetting},
    upstream::contract::{
        EVENT_STREAM, LLMS_PATH, NDJSON, REGISTER_PATH, RESULT_STREAM, RegisterReply, RegisterRequest,
        SESSION_HEADER, STREAM_PATH, result_stream_path,
    },
};

/// How far two clocks may be apart: ages and traces are still readable.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// How long a channel's first byte may take.
struct Patience {
    /// Until it is late: mcpd greets at once.
    prompt: Duration,
    /// Until it is given up: an mcpd without a greeting sends its keep-alive by then.
    keep_alive: Duration,
}

/// How long the answer to an upload may take that needs none of it.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(3);

const PATIENCE: Patience = Patience { prompt: Duration::from_secs(3), keep_alive: Duration::from_secs(20) };

/// Checks everything that concerns mcpd.
pub(super) async fn examine(mcpd: &Mcpd, report: &mut Report) -> io::Result<()> {
    report.extend(proxy(mcpd))?;
    let asked = SystemTime::now();
    let response = mcpd.send(mcpd.get(LLMS_PATH).timeout(CALL_TIMEOUT), LLMS_PATH).await;
    let answered = SystemTime::now();
    let clock = response.as_ref().ok().map(|response| clock(response, asked, answered));
    // A login page answers everything with 200: only a list of rows shows that the token was checked.
    let listed = match response {
        Ok(response) => mcpd.json::<Vec<IgnoredAny>>(response).await,
        Err(error) => Err(error),
    };
    report.extend(reached(mcpd, listed.as_ref().err()))?;
    let (Ok(_), Some(clock)) = (listed, clock) else { return Ok(()) };
    report.add(clock)?;
    let (channel, takes_uploads) = channel(mcpd, &PATIENCE).await;
    report.add(channel)?;
    if takes_uploads {
        report.add(uploads(mcpd, UPLOAD_PATIENCE).await)?;
    }
    Ok(())
}

/// Begins an upload for a task that nobody knows, and does not end it: mcpd says so at once, unless something waits for the end before
/// it passes anything on.
async fn uploads(mcpd: &Mcpd, patience: Duration) -> Finding {
    const SUBJECT: &str = "uploads";
    let path = TaskId::new("mcprelay-doctor").ok().and_then(|task| result_stream_path(&task));
    let line = Bytes::from_static(b"{\"n\":1,\"error\":\"mcprelay doctor\"}\n");
    let endless = stream::iter([Ok::<_, Infallible>(line)]).chain(stream::pending());
    let request = mcpd.post(&path.unwrap_or_default()).header(header::CONTENT_TYPE, NDJSON);
    let asked = timeout(patience, request.body(Body::wrap_stream(endless)).send()).await;
    match asked.map(|reply| reply.map(|response| response.status().as_u16())) {
        Ok(Ok(404 | 410)) => Finding::ok(SUBJECT, "they get through line by line"),
        Ok(Ok(status)) => Finding::warning(
            SUBJECT,
            format!("one was answered {status} and not 404, so each part of an answer may cost a round trip"),
            "if a proxy stands before mcpd, let it pass on bodies without a length, of any size and duration",
        ),
        Ok(Err(error)) => failed(SUBJECT, &mcpd.no_answer(&error)),
        Err(_) => Finding::warning(
            SUBJECT,
            "something before mcpd holds them back, so each part of an answer costs a round trip",
            "turn request buffering off for mcpd's path in the proxy there (nginx: proxy_request_buffering off)",
        ),
    }
}

fn reached(mcpd: &Mcpd, error: Option<&CallError>) -> Vec<Finding> {
    let answers = || Finding::ok("mcpd", format!("{} answers", mcpd.url()));
    match error {
        None => vec![answers(), Finding::ok("token", "mcpd accepts it")],
        Some(error @ CallError::Refused { .. }) => {
            vec![answers(), failed("token", error)]
        }
        Some(error) => vec![failed("mcpd", error)],
    }
}

/// Compares mcpd's clock with this machine's at the time when mcpd answered, which is somewhere between the call and the reply.
fn clock(response: &Response, asked: SystemTime, answered: SystemTime) -> Finding {
    let Some(theirs) = server_time(response) else {
        return Finding::skipped("clock", "mcpd does not tell the time");
    };
    let behind = theirs.duration_since(answered).unwrap_or_default();
    let ahead = asked.duration_since(theirs).unwrap_or_default();
    let off = behind.max(ahead);
    match off > CLOCK_TOLERANCE {
        false => Finding::ok("clock", "it agrees with mcpd's"),
        true => Finding::warning(
            "clock",
            format!("it is {}s {} mcpd's", off.as_secs(), if behind > ahead { "behind" } else { "ahead of" }),
            "turn time synchronisation on here, or look at mcpd's clock",
        ),
    }
}

/// Opens a channel of its own and times its first byte; with whether mcpd takes uploads. The session is new and publishes nothing, so
/// nobody notices.
async fn channel(mcpd: &Mcpd, patience: &Patience) -> (Finding, bool) {
    const SUBJECT: &str = "channel";
    let reply = match throw_away_session(mcpd).await {
        Ok(reply) => reply,
        Err(error @ CallError::Status { status: 404, .. }) => {
            let closer = Some("run `mcprelay check-mcpd`, which looks closer".to_owned());
            return (Finding { advice: closer, ..Finding::failed(SUBJECT, &error.to_string()) }, false);
        }
        Err(error) => return (failed(SUBJECT, &error), false),
    };
    let Some(session) = reply.provider_session_id else {
        return (Finding::skipped(SUBJECT, "mcpd gives no session to a set without providers"), false);
    };
    let takes_uploads = reply.features.iter().any(|feature| feature == RESULT_STREAM);
    (greeting(mcpd, &session, patience).await, takes_uploads)
}

async fn greeting(mcpd: &Mcpd, session: &str, patience: &Patience) -> Finding {
    const SUBJECT: &str = "channel";
    let began = Instant::now();
    match timeout(patience.keep_alive, first_byte(mcpd, session)).await {
        Ok(Ok(())) if began.elapsed() <= patience.prompt => {
            Finding::ok(SUBJECT, format!("its first byte came after {} ms", began.elapsed().as_millis()))
        }
        Ok(Ok(())) => Finding::warning(
            SUBJECT,
            format!("its first byte came after {} s only", began.elapsed().as_secs()),
            "if a proxy stands before mcpd, turn response buffering off for its path (nginx: proxy_buffering off)",
        ),
        Ok(Err(error)) => failed(SUBJECT, &error),
        Err(_) => Finding::failure(
            SUBJECT,
            format!("nothing came for {} s: a proxy in between holds it back", patience.keep_alive.as_secs()),
            "turn response buffering off for mcpd's path in that proxy (nginx: proxy_buffering off)",
        ),
    }
}

async fn throw_away_session(mcpd: &Mcpd) -> Result<RegisterReply, CallError> {
    let nothing = RegisterRequest { provider_session_id: None, providers: Vec::new() };
    let request = mcpd.post(REGISTER_PATH).json(&nothing).timeout(CALL_TIMEOUT);
    match mcpd.send(request, REGISTER_PATH).await {
        Ok(response) => mcpd.json(response).await,
        Err(CallError::Status { status: 400 | 422, .. }) => Ok(RegisterReply::default()),
        Err(error) => Err(error),
    }
}

async fn first_byte(mcpd: &Mcpd, session: &str) -> Result<(), CallError> {
    let request = mcpd.get(STREAM_PATH).header(SESSION_HEADER, session).header(header::ACCEPT, EVENT_STREAM);
    let mut response = mcpd.send(request, STREAM_PATH).await?;
    if let Some(encoding) = response.headers().get(header::CONTENT_ENCODING) {
        let what = format!("something on the way encodes the channel ({})", Printable(&lossy(encoding)));
        let advice = "turn compression off for mcpd's path in the proxy there (nginx: gzip off)";
        return Err(CallError::NoAnswer(Reason::new(what, advice)));
    }
    let kind = response.headers().get(header::CONTENT_TYPE).map(lossy).unwrap_or_default();
    if !kind.to_lowercase().starts_with(EVENT_STREAM) {
        return Err(mcpd.not_mcpd(&format!("its channel is not an event stream but {}", Printable(&kind))));
    }
    match response.chunk().await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(mcpd.not_mcpd("it closes the channel at once")),
        Err(error) => Err(mcpd.no_answer(&error)),
    }
}

/// A call that failed, with its advice apart from whatever libraries said.
fn failed(subject: &str, error: &CallError) -> Finding {
    match error {
        CallError::NoAnswer(why) => Finding::failure(subject, &why.what, &why.advice),
        other => Finding::failed(subject, &other.to_string()),
    }
}

/// What leads to mcpd, where that is a proxy, or should be one.
fn proxy(mcpd: &Mcpd) -> Option<Finding> {
    let through = |proxy: String| Finding::ok("proxy", format!("{} is reached through {proxy}", mcpd.url()));
    let nonsense = |variable| {
        let advice = "write it as http://host:port, or unset it";
        Finding::warning("proxy", format!("{variable} is not the URL of a proxy, so none is used"), advice)
    };
    match http::proxy(mcpd.url().as_url()) {
        ProxySetting::None => None,
        ProxySetting::Through(proxy) => Some(through(proxy)),
        ProxySetting::Nonsense(variable) => Some(nonsense(variable)),
    }
}

fn lossy(value: &header::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, body::Body, extract::Request, routing};
    use serde_json::json;

    use super::*;
    use crate::cli::{
        report::{Format, Level},
        stub::Stub,
    };

    const HELLO: Option<&[u8]> = Some(b"event: hello\ndata: {}\n\n");

    /// An mcpd whose channel greets, or says nothing at all.
    fn mcpd_with(greeting: Option<&'static [u8]>) -> Router {
        let channel = async move || {
            let hello = stream::iter(greeting).map(|bytes| Ok::<_, Infallible>(Bytes::from_static(bytes)));
            ([("content-type", EVENT_STREAM)], Body::from_stream(hello.chain(stream::pending())))
        };
        let register = async |Json(body): Json<serde_json::Value>| {
            assert_eq!(
                body,
                json!({"providerSessionId": null, "providers": []}),
                "never the agent's own session"
            );
            Json(json!({"providerSessionId": "throw-away", "llms": []}))
        };
        Router::new()
            .route(REGISTER_PATH, routing::post(register))
            .route(STREAM_PATH, routing::get(channel))
            .route(
                LLMS_PATH,
                routing::get(async || ([("date", "Thu, 01 Jan 1970 00:00:10 GMT")], Json(json!([])))),
            )
    }

    #[tokio::test]
    async fn a_prompt_channel_is_fine_and_a_clock_that_is_off_a_warning() {
        let stub = Stub::serve(mcpd_with(HELLO)).await;
        let mut report = Report::new(Format::Json);
        examine(&stub.mcpd(), &mut report).await.expect("adds");
        let results: Vec<_> =
            report.findings().iter().map(|finding| (&*finding.subject, finding.result)).collect();
        let ok = Level::Ok;
        assert_eq!(results, [("mcpd", ok), ("token", ok), ("clock", Level::Warning), ("channel", ok)]);
    }

    #[tokio::test]
    async fn a_channel_that_is_held_back_is_late_or_a_failure() {
        let late = Stub::serve(mcpd_with(HELLO)).await;
        let hasty = Patience { prompt: Duration::ZERO, ..PATIENCE };
        assert_eq!(channel(&late.mcpd(), &hasty).await.0.result, Level::Warning);
        let silent = Stub::serve(mcpd_with(None)).await;
        let hasty = Patience { keep_alive: Duration::from_millis(50), ..PATIENCE };
        let (finding, _) = channel(&silent.mcpd(), &hasty).await;
        assert!(
            finding.result == Level::Failure
                && finding.advice.is_some_and(|advice| advice.contains("buffering"))
        );
    }

    #[tokio::test]
    async fn a_channel_that_is_encoded_on_its_way_or_is_no_event_stream_is_a_failure() {
        for (name, value, advice) in
            [("content-encoding", "gzip", "gzip off"), ("content-type", "text/plain", "--mcpd-url")]
        {
            let answer = move || async move {
                let mut response = axum::http::Response::new(Body::from("data: x\n\n"));
                response.headers_mut().insert("content-type", EVENT_STREAM.parse().unwrap());
                response.headers_mut().insert(name, value.parse().unwrap());
                response
            };
            let register = async || Json(json!({"providerSessionId": "s", "llms": []}));
            let router = Router::new().route(REGISTER_PATH, routing::post(register));
            let stub = Stub::serve(router.route(STREAM_PATH, routing::get(answer))).await;
            let (finding, _) = channel(&stub.mcpd(), &PATIENCE).await;
            let told = finding.advice.is_some_and(|told| told.contains(advice));
            assert!(finding.result == Level::Failure && told, "{name}");
        }
    }

    #[tokio::test]
    async fn uploads_that_are_held_back_or_refused_are_a_warning_that_names_the_setting() {
        let path = "/api/v1/llms/_provider-task/{task}/result-stream";
        let early = Router::new().route(path, routing::post(async || axum::http::StatusCode::NOT_FOUND));
        let stub = Stub::serve(early).await;
        assert_eq!(uploads(&stub.mcpd(), UPLOAD_PATIENCE).await.result, Level::Ok);
        let held = async |request: Request| {
            let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
        };
        let stub = Stub::serve(Router::new().route(path, routing::post(held))).await;
        let finding = uploads(&stub.mcpd(), Duration::from_millis(50)).await;
        let told = finding.advice.is_some_and(|told| told.contains("proxy_request_buffering off"));
        assert!(finding.result == Level::Warning && told, "{}", finding.message);
        let refused = Router::new().fallback(async || axum::http::StatusCode::LENGTH_REQUIRED);
        let stub = Stub::serve(refused).await;
        assert_eq!(uploads(&stub.mcpd(), UPLOAD_PATIENCE).await.result, Level::Warning);
    }

    #[tokio::test]
    async fn a_page_that_answers_everything_is_no_mcpd_that_accepts_the_token() {
        let page = async || ([("content-type", "text/html")], "<html>Log in</html>");
        let stub = Stub::serve(Router::new().fallback(page)).await;
        let mut report = Report::new(Format::Json);
        examine(&stub.mcpd(), &mut report).await.expect("adds");
        let [finding] = report.findings() else { panic!("{:?}", report.findings()) };
        assert_eq!((&*finding.subject, finding.result), ("mcpd", Level::Failure));
        assert!(finding.message.contains("is not an mcpd"), "{finding:?}");
    }

    #[tokio::test]
    async fn a_refused_token_is_told_apart_from_an_mcpd_that_is_not_there() {
        let refusing = Router::new().fallback(async || axum::http::StatusCode::UNAUTHORIZED);
        let stub = Stub::serve(refusing).await;
        let mut report = Report::new(Format::Json);
        examine(&stub.mcpd(), &mut report).await.expect("adds");
        let results: Vec<_> =
            report.findings().iter().map(|finding| (&*finding.subject, finding.result)).collect();
        assert_eq!(results, [("mcpd", Level::Ok), ("token", Level::Failure)]);
    }
}
