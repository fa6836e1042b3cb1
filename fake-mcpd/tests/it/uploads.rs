//! One upload per answer: lines applied as they come, and what goes wrong on the way.

use std::time::Duration;

use fake_mcpd::{Aim, Answer, CallKind, Collected, FakeMcpd, Kind, Rule};
use serde_json::json;
use tokio::time::timeout;

use crate::agent::{Agent, Channel, Upload, chunk, done, prompt, soon};

/// A stream whose part 0 was posted, with its upload.
struct Stream {
    agent: Agent,
    channel: Channel,
    call: fake_mcpd::Call,
    task: String,
    upload: Upload,
}

impl Stream {
    async fn begin(mcpd: &FakeMcpd) -> Self {
        let (agent, mut channel) = Agent::online(mcpd, "llama").await;
        let call = mcpd.infer_stream("llama", &prompt()).unwrap();
        let task = channel.task().await.id;
        assert_eq!(agent.chunk(&task, 0, "0").await, 200);
        let upload = agent.upload(&task);
        Self { agent, channel, call, task, upload }
    }

    async fn lines(&mut self, numbers: std::ops::Range<u64>) {
        for n in numbers {
            self.upload.line(n, chunk(&n.to_string())).await;
        }
    }

    /// Opens the upload again, from this part on, and ends the answer with part `end`.
    async fn end_again(mut self, from: u64, end: u64) -> Collected {
        self.upload = self.agent.upload(&self.task);
        self.lines(from..end).await;
        self.upload.line(end, done()).await;
        assert_eq!(self.upload.reply().await, Some((200, json!(end + 1))));
        soon(self.call.collect()).await
    }
}

#[tokio::test(start_paused = true)]
async fn lines_reach_the_caller_as_they_come_and_the_last_one_is_answered() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut s = Stream::begin(&mcpd).await;
    s.call.chunk().await.unwrap();
    for n in 1..4 {
        s.upload.raw("\n").await;
        s.lines(n..n + 1).await;
        assert!(soon(s.call.chunk()).await.is_some(), "it comes before the upload ends");
    }
    assert_eq!(s.channel.named("received").await, json!({"taskId": s.task, "next": 2}));
    assert_eq!(s.channel.named("received").await, json!({"taskId": s.task, "next": 4}), "a second later");
    s.upload.line(4, done()).await;
    assert_eq!(s.upload.reply().await, Some((200, json!(5))));
    assert!(s.call.collect().await.is_done());
    assert_eq!(mcpd.violations(), []);
    let parts: Vec<_> = mcpd.journal().into_iter().filter(|entry| entry.is_part()).collect();
    assert_eq!(parts.len(), 5);
    assert!(parts.iter().all(|part| part.status == Some(200) && part.key.is_some()), "{parts:?}");
    assert_eq!(mcpd.verdict().counts.uploads, 1);
}

#[tokio::test(start_paused = true)]
async fn without_the_feature_there_is_no_such_path() {
    let mcpd = FakeMcpd::builder().result_stream(false).start().await.unwrap();
    let mut s = Stream::begin(&mcpd).await;
    s.lines(1..2).await;
    let Stream { upload, .. } = s;
    assert_eq!(upload.reply().await.unwrap().0, 404);
    assert_eq!(mcpd.violations()[0].rule, Rule::UnknownPath);
}

