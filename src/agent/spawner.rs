//! What the agent starts beside its loop, and how all of it ends.

use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Starts work beside the loop. Cheap to clone; all clones end together.
#[derive(Clone, Debug, Default)]
pub(super) struct Spawner {
    halt: CancellationToken,
    tracker: TaskTracker,
}

impl Spawner {
    /// Starts work that ends by itself or when everything ends.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        // Boxed, because each wrapper would contain the whole future and grow by its size.
        self.tracker.spawn(self.halt.clone().run_until_cancelled_owned(Box::pin(work)));
    }

    /// Ends one piece of work, or is cancelled when everything ends.
    pub(super) fn child_token(&self) -> CancellationToken {
        self.halt.child_token()
    }

    /// Ends everything once this is dropped.
    pub(super) fn drop_guard(&self) -> DropGuard {
        self.halt.clone().drop_guard()
    }

    /// Ends everything, and waits until it has ended.
    pub(super) async fn stop(&self) {
        self.halt.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
