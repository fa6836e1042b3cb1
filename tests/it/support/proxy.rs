//! A TCP relay between the agent and mcpd that does to the bytes what networks do to them.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet, yield_now},
    time::{Instant, sleep},
};

use super::wire::{self, Reading, Seen, What};

/// Bytes taken at once from one side.
const PIECE: usize = 16 << 10;
/// Of a piece that is passed on byte by byte, so many bytes are; the rest follows as it is. Boundaries are where the trouble is.
const BYTEWISE: usize = 512;

/// Entries kept of what was seen: a whole schedule's, and of a long run its last minutes.
const SEEN: usize = 16_384;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToMcpd,
    ToAgent,
}

impl Way {
    fn ended_at_its_source(self) -> What {
        if self == Self::ToMcpd { What::AgentClosed } else { What::McpdClosed }
    }

    fn ended_at_its_target(self) -> What {
        if self == Self::ToMcpd { What::McpdClosed } else { What::AgentClosed }
    }
}

/// What the relay is told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Reset new connections from now on.
    Refuse,
    /// Reset every connection there is.
    CutAll,
    /// Reset the next connection that moves bytes this way, once so many have passed.
    CutAfter(Way, usize),
    /// Reset the next call's connection when its reply comes: mcpd has done it, and the agent cannot know.
    CutReply,
    /// Swallow everything, new connections too, without a word.
    Stall,
    /// Every connection is dead from now on and does not know it, and so is every new one until [`Order::Clear`].
    Deafen,
    /// Hold every piece back so long.
    Delay(Duration),
    /// Pass on single bytes.
    Bytewise,
    /// Behave, from now on. What was swallowed goes on.
    Clear,
}

/// What holds for every connection.
#[derive(Clone, Copy, Debug, Default)]
struct Rules {
    refuse: bool,
    stalled: bool,
    deaf: bool,
    /// Counts the orders to make everything deaf.
    deafened: u64,
    delay: Duration,
    bytewise: bool,
    /// Counts the orders to reset everything.
    cuts: u64,
}

/// What hits one connection.
#[derive(Debug, Default)]
struct Armed {
    after: VecDeque<(Way, usize)>,
    replies: u32,
}

#[derive(Debug)]
struct Shared {
    rules: watch::Sender<Rules>,
    armed: Mutex<Armed>,
    seen: Mutex<VecDeque<Seen>>,
    target: SocketAddr,
}

/// The relay. Dropping it resets every connection.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

impl Proxy {
    /// A relay to `target` on a free loopback port.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (rules, _) = watch::channel(Rules::default());
        let shared = Arc::new(Shared { rules, armed: Mutex::default(), seen: Mutex::default(), target });
        let accepting = tokio::spawn(accept(Arc::clone(&shared), listener)).abort_handle();
        Ok(Self { address, shared, accepting })
    }

    /// Where the agent finds mcpd.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What passed and what was done to it, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Does as told, at once.
    pub fn order(&self, order: Order) {
        let change = |change: fn(&mut Rules)| self.shared.rules.send_modify(change);
        match order {
            Order::Refuse => change(|rules| rules.refuse = true),
            Order::CutAll => change(|rules| rules.cuts += 1),
            Order::CutAfter(way, bytes) => self.shared.armed().after.push_back((way, bytes)),
            Order::CutReply => self.shared.armed().replies += 1,
            Order::Stall => change(|rules| rules.stalled = true),
            Order::Deafen => change(|rules| (rules.deaf, rules.deafened) = (true, rules.deafened + 1)),
            Order::Delay(by) => self.shared.rules.send_modify(|rules| rules.delay = by),
            Order::Bytewise => change(|rules| rules.bytewise = true),
            Order::Clear => {
                *self.shared.armed() = Armed::default();
                change(|rules| {
                    *rules = Rules { cuts: rules.cuts, deafened: rules.deafened, ..Rules::default() }
                });
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn armed(&self) -> std::sync::MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, connection: u64, what: What) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push_back(Seen { at: Instant::now(), connection, what });
        if seen.len() > SEEN {
            seen.pop_front();
        }
    }

    /// Takes an order to cut a connection that moves bytes this way.
    fn take_cut(&self, way: Way) -> Option<usize> {
        let mut armed = self.armed();
        let at = armed.after.iter().position(|(of, _)| *of == way)?;
        armed.after.remove(at).map(|(_, bytes)| bytes)
    }

    fn takes_reply(&self) -> bool {
        let mut armed = self.armed();
        let any = armed.replies > 0;
        armed.replies -= u32::from(any);
        any
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let (mut connections, mut count) = (JoinSet::new(), 0);
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            Ok((agent, _)) = listener.accept() => {
                count += 1;
                if shared.rules.borrow().refuse {
                    shared.note(count, What::Refused);
                    reset(&agent);
                } else {
                    connections.spawn(relay(Arc::clone(&shared), agent, count));
                }
            }
        }
    }
}

