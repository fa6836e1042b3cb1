//! Parties that are up to no good: an mcpd, a local program, and what they say. Whatever they do, memory stays bounded, the log and
//! the terminal stay clean, and the others are served.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use fake_mcpd::{Aim, CallKind, FakeMcpd, InferRequest};
use mcprelay::pb::{self, AgentState, TaskChunk, session_request, task_chunk};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;
use tonic::Code;

use crate::support::{
    Client, World, chat, chunk, completion, hello,
    hostile::Hostile,
    last_chunk,
    process::{Process, mcprelay, output, text},
    provider, soon,
};

/// What no attack may make the agent hold, in bytes. At rest it holds some 20 MiB, and one event may have 32 MiB.
const MEMORY: usize = 128 << 20;
/// What would move a terminal's cursor, change its title or begin a line of its own.
const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nroot: logged in\u{9b}31m\u{202e}";
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(200);

// ---- mcpd, with the agent in process ----------------------------------------------------------------------------------

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
    assert!(why.contains("in time") || why.contains("timed out") || why.contains("timeout"), "{why}");
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
async fn an_event_over_the_limit_ends_the_channel_with_a_clear_reason_and_the_next_one_works() {
    let world = World::with(FakeMcpd::builder(), |config| config.event_limit = 1 << 20).await;
    let mut client = world.serving("llama").await;
    world.mcpd.send_raw(format!("event: task\ndata: {}", "x".repeat(2 << 20)));
    let why = backoff(&mut client).await;
    assert!(why.contains("--event-limit can raise it") && why.contains("1048576"), "{why}");
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

// ---- local programs -----------------------------------------------------------------------------------------------------

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
        let message = TaskChunk { task_id: "nobody's".to_owned(), output };
        let payload = Some(session_request::Payload::TaskChunk(message));
        while to_agent.send(pb::SessionRequest { payload: payload.clone() }).await.is_ok() {}
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

// ---- a real process, whose memory can be seen ----------------------------------------------------------------------------

struct Real {
    mcpd: FakeMcpd,
    home: TempDir,
    agent: Process,
}

impl Real {
    async fn start(arguments: &[&str]) -> Self {
        let mcpd = FakeMcpd::start().await.expect("a loopback port");
        Self::with(mcpd, arguments).await
    }

    async fn with(mcpd: FakeMcpd, arguments: &[&str]) -> Self {
        let home = home_with(&mcpd.url(), &mcpd.token());
        let agent = Process::start(mcprelay(home.path(), &[&["run"], arguments].concat()));
        agent.says("runs").await;
        Self { mcpd, home, agent }
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("mcprelay.sock")
    }

    async fn serving(&self, llm: &str) -> Client {
        let mut client = Client::connect(&self.socket(), "mcplocal").await;
        client.push(&[provider(llm, true)]).await;
        self.active(llm).await;
        client
    }

    async fn active(&self, llm: &str) {
        let online = |s: &fake_mcpd::Snapshot| s.is_active(llm) && s.sessions.iter().any(|s| s.connected);
        soon("an active row", self.mcpd.wait_until(online)).await;
    }

    /// One whole inference, after whatever happened.
    async fn still_serves(&self, llm: &str, client: &mut Client) {
        let question = chat("still there");
        let (reply, ()) = tokio::join!(self.mcpd.infer(llm, &question), async {
            loop {
                let offer = client.offer().await;
                client.finish_body(&offer, &completion("hello")).await;
                if String::from_utf8_lossy(&offer.request_json).contains("still there") {
                    return;
                }
            }
        });
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    fn assert_small(&self) {
        let peak = self.agent.peak();
        println!("peak {} MiB", peak >> 20);
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
    }
}

fn home_with(url: &str, token: &str) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary folder");
    write_private(&home.path().join("credentials"), &json!({"mcpdUrl": url, "token": token}).to_string());
    home
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).expect("the folder is writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
}

#[tokio::test]
async fn an_endless_event_costs_no_more_than_its_limit() {
    let real =
        Real::start(&["--event-limit", "16MiB", "--reconnect-min", "1s", "--reconnect-max", "1s"]).await;
    let mut client = real.serving("llama").await;
    real.mcpd.send_raw("event: task\ndata: ");
    for _ in 0..20 {
        real.mcpd.send_raw("x".repeat(1 << 20));
    }
    real.agent.says("--event-limit can raise it").await;
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

// ---- providers ----------------------------------------------------------------------------------------------------------

/// One token as an OpenAI server streams it.
const TOKEN: &[u8] = b"data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":null}]}\n\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"x\":\"";
const HTML: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>";

