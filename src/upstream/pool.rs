//! The Clients for one kind of request to mcpd. A Client is never adjusted, only replaced: when a request on it timed out, when the
//! server's protocol or a shorter keep-alive was learnt, after a wake from sleep.
//!
//! Over HTTP/2 a Client has one connection, and a server limits the requests under way on it; so where a request finds no room on a
//! connection that others use, it goes to the next Client. Over HTTP/1.1 one Client has as many connections as it needs.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{Body, Client, Method, Request, Response, StatusCode, Url, header::HeaderMap};
use tokio::{
    pin,
    time::{Instant, sleep, timeout},
};

use super::{
    connect::{HttpError, client},
    upload::Lines,
};
use crate::http::{
    IdleLimit, Outgoing, Progress, Trust, Version, is_wrong_protocol, keep_alive, was_refused_unprocessed,
    with_causes,
};

/// How long an idle connection of HTTP/1.1 is kept unless the server says otherwise: Node closes idle connections after 5 s.
const IDLE_HTTP1: Duration = Duration::from_secs(4);
/// The same for HTTP/2, where no request can meet the closing of a connection unnoticed.
const IDLE_HTTP2: Duration = Duration::from_secs(300);
/// How long a request waits for its turn on a connection that others are using before it goes to another one.
const CROWDED: Duration = Duration::from_millis(25);
/// How long a learnt number of requests at once is believed in.
const CROWD_MEMORY: Duration = Duration::from_secs(60);
/// How long a request may wait for a connection and for its turn on it.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a request that the server certainly has not processed is sent again at once.
const REPEATS: usize = 3;
/// How often it is tried on another connection what the server says belongs elsewhere (421).
const MISDIRECTED: usize = 2;
/// A request that is lost this soon on HTTP/1.1 may have met the closing of its connection.
const SOON: Duration = Duration::from_secs(1);

/// The Clients for one kind of request.
#[derive(Debug)]
pub(super) struct ClientPool {
    trust: Trust,
    url: Url,
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    version: Version,
    idle: IdleLimit,
    members: Vec<Arc<Member>>,
    /// How many requests at once a connection takes, as far as known, and since when.
    crowd: Option<(usize, Instant)>,
}

/// One Client with what is under way on it.
#[derive(Debug)]
struct Member {
    client: Client,
    version: Version,
    under_way: Mutex<Vec<Arc<Progress>>>,
}

/// A request that is under way on a member, until it is dropped.
struct UnderWay<'a> {
    member: &'a Member,
    progress: Arc<Progress>,
}

/// A request as every attempt sends it.
#[derive(Clone, Copy)]
pub(super) struct Post<'a> {
    pub(super) url: &'a Url,
    pub(super) headers: &'a HeaderMap,
    pub(super) content: Content<'a>,
}

/// What a request has to say.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    /// A body. The answer's head must come within this time, counted from when the request may have left.
    Whole(&'a Bytes, Duration),
    /// The lines of an upload, for as long as they take.
    Lines(&'a Arc<Lines>),
}

impl Content<'_> {
    fn body(self) -> (Body, Arc<Progress>) {
        match self {
            Self::Whole(body, _) => {
                let (body, progress) = Outgoing::new(body.clone());
                (Body::wrap(body), progress)
            }
            Self::Lines(lines) => {
                let (body, progress) = lines.open();
                (Body::wrap(body), progress)
            }
        }
    }

    /// Why no answer is waited for any longer.
    async fn late(self) -> NoAnswer {
        match self {
            Self::Whole(_, limit) => {
                sleep(limit).await;
                NoAnswer::Late(limit)
            }
            Self::Lines(lines) => {
                lines.stalled().await;
                NoAnswer::Stalled
            }
        }
    }
}