/// Makes dropping a connection a reset, in which bytes on their way are lost.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// One connection, until one side ends it or it is cut.
async fn relay(shared: Arc<Shared>, mut agent: TcpStream, connection: u64) {
    let mut rules = shared.rules.subscribe();
    let Ok(mut mcpd) = TcpStream::connect(shared.target).await else {
        shared.note(connection, What::Refused);
        return reset(&agent);
    };
    let _ = (agent.set_nodelay(true), mcpd.set_nodelay(true));
    let cuts = rules.borrow_and_update().cuts;
    let end = {
        let (mut from_agent, mut to_agent) = agent.split();
        let (mut from_mcpd, mut to_mcpd) = mcpd.split();
        let mut up = Pump::new(&shared, connection, Way::ToMcpd);
        let mut down = Pump::new(&shared, connection, Way::ToAgent);
        let is_call = watch::Sender::new(false);
        tokio::select! {
            biased;
            _ = rules.wait_for(|rules| rules.cuts != cuts) => What::Cut,
            end = up.run(&mut from_agent, &mut to_mcpd, &is_call) => end,
            end = down.run(&mut from_mcpd, &mut to_agent, &is_call) => end,
        }
    };
    // What the agent gave up never reaches mcpd later, and what is cut is cut on both sides; only mcpd's own end is passed on.
    reset(&mcpd);
    if end != What::McpdClosed {
        reset(&agent);
    }
    shared.note(connection, end);
}

/// One way of one connection.
struct Pump<'a> {
    shared: &'a Shared,
    connection: u64,
    rules: watch::Receiver<Rules>,
    way: Way,
    /// Bytes until the cut that was meant for this connection.
    left: Option<usize>,
    deafened: u64,
    reading: Reading,
}

impl<'a> Pump<'a> {
    fn new(shared: &'a Shared, connection: u64, way: Way) -> Self {
        let rules = shared.rules.subscribe();
        let deafened = rules.borrow().deafened;
        Self { shared, connection, rules, way, left: None, deafened, reading: Reading::default() }
    }

    /// Passes bytes on until the connection ends; says how.
    async fn run(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        is_call: &watch::Sender<bool>,
    ) -> What {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = from.read(&mut buffer).await.unwrap_or_default();
            if read == 0 {
                return self.way.ended_at_its_source();
            }
            let piece = &buffer[..read];
            match self.way {
                // The channel is a GET; its replies never end, so it is left out where replies are cut. An ingress uses a connection
                // for one after the other.
                Way::ToMcpd if piece.starts_with(b"POST") => drop(is_call.send_replace(true)),
                Way::ToMcpd if piece.starts_with(b"GET") => drop(is_call.send_replace(false)),
                Way::ToMcpd => {}
                Way::ToAgent if *is_call.borrow() && self.shared.takes_reply() => return What::Cut,
                Way::ToAgent => {}
            }
            if self.way == Way::ToMcpd {
                // The agent has sent it, whatever becomes of it now.
                self.note(wire::request(piece));
            }
            if self.is_deaf() {
                continue;
            }
            if let Err(end) = self.forward(piece, to).await {
                return end;
            }
            if self.way == Way::ToAgent {
                let read = self.reading.reply(piece);
                self.note(read);
            }
        }
    }

    /// Whether what comes is swallowed; the connection still knows when its sender closes it.
    fn is_deaf(&self) -> bool {
        let rules = self.shared.rules.borrow();
        rules.deaf || rules.deafened != self.deafened
    }

    fn note(&self, what: impl IntoIterator<Item = What>) {
        what.into_iter().for_each(|what| self.shared.note(self.connection, what));
    }

    async fn forward(&mut self, piece: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> Result<(), What> {
        let Ok(rules) = self.rules.wait_for(|rules| !rules.stalled).await.map(|rules| *rules) else {
            return Err(What::Cut);
        };
        if !rules.delay.is_zero() {
            sleep(rules.delay).await;
        }
        self.left = self.left.or_else(|| self.shared.take_cut(self.way));
        let keep = self.left.map_or(piece.len(), |left| left.min(piece.len()));
        let written = self.write(&piece[..keep], rules.bytewise, to).await;
        written.map_err(|_| self.way.ended_at_its_target())?;
        match &mut self.left {
            Some(left) if *left <= piece.len() => return Err(What::Cut),
            Some(left) => *left -= piece.len(),
            None => {}
        }
        Ok(())
    }

    async fn write(
        &self,
        piece: &[u8],
        bytewise: bool,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let (single, rest) = piece.split_at(if bytewise { piece.len().min(BYTEWISE) } else { 0 });
        for byte in single {
            to.write_all(std::slice::from_ref(byte)).await?;
            yield_now().await;
        }
        to.write_all(rest).await
    }
}
