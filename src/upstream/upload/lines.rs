//! The lines of one upload: what mcpd has not said to have received, and how far a connection has taken it.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    sync::Notify,
    time::{Instant, Sleep, sleep_until},
};

use crate::{http::Progress, upstream::contract::push_line};

/// An empty line is sent after this long without another one: proxies give up a body that is silent for a minute.
const SILENCE: Duration = Duration::from_secs(15);
/// Most bytes of parts that mcpd has not said to have received before further output waits, and merges, in the outbox: half of
/// what a task may hold.
pub const UPLOAD_WINDOW: usize = 2 << 20;

/// The parts of an upload, shared by the delivery and the connection that takes them.
#[derive(Debug)]
pub(in crate::upstream) struct Lines {
    state: Mutex<State>,
    /// Wakes the delivery.
    changed: Notify,
    /// The delivery gives the connection up.
    stalled: Notify,
}

#[derive(Debug)]
struct State {
    /// The parts that are not known to be received.
    kept: VecDeque<Bytes>,
    bytes: usize,
    /// The number of the first of them.
    first: u32,
    /// The number of the part that the connection takes next.
    cursor: u32,
    /// The same on any connection so far: what is below may have been applied.
    furthest: u32,
    /// Whether the last part is the task's end.
    closed: bool,
    /// Counts the connections: only the newest one is given lines.
    opening: u32,
    /// Lines that this connection has taken.
    taken: u32,
    /// When this connection took its first line.
    begun: Option<Instant>,
    /// Since when mcpd has had lines of which it has said nothing.
    unanswered: Option<Instant>,
    /// Whether mcpd has said what it has received since the connection was made.
    proven: bool,
    /// Whether the delivery waits for room.
    is_awaited: bool,
    /// Whether this connection is given up.
    is_stalled: bool,
    body: Option<Waker>,
}

/// What an upload waits for from mcpd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unanswered {
    /// When the first line left, if mcpd has said nothing since the connection was made.
    pub(super) begun: Option<Instant>,
    /// Since when mcpd has had lines of which it has said nothing.
    pub(super) since: Option<Instant>,
}

impl State {
    fn end(&self) -> u32 {
        self.first + u32::try_from(self.kept.len()).unwrap_or(u32::MAX)
    }

    /// The connection so far is given no further lines, and is told so; another one begins with the first part that is kept.
    fn supersede(&mut self) {
        self.opening += 1;
        self.cursor = self.first;
        (self.taken, self.begun, self.unanswered) = (0, None, None);
        (self.proven, self.is_stalled) = (false, false);
        if let Some(body) = self.body.take() {
            body.wake();
        }
    }
}

