//! The control channel: server-sent events in, typed events out. A [`Channel`] is opened once; to reconnect, the agent makes another.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use eventsource_stream::{LimitEvents, Refused, Signal, limit_events, too_large};
use futures_util::StreamExt as _;
use reqwest_eventsource::{Error as SourceError, Event as SourceEvent, EventSource, retry::Never};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Event,
    client::Mcpd,
    contract::{CANCEL_EVENT, CancelEvent, PING_EVENT, RECEIVED_EVENT, ReadFacts, ReceivedEvent, TASK_EVENT},
    task_event::{BadTask, oversized_task, read_task},
};
use crate::{
    domain::{CallFailure, Printable, Reason, TaskId, Trouble},
    http::root_cause,
};

/// How long mcpd may take to answer the request that opens the channel.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the first bytes of a channel are waited for before it counts as open without them.
const GREETING: Duration = Duration::from_secs(1);
/// How long a channel is still read after another one has taken its place.
const LAST_WORDS: Duration = Duration::from_secs(10);
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
    /// What came is compressed.
    NoText,
    Ended(Box<SourceError>),
}

/// A channel as it is read. One that is silent and has never shown a keep-alive is checked by opening another one, so for a while there
/// are two.
struct Reading<'a> {
    current: Source,
    /// The one before, until it ends or its time is over: mcpd may have said something on it.
    former: Option<(Source, Instant)>,
    /// The one that is to take its place, and when its opening began.
    successor: Option<(Opening<'a>, Instant)>,
}

type Opening<'a> = Pin<Box<dyn Future<Output = Result<Source, CallFailure>> + Send + 'a>>;

struct Source {
    inner: LimitEvents<EventSource>,
    last_byte: Instant,
    /// A keep-alive has come: from then on silence is suspicious. A greeting or a task does not promise further bytes.
    kept_alive: bool,
}

impl Channel {
    /// Runs the channel until it ends or is cancelled. A cancelled channel reads nothing more, but still reports what it has read.
    pub async fn run(self, mcpd: Mcpd, cancelled: CancellationToken) {
        let ended = self.run_inner(&mcpd, &cancelled).await;
        mcpd.uploads().channel_closed(self.epoch);
        match ended {
            Some(why) => self.emit(Event::ChannelClosed(self.epoch, why)).await,
            None => debug!(epoch = self.epoch, "control channel closed"),
        }
    }

