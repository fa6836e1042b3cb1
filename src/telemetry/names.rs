//! Every name that leaves the agent in a trace or a metric.
//!
//! The `gen_ai.` names are those of the OpenTelemetry GenAI semantic conventions v0.1.0, and the HTTP and
//! general ones those of the semantic conventions v1.45.0, on which that release depends. The GenAI ones are
//! "in development": when one changes, it changes here and nowhere else. `names/registry.txt` lists what the
//! release has, and a test holds this module against it. Names under `mcprelay.` are our own.

/// The instrumentation scope of every span and metric, and the service's name unless the environment gives another.
pub const SCOPE: &str = "mcprelay";

/// Target of the `tracing` spans that become OpenTelemetry spans; all others stay out of the export.
pub const TARGET: &str = "mcprelay::trace";

/// Span names.
pub mod span {
    /// The whole of one relayed task; CONSUMER.
    pub const PROCESS_TASK: &str = "process task";
    /// The wait for a slot; INTERNAL.
    pub const QUEUE: &str = "queue";
    /// The inference; CLIENT. The model's name follows.
    pub const CHAT: &str = "chat";
    /// The way of the output to mcpd, from its first part to the accepted end; INTERNAL.
    pub const DELIVER: &str = "deliver";
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
    /// How much the model is to reason.
    pub const REQUEST_REASONING_LEVEL: &str = "gen_ai.request.reasoning.level";
    /// The request's seed.
    pub const REQUEST_SEED: &str = "gen_ai.request.seed";
    /// How many answers are asked for; given when not 1.
    pub const REQUEST_CHOICE_COUNT: &str = "gen_ai.request.choice.count";
    /// Whether a stream is asked for.
    pub const REQUEST_STREAM: &str = "gen_ai.request.stream";
    /// Of the request: `stop`, as a list.
    pub const REQUEST_STOP_SEQUENCES: &str = "gen_ai.request.stop_sequences";
    /// What kind of answer is asked for: "text" or "json".
    pub const OUTPUT_TYPE: &str = "gen_ai.output.type";
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
    /// Of the prompt's tokens, those that came from the provider's cache.
    pub const USAGE_CACHE_READ_INPUT_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
    /// Of the answer's tokens, those of the reasoning.
    pub const USAGE_REASONING_OUTPUT_TOKENS: &str = "gen_ai.usage.reasoning.output_tokens";
    /// What tokens stand for; "unknown" where the provider does not say.
    pub const TOKEN_MODALITY: &str = "gen_ai.token.modality";
    /// The request's messages; only when content is asked for.
    pub const INPUT_MESSAGES: &str = "gen_ai.input.messages";
    /// The answer's messages; only when content is asked for.
    pub const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
    /// The kind of an error, on errors only.
    pub const ERROR_TYPE: &str = "error.type";
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
    /// How the task ended: "ok", "cancelled", or the failure's code.
    pub const OUTCOME: &str = "mcprelay.task.outcome";
    /// Why a task was cancelled.
    pub const CANCEL_REASON: &str = "mcprelay.task.cancel_reason";
    /// Chunks of output that came from the provider.
    pub const CHUNKS: &str = "mcprelay.task.chunks";
    /// POSTs of a delivery, repetitions included.
    pub const POSTS: &str = "mcprelay.deliver.posts";
    /// Lines of an upload.
    pub const LINES: &str = "mcprelay.deliver.lines";
    /// Seconds of a delivery's longest POST; uploads, which last as long as their answer, do not count.
    pub const LONGEST_POST: &str = "mcprelay.deliver.longest_post";
    /// The state of the link to mcpd.
    pub const LINK_STATE: &str = "mcprelay.link.state";
    /// What is wrong with the link to mcpd.
    pub const LINK_TROUBLE: &str = "mcprelay.link.trouble";
    /// The state of a provider.
    pub const PROVIDER_STATE: &str = "mcprelay.provider.state";
}

/// Attribute values.
pub mod value {
    /// The only operation that is relayed.
    pub const CHAT: &str = "chat";
    /// The method of every result part.
    pub const POST: &str = "POST";
    /// Tokens of which the provider does not say what they stand for.
    pub const UNKNOWN_MODALITY: &str = "unknown";
    /// Google's Gemini.
    pub const GEMINI: &str = "gcp.gemini";
    /// An answer that is a JSON object.
    pub const JSON: &str = "json";
    /// An answer that is plain text.
    pub const TEXT: &str = "text";
    /// The only reason for which a task ends without an answer and without an error.
    pub const CALLER_GONE: &str = "caller_gone";
    /// The conventions' word for "none of the known values": stands in for an empty provider kind.
    pub const OTHER: &str = "_OTHER";
    /// An HTTP call without any reply.
    pub const NO_REPLY: &str = "connection_lost";
}

/// Metric names.
pub mod metric {
    /// Seconds from the offer to the end of the answer.
    pub const INFERENCE_DURATION: &str = "gen_ai.client.inference.duration";
    /// Seconds from the offer to the first chunk.
    pub const TIME_TO_FIRST_CHUNK: &str = "gen_ai.client.inference.time_to_first_chunk";
    /// Seconds between chunks.
    pub const TIME_PER_OUTPUT_CHUNK: &str = "gen_ai.client.inference.time_per_output_chunk";
    /// Tokens of prompts.
    pub const INPUT_TOKENS: &str = "gen_ai.client.inference.usage.input_tokens";
    /// Tokens of answers.
    pub const OUTPUT_TOKENS: &str = "gen_ai.client.inference.usage.output_tokens";
    /// Tokens of prompts that came from the provider's cache.
    pub const CACHE_READ_INPUT_TOKENS: &str = "gen_ai.client.inference.usage.cache_read.input_tokens";
    /// Tokens of answers that were reasoning.
    pub const REASONING_OUTPUT_TOKENS: &str = "gen_ai.client.inference.usage.reasoning.output_tokens";
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
    /// 1 for the trouble that the link has, 0 for the others.
    pub const LINK_TROUBLE: &str = "mcprelay.link.trouble";
    /// 1 for the state a provider is in, 0 for the others.
    pub const PROVIDER_STATE: &str = "mcprelay.provider.state";
    /// Chunks that came from providers.
    pub const CHUNKS_RECEIVED: &str = "mcprelay.chunks.received";
    /// Result POSTs that went to mcpd, repetitions included.
    pub const POSTS_SENT: &str = "mcprelay.posts.sent";
}

#[cfg(test)]
mod tests;
