//! Errors in OpenAI's shape: those that the agent builds, and those that providers send.

use bytes::Bytes;
use serde_json::Value;

use crate::{
    domain::{Failure, FailureCode, hide_private, without_private},
    json::text,
};

/// Longest message that is taken from a server's error, in characters. Its body goes to the caller whole.
const MAX_MESSAGE: usize = 2048;
/// Longest text of a body that is not JSON that is taken for its message, in characters: the rest is rarely for people.
const MAX_PLAIN: usize = 500;
/// Deepest nesting of one error in another that is followed.
const MAX_NESTING: u32 = 3;

/// The error body that a caller gets: the provider's own, byte for byte unless it names an address or a path of the owner's machine, if
/// it is a JSON object; else `{"error":{"message","type","code","retry_after"?}}`, `retry_after` in seconds, rounded up.
pub fn error_object(failure: &Failure) -> Bytes {
    if let Ok(body) = without_private(&failure.body) {
        return body;
    }
    let mut out = Vec::with_capacity(128 + text::escaped_len(failure.message.as_bytes()));
    out.extend_from_slice(b"{\"error\":{\"message\":");
    text::quote_into(&mut out, &hide_private(&failure.message));
    out.extend_from_slice(b",\"type\":");
    text::quote_into(&mut out, failure.code.error_type());
    out.extend_from_slice(b",\"code\":");
    text::quote_into(&mut out, failure.code.as_str());
    if let Some(seconds) = retry_after_seconds(failure) {
        out.extend_from_slice(format!(",\"retry_after\":{seconds}").as_bytes());
    }
    out.extend_from_slice(b"}}");
    out.into()
}

/// When to try again, in whole seconds, rounded up, at least 1; `None` if the failure does not say.
pub fn retry_after_seconds(failure: &Failure) -> Option<u64> {
    failure.retry_after.map(|wait| wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1))
}

/// What a server's own error means: the one place that judges, for an HTTP answer, an error in a stream and a raw chunk of a local
/// program. `status` is its HTTP status, if it came with one; otherwise one is looked for in the body.
///
/// The body is kept byte for byte, except that of an error about the owner's credentials: that is not the caller's fault, it may quote the
/// key, and its status would mislead. Its words are in [`Failure::owner_detail`].
pub fn provider_failure(status: Option<u16>, body: &Bytes) -> Failure {
    let said = ErrorSummary::of(body);
    let status = status.or(said.status).filter(|status| (400..600).contains(status));
    let code = said.code(status);
    let message = match (code, status, &*said.message) {
        (FailureCode::ProviderAuth, Some(403), _) => "the provider refuses this request (403)".to_owned(),
        (FailureCode::ProviderAuth, ..) => "the provider refused the credentials of its owner".to_owned(),
        (_, Some(status), "") => format!("the provider reported an error (status {status})"),
        (_, None, "") => "the provider reported an error".to_owned(),
        (.., message) => message.to_owned(),
    };
    let ours = code == FailureCode::ProviderAuth;
    Failure {
        retryable: is_passing(code) && !said.out_of_quota(status),
        http_status: status.filter(|_| !ours),
        owner_detail: said.owner_detail(status).into(),
        body: if ours || !said.is_json { Bytes::new() } else { body.clone() },
        ..Failure::new(code, message)
    }
}

/// Whether a 503 says that the model is still being loaded: the request is then worth waiting for. Only JSON or plain text can say so; a
/// page for people has many words.
pub fn is_loading(status: u16, body: &[u8]) -> bool {
    if body.trim_ascii_start().starts_with(b"<") {
        return false;
    }
    let said = ErrorSummary::of(body);
    let has =
        |text: &str, any: &[&str]| text.split(|c: char| !c.is_alphanumeric()).any(|word| any.contains(&word));
    let failed = has(&said.message.to_lowercase(), &["error", "failed", "cannot", "unable"]);
    status == 503 && has(&said.words, &["loading"]) && has(&said.words, &["model", "models"]) && !failed
}

