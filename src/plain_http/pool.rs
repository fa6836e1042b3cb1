//! The idle connections to one server.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, futures::Notified},
    time::{Instant, sleep_until},
};

use super::link::Link;

/// How often idle connections are looked at, so that one which the server has closed does not stay half-open. It costs no request
/// anything, and each is looked at again before it is used.
const SWEEP: Duration = Duration::from_secs(5);
/// The least that the time of idle connections is shortened to: no server closes them sooner on purpose.
const LEAST_TRUST: Duration = Duration::from_millis(100);
/// How long a shortened time stays as it is before it doubles: a lost request can be a stream that ends with an error.
const RECOVERY: Duration = Duration::from_secs(60);
/// A request that fails later than that met no connection that was just being closed.
const SOON: Duration = Duration::from_millis(250);
/// So many requests lost just behind a connection's first answer, with no second one on any, are no accident: the server closes after
/// each answer and does not say so. Nothing is kept then, until it is tried again.
const CLOSED_BEHIND_ONE: u32 = 2;
/// How many connections may be on their way that no request waits for any more. A server that takes no further ones keeps each waiting
/// until its time is over, while every request finds one that came back: without a bound they would be as many as the requests of that time.
pub(super) const SPARE: usize = 16;

/// When a connection that is in use now was idle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idled {
    since: Instant,
    until: Instant,
    /// What it had answered before.
    answers: u32,
}

struct Idle {
    link: Box<Link>,
    since: Instant,
}

struct State {
    /// The one that came last is the first to go, so that those which are not needed grow old; the oldest is in front.
    links: Vec<Idle>,
    /// For how long an idle connection is believed to be open.
    trust: Duration,
    /// Before that it is not believed in for longer.
    raise_at: Instant,
    /// Requests lost on connections that had just given their one answer, since one had two.
    behind_one: u32,
    /// How many requests wait for a connection.
    waiting: usize,
    /// There is a task that looks after them.
    swept: bool,
}

/// The idle connections to one server.
pub(super) struct Pool {
    idle: Duration,
    state: Mutex<State>,
    returned: Notify,
    spare: Arc<Semaphore>,
}

impl Pool {
    /// A pool that keeps connections for `idle` at most.
    pub(super) fn new(idle: Duration) -> Self {
        let raise_at = Instant::now();
        let state =
            State { links: Vec::new(), trust: idle, raise_at, behind_one: 0, waiting: 0, swept: false };
        let spare = Arc::new(Semaphore::new(SPARE));
        Self { idle, state: Mutex::new(state), returned: Notify::new(), spare }
    }

    /// The connection that was used last.
    pub(super) fn take(&self) -> Option<(Box<Link>, Idled)> {
        let mut state = self.state();
        let Idle { link, since } = state.links.pop()?;
        let until = Instant::now();
        if until - since < state.trust {
            let answers = link.answers;
            return Some((link, Idled { since, until, answers }));
        }
        // All others are older. They are closed without the lock.
        let _old = mem::take(&mut state.links);
        drop(state);
        None
    }

    /// Keeps a connection on which nothing is under way.
    pub(super) fn put(self: &Arc<Self>, link: Box<Link>) {
        let mut state = self.state();
        if link.answers > 1 {
            state.behind_one = 0;
        }
        if state.trust.is_zero() {
            return;
        }
        state.links.push(Idle { link, since: Instant::now() });
        if !mem::replace(&mut state.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self), Instant::now() + SWEEP.min(state.trust)));
        }
        if state.waiting > 0 {
            self.returned.notify_one();
        }
    }

    /// Keeps a connection once it is made, unless too many are on their way so.
    pub(super) fn put_later<E>(
        self: &Arc<Self>,
        connecting: impl Future<Output = Result<Box<Link>, E>> + Send + 'static,
    ) {
        let Ok(place) = Arc::clone(&self.spare).try_acquire_owned() else { return };
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            if let Ok(link) = connecting.await {
                pool.put(link);
            }
        });
    }

    /// Waits for connections to come back, until it is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.state().waiting += 1;
        Waiting(self)
    }

    /// A request was lost on a connection that had been idle so long: the server may have closed it at that moment, as it will have
    /// closed those that were idle for longer.
    pub(super) fn lost(&self, Idled { since, until, answers }: Idled) {
        let (now, age) = (Instant::now(), until - since);
        let mut state = self.state();
        let soon = now - until < SOON;
        let had_just_begun = soon && age < LEAST_TRUST && answers == 1;
        state.behind_one += u32::from(had_just_begun);
        let trust = if !soon {
            None
        } else if age >= LEAST_TRUST {
            Some((age.min(state.trust) / 2).max(LEAST_TRUST).min(self.idle))
        } else {
            (had_just_begun && state.behind_one >= CLOSED_BEHIND_ONE).then_some(Duration::ZERO)
        };
        if let Some(trust) = trust {
            (state.trust, state.raise_at) = (trust, now + RECOVERY);
        }
        let older = state.links.partition_point(|link| link.since <= since);
        let closed: Vec<_> = state.links.drain(..older).collect();
        drop(state);
        drop(closed);
    }

    /// A connection is made anew, which happens the more often the shorter they are kept.
    pub(super) fn made(&self) {
        let mut state = self.state();
        let now = Instant::now();
        if state.trust < self.idle && state.raise_at <= now {
            state.trust = (state.trust * 2).max(LEAST_TRUST).min(self.idle);
            state.raise_at = now + RECOVERY;
        }
    }

    /// Closes what is too old or over. The next time to do so, if anything is left.
    fn clean(&self) -> Option<Instant> {
        let mut state = self.state();
        let (now, trust) = (Instant::now(), state.trust);
        let over = |idle: &mut Idle| now - idle.since >= trust || idle.link.is_over();
        let closed: Vec<_> = state.links.extract_if(.., over).collect();
        let next = state.links.first().map(|oldest| (oldest.since + trust).min(now + SWEEP));
        state.swept = next.is_some();
        drop(state);
        drop(closed);
        next
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state().links.len()
    }

    #[cfg(test)]
    pub(super) fn trust(&self) -> Duration {
        self.state().trust
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// A request that waits for a connection.
pub(super) struct Waiting<'a>(&'a Pool);

impl Waiting<'_> {
    pub(super) fn returned(&self) -> Notified<'_> {
        self.0.returned.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// Looks after the idle connections while there are any.
async fn sweep(pool: Weak<Pool>, first: Instant) {
    let mut next = Some(first);
    while let Some(at) = next {
        sleep_until(at).await;
        next = pool.upgrade().and_then(|pool| pool.clean());
    }
}
