//! Encoded spans until they are sent.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as blocking},
    time::Duration,
};

use opentelemetry::Context;
use opentelemetry_sdk::{
    error::{OTelSdkError, OTelSdkResult},
    trace::{Span, SpanData, SpanProcessor},
};
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    time::{Instant, sleep_until},
};

use super::{encode, send::Sender};
use crate::telemetry::{
    export::Losses,
    spans::{Attributes, Ended, Trace},
};

/// Spans of one request at most, in bytes: collectors take 4 MiB by gRPC unless told otherwise, and a span with a conversation on it is
/// long. The last span may go beyond.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// How spans wait for the collector: the standard's `OTEL_BSP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) struct Batching {
    /// Spans that wait at most; what comes beyond is lost.
    pub(in crate::telemetry) queue: usize,
    /// Spans of one request at most.
    pub(in crate::telemetry) batch: usize,
    /// How long a span waits for its batch to fill.
    pub(in crate::telemetry) delay: Duration,
}

/// Takes the spans as they end, and hands them to the telemetry thread in batches. It never waits: a span that finds the queue full is
/// lost, and counted. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::telemetry) struct Batches {
    most: u64,
    open: Arc<Open>,
    orders: mpsc::Sender<Order>,
    losses: Arc<Losses>,
}

/// The batch that fills, and word of its first span: an idle agent has no timer.
#[derive(Debug)]
struct Open {
    batch: Mutex<Batch>,
    begun: Notify,
    /// What each batch begins with.
    room: usize,
}

/// Encoded spans, one behind the other, behind the room that the request's beginning needs.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) spans: Vec<u8>,
    pub(super) count: u64,
}

#[derive(Debug)]
enum Order {
    Send(Batch),
    /// Send what there is, and tell when that is done by dropping the sender.
    Flush(blocking::SyncSender<()>),
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, Batch> {
        // A panic in between leaves whole spans, or one that a collector refuses.
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Batch {
        self.replace(&mut self.lock())
    }

    /// Begins the next batch. It will be about as long as the last one.
    fn replace(&self, batch: &mut Batch) -> Batch {
        let mut spans = Vec::with_capacity(batch.spans.len());
        spans.resize(self.room, 0);
        mem::replace(batch, Batch { spans, count: 0 })
    }

    /// Adds the span that `encode` writes; the batch if that made it full.
    fn add(&self, encode: impl FnOnce(&mut Vec<u8>), most: u64) -> Option<Batch> {
        let mut batch = self.lock();
        encode(&mut batch.spans);
        batch.count += 1;
        if batch.count == 1 {
            self.begun.notify_one();
        }
        let full = batch.count >= most || batch.spans.len() >= MAX_BATCH_BYTES;
        full.then(|| self.replace(&mut batch))
    }
}

impl Batches {
    /// Batches for `sender`, which works on `worker` from now on, until the last [`Batches`] is gone and all is sent.
    pub(in crate::telemetry) fn start(
        batching: Batching,
        sender: Sender,
        worker: &tokio::runtime::Handle,
    ) -> Self {
        let most = batching.batch.clamp(1, batching.queue.max(1));
        // The environment may ask for more than a channel can count.
        let (orders, to_do) = mpsc::channel((batching.queue / most).clamp(1, Semaphore::MAX_PERMITS));
        let room = sender.room();
        let first = Batch { spans: vec![0; room], count: 0 };
        let open = Arc::new(Open { batch: Mutex::new(first), begun: Notify::new(), room });
        let losses = sender.losses();
        worker.spawn(deliver(open.clone(), to_do, sender, batching.delay));
        Self { most: most as u64, open, orders, losses }
    }

    /// Takes a span of a task.
    #[inline]
    pub(in crate::telemetry) fn add(
        &self,
        trace: &Trace,
        span: &Ended<'_>,
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.take(|out| encode::ended(out, trace, span, attributes));
    }

    fn take(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.losses.ended();
        if let Some(batch) = self.open.add(encode, self.most) {
            // A full queue loses the batch, which nobody will count as delivered.
            let _ = self.orders.try_send(Order::Send(batch));
        }
    }

    fn flush(&self, bound: Option<Duration>) -> OTelSdkResult {
        let (sent, all_sent) = blocking::sync_channel(0);
        if self.orders.blocking_send(Order::Flush(sent)).is_err() {
            return Err(OTelSdkError::AlreadyShutdown);
        }
        // Nothing is ever sent: the end of the channel is the answer.
        let in_time = match bound {
            None => all_sent.recv().is_err(),
            Some(bound) => all_sent.recv_timeout(bound) != Err(blocking::RecvTimeoutError::Timeout),
        };
        if in_time { Ok(()) } else { Err(OTelSdkError::Timeout(bound.unwrap_or_default())) }
    }
}

/// For the spans that the SDK makes.
impl SpanProcessor for Batches {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.take(|out| encode::span(out, &span));
    }

    /// Waits without a bound.
    fn force_flush(&self) -> OTelSdkResult {
        self.flush(None)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.flush(Some(timeout))
    }
}

async fn deliver(open: Arc<Open>, mut orders: mpsc::Receiver<Order>, sender: Sender, delay: Duration) {
    // When the batch that fills is sent as it is.
    let mut due: Option<Instant> = None;
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = open.begun.notified(), if due.is_none() => {
                due = Some(Instant::now() + delay);
                continue;
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                Some(Order::Send(open.take()))
            }
        };
        match order {
            Some(Order::Send(batch)) => sender.deliver(batch).await,
            Some(Order::Flush(sent)) => {
                sender.deliver(open.take()).await;
                drop(sent);
            }
            None => return,
        }
    }
}
