//! The tasks that a former life of the agent left behind when it was killed.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::{
    domain::TaskId,
    upstream::{
        client::Mcpd,
        contract::{RESTARTED, restart_key},
        post::{PartReply, ResultPosts},
    },
};

/// How long the ends of a former life's tasks are offered to an mcpd that does not accept them: as long as a task may take by default.
const RESTART_PATIENCE: Duration = Duration::from_secs(600);
/// Wait between those attempts.
const RESTART_RETRY: Duration = Duration::from_secs(2);
/// Ends the tasks of a former life, each with one error that mcpd drops if it comes twice.
pub(super) async fn end_left_behind(mcpd: Mcpd, left: Vec<TaskId>, over: mpsc::Sender<TaskId>) {
    let until = Instant::now() + RESTART_PATIENCE;
    for id in left {
        let mut posts = ResultPosts::new(mcpd.clone(), &id);
        loop {
            let asked = match posts.post(&restart_key(&id), RESTARTED.into()).await.1 {
                _ if Instant::now() >= until => break,
                PartReply::NotApplied(_, asked) | PartReply::Ambiguous(_, asked) => asked,
                PartReply::Unauthorized(..) => None,
                _ => break,
            };
            let asked = asked.unwrap_or_default().min(RESTART_PATIENCE);
            sleep(RESTART_RETRY.max(asked)).await;
        }
        let _ = over.send(id).await;
    }
}
