use super::*;

fn failure(status: u16, body: &str) -> Failure {
    from_answer(
        "http://x/v1",
        status,
        &HeaderMap::new(),
        Bytes::copy_from_slice(body.as_bytes()),
        &Key::default(),
    )
}

#[test]
fn each_refusal_keeps_its_meaning() {
    use FailureCode as Code;
    for (status, body, code, retryable) in [
        (400, r#"{"error":{"message":"bad tool"}}"#, Code::InvalidRequest, false),
        (422, r#"{"detail":"bad field"}"#, Code::InvalidRequest, false),
        (404, r#"{"error":{"message":"model \"x\" not found"}}"#, Code::ModelNotFound, false),
        (408, "", Code::ProviderTimeout, true),
        (413, "", Code::TooLarge, false),
        (429, r#"{"error":{"message":"slow down"}}"#, Code::RateLimited, true),
        (429, r#"{"error":{"message":"pay","code":"insufficient_quota"}}"#, Code::RateLimited, false),
        (500, "oops", Code::Internal, false),
        (502, "", Code::Internal, false),
        (503, r#"{"error":{"message":"busy"}}"#, Code::Unavailable, true),
        (504, "", Code::ProviderTimeout, true),
        (529, r#"{"error":{"type":"overloaded_error","message":"Overloaded"}}"#, Code::Overloaded, true),
        (307, "", Code::Internal, false),
    ] {
        let failure = failure(status, body);
        assert_eq!((failure.code, failure.retryable), (code, retryable), "{status} {body}");
        assert_eq!(failure.http_status, Some(status).filter(|s| *s >= 400), "{status}");
        assert_eq!(failure.body, if body.starts_with('{') { body } else { "" }, "{status}");
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_told_whatever_the_servers_words() {
    for body in [
        // OpenAI, vLLM, llama.cpp, LM Studio.
        r#"{"error":{"message":"x","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
        r#"{"error":{"message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError","code":400}}"#,
        r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error","n_ctx":256}}"#,
        r#"{"error":"Trying to keep the first 9 tokens when the context length is 4"}"#,
    ] {
        let failure = failure(400, body);
        assert_eq!((failure.code, failure.status()), (FailureCode::ContextLength, 400), "{body}");
        assert_eq!(failure.body, body);
    }
}

#[test]
fn a_content_filter_is_told() {
    let body = r#"{"error":{"code":"content_filter","message":"filtered"}}"#;
    assert_eq!(failure(400, body).code, FailureCode::ContentFiltered);
}

#[test]
fn refused_credentials_are_our_fault_and_say_nothing_of_the_key() {
    for status in [401, 403] {
        let failure = failure(status, r#"{"error":{"message":"Incorrect API key provided: sk-abc"}}"#);
        assert_eq!((failure.code, failure.status()), (FailureCode::ProviderAuth, 502));
        assert!(failure.body.is_empty() && !failure.message.contains("sk-abc"), "{failure:?}");
    }
}

#[test]
fn a_body_or_message_that_quotes_the_key_stays_here() {
    // PATH stands for any variable that is set and holds a text nobody else would send.
    let key = Key::from_env(Some("PATH")).unwrap();
    let secret = std::env::var("PATH").unwrap();
    let body = serde_json::json!({"error": {"message": format!("bad key {}", secret.trim())}}).to_string();
    let failure = from_answer("http://x/v1", 400, &HeaderMap::new(), body.into(), &key);
    assert!(failure.body.is_empty());
    assert_eq!(failure.message, "http://x/v1 answered 400");
}

#[test]
fn an_error_in_a_stream_takes_its_status_from_its_body() {
    let chunk = Bytes::from_static(br#"{"error":{"code":429,"message":"slow down"}}"#);
    assert_eq!(from_error_chunk("http://x/v1", chunk, &Key::default()).code, FailureCode::RateLimited);
    let chunk = Bytes::from_static(br#"{"error":{"message":"CUDA out of memory"}}"#);
    let failure = from_error_chunk("http://x/v1", chunk.clone(), &Key::default());
    assert_eq!((failure.code, failure.status(), failure.body), (FailureCode::Internal, 502, chunk));
}

#[test]
fn only_a_503_that_says_so_is_a_loading_model() {
    assert!(is_loading(
        503,
        br#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#
    ));
    assert!(!is_loading(503, b"no backend") && !is_loading(500, b"loading"));
}
