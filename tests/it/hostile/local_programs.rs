//! Hostile local programs: snapshots beyond all reason, invalid names, floods.

use std::{path::Path, time::Duration};

use mcprelay::pb::{
    self, TaskChunk, bridge_service_client::BridgeServiceClient, session_request, task_chunk,
};
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{ESCAPES, LOOK, Real};
use crate::support::{Client, World, channel, chat, chunk, completion, hello, last_chunk, provider, soon};

#[tokio::test(start_paused = true)]
async fn of_ten_thousand_providers_a_thousand_are_taken_and_the_others_refused_one_by_one() {
    let world = World::start().await;
    let mut honest = world.serving("honest").await;
    let mut greedy = world.client("greedy").await;
    let many: Vec<_> = (0..10_000).map(|n| provider(&format!("llm-{n}"), true)).collect();
    let verdicts = greedy.push(&many).await;
    let taken = verdicts.iter().filter(|v| v.verdict() == pb::Verdict::Published).count();
    let refused = verdicts.iter().filter(|v| v.verdict() == pb::Verdict::Refused).count();
    assert_eq!((taken, refused, verdicts.len()), (1000, 9000, 10_000));
    let said = &verdicts.last().unwrap().error.as_ref().expect("a reason").message;
    assert!(said.contains("1000 providers at most"), "{said}");
    let question = chat("hi");
    let (reply, ()) = tokio::join!(world.mcpd.infer("honest", &question), async {
        let offer = honest.offer().await;
        honest.finish_body(&offer, &completion("hello")).await;
    });
    assert_eq!(reply.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_beyond_all_reason_ends_its_session_and_no_other() {
    let world = World::start().await;
    let _honest = world.serving("honest").await;
    let mut greedy = world.client("greedy").await;
    let providers = vec![pb::Provider::default(); 100_000];
    let snapshot = pb::ProviderSnapshot { generation: 1, providers };
    greedy.send(session_request::Payload::ProviderSnapshot(snapshot)).await;
    let status = greedy.ended().await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("100000 providers"), "{status:?}");
    world.active("honest").await;
}

#[tokio::test(start_paused = true)]
async fn names_that_could_move_a_terminals_cursor_are_refused_and_said_without_them() {
    let world = World::start().await;
    let mut client = world.client("mcplocal").await;
    let verdicts =
        client.push(&[provider(ESCAPES, true), provider("", true), provider(&"n".repeat(9999), true)]).await;
    for verdict in &verdicts {
        assert_eq!(verdict.verdict(), pb::Verdict::Refused, "{verdict:?}");
    }
    let told =
        verdicts.iter().map(|v| v.error.as_ref().expect("a reason").message.clone()).collect::<String>();
    assert!(!told.chars().any(char::is_control), "{told:?}");
    assert!(world.mcpd.journal().is_empty(), "nothing is published, so nothing is called");
}

#[tokio::test(start_paused = true)]
async fn a_greeting_that_is_too_long_or_missing_is_refused_with_the_reason() {
    let world = World::start().await;
    for client_id in [String::new(), "x".repeat(129)] {
        let mut client = Client::silent(&world.config.socket).await;
        client.send(hello(&client_id)).await;
        let status = client.ended().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("client_id"), "{status:?}");
    }
    let mut silent = Client::silent(&world.config.socket).await;
    assert_eq!(silent.ended().await.code(), Code::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_session_does_not_hold_up_another() {
    let world = World::start().await;
    let mut honest = world.serving("honest").await;
    let flooder = world.client("flooder").await;
    let to_agent = flooder.sender();
    // It never reads, so the agent's answers pile up until the agent ends it.
    tokio::spawn(async move {
        let output = Some(task_chunk::Output::ChunkJson(chunk("x").into()));
        let message = TaskChunk { task_id: "nobody's".to_owned(), output, more: vec![] };
        let providers = vec![provider(&"x".repeat(250), false)];
        let answered = pb::ProviderSnapshot { generation: 1, providers };
        let payloads = [
            session_request::Payload::TaskChunk(message),
            session_request::Payload::ProviderSnapshot(answered),
        ];
        for payload in payloads.iter().cycle() {
            if to_agent.send(pb::SessionRequest { payload: Some(payload.clone()) }).await.is_err() {
                return;
            }
        }
    });
    for _ in 0..20 {
        let mut call = world.mcpd.infer_stream("honest", &chat("hi")).expect("accepted");
        let offer = honest.offer().await;
        honest.chunk(&offer, &chunk("hello")).await;
        assert!(soon("a token", call.chunk()).await.is_some());
        honest.chunk(&offer, &last_chunk()).await;
        honest.finish(&offer, None).await;
        assert!(soon("the end", call.collect()).await.is_done());
    }
    let thrown_out = async {
        while honest.status().await.sessions.iter().any(|s| s.client_id == "flooder") {
            sleep(LOOK).await;
        }
    };
    soon("the flooder's end", thrown_out).await;
    drop(flooder);
    world.assert_clean();
}

/// Why the agent does not take one more session; a session that it takes ends again at once.
async fn refusal(socket: &Path) -> Option<tonic::Status> {
    let mut rpc = BridgeServiceClient::new(channel(socket).await);
    soon("an answer", rpc.session(tokio_stream::empty())).await.err()
}

#[tokio::test(start_paused = true)]
async fn of_sixty_five_sessions_the_last_is_refused_with_the_reason_until_another_one_goes() {
    let world = World::start().await;
    let (_honest, socket) = (world.serving("honest").await, &world.config.socket);
    let mut others = Vec::new();
    for n in 1..64 {
        others.push(Client::connect(socket, &format!("session-{n}")).await);
    }
    let status = refusal(socket).await.expect("there is a limit");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("64 sessions are open"), "{status:?}");
    others.pop();
    let taken = async {
        while refusal(socket).await.is_some() {
            sleep(LOOK).await;
        }
    };
    soon("a place for another one", taken).await;
    world.active("honest").await;
}

#[tokio::test(start_paused = true)]
async fn on_one_connection_the_sixty_fifth_stream_waits_until_another_one_ends() {
    let world = World::start().await;
    let rpc = BridgeServiceClient::new(channel(&world.config.socket).await);
    let watch = async || rpc.clone().watch_status(pb::WatchStatusRequest {}).await.expect("it is served");
    let mut watches = Vec::new();
    for _ in 0..64 {
        watches.push(soon("the status", watch()).await);
    }
    assert!(timeout(Duration::from_secs(60), watch()).await.is_err(), "there is a limit");
    watches.pop();
    soon("a place for another one", watch()).await;
}

#[tokio::test]
async fn floods_of_local_programs_cost_little() {
    let real = Real::start(&[]).await;
    let mut honest = real.serving("honest").await;
    let mut greedy = Client::connect(&real.socket(), "greedy").await;
    for generation in 0..4 {
        let many: Vec<_> = (0..10_000).map(|n| provider(&format!("llm-{generation}-{n}"), true)).collect();
        assert_eq!(greedy.push(&many).await.len(), 10_000);
    }
    drop(greedy);
    let mut sessions = Vec::new();
    while let Some(mut client) =
        Client::try_connect(&real.socket(), &format!("session-{}", sessions.len())).await
        && client.message().await.is_ok()
    {
        sessions.push(client);
    }
    let taken = sessions.len();
    assert!((32..128).contains(&taken), "there is a limit: {taken}");
    real.active("honest").await;
    real.still_serves("honest", &mut honest).await;
    real.assert_small();
}
