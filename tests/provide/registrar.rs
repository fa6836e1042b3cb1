//! The client's session with the agent: how it begins, what ends it, and what each task owes.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use mcprelay::{
    domain::{self, CompletionResult, Outcome, ProviderName, ProviderState, Rule, Window},
    pb::{self, ErrorCode, session_request::Payload as FromClient, session_response::Payload as ToClient},
    provide::{
        Chunks, DEFAULT_MAX_MESSAGE_BYTES, Finished, Offered, Provider, Registrar, RegistrarConfig, Task,
        async_trait,
    },
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::agent::{Agent, BOUND, Session};

/// What a provider does with every task.
enum Does {
    Answer,
    WaitForCancel,
    IgnoreCancel,
    Panic,
    Flood(Arc<AtomicUsize>),
    TooMuch,
    /// Waits for the test, then answers.
    Wait(Arc<Notify>),
}

#[async_trait]
impl Provider for Does {
    async fn run(&self, task: Task, chunks: Chunks, cancel: CancellationToken) -> Finished {
        // Tells the test that the task has begun.
        if matches!(self, Self::Wait(_) | Self::IgnoreCancel) {
            chunks.alive().await.unwrap();
        }
        match self {
            Self::Answer => {}
            Self::WaitForCancel => {
                cancel.cancelled().await;
                return Outcome::Cancelled.into();
            }
            Self::IgnoreCancel => std::future::pending().await,
            Self::Panic => panic!("on purpose"),
            Self::Flood(sent) => loop {
                if let Err(reason) = chunks.raw(Bytes::from(vec![b' '; 64 * 1024])).await {
                    return reason.into();
                }
                sent.fetch_add(1, Ordering::Relaxed);
            },
            Self::TooMuch => return Outcome::Body(vec![b' '; 2 << 20].into()).into(),
            Self::Wait(go) => go.notified().await,
        }
        let content = format!("{} streaming={} {}s", task.provider, task.streaming, task.timeout.as_secs());
        Outcome::Result(CompletionResult { content, ..CompletionResult::default() }).into()
    }
}

fn offered(name: &str, does: Does) -> Offered {
    let info = domain::Provider {
        name: ProviderName::new(name).unwrap(),
        kind: "test".into(),
        model: "m".into(),
        tier: "fast".to_owned(),
        description: "d".to_owned(),
        publish: true,
        sharing: vec![Rule::Hours(vec![Window::parse("Sat-Sun").unwrap()]), Rule::NotOnBattery],
        max_in_flight: Some(3),
        state: ProviderState::Loading,
        state_detail: "soon".to_owned(),
        features: vec!["tools".to_owned()],
        context_tokens: Some(8),
        max_output_tokens: Some(4),
        server: None,
    };
    Offered { info, provider: Arc::new(does) }
}

fn start(socket: &Path, providers: Vec<Offered>) -> Registrar {
    let config = RegistrarConfig {
        socket: socket.to_owned(),
        client_id: "id".to_owned(),
        client_version: "test/1".to_owned(),
        max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
    };
    Registrar::start(config, providers)
}

/// One provider called "p" that does `does`, and its session after the snapshot.
async fn one(does: Does) -> (tempfile::TempDir, Agent, Session, Registrar) {
    let home = tempfile::tempdir().unwrap();
    let mut agent = Agent::listen(&home.path().join("s"));
    let registrar = start(&home.path().join("s"), vec![offered("p", does)]);
    let mut session = agent.session().await;
    session.snapshot().await;
    (home, agent, session, registrar)
}

#[tokio::test]
async fn it_says_who_it_is_and_what_it_has() {
    let home = tempfile::tempdir().unwrap();
    let mut agent = Agent::listen(&home.path().join("s"));
    let _registrar = start(&home.path().join("s"), vec![offered("p", Does::Answer)]);
    let mut session = agent.session().await;
    assert_eq!((session.hello.client_id.as_str(), session.hello.client_version.as_str()), ("id", "test/1"));
    assert_eq!(session.hello.max_message_bytes, DEFAULT_MAX_MESSAGE_BYTES);
    let expected = pb::Provider {
        name: "p".to_owned(),
        r#type: "test".to_owned(),
        model: "m".to_owned(),
        tier: "fast".to_owned(),
        description: "d".to_owned(),
        publish: true,
        max_in_flight: Some(3),
        state: pb::ProviderState::Loading.into(),
        state_detail: "soon".to_owned(),
        features: vec!["tools".to_owned()],
        context_tokens: Some(8),
        max_output_tokens: Some(4),
        server_address: String::new(),
        server_port: None,
        sharing: vec![
            pb::Sharing { hours: vec!["Sat-Sun".to_owned()], ..pb::Sharing::default() },
            pb::Sharing { on_battery: Some(false), ..pb::Sharing::default() },
        ],
    };
    assert_eq!(session.snapshot().await, [expected]);
}