/// Whether the same request may succeed later.
fn is_passing(code: FailureCode) -> bool {
    matches!(
        code,
        FailureCode::RateLimited
            | FailureCode::Overloaded
            | FailureCode::Unavailable
            | FailureCode::ProviderTimeout
    )
}

/// Words of OpenAI, Azure, Anthropic, Google, vLLM, llama.cpp, LM Studio, Ollama and OpenRouter; the first that occurs in a type or code
/// decides.
const KINDS: [(&str, FailureCode); 26] = [
    ("content_filter", FailureCode::ContentFiltered),
    ("content_policy", FailureCode::ContentFiltered),
    ("moderation", FailureCode::ContentFiltered),
    ("model_not_found", FailureCode::ModelNotFound),
    ("rate_limit", FailureCode::RateLimited),
    ("ratelimit", FailureCode::RateLimited),
    ("resource_exhausted", FailureCode::RateLimited),
    ("insufficient_quota", FailureCode::RateLimited),
    ("overloaded", FailureCode::Overloaded),
    ("invalid_api_key", FailureCode::ProviderAuth),
    ("authentication", FailureCode::ProviderAuth),
    ("unauthenticated", FailureCode::ProviderAuth),
    ("unauthorized", FailureCode::ProviderAuth),
    ("permission", FailureCode::ProviderAuth),
    ("unsupported_country", FailureCode::ProviderAuth),
    ("timeout", FailureCode::ProviderTimeout),
    ("deadline_exceeded", FailureCode::ProviderTimeout),
    ("unavailable", FailureCode::Unavailable),
    ("not_found", FailureCode::ModelNotFound),
    ("notfound", FailureCode::ModelNotFound),
    ("invalid_request", FailureCode::InvalidRequest),
    ("invalid_argument", FailureCode::InvalidRequest),
    ("badrequest", FailureCode::InvalidRequest),
    ("bad_request", FailureCode::InvalidRequest),
    ("unprocessable", FailureCode::InvalidRequest),
    ("validation", FailureCode::InvalidRequest),
];
/// What servers write if the prompt does not fit, in lower case.
const CONTEXT_WORDS: [&str; 7] = [
    "maximum context length",
    "context_length",
    "context_size",
    "available context size",
    "context length",
    "context window",
    "context_window",
];
/// What servers write if a filter stopped the answer, in lower case, in whatever member.
const FILTER_WORDS: [&str; 4] =
    ["content_filter", "content_policy_violation", "content management policy", "flagged for moderation"];

/// What an error body says, in the shapes that servers use.
#[derive(Default)]
struct ErrorSummary {
    /// For people, shortened.
    message: String,
    /// Types and codes, in lower case.
    kinds: String,
    /// All of it in lower case, to be searched.
    words: String,
    /// The status that the body names.
    status: Option<u16>,
    /// Whether it is a JSON object.
    is_json: bool,
}