    /// Why the channel ended; `None` if it was cancelled.
    async fn run_inner(&self, mcpd: &Mcpd, cancelled: &CancellationToken) -> Option<CallFailure> {
        let source = match cancelled.run_until_cancelled(self.open(mcpd)).await? {
            Ok(source) => source,
            Err(why) => return Some(why),
        };
        let mut source = Reading { current: source, former: None, successor: None };
        let mut first = match cancelled.run_until_cancelled(self.first_bytes(&mut source.current)).await? {
            Ok(first) => first,
            Err(why) => return Some(why),
        };
        mcpd.uploads().channel_opened(self.epoch);
        self.emit(Event::ChannelOpened(self.epoch)).await;
        let mut proved = false;
        loop {
            let seen = match first.take() {
                Some(first) => first,
                None => match cancelled.run_until_cancelled(self.next(&mut source, mcpd)).await? {
                    Ok(seen) => seen,
                    Err(silent) => return Some(silent),
                },
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
                Seen::NoText => return Some(compressed()),
                Seen::Ended(error) => {
                    let silent = source.current.last_byte.elapsed();
                    let end = |detail: String, in_order| CallFailure::ChannelEnded {
                        detail: detail.into(),
                        in_order,
                        silent,
                    };
                    return Some(match *error {
                        SourceError::StreamEnded => end("mcpd closed the control channel".to_owned(), true),
                        SourceError::Transport(error) => {
                            end(format!("the control channel broke: {}", root_cause(&error)), false)
                        }
                        other => self.ended(mcpd, other).await,
                    });
                }
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
    async fn next<'a>(&'a self, reading: &mut Reading<'a>, mcpd: &'a Mcpd) -> Result<Seen, CallFailure> {
        loop {
            let silent_until = reading.current.last_byte + self.idle_timeout;
            tokio::select! {
                biased;
                seen = reading.current.next() => match (seen, reading.successor.take()) {
                    // mcpd ends a channel in whose place it has opened another one.
                    (Seen::Ended(_), Some((opening, _))) => reading.current = opening.await?,
                    (seen, successor) => {
                        reading.successor = successor;
                        return Ok(seen);
                    }
                },
                Some(seen) = last_words(&mut reading.former), if reading.former.is_some() => return Ok(seen),
                opened = opened(&mut reading.successor), if reading.successor.is_some() => reading.succeed(opened)?,
                () = sleep_until(silent_until), if reading.successor.is_none() => {
                    if reading.current.last_byte + self.idle_timeout <= Instant::now() {
                        self.suspect(reading, mcpd)?;
                    }
                }
            }
        }
    }

    /// The channel was silent for the idle timeout. One that has shown a keep-alive is dead; of any other nobody knows until another one
    /// is opened.
    fn suspect<'a>(&'a self, reading: &mut Reading<'a>, mcpd: &'a Mcpd) -> Result<(), CallFailure> {
        if reading.current.kept_alive {
            let text = format!("the control channel was silent for {} s", self.idle_timeout.as_secs());
            return Err(passing(text));
        }
        debug!(epoch = self.epoch, "the control channel is silent, another one is opened in its place");
        reading.successor = Some((Box::pin(self.open(mcpd)), Instant::now()));
        Ok(())
    }

    async fn open(&self, mcpd: &Mcpd) -> Result<Source, CallFailure> {
        let request = mcpd.channel(&self.session)?;
        let mut source = EventSource::new(request).map_err(|e| passing(e.to_string()))?;
        // The agent reconnects by itself: with jitter, with the contract's numbers, and only after a new registration.
        source.set_retry_policy(Box::new(Never));
        let inner = limit_events(source, self.event_limit);
        let mut source = Source { inner, last_byte: Instant::now(), kept_alive: false };
        let late =
            || passing(format!("mcpd did not open the control channel within {} s", OPEN_TIMEOUT.as_secs()));
        match timeout(OPEN_TIMEOUT, source.next()).await.map_err(|_| late())? {
            Seen::Ended(error) => Err(self.ended(mcpd, *error).await),
            Seen::Event(_) | Seen::Refused(_) | Seen::Bytes | Seen::NoText => Ok(source),
        }
    }

    /// What comes first, where it comes at once, as mcpd's greeting does. Nobody can read a channel that is compressed on its way, so such
    /// a one never counts as open.
    async fn first_bytes(&self, source: &mut Source) -> Result<Option<Seen>, CallFailure> {
        let first = timeout(GREETING, source.next()).await.ok();
        match first {
            Some(Seen::NoText) => Err(compressed()),
            first => Ok(first),
        }
    }

    async fn ended(&self, mcpd: &Mcpd, error: SourceError) -> CallFailure {
        match error {
            SourceError::StreamEnded => passing("mcpd closed the control channel"),
            SourceError::InvalidStatusCode(_, response) => mcpd.channel_refused(response).await,
            SourceError::InvalidContentType(kind, _) => {
                let kind = Printable(kind.to_str().unwrap_or("something unnamed"));
                CallFailure::Unreadable(
                    Trouble::NoEventStream,
                    Reason::new(
                        format!("the control channel is not an event stream but {kind}"),
                        "check that --mcpd-url is really mcpd's, and what answers in its place on the way",
                    ),
                )
            }
            SourceError::Parser(error) => {
                let text = too_large(&error).unwrap_or("the control channel cannot be read");
                passing(Reason::new(text, "--event-limit can raise it"))
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
            // Straight to the upload: it is of no concern to anybody else.
            RECEIVED_EVENT => {
                let event = serde_json::from_str::<ReceivedEvent>(&message.data).ok();
                if let Some((id, next)) = event.and_then(|e| Some((TaskId::new(&e.task_id).ok()?, e.next))) {
                    mcpd.uploads().received(&id, next);
                }
            }
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

fn passing(why: impl Into<Reason>) -> CallFailure {
    CallFailure::Passing(why.into(), None)
}

fn compressed() -> CallFailure {
    let what = "the control channel is compressed on its way, which nobody asked for";
    let advice = "turn compression off for mcpd's path in the proxy there (nginx: gzip off)";
    CallFailure::Unreadable(Trouble::Encoded, Reason::new(what, advice))
}

impl Reading<'_> {
    /// Goes on with the successor. One that could not be opened says that the channel is dead, unless something has come on it meanwhile.
    fn succeed(&mut self, opened: Result<Source, CallFailure>) -> Result<(), CallFailure> {
        let begun = self.successor.take().map(|(_, begun)| begun);
        match opened {
            Ok(source) => {
                let former = std::mem::replace(&mut self.current, source);
                self.former = Some((former, Instant::now() + LAST_WORDS));
                Ok(())
            }
            Err(CallFailure::Passing(..)) if begun.is_some_and(|begun| self.current.last_byte > begun) => {
                Ok(())
            }
            Err(why) => Err(why),
        }
    }
}

/// What comes on a former channel; `None` once it is over.
async fn last_words(former: &mut Option<(Source, Instant)>) -> Option<Seen> {
    let (source, until) = former.as_mut()?;
    match timeout_at(*until, source.next()).await {
        Ok(seen) if !matches!(seen, Seen::Ended(_)) => Some(seen),
        Ok(_) | Err(_) => {
            *former = None;
            None
        }
    }
}

async fn opened(successor: &mut Option<(Opening<'_>, Instant)>) -> Result<Source, CallFailure> {
    match successor {
        Some((opening, _)) => opening.await,
        None => std::future::pending().await,
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
            Some(Signal::NoText) => return Seen::NoText,
            Some(Signal::Comment) => self.kept_alive = true,
            None => {
                self.kept_alive |= message.event == PING_EVENT;
                return Seen::Event(event);
            }
        }
        Seen::Bytes
    }
}
