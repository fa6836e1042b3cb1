use super::*;

fn origin(url: &str, is_public: bool) -> Origin {
    Origin::new(&BaseUrl::parse(url).unwrap(), is_public, Key::default())
}

fn refused(status: u16, body: &str) -> Failure {
    origin("http://127.0.0.1:8000", false).refused(
        status,
        &HeaderMap::new(),
        &Bytes::copy_from_slice(body.as_bytes()),
    )
}

#[test]
fn a_refusal_names_the_server_to_its_owner_alone() {
    let failure = refused(500, r#"{"error":{"message":"CUDA out of memory"}}"#);
    assert_eq!(failure.message, "CUDA out of memory");
    assert_eq!(&*failure.owner_detail, "http://127.0.0.1:8000/v1: it answered 500: CUDA out of memory");
    assert_eq!(failure.http_status, Some(500));
}

#[test]
fn a_401_is_about_the_key_and_a_403_about_what_the_server_says() {
    let key = refused(401, r#"{"error":{"message":"Incorrect API key provided: sk-abc"}}"#);
    assert_eq!((key.code, key.status()), (FailureCode::ProviderAuth, 502));
    assert!(key.body.is_empty() && !key.message.contains("sk-abc"), "{key:?}");
    assert!(key.owner_detail.contains("apiKeyEnv"), "{key:?}");
    let region = refused(403, r#"{"error":{"message":"Country not supported"}}"#);
    assert!(region.owner_detail.ends_with("it answered 403: Country not supported"), "{region:?}");
    assert!(!region.owner_detail.contains("key") && !region.message.contains("Country"), "{region:?}");
    let moderation = refused(403, r#"{"error":{"message":"flagged for moderation","code":403}}"#);
    assert_eq!((moderation.code, moderation.status()), (FailureCode::ContentFiltered, 403));
}

#[test]
fn a_redirect_names_its_target_to_the_owner() {
    let headers = HeaderMap::from_iter([(LOCATION, "https://h/v2".parse().unwrap())]);
    let failure = origin("http://127.0.0.1:8000", false).refused(308, &headers, &Bytes::new());
    assert_eq!((failure.code, failure.http_status), (FailureCode::Unavailable, None));
    assert!(failure.owner_detail.contains("redirects to https://h/v2"), "{failure:?}");
    assert!(!failure.message.contains("https://"), "{failure:?}");
}

#[test]
fn a_body_or_message_that_quotes_the_key_stays_here() {
    // PATH stands for any variable that is set and holds a text nobody else would send.
    let key = Key::from_env(Some("PATH")).unwrap();
    let secret = std::env::var("PATH").unwrap();
    let body = serde_json::json!({"error": {"message": format!("bad key {}", secret.trim())}}).to_string();
    let origin = Origin::new(&BaseUrl::parse("http://x/v1").unwrap(), false, key);
    for failure in
        [origin.refused(500, &HeaderMap::new(), &body.clone().into()), origin.reported(&body.clone().into())]
    {
        assert!(failure.body.is_empty());
        assert_eq!(failure.message, "the provider reported an error");
        assert!(!failure.owner_detail.contains(secret.trim()), "{failure:?}");
    }
}

#[test]
fn the_host_of_a_server_of_ones_own_is_hidden_and_a_public_one_is_not() {
    let body = Bytes::from_static(br#"{"error":{"message":"upstream llm.corp.example is down"}}"#);
    let own = origin("https://llm.corp.example", false).refused(500, &HeaderMap::new(), &body);
    assert_eq!(own.body, br#"{"error":{"message":"upstream (hidden) is down"}}"#.as_slice());
    assert_eq!(own.message, "upstream (hidden) is down");
    assert_eq!(origin("https://llm.corp.example", true).refused(500, &HeaderMap::new(), &body).body, body);
}

#[test]
fn an_error_in_a_stream_takes_its_status_from_its_body() {
    let origin = origin("http://127.0.0.1:8000", false);
    let chunk = Bytes::from_static(br#"{"error":{"code":429,"message":"slow down"}}"#);
    assert_eq!(origin.reported(&chunk).code, FailureCode::RateLimited);
    let chunk = Bytes::from_static(br#"{"error":{"message":"CUDA out of memory"}}"#);
    let failure = origin.reported(&chunk);
    assert_eq!((failure.code, failure.status(), failure.body), (FailureCode::Internal, 502, chunk));
}