#[tokio::test]
async fn a_changed_set_is_pushed_whole_and_an_equal_one_not_at_all() {
    let (_home, _agent, mut session, registrar) = one(Does::Answer).await;
    let (a, b) = (offered("a", Does::Answer), offered("b", Does::Answer));
    registrar.set_providers(vec![a.clone(), b.clone()]);
    assert_eq!(session.snapshot().await.len(), 2);
    registrar.set_providers(vec![a, b.clone()]);
    registrar.set_providers(vec![b]);
    let names: Vec<String> = session.snapshot().await.into_iter().map(|provider| provider.name).collect();
    assert_eq!(names, ["b"]);
}

#[tokio::test]
async fn a_task_reaches_its_provider_and_ends_once() {
    let (_home, _agent, mut session, _registrar) = one(Does::Answer).await;
    session.offer("t", "p", r#"{"stream":true}"#).await;
    let expected =
        CompletionResult { content: "p streaming=true 600s".to_owned(), ..CompletionResult::default() };
    match session.answer("t").await.end.outcome {
        Some(pb::task_finished::Outcome::Result(result)) => assert_eq!(result.content, expected.content),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_task_for_a_provider_that_is_not_offered_is_refused_retryably() {
    let (_home, _agent, mut session, _registrar) = one(Does::Answer).await;
    session.offer("t", "withdrawn", "{}").await;
    let answer = session.answer("t").await;
    assert_eq!((answer.error().code(), answer.error().retryable), (ErrorCode::ProviderUnavailable, true));
}

#[tokio::test]
async fn a_cancelled_task_ends_once_and_a_cancel_of_an_unknown_one_is_nothing() {
    let (_home, _agent, mut session, _registrar) = one(Does::WaitForCancel).await;
    session.cancel("unknown").await;
    session.offer("t", "p", "{}").await;
    session.cancel("t").await;
    assert!(session.answer("t").await.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_ignores_its_cancel_loses_the_task_after_five_seconds() {
    let (_home, _agent, mut session, _registrar) = one(Does::IgnoreCancel).await;
    session.offer("t", "p", "{}").await;
    session.cancel("t").await;
    let asked = Instant::now();
    assert!(session.answer("t").await.is_cancelled());
    assert!(asked.elapsed() >= Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_panic_is_one_tasks_error_and_the_session_goes_on() {
    let (_home, _agent, mut session, _registrar) = one(Does::Panic).await;
    for task in ["t1", "t2"] {
        session.offer(task, "p", "{}").await;
        assert_eq!(session.answer(task).await.error().code(), ErrorCode::Internal);
    }
}

#[tokio::test]
async fn what_the_agent_could_not_take_becomes_an_error_that_says_so() {
    let home = tempfile::tempdir().unwrap();
    let mut agent = Agent::listen(&home.path().join("s"));
    let _registrar = start(&home.path().join("s"), vec![offered("p", Does::TooMuch)]);
    let mut session = agent.session_with_limit(1 << 20).await;
    session.snapshot().await;
    session.offer("t", "p", "{}").await;
    assert!(session.answer("t").await.error().message.contains("more than the agent takes"));
}

#[tokio::test(start_paused = true)]
async fn a_provider_waits_for_an_agent_that_does_not_read() {
    let sent = Arc::new(AtomicUsize::new(0));
    let (_home, _agent, mut session, _registrar) = one(Does::Flood(sent.clone())).await;
    session.offer("t", "p", "{}").await;
    session.next().await.expect("the first chunk");
    // Paused time moves on only when nobody has anything to do.
    sleep(Duration::from_secs(1)).await;
    let stuck = sent.load(Ordering::Relaxed);
    assert!(stuck < 1000, "{stuck} chunks were taken from the provider");
    while sent.load(Ordering::Relaxed) == stuck {
        session.next().await.expect("more chunks");
    }
}

#[tokio::test]
async fn an_agent_that_comes_later_or_comes_back_is_found_again_with_the_same_id() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("s");
    let _registrar = start(&socket, vec![offered("p", Does::WaitForCancel)]);
    for _ in 0..3 {
        let mut agent = Agent::listen(&socket);
        let mut session = agent.session().await;
        assert_eq!(session.hello.client_id, "id");
        assert_eq!(session.snapshot().await.len(), 1);
        session.offer("t", "p", "{}").await;
        agent.stop(session).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_absent_agent_is_tried_often_enough_for_its_grace() {
    let home = tempfile::tempdir().unwrap();
    let _registrar = start(&home.path().join("s"), vec![]);
    sleep(Duration::from_secs(600)).await;
    let mut agent = Agent::listen(&home.path().join("s"));
    let back = Instant::now();
    agent.session().await;
    assert!(back.elapsed() < Duration::from_secs(10), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_replaced_client_waits_a_minute() {
    let (_home, mut agent, session, _registrar) = one(Does::Answer).await;
    session.fail(Status::aborted("replaced")).await;
    let replaced = Instant::now();
    // Far longer than the wait: paused time may run ahead while a message is on its way through the socket.
    let waiting = async {
        loop {
            if let Ok(session) = timeout(Duration::from_secs(1), agent.session()).await {
                return session;
            }
        }
    };
    drop(waiting.await);
    assert!(replaced.elapsed() >= Duration::from_secs(60), "{:?}", replaced.elapsed());
}

#[tokio::test]
async fn a_stop_says_goodbye_lets_running_tasks_finish_and_refuses_new_ones() {
    let go = Arc::new(Notify::new());
    let (_home, _agent, mut session, registrar) = one(Does::Wait(go.clone())).await;
    session.offer("t1", "p", "{}").await;
    session.next().await.expect("a sign of life");
    let stopping = tokio::spawn(registrar.stop(Duration::from_secs(30)));
    match session.next().await {
        Some(FromClient::Drain(drain)) => assert_eq!(drain.grace_ms, 30_000),
        other => panic!("{other:?}"),
    }
    session.offer("t2", "p", "{}").await;
    assert!(session.answer("t2").await.error().retryable);
    go.notify_one();
    assert!(matches!(session.answer("t1").await.end.outcome, Some(pb::task_finished::Outcome::Result(_))));
    assert_eq!(session.next().await, None);
    drop(session);
    timeout(BOUND, stopping).await.expect("it stops").unwrap();
}

#[tokio::test]
async fn a_stop_ends_what_does_not_finish_in_time_with_an_error() {
    let (_home, _agent, mut session, registrar) = one(Does::IgnoreCancel).await;
    session.offer("t", "p", "{}").await;
    session.next().await.expect("a sign of life");
    let stopping = tokio::spawn(registrar.stop(Duration::from_millis(50)));
    assert!(matches!(session.next().await, Some(FromClient::Drain(_))));
    assert_eq!(session.answer("t").await.error().code(), ErrorCode::ProviderUnavailable);
    // An agent that does not close the stream is not waited for.
    timeout(BOUND, stopping).await.expect("it stops").unwrap();
}

#[tokio::test]
async fn an_offer_that_crosses_the_goodbye_is_refused_not_lost() {
    let (_home, _agent, mut session, registrar) = one(Does::Answer).await;
    let stopping = tokio::spawn(registrar.stop(Duration::from_secs(30)));
    assert!(matches!(session.next().await, Some(FromClient::Drain(_))));
    session.offer("t", "p", "{}").await;
    assert!(session.answer("t").await.error().retryable);
    drop(session);
    timeout(BOUND, stopping).await.expect("it stops").unwrap();
}

#[tokio::test]
async fn a_stop_without_an_agent_is_immediate() {
    let home = tempfile::tempdir().unwrap();
    let registrar = start(&home.path().join("s"), vec![]);
    timeout(BOUND, registrar.stop(Duration::from_secs(3600))).await.expect("it stops");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_an_agent_that_hangs() {
    let home = tempfile::tempdir().unwrap();
    let hanging = tokio::net::UnixListener::bind(home.path().join("s")).unwrap();
    let registrar = start(&home.path().join("s"), vec![]);
    let _connection = timeout(BOUND, hanging.accept()).await.expect("a connection").unwrap();
    let asked = std::time::Instant::now();
    registrar.stop(Duration::from_secs(3600)).await;
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn the_agents_goodbye_does_not_end_running_tasks() {
    let go = Arc::new(Notify::new());
    let (_home, mut agent, mut session, _registrar) = one(Does::Wait(go.clone())).await;
    session.offer("t", "p", "{}").await;
    session.send(ToClient::Drain(pb::Drain { grace_ms: 1000, reason: "upgrade".to_owned() })).await;
    go.notify_one();
    assert!(session.answer("t").await.end.outcome.is_some());
    drop(session);
    agent.session().await;
}
