//! Keeping the machine from sleeping of idleness while tasks run: a machine that is suspended loses the answer it was giving.

use tokio::process::Child;
use tracing::debug;

use crate::platform;

/// The inhibitor, while it is held.
pub(super) struct Awake {
    wanted: bool,
    held: Option<Child>,
    /// Whether it was tried since tasks began to run: where there is no inhibitor, one try tells.
    tried: bool,
}

impl Awake {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, held: None, tried: false }
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// To be called once a second; `true` if it is held now and was not before, or the other way round.
    pub(super) fn tick(&mut self, tasks_run: bool) -> bool {
        let before = self.is_held();
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        if self.held.as_mut().is_some_and(ended) {
            debug!("the machine may sleep while tasks run: the inhibitor has ended by itself");
            self.held = None;
        }
        if !tasks_run {
            (self.held, self.tried) = (None, false);
        } else if self.wanted && !std::mem::replace(&mut self.tried, true) {
            self.held = platform::inhibitor()
                .spawn()
                .inspect_err(|why| debug!("the machine may sleep while tasks run: no inhibitor: {why}"))
                .ok();
        }
        before != self.is_held()
    }
}