impl ErrorSummary {
    fn of(body: &[u8]) -> Self {
        let mut said = Self::default();
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => {
                said.is_json = value.is_object();
                said.read(&value, MAX_NESTING);
            }
            Err(_) => said.take_plain(&String::from_utf8_lossy(body)),
        }
        said.words = format!("{} {}", said.message.to_lowercase(), said.kinds);
        said
    }

    /// Plain text is a message; a page is only as good as its title.
    fn take_plain(&mut self, text: &str) {
        let text = text.trim();
        let text = if text.starts_with('<') { title(text).unwrap_or_default() } else { text };
        self.message = cut(text, MAX_PLAIN);
    }

    /// Reads the members of an error, the inner one first: it is the one that was meant.
    fn read(&mut self, value: &Value, depth: u32) {
        let inner = match value {
            // Google answers with a list of one.
            Value::Array(list) => list.first(),
            value => value.get("error"),
        };
        match inner {
            Some(Value::String(text)) => self.say(text),
            Some(inner) if depth > 0 => self.read(inner, depth - 1),
            _ => {}
        }
        for name in ["message", "detail", "details", "error_message", "msg"] {
            self.say(&sentence(&value[name]));
        }
        for name in ["type", "code", "status"] {
            match &value[name] {
                Value::String(word) => self.kind(word),
                Value::Number(status) => {
                    self.status = self.status.or_else(|| status.as_u64()?.try_into().ok())
                }
                _ => {}
            }
        }
        self.status = self.status.or_else(|| value["status_code"].as_u64()?.try_into().ok());
    }

    fn say(&mut self, text: &str) {
        if self.message.is_empty() {
            self.message = cut(text.trim(), MAX_MESSAGE);
        }
    }

    /// Notes a type or code. Some servers write the status there, as text.
    fn kind(&mut self, word: &str) {
        self.status = self.status.or_else(|| word.parse().ok().filter(|status| (400..600).contains(status)));
        self.kinds.push_str(&cut(word, MAX_PLAIN).to_lowercase());
        self.kinds.push(' ');
    }

    fn mentions(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.words.contains(word))
    }

    /// The words decide where there are any that are known, so that the same body means the same with and without a status.
    fn code(&self, status: Option<u16>) -> FailureCode {
        if self.mentions(&CONTEXT_WORDS) && matches!(status, None | Some(400 | 413 | 422 | 500)) {
            return FailureCode::ContextLength;
        }
        if self.mentions(&FILTER_WORDS) && matches!(status, None | Some(400 | 403 | 422)) {
            return FailureCode::ContentFiltered;
        }
        let kind = KINDS.iter().find(|(word, _)| self.kinds.contains(word));
        kind.map_or_else(|| code_of_status(status), |(_, code)| *code)
    }

    /// An exhausted quota looks like a rate limit, but waiting does not help.
    fn out_of_quota(&self, status: Option<u16>) -> bool {
        status == Some(402) || self.mentions(&["insufficient_quota"])
    }

    /// What the owner reads. For 400 and 422 the server's sentence may quote the prompt, so there are only its types and codes.
    fn owner_detail(&self, status: Option<u16>) -> String {
        let says = match (status, self.kinds.trim()) {
            (Some(400 | 422), kinds) => kinds,
            _ => &self.message,
        };
        match (status, says) {
            (Some(status), "") => format!("it answered {status}"),
            (Some(status), says) => format!("it answered {status}: {says}"),
            (None, says) => says.to_owned(),
        }
    }
}

fn code_of_status(status: Option<u16>) -> FailureCode {
    match status {
        Some(401 | 403) => FailureCode::ProviderAuth,
        Some(402 | 429) => FailureCode::RateLimited,
        Some(404) => FailureCode::ModelNotFound,
        Some(408 | 504) => FailureCode::ProviderTimeout,
        Some(413) => FailureCode::TooLarge,
        Some(425 | 503) => FailureCode::Unavailable,
        // 529 is Anthropic's word for overload.
        Some(529) => FailureCode::Overloaded,
        Some(400..=499) => FailureCode::InvalidRequest,
        _ => FailureCode::Internal,
    }
}

