//! Turns the data of a `task` event into a task. This is a pure function, apart from the channel, because the data is untrusted text and
//! the function is fuzzed.

use std::collections::BTreeMap;

use bytes::Bytes;
use eventsource_stream::{Refused, TooLarge};
use serde_json::value::RawValue;

use super::contract::{INFER_KIND, ReadFacts, TaskEvent, is_answerable, readable_task_id};
use crate::domain::{Failure, FailureCode, MAX_TRACESTATE_BYTES, Printable, RequestFacts, Task, TaskId};

/// Longest display name of a caller that is kept, in characters.
const MAX_CALLER: usize = 64;
/// Longest `traceparent` that is kept, in bytes: version 00 has 55, and later versions may be longer.
const MAX_TRACEPARENT: usize = 64;

/// Why a task event is no task.
#[derive(Debug)]
pub enum BadTask {
    /// Its id can be read, so its caller gets an error.
    Answerable(Box<Task>, Failure),
    /// Not even that.
    Lost(String),
}

/// Reads the data of one `task` event.
///
/// # Errors
/// If there is no task in it that can be run; with the error that its caller gets, if there is one.
pub fn read_task(data: &str, facts: ReadFacts) -> Result<Task, BadTask> {
    let event = TaskEvent::read(data, facts).map_err(|error| unreadable(data, &error))?;
    let id = TaskId::new(&event.task_id).map_err(|why| BadTask::Lost(format!("its taskId {why}")))?;
    if !is_answerable(&id) {
        return Err(BadTask::Lost("its taskId cannot be put into a URL".to_owned()));
    }
    let task = Task {
        id,
        llm: event.llm_name.as_ref().to_owned(),
        streaming: event.streaming,
        request: Bytes::copy_from_slice(event.request.unwrap_or_default().as_bytes()),
        deadline: event.deadline(),
        asked: event.asked.clone(),
        trace_context: trace_context(&event),
        caller: event.caller.map(|c| c.chars().take(MAX_CALLER).collect::<String>().into()),
    };
    let bad = if event.kind != INFER_KIND {
        let kind: String = event.kind.chars().take(MAX_CALLER).collect();
        Some(format!("this agent does not know tasks of kind '{}'", Printable(&kind)))
    } else if !task.request.starts_with(b"{") {
        Some("the task has no OpenAI request body".to_owned())
    } else {
        None
    };
    match bad {
        Some(why) => Err(BadTask::Answerable(Box::new(task), Failure::new(FailureCode::BadTask, why))),
        None => Ok(task),
    }
}

/// The task whose event was too large to be read, and the error that its caller gets, if what is kept of the event tells its id.
pub fn oversized_task(refused: &Refused) -> Option<(Task, Failure)> {
    let what = match refused.why {
        TooLarge::Event { limit } | TooLarge::Endless { limit } => {
            format!(
                "the request is larger than {limit} bytes, the most that the agent takes; its --event-limit can raise it"
            )
        }
        TooLarge::Id => format!("the task cannot be read: {}", refused.why),
    };
    let failure = Failure::new(FailureCode::TooLarge, what);
    Some((nameless(oversized_id(&refused.beginning, &refused.ending)?), failure))
}

/// The id in the beginning or in the ending of a task event. Two that differ are none.
fn oversized_id(beginning: &str, ending: &str) -> Option<TaskId> {
    if !beginning.trim_ascii_start().starts_with('{') {
        return None;
    }
    // A number that is cut off would be another id; what comes before a comma is complete.
    let first = beginning.rfind(',').and_then(|comma| readable_id(&beginning[..comma]));
    let last = last_members(ending).and_then(|members| readable_id(&format!("{{{members}")));
    match (first, last) {
        (Some(first), Some(last)) if first != last => None,
        (first, last) => first.or(last),
    }
}

