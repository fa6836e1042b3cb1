use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{
    domain::{Delta, RequestFacts, TaskId},
    telemetry::{ChannelTrace, Handle},
};

/// Room for two tasks of [`OUTPUT`] and not for three.
const ROOM: usize = 256 << 10;
const OUTPUT: usize = 100 << 10;

fn outbox(room: &MemoryBudget, streaming: bool) -> Arc<Outbox> {
    let task = Arc::new(Task {
        id: TaskId::new("t").expect("a good id"),
        llm: "llm".to_owned(),
        streaming,
        request: Bytes::new(),
        asked: RequestFacts::default(),
        deadline: None,
        trace_context: BTreeMap::new(),
        caller: None,
    });
    let trace = TaskTrace::start(&Handle::off(), &task, &ChannelTrace::default());
    Outbox::new(task, room, trace)
}

fn output() -> Output {
    Output::Delta(Delta { content: "x".repeat(OUTPUT), ..Delta::default() })
}

fn code(taken: Taken) -> Option<FailureCode> {
    if let Taken::Broken(failure) = taken { Some(failure.code) } else { None }
}

fn soon() -> std::time::Instant {
    std::time::Instant::now() + Duration::from_secs(1)
}

/// The end that the delivery is given.
fn end_of(outbox: &Outbox) -> End {
    match outbox.take() {
        Some(Next::End(end, _)) => end,
        _ => panic!("nothing has ended"),
    }
}

#[test]
fn what_all_tasks_hold_together_is_bounded_for_streams_and_gathered_answers() {
    for streaming in [true, false] {
        let room = MemoryBudget::new(ROOM);
        let outboxes: Vec<_> = (0..3).map(|_| outbox(&room, streaming)).collect();
        assert_eq!(outboxes[0].output(output()), Taken::Accepted);
        assert_eq!(outboxes[1].output(output()), Taken::Accepted);
        let third = outboxes[2].output(output());
        assert_eq!(code(third), Some(FailureCode::SlowConsumer), "streaming: {streaming}");
        drop(outboxes);
        assert_eq!(room.taken(), 0);
    }
}

#[test]
fn a_stream_that_grows_token_by_token_meets_the_bound_too() {
    let room = MemoryBudget::new(ROOM);
    let outbox = outbox(&room, true);
    let token = || Output::Delta(Delta { content: "0123456789".repeat(100), ..Delta::default() });
    let taken = (0..10_000).take_while(|_| outbox.output(token()) == Taken::Accepted).count();
    assert!((200..=ROOM / 1000).contains(&taken), "{taken} pieces of 1000 bytes in 256 KiB");
}

