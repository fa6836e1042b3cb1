//! What is known of the way that uploads take to mcpd.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::lines::Lines;
use crate::domain::{Reason, TaskId};

/// How long a session does without uploads after something held one back or refused it.
pub const UPLOAD_PAUSE: Duration = Duration::from_secs(600);

/// The uploads to one mcpd, and what is known of their way.
#[derive(Debug, Default)]
pub(in crate::upstream) struct UploadWays {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    under_way: BTreeMap<TaskId, Arc<Lines>>,
    /// The control channel that is open, and since when.
    channel: Option<(u64, Instant)>,
    /// Whether lines are known to get through one by one.
    is_proven: bool,
    /// Until when there are no uploads, and why.
    pause: Option<(Instant, Reason)>,
}

impl UploadWays {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a task may begin an upload.
    pub(in crate::upstream) fn are_open(&self) -> bool {
        self.trouble().is_none()
    }

    /// Why there are no uploads now.
    pub(in crate::upstream) fn trouble(&self) -> Option<Reason> {
        let state = self.lock();
        state.pause.as_ref().filter(|(until, _)| *until > Instant::now()).map(|(_, why)| why.clone())
    }

    /// Does without uploads for a while, for this reason.
    pub(super) fn pause(&self, why: Reason) {
        let mut state = self.lock();
        (state.is_proven, state.pause) = (false, Some((Instant::now() + UPLOAD_PAUSE, why)));
    }

    /// Whether lines are known to get through one by one, or nobody could say whether they do.
    pub(super) fn is_sure(&self) -> bool {
        let state = self.lock();
        state.is_proven || state.channel.is_none()
    }

    /// Since when the control channel has been open.
    pub(super) fn channel(&self) -> Option<Instant> {
        self.lock().channel.map(|(_, since)| since)
    }

    pub(in crate::upstream) fn channel_opened(&self, epoch: u64) {
        let mut state = self.lock();
        state.channel = Some((epoch, Instant::now()));
        state.under_way.values().for_each(|lines| lines.change());
    }

    pub(in crate::upstream) fn channel_closed(&self, epoch: u64) {
        let mut state = self.lock();
        if state.channel.is_some_and(|(open, _)| open == epoch) {
            state.channel = None;
            state.under_way.values().for_each(|lines| lines.change());
        }
    }

    /// mcpd says on the control channel that it has every part of a task below `next`.
    pub(in crate::upstream) fn received(&self, task: &TaskId, next: u32) {
        let mut state = self.lock();
        let Some(lines) = state.under_way.get(task) else { return };
        lines.received(next);
        state.is_proven = true;
    }

    pub(super) fn enter(&self, task: &TaskId, lines: &Arc<Lines>) {
        self.lock().under_way.insert(task.clone(), Arc::clone(lines));
    }

    pub(super) fn leave(&self, task: &TaskId) {
        self.lock().under_way.remove(task);
    }
}
