//! Merging against a plain model.

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    model::Model,
    said::{Members, parse, said},
    samples::a_stream,
    *,
};

fn text(chunk: &Bytes) -> String {
    String::from_utf8(chunk.to_vec()).expect("UTF-8")
}

fn a_buffer() -> StreamBuffer {
    StreamBuffer::new(1 << 22, ChunkEnvelope { id: String::new(), model: String::new(), created: 0 })
}

/// A part as it left the buffer is what the model put together.
fn check_part(sent: &str, merged: &[String]) {
    if let [only] = merged {
        assert_eq!(sent, only, "a chunk alone is not changed");
        return;
    }
    assert_eq!(said(&[sent]), said(merged));
    let top = |chunk: &str| {
        let mut top: Members = parse(chunk).expect("an object");
        top.remove("choices");
        top.into_iter().map(|(key, value)| (key, value.get().to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(top(sent), top(&merged[0]));
}

proptest! {
    #[test]
    fn merging_does_what_the_model_does(chunks in a_stream(), pops in prop::collection::vec(0..6_u8, 64)) {
        let (mut buffer, mut model) = (a_buffer(), Model::default());
        for (chunk, pop) in chunks.iter().zip(pops.iter().cycle()) {
            buffer.push_raw(chunk.clone().into()).expect("the chunk is taken");
            model.push(chunk);
            if *pop == 0 {
                check_part(&text(&buffer.pop().expect("a part waits")), &model.parts.remove(0).chunks);
            }
            prop_assert_eq!(buffer.pending_parts(), model.parts.len());
        }
        for part in &model.parts {
            check_part(&text(&buffer.pop().expect("a part waits")), &part.chunks);
        }
        prop_assert_eq!((buffer.pop(), buffer.pending_bytes()), (None, 0));
    }

    #[test]
    fn a_merged_stream_says_what_the_stream_said(chunks in a_stream()) {
        let mut buffer = a_buffer();
        for chunk in &chunks {
            buffer.push_raw(chunk.clone().into()).expect("the chunk is taken");
        }
        let sent: Vec<_> = std::iter::from_fn(|| buffer.pop()).map(|chunk| text(&chunk)).collect();
        prop_assert_eq!(said(&sent), said(&chunks));
    }

    #[test]
    fn a_stream_that_is_sent_as_it_comes_is_not_changed(chunks in a_stream()) {
        let mut buffer = a_buffer();
        for chunk in &chunks {
            buffer.push_raw(chunk.clone().into()).expect("the chunk is taken");
            prop_assert_eq!(buffer.pop(), Some(Bytes::from(chunk.clone())));
        }
    }

    #[test]
    fn recognising_a_chunk_and_reading_it_come_to_the_same(chunks in a_stream()) {
        let (mut fast, mut slow) = (a_buffer(), a_buffer());
        for chunk in &chunks {
            slow.template = None;
            let chunk = Bytes::from(chunk.clone());
            prop_assert_eq!(fast.push_raw(chunk.clone()), slow.push_raw(chunk));
        }
        prop_assert_eq!(fast.meta(), slow.meta());
        prop_assert_eq!(fast.pending_bytes(), slow.pending_bytes());
        while let Some(part) = fast.pop_escaped(b"<", b">") {
            prop_assert_eq!(Some(part), slow.pop_escaped(b"<", b">"));
        }
    }
}
