//! Uploads: an answer as one request, whose lines are parts that are applied as they come.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::armed::Orders;
use crate::dispatch::{answer_as_ordered, arrive};
use crate::hub::Hub;
use crate::journal::{Entry, Kind};
use crate::parts::Posted;
use crate::reply::{Cut, Reply, json_reply};
use crate::request::{Seen, authorized, refuse};
use crate::results::{judge, log, wait_for_room};
use crate::tasks::Applied;
use crate::verdict::Rule;
use crate::wire;

/// Least time between two `received` events of an upload.
const RECEIVED_EVERY: Duration = Duration::from_secs(1);

/// An upload under way.
struct Upload<'a> {
    hub: &'a Hub,
    task: &'a str,
    session: String,
    orders: Orders,
    /// Of a line that has not come whole.
    rest: BytesMut,
    bytes: u64,
    lines: u64,
    /// The number of the line before.
    last: Option<u64>,
    /// When the agent was last told what has come, and what that was.
    told: Option<(Instant, u64)>,
}

/// Why an upload is read no further.
#[derive(Debug)]
enum End {
    /// Its last part is applied, or it ends before that.
    Over,
    /// A line left a gap.
    Gap,
    Gone,
    Malformed(String),
    TooLarge,
    Cut,
}

/// An upload in the journal: it gets its entry even where its connection breaks.
struct Journaled<'a> {
    hub: &'a Hub,
    seen: Option<Seen>,
}

/// Takes an upload, and answers it as soon as there is something to say.
pub(crate) async fn take(hub: &Hub, seen: Seen, task: &str, body: Incoming) -> Result<Reply, Cut> {
    if !authorized(hub, &seen) {
        return Ok(refuse(hub, &seen, 401, "the bearer token is missing or wrong"));
    }
    let orders = arrive(hub, &seen, None);
    if orders.cut {
        return Err(Cut);
    }
    if let Some(delay) = orders.delay {
        sleep(delay).await;
    }
    if let Some(answer) = &orders.answer {
        return Ok(answer_as_ordered(hub, &seen, None, answer));
    }
    hub.look(|core| core.verdict.counts.uploads += 1);
    let lose_reply = orders.lose_reply;
    let mut journaled = Journaled { hub, seen: Some(seen) };
    let mut upload = Upload::new(hub, task, orders);
    let end = upload.read(body).await.err().unwrap_or(End::Over);
    if lose_reply || matches!(end, End::Cut) {
        return Err(Cut);
    }
    Ok(journaled.answer(&end, upload.next()))
}

impl Journaled<'_> {
    fn answer(&mut self, end: &End, next: u64) -> Reply {
        let seen = self.seen.take().expect("it is answered once");
        let status = match end {
            End::Gone => return refuse(self.hub, &seen, 404, "nobody waits for this task"),
            End::Malformed(what) => return refuse(self.hub, &seen, 400, what),
            End::TooLarge => return refuse(self.hub, &seen, 413, "a line is over the limit"),
            End::Gap => 409,
            End::Over | End::Cut => 200,
        };
        self.hub.act(|core| core.log(|| seen.answered(status)));
        json_reply(status, wire::json(&wire::Received { task_id: None, next }))
    }
}

impl Drop for Journaled<'_> {
    fn drop(&mut self) {
        if let Some(seen) = self.seen.take() {
            self.hub.act(|core| core.log(|| seen.entry.note("broken off")));
        }
    }
}

impl<'a> Upload<'a> {
    fn new(hub: &'a Hub, task: &'a str, orders: Orders) -> Self {
        let session = hub.look(|core| core.state.tasks.session(task).unwrap_or_default().to_owned());
        Self { hub, task, session, orders, rest: BytesMut::new(), bytes: 0, lines: 0, last: None, told: None }
    }

    /// The number of the first part that has not come.
    fn next(&self) -> u64 {
        self.hub.look(|core| core.state.tasks.get(self.task).map_or(0, |task| task.next()))
    }