impl Lines {
    /// An upload that begins with the part of this number.
    pub(super) fn new(first: u32) -> Arc<Self> {
        let state = State {
            kept: VecDeque::new(),
            bytes: 0,
            first,
            cursor: first,
            furthest: first,
            closed: false,
            opening: 0,
            taken: 0,
            begun: None,
            unanswered: None,
            proven: false,
            is_awaited: false,
            is_stalled: false,
            body: None,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new(), stalled: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the next part.
    pub(super) fn push(&self, part: Bytes, is_end: bool) {
        let mut state = self.lock();
        state.bytes += part.len();
        state.kept.push_back(part);
        state.closed = is_end;
        if let Some(body) = state.body.take() {
            drop(state);
            body.wake();
        }
    }

    /// mcpd has every part below `next`; `false` if it says that it lacks one which it said to have.
    pub(in crate::upstream) fn received(&self, next: u32) -> bool {
        let mut state = self.lock();
        let next = next.min(state.end());
        while state.first < next
            && let Some(part) = state.kept.pop_front()
        {
            state.bytes -= part.len();
            state.first += 1;
        }
        state.cursor = state.cursor.max(state.first);
        state.proven = true;
        state.unanswered = (state.cursor > state.first).then(Instant::now);
        let first = state.first;
        drop(state);
        self.changed.notify_one();
        next >= first
    }

    /// Whether another part can be sent at once. As long as nobody knows whether anything holds the lines back, only the first one is
    /// sent; what comes meanwhile merges.
    pub(super) fn has_room(&self, is_sure: bool) -> bool {
        let mut state = self.lock();
        let taken = state.cursor == state.end() && state.bytes < UPLOAD_WINDOW;
        let room = taken && (is_sure || state.proven || state.begun.is_none());
        state.is_awaited = !room;
        room
    }

    /// Whether there is something that no connection has taken.
    pub(super) fn is_waiting(&self) -> bool {
        let state = self.lock();
        state.cursor < state.end()
    }

    /// The number of the first part that is not known to be received, and the bytes of all those.
    pub(super) fn kept(&self) -> (u32, usize) {
        let state = self.lock();
        (state.first, state.bytes)
    }

    /// Whether the last part is the task's end.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Whether mcpd has everything, the end included.
    pub(super) fn is_received(&self) -> bool {
        let state = self.lock();
        state.closed && state.kept.is_empty()
    }

    /// Whether a connection has taken the end, this one or an earlier one.
    pub(super) fn end_has_left(&self) -> bool {
        let state = self.lock();
        state.closed && state.furthest == state.end()
    }

    /// Lines that this connection has taken.
    pub(super) fn taken(&self) -> u32 {
        self.lock().taken
    }

    /// What is waited for from mcpd.
    pub(super) fn unanswered(&self) -> Unanswered {
        let state = self.lock();
        Unanswered { begun: state.begun.filter(|_| !state.proven), since: state.unanswered }
    }

    /// The parts that are not known to be received, with their numbers, and whether each may have been applied. No connection is given
    /// any of them any more.
    pub(super) fn take(&self) -> Vec<(u32, Bytes, bool)> {
        let mut state = self.lock();
        state.supersede();
        let (first, furthest) = (state.first, state.furthest);
        (first..).zip(std::mem::take(&mut state.kept)).map(|(n, part)| (n, part, n < furthest)).collect()
    }

    /// Waits until something has changed that concerns the delivery.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Something has changed that concerns the delivery.
    pub(super) fn change(&self) {
        self.changed.notify_one();
    }

    /// The connection is over.
    pub(super) fn disconnect(&self) {
        self.lock().supersede();
    }

    /// Gives up the connection.
    pub(super) fn stall(&self) {
        self.lock().is_stalled = true;
        self.stalled.notify_one();
    }

    /// Resolves once the connection is given up.
    pub(in crate::upstream) async fn stalled(&self) {
        loop {
            let woken = self.stalled.notified();
            if self.lock().is_stalled {
                return;
            }
            woken.await;
        }
    }

    /// The body of a new connection, which begins with the first part that is not known to be received.
    pub(in crate::upstream) fn open(self: &Arc<Self>) -> (LinesBody, Arc<Progress>) {
        let mut state = self.lock();
        state.supersede();
        let progress = Arc::new(Progress::default());
        let (lines, opening) = (Arc::clone(self), state.opening);
        let silence = Box::pin(sleep_until(Instant::now() + SILENCE));
        (
            LinesBody { lines, opening, progress: Arc::clone(&progress), last: Instant::now(), silence },
            progress,
        )
    }
}

/// The body of one connection.
pub(in crate::upstream) struct LinesBody {
    lines: Arc<Lines>,
    opening: u32,
    progress: Arc<Progress>,
    /// When the last line was taken.
    last: Instant,
    silence: Pin<Box<Sleep>>,
}

/// Another connection has taken its place.
#[derive(Debug, thiserror::Error)]
#[error("the upload goes on elsewhere")]
pub(in crate::upstream) struct Superseded;

impl LinesBody {
    /// The lines that wait, as one piece.
    fn take(&mut self, state: &mut State) -> Option<Bytes> {
        if state.cursor == state.end() {
            return None;
        }
        let from = usize::try_from(state.cursor - state.first).unwrap_or_default();
        let mut piece = Vec::with_capacity(state.kept.iter().skip(from).map(|part| part.len() + 16).sum());
        for part in state.kept.iter().skip(from) {
            push_line(&mut piece, state.cursor, part);
            state.cursor += 1;
            state.taken += 1;
        }
        state.furthest = state.furthest.max(state.cursor);
        let now = Instant::now();
        self.last = now;
        state.begun.get_or_insert(now);
        let is_news = std::mem::take(&mut state.is_awaited) || state.unanswered.is_none();
        state.unanswered.get_or_insert(now);
        if is_news {
            self.lines.changed.notify_one();
        }
        Some(piece.into())
    }

    /// An empty line, once nothing was sent for a while.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        loop {
            ready!(self.silence.as_mut().poll(cx));
            let now = Instant::now();
            let is_silent = self.last + SILENCE <= now;
            self.last = if is_silent { now } else { self.last };
            self.silence.as_mut().reset(self.last + SILENCE);
            if is_silent {
                return Poll::Ready(Bytes::from_static(b"\n"));
            }
        }
    }
}

impl http_body::Body for LinesBody {
    type Data = Bytes;
    type Error = Superseded;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Superseded>>> {
        let this = self.get_mut();
        let lines = Arc::clone(&this.lines);
        let mut state = lines.lock();
        if state.opening != this.opening {
            return Poll::Ready(Some(Err(Superseded)));
        }
        this.progress.begin();
        if let Some(piece) = this.take(&mut state) {
            this.progress.complete();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        state.body = Some(cx.waker().clone());
        drop(state);
        this.poll_silence(cx).map(|line| Some(Ok(Frame::data(line))))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.lines.lock();
        state.opening == self.opening && state.closed && state.cursor == state.end()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
