//! The tasks under way, each with its outbox and its delivery, and the memory of those that ended.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tracing::warn;

use super::{
    relay::{Ended, History, Relay},
    spawner::Spawner,
};
use crate::{
    bridge::Offer,
    domain::{Activity, End, FailureCode, NumberMap, Provider, SessionKey, Task, TaskId, TaskKey, Usage},
    telemetry::{self, ChannelTrace, TaskTrace},
    upstream::{
        events::Handover,
        outbox::{Outbox, Summary},
        results::{Delivery, Report},
    },
};

/// The tasks under way.
pub(super) struct Relays {
    under_way: NumberMap<TaskKey, Relay>,
    history: History,
    /// Where deliveries report to.
    reports: mpsc::Sender<(TaskKey, Report)>,
    spawner: Spawner,
    telemetry: telemetry::Handle,
    rng: fastrand::Rng,
}

impl Relays {
    /// `rng` makes the jitter of the deliveries.
    pub(super) fn new(
        reports: mpsc::Sender<(TaskKey, Report)>,
        spawner: Spawner,
        telemetry: telemetry::Handle,
        rng: fastrand::Rng,
    ) -> Self {
        Self {
            under_way: NumberMap::default(),
            history: History::default(),
            reports,
            spawner,
            telemetry,
            rng,
        }
    }

    pub(super) fn get(&self, key: TaskKey) -> Option<&Relay> {
        self.under_way.get(&key)
    }

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// What the output of a task has shown so far.
    pub(super) fn activity(&self, key: TaskKey) -> Activity {
        self.get(key).map_or_else(Activity::default, |relay| relay.outbox.activity())
    }

    /// Pieces of output, those of tasks under way included: a live view wants to see them move.
    pub(super) fn chunks(&self) -> u64 {
        let open = self.under_way.values().filter(|relay| !relay.recorded);
        self.history.chunks + open.map(|relay| u64::from(relay.outbox.progress().0)).sum::<u64>()
    }

    /// mcpd handed a task over.
    pub(super) fn came(&mut self) {
        self.history.tasks += 1;
    }

    /// mcpd handed a task over of which nobody can be told anything.
    pub(super) fn lost(&mut self) {
        self.history.lost();
        self.telemetry.metrics().task_lost();
    }

    /// mcpd used an id again that it had used a short time ago.
    pub(super) fn repeated(&mut self, id: &TaskId) {
        self.history.repeated += 1;
        warn!(task_id = %id, "mcpd sent a task under an id that it has used already; the first one counts, and this one gets no answer");
    }

    /// Sets a task up, and starts the delivery of its output to the mcpd that handed it over.
    pub(super) fn begin(
        &mut self,
        key: TaskKey,
        task: Arc<Task>,
        handover: Handover,
        channel: &ChannelTrace,
    ) {
        let trace = TaskTrace::start(&self.telemetry, &task, channel);
        let outbox = Outbox::new(Arc::clone(&task), handover.mcpd.room(), trace);
        let mut delivery = Delivery::new(
            (key, Arc::clone(&task)),
            task.asked.include_usage,
            Arc::clone(&outbox),
            handover.mcpd,
            self.rng.u64(..),
            self.reports.clone(),
        );
        self.spawner.spawn(async move { delivery.run().await });
        let relay = Relay {
            task,
            arrived: Instant::now(),
            outbox,
            offered: None,
            session: None,
            recorded: false,
            _permit: handover.permit,
        };
        self.under_way.insert(key, relay);
    }

    /// A session gets a task; what it is offered.
    pub(super) fn offer(
        &mut self,
        key: TaskKey,
        session: SessionKey,
        provider: &Provider,
        timeout: Duration,
    ) -> Option<Offer> {
        let relay = self.under_way.get_mut(&key)?;
        (relay.session, relay.offered) = (Some(session), Some(Instant::now()));
        let trace_context = relay.outbox.trace(|trace| {
            trace.running(provider);
            trace.offer_context()
        });
        Some(Offer {
            key,
            id: relay.task.id.clone(),
            provider: provider.name.clone(),
            request: relay.task.request.clone(),
            streaming: relay.task.streaming,
            timeout,
            trace_context: trace_context.unwrap_or_default(),
            sink: Arc::clone(&relay.outbox) as Arc<_>,
        })
    }

    /// The session that had a task did not keep it, for this reason; the task will be offered again.
    pub(super) fn requeued(&mut self, key: TaskKey, why: FailureCode) {
        if let Some(relay) = self.under_way.get_mut(&key) {
            relay.session = None;
            relay.outbox.trace(|trace| trace.requeued(why));
        }
    }

    pub(super) fn set_usage(&self, key: TaskKey, usage: Usage) {
        if let Some(relay) = self.get(key) {
            relay.outbox.set_usage(usage);
        }
    }

    /// Decides a task's end, which is offered to mcpd until then.
    pub(super) fn end(&self, key: TaskKey, end: End, until: std::time::Instant) {
        if let Some(relay) = self.get(key) {
            relay.outbox.end(end, until);
        }
    }

    /// The delivery of a task is over; how it ended.
    pub(super) fn delivered(&mut self, key: TaskKey, summary: Summary) -> Option<&Ended> {
        let relay = self.under_way.get_mut(&key)?;
        relay.recorded = true;
        self.history.record(relay.ended(summary, Instant::now()));
        self.history.recent.front()
    }

    /// Whether no delivery is under way.
    pub(super) fn are_delivered(&self) -> bool {
        self.under_way.values().all(|relay| relay.recorded)
    }

    /// A task is over on both sides. Only now is the count of late pieces final: the provider has ended the task, or is no longer
    /// listened to.
    pub(super) fn forget(&mut self, key: TaskKey) -> Option<Relay> {
        let relay = self.under_way.remove(&key)?;
        self.history.late_chunks += u64::from(relay.outbox.late());
        Some(relay)
    }
}
