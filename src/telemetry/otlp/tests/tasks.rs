//! A task's span against the library's encoding of the same.

use super::*;
use crate::telemetry::{
    Content, in_memory, setup,
    spans::{Attributes, Ended, Open, Trace},
};

fn write(to: &mut Attributes<'_>, values: &[Own]) {
    for value in values {
        match value {
            Own::Text(text) => to.text("a.key", &**text),
            Own::Whole(number) => to.whole("a.key", *number),
            Own::Real(number) => to.real("a.key", *number),
            Own::Flag(flag) => to.flag("a.key", *flag),
            Own::Texts(all) => to.peers_all("a.key", all.iter().map(String::as_str)),
        }
    }
}

#[derive(Clone, Debug)]
enum Own {
    Text(String),
    Whole(i64),
    Real(f64),
    Flag(bool),
    Texts(Vec<String>),
}

fn own() -> impl Strategy<Value = Own> {
    prop_oneof![
        text().prop_map(Own::Text),
        any::<i64>().prop_map(Own::Whole),
        (-1e300..1e300).prop_map(Own::Real),
        any::<bool>().prop_map(Own::Flag),
        vec(text(), 0..3).prop_map(Own::Texts),
    ]
}

proptest! {
    /// What a test or the demo sees of a task's span is what a collector gets.
    #[test]
    fn a_tasks_span_is_encoded_like_the_librarys_own(
        caller in proptest::option::of(context()),
        values in vec(own(), 0..6),
        (name, more) in (text(), text()),
        event in proptest::option::of(text()),
        link in proptest::option::of(context()),
        error in proptest::option::of(text()),
        (after, lasted) in (0..1_u64 << 40, 0..1_u64 << 40),
        remote in any::<bool>(),
    ) {
        let (handle, collected) = in_memory(Content::LeftOut);
        let trace = Trace::start(handle.spans.as_ref().unwrap(), caller.as_ref());
        prop_assume!(trace.sampled);
        let began = trace.began + after;
        let span = Ended {
            name: [&name, &more],
            parent_is_remote: remote,
            event: event.as_deref().map(|name| (name, began + lasted / 2)),
            link: link.as_ref(),
            error: error.as_deref(),
            ..Ended::new(
                (Open::new(began), began + lasted),
                ("", SpanKind::Consumer),
                trace.caller.unwrap_or(SpanId::INVALID),
            )
        };
        trace.ended(&span, |to| write(to, &values));
        let frame = Frame::new(&resource(), &setup::scope());
        let mut bytes = vec![0; frame.room()];
        encode::ended(&mut bytes, &trace, &span, |to| write(to, &values));
        let ours = ExportTraceServiceRequest::decode(frame.close(bytes).whole()).unwrap();
        let theirs = group_spans_by_resource_and_scope(collected.take(), &(&resource()).into());
        prop_assert_eq!(ours.resource_spans, theirs);
    }
}
