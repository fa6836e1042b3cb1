//! The control channel: server-sent events in, typed events out. A [`Channel`] is opened once; to reconnect, the agent makes another.

use std::{pin::pin, sync::Arc, time::Duration};

use eventsource_stream::{LimitEvents, Refused, Signal, limit_events, too_large};
use futures_util::StreamExt as _;
use reqwest_eventsource::{Error as SourceError, Event as SourceEvent, EventSource, retry::Never};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Event,
    client::Mcpd,
    contract::{CANCEL_EVENT, CancelEvent, PING_EVENT, ReadFacts, TASK_EVENT},
    task_event::{BadTask, oversized_task, read_task},
};
use crate::{
    domain::{CallFailure, Printable, TaskId},
    http::root_cause,
};

/// How long mcpd may take to answer the request that opens the channel.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// An event. A task comes with how it was handed over.
pub type Delivered = (Event, Option<Handover>);

/// What travels with a task.
#[derive(Debug)]
pub struct Handover {
    /// The permit to be under way.
    pub permit: OwnedSemaphorePermit,
    /// The mcpd that handed it over: by now the agent may have switched to another one.
    pub mcpd: Mcpd,
}

/// One control channel.
#[derive(Debug)]
pub struct Channel {
    /// Identifies everything that comes from this channel.
    pub epoch: u64,
    /// The session it belongs to.
    pub session: String,
    /// Most bytes of one event.
    pub event_limit: usize,
    /// A channel that has sent a keep-alive and is then silent for this long is given up.
    pub idle_timeout: Duration,
    /// Of which tasks it is read what they ask for.
    pub facts: ReadFacts,
    /// Where events go.
    pub events: mpsc::Sender<Delivered>,
    /// A permit for every task under way: while there is none, the channel is not read, and mcpd has to wait.
    pub permits: Arc<Semaphore>,
}

/// What a look at the source gave.
enum Seen {
    /// No event, but bytes.
    Bytes,
    Event(SourceEvent),
    /// An event over the limit, which was skipped.
    Refused(Refused),
    Ended(Box<SourceError>),
}

struct Source {
    inner: LimitEvents<EventSource>,
    last_byte: Instant,
    /// A keep-alive has come: from then on silence is suspicious. A greeting or a task does not promise further bytes.
    kept_alive: bool,
}

impl Channel {
    /// Runs the channel until it ends or is cancelled. A cancelled channel reads nothing more, but still reports what it has read.
    pub async fn run(self, mcpd: Mcpd, cancelled: CancellationToken) {
        match self.run_inner(&mcpd, &cancelled).await {
            Some(why) => self.emit(Event::ChannelClosed(self.epoch, why)).await,
            None => debug!(epoch = self.epoch, "control channel closed"),
        }
    }

    /// Why the channel ended; `None` if it was cancelled.
    async fn run_inner(&self, mcpd: &Mcpd, cancelled: &CancellationToken) -> Option<CallFailure> {
        let mut source = match cancelled.run_until_cancelled(self.open(mcpd)).await? {
            Ok(source) => source,
            Err(why) => return Some(why),
        };
        self.emit(Event::ChannelOpened(self.epoch)).await;
        let mut proved = false;
        loop {
            let seen = match cancelled.run_until_cancelled(self.next(&mut source)).await? {
                Ok(seen) => seen,
                Err(silent) => return Some(silent),
            };
            if !matches!(seen, Seen::Ended(_)) && !std::mem::replace(&mut proved, true) {
                self.emit(Event::ChannelProved(self.epoch)).await;
            }
            match seen {
                Seen::Bytes => {}
                Seen::Event(event) => {
                    let mut taken = pin!(self.take(event, mcpd));
                    if cancelled.run_until_cancelled(taken.as_mut()).await.is_none() {
                        // mcpd will not repeat the event, so it is not dropped with the connection.
                        drop(source);
                        taken.await;
                        return None;
                    }
                }
                Seen::Refused(refused) => {
                    let mut answered = pin!(self.refuse(refused, mcpd));
                    if cancelled.run_until_cancelled(answered.as_mut()).await.is_none() {
                        drop(source);
                        answered.await;
                        return None;
                    }
                }
                Seen::Ended(error) => return Some(self.ended(mcpd, *error).await),
            }
        }
    }

    /// Says that an event was too large to be read, and answers a task if what is kept of it tells its id for sure.
    async fn refuse(&self, refused: Refused, mcpd: &Mcpd) {
        let (kind, bytes, why) = (Printable(&refused.event), refused.bytes, refused.why);
        if refused.event != TASK_EVENT {
            return warn!(event = %kind, bytes, "dropped an event of mcpd's: {why}");
        }
        match oversized_task(&refused) {
            Some((task, failure)) => {
                warn!(task_id = %task.id, bytes, "a task is too large: {why}; --event-limit can raise it");
                self.emit_task(Event::BadTask(task, failure), mcpd).await;
            }
            None => {
                warn!(
                    bytes,
                    "a task is too large and its caller gets no answer, because its taskId is out of sight: {why}; \
                     --event-limit can raise it"
                );
                self.emit(Event::LostTask).await;
            }
        }
    }

