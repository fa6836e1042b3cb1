//! What ordinary tools see on the socket: reflection and the status.

use fake_mcpd::{InferReply, InferRequest};
use mcprelay::pb::AgentState;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{Watch, World, channel, chat, completion, process, soon};

#[tokio::test(start_paused = true)]
async fn reflection_names_the_bridge_and_health() {
    let world = World::start().await;
    let mut client = ServerReflectionClient::new(channel(&world.config.socket).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let reply =
        client.server_reflection_info(tokio_stream::iter([request])).await.expect("reflection answers");
    let first = soon("the list", reply.into_inner().message()).await.expect("a reply").expect("a reply");
    let Some(MessageResponse::ListServicesResponse(list)) = first.message_response else { panic!("no list") };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    for name in ["mcprelay.bridge.v1.BridgeService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|n| n == name), "{names:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_status_comes_at_once_and_on_every_change() {
    let world = World::start().await;
    let mut watch = Watch::open(&world.config.socket).await;
    let first = watch.until(|_| true).await;
    assert_eq!((first.sessions.len(), first.providers.len()), (0, 0));
    assert_eq!(first.mcpd_url, world.mcpd.url());
    let mut client = world.serving("llama").await;
    let online = watch.until(|s| s.agent.as_ref().is_some_and(|a| a.state() == AgentState::Online)).await;
    assert_eq!(online.sessions[0].client_id, "mcplocal");
    assert_eq!(online.provider_session_id, world.row("llama").provider_session_id);
    let call = world.mcpd.submit(InferRequest::new("llama", &chat("hi"))).expect("accepted");
    let offer = client.offer().await;
    let running = watch.until(|s| !s.tasks.is_empty()).await;
    assert_eq!(
        (running.tasks[0].task_id.as_str(), running.providers[0].running),
        (offer.task_id.as_str(), 1)
    );
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(InferReply::from(soon("the end", call.collect()).await.end).status, 200);
    let done = watch.until(|s| s.tasks.is_empty() && !s.recent.is_empty()).await;
    assert_eq!((done.recent[0].outcome.as_str(), done.totals.expect("totals").tasks_ok), ("ok", 1.0));
    drop(client);
    watch.until(|s| s.sessions.is_empty()).await;
}

#[tokio::test]
async fn a_shell_completes_the_names_of_llms_and_providers() {
    let world = World::start().await;
    let _client = world.serving("llama-of-mine").await;
    for words in [["infer", "lla"], ["pause", "lla"]] {
        let mut shell = process::command(env!("CARGO_BIN_EXE_mcprelay"));
        shell.args(["--", "mcprelay", words[0], words[1]]).env("MCPRELAY_HOME", world.home.path());
        shell.envs([("MCPRELAY_COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", "2"), ("_CLAP_IFS", "\n")]);
        let said = tokio::task::spawn_blocking(move || shell.output()).await.expect("no panic");
        assert_eq!(process::text(&said.expect("the program is built")), "llama-of-mine", "{words:?}");
    }
}