#[tokio::test(start_paused = true)]
async fn a_broken_upload_loses_its_last_line_or_not_and_goes_on_where_it_was() {
    for applied in [false, true] {
        let mcpd = FakeMcpd::start().await.unwrap();
        mcpd.break_upload(2, applied);
        let mut s = Stream::begin(&mcpd).await;
        s.lines(1..3).await;
        let broken = std::mem::replace(&mut s.upload, s.agent.upload("nobody"));
        assert_eq!(broken.reply().await, None);
        let journal = mcpd.journal();
        assert_eq!(journal.iter().filter(|entry| entry.kind == Kind::Line).count(), 1 + usize::from(applied));
        let answer = s.end_again(1, 4).await;
        assert_eq!((answer.text().as_str(), answer.is_done()), ("0123", true));
        assert_eq!(mcpd.violations(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_can_break_after_a_number_of_bytes() {
    for (order, lines) in [("bytes=120", 0), ("bytes=120,applied=true", 1), ("applied=true", 1)] {
        let mcpd = FakeMcpd::start().await.unwrap();
        mcpd.order(&format!("break-upload,{order}")).unwrap();
        let mut s = Stream::begin(&mcpd).await;
        let long = "x".repeat(400);
        let two =
            format!("{}\n{}\n", json!({"n": 1, "chunk": {"data": "{}"}}), json!({"n": 2, "error": long}));
        s.upload.raw(if order == "applied=true" { &two[..=36] } else { &two }).await;
        assert_eq!(s.upload.reply().await, None);
        let came = mcpd.journal().iter().filter(|entry| entry.kind == Kind::Line).count();
        assert_eq!(came, lines, "{order}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_line_leaves_a_gap_that_is_told_with_what_is_due() {
    let mcpd = FakeMcpd::start().await.unwrap();
    mcpd.lose_line(2);
    let mut s = Stream::begin(&mcpd).await;
    s.lines(1..4).await;
    let gap = std::mem::replace(&mut s.upload, s.agent.upload("nobody"));
    assert_eq!(gap.reply().await, Some((409, json!(2))));
    assert_eq!(s.end_again(2, 4).await.text(), "0123");
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_held_back_reaches_nobody_before_it_ends() {
    let mcpd = FakeMcpd::start().await.unwrap();
    mcpd.hold_uploads(1);
    let mut s = Stream::begin(&mcpd).await;
    s.lines(1..3).await;
    assert!(timeout(Duration::from_secs(5), s.channel.named("received")).await.is_err());
    assert!(!mcpd.journal().iter().any(|entry| entry.kind == Kind::Line));
    drop(s.upload);
    for n in 1..3 {
        assert_eq!(s.agent.part(&s.task, n, chunk(&n.to_string())).await, 200);
    }
    assert_eq!(s.agent.done(&s.task, 3).await, 200);
    assert_eq!(s.call.collect().await.text(), "012");
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn an_upload_is_answered_early_on_order_and_when_nobody_waits_any_more() {
    let mcpd = FakeMcpd::start().await.unwrap();
    mcpd.answer(Aim::next(CallKind::ResultStream), Answer::status(503));
    let mut s = Stream::begin(&mcpd).await;
    let early = std::mem::replace(&mut s.upload, s.agent.upload(&s.task));
    assert_eq!(early.reply().await.unwrap().0, 503);
    s.lines(1..2).await;
    s.channel.named("received").await;
    drop(s.call);
    assert_eq!(s.upload.reply().await.unwrap().0, 404);
    assert_eq!(s.agent.upload("stranger").reply().await.unwrap().0, 404);
}

#[tokio::test(start_paused = true)]
async fn lost_received_events_and_a_lost_reply_are_followed_by_those_of_the_next_upload() {
    let mcpd = FakeMcpd::start().await.unwrap();
    mcpd.lose_received(1);
    mcpd.lose_reply(Aim::next(CallKind::ResultStream));
    let mut s = Stream::begin(&mcpd).await;
    s.upload.line(1, done()).await;
    let lost = std::mem::replace(&mut s.upload, s.agent.upload("nobody"));
    assert_eq!(lost.reply().await, None);
    let answer = s.end_again(1, 1).await;
    assert!(answer.is_done(), "the end came once");
    assert_eq!(mcpd.verdict().counts.tasks, 1);
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_may_not_do_in_an_upload_is_found() {
    let lines: [(&[(u64, serde_json::Value)], Rule); 5] = [
        (&[(0, chunk("0"))], Rule::PartZeroByUpload),
        (&[(1, chunk("1")), (3, chunk("3"))], Rule::PartOutOfOrder),
        (&[(1, chunk("1")), (1, chunk("1"))], Rule::PartOutOfOrder),
        (&[(1, json!({"chunk": 7}))], Rule::MalformedResult),
        (&[(1, json!({"status": 200, "body": {}}))], Rule::StatusInStream),
    ];
    for (lines, rule) in lines {
        let mcpd = FakeMcpd::start().await.unwrap();
        let mut s = Stream::begin(&mcpd).await;
        for (n, part) in lines {
            s.upload.line(*n, part.clone()).await;
        }
        s.upload.raw("no line\n").await;
        s.upload.reply().await;
        assert!(mcpd.violations().iter().any(|v| v.rule == rule), "{rule:?}: {:?}", mcpd.violations());
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_sent_again_has_the_same_bytes_whichever_way_it_goes() {
    for (text, violations) in [("1", 0), ("one", 1)] {
        let mcpd = FakeMcpd::start().await.unwrap();
        let mut s = Stream::begin(&mcpd).await;
        s.lines(1..2).await;
        s.channel.named("received").await;
        drop(s.upload);
        assert_eq!(s.agent.chunk(&s.task, 1, text).await, 200);
        let found = mcpd.violations();
        assert!(found.iter().all(|v| v.rule == Rule::RepeatedKeyOtherBytes), "{found:?}");
        assert_eq!(found.len(), violations);
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_after_the_end_is_found() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut s = Stream::begin(&mcpd).await;
    s.upload.line(1, done()).await;
    s.upload.reply().await;
    s.upload = s.agent.upload(&s.task);
    s.upload.line(2, chunk("late")).await;
    assert_eq!(s.upload.reply().await.unwrap().0, 404);
    assert_eq!(mcpd.violations()[0].rule, Rule::ResultAfterEnd);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_a_failure_has_overtaken_is_dropped_and_nobodys_fault() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut s = Stream::begin(&mcpd).await;
    assert_eq!(s.agent.part(&s.task, 2, json!({"error": "part 1 hangs"})).await, 200);
    s.lines(1..2).await;
    s.channel.named("received").await;
    assert_eq!(s.call.collect().await.text(), "0");
    assert_eq!(mcpd.violations(), []);
}