/// A request that got no answer.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// What happened.
    pub(super) why: NoAnswer,
    /// Whether the server may have acted on it.
    pub(super) maybe_processed: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// The connection failed, or none could be made.
    #[error("{}", with_causes(.0))]
    Failed(reqwest::Error),
    /// None came in this time.
    #[error("no complete reply within {} s", .0.as_secs())]
    Late(Duration),
    /// Lines were sent, and mcpd has said nothing of them for too long.
    #[error("mcpd says nothing of what was sent")]
    Stalled,
    /// There was no connection, or no room on one.
    #[error("no connection was free within {} s", TURN_TIMEOUT.as_secs())]
    NoTurn,
    /// No Client can be made.
    #[error(transparent)]
    NoClient(#[from] HttpError),
}

/// How one attempt ended.
enum Attempt {
    Answered(Response),
    /// There are too many requests on that connection.
    Crowded,
    /// No answer; with whether it is worth being sent again at once.
    Unanswered(Unanswered, bool),
}

impl ClientPool {
    /// At most `most` Clients for the mcpd at `url`.
    pub(super) fn new(trust: Trust, url: Url, most: usize) -> Result<Self, HttpError> {
        let (version, idle) = (Version::Negotiated, IdleLimit::new(IDLE_HTTP1));
        let mut state = State { version, idle, members: Vec::new(), crowd: None };
        state.members.push(state.build(&trust, &url)?);
        Ok(Self { trust, url, most, state: Mutex::new(state) })
    }

    /// Gives up all connections; requests under way keep theirs.
    pub(super) fn clear(&self) {
        self.state().members.clear();
    }

    /// Sends a request, again at once while the server certainly has not processed it.
    pub(super) async fn post(&self, post: Post<'_>) -> Result<Response, Unanswered> {
        let give_up = Instant::now() + TURN_TIMEOUT;
        let (mut repeats, mut misdirected) = (0, 0);
        loop {
            let member =
                self.member(post.content).map_err(|why| Unanswered { why, maybe_processed: false })?;
            match self.attempt(&member, post, give_up).await {
                Attempt::Answered(response) if misdirected < MISDIRECTED && is_misdirected(&response) => {
                    misdirected += 1;
                    self.give_up(&member);
                }
                Attempt::Answered(response) => {
                    self.note(&response);
                    return Ok(response);
                }
                Attempt::Crowded => {}
                Attempt::Unanswered(_, true) if repeats < REPEATS && Instant::now() < give_up => repeats += 1,
                Attempt::Unanswered(unanswered, _) => return Err(unanswered),
            }
        }
    }

    async fn attempt(&self, member: &Arc<Member>, post: Post<'_>, give_up: Instant) -> Attempt {
        let (body, progress) = post.content.body();
        let _under_way = member.enter(&progress);
        let mut request = Request::new(Method::POST, post.url.clone());
        (*request.headers_mut(), *request.body_mut()) = (post.headers.clone(), Some(body));
        let answer = member.client.execute(request);
        pin!(answer);
        let begun = Instant::now();
        loop {
            let late = match timeout(CROWDED, &mut answer).await {
                Ok(answer) => return self.ended(member, &progress, answer, begun),
                Err(_) if progress.has_begun() => tokio::select! {
                    biased;
                    answer = &mut answer => return self.ended(member, &progress, answer, begun),
                    late = post.content.late() => late,
                },
                Err(_) if self.is_crowded(member) => return Attempt::Crowded,
                Err(_) if Instant::now() >= give_up => NoAnswer::NoTurn,
                Err(_) => continue,
            };
            // Whatever is wrong with that connection, it is not to be in the way of others.
            self.give_up(member);
            return Attempt::Unanswered(
                Unanswered { why: late, maybe_processed: progress.is_whole() },
                false,
            );
        }
    }

    fn ended(
        &self,
        member: &Arc<Member>,
        progress: &Progress,
        answer: Result<Response, reqwest::Error>,
        begun: Instant,
    ) -> Attempt {
        // mcpd's address is nothing for those who read the error in the end.
        let error = match answer.map_err(reqwest::Error::without_url) {
            Ok(response) => return Attempt::Answered(response),
            Err(error) => error,
        };
        let renegotiate = member.version == Version::Http2 && is_wrong_protocol(&error);
        let maybe_processed = progress.is_whole() && !was_refused_unprocessed(&error);
        let mut state = self.state();
        if renegotiate {
            state.version = Version::Negotiated;
            state.members.clear();
        } else if maybe_processed && state.version == Version::Negotiated && begun.elapsed() < SOON {
            state.idle.lost(Instant::now());
            state.members.clear();
        }
        let again = !maybe_processed && (renegotiate || !error.is_connect());
        Attempt::Unanswered(Unanswered { why: NoAnswer::Failed(error), maybe_processed }, again)
    }

