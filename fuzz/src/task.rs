//! The JSON of a task event: a task comes out untouched, and whoever can be answered is answered.

use serde_json::{Value, value::RawValue};

use crate::{
    domain::{MAX_TASK_ID_BYTES, Task, TaskId},
    upstream::{
        contract::{ReadFacts, idempotency_key, restart_key, result_path},
        task_event::{BadTask, read_task},
    },
};

/// Reads one event's data; the channel's own reader has made it text before.
pub fn check(data: &[u8]) {
    let data = &*String::from_utf8_lossy(data);
    match read_task(data, ReadFacts::OfAll) {
        Ok(task) => {
            check_task(&task);
            check_request(&task, data);
        }
        Err(BadTask::Answerable(task, failure)) => {
            check_task(&task);
            assert_eq!(failure.status(), 400);
            assert!(!failure.message.chars().any(char::is_control), "{failure}");
        }
        Err(BadTask::Lost(why)) => assert!(answerable_id(data).is_none(), "its caller hangs: {why}"),
    }
}

/// Everything that later travels in paths, headers and spans can.
fn check_task(task: &Task) {
    assert!((1..=MAX_TASK_ID_BYTES).contains(&task.id.as_str().len()));
    let path = result_path(&task.id).expect("a path for its results");
    for text in [&path, &idempotency_key(&task.id, 0), &restart_key(&task.id)] {
        assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text}");
    }
    assert_eq!(path.matches('/').count(), 6, "the id stays one segment: {path}");
    assert!(task.trace_context.values().map(String::len).sum::<usize>() <= 1024);
    assert!(task.caller.iter().all(|caller| caller.chars().count() <= 64));
}

/// The request is an object, byte for byte as it stands in the event.
fn check_request(task: &Task, data: &str) {
    let request = std::str::from_utf8(&task.request).expect("text");
    assert!(request.starts_with('{') && data.contains(request));
    assert!(serde_json::from_str::<&RawValue>(request).is_ok(), "no JSON: {request}");
}

/// The event's task id where a plain reading finds exactly one that can be used.
fn answerable_id(data: &str) -> Option<TaskId> {
    // A name twice, or one with escapes, may be read in more ways than one.
    if data.matches("taskId").count() != 1 || data.contains('\\') {
        return None;
    }
    let event: Value = serde_json::from_str(data).ok()?;
    let id = TaskId::new(event.as_object()?.get("taskId")?.as_str()?).ok()?;
    result_path(&id).is_some().then_some(id)
}
