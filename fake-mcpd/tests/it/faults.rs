//! Each fault does what it says, by every door it can be ordered through.

use std::time::Duration;

use fake_mcpd::{Aim, Answer, CallKind, FakeMcpd, Fault, Kind, Refused, Step, Trigger, scenario};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::agent::{Agent, chunk, prompt, soon};

#[tokio::test(start_paused = true)]
async fn a_dropped_channel_ends_cleanly_or_broken_as_ordered() {
    for broken in [false, true] {
        let mcpd = FakeMcpd::start().await.unwrap();
        let agent = Agent::online(&mcpd, "llama").await.0;
        let mut response = agent.channel_response().await.unwrap();
        response.chunk().await.unwrap().expect("a hello");
        if broken {
            mcpd.break_channels()
        } else {
            mcpd.drop_channels()
        }
        assert_eq!(soon(response.chunk()).await.is_err(), broken);
        assert!(!mcpd.state().sessions[0].connected);
        assert_eq!(agent.heartbeat().await, 200, "the session lives on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_channel_stays_open_and_delivers_nothing_but_a_new_one_does() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    mcpd.go_silent();
    let _lost = mcpd.infer_stream("llama", &prompt()).unwrap();
    let silence = tokio::time::timeout(Duration::from_secs(80), channel.event()).await;
    assert!(silence.is_err(), "the channel said {silence:?}");
    let task = soon(mcpd.wait_for(|entry| entry.kind == Kind::Task)).await;
    assert!(task.note.is_some_and(|note| note.contains("half-open")));
    let mut second = agent.channel().await;
    let _call = mcpd.infer_stream("llama", &prompt()).unwrap();
    second.task().await;
}

#[tokio::test(start_paused = true)]
async fn clear_lets_a_silent_channel_speak_again() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (_agent, mut channel) = Agent::online(&mcpd, "llama").await;
    mcpd.go_silent();
    mcpd.clear_faults();
    let _call = mcpd.infer_stream("llama", &prompt()).unwrap();
    channel.task().await;
}

#[tokio::test(start_paused = true)]
async fn refused_connections_are_reset_for_a_time_while_open_ones_go_on() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (_agent, mut channel) = Agent::online(&mcpd, "llama").await;
    mcpd.refuse(Refused::Connections, Some(Duration::from_secs(5)));
    let stranger = Agent::new(&mcpd);
    assert!(stranger.call("GET", "/api/v1/llms").send().await.is_err());
    let _call = mcpd.infer_stream("llama", &prompt()).unwrap();
    channel.task().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(stranger.call("GET", "/api/v1/llms").send().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn refused_calls_are_cut_without_a_reply_until_cleared() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    mcpd.refuse(Refused::Calls, None);
    assert!(agent.register_call(&["llama"]).send().await.is_err());
    mcpd.clear_faults();
    assert_eq!(agent.register(&["llama"]).await, 200);
    let cut = mcpd.journal().into_iter().find(|entry| entry.is_call(CallKind::Register)).unwrap();
    assert_eq!((cut.status, cut.note.as_deref()), (None, Some("cut unapplied")));
}

#[tokio::test(start_paused = true)]
async fn a_delay_holds_only_its_kind_of_call_back_and_skips_as_told() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, _channel) = Agent::online(&mcpd, "llama").await;
    let aim = Aim::next(CallKind::Heartbeat).skip(1).times(2);
    mcpd.delay(aim, Duration::from_secs(3));
    let mut waits = Vec::new();
    for _ in 0..4 {
        let start = Instant::now();
        agent.call("GET", "/api/v1/llms").send().await.unwrap();
        agent.heartbeat().await;
        waits.push(start.elapsed().as_secs());
    }
    assert_eq!(waits, [0, 3, 3, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_ordered_answer_has_status_retry_after_and_body_and_applies_nothing() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    let answer = Answer::status(503).retry_after(2).body(r#"{"busy":true}"#);
    mcpd.answer(Aim::next(CallKind::Register), answer);
    let reply = agent.register_call(&["llama"]).send().await.unwrap();
    assert_eq!((reply.status().as_u16(), &reply.headers()["retry-after"]), (503, &"2".parse().unwrap()));
    assert_eq!(reply.json::<Value>().await.unwrap(), json!({"busy": true}));
    assert!(mcpd.llms().is_empty());
    assert_eq!(agent.register(&["llama"]).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_200_can_be_a_proxys_html_page() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let aim = Aim::next(CallKind::Register);
    mcpd.answer(aim, Answer::status(200).html());
    let reply = Agent::new(&mcpd).register_call(&["llama"]).send().await.unwrap();
    assert_eq!(reply.headers()["content-type"], "text/html");
    assert!(reply.text().await.unwrap().contains("<html>"));
}

#[tokio::test(start_paused = true)]
async fn a_register_reply_can_lack_its_session_id() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    mcpd.hide_session_id(1);
    assert_eq!(agent.register(&["llama"]).await, 200);
    assert_eq!(agent.session, "");
}

#[tokio::test(start_paused = true)]
async fn forgotten_sessions_are_unknown_and_the_sticky_id_revives_the_same_rows() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (mut agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let before = mcpd.llms();
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    mcpd.forget_sessions();
    assert!(!soon(call.collect()).await.is_done());
    assert!(channel.event().await.is_none());
    assert_eq!(agent.heartbeat().await, 404);
    assert_eq!(agent.chunk(&task.id, 0, "late").await, 404);
    assert_eq!(mcpd.llms()[0].status, "inactive");
    tokio::time::sleep(Duration::from_secs(1)).await;
    agent.register(&["llama"]).await;
    assert_eq!((&mcpd.llms()[0].id, mcpd.llms()[0].status), (&before[0].id, "active"));
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn a_restart_cuts_every_connection() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let agent = Agent::online(&mcpd, "llama").await.0;
    let mut response = agent.channel_response().await.unwrap();
    response.chunk().await.unwrap().expect("a hello");
    mcpd.order("delay,call=list,by=9s").unwrap();
    let (reply, ()) = tokio::join!(agent.call("GET", "/api/v1/llms").send(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        mcpd.restart();
    });
    assert!(reply.is_err());
    assert!(
        soon(response.chunk()).await.is_ok_and(|rest| rest.is_none()) || mcpd.state().sessions.is_empty()
    );
    assert_eq!(agent.heartbeat().await, 404);
}

#[tokio::test(start_paused = true)]
async fn a_task_can_be_delivered_twice() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (_agent, mut channel) = Agent::online(&mcpd, "llama").await;
    mcpd.deliver_twice(1);
    let _first = mcpd.infer_stream("llama", &prompt()).unwrap();
    let _second = mcpd.infer_stream("llama", &prompt()).unwrap();
    let ids = [channel.task().await.id, channel.task().await.id, channel.task().await.id];
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[1], ids[2]);
}

