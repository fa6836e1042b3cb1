//! The record of the tasks under way, on disk, and what becomes of those that a previous run left in it.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::mpsc;
use tracing::info;

use super::{files::TaskFile, orphans::end_orphans, spawner::Spawner};
use crate::{domain::TaskId, upstream::client::Mcpd};

/// The record of the tasks under way.
pub(super) struct Journal {
    file: TaskFile,
    /// Orphaned tasks that are not being ended yet, each with the URL of the mcpd that is to be told.
    orphans: Vec<(TaskId, Option<Arc<str>>)>,
    /// Told of every orphaned task that has its end.
    over: mpsc::Sender<TaskId>,
    spawner: Spawner,
}

impl Journal {
    pub(super) fn open(path: PathBuf, over: mpsc::Sender<TaskId>, spawner: Spawner) -> Self {
        let (file, orphans) = TaskFile::open(path);
        Self { file, orphans, over, spawner }
    }

    /// A task came in from the mcpd at `url`. It is on disk only after [`Journal::flush`].
    pub(super) fn begun(&mut self, id: &TaskId, url: Option<&str>) {
        self.file.begun(id, url);
    }

    /// A task is over, of this run or of a previous one.
    pub(super) fn over(&mut self, id: &TaskId) {
        self.file.over(id);
    }

    /// Writes what has changed.
    pub(super) fn flush(&mut self) {
        self.file.flush();
    }

    /// Whether a previous run had this task of the mcpd at `url`, and it has had no end yet.
    pub(super) fn is_orphan(&self, id: &TaskId, url: Option<&str>) -> bool {
        self.file.is_orphan(id, url)
    }

    /// Ends the orphaned tasks of this mcpd. Those of another mcpd wait until the agent uses that one again: here their ids may mean
    /// something else.
    pub(super) fn end_orphans(&mut self, mcpd: &Mcpd) {
        let url = mcpd.url();
        let may_be_ours =
            |(_, of): &(TaskId, Option<Arc<str>>)| of.is_none() || of.as_deref() == url.as_deref();
        let (ours, others) =
            std::mem::take(&mut self.orphans).into_iter().partition::<Vec<_>, _>(may_be_ours);
        self.orphans = others;
        if ours.is_empty() {
            return;
        }
        info!(tasks = ours.len(), "ending tasks that were under way when the agent was killed");
        let ids = ours.into_iter().map(|(id, _)| id).collect();
        self.spawner.spawn(end_orphans(mcpd.clone(), ids, self.over.clone()));
    }
}