    /// Reads and applies lines until there is something to answer.
    async fn read(&mut self, mut body: Incoming) -> Result<(), End> {
        let mut alive = self.alive()?;
        if self.orders.hold {
            let whole = body.collect().await.map_err(|_| End::Cut)?.to_bytes();
            return self.piece(&whole).await;
        }
        loop {
            let tell_at = self.told.map(|(at, _)| at + RECEIVED_EVERY);
            tokio::select! {
                biased;
                () = ended(&mut alive) => return Err(End::Gone),
                () = sleep_until(tell_at.unwrap_or_else(Instant::now)), if self.has_untold() => self.tell(),
                frame = body.frame() => match frame {
                    Some(Ok(frame)) => self.piece(frame.data_ref().unwrap_or(&Bytes::new())).await?,
                    Some(Err(_)) => return Err(End::Cut),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Errs once somebody other than the agent has ended the task. One that the agent has ended may come again.
    fn alive(&self) -> Result<Option<watch::Receiver<()>>, End> {
        self.hub.look(|core| match core.state.tasks.get(self.task) {
            Some(task) if task.is_under_way() => Ok(task.alive()),
            Some(task) if task.is_answered() => Ok(None),
            _ => Err(End::Gone),
        })
    }

    /// Applies the lines that a piece completes, as far as no fault is in the way.
    async fn piece(&mut self, piece: &[u8]) -> Result<(), End> {
        let breaks = self.orders.breaks;
        let room =
            breaks.and_then(|breaks| breaks.bytes).map_or(u64::MAX, |most| most - self.bytes.min(most));
        let kept = &piece[..piece.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let breaks_here =
            breaks.filter(|b| kept.len() < piece.len() || b.bytes.is_none() && b.lines.is_none());
        if breaks_here.is_some_and(|breaks| !breaks.applied) {
            return Err(End::Cut);
        }
        self.bytes += kept.len() as u64;
        self.rest.extend_from_slice(kept);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end).freeze();
            self.rest.advance(1);
            if !line.trim_ascii().is_empty() {
                self.line(line).await?;
            }
        }
        if breaks_here.is_some() {
            return Err(End::Cut);
        }
        if self.rest.len() > self.hub.settings.result_limit { Err(End::TooLarge) } else { Ok(()) }
    }

    async fn line(&mut self, line: Bytes) -> Result<(), End> {
        self.lines += 1;
        let breaks = self.orders.breaks.filter(|breaks| breaks.lines.is_some_and(|most| self.lines >= most));
        if breaks.is_some_and(|breaks| !breaks.applied) {
            return Err(End::Cut);
        }
        let (n, posted) = Posted::line(self.task, &line).map_err(|why| self.malformed(&why))?;
        self.check(n, &posted, &line);
        if self.orders.lose_line == Some(self.lines) {
            return Ok(());
        }
        let applied = self.apply(n, &posted, line).await?;
        if self.told.is_none_or(|(at, _)| at.elapsed() >= RECEIVED_EVERY) {
            self.tell();
        }
        let is_end = posted.body.is_ok_and(|body| body.is_end());
        match applied {
            _ if breaks.is_some() => Err(End::Cut),
            Applied::Accepted | Applied::Repeated if is_end => Err(End::Over),
            Applied::Accepted | Applied::Repeated => Ok(()),
            Applied::Gap => Err(End::Gap),
            Applied::NotStreaming => Err(End::Malformed("the task asked for no stream".to_owned())),
            Applied::Gone | Applied::Full(_) => Err(End::Gone),
        }
    }

    fn malformed(&self, why: &str) -> End {
        let what = format!("line {} is no part: {why}", self.lines);
        self.hub.look(|core| core.verdict.breach(core.now, Rule::MalformedResult, self.task, &what));
        End::Malformed(what)
    }

    /// Tells the verdict of a line.
    fn check(&mut self, n: u64, posted: &Posted, line: &[u8]) {
        let before = self.last.replace(n);
        self.hub.look(|core| {
            core.verdict.attempt(core.now, posted, line);
            if n == 0 {
                let what = "part 0 came by an upload, and a proxy could have held it back";
                core.verdict.breach(core.now, Rule::PartZeroByUpload, self.task, what);
            }
            if let Some(before) = before.filter(|before| before.checked_add(1) != Some(n)) {
                let what = format!("in an upload, line {n} came after line {before}");
                core.verdict.breach(core.now, Rule::PartOutOfOrder, self.task, &what);
            }
        });
    }

    /// Applies a line; waits while the caller is behind.
    async fn apply(&self, n: u64, posted: &Posted, line: Bytes) -> Result<Applied, End> {
        let body = posted.body.as_ref().map_err(|why| self.malformed(why))?;
        loop {
            let applied = self.hub.act(|core| {
                let applied = core.state.tasks.apply_line(self.task, n, body);
                judge(core, posted, body, &applied);
                let entry =
                    || Entry::new(Kind::Line).session(&self.session).task(self.task).body(line.clone());
                log(core, posted, body, &applied, |status| Entry {
                    key: posted.key.clone(),
                    ..entry().status(status)
                });
                applied
            });
            let Applied::Full(caller) = applied else { return Ok(applied) };
            wait_for_room(self.hub, posted, &caller).await;
        }
    }

    fn has_untold(&self) -> bool {
        self.told.is_some_and(|(_, told)| told != self.next())
    }

    /// Tells the agent what has come.
    fn tell(&mut self) {
        let next = self.next();
        self.told = Some((Instant::now(), next));
        self.hub.act(|core| core.send_received(&self.session, self.task, next));
    }
}

async fn ended(alive: &mut Option<watch::Receiver<()>>) {
    match alive {
        Some(alive) => while alive.changed().await.is_ok() {},
        None => std::future::pending().await,
    }
}