#[tokio::test(start_paused = true)]
async fn a_task_can_be_overtaken_by_the_next_event_and_waits_a_second_for_it() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (_agent, mut channel) = Agent::online(&mcpd, "llama").await;
    mcpd.overtake(2);
    let first = mcpd.infer_stream("llama", &prompt()).unwrap();
    let second = mcpd.infer_stream("llama", &prompt()).unwrap();
    let ids = [channel.task().await.id, channel.task().await.id];
    assert_eq!(ids, [second.task_id(), first.task_id()]);
    let (third, asked) = (mcpd.infer_stream("llama", &prompt()).unwrap(), Instant::now());
    assert_eq!(channel.task().await.id, third.task_id());
    assert_eq!(asked.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn raw_frames_and_garbage_reach_the_channel_as_they_are() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let agent = Agent::online(&mcpd, "llama").await.0;
    let mut response = agent.channel_response().await.unwrap();
    response.chunk().await.unwrap().expect("a hello");
    mcpd.send_raw("event: task\\ndata: {oops\\r\\n\\n");
    assert_eq!(response.chunk().await.unwrap().unwrap(), "event: task\ndata: {oops\r\n\n");
    mcpd.send_garbage();
    assert!(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_task_of_ones_own_making_is_delivered_and_its_results_are_taken() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let json = json!({"kind": "dance", "taskId": "own", "streaming": true}).to_string();
    mcpd.send_task(json);
    assert_eq!(channel.task().await.data["kind"], "dance");
    assert_eq!(agent.chunk("own", 0, "x").await, 200);
    assert_eq!(agent.part("own", 1, json!({"error": "unknown kind"})).await, 200);
    assert_eq!(agent.part("own", 2, json!({"error": "again"})).await, 404);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_on_order_ends_the_task_and_tells_the_agent() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    mcpd.fault(Fault::Cancel { task: None });
    assert_eq!(channel.named("cancel").await["taskId"], task.id.as_str());
    assert!(!soon(call.collect()).await.is_done());
    assert_eq!(agent.done(&task.id, 0).await, 404);
    mcpd.cancel("stranger");
    assert_eq!(channel.named("cancel").await["taskId"], "stranger");
}

#[tokio::test(start_paused = true)]
async fn channels_can_be_closed_right_after_their_hello() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    agent.register(&["llama"]).await;
    mcpd.close_channels(2);
    for _ in 0..2 {
        assert!(agent.channel().await.event().await.is_none());
    }
    let mut third = agent.channel().await;
    assert_eq!(third.event().await.expect("a ping").0, "ping");
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_applied_and_its_repetition_is_dropped() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    mcpd.lose_reply(Aim::next(CallKind::Result));
    assert!(agent.part_call(&task.id, 0, &chunk("once")).send().await.is_err());
    assert_eq!(agent.chunk(&task.id, 0, "once").await, 200);
    agent.done(&task.id, 1).await;
    assert_eq!(call.collect().await.text(), "once");
    let notes: Vec<_> = mcpd.journal().into_iter().filter(|entry| entry.is_call(CallKind::Result)).collect();
    assert_eq!((notes[0].note.as_deref(), notes[0].status), (Some("reply lost"), None));
    assert_eq!(notes[1].note.as_deref(), Some("repeated"));
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn faults_are_ordered_over_http_as_text_as_json_and_in_lists() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let agent = Agent::new(&mcpd);
    let bodies = [
        "answer,call=heartbeat,status=418",
        r#""answer,call=heartbeat,status=418""#,
        r#"{"kind":"answer","call":"heartbeat","status":418}"#,
        r#"[{"kind":"answer","call":"heartbeat","status":418}]"#,
    ];
    for body in bodies {
        let posted = agent.call("POST", "/_fake/faults").body(body).send().await.unwrap();
        assert_eq!(posted.status(), 200, "{body}");
        assert_eq!(agent.heartbeat().await, 418, "{body}");
    }
    agent.call("POST", "/_fake/faults").body("answer,times=0,status=418").send().await.unwrap();
    agent.call("DELETE", "/_fake/faults").send().await.unwrap();
    assert_eq!(agent.heartbeat().await, 404);
    let bad = agent.call("POST", "/_fake/faults").body("explode").send().await.unwrap();
    assert_eq!(bad.status(), 400);
    let error: Value = bad.json().await.unwrap();
    assert!(error["error"].as_str().unwrap().contains("explode"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_scenario_plays_by_time_and_by_task() {
    let scenario = r#"[
        {"atMs": 20000, "fault": {"kind": "answer", "call": "heartbeat", "status": 500}},
        {"atTask": 2, "fault": "twice"},
        {"atTask": 3, "fault": "drop"}
    ]"#;
    let mcpd = FakeMcpd::builder().steps(scenario::parse(scenario).unwrap()).start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    assert_eq!(mcpd.infer("unknown", &prompt()).await.status, 404, "no task, so it does not count");
    let _calls = [0, 1, 2].map(|_| mcpd.infer_stream("llama", &prompt()).unwrap());
    let mut ids = Vec::new();
    while let Some((event, data)) = channel.event().await {
        if event == "task" {
            ids.push(data["taskId"].clone());
        }
    }
    assert_eq!(ids.len(), 4, "one, two twice, three and then the drop: {ids:?}");
    assert_eq!(ids[1], ids[2]);
    tokio::time::sleep(Duration::from_secs(19)).await;
    assert_eq!(agent.heartbeat().await, 200);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(agent.heartbeat().await, 500);
}

#[test]
fn text_and_json_say_the_same() {
    let pairs = [
        ("drop", r#"{"kind":"drop"}"#),
        ("drop,broken=true", r#"{"kind":"drop","broken":true}"#),
        ("refuse,what=calls,for=2s", r#"{"kind":"refuse","what":"calls","for":2000}"#),
        (
            "delay,call=result,by=500ms,skip=1,times=0",
            r#"{"kind":"delay","call":"result","by":500,"skip":1,"times":0}"#,
        ),
        ("lose-reply,call=chat", r#"{"kind":"lose-reply","call":"chat"}"#),
        ("cancel,task=17", r#"{"kind":"cancel","task":"17"}"#),
        (r#"task,json={"a":1,"b":"c=d"}"#, r#"{"kind":"task","json":"{\"a\":1,\"b\":\"c=d\"}"}"#),
        (
            "answer,status=200,retry-after=3,body=a,b",
            r#"{"kind":"answer","status":200,"retry-after":3,"body":"a,b"}"#,
        ),
    ];
    for (text, json) in pairs {
        let from_text = Step::parse(text).unwrap();
        assert_eq!(from_text, Step::from_json(serde_json::from_str(json).unwrap()).unwrap(), "{text}");
        let again = serde_json::to_value(&from_text.fault).unwrap();
        assert_eq!(from_text.fault, Step::from_json(again).unwrap().fault, "{text}");
    }
    let late = Step::parse("silent,after=1m").unwrap();
    assert_eq!(late.trigger, Trigger::After(Duration::from_secs(60)));
    assert_eq!(Step::parse("twice,at-task=3").unwrap().trigger, Trigger::AtTask(3));
}

#[test]
fn what_is_not_understood_is_refused_with_a_reason() {
    let cases = [
        ("", "unknown variant"),
        ("explode", "explode"),
        ("drop,sideways=true", "sideways"),
        ("drop,broken", "no value"),
        ("delay,call=result", "by"),
        ("delay,by=soon", "soon"),
        ("answer,call=nothing,status=1", "nothing"),
        ("drop,after=1s,at-task=2", "exclude"),
    ];
    for (text, reason) in cases {
        let error = Step::parse(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    for scenario in [
        "{}",
        r#"[{"fault":"drop"}]"#,
        r#"[{"atMs":1,"atTask":1,"fault":"drop"}]"#,
        r#"[{"atMs":1,"fault":"no"}]"#,
    ] {
        assert!(scenario::parse(scenario).is_err(), "{scenario}");
    }
}

#[test]
fn the_readme_has_every_fault_of_the_grammar_and_its_scenario_is_one() {
    let readme = include_str!("../../README.md");
    let grammar = fake_mcpd::GRAMMAR;
    let faults = grammar
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let names: Vec<_> = faults.filter_map(|line| line.split([',', '[', ' ']).next()).collect();
    assert_eq!(names.len(), 20, "{names:?}");
    for name in names {
        assert!(readme.contains(&format!("| `{name}")), "{name}");
        let unknown = Step::parse(name).is_err_and(|error| error.to_string().contains("unknown variant"));
        assert!(!unknown, "{name}");
    }
    let json = readme.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(scenario::parse(json).unwrap().len(), 2);
}
