//! Closed-loop callers: each waits for its whole answer before it asks again, and compares every byte of the text.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::{Method, Response, StatusCode, body::Incoming};
use mcprelay_bench::tokens::Spec;
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    http::Caller,
    stats::{Spread, spread},
};

/// A caller that waits longer than this for its answer gives up: the system under test hangs. No cell's answer takes a third.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most error messages that are kept; the others are only counted.
const ERRORS_KEPT: usize = 3;

/// What to do to whom.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Where to connect to, "127.0.0.1:PORT"
    #[arg(long)]
    pub address: String,
    /// What to POST to
    #[arg(long)]
    pub path: String,
    /// How many callers at once
    #[arg(long)]
    pub callers: u32,
    /// Each caller's number of requests; without it they go on until the time is up
    #[arg(long)]
    pub each: Option<u32>,
    /// For how long, where there is no number of requests
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Tokens of every answer
    #[arg(long)]
    pub tokens: u32,
    /// Microseconds between two tokens
    #[arg(long, default_value_t = 0)]
    pub delay_us: u64,
    /// Ask for streams
    #[arg(long)]
    pub stream: bool,
    /// Spread the callers' first requests over so many milliseconds
    #[arg(long, default_value_t = 0)]
    pub ramp_ms: u64,
}

impl LoadArgs {
    /// The same as the command line of a process.
    pub fn to_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["load".to_owned()];
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        add("--address", self.address.clone());
        add("--path", self.path.clone());
        add("--callers", self.callers.to_string());
        add("--seconds", self.seconds.to_string());
        add("--tokens", self.tokens.to_string());
        add("--delay-us", self.delay_us.to_string());
        add("--ramp-ms", self.ramp_ms.to_string());
        if let Some(each) = self.each {
            add("--each", each.to_string());
        }
        if self.stream {
            arguments.push("--stream".to_owned());
        }
        arguments
    }
}

/// What a load came to. Times are in milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// Answers that were right to the last byte.
    pub requests: u64,
    /// Answers that were not, and requests that got none.
    pub errors: u64,
    /// The first few of those, in words.
    pub messages: Vec<String>,
    /// Tokens in the right answers.
    pub tokens: u64,
    /// Events with text in them, of all streams.
    pub chunks: u64,
    /// From the first request to the last answer, in seconds.
    pub seconds: f64,
    /// From a request to the end of its answer.
    pub latency: Spread,
    /// From a request to the first text.
    pub first_token: Spread,
    /// Between two events with text of one stream.
    pub gap: Spread,
}

#[derive(Default)]
struct Seen {
    report: RefCell<LoadReport>,
    latency: RefCell<Vec<f32>>,
    first_token: RefCell<Vec<f32>>,
    gap: RefCell<Vec<f32>>,
    seed: Cell<u32>,
}

/// Runs the load to its end.
pub async fn run(args: LoadArgs) -> LoadReport {
    let (seen, args) = (Rc::new(Seen::default()), Rc::new(args));
    // A different answer from that of the load before, should the system under test mix them up.
    seen.seed.set(std::process::id() << 12);
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for number in 0..args.callers {
        callers.spawn_local(caller(number, Rc::clone(&args), Rc::clone(&seen), began));
    }
    while callers.join_next().await.is_some() {}
    let mut report = seen.report.take();
    report.seconds = began.elapsed().as_secs_f64();
    report.latency = spread(seen.latency.take());
    report.first_token = spread(seen.first_token.take());
    report.gap = spread(seen.gap.take());
    report
}

async fn caller(number: u32, args: Rc<LoadArgs>, seen: Rc<Seen>, began: Instant) {
    sleep(Duration::from_millis(args.ramp_ms) * number / args.callers.max(1)).await;
    let (mut kept, mut done) = (None, 0);
    while args.each.map_or(began.elapsed().as_secs_f64() < args.seconds, |each| done < each) {
        done += 1;
        let spec = seen.next_spec(&args);
        match timeout(PATIENCE, ask(&mut kept, &args, spec, &seen)).await {
            Ok(Ok(())) => seen.report.borrow_mut().tokens += u64::from(spec.tokens),
            Ok(Err(error)) => seen.failed(error.to_string()),
            Err(_) => seen.failed("no whole answer came within 60 s".to_owned()),
        }
    }
}