#[test]
fn a_gathered_answer_that_was_taken_apart_meets_the_bound_too() {
    let room = MemoryBudget::new(ROOM);
    let outbox = outbox(&room, false);
    // What belongs to another choice is not merged into the part that waits.
    let choice = |n: usize| {
        let content = "x".repeat(OUTPUT);
        let chunk = format!(r#"{{"choices":[{{"index":{n},"delta":{{"content":"{content}"}}}}]}}"#);
        Output::Raw(chunk.into())
    };
    let refused = (0..10).map(|n| outbox.output(choice(n))).position(|taken| taken != Taken::Accepted);
    assert_eq!(refused, Some(2), "two choices have room and a third one has not");
}

#[test]
fn a_part_under_way_takes_room_until_mcpd_has_it() {
    let room = MemoryBudget::new(ROOM);
    let (first, second) = (outbox(&room, true), outbox(&room, true));
    for _ in 0..2 {
        assert_eq!(first.output(output()), Taken::Accepted);
        assert!(matches!(first.take(), Some(Next::Part(_))));
        first.posted();
    }
    assert_eq!(first.output(output()), Taken::Accepted);
    assert!(matches!(first.take(), Some(Next::Part(_))));
    assert_eq!(first.output(output()), Taken::Accepted);
    assert_eq!(code(second.output(output())), Some(FailureCode::SlowConsumer));
    first.posted();
    assert_eq!(second.output(output()), Taken::Accepted);
}

#[test]
fn a_whole_answer_without_room_ends_as_a_slow_consumer() {
    let room = MemoryBudget::new(ROOM);
    let outboxes: Vec<_> = (0..3).map(|_| outbox(&room, false)).collect();
    let answer = || End::Answer(Outcome::Body(vec![b'x'; OUTPUT].into()));
    outboxes.iter().for_each(|outbox| outbox.end(answer(), soon()));
    assert_eq!(end_of(&outboxes[1]), answer());
    let End::Failed(failure) = end_of(&outboxes[2]) else { panic!("there was room") };
    assert_eq!(failure.code, FailureCode::SlowConsumer);
}

#[test]
fn a_failure_without_room_for_the_providers_own_words_says_so_in_ours() {
    let room = MemoryBudget::new(ROOM);
    let outboxes: Vec<_> = (0..3).map(|_| outbox(&room, false)).collect();
    let failure = || Failure {
        body: vec![b' '; OUTPUT].into(),
        ..Failure::new(FailureCode::ContextLength, "it is too long")
    };
    outboxes.iter().for_each(|outbox| outbox.end(End::Failed(failure()), soon()));
    assert_eq!(end_of(&outboxes[1]), End::Failed(failure()));
    let End::Failed(short) = end_of(&outboxes[2]) else { panic!("it is a failure still") };
    assert_eq!((short.code, &*short.message), (FailureCode::ContextLength, "it is too long"));
    assert!(short.body.is_empty() && room.taken() <= ROOM);
}

#[test]
fn a_small_answer_always_has_room() {
    let room = MemoryBudget::new(0);
    let (stream, plain) = (outbox(&room, true), outbox(&room, false));
    let small = Output::Delta(Delta { content: "hello".to_owned(), ..Delta::default() });
    assert_eq!(stream.output(small), Taken::Accepted);
    plain.end(End::Answer(Outcome::Body("{}".into())), soon());
    assert!(matches!(end_of(&plain), End::Answer(_)));
}

#[test]
fn an_answer_that_is_whole_takes_room_until_its_task_is_over() {
    for streaming in [true, false] {
        let room = MemoryBudget::new(ROOM);
        let outbox = outbox(&room, streaming);
        assert_eq!(outbox.output(output()), Taken::Accepted);
        let answer = match streaming {
            true => outbox.finished(false).map(|parts| parts.concat().len()),
            false => outbox.gathered().map(|body| body.len()),
        };
        let answer = answer.expect("it is whole");
        assert!(room.taken() >= answer, "{} of {answer} bytes, streaming: {streaming}", room.taken());
        drop(outbox);
        assert_eq!(room.taken(), 0);
    }
}

#[test]
fn what_comes_after_the_end_is_counted_and_not_sent() {
    let outbox = outbox(&MemoryBudget::new(ROOM), true);
    let failed = End::Failed(Failure::new(FailureCode::IdleTokenTimeout, "nothing came"));
    outbox.end(failed.clone(), soon());
    assert_eq!((outbox.output(output()), outbox.late()), (Taken::Closed, 1));
    assert_eq!(end_of(&outbox), failed);
}

#[test]
fn a_failed_task_keeps_its_reason_for_the_owner_and_not_the_words_that_may_quote_the_prompt() {
    let reason = |code, message: &str| {
        let outbox = outbox(&MemoryBudget::new(ROOM), true);
        outbox.summary(&End::Failed(Failure::new(code, message))).reason
    };
    assert_eq!(reason(FailureCode::ProviderLost, "it went away").as_deref(), Some("it went away"));
    let refused = reason(FailureCode::InvalidRequest, "cannot read 'my prompt'");
    assert_eq!(refused.as_deref(), Some("status 400, invalid_request_error, invalid_request"));
    assert_eq!(outbox(&MemoryBudget::new(ROOM), true).summary(&End::Nobody).reason, None);
}