    /// What comes next, unless the channel is silent for too long.
    async fn next(&self, source: &mut Source) -> Result<Seen, CallFailure> {
        loop {
            // A channel that never sends anything is left to TCP's keep-alive.
            let silent_until = source.last_byte + self.idle_timeout;
            tokio::select! {
                biased;
                seen = source.next() => return Ok(seen),
                () = sleep_until(silent_until), if source.kept_alive => {
                    if source.last_byte + self.idle_timeout <= Instant::now() {
                        let text = format!("the control channel was silent for {} s", self.idle_timeout.as_secs());
                        return Err(CallFailure::Passing(text, None));
                    }
                }
            }
        }
    }

    async fn open(&self, mcpd: &Mcpd) -> Result<Source, CallFailure> {
        let request = mcpd.channel(&self.session)?;
        let mut source = EventSource::new(request).map_err(|e| CallFailure::Passing(e.to_string(), None))?;
        // The agent reconnects by itself: with jitter, with the contract's numbers, and only after a new registration.
        source.set_retry_policy(Box::new(Never));
        let inner = limit_events(source, self.event_limit);
        let mut source = Source { inner, last_byte: Instant::now(), kept_alive: false };
        let late = || {
            CallFailure::Passing(
                format!("mcpd did not open the control channel within {} s", OPEN_TIMEOUT.as_secs()),
                None,
            )
        };
        match timeout(OPEN_TIMEOUT, source.next()).await.map_err(|_| late())? {
            Seen::Ended(error) => Err(self.ended(mcpd, *error).await),
            Seen::Event(_) | Seen::Refused(_) | Seen::Bytes => Ok(source),
        }
    }

    async fn ended(&self, mcpd: &Mcpd, error: SourceError) -> CallFailure {
        let passing = |text: String| CallFailure::Passing(text, None);
        match error {
            SourceError::StreamEnded => passing("mcpd closed the control channel".to_owned()),
            SourceError::InvalidStatusCode(_, response) => mcpd.channel_refused(response).await,
            SourceError::InvalidContentType(kind, _) => passing(format!(
                "the control channel is no event stream but {}; is the URL really mcpd's?",
                Printable(kind.to_str().unwrap_or("something unnamed"))
            )),
            SourceError::Parser(error) => {
                let text = too_large(&error).unwrap_or("the control channel makes no sense");
                passing(format!("{text}; --event-limit can raise it"))
            }
            SourceError::Transport(error) => {
                passing(format!("the control channel broke: {}", root_cause(&error)))
            }
            other => passing(format!("the control channel failed: {other}")),
        }
    }

    async fn take(&self, event: SourceEvent, mcpd: &Mcpd) {
        let SourceEvent::Message(message) = event else { return };
        match message.event.as_str() {
            TASK_EVENT => match read_task(&message.data, self.facts) {
                Ok(task) => self.emit_task(Event::Task(task), mcpd).await,
                Err(BadTask::Answerable(task, failure)) => {
                    self.emit_task(Event::BadTask(*task, failure), mcpd).await
                }
                Err(BadTask::Lost(why)) => {
                    warn!(
                        bytes = message.data.len(),
                        "mcpd sent a task event that cannot even be answered: {why}"
                    );
                    self.emit(Event::LostTask).await;
                }
            },
            CANCEL_EVENT => match serde_json::from_str::<CancelEvent>(&message.data)
                .ok()
                .and_then(|c| TaskId::new(&c.task_id).ok())
            {
                Some(id) => self.emit(Event::CallerLeft(id)).await,
                None => warn!(
                    bytes = message.data.len(),
                    "mcpd sent a cancel event without a usable taskId; ignored"
                ),
            },
            // Hello and ping need no handling: their arrival was noted. Anything else is for later versions of the agent.
            _ => {}
        }
    }

    async fn emit_task(&self, event: Event, mcpd: &Mcpd) {
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
        // If the agent has ended, nobody needs the event any more.
        let _ = self.events.send((event, Some(Handover { permit, mcpd: mcpd.clone() }))).await;
    }

    async fn emit(&self, event: Event) {
        let _ = self.events.send((event, None)).await;
    }
}

impl Source {
    /// The next thing worth knowing. Each of them but the end is a sign of life.
    async fn next(&mut self) -> Seen {
        let event = match self.inner.next().await {
            Some(Ok(event)) => event,
            Some(Err(error)) => return Seen::Ended(Box::new(error)),
            None => return Seen::Ended(Box::new(SourceError::StreamEnded)),
        };
        self.last_byte = Instant::now();
        let SourceEvent::Message(message) = &event else { return Seen::Event(event) };
        match Signal::of(message) {
            Some(Signal::Oversized(refused)) => return Seen::Refused(refused),
            Some(Signal::Bytes) => return Seen::Bytes,
            Some(Signal::Comment) => self.kept_alive = true,
            None => {
                self.kept_alive |= message.event == PING_EVENT;
                return Seen::Event(event);
            }
        }
        Seen::Bytes
    }
}