/// One request and its whole answer. The connection is kept for the next one only if all went well.
async fn ask(kept: &mut Option<Caller>, args: &LoadArgs, spec: Spec, seen: &Seen) -> io::Result<()> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Caller::connect(&args.address).await?,
    };
    let asked = Instant::now();
    let reply = connection.send(Method::POST, &args.path, spec.body().into()).await?;
    if reply.status() != StatusCode::OK {
        let status = reply.status();
        return Err(wrong(&format!("status {status}: {}", String::from_utf8_lossy(&whole(reply).await?))));
    }
    match spec.stream {
        true => read_stream(reply.into_body(), Stream::new(&spec, asked, seen)).await?,
        false => check_completion(&whole(reply).await?, &spec)?,
    }
    seen.latency.borrow_mut().push(millis_since(asked));
    seen.report.borrow_mut().requests += 1;
    *kept = Some(connection);
    Ok(())
}

async fn whole(reply: Response<Incoming>) -> io::Result<Bytes> {
    Ok(reply.into_body().collect().await.map_err(io::Error::other)?.to_bytes())
}

async fn read_stream(mut body: Incoming, mut stream: Stream<'_>) -> io::Result<()> {
    let mut pending = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(io::Error::other)?.into_data() else { continue };
        pending.extend_from_slice(&piece);
        while let Some(end) = memchr::memmem::find(&pending, b"\n\n") {
            let event = pending.split_to(end + 2);
            stream.event(&event[..end])?;
        }
    }
    stream.over()
}

/// What is left to come of one stream.
struct Stream<'a> {
    expected: String,
    taken: usize,
    done: bool,
    asked: Instant,
    last: Option<Instant>,
    seen: &'a Seen,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, alias = "message")]
    delta: Text<'a>,
}

#[derive(Deserialize)]
struct Text<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

impl<'a> Stream<'a> {
    fn new(spec: &Spec, asked: Instant, seen: &'a Seen) -> Self {
        Self { expected: spec.text(), taken: 0, done: false, asked, last: None, seen }
    }

    fn event(&mut self, event: &[u8]) -> io::Result<()> {
        let Some(data) = event.strip_prefix(b"data: ") else { return Ok(()) };
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk<'_> = serde_json::from_slice(data)?;
        let text = chunk.choices.first().and_then(|choice| choice.delta.content.as_deref());
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(()) };
        if !self.expected[self.taken..].starts_with(text) {
            return Err(wrong(&format!("the stream has other text at byte {}: {text:?}", self.taken)));
        }
        self.taken += text.len();
        self.note_time();
        Ok(())
    }

    fn note_time(&mut self) {
        let now = Instant::now();
        match self.last.replace(now) {
            None => self.seen.first_token.borrow_mut().push(millis_since(self.asked)),
            Some(last) => self.seen.gap.borrow_mut().push((now - last).as_secs_f32() * 1e3),
        }
        self.seen.report.borrow_mut().chunks += 1;
    }

    fn over(&self) -> io::Result<()> {
        match (self.taken == self.expected.len(), self.done) {
            (true, true) => Ok(()),
            (true, false) => Err(wrong("the stream ends without [DONE]")),
            (false, _) => {
                Err(wrong(&format!("the stream ends after byte {} of {}", self.taken, self.expected.len())))
            }
        }
    }
}

fn check_completion(body: &[u8], spec: &Spec) -> io::Result<()> {
    let chunk: Chunk<'_> = serde_json::from_slice(body)?;
    let text = chunk.choices.first().and_then(|choice| choice.delta.content.as_deref());
    if text == Some(&spec.text()) { Ok(()) } else { Err(wrong("the answer has other text")) }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn millis_since(then: Instant) -> f32 {
    then.elapsed().as_secs_f32() * 1e3
}

impl Seen {
    fn next_spec(&self, args: &LoadArgs) -> Spec {
        let seed = self.seed.get();
        self.seed.set(seed.wrapping_add(1));
        Spec { seed, tokens: args.tokens, delay_us: args.delay_us, stream: args.stream }
    }

    fn failed(&self, message: String) {
        let mut report = self.report.borrow_mut();
        report.errors += 1;
        if report.messages.len() < ERRORS_KEPT {
            report.messages.push(message);
        }
    }
}
