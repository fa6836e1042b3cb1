//! What fuzzing has found: one test for each.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mcprelay::{
    core::{Core, Effect, Input, Settings, link},
    domain::{
        Activity, End, FailureCode, Provider, ProviderName, ProviderState, RequestFacts, SessionHello,
        SessionKey, Task, TaskId,
    },
};

const SESSION: SessionKey = SessionKey(1);

fn settings() -> Settings {
    let minute = Duration::from_secs(60);
    let link = link::Settings {
        heartbeat_interval: minute,
        reconnect_min: minute,
        reconnect_max: minute,
        token_source: "",
    };
    Settings {
        task_timeout: minute,
        first_token_timeout: minute,
        idle_token_timeout: minute,
        queue_timeout: minute,
        max_in_flight: 1,
        max_queued: 9,
        max_queued_per_caller: 9,
        drain_timeout: minute,
        link,
    }
}

fn provider() -> Provider {
    Provider {
        name: ProviderName::new("llama").expect("a name"),
        kind: "ollama".into(),
        model: "m".into(),
        tier: String::new(),
        description: String::new(),
        publish: true,
        sharing: Vec::new(),
        max_in_flight: None,
        state: ProviderState::Ready,
        state_detail: String::new(),
        features: Vec::new(),
        context_tokens: None,
        max_output_tokens: None,
        server: None,
    }
}

fn task(id: &str, deadline: Duration) -> Task {
    Task {
        id: TaskId::new(id).expect("an id"),
        llm: "llama".to_owned(),
        streaming: false,
        request: Bytes::from_static(b"{}"),
        asked: RequestFacts::default(),
        deadline: Some(deadline),
        trace_context: std::collections::BTreeMap::new(),
        caller: None,
    }
}

#[test]
fn a_task_whose_time_is_over_when_it_arrives_is_never_offered() {
    let (mut core, now, mut effects) = (Core::new(settings(), None, 1), Instant::now(), Vec::new());
    let hello = SessionHello {
        client_id: "c".to_owned(),
        client_version: "1".to_owned(),
        max_message_bytes: 1 << 20,
        builtin: false,
    };
    let arrivals = [
        Input::SessionOpened(SESSION, hello),
        Input::Snapshot(SESSION, 1, vec![Ok(provider())]),
        Input::Task(task("late", Duration::from_millis(200))),
        Input::Task(task("in time", Duration::from_secs(5))),
    ];
    for input in arrivals {
        core.handle(input, now, &|_| Activity::default(), &mut effects);
    }
    let ended = |effect: &Effect| match effect {
        Effect::End(_, End::Failed(failure), _) => Some(failure.code),
        _ => None,
    };
    assert_eq!(effects.iter().filter_map(ended).collect::<Vec<_>>(), [FailureCode::TaskTimeout]);
    let offers =
        effects.iter().filter(|effect| matches!(effect, Effect::Offer(_, SESSION, left) if !left.is_zero()));
    assert_eq!(offers.count(), 1, "the slot went to the task that has time: {effects:?}");
}
