//! The tasks that were under way when a previous run of the agent was killed. None of them is run again; each gets its end.

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

/// How long the ends of orphaned tasks are offered to an mcpd that does not accept them: as long as a task may take by default.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(600);
/// Wait between those attempts.
const ORPHAN_RETRY: Duration = Duration::from_secs(2);

/// Ends orphaned tasks, each with one error that mcpd drops if it comes twice; `over` is told of each.
pub(super) async fn end_orphans(mcpd: Mcpd, orphans: Vec<TaskId>, over: mpsc::Sender<TaskId>) {
    let until = Instant::now() + ORPHAN_PATIENCE;
    for id in orphans {
        let mut posts = ResultPosts::new(mcpd.clone(), &id);
        loop {
            let asked = match posts.post(&restart_key(&id), RESTARTED.into()).await.1 {
                _ if Instant::now() >= until => break,
                PartReply::NotApplied(_, asked) | PartReply::Ambiguous(_, asked) => asked,
                PartReply::Unauthorized(..) => None,
                _ => break,
            };
            let asked = asked.unwrap_or_default().min(ORPHAN_PATIENCE);
            sleep(ORPHAN_RETRY.max(asked)).await;
        }
        let _ = over.send(id).await;
    }
}