    /// Follows what an answer says about the server.
    fn note(&self, response: &Response) {
        let mut state = self.state();
        let before = (state.version, state.idle_limit());
        if response.version() == reqwest::Version::HTTP_2 {
            state.version = Version::Http2;
        } else {
            state.version = Version::Negotiated;
            let now = Instant::now();
            if let Some(keep_alive) = keep_alive(response.headers()) {
                state.idle.hint(keep_alive, now);
            }
            state.idle.recover(now);
        }
        if before != (state.version, state.idle_limit()) {
            state.members.clear();
        }
    }

    /// The first Client with room, else a new one, else the one with the fewest requests. Uploads last, so they take half of the
    /// Clients at most, and do not wait for room.
    fn member(&self, content: Content<'_>) -> Result<Arc<Member>, NoAnswer> {
        let is_upload = matches!(content, Content::Lines(_));
        let most = if is_upload { self.most.div_ceil(2) } else { self.most };
        let mut state = self.state();
        let room = state.room();
        if let Some(free) = state.members.iter().take(most).find(|member| member.len() < room) {
            return Ok(Arc::clone(free));
        }
        if is_upload && state.members.len() >= most {
            return Err(NoAnswer::NoTurn);
        }
        if state.members.len() < self.most {
            let member = state.build(&self.trust, &self.url)?;
            state.members.push(Arc::clone(&member));
            return Ok(member);
        }
        let least = state.members.iter().min_by_key(|member| member.len());
        Ok(Arc::clone(least.expect("a pool has at least one member")))
    }

    /// Whether requests wait on that connection for others to end, and there may be room elsewhere. One without any that are on their way
    /// is still being made.
    fn is_crowded(&self, member: &Member) -> bool {
        let mut state = self.state();
        let on_their_way = member.on_their_way();
        if state.version != Version::Http2 || on_their_way == 0 {
            return false;
        }
        state.crowd = Some((on_their_way, Instant::now()));
        let full = state.members.iter().filter(|member| member.len() >= on_their_way).count();
        full < self.most
    }

    fn give_up(&self, member: &Arc<Member>) {
        self.state().members.retain(|other| !Arc::ptr_eq(other, member));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn idle_limit(&self) -> Duration {
        match self.version {
            Version::Http2 => IDLE_HTTP2,
            Version::Negotiated => self.idle.get(),
        }
    }

    /// How many requests at once a connection takes.
    fn room(&self) -> usize {
        let known = self.crowd.filter(|(_, since)| since.elapsed() < CROWD_MEMORY);
        known.map_or(usize::MAX, |(room, _)| room)
    }

    fn build(&self, trust: &Trust, url: &Url) -> Result<Arc<Member>, HttpError> {
        let client = client(url, trust, self.idle_limit(), self.version)?;
        Ok(Arc::new(Member { client, version: self.version, under_way: Mutex::default() }))
    }
}

impl Member {
    fn enter(&self, progress: &Arc<Progress>) -> UnderWay<'_> {
        self.under_way().push(Arc::clone(progress));
        UnderWay { member: self, progress: Arc::clone(progress) }
    }

    fn len(&self) -> usize {
        self.under_way().len()
    }

    fn on_their_way(&self) -> usize {
        self.under_way().iter().filter(|progress| progress.has_begun()).count()
    }

    fn under_way(&self) -> MutexGuard<'_, Vec<Arc<Progress>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.member.under_way().retain(|other| !Arc::ptr_eq(other, &self.progress));
    }
}

fn is_misdirected(response: &Response) -> bool {
    response.status() == StatusCode::MISDIRECTED_REQUEST
}

#[cfg(test)]
mod tests;
