//! A hostile mcpd: replies and events without end, results that it does not accept, ids that look like paths.

use std::time::Duration;

use fake_mcpd::{Aim, CallKind, FakeMcpd};
use mcprelay::pb::AgentState;
use serde_json::json;
use tokio::time::sleep;

use super::{ESCAPES, LOOK, MEMORY, Real, home_with};
use crate::support::{
    Client, World, chat, chunk, completion,
    hostile::Hostile,
    process::{Process, mcprelay},
    provider, soon,
};

/// An agent with one opted-in provider whose mcpd is `hostile`.
async fn at_the_mercy_of(hostile: &Hostile) -> (World, Client) {
    let mut world = World::offline(FakeMcpd::builder(), |_| {}).await;
    world.write("credentials", &json!({"mcpdUrl": hostile.url, "token": "t"}).to_string());
    world.start_agent();
    let client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    (world, client)
}

/// The link's detail once it backs off.
async fn backoff(client: &mut Client) -> String {
    let backs_off = async {
        loop {
            let agent = client.status().await.agent.expect("the link's state");
            if agent.state() == AgentState::Backoff {
                return agent.detail;
            }
            sleep(LOOK).await;
        }
    };
    soon("a backoff", backs_off).await
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_comes_a_byte_at_a_time_is_given_up_in_time() {
    let slow = Hostile::start("HTTP/1.1 200 OK\r\nx-slow: ", b"a", Duration::from_secs(1)).await;
    let (_world, mut client) = at_the_mercy_of(&slow).await;
    let began = tokio::time::Instant::now();
    let why = backoff(&mut client).await;
    assert!(began.elapsed() < Duration::from_secs(20), "15 s for a call: {:?}", began.elapsed());
    assert!(why.contains("within 15 s"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn headers_without_end_are_an_error() {
    let more =
        b"x-more: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
    let endless = Hostile::start("HTTP/1.1 200 OK\r\n", more, Duration::ZERO).await;
    let (_world, mut client) = at_the_mercy_of(&endless).await;
    assert!(!backoff(&mut client).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_reply_without_end_is_read_to_its_limit_only() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"providerSessionId\":\"";
    let endless = Hostile::start(head, &[b'a'; 65_536], Duration::ZERO).await;
    let (_world, mut client) = at_the_mercy_of(&endless).await;
    let why = backoff(&mut client).await;
    assert!(why.contains("bytes") || why.contains("larger") || why.contains("MiB"), "{why}");
}

/// No compression is asked for, so there is no bomb to unpack.
#[tokio::test(start_paused = true)]
async fn compressed_replies_are_not_asked_for() {
    let slow = Hostile::start("HTTP/1.1 503 No\r\n\r\n", b"", Duration::from_secs(1)).await;
    let (_world, mut client) = at_the_mercy_of(&slow).await;
    backoff(&mut client).await;
    let asked = slow.asked.lock().unwrap().clone();
    assert!(
        !asked.is_empty() && asked.iter().all(|head| !head.to_lowercase().contains("accept-encoding")),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_event_without_end_ends_the_channel_with_a_clear_reason_and_the_next_one_works() {
    let world = World::with(FakeMcpd::builder(), |config| config.event_limit = 64 << 10).await;
    let mut client = world.serving("llama").await;
    world.mcpd.send_raw(format!("event: task\ndata: {}", "x".repeat(4 << 20)));
    let why = backoff(&mut client).await;
    assert!(why.contains("no end after 64 times") && why.contains("65536"), "{why}");
    world.active("llama").await;
    let question = chat("hi");
    let (reply, ()) = tokio::join!(world.mcpd.infer("llama", &question), async {
        let offer = client.offer().await;
        client.finish_body(&offer, &completion("hello")).await;
    });
    assert_eq!(reply.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_mcpd_does_not_take_holds_up_no_other_task_and_little_memory() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    world.mcpd.delay(Aim::next(CallKind::Result), Duration::from_secs(25));
    let _slow = world.mcpd.infer_stream("llama", &chat("slow")).expect("accepted");
    let slow = client.offer().await;
    // A role is a barrier, so that nothing merges: 8 MiB for an outbox of 4 MiB.
    let piece = chunk(&"x".repeat(64 << 10)).replace("\"content\"", "\"role\":\"assistant\",\"content\"");
    for _ in 0..128 {
        client.chunk(&slow, &piece).await;
    }
    let question = chat("fast");
    let (reply, ()) = tokio::join!(world.mcpd.infer("llama", &question), async {
        let offer = client.offer().await;
        client.finish_body(&offer, &completion("hello")).await;
    });
    assert_eq!(reply.status, 200, "the other task is served meanwhile");
    let cancel = client.cancel().await;
    assert_eq!(cancel.task_id, slow.task_id, "its provider is told to stop");
    client.finish_cancelled(&slow.task_id).await;
    let ended = async {
        loop {
            let recent = client.status().await.recent;
            if let Some(task) = recent.into_iter().find(|t| t.task_id == slow.task_id) {
                return task.outcome;
            }
            sleep(LOOK).await;
        }
    };
    assert_eq!(soon("its end", ended).await, "slow_consumer");
}

#[tokio::test(start_paused = true)]
async fn a_task_id_is_data_whatever_is_in_it() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    for id in
        ["../../_provider-register", "a/b?c=d#e", "..%2f..%2f", ESCAPES, "\0", "%00", "💣", " ", "a\"b\\c"]
    {
        let task = json!({"kind": "infer", "taskId": id, "llmName": "llama", "streaming": false, "request": chat("hi")});
        world.mcpd.send_task(task.to_string());
        let offer = client.offer().await;
        assert_eq!(offer.task_id, id);
        client.finish_body(&offer, &completion("hello")).await;
        let delivered = |e: &fake_mcpd::Entry| e.is_call(CallKind::Result) && e.task.as_deref() == Some(id);
        let entry = soon("its result", world.mcpd.wait_for(delivered)).await;
        assert_eq!(entry.status, Some(200), "{entry:?}");
    }
    // These no URL can carry as one segment, so nobody can be answered.
    for id in [".", "..", ""] {
        let task = json!({"kind": "infer", "taskId": id, "llmName": "llama", "streaming": false, "request": chat("hi")});
        world.mcpd.send_task(task.to_string());
    }
    let question = chat("still there");
    let (reply, ()) = tokio::join!(world.mcpd.infer("llama", &question), async {
        let offer = client.offer().await;
        client.finish_body(&offer, &completion("hello")).await;
    });
    assert_eq!(reply.status, 200);
    assert_eq!(world.calls(CallKind::Register).len(), 1, "no id reached another path");
    world.assert_clean();
}

// ---- a real process, whose memory can be seen ----------------------------------------------------------------------------

#[tokio::test]
async fn an_endless_event_costs_no_more_than_its_limit() {
    let real =
        Real::start(&["--event-limit", "1MiB", "--reconnect-min", "1s", "--reconnect-max", "1s"]).await;
    let mut client = real.serving("llama").await;
    real.mcpd.send_raw("event: task\ndata: ");
    for _ in 0..65 {
        real.mcpd.send_raw("x".repeat(1 << 20));
    }
    real.agent.says("no end after 64 times").await;
    // mcpd may not have noticed yet that the old channel is closed, and would give it the next task.
    let mut opened = 0;
    let again = |entry: &fake_mcpd::Entry| {
        opened += usize::from(entry.is_call(CallKind::Stream));
        opened >= 2
    };
    soon("another channel", real.mcpd.wait_for(again)).await;
    real.active("llama").await;
    real.still_serves("llama", &mut client).await;
    real.assert_small();
}

#[tokio::test]
async fn headers_and_replies_without_end_cost_little() {
    let headers = "HTTP/1.1 200 OK\r\nx-more: ";
    let body = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n\"";
    for head in [headers, body] {
        let hostile = Hostile::start(head, &[b'a'; 65_536], Duration::ZERO).await;
        let home = home_with(&hostile.url, "t");
        let agent = Process::start(mcprelay(home.path(), &["run"]));
        agent.says("runs").await;
        let mut client = Client::connect(&home.path().join("mcprelay.sock"), "mcplocal").await;
        client.push(&[provider("llama", true)]).await;
        agent.says("\"state\":\"backoff\"").await;
        assert!(agent.peak() < MEMORY, "{} MiB", agent.peak() >> 20);
    }
}

#[tokio::test]
async fn thousands_of_tasks_at_once_are_refused_in_bounded_memory_and_the_agent_serves_on() {
    const TASKS: usize = 2000;
    let real = Real::start(&["--queue-timeout", "10m"]).await;
    let mut client = real.serving("llama").await;
    let request = chat(&"x".repeat(4 << 10));
    let task =
        json!({"kind": "infer", "taskId": "ID", "llmName": "llama", "streaming": false, "request": request})
            .to_string();
    for n in 0..TASKS {
        real.mcpd.send_task(task.replacen("ID", &format!("flood-{n}"), 1));
        // The test's own end of the session has to go on living.
        tokio::task::yield_now().await;
    }
    let refused = async {
        let mut seen = 0;
        let mut since = 0;
        while seen < TASKS - 68 {
            let result = |e: &fake_mcpd::Entry| e.is_call(CallKind::Result);
            let entry = real.mcpd.wait_for_since(since, result).await;
            assert_eq!(entry.json()["status"], 429, "{entry:?}");
            (seen, since) = (seen + 1, entry.seq + 1);
        }
    };
    soon("the refusals: all but 4 that run and 64 that wait", refused).await;
    real.still_serves_after_the_flood(&mut client).await;
    real.assert_small();
}

impl Real {
    /// Ends what the flood left, then serves one more.
    async fn still_serves_after_the_flood(&self, client: &mut Client) {
        for _ in 0..68 {
            let offer = client.offer().await;
            client.finish_body(&offer, &completion("hello")).await;
        }
        self.still_serves("llama", client).await;
    }
}
