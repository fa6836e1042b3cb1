//! The result of a task's delivery, for the agent and for its trace.

use tokio::time::Instant;

use crate::{
    domain::{EndKind, Failure, Usage},
    openai::ResponseMeta,
    telemetry::{TaskReport, TraceId},
};

/// The result of a task's delivery.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What mcpd was told.
    pub outcome: EndKind,
    /// Why it failed, if it did, as the owner may read it: one short, printable sentence.
    pub reason: Option<String>,
    /// Chunks that the provider sent.
    pub chunks: u32,
    /// What the provider said it used.
    pub usage: Usage,
    /// When the first token came.
    pub first_token_at: Option<Instant>,
    /// Parts that mcpd took.
    pub posts: u32,
    /// The trace's id, where there is a trace.
    pub trace_id: Option<TraceId>,
}

impl Summary {
    /// The same for the task's trace, with what the answer said of itself.
    pub(super) fn report<'a>(
        &self,
        failure: Option<&'a Failure>,
        facts: Option<&'a ResponseMeta>,
    ) -> TaskReport<'a> {
        TaskReport {
            failure,
            response_id: facts.and_then(|facts| facts.response_id.as_deref()),
            response_model: facts.and_then(|facts| facts.model.as_deref()),
            finish_reasons: facts.map_or(&[], |facts| &facts.finish_reasons),
            usage: self.usage,
            ..TaskReport::new(self.outcome)
        }
    }
}
