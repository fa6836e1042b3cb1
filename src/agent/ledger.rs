//! The ledger of the running agent: today's counts, and when they are written.

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Local, NaiveDate};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tracing::{info, warn};

use super::{
    relay::Ended,
    usage::{Counts, Day, prune, report},
};
use crate::{
    bridge::UsageReply,
    domain::{EndKind, UnixTime},
    pb,
};

/// Least time between two writes: a crash loses no more than this.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// The ledger.
pub(super) struct Ledger {
    folder: PathBuf,
    date: NaiveDate,
    day: Day,
    /// Whether the file is older than the counts.
    is_old: bool,
    written: Instant,
    writing: Option<JoinHandle<io::Result<()>>>,
    /// Whether the last write failed, so that it is warned of once.
    failed: bool,
}

impl Ledger {
    pub(super) fn open(folder: PathBuf, now: UnixTime) -> Self {
        let date = date_of(now);
        prune(&folder, date);
        let day = Day::load(&folder, date);
        Self { folder, date, day, is_old: false, written: Instant::now(), writing: None, failed: false }
    }

    /// Counts a task that a provider has worked on.
    pub(super) fn record(&mut self, ended: &Ended) {
        let Some(inference) = ended.inference else { return };
        let (kind, usage) = (ended.summary.outcome, ended.summary.usage);
        let counts = Counts {
            ok: u64::from(kind == EndKind::Answered),
            failed: u64::from(matches!(kind, EndKind::Failed(_))),
            cancelled: u64::from(kind == EndKind::Nobody),
            input_tokens: usage.input_tokens.unwrap_or_default().into(),
            output_tokens: usage.output_tokens.unwrap_or_default().into(),
            inference_ms: u64::try_from(inference.as_millis()).unwrap_or(u64::MAX),
        };
        self.day.add(&ended.llm, ended.caller.as_deref().unwrap_or_default(), counts);
        self.is_old = true;
    }

    /// To be called once a second: begins the next day, and writes what is due beside the loop.
    pub(super) async fn tick(&mut self, now: UnixTime) {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait().await;
        }
        if self.writing.is_some() {
            return;
        }
        let today = date_of(now);
        if today != self.date || (self.is_old && self.written.elapsed() >= WRITE_EVERY) {
            self.write();
        }
        if today != self.date {
            (self.date, self.day) = (today, Day::load(&self.folder, today));
            prune(&self.folder, today);
        }
    }

    fn write(&mut self) {
        let (folder, date, day) = (self.folder.clone(), self.date, self.day.clone());
        self.writing = Some(tokio::task::spawn_blocking(move || day.save(&folder, date)));
        (self.is_old, self.written) = (false, Instant::now());
    }

    /// Waits for a write that is under way.
    async fn wait(&mut self) {
        let Some(writing) = self.writing.take() else { return };
        let folder = self.folder.display();
        match writing.await {
            Ok(Ok(())) if std::mem::take(&mut self.failed) => info!("{folder} can be written again"),
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => {
                self.is_old = true;
                if !std::mem::replace(&mut self.failed, true) {
                    warn!("cannot write the usage into {folder}: {error}; it is kept in memory");
                }
            }
        }
    }

    /// Writes what has not been written.
    pub(super) async fn close(&mut self) {
        self.wait().await;
        if self.is_old {
            self.write();
            self.wait().await;
        }
    }

    /// Reads and sums up beside the loop.
    pub(super) fn report(&self, by: pb::UsageBy, days: u32, reply: oneshot::Sender<UsageReply>) {
        let (folder, date, day) = (self.folder.clone(), self.date, self.day.clone());
        tokio::task::spawn_blocking(move || {
            // Whoever asked may be gone.
            let _ = reply.send(Some(report(&folder, by, days, date, Some(&day))));
        });
    }
}

/// The day in the machine's time zone.
fn date_of(now: UnixTime) -> NaiveDate {
    DateTime::<Local>::from(SystemTime::from(now)).date_naive()
}