/// The last members of a JSON object whose text ends with `ending`, its closing brace included; `None` if none begins in there.
///
/// The text is read from its end, where no string is open, so it is sure which quotes begin and end strings: outside of strings there are
/// no backslashes, and inside a quote has an odd number of them before it. So a name in a request's text, or in an object within it, is
/// never taken for one of the object's own.
fn last_members(ending: &str) -> Option<&str> {
    let (bytes, mut depth, mut in_string, mut found) = (ending.as_bytes(), 0_usize, false, None);
    for (at, byte) in bytes.iter().enumerate().rev() {
        match byte {
            b'"' => {
                let escapes = bytes[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
                in_string ^= escapes % 2 == 0;
            }
            _ if in_string => {}
            b'}' | b']' => depth += 1,
            b'{' | b'[' if depth <= 1 => break,
            b'{' | b'[' => depth -= 1,
            b',' if depth == 1 => found = Some(at + 1),
            _ => {}
        }
    }
    let members = &ending[found?..];
    serde_json::from_str::<&RawValue>(&format!("{{{members}")).is_ok().then_some(members)
}

fn readable_id(data: &str) -> Option<TaskId> {
    TaskId::new(&readable_task_id(data)?).ok().filter(is_answerable)
}

/// A task of which nothing is known but its id.
fn nameless(id: TaskId) -> Task {
    Task {
        id,
        llm: String::new(),
        streaming: false,
        request: Bytes::new(),
        asked: RequestFacts::default(),
        deadline: None,
        trace_context: BTreeMap::new(),
        caller: None,
    }
}

/// A task event that does not parse: answered where its id can be read, so that no caller hangs.
fn unreadable(data: &str, error: &serde_json::Error) -> BadTask {
    match readable_id(data) {
        Some(id) => {
            let why =
                format!("the task event cannot be read at line {}, column {}", error.line(), error.column());
            BadTask::Answerable(Box::new(nameless(id)), Failure::new(FailureCode::BadTask, why))
        }
        None => BadTask::Lost(format!("no task at line {}, column {}", error.line(), error.column())),
    }
}

fn trace_context(event: &TaskEvent<'_>) -> BTreeMap<String, String> {
    let mut context = BTreeMap::new();
    if let Some(parent) = event.traceparent.as_ref().filter(|p| p.len() <= MAX_TRACEPARENT) {
        context.insert("traceparent".to_owned(), parent.clone());
        if let Some(state) = event.tracestate.as_ref().filter(|s| s.len() <= MAX_TRACESTATE_BYTES) {
            context.insert("tracestate".to_owned(), state.clone());
        }
    }
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(data: &str) -> (String, FailureCode) {
        match read_task(data, ReadFacts::OfStreams) {
            Err(BadTask::Answerable(task, failure)) => (task.id.as_str().to_owned(), failure.code),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_task_event_becomes_a_task_with_its_request_untouched() {
        let task = read_task(r#"{"kind":"infer","taskId":"t/1","llmName":"a","streaming":true,"request":{ "x" : 1.0 },"deadlineMs":1500,"caller":"bob"}"#, ReadFacts::OfStreams).unwrap();
        assert_eq!(&task.request[..], br#"{ "x" : 1.0 }"#);
        assert_eq!((task.id.as_str(), task.llm.as_str(), task.streaming), ("t/1", "a", true));
        assert_eq!(
            (task.deadline, task.caller.as_deref()),
            (Some(std::time::Duration::from_millis(1500)), Some("bob"))
        );
    }

    #[test]
    fn a_tracestate_is_kept_as_far_as_it_is_carried_on() {
        for (len, kept) in [(MAX_TRACESTATE_BYTES, true), (MAX_TRACESTATE_BYTES + 1, false)] {
            let state = format!("a={}", "x".repeat(len - 2));
            let event = serde_json::json!({"kind": "infer", "taskId": "t", "request": {}, "traceparent": "p", "tracestate": state});
            let task = read_task(&event.to_string(), ReadFacts::OfStreams).unwrap();
            assert_eq!(task.trace_context.contains_key("tracestate"), kept, "{len} bytes");
        }
    }

    #[test]
    fn a_bad_task_event_is_answered_where_its_id_can_be_read() {
        assert_eq!(answer(r#"{"kind":"dance","taskId":"t1"}"#), ("t1".to_owned(), FailureCode::BadTask));
        assert_eq!(answer(r#"{"kind":7,"taskId":"t2"}"#), ("t2".to_owned(), FailureCode::BadTask));
        assert_eq!(
            answer(r#"{"kind":"infer","taskId":"t3","llmName":"a"}"#),
            ("t3".to_owned(), FailureCode::BadTask)
        );
    }

    fn oversized(beginning: &str, ending: &str) -> Option<String> {
        oversized_id(beginning, ending).map(|id| id.as_str().to_owned())
    }

    #[test]
    fn a_task_that_is_too_large_is_answered_where_its_beginning_has_the_whole_id() {
        let id = |beginning| oversized(beginning, "");
        assert_eq!(id(r#"{"kind":"infer","taskId":"t1","request":{"messages":["xx"#).as_deref(), Some("t1"));
        assert_eq!(id(r#"{"taskId":12,"llmName"#).as_deref(), Some("12"));
        for beginning in [
            "",
            r#"{"kind":"infer","taskId":12"#,
            r#"{"kind":"infer","taskId":"t,1"#,
            r#"{"request":{"taskId":"no","x"#,
            r#"["taskId","t1","#,
        ] {
            assert_eq!(id(beginning), None, "{beginning}");
        }
    }

    #[test]
    fn a_task_that_is_too_large_is_answered_where_its_ending_has_the_whole_id() {
        for ending in [
            r#"xx"}]},"taskId":"t1"}"#,
            r#"x\\"}]} , "taskId" : "t1" , "deadlineMs" : 7 } "#,
            r#"xx,\"taskId\":\"no\""}],"taskId":"no"},"caller":"\\\"}","x":[{"taskId":"no"},1],"taskId":"t1"}"#,
        ] {
            assert_eq!(oversized(r#"{"request":{"messages":["#, ending).as_deref(), Some("t1"), "{ending}");
        }
    }

    #[test]
    fn an_id_that_may_be_somebody_elses_is_none() {
        let beginning = r#"{"kind":"infer","request":{"messages":["#;
        for ending in [
            "",
            r#""taskId":"no"}"#,
            r#"xx","taskId":"no"}}"#,
            r#"xx","taskId":"no"}]}}"#,
            r#"xx\",\"taskId\":\"no\"}"}}"#,
            r#"xx"}},"taskId":"no""#,
            r#"xx"}},"taskId":"no"}}"#,
            r#"xx"}},"taskId":"no"},"#,
            r#"xx"}},"taskId":"no" no}"#,
        ] {
            assert_eq!(oversized(beginning, ending), None, "{ending}");
        }
        let other = r#"{"taskId":"one","request":{"messages":["#;
        assert_eq!(oversized(other, r#"xx"}},"taskId":"two"}"#), None);
        assert_eq!(oversized(other, r#"xx"}},"taskId":"one"}"#).as_deref(), Some("one"));
    }

    proptest::proptest! {
        /// Wherever a valid event is cut, its ending gives its own id or none.
        #[test]
        fn an_ending_never_gives_the_id_of_something_inside_the_request(
            text in r#"([a"\\\\,:{}\[\]]|\{"taskId":"no"\}|,"taskId":"no"){0,12}"#,
            behind in proptest::bool::ANY,
            cut in 0..400_usize,
        ) {
            let mut event = serde_json::json!({"request": {"a": [text, {"taskId": "no"}], "taskId": "no"}});
            event["llmName"] = text.clone().into();
            if behind {
                event["taskId"] = "own".into();
            }
            let event = event.to_string();
            let ending = &event[event.ceil_char_boundary(cut.min(event.len()))..];
            let id = oversized(r#"{"request":{"#, ending);
            proptest::prop_assert!(id.is_none() || behind && id.as_deref() == Some("own"), "{:?} of {}", id, ending);
        }
    }

    #[test]
    fn a_task_event_without_a_usable_id_is_lost_and_says_why() {
        for data in [
            "",
            "no json",
            r#"{"kind":"infer"}"#,
            r#"{"kind":"infer","taskId":""}"#,
            r#"{"kind":"infer","taskId":".."}"#,
        ] {
            assert!(matches!(read_task(data, ReadFacts::OfAll), Err(BadTask::Lost(_))), "{data}");
        }
    }
}