/// A message, or the messages of FastAPI's list of what is wrong with a request.
fn sentence(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            list.iter().map(sentence).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
        }
        Value::Object(members) => {
            members.get("msg").or(members.get("message")).map(sentence).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// The title of a page.
fn title(page: &str) -> Option<&str> {
    let from = page.to_ascii_lowercase().find("<title>")? + "<title>".len();
    let rest = &page[from..];
    rest.split('<').next().map(str::trim)
}

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_failure_of_ours_is_an_error_in_openai_s_shape() {
        let failure =
            Failure::retryable(FailureCode::Overloaded, "the \"queue\" is full", Duration::from_millis(1200));
        let expected = format!(
            r#"{{"error":{{"message":"the \"queue\" is full","type":"rate_limit_error","code":"{}","retry_after":2}}}}"#,
            FailureCode::Overloaded.as_str()
        );
        assert_eq!(error_object(&failure), expected);
        let plain = Failure::new(FailureCode::Internal, "it broke");
        assert_eq!(
            error_object(&plain),
            r#"{"error":{"message":"it broke","type":"server_error","code":"internal"}}"#
        );
    }

    #[test]
    fn waits_are_rounded_up_to_whole_seconds() {
        let after = |ms| {
            retry_after_seconds(&Failure::retryable(FailureCode::Overloaded, "", Duration::from_millis(ms)))
        };
        assert_eq!([after(0), after(1), after(1000), after(1001)], [Some(1), Some(1), Some(1), Some(2)]);
        assert_eq!(retry_after_seconds(&Failure::new(FailureCode::Overloaded, "")), None);
    }

    #[test]
    fn a_provider_s_own_body_is_passed_on_unless_it_is_no_object() {
        let with = |body: &'static [u8]| {
            error_object(&Failure { body: body.into(), ..Failure::new(FailureCode::Internal, "m") })
        };
        assert_eq!(with(b" {\"error\" : {\"x\":1}}\n"), b" {\"error\" : {\"x\":1}}\n".as_slice());
        for bad in [b"<html>".as_slice(), b"\"text\"", b"{\"error\":", b"\xff", b""] {
            assert!(with(bad).starts_with(b"{\"error\":{\"message\":\"m\""));
        }
    }

    #[test]
    fn the_same_body_means_the_same_whichever_way_it_came() {
        use FailureCode as Code;
        for (usual, body, code, retryable) in [
            (
                400,
                r#"{"error":{"message":"m","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
                Code::ContextLength,
                false,
            ),
            (
                400,
                r#"{"object":"error","message":"This model's maximum context length is 4096 tokens","type":"BadRequestError","code":400}"#,
                Code::ContextLength,
                false,
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error"}}"#,
                Code::ContextLength,
                false,
            ),
            (
                400,
                r#"{"error":"Trying to keep the first 9 tokens when the context length is 4"}"#,
                Code::ContextLength,
                false,
            ),
            (
                400,
                r#"{"error":{"message":"m","code":"content_filter","status":400}}"#,
                Code::ContentFiltered,
                false,
            ),
            (
                403,
                r#"{"error":{"code":403,"message":"flagged for moderation","metadata":{}}}"#,
                Code::ContentFiltered,
                false,
            ),
            (
                429,
                r#"{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}"#,
                Code::RateLimited,
                false,
            ),
            (429, r#"{"error":{"code":429,"message":"m","metadata":{}}}"#, Code::RateLimited, true),
            (
                429,
                r#"[{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}]"#,
                Code::RateLimited,
                true,
            ),
            (
                404,
                r#"{"error":{"message":"m","type":"not_found_error","param":null,"code":null}}"#,
                Code::ModelNotFound,
                false,
            ),
            (
                404,
                r#"{"object":"error","message":"m","type":"NotFoundError","param":null,"code":404}"#,
                Code::ModelNotFound,
                false,
            ),
            (
                503,
                r#"{"error":{"code":503,"message":"m","type":"unavailable_error"}}"#,
                Code::Unavailable,
                true,
            ),
            (
                400,
                r#"{"object":"error","message":"m","type":"BadRequestError","code":400}"#,
                Code::InvalidRequest,
                false,
            ),
            (
                400,
                r#"{"error":{"message":"m","type":"invalid_request_error","code":"400"}}"#,
                Code::InvalidRequest,
                false,
            ),
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#,
                Code::Overloaded,
                true,
            ),
            (401, r#"{"error":{"message":"m","code":"invalid_api_key"}}"#, Code::ProviderAuth, false),
            (401, r#"{"error":{"message":"m","type":"authentication_error"}}"#, Code::ProviderAuth, false),
            (500, r#"{"error":{"message":"m"}}"#, Code::Internal, false),
        ] {
            for status in [Some(usual), None] {
                let failure = provider_failure(status, &body.into());
                assert_eq!((failure.code, failure.retryable), (code, retryable), "{status:?} {body}");
            }
        }
    }

    #[test]
    fn a_status_says_what_the_words_do_not() {
        use FailureCode as Code;
        for (status, body, code, shown) in [
            (404, r#"{"error":{"message":"model \"x\" not found"}}"#, Code::ModelNotFound, 404),
            (422, r#"{"detail":"bad field"}"#, Code::InvalidRequest, 422),
            (408, "", Code::ProviderTimeout, 408),
            (413, "", Code::TooLarge, 413),
            (502, "", Code::Internal, 502),
            (504, "", Code::ProviderTimeout, 504),
            (529, r#"{"error":"m"}"#, Code::Overloaded, 529),
            (401, "", Code::ProviderAuth, 502),
            (403, r#"{"error":{"message":"not in your region"}}"#, Code::ProviderAuth, 502),
            (200, r#"{"error":{"message":"m","code":200}}"#, Code::Internal, 502),
        ] {
            let failure = provider_failure(Some(status), &body.into());
            assert_eq!((failure.code, failure.status()), (code, shown), "{status} {body}");
        }
    }

    #[test]
    fn a_sentence_is_found_in_every_shape() {
        for (body, message) in [
            (r#"{"error":{"message":"m"}}"#, "m"),
            (r#"{"error":"m"}"#, "m"),
            (r#"{"error":{"error":{"message":"m"}}}"#, "m"),
            (r#"[{"error":{"message":"m"}}]"#, "m"),
            (r#"{"message":"m","code":1}"#, "m"),
            (r#"{"detail":[{"loc":["body","n"],"msg":"a"},{"msg":"b"}]}"#, "a; b"),
            (r#"{"error":{},"detail":"m"}"#, "m"),
            (" m \n", "m"),
            ("<html><head><title> Bad Gateway </title></head><body>x</body></html>", "Bad Gateway"),
            ("<html>x", "the provider reported an error (status 500)"),
            ("", "the provider reported an error (status 500)"),
        ] {
            assert_eq!(provider_failure(Some(500), &body.into()).message, message, "{body}");
        }
        let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "é".repeat(5000));
        assert_eq!(provider_failure(None, &long.into()).message.chars().count(), MAX_MESSAGE);
    }

    #[test]
    fn the_owner_reads_what_the_caller_does_not() {
        let region =
            r#"{"error":{"code":"unsupported_country_region_territory","message":"Country not supported"}}"#;
        let failure = provider_failure(Some(403), &region.into());
        assert_eq!(&*failure.owner_detail, "it answered 403: Country not supported");
        assert_eq!((&*failure.message, failure.body.len()), ("the provider refuses this request (403)", 0));
        let prompt = r#"{"error":{"message":"bad value 'secret prompt'","type":"invalid_request_error"}}"#;
        assert_eq!(
            &*provider_failure(Some(400), &prompt.into()).owner_detail,
            "it answered 400: invalid_request_error"
        );
        let memory = r#"{"error":{"message":"CUDA out of memory"}}"#;
        assert_eq!(&*provider_failure(None, &memory.into()).owner_detail, "CUDA out of memory");
    }

    #[test]
    fn no_address_and_no_path_of_the_owner_reaches_the_caller() {
        let body =
            r#"{"error":{"message":"cannot open /home/bob/x.gguf at http://127.0.0.1:8080","code":"e"}}"#;
        let shown = error_object(&provider_failure(Some(500), &body.into()));
        assert_eq!(shown, r#"{"error":{"code":"e","message":"cannot open (hidden) at (hidden)"}}"#);
        let ours = Failure::new(FailureCode::Unavailable, "http://127.0.0.1:8080/v1 does not answer");
        assert!(!String::from_utf8_lossy(&error_object(&ours)).contains("127.0.0.1"));
    }

    #[test]
    fn only_a_503_that_says_so_is_a_loading_model() {
        for (status, body, loading) in [
            (503, r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#, true),
            (503, r#"{"status":"loading model"}"#, true),
            (503, r#"{"error":"Model x/y is currently loading","estimated_time":20}"#, true),
            (503, "the model is loading", true),
            (500, "the model is loading", false),
            (503, "no backend", false),
            (503, r#"<html><title>Loading model</title><img loading="lazy">"#, false),
            (503, r#"{"error":{"message":"reloading the configuration of the model"}}"#, false),
            (503, r#"{"error":{"message":"downloading the model"}}"#, false),
            (503, r#"{"error":{"message":"error loading model: out of memory"}}"#, false),
        ] {
            assert_eq!(is_loading(status, body.as_bytes()), loading, "{status} {body}");
        }
    }
}
