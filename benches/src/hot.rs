//! The agent's own work for a task, without any I/O: what the micro-benchmarks time and callgrind counts.

use std::{collections::BTreeMap, hint::black_box, sync::Arc};

use bytes::Bytes;
use clap::ValueEnum;
use eventsource_stream::Parser;
use mcprelay::{
    domain::{EndKind, Provider, ProviderName, ProviderState, Task},
    openai::{ChunkEnvelope, StreamBuffer},
    pb::{SessionResponse, TaskOffer, session_response::Payload},
    telemetry::{ChannelTrace, Handle, Server, TaskReport, TaskTrace},
    upstream::{
        contract::{CHUNK_HEAD, CHUNK_TAIL, ReadFacts},
        task_event::read_task,
    },
};
use prost::Message as _;
use tokio::time::Instant;

use crate::tokens::Spec;

/// Chunks that gather while one POST is under way, in [`Path::Merge`].
const MERGED: u32 = 16;
/// The most a stream's buffer holds, in bytes; never reached here.
const LIMIT: usize = 4 << 20;

/// One piece of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Path {
    /// A task event's bytes, from the control channel, become a task.
    Task,
    /// A task becomes the message that offers it to the local program.
    Offer,
    /// One chunk becomes one POST's body.
    Chunk,
    /// Sixteen chunks become one POST's body.
    Merge,
    /// What a streamed task of sixteen chunks and two POSTs asks of a telemetry that is off.
    Untraced,
}

impl Path {
    /// Every path, with its name.
    pub const ALL: [(&str, Self); 5] = [
        ("task", Self::Task),
        ("offer", Self::Offer),
        ("chunk", Self::Chunk),
        ("merge", Self::Merge),
        ("untraced", Self::Untraced),
    ];
}

/// What the paths work on; made once.
pub struct Bench {
    event: Vec<u8>,
    request: Bytes,
    chunks: Vec<Bytes>,
    parser: Parser,
    buffer: StreamBuffer,
    encoded: Vec<u8>,
    untraced: Untraced,
}

/// What is known of a task whose trace nobody wants.
struct Untraced {
    handle: Handle,
    channel: ChannelTrace,
    task: Arc<Task>,
    provider: Provider,
    mcpd: Server,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// Everything that is needed for any path.
    pub fn new() -> Self {
        let spec = Spec { seed: 7, tokens: MERGED, delay_us: 0, stream: true };
        let event = format!(
            "event: task\ndata: {{\"kind\":\"infer\",\"taskId\":\"0198a5b2-77\",\"llmName\":\"bench\",\"streaming\":true,\"request\":{}}}\n\n",
            spec.body()
        );
        let stamp =
            ChunkEnvelope { id: "chatcmpl-7".to_owned(), model: "bench".to_owned(), created: 1_760_000_000 };
        Self {
            request: spec.body().into(),
            chunks: (0..MERGED).map(|index| chunk(&spec, index)).collect(),
            parser: Parser::new(LIMIT),
            buffer: StreamBuffer::new(LIMIT, stamp),
            encoded: Vec::new(),
            untraced: Untraced::new(&event),
            event: event.into_bytes(),
        }
    }

    /// Goes one path once.
    pub fn once(&mut self, path: Path) {
        match path {
            Path::Task => self.task(),
            Path::Offer => self.offer(),
            Path::Chunk => self.chunks(1),
            Path::Merge => self.chunks(self.chunks.len()),
            Path::Untraced => self.untraced.task(),
        }
    }

    fn task(&mut self) {
        self.parser.push(black_box(&self.event));
        let event = self.parser.next_event().expect("the event is small").expect("the event is whole");
        black_box(read_task(&event.data, ReadFacts::OfStreams).expect("the event is a task"));
    }

    fn offer(&mut self) {
        let offer = TaskOffer {
            task_id: "0198a5b2-77".to_owned(),
            provider_name: "bench".to_owned(),
            request_json: self.request.clone(),
            streaming: true,
            timeout_ms: 600_000,
            w3c_trace_context: BTreeMap::new(),
        };
        self.encoded.clear();
        let message = SessionResponse { payload: Some(Payload::TaskOffer(black_box(offer))) };
        message.encode(&mut self.encoded).expect("a Vec takes everything");
        black_box(&self.encoded);
    }

    fn chunks(&mut self, count: usize) {
        for chunk in &self.chunks[self.chunks.len() - count..] {
            self.buffer.push_raw(black_box(chunk.clone())).expect("the chunk is good");
        }
        while let Some(body) = self.buffer.pop_escaped(CHUNK_HEAD, CHUNK_TAIL) {
            black_box(body);
        }
    }
}

impl Untraced {
    /// `event` is the frame of a task event.
    fn new(event: &str) -> Self {
        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).expect("an event has data");
        let provider = Provider {
            name: ProviderName::new("bench").expect("a name"),
            kind: "openai".into(),
            model: "m".into(),
            tier: String::new(),
            description: String::new(),
            publish: true,
            sharing: Vec::new(),
            max_in_flight: None,
            state: ProviderState::Ready,
            state_detail: String::new(),
            features: Vec::new(),
            context_tokens: None,
            max_output_tokens: None,
            server: None,
        };
        let task = read_task(data, ReadFacts::OfStreams).expect("the event is a task");
        Self {
            handle: Handle::off(),
            channel: ChannelTrace::default(),
            task: task.into(),
            provider,
            mcpd: Server::of("http://127.0.0.1:8080"),
        }
    }

    fn task(&self) {
        let mut trace = TaskTrace::start(black_box(&self.handle), &self.task, &self.channel);
        trace.running(&self.provider);
        black_box(trace.offer_context());
        black_box(trace.answer_content());
        let posts = trace.deliver(&self.mcpd, "/api/v1/llms/_provider-task/0198a5b2-77/result");
        let now = Instant::now();
        (0..MERGED).for_each(|_| trace.chunk(now));
        (0..2).for_each(|_| black_box(&posts).post(0, false).end(Some(200)));
        black_box(trace.trace_id());
        trace.end(black_box(&TaskReport::new(EndKind::Answered)));
    }
}

fn chunk(spec: &Spec, index: u32) -> Bytes {
    let mut event = String::new();
    spec.event_into(&mut event, index);
    let data = event.trim().strip_prefix("data: ").expect("an event has data");
    Bytes::copy_from_slice(data.as_bytes())
}