const OUT_OF_TIME: &str = "did not end within its time";

/// What a hostile server sends on and on, whether its caller streams, and what ends it: a limit, or the task's time.
const PROVIDERS: [(&str, &[u8], bool, &str); 5] = [
    (EVENTS, &[b'a'; 65_536], true, "an event of more than 4194304 bytes"),
    (EVENTS, TOKEN, true, OUT_OF_TIME),
    // Comments are signs of life, but not for ever.
    (EVENTS, b": nothing to say\n", true, OUT_OF_TIME),
    (HTML, &[b'a'; 65_536], true, "an answer of more than"),
    (JSON, &[b'a'; 65_536], false, "an answer of more than"),
];

#[tokio::test]
async fn a_hostile_provider_costs_its_own_callers_only() {
    for (head, more, streaming, told) in PROVIDERS {
        let hostile = Hostile::start(head, more, Duration::ZERO).await;
        let mcpd = FakeMcpd::start().await.expect("a loopback port");
        let home = home_with(&mcpd.url(), &mcpd.token());
        let entries = json!({"llm": {"providers": [
            {"name": "hostile", "type": "openai", "model": "m", "url": hostile.url, "publish": true},
            {"name": "honest", "type": "echo", "model": "m", "publish": true},
        ]}});
        write_private(&home.path().join("config.json"), &entries.to_string());
        let limits = ["--provide", "--task-timeout", if told == OUT_OF_TIME { "3s" } else { "10m" }];
        let agent = Process::start(mcprelay(home.path(), &[&["run"], &limits[..]].concat()));
        let listed = |s: &fake_mcpd::Snapshot| s.is_active("hostile") && s.is_active("honest");
        soon("both rows", mcpd.wait_until(listed)).await;
        let mut question = chat("hi");
        question["stream"] = streaming.into();
        let call = match streaming {
            true => {
                soon("its end", mcpd.infer_stream("hostile", &question).expect("accepted").collect()).await
            }
            false => mcpd.submit(InferRequest::new("hostile", &question)).expect("accepted").collect().await,
        };
        let told_to_the_caller = format!("{call:?}");
        assert!(told_to_the_caller.contains(told), "{told}: {told_to_the_caller}");
        assert_eq!(mcpd.infer("honest", &chat("hi")).await.status, 200);
        println!("{told}: peak {} MiB", agent.peak() >> 20);
        assert!(agent.peak() < MEMORY, "{told}: {} MiB", agent.peak() >> 20);
    }
}

// ---- what is shown ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn nothing_that_a_peer_says_reaches_the_terminal_or_the_log_as_an_escape() {
    let real = Real::start(&["--log-format", "text"]).await;
    let mut client = Client::connect(&real.socket(), &format!("c{ESCAPES}")[..20]).await;
    let evil = pb::Provider {
        r#type: ESCAPES.to_owned(),
        model: ESCAPES.to_owned(),
        tier: ESCAPES.to_owned(),
        description: ESCAPES.to_owned(),
        state_detail: ESCAPES.to_owned(),
        ..provider("llama", true)
    };
    client.push(&[evil, provider(ESCAPES, true)]).await;
    real.active("llama").await;
    let task = json!({"kind": "infer", "taskId": ESCAPES, "llmName": "llama", "streaming": false, "caller": ESCAPES, "request": chat("hi")});
    real.mcpd.send_task(task.to_string());
    let offer = client.offer().await;
    let under_way = output(real.home.path(), &["status"]).await;
    let error = pb::Error { message: ESCAPES.to_owned(), ..pb::Error::default() };
    client.finish_error(&offer, error).await;
    let unknown = json!({"kind": ESCAPES, "taskId": "t2", "llmName": ESCAPES, "request": {}});
    real.mcpd.send_task(unknown.to_string());
    real.agent.says("task ended").await;
    let mut shown = vec![text(&under_way), real.agent.log().clone()];
    for arguments in
        [&["status"][..], &["get", "llm"], &["get", "llm", "-o", "wide"], &["infer", "nobody", ESCAPES]]
    {
        shown.push(text(&output(real.home.path(), arguments).await));
    }
    for printed in shown {
        assert!(!printed.is_empty());
        let bad: Vec<_> =
            printed.chars().filter(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}').collect();
        assert!(bad.is_empty() && !printed.contains("\nroot: logged in"), "{bad:?} in {printed:?}");
    }
}
