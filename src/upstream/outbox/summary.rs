//! The result of a task's delivery, for the agent and for its trace.

use tokio::time::Instant;

use crate::{
    domain::{CancelReason, End, EndKind, Usage},
    openai::ResponseMeta,
    telemetry::{Ending, TaskReport, TaskTrace, TraceWord},
};

/// The result of a task's delivery.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What mcpd was told.
    pub outcome: EndKind,
    /// Chunks that the provider sent.
    pub chunks: u32,
    /// What the provider said it used.
    pub usage: Usage,
    /// When the first token came.
    pub first_token_at: Option<Instant>,
    /// Parts that mcpd took.
    pub posts: u32,
    /// The trace's id, where there is a trace.
    pub trace_id: Option<TraceWord>,
}

pub(super) fn end_trace(
    trace: TaskTrace,
    end: &End,
    summary: &Summary,
    facts: Option<&ResponseMeta>,
    answer: Option<&str>,
) {
    let ending = match end {
        End::Answer(_) => Ending::Completed,
        End::Failed(failure) => Ending::Failed(failure),
        End::Nobody => Ending::Cancelled(CancelReason::CallerGone),
    };
    trace.end(&TaskReport {
        response_id: facts.and_then(|facts| facts.response_id.as_deref()),
        response_model: facts.and_then(|facts| facts.model.as_deref()),
        finish_reasons: facts.map_or(&[], |facts| &facts.finish_reasons),
        usage: summary.usage,
        answer,
        ..TaskReport::new(ending)
    });
}
