//! Every name that leaves the agent in a trace or a metric.
//!
//! The GenAI, RPC and HTTP names are those of the OpenTelemetry semantic conventions v1.41.1. The GenAI ones are still "in
//! development": when one changes, it changes here and nowhere else. Names under `mcprelay.` are our own.

/// The semantic conventions that the names are taken from.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.41.1";
/// The instrumentation scope of every span and metric, and the service's name unless the environment gives another.
pub const SCOPE: &str = "mcprelay";

/// Targets of the `tracing` spans that become OpenTelemetry spans; all others stay out of the export.
pub mod target {
    /// The link to mcpd.
    pub const LINK: &str = "mcprelay::link";
}

/// Span names.
pub mod span {
    /// The whole of one relayed task; CONSUMER.
    pub const PROCESS_TASK: &str = "process task";
    /// The wait for a slot; INTERNAL.
    pub const QUEUE: &str = "queue";
    /// The inference; CLIENT. The model's name follows.
    pub const CHAT: &str = "chat ";
    /// The task's leg on the bridge's stream; CLIENT, since the agent asks and the provider host answers.
    pub const SESSION: &str = "mcprelay.bridge.v1.BridgeService/Session";
    /// One POST of a result part; CLIENT.
    pub const POST: &str = "POST";
    /// Opening mcpd's control channel; CLIENT.
    pub const OPEN_CHANNEL: &str = "open control channel";
    /// The event on `chat` that marks the first chunk.
    pub const FIRST_CHUNK: &str = "first chunk";
}

/// Attribute keys.
pub mod key {
    /// What is asked of the model.
    pub const OPERATION_NAME: &str = "gen_ai.operation.name";
    /// The kind of server behind the provider.
    pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
    /// The model that is asked.
    pub const REQUEST_MODEL: &str = "gen_ai.request.model";
    /// The request's limit of tokens.
    pub const REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
    /// The request's temperature.
    pub const REQUEST_TEMPERATURE: &str = "gen_ai.request.temperature";
    /// The request's nucleus.
    pub const REQUEST_TOP_P: &str = "gen_ai.request.top_p";
    /// The request's top k.
    pub const REQUEST_TOP_K: &str = "gen_ai.request.top_k";
    /// The request's frequency penalty.
    pub const REQUEST_FREQUENCY_PENALTY: &str = "gen_ai.request.frequency_penalty";
    /// The request's presence penalty.
    pub const REQUEST_PRESENCE_PENALTY: &str = "gen_ai.request.presence_penalty";
    /// The request's seed.
    pub const REQUEST_SEED: &str = "gen_ai.request.seed";
    /// How many answers are asked for; given when not 1.
    pub const REQUEST_CHOICE_COUNT: &str = "gen_ai.request.choice.count";
    /// Whether a stream is asked for.
    pub const REQUEST_STREAM: &str = "gen_ai.request.stream";
    /// Of the request: `stop`, as a list.
    pub const REQUEST_STOP_SEQUENCES: &str = "gen_ai.request.stop_sequences";
    /// The answer's id.
    pub const RESPONSE_ID: &str = "gen_ai.response.id";
    /// The model that answered.
    pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
    /// Why each choice ended.
    pub const RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
    /// Seconds from the offer to the first chunk.
    pub const RESPONSE_TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
    /// Tokens of the prompt, as the provider counted.
    pub const USAGE_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
    /// Tokens of the answer, as the provider counted.
    pub const USAGE_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
    /// Which tokens a measurement counts: "input" or "output".
    pub const TOKEN_TYPE: &str = "gen_ai.token.type";
    /// The request's messages; only when content is asked for.
    pub const INPUT_MESSAGES: &str = "gen_ai.input.messages";
    /// The answer's messages; only when content is asked for.
    pub const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
    /// The kind of an error, on errors only.
    pub const ERROR_TYPE: &str = "error.type";
    /// The rpc system.
    pub const RPC_SYSTEM_NAME: &str = "rpc.system.name";
    /// The full name of the rpc.
    pub const RPC_METHOD: &str = "rpc.method";
    /// The HTTP method.
    pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
    /// Which repetition of the same request this is, from 1; absent on the first.
    pub const HTTP_RESEND_COUNT: &str = "http.request.resend_count";
    /// The reply's status.
    pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
    /// The server's host.
    pub const SERVER_ADDRESS: &str = "server.address";
    /// The server's port.
    pub const SERVER_PORT: &str = "server.port";
    /// The whole URL, without credentials.
    pub const URL_FULL: &str = "url.full";
    /// mcpd's id of the task; on spans and in logs, never on a metric.
    pub const TASK_ID: &str = "mcprelay.task.id";
    /// The virtual LLM that is asked for.
    pub const LLM: &str = "mcprelay.llm";
    /// How the task ended: "completed", "failed" or "cancelled".
    pub const OUTCOME: &str = "mcprelay.task.outcome";
    /// Why a task was cancelled.
    pub const CANCEL_REASON: &str = "mcprelay.task.cancel_reason";
    /// Chunks of output that came from the provider.
    pub const CHUNKS: &str = "mcprelay.task.chunks";
    /// The state of the link to mcpd.
    pub const LINK_STATE: &str = "mcprelay.link.state";
}

/// Attribute values.
pub mod value {
    /// The only operation that is relayed.
    pub const CHAT: &str = "chat";
    /// The bridge's rpc system.
    pub const GRPC: &str = "grpc";
    /// The method of every result part.
    pub const POST: &str = "POST";
    /// Tokens of the prompt.
    pub const INPUT: &str = "input";
    /// Tokens of the answer.
    pub const OUTPUT: &str = "output";
    /// The conventions' word for "none of the known values": stands in for an empty provider kind.
    pub const OTHER: &str = "_OTHER";
    /// An HTTP call without any reply.
    pub const NO_REPLY: &str = "connection_lost";
}

/// Metric names.
pub mod metric {
    /// Seconds from the offer to the end of the answer.
    pub const OPERATION_DURATION: &str = "gen_ai.client.operation.duration";
    /// Seconds from the offer to the first chunk.
    pub const TIME_TO_FIRST_CHUNK: &str = "gen_ai.client.operation.time_to_first_chunk";
    /// Seconds between chunks.
    pub const TIME_PER_OUTPUT_CHUNK: &str = "gen_ai.client.operation.time_per_output_chunk";
    /// Tokens by type.
    pub const TOKEN_USAGE: &str = "gen_ai.client.token.usage";
    /// Seconds of one POST.
    pub const HTTP_DURATION: &str = "http.client.request.duration";
    /// Tasks that run.
    pub const TASKS_RUNNING: &str = "mcprelay.tasks.running";
    /// Tasks that wait for a slot.
    pub const TASKS_QUEUED: &str = "mcprelay.tasks.queued";
    /// Tasks that ended, by outcome.
    pub const TASKS_ENDED: &str = "mcprelay.tasks.ended";
    /// Attempts to reopen the control channel.
    pub const RECONNECTS: &str = "mcprelay.link.reconnects";
    /// Heartbeats that mcpd did not take.
    pub const HEARTBEATS_MISSED: &str = "mcprelay.link.heartbeats_missed";
    /// 1 for the state the link is in, 0 for the others.
    pub const LINK_STATE: &str = "mcprelay.link.state";
    /// Chunks that came from providers.
    pub const CHUNKS_RECEIVED: &str = "mcprelay.chunks.received";
    /// Result POSTs that went to mcpd, repetitions included.
    pub const POSTS_SENT: &str = "mcprelay.posts.sent";
}
