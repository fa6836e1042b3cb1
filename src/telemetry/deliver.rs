//! The delivery of one task's result parts: its span, the POSTs that are worth one, and the measurements of all.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use opentelemetry::Context;
use tokio::time::Instant;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{
    Handle, Metrics,
    attributes::Attributes,
    names::{self, key, span, value},
    server::{Server, error_type},
    spans::{self, Past, PostSpans, Spans},
};

/// Most spans of POSTs that one task has. A stream has a POST per token, and nobody reads thousands of them.
const MAX_POST_SPANS: u32 = 32;
/// A POST that took this long tells something.
const SLOW: Duration = Duration::from_secs(1);

/// The POSTs of one task's parts. Cheap to clone and free of the task's own handle, so that the delivery may run
/// as a task of its own. The delivery's span ends with the last of the clones.
#[derive(Clone, Default)]
pub struct Posts(Option<Arc<Target>>);

struct Target {
    metrics: Metrics,
    server: Server,
    traced: Option<Traced>,
}

/// A delivery whose spans are recorded.
struct Traced {
    spans: Spans,
    span: Span,
    /// Of the span, for its children.
    context: Context,
    /// Has the task's id in it, so it is on spans only.
    url: String,
    so_far: Mutex<SoFar>,
}

/// What the delivery's span says at its end.
#[derive(Default)]
struct SoFar {
    posts: u32,
    recorded: u32,
    longest: Duration,
}

/// One POST under way.
pub struct PostTrace(Option<UnderWay>);

struct UnderWay {
    target: Arc<Target>,
    began: Instant,
    resend_count: u32,
    is_terminal: bool,
    upload: Option<UploadTrace>,
}

/// What is particular to an upload.
struct UploadTrace {
    path: String,
    lines: u32,
}

impl Posts {
    /// The delivery begins, below the task's span where that is recorded.
    pub(super) fn new(
        handle: &Handle,
        task: Option<(&Spans, &Context)>,
        server: &Server,
        path: &str,
    ) -> Self {
        let task = task.filter(|(_, task)| spans::is_sampled(task));
        if task.is_none() && !handle.metrics.enabled() {
            return Self(None);
        }
        let traced = task.map(|(spans, task)| {
            let deliver = || info_span!(target: names::TARGET, parent: None, span::DELIVER);
            let span = spans.make(Some(task), deliver);
            let (context, url) = (span.context(), [&*server.origin, path].concat());
            Traced { spans: spans.clone(), span, context, url, so_far: Mutex::default() }
        });
        Self(Some(Arc::new(Target { metrics: handle.metrics.clone(), server: server.clone(), traced })))
    }

    /// A POST begins; `resend_count` is 0 for the first try of a part and counts its repetitions.
    pub fn post(&self, resend_count: u32, is_terminal: bool) -> PostTrace {
        self.begin(resend_count, is_terminal, None)
    }

    /// An upload to `path` begins; `resend_count` counts its connections, from 0.
    pub fn upload(&self, resend_count: u32, path: String) -> PostTrace {
        self.begin(resend_count, false, Some(UploadTrace { path, lines: 0 }))
    }

    fn begin(&self, resend_count: u32, is_terminal: bool, upload: Option<UploadTrace>) -> PostTrace {
        let began = Instant::now();
        PostTrace(self.0.clone().map(|target| UnderWay { target, began, resend_count, is_terminal, upload }))
    }

    /// The delivery is over, of so many chunks of output.
    pub fn end(self, chunks: u32) {
        if let Some(traced) = self.0.as_ref().and_then(|target| target.traced.as_ref()) {
            let mut attributes = Attributes::default();
            attributes.add(key::CHUNKS, i64::from(chunks));
            spans::set(&traced.span, attributes);
        }
    }
}

impl Traced {
    fn so_far(&self) -> MutexGuard<'_, SoFar> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a POST; whether it is to be a span. The terminal one always finds room.
    fn takes(&self, post: &UnderWay, took: Duration, is_odd: bool) -> bool {
        let mut so_far = self.so_far();
        so_far.posts += 1;
        // An upload takes as long as the answer, which says nothing about mcpd.
        if post.upload.is_none() {
            so_far.longest = so_far.longest.max(took);
        }
        let tells = so_far.posts == 1
            || post.is_terminal
            || post.resend_count > 0
            || is_odd
            || took > SLOW
            || post.upload.is_some();
        let most = if post.is_terminal { MAX_POST_SPANS } else { MAX_POST_SPANS - 1 };
        let takes = (tells || self.spans.posts == PostSpans::All) && so_far.recorded < most;
        so_far.recorded += u32::from(takes);
        takes
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let so_far = self.so_far();
        let mut attributes = Attributes::default();
        attributes.add(key::POSTS, i64::from(so_far.posts));
        attributes.add(key::LONGEST_POST, so_far.longest.as_secs_f64());
        spans::set(&self.span, attributes);
    }
}

impl UnderWay {
    /// `reply` is its status, if there was one; `None` where the POST was given up.
    fn ended(&self, took: Duration, reply: Option<Option<u16>>) {
        let Some(traced) = &self.target.traced else { return };
        let error = reply.and_then(error_type);
        if !traced.takes(self, took, error.is_some() || reply.is_none()) {
            return;
        }
        let (mut attributes, is_error) = (Attributes::default(), error.is_some());
        let server = &self.target.server;
        attributes.add(key::HTTP_REQUEST_METHOD, value::POST);
        attributes.add(key::SERVER_ADDRESS, server.host.clone());
        attributes.add(key::SERVER_PORT, server.port);
        let upload = self.upload.as_ref();
        let url = upload.map_or_else(|| traced.url.clone(), |to| [&*server.origin, &to.path].concat());
        attributes.add(key::URL_FULL, url);
        attributes.add_known(key::LINES, upload.map(|upload| i64::from(upload.lines)));
        let resend_count = (self.resend_count > 0).then_some(i64::from(self.resend_count));
        attributes.add_known(key::HTTP_RESEND_COUNT, resend_count);
        attributes.add_known(key::HTTP_RESPONSE_STATUS_CODE, reply.flatten().map(i64::from));
        attributes.add_known(key::ERROR_TYPE, error);
        traced.spans.past(Past { name: span::POST, attributes, is_error }, took, &traced.context);
    }
}

impl PostTrace {
    /// So many lines of an upload have left.
    pub fn set_lines(&mut self, lines: u32) {
        if let Some(upload) = self.0.as_mut().and_then(|post| post.upload.as_mut()) {
            upload.lines = lines;
        }
    }

    /// The reply's status, or `None` where there was no reply. An error stays on this span: a later try may heal it.
    pub fn end(mut self, status: Option<u16>) {
        let Some(post) = self.0.take() else { return };
        let took = post.began.elapsed();
        post.ended(took, Some(status));
        post.target.metrics.post_sent(took, &post.target.server, status);
    }
}

impl Drop for PostTrace {
    /// The POST was given up: nobody knows its reply.
    fn drop(&mut self) {
        if let Some(post) = self.0.take() {
            post.ended(post.began.elapsed(), None);
        }
    }
}
