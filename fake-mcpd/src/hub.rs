//! What all connections share: the core under its lock, and the notification that something has happened.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::builder::Settings;
use crate::core::Core;
use crate::faults::{Fault, Refused};
use crate::spec::{Step, Trigger};
use crate::verdict::VerdictView;
use crate::wire::LlmView;

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) settings: Settings,
    started: Instant,
    started_at: SystemTime,
    core: Mutex<Core>,
    /// Something happened: waiting conditions are to be looked at.
    changed: Notify,
    /// A deadline came nearer: the timekeeper is to look again.
    sooner: Notify,
    /// Counts the orders to cut every connection.
    cuts: watch::Sender<u64>,
}

impl Hub {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        let started = Instant::now();
        let core = Core::new(&settings, started);
        let (changed, sooner) = (Notify::new(), Notify::new());
        let core = Mutex::new(core);
        let (cuts, _) = watch::channel(0);
        let started_at = SystemTime::now();
        Arc::new(Self { settings, started, started_at, core, changed, sooner, cuts })
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        core.now = Instant::now();
        core.verdict.seq = core.journal.next_seq();
        core
    }

    /// Looks, without anything happening.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        look(&mut self.lock())
    }

    /// Lets something happen.
    pub(crate) fn act<T>(&self, act: impl FnOnce(&mut Core) -> T) -> T {
        let done = act(&mut self.lock());
        self.changed.notify_waiters();
        done
    }

    /// Waits until `look` finds something, looking again whenever something happened.
    pub(crate) async fn wait<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            changed.await;
        }
    }

    /// Tells the timekeeper that a deadline was set.
    pub(crate) fn deadline_set(&self) {
        self.sooner.notify_one();
    }

    /// Does what its time has come for, for ever: sessions without heartbeats, tasks past their deadline, faults.
    pub(crate) async fn keep_time(self: Arc<Self>) -> Infallible {
        loop {
            self.act(|core| core.expire(self.settings.session_ttl));
            self.look(Core::take_due_faults).into_iter().for_each(|fault| self.fault(fault));
            match self.look(|core| core.next_deadline(self.settings.session_ttl)) {
                Some(next) => drop(tokio::time::timeout_at(next, self.sooner.notified()).await),
                None => self.sooner.notified().await,
            }
        }
    }

    /// Orders the connections to be cut when this changes.
    pub(crate) fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// Whether a new connection is to be reset.
    pub(crate) fn refuses_connections(&self) -> bool {
        self.act(|core| {
            let refused = core.armed.refuses(core.now, Refused::Connections);
            if refused {
                core.verdict.forgive_silence(core.now);
            }
            refused
        })
    }

    /// Puts a fault into effect.
    pub(crate) fn fault(&self, fault: Fault) {
        if self.act(|core| core.fault(fault)) {
            self.cuts.send_modify(|cuts| *cuts += 1);
        }
    }

    /// Takes steps: those of no delay happen, the others wait for their time or task.
    pub(crate) fn schedule(&self, steps: Vec<Step>) {
        for Step { trigger, fault } in steps {
            match trigger {
                Trigger::AtTask(number) => self.look(|core| core.at_task.push((number, fault))),
                Trigger::After(Duration::ZERO) => self.fault(fault),
                Trigger::After(after) => self.look(|core| {
                    // A time past the end of the clock never comes.
                    core.at_time.extend(core.now.checked_add(after).map(|at| (at, fault)));
                }),
            }
        }
        self.deadline_set();
    }

    /// Puts the faults of a task's number into effect that arm something, or (later) those that act at once.
    pub(crate) fn faults_at_task(&self, number: u64, at_once: bool) {
        let due = |(at, fault): &mut (u64, Fault)| *at == number && fault.acts_at_once() == at_once;
        let faults: Vec<_> = self.look(|core| core.at_task.extract_if(.., due).collect());
        faults.into_iter().for_each(|(_, fault)| self.fault(fault));
    }

    /// Ends every task and channel.
    pub(crate) fn stop(&self) {
        self.act(Core::forget);
    }

    /// How the agent under test has done so far.
    pub(crate) fn verdict(&self) -> VerdictView {
        self.look(|core| {
            for session in core.connected() {
                core.check_heartbeats(&session);
            }
            core.verdict.view(core.now)
        })
    }

    /// The list of LLMs, of one session or of all.
    pub(crate) fn llms(&self, core: &Core, session: Option<&str>) -> Vec<LlmView> {
        let rows = core.state.rows.values().filter(|row| session.is_none_or(|session| row.owner == session));
        rows.map(|row| LlmView {
            id: row.id.clone(),
            spec: row.spec.clone(),
            llm_kind: "virtual",
            status: if row.active { "active" } else { "inactive" },
            provider_session_id: row.owner.clone(),
            last_heartbeat_at: self.last_beat(core, &row.owner),
        })
        .collect()
    }

    fn last_beat(&self, core: &Core, session: &str) -> String {
        let beat = core.state.sessions.get(session).map_or(self.started, |session| session.last_beat);
        let at = self.started_at + beat.duration_since(self.started);
        humantime::format_rfc3339_millis(at).to_string()
    }
}
